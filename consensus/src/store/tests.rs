//! openraft's own suite on our stores, and what it does not test: durability across a reopening.

use std::collections::BTreeSet;

use client_lib::cipher::{CipherName, SealedKey, VolumeKeys};
use client_lib::policy::{Class, Durability};
use client_lib::{Epoch, GroupId, Lsn, NodeId, VolumeId, VolumeSize};
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::vote::RaftLeaderId;

use serde::ser::{Serialize, SerializeTuple, Serializer};

use super::database::{Database, FORMAT, META, MetaPlace, RAFT};
use super::log_store::LogStore;
use super::memory::MetaDisk;
use super::state_machine::{State7, State8, State9, StateMachine, decode_state, encode_state, open, peek};
use super::types::{Entry, LogId, MetaTypes, SnapshotMeta, StoredMembership, Vote};
use crate::command::{Command, Ended};
use crate::golden;
use crate::state::tests::with_volumes;
use crate::state::{MetaState, Volume};

struct Builder;

impl StoreBuilder<MetaTypes, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<MetaTypes>> {
        let directory = tempfile::tempdir().expect("a directory");
        let (log, machine) =
            open(&directory.path().to_owned().into(), GroupId::META).expect("opens").storages().await.expect("reads");
        Ok((directory, log, machine))
    }
}

#[tokio::test]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.expect("conforms");
}

/// The whole state was written with every change, and copied for those who follow it: with 10,000 volumes two megabytes for a renewed lease.
#[tokio::test(start_paused = true)]
async fn a_change_costs_the_same_however_many_volumes_there_are() {
    let mut costs = Vec::new();
    for volumes in [10, 10_000] {
        let disk = MetaDisk::default();
        let stores = open(&MetaPlace::Simulated(disk.clone()), GroupId::META).expect("opens");
        let (_, mut machine) = stores.storages().await.expect("reads");
        let meta = SnapshotMeta { last_log_id: Some(log_id(7, 50_000)), last_membership: StoredMembership::default() };
        let snapshot = encode_state(&with_volumes(volumes)).expect("plain data");
        machine.install_snapshot(&meta, snapshot).await.expect("is taken");
        let volume = VolumeId(15);
        let ended = Ended { volume, epoch: Epoch(1), final_lsn: Lsn::new(Epoch(1), 5), manifest_digest: 7 };
        let commands = [
            Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 5_000 },
            Command::SetDurability { volume, durability: Durability { class: Class::Geo(1), ..Durability::default() } },
            Command::HandOver {
                group: None,
                from: NodeId(1),
                incarnation: 1,
                to: NodeId(2),
                members: vec![ended],
                enclosed: [(volume, vec![1; 100])].into(),
            },
            Command::EnclosureTaken { volume, epoch: Epoch(2) },
            Command::DeleteVolume { volume },
        ];
        for (index, command) in (50_001..).zip(commands) {
            let before = stores.published().borrow().state.clone();
            let entry = Entry::new_normal(log_id(7, index), command.clone());
            machine.apply(futures_util::stream::iter([Ok((entry, None))])).await.expect("is applied");
            let after = stores.published().borrow().state.clone();
            assert_ne!(before, after, "{command:?} is no refusal");
            let is_shared = |volume: &&Volume| before.volume(volume.id).is_some_and(|it| std::ptr::eq(it, *volume));
            let copied = after.volumes().count() - after.volumes().filter(is_shared).count();
            costs.push((disk.take_unsynced_bytes(), copied));
            if let Command::RenewLease { .. } = command {
                assert_eq!(copied, 0);
            }
        }
    }
    let (few, many) = costs.split_at(costs.len() / 2);
    assert_eq!(few, many);
    assert!(many.iter().all(|(bytes, copied)| *bytes < 600 && *copied <= 1), "{many:?}");
}

struct SimulatedBuilder;

impl StoreBuilder<MetaTypes, LogStore, StateMachine, ()> for SimulatedBuilder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<MetaTypes>> {
        let place = MetaPlace::Simulated(MetaDisk::default());
        let (log, machine) = open(&place, GroupId::META).expect("opens").storages().await.expect("reads");
        Ok(((), log, machine))
    }
}

