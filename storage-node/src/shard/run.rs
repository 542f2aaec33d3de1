//! A volume while the shard runs: its state, and what is under way on it.
//!
//! The *applied* state ([`Volume`]) follows the log. Admission is ahead of it: a role, an epoch, a position that
//! entries still under way will bring about. A request is admitted against admission and takes effect on the applied
//! state, in log order.

use std::collections::VecDeque;
use std::sync::Arc;

use client_lib::{Epoch, Lsn, VolumeSize};

use super::damage::Damage;
use super::handle::{FreezeWhen, Role, StoreError, VolumeReport};
use super::lease::Held;
use super::news::News;
use super::resize::Shrink;
use super::rollback::RollbackJob;
use super::write::WriteJob;
use crate::map::Map;
use crate::volume::{Moment, Volume};

pub(super) use super::handle::Reply;

/// Blocks from `first` to `last` that something named by `ticket` is under way on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    pub(super) ticket: u64,
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Busy {
    pub(super) fn overlaps(&self, first: u32, last: u32) -> bool {
        self.first <= last && first <= self.last
    }
}

/// A volume and what is under way on it.
#[derive(Debug)]
pub(super) struct VolumeRun {
    pub(super) state: Volume,
    /// What the volume will be when everything under way is applied; a new owner becomes so only then.
    pub(super) role: Role,
    pub(super) epoch: Epoch,
    /// Up to which epoch rights to write from afar have ended by claims that the log has, or is given.
    pub(super) claimed: Epoch,
    /// Replica: up to where manifests were admitted.
    pub(super) known: Lsn,
    /// Owner: the newest assigned LSN.
    pub(super) head: Lsn,
    /// Up to where entries are durable.
    pub(super) durable: Lsn,
    /// What `durable` will be when the sync under way is done.
    pub(super) syncing: Lsn,
    /// Requests are admitted up to here: the size, or below it while the volume shrinks.
    pub(super) end: VolumeSize,
    pub(super) shrink: Option<Shrink>,
    pub(super) rollback: Option<RollbackJob>,
    pub(super) frozen: bool,
    /// How it was asked to be frozen last.
    pub(super) freezes: FreezeWhen,
    /// Owner: the newest write when it was flushed last, with nothing under way; or what the node itself has done to it since.
    pub(super) flushed: Lsn,
    /// The number of lapses under which the ownership was taken up.
    pub(super) acts_under: Option<u64>,
    /// Up to which epoch this node acts for it no more, if it owned it then: it has stepped down.
    pub(super) ceased: Epoch,
    /// Answers that wait for the node's lease.
    pub(super) held: Vec<Held>,
    pub(super) freezers: Vec<Reply<Lsn>>,
    /// Writes and zeroes in the log's hands.
    pub(super) flights: VecDeque<Busy>,
    /// Writes that wait for the old content of a partly written block.
    pub(super) merging: Vec<Busy>,
    /// Writes that wait for others on the same blocks, in order of arrival.
    pub(super) waiting: VecDeque<WriteJob>,
    /// What cannot be read here.
    pub(super) damage: Damage,
    /// Blocks that the scrub has read since the start.
    pub(super) verified_blocks: u64,
    /// For those who wait until something happens to it.
    pub(super) news: Arc<News>,
}

impl AsMut<Volume> for VolumeRun {
    fn as_mut(&mut self) -> &mut Volume {
        &mut self.state
    }
}

impl VolumeRun {
    /// A volume after recovery or creation: nobody's, until activated.
    pub(super) fn new(state: Volume) -> VolumeRun {
        VolumeRun {
            role: Role::Replica,
            epoch: state.epoch,
            claimed: state.ledger.claimed(),
            known: state.known,
            head: state.known,
            durable: Lsn::ZERO,
            syncing: Lsn::ZERO,
            end: state.size,
            shrink: None,
            rollback: None,
            frozen: false,
            freezes: FreezeWhen::Always,
            flushed: state.known,
            acts_under: None,
            ceased: Epoch(0),
            held: Vec::new(),
            freezers: Vec::new(),
            flights: VecDeque::new(),
            merging: Vec::new(),
            waiting: VecDeque::new(),
            damage: Damage::default(),
            verified_blocks: 0,
            news: Arc::default(),
            state,
        }
    }

    /// The role of the present epoch has taken effect.
    pub(super) fn begin(&mut self, is_owner: bool) {
        let known = self.state.known;
        let was_owner = std::mem::replace(&mut self.role, self.state.role) == Role::Owner;
        if is_owner {
            // Who was the owner already may have writes under way, with positions beyond what is applied.
            self.head = if was_owner { self.head.max(known) } else { known };
            (self.frozen, self.flushed, self.known) = (false, known, known);
        }
    }

