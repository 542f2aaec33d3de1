//! Keeps the copies of volumes where their rules want them (docs/replicas.md).
//!
//! The owner of a volume does it, so that whoever owns it goes on with it, and nobody has to be there for all. A copy is added before another is
//! given up, and that only when every other one is complete. A node that is down keeps its copy: only one that is removed is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::placement::{Placement, Plan, Site};
use client_lib::{Error, NodeId, VolumeId};
use consensus::{MetaState, Volume};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::admin::NodeAdmin;
use super::admin::replicas::Wanted;

/// How often it is looked, beside when the metadata changes.
const LOOK: Duration = Duration::from_secs(5);

/// The shortest time between two looks: metadata changes in bursts.
const REST: Duration = Duration::from_millis(500);

/// New copies on their way at once, of all volumes of a node: each is sent everything. A group of more volumes than this gets them all the same, at one
/// further node at a time, when no others are on their way.
const JOINING_MAX: usize = 4;

/// Keeps to the rules of the volumes that this node owns, for as long as it runs.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut states = admin.meta.subscribe();
    let mut failures: BTreeMap<VolumeId, String> = BTreeMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        let owned = owned_with_rules(&state, admin.this.id);
        failures.retain(|volume, _| owned.iter().any(|(ids, _)| ids.first() == Some(volume)));
        if !owned.is_empty() {
            let sites = sites(&admin, &state).await;
            let mut room = JOINING_MAX.saturating_sub(joining(&state, admin.this.id));
            for (ids, rule) in owned {
                let Some(first) = ids.first().and_then(|id| state.volume(*id)) else { continue };
                let plan = rule.plan(&sites, first.owner, &first.replicas);
                let Some(wanted) = next(&state, &ids, first, &plan, room) else { continue };
                room = room.saturating_sub(wanted.add.len() * ids.len());
                note(&mut failures, first, admin.change_replicas_here(ids, wanted).await.map(drop));
            }
        }
        // Leases are renewed all the time, and say nothing of places.
        let next_look = Instant::now() + LOOK;
        tokio::time::sleep(REST).await;
        while let Ok(changed) = tokio::time::timeout_at(next_look, states.changed()).await {
            if changed.is_err() {
                return;
            }
            if !states.borrow_and_update().differs_in_leases_only(&state) {
                break;
            }
        }
    }
}

/// What is to be done next for a plan to be carried out; nothing, as long as something else must happen first.
fn next(state: &MetaState, ids: &[VolumeId], volume: &Volume, plan: &Plan, room: usize) -> Option<Wanted> {
    if !plan.add.is_empty() {
        let at_once = (room / ids.len().max(1)).max(usize::from(room >= JOINING_MAX));
        let add: BTreeSet<NodeId> = plan.add.iter().copied().take(at_once).collect();
        return (!add.is_empty()).then(|| Wanted { add, remove: BTreeSet::new() });
    }
    let stay = |node: &&NodeId| !plan.surplus.contains(node);
    let joins = |node: &NodeId| ids.iter().any(|id| state.places().is_joining(*id, *node));
    let is_whole = plan.lacking.is_empty() && !volume.replicas.iter().filter(stay).any(joins);
    (is_whole && !plan.surplus.is_empty()).then(|| Wanted { add: BTreeSet::new(), remove: plan.surplus.clone() })
}

/// Says why a rule is not kept to, once for each reason.
fn note(failures: &mut BTreeMap<VolumeId, String>, volume: &Volume, outcome: Result<(), Error>) {
    match outcome {
        Ok(()) => drop(failures.remove(&volume.id)),
        Err(error) => {
            let text = error.to_string();
            if failures.get(&volume.id) != Some(&text) {
                tracing::warn!(volume = %volume.name, %error, "the copies are not where the rule wants them; it is tried again");
                failures.insert(volume.id, text);
            }
        }
    }
}

