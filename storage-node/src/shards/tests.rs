//! Volumes on several disks, of which one fails, is full, or cannot be opened.

use bytes::Bytes;
use client_lib::{ReadPart, VolumeSize};

use super::*;
use crate::io::sim::SimDisk;
use crate::log::LogSettings;
use crate::log::segment::{ROOM_KEPT_BYTES, SEGMENT_BYTES_MIN};
use crate::map::store::{Faults, MapStore};
use crate::shard::handle::FreezeWhen;
use crate::volume::Moment;

#[test]
fn volumes_go_where_most_space_is_free_for_each() {
    for (stores, expected) in [
        (&[Some((100, 0)), Some((100, 0))][..], 0),
        (&[Some((100, 1)), Some((100, 0))], 1),
        (&[Some((1000, 1)), Some((100, 0))], 0),
        (&[Some((0, 0)), Some((1, 9))], 0),
        (&[Some((0, 0)), Some((100, 9))], 1),
        (&[None, Some((0, 9))], 1),
        (&[None, None], 0),
    ] {
        assert_eq!(choose(stores.iter().copied().enumerate()), Some(expected), "{stores:?}");
    }
}

/// A node with two disks, simulated; their directories are only looked at for the space that is free.
async fn two_disks(root: &Path) -> (Shards, [SimDisk; 2]) {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let maps = [MapStore::in_memory(), MapStore::in_memory()];
    (shards_on(root, &disks, &maps).await, disks)
}

async fn shards_on(root: &Path, disks: &[SimDisk; 2], maps: &[MapStore; 2]) -> Shards {
    let mut stores = Vec::new();
    for (disk, map) in disks.iter().zip(maps) {
        let log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None };
        let options = ShardOptions { log, scrub_period: None, ..ShardOptions::new(root.to_owned()) };
        let handle = Shard::start_on(options, disk.clone(), map.clone()).await.expect("starts");
        stores.push((root.to_owned(), handle));
    }
    let shards = Shards::of_open(stores).await.expect("both tell");
    // Less than the disk has: what others write there meanwhile shall not decide where volumes go.
    Shards { capacity_bytes: Some(1 << 30), ..shards }
}

