//! Takeovers, as an operator does them, of nodes that are processes: the owner is killed, or paused, under load.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::ledger::Ledger;
use tests::nbd_client::{self, Client, EPERM, Error};
use tests::nodes::Nodes;
use tests::tools::until;
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4000;
const SEED: u64 = 29;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the writer's generation goes.
fn block_of(generation: u64) -> u64 {
    generation * 7919 % BLOCKS
}

fn write_blocks(socket: &Path, ledger: &Mutex<Ledger>, stop: &AtomicBool) -> Result<(), nbd_client::Error> {
    let mut client = Client::connect(socket, "disk")?;
    while !stop.load(Ordering::SeqCst) {
        let next = ledger.lock().expect("no thread panics").generation() + 1;
        let generation = ledger.lock().expect("no thread panics").begin(block_of(next));
        client.write(block_of(generation) * BLOCK, &fill(SEED, block_of(generation), generation))?;
        ledger.lock().expect("no thread panics").ack();
    }
    Ok(())
}

fn found(client: &mut Client, block: u64) -> u64 {
    let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
    check(&bytes, SEED, block).unwrap_or_else(|what| panic!("{what}"))
}

/// Everything up to some generation is there and nothing after it, in every block. Returns that generation.
fn check_prefix(nodes: &Nodes, node: &str, written: u64) -> u64 {
    let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
    let blocks: Vec<u64> = (0..BLOCKS).map(|block| found(&mut client, block)).collect();
    let newest = blocks.iter().copied().max().expect("there are blocks");
    assert!(newest <= written, "{newest} was never written");
    let mut expected = vec![0; BLOCKS as usize];
    (1..=newest).for_each(|generation| expected[block_of(generation) as usize] = generation);
    assert_eq!(blocks, expected, "a prefix of the writes, up to {newest} of {written}");
    newest
}

/// What the owner says of replica `replica`.
fn replica(nodes: &Nodes, at: &str, replica: &str) -> (Value, Value) {
    let status = nodes.json(at, &["volume", "status", "disk", "--json"]).expect("succeeds");
    let all = status["replicas"].as_array().expect("a list");
    let found = all.iter().find(|found| found["node"] == replica).expect("is a replica").clone();
    (status, found)
}

fn refused(outcome: anyhow::Result<String>, expected: &str) {
    let error = outcome.expect_err(expected).to_string();
    assert!(error.contains(expected) && !error.contains("panicked"), "{error}");
}

