//! What administrators ask of this node: answered from metadata, from the shard, or by the volume's owner.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::{BoxFuture, Class};
use client_lib::wire::admin::{
    AskTakeover, CloneSnapshot, ClusterStatus, CreateSnapshot, CreateVolume, MemberStatus, Migrate, MigrateReport,
    NbdAddresses, NodeSpace, OwnerStatus, Rejoin, ReplicaStatus, Resize, RollBack, ScrubStatus, SnapshotStatus,
    TailStatus, TakeoverProgress, TakeoverReport, VolumePolicy, VolumeStatus, VolumeSummary,
};
use client_lib::{
    BLOCK_SIZE, Error, ErrorKind, NodeId, NodeName, SnapshotId, SnapshotName, VolumeId, VolumeName, VolumeSize,
};
use consensus::{Command, MetaRaft, MetaState, Response, Snapshot, Volume};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::reconcile::Reconciler;
use super::takeover::{Takeovers, tail_status};
use super::{METADATA_DEADLINE, ThisNode, WanBytes};
use crate::ownership::driver::{Driver, OwnershipLog};
use crate::ownership::expiry::LeaseWatch;
use crate::ownership::gate::Phase;
use crate::peer::client::{PeerClient, unexpected};
use crate::peer::message::{AdminForward, Message, PeerReply, PeerRequest, ReplicaPosition};
use crate::peer::server::ForwardedAdmin;
use crate::serve::admin::Admin;
use crate::serve::resize::InForce;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::serve::volumes::Volumes;
use crate::shard::scrub::ScrubAction;
use crate::{ownership, size};

mod scrub;
mod space;

/// How long a new volume may take to be served at its owner before `create` says so.
const CREATE_PATIENCE: Duration = Duration::from_secs(10);

/// How long an administrative request waits for the owner to be known, across a handover under way.
const OWNER_PATIENCE: Duration = Duration::from_secs(20);

/// How long a size may take to be in force at the owner before `resize` says so: dropping much data takes its time.
/// Shorter than the patience of the command line.
const SIZE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a snapshot may take to be made before `create` says that it goes on by itself.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a member may take to answer before `cluster status` calls it out of reach.
const REACH_PATIENCE: Duration = Duration::from_secs(2);

/// The node's administrative face.
pub struct NodeAdmin {
    pub(super) this: ThisNode,
    wan_bytes: Option<WanBytes>,
    pub(super) meta: MetaRaft,
    pub(super) volumes: Arc<Volumes>,
    reconciler: Arc<Reconciler>,
    peers: PeerClient,
    pub(super) ownership: Arc<dyn OwnershipLog>,
    /// Volumes that are being handed over, taken over or resized by this node.
    pub(super) busy: Arc<Mutex<BTreeSet<VolumeId>>>,
    pub(super) takeovers: Takeovers,
    /// Set once NBD listens, which is after everything that it serves.
    nbd: OnceLock<NbdAddresses>,
}

impl NodeAdmin {
    /// The face of `this` node.
    #[must_use]
    pub fn new(
        this: ThisNode,
        wan_bytes: Option<WanBytes>,
        meta: MetaRaft,
        volumes: Arc<Volumes>,
        reconciler: Arc<Reconciler>,
        peers: PeerClient,
        ownership: Arc<dyn OwnershipLog>,
    ) -> NodeAdmin {
        let (busy, nbd, takeovers) = (Arc::default(), OnceLock::new(), Takeovers::default());
        NodeAdmin { this, wan_bytes, meta, volumes, reconciler, peers, ownership, busy, takeovers, nbd }
    }

    /// The watch on other nodes' leases that takeovers count by.
    #[must_use]
    pub fn leases(&self) -> Arc<LeaseWatch> {
        self.takeovers.leases.clone()
    }

    /// NBD listens here from now on; the first call counts.
    pub fn nbd_listens(&self, addresses: NbdAddresses) {
        // Nothing changes an address while the node runs.
        let _ = self.nbd.set(addresses);
    }

