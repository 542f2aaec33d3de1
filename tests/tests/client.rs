//! The examples of the client library, run against nodes that are processes, which end now and then.

use std::time::Duration;

use client_lib::ErrorKind;
use client_lib::client::{Cluster, OpenOptions, blocking};
use tests::nodes::Nodes;
use tests::workload::{check, fill};

#[allow(dead_code, reason = "its main function is not needed here")]
#[path = "../../client-lib/examples/append_log.rs"]
mod append_log;
#[allow(dead_code, reason = "its main function is not needed here")]
#[path = "../../client-lib/examples/copy_volume.rs"]
mod copy_volume;

const BLOCK: u64 = 4096;
const SEED: u64 = 43;

#[test]
fn a_log_goes_on_over_the_death_of_its_node() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "notes", "--size", "1M", "--owner", "a"]).expect("is created");
    let credentials = nodes.credentials("program").expect("are issued");
    let cluster = blocking::Cluster::from_credentials(&credentials).expect("is one");
    let notes = cluster.open("notes", OpenOptions::default()).expect("opens");
    for line in ["one", "two"] {
        append_log::append(&notes, line).expect("is written");
        nodes.kill("a").expect("it runs");
        nodes.start_node("a").expect("starts");
    }
    append_log::append(&notes, "three").expect("is written");
    assert_eq!(append_log::lines(&notes).expect("are read"), ["one", "two", "three"]);
    notes.close().expect("is flushed");
    let again = cluster.open("notes", OpenOptions { is_read_only: true, ..OpenOptions::default() }).expect("opens");
    assert_eq!(append_log::lines(&again).expect("are read").len(), 3);
    let refused = again.write(0, vec![1; 512].into(), false).expect_err("it was opened for reading");
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_copied_without_what_it_does_not_hold() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let credentials = nodes.credentials("program").expect("are issued");
    let cluster = Cluster::from_credentials(&credentials).expect("is one");
    let disk = cluster.open("disk", OpenOptions::default()).await.expect("opens");
    let blocks = [0, 1, 77, 16 * 1024 - 1];
    for block in blocks {
        disk.write(block * BLOCK, fill(SEED, block, 1).into()).await.expect("is written");
    }
    let parts: Vec<bytes::Bytes> = (200..210).map(|block| fill(SEED, block, 1).into()).collect();
    disk.write_vectored(200 * BLOCK, &parts).await.expect("is written");
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    disk.write(0, fill(SEED, 0, 2).into()).await.expect("is written");
    let image = nodes.path().join("monday.raw");
    let copied = copy_volume::copy(&cluster, "disk@monday", &image).await.expect("is copied");
    assert_eq!(copied, 14 * BLOCK);
    let bytes = std::fs::read(&image).expect("is read");
    assert_eq!(bytes.len() as u64, disk.size());
    for (block, found) in bytes.chunks(BLOCK as usize).enumerate() {
        let is_there = blocks.contains(&(block as u64)) || (200..210).contains(&block);
        assert_eq!(check(found, SEED, block as u64), Ok(u64::from(is_there)), "block {block}");
    }
    let listed = cluster.volumes(Some(Duration::from_secs(60))).await.expect("are listed");
    let names: Vec<&str> = listed.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["disk", "disk@monday"]);
    disk.close().await.expect("is flushed");
    cluster.close().await;
}
