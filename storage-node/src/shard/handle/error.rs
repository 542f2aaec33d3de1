//! Why a shard refuses or fails what it is asked for, in words for whoever asked: they know the volume by its name, not by its id.

use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};

use crate::propagation::manifest::BlockRun;

/// What is said of a volume that is not flushed. Whoever wants it to come by a write, at another node, knows by these words that it is in use.
pub const NOT_FLUSHED: &str = "something was written there since the last flush";

/// Why a shard refused or failed an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The volume is not in this shard.
    #[error("the volume is not stored here")]
    UnknownVolume(VolumeId),
    /// This node does not own the volume.
    #[error("this node does not own the volume (it is in epoch {epoch})")]
    NotOwner {
        /// The volume.
        volume: VolumeId,
        /// The epoch the shard knows.
        epoch: Epoch,
    },
    /// A session at the owner has claimed the volume: who wrote it from afar before has lost the right.
    #[error("the volume is written at its owner's node since epoch {epoch}")]
    Claimed {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the claim.
        epoch: Epoch,
    },
    /// Writes are held while the volume is handed over: wait for the outcome, then try again.
    #[error("the volume is frozen for a handover or a snapshot of its group")]
    Frozen(VolumeId),
    /// This node owns the volume and acts for it no more, until it is started anew or another node has taken the volume over.
    #[error(
        "this node has stepped down as the owner of the volume, since its store has failed: `helio volume takeover` gives the volume to a replica"
    )]
    SteppedDown(VolumeId),
    /// Something was written since the last flush, or is under way.
    #[error("the volume is in use where it is: {}", NOT_FLUSHED)]
    NotFlushed(VolumeId),
    /// The range lies beyond the end.
    #[error("{length} bytes at {offset} lie beyond the end of the volume, which has {} bytes", size.bytes())]
    BeyondEnd {
        /// The volume.
        volume: VolumeId,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
        /// The size that is in force for requests.
        size: VolumeSize,
    },
    /// The volume has no such snapshot here, or cannot have it: a snapshot's id is higher than those of all before it.
    #[error("the volume has no snapshot {snapshot} here")]
    UnknownSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The volume has as many snapshots as it may have.
    #[error("the volume has too many snapshots: delete some first")]
    TooManySnapshots(VolumeId),
    /// The volume cannot become what a snapshot is, because it is smaller.
    #[error(
        "the volume has {} bytes and the snapshot {}: make the volume as large first (helio volume resize)",
        size.bytes(), snapshot_size.bytes()
    )]
    SmallerThanSnapshot {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: VolumeSize,
        /// The snapshot's.
        snapshot_size: VolumeSize,
    },
    /// The volume cannot become what a snapshot is before all of both is here.
    #[error("the volume still fetches {blocks} blocks: try again when they are here (helio volume status)")]
    StillFetching {
        /// The volume.
        volume: VolumeId,
        /// Blocks that are known and not held.
        blocks: u64,
    },
    /// The volume is on its way to another size than was asked for.
    #[error("the volume is being resized: try again when that is done")]
    Resizing(VolumeId),
    /// This node comes back to the volume, and was not told yet what it is to have.
    #[error(
        "this node has discarded what a takeover cut off of the volume, and was not told yet what has taken its place: try again in a moment"
    )]
    Untold(VolumeId),
    /// An initial sync is under way: this node is told of the volume in parts, and has no prefix of it.
    #[error(
        "this node is being sent the volume for the first time and does not have all of it yet: try again when it has"
    )]
    Syncing(VolumeId),
    /// Something of the volume is held already that did not come in parts.
    #[error("this node holds some of the volume already, or owns it, and takes no part of an initial sync")]
    NoParts(VolumeId),
    /// Snapshots that were made beyond this position are not deleted yet, or deleted and not merged.
    #[error("snapshots of the volume that were made beyond {beyond} are not gone yet: try again in a moment")]
    HasSnapshots {
        /// The volume.
        volume: VolumeId,
        /// The position.
        beyond: Lsn,
    },
    /// These blocks exist in a newer version elsewhere: fetch them, `receive` them, then try again.
    #[error("{} runs of blocks are stale", runs.len())]
    Stale {
        /// The stale blocks among those asked for.
        runs: Vec<BlockRun>,
    },
    /// A manifest does not continue where the last one ended.
    #[error("a manifest from {found} does not continue at {expected}")]
    ManifestGap {
        /// What the shard knows up to.
        expected: Lsn,
        /// Where the manifest starts.
        found: Lsn,
    },
    /// Stored bytes do not match their checksum. The block is noted: another attempt gets `Damaged`, or a newer version.
    #[error(
        "block {block} is corrupt in segment {segment} at byte {offset}: checksum {found:08x}, expected {expected:08x}"
    )]
    Corrupt {
        /// The volume.
        volume: VolumeId,
        /// The block.
        block: BlockIndex,
        /// The segment file's number.
        segment: u64,
        /// The byte within the segment file.
        offset: u64,
        /// The checksum in the map.
        expected: u32,
        /// The checksum of what was read.
        found: u32,
    },
    /// These blocks are damaged here, as was found before: fetch them from another holder, `receive` them, then try again.
    #[error("{} runs of blocks are damaged here, the first at block {}", runs.len(), runs.first().map_or(0, |run| run.start.0))]
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// The damaged blocks among those asked for.
        runs: Vec<BlockRun>,
    },
    /// No segment is free and the file system has no space for another.
    #[error("the data directory is full")]
    OutOfSpace,
    /// The log or the map failed before; nothing is written until the node is restarted.
    #[error("the store takes no writes until the node is restarted: {0}")]
    Poisoned(String),
    /// The write is carried out, and not durable, as it was asked to be: the log failed before it was.
    #[error("the write is not durable, and the store takes no writes until the node is restarted: {reason}")]
    NotDurable {
        /// Its position.
        lsn: Lsn,
        /// Why.
        reason: String,
    },
    /// The volume is in a store of the node that cannot be opened.
    #[error("this volume is in the store in {directory}, which cannot be opened (docs/disks.md): {reason}")]
    Unopened {
        /// The store's.
        directory: String,
        /// Why.
        reason: String,
    },
    /// The device or file system failed.
    #[error("input or output failed: {0}")]
    Io(String),
    /// The shard has stopped.
    #[error("the shard has stopped")]
    Stopped,
}
