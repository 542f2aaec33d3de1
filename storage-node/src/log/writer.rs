//! The log in use: group commit, ordered completion, syncs shared by all who wait.
//!
//! Entries queue until an append may start; what has gathered by then goes out as one record. With one writer that
//! is one entry per record, with many it is many, without a timer. At most [`APPENDS_MAX`] appends are under way.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use client_lib::BLOCK_SIZE;

use super::cold::Cold;
use super::foresight::Foresight;
use super::parts::Parts;
use super::record::{DATA_BLOCKS_MAX, ENTRIES_BYTES_MAX, Entry, HEADER_BYTES, Stamp, encode};
use super::segment::{COLD_SEGMENTS, Pool, RESERVED_SEGMENTS, SEGMENT_HEADER_BLOCKS, SegmentHeader};
use super::{Event, LogError, LogPosition, Placed, Queued, SegmentInfo, Traffic, Turns};
use crate::io::buffer::AlignedBuffer;
use crate::io::{Completions, FileId, IoCompletion, IoEngine, IoKind, IoOp};

/// Appends under way at once. Two keep the device busy while the next one gathers; more would only make records
/// smaller.
const APPENDS_MAX: usize = 2;

/// The share of the last segment that only entries without data may use, so that TRIM, handover, shutdown and the
/// cleaner's moves work on a full disk: as many moves as it takes to gain a whole segment fit.
const RESERVE_DIVISOR: u32 = 16;
/// The share of that segment that only moves, and what is vital, may use.
const MOVES_DIVISOR: u32 = 64;
/// The share of that segment that is for what is vital alone.
const VITAL_DIVISOR: u32 = 256;
/// The share of the last segment that is for repairs of damaged blocks, beside the other: a segment that damage alone keeps in use comes free by
/// them. When it is used up, they are refused like data, and no other entry has lost anything by them.
const REPAIRS_DIVISOR: u32 = 16;
const _: () = assert!(REPAIRS_DIVISOR > 2, "most of a segment is for data");

const BLOCK: usize = BLOCK_SIZE as usize;

const TOKEN_KIND_SHIFT: u32 = 56;
const TOKEN_APPEND: u64 = 1;
const TOKEN_SYNC: u64 = 2;
const TOKEN_READ: u64 = 3;
const TOKEN_MAKE: u64 = 4;
pub(super) const TOKEN_COPY: u64 = 5;

pub(super) fn token(kind: u64, number: u64) -> u64 {
    (kind << TOKEN_KIND_SHIFT) | number
}

/// An append under way.
#[derive(Debug)]
struct Flight {
    position_after: LogPosition,
    file: FileId,
    segment: u32,
    tickets: Vec<(u64, u32)>,
    durable: bool,
    done: bool,
}

/// Where entries wait.
#[derive(Clone, Copy, Debug)]
enum Source {
    Queue,
    Repairs,
}

/// The entries at the head of a queue that make up one record.
#[derive(Clone, Copy, Debug)]
struct Gathered {
    count: usize,
    data_blocks: u32,
    /// Most blocks of the whole record.
    blocks: u32,
}

/// The segment that appends go to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    pub(super) segment: u32,
    pub(super) file: FileId,
    pub(super) blocks: u32,
    /// Blocks of it that are left to repairs where there is no other segment after it.
    for_repairs: u32,
}

impl Active {
    /// A segment that nothing was written to.
    fn fresh(segment: u32, file: FileId, blocks: u32) -> Active {
        Active { segment, file, blocks, for_repairs: blocks / REPAIRS_DIVISOR }
    }

    /// One that an earlier process has written to up to `next`. Whether repairs or others have used what is gone of the reserve nobody knows: of
    /// what is left each has half.
    pub(super) fn resumed(segment: u32, file: FileId, blocks: u32, next: u32) -> Active {
        let for_repairs = (blocks / REPAIRS_DIVISOR).min(blocks.saturating_sub(next) / 2);
        Active { segment, file, blocks, for_repairs }
    }
}

/// Who may take how much of what is left when there is no other segment after the active one.
#[derive(Clone, Copy, Debug)]
struct Claim {
    /// Free segments that it may not take.
    reserved: usize,
    /// The share of the last segment that is for what is more urgent, as a divisor. Without it, what is left for repairs is taken as well.
    divisor: Option<u32>,
    /// Whether the room is that of the repairs.
    has_share: bool,
}

