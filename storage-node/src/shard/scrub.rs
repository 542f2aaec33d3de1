//! Reading everything now and then: what nobody reads would decay unseen, until the last good copy elsewhere has too.
//!
//! A pass walks the base map of every volume, a page at a time, reads what lies in the log and compares it with its
//! checksums. What it finds is noted like damage that a reader meets, and repaired like it (see [`super::damage`]). It is
//! paced to take about [`ShardOptions::scrub_period`](super::ShardOptions::scrub_period), gives way to everybody else, and
//! starts again a period after it began. Blocks that only a layer has are left out: they came lately, or were never here,
//! and are on their way into the base. Nothing is kept over a restart: a pass begins anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use client_lib::{BLOCK_SIZE, VolumeId};

use super::core::Core;
use super::fetch::Then;
use crate::map::page::{PAGE_ENTRIES, Version};
use crate::map::store::MapError;

/// The slowest pace in bytes per second: a small store is through in minutes, and costs no disk anything.
const RATE_MIN: u64 = 256 << 10;

/// How long a page waits for a moment when nobody else reads or writes.
const GIVE_WAY_MAX: Duration = Duration::from_secs(5);

/// Pause before the next look for such a moment.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Pass {
    began: Instant,
    /// Volumes still to walk, the first from the page.
    volumes: VecDeque<VolumeId>,
    page: u32,
    /// Blocks that there were when it began.
    blocks: u64,
    verified: u64,
}

/// The scrub of a shard.
#[derive(Debug)]
pub(super) struct Scrub {
    /// How long a pass shall take; `None`: there is none.
    period: Option<Duration>,
    pass: Option<Pass>,
    is_reading: bool,
    due: Instant,
    /// Since when a page gives way.
    overdue_since: Option<Instant>,
}

impl Scrub {
    pub(super) fn new(period: Option<Duration>) -> Scrub {
        Scrub { period, pass: None, is_reading: false, due: Instant::now(), overdue_since: None }
    }

    /// How long the shard may sleep before the next page is due.
    pub(super) fn wait(&self) -> Duration {
        match self.period {
            Some(_) if !self.is_reading => self.due.saturating_duration_since(Instant::now()),
            _ => Duration::MAX,
        }
    }
}

impl Core {
    /// Reads the next page of the pass under way, if it is time.
    pub(super) fn scrub_step(&mut self) {
        let Some(period) = self.scrub.period else { return };
        let now = Instant::now();
        if self.scrub.is_reading || now < self.scrub.due {
            return;
        }
        if self.is_serving() {
            let since = *self.scrub.overdue_since.get_or_insert(now);
            if now < since + GIVE_WAY_MAX {
                self.scrub.due = now + GIVE_WAY_PAUSE;
                return;
            }
        }
        self.scrub.overdue_since = None;
        if self.scrub.pass.is_none() {
            let volumes: VecDeque<VolumeId> = self.volumes.keys().copied().collect();
            let blocks = volumes.iter().map(|volume| self.map.usage.mapped(*volume)).sum();
            self.scrub.pass = Some(Pass { began: now, volumes, page: 0, blocks, verified: 0 });
        }
        let Some((volume, versions)) = self.next_to_verify() else {
            if let Some(pass) = self.scrub.pass.take() {
                self.scrub.due = pass.began + period;
                tracing::debug!(blocks = pass.verified, seconds = pass.began.elapsed().as_secs(), "a scrub is through");
            }
            return;
        };
        let count = versions.len() as u64;
        if let Some(pass) = &mut self.scrub.pass {
            pass.verified += count;
            let by_period = period.mul_f64((count as f64 / pass.blocks.max(1) as f64).min(1.0));
            let by_rate = Duration::from_secs_f64((count * u64::from(BLOCK_SIZE)) as f64 / RATE_MIN as f64);
            self.scrub.due = now + by_period.min(by_rate);
        }
        self.scrub.is_reading = true;
        self.fetch(volume, &versions, Then::Scrub { blocks: count });
    }

    /// A page was read and compared.
    pub(super) fn scrubbed(&mut self, volume: VolumeId, blocks: u64) {
        self.scrub.is_reading = false;
        if let Some(run) = self.volumes.get_mut(&volume) {
            run.verified_blocks += blocks;
        }
    }

    /// The next page of the pass that has blocks in the log; `None` when it is through.
    #[expect(clippy::type_complexity, reason = "what a fetch takes")]
    fn next_to_verify(&mut self) -> Option<(VolumeId, Vec<(u32, Option<Version>)>)> {
        loop {
            let pass = self.scrub.pass.as_mut()?;
            let volume = *pass.volumes.front()?;
            let Some(page) = self.map.cache.next_page(volume, pass.page) else {
                pass.volumes.pop_front();
                pass.page = 0;
                continue;
            };
            match page.checked_add(1) {
                Some(next) => pass.page = next,
                None => drop(pass.volumes.pop_front()),
            }
            match self.local_blocks(volume, page) {
                Ok(versions) if versions.is_empty() => {}
                Ok(versions) => return Some((volume, versions)),
                Err(error) => tracing::error!(%volume, page, %error, "a page of the map cannot be verified"),
            }
        }
    }

    fn local_blocks(&mut self, volume: VolumeId, page: u32) -> Result<Vec<(u32, Option<Version>)>, MapError> {
        let Some(entries) = self.map.cache.page(volume, page)? else { return Ok(Vec::new()) };
        let local = entries.iter().filter(|(_, version)| version.content.place().is_some());
        Ok(local.map(|(index, version)| (page * PAGE_ENTRIES + u32::from(index), Some(version))).collect())
    }
}
