//! The state machine by tables and properties.

use std::collections::BTreeMap;
use std::io;

use client_lib::{Epoch, ErrorKind, Lsn, NodeId, SnapshotId, VolumeGroupId, VolumeId, VolumeSize};
use proptest::prelude::*;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Changes, Kind, Made, MetaState, Records, Volume};
use crate::command::{Command, Ended, Refusal, Response};

mod access;
mod golden;
mod groups;
mod keys;
mod places;
mod rescues;
mod rights;
mod stepping_down;

fn register(id: u64, name: &str) -> Command {
    Command::RegisterNode {
        id: NodeId(id),
        name: name.parse().expect("a name"),
        provider: name.parse().expect("a name"),
        address: format!("127.0.0.1:{id}"),
    }
}

fn create(name: &str, owner: u64, replicas: &[u64], nonce: u64) -> Command {
    Command::CreateVolume {
        name: name.parse().expect("a name"),
        size: VolumeSize::try_from(1 << 20).expect("a size"),
        owner: NodeId(owner),
        replicas: replicas.iter().copied().map(NodeId).collect(),
        nonce,
    }
}

fn transfer(epoch: u64, from: u64, to: u64, incarnation: u64) -> Command {
    Command::Transfer {
        volume: VolumeId(10),
        from: NodeId(from),
        incarnation,
        epoch: Epoch(epoch),
        to: NodeId(to),
        final_lsn: Lsn::new(Epoch(epoch), 5),
        manifest_digest: 77,
    }
}

/// Volumes with the epochs that end, and what is enclosed for some of them.
fn hand_over(
    group: Option<u64>,
    members: &[(u64, u64)],
    from: u64,
    to: u64,
    incarnation: u64,
    enclosed: &[(u64, &[u8])],
) -> Command {
    let ended = |(volume, epoch): &(u64, u64)| Ended {
        volume: VolumeId(*volume),
        epoch: Epoch(*epoch),
        final_lsn: Lsn::new(Epoch(*epoch), 5),
        manifest_digest: 77,
    };
    Command::HandOver {
        group: group.map(VolumeGroupId),
        from: NodeId(from),
        incarnation,
        to: NodeId(to),
        members: members.iter().map(ended).collect(),
        enclosed: enclosed.iter().map(|(volume, content)| (VolumeId(*volume), content.to_vec())).collect(),
    }
}

fn mebibytes(count: u64) -> VolumeSize {
    VolumeSize::try_from(count << 20).expect("a size")
}

fn resize(epoch: u64, from: u64, incarnation: u64, expected: u64, size: u64) -> Command {
    Command::ResizeVolume {
        volume: VolumeId(10),
        from: NodeId(from),
        incarnation,
        epoch: Epoch(epoch),
        expected: mebibytes(expected),
        size: mebibytes(size),
    }
}

fn renew(node: u64, lapses: u64) -> Command {
    Command::RenewLease { node: NodeId(node), lapses, duration_ms: 8_000 }
}

fn expire(node: u64, renewals: u64) -> Command {
    Command::ExpireLease { node: NodeId(node), renewals }
}

fn takeover(epoch: u64, from: u64, to: u64, incarnation: u64, start: Lsn) -> Command {
    let (from, to) = (NodeId(from), NodeId(to));
    Command::Takeover { volume: VolumeId(10), from, epoch: Epoch(epoch), to, incarnation, start }
}

/// Nodes 1 to 3, each started once, and volume 10 owned by node 1.
fn cluster() -> MetaState {
    let mut state = MetaState::default();
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(state.apply(id, register(id, name)), Response::Registered { node: NodeId(id) });
        assert_eq!(state.apply(id, Command::NodeStarted { node: NodeId(id) }), Response::Started { incarnation: 1 });
    }
    assert_eq!(state.apply(10, create("v", 1, &[2, 3], 1)), Response::VolumeCreated { volume: VolumeId(10) });
    state
}

