//! Where the cold segment that was being filled is filled further after a start: behind everything in it that is in use.
//!
//! Its records alone do not tell. No later record vouches for the last one, as in the log: when that cannot be read, it looks like the
//! end, and to go on there would write over blocks that the map points to. What points into the segment is known, though: the
//! checkpoint has kept how far it was in use ([`ColdEnd`](super::ColdEnd)), and every block that was moved there since is named by
//! an [`Entry::Relocated`](crate::log::Entry::Relocated) of the log behind it. The blocks of a record that cannot be read stay
//! where they are: their checksums are in the map, so they are served, or found to be damaged and repaired, like any others.
//!
//! A store of a program that did not keep how far has what the log says alone, until its first checkpoint.

use client_lib::BLOCK_SIZE;

use super::{COLD_SEQUENCE, Target};
use crate::log::LogError;
use crate::log::record::{Header, decode_any_header, whole_header};
use crate::log::recovery::{Recovery, WINDOW_BLOCKS};
use crate::log::segment::{Pool, SEGMENT_HEADER_BLOCKS, Segment};

const BLOCK: usize = BLOCK_SIZE as usize;

impl Recovery<'_> {
    /// Where the newest cold segment can be filled further; `None` when there is none, or when that is not known of it.
    pub(in crate::log) fn cold_target(&mut self, pool: &Pool) -> Result<Option<Target>, LogError> {
        let newest = self.cold.last_key_value();
        let Some((generation, number)) = newest.map(|(generation, number)| (*generation, *number)) else {
            return Ok(None);
        };
        // What the checkpoint says of an older one is no news: whatever points into this one stands in the log behind it.
        let kept = self.known.cold.filter(|kept| kept.generation >= generation);
        if kept.is_some_and(|kept| (kept.generation, kept.segment) != (generation, number)) {
            // The cleaner had left it for another that is not there any more: little room is left, and how much is not known.
            return Ok(None);
        }
        let segment = *pool.get(number).expect("used segments exist");
        let Some(file) = segment.file else { return Ok(None) };
        let moved = self.filled.get(&number).copied().unwrap_or_default();
        let used = kept.map_or(0, |kept| kept.block).max(moved).min(segment.blocks);
        let mut next = self.end_of_copies(number, segment, SEGMENT_HEADER_BLOCKS)?;
        if next < used {
            tracing::error!(
                segment = number,
                block = next,
                used,
                "a record of the cleaner is damaged, or was cut off by a crash: its segment is filled further behind all that is in use there"
            );
            next = self.end_of_copies(number, segment, used)?;
        }
        let has_copies = self.has_copies_behind(number, segment, next)?;
        // One that cannot be read may be the header of the last copies.
        if has_copies || self.reader.first_unreadable(number, next, segment.blocks - next).is_some() {
            tracing::error!(
                segment = number,
                block = next,
                "a record of the cleaner is damaged, or may be: its segment is not filled further"
            );
            return Ok(None);
        }
        Ok(Some(Target { segment: number, file, generation, next, copied: next, blocks: segment.blocks }))
    }

    /// Behind the records of a cold segment that follow each other from block `next` on.
    fn end_of_copies(&mut self, number: u32, segment: Segment, mut next: u32) -> Result<u32, LogError> {
        while next < segment.blocks {
            let window = self.reader.read(number, segment, next, WINDOW_BLOCKS.min(segment.blocks - next))?;
            let start = next;
            while let Some(bytes) = window.get((next - start) as usize * BLOCK..).filter(|bytes| !bytes.is_empty())
                && let Some((header, blocks)) = whole_header(bytes, self.known.identity)
                && is_copy(&header, segment)
            {
                next += blocks;
            }
            self.reader.give_back(window);
            if next == start {
                break;
            }
        }
        Ok(next.min(segment.blocks))
    }

    /// Whether a record of a cold segment begins at `block` or behind it: then what seems to be the end is damage, and
    /// what lies there may be needed.
    fn has_copies_behind(&mut self, number: u32, segment: Segment, mut block: u32) -> Result<bool, LogError> {
        while block < segment.blocks {
            let window = self.reader.read(number, segment, block, WINDOW_BLOCKS.min(segment.blocks - block))?;
            block += (window.len() / BLOCK) as u32;
            let is_record = |bytes: &[u8]| {
                decode_any_header(bytes)
                    .is_ok_and(|header| header.log == self.known.identity && is_copy(&header, segment))
            };
            let found = window.chunks_exact(BLOCK).any(is_record);
            self.reader.give_back(window);
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_copy(header: &Header, segment: Segment) -> bool {
    (header.generation, header.sequence) == (segment.generation, COLD_SEQUENCE)
}
