//! What a shard can be asked: one value for each method of its handle.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::{BlockIndex, Epoch, Lsn, ReadPart, SnapshotId, VolumeId, VolumeSize};

use super::{
    Blocks, DamagedBlocks, LackingSince, MadeSnapshot, MappedExtent, Reply, ResidentExtent, Seal, Sealed, SealedDelta,
    SnapshotReport, StoreError, UnsyncedEnd, Versions, VolumeReport,
};
use crate::log::Traffic;
use crate::propagation::manifest::{BlockRun, Manifest, VersionedBlock};
use crate::shard::figures::ShardFigures;
use crate::shard::news::News;
use crate::shard::scrub::{ScrubAction, ScrubReport};
use crate::shard::space::ShardSpace;
use crate::volume::Moment;
use crate::volume::layers::Wanted;
use crate::volume::ledger::{Author, LedgerNews};
use crate::volume::resident::Resident;

/// When a volume may be frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreezeWhen {
    /// At once.
    #[default]
    Always,
    /// When the last that clients did was a flush, or nothing yet, and nothing of theirs is under way: as a virtual machine
    /// leaves its disk that was stopped.
    Flushed,
    /// At once; and if its store takes no writes any more, what was acked need not be durable.
    Unsynced,
}

/// What a shard can be asked. The methods of [`ShardHandle`](super::ShardHandle) document each.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant is documented at the method of the same name")]
pub enum Request {
    Open { volume: VolumeId, size: VolumeSize, reply: Reply<VolumeReport> },
    OpenClone { volume: VolumeId, origin: VolumeId, snapshot: SnapshotId, reply: Reply<VolumeReport> },
    List { reply: Reply<Vec<VolumeId>> },
    Delete { volume: VolumeId, reply: Reply<()> },
    Resize { volume: VolumeId, size: VolumeSize, owner: Option<Epoch>, reply: Reply<VolumeReport> },
    CreateSnapshot { volume: VolumeId, snapshot: SnapshotId, reply: Reply<MadeSnapshot> },
    CreateFrozen { volume: VolumeId, snapshot: SnapshotId, reply: Reply<MadeSnapshot> },
    DeleteSnapshot { volume: VolumeId, snapshot: SnapshotId, reply: Reply<()> },
    RollBack { volume: VolumeId, snapshot: SnapshotId, reply: Reply<Lsn> },
    Snapshots { volume: VolumeId, reply: Reply<Vec<SnapshotReport>> },
    Report { volume: VolumeId, reply: Reply<VolumeReport> },
    News { volume: VolumeId, reply: Reply<Arc<News>> },
    Vouch { volume: VolumeId, reply: Reply<Lsn> },
    Read { volume: VolumeId, moment: Moment, offset: u64, length: u32, reply: Reply<Vec<ReadPart>> },
    Write { volume: VolumeId, offset: u64, data: Bytes, fua: bool, author: Author, reply: Reply<Lsn> },
    Zero { volume: VolumeId, offset: u64, length: u64, fua: bool, author: Author, reply: Reply<Lsn> },
    Ledger { volume: VolumeId, reply: Reply<LedgerNews> },
    NoteLedger { volume: VolumeId, news: LedgerNews, reply: Reply<()> },
    Flush { volume: VolumeId, reply: Reply<Lsn> },
    Sync { volume: VolumeId, reply: Reply<Lsn> },
    Extents { volume: VolumeId, moment: Moment, offset: u64, length: u64, reply: Reply<Vec<MappedExtent>> },
    Residency { volume: VolumeId, moment: Moment, offset: u64, length: u64, reply: Reply<Vec<ResidentExtent>> },
    ResidentParts { volume: VolumeId, first: u64, blocks: u32, parts: u32, reply: Reply<Vec<Resident>> },
    Activate { volume: VolumeId, epoch: Epoch, acts_under: Option<u64>, reply: Reply<VolumeReport> },
    Arm { volume: VolumeId, epoch: Epoch, acts_under: Option<u64>, reply: Reply<()> },
    Cease { volume: VolumeId, epoch: Epoch, reply: Reply<()> },
    Deactivate { volume: VolumeId, epoch: Epoch, reply: Reply<VolumeReport> },
    Freeze { volume: VolumeId, when: FreezeWhen, reply: Reply<Lsn> },
    Thaw { volume: VolumeId, reply: Reply<()> },
    SealManifest { volume: VolumeId, from: Lsn, after: SnapshotId, delta_from: Option<Lsn>, reply: Reply<Sealed> },
    SealPart { volume: VolumeId, base: Lsn, next: BlockIndex, most: usize, reply: Reply<Sealed> },
    SealTogether { volume: VolumeId, seals: Vec<Seal> },
    SealUnsynced { volume: VolumeId, from: Lsn, after: SnapshotId, reply: Reply<UnsyncedEnd> },
    PinSnapshot { volume: VolumeId, snapshot: SnapshotId, from: Lsn, also: Blocks, reply: Reply<SealedDelta> },
    ReadSealed { volume: VolumeId, pin: u64, runs: Vec<BlockRun>, reply: Reply<Vec<VersionedBlock>> },
    Release { volume: VolumeId, pin: u64, reply: Reply<()> },
    ChangedBlocks { volume: VolumeId, since: Lsn, reply: Reply<u64> },
    Prune { volume: VolumeId, up_to: Lsn, reply: Reply<()> },
    ApplyManifest { volume: VolumeId, manifest: Manifest, seal: bool, durable: bool, reply: Reply<Lsn> },
    ApplyPart { volume: VolumeId, manifest: Manifest, end: Option<BlockIndex>, reply: Reply<Lsn> },
    Missing { volume: VolumeId, wanted: Wanted, after: BlockIndex, limit: u32, reply: Reply<Vec<BlockRun>> },
    Receive { volume: VolumeId, blocks: Vec<VersionedBlock>, reply: Reply<u64> },
    ApplySealed { volume: VolumeId, to: Lsn, reply: Reply<Lsn> },
    Rewind { volume: VolumeId, to: Lsn, reply: Reply<VolumeReport> },
    Discard { volume: VolumeId, to: Lsn, reply: Reply<VolumeReport> },
    ReadVersions { volume: VolumeId, moment: Moment, runs: Vec<BlockRun>, reply: Reply<Vec<VersionedBlock>> },
    Versions { volume: VolumeId, moment: Moment, runs: Vec<BlockRun>, reply: Reply<Versions> },
    Lacking { volume: VolumeId, moment: Moment, runs: Vec<BlockRun>, reply: Reply<Vec<(u32, Lsn)>> },
    LackingSealed { volume: VolumeId, after: BlockIndex, most: usize, reply: Reply<Vec<(u32, Lsn)>> },
    LackingSince { volume: VolumeId, since: Lsn, after: BlockIndex, reply: Reply<LackingSince> },
    ReadHeld { volume: VolumeId, moment: Moment, wanted: Vec<(u32, Lsn)>, reply: Reply<Vec<VersionedBlock>> },
    ReadAlike { volume: VolumeId, wanted: Wanted, runs: Vec<BlockRun>, reply: Reply<Vec<VersionedBlock>> },
    Damaged { reply: Reply<Vec<DamagedBlocks>> },
    Traffic { reply: Reply<Traffic> },
    Scrub { action: ScrubAction, of: Option<VolumeId>, reply: Reply<ScrubReport> },
    Space { of: Option<VolumeId>, reply: Reply<ShardSpace> },
    Figures { reply: Reply<ShardFigures> },
    Checkpoint { reply: Reply<()> },
    Stop { reply: Reply<()> },
}

