//! Checkpoints: the state at one durable position of the log, written to the map store beside the running shard.
//!
//! A checkpoint is taken when a sync begins and written when it is done (see [`super::sync`]), so that it never points
//! to what a power cut could take away; entries are applied and acked meanwhile. On the shard's thread it takes
//! references to dirty pages and encodes what is small; a committer thread encodes the pages and writes one synced batch.
//! When that is done, segments that were free of references when it was taken go back to the log. A batch that could not
//! be written is kept and tried again as it is.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::{Buf, BufMut};
use client_lib::{BLOCK_SIZE, VolumeId};
use tokio::time::Instant;

use super::core::Core;
use super::handle::StoreError;
use super::run::Reply;
use super::sync::Done;
use crate::io::Bell;
use crate::log::{ColdEnd, Entry, LogPosition, SegmentInfo};
use crate::map::store::{Change, MapError, MapStore};
#[cfg(test)]
use crate::simulation::rules;
use crate::volume::record;

/// Changed chunks of layers that make a checkpoint begin: with a page's size, some mebibytes.
const LAYER_CHUNKS_MAX: usize = 2048;
/// Pause before a batch that could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a batch is tried that fails for another reason than want of space, each time with the store opened anew; then
/// the shard takes no more writes: what it logs would only make the next start longer, and segments never come free.
const TRIES_MAX: u32 = 3;

/// Blocks whose loss is to be noticed when a [rule](rules::Rule::SegmentsAreEmptied) is broken.
#[cfg(test)]
const NEEDED_FEW: u64 = 100;

type Batch = Vec<Change>;
type Outcome = Result<(), (MapError, Batch)>;

/// A batch on its way to the store.
#[derive(Debug)]
enum Committing {
    /// Nothing is on its way.
    Idle,
    /// To be taken when the next sync begins.
    Waiting,
    /// Taken; `free` are the segments that it frees. Waiting for the sync.
    Taken { batch: Batch, free: Vec<u32> },
    /// With the committer.
    Running { free: Vec<u32> },
    /// Failed, to be tried again.
    Failed { batch: Batch, free: Vec<u32>, at: Instant },
}

/// Checkpoints of a shard.
#[derive(Debug)]
pub(super) struct Checkpoints {
    state: Committing,
    wanted: bool,
    /// Who waits for a checkpoint that begins from now on.
    waiting: Vec<Reply<()>>,
    /// Who waits for the one under way.
    served: Vec<Reply<()>>,
    log_bytes: u64,
    log_bytes_max: u64,
    log_bytes_total: u64,
    last_outcome: Result<(), StoreError>,
    /// Tries in a row that failed for another reason than want of space.
    tries: u32,
    is_final: bool,
    written: u64,
    failed: u64,
    jobs: Option<Sender<Batch>>,
    results: Receiver<Outcome>,
    committer: Option<std::thread::JoinHandle<()>>,
    /// Where batches go without a committer: a store in memory takes no time, and simulations shall not depend on when
    /// a thread gets its turn.
    in_place: Option<(MapStore, Sender<Outcome>)>,
}

