//! A cluster of separate `helio node` processes, as its operator sees it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::ledger::Ledger;
use tests::mount::{Device, Mounted};
use tests::nbd_client::{self, Client};
use tests::nodes::Nodes;
use tests::tools::{run, tool};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4000;
const SEED: u64 = 23;
const FILES: u64 = 40;
/// A write that makes no progress for this long fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes blocks at node a until told to stop; an error ends it, and is wrong unless a was killed.
fn write_blocks(socket: &Path, ledger: &Mutex<Ledger>, stop: &AtomicBool) -> Result<(), nbd_client::Error> {
    let mut client = Client::connect(socket, "disk")?;
    while !stop.load(Ordering::SeqCst) {
        let next = ledger.lock().expect("no thread panics").generation() + 1;
        let block = next * 7919 % BLOCKS;
        let generation = ledger.lock().expect("no thread panics").begin(block);
        client.write(block * BLOCK, &fill(SEED, block, generation))?;
        ledger.lock().expect("no thread panics").ack();
        if generation.is_multiple_of(64) {
            client.flush()?;
        }
    }
    Ok(())
}

fn check_blocks(nodes: &Nodes, node: &str, ledger: &mut Ledger) {
    let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
    let read = |block: u64| {
        let bytes = client.read(block * BLOCK, BLOCK as u32).map_err(|error| format!("{error:?}"))?;
        check(&bytes, SEED, block)
    };
    ledger.check(read).unwrap_or_else(|what| panic!("blocks at {node}: {what}"));
}

/// Replaces files below `point` until told to stop: written aside, synced, renamed, the directory synced.
fn write_files(point: &Path, ledger: &Mutex<Ledger>, stop: &AtomicBool) -> std::io::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let next = ledger.lock().expect("no thread panics").generation() + 1;
        let name = next * 31 % FILES;
        let generation = ledger.lock().expect("no thread panics").begin(name);
        let aside = point.join("aside");
        let mut file = File::create(&aside)?;
        file.write_all(&content(name, generation))?;
        file.sync_all()?;
        fs::rename(&aside, point.join(name.to_string()))?;
        File::open(point)?.sync_all()?;
        ledger.lock().expect("no thread panics").ack();
    }
    Ok(())
}

fn content(name: u64, generation: u64) -> Vec<u8> {
    format!("{generation} of {name}\n").repeat(1 + (generation % 3000) as usize).into_bytes()
}

fn check_files(point: &Path, ledger: &mut Ledger) {
    let read = |name: u64| {
        let Ok(bytes) = fs::read(point.join(name.to_string())) else { return Ok(0) };
        let text = String::from_utf8_lossy(&bytes);
        let generation = text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        if bytes == content(name, generation) { Ok(generation) } else { Err(format!("file {name} is not whole")) }
    };
    ledger.check(read).unwrap_or_else(|what| panic!("files: {what}"));
}

/// Replays the journal, and then the file system must be without fault.
fn check_file_system(nodes: &Nodes) {
    let device = Device::new(nodes.path(), &nodes.uri("a", "fs")).expect("is shown");
    let journal = tool("e2fsck").arg("-p").arg(device.path()).output().expect("e2fsck runs");
    // 1 is "errors corrected": the journal was replayed.
    assert!(matches!(journal.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&journal.stdout));
    run(tool("e2fsck").args(["-f", "-n"]).arg(device.path())).expect("the file system is clean");
    device.finish().expect("is taken back");
}

/// Waits until `ledger` has `more` writes than at the start.
fn progress(ledger: &Mutex<Ledger>, more: u64) {
    let generation = || ledger.lock().expect("no thread panics").generation();
    let (first, begun) = (generation(), Instant::now());
    while generation() < first + more {
        assert!(begun.elapsed() < PATIENCE, "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_node_of_three_killed_twenty_times_loses_nothing() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes.run("b", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    nodes.run("a", &["volume", "create", "fs", "--size", "64M"]).expect("is created");
    let (blocks, files) = (Mutex::new(Ledger::default()), Mutex::new(Ledger::default()));
    let mounts = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if mounts {
        let image = nodes.path().join("image");
        run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("64M")).expect("is made");
        run(Command::new("nbdcopy").arg("--flush").arg(&image).arg(nodes.uri("a", "fs"))).expect("is copied");
    } else {
        eprintln!("no file system on the volume: mounting needs root and /dev/fuse");
    }
    for life in 0..20 {
        let victim = ["a", "a", "b", "a", "c"][life % 5];
        let stop = AtomicBool::new(false);
        let mount = mounts.then(|| Mounted::new(nodes.path(), &nodes.uri("a", "fs")).expect("mounts"));
        if let Some(mount) = &mount {
            check_files(mount.point(), &mut files.lock().expect("no thread panics"));
        }
        let socket = nodes.socket("a");
        let (blocks_written, files_written) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_blocks(&socket, &blocks, &stop));
            let filer = mount.as_ref().map(|mount| scope.spawn(|| write_files(mount.point(), &files, &stop)));
            progress(&blocks, 100 + 17 * life as u64);
            if mounts {
                progress(&files, 1 + life as u64 % 3);
            }
            nodes.kill(victim).expect("it runs");
            if victim != "a" {
                progress(&blocks, 100);
            }
            stop.store(true, Ordering::SeqCst);
            (writer.join().expect("ends"), filer.map(|filer| filer.join().expect("ends")))
        });
        if victim != "a" {
            blocks_written.expect("the owner's client notices nothing");
            files_written.unwrap_or(Ok(())).expect("nor does the file system");
        }
        drop(mount);
        nodes.start_node(victim).expect("comes back by itself");
        check_blocks(&nodes, "a", &mut blocks.lock().expect("no thread panics"));
        if mounts {
            check_file_system(&nodes);
        }
    }
    check_blocks(&nodes, "c", &mut blocks.lock().expect("no thread panics"));
}

