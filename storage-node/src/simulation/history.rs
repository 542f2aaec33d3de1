//! What happened in a simulation, as the checks need it: what guests asked and were answered, what owners put into their
//! logs, what was lost with whom. All times are the simulation's.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::{Epoch, ErrorKind, Lsn, NodeId, SnapshotId, VolumeId, watch};
use consensus::MetaState;

use super::machine::{LocalTime, directory};
use crate::log::Entry;
use crate::shard::handle::VolumeReport;
use crate::volume::Volume;

/// What a block holds: the checksum of its bytes, `None` for zeroes. No two writes of a simulation hold the same.
pub(super) type Content = Option<u32>;

/// What a guest asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Write {
        start: u32,
        contents: Vec<Content>,
        is_durable: bool,
    },
    Read {
        start: u32,
        count: u32,
        found: Vec<Content>,
    },
    Flush,
    /// The operator asked for a snapshot to be gone back to.
    RollBack,
    /// The operator asked for so many blocks.
    Resize {
        blocks: u32,
    },
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
    /// It made the volume what it was there, if it is a rollback; then it has no contents of its own.
    pub(super) back_to: Option<Lsn>,
    /// When and how its node died before it was durable, if it is lost for that.
    pub(super) lost: Option<Death>,
    /// It was refused when it was written, and found in the log afterwards.
    pub(super) was_refused: bool,
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

/// What a volume began as that is a clone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) origin: VolumeId,
    /// All of the origin up to here.
    pub(super) lsn: Lsn,
    /// When it was first seen.
    pub(super) at: Duration,
}

/// Where the bytes of a content were altered, on the medium.
#[derive(Clone, Debug)]
pub(super) struct Flip {
    pub(super) at: Duration,
    pub(super) nodes: BTreeSet<NodeId>,
}

/// What the owner of a volume in `epoch` takes a replica to hold, durably.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) owner: NodeId,
    pub(super) replica: NodeId,
    pub(super) held: Lsn,
    pub(super) at: Duration,
}

/// The positions of a volume at a node.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) node: NodeId,
    pub(super) volume: VolumeId,
    pub(super) at: Duration,
    pub(super) report: VolumeReport,
}

enum Change {
    Write(u32, Vec<Content>),
    Back(Lsn),
}

/// Everything that happened.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) operations: Vec<Operation>,
    pub(super) logged: Vec<Logged>,
    pub(super) cuts: BTreeMap<(VolumeId, Epoch), Cut>,
    /// The epochs that ended because the owner's store took no writes any more.
    pub(super) rescues: BTreeMap<(VolumeId, Epoch), Cut>,
    /// Ownerships as they were first seen applied: owner, when.
    pub(super) ownerships: BTreeMap<(VolumeId, Epoch), (NodeId, Duration)>,
    /// Positions as nodes told them.
    pub(super) seen: Vec<Seen>,
    pub(super) clones: BTreeMap<VolumeId, Begun>,
    pub(super) flips: BTreeMap<u32, Flip>,
    /// What owners count replicas with.
    pub(super) counted: Vec<Counted>,
    /// Volumes that were taken over in spite of what the new owner lacked, and when that was asked for first.
    pub(super) behind: BTreeMap<VolumeId, Duration>,
    /// When it was first seen that a node holds a volume no more which it held: it drops its copy then.
    pub(super) removals: BTreeMap<(VolumeId, NodeId), Vec<Duration>>,
    /// How the volumes of a group were found apart without a takeover, if they were.
    pub(super) apart: Option<String>,
    /// What the operator did and the faults that struck, for people.
    pub(super) told: Vec<(Duration, String)>,
    deaths: BTreeMap<NodeId, Death>,
    /// Those whose process has looked at its log since the last death there.
    ran: BTreeSet<NodeId>,
    clocks: BTreeMap<NodeId, LocalTime>,
    sessions: u64,
    writes: u64,
    /// Blocks that the cleaners of all nodes have moved, by volume.
    pub(super) moved: BTreeMap<VolumeId, u64>,
}

