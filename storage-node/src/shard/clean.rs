//! Getting segments back under random overwrites: live blocks of the emptiest segments are copied to the log's end.
//!
//! A pass chooses a few victims, walks the maps for what still lies in them, copies that as received blocks of the
//! version they have, and asks for a checkpoint, after which the victims are free. It copies one batch at a time, so
//! that guests wait for a batch at most, and starts only when the log holds more than it should: [`GARBAGE_FACTOR`]
//! times what is live, or nearly its capacity.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, VolumeId};

use super::core::Core;
use super::fetch::Then;
use super::sync::Done;
use super::write::ENTRY_BLOCKS_MAX;
use crate::log::Entry;
use crate::map::page::{PAGE_ENTRIES, Version};
use crate::map::store::MapError;

/// The log may hold this many times its live blocks before cleaning starts.
const GARBAGE_FACTOR: u64 = 2;
/// Segments beyond that before it is worth a pass.
const SLACK_SEGMENTS: u64 = 8;
/// Segments below the capacity at which cleaning starts in any case.
const SPARE_SEGMENTS: u64 = 4;
/// Most segments emptied by one pass over the maps.
const VICTIMS_MAX: usize = 8;
/// A segment more than this full (in percent) is not worth emptying.
const VICTIM_FULL_MAX: u64 = 80;
/// How often the segments are looked at while one of them is filled.
const LOOKS_PER_SEGMENT: u64 = 4;
/// Pages looked at per turn.
const PAGES_PER_STEP: u32 = 32;

/// Blocks with the versions that lie in a victim.
type Found = Vec<(u32, Version)>;

#[derive(Debug)]
struct Pass {
    victims: BTreeSet<u32>,
    /// Volumes still to walk, the first from the page.
    volumes: VecDeque<VolumeId>,
    page: u32,
    found: VecDeque<(VolumeId, Found)>,
    is_copying: bool,
}

/// The cleaner of a shard.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    pass: Option<Pass>,
    hurried: bool,
    /// How much log there must be for the next look at the segments.
    look_at: u64,
    /// Passes start only after the checkpoint that frees what the last one emptied.
    after_checkpoint: u64,
}

impl Cleaner {
    /// Whether the next turn has something to do.
    pub(super) fn is_working(&self) -> bool {
        self.pass.as_ref().is_some_and(|pass| !pass.is_copying)
    }

    /// Space is short now.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }
}

impl Core {
    /// Starts a pass if the log holds too much, or goes on with the one under way by a bounded step.
    pub(super) fn clean_step(&mut self) {
        let Some(pass) = &mut self.cleaner.pass else { return self.choose_victims() };
        if pass.is_copying || self.map.cache.is_full() {
            return;
        }
        if let Some((volume, versions)) = pass.found.pop_front() {
            pass.is_copying = true;
            self.copy_batch(volume, versions);
            return;
        }
        let Some(volume) = pass.volumes.front().copied() else {
            self.cleaner.pass = None;
            self.cleaner.after_checkpoint = self.checkpoints.completed() + 1;
            return self.checkpoints.request(None);
        };
        let (victims, page) = (pass.victims.clone(), pass.page);
        match self.walk(volume, page, &victims) {
            Ok((found, next)) => {
                let Some(pass) = &mut self.cleaner.pass else { return };
                pass.found.extend(found.chunks(ENTRY_BLOCKS_MAX).map(|found| (volume, found.to_vec())));
                match next {
                    Some(next) => pass.page = next,
                    None => {
                        pass.volumes.pop_front();
                        pass.page = 0;
                    }
                }
            }
            Err(error) => {
                tracing::error!(%volume, %error, "cleaning stops: the map cannot be read");
                self.cleaner.pass = None;
            }
        }
    }

