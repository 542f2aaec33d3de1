//! The way into a shard from other threads: typed requests over a bounded queue, each with a reply.
//!
//! A [`ShardHandle`] is cheap to clone and safe from any task. Every operation is serialised by its shard;
//! concurrency comes from having many under way. The shard is the authority on whether a write may happen
//! (role, epoch, freeze): no caller needs to check first.

use std::sync::Arc;

use client_lib::trace::Trace;
use client_lib::{Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

mod answer;
mod error;
mod guest;
mod owner;
mod pinning;
mod replica;
mod reply;
mod request;
mod sealed;

pub use answer::{
    DamagedBlocks, MadeSnapshot, MappedExtent, Residency, ResidentExtent, Role, SnapshotReport, Versions, VolumeReport,
};
pub use error::{NOT_FLUSHED, StoreError};
pub use reply::{Answer, Reply};
pub use request::{FreezeWhen, Request};
pub use sealed::{Blocks, LackingSince, Part, Seal, Sealed, SealedDelta, UnsyncedEnd};

use super::figures::ShardFigures;
use super::news::News;
use super::operations::Operations;
use super::rebuild::RebuildPace;
use super::scrub::{ScrubAction, ScrubReport};
use super::space::ShardSpace;
use crate::fault::FaultCell;
use crate::log::Traffic;

/// The segment named when bytes that came from elsewhere, and lie in no segment, do not match.
pub const RECEIVED_SEGMENT: u64 = u64::MAX;

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
