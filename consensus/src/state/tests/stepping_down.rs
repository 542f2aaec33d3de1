//! Owners that cease to act while they live: who may take over from them, and until when.

use client_lib::{Epoch, Lsn, NodeId, VolumeId};

use super::{cluster, create, expire, hand_over, renew, takeover, transfer};
use crate::command::{Command, Refusal, Response, STEP_DOWN_MAX};
use crate::state::MetaState;

/// Volumes with the epochs of their ownership.
pub(super) fn step_down(node: u64, incarnation: u64, volumes: &[(u64, u64)]) -> Command {
    let volumes = volumes.iter().map(|(volume, epoch)| (VolumeId(*volume), Epoch(*epoch))).collect();
    Command::StepDown { node: NodeId(node), incarnation, volumes }
}

const START: Lsn = Lsn::new(Epoch(1), 4);

/// Node 1 owns volume 10, renews its lease, and has stepped down.
fn stepped_down() -> MetaState {
    let mut state = cluster();
    state.apply(11, renew(1, 0)).into_result().expect("is granted");
    assert_eq!(state.apply(12, step_down(1, 1, &[(10, 1)])), Response::SteppedDown);
    state
}

/// An owner whose store has failed kept its lease: the volume could be neither written nor taken over until somebody stopped the node.
#[test]
fn what_an_owner_has_stepped_down_for_is_taken_over_while_it_has_its_lease() {
    let mut state = cluster();
    state.apply(11, renew(1, 0)).into_result().expect("is granted");
    let held = Refusal::LeaseHeld { node: NodeId(1), renewals: 1 };
    assert_eq!(state.apply(12, takeover(1, 1, 2, 1, START)), Response::Refused(held));

    let mut state = stepped_down();
    assert!(state.has_stepped_down(VolumeId(10)));
    assert_eq!(state.apply(13, takeover(1, 1, 2, 1, START)), Response::TakenOver { epoch: Epoch(2) });
    assert!(!state.has_stepped_down(VolumeId(10)), "the new owner has not");
    assert!(!state.lease(NodeId(1)).is_out, "its other volumes are its own");
    let before = state.clone();
    assert_eq!(state.apply(14, takeover(1, 1, 2, 1, START)), Response::TakenOver { epoch: Epoch(2) }, "proposed again");
    assert_eq!(state.apply(15, step_down(1, 1, &[(10, 1)])), Response::SteppedDown, "said late");
    assert_eq!(state, before);
}

#[test]
fn stepping_down_is_for_the_owner_in_its_epoch_and_by_its_present_process() {
    let before = cluster();
    for (command, what) in [
        (step_down(1, 1, &[(10, 2)]), "another epoch"),
        (step_down(2, 1, &[(10, 1)]), "not the owner"),
        (step_down(1, 1, &[(11, 1)]), "no volume"),
        (step_down(1, 1, &[]), "nothing"),
    ] {
        let mut state = before.clone();
        assert_eq!(state.apply(11, command), Response::SteppedDown);
        assert_eq!(state, before, "{what}");
    }
    let many: Vec<(u64, u64)> = (0..=STEP_DOWN_MAX as u64).map(|volume| (volume, 1)).collect();
    for command in [step_down(1, 0, &[(10, 1)]), step_down(9, 1, &[(10, 1)]), step_down(1, 1, &many)] {
        let mut state = before.clone();
        assert!(matches!(state.apply(11, command), Response::Refused(_)));
        assert_eq!(state, before);
    }
    // What it does not own keeps it from nothing.
    let mut state = before;
    state.apply(11, step_down(1, 1, &[(11, 1), (10, 1)]));
    assert!(state.has_stepped_down(VolumeId(10)));
}

#[test]
fn a_process_that_begins_may_act_again_and_what_an_earlier_one_said_is_void() {
    let mut state = stepped_down();
    state.apply(13, create("w", 2, &[1], 2)).into_result().expect("is created");
    state.apply(14, step_down(2, 1, &[(13, 1)]));
    assert_eq!(state.apply(15, Command::NodeStarted { node: NodeId(1) }), Response::Started { incarnation: 2 });
    assert!(!state.has_stepped_down(VolumeId(10)));
    assert!(state.has_stepped_down(VolumeId(13)), "another node's");
    let late = Refusal::OldIncarnation { node: NodeId(1), proposed: 1, current: 2 };
    assert_eq!(state.apply(16, step_down(1, 1, &[(10, 1)])), Response::Refused(late));
    let held = Refusal::LeaseHeld { node: NodeId(1), renewals: 1 };
    assert_eq!(state.apply(17, takeover(1, 1, 2, 1, START)), Response::Refused(held));
}

#[test]
fn it_ends_with_the_epoch_and_with_the_volume() {
    let ends = [
        vec![transfer(1, 1, 2, 1)],
        vec![hand_over(None, &[(10, 1)], 1, 2, 1, &[])],
        vec![expire(1, 1), takeover(1, 1, 3, 1, START)],
        vec![Command::DeleteVolume { volume: VolumeId(10) }],
    ];
    for commands in ends {
        let mut state = stepped_down();
        for (index, command) in commands.into_iter().enumerate() {
            state.apply(20 + index as u64, command).into_result().expect("is applied");
        }
        assert_eq!(state.stepped_down().count(), 0);
    }
}

#[test]
fn it_concerns_its_volume_alone() {
    let mut state = cluster();
    state.apply(13, create("w", 1, &[2], 2)).into_result().expect("is created");
    let before = state.clone();
    state.apply(14, step_down(1, 1, &[(13, 1)]));
    assert!(!state.differs_in_leases_only(&before));
    let changed: Vec<u64> = state.volumes_changed_since(&before).map(|volume| volume.id.0).collect();
    assert_eq!(changed, [13]);
}
