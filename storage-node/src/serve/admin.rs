//! What an administrator can ask of a node: the seam between the node and its HTTP face.

use client_lib::cipher::VolumeKeys;
use client_lib::pki::Fingerprint;
use client_lib::rights::Role;
use client_lib::transport::BoxFuture;
use client_lib::wire::admin::{
    AccessReport, AddVolumeKey, AskTakeover, AuditList, CancelledMigrate, ChangeGroup, ChangeLabels, ChangeLink,
    ChangePlacement, ChangePolicy, ChangeReplicas, ChangeRights, ClientList, CloneSnapshot, ClusterStatus, CreateGroup,
    CreateSnapshot, CreateVolume, GroupMigrateReport, GroupSnapshot, GroupSnapshotReport, GroupStatus, LinkList,
    LinkStatus, Migrate, MigrateReport, NodeLabels, NodeList, NodeRemoval, NodeSpace, NoteClient, OnWrite,
    OnWriteStatus, Overview, OverviewQuery, OwnerStatus, OwnershipTimeline, PlacementStatus, Rejoin, RemoveNode,
    ReplicasReport, ResidencyMap, Resize, RevokeClient, RollBack, ScrubStatus, SnapshotStatus, TailStatus,
    TakeoverProgress, TakeoverReport, TraceReport, VolumePolicy, VolumeStatus, VolumeSummary,
};

use client_lib::{ClientName, Error};

use crate::shard::scrub::ScrubAction;

/// What is to be seen of a volume's operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AskTrace {
    /// The kinds, by name; all of them if there are none.
    pub kinds: Vec<String>,
    /// For how long, in milliseconds.
    pub for_ms: Option<u64>,
    /// How many single operations.
    pub slowest: Option<u32>,
}

