//! What is asked where a volume is followed, and by those who look for blocks.

use client_lib::{BlockIndex, Lsn, VolumeId};

use super::{LackingSince, Request, ShardHandle, StoreError, Versions, VolumeReport};
use crate::propagation::manifest::{BlockRun, Manifest, VersionedBlock};
use crate::volume::Moment;
use crate::volume::layers::Wanted;

impl ShardHandle {
    /// Replica: takes note of `manifest`. With `seal`, everything known up to `manifest.to` becomes the delta to
    /// apply next (merging with one that was sealed and not yet applied). With `durable`, returns after a sync.
    /// Returns the new `known`. A manifest that ends at or before `known` changes nothing but still seals. One that ends at
    /// a snapshot makes that snapshot known, and the delta that it ends to be applied by itself.
    ///
    /// # Errors
    /// `ManifestGap` when it starts after `known`. One that starts before and ends after `known` is taken whole.
    pub async fn apply_manifest(
        &self,
        volume: VolumeId,
        manifest: Manifest,
        seal: bool,
        durable: bool,
    ) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::ApplyManifest { volume, manifest, seal, durable, reply }).await
    }

    /// Replica: takes note of the next part of an initial sync, which ends before block `end` or is the last, and seals it. What was told and
    /// not applied before is forgotten. Durable on return. Returns the new `known`.
    ///
    /// # Errors
    /// `NoParts` where something is held already that did not come in parts, or the node owns the volume.
    pub async fn apply_part(
        &self,
        volume: VolumeId,
        manifest: Manifest,
        end: Option<BlockIndex>,
    ) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::ApplyPart { volume, manifest, end, reply }).await
    }

    /// Stale blocks at or after `after`, at most `limit` runs of a bounded number of blocks, in block order; none is the end, and whoever wants more
    /// goes on behind the last. Works in both roles.
    pub async fn missing(
        &self,
        volume: VolumeId,
        wanted: Wanted,
        after: BlockIndex,
        limit: u32,
    ) -> Result<Vec<BlockRun>, StoreError> {
        self.ask(|reply| Request::Missing { volume, wanted, after, limit, reply }).await
    }

    /// Stores fetched or pushed blocks; answered once the log file holds them. Wanted is a version that is stale or damaged
    /// here; others are dropped. Checks each against the manifest's checksum; a mismatch is `Corrupt`. Returns how
    /// many were wanted. Works in both roles.
    pub async fn receive(&self, volume: VolumeId, blocks: Vec<VersionedBlock>) -> Result<u64, StoreError> {
        self.ask(|reply| Request::Receive { volume, blocks, reply }).await
    }

    /// Replica: moves the watermark to the sealed delta's end `to`, logged and synced, if nothing of it is missing.
    /// Returns the watermark, moved or not, as far as it is durable.
    pub async fn apply_sealed(&self, volume: VolumeId, to: Lsn) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::ApplySealed { volume, to, reply }).await
    }

    /// Replica: a takeover cut the volume's history off at `to`; what is known beyond it is dropped, logged and synced.
    /// Changes nothing where more than that is held, which the report says. Idempotent.
    pub async fn rewind(&self, volume: VolumeId, to: Lsn) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Rewind { volume, to, reply }).await
    }

    /// Replica: what is held here beyond `to`, where a takeover cut the volume's history off, is dropped, logged and synced. Of the blocks
    /// that it had changed it is not known then which version is meant ([`crate::volume::rejoin`]). Idempotent.
    ///
    /// # Errors
    /// `HasSnapshots`: whoever asks deletes them first, and has a checkpoint written when they are gone.
    pub async fn discard(&self, volume: VolumeId, to: Lsn) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Discard { volume, to, reply }).await
    }

    /// Reads the newest version known of each block, or that of a snapshot, in either role; `Stale` if it is elsewhere.
    pub async fn read_versions(
        &self,
        volume: VolumeId,
        moment: Moment,
        runs: Vec<BlockRun>,
    ) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadVersions { volume, moment, runs, reply }).await
    }

    /// Which version of each block a read of the volume as its owner, or of a snapshot, would give at this moment.
    ///
    /// # Errors
    /// As [`read`](Self::read), but that nothing is stale or damaged to it; `Frozen` while the node's lease is out.
    pub async fn versions(
        &self,
        volume: VolumeId,
        moment: Moment,
        runs: Vec<BlockRun>,
    ) -> Result<Versions, StoreError> {
        self.ask(|reply| Request::Versions { volume, moment, runs, reply }).await
    }

    /// The versions of blocks in `runs` that `moment`, or a pinned delta, has and this node lacks or has damaged, in block order. Works
    /// in both roles.
    pub async fn lacking(
        &self,
        volume: VolumeId,
        moment: Moment,
        runs: Vec<BlockRun>,
    ) -> Result<Vec<(u32, Lsn)>, StoreError> {
        self.ask(|reply| Request::Lacking { volume, moment, runs, reply }).await
    }

    /// The first `most` versions at or after block `after` that the sealed delta lacks, in block order.
    pub async fn lacking_sealed(
        &self,
        volume: VolumeId,
        after: BlockIndex,
        most: usize,
    ) -> Result<Vec<(u32, Lsn)>, StoreError> {
        self.ask(|reply| Request::LackingSealed { volume, after, most, reply }).await
    }

    /// Of the blocks from `after` on that are known and not here, those whose version is newer than `since`, as far as one turn looks. Works in both
    /// roles.
    pub async fn lacking_since(
        &self,
        volume: VolumeId,
        since: Lsn,
        after: BlockIndex,
    ) -> Result<LackingSince, StoreError> {
        self.ask(|reply| Request::LackingSince { volume, since, after, reply }).await
    }

    /// Reads those of `wanted` that are here, applied or not, in their order; `moment` says where else to look. Works in both roles.
    pub async fn read_held(
        &self,
        volume: VolumeId,
        moment: Moment,
        wanted: Vec<(u32, Lsn)>,
    ) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadHeld { volume, moment, wanted, reply }).await
    }

    /// What is here with the checksum of a version in `runs` that is lacking as `wanted` has it, under that version's name: it may be the
    /// same data, or not. Nothing of snapshots. Works in both roles.
    pub async fn read_alike(
        &self,
        volume: VolumeId,
        wanted: Wanted,
        runs: Vec<BlockRun>,
    ) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadAlike { volume, wanted, runs, reply }).await
    }
}
