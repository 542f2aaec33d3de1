//! Opening a log: find the records after a position, hand them out in order, and be ready to append.
//!
//! The log ends at the first record that is not whole, in the segment where it should be or at the start of the
//! next. What lies behind was never reported done (appends complete in order), and the chain keeps it from ever
//! being taken for a continuation of what is written from here on. Data is verified too: a torn append can have a
//! whole header.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use client_lib::BLOCK_SIZE;

use super::cold::Target;
use super::record::{
    DATA_BLOCKS_MAX, ENTRIES_BYTES_MAX, Entry, RecordError, data_fits, decode_entries, decode_header, decode_header_of,
};
use super::segment::{Pool, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BLOCKS, SegmentHeader};
use super::writer::{Active, Log};
use super::{LogError, LogPosition, LogSettings, Replayed};
use crate::io::buffer::AlignedBuffer;
use crate::io::{FileId, IoEngine, IoKind, IoOp};

const BLOCK: usize = BLOCK_SIZE as usize;

/// Blocks read at a time: the largest record fits.
const WINDOW_BLOCKS: u32 = (ENTRIES_BYTES_MAX / BLOCK) as u32 + 1 + DATA_BLOCKS_MAX;

/// How long one read may take before recovery looks again; it waits for ever all the same.
const LOOK: Duration = Duration::from_secs(1);

impl Log {
    /// Opens the log in the engine's directory. Hands every whole record after `from` (`None`: from the beginning) to
    /// `replay`, in order, and is then ready to append behind the last.
    ///
    /// # Errors
    /// `Corrupt` when what `from` points to is gone or a newer program wrote here; `Io`.
    pub fn recover(
        mut engine: Box<dyn IoEngine>,
        settings: LogSettings,
        from: Option<LogPosition>,
        replay: &mut dyn FnMut(Replayed),
    ) -> Result<Log, LogError> {
        assert!(settings.segment_bytes >= SEGMENT_BYTES_MIN, "a segment has at least {SEGMENT_BYTES_MIN} bytes");
        assert!(settings.segment_bytes.is_multiple_of(u64::from(BLOCK_SIZE)), "a segment has whole blocks");
        let mut pool = Pool::open(&mut *engine, settings).map_err(failed)?;
        let Used { log: used, cold } = read_headers(&mut *engine, &mut pool)?;
        let Some(mut position) = first_position(from, &used, &pool)? else {
            for number in pool.numbers() {
                pool.add_free(number);
            }
            let empty = LogPosition { generation: 0, segment: 0, block: 0, sequence: 1, chain: 0 };
            return Ok(Log::at(engine, pool, None, empty, BTreeSet::new()));
        };
        let mut replayed = BTreeSet::new();
        loop {
            replayed.insert(pool.get(position.segment).expect("positions lie in segments").file);
            position = replay_segment(&mut *engine, &pool, position, replay)?;
            match next_segment(&mut *engine, &pool, &used, position)? {
                Some(next) => position = next,
                None => break,
            }
        }
        // Never used, or used only for what was cut off: free. The others may hold live blocks: the caller knows.
        for number in pool.numbers() {
            let generation = used.iter().find(|(_, segment)| **segment == number).map(|(generation, _)| *generation);
            let is_behind = generation.is_none_or(|generation| generation > position.generation);
            let is_cold = pool.get(number).is_some_and(|segment| segment.cold);
            if is_behind && !is_cold {
                pool.add_free(number);
            }
        }
        let segment = *pool.get(position.segment).expect("replayed just now");
        let active = Active { segment: position.segment, file: segment.file, blocks: segment.blocks };
        let target = match cold.last_key_value() {
            Some((generation, number)) => Some(cold_target(&mut *engine, &pool, *generation, *number)?),
            None => None,
        };
        let mut log = Log::at(engine, pool, Some(active), position, replayed);
        target.into_iter().for_each(|target| log.cold.resume(target));
        Ok(log)
    }
}

/// The segments that were ever used, by generation.
#[derive(Default)]
struct Used {
    log: BTreeMap<u64, u32>,
    cold: BTreeMap<u64, u32>,
}

/// Where the newest cold segment can be filled further: behind the last record that is, or seems to be, there.
fn cold_target(engine: &mut dyn IoEngine, pool: &Pool, generation: u64, number: u32) -> Result<Target, LogError> {
    let segment = *pool.get(number).expect("used segments exist");
    let mut next = SEGMENT_HEADER_BLOCKS;
    while next < segment.blocks {
        let window = read(engine, segment.file, next, WINDOW_BLOCKS.min(segment.blocks - next))?;
        let start = next;
        while let Some(bytes) = window.get((next - start) as usize * BLOCK..).filter(|bytes| !bytes.is_empty())
            && let Ok(header) = decode_header_of(bytes, generation)
            && let Ok(entries) = decode_entries(&header, bytes)
        {
            next += header.blocks() + entries.iter().map(Entry::data_blocks).sum::<u32>();
        }
        if next == start {
            break;
        }
    }
    Ok(Target {
        segment: number,
        file: segment.file,
        generation,
        next: next.min(segment.blocks),
        blocks: segment.blocks,
    })
}

/// Reads every segment's header.
fn read_headers(engine: &mut dyn IoEngine, pool: &mut Pool) -> Result<Used, LogError> {
    let mut used = Used::default();
    for number in pool.numbers() {
        let segment = pool.get(number).expect("numbers name segments");
        if segment.blocks == 0 {
            continue;
        }
        let block = read(engine, segment.file, 0, 1)?;
        match SegmentHeader::decode(&block) {
            Ok(Some(header)) if header.segment == number => {
                pool.set_generation(number, header.generation, header.cold);
                let kind = if header.cold { &mut used.cold } else { &mut used.log };
                kind.insert(header.generation, number);
            }
            Ok(_) => {}
            Err(version) => {
                let reason = format!("the segment has format {version}: use the newer program that wrote it");
                return Err(LogError::Corrupt { segment: number, block: 0, reason });
            }
        }
    }
    Ok(used)
}

