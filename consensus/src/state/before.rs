//! The state as format 4 of the metadata store had it: volumes that do not know where the next write takes them, without policies of
//! propagation, and no limits of links.
//!
//! Read only where an old store is taken over, once; nothing is written in this form.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::policy::{Durability, Propagation, Rpo};
use client_lib::{Epoch, Lsn, NodeId, SnapshotId, VolumeId, VolumeName, VolumeSize};
use serde::Deserialize;

use super::{EpochRecord, Fork, Lease, MetaState, Node, Origin, Snapshot, Volume};

#[derive(Deserialize)]
struct VolumeBefore {
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
    snapshots: Vec<Snapshot>,
    newest_snapshot: SnapshotId,
    takeover_after_ms: Option<u64>,
    origin: Option<Origin>,
    durability: Durability,
    rpo: Option<Rpo>,
}

/// All metadata of a cluster, in the form of format 4.
#[derive(Deserialize)]
pub(crate) struct StateBefore {
    nodes: BTreeMap<NodeId, Node>,
    volumes: BTreeMap<VolumeId, VolumeBefore>,
    leases: BTreeMap<NodeId, Lease>,
}

impl From<VolumeBefore> for Volume {
    fn from(before: VolumeBefore) -> Volume {
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
            snapshots: before.snapshots,
            newest_snapshot: before.newest_snapshot,
            takeover_after_ms: before.takeover_after_ms,
            origin: before.origin,
            durability: before.durability,
            rpo: before.rpo,
            on_write: None,
            propagation: Propagation::default(),
        }
    }
}

impl From<StateBefore> for MetaState {
    fn from(before: StateBefore) -> MetaState {
        let volumes = before.volumes.into_iter().map(|(id, volume)| (id, volume.into())).collect();
        MetaState { nodes: before.nodes, volumes, leases: before.leases, links: BTreeMap::new() }
    }
}