#[test]
fn a_killed_owners_volume_goes_on_at_a_survivor_and_its_tail_is_kept() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    refused(nodes.run("b", &["volume", "takeover", "disk"]), "node a has renewed its lease: it is alive");
    refused(nodes.run("b", &["volume", "takeover", "disk", "--to", "a"]), "owns volume disk already");

    let (ledger, stop, socket) = (Mutex::new(Ledger::default()), AtomicBool::new(false), nodes.socket("a"));
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(&socket, &ledger, &stop));
        until("the writer writes and the replicas follow", PATIENCE, || {
            assert!(!writer.is_finished(), "the writer writes");
            let (_, replica) = replica(&nodes, "a", "b");
            replica["watermark"] != "0.0" && ledger.lock().expect("no thread panics").generation() > 2000
        });
        nodes.kill("a").expect("it runs");
        writer.join().expect("ends").expect_err("its node is gone");
        ledger.lock().expect("no thread panics").generation()
    });
    refused(nodes.run("b", &["volume", "status", "disk"]), "helio volume takeover disk");
    let why = nodes.run("b", &["why", "disk"]).expect("tells");
    assert!(why.contains("does not answer") && why.contains("helio volume takeover disk"), "{why}");

    let begun = Instant::now();
    let report = nodes.json("b", &["volume", "takeover", "disk", "--json"]).expect("succeeds");
    println!("taken over after {:?}: {report}", begun.elapsed());
    assert_eq!((&report["from"], &report["epoch"]), (&Value::from("a"), &Value::from(2)));
    let to = report["to"].as_str().expect("a name").to_owned();
    let other = if to == "b" { "c" } else { "b" };
    let survived = check_prefix(&nodes, &to, written);
    assert_eq!(check_prefix(&nodes, other, written), survived, "read through, it is the same");
    assert!(survived + 1 < written, "a writer that does not wait is ahead of its replicas");

    // It goes on there.
    let mut client = Client::connect(&nodes.socket(&to), "disk").expect("connects");
    for block in 0..50 {
        client.write(block * BLOCK, &fill(SEED, block, written + 1 + block)).expect("is written");
    }
    client.flush().expect("flushes");
    until("the other replica follows", PATIENCE, || {
        let (status, replica) = replica(&nodes, &to, other);
        replica["watermark"] == status["head"]
    });

    // The old owner comes back, fenced, and keeps what nobody else has.
    nodes.start_node("a").expect("starts");
    until("its tail is shown", PATIENCE, || !replica(&nodes, other, "a").1["tail"].is_null());
    let tail = replica(&nodes, other, "a").1["tail"].clone();
    let writes = tail["writes"].as_u64().expect("a number");
    assert!(writes >= written - 1 - survived && tail["bytes"].as_u64() > Some(0), "{tail}");
    let text = nodes.run(&to, &["volume", "status", "disk"]).expect("tells");
    assert!(text.contains("node a has left the volume") && text.contains("--discard-tail"), "{text}");
    let why = nodes.run(&to, &["why", "disk"]).expect("tells");
    assert!(why.contains("node a has left the volume"), "{why}");
    let mut at_a = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    assert_eq!(found(&mut at_a, 7), written + 1 + 7, "who reads there reads the volume");
    let name = tail["export"].as_str().expect("a name");
    let mut kept = Client::connect(&nodes.socket("a"), name).expect("is an export");
    ledger
        .into_inner()
        .expect("no thread panics")
        .check(|block| Ok(found(&mut kept, block)))
        .expect("every acked write is in the tail");
    refused(nodes.run(&to, &["volume", "migrate", "disk", "--to", "a"]), "has left the volume");
    let image = nodes.path().join("tail.raw");
    let image_path = image.to_str().expect("is UTF-8");
    let exported = nodes.run("a", &["volume", "export", name, image_path]).expect("is exported where it is");
    assert!(exported.contains(&format!("exported tail {name}")), "{exported}");
    let mut bytes = vec![0; BLOCK as usize];
    for block in (0..BLOCKS).step_by(97) {
        let image = std::fs::File::open(&image).expect("is there");
        std::os::unix::fs::FileExt::read_exact_at(&image, &mut bytes, block * BLOCK).expect("is whole");
        assert_eq!(check(&bytes, SEED, block), Ok(found(&mut kept, block)), "block {block} of the image");
    }
    refused(nodes.run(&to, &["volume", "export", name, image_path, "--force"]), "is at node a only");
    refused(nodes.run("a", &["volume", "export", "disk@tail-9", image_path]), "what nodes kept");

    refused(nodes.run("c", &["volume", "rejoin", "disk", "--node", "a"]), "--discard-tail");
    refused(nodes.run("c", &["volume", "rejoin", "disk", "--node", other, "--discard-tail"]), "no tail to discard");
    nodes.run("c", &["volume", "rejoin", "disk", "--node", "a", "--discard-tail"]).expect("rejoins");
    until("it follows again", PATIENCE, || {
        let (status, replica) = replica(&nodes, &to, "a");
        replica["tail"].is_null() && replica["watermark"] == status["head"]
    });
    // By what differs: what its tail had changed, and what was written since.
    let (status, back) = replica(&nodes, &to, "a");
    let bytes = |value: &Value| value.as_u64().expect("a number");
    let (sent, most) = (bytes(&back["freight"]["sent_bytes"]), bytes(&tail["bytes"]) + 50 * BLOCK);
    println!("{sent} bytes sent for at most {most} that differ, of {}", status["mapped_bytes"]);
    assert!(0 < sent && sent <= most && back["is_rejoining"] == false, "{back}");
    drop(kept);
    assert!(Client::connect(&nodes.socket("a"), name).is_err(), "the tail is dropped");
    nodes.run("a", &["volume", "migrate", "disk", "--to", "a"]).expect("may own it again");
    for node in ["a", "b", "c"] {
        let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
        for block in 0..50 {
            assert_eq!(found(&mut client, block), written + 1 + block, "block {block} at {node}");
        }
    }
    // Over a restart of everything it stays as it is.
    nodes.kill("a").expect("it runs");
    nodes.start_node("a").expect("starts");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    assert_eq!(found(&mut client, 7), written + 1 + 7);
}

