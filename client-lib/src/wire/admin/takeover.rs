//! Takeovers, and what they leave at an old owner.

use serde::{Deserialize, Serialize};

/// Asks for a takeover: the owner is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AskTakeover {
    /// The node that is to own the volume; the replica that holds most of it, if none is given.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether the new owner may hold less than another replica, or than one that does not answer and may hold what was flushed in
    /// the volume's class: what only that one holds is cut off.
    #[serde(default)]
    pub behind: bool,
}

/// A takeover under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TakeoverProgress {
    /// The owner that is lost.
    pub from: String,
    /// The node that takes over.
    pub to: String,
    /// `waiting`, `expiring`, `holding`, `proposing`, `resolving` or `taking_up`.
    pub stage: String,
    /// What that is, in words.
    pub doing: String,
    /// How long the owner's lease still lasts, in milliseconds, while that is waited for.
    pub remaining_ms: Option<u64>,
}

/// What a takeover came to. What the lost owner had told nobody is not in it: only that node has it, and its status shows it
/// when it is back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TakeoverReport {
    /// The volume.
    pub volume: String,
    /// The owner that is lost.
    pub from: String,
    /// The new owner.
    pub to: String,
    /// The new epoch.
    pub epoch: u64,
    /// Everything up to here is there, and nothing after it.
    pub start: String,
    /// The newest write that any replica in reach had been told of.
    pub known: String,
    /// Writes between `start` and `known`, which are lost: at least so many.
    pub lost_writes: u64,
    /// Bytes of distinct blocks that the new owner had been told of and did not hold: at most so many of those it knew of.
    pub lost_bytes: u64,
    /// From when the first lost write was told of to when the owner was last heard of, at the new owner.
    pub lost_seconds: f64,
    /// How long before the takeover the new owner last heard of the lost one, which is silent while nothing is written;
    /// `null` when it never did since it was started.
    pub heard_seconds_ago: Option<f64>,
    /// How long it took, most of it the rest of the owner's lease.
    pub took_seconds: f64,
    /// Snapshots that were made after `start`, and are lost.
    pub lost_snapshots: Vec<String>,
    /// Replicas that hold more than `start`: they have left the volume and keep what they hold.
    pub left: Vec<String>,
}

/// The owner of a volume, as the node asked sees it, whether it answers or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnerStatus {
    /// The node.
    pub owner: String,
    /// The epoch of its ownership.
    pub epoch: u64,
    /// Whether it answers the node asked, now.
    pub reachable: bool,
    /// How long its lease still lasts if it is not renewed, in milliseconds; 0 when it is out.
    pub lease_left_ms: u64,
    /// For how long its lease has been out, in milliseconds, as seen at the node asked.
    pub lease_out_for_ms: u64,
    /// The policy: as in [`VolumePolicy`](super::VolumePolicy).
    pub takeover_after_ms: Option<u64>,
    /// The nodes that follow; `null` from a node that does not tell yet.
    #[serde(default)]
    pub replicas: Option<Vec<String>>,
    /// Whether it has ceased to act as the owner, until it is restarted, since the volume's store there has failed: its lease is not
    /// waited for in a takeover.
    #[serde(default)]
    pub stepped_down: bool,
    /// For how long that has been known at the node asked, in milliseconds; `null` when it has not, and from a node that does not tell yet.
    #[serde(default)]
    pub stepped_down_for_ms: Option<u64>,
    /// The replica that would take the volume over now, where its owner does not act; `null` where it may, and from a node that does not
    /// tell yet.
    #[serde(default)]
    pub takeover_to: Option<String>,
    /// Why no replica would take it over now, where its owner does not act and that is so.
    #[serde(default)]
    pub takeover_refused: Option<String>,
}

/// Asks a node that has left a volume to drop what it holds and follow again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// The node.
    pub node: String,
    /// Must be true: what a takeover cut off is dropped for good.
    #[serde(default)]
    pub discard_tail: bool,
}

/// What a node held of a volume after a takeover cut it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TailStatus {
    /// The node that holds it, and has left the volume.
    pub node: String,
    /// After this position.
    pub from: String,
    /// Up to and with this.
    pub to: String,
    /// The read-only NBD export that shows the volume with it, at that node.
    pub export: String,
    /// Writes in it.
    pub writes: u64,
    /// Bytes of distinct blocks in it, at most.
    pub bytes: u64,
}
