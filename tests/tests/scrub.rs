//! Scrubs that an operator asks for: what they find is repaired, snapshots included; watched again, stopped, gone on with.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::damage;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 400;
const SEED: u64 = 51;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(90);

fn json(nodes: &Nodes, arguments: &[&str]) -> Value {
    nodes.json("b", &[arguments, &["--json"]].concat()).expect("tells")
}

fn number(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or_else(|| panic!("{field} in {of}"))
}

fn write(nodes: &Nodes, blocks: std::ops::Range<u64>, generation: u64) {
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for block in blocks {
        client.write(block * BLOCK, &fill(SEED, block, generation)).expect("is written");
    }
    client.flush().expect("flushes");
    let begun = Instant::now();
    loop {
        let status = json(nodes, &["volume", "status", "disk"]);
        if status["replicas"][0]["watermark"] == status["head"] {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the replica does not catch up: {status:#}");
        std::thread::yield_now();
    }
}

/// Alters every copy of these blocks and generations at a node; returns how many there were.
fn alter(data: &Path, wanted: &[(u64, u64)]) -> usize {
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|(block, generation)| fill(SEED, *block, *generation)).collect();
    damage::alter(&data.join("shard-0"), &wanted).expect("is altered")
}

#[test]
fn a_scrub_finds_and_repairs_what_nobody_reads_at_any_node_snapshots_included() {
    let nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "4M"]).expect("is created");
    let never = nodes.run("b", &["volume", "scrub", "disk", "--status"]).expect("tells");
    assert_eq!(never.trim(), "no scrub of volume disk at node a yet");
    write(&nodes, 0..BLOCKS, 1);
    nodes.run("a", &["volume", "snapshot", "create", "disk@old"]).expect("is made");
    write(&nodes, 0..100, 2);

    // Two of the snapshot alone, two that both have, one that only the volume has.
    let damaged = [(3, 1), (70, 1), (200, 1), (399, 1), (50, 2)];
    assert_eq!(alter(&nodes.path().join("a"), &damaged), damaged.len());
    let scrub = json(&nodes, &["volume", "scrub", "disk"]);
    assert_eq!((scrub["state"].as_str(), scrub["node"].as_str()), (Some("finished"), Some("a")), "{scrub:#}");
    assert_eq!(number(&scrub, "checked_bytes"), (BLOCKS + 100) * BLOCK, "each version once: {scrub:#}");
    let counts = ["damaged_blocks", "repaired_blocks", "damaged_now"].map(|field| number(&scrub, field));
    assert_eq!(counts, [5, 5, 0], "{scrub:#}");
    for (export, of_first) in [("disk", 2), ("disk@old", 1)] {
        let mut client = Client::connect(&nodes.socket("a"), export).expect("connects");
        for block in 0..BLOCKS {
            let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
            let expected = if block < 100 { of_first } else { 1 };
            assert_eq!(check(&bytes, SEED, block), Ok(expected), "{export}");
        }
    }

    // At the replica, and everything that it stores.
    assert!(alter(&nodes.path().join("b"), &[(3, 1), (50, 2)]) >= 2);
    let scrub = json(&nodes, &["node", "scrub", "--node", "b"]);
    assert_eq!((scrub["state"].as_str(), scrub["volume"].as_str()), (Some("finished"), None), "{scrub:#}");
    assert_eq!((number(&scrub, "repaired_blocks"), number(&scrub, "damaged_now")), (2, 0), "{scrub:#}");
    let again = nodes.run("a", &["node", "scrub", "--node", "b", "--status"]).expect("tells");
    assert!(again.contains("scrub of everything at node b: finished") && again.contains("2 repaired"), "{again}");

    // What nobody has is told, by the exit code too.
    for node in ["a", "b"] {
        assert!(alter(&nodes.path().join(node), &[(60, 2)]) >= 1);
    }
    let error = nodes.run("a", &["volume", "scrub", "disk"]).expect_err("cannot be repaired").to_string();
    assert!(error.contains("1 blocks are damaged, and no other node has sent them"), "{error}");
    for (arguments, expected) in
        [(&["disk", "--node", "zz"][..], "there is no node \"zz\""), (&["nope"], "there is no volume \"nope\"")]
    {
        let error = nodes.run("a", &[&["volume", "scrub"], arguments].concat()).expect_err("is refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_scrub_is_watched_again_goes_on_after_a_restart_and_is_stopped() {
    let mut nodes = Nodes::none().expect("a directory");
    // A page of 256 blocks takes sixteen seconds, so that it cannot be through before it was looked at.
    nodes.add_with("a", "scrub_bytes_per_second = \"64KiB\"\nscrub_days = 0\n").expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "16M"]).expect("is created");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for mib in 0..16 {
        client.write(mib << 20, &vec![7; 1 << 20]).expect("writes");
    }
    client.flush().expect("flushes");
    drop(client);
    let scrub = |nodes: &Nodes, arguments: &[&str]| -> Value {
        let said = nodes.run("a", &[&["volume", "scrub", "disk", "--json"], arguments].concat()).expect("tells");
        serde_json::from_str(&said).expect("is JSON")
    };
    let begun = scrub(&nodes, &["--no-wait"]);
    assert_eq!((begun["state"].as_str(), begun["by_hand"].as_bool()), (Some("running"), Some(true)), "{begun:#}");
    assert_eq!(number(&begun, "total_bytes"), 16 << 20);
    let waited = Instant::now();
    while number(&scrub(&nodes, &["--status"]), "checked_bytes") == 0 {
        assert!(waited.elapsed() < PATIENCE, "it does not begin");
    }
    let again = scrub(&nodes, &["--no-wait"]);
    assert_eq!((&again["began_ms"], again["state"].as_str()), (&begun["began_ms"], Some("running")), "the same one");

    nodes.stop("a").expect("stops");
    nodes.start_node("a").expect("starts again");
    let after = scrub(&nodes, &["--status"]);
    assert_eq!((&after["began_ms"], after["state"].as_str()), (&begun["began_ms"], Some("running")), "{after:#}");
    assert!(number(&after, "checked_bytes") >= 1 << 20, "near where it was: {after:#}");
    let stopped = scrub(&nodes, &["--stop"]);
    assert_eq!(stopped["state"].as_str(), Some("stopped"), "{stopped:#}");
    assert!(!stopped["ended_ms"].is_null() && number(&stopped, "checked_bytes") < 16 << 20, "{stopped:#}");
}
