//! An owner whose store has failed steps down: it ceases to act for the volumes there, and says so, so that a replica need not wait for the
//! lease of a node that lives (docs/ownership.md has the argument, docs/takeover.md is for operators).
//!
//! It does so by itself where it loses nothing by that: for a volume that is not served here at all, since its disk was given up or its
//! store cannot be opened, and for one whose store takes no writes any more and which cannot be given away ([`super::rescue`]), if the policy is that a
//! replica takes over by itself. Of other volumes in such a store reads go on, until somebody asks for a takeover: then the owner is asked to step down first.
//!
//! In this order: the volume is marked, so that no handover is under way; this process takes the ownership up no more; its shard answers
//! nothing more; the proposal. What is not known to be committed is proposed again, for as long as this process runs, and so is what a
//! start that was told of late, or a settled handover of another volume, has made void.

use std::sync::Arc;
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, VolumeId};
use consensus::{MetaState, STEP_DOWN_MAX, Volume};

use super::admin::{Busy, NodeAdmin};
use crate::ownership::gate::Phase;
use crate::peer::message::AdminForward;

/// How often it is looked whether a store has failed.
const LOOK: Duration = Duration::from_millis(500);

/// After so long it is tried again when it could not be said, for want of a leader or because a member runs an older program.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// How long a takeover waits for the owner to step down: less than a lease, which is waited out beside that.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// Why an owner cannot serve a volume as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// It is not served here at all.
    NotServed,
    /// Its store takes no writes; reads are served.
    TakesNoWrites,
}

