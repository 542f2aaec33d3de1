//! What administrators ask of this node: answered from metadata, from the shard, or by the volume's owner.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use client_lib::cipher::VolumeKeys;
use client_lib::clock::Clock;
use client_lib::pki::{CertificateHolder, Fingerprint};
use client_lib::rights::Role;
use client_lib::transport::{BoxFuture, Class};
use client_lib::wire::admin::{
    AccessReport, AddVolumeKey, AskTakeover, AuditList, CancelledMigrate, ChangeGroup, ChangeLabels, ChangeLink,
    ChangePlacement, ChangePolicy, ChangeReplicas, ChangeRights, ClientList, CloneSnapshot, ClusterStatus, CreateGroup,
    CreateSnapshot, CreateVolume, GroupMigrateReport, GroupSnapshot, GroupSnapshotReport, GroupStatus, LinkList,
    LinkStatus, Migrate, MigrateReport, NbdAddresses, NodeLabels, NodeList, NodeRemoval, NodeSpace, NoteClient,
    OnWrite, OnWriteStatus, Overview, OverviewQuery, OwnerStatus, OwnershipTimeline, PlacementStatus, Rejoin,
    RemoveNode, ReplicasReport, ResidencyMap, Resize, RevokeClient, RollBack, ScrubStatus, SnapshotStatus, TailStatus,
    TakeoverProgress, TakeoverReport, TraceReport, VolumePolicy, VolumeStatus, VolumeSummary,
};
use client_lib::{ClientName, Error, ErrorKind, NodeId, VolumeId};
use consensus::{MetaRaft, Response};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::placement::Failures;
use super::reconcile::Reconciler;
use super::takeover::Takeovers;
use super::{METADATA_DEADLINE, ThisNode, WanBytes};
use crate::ownership::changes::Changes;
use crate::ownership::chronicle::Chronicle;
use crate::ownership::driver::OwnershipLog;
use crate::ownership::expiry::LeaseWatch;
use crate::ownership::gate::Phase;
use crate::peer::client::{CALL_DEADLINE, PeerClient};
use crate::peer::message::{AdminForward, Message, PeerReply, PeerRequest};
use crate::peer::server::ForwardedAdmin;
use crate::serve::admin::{Admin, AskTrace};
use crate::serve::audit::AuditLog;
use crate::serve::volume::ServedVolume;
use crate::serve::volumes::Volumes;
use crate::shard::scrub::ScrubAction;

mod audit;
mod clients;
mod cluster;
pub(super) mod durability;
mod elsewhere;
mod groups;
mod handover;
mod keys;
mod links;
mod members;
mod names;
mod outcome;
mod overview;
mod placement;
mod recall;
mod removal;
pub(super) mod replicas;
mod residency;
mod resize;
mod scrub;
mod snapshots;
mod space;
mod timeline;
mod trace;
mod volumes;

pub(crate) use handover::GOES_ON;
pub(super) use handover::{Busy, require_class};
use handover::{BusyVolumes, How};
pub(super) use members::Standing;
pub(super) use names::{node_named, replicas_told, volume_named};
use overview::Glances;
use recall::LastMiss;
use replicas::Floor;

/// How long an administrative request waits for the owner to be known, across a handover under way.
const OWNER_PATIENCE: Duration = Duration::from_secs(20);
/// Before a node is asked again that does not own a volume, and will soon.
const MOVED_PAUSE: Duration = Duration::from_millis(50);

/// The node's administrative face.
pub struct NodeAdmin {
    pub(super) this: ThisNode,
    standing: Standing,
    wan_bytes: Option<WanBytes>,
    pub(super) meta: MetaRaft,
    pub(super) volumes: Arc<Volumes>,
    pub(super) reconciler: Arc<Reconciler>,
    pub(super) peers: PeerClient,
    pub(super) ownership: Arc<dyn OwnershipLog>,
    /// Volumes that are being handed over, taken over or resized by this node.
    pub(super) busy: BusyVolumes,
    pub(super) takeovers: Takeovers,
    pub(super) placing: Failures,
    /// The changes of owner that this node carried out.
    pub(super) chronicle: Chronicle,
    /// What owners told of their volumes.
    glances: Arc<Glances>,
    last_miss: LastMiss,
    /// For what goes on when whoever asked has gone.
    itself: Weak<NodeAdmin>,
    /// Counts what became of handovers and takeovers.
    pub(super) changes: Arc<Changes>,
    /// Set once NBD listens, which is after everything that it serves.
    nbd: OnceLock<NbdAddresses>,
    /// Set where there is a data directory to keep it in.
    audit: OnceLock<Arc<AuditLog>>,
}

