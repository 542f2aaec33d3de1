//! Going back to a snapshot.
//!
//! Everything that is asked of the volume waits from the request on ([`super::unready`]), but for what becomes of its lease. What is under way ends, the entry goes to the log, the pages are put back a few per turn, and a checkpoint says that they are, so that
//! recovery has nothing of it to do at once. Other volumes go on. Whoever has a volume open finds another content in it: that
//! nobody has is for whoever asks to see to.

use client_lib::{Lsn, SnapshotId, VolumeId};
use tokio::sync::oneshot::error::TryRecvError;

use super::core::Core;
use super::handle::{Answer, Request, Role, StoreError};
use super::run::{Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::store::MapError;

/// Pages put back per turn and volume.
const PAGES_PER_STEP: usize = 8;

/// A rollback that was asked for.
#[derive(Debug)]
pub(super) struct RollbackJob {
    snapshot: SnapshotId,
    stage: Stage,
    reply: Reply<Lsn>,
}

#[derive(Debug)]
enum Stage {
    /// What is under way ends.
    Draining,
    /// The entry is on its way to the log; what is known then says whether it came to something.
    Logging { lsn: Lsn, applied: Answer<Lsn> },
    /// Pages are put back.
    PuttingBack,
    /// The checkpoint is on its way.
    Settling(Answer<()>),
}

impl RollbackJob {
    pub(super) fn fail(self, error: &StoreError) {
        drop(self.reply.send(Err(error.clone())));
    }
}

impl Core {
    pub(super) fn roll_back(&mut self, volume: VolumeId, snapshot: SnapshotId, reply: Reply<Lsn>) {
        let outcome =
            self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume)).and_then(|run| may(run, snapshot));
        match (outcome, self.volumes.get_mut(&volume)) {
            (Ok(()), Some(run)) => {
                run.rollback = Some(RollbackJob { snapshot, stage: Stage::Draining, reply });
                self.unready.note();
            }
            (Err(error), _) => drop(reply.send(Err(error))),
            (Ok(()), None) => drop(reply.send(Err(StoreError::UnknownVolume(volume)))),
        }
    }

    /// Takes a rollback under way a bounded step further.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn roll_volume_back(&mut self, volume: VolumeId) -> Result<(), MapError> {
        let Some(run) = self.volumes.get_mut(&volume) else { return Ok(()) };
        if run.state.rollback.is_some() && !self.map.cache.wants_checkpoint() {
            run.state.rollback_step(PAGES_PER_STEP, &mut self.map)?;
        }
        // Without it, it is one that recovery found under way.
        let Some(RollbackJob { snapshot, stage, reply }) = run.rollback.take() else { return Ok(()) };
        match self.next_stage(volume, snapshot, stage) {
            Ok(Some(stage)) => {
                if let Some(run) = self.volumes.get_mut(&volume) {
                    run.rollback = Some(RollbackJob { snapshot, stage, reply });
                }
            }
            Ok(None) => self.syncs.wait(volume, Done::Known(reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
        Ok(())
    }

    /// Whether a volume's snapshot is on its way to the log.
    fn has_snapshots_under_way(&self, volume: VolumeId) -> bool {
        self.is_under_way(volume, |entry| matches!(entry, Entry::Snapshot { .. }))
    }

    /// Whether the next turn can do something about a volume that is not ready.
    pub(super) fn has_unready_work(&self, run: &VolumeRun, may_change_pages: bool) -> bool {
        let waits = run.is_draining() && self.has_snapshots_under_way(run.state.id);
        !waits && run.has_unready_work(may_change_pages)
    }

    /// What comes after `stage`, or that stage again; `None` when all is done.
    fn next_stage(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        stage: Stage,
    ) -> Result<Option<Stage>, StoreError> {
        let snapshots = self.has_snapshots_under_way(volume);
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        Ok(Some(match stage {
            // A snapshot that is applied before the rollback can make it impossible here and, since recovery has everything up to it in the
            // base, possible there.
            Stage::Draining if !run.is_quiet() || snapshots => Stage::Draining,
            Stage::Draining => {
                may(run, snapshot)?;
                let lsn = Lsn::new(run.epoch, run.head.sequence + 1);
                run.assigned(lsn, true);
                let (reply, applied) = Reply::channel();
                let entry = Entry::RolledBack { volume, lsn, snapshot };
                self.append(entry, Vec::new(), false, None, Done::Known(reply)).map_err(|(error, _)| error)?;
                Stage::Logging { lsn, applied }
            }
            Stage::Logging { lsn, mut applied } => match applied.try_recv() {
                // Deleted just before.
                Ok(known) if known.as_ref().is_ok_and(|known| *known < lsn) => {
                    return Err(StoreError::UnknownSnapshot { volume, snapshot });
                }
                Ok(known) => known.map(|_| Stage::PuttingBack)?,
                Err(TryRecvError::Empty) => Stage::Logging { lsn, applied },
                Err(TryRecvError::Closed) => return Err(StoreError::Stopped),
            },
            Stage::PuttingBack if run.state.rollback.is_some() => Stage::PuttingBack,
            Stage::PuttingBack => {
                let (reply, written) = Reply::channel();
                self.checkpoints.request(Some(reply));
                Stage::Settling(written)
            }
            Stage::Settling(mut written) => match written.try_recv() {
                Err(TryRecvError::Empty) => Stage::Settling(written),
                // Without the checkpoint recovery has more to do, and that is all.
                _ => return Ok(None),
            },
        }))
    }
}

impl VolumeRun {
    /// Whether `request` goes ahead of a rollback that waits for what is under way: that may itself wait for the lease, which only these can
    /// give or take away. Whoever loses the volume does not go back.
    pub(super) fn goes_ahead_of_rollback(&mut self, request: &Request) -> bool {
        if !self.is_draining() || self.state.rollback.is_some() || self.state.filling.is_some() {
            return false;
        }
        match request {
            Request::Deactivate { epoch, .. } if *epoch >= self.epoch => {
                if let Some(job) = self.rollback.take() {
                    job.fail(&StoreError::NotOwner { volume: self.state.id, epoch: *epoch });
                }
                true
            }
            Request::Arm { .. } | Request::Deactivate { .. } => true,
            _ => false,
        }
    }

    fn is_draining(&self) -> bool {
        matches!(&self.rollback, Some(RollbackJob { stage: Stage::Draining, .. }))
    }

    /// A rollback that waits for what is under way, and has changed nothing yet.
    pub(super) fn take_draining_rollback(&mut self) -> Option<RollbackJob> {
        self.rollback.take_if(|job| matches!(job.stage, Stage::Draining))
    }

    /// Whether the next turn can do something about a rollback.
    pub(super) fn has_rollback_work(&self, may_change_pages: bool) -> bool {
        match self.rollback.as_ref().map(|job| &job.stage) {
            Some(Stage::Draining) => self.is_quiet(),
            Some(Stage::PuttingBack) if self.state.rollback.is_none() => true,
            Some(Stage::Logging { .. } | Stage::Settling(_)) => false,
            Some(Stage::PuttingBack) | None => may_change_pages && self.state.rollback.is_some(),
        }
    }
}

/// Whether the volume can be rolled back to `snapshot`.
fn may(run: &VolumeRun, snapshot: SnapshotId) -> Result<(), StoreError> {
    run.require_owner()?;
    let volume = run.state.id;
    if run.frozen {
        return Err(StoreError::Frozen(volume));
    }
    if run.shrink.is_some() {
        return Err(StoreError::Resizing(volume));
    }
    let found = run.state.snapshot(snapshot).ok_or(StoreError::UnknownSnapshot { volume, snapshot })?;
    if found.size > run.state.size {
        return Err(StoreError::SmallerThanSnapshot { volume, size: run.state.size, snapshot_size: found.size });
    }
    if run.state.role != Role::Owner || !run.state.may_roll_back(snapshot) {
        return Err(StoreError::StillFetching { volume, blocks: run.state.layers.wanted() });
    }
    Ok(())
}
