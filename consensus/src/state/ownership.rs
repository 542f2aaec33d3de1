//! The change of owner.

use client_lib::{Epoch, Lsn, NodeId, VolumeId};

use super::{EPOCH_HISTORY_MAX, EpochRecord, MetaState};
use crate::command::{Refusal, Response};

/// As [`crate::Command::Transfer`].
pub(super) struct Transfer {
    pub(super) volume: VolumeId,
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) epoch: Epoch,
    pub(super) to: NodeId,
    pub(super) final_lsn: Lsn,
    pub(super) manifest_digest: u64,
}

impl MetaState {
    pub(super) fn transfer(&mut self, transfer: Transfer) -> Result<Response, Refusal> {
        let Transfer { volume: id, from, incarnation, epoch, to, final_lsn, manifest_digest } = transfer;
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        let ended = EpochRecord { epoch, owner: from, final_lsn, manifest_digest };
        // The same proposal again: it happened, and its first answer was lost.
        if volume.epoch == epoch.next() && volume.owner == to && volume.history.last() == Some(&ended) {
            return Ok(Response::Transferred { epoch: volume.epoch });
        }
        if volume.owner != from || volume.epoch != epoch {
            let (owner, current) = (volume.owner, volume.epoch);
            return Err(Refusal::NotOwner { volume: id, from, proposed: epoch, owner, current });
        }
        let current = self.nodes.get(&from).ok_or(Refusal::UnknownNode(from))?.incarnation;
        if incarnation != current {
            return Err(Refusal::OldIncarnation { node: from, proposed: incarnation, current });
        }
        if !volume.replicas.remove(&to) {
            return Err(Refusal::NotReplica { volume: id, to });
        }
        volume.replicas.insert(from);
        volume.owner = to;
        volume.epoch = epoch.next();
        volume.source = Some(from);
        volume.final_lsn = final_lsn;
        volume.history.push(ended);
        if volume.history.len() > EPOCH_HISTORY_MAX {
            volume.history.remove(0);
        }
        Ok(Response::Transferred { epoch: volume.epoch })
    }
}
