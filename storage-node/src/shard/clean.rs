//! Getting segments back under random overwrites: what is live in a segment is copied out of it, and the segment is free.
//!
//! A pass empties one segment, which [`policy`] chooses. It reads the segment's own records to learn what was written
//! there ([`scan`]), asks the map which of it is still needed, copies that into a cold segment ([`crate::log::cold`]), and
//! lets the log say where it is now; the next checkpoint frees the segment. The cost is in proportion to the segment,
//! whatever the size of its volumes. Only when records cannot be read are the maps walked for what is left. A segment with
//! damaged blocks is left alone until they are repaired: what was copied out of it would take room and free none. Where nothing
//! can be copied for want of a free segment, no pass begins until a checkpoint has freed one.
//!
//! Every step is bounded, and the policy's pacer decides whether another may be made now.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, Lsn, VolumeId};

use super::core::Core;
use super::fetch::Then;
use crate::log::{Entry, LogError, Placed, SegmentInfo};
use crate::map::MapKey;
use crate::map::page::{Content, PAGE_ENTRIES, Place, Version};
use crate::map::store::MapError;
use crate::shard::handle::StoreError;
use policy::{Candidate, Pacer, Pressure, Space};
use scan::{FoundBlock, Scan};

mod policy;
mod scan;

/// How often the segments are looked at while one of them is filled.
const LOOKS_PER_SEGMENT: u64 = 4;
/// Blocks whose need is looked up per turn: some of them read a page of the map.
const LOOKUPS_PER_STEP: usize = 64;
/// Blocks per copy: a mebibyte, so that guests wait for one at most.
const COPY_BLOCKS: usize = 256;
/// Fewer are not worth a record of their own where a segment ends.
const COPY_BLOCKS_MIN: usize = 16;
/// Copies under way at once.
const COPIES_MAX: usize = 2;
/// Free segments below which none waits: guests' writes would soon.
const FREE_MIN: usize = 5;
/// Pages looked at per turn when the maps are walked.
const PAGES_PER_STEP: u32 = 32;

/// A block that is to be copied.
#[derive(Debug)]
struct LiveBlock {
    volume: VolumeId,
    block: u32,
    lsn: Lsn,
    crc: u32,
    from: Place,
    data: Bytes,
}

/// The maps that are still walked for what lies in the victim, the first from `page` on.
#[derive(Debug)]
struct Walk {
    maps: VecDeque<MapKey>,
    page: u32,
    found: VecDeque<(VolumeId, Vec<(u32, Version)>)>,
    is_fetching: bool,
}

/// A segment being emptied.
#[derive(Debug)]
struct Pass {
    victim: Candidate,
    generation: u64,
    scan: Scan,
    walk: Option<Walk>,
    batch: Vec<LiveBlock>,
    /// A block was found to be damaged: the rest is looked through for others, and nothing more is copied.
    is_spoiled: bool,
}

/// What a pass does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Looks up which of the blocks found are needed.
    Look,
    /// Reads on in the segment.
    Read,
    /// Copies a batch.
    Copy,
    /// Looks for what is left through the maps.
    Walk,
    /// Everything was copied.
    End,
    /// Something is under way.
    Wait,
}

/// The cleaner of a shard.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    pass: Option<Pass>,
    pacer: Pacer,
    /// A write was refused for want of space.
    refused: bool,
    /// How much log there must be for the next look at the segments.
    look_at: u64,
    /// A copy found no segment free: none is begun until one is.
    is_cramped: bool,
    /// The read of the scan under way.
    reading: Option<u64>,
    /// Copies under way, in the order of their data, and moves that the log does not have yet.
    copies: HashMap<u64, Vec<LiveBlock>>,
    moves: usize,
    /// Segments that could not be emptied, with their generation and what was left in them: left alone until some of that is gone.
    damaged: BTreeMap<u32, (u64, u64)>,
    /// How many were emptied since the start.
    emptied: u64,
}

impl Cleaner {
    /// How many segments were emptied since the start.
    pub(super) fn emptied(&self) -> u64 {
        self.emptied
    }

    /// Whether the next turn has something to do.
    pub(super) fn is_working(&self) -> bool {
        self.pacer.may_work() && self.pass.as_ref().is_some_and(|pass| self.next_step(pass) != Step::Wait)
    }

    /// Whether there is work that waits until it may be done.
    pub(super) fn is_waiting(&self) -> bool {
        self.pass.is_some() && !self.is_working()
    }

    /// Whether nothing is in the log's hands.
    pub(super) fn is_quiet(&self) -> bool {
        self.moves == 0 && !self.is_copying()
    }

