//! How fast a volume may be written so that its lag converges to its target. Pure.
//!
//! What the replica takes per second is measured in bytes *written*: what was written less what it is further behind by now. So
//! blocks that are overwritten before they are sent, and compression, count by themselves. What it is behind, at that rate, is the lag
//! that a write made now will have had when it is there: that is steered, since the age of what is on its way tells of the past.
//!
//! ```text
//!   lag to come / target     0           1/2         1          1 3/4 and beyond
//!   allowed                  2 x         1 1/2 x     1 x        1/4 x, at least RATE_MIN
//! ```
//!
//! It begins when half of the target is reached, and ends when that is so no more and the writes come slower than they may.

use std::time::Duration;

/// Bytes per second that may always be written: a guest that waits for seconds for a write takes its disk for dead.
pub const RATE_MIN: f64 = 256.0 * 1024.0;

/// Over how long the replica's rate is averaged, in seconds, at least; else over the target: deltas of that length are applied whole.
const TAKEN_AVERAGED: f64 = 2.0;

/// Over how long the rate of writes is averaged, in seconds.
const WRITTEN_AVERAGED: f64 = 1.0;

/// What was observed since the last step.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// How long ago that was.
    pub elapsed: Duration,
    /// Bytes written since.
    pub written: u64,
    /// Bytes that the replica is behind now.
    pub behind: u64,
}

/// An average that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    fn note(&mut self, value: f64, weight: f64) -> f64 {
        let average = self.0.map_or(value, |average| average + (value - average) * weight.min(1.0));
        self.0 = Some(average);
        average
    }
}

/// The controller of one volume.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    behind: Option<u64>,
    taken: Average,
    written: Average,
    rate: Option<f64>,
}

impl Throttle {
    /// Bytes per second that may be written from now on; `None` is as many as come.
    pub fn step(&mut self, target: Duration, observed: Observed) -> Option<f64> {
        let (seconds, target) = (observed.elapsed.as_secs_f64(), target.as_secs_f64());
        let Some(before) = self.behind.replace(observed.behind).filter(|_| seconds > 0.0 && target > 0.0) else {
            return self.rate;
        };
        let written = observed.written as f64;
        let taken = (written + before as f64 - observed.behind as f64) / seconds;
        let taken = self.taken.note(taken, seconds / target.max(TAKEN_AVERAGED)).max(1.0);
        let written = self.written.note(written / seconds, seconds / WRITTEN_AVERAGED);
        let far = observed.behind as f64 / taken / target;
        let is_needed = match self.rate {
            None => far > 0.5,
            Some(rate) => far > 0.5 || written > rate * 0.8,
        };
        self.rate = is_needed.then(|| (taken * (2.0 - far).clamp(0.25, 2.0)).max(RATE_MIN));
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// A client that wants to write `wanted` bytes per second over a link that takes what `link` says, for `seconds`; returns the lag
    /// in seconds at each step, and how many bytes were written. With `is_whole` the replica has what is sent only when everything
    /// is there that there was to send when the last such delta was, as with a slow link.
    fn run(target: f64, wanted: f64, seconds: u32, is_whole: bool, link: impl Fn(f64) -> f64) -> (Vec<f64>, f64) {
        let (mut throttle, mut rate, mut lags) = (Throttle::default(), None::<f64>, Vec::new());
        // When it was written, and how much of it is not there.
        let mut queue: VecDeque<(f64, f64)> = VecDeque::new();
        let (mut delta, mut rest) = (0, 0.0);
        let mut total = 0.0;
        for step in 0..seconds * 10 {
            let now = f64::from(step) / 10.0;
            let written = wanted.min(rate.unwrap_or(f64::INFINITY)) / 10.0;
            total += written;
            queue.push_back((now, written));
            let mut room = link(now) / 10.0;
            while room > 0.0 && !queue.is_empty() {
                if delta == 0 {
                    delta = if is_whole { queue.len() } else { 1 };
                    rest = queue.iter().take(delta).map(|(_, bytes)| bytes).sum();
                }
                let part = room.min(rest);
                (rest, room) = (rest - part, room - part);
                if rest > 0.0 {
                    break;
                }
                queue.drain(..std::mem::take(&mut delta));
            }
            lags.push(queue.front().map_or(0.0, |(made, _)| now - made));
            let behind = queue.iter().map(|(_, bytes)| bytes).sum::<f64>() as u64;
            let observed = Observed { elapsed: STEP, written: written as u64, behind };
            rate = throttle.step(Duration::from_secs_f64(target), observed);
        }
        (lags, total)
    }

    #[test]
    fn the_lag_converges_to_the_target_whatever_the_link_and_the_load() {
        for target in [1.0, 5.0, 30.0] {
            for (link, is_whole) in [(1e6, false), (2e7, false), (1e9, false), (2e7, true)] {
                for load in [1.3, 3.0, 20.0] {
                    let (lags, written) = run(target, link * load, 600, is_whole, |_| link);
                    let end = &lags[lags.len() - 200..];
                    let most = end.iter().copied().fold(0.0, f64::max);
                    let least = end.iter().copied().fold(f64::INFINITY, f64::min);
                    let (low, high) = if is_whole { (0.4, 1.5) } else { (0.7, 1.1) };
                    let what = format!("{target} s at {link} B/s, {load} times: {least} to {most} s");
                    assert!(most < target * high && least > target * low, "{what}");
                    assert!(written > link * 540.0, "{what}: the link is used for {written}");
                }
            }
        }
    }

    #[test]
    fn a_load_that_the_link_takes_is_not_slowed() {
        let (lags, written) = run(5.0, 9e6, 100, false, |_| 1e7);
        assert!(lags.iter().all(|lag| *lag < 0.3), "{lags:?}");
        assert!((written - 9e8).abs() < 1e6);
    }

    #[test]
    fn a_link_that_slows_down_or_breaks_never_stops_the_writes_and_recovers() {
        let broken = |now: f64| if (100.0..160.0).contains(&now) { 0.0 } else { 1e7 };
        let (lags, written) = run(5.0, 4e7, 400, false, broken);
        assert!(written > 60.0 * RATE_MIN);
        // Nothing gets through for a minute: the lag is that minute more, and comes back.
        assert!(lags.iter().copied().fold(0.0, f64::max) < 90.0);
        assert!(lags[lags.len() - 100..].iter().all(|lag| *lag < 6.0), "{:?}", &lags[lags.len() - 100..]);
        let slower = |now| if now < 100.0 { 2e7 } else { 2e6 };
        let (lags, _) = run(5.0, 4e7, 400, false, slower);
        assert!(lags[lags.len() - 100..].iter().all(|lag| *lag < 6.0), "{:?}", &lags[lags.len() - 100..]);
    }
}
