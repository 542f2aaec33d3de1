//! Time as a seam: what reads a clock takes a [`Clock`], so that simulation can own time.
//!
//! Monotonic time is a duration since an arbitrary start that is fixed for the life of the clock and never goes
//! back. Calendar time is for people and certificates only: no decision about ownership may rest on it.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
///
/// Implementers: [`Clock::now`] never goes back, on any thread.
pub trait Clock: Send + Sync + 'static {
    /// Time since the clock's arbitrary start. Monotonic.
    fn now(&self) -> Duration;

    /// Milliseconds since 1970-01-01 UTC. May jump.
    fn unix_ms(&self) -> u64;
}

/// The operating system's clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct VirtualClock {
    now: Mutex<Duration>,
    unix_start_ms: u64,
}

impl VirtualClock {
    /// A clock at zero whose calendar starts at `unix_start_ms`.
    #[must_use]
    pub fn new(unix_start_ms: u64) -> VirtualClock {
        VirtualClock { now: Mutex::new(Duration::ZERO), unix_start_ms }
    }

    /// Moves time on by `step`.
    pub fn advance(&self, step: Duration) {
        let mut now = self.now.lock().expect("no code panics while holding the clock");
        *now = now.saturating_add(step);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        *self.now.lock().expect("no code panics while holding the clock")
    }

    fn unix_ms(&self) -> u64 {
        let since = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        self.unix_start_ms.saturating_add(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_clock_moves_only_when_told() {
        let clock = VirtualClock::new(1_000);
        assert_eq!((clock.now(), clock.unix_ms()), (Duration::ZERO, 1_000));
        clock.advance(Duration::from_millis(250));
        assert_eq!((clock.now(), clock.unix_ms()), (Duration::from_millis(250), 1_250));
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.unix_ms() > 1_600_000_000_000, "the machine's calendar is set");
    }
}
