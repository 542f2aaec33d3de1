//! How much bulk data a link may take: a rate, other rates at times of the day, and the bucket that keeps to them. Pure: time is an
//! argument.
//!
//! Whoever sends waits until the bucket is not empty, and then takes what it sends, all at once: a call larger than what is in the
//! bucket leaves a debt, which the next one waits for. So the average keeps to the rate whatever the size of the calls.

use std::time::Duration;

use client_lib::policy::LinkPolicy;

/// Minutes of a day.
const DAY: u64 = 24 * 60;

/// What may have gathered in a bucket: so many seconds of its rate.
const BURST_SECONDS: f64 = 0.25;

/// How long the bucket is waited for before the rate is looked at again: it may have changed.
pub const LOOK: Duration = Duration::from_secs(1);

/// Bytes per second that `policy` allows at a moment of the calendar, in milliseconds since 1970; `None` is as many as come.
#[must_use]
pub fn rate_at(policy: &LinkPolicy, unix_ms: u64) -> Option<u64> {
    let minute = (unix_ms / 60_000 % DAY) as u16;
    // The first that fits: they are told in the order in which they count.
    let window = policy.windows.iter().find(|window| window.contains(minute));
    window.map_or(policy.rate, |window| window.rate)
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    level: f64,
    looked: Duration,
}

impl Bucket {
    /// Takes `bytes` at `now` under this rate; how long to wait before another attempt when it may not be yet.
    ///
    /// # Errors
    /// How long to wait; nothing was taken.
    pub fn take(&mut self, now: Duration, rate: Option<u64>, bytes: u64) -> Result<(), Duration> {
        let since = now.saturating_sub(self.looked).as_secs_f64();
        self.looked = now;
        let Some(rate) = rate else {
            self.level = 0.0;
            return Ok(());
        };
        let rate = rate as f64;
        self.level = (self.level + since * rate).min(rate * BURST_SECONDS);
        if self.level > 0.0 {
            self.level -= bytes as f64;
            return Ok(());
        }
        let wait = if rate > 0.0 { Duration::try_from_secs_f64(-self.level / rate).unwrap_or(LOOK) } else { LOOK };
        // A clock of milliseconds must get somewhere.
        Err(wait.clamp(Duration::from_millis(1), LOOK))
    }

    /// Bytes that were taken were not sent.
    pub fn give_back(&mut self, bytes: u64) {
        self.level += bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use client_lib::policy::RateWindow;
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    fn window(from_minute: u16, to_minute: u16, rate: Option<u64>) -> RateWindow {
        RateWindow { from_minute, to_minute, rate }
    }

    #[test]
    fn the_rate_is_that_of_the_first_window_that_fits() {
        let (ten, six, noon) = (22 * 60, 6 * 60, 12 * 60);
        let policy = LinkPolicy {
            rate: Some(1),
            windows: vec![window(ten, six, None), window(noon, noon + 30, Some(0)), window(0, 1439, Some(7))],
        };
        let at = |hour: u64, minute: u64| rate_at(&policy, (1000 * DAY + hour * 60 + minute) * 60_000 + 59_999);
        assert_eq!([at(22, 0), at(23, 59), at(0, 0), at(5, 59)], [None; 4], "across midnight");
        assert_eq!((at(6, 0), at(12, 0), at(12, 29), at(12, 30)), (Some(7), Some(0), Some(0), Some(7)));
        assert_eq!(rate_at(&LinkPolicy { rate: Some(9), windows: vec![] }, 5), Some(9));
        assert_eq!(rate_at(&LinkPolicy::default(), 5), None);
    }

    #[test]
    fn nothing_goes_while_nothing_may_and_everything_once_it_may() {
        let mut bucket = Bucket::default();
        let s = Duration::from_secs;
        assert_eq!(bucket.take(s(1), Some(0), KIB), Err(LOOK));
        assert_eq!(bucket.take(s(100), Some(0), KIB), Err(LOOK), "nothing gathers");
        assert_eq!(bucket.take(s(101), None, 1 << 40), Ok(()));
        assert_eq!(bucket.take(s(101), None, 1 << 40), Ok(()), "without a debt");
        let wait = bucket.take(s(101), Some(KIB), 1).expect_err("nothing has gathered yet");
        assert_eq!(bucket.take(s(101) + wait, Some(KIB), 1), Ok(()));
    }

    proptest! {
        /// Whatever the calls are and whenever they come, no more than the rate and one burst and one call gets through; and who
        /// always has something to send gets the rate.
        #[test]
        fn the_average_keeps_to_the_rate(
            rate in 1..100_000u64,
            calls in proptest::collection::vec((1..200_000u64, 0..50u64), 10..200),
            idles in any::<bool>(),
        ) {
            let mut bucket = Bucket::default();
            let began = Duration::from_secs(5);
            prop_assert!(bucket.take(began, Some(0), 1).is_err());
            let (mut now, mut taken, mut last) = (began, 0, 0);
            for (bytes, pause) in calls {
                if idles {
                    now += Duration::from_millis(pause);
                }
                while let Err(wait) = bucket.take(now, Some(rate), bytes) {
                    prop_assert!(wait <= LOOK);
                    now += wait;
                }
                (taken, last) = (taken + bytes, bytes);
                let allowed = (now - began).as_secs_f64() * rate as f64 + rate as f64 * BURST_SECONDS + last as f64;
                prop_assert!(taken as f64 <= allowed + 1.0, "{taken} of {allowed}");
            }
            if !idles {
                // The last call is not paid for yet; each wait is a millisecond too long at most.
                let spent = (now - began).as_secs_f64() * rate as f64;
                let lost = 200.0 * 0.001 * rate as f64;
                prop_assert!(taken as f64 + lost >= spent - last as f64, "{taken} in {spent}");
            }
        }
    }
}
