//! Reading everything now and then: what nobody reads would decay unseen, until the last good copy elsewhere has too.
//!
//! A [`Pass`] walks the maps of a volume, or of all, a page at a time: the live one with what the layers have above it, then
//! those of the snapshots. It reads what each of them counts ([`crate::map::snapshot`]), so what they share once, and compares it
//! with its checksums. What it finds is noted like damage that a reader meets, and repaired like it (see [`super::damage`]).
//!
//! One pass at a time reads: one that somebody asked for before the one that begins by itself every
//! [`scrub_period`](super::ShardOptions::scrub_period). That one is spread over its period, the others go as fast as
//! [`scrub_bytes_per_second`](super::ShardOptions::scrub_bytes_per_second), which none exceeds. All give way to
//! everybody else. How far each is goes into the map store with the checkpoints ([`pass`]), so that a restart goes on
//! near where it was; the last outcome of each is kept there as well.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client_lib::{BLOCK_SIZE, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::core::Core;
use super::fetch::Then;
use super::handle::StoreError;
use crate::map::MapKey;
use crate::map::page::{PAGE_ENTRIES, Version};
use crate::map::store::{Change, MapError};
pub use pass::{Pass, PassState};

mod pass;

/// The slowest pace in bytes per second of a pass that begins by itself: a small store is through in minutes, and costs no
/// disk anything.
const RATE_MIN: u64 = 256 << 10;

/// How long a page waits for a moment when nobody else reads or writes: of a pass that begins by itself, and of one that
/// somebody waits for.
const GIVE_WAY_MAX: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(250));

/// Pause before the next look for such a moment.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(20);

/// How much of a pass may be done again after a crash.
const KEEP_PAUSE: Duration = Duration::from_secs(60);

/// Pages looked at per turn for one that has blocks in the log: what layers know of may all be elsewhere.
const PAGES_PER_STEP: usize = 64;

/// The key of the pass over everything; no volume has this id.
const EVERYTHING: VolumeId = VolumeId(0);

/// What is asked of the scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScrubAction {
    /// Begin a pass now, unless one that was asked for is under way.
    Start,
    /// Only tell.
    Look,
    /// End the pass under way.
    Stop,
}

/// A pass, and what of its volumes is damaged now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The pass under way, or the last one; `None` when there was none.
    pub pass: Option<Pass>,
    /// Blocks that are damaged now, whoever found them.
    pub damaged_now: u64,
}

/// What is counted of a shard's scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubFigures {
    /// Whether a pass is under way.
    pub is_running: bool,
    /// Blocks that were read and compared since the start.
    pub verified_blocks: u64,
    /// When the last pass over everything was through, in milliseconds since 1970; `None` while one runs, and when none was.
    pub finished_ms: Option<u64>,
    /// When the pass over everything that is under way began, likewise; `None` while none is.
    pub began_ms: Option<u64>,
}

/// The scrub of a shard.
#[derive(Debug)]
pub(super) struct Scrub {
    /// How often a pass begins by itself; `None`: never.
    period: Option<Duration>,
    bytes_per_second: u64,
    /// The pass under way or the last one: of each volume, and of [`EVERYTHING`].
    passes: BTreeMap<VolumeId, Pass>,
    /// Passes that the next checkpoint writes.
    changed: BTreeMap<VolumeId, Instant>,
    /// Tells the passes of this process apart.
    numbers: BTreeMap<VolumeId, u64>,
    next_number: u64,
    is_reading: bool,
    /// Blocks that were read since the start.
    verified: u64,
    due: Instant,
    /// Since when a page gives way.
    overdue_since: Option<Instant>,
}

impl Scrub {
    pub(super) fn new(period: Option<Duration>, bytes_per_second: u64) -> Scrub {
        Scrub {
            period,
            bytes_per_second: bytes_per_second.max(1),
            passes: BTreeMap::new(),
            changed: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            is_reading: false,
            verified: 0,
            due: Instant::now(),
            overdue_since: None,
        }
    }

    /// Takes over what a checkpoint kept. What cannot be read is begun anew.
    pub(super) fn restore(&mut self, rows: Vec<(VolumeId, Vec<u8>)>, exists: impl Fn(VolumeId) -> bool) {
        for (key, row) in rows {
            match Pass::decode(&row) {
                Some(pass) if key == EVERYTHING || exists(key) => drop(self.passes.insert(key, pass)),
                Some(_) => {}
                None => tracing::warn!(volume = %key, "what is kept of a scrub cannot be read; it begins anew"),
            }
        }
    }