/// The process is stopped with a write in its hands, and goes on when another node has owned the volume for a while.
#[test]
fn a_paused_owner_answers_nothing_when_it_wakes_up_and_its_client_is_told() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    let mut idle = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for block in 0..10 {
        client.write(block * BLOCK, &fill(SEED, block, 1)).expect("is written");
    }
    found(&mut idle, 3);
    until("the replicas follow", PATIENCE, || {
        let (status, replica) = replica(&nodes, "a", "b");
        replica["watermark"] == status["head"]
    });

    nodes.pause("a").expect("it runs");
    let outcome = std::thread::scope(|scope| {
        let pending = scope.spawn(|| client.write(3 * BLOCK, &fill(SEED, 3, 2)));
        let report = nodes.json("c", &["volume", "takeover", "disk", "--to", "b", "--json"]).expect("succeeds");
        assert_eq!((&report["to"], &report["lost_writes"]), (&Value::from("b"), &Value::from(0)));
        let mut at_b = Client::connect(&nodes.socket("b"), "disk").expect("connects");
        at_b.write(3 * BLOCK, &fill(SEED, 3, 5)).expect("is written");
        assert!(!pending.is_finished(), "nobody answers it");
        nodes.resume("a").expect("it runs");
        pending.join().expect("ends")
    });
    assert!(matches!(outcome, Err(Error::Refused(EPERM))), "never acked: {outcome:?}");
    assert!(matches!(client.flush(), Err(Error::Refused(EPERM))), "what it wrote may be gone");
    assert!(matches!(idle.read(3 * BLOCK, BLOCK as u32), Err(Error::Refused(EPERM))), "what it read may be gone");
    let mut anew = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    assert_eq!(found(&mut anew, 3), 5, "a new connection sees the volume");
    let log = std::fs::read_to_string(nodes.path().join("a.log")).expect("has a log");
    assert!(log.contains("connect anew"), "the reason is in the log: {log}");
}

/// Nobody types anything: the volume has its policy, and its owner is gone.
#[test]
fn a_volume_is_taken_over_by_itself_if_its_policy_says_so() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    for volume in ["disk", "other"] {
        nodes.run("a", &["volume", "create", volume, "--size", "64M", "--owner", "a"]).expect("is created");
    }
    let policy = ["volume", "policy", "disk", "--takeover", "auto", "--after", "1"];
    assert!(nodes.run("b", &policy).expect("is set").contains("1 s after the owner's lease is out"));
    assert_eq!(nodes.json("c", &["volume", "policy", "disk", "--json"]).expect("succeeds")["takeover_after_ms"], 1000);
    assert_eq!(
        nodes.json("c", &["volume", "policy", "other", "--json"]).expect("succeeds")["takeover_after_ms"],
        Value::Null
    );
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    until("the replicas follow", PATIENCE, || {
        let (status, replica) = replica(&nodes, "a", "b");
        replica["watermark"] == status["head"]
    });
    nodes.kill("a").expect("it runs");
    let owners = |nodes: &Nodes| -> Vec<String> {
        let all = nodes.json("c", &["volume", "list", "--json"]).expect("succeeds");
        let all = all.as_array().expect("a list").iter();
        all.map(|volume| volume["owner"].as_str().expect("a name").to_owned()).collect()
    };
    until("it is taken over", PATIENCE, || owners(&nodes)[0] != "a");
    assert_eq!(owners(&nodes)[1], "a", "that one waits for an operator");
    let mut client = Client::connect(&nodes.socket("c"), "disk").expect("connects");
    assert_eq!(found(&mut client, 0), 1);
}

#[test]
fn nothing_is_taken_over_without_a_majority_or_a_replica() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "1M", "--owner", "a", "--replicas", "c"];
    nodes.run("a", &create).expect("is created");
    refused(nodes.run("b", &["volume", "takeover", "disk", "--to", "b"]), "holds no replica of volume disk");
    refused(nodes.run("b", &["volume", "takeover", "nothing"]), "there is no volume");
    refused(nodes.run("b", &["volume", "takeover", "disk", "--to", "d"]), "there is no node");
    nodes.kill("a").expect("it runs");
    nodes.kill("c").expect("it runs");
    refused(nodes.run("b", &["volume", "takeover", "disk"]), "a majority of the voters must be up");
    // Who has lost so much can still look at what is left.
    let list = nodes.run("b", &["volume", "list"]).expect("is told from memory");
    assert!(list.contains("disk"), "{list}");
    let members = nodes.run("b", &["cluster", "status"]).expect("tells");
    assert!(members.contains("1 of 3 voters, which is no majority") && !members.contains("leader"), "{members}");
    refused(nodes.run("b", &["cluster", "status", "--wait", "1"]), "no node leads the metadata after 1 s");
    let why = nodes.run("b", &["why", "disk"]).expect("tells");
    assert!(why.contains("which is no majority") && why.contains("it can be taken over when there is"), "{why}");
    nodes.start_node("a").expect("starts");
    refused(nodes.run("b", &["volume", "takeover", "disk"]), "node c does not answer");
}
