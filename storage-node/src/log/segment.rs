//! Segment files: numbered, written through once, taken into use under a rising generation, recycled.
//!
//! The pool knows every segment and which are free; it asks the engine for new ones ahead of need and never
//! waits for them. A segment's first block says its number and generation; it is written together with the first
//! record, so taking a segment into use costs no write of its own.
//!
//! A file that the disk does not open any more is a segment of which no block can be read: it is never taken into use again, and what the
//! map points to in it is damaged. So is one that is shorter than any segment was made.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use client_lib::BLOCK_SIZE;

use super::cold::COLD_SEQUENCE;
use super::record::whole_header;
use super::{LogPosition, LogSettings, SegmentInfo};
use crate::io::{FileId, IoEngine, IoKind, IoOp, is_loss};

/// Marks a segment's first block.
const SEGMENT_MAGIC: [u8; 4] = *b"HELS";
/// The format of segment headers.
const SEGMENT_VERSION: u16 = 1;
/// Blocks in front of a segment's first record.
pub const SEGMENT_HEADER_BLOCKS: u32 = 1;
/// Free segments that guests' data may not take, or no room could ever be made again: one for the log to go on in
/// without data (the cleaner's moves, TRIM, changes of role), and [`COLD_SEGMENTS`].
pub(super) const RESERVED_SEGMENTS: usize = COLD_SEGMENTS + 1;
/// Free segments that are for copies of the cleaner alone.
pub(super) const COLD_SEGMENTS: usize = 1;
/// Most free segments that are kept: one that is made anew is written through first, which costs more than it is worth
/// while segments come free and are taken again all the time.
const KEPT_SEGMENTS_MAX: usize = 16;
/// Of all segments, the share that is kept free at most while nobody takes more.
const KEPT_DIVISOR: usize = 8;
/// Smallest segment: the largest record and the header must fit twice.
pub const SEGMENT_BYTES_MIN: u64 = 8 << 20;

/// Free bytes of the file system that no segment is made of: the block map beside the log, and the metadata where they are on the same one, must
/// be able to write, and to be opened, when guests have filled the rest. The map's write buffer, its log and their files take 48 MiB
/// (`map::store`), the metadata's 4 MiB of each (`consensus`); the rest is for the files that their merging writes before it deletes others.
pub const ROOM_KEPT_BYTES: u64 = 64 << 20;

/// A segment's first block, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's number, equal to its file's.
    pub segment: u32,
    /// When it was taken into use.
    pub generation: u64,
    /// Whether it holds copies of the cleaner instead of a part of the log.
    pub cold: bool,
}

impl SegmentHeader {
    /// Lays the header out at the start of `block`.
    pub fn encode(self, block: &mut [u8]) {
        block[0..4].copy_from_slice(&SEGMENT_MAGIC);
        block[4..6].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        block[6..8].copy_from_slice(&u16::from(self.cold).to_le_bytes());
        block[8..12].copy_from_slice(&self.segment.to_le_bytes());
        block[16..24].copy_from_slice(&self.generation.to_le_bytes());
        let checksum = crc32fast::hash(&block[..24]);
        block[24..28].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads a header; `None` for a segment that was never used or whose first write was torn.
    ///
    /// # Errors
    /// The version found, when a newer program wrote it.
    pub fn decode(block: &[u8]) -> Result<Option<SegmentHeader>, u16> {
        let Some(header) = block.get(..28) else { return Ok(None) };
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if header[..4] != SEGMENT_MAGIC || crc32fast::hash(&header[..24]) != u32_at(24) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != SEGMENT_VERSION {
            return Err(version);
        }
        let generation = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        let cold = u16::from_le_bytes([header[6], header[7]]) == 1;
        Ok(Some(SegmentHeader { segment: u32_at(8), generation, cold }))
    }

    /// What the header of segment `number` says if the log's checkpoint lies in it: it is not recycled before there is a later one.
    #[must_use]
    pub fn of_checkpoint(number: u32, checkpoint: Option<LogPosition>) -> Option<SegmentHeader> {
        let from = checkpoint.filter(|from| from.generation > 0 && from.segment == number)?;
        Some(SegmentHeader { segment: number, generation: from.generation, cold: false })
    }

    /// What the header of segment `number` said, by the records of log `identity` in `window`, the blocks behind it: each has the
    /// generation that it was written in, and those of earlier lives lie behind those of the last. `None` where there is no record.
    #[must_use]
    pub fn of_records(number: u32, window: &[u8], identity: u64) -> Option<SegmentHeader> {
        let records = (0..window.len()).step_by(BLOCK_SIZE as usize);
        let records = records.filter_map(|at| whole_header(&window[at..], identity));
        let newest = records.map(|(header, _)| header).max_by_key(|header| header.generation)?;
        let (generation, cold) = (newest.generation, newest.sequence == COLD_SEQUENCE);
        Some(SegmentHeader { segment: number, generation, cold })
    }
}

/// A segment file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// `None` when it cannot be opened.
    pub(super) file: Option<FileId>,
    pub(super) blocks: u32,
    pub(super) generation: u64,
    pub(super) cold: bool,
}

