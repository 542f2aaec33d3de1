//! Carries out a handover: the effects of [`Handover`] on the real shard, peers and consensus.
//!
//! Runs as a task of its own, never inside a caller's future: once the source is frozen, someone must see it
//! through, whoever stops waiting for the report.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::{BoxFuture, Class};
use client_lib::watch;
use client_lib::wire::frame::encode_head;
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, Lsn, NodeId, SnapshotId, VolumeId, VolumeSize};
use consensus::{Made, MetaState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gate::{Phase, View};
use super::handover::{Effect, Event, Handover};
use crate::peer::message::{PeerRequest, ReplicaPosition};
use crate::propagation::manifest::Manifest;
use crate::propagation::watermarks::Watermarks;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::FreezeWhen;

/// How long the destination may take to answer the last manifest before the handover is given up.
const PREPARE_DEADLINE: Duration = Duration::from_secs(10);

/// Pause before consensus is asked again for an outcome that nobody could tell.
const RESOLVE_PAUSE: Duration = Duration::from_millis(200);

/// A destination that lacks no more than so many blocks has the rest while writers are held: a mebibyte.
const LEFT_BLOCKS_MAX: u64 = 256;

/// How often it is looked how far the destination is.
const CATCH_UP_LOOK: Duration = Duration::from_millis(10);

/// How long the destination may be out of reach before it is not waited for any more.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);

/// What consensus said to a proposed transfer.
#[derive(Debug)]
pub enum TransferOutcome {
    /// Committed under this epoch.
    Committed(Epoch),
    /// Refused: did not and will not happen.
    Refused(Error),
    /// Nobody knows yet.
    Unknown,
}

/// The end of an epoch, as it is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// The new owner.
    pub to: NodeId,
    /// The last LSN of the epoch.
    pub final_lsn: Lsn,
    /// CRC-32 of the last manifest that the destination took.
    pub manifest_digest: u64,
}

/// The start of an epoch by force, as the new owner proposes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeoverProposal {
    /// The volume.
    pub volume: VolumeId,
    /// The owner that is lost.
    pub from: NodeId,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// What the new owner holds, and nothing beyond it.
    pub start: Lsn,
}

/// Another size of a volume, as its owner proposes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the ownership.
    pub epoch: Epoch,
    /// The size that the owner has carried out.
    pub expected: VolumeSize,
    /// The new size.
    pub size: VolumeSize,
}

/// What owners, and those who take over, need from consensus.
pub trait OwnershipLog: Send + Sync + 'static {
    /// Proposes `transfer`.
    fn propose(&self, transfer: Transfer) -> BoxFuture<'_, TransferOutcome>;

    /// Proposes that the lease of `node` is out: its renewal of the number `renewals` was waited out.
    ///
    /// # Errors
    /// The refusal: it has been renewed. `Unavailable` when consensus cannot be reached: it may have been committed.
    fn expire(&self, node: NodeId, renewals: u64) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes a takeover by this node.
    fn take_over(&self, takeover: TakeoverProposal) -> BoxFuture<'_, TransferOutcome>;

    /// Metadata as applied here, as it changes.
    fn states(&self) -> watch::Receiver<Arc<MetaState>>;

    /// Makes sure that nothing that was proposed before can be committed after, then reads the owner of `volume`.
    ///
    /// # Errors
    /// When consensus cannot be reached: try again.
    fn settle(&self, volume: VolumeId) -> BoxFuture<'_, Result<(NodeId, Epoch), Error>>;

    /// Proposes `resize`. When it returns, the outcome is known: it was committed, or never will be.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: then, and only then, it may still be committed.
    fn resize(&self, resize: Resize) -> BoxFuture<'_, Result<(), Error>>;

    /// Tells what a snapshot is that the owner of `epoch` has made. May be repeated.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn snapshot_made(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        snapshot: SnapshotId,
        made: Made,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Tells that the owner of `epoch` has the clone that `volume` is. May be repeated.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn clone_made(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>>;
}

/// What a handover came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoverReport {
    /// The new epoch.
    pub epoch: Epoch,
    /// From the freeze to the release: how long writers were held.
    pub held: Duration,
    /// Bytes that the destination knew of and did not hold when it was prepared.
    pub stale_bytes: u64,
    /// How long the destination was waited for before that.
    pub caught_up: Duration,
}

/// One handover of one volume.
pub struct Driver {
    volume: Arc<ServedVolume>,
    to: NodeId,
    epoch: Epoch,
    log: Arc<dyn OwnershipLog>,
    cancel: CancellationToken,
    /// Where the destination is, if it must hold everything first.
    synced: Option<Arc<Watermarks>>,
    when: FreezeWhen,
    caught_up: Duration,
    position: ReplicaPosition,
    digest: u64,
}

