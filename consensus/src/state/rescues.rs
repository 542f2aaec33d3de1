//! Handovers from a store that takes no writes any more: the owner gives the volume away with all that it acked, though it cannot make the last of it
//! durable (docs/ownership.md, *Rescue*).
//!
//! The epoch ends at a [`Fork`], as with a takeover: what a failed store has beyond it, or has lost before it, nobody can know, and the next process of
//! the old owner must not take it for the volume's. But nothing that was acked is beyond it, so nobody who uses the volume has lost
//! anything, and whoever finds himself beyond it was never told that he has written what is there.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::{Epoch, Lsn, NodeId, VolumeId};

use super::ownership::{give, require_owner};
use super::{Enclosure, EpochRecord, FORKS_MAX, Fork, MetaState, Volume};
use crate::command::{Ended, RESCUE_ENCLOSED_BYTES_MAX, Refusal, Response};

/// As [`crate::Command::Rescue`].
pub(super) struct Rescue {
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) to: NodeId,
    pub(super) ended: Ended,
    pub(super) durable: Lsn,
    pub(super) enclosed: Vec<u8>,
}

impl MetaState {
    /// Up to where the owner of `epoch` had made the volume durable, if it gave it away from a store that took no writes any more.
    #[must_use]
    pub fn rescued_from(&self, volume: VolumeId, epoch: Epoch) -> Option<Lsn> {
        self.rescues.get(&volume)?.get(&epoch).copied()
    }

    /// The last takeover of `volume`: what was acked may have been cut off by it.
    #[must_use]
    pub fn last_takeover(&self, volume: &Volume) -> Option<Fork> {
        let is_takeover = |fork: &&Fork| self.rescued_from(volume.id, fork.epoch).is_none();
        volume.forks.iter().rev().find(is_takeover).copied()
    }

    /// Whether a holder that knows `volume` up to `position` has only what was never acked beyond what it has in common with it.
    #[must_use]
    pub fn has_lost_nothing(&self, volume: &Volume, position: Lsn) -> bool {
        let mut left = volume.forks.iter().filter(|fork| position.epoch <= fork.epoch && position > fork.end);
        left.all(|fork| self.rescued_from(volume.id, fork.epoch).is_some())
    }

    /// The volumes with such an end of an epoch, and of which epochs.
    pub(crate) fn rescues(&self) -> impl Iterator<Item = (VolumeId, &BTreeMap<Epoch, Lsn>)> {
        self.rescues.iter().map(|(volume, epochs)| (*volume, epochs))
    }

    /// The owner may own others of its group in stores that work: those stay.
    pub(super) fn rescue(&mut self, rescue: Rescue) -> Result<Response, Refusal> {
        let Rescue { from, incarnation, to, ended, durable, enclosed } = rescue;
        let Ended { volume: id, epoch, final_lsn, manifest_digest } = ended;
        let fork = Fork { epoch, end: final_lsn };
        let volume = self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?;
        // The same proposal again: it happened, and its first answer was lost.
        let is_it = |record: &EpochRecord| (record.owner, record.manifest_digest) == (from, manifest_digest);
        if volume.epoch == epoch.next()
            && volume.owner == to
            && volume.forks.last() == Some(&fork)
            && volume.history.last().is_some_and(is_it)
        {
            return Ok(Response::GroupTransferred);
        }
        require_owner(volume, from, epoch)?;
        if enclosed.len() > RESCUE_ENCLOSED_BYTES_MAX {
            return Err(Refusal::TooMuchEnclosed(enclosed.len()));
        }
        if volume.has_left(final_lsn) {
            return Err(Refusal::LeftBehind { volume: id, node: from, position: final_lsn });
        }
        self.require_incarnation(from, incarnation)?;
        self.require_replica(id, to)?;
        self.drop_unmade_in(id);
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        volume.source = Some(from);
        give(volume, to, EpochRecord { epoch, owner: from, final_lsn, manifest_digest });
        self.forget_step_down(id);
        self.joins_no_more(id, to);
        self.enclosures.insert(id, Enclosure { epoch: epoch.next(), content: enclosed });
        self.cut_off(id, fork, Some(durable));
        Ok(Response::GroupTransferred)
    }

    /// Nothing behind `fork` is part of the volume. With a position it is the end of a rescue, else that of a takeover.
    ///
    /// What an earlier fork cut off as much as this one does is covered by it; a takeover among those makes this one as good as a takeover.
    pub(super) fn cut_off(&mut self, id: VolumeId, fork: Fork, rescued: Option<Lsn>) {
        let mut rescues = self.rescues.get(&id).cloned().unwrap_or_default();
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let is_covered = |earlier: &Fork| earlier.end >= fork.end;
        let covers_takeover =
            volume.forks.iter().any(|earlier| is_covered(earlier) && !rescues.contains_key(&earlier.epoch));
        volume.forks.retain(|earlier| !is_covered(earlier));
        volume.forks.push(fork);
        if let Some(durable) = rescued.filter(|_| !covers_takeover) {
            rescues.insert(fork.epoch, durable);
        }
        if volume.forks.len() > FORKS_MAX {
            let oldest = volume.forks.remove(0);
            volume.forks[0].end = oldest.end;
            if !rescues.contains_key(&oldest.epoch) {
                rescues.remove(&volume.forks[0].epoch);
            }
        }
        let kept: BTreeSet<Epoch> = volume.forks.iter().map(|fork| fork.epoch).collect();
        rescues.retain(|epoch, _| kept.contains(epoch));
        match rescues.is_empty() {
            true => drop(self.rescues.remove(&id)),
            false if self.rescues.get(&id) == Some(&rescues) => {}
            false => self.rescues.insert(id, rescues),
        }
    }

    /// The volume is gone.
    pub(super) fn forget_rescues(&mut self, volume: VolumeId) {
        self.rescues.remove(&volume);
    }
}
