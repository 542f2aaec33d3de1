//! An owner's view of consensus, and that of who takes over: propose, and settle what became of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client_lib::geometry::COPIES_OF_VOLUME_MAX;
use client_lib::transport::BoxFuture;
use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, NodeId, SnapshotId, SnapshotName, VolumeGroupId, VolumeId};
use consensus::{Command, Made, MetaRaft, MetaState, Response, Volume};

use super::METADATA_DEADLINE;
use crate::ownership::driver::{
    HandoverProposal, OwnerNow, OwnershipLog, Proposed, RESOLVE_PAUSE, ReplicaChange, Resize, TakeoverProposal, is_gone,
};

/// [`OwnershipLog`] over the metadata group.
pub struct RaftOwnership {
    meta: MetaRaft,
    me: NodeId,
    incarnation: AtomicU64,
}

impl RaftOwnership {
    /// Proposes as node `me`, whose present process is `incarnation`.
    #[must_use]
    pub fn new(meta: MetaRaft, me: NodeId, incarnation: u64) -> RaftOwnership {
        RaftOwnership { meta, me, incarnation: AtomicU64::new(incarnation) }
    }

    /// This process's number: the newest it has seen, since its start may have been committed twice.
    fn incarnation(&self) -> u64 {
        let seen = self.meta.state().node(self.me).map_or(0, |node| node.incarnation);
        self.incarnation.fetch_max(seen, Ordering::AcqRel).max(seen)
    }

    async fn propose_handover(&self, handover: HandoverProposal) -> Proposed<()> {
        let HandoverProposal { group, to, members, mut enclosed, rescued } = handover;
        let (from, incarnation) = (self.me, self.incarnation());
        let command = match (rescued, members.first().copied()) {
            (Some(durable), Some(ended)) => {
                let enclosed = enclosed.remove(&ended.volume).unwrap_or_default();
                Command::Rescue { from, incarnation, to, ended, durable, enclosed }
            }
            _ => Command::HandOver { group, from, incarnation, to, members, enclosed },
        };
        match self.meta.propose(command, METADATA_DEADLINE).await {
            Ok(response) => match response.into_result_told(&self.meta.state()) {
                Ok(Response::GroupTransferred) => Proposed::Committed(()),
                Ok(other) => {
                    tracing::error!(?other, "a handover was answered out of turn");
                    Proposed::Unknown
                }
                Err(refusal) => Proposed::Refused(refusal),
            },
            Err(_) => Proposed::Unknown,
        }
    }

