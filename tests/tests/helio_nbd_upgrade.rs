//! `helio-nbd` replaced by newer processes under its clients: they see a pause, and neither an error nor a reconnect nor a wrong byte.
//! A tenth of the upgrades of `make soak` (`HELIO_UPGRADES`).

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client_lib::Lsn;
use tests::mount::{Device, Mounted};
use tests::nbd_client::Client;
use tests::nodes::{HelioNbd, Nodes};
use tests::tools::{kills, run, tool, upgrades};
use tests::workload::{check, fill};
use tests::writer::Writer;

const BLOCK: u64 = 4096;
const SEED: u64 = 43;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node with two volumes.
fn node() -> Nodes {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    for name in ["disk", "other"] {
        nodes.run("a", &["volume", "create", name, "--size", "64M", "--owner", "a"]).expect("is created");
    }
    nodes
}

/// How long each process has held up its clients when it was replaced, as it told.
fn pauses(remote: &HelioNbd) -> Vec<Duration> {
    let log = remote.log().expect("is read");
    let told = log.lines().filter(|line| line.contains("passed on to a new process"));
    told.map(|line| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix("pause=")).expect("tells the pause");
        let (number, unit) = word.split_at(word.find(|c: char| c.is_alphabetic() || c == 'µ').expect("has a unit"));
        let seconds = match unit {
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            other => panic!("{other} is no unit"),
        };
        Duration::from_secs_f64(number.parse::<f64>().expect("a number") * seconds)
    })
    .collect()
}

