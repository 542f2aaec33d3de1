//! Replicas that are added and removed, labels, rules of placement.

use client_lib::policy::placement::Placement;
use client_lib::{Epoch, Lsn, NodeId, VolumeId};
use proptest::prelude::*;

use super::{cluster, create, expire, hand_over, register, renew, takeover, transfer};
use crate::command::{Command, Refusal, Response};
use crate::state::MetaState;

const VOLUME: VolumeId = VolumeId(10);

fn change(volumes: &[u64], epoch: u64, from: u64, add: &[u64], remove: &[u64]) -> Command {
    Command::ChangeReplicas {
        members: volumes.iter().map(|id| (VolumeId(*id), Epoch(epoch))).collect(),
        from: NodeId(from),
        incarnation: 1,
        add: add.iter().copied().map(NodeId).collect(),
        remove: remove.iter().copied().map(NodeId).collect(),
    }
}

fn joined(node: u64, since: u64) -> Command {
    Command::ReplicaJoined { volume: VOLUME, node: NodeId(node), since }
}

fn place(volumes: &[u64], rule: Option<&str>) -> Command {
    let placement = rule.map(|rule| rule.parse::<Placement>().expect("a rule"));
    Command::SetPlacement { volumes: volumes.iter().copied().map(VolumeId).collect(), placement }
}

fn group(members: &[u64]) -> Command {
    let members = members.iter().copied().map(VolumeId).collect();
    Command::CreateGroup { name: "g".parse().expect("a name"), members, nonce: 3 }
}

/// The cluster with a fourth node, which follows nothing.
fn with_a_fourth() -> MetaState {
    let mut state = cluster();
    state.apply(11, register(4, "d"));
    state
}

fn replicas(state: &MetaState) -> Vec<u64> {
    state.volume(VOLUME).expect("exists").replicas.iter().map(|node| node.0).collect()
}

fn joining(state: &MetaState) -> Vec<u64> {
    state.places().joining(VOLUME).map(|node| node.0).collect()
}

#[test]
fn who_is_added_joins_until_it_says_that_it_is_complete() {
    let mut state = with_a_fourth();
    for index in 20..22 {
        assert_eq!(state.apply(index, change(&[10], 1, 1, &[1, 4], &[])), Response::ReplicasChanged);
        assert_eq!(
            (replicas(&state), joining(&state)),
            (vec![2, 3, 4], vec![4]),
            "the owner is none, said twice or not"
        );
    }
    assert_eq!(state.places().joined_by(NodeId(4)).collect::<Vec<_>>(), [(VOLUME, 20)]);
    for index in 23..25 {
        assert_eq!(state.apply(index, joined(4, 20)), Response::ReplicasChanged);
        assert!(joining(&state).is_empty() && state.places().is_empty());
    }
    assert_eq!(state.apply(25, change(&[10], 1, 1, &[4], &[2])), Response::ReplicasChanged);
    assert_eq!((replicas(&state), joining(&state)), (vec![3, 4], vec![]), "it is one already");
}

/// What a replica said before it was removed must not make the empty one that came back count as complete.
#[test]
fn who_was_removed_and_added_again_joins_anew() {
    let mut state = with_a_fourth();
    state.apply(20, change(&[10], 1, 1, &[4], &[]));
    state.apply(21, change(&[10], 1, 1, &[], &[4]));
    state.apply(22, change(&[10], 1, 1, &[4], &[]));
    state.apply(23, joined(4, 20)).into_result().expect("is applied, late");
    assert_eq!(joining(&state), [4]);
    state.apply(24, joined(4, 22)).into_result().expect("is applied");
    assert!(joining(&state).is_empty());
}

