//! `helio-nbd` under load while the nodes behind it are killed and started again, the disk is handed over, and providers are lost:
//! its client sees neither an error nor a wrong byte, and keeps its one connection. Few of each here, many in `make soak`
//! (`HELIO_KILLS`, `HELIO_LOSSES`).

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tests::nbd_client::{Client, Error};
use tests::nodes::Nodes;
use tests::tools::{count, kills, run};
use tests::workload::{check, fill};
use tests::writer::Writer;

const BLOCK: u64 = 4096;
const SEED: u64 = 41;
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Writes from one flush to the next.
const FLUSHED: u64 = 40;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `writer` has acked so many more.
fn acks(writer: &Writer, more: u64, nodes: &Nodes) {
    let target = writer.acked() + more;
    nodes.until("the writer does not get on", PATIENCE, || writer.acked() >= target);
}

#[test]
fn kills_of_the_owner_and_handovers_are_only_latency() {
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let remote = nodes.helio_nbd("host", &["--export", "disk"]).expect("starts");
    let writer = Writer::new(0..500, SEED);
    let mut waits = Vec::new();
    let socket = remote.socket().to_owned();
    std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        acks(&writer, 500, &nodes);
        let mut owner = 0;
        for round in 0..kills(2) {
            let name = NAMES[owner];
            writer.watch();
            nodes.kill(name).expect("it runs");
            nodes.start_node(name).expect("starts");
            // Spread, and the same in every run.
            acks(&writer, 200 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 500, &nodes);
            waits.push(writer.longest_wait());
            owner = (owner + 1) % NAMES.len();
            nodes.run(name, &["volume", "migrate", "disk", "--to", NAMES[owner]]).expect("is handed over");
            acks(&writer, 200, &nodes);
        }
        running.finish().expect("its client is told of nothing");
    });
    waits.sort();
    println!(
        "{} writes over {} kills and as many handovers; waits for a killed node {waits:?}",
        writer.acked(),
        waits.len()
    );
    for (socket, volume) in [(remote.socket().to_owned(), ""), (nodes.socket("c"), "disk")] {
        writer.check(&mut Client::connect(&socket, volume).expect("connects")).expect("every byte is right");
    }
    remote.stop().expect("stops");
}

/// It once said `ready`, and nothing more, whatever stood in the way: who started it learnt of that from the machine that did not boot.
#[test]
fn what_stands_in_the_way_of_serving_is_logged_before_a_client_comes() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    let remote = nodes.helio_nbd("host", &["--export", "later"]).expect("starts, since the volume may come");
    let logs = |what: &str| remote.log().expect("is read").contains(what);
    nodes.until("what is wrong is not told", PATIENCE, || {
        logs("cannot serve yet, and tries again: export later: there is no")
    });
    nodes.run("a", &["volume", "create", "later", "--size", "1M"]).expect("is created");
    nodes.until("that it is well is not told", PATIENCE, || logs("all exports can be served"));
    Client::connect(remote.socket(), "").expect("connects").write(0, &fill(SEED, 0, 1)).expect("is written");
    remote.stop().expect("stops");
}

/// The disks of the machines on a node's host stay while the node is restarted.
#[test]
fn a_node_is_restarted_under_a_disk_on_its_own_machine() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let remote = nodes.helio_nbd_beside("a", "beside", &[]).expect("starts");
    let writer = Writer::new(0..500, SEED);
    std::thread::scope(|scope| {
        let running = writer.start(scope, remote.socket(), "disk");
        acks(&writer, 300, &nodes);
        nodes.kill("a").expect("it runs");
        nodes.start_node("a").expect("starts");
        acks(&writer, 300, &nodes);
        nodes.stop("a").expect("stops");
        nodes.start_node("a").expect("starts");
        acks(&writer, 300, &nodes);
        running.finish().expect("its client is told of nothing");
    });
    writer.check(&mut Client::connect(remote.socket(), "disk").expect("connects")).expect("every byte is right");
    remote.stop().expect("stops");
}

/// What one writer has done, for who watches it.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    stop: AtomicBool,
}

const BLOCKS: u64 = 700;