    async fn propose_group_snapshot(
        &self,
        group: VolumeGroupId,
        name: SnapshotName,
        members: Vec<(VolumeId, Epoch)>,
        nonce: u64,
    ) -> Result<SnapshotId, Error> {
        let (from, incarnation) = (self.me, self.incarnation());
        let command = Command::CreateGroupSnapshot { group, name, from, incarnation, members, nonce };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::SnapshotCreated { snapshot } => Ok(snapshot),
            other => Err(Error::new(ErrorKind::Internal, format!("metadata answered out of turn: {other:?}"))),
        }
    }

    async fn propose_takeover(&self, takeover: TakeoverProposal) -> Proposed<Epoch> {
        let TakeoverProposal { volume, from, epoch, start } = takeover;
        let command = Command::Takeover { volume, from, epoch, to: self.me, incarnation: self.incarnation(), start };
        match self.meta.propose(command, METADATA_DEADLINE).await {
            Ok(response) => match response.into_result_told(&self.meta.state()) {
                Ok(Response::TakenOver { epoch }) => Proposed::Committed(epoch),
                Ok(other) => {
                    tracing::error!(%volume, ?other, "a takeover was answered out of turn");
                    Proposed::Unknown
                }
                Err(refusal) => Proposed::Refused(refusal),
            },
            Err(_) => Proposed::Unknown,
        }
    }

    /// A new incarnation of this node makes everything proposed under the old one void, so what a read shows
    /// afterwards is final.
    async fn settle_volumes(&self, volumes: &[VolumeId]) -> Result<Vec<OwnerNow>, Error> {
        let response = self.meta.carry_out(Command::NodeStarted { node: self.me }, METADATA_DEADLINE).await?;
        if let Response::Started { incarnation } = response {
            self.incarnation.fetch_max(incarnation, Ordering::AcqRel);
        }
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        Ok(volumes.iter().map(|id| state.volume(*id).map(|volume| (volume.owner, volume.epoch))).collect())
    }

    /// Proposes `command`, of `volumes`. Where its answer is lost this waits until nothing that was proposed before can be committed
    /// after: it was committed if `is_so` of all of them then.
    async fn propose_settled(
        &self,
        command: Command,
        volumes: &[VolumeId],
        is_so: impl Fn(&Volume) -> bool + Send,
    ) -> Result<(), Error> {
        match self.meta.propose(command, METADATA_DEADLINE).await {
            Ok(response) => response.into_result_told(&self.meta.state()).map(drop),
            Err(error) => {
                loop {
                    match self.settle_volumes(volumes).await {
                        Ok(owners) if owners.contains(&None) => {
                            return Err(Error::new(ErrorKind::NotFound, "a volume was deleted meanwhile"));
                        }
                        Ok(_) => break,
                        Err(error) if is_gone(&error) => return Err(error),
                        Err(error) => {
                            tracing::warn!(?volumes, %error, "the outcome of a change is not known yet; the volumes wait for it");
                            tokio::time::sleep(RESOLVE_PAUSE).await;
                        }
                    }
                }
                let state = self.meta.state();
                if volumes.iter().all(|id| state.volume(*id).is_some_and(&is_so)) { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn propose_replicas(&self, change: ReplicaChange) -> Result<(), Error> {
        let ReplicaChange { members, add, remove } = change;
        let volumes: Vec<VolumeId> = members.iter().map(|(volume, _)| *volume).collect();
        let (from, incarnation, adds, removes) = (self.me, self.incarnation(), add.clone(), remove.clone());
        // All must know the first, and all know the second.
        let command = match add.is_empty() && volumes.iter().any(|id| stays_too_wide(&self.meta.state(), *id, &remove))
        {
            true => Command::GiveUpReplicas { members, from, incarnation, remove: removes },
            false => Command::ChangeReplicas { members, from, incarnation, add: adds, remove: removes },
        };
        let is_so = |volume: &Volume| volume.replicas.is_superset(&add) && volume.replicas.is_disjoint(&remove);
        self.propose_settled(command, &volumes, is_so).await
    }

    async fn propose_resize(&self, resize: Resize) -> Result<(), Error> {
        let Resize { volume, epoch, expected, size } = resize;
        let incarnation = self.incarnation();
        let command = Command::ResizeVolume { volume, from: self.me, incarnation, epoch, expected, size };
        self.propose_settled(command, &[volume], |volume| volume.size == size).await
    }
}

/// Whether a volume has more copies than one may have, also without those at `remove`: an older program made it so.
pub(super) fn stays_too_wide(state: &MetaState, volume: VolumeId, remove: &BTreeSet<NodeId>) -> bool {
    let copies = |volume: &Volume| volume.replicas.difference(remove).count() + 1;
    state.volume(volume).is_some_and(|volume| copies(volume) > COPIES_OF_VOLUME_MAX)
}

impl OwnershipLog for RaftOwnership {
    fn hand_over(&self, handover: HandoverProposal) -> BoxFuture<'_, Proposed<()>> {
        Box::pin(self.propose_handover(handover))
    }

    fn enclosure_taken(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::EnclosureTaken { volume, epoch };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn expire(&self, node: NodeId, renewals: u64) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::ExpireLease { node, renewals };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn step_down(&self, volumes: Vec<(VolumeId, Epoch)>) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::StepDown { node: self.me, incarnation: self.incarnation(), volumes };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn take_over(&self, takeover: TakeoverProposal) -> BoxFuture<'_, Proposed<Epoch>> {
        Box::pin(self.propose_takeover(takeover))
    }

    fn states(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.subscribe()
    }

    fn settle(&self, volumes: Vec<VolumeId>) -> BoxFuture<'_, Result<Vec<OwnerNow>, Error>> {
        Box::pin(async move { self.settle_volumes(&volumes).await })
    }

    fn snapshot_group(
        &self,
        group: VolumeGroupId,
        name: SnapshotName,
        members: Vec<(VolumeId, Epoch)>,
        nonce: u64,
    ) -> BoxFuture<'_, Result<SnapshotId, Error>> {
        Box::pin(self.propose_group_snapshot(group, name, members, nonce))
    }

    fn group_snapshot_made(
        &self,
        snapshot: SnapshotId,
        made: Vec<(VolumeId, Epoch, Made)>,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::GroupSnapshotMade { snapshot, from: self.me, made };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn drop_unmade(&self, snapshots: Vec<(VolumeId, SnapshotId)>) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::DeleteSnapshots { snapshots, if_unmade: true };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn resize(&self, resize: Resize) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.propose_resize(resize))
    }

    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.propose_replicas(change))
    }

    fn snapshot_made(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        snapshot: SnapshotId,
        made: Made,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::SnapshotMade { volume, snapshot, from: self.me, epoch, made };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }

    fn clone_made(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        let command = Command::CloneMade { volume, from: self.me, epoch };
        Box::pin(async { self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop) })
    }
}
