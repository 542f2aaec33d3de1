//! The log as it lies in the segment files: every record in order, and where and why it ends.
//!
//! From the checkpoint on a record counts only if it continues the one before, as in recovery
//! ([`crate::log::recovery`]); that is where the log ends. Before the checkpoint, where segments were recycled and the
//! log has gaps, each segment is read from its first record on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use client_lib::BLOCK_SIZE;

use super::{InspectError, Shard};
use crate::io::is_loss;
use crate::log::LogPosition;
use crate::log::cold::COLD_SEQUENCE;
use crate::log::record::{
    Entry, RecordError, decode_entries, decode_header, decode_header_of, first_misfit, is_whole_of_its_version,
};
use crate::log::recovery::WINDOW_BLOCKS;
use crate::log::segment::{SEGMENT_BYTES_MIN, SEGMENT_HEADER_BLOCKS, SegmentHeader};

const BLOCK: usize = BLOCK_SIZE as usize;

/// A segment file.
#[derive(Clone, Debug)]
pub struct SegmentFile {
    /// Its number.
    pub number: u32,
    /// How many blocks it has.
    pub blocks: u32,
    /// When it was taken into use; `None` for never, or when nothing in it tells.
    pub generation: Option<u64>,
    /// Whether it holds copies of the cleaner instead of a part of the log.
    pub cold: bool,
    path: PathBuf,
}

/// A record, without its data.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it begins, its number, and the checksum of the one before.
    pub at: LogPosition,
    /// Its own checksum.
    pub checksum: u32,
    /// The blocks of its header and entries.
    pub header_blocks: u32,
    /// All its blocks.
    pub blocks: u32,
    /// What it records.
    pub entries: Vec<Entry>,
}

impl Record {
    /// Its entries, each with the first block of its data.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, u32)> {
        self.entries.iter().scan(self.at.block + self.header_blocks, |first_block, entry| {
            let of_this = *first_block;
            *first_block += entry.data_blocks();
            Some((entry, of_this))
        })
    }

    fn end(&self) -> LogPosition {
        let (block, sequence) = (self.at.block + self.blocks, self.at.sequence + 1);
        LogPosition { block, sequence, chain: self.checksum, ..self.at }
    }
}

/// What a walk over the log came to.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// Where the log ends and why there; `None` when no segment was ever used, or the walk was broken off.
    pub end: Option<(LogPosition, String)>,
    /// Segments with records that are no part of the log any more: what was cut off behind its end.
    pub cut: BTreeSet<u32>,
    /// What cannot be as it is.
    pub damage: Vec<String>,
}

/// What there is to read of the data of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// It is read and compared with its checksums.
    Verified,
    /// It is skipped.
    Skipped,
}

/// What becomes of a segment that the disk has lost.
const LOST: &str = "a node takes it for lost, and fetches what is needed of it from others (docs/damage.md)";

/// The segment files of a shard, by number.
///
/// # Errors
/// When they cannot be read.
pub fn files(shard: &Shard, damage: &mut Vec<String>) -> Result<Vec<SegmentFile>, InspectError> {
    let directory = shard.directory.join("segments");
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| InspectError::File { path, source }
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).map_err(failed(&directory))? {
        let path = entry.map_err(failed(&directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(number) = name.strip_suffix(".seg").and_then(|number| number.parse::<u32>().ok()) else { continue };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_loss(&error) => {
                damage.push(format!("segment {number} ({}) cannot be opened: {error}; {LOST}", path.display()));
                continue;
            }
            Err(error) => return Err(failed(&path)(error)),
        };
        let size = file.metadata().map_err(failed(&path))?.len();
        if size < SEGMENT_BYTES_MIN {
            damage.push(format!(
                "segment {number} ({}) has {size} bytes, and no segment has less than {SEGMENT_BYTES_MIN}: {LOST}",
                path.display()
            ));
        }
        let blocks = (size / u64::from(BLOCK_SIZE)) as u32;
        let mut first = vec![0; BLOCK];
        let is_read = blocks == 0 || file.read_exact_at(&mut first, 0).is_ok();
        let header = match SegmentHeader::decode(&first) {
            Ok(Some(header)) if header.segment != number => {
                damage.push(format!("segment {number}: its header is that of segment {}", header.segment));
                rebuilt(shard, number, blocks, &file)
            }
            Ok(None) => {
                if !is_read || first.iter().any(|byte| *byte != 0) {
                    damage.push(format!(
                        "segment {number}: its header is damaged; recovery takes it from what its records say"
                    ));
                }
                rebuilt(shard, number, blocks, &file)
            }
            Ok(header) => header,
            Err(version) => {
                damage.push(format!("segment {number} has format {version}: use the newer program that wrote it"));
                None
            }
        };
        let (generation, cold) = (header.map(|header| header.generation), header.is_some_and(|header| header.cold));
        files.insert(number, SegmentFile { number, blocks, generation, cold, path });
    }
    Ok(files.into_values().collect())
}

