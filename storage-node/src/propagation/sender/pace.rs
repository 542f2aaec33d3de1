//! When the next delta of a lazy replica may begin. Pure: time is an argument.

use std::time::Duration;

use client_lib::policy::Mode;
use tokio::time::Instant;

/// The pace of one replica's deltas.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last one was begun.
    begun: Option<Instant>,
    /// The replica does not have it yet.
    is_under_way: bool,
}

impl Pace {
    /// A delta begins at `now`.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.begun, self.is_under_way) = (Some(now), true);
    }

    /// The replica has it.
    pub(super) fn arrived(&mut self) {
        self.is_under_way = false;
    }

    /// Nothing is on its way any more. What has not arrived goes on at once, whenever it was begun.
    pub(super) fn ended(&mut self) {
        if std::mem::take(&mut self.is_under_way) {
            self.begun = None;
        }
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

    /// The interval counted from when a delta was begun, also when the link broke in the middle of it: the replica waited another interval for the rest,
    /// and with a link that broke more often than a delta took it never got one.
    #[test]
    fn a_delta_that_has_not_arrived_goes_on_without_another_interval() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.begin(now);
        pace.ended();
        assert!(pace.is_due(LAZY, false, now), "it broke");
        pace.begin(now);
        pace.arrived();
        pace.ended();
        assert!(!pace.is_due(LAZY, false, now + INTERVAL / 2), "it was there before anything broke");
        assert!(pace.is_due(LAZY, false, now + INTERVAL));
    }
}