impl NodeAdmin {
    /// The face of `this` node; leases are counted by `clock`, which goes on while the machine sleeps.
    #[must_use]
    pub fn new(
        this: ThisNode,
        clock: Arc<dyn Clock>,
        meta: MetaRaft,
        volumes: Arc<Volumes>,
        reconciler: Arc<Reconciler>,
        peers: PeerClient,
        ownership: Arc<dyn OwnershipLog>,
    ) -> NodeAdmin {
        let (busy, nbd, audit, takeovers) = (Arc::default(), OnceLock::new(), OnceLock::new(), Takeovers::new(clock));
        let (chronicle, changes, glances) = (Chronicle::default(), Arc::default(), Arc::default());
        NodeAdmin {
            this,
            standing: Standing::default(),
            wan_bytes: None,
            meta,
            volumes,
            reconciler,
            peers,
            ownership,
            busy,
            takeovers,
            placing: Failures::default(),
            chronicle,
            changes,
            glances,
            last_miss: LastMiss::default(),
            itself: Weak::new(),
            nbd,
            audit,
        }
    }

    /// The same, which also tells what crosses the WAN emulator.
    #[must_use]
    pub fn counting(self, wan_bytes: Option<WanBytes>) -> NodeAdmin {
        NodeAdmin { wan_bytes, ..self }
    }

    /// The same of a node that stands so.
    #[must_use]
    pub(super) fn standing(self, standing: Standing) -> NodeAdmin {
        NodeAdmin { standing, ..self }
    }

    /// The same, shared.
    #[must_use]
    pub(super) fn shared(self) -> Arc<NodeAdmin> {
        Arc::new_cyclic(|itself| NodeAdmin { itself: itself.clone(), ..self })
    }