    /// Whether a segment is read or blocks are copied at this moment.
    fn is_copying(&self) -> bool {
        self.reading.is_some() || !self.copies.is_empty()
    }

    /// Whether it does nothing, and nothing but room in the log will make it.
    pub(super) fn is_idle(&self) -> bool {
        let is_fetching = |pass: &Pass| pass.walk.as_ref().is_some_and(|walk| walk.is_fetching);
        let waits = |pass: &Pass| self.next_step(pass) == Step::Wait && !is_fetching(pass);
        !self.is_copying() && self.pass.as_ref().is_none_or(waits)
    }

    /// Space is short now.
    pub(super) fn hurry(&mut self) {
        self.refused = true;
        self.pacer.hurry();
    }

    /// Guests wrote blocks.
    pub(super) fn note_written(&mut self, blocks: u64) {
        self.pacer.earn(blocks);
    }

    /// Nothing has happened for a while.
    pub(super) fn note_idle(&mut self) {
        self.pacer.earn_idle(COPY_BLOCKS as u64);
    }

    /// Whether `ticket` is the scan's read.
    pub(super) fn is_reading(&self, ticket: u64) -> bool {
        self.reading == Some(ticket)
    }

    fn next_step(&self, pass: &Pass) -> Step {
        let (may_copy, is_settled) = (self.copies.len() < COPIES_MAX, self.copies.is_empty() && self.moves == 0);
        let has_more = pass.scan.has_found() || !pass.scan.is_over() || pass.walk.as_ref().is_some_and(Walk::has_more);
        if pass.batch.len() >= COPY_BLOCKS || (!has_more && !pass.batch.is_empty()) {
            return if may_copy { Step::Copy } else { Step::Wait };
        }
        if pass.scan.has_found() {
            return Step::Look;
        }
        if !pass.scan.is_over() {
            return if self.reading.is_none() { Step::Read } else { Step::Wait };
        }
        match &pass.walk {
            Some(walk) if walk.is_fetching => Step::Wait,
            Some(walk) if walk.has_more() => Step::Walk,
            _ if is_settled => Step::End,
            _ => Step::Wait,
        }
    }
}

/// Blocks in order as the log is told of them.
fn entries_of(batch: &[LiveBlock]) -> Vec<Entry> {
    let entry = |of_one: &[LiveBlock]| Entry::Received {
        volume: of_one[0].volume,
        blocks: of_one.iter().map(|live| (BlockIndex(live.block), live.lsn, live.crc)).collect(),
    };
    batch.chunk_by(|a, b| a.volume == b.volume).map(entry).collect()
}

impl Walk {
    fn has_more(&self) -> bool {
        self.is_fetching || !self.found.is_empty() || !self.maps.is_empty()
    }
}

