//! Volumes that are not ready: one is rolled back, or is a clone whose pages are still to come. Whatever is asked of them waits,
//! and other volumes go on ([`crate::volume::rollback`] and [`crate::volume::clone`] say why).

use super::control::SealJob;
use super::core::Core;
use super::handle::{QUEUE_DEPTH, Request, StoreError};
use super::run::VolumeRun;
use super::sync::Done;

/// What waits for volumes of a shard.
#[derive(Debug)]
pub(super) struct Unready {
    /// Whether any volume may not be ready.
    is_any: bool,
    waiting: Vec<Request>,
    /// Manifests that were asked for before, and are sealed when the volume is ready.
    seals: Vec<SealJob>,
}

impl Unready {
    /// For volumes that recovery found.
    pub(super) fn of<'a>(mut volumes: impl Iterator<Item = &'a VolumeRun>) -> Unready {
        Unready { is_any: volumes.any(VolumeRun::is_unready), waiting: Vec::new(), seals: Vec::new() }
    }

    /// A volume is not ready from now on.
    pub(super) fn note(&mut self) {
        self.is_any = true;
    }

    /// This manifest is sealed later.
    pub(super) fn set_aside(&mut self, job: SealJob) {
        self.is_any = true;
        self.seals.push(job);
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
            match self.unready.is_full() && self.checkpoints.is_failing() {
                // What makes the volume ready waits for room, and what makes room must not wait behind this.
                true => request.refuse(StoreError::OutOfSpace),
                false => self.unready.waiting.push(request),
            }
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
        // Those of volumes that are not ready yet are set aside again.
        for job in std::mem::take(&mut self.unready.seals) {
            self.seal_manifest(job);
        }
    }
}

impl Core {
    /// Volumes that are not ready will not be: refuses what waits for them.
    pub(super) fn refuse_unready(&mut self, error: &StoreError) {
        for request in std::mem::take(&mut self.unready.waiting) {
            request.refuse(error.clone());
        }
        for job in std::mem::take(&mut self.unready.seals) {
            Done::Seal(Box::new(job)).fail(error.clone());
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