    /// What is counted of handovers and takeovers.
    #[must_use]
    pub fn changes(&self) -> Arc<Changes> {
        self.changes.clone()
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

    /// What is asked of this node is noted here; the first call counts.
    pub fn notes_acts_in(&self, audit: Arc<AuditLog>) {
        // There is one data directory.
        let _ = self.audit.set(audit);
    }

    /// Carries out `here` if this node owns the volume, else asks the owner for `forward`; follows the volume
    /// when it moves meanwhile.
    async fn at_owner<T, F, R>(&self, id: VolumeId, forward: AdminForward, here: F) -> Result<T, Error>
    where
        T: DeserializeOwned,
        F: Fn(Arc<ServedVolume>) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        self.require_no_trouble(id)
            .map_err(|trouble| Error::new(trouble.kind(), format!("node {}: {trouble}", self.this.name)))?;
        let served = self.volumes.arrival(id, OWNER_PATIENCE).await.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("this node cannot serve volume {id}; its log says why"))
        })?;
        let end = Instant::now() + OWNER_PATIENCE;
        loop {
            let settled = tokio::time::timeout_at(end, served.gate.settled(client_lib::Epoch(0))).await;
            let view = settled.map_err(|_| {
                Error::new(
                    ErrorKind::Busy,
                    format!("volume {} has been changing its owner for {OWNER_PATIENCE:?}", served.name),
                )
            })??;
            if view.phase == Phase::Owner {
                return here(served).await;
            }
            match self.ask(view.owner, forward.clone()).await {
                // It has given the volume away, or is yet to hear that it was given it.
                Err(error) if error.kind() == ErrorKind::NotOwner && Instant::now() < end => {
                    served.gate.changed_from(view, MOVED_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Says at once why this node, which should own the volume, does not serve it, if so; whoever asks another one says which that is.
    fn require_no_trouble(&self, id: VolumeId) -> Result<(), Error> {
        let owned = self.meta.state().volume(id).is_some_and(|volume| volume.owner == self.this.id);
        match self.volumes.trouble(id).filter(|_| owned) {
            Some(trouble) => Err(trouble),
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
        ask(&self.peers, node, request).await
    }
}

/// Has `node` carry out `request`.
pub(super) async fn ask<T: DeserializeOwned>(
    peers: &PeerClient,
    node: NodeId,
    request: AdminForward,
) -> Result<T, Error> {
    let deadline = call_deadline(&request);
    match peers.ask_within(node, Class::Control, PeerRequest::Admin { request }, Bytes::new(), deadline).await? {
        Message { head: PeerReply::Admin(json), .. } => serde_json::from_str(&json).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the answer of node {} cannot be read", peers.name(node)))
                .caused_by(error)
        }),
        message => Err(peers.unexpected(node, &message.head)),
    }
}

/// How long another node may take to answer what it is asked to carry out: longer than it waits for something itself, so that what comes of it is heard.
/// One that is gone is noticed long before.
fn call_deadline(request: &AdminForward) -> Duration {
    let waits = match request {
        AdminForward::Migrate { .. } | AdminForward::MigrateGroup { .. } => handover::ANSWER_PATIENCE,
        // Until the size before is in force, and until the new one is.
        AdminForward::Resize { .. } => resize::SIZE_PATIENCE * 2,
        AdminForward::ChangeReplicas { .. } | AdminForward::ChangeReplicasIfEnough { .. } => outcome::PATIENCE,
        AdminForward::SnapshotGroup { .. } => groups::SNAPSHOT_PATIENCE,
        AdminForward::RollBack { .. } => snapshots::ROLL_BACK_PATIENCE,
        _ => Duration::ZERO,
    };
    waits + CALL_DEADLINE
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
            let state = self.recall().await;
            let volume = volume_named(&state, name)?;
            let status = self.status_of(volume.id).await;
            status.map_err(|error| match error.kind() {
                _ if state.has_stepped_down(volume.id) => {
                    Error::new(error.kind(), format!("{}; {error}", overview::stepped_down_told(&state, volume)))
                }
                ErrorKind::Unavailable => Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the owner of volume {name}, node {}, does not answer; if it is lost, `helio volume takeover {name}` \
                         gives the volume to a replica",
                        state.name_of(volume.owner)
                    ),
                )
                .caused_by(error),
                _ => error,
            })
        })
    }

    fn migrate<'a>(&'a self, name: &'a str, request: Migrate) -> BoxFuture<'a, Result<MigrateReport, Error>> {
        Box::pin(async move { self.migrate_to(name, &request).await })
    }

    fn let_go_on_write<'a>(&'a self, name: &'a str, request: OnWrite) -> BoxFuture<'a, Result<OnWriteStatus, Error>> {
        Box::pin(async move { self.let_go_on_write(name, &request).await })
    }

    fn cancel_migrate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CancelledMigrate, Error>> {
        Box::pin(self.cancel_handover(name))
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

    fn set_policy<'a>(&'a self, name: &'a str, wanted: ChangePolicy) -> BoxFuture<'a, Result<VolumePolicy, Error>> {
        Box::pin(self.set_policy_of(name, wanted))
    }

    fn resize<'a>(&'a self, name: &'a str, request: Resize) -> BoxFuture<'a, Result<VolumeStatus, Error>> {
        Box::pin(self.resize_to(name, request))
    }

    fn change_replicas<'a>(
        &'a self,
        name: &'a str,
        request: ChangeReplicas,
    ) -> BoxFuture<'a, Result<ReplicasReport, Error>> {
        Box::pin(self.change_replicas_of(name, request))
    }

    fn change_group_replicas<'a>(
        &'a self,
        name: &'a str,
        request: ChangeReplicas,
    ) -> BoxFuture<'a, Result<ReplicasReport, Error>> {
        Box::pin(self.change_replicas_of_group(name, request))
    }

    fn label_node<'a>(&'a self, name: &'a str, request: ChangeLabels) -> BoxFuture<'a, Result<NodeLabels, Error>> {
        Box::pin(self.change_labels(name, request))
    }

    fn placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PlacementStatus, Error>> {
        Box::pin(self.placement_of(name))
    }

    fn place_volume<'a>(
        &'a self,
        name: &'a str,
        request: ChangePlacement,
    ) -> BoxFuture<'a, Result<PlacementStatus, Error>> {
        Box::pin(self.place(name, request))
    }

    fn group_placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PlacementStatus, Error>> {
        Box::pin(self.placement_of_group(name))
    }

    fn place_group<'a>(
        &'a self,
        name: &'a str,
        request: ChangePlacement,
    ) -> BoxFuture<'a, Result<PlacementStatus, Error>> {
        Box::pin(self.place_all_of(name, request))
    }

    fn keys<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumeKeys, Error>> {
        Box::pin(self.keys_of(name))
    }

    fn add_key<'a>(&'a self, name: &'a str, request: AddVolumeKey) -> BoxFuture<'a, Result<VolumeKeys, Error>> {
        Box::pin(self.add_key_of(name, request))
    }

    fn remove_key<'a>(&'a self, name: &'a str, key: &'a str) -> BoxFuture<'a, Result<VolumeKeys, Error>> {
        Box::pin(self.remove_key_of(name, key))
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

    fn create_group(&self, request: CreateGroup) -> BoxFuture<'_, Result<GroupStatus, Error>> {
        Box::pin(self.make_group(request))
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>, Error>> {
        Box::pin(self.list_groups())
    }

    fn group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<GroupStatus, Error>> {
        Box::pin(self.group_status(name))
    }

    fn change_group<'a>(&'a self, name: &'a str, request: ChangeGroup) -> BoxFuture<'a, Result<GroupStatus, Error>> {
        Box::pin(self.change_group_of(name, request))
    }

    fn delete_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.drop_group(name))
    }

    fn migrate_group<'a>(
        &'a self,
        name: &'a str,
        request: Migrate,
    ) -> BoxFuture<'a, Result<GroupMigrateReport, Error>> {
        Box::pin(async move { self.migrate_group_to(name, &request).await })
    }

    fn let_group_go_on_write<'a>(
        &'a self,
        name: &'a str,
        request: OnWrite,
    ) -> BoxFuture<'a, Result<OnWriteStatus, Error>> {
        Box::pin(async move { self.let_group_go_on_write(name, &request).await })
    }

    fn cancel_group_migrate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CancelledMigrate, Error>> {
        Box::pin(self.cancel_group_handover(name))
    }

    fn snapshot_group<'a>(
        &'a self,
        name: &'a str,
        request: CreateSnapshot,
    ) -> BoxFuture<'a, Result<GroupSnapshotReport, Error>> {
        Box::pin(self.take_group_snapshot(name, request))
    }

    fn delete_group_snapshot<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
    ) -> BoxFuture<'a, Result<GroupSnapshot, Error>> {
        Box::pin(self.drop_group_snapshot(name, snapshot))
    }

    fn space<'a>(&'a self, node: Option<&'a str>) -> BoxFuture<'a, Result<NodeSpace, Error>> {
        Box::pin(self.at_node(node, AdminForward::Space, || self.space_here()))
    }

    fn set_link<'a>(
        &'a self,
        from: &'a str,
        to: &'a str,
        wanted: ChangeLink,
    ) -> BoxFuture<'a, Result<LinkStatus, Error>> {
        Box::pin(self.change_link(from, to, wanted))
    }

    fn links(&self) -> BoxFuture<'_, Result<LinkList, Error>> {
        Box::pin(self.link_list())
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

    fn overview(&self, query: OverviewQuery) -> BoxFuture<'_, Result<Overview, Error>> {
        Box::pin(self.look_over(query))
    }

    fn residency<'a>(
        &'a self,
        name: &'a str,
        node: Option<&'a str>,
        parts: Option<u32>,
    ) -> BoxFuture<'a, Result<ResidencyMap, Error>> {
        Box::pin(self.residency_of(name, node, parts))
    }

    fn timeline<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<OwnershipTimeline, Error>> {
        Box::pin(self.timeline_of(name))
    }

    fn trace<'a>(&'a self, name: &'a str, asked: AskTrace) -> BoxFuture<'a, Result<TraceReport, Error>> {
        Box::pin(self.trace_volume(name, asked))
    }

    fn nodes(&self) -> BoxFuture<'_, Result<NodeList, Error>> {
        Box::pin(self.list_nodes())
    }

    fn remove_node<'a>(&'a self, name: &'a str, request: RemoveNode) -> BoxFuture<'a, Result<NodeRemoval, Error>> {
        Box::pin(self.remove_member(name, request))
    }

    fn clients(&self) -> BoxFuture<'_, Result<ClientList, Error>> {
        Box::pin(self.list_clients())
    }

    fn note_client(&self, request: NoteClient) -> BoxFuture<'_, Result<AccessReport, Error>> {
        Box::pin(self.note_issued(request))
    }

    fn role_of(&self, client: &ClientName, certificate: &Fingerprint) -> Option<Role> {
        let state = self.meta.state();
        let is_let_in = state.access().admits(&CertificateHolder::Client(client.clone()), certificate);
        is_let_in.then(|| state.rights_of(client).role)
    }

    fn change_rights(&self, request: ChangeRights) -> BoxFuture<'_, Result<AccessReport, Error>> {
        Box::pin(self.give_rights(request))
    }

    fn audit(&self, limit: usize) -> BoxFuture<'_, Result<AuditList, Error>> {
        Box::pin(self.audit_list(limit))
    }

    fn revoke_client(&self, request: RevokeClient) -> BoxFuture<'_, Result<AccessReport, Error>> {
        Box::pin(self.take_back(request))
    }
}