impl Core {
    /// Begins a pass if space is needed, or goes on with the one under way by a bounded step.
    pub(super) fn clean_step(&mut self) {
        if self.is_stopping() || self.map.cache.is_full() {
            return;
        }
        let Some(pass) = &self.cleaner.pass else { return self.begin_pass() };
        let step = self.cleaner.next_step(pass);
        if step != Step::End && !self.cleaner.pacer.may_work() {
            return;
        }
        let outcome = match step {
            Step::Look => self.look_up(),
            Step::Read => {
                self.read_on();
                Ok(())
            }
            Step::Copy => {
                self.copy_batch();
                Ok(())
            }
            Step::Walk => self.walk_on(),
            Step::End => {
                self.end_pass();
                Ok(())
            }
            Step::Wait => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "cleaning stops: the map cannot be read");
            self.drop_pass();
        }
    }

    /// Lets writes that found no space wait while some can be made, and refuses them when none can.
    pub(super) fn space_step(&mut self) {
        if !self.log.is_starved() {
            return;
        }
        if self.is_stopping() {
            // Nothing more is copied: what waits for space will not have it.
            self.drop_pass();
            if self.cleaner.is_quiet() {
                self.log.refuse_queued();
            }
            return;
        }
        self.cleaner.hurry();
        if !self.checkpoints.is_failing() {
            if self.checkpoints.will_free() {
                return;
            }
            if self.freeable().next().is_some() {
                return self.checkpoints.request_if_idle();
            }
        }
        if self.cleaner.pass.is_none() {
            self.begin_pass();
        }
        // A deleted snapshot that is being merged lets go of space too.
        let is_merging = self.working().any(|run| run.state.snapshots.is_merging());
        let may_wait = is_merging && !self.checkpoints.is_failing();
        // Moves may be all that is under way: then they are what finds no room.
        if self.cleaner.is_idle() && !may_wait {
            self.log.refuse_queued();
        }
    }

    /// Keeps those of the blocks found that the map still needs.
    fn look_up(&mut self) -> Result<(), MapError> {
        // Looked for once: a block may be its own volume's, or one of these'.
        let clones: Vec<VolumeId> =
            self.volumes.values().filter(|run| run.state.is_clone()).map(|run| run.state.id).collect();
        for _ in 0..LOOKUPS_PER_STEP {
            let Some(pass) = &mut self.cleaner.pass else { return Ok(()) };
            if pass.batch.len() >= COPY_BLOCKS {
                return Ok(());
            }
            let Some(found) = pass.scan.take_found() else { return Ok(()) };
            let FoundBlock { volume, block, lsn, crc, place, data } = found;
            let mut holder = None;
            for id in std::iter::once(volume).chain(clones.iter().copied()) {
                if let Some(run) = self.volumes.get(&id).filter(|run| run.state.may_hold(volume))
                    && run.state.holds(block, lsn, place, &mut self.map)?
                {
                    holder = Some(id);
                    break;
                }
            }
            if let Some(holder) = holder {
                if crc32fast::hash(&data) == crc {
                    if pass.is_spoiled {
                        continue;
                    }
                    pass.batch.push(LiveBlock { volume, block, lsn, crc, from: place, data });
                } else {
                    // It stays where it is until it is repaired or overwritten.
                    let version = Version { lsn, content: Content::Local { place, crc } };
                    (pass.is_spoiled, pass.batch) = (true, Vec::new());
                    self.note_damage(holder, block, version, "its checksum does not fit, the cleaner found");
                }
            }
        }
        Ok(())
    }

    /// The victim holds damaged blocks: until they are repaired, what is copied out of it takes room and frees none.
    fn leave_damaged(&mut self) {
        let Some(pass) = &self.cleaner.pass else { return };
        let (segment, generation) = (pass.victim.segment, pass.generation);
        let left = self.map.usage.live(segment);
        tracing::error!(segment, left, "a segment holds damaged blocks and cannot be emptied");
        self.cleaner.damaged.insert(segment, (generation, left));
        self.drop_pass();
    }

    fn read_on(&mut self) {
        let ticket = self.ticket();
        let Some(pass) = &mut self.cleaner.pass else { return };
        let (first, count) = pass.scan.next_read();
        self.cleaner.reading = Some(ticket);
        self.log.read(pass.victim.segment, first, count, ticket);
    }

    /// The scan's read is here.
    pub(super) fn scan_read(&mut self, result: Result<Bytes, LogError>) {
        self.cleaner.reading = None;
        let Some(pass) = &mut self.cleaner.pass else { return };
        match result {
            Ok(bytes) => pass.scan.take_window(&bytes),
            Err(error) => {
                tracing::error!(segment = pass.victim.segment, %error, "a segment cannot be read to be cleaned");
                pass.scan.give_up();
            }
        }
    }

    /// Hands a batch to the log, neighbours together; or as much of it as fills the segment that copies go to, so that none is left with an
    /// empty end: what a segment does not hold makes all others fuller.
    fn copy_batch(&mut self) {
        let ticket = self.ticket();
        let Some(pass) = &mut self.cleaner.pass else { return };
        let mut batch: Vec<LiveBlock> = std::mem::take(&mut pass.batch);
        batch.sort_by_key(|live| (live.volume, live.block));
        let mut entries = entries_of(&batch);
        let room = self.log.copy_room(&entries);
        if (COPY_BLOCKS_MIN..batch.len()).contains(&room) {
            pass.batch = batch.split_off(room);
            entries = entries_of(&batch);
        }
        let data: Vec<Bytes> = batch.iter().map(|live| live.data.clone()).collect();
        match self.log.copy(&entries, &data, ticket) {
            Ok(segment) => {
                // Until the moves are applied nothing else says that it is needed.
                self.map.usage.pin(segment);
                self.cleaner.pacer.spend(batch.len() as u64);
                self.cleaner.copies.insert(ticket, batch);
            }
            Err(error) => {
                // No segment is free, not even the cleaner's own.
                tracing::debug!(%error, "nothing can be copied now");
                self.cleaner.is_cramped = true;
                self.drop_pass();
            }
        }
    }

    /// A copy is durable: the log is told where the blocks are now.
    pub(super) fn copied(&mut self, ticket: u64, result: Result<Placed, LogError>) {
        let batch = self.cleaner.copies.remove(&ticket).expect("the log answers each copy once");
        let placed = match result {
            Ok(placed) => placed,
            Err(error) => {
                tracing::error!(%error, "cleaning stops");
                return self.drop_pass();
            }
        };
        let mut block = placed.first_block;
        for moved in batch.chunk_by(|a, b| a.volume == b.volume) {
            let moves = moved.iter().map(|live| (BlockIndex(live.block), live.from.segment, live.from.block)).collect();
            let entry = Entry::Relocated { volume: moved[0].volume, segment: placed.segment, block, moves };
            block += moved.len() as u32;
            self.map.usage.pin(placed.segment);
            self.cleaner.moves += 1;
            if let Err(error) = self.append_move(entry) {
                tracing::error!(%error, "cleaning stops");
                self.relocated(placed.segment, Err(&error));
                break;
            }
        }
        self.map.usage.unpin(placed.segment);
    }

    /// The log has applied, or refused, moves into `segment`.
    pub(super) fn relocated(&mut self, segment: u32, outcome: Result<(), &StoreError>) {
        self.map.usage.unpin(segment);
        self.cleaner.moves -= 1;
        if let Err(error) = outcome {
            // What was copied stays where it was.
            tracing::debug!(%error, "blocks that were copied cannot be moved");
            self.drop_pass();
        }
    }

    /// Looks for blocks in the victim through the maps of all volumes, a few pages at a time.
    fn walk_on(&mut self) -> Result<(), MapError> {
        let Some(Pass { victim, walk: Some(walk), .. }) = &mut self.cleaner.pass else { return Ok(()) };
        let (victim, page) = (victim.segment, walk.page);
        if let Some((volume, versions)) = walk.found.pop_front() {
            walk.is_fetching = true;
            let blocks: Vec<(u32, Option<Version>)> =
                versions.iter().map(|(block, version)| (*block, Some(*version))).collect();
            self.fetch(volume, &blocks, Then::Clean { versions });
            return Ok(());
        }
        let Some(map) = walk.maps.front().copied() else { return Ok(()) };
        let (found, next) = self.lying_in(map, page, victim)?;
        let Some(Pass { walk: Some(walk), .. }) = &mut self.cleaner.pass else { return Ok(()) };
        walk.found.extend(found.chunks(COPY_BLOCKS).map(|found| (map.volume, found.to_vec())));
        walk.page = next.unwrap_or(0);
        if next.is_none() {
            walk.maps.pop_front();
        }
        Ok(())
    }

    /// What of `map` lies in `segment`, from `page` on, and the page to go on at. The layers come with page 0 of the live map.
    #[expect(clippy::type_complexity, reason = "what was found, and where to go on")]
    fn lying_in(
        &mut self,
        map: MapKey,
        page: u32,
        segment: u32,
    ) -> Result<(Vec<(u32, Version)>, Option<u32>), MapError> {
        let Some(run) = self.volumes.get(&map.volume) else { return Ok((Vec::new(), None)) };
        let lies_there =
            |(_, version): &(u32, Version)| version.content.place().is_some_and(|place| place.segment == segment);
        let mut found = Vec::new();
        if page == 0 && map == MapKey::from(map.volume) {
            found.extend(run.state.layers.entries().filter(lies_there));
        }
        let mut next = self.map.cache.next_page(map, page);
        for _ in 0..PAGES_PER_STEP {
            let Some(page) = next else { break };
            if let Some(entries) = self.map.cache.page(map, page)? {
                let base = page * PAGE_ENTRIES;
                found.extend(
                    entries.iter().map(|(index, version)| (base + u32::from(index), version)).filter(lies_there),
                );
            }
            next = page.checked_add(1).and_then(|page| self.map.cache.next_page(map, page));
        }
        Ok((found, next))
    }

    /// The blocks that a walk found are read, or some of them cannot be.
    pub(super) fn walk_fetched(&mut self, volume: VolumeId, versions: &[(u32, Version)], data: Vec<Option<Bytes>>) {
        let Some(Pass { walk: Some(walk), batch, .. }) = &mut self.cleaner.pass else { return };
        walk.is_fetching = false;
        if data.iter().any(Option::is_none) {
            return self.leave_damaged();
        }
        for ((block, version), data) in versions.iter().zip(data) {
            if let (Some(from), Some(crc), Some(data)) = (version.content.place(), version.content.crc(), data) {
                batch.push(LiveBlock { volume, block: *block, lsn: version.lsn, crc, from, data });
            }
        }
    }

    /// Everything that the scan found was moved. What is left lies behind a record that could not be read: the maps know.
    fn end_pass(&mut self) {
        // What a deleted snapshot counts may be in no map any more; it is let go of when the snapshot is merged.
        let is_merging = self.working().any(|run| run.state.snapshots.is_merging());
        let Some(pass) = &mut self.cleaner.pass else { return };
        if pass.is_spoiled {
            return self.leave_damaged();
        }
        let segment = pass.victim.segment;
        let left = if is_merging { 0 } else { self.map.usage.live(segment) };
        if left > 0 && pass.walk.is_none() {
            tracing::warn!(segment, left, "the maps are searched for what the segment's records do not tell");
            let maps = self.volumes.values().flat_map(|run| run.state.maps()).collect();
            pass.walk = Some(Walk { maps, page: 0, found: VecDeque::new(), is_fetching: false });
            return;
        }
        if left > 0 {
            self.leave_damaged();
        } else {
            self.cleaner.emptied += 1;
            self.drop_pass();
        }
        let emptied = self.freeable().count() as u64;
        let segments = self.segments_max().unwrap_or_else(|| self.log.segments().len() as u64);
        if emptied >= policy::freed_together(segments) || (emptied > 0 && self.log.free_segments() < FREE_MIN) {
            self.checkpoints.request_if_idle();
        }
    }

    /// How many segments the store may hold; `None`: as many as the file system has room for.
    fn segments_max(&self) -> Option<u64> {
        self.options.log.capacity_bytes.map(|bytes| bytes / self.options.log.segment_bytes)
    }

    fn drop_pass(&mut self) {
        if let Some(pass) = self.cleaner.pass.take() {
            self.map.usage.unpin(pass.victim.segment);
        }
    }

    /// The segments that are known to hold damaged blocks, and those that could not be emptied: unless they may be now, or are used for something else.
    fn damaged_segments(&mut self, segments: &[SegmentInfo]) -> BTreeSet<u32> {
        let usage = &self.map.usage;
        self.cleaner.damaged.retain(|segment, (generation, left)| {
            let is_same = segments.iter().any(|info| info.segment == *segment && info.generation == *generation);
            is_same && usage.live(*segment) >= *left
        });
        let known = self.volumes.values().flat_map(|run| run.damage.segments());
        known.chain(self.cleaner.damaged.keys().copied()).collect()
    }

    fn begin_pass(&mut self) {
        let written = self.checkpoints.log_bytes_total();
        let is_time = self.cleaner.refused || written >= self.cleaner.look_at;
        self.cleaner.is_cramped &= self.log.free_segments() == 0;
        if !is_time || self.cleaner.reading.is_some() || self.cleaner.is_cramped {
            return;
        }
        self.cleaner.look_at = written + self.options.log.segment_bytes / LOOKS_PER_SEGMENT;
        let segments: Vec<_> =
            self.log.segments().into_iter().filter(|info| !info.free && info.generation > 0).collect();
        let emptied = self.freeable().count();
        let space = Space {
            used: (segments.len() - emptied) as u64,
            capacity: self.segments_max(),
            blocks_per_segment: self.options.log.segment_bytes / u64::from(BLOCK_SIZE),
            live_blocks: segments.iter().map(|info| self.map.usage.needed(info.segment)).sum(),
            refused: self.cleaner.refused,
        };
        self.cleaner.pacer.look(&space);
        if space.pressure() == Pressure::None {
            return;
        }
        self.cleaner.refused = false;
        let newest = segments.iter().map(|info| info.generation).max().unwrap_or(0);
        let damaged = self.damaged_segments(&segments);
        let usage = &self.map.usage;
        let candidates = segments
            .iter()
            .filter(|info| !info.active && !usage.is_pinned(info.segment) && !damaged.contains(&info.segment))
            .map(|info| Candidate {
                segment: info.segment,
                blocks: u64::from(info.blocks),
                live: usage.needed(info.segment),
                age: newest - info.generation,
            });
        let Some(victim) = policy::choose(candidates) else {
            if emptied > 0 {
                self.checkpoints.request_if_idle();
            }
            return;
        };
        tracing::debug!(?victim, ?space, "cleaning");
        self.cleaner.pacer.begin(&victim, &space);
        self.map.usage.pin(victim.segment);
        let generation = segments.iter().find(|info| info.segment == victim.segment).map_or(0, |info| info.generation);
        let scan = Scan::new(victim.segment, generation, victim.blocks as u32);
        self.cleaner.pass = Some(Pass { victim, generation, scan, walk: None, batch: Vec::new(), is_spoiled: false });
    }
}
