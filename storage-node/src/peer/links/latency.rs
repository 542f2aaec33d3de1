//! How long answers of a node take, so that it shows when one is late. Pure.
//!
//! Kept are the last [`SAMPLES`] times of calls that bring blocks, each without what its bytes take at the rate of the link. Before there are
//! [`SAMPLES_MIN`] of them nothing is known.

use std::time::Duration;

/// Times that are remembered.
const SAMPLES: usize = 64;

/// Fewest times that tell anything.
const SAMPLES_MIN: usize = 8;

/// The times of one link, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    ring: [u32; SAMPLES],
    count: usize,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { ring: [0; SAMPLES], count: 0 }
    }
}

impl Latency {
    /// A call took so long beside its bytes.
    pub fn note(&mut self, took: Duration) {
        if let Some(slot) = self.ring.get_mut(self.count % SAMPLES) {
            *slot = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        }
        self.count += 1;
    }

    /// What 19 of 20 calls take no longer than, lately; `None` while that is not known.
    #[must_use]
    pub fn p95(&self) -> Option<Duration> {
        let known = self.count.min(SAMPLES);
        if known < SAMPLES_MIN {
            return None;
        }
        let mut times: Vec<u32> = self.ring.iter().take(known).copied().collect();
        let at = (known * 95).div_ceil(100) - 1;
        let (_, found, _) = times.select_nth_unstable(at);
        Some(Duration::from_micros(u64::from(*found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nineteen_of_twenty_are_within_it_and_old_times_are_forgotten() {
        let mut latency = Latency::default();
        for took in 1..SAMPLES_MIN as u64 {
            latency.note(Duration::from_millis(took));
        }
        assert_eq!(latency.p95(), None);
        for took in SAMPLES_MIN as u64..=60 {
            latency.note(Duration::from_millis(took));
        }
        assert_eq!(latency.p95(), Some(Duration::from_millis(57)));
        for _ in 0..SAMPLES {
            latency.note(Duration::from_millis(5));
        }
        assert_eq!(latency.p95(), Some(Duration::from_millis(5)));
    }
}