    /// What changed since the last call, for the checkpoint.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed);
        let row = |key: VolumeId| Change::Scrub(key, self.passes.get(&key).map(Pass::encode));
        changed.into_keys().map(row).collect()
    }

    /// The volume is gone.
    pub(super) fn forget(&mut self, volume: VolumeId) {
        // Its row goes with the rest of it.
        self.passes.remove(&volume);
        self.changed.remove(&volume);
    }

    /// Damaged blocks of `volume` were repaired.
    pub(super) fn note_repaired(&mut self, volume: VolumeId, blocks: u64) {
        for key in [volume, EVERYTHING] {
            if let Some(pass) = self.passes.get_mut(&key).filter(|pass| pass.repaired_blocks < pass.damaged_blocks) {
                pass.repaired_blocks = (pass.repaired_blocks + blocks).min(pass.damaged_blocks);
                self.changed.entry(key).or_insert_with(Instant::now);
            }
        }
    }

    /// What is counted of it.
    pub(super) fn figures(&self) -> ScrubFigures {
        let whole = |state| self.passes.get(&EVERYTHING).filter(|pass| pass.state == state);
        ScrubFigures {
            is_running: self.running().is_some(),
            verified_blocks: self.verified,
            finished_ms: whole(PassState::Finished).map(|pass| pass.ended_ms),
            began_ms: whole(PassState::Running).map(|pass| pass.began_ms),
        }
    }

    /// How long the shard may sleep before the next page is due.
    pub(super) fn wait(&self) -> Duration {
        if self.is_reading || (self.period.is_none() && self.running().is_none()) {
            return Duration::MAX;
        }
        self.due.saturating_duration_since(Instant::now())
    }

    /// The pass that reads now: one that was asked for first.
    fn running(&self) -> Option<VolumeId> {
        let running = self.passes.iter().filter(|(_, pass)| pass.state == PassState::Running);
        running.min_by_key(|(key, pass)| (!pass.by_hand, pass.began_ms, **key)).map(|(key, _)| *key)
    }

    /// Counts a pass over everything from now that began, as it says, later than now: the clock was ahead then, and was set
    /// right. Says whether there was one.
    fn count_from_now(&mut self, now_ms: u64) -> bool {
        let Some(pass) = self.passes.get_mut(&EVERYTHING).filter(|pass| pass.began_ms > now_ms) else { return false };
        (pass.began_ms, pass.ended_ms) = (now_ms, pass.ended_ms.min(now_ms));
        self.changed.entry(EVERYTHING).or_insert_with(Instant::now);
        true
    }

    /// How long a pass that begins by itself may wait; `None`: none does.
    fn next_by_itself(&self, now_ms: u64) -> Option<Duration> {
        let period = self.period?;
        let last = self.passes.get(&EVERYTHING).map_or(0, |pass| pass.began_ms);
        let due_ms = last.saturating_add(period.as_millis() as u64);
        // The bound is for a clock that was set back after the last one began: see `count_from_now`.
        Some(Duration::from_millis(due_ms.saturating_sub(now_ms)).min(period))
    }

    fn begin(&mut self, key: VolumeId, by_hand: bool, total_blocks: u64, now_ms: u64) {
        self.next_number += 1;
        self.numbers.insert(key, self.next_number);
        self.passes.insert(key, Pass::new(by_hand, total_blocks, now_ms));
        self.changed.entry(key).or_insert_with(Instant::now);
        self.due = Instant::now();
    }

    fn end(&mut self, key: VolumeId, state: PassState, now_ms: u64) {
        let Some(pass) = self.passes.get_mut(&key) else { return };
        (pass.state, pass.ended_ms) = (state, now_ms);
        if state == PassState::Finished {
            // What was written or deleted meanwhile makes it more or less than it was at the beginning.
            pass.total_blocks = pass.checked_blocks;
        }
        self.changed.entry(key).or_insert_with(Instant::now);
        self.due = Instant::now();
    }
}

/// A clock before 1970 is told as 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn key_of(of: Option<VolumeId>) -> VolumeId {
    of.unwrap_or(EVERYTHING)
}