/// The volumes that `me` owns and that have a rule, those of a group together, if it owns all of them.
fn owned_with_rules(state: &MetaState, me: NodeId) -> Vec<(Vec<VolumeId>, &Placement)> {
    let owns = |id: &VolumeId| state.volume(*id).is_some_and(|volume| volume.owner == me);
    let together = |volume: &Volume| state.led_by(volume.id).filter(|ids| ids.iter().all(owns));
    let owned = state.volumes().filter(|volume| volume.owner == me);
    owned.filter_map(|volume| Some((together(volume)?, state.places().wanted(volume.id)?))).collect()
}

/// How many replicas of volumes of `me` are still to become complete.
fn joining(state: &MetaState, me: NodeId) -> usize {
    let owned = state.volumes().filter(|volume| volume.owner == me);
    owned.map(|volume| state.places().joining(volume.id).count()).sum()
}

/// The nodes as rules see them; those that answer may get further copies.
pub(super) async fn sites(admin: &NodeAdmin, state: &MetaState) -> Vec<Site> {
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for volume in state.volumes() {
        for node in volume.replicas.iter().chain([&volume.owner]) {
            *load.entry(*node).or_default() += 1;
        }
    }
    let site = |node: &consensus::Node, is_open: bool| Site {
        id: node.id,
        provider: node.provider.clone(),
        labels: state.places().labels(node.id).cloned().collect(),
        is_open,
        load: load.get(&node.id).copied().unwrap_or(0),
    };
    let are_up = join_all(state.nodes().map(|node| admin.reach(node.id))).await;
    state.nodes().zip(are_up).map(|(node, is_up)| site(node, is_up)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn volume(replicas: &[u64]) -> Volume {
        Volume { replicas: ids(replicas), ..Volume::example() }
    }

    fn step(replicas: &[u64], plan: &Plan, room: usize) -> Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
        step_of(1, replicas, plan, room)
    }

    /// The same of a group of so many volumes.
    fn step_of(
        volumes: u64,
        replicas: &[u64],
        plan: &Plan,
        room: usize,
    ) -> Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
        let group: Vec<VolumeId> = (1..=volumes).map(VolumeId).collect();
        let wanted = next(&MetaState::default(), &group, &volume(replicas), plan, room);
        wanted.map(|wanted| (wanted.add, wanted.remove))
    }

    /// A node of a group gets as many copies as the group has volumes. More than four are never on their way at once, so a group of five got none,
    /// without a word; and as one was to be added, none was given up either.
    #[test]
    fn a_large_group_gets_its_copies_at_one_node_at_a_time() {
        let plan = Plan { add: ids(&[4, 5]), surplus: ids(&[2]), ..Plan::default() };
        let one = Some((ids(&[4]), ids(&[])));
        for volumes in [3, 4, 5, 64] {
            assert_eq!(step_of(volumes, &[2, 3], &plan, JOINING_MAX), one, "a group of {volumes}");
        }
        assert_eq!(step_of(2, &[2, 3], &plan, JOINING_MAX), Some((ids(&[4, 5]), ids(&[]))), "as before");
        assert_eq!(step_of(5, &[2, 3], &plan, JOINING_MAX - 1), None, "another copy is on its way");
        assert_eq!(step_of(3, &[2, 3], &plan, JOINING_MAX - 1), one);
    }

    #[test]
    fn a_copy_is_given_up_only_when_nothing_is_to_be_added_or_lacking() {
        let both = Plan { add: ids(&[4, 5]), surplus: ids(&[2]), ..Plan::default() };
        assert_eq!(step(&[2, 3], &both, 4), Some((ids(&[4, 5]), ids(&[]))));
        assert_eq!(step(&[2, 3], &both, 1), Some((ids(&[4]), ids(&[]))), "the other one later");
        assert_eq!(step(&[2, 3], &both, 0), None);
        let surplus = Plan { surplus: ids(&[2]), ..Plan::default() };
        assert_eq!(step(&[2, 3], &surplus, 0), Some((ids(&[]), ids(&[2]))));
        let lacking = Plan {
            lacking: vec![("1 in eu".parse::<Placement>().expect("a rule").shares[0].among.clone(), 1)],
            ..surplus
        };
        assert_eq!(step(&[2, 3], &lacking, 4), None, "what there is too much of stands for what lacks");
        assert_eq!(step(&[2, 3], &Plan::default(), 4), None);
    }
}
