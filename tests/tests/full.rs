//! A store whose file system is full, on two kinds of it: writes are refused, and nothing else; with space they go on.
//!
//! The metadata of the nodes are elsewhere, so what is seen here is the store's. That a node with everything on one full disk
//! goes on as well is in `limits.rs`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::nbd_client::{Client, ENOSPC, Error};
use tests::nodes::Nodes;
use tests::tools::{run, tool};
use tests::workload::{check, fill};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;
/// What something else takes of the file system at first: enough for the block map to be opened anew when it is gone.
const BALLAST: u64 = 110 * MIB;
/// The file system, with the 64 MiB that no segment takes.
const SIZE: u64 = 364 * MIB;
/// Each write covers so many blocks.
const CHUNK: u64 = 64 * 1024;
const SEED: u64 = 11;

/// A small file system; unmounted when dropped.
struct Small {
    root: tempfile::TempDir,
}

impl Small {
    fn new(kind: &str) -> Small {
        let small = Small { root: tempfile::tempdir().expect("a directory") };
        let image = small.root.path().join("image");
        fs::create_dir(small.point()).expect("is made");
        let mut mount = Command::new("mount");
        if kind == "tmpfs" {
            mount.args(["-t", "tmpfs", "-o", &format!("size={SIZE}"), "tmpfs"]);
        } else {
            let size = format!("{}M", SIZE / MIB);
            run(tool("mke2fs").args(["-q", "-t", kind, "-m", "0"]).arg(&image).arg(size)).expect("is made");
            mount.args(["-o", "loop"]).arg(&image);
        }
        run(mount.arg(small.point())).expect("mounts");
        fs::write(small.ballast(), vec![1; BALLAST as usize]).expect("there is room for it");
        small
    }

    fn point(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    fn ballast(&self) -> PathBuf {
        self.point().join("ballast")
    }

    /// Something else takes whatever room is left, to the last block; it goes with the file system.
    fn take_the_rest(&self) {
        let mut file = fs::File::create(self.point().join("rest")).expect("is made");
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![2; size]).is_ok() {}
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.point()).status();
    }
}

fn json(nodes: &Nodes, arguments: &[&str]) -> Value {
    nodes.json("b", &[arguments, &["--json"]].concat()).expect("tells")
}

fn chunk(number: u64, generation: u64) -> Vec<u8> {
    let blocks = CHUNK / 4096;
    (0..blocks).flat_map(|block| fill(SEED, number * blocks + block, generation)).collect()
}

fn write(client: &mut Client, number: u64, generation: u64) -> Result<(), Error> {
    client.write(number * CHUNK, &chunk(number, generation))
}

/// Writes chunks from `first` on until there is no room; returns which was refused.
fn fill_up(client: &mut Client, first: u64) -> u64 {
    for number in first.. {
        match write(client, number, 1) {
            Ok(()) => assert!(number * CHUNK < 2 * SIZE, "more than fits is not there"),
            Err(error) => {
                assert!(matches!(error, Error::Refused(ENOSPC)), "chunk {number}: {error:?}");
                return number;
            }
        }
    }
    unreachable!("it ends when the store is full");
}

/// Writes a chunk as soon as there is room.
fn write_when_there_is_room(client: &mut Client, number: u64, generation: u64) {
    let begun = Instant::now();
    while let Err(error) = write(client, number, generation) {
        assert!(matches!(error, Error::Refused(ENOSPC)), "{error:?}");
        assert!(begun.elapsed() < PATIENCE, "it does not go on");
        std::thread::yield_now();
    }
}

fn verify(client: &mut Client, number: u64, generation: u64) {
    let bytes = client.read(number * CHUNK, CHUNK as u32).unwrap_or_else(|error| panic!("chunk {number}: {error:?}"));
    for (index, block) in bytes.chunks(4096).enumerate() {
        let at = number * (CHUNK / 4096) + index as u64;
        assert_eq!(check(block, SEED, at), Ok(generation), "block {at} is not what was written");
    }
}

