//! The number of a session, and its numbers for its forwarded writes: each keeps its number in every attempt, and the owner hears below which
//! number all have been answered, so that it may forget them ([`crate::volume::ledger`]).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::volume::ledger::Origin;

/// A number for a session that no other one has in the cluster's life: an owner takes writes of one number for those of one session. Who hears of it
/// reads nothing in it, not even which of two came first.
///
/// It is drawn. Of the 1024 sessions that a volume remembers, a new one has the number of one once in 2^54 times.
#[must_use]
pub(super) fn session_number() -> u64 {
    client_lib::random::bits()
}

/// The numbers of one session.
#[derive(Debug, Default)]
pub struct Numbers(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Those that are not answered yet.
    open: BTreeSet<u64>,
}

/// A number in use. Dropped, it counts as answered: a write that is still on its way under it is not carried out any more.
#[derive(Debug)]
pub struct Number<'a> {
    numbers: &'a Numbers,
    number: u64,
}

impl Numbers {
    /// A number that was never used.
    pub fn take(&self) -> Number<'_> {
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        taken.open.insert(number);
        Number { numbers: self, number }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Number<'_> {
    /// The write as the owner is told of it, for an attempt of `session` now.
    #[must_use]
    pub fn origin(&self, session: u64) -> Origin {
        let taken = self.numbers.taken();
        Origin { session, number: self.number, answered: taken.open.first().copied().unwrap_or(taken.next) }
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.numbers.taken().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number was put together from the lower 16 bits of the node's, as many of its process's, and a count. Nodes have the numbers of entries of
    /// Raft's log, which soon are larger than that: nodes 70,000 and 135,536, each in its first process, gave out the same ones. A session of the
    /// second one began with writes that the volume's owner took for those of the first one, carried out long ago: they were acked and dropped.
    #[test]
    fn sessions_of_all_nodes_and_processes_have_different_numbers() {
        let process = || (0..1000).map(|_| session_number()).collect::<Vec<_>>();
        let processes: Vec<_> = (0..4).map(|_| std::thread::spawn(process)).collect();
        let all: Vec<u64> = processes.into_iter().flat_map(|process| process.join().expect("joins")).collect();
        let different: BTreeSet<u64> = all.iter().copied().collect();
        assert_eq!((different.len(), all.len()), (4000, 4000));
    }

    #[test]
    fn sessions_have_the_same_numbers_in_every_run_of_a_seed() {
        let run = |seed| {
            client_lib::random::seed_thread(Some(seed));
            let numbers = [session_number(), session_number()];
            client_lib::random::seed_thread(None);
            numbers
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn a_number_stays_and_those_before_the_oldest_open_one_are_answered() {
        let numbers = Numbers::default();
        let (first, second) = (numbers.take(), numbers.take());
        assert_eq!(second.origin(7), Origin { session: 7, number: 1, answered: 0 });
        drop(first);
        assert_eq!(second.origin(7), Origin { session: 7, number: 1, answered: 1 });
        let third = numbers.take();
        drop(second);
        assert_eq!(third.origin(7), Origin { session: 7, number: 2, answered: 2 });
    }
}
