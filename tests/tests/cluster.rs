//! What a user of `helio up` relies on, against the real program.

use std::collections::BTreeMap;

use tests::cluster::Up;
use tests::nbd_client::{Client, EPERM, Error};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2000;
const SEED: u64 = 11;

fn verify(client: &mut Client, newest: &BTreeMap<u64, u64>) {
    for (block, generation) in newest {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        let found = check(&bytes, SEED, *block).unwrap_or_else(|what| panic!("block {block}: {what}"));
        assert_eq!(found, *generation, "block {block}");
    }
}

#[test]
fn no_acked_write_is_missing_after_kill_nine() {
    let mut up = Up::start(&[]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let (mut newest, mut generation) = (BTreeMap::new(), 0);
    for life in 0..6 {
        let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
        verify(&mut client, &newest);
        for _ in 0..300 {
            generation += 1;
            let block = generation * 7919 % BLOCKS;
            client.write(block * BLOCK, &fill(SEED, block, generation)).expect("is written");
            newest.insert(block, generation);
            if generation.is_multiple_of(50 + life) {
                client.flush().expect("flushes");
            }
        }
        up.kill().expect("runs");
        up.restart().expect("comes back by itself");
    }
    verify(&mut Client::connect(&up.socket("c"), "disk").expect("connects"), &newest);
}

#[test]
fn a_connected_writer_follows_its_volume_and_a_stranger_is_refused() {
    let up = Up::start(&["--rtt", "20"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut writer = Client::connect(&up.socket("a"), "disk").expect("connects");
    let mut stranger = Client::connect(&up.socket("b"), "disk").expect("connects");
    let mut newest = BTreeMap::new();
    for (generation, to) in [(1, "b"), (2, "c"), (3, "a")] {
        for block in 0..50 {
            writer.write(block * BLOCK, &fill(SEED, block, generation)).expect("is written, wherever the volume is");
            newest.insert(block, generation);
        }
        if generation == 1 {
            let refused = stranger.write(0, &fill(SEED, 0, 99));
            assert!(matches!(refused, Err(Error::Refused(EPERM))), "{refused:?}");
            stranger.flush().expect("a flush of nothing is answered");
        }
        let report = up.run(&["volume", "migrate", "disk", "--to", to, "--json"]).expect("is handed over");
        let report: serde_json::Value = serde_json::from_str(&report).expect("is JSON");
        assert_eq!(report["epoch"], generation + 1);
        writer.flush().expect("flushes");
        verify(&mut stranger, &newest);
    }
    let status = up.run(&["volume", "status", "disk", "--json"]).expect("tells");
    let status: serde_json::Value = serde_json::from_str(&status).expect("is JSON");
    assert_eq!(status["owner"], "a");
    assert_eq!(status["replicas"].as_array().map(Vec::len), Some(2));
}

/// Status once repeated what a replica's sender had last computed: right after a write it said that nothing was missing
/// at a replica whose watermark was far from the head.
#[test]
fn a_replica_that_lacks_writes_is_never_shown_as_lacking_nothing() {
    let up = Up::start(&["--rtt", "300"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut writer = Client::connect(&up.socket("a"), "disk").expect("connects");
    let mut seen_behind = 0;
    for block in 0..20 {
        writer.write(block * BLOCK, &fill(SEED, block, 1)).expect("is written");
        let status = up.run(&["volume", "status", "disk", "--json"]).expect("tells");
        let status: serde_json::Value = serde_json::from_str(&status).expect("is JSON");
        for replica in status["replicas"].as_array().expect("a list") {
            let bytes = replica["bytes_behind"].as_u64().expect("a number");
            assert_eq!(bytes == 0, replica["watermark"] == status["head"], "{status}");
            seen_behind += u64::from(bytes > 0);
        }
    }
    assert!(seen_behind > 0, "at 300 ms some were behind");
}
