//! Opening a log: find the records after a position, hand them out in order, and be ready to append.
//!
//! The log ends at the first record that is not whole, in the segment where it should be or at the start of the
//! next. What lies behind was never reported durable, and the chain, with the number of the life that begins here, keeps it from ever
//! being taken for a continuation of what is written from here on. Data is verified too: a torn append can have a whole header.
//!
//! That holds for a crash, which takes only what was not synced. A disk that loses or alters what *was* synced leaves
//! the same picture, and to cut the log there would silently undo acked and flushed writes. So before the log is taken
//! to end at a record, [`super::proof`] looks for a later one that vouches for it. If there is one, the record is
//! damaged, and nothing is opened and nothing is changed. When only data is damaged and the log goes on behind it to
//! such a witness, the record is handed out all the same: its entries carry the checksums that keep the damaged blocks
//! from every reader.
//!
//! A segment's header only says what its records say too. Where it is damaged, or cannot be read, it is taken from the checkpoint or
//! from them and written anew. A block that cannot be read is one that was altered, but for one case: where the next record of
//! the log would lie, it may hide what was acked, and the log is not opened.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::BLOCK_SIZE;

use super::cold::ColdEnd;
use super::proof;
use super::reader::{Reader, write_header};
use super::record::{
    DATA_BLOCKS_MAX, ENTRIES_BYTES_MAX, Entry, Header, RecordError, decode_any_header, decode_entries, decode_header,
    first_misfit, is_whole_of_its_version,
};
use super::segment::{Pool, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BLOCKS, Segment, SegmentHeader, file_name};
use super::writer::{Active, Log};
use super::{LogError, LogPosition, LogSettings, Replayed};
use crate::io::IoEngine;

const BLOCK: usize = BLOCK_SIZE as usize;

/// Blocks read at a time: the largest record fits.
pub(crate) const WINDOW_BLOCKS: u32 = (ENTRIES_BYTES_MAX / BLOCK) as u32 + 1 + DATA_BLOCKS_MAX;

/// Blocks read at first, and where perhaps nothing is found: a short log is recovered without reading mebibytes.
pub(super) const LOOK_BLOCKS: u32 = 64;

/// The generation of a segment that holds live blocks and whose header cannot be read: older than all that are known.
const GENERATION_LOST: u64 = 1;

/// What is known of a log before it is opened.
#[derive(Debug)]
pub struct Known<'a> {
    /// The number that was given to the log when it began.
    pub identity: u64,
    /// A number for the life that begins, drawn anew each time: the first record of it may otherwise be, byte for byte, one that an earlier life
    /// laid out at the same place and that never became whole, and what lies behind that one would continue it.
    pub life: u16,
    /// The position of the last checkpoint, up to which the log was durable; `None`: from the beginning.
    pub from: Option<LogPosition>,
    /// The segments that held live blocks at that position: none of them was recycled since.
    pub live: &'a BTreeSet<u32>,
    /// How far the cold segment being filled was in use at that position; `None` where that was not kept.
    pub cold: Option<ColdEnd>,
}

