//! Volumes: creation, size and deletion.

use std::collections::BTreeSet;

use client_lib::policy::{Durability, Propagation, Rpo};
use client_lib::{Epoch, NodeId, VolumeId, VolumeName, VolumeSize};

use super::ownership::require_owner;
use super::{MetaState, Volume};
use crate::command::{Refusal, Response};

/// As [`crate::Command::CreateVolumeOfClass`].
pub(super) struct Create {
    pub(super) name: VolumeName,
    pub(super) size: VolumeSize,
    pub(super) owner: NodeId,
    pub(super) replicas: BTreeSet<NodeId>,
    pub(super) durability: Durability,
    pub(super) nonce: u64,
}

/// As [`crate::Command::ResizeVolume`].
pub(super) struct Resize {
    pub(super) volume: VolumeId,
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) epoch: Epoch,
    pub(super) expected: VolumeSize,
    pub(super) size: VolumeSize,
}

impl MetaState {
    pub(super) fn create_volume(&mut self, log_index: u64, create: Create) -> Result<Response, Refusal> {
        let Create { name, size, owner, mut replicas, durability, nonce } = create;
        if let Some(known) = self.created_before(&name, nonce)? {
            return Ok(known);
        }
        replicas.remove(&owner);
        let stranger = std::iter::once(&owner).chain(&replicas).find(|node| !self.nodes.contains_key(node));
        if let Some(stranger) = stranger {
            return Err(Refusal::UnknownNode(*stranger));
        }
        // The log's index is never used again, so neither is the id.
        let volume = Volume::new(VolumeId(log_index), name, size, owner);
        Ok(self.add_volume(Volume { replicas, durability, nonce, ..volume }))
    }

    /// The answer to a creation that is proposed again, because its first answer was lost; refuses a name that is taken.
    pub(super) fn created_before(&self, name: &VolumeName, nonce: u64) -> Result<Option<Response>, Refusal> {
        match self.volumes.values().find(|volume| volume.name == *name) {
            Some(known) if known.nonce == nonce => Ok(Some(Response::VolumeCreated { volume: known.id })),
            Some(_) => Err(Refusal::VolumeNameTaken(name.clone())),
            None => Ok(None),
        }
    }

    pub(super) fn add_volume(&mut self, volume: Volume) -> Response {
        let id = volume.id;
        self.volumes.insert(id, volume);
        Response::VolumeCreated { volume: id }
    }

    /// Only the owner proposes a size, and only when it has carried out the one before: so at most one change is on its
    /// way, and no node ever has to know of more than the newest (docs/decisions/0011).
    pub(super) fn resize_volume(&mut self, resize: Resize) -> Result<Response, Refusal> {
        let Resize { volume: id, from, incarnation, epoch, expected, size } = resize;
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        require_owner(volume, from, epoch)?;
        let current = self.nodes.get(&from).ok_or(Refusal::UnknownNode(from))?.incarnation;
        if incarnation != current {
            return Err(Refusal::OldIncarnation { node: from, proposed: incarnation, current });
        }
        // The size asked for is success, whatever was expected: the same proposal again, whose first answer was lost.
        if volume.size != size {
            if volume.size != expected {
                return Err(Refusal::SizeChanged { volume: id, expected, found: volume.size });
            }
            volume.size = size;
        }
        Ok(Response::VolumeResized { size })
    }

    pub(super) fn set_takeover(&mut self, volume: VolumeId, after_ms: Option<u64>) -> Result<Response, Refusal> {
        self.volumes.get_mut(&volume).ok_or(Refusal::UnknownVolume(volume))?.takeover_after_ms = after_ms;
        Ok(Response::TakeoverSet)
    }

    pub(super) fn set_durability(&mut self, volume: VolumeId, durability: Durability) -> Result<Response, Refusal> {
        self.volumes.get_mut(&volume).ok_or(Refusal::UnknownVolume(volume))?.durability = durability;
        Ok(Response::PolicySet)
    }

    pub(super) fn set_rpo(&mut self, volume: VolumeId, rpo: Option<Rpo>) -> Result<Response, Refusal> {
        self.volumes.get_mut(&volume).ok_or(Refusal::UnknownVolume(volume))?.rpo = rpo;
        Ok(Response::PolicySet)
    }

    pub(super) fn set_propagation(&mut self, volume: VolumeId, wanted: Propagation) -> Result<Response, Refusal> {
        self.volumes.get_mut(&volume).ok_or(Refusal::UnknownVolume(volume))?.propagation = wanted;
        Ok(Response::PolicySet)
    }

    pub(super) fn delete_volume(&mut self, volume: VolumeId) -> Result<Response, Refusal> {
        self.require_not_cloned(volume, None)?;
        self.require_alone(volume)?;
        self.enclosures.remove(&volume);
        self.forget_keys(volume);
        self.forget_step_down(volume);
        self.forget_rescues(volume);
        self.forget_places_of(volume);
        self.volumes.remove(&volume).map(|_| Response::VolumeDeleted).ok_or(Refusal::UnknownVolume(volume))
    }
}
