//! Members as administrators see them, and how they are removed.

use serde::{Deserialize, Serialize};

use super::space::StoreFault;

/// A node in a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeSummary {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// Where other nodes reach it.
    pub address: String,
    /// Its part in the metadata: `leader`, `voter` or `learner`.
    pub role: String,
    /// Whether it answers the node asked, now.
    pub reachable: bool,
    /// How long ago it last answered the node asked, in seconds; `null` if it has not since that was started.
    pub heard_seconds_ago: Option<f64>,
    /// How many volumes it owns.
    pub owns: u64,
    /// How many volumes it follows as a replica.
    pub follows: u64,
    /// The version of its program; `null` while it does not answer, or if that is too old to tell.
    pub version: Option<String>,
    /// What it is, for rules of placement.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Its stores that take no writes; none while it does not answer, and from a program that does not tell yet.
    #[serde(default)]
    pub store_faults: Vec<StoreFault>,
}

/// A node that is no member any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RemovedStatus {
    /// Its id.
    pub id: u64,
    /// What it was called.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// When it was removed, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether it was given up without being asked for anything.
    pub was_lost: bool,
}

/// The nodes of the cluster, as the node asked sees them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeList {
    /// The members.
    pub nodes: Vec<NodeSummary>,
    /// Those that were removed, oldest first.
    pub removed: Vec<RemovedStatus>,
}

/// Asks for a node to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RemoveNode {
    /// Whether it is gone for good: it is not asked for anything, and must not answer.
    #[serde(default)]
    pub lost: bool,
    /// Also where it is the only replica of a volume, or a class of durability cannot be met without it.
    #[serde(default)]
    pub accept_fewer: bool,
    /// Whether it is only looked what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// A volume that a removed node followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GivenUpReplica {
    /// The volume.
    pub volume: String,
    /// The replicas that are left.
    pub replicas: Vec<String>,
    /// Whether its class of durability cannot be met by those.
    pub is_unmet: bool,
}

/// What came of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeRemoval {
    /// The node.
    pub node: String,
    /// `removed`; `waiting`, where it is to be asked for again; `planned`, where it was only looked.
    pub state: String,
    /// What is waited for; empty when nothing is.
    pub waiting_for: Vec<String>,
    /// Who votes on metadata without it.
    pub voters: Vec<String>,
    /// Its replicas, which are given up.
    pub given_up: Vec<GivenUpReplica>,
    /// Volumes that may lack blocks that only this node had.
    pub incomplete: Vec<String>,
    /// Nodes that have not said that they let it in no more: they do as soon as they hear of it.
    pub unconfirmed: Vec<String>,
}
