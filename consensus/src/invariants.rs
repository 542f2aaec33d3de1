//! What holds in every state, by name. Checked after every apply in debug builds and by the property tests.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::Epoch;

use crate::state::groups::same_holders;
use crate::state::{Fork, Lease, MetaState, Volume, VolumeGroup};

/// Whether something holds in a state.
type Predicate = fn(&MetaState) -> bool;

/// The first invariant that does not hold, if any.
#[must_use]
pub fn violated(state: &MetaState) -> Option<&'static str> {
    let all: [(&str, Predicate); 20] = [
        ("node names are unique", node_names_are_unique),
        ("volume names are unique", volume_names_are_unique),
        ("holders are members", holders_are_members),
        ("the owner is not its own replica", the_owner_is_not_its_own_replica),
        ("epochs only rise", epochs_only_rise),
        ("final LSNs belong to ended epochs", final_lsns_belong_to_ended_epochs),
        ("leases are of members", leases_are_of_members),
        ("forks are of ended epochs and rise", forks_are_of_ended_epochs_and_rise),
        ("snapshot names are unique in a volume", snapshot_names_are_unique),
        ("snapshots rise, and are made in their order", snapshots_rise),
        ("a write takes a volume to a replica", a_write_takes_a_volume_to_a_replica),
        ("a volume is in one group at most, and held as the others of it", groups_are_held_together),
        ("snapshots of one cut are made together", snapshots_of_one_cut_are_made_together),
        ("what is enclosed is for the present owner", what_is_enclosed_is_for_the_present_owner),
        ("removed nodes are no members", removed_nodes_are_no_members),
        ("what is revoked is not listed", what_is_revoked_is_not_listed),
        ("places are of members, of volumes, and of replicas", places_are_of_what_there_is),
        ("keys are of volumes, and each is another one", keys_are_of_volumes),
        ("who has stepped down did so in the present epoch", who_has_stepped_down_did_so_in_the_present_epoch),
        ("rescues are forks", rescues_are_forks),
    ];
    all.into_iter().find(|(_, holds)| !holds(state)).map(|(name, _)| name)
}

fn node_names_are_unique(state: &MetaState) -> bool {
    let names: BTreeSet<_> = state.nodes().map(|node| &node.name).collect();
    names.len() == state.nodes().count()
}

fn removed_nodes_are_no_members(state: &MetaState) -> bool {
    let is_gone = |id| state.node(id).is_none() && state.lease(id) == Lease::default();
    state.access().removed_nodes().all(|removed| is_gone(removed.id))
        && state.volumes().all(|volume| volume.on_write.is_none_or(|to| state.node(to).is_some()))
}

fn what_is_revoked_is_not_listed(state: &MetaState) -> bool {
    let access = state.access();
    access
        .revoked()
        .all(|(fingerprint, _)| access.clients().all(|(_, client)| !client.issued.contains_key(fingerprint)))
}

fn places_are_of_what_there_is(state: &MetaState) -> bool {
    let (volumes, nodes) = state.places().named();
    let follows = |volume: &Volume| state.places().joining(volume.id).all(|node| volume.replicas.contains(&node));
    let is_alike = |group: &VolumeGroup| {
        let mut wanted = group.members.iter().map(|id| state.places().wanted(*id));
        let first = wanted.next();
        wanted.all(|other| Some(other) == first)
    };
    volumes.iter().all(|id| state.volume(*id).is_some_and(follows))
        && nodes.iter().all(|id| state.node(*id).is_some())
        && state.groups().all(is_alike)
}

fn keys_are_of_volumes(state: &MetaState) -> bool {
    state.all_keys().all(|(volume, keys)| state.volume(volume).is_some() && keys.is_sound())
}

fn who_has_stepped_down_did_so_in_the_present_epoch(state: &MetaState) -> bool {
    state.stepped_down().all(|(id, epoch)| state.volume(id).is_some_and(|volume| volume.epoch == epoch))
}

fn rescues_are_forks(state: &MetaState) -> bool {
    state.rescues().all(|(id, epochs)| {
        let forks = state.volume(id).map(|volume| &volume.forks);
        let is_one = |epoch: &Epoch| forks.is_some_and(|forks| forks.iter().any(|fork| fork.epoch == *epoch));
        !epochs.is_empty() && epochs.keys().all(is_one)
    })
}

