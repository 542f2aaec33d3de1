//! Volumes that are not ready: one is rolled back, or is a clone whose pages are still to come. Whatever is asked of them waits,
//! and other volumes go on ([`crate::volume::rollback`] and [`crate::volume::clone`] say why).

use client_lib::VolumeId;

use super::core::Core;
use super::handle::{QUEUE_DEPTH, Request};
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
        let is_held = self.unready.is_any
            && request.touches().and_then(|volume| self.volumes.get(&volume)).is_some_and(VolumeRun::is_unready);
        if is_held {
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
            if let Err(error) = outcome {
                tracing::error!(%volume, %error, "the map cannot be read: nothing is written until the node is restarted");
                self.failed = Some(error.to_string());
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
    /// The volume that must be ready for this.
    fn touches(&self) -> Option<VolumeId> {
        match self {
            Request::Open { volume, .. }
            | Request::Resize { volume, .. }
            | Request::CreateSnapshot { volume, .. }
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
            | Request::Activate { volume, .. }
            | Request::Arm { volume, .. }
            | Request::Deactivate { volume, .. }
            | Request::Freeze { volume, .. }
            | Request::Thaw { volume, .. }
            | Request::SealManifest { volume, .. }
            | Request::PinSnapshot { volume, .. }
            | Request::ReadSealed { volume, .. }
            | Request::Release { volume, .. }
            | Request::ChangedBlocks { volume, .. }
            | Request::Prune { volume, .. }
            | Request::ApplyManifest { volume, .. }
            | Request::Missing { volume, .. }
            | Request::Receive { volume, .. }
            | Request::ApplySealed { volume, .. }
            | Request::Rewind { volume, .. }
            | Request::Versions { volume, .. }
            | Request::ReadVersions { volume, .. } => Some(*volume),
            Request::List { .. }
            | Request::Delete { .. }
            | Request::Snapshots { .. }
            | Request::Report { .. }
            | Request::Ledger { .. }
            | Request::Damaged { .. }
            | Request::Traffic { .. }
            | Request::Scrub { .. }
            | Request::Space { .. }
            | Request::Checkpoint { .. }
            | Request::Stop { .. } => None,
        }
    }
}