#[tokio::test(start_paused = true)]
async fn openrafts_storage_suite_passes_on_a_simulated_disk() {
    Suite::test_all(SimulatedBuilder).await.expect("conforms");
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_takes_the_newest_of_what_was_not_synced() {
    let mut lost = std::collections::BTreeSet::new();
    for seed in 0..40 {
        client_lib::random::seed_thread(Some(seed));
        let disk = MetaDisk::default();
        let place = MetaPlace::Simulated(disk.clone());
        let (mut log, _machine) = open(&place, GroupId::META).expect("opens").storages().await.expect("reads");
        log.save_vote(&Vote::new(7, 1)).await.expect("is saved and synced");
        for index in 1..=4 {
            let entry = Entry::new_normal(log_id(7, index), Command::NodeStarted { node: NodeId(3) });
            log.append([entry], IOFlushed::noop()).await.expect("is appended");
        }
        assert_eq!(disk.unsynced(), 4);
        disk.crash();
        let (mut log, _machine) = open(&place, GroupId::META).expect("opens").storages().await.expect("reads");
        assert_eq!(log.read_vote().await.expect("reads"), Some(Vote::new(7, 1)));
        let entries = log.try_get_log_entries(0..10).await.expect("reads");
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id().index).collect();
        assert_eq!(indexes, (1..=indexes.len() as u64).collect::<Vec<_>>(), "no gap");
        lost.insert(4 - indexes.len());
    }
    client_lib::random::seed_thread(None);
    assert_eq!(lost, (0..=4).collect(), "sometimes everything, sometimes nothing");
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::vote::leader_id_adv::CommittedLeaderId::new(term, 1), index)
}

#[tokio::test]
async fn votes_and_entries_are_there_after_the_process_died() {
    let directory = tempfile::tempdir().expect("a directory");
    let vote = Vote::new(7, 1);
    {
        let (mut log, _machine) =
            open(&directory.path().to_owned().into(), GroupId::META).expect("opens").storages().await.expect("reads");
        log.save_vote(&vote).await.expect("is saved");
        let entry = Entry::new_normal(log_id(7, 1), Command::NodeStarted { node: NodeId(3) });
        log.append([entry], IOFlushed::noop()).await.expect("is appended");
        log.save_committed(Some(log_id(7, 1))).await.expect("is saved");
        // Dropped without a shutdown.
    }
    let (mut log, _machine) =
        open(&directory.path().to_owned().into(), GroupId::META).expect("opens").storages().await.expect("reads");
    assert_eq!(log.read_vote().await.expect("reads"), Some(vote));
    let entries = log.try_get_log_entries(0..10).await.expect("reads");
    assert_eq!(entries.iter().map(|entry| entry.log_id().index).collect::<Vec<_>>(), [1]);
    assert_eq!(log.read_committed().await.expect("reads"), Some(log_id(7, 1)));
}

#[tokio::test]
async fn groups_do_not_see_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let (mut log, _machine) =
            open(&directory.path().to_owned().into(), GroupId(1)).expect("opens").storages().await.expect("reads");
        log.save_vote(&Vote::new(7, 1)).await.expect("is saved");
    }
    let (mut log, _machine) =
        open(&directory.path().to_owned().into(), GroupId(2)).expect("opens").storages().await.expect("reads");
    assert_eq!(log.read_vote().await.expect("reads"), None);
    assert_eq!(log.get_log_state().await.expect("reads").last_log_id, None);
}

/// Bytes that are stored as they are.
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

#[tokio::test]
async fn a_store_of_a_format_before_is_taken_over_once() {
    taken_over(9, "meta-state-10.hex").await;
    taken_over(8, "meta-state-8.hex").await;
    taken_over(7, "meta-state-7.hex").await;
    taken_over(6, "meta-state-6.hex").await;
    taken_over(5, "meta-state-5.hex").await;
    taken_over(4, "meta-state-4.hex").await;
}

