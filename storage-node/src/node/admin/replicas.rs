//! Nodes that follow volumes from now on, or no more, while the volumes are in use (docs/replicas.md, docs/decisions/0043).
//!
//! The owner does it, and hands the volume to nobody meanwhile. Who is to follow no more counts for no flush from the moment at which that is
//! asked for; when the others hold what was flushed until then, the metadata says that it is no replica, and it drops its copy.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::Class;
use client_lib::wire::admin::{ChangeReplicas, ReplicasReport};
use client_lib::{Error, ErrorKind, Lsn, NodeId, VolumeId};
use consensus::{MetaState, Volume};
use tokio::time::Instant;

use super::durability::require_possible;
use super::handover::Busy;
use super::names::{group_named, names_of, node_named, volume_named};
use super::{NodeAdmin, deleted, outcome};
use crate::node::METADATA_DEADLINE;
use crate::node::ownership_log::stays_too_wide;
use crate::ownership::driver::ReplicaChange;
use crate::peer::message::AdminForward;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::size;

/// How long one request waits until those that stay hold what was flushed; whoever asked may ask again.
const WAIT: Duration = Duration::from_secs(3);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// How long the owner may take to act upon what it has proposed.
const HEARD_PATIENCE: Duration = Duration::from_secs(5);

/// What the owner is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) struct Wanted {
    /// The nodes that follow from now on.
    pub(in crate::node) add: BTreeSet<NodeId>,
    /// Those that follow no more.
    pub(in crate::node) remove: BTreeSet<NodeId>,
}

/// What must be left of a volume where replicas are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Floor {
    /// Whatever is: that was accepted.
    Nothing,
    /// What [`require_enough`] asks for.
    Enough,
    /// As many complete copies as the volume's rule of placement wants.
    Rule,
}

impl Floor {
    /// What somebody asks for who accepts fewer, or does not.
    pub(in crate::node) fn asked(accept_fewer: bool) -> Floor {
        if accept_fewer { Floor::Nothing } else { Floor::Enough }
    }

    fn require(self, state: &MetaState, volume: &Volume, wanted: &Wanted) -> Result<(), Error> {
        let rule = state.places().wanted(volume.id);
        match (self, rule) {
            (Floor::Nothing, _) => Ok(()),
            (Floor::Enough, _) | (Floor::Rule, None) => require_enough(state, volume, wanted),
            (Floor::Rule, Some(rule)) => {
                let copies: usize = rule.shares.iter().map(|share| usize::from(share.copies)).sum();
                let stay = volume.replicas.difference(&wanted.remove);
                if stay.filter(|node| !state.places().is_joining(volume.id, **node)).count() + 1 >= copies {
                    return Ok(());
                }
                let text = format!("the replicas of volume {} have changed meanwhile", volume.name);
                Err(Error::new(ErrorKind::Busy, text))
            }
        }
    }
}

/// Replicas that count for no flush while they are about to be removed.
struct LeftOut {
    volumes: Vec<Arc<ServedVolume>>,
    nodes: BTreeSet<NodeId>,
    /// Up to where each volume was durable in its class with them.
    durable: Vec<Lsn>,
}

impl LeftOut {
    fn begin(volumes: &[Arc<ServedVolume>], nodes: &BTreeSet<NodeId>) -> LeftOut {
        let durable = volumes.iter().map(|volume| volume.flushes.leave_out(nodes)).collect();
        LeftOut { volumes: volumes.to_vec(), nodes: nodes.clone(), durable }
    }
}

impl Drop for LeftOut {
    fn drop(&mut self) {
        self.volumes.iter().for_each(|volume| volume.flushes.let_count(&self.nodes));
    }
}