async fn read(shards: &Shards, volume: VolumeId, block: u64) -> Result<u8, StoreError> {
    let chunks = shards.of(volume).expect("is open").read(volume, Moment::Now, block * 4096, 4096).await?;
    match chunks.as_slice() {
        [ReadPart::Data(data)] => Ok(data[0]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failed_disk_stops_its_own_volumes_and_gets_no_new_ones() {
    let root = tempfile::tempdir().expect("a directory");
    for is_sync in [false, true] {
        let (shards, disks) = two_disks(root.path()).await;
        let volumes = [1, 2, 3, 4].map(VolumeId);
        for volume in volumes {
            write(&shards, volume, volume.0 as u8).await;
        }
        let at = |volume: VolumeId| shards.placed.lock().expect("no thread panics").at[&volume];
        assert_eq!(volumes.map(at), [0, 1, 0, 1]);
        let failing = shards.of(VolumeId(1)).expect("is open");
        let data = Bytes::from(vec![9; 4096]);
        if is_sync {
            failing.write(VolumeId(1), 4096, data.clone(), false).await.expect("is acked");
            disks[0].fail_after(0);
            let refused = failing.flush(VolumeId(1)).await;
            assert!(matches!(refused, Err(StoreError::Poisoned(_))), "{refused:?}");
        } else {
            disks[0].fail_after(0);
            let refused = failing.write(VolumeId(1), 4096, data.clone(), false).await;
            assert!(matches!(refused, Err(StoreError::Poisoned(_))), "{refused:?}");
        }
        assert!(failing.fault().is_some_and(|fault| fault.contains("injected")), "{:?}", failing.fault());
        for volume in volumes {
            let shard = shards.of(volume).expect("is open");
            let written = shard.write(volume, 8192, data.clone(), true).await;
            assert_eq!(written.is_ok(), at(volume) == 1, "{volume}: {written:?}");
            assert_eq!(shard.flush(volume).await.is_ok(), at(volume) == 1, "{volume}");
            assert_eq!(read(&shards, volume, 0).await.expect("is read"), volume.0 as u8, "reads go on");
            let report = shard.report(volume).await.expect("tells");
            assert_eq!(report.fault.is_some(), at(volume) == 0, "{volume}");
        }
        // More than its share, for want of another.
        for volume in [5, 6, 7].map(VolumeId) {
            write(&shards, volume, volume.0 as u8).await;
            assert_eq!(at(volume), 1);
        }
        let usage = shards.usage().await.expect("tells");
        assert_eq!(usage[0].available_bytes(), 0);
        assert_eq!(usage.iter().map(|store| store.shard.fault.is_some()).collect::<Vec<_>>(), [true, false]);
        shards.stop().await;
    }
}

#[tokio::test]
async fn a_map_that_cannot_be_read_stops_its_own_volumes_and_says_so() {
    let root = tempfile::tempdir().expect("a directory");
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let maps = [MapStore::in_memory(), MapStore::in_memory()];
    let shards = shards_on(root.path(), &disks, &maps).await;
    let volumes = [1, 2].map(VolumeId);
    for volume in volumes {
        write(&shards, volume, volume.0 as u8).await;
    }
    shards.stop().await;
    let shards = shards_on(root.path(), &disks, &maps).await;
    maps[0].inject(Faults { page: Some(0), commits: None });
    for volume in volumes {
        shards.of(volume).expect("is open").activate(volume, Epoch(2)).await.expect("activates");
    }
    let refused = read(&shards, volumes[0], 0).await;
    assert!(matches!(refused, Err(StoreError::Io(_))), "{refused:?}");
    let data = Bytes::from(vec![9; 4096]);
    for (volume, fails) in [(volumes[0], true), (volumes[1], false)] {
        let shard = shards.of(volume).expect("is open");
        let report = shard.report(volume).await.expect("tells");
        assert_eq!(report.fault.is_some_and(|fault| fault.contains("block map")), fails, "{volume}");
        let written = shard.write(volume, 4096, data.clone(), true).await;
        assert_eq!(written.is_err(), fails, "{volume}: {written:?}");
    }
    assert_eq!(read(&shards, volumes[1], 0).await.expect("is read"), 2);
    let usage = shards.usage().await.expect("tells");
    assert_eq!(usage.iter().map(|store| store.shard.fault.is_some()).collect::<Vec<_>>(), [true, false]);
    for volume in [3, 4].map(VolumeId) {
        write(&shards, volume, volume.0 as u8).await;
        assert_eq!(shards.placed.lock().expect("no thread panics").at[&volume], 1, "new volumes go elsewhere");
    }
    shards.stop().await;
}

#[tokio::test]
async fn one_full_disk_refuses_writes_and_nothing_else_and_goes_on_when_space_is_back() {
    let root = tempfile::tempdir().expect("a directory");
    let (shards, disks) = two_disks(root.path()).await;
    let (full, other, victim) = (VolumeId(1), VolumeId(2), VolumeId(3));
    for volume in [full, other, victim] {
        write(&shards, volume, volume.0 as u8).await;
    }
    // The least that a node can be given is eight.
    disks[0].set_capacity(ROOM_KEPT_BYTES + 10 * SEGMENT_BYTES_MIN);
    let shard = shards.of(full).expect("is open");
    let size = VolumeSize::try_from(256 << 20).expect("valid");
    shard.resize(full, size, Some(Epoch(1))).await.expect("grows");
    /// So large that an eighth of each segment stays empty: the cleaner once squeezed those again and again, and its
    /// moves took the room that a handover needs.
    const CHUNK: u64 = 1 << 20;
    let data = Bytes::from(vec![5; CHUNK as usize]);
    let mut written = 0;
    let refused = loop {
        match shard.write(full, written * CHUNK, data.clone(), false).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written * CHUNK < 80 << 20, "more than fits is not there");
    };
    assert_eq!(refused, StoreError::OutOfSpace);
    assert!(written * CHUNK > 8 << 20, "only {written} times {CHUNK} bytes fit");

    // The other disk notices nothing, and what takes no space works on the full one.
    shards.of(other).expect("is open").write(other, 0, data.slice(..4096), true).await.expect("is written");
    assert_eq!(read(&shards, full, 0).await.expect("is read"), 5);
    shard.flush(full).await.expect("what was acked can be made durable");
    shard.freeze(full, FreezeWhen::Always).await.expect("a handover can begin");
    shard.deactivate(full, Epoch(2)).await.expect("and end");
    shard.activate(full, Epoch(3)).await.expect("and come back");
    shard.delete(victim).await.expect("a volume can be deleted");
    assert_eq!(shard.fault(), None, "full is not failed");
    let is_full = async || shard.report(full).await.expect("tells").is_full;
    assert!(is_full().await, "and is told of");

    // Space is back: nobody restarts anything.
    disks[0].set_capacity(u64::MAX);
    let mut tries = 0;
    while shard.write(full, 200 << 20, data.clone(), true).await == Err(StoreError::OutOfSpace) {
        tries += 1;
        assert!(tries < 1000, "it does not go on");
    }
    assert!(!is_full().await);
    disks[0].set_capacity(0);
    let refused = loop {
        match shard.write(full, written * CHUNK, data.clone(), false).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, StoreError::OutOfSpace, "full again");
    shard.zero(full, 0, 32 << 20, true).await.expect("TRIM works on a full disk");
    let mut tries = 0;
    while shard.write(full, 0, data.clone(), true).await == Err(StoreError::OutOfSpace) {
        tries += 1;
        assert!(tries < 1000, "what was trimmed does not come back");
    }
    assert_eq!(read(&shards, full, 200 << 8).await.expect("is read"), 5);
    shards.stop().await;
}

/// As the node does: with a record in its data directory.
async fn start_in(data: &Path, directories: &[PathBuf]) -> Result<Shards, ShardsError> {
    let settings = StoreSettings { segment_bytes: 8 << 20, ..StoreSettings::default() };
    let places = directories.iter().cloned().map(StorePlace::alone).collect();
    Shards::start(&settings, places, Some(Placements::of(data)), &Arc::new(LeaseCell::forever())).await
}

async fn start(directories: &[PathBuf]) -> Result<Shards, ShardsError> {
    start_in(directories[0].parent().expect("lies in one"), directories).await
}

async fn write(shards: &Shards, volume: VolumeId, fill: u8) {
    let shard = shards.of(volume).expect("is open");
    shard.open(volume, VolumeSize::try_from(1 << 20).expect("valid")).await.expect("opens");
    shard.activate(volume, Epoch(1)).await.expect("activates");
    shard.write(volume, 0, Bytes::from(vec![fill; 4096]), true).await.expect("writes");
}

#[tokio::test]
async fn volumes_are_spread_and_found_where_they_are_stored_after_a_restart() {
    let root = tempfile::tempdir().expect("a directory");
    let mut directories = [root.path().join("x"), root.path().join("y")];
    let shards = start(&directories).await.expect("starts");
    for volume in 1..=4 {
        write(&shards, VolumeId(volume), volume as u8).await;
    }
    let mut held = Vec::new();
    for shard in shards.all() {
        held.push(shard.list().await.expect("lists"));
    }
    assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2], "two on each: {held:?}");
    shards.stop().await;
    directories.reverse();
    held.reverse();
    let shards = start(&directories).await.expect("starts");
    for (shard, held) in shards.all().zip(&held) {
        assert_eq!(shard.list().await.expect("lists"), *held);
    }
    for volume in 1..=4 {
        let id = VolumeId(volume);
        let shard = shards.of(id).expect("is open");
        shard.activate(id, Epoch(2)).await.expect("is there");
        let chunks = shard.read(id, Moment::Now, 0, 4096).await.expect("reads");
        assert_eq!(chunks, [ReadPart::Data(Bytes::from(vec![volume as u8; 4096]))]);
    }
    shards.stop().await;
}

