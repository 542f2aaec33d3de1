//! The writes of a session that a loss of their owner could undo: kept until they are durable, and sent again where they are missing.
//!
//! Pure: no I/O, no clock. Invariants:
//!
//! - Writes that overlap are never under way together: the later one begins when the earlier is acked. So the order of numbers is
//!   the order in which the owner has what overlaps, and sending in that order gives the same bytes.
//! - A write is kept until a flush that began after its ack has succeeded, under the tenure in which the flush began.
//! - Numbers below [`Journal::answered`] are over for good. That stays below the first write that is kept, so that the owner
//!   goes on to know which of those it has.
//! - After [`Journal::recover`] everything that the new tenure lacks is open again, and nothing else may be asked of that tenure
//!   before all of it is acked.
//!
//! Which tenure counts, and what is sent when, is for [`super::session`].

pub mod line;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use line::Obstacle;

use crate::types::{Epoch, Lsn};
use crate::wire::client::Attached;

/// What a write costs beside its data, so that a journal of zeroes has a bound too.
const ENTRY_COST: u64 = 128;

/// Most writes under way at a time; more wait. The owner remembers a gap for each (`RUNS_MAX` of its ledger is twice that).
const OPEN_MAX: usize = 256;

/// A write as it is sent, in every attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// The bytes; `None` for zeroes.
    pub data: Option<Bytes>,
    /// Durable before it is acked.
    pub fua: bool,
}

impl Write {
    fn cost(&self) -> u64 {
        ENTRY_COST + self.data.as_ref().map_or(0, |data| data.len() as u64)
    }

    fn extent(&self) -> Extent {
        Extent { offset: self.offset, length: self.length }
    }
}

/// The bytes that a write is about.
#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    length: u64,
}

impl Extent {
    fn overlaps(self, other: Extent) -> bool {
        self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }
}

/// Names a write in the journal, for ever; in the order in which they began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteKey(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not acked, or lost since.
    Open,
    /// In the volume up to this position; the stamp says when it was acked, among the acks.
    Acked { lsn: Lsn, stamp: u64 },
}

#[derive(Debug)]
struct Entry {
    write: Write,
    number: u64,
    state: State,
    /// Whether its user was told that it is done, in whatever tenure.
    was_acked: bool,
}

/// Which acks a flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark {
    stamp: u64,
    recoveries: u64,
}

/// A takeover cut off writes that were dropped here as durable, or that were there before the session: it cannot go on as if
/// nothing had happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a takeover cut the volume off at {end}, and this session relies on what was written up to {settled}")]
pub struct Lost {
    /// The last write that is left.
    pub end: Lsn,
    /// Up to where the session relied on it.
    pub settled: Lsn,
}

/// The kept writes of one session.
#[derive(Debug)]
pub struct Journal {
    capacity: u64,
    bytes: u64,
    session: u64,
    next_number: u64,
    next_key: u64,
    entries: BTreeMap<WriteKey, Entry>,
    /// Those of the entries that are open, and which bytes they write: few, where all may be many.
    under_way: BTreeMap<WriteKey, Extent>,
    /// Rises with every ack.
    stamp: u64,
    recoveries: u64,
    /// The newest position that the session relies on and cannot restore.
    settled: Lsn,
    /// The epoch of the tenure that the journal was last compared with; 0 before the first.
    epoch: Epoch,
}

impl Journal {
    /// An empty journal of at most `capacity` bytes for `session`.
    #[must_use]
    pub fn new(capacity: u64, session: u64) -> Journal {
        Journal {
            capacity,
            bytes: 0,
            session,
            next_number: 0,
            next_key: 0,
            entries: BTreeMap::new(),
            under_way: BTreeMap::new(),
            stamp: 0,
            recoveries: 0,
            settled: Lsn::ZERO,
            epoch: Epoch(0),
        }
    }

    /// An empty journal that goes on for another one, which has been compared with `epoch` last and relied on `settled`.
    #[must_use]
    pub fn resumed(capacity: u64, session: u64, epoch: Epoch, settled: Lsn) -> Journal {
        Journal { epoch, settled, ..Journal::new(capacity, session) }
    }