    async fn create(&self, request: CreateVolume) -> Result<VolumeStatus, Error> {
        let name: VolumeName = request.name.parse()?;
        let size = VolumeSize::try_from(request.size_bytes)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let owner = match &request.owner {
            Some(owner) => node_named(&state, owner)?,
            None => self.this.id,
        };
        let replicas: BTreeSet<NodeId> = match &request.replicas {
            Some(names) => names.iter().map(|name| node_named(&state, name)).collect::<Result<_, _>>()?,
            None => state.nodes().map(|node| node.id).collect(),
        };
        let replicas = replicas.into_iter().filter(|replica| *replica != owner).collect();
        let command = Command::CreateVolume { name: name.clone(), size, owner, replicas, nonce: nonce() };
        match self.meta.propose(command, METADATA_DEADLINE).await?.into_result()? {
            Response::VolumeCreated { volume } => self.created(volume).await,
            other => Err(out_of_turn(&other)),
        }
    }

    /// Waits until the owner serves the new volume, so that a client may connect at once.
    async fn created(&self, id: VolumeId) -> Result<VolumeStatus, Error> {
        let ready = async {
            loop {
                match self.status_of(id).await {
                    Ok(status) => return Ok(status),
                    Err(error) if error.kind() == ErrorKind::Unavailable || error.kind() == ErrorKind::Busy => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(CREATE_PATIENCE, ready).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "the volume was created, but its owner does not serve it yet: is that node up? `helio cluster status` tells",
            ))
        })
    }

    async fn list(&self) -> Result<Vec<VolumeSummary>, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        Ok(state
            .volumes()
            .map(|volume| VolumeSummary {
                name: volume.name.to_string(),
                size_bytes: volume.size.bytes(),
                owner: name_of(&state, volume.owner),
                epoch: volume.epoch.0,
                replicas: volume.replicas.iter().map(|replica| name_of(&state, *replica)).collect(),
            })
            .collect())
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        self.meta.propose(Command::DeleteVolume { volume }, METADATA_DEADLINE).await?.into_result().map(drop)
    }

    async fn status_of(&self, id: VolumeId) -> Result<VolumeStatus, Error> {
        self.at_owner(id, AdminForward::Status { volume: id }, |served| self.status_here(served)).await
    }

    async fn migrate_to(&self, name: &str, to: &str) -> Result<MigrateReport, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let to = node_named(&state, to)?;
        if volume.owner != to && !volume.replicas.contains(&to) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "node {} holds no replica of volume {name}; its replicas are at {}",
                    name_of(&state, to),
                    volume.replicas.iter().map(|node| name_of(&state, *node)).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        let forward = AdminForward::Migrate { volume: volume.id, to };
        self.at_owner(volume.id, forward, |served| self.migrate_here(served, to)).await
    }

    /// Carries out `here` if this node owns the volume, else asks the owner for `forward`; follows the volume
    /// when it moves meanwhile.
    async fn at_owner<T, F, R>(&self, id: VolumeId, forward: AdminForward, here: F) -> Result<T, Error>
    where
        T: DeserializeOwned,
        F: Fn(Arc<ServedVolume>) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        self.require_no_trouble(id)?;
        let served = self.volumes.arrival(id, OWNER_PATIENCE).await.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("this node cannot serve volume {id}; its log says why"))
        })?;
        let view =
            tokio::time::timeout(OWNER_PATIENCE, served.gate.settled(client_lib::Epoch(0))).await.map_err(|_| {
                Error::new(
                    ErrorKind::Busy,
                    format!("volume {} has been changing its owner for {OWNER_PATIENCE:?}", served.name),
                )
            })??;
        if view.phase == Phase::Owner {
            return here(served).await;
        }
        self.ask(view.owner, forward).await
    }

    /// Says at once why this node, which should own the volume, does not serve it, if so.
    fn require_no_trouble(&self, id: VolumeId) -> Result<(), Error> {
        let owned = self.meta.state().volume(id).is_some_and(|volume| volume.owner == self.this.id);
        match self.volumes.trouble(id).filter(|_| owned) {
            Some(trouble) => Err(Error::new(trouble.kind(), format!("node {}: {trouble}", self.this.name))),
            None => Ok(()),
        }
    }

    /// Carries out `here` if `node` is this one, or none is named; else asks that node for `forward`.
    async fn at_node<T, R>(
        &self,
        node: Option<&str>,
        forward: AdminForward,
        here: impl FnOnce() -> R,
    ) -> Result<T, Error>
    where
        T: DeserializeOwned,
        R: Future<Output = Result<T, Error>>,
    {
        let node = match node {
            Some(name) => node_named(&self.meta.state(), name)?,
            None => self.this.id,
        };
        if node == self.this.id { here().await } else { self.ask(node, forward).await }
    }

    /// Asks another node.
    pub(super) async fn ask<T: DeserializeOwned>(&self, node: NodeId, request: AdminForward) -> Result<T, Error> {
        match self.peers.ask(node, Class::Control, PeerRequest::Admin { request }, Bytes::new()).await? {
            Message { head: PeerReply::Admin(json), .. } => serde_json::from_str(&json).map_err(|error| {
                Error::new(ErrorKind::Internal, format!("the answer of node {node} cannot be read")).caused_by(error)
            }),
            message => Err(unexpected(node, &message.head)),
        }
    }

    async fn status_here(&self, volume: Arc<ServedVolume>) -> Result<VolumeStatus, Error> {
        let state = self.meta.state();
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
        let progress = self.reconciler.watermarks(volume.id).map(|marks| (marks.now(), marks.snapshot()));
        let mut replicas = Vec::with_capacity(meta.replicas.len());
        for replica in &meta.replicas {
            let (now, seen) = match &progress {
                Some((now, all)) => (*now, all.get(replica).cloned().unwrap_or_default()),
                None => Default::default(),
            };
            // What was written since the replica's last word counts too.
            let changed = volume.shard.changed_blocks(volume.id, seen.position.watermark).await;
            replicas.push(ReplicaStatus {
                node: name_of(&state, *replica),
                provider: state.node(*replica).map(|node| node.provider.to_string()).unwrap_or_default(),
                watermark: seen.position.watermark.to_string(),
                known: seen.position.known.to_string(),
                bytes_behind: changed.map_err(store_failure)? * u64::from(BLOCK_SIZE),
                seconds_behind: seen.behind_for(now).as_secs_f64(),
                stale_bytes: seen.position.stale_blocks * u64::from(BLOCK_SIZE),
                reachable: seen.reachable,
                tail: seen.tail.map(|tail| tail_status(&state, meta, *replica, tail)),
                error: seen.error,
            });
        }
        let source_needed =
            if report.stale_blocks > 0 { meta.source.map(|source| name_of(&state, source)) } else { None };
        Ok(VolumeStatus {
            name: meta.name.to_string(),
            id: meta.id.0,
            size_bytes: meta.size.bytes(),
            owner: name_of(&state, meta.owner),
            epoch: meta.epoch.0,
            head: report.head.to_string(),
            mapped_bytes: report.mapped_blocks * u64::from(BLOCK_SIZE),
            stale_bytes: report.stale_blocks * u64::from(BLOCK_SIZE),
            replicas,
            source_needed,
            damaged_blocks: report.damaged_blocks,
            repaired_blocks: report.repaired_blocks,
            verified_blocks: report.verified_blocks,
            fault: report.fault,
            space: self.volume_space(&volume).await?,
        })
    }

    async fn migrate_here(&self, volume: Arc<ServedVolume>, to: NodeId) -> Result<MigrateReport, Error> {
        let view = volume.gate.view();
        if to == self.this.id {
            // Already there: a repeated request is a success that took no time.
            return Ok(MigrateReport { handover_ms: 0.0, epoch: view.epoch.0, stale_bytes_at_handover: 0 });
        }
        let busy = Busy::begin(self.busy.clone(), &volume)?;
        let driver = Driver::new(volume.clone(), to, view.epoch, self.ownership.clone(), CancellationToken::new());
        // A task of its own: it goes on, and stays marked, when the one who asked stops waiting.
        let task = tokio::spawn(async move {
            let _busy = busy;
            driver.run().await
        });
        let report = task
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, "the handover ended early").caused_by(error))??;
        tracing::info!(volume = %volume.name, epoch = %report.epoch, to = %to, held = ?report.held, stale_bytes = report.stale_bytes, "handed over");
        Ok(MigrateReport {
            handover_ms: report.held.as_secs_f64() * 1000.0,
            epoch: report.epoch.0,
            stale_bytes_at_handover: report.stale_bytes,
        })
    }

    async fn resize_to(&self, name: &str, request: Resize) -> Result<VolumeStatus, Error> {
        let size = VolumeSize::try_from(request.size_bytes)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        let forward = AdminForward::Resize { volume, size, shrink: request.shrink };
        self.at_owner(volume, forward, |served| self.resize_here(served, size, request.shrink)).await
    }

    async fn resize_here(
        &self,
        volume: Arc<ServedVolume>,
        size: VolumeSize,
        shrink: bool,
    ) -> Result<VolumeStatus, Error> {
        let busy = Busy::begin(self.busy.clone(), &volume)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        if meta.owner != self.this.id {
            return Err(moved(volume.id));
        }
        if size < meta.size && !shrink {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "volume {} has {}; a smaller size drops all data beyond its end for good: add --shrink if that is meant",
                    volume.name,
                    size::human(meta.size.bytes())
                ),
            ));
        }
        // Another size may be wanted only when the last one is carried out: what was dropped must stay dropped.
        let (epoch, expected) = (meta.epoch, meta.size);
        in_force(&volume, InForce { size: expected, epoch }).await?;
        if size != expected {
            let (ownership, id) = (self.ownership.clone(), volume.id);
            // A task of its own, which stays marked: its outcome must be known before another one is proposed.
            let proposed = tokio::spawn(async move {
                let _busy = busy;
                ownership.resize(ownership::driver::Resize { volume: id, epoch, expected, size }).await
            });
            proposed
                .await
                .map_err(|error| Error::new(ErrorKind::Internal, "the resize ended early").caused_by(error))??;
            tracing::info!(volume = %volume.name, %epoch, from = expected.bytes(), to = size.bytes(), "resized");
            in_force(&volume, InForce { size, epoch }).await?;
        }
        self.status_here(volume).await
    }

    async fn take_snapshot(&self, name: &str, request: CreateSnapshot) -> Result<SnapshotStatus, Error> {
        let snapshot_name: SnapshotName = request.name.parse()?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        let command = Command::CreateSnapshot { volume, name: snapshot_name.clone(), nonce: nonce() };
        let id = match self.meta.propose(command, METADATA_DEADLINE).await?.into_result()? {
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

    async fn list_snapshots(&self, name: &str) -> Result<Vec<SnapshotStatus>, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        let forward = AdminForward::Snapshots { volume };
        self.at_owner(volume, forward, |served| self.snapshots_here(served)).await
    }

    async fn snapshots_here(&self, volume: Arc<ServedVolume>) -> Result<Vec<SnapshotStatus>, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
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
                    .map(|node| name_of(&state, node))
                    .collect(),
            }
        };
        Ok(meta.snapshots.iter().map(status).collect())
    }

    async fn go_back(&self, name: &str, snapshot: &str, request: RollBack) -> Result<VolumeStatus, Error> {
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

    async fn roll_back_here(&self, volume: Arc<ServedVolume>, snapshot: SnapshotId) -> Result<VolumeStatus, Error> {
        let lsn = volume.shard.roll_back(volume.id, snapshot).await.map_err(store_failure)?;
        tracing::info!(volume = %volume.name, %snapshot, %lsn, "rolled back to a snapshot");
        self.status_here(volume).await
    }

    async fn make_clone(&self, name: &str, snapshot: &str, request: CloneSnapshot) -> Result<VolumeStatus, Error> {
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
    async fn clone_here(
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
        match self.meta.propose(command, METADATA_DEADLINE).await?.into_result()? {
            Response::VolumeCreated { volume } => Ok(volume),
            other => Err(out_of_turn(&other)),
        }
    }

    async fn drop_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let found = snapshot_named(volume, snapshot)?;
        let command = Command::DeleteSnapshot { volume: volume.id, snapshot: found.id };
        self.meta.propose(command, METADATA_DEADLINE).await?.into_result().map(drop)
    }

    /// Whether `node` answers, now.
    pub(super) async fn reach(&self, node: NodeId) -> bool {
        let ping = self.peers.ask(node, Class::Control, PeerRequest::Ping, Bytes::new());
        node == self.this.id || tokio::time::timeout(REACH_PATIENCE, ping).await.is_ok_and(|answer| answer.is_ok())
    }

    async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let state = self.meta.state();
        let (leader, voters) = (self.meta.leader(), self.meta.voters());
        let reached = join_all(state.nodes().map(|node| self.reach(node.id))).await;
        let members = state
            .nodes()
            .zip(reached)
            .map(|(node, reachable)| {
                let rtt = self.peers.transport().rtt(node.id).filter(|_| reachable);
                MemberStatus {
                    id: node.id.0,
                    name: node.name.to_string(),
                    provider: node.provider.to_string(),
                    address: node.address.clone(),
                    voter: voters.contains(&node.id),
                    leader: leader == Some(node.id),
                    reachable,
                    rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                }
            })
            .collect();
        let wan_bytes = self.wan_bytes.as_ref().map_or(0, |bytes| (bytes.0)());
        let nbd = self.nbd.get().cloned().unwrap_or_default();
        Ok(ClusterStatus { node: self.this.name.to_string(), nbd, term: self.meta.term(), members, wan_bytes })
    }
}

