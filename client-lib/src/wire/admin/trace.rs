//! Where the time of a volume's operations goes.

use serde::{Deserialize, Serialize};

/// What was seen of a volume's operations at its owner in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceReport {
    /// The volume.
    pub volume: String,
    /// The owner, where its operations were looked at.
    pub node: String,
    /// For how long, in milliseconds; shorter than asked for if the volume went elsewhere.
    pub took_ms: u64,
    /// Whether it went elsewhere.
    pub moved: bool,
    /// Kinds of operations of which there were any.
    pub kinds: Vec<TracedKind>,
    /// The slowest operations that were looked at, the slowest first.
    pub slowest: Vec<TracedOperation>,
}

/// The operations of one kind that began and were answered in that while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TracedKind {
    /// `read`, `write`, `flush`, `trim` or `zero`.
    pub operation: String,
    /// How many began.
    pub count: u64,
    /// How many of them were looked at. Where there are many, one in so many is, and counts for all of these in the times below.
    pub sampled: u64,
    /// How many of those failed.
    pub failed: u64,
    /// Bytes of those that were looked at.
    pub sampled_bytes: u64,
    /// How long they took.
    pub total: TraceTimes,
    /// What they spent in each stage; the sums are together that of `total`.
    pub stages: Vec<TraceStage>,
}

/// What operations spent in one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceStage {
    /// `socket`, `queue`, `log`, `disk`, `network` or `remote`.
    pub stage: String,
    /// The times.
    pub times: TraceTimes,
}

/// Times of operations, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceTimes {
    /// All together.
    pub sum_ns: u64,
    /// What half of the operations take no longer than, within 3 %.
    pub p50_ns: u64,
    /// What 99 of 100 take no longer than, within 3 %.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// All, in buckets of increasing bounds, without those that are empty: those of several reports may be added up.
    pub histogram: Vec<TraceBucket>,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceBucket {
    /// Its upper bound, which is within it. The same in all reports.
    pub up_to_ns: u64,
    /// How many operations are in it.
    pub count: u64,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TracedOperation {
    /// Its kind.
    pub operation: String,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// The first byte; 0 of a flush.
    pub offset: u64,
    /// How many bytes; 0 of a flush.
    pub bytes: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// Whether it was carried out.
    pub succeeded: bool,
    /// The other node that it waited for last.
    pub waited_for: Option<String>,
    /// What it did, one after the other; of very many the first.
    pub spans: Vec<TraceSpan>,
}

/// A time that an operation spent in one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceSpan {
    /// The stage.
    pub stage: String,
    /// When it began, in nanoseconds from when the operation did.
    pub after_ns: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}
