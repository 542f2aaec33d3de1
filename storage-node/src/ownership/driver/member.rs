//! A volume in a handover: what is asked of its shard and said to the destination.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::wire::frame::encode_head;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Error, ErrorKind, Lsn, NodeId, VolumeId};
use consensus::{Ended, RESCUE_ENCLOSED_BYTES_MAX};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ownership::enclosure::Enclosure;
use crate::ownership::gate::{Phase, View};
use crate::ownership::handover::Released;
use crate::peer::message::{ENCODING_HELD, PeerReply, PeerRequest, ReplicaPosition};
use crate::propagation::manifest::{Manifest, RunContent};
use crate::propagation::telling::{Told, tell_part};
use crate::propagation::watermarks::Watermarks;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::{FreezeWhen, UnsyncedEnd};
use crate::volume::Moment;

/// A destination that lacks no more than so many blocks has the rest while writers are held: a mebibyte.
const LEFT_BLOCKS_MAX: u64 = 256;

/// How much of what was written last is read back from a store that takes no writes, before it is given away: a mebibyte.
const PROBED_BLOCKS_MAX: usize = 256;

/// How often a destination is told of the rest of its initial sync, which the sender goes on with meanwhile.
const ASKED_MAX: u32 = 3;
/// How long it is given to log the part that it has just been told of.
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// How often it is looked how far the destination is.
const CATCH_UP_LOOK: Duration = Duration::from_millis(10);

/// How long the destination may be out of reach before it is not waited for any more.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(30);

/// A volume that is handed over.
pub struct Member {
    pub(super) volume: Arc<ServedVolume>,
    to: NodeId,
    pub(super) epoch: Epoch,
    /// Where the destination is, if it must hold everything first.
    pub(super) synced: Option<Arc<Watermarks>>,
    position: ReplicaPosition,
    digest: u64,
    /// What the destination must know, and is to be told in the proposal.
    enclosed: Option<Vec<u8>>,
    /// Whether its store takes no writes any more.
    pub(super) rescues: bool,
    /// Up to where it is durable here, then.
    durable: Option<Lsn>,
}

impl Member {
    pub(super) fn new(volume: Arc<ServedVolume>, to: NodeId, epoch: Epoch) -> Member {
        let position = ReplicaPosition::default();
        let (synced, enclosed, rescues, durable) = (None, None, false, None);
        Member { volume, to, epoch, synced, position, digest: 0, enclosed, rescues, durable }
    }