/// While a cluster is upgraded, snapshots go from the new program to the old one and back; but what the old one would drop it must not
/// be able to read.
#[tokio::test]
async fn snapshots_go_between_this_version_and_the_one_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_, mut machine) =
        open(&directory.path().to_owned().into(), GroupId::META).expect("opens").storages().await.expect("reads");
    let old = golden::read("meta-state-7.hex");
    let meta = SnapshotMeta { last_log_id: Some(log_id(7, 30)), last_membership: StoredMembership::default() };
    machine.install_snapshot(&meta, old.clone()).await.expect("is read");
    let sent = machine.get_snapshot_builder().await.build_snapshot().await.expect("is built").snapshot;
    assert!(sent.starts_with(&old), "an older program reads the beginning, and the rest is empty");

    let mut state: MetaState = postcard::from_bytes(&sent).expect("is of the present form");
    state
        .apply(31, Command::RevokeCertificate { fingerprint: [3; 32].into(), at_ms: 7 })
        .into_result()
        .expect("is applied");
    let bytes = encode_state(&state).expect("plain data");
    assert!(postcard::from_bytes::<State7>(&bytes).is_err(), "an older program refuses all of it");
    machine.install_snapshot(&meta, bytes.clone()).await.expect("is read");
    let kept = machine.get_snapshot_builder().await.build_snapshot().await.expect("is built").snapshot;
    assert_eq!(decode_state(&kept).expect("reads back"), state);

    // As the version before reads and writes it: behind its mark, and nothing more.
    let read_by_8 = |bytes: &[u8]| postcard::from_bytes::<State8>(bytes.strip_prefix(&[0xff; 10]).unwrap_or(bytes));
    assert_eq!(MetaState::from(read_by_8(&bytes).expect("that knows of revoked certificates")), state);
    let written_by_8 = [vec![0xff; 10], golden::read("meta-state-8.hex")].concat();
    let mut state = decode_state(&written_by_8).expect("is read");
    assert_eq!(state.access().removed_nodes().count(), 1);
    let allow = vec!["disk:ro".parse().expect("a rule")];
    let client = "host".parse().expect("a name");
    let limit = Command::ChangeRights { client, role: None, allow, deny: Vec::new() };
    state.apply(32, limit).into_result().expect("is applied");
    let bytes = encode_state(&state).expect("plain data");
    assert!(read_by_8(&bytes).is_err(), "it would let the client write");
    assert!(postcard::from_bytes::<State7>(&bytes).is_err());
    assert_eq!(decode_state(&bytes).expect("reads back"), state);

    let mut state = decode_state(&written_by_8).expect("is read");
    let eu = BTreeSet::from(["eu".parse().expect("a label")]);
    state.apply(32, Command::LabelNode { node: NodeId(1), labels: eu }).into_result().expect("is applied");
    assert!(read_by_8(&encode_state(&state).expect("plain data")).is_err(), "of places that version knows nothing");

    let mut state = decode_state(&written_by_8).expect("is read");
    let key = SealedKey { name: "k".parse().expect("a name"), fingerprint: [1; 16].into(), sealed: [2; 92].into() };
    let create = Command::CreateEncryptedVolume {
        name: "secret".parse().expect("a name"),
        size: VolumeSize::try_from(1 << 20).expect("a size"),
        owner: NodeId(1),
        replicas: BTreeSet::new(),
        durability: Durability::default(),
        keys: VolumeKeys { cipher: CipherName::Aes256Xts, check: [3; 16].into(), sealed: vec![key] },
        nonce: 5,
    };
    state.apply(40, create).into_result().expect("is applied");
    assert!(read_by_8(&encode_state(&state).expect("plain data")).is_err(), "of keys that version knows nothing");
}

