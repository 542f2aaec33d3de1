//! Writes that wait to begin, in the order in which they came.
//!
//! Pure. Without it whoever looked first after a change began: a write that needs much room waited for as long as smaller ones came, and
//! one could begin before an earlier one of the same bytes. Invariants:
//!
//! - A write begins only when nothing that overlaps it waits before it.
//! - Room goes to who has waited longest for it: nothing that came later takes any before that. One write always has room when nothing else is
//!   kept, so it comes to that.
//! - What waits for a write of the same bytes holds up nobody else.

use std::collections::{BTreeMap, BTreeSet};

use super::{Extent, Journal, Write};

/// What keeps a write from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A write of the same bytes that came before.
    Order,
    /// Too much is kept, or under way, or another write waits for room.
    Room,
}

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// The writes of a session that wait to begin.
#[derive(Debug, Default)]
pub struct Line {
    next: u64,
    waiting: BTreeMap<Place, Extent>,
    /// Those that nothing but want of room keeps from beginning.
    for_room: BTreeSet<Place>,
}

impl Line {
    /// What keeps `write` from beginning in `journal`, which has `place` or comes just now.
    #[must_use]
    pub fn obstacle(&self, place: Option<Place>, write: &Write, journal: &Journal) -> Option<Obstacle> {
        let place = place.unwrap_or(Place(self.next));
        if self.for_room.first().is_some_and(|first| *first < place) {
            return Some(Obstacle::Room);
        }
        journal.obstacle(write).or_else(|| {
            let mut before = self.waiting.range(..place);
            before.any(|(_, extent)| write.extent().overlaps(*extent)).then_some(Obstacle::Order)
        })
    }

    /// Has `write` wait for that, at `place` or at the end of the line.
    pub fn wait(&mut self, place: Option<Place>, write: &Write, obstacle: Obstacle) -> Place {
        let place = place.unwrap_or(Place(self.next));
        self.next = self.next.max(place.0 + 1);
        self.waiting.insert(place, write.extent());
        match obstacle {
            Obstacle::Order => self.for_room.remove(&place),
            Obstacle::Room => self.for_room.insert(place),
        };
        place
    }

    /// The write at `place` has begun, or is not wanted any more.
    pub fn leave(&mut self, place: Place) {
        self.waiting.remove(&place);
        self.for_room.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::client::journal::ENTRY_COST;
    use crate::types::{Epoch, Lsn};

    fn write(offset: u64, length: u64) -> Write {
        Write { offset, length, data: Some(Bytes::from(vec![1; length as usize])), fua: false }
    }

    /// A journal with room for two small writes, and one that has begun.
    fn begun() -> (Journal, super::super::WriteKey) {
        let mut journal = Journal::new(2 * (ENTRY_COST + 8), 7);
        let key = journal.begin(write(0, 8));
        (journal, key)
    }

    #[test]
    fn a_large_write_is_not_overtaken_for_ever_by_small_ones() {
        let (mut journal, first) = begun();
        let mut line = Line::default();
        let large = write(100, 64);
        let obstacle = line.obstacle(None, &large, &journal).expect("there is no room for it");
        assert_eq!(obstacle, Obstacle::Room);
        let place = line.wait(None, &large, obstacle);
        assert_eq!(journal.obstacle(&write(200, 8)), None, "there is for a small one");
        assert_eq!(line.obstacle(None, &write(200, 8), &journal), Some(Obstacle::Room), "which comes after it");
        journal.acked(first, Lsn::new(Epoch(1), 1));
        assert_eq!(line.obstacle(Some(place), &large, &journal), Some(Obstacle::Room), "acked is not durable");
        journal.flushed(journal.mark());
        assert_eq!(line.obstacle(Some(place), &large, &journal), None, "one always has room");
        line.leave(place);
        assert_eq!(line.obstacle(None, &write(200, 8), &journal), None);
    }

    #[test]
    fn a_write_does_not_begin_before_an_earlier_one_of_the_same_bytes() {
        let (journal, _) = begun();
        let mut line = Line::default();
        let (second, third, other) = (write(4, 8), write(10, 8), write(50, 8));
        let place = line.wait(None, &second, line.obstacle(None, &second, &journal).expect("overlaps the first"));
        assert_eq!(journal.obstacle(&third), None, "nothing that is under way overlaps it");
        assert_eq!(line.obstacle(None, &third, &journal), Some(Obstacle::Order));
        assert_eq!(line.obstacle(None, &other, &journal), None, "and nobody else waits");
        let after = line.wait(None, &third, Obstacle::Order);
        line.leave(place);
        assert_eq!(line.obstacle(Some(after), &third, &journal), None, "the second was given up");
    }

    #[test]
    fn who_comes_to_wait_for_order_alone_holds_up_nobody() {
        let (mut journal, first) = begun();
        let mut line = Line::default();
        let large = write(4, 64);
        let place = line.wait(None, &large, Obstacle::Room);
        journal.acked(first, Lsn::new(Epoch(1), 1));
        journal.flushed(journal.mark());
        journal.begin(write(4, 8));
        line.wait(Some(place), &large, Obstacle::Order);
        assert_eq!(line.obstacle(None, &write(200, 8), &journal), None);
    }
}