fn middle_and_longest(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[test]
fn upgrades_under_load_are_a_pause_and_nothing_else() {
    let nodes = node();
    // Through the network and through the socket of the node on the same machine.
    let mut remotes = [
        nodes.helio_nbd("host", &["--listen", "127.0.0.1:0"]).expect("starts"),
        nodes.helio_nbd_beside("a", "beside", &[]).expect("starts"),
    ];
    for remote in &mut remotes {
        let socket = remote.socket().to_owned();
        let (one, two, three) = (Writer::new(0..300, SEED), Writer::new(300..500, SEED), Writer::new(0..300, SEED));
        let mut waits = Vec::new();
        std::thread::scope(|scope| {
            let running = [
                one.start(scope, &socket, "disk"),
                two.start(scope, &socket, "disk"),
                three.start(scope, &socket, "other"),
            ];
            let gets_on = |more| {
                for writer in [&one, &two, &three] {
                    let target = writer.acked() + more;
                    nodes.until("a writer does not get on", PATIENCE, || writer.acked() >= target);
                }
            };
            gets_on(50);
            for round in 0..upgrades(10) {
                one.watch();
                remote.replace().expect("a new process takes over");
                // Spread, and the same in every run.
                gets_on(20 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 50);
                waits.push(one.longest_wait());
            }
            for writing in running {
                writing.finish().expect("its client is told of nothing");
            }
        });
        let (pauses, waits) = (middle_and_longest(pauses(remote)), middle_and_longest(waits));
        println!("{} upgrades: pauses {pauses:?}, waits of a client {waits:?} (median, longest)", upgrades(10));
        one.check(&mut Client::connect(&socket, "disk").expect("connects")).expect("every byte is right");
        two.check(&mut Client::connect(&socket, "disk").expect("connects")).expect("every byte is right");
        three.check(&mut Client::connect(&socket, "other").expect("connects")).expect("every byte is right");
        let log = remote.log().expect("is read");
        assert!(!log.contains("NBD connection broken"), "{log}");
    }
    for remote in remotes {
        remote.stop().expect("stops");
    }
}

/// Whoever comes with other options is told what is wrong, and the disks go on where they are.
#[test]
fn a_process_that_does_not_fit_or_dies_changes_nothing() {
    let mut nodes = node();
    let mut remote = nodes.helio_nbd("host", &["--export", "disk"]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    let mut refused = |arguments: &[&str], expected: &str| {
        let said = remote.replace_with(arguments).expect_err("does not fit").to_string();
        assert!(said.contains(expected), "{said}");
        client.write(BLOCK, &fill(SEED, 1, 1)).expect("goes on");
    };
    refused(&["--read-only"], "--read-only is to be the same");
    refused(&["--listen", "127.0.0.1:0"], "leave --listen out");
    let program = nodes.helio_nbd_program().expect("is there");
    let (socket, node) = (remote.socket().to_owned(), nodes.path().join("a").join("client.sock"));
    let mut other = Command::new(&program);
    other.arg("--node").arg(&node).arg("--socket").arg(&socket).arg("--replace");
    let said = run(&mut other).expect_err("another way").to_string();
    assert!(said.contains("the same --cluster or --node"), "{said}");
    let mut other = Command::new(&program);
    other.arg("--cluster").arg(nodes.path().join("host.helio")).arg("--socket").arg(&socket);
    let said = run(other.args(["--export", "other", "--replace"])).expect_err("lacks what is used").to_string();
    assert!(said.contains("\"disk\" is not exported here"), "{said}");
    let said = run(Command::new(&program).arg("--node").arg(&node).args(["--listen", "127.0.0.1:0", "--replace"]));
    assert!(said.expect_err("cannot know").to_string().contains("use --control PATH"));
    // While nobody can tell whether all is durable, nothing is passed on. Whoever is stopped while it waits for that once took over first, and
    // then stopped as it had been told, with all clients.
    nodes.pause("a").expect("it runs");
    let asked = || remote.log().expect("is read").matches("a new process wants to take over").count();
    let before = asked();
    let mut waiting = remote.begin_to_replace().expect("starts");
    nodes.until("the old process is not asked", PATIENCE, || asked() > before);
    waiting.terminate().expect("it waits");
    assert!(waiting.wait(PATIENCE).expect("ends"), "it was to stop, and has");
    let said = remote.replace_with(&[]).expect_err("cannot be flushed").to_string();
    assert!(said.contains("disk waits (") && said.contains("replace it when disk is served again"), "{said}");
    nodes.resume("a").expect("it is paused");
    client.write(2 * BLOCK, &fill(SEED, 2, 1)).expect("goes on");
    remote.replace().expect("fits");
    for block in 0..3 {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(1));
    }
    // A restart of the node, and a process that is killed, are no more than that afterwards.
    nodes.kill("a").expect("it runs");
    nodes.start_node("a").expect("starts");
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    drop(client);
    remote.stop().expect("stops");
    // Where nobody serves, it is a start like any other.
    let mut fresh = nodes.helio_nbd("host-2", &["--replace"]).expect("starts");
    let mut client = Client::connect(fresh.socket(), "disk").expect("connects");
    fresh.replace().expect("takes over");
    assert_eq!(check(&client.read(0, BLOCK as u32).expect("is read"), SEED, 0), Ok(2));
    drop(client);
    fresh.stop().expect("stops");
}

/// Runs fio again and again until it is told to stop: random writes of all sizes with flushes in between, all read back and
/// compared. How often it was through; what it said when it failed.
fn fio(uri: &str, directory: &Path, stop: &AtomicBool) -> Result<u64, String> {
    for run in 1.. {
        let job = Command::new("fio")
            .args(["--name=upgrade", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0"])
            .args(["--blockalign=512", "--size=48M", "--iodepth=16", "--fsync=50", "--thread", "--verify_backlog=200"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"])
            .arg(format!("--randseed={run}"))
            .arg(format!("--uri={uri}"))
            .current_dir(directory)
            .output()
            .expect("fio runs: `make tools` installs it");
        if !job.status.success() {
            return Err(format!("{}{}", String::from_utf8_lossy(&job.stdout), String::from_utf8_lossy(&job.stderr)));
        }
        if stop.load(Ordering::SeqCst) {
            return Ok(run);
        }
    }
    unreachable!("it counts for ever")
}

/// The number of the volume's newest write.
fn head(nodes: &Nodes, name: &str) -> Option<u64> {
    let status = nodes.json(name, &["volume", "status", "disk", "--json"]).ok()?;
    status["head"].as_str()?.parse::<Lsn>().ok().map(|lsn| lsn.sequence)
}

/// Everything that may happen to a disk, one after the other and again, while fio verifies it.
#[test]
fn fio_verifies_over_kills_handovers_and_upgrades() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let engines = Command::new("fio").arg("--enghelp").output().expect("fio runs: `make tools` installs it");
    if !String::from_utf8_lossy(&engines.stdout).contains("nbd") {
        return eprintln!("skipped: this fio has no NBD engine");
    }
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut remote = nodes.helio_nbd("host", &["--export", "disk"]).expect("starts");
    let uri = format!("nbd+unix:///disk?socket={}", remote.socket().display());
    let (stop, directory) = (AtomicBool::new(false), nodes.path().to_owned());
    let rounds = upgrades(10).div_ceil(5).max(kills(2)).min(40);
    let runs = std::thread::scope(|scope| {
        let running = scope.spawn(|| fio(&uri, &directory, &stop));
        let gets_on = |nodes: &Nodes, owner: &str| {
            let begun = head(nodes, owner);
            nodes.until("fio does not get on", PATIENCE, || {
                assert!(!running.is_finished(), "fio ended: {}", remote_log(&directory));
                head(nodes, owner) >= begun.map(|begun| begun + 100)
            });
        };
        for round in 0..rounds as usize {
            let owner = NAMES[round % NAMES.len()];
            gets_on(&nodes, owner);
            remote.replace().expect("a new process takes over");
            gets_on(&nodes, owner);
            nodes.kill(owner).expect("it runs");
            nodes.start_node(owner).expect("starts");
            // Taken over while the owner may still be looked for, and then again.
            remote.replace().expect("a new process takes over");
            gets_on(&nodes, owner);
            let next = NAMES[(round + 1) % NAMES.len()];
            nodes.run(owner, &["volume", "migrate", "disk", "--to", next]).expect("is handed over");
            remote.replace().expect("a new process takes over");
            gets_on(&nodes, next);
        }
        stop.store(true, Ordering::SeqCst);
        running.join().expect("ends").unwrap_or_else(|said| panic!("fio is told of something: {said}"))
    });
    println!("{} upgrades, {rounds} kills and handovers, {runs} runs of fio; pauses {:?}", 3 * rounds, pauses(&remote));
    remote.stop().expect("stops");
}

/// All that any `helio-nbd` in `directory` has logged, for who looks for a failure.
fn remote_log(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).expect("lists").map(|entry| entry.expect("lists").path());
    let logs = entries
        .filter(|path| path.to_string_lossy().contains("host.") && path.extension().is_some_and(|it| it == "log"));
    logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
}

#[test]
fn a_mounted_file_system_lives_through_upgrades() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return eprintln!("skipped: mounting needs root and /dev/fuse");
    }
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "fs", "--size", "256M", "--owner", "a"]).expect("is created");
    let mut remote = nodes.helio_nbd_beside("a", "beside", &[]).expect("starts");
    let uri = format!("nbd+unix:///fs?socket={}", remote.socket().display());
    let image = nodes.path().join("image");
    run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("256M")).expect("is made");
    run(Command::new("nbdcopy").arg("--flush").arg(&image).arg(&uri)).expect("is copied");
    let mounted = Mounted::new(nodes.path(), &uri).expect("is mounted");
    let content = |file: u64, version: u64| -> Vec<u8> {
        (0..64).flat_map(|block| fill(SEED, file * 64 + block, version)).collect()
    };
    let (stop, versions) = (AtomicBool::new(false), AtomicU64::new(0));
    let point = mounted.point();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| -> std::io::Result<()> {
            for version in 1.. {
                for file in 0..20 {
                    let path = point.join(format!("file-{file}"));
                    let mut open = std::fs::File::create(&path)?;
                    open.write_all(&content(file, version))?;
                    open.sync_all()?;
                }
                versions.store(version, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
            Ok(())
        });
        for round in 0..upgrades(10) {
            nodes.until("the file system does not get on", PATIENCE, || {
                assert!(!writing.is_finished(), "the writer ended: {}", remote.log().expect("is read"));
                versions.load(Ordering::SeqCst) > round
            });
            remote.replace().expect("a new process takes over");
        }
        stop.store(true, Ordering::SeqCst);
        writing.join().expect("ends").expect("the file system is told of nothing");
    });
    mounted.finish().expect("is unmounted");
    let device = Device::new(nodes.path(), &uri).expect("is shown");
    run(tool("e2fsck").args(["-f", "-n"]).arg(device.path())).expect("the file system is in order");
    device.finish().expect("is taken back");
    let mounted = Mounted::new(nodes.path(), &uri).expect("is mounted");
    for file in 0..20 {
        let bytes = std::fs::read(mounted.point().join(format!("file-{file}"))).expect("is read");
        assert!(bytes == content(file, versions.load(Ordering::SeqCst)), "file {file}");
    }
    mounted.finish().expect("is unmounted");
    remote.stop().expect("stops");
}