impl Driver {
    /// A handover of `volume`, owned here in `epoch`, to node `to`. `cancel` is heeded until the proposal.
    #[must_use]
    pub fn new(
        volume: Arc<ServedVolume>,
        to: NodeId,
        epoch: Epoch,
        log: Arc<dyn OwnershipLog>,
        cancel: CancellationToken,
    ) -> Driver {
        let (position, caught_up) = (ReplicaPosition::default(), Duration::ZERO);
        let when = FreezeWhen::Always;
        Driver { volume, to, epoch, log, cancel, synced: None, when, caught_up, position, digest: 0 }
    }

    /// The same, but the volume is handed over only when the destination holds everything, as `watermarks` tells: from then on the
    /// loss of the source costs nothing.
    #[must_use]
    pub fn synced(self, watermarks: Arc<Watermarks>) -> Driver {
        Driver { synced: Some(watermarks), ..self }
    }

    /// The same, but the volume is handed over only as a virtual machine that was stopped leaves it: flushed, with nothing under way.
    #[must_use]
    pub fn flushed(self) -> Driver {
        Driver { when: FreezeWhen::Flushed, ..self }
    }

    /// Hands over, or leaves the volume where it was and says why.
    ///
    /// # Errors
    /// The volume stays owned here and goes on.
    ///
    /// # Cancel safety
    /// Not safe: run it as a task.
    pub async fn run(mut self) -> Result<HandoverReport, Error> {
        // Whoever waits for the destination does not wait for its policy or its link's.
        let _hurry = self.synced.as_ref().map(|_| self.volume.sending.hurry(self.to));
        // Before anything is held: is the destination there, and near? What is sent now need not be sent frozen.
        self.position = self.ask(PeerRequest::ReplicaStatus { volume: self.volume.id, epoch: self.epoch }).await?;
        let asked = Instant::now();
        self.catch_up(None).await?;
        self.caught_up = asked.elapsed();
        if self.when == FreezeWhen::Always {
            // Else nobody writes, so nobody would be held up by what is sent frozen.
            self.send_manifest().await?;
        }

        let began = Instant::now();
        let mut machine = Handover::new(self.to, self.epoch);
        let mut effect = machine.on(Event::Start);
        let mut report = None;
        let mut failure = None;
        while let Some(next) = effect {
            effect = match next {
                Effect::Thaw(error) => {
                    self.volume.shard.thaw(self.volume.id).await.map_err(store_failure)?;
                    self.volume.gate.set_phase(self.epoch, Phase::Owner);
                    failure = Some(error);
                    None
                }
                Effect::StepDown { owner, epoch } => {
                    let stepped_down = self.step_down(owner, epoch, began).await?;
                    if owner == self.to {
                        report = Some(stepped_down);
                    } else {
                        let what = format!("the volume was taken over by node {owner} meanwhile");
                        failure = Some(Error::new(ErrorKind::Fenced, what));
                    }
                    None
                }
                step => {
                    let event = self.carry_out(step).await;
                    tracing::debug!(volume = %self.volume.name, epoch = %self.epoch, ?event, since = ?began.elapsed(), "handover");
                    machine.on(event)
                }
            };
        }
        match (report, failure) {
            (Some(report), _) => Ok(report),
            (None, failure) => Err(failure.expect("a handover ends stepped down or thawed")),
        }
    }

