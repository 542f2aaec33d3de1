//! Reading blocks from the log: neighbours in one read, every checksum verified, segments held meanwhile.
//!
//! A fetch is a list of runs, zeroes or data, and what to do with them when all are here. A wrong checksum fails the whole
//! fetch with the first place. When neighbours cannot be read together each is read alone, so that only those that really
//! cannot be read are called damaged. What is damaged is noted (see [`super::damage`]) and refused from then on; a fetch
//! for the cleaner goes on without it. Nothing else is retried here.

use std::collections::{BTreeSet, HashMap};

use bytes::{Bytes, BytesMut};
use client_lib::geometry::BLOCKS_MAX;
use client_lib::trace::Stage;
use client_lib::{BLOCK_SIZE, BlockIndex, Lsn, ReadPart, VolumeId};

use super::core::Core;
use super::handle::{StoreError, Versions};
use super::lease::Held;
use super::run::Reply;
use super::write::{Shape, WriteJob};
use crate::io::buffer::AlignedBuffer;
use crate::log::LogError;
use crate::map::page::{Content, Place, Version};
use crate::propagation::manifest::{BlockRun, VersionedBlock};
use crate::volume::Moment;

/// Blocks per read of the disk: a mebibyte, so that one large read does not keep the device from small ones.
const READ_BLOCKS_MAX: u32 = 256;

/// Most blocks that one request may ask for, as many as fit a frame.
pub(super) const REQUEST_BLOCKS_MAX: u32 = 8192;

const BLOCK: usize = BLOCK_SIZE as usize;

/// What happens with the blocks of a fetch.
#[derive(Debug)]
pub(super) enum Then {
    /// A guest's read is answered.
    Read { offset: u64, length: u32, as_owner: bool, reply: Reply<Vec<ReadPart>> },
    /// Versions are sent to another node.
    Versions { lsns: Vec<Lsn>, reply: Reply<Vec<VersionedBlock>> },
    /// A partial write goes on.
    Merge { job: WriteJob, shape: Shape, ticket: u64 },
    /// The cleaner's walk over the maps goes on.
    Clean { versions: Vec<(u32, Version)> },
    /// Blocks were only to be compared with their checksums.
    Scrub { pass: VolumeId, number: u64, blocks: u64 },
}

/// Neighbouring blocks from one source.
#[derive(Debug)]
struct Run {
    first: u32,
    count: u32,
    /// Zeroes if `None`.
    disk: Option<Disk>,
}

#[derive(Debug)]
struct Disk {
    place: Place,
    /// The write and the checksum of each block.
    blocks: Vec<(Lsn, u32)>,
    bytes: Bytes,
    /// The blocks one by one, when they could not be read together.
    parts: Vec<Option<Bytes>>,
}

impl Disk {
    fn version(&self, index: u32) -> Version {
        let (lsn, crc) = self.blocks[index as usize];
        let place = Place { segment: self.place.segment, block: self.place.block + index };
        Version { lsn, content: Content::Local { place, crc } }
    }
}

#[derive(Debug)]
struct Fetch {
    volume: VolumeId,
    runs: Vec<Run>,
    outstanding: usize,
    failure: Option<StoreError>,
    /// The damaged versions of blocks that were met.
    damaged: BTreeSet<(u32, Lsn)>,
    then: Then,
}

/// A read under way: of which fetch, which run of it, and which block of the run if it is read alone.
#[derive(Clone, Copy, Debug)]
struct Reading {
    fetch: u64,
    run: usize,
    part: Option<u32>,
}

/// The fetches under way.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    fetches: HashMap<u64, Fetch>,
    reads: HashMap<u64, Reading>,
}

impl Fetches {
    pub(super) fn is_empty(&self) -> bool {
        self.fetches.is_empty()
    }
}

