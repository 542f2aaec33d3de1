//! `kill -9` under load, again and again: whatever was acked is there, whatever was flushed or not. A few rounds here, 200 in
//! `make soak` (`HELIO_KILLS`).
//!
//! Twice: with `fio`'s NBD engine, which verifies what it knows to be complete by its saved state, and with clients of our own
//! on several connections, which keep a ledger of every ack.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::ledger::Ledger;
use tests::nbd_client::{self, Client};
use tests::nodes::Nodes;
use tests::tools::{Owned, kills};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
/// Each writer of our own has so many blocks.
const BLOCKS: u64 = 1500;
const WRITERS: u64 = 4;
/// Kills of each test, but in a soak.
const KILLS: u64 = 4;
const SEED: u64 = 41;
/// No progress for this long fails the test.
const PATIENCE: Duration = Duration::from_secs(90);

/// How many writes are acked before the kill of a round; spread, and the same in every run.
fn writes_before_kill(round: u64) -> u64 {
    200 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1500
}

/// The sequence of the newest write at the owner.
fn head(nodes: &Nodes) -> u64 {
    let json = nodes.run("a", &["volume", "status", "disk", "--json"]).expect("tells");
    let status: serde_json::Value = serde_json::from_str(&json).expect("is JSON");
    let head = status["head"].as_str().and_then(|head| head.split_once('.')).expect("EPOCH.SEQUENCE");
    head.1.parse().expect("a number")
}

/// Waits until so many more writes were made than `from`.
fn progress(nodes: &Nodes, from: u64, more: u64, mut look: impl FnMut()) {
    let begun = Instant::now();
    while head(nodes) < from + more {
        assert!(begun.elapsed() < PATIENCE, "no progress");
        look();
    }
}

/// One of several `fio`s on the volume, with a connection and a part of it of its own: with one write under way, since by its
/// saved state fio cannot tell a write that is late among many from one that was lost.
struct Fio {
    number: u64,
    directory: PathBuf,
    uri: String,
}

impl Fio {
    fn new(nodes: &Nodes, number: u64) -> Fio {
        let directory = nodes.path().join(format!("fio-{number}"));
        std::fs::create_dir(&directory).expect("is made");
        Fio { number, directory, uri: nodes.uri("a", "disk") }
    }

