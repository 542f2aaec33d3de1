//! The state as formats 10 to 4 of the metadata store had it. Formats 10 and 9, which differ in how it is stored only, know of no owners that have stepped
//! down. Format 8 says nothing of places, of what clients may do, and of keys. Format 7 lets everybody in. Format 6 has nothing enclosed either. Formats 5 and 4 have no groups of volumes
//! either, and snapshots of one volume each; volumes of format 4 do not know where the next write takes them and have no policies of propagation, and
//! links no limits.
//!
//! Read only where an old store is taken over, once; nothing is written in this form.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::cipher::VolumeKeys;
use client_lib::policy::{Durability, LinkPolicy, Propagation, Rpo};
use client_lib::{
    ClientName, Epoch, Lsn, NodeId, SnapshotId, SnapshotName, VolumeGroupId, VolumeId, VolumeName, VolumeSize,
};
use serde::Deserialize;

use super::access::Access;
use super::places::Places;
use super::rights::ClientRights;
use super::table::Table;
use super::{Enclosure, EpochRecord, Fork, Lease, Made, MetaState, Node, Origin, Snapshot, Volume, VolumeGroup};

/// In the form of formats 10 and 9.
#[derive(Deserialize)]
pub(crate) struct State9 {
    before: State8,
    places: Places,
    rights: Table<ClientName, ClientRights>,
    keys: Table<VolumeId, VolumeKeys>,
}

impl From<State9> for MetaState {
    fn from(state: State9) -> MetaState {
        let State9 { before, places, rights, keys } = state;
        MetaState { places, rights, keys, ..before.into() }
    }
}

/// In the form of format 8.
#[derive(Deserialize)]
pub(crate) struct State8 {
    before: State7,
    access: Access,
}

impl From<State8> for MetaState {
    fn from(state: State8) -> MetaState {
        MetaState { access: state.access, ..state.before.into() }
    }
}

/// In the form of format 7.
#[derive(Deserialize)]
pub(crate) struct State7 {
    nodes: Table<NodeId, Node>,
    volumes: Table<VolumeId, Volume>,
    leases: Table<NodeId, Lease>,
    links: Table<(NodeId, NodeId), LinkPolicy>,
    groups: Table<VolumeGroupId, VolumeGroup>,
    enclosures: Table<VolumeId, Enclosure>,
}

impl From<State7> for MetaState {
    fn from(before: State7) -> MetaState {
        let State7 { nodes, volumes, leases, links, groups, enclosures } = before;
        MetaState { nodes, volumes, leases, links, groups, enclosures, ..MetaState::default() }
    }
}

/// In the form of format 6.
#[derive(Deserialize)]
pub(crate) struct State6 {
    nodes: Table<NodeId, Node>,
    volumes: Table<VolumeId, Volume>,
    leases: Table<NodeId, Lease>,
    links: Table<(NodeId, NodeId), LinkPolicy>,
    groups: Table<VolumeGroupId, VolumeGroup>,
}

impl From<State6> for MetaState {
    fn from(before: State6) -> MetaState {
        let State6 { nodes, volumes, leases, links, groups } = before;
        MetaState { nodes, volumes, leases, links, groups, ..MetaState::default() }
    }
}

#[derive(Deserialize)]
struct SnapshotBefore {
    id: SnapshotId,
    name: SnapshotName,
    made: Option<Made>,
    nonce: u64,
}

/// A volume, which ends with an `End`.
#[derive(Deserialize)]
struct VolumeBefore<End> {
    id: VolumeId,
    name: VolumeName,
    size: VolumeSize,
    owner: NodeId,
    epoch: Epoch,
    replicas: BTreeSet<NodeId>,
    source: Option<NodeId>,
    final_lsn: Lsn,
    history: Vec<EpochRecord>,
    nonce: u64,
    forks: Vec<Fork>,
    snapshots: Vec<SnapshotBefore>,
    newest_snapshot: SnapshotId,
    takeover_after_ms: Option<u64>,
    origin: Option<Origin>,
    durability: Durability,
    rpo: Option<Rpo>,
    end: End,
}

/// What format 5 added to volumes.
#[derive(Default, Deserialize)]
pub(crate) struct EndOf5 {
    on_write: Option<NodeId>,
    propagation: Propagation,
}

/// Format 4 had nothing there.
impl From<()> for EndOf5 {
    fn from((): ()) -> EndOf5 {
        EndOf5::default()
    }
}

/// All metadata of a cluster, whose volumes end with an `End`, with its `Links`.
#[derive(Deserialize)]
pub(crate) struct StateBefore<End, Links> {
    nodes: Table<NodeId, Node>,
    volumes: BTreeMap<VolumeId, VolumeBefore<End>>,
    leases: Table<NodeId, Lease>,
    links: Links,
}

/// In the form of format 5.
pub(crate) type State5 = StateBefore<EndOf5, Table<(NodeId, NodeId), LinkPolicy>>;

/// In the form of format 4.
pub(crate) type State4 = StateBefore<(), ()>;

impl From<SnapshotBefore> for Snapshot {
    fn from(before: SnapshotBefore) -> Snapshot {
        Snapshot { id: before.id, name: before.name, made: before.made, nonce: before.nonce, cut: None }
    }
}

impl<End: Into<EndOf5>> From<VolumeBefore<End>> for Volume {
    fn from(before: VolumeBefore<End>) -> Volume {
        let EndOf5 { on_write, propagation } = before.end.into();
        Volume {
            id: before.id,
            name: before.name,
            size: before.size,
            owner: before.owner,
            epoch: before.epoch,
            replicas: before.replicas,
            source: before.source,
            final_lsn: before.final_lsn,
            history: before.history,
            nonce: before.nonce,
            forks: before.forks,
            snapshots: before.snapshots.into_iter().map(Snapshot::from).collect(),
            newest_snapshot: before.newest_snapshot,
            takeover_after_ms: before.takeover_after_ms,
            origin: before.origin,
            durability: before.durability,
            rpo: before.rpo,
            on_write,
            propagation,
        }
    }
}

impl<End: Into<EndOf5>, Links> StateBefore<End, Links> {
    fn into_state(self, links: impl FnOnce(Links) -> Table<(NodeId, NodeId), LinkPolicy>) -> MetaState {
        let volumes = self.volumes.into_iter().map(|(id, volume)| (id, volume.into())).collect();
        let links = links(self.links);
        MetaState { nodes: self.nodes, volumes, leases: self.leases, links, ..MetaState::default() }
    }
}

impl From<State5> for MetaState {
    fn from(before: State5) -> MetaState {
        before.into_state(|links| links)
    }
}

impl From<State4> for MetaState {
    fn from(before: State4) -> MetaState {
        before.into_state(|()| Table::default())
    }
}