    /// Whether no write is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.merging.is_empty() && self.waiting.is_empty() && self.held.is_empty()
    }

    /// Whether it has something to be done in the background, even if nothing happens to it.
    pub(super) fn has_work(&self) -> bool {
        self.state.layers.is_folding()
            || self.state.snapshots.is_merging()
            || self.shrink.as_ref().is_some_and(Shrink::has_work)
    }

    /// Whether it has, or will have when something ends that is under way.
    pub(super) fn may_have_work(&self) -> bool {
        self.has_work() || self.shrink.is_some()
    }

    /// Whether the last that was done to it was a flush, and nothing is under way.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_quiet() && self.flushed == self.head
    }

    /// `lsn` is the newest assigned position from now on, of something that is the node's own and no client's if `is_own`: who had flushed
    /// everything before still has.
    pub(super) fn assigned(&mut self, lsn: Lsn, is_own: bool) {
        if is_own && self.flushed == self.head {
            self.flushed = lsn;
        }
        self.head = lsn;
    }

    /// Refuses what only an owner may do.
    pub(super) fn require_owner(&self) -> Result<(), StoreError> {
        match self.role {
            Role::Owner => Ok(()),
            Role::Replica => Err(StoreError::NotOwner { volume: self.state.id, epoch: self.epoch }),
        }
    }

    /// Whether this node has stepped down as the owner of the present epoch.
    pub(super) fn has_ceased(&self) -> bool {
        self.ceased >= self.epoch
    }

    /// Refuses what lies beyond the end.
    pub(super) fn require_inside(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        if self.end.contains(offset, length) {
            Ok(())
        } else {
            Err(StoreError::BeyondEnd { volume: self.state.id, offset, length, size: self.end })
        }
    }

    /// Refuses a snapshot that is not known here.
    pub(super) fn require_moment(&self, moment: Moment) -> Result<(), StoreError> {
        let volume = self.state.id;
        match moment {
            Moment::Snapshot(snapshot) if self.state.snapshot(snapshot).is_none() => {
                Err(StoreError::UnknownSnapshot { volume, snapshot })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what cannot be read in `moment`: the volume is read at its owner, a snapshot wherever it is known.
    pub(super) fn require_readable(&self, moment: Moment, offset: u64, length: u64) -> Result<(), StoreError> {
        if moment == Moment::Now {
            self.require_owner()?;
        }
        self.require_known(moment, offset, length)
    }

    /// Refuses what this node knows nothing of: a snapshot, or a range.
    pub(super) fn require_known(&self, moment: Moment, offset: u64, length: u64) -> Result<(), StoreError> {
        self.require_moment(moment)?;
        let Moment::Snapshot(id) = moment else { return self.require_inside(offset, length) };
        let (volume, size) = (self.state.id, self.state.snapshot(id).map_or(self.state.size, |snapshot| snapshot.size));
        if size.contains(offset, length) { Ok(()) } else { Err(StoreError::BeyondEnd { volume, offset, length, size }) }
    }

    /// The positions and counts.
    pub(super) fn report(&self, map: &Map) -> VolumeReport {
        let owner = self.role == Role::Owner;
        let head = if owner { self.head } else { self.state.known };
        VolumeReport {
            size: self.state.size,
            role: self.role,
            epoch: self.state.epoch,
            head,
            durable: if owner { self.durable } else { self.state.known },
            known: head,
            applied: self.state.known,
            watermark: if owner && self.state.layers.stale() == 0 { head } else { self.state.watermark() },
            held: if owner { head } else { self.state.held() },
            stale_blocks: self.state.layers.wanted(),
            newest_snapshot: self.state.newest_snapshot(),
            awaited_snapshot: self.state.layers.awaited(),
            sealed_to: self.state.layers.sealed_to(),
            mapped_blocks: map.usage.mapped(self.state.id),
            damaged_blocks: self.damage.count(),
            repaired_blocks: self.damage.repaired(),
            verified_blocks: self.verified_blocks,
            fault: None,
            is_full: false,
            tally: self.state.tally,
            claimed: self.state.ledger.claimed(),
            rejoining: self.state.rejoining(),
        }
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{VolumeId, VolumeSize};

    use super::*;

    /// Word of the role that came a second time took back the positions of writes that were admitted since the first.
    #[test]
    fn who_is_the_owner_already_keeps_the_positions_that_it_has_given_out() {
        let size = VolumeSize::try_from(1 << 20).expect("valid");
        let mut run = VolumeRun::new(Volume::new(VolumeId(1), size));
        run.head = Lsn::new(Epoch(1), 3);
        run.state.role = Role::Owner;
        run.begin(true);
        assert_eq!((run.role, run.head), (Role::Owner, Lsn::ZERO), "a replica's head is nothing that was given out");
        run.head = Lsn::new(Epoch(1), 3);
        run.begin(true);
        assert_eq!(run.head, Lsn::new(Epoch(1), 3));
    }
}
