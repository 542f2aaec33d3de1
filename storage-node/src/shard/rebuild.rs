//! How fast replicas are rebuilt: as fast as it goes while no guest asks for anything, else as fast as guests do not notice.
//!
//! What guests wait for changes with what they do, so how long it takes says nothing by itself. Therefore a rebuild stops for a moment again
//! and again, and what guests wait for then is compared with what they wait for while it goes on: each kind of operation with itself,
//! because a flush may wait for another continent, and the slowest hundredth, because that is what a guest's users notice. Where more wait
//! longer than that, it slows down, and where not, it speeds up. It never stands still for long: a replica that is not there costs more than
//! a slow disk. While guests are there it also reads less at a time, so that an operation behind it does not wait long.
//!
//! Of one shard of the owner, for all that is sent from it to bring a replica to a copy that it has not: an initial sync, and what a node that
//! comes back lacks. What replicas of volumes in use are sent all the time is not slowed: it keeps the promise of how far they are behind.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::operations::{BOUNDS, Buckets, KINDS, Operations};

/// For how long it stops.
const QUIET: Duration = Duration::from_millis(160);
/// How much of that passes before what guests wait for is looked at: what was begun before is still under way, to the replica's disk if that is
/// near.
const SETTLING: Duration = Duration::from_millis(60);
/// For how long it goes on.
const BUSY: Duration = Duration::from_millis(600);
/// Fewer operations of a kind than this in one of those times are no guests.
const OPERATIONS_MIN: u64 = 10;
/// The part of the operations that is slowest.
const TAIL: f64 = 0.01;
/// The part that may be slower than those, but for so many, which are chance.
const TAIL_ALLOWED: f64 = 0.015;
const CHANCE: f64 = 2.0;
/// What is left of what was seen in one moment without a rebuild, after the next.
const KEPT: f64 = 0.8;
/// Bytes per second that a rebuild begins with where guests are, and the least and the most that it is limited to.
const FIRST: f64 = (32 << 20) as f64;
const LEAST: f64 = (4 << 20) as f64;
const MOST: f64 = (4u64 << 30) as f64;
/// The most that it is sped up and slowed down by at a time.
const FASTER: f64 = 1.3;
const SLOWER: f64 = 0.5;
/// Who comes after so long has nothing to do with what was before.
const FORGOTTEN: Duration = Duration::from_secs(2);

/// How many operations of each kind took how long, by bucket.
type Waited = [Buckets; KINDS];

/// What was answered between two looks.
fn between(before: &Waited, after: &Waited) -> Waited {
    std::array::from_fn(|kind| std::array::from_fn(|at| after[kind][at] - before[kind][at]))
}

fn count(buckets: &Buckets) -> u64 {
    buckets.iter().sum()
}