impl Core {
    pub(super) fn read(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
        reply: Reply<Vec<ReadPart>>,
    ) {
        reply.trace.spent(Stage::Queue);
        match self.readable(volume, moment, offset, length) {
            Ok(versions) => {
                reply.trace.spent(Stage::Log);
                let as_owner = moment == Moment::Now;
                self.fetch(volume, &versions, Then::Read { offset, length, as_owner, reply });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn readable(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(u32, Option<Version>)>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_readable(moment, offset, u64::from(length))?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let first = (offset / u64::from(BLOCK_SIZE)) as u32;
        let last = ((offset + u64::from(length) - 1) / u64::from(BLOCK_SIZE)) as u32;
        let versions = run.state.versions(moment, first, last, &mut self.map)?;
        refuse_stale(&versions)?;
        run.damage.refuse(volume, &versions)?;
        Ok(versions)
    }

    pub(super) fn read_versions(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        runs: &[BlockRun],
        reply: Reply<Vec<VersionedBlock>>,
    ) {
        let versions = (|| {
            let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
            run.require_moment(moment)?;
            check_runs(runs)?;
            let mut versions = Vec::new();
            for run_of in runs {
                let last = *run_of.blocks().end();
                versions.extend(run.state.versions(moment, run_of.start.0, last, &mut self.map)?);
            }
            refuse_stale(&versions)?;
            run.damage.refuse(volume, &versions)?;
            Ok(versions)
        })();
        self.send_versions(volume, versions, reply);
    }

    /// What a read of these blocks would give now, whether it is here or not.
    pub(super) fn versions_of(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        runs: &[BlockRun],
    ) -> Result<Versions, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_readable(moment, 0, 0)?;
        if moment == Moment::Now {
            self.require_lease(run)?;
        }
        check_runs(runs)?;
        let mut versions = Vec::new();
        for run_of in runs {
            let last = *run_of.blocks().end();
            versions.extend(run.state.versions(moment, run_of.start.0, last, &mut self.map)?);
        }
        Ok(versions)
    }

    pub(super) fn read_sealed(
        &mut self,
        volume: VolumeId,
        pin: u64,
        runs: &[BlockRun],
        reply: Reply<Vec<VersionedBlock>>,
    ) {
        let versions = (|| {
            let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
            if !run.state.pins.contains(pin) {
                return Err(StoreError::Io(format!(
                    "delta {pin} of volume {volume} is not pinned (any more): seal anew"
                )));
            }
            // Blocks outside the delta are left out: the replica asked for what this delta does not carry.
            check_runs(runs)?;
            let mut versions = Vec::new();
            for block in blocks_of(runs) {
                let version = run.state.pinned(pin, block, &mut self.map)?;
                versions.extend(version.map(|version| (block, Some(version))));
            }
            refuse_stale(&versions)?;
            run.damage.refuse(volume, &versions)?;
            Ok(versions)
        })();
        self.send_versions(volume, versions, reply);
    }

    pub(super) fn send_versions(
        &mut self,
        volume: VolumeId,
        versions: Result<Vec<(u32, Option<Version>)>, StoreError>,
        reply: Reply<Vec<VersionedBlock>>,
    ) {
        match versions {
            Ok(versions) => {
                let lsns =
                    versions.iter().map(|(_, version)| version.map_or(Lsn::ZERO, |version| version.lsn)).collect();
                self.fetch(volume, &versions, Then::Versions { lsns, reply });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Reads `versions`, none of them stale, and goes on with `then`, at once if no disk is needed.
    pub(super) fn fetch(&mut self, volume: VolumeId, versions: &[(u32, Option<Version>)], then: Then) {
        let runs = coalesce(versions);
        let id = self.ticket();
        let mut outstanding = 0;
        for (index, run) in runs.iter().enumerate() {
            let Some(disk) = &run.disk else { continue };
            let ticket = self.ticket();
            self.map.usage.pin(disk.place.segment);
            self.fetches.reads.insert(ticket, Reading { fetch: id, run: index, part: None });
            self.log.read(disk.place.segment, disk.place.block, run.count, ticket);
            outstanding += 1;
        }
        let fetch = Fetch { volume, runs, outstanding, failure: None, damaged: BTreeSet::new(), then };
        if outstanding == 0 {
            self.finish_fetch(fetch);
        } else {
            self.fetches.fetches.insert(id, fetch);
        }
    }

    pub(super) fn read_done(&mut self, ticket: u64, result: Result<AlignedBuffer, LogError>) {
        let reading = self.fetches.reads.remove(&ticket).expect("the log answers each read once");
        let fetch = self.fetches.fetches.get_mut(&reading.fetch).expect("a fetch lives until its last read");
        let run = &mut fetch.runs[reading.run];
        let disk = run.disk.as_mut().expect("only data is read");
        let segment = disk.place.segment;
        fetch.outstanding -= 1;
        let mut found: Vec<(u32, Version, StoreError)> = Vec::new();
        match (result, reading.part) {
            (Ok(buffer), part) => {
                let (first, bytes) = (part.unwrap_or(0), buffer.into_bytes());
                for (index, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
                    if let Some(failure) = verify(fetch.volume, run.first + index, disk.version(index), bytes) {
                        found.push((run.first + index, disk.version(index), failure));
                    }
                }
                match part {
                    Some(part) => disk.parts[part as usize] = Some(bytes),
                    None => disk.bytes = bytes,
                }
            }
            (Err(_), None) if run.count > 1 => {
                disk.parts = vec![None; run.count as usize];
                let (place, count) = (disk.place, run.count);
                fetch.outstanding += count as usize;
                for part in 0..count {
                    let ticket = self.ticket();
                    self.map.usage.pin(segment);
                    self.fetches.reads.insert(ticket, Reading { part: Some(part), ..reading });
                    self.log.read(segment, place.block + part, 1, ticket);
                }
            }
            (Err(error), part) => {
                let index = part.unwrap_or(0);
                tracing::error!(volume = %fetch.volume, block = run.first + index, segment, %error, "a read failed");
                let runs = vec![BlockRun { start: BlockIndex(run.first + index), count: 1 }];
                let failure = StoreError::Damaged { volume: fetch.volume, runs };
                found.push((run.first + index, disk.version(index), failure));
            }
        }
        self.map.usage.unpin(segment);
        self.damage_found(reading.fetch, found);
        if self.fetches.fetches.get(&reading.fetch).is_some_and(|fetch| fetch.outstanding == 0)
            && let Some(fetch) = self.fetches.fetches.remove(&reading.fetch)
        {
            self.finish_fetch(fetch);
        }
    }

    fn damage_found(&mut self, id: u64, found: Vec<(u32, Version, StoreError)>) {
        for (block, version, failure) in found {
            let Some(volume) = self.fetches.fetches.get(&id).map(|fetch| fetch.volume) else { return };
            let what = failure.to_string();
            // Nobody shall try again to be told the same.
            let failure = if self.note_damage(volume, block, version, &what) { failure } else { StoreError::Io(what) };
            let Some(fetch) = self.fetches.fetches.get_mut(&id) else { return };
            fetch.damaged.insert((block, version.lsn));
            fetch.failure.get_or_insert(failure);
        }
    }

    fn finish_fetch(&mut self, fetch: Fetch) {
        let Fetch { volume, mut runs, failure, damaged, then, .. } = fetch;
        for disk in runs.iter_mut().filter_map(|run| run.disk.as_mut()).filter(|disk| !disk.parts.is_empty()) {
            let mut bytes = BytesMut::zeroed(disk.parts.len() * BLOCK);
            for (block, part) in bytes.chunks_exact_mut(BLOCK).zip(disk.parts.drain(..)) {
                if let Some(part) = part {
                    block.copy_from_slice(&part);
                }
            }
            disk.bytes = bytes.freeze();
        }
        match then {
            Then::Read { offset, length, as_owner, reply } => {
                // Zeroes are on no disk.
                reply.trace.spent(if runs.iter().any(|run| run.disk.is_some()) { Stage::Disk } else { Stage::Log });
                match failure {
                    Some(error) => drop(reply.send(Err(error))),
                    None if as_owner => {
                        self.answer_as_owner(volume, Held::Chunks(reply, chunks(&runs, offset, length)));
                    }
                    None => drop(reply.send(Ok(chunks(&runs, offset, length)))),
                }
            }
            Then::Versions { lsns, reply } => {
                let blocks = lsns.into_iter().zip(blocks(&runs)).map(|(lsn, (block, data))| VersionedBlock {
                    block: BlockIndex(block),
                    lsn,
                    data,
                });
                drop(reply.send(failure.map_or_else(|| Ok(blocks.collect()), Err)));
            }
            Then::Merge { job, shape, ticket } => {
                let old = failure.map_or_else(|| Ok(blocks(&runs).collect()), Err);
                self.finish_write(job, &shape, ticket, old);
                self.wake_writes(volume);
            }
            Then::Scrub { pass, number, blocks } => {
                self.scrubbed(volume, (pass, number), blocks, damaged.len() as u64);
            }
            Then::Clean { versions } => {
                let each = blocks(&runs).zip(&versions);
                let is_whole = |block: u32, version: &Version| !damaged.contains(&(block, version.lsn));
                let data =
                    each.map(|((block, data), (_, version))| data.filter(|_| is_whole(block, version))).collect();
                self.walk_fetched(volume, &versions, data);
            }
        }
    }
}

/// Whether `runs` lie inside the largest volume and are not too many. This node may not have heard that the volume has
/// grown, and of a block that was never written it has no version.
pub(super) fn check_runs(runs: &[BlockRun]) -> Result<(), StoreError> {
    let mut total = 0u64;
    for run in runs {
        total += u64::from(run.count);
        if run.count == 0 || u64::from(run.start.0) + u64::from(run.count) > BLOCKS_MAX {
            return Err(StoreError::Io(format!("{} blocks at {} are outside any volume", run.count, run.start)));
        }
    }
    refuse_too_many(total)
}

/// Refuses a request for more blocks than one may ask for.
pub(super) fn refuse_too_many(blocks: u64) -> Result<(), StoreError> {
    if blocks > u64::from(REQUEST_BLOCKS_MAX) {
        return Err(StoreError::Io(format!("{blocks} blocks are over the limit of {REQUEST_BLOCKS_MAX} per request")));
    }
    Ok(())
}

pub(super) fn blocks_of(runs: &[BlockRun]) -> impl Iterator<Item = u32> + '_ {
    runs.iter().flat_map(BlockRun::blocks)
}

fn refuse_stale(versions: &[(u32, Option<Version>)]) -> Result<(), StoreError> {
    let is_stale = |(_, version): &&(u32, Option<Version>)| version.is_some_and(|version| version.content.is_stale());
    let runs = BlockRun::of(versions.iter().filter(is_stale).map(|(block, _)| *block));
    if runs.is_empty() { Ok(()) } else { Err(StoreError::Stale { runs }) }
}

fn coalesce(versions: &[(u32, Option<Version>)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (block, version) in versions {
        let local = match version.map(|version| version.content) {
            Some(Content::Local { place, crc }) => {
                Some((place, (version.map_or(Lsn::ZERO, |version| version.lsn), crc)))
            }
            Some(Content::Stale { .. }) => panic!("stale block {block} cannot be read"),
            Some(Content::Zero) | None => None,
        };
        let last = runs.last_mut().filter(|last| last.first + last.count == *block);
        match (last, local) {
            (Some(last), None) if last.disk.is_none() => last.count += 1,
            (Some(Run { count, disk: Some(disk), .. }), Some((place, block)))
                if *count < READ_BLOCKS_MAX
                    && disk.place.segment == place.segment
                    && disk.place.block + *count == place.block =>
            {
                disk.blocks.push(block);
                *count += 1;
            }
            (_, local) => {
                let disk = local.map(|(place, block)| Disk {
                    place,
                    blocks: vec![block],
                    bytes: Bytes::new(),
                    parts: Vec::new(),
                });
                runs.push(Run { first: *block, count: 1, disk });
            }
        }
    }
    runs
}

/// Compares the bytes of a block with what the map says.
fn verify(volume: VolumeId, block: u32, version: Version, bytes: &[u8]) -> Option<StoreError> {
    let Content::Local { place, crc: expected } = version.content else { return None };
    let found = crc32fast::hash(bytes);
    #[cfg(test)]
    if !crate::simulation::rules::holds(crate::simulation::rules::Rule::ChecksumsAreCompared) {
        return None;
    }
    (found != expected).then(|| StoreError::Corrupt {
        volume,
        block: BlockIndex(block),
        segment: u64::from(place.segment),
        offset: u64::from(place.block) * u64::from(BLOCK_SIZE),
        expected,
        found,
    })
}

/// Each block with its data; `None` is zeroes.
fn blocks(runs: &[Run]) -> impl Iterator<Item = (u32, Option<Bytes>)> + '_ {
    runs.iter().flat_map(|run| {
        (0..run.count).map(|index| {
            let start = index as usize * BLOCK;
            (run.first + index, run.disk.as_ref().map(|disk| disk.bytes.slice(start..start + BLOCK)))
        })
    })
}

/// The bytes asked for, without what the first and last block have beyond.
fn chunks(runs: &[Run], offset: u64, length: u32) -> Vec<ReadPart> {
    let end = offset + u64::from(length);
    runs.iter()
        .map(|run| {
            let start = u64::from(run.first) * u64::from(BLOCK_SIZE);
            let from = offset.max(start);
            let to = end.min(start + u64::from(run.count) * u64::from(BLOCK_SIZE));
            match &run.disk {
                None => ReadPart::Zero((to - from) as u32),
                Some(disk) => ReadPart::Data(disk.bytes.slice((from - start) as usize..(to - start) as usize)),
            }
        })
        .collect()
}