/// How many segments are taken from one time that some are given back to the next: as many will be wanted again.
#[derive(Debug, Default)]
struct Demand {
    now: usize,
    before: usize,
    is_giving_back: bool,
}

impl Demand {
    fn take(&mut self) {
        if std::mem::take(&mut self.is_giving_back) {
            self.before = std::mem::take(&mut self.now);
        }
        self.now += 1;
    }

    fn give_back(&mut self) {
        self.is_giving_back = true;
    }

    fn expected(&self) -> usize {
        self.now.max(self.before)
    }
}

/// All segment files.
#[derive(Debug)]
pub(super) struct Pool {
    settings: LogSettings,
    segments: BTreeMap<u32, Segment>,
    free: VecDeque<u32>,
    demand: Demand,
    making: Option<u32>,
    next_number: u32,
    /// The newest generation seen in any header, also in segments that are free now: none is given out twice.
    newest_generation: u64,
    /// Whether the last segment could not be made, and nothing came free since.
    full: bool,
    /// Whether it was told that there is no room, and there was none since.
    has_told: bool,
    /// Blocks of the segments that were made since the start.
    prepared_blocks: u64,
}

/// The file name of segment `number`.
pub(super) fn file_name(number: u32) -> String {
    format!("{number:08}.seg")
}

/// What to do where the system refuses something that says nothing of the disk. Nothing was changed then.
fn remedy(error: &io::Error) -> &'static str {
    let too_many = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the user that the node runs as read and write it, and start the node again"
        }
        _ if error.raw_os_error().is_some_and(|code| too_many.iter().any(|errno| errno.raw_os_error() == code)) => {
            "let the node have more files open (LimitNOFILE= of systemd, ulimit -n), and start it again"
        }
        _ => "remove the cause, and start the node again",
    }
}

/// Opens segment file `name` of `size` bytes; `None` when the disk has lost it, in whole or in part.
fn open(engine: &mut dyn IoEngine, name: &str, size: u64) -> io::Result<Option<FileId>> {
    let error = match engine.open(name) {
        Ok(file) if size >= SEGMENT_BYTES_MIN => return Ok(Some(file)),
        Ok(_) => io::Error::other(format!("it has {size} bytes, and no segment has less than {SEGMENT_BYTES_MIN}")),
        Err(error) if is_loss(&error) => error,
        Err(error) => {
            let text = format!("{name} cannot be opened: {error}; {}", remedy(&error));
            return Err(io::Error::new(error.kind(), text));
        }
    };
    tracing::error!(file = name, %error, "a segment file cannot be opened: what is needed of it is damaged");
    Ok(None)
}

