//! Groups of volumes: made, changed, looked at; handed over and kept as snapshots in one step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client_lib::wire::admin::{
    CancelledMigrate, ChangeGroup, CreateGroup, CreateSnapshot, CutVolume, GroupMigrateReport, GroupSnapshot,
    GroupSnapshotReport, GroupStatus, GroupVolume, Migrate, MovedVolume, OnWrite, OnWriteStatus,
};
use client_lib::{Epoch, Error, ErrorKind, GroupName, NodeId, SnapshotName, VolumeGroupId, VolumeId};
use consensus::{Command, MetaState, Refusal, Response, Volume, VolumeGroup};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handover::{Busy, How};
use super::names::{group_named, volume_named};
use super::{NodeAdmin, nonce, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::ownership::driver::Driver;
use crate::peer::message::AdminForward;
use crate::serve::cut::{CutReport, snapshot_together};
use crate::serve::tail::require_no_tail_name;
use crate::serve::volume::ServedVolume;

/// How long a snapshot of a group may take before whoever asked is told that it goes on.
pub(super) const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

impl NodeAdmin {
    pub(super) async fn make_group(&self, request: CreateGroup) -> Result<GroupStatus, Error> {
        let name: GroupName = request.name.parse()?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let members = ids_of(&state, &request.volumes)?;
        require_one_rule(&state, &members, members.first())?;
        let command = Command::CreateGroup { name: name.clone(), members, nonce: nonce() };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::GroupCreated { .. } => self.group_status(name.as_str()).await,
            other => Err(out_of_turn(&other)),
        }
    }

    pub(super) async fn change_group_of(&self, name: &str, request: ChangeGroup) -> Result<GroupStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let (add, remove) = (ids_of(&state, &request.add)?, ids_of(&state, &request.remove)?);
        if let Some(stranger) = remove.iter().find(|id| !group.members.contains(id)).and_then(|id| state.volume(*id)) {
            let (volume, group) = (stranger.name.clone(), group.name.clone());
            return Err(Refusal::NotInGroup { volume, group }.into());
        }
        let stay = group.members.union(&add).filter(|id| !remove.contains(id)).copied().collect();
        require_one_rule(&state, &stay, group.members.first())?;
        let command = Command::ChangeGroup { group: group.id, add, remove };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::GroupChanged => self.group_status(name).await,
            other => Err(out_of_turn(&other)),
        }
    }

    pub(super) async fn drop_group(&self, name: &str) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?.id;
        self.meta.carry_out(Command::DeleteGroup { group }, METADATA_DEADLINE).await.map(drop)
    }

    pub(super) async fn list_groups(&self) -> Result<Vec<GroupStatus>, Error> {
        let state = self.recall().await;
        Ok(state.groups().map(|group| status(&state, group)).collect())
    }

    pub(super) async fn group_status(&self, name: &str) -> Result<GroupStatus, Error> {
        let state = self.recall().await;
        Ok(status(&state, group_named(&state, name)?))
    }

    /// Hands all volumes of a group over: those of each owner in one step. There is one owner, unless some were taken over.
    pub(super) async fn migrate_group_to(&self, name: &str, request: &Migrate) -> Result<GroupMigrateReport, Error> {
        let began = Instant::now();
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let mut report = GroupMigrateReport::default();
        for (owner, volume, to) in self.ways(&state, group, &request.to, request.accept_unmet)? {
            let left = |ms: u64| ms.saturating_sub(began.elapsed().as_millis() as u64).max(1);
            let (group, synced, deadline_ms) = (group.id, request.synced, request.deadline_ms.map(left));
            let forward = AdminForward::MigrateGroup { group, to, synced, deadline_ms };
            let how = How::asked(synced, deadline_ms);
            let part = self.at_owner(volume, forward, |_| self.migrate_group_here(group, to, how)).await;
            let part: GroupMigrateReport = part.map_err(|error| match report.volumes.is_empty() {
                true => error,
                false => {
                    let what = format!("the volumes of node {} stay there: {error}", state.name_of(owner));
                    Error::new(error.kind(), what)
                }
            })?;
            report.handover_ms = report.handover_ms.max(part.handover_ms);
            report.stale_bytes_at_handover += part.stale_bytes_at_handover;
            report.caught_up_seconds += part.caught_up_seconds;
            report.volumes.extend(part.volumes);
        }
        Ok(report)
    }

    /// From which owners, asked by which volume of theirs, to which node a group would move.
    fn ways(
        &self,
        state: &MetaState,
        group: &VolumeGroup,
        to: &str,
        accept_unmet: bool,
    ) -> Result<Vec<(NodeId, VolumeId, NodeId)>, Error> {
        let mut ways: Vec<(NodeId, VolumeId, NodeId)> = Vec::new();
        for volume in volumes_of(state, group) {
            let to = self.destination(state, volume, to, accept_unmet)?;
            if volume.owner != to && ways.iter().all(|(owner, ..)| *owner != volume.owner) {
                ways.push((volume.owner, volume.id, to));
            }
        }
        Ok(ways)
    }

    /// Hands the volumes of a group over that this node owns.
    pub(super) async fn migrate_group_here(
        &self,
        group: VolumeGroupId,
        to: NodeId,
        how: How,
    ) -> Result<GroupMigrateReport, Error> {
        if to == self.this.id {
            return Ok(GroupMigrateReport::default());
        }
        let (name, volumes) = self.owned_of(group).await?;
        let served: Vec<Arc<ServedVolume>> = volumes.iter().map(|(volume, _)| volume.clone()).collect();
        let cancel = CancellationToken::new();
        let driver = Driver::of_group(group, volumes, to, self.ownership.clone(), cancel.clone());
        let report = self.hand_over(driver, &format!("group {name}"), &served, how, cancel).await?;
        tracing::info!(group = %name, volumes = served.len(), to = %to, held = ?report.held, stale_bytes = report.stale_bytes, "handed over");
        let moved = |(volume, epoch): (&Arc<ServedVolume>, &Epoch)| MovedVolume {
            name: volume.name.to_string(),
            epoch: epoch.0,
        };
        Ok(GroupMigrateReport {
            handover_ms: report.held.as_secs_f64() * 1000.0,
            volumes: served.iter().zip(&report.epochs).map(moved).collect(),
            stale_bytes_at_handover: report.stale_bytes,
            caught_up_seconds: report.caught_up.as_secs_f64(),
        })
    }

    /// The name of a group, and its volumes that this node owns, in the order of their ids, with the epochs in which it does.
    async fn owned_of(&self, id: VolumeGroupId) -> Result<(GroupName, Vec<(Arc<ServedVolume>, Epoch)>), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = state.group(id).ok_or_else(|| Error::from(Refusal::UnknownGroup(id)))?;
        let mut volumes = Vec::new();
        for volume in volumes_of(&state, group).filter(|volume| volume.owner == self.this.id) {
            let served = self.owned(volume.id).await?;
            let epoch = served.gate.view().epoch;
            volumes.push((served, epoch));
        }
        if volumes.is_empty() {
            let what = format!("no volume of group {} is owned here any more; try again", group.name);
            return Err(Error::new(ErrorKind::NotOwner, what));
        }
        Ok((group.name.clone(), volumes))
    }

    /// Lets a group go to a node when one of its volumes is written there.
    pub(super) async fn let_group_go_on_write(&self, name: &str, request: &OnWrite) -> Result<OnWriteStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let ways = self.ways(&state, group, &request.to, request.accept_unmet)?;
        let Some((_, volume, to)) = ways.first().copied() else {
            let what = format!("group {name} is at node {} already, and is written there as it is", request.to);
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        };
        let command = Command::SetGroupOnWrite { group: group.id, to: Some(to) };
        self.meta.carry_out(command, METADATA_DEADLINE).await?;
        let epoch = state.volume(volume).map_or(0, |volume| volume.epoch.0);
        Ok(OnWriteStatus { to: request.to.clone(), epoch })
    }

    /// Ends a handover of a group that is under way and not proposed yet, and takes back that it may go by a write.
    pub(super) async fn cancel_group_handover(&self, name: &str) -> Result<CancelledMigrate, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let on_write = on_write_of(&state, group);
        if on_write.is_some() {
            let command = Command::SetGroupOnWrite { group: group.id, to: None };
            self.meta.carry_out(command, METADATA_DEADLINE).await?;
        }
        let mut handover = false;
        // Those of one owner are one handover: whichever is asked for ends it.
        let mut owners = BTreeSet::new();
        for volume in volumes_of(&state, group).filter(|volume| owners.insert(volume.owner)) {
            let forward = AdminForward::CancelMigrate { volume: volume.id };
            handover |= self.at_owner(volume.id, forward, |served| self.cancel_here(served)).await?;
        }
        Ok(CancelledMigrate { handover, on_write })
    }

    pub(super) async fn take_group_snapshot(
        &self,
        name: &str,
        request: CreateSnapshot,
    ) -> Result<GroupSnapshotReport, Error> {
        let snapshot: SnapshotName = request.name.parse()?;
        require_no_tail_name(&snapshot)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        if let Some(advice) = status(&state, group).advice {
            let what = format!("there is no moment for all volumes of group {name}: {advice}");
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        let first = volumes_of(&state, group).next().ok_or_else(|| Error::from(Refusal::UnknownGroup(group.id)))?;
        let forward = AdminForward::SnapshotGroup { group: group.id, name: snapshot.clone() };
        let id = group.id;
        self.at_owner(first.id, forward, |_| self.snapshot_group_here(id, snapshot.clone())).await
    }

    /// As the owner of all volumes of the group.
    pub(super) async fn snapshot_group_here(
        &self,
        group: VolumeGroupId,
        name: SnapshotName,
    ) -> Result<GroupSnapshotReport, Error> {
        let (group_name, volumes) = self.owned_of(group).await?;
        let busy = volumes.iter().map(|(volume, _)| Busy::begin(self.busy.clone(), volume));
        let busy: Vec<Busy> = busy.collect::<Result<_, _>>()?;
        let (log, cut, snapshot) = (self.ownership.clone(), volumes.clone(), name.clone());
        // A task of its own: writers must go on, whoever stops waiting.
        let task = tokio::spawn(async move {
            let _busy = busy;
            snapshot_together(group, &cut, snapshot, nonce(), &*log).await
        });
        let made = tokio::time::timeout(SNAPSHOT_PATIENCE, task).await.map_err(|_| {
            let what = format!(
                "snapshot {group_name}@{name} was not known to be made within {SNAPSHOT_PATIENCE:?}; it is made of all volumes or of none: \
                 `helio group status {group_name}` shows it"
            );
            Error::new(ErrorKind::Unavailable, what)
        })?;
        let CutReport { snapshot, made, held } =
            made.map_err(|error| Error::new(ErrorKind::Internal, "the snapshot ended early").caused_by(error))??;
        tracing::info!(group = %group_name, snapshot = %name, ?held, "a snapshot of a group is made");
        let at = volumes.iter().zip(&made);
        Ok(GroupSnapshotReport {
            name: name.to_string(),
            id: snapshot.0,
            volumes: at
                .map(|((volume, _), made)| CutVolume { name: volume.name.to_string(), lsn: made.lsn.to_string() })
                .collect(),
            held_ms: held.as_secs_f64() * 1000.0,
        })
    }

    pub(super) async fn drop_group_snapshot(&self, name: &str, snapshot: &str) -> Result<GroupSnapshot, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let found = snapshots(&state, group).into_iter().find(|found| found.name == snapshot).ok_or_else(|| {
            let what =
                format!("group {name} has no snapshot {snapshot:?}; `helio group status {name}` shows those it has");
            Error::new(ErrorKind::NotFound, what)
        })?;
        let listed = state.volumes().filter_map(|volume| {
            let listed = volume.snapshot_named(snapshot)?;
            listed.cut.filter(|cut| cut.group == group.id).map(|_| (volume.id, listed.id))
        });
        let command = Command::DeleteSnapshots { snapshots: listed.collect(), if_unmade: false };
        self.meta.carry_out(command, METADATA_DEADLINE).await?;
        Ok(found)
    }
}