#[tokio::test]
async fn a_volume_in_two_stores_and_a_store_of_another_format_are_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let directories = [root.path().join("x"), root.path().join("y")];
    for directory in &directories {
        let shards = start(std::slice::from_ref(directory)).await.expect("starts");
        write(&shards, VolumeId(1), 1).await;
        shards.stop().await;
    }
    let error = start(&directories).await.err().expect("one volume in two");
    assert!(matches!(&error, ShardsError::Twice { volume: VolumeId(1), .. }), "{error}");
    std::fs::write(directories[1].join("FORMAT"), "heliotrope-shard 99\n").expect("is written");
    let error = start(&directories).await.err().expect("one is newer");
    assert!(matches!(&error, ShardsError::Start { directory, .. } if *directory == directories[1]), "{error}");
}

/// A node with two disks, of which the second holds volumes 2 and 4, and cannot be opened any more: its map is not one.
struct HalfLost {
    root: tempfile::TempDir,
    directories: [PathBuf; 2],
}

impl HalfLost {
    async fn new() -> HalfLost {
        let root = tempfile::tempdir().expect("a directory");
        let directories = [root.path().join("x"), root.path().join("y")];
        let shards = start_in(root.path(), &directories).await.expect("starts");
        for volume in 1..=4 {
            write(&shards, VolumeId(volume), volume as u8).await;
        }
        shards.stop().await;
        let lost = HalfLost { root, directories };
        lost.rename("CURRENT", "KEPT");
        lost
    }

