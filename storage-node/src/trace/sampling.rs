//! Which operations are looked at where there are more than can be: one in so many, as many as it takes to keep within a bound. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Operations are counted for so long before it is decided anew.
const WINDOW: Duration = Duration::from_millis(100);

/// Operations of a kind that are looked at in a window before fewer are; with less than half as many more are.
const WINDOW_SAMPLES: u32 = 100;

/// How operations of one kind are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// One in so many is looked at.
    every: u32,
    passed: u32,
    window: Option<Instant>,
    taken: u32,
    seen: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { every: 1, passed: 0, window: None, taken: 0, seen: 0 }
    }
}

impl Sampling {
    /// An operation begins: for how many it is to stand, `None` if it is left out.
    pub fn next(&mut self, now: Instant) -> Option<u32> {
        self.seen += 1;
        if self.window.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            if self.taken < WINDOW_SAMPLES / 2 {
                self.every = (self.every / 2).max(1);
            }
            (self.window, self.taken) = (Some(now), 0);
        }
        self.passed += 1;
        if self.passed < self.every {
            return None;
        }
        (self.passed, self.taken) = (0, self.taken + 1);
        let weight = self.every;
        if self.taken.is_multiple_of(WINDOW_SAMPLES) {
            self.every = self.every.saturating_mul(2);
        }
        Some(weight)
    }

    /// How many have begun.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `rate` operations a second are taken in a second, and for how many they stand.
    fn second(sampling: &mut Sampling, began: Instant, rate: u64) -> (u64, u64) {
        let weights = (0..rate).filter_map(|at| {
            let now = began + Duration::from_secs(1).mul_f64(at as f64 / rate as f64);
            sampling.next(now).map(u64::from)
        });
        weights.fold((0, 0), |(count, sum), weight| (count + 1, sum + weight))
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_all_taken_and_of_many_one_in_so_many() {
        let began = Instant::now();
        let mut sampling = Sampling::default();
        assert_eq!(second(&mut sampling, began, 400), (400, 400));
        let (taken, stands_for) = second(&mut sampling, began + Duration::from_secs(1), 200_000);
        assert!(taken < 4000, "{taken}");
        assert!(stands_for.abs_diff(200_000) < 2000, "{stands_for}");
        let later = began + Duration::from_secs(3);
        second(&mut sampling, later, 400);
        assert_eq!(second(&mut sampling, later + Duration::from_secs(1), 400), (400, 400), "it comes back");
        assert_eq!(sampling.seen(), 400 + 200_000 + 400 + 400);
    }
}
