//! One provider after another is lost under load, at a moment that differs each time: what goes on elsewhere is a prefix of what was
//! written, and with `--durability geo:1` it has everything that was flushed. Two losses here, 200 in `make soak` (`HELIO_KILLS`).

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::nbd_client::{Client, Error};
use tests::nodes::Nodes;
use tests::tools::kills;
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1000;
const SEED: u64 = 37;
const LOSSES: u64 = 2;
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Writes from one flush to the next.
const FLUSHED: u64 = 40;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(90);

/// What one writer has done, for who watches it.
#[derive(Default)]
struct Progress {
    begun: AtomicU64,
    flushed: AtomicU64,
    stop: AtomicBool,
}

/// Where a generation goes.
fn block_of(generation: u64) -> u64 {
    generation * 7919 % BLOCKS
}

/// Writes generations from `next` on, with a flush now and then, until its node is gone.
fn write(socket: &Path, next: u64, progress: &Progress) -> Result<(), Error> {
    let mut client = Client::connect(socket, "disk")?;
    for generation in next.. {
        if progress.stop.load(Ordering::SeqCst) {
            break;
        }
        progress.begun.store(generation, Ordering::SeqCst);
        client.write(block_of(generation) * BLOCK, &fill(SEED, block_of(generation), generation))?;
        if generation % FLUSHED == 0 {
            client.flush()?;
            progress.flushed.store(generation, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// The newest generation of the disk, which holds the `kept` ones and those from `next` on up to that one, and nothing else.
fn newest(nodes: &Nodes, node: &str, kept: &[RangeInclusive<u64>], next: u64) -> u64 {
    let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
    let mut read = |block: u64| {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        check(&bytes, SEED, block).unwrap_or_else(|what| panic!("{what}"))
    };
    let found: Vec<u64> = (0..BLOCKS).map(&mut read).collect();
    let newest = found.iter().copied().max().unwrap_or(0).max(next - 1);
    let mut expected = vec![0; BLOCKS as usize];
    for generation in kept.iter().cloned().flatten().chain(next..=newest) {
        expected[block_of(generation) as usize] = generation;
    }
    assert_eq!(found, expected, "a prefix of what was written from {next} on, up to {newest}, over {kept:?}");
    newest
}

/// Whether every replica is there and holds what the owner has, and none is apart.
fn all_follow(status: &Value) -> bool {
    let replicas = status["replicas"].as_array().expect("a list");
    replicas.iter().all(|replica| {
        replica["tail"].is_null() && replica["reachable"] == true && replica["watermark"] == status["head"]
    })
}

fn lose_one_after_another(durability: &str) {
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "64M", "--owner", "a", "--durability", durability];
    nodes.run("a", &create).expect("is created");
    let (mut owner, mut next, mut kept) = ("a", 1, Vec::new());
    let mut waits = Vec::new();
    for loss in 0..kills(LOSSES) {
        let (progress, socket) = (Progress::default(), nodes.socket(owner));
        // Spread, and the same in every run.
        let writes = 300 + loss.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1500;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&socket, next, &progress));
            nodes.until("the writer does not write", PATIENCE, || {
                assert!(!writer.is_finished(), "its node is there");
                progress.begun.load(Ordering::SeqCst) > next + writes
            });
            nodes.kill(owner).expect("it runs");
            writer.join().expect("ends").expect_err("its node is gone");
        });
        let (begun, flushed) = (progress.begun.into_inner(), progress.flushed.into_inner());
        let survivor = NAMES[(loss % 3) as usize];
        let survivor = if survivor == owner { NAMES[((loss + 1) % 3) as usize] } else { survivor };
        let clock = Instant::now();
        let report = nodes.json(survivor, &["volume", "takeover", "disk", "--json"]).expect("succeeds");
        let to = report["to"].as_str().expect("a name");
        let to = NAMES.into_iter().find(|name| *name == to).expect("one of these");
        let last = newest(&nodes, to, &kept, next);
        waits.push(clock.elapsed());
        assert!(last <= begun, "{last} was never written");
        if durability != "local" {
            assert!(last >= flushed, "loss {loss}: {flushed} was flushed, and {last} is the newest there is");
        }
        kept.push(next..=last);
        // It comes back, and follows: by itself when it has nothing of its own.
        let lost = owner;
        nodes.start_node(lost).expect("starts");
        let mut rejoined = false;
        nodes.until("it is not back", PATIENCE, || {
            let status = nodes.json(to, &["volume", "status", "disk", "--json"]).expect("succeeds");
            let replicas = status["replicas"].as_array().expect("a list");
            let is_apart = replicas.iter().any(|replica| replica["node"] == lost && !replica["tail"].is_null());
            // The owner shows it a moment longer.
            if is_apart && !rejoined {
                rejoined = true;
                nodes.run(to, &["volume", "rejoin", "disk", "--node", lost, "--discard-tail"]).expect("rejoins");
            }
            all_follow(&status)
        });
        (owner, next) = (to, begun + 1);
    }
    for node in NAMES {
        assert_eq!(newest(&nodes, node, &kept, next), next - 1, "{node} shows the same");
    }
    waits.sort();
    println!(
        "{} losses at durability {durability}: {} of {} writes went on; until read elsewhere p50 {:?}, longest {:?}",
        kept.len(),
        kept.iter().map(|kept| kept.end() + 1 - kept.start()).sum::<u64>(),
        next - 1,
        waits[waits.len() / 2],
        waits[waits.len() - 1]
    );
}

#[test]
fn what_goes_on_after_the_loss_of_any_provider_is_a_prefix() {
    lose_one_after_another("local");
}

#[test]
fn what_was_flushed_at_two_providers_outlives_the_loss_of_any() {
    lose_one_after_another("geo:1");
}