impl Pool {
    /// Opens every segment file there is; which are in use is told later.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file cannot be opened for another reason than that the disk has lost it.
    pub(super) fn open(engine: &mut dyn IoEngine, settings: LogSettings) -> io::Result<Pool> {
        let mut segments = BTreeMap::new();
        let files = engine.list().map_err(|error| {
            io::Error::new(error.kind(), format!("its files cannot be listed: {error}; {}", remedy(&error)))
        })?;
        for (name, size) in files {
            let Some(number) = name.strip_suffix(".seg").and_then(|number| number.parse().ok()) else { continue };
            let file = open(engine, &name, size)?;
            // How long one was that cannot be opened may not be known.
            let size = if file.is_some() { size } else { size.max(settings.segment_bytes) };
            let blocks = (size / u64::from(BLOCK_SIZE)) as u32;
            segments.insert(number, Segment { file, blocks, generation: 0, cold: false });
        }
        let next_number = segments.last_key_value().map_or(1, |(number, _)| number + 1);
        Ok(Pool {
            settings,
            segments,
            free: VecDeque::new(),
            demand: Demand::default(),
            making: None,
            next_number,
            newest_generation: 0,
            full: false,
            has_told: false,
            prepared_blocks: 0,
        })
    }

    pub(super) fn get(&self, number: u32) -> Option<&Segment> {
        self.segments.get(&number)
    }

    pub(super) fn numbers(&self) -> Vec<u32> {
        self.segments.keys().copied().collect()
    }

    /// The segment's header says this generation, whether or not the segment is in use.
    pub(super) fn set_generation(&mut self, number: u32, generation: u64, cold: bool) {
        let segment = self.segments.get_mut(&number).expect("a segment that exists");
        (segment.generation, segment.cold) = (generation, cold);
        self.note_generation(generation);
    }

    /// This generation was given out, whether or not a header tells.
    pub(super) fn note_generation(&mut self, generation: u64) {
        self.newest_generation = self.newest_generation.max(generation);
    }

    /// Something points into this segment, whether or not its file is there: no other gets its number.
    pub(super) fn note_number(&mut self, number: u32) {
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    /// Takes a free segment into use, if more than `reserved` are free, under the next generation. Returns its number, what it is, and its
    /// file.
    pub(super) fn take(&mut self, reserved: usize, cold: bool) -> Option<(u32, Segment, FileId)> {
        if self.free.len() <= reserved {
            return None;
        }
        let number = self.free.pop_front()?;
        self.demand.take();
        self.set_generation(number, self.newest_generation + 1, cold);
        let segment = self.segments[&number];
        Some((number, segment, segment.file.expect("free segments are open")))
    }

    /// Free segments that are kept at hand.
    fn wanted(&self) -> usize {
        self.settings.spare_segments.max(1) + RESERVED_SEGMENTS
    }

    /// Free segments that are not deleted: after as many were taken as is expected, those at hand are still there, and none is made.
    fn kept(&self) -> usize {
        let (share, expected) = (self.segments.len() / KEPT_DIVISOR, self.demand.expected());
        let lasting = if expected > 0 { self.wanted() + expected } else { 0 };
        self.wanted().max(share.max(lasting).min(KEPT_SEGMENTS_MAX))
    }

    /// Nobody writes: what was kept for those who did is deleted.
    pub(super) fn trim(&mut self, engine: &mut dyn IoEngine) -> io::Result<()> {
        self.demand = Demand::default();
        while self.free.len() > self.kept() {
            let Some(number) = self.free.pop_back() else { break };
            let segment = self.segments.remove(&number).expect("a segment that exists");
            engine.remove(&file_name(number), segment.file)?;
        }
        Ok(())
    }

    /// A segment is not needed any more; it is deleted when enough are free.
    pub(super) fn give_back(&mut self, engine: &mut dyn IoEngine, number: u32) -> io::Result<()> {
        assert!(!self.free.contains(&number), "segment {number} is free already");
        self.full = false;
        self.demand.give_back();
        let segment = *self.segments.get(&number).expect("a segment that exists");
        let is_long = u64::from(segment.blocks) * u64::from(BLOCK_SIZE) >= self.settings.segment_bytes;
        let fits = is_long && segment.file.is_some();
        if self.free.len() < self.kept() && fits {
            self.free.push_back(number);
            return Ok(());
        }
        self.segments.remove(&number);
        engine.remove(&file_name(number), segment.file)
    }

    /// Marks a segment as free at recovery. One that cannot be opened is nobody's then; its file stays.
    pub(super) fn add_free(&mut self, number: u32) {
        match self.segments.get(&number).expect("a segment that exists").file {
            Some(_) => self.free.push_back(number),
            None => drop(self.segments.remove(&number)),
        }
    }

    /// Whether a segment waits to be used.
    pub(super) fn is_free(&self, number: u32) -> bool {
        self.free.contains(&number)
    }

    /// The size of new segments.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.settings.segment_bytes
    }