    /// A file of the second store's map.
    fn rename(&self, from: &str, to: &str) {
        let map = self.directories[1].join("map");
        std::fs::rename(map.join(from), map.join(to)).expect("is renamed");
        // What RocksDB made in its place, if it did.
        if from == "CURRENT" {
            std::fs::write(map.join(from), "?").expect("is written");
        }
    }

    async fn start(&self) -> Result<Shards, ShardsError> {
        start_in(self.root.path(), &self.directories).await
    }
}

/// One store that could not be opened kept the whole node from starting, with the volumes of all its other disks.
#[tokio::test]
async fn a_store_that_cannot_be_opened_keeps_its_own_volumes_from_being_served_and_no_others() {
    let node = HalfLost::new().await;
    // Also when it is started so again: the record is written anew each time.
    for _ in 0..2 {
        let shards = node.start().await.expect("starts without it");
        for volume in [1, 3].map(VolumeId) {
            shards.of(volume).expect("is open").activate(volume, Epoch(2)).await.expect("activates");
            assert_eq!(read(&shards, volume, 0).await.expect("is read"), volume.0 as u8);
        }
        for volume in [2, 4].map(VolumeId) {
            let refused = shards.of(volume).err().expect("never taken for a new one");
            assert!(
                matches!(&refused, StoreError::Unopened { directory, .. } if directory.ends_with("/y")),
                "{refused}"
            );
            let clone = shards.beside(VolumeId(volume.0 + 10), volume).expect("has none to lie beside");
            clone.list().await.expect("is open");
        }
        write(&shards, VolumeId(5), 5).await;
        assert_eq!(shards.directory_of(VolumeId(5)), Some(node.directories[0].as_path()));
        assert_eq!(shards.all().count(), 1);
        let usage = shards.usage().await.expect("tells");
        let faults: Vec<bool> = usage.iter().map(|store| store.shard.fault.is_some()).collect();
        assert_eq!((faults, usage[1].available_bytes()), (vec![false, true], 0));
        let figures = shards.figures(Duration::from_secs(60)).await;
        assert!(figures[1].is_faulted && figures[1].shard.is_none() && figures[0].shard.is_some());
        shards.stop().await;
    }
    node.rename("KEPT", "CURRENT");
    let shards = node.start().await.expect("starts with both");
    for (volume, in_store) in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 0)] {
        let id = VolumeId(volume);
        assert_eq!(shards.directory_of(id), Some(node.directories[in_store].as_path()), "{id}");
        shards.of(id).expect("is open").activate(id, Epoch(3)).await.expect("activates");
        assert_eq!(read(&shards, id, 0).await.expect("is read"), volume as u8);
    }
    shards.stop().await;
}

#[tokio::test]
async fn without_a_record_that_can_be_trusted_nothing_starts_without_a_store() {
    let node = HalfLost::new().await;
    let record = node.root.path().join("placements");
    let text = std::fs::read_to_string(&record).expect("there is one");
    std::fs::write(&record, text.replace('2', "7")).expect("is altered");
    let error = node.start().await.err().expect("a damaged record");
    assert!(matches!(&error, ShardsError::Unrecorded { source: Some(_), .. }), "{error}");
    std::fs::remove_file(&record).expect("is removed");
    let error = node.start().await.err().expect("no record");
    assert!(matches!(&error, ShardsError::Unrecorded { source: None, .. }), "{error}");
    assert!(error.to_string().contains("docs/disks.md"), "{error}");
    // With both stores there is one again.
    node.rename("KEPT", "CURRENT");
    node.start().await.expect("starts").stop().await;
    assert!(record.exists());
    let error = start_in(node.root.path(), &[node.directories[0].join("FORMAT")]).await.err().expect("no store at all");
    assert!(matches!(error, ShardsError::Start { .. }), "{error}");
}