impl Log {
    /// Opens the log in the engine's directory. Hands every record after `known.from` to `replay`, in order, and is
    /// then ready to append behind the last.
    ///
    /// # Errors
    /// `Damaged` when the log ends at a record that had been synced, `Unreadable` when it ends where nothing can be read; `Corrupt` when
    /// what `known.from` points to is gone or a newer program wrote here; `Io`. Nothing on disk has changed then.
    pub fn recover(
        mut engine: Box<dyn IoEngine>,
        settings: LogSettings,
        known: &Known<'_>,
        replay: &mut dyn FnMut(Replayed),
    ) -> Result<Log, LogError> {
        assert!(settings.segment_bytes >= SEGMENT_BYTES_MIN, "a segment has at least {SEGMENT_BYTES_MIN} bytes");
        assert!(settings.segment_bytes.is_multiple_of(u64::from(BLOCK_SIZE)), "a segment has whole blocks");
        let mut pool = Pool::open(&mut *engine, settings).map_err(|error| LogError::Io(error.to_string()))?;
        let mut recovery = Recovery {
            reader: Reader::new(&mut *engine, &[1, LOOK_BLOCKS, WINDOW_BLOCKS]),
            known,
            rebuilt: BTreeMap::new(),
            used: BTreeMap::new(),
            cold: BTreeMap::new(),
            filled: BTreeMap::new(),
            replayed: BTreeSet::new(),
            durable: known.from.map_or(0, |from| from.sequence - 1),
        };
        recovery.read_headers(&mut pool)?;
        pool.note_generation(known.cold.map_or(0, |cold| cold.generation));
        known.live.last().into_iter().for_each(|number| pool.note_number(*number));
        let position = recovery.run(&pool, replay)?;
        let target = recovery.cold_target(&pool)?;
        let Recovery { rebuilt, used, filled, replayed, durable, .. } = recovery;
        filled.last_key_value().into_iter().for_each(|(number, _)| pool.note_number(*number));
        // Never used, or used only for what was cut off: free. The others may hold live blocks: the caller knows.
        for number in pool.numbers() {
            let generation = used.iter().find(|(_, segment)| **segment == number).map(|(generation, _)| *generation);
            let is_behind = generation.is_none_or(|generation| generation > position.generation);
            let is_cold = pool.get(number).is_some_and(|segment| segment.cold);
            if !is_behind || is_cold {
                continue;
            }
            if generation.is_none() && (known.live.contains(&number) || filled.contains_key(&number)) {
                tracing::error!(
                    segment = number,
                    "the header of a segment that holds live blocks is damaged; what can be read of them is"
                );
                pool.set_generation(number, GENERATION_LOST, false);
            } else {
                pool.add_free(number);
            }
        }
        restore_headers(&mut *engine, &pool, rebuilt.values().copied())?;
        let active = pool.get(position.segment).filter(|_| position.generation > 0);
        // One that cannot be opened is full: the log would not be opened else.
        let active = active
            .and_then(|segment| Some(Active::resumed(position.segment, segment.file?, segment.blocks, position.block)));
        let files = replayed.iter().filter_map(|number| pool.get(*number)?.file).collect();
        let mut log = Log::at(engine, pool, active, position, files, (known.identity, known.life, durable));
        target.into_iter().for_each(|target| log.cold.resume(target));
        Ok(log)
    }
}

/// A recovery under way.
pub(super) struct Recovery<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) known: &'a Known<'a>,
    /// The headers that could not be read, by segment, as far as it is known what they said.
    rebuilt: BTreeMap<u32, SegmentHeader>,
    /// The segment of each generation of the log.
    pub(super) used: BTreeMap<u64, u32>,
    /// The cold segments by generation.
    pub(super) cold: BTreeMap<u64, u32>,
    /// The cold segments that the replayed records have moved blocks into, each with the block behind the last of them.
    pub(super) filled: BTreeMap<u32, u32>,
    /// The segments that the log has led through.
    pub(super) replayed: BTreeSet<u32>,
    /// The newest record that is known to be durable.
    durable: u64,
}

