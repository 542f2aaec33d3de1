//! Keys of encrypted volumes.

use client_lib::cipher::keys::KEYS_MAX;
use client_lib::cipher::{CipherName, SealedKey, VolumeKeys};
use client_lib::policy::Durability;
use client_lib::{ErrorKind, KeyName, NodeId, SnapshotId, VolumeId};

use super::{cluster, create, mebibytes};
use crate::command::{Command, Refusal, Response};
use crate::state::{Made, MetaState};

const CHECK: [u8; 16] = [9; 16];

fn name(name: &str) -> KeyName {
    name.parse().expect("a name")
}

fn sealed(key: &str, byte: u8) -> SealedKey {
    SealedKey { name: name(key), fingerprint: [byte; 16].into(), sealed: [byte; 92].into() }
}

fn create_encrypted(volume: &str, sealed: Vec<SealedKey>, nonce: u64) -> Command {
    Command::CreateEncryptedVolume {
        name: volume.parse().expect("a name"),
        size: mebibytes(1),
        owner: NodeId(1),
        replicas: [NodeId(2)].into(),
        durability: Durability::default(),
        keys: VolumeKeys { cipher: CipherName::Aes256Xts, check: CHECK.into(), sealed },
        nonce,
    }
}

fn add(volume: u64, check: [u8; 16], key: SealedKey) -> Command {
    Command::AddVolumeKey { volume: VolumeId(volume), check: check.into(), key }
}

fn remove(volume: u64, key: &str) -> Command {
    Command::RemoveVolumeKey { volume: VolumeId(volume), name: name(key) }
}

fn with_encrypted() -> MetaState {
    let mut state = cluster();
    let created = state.apply(20, create_encrypted("secret", vec![sealed("old", 1)], 5));
    assert_eq!(created, Response::VolumeCreated { volume: VolumeId(20) });
    state
}

fn openers(state: &MetaState, volume: u64) -> Vec<&str> {
    let keys = state.keys(VolumeId(volume)).expect("is encrypted");
    keys.sealed.iter().map(|sealed| sealed.name.as_str()).collect()
}

fn refused(response: Response) -> (ErrorKind, Refusal) {
    match response {
        Response::Refused(refusal) => (client_lib::Error::from(refusal.clone()).kind(), refusal),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_encrypted_volume_has_its_keys_from_the_beginning_and_others_have_none() {
    let mut state = with_encrypted();
    assert_eq!(openers(&state, 20), ["old"]);
    assert!(state.keys(VolumeId(10)).is_none());
    let again = state.apply(21, create_encrypted("secret", vec![sealed("old", 1)], 5));
    assert_eq!(again, Response::VolumeCreated { volume: VolumeId(20) }, "a repeated proposal");
    assert!(state.keys(VolumeId(21)).is_none());
    let (kind, _) = refused(state.apply(22, create_encrypted("secret", vec![sealed("other", 2)], 6)));
    assert_eq!(kind, ErrorKind::AlreadyExists);
    for unsound in [vec![], vec![sealed("a", 1), sealed("a", 2)], vec![sealed("a", 1), sealed("b", 1)]] {
        let (kind, _) = refused(state.apply(23, create_encrypted("odd", unsound, 7)));
        assert_eq!(kind, ErrorKind::InvalidRequest);
    }
    assert_eq!(state.apply(24, Command::DeleteVolume { volume: VolumeId(20) }), Response::VolumeDeleted);
    assert!(state.keys(VolumeId(20)).is_none(), "what is sealed goes with the volume");
}

#[test]
fn one_key_is_exchanged_for_another_and_one_is_always_left() {
    let mut state = with_encrypted();
    let last = refused(state.apply(21, remove(20, "old"))).1;
    assert!(matches!(last, Refusal::LastVolumeKey { .. }), "{last}");
    for _ in 0..2 {
        assert_eq!(state.apply(22, add(20, CHECK, sealed("new", 2))), Response::VolumeKeysChanged, "also repeated");
    }
    assert_eq!(openers(&state, 20), ["old", "new"]);
    for taken in [sealed("new", 3), sealed("newer", 2)] {
        let (kind, refusal) = refused(state.apply(23, add(20, CHECK, taken)));
        assert_eq!(kind, ErrorKind::AlreadyExists, "{refusal}");
    }
    let (_, foreign) = refused(state.apply(24, add(20, [8; 16], sealed("other", 4))));
    assert!(matches!(foreign, Refusal::NotItsKey(_)), "{foreign}");
    assert_eq!(state.apply(25, remove(20, "old")), Response::VolumeKeysChanged);
    assert_eq!(openers(&state, 20), ["new"]);
    assert_eq!(refused(state.apply(26, remove(20, "old"))).0, ErrorKind::NotFound);
    for number in 1..KEYS_MAX {
        let key = sealed(&format!("key-{number}"), 10 + number as u8);
        assert_eq!(state.apply(27, add(20, CHECK, key)), Response::VolumeKeysChanged);
    }
    assert!(matches!(refused(state.apply(28, add(20, CHECK, sealed("more", 99)))).1, Refusal::TooManyVolumeKeys(_)));
}

#[test]
fn a_volume_that_is_not_encrypted_gets_no_keys() {
    let mut state = with_encrypted();
    state.apply(21, create("open", 1, &[], 9)).into_result().expect("is created");
    let (_, refusal) = refused(state.apply(22, add(21, CHECK, sealed("new", 2))));
    assert!(matches!(refusal, Refusal::NotEncrypted(_)), "{refusal}");
    assert!(matches!(refused(state.apply(23, remove(21, "new"))).1, Refusal::NotEncrypted(_)));
    assert_eq!(refused(state.apply(24, add(99, CHECK, sealed("new", 2)))).0, ErrorKind::NotFound);
}

#[test]
fn a_clone_is_opened_by_what_opens_its_origin_when_it_is_made() {
    let mut state = with_encrypted();
    let (volume, epoch) = (VolumeId(20), client_lib::Epoch(1));
    let made = Made { lsn: client_lib::Lsn::new(epoch, 3), size: mebibytes(1), at_ms: 7 };
    let commands = [
        Command::CreateSnapshot { volume, name: "s".parse().expect("a name"), nonce: 8 },
        Command::SnapshotMade { volume, snapshot: SnapshotId(21), from: NodeId(1), epoch, made },
        Command::CloneVolume {
            name: "copy".parse().expect("a name"),
            origin: volume,
            snapshot: SnapshotId(21),
            from: NodeId(1),
            epoch,
            nonce: 9,
        },
        Command::CloneMade { volume: VolumeId(23), from: NodeId(1), epoch },
        add(20, CHECK, sealed("new", 2)),
        remove(20, "old"),
    ];
    for (index, command) in (21..).zip(commands) {
        state.apply(index, command).into_result().expect("is applied");
    }
    assert_eq!((openers(&state, 20), openers(&state, 23)), (vec!["new"], vec!["old"]));
    state.apply(30, Command::DeleteVolume { volume }).into_result().expect("is deleted");
    assert_eq!(openers(&state, 23), ["old"]);
}