/// A thousand idle volumes cost every node a look at each of them with every lease that any node renewed.
#[test]
fn a_lease_that_is_renewed_leaves_everything_else_the_same() {
    let before = cluster();
    let mut state = before.clone();
    let granted = state.apply(11, Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 9000 });
    assert_eq!(granted, Response::LeaseGranted { renewals: 1 });
    assert!(state != before && state.differs_in_leases_only(&before));
    let mut other = state.clone();
    other.apply(12, transfer(1, 1, 2, 1));
    assert!(!other.differs_in_leases_only(&state));
    assert_eq!(state.volume(VolumeId(10)).expect("exists").owner, NodeId(1), "a copy is not changed with it");
}

#[test]
fn a_transfer_moves_the_volume_and_remembers_the_source() {
    let mut state = cluster();
    assert_eq!(state.apply(11, transfer(1, 1, 2, 1)), Response::Transferred { epoch: Epoch(2) });
    let volume = state.volume(VolumeId(10)).expect("exists");
    assert_eq!((volume.owner, volume.source), (NodeId(2), Some(NodeId(1))));
    assert_eq!(volume.replicas, [NodeId(1), NodeId(3)].into());
    assert_eq!(volume.final_lsn, Lsn::new(Epoch(1), 5));
}

#[test]
fn a_repeated_transfer_answers_as_the_first_and_changes_nothing() {
    let mut state = cluster();
    state.apply(11, transfer(1, 1, 2, 1));
    let before = state.clone();
    assert_eq!(state.apply(12, transfer(1, 1, 2, 1)), Response::Transferred { epoch: Epoch(2) });
    assert_eq!(state, before);
}

#[test]
fn transfers_that_are_void_are_refused() {
    for (command, what) in [
        (transfer(2, 1, 2, 1), "another epoch"),
        (transfer(1, 2, 3, 1), "not the owner"),
        (transfer(1, 1, 2, 0), "an earlier process"),
        (transfer(1, 1, 9, 1), "not a replica"),
        (transfer(1, 1, 1, 1), "to itself"),
        (hand_over(None, &[], 1, 2, 1, &[]), "nothing"),
        (hand_over(None, &[(10, 1), (10, 1)], 1, 2, 1, &[]), "twice the same"),
    ] {
        let mut state = cluster();
        let before = state.clone();
        assert!(matches!(state.apply(11, command), Response::Refused(_)), "{what}");
        assert_eq!(state, before, "{what}");
    }
}

#[test]
fn what_is_enclosed_is_kept_until_the_new_owner_has_it() {
    let volume = VolumeId(10);
    let mut state = cluster();
    let handed = hand_over(None, &[(10, 1)], 1, 2, 1, &[(10, b"news")]);
    assert_eq!(state.apply(11, handed.clone()), Response::GroupTransferred);
    assert_eq!(state.enclosed(volume), Some(&b"news"[..]));
    let before = state.clone();
    assert_eq!(state.apply(12, handed), Response::GroupTransferred, "proposed again");
    assert_eq!(state, before);

    let taken = |epoch| Command::EnclosureTaken { volume, epoch: Epoch(epoch) };
    state.apply(13, taken(1));
    assert!(state.enclosed(volume).is_some(), "somebody else, late");
    assert_eq!(state.apply(14, taken(2)), Response::EnclosureTaken);
    assert_eq!(state.enclosed(volume), None);
    assert_eq!(state.apply(15, taken(2)), Response::EnclosureTaken, "said again");
}

#[test]
fn what_is_enclosed_goes_with_the_epoch_it_is_for() {
    let volume = VolumeId(10);
    let mut given = cluster();
    given.apply(11, hand_over(None, &[(10, 1)], 1, 2, 1, &[(10, b"news")]));
    let gone = [
        vec![hand_over(None, &[(10, 2)], 2, 3, 1, &[])],
        vec![renew(2, 0), expire(2, 1), takeover(2, 2, 3, 1, Lsn::new(Epoch(1), 4))],
        vec![Command::DeleteVolume { volume }],
    ];
    for commands in gone {
        let mut state = given.clone();
        for (index, command) in commands.into_iter().enumerate() {
            state.apply(20 + index as u64, command).into_result().expect("is applied");
        }
        assert_eq!(state.enclosed(volume), None);
    }
}

