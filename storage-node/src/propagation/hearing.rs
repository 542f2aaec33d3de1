//! When a replica was told what, by its own clock: what it can say of its owner once that is lost.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use super::progress::Progress;
use crate::peer::message::ReplicaPosition;

/// What a replica of one volume has heard.
#[derive(Debug)]
pub struct Hearing {
    began: Instant,
    heard: Mutex<(Option<Duration>, Progress)>,
}

impl Default for Hearing {
    fn default() -> Hearing {
        Hearing { began: Instant::now(), heard: Mutex::default() }
    }
}

impl Hearing {
    /// The owner has told something, and the replica is at `position` since.
    pub fn heard(&self, position: ReplicaPosition) {
        self.heard_at(self.began.elapsed(), position);
    }

    fn heard_at(&self, now: Duration, position: ReplicaPosition) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.0 = Some(now);
        heard.1.sealed(position.known, now);
        heard.1.heard(position);
    }

    /// How long ago the owner was heard of, and how long before that the oldest write was told that is not applied here.
    /// `None` when it was never heard of since this process began. An owner is silent while nothing is written.
    #[must_use]
    pub fn last(&self) -> Option<(Duration, Duration)> {
        self.last_at(self.began.elapsed())
    }

    fn last_at(&self, now: Duration) -> Option<(Duration, Duration)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.0.map(|last| (now.saturating_sub(last), heard.1.behind_for(last)))
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, Lsn};

    use super::*;

    #[test]
    fn what_is_not_applied_counts_from_when_it_was_told_to_the_last_word() {
        let s = Duration::from_secs;
        let lsn = |sequence| Lsn::new(Epoch(1), sequence);
        let at = |known, watermark| ReplicaPosition {
            known: lsn(known),
            watermark: lsn(watermark),
            ..ReplicaPosition::default()
        };
        let hearing = Hearing::default();
        assert_eq!(hearing.last_at(s(9)), None);
        hearing.heard_at(s(10), at(5, 5));
        assert_eq!(hearing.last_at(s(12)), Some((s(2), s(0))), "it has all that it was told");
        hearing.heard_at(s(20), at(9, 5));
        hearing.heard_at(s(26), at(12, 5));
        assert_eq!(hearing.last_at(s(29)), Some((s(3), s(6))));
        hearing.heard_at(s(30), at(12, 9));
        assert_eq!(hearing.last_at(s(30)), Some((s(0), s(4))));
    }
}