fn volume_names_are_unique(state: &MetaState) -> bool {
    let names: BTreeSet<_> = state.volumes().map(|volume| &volume.name).collect();
    names.len() == state.volumes().count()
}

fn holders_are_members(state: &MetaState) -> bool {
    state.volumes().all(|volume| {
        std::iter::once(&volume.owner).chain(&volume.replicas).all(|holder| state.node(*holder).is_some())
    })
}

fn the_owner_is_not_its_own_replica(state: &MetaState) -> bool {
    state.volumes().all(|volume| !volume.replicas.contains(&volume.owner))
}

fn a_write_takes_a_volume_to_a_replica(state: &MetaState) -> bool {
    state.volumes().all(|volume| volume.on_write.is_none_or(|to| volume.replicas.contains(&to)))
}

fn epochs_only_rise(state: &MetaState) -> bool {
    state.volumes().all(|volume| {
        let ended = volume.history.iter().map(|record| record.epoch);
        let epochs: Vec<Epoch> = ended.chain([volume.epoch]).collect();
        epochs.windows(2).all(|pair| pair[0].next() == pair[1])
    })
}

/// `<=` and not `==`: an epoch in which nothing was written ends where an earlier one did.
fn final_lsns_belong_to_ended_epochs(state: &MetaState) -> bool {
    state.volumes().all(|volume| volume.final_lsn.epoch < volume.epoch)
}

fn leases_are_of_members(state: &MetaState) -> bool {
    state.leases().all(|(node, lease)| state.node(node).is_some() && (lease.lapses > 0 || !lease.is_out))
}

fn forks_are_of_ended_epochs_and_rise(state: &MetaState) -> bool {
    state.volumes().all(|volume| {
        let has_ended = |fork: &Fork| fork.epoch < volume.epoch && fork.end.epoch <= fork.epoch;
        volume.forks.windows(2).all(|pair| pair[0].epoch < pair[1].epoch && pair[0].end < pair[1].end)
            && volume.forks.iter().all(has_ended)
            && !volume.has_left(volume.final_lsn)
    })
}

fn snapshot_names_are_unique(state: &MetaState) -> bool {
    state.volumes().all(|volume| {
        let names: BTreeSet<_> = volume.snapshots.iter().map(|snapshot| &snapshot.name).collect();
        names.len() == volume.snapshots.len()
    })
}

fn groups_are_held_together(state: &MetaState) -> bool {
    let mut seen = BTreeSet::new();
    state.groups().all(|group| {
        let members: Option<Vec<_>> = group.members.iter().map(|id| state.volume(*id)).collect();
        let Some(members) = members.filter(|members| !members.is_empty()) else { return false };
        group.members.iter().all(|id| seen.insert(*id)) && members.iter().all(|member| same_holders(member, members[0]))
    })
}

fn snapshots_of_one_cut_are_made_together(state: &MetaState) -> bool {
    let mut made = BTreeMap::new();
    let mut cuts = state.volumes().flat_map(|volume| &volume.snapshots).filter(|snapshot| snapshot.cut.is_some());
    cuts.all(|snapshot| *made.entry(snapshot.id).or_insert(snapshot.made.is_some()) == snapshot.made.is_some())
}

fn what_is_enclosed_is_for_the_present_owner(state: &MetaState) -> bool {
    let mut enclosures = state.enclosures();
    enclosures
        .all(|(id, epoch)| state.volume(id).is_some_and(|volume| volume.epoch == epoch && volume.source.is_some()))
}

fn snapshots_rise(state: &MetaState) -> bool {
    state.volumes().all(|volume| {
        let made: Vec<_> = volume.snapshots.iter().filter_map(|snapshot| snapshot.made).collect();
        volume.snapshots.is_sorted_by(|older, newer| older.id < newer.id)
            && made.is_sorted_by(|older, newer| older.lsn <= newer.lsn)
            && volume.snapshots.last().is_none_or(|newest| newest.id <= volume.newest_snapshot)
    })
}