fn ids_of(state: &MetaState, names: &[String]) -> Result<BTreeSet<VolumeId>, Error> {
    names.iter().map(|name| volume_named(state, name).map(|volume| volume.id)).collect()
}

/// Refuses to bring volumes together that have different rules of placement. Each would get that of `first`, and who may make groups may not say where
/// copies are.
fn require_one_rule(state: &MetaState, members: &BTreeSet<VolumeId>, first: Option<&VolumeId>) -> Result<(), Error> {
    let Some(first) = first.and_then(|first| state.volume(*first)) else { return Ok(()) };
    let rule = state.places().wanted(first.id);
    let differs = |volume: &&Volume| state.places().wanted(volume.id) != rule;
    let Some(other) = members.iter().filter_map(|id| state.volume(*id)).find(differs) else { return Ok(()) };
    let told =
        |volume: &Volume| state.places().wanted(volume.id).map_or_else(|| "none".to_owned(), ToString::to_string);
    let what = format!(
        "volume {0} has another rule of placement than volume {1} ({2}; {3}), and the volumes of a group have one: give both the same with \
         `helio volume place` first",
        other.name,
        first.name,
        told(other),
        told(first)
    );
    Err(Error::new(ErrorKind::InvalidRequest, what))
}

fn volumes_of<'a>(state: &'a MetaState, group: &'a VolumeGroup) -> impl Iterator<Item = &'a Volume> {
    group.members.iter().filter_map(|id| state.volume(*id))
}