/// The log of a shard. Used from the shard's thread alone.
#[derive(Debug)]
pub struct Log {
    pub(super) engine: Box<dyn IoEngine>,
    pub(super) pool: Pool,
    pub(super) active: Option<Active>,
    /// Where the next record will be laid out.
    pub(super) next: LogPosition,
    /// After the last append that was reported done.
    pub(super) completed: LogPosition,
    /// The log's own number, in each of its records.
    pub(super) identity: u64,
    /// What tells the records of this life from those of earlier ones.
    pub(super) life: u16,
    /// The newest record that is known to be durable, with all before it.
    synced: u64,
    queue: VecDeque<Queued>,
    /// Repairs, which nothing that is queued depends on, nor they on that.
    repairs: VecDeque<Queued>,
    /// Nothing of what is queued found room the last time.
    finds_no_room: bool,
    /// Since there was room, a segment was asked for once more than the last refusal.
    has_asked_again: bool,
    flights: VecDeque<Flight>,
    dirty: BTreeSet<FileId>,
    sync_waiters: Vec<u64>,
    foresight: Foresight,
    sync_flight: Option<SyncFlight>,
    reads: HashMap<u64, u64>,
    next_read: u64,
    pub(super) cold: Cold,
    pub(super) traffic: Traffic,
    turns: Turns,
    poisoned: Option<String>,
    pub(super) ready: Vec<Event>,
    completions: Vec<IoCompletion>,
}

#[derive(Debug)]
struct SyncFlight {
    files: usize,
    /// The newest record that it makes durable.
    covers: u64,
    tickets: Vec<u64>,
}

