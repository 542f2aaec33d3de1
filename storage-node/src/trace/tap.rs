//! What somebody sees who looks at a volume's operations for a while: times by kind and stage, and the slowest ones.
//!
//! Its memory does not grow with the operations: a few hundred buckets for each kind and stage, and as many single operations as are wanted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::trace::{OperationKind, Sink, Stage, Traced, What};
use client_lib::wire::admin::{TraceReport, TraceSpan, TraceStage, TracedKind, TracedOperation};
use tokio::time::Instant;

use super::Looker;
use super::histogram::Histogram;
use super::sampling::Sampling;

const KINDS: usize = OperationKind::ALL.len();
const STAGES: usize = Stage::ALL.len();

/// What was seen of one kind.
#[derive(Debug, Default)]
struct Seen {
    sampling: Sampling,
    sampled: u64,
    failed: u64,
    bytes: u64,
    total: Histogram,
    stages: [Histogram; STAGES],
}

#[derive(Debug, Default)]
struct All {
    kinds: [Seen; KINDS],
    /// The slowest first.
    slowest: Vec<Traced>,
}

/// Somebody who looks for a while.
#[derive(Debug)]
pub struct Tap {
    /// The kinds that are of interest.
    kinds: Vec<OperationKind>,
    slowest_max: usize,
    all: Mutex<All>,
}

/// What a report says beside what was seen.
pub struct Frame<'a> {
    /// The volume.
    pub volume: &'a str,
    /// The node.
    pub node: &'a str,
    /// For how long it was looked.
    pub took: Duration,
    /// Whether the volume went elsewhere.
    pub moved: bool,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// The same.
    pub now: Instant,
}