/// Marks a volume as being handed over, taken over or resized; another such request meanwhile is refused.
pub(super) struct Busy {
    busy: Arc<Mutex<BTreeSet<VolumeId>>>,
    volume: VolumeId,
}

impl Busy {
    pub(super) fn begin(busy: Arc<Mutex<BTreeSet<VolumeId>>>, volume: &ServedVolume) -> Result<Busy, Error> {
        if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(volume.id) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume {} is being handed over, taken over or resized already; wait for that to end",
                    volume.name
                ),
            ));
        }
        Ok(Busy { busy, volume: volume.id })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}

impl Admin for NodeAdmin {
    fn create_volume(&self, request: CreateVolume) -> BoxFuture<'_, Result<VolumeStatus, Error>> {
        Box::pin(self.create(request))
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<VolumeSummary>, Error>> {
        Box::pin(self.list())
    }

    fn volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumeStatus, Error>> {
        Box::pin(async move {
            let state = self.meta.linearizable(METADATA_DEADLINE).await?;
            let volume = volume_named(&state, name)?;
            let status = self.status_of(volume.id).await;
            status.map_err(|error| match error.kind() {
                ErrorKind::Unavailable => Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the owner of volume {name}, node {}, does not answer; if it is lost, `helio volume takeover {name}` \
                         gives the volume to a replica",
                        name_of(&state, volume.owner)
                    ),
                )
                .caused_by(error),
                _ => error,
            })
        })
    }

    fn migrate<'a>(&'a self, name: &'a str, request: Migrate) -> BoxFuture<'a, Result<MigrateReport, Error>> {
        Box::pin(async move { self.migrate_to(name, &request.to).await })
    }

    fn take_over<'a>(&'a self, name: &'a str, request: AskTakeover) -> BoxFuture<'a, Result<TakeoverReport, Error>> {
        Box::pin(self.take_over_volume(name, request))
    }

    fn takeover<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<TakeoverProgress, Error>> {
        Box::pin(async move { self.takeovers.progress(name) })
    }

    fn rejoin<'a>(&'a self, name: &'a str, request: Rejoin) -> BoxFuture<'a, Result<TailStatus, Error>> {
        Box::pin(self.rejoin_node(name, request))
    }

    fn owner<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<OwnerStatus, Error>> {
        Box::pin(self.owner_of(name))
    }

    fn policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumePolicy, Error>> {
        Box::pin(self.policy_of(name))
    }

    fn set_policy<'a>(&'a self, name: &'a str, wanted: VolumePolicy) -> BoxFuture<'a, Result<VolumePolicy, Error>> {
        Box::pin(self.set_policy_of(name, wanted))
    }

    fn resize<'a>(&'a self, name: &'a str, request: Resize) -> BoxFuture<'a, Result<VolumeStatus, Error>> {
        Box::pin(self.resize_to(name, request))
    }

    fn create_snapshot<'a>(
        &'a self,
        name: &'a str,
        request: CreateSnapshot,
    ) -> BoxFuture<'a, Result<SnapshotStatus, Error>> {
        Box::pin(self.take_snapshot(name, request))
    }

    fn snapshots<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<SnapshotStatus>, Error>> {
        Box::pin(self.list_snapshots(name))
    }

    fn delete_snapshot<'a>(&'a self, name: &'a str, snapshot: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.drop_snapshot(name, snapshot))
    }

    fn roll_back<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
        request: RollBack,
    ) -> BoxFuture<'a, Result<VolumeStatus, Error>> {
        Box::pin(self.go_back(name, snapshot, request))
    }

    fn clone_snapshot<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
        request: CloneSnapshot,
    ) -> BoxFuture<'a, Result<VolumeStatus, Error>> {
        Box::pin(self.make_clone(name, snapshot, request))
    }

    fn delete_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.delete(name))
    }

    fn space<'a>(&'a self, node: Option<&'a str>) -> BoxFuture<'a, Result<NodeSpace, Error>> {
        Box::pin(self.at_node(node, AdminForward::Space, || self.space_here()))
    }

    fn scrub<'a>(
        &'a self,
        action: ScrubAction,
        volume: Option<&'a str>,
        node: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScrubStatus, Error>> {
        Box::pin(self.scrub_at(action, volume, node))
    }

    fn cluster(&self) -> BoxFuture<'_, Result<ClusterStatus, Error>> {
        Box::pin(self.cluster_status())
    }
}