    /// Blocks written into segments to make them, since the start.
    pub(super) fn prepared_blocks(&self) -> u64 {
        self.prepared_blocks
    }

    /// Free segments at hand.
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Whether no further segment can be made at present.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Tries again to make segments after the file system was full.
    pub(super) fn retry(&mut self) {
        self.full = false;
    }

    /// Asks the engine for one more segment if fewer are free than should be. `token` comes back with its completion.
    pub(super) fn make_ahead(&mut self, engine: &mut dyn IoEngine, token: u64) {
        if self.making.is_some() || self.full || self.free.len() >= self.wanted() {
            return;
        }
        let held: u64 = self.segments.values().map(|segment| u64::from(segment.blocks) * u64::from(BLOCK_SIZE)).sum();
        let is_over =
            self.settings.capacity_bytes.is_some_and(|capacity| held + self.settings.segment_bytes > capacity);
        if is_over || !self.finds_room(engine) {
            self.full = true;
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.making = Some(number);
        let kind = IoKind::Create { name: file_name(number), size: self.settings.segment_bytes };
        engine.submit(IoOp { token, file: FileId(0), kind });
    }

    /// Whether the file system has room for one more segment beside what is left to others. One that does not say so may refuse the segment.
    fn finds_room(&mut self, engine: &mut dyn IoEngine) -> bool {
        let free = match engine.free_bytes() {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, "what is free on the file system of the segments cannot be told");
                return true;
            }
        };
        let fits = free >= self.settings.segment_bytes.saturating_add(ROOM_KEPT_BYTES);
        if !fits && !self.has_told {
            tracing::warn!(free, kept = ROOM_KEPT_BYTES, "the file system has no room for another segment");
        }
        self.has_told = !fits;
        fits
    }

    /// Whether a segment is being made.
    pub(super) fn is_making(&self) -> bool {
        self.making.is_some()
    }

    /// The segment that was asked for is there, or not.
    pub(super) fn made(&mut self, engine: &mut dyn IoEngine, result: io::Result<()>) {
        let number = self.making.take().expect("a segment was being made");
        let opened = result.and_then(|()| {
            engine.open(&file_name(number)).inspect_err(|_| {
                // Else each attempt would leave another that nobody knows of before the next start.
                if let Err(error) = engine.remove(&file_name(number), None) {
                    tracing::warn!(%error, segment = number, "a segment that cannot be opened cannot be deleted");
                }
            })
        });
        match opened {
            Ok(file) => {
                let blocks = (self.settings.segment_bytes / u64::from(BLOCK_SIZE)) as u32;
                self.segments.insert(number, Segment { file: Some(file), blocks, generation: 0, cold: false });
                self.free.push_back(number);
                self.prepared_blocks += u64::from(blocks);
            }
            Err(error) => {
                // Full or not, nothing is lost yet: writes go on in the segments that are there.
                tracing::warn!(%error, segment = number, "no further segment can be made");
                self.full = true;
            }
        }
    }

    pub(super) fn infos(&self, active: [Option<u32>; 2]) -> Vec<SegmentInfo> {
        let info = |(number, segment): (&u32, &Segment)| SegmentInfo {
            segment: *number,
            blocks: segment.blocks,
            generation: segment.generation,
            cold: segment.cold,
            active: active.contains(&Some(*number)),
            free: self.free.contains(number),
        };
        self.segments.iter().map(info).collect()
    }
}

#[cfg(test)]
mod tests;