impl Log {
    /// The log `identity` in its life `life`, which goes on at `position`. Records up to number `synced` are known to be durable; `dirty`
    /// are the files of the others, which may still be in the device's cache only.
    pub(super) fn at(
        engine: Box<dyn IoEngine>,
        pool: Pool,
        active: Option<Active>,
        position: LogPosition,
        dirty: BTreeSet<FileId>,
        (identity, life, synced): (u64, u16, u64),
    ) -> Log {
        assert!(
            synced < position.sequence,
            "record {synced} is durable, but the log ends before {}",
            position.sequence
        );
        Log {
            engine,
            pool,
            active,
            next: position,
            completed: position,
            identity,
            life,
            synced,
            queue: VecDeque::new(),
            repairs: VecDeque::new(),
            finds_no_room: false,
            has_asked_again: false,
            flights: VecDeque::new(),
            dirty,
            sync_waiters: Vec::new(),
            foresight: Foresight::default(),
            sync_flight: None,
            reads: HashMap::new(),
            next_read: 0,
            cold: Cold::default(),
            traffic: Traffic::default(),
            turns: Turns::default(),
            poisoned: None,
            ready: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Queues `entry` with its data: whole blocks, as many as the entry says. Never blocks. [`Event::Appended`] brings
    /// `ticket` back. With `durable` the append is made durable itself where that is the cheapest way; the event tells.
    /// Without space it stays queued: see [`is_starved`](Self::is_starved).
    ///
    /// # Errors
    /// `Poisoned`: nothing was queued.
    ///
    /// # Panics
    /// If data and entry do not fit each other or are over the limits of a record: the shard splits.
    pub fn append(&mut self, entry: Entry, data: Vec<Bytes>, durable: bool, ticket: u64) -> Result<(), LogError> {
        let bytes: usize = data.iter().map(Bytes::len).sum();
        let blocks = entry.data_blocks();
        assert_eq!(bytes, blocks as usize * BLOCK, "an entry of {blocks} blocks came with {bytes} bytes");
        assert!(blocks <= DATA_BLOCKS_MAX, "an entry of {blocks} blocks is over the limit of a record");
        if let Some(reason) = &self.poisoned {
            return Err(LogError::Poisoned(reason.clone()));
        }
        self.queue.push_back(Queued { entry, data, durable, ticket });
        Ok(())
    }

    /// As [`append`](Self::append) for an entry without data that may overtake all that is queued.
    ///
    /// # Errors
    /// `Poisoned`: nothing was queued.
    pub fn append_first(&mut self, entry: Entry, ticket: u64) -> Result<(), LogError> {
        assert_eq!(entry.data_blocks(), 0, "data takes its turn");
        if let Some(reason) = &self.poisoned {
            return Err(LogError::Poisoned(reason.clone()));
        }
        self.queue.push_front(Queued { entry, data: Vec::new(), durable: false, ticket });
        self.finds_no_room = false;
        Ok(())
    }

    /// As [`append`](Self::append) for received blocks that were here and are damaged: they may overtake all that is queued, which may
    /// overtake them, and have a share of the last segment of their own.
    ///
    /// # Errors
    /// `Poisoned`: nothing was queued.
    ///
    /// # Panics
    /// As [`append`](Self::append).
    pub fn append_repair(&mut self, entry: Entry, data: Vec<Bytes>, ticket: u64) -> Result<(), LogError> {
        assert!(matches!(entry, Entry::Received { .. }), "nothing depends on what is received once more");
        self.append(entry, data, false, ticket)?;
        self.repairs.extend(self.queue.pop_back());
        self.finds_no_room = false;
        Ok(())
    }

    /// Whether what is queued cannot be written until a segment comes free: none is, and none can be made. A poisoned log does not wait for
    /// that.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.finds_no_room
            && self.poisoned.is_none()
            && self.flights.is_empty()
            && self.pool.is_full()
            && !self.pool.is_making()
    }

    /// Refuses the repairs, with [`LogError::OutOfSpace`]; without any, everything queued that brings data, and everything behind it; where
    /// none does, the cleaner's moves; without any, the rest. Then looks for space anew.
    pub fn refuse_queued(&mut self) {
        self.finds_no_room = false;
        if !self.repairs.is_empty() {
            let refused = self.repairs.drain(..).map(|queued| queued.ticket);
            self.ready.extend(refused.map(|ticket| Event::Appended { ticket, result: Err(LogError::OutOfSpace) }));
            return self.pool.retry();
        }
        let with_data = self.queue.iter().position(|queued| !queued.data.is_empty());
        let refused = match with_data {
            Some(first) => self.queue.split_off(first),
            // Nothing else depends on where the cleaner's copies are.
            None if self.queue.iter().any(|queued| queued.entry.is_move()) => {
                let (moves, others) = self.queue.drain(..).partition(|queued| queued.entry.is_move());
                self.queue = others;
                moves
            }
            None => std::mem::take(&mut self.queue),
        };
        for queued in refused {
            self.ready.push(Event::Appended { ticket: queued.ticket, result: Err(LogError::OutOfSpace) });
        }
        self.pool.retry();
    }

    /// Asks for everything appended (reported done) so far to be durable. Returns whether it is so already; else
    /// [`Event::Synced`] brings `ticket` back.
    ///
    /// # Errors
    /// `Poisoned`.
    pub fn sync(&mut self, ticket: u64) -> Result<bool, LogError> {
        if let Some(reason) = &self.poisoned {
            return Err(LogError::Poisoned(reason.clone()));
        }
        self.foresight.asked();
        match &mut self.sync_flight {
            // Everything that was reported done is in the sync under way.
            Some(flight) if self.dirty.is_empty() => flight.tickets.push(ticket),
            None if self.dirty.is_empty() => return Ok(true),
            _ => self.sync_waiters.push(ticket),
        }
        Ok(false)
    }

    /// Reads `count` neighbouring blocks of a segment; [`Event::Read`] brings `ticket` back. Verifying is the caller's.
    ///
    /// Of a segment whose file is gone, or cannot be opened, [`Event::Read`] has an error.
    pub fn read(&mut self, segment: u32, first_block: u32, count: u32, ticket: u64) {
        let Some(file) = self.pool.get(segment).and_then(|segment| segment.file) else {
            let result = Err(LogError::Io(format!("the file of segment {segment} is not there")));
            return self.ready.push(Event::Read { ticket, result });
        };
        let number = self.next_read;
        self.next_read += 1;
        self.reads.insert(number, ticket);
        let kind = IoKind::Read {
            offset: u64::from(first_block) * u64::from(BLOCK_SIZE),
            buffer: AlignedBuffer::with_room(count as usize * BLOCK),
        };
        self.engine.submit(IoOp { token: token(TOKEN_READ, number), file, kind });
    }

    /// Whether the file of `segment` is there and could be opened.
    #[must_use]
    pub fn can_read(&self, segment: u32) -> bool {
        self.pool.get(segment).is_some_and(|segment| segment.file.is_some())
    }

    /// Starts what can start, blocks at most `timeout` until something finishes, and reports.
    ///
    /// # Errors
    /// When the engine itself fails; the log is poisoned then.
    pub fn turn(&mut self, timeout: Duration, events: &mut Vec<Event>) -> Result<(), LogError> {
        self.pump();
        let timeout = if self.ready.is_empty() { timeout } else { Duration::ZERO };
        let mut completions = std::mem::take(&mut self.completions);
        let waited = self.engine.wait(timeout, &mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.pump();
        events.append(&mut self.ready);
        waited.map_err(|error| {
            self.poison(&format!("the I/O engine failed: {error}"));
            events.append(&mut self.ready);
            LogError::Io(error.to_string())
        })
    }

    /// Where the log stands after the last append that was reported done: what a checkpoint stores.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.completed
    }

    /// Whether nothing is queued or under way, reads included.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.queue.is_empty()
            && self.repairs.is_empty()
            && self.flights.is_empty()
            && self.sync_flight.is_none()
            && self.sync_waiters.is_empty()
            && self.reads.is_empty()
            && self.cold.is_idle()
            && self.ready.is_empty()
    }

