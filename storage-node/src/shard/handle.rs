//! The way into a shard from other threads: typed requests over a bounded queue, each with a reply.
//!
//! A [`ShardHandle`] is cheap to clone and safe from any task. Every operation is serialised by its shard;
//! concurrency comes from having many under way. The shard is the authority on whether a write may happen
//! (role, epoch, freeze): no caller needs to check first.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::trace::Trace;
use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

mod error;
mod reply;
mod sealed;
mod traced;

pub use error::StoreError;
pub use reply::{Answer, Reply};
pub use sealed::{Blocks, LackingSince, Part, Seal, Sealed, SealedDelta, UnsyncedEnd};

use super::figures::ShardFigures;
use super::news::News;
use super::operations::Operations;
use super::rebuild::RebuildPace;
use super::scrub::{ScrubAction, ScrubReport};
use super::space::ShardSpace;
use crate::fault::FaultCell;
use crate::log::Traffic;
use crate::map::page::Version;
use crate::propagation::manifest::{BlockRun, Manifest, VersionedBlock};
use crate::volume::Moment;
use crate::volume::layers::Wanted;
use crate::volume::ledger::{Author, LedgerNews};
use crate::volume::rejoin::Rejoining;
use crate::volume::resident::Resident;
use crate::volume::tally::Tally;

/// The segment named when bytes that came from elsewhere, and lie in no segment, do not match.
pub const RECEIVED_SEGMENT: u64 = u64::MAX;

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

/// A part of a read: block data as stored or a run of zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadChunk {
    /// These bytes.
    Data(Bytes),
    /// This many zero bytes.
    Zero(u32),
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

/// What a shard can be asked. The methods of [`ShardHandle`] document each.
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
    Read { volume: VolumeId, moment: Moment, offset: u64, length: u32, reply: Reply<Vec<ReadChunk>> },
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

/// How many connections a shard serves on its own thread. More would make the thread the limit where there are other cores.
const GUESTS_MAX: usize = 4;

/// How many requests may wait for a shard; more make their callers wait.
pub const QUEUE_DEPTH: usize = 1024;

/// The way into one shard.
#[derive(Clone)]
pub struct ShardHandle {
    queue: tokio::sync::mpsc::Sender<Request>,
    home: Handle,
    guests: Arc<Semaphore>,
    fault: FaultCell,
    operations: Arc<Operations>,
    rebuilds: Arc<RebuildPace>,
}

impl ShardHandle {
    /// A handle that feeds `queue` of a shard that runs on `home` and puts its fault into `fault`.
    #[must_use]
    pub fn new(queue: tokio::sync::mpsc::Sender<Request>, home: Handle, fault: FaultCell) -> ShardHandle {
        let guests = Arc::new(Semaphore::new(GUESTS_MAX));
        ShardHandle { queue, home, guests, fault, operations: Arc::default(), rebuilds: Arc::default() }
    }

    /// The runtime of the shard's own thread, for whoever keeps the permit; `None` when it has guests enough. What runs
    /// there asks the shard without waking another thread, takes turns with it, and so must never block; it ends when the
    /// shard does.
    #[must_use]
    pub fn home(&self) -> Option<(Handle, OwnedSemaphorePermit)> {
        let permit = self.guests.clone().try_acquire_owned().ok()?;
        Some((self.home.clone(), permit))
    }

    /// Where it is counted what guests ask of the shard's volumes.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Waits until so many bytes may be read to rebuild a replica: it gives way to guests.
    ///
    /// # Cancel safety
    /// Safe: the turn is lost.
    pub async fn rebuild_turn(&self, bytes: u64) {
        self.rebuilds.turn(&self.operations, bytes).await;
    }

    /// Whether rebuilds give way to guests now.
    #[must_use]
    pub fn rebuilds_beside_guests(&self) -> bool {
        self.rebuilds.has_guests()
    }

    /// Requests that wait for the shard.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// The runtime of the shard's own thread, for whoever only looks whether it takes turns.
    #[must_use]
    pub fn thread(&self) -> &Handle {
        &self.home
    }

