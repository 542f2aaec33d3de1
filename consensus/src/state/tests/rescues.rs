//! Volumes that are given away from stores which take no writes any more.

use client_lib::{Epoch, ErrorKind, Lsn, NodeId, VolumeId};

use super::{cluster, create, expire, takeover, transfer};
use crate::command::{Command, Ended, RESCUE_ENCLOSED_BYTES_MAX, Response};
use crate::state::{FORKS_MAX, MetaState, Volume};

const V: VolumeId = VolumeId(10);

fn lsn(epoch: u64, sequence: u64) -> Lsn {
    Lsn::new(Epoch(epoch), sequence)
}

/// Of volume 10, which ends its epoch at `end` and is durable up to `durable`.
pub(super) fn rescue(epoch: u64, from: u64, to: u64, end: Lsn, durable: Lsn) -> Command {
    let ended = Ended { volume: V, epoch: Epoch(epoch), final_lsn: end, manifest_digest: 77 };
    let (from, to) = (NodeId(from), NodeId(to));
    Command::Rescue { from, incarnation: 1, to, ended, durable, enclosed: b"the rest".to_vec() }
}

fn volume(state: &MetaState) -> &Volume {
    state.volume(V).expect("exists")
}

fn rescued() -> MetaState {
    let mut state = cluster();
    assert_eq!(state.apply(11, rescue(1, 1, 2, lsn(1, 5), lsn(1, 3))), Response::GroupTransferred);
    state
}

#[test]
fn a_rescue_gives_the_volume_away_and_cuts_off_what_was_never_acked() {
    let mut state = rescued();
    let before = state.clone();
    assert_eq!(state.apply(12, rescue(1, 1, 2, lsn(1, 5), lsn(1, 3))), Response::GroupTransferred, "proposed again");
    assert_eq!(state, before);
    let given = volume(&state);
    assert_eq!((given.owner, given.epoch, given.source), (NodeId(2), Epoch(2), Some(NodeId(1))));
    assert_eq!(given.replicas, [NodeId(1), NodeId(3)].into());
    assert_eq!(state.enclosed(V), Some(&b"the rest"[..]));
    assert_eq!(state.rescued_from(V, Epoch(1)), Some(lsn(1, 3)));
    assert_eq!(state.rescued_from(V, Epoch(2)), None);
    assert!(given.has_left(lsn(1, 6)) && !given.has_left(lsn(1, 5)), "whatever the failed store may still have");
    assert_eq!(given.common_with(lsn(1, 9)), lsn(1, 5));
    assert!(state.has_lost_nothing(given, lsn(1, 9)), "of what was acked");
    assert_eq!(state.last_takeover(given), None);
    assert!(state.apply(13, transfer(1, 1, 2, 1)).into_result().is_err(), "this is not the answer to a handover");
}

#[test]
fn it_is_for_the_owner_in_its_epoch_by_its_present_process_and_to_a_replica() {
    let cases = [
        (rescue(2, 1, 2, lsn(2, 5), lsn(1, 3)), ErrorKind::NotOwner),
        (rescue(1, 3, 2, lsn(1, 5), lsn(1, 3)), ErrorKind::NotOwner),
        (rescue(1, 1, 9, lsn(1, 5), lsn(1, 3)), ErrorKind::InvalidRequest),
    ];
    for (command, kind) in cases {
        let mut state = cluster();
        let before = state.clone();
        assert_eq!(state.apply(11, command).into_result().expect_err("is refused").kind(), kind);
        assert_eq!(state, before);
    }
    let mut state = cluster();
    state.apply(11, Command::NodeStarted { node: NodeId(1) });
    let old = state.apply(12, rescue(1, 1, 2, lsn(1, 5), lsn(1, 3))).into_result().expect_err("of a process before");
    assert_eq!(old.kind(), ErrorKind::Fenced);
    let Command::Rescue { from, incarnation, to, ended, durable, .. } = rescue(1, 1, 2, lsn(1, 5), lsn(1, 3)) else {
        unreachable!("it is one");
    };
    let enclosed = vec![0; RESCUE_ENCLOSED_BYTES_MAX + 1];
    let much = Command::Rescue { from, incarnation, to, ended, durable, enclosed };
    assert_eq!(cluster().apply(11, much).into_result().expect_err("too much").kind(), ErrorKind::InvalidRequest);
}

