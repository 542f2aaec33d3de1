//! Volumes that are not ready: one is rolled back, or is a clone whose pages are still to come. Whatever is asked of them waits,
//! and other volumes go on ([`crate::volume::rollback`] and [`crate::volume::clone`] say why).

use client_lib::VolumeId;

use super::core::Core;
use super::handle::{QUEUE_DEPTH, Request, StoreError};
use super::run::VolumeRun;

/// What waits for volumes of a shard.
#[derive(Debug)]
pub(super) struct Unready {
    /// Whether any volume may not be ready.
    is_any: bool,
    waiting: Vec<Request>,
}

impl Unready {
    /// For volumes that recovery found.
    pub(super) fn of<'a>(mut volumes: impl Iterator<Item = &'a VolumeRun>) -> Unready {
        Unready { is_any: volumes.any(VolumeRun::is_unready), waiting: Vec::new() }
    }

    /// A volume is not ready from now on.
    pub(super) fn note(&mut self) {
        self.is_any = true;
    }

    /// Whether any volume may not be ready.
    pub(super) fn may_be_any(&self) -> bool {
        self.is_any
    }

    /// Whether so much waits that nothing more may be taken from the queue.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= QUEUE_DEPTH
    }
}

impl Core {
    /// Keeps `request` for later if its volume is not ready; gives it back if it is.
    pub(super) fn hold_until_ready(&mut self, request: Request) -> Option<Request> {
        if self.unready.is_any
            && let Some(run) = request.touches().and_then(|volume| self.volumes.get_mut(&volume))
            && run.is_unready()
            && !run.goes_ahead_of_rollback(&request)
        {
            self.unready.waiting.push(request);
            return None;
        }
        Some(request)
    }

    /// Takes what makes volumes ready a bounded step further, then lets go on what waited.
    pub(super) fn unready_step(&mut self) {
        if !self.unready.is_any {
            return;
        }
        let unready = self.volumes.iter().filter(|(_, run)| run.is_unready());
        for volume in unready.map(|(volume, _)| *volume).collect::<Vec<_>>() {
            let outcome = self.fill_volume(volume).and_then(|()| self.roll_volume_back(volume));
            if let Some(run) = self.volumes.get(&volume) {
                self.touched.note(run);
            }
            if let Err(error) = outcome {
                self.fail(&format!("the block map cannot be read: {error}"));
                if let Some(job) = self.volumes.get_mut(&volume).and_then(|run| run.rollback.take()) {
                    job.fail(&error.into());
                }
            }
        }
        self.unready.is_any = self.volumes.values().any(VolumeRun::is_unready);
        for request in std::mem::take(&mut self.unready.waiting) {
            self.handle(request);
        }
    }
}

impl Core {
    /// Volumes that are not ready will not be: refuses what waits for them.
    pub(super) fn refuse_unready(&mut self, error: &StoreError) {
        for request in std::mem::take(&mut self.unready.waiting) {
            request.refuse(error.clone());
        }
        for run in self.volumes.values_mut() {
            if let Some(job) = run.rollback.take() {
                job.fail(error);
            }
        }
    }
}

impl VolumeRun {
    /// Whether what is asked of the volume must wait.
    pub(super) fn is_unready(&self) -> bool {
        self.rollback.is_some() || self.state.rollback.is_some() || self.state.filling.is_some()
    }

    /// Whether the next turn can do something about it.
    pub(super) fn has_unready_work(&self, may_change_pages: bool) -> bool {
        self.has_rollback_work(may_change_pages) || (may_change_pages && self.state.filling.is_some())
    }
}

impl Request {
    /// Answers with `error`. A receiver that is gone has abandoned its call.
    fn refuse(self, error: StoreError) {
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
    fn touches(&self) -> Option<VolumeId> {
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
