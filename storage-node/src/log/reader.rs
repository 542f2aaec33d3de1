//! Reading segments during recovery, when nothing else is under way: what a disk does not give is damage, and no end.
//!
//! A block that cannot be read comes as zeroes, which are neither a header nor a record and fit no checksum but that of zeroes: so it is
//! treated like one that was altered. It is remembered: where the log seems to end at such a block, nobody can tell what lay there.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use client_lib::BLOCK_SIZE;

use super::LogError;
use super::segment::{Segment, SegmentHeader, file_name};
use crate::io::buffer::AlignedBuffer;
use crate::io::{FileId, IoCompletion, IoEngine, IoKind, IoOp};

const BLOCK: usize = BLOCK_SIZE as usize;

/// How long one operation may take before its end is looked for again; it is waited for for ever all the same.
const LOOK: Duration = Duration::from_secs(1);

/// Reads and waits.
pub(super) struct Reader<'a> {
    engine: &'a mut dyn IoEngine,
    /// The sizes in blocks that are read again and again.
    usual: &'static [u32],
    /// Buffers to use again, one of each usual size.
    spares: Vec<AlignedBuffer>,
    /// Segment and block of what could not be read.
    unreadable: BTreeSet<(u32, u32)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(engine: &'a mut dyn IoEngine, usual: &'static [u32]) -> Reader<'a> {
        Reader { engine, usual, spares: Vec::new(), unreadable: BTreeSet::new() }
    }

    /// `count` blocks of a segment, with zeroes for those that cannot be read: all of them where its file cannot be opened.
    ///
    /// # Errors
    /// When the engine itself fails, and with it every segment.
    pub(super) fn read(
        &mut self,
        number: u32,
        segment: Segment,
        first_block: u32,
        count: u32,
    ) -> Result<AlignedBuffer, LogError> {
        let Some(file) = segment.file else {
            let mut whole = AlignedBuffer::with_room(count as usize * BLOCK);
            whole.zero_to(count as usize * BLOCK);
            self.unreadable.extend((first_block..first_block + count).map(|block| (number, block)));
            return Ok(whole);
        };
        let error = match self.attempt(file, first_block, count)? {
            Ok(buffer) => return Ok(buffer),
            Err(error) => error,
        };
        tracing::error!(
            segment = number, file = file_name(number), first_block, count, %error,
            "a part of the log cannot be read: each of its blocks is tried"
        );
        let mut whole = AlignedBuffer::with_room(count as usize * BLOCK);
        for block in first_block..first_block + count {
            match self.attempt(file, block, 1)? {
                Ok(buffer) => {
                    whole.push(&buffer);
                    self.give_back(buffer);
                }
                Err(_) => {
                    whole.zero_to(whole.len() + BLOCK);
                    self.unreadable.insert((number, block));
                }
            }
        }
        Ok(whole)
    }

    /// The first of `count` blocks of a segment, all of which were asked for, that could not be read.
    pub(super) fn first_unreadable(&self, number: u32, first_block: u32, count: u32) -> Option<u32> {
        let range = (number, first_block)..(number, first_block.saturating_add(count));
        self.unreadable.range(range).next().map(|(_, block)| *block)
    }

    fn attempt(&mut self, file: FileId, first_block: u32, count: u32) -> Result<io::Result<AlignedBuffer>, LogError> {
        let spare = self.spares.iter().position(|spare| spare.room() == count as usize * BLOCK);
        let buffer = match spare {
            Some(spare) => self.spares.swap_remove(spare),
            None => AlignedBuffer::with_room(count as usize * BLOCK),
        };
        let kind = IoKind::Read { offset: u64::from(first_block) * u64::from(BLOCK_SIZE), buffer };
        let IoCompletion { result, buffer, .. } = carry_out(self.engine, IoOp { token: 0, file, kind })?;
        Ok(result.map(|()| buffer.expect("a read brings its buffer back")))
    }

    /// Keeps a buffer for the next read of its size.
    pub(super) fn give_back(&mut self, buffer: AlignedBuffer) {
        let is_usual = self.usual.iter().any(|blocks| buffer.room() == *blocks as usize * BLOCK);
        if is_usual && self.spares.iter().all(|spare| spare.room() != buffer.room()) {
            self.spares.push(buffer);
        }
    }
}

/// Writes the header of a segment anew.
///
/// # Errors
/// As [`Reader::read`].
pub(super) fn write_header(
    engine: &mut dyn IoEngine,
    file: FileId,
    header: SegmentHeader,
) -> Result<io::Result<()>, LogError> {
    let mut buffer = AlignedBuffer::zeroed(BLOCK);
    header.encode(&mut buffer);
    let kind = IoKind::Write { offset: 0, buffer, rest: Vec::new(), durable: true };
    Ok(carry_out(engine, IoOp { token: 0, file, kind })?.result)
}

fn carry_out(engine: &mut dyn IoEngine, operation: IoOp) -> Result<IoCompletion, LogError> {
    engine.submit(operation);
    let mut completions = Vec::new();
    while completions.is_empty() {
        engine.wait(LOOK, &mut completions).map_err(|error| LogError::Io(error.to_string()))?;
    }
    Ok(completions.pop().expect("waited for it"))
}
