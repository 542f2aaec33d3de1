//! Classes of durability with nodes that are processes: what was flushed in a class survives the loss that the class names, and a
//! class that cannot be met is seen.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tests::nbd_client::{self, Client};
use tests::nodes::Nodes;
use tests::tools::kills;
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2000;
const SEED: u64 = 31;
/// Writes between two flushes, at most.
const BURST: u64 = 40;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a write of this generation goes.
fn block_of(generation: u64) -> u64 {
    generation * 7919 % BLOCKS
}

/// How far a writer has come.
struct Written {
    begun: AtomicU64,
    flushed: AtomicU64,
}

/// Writes one generation after the other, from the one after `from`, and flushes now and then, until the node is gone.
fn write_and_flush(socket: &Path, from: u64, written: &Written, stop: &AtomicBool) -> Result<(), nbd_client::Error> {
    let mut client = Client::connect(socket, "disk")?;
    let mut generation = from;
    while !stop.load(Ordering::SeqCst) {
        for _ in 0..=generation * 31 % BURST {
            generation += 1;
            written.begun.store(generation, Ordering::SeqCst);
            client.write(block_of(generation) * BLOCK, &fill(SEED, block_of(generation), generation))?;
        }
        client.flush()?;
        written.flushed.store(generation, Ordering::SeqCst);
    }
    Ok(())
}

/// Everything up to some generation is there and nothing after it. Returns that generation.
fn newest_of_prefix(nodes: &Nodes, node: &str) -> u64 {
    let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
    let mut found = |block: u64| {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        check(&bytes, SEED, block).unwrap_or_else(|what| panic!("{what}"))
    };
    let blocks: Vec<u64> = (0..BLOCKS).map(&mut found).collect();
    let newest = blocks.iter().copied().max().expect("there are blocks");
    let mut expected = vec![0; BLOCKS as usize];
    (1..=newest).for_each(|generation| expected[block_of(generation) as usize] = generation);
    assert_eq!(blocks, expected, "a prefix of the writes, up to {newest}");
    newest
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills `lost` while its client writes and flushes, has a survivor take over, and compares. Returns the new owner and the newest
/// generation there.
fn lose(nodes: &mut Nodes, owner: &str, lost: &[&str], from: u64, flushes: u64) -> (String, u64) {
    let written = Written { begun: AtomicU64::new(from), flushed: AtomicU64::new(from) };
    let (stop, socket) = (AtomicBool::new(false), nodes.socket(owner));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_and_flush(&socket, from, &written, &stop));
        let mut seen = (from, 0);
        until("it flushes", || {
            let flushed = written.flushed.load(Ordering::SeqCst);
            if flushed > seen.0 {
                seen = (flushed, seen.1 + 1);
            }
            assert!(!writer.is_finished(), "the writer ended before the node");
            (seen.1 > flushes).then_some(())
        });
        for node in lost {
            nodes.kill(node).expect("it runs");
        }
        stop.store(true, Ordering::SeqCst);
        let ended = writer.join().expect("no panic");
        assert!(matches!(ended, Ok(()) | Err(nbd_client::Error::Broken(_))), "{ended:?}");
    });
    let (flushed, begun) = (written.flushed.load(Ordering::SeqCst), written.begun.load(Ordering::SeqCst));
    let survivor = ["b", "c", "a"].into_iter().find(|node| !lost.contains(node)).expect("there is one");
    let report = nodes.json(survivor, &["volume", "takeover", "disk", "--json"]).expect("succeeds");
    let to = report["to"].as_str().expect("a name").to_owned();
    let newest = newest_of_prefix(nodes, &to);
    println!("{lost:?} killed at {begun}: flushed up to {flushed}, node {to} goes on at {newest}");
    assert!(newest >= flushed, "{newest} is there, and {flushed} was flushed");
    assert!(newest <= begun, "{newest} was never written");
    (to, newest)
}