fn on_write_of(state: &MetaState, group: &VolumeGroup) -> Option<String> {
    volumes_of(state, group).find_map(|volume| volume.on_write).map(|to| state.name_of(to))
}

/// The snapshots that were made of a group, also of volumes that were in it then.
fn snapshots(state: &MetaState, group: &VolumeGroup) -> Vec<GroupSnapshot> {
    let mut found: Vec<(u64, GroupSnapshot)> = Vec::new();
    for volume in state.volumes() {
        for listed in volume.snapshots.iter().filter(|listed| listed.cut.is_some_and(|cut| cut.group == group.id)) {
            match found.iter_mut().find(|(id, _)| *id == listed.id.0) {
                Some((_, known)) => known.volumes.push(volume.name.to_string()),
                None => {
                    let (name, volumes) = (listed.name.to_string(), vec![volume.name.to_string()]);
                    found.push((listed.id.0, GroupSnapshot { name, is_made: listed.made.is_some(), volumes }));
                }
            }
        }
    }
    found.sort_by_key(|(id, _)| *id);
    found.into_iter().map(|(_, snapshot)| snapshot).collect()
}

fn status(state: &MetaState, group: &VolumeGroup) -> GroupStatus {
    let told = |volume: &Volume| GroupVolume {
        name: volume.name.to_string(),
        owner: state.name_of(volume.owner),
        epoch: volume.epoch.0,
        replicas: volume.replicas.iter().map(|replica| state.name_of(*replica)).collect(),
    };
    let owners: Vec<NodeId> = volumes_of(state, group).map(|volume| volume.owner).collect();
    let share = |node: &NodeId| owners.iter().filter(|owner| *owner == node).count();
    let is_one = owners.iter().all(|owner| Some(owner) == owners.first());
    // Where most of it is; of several the one with the smallest id.
    let most = owners.iter().max_by_key(|node| (share(node), std::cmp::Reverse(node.0)));
    let advice = most.filter(|_| !is_one).map(|most| {
        format!(
            "its volumes have different owners after a takeover; bring them together: `helio group migrate {} --to {}`",
            group.name,
            state.name_of(*most)
        )
    });
    GroupStatus {
        name: group.name.to_string(),
        id: group.id.0,
        owner: owners.first().filter(|_| is_one).map(|owner| state.name_of(*owner)),
        volumes: volumes_of(state, group).map(told).collect(),
        snapshots: snapshots(state, group),
        on_write: on_write_of(state, group),
        advice,
    }
}