impl Request {
    /// Answers with `error`. A receiver that is gone has abandoned its call.
    pub(in crate::shard) fn refuse(self, error: StoreError) {
        match self {
            Request::Open { reply, .. }
            | Request::OpenClone { reply, .. }
            | Request::Resize { reply, .. }
            | Request::Report { reply, .. }
            | Request::Activate { reply, .. }
            | Request::Deactivate { reply, .. }
            | Request::Rewind { reply, .. }
            | Request::Discard { reply, .. } => drop(reply.send(Err(error))),
            Request::RollBack { reply, .. }
            | Request::Write { reply, .. }
            | Request::Zero { reply, .. }
            | Request::Flush { reply, .. }
            | Request::Sync { reply, .. }
            | Request::Vouch { reply, .. }
            | Request::Freeze { reply, .. }
            | Request::ApplyManifest { reply, .. }
            | Request::ApplyPart { reply, .. }
            | Request::ApplySealed { reply, .. } => drop(reply.send(Err(error))),
            Request::Delete { reply, .. }
            | Request::DeleteSnapshot { reply, .. }
            | Request::Arm { reply, .. }
            | Request::Cease { reply, .. }
            | Request::Thaw { reply, .. }
            | Request::Release { reply, .. }
            | Request::Prune { reply, .. }
            | Request::NoteLedger { reply, .. }
            | Request::Checkpoint { reply }
            | Request::Stop { reply } => drop(reply.send(Err(error))),
            Request::ChangedBlocks { reply, .. } | Request::Receive { reply, .. } => drop(reply.send(Err(error))),
            Request::ReadSealed { reply, .. }
            | Request::ReadVersions { reply, .. }
            | Request::ReadHeld { reply, .. }
            | Request::ReadAlike { reply, .. } => drop(reply.send(Err(error))),
            Request::Lacking { reply, .. } | Request::LackingSealed { reply, .. } => drop(reply.send(Err(error))),
            Request::News { reply, .. } => drop(reply.send(Err(error))),
            Request::List { reply } => drop(reply.send(Err(error))),
            Request::Ledger { reply, .. } => drop(reply.send(Err(error))),
            Request::CreateSnapshot { reply, .. } | Request::CreateFrozen { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Request::Snapshots { reply, .. } => drop(reply.send(Err(error))),
            Request::Read { reply, .. } => drop(reply.send(Err(error))),
            Request::Extents { reply, .. } => drop(reply.send(Err(error))),
            Request::Residency { reply, .. } => drop(reply.send(Err(error))),
            Request::ResidentParts { reply, .. } => drop(reply.send(Err(error))),
            Request::SealManifest { reply, .. } | Request::SealPart { reply, .. } => drop(reply.send(Err(error))),
            Request::SealUnsynced { reply, .. } => drop(reply.send(Err(error))),
            Request::LackingSince { reply, .. } => drop(reply.send(Err(error))),
            Request::SealTogether { seals, .. } => {
                for seal in seals {
                    drop(seal.reply.send(Err(error.clone())));
                }
            }
            Request::PinSnapshot { reply, .. } => drop(reply.send(Err(error))),
            Request::Missing { reply, .. } => drop(reply.send(Err(error))),
            Request::Versions { reply, .. } => drop(reply.send(Err(error))),
            Request::Damaged { reply } => drop(reply.send(Err(error))),
            Request::Traffic { reply } => drop(reply.send(Err(error))),
            Request::Scrub { reply, .. } => drop(reply.send(Err(error))),
            Request::Space { reply, .. } => drop(reply.send(Err(error))),
            Request::Figures { reply } => drop(reply.send(Err(error))),
        }
    }

    /// The volume that must be ready for this.
    pub(in crate::shard) fn touches(&self) -> Option<VolumeId> {
        match self {
            Request::Open { volume, .. }
            | Request::Resize { volume, .. }
            | Request::CreateSnapshot { volume, .. }
            | Request::CreateFrozen { volume, .. }
            | Request::DeleteSnapshot { volume, .. }
            | Request::RollBack { volume, .. }
            | Request::OpenClone { volume, .. }
            | Request::Read { volume, .. }
            | Request::Write { volume, .. }
            | Request::Zero { volume, .. }
            | Request::NoteLedger { volume, .. }
            | Request::Flush { volume, .. }
            | Request::Sync { volume, .. }
            | Request::Extents { volume, .. }
            | Request::Residency { volume, .. }
            | Request::ResidentParts { volume, .. }
            | Request::Activate { volume, .. }
            | Request::Arm { volume, .. }
            | Request::Deactivate { volume, .. }
            | Request::Freeze { volume, .. }
            | Request::Thaw { volume, .. }
            | Request::SealManifest { volume, .. }
            | Request::SealPart { volume, .. }
            | Request::SealTogether { volume, .. }
            | Request::SealUnsynced { volume, .. }
            | Request::PinSnapshot { volume, .. }
            | Request::ReadSealed { volume, .. }
            | Request::Release { volume, .. }
            | Request::ChangedBlocks { volume, .. }
            | Request::Prune { volume, .. }
            | Request::ApplyManifest { volume, .. }
            | Request::ApplyPart { volume, .. }
            | Request::Missing { volume, .. }
            | Request::Receive { volume, .. }
            | Request::ApplySealed { volume, .. }
            | Request::Rewind { volume, .. }
            | Request::Discard { volume, .. }
            | Request::Versions { volume, .. }
            | Request::Lacking { volume, .. }
            | Request::LackingSealed { volume, .. }
            | Request::LackingSince { volume, .. }
            | Request::ReadHeld { volume, .. }
            | Request::ReadAlike { volume, .. }
            | Request::ReadVersions { volume, .. } => Some(*volume),
            Request::List { .. }
            | Request::Delete { .. }
            | Request::Cease { .. }
            | Request::Snapshots { .. }
            | Request::Report { .. }
            | Request::Vouch { .. }
            | Request::News { .. }
            | Request::Ledger { .. }
            | Request::Damaged { .. }
            | Request::Traffic { .. }
            | Request::Scrub { .. }
            | Request::Space { .. }
            | Request::Figures { .. }
            | Request::Checkpoint { .. }
            | Request::Stop { .. } => None,
        }
    }
}
