//! All volumes at a glance: one answer for those who look at many, put together from what each owner tells of its own.

use serde::{Deserialize, Serialize};

use super::space::StoreFault;

/// Which volumes are asked for, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OverviewQuery {
    /// Only those that have this in their name, or in that of their group, owner or a replica, whatever the case of letters.
    pub search: Option<String>,
    /// Only those that this node owns.
    pub owner: Option<String>,
    /// Only those of which something waits, or is not as it should be.
    pub waiting: bool,
    /// `name`, `owner`, `size`, `lag`, `behind` or `stale`; `name`, if it is not given.
    pub sort: Option<String>,
    /// The largest, or the last, first.
    pub descending: bool,
    /// So many are left out at the beginning.
    pub offset: u64,
    /// At most so many, and never more than 500; 100, if it is not given.
    pub limit: Option<u64>,
}

/// All volumes at a glance. What owners tell is at most a second old while they answer; it never waits for one that does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Overview {
    /// The node that answered.
    pub node: String,
    /// How many volumes there are.
    pub volumes: u64,
    /// Their sizes together.
    pub size_bytes: u64,
    /// Of how many of them something waits, or is not as it should be.
    pub waiting: u64,
    /// How many fit what was asked.
    pub matching: u64,
    /// Those of them that were asked for.
    pub rows: Vec<VolumeRow>,
    /// Every node, as the owner of volumes.
    pub owners: Vec<OwnerRow>,
    /// What is still to be sent from owners to replicas; pairs for which there is nothing are left out.
    pub backlogs: Vec<Backlog>,
}

/// A node as the owner of volumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnerRow {
    /// The node.
    pub node: String,
    /// How many volumes it owns.
    pub volumes: u64,
    /// How old is what it told of them, in seconds; `null` when it has not told anything yet.
    pub seconds_old: Option<f64>,
    /// Why it was not told anew; `null` when it was, or is about to be.
    pub silence: Option<String>,
    /// Its stores that take no writes, as it told last.
    #[serde(default)]
    pub store_faults: Vec<StoreFault>,
}

/// What is still to be sent from a node to another, of all volumes that it owns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Backlog {
    /// The owner.
    pub from: String,
    /// The replica.
    pub to: String,
    /// Bytes of distinct blocks.
    pub bytes: u64,
    /// Of how many volumes.
    pub volumes: u64,
    /// How far the volume is behind that is furthest behind.
    pub seconds: f64,
}

/// A volume at a glance. What only its owner knows is absent while that one has not told it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeRow {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The node that owns it.
    pub owner: String,
    /// The epoch of that ownership.
    pub epoch: u64,
    /// Its class of durability.
    pub durability: String,
    /// The group that it is in.
    pub group: Option<String>,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// The node to which it goes when it is written there.
    pub on_write: Option<String>,
    /// The nodes that follow.
    pub replicas: Vec<ReplicaRow>,
    /// Age of the oldest write that no replica has, in seconds.
    pub rpo_seconds: Option<f64>,
    /// How far that may go, in milliseconds.
    pub rpo_target_ms: Option<u64>,
    /// Bytes that occupy space at the owner.
    pub mapped_bytes: Option<u64>,
    /// Bytes that the owner has yet to fetch.
    pub stale_bytes: Option<u64>,
    /// What waits, or is not as it should be, and why.
    pub waits: Vec<String>,
    /// Whether its owner has ceased to act for it, since its store has failed: nothing is read or written until it is taken over.
    #[serde(default)]
    pub stepped_down: bool,
    /// How old is what the owner told, in seconds; `null` when it has not told anything of this ownership yet.
    pub seconds_old: Option<f64>,
}

/// A replica of a volume at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicaRow {
    /// The node.
    pub node: String,
    /// Whether the owner's last call to it succeeded; `null` when the owner has not told.
    pub reachable: Option<bool>,
    /// Age of the oldest write that it lacks, in seconds.
    pub seconds_behind: Option<f64>,
    /// Bytes of distinct blocks that it lacks.
    pub bytes_behind: Option<u64>,
}
