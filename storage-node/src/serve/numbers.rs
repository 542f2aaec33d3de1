//! A session's numbers for its forwarded writes: each keeps its number in every attempt, and the owner hears below which
//! number all have been answered, so that it may forget them ([`crate::volume::ledger`]).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::volume::ledger::Origin;

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