impl Checkpoints {
    /// Starts the committer, which rings `bell` when it has finished something.
    pub(super) fn start(store: MapStore, log_bytes_max: u64, bell: Arc<Bell>) -> std::io::Result<Checkpoints> {
        let (jobs, batches) = channel::<Batch>();
        let (done, results) = channel();
        if store.is_in_memory() {
            return Ok(Checkpoints::new(log_bytes_max, results, None, None, Some((store, done))));
        }
        let committer = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || {
            let mut has_failed = false;
            for batch in batches {
                let result = if has_failed { store.reopen() } else { Ok(()) };
                let result = result.and_then(|()| store.commit(&batch)).map_err(|error| (error, batch));
                has_failed = result.is_err();
                if done.send(result).is_err() {
                    return;
                }
                bell.ring();
            }
            if !has_failed && let Err(error) = store.write_out() {
                tracing::warn!(%error, "the block map is not written out; the next start does that");
            }
        })?;
        Ok(Checkpoints::new(log_bytes_max, results, Some(jobs), Some(committer), None))
    }

    fn new(
        log_bytes_max: u64,
        results: Receiver<Outcome>,
        jobs: Option<Sender<Batch>>,
        committer: Option<std::thread::JoinHandle<()>>,
        in_place: Option<(MapStore, Sender<Outcome>)>,
    ) -> Checkpoints {
        Checkpoints {
            state: Committing::Idle,
            wanted: false,
            waiting: Vec::new(),
            served: Vec::new(),
            log_bytes: 0,
            log_bytes_max,
            log_bytes_total: 0,
            last_outcome: Ok(()),
            tries: 0,
            is_final: false,
            written: 0,
            failed: 0,
            jobs,
            results,
            committer,
            in_place,
        }
    }

    /// How many were written since the start, and how many attempts failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.written, self.failed)
    }

    /// Asks for a checkpoint of everything applied by now.
    pub(super) fn request(&mut self, reply: Option<Reply<()>>) {
        self.wanted = true;
        self.waiting.extend(reply);
    }

    /// Asks for one unless one is on its way.
    pub(super) fn request_if_idle(&mut self) {
        self.wanted |= matches!(self.state, Committing::Idle);
    }

    /// An entry was applied.
    pub(super) fn note_appended(&mut self, entry: &Entry) {
        // A block for the header; entries that share a record are counted too high, which only makes it earlier.
        let bytes = u64::from(entry.data_blocks() + 1) * u64::from(BLOCK_SIZE);
        self.log_bytes += bytes;
        self.log_bytes_total += bytes;
    }

    /// Bytes appended since the start.
    pub(super) fn log_bytes_total(&self) -> u64 {
        self.log_bytes_total
    }

    /// Whether the last checkpoint could not be written.
    pub(super) fn is_failing(&self) -> bool {
        self.last_outcome.is_err()
    }

    /// Whether one is on its way to the store.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.state, Committing::Waiting | Committing::Taken { .. } | Committing::Running { .. })
    }

    /// Whether the one on its way frees segments.
    pub(super) fn will_free(&self) -> bool {
        match &self.state {
            Committing::Taken { free, .. } | Committing::Running { free } => !free.is_empty(),
            _ => false,
        }
    }

    /// Whether one should begin now.
    pub(super) fn is_due(&self) -> bool {
        match &self.state {
            Committing::Idle => self.wanted,
            Committing::Failed { at, .. } => Instant::now() >= *at,
            Committing::Waiting | Committing::Taken { .. } | Committing::Running { .. } => false,
        }
    }

    /// Called when everything else is done: begins the last checkpoint, then tells how it went.
    pub(super) fn final_outcome(&mut self) -> Option<Result<(), StoreError>> {
        if !self.is_final {
            self.is_final = true;
            self.wanted = true;
        }
        match &self.state {
            Committing::Idle if !self.wanted => Some(self.last_outcome.clone()),
            Committing::Failed { .. } => Some(self.last_outcome.clone()),
            _ => None,
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

impl Core {
    /// Takes note of finished checkpoints and begins one when it is time.
    pub(super) fn checkpoint_step(&mut self) {
        self.take_checkpoint_results();
        if self.failed.is_some() {
            return;
        }
        let dirty = |volume| self.volumes.get(&volume).map_or(0, |run| run.state.layers.dirty_chunks());
        let layer_chunks = self.touched.count_chunks(dirty);
        if self.map.cache.wants_checkpoint()
            || self.checkpoints.log_bytes >= self.checkpoints.log_bytes_max
            || layer_chunks >= LAYER_CHUNKS_MAX
        {
            self.checkpoints.wanted = true;
        }
        if !self.checkpoints.is_due() {
            return;
        }
        match std::mem::replace(&mut self.checkpoints.state, Committing::Idle) {
            Committing::Failed { batch, free, .. } => self.commit(batch, free),
            _ => {
                self.checkpoints.state = Committing::Waiting;
                self.syncs.wait(VolumeId(0), Done::Checkpoint);
            }
        }
    }

    /// Takes note of finished checkpoints.
    pub(super) fn take_checkpoint_results(&mut self) {
        while let Ok(result) = self.checkpoints.results.try_recv() {
            self.committed(result);
        }
    }

    /// Takes the checkpoint of everything applied, which is everything that the log has reported done. Returns whether it
    /// did.
    pub(super) fn take_checkpoint(&mut self) -> bool {
        self.checkpoints.state = Committing::Idle;
        if self.failed.is_some() {
            // An entry may have been applied in part; and nothing more is written.
            return false;
        }
        let position = self.log.position();
        self.checkpoints.wanted = false;
        self.checkpoints.log_bytes = 0;
        self.checkpoints.served = std::mem::take(&mut self.checkpoints.waiting);
        let mut batch: Batch = self.forgotten.drain(..).map(Change::Forget).collect();
        batch.extend(self.map.forgotten.drain(..).map(Change::ForgetMap));
        batch.push(Change::Position(encode_position(&position)));
        // Where none is filled, what was kept of the last one stays true.
        batch.extend(self.log.cold_end().map(|end| Change::ColdEnd(encode_cold_end(&end))));
        self.map.cache.begin_checkpoint(&mut batch);
        for run in self.volumes.values_mut() {
            record::checkpoint(&mut run.state, &mut batch);
        }
        self.touched.checkpointed();
        batch.extend(self.scrub.take_changes());
        let changed = self.map.usage.take_changed();
        batch.extend(changed.into_iter().map(|(map, segment, live)| Change::Usage(map, segment, live)));
        let aliases = self.map.usage.take_changed_aliases();
        batch.extend(aliases.into_iter().map(|(segment, aliases)| Change::Aliases(segment, aliases)));
        let free = self.freeable().collect();
        self.checkpoints.state = Committing::Taken { batch, free };
        true
    }

    /// The segments that a checkpoint taken now frees.
    pub(super) fn freeable(&self) -> impl Iterator<Item = u32> + '_ {
        let position = self.log.position();
        // A segment of the log may have entries under way until the log is beyond it; a cold one is pinned meanwhile.
        let may_go = move |info: &SegmentInfo| {
            !info.active && !info.free && (info.cold || info.generation < position.generation)
        };
        #[cfg(not(test))]
        let unneeded = |segment: &u32| self.map.usage.is_free(*segment);
        #[cfg(test)]
        let unneeded = |segment: &u32| {
            let few = if rules::holds(rules::Rule::SegmentsAreEmptied) { 0 } else { NEEDED_FEW };
            let usage = &self.map.usage;
            usage.is_free(*segment) || (!usage.is_pinned(*segment) && usage.needed(*segment) < few)
        };
        self.log.segments().into_iter().filter(may_go).map(|info| info.segment).filter(unneeded)
    }

    /// Nothing is written any more, so nobody need wait for a checkpoint that has not begun.
    pub(super) fn refuse_checkpoints(&mut self, error: &StoreError) {
        if !matches!(self.checkpoints.state, Committing::Running { .. }) {
            self.checkpoints.waiting.append(&mut self.checkpoints.served);
        }
        for reply in self.checkpoints.waiting.drain(..) {
            drop(reply.send(Err(error.clone())));
        }
    }

    /// What the checkpoint holds is durable.
    pub(super) fn commit_checkpoint(&mut self) {
        let Committing::Taken { batch, free } = std::mem::replace(&mut self.checkpoints.state, Committing::Idle) else {
            panic!("a checkpoint is to be written that was not taken");
        };
        self.commit(batch, free);
    }

    /// What the checkpoint holds, or would have held, is not durable: the log has failed.
    pub(super) fn checkpoint_failed(&mut self, error: StoreError) {
        self.checkpoints.state = Committing::Idle;
        self.checkpoints.wanted = false;
        self.checkpoints.last_outcome = Err(error.clone());
        for reply in self.checkpoints.served.drain(..).chain(self.checkpoints.waiting.drain(..)) {
            drop(reply.send(Err(error.clone())));
        }
    }

    fn commit(&mut self, batch: Batch, free: Vec<u32>) {
        self.checkpoints.state = Committing::Running { free };
        if let Some((store, done)) = &self.checkpoints.in_place {
            let result = store.commit(&batch).map_err(|error| (error, batch));
            return drop(done.send(result));
        }
        let sent = self.checkpoints.jobs.as_ref().is_some_and(|jobs| jobs.send(batch).is_ok());
        assert!(sent, "the checkpoint thread lives as long as the shard");
    }

    fn committed(&mut self, result: Outcome) {
        let Committing::Running { free } = std::mem::replace(&mut self.checkpoints.state, Committing::Idle) else {
            panic!("a checkpoint finished that was not under way");
        };
        let outcome = match result {
            Ok(()) => {
                self.map.cache.end_checkpoint();
                self.checkpoints.tries = 0;
                self.checkpoints.written += 1;
                for segment in free {
                    self.log.free(segment);
                }
                Ok(())
            }
            Err((error, batch)) => {
                tracing::error!(%error, "a checkpoint could not be written; it is tried again");
                self.checkpoints.failed += 1;
                self.checkpoints.tries = if error.is_out_of_space() { 0 } else { self.checkpoints.tries + 1 };
                if self.checkpoints.tries >= TRIES_MAX {
                    self.fail(&format!("the block map cannot be written: {error}"));
                }
                self.checkpoints.state = Committing::Failed { batch, free, at: Instant::now() + RETRY_PAUSE };
                Err(StoreError::from(error))
            }
        };
        // The same batch is tried until there is room: whoever waits for one behind it is told as well.
        let late = if outcome.is_err() { std::mem::take(&mut self.checkpoints.waiting) } else { Vec::new() };
        for reply in self.checkpoints.served.drain(..).chain(late) {
            drop(reply.send(outcome.clone()));
        }
        self.checkpoints.last_outcome = outcome;
    }
}

/// A value with its checksum behind it.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.put_u32_le(crc32fast::hash(&bytes));
    bytes
}