/// What was acked may be gone after a takeover, so that whoever used the volume before must hear of it, whatever came after.
#[test]
fn a_takeover_before_or_after_it_is_still_one() {
    let mut state = cluster();
    state.apply(11, expire(1, 0));
    state.apply(12, takeover(1, 1, 2, 1, lsn(1, 3))).into_result().expect("is taken over");
    state.apply(13, rescue(2, 2, 3, lsn(2, 9), lsn(2, 8))).into_result().expect("is given away");
    let given = volume(&state);
    assert_eq!(state.last_takeover(given).map(|fork| fork.epoch), Some(Epoch(1)));
    assert!(state.has_lost_nothing(given, lsn(2, 10)) && !state.has_lost_nothing(given, lsn(1, 4)));

    // It cuts off what the rescue brought, and more.
    state.apply(14, expire(3, 0));
    state.apply(15, takeover(3, 3, 1, 1, lsn(2, 7))).into_result().expect("is taken over");
    let taken = volume(&state);
    assert_eq!(state.last_takeover(taken).map(|fork| fork.epoch), Some(Epoch(3)));
    assert_eq!(state.rescued_from(V, Epoch(2)), None);
    assert!(!state.has_lost_nothing(taken, lsn(2, 8)));
}

/// A rescue that cuts off as little as a takeover before it, since nothing was written between, stands for both.
#[test]
fn one_that_covers_a_takeover_counts_as_a_takeover() {
    let mut state = cluster();
    state.apply(11, expire(1, 0));
    state.apply(12, takeover(1, 1, 2, 1, lsn(1, 3))).into_result().expect("is taken over");
    state.apply(13, rescue(2, 2, 3, lsn(1, 3), lsn(1, 3))).into_result().expect("is given away");
    let given = volume(&state);
    assert_eq!(given.forks.len(), 1);
    assert_eq!(state.last_takeover(given).map(|fork| fork.epoch), Some(Epoch(2)));
}

#[test]
fn rescues_beyond_the_bound_are_remembered_as_one_and_none_hides_a_takeover() {
    let mut state = cluster();
    state.apply(11, expire(1, 0));
    state.apply(12, takeover(1, 1, 2, 1, lsn(1, 3))).into_result().expect("is taken over");
    let (mut owner, mut other) = (2, 1);
    for epoch in 2..=40u64 {
        let (end, durable) = (lsn(epoch, epoch * 10), lsn(epoch, epoch * 10 - 1));
        state.apply(100 + epoch, rescue(epoch, owner, other, end, durable)).into_result().expect("is given away");
        std::mem::swap(&mut owner, &mut other);
    }
    let given = volume(&state);
    assert_eq!(given.forks.len(), FORKS_MAX);
    for epoch in 2..=40u64 {
        assert!(given.has_left(lsn(epoch, epoch * 10 + 1)), "epoch {epoch}");
    }
    let oldest = given.forks[0].epoch;
    assert_eq!(state.last_takeover(given).map(|fork| fork.epoch), Some(oldest), "it stands for the takeover, too");
    assert!(!state.has_lost_nothing(given, lsn(1, 4)) && state.has_lost_nothing(given, lsn(40, 999)));
}

#[test]
fn it_goes_with_its_volume_and_concerns_no_other() {
    let mut state = cluster();
    state.apply(11, create("w", 1, &[2], 2)).into_result().expect("is created");
    let before = state.clone();
    state.apply(12, rescue(1, 1, 2, lsn(1, 5), lsn(1, 3))).into_result().expect("is given away");
    assert_eq!(state.volumes_changed_since(&before).map(|volume| volume.id).collect::<Vec<_>>(), [V]);
    state.apply(13, Command::DeleteVolume { volume: V }).into_result().expect("is deleted");
    assert_eq!(state.rescues().count(), 0);
}
