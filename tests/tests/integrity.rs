//! A disk that alters what was stored, against the real program: clients read what they wrote, or an error.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::cluster::Up;
use tests::nbd_client::{Client, Error};
use tests::workload::fill;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 300;
const SEED: u64 = 31;
/// Far longer than a replica on the same machine takes to catch up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The protocol's number for an input or output error.
const EIO: u32 = 5;

fn status(up: &Up) -> serde_json::Value {
    let json = up.run(&["volume", "status", "disk", "--json"]).expect("tells");
    serde_json::from_str(&json).expect("is JSON")
}

fn wait_for_replicas(up: &Up) {
    let begun = Instant::now();
    loop {
        let status = status(up);
        let replicas = status["replicas"].as_array().expect("has replicas");
        if replicas.len() == 2 && replicas.iter().all(|replica| replica["watermark"] == status["head"]) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the replicas do not catch up: {status}");
    }
}

/// Alters a byte of every copy of these blocks in the segments of a node; returns how many copies there were.
fn alter(up: &Up, node: &str, blocks: impl Iterator<Item = u64>) -> usize {
    let wanted: Vec<Vec<u8>> = blocks.map(|block| fill(SEED, block, 1)).collect();
    let mut altered = 0;
    for entry in std::fs::read_dir(up.data().join(node).join("shard-0/segments")).expect("lists") {
        altered += alter_in(&entry.expect("lists").path(), &wanted);
    }
    altered
}

fn alter_in(segment: &Path, wanted: &[Vec<u8>]) -> usize {
    let mut altered = 0;
    let file = OpenOptions::new().read(true).write(true).open(segment).expect("opens");
    let bytes = std::fs::read(segment).expect("is read");
    for (at, found) in (0u64..).zip(bytes.chunks_exact(BLOCK as usize)) {
        if wanted.iter().any(|wanted| wanted == found) {
            file.write_all_at(&[!found[1000]], at * BLOCK + 1000).expect("is altered");
            altered += 1;
        }
    }
    file.sync_all().expect("is on the disk");
    altered
}

fn verify(client: &mut Client, blocks: impl Iterator<Item = u64>) {
    for block in blocks {
        let bytes = client.read(block * BLOCK, BLOCK as u32).unwrap_or_else(|error| panic!("block {block}: {error:?}"));
        assert!(bytes == fill(SEED, block, 1), "block {block} is not what was written");
    }
}

#[test]
fn altered_blocks_are_repaired_from_a_replica_and_only_lost_ones_fail() {
    let up = Up::start(&[]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &fill(SEED, block, 1)).expect("is written");
    }
    client.flush().expect("flushes");
    wait_for_replicas(&up);

    // At the owner: a read waits for the repair and succeeds, alone or among whole neighbours.
    assert_eq!(alter(&up, "a", (0..BLOCKS).step_by(3)), 100);
    let many = client.read(0, 60 * BLOCK as u32).expect("is read");
    assert!(many == (0..60).flat_map(|block| fill(SEED, block, 1)).collect::<Vec<_>>(), "a large read");
    verify(&mut client, 0..BLOCKS);
    let after = status(&up);
    assert_eq!((&after["damaged_blocks"], &after["repaired_blocks"]), (&0.into(), &100.into()), "{after}");

    // At a replica: the volume comes there, and what is damaged there comes from the node that had it before.
    assert_eq!(alter(&up, "b", (1..BLOCKS).step_by(3)), 100);
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("moves");
    verify(&mut Client::connect(&up.socket("b"), "disk").expect("connects"), 0..BLOCKS);
    assert_eq!(status(&up)["repaired_blocks"], 100);

    // Nobody has it any more: that block alone fails, and the status says so.
    for node in ["a", "b", "c"] {
        assert!(alter(&up, node, std::iter::once(200)) > 0, "node {node} holds it");
    }
    let lost = client.read(200 * BLOCK, BLOCK as u32);
    assert!(matches!(lost, Err(Error::Refused(EIO))), "{lost:?}");
    verify(&mut client, (0..BLOCKS).filter(|block| *block != 200));
    assert_eq!(status(&up)["damaged_blocks"], 1);
    let human = up.run(&["volume", "status", "disk"]).expect("tells");
    assert!(human.contains("1 damaged blocks at the owner"), "{human}");
    client.write(200 * BLOCK, &fill(SEED, 200, 1)).expect("a new version heals it");
    verify(&mut client, 200..201);
}