fn goes_on_around_a_full_store(kind: &str) {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a small file system of its own needs root to be mounted");
    }
    let small = Small::new(kind);
    let mut nodes = Nodes::none().expect("a directory");
    let store = format!("directories = [\"{}\"]\n", small.point().join("store").display());
    nodes.add_with("a", &store).expect("a node on the small file system starts");
    nodes.add("b").expect("another joins");
    // b follows the one that moves; the others are a's alone.
    nodes.run("b", &["volume", "create", "disk", "--size", "1G", "--owner", "a"]).expect("is created");
    for volume in ["victim", "other"] {
        let alone = ["volume", "create", volume, "--size", "1G", "--owner", "a", "--replicas", "a"];
        nodes.run("b", &alone).expect("is created");
    }
    let mut moved = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    (0..32).for_each(|number| write(&mut moved, number, 1).expect("is written"));
    let mut victim = Client::connect(&nodes.socket("a"), "victim").expect("connects");
    (0..512).for_each(|number| write(&mut victim, number, 1).expect("is written"));
    let mut other = Client::connect(&nodes.socket("a"), "other").expect("connects");
    let full = fill_up(&mut other, 0);
    assert!(full * CHUNK > 16 * MIB, "only {full} chunks fit");

    assert_eq!(json(&nodes, &["volume", "status", "other"])["is_full"], true);
    let why = nodes.run("b", &["why", "other"]).expect("tells");
    assert!(why.contains("of node a is full: writes to it fail with ENOSPC; make room"), "{why}");
    // Everything but writes works.
    [0, full / 2, full - 1].into_iter().for_each(|number| verify(&mut other, number, 1));
    other.flush().expect("what was acked can be made durable");
    other.trim(0, 64 * CHUNK as u32).expect("TRIM works");
    assert!(other.read(0, CHUNK as u32).expect("is read").iter().all(|byte| *byte == 0));
    drop(victim);
    nodes.run("b", &["volume", "delete", "victim", "--yes"]).expect("a volume can be deleted");
    nodes.run("b", &["volume", "migrate", "disk", "--to", "b"]).expect("a volume can be handed over");
    verify(&mut moved, 31, 1);
    write(&mut moved, 3, 2).expect("it is written at the other node");
    nodes.run("b", &["volume", "migrate", "disk", "--to", "a"]).expect("and come back");
    verify(&mut moved, 3, 2);
    let status = json(&nodes, &["volume", "status", "other"]);
    assert_eq!(status["fault"], Value::Null, "full is not failed");

    // Room is back: what was deleted first, then what something else took. Nobody restarts anything.
    write_when_there_is_room(&mut other, full, 1);
    let full = fill_up(&mut other, full + 1);
    // Not even the block map has room now.
    small.take_the_rest();
    other.trim(64 * CHUNK, 128 * CHUNK as u32).expect("TRIM works");
    for number in 0..64 {
        let outcome = write(&mut other, number, 2);
        assert!(matches!(outcome, Ok(()) | Err(Error::Refused(ENOSPC))), "{outcome:?}");
    }
    verify(&mut other, full - 1, 1);
    assert_eq!(json(&nodes, &["volume", "status", "other"])["fault"], Value::Null, "full is not failed");
    fs::remove_file(small.ballast()).expect("is removed");
    // That there is room is noticed when one more write has been refused.
    let more = full + BALLAST / 4 / CHUNK;
    (full..more).for_each(|number| write_when_there_is_room(&mut other, number, 1));
    assert_eq!(json(&nodes, &["volume", "status", "other"])["is_full"], false);
    let more = fill_up(&mut other, more);
    verify(&mut other, more - 1, 1);
    assert_eq!(json(&nodes, &["volume", "status", "other"])["fault"], Value::Null);

    // Full again, it stops in good order and comes back.
    drop((moved, other));
    nodes.stop("a").expect("stops cleanly");
    nodes.start_node("a").expect("starts again");
    let mut other = Client::connect(&nodes.socket("a"), "other").expect("connects");
    [full - 1, full, more - 1].into_iter().for_each(|number| verify(&mut other, number, 1));
    other.trim(64 * CHUNK, 256 * CHUNK as u32).expect("is trimmed");
    write_when_there_is_room(&mut other, 5, 3);
    verify(&mut other, 5, 3);
}

#[test]
fn a_full_tmpfs_refuses_writes_and_nothing_else_and_goes_on_with_space() {
    goes_on_around_a_full_store("tmpfs");
}

#[test]
fn a_full_ext4_refuses_writes_and_nothing_else_and_goes_on_with_space() {
    goes_on_around_a_full_store("ext4");
}