    /// What of `volume` lies in `victims`, from `page` on, and the page to go on at. The layers come with page 0.
    fn walk(&mut self, volume: VolumeId, page: u32, victims: &BTreeSet<u32>) -> Result<(Found, Option<u32>), MapError> {
        let Some(run) = self.volumes.get(&volume) else { return Ok((Vec::new(), None)) };
        let lies_there = |(_, version): &(u32, Version)| {
            version.content.place().is_some_and(|place| victims.contains(&place.segment))
        };
        let mut found = Found::new();
        if page == 0 {
            found.extend(run.state.layers.entries().filter(lies_there));
        }
        let mut next = self.map.cache.next_page(volume, page);
        for _ in 0..PAGES_PER_STEP {
            let Some(page) = next else { break };
            if let Some(entries) = self.map.cache.page(volume, page)? {
                let base = page * PAGE_ENTRIES;
                found.extend(
                    entries.iter().map(|(index, version)| (base + u32::from(index), version)).filter(lies_there),
                );
            }
            next = page.checked_add(1).and_then(|page| self.map.cache.next_page(volume, page));
        }
        Ok((found, next))
    }

    fn copy_batch(&mut self, volume: VolumeId, versions: Vec<(u32, Version)>) {
        let blocks: Vec<(u32, Option<Version>)> =
            versions.iter().map(|(block, version)| (*block, Some(*version))).collect();
        self.fetch(volume, &blocks, Then::Clean { versions });
    }

    /// The blocks of a batch are here: they go to the end of the log. Without data the pass ends.
    pub(super) fn copy_out(&mut self, volume: VolumeId, versions: &[(u32, Version)], data: Option<Vec<Option<Bytes>>>) {
        let copied = data.is_some_and(|data| {
            let (blocks, data) = versions
                .iter()
                .zip(data)
                .filter_map(|((block, version), data)| {
                    Some(((BlockIndex(*block), version.lsn, version.content.crc()?), data?))
                })
                .unzip();
            self.append(Entry::Received { volume, blocks }, data, false, None, Done::Nothing).is_ok()
        });
        match &mut self.cleaner.pass {
            Some(pass) if copied => pass.is_copying = false,
            _ => self.cleaner.pass = None,
        }
    }

    fn choose_victims(&mut self) {
        let written = self.checkpoints.log_bytes_total();
        let is_time = self.cleaner.hurried || written >= self.cleaner.look_at;
        if !is_time || self.checkpoints.completed() < self.cleaner.after_checkpoint {
            return;
        }
        self.cleaner.look_at = written + self.options.log.segment_bytes / LOOKS_PER_SEGMENT;
        let segments: Vec<u32> = self
            .log
            .segments()
            .into_iter()
            .filter(|info| !info.free && info.generation > 0)
            .map(|info| info.segment)
            .collect();
        let per_segment = self.options.log.segment_bytes / u64::from(BLOCK_SIZE);
        let used = segments.len() as u64;
        let live: u64 = segments.iter().map(|segment| self.map.usage.live(*segment)).sum();
        let capacity = self.options.log.capacity_bytes.map(|bytes| bytes / self.options.log.segment_bytes);
        let is_short = self.cleaner.hurried || capacity.is_some_and(|capacity| used + SPARE_SEGMENTS >= capacity);
        let is_wasteful = used > (live * GARBAGE_FACTOR).div_ceil(per_segment) + SLACK_SEGMENTS;
        if !is_short && !is_wasteful {
            return;
        }
        self.cleaner.hurried = false;
        let active: BTreeSet<u32> =
            self.log.segments().into_iter().filter(|info| info.active).map(|info| info.segment).collect();
        let mut candidates: BTreeSet<u32> = segments.into_iter().filter(|segment| !active.contains(segment)).collect();
        let mut victims = BTreeSet::new();
        let mut moved = 0;
        while victims.len() < VICTIMS_MAX && moved < per_segment {
            let Some(victim) = self.map.usage.emptiest(candidates.iter().copied()) else { break };
            let live = self.map.usage.live(victim);
            if live * 100 > per_segment * VICTIM_FULL_MAX {
                break;
            }
            candidates.remove(&victim);
            if live > 0 {
                moved += live;
                victims.insert(victim);
            }
        }
        if victims.is_empty() {
            // A checkpoint frees what is empty already; without news there is nothing to gain from one.
            if self.checkpoints.has_news() {
                self.cleaner.after_checkpoint = self.checkpoints.completed() + 1;
                self.checkpoints.request(None);
            }
            return;
        }
        tracing::debug!(?victims, used, live, "cleaning");
        let volumes = self.volumes.keys().copied().collect();
        self.cleaner.pass = Some(Pass { victims, volumes, page: 0, found: VecDeque::new(), is_copying: false });
    }
}