/// The bucket that the slowest [`TAIL`] begins in, or one after.
fn tail(buckets: &[f64; BOUNDS + 1]) -> usize {
    let rest = buckets.iter().sum::<f64>() * TAIL;
    let mut beyond = 0.0;
    let slowest = buckets.iter().rposition(|count| {
        beyond += count;
        beyond > rest
    });
    slowest.unwrap_or(BOUNDS)
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
    /// What guests wait for without a rebuild, lately.
    alone: [[f64; BOUNDS + 1]; KINDS],
    /// What they waited for when it went on last, and whether it took all that it might.
    loaded: Option<(Waited, bool)>,
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
            alone: [[0.0; BOUNDS + 1]; KINDS],
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
        let guests = between(&self.at_begin, seen);
        let is_alone = guests.iter().all(|buckets| count(buckets) < OPERATIONS_MIN);
        let next = match self.phase {
            Phase::Settling => Phase::Quiet,
            Phase::Quiet if is_alone => Phase::Free,
            Phase::Quiet => {
                self.compare(&guests);
                Phase::Busy
            }
            Phase::Busy => {
                let took_all = self.taken as f64 > 0.8 * self.rate * BUSY.as_secs_f64();
                self.loaded = Some((guests, took_all));
                Phase::Settling
            }
            Phase::Free if is_alone => Phase::Free,
            Phase::Free => Phase::Settling,
        };
        // What was left over at the end of the last busy phase is not made up for.
        (self.phase, self.began, self.at_begin, self.next, self.taken) = (next, now, *seen, now, 0);
    }

    /// What guests wait for without a rebuild, now that it has stopped: so it is seen what it cost them just before.
    fn compare(&mut self, guests: &Waited) {
        for (alone, now) in self.alone.iter_mut().flatten().zip(guests.iter().flatten()) {
            *alone = *alone * KEPT + *now as f64;
        }
        let Some((loaded, took_all)) = self.loaded.take() else { return };
        let excess = |kind: usize| {
            let (alone, loaded) = (&self.alone[kind], &loaded[kind]);
            match count(loaded) {
                _ if alone.iter().sum::<f64>() < OPERATIONS_MIN as f64 => 0.0,
                // They are there and had no answer as long as it went on.
                0 if count(&guests[kind]) >= OPERATIONS_MIN => f64::INFINITY,
                0 => 0.0,
                all => {
                    let slow: u64 = loaded[tail(alone) + 1..].iter().sum();
                    slow as f64 / (all as f64 * TAIL_ALLOWED).max(CHANCE)
                }
            }
        };
        let worst = (0..KINDS).map(excess).fold(0.0, f64::max);
        let factor = match worst > 1.0 {
            true => worst.recip().max(SLOWER),
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
    /// Whether guests are there, as far as a rebuild has looked.
    pub(super) fn has_guests(&self) -> bool {
        let control = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        control.as_ref().is_some_and(|control| control.phase != Phase::Free)
    }

    /// Waits until so many bytes of a rebuild may be read, beside guests whose operations these are.
    ///
    /// # Cancel safety
    /// Safe: the turn is lost.
    pub(super) async fn turn(&self, operations: &Operations, bytes: u64) {
        loop {
            let (now, waited) = (Instant::now(), operations.by_bucket());
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
    use super::super::operations::bucket;
    use super::*;

    /// A disk that guests read, and a rebuild: who comes while a piece of that is read waits, so the more it reads a second, the more wait.
    struct Disk {
        now: Instant,
        waited: Waited,
        control: Control,
        /// Bytes per second of the rebuild at which all wait.
        all_wait_at: f64,
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
        fn new(reads: f64, all_wait_at: f64) -> Disk {
            let (now, waited) = (Instant::now(), [[0; BOUNDS + 1]; KINDS]);
            let control = Control::new(now, waited);
            Disk { now, waited, control, all_wait_at, reads, read: 100e-6 }
        }

        /// Runs for a while; returns what the rebuild read a second, and the part of the reads that waited for it.
        fn run(&mut self, lasts: Duration) -> (f64, f64) {
            let (end, mut rebuilt, mut waited, mut reads) = (self.now + lasts, 0, 0, 0);
            let (mut wanted, mut begun, mut waiting) = (self.now, 0.0, 0.0);
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
                let share = (now_read as f64 / STEP.as_secs_f64() / self.all_wait_at).min(1.0);
                begun += self.reads * STEP.as_secs_f64();
                let count = begun as u64;
                begun -= count as f64;
                waiting += share * count as f64;
                let late = (waiting as u64).min(count);
                waiting -= late as f64;
                self.waited[0][bucket(Duration::from_secs_f64(self.read))] += count - late;
                self.waited[0][bucket(Duration::from_secs_f64(self.read * 3.0))] += late;
                (waited, reads) = (waited + late, reads + count);
                self.now += STEP;
            }
            (rebuilt as f64 / lasts.as_secs_f64(), waited as f64 / (reads as f64).max(1.0))
        }
    }

    #[test]
    fn few_guests_wait_and_the_rebuild_goes_on() {
        for all_wait_at in [1e9, 4e9, 20e9] {
            let mut disk = Disk::new(5_000.0, all_wait_at);
            disk.run(Duration::from_secs(20));
            let (rate, waited) = disk.run(Duration::from_secs(20));
            assert!(waited < 0.02, "{all_wait_at}: {waited}");
            assert!(rate > 0.005 * all_wait_at, "{all_wait_at}: {rate}");
        }
    }

    #[test]
    fn without_guests_it_goes_as_fast_as_it_goes_and_gives_way_when_they_come() {
        let mut disk = Disk::new(0.0, 2e9);
        disk.run(Duration::from_secs(1));
        let (rate, _) = disk.run(Duration::from_secs(5));
        assert!(rate > 0.95 * REBUILD_MAX, "{rate}");
        disk.reads = 5_000.0;
        disk.run(Duration::from_secs(10));
        let (rate, waited) = disk.run(Duration::from_secs(10));
        assert!(waited < 0.02 && rate < 40e6, "{waited} {rate}");
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
        let nothing = [[0; BOUNDS + 1]; KINDS];
        let mut control = Control::new(Instant::now(), nothing);
        let of = |read_us: u64| {
            let mut waited = nothing;
            waited[0][bucket(Duration::from_micros(read_us))] = 1000;
            waited[2][bucket(Duration::from_millis(150))] = 1000;
            waited
        };
        control.compare(&of(100));
        control.loaded = Some((of(100), true));
        control.compare(&of(100));
        let faster = control.rate;
        assert!(faster > FIRST);
        control.loaded = Some((of(200), true));
        control.compare(&of(100));
        let slower = control.rate;
        assert!(slower < faster);
        control.loaded = Some((nothing, true));
        control.compare(&of(100));
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
