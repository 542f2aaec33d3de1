//! Groups of volumes: all or none, whatever is proposed.

use std::collections::BTreeSet;

use client_lib::{Epoch, Lsn, NodeId, SnapshotId, VolumeGroupId, VolumeId};
use proptest::prelude::*;

use super::{create, expire, hand_over, mebibytes, register, takeover, transfer};
use crate::command::{Command, Refusal, Response};
use crate::state::{Made, MetaState};

const GROUP: VolumeGroupId = VolumeGroupId(15);

fn ids(ids: &[u64]) -> BTreeSet<VolumeId> {
    ids.iter().copied().map(VolumeId).collect()
}

fn create_group(name: &str, members: &[u64], nonce: u64) -> Command {
    Command::CreateGroup { name: name.parse().expect("a name"), members: ids(members), nonce }
}

fn change(add: &[u64], remove: &[u64]) -> Command {
    Command::ChangeGroup { group: GROUP, add: ids(add), remove: ids(remove) }
}

fn move_group(members: &[(u64, u64)], from: u64, to: u64, incarnation: u64) -> Command {
    hand_over(Some(GROUP.0), members, from, to, incarnation, &[])
}

fn snapshot_group(name: &str, members: &[(u64, u64)], from: u64, incarnation: u64, nonce: u64) -> Command {
    let members = members.iter().map(|(volume, epoch)| (VolumeId(*volume), Epoch(*epoch))).collect();
    let name = name.parse().expect("a name");
    Command::CreateGroupSnapshot { group: GROUP, name, from: NodeId(from), incarnation, members, nonce }
}

fn made_group(snapshot: u64, members: &[(u64, u64)], from: u64) -> Command {
    let made = |epoch| Made { lsn: Lsn::new(Epoch(epoch), 7), size: mebibytes(1), at_ms: 5 };
    let made = members.iter().map(|(volume, epoch)| (VolumeId(*volume), Epoch(*epoch), made(*epoch))).collect();
    Command::GroupSnapshotMade { snapshot: SnapshotId(snapshot), from: NodeId(from), made }
}