impl Tap {
    /// One for `kinds`, or for all if there are none, that keeps so many single operations.
    #[must_use]
    pub fn new(kinds: Vec<OperationKind>, slowest_max: usize) -> Arc<Tap> {
        let kinds = if kinds.is_empty() { OperationKind::ALL.to_vec() } else { kinds };
        Arc::new(Tap { kinds, slowest_max, all: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far; `name` tells what nodes are called.
    #[must_use]
    pub fn report(&self, frame: &Frame<'_>, name: impl Fn(NodeId) -> String) -> TraceReport {
        let all = self.all();
        let kinds = OperationKind::ALL.into_iter().zip(&all.kinds);
        TraceReport {
            volume: frame.volume.to_owned(),
            node: frame.node.to_owned(),
            took_ms: frame.took.as_millis() as u64,
            moved: frame.moved,
            kinds: kinds.filter(|(_, seen)| seen.sampling.seen() > 0).map(|(kind, seen)| told(kind, seen)).collect(),
            slowest: all.slowest.iter().map(|traced| operation(traced, frame, &name)).collect(),
        }
    }
}

fn told(kind: OperationKind, seen: &Seen) -> TracedKind {
    let stage =
        |(stage, times): (Stage, &Histogram)| TraceStage { stage: stage.name().to_owned(), times: times.told() };
    TracedKind {
        operation: kind.name().to_owned(),
        count: seen.sampling.seen(),
        sampled: seen.sampled,
        failed: seen.failed,
        sampled_bytes: seen.bytes,
        total: seen.total.told(),
        stages: Stage::ALL.into_iter().zip(&seen.stages).map(stage).collect(),
    }
}

fn operation(traced: &Traced, frame: &Frame<'_>, name: impl Fn(NodeId) -> String) -> TracedOperation {
    let ns = |duration: Duration| duration.as_nanos() as u64;
    let ago = frame.now.saturating_duration_since(traced.began).as_millis() as u64;
    let span = |span: &client_lib::trace::Span| TraceSpan {
        stage: span.stage.name().to_owned(),
        after_ns: ns(span.after),
        took_ns: ns(span.took),
    };
    TracedOperation {
        operation: traced.what.kind.name().to_owned(),
        began_ms: frame.now_ms.saturating_sub(ago),
        offset: traced.what.offset,
        bytes: traced.what.bytes,
        took_ns: ns(traced.took),
        succeeded: traced.succeeded,
        waited_for: traced.waited_for.map(name),
        spans: traced.spans.iter().map(span).collect(),
    }
}

impl Sink for Tap {
    fn note(&self, traced: &Traced, weight: u32) {
        let mut all = self.all();
        let seen = &mut all.kinds[traced.what.kind as usize];
        seen.sampled += 1;
        seen.failed += u64::from(!traced.succeeded);
        seen.bytes += traced.what.bytes;
        seen.total.note(traced.took, weight);
        for (stage, spent) in seen.stages.iter_mut().zip(traced.spent) {
            stage.note(spent, weight);
        }
        let at = all.slowest.partition_point(|slower| slower.took >= traced.took);
        if at < self.slowest_max {
            all.slowest.truncate(self.slowest_max - 1);
            all.slowest.insert(at, traced.clone());
        }
    }
}

impl Looker for Tap {
    fn weight(&self, what: &What, now: Instant) -> Option<u32> {
        if !self.kinds.contains(&what.kind) {
            return None;
        }
        self.all().kinds[what.kind as usize].sampling.next(now)
    }
}

#[cfg(test)]
mod tests {
    use client_lib::trace::Trace;

    use super::super::Tracer;
    use super::*;

    async fn operate(tracer: &Tracer, kind: OperationKind, queue_ms: u64, disk_ms: u64) {
        let trace = tracer.begin_now(What { kind, offset: 8192, bytes: 4096 });
        tokio::time::sleep(Duration::from_millis(queue_ms)).await;
        trace.spent(Stage::Queue);
        tokio::time::sleep(Duration::from_millis(disk_ms)).await;
        trace.waited_for(NodeId(3), Some(Duration::from_millis(1)));
        trace.answered(disk_ms != 13);
    }

    fn report(tap: &Tap) -> TraceReport {
        let (now, took) = (Instant::now(), Duration::from_secs(2));
        let frame = Frame { volume: "disk", node: "a", took, moved: false, now_ms: 1_000_000, now };
        tap.report(&frame, |node| format!("n{node}"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_sums_of_the_stages_are_those_of_the_operations() {
        let (tracer, tap) = (Tracer::default(), Tap::new(Vec::new(), 2));
        let looking = tracer.look(tap.clone()).expect("may look");
        for (queue, disk) in [(1, 5), (2, 40), (3, 13), (0, 1)] {
            operate(&tracer, OperationKind::Read, queue, disk).await;
        }
        operate(&tracer, OperationKind::Flush, 0, 20).await;
        drop(looking);
        operate(&tracer, OperationKind::Write, 1, 1).await;
        let report = report(&tap);
        let kinds: Vec<_> =
            report.kinds.iter().map(|kind| (kind.operation.as_str(), kind.count, kind.failed)).collect();
        assert_eq!(kinds, [("read", 4, 1), ("flush", 1, 0)], "nobody looked at the write");
        for kind in &report.kinds {
            assert_eq!(kind.stages.iter().map(|stage| stage.times.sum_ns).sum::<u64>(), kind.total.sum_ns);
            let count: u64 = kind.total.histogram.iter().map(|bucket| bucket.count).sum();
            assert_eq!((count, kind.sampled), (kind.count, kind.count));
        }
        let slowest: Vec<_> =
            report.slowest.iter().map(|one| (one.operation.as_str(), one.took_ns / 1_000_000)).collect();
        assert_eq!(slowest, [("read", 42), ("flush", 20)]);
        let slowest = report.slowest.first().expect("is there");
        assert_eq!((slowest.waited_for.as_deref(), slowest.began_ms), (Some("n3"), 1_000_000 - (42 + 16 + 1 + 20 + 2)));
        let spans: Vec<_> = slowest.spans.iter().map(|span| (span.stage.as_str(), span.took_ns / 1_000_000)).collect();
        assert_eq!(spans, [("queue", 2), ("network", 1), ("remote", 39)]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_asked_for_is_looked_at() {
        let (tracer, tap) = (Tracer::default(), Tap::new(vec![OperationKind::Flush], 0));
        let _looking = tracer.look(tap.clone()).expect("may look");
        operate(&tracer, OperationKind::Read, 1, 1).await;
        operate(&tracer, OperationKind::Flush, 1, 1).await;
        // Under way when it ends, and so not told.
        let under_way: Trace = tracer.begin_now(What { kind: OperationKind::Flush, offset: 0, bytes: 0 });
        under_way.spent(Stage::Queue);
        let report = report(&tap);
        let kinds: Vec<_> =
            report.kinds.iter().map(|kind| (kind.operation.as_str(), kind.count, kind.sampled)).collect();
        assert_eq!(kinds, [("flush", 2, 1)]);
        assert!(report.slowest.is_empty());
    }
}
