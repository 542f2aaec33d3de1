//! Where the time of an operation on a volume goes: stages, and what the operation carries along to tell them.
//!
//! An operation that is looked at closely carries a [`Trace`] from the socket to the log and back. Whoever has done something to it, or has had it
//! wait, says afterwards in which [`Stage`] that was; the time since it was said last goes to that stage. So the stages of an operation add
//! up to its time, whatever happened. The other operations carry an empty trace, which is a word of memory and a comparison at each mark; there
//! is no future around an operation for it. Who looks is a [`Sink`]; whether an operation is looked at is for whoever begins its trace.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::NodeId;

/// Spans of one operation that are kept; later ones are only added up.
pub const SPANS_MAX: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// What was written is to be durable.
    Flush,
    /// Bytes are dropped.
    Trim,
    /// Bytes are made zeroes.
    Zero,
}

impl OperationKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [OperationKind; 5] =
        [OperationKind::Read, OperationKind::Write, OperationKind::Flush, OperationKind::Trim, OperationKind::Zero];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::Read => "read",
            OperationKind::Write => "write",
            OperationKind::Flush => "flush",
            OperationKind::Trim => "trim",
            OperationKind::Zero => "zero",
        }
    }
}

/// What an operation spends time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its bytes are taken from the client's socket, or its reply waits until the socket takes it.
    Socket,
    /// It waits for its turn: behind others, for a handover, for the pace of the volume, for the node's lease.
    Queue,
    /// It is found in the block map, or appended to the log.
    Log,
    /// The device reads, or makes durable.
    Disk,
    /// The way to another node and back.
    Network,
    /// What that node does, and what does not fit the way at once.
    Remote,
}

impl Stage {
    /// All of them, in the order of their numbers.
    pub const ALL: [Stage; 6] = [Stage::Socket, Stage::Queue, Stage::Log, Stage::Disk, Stage::Network, Stage::Remote];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Socket => "socket",
            Stage::Queue => "queue",
            Stage::Log => "log",
            Stage::Disk => "disk",
            Stage::Network => "network",
            Stage::Remote => "remote",
        }
    }
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What {
    /// Its kind.
    pub kind: OperationKind,
    /// The first byte; 0 of a flush.
    pub offset: u64,
    /// How many bytes; 0 of a flush.
    pub bytes: u64,
}

/// A time that an operation spent in one stage without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which stage.
    pub stage: Stage,
    /// When it began, counted from when the operation did.
    pub after: Duration,
    /// How long it took.
    pub took: Duration,
}

/// An operation that was answered.
#[derive(Clone, Debug)]
pub struct Traced {
    /// What it is.
    pub what: What,
    /// When it began.
    pub began: Instant,
    /// How long it took: what it spent in all stages.
    pub took: Duration,
    /// What it spent in each stage.
    pub spent: [Duration; Stage::ALL.len()],
    /// The same one after the other, the first [`SPANS_MAX`].
    pub spans: Vec<Span>,
    /// The other node that it waited for last.
    pub waited_for: Option<NodeId>,
    /// Whether it was carried out.
    pub succeeded: bool,
}

/// Who looks at operations.
pub trait Sink: Send + Sync {
    /// An operation was answered that stands for `weight` operations, because others are left out. Called on the thread that
    /// serves the operation's client: must not block.
    fn note(&self, traced: &Traced, weight: u32);
}

/// Those who look at one operation, and how many operations it stands for to each.
pub type Sinks = Vec<(Arc<dyn Sink>, u32)>;

/// What an operation carries along. Clones are of the same operation, which is told of when the last of them is gone, if it was answered.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Marks>>);

struct Marks {
    sinks: Sinks,
    traced: Mutex<Progress>,
}

struct Progress {
    traced: Traced,
    is_answered: bool,
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Marks").finish_non_exhaustive()
    }
}

impl Progress {
    /// The next `took` went to `stage`.
    fn spend(&mut self, stage: Stage, took: Duration) {
        if took.is_zero() {
            return;
        }
        let traced = &mut self.traced;
        let has_room = traced.spans.len() < SPANS_MAX;
        match traced.spans.last_mut() {
            // Only if nothing was left out between.
            Some(last) if last.stage == stage && last.after + last.took == traced.took => last.took += took,
            _ if has_room => traced.spans.push(Span { stage, after: traced.took, took }),
            _ => {}
        }
        traced.spent[stage as usize] += took;
        traced.took += took;
    }

    fn unaccounted(&self) -> Duration {
        self.traced.began.elapsed().saturating_sub(self.traced.took)
    }
}

impl Trace {
    /// The trace of an operation that nobody looks at.
    pub const NONE: &'static Trace = &Trace(None);

    /// The trace of an operation that began at `began`; of none if there are no `sinks`.
    #[must_use]
    pub fn begin(what: What, began: Instant, sinks: Sinks) -> Trace {
        if sinks.is_empty() {
            return Trace(None);
        }
        let traced = Traced {
            what,
            began,
            took: Duration::ZERO,
            spent: Default::default(),
            spans: Vec::with_capacity(8),
            waited_for: None,
            succeeded: false,
        };
        Trace(Some(Arc::new(Marks { sinks, traced: Mutex::new(Progress { traced, is_answered: false }) })))
    }

