//! What an owner needs to give a volume away from a store that takes no writes any more (docs/ownership.md, *Rescue*).
//!
//! Nothing is appended and nothing synced: what was acked is what is applied, and that is where the epoch ends. What is told of it that may not be
//! durable here must be told to nobody before it is certain that this node acts for the volume no more.

use client_lib::{BlockIndex, Lsn, SnapshotId, VolumeId};

use super::core::Core;
use super::handle::{FreezeWhen, LackingSince, Seal, StoreError, UnsyncedEnd};
use super::run::VolumeRun;
use crate::propagation::manifest::BlockRun;
use crate::volume::layers::Wanted;

/// How many blocks that are lacking are looked at in one turn.
const LOOK_BLOCKS: u64 = 1 << 16;

impl Core {
    /// Whether who has frozen the volume is content with what is acked, since no sync will come.
    pub(super) fn ends_unsynced(&self, run: &VolumeRun) -> bool {
        run.freezes == FreezeWhen::Unsynced && self.fault().is_some()
    }

    /// The manifest from `from` to the newest acked write, or to the first snapshot newer than `after`.
    pub(super) fn seal_unsynced(
        &mut self,
        volume: VolumeId,
        from: Lsn,
        after: SnapshotId,
    ) -> Result<UnsyncedEnd, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        if !run.frozen || !run.is_quiet() {
            return Err(StoreError::Io("the volume is not frozen: its end is not known".to_owned()));
        }
        let durable = run.durable;
        let (seal, _nobody) = Seal::plain(from, after);
        let (manifest, _) = self.seal_now(volume, &seal)?;
        Ok(UnsyncedEnd { manifest, durable })
    }

    /// Of the blocks from `after` on that are known and not held here, those whose version is newer than `since`.
    pub(super) fn lacking_since(
        &self,
        volume: VolumeId,
        since: Lsn,
        after: BlockIndex,
    ) -> Result<LackingSince, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let layers = &run.state.layers;
        let found = layers.missing(Wanted::Now, after.0, LOOK_BLOCKS as usize, LOOK_BLOCKS);
        let seen: u64 = found.iter().map(|run| u64::from(run.count)).sum();
        let next = found.last().filter(|_| seen == LOOK_BLOCKS);
        let next = next.and_then(BlockRun::end);
        let is_newer = |block: &u32| layers.lacks(Wanted::Now, *block).is_some_and(|(lsn, _)| lsn > since);
        // The last block of the largest volume has no block behind it.
        let blocks = found.iter().flat_map(BlockRun::blocks);
        let runs = BlockRun::of(blocks.filter(is_newer));
        Ok(LackingSince { runs, next })
    }
}
