//! Groups of volumes: which there are, and what is done with all volumes of one in one step, all or none (docs/groups.md).
//!
//! Handovers are of all volumes of a group that a node owns. Takeovers are of one volume, so the owners of a group may differ
//! after one. Its volumes are always held by the same nodes.

use std::collections::BTreeSet;

use client_lib::geometry::{GROUP_VOLUMES_MAX, SNAPSHOTS_MAX};
use client_lib::{Epoch, GroupName, NodeId, NodeName, SnapshotId, SnapshotName, VolumeGroupId, VolumeId};

use super::ownership::require_owner;
use super::{Cut, Made, MetaState, Snapshot, Volume, VolumeGroup};
use crate::command::{Ended, Refusal, Response};

/// As [`crate::Command::CreateGroupSnapshot`].
pub(super) struct CreateSnapshot {
    pub(super) group: VolumeGroupId,
    pub(super) name: SnapshotName,
    pub(super) from: NodeId,
    pub(super) incarnation: u64,
    pub(super) members: Vec<(VolumeId, Epoch)>,
    pub(super) nonce: u64,
}

impl MetaState {
    pub(super) fn create_group(
        &mut self,
        log_index: u64,
        name: GroupName,
        members: BTreeSet<VolumeId>,
        nonce: u64,
    ) -> Result<Response, Refusal> {
        if let Some(known) = self.groups.values().find(|group| group.name == name) {
            // The same proposal again: its first answer was lost.
            if known.nonce == nonce {
                return Ok(Response::GroupCreated { group: known.id });
            }
            return Err(Refusal::GroupNameTaken(name));
        }
        let id = VolumeGroupId(log_index);
        let group = VolumeGroup { id, name, members, nonce };
        self.require_together(&group)?;
        for member in &group.members {
            // Leave was given to the volume, not to those that it goes with now.
            self.volumes.get_mut(member).ok_or(Refusal::UnknownVolume(*member))?.on_write = None;
        }
        self.place_together(&group.members, group.members.first().copied());
        self.groups.insert(id, group);
        Ok(Response::GroupCreated { group: id })
    }

    pub(super) fn delete_group(&mut self, id: VolumeGroupId) -> Result<Response, Refusal> {
        let group = self.groups.remove(&id).ok_or(Refusal::UnknownGroup(id))?;
        for member in &group.members {
            self.volumes.get_mut(member).ok_or(Refusal::UnknownVolume(*member))?.on_write = None;
        }
        Ok(Response::GroupDeleted)
    }

    /// A repeated proposal finds its volumes in the group, or not, already, and changes nothing.
    pub(super) fn change_group(
        &mut self,
        id: VolumeGroupId,
        add: &BTreeSet<VolumeId>,
        remove: &BTreeSet<VolumeId>,
    ) -> Result<Response, Refusal> {
        let mut group = self.groups.get(&id).ok_or(Refusal::UnknownGroup(id))?.clone();
        let first = group.members.first().copied();
        group.members.extend(add);
        group.members.retain(|member| !remove.contains(member));
        // Taking out is always possible: also of volumes whose owners differ.
        if !add.is_empty() {
            self.require_together(&group)?;
        }
        if group.members.is_empty() {
            return Err(Refusal::GroupEmpty(group.name));
        }
        // Who comes goes where the others go, by a write.
        let on_write = group.members.iter().find_map(|member| self.volumes.get(member)?.on_write);
        for changed in add.iter().chain(remove) {
            if let Some(volume) = self.volumes.get_mut(changed) {
                let is_in = group.members.contains(changed);
                volume.on_write = on_write.filter(|to| is_in && volume.replicas.contains(to));
            }
        }
        self.place_together(&group.members, first);
        self.groups.insert(id, group);
        Ok(Response::GroupChanged)
    }

    /// Refuses unless `members` are just the volumes of `group` that `owner` owns.
    pub(super) fn require_all_owned(
        &self,
        group: &VolumeGroup,
        owner: NodeId,
        members: &[Ended],
    ) -> Result<(), Refusal> {
        let is_owned = |member: &VolumeId| self.volumes.get(member).is_some_and(|volume| volume.owner == owner);
        let owned: BTreeSet<VolumeId> = group.members.iter().copied().filter(is_owned).collect();
        let named: BTreeSet<VolumeId> = members.iter().map(|ended| ended.volume).collect();
        match named == owned && named.len() == members.len() {
            true => Ok(()),
            false => Err(Refusal::GroupIsOther(group.name.clone())),
        }
    }