impl Core {
    /// Begins, ends or tells of the pass over `of`, or over everything.
    pub(super) fn scrub(&mut self, action: ScrubAction, of: Option<VolumeId>) -> Result<ScrubReport, StoreError> {
        if let Some(volume) = of.filter(|volume| !self.volumes.contains_key(volume)) {
            return Err(StoreError::UnknownVolume(volume));
        }
        let key = key_of(of);
        let under_way = self.scrub.passes.get(&key).filter(|pass| pass.state == PassState::Running).copied();
        match action {
            ScrubAction::Start if under_way.is_none_or(|pass| !pass.by_hand) => {
                self.scrub.begin(key, true, self.blocks_of(of), now_ms());
            }
            ScrubAction::Stop if under_way.is_some() => self.scrub.end(key, PassState::Stopped, now_ms()),
            ScrubAction::Start | ScrubAction::Look | ScrubAction::Stop => {}
        }
        let runs: Vec<VolumeId> = self.volumes.keys().copied().filter(|id| of.is_none_or(|of| of == *id)).collect();
        let mut damaged_now = 0;
        for volume in runs {
            self.forget_replaced(volume);
            damaged_now += self.volumes.get(&volume).map_or(0, |run| run.damage.count());
        }
        Ok(ScrubReport { pass: self.scrub.passes.get(&key).copied(), damaged_now })
    }

    /// Blocks that a pass over `of` reads.
    fn blocks_of(&self, of: Option<VolumeId>) -> u64 {
        let runs = self.volumes.values().filter(|run| of.is_none_or(|of| run.state.id == of));
        runs.flat_map(|run| run.state.maps()).map(|map| self.map.usage.mapped(map)).sum()
    }

    /// Reads the next page of the pass under way, if it is time.
    pub(super) fn scrub_step(&mut self) {
        if self.scrub.is_reading || (self.scrub.period.is_none() && self.scrub.running().is_none()) {
            return;
        }
        let now = Instant::now();
        if now < self.scrub.due {
            return;
        }
        let Some(key) = self.scrub.running() else {
            let now_ms = now_ms();
            if self.scrub.count_from_now(now_ms) {
                // A restart would count from then again.
                self.checkpoints.request_if_idle();
            }
            match self.scrub.next_by_itself(now_ms) {
                Some(Duration::ZERO) => self.scrub.begin(EVERYTHING, false, self.blocks_of(None), now_ms),
                Some(wait) => self.scrub.due = now + wait,
                None => {}
            }
            return;
        };
        let Some(pass) = self.scrub.passes.get(&key).copied() else { return };
        if self.is_serving() {
            let since = *self.scrub.overdue_since.get_or_insert(now);
            let most = if pass.by_hand { GIVE_WAY_MAX.1 } else { GIVE_WAY_MAX.0 };
            if now < since + most {
                self.scrub.due = now + GIVE_WAY_PAUSE;
                return;
            }
        }
        self.scrub.overdue_since = None;
        let Some((volume, versions)) = self.next_to_verify(key) else {
            self.scrub.end(key, PassState::Finished, now_ms());
            self.checkpoints.request_if_idle();
            let pass = self.scrub.passes.get(&key).copied().unwrap_or(pass);
            tracing::info!(
                volume = (key != EVERYTHING).then(|| key.to_string()),
                blocks = pass.checked_blocks,
                damaged = pass.damaged_blocks,
                milliseconds = pass.ended_ms.saturating_sub(pass.began_ms),
                "a scrub is through"
            );
            return;
        };
        let count = versions.len() as u64;
        self.scrub.due = now + self.pause_after(&pass, count);
        self.scrub.is_reading = true;
        let number = self.scrub.numbers.get(&key).copied().unwrap_or_default();
        self.fetch(volume, &versions, Then::Scrub { pass: key, number, blocks: count });
    }

    /// How long to wait after `count` blocks.
    fn pause_after(&self, pass: &Pass, count: u64) -> Duration {
        let at_rate = |rate: u64| Duration::from_secs_f64((count * u64::from(BLOCK_SIZE)) as f64 / rate as f64);
        let fastest = at_rate(self.scrub.bytes_per_second);
        match self.scrub.period {
            Some(period) if !pass.by_hand => {
                let share = (count as f64 / pass.total_blocks.max(1) as f64).min(1.0);
                period.mul_f64(share).min(at_rate(RATE_MIN)).max(fastest.min(period))
            }
            _ => fastest,
        }
    }

