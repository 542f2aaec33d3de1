//! When the next delta of a lazy replica may begin. Pure: time is an argument.

use std::time::Duration;

use client_lib::policy::Mode;
use tokio::time::Instant;

/// The pace of one replica's deltas.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last one was begun.
    begun: Option<Instant>,
}

impl Pace {
    /// A delta begins at `now`.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// Whether the next one may begin at `now`. Who is waited for, by a handover or a flush, does not wait for an interval.
    pub(super) fn is_due(&self, mode: Mode, is_waited_for: bool, now: Instant) -> bool {
        match mode {
            Mode::Eager => true,
            Mode::Lazy { interval_ms } => {
                let interval = Duration::from_millis(interval_ms);
                is_waited_for || self.begun.is_none_or(|begun| now.duration_since(begun) >= interval)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);
    const LAZY: Mode = Mode::Lazy { interval_ms: 600_000 };

    /// A flush in a class that only a lazy replica could meet, of more than fits into one call, was answered when the replica's interval was over.
    #[test]
    fn who_is_waited_for_does_not_wait_for_the_interval() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.is_due(LAZY, false, now), "the first one");
        pace.begin(now);
        let soon = now + INTERVAL / 2;
        assert!(!pace.is_due(LAZY, false, soon) && pace.is_due(LAZY, true, soon));
        assert!(pace.is_due(Mode::Eager, false, soon) && pace.is_due(LAZY, false, now + INTERVAL));
    }
}