#[test]
fn a_transfer_proposed_before_a_restart_is_void_after_it() {
    let mut state = cluster();
    state.apply(11, Command::NodeStarted { node: NodeId(1) });
    let refused = state.apply(12, transfer(1, 1, 2, 1));
    assert_eq!(refused, Response::Refused(Refusal::OldIncarnation { node: NodeId(1), proposed: 1, current: 2 }));
    assert_eq!(refused.into_result().expect_err("refused").kind(), ErrorKind::Fenced);
}

#[test]
fn a_volume_grows_and_shrinks_and_a_repeated_resize_changes_nothing() {
    let mut state = cluster();
    for (index, expected, size) in [(11, 1, 8), (12, 8, 2)] {
        let resized = Response::VolumeResized { size: mebibytes(size) };
        assert_eq!(state.apply(index, resize(1, 1, 1, expected, size)), resized);
        assert_eq!(state.volume(VolumeId(10)).expect("exists").size, mebibytes(size));
        let before = state.clone();
        assert_eq!(state.apply(index, resize(1, 1, 1, expected, size)), resized, "its answer was lost");
        assert_eq!(state, before);
    }
}

#[test]
fn sizes_that_are_void_are_refused() {
    for (command, what, kind) in [
        (resize(2, 1, 1, 1, 8), "another epoch", ErrorKind::NotOwner),
        (resize(1, 2, 1, 1, 8), "not the owner", ErrorKind::NotOwner),
        (resize(1, 1, 0, 1, 8), "an earlier process", ErrorKind::Fenced),
        (resize(1, 1, 1, 4, 8), "it had another size", ErrorKind::Busy),
    ] {
        let mut state = cluster();
        let before = state.clone();
        assert_eq!(state.apply(11, command).into_result().expect_err(what).kind(), kind, "{what}");
        assert_eq!(state, before, "{what}");
    }
    let Command::ResizeVolume { from, incarnation, epoch, expected, size, .. } = resize(1, 1, 1, 1, 8) else { return };
    let elsewhere = Command::ResizeVolume { volume: VolumeId(11), from, incarnation, epoch, expected, size };
    assert_eq!(cluster().apply(11, elsewhere), Response::Refused(Refusal::UnknownVolume(VolumeId(11))));
}

#[test]
fn a_repeated_creation_is_the_same_volume_and_another_is_refused() {
    let mut state = cluster();
    assert_eq!(state.apply(11, create("v", 1, &[2, 3], 1)), Response::VolumeCreated { volume: VolumeId(10) });
    let refused = state.apply(12, create("v", 1, &[], 2)).into_result().expect_err("taken");
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    let stranger = state.apply(13, create("w", 1, &[9], 3)).into_result().expect_err("no such node");
    assert_eq!(stranger.kind(), ErrorKind::NotFound);
}

#[test]
fn a_node_may_move_but_not_take_anothers_name_or_id() {
    let mut state = cluster();
    let moved = Command::RegisterNode {
        id: NodeId(1),
        name: "a".parse().expect("a name"),
        provider: "a".parse().expect("a name"),
        address: "127.0.0.1:99".into(),
    };
    assert_eq!(state.apply(20, moved), Response::Registered { node: NodeId(1) });
    assert_eq!(state.node(NodeId(1)).expect("known").address, "127.0.0.1:99");
    assert_eq!(state.node(NodeId(1)).expect("known").incarnation, 1, "registering is not starting");
    assert!(state.apply(21, register(7, "a")).into_result().is_err(), "the name is taken");
    assert!(state.apply(22, register(1, "x")).into_result().is_err(), "the id is taken");
}

fn join(name: &str, key: u8) -> Command {
    Command::JoinNode {
        name: name.parse().expect("a name"),
        provider: name.parse().expect("a name"),
        address: "127.0.0.1:9".into(),
        key: [key; 32],
    }
}

