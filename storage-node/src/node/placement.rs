//! Keeps the copies of volumes where their rules want them (docs/replicas.md).
//!
//! The owner of a volume does it, so that whoever owns it goes on with it, and nobody has to be there for all. A copy is added before another is
//! given up, and that only when every other one is complete and within reach. A node that is down keeps its copy: only one that is leaving, or was
//! removed, is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::policy::placement::{Held, Placement, Plan, Site};
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

/// Why rules of volumes that this node owns were not kept to at the last attempt, each under the first of the volumes that it is of.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeMap<VolumeId, String>>);

impl Failures {
    /// Why it is so of a volume, or of its group.
    pub(super) fn of(&self, first: VolumeId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&first).cloned()
    }

    fn forget_others(&self, owned: &[(Vec<VolumeId>, &Placement)]) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|volume, _| owned.iter().any(|(ids, _)| ids.first() == Some(volume)));
    }

    /// Notes an attempt, and says why it failed, once for each reason.
    fn note(&self, volume: &Volume, outcome: Result<(), Error>) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
}

/// What comes next of a plan.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It is carried out.
    Nothing,
    /// The owner does that.
    Change(Wanted),
    /// Something must happen first: in words.
    Waits(Vec<String>),
}

/// Keeps to the rules of the volumes that this node owns, for as long as it runs.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut states = admin.meta.subscribe();
    loop {
        let state = states.borrow_and_update().clone();
        let owned = owned_with_rules(&state, admin.this.id);
        admin.placing.forget_others(&owned);
        if !owned.is_empty() {
            let sites = sites(&admin, &state).await;
            let mut room = JOINING_MAX.saturating_sub(joining(&state, admin.this.id));
            for (ids, rule) in owned {
                let Some(first) = ids.first().and_then(|id| state.volume(*id)) else { continue };
                let held = held(&state, first);
                let plan = rule.plan(&sites, first.owner, &held);
                let Next::Change(wanted) = next(&state, &sites, ids.len(), &held, &plan, room) else { continue };
                room = room.saturating_sub(wanted.add.len() * ids.len());
                admin.placing.note(first, admin.change_replicas_here(ids, wanted).await.map(drop));
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

/// What `rule` means for `volume`, or for all of its group.
pub(super) fn plan(state: &MetaState, sites: &[Site], volume: &Volume, rule: &Placement) -> Plan {
    rule.plan(sites, volume.owner, &held(state, volume))
}

/// What a plan of a volume that this node owns, or of its group, waits for, in sentences.
pub(super) fn waits_for(
    admin: &NodeAdmin,
    state: &MetaState,
    sites: &[Site],
    volume: &Volume,
    plan: &Plan,
) -> Vec<String> {
    let ids = together(state, volume.id);
    let room = JOINING_MAX.saturating_sub(joining(state, volume.owner));
    match next(state, sites, ids.len(), &held(state, volume), plan, room) {
        Next::Nothing => Vec::new(),
        Next::Waits(waits) => waits,
        Next::Change(_) => {
            let failure = ids.first().and_then(|first| admin.placing.of(*first));
            failure.into_iter().map(|why| format!("it tries again; the last attempt failed: {why}")).collect()
        }
    }
}

/// The volumes that are placed together with `volume`, itself among them.
fn together(state: &MetaState, volume: VolumeId) -> Vec<VolumeId> {
    state.group_of(volume).map_or_else(|| vec![volume], |group| group.members.iter().copied().collect())
}

/// Who has `volume`; of a group, a replica joins that has yet to become complete of any.
fn held(state: &MetaState, volume: &Volume) -> Held {
    let joining = together(state, volume.id).iter().flat_map(|id| state.places().joining(*id)).collect();
    Held { replicas: volume.replicas.clone(), joining }
}

/// What comes next of a plan of so many volumes, with room for so many new copies.
fn next(state: &MetaState, sites: &[Site], volumes: usize, held: &Held, plan: &Plan, room: usize) -> Next {
    if !plan.add.is_empty() {
        let at_once = (room / volumes.max(1)).max(usize::from(room >= JOINING_MAX));
        let add: BTreeSet<NodeId> = plan.add.iter().copied().take(at_once).collect();
        if add.is_empty() {
            let text = format!(
                "further copies are added when others of this owner's volumes have become complete: at most {JOINING_MAX} at once"
            );
            return Next::Waits(vec![text]);
        }
        return Next::Change(Wanted { add, remove: BTreeSet::new() });
    }
    if plan.surplus.is_empty() {
        return Next::Nothing;
    }
    let is_up = |node: &NodeId| sites.iter().any(|site| site.id == *node && site.is_up);
    let waits = |node: &NodeId| match (held.joining.contains(node), is_up(node)) {
        (_, false) => Some(format!("no copy is given up before node {} answers", state.name_of(*node))),
        (true, true) => Some(format!("no copy is given up before node {} has everything", state.name_of(*node))),
        (false, true) => None,
    };
    let stay = held.replicas.difference(&plan.surplus);
    let lacking = plan
        .lacking
        .iter()
        .map(|(among, count)| format!("no copy is given up before there are nodes for {count} {among}"));
    let waits: Vec<String> = lacking.chain(stay.filter_map(waits)).collect();
    match waits.is_empty() {
        true => Next::Change(Wanted { add: BTreeSet::new(), remove: plan.surplus.clone() }),
        false => Next::Waits(waits),
    }
}

/// The volumes that `me` owns and that have a rule, those of a group together, if it owns all of them.
fn owned_with_rules(state: &MetaState, me: NodeId) -> Vec<(Vec<VolumeId>, &Placement)> {
    let owns = |id: &VolumeId| state.volume(*id).is_some_and(|volume| volume.owner == me);
    let led = |volume: &Volume| state.led_by(volume.id).filter(|ids| ids.iter().all(owns));
    let owned = state.volumes().filter(|volume| volume.owner == me);
    owned.filter_map(|volume| Some((led(volume)?, state.places().wanted(volume.id)?))).collect()
}

/// How many replicas of volumes of `me` are still to become complete.
fn joining(state: &MetaState, me: NodeId) -> usize {
    let owned = state.volumes().filter(|volume| volume.owner == me);
    owned.map(|volume| state.places().joining(volume.id).count()).sum()
}

/// The nodes as rules see them.
pub(super) async fn sites(admin: &NodeAdmin, state: &MetaState) -> Vec<Site> {
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for volume in state.volumes() {
        for node in volume.replicas.iter().chain([&volume.owner]) {
            *load.entry(*node).or_default() += 1;
        }
    }
    let site = |node: &consensus::Node, is_up: bool| Site {
        id: node.id,
        provider: node.provider.clone(),
        labels: state.places().labels(node.id).cloned().collect(),
        is_up,
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

    /// Six nodes, of which one may be down.
    fn sites(down: u64) -> Vec<Site> {
        let site = |id| Site {
            id: NodeId(id),
            provider: "cloud".parse().expect("a name"),
            labels: BTreeSet::new(),
            is_up: id != down,
            load: 0,
        };
        (1..=6).map(site).collect()
    }

    type Step = Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)>;

    fn changed(next: Next) -> Step {
        match next {
            Next::Change(wanted) => Some((wanted.add, wanted.remove)),
            Next::Nothing | Next::Waits(_) => None,
        }
    }

    fn step(replicas: &[u64], plan: &Plan, room: usize) -> Step {
        step_of(1, replicas, plan, room)
    }

    /// The same of a group of so many volumes.
    fn step_of(volumes: usize, replicas: &[u64], plan: &Plan, room: usize) -> Step {
        let held = Held { replicas: ids(replicas), joining: BTreeSet::new() };
        changed(next(&MetaState::default(), &sites(0), volumes, &held, plan, room))
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

    /// `helio volume place` and `helio why` said for ever that a copy was to be given up, and not what for.
    #[test]
    fn no_copy_is_given_up_before_those_that_stay_are_complete_and_answer_and_that_is_said() {
        let surplus = Plan { surplus: ids(&[2]), ..Plan::default() };
        let step = |joining: &[u64], down| {
            let held = Held { replicas: ids(&[2, 3]), joining: ids(joining) };
            next(&MetaState::default(), &sites(down), 1, &held, &surplus, JOINING_MAX)
        };
        let waits = |text: &str| Next::Waits(vec![text.to_owned()]);
        assert_eq!(changed(step(&[], 0)), Some((ids(&[]), ids(&[2]))));
        assert_eq!(changed(step(&[2], 2)), Some((ids(&[]), ids(&[2]))), "it is not asked for anything");
        assert_eq!(step(&[3], 0), waits("no copy is given up before node #3 has everything"));
        assert_eq!(step(&[], 3), waits("no copy is given up before node #3 answers"));
        let more = Plan { add: ids(&[4]), ..surplus.clone() };
        let held = Held { replicas: ids(&[2, 3]), joining: BTreeSet::new() };
        let full = next(&MetaState::default(), &sites(0), 1, &held, &more, 0);
        assert!(matches!(&full, Next::Waits(waits) if waits[0].contains("at most 4 at once")), "{full:?}");
    }
}
