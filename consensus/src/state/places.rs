//! Where the copies of volumes are, and are to be: replicas that come and go, those of them that have yet to become complete, labels of
//! nodes, rules of placement (docs/decisions/0043).
//!
//! Replicas are changed by the owner alone, in the epoch and by the process that it names: so none goes, and comes back empty, while that
//! owner is handing the volume over to it. That it is complete a replica says itself, and of which time: it has heard by then whether it
//! was removed before.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::policy::placement::Placement;
use client_lib::{Epoch, Label, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

use super::ownership::require_owner;
use super::table::Table;
use super::{MetaState, Volume};
use crate::command::{Refusal, Response};

/// Most labels of a node.
pub const LABELS_MAX: usize = 32;

/// Where copies are to be, and which are not what they are to be yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Replicas that came later, and were never a complete copy since; and the log index at which they came.
    pub(super) joining: Table<VolumeId, BTreeMap<NodeId, u64>>,
    pub(super) labels: Table<NodeId, BTreeSet<Label>>,
    pub(super) wanted: Table<VolumeId, Placement>,
}

/// As [`crate::Command::ChangeReplicas`], and [`crate::Command::GiveUpReplicas`].
pub(super) struct ChangeReplicas {
    pub(super) members: Vec<(VolumeId, Epoch)>,
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) add: BTreeSet<NodeId>,
    pub(super) remove: BTreeSet<NodeId>,
}

impl Places {
    /// Whether it is certain, without a look at it, that both say the same.
    pub(super) fn is(&self, other: &Places) -> bool {
        self.joining.is(&other.joining) && self.labels.is(&other.labels) && self.wanted.is(&other.wanted)
    }

    /// Whether nothing was ever said of places.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.joining.is_empty() && self.labels.is_empty() && self.wanted.is_empty()
    }

    /// The replicas of `volume` that came later, and were never a complete copy since: a takeover there would begin with nothing.
    pub fn joining(&self, volume: VolumeId) -> impl Iterator<Item = NodeId> + '_ {
        self.joining.get(&volume).into_iter().flat_map(|nodes| nodes.keys()).copied()
    }

    /// Whether `node` is one of them.
    #[must_use]
    pub fn is_joining(&self, volume: VolumeId, node: NodeId) -> bool {
        self.joined_since(volume, node).is_some()
    }

    /// The log index at which `node` was added to `volume`, while it joins.
    #[must_use]
    pub fn joined_since(&self, volume: VolumeId, node: NodeId) -> Option<u64> {
        self.joining.get(&volume)?.get(&node).copied()
    }

    /// The volumes that `node` joins, each with the log index at which it was added.
    pub fn joined_by(&self, node: NodeId) -> impl Iterator<Item = (VolumeId, u64)> + '_ {
        self.joining.iter().filter_map(move |(volume, nodes)| Some((*volume, *nodes.get(&node)?)))
    }

    /// What `node` is, besides being at its provider.
    pub fn labels(&self, node: NodeId) -> impl Iterator<Item = &Label> {
        self.labels.get(&node).into_iter().flatten()
    }

    /// Where copies of `volume` are to be; `None` where they were put by hand.
    #[must_use]
    pub fn wanted(&self, volume: VolumeId) -> Option<&Placement> {
        self.wanted.get(&volume)
    }

    /// The volumes of which something is said, and the nodes.
    pub(crate) fn named(&self) -> (BTreeSet<VolumeId>, BTreeSet<NodeId>) {
        let volumes = self.joining.keys().chain(self.wanted.keys()).copied().collect();
        let joining = self.joining.values().flat_map(|nodes| nodes.keys());
        (volumes, self.labels.keys().chain(joining).copied().collect())
    }

    fn has_joined(&mut self, volume: VolumeId, node: NodeId) {
        if let Some(nodes) = self.joining.get_mut(&volume) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.joining.remove(&volume);
            }
        }
    }
}

