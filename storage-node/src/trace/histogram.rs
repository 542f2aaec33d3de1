//! Times, counted in buckets that are a thirty-second of their size wide, so that a percentile is right within 3 %. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::wire::admin::{TraceBucket, TraceTimes};

/// Buckets in each octave, as a power of two.
const OCTAVE_BITS: u32 = 5;

/// Times of operations. Takes as much memory as there are buckets with something in them: some hundreds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By upper bound in nanoseconds, which is within the bucket.
    buckets: BTreeMap<u64, u64>,
    sum_ns: u64,
    max_ns: u64,
}

/// The upper bound of the bucket of a time.
fn bound(ns: u64) -> u64 {
    let shift = ns.checked_ilog2().unwrap_or(0).saturating_sub(OCTAVE_BITS);
    ns | ((1 << shift) - 1)
}

fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

impl Histogram {
    /// An operation that stands for `weight` took so long.
    pub fn note(&mut self, took: Duration, weight: u32) {
        let (ns, weight) = (nanoseconds(took), u64::from(weight));
        *self.buckets.entry(bound(ns)).or_default() += weight;
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(weight));
        self.max_ns = self.max_ns.max(ns);
    }

    /// Takes in what another one has.
    pub fn add(&mut self, times: &TraceTimes) {
        for TraceBucket { up_to_ns, count } in &times.histogram {
            *self.buckets.entry(*up_to_ns).or_default() += count;
        }
        self.sum_ns = self.sum_ns.saturating_add(times.sum_ns);
        self.max_ns = self.max_ns.max(times.max_ns);
    }

    /// What so many in a thousand take no longer than.
    fn quantile(&self, per_mille: u64) -> u64 {
        let count: u64 = self.buckets.values().sum();
        let rank = (count * per_mille).div_ceil(1000);
        let mut passed = 0;
        let within = self.buckets.iter().find(|(_, count)| {
            passed += *count;
            passed >= rank
        });
        within.map_or(0, |(bound, _)| (*bound).min(self.max_ns))
    }

    /// As it is told.
    #[must_use]
    pub fn told(&self) -> TraceTimes {
        TraceTimes {
            sum_ns: self.sum_ns,
            p50_ns: self.quantile(500),
            p99_ns: self.quantile(990),
            max_ns: self.max_ns,
            histogram: self
                .buckets
                .iter()
                .map(|(up_to_ns, count)| TraceBucket { up_to_ns: *up_to_ns, count: *count })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_within_its_bucket_and_near() {
        for ns in (0..5000).chain([1 << 20, 123_456_789, u64::MAX - 1, u64::MAX]) {
            let bound = bound(ns);
            assert!(bound >= ns && bound - ns <= ns / 32, "{ns}: {bound}");
            assert_eq!(super::bound(bound), bound, "{ns}");
        }
    }

    #[test]
    fn percentiles_are_of_all_that_the_samples_stand_for() {
        let mut histogram = Histogram::default();
        for us in 1..=97 {
            histogram.note(Duration::from_micros(us), 10);
        }
        histogram.note(Duration::from_millis(7), 30);
        let told = histogram.told();
        assert!(told.p50_ns.abs_diff(50_000) < 1600, "{}", told.p50_ns);
        assert_eq!((told.p99_ns, told.max_ns), (7_000_000, 7_000_000));
        assert_eq!(told.sum_ns, 10 * 1000 * (97 * 98 / 2) + 30 * 7_000_000);
        assert_eq!(Histogram::default().told(), TraceTimes::default());
    }

    #[test]
    fn two_together_are_as_if_they_were_one() {
        let (mut whole, mut first, mut second) = (Histogram::default(), Histogram::default(), Histogram::default());
        for us in 1..2000 {
            let took = Duration::from_micros(us * us);
            whole.note(took, 3);
            if us % 3 == 0 { first.note(took, 3) } else { second.note(took, 3) }
        }
        first.add(&second.told());
        assert_eq!(first, whole);
    }
}