impl ForwardedAdmin for NodeAdmin {
    fn forwarded(&self, request: AdminForward) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async move {
            match request {
                AdminForward::Status { volume } => json(&self.status_here(self.owned(volume).await?).await?),
                AdminForward::Migrate { volume, to } => json(&self.migrate_here(self.owned(volume).await?, to).await?),
                AdminForward::Scrub { action, volume } => json(&self.scrub_here(action, volume).await?),
                AdminForward::Space => json(&self.space_here().await?),
                AdminForward::Snapshots { volume } => json(&self.snapshots_here(self.owned(volume).await?).await?),
                AdminForward::Clone { volume, snapshot, name } => {
                    json(&self.clone_here(self.owned(volume).await?, snapshot, name).await?)
                }
                AdminForward::RollBack { volume, snapshot } => {
                    json(&self.roll_back_here(self.owned(volume).await?, snapshot).await?)
                }
                AdminForward::Resize { volume, size, shrink } => {
                    json(&self.resize_here(self.owned(volume).await?, size, shrink).await?)
                }
                AdminForward::Holding { volume } => json(&self.holding_here(volume).await?),
                AdminForward::Takeover { volume, from, epoch } => json(&self.take_over_here(volume, from, epoch)?),
                AdminForward::TakeoverState { volume, epoch } => json(&self.takeovers.state(volume, epoch)?),
                AdminForward::Rejoin { volume } => json(&self.rejoin_here(volume).await?),
            }
        })
    }
}

