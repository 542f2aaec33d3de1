//! Who writes a volume from afar: which epoch was claimed, and which forwarded writes were carried out.
//!
//! A session that does not sit at the owner has its writes passed on, and asks again when no answer comes. The owner may
//! have carried the write out, and others may have written the same blocks since: a second time would undo theirs. So a
//! session numbers its forwarded writes, a write keeps its number in every attempt, and the numbers that were carried out
//! are part of the volume's state: logged behind the write, in checkpoints, and given to the next owner with a handover.
//! (The completion records of RIFL, Lee et al., SOSP 2015; without leases on them, because a takeover ends the sessions.)

use std::collections::BTreeMap;

use client_lib::Epoch;
use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

/// How many sessions are remembered; the one that has not written for longest is forgotten first. A write of a forgotten
/// session that is asked for again is carried out again.
pub const SESSIONS_MAX: usize = 1024;

/// How many separate runs of numbers are remembered of a session. Between two lies a write that is not answered yet, so there
/// are no more of them than a connection has requests under way; of a peer that says otherwise the oldest are forgotten.
const RUNS_MAX: usize = 512;

/// A forwarded write, the same in every attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Unique per session, over the life of the cluster.
    pub session: u64,
    /// The write's number in the session.
    pub number: u64,
    /// Every write below this number has been answered, or given up: none of them may be carried out any more.
    pub answered: u64,
}

/// Who sends a forwarded write: which write of which session it is, and which attempt at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The same in every attempt.
    pub origin: Origin,
    /// Rises when the session retries after an unknown outcome, so that a late first attempt is refused.
    pub generation: u64,
    /// The epoch in which the session got its right to write.
    pub right: Epoch,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub enum Author {
    /// A session at the owner, which claims the volume by it; with the origin of a write that it had sent to another node before.
    Session(Option<Origin>),
    /// One whose write was passed on from another node, or a client.
    Afar(Writer),
    /// The shard itself.
    Shard,
}

impl Author {
    /// Which write of which session it is, where it may be asked for twice.
    #[must_use]
    pub fn origin(self) -> Option<Origin> {
        match self {
            Author::Session(origin) => origin,
            Author::Afar(writer) => Some(writer.origin),
            Author::Shard => None,
        }
    }
}

/// News for a ledger: what one write adds, or all that an owner knows. Runs are `from..to` of numbers, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerNews {
    /// A session at the owner has written in this epoch; 0 says nothing.
    pub claim: Epoch,
    /// Per session, which writes are not to be carried out any more.
    pub done: Vec<(u64, Vec<(u64, u64)>)>,
}

impl LedgerNews {
    /// A session at the owner of `epoch` writes.
    #[must_use]
    pub fn claim(epoch: Epoch) -> LedgerNews {
        LedgerNews { claim: epoch, done: Vec::new() }
    }

    /// The write was carried out.
    #[must_use]
    pub fn carried_out(origin: Origin) -> LedgerNews {
        let Origin { session, number, answered } = origin;
        LedgerNews { claim: Epoch(0), done: vec![(session, vec![(0, answered), (number, number.saturating_add(1))])] }
    }

    /// What a ledger would keep of it, so that it has a bound whoever told it.
    #[must_use]
    pub fn bounded(mut self) -> LedgerNews {
        // At once: a ledger forgets them one by one.
        self.done.drain(..self.done.len().saturating_sub(SESSIONS_MAX));
        let mut ledger = Ledger::default();
        ledger.note(&self);
        ledger.all()
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claim == Epoch(0) && self.done.is_empty()
    }
}

/// What is known of a volume's writers.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    claim: Epoch,
    sessions: BTreeMap<u64, Writes>,
    /// Rises with every note: who has the lowest has not written for longest.
    notes: u64,
}

/// What is known of a session.
#[derive(Clone, Debug, Default)]
struct Writes {
    done: RangeSet<u64>,
    /// The last note of it.
    noted: u64,
}

/// Two that know the same are equal, in whatever order they heard of it.
impl PartialEq for Ledger {
    fn eq(&self, other: &Ledger) -> bool {
        let sessions = |ledger: &Ledger| -> Vec<(u64, RangeSet<u64>)> {
            ledger.sessions.iter().map(|(session, writes)| (*session, writes.done.clone())).collect()
        };
        self.claim == other.claim && sessions(self) == sessions(other)
    }
}

impl Eq for Ledger {}

impl Ledger {
    /// The epoch of the last claim.
    #[must_use]
    pub fn claimed(&self) -> Epoch {
        self.claim
    }

    /// Whether the write was carried out, or its session has its answer.
    #[must_use]
    pub fn has(&self, origin: Origin) -> bool {
        self.sessions.get(&origin.session).is_some_and(|writes| writes.done.contains(&origin.number))
    }

    /// Takes note of `news`.
    pub fn note(&mut self, news: &LedgerNews) {
        self.claim = self.claim.max(news.claim);
        for (session, runs) in &news.done {
            self.notes += 1;
            let writes = self.sessions.entry(*session).or_default();
            writes.noted = self.notes;
            let done = &mut writes.done;
            // From another node: a run that is none is passed over.
            runs.iter().filter(|(from, to)| from < to).for_each(|(from, to)| done.insert(*from..*to));
            while done.len() > RUNS_MAX {
                // Not the first: it is what has been answered.
                let Some(oldest) = done.iter().nth(1).cloned() else { break };
                done.remove(oldest);
            }
        }
        while self.sessions.len() > SESSIONS_MAX {
            let idle = self.sessions.iter().min_by_key(|(_, writes)| writes.noted).map(|(session, _)| *session);
            idle.and_then(|session| self.sessions.remove(&session));
        }
    }