/// What the header of a segment said that has lost it, as recovery finds it.
fn rebuilt(shard: &Shard, number: u32, blocks: u32, file: &File) -> Option<SegmentHeader> {
    if let Some(header) = SegmentHeader::of_checkpoint(number, shard.checkpoint) {
        return Some(header);
    }
    let identity = shard.store.log_number().ok().flatten()?;
    let count = WINDOW_BLOCKS.min(blocks.saturating_sub(SEGMENT_HEADER_BLOCKS));
    let mut window = vec![0; count as usize * BLOCK];
    file.read_exact_at(&mut window, u64::from(SEGMENT_HEADER_BLOCKS) * u64::from(BLOCK_SIZE)).ok()?;
    SegmentHeader::of_records(number, &window, identity)
}

/// Shows every record of a cold segment to `visit`: the cleaner's copies, which are no part of the log. Returns the block behind the
/// last of them.
///
/// # Errors
/// When the segment file cannot be read.
pub fn walk_cold(file: &SegmentFile, data: Data, visit: &mut dyn FnMut(&Record)) -> Result<u32, InspectError> {
    let segment = Segment::open(file)?;
    let (block, generation) = (SEGMENT_HEADER_BLOCKS, file.generation.unwrap_or(0));
    let mut at = LogPosition { generation, segment: file.number, block, sequence: COLD_SEQUENCE, chain: 0 };
    while let Ok(record) = segment.record(at, data)? {
        visit(&record);
        at.block += record.blocks;
    }
    Ok(at.block)
}

/// Shows every record of the log to `visit`, in order, until that breaks off.
///
/// # Errors
/// When a segment file cannot be read.
pub fn walk(
    files: &[SegmentFile],
    checkpoint: Option<LogPosition>,
    data: Data,
    visit: &mut dyn FnMut(&Record) -> ControlFlow<()>,
) -> Result<Walked, InspectError> {
    let checkpoint = checkpoint.filter(|checkpoint| checkpoint.generation > 0);
    let mut walked = Walked::default();
    // What the next record must continue; not known before the first that is found.
    let beginning = LogPosition { generation: 0, segment: 0, block: 0, sequence: 1, chain: 0 };
    let mut expected = if checkpoint.is_none() { Some(beginning) } else { None };
    let of_log = files.iter().filter(|file| !file.cold);
    let mut used: Vec<(u64, &SegmentFile)> =
        of_log.filter_map(|file| file.generation.map(|generation| (generation, file))).collect();
    used.sort_by_key(|(generation, _)| *generation);
    if let Some(LogPosition { generation, segment, .. }) = checkpoint
        && !used.iter().any(|(found, file)| (*found, file.number) == (generation, segment))
    {
        walked.damage.push(format!(
            "the checkpoint continues in generation {generation} of segment {segment}, which is not there"
        ));
    }
    for (generation, file) in used {
        let segment = Segment::open(file)?;
        let first = segment.first(generation)?;
        let target = checkpoint.filter(|checkpoint| checkpoint.generation == generation);
        if checkpoint.is_none_or(|checkpoint| generation > checkpoint.generation) {
            let goes_on = first.filter(|first| expected.is_some_and(|expected| follows(*first, expected)));
            let is_whole = match goes_on {
                Some(first) => segment.record(first, data)?.is_ok(),
                None => false,
            };
            if !is_whole {
                walked.cut.insert(file.number);
                continue;
            }
        } else if let (Some(first), Some(before)) = (first, expected)
            && generation == before.generation + 1
            && !follows(first, before)
        {
            walked.damage.push(format!(
                "segment {}, block {}: record {} does not continue record {}, the last whole one of segment {}",
                file.number,
                first.block,
                first.sequence,
                before.sequence.saturating_sub(1),
                before.segment
            ));
        }
        let Some(mut at) = first.or(target) else {
            walked
                .damage
                .push(format!("segment {}, block {SEGMENT_HEADER_BLOCKS}: no record begins here", file.number));
            continue;
        };
        let reason = loop {
            let fault = match target.filter(|target| at.block >= target.block) {
                Some(target) if at.block == target.block && at != target => {
                    Some("another record than the checkpoint's")
                }
                Some(target) if at.block > target.block && at.sequence <= target.sequence => {
                    Some("a record across the checkpoint's position")
                }
                _ => None,
            };
            if let (Some(fault), Some(target)) = (fault, target) {
                walked.damage.push(format!("segment {}, block {}: {fault}", file.number, at.block));
                at = target;
            }
            match segment.record(at, data)? {
                Ok(record) => {
                    if visit(&record).is_break() {
                        return Ok(walked);
                    }
                    at = record.end();
                }
                Err(reason) => match target.filter(|target| at.block < target.block) {
                    // What recovery never looks at again, but the map may point into.
                    Some(target) => {
                        walked.damage.push(format!("segment {}, block {}: {reason}", file.number, at.block));
                        at = target;
                    }
                    None => break reason,
                },
            }
        };
        expected = Some(at);
        walked.end = Some((at, reason));
    }
    Ok(walked)
}

