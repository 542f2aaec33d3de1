//! The state as bytes: what a node's metadata store and Raft's snapshots hold.

use client_lib::cipher::{CipherName, SealedKey, VolumeKeys};
use client_lib::pki::Fingerprint;
use client_lib::policy::{Class, Durability, LinkPolicy, Mode, Order, Propagation, RateWindow, Rpo, RpoAction, Unmet};
use client_lib::rights::{Right, Role};
use client_lib::{ClientName, Epoch, Lsn, NodeId, SnapshotId, VolumeGroupId, VolumeId, VolumeSize};

use super::rescues::rescue;
use super::stepping_down::step_down;
use super::{create, expire, hand_over, register, renew, takeover, transfer};
use crate::command::Command;
use crate::golden;
use crate::state::before::{State4, State5, State6, State7, State8, State9};
use crate::state::{Made, MetaState};

fn durability(class: Class) -> Command {
    let unmet = Unmet::Degrade { after_ms: 10_000 };
    let durability = if class == Class::Local { Durability::default() } else { Durability { class, unmet } };
    Command::SetDurability { volume: VolumeId(10), durability }
}

fn propagation(propagation: Propagation) -> Command {
    Command::SetPropagation { volume: VolumeId(10), propagation }
}

fn link(policy: LinkPolicy) -> Command {
    Command::SetLink { from: NodeId(1), to: NodeId(2), policy }
}

