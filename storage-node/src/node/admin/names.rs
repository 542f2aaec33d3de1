//! Names that administrators use, and what they stand for.

use client_lib::{Error, ErrorKind, NodeId, NodeName};
use consensus::{MetaState, Snapshot, Volume, VolumeGroup};

pub(in crate::node) fn volume_named<'a>(state: &'a MetaState, name: &str) -> Result<&'a Volume, Error> {
    state.volumes().find(|volume| volume.name.as_str() == name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no volume {name:?}; `helio volume list` shows those that exist"),
        )
    })
}

pub(super) fn group_named<'a>(state: &'a MetaState, name: &str) -> Result<&'a VolumeGroup, Error> {
    state.groups().find(|group| group.name.as_str() == name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no group {name:?}; `helio group list` shows those that exist"),
        )
    })
}

pub(super) fn snapshot_named<'a>(volume: &'a Volume, snapshot: &str) -> Result<&'a Snapshot, Error> {
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

pub(in crate::node) fn node_named(state: &MetaState, name: &str) -> Result<NodeId, Error> {
    let known = || state.nodes().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
    let wanted: NodeName = name.parse()?;
    state
        .nodes()
        .find(|node| node.name == wanted)
        .map(|node| node.id)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no node {name:?}; the nodes are {}", known())))
}

/// Where the replicas of `volume` are, as a part of a sentence.
pub(in crate::node) fn replicas_told(state: &MetaState, volume: &Volume) -> String {
    match volume.replicas.is_empty() {
        true => "it has no replicas".to_owned(),
        false => format!("its replicas are at {}", names_of(state, &volume.replicas)),
    }
}

/// The names of `nodes`, with commas between them.
pub(in crate::node) fn names_of<'a>(state: &MetaState, nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(|node| state.name_of(*node)).collect::<Vec<_>>().join(", ")
}