#[test]
fn a_joining_node_gets_an_id_that_was_never_used() {
    let mut state = cluster();
    assert_eq!(state.apply(30, join("d", 1)), Response::Registered { node: NodeId(30) });
    assert_eq!(state.apply(31, join("d", 1)), Response::Registered { node: NodeId(30) }, "the same node again");
    assert_eq!(state.apply(31, register(30, "d")), Response::Registered { node: NodeId(30) }, "and when it starts");
    assert_eq!(state.apply(32, join("d", 1)), Response::Registered { node: NodeId(30) }, "its key is remembered");
}

/// Found in review: a name without an id used to be taken for a repeated proposal, so whoever held a join token
/// could join under the name of a living node and was given that node's id.
#[test]
fn a_stranger_does_not_become_the_node_whose_name_it_uses() {
    let mut state = cluster();
    state.apply(30, join("d", 1));
    for name in ["a", "d"] {
        let before = state.clone();
        let refused = state.apply(31, join(name, 2)).into_result().expect_err("taken");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(state, before);
    }
}

#[test]
fn an_expiry_that_was_outrun_by_a_renewal_changes_nothing() {
    let mut state = cluster();
    assert_eq!(state.apply(11, renew(1, 0)), Response::LeaseGranted { renewals: 1 });
    assert_eq!(state.apply(12, renew(1, 0)), Response::LeaseGranted { renewals: 2 });
    let before = state.clone();
    let late = Response::Refused(Refusal::LeaseHeld { node: NodeId(1), renewals: 2 });
    assert_eq!(state.apply(13, expire(1, 1)), late, "proposed by a leader that has lost its place, perhaps");
    assert_eq!(state, before);
    let held = takeover(1, 1, 2, 1, Lsn::new(Epoch(1), 3));
    assert_eq!(state.apply(14, held).into_result().expect_err("is alive").kind(), ErrorKind::Busy);
    assert_eq!(state, before);
}

#[test]
fn a_lease_that_was_out_is_granted_again_only_to_whoever_knows_that() {
    let mut state = cluster();
    state.apply(11, renew(1, 0));
    for index in [12, 13] {
        assert_eq!(state.apply(index, expire(1, 1)), Response::LeaseExpired, "also when its first answer was lost");
        assert_eq!((state.lease(NodeId(1)).lapses, state.lease(NodeId(1)).is_out), (1, true));
    }
    let unaware = state.apply(14, renew(1, 0)).into_result().expect_err("may own less than it thinks");
    assert_eq!(unaware.kind(), ErrorKind::Fenced);
    assert_eq!(state.apply(15, renew(1, 1)), Response::LeaseGranted { renewals: 2 });
    assert!(!state.lease(NodeId(1)).is_out);
    assert_eq!(state.apply(17, expire(2, 0)), Response::LeaseExpired, "it never had one, and must know before it has");
    assert!(state.apply(18, renew(2, 0)).into_result().is_err());
}

#[test]
fn a_takeover_cuts_the_history_and_the_old_owner_follows() {
    let mut state = cluster();
    let start = Lsn::new(Epoch(1), 3);
    state.apply(11, expire(1, 0));
    assert!(state.apply(12, takeover(1, 1, 2, 0, start)).into_result().is_err(), "an earlier process of the new owner");
    assert!(state.apply(12, takeover(1, 3, 2, 1, start)).into_result().is_err(), "not the owner's");
    for index in [13, 14] {
        assert_eq!(state.apply(index, takeover(1, 1, 2, 1, start)), Response::TakenOver { epoch: Epoch(2) });
    }
    let volume = state.volume(VolumeId(10)).expect("exists").clone();
    assert_eq!((volume.owner, volume.final_lsn, volume.source), (NodeId(2), start, None));
    assert_eq!(volume.replicas, [NodeId(1), NodeId(3)].into());
    for (position, has_left) in [((1, 3), false), ((1, 4), true), ((0, 0), false), ((2, 4), false)] {
        let position = Lsn::new(Epoch(position.0), position.1);
        assert_eq!(volume.has_left(position), has_left, "{position}");
        assert_eq!(volume.common_with(position), if has_left { start } else { position });
    }
    let late = state.apply(15, transfer(1, 1, 2, 1)).into_result().expect_err("its epoch is over");
    assert_eq!(late.kind(), ErrorKind::NotOwner);
}

