//! How fast replicas are rebuilt: as fast as it goes while no guest asks for anything, else as fast as guests do not notice.
//!
//! What guests wait for changes with what they do, so how long it takes says nothing by itself. Therefore a rebuild stops for a moment again
//! and again, and what guests wait for then is compared with what they wait for while it goes on: each kind of operation with itself,
//! because a flush may wait for another continent. Where they wait longer by more than [`NOTICED`], it slows down, and where not, it
//! speeds up. It never stands still for long: a replica that is not there costs more than a slow disk.
//!
//! Of one shard, for all that is sent from it, or stored in it, to bring a replica to a copy that it has not: an initial sync, and what a node that
//! comes back lacks. What replicas of volumes in use are sent all the time is not slowed: it keeps the promise of how far they are behind.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::operations::{KINDS, Operations, Waited};

/// For how long it stops.
const QUIET: Duration = Duration::from_millis(100);
/// How much of that passes before what guests wait for is looked at: what was begun before is still under way.
const SETTLING: Duration = Duration::from_millis(25);
/// For how long it goes on.
const BUSY: Duration = Duration::from_millis(400);
/// Fewer operations of a kind than this in one of those times are no guests.
const OPERATIONS_MIN: u64 = 10;
/// How much longer guests may wait on average.
const NOTICED: f64 = 1.2;
/// The weight of the last moment in what guests wait for without a rebuild. Little more than that counts: what they do changes.
const WEIGHT: f64 = 0.5;
/// Bytes per second that a rebuild begins with where guests are, and the least and the most that it is limited to.
const FIRST: f64 = (32 << 20) as f64;
const LEAST: f64 = (4 << 20) as f64;
const MOST: f64 = (4u64 << 30) as f64;
/// The most that it is sped up and slowed down by at a time.
const FASTER: f64 = 1.3;
const SLOWER: f64 = 0.5;
/// Who comes after so long has nothing to do with what was before.
const FORGOTTEN: Duration = Duration::from_secs(2);

