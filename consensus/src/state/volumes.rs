//! Volumes: creation and deletion.

use std::collections::BTreeSet;

use client_lib::{Epoch, Lsn, NodeId, VolumeId, VolumeName, VolumeSize};

use super::{MetaState, Volume};
use crate::command::{Refusal, Response};

impl MetaState {
    pub(super) fn create_volume(
        &mut self,
        log_index: u64,
        name: VolumeName,
        size: VolumeSize,
        owner: NodeId,
        mut replicas: BTreeSet<NodeId>,
        nonce: u64,
    ) -> Result<Response, Refusal> {
        if let Some(known) = self.volumes.values().find(|volume| volume.name == name) {
            // The same proposal again: its first answer was lost.
            return if known.nonce == nonce {
                Ok(Response::VolumeCreated { volume: known.id })
            } else {
                Err(Refusal::VolumeNameTaken(name))
            };
        }
        replicas.remove(&owner);
        let stranger = std::iter::once(&owner).chain(&replicas).find(|node| !self.nodes.contains_key(node));
        if let Some(stranger) = stranger {
            return Err(Refusal::UnknownNode(*stranger));
        }
        // The log's index is never used again, so neither is the id.
        let id = VolumeId(log_index);
        let volume = Volume {
            id,
            name,
            size,
            owner,
            epoch: Epoch(1),
            replicas,
            source: None,
            final_lsn: Lsn::ZERO,
            history: Vec::new(),
            nonce,
        };
        self.volumes.insert(id, volume);
        Ok(Response::VolumeCreated { volume: id })
    }

    pub(super) fn delete_volume(&mut self, volume: VolumeId) -> Result<Response, Refusal> {
        self.volumes.remove(&volume).map(|_| Response::VolumeDeleted).ok_or(Refusal::UnknownVolume(volume))
    }
}
