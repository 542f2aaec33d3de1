//! Nodes that are removed, and certificates that are taken back.

use client_lib::pki::{CertificateHolder, Fingerprint};
use client_lib::policy::LinkPolicy;
use client_lib::{ClientName, Epoch, ErrorKind, Lsn, NodeId, VolumeId};

use super::{cluster, create, expire, hand_over, register, renew, takeover, transfer};
use crate::command::{Command, Refusal, Response};
use crate::state::MetaState;
use crate::state::access::{CLIENT_CERTIFICATES_MAX, Issued, REVOKED_MAX};

fn remove(node: u64) -> Command {
    Command::RemoveNode { node: NodeId(node), was_lost: false, at_ms: 7 }
}

fn join(name: &str, key: u8) -> Command {
    Command::JoinNode {
        name: name.parse().expect("a name"),
        provider: name.parse().expect("a name"),
        address: "127.0.0.1:9".to_owned(),
        key: [key; 32],
    }
}

fn client(name: &str) -> ClientName {
    name.parse().expect("a name")
}

fn issued(name: &str, byte: u8) -> Command {
    Command::ClientIssued { client: client(name), fingerprint: [byte; 32].into(), at_ms: 5 }
}

fn admits(state: &MetaState, name: &str, byte: u8) -> bool {
    state.access().admits(&CertificateHolder::Client(client(name)), &Fingerprint::from([byte; 32]))
}