/// A state with something in every field that format 5 has.
fn full_of_5() -> MetaState {
    let mut state = MetaState::default();
    let volume = VolumeId(10);
    let commands = [
        (1, register(1, "a")),
        (2, register(2, "b")),
        (3, register(3, "c")),
        (4, Command::NodeStarted { node: NodeId(1) }),
        (5, Command::NodeStarted { node: NodeId(2) }),
        (10, create("v", 1, &[2, 3], 7)),
        (11, Command::CreateSnapshot { volume, name: "monday".parse().expect("a name"), nonce: 8 }),
        (
            12,
            Command::SnapshotMade {
                volume,
                snapshot: SnapshotId(11),
                from: NodeId(1),
                epoch: Epoch(1),
                made: Made {
                    lsn: Lsn::new(Epoch(1), 3),
                    size: VolumeSize::try_from(1 << 20).expect("a size"),
                    at_ms: 1_700_000_000_000,
                },
            },
        ),
        (13, transfer(1, 1, 2, 1)),
        (14, Command::SetTakeover { volume, after_ms: Some(60_000) }),
        (14, durability(Class::Geo(1))),
        (14, Command::SetRpo { volume, rpo: Some(Rpo { target_ms: 5_000, action: RpoAction::Throttle }) }),
        (
            14,
            propagation(Propagation {
                mode: Mode::Lazy { interval_ms: 30_000 },
                replicas: [(NodeId(3), Mode::Eager)].into(),
                order: Order::WriteCount,
            }),
        ),
        (
            14,
            link(LinkPolicy {
                rate: Some(20 << 20),
                windows: vec![RateWindow { from_minute: 1320, to_minute: 360, rate: None }],
            }),
        ),
        (15, renew(2, 0)),
        (16, expire(2, 1)),
        (17, takeover(2, 2, 1, 1, Lsn::new(Epoch(2), 4))),
        (
            18,
            Command::CloneVolume {
                name: "w".parse().expect("a name"),
                origin: volume,
                snapshot: SnapshotId(11),
                from: NodeId(1),
                epoch: Epoch(3),
                nonce: 9,
            },
        ),
        (19, Command::SetOnWrite { volume, to: Some(NodeId(3)) }),
    ];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

/// A state with something in every field that format 6 has.
fn full_of_6() -> MetaState {
    let mut state = full_of_5();
    let (members, group) = ([VolumeId(10), VolumeId(18)], VolumeGroupId(20));
    let commands = [
        (20, Command::CreateGroup { name: "g".parse().expect("a name"), members: members.into(), nonce: 12 }),
        (
            21,
            Command::CreateGroupSnapshot {
                group,
                name: "tuesday".parse().expect("a name"),
                from: NodeId(1),
                incarnation: 1,
                members: members.map(|member| (member, Epoch(3))).into(),
                nonce: 13,
            },
        ),
        (22, Command::SetGroupOnWrite { group, to: Some(NodeId(2)) }),
    ];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

/// A state with something in every field that format 7 has.
fn full_of_7() -> MetaState {
    let mut state = full_of_6();
    let given = create("x", 1, &[2], 14);
    let commands = [(23, given), (24, hand_over(None, &[(23, 1)], 1, 2, 1, &[(23, b"what is to be known")]))];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

/// A state with something in every field that format 8 has.
fn full_of_8() -> MetaState {
    let mut state = full_of_7();
    let (client, at_ms) = ("host-7".parse::<ClientName>().expect("a name"), 1_700_000_000_300);
    let issued = |byte: u8| Command::ClientIssued { client: client.clone(), fingerprint: [byte; 32].into(), at_ms };
    let commands = [
        (25, register(300, "z")),
        (26, Command::RemoveNode { node: NodeId(300), was_lost: true, at_ms }),
        (27, issued(1)),
        (28, Command::RevokeClient { client: client.clone(), at_ms: at_ms + 1 }),
        (29, issued(2)),
        (30, Command::RevokeCertificate { fingerprint: [3; 32].into(), at_ms: at_ms + 2 }),
    ];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

fn rights() -> Command {
    Command::ChangeRights {
        client: "host-7".parse().expect("a name"),
        role: Some(Role::Operator),
        allow: ["vm-*:ro", "disk", "old"].map(|rule| rule.parse().expect("a rule")).into(),
        deny: Vec::new(),
    }
}

fn sealed(name: &str, byte: u8) -> SealedKey {
    let name = name.parse().expect("a name");
    SealedKey { name, fingerprint: [byte; 16].into(), sealed: [byte + 1; 92].into() }
}

fn create_encrypted() -> Command {
    Command::CreateEncryptedVolume {
        name: "y".parse().expect("a name"),
        size: VolumeSize::try_from(1 << 20).expect("a size"),
        owner: NodeId(1),
        replicas: [NodeId(2)].into(),
        durability: Durability::default(),
        keys: VolumeKeys { cipher: CipherName::Aes256Xts, check: [9; 16].into(), sealed: vec![sealed("prod.key", 1)] },
        nonce: 15,
    }
}

/// A state with something in every field that formats 9 and 10 have.
fn full_of_10() -> MetaState {
    let mut state = full_of_8();
    let withdrawn = Command::ChangeRights {
        client: "host-7".parse().expect("a name"),
        role: None,
        allow: Vec::new(),
        deny: vec![("old".parse().expect("a pattern"), Some(Right::Write))],
    };
    let labels = ["eu", "ssd"].map(|label| label.parse().expect("a label")).into();
    let (volume, placement) = (VolumeId(23), Some("2 in eu, 1 elsewhere, never x".parse().expect("a rule")));
    let change = Command::ChangeReplicas {
        members: vec![(volume, Epoch(2))],
        from: NodeId(2),
        incarnation: 1,
        add: [NodeId(3)].into(),
        remove: [NodeId(1)].into(),
    };
    let commands = [
        (31, Command::LabelNode { node: NodeId(2), labels }),
        (32, change),
        (33, Command::SetPlacement { volumes: [volume].into(), placement }),
        (34, rights()),
        (35, withdrawn),
        (36, create_encrypted()),
        (37, Command::AddVolumeKey { volume: VolumeId(36), check: [9; 16].into(), key: sealed("next.key", 3) }),
    ];
    for (index, command) in commands {
        state.apply(index, command).into_result().expect("is applied");
    }
    state
}

/// A state with something in every field.
fn full() -> MetaState {
    let mut state = full_of_10();
    state.apply(38, step_down(1, 1, &[(10, 3), (36, 1)])).into_result().expect("is applied");
    assert_eq!(state.stepped_down().count(), 2);
    let owned = state.volume(VolumeId(10)).expect("is there").clone();
    let to = *owned.replicas.iter().next().expect("has one");
    let (end, durable) = (Lsn::new(owned.epoch, 900), Lsn::new(owned.epoch, 800));
    let rescue = rescue(owned.epoch.0, owned.owner.0, to.0, end, durable);
    state.apply(39, rescue).into_result().expect("is applied");
    assert_eq!((state.stepped_down().count(), state.rescues().count()), (1, 1));
    state
}

/// What a log of today has, and tomorrow's program reads.
#[test]
fn the_command_of_a_rescue_is_stored_as_these_bytes() {
    let command = rescue(3, 2, 300, Lsn::new(Epoch(3), 900), Lsn::new(Epoch(3), 800));
    golden::check("meta-commands-rescue.hex", &command.encode());
    assert_eq!(Command::decode(&command.encode()).expect("reads back"), command);
}

/// What a log of today has, and tomorrow's program reads.
#[test]
fn the_command_of_stepping_down_is_stored_as_these_bytes() {
    let command = step_down(2, 300, &[(300, 3), (7, 1)]);
    golden::check("meta-commands-step-down.hex", &command.encode());
    assert_eq!(Command::decode(&command.encode()).expect("reads back"), command);
}

/// What a log of today has, and tomorrow's program reads.
#[test]
fn commands_that_make_room_are_stored_as_these_bytes() {
    let commands = [
        Command::GiveUpReplicas {
            members: vec![(VolumeId(300), Epoch(3))],
            from: NodeId(2),
            incarnation: 7,
            remove: [NodeId(6)].into(),
        },
        Command::ForgetEnded { client: "host-7".parse().expect("a name"), at_ms: 1_700_000_000_300 },
    ];
    let encoded: Vec<u8> = commands.iter().flat_map(Command::encode).collect();
    golden::check("meta-commands-room.hex", &encoded);
    for command in commands {
        assert_eq!(Command::decode(&command.encode()).expect("reads back"), command);
    }
}

/// What a log of today has, and tomorrow's program reads.
#[test]
fn commands_of_encryption_are_stored_as_these_bytes() {
    let volume = VolumeId(300);
    let commands = [
        create_encrypted(),
        Command::AddVolumeKey { volume, check: [9; 16].into(), key: sealed("next.key", 3) },
        Command::RemoveVolumeKey { volume, name: "prod.key".parse().expect("a name") },
    ];
    let encoded: Vec<u8> = commands.iter().flat_map(Command::encode).collect();
    golden::check("meta-commands-keys.hex", &encoded);
    for command in commands {
        assert_eq!(Command::decode(&command.encode()).expect("reads back"), command);
    }
}

/// What a log of today has, and tomorrow's program reads.
#[test]
fn commands_are_stored_as_these_bytes() {
    let (client, fingerprint) = ("host-7".parse::<ClientName>().expect("a name"), Fingerprint::from([7; 32]));
    let at_ms = 1_700_000_000_300;
    let commands = [
        Command::EnclosureTaken { volume: VolumeId(300), epoch: Epoch(3) },
        Command::RemoveNode { node: NodeId(300), was_lost: true, at_ms },
        Command::ClientIssued { client: client.clone(), fingerprint, at_ms },
        Command::RevokeClient { client, at_ms },
        Command::RevokeCertificate { fingerprint, at_ms },
        Command::ChangeReplicas {
            members: vec![(VolumeId(300), Epoch(3))],
            from: NodeId(2),
            incarnation: 7,
            add: [NodeId(5)].into(),
            remove: [NodeId(6)].into(),
        },
        Command::ReplicaJoined { volume: VolumeId(300), node: NodeId(5), since: 300 },
        Command::LabelNode { node: NodeId(5), labels: ["eu".parse().expect("a label")].into() },
        Command::SetPlacement {
            volumes: [VolumeId(300)].into(),
            placement: Some("2 in eu+ssd, 1 elsewhere, 3 anywhere, never x".parse().expect("a rule")),
        },
        rights(),
    ];
    let encoded: Vec<u8> = commands.iter().flat_map(Command::encode).collect();
    golden::check("meta-commands.hex", &encoded);
    for command in commands {
        assert_eq!(Command::decode(&command.encode()).expect("reads back"), command);
    }
}

#[test]
fn the_state_is_stored_as_these_bytes() {
    let state = full();
    let kept = golden::check("meta-state.hex", &postcard::to_stdvec(&state).expect("plain data"));
    assert_eq!(postcard::from_bytes::<MetaState>(&kept).expect("reads"), state);
}

/// The same state, but for what is new, as the version before wrote it.
#[test]
fn the_state_of_format_10_is_read() {
    let kept = golden::read("meta-state-10.hex");
    let before: State9 = postcard::from_bytes(&kept).expect("reads");
    assert_eq!(MetaState::from(before), full_of_10());
}

/// As the version before that wrote it.
#[test]
fn the_state_of_format_8_is_read() {
    let kept = golden::read("meta-state-8.hex");
    let before: State8 = postcard::from_bytes(&kept).expect("reads");
    assert_eq!(MetaState::from(before), full_of_8());
}

/// As the version before that wrote it.
#[test]
fn the_state_of_format_7_is_read() {
    let kept = golden::read("meta-state-7.hex");
    let before: State7 = postcard::from_bytes(&kept).expect("reads");
    assert_eq!(MetaState::from(before), full_of_7());
}

/// As the version before that wrote it.
#[test]
fn the_state_of_format_6_is_read() {
    let kept = golden::read("meta-state-6.hex");
    let before: State6 = postcard::from_bytes(&kept).expect("reads");
    assert_eq!(MetaState::from(before), full_of_6());
}

/// As the version before that wrote it.
#[test]
fn the_state_of_format_5_is_read() {
    let kept = golden::read("meta-state-5.hex");
    let before: State5 = postcard::from_bytes(&kept).expect("reads");
    assert_eq!(MetaState::from(before), full_of_5());
}

/// As the version before that wrote it.
#[test]
fn the_state_of_format_4_is_read() {
    let kept = golden::read("meta-state-4.hex");
    let before: State4 = postcard::from_bytes(&kept).expect("reads");
    let mut now = full_of_5();
    let withdrawn = Command::SetOnWrite { volume: VolumeId(10), to: None };
    let commands = [(30, propagation(Propagation::default())), (31, link(LinkPolicy::default())), (32, withdrawn)];
    for (index, command) in commands {
        now.apply(index, command).into_result().expect("is applied");
    }
    // The clone was made after they were set.
    now.volumes.get_mut(&VolumeId(18)).expect("the clone").propagation = Propagation::default();
    assert_eq!(MetaState::from(before), now);
}
