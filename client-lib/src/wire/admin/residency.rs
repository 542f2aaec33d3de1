//! Where the blocks of a volume are, as a picture.

use serde::{Deserialize, Serialize};

/// What of a volume is at one node, in so many parts of equal size that a picture can be drawn of it, however large it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResidencyMap {
    /// The volume.
    pub volume: String,
    /// The node.
    pub node: String,
    /// Whether the node owns it.
    pub owner: bool,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of a part; the last one may be smaller.
    pub part_bytes: u64,
    /// For each part, bytes that are here in the newest version that this node knows of.
    pub local: Vec<u64>,
    /// For each part, bytes that are elsewhere in a newer version, or only there. What is neither reads as zeroes.
    pub stale: Vec<u64>,
    /// All of `local`.
    pub local_bytes: u64,
    /// All of `stale`.
    pub stale_bytes: u64,
    /// Whether `local` was counted block by block. Of a large volume some mebibytes of each part are looked at, and the others are taken to
    /// be like them; `stale` is always counted.
    pub exact: bool,
    /// Whether a takeover cut off what is here: it belongs to another history, and counts as stale.
    pub cut_off: bool,
}