/// A program of format 10 would drop it, and with that refuse a takeover that others carry out.
#[tokio::test]
async fn what_says_who_has_stepped_down_goes_to_no_older_program() {
    let mut state = decode_state(&golden::read("meta-state-10.hex")).expect("the form of format 10 is read");
    assert!(!encode_state(&state).expect("plain data").starts_with(&[0xff; 30]));
    let old = encode_state(&state).expect("plain data");
    assert!(postcard::from_bytes::<State9>(&old[20..]).is_ok(), "that program reads the beginning");
    let volumes = vec![(VolumeId(10), Epoch(3))];
    state.apply(40, Command::StepDown { node: NodeId(1), incarnation: 1, volumes }).into_result().expect("is applied");
    assert!(state.has_stepped_down(VolumeId(10)));
    let bytes = encode_state(&state).expect("plain data");
    assert!(postcard::from_bytes::<State9>(&bytes[20..]).is_err(), "that program refuses all of it");
    assert_eq!(decode_state(&bytes).expect("reads back"), state);
}

/// Its records are those of today, but for those of a kind that it did not have.
#[tokio::test]
async fn a_store_of_format_10_is_read_as_it_is_and_marked() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = MetaPlace::from(directory.path().to_owned());
    let meta = SnapshotMeta { last_log_id: Some(log_id(7, 30)), last_membership: StoredMembership::default() };
    let snapshot = golden::read("meta-state-10.hex");
    {
        let (_, mut machine) = open(&place, GroupId::META).expect("opens").storages().await.expect("reads");
        machine.install_snapshot(&meta, snapshot.clone()).await.expect("is read");
    }
    Database::open(&place, GroupId::META).expect("opens").put(RAFT, b"format", &10u64).expect("is written");
    let expected = decode_state(&snapshot).expect("reads");
    assert_eq!(peek(directory.path(), GroupId::META).expect("reads"), Some(expected.clone()));
    {
        let (_, mut machine) = open(&place, GroupId::META).expect("opens").storages().await.expect("reads");
        let kept = machine.get_current_snapshot().await.expect("reads").expect("is there").snapshot;
        assert_eq!(kept, snapshot, "in the form in which it came");
    }
    let database = Database::open(&place, GroupId::META).expect("opens");
    assert_eq!(database.get::<u64>(RAFT, b"format").expect("reads"), Some(FORMAT));
    drop(database);
    assert_eq!(peek(directory.path(), GroupId::META).expect("reads"), Some(expected));
}

/// A node of the version before keeps a snapshot as it was sent, with its mark, or in the form of the version before that.
#[tokio::test]
async fn a_store_with_a_snapshot_of_another_form_is_taken_over() {
    let marked = [vec![0xff; 10], golden::read("meta-state-8.hex")].concat();
    for snapshot in [marked, golden::read("meta-state-7.hex")] {
        let directory = tempfile::tempdir().expect("a directory");
        {
            let database = Database::open(&directory.path().to_owned().into(), GroupId::META).expect("opens");
            let place = (None::<LogId>, StoredMembership::default());
            let mut batch = database.batch();
            batch.put(RAFT, b"format", &8u64).expect("encodes");
            batch.put(META, b"snapshot", &(place.0, place.1, snapshot)).expect("encodes");
            batch.write().expect("is written");
        }
        let stores = open(&directory.path().to_owned().into(), GroupId::META).expect("is taken over");
        let (_, mut machine) = stores.storages().await.expect("reads");
        let kept = machine.get_current_snapshot().await.expect("reads").expect("is there").snapshot;
        assert!(decode_state(&kept).expect("is of the present form").volumes().count() >= 2);
    }
}

