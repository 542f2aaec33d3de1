//! How far a replica is, as its owner sees it, and as it sees itself while its owner is silent. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use client_lib::Lsn;

use crate::ownership::standing::Tail;
use crate::peer::message::ReplicaPosition;

/// How many manifests are remembered with their time. Beyond it the oldest are merged, which makes
/// `seconds_behind` too large rather than too small.
const MARKS_MAX: usize = 1024;

/// A replica on its way back to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejoining {
    /// Of this position is what it has, but for what it lacks.
    pub base: Lsn,
    /// Blocks of which it has discarded its own version.
    pub discarded: u64,
}

/// A replica as its owner sees it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The replica's last word.
    pub position: ReplicaPosition,
    /// Whether the last call to it succeeded.
    pub reachable: bool,
    /// What it keeps, if it has left the volume.
    pub tail: Option<Tail>,
    /// How it comes back to the volume, if it does; of how many blocks it lacks then.
    pub rejoining: Option<Rejoining>,
    /// Why not.
    pub error: Option<String>,
    /// While a delta is on its way: where the replica was when it told last, and how many blocks it lacked then.
    lacking: Option<(Lsn, Lsn, u64)>,
    /// For each manifest that is not applied yet, when it was sealed.
    marks: VecDeque<(Lsn, Duration)>,
}

impl Progress {
    /// A manifest that ends at `to` was sealed at `now`.
    pub fn sealed(&mut self, to: Lsn, now: Duration) {
        if self.marks.back().is_none_or(|(last, _)| *last < to) {
            if self.marks.len() == MARKS_MAX {
                // The second-oldest takes the oldest's time: later LSNs then count from the earlier moment.
                if let (Some((_, time)), Some(next)) = (self.marks.pop_front(), self.marks.front_mut()) {
                    next.1 = time;
                }
            }
            self.marks.push_back((to, now));
        }
    }

    /// The replica could not be brought further.
    pub fn failed(&mut self, error: String) {
        self.reachable = false;
        self.error = Some(error);
        // It may have lost what had come.
        self.lacking = None;
    }

    /// The replica said where it is.
    pub fn heard(&mut self, position: ReplicaPosition) {
        self.position = position;
        (self.reachable, self.tail) = (true, None);
        self.error = None;
        while self.marks.front().is_some_and(|(to, _)| *to <= position.watermark) {
            self.marks.pop_front();
        }
    }

    /// A part of a delta has come to the replica, which told where it is. Of several that are answered at once, the last word is the one that lacks least.
    pub(super) fn came(&mut self, told: ReplicaPosition) {
        let before = self.lacking.filter(|(known, watermark, _)| (*known, *watermark) == (told.known, told.watermark));
        let blocks = before.map_or(told.stale_blocks, |(.., blocks)| blocks.min(told.stale_blocks));
        self.lacking = Some((told.known, told.watermark, blocks));
    }

    /// How many blocks it knows of and does not hold.
    #[must_use]
    pub fn stale_blocks(&self) -> u64 {
        let position = self.position;
        let lacking =
            self.lacking.filter(|(known, watermark, _)| (*known, *watermark) == (position.known, position.watermark));
        lacking.map_or(position.stale_blocks, |(.., blocks)| blocks.min(position.stale_blocks))
    }

    /// It comes back to the volume, and has told what it lacks.
    pub(super) fn comes_back(&mut self, rejoining: Option<Rejoining>) {
        self.rejoining = rejoining;
    }

    /// What has changed up to here it has, but for what it lacks when it comes back.
    #[must_use]
    pub fn base(&self) -> Lsn {
        let left = self.tail.map(|tail| tail.from);
        left.or(self.rejoining.map(|rejoining| rejoining.base)).unwrap_or(self.position.watermark)
    }

    /// The replica said that it has left the volume.
    pub fn has_left(&mut self, tail: Tail) {
        *self = Progress { reachable: true, tail: Some(tail), ..Progress::default() };
    }

    /// How old the oldest write is that the replica has not applied; zero when it has all.
    #[must_use]
    pub fn behind_for(&self, now: Duration) -> Duration {
        self.marks.front().map_or(Duration::ZERO, |(_, sealed)| now.saturating_sub(*sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client_lib::Epoch;

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn at(sequence: u64) -> ReplicaPosition {
        ReplicaPosition { known: lsn(sequence), watermark: lsn(sequence), ..ReplicaPosition::default() }
    }

    #[test]
    fn the_age_is_that_of_the_oldest_write_not_applied() {
        let mut progress = Progress::default();
        progress.sealed(lsn(10), Duration::from_secs(1));
        progress.sealed(lsn(20), Duration::from_secs(3));
        assert_eq!(progress.behind_for(Duration::from_secs(5)), Duration::from_secs(4));
        progress.heard(at(10));
        assert_eq!(progress.behind_for(Duration::from_secs(5)), Duration::from_secs(2));
        progress.heard(at(20));
        assert_eq!(progress.behind_for(Duration::from_secs(9)), Duration::ZERO);
    }

    /// While a large delta was on its way the replica was said to lack all of it, to the last block: nobody could see how fast it went, and when it would be over.
    #[test]
    fn what_has_come_of_a_delta_is_lacked_no_more_before_all_of_it_has() {
        let mut progress = Progress::default();
        let lacks = |stale_blocks| ReplicaPosition {
            known: lsn(20),
            watermark: lsn(10),
            stale_blocks,
            ..ReplicaPosition::default()
        };
        progress.heard(lacks(100));
        assert_eq!(progress.stale_blocks(), 100);
        [70, 60, 80].into_iter().for_each(|rest| progress.came(lacks(rest)));
        progress.heard(lacks(100));
        assert_eq!(progress.stale_blocks(), 60, "the owner knows nothing newer");
        progress.failed("its node was restarted".to_owned());
        progress.heard(lacks(100));
        assert_eq!(progress.stale_blocks(), 100);
        progress.came(lacks(5));
        progress.heard(ReplicaPosition { known: lsn(30), ..lacks(40) });
        assert_eq!(progress.stale_blocks(), 40, "it was told of more");
        progress.heard(at(30));
        assert_eq!(progress.stale_blocks(), 0);
    }

    /// History was let go of that a node which had left would need to come back by what differs.
    #[test]
    fn who_has_left_or_comes_back_needs_what_has_changed_since_it_was_cut_off() {
        let mut progress = Progress::default();
        progress.heard(at(30));
        assert_eq!(progress.base(), lsn(30));
        progress.has_left(Tail { from: lsn(20), to: lsn(40), blocks: 3 });
        assert_eq!(progress.base(), lsn(20));
        progress.comes_back(Some(Rejoining { base: lsn(20), discarded: 3 }));
        progress.heard(ReplicaPosition { known: lsn(35), ..ReplicaPosition::default() });
        assert_eq!(progress.base(), lsn(20), "its watermark is zero until it is back");
        progress.comes_back(None);
        progress.heard(at(50));
        assert_eq!(progress.base(), lsn(50));
    }

    #[test]
    fn forgotten_marks_only_make_it_look_older() {
        let mut progress = Progress::default();
        for mark in 1..=(MARKS_MAX as u64 + 10) {
            progress.sealed(lsn(mark), Duration::from_secs(mark));
        }
        assert_eq!(progress.behind_for(Duration::from_secs(2000)), Duration::from_secs(1999));
    }
}
