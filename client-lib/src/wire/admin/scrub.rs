//! Scrubs.

use serde::{Deserialize, Serialize};

/// Whether a scrub is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// There was none.
    #[default]
    Never,
    /// It is not.
    Running,
    /// Everything was read.
    Finished,
    /// Somebody ended it.
    Stopped,
}

/// A scrub at one node: the one under way, or the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ScrubStatus {
    /// The node.
    pub node: String,
    /// The volume; `null` for everything that the node stores.
    pub volume: Option<String>,
    /// Whether it is over.
    pub state: ScrubState,
    /// Whether somebody asked for it; else it began by itself.
    pub by_hand: bool,
    /// When it began, by the node's clock, in milliseconds since 1970.
    pub began_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Bytes to read; about, until it is through.
    pub total_bytes: u64,
    /// Bytes that were read and compared with their checksums.
    pub checked_bytes: u64,
    /// Blocks that it found damaged.
    pub damaged_blocks: u64,
    /// Those of them that were repaired from another node.
    pub repaired_blocks: u64,
    /// Blocks that are damaged at this moment, whoever found them.
    pub damaged_now: u64,
}