impl NodeAdmin {
    /// The volume, if this node owns it; never passes the request on again.
    async fn owned(&self, id: VolumeId) -> Result<Arc<ServedVolume>, Error> {
        self.require_no_trouble(id)?;
        let volume = self.volumes.get(id).ok_or_else(|| moved(id))?;
        let view = volume.gate.settled(client_lib::Epoch(0)).await?;
        if view.phase == Phase::Owner { Ok(volume) } else { Err(moved(id)) }
    }
}

/// Waits until the owner has carried out a size.
async fn in_force(volume: &ServedVolume, wanted: InForce) -> Result<(), Error> {
    if volume.sizes.reaches(wanted, SIZE_PATIENCE).await {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "volume {} is to have {}, and its owner has not carried that out yet (its log says why); it goes on trying",
            volume.name,
            size::human(wanted.size.bytes())
        ),
    ))
}

fn moved(id: VolumeId) -> Error {
    Error::new(ErrorKind::Unavailable, format!("volume {id} is not owned here (any more or yet); try again"))
}

fn deleted(volume: &ServedVolume) -> Error {
    Error::new(ErrorKind::NotFound, format!("volume {} was deleted", volume.name))
}

fn json<T: serde::Serialize>(answer: &T) -> Result<String, Error> {
    serde_json::to_string(answer)
        .map_err(|error| Error::new(ErrorKind::Internal, "an answer cannot be encoded").caused_by(error))
}