    pub(super) fn set_group_on_write(&mut self, id: VolumeGroupId, to: Option<NodeId>) -> Result<Response, Refusal> {
        let members = self.groups.get(&id).ok_or(Refusal::UnknownGroup(id))?.members.clone();
        let goes = |state: &MetaState, member: &VolumeId| {
            state.volumes.get(member).is_some_and(|volume| Some(volume.owner) != to)
        };
        for member in members.iter().filter(|member| goes(self, member)) {
            if let Some(to) = to {
                self.require_replica(*member, to)?;
            }
        }
        for member in &members {
            let goes = goes(self, member);
            if let Some(volume) = self.volumes.get_mut(member) {
                volume.on_write = to.filter(|_| goes);
            }
        }
        Ok(Response::PolicySet)
    }

    /// The id is the log index, in every volume.
    pub(super) fn create_group_snapshot(
        &mut self,
        log_index: u64,
        create: CreateSnapshot,
    ) -> Result<Response, Refusal> {
        let CreateSnapshot { group: id, name, from, incarnation, members, nonce } = create;
        let group = self.groups.get(&id).ok_or(Refusal::UnknownGroup(id))?;
        let mut known = BTreeSet::new();
        for (member, epoch) in &members {
            let volume = self.volumes.get(member).ok_or(Refusal::UnknownVolume(*member))?;
            require_owner(volume, from, *epoch)?;
            match volume.snapshots.iter().find(|snapshot| snapshot.name == name) {
                Some(listed) if listed.nonce == nonce => {
                    known.insert(listed.id);
                    continue;
                }
                Some(_) => return Err(Refusal::SnapshotNameTaken { volume: volume.name.clone(), name }),
                None => {}
            }
            if volume.snapshots.len() >= SNAPSHOTS_MAX {
                return Err(Refusal::TooManySnapshots(volume.name.clone()));
            }
            // Snapshots are made in the order of their ids, and this one is made at once.
            if let Some(earlier) = volume.snapshots.iter().find(|snapshot| snapshot.made.is_none()) {
                let (volume, snapshot) = (volume.name.clone(), earlier.name.clone());
                return Err(Refusal::SnapshotOnItsWay { volume, snapshot });
            }
        }
        // The same proposal again: its first answer was lost.
        if let Some(snapshot) = known.first() {
            return Ok(Response::SnapshotCreated { snapshot: *snapshot });
        }
        if !members.iter().map(|(member, _)| member).eq(&group.members) {
            return Err(Refusal::GroupIsOther(group.name.clone()));
        }
        self.require_incarnation(from, incarnation)?;
        let snapshot = SnapshotId(log_index);
        let cut = Some(Cut { group: id, by: from });
        for (member, _) in &members {
            if let Some(volume) = self.volumes.get_mut(member) {
                volume.snapshots.push(Snapshot { id: snapshot, name: name.clone(), made: None, nonce, cut });
                volume.newest_snapshot = snapshot;
            }
        }
        Ok(Response::SnapshotCreated { snapshot })
    }

    pub(super) fn group_snapshot_made(
        &mut self,
        snapshot: SnapshotId,
        from: NodeId,
        made: &[(VolumeId, Epoch, Made)],
    ) -> Result<Response, Refusal> {
        let is_it = |listed: &Snapshot| listed.id == snapshot && listed.cut.is_some_and(|cut| cut.by == from);
        for (id, epoch, _) in made {
            let volume = self.volumes.get(id).ok_or(Refusal::UnknownVolume(*id))?;
            require_owner(volume, from, *epoch)?;
            if !volume.snapshots.iter().any(is_it) {
                return Err(Refusal::UnknownSnapshot { volume: *id, snapshot });
            }
        }
        for (id, _, made) in made {
            let volume = self.volumes.get_mut(id);
            let listed = volume.and_then(|volume| volume.snapshots.iter_mut().find(|listed| is_it(listed)));
            if let Some(listed) = listed {
                listed.made.get_or_insert(*made);
            }
        }
        Ok(Response::SnapshotMade)
    }

