//! The change of owner: handed over by the owner, or taken over from one that is lost.

use std::collections::BTreeMap;

use client_lib::{Epoch, Lsn, NodeId, VolumeGroupId, VolumeId};

use super::{EPOCH_HISTORY_MAX, Enclosure, EpochRecord, Fork, MetaState, Volume};
use crate::command::{Ended, Refusal, Response};

/// As [`crate::Command::HandOver`].
pub(super) struct HandOver {
    pub(super) group: Option<VolumeGroupId>,
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) to: NodeId,
    pub(super) members: Vec<Ended>,
    pub(super) enclosed: BTreeMap<VolumeId, Vec<u8>>,
}

/// As [`crate::Command::Takeover`].
pub(super) struct Takeover {
    pub(super) volume: VolumeId,
    pub(super) from: NodeId,
    pub(super) epoch: Epoch,
    pub(super) to: NodeId,
    pub(super) incarnation: u64,
    pub(super) start: Lsn,
}

impl MetaState {
    /// All or none: everything is looked at before anything changes.
    pub(super) fn hand_over(&mut self, handover: HandOver) -> Result<(), Refusal> {
        let HandOver { group, from, incarnation, to, members, mut enclosed } = handover;
        let record = |ended: &Ended| {
            let Ended { epoch, final_lsn, manifest_digest, .. } = *ended;
            EpochRecord { epoch, owner: from, final_lsn, manifest_digest }
        };
        let happened = |ended: &Ended| {
            self.volumes.get(&ended.volume).is_some_and(|volume| has_happened(volume, to, &record(ended)))
        };
        if !members.is_empty() && members.iter().all(happened) {
            return Ok(());
        }
        let group = group.map(|id| self.groups.get(&id).ok_or(Refusal::UnknownGroup(id))).transpose()?;
        for Ended { volume, epoch, .. } in &members {
            require_owner(self.volumes.get(volume).ok_or(Refusal::UnknownVolume(*volume))?, from, *epoch)?;
        }
        match group {
            Some(group) => self.require_all_owned(group, from, &members)?,
            None if members.len() == 1 => self.require_alone(members[0].volume)?,
            None => return Err(Refusal::NotOneVolume(members.len())),
        }
        self.require_incarnation(from, incarnation)?;
        for ended in &members {
            self.require_replica(ended.volume, to)?;
        }
        for ended in &members {
            let id = ended.volume;
            self.drop_unmade_in(id);
            let volume = self.volumes.get_mut(&id).expect("it was looked at");
            volume.source = Some(from);
            let enclosure = enclosed.remove(&id).map(|content| Enclosure { epoch: ended.epoch.next(), content });
            give(volume, to, record(ended));
            self.forget_step_down(id);
            self.joins_no_more(id, to);
            match enclosure {
                Some(enclosure) => self.enclosures.insert(id, enclosure),
                None => drop(self.enclosures.remove(&id)),
            }
        }
        Ok(())
    }

    /// Nobody asks for it any more; that may be said twice, and late.
    pub(super) fn enclosure_taken(&mut self, id: VolumeId, epoch: Epoch) -> Result<Response, Refusal> {
        if self.enclosures.get(&id).is_some_and(|enclosure| enclosure.epoch == epoch) {
            self.enclosures.remove(&id);
        }
        Ok(Response::EnclosureTaken)
    }

    /// Refuses what an earlier process of `node` proposed.
    pub(super) fn require_incarnation(&self, node: NodeId, incarnation: u64) -> Result<(), Refusal> {
        let current = self.nodes.get(&node).ok_or(Refusal::UnknownNode(node))?.incarnation;
        match incarnation == current {
            true => Ok(()),
            false => Err(Refusal::OldIncarnation { node, proposed: incarnation, current }),
        }
    }

    pub(super) fn require_replica(&self, id: VolumeId, to: NodeId) -> Result<(), Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?;
        if volume.replicas.contains(&to) { Ok(()) } else { Err(Refusal::NotReplica { volume: id, to }) }
    }

    /// The owner's lease is out, so it acks nothing any more, and it cannot have it back and still own the volume. Or the owner has
    /// stepped down: it acks nothing in this epoch for as long as its process runs, and none has begun since. The
    /// new owner takes nothing from it after `start` while this is under way; its incarnation says that this still holds.
    pub(super) fn takeover(&mut self, takeover: Takeover) -> Result<Response, Refusal> {
        let Takeover { volume: id, from, epoch, to, incarnation, start } = takeover;
        let lease = self.lease(from);
        let volume = self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?;
        let fork = Fork { epoch, end: start };
        // The same proposal again: it happened, and its first answer was lost.
        if volume.epoch == epoch.next() && volume.owner == to && volume.forks.last() == Some(&fork) {
            return Ok(Response::TakenOver { epoch: volume.epoch });
        }
        require_owner(volume, from, epoch)?;
        self.require_incarnation(to, incarnation)?;
        if volume.has_left(start) {
            return Err(Refusal::LeftBehind { volume: id, node: to, position: start });
        }
        if !lease.is_out && !self.has_stepped_down(id) {
            return Err(Refusal::LeaseHeld { node: from, renewals: lease.renewals });
        }
        self.require_replica(id, to)?;
        self.drop_unmade_in(id);
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        give(volume, to, EpochRecord { epoch, owner: from, final_lsn: start, manifest_digest: 0 });
        self.enclosures.remove(&id);
        self.stepped_down.remove(&id);
        volume.source = None;
        // Nobody who follows the volume has them any more.
        volume.snapshots.retain(|snapshot| snapshot.made.is_none_or(|made| made.lsn <= start));
        let epoch = volume.epoch;
        self.cut_off(id, fork, None);
        self.joins_no_more(id, to);
        Ok(Response::TakenOver { epoch })
    }
}

impl MetaState {
    /// The owner's consent to a handover to `to` that begins with a write there; `None` withdraws it.
    pub(super) fn set_on_write(&mut self, id: VolumeId, to: Option<NodeId>) -> Result<Response, Refusal> {
        if let Some(to) = to {
            self.require_alone(id)?;
            self.require_replica(id, to)?;
        }
        self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?.on_write = to;
        Ok(Response::PolicySet)
    }
}

pub(super) fn require_owner(volume: &Volume, from: NodeId, epoch: Epoch) -> Result<(), Refusal> {
    if volume.owner == from && volume.epoch == epoch {
        return Ok(());
    }
    let (owner, current) = (volume.owner, volume.epoch);
    Err(Refusal::NotOwner { volume: volume.id, from, proposed: epoch, owner, current })
}

/// Whether just this handover has taken place: its first answer was lost, and it is proposed again.
fn has_happened(volume: &Volume, to: NodeId, ended: &EpochRecord) -> bool {
    let by_handover = volume.forks.last().is_none_or(|fork| fork.epoch != ended.epoch);
    volume.epoch == ended.epoch.next() && volume.owner == to && by_handover && volume.history.last() == Some(ended)
}

/// Ends the epoch of `ended`; its owner follows from now on.
pub(super) fn give(volume: &mut Volume, to: NodeId, ended: EpochRecord) {
    assert!(volume.replicas.remove(&to), "volume {} is given to a replica, not to {to}", volume.id);
    volume.replicas.insert(ended.owner);
    volume.owner = to;
    volume.epoch = ended.epoch.next();
    volume.final_lsn = ended.final_lsn;
    volume.on_write = None;
    volume.history.push(ended);
    if volume.history.len() > EPOCH_HISTORY_MAX {
        volume.history.remove(0);
    }
}