    /// Whether it was compared with no tenure yet: nothing that was ever there is relied on.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.epoch == Epoch(0)
    }

    /// The newest position that the session relies on and cannot restore.
    #[must_use]
    pub fn settled(&self) -> Lsn {
        self.settled
    }

    /// The session whose numbers the writes have.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether anything is kept that was acked, and so is to become durable.
    #[must_use]
    pub fn has_acked(&self) -> bool {
        self.entries.values().any(|entry| entry.was_acked)
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What of the journal keeps `write` from beginning: something that overlaps it is under way, or too much else, or there is no room. One
    /// write always has room. In which order those begin that wait is for the [`Line`](line::Line).
    #[must_use]
    pub fn obstacle(&self, write: &Write) -> Option<Obstacle> {
        // With every write: without a look at what else is known of those that are open.
        if self.under_way.values().any(|open| write.extent().overlaps(*open)) {
            return Some(Obstacle::Order);
        }
        let has_room = self.entries.is_empty() || self.bytes + write.cost() <= self.capacity;
        (!has_room || self.under_way.len() >= OPEN_MAX).then_some(Obstacle::Room)
    }

    /// Whether it is time to flush: half of the journal is full, or a write waits for room.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        self.bytes >= self.capacity / 2 && self.entries.values().any(|entry| matches!(entry.state, State::Acked { .. }))
    }

    /// Takes a write up.
    ///
    /// # Panics
    /// If there is an [`obstacle`](Self::obstacle), in a build with debug assertions.
    pub fn begin(&mut self, write: Write) -> WriteKey {
        debug_assert_eq!(self.obstacle(&write), None, "such a write waits");
        let key = WriteKey(self.next_key);
        self.next_key += 1;
        self.bytes += write.cost();
        self.under_way.insert(key, write.extent());
        self.entries.insert(key, Entry { write, number: self.next_number, state: State::Open, was_acked: false });
        self.next_number += 1;
        key
    }

    /// The write and its number, while it is to be sent.
    #[must_use]
    pub fn to_send(&self, key: WriteKey) -> Option<(u64, Write)> {
        let entry = self.entries.get(&key)?;
        (entry.state == State::Open).then(|| (entry.number, entry.write.clone()))
    }

    /// Below this number every write is over.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.entries.values().next().map_or(self.next_number, |entry| entry.number)
    }

    /// The volume has the write, up to `lsn`.
    pub fn acked(&mut self, key: WriteKey, lsn: Lsn) {
        self.stamp += 1;
        let stamp = self.stamp;
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.state == State::Open
        {
            entry.state = State::Acked { lsn, stamp };
            entry.was_acked = true;
            self.under_way.remove(&key);
        }
    }

    /// Whether the write was acked, in this tenure or an earlier one: then it must not be given up.
    #[must_use]
    pub fn was_acked(&self, key: WriteKey) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.was_acked)
    }

    /// The write was refused, and is not to be sent again.
    pub fn refused(&mut self, key: WriteKey) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.write.cost();
            self.under_way.remove(&key);
        }
    }

    /// What a flush that begins now covers.
    #[must_use]
    pub fn mark(&self) -> FlushMark {
        FlushMark { stamp: self.stamp, recoveries: self.recoveries }
    }

    /// The flush of `mark` has succeeded: what it covers is durable, and dropped. A flush of an earlier tenure says nothing.
    pub fn flushed(&mut self, mark: FlushMark) {
        if mark.recoveries != self.recoveries {
            return;
        }
        let (mut settled, mut bytes) = (self.settled, self.bytes);
        self.entries.retain(|_, entry| match entry.state {
            State::Acked { lsn, stamp } if stamp <= mark.stamp => {
                settled = settled.max(lsn);
                bytes -= entry.write.cost();
                false
            }
            _ => true,
        });
        (self.settled, self.bytes) = (settled, bytes);
    }

    /// The writes that are to be sent, in the order in which those that overlap must be carried out.
    pub fn open(&self) -> impl Iterator<Item = (WriteKey, u64, &Write)> {
        let open = self.under_way.keys().filter_map(|key| self.entries.get_key_value(key));
        open.map(|(key, entry)| (*key, entry.number, &entry.write))
    }

    /// Whether a takeover happened since the journal was last compared: the numbers of the session mean nothing any more, and
    /// [`recover`](Self::recover) needs a new one.
    #[must_use]
    pub fn needs_session(&self, attached: &Attached) -> bool {
        self.epoch > Epoch(0) && attached.forks.iter().any(|fork| fork.epoch >= self.epoch)
    }

    /// Compares the journal with what a new tenure has: what it lacks is [`open`](Self::open) again. `session` is the present one,
    /// or a new one where [`needs_session`](Self::needs_session) says so.
    ///
    /// # Errors
    /// [`Lost`] when what the session relied on is gone.
    ///
    /// # Panics
    /// If a session is given out where none is needed, or the other way round.
    pub fn recover(&mut self, attached: &Attached, session: u64) -> Result<(), Lost> {
        let was_taken_over = self.needs_session(attached);
        assert_eq!(was_taken_over, session != self.session, "a new session for a new history, and only then");
        let cut = attached.forks.iter().find(|fork| self.settled.epoch <= fork.epoch && self.settled > fork.end);
        if let Some(fork) = cut {
            return Err(Lost { end: fork.end, settled: self.settled });
        }
        if self.epoch == Epoch(0) {
            // What was there before is not in the journal.
            self.settled = attached.head;
        }
        self.epoch = attached.tenure.epoch;
        self.recoveries += 1;
        if was_taken_over {
            // The new owner has no numbers of this session, and an earlier owner, if the volume comes back to it, those of a
            // history that is gone. What it has of the writes is written again: nobody else wrote over what is not flushed.
            (self.session, self.next_number) = (session, 0);
            for entry in self.entries.values_mut() {
                (entry.number, entry.state) = (self.next_number, State::Open);
                self.next_number += 1;
            }
        } else {
            let of_session = attached.done.iter().find(|(of, _)| *of == session);
            let runs = of_session.map_or(&[][..], |(_, runs)| runs.as_slice());
            for entry in self.entries.values_mut() {
                let is_there = runs.iter().any(|(from, to)| (*from..*to).contains(&entry.number));
                entry.state = match entry.state {
                    State::Acked { lsn, stamp } if is_there => State::Acked { lsn, stamp },
                    State::Open if is_there => {
                        self.stamp += 1;
                        entry.was_acked = true;
                        State::Acked { lsn: attached.head, stamp: self.stamp }
                    }
                    _ => State::Open,
                };
            }
        }
        self.cut_to(attached.size);
        let open = self.entries.iter().filter(|(_, entry)| entry.state == State::Open);
        self.under_way = open.map(|(key, entry)| (*key, entry.write.extent())).collect();
        Ok(())
    }

    /// A volume that shrank has no place for what was beyond its end.
    fn cut_to(&mut self, size: u64) {
        let mut bytes = self.bytes;
        self.entries.retain(|_, entry| {
            let write = &mut entry.write;
            if entry.state != State::Open || write.offset + write.length <= size {
                return true;
            }
            bytes -= write.cost();
            write.length = size.saturating_sub(write.offset);
            if write.length == 0 {
                return false;
            }
            write.data = write.data.take().map(|data| data.slice(..write.length as usize));
            bytes += write.cost();
            true
        });
        self.bytes = bytes;
    }
}