#[test]
fn what_was_flushed_is_there_after_each_loss_of_an_owner() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "32M", "--owner", "a", "--durability", "geo:1"];
    nodes.run("a", &create).expect("is created");
    let (mut owner, mut newest) = ("a".to_owned(), 0);
    for kill in 0..kills(3) {
        let lost = owner.clone();
        (owner, newest) = lose(&mut nodes, &lost, &[&lost], newest, 5 + kill * 7);
        nodes.start_node(&lost).expect("comes back");
        // It has a tail, unless it was killed between a flush and the next write; then it follows by itself. The owner hears a while
        // after it was dropped.
        let mut has_rejoined = false;
        until("it follows again", || {
            let status = nodes.json(&owner, &["volume", "status", "disk", "--json"]).expect("succeeds");
            let replicas = status["replicas"].as_array().expect("a list").clone();
            let back = replicas.into_iter().find(|replica| replica["node"] == lost.as_str()).expect("is a replica");
            if !back["tail"].is_null() && !std::mem::replace(&mut has_rejoined, true) {
                let rejoin = ["volume", "rejoin", "disk", "--node", &lost, "--discard-tail"];
                nodes.run(&owner, &rejoin).expect("rejoins");
            }
            (back["tail"].is_null() && back["reachable"] == true && back["bytes_behind"] == 0).then_some(())
        });
    }
}

#[test]
fn what_was_flushed_is_there_after_the_loss_of_the_owners_whole_provider() {
    let mut nodes = Nodes::none().expect("a directory");
    for (name, provider) in [("a", "x"), ("b", "y"), ("c", "z"), ("d", "x")] {
        nodes.add_at(name, provider).expect("starts");
    }
    let create = ["volume", "create", "disk", "--size", "32M", "--owner", "a", "--durability"];
    let refused = nodes.run("a", &[&create[..], &["geo:3"]].concat()).expect_err("there are two other providers");
    assert!(refused.to_string().contains("there are 2") && refused.to_string().contains("--accept-unmet"), "{refused}");
    nodes.run("a", &[&create[..], &["geo:1"]].concat()).expect("is created");
    let refused = nodes.run("a", &["volume", "policy", "disk", "--durability", "site:2"]).expect_err("there is one");
    assert!(refused.to_string().contains("more replicas at provider x"), "{refused}");
    lose(&mut nodes, "a", &["a", "d"], 0, 20);
}

#[test]
fn a_replica_that_is_cut_off_blocks_flushes_or_degrades_them_visibly() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    let create =
        ["volume", "create", "disk", "--size", "32M", "--owner", "a", "--replicas", "b", "--durability", "geo:1"];
    nodes.run("a", &create).expect("is created");
    let status = || nodes.json("a", &["volume", "status", "disk", "--json"]).expect("succeeds");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    client.flush().expect("is flushed");
    assert_eq!(status()["durability"]["state"], "met");
    assert_eq!(nodes.run("a", &["why", "disk", "--json"]).expect("tells").trim(), "[]");

    nodes.pause("b").expect("is paused");
    client.write(BLOCK, &fill(SEED, 1, 2)).expect("a plain write does not wait");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            let flushed = client.flush();
            done.store(true, Ordering::SeqCst);
            flushed
        });
        let durability = until("it is seen to wait", || {
            let durability = status()["durability"].clone();
            (durability["state"] == "unmet" && durability["waiting"] == 1).then_some(durability)
        });
        assert_eq!(durability["next"], "flushes wait until it is met");
        let why = nodes.run("a", &["why", "disk"]).expect("tells");
        assert!(why.contains("1 requests wait for class geo:1"), "{why}");
        assert!(!done.load(Ordering::SeqCst), "it blocks");
        // The policy is changed online, and holds for who waits.
        let policy = ["volume", "policy", "disk", "--unmet", "degrade", "--degrade-after", "1"];
        nodes.run("a", &policy).expect("is set");
        flushing.join().expect("no panic").expect("is answered");
    });
    let durability = status()["durability"].clone();
    assert_eq!(durability["state"], "degraded", "{durability}");
    assert!(durability["degraded_since_ms"].as_u64() > Some(0) && durability["at_risk_bytes"] == BLOCK, "{durability}");
    let why = nodes.run("a", &["why", "disk"]).expect("tells");
    assert!(why.contains("flushes are answered without class geo:1") && why.contains("4 KiB"), "{why}");
    nodes.resume("b").expect("goes on");
    until("it heals by itself", || (status()["durability"]["state"] == "met").then_some(()));
}