    /// Why the shard takes no more writes until the node is restarted, if so; without asking it.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.get()
    }

    /// When that was found.
    #[must_use]
    pub fn fault_since(&self) -> Option<Instant> {
        self.fault.since()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        self.ask_traced(Trace::NONE, request).await
    }

    async fn ask_traced<T>(&self, trace: &Trace, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = Reply::traced(trace.clone());
        self.queue.send(request(reply)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Opens `volume`, creating it empty as a [`Role::Replica`] of epoch 0 when the shard does not have it. A volume
    /// that was [`Role::Owner`] when the process ended comes back as `Replica` at its recovered position, with
    /// `known` = `head` = the last LSN in the log: only [`activate`](Self::activate) makes an owner.
    pub async fn open(&self, volume: VolumeId, size: VolumeSize) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Open { volume, size, reply }).await
    }

    /// Opens `volume` as a clone of a snapshot of `origin`, which this shard has: as a [`Role::Replica`] of epoch 0 that holds
    /// what the snapshot holds, up to its LSN. A volume that the shard has already is left as it is. Durable on return. Copies
    /// no data; what is asked of the volume at first waits, in proportion to the snapshot's map.
    ///
    /// # Errors
    /// `UnknownVolume` and `UnknownSnapshot` of the origin, `StillFetching` while not all of the snapshot is here; `OutOfSpace`,
    /// `Poisoned`, `Io`.
    pub async fn open_clone(
        &self,
        volume: VolumeId,
        origin: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::OpenClone { volume, origin, snapshot, reply }).await
    }

    /// Every volume in this shard.
    pub async fn list(&self) -> Result<Vec<VolumeId>, StoreError> {
        self.ask(|reply| Request::List { reply }).await
    }

    /// Forgets `volume` and frees its space. Durable on return. Idempotent.
    pub async fn delete(&self, volume: VolumeId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Delete { volume, reply }).await
    }

    /// Gives `volume` another size; durable on return. Idempotent. As the owner of the epoch `owner` a smaller size drops
    /// what lies beyond it: requests there are refused from now on, and a later growth reads zeroes. In any other role or
    /// epoch, and with `None`, the volume only grows: what a replica holds beyond a smaller end goes with the owner's
    /// zeroes. The report says what came of it.
    ///
    /// # Errors
    /// `Stale` when the block that the new end cuts must be fetched first; `Frozen`, `NotOwner` when the volume is handed
    /// over meanwhile; `Resizing`; `OutOfSpace`, `Poisoned`, `Io`. The size stays as it was, and what lies beyond the new
    /// end may be dropped already.
    pub async fn resize(
        &self,
        volume: VolumeId,
        size: VolumeSize,
        owner: Option<Epoch>,
    ) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Resize { volume, size, owner, reply }).await
    }

    /// Keeps the volume as it is, as the owner: with every write acked before this call, and none that begins after it
    /// returned. Copies no data, and needs none to be here. Durable on return. Idempotent. `snapshot` is above
    /// every id used before in this volume.
    ///
    /// # Errors
    /// `NotOwner`, `Frozen`; `UnknownSnapshot` when the id is not the highest; `TooManySnapshots`; `OutOfSpace`, `Poisoned`,
    /// `Io`.
    pub async fn create_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<MadeSnapshot, StoreError> {
        self.ask(|reply| Request::CreateSnapshot { volume, snapshot, reply }).await
    }

    /// The same of a volume that its caller has frozen, so that it is what the volume was then.
    ///
    /// # Errors
    /// As [`create_snapshot`](Self::create_snapshot).
    pub async fn create_frozen(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<MadeSnapshot, StoreError> {
        self.ask(|reply| Request::CreateFrozen { volume, snapshot, reply }).await
    }

    /// Deletes a snapshot, in either role. Durable on return; its space comes back in the background. Idempotent.
    pub async fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.ask(|reply| Request::DeleteSnapshot { volume, snapshot, reply }).await
    }

    /// Makes the volume, which is owned here, what the snapshot is, as one write, and returns its LSN. Durable on return.
    /// Copies no data. Whatever else is asked of the volume waits meanwhile, in proportion to the pages of the map that
    /// changed since the snapshot. Snapshots stay, also newer ones. Idempotent in effect: again it is another write that
    /// changes nothing.
    ///
    /// # Errors
    /// `UnknownSnapshot`; `SmallerThanSnapshot`; `StillFetching` while not everything is here; `NotOwner`, `Frozen`, `Resizing`;
    /// `OutOfSpace`, `Poisoned`, `Io`. Then the volume is as it was.
    ///
    /// # Cancel safety
    /// Dropping the future stops waiting; the rollback goes on.
    pub async fn roll_back(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::RollBack { volume, snapshot, reply }).await
    }

    /// The snapshots of a volume that are known here, oldest first.
    pub async fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotReport>, StoreError> {
        self.ask(|reply| Request::Snapshots { volume, reply }).await
    }

    /// The volume's positions and counts.
    pub async fn report(&self, volume: VolumeId) -> Result<VolumeReport, StoreError> {
        self.ask(|reply| Request::Report { volume, reply }).await
    }

    /// Answers as soon as this node certainly still owns the volume: while its lease holds at once, else when it does again.
    ///
    /// # Errors
    /// `NotOwner` when it does not any more.
    pub async fn vouch(&self, volume: VolumeId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Vouch { volume, reply }).await.map(drop)
    }

    /// Where it is told that something was applied to the volume, for as long as it exists here.
    pub async fn news(&self, volume: VolumeId) -> Result<Arc<News>, StoreError> {
        self.ask(|reply| Request::News { volume, reply }).await
    }

    /// Reads the newest acked write of each byte as the owner, or a snapshot in either role. `length` may be any number of
    /// sectors.
    ///
    /// # Errors
    /// `NotOwner` on a replica, `UnknownSnapshot`; `Stale` and `Damaged` name the blocks to fetch first. Served while
    /// frozen.
    pub async fn read(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
    ) -> Result<Vec<ReadChunk>, StoreError> {
        self.read_traced(Trace::NONE, volume, moment, offset, length).await
    }

    /// Writes as the owner: answered once the log file holds it, with its LSN; `fua` waits until it is synced.
    /// Partial blocks are read, merged and written whole, in the order of arrival.
    ///
    /// # Errors
    /// `NotOwner`, `Frozen`; `Stale` when a partly written block must be fetched first; `OutOfSpace`, `Poisoned`, `Io`.
    ///
    /// The write is a session's of this node, and claims the volume for those of this node in its present epoch.
    pub async fn write(&self, volume: VolumeId, offset: u64, data: Bytes, fua: bool) -> Result<Lsn, StoreError> {
        self.write_traced(Trace::NONE, Author::Session(None), volume, offset, data, fua).await
    }

    /// Makes a range read as zeroes and frees the whole blocks in it. Otherwise as [`write`](Self::write).
    pub async fn zero(&self, volume: VolumeId, offset: u64, length: u64, fua: bool) -> Result<Lsn, StoreError> {
        self.zero_traced(Trace::NONE, Author::Session(None), volume, offset, length, fua).await
    }

    /// What is known of the volume's writers; of an owner that is frozen, all there is.
    pub async fn ledger(&self, volume: VolumeId) -> Result<LedgerNews, StoreError> {
        self.ask(|reply| Request::Ledger { volume, reply }).await
    }

    /// Takes note of what another node knows of the volume's writers. Logged, and durable with the next sync.
    pub async fn note_ledger(&self, volume: VolumeId, news: LedgerNews) -> Result<(), StoreError> {
        self.ask(|reply| Request::NoteLedger { volume, news, reply }).await
    }

    /// Syncs everything acked before; returns the durable LSN. On a replica: syncs what it has received.
    pub async fn flush(&self, volume: VolumeId) -> Result<Lsn, StoreError> {
        self.flush_traced(Trace::NONE, volume).await
    }

    /// As [`flush`](Self::flush), and not taken for one of a client ([`FreezeWhen::Flushed`]).
    pub async fn sync(&self, volume: VolumeId) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Sync { volume, reply }).await
    }

    /// What is mapped in a range, as the owner, or of a snapshot in either role.
    pub async fn extents(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<MappedExtent>, StoreError> {
        self.ask(|reply| Request::Extents { volume, moment, offset, length, reply }).await
    }

    /// What is here of the newest versions that this node knows of, or of a snapshot's: as much as [`extents`](Self::extents)
    /// tells. Works in both roles.
    pub async fn residency(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<ResidentExtent>, StoreError> {
        self.ask(|reply| Request::Residency { volume, moment, offset, length, reply }).await
    }

    /// How much is here, and how much elsewhere, of each of `parts` parts of the volume, of `blocks` blocks each, from block `first` on: of
    /// as many of them as can be looked at while other requests wait, of one at least. None beyond the volume's end. Works in both roles.
    pub async fn resident_parts(
        &self,
        volume: VolumeId,
        first: u64,
        blocks: u32,
        parts: u32,
    ) -> Result<Vec<Resident>, StoreError> {
        self.ask(|reply| Request::ResidentParts { volume, first, blocks, parts, reply }).await
    }

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
        self.ask(|reply| Request::SealManifest { volume, from, after, delta_from, reply }).await
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
        self.ask(|reply| Request::SealPart { volume, base, next, most, reply }).await
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
        self.ask(|reply| Request::PinSnapshot { volume, snapshot, from, also, reply }).await
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

    /// The blocks that are known to be damaged here. Works in both roles.
    pub async fn damaged(&self) -> Result<Vec<DamagedBlocks>, StoreError> {
        self.ask(|reply| Request::Damaged { reply }).await
    }

    /// What the shard's log has written since it was started; the map store's writes come on top.
    pub async fn traffic(&self) -> Result<Traffic, StoreError> {
        self.ask(|reply| Request::Traffic { reply }).await
    }

    /// Begins, ends or tells of the scrub of a volume, or of everything. One that is under way goes on when it is begun again.
    ///
    /// # Errors
    /// `UnknownVolume`.
    pub async fn scrub(&self, action: ScrubAction, of: Option<VolumeId>) -> Result<ScrubReport, StoreError> {
        self.ask(|reply| Request::Scrub { action, of, reply }).await
    }

    /// Where the space of the shard goes, with its volumes, or with `of` alone. Costs no look at the disk.
    pub async fn space(&self, of: Option<VolumeId>) -> Result<ShardSpace, StoreError> {
        self.ask(|reply| Request::Space { of, reply }).await
    }

    /// What the shard counts, with its volumes. Costs no look at the disk, and a moment for each volume.
    pub async fn figures(&self) -> Result<ShardFigures, StoreError> {
        self.ask(|reply| Request::Figures { reply }).await
    }

    /// Writes a checkpoint now.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.ask(|reply| Request::Checkpoint { reply }).await
    }

    /// Finishes what is under way, syncs, checkpoints and ends the shard's thread.
    pub async fn stop(&self) -> Result<(), StoreError> {
        self.ask(|reply| Request::Stop { reply }).await
    }
}