#[test]
fn a_policy_is_kept_over_a_takeover() {
    let mut state = cluster();
    let volume = VolumeId(10);
    assert_eq!(state.volume(volume).expect("exists").takeover_after_ms, None, "an operator's word, unless asked for");
    let set = |volume| Command::SetTakeover { volume, after_ms: Some(5000) };
    assert_eq!(state.apply(20, set(volume)), Response::TakeoverSet);
    assert!(state.apply(21, set(VolumeId(99))).into_result().is_err());
    state.apply(30, expire(1, 0));
    state.apply(31, takeover(1, 1, 2, 1, Lsn::new(Epoch(1), 3)));
    assert_eq!(state.volume(volume).expect("exists").takeover_after_ms, Some(5000));
}

#[test]
fn a_volume_goes_where_it_is_written_only_in_the_epoch_in_which_that_was_allowed() {
    let mut state = cluster();
    let volume = VolumeId(10);
    let allow = |to| Command::SetOnWrite { volume, to: Some(NodeId(to)) };
    assert!(state.apply(20, allow(1)).into_result().is_err(), "the owner itself");
    assert!(state.apply(21, allow(9)).into_result().is_err(), "nobody who follows");
    assert_eq!(state.apply(22, allow(2)), Response::PolicySet);
    state.apply(23, transfer(1, 1, 3, 1)).into_result().expect("is handed over");
    assert_eq!(state.volume(volume).expect("exists").on_write, None);
    assert_eq!(state.apply(24, allow(2)), Response::PolicySet);
    state.apply(25, Command::SetOnWrite { volume, to: None });
    assert_eq!(state.volume(volume).expect("exists").on_write, None, "withdrawn");
}

#[test]
fn snapshots_that_a_takeover_cut_off_are_not_listed_any_more() {
    let mut state = cluster();
    let volume = VolumeId(10);
    let size = state.volume(volume).expect("exists").size;
    for (index, name, sequence) in [(20, "before", 3), (22, "after", 4), (24, "asked-for", 0)] {
        let name = name.parse().expect("a name");
        state.apply(index, Command::CreateSnapshot { volume, name, nonce: index });
        if sequence > 0 {
            let made = Made { lsn: Lsn::new(Epoch(1), sequence), size, at_ms: 0 };
            let (snapshot, from, epoch) = (SnapshotId(index), NodeId(1), Epoch(1));
            state.apply(index + 1, Command::SnapshotMade { volume, snapshot, from, epoch, made });
        }
    }
    state.apply(30, expire(1, 0));
    state.apply(31, takeover(1, 1, 2, 1, Lsn::new(Epoch(1), 3)));
    let names: Vec<&str> =
        state.volume(volume).expect("exists").snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
    assert_eq!(names, ["before", "asked-for"], "the new owner makes what was asked for");
}

/// The same end, the same new owner, and no digest in it: only the fork tells them apart.
#[test]
fn a_takeover_is_not_the_answer_to_a_handover() {
    let mut state = cluster();
    state.apply(11, expire(1, 0));
    state.apply(12, takeover(1, 1, 2, 1, Lsn::new(Epoch(1), 5)));
    let Command::Transfer { volume, from, incarnation, epoch, to, final_lsn, .. } = transfer(1, 1, 2, 1) else {
        return;
    };
    let same = Command::Transfer { volume, from, incarnation, epoch, to, final_lsn, manifest_digest: 0 };
    assert!(state.apply(13, same).into_result().is_err());
}

