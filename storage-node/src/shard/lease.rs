//! What is answered as an owner is answered under the node's lease, or held back until it is there again.
//!
//! The lease is looked at when the answer is given, not when the request came: a process that was paused with a write in
//! its hands finds its lease out. While it is out an answer is held, not failed, since the client would write again what may
//! be there already. If the lease comes back under the same number nobody took the volume over meanwhile, and the answer
//! holds; if this node has lost the volume, it is refused.
//!
//! Whoever steps down, because its store has failed, is to the shard as one whose lease never comes back in that epoch.

use std::time::Duration;

use client_lib::{Epoch, Lsn, ReadPart, VolumeId};

use super::core::Core;
use super::handle::{Role, StoreError};
use super::run::{Reply, VolumeRun};

/// How often a shard that holds answers looks for the lease.
pub(super) const LEASE_PAUSE: Duration = Duration::from_millis(10);

/// An answer of an owner.
#[derive(Debug)]
pub(super) enum Held {
    /// A write is done, or everything before it is durable.
    Lsn(Reply<Lsn>, Lsn),
    /// What was read.
    Chunks(Reply<Vec<ReadPart>>, Vec<ReadPart>),
}

impl Held {
    fn give(self) {
        match self {
            Held::Lsn(reply, lsn) => drop(reply.send(Ok(lsn))),
            Held::Chunks(reply, chunks) => drop(reply.send(Ok(chunks))),
        }
    }

    pub(super) fn fail(self, error: StoreError) {
        match self {
            Held::Lsn(reply, _) => drop(reply.send(Err(error))),
            Held::Chunks(reply, _) => drop(reply.send(Err(error))),
        }
    }
}

impl Core {
    /// Whether the lease allows answers for the ownership of `run`, at this moment.
    fn allows(&self, run: &VolumeRun) -> bool {
        !run.has_ceased() && run.acts_under.is_some_and(|lapses| self.options.lease.allows(lapses))
    }

    /// Gives the answer, holds it back while the lease is out, or refuses it when the volume is owned here no more.
    pub(super) fn answer_as_owner(&mut self, volume: VolumeId, answer: Held) {
        let Some(run) = self.volumes.get(&volume) else { return answer.fail(StoreError::UnknownVolume(volume)) };
        match run.role {
            Role::Owner if self.allows(run) => answer.give(),
            Role::Owner => {
                if let Some(run) = self.volumes.get_mut(&volume) {
                    run.held.push(answer);
                    self.is_holding_answers = true;
                }
            }
            Role::Replica => answer.fail(StoreError::NotOwner { volume, epoch: run.epoch }),
        }
    }

    /// Refuses, as during a handover, what is answered on the spot and may not be now.
    pub(super) fn require_lease(&self, run: &VolumeRun) -> Result<(), StoreError> {
        if self.allows(run) { Ok(()) } else { Err(StoreError::Frozen(run.state.id)) }
    }

    pub(super) fn arm(&mut self, volume: VolumeId, epoch: Epoch, acts_under: Option<u64>) -> Result<(), StoreError> {
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        if run.epoch == epoch {
            run.acts_under = acts_under;
        }
        Ok(())
    }

    /// This node acts for the volume no more in `epoch`, whatever arms it: what is under way is held from now on.
    pub(super) fn cease(&mut self, volume: VolumeId, epoch: Epoch) -> Result<(), StoreError> {
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.ceased = run.ceased.max(epoch);
        if run.has_ceased() {
            // Who freezes, or rolls back, waits for what is held, which may be for ever.
            for reply in std::mem::take(&mut run.freezers) {
                drop(reply.send(Err(StoreError::SteppedDown(volume))));
            }
            if let Some(job) = run.take_draining_rollback() {
                job.fail(&StoreError::SteppedDown(volume));
            }
        }
        Ok(())
    }

    /// Gives the held answers that the lease allows again. A shard that stops refuses them.
    pub(super) fn lease_step(&mut self) {
        let has_held = |run: &VolumeRun| !run.held.is_empty();
        let holding: Vec<VolumeId> =
            self.volumes.iter().filter(|(_, run)| has_held(run)).map(|(volume, _)| *volume).collect();
        for volume in holding {
            let is_allowed = self.volumes.get(&volume).is_some_and(|run| self.allows(run));
            if !is_allowed && !self.is_stopping() {
                continue;
            }
            let held = self.volumes.get_mut(&volume).map(|run| std::mem::take(&mut run.held)).unwrap_or_default();
            for answer in held {
                // Looked at again for each: the process may be paused at any of them.
                match self.is_stopping() {
                    true => answer.fail(StoreError::Stopped),
                    false => self.answer_as_owner(volume, answer),
                }
            }
            self.finish_freeze(volume);
        }
        self.is_holding_answers = self.volumes.values().any(has_held);
    }
}