/// Where a generation goes.
fn block_of(generation: u64) -> u64 {
    generation * 7919 % BLOCKS
}

/// Writes generations, with a flush now and then, and reads what it wrote before; all on one connection.
fn write(socket: &Path, progress: &Progress) -> Result<(), Error> {
    let mut client = Client::connect(socket, "disk")?;
    for generation in 1.. {
        if progress.stop.load(Ordering::SeqCst) {
            break;
        }
        let block = block_of(generation);
        client.write(block * BLOCK, &fill(SEED, block, generation))?;
        progress.written.store(generation, Ordering::SeqCst);
        if generation % FLUSHED == 0 {
            client.flush()?;
        }
        // A little older: written before a loss, and read behind it.
        let earlier = generation - generation.min(FLUSHED / 2);
        let bytes = client.read(block_of(earlier) * BLOCK, BLOCK as u32)?;
        if earlier > 0 {
            assert_eq!(check(&bytes, SEED, block_of(earlier)), Ok(earlier), "it was acked");
        }
    }
    client.flush()
}

/// Whether every replica is there and holds what the owner has, and none is apart.
fn all_follow(status: &Value) -> bool {
    let replicas = status["replicas"].as_array().expect("a list");
    replicas.iter().all(|replica| replica["tail"].is_null() && replica["reachable"] == true)
}

#[test]
fn a_takeover_after_the_loss_of_a_provider_is_only_latency() {
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "64M", "--owner", "a", "--durability", "geo:1"];
    nodes.run("a", &create).expect("is created");
    let remote = nodes.helio_nbd("host", &[]).expect("starts");
    let (progress, socket) = (Progress::default(), remote.socket().to_owned());
    let mut again = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&socket, &progress));
        let gets_on = |nodes: &Nodes, more: u64| {
            let target = progress.written.load(Ordering::SeqCst) + more;
            nodes.until("the writer does not get on", PATIENCE, || {
                assert!(!writer.is_finished(), "the writer ended: {}", remote.log().expect("is read"));
                progress.written.load(Ordering::SeqCst) >= target
            });
        };
        let mut owner = "a";
        for loss in 0..count("HELIO_LOSSES", 1) {
            gets_on(&nodes, 300 + loss.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 500);
            nodes.kill(owner).expect("it runs");
            let survivor = NAMES.into_iter().find(|name| *name != owner).expect("there are three");
            let report = nodes.json(survivor, &["volume", "takeover", "disk", "--json"]).expect("succeeds");
            let to = report["to"].as_str().expect("a name");
            let to = NAMES.into_iter().find(|name| *name == to).expect("one of these");
            gets_on(&nodes, 300);
            let lost = owner;
            nodes.start_node(lost).expect("starts");
            let mut rejoined = false;
            nodes.until("it is not back", PATIENCE, || {
                let Ok(status) = nodes.json(to, &["volume", "status", "disk", "--json"]) else { return false };
                let replicas = status["replicas"].as_array().expect("a list");
                let is_apart = replicas.iter().any(|replica| replica["node"] == lost && !replica["tail"].is_null());
                if is_apart && !rejoined {
                    rejoined = true;
                    let rejoin = ["volume", "rejoin", "disk", "--node", lost, "--discard-tail"];
                    nodes.run(to, &rejoin).expect("rejoins");
                }
                all_follow(&status)
            });
            again += u64::from(remote.log().expect("is read").contains("is sent what it may lack"));
            owner = to;
        }
        progress.stop.store(true, Ordering::SeqCst);
        writer.join().expect("ends").expect("its client is told of nothing");
    });
    let written = progress.written.load(Ordering::SeqCst);
    let mut expected = vec![0; BLOCKS as usize];
    (1..=written).for_each(|generation| expected[block_of(generation) as usize] = generation);
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    let found: Vec<u64> = (0..BLOCKS)
        .map(|block| {
            let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
            check(&bytes, SEED, block).unwrap_or_else(|what| panic!("{what}"))
        })
        .collect();
    assert_eq!(found, expected, "all that was acked, up to {written}");
    println!("{written} writes; {again} times a new owner lacked some");
    drop(client);
    remote.stop().expect("stops");
}