#[test]
fn takeovers_beyond_the_bound_are_remembered_as_one_that_cut_off_more() {
    let mut state = cluster();
    let (mut owner, mut other) = (1, 2);
    for epoch in 1..=40u64 {
        let renewals = state.lease(NodeId(owner)).renewals;
        state.apply(100 + epoch, expire(owner, renewals));
        let taken = state.apply(200 + epoch, takeover(epoch, owner, other, 1, Lsn::new(Epoch(epoch), epoch * 10)));
        assert_eq!(taken, Response::TakenOver { epoch: Epoch(epoch + 1) });
        std::mem::swap(&mut owner, &mut other);
    }
    let volume = state.volume(VolumeId(10)).expect("exists");
    assert_eq!(volume.forks.len(), super::FORKS_MAX);
    for epoch in 1..=40u64 {
        assert!(volume.has_left(Lsn::new(Epoch(epoch), epoch * 10 + 1)), "epoch {epoch}");
    }
    assert!(!volume.has_left(Lsn::new(Epoch(40), 400)));
}

fn any_command() -> impl Strategy<Value = Command> {
    let node = 1..5u64;
    prop_oneof![
        (node.clone(), prop::sample::select(vec!["a", "b", "c", "d"])).prop_map(|(id, name)| register(id, name)),
        node.clone().prop_map(|node| Command::NodeStarted { node: NodeId(node) }),
        (prop::sample::select(vec!["a", "d", "e"]), 0..3u8).prop_map(|(name, key)| join(name, key)),
        (prop::sample::select(vec!["v", "w"]), node.clone(), prop::collection::vec(node.clone(), 0..3), 0..3u64)
            .prop_map(|(name, owner, replicas, nonce)| create(name, owner, &replicas, nonce)),
        (1..30u64).prop_map(|volume| Command::DeleteVolume { volume: VolumeId(volume) }),
        (1..4u64, node.clone(), 0..3u64, 1..4u64, 1..4u64)
            .prop_map(|(epoch, from, inc, expected, size)| resize(epoch, from, inc, expected, size)),
        (node.clone(), 0..3u64).prop_map(|(node, lapses)| renew(node, lapses)),
        (node.clone(), 0..3u64).prop_map(|(node, renewals)| expire(node, renewals)),
        (1..4u64, node.clone(), node.clone(), 0..3u64, 0..9u64).prop_map(|(epoch, from, to, inc, start)| takeover(
            epoch,
            from,
            to,
            inc,
            Lsn::new(Epoch(1), start)
        )),
        (1..4u64, node.clone(), node.clone(), 0..3u64)
            .prop_map(|(epoch, from, to, inc)| transfer(epoch, from, to, inc)),
        (1..4u64, node.clone(), node, 0..3u64).prop_map(|(epoch, from, to, inc)| hand_over(
            None,
            &[(10, epoch)],
            from,
            to,
            inc,
            &[(10, b"news")]
        )),
        (1..4u64).prop_map(|epoch| Command::EnclosureTaken { volume: VolumeId(10), epoch: Epoch(epoch) }),
        (1..5u64, 0..3u64, 1..4u64).prop_map(|(node, inc, epoch)| stepping_down::step_down(
            node,
            inc,
            &[(10, epoch), (110, 1)]
        )),
        (1..5u64).prop_map(|node| Command::RemoveNode { node: NodeId(node), was_lost: false, at_ms: 7 }),
    ]
}

/// Records by kind and encoded key.
#[derive(Default)]
struct Stored(BTreeMap<(u8, Vec<u8>), Vec<u8>>);

impl Changes for Stored {
    fn put<K: Serialize, V: Serialize>(&mut self, kind: Kind, key: &K, value: &V) -> io::Result<()> {
        let [key, value] =
            [postcard::to_stdvec(key), postcard::to_stdvec(value)].map(|bytes| bytes.expect("plain data"));
        self.0.insert((kind as u8, key), value);
        Ok(())
    }

