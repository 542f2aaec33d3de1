//! Snapshots: recorded first, made by the volume's owner, and deleted everywhere when they are not listed any more.

use client_lib::geometry::SNAPSHOTS_MAX;
use client_lib::{Epoch, NodeId, SnapshotId, SnapshotName, VolumeId};

use super::ownership::require_owner;
use super::{Made, MetaState, Snapshot};
use crate::command::{Refusal, Response};

impl MetaState {
    /// The id is the log index: ids rise, and who has applied it and does not find it listed knows that it was deleted.
    pub(super) fn create_snapshot(
        &mut self,
        log_index: u64,
        volume: VolumeId,
        name: SnapshotName,
        nonce: u64,
    ) -> Result<Response, Refusal> {
        let volume = self.volumes.get_mut(&volume).ok_or(Refusal::UnknownVolume(volume))?;
        if let Some(known) = volume.snapshots.iter().find(|snapshot| snapshot.name == name) {
            // The same proposal again: its first answer was lost.
            if known.nonce == nonce {
                return Ok(Response::SnapshotCreated { snapshot: known.id });
            }
            return Err(Refusal::SnapshotNameTaken { volume: volume.name.clone(), name });
        }
        if volume.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(Refusal::TooManySnapshots(volume.name.clone()));
        }
        let id = SnapshotId(log_index);
        volume.snapshots.push(Snapshot { id, name, made: None, nonce, cut: None });
        volume.newest_snapshot = id;
        Ok(Response::SnapshotCreated { snapshot: id })
    }

    /// Whoever owns the volume finds the same snapshot, so a second report, also by a later owner, says the same.
    pub(super) fn snapshot_made(
        &mut self,
        id: VolumeId,
        snapshot: SnapshotId,
        from: NodeId,
        epoch: Epoch,
        made: Made,
    ) -> Result<Response, Refusal> {
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        require_owner(volume, from, epoch)?;
        let listed = volume.snapshots.iter_mut().find(|listed| listed.id == snapshot);
        let listed = listed.ok_or(Refusal::UnknownSnapshot { volume: id, snapshot })?;
        listed.made.get_or_insert(made);
        Ok(Response::SnapshotMade)
    }

    pub(super) fn delete_snapshot(&mut self, id: VolumeId, snapshot: SnapshotId) -> Result<Response, Refusal> {
        self.require_not_cloned(id, Some(snapshot))?;
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::UnknownVolume(id))?;
        let at = volume.snapshots.iter().position(|listed| listed.id == snapshot);
        volume.snapshots.remove(at.ok_or(Refusal::UnknownSnapshot { volume: id, snapshot })?);
        Ok(Response::SnapshotDeleted)
    }
}
