//! How fast a volume is written: what was written is counted, and while its policy asks for it writes wait their turn.
//!
//! A write is never refused for it, and never waits longer than [`DELAY_MAX`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client_lib::policy::Rpo;
use tokio::time::Instant;

/// The longest that a write waits: well below what a guest, or another node that passed it on, takes for a failure.
const DELAY_MAX: Duration = Duration::from_secs(4);

/// The pace of one volume at its owner.
#[derive(Debug, Default)]
pub struct Pace {
    written: AtomicU64,
    /// Bytes per second; 0 is without limit.
    rate: AtomicU64,
    /// When the next write may begin.
    next: Mutex<Option<Instant>>,
    rpo: Mutex<Option<Rpo>>,
}

impl Pace {
    /// Metadata has this target for the volume.
    pub fn follow(&self, rpo: Option<Rpo>) {
        *self.rpo.lock().unwrap_or_else(PoisonError::into_inner) = rpo;
    }

    /// The target.
    #[must_use]
    pub fn rpo(&self) -> Option<Rpo> {
        *self.rpo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that were written since the node began to serve the volume.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// So many bytes may be written per second from now on; `None` is as many as come.
    pub fn limit(&self, rate: Option<f64>) {
        let rate = rate.map_or(0, |rate| (rate as u64).max(1));
        if self.rate.swap(rate, Ordering::Relaxed) != 0 && rate == 0 {
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// How many bytes may be written per second, if that is limited.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Counts a write of so many bytes, and waits for its turn.
    ///
    /// # Cancel safety
    /// Safe: the turn is lost.
    pub async fn turn(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.rate() else { return };
        let begins = self.reserve(Instant::now(), Duration::from_secs_f64(bytes as f64 / rate as f64));
        tokio::time::sleep_until(begins).await;
    }

    /// When a write that comes `now`, and takes so long, may begin.
    fn reserve(&self, now: Instant, takes: Duration) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = next.map_or(now, |next| next.max(now)).min(now + DELAY_MAX);
        *next = Some(begins + takes);
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn writes_take_their_turns_at_the_rate_and_not_longer_than_they_may() {
        let pace = Pace::default();
        let begun = Instant::now();
        pace.turn(1 << 30).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "there is no limit");
        pace.limit(Some(1000.0));
        for _ in 0..4 {
            pace.turn(500).await;
        }
        assert_eq!(begun.elapsed().as_millis(), 1500, "the first one begins at once");
        pace.turn(1_000_000).await;
        let waiting = Instant::now();
        pace.turn(1).await;
        assert_eq!(waiting.elapsed(), DELAY_MAX);
        pace.limit(None);
        let free = Instant::now();
        pace.turn(1 << 30).await;
        assert_eq!(free.elapsed(), Duration::ZERO);
        assert_eq!(pace.written(), (2 << 30) + 2000 + 1_000_001);
    }
}
