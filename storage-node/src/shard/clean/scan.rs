//! Reading a segment for what was written into it: window by window, record by record. Pure: windows in, blocks out.
//!
//! The end is the first place where no whole record of the segment's generation begins: its end in most cases, or
//! damage, which the caller notices by the blocks that are missing.

use std::collections::VecDeque;

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, Lsn, VolumeId};

use crate::log::Entry;
use crate::log::record::{DATA_BLOCKS_MAX, ENTRIES_BYTES_MAX, decode_entries, decode_header_of};
use crate::log::segment::SEGMENT_HEADER_BLOCKS;
use crate::map::page::Place;

/// Blocks per read: a mebibyte. A record that is larger is read again, whole.
const WINDOW_BLOCKS: u32 = 256;
/// The largest record.
const RECORD_BLOCKS_MAX: u32 = (ENTRIES_BYTES_MAX / BLOCK) as u32 + 1 + DATA_BLOCKS_MAX;

const BLOCK: usize = BLOCK_SIZE as usize;

/// A block that was written into the segment.
#[derive(Debug)]
pub(super) struct FoundBlock {
    pub(super) volume: VolumeId,
    pub(super) block: u32,
    pub(super) lsn: Lsn,
    pub(super) crc: u32,
    pub(super) place: Place,
    /// What lies there, not verified.
    pub(super) data: Bytes,
}

/// How far a segment was read.
#[derive(Debug)]
pub(super) struct Scan {
    segment: u32,
    generation: u64,
    blocks: u32,
    /// The block where the next record begins.
    next: u32,
    window_blocks: u32,
    is_over: bool,
    found: VecDeque<FoundBlock>,
}

impl Scan {
    pub(super) fn new(segment: u32, generation: u64, blocks: u32) -> Scan {
        let next = SEGMENT_HEADER_BLOCKS;
        let (window_blocks, is_over) = (WINDOW_BLOCKS, next >= blocks);
        Scan { segment, generation, blocks, next, window_blocks, is_over, found: VecDeque::new() }
    }

    /// Whether the end was reached.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether found blocks wait to be taken.
    pub(super) fn has_found(&self) -> bool {
        !self.found.is_empty()
    }

    pub(super) fn take_found(&mut self) -> Option<FoundBlock> {
        self.found.pop_front()
    }

    /// The first block and the number of blocks to read next.
    pub(super) fn next_read(&self) -> (u32, u32) {
        (self.next, self.window_blocks.min(self.blocks - self.next))
    }

    /// Nothing more can be read.
    pub(super) fn give_up(&mut self) {
        self.is_over = true;
    }

    /// Takes what [`next_read`](Self::next_read) asked for.
    pub(super) fn take_window(&mut self, window: &Bytes) {
        let mut at = 0;
        while let Some(blocks) = self.take_record(&window.slice(at..)) {
            at += blocks as usize * BLOCK;
            self.next += blocks;
        }
        if self.next >= self.blocks {
            self.is_over = true;
        } else if at > 0 {
            self.window_blocks = WINDOW_BLOCKS;
        } else if self.window_blocks < RECORD_BLOCKS_MAX {
            // Not even one: perhaps it is larger than the window.
            self.window_blocks = RECORD_BLOCKS_MAX;
        } else {
            self.is_over = true;
        }
    }

    /// Takes the record at the start of `bytes`, if one is there whole; returns its size in blocks.
    fn take_record(&mut self, bytes: &Bytes) -> Option<u32> {
        let header = decode_header_of(bytes, self.generation).ok()?;
        let entries = decode_entries(&header, bytes).ok()?;
        let data_blocks: u32 = entries.iter().map(Entry::data_blocks).sum();
        let blocks = header.blocks() + data_blocks;
        if bytes.len() < blocks as usize * BLOCK {
            return None;
        }
        let mut at = header.blocks();
        let mut take = |volume: VolumeId, block: u32, lsn: Lsn, crc: u32| {
            let place = Place { segment: self.segment, block: self.next + at };
            let data = bytes.slice(at as usize * BLOCK..(at as usize + 1) * BLOCK);
            self.found.push_back(FoundBlock { volume, block, lsn, crc, place, data });
            at += 1;
        };
        for entry in entries {
            match entry {
                Entry::Write { volume, lsn, start, checksums } => {
                    (start.0..).zip(checksums).for_each(|(block, crc)| take(volume, block, lsn, crc));
                }
                Entry::Received { volume, blocks } => {
                    blocks.into_iter().for_each(|(block, lsn, crc)| take(volume, block.0, lsn, crc));
                }
                _ => {}
            }
        }
        Some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{BlockIndex, Epoch};

    use super::*;
    use crate::log::record::{Stamp, encode};

    const GENERATION: u64 = 5;

    /// A segment of one record per number, each with so many blocks, laid out behind the header block.
    fn segment(records: &[u32], blocks: u32) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        for (index, count) in records.iter().enumerate() {
            let entry = Entry::Write {
                volume: VolumeId(1),
                lsn: Lsn::new(Epoch(1), index as u64 + 1),
                start: BlockIndex(100 * index as u32),
                checksums: vec![7; *count as usize],
            };
            let stamp = Stamp { log: 1, generation: GENERATION, sequence: index as u64, chain: 9, durable: 0, life: 0 };
            bytes.extend_from_slice(&encode(&stamp, &[&entry], *count, 0).0);
            bytes.resize(bytes.len() + *count as usize * BLOCK, 0);
        }
        bytes.resize(blocks as usize * BLOCK, 0);
        bytes
    }

    fn scan(bytes: &[u8]) -> Vec<(u64, u32)> {
        let mut scan = Scan::new(3, GENERATION, (bytes.len() / BLOCK) as u32);
        let mut found = Vec::new();
        for _ in 0..1000 {
            while let Some(block) = scan.take_found() {
                found.push((block.lsn.sequence, block.place.block));
            }
            if scan.is_over() {
                return found;
            }
            let (first, count) = scan.next_read();
            assert!(count > 0);
            let at = first as usize * BLOCK;
            scan.take_window(&Bytes::copy_from_slice(&bytes[at..at + count as usize * BLOCK]));
        }
        panic!("the scan does not end");
    }

    #[test]
    fn every_block_is_found_where_it_lies_also_in_records_larger_than_a_window() {
        let records = [1, 40, 400, 512, 3, 250, 250];
        let found = scan(&segment(&records, 1600));
        let mut expected = Vec::new();
        let mut at = 1;
        for (index, count) in records.iter().enumerate() {
            expected.extend((0..*count).map(|block| (index as u64 + 1, at + 1 + block)));
            at += 1 + count;
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn a_record_of_another_life_or_a_damaged_one_is_the_end() {
        let mut bytes = segment(&[2, 2, 2], 20);
        assert_eq!(scan(&bytes).len(), 6);
        bytes[4 * BLOCK + 45] ^= 1;
        assert_eq!(scan(&bytes).len(), 2, "the second record's entries are damaged");
        assert_eq!(scan(&segment(&[2], 4)).len(), 2, "a full segment");
        assert_eq!(scan(&vec![0; 8 * BLOCK]).len(), 0);
    }
}