fn first_position(
    from: Option<LogPosition>,
    used: &BTreeMap<u64, u32>,
    pool: &Pool,
) -> Result<Option<LogPosition>, LogError> {
    match from {
        // A checkpoint of a log that had no record yet.
        Some(from) if from.generation == 0 => Ok(beginning(used)),
        Some(from) => {
            if pool.get(from.segment).is_none() || used.get(&from.generation) != Some(&from.segment) {
                return Err(LogError::Corrupt {
                    segment: from.segment,
                    block: 0,
                    reason: format!(
                        "the checkpoint continues in generation {} of it, which is not there",
                        from.generation
                    ),
                });
            }
            Ok(Some(from))
        }
        None => Ok(beginning(used)),
    }
}

fn beginning(used: &BTreeMap<u64, u32>) -> Option<LogPosition> {
    let (generation, segment) = used.first_key_value()?;
    Some(LogPosition {
        generation: *generation,
        segment: *segment,
        block: SEGMENT_HEADER_BLOCKS,
        sequence: 1,
        chain: 0,
    })
}

/// Hands out the records of one segment from `position` on; returns where they end.
fn replay_segment(
    engine: &mut dyn IoEngine,
    pool: &Pool,
    mut position: LogPosition,
    replay: &mut dyn FnMut(Replayed),
) -> Result<LogPosition, LogError> {
    let segment = *pool.get(position.segment).expect("positions lie in segments");
    while position.block < segment.blocks {
        let count = WINDOW_BLOCKS.min(segment.blocks - position.block);
        let window = read(engine, segment.file, position.block, count)?;
        let mut at = 0;
        let start = position;
        while let Some(record) = whole_record(&window[at..], position)? {
            let mut first_block = position.block + record.header_blocks;
            for entry in record.entries {
                let blocks = entry.data_blocks();
                replay(Replayed { entry, segment: position.segment, first_block });
                first_block += blocks;
            }
            at += record.blocks as usize * BLOCK;
            position = LogPosition {
                block: position.block + record.blocks,
                sequence: position.sequence + 1,
                chain: record.checksum,
                ..position
            };
            if at >= window.len() {
                break;
            }
        }
        // Not even one: the largest record fits the window, so none is here. (A cut record shows again from its start.)
        if position == start {
            break;
        }
    }
    Ok(position)
}

/// Where the log goes on in another segment, if a whole record there continues it.
fn next_segment(
    engine: &mut dyn IoEngine,
    pool: &Pool,
    used: &BTreeMap<u64, u32>,
    position: LogPosition,
) -> Result<Option<LogPosition>, LogError> {
    for (generation, number) in used.range(position.generation + 1..) {
        let segment = pool.get(*number).expect("used segments exist");
        let next = LogPosition { generation: *generation, segment: *number, block: SEGMENT_HEADER_BLOCKS, ..position };
        let count = WINDOW_BLOCKS.min(segment.blocks.saturating_sub(SEGMENT_HEADER_BLOCKS));
        if count > 0 {
            let window = read(engine, segment.file, SEGMENT_HEADER_BLOCKS, count)?;
            if whole_record(&window, next)?.is_some() {
                return Ok(Some(next));
            }
        }
    }
    Ok(None)
}

struct WholeRecord {
    entries: Vec<Entry>,
    header_blocks: u32,
    blocks: u32,
    checksum: u32,
}

/// The record at the start of `bytes`, if it is the one that belongs at `position` and all of it is there.
fn whole_record(bytes: &[u8], position: LogPosition) -> Result<Option<WholeRecord>, LogError> {
    let header = match decode_header(bytes, position.generation, position.sequence, position.chain) {
        Ok(header) => header,
        Err(error @ RecordError::Version { .. }) => {
            return Err(LogError::Corrupt {
                segment: position.segment,
                block: position.block,
                reason: error.to_string(),
            });
        }
        Err(RecordError::NotHere | RecordError::Torn(_)) => return Ok(None),
    };
    let Ok(entries) = decode_entries(&header, bytes) else { return Ok(None) };
    let header_blocks = header.blocks();
    let data_blocks: u32 = entries.iter().map(Entry::data_blocks).sum();
    let blocks = header_blocks + data_blocks;
    let Some(data) = bytes.get(header_blocks as usize * BLOCK..blocks as usize * BLOCK) else { return Ok(None) };
    if !data_fits(&entries, data) {
        return Ok(None);
    }
    Ok(Some(WholeRecord { entries, header_blocks, blocks, checksum: header.checksum }))
}

/// Reads and waits; nothing else is under way during recovery.
fn read(engine: &mut dyn IoEngine, file: FileId, first_block: u32, count: u32) -> Result<AlignedBuffer, LogError> {
    let buffer = AlignedBuffer::zeroed(count as usize * BLOCK);
    let kind = IoKind::Read { offset: u64::from(first_block) * u64::from(BLOCK_SIZE), buffer };
    engine.submit(IoOp { token: 0, file, kind });
    let mut completions = Vec::new();
    while completions.is_empty() {
        engine.wait(LOOK, &mut completions).map_err(failed)?;
    }
    let completion = completions.pop().expect("waited for it");
    completion.result.map_err(failed)?;
    Ok(completion.buffer.expect("a read brings its buffer back"))
}

fn failed(error: io::Error) -> LogError {
    LogError::Io(error.to_string())
}