impl Book {
    /// When it was first seen that another ownership of `volume` had followed that of `epoch`, if any has.
    pub(super) fn ended(&self, volume: VolumeId, epoch: Epoch) -> Option<Duration> {
        let later = self.ownerships.range((volume, epoch.next())..=(volume, Epoch(u64::MAX)));
        later.map(|(_, (_, seen))| *seen).min()
    }
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

/// `entry` took effect in the shard in `directory`, on `volume`: a rollback may have come to nothing.
pub(crate) fn changed(directory: &Path, entry: &Entry, volume: &Volume) {
    let Entry::RolledBack { lsn, snapshot, .. } = entry else { return };
    let Some(back_to) = volume.snapshot(*snapshot).filter(|_| volume.known == *lsn) else { return };
    PRESENT.with_borrow(|present| {
        if let (Some(history), Some(node)) = (present, node_of(directory)) {
            history.logged(node, volume.id, *lsn, Change::Back(back_to.lsn));
        }
    });
}

/// The shard in `directory` has found `entry` in its log. It took effect before, or was refused when the store failed and is there all the same.
pub(crate) fn replayed(directory: &Path, entry: &Entry) {
    PRESENT.with_borrow(|present| {
        if let Some(history) = present {
            history.replayed(directory, entry);
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

/// What an entry writes, if it writes something.
fn change_of(entry: &Entry) -> Option<(VolumeId, Lsn, Change)> {
    match entry {
        Entry::Write { volume, lsn, start, checksums } => {
            let contents = checksums.iter().copied().map(Some).collect();
            Some((*volume, *lsn, Change::Write(start.0, contents)))
        }
        Entry::Zero { volume, lsn, start, count } => {
            Some((*volume, *lsn, Change::Write(start.0, vec![None; *count as usize])))
        }
        _ => None,
    }
}

/// Where a snapshot ends, if metadata knows that.
fn made(state: &MetaState, volume: VolumeId, snapshot: SnapshotId) -> Option<Lsn> {
    let volume = state.volume(volume)?;
    Some(volume.snapshots.iter().find(|listed| listed.id == snapshot)?.made?.lsn)
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
        let mut book = self.book();
        let has_run = book.ran.remove(&node);
        // A process that stood still until it died has lost nothing: what is missing went with the one before.
        if has_run || !matches!(book.deaths.get(&node), Some(Death::PowerCut(_))) {
            book.deaths.insert(node, death);
        }
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
        self.book().ran.insert(node);
        if let Entry::Relocated { volume, moves, .. } = entry {
            *self.book().moved.entry(*volume).or_default() += moves.len() as u64;
        }
        if let Some((volume, lsn, change)) = change_of(entry) {
            self.logged(node, volume, lsn, change);
        }
    }

    fn replayed(&self, directory: &Path, entry: &Entry) {
        let (Some(node), Some((volume, lsn, change))) = (node_of(directory), change_of(entry)) else { return };
        let is_it = |logged: &Logged| (logged.node, logged.volume, logged.lsn) == (node, volume, lsn);
        if self.book().logged.iter().any(|logged| is_it(logged) && logged.lost.is_none()) {
            return;
        }
        self.logged(node, volume, lsn, change);
        if let Some(logged) = self.book().logged.last_mut() {
            logged.was_refused = true;
        }
    }

    fn logged(&self, node: NodeId, volume: VolumeId, lsn: Lsn, change: Change) {
        let mut book = self.book();
        let at = book.clocks.get(&node).expect("it was booted").now();
        let (start, contents, back_to) = match change {
            Change::Write(start, contents) => (start, contents, None),
            Change::Back(lsn) => (0, Vec::new(), Some(lsn)),
        };
        book.logged.push(Logged { volume, node, lsn, at, start, contents, back_to, lost: None, was_refused: false });
    }

    fn recovered(&self, directory: &Path, volume: VolumeId, known: Lsn) {
        let Some(node) = node_of(directory) else { return };
        let mut book = self.book();
        book.ran.insert(node);
        let Some(death) = book.deaths.get(&node).copied() else { return };
        // What it dropped, being no replica any more, is with others.
        let dropped = book.removals.get(&(volume, node)).and_then(|removals| removals.last().copied());
        let lost = |logged: &&mut Logged| {
            let was_kept = dropped.is_none_or(|dropped| dropped < logged.at);
            logged.node == node && logged.volume == volume && logged.lsn > known && was_kept
        };
        for logged in book.logged.iter_mut().filter(lost) {
            logged.lost.get_or_insert(death);
        }
    }

    /// Notes owners, takeovers and replicas that are removed as `states` show them.
    pub(super) async fn follow(self, mut states: watch::Receiver<Arc<MetaState>>, time: LocalTime) {
        let mut holders: BTreeMap<VolumeId, BTreeSet<NodeId>> = BTreeMap::new();
        loop {
            let state = states.borrow_and_update().clone();
            let now = time.now();
            for volume in state.volumes() {
                let mut book = self.book();
                book.ownerships.entry((volume.id, volume.epoch)).or_insert((volume.owner, now));
                let hold: BTreeSet<NodeId> = volume.replicas.iter().copied().chain([volume.owner]).collect();
                let held = holders.insert(volume.id, hold.clone()).unwrap_or_default();
                for node in held.difference(&hold) {
                    book.removals.entry((volume.id, *node)).or_default().push(now);
                }
                if let Some(origin) = volume.origin
                    && let Some(lsn) = made(&state, origin.volume, origin.snapshot)
                {
                    book.clones.entry(volume.id).or_insert(Begun { origin: origin.volume, lsn, at: now });
                }
                for fork in &volume.forks {
                    let cut = Cut { volume: volume.id, epoch: fork.epoch, end: fork.end, seen: now };
                    // Of what was given away nothing is cut off that anybody was told of.
                    let cuts = match state.rescued_from(volume.id, fork.epoch) {
                        Some(_) => &mut book.rescues,
                        None => &mut book.cuts,
                    };
                    cuts.entry((volume.id, fork.epoch)).or_insert(cut);
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

mod tests {
    use super::*;

    /// Cleaning, seed 194: a machine lost its power, was started while it stood still, and was killed before it had done anything. What the
    /// power cut had cost was held against the kill.
    #[test]
    fn what_is_missing_went_with_the_last_process_that_ran() {
        let (history, node, volume) = (History::default(), NodeId(2), VolumeId(7));
        let at = Duration::from_secs;
        let write = |sequence, at| Logged {
            volume,
            node,
            lsn: Lsn::new(Epoch(1), sequence),
            at,
            start: 0,
            contents: Vec::new(),
            back_to: None,
            lost: None,
            was_refused: false,
        };
        history.book().logged.extend([write(1, at(1)), write(2, at(2))]);
        history.died(node, Death::PowerCut(at(3)));
        history.died(node, Death::Killed(at(4)));
        history.recovered(&directory(node), volume, Lsn::new(Epoch(1), 1));
        history.died(node, Death::Killed(at(5)));
        history.recovered(&directory(node), volume, Lsn::ZERO);
        let lost: Vec<_> = history.book().logged.iter().map(|logged| logged.lost).collect();
        assert_eq!(lost, [Some(Death::Killed(at(5))), Some(Death::PowerCut(at(3)))]);
    }
}