/// A value without its checksum, if it fits that.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (value, checksum) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(value).to_le_bytes() == *checksum).then_some(value)
}

/// A position as a value: 28 bytes and a checksum.
fn encode_position(position: &LogPosition) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.put_u64_le(position.generation);
    bytes.put_u32_le(position.segment);
    bytes.put_u32_le(position.block);
    bytes.put_u64_le(position.sequence);
    bytes.put_u32_le(position.chain);
    with_checksum(bytes)
}

/// The position of a value.
///
/// # Errors
/// When it is not one.
pub(crate) fn decode_position(bytes: &[u8]) -> Result<LogPosition, MapError> {
    let mut bytes = checked(bytes).filter(|bytes| bytes.len() == 28).ok_or(MapError::Position)?;
    Ok(LogPosition {
        generation: bytes.get_u64_le(),
        segment: bytes.get_u32_le(),
        block: bytes.get_u32_le(),
        sequence: bytes.get_u64_le(),
        chain: bytes.get_u32_le(),
    })
}

/// How far a cold segment is in use as a value: 16 bytes and a checksum.
fn encode_cold_end(end: &ColdEnd) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.put_u64_le(end.generation);
    bytes.put_u32_le(end.segment);
    bytes.put_u32_le(end.block);
    with_checksum(bytes)
}