    fn delete<K: Serialize>(&mut self, kind: Kind, key: &K) -> io::Result<()> {
        let key = postcard::to_stdvec(key).expect("plain data");
        assert!(self.0.remove(&(kind as u8, key)).is_some(), "a {kind:?} is deleted that was there");
        Ok(())
    }
}

impl Records for Stored {
    fn load<K: DeserializeOwned, V: DeserializeOwned>(&self, kind: Kind) -> io::Result<Vec<(K, V)>> {
        let of_kind = self.0.iter().filter(|((it, _), _)| *it == kind as u8);
        let read = |bytes: &[u8]| postcard::from_bytes(bytes).expect("reads back");
        Ok(of_kind.map(|((_, key), value)| (read(key), postcard::from_bytes(value).expect("reads back"))).collect())
    }
}

/// Three nodes with volumes 10 and up, which the first owns and the others follow.
pub(crate) fn with_volumes(count: u64) -> MetaState {
    let mut state = cluster();
    for id in 10..10 + count {
        let name = format!("disk-{id}").parse().expect("a name");
        let volume = Volume::new(VolumeId(id), name, mebibytes(1), NodeId(1));
        state.volumes.insert(volume.id, Volume { replicas: [NodeId(2), NodeId(3)].into(), ..volume });
    }
    state
}

proptest! {
    #[test]
    fn invariants_hold_whatever_is_proposed(commands in prop::collection::vec(any_command(), 0..60)) {
        let (mut state, mut twin) = (cluster(), cluster());
        let mut stored = Stored::default();
        state.store_changes(&mut stored).expect("is stored");
        for (index, command) in commands.into_iter().enumerate() {
            let before = state.clone();
            let response = state.apply(100 + index as u64, command.clone());
            prop_assert_eq!(crate::invariants::violated(&state), None);
            if matches!(response, Response::Refused(_)) {
                prop_assert_eq!(&state, &before, "a refusal changes nothing");
            }
            let changed: Vec<_> = state.volumes_changed_since(&before).map(|volume| volume.id).collect();
            for volume in state.volumes().filter(|volume| !changed.contains(&volume.id)) {
                prop_assert_eq!(Some(volume), before.volume(volume.id));
            }
            state.store_changes(&mut stored).expect("is stored");
            prop_assert_eq!(&MetaState::load(&stored).expect("reads"), &state, "what is stored is what is there");
            prop_assert_eq!(twin.apply(100 + index as u64, command), response, "the same on every replica");
            for volume in before.volumes() {
                if let Some(after) = state.volume(volume.id) {
                    prop_assert!(after.epoch >= volume.epoch);
                }
            }
        }
    }
}

fn snapshot(name: &str, nonce: u64) -> Command {
    Command::CreateSnapshot { volume: VolumeId(10), name: name.parse().expect("a name"), nonce }
}

fn made(snapshot: u64, from: u64, epoch: u64, sequence: u64) -> Command {
    let made = Made { lsn: Lsn::new(Epoch(epoch), sequence), size: mebibytes(1), at_ms: 5 };
    Command::SnapshotMade {
        volume: VolumeId(10),
        snapshot: SnapshotId(snapshot),
        from: NodeId(from),
        epoch: Epoch(epoch),
        made,
    }
}

