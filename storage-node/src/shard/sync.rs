//! Who waits for what: replies that go out when their entry is applied, and those that wait until it is durable.
//!
//! One sync runs at a time and serves everybody who waited when it began. What is taken from the state as a whole, a
//! manifest or a checkpoint, must be exactly what the sync made durable: it is taken when the sync begins, when
//! everything that was appended is applied, and given away when the sync is done. Nobody waits for it meanwhile.

use std::collections::BTreeSet;

use client_lib::trace::{Stage, Trace};
use client_lib::{Lsn, SnapshotId, VolumeId};

use super::control::{SealJob, Sealed};
use super::core::Core;
use super::handle::{MadeSnapshot, Role, StoreError, VolumeReport};
use super::lease::Held;
use super::run::Reply;
use crate::log::LogError;

/// What to do when something is done.
#[derive(Debug)]
pub(super) enum Done {
    /// Nobody waits.
    Nothing,
    /// Answer with this LSN.
    Lsn(Reply<Lsn>, Lsn),
    /// Answer with the volume's known position.
    Known(Reply<Lsn>),
    /// Answer with the volume's watermark, as far as this: beyond it, it may not be durable.
    Watermark(Reply<Lsn>, Lsn),
    /// Answer with up to where the volume is durable.
    Durable(Reply<Lsn>),
    /// Answer with the volume's report.
    Report(Reply<VolumeReport>),
    /// Answer with this number.
    Count(Reply<u64>, u64),
    /// Answer with what a snapshot has, if it was made.
    Snapshot(Reply<MadeSnapshot>, SnapshotId),
    /// Answer that it is done.
    Unit(Reply<()>),
    /// Make a manifest, and answer with it when what it tells of is durable.
    Seal(Box<SealJob>),
    /// Answer with this manifest.
    Sealed(Box<Sealed>),
    /// Take a checkpoint, and write it when what it holds is durable.
    Checkpoint,
    /// Write the checkpoint that was taken.
    CheckpointTaken,
}

impl Done {
    /// That of the operation that this is the answer to.
    pub(super) fn trace(&self) -> &Trace {
        match self {
            Done::Lsn(reply, _) | Done::Durable(reply) => &reply.trace,
            _ => Trace::NONE,
        }
    }

    /// Answers that the log has failed since the entry was applied: who asked for a write must not ask for it again.
    pub(super) fn not_durable(self, error: &LogError) {
        match self {
            Done::Lsn(reply, lsn) => drop(reply.send(Err(StoreError::NotDurable { lsn, reason: error.to_string() }))),
            done => done.fail(StoreError::from(error.clone())),
        }
    }

    /// Answers with `error`. A receiver that is gone has abandoned its call.
    pub(super) fn fail(self, error: StoreError) {
        match self {
            Done::Nothing | Done::Checkpoint | Done::CheckpointTaken => {}
            Done::Lsn(reply, _) | Done::Known(reply) | Done::Watermark(reply, _) | Done::Durable(reply) => {
                drop(reply.send(Err(error)));
            }
            Done::Report(reply) => drop(reply.send(Err(error))),
            Done::Snapshot(reply, _) => drop(reply.send(Err(error))),
            Done::Count(reply, _) => drop(reply.send(Err(error))),
            Done::Unit(reply) => drop(reply.send(Err(error))),
            Done::Seal(job) => drop(job.seal.reply.send(Err(error))),
            Done::Sealed(sealed) => drop(sealed.reply.send(Err(error))),
        }
    }
}

/// A sync under way.
#[derive(Debug)]
struct Running {
    ticket: u64,
    served: Vec<(VolumeId, Done)>,
    /// Those of which something becomes durable.
    volumes: BTreeSet<VolumeId>,
}

/// Everybody who waits for durability.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    next: Vec<(VolumeId, Done)>,
    running: Option<Running>,
}

impl Syncs {
    /// `done` waits until everything applied by now is durable.
    pub(super) fn wait(&mut self, volume: VolumeId, done: Done) {
        self.next.push((volume, done));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.next.is_empty() && self.running.is_none()
    }
}

impl Core {
    /// Serves who waits, or begins a sync for them. Called when every append that was reported done is applied.
    pub(super) fn pump_syncs(&mut self) {
        while self.syncs.running.is_none() && !self.syncs.next.is_empty() {
            let waiting = self.set_unready_aside();
            if waiting.is_empty() {
                return;
            }
            let volumes = self.touched.take_unsynced();
            for volume in &volumes {
                if let Some(run) = self.volumes.get_mut(volume) {
                    run.syncing = run.state.known;
                }
            }
            if let Some(reason) = self.log.poisoned() {
                // Perhaps all that was acked is durable, but nobody should build on a log that has failed.
                let error = LogError::Poisoned(reason.to_owned());
                self.touched.not_synced(volumes);
                self.fail_all(waiting, &error);
                continue;
            }
            let served = waiting.into_iter().map(|(volume, done)| (volume, self.take(done))).collect();
            let ticket = self.ticket();
            match self.log.sync(ticket) {
                Ok(true) => self.serve(served, &volumes),
                Ok(false) => self.syncs.running = Some(Running { ticket, served, volumes }),
                Err(error) => {
                    self.touched.not_synced(volumes);
                    self.fail_all(served, &error);
                }
            }
        }
    }

