//! A volume in a shard: what its log entries do to its state, live and in recovery alike.
//!
//! [`Volume`] is the whole persistent state of a volume except its base map. Every change goes through one of the
//! `apply_*` methods, in the order of the log, so that replaying the log from a checkpoint gives the state that the
//! process had: they decide from the state and the entry alone. No I/O but page look-ups, no clock, no replies.
//!
//! `applying` has what the entries do, `views` what is seen of the outcome, `telling` how that is told to others. [`layers`] holds what is known above the base, [`changes`] the change history, [`pins`] the sealed deltas of an
//! owner (in memory only), [`ledger`] who writes from afar, [`rollback`] how it becomes a snapshot again, [`clone`] how it
//! begins as another volume's, `rewind` what a takeover cuts off, [`rejoin`] how a node comes back after that,
//! [`initial`] how it comes to a node that has nothing, [`resident`] how much of it is here, [`record`] the encoding for the map store.

mod applying;
pub mod changes;
pub mod clone;
pub mod initial;
pub mod layers;
pub mod ledger;
pub mod pins;
pub mod record;
pub mod rejoin;
pub mod resident;
mod rewind;
pub mod rollback;
pub mod tally;
mod telling;
mod views;

use client_lib::{Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use serde::{Deserialize, Serialize};

use crate::map::MapKey;
use crate::map::page::{PAGE_ENTRIES, Version};
use crate::map::snapshot::{Snapshot, Snapshots};
use crate::propagation::manifest::ManifestRun;
use crate::shard::handle::Role;
pub use telling::{manifest_fault, manifest_of};

use changes::Changes;
use clone::Filling;
use initial::InitialSync;
use layers::Layers;
use ledger::Ledger;
use pins::Pins;
use rollback::Rollback;
use tally::Tally;

/// Blocks with their versions, in order.
pub type Mapped = Vec<(u32, Version)>;

/// Which moment of a volume is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    /// The newest that is known.
    Now,
    /// As this snapshot, which must exist, has it.
    Snapshot(SnapshotId),
}

/// A volume's state as of the last applied log entry.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Which volume.
    pub id: VolumeId,
    /// Its size.
    pub size: VolumeSize,
    /// What this node is to it.
    pub role: Role,
    /// Under which ownership.
    pub epoch: Epoch,
    /// Up to where this node knows what changed; on an owner the newest applied write.
    pub known: Lsn,
    /// What is known above the base.
    pub layers: Layers,
    /// Which blocks changed when.
    pub changes: Changes,
    /// The deltas being sent.
    pub pins: Pins,
    /// The snapshots in the base. Others are on their way into it, in the layers.
    pub snapshots: Snapshots,
    /// Who writes it from afar.
    pub ledger: Ledger,
    /// The rollback under way; until it is done only its steps may look at the volume.
    pub rollback: Option<Rollback>,
    /// Where the rest of its pages come from; until it has them only the steps may look at the volume.
    pub filling: Option<Filling>,
    /// What the owner has written.
    pub tally: Tally,
    /// Whose clone it is, and whose that is, the first of them first.
    ancestors: Vec<VolumeId>,
    watermark: Lsn,
    /// The newest write that was made here, as the owner.
    written: Lsn,
    /// Of which position the base is, but for what the layers have, when this node is on its way back to the volume.
    rejoin: Option<Lsn>,
    /// How far the initial sync of this node has come.
    initial: Option<InitialSync>,
    /// Where the part of the initial sync ends that is sealed, if it is not the last.
    part: Option<u32>,
    /// The runs of a manifest that comes in several entries, until the last one; or what is left of one whose last never came.
    partial: Vec<ManifestRun>,
}

impl AsMut<Volume> for Volume {
    fn as_mut(&mut self) -> &mut Volume {
        self
    }
}

impl Volume {
    /// A volume that was never written.
    #[must_use]
    pub fn new(id: VolumeId, size: VolumeSize) -> Volume {
        Volume {
            id,
            size,
            role: Role::Replica,
            epoch: Epoch(0),
            known: Lsn::ZERO,
            layers: Layers::new(id),
            changes: Changes::default(),
            pins: Pins::default(),
            snapshots: Snapshots::default(),
            ledger: Ledger::default(),
            rollback: None,
            filling: None,
            tally: Tally::default(),
            ancestors: Vec::new(),
            watermark: Lsn::ZERO,
            written: Lsn::ZERO,
            rejoin: None,
            initial: None,
            part: None,
            partial: Vec::new(),
        }
    }

    /// Whether its blocks are of two moments: some are put back to a snapshot, or are there of its origin's, and some are not yet.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.rollback.is_some() || self.filling.is_some()
    }

    /// Up to where this node holds a complete prefix.
    #[must_use]
    pub fn watermark(&self) -> Lsn {
        self.watermark
    }

    /// The last block.
    #[must_use]
    pub fn last_block(&self) -> u32 {
        (self.size.blocks() - 1) as u32
    }

    /// The live map, and those of the snapshots from the newest on.
    pub fn maps(&self) -> impl Iterator<Item = MapKey> + '_ {
        let snapshots = self.snapshots.iter().rev().map(|snapshot| MapKey { volume: self.id, snapshot: snapshot.id });
        std::iter::once(self.id.into()).chain(snapshots)
    }

    /// The snapshot `id`, whether it is complete here or not.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<Snapshot> {
        self.snapshots.find(id).copied().or_else(|| self.layers.snapshots().find(|snapshot| snapshot.id == id))
    }

    /// Every snapshot, the oldest first.
    pub fn all_snapshots(&self) -> impl Iterator<Item = Snapshot> + '_ {
        let in_base = self.snapshots.iter().filter(|snapshot| !snapshot.is_deleted).copied();
        in_base.chain(self.layers.snapshots())
    }

    /// The newest snapshot that is known here; 0 when there is none.
    #[must_use]
    pub fn newest_snapshot(&self) -> SnapshotId {
        let in_base = self.snapshots.iter().next_back().map(|snapshot| snapshot.id);
        self.layers.snapshots().last().map(|snapshot| snapshot.id).or(in_base).unwrap_or_default()
    }
}

/// Groups what is about blocks by the chunk that these are in, as long as they rise.
fn by_chunk<T>(all: impl Iterator<Item = T>, block: impl Fn(&T) -> u32) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.peekable();
    std::iter::from_fn(move || {
        let mut group = vec![all.next()?];
        let follows = |last: u32, next: u32| next > last && next / PAGE_ENTRIES == last / PAGE_ENTRIES;
        while let Some(next) = all.next_if(|next| follows(block(&group[group.len() - 1]), block(next))) {
            group.push(next);
        }
        Some(group)
    })
}

#[cfg(test)]
mod tests;