impl MetaState {
    /// Where copies are to be.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Leaves each volume at most so many copies. A repeated proposal finds replicas added and removed, and changes nothing.
    pub(super) fn change_replicas(
        &mut self,
        log_index: u64,
        change: ChangeReplicas,
        copies_max: usize,
    ) -> Result<Response, Refusal> {
        let ChangeReplicas { members, from, incarnation, add, remove } = change;
        let named: BTreeSet<VolumeId> = members.iter().map(|(id, _)| *id).collect();
        if let Some(stranger) = add.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Refusal::UnknownNode(*stranger));
        }
        for (id, epoch) in &members {
            let volume = self.volumes.get(id).ok_or(Refusal::UnknownVolume(*id))?;
            require_owner(volume, from, *epoch)?;
            self.require_whole_groups(&named)?;
            if volume.replicas.union(&add).filter(|node| !remove.contains(node)).count() + 1 > copies_max {
                return Err(Refusal::TooManyReplicas(volume.name.clone()));
            }
        }
        self.require_incarnation(from, incarnation)?;
        for id in named {
            let keeps_source = self.enclosures.contains_key(&id);
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            for node in add.iter().filter(|node| **node != volume.owner) {
                if volume.replicas.insert(*node) {
                    self.places.joining.get_or_default(&id).insert(*node, log_index);
                }
            }
            for node in &remove {
                drop_replica(volume, *node, keeps_source);
            }
            for node in &remove {
                self.joins_no_more(id, *node);
            }
        }
        Ok(Response::ReplicasChanged)
    }

    /// What a process proposed before the node was removed, and added again, says nothing of what it has now.
    pub(super) fn replica_joined(&mut self, id: VolumeId, node: NodeId, since: u64) -> Result<Response, Refusal> {
        self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?;
        if self.places.joined_since(id, node) == Some(since) {
            self.joins_no_more(id, node);
        }
        Ok(Response::ReplicasChanged)
    }

    pub(super) fn label_node(&mut self, node: NodeId, labels: BTreeSet<Label>) -> Result<Response, Refusal> {
        let member = self.nodes.get(&node).ok_or(Refusal::UnknownNode(node))?;
        if labels.len() > LABELS_MAX {
            return Err(Refusal::TooManyLabels(member.name.clone()));
        }
        match labels.is_empty() {
            true => drop(self.places.labels.remove(&node)),
            false => self.places.labels.insert(node, labels),
        }
        Ok(Response::PolicySet)
    }

    pub(super) fn set_placement(
        &mut self,
        volumes: &BTreeSet<VolumeId>,
        wanted: Option<&Placement>,
    ) -> Result<Response, Refusal> {
        if let Some(unknown) = volumes.iter().find(|id| !self.volumes.contains_key(id)) {
            return Err(Refusal::UnknownVolume(*unknown));
        }
        self.require_whole_groups(volumes)?;
        for id in volumes {
            self.place_as(*id, wanted.cloned());
        }
        Ok(Response::PolicySet)
    }

    /// Volumes of a group are held by the same nodes, so they are to be at the same places: where `first` is to be.
    pub(super) fn place_together(&mut self, volumes: &BTreeSet<VolumeId>, first: Option<VolumeId>) {
        let wanted = first.and_then(|first| self.places.wanted.get(&first)).cloned();
        for id in volumes {
            self.place_as(*id, wanted.clone());
        }
    }

    /// A clone is where its origin is, and is to be there.
    pub(super) fn place_like(&mut self, origin: VolumeId, clone: VolumeId) {
        self.place_as(clone, self.places.wanted.get(&origin).cloned());
        if let Some(joining) = self.places.joining.get(&origin).cloned() {
            self.places.joining.insert(clone, joining);
        }
    }

    /// Nothing is said of a volume any more.
    pub(super) fn forget_places_of(&mut self, id: VolumeId) {
        self.places.joining.remove(&id);
        self.places.wanted.remove(&id);
    }

    /// Nor of a node.
    pub(super) fn forget_node_in_places(&mut self, node: NodeId) {
        self.places.labels.remove(&node);
        self.places.joining.update(
            |nodes| nodes.contains_key(&node),
            |nodes| {
                nodes.remove(&node);
            },
        );
        self.places.joining.retain(|_, nodes| !nodes.is_empty());
    }

    /// `node` is a complete copy of `id`, its owner, or no replica.
    pub(super) fn joins_no_more(&mut self, id: VolumeId, node: NodeId) {
        if self.places.is_joining(id, node) {
            self.places.has_joined(id, node);
        }
    }

    fn place_as(&mut self, id: VolumeId, wanted: Option<Placement>) {
        if self.places.wanted.get(&id) == wanted.as_ref() {
            return;
        }
        match wanted {
            None => drop(self.places.wanted.remove(&id)),
            Some(wanted) => self.places.wanted.insert(id, wanted),
        }
    }

    /// Refuses what would give some volumes of a group other holders than the rest.
    fn require_whole_groups(&self, volumes: &BTreeSet<VolumeId>) -> Result<(), Refusal> {
        for id in volumes {
            let Some(group) = self.group_of(*id).filter(|group| !group.members.is_subset(volumes)) else { continue };
            let volume = self.volumes.get(id).ok_or(Refusal::UnknownVolume(*id))?.name.clone();
            return Err(Refusal::InGroup { volume, group: group.name.clone() });
        }
        Ok(())
    }
}

/// `node` follows `volume` no more. What is enclosed says where it comes from, and nobody is asked there any more but for that.
pub(super) fn drop_replica(volume: &mut Volume, node: NodeId, keeps_source: bool) {
    volume.replicas.remove(&node);
    volume.propagation.replicas.remove(&node);
    volume.on_write = volume.on_write.filter(|to| *to != node);
    volume.source = volume.source.filter(|source| *source != node || keeps_source);
}