#[test]
fn only_the_owner_changes_replicas_in_its_epoch_and_by_its_present_process() {
    let mut state = with_a_fourth();
    assert!(matches!(state.apply(20, change(&[10], 1, 2, &[4], &[])), Response::Refused(Refusal::NotOwner { .. })));
    state.apply(21, Command::NodeStarted { node: NodeId(1) });
    let late = state.apply(22, change(&[10], 1, 1, &[4], &[]));
    assert!(matches!(late, Response::Refused(Refusal::OldIncarnation { .. })), "an earlier process proposed it");
    assert_eq!(replicas(&state), [2, 3]);
    let stranger = change(&[10], 1, 1, &[77], &[]);
    assert_eq!(state.apply(23, stranger), Response::Refused(Refusal::UnknownNode(NodeId(77))));
}

#[test]
fn who_is_removed_is_left_out_of_everything_that_is_said_of_the_volume() {
    let mut state = cluster();
    state.apply(20, transfer(1, 1, 2, 1));
    assert_eq!(state.volume(VOLUME).and_then(|volume| volume.source), Some(NodeId(1)));
    state.apply(21, Command::SetOnWrite { volume: VOLUME, to: Some(NodeId(1)) });
    assert_eq!(state.apply(22, change(&[10], 2, 2, &[], &[1, 4])), Response::ReplicasChanged);
    let volume = state.volume(VOLUME).expect("exists");
    assert_eq!((replicas(&state), volume.source, volume.on_write), (vec![3], None, None));
    assert!(matches!(state.apply(23, transfer(2, 2, 1, 1)), Response::Refused(Refusal::NotReplica { .. })));
}

/// A volume that an older program had made with 18 copies could lose none of them but two at once, as 17 are too many, too; so nodes that had one could
/// not be removed. What an older program refuses this one refuses as well, and it has a command of its own for that.
#[test]
fn a_volume_with_too_many_copies_loses_them_one_by_one() {
    let mut state = MetaState::default();
    for id in 1..=18 {
        state.apply(id, register(id, &format!("n{id}"))).into_result().expect("is registered");
    }
    state.apply(19, Command::NodeStarted { node: NodeId(1) });
    let others: Vec<u64> = (2..=18).collect();
    assert!(matches!(state.apply(10, create("disk", 1, &others, 7)), Response::VolumeCreated { volume: VOLUME }));
    let give_up = |remove: u64, epoch: u64| Command::GiveUpReplicas {
        members: vec![(VOLUME, Epoch(epoch))],
        from: NodeId(1),
        incarnation: 1,
        remove: [NodeId(remove)].into(),
    };
    assert!(matches!(state.apply(20, change(&[10], 1, 1, &[], &[18])), Response::Refused(Refusal::TooManyReplicas(_))));
    assert!(matches!(state.apply(21, give_up(18, 2)), Response::Refused(Refusal::NotOwner { .. })));
    for _ in 0..2 {
        assert_eq!(state.apply(22, give_up(18, 1)), Response::ReplicasChanged);
        assert_eq!(replicas(&state), others[..16]);
    }
    assert_eq!(state.apply(23, give_up(17, 1)), Response::ReplicasChanged);
    assert_eq!(state.apply(24, change(&[10], 1, 1, &[], &[16])), Response::ReplicasChanged);
    assert_eq!(replicas(&state), others[..14]);
}

#[test]
fn the_owner_of_a_volume_joins_it_no_more() {
    let mut state = with_a_fourth();
    state.apply(20, change(&[10], 1, 1, &[4], &[]));
    state.apply(21, hand_over(None, &[(10, 1)], 1, 4, 1, &[])).into_result().expect("instantly");
    assert!(joining(&state).is_empty());
    state.apply(22, change(&[10], 2, 4, &[], &[1])).into_result().expect_err("node 4 has not started");
    state.apply(22, Command::NodeStarted { node: NodeId(4) });
    state.apply(23, change(&[10], 2, 4, &[], &[1])).into_result().expect("is applied");
    state.apply(24, change(&[10], 2, 4, &[1], &[])).into_result().expect("is applied");
    assert_eq!(joining(&state), [1], "it comes back with nothing");
    state.apply(25, renew(4, 0));
    state.apply(26, expire(4, 1));
    state.apply(27, takeover(2, 4, 1, 1, Lsn::new(Epoch(1), 5))).into_result().expect("is applied");
    assert!(joining(&state).is_empty());
}