pub(super) fn volume_named<'a>(state: &'a MetaState, name: &str) -> Result<&'a Volume, Error> {
    state.volumes().find(|volume| volume.name.as_str() == name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no volume {name:?}; `helio volume list` shows those that exist"),
        )
    })
}

fn snapshot_named<'a>(volume: &'a Volume, snapshot: &str) -> Result<&'a Snapshot, Error> {
    volume.snapshot_named(snapshot).ok_or_else(|| {
        let name = &volume.name;
        Error::new(
            ErrorKind::NotFound,
            format!(
                "volume {name} has no snapshot {snapshot:?}; `helio volume snapshot list {name}` shows those it has"
            ),
        )
    })
}

pub(super) fn node_named(state: &MetaState, name: &str) -> Result<NodeId, Error> {
    let known = || state.nodes().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
    let wanted: NodeName = name.parse()?;
    state
        .nodes()
        .find(|node| node.name == wanted)
        .map(|node| node.id)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node {name:?}; the nodes are {}", known())))
}

pub(super) fn name_of(state: &MetaState, node: NodeId) -> String {
    state.node(node).map_or_else(|| format!("#{node}"), |node| node.name.to_string())
}

pub(super) fn out_of_turn(response: &Response) -> Error {
    Error::new(ErrorKind::Internal, format!("metadata answered out of turn: {response:?}"))
}

/// A number that no other creation has, so that a repeated proposal is known as such.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