    /// Those that wait for the next sync, but for manifests of volumes that are put back or filled at this moment: half of that is not what they tell of.
    fn set_unready_aside(&mut self) -> Vec<(VolumeId, Done)> {
        let waiting = std::mem::take(&mut self.syncs.next);
        let is_between = |volume: &VolumeId| self.volumes.get(volume).is_some_and(|run| run.state.is_between());
        let (between, ready): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(volume, done)| matches!(done, Done::Seal(_)) && is_between(volume));
        for (_, done) in between {
            if let Done::Seal(job) = done {
                self.unready.set_aside(*job);
            }
        }
        ready
    }

    /// The sync `ticket` is done.
    pub(super) fn synced(&mut self, ticket: u64, result: Result<(), LogError>) {
        let Some(running) = self.syncs.running.take_if(|running| running.ticket == ticket) else { return };
        match result {
            Ok(()) => self.serve(running.served, &running.volumes),
            Err(error) => {
                self.touched.not_synced(running.volumes);
                self.fail_all(running.served, &error);
            }
        }
    }

    /// Takes from the state what `done` shall have of it.
    fn take(&mut self, done: Done) -> Done {
        match done {
            Done::Seal(job) => Done::Sealed(Box::new(self.seal(*job))),
            Done::Checkpoint if self.take_checkpoint() => Done::CheckpointTaken,
            Done::Checkpoint => Done::Nothing,
            done => done,
        }
    }

    fn serve(&mut self, served: Vec<(VolumeId, Done)>, volumes: &BTreeSet<VolumeId>) {
        for volume in volumes {
            if let Some(run) = self.volumes.get_mut(volume) {
                run.durable = run.durable.max(run.syncing);
            }
        }
        for (volume, done) in served {
            done.trace().spent(Stage::Disk);
            match done {
                Done::Sealed(sealed) => self.answer_sealed(*sealed),
                Done::CheckpointTaken => self.commit_checkpoint(),
                done => self.answer(volume, done),
            }
        }
    }

    fn fail_all(&mut self, served: Vec<(VolumeId, Done)>, error: &LogError) {
        for (_, done) in served {
            match &done {
                Done::Checkpoint | Done::CheckpointTaken => self.checkpoint_failed(StoreError::from(error.clone())),
                Done::Sealed(sealed) => self.release_sealed(sealed),
                _ => {}
            }
            done.not_durable(error);
        }
    }

    /// Answers from the applied state.
    pub(super) fn answer(&mut self, volume: VolumeId, done: Done) {
        let Some(run) = self.volumes.get(&volume) else {
            return match done {
                Done::Unit(reply) => drop(reply.send(Ok(()))),
                done => done.fail(StoreError::UnknownVolume(volume)),
            };
        };
        match done {
            Done::Nothing => {}
            Done::Lsn(reply, lsn) => self.answer_as_owner(volume, Held::Lsn(reply, lsn)),
            Done::Known(reply) => drop(reply.send(Ok(run.state.known))),
            Done::Watermark(reply, reached) => drop(reply.send(Ok(run.state.watermark().min(reached)))),
            // A FLUSH at a node that owns nothing says nothing of the volume.
            Done::Durable(reply) if run.role == Role::Replica => drop(reply.send(Ok(run.durable))),
            Done::Durable(reply) => {
                let held = Held::Lsn(reply, run.durable);
                self.answer_as_owner(volume, held);
            }
            Done::Report(reply) => {
                let fault = self.fault().map(str::to_owned);
                drop(reply.send(Ok(VolumeReport { fault, is_full: self.is_full, ..run.report(&self.map) })));
            }
            Done::Count(reply, count) => drop(reply.send(Ok(count))),
            Done::Snapshot(reply, snapshot) => {
                let made = run.state.snapshot(snapshot);
                let made = made.map(|made| MadeSnapshot { lsn: made.lsn, size: made.size });
                // The volume was handed over, or the snapshot deleted, before this one's turn.
                let refusal = || run.require_owner().err().unwrap_or(StoreError::UnknownSnapshot { volume, snapshot });
                drop(reply.send(made.ok_or_else(refusal)));
            }
            Done::Unit(reply) => drop(reply.send(Ok(()))),
            Done::Seal(_) | Done::Sealed(_) | Done::Checkpoint | Done::CheckpointTaken => {
                unreachable!("what is taken from the state waits for a sync")
            }
        }
    }
}
