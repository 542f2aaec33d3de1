//! What is known of the path to one node, whichever connection has seen it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What was not seen for so long is not what the path is.
const KEPT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Known {
    rtt: Option<Duration>,
    base: Option<(Duration, Instant)>,
    rate: Option<(f64, Instant)>,
}

/// Nothing but first guesses depend on it.
#[derive(Debug, Default)]
pub(super) struct Path(Mutex<Known>);

impl Path {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no code panics while holding the path")
    }

    /// The round trip when it was connected last.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.known().rtt
    }

    pub(super) fn note_rtt(&self, rtt: Duration) {
        self.known().rtt = Some(rtt);
    }

    /// The round trip without a queue, as the connection has seen it that has seen the least.
    pub(super) fn base(&self) -> Option<Duration> {
        self.known().base.map(|(base, _)| base)
    }

    /// What it has carried lately for a connection that had more to send, in bytes per second.
    pub(super) fn rate(&self) -> Option<f64> {
        self.known().rate.map(|(rate, _)| rate)
    }

    /// A connection that follows the queue has seen this round trip without one, and so many bytes arrive a second. Of several, which share
    /// the path, those count that have seen the least and the most lately.
    pub(super) fn note(&self, now: Instant, base: Duration, rate: f64) {
        let mut known = self.known();
        let is_old = |at: Instant| now.saturating_duration_since(at) > KEPT;
        if known.base.is_none_or(|(least, at)| base <= least || is_old(at)) {
            known.base = Some((base, now));
        }
        if known.rate.is_none_or(|(most, at)| rate >= most || is_old(at)) {
            known.rate = Some((rate, now));
        }
    }

    /// Nothing arrives any more: it is not what it was.
    pub(super) fn forget(&self) {
        let mut known = self.known();
        (known.base, known.rate) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_lately_and_the_shortest_round_trip_count_until_they_are_forgotten() {
        let (path, now, ms) = (Path::default(), Instant::now(), Duration::from_millis);
        assert_eq!((path.rtt(), path.base(), path.rate()), (None, None, None));
        path.note_rtt(ms(60));
        assert_eq!(path.rtt(), Some(ms(60)));
        path.note(now, ms(55), 1e6);
        path.note(now + KEPT, ms(70), 2e5);
        assert_eq!((path.base(), path.rate()), (Some(ms(55)), Some(1e6)), "another connection has the rest");
        path.note(now + KEPT + ms(1), ms(70), 2e5);
        assert_eq!((path.base(), path.rate()), (Some(ms(70)), Some(2e5)), "it is longer and slower");
        path.forget();
        assert_eq!((path.rtt(), path.base(), path.rate()), (Some(ms(60)), None, None));
    }
}