/// The administrative requests. Any node answers; those that only a volume's owner can carry out are passed on.
///
/// # Cancel safety
/// Dropping a future stops waiting; what was begun goes on.
pub trait Admin: Send + Sync + 'static {
    /// Creates a volume and waits until its owner serves it.
    fn create_volume(&self, request: CreateVolume) -> BoxFuture<'_, Result<VolumeStatus, Error>>;

    /// Every volume.
    fn volumes(&self) -> BoxFuture<'_, Result<Vec<VolumeSummary>, Error>>;

    /// One volume, by name.
    fn volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumeStatus, Error>>;

    /// Hands a volume over.
    fn migrate<'a>(&'a self, name: &'a str, request: Migrate) -> BoxFuture<'a, Result<MigrateReport, Error>>;

    /// Lets a volume go to a node when it is written there, as long as its present ownership lasts.
    fn let_go_on_write<'a>(&'a self, name: &'a str, request: OnWrite) -> BoxFuture<'a, Result<OnWriteStatus, Error>>;

    /// Ends a handover under way, if it is not proposed yet, and takes back that the volume may go by a write.
    fn cancel_migrate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CancelledMigrate, Error>>;

    /// Takes a volume over from an owner that is lost, once its lease is out.
    fn take_over<'a>(&'a self, name: &'a str, request: AskTakeover) -> BoxFuture<'a, Result<TakeoverReport, Error>>;

    /// How a takeover goes that was asked of this node.
    fn takeover<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<TakeoverProgress, Error>>;

    /// Has a node that has left a volume drop its tail and follow again; returns what was dropped.
    fn rejoin<'a>(&'a self, name: &'a str, request: Rejoin) -> BoxFuture<'a, Result<TailStatus, Error>>;

    /// The volume's owner and its lease; does not need the owner.
    fn owner<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<OwnerStatus, Error>>;

    /// What the volume's owner promises, and what happens when it is lost; does not need the owner.
    fn policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumePolicy, Error>>;

    /// Changes that, and waits until the owner, if it is in reach, keeps to it.
    fn set_policy<'a>(&'a self, name: &'a str, wanted: ChangePolicy) -> BoxFuture<'a, Result<VolumePolicy, Error>>;

    /// Gives a volume another size, and waits until it is in force at the owner.
    fn resize<'a>(&'a self, name: &'a str, request: Resize) -> BoxFuture<'a, Result<VolumeStatus, Error>>;

    /// Lets other nodes follow a volume, or follow it no more; returns soon, though something may have to be waited for first.
    fn change_replicas<'a>(
        &'a self,
        name: &'a str,
        request: ChangeReplicas,
    ) -> BoxFuture<'a, Result<ReplicasReport, Error>>;

    /// The same of all volumes of a group.
    fn change_group_replicas<'a>(
        &'a self,
        name: &'a str,
        request: ChangeReplicas,
    ) -> BoxFuture<'a, Result<ReplicasReport, Error>>;

    /// Gives a node other labels.
    fn label_node<'a>(&'a self, name: &'a str, request: ChangeLabels) -> BoxFuture<'a, Result<NodeLabels, Error>>;

    /// How the copies of a volume stand to its rule of placement; does not need the owner.
    fn placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PlacementStatus, Error>>;

    /// Gives a volume another rule, or looks what that would change. The owner keeps to it from then on.
    fn place_volume<'a>(
        &'a self,
        name: &'a str,
        request: ChangePlacement,
    ) -> BoxFuture<'a, Result<PlacementStatus, Error>>;

    /// As [`placement`](Self::placement), of all volumes of a group.
    fn group_placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PlacementStatus, Error>>;

    /// As [`place_volume`](Self::place_volume), of all volumes of a group.
    fn place_group<'a>(
        &'a self,
        name: &'a str,
        request: ChangePlacement,
    ) -> BoxFuture<'a, Result<PlacementStatus, Error>>;

    /// What opens an encrypted volume, sealed; does not need the owner.
    fn keys<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumeKeys, Error>>;

    /// Has another key open an encrypted volume; returns all that do.
    fn add_key<'a>(&'a self, name: &'a str, request: AddVolumeKey) -> BoxFuture<'a, Result<VolumeKeys, Error>>;

    /// Has a key open an encrypted volume no more; returns those that do.
    fn remove_key<'a>(&'a self, name: &'a str, key: &'a str) -> BoxFuture<'a, Result<VolumeKeys, Error>>;

    /// Makes a snapshot of a volume, and waits until it is made.
    fn create_snapshot<'a>(
        &'a self,
        name: &'a str,
        request: CreateSnapshot,
    ) -> BoxFuture<'a, Result<SnapshotStatus, Error>>;

    /// The snapshots of a volume, oldest first.
    fn snapshots<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<SnapshotStatus>, Error>>;

    /// Deletes a snapshot; its space comes back in the background.
    fn delete_snapshot<'a>(&'a self, name: &'a str, snapshot: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes a volume what a snapshot is, and waits until it is.
    fn roll_back<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
        request: RollBack,
    ) -> BoxFuture<'a, Result<VolumeStatus, Error>>;

    /// Makes a new volume that begins as a snapshot, and waits until its owner serves it.
    fn clone_snapshot<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
        request: CloneSnapshot,
    ) -> BoxFuture<'a, Result<VolumeStatus, Error>>;

    /// Deletes a volume and its data.
    fn delete_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes a group of volumes.
    fn create_group(&self, request: CreateGroup) -> BoxFuture<'_, Result<GroupStatus, Error>>;

    /// Every group.
    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>, Error>>;

    /// One group, by name; does not need the owner of its volumes.
    fn group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<GroupStatus, Error>>;

    /// Puts volumes into a group, and takes others out.
    fn change_group<'a>(&'a self, name: &'a str, request: ChangeGroup) -> BoxFuture<'a, Result<GroupStatus, Error>>;

    /// Ends a group; its volumes stay.
    fn delete_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Hands all volumes of a group over in one step.
    fn migrate_group<'a>(&'a self, name: &'a str, request: Migrate)
    -> BoxFuture<'a, Result<GroupMigrateReport, Error>>;

    /// Lets a group go to a node when one of its volumes is written there, as long as their present ownership lasts.
    fn let_group_go_on_write<'a>(
        &'a self,
        name: &'a str,
        request: OnWrite,
    ) -> BoxFuture<'a, Result<OnWriteStatus, Error>>;

    /// As [`cancel_migrate`](Self::cancel_migrate), of a group.
    fn cancel_group_migrate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CancelledMigrate, Error>>;

    /// Makes a snapshot of every volume of a group at one cut.
    fn snapshot_group<'a>(
        &'a self,
        name: &'a str,
        request: CreateSnapshot,
    ) -> BoxFuture<'a, Result<GroupSnapshotReport, Error>>;

    /// Deletes a snapshot of a group, of every volume; returns what was deleted.
    fn delete_group_snapshot<'a>(
        &'a self,
        name: &'a str,
        snapshot: &'a str,
    ) -> BoxFuture<'a, Result<GroupSnapshot, Error>>;

    /// Where the space of a node goes; of the node asked, if none is named.
    fn space<'a>(&'a self, node: Option<&'a str>) -> BoxFuture<'a, Result<NodeSpace, Error>>;

    /// Changes how much bulk data may go from one node to another; does not need either of them.
    fn set_link<'a>(
        &'a self,
        from: &'a str,
        to: &'a str,
        wanted: ChangeLink,
    ) -> BoxFuture<'a, Result<LinkStatus, Error>>;

    /// What went over the links between the nodes.
    fn links(&self) -> BoxFuture<'_, Result<LinkList, Error>>;

    /// Begins, ends or tells of a scrub of `volume` at `node`, by default its owner; without a volume of everything that
    /// `node` stores, by default the node asked.
    fn scrub<'a>(
        &'a self,
        action: ScrubAction,
        volume: Option<&'a str>,
        node: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScrubStatus, Error>>;

    /// The cluster.
    fn cluster(&self) -> BoxFuture<'_, Result<ClusterStatus, Error>>;

    /// All volumes at a glance; waits for no node that does not answer.
    fn overview(&self, query: OverviewQuery) -> BoxFuture<'_, Result<Overview, Error>>;

    /// What of a volume is at `node`, by default its owner, in at most so many parts.
    fn residency<'a>(
        &'a self,
        name: &'a str,
        node: Option<&'a str>,
        parts: Option<u32>,
    ) -> BoxFuture<'a, Result<ResidencyMap, Error>>;

    /// The last changes of a volume's owner; does not need the owner.
    fn timeline<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<OwnershipTimeline, Error>>;

    /// Looks for a while at a volume's operations at its owner: where their time goes.
    fn trace<'a>(&'a self, name: &'a str, asked: AskTrace) -> BoxFuture<'a, Result<TraceReport, Error>>;

    /// Its nodes, and those that were removed.
    fn nodes(&self) -> BoxFuture<'_, Result<NodeList, Error>>;

    /// Removes a node, or tells what that waits for.
    fn remove_node<'a>(&'a self, name: &'a str, request: RemoveNode) -> BoxFuture<'a, Result<NodeRemoval, Error>>;

    /// What was issued to clients, and what was taken back.
    fn clients(&self) -> BoxFuture<'_, Result<ClientList, Error>>;

    /// Notes that a certificate was issued to a client.
    fn note_client(&self, request: NoteClient) -> BoxFuture<'_, Result<AccessReport, Error>>;

    /// Changes what a client may do.
    fn change_rights(&self, request: ChangeRights) -> BoxFuture<'_, Result<AccessReport, Error>>;

    /// The newest acts of administrators at each node, so many of each.
    fn audit(&self, limit: usize) -> BoxFuture<'_, Result<AuditList, Error>>;

    /// What a client is there for, as the metadata is here; `None` if it is not let in with this certificate. At once.
    fn role_of(&self, client: &ClientName, certificate: &Fingerprint) -> Option<Role>;

    /// Takes back what was issued to a client.
    fn revoke_client(&self, request: RevokeClient) -> BoxFuture<'_, Result<AccessReport, Error>>;
}