/// Volumes v (10), w (11) and x (12) of node 1, followed by 2 and 3; y (13) is at 2 and z (14) has fewer replicas. v and w are a group.
fn grouped() -> MetaState {
    let mut state = MetaState::default();
    let commands = [
        (1, register(1, "a")),
        (2, register(2, "b")),
        (3, register(3, "c")),
        (4, Command::NodeStarted { node: NodeId(1) }),
        (5, Command::NodeStarted { node: NodeId(2) }),
        (6, Command::NodeStarted { node: NodeId(3) }),
        (10, create("v", 1, &[2, 3], 1)),
        (11, create("w", 1, &[2, 3], 2)),
        (12, create("x", 1, &[2, 3], 3)),
        (13, create("y", 2, &[1, 3], 4)),
        (14, create("z", 1, &[2], 5)),
        (15, create_group("g", &[10, 11], 6)),
    ];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

fn refused(state: &mut MetaState, command: Command) -> Refusal {
    let before = state.clone();
    let Response::Refused(refusal) = state.apply(900, command.clone()) else { panic!("{command:?} was not refused") };
    assert_eq!(*state, before);
    refusal
}

fn owners(state: &MetaState) -> Vec<(NodeId, Epoch)> {
    [10, 11].map(|id| state.volume(VolumeId(id)).expect("exists")).map(|volume| (volume.owner, volume.epoch)).into()
}

#[test]
fn who_comes_into_a_group_is_as_the_others_or_is_told_what_to_do() {
    let mut state = grouped();
    assert_eq!(state.apply(20, create_group("g", &[10, 11], 6)), Response::GroupCreated { group: GROUP }, "again");
    assert!(matches!(refused(&mut state, create_group("g", &[12], 7)), Refusal::GroupNameTaken(_)));
    assert!(matches!(refused(&mut state, create_group("h", &[], 7)), Refusal::GroupEmpty(_)));
    assert!(matches!(refused(&mut state, create_group("h", &[99], 7)), Refusal::UnknownVolume(_)));
    for (command, said) in [
        (create_group("h", &[11, 12], 7), "volume w is in group g: "),
        (
            create_group("h", &[12, 13], 7),
            "volume y is owned by node b, volume x by node a: `helio volume migrate y --to a` first",
        ),
        (create_group("h", &[12, 14], 7), "volume z has replicas at other nodes than volume x"),
        (change(&[13], &[]), "`helio volume migrate y --to a` first"),
        (change(&[], &[10, 11]), "`helio group delete g`"),
        (Command::DeleteVolume { volume: VolumeId(10) }, "`helio group remove g v`"),
        (transfer(1, 1, 2, 1), "`helio group migrate g --to NODE`"),
        (Command::SetOnWrite { volume: VolumeId(10), to: Some(NodeId(2)) }, "`helio group migrate g --to NODE`"),
    ] {
        let refusal = refused(&mut state, command).to_string();
        assert!(refusal.contains(said), "{refusal}");
    }
    assert_eq!(state.apply(21, change(&[12], &[10])), Response::GroupChanged);
    assert_eq!(state.apply(22, change(&[12], &[10])), Response::GroupChanged, "again");
    assert_eq!(state.group(GROUP).expect("exists").members, ids(&[11, 12]));
    assert_eq!(state.apply(23, transfer(1, 1, 2, 1)), Response::Transferred { epoch: Epoch(2) }, "by itself again");
    assert_eq!(state.apply(24, Command::DeleteGroup { group: GROUP }), Response::GroupDeleted);
    assert_eq!(state.apply(25, Command::DeleteVolume { volume: VolumeId(11) }), Response::VolumeDeleted);
}

#[test]
fn all_volumes_of_a_group_get_their_owner_and_epoch_in_one_step_or_none_does() {
    let mut state = grouped();
    let all = [(10, 1), (11, 1)];
    assert!(matches!(refused(&mut state, move_group(&all[..1], 1, 2, 1)), Refusal::GroupIsOther(_)), "one is left out");
    assert!(matches!(refused(&mut state, move_group(&[(10, 1), (12, 1)], 1, 2, 1)), Refusal::GroupIsOther(_)));
    assert!(matches!(refused(&mut state, move_group(&[(10, 1), (10, 1)], 1, 2, 1)), Refusal::GroupIsOther(_)));
    assert!(matches!(refused(&mut state, move_group(&[(10, 1), (11, 2)], 1, 2, 1)), Refusal::NotOwner { .. }));
    assert!(matches!(refused(&mut state, move_group(&all, 1, 2, 0)), Refusal::OldIncarnation { .. }));
    assert!(matches!(refused(&mut state, move_group(&all, 1, 9, 1)), Refusal::NotReplica { .. }));
    for index in 20..22 {
        assert_eq!(state.apply(index, move_group(&all, 1, 2, 1)), Response::GroupTransferred);
        assert_eq!(owners(&state), [(NodeId(2), Epoch(2)); 2]);
    }
    assert_eq!(state.volume(VolumeId(11)).and_then(|volume| volume.source), Some(NodeId(1)));
}

#[test]
fn a_takeover_of_one_volume_stops_the_step_and_what_an_owner_has_left_goes_in_one() {
    let mut state = grouped();
    state.apply(20, expire(1, 0));
    assert_eq!(state.apply(21, takeover(1, 1, 2, 1, Lsn::ZERO)), Response::TakenOver { epoch: Epoch(2) });
    assert!(matches!(refused(&mut state, move_group(&[(10, 1), (11, 1)], 1, 2, 1)), Refusal::NotOwner { .. }));
    assert_eq!(state.apply(22, move_group(&[(11, 1)], 1, 2, 1)), Response::GroupTransferred);
    assert_eq!(owners(&state), [(NodeId(2), Epoch(2)); 2]);
}

#[test]
fn a_group_goes_by_a_write_as_a_whole() {
    let mut state = grouped();
    let set = |to| Command::SetGroupOnWrite { group: GROUP, to };
    let ways = |state: &MetaState| [10, 11, 12].map(|id| state.volume(VolumeId(id)).expect("exists").on_write);
    assert!(matches!(refused(&mut state, set(Some(NodeId(9)))), Refusal::NotReplica { .. }));
    assert_eq!(state.apply(20, set(Some(NodeId(2)))), Response::PolicySet);
    assert_eq!(state.apply(21, change(&[12], &[10])), Response::GroupChanged);
    assert_eq!(ways(&state), [None, Some(NodeId(2)), Some(NodeId(2))], "with those that it goes with");
    assert_eq!(state.apply(22, move_group(&[(11, 1), (12, 1)], 1, 3, 1)), Response::GroupTransferred);
    assert_eq!(ways(&state), [None; 3], "once");
}

#[test]
fn a_snapshot_of_a_group_is_listed_and_made_for_all_volumes_or_for_none() {
    let mut state = grouped();
    let all = [(10, 1), (11, 1)];
    let listed = |state: &MetaState| {
        [10, 11].map(|id| state.volume(VolumeId(id)).expect("exists").snapshot_named("one").map(|it| it.made.is_some()))
    };
    let one = |incarnation, nonce| snapshot_group("one", &all, 1, incarnation, nonce);
    assert!(matches!(refused(&mut state, snapshot_group("one", &all[..1], 1, 1, 8)), Refusal::GroupIsOther(_)));
    assert!(matches!(refused(&mut state, one(0, 8)), Refusal::OldIncarnation { .. }));
    assert!(matches!(refused(&mut state, snapshot_group("one", &all, 2, 1, 8)), Refusal::NotOwner { .. }));
    for index in 20..22 {
        assert_eq!(state.apply(index, one(1, 8)), Response::SnapshotCreated { snapshot: SnapshotId(20) });
    }
    assert!(matches!(refused(&mut state, one(1, 9)), Refusal::SnapshotNameTaken { .. }));
    let other = snapshot_group("two", &all, 1, 1, 9);
    assert!(matches!(refused(&mut state, other), Refusal::SnapshotOnItsWay { .. }));
    assert!(matches!(refused(&mut state, made_group(20, &all, 2)), Refusal::NotOwner { .. }));
    for index in 22..24 {
        assert_eq!(state.apply(index, made_group(20, &all, 1)), Response::SnapshotMade);
        assert_eq!(listed(&state), [Some(true); 2]);
    }
    let delete = |if_unmade| {
        let snapshots = all.map(|(id, _)| (VolumeId(id), SnapshotId(20))).into();
        Command::DeleteSnapshots { snapshots, if_unmade }
    };
    assert_eq!(state.apply(24, delete(true)), Response::SnapshotDeleted);
    assert_eq!(listed(&state), [Some(true); 2], "it is made");
    for index in 25..27 {
        assert_eq!(state.apply(index, delete(false)), Response::SnapshotDeleted);
        assert_eq!(listed(&state), [None; 2]);
    }

    // What ends the process that makes it, or its ownership of one of them, ends it for both.
    let mut taken_over = state.clone();
    for (state, end) in [
        (&mut state, Command::NodeStarted { node: NodeId(1) }),
        (&mut taken_over, takeover(1, 1, 2, 1, Lsn::new(Epoch(1), 9))),
    ] {
        assert_eq!(state.apply(30, one(1, 10)), Response::SnapshotCreated { snapshot: SnapshotId(30) });
        state.apply(31, expire(1, 0));
        state.apply(32, end).into_result().expect("is applied");
        assert_eq!(listed(state), [None; 2]);
        assert!(matches!(state.apply(33, made_group(30, &all, 1)), Response::Refused(_)));
        let newest = [10, 11].map(|id| state.volume(VolumeId(id)).expect("exists").newest_snapshot);
        assert_eq!(newest, [SnapshotId(30); 2], "whoever has it knows that it is gone");
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let (node, epoch, incarnation) = (1..4u64, 1..5u64, 1..4u64);
    let pair = || (1..5u64, 1..5u64).prop_map(|(one, other)| [(10, one), (11, other)]);
    let alike = (1..5u64).prop_map(|epoch| [(10, epoch), (11, epoch)]);
    prop_oneof![
        (alike, node.clone(), node.clone(), incarnation.clone())
            .prop_map(|(members, from, to, incarnation)| move_group(&members, from, to, incarnation)),
        (pair(), node.clone(), node.clone(), incarnation.clone())
            .prop_map(|(members, from, to, incarnation)| move_group(&members, from, to, incarnation)),
        (pair(), 0..2usize, node.clone(), node.clone(), incarnation.clone())
            .prop_map(|(members, at, from, to, incarnation)| move_group(&members[at..=at], from, to, incarnation)),
        (pair(), prop::sample::select(vec!["s", "t"]), node.clone(), incarnation.clone(), 0..3u64).prop_map(
            |(members, name, from, incarnation, nonce)| snapshot_group(name, &members, from, incarnation, nonce)
        ),
        (100..130u64, pair(), node.clone()).prop_map(|(snapshot, members, from)| made_group(snapshot, &members, from)),
        (10..13u64, 10..13u64).prop_map(|(add, remove)| change(&[add], &[remove])),
        (epoch, node.clone(), node.clone(), incarnation, 0..9u64).prop_map(|(epoch, from, to, incarnation, start)| {
            takeover(epoch, from, to, incarnation, Lsn::new(Epoch(1), start))
        }),
        node.clone().prop_map(|node| expire(node, 0)),
        node.clone().prop_map(|node| Command::NodeStarted { node: NodeId(node) }),
        node.prop_map(|node| Command::SetGroupOnWrite { group: GROUP, to: Some(NodeId(node)) }),
    ]
}

proptest! {
    /// And whatever one volume of the group gets by a handover, the others that its owner had get in the same step.
    #[test]
    fn invariants_hold_whatever_is_proposed_of_groups(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut state = grouped();
        for (index, command) in commands.into_iter().enumerate() {
            let before = state.clone();
            let is_transfer = matches!(command, Command::HandOver { .. });
            let response = state.apply(100 + index as u64, command);
            prop_assert_eq!(crate::invariants::violated(&state), None);
            if matches!(response, Response::Refused(_)) {
                prop_assert_eq!(&state, &before, "a refusal changes nothing");
            }
            if is_transfer && state != before {
                let group = before.group(GROUP).expect("nobody deletes it");
                let moved = |id: &&VolumeId| state.volume(**id).map(|it| it.epoch) != before.volume(**id).map(|it| it.epoch);
                let moved: Vec<_> = group.members.iter().filter(moved).collect();
                let from = before.volume(*moved[0]).expect("exists").owner;
                let owned = group.members.iter().filter(|id| before.volume(**id).is_some_and(|it| it.owner == from));
                prop_assert_eq!(moved, owned.collect::<Vec<_>>());
            }
        }
    }
}