/// The mean of each kind between two looks, in seconds; `None` of those of which there were fewer than `least`.
fn means(before: &Waited, after: &Waited, least: u64) -> [Option<f64>; KINDS] {
    std::array::from_fn(|kind| {
        let (count, total) = (after[kind].0 - before[kind].0, after[kind].1.saturating_sub(before[kind].1));
        (count >= least).then(|| total.as_secs_f64() / count as f64)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has stopped, and what was begun is still under way.
    Settling,
    /// It has stopped.
    Quiet,
    /// It goes on.
    Busy,
    /// It goes on as fast as it goes: there are no guests.
    Free,
}

impl Phase {
    fn lasts(self) -> Duration {
        match self {
            Phase::Settling => SETTLING,
            Phase::Quiet => QUIET - SETTLING,
            Phase::Busy | Phase::Free => BUSY,
        }
    }
}

/// The decisions. Pure: time, and what was seen, are arguments.
#[derive(Debug)]
struct Control {
    phase: Phase,
    began: Instant,
    /// What had been answered when the phase began.
    at_begin: Waited,
    /// What guests wait for without a rebuild.
    alone: [Option<f64>; KINDS],
    /// What they waited for when it went on last, and whether it took all that it might.
    loaded: Option<([Option<f64>; KINDS], bool)>,
    /// Bytes per second.
    rate: f64,
    /// When the next turn may begin.
    next: Instant,
    /// Bytes of this phase.
    taken: u64,
    /// When somebody wanted a turn last.
    last: Instant,
}

impl Control {
    fn new(now: Instant, seen: Waited) -> Control {
        Control {
            phase: Phase::Settling,
            began: now,
            at_begin: seen,
            alone: [None; KINDS],
            loaded: None,
            rate: FIRST,
            next: now,
            taken: 0,
            last: now,
        }
    }

    /// A turn of so many bytes: when it begins, or, if that is not known yet, when to ask again.
    fn turn(&mut self, now: Instant, seen: &Waited, bytes: u64) -> Result<Instant, Instant> {
        if now.saturating_duration_since(self.last) > FORGOTTEN {
            *self = Control::new(now, *seen);
        }
        self.last = now;
        if now >= self.ends() {
            self.advance(now, seen);
        }
        match self.phase {
            Phase::Settling | Phase::Quiet => Err(self.ends()),
            Phase::Free => Ok(now),
            Phase::Busy => {
                let begins = self.next.max(now);
                if begins >= self.ends() {
                    return Err(self.ends());
                }
                self.next = begins + Duration::from_secs_f64(bytes as f64 / self.rate);
                self.taken += bytes;
                Ok(begins)
            }
        }
    }

    fn ends(&self) -> Instant {
        self.began + self.phase.lasts()
    }

    /// The phase is over.
    fn advance(&mut self, now: Instant, seen: &Waited) {
        let means = |least| means(&self.at_begin, seen, least);
        let guests = means(OPERATIONS_MIN);
        let is_alone = guests.iter().all(Option::is_none);
        let next = match self.phase {
            Phase::Settling => Phase::Quiet,
            Phase::Quiet if is_alone => Phase::Free,
            Phase::Quiet => {
                self.compare(&guests);
                Phase::Busy
            }
            Phase::Busy => {
                let took_all = self.taken as f64 > 0.8 * self.rate * BUSY.as_secs_f64();
                self.loaded = Some((means(1), took_all));
                Phase::Settling
            }
            Phase::Free if is_alone => Phase::Free,
            Phase::Free => Phase::Settling,
        };
        // What was left over at the end of the last busy phase is not made up for.
        (self.phase, self.began, self.at_begin, self.next, self.taken) = (next, now, *seen, now, 0);
    }

    /// What guests wait for without a rebuild, now that it has stopped: so it is seen what it cost them just before.
    fn compare(&mut self, guests: &[Option<f64>; KINDS]) {
        for (alone, mean) in self.alone.iter_mut().zip(guests) {
            if let Some(mean) = mean {
                *alone = Some(alone.map_or(*mean, |alone| alone * (1.0 - WEIGHT) + mean * WEIGHT));
            }
        }
        let Some((loaded, took_all)) = self.loaded.take() else { return };
        let ratio = |kind: usize| match (self.alone[kind].filter(|alone| *alone > 0.0)?, loaded[kind], guests[kind]) {
            (alone, Some(loaded), _) => Some(loaded / alone),
            // They are there and had no answer as long as it went on.
            (_, None, Some(_)) => Some(f64::INFINITY),
            (_, None, None) => None,
        };
        let worst = (0..KINDS).filter_map(ratio).fold(0.0, f64::max);
        let factor = match worst > NOTICED {
            true => (NOTICED / worst).max(SLOWER),
            false if took_all => FASTER,
            // Something else is what holds it up: nothing is known of what more would do.
            false => 1.0,
        };
        self.rate = (self.rate * factor).clamp(LEAST, MOST);
    }
}

/// The pace of all rebuilds of a shard.
#[derive(Debug, Default)]
pub(super) struct RebuildPace(Mutex<Option<Control>>);

impl RebuildPace {
    /// Waits until so many bytes of a rebuild may be read or stored, beside guests whose operations these are.
    ///
    /// # Cancel safety
    /// Safe: the turn is lost.
    pub(super) async fn turn(&self, operations: &Operations, bytes: u64) {
        loop {
            let (now, waited) = (Instant::now(), operations.waited());
            let turn = {
                let mut control = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                control.get_or_insert_with(|| Control::new(now, waited)).turn(now, &waited, bytes)
            };
            match turn {
                Ok(begins) => return tokio::time::sleep_until(begins).await,
                Err(look) => tokio::time::sleep_until(look).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that guests read, and a rebuild: what a read takes grows with what the rebuild reads a second.
    struct Disk {
        now: Instant,
        waited: Waited,
        control: Control,
        /// Bytes per second of the rebuild at which a read takes twice as long.
        doubles_at: f64,
        /// Reads of guests per second.
        reads: f64,
        /// What a read takes without the rebuild, in seconds.
        read: f64,
    }

    /// The most that the rebuild can read a second, whatever it may.
    const REBUILD_MAX: f64 = 2e9;
    const STEP: Duration = Duration::from_millis(5);
    const PIECE: u64 = 256 << 10;

    impl Disk {
        fn new(reads: f64, doubles_at: f64) -> Disk {
            let (now, waited) = (Instant::now(), Waited::default());
            let control = Control::new(now, waited);
            Disk { now, waited, control, doubles_at, reads, read: 100e-6 }
        }

        /// Runs for a while; returns what the rebuild read a second, and how much longer reads took than by themselves, on average.
        fn run(&mut self, lasts: Duration) -> (f64, f64) {
            let (end, mut rebuilt, mut slower, mut steps) = (self.now + lasts, 0, 0.0, 0.0);
            let (mut wanted, mut begun_reads) = (self.now, 0.0);
            while self.now < end {
                let mut now_read = 0;
                let room = REBUILD_MAX * STEP.as_secs_f64();
                while wanted < self.now + STEP && (now_read as f64) < room {
                    match self.control.turn(wanted.max(self.now), &self.waited, PIECE) {
                        Ok(begins) => {
                            now_read += PIECE;
                            wanted = begins;
                        }
                        Err(look) => wanted = look,
                    }
                }
                rebuilt += now_read;
                let factor = 1.0 + now_read as f64 / STEP.as_secs_f64() / self.doubles_at;
                begun_reads += self.reads * STEP.as_secs_f64();
                let count = begun_reads as u64;
                begun_reads -= count as f64;
                self.waited[0].0 += count;
                self.waited[0].1 += Duration::from_secs_f64(self.read * factor * count as f64);
                (slower, steps) = (slower + factor, steps + 1.0);
                self.now += STEP;
            }
            (rebuilt as f64 / lasts.as_secs_f64(), slower / steps)
        }
    }

    #[test]
    fn guests_wait_little_longer_and_the_rebuild_goes_on() {
        for doubles_at in [50e6, 200e6, 1e9] {
            let mut disk = Disk::new(5_000.0, doubles_at);
            disk.run(Duration::from_secs(10));
            let (rate, slower) = disk.run(Duration::from_secs(20));
            assert!(slower < 1.3, "{doubles_at}: {slower}");
            // A fifth longer is what is allowed, for four fifths of the time.
            assert!(rate > 0.08 * doubles_at, "{doubles_at}: {rate}");
        }
    }

    #[test]
    fn without_guests_it_goes_as_fast_as_it_goes_and_gives_way_when_they_come() {
        let mut disk = Disk::new(0.0, 100e6);
        disk.run(Duration::from_secs(1));
        let (rate, _) = disk.run(Duration::from_secs(5));
        assert!(rate > 0.95 * REBUILD_MAX, "{rate}");
        disk.reads = 5_000.0;
        disk.run(Duration::from_secs(10));
        let (rate, slower) = disk.run(Duration::from_secs(10));
        assert!(slower < 1.3 && rate < 50e6, "{slower} {rate}");
        disk.reads = 0.0;
        disk.run(Duration::from_secs(1));
        let (rate, _) = disk.run(Duration::from_secs(5));
        assert!(rate > 0.95 * REBUILD_MAX, "{rate}");
    }

    #[test]
    fn what_slows_guests_by_itself_is_not_its_fault() {
        // Nothing that it does costs them anything; but from one moment to the next they wait ten times as long.
        let mut disk = Disk::new(2_000.0, f64::INFINITY);
        disk.run(Duration::from_secs(15));
        let (before, _) = disk.run(Duration::from_secs(5));
        disk.read *= 10.0;
        disk.run(Duration::from_secs(5));
        let (after, _) = disk.run(Duration::from_secs(5));
        assert!(before > 1e9 && after > 1e9, "{before} {after}");
    }

    #[test]
    fn a_disk_that_is_at_its_end_still_gives_the_rebuild_something() {
        let mut disk = Disk::new(5_000.0, 1e5);
        disk.run(Duration::from_secs(20));
        let (rate, _) = disk.run(Duration::from_secs(20));
        assert!(rate > 0.5 * LEAST, "{rate}");
    }

    /// A flush that waits for another continent hides nothing of what reads wait for.
    #[test]
    fn each_kind_is_compared_with_itself_and_none_that_has_no_answer_is_taken_for_gone() {
        let mut control = Control::new(Instant::now(), Waited::default());
        let of = |read_us: u64| {
            let mut after = Waited::default();
            after[0] = (1000, Duration::from_micros(read_us) * 1000);
            after[2] = (100, Duration::from_millis(150) * 100);
            means(&Waited::default(), &after, OPERATIONS_MIN)
        };
        let (alone, loaded) = (of(100), of(200));
        control.compare(&alone);
        control.loaded = Some((loaded, true));
        control.compare(&alone);
        assert!(control.rate < FIRST);
        let slower = control.rate;
        control.loaded = Some((Default::default(), true));
        control.compare(&alone);
        assert!(control.rate < slower);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rebuild_begins_with_a_look_at_the_guests() {
        let (pace, operations) = (RebuildPace::default(), Operations::default());
        let begun = Instant::now();
        pace.turn(&operations, 1 << 20).await;
        assert!(begun.elapsed() >= QUIET && begun.elapsed() < QUIET * 2);
        for _ in 0..1000 {
            pace.turn(&operations, 1 << 20).await;
        }
        assert!(begun.elapsed() < QUIET * 2, "there are none");
    }
}