    async fn carry_out(&mut self, step: Effect) -> Event {
        match step {
            Effect::Freeze => match self.volume.shard.freeze(self.volume.id, self.when).await {
                Ok(final_lsn) => Event::Frozen(final_lsn),
                Err(error) => Event::Failed(store_failure(error)),
            },
            Effect::Prepare { final_lsn } => {
                let cancel = self.cancel.clone();
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => Event::Failed(Error::new(ErrorKind::Closed, "the handover was cancelled")),
                    prepared = tokio::time::timeout(PREPARE_DEADLINE, self.prepare(final_lsn)) => match prepared {
                        Ok(Ok(known)) => Event::Prepared(known),
                        Ok(Err(error)) => Event::Failed(error),
                        Err(_) => Event::Failed(Error::new(
                            ErrorKind::Unavailable,
                            format!("node {} did not take the last manifest within {PREPARE_DEADLINE:?}", self.to),
                        )),
                    },
                }
            }
            Effect::Propose { final_lsn } => {
                // From here on this node must not answer reads from its own copy either.
                self.volume.gate.set_phase(self.epoch, Phase::Transferring);
                let transfer = Transfer {
                    volume: self.volume.id,
                    epoch: self.epoch,
                    to: self.to,
                    final_lsn,
                    manifest_digest: self.digest,
                };
                match self.log.propose(transfer).await {
                    TransferOutcome::Committed(epoch) => Event::Committed(epoch),
                    TransferOutcome::Refused(error) => Event::Refused(error),
                    TransferOutcome::Unknown => Event::Unknown,
                }
            }
            Effect::Resolve => match self.log.settle(self.volume.id).await {
                Ok((owner, epoch)) => Event::Resolved { owner, epoch },
                Err(error) => {
                    tracing::warn!(volume = %self.volume.name, epoch = %self.epoch, %error, "the outcome of a handover is not known yet; I/O is held");
                    tokio::time::sleep(RESOLVE_PAUSE).await;
                    Event::Unknown
                }
            },
            Effect::Thaw(_) | Effect::StepDown { .. } => unreachable!("handled by the caller"),
        }
    }

    /// Waits until the destination holds everything up to `final_lsn`, or, without that, lacks little; if that is asked for.
    async fn catch_up(&self, final_lsn: Option<Lsn>) -> Result<(), Error> {
        let Some(watermarks) = &self.synced else { return Ok(()) };
        let mut reached = Instant::now();
        loop {
            let progress = watermarks.snapshot().remove(&self.to).unwrap_or_default();
            if let Some(tail) = progress.tail {
                return Err(tail.refusal(self.to));
            }
            let watermark = progress.position.watermark;
            let is_there = match final_lsn {
                Some(lsn) => watermark >= lsn,
                None => {
                    let lacks = self.volume.shard.changed_blocks(self.volume.id, watermark).await;
                    lacks.map_err(store_failure)? <= LEFT_BLOCKS_MAX
                }
            };
            if is_there {
                return Ok(());
            }
            if progress.reachable {
                reached = Instant::now();
            } else if reached.elapsed() >= CATCH_UP_PATIENCE {
                let why = progress.error.unwrap_or_else(|| "it does not answer".to_owned());
                let what =
                    format!("node {} cannot be brought up to date: {why}; the volume stays where it is", self.to);
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            if self.volume.gate.view().epoch != self.epoch {
                let what = format!("volume {} has another owner by now", self.volume.name);
                return Err(Error::new(ErrorKind::Busy, what));
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => {
                    return Err(Error::new(ErrorKind::Closed, "the handover was cancelled"));
                }
                () = tokio::time::sleep(CATCH_UP_LOOK) => {}
            }
        }
    }

    async fn prepare(&mut self, final_lsn: Lsn) -> Result<Lsn, Error> {
        self.catch_up(Some(final_lsn)).await?;
        let manifest = self.send_snapshots().await?;
        if manifest.to != final_lsn {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the last manifest ends at {}, the epoch at {final_lsn}", manifest.to),
            ));
        }
        self.digest = digest(&manifest)?;
        let mut ledger = self.volume.shard.ledger(self.volume.id).await.map_err(store_failure)?;
        ledger.claim = ledger.claim.max(self.volume.writers.claimed());
        self.position =
            self.ask(PeerRequest::Prepare { volume: self.volume.id, epoch: self.epoch, manifest, ledger }).await?;
        if self.position.known != final_lsn {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("node {} knows the volume up to {}, not {final_lsn}", self.to, self.position.known),
            ));
        }
        Ok(self.position.known)
    }

    async fn step_down(&self, owner: NodeId, epoch: Epoch, began: Instant) -> Result<HandoverReport, Error> {
        // The shard first: once the gate is open, what was held must not be admitted here.
        self.volume.shard.deactivate(self.volume.id, epoch).await.map_err(store_failure)?;
        self.volume.gate.set(View { owner, epoch, phase: Phase::Elsewhere });
        Ok(HandoverReport {
            epoch,
            held: began.elapsed(),
            stale_bytes: self.position.stale_blocks * u64::from(BLOCK_SIZE),
            caught_up: self.caught_up,
        })
    }

    async fn send_manifest(&mut self) -> Result<(), Error> {
        let manifest = self.send_snapshots().await?;
        self.send(manifest).await
    }

    /// Sends the manifests that end at a snapshot which the destination does not know, and returns the one that goes on to
    /// the newest write.
    async fn send_snapshots(&mut self) -> Result<Manifest, Error> {
        loop {
            let (known, newest) = (self.position.known, self.position.newest_snapshot);
            let sealed = self.volume.shard.seal_manifest(self.volume.id, known, newest, None).await;
            let (manifest, _) = sealed.map_err(store_failure)?;
            if manifest.mark.is_none() {
                return Ok(manifest);
            }
            self.send(manifest).await?;
        }
    }

    async fn send(&mut self, manifest: Manifest) -> Result<(), Error> {
        let request = PeerRequest::Manifest {
            volume: self.volume.id,
            epoch: self.epoch,
            manifest,
            seal: false,
            durable: true,
            prune: Lsn::ZERO,
        };
        self.position = self.ask(request).await?;
        Ok(())
    }

    async fn ask(&self, request: PeerRequest) -> Result<ReplicaPosition, Error> {
        self.volume.peers.ask_position(self.to, Class::Control, request, Bytes::new()).await
    }
}

fn digest(manifest: &Manifest) -> Result<u64, Error> {
    let encoded = encode_head(manifest)
        .map_err(|error| Error::new(ErrorKind::Internal, "a manifest cannot be encoded").caused_by(error))?;
    Ok(u64::from(crc32fast::hash(&encoded)))
}