    /// A page was read and compared: blocks of `volume`, for `pass`, if that is still the same one.
    pub(super) fn scrubbed(&mut self, volume: VolumeId, (pass, number): (VolumeId, u64), blocks: u64, damaged: u64) {
        self.scrub.is_reading = false;
        self.scrub.verified += blocks;
        if let Some(run) = self.volumes.get_mut(&volume) {
            run.verified_blocks += blocks;
        }
        let is_same = self.scrub.numbers.get(&pass).copied().unwrap_or_default() == number;
        let running = |known: &&mut Pass| is_same && known.state == PassState::Running;
        if let Some(known) = self.scrub.passes.get_mut(&pass).filter(running) {
            known.checked_blocks += blocks;
            known.damaged_blocks += damaged;
            known.total_blocks = known.total_blocks.max(known.checked_blocks);
            let since = *self.scrub.changed.entry(pass).or_insert_with(Instant::now);
            if since.elapsed() >= KEEP_PAUSE {
                self.checkpoints.request_if_idle();
            }
        }
    }

    /// The next page of a pass that has blocks in the log, or none after many without; `None` when it is through.
    #[expect(clippy::type_complexity, reason = "what a fetch takes")]
    fn next_to_verify(&mut self, key: VolumeId) -> Option<(VolumeId, Vec<(u32, Option<Version>)>)> {
        for _ in 0..PAGES_PER_STEP {
            let pass = self.scrub.passes.get(&key)?;
            let (wanted, page) = (pass.at, pass.page);
            let map = self.map_at(wanted, (key != EVERYTHING).then_some(key))?;
            let page = self.next_page(map, if map == wanted { page } else { 0 });
            let pass = self.scrub.passes.get_mut(&key)?;
            (pass.at, pass.page) = match page.and_then(|page| page.checked_add(1)) {
                Some(next) => (map, next),
                None => (after(map), 0),
            };
            let Some(page) = page else { continue };
            match self.counted_blocks(map, page) {
                Ok(versions) if versions.is_empty() => {}
                Ok(versions) => return Some((map.volume, versions)),
                Err(error) => {
                    tracing::error!(volume = %map.volume, page, %error, "a page of the map cannot be verified")
                }
            }
        }
        let at = self.scrub.passes.get(&key)?.at;
        Some((at.volume, Vec::new()))
    }

    /// The first page of a map at or after `page` that exists, or that a layer above it has anything of.
    fn next_page(&self, map: MapKey, page: u32) -> Option<u32> {
        let layers = self.volumes.get(&map.volume).filter(|_| map == map.volume.into()).map(|run| &run.state.layers);
        let above = layers.and_then(|layers| layers.next_page(page));
        self.map.cache.next_page(map, page).into_iter().chain(above).min()
    }

    /// `wanted`, or the first map after it that exists: of a volume the live one, then its snapshots from the newest on.
    fn map_at(&self, wanted: MapKey, of: Option<VolumeId>) -> Option<MapKey> {
        let runs = self.volumes.range(wanted.volume..).filter(|(id, _)| of.is_none_or(|of| of == **id));
        runs.filter_map(|(id, run)| {
            run.state.maps().find(|map| *id > wanted.volume || order(map.snapshot) >= order(wanted.snapshot))
        })
        .next()
    }

    fn counted_blocks(&mut self, map: MapKey, page: u32) -> Result<Vec<(u32, Option<Version>)>, MapError> {
        let Some(run) = self.volumes.get(&map.volume) else { return Ok(Vec::new()) };
        let counted = self.map.counted_page(map, &run.state.snapshots, page)?;
        let block = |index: u8| page * PAGE_ENTRIES + u32::from(index);
        let mut versions: Vec<_> = counted.into_iter().map(|(index, version)| (block(index), Some(version))).collect();
        if map == map.volume.into() {
            let above = run.state.layers.local_of_page(page);
            versions.extend(above.into_iter().map(|(block, version)| (block, Some(version))));
        }
        Ok(versions)
    }
}

/// Where a map comes in the walk over a volume.
fn order(snapshot: SnapshotId) -> u64 {
    if snapshot.0 == 0 { 0 } else { u64::MAX - snapshot.0 + 1 }
}

