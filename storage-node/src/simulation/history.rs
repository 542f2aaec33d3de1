//! What happened in a simulation, as the checks need it: what guests asked and were answered, what owners put into their
//! logs, what was lost with whom. All times are the simulation's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::{Epoch, ErrorKind, Lsn, NodeId, VolumeId, watch};
use consensus::MetaState;

use super::machine::{LocalTime, directory};
use crate::log::Entry;
use crate::shard::handle::VolumeReport;

/// What a block holds: the checksum of its bytes, `None` for zeroes. No two writes of a simulation hold the same.
pub(super) type Content = Option<u32>;

/// What a guest asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Write { start: u32, contents: Vec<Content>, is_durable: bool },
    Read { start: u32, found: Vec<Content> },
    Flush,
}

/// How that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody knows, and never will: what asked is gone.
    Pending,
    Done(Duration),
    Failed(Duration, ErrorKind),
}

/// Something that a guest asked for.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) volume: VolumeId,
    /// Where the guest was.
    #[expect(dead_code, reason = "shown when a check fails")]
    pub(super) node: NodeId,
    /// Its connection.
    pub(super) session: u64,
    pub(super) what: What,
    pub(super) asked: Duration,
    pub(super) outcome: Outcome,
}

impl Operation {
    /// When it was done, if it was.
    pub(super) fn done(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Done(at) => Some(at),
            _ => None,
        }
    }
}

/// A write in the log of an owner.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) volume: VolumeId,
    pub(super) node: NodeId,
    pub(super) lsn: Lsn,
    pub(super) at: Duration,
    pub(super) start: u32,
    pub(super) contents: Vec<Content>,
    /// When and how its node died before it was durable, if it is lost for that.
    pub(super) lost: Option<Death>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// It was killed: nothing that was acked may be lost.
    Killed(Duration),
    /// With the power: what was not durable may be lost.
    PowerCut(Duration),
}

impl Death {
    pub(super) fn at(self) -> Duration {
        let (Death::Killed(at) | Death::PowerCut(at)) = self;
        at
    }
}

/// A takeover: what is beyond `end` in `epoch` or before is no part of the volume from `seen` on, when it was first seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) end: Lsn,
    pub(super) seen: Duration,
}

/// The positions of a volume at a node.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) node: NodeId,
    pub(super) volume: VolumeId,
    pub(super) at: Duration,
    pub(super) report: VolumeReport,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) operations: Vec<Operation>,
    pub(super) logged: Vec<Logged>,
    pub(super) cuts: BTreeMap<(VolumeId, Epoch), Cut>,
    /// Ownerships as they were first seen applied: owner, when.
    pub(super) ownerships: BTreeMap<(VolumeId, Epoch), (NodeId, Duration)>,
    /// Positions as nodes told them.
    pub(super) seen: Vec<Seen>,
    /// How the volumes of a group were found apart without a takeover, if they were.
    pub(super) apart: Option<String>,
    /// What the operator did and the faults that struck, for people.
    pub(super) told: Vec<(Duration, String)>,
    deaths: BTreeMap<NodeId, Death>,
    clocks: BTreeMap<NodeId, LocalTime>,
    sessions: u64,
    writes: u64,
}

/// The history of a simulation. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Book>>);

thread_local! {
    /// The simulation on this thread, to which shards tell what they log.
    static PRESENT: RefCell<Option<History>> = const { RefCell::new(None) };
}

/// An entry took effect in the shard in `directory`.
pub(crate) fn applied(directory: &Path, entry: &Entry) {
    PRESENT.with_borrow(|present| {
        if let Some(history) = present {
            history.applied(directory, entry);
        }
    });
}

/// The shard in `directory` has recovered `volume`, whose newest write is `known`.
pub(crate) fn recovered(directory: &Path, volume: VolumeId, known: Lsn) {
    PRESENT.with_borrow(|present| {
        if let Some(history) = present {
            history.recovered(directory, volume, known);
        }
    });
}