fn refused(response: Response) -> Refusal {
    match response {
        Response::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// What was noted when certificates had no end reads as such.
#[test]
fn when_a_certificate_was_issued_and_for_how_long_are_one_number() {
    let before = Issued::from(1_790_000_000_000);
    assert_eq!((before, before.until_ms()), (Issued { at_ms: 1_790_000_000_000, days: 0 }, None));
    assert_eq!(u64::from(before), 1_790_000_000_000);
    let year = Issued { at_ms: 1_790_000_000_000, days: 365 };
    assert_eq!(Issued::from(u64::from(year)), year);
    assert_eq!(year.until_ms(), Some(1_790_000_000_000 + 365 * 86_400_000));
    let most = Issued { at_ms: (1 << 48) - 1, days: u16::MAX };
    assert_eq!(Issued::from(u64::from(most)), most);
}

#[test]
fn a_removed_node_leaves_nothing_behind_but_its_id() {
    let mut state = cluster();
    let limited = LinkPolicy { rate: Some(1), ..LinkPolicy::default() };
    for command in [
        renew(3, 0),
        Command::SetLink { from: NodeId(1), to: NodeId(3), policy: limited.clone() },
        Command::SetLink { from: NodeId(1), to: NodeId(2), policy: limited.clone() },
        Command::SetOnWrite { volume: VolumeId(10), to: Some(NodeId(3)) },
    ] {
        state.apply(11, command).into_result().expect("is applied");
    }
    assert_eq!(state.apply(12, remove(3)), Response::NodeRemoved);
    assert_eq!(state.apply(13, remove(3)), Response::NodeRemoved, "a repeated proposal");
    let volume = state.volume(VolumeId(10)).expect("exists");
    assert_eq!((&volume.replicas, volume.on_write), (&[NodeId(2)].into(), None));
    assert!(state.node(NodeId(3)).is_none() && state.leases().all(|(node, _)| node != NodeId(3)));
    assert_eq!(state.link(NodeId(1), NodeId(3)), LinkPolicy::default());
    assert_eq!(state.link(NodeId(1), NodeId(2)), limited, "the others keep theirs");
    let removed = state.access().removed(NodeId(3)).expect("is noted");
    assert_eq!((removed.name.as_str(), removed.at_ms, removed.was_lost), ("c", 7, false));
    let fingerprint = Fingerprint::from([0; 32]);
    assert!(!state.access().admits(&CertificateHolder::Node(NodeId(3)), &fingerprint));
    assert!(state.access().admits(&CertificateHolder::Node(NodeId(2)), &fingerprint));
    assert!(state.access().admits(&CertificateHolder::Node(NodeId(4)), &fingerprint), "who is not known here yet");
}

/// Whatever it still says, it is no member, and becomes none.
#[test]
fn a_removed_node_comes_back_by_nothing_that_it_proposes() {
    let mut state = cluster();
    state.apply(11, remove(3)).into_result().expect("is removed");
    let before = state.clone();
    let gone = || Refusal::NodeRemoved("c".parse().expect("a name"));
    for command in [register(3, "c"), Command::NodeStarted { node: NodeId(3) }, renew(3, 0)] {
        assert_eq!(refused(state.apply(12, command)), gone());
    }
    for (command, expected) in [
        (expire(3, 0), Refusal::UnknownNode(NodeId(3))),
        (create("w", 3, &[1], 4), Refusal::UnknownNode(NodeId(3))),
        (create("w", 1, &[3], 4), Refusal::UnknownNode(NodeId(3))),
        (transfer(1, 1, 3, 1), Refusal::NotReplica { volume: VolumeId(10), to: NodeId(3) }),
    ] {
        assert_eq!(refused(state.apply(12, command)), expected);
    }
    state.apply(13, renew(1, 0)).into_result().expect("is granted");
    state.apply(14, expire(1, 1)).into_result().expect("is out");
    let taken = refused(state.apply(15, takeover(1, 1, 3, 1, Lsn::ZERO)));
    assert_eq!(taken, Refusal::UnknownNode(NodeId(3)));
    assert_eq!(state.volume(VolumeId(10)), before.volume(VolumeId(10)));
}

#[test]
fn an_id_is_never_used_again_and_a_name_may_be() {
    let mut state = cluster();
    let Response::Registered { node } = state.apply(40, join("d", 1)) else { panic!("joins") };
    assert_eq!(node, NodeId(40));
    assert_eq!(state.apply(41, remove(40)), Response::NodeRemoved);
    let key = refused(state.apply(42, join("d", 1)));
    assert_eq!(key, Refusal::NodeRemoved("d".parse().expect("a name")), "the request of before, sent again");
    // At an index below, as no log has it: the id is above all the same.
    let Response::Registered { node } = state.apply(5, join("d", 2)) else { panic!("joins") };
    assert_eq!(node, NodeId(41));
    assert_eq!(state.nodes().filter(|node| node.name.as_str() == "d").count(), 1);
}

#[test]
fn who_owns_something_and_who_is_the_last_is_not_removed() {
    let mut state = cluster();
    state.apply(20, create("w", 1, &[2], 2)).into_result().expect("is created");
    let owns = refused(state.apply(21, remove(1)));
    assert!(matches!(&owns, Refusal::NodeOwns { volumes: 2, .. }), "{owns:?}");
    let text = owns.to_string();
    assert!(text.contains("helio node drain a") && text.contains("helio volume takeover v"), "{text}");
    assert_eq!(refused(state.apply(22, remove(9))), Refusal::UnknownNode(NodeId(9)));
    for volume in [10, 20] {
        state.apply(23, Command::DeleteVolume { volume: VolumeId(volume) }).into_result().expect("is deleted");
    }
    for node in [1, 2] {
        assert_eq!(state.apply(24, remove(node)), Response::NodeRemoved);
    }
    let last = refused(state.apply(25, remove(3)));
    assert_eq!(last, Refusal::LastNode("c".parse().expect("a name")));
    assert_eq!(client_lib::Error::from(last).kind(), ErrorKind::InvalidRequest);
}

/// What was enclosed for the new owner is kept until it has that, whoever is removed.
#[test]
fn the_last_owner_may_go_while_what_it_enclosed_is_not_taken_yet() {
    let mut state = cluster();
    state.apply(11, hand_over(None, &[(10, 1)], 1, 2, 1, &[(10, b"to be known")])).into_result().expect("goes");
    assert_eq!(state.apply(12, remove(1)), Response::NodeRemoved);
    assert_eq!(state.enclosed(VolumeId(10)), Some(&b"to be known"[..]));
    let taken = Command::EnclosureTaken { volume: VolumeId(10), epoch: Epoch(2) };
    state.apply(13, taken).into_result().expect("is taken");
    let volume = state.volume(VolumeId(10)).expect("exists");
    assert_eq!((volume.owner, &volume.replicas), (NodeId(2), &[NodeId(3)].into()));
    let mut other = cluster();
    other.apply(11, transfer(1, 1, 2, 1)).into_result().expect("goes");
    assert_eq!(other.apply(12, remove(1)), Response::NodeRemoved);
    assert_eq!(other.volume(VolumeId(10)).expect("exists").source, None, "nobody is asked there any more");
}

#[test]
fn a_revoked_name_lets_in_only_what_is_issued_after_that() {
    let mut state = cluster();
    assert!(admits(&state, "host", 9), "issued by a version that did not note it");
    state.apply(11, issued("host", 1)).into_result().expect("is listed");
    assert!(admits(&state, "host", 1) && admits(&state, "host", 9));
    let revoke = Command::RevokeClient { client: client("host"), at_ms: 6 };
    assert_eq!(state.apply(12, revoke.clone()), Response::Revoked);
    assert!(!admits(&state, "host", 1) && !admits(&state, "host", 9));
    assert!(admits(&state, "other", 1), "by its name");
    state.apply(13, issued("host", 2)).into_result().expect("is listed");
    assert!(admits(&state, "host", 2) && !admits(&state, "host", 1) && !admits(&state, "host", 9));
    for round in 0..3 {
        state.apply(14 + round, revoke.clone()).into_result().expect("again");
        state.apply(14 + round, issued("host", 3)).into_result().expect("and again");
    }
    let record = state.access().clients().next().expect("is listed").1;
    assert_eq!(record.issued.len(), 1, "nothing is kept of what was revoked");
}

#[test]
fn a_certificate_is_revoked_by_itself_for_good() {
    let mut state = cluster();
    for byte in [1, 2] {
        state.apply(11, issued("host", byte)).into_result().expect("is listed");
    }
    for byte in [1, 8] {
        let revoke = Command::RevokeCertificate { fingerprint: [byte; 32].into(), at_ms: 6 };
        for _ in 0..2 {
            assert_eq!(state.apply(12, revoke.clone()), Response::Revoked);
        }
    }
    assert!(!admits(&state, "host", 1) && admits(&state, "host", 2) && admits(&state, "host", 9));
    assert!(!admits(&state, "another", 8), "whatever its name");
    assert_eq!(refused(state.apply(13, issued("host", 1))), Refusal::CertificateRevoked);
}

/// Whoever had a new certificate each day had 64 of them after two months, of which one or two counted, and was issued no other: the only way that was
/// told of was to take all of them back, the one in use among them.
#[test]
fn certificates_that_have_ended_make_room_for_others() {
    const DAY: u64 = 86_400_000;
    let mut state = cluster();
    let daily = |day: u8| Command::ClientIssued {
        client: client("host"),
        fingerprint: [day; 32].into(),
        at_ms: Issued { at_ms: u64::from(day) * DAY, days: 1 }.into(),
    };
    let forget = |day: u64| Command::ForgetEnded { client: client("host"), at_ms: day * DAY };
    state.apply(11, Command::RevokeClient { client: client("host"), at_ms: 0 });
    state.apply(11, issued("host", 200)).into_result().expect("is listed, and has no end");
    for day in 1..64 {
        state.apply(12, daily(day)).into_result().expect("is listed");
    }
    let before = state.clone();
    assert_eq!(state.apply(13, forget(2)), Response::Revoked);
    assert_eq!(state, before, "the first one has just ended");
    assert_eq!(refused(state.apply(13, daily(64))), Refusal::TooManyCertificates(client("host")));
    for _ in 0..2 {
        assert_eq!(state.apply(14, forget(64)), Response::Revoked);
        let listed = state.access().clients().next().map(|(_, record)| record.issued.len());
        assert_eq!(listed, Some(2), "that without an end, and the one of yesterday");
    }
    state.apply(15, daily(64)).into_result().expect("there is room");
    assert!(!admits(&state, "host", 62) && admits(&state, "host", 63) && admits(&state, "host", 200));
    let stranger = Command::ForgetEnded { client: client("nobody"), at_ms: 99 * DAY };
    assert_eq!(state.apply(16, stranger), Response::Revoked);
    assert_eq!(state.access().clients().count(), 1);
}

#[test]
fn what_is_listed_has_bounds() {
    let mut state = cluster();
    let numbered = |number: usize| Fingerprint::from(std::array::from_fn(|at| (number >> (8 * (at % 4))) as u8));
    let issued = |number| Command::ClientIssued { client: client("host"), fingerprint: numbered(number), at_ms: 5 };
    for number in 0..CLIENT_CERTIFICATES_MAX {
        state.apply(11, issued(number)).into_result().expect("is listed");
    }
    assert_eq!(state.apply(11, issued(0)), Response::ClientIssued, "a repeated proposal");
    assert_eq!(refused(state.apply(11, issued(CLIENT_CERTIFICATES_MAX))), Refusal::TooManyCertificates(client("host")));
    for number in 0..REVOKED_MAX {
        let fingerprint = numbered(number | 1 << 24);
        state.access.revoked.insert(fingerprint, 0);
    }
    let one_more = Command::RevokeCertificate { fingerprint: [0xff; 32].into(), at_ms: 6 };
    assert_eq!(refused(state.apply(12, one_more)), Refusal::TooManyRevoked);
    assert_eq!(state.apply(13, Command::RevokeClient { client: client("host"), at_ms: 6 }), Response::Revoked);
}
