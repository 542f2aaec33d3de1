//! What is asked where a volume is owned: to begin and end that, and to give replicas what was written.

use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId};

use super::{
    Blocks, FreezeWhen, Request, Seal, Sealed, SealedDelta, ShardHandle, StoreError, UnsyncedEnd, VolumeReport,
};
use crate::propagation::manifest::{BlockRun, VersionedBlock};

impl ShardHandle {
    /// Becomes owner under `epoch`, logged and synced; the next write gets sequence `known.sequence + 1`. Serves at
    /// once, whatever is stale. Refused with `NotOwner` if `epoch` is below the volume's. Idempotent. Thaws.
    pub async fn activate(&self, volume: VolumeId, epoch: Epoch) -> Result<VolumeReport, StoreError> {
        self.activate_under(volume, epoch, Some(0)).await
    }

    /// As [`activate`](Self::activate), of a node that acts under a lease: `acts_under` is of the metadata state that made it
    /// the owner ([`consensus::Lease::acts_under`]). While the lease is out, or of another number, nothing is answered.
    pub async fn activate_under(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        acts_under: Option<u64>,
    ) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Activate { volume, epoch, acts_under, reply }).await
    }

    /// The node, which was found to be without a lease, still owns the volume in `epoch` by a later state of the metadata, and
    /// acts under that one's number. Nothing to do in another epoch.
    pub async fn arm(&self, volume: VolumeId, epoch: Epoch, acts_under: Option<u64>) -> Result<(), StoreError> {
        self.ask(|reply| Request::Arm { volume, epoch, acts_under, reply }).await
    }

    /// Nothing is answered any more as the owner of `epoch`, or of an earlier one, for as long as the shard runs, whatever the lease and
    /// whoever arms it: this node is about to propose that it has stepped down. What waits for an answer is refused once another node owns the
    /// volume. Changes nothing that is stored, so a store that takes no writes can be asked for it. Idempotent.
    pub async fn cease(&self, volume: VolumeId, epoch: Epoch) -> Result<(), StoreError> {
        self.ask(|reply| Request::Cease { volume, epoch, reply }).await
    }

    /// Becomes a replica under `epoch` (the new owner's), logged and synced. Idempotent.
    pub async fn deactivate(&self, volume: VolumeId, epoch: Epoch) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Deactivate { volume, epoch, reply }).await
    }

    /// Refuses new writes with `Frozen`, waits for those under way, syncs, and returns the final LSN. Idempotent.
    ///
    /// # Errors
    /// `NotFlushed` when it is to be frozen only after a flush, and something was written since; `NotOwner`; `SteppedDown`.
    pub async fn freeze(&self, volume: VolumeId, when: FreezeWhen) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Freeze { volume, when, reply }).await
    }

    /// Ends a freeze without a change of owner.
    pub async fn thaw(&self, volume: VolumeId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Thaw { volume, reply }).await
    }

    /// Owner: the manifest `(from, durable]` (syncing first if something acked is not yet durable), or up to the first
    /// snapshot newer than `after`, the newest that the receiver knows of, and marked with it. With `delta_from`, and if it
    /// ends at no snapshot, also pins the delta `(delta_from, durable]`: its versions stay readable until
    /// [`release`](Self::release)d or the process ends. A `from` or `delta_from` older than the change history yields every
    /// mapped block.
    pub async fn seal_manifest(
        &self,
        volume: VolumeId,
        from: Lsn,
        after: SnapshotId,
        delta_from: Option<Lsn>,
    ) -> Result<Sealed, StoreError> {
        self.ask_pinning(volume, |reply| Request::SealManifest { volume, from, after, delta_from, reply }).await
    }

    /// Owner, frozen by [`FreezeWhen::Unsynced`]: the manifest from `from` to the newest acked write, or to the first snapshot newer than `after`, and
    /// up to where it is durable here. What is beyond that may be told to others only once it is certain that this node acts as the owner no more: its
    /// next process may know less.
    pub async fn seal_unsynced(
        &self,
        volume: VolumeId,
        from: Lsn,
        after: SnapshotId,
    ) -> Result<UnsyncedEnd, StoreError> {
        self.ask(|reply| Request::SealUnsynced { volume, from, after, reply }).await
    }

    /// Owner: the next part of the initial sync of a replica that holds what lies before block `next`, as of `base`: about `most` blocks from
    /// there on, and what has changed before that. It goes up to what is durable, or to the first snapshot that the replica must have; the last part
    /// is marked with that. Its delta is pinned until [`release`](Self::release)d.
    ///
    /// # Errors
    /// As [`seal_manifest`](Self::seal_manifest).
    pub async fn seal_part(
        &self,
        volume: VolumeId,
        base: Lsn,
        next: BlockIndex,
        most: usize,
    ) -> Result<Sealed, StoreError> {
        self.ask_pinning(volume, |reply| Request::SealPart { volume, base, next, most, reply }).await
    }

    /// Owner: as [`seal_manifest`](Self::seal_manifest) for each of `seals`, all at one position; they are answered each for itself.
    pub async fn seal_together(&self, volume: VolumeId, seals: Vec<Seal>) -> Result<(), StoreError> {
        self.queue.send(Request::SealTogether { volume, seals }).await.map_err(|_| StoreError::Stopped)
    }

    /// Owner: pins the delta from `from` up to `snapshot`, and the blocks of `also`, as [`seal_manifest`](Self::seal_manifest) does.
    ///
    /// # Errors
    /// `NotOwner`, `UnknownSnapshot`.
    pub async fn pin_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        from: Lsn,
        also: Blocks,
    ) -> Result<SealedDelta, StoreError> {
        self.ask_pinning(volume, |reply| Request::PinSnapshot { volume, snapshot, from, also, reply }).await
    }

    /// Reads blocks of a pinned delta, in its versions. Blocks that are stale here come as `Stale`.
    pub async fn read_sealed(
        &self,
        volume: VolumeId,
        pin: u64,
        runs: Vec<BlockRun>,
    ) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadSealed { volume, pin, runs, reply }).await
    }

    /// Lets go of a pinned delta. Idempotent.
    pub async fn release(&self, volume: VolumeId, pin: u64) -> Result<(), StoreError> {
        self.ask(|reply| Request::Release { volume, pin, reply }).await
    }

    /// How many distinct blocks changed after `since`.
    pub async fn changed_blocks(&self, volume: VolumeId, since: Lsn) -> Result<u64, StoreError> {
        self.ask(|reply| Request::ChangedBlocks { volume, since, reply }).await
    }

    /// Every replica has applied `up_to`: the change history before it may go.
    pub async fn prune(&self, volume: VolumeId, up_to: Lsn) -> Result<(), StoreError> {
        self.ask(|reply| Request::Prune { volume, up_to, reply }).await
    }
}