impl Recovery<'_> {
    /// Finds the generation of each segment that was ever used.
    fn read_headers(&mut self, pool: &mut Pool) -> Result<(), LogError> {
        let mut without = Vec::new();
        for number in pool.numbers() {
            let segment = *pool.get(number).expect("numbers name segments");
            let block = self.reader.read(number, segment, 0, 1)?;
            let header = SegmentHeader::decode(&block).map_err(|version| {
                let reason = format!("the segment has format {version}: use the newer program that wrote it");
                LogError::Corrupt { segment: number, block: 0, reason }
            })?;
            match header.filter(|header| header.segment == number) {
                Some(header) => self.take_header(pool, header),
                None => {
                    let is_read = self.reader.first_unreadable(number, 0, 1).is_none();
                    without.push((number, segment, is_read && block.iter().all(|byte| *byte == 0)));
                }
            }
            self.reader.give_back(block);
        }
        // The others first: a generation that one of them has is of nobody else.
        for (number, segment, is_blank) in without {
            let Some(header) = self.rebuild_header(number, segment, is_blank)? else { continue };
            if !self.used.contains_key(&header.generation) && !self.cold.contains_key(&header.generation) {
                self.take_header(pool, header);
                self.rebuilt.insert(number, header);
            }
        }
        Ok(())
    }

    fn take_header(&mut self, pool: &mut Pool, header: SegmentHeader) {
        pool.set_generation(header.segment, header.generation, header.cold);
        let kind = if header.cold { &mut self.cold } else { &mut self.used };
        kind.insert(header.generation, header.segment);
    }

    /// What the header of a segment said: the checkpoint knows it of its own segment, the records of theirs. `None` where neither
    /// tells; most `blank` segments were never used.
    fn rebuild_header(
        &mut self,
        number: u32,
        segment: Segment,
        is_blank: bool,
    ) -> Result<Option<SegmentHeader>, LogError> {
        if let Some(header) = SegmentHeader::of_checkpoint(number, self.known.from) {
            return Ok(Some(header));
        }
        let looks = if is_blank { &[LOOK_BLOCKS, WINDOW_BLOCKS][..] } else { &[WINDOW_BLOCKS] };
        for look in looks {
            let count = (*look).min(segment.blocks - SEGMENT_HEADER_BLOCKS);
            if count == 0 {
                return Ok(None);
            }
            let window = self.reader.read(number, segment, SEGMENT_HEADER_BLOCKS, count)?;
            let header = SegmentHeader::of_records(number, &window, self.known.identity);
            // One with many entries is longer than the first look.
            let begins = decode_any_header(&window).is_ok_and(|header| header.log == self.known.identity);
            self.reader.give_back(window);
            if header.is_some() || !begins {
                return Ok(header);
            }
        }
        Ok(None)
    }

    /// Hands out the records; returns where they end.
    fn run(&mut self, pool: &Pool, replay: &mut dyn FnMut(Replayed)) -> Result<LogPosition, LogError> {
        let Some(mut position) = self.first_position(pool)? else {
            let empty = LogPosition { generation: 0, segment: 0, block: 0, sequence: 1, chain: 0 };
            self.accept_end(pool, empty)?;
            return Ok(empty);
        };
        loop {
            self.replayed.insert(position.segment);
            position = self.replay_segment(pool, position, replay)?;
            match self.next_segment(pool, position)? {
                Some(next) => position = next,
                None => break,
            }
        }
        self.accept_end(pool, position)?;
        Ok(position)
    }

    fn first_position(&self, pool: &Pool) -> Result<Option<LogPosition>, LogError> {
        match self.known.from.filter(|from| from.generation > 0) {
            Some(from) => {
                if pool.get(from.segment).is_none() || self.used.get(&from.generation) != Some(&from.segment) {
                    return Err(LogError::Corrupt {
                        segment: from.segment,
                        block: 0,
                        reason: format!(
                            "the checkpoint continues in generation {} of it ({}), which is not there: what was acked since cannot be told; {}",
                            from.generation,
                            file_name(from.segment),
                            super::DAMAGE_ADVICE
                        ),
                    });
                }
                Ok(Some(from))
            }
            // No checkpoint, or one of a log that had no record yet.
            None => Ok(self.used.first_key_value().map(|(generation, segment)| LogPosition {
                generation: *generation,
                segment: *segment,
                block: SEGMENT_HEADER_BLOCKS,
                sequence: 1,
                chain: 0,
            })),
        }
    }

    /// Hands out the records of one segment from `position` on; returns where they end.
    fn replay_segment(
        &mut self,
        pool: &Pool,
        mut position: LogPosition,
        replay: &mut dyn FnMut(Replayed),
    ) -> Result<LogPosition, LogError> {
        let segment = *pool.get(position.segment).expect("positions lie in segments");
        let mut wanted = LOOK_BLOCKS;
        while position.block < segment.blocks {
            let count = wanted.min(segment.blocks - position.block);
            let window = self.reader.read(position.segment, segment, position.block, count)?;
            let mut at = 0;
            let start = position;
            while let Some(record) = self.record(pool, &window[at..], position)? {
                if record.misfit.is_some() && !self.is_vouched_for(pool, position, &record)? {
                    break;
                }
                self.durable = self.durable.max(record.durable);
                let mut first_block = position.block + record.header_blocks;
                for entry in record.entries {
                    let blocks = entry.data_blocks();
                    if let Entry::Relocated { segment, block, moves, .. } = &entry {
                        let end = self.filled.entry(*segment).or_default();
                        *end = (*end).max(block.saturating_add(moves.len() as u32));
                    }
                    replay(Replayed { entry, segment: position.segment, first_block });
                    first_block += blocks;
                }
                at += record.blocks as usize * BLOCK;
                position = after(position, record.blocks, record.checksum);
                if at >= window.len() {
                    break;
                }
            }
            // Not even one: none is here if the largest record fits the window, or none begins here. (A record that the
            // window cuts shows again from its start.)
            let begins = decode_header(&window, start.generation, start.sequence, start.chain).is_ok();
            self.reader.give_back(window);
            if position == start && (wanted == WINDOW_BLOCKS || !begins) {
                break;
            }
            wanted = WINDOW_BLOCKS;
        }
        Ok(position)
    }

    /// Where the log goes on in another segment, if a record there continues it.
    fn next_segment(&mut self, pool: &Pool, position: LogPosition) -> Result<Option<LogPosition>, LogError> {
        let later: Vec<(u64, u32)> =
            self.used.range(position.generation + 1..).map(|(generation, number)| (*generation, *number)).collect();
        for (generation, number) in later {
            let segment = *pool.get(number).expect("used segments exist");
            let next = LogPosition { generation, segment: number, block: SEGMENT_HEADER_BLOCKS, ..position };
            // Most are of another life, which shows in the first block.
            let count = WINDOW_BLOCKS.min(segment.blocks.saturating_sub(SEGMENT_HEADER_BLOCKS));
            if self.header_at(pool, next)?.is_none() {
                continue;
            }
            let window = self.reader.read(number, segment, SEGMENT_HEADER_BLOCKS, count)?;
            let continues = match self.record(pool, &window, next)? {
                Some(record) => record.misfit.is_none() || self.is_vouched_for(pool, next, &record)?,
                None => false,
            };
            self.reader.give_back(window);
            if continues {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    /// The log seems to end at `position`.
    ///
    /// # Errors
    /// `Damaged` when a later record proves that it went on; `Unreadable` when it may go on in a block that cannot be read.
    fn accept_end(&mut self, pool: &Pool, position: LogPosition) -> Result<(), LogError> {
        let continuations = self.possible_continuations(pool, position);
        // First, so that the file is named that may have what is missing.
        let is_lost = |at: &&LogPosition| pool.get(at.segment).is_some_and(|segment| segment.file.is_none());
        for at in continuations.iter().filter(is_lost) {
            if let Some(block) = self.unreadable_at(pool, *at)? {
                return Err(LogError::Unreadable { segment: at.segment, block, sequence: at.sequence });
            }
        }
        if let Some(proof) = proof::find(self, pool, position)? {
            return Err(LogError::Damaged {
                segment: position.segment,
                block: position.block,
                sequence: position.sequence,
                proof_segment: proof.segment,
                proof_block: proof.block,
                durable: proof.durable,
            });
        }
        for at in continuations {
            if let Some(block) = self.unreadable_at(pool, at)? {
                return Err(LogError::Unreadable { segment: at.segment, block, sequence: at.sequence });
            }
        }
        Ok(())
    }

    /// Where the record that belongs at `position` can be: there, or, if that has no room for the largest, at the start of a
    /// segment that was free at the checkpoint.
    fn possible_continuations(&self, pool: &Pool, position: LogPosition) -> Vec<LogPosition> {
        let active = pool.get(position.segment).filter(|_| position.generation > 0);
        let room = active.map_or(0, |segment| segment.blocks.saturating_sub(position.block));
        let mut all: Vec<LogPosition> = active.map(|_| position).into_iter().collect();
        if room < WINDOW_BLOCKS {
            let was_free = |number: &u32| !self.replayed.contains(number) && !self.known.live.contains(number);
            let is_later = |number: &u32| {
                // A header that is taken from records may be one of an earlier life, if it is the newest that cannot be read.
                self.rebuilt.contains_key(number)
                    || pool.get(*number).is_some_and(|segment| {
                        !segment.cold && (segment.generation == 0 || segment.generation > position.generation)
                    })
            };
            let starts = pool.numbers().into_iter().filter(was_free).filter(is_later);
            all.extend(starts.map(|segment| LogPosition { segment, block: SEGMENT_HEADER_BLOCKS, ..position }));
        }
        all
    }

    /// The first block that cannot be read of what may be the record that belongs at `at`, in whatever generation.
    fn unreadable_at(&mut self, pool: &Pool, at: LogPosition) -> Result<Option<u32>, LogError> {
        let segment = *pool.get(at.segment).expect("positions lie in segments");
        if at.block >= segment.blocks {
            // Behind its end only if the file was cut off.
            return Ok((at.block > segment.blocks).then_some(segment.blocks));
        }
        let room = segment.blocks - at.block;
        let first = self.reader.read(at.segment, segment, at.block, 1)?;
        let begins = decode_any_header(&first).ok().filter(|header| {
            (header.log, header.sequence, header.chain) == (self.known.identity, at.sequence, at.chain)
        });
        self.reader.give_back(first);
        let count = if begins.is_some() { WINDOW_BLOCKS.min(room) } else { 1 };
        let whole = self.reader.read(at.segment, segment, at.block, count)?;
        // No record was ever written over the end of its segment: the file was cut off.
        let ends_beyond = begins.is_some_and(|header| {
            let data =
                decode_entries(&header, &whole).map(|entries| entries.iter().map(Entry::data_blocks).sum::<u32>());
            header.blocks() + data.unwrap_or(0) > room
        });
        self.reader.give_back(whole);
        if ends_beyond {
            return Ok(Some(segment.blocks));
        }
        Ok(self.reader.first_unreadable(at.segment, at.block, count))
    }

    /// Whether `record` at `position`, whose entries are whole and whose data is not, had been synced. It had if the log
    /// that continues it comes to a record that says so. That there is one anywhere is not enough: a torn record stays
    /// behind at a segment's end when the next one was too large for the room there and went to another segment.
    fn is_vouched_for(&mut self, pool: &Pool, position: LogPosition, record: &Record) -> Result<bool, LogError> {
        let mut at = after(position, record.blocks, record.checksum);
        loop {
            let mut found = self.header_at(pool, at)?.map(|found| (at, found));
            if found.is_none() {
                let later: Vec<LogPosition> = self
                    .used
                    .range(at.generation + 1..)
                    .map(|(generation, segment)| LogPosition {
                        generation: *generation,
                        segment: *segment,
                        block: SEGMENT_HEADER_BLOCKS,
                        ..at
                    })
                    .collect();
                for next in later {
                    found = self.header_at(pool, next)?.map(|found| (next, found));
                    if found.is_some() {
                        break;
                    }
                }
            }
            match found {
                Some((_, (header, _))) if header.durable >= position.sequence => break,
                Some((found, (header, blocks))) => at = after(found, blocks, header.checksum),
                None => return Ok(false),
            }
        }
        tracing::error!(
            segment = position.segment,
            block = position.block + record.misfit.unwrap_or_default(),
            sequence = position.sequence,
            "data that had been synced is damaged in the log; its blocks are fetched from another node or fail"
        );
        Ok(true)
    }

    /// The header of the record that belongs at `position`, and the record's blocks, if its entries are whole.
    fn header_at(&mut self, pool: &Pool, position: LogPosition) -> Result<Option<(Header, u32)>, LogError> {
        let segment = *pool.get(position.segment).expect("positions lie in segments");
        if position.block >= segment.blocks {
            return Ok(None);
        }
        let first = self.reader.read(position.segment, segment, position.block, 1)?;
        let header = match decode_header(&first, position.generation, position.sequence, position.chain) {
            Ok(header) => header,
            Err(error) => return self.refuse_newer(pool, &error, position).map(|()| None),
        };
        self.reader.give_back(first);
        if header.log != self.known.identity || header.blocks() > segment.blocks - position.block {
            return Ok(None);
        }
        let whole = self.reader.read(position.segment, segment, position.block, header.blocks())?;
        let Ok(entries) = decode_entries(&header, &whole) else { return Ok(None) };
        Ok(Some((header, header.blocks() + entries.iter().map(Entry::data_blocks).sum::<u32>())))
    }

    /// The record at the start of `bytes`, if it is the one that belongs at `position` and its entries are whole.
    fn record(&mut self, pool: &Pool, bytes: &[u8], position: LogPosition) -> Result<Option<Record>, LogError> {
        let header = match decode_header(bytes, position.generation, position.sequence, position.chain) {
            Ok(header) if header.log == self.known.identity => header,
            Ok(_) => return Ok(None),
            Err(error) => return self.refuse_newer(pool, &error, position).map(|()| None),
        };
        let Ok(entries) = decode_entries(&header, bytes) else { return Ok(None) };
        let header_blocks = header.blocks();
        let blocks = header_blocks + entries.iter().map(Entry::data_blocks).sum::<u32>();
        let Some(data) = bytes.get(header_blocks as usize * BLOCK..blocks as usize * BLOCK) else { return Ok(None) };
        let misfit = first_misfit(&entries, data).map(|index| header_blocks + index);
        Ok(Some(Record { entries, header_blocks, blocks, checksum: header.checksum, durable: header.durable, misfit }))
    }

    /// Fails if `error` says that the record at `position` is of another version, and it is whole: a newer program wrote it. Else the log
    /// may end there: the version of a record that does not fit its checksum is nobody's.
    fn refuse_newer(&mut self, pool: &Pool, error: &RecordError, position: LogPosition) -> Result<(), LogError> {
        match error {
            RecordError::Version { .. } => {}
            RecordError::NotHere | RecordError::Torn(_) => return Ok(()),
        }
        let segment = *pool.get(position.segment).expect("positions lie in segments");
        let count = WINDOW_BLOCKS.min(segment.blocks - position.block);
        let bytes = self.reader.read(position.segment, segment, position.block, count)?;
        let is_whole = is_whole_of_its_version(&bytes);
        self.reader.give_back(bytes);
        if !is_whole {
            return Ok(());
        }
        Err(LogError::Corrupt { segment: position.segment, block: position.block, reason: error.to_string() })
    }
}

/// Writes those of `headers` anew whose segments are in use. One that cannot be written is rebuilt again at the next start.
fn restore_headers(
    engine: &mut dyn IoEngine,
    pool: &Pool,
    headers: impl Iterator<Item = SegmentHeader>,
) -> Result<(), LogError> {
    for header in headers.filter(|header| !pool.is_free(header.segment)) {
        let Some(segment_file) = pool.get(header.segment).and_then(|segment| segment.file) else { continue };
        let file = file_name(header.segment);
        match write_header(engine, segment_file, header)? {
            Ok(()) => {
                tracing::error!(
                    segment = header.segment,
                    file,
                    generation = header.generation,
                    "the header of a segment was damaged: it was written anew from what the checkpoint or its records say"
                );
            }
            Err(error) => {
                tracing::error!(
                    segment = header.segment, file, generation = header.generation, %error,
                    "the header of a segment is damaged and cannot be written anew; the checkpoint or its records say what it said"
                );
            }
        }
    }
    Ok(())
}

/// Behind a record of `blocks` at `position`.
fn after(position: LogPosition, blocks: u32, checksum: u32) -> LogPosition {
    LogPosition { block: position.block + blocks, sequence: position.sequence + 1, chain: checksum, ..position }
}

/// A record whose header and entries are whole.
struct Record {
    entries: Vec<Entry>,
    header_blocks: u32,
    blocks: u32,
    checksum: u32,
    durable: u64,
    /// The first of its blocks whose data does not fit its checksum.
    misfit: Option<u32>,
}