    /// Whether everything that was reported done is durable.
    #[must_use]
    pub fn durable(&self) -> bool {
        self.dirty.is_empty() && self.sync_flight.is_none()
    }

    /// Why the log takes nothing more, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// Gives `segment` back: by a committed checkpoint nothing in it is needed, and no read of it is under way.
    ///
    /// # Panics
    /// If it is where appends go.
    pub fn free(&mut self, segment: u32) {
        assert!(!self.in_use().contains(&Some(segment)), "segment {segment} is written to");
        if let Some(known) = self.pool.get(segment) {
            known.file.map(|file| self.dirty.remove(&file));
            if let Err(error) = self.pool.give_back(&mut *self.engine, segment) {
                tracing::warn!(segment, %error, "a segment that is not needed cannot be deleted");
            }
        }
    }

    /// Nobody writes: lets go of the free segments that were kept for those who did.
    pub fn trim(&mut self) {
        if let Err(error) = self.pool.trim(&mut *self.engine) {
            tracing::warn!(%error, "a segment that is not needed cannot be deleted");
        }
    }

    /// Segments that are ready to be used.
    #[must_use]
    pub fn free_segments(&self) -> usize {
        self.pool.free_count()
    }

    /// Every segment.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.pool.infos(self.in_use())
    }

    /// The segments that are written to.
    fn in_use(&self) -> [Option<u32>; 2] {
        [self.active.map(|active| active.segment), self.cold.segment()]
    }

    /// Blocks left in the segments that are written to.
    #[must_use]
    pub fn unwritten_blocks(&self) -> u32 {
        self.room() + self.cold.room()
    }

    /// Bytes of free segments that guests' data may not take.
    #[must_use]
    pub fn reserve_bytes(&self) -> u64 {
        RESERVED_SEGMENTS as u64 * self.pool.segment_bytes()
    }

    /// What was written since the log was opened.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic { prepared: self.pool.prepared_blocks(), ..self.traffic }
    }

    /// How often something was done since the log was opened.
    #[must_use]
    pub fn turns(&self) -> Turns {
        self.turns
    }

    /// Whether a [`turn`](Self::turn) would start or report something even if nothing finishes.
    #[must_use]
    pub fn wants_turn(&self) -> bool {
        let may_append = self.has_queued() && self.flights.len() < APPENDS_MAX && !self.finds_no_room;
        let may_sync = !self.sync_waiters.is_empty() && self.sync_flight.is_none();
        !self.ready.is_empty() || self.engine.has_unsent() || (self.poisoned.is_none() && (may_append || may_sync))
    }

    /// What tells that something has finished, as [`IoEngine::completions`] says.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn completions(&self) -> io::Result<Completions> {
        self.engine.completions()
    }

    /// Whether anything waits to be appended.
    fn has_queued(&self) -> bool {
        !self.queue.is_empty() || !self.repairs.is_empty()
    }

    /// Blocks left in the active segment.
    fn room(&self) -> u32 {
        self.active.map_or(0, |active| active.blocks - self.next.block)
    }

    fn pump(&mut self) {
        if self.poisoned.is_some() {
            return;
        }
        self.pool.make_ahead(&mut *self.engine, token(TOKEN_MAKE, 0));
        self.finds_no_room = false;
        while self.flights.len() < APPENDS_MAX && self.has_queued() && !self.finds_no_room {
            self.finds_no_room = !self.start_append();
        }
        if !self.finds_no_room {
            self.has_asked_again = false;
        } else if self.pool.is_full() && !std::mem::replace(&mut self.has_asked_again, true) {
            // The last refusal may be long ago: nothing is refused for want of room that is there.
            self.pool.retry();
            self.pool.make_ahead(&mut *self.engine, token(TOKEN_MAKE, 0));
        }
        self.start_sync();
    }

    /// Whether a record of `needed` blocks may go into what is left of the active segment: when there is no other after that, a share of it is
    /// for what is more urgent, and one for repairs, which have no more of it. What is vital may have all.
    fn fits(&self, needed: u32, claim: Claim) -> bool {
        let Some(active) = self.active else { return false };
        let Some(divisor) = claim.divisor.filter(|_| self.is_last(claim.reserved)) else {
            return self.room() >= needed;
        };
        let urgent = active.blocks / divisor;
        if claim.has_share {
            return needed <= active.for_repairs && self.room() >= needed + urgent;
        }
        self.room() >= needed + urgent + active.for_repairs
    }

    /// Whether whoever may not take `reserved` of the free segments has no other after the active one. That another is being made says nothing: the
    /// file system may refuse it, and then what was to be kept would be gone.
    fn is_last(&self, reserved: usize) -> bool {
        self.pool.free_count() <= reserved
    }

    /// Chooses what of what has gathered goes out next, and writes it; false when there is no room for any of it yet.
    fn start_append(&mut self) -> bool {
        let first = |is_so: fn(&Queued) -> bool| self.queue.iter().take_while(|queued| is_so(queued)).count();
        let without_data = first(|queued| queued.data.is_empty());
        let moves = first(|queued| queued.entry.is_move() || queued.entry.is_vital());
        let vital = first(|queued| queued.entry.is_vital());
        let claim = |reserved, divisor| Claim { reserved, divisor, has_share: false };
        let as_data = claim(RESERVED_SEGMENTS, Some(RESERVE_DIVISOR));
        let share = Claim { has_share: true, ..claim(COLD_SEGMENTS, Some(MOVES_DIVISOR)) };
        let share_blocks = self.active.map_or(0, |active| active.for_repairs);
        // Repairs find room like data, and where there is none, they have a share. Of the others, what brings no data may still find room where
        // data does not, and so on.
        let tries = [
            (Source::Repairs, gather(&self.repairs, usize::MAX, u32::MAX), as_data),
            (Source::Repairs, gather(&self.repairs, usize::MAX, share_blocks), share),
            (Source::Queue, gather(&self.queue, usize::MAX, u32::MAX), as_data),
            (Source::Queue, gather(&self.queue, without_data, u32::MAX), claim(COLD_SEGMENTS, Some(MOVES_DIVISOR))),
            (Source::Queue, gather(&self.queue, moves, u32::MAX), claim(COLD_SEGMENTS, Some(VITAL_DIVISOR))),
            (Source::Queue, gather(&self.queue, vital, u32::MAX), claim(COLD_SEGMENTS, None)),
        ];
        for (source, gathered, claim) in tries {
            if gathered.count == 0 {
                continue;
            }
            if self.fits(gathered.blocks, claim) {
                self.write_record(source, gathered, claim.has_share && self.is_last(claim.reserved), false);
                return true;
            }
            if self.roll_over(claim.reserved) {
                self.write_record(source, gathered, false, true);
                return true;
            }
        }
        false
    }

    /// Lays out and submits one record, of the repairs' share or not, the first of a `fresh` segment or another.
    fn write_record(&mut self, source: Source, gathered: Gathered, is_of_share: bool, fresh: bool) {
        let Gathered { count, data_blocks, .. } = gathered;
        let active = self.active.expect("there is an active segment");
        let gathered: Vec<Queued> = match source {
            Source::Queue => self.queue.drain(..count).collect(),
            Source::Repairs => self.repairs.drain(..count).collect(),
        };
        let prefix = if fresh { SEGMENT_HEADER_BLOCKS } else { 0 };
        let entries: Vec<&Entry> = gathered.iter().map(|queued| &queued.entry).collect();
        let stamp = Stamp {
            log: self.identity,
            generation: self.next.generation,
            sequence: self.next.sequence,
            chain: self.next.chain,
            durable: self.synced,
            life: self.life,
        };
        let data = Parts::of(gathered.iter().flat_map(|queued| &queued.data));
        let (mut buffer, header_blocks, checksum) = encode(&stamp, &entries, data.first_blocks(), prefix);
        if fresh {
            SegmentHeader { segment: active.segment, generation: self.next.generation, cold: false }
                .encode(&mut buffer);
        }
        let first_data = self.next.block + header_blocks;
        self.traffic.headers += u64::from(prefix + header_blocks);
        self.traffic.data += u64::from(data_blocks);
        self.turns.records += 1;
        self.turns.entries += count as u64;
        let mut tickets = Vec::with_capacity(count);
        let mut at = first_data;
        for queued in &gathered {
            tickets.push((queued.ticket, at));
            at += queued.entry.data_blocks();
        }
        let rest = data.lay_out(&mut buffer);
        // One request instead of a write and a sync, when nothing else waits to be synced.
        let durable = gathered.iter().any(|queued| queued.durable) && self.flights.is_empty() && self.durable();
        let offset = u64::from(self.next.block - prefix) * u64::from(BLOCK_SIZE);
        let sequence = self.next.sequence;
        self.next = LogPosition { block: at, sequence: sequence + 1, chain: checksum, ..self.next };
        self.flights.push_back(Flight {
            position_after: self.next,
            file: active.file,
            segment: active.segment,
            tickets,
            durable,
            done: false,
        });
        let kind = IoKind::Write { offset, buffer, rest, durable };
        self.engine.submit(IoOp { token: token(TOKEN_APPEND, sequence), file: active.file, kind });
        if is_of_share && let Some(active) = &mut self.active {
            active.for_repairs = active.for_repairs.saturating_sub(header_blocks + data_blocks);
        }
    }

    /// Makes a free segment the active one, if more than `reserved` are free.
    fn roll_over(&mut self, reserved: usize) -> bool {
        let Some((segment, taken, file)) = self.pool.take(reserved, false) else { return false };
        self.active = Some(Active::fresh(segment, file, taken.blocks));
        self.next = LogPosition { generation: taken.generation, segment, block: SEGMENT_HEADER_BLOCKS, ..self.next };
        true
    }

    fn start_sync(&mut self) {
        if self.sync_flight.is_none() && !self.sync_waiters.is_empty() {
            self.sync_now();
        }
    }

    /// Begins a sync for those who wait; for those who come until it is done as well.
    fn sync_now(&mut self) {
        let tickets = std::mem::take(&mut self.sync_waiters);
        let files = std::mem::take(&mut self.dirty);
        if files.is_empty() {
            self.ready.extend(tickets.into_iter().map(|ticket| Event::Synced { ticket, result: Ok(()) }));
            return;
        }
        self.turns.syncs += files.len() as u64;
        // What is reported done now was written before the sync is asked for, and its files are among these.
        self.sync_flight = Some(SyncFlight { files: files.len(), covers: self.completed.sequence - 1, tickets });
        for file in files {
            self.engine.submit(IoOp { token: token(TOKEN_SYNC, 0), file, kind: IoKind::Sync });
        }
    }

    fn complete(&mut self, completion: IoCompletion) {
        let number = completion.token & ((1 << TOKEN_KIND_SHIFT) - 1);
        match completion.token >> TOKEN_KIND_SHIFT {
            TOKEN_APPEND => self.append_finished(number, completion.result),
            TOKEN_SYNC => self.sync_finished(completion.result),
            TOKEN_READ => {
                let ticket = self.reads.remove(&number).expect("a read under way");
                let result = match completion.result {
                    Ok(()) => Ok(completion.buffer.expect("a read brings its buffer back")),
                    Err(error) => Err(LogError::Io(error.to_string())),
                };
                self.ready.push(Event::Read { ticket, result });
            }
            TOKEN_COPY => self.copy_finished(number, completion.result),
            TOKEN_MAKE => self.pool.made(&mut *self.engine, completion.result),
            kind => panic!("a completion of unknown kind {kind}"),
        }
    }

    fn append_finished(&mut self, sequence: u64, result: io::Result<()>) {
        if let Err(error) = result {
            return self.poison(&format!("a write to the log failed: {error}"));
        }
        // After poisoning, late successes change nothing: their order is broken.
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.position_after.sequence == sequence + 1) else {
            return;
        };
        flight.done = true;
        while self.flights.front().is_some_and(|flight| flight.done) {
            let flight = self.flights.pop_front().expect("looked at");
            self.completed = flight.position_after;
            if flight.durable {
                // Begun only when everything before it was durable.
                self.synced = flight.position_after.sequence - 1;
            } else {
                self.dirty.insert(flight.file);
            }
            for (ticket, first_block) in flight.tickets {
                let placed = Placed { segment: flight.segment, first_block, durable: flight.durable };
                self.ready.push(Event::Appended { ticket, result: Ok(placed) });
            }
        }
        let is_alone = self.flights.is_empty() && !self.has_queued() && self.sync_flight.is_none();
        if is_alone && !self.dirty.is_empty() && self.foresight.appended() {
            self.sync_now();
        }
    }

    fn sync_finished(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            return self.poison(&format!("a sync of the log failed: {error}"));
        }
        let Some(flight) = &mut self.sync_flight else { return };
        flight.files -= 1;
        if flight.files == 0 {
            let flight = self.sync_flight.take().expect("looked at");
            self.synced = self.synced.max(flight.covers);
            self.ready.extend(flight.tickets.into_iter().map(|ticket| Event::Synced { ticket, result: Ok(()) }));
        }
    }

    /// Fails everything that waits, and everything that comes, for ever.
    pub(super) fn poison(&mut self, reason: &str) {
        if self.poisoned.is_some() {
            return;
        }
        tracing::error!(reason, "the log is poisoned: restart the node after the cause is removed");
        self.poisoned = Some(reason.to_owned());
        let failed = || LogError::Poisoned(reason.to_owned());
        let flights = self.flights.drain(..).flat_map(|flight| flight.tickets).map(|(ticket, _)| ticket);
        let queued = self.queue.drain(..).chain(self.repairs.drain(..)).map(|queued| queued.ticket);
        self.ready.extend(flights.chain(queued).map(|ticket| Event::Appended { ticket, result: Err(failed()) }));
        let syncs = self.sync_flight.take().map(|flight| flight.tickets).unwrap_or_default();
        let waiters = std::mem::take(&mut self.sync_waiters);
        self.ready
            .extend(syncs.into_iter().chain(waiters).map(|ticket| Event::Synced { ticket, result: Err(failed()) }));
        let copies = self.cold.abandon();
        self.ready.extend(copies.into_iter().map(|ticket| Event::Copied { ticket, result: Err(failed()) }));
    }
}

/// What of the first `most` entries of `queue` makes up the next record, of `blocks_max` blocks if more than one of them is.
fn gather(queue: &VecDeque<Queued>, most: usize, blocks_max: u32) -> Gathered {
    let all = |data_blocks: u32, entries_bytes: usize| data_blocks + entries_bytes.div_ceil(BLOCK) as u32;
    let (mut count, mut data_blocks, mut entries_bytes) = (0, 0, HEADER_BYTES);
    for queued in queue.iter().take(most) {
        let blocks = data_blocks + queued.entry.data_blocks();
        let bytes = entries_bytes + queued.entry.bytes_max();
        let is_too_much = blocks > DATA_BLOCKS_MAX || bytes > ENTRIES_BYTES_MAX || all(blocks, bytes) > blocks_max;
        if count > 0 && is_too_much {
            break;
        }
        (count, data_blocks, entries_bytes) = (count + 1, blocks, bytes);
    }
    Gathered { count, data_blocks, blocks: all(data_blocks, entries_bytes) }
}

/// Most blocks that the entry alone takes in front of its data.
pub(super) fn entries_blocks(entry: &Entry) -> u32 {
    (HEADER_BYTES + entry.bytes_max()).div_ceil(BLOCK) as u32
}
