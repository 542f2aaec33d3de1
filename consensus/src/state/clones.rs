//! Clones: volumes that begin as a snapshot of another.
//!
//! Only a node that has all of the snapshot can make one, so the owner of the snapshot's volume proposes it and owns it. Until
//! it has said that the clone is there, the snapshot cannot be deleted; from then on neither needs the other.

use client_lib::{Epoch, NodeId, SnapshotId, VolumeId, VolumeName};

use super::ownership::require_owner;
use super::{MetaState, Origin, Volume};
use crate::command::{Refusal, Response};

/// As [`crate::Command::CloneVolume`].
pub(super) struct Clone {
    pub(super) name: VolumeName,
    pub(super) origin: VolumeId,
    pub(super) snapshot: SnapshotId,
    pub(super) from: NodeId,
    pub(super) epoch: Epoch,
    pub(super) nonce: u64,
}

impl MetaState {
    pub(super) fn clone_volume(&mut self, log_index: u64, clone: Clone) -> Result<Response, Refusal> {
        let Clone { name, origin, snapshot, from, epoch, nonce } = clone;
        if let Some(known) = self.created_before(&name, nonce)? {
            return Ok(known);
        }
        let volume = self.volumes.get(&origin).ok_or(Refusal::UnknownVolume(origin))?;
        require_owner(volume, from, epoch)?;
        let made = volume.snapshots.iter().find(|listed| listed.id == snapshot).and_then(|listed| listed.made);
        let made = made.ok_or(Refusal::UnknownSnapshot { volume: origin, snapshot })?;
        let clone = Volume {
            // What it has of the origin has that epoch at most, so what is written to it comes after.
            epoch: volume.epoch,
            replicas: volume.replicas.clone(),
            nonce,
            takeover_after_ms: volume.takeover_after_ms,
            durability: volume.durability,
            rpo: volume.rpo,
            propagation: volume.propagation.clone(),
            origin: Some(Origin { volume: origin, snapshot, is_made: false }),
            ..Volume::new(VolumeId(log_index), name, made.size, from)
        };
        let made = self.add_volume(clone);
        self.place_like(origin, VolumeId(log_index));
        self.inherit_keys(origin, VolumeId(log_index));
        Ok(made)
    }

    pub(super) fn clone_made(&mut self, id: VolumeId, from: NodeId, epoch: Epoch) -> Result<Response, Refusal> {
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        require_owner(volume, from, epoch)?;
        if let Some(origin) = &mut volume.origin {
            origin.is_made = true;
        }
        Ok(Response::CloneMade)
    }

    /// Refuses what would take `snapshot` of a volume, or any, from a clone that is still to be made.
    pub(super) fn require_not_cloned(&self, id: VolumeId, snapshot: Option<SnapshotId>) -> Result<(), Refusal> {
        let needs = |origin: Origin| {
            !origin.is_made && origin.volume == id && snapshot.is_none_or(|snapshot| snapshot == origin.snapshot)
        };
        let clone = self.volumes.values().find(|volume| volume.origin.is_some_and(needs));
        match (clone, self.volumes.get(&id)) {
            (Some(clone), Some(origin)) => {
                Err(Refusal::BeingCloned { origin: origin.name.clone(), clone: clone.name.clone() })
            }
            _ => Ok(()),
        }
    }
}