#[test]
fn a_snapshot_is_recorded_once_and_made_by_whoever_owns_the_volume() {
    let mut state = cluster();
    assert_eq!(state.apply(20, snapshot("one", 1)), Response::SnapshotCreated { snapshot: SnapshotId(20) });
    assert_eq!(state.apply(21, snapshot("one", 1)), Response::SnapshotCreated { snapshot: SnapshotId(20) });
    assert!(matches!(state.apply(22, snapshot("one", 2)), Response::Refused(Refusal::SnapshotNameTaken { .. })));
    assert!(matches!(state.apply(23, made(20, 2, 1, 7)), Response::Refused(Refusal::NotOwner { .. })));
    assert_eq!(state.apply(24, transfer(1, 1, 2, 1)), Response::Transferred { epoch: Epoch(2) });
    assert!(matches!(state.apply(25, made(20, 1, 1, 7)), Response::Refused(Refusal::NotOwner { .. })));
    assert_eq!(state.apply(26, made(20, 2, 2, 7)), Response::SnapshotMade);
    assert_eq!(state.apply(27, made(20, 2, 2, 9)), Response::SnapshotMade, "it stays what it is");
    let volume = state.volume(VolumeId(10)).expect("exists");
    assert_eq!(volume.snapshot_named("one").and_then(|it| it.made).map(|made| made.lsn.sequence), Some(7));
    let delete = Command::DeleteSnapshot { volume: VolumeId(10), snapshot: SnapshotId(20) };
    assert_eq!(state.apply(28, delete.clone()), Response::SnapshotDeleted);
    assert!(matches!(state.apply(29, delete), Response::Refused(Refusal::UnknownSnapshot { .. })));
    assert_eq!(state.apply(30, snapshot("one", 3)), Response::SnapshotCreated { snapshot: SnapshotId(30) });
    assert_eq!(state.volume(VolumeId(10)).map(|volume| volume.newest_snapshot), Some(SnapshotId(30)));
}

fn clone(name: &str, snapshot: u64, from: u64, epoch: u64, nonce: u64) -> Command {
    Command::CloneVolume {
        name: name.parse().expect("a name"),
        origin: VolumeId(10),
        snapshot: SnapshotId(snapshot),
        from: NodeId(from),
        epoch: Epoch(epoch),
        nonce,
    }
}

#[test]
fn a_clone_needs_its_snapshot_until_its_owner_has_made_it() {
    let mut state = cluster();
    state.apply(20, snapshot("one", 1));
    let unmade = Refusal::UnknownSnapshot { volume: VolumeId(10), snapshot: SnapshotId(20) };
    assert_eq!(state.apply(21, clone("copy", 20, 1, 1, 5)), Response::Refused(unmade), "nobody has it yet");
    state.apply(22, made(20, 1, 1, 7));
    assert!(matches!(state.apply(23, clone("copy", 20, 2, 1, 5)), Response::Refused(Refusal::NotOwner { .. })));
    assert!(matches!(state.apply(24, clone("v", 20, 1, 1, 5)), Response::Refused(Refusal::VolumeNameTaken(_))));
    assert_eq!(state.apply(25, clone("copy", 20, 1, 1, 5)), Response::VolumeCreated { volume: VolumeId(25) });
    assert_eq!(state.apply(26, clone("copy", 20, 1, 1, 5)), Response::VolumeCreated { volume: VolumeId(25) });
    let (origin, copy) = (state.volume(VolumeId(10)).expect("exists"), state.volume(VolumeId(25)).expect("exists"));
    assert_eq!((copy.owner, &copy.replicas, copy.epoch), (origin.owner, &origin.replicas, origin.epoch));

    let delete = Command::DeleteSnapshot { volume: VolumeId(10), snapshot: SnapshotId(20) };
    assert!(matches!(state.apply(27, delete.clone()), Response::Refused(Refusal::BeingCloned { .. })));
    let volume = VolumeId(10);
    assert!(matches!(
        state.apply(28, Command::DeleteVolume { volume }),
        Response::Refused(Refusal::BeingCloned { .. })
    ));
    let (volume, epoch) = (VolumeId(25), Epoch(1));
    let not_by_others = Command::CloneMade { volume, from: NodeId(2), epoch };
    assert!(matches!(state.apply(29, not_by_others), Response::Refused(Refusal::NotOwner { .. })));
    for index in 30..32 {
        assert_eq!(state.apply(index, Command::CloneMade { volume, from: NodeId(1), epoch }), Response::CloneMade);
    }
    assert_eq!(state.apply(33, delete), Response::SnapshotDeleted);
    assert_eq!(state.apply(34, Command::DeleteVolume { volume: VolumeId(10) }), Response::VolumeDeleted);
    assert!(state.volume(VolumeId(25)).is_some());
}