fn members(nodes: &Nodes, at: &str) -> Vec<serde_json::Value> {
    let status = nodes.run(at, &["cluster", "status", "--json"]).expect("tells");
    let status: serde_json::Value = serde_json::from_str(&status).expect("is JSON");
    status["members"].as_array().expect("is a list").clone()
}

#[test]
fn nodes_join_vote_and_may_move() {
    let mut nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    let votes = |nodes: &Nodes| members(nodes, "b").iter().filter(|member| member["voter"] == true).count();
    assert_eq!(votes(&nodes), 1, "a second vote would only be one more to lose");
    nodes.add("c").expect("a third joins");
    nodes.until("b does not know three voters", PATIENCE, || votes(&nodes) == 3);
    let reaches_all = || members(&nodes, "c").iter().all(|member| member["reachable"] == true);
    nodes.until("c does not reach the others", PATIENCE, reaches_all);

    nodes.run("c", &["volume", "create", "disk", "--size", "1M", "--owner", "a"]).expect("is created");
    let before = members(&nodes, "a");
    nodes.kill("c").expect("it runs");
    nodes.configure("c").expect("another address");
    nodes.start_node("c").expect("comes back there");
    nodes.until("c is not known where it is now", PATIENCE, || {
        let after = members(&nodes, "a");
        before[2]["address"] != after[2]["address"] && after[2]["reachable"] == true
    });
    nodes.run("a", &["volume", "migrate", "disk", "--to", "c"]).expect("it is found there");
}

#[test]
fn strangers_and_mistakes_are_turned_away_with_what_to_do() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    let token = nodes.cluster(&["token"], "a", "").expect("is printed");
    let refused = |outcome: anyhow::Result<String>, expected: &str| {
        let error = outcome.expect_err(expected).to_string();
        assert!(error.contains(expected) && !error.contains("panicked"), "{error}");
    };
    nodes.configure("b").expect("is written");
    refused(nodes.cluster(&["join"], "b", "nonsense"), "is not a join token");
    let flipped = if token.starts_with('0') { "1" } else { "0" };
    refused(nodes.cluster(&["join"], "b", &format!("{flipped}{}", &token[1..])), "the token is not valid");
    let (proof, address) = token.trim().split_once('@').expect("has an address");
    let last = if proof.ends_with('0') { "1" } else { "0" };
    let other_cluster = format!("{}{last}@{address}", &proof[..proof.len() - 1]);
    refused(nodes.cluster(&["join"], "b", &other_cluster), "is the token of its cluster?");
    refused(nodes.cluster(&["init"], "a", ""), "is in use by process");
    refused(nodes.cluster(&["token"], "b", ""), "does not hold the cluster's authority");
    assert!(nodes.start_node("b").expect_err("no member").to_string().contains("belongs to no cluster yet"));

    // Another machine with the settings of a.
    let settings = fs::read_to_string(nodes.config("a")).expect("is there");
    let twin = settings.replace("data = \"a\"", "data = \"twin\"");
    fs::write(nodes.config("twin"), twin).expect("is written");
    refused(nodes.cluster(&["join"], "twin", &token), "there is a node a already; choose another name");

    nodes.cluster(&["token", "--renew"], "a", "").expect("is made anew");
    refused(nodes.cluster(&["join"], "b", &token), "was renewed since");

    fs::write(nodes.config("b"), settings.replace("provider", "providr")).expect("is written");
    let corrupt = nodes.start_node("b").expect_err("corrupt").to_string();
    assert!(corrupt.contains("b.toml: TOML parse error at line 2") && corrupt.contains("expected one of"), "{corrupt}");

    nodes.kill("a").expect("it runs");
    refused(nodes.cluster(&["init"], "a", ""), "belongs to a cluster already, as node a");
    refused(nodes.cluster(&["join"], "a", &token), "belongs to a cluster already, as node a");
    fs::write(nodes.config("a"), settings.replace("cloud-a", "cloud-b")).expect("is written");
    let renamed = nodes.start_node("a").expect_err("another's name").to_string();
    assert!(renamed.contains("both are fixed when a node joins"), "{renamed}");
    fs::write(nodes.config("a"), settings).expect("is written");
    fs::rename(nodes.path().join("a/meta"), nodes.path().join("meta")).expect("is moved");
    let forgetful = nodes.start_node("a").expect_err("must not vote").to_string();
    assert!(forgetful.contains("has lost its metadata"), "{forgetful}");
    fs::rename(nodes.path().join("meta"), nodes.path().join("a/meta")).expect("is moved back");
    nodes.start_node("a").expect("nothing was harmed");
}

