//! Removing a node: what stands against it, what is waited for, and the steps (docs/membership.md, docs/decisions/0041).
//!
//! Nothing changes before everything that only the node has is elsewhere; then others vote in its place, and last the metadata says
//! that it is no member. Any other node can be asked, and asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::policy::Class;
use client_lib::wire::admin::{GivenUpReplica, NodeRemoval, RemoveNode, VolumeStatus};
use client_lib::{Error, ErrorKind, Lsn, NodeId, ProviderId, VolumeId};
use consensus::{Command, MetaState, Response, Volume, placement};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::names::node_named;
use super::replicas::{Floor, Wanted};
use super::{NodeAdmin, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::propagation::classes;
use crate::size;

/// How long one request waits for what is to be elsewhere first; whoever asked may ask again.
const WAIT: Duration = Duration::from_secs(5);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Owners that are asked at once.
const AT_ONCE_MAX: usize = 16;

/// How many volumes an error names.
const NAMED_MAX: usize = 5;

impl NodeAdmin {
    pub(super) async fn remove_member(&self, name: &str, request: RemoveNode) -> Result<NodeRemoval, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let node = match node_named(&state, name) {
            Ok(node) => node,
            Err(error) => return removed_before(&state, name, &self.voters_told(&state)).ok_or(error),
        };
        let answering = self.require_removable(&state, node, &request).await?;
        let voters = self.voters_without(&state, node, &answering)?;
        let followed: Vec<&Volume> = state.volumes().filter(|volume| volume.replicas.contains(&node)).collect();
        let given_up = followed.iter().map(|volume| given_up(&state, volume, node)).collect::<Vec<_>>();
        // Of those that would have too few, some get another copy by their rules when the node is known to be leaving.
        let mut placed_first = Vec::new();
        if !request.accept_fewer && !request.lost {
            let too_few: Vec<&Volume> =
                followed.iter().zip(&given_up).filter(|(_, it)| is_too_few(it)).map(|(volume, _)| *volume).collect();
            for (volume, holders) in self.holders_without(&state, node, too_few).await {
                let is_placed = !is_too_few(&left(&state, volume, holders.iter().copied()));
                placed_first.extend(is_placed.then_some(volume));
            }
            let is_placed = |volume: &Volume| placed_first.iter().any(|placed| placed.id == volume.id);
            let not_placed = followed.iter().zip(&given_up).filter(|(volume, _)| !is_placed(volume));
            require_enough(&state, name, &not_placed.map(|(_, it)| it.clone()).collect::<Vec<_>>())?;
        }
        let mut removal = NodeRemoval {
            node: name.to_owned(),
            state: "planned".to_owned(),
            voters: voters.iter().map(|voter| state.name_of(*voter)).collect(),
            given_up,
            ..NodeRemoval::default()
        };
        if request.lost {
            removal.incomplete = self.incomplete_without(&state, node).await;
        } else {
            let wait = if request.dry_run { Duration::ZERO } else { WAIT };
            if !request.dry_run {
                self.note_leaving(&state, node).await?;
            }
            removal.waiting_for = self.wait_until_placed(node, &placed_first, wait).await;
            let wait = if placed_first.is_empty() { wait } else { Duration::ZERO };
            removal.waiting_for.extend(self.wait_until_unneeded(&state, node, wait).await?);
        }
        if request.dry_run {
            return Ok(removal);
        }
        if !removal.waiting_for.is_empty() {
            removal.state = "waiting".to_owned();
            return Ok(removal);
        }
        if !request.lost {
            removal.waiting_for = self.give_up_replicas(&state, node, Floor::asked(request.accept_fewer)).await?;
            if !removal.waiting_for.is_empty() {
                removal.state = "waiting".to_owned();
                return Ok(removal);
            }
        }
        let now: BTreeSet<NodeId> = self.meta.voters().into_iter().collect();
        if now.contains(&node)
            && let Err(error) = self.meta.retire(node, voters, METADATA_DEADLINE).await
        {
            return waits_for_voters(removal, error);
        }
        let command = Command::RemoveNode { node, was_lost: request.lost, at_ms: SystemClock::new().unix_ms() };
        let response = match self.meta.propose(command, METADATA_DEADLINE).await {
            Ok(response) => response,
            Err(error) => return waits_for_voters(removal, error),
        };
        match response.into_result_told(&self.meta.state())? {
            Response::NodeRemoved => tracing::warn!(node = name, lost = request.lost, "a node was removed"),
            other => return Err(out_of_turn(&other)),
        }
        removal.state = "removed".to_owned();
        removal.unconfirmed = self.confirmed().await.unconfirmed;
        Ok(removal)
    }

    /// Refuses what waiting does not change; returns the nodes that answer.
    async fn require_removable(
        &self,
        state: &MetaState,
        node: NodeId,
        request: &RemoveNode,
    ) -> Result<BTreeSet<NodeId>, Error> {
        let refuse = |kind: ErrorKind, text: String| Err(Error::new(kind, text));
        let name = state.name_of(node);
        if self.standing.is_of_up {
            let text = "the nodes of `helio up` are its --providers, and none of them can be removed: clusters of `helio node` can lose some";
            return refuse(ErrorKind::InvalidRequest, text.to_owned());
        }
        if state.nodes().count() == 1 {
            let text = format!("node {name} is the only one: stop it and delete its data directory to end the cluster");
            return refuse(ErrorKind::InvalidRequest, text);
        }
        if node == self.this.id {
            let text =
                format!("node {name} does not remove itself: ask another one, by --data DIR or --cluster HOST:PORT");
            return refuse(ErrorKind::InvalidRequest, text);
        }
        let owned: Vec<String> =
            state.volumes().filter(|volume| volume.owner == node).map(|volume| volume.name.to_string()).collect();
        if !owned.is_empty() {
            let next = match request.lost {
                true => "`helio volume takeover VOLUME` gives each to a replica".to_owned(),
                false => format!("`helio node drain {name}` gives them to others"),
            };
            let text = format!("node {name} owns {}: {next}; then remove it", few(&owned));
            return refuse(ErrorKind::Busy, text);
        }
        let told = join_all(state.nodes().map(|member| self.about(member.id))).await;
        let told: BTreeMap<NodeId, _> = state.nodes().map(|member| member.id).zip(told).collect();
        match (request.lost, told.get(&node)) {
            (false, Some(Ok(about))) if about.holds_authority => {
                let text = format!(
                    "node {name} holds the cluster's authority, without which nobody can join: copy `authority/` of its data directory to \
                     that of another node and restart that one, delete it at {name} and restart {name}; then remove it"
                );
                return refuse(ErrorKind::Busy, text);
            }
            (false, Some(Err(error))) if error.kind() != ErrorKind::Corrupt => {
                let text = format!(
                    "node {name} does not answer ({error}): start it, so that what only it has can be fetched, or add --lost if it is gone for \
                     good"
                );
                return refuse(ErrorKind::Unavailable, text);
            }
            (true, Some(Ok(_))) => {
                let text = format!(
                    "node {name} answers, so it is not lost: remove it without --lost, and what only it has is fetched first"
                );
                return refuse(ErrorKind::InvalidRequest, text);
            }
            _ => {}
        }
        self.require_known_to_all(state, Some(node).filter(|_| request.lost)).await?;
        Ok(told.into_iter().filter(|(_, about)| about.is_ok()).map(|(node, _)| node).collect())
    }

    /// Who votes without `node`: those who do now, and others in its place that answer. Refuses where that would be no majority.
    fn voters_without(
        &self,
        state: &MetaState,
        node: NodeId,
        answering: &BTreeSet<NodeId>,
    ) -> Result<BTreeSet<NodeId>, Error> {
        let current: BTreeSet<NodeId> = self.meta.voters().into_iter().filter(|voter| *voter != node).collect();
        let may_vote = |id: &NodeId| *id != node && (current.contains(id) || answering.contains(id));
        let members: BTreeMap<NodeId, ProviderId> =
            state.nodes().filter(|it| may_vote(&it.id)).map(|it| (it.id, it.provider.clone())).collect();
        let voters = placement::voters(&members, &current);
        let there = voters.intersection(answering).count();
        if 2 * there > voters.len() {
            return Ok(voters);
        }
        let names: Vec<String> = voters.iter().map(|voter| state.name_of(*voter)).collect();
        let text = format!(
            "without node {} the metadata would lose its quorum: of those who would vote ({}), {there} answer; start the others first",
            state.name_of(node),
            names.join(", ")
        );
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    fn voters_told(&self, state: &MetaState) -> Vec<String> {
        self.meta.voters().into_iter().map(|voter| state.name_of(voter)).collect()
    }

    /// Waits, not longer than `wait`, until rules of placement have given `volumes` what they need without `node`; all of them are told, and the
    /// next request looks anew.
    async fn wait_until_placed(&self, node: NodeId, volumes: &[&Volume], wait: Duration) -> Vec<String> {
        let is_placed = |state: &MetaState, volume: &Volume| {
            state.volume(volume.id).is_none_or(|volume| !is_too_few(&given_up(state, volume, node)))
        };
        let end = Instant::now() + wait;
        while Instant::now() < end && !volumes.iter().all(|volume| is_placed(&self.meta.state(), volume)) {
            tokio::time::sleep(LOOK).await;
        }
        let told =
            |volume: &&Volume| format!("volume {}: its rule of placement gives it another copy first", volume.name);
        volumes.iter().map(told).collect()
    }

    /// Waits, not longer than `wait`, until nobody needs `node` for a volume; returns what is still to happen.
    async fn wait_until_unneeded(&self, state: &MetaState, node: NodeId, wait: Duration) -> Result<Vec<String>, Error> {
        let concerned: Vec<&Volume> =
            state.volumes().filter(|volume| volume.replicas.contains(&node) || volume.source == Some(node)).collect();
        // What was flushed before now must be held by enough others; what is flushed later is, once the node is no replica.
        let mut flushed = BTreeMap::new();
        let end = Instant::now() + wait;
        loop {
            let statuses = join_all(concerned.iter().map(|volume| self.status_of(volume.id))).await;
            let mut waiting = Vec::new();
            for (volume, status) in concerned.iter().zip(statuses) {
                let status = match status {
                    Ok(status) => status,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => {
                        waiting.push(format!("volume {}: its owner tells nothing ({error})", volume.name));
                        continue;
                    }
                };
                let upto = *flushed.entry(volume.id).or_insert_with(|| flushed_of(&status));
                waiting.extend(needs(state, volume, &status, node, upto)?);
            }
            if waiting.is_empty() || Instant::now() >= end {
                return Ok(waiting);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has the owners of what `node` follows give its replicas up; returns what is still to happen. From then on no flush counts on what it
    /// holds.
    async fn give_up_replicas(&self, state: &MetaState, node: NodeId, floor: Floor) -> Result<Vec<String>, Error> {
        if let Err(why) = self.require_places_known(state).await {
            // In the middle of an upgrade: they are given up with the node.
            tracing::info!(%why, "replicas are given up with their node");
            return Ok(Vec::new());
        }
        let followed = state.volumes().filter(|volume| volume.replicas.contains(&node));
        let given: Vec<(String, Vec<VolumeId>)> =
            followed.filter_map(|volume| Some((volume.name.to_string(), state.led_by(volume.id)?))).collect();
        let asked = given.into_iter().map(|(name, ids)| async move {
            let wanted = Wanted { add: BTreeSet::new(), remove: [node].into() };
            match self.have_replicas_changed(ids, wanted, floor).await {
                Ok(report) => report.waiting_for,
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                Err(error) => vec![format!("volume {name}: its owner does not give the replica up ({error})")],
            }
        });
        Ok(futures_util::stream::iter(asked).buffer_unordered(AT_ONCE_MAX).concat().await)
    }

    /// The volumes whose owners still fetch blocks from `node`, as far as they tell.
    async fn incomplete_without(&self, state: &MetaState, node: NodeId) -> Vec<String> {
        let may_have = |volume: &&Volume| volume.replicas.contains(&node) || volume.source == Some(node);
        let held: Vec<&Volume> = state.volumes().filter(may_have).collect();
        let statuses = join_all(held.iter().map(|volume| self.status_of(volume.id))).await;
        let name = state.name_of(node);
        let needs_it = |status: &Result<VolumeStatus, Error>| {
            let elsewhere = status.as_ref().ok().and_then(VolumeStatus::fetched_from);
            elsewhere.is_some_and(|it| it.needs(|needed| needed == name))
        };
        held.iter().zip(&statuses).filter(|(_, it)| needs_it(it)).map(|(volume, _)| volume.name.to_string()).collect()
    }
}

/// Who votes has changed since this request looked, by another removal perhaps: the next request looks anew.
fn waits_for_voters(removal: NodeRemoval, error: Error) -> Result<NodeRemoval, Error> {
    match error.kind() {
        ErrorKind::Busy => {
            let waiting_for = vec![error.to_string()];
            Ok(NodeRemoval { state: "waiting".to_owned(), waiting_for, ..removal })
        }
        _ => Err(error),
    }
}

/// A node of that name that was removed before, and no other has the name now: the same request again.
fn removed_before(state: &MetaState, name: &str, voters: &[String]) -> Option<NodeRemoval> {
    let removed = state.access().removed_nodes().any(|removed| removed.name.as_str() == name);
    let (node, state, voters) = (name.to_owned(), "removed".to_owned(), voters.to_vec());
    removed.then(|| NodeRemoval { node, state, voters, ..NodeRemoval::default() })
}

fn given_up(state: &MetaState, volume: &Volume, node: NodeId) -> GivenUpReplica {
    // Those that have yet to get everything are no replacement for one that has it.
    let joins = |node: NodeId| state.places().is_joining(volume.id, node);
    let others = volume.replicas.iter().copied().filter(|replica| *replica != node);
    left(state, volume, others.filter(|replica| joins(node) || !joins(*replica)))
}

/// What is left of `volume` if `replicas` stay.
fn left(state: &MetaState, volume: &Volume, replicas: impl Iterator<Item = NodeId>) -> GivenUpReplica {
    let replicas: Vec<NodeId> = replicas.collect();
    let class = volume.durability.class;
    let provider = |node: NodeId| state.node(node).map(|node| &node.provider);
    let places = provider(volume.owner)
        .map_or(0, |home| classes::places(class, home, replicas.iter().filter_map(|replica| provider(*replica))));
    GivenUpReplica {
        volume: volume.name.to_string(),
        replicas: replicas.iter().map(|replica| state.name_of(*replica)).collect(),
        is_unmet: class != Class::Local && places < class.others(),
    }
}

/// Whether that is no replica, or fewer than its class asks for.
fn is_too_few(left: &GivenUpReplica) -> bool {
    left.is_unmet || left.replicas.is_empty()
}

/// Refuses to leave a volume without any replica, or without those that its class asks for.
fn require_enough(state: &MetaState, name: &str, given_up: &[GivenUpReplica]) -> Result<(), Error> {
    let named = |is_meant: &dyn Fn(&GivenUpReplica) -> bool| {
        given_up.iter().filter(|it| is_meant(it)).map(|it| it.volume.clone()).collect::<Vec<_>>()
    };
    let unmet = named(&|it| it.is_unmet);
    let alone = named(&|it| it.replicas.is_empty() && !it.is_unmet);
    let text = match (unmet.is_empty(), alone.is_empty()) {
        (true, true) => return Ok(()),
        (false, _) => {
            let class = |name: &String| {
                state.volumes().find(|it| it.name.as_str() == name).map(|it| it.durability.class.to_string())
            };
            let first = unmet.first().and_then(class).unwrap_or_default();
            format!(
                "no flush of {} could be answered in class {first} without node {name}: choose a class that can be met, or add --accept-fewer if \
                 that is meant",
                few(&unmet)
            )
        }
        (true, false) => format!(
            "node {name} has the only replica of {} that has everything: add others first and wait until they have it (`helio volume replica \
             add`), or add --accept-fewer if that is meant",
            few(&alone)
        ),
    };
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

/// Up to where a volume was flushed in its class; nothing is promised of other nodes in class `local`.
fn flushed_of(status: &VolumeStatus) -> Lsn {
    status.durability.durable.as_ref().and_then(|durable| durable.parse().ok()).unwrap_or(Lsn::ZERO)
}

/// What must happen before a volume needs `node` no more.
///
/// # Errors
/// `Busy` where that does not happen by itself.
fn needs(
    state: &MetaState,
    volume: &Volume,
    status: &VolumeStatus,
    node: NodeId,
    flushed: Lsn,
) -> Result<Option<String>, Error> {
    let (name, node_name) = (&volume.name, state.name_of(node));
    let replica = status.replicas.iter().find(|replica| replica.node == node_name);
    if let Some(tail) = replica.and_then(|replica| replica.tail.as_ref()) {
        let text = format!(
            "node {node_name} keeps {} writes of volume {name} that a takeover cut off, and nobody else has them: export them there, and \
             drop them with `helio volume rejoin {name} --node {node_name} --discard-tail`; then remove it",
            tail.writes
        );
        return Err(Error::new(ErrorKind::Busy, text));
    }
    if let Some(elsewhere) = status.fetched_from().filter(|it| it.needs(|needed| needed == node_name)) {
        let bytes = size::human(elsewhere.bytes);
        return Ok(Some(format!("volume {name}: its owner still fetches {bytes} from node {node_name}")));
    }
    let class = volume.durability.class;
    let home = state.node(volume.owner).map(|owner| &owner.provider);
    let (Some(home), false) = (home, class == Class::Local) else { return Ok(None) };
    let left = status.replicas.iter().filter(|replica| replica.node != node_name);
    let held: Vec<(ProviderId, Lsn)> =
        left.filter_map(|it| Some((it.provider.parse().ok()?, it.watermark.parse().ok()?))).collect();
    // An owner that still fetches stands for nothing here.
    let own = if status.stale_bytes == 0 { Lsn::MAX } else { Lsn::ZERO };
    let places = classes::places(class, home, held.iter().map(|(provider, _)| provider));
    let is_held = classes::durable(class, home, own, held.iter().map(|(provider, lsn)| (provider, *lsn))) >= flushed;
    // Where it can never be so that was accepted.
    Ok((places >= class.others() && !is_held).then(|| {
        format!("volume {name}: what was flushed in class {class} up to {flushed} is to be held by the nodes that stay")
    }))
}

/// A few names, and how many there are.
fn few(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let named = names[..names.len().min(NAMED_MAX)].join(", ");
    let noun = if names.len() == 1 { "volume" } else { "volumes" };
    if more == 0 { format!("{noun} {named}") } else { format!("{noun} {named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_names_stand_for_many() {
        let names: Vec<String> = (1..=7).map(|number| format!("v{number}")).collect();
        assert_eq!(few(&names), "volumes v1, v2, v3, v4, v5 and 2 more");
        assert_eq!(few(&names[..1]), "volume v1");
    }

    #[test]
    fn what_would_be_left_of_a_volume_is_told_and_refused() {
        let give = |replicas: &[&str], is_unmet| GivenUpReplica {
            volume: "disk".to_owned(),
            replicas: replicas.iter().map(|name| (*name).to_owned()).collect(),
            is_unmet,
        };
        let refused = |given_up: &[GivenUpReplica]| {
            let checked = require_enough(&MetaState::default(), "c", given_up);
            checked.err().map(|error| error.to_string())
        };
        assert_eq!(refused(&[give(&["b"], false)]), None);
        let alone = refused(&[give(&["b"], false), give(&[], false)]).expect("is refused");
        assert!(alone.contains("node c has the only replica of volume disk") && alone.contains("--accept-fewer"));
        let unmet = refused(&[give(&["b"], true)]).expect("is refused");
        assert!(unmet.contains("no flush of volume disk"), "{unmet}");
    }
}