fn follows(next: LogPosition, expected: LogPosition) -> bool {
    (next.sequence, next.chain) == (expected.sequence, expected.chain)
}

/// An open segment file.
struct Segment<'a> {
    file: &'a SegmentFile,
    bytes: File,
}

impl Segment<'_> {
    fn open(file: &SegmentFile) -> Result<Segment<'_>, InspectError> {
        let bytes = File::open(&file.path).map_err(|source| InspectError::File { path: file.path.clone(), source })?;
        Ok(Segment { file, bytes })
    }

    fn read(&self, first_block: u32, count: u32) -> Result<Vec<u8>, InspectError> {
        let mut blocks = vec![0; count as usize * BLOCK];
        let read = self.bytes.read_exact_at(&mut blocks, u64::from(first_block) * u64::from(BLOCK_SIZE));
        read.map_err(|source: io::Error| InspectError::File { path: self.file.path.clone(), source })?;
        Ok(blocks)
    }

    /// What the segment's first record says it is.
    fn first(&self, generation: u64) -> Result<Option<LogPosition>, InspectError> {
        if self.file.blocks <= SEGMENT_HEADER_BLOCKS {
            return Ok(None);
        }
        let header = decode_header_of(&self.read(SEGMENT_HEADER_BLOCKS, 1)?, generation).ok();
        Ok(header.map(|header| LogPosition {
            generation,
            segment: self.file.number,
            block: SEGMENT_HEADER_BLOCKS,
            sequence: header.sequence,
            chain: header.chain,
        }))
    }

    /// The record at `at`, or why there is none.
    fn record(&self, at: LogPosition, data: Data) -> Result<Result<Record, String>, InspectError> {
        if at.block >= self.file.blocks {
            return Ok(Err("the segment is full".to_owned()));
        }
        let left = self.file.blocks - at.block;
        let torn = |what| Ok(Err(RecordError::Torn(what).to_string()));
        let header = match decode_header(&self.read(at.block, 1)?, at.generation, at.sequence, at.chain) {
            Ok(header) => header,
            Err(RecordError::Version { .. })
                if !is_whole_of_its_version(&self.read(at.block, WINDOW_BLOCKS.min(left))?) =>
            {
                return torn("its checksum does not fit");
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        let header_blocks = header.blocks();
        if header_blocks > left {
            return torn("it ends beyond its segment");
        }
        let entries = match decode_entries(&header, &self.read(at.block, header_blocks)?) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let data_blocks: u32 = entries.iter().map(Entry::data_blocks).sum();
        let blocks = header_blocks + data_blocks;
        if blocks > left {
            return torn("it ends beyond its segment");
        }
        if data == Data::Verified
            && first_misfit(&entries, &self.read(at.block + header_blocks, data_blocks)?).is_some()
        {
            return torn("its data does not fit its checksums");
        }
        Ok(Ok(Record { at, checksum: header.checksum, header_blocks, blocks, entries }))
    }
}
