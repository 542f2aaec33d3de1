//! How fast a link takes bulk data, from the calls that carry it. Pure: time is an argument.
//!
//! While calls are under way the bytes of those that end are counted; at the end of such a period, or after [`PERIOD`] of a long one,
//! their sum over its time is a sample. The first round trip of a period carries nothing back and does not count. Short periods
//! tell of the distance and not of the rate, and are left out: those of few bytes, those that are hardly longer than a round trip, and what is left
//! of a long one when that is short: then answers have come together that were due before. So the rate is what the other end takes, its disk included.

use std::time::Duration;

/// After so long a period that goes on gives a sample.
const PERIOD: Duration = Duration::from_secs(1);

/// What is left of a longer period tells nothing below this.
const REST_MIN: Duration = Duration::from_millis(250);

/// Bytes below which a period tells nothing.
const SAMPLE_BYTES_MIN: u64 = 256 << 10;

/// What a new sample weighs beside those before.
const WEIGHT: f64 = 0.3;

/// A shorter time cannot be told from none.
const TIME_MIN: Duration = Duration::from_millis(1);

/// The rate of one direction of a link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    under_way: u32,
    since: Duration,
    bytes: u64,
    /// The period has given a sample already.
    goes_on: bool,
    rate: Option<f64>,
}

impl Meter {
    /// A call begins.
    pub fn begin(&mut self, now: Duration) {
        if self.under_way == 0 {
            (self.since, self.bytes, self.goes_on) = (now, 0, false);
        }
        self.under_way += 1;
    }

    /// A call ends, which carried so many bytes, or none if it failed.
    pub fn end(&mut self, now: Duration, bytes: u64, rtt: Duration) {
        self.under_way = self.under_way.saturating_sub(1);
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.since);
        if self.under_way > 0 && elapsed < PERIOD {
            return;
        }
        let (idle, least) = if self.goes_on { (Duration::ZERO, REST_MIN) } else { (rtt, rtt + rtt / 2) };
        if self.bytes >= SAMPLE_BYTES_MIN && elapsed >= least {
            let sample = self.bytes as f64 / elapsed.saturating_sub(idle).max(TIME_MIN).as_secs_f64();
            self.rate = Some(self.rate.map_or(sample, |rate| rate + (sample - rate) * WEIGHT));
        }
        (self.since, self.bytes, self.goes_on) = (now, 0, true);
    }

    /// Bytes per second, if that is known.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Calls of a mebibyte, `deep` at a time, over a link of `rate` bytes per second and this round trip.
    fn measured(rate: f64, rtt: Duration, deep: usize, calls: usize) -> Option<f64> {
        let mut meter = Meter::default();
        let takes = Duration::from_secs_f64(MIB as f64 / rate);
        // When the link is free, and when each call under way is answered.
        let (mut free, mut answers) = (Duration::ZERO, std::collections::VecDeque::new());
        let mut now = Duration::ZERO;
        for _ in 0..calls {
            if answers.len() == deep {
                now = answers.pop_front().expect("some are under way");
                meter.end(now, MIB, rtt);
            }
            meter.begin(now);
            free = free.max(now) + takes;
            answers.push_back(free + rtt);
        }
        for answer in answers {
            meter.end(answer, MIB, rtt);
        }
        meter.rate()
    }

    #[test]
    fn the_rate_is_found_whatever_the_distance() {
        for rate in [1e6, 25e6, 200e6] {
            for rtt in [ms(0), ms(60), ms(300)] {
                let deep = 8 + (rate * rtt.as_secs_f64()) as usize / MIB as usize;
                let found = measured(rate, rtt, deep, 400).expect("is known");
                assert!((0.9..1.1).contains(&(found / rate)), "{found} of {rate} at {rtt:?}");
            }
        }
    }

    #[test]
    fn a_few_bytes_and_calls_that_fail_tell_nothing() {
        let mut meter = Meter::default();
        meter.begin(ms(0));
        meter.end(ms(100), 4096, ms(60));
        assert_eq!(meter.rate(), None);
        meter.begin(ms(200));
        meter.end(ms(15_200), 0, ms(60));
        assert_eq!(meter.rate(), None);
    }

    /// What is left of a period without a round trip that is not known well was a millisecond, and the link that fast: nothing was
    /// compressed any more, and nothing offered.
    #[test]
    fn a_period_that_is_hardly_longer_than_a_round_trip_tells_nothing() {
        let mut meter = Meter::default();
        meter.begin(ms(0));
        meter.end(ms(61), MIB, ms(60));
        meter.begin(ms(100));
        meter.end(ms(150), MIB, ms(60));
        assert_eq!(meter.rate(), None);
    }

    /// On a busy machine answers come together. After a sample that was made with the first of them the others took no time, and a link of 25 MB/s
    /// was measured as one of 670: nothing was offered, and all of it sent again.
    #[test]
    fn answers_that_come_together_at_the_end_of_a_period_do_not_make_a_fast_link() {
        let mut meter = Meter::default();
        (0..25).for_each(|_| meter.begin(ms(0)));
        (1..=16).for_each(|at| meter.end(ms(40 + 40 * at), MIB, ms(40)));
        (0..9).for_each(|_| meter.end(ms(1040), MIB, ms(40)));
        let found = meter.rate().expect("is known") / MIB as f64;
        assert!((10.0..30.0).contains(&found), "{found} MiB/s, 25 are true");
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let mut meter = Meter::default();
        let mut now = ms(0);
        for (takes, expected) in [(ms(10), 100.0), (ms(100), 10.0)] {
            for _ in 0..200 {
                meter.begin(now);
                now += takes;
                meter.end(now, MIB, ms(0));
            }
            let found = meter.rate().expect("is known") / MIB as f64;
            assert!((expected * 0.9..expected * 1.1).contains(&found), "{found} MiB/s, {expected} are true");
        }
    }
}