/// Steps down for what is to be stepped down for without being asked, for as long as the node runs.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut states = admin.meta.subscribe();
    let mut told = String::new();
    loop {
        let state = states.borrow_and_update().clone();
        let due = admin.due_to_step_down(&state);
        if !due.is_empty()
            && let Err(error) = admin.step_down(&state, &due).await
        {
            // Once, and not with every attempt.
            if std::mem::replace(&mut told, error.to_string()) != told {
                tracing::warn!(%error, volumes = due.len(), "a store has failed, and it cannot be said that this node steps down; it is tried again");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl NodeAdmin {
    /// What this node owns and is to step down for: it has no use of it, or has ceased to act and that is not known to be so.
    fn due_to_step_down<'a>(&self, state: &'a MetaState) -> Vec<&'a Volume> {
        let (ceased, shards) = (self.reconciler.ceased(), self.reconciler.shards());
        if !ceased.is_any() && !shards.lacks_any() && shards.faults().next().is_none() {
            return Vec::new();
        }
        let is_due = |volume: &&Volume| match self.failure(volume) {
            _ if ceased.has(volume.id, volume.epoch) => true,
            // Nobody could take it over, and what is read here is read.
            _ if volume.replicas.is_empty() => false,
            Some(Failure::NotServed) => true,
            // Nothing is lost if it is given away; a takeover brings back what the replicas have.
            Some(Failure::TakesNoWrites) => volume.takeover_after_ms.is_some() && !self.may_be_rescued(volume),
            None => false,
        };
        let owned = state.volumes().filter(|volume| volume.owner == self.this.id && !state.has_stepped_down(volume.id));
        owned.filter(is_due).collect()
    }

    /// What is the matter with the store of a volume that this node owns.
    fn failure(&self, meta: &Volume) -> Option<Failure> {
        let shards = self.reconciler.shards();
        if shards.is_refused(meta.id) || shards.require_not_lost(meta.id, &meta.name, meta.epoch).is_err() {
            return Some(Failure::NotServed);
        }
        shards.holder(meta.id)?.fault()?;
        if self.is_served(meta) {
            return Some(Failure::TakesNoWrites);
        }
        // Before that it may be about to be taken up.
        self.volumes.trouble(meta.id).map(|_| Failure::NotServed)
    }

    /// Whether this node has taken the ownership up.
    fn is_served(&self, meta: &Volume) -> bool {
        let view = self.volumes.get(meta.id).map(|served| served.gate.view());
        view.is_some_and(|view| view.epoch == meta.epoch && matches!(view.phase, Phase::Owner | Phase::Transferring(_)))
    }

    /// Ceases to act for `volumes`, which this node owns, and says so; those that are being changed in another way are left out.
    ///
    /// # Errors
    /// When it could not be said. This node may have ceased to act all the same; then [`keep`] says it again.
    ///
    /// # Cancel safety
    /// As an error.
    async fn step_down(&self, state: &MetaState, volumes: &[&Volume]) -> Result<(), Error> {
        // Before anything is given up: a voter that cannot read it would stop.
        self.require_stepping_down_known(state).await?;
        for some in volumes.chunks(STEP_DOWN_MAX) {
            let (mut ceased, mut marks) = (Vec::with_capacity(some.len()), Vec::with_capacity(some.len()));
            for volume in some {
                match Busy::stepping_down(self.busy.clone(), volume) {
                    Ok(mark) => marks.push(mark),
                    Err(error) => {
                        tracing::debug!(volume = %volume.name, epoch = %volume.epoch, %error, "not stepped down for it yet");
                        continue;
                    }
                }
                if self.cease(volume).await {
                    ceased.push((volume.id, volume.epoch));
                }
            }
            if !ceased.is_empty() {
                self.ownership.step_down(ceased).await?;
            }
            drop(marks);
        }
        Ok(())
    }

    /// From when this returns true nothing is answered here any more as the owner of the volume in its epoch.
    async fn cease(&self, meta: &Volume) -> bool {
        let is_new = !self.reconciler.ceased().has(meta.id, meta.epoch);
        self.reconciler.ceased().note(meta.id, meta.epoch).await;
        let Some(shard) = self.reconciler.shards().holder(meta.id) else { return true };
        let told = shard.cease(meta.id, meta.epoch).await;
        self.reconciler.send_no_more(meta.id);
        if is_new {
            tracing::warn!(volume = %meta.name, epoch = %meta.epoch, fault = shard.fault(), "this node steps down as the owner, since the store of the volume has failed: it may be taken over at once");
        }
        match told {
            Ok(()) => true,
            // It is not open, so it was never taken up; and it will not be from now on.
            Err(_) if !self.is_served(meta) => true,
            Err(error) => {
                tracing::error!(volume = %meta.name, epoch = %meta.epoch, %error, "the store does not say that it answers nothing more");
                false
            }
        }
    }

    /// Steps down as the owner of `epoch` because a takeover is asked for.
    ///
    /// # Errors
    /// `Busy` when its store works, or it is being changed in another way; else when it could not be said.
    pub(super) async fn step_down_here(&self, id: VolumeId, epoch: Epoch) -> Result<(), Error> {
        let state = self.meta.state();
        let owned = state.volume(id).filter(|volume| volume.owner == self.this.id && volume.epoch == epoch);
        let meta = owned.ok_or_else(|| {
            Error::new(ErrorKind::NotOwner, format!("volume {id} is not owned here in epoch {epoch} (any more or yet)"))
        })?;
        if self.failure(meta).is_none() && !self.reconciler.ceased().has(id, epoch) {
            let what =
                format!("the store of volume {} at node {} works: it goes on as the owner", meta.name, self.this.name);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        self.step_down(&state, &[meta]).await?;
        match self.meta.state().has_stepped_down(id) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Busy, format!("volume {} is being changed at its owner", meta.name))),
        }
    }

    /// Asks the owner of `volume` to step down, so that its lease need not be waited for. One whose store works refuses, and one that
    /// is lost does not answer: then it is as without this.
    pub(super) async fn have_owner_step_down(&self, volume: &Volume) {
        let (id, epoch) = (volume.id, volume.epoch);
        let asked = async {
            match volume.owner == self.this.id {
                true => self.step_down_here(id, epoch).await,
                false => self.ask(volume.owner, AdminForward::StepDown { volume: id, epoch }).await,
            }
        };
        match tokio::time::timeout(ASK_PATIENCE, asked).await {
            Ok(Ok(())) => {
                tracing::info!(volume = %volume.name, %epoch, owner = %volume.owner, "the owner has stepped down")
            }
            Ok(Err(error)) => {
                tracing::debug!(volume = %volume.name, %epoch, owner = %volume.owner, %error, "the owner does not step down");
            }
            Err(_) => {
                tracing::debug!(volume = %volume.name, %epoch, owner = %volume.owner, "the owner does not answer")
            }
        }
    }
}