/// Where the walk goes on after `map`; whether that exists or not.
fn after(map: MapKey) -> MapKey {
    match map.snapshot.0 {
        0 => MapKey { snapshot: SnapshotId(u64::MAX), ..map },
        1 => MapKey { volume: VolumeId(map.volume.0 + 1), snapshot: SnapshotId(0) },
        id => MapKey { snapshot: SnapshotId(id - 1), ..map },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;
    /// A moment in 2027.
    const NOW_MS: u64 = 1_800_000_000_000;

    /// One that begins a pass every week.
    fn weekly() -> Scrub {
        Scrub::new(Some(Duration::from_millis(7 * DAY_MS)), 32 << 20)
    }

    /// A pass that had begun while the clock was a year ahead was due a week after that. The bound by a period made a week's
    /// wait of it at each look, so that nothing was scrubbed for that year, restarts or not.
    #[test]
    fn a_pass_that_began_while_the_clock_was_ahead_is_repeated_a_period_after_that_was_noticed() {
        let mut scrub = weekly();
        scrub.begin(EVERYTHING, false, 0, NOW_MS + 365 * DAY_MS);
        scrub.end(EVERYTHING, PassState::Finished, NOW_MS + 366 * DAY_MS);
        scrub.take_changes();
        assert!(scrub.count_from_now(NOW_MS));
        let pass = scrub.passes[&EVERYTHING];
        assert_eq!((pass.began_ms, pass.ended_ms), (NOW_MS, NOW_MS), "nothing ends later than now");
        assert_eq!(scrub.take_changes().len(), 1, "a restart must not count from then again");
        let waits = [0, 5, 7, 9].map(|days| {
            let now_ms = NOW_MS + days * DAY_MS;
            assert!(!scrub.count_from_now(now_ms), "it is right already");
            scrub.next_by_itself(now_ms).map(|wait| wait.as_millis() as u64 / DAY_MS)
        });
        assert_eq!(waits, [Some(7), Some(2), Some(0), Some(0)]);
    }

    /// The next pass begins a week after the last one had begun, and only the end of one that was through was told. So
    /// nothing was told while one went on, however long: what said when it was last read through was away before three
    /// weeks were over, and an alert for three weeks could not fire.
    #[test]
    fn of_a_pass_that_goes_on_for_weeks_it_is_told_when_it_began() {
        let mut scrub = weekly();
        let told = |scrub: &Scrub| {
            let figures = scrub.figures();
            (figures.began_ms, figures.finished_ms)
        };
        assert_eq!(told(&scrub), (None, None));
        scrub.begin(EVERYTHING, false, 0, NOW_MS);
        assert_eq!(told(&scrub), (Some(NOW_MS), None));
        // One over a single volume says nothing of the others.
        scrub.begin(VolumeId(7), true, 0, NOW_MS + DAY_MS);
        assert_eq!(told(&scrub), (Some(NOW_MS), None));
        scrub.end(EVERYTHING, PassState::Finished, NOW_MS + 30 * DAY_MS);
        assert_eq!(told(&scrub), (None, Some(NOW_MS + 30 * DAY_MS)));
        assert!(scrub.figures().is_running, "of the volume");
        scrub.begin(EVERYTHING, false, 0, NOW_MS + 30 * DAY_MS);
        assert_eq!(told(&scrub), (Some(NOW_MS + 30 * DAY_MS), None));
        scrub.end(EVERYTHING, PassState::Stopped, NOW_MS + 31 * DAY_MS);
        assert_eq!(told(&scrub), (None, None));
    }

    #[test]
    fn a_walk_goes_from_the_live_map_over_the_snapshots_to_the_next_volume() {
        let map = |volume, snapshot| MapKey { volume: VolumeId(volume), snapshot: SnapshotId(snapshot) };
        assert_eq!(after(map(3, 0)), map(3, u64::MAX));
        assert_eq!(after(map(3, 9)), map(3, 8));
        assert_eq!(after(map(3, 1)), map(4, 0));
        let mut walk = [0, u64::MAX, 9, 8, 1];
        walk.sort_by_key(|snapshot| order(SnapshotId(*snapshot)));
        assert_eq!(walk, [0, u64::MAX, 9, 8, 1]);
    }
}