    pub(super) fn delete_snapshots(
        &mut self,
        snapshots: &[(VolumeId, SnapshotId)],
        if_unmade: bool,
    ) -> Result<Response, Refusal> {
        for (volume, snapshot) in snapshots {
            self.require_not_cloned(*volume, Some(*snapshot))?;
        }
        for (id, snapshot) in snapshots {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.snapshots.retain(|listed| listed.id != *snapshot || (if_unmade && listed.made.is_some()));
            }
        }
        Ok(Response::SnapshotDeleted)
    }

    /// Refuses for a volume of a group what is done with the whole group or not at all.
    pub(super) fn require_alone(&self, id: VolumeId) -> Result<(), Refusal> {
        match (self.group_of(id), self.volumes.get(&id)) {
            (Some(group), Some(volume)) => {
                Err(Refusal::InGroup { volume: volume.name.clone(), group: group.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A process of `node` is over, or what it proposed is void: a snapshot that it was making at one cut of several volumes is made
    /// of none.
    pub(super) fn drop_unmade_of(&mut self, node: NodeId) {
        let is_dropped = |snapshot: &Snapshot| snapshot.made_together_by() == Some(node);
        self.drop_snapshots(is_dropped);
    }

    /// The same, since volume `id` gets another owner.
    pub(super) fn drop_unmade_in(&mut self, id: VolumeId) {
        let of_it = self.volumes.get(&id).map(|volume| volume.snapshots.iter());
        let unmade = of_it.into_iter().flatten().filter(|snapshot| snapshot.made_together_by().is_some());
        let unmade: BTreeSet<SnapshotId> = unmade.map(|snapshot| snapshot.id).collect();
        if unmade.is_empty() {
            return;
        }
        self.drop_snapshots(|listed| listed.made_together_by().is_some() && unmade.contains(&listed.id));
    }

    fn drop_snapshots(&mut self, is_dropped: impl Fn(&Snapshot) -> bool) {
        let concerns = |volume: &Volume| volume.snapshots.iter().any(&is_dropped);
        self.volumes.update(concerns, |volume| volume.snapshots.retain(|listed| !is_dropped(listed)));
    }

    /// Whether the volumes of `group` may be in it.
    fn require_together(&self, group: &VolumeGroup) -> Result<(), Refusal> {
        let volumes = group.members.iter().map(|id| self.volumes.get(id).ok_or(Refusal::UnknownVolume(*id)));
        let volumes: Vec<&Volume> = volumes.collect::<Result<_, _>>()?;
        let Some(first) = volumes.first() else { return Err(Refusal::GroupEmpty(group.name.clone())) };
        if volumes.len() > GROUP_VOLUMES_MAX {
            return Err(Refusal::GroupTooLarge(group.name.clone()));
        }
        for volume in &volumes {
            if let Some(other) = self.group_of(volume.id).filter(|other| other.id != group.id) {
                return Err(Refusal::InGroup { volume: volume.name.clone(), group: other.name.clone() });
            }
            let (volume_name, other) = (volume.name.clone(), first.name.clone());
            if !same_holders(volume, first) {
                return Err(Refusal::ReplicasDiffer { volume: volume_name, other });
            }
            if volume.owner != first.owner {
                let (owner, other_owner) = (self.present(volume.owner)?, self.present(first.owner)?);
                return Err(Refusal::OwnersDiffer { volume: volume_name, owner, other, other_owner });
            }
        }
        Ok(())
    }

    fn present(&self, node: NodeId) -> Result<NodeName, Refusal> {
        self.nodes.get(&node).map(|node| node.name.clone()).ok_or(Refusal::UnknownNode(node))
    }
}

/// Whether two volumes are held by the same nodes.
pub(crate) fn same_holders(one: &Volume, other: &Volume) -> bool {
    let holders = |volume: &Volume| volume.replicas.iter().copied().chain([volume.owner]).collect::<BTreeSet<_>>();
    holders(one) == holders(other)
}