impl ForwardedAdmin for NodeAdmin {
    fn forwarded(&self, request: AdminForward) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async move {
            match request {
                AdminForward::Status { volume } => json(&self.status_here(self.owned(volume).await?).await?),
                AdminForward::Migrate { volume, to, synced, deadline_ms } => {
                    json(&self.migrate_here(self.owned(volume).await?, to, How::asked(synced, deadline_ms)).await?)
                }
                AdminForward::MigrateGroup { group, to, synced, deadline_ms } => {
                    json(&self.migrate_group_here(group, to, How::asked(synced, deadline_ms)).await?)
                }
                AdminForward::SnapshotGroup { group, name } => json(&self.snapshot_group_here(group, name).await?),
                AdminForward::HandOverOnWrite { volume, to } => {
                    json(&self.hand_over_on_write(self.owned(volume).await?, to).await?)
                }
                AdminForward::CancelMigrate { volume } => json(&self.cancel_here(self.owned(volume).await?).await?),
                AdminForward::Scrub { action, volume } => json(&self.scrub_here(action, volume).await?),
                AdminForward::Space => json(&self.space_here().await?),
                AdminForward::Links => json(&self.links_here()),
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
                AdminForward::Takeover { volume, from, epoch } => {
                    json(&self.take_over_here(volume, from, epoch, false).await?)
                }
                AdminForward::TakeoverBehind { volume, from, epoch } => {
                    json(&self.take_over_here(volume, from, epoch, true).await?)
                }
                AdminForward::TakeoverState { volume, epoch } => json(&self.takeovers.state(volume, epoch)?),
                AdminForward::Glances => json(&self.glances_here().await?),
                AdminForward::Residency { volume, parts } => json(&self.residency_here(volume, parts).await?),
                AdminForward::Trace { volume, kinds, for_ms, slowest } => {
                    json(&self.trace_here(self.owned(volume).await?, &kinds, for_ms, slowest).await?)
                }
                AdminForward::Chronicle { volume } => json(&self.chronicle.of(volume)),
                AdminForward::Rejoin { volume } => json(&self.rejoin_here(volume).await?),
                AdminForward::About => json(&self.about_here()),
                AdminForward::Audit { limit } => json(&self.audit_here(limit)?),
                AdminForward::StepDown { volume, epoch } => json(&self.step_down_here(volume, epoch).await?),
                AdminForward::ChangeReplicas { volumes, add, remove } => {
                    let wanted = replicas::Wanted { add, remove };
                    json(&self.change_replicas_down_to(volumes, wanted, Floor::Nothing).await?)
                }
                AdminForward::ChangeReplicasIfEnough { volumes, add, remove } => {
                    let wanted = replicas::Wanted { add, remove };
                    json(&self.change_replicas_down_to(volumes, wanted, Floor::Enough).await?)
                }
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

fn moved(id: VolumeId) -> Error {
    Error::new(ErrorKind::NotOwner, format!("volume {id} is not owned here (any more or yet); try again"))
}

fn deleted(volume: &ServedVolume) -> Error {
    Error::new(ErrorKind::NotFound, format!("volume {} was deleted", volume.name))
}

fn json<T: serde::Serialize>(answer: &T) -> Result<String, Error> {
    serde_json::to_string(answer)
        .map_err(|error| Error::new(ErrorKind::Internal, "an answer cannot be encoded").caused_by(error))
}

pub(super) fn out_of_turn(response: &Response) -> Error {
    Error::new(ErrorKind::Internal, format!("metadata answered out of turn: {response:?}"))
}

/// A number that no other creation has, so that a repeated proposal is known as such.
fn nonce() -> u64 {
    client_lib::random::bits()
}