    fn command(&self, round: u64, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new("fio");
        command
            .current_dir(&self.directory)
            .args(["--name=kill", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=64"])
            .args(["--size=12M", "--verify=crc32c", "--verify_fatal=1", "--output-format=json"])
            .arg(format!("--offset={}M", 12 * self.number))
            .arg(format!("--uri={}", self.uri))
            .arg(format!("--randseed={}", round + 1))
            .arg(format!("--output={output}"))
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn write(&self, round: u64) -> Owned {
        let mut command = self.command(round, "write.json", &["--do_verify=0", "--verify_state_save=1"]);
        Owned::start(&mut command, "fio").expect("starts")
    }

    /// Verifies what the saved state says is complete; returns how much that was, or `None` when there is no state: the
    /// node was killed before this one had begun.
    fn verify(&self, round: u64) -> Option<u64> {
        let entries = std::fs::read_dir(&self.directory).expect("lists").map(|entry| entry.expect("lists").path());
        let state = entries.into_iter().find(|path| path.to_string_lossy().ends_with("-verify.state"))?;
        let verified = self.command(round, "read.json", &["--verify_only", "--verify_state_load=1"]).status();
        let said = std::fs::read_to_string(self.directory.join("read.json")).unwrap_or_default();
        assert!(verified.expect("fio runs").success(), "round {round}: an acked write is lost or altered: {said}");
        let (written, read) = (self.operations("write.json", "write"), self.operations("read.json", "read"));
        // The last one may have been under way.
        assert!(read + 1 >= written, "round {round}: fio verified {read} of {written} writes");
        std::fs::remove_file(state).expect("is removed");
        Some(read)
    }

    /// How many operations of a kind were made.
    fn operations(&self, output: &str, kind: &str) -> u64 {
        let text = std::fs::read_to_string(self.directory.join(output)).expect("fio has ended");
        // What it says of errors stands before and behind.
        let json = text.find('{').zip(text.rfind('}')).map_or("", |(first, last)| &text[first..=last]);
        let report: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"));
        report["jobs"][0][kind]["total_ios"].as_u64().expect("a number")
    }
}

#[test]
fn what_fio_was_told_is_written_is_there_after_every_kill() {
    let engines = Command::new("fio").arg("--enghelp").output().expect("fio runs: `make tools` installs it");
    if !String::from_utf8_lossy(&engines.stdout).lines().any(|line| line.trim() == "nbd") {
        return eprintln!("skipped: this fio has no NBD engine; our own client does the same in the other test");
    }
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "48M"]).expect("is created");
    let fios: Vec<Fio> = (0..4).map(|number| Fio::new(&nodes, number)).collect();
    let mut verified = 0;
    for round in 0..kills(KILLS) {
        let from = head(&nodes);
        let mut writing: Vec<Owned> = fios.iter().map(|fio| fio.write(round)).collect();
        progress(&nodes, from, writes_before_kill(round), || {
            let mut ended = writing.iter_mut().filter_map(|fio| fio.ended().expect("tells"));
            assert!(ended.next().is_none(), "round {round}: fio ended before the node");
        });
        nodes.kill("a").expect("it runs");
        for fio in &mut writing {
            assert!(!fio.wait(PATIENCE).expect("fio notices"), "round {round}: it was not through");
        }
        nodes.start_node("a").expect("comes back by itself");
        let of_each: Vec<u64> = fios.iter().filter_map(|fio| fio.verify(round)).collect();
        assert!(!of_each.is_empty(), "round {round}: no fio saved its state");
        verified += of_each.iter().sum::<u64>();
    }
    println!("{} kills, {verified} acked writes verified by fio", kills(KILLS));
}

/// One writer with its own blocks of the volume: writes, now and then a FLUSH, until told to stop.
fn write_blocks(
    socket: &Path,
    writer: u64,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
) -> Result<(), nbd_client::Error> {
    let mut client = Client::connect(socket, "disk")?;
    while !stop.load(Ordering::SeqCst) {
        let next = ledger.lock().expect("no thread panics").generation() + 1;
        let block = writer * BLOCKS + next * 7919 % BLOCKS;
        let generation = ledger.lock().expect("no thread panics").begin(block);
        client.write(block * BLOCK, &fill(SEED, block, generation))?;
        ledger.lock().expect("no thread panics").ack();
        if generation.is_multiple_of(50) {
            client.flush()?;
        }
    }
    Ok(())
}

#[test]
fn what_several_connections_were_told_is_written_is_there_after_every_kill() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "32M"]).expect("is created");
    let ledgers: Vec<Mutex<Ledger>> = (0..WRITERS).map(|_| Mutex::default()).collect();
    for round in 0..kills(KILLS) {
        let from = head(&nodes);
        let (stop, socket) = (AtomicBool::new(false), nodes.socket("a"));
        std::thread::scope(|scope| {
            for (writer, ledger) in (0..).zip(&ledgers) {
                let (socket, stop) = (&socket, &stop);
                scope.spawn(move || {
                    // It ends with the node.
                    let ended = write_blocks(socket, writer, ledger, stop);
                    assert!(matches!(ended, Ok(()) | Err(nbd_client::Error::Broken(_))), "{ended:?}");
                });
            }
            progress(&nodes, from, writes_before_kill(round), || {});
            nodes.kill("a").expect("it runs");
            stop.store(true, Ordering::SeqCst);
        });
        nodes.start_node("a").expect("comes back by itself");
        let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
        for ledger in &ledgers {
            let read = |block: u64| {
                let bytes = client.read(block * BLOCK, BLOCK as u32).map_err(|error| format!("{error:?}"))?;
                check(&bytes, SEED, block)
            };
            let checked = ledger.lock().expect("no thread panics").check(read);
            checked.unwrap_or_else(|what| panic!("round {round}: {what}"));
        }
    }
}