#[test]
fn what_is_said_of_places_goes_with_the_volume_and_with_the_node() {
    let mut state = with_a_fourth();
    let labels = ["eu".parse().expect("a label")].into();
    for (index, command) in [
        (20, Command::LabelNode { node: NodeId(4), labels }),
        (21, change(&[10], 1, 1, &[4], &[])),
        (22, place(&[10], Some("2 in eu"))),
        (23, Command::RemoveNode { node: NodeId(4), was_lost: true, at_ms: 7 }),
    ] {
        state.apply(index, command).into_result().expect("is applied");
    }
    assert!(joining(&state).is_empty() && state.places().labels(NodeId(4)).next().is_none());
    assert!(state.places().wanted(VOLUME).is_some());
    state.apply(24, Command::DeleteVolume { volume: VOLUME }).into_result().expect("is applied");
    assert!(state.places().is_empty());
}

#[test]
fn volumes_of_a_group_are_changed_and_placed_together() {
    let mut state = with_a_fourth();
    state.apply(12, create("w", 1, &[2, 3], 8));
    state.apply(13, place(&[10], Some("3 anywhere"))).into_result().expect("is applied");
    state.apply(14, group(&[10, 12])).into_result().expect("is applied");
    assert_eq!(state.places().wanted(VolumeId(12)), state.places().wanted(VOLUME));
    for alone in [change(&[10], 1, 1, &[4], &[]), place(&[12], None)] {
        let refused = state.apply(20, alone);
        assert!(matches!(&refused, Response::Refused(Refusal::InGroup { .. })), "{refused:?}");
    }
    state.apply(21, change(&[10, 12], 1, 1, &[4], &[2])).into_result().expect("is applied");
    assert_eq!(replicas(&state), [3, 4]);
    state.apply(22, place(&[10, 12], None)).into_result().expect("is applied");
    assert_eq!(state.places().wanted(VOLUME), None);
}

fn any_command() -> impl Strategy<Value = Command> {
    let (node, volumes) = (1..6u64, prop::sample::select(vec![vec![10], vec![12], vec![10, 12]]));
    let nodes = || prop::collection::vec(1..6u64, 0..3);
    prop_oneof![
        4 => (volumes.clone(), 1..4u64, node.clone(), nodes(), nodes())
            .prop_map(|(volumes, epoch, from, add, remove)| change(&volumes, epoch, from, &add, &remove)),
        2 => (node.clone(), 20..80u64).prop_map(|(node, since)| joined(node, since)),
        1 => (volumes.clone(), any::<bool>()).prop_map(|(volumes, is_set)| place(&volumes, is_set.then_some("2 anywhere"))),
        1 => volumes.prop_map(|volumes| group(&volumes)),
        1 => Just(Command::DeleteGroup { group: client_lib::VolumeGroupId(20) }),
        2 => (1..4u64, node.clone(), node.clone()).prop_map(|(epoch, from, to)| hand_over(None, &[(10, epoch)], from, to, 1, &[])),
        1 => (1..4u64, node.clone(), node.clone(), 0..9u64)
            .prop_map(|(epoch, from, to, start)| takeover(epoch, from, to, 1, Lsn::new(Epoch(1), start))),
        1 => node.clone().prop_map(|node| expire(node, 0)),
        1 => node.prop_map(|node| Command::RemoveNode { node: NodeId(node), was_lost: false, at_ms: 7 }),
    ]
}

proptest! {
    #[test]
    fn invariants_hold_whatever_is_proposed_of_places(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut state = with_a_fourth();
        state.apply(12, create("w", 1, &[2, 3], 8));
        for (index, command) in commands.into_iter().enumerate() {
            let before = state.clone();
            let response = state.apply(20 + index as u64, command);
            prop_assert_eq!(crate::invariants::violated(&state), None);
            if matches!(response, Response::Refused(_)) {
                prop_assert_eq!(&state, &before, "a refusal changes nothing");
            }
        }
    }
}