impl NodeAdmin {
    pub(super) async fn change_replicas_of(
        &self,
        name: &str,
        request: ChangeReplicas,
    ) -> Result<ReplicasReport, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        if let Some(group) = state.group_of(volume.id) {
            let text = format!(
                "volume {name} is in group {0}, whose volumes have the same replicas: change those of all with `helio group replica add {0} NODE` \
                 or `remove`",
                group.name
            );
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        }
        self.ask_for_replicas(&state, vec![volume], &request).await
    }

    pub(super) async fn change_replicas_of_group(
        &self,
        name: &str,
        request: ChangeReplicas,
    ) -> Result<ReplicasReport, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let group = group_named(&state, name)?;
        let volumes = group.members.iter().filter_map(|id| state.volume(*id)).collect();
        self.ask_for_replicas(&state, volumes, &request).await
    }

    async fn ask_for_replicas(
        &self,
        state: &MetaState,
        volumes: Vec<&Volume>,
        request: &ChangeReplicas,
    ) -> Result<ReplicasReport, Error> {
        let named = |names: &[String]| names.iter().map(|name| node_named(state, name)).collect::<Result<_, _>>();
        let wanted = Wanted { add: named(&request.add)?, remove: named(&request.remove)? };
        for volume in &volumes {
            require_sensible(state, volume, &wanted)?;
            if !request.accept_fewer {
                require_enough(state, volume, &wanted)?;
            }
        }
        self.require_places_known(state).await?;
        let floor = Floor::asked(request.accept_fewer);
        self.have_replicas_changed(volumes.iter().map(|volume| volume.id).collect(), wanted, floor).await
    }

    /// Has the owner of `ids`, which are one volume or all of a group, change their replicas if `floor` is left then.
    pub(super) async fn have_replicas_changed(
        &self,
        ids: Vec<VolumeId>,
        wanted: Wanted,
        floor: Floor,
    ) -> Result<ReplicasReport, Error> {
        let Some(first) = ids.first().copied() else { return Ok(ReplicasReport::default()) };
        let here = |_| self.change_replicas_down_to(ids.clone(), wanted.clone(), floor);
        let (Wanted { add, remove }, volumes) = (wanted.clone(), ids.clone());
        if floor == Floor::Enough && !remove.is_empty() {
            let forward = AdminForward::ChangeReplicasIfEnough { volumes, add, remove };
            match self.at_owner(first, forward, here).await {
                // The owner runs a program that does not know the condition: it does without, as before.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                answer => return answer,
            }
        }
        let (Wanted { add, remove }, volumes) = (wanted.clone(), ids.clone());
        self.at_owner(first, AdminForward::ChangeReplicas { volumes, add, remove }, here).await
    }

    /// Changes the replicas of volumes that this node owns, all of them, as their rule of placement wants it.
    pub(in crate::node) async fn change_replicas_here(
        &self,
        ids: Vec<VolumeId>,
        wanted: Wanted,
    ) -> Result<ReplicasReport, Error> {
        self.change_replicas_down_to(ids, wanted, Floor::Rule).await
    }

    /// Changes the replicas of volumes that this node owns, all of them. Whoever wants that has looked at what is left, and so has whoever changed them
    /// in between: it is looked again when no other change can be under way.
    pub(super) async fn change_replicas_down_to(
        &self,
        ids: Vec<VolumeId>,
        wanted: Wanted,
        floor: Floor,
    ) -> Result<ReplicasReport, Error> {
        let mut volumes = Vec::with_capacity(ids.len());
        for id in ids {
            let volume = self.owned(id).await.map_err(|error| match error.kind() {
                ErrorKind::NotOwner if !volumes.is_empty() => apart(&volumes, error),
                _ => error,
            })?;
            volumes.push(volume);
        }
        let state = self.meta.state();
        for meta in volumes.iter().filter_map(|volume| state.volume(volume.id)) {
            require_not_owner(&state, meta, &wanted)?;
        }
        if wanted.add.is_empty() && volumes.iter().any(|volume| stays_too_wide(&state, volume.id, &wanted.remove)) {
            self.require_room_known(&state).await?;
        }
        let left_out = LeftOut::begin(&volumes, &wanted.remove);
        let waiting_for = self.until_dispensable(&left_out).await?;
        if !waiting_for.is_empty() {
            return Ok(ReplicasReport { state: "waiting".into(), waiting_for, ..self.replicas_told(&volumes)? });
        }
        let busy = volumes.iter().map(|volume| Busy::begin(self.busy.clone(), volume));
        let busy: Vec<Busy> = busy.collect::<Result<_, _>>()?;
        // A task of its own: the volumes stay marked until it is known what came of it, whoever stops waiting.
        let (ownership, reconciler, changed) = (self.ownership.clone(), self.reconciler.clone(), volumes.clone());
        let (asked, meta) = (wanted.clone(), self.meta.clone());
        let task = tokio::spawn(async move {
            let (_busy, _left_out) = (busy, left_out);
            if floor != Floor::Nothing && !asked.remove.is_empty() {
                let state = meta.linearizable(METADATA_DEADLINE).await?;
                for volume in changed.iter().filter_map(|volume| state.volume(volume.id)) {
                    floor.require(&state, volume, &asked)?;
                }
            }
            let members = changed.iter().map(|volume| (volume.id, volume.gate.view().epoch)).collect();
            let change = ReplicaChange { members, add: asked.add.clone(), remove: asked.remove.clone() };
            ownership.change_replicas(change).await?;
            let has_heard = |volume: &Arc<ServedVolume>| {
                reconciler.watermarks(volume.id).is_none_or(|marks| {
                    let followed: BTreeSet<NodeId> = marks.snapshot().into_keys().collect();
                    followed.is_superset(&asked.add) && followed.is_disjoint(&asked.remove)
                })
            };
            let end = Instant::now() + HEARD_PATIENCE;
            while !changed.iter().all(has_heard) && Instant::now() < end {
                tokio::time::sleep(LOOK).await;
            }
            Ok::<(), Error>(())
        });
        let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        outcome::known(task, &format!("the replicas of {}", names.join(", "))).await?;
        let state = self.meta.state();
        let (added, removed) = (names_of(&state, &wanted.add), names_of(&state, &wanted.remove));
        for volume in &volumes {
            tracing::info!(volume = %volume.name, added, removed, "replicas were changed");
        }
        Ok(ReplicasReport { state: "changed".into(), ..self.replicas_told(&volumes)? })
    }

    /// Waits, for a while, until nobody needs the nodes that are left out for one of their volumes; what is still to happen.
    ///
    /// # Errors
    /// `Busy` where that does not happen by itself.
    async fn until_dispensable(&self, left_out: &LeftOut) -> Result<Vec<String>, Error> {
        let LeftOut { volumes, nodes, durable } = left_out;
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let state = self.meta.state();
        for volume in volumes {
            self.require_no_tail(&state, volume, nodes)?;
        }
        let end = Instant::now() + WAIT;
        loop {
            let mut waiting = Vec::new();
            for (volume, durable) in volumes.iter().zip(durable) {
                waiting.extend(needed(&state, volume, nodes, *durable).await?);
            }
            if waiting.is_empty() || Instant::now() >= end {
                return Ok(waiting);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn require_no_tail(&self, state: &MetaState, volume: &ServedVolume, nodes: &BTreeSet<NodeId>) -> Result<(), Error> {
        let seen = self.reconciler.watermarks(volume.id).map(|marks| marks.snapshot()).unwrap_or_default();
        let keeps = nodes.iter().find_map(|node| Some((*node, seen.get(node)?.tail?)));
        let Some((node, tail)) = keeps else { return Ok(()) };
        let (node, name) = (state.name_of(node), &volume.name);
        let text = format!(
            "node {node} keeps {} writes of volume {name} that a takeover cut off, and nobody else has them: export them there, and drop them \
             with `helio volume rejoin {name} --node {node} --discard-tail`; then remove it",
            tail.to.sequence.saturating_sub(tail.from.sequence)
        );
        Err(Error::new(ErrorKind::Busy, text))
    }

    /// The replicas as they are in the metadata now.
    fn replicas_told(&self, volumes: &[Arc<ServedVolume>]) -> Result<ReplicasReport, Error> {
        let state = self.meta.state();
        let Some(first) = volumes.first() else { return Ok(ReplicasReport::default()) };
        let meta = state.volume(first.id).ok_or_else(|| deleted(first))?;
        let joining = volumes.iter().flat_map(|volume| state.places().joining(volume.id)).collect::<BTreeSet<_>>();
        Ok(ReplicasReport {
            volumes: volumes.iter().map(|volume| volume.name.to_string()).collect(),
            owner: state.name_of(meta.owner),
            replicas: meta.replicas.iter().map(|node| state.name_of(*node)).collect(),
            joining: joining.into_iter().map(|node| state.name_of(node)).collect(),
            ..ReplicasReport::default()
        })
    }
}

/// What must happen before `volume` does without `nodes`, if anything.
async fn needed(
    state: &MetaState,
    volume: &ServedVolume,
    nodes: &BTreeSet<NodeId>,
    flushed: Lsn,
) -> Result<Option<String>, Error> {
    let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
    // After two handovers at once they may be at none but an owner before the last: whoever was ever complete may be the one.
    let may_have = nodes.iter().any(|node| !state.places().is_joining(volume.id, *node));
    if report.stale_blocks > 0 && may_have {
        let bytes = size::human(report.stale_blocks * u64::from(client_lib::BLOCK_SIZE));
        return Ok(Some(format!("volume {}: its owner still fetches {bytes} from other nodes", volume.name)));
    }
    let (flushes, _) = volume.flushes.look();
    let class = flushes.policy().class;
    // Where it can never be so that was accepted.
    let is_possible = class != Class::Local && flushes.places() >= class.others();
    Ok((is_possible && flushes.durable() < flushed).then(|| {
        format!(
            "volume {}: what was flushed in class {class} up to {flushed} is to be held by those that stay",
            volume.name
        )
    }))
}

/// Refuses what means nothing.
fn require_sensible(state: &MetaState, volume: &Volume, wanted: &Wanted) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::new(ErrorKind::InvalidRequest, text));
    let name = &volume.name;
    if wanted.add.is_empty() && wanted.remove.is_empty() {
        return invalid("name the nodes that are to follow, or to follow no more".to_owned());
    }
    if let Some(both) = wanted.add.intersection(&wanted.remove).next() {
        return invalid(format!("node {} cannot be added and removed at once", state.name_of(*both)));
    }
    require_not_owner(state, volume, wanted)?;
    if let Some(none) = wanted.remove.iter().find(|node| !volume.replicas.contains(node)) {
        let replicas = names_of(state, &volume.replicas);
        let at = if replicas.is_empty() { "nowhere".to_owned() } else { format!("at {replicas}") };
        return invalid(format!("node {} holds no replica of volume {name}; they are {at}", state.name_of(*none)));
    }
    Ok(())
}

