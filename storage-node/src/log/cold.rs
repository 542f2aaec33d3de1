//! Cold segments: where the cleaner copies what outlived the segment it lay in, apart from the log's stream.
//!
//! A cold segment holds records of the log's format, of [`Entry::Received`] alone, with sequence 0: recovery never takes
//! them for the log, and the cleaner reads them like any other segment. A copy is durable when it is reported. Nothing
//! points to it until an [`Entry::Relocated`] of the log does, so a crash in between leaves garbage and no more. The cold
//! segment that was being filled at the end of a process is filled further by the next: it may be the only room left. Where
//! it ends the checkpoint and the log say, and not its records alone ([`end`]).
//!
//! Keeping old and new data apart is what makes cleaning cheap when some blocks change often and others never
//! (Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System", 1992, section 3.6).

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use client_lib::BLOCK_SIZE;

use super::parts::Parts;
use super::record::{DATA_BLOCKS_MAX, Entry, Stamp, encode};
use super::segment::{SEGMENT_HEADER_BLOCKS, SegmentHeader};
use super::writer::{TOKEN_COPY, entries_blocks, token};
use super::{Event, Log, LogError, Placed};
use crate::io::{FileId, IoKind, IoOp};

pub(super) mod end;

/// The sequence of every record in a cold segment; the log's own begin at 1.
pub const COLD_SEQUENCE: u64 = 0;

const BLOCK: usize = BLOCK_SIZE as usize;

/// How far a cold segment is filled, as a checkpoint keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdEnd {
    /// The segment.
    pub segment: u32,
    /// When it was taken into use.
    pub generation: u64,
    /// The block behind everything in it that anything points to.
    pub block: u32,
}

/// The segment being filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) segment: u32,
    pub(super) file: FileId,
    pub(super) generation: u64,
    /// The next free block; the header counts as written with the first record.
    pub(super) next: u32,
    /// The block behind the copies that are durable; those under way lie behind it, or between them.
    pub(super) copied: u32,
    pub(super) blocks: u32,
}

/// A copy under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    ticket: u64,
    segment: u32,
    /// Its first data block, and the block behind its last.
    first_block: u32,
    end: u32,
}

/// Copies of the cleaner under way, and where they go.
#[derive(Debug, Default)]
pub(super) struct Cold {
    target: Option<Target>,
    /// By number.
    flights: BTreeMap<u64, Flight>,
    next_number: u64,
}

impl Cold {
    /// Goes on filling a segment that an earlier process began.
    pub(super) fn resume(&mut self, target: Target) {
        self.target = Some(target);
    }

    pub(super) fn segment(&self) -> Option<u32> {
        self.target.map(|target| target.segment)
    }

    /// How far the segment being filled is in use.
    fn end(&self) -> Option<ColdEnd> {
        let Target { segment, generation, copied, .. } = self.target?;
        Some(ColdEnd { segment, generation, block: copied })
    }

    /// Blocks left in the segment being filled.
    pub(super) fn room(&self) -> u32 {
        self.target.map_or(0, |target| target.blocks - target.next)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Forgets the copies under way; returns their tickets.
    pub(super) fn abandon(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.flights).into_values().map(|flight| flight.ticket).collect()
    }
}

impl Log {
    /// How many blocks of data, in a record whose entries take no more than these, the segment being filled still takes.
    #[must_use]
    pub fn copy_room(&self, entries: &[Entry]) -> usize {
        let headers: u32 = entries.iter().map(entries_blocks).sum();
        self.cold.room().saturating_sub(headers) as usize
    }

    /// Writes `entries` with their data, whole blocks, into a cold segment as one record, and returns the segment;
    /// [`Event::Copied`] brings `ticket` back when it is durable.
    ///
    /// # Errors
    /// `OutOfSpace` when no segment is free (yet), `Poisoned`: nothing was written.
    ///
    /// # Panics
    /// If entries and data do not fit each other or a record.
    pub fn copy(&mut self, entries: &[Entry], data: &[Bytes], ticket: u64) -> Result<u32, LogError> {
        let blocks: u32 = entries.iter().map(Entry::data_blocks).sum();
        assert_eq!(data.iter().map(Bytes::len).sum::<usize>(), blocks as usize * BLOCK, "entries and data fit");
        assert!((1..=DATA_BLOCKS_MAX).contains(&blocks), "{blocks} blocks are not for one record");
        if let Some(reason) = self.poisoned() {
            return Err(LogError::Poisoned(reason.to_owned()));
        }
        let needed = blocks + entries.iter().map(entries_blocks).sum::<u32>();
        if self.cold.target.is_none_or(|target| target.blocks - target.next < needed) {
            let (segment, taken, file) = self.pool.take(0, true).ok_or(LogError::OutOfSpace)?;
            let next = SEGMENT_HEADER_BLOCKS;
            assert!(taken.blocks - next >= needed, "the smallest segment has room for the largest record");
            let (generation, blocks) = (taken.generation, taken.blocks);
            self.cold.target = Some(Target { segment, file, generation, next, copied: next, blocks });
        }
        let target = self.cold.target.as_mut().expect("just taken");
        let prefix = if target.next == SEGMENT_HEADER_BLOCKS { SEGMENT_HEADER_BLOCKS } else { 0 };
        let entries: Vec<&Entry> = entries.iter().collect();
        let stamp = Stamp {
            log: self.identity,
            generation: target.generation,
            sequence: COLD_SEQUENCE,
            chain: 0,
            durable: 0,
            life: self.life,
        };
        let parts = Parts::of(data);
        let (mut buffer, header_blocks, _) = encode(&stamp, &entries, parts.first_blocks(), prefix);
        if prefix > 0 {
            SegmentHeader { segment: target.segment, generation: target.generation, cold: true }.encode(&mut buffer);
        }
        let rest = parts.lay_out(&mut buffer);
        self.traffic.copy_headers += u64::from(prefix + header_blocks);
        self.traffic.copies += u64::from(blocks);
        let offset = u64::from(target.next - prefix) * u64::from(BLOCK_SIZE);
        let number = self.cold.next_number;
        self.cold.next_number += 1;
        let first_block = target.next + header_blocks;
        target.next = first_block + blocks;
        self.cold.flights.insert(number, Flight { ticket, segment: target.segment, first_block, end: target.next });
        let kind = IoKind::Write { offset, buffer, rest, durable: true };
        let (segment, file) = (target.segment, target.file);
        self.engine.submit(IoOp { token: token(TOKEN_COPY, number), file, kind });
        Ok(segment)
    }

    /// How far the cold segment being filled is in use: everything there that was copied, and so all that the log or the map
    /// points to, lies before it. `None` while none is filled.
    #[must_use]
    pub fn cold_end(&self) -> Option<ColdEnd> {
        self.cold.end()
    }

    pub(super) fn copy_finished(&mut self, number: u64, result: io::Result<()>) {
        if let Err(error) = result {
            return self.poison(&format!("a write to a cold segment failed: {error}"));
        }
        // Forgotten when the log was poisoned meanwhile.
        let Some(Flight { ticket, segment, first_block, end }) = self.cold.flights.remove(&number) else { return };
        if let Some(target) = self.cold.target.as_mut().filter(|target| target.segment == segment) {
            target.copied = target.copied.max(end);
        }
        let placed = Placed { segment, first_block, durable: true };
        self.ready.push(Event::Copied { ticket, result: Ok(placed) });
    }
}
