//! Whose turn it is to be given away, of the volumes of a store that has failed. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{Epoch, VolumeId};
use tokio::time::Instant;

/// How many volumes are given away at a time.
const AT_ONCE: usize = 16;

/// After so long another attempt is made, the first time and at the most.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What was tried for a volume.
struct Attempt {
    epoch: Epoch,
    pause: Duration,
    next: Instant,
}

/// The attempts that came to nothing.
#[derive(Default)]
pub(super) struct Attempts(BTreeMap<VolumeId, Attempt>);

impl Attempts {
    /// Those of `due` whose turn it is at `now`: what was never tried comes first, then what waits longest. Attempts for others than
    /// `due`, or in another epoch, are forgotten.
    pub(super) fn turn(&mut self, due: &BTreeMap<VolumeId, Epoch>, now: Instant) -> Vec<VolumeId> {
        self.0.retain(|volume, attempt| due.get(volume) == Some(&attempt.epoch));
        let next = |volume: &VolumeId| self.0.get(volume).map(|attempt| attempt.next);
        let mut turn: Vec<_> =
            due.keys().copied().filter(|volume| next(volume).is_none_or(|next| next <= now)).collect();
        turn.sort_by_key(next);
        turn.truncate(AT_ONCE);
        turn
    }

    /// It came to nothing. Where no replica answers there is nothing but a question to repeat, and no reason to wait ever longer.
    pub(super) fn failed(&mut self, volume: VolumeId, epoch: Epoch, has_an_answer: bool, now: Instant) {
        let attempt = self.0.entry(volume).or_insert(Attempt { epoch, pause: RETRY_PAUSE.0, next: now });
        attempt.next = now + attempt.pause;
        attempt.pause = if has_an_answer { (attempt.pause * 2).min(RETRY_PAUSE.1) } else { RETRY_PAUSE.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(3);

    fn volumes(numbers: std::ops::RangeInclusive<u64>) -> BTreeMap<VolumeId, Epoch> {
        numbers.map(|number| (VolumeId(number), EPOCH)).collect()
    }

    /// They were tried by their numbers: where the first had only lost replicas, the later ones were never given away.
    #[test]
    fn a_volume_that_cannot_be_given_away_does_not_keep_others_from_their_turn() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let due = volumes(1..=100);
        let mut tried = BTreeMap::<VolumeId, u32>::new();
        for _ in 0..14 {
            let turn = attempts.turn(&due, now);
            assert_eq!(turn.len(), AT_ONCE);
            // As long as a replica may take to answer, and longer than the first pauses.
            now += Duration::from_secs(2);
            for volume in turn {
                *tried.entry(volume).or_default() += 1;
                attempts.failed(volume, EPOCH, false, now);
            }
        }
        assert_eq!(tried.len(), 100);
        assert!(tried.values().all(|times| (1..=3).contains(times)), "{tried:?}");
    }

    /// The replica was back, and was not asked for ten seconds, in which nothing could be written.
    #[test]
    fn who_does_not_answer_is_asked_again_soon_and_who_refuses_ever_later() {
        let (mut attempts, due) = (Attempts::default(), volumes(1..=1));
        let volume = VolumeId(1);
        for (has_an_answer, last) in [(false, RETRY_PAUSE.0), (true, RETRY_PAUSE.1)] {
            let mut now = Instant::now();
            let mut pause = Duration::ZERO;
            for _ in 0..8 {
                attempts.failed(volume, EPOCH, has_an_answer, now);
                assert!(attempts.turn(&due, now).is_empty());
                let begun = now;
                while attempts.turn(&due, now).is_empty() {
                    now += Duration::from_millis(100);
                }
                pause = now - begun;
            }
            assert_eq!(pause, last);
        }
        attempts.failed(volume, EPOCH, true, Instant::now());
        let next = BTreeMap::from([(volume, EPOCH.next())]);
        assert_eq!(attempts.turn(&next, Instant::now()), [volume], "another ownership begins anew");
    }
}
