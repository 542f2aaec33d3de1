//! When a volume was at which position, by its owner's clock: how old the oldest write is that a replica lacks, and as of when it is a
//! disk of the volume. Pure: time is an argument.
//!
//! A point says that the volume was at a position until a moment at least: what was written after it was written later. Points are
//! noted several times a second while something is written. There are at most [`POINTS_MAX`] of them; beyond that the older half is
//! thinned out, which makes what is behind look older than it is and never younger.

use std::collections::VecDeque;
use std::time::Duration;

use client_lib::Lsn;

/// How many points are kept. With ten a second the last minute stays exact to a tenth of a second, whatever is before it.
pub const POINTS_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Point {
    lsn: Lsn,
    until: Duration,
}

/// The positions of a volume over the time of an ownership.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// When the first point was noted.
    began: Duration,
    points: VecDeque<Point>,
}

impl Timeline {
    /// The newest write is `head` at `now`.
    pub fn note(&mut self, head: Lsn, now: Duration) {
        match self.points.back_mut() {
            Some(last) if last.lsn >= head => last.until = last.until.max(now),
            before => {
                if before.is_none() {
                    self.began = now;
                }
                if self.points.len() == POINTS_MAX {
                    self.thin();
                }
                self.points.push_back(Point { lsn: head, until: now });
            }
        }
    }

    /// Nothing was written until `moment` since what was noted last.
    pub fn note_calm(&mut self, moment: Duration) {
        if let Some(last) = self.points.back_mut() {
            last.until = last.until.max(moment);
        }
    }

    /// Drops every second point of the older half, but for the first.
    fn thin(&mut self) {
        let mut number = 0;
        self.points.retain(|_| {
            number += 1;
            number > POINTS_MAX / 2 || number % 2 == 1
        });
    }

    /// How old the oldest write is, at most, that a replica at `watermark` lacks; zero when it has all. If it lacks writes of an
    /// earlier ownership they are older than what is told, which is how long this one lasts.
    #[must_use]
    pub fn behind(&self, watermark: Lsn, now: Duration) -> Duration {
        match self.points.back() {
            Some(last) if last.lsn > watermark => now.saturating_sub(self.moment(watermark).unwrap_or(self.began)),
            _ => Duration::ZERO,
        }
    }

    /// A moment at which the volume was as a replica at `watermark` shows it: the last one that is known for certain. `None` when
    /// that was before this ownership.
    #[must_use]
    pub fn moment(&self, watermark: Lsn) -> Option<Duration> {
        let after = self.points.partition_point(|point| point.lsn <= watermark);
        after.checked_sub(1).map(|at| self.points[at].until)
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_is_lacking_counts_from_when_the_volume_was_last_seen_without_it() {
        let mut timeline = Timeline::default();
        assert_eq!(timeline.behind(lsn(5), ms(9)), Duration::ZERO, "nothing is known yet");
        timeline.note(lsn(5), ms(1000));
        timeline.note(lsn(5), ms(4000));
        timeline.note(lsn(9), ms(4100));
        assert_eq!(timeline.behind(lsn(9), ms(6000)), Duration::ZERO);
        assert_eq!(timeline.behind(lsn(5), ms(6000)), ms(2000), "it was idle until then");
        assert_eq!(timeline.behind(lsn(7), ms(6000)), ms(2000), "between two looks: the earlier counts");
        assert_eq!(
            timeline.behind(lsn(2), ms(6000)),
            ms(5000),
            "of an earlier ownership: for as long as this one lasts"
        );
        assert_eq!((timeline.moment(lsn(5)), timeline.moment(lsn(2))), (Some(ms(4000)), None));
        timeline.note_calm(ms(9000));
        timeline.note(lsn(10), ms(9100));
        assert_eq!(timeline.behind(lsn(9), ms(9500)), ms(500), "nobody looked, and nothing was written");
    }

    proptest! {
        /// The age that is told is never less than the true one, and exact to a look for what is recent.
        #[test]
        fn a_lag_is_never_made_smaller(
            writes in proptest::collection::vec((1..50u64, 1..400u64), 1..3000),
            asked in any::<proptest::sample::Index>(),
        ) {
            let mut timeline = Timeline::default();
            let (mut sequence, mut now) = (1, 1000);
            timeline.note(lsn(sequence), ms(now));
            // After each look so many writes are made at once, and then time passes until the next look.
            let mut made: Vec<(u64, u64)> = Vec::new();
            for (count, pause) in writes {
                made.extend((1..=count).map(|more| (sequence + more, now)));
                sequence += count;
                now += pause;
                timeline.note(lsn(sequence), ms(now));
                prop_assert!(timeline.points.len() <= POINTS_MAX);
            }
            let (oldest, at) = made[asked.index(made.len())];
            let told = timeline.behind(lsn(oldest - 1), ms(now));
            prop_assert!(told >= ms(now - at), "write {oldest} is {} ms old, told {told:?}", now - at);
            prop_assert!(timeline.moment(lsn(oldest - 1)).is_some_and(|moment| moment <= ms(at)));
            prop_assert_eq!(timeline.behind(lsn(sequence), ms(now)), Duration::ZERO);
        }
    }
}