    /// What was carried out of these sessions, as far as it is known.
    #[must_use]
    pub fn of(&self, sessions: &[u64]) -> Vec<(u64, Vec<(u64, u64)>)> {
        let known = |session: &u64| self.sessions.get(session).map(|writes| (*session, runs_of(&writes.done)));
        sessions.iter().filter_map(known).collect()
    }

    /// All of it, for another ledger: the session that has not written for longest comes first.
    #[must_use]
    pub fn all(&self) -> LedgerNews {
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_by_key(|(_, writes)| writes.noted);
        let done = sessions.into_iter().map(|(session, writes)| (*session, runs_of(&writes.done))).collect();
        LedgerNews { claim: self.claim, done }
    }
}

fn runs_of(done: &RangeSet<u64>) -> Vec<(u64, u64)> {
    done.iter().map(|run| (run.start, run.end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(number: u64, answered: u64) -> Origin {
        Origin { session: 7, number, answered }
    }

    /// A ledger with thousands of runs of one session, which no session has, came from another node: the entry for it was larger than a record
    /// may be, and the store's thread panicked.
    #[test]
    fn what_another_node_tells_has_a_bound() {
        let runs = |count: u64| (0..count).map(|run| (2 * run, 2 * run + 1)).collect::<Vec<_>>();
        let most = RUNS_MAX as u64;
        let told = LedgerNews { claim: Epoch(3), done: vec![(7, runs(most + 3)), (8, runs(most)), (9, Vec::new())] };
        let mut ledger = Ledger::default();
        ledger.note(&told);
        let bounded = told.bounded();
        assert_eq!(bounded, ledger.all(), "what a ledger keeps of it");
        assert_eq!(bounded.done[0].1[..2], [(0, 1), (8, 9)], "what was answered, and the newest");
        let many = LedgerNews { claim: Epoch(3), done: (0..2000).map(|session| (session, runs(1))).collect() };
        assert_eq!(many.bounded().done.first(), Some(&(2000 - SESSIONS_MAX as u64, runs(1))));
    }

    #[test]
    fn what_was_carried_out_or_answered_is_known_and_nothing_else() {
        let mut ledger = Ledger::default();
        ledger.note(&LedgerNews::carried_out(origin(4, 2)));
        let known: Vec<u64> = (0..8).filter(|number| ledger.has(origin(*number, 0))).collect();
        assert_eq!(known, [0, 1, 4], "2 and 3 are still under way");
        assert!(!ledger.has(Origin { session: 8, ..origin(4, 0) }), "numbers are of a session");
        ledger.note(&LedgerNews::carried_out(origin(2, 2)));
        ledger.note(&LedgerNews::carried_out(origin(5, 5)));
        assert_eq!(ledger.all().done, [(7, vec![(0, 6)])], "runs join");
    }

    #[test]
    fn another_ledger_learns_all_of_it_in_any_order() {
        let (mut first, mut second) = (Ledger::default(), Ledger::default());
        first.note(&LedgerNews::carried_out(origin(3, 0)));
        first.note(&LedgerNews::claim(Epoch(5)));
        second.note(&LedgerNews::carried_out(origin(9, 1)));
        second.note(&LedgerNews::claim(Epoch(4)));
        let (ours, theirs) = (first.all(), second.all());
        first.note(&theirs);
        second.note(&ours);
        assert_eq!(first, second);
        assert_eq!(first.claimed(), Epoch(5));
        assert!(first.has(origin(3, 0)) && first.has(origin(9, 0)) && !first.has(origin(4, 0)));
    }

    /// Sessions of clients live long: one that goes on must not be forgotten for those that came and went since, whatever their
    /// numbers are, and not over a checkpoint or a handover either.
    #[test]
    fn who_writes_is_not_forgotten_for_those_that_came_and_went() {
        let mut ledger = Ledger::default();
        let of = |session| Origin { session, ..origin(1, 0) };
        ledger.note(&LedgerNews::carried_out(of(5)));
        for session in 100..100 + SESSIONS_MAX as u64 / 2 {
            ledger.note(&LedgerNews::carried_out(of(session)));
        }
        ledger.note(&LedgerNews::carried_out(Origin { number: 2, ..of(5) }));
        let mut next = Ledger::default();
        next.note(&ledger.all());
        for session in 10_000..10_000 + 3 * SESSIONS_MAX as u64 / 4 {
            next.note(&LedgerNews::carried_out(of(session)));
        }
        assert_eq!(next.all().done.len(), SESSIONS_MAX);
        assert!(next.has(of(5)), "it wrote after those that are forgotten");
        assert!(!next.has(of(100)) && next.has(of(99 + SESSIONS_MAX as u64 / 2)));
        assert_eq!(next.of(&[5, 6]), [(5, vec![(1, 3)])]);
    }

    #[test]
    fn it_stays_small_whatever_sessions_do() {
        let mut ledger = Ledger::default();
        for number in 0..4 * RUNS_MAX as u64 {
            ledger.note(&LedgerNews::carried_out(origin(2 * number + 1, 0)));
        }
        assert_eq!(ledger.all().done[0].1.len(), RUNS_MAX);
        assert!(ledger.has(origin(8 * RUNS_MAX as u64 - 1, 0)), "the newest is known");
        for session in 0..2 * SESSIONS_MAX as u64 {
            ledger.note(&LedgerNews::carried_out(Origin { session, ..origin(1, 0) }));
        }
        assert_eq!(ledger.all().done.len(), SESSIONS_MAX);
        assert!(ledger.has(Origin { session: 2 * SESSIONS_MAX as u64 - 1, ..origin(1, 0) }));
        // As no sound node would send it.
        ledger.note(&LedgerNews { claim: Epoch(0), done: vec![(9, vec![(5, 5), (7, 3), (u64::MAX, u64::MAX)])] });
    }
}
