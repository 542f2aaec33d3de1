//! Where space goes.

use serde::{Deserialize, Serialize};

/// Where the space of a volume goes at one node. `docs/space.md` says what is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeSpace {
    /// Its name; empty for one that is deleted and not yet gone.
    pub volume: String,
    /// Its id.
    pub id: u64,
    /// The directory of the store that it is in.
    pub store: String,
    /// Whether the node owns it.
    pub owner: bool,
    /// Whether the node holds a replica of it, by the metadata: one that neither owns nor follows it lets it be used there all the same. `null` from a node that
    /// does not tell yet.
    #[serde(default)]
    pub follows: Option<bool>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that its blocks occupy.
    pub mapped_bytes: u64,
    /// Bytes that only its snapshots have any more.
    pub snapshot_bytes: u64,
    /// Those of them that are of deleted snapshots and on their way back.
    pub deleted_bytes: u64,
    /// Those mapped bytes that were received and are not applied yet; what they replace is mapped as well.
    pub unapplied_bytes: u64,
    /// Overwritten bytes that are kept because they are being sent to a replica; about.
    pub held_bytes: u64,
}

/// Where the space of a store goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StoreSpace {
    /// Its directory.
    pub directory: String,
    /// The size of the file system that it is on.
    pub file_system_bytes: u64,
    /// What is free there.
    pub file_system_free_bytes: u64,
    /// The most that its segments may take, if that was set.
    pub capacity_bytes: Option<u64>,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Segments that wait to be used again.
    pub pooled_segments: u64,
    /// Their bytes.
    pub pooled_bytes: u64,
    /// What is left in the segments that are written to.
    pub unwritten_bytes: u64,
    /// Bytes that volumes and snapshots need.
    pub live_bytes: u64,
    /// Bytes that nothing needs any more, and headers; the cleaner gets them back when space is wanted.
    pub garbage_bytes: u64,
    /// Those of them that come free with the next checkpoint.
    pub emptied_bytes: u64,
    /// Bytes of files of the block map.
    pub map_bytes: u64,
    /// What volumes may not take, so that TRIM, deletion, handover and the cleaner work on a full disk.
    pub reserve_bytes: u64,
    /// What volumes may still write before anything must be cleaned; about.
    pub available_bytes: u64,
    /// Why the store takes no writes until the node is restarted; `null` when it does.
    pub fault: Option<String>,
    /// Since when, in milliseconds since 1970; `null` where it could not be opened when the node was started, and from a node that does not tell yet.
    #[serde(default)]
    pub fault_since_ms: Option<u64>,
    /// Whether it refused the last write for want of space; `false` from a node that does not tell yet.
    #[serde(default)]
    pub is_full: bool,
}

/// A store that takes no writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StoreFault {
    /// Its directory.
    pub store: String,
    /// Why, in words that follow its name.
    pub fault: String,
    /// Since when, in milliseconds since 1970; `null` where it could not be opened when the node was started.
    pub since_ms: Option<u64>,
}

/// Where the space of a node goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeSpace {
    /// The node.
    pub node: String,
    /// Its stores.
    pub stores: Vec<StoreSpace>,
    /// The volumes in them.
    pub volumes: Vec<VolumeSpace>,
}