/// Two volumes leave their node while one of them is written; then the node is gone, and nobody misses it.
#[test]
fn a_node_is_drained_and_nobody_needs_it_any_more() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("starts");
    for volume in ["disk", "other"] {
        nodes.run("b", &["volume", "create", volume, "--size", "64M", "--owner", "a"]).expect("is created");
    }
    let (ledger, stop) = (Mutex::new(Ledger::default()), AtomicBool::new(false));
    let socket = nodes.socket("a");
    let wrote = |count: u64| {
        while ledger.lock().expect("no thread panics").generation() < count {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(&socket, &ledger, &stop));
        wrote(500);
        let plan: serde_json::Value = serde_json::from_str(
            &nodes.run("b", &["node", "drain", "a", "--to", "c", "--dry-run", "--json"]).expect("plans"),
        )
        .expect("is JSON");
        let steps: Vec<_> = plan.as_array().expect("steps").iter().map(|step| (&step["volume"], &step["to"])).collect();
        assert_eq!(steps.len(), 2, "{plan}");
        assert!(steps.iter().all(|(_, to)| *to == "c"), "{plan}");
        let told = nodes.run("b", &["node", "drain", "a", "--to", "c"]).expect("is drained");
        assert!(told.contains("owns nothing, and nobody needs it"), "{told}");
        let then = ledger.lock().expect("no thread panics").generation();
        wrote(then + 100);
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("no panic").expect("a client at the drained node sees no error");
    });
    let refused = nodes.run("b", &["node", "drain", "b", "--to", "b"]).expect_err("to itself").to_string();
    assert!(refused.contains("to be drained itself"), "{refused}");
    let refused = nodes.run("b", &["node", "drain", "z"]).expect_err("nobody").to_string();
    assert!(refused.contains("there is no node z; the cluster has a of "), "{refused}");
    let told = nodes.run("b", &["node", "drain", "a"]).expect("has nothing to do");
    assert!(told.contains("0 volumes to move"), "{told}");
    nodes.kill("a").expect("dies");
    check_blocks(&nodes, "c", &mut ledger.into_inner().expect("no thread panics"));
}

/// The metadata store of a node that was stopped was left as by a kill, and the next start carried its write-ahead log out again.
#[test]
fn a_node_that_is_stopped_closes_its_stores() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "1M"]).expect("is created");
    nodes.stop("a").expect("stops cleanly");
    for store in ["meta", "shard-0/map"] {
        // RocksDB's own log.
        let log = fs::read_to_string(nodes.path().join("a").join(store).join("LOG")).expect("is there");
        assert!(log.contains("Shutdown complete"), "{store} was not closed");
    }
}

/// A client at another node than its volume's owner was told ESHUTDOWN by an owner that stopped, and EIO by one that had yet to start, at every
/// restart: it had nothing to wait for. Reads, writes and flushes of a machine that was moved, and whose volume was moved on, failed like that.
#[test]
fn who_uses_a_volume_elsewhere_sees_no_error_when_its_owner_is_restarted() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "b"]).expect("is created");
    let (ledger, stop) = (Mutex::new(Ledger::default()), AtomicBool::new(false));
    let (socket, elsewhere) = (nodes.socket("b"), nodes.socket("c"));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(&socket, &ledger, &stop));
        let reader = scope.spawn(|| {
            let mut client = Client::connect(&elsewhere, "disk")?;
            let mut block = 0;
            while !stop.load(Ordering::SeqCst) {
                client.read(block * BLOCK, BLOCK as u32)?;
                block = (block + 1) % BLOCKS;
            }
            Ok::<_, nbd_client::Error>(())
        });
        progress(&ledger, 100);
        nodes.run("b", &["volume", "migrate", "disk", "--to", "a"]).expect("is handed over");
        for restart in 0..4 {
            progress(&ledger, 200);
            match restart % 2 {
                0 => nodes.stop("a").expect("stops"),
                _ => nodes.kill("a").expect("dies"),
            }
            nodes.start_node("a").expect("starts again");
        }
        progress(&ledger, 200);
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("no panic").expect("who writes at another node sees no error");
        reader.join().expect("no panic").expect("nor does who reads");
    });
    check_blocks(&nodes, "c", &mut ledger.into_inner().expect("no thread panics"));
}