    /// Whether anybody looks.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// What was done since it was said last, or since the beginning, was this.
    #[inline]
    pub fn spent(&self, stage: Stage) {
        if let Some(marks) = &self.0 {
            marks.with(|progress| {
                let took = progress.unaccounted();
                progress.spend(stage, took);
            });
        }
    }

    /// What was done since then was to wait for `node`, which is one round trip of `rtt` away: that is the network's, the rest
    /// the other node's. With an unknown `rtt` all is.
    #[inline]
    pub fn waited_for(&self, node: NodeId, rtt: Option<Duration>) {
        if let Some(marks) = &self.0 {
            marks.with(|progress| {
                let waited = progress.unaccounted();
                let network = waited.min(rtt.unwrap_or_default());
                progress.spend(Stage::Network, network);
                progress.spend(Stage::Remote, waited - network);
                progress.traced.waited_for = Some(node);
            });
        }
    }

    /// The operation has an answer; what was done since then was to wait for the turn to take it. Its reply may still have to be sent.
    #[inline]
    pub fn answered(&self, succeeded: bool) {
        if let Some(marks) = &self.0 {
            marks.with(|progress| {
                let took = progress.unaccounted();
                progress.spend(Stage::Queue, took);
                progress.traced.succeeded = succeeded;
                progress.is_answered = true;
            });
        }
    }
}

impl Marks {
    fn with(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.traced.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        let progress = self.traced.get_mut().unwrap_or_else(PoisonError::into_inner);
        if progress.is_answered {
            for (sink, weight) in &self.sinks {
                sink.note(&progress.traced, *weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Notes(Mutex<Vec<Traced>>);

    impl Sink for Notes {
        fn note(&self, traced: &Traced, _weight: u32) {
            self.0.lock().expect("no panic").push(traced.clone());
        }
    }

    fn begin(notes: &Arc<Notes>) -> Trace {
        let what = What { kind: OperationKind::Flush, offset: 0, bytes: 0 };
        Trace::begin(what, Instant::now(), vec![(notes.clone(), 1)])
    }

    async fn pass(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn stages_add_up_to_the_time_of_an_operation() {
        let notes = Arc::new(Notes::default());
        let trace = begin(&notes);
        pass(1).await;
        trace.spent(Stage::Socket);
        pass(2).await;
        trace.spent(Stage::Queue);
        pass(3).await;
        // The shard has a clone.
        trace.clone().spent(Stage::Disk);
        pass(70).await;
        trace.waited_for(NodeId(4), Some(Duration::from_millis(60)));
        pass(5).await;
        trace.answered(true);
        assert!(notes.0.lock().expect("no panic").is_empty(), "its reply is not sent");
        pass(6).await;
        trace.spent(Stage::Socket);
        drop(trace);
        let notes = notes.0.lock().expect("no panic");
        let traced = notes.first().expect("is told of");
        assert_eq!(traced.spent.map(|spent| spent.as_millis()), [7, 7, 0, 3, 60, 10]);
        assert_eq!(traced.took, traced.spent.iter().sum::<Duration>());
        assert_eq!((traced.took.as_millis(), traced.succeeded, traced.waited_for), (87, true, Some(NodeId(4))));
        let spans: Vec<_> = traced.spans.iter().map(|span| (span.stage.name(), span.after.as_millis())).collect();
        let expected =
            [("socket", 0), ("queue", 1), ("disk", 3), ("network", 6), ("remote", 66), ("queue", 76), ("socket", 81)];
        assert_eq!(spans, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_not_told_of_and_spans_are_bounded() {
        let notes = Arc::new(Notes::default());
        let given_up = begin(&notes);
        given_up.spent(Stage::Queue);
        drop(given_up);
        assert!(notes.0.lock().expect("no panic").is_empty());
        let trace = begin(&notes);
        for _ in 0..SPANS_MAX {
            pass(1).await;
            trace.spent(Stage::Queue);
            pass(1).await;
            trace.spent(Stage::Disk);
        }
        trace.answered(false);
        drop(trace);
        let notes = notes.0.lock().expect("no panic");
        let traced = notes.first().expect("is told of");
        assert_eq!((traced.spans.len(), traced.took.as_millis()), (SPANS_MAX, 2 * SPANS_MAX as u128));
        assert_eq!(traced.took, traced.spent.iter().sum::<Duration>());
        assert!(!traced.succeeded);
    }

    #[test]
    fn an_operation_that_nobody_looks_at_has_no_trace() {
        let what = What { kind: OperationKind::Read, offset: 0, bytes: 4096 };
        assert!(!Trace::begin(what, Instant::now(), Vec::new()).is_some());
        assert!(!Trace::NONE.is_some() && !Trace::default().is_some());
        assert_eq!(size_of::<Trace>(), size_of::<usize>());
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at, "{}", stage.name());
        }
    }
}