/// Takes over what that format had, as far as format 7 with the snapshots of a cluster in which nobody was removed, and later ones with
/// marked snapshots.
async fn taken_over(format: u64, golden_file: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let state = golden::read(golden_file);
    {
        let database = Database::open(&directory.path().to_owned().into(), GroupId::META).expect("opens");
        let place = (None::<LogId>, StoredMembership::default());
        let applied = [postcard::to_stdvec(&place).expect("plain data"), state.clone()].concat();
        let mut batch = database.batch();
        batch.put(RAFT, b"format", &format).expect("encodes");
        batch.put(META, b"applied", &Raw(applied)).expect("encodes");
        let mark: &[u8] = if format > 7 { &[0xff; 10] } else { &[] };
        let snapshot = [mark, &state].concat();
        batch.put(META, b"snapshot", &(place.0, place.1, snapshot)).expect("encodes");
        batch.write().expect("is written");
    }
    let volumes = |state: &MetaState| state.volumes().map(|volume| volume.name.to_string()).collect::<Vec<_>>();
    for _ in 0..2 {
        let seen = peek(directory.path(), GroupId::META).expect("reads").expect("is there");
        assert_eq!(volumes(&seen)[..2], ["v", "w"]);
    }
    for _ in 0..2 {
        let (_, mut machine) =
            open(&directory.path().to_owned().into(), GroupId::META).expect("opens").storages().await.expect("reads");
        let snapshot = machine.get_current_snapshot().await.expect("reads").expect("is there");
        let seen = decode_state(&snapshot.snapshot).expect("is of the present form");
        assert_eq!(volumes(&seen)[..2], ["v", "w"]);
        drop(machine);
        assert_eq!(peek(directory.path(), GroupId::META).expect("reads"), Some(seen));
    }
    {
        let database = Database::open(&directory.path().to_owned().into(), GroupId::META).expect("opens");
        database.put(RAFT, b"format", &(FORMAT + 1)).expect("is written");
    }
    let refused = open(&directory.path().to_owned().into(), GroupId::META).err().expect("is newer").to_string();
    assert!(refused.contains("use the newer program"), "{refused}");
}

/// The timings of consensus change by another core on the same stores. The one before says that it has stopped while its state machine still has
/// entries to apply: the next one read the position from before such an entry and the records from after it, and applied the entry once more. That
/// node had another state than all others from then on.
#[tokio::test(start_paused = true)]
async fn stores_go_to_the_next_core_when_the_one_before_applies_no_more() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(3600);
    let stores = open(&MetaPlace::Simulated(MetaDisk::default()), GroupId::META).expect("opens");
    let (log, mut machine) = stores.storages().await.expect("reads");
    let next = stores.storages();
    tokio::pin!(next);
    assert!(tokio::time::timeout(LONG, &mut next).await.is_err(), "the first one has them");
    drop(log);
    let entry = Entry::new_normal(log_id(7, 1), Command::NodeStarted { node: NodeId(3) });
    machine.apply(futures_util::stream::iter([Ok((entry, None))])).await.expect("is applied");
    let builder = machine.get_snapshot_builder().await;
    drop(machine);
    assert!(tokio::time::timeout(LONG, &mut next).await.is_err(), "a snapshot is still being built");
    drop(builder);
    let (_, mut machine) = next.await.expect("reads");
    let (applied, _) = machine.applied_state().await.expect("reads");
    assert_eq!(applied, Some(log_id(7, 1)));
}

/// A state above the limit of snapshots was an error to who built one, and with that the end of consensus at every node at the same entry; after a start
/// the next snapshot was due at once, so that nobody could delete anything.
#[tokio::test(start_paused = true)]
async fn of_a_state_too_large_for_a_snapshot_none_is_taken_and_everything_goes_on() {
    let stores = open(&MetaPlace::Simulated(MetaDisk::default()), GroupId::META).expect("opens");
    let (_log, mut machine) = stores.storages().await.expect("reads");
    let meta = SnapshotMeta { last_log_id: Some(log_id(7, 50)), last_membership: StoredMembership::default() };
    let encoded = encode_state(&with_volumes(100)).expect("plain data");
    machine.install_snapshot(&meta, encoded.clone()).await.expect("is taken");
    machine.limit_snapshots(encoded.len() - 1);
    assert!(machine.try_create_snapshot_builder(false).await.is_none());
    let mut forced = machine.try_create_snapshot_builder(true).await.expect("there is no choice");
    assert_eq!(forced.build_snapshot().await.expect("is no error").snapshot, encoded);
    let entry = Entry::new_normal(log_id(7, 51), Command::DeleteVolume { volume: VolumeId(15) });
    machine.apply(futures_util::stream::iter([Ok((entry, None))])).await.expect("is applied");
    let mut builder = machine.try_create_snapshot_builder(false).await.expect("it has become small enough");
    assert!(builder.build_snapshot().await.expect("is built").snapshot.len() < encoded.len());
}
