//! Groups of volumes.

use serde::{Deserialize, Serialize};

/// Asks for a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Its name.
    pub name: String,
    /// Its volumes: of one owner, and with the same replicas.
    pub volumes: Vec<String>,
}

/// Asks for other volumes in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeGroup {
    /// Those that come into it.
    #[serde(default)]
    pub add: Vec<String>,
    /// Those that are taken out.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its id, never used again.
    pub id: u64,
    /// The owner of all its volumes; `null` when they have different ones, after a takeover.
    pub owner: Option<String>,
    /// Its volumes.
    pub volumes: Vec<GroupVolume>,
    /// The snapshots that were made of the group, oldest first.
    pub snapshots: Vec<GroupSnapshot>,
    /// The node to which it goes when one of its volumes is written there.
    pub on_write: Option<String>,
    /// What is not as it should be, and what to do.
    pub advice: Option<String>,
}

/// A volume of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupVolume {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// The epoch of that ownership.
    pub epoch: u64,
    /// The nodes that follow.
    pub replicas: Vec<String>,
}

/// A snapshot of a group: one of each of its volumes, at one cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupSnapshot {
    /// Its name: `VOLUME@NAME` is an export, for each volume.
    pub name: String,
    /// Whether it is made.
    pub is_made: bool,
    /// The volumes that have it: fewer than when it was made if it was deleted, or lost in a takeover, for some.
    pub volumes: Vec<String>,
}

/// What a handover of a group came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupMigrateReport {
    /// How long writers were held, in milliseconds.
    pub handover_ms: f64,
    /// The volumes that moved, and the epochs of their new ownership.
    pub volumes: Vec<MovedVolume>,
    /// Bytes of all of them that the new owner knew of and did not hold yet.
    pub stale_bytes_at_handover: u64,
    /// How long the new owner was waited for before that, until it held nearly everything.
    pub caught_up_seconds: f64,
}

/// A volume that moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MovedVolume {
    /// Its name.
    pub name: String,
    /// Its new epoch.
    pub epoch: u64,
}

/// What a snapshot of a group came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupSnapshotReport {
    /// Its name.
    pub name: String,
    /// Its id in every volume.
    pub id: u64,
    /// The volumes.
    pub volumes: Vec<CutVolume>,
    /// How long writers were held, in milliseconds.
    pub held_ms: f64,
}

/// A volume at a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CutVolume {
    /// Its name.
    pub name: String,
    /// Up to where the snapshot has its writes.
    pub lsn: String,
}
