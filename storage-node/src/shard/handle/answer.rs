//! What a shard answers.

use client_lib::{Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};

use crate::map::page::Version;
use crate::propagation::manifest::BlockRun;
use crate::volume::Moment;
use crate::volume::rejoin::Rejoining;
use crate::volume::tally::Tally;

/// What the shard does with a volume here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This node owns the volume under this epoch and serves it.
    Owner,
    /// This node follows; the shard refuses guest I/O.
    Replica,
}

/// A volume's positions and counts in this shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeReport {
    /// The size it has here; a replica's may be larger than the volume's.
    pub size: VolumeSize,
    /// What this node is to the volume.
    pub role: Role,
    /// The epoch of the last activation or deactivation; `Epoch(0)` when new.
    pub epoch: Epoch,
    /// Owner: the newest assigned LSN. Replica: equal to `known`.
    pub head: Lsn,
    /// Owner: up to where writes are synced. Replica: equal to `known`.
    pub durable: Lsn,
    /// Up to where this node knows what changed (manifests received); on an owner equal to `head`.
    pub known: Lsn,
    /// The same without what is under way: on an owner, up to where writes are in the volume and may have been acked.
    pub applied: Lsn,
    /// Up to where this node holds a complete prefix of the volume; on an owner without stale blocks equal to `head`.
    pub watermark: Lsn,
    /// Up to where this node has anything that it applied or wrote: what lies behind a takeover's fork is its tail.
    pub held: Lsn,
    /// Blocks known in a version that is not held: a newer one, or one that a snapshot has.
    pub stale_blocks: u64,
    /// The newest snapshot that is known here; 0 when there is none.
    pub newest_snapshot: SnapshotId,
    /// The snapshot that the delta to be applied next ends at, if it does.
    pub awaited_snapshot: Option<SnapshotId>,
    /// The end of the delta to be applied next, if one is sealed.
    pub sealed_to: Option<Lsn>,
    /// Blocks that occupy space here.
    pub mapped_blocks: u64,
    /// Blocks whose data here is damaged and not yet repaired, as far as it was found.
    pub damaged_blocks: u64,
    /// Damaged blocks that were repaired from another node since the start.
    pub repaired_blocks: u64,
    /// Blocks that the scrub has read and compared since the start, counted again in each pass.
    pub verified_blocks: u64,
    /// Why the shard takes no more writes until the node is restarted, if so.
    pub fault: Option<String>,
    /// Whether the shard refused the last data that it was to take, for want of space.
    pub is_full: bool,
    /// What was written under this ownership.
    pub tally: Tally,
    /// The last epoch in which a session of the owner's node wrote; `Epoch(0)` when none did.
    pub claimed: Epoch,
    /// How this node comes back to the volume, if it does: it has discarded what a takeover cut off, and holds no prefix yet.
    pub rejoining: Option<Rejoining>,
}

/// What a snapshot that was made has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeSnapshot {
    /// Up to where it has the volume's writes.
    pub lsn: Lsn,
    /// The volume's size there.
    pub size: VolumeSize,
}

/// A snapshot of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Which.
    pub snapshot: SnapshotId,
    /// Up to where it has the volume's writes.
    pub lsn: Lsn,
    /// The volume's size then.
    pub size: VolumeSize,
    /// Blocks that occupy space and that neither the volume nor a newer snapshot has any more.
    pub held_blocks: u64,
    /// Its blocks that are known and not held.
    pub stale_blocks: u64,
    /// Whether all of it is in the base: what a clone and a rollback need.
    pub is_whole: bool,
}

/// Blocks that are known to be damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedBlocks {
    /// The volume.
    pub volume: VolumeId,
    /// What shows them: the volume, or a snapshot alone.
    pub moment: Moment,
    /// Which.
    pub runs: Vec<BlockRun>,
}

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedExtent {
    /// Length in bytes.
    pub length: u64,
    /// Whether a block of data is mapped (here or, stale, elsewhere); else it reads as zeroes.
    pub mapped: bool,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In the log here.
    Local,
    /// Elsewhere: the newest version that is known here was not fetched.
    Stale,
    /// Nowhere: they read as zeroes.
    Zero,
}

/// A run of bytes in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentExtent {
    /// Length in bytes.
    pub length: u64,
    /// Where they are.
    pub residency: Residency,
}

/// Blocks, each with its version if it has one.
pub type Versions = Vec<(u32, Option<Version>)>;