/// Refuses to have the owner follow, or follow no more: it may be another one than when that was asked for.
fn require_not_owner(state: &MetaState, volume: &Volume, wanted: &Wanted) -> Result<(), Error> {
    let (name, owner) = (&volume.name, state.name_of(volume.owner));
    let text = if wanted.remove.contains(&volume.owner) {
        format!(
            "node {owner} owns volume {name}: hand it over with `helio volume migrate {name} --to NODE`, and remove it then"
        )
    } else if wanted.add.contains(&volume.owner) {
        format!("node {owner} owns volume {name}, and holds it already")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

/// Refuses to leave a volume without any replica, without one that has everything if one has, or without those that its class asks for.
fn require_enough(state: &MetaState, volume: &Volume, wanted: &Wanted) -> Result<(), Error> {
    let left: BTreeSet<NodeId> =
        volume.replicas.union(&wanted.add).copied().filter(|node| !wanted.remove.contains(node)).collect();
    // One that has yet to get everything does not count until then.
    let is_whole = |node: &NodeId| volume.replicas.contains(node) && !state.places().is_joining(volume.id, *node);
    let loses_last = wanted.remove.iter().any(is_whole) && !left.iter().any(is_whole);
    let refused = match (left.is_empty(), loses_last) {
        (true, _) => Some(("no replica", "add one first")),
        (false, true) => {
            Some(("no replica but such as have yet to get everything", "wait until one has (`helio volume status`)"))
        }
        (false, false) => None,
    };
    if let Some((left, first)) = refused {
        let text = format!(
            "volume {} would have {left}, and be lost with node {}: {first}, or say that it is meant with --accept-fewer",
            volume.name,
            state.name_of(volume.owner)
        );
        return Err(Error::new(ErrorKind::InvalidRequest, text));
    }
    if !wanted.remove.iter().any(is_whole) {
        return Ok(());
    }
    let whole = left.into_iter().filter(is_whole);
    require_possible(state, volume.name.as_str(), volume.durability.class, volume.owner, whole).map_err(|error| {
        let text = format!(
            "{} (here: --accept-fewer; replicas that are added count when they have everything)",
            error.message()
        );
        Error::new(error.kind(), text)
    })
}

/// Not all volumes of a group are at one node.
fn apart(volumes: &[Arc<ServedVolume>], error: Error) -> Error {
    let first = volumes.first().map(|volume| volume.name.to_string()).unwrap_or_default();
    let text = format!(
        "the other volumes are not where volume {first} is: bring the group together with `helio group migrate` first"
    );
    Error::new(ErrorKind::InvalidRequest, text).caused_by(error)
}

#[cfg(test)]
mod tests {
    use client_lib::VolumeSize;
    use consensus::Command;

    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Volume 10 of node 1, with a rule for two copies.
    fn state(replicas: &[u64]) -> MetaState {
        let mut state = MetaState::default();
        let mut apply = |index, command| state.apply(index, command).into_result().expect("is applied");
        for id in 1..=3 {
            let (name, provider) = (format!("n{id}").parse().expect("a name"), "p".parse().expect("a name"));
            apply(id, Command::RegisterNode { id: NodeId(id), name, provider, address: String::new() });
        }
        let (name, size) = ("disk".parse().expect("a name"), VolumeSize::try_from(1 << 20).expect("a size"));
        let replicas = ids(replicas);
        apply(10, Command::CreateVolume { name, size, owner: NodeId(1), replicas, nonce: 10 });
        let placement = Some("2 in p".parse().expect("a rule"));
        apply(11, Command::SetPlacement { volumes: [VolumeId(10)].into(), placement });
        state
    }

    /// A rule gave up what there was too much of while somebody removed the replica that was to stay: the volume had none.
    #[test]
    fn what_is_to_be_left_is_looked_at_in_the_state_at_the_change() {
        let wanted = Wanted { add: ids(&[]), remove: ids(&[3]) };
        let refused = |replicas: &[u64], floor: Floor| {
            let state = state(replicas);
            let volume = state.volume(VolumeId(10)).expect("exists");
            floor.require(&state, volume, &wanted).err().map(|error| error.kind())
        };
        for floor in [Floor::Nothing, Floor::Enough, Floor::Rule] {
            assert_eq!(refused(&[2, 3], floor), None, "{floor:?}");
        }
        assert_eq!(refused(&[3], Floor::Nothing), None, "that was accepted");
        assert_eq!(refused(&[3], Floor::Enough), Some(ErrorKind::InvalidRequest));
        assert_eq!(refused(&[3], Floor::Rule), Some(ErrorKind::Busy));
    }
}
