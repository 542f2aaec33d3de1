//! What guests ask of the volumes of a shard: how often, how many bytes, how long it took, and what failed.
//!
//! An operation is counted once in the cluster, when it is answered: of an NBD client at the node that it is connected to, of a
//! client of another machine at the owner. Its time is what its client waits for at this node: the log, other nodes, a handover,
//! a class of durability; not the socket. One that nobody waits for any more is not counted.
//!
//! Counters are atomics that nobody shares but those who are served by one shard, most of them on its thread: counting costs two looks
//! at the clock and three additions without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use client_lib::trace::OperationKind;
use tokio::time::Instant;

/// How many kinds there are.
pub const KINDS: usize = OperationKind::ALL.len();

/// The smallest bound is 2 to this power, in microseconds.
const FIRST_OCTAVE: u32 = 4;
/// The largest, likewise: about 17 seconds.
const LAST_OCTAVE: u32 = 24;
/// Bounds of buckets: two in each octave, at 1 and at 1.5 times a power of two.
pub const BOUNDS: usize = 2 * (LAST_OCTAVE - FIRST_OCTAVE) as usize + 1;

/// How many took how long, by bucket, each for itself; the last is for what is beyond all [`bound`]s.
pub type Buckets = [u64; BOUNDS + 1];

/// The bound of a bucket: what took no longer is in it, or in one before.
#[must_use]
pub fn bound(bucket: usize) -> Duration {
    let base = 1u64 << (FIRST_OCTAVE as usize + bucket / 2);
    Duration::from_micros(if bucket.is_multiple_of(2) { base } else { base + base / 2 })
}

/// The bucket of what took so long; [`BOUNDS`] when it is beyond all bounds.
pub(super) fn bucket(took: Duration) -> usize {
    // What took exactly a bound is still within it.
    let micros = u64::try_from(took.as_nanos().saturating_sub(1) / 1000).unwrap_or(u64::MAX);
    let octave = micros.checked_ilog2().unwrap_or(0);
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let half = (micros >> (octave - 1)) & 1;
    ((2 * (octave - FIRST_OCTAVE) + 1 + half as u32) as usize).min(BOUNDS)
}

#[derive(Debug)]
struct Counters {
    buckets: [AtomicU64; BOUNDS + 1],
    sum_ns: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        let zero = AtomicU64::default;
        Counters { buckets: std::array::from_fn(|_| zero()), sum_ns: zero(), bytes: zero(), errors: zero() }
    }
}

impl Counters {
    fn buckets(&self) -> Buckets {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }
}

/// What was answered of one kind, since the node was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Which kind.
    pub kind: OperationKind,
    /// How many took how long.
    pub buckets: Buckets,
    /// How long all took together.
    pub total: Duration,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
}

/// The counters of one shard.
#[derive(Debug, Default)]
pub struct Operations([Counters; KINDS]);

impl Operations {
    /// An operation on so many bytes begins. A call before and one after, and no future handed through: it would be copied for that, which was a
    /// tenth of what a read of a block costs (measured 2026-11-27).
    #[must_use = "it is counted when it ends"]
    pub fn begin(&self, kind: OperationKind, bytes: u64) -> Counted<'_> {
        Counted { counters: &self.0[kind as usize], bytes, begun: Instant::now() }
    }

    /// How many operations of each kind took how long so far, by bucket.
    pub(super) fn by_bucket(&self) -> [Buckets; KINDS] {
        std::array::from_fn(|kind| self.0[kind].buckets())
    }

    /// What was counted so far, by kind.
    #[must_use]
    pub fn so_far(&self) -> [Answered; KINDS] {
        OperationKind::ALL.map(|kind| {
            let counters = &self.0[kind as usize];
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            Answered {
                kind,
                buckets: counters.buckets(),
                total: Duration::from_nanos(load(&counters.sum_ns)),
                bytes: load(&counters.bytes),
                errors: load(&counters.errors),
            }
        })
    }
}

/// An operation under way. One that is dropped is not counted.
#[derive(Debug)]
pub struct Counted<'a> {
    counters: &'a Counters,
    bytes: u64,
    begun: Instant,
}

impl Counted<'_> {
    /// It was answered.
    pub fn end(self, succeeded: bool) {
        let Counted { counters, bytes, begun } = self;
        let took = begun.elapsed();
        counters.buckets[bucket(took)].fetch_add(1, Ordering::Relaxed);
        counters.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let (counter, amount) = if succeeded { (&counters.bytes, bytes) } else { (&counters.errors, 1) };
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_a_bound_is_within_it_and_what_took_longer_is_not() {
        for at in 0..BOUNDS {
            assert_eq!(bucket(bound(at)), at, "{:?}", bound(at));
            assert_eq!(bucket(bound(at) + Duration::from_nanos(1)), at + 1, "{:?}", bound(at));
        }
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BOUNDS));
        assert_eq!([0, 1, 2].map(bound), [16, 24, 32].map(Duration::from_micros));
        assert_eq!(bound(BOUNDS - 1), Duration::from_micros(1 << 24));
    }

    #[test]
    fn kinds_have_the_places_of_their_numbers() {
        for (at, kind) in OperationKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_is_counted_when_it_is_answered_and_bytes_only_when_it_succeeded() {
        let operations = Operations::default();
        let counted = operations.begin(OperationKind::Write, 4096);
        tokio::time::sleep(Duration::from_millis(3)).await;
        counted.end(true);
        operations.begin(OperationKind::Write, 4096).end(false);
        let never = async {
            let counted = operations.begin(OperationKind::Read, 512);
            std::future::pending::<()>().await;
            counted.end(true);
        };
        tokio::time::timeout(Duration::from_secs(1), never).await.expect_err("is given up");
        let [read, write, ..] = operations.so_far();
        assert_eq!((write.bytes, write.errors, write.total), (4096, 1, Duration::from_millis(3)));
        assert_eq!((write.buckets[0], write.buckets[bucket(Duration::from_millis(3))]), (1, 1));
        assert_eq!(read.buckets.iter().sum::<u64>(), 0);
    }
}