    /// Asks where the destination is. One whose initial sync is under way is told of all the rest: it fetches that when it is the owner.
    pub(super) async fn ask_position(&mut self) -> Result<(), Error> {
        let (volume, epoch) = (self.volume.id, self.epoch);
        if !self.rescues && self.volume.flushes.owed().is_some() {
            // The next owner would take for durable what is here alone.
            let what = format!(
                "volume {} was given away by a store that failed, and not all of it is durable here yet: try again in a moment",
                self.volume.name
            );
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        let mut tries = 0;
        self.position = loop {
            let request = PeerRequest::ReplicaStatus { volume, epoch };
            let answer = self.volume.peers.ask(self.to, Class::Control, request, Bytes::new()).await;
            // That an outcome is unknown would be taken for that of the handover, which has not begun.
            let answer = answer.map_err(|error| {
                let error = Error::from(error);
                Error::new(error.kind(), format!("the volume stays where it is: {error}"))
            })?;
            let PeerReply::InitialSync { base, next, .. } = answer.head else {
                break self.volume.peers.position_of(self.to, answer.head)?;
            };
            tries += 1;
            match self.tell_rest(base, next).await {
                Ok(position) => break position,
                // The sender has told it of the last part meanwhile.
                Err(error) if error.kind() == ErrorKind::Unavailable && tries < ASKED_MAX => {}
                Err(error) => return Err(error),
            }
        };
        Ok(())
    }

    async fn tell_rest(&self, base: Lsn, next: BlockIndex) -> Result<ReplicaPosition, Error> {
        let (shard, volume, epoch) = (&self.volume.shard, self.volume.id, self.epoch);
        let (manifest, delta) = shard.seal_part(volume, base, next, usize::MAX).await.map_err(store_failure)?;
        if let Some(delta) = delta {
            shard.release(volume, delta.pin).await.map_err(store_failure)?;
        }
        tell_part(&self.volume.peers, self.to, (volume, epoch), manifest, None).await
    }

    /// Waits until the destination holds everything up to `final_lsn`, or, without that, lacks little; if that is asked for.
    pub(super) async fn catch_up(&self, final_lsn: Option<Lsn>, cancel: &CancellationToken) -> Result<(), Error> {
        let Some(watermarks) = &self.synced else { return Ok(()) };
        let mut reached = Instant::now();
        loop {
            let progress = watermarks.snapshot().remove(&self.to).unwrap_or_default();
            if let Some(tail) = progress.tail {
                return Err(tail.refusal(&self.volume.peers.name(self.to)));
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
                let to = self.volume.peers.name(self.to);
                let what = format!("node {to} cannot be brought up to date: {why}; the volume stays where it is");
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            if self.volume.gate.view().epoch != self.epoch {
                let what = format!("volume {} has another owner by now", self.volume.name);
                return Err(Error::new(ErrorKind::Busy, what));
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    return Err(Error::new(ErrorKind::Closed, "the handover was cancelled"));
                }
                () = tokio::time::sleep(CATCH_UP_LOOK) => {}
            }
        }
    }

    pub(super) async fn freeze(&self, when: FreezeWhen) -> Result<Lsn, Error> {
        self.volume.shard.freeze(self.volume.id, when).await.map_err(store_failure)
    }

    /// Makes sure that the destination knows the volume up to `final_lsn`, its last write, when it owns it: by what is enclosed in
    /// the proposal, or, where that has more than `room` bytes, by telling it now.
    pub(super) async fn prepare(
        &mut self,
        final_lsn: Lsn,
        room: usize,
        cancel: &CancellationToken,
    ) -> Result<Lsn, Error> {
        if self.rescues {
            return self.prepare_unsynced(final_lsn).await;
        }
        self.catch_up(Some(final_lsn), cancel).await?;
        let manifest = self.send_snapshots().await?;
        if manifest.to != final_lsn {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the last manifest ends at {}, the epoch at {final_lsn}", manifest.to),
            ));
        }
        self.digest = digest(&manifest)?;
        // With the claims of sessions. That which a takeover makes every owner has from the metadata.
        let ledger = self.volume.shard.ledger(self.volume.id).await.map_err(store_failure)?;
        let enclosure = Enclosure { manifest, ledger };
        let encoded = enclosure.encode()?;
        if encoded.len() <= room {
            let news: u64 = enclosure.manifest.runs.iter().map(|run| u64::from(run.blocks())).sum();
            self.position.stale_blocks = if self.synced.is_some() { 0 } else { self.position.stale_blocks + news };
            self.enclosed = Some(encoded);
            return Ok(final_lsn);
        }
        let Enclosure { manifest, ledger } = enclosure;
        self.position =
            self.ask(PeerRequest::Prepare { volume: self.volume.id, epoch: self.epoch, manifest, ledger }).await?;
        if self.position.known != final_lsn {
            let to = self.volume.peers.name(self.to);
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("node {to} knows the volume up to {}, not {final_lsn}", self.position.known),
            ));
        }
        Ok(self.position.known)
    }

    /// The same where the last that was acked is not durable here: it must be told in the proposal, all of it, and be there to be fetched.
    async fn prepare_unsynced(&mut self, final_lsn: Lsn) -> Result<Lsn, Error> {
        let impossible = |what: String| Err(Error::new(ErrorKind::Unavailable, what));
        let (shard, id) = (self.volume.shard.clone(), self.volume.id);
        let UnsyncedEnd { manifest, durable } = loop {
            let (known, newest) = (self.position.known, self.position.newest_snapshot);
            let end = shard.seal_unsynced(id, known, newest).await.map_err(store_failure)?;
            if end.manifest.mark.is_none() {
                break end;
            }
            // It takes no position of its own: at the end of what is durable it may not be.
            if end.manifest.to >= end.durable {
                return impossible("its last snapshot was being made, and is not durable".to_owned());
            }
            self.send(end.manifest).await?;
        };
        if manifest.to != final_lsn {
            let what = format!("the last manifest ends at {}, the epoch at {final_lsn}", manifest.to);
            return Err(Error::new(ErrorKind::Internal, what));
        }
        #[cfg(test)]
        let manifest = untold(manifest);
        self.require_readable(&manifest).await?;
        self.digest = digest(&manifest)?;
        let ledger = shard.ledger(id).await.map_err(store_failure)?;
        let news: u64 = manifest.runs.iter().map(|run| u64::from(run.blocks())).sum();
        let encoded = Enclosure { manifest, ledger }.encode()?;
        if encoded.len() > RESCUE_ENCLOSED_BYTES_MAX {
            let to = self.volume.peers.name(self.to);
            return impossible(format!("node {to} was not told of too much that was written"));
        }
        self.position.stale_blocks += news;
        // What the owner before could not make durable, and is not here yet, is no more durable now.
        let durable = self.volume.flushes.owed().map_or(durable, |owed| owed.min(durable));
        (self.enclosed, self.durable) = (Some(encoded), Some(durable));
        Ok(final_lsn)
    }

    /// A store that does not even read has nothing to give away: a takeover brings back an older state of the volume that is whole.
    async fn require_readable(&self, manifest: &Manifest) -> Result<(), Error> {
        let written_here = manifest.runs.iter().filter(|run| run.lsn.epoch == self.epoch);
        let blocks = written_here.filter(|run| matches!(run.content, RunContent::Data(_))).flat_map(|run| {
            let start = run.start.0;
            (start..start + run.blocks()).map(|block| (block, run.lsn))
        });
        let wanted: Vec<(u32, Lsn)> = blocks.take(PROBED_BLOCKS_MAX).collect();
        let count = wanted.len();
        let read = self.volume.shard.read_held(self.volume.id, Moment::Now, wanted).await.map_err(store_failure)?;
        match read.len() == count {
            true => Ok(()),
            false => {
                let what = "what was written last cannot be read back from the store";
                Err(Error::new(ErrorKind::Unavailable, what))
            }
        }
    }

    /// Of a rescue, up to where the volume is durable here.
    pub(super) fn rescued(&self) -> Option<Lsn> {
        self.durable
    }

    /// What is to be enclosed in the proposal.
    pub(super) fn take_enclosed(&mut self) -> Option<(VolumeId, Vec<u8>)> {
        Some((self.volume.id, self.enclosed.take()?))
    }

    /// The end of its epoch, as it is proposed.
    pub(super) fn ended(&self, final_lsn: Lsn) -> Ended {
        Ended { volume: self.volume.id, epoch: self.epoch, final_lsn, manifest_digest: self.digest }
    }

    /// Goes on as owner, or becomes a replica.
    pub(super) async fn release(&self, released: Released) -> Result<(), Error> {
        let (shard, id) = (&self.volume.shard, self.volume.id);
        match released {
            Released::Here => {
                self.volume.thaw().await?;
                self.volume.gate.set_phase(self.epoch, Phase::Owner);
            }
            Released::To { owner, epoch } => {
                // The shard first: once the gate is open, what was held must not be admitted here.
                let followed = shard.deactivate(id, epoch).await.map_err(store_failure);
                match self.rescues && shard.fault().is_some() {
                    // It can note nothing; it answers as no owner for as long as this process runs, and the next one is told by the metadata.
                    true => self.volume.owe_flush(),
                    false => drop(followed?),
                }
                self.volume.gate.set(View { owner, epoch, phase: Phase::Elsewhere });
                self.send_hot_set(epoch);
            }
            Released::Found { owner, epoch } => {
                // Whoever follows the metadata compares what is here with what became of the volume, and opens the gate.
                self.volume.gate.settled(epoch).await?;
                if owner == self.to {
                    self.send_hot_set(epoch);
                }
            }
            // What was held is closed with it.
            Released::Gone => {}
        }
        Ok(())
    }

    /// Tells the new owner what it should fetch first. Nobody waits for that.
    fn send_hot_set(&self, epoch: Epoch) {
        let (peers, volume, to) = (self.volume.peers.clone(), self.volume.id, self.to);
        let extents = self.volume.sending.hottest();
        if extents.is_empty() || peers.encodings(to) & ENCODING_HELD == 0 {
            return;
        }
        tokio::spawn(async move {
            let request = PeerRequest::HotSet { volume, epoch, extents };
            // Behind what was held meanwhile.
            if let Err(error) = peers.ask(to, Class::Ahead, request, Bytes::new()).await {
                tracing::debug!(%volume, %to, %error, "the new owner does not know what was hot");
            }
        });
    }

    /// Bytes that the destination knew of and did not hold when it was prepared.
    pub(super) fn stale_bytes(&self) -> u64 {
        self.position.stale_blocks * u64::from(BLOCK_SIZE)
    }

    /// Whether the destination had nothing of the volume when it was asked.
    pub(super) fn is_new(&self) -> bool {
        self.position.known == Lsn::ZERO
    }

    /// Tells the destination of everything up to now.
    pub(super) async fn send_manifest(&mut self) -> Result<(), Error> {
        for _ in 1..ASKED_MAX {
            let is_new = self.is_new();
            match self.tell_news().await {
                // Its initial sync has begun since it was asked, and it is told in parts from then on. That may not show yet.
                Err(error) if is_new && error.kind() == ErrorKind::Unavailable => {
                    tokio::time::sleep(ASK_PAUSE).await;
                    self.ask_position().await?;
                }
                told => return told,
            }
        }
        self.tell_news().await
    }

    async fn tell_news(&mut self) -> Result<(), Error> {
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
        let (volume, epoch) = (self.volume.id, self.epoch);
        let durable = manifest.to.max(self.position.known);
        let told = Told { volume, epoch, manifest, seal: false, durable: true, prune: Lsn::ZERO };
        let position = told.tell(&self.volume.peers, self.to).await?;
        // It may have been told more beside this, which is not durable there.
        self.position = ReplicaPosition { known: position.known.min(durable), ..position };
        Ok(())
    }

    async fn ask(&self, request: PeerRequest) -> Result<ReplicaPosition, Error> {
        self.volume.peers.ask_position(self.to, Class::Control, request, Bytes::new()).await
    }
}

/// Without its last run, where nobody keeps to the rule.
#[cfg(test)]
fn untold(mut manifest: Manifest) -> Manifest {
    use crate::simulation::rules::{Rule, holds};
    if !holds(Rule::RescuesTellAll) {
        manifest.runs.pop();
    }
    manifest
}

fn digest(manifest: &Manifest) -> Result<u64, Error> {
    let encoded = encode_head(manifest)
        .map_err(|error| Error::new(ErrorKind::Internal, "a manifest cannot be encoded").caused_by(error))?;
    Ok(u64::from(crc32fast::hash(&encoded)))
}
