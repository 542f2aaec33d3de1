//! The shard as it is used: its own thread, real files, many requests at once.

use std::path::Path;

use bytes::Bytes;
use client_lib::{Epoch, ReadPart, VolumeId, VolumeSize};
use futures_util::future::join_all;

use crate::io::EngineKind;
use crate::log::LogSettings;
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::store::{FORMAT_FILE, MapError, MapStore};
use crate::shard::handle::{Role, StoreError};
use crate::shard::{Shard, ShardOptions, StartError};
use crate::volume::Moment;

const VOLUME: VolumeId = VolumeId(1);

fn options(directory: &Path, engine: EngineKind) -> ShardOptions {
    let log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None };
    ShardOptions { engine, log, ..ShardOptions::new(directory.join("shard-0")) }
}

/// The block map of a shard that had been stopped was as that of a killed one, and the next start carried its write-ahead log out again.
#[tokio::test]
async fn a_shard_that_was_stopped_leaves_the_next_start_nothing_to_do_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let options = options(directory.path(), EngineKind::Std);
    let map = options.directory.join("map");
    let shard = Shard::start(options).await.expect("starts");
    shard.open(VOLUME, VolumeSize::try_from(1 << 20).expect("valid")).await.expect("opens");
    shard.checkpoint().await.expect("is written");
    shard.stop().await.expect("stops");
    let store = MapStore::open_read_only(&map).expect("opens");
    assert!(store.position().expect("reads").is_some());
    assert_eq!(store.unwritten(), 0);
}

async fn write_read_and_come_back(engine: EngineKind) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let size = VolumeSize::try_from(64 << 20).expect("valid");
    for epoch in 1..4u64 {
        let shard = Shard::start(options(directory.path(), engine)).await.expect("starts");
        assert_eq!(shard.open(VOLUME, size).await.expect("opens").role, Role::Replica);
        shard.activate(VOLUME, Epoch(epoch)).await.expect("activates");
        if epoch > 1 {
            let first = ReadPart::joined(shard.read(VOLUME, Moment::Now, 0, 4096).await.expect("reads"));
            assert_eq!(first, [epoch as u8 - 1; 4096][..]);
        }
        let writes = (0..2000u64).map(|number| {
            let data = Bytes::from(vec![(number + epoch) as u8; 4096]);
            shard.write(VOLUME, number * 4096, data, number % 50 == 0)
        });
        for written in join_all(writes).await {
            written.expect("writes");
        }
        shard.write(VOLUME, 0, Bytes::from(vec![epoch as u8; 4096]), false).await.expect("writes");
        let reads = (1..2000u64).map(|number| shard.read(VOLUME, Moment::Now, number * 4096, 4096));
        for (number, read) in (1u64..).zip(join_all(reads).await) {
            assert_eq!(ReadPart::joined(read.expect("reads")), [(number + epoch) as u8; 4096][..]);
        }
        assert_eq!(shard.flush(VOLUME).await.expect("flushes"), shard.report(VOLUME).await.expect("reports").head);
        if epoch == 2 {
            // The last handle goes without a word.
            let stopped = shard.clone();
            drop(shard);
            stopped.stop().await.expect("stops");
            assert_eq!(stopped.list().await, Err(StoreError::Stopped));
        } else {
            shard.stop().await.expect("stops");
        }
    }
}

#[tokio::test]
async fn a_shard_on_io_uring_serves_many_at_once_and_comes_back() {
    let directory = tempfile::tempdir().expect("temporary directory");
    if let Err(error) = crate::io::open_engine(EngineKind::Uring, directory.path(), &std::sync::Arc::default()) {
        eprintln!("skipped: io_uring is not available here: {error}");
        return;
    }
    write_read_and_come_back(EngineKind::Uring).await;
}

#[tokio::test]
async fn a_shard_on_threads_serves_many_at_once_and_comes_back() {
    write_read_and_come_back(EngineKind::Std).await;
}

#[tokio::test]
async fn a_newer_directory_is_refused_with_everything_as_it_was() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let shard = directory.path().join("shard-0");
    std::fs::create_dir(&shard).expect("creates");
    std::fs::write(shard.join(FORMAT_FILE), "heliotrope-shard 99\n").expect("writes");
    let refused = Shard::start(options(directory.path(), EngineKind::Std)).await;
    assert!(matches!(refused, Err(StartError::Map(MapError::NewerFormat { found: 99, .. }))));
    assert_eq!(std::fs::read_dir(&shard).expect("lists").count(), 1);
}
