//! Snapshots: made, listed, deleted; gone back to, and cloned.

use std::sync::Arc;
use std::time::Duration;

use client_lib::wire::admin::{CloneSnapshot, CreateSnapshot, RollBack, SnapshotStatus, VolumeStatus};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, SnapshotId, SnapshotName, VolumeId, VolumeName};
use consensus::{Command, Response, Snapshot};

use super::names::{snapshot_named, volume_named};
use super::{NodeAdmin, OWNER_PATIENCE, deleted, nonce, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::peer::message::{AdminForward, ReplicaPosition};
use crate::serve::tail::require_no_tail_name;
use crate::serve::volume::{ServedVolume, store_failure};

/// How long a snapshot may take to be made before `create` says that it goes on by itself.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

/// How long an owner that is asked through another node may take to go back to a snapshot.
pub(super) const ROLL_BACK_PATIENCE: Duration = Duration::from_secs(45);

impl NodeAdmin {
    pub(super) async fn take_snapshot(&self, name: &str, request: CreateSnapshot) -> Result<SnapshotStatus, Error> {
        let snapshot_name: SnapshotName = request.name.parse()?;
        require_no_tail_name(&snapshot_name)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        let command = Command::CreateSnapshot { volume, name: snapshot_name.clone(), nonce: nonce() };
        let id = match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::SnapshotCreated { snapshot } => snapshot,
            other => return Err(out_of_turn(&other)),
        };
        let gone = || Error::new(ErrorKind::NotFound, format!("snapshot {name}@{snapshot_name} was deleted meanwhile"));
        let served = self.volumes.arrival(volume, OWNER_PATIENCE).await.ok_or_else(gone)?;
        if served.snapshots.made(id, SNAPSHOT_PATIENCE).await.is_none() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "snapshot {name}@{snapshot_name} is recorded, and volume {name}'s owner has not made it within {SNAPSHOT_PATIENCE:?}; it does as soon as it can: `helio volume snapshot list {name}` shows it"
                ),
            ));
        }
        self.list_snapshots(name).await?.into_iter().find(|snapshot| snapshot.id == id.0).ok_or_else(gone)
    }

    pub(super) async fn list_snapshots(&self, name: &str) -> Result<Vec<SnapshotStatus>, Error> {
        let state = self.recall().await;
        let volume = volume_named(&state, name)?.id;
        let forward = AdminForward::Snapshots { volume };
        self.at_owner(volume, forward, |served| self.snapshots_here(served)).await
    }

    pub(super) async fn snapshots_here(&self, volume: Arc<ServedVolume>) -> Result<Vec<SnapshotStatus>, Error> {
        let state = self.recall().await;
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        let stored = volume.shard.snapshots(volume.id).await.map_err(store_failure)?;
        let replicas = self.reconciler.watermarks(volume.id).map(|marks| marks.snapshot()).unwrap_or_default();
        let status = |snapshot: &Snapshot| {
            let here = stored.iter().find(|stored| stored.snapshot == snapshot.id);
            let owner = here.filter(|here| here.stale_blocks == 0).map(|_| meta.owner);
            let has_all = |position: ReplicaPosition| {
                let is_awaited = position.awaited_snapshot.is_some_and(|awaited| awaited <= snapshot.id);
                position.newest_snapshot >= snapshot.id && !is_awaited
            };
            let holders = replicas.iter().filter(|(_, progress)| snapshot.made.is_some() && has_all(progress.position));
            SnapshotStatus {
                volume: meta.name.to_string(),
                name: snapshot.name.to_string(),
                id: snapshot.id.0,
                lsn: snapshot.made.map(|made| made.lsn.to_string()),
                size_bytes: snapshot.made.map_or(0, |made| made.size.bytes()),
                created_ms: snapshot.made.map(|made| made.at_ms),
                held_bytes: here.map_or(0, |here| here.held_blocks * u64::from(BLOCK_SIZE)),
                complete_at: owner
                    .into_iter()
                    .chain(holders.map(|(node, _)| *node))
                    .map(|node| state.name_of(node))
                    .collect(),
            }
        };
        Ok(meta.snapshots.iter().map(status).collect())
    }

    pub(super) async fn go_back(&self, name: &str, snapshot: &str, request: RollBack) -> Result<VolumeStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let found = snapshot_named(volume, snapshot)?;
        if !request.discard_changes {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "going back to {name}@{snapshot} drops what was written to {name} since: say so with --discard-changes, or make a snapshot first to be able to come back"
                ),
            ));
        }
        let forward = AdminForward::RollBack { volume: volume.id, snapshot: found.id };
        let id = found.id;
        self.at_owner(volume.id, forward, |served| self.roll_back_here(served, id)).await
    }

    pub(super) async fn roll_back_here(
        &self,
        volume: Arc<ServedVolume>,
        snapshot: SnapshotId,
    ) -> Result<VolumeStatus, Error> {
        let lsn = volume.shard.roll_back(volume.id, snapshot).await.map_err(store_failure)?;
        tracing::info!(volume = %volume.name, %snapshot, %lsn, "rolled back to a snapshot");
        self.status_here(volume).await
    }

    pub(super) async fn make_clone(
        &self,
        name: &str,
        snapshot: &str,
        request: CloneSnapshot,
    ) -> Result<VolumeStatus, Error> {
        let clone: VolumeName = request.name.parse()?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let found = snapshot_named(volume, snapshot)?;
        if found.made.is_none() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "snapshot {name}@{snapshot} is not made yet; `helio volume snapshot list {name}` shows when it is"
                ),
            ));
        }
        let (id, snapshot) = (volume.id, found.id);
        let forward = AdminForward::Clone { volume: id, snapshot, name: clone.clone() };
        let made: VolumeId =
            self.at_owner(id, forward, |served| self.clone_here(served, snapshot, clone.clone())).await?;
        self.created(made).await
    }

    /// As the owner of the snapshot's volume.
    pub(super) async fn clone_here(
        &self,
        volume: Arc<ServedVolume>,
        snapshot: SnapshotId,
        name: VolumeName,
    ) -> Result<VolumeId, Error> {
        let epoch = volume.gate.view().epoch;
        let stored = volume.shard.snapshots(volume.id).await.map_err(store_failure)?;
        if !stored.iter().any(|stored| stored.snapshot == snapshot && stored.is_whole) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "not all of the snapshot is at {}'s owner yet: try again when it is (`helio volume snapshot list {}` shows where it is complete)",
                    volume.name, volume.name
                ),
            ));
        }
        let (origin, from) = (volume.id, self.this.id);
        let command = Command::CloneVolume { name, origin, snapshot, from, epoch, nonce: nonce() };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::VolumeCreated { volume } => Ok(volume),
            other => Err(out_of_turn(&other)),
        }
    }

    pub(super) async fn drop_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let found = snapshot_named(volume, snapshot)?;
        let command = Command::DeleteSnapshot { volume: volume.id, snapshot: found.id };
        self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop)
    }
}
