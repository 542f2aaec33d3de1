//! Snapshots, and what is made of them.

use serde::{Deserialize, Serialize};

/// Asks for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name, unique in the volume.
    pub name: String,
}

/// Asks for a volume to become what a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Whether what was written since may go, as far as no other snapshot has it.
    #[serde(default)]
    pub discard_changes: bool,
}

/// Asks for a new volume that begins as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// The new volume's name.
    pub name: String,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotStatus {
    /// The volume.
    pub volume: String,
    /// Its name: `VOLUME@NAME` is an export.
    pub name: String,
    /// Its id, never used again.
    pub id: u64,
    /// Up to where it has the volume's writes; `null` until the owner has made it.
    pub lsn: Option<String>,
    /// The volume's size there; 0 until it is made.
    pub size_bytes: u64,
    /// When it was made, by the owner's clock, in milliseconds since 1970.
    pub created_ms: Option<u64>,
    /// Bytes at the owner that neither the volume nor a newer snapshot has any more.
    pub held_bytes: u64,
    /// The nodes that hold all of it. It can be read at the others too.
    pub complete_at: Vec<String>,
}