/// A volume of class `local` may lose what was flushed when it is taken over: that cannot be made up for, so it is told.
#[test]
fn a_takeover_that_lost_what_was_flushed_is_an_error_and_never_silent() {
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "64M", "--owner", "a"];
    nodes.run("a", &create).expect("is created");
    let remote = nodes.helio_nbd("host", &[]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    nodes.until("the replicas do not follow", PATIENCE, || {
        let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("succeeds");
        let replicas = status["replicas"].as_array().expect("a list").clone();
        replicas.iter().all(|replica| replica["watermark"] == status["head"])
    });
    // The others hear nothing of this.
    for name in ["b", "c"] {
        nodes.pause(name).expect("it runs");
    }
    client.write(BLOCK, &fill(SEED, 1, 2)).expect("is written");
    client.flush().expect("is flushed");
    nodes.kill("a").expect("it runs");
    for name in ["b", "c"] {
        nodes.resume(name).expect("it runs");
    }
    nodes.json("b", &["volume", "takeover", "disk", "--json"]).expect("succeeds");
    let outcome = client.read(BLOCK, BLOCK as u32);
    assert!(matches!(outcome, Err(Error::Refused(_))), "what it has flushed is gone: {outcome:?}");
    let log = remote.log().expect("is read");
    assert!(log.contains("check the file system"), "the reason is in the log: {log}");
    // Who connects anew begins with what there is.
    let mut anew = Client::connect(remote.socket(), "disk").expect("connects");
    let bytes = anew.read(BLOCK, BLOCK as u32).expect("is read");
    assert_eq!(check(&bytes, SEED, 1), Ok(0));
    anew.write(BLOCK, &fill(SEED, 1, 3)).expect("is written");
}

#[test]
fn clients_list_copy_and_are_told_what_is_wrong() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "8M", "--owner", "a"]).expect("is created");
    nodes.run("a", &["volume", "create", "other", "--size", "1M", "--owner", "a"]).expect("is created");
    let remote = nodes.helio_nbd("host", &["--export", "disk", "--export", "disk@monday"]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    assert_eq!(client.size(), 8 << 20);
    client.write(BLOCK, &fill(SEED, 1, 1)).expect("is written");
    client.write_zeroes(3 * BLOCK, 1 << 20).expect("is zeroed");
    client.trim(0, 4096).expect("is trimmed");
    client.flush().expect("is flushed");
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    client.write(BLOCK, &fill(SEED, 1, 2)).expect("is written");
    let mut kept = Client::connect(remote.socket(), "disk@monday").expect("connects");
    let content = |client: &mut Client| check(&client.read(BLOCK, BLOCK as u32).expect("is read"), SEED, 1);
    assert_eq!((content(&mut kept), content(&mut client)), (Ok(1), Ok(2)));
    assert!(matches!(kept.write(0, &fill(SEED, 0, 1)), Err(Error::Refused(_))), "a snapshot never changes");
    assert!(matches!(client.read(8 << 20, 512), Err(Error::Refused(_))), "beyond the end");
    assert!(matches!(Client::connect(remote.socket(), "other"), Err(Error::Refused(_))), "is not exported");
    assert!(matches!(Client::connect(remote.socket(), "nothing"), Err(Error::Refused(_))), "is not there");

    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", remote.socket().display());
    let listed = run(Command::new("nbdinfo").arg("--list").arg(uri(""))).expect("lists");
    assert!(listed.contains("export=\"disk\"") && listed.contains("export=\"disk@monday\""), "{listed}");
    assert!(!listed.contains("other"), "{listed}");
    let image = nodes.path().join("copy.raw");
    run(Command::new("nbdcopy").arg(uri("disk")).arg(&image)).expect("copies");
    let bytes = std::fs::read(&image).expect("is read");
    assert_eq!(check(&bytes[BLOCK as usize..2 * BLOCK as usize], SEED, 1), Ok(2));
    drop((client, kept));
    remote.stop().expect("stops");

    let refused =
        nodes.run("a", &["cluster", "client", "host", "--out", &nodes.path().join("host.helio").display().to_string()]);
    assert!(refused.expect_err("exists").to_string().contains("--force"));
}