/// What such a value says.
///
/// # Errors
/// When it is not one.
pub(crate) fn decode_cold_end(bytes: &[u8]) -> Result<ColdEnd, MapError> {
    let mut bytes = checked(bytes).filter(|bytes| bytes.len() == 16).ok_or(MapError::ColdEnd)?;
    Ok(ColdEnd { generation: bytes.get_u64_le(), segment: bytes.get_u32_le(), block: bytes.get_u32_le() })
}

#[cfg(test)]
mod golden {
    use super::*;

    #[test]
    fn the_end_of_a_cold_segment_has_these_bytes() {
        let end = ColdEnd { generation: 0x0102, segment: 0x0304, block: 0x0506 };
        let kept = crate::golden::check("cold-end.hex", &encode_cold_end(&end));
        assert_eq!(decode_cold_end(&kept).expect("decodes"), end);
        for at in 0..kept.len() {
            let mut damaged = kept.clone();
            damaged[at] ^= 1;
            assert!(decode_cold_end(&damaged).is_err(), "byte {at}");
            assert!(decode_cold_end(&kept[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_log_position_has_these_bytes() {
        let position =
            LogPosition { generation: 0x0102, segment: 0x0304, block: 0x0506, sequence: 0x0708, chain: 0xdead_beef };
        let kept = crate::golden::check("log-position.hex", &encode_position(&position));
        assert_eq!(decode_position(&kept).expect("decodes"), position);
        for at in 0..kept.len() {
            let mut damaged = kept.clone();
            damaged[at] ^= 1;
            assert!(decode_position(&damaged).is_err(), "byte {at}");
            assert!(decode_position(&kept[..at]).is_err(), "cut at {at}");
        }
    }
}