fn node_of(at: &Path) -> Option<NodeId> {
    let id = NodeId(at.file_name()?.to_str()?.parse().ok()?);
    (directory(id) == at).then_some(id)
}

impl History {
    /// A history that shards on this thread write to, until another one is begun.
    pub(super) fn begin() -> History {
        let history = History::default();
        PRESENT.set(Some(history.clone()));
        history
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on things at `node` happen by this clock.
    pub(super) fn booted(&self, node: NodeId, time: &LocalTime) {
        self.book().clocks.insert(node, time.clone());
    }

    pub(super) fn died(&self, node: NodeId, death: Death) {
        self.book().deaths.insert(node, death);
    }

    /// Notes something for people.
    pub(super) fn tell(&self, at: Duration, what: impl Into<String>) {
        self.book().told.push((at, what.into()));
    }

    /// The number of a new connection.
    pub(super) fn session(&self) -> u64 {
        let mut book = self.book();
        book.sessions += 1;
        book.sessions
    }

    /// The number of a new write.
    pub(super) fn write(&self) -> u64 {
        let mut book = self.book();
        book.writes += 1;
        book.writes
    }

    /// A guest asks; returns by what the answer is noted.
    pub(super) fn asks(&self, operation: Operation) -> usize {
        let mut book = self.book();
        book.operations.push(operation);
        book.operations.len() - 1
    }

    pub(super) fn answers(&self, number: usize, outcome: Outcome, found: Option<Vec<Content>>) {
        let mut book = self.book();
        let operation = &mut book.operations[number];
        operation.outcome = outcome;
        if let (What::Read { found: into, .. }, Some(found)) = (&mut operation.what, found) {
            *into = found;
        }
    }

    fn applied(&self, directory: &Path, entry: &Entry) {
        let Some(node) = node_of(directory) else { return };
        let (volume, lsn, start, contents) = match entry {
            Entry::Write { volume, lsn, start, checksums } => {
                (*volume, *lsn, start.0, checksums.iter().copied().map(Some).collect())
            }
            Entry::Zero { volume, lsn, start, count } => (*volume, *lsn, start.0, vec![None; *count as usize]),
            _ => return,
        };
        let mut book = self.book();
        let at = book.clocks.get(&node).expect("it was booted").now();
        book.logged.push(Logged { volume, node, lsn, at, start, contents, lost: None });
    }

    fn recovered(&self, directory: &Path, volume: VolumeId, known: Lsn) {
        let Some(node) = node_of(directory) else { return };
        let mut book = self.book();
        let Some(death) = book.deaths.get(&node).copied() else { return };
        let lost = |logged: &&mut Logged| logged.node == node && logged.volume == volume && logged.lsn > known;
        for logged in book.logged.iter_mut().filter(lost) {
            logged.lost.get_or_insert(death);
        }
    }

    /// Notes owners and takeovers as `states` show them.
    pub(super) async fn follow(self, mut states: watch::Receiver<Arc<MetaState>>, time: LocalTime) {
        loop {
            let state = states.borrow_and_update().clone();
            let now = time.now();
            for volume in state.volumes() {
                let mut book = self.book();
                book.ownerships.entry((volume.id, volume.epoch)).or_insert((volume.owner, now));
                for fork in &volume.forks {
                    let cut = Cut { volume: volume.id, epoch: fork.epoch, end: fork.end, seen: now };
                    book.cuts.entry((volume.id, fork.epoch)).or_insert(cut);
                }
            }
            for group in state.groups() {
                let members: Vec<_> = group.members.iter().filter_map(|id| state.volume(*id)).collect();
                let is_one = members.iter().all(|it| (it.owner, it.epoch) == (members[0].owner, members[0].epoch));
                if !is_one && members.iter().all(|it| it.forks.is_empty()) {
                    let owners: Vec<_> = members.iter().map(|it| (&it.name, it.owner, it.epoch)).collect();
                    self.book()
                        .apart
                        .get_or_insert(format!("half of group {} has moved at {now:?}: {owners:?}", group.name));
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }
}
