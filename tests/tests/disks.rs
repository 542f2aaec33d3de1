//! A node with two disks, one of which fails, is lost, or is looked at: what its operator sees and does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::helio;
use tests::damage;
use tests::exposition::Exposition;
use tests::guest::{Guest, Image};
use tests::http::{self, Admin};
use tests::nbd_client::{Client, EIO, EPERM, Error};
use tests::nodes::Nodes;
use tests::tools::{Owned, run, tool, until};
use tests::workload::{check, fill};
use tests::writer::Writer;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 60;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Node a with stores in these two directories and these other settings of them, and node b.
fn two_nodes_with(nodes: &mut Nodes, first: &Path, second: &Path, settings: &str) {
    // The same capacity, so that volumes go to them in turns whatever else is on their file systems.
    let store = format!(
        "directories = [\"{}\", \"{}\"]\ncapacity_bytes = \"128MiB\"\n{settings}",
        first.display(),
        second.display()
    );
    nodes.add_with("a", &store).expect("a node with two disks starts");
    nodes.add("b").expect("another joins");
}

fn two_nodes(nodes: &mut Nodes, first: &Path, second: &Path) {
    two_nodes_with(nodes, first, second, "");
}

fn json(nodes: &Nodes, arguments: &[&str]) -> Value {
    nodes.json("b", &[arguments, &["--json"]].concat()).expect("tells")
}

/// The store at node a that has `volume`.
fn store_of(nodes: &Nodes, volume: &str) -> PathBuf {
    let space = json(nodes, &["node", "space", "--node", "a"]);
    let volumes = space["volumes"].as_array().expect("is a list");
    let found = volumes.iter().find(|found| found["volume"] == volume).unwrap_or_else(|| panic!("{volume} in {space}"));
    found["store"].as_str().expect("has a store").into()
}

/// Writes every block of `volume` at its owner, and waits until the other node has all of it.
fn write_everywhere(nodes: &Nodes, owner: &str, volume: &str, seed: u64) {
    let mut client = Client::connect(&nodes.socket(owner), volume).expect("connects");
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &fill(seed, block, 1)).expect("is written");
    }
    client.flush().expect("flushes");
    wait_for_replica(nodes, volume);
}

fn wait_for_replica(nodes: &Nodes, volume: &str) {
    let begun = Instant::now();
    loop {
        let status = json(nodes, &["volume", "status", volume]);
        if status["replicas"][0]["watermark"] == status["head"] {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the replica does not catch up: {status:#}");
        std::thread::yield_now();
    }
}

fn verify(client: &mut Client, seed: u64, generation: u64) {
    for block in 0..BLOCKS {
        let bytes = client.read(block * BLOCK, BLOCK as u32).unwrap_or_else(|error| panic!("block {block}: {error:?}"));
        assert_eq!(check(&bytes, seed, block), Ok(generation), "block {block} is not what was written");
    }
}

/// A file system of its own, which can be made to refuse writes; unmounted when dropped.
struct Disk {
    root: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let disk = Disk { root: tempfile::tempdir().expect("a directory") };
        fs::create_dir(disk.point()).expect("is made");
        run(tool("mke2fs").args(["-q", "-t", "ext4"]).arg(disk.image()).arg("400M")).expect("is made");
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.root.path().join("image")
    }

    fn point(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(self.image()).arg(self.point()))
            .expect("mounts");
    }

    /// From now on every write to it fails. `Err` says why that cannot be had here.
    fn fail_writes(&self) -> Result<(), String> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let point = self.point();
        let line = table.lines().find(|line| line.split(' ').nth(4) == point.to_str());
        let device = line.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1)).ok_or("it is not mounted")?;
        let name = device.rsplit('/').next().unwrap_or(device);
        let path = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(&path, "1\n").map_err(|error| format!("{path}: {error}"))?;
        match fs::write(self.point().join("probe"), "x") {
            Ok(()) => Err("this kernel goes on writing after an error".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// As an operator does with a disk that was at fault and is in order again.
    fn repair(&self) {
        run(Command::new("umount").arg(self.point())).expect("is unmounted");
        // 1 is "errors corrected".
        let checked = tool("e2fsck").args(["-f", "-y"]).arg(self.image()).output().expect("e2fsck runs");
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&checked.stdout));
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.point()).status();
    }
}

/// What keeps volumes where they are when their store fails.
const STAY: &str = "hand_over_when_failed = false\n";

/// Node a with a store on a disk of its own and another one, in this order and with these settings, and node b.
fn nodes_with_a_disk(settings: &str) -> (Disk, Nodes, [PathBuf; 2]) {
    let (disk, mut nodes) = (Disk::new(), Nodes::none().expect("a directory"));
    let stores = [disk.point().join("store"), nodes.path().join("second")];
    two_nodes_with(&mut nodes, &stores[0], &stores[1], settings);
    (disk, nodes, stores)
}

/// Alters every copy of these blocks in a store; returns how many there were.
fn alter(store: &Path, seed: u64, blocks: &[u64]) -> usize {
    let wanted: Vec<Vec<u8>> = blocks.iter().map(|block| fill(seed, *block, 1)).collect();
    damage::alter(store, &wanted).expect("is altered")
}

#[test]
fn a_disk_that_fails_stops_its_own_volumes_only_and_their_reads_go_on() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, [first, second]) = nodes_with_a_disk(STAY);
    for volume in ["one", "two"] {
        nodes.run("a", &["volume", "create", volume, "--size", "1M"]).expect("is created");
    }
    let (failing, healthy) = if store_of(&nodes, "one") == first { ("one", "two") } else { ("two", "one") };
    assert_eq!((store_of(&nodes, failing), store_of(&nodes, healthy)), (first.clone(), second.clone()));
    write_everywhere(&nodes, "a", failing, 1);
    write_everywhere(&nodes, "a", healthy, 2);
    // With a checkpoint, so that what is altered below is no record that a restart reads.
    nodes.stop("a").expect("stops");
    nodes.start_node("a").expect("starts");
    let mut on_failing = Client::connect(&nodes.socket("a"), failing).expect("connects");
    let mut on_healthy = Client::connect(&nodes.socket("a"), healthy).expect("connects");

    // What nobody has read yet is damaged, and then the disk takes no writes: it cannot be repaired there.
    assert!(alter(&first, 1, &[3, 4, 30]) >= 3);
    if let Err(reason) = disk.fail_writes() {
        return eprintln!("skipped: {reason}");
    }
    let refused = on_failing.write(0, &fill(1, 0, 2));
    assert!(matches!(refused, Err(Error::Refused(EIO))), "{refused:?}");
    assert!(matches!(on_failing.flush(), Err(Error::Refused(EIO))), "nothing is promised any more");
    verify(&mut on_failing, 1, 1);
    let many = on_failing.read(0, (BLOCKS * BLOCK) as u32).expect("is read");
    assert!(many == (0..BLOCKS).flat_map(|block| fill(1, block, 1)).collect::<Vec<_>>(), "a large read");
    for block in 0..BLOCKS {
        on_healthy.write(block * BLOCK, &fill(2, block, 2)).expect("the other disk goes on");
    }
    on_healthy.flush().expect("flushes");

    // The status says what is wrong, and what to do.
    let status = json(&nodes, &["volume", "status", failing]);
    assert!(status["fault"].is_string() && status["space"]["store"] == first.to_str().expect("is UTF-8"), "{status:#}");
    let said = nodes.run("b", &["volume", "status", failing]).expect("tells");
    let store = first.display().to_string();
    for expected in [
        "node a takes no writes of this volume",
        "dmesg",
        "restart node a",
        "`[store] hand_over_when_failed` is false",
        &store,
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(json(&nodes, &["volume", "status", healthy])["fault"].is_null());
    let space = json(&nodes, &["node", "space", "--node", "a"]);
    let faults: Vec<bool> =
        space["stores"].as_array().expect("is a list").iter().map(|store| store["fault"].is_string()).collect();
    assert_eq!(faults, [true, false], "{space:#}");

    // New volumes go to the disk that works.
    for volume in ["three", "four"] {
        nodes.run("a", &["volume", "create", volume, "--size", "1M"]).expect("is created");
        assert_eq!(store_of(&nodes, volume), second);
    }

    drop((on_failing, on_healthy));
    nodes.kill("a").expect("it runs");
    disk.repair();
    nodes.start_node("a").expect("comes back");
    let mut client = Client::connect(&nodes.socket("a"), failing).expect("connects");
    verify(&mut client, 1, 1);
    client.write(0, &fill(1, 0, 3)).expect("writes again");
    client.flush().expect("flushes");
    assert!(json(&nodes, &["volume", "status", failing])["fault"].is_null());
    drop(client);
    // The file system is still in use by the node.
    nodes.kill("a").expect("it runs");
}

/// The node kept its lease: what was in the store that had failed could not be taken over until it was stopped, with all that it served.
#[test]
fn volumes_of_a_disk_that_fails_are_taken_over_and_the_node_serves_its_others() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, [first, _]) = nodes_with_a_disk(STAY);
    let names = ["one", "two", "three", "four"];
    for (name, seed) in names.into_iter().zip(1..) {
        nodes.run("a", &["volume", "create", name, "--size", "1M"]).expect("is created");
        write_everywhere(&nodes, "a", name, seed);
    }
    let seed = |volume: &str| 1 + names.iter().position(|name| *name == volume).expect("is one") as u64;
    let (failing, healthy): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| store_of(&nodes, name) == first);
    let (&[asked, automatic], &[kept, _]) = (failing.as_slice(), healthy.as_slice()) else { panic!("{failing:?}") };
    nodes.run("a", &["volume", "policy", automatic, "--takeover", "auto", "--after", "1"]).expect("is set");
    let mut on_asked = Client::connect(&nodes.socket("a"), asked).expect("connects");
    let mut on_kept = Client::connect(&nodes.socket("a"), kept).expect("connects");
    on_asked.write(0, &fill(seed(asked), 0, 1)).expect("is written");
    if let Err(reason) = disk.fail_writes() {
        return eprintln!("skipped: {reason}");
    }
    for volume in [asked, automatic] {
        let mut client = Client::connect(&nodes.socket("a"), volume).expect("connects");
        let refused = client.write(BLOCK, &fill(seed(volume), 1, 1)).and_then(|()| client.flush());
        assert!(matches!(refused, Err(Error::Refused(EIO))), "{refused:?}");
    }

    // One is taken over by its policy, the other when it is asked for; until then it is read.
    until("the one with that policy is taken over", PATIENCE, || owner_of(&nodes, automatic) == "b");
    verify(&mut Client::connect(&nodes.socket("b"), automatic).expect("connects"), seed(automatic), 1);
    verify(&mut on_asked, seed(asked), 1);
    let why = nodes.run("b", &["why", asked]).expect("tells");
    assert!(why.contains("takes no writes") && why.contains(&format!("`helio volume takeover {asked}`")), "{why}");
    let taken = nodes.json("b", &["volume", "takeover", asked, "--json"]).expect("is taken over");
    assert_eq!((&taken["from"], &taken["to"]), (&Value::from("a"), &Value::from("b")));
    verify(&mut Client::connect(&nodes.socket("b"), asked).expect("connects"), seed(asked), 1);
    let refused = on_asked.read(0, BLOCK as u32);
    assert!(matches!(refused, Err(Error::Refused(EPERM))), "who used it before must connect anew: {refused:?}");
    verify(&mut Client::connect(&nodes.socket("a"), asked).expect("connects"), seed(asked), 1);
    for block in 0..BLOCKS {
        on_kept.write(block * BLOCK, &fill(seed(kept), block, 2)).expect("the other disk goes on");
    }
    on_kept.flush().expect("flushes");
    assert_eq!(owner_of(&nodes, kept), "a");

    // With a disk that works the old owner follows, or keeps what nobody else has.
    drop((on_asked, on_kept));
    nodes.kill("a").expect("it runs");
    disk.repair();
    nodes.start_node("a").expect("comes back");
    for volume in [asked, automatic] {
        until("the old owner is back", PATIENCE, || {
            let status = json(&nodes, &["volume", "status", volume]);
            let replica = &status["replicas"][0];
            replica["watermark"] == status["head"] || !replica["tail"].is_null()
        });
        verify(&mut Client::connect(&nodes.socket("a"), volume).expect("connects"), seed(volume), 1);
    }
    nodes.kill("a").expect("it runs");
}

/// A virtual machine whose disk failed had its writes refused and its file system set to read-only, and a takeover cut it off.
#[test]
fn who_uses_a_volume_whose_disk_fails_goes_on_at_a_replica_and_has_lost_nothing() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, [first, _]) = nodes_with_a_disk("");
    for (volume, seed) in ["one", "two"].into_iter().zip(1..) {
        nodes.run("a", &["volume", "create", volume, "--size", "1M"]).expect("is created");
        write_everywhere(&nodes, "a", volume, seed);
    }
    let (failing, seed, healthy) = if store_of(&nodes, "one") == first { ("one", 1, "two") } else { ("two", 2, "one") };
    let mut on_failing = Client::connect(&nodes.socket("a"), failing).expect("connects");
    let mut beside = Client::connect(&nodes.socket("a"), failing).expect("connects");
    on_failing.write(0, &fill(seed, 0, 2)).expect("is written, and not flushed");
    if let Err(reason) = disk.fail_writes() {
        return eprintln!("skipped: {reason}");
    }
    for block in 1..BLOCKS {
        on_failing.write(block * BLOCK, &fill(seed, block, 2)).expect("it waits, and is written");
    }
    on_failing.flush().expect("all of it is durable");
    verify(&mut on_failing, seed, 2);
    verify(&mut beside, seed, 2);
    beside.write(0, &fill(seed, 0, 3)).expect("writes");
    beside.write(0, &fill(seed, 0, 2)).expect("writes");
    assert_eq!((owner_of(&nodes, failing), owner_of(&nodes, healthy)), ("b".to_owned(), "a".to_owned()));

    // With a disk that works the old owner follows by itself, and may have the volume back.
    drop((on_failing, beside));
    nodes.kill("a").expect("it runs");
    disk.repair();
    nodes.start_node("a").expect("comes back");
    wait_for_replica(&nodes, failing);
    assert!(json(&nodes, &["volume", "status", failing])["replicas"][0]["tail"].is_null());
    nodes.run("b", &["volume", "migrate", failing, "--to", "a"]).expect("goes back");
    verify(&mut Client::connect(&nodes.socket("a"), failing).expect("connects"), seed, 2);
    nodes.kill("a").expect("it runs");
}

/// Nodes a, whose disk can be made to fail, b and c, and a volume of a on that disk.
fn volume_on_a_disk() -> (Disk, Nodes, &'static str) {
    let (disk, mut nodes, [first, _]) = nodes_with_a_disk("");
    nodes.add("c").expect("another joins");
    for volume in ["one", "two"] {
        nodes.run("a", &["volume", "create", volume, "--size", "64M"]).expect("is created");
    }
    let failing = if store_of(&nodes, "one") == first { "one" } else { "two" };
    (disk, nodes, failing)
}

/// Waits until the volume has another owner than a, and that one has everything.
fn wait_until_a_is_not_needed(nodes: &Nodes, volume: &str) {
    until("it is somewhere else", PATIENCE, || owner_of(nodes, volume) != "a");
    until("nobody needs the disk that failed", PATIENCE, || {
        json(nodes, &["volume", "status", volume])["source_needed"].is_null()
    });
}

/// Writes between two things that happen.
const SOME: u64 = 200;

/// What has the connections of a machine is `helio-nbd`, and of a test above the node itself.
#[test]
fn who_uses_a_volume_whose_disk_fails_through_helio_nbd_waits_and_no_more() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, failing) = volume_on_a_disk();
    let remote = nodes.helio_nbd("host", &["--export", failing]).expect("starts");
    let writer = Writer::new(0..BLOCKS, 1);
    let mut fio = Command::new("fio");
    fio.args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--offset=1M", "--size=16M"]);
    fio.args(["--iodepth=16", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    // The rate has it still write when the disk fails. With threads, ending the one child ends the job.
    fio.args(["--rate_iops=400", "--thread"]).current_dir(nodes.path());
    fio.arg(format!("--uri=nbd+unix:///{failing}?socket={}", remote.socket().display()));
    let log = nodes.path().join("fio.log");
    fio.stdout(fs::File::create(&log).expect("is made"));
    let mut fio = Owned::start(&mut fio, "fio").expect("starts");
    let skipped = std::thread::scope(|scope| {
        let mut running = Some(writer.start(scope, remote.socket(), failing));
        let mut goes_on = |what: &str| {
            let so_far = writer.acked();
            let has_ended = || running.as_ref().is_none_or(|running| running.has_ended());
            until(what, PATIENCE, || writer.acked() > so_far + SOME || has_ended());
            if has_ended() {
                panic!("the client was told: {:?}", running.take().map(|running| running.finish()));
            }
        };
        goes_on("writes at first");
        assert!(fio.ended().expect("is asked").is_none(), "it still writes");
        writer.watch();
        if let Err(reason) = disk.fail_writes() {
            return Some(reason);
        }
        goes_on("writes while the disk fails");
        println!("the longest wait for a write was {:?}", writer.longest_wait());
        wait_until_a_is_not_needed(&nodes, failing);
        // As an operator does who changes the disk.
        nodes.kill("a").expect("it runs");
        goes_on("writes while the old owner is away");
        running.take().expect("it runs").finish().expect("its client is told of nothing");
        None
    });
    if let Some(reason) = skipped {
        return eprintln!("skipped: {reason}");
    }
    assert!(fio.wait(PATIENCE).expect("it ends"), "fio found: {}", fs::read_to_string(&log).expect("is read"));
    let owner = owner_of(&nodes, failing);
    for socket in [remote.socket().to_owned(), nodes.socket(&owner)] {
        let mut client = Client::connect(&socket, failing).expect("connects");
        writer.check(&mut client).unwrap_or_else(|wrong| panic!("at {}: {wrong}", socket.display()));
    }
    remote.stop().expect("stops");
}

#[test]
fn a_guest_whose_disk_fails_under_its_volume_goes_on_and_finds_what_it_wrote() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, failing) = volume_on_a_disk();
    let remote = nodes.helio_nbd("host", &["--export", failing]).expect("starts");
    let dir = tempfile::tempdir().expect("a directory");
    let image = Image::build(dir.path()).expect("is built");
    let machine = Guest::start(dir.path(), "machine", &image, (remote.socket(), failing), None);
    let mut machine = machine.expect("starts");
    let mut writes_on = |so_far: u64| machine.until_wrote(so_far + SOME).expect("it goes on, and finds what it wrote");
    let before = writes_on(0);
    let wrote = before.last().expect("it has said").wrote;
    if let Err(reason) = disk.fail_writes() {
        return eprintln!("skipped: {reason}");
    }
    let words = writes_on(wrote);
    let longest = words[before.len()..].iter().map(|word| word.longest_ms).max();
    println!("the longest write of the guest took {} ms", longest.expect("it has said"));
    wait_until_a_is_not_needed(&nodes, failing);
    nodes.kill("a").expect("it runs");
    writes_on(words.last().expect("it has said").wrote);
}

/// The reason was in the log of the node and nowhere else.
#[test]
fn a_volume_that_cannot_be_given_away_says_why_and_goes_when_it_can() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system of its own needs root to be mounted");
    }
    let (disk, mut nodes, failing) = volume_on_a_disk();
    // The metadata keeps its majority.
    nodes.run("a", &["volume", "replica", "remove", failing, "c", "--accept-fewer"]).expect("is removed");
    let mut client = Client::connect(&nodes.socket("a"), failing).expect("connects");
    client.write(0, &fill(1, 0, 1)).expect("writes");
    client.flush().expect("flushes");
    nodes.kill("b").expect("it runs");
    if let Err(reason) = disk.fail_writes() {
        return eprintln!("skipped: {reason}");
    }
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let outcome = client.write(0, &fill(1, 0, 2)).and_then(|()| client.flush());
            (outcome, client)
        });
        let mut status = Value::Null;
        until("the reason is told", PATIENCE, || {
            status = nodes.json("c", &["volume", "status", failing, "--json"]).expect("tells");
            status["not_given_away"].is_string()
        });
        let why = status["not_given_away"].as_str().expect("is text");
        assert!(
            why.starts_with("node b does not say what it has: ") && why.ends_with("it is tried again all the time"),
            "{why}"
        );
        for command in [["volume", "status", failing].as_slice(), &["why", failing]] {
            let said = nodes.run("c", command).expect("tells");
            // It is tried again meanwhile, and b may be silent in another way by then.
            assert!(said.contains("it could not be given to a replica: node b does not say what it has: "), "{said}");
        }
        nodes.start_node("b").expect("starts");
        until("it goes to b", PATIENCE, || owner_of(&nodes, failing) == "b");
        // It may have waited too long by then: that is for the client to see.
        let (outcome, mut client) = writing.join().expect("ends");
        let expected = if outcome.is_ok() { 2 } else { 1 };
        let read = client.read(0, BLOCK as u32).expect("is read");
        let found = check(&read, 1, 0).expect("is a whole block");
        assert!(found >= expected, "{found} of {outcome:?}");
    });
    assert!(json(&nodes, &["volume", "status", failing])["not_given_away"].is_null());
    // The file system is still in use by the node.
    nodes.kill("a").expect("it runs");
}

/// Who owns a volume, by the metadata as node b has it.
fn owner_of(nodes: &Nodes, volume: &str) -> String {
    let volumes = json(nodes, &["volume", "list"]);
    let volumes = volumes.as_array().expect("is a list");
    let found = volumes.iter().find(|found| found["name"] == volume).expect("is listed");
    found["owner"].as_str().expect("has one").to_owned()
}

/// What `helio node disk` with the settings of node a says: success, or the refusal.
fn disk_command(nodes: &Nodes, verb: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(helio().expect("is built"));
    command.args(["node", "disk", verb, "--config"]).arg(nodes.config("a")).args(arguments);
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok(said),
        Some(1) => Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr))),
        other => panic!("{other:?}: {output:?}"),
    }
}

/// The node did not start at all, so its other volumes waited for a disk that was none of theirs, or were taken over as well.
#[test]
fn a_volume_whose_disk_is_missing_is_taken_over_while_its_node_serves_the_others() {
    let mut nodes = Nodes::none().expect("a directory");
    let (first, second) = (nodes.path().join("first"), nodes.path().join("second"));
    two_nodes(&mut nodes, &first, &second);
    for (name, seed) in ["one", "two"].into_iter().zip(1..) {
        nodes.run("a", &["volume", "create", name, "--size", "1M"]).expect("is created");
        write_everywhere(&nodes, "a", name, seed);
    }
    let (lost, lost_seed, kept, kept_seed) =
        if store_of(&nodes, "one") == first { ("one", 1, "two", 2) } else { ("two", 2, "one", 1) };
    nodes.kill("a").expect("it runs");
    let gone = nodes.path().join("gone");
    fs::rename(&first, &gone).expect("is taken out");
    nodes.start_node("a").expect("starts with the disk that is there");
    nodes.json("b", &["volume", "takeover", lost, "--json"]).expect("is taken over");
    let mut client = Client::connect(&nodes.socket("b"), lost).expect("connects");
    verify(&mut client, lost_seed, 1);
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &fill(lost_seed, block, 2)).expect("is written");
    }
    client.flush().expect("flushes");
    verify(&mut Client::connect(&nodes.socket("a"), kept).expect("connects"), kept_seed, 1);
    assert_eq!((owner_of(&nodes, kept), owner_of(&nodes, lost)), ("a".to_owned(), "b".to_owned()));

    // With its disk the node follows what it owned.
    nodes.kill("a").expect("it runs");
    fs::rename(&gone, &first).expect("is put back");
    nodes.start_node("a").expect("starts with both");
    wait_for_replica(&nodes, lost);
    nodes.run("b", &["volume", "migrate", lost, "--to", "a"]).expect("goes back");
    verify(&mut Client::connect(&nodes.socket("a"), lost).expect("connects"), lost_seed, 2);
}

/// Node a starts although the disk of `lost` is missing, serves `kept` and new volumes from the other one, and says what is wrong.
fn goes_on_without(nodes: &mut Nodes, second: &Path, lost: &str, kept: &str) {
    nodes.start_node("a").expect("starts with the disk that is there");
    verify(&mut Client::connect(&nodes.socket("a"), kept).expect("connects"), 7, 1);
    let missing = "is missing: is its disk mounted?";
    let error = nodes.run("b", &["volume", "status", lost]).expect_err("is not served").to_string();
    assert!(error.contains(missing) && error.contains("docs/disks.md"), "{error}");
    let space = json(nodes, &["node", "space", "--node", "a"]);
    let faults: Vec<Option<&str>> =
        space["stores"].as_array().expect("is a list").iter().map(|store| store["fault"].as_str()).collect();
    assert!(matches!(faults[..], [Some(fault), None] if fault.contains(missing)), "{space:#}");
    nodes.run("a", &["volume", "create", "new", "--size", "1M"]).expect("is created");
    assert_eq!(store_of(nodes, "new"), second);
    nodes.run("a", &["volume", "delete", "new", "--yes"]).expect("is deleted");
}

#[test]
fn a_lost_disk_is_replaced_and_nothing_is_lost_silently() {
    let mut nodes = Nodes::none().expect("a directory");
    let (first, second) = (nodes.path().join("first"), nodes.path().join("second"));
    two_nodes(&mut nodes, &first, &second);
    // Each store has one that a owns and one that it follows.
    let names = ["own-1", "own-2", "follow-1", "follow-2"];
    for name in names {
        let owner = if name.starts_with("own") { "a" } else { "b" };
        nodes.run("b", &["volume", "create", name, "--size", "1M", "--owner", owner]).expect("is created");
        write_everywhere(&nodes, owner, name, 7);
    }
    let in_first: Vec<&str> = names.into_iter().filter(|name| store_of(&nodes, name) == first).collect();
    let lost_own = *in_first.iter().find(|name| name.starts_with("own")).expect("one that a owns");
    let lost_follow = *in_first.iter().find(|name| name.starts_with("follow")).expect("one that a follows");
    let kept_own = names.into_iter().find(|name| name.starts_with("own") && *name != lost_own).expect("the other");

    // Neither the node nor one of its stores, wherever it is, may be in use.
    let refused = disk_command(&nodes, "list", &[]).expect_err("it runs");
    assert!(refused.contains("in use by process"), "{refused}");
    let looked = Command::new(helio().expect("is built")).args(["inspect", "segments"]).arg(&second).output();
    let looked = looked.expect("runs");
    assert!(String::from_utf8_lossy(&looked.stderr).contains("is in use by process"), "{looked:?}");

    nodes.kill("a").expect("it runs");
    let listed = disk_command(&nodes, "list", &[]).expect("tells");
    assert!(listed.contains(&format!("{lost_own} (owner)")) && listed.contains("here"), "{listed}");
    let refused = disk_command(&nodes, "replace", &[first.to_str().expect("is UTF-8"), "--confirm"]);
    assert!(refused.expect_err("is there").contains("is there and not lost"));

    let gone = nodes.path().join("gone");
    fs::rename(&first, &gone).expect("is taken out");
    goes_on_without(&mut nodes, &second, lost_own, kept_own);
    nodes.kill("a").expect("it runs");
    fs::rename(&gone, &first).expect("is put back");
    nodes.start_node("a").expect("starts with both");
    for own in [lost_own, kept_own] {
        verify(&mut Client::connect(&nodes.socket("a"), own).expect("connects"), 7, 1);
    }
    nodes.kill("a").expect("it runs");
    fs::rename(&first, &gone).expect("is taken out for good");
    let listed = disk_command(&nodes, "list", &[]).expect("tells");
    assert!(listed.contains("missing") && listed.contains("owner: what no replica has is lost"), "{listed}");
    let lost: Value =
        serde_json::from_str(&disk_command(&nodes, "list", &["--json"]).expect("tells")).expect("is JSON");
    let lost: Vec<&str> =
        lost["lost"].as_array().expect("is a list").iter().filter_map(|known| known["name"].as_str()).collect();
    assert_eq!(lost, in_first, "by id, which is the order of their creation");

    let list_file = nodes.path().join("a/stores.json");
    let before = fs::read(&list_file).expect("is read");
    let at = first.to_str().expect("is UTF-8");
    for (arguments, expected) in [
        (&[at][..], "add --confirm"),
        (&[at, "--confirm"], &format!("add --lose {lost_own}")),
        (&[at, "--confirm", "--lose", kept_own], "is not among those that this node owned on a lost disk"),
        (&["/nowhere", "--confirm"], "is no store of this node; its stores are"),
    ] {
        let refused = disk_command(&nodes, "replace", arguments).expect_err(expected);
        assert!(refused.contains(expected), "{arguments:?}: {refused}");
        assert_eq!(fs::read(&list_file).expect("is read"), before, "{arguments:?} changed something");
    }
    let done = disk_command(&nodes, "replace", &[at, "--confirm", "--lose", lost_own]).expect("is struck");
    assert!(done.contains("start the node"), "{done}");

    nodes.start_node("a").expect("starts with an empty store");
    wait_for_replica(&nodes, lost_follow);
    let mut kept = Client::connect(&nodes.socket("a"), kept_own).expect("connects");
    verify(&mut kept, 7, 1);
    // Never served empty, and the reason is told.
    let error = nodes.run("b", &["volume", "status", lost_own]).expect_err("is not served").to_string();
    assert!(error.contains("was given up") && error.contains("take it over"), "{error}");
    nodes.run("b", &["volume", "migrate", lost_follow, "--to", "a"]).expect("what was sent again can be owned");
    verify(&mut Client::connect(&nodes.socket("a"), lost_follow).expect("connects"), 7, 1);
    // Its owner lives, and acts for it no more: nobody waits for that one's lease.
    let begun = Instant::now();
    loop {
        let owner = nodes.run("b", &["why", lost_own]).expect("tells");
        if owner.contains("has stepped down") && owner.contains("`helio volume takeover") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not step down: {owner}");
        std::thread::yield_now();
    }
    let taken = nodes.json("b", &["volume", "takeover", lost_own, "--json"]).expect("is taken over");
    assert_eq!((&taken["from"], &taken["to"]), (&Value::from("a"), &Value::from("b")));
    verify(&mut Client::connect(&nodes.socket("b"), lost_own).expect("connects"), 7, 1);
    nodes.run("b", &["volume", "delete", lost_own, "--yes"]).expect("is deleted");

    // All that a stopped node has is looked at, also outside its data directory.
    nodes.kill("a").expect("it runs");
    let looked = Command::new(helio().expect("is built"))
        .args(["inspect", "volume", "--json"])
        .arg(nodes.path().join("a"))
        .output()
        .expect("runs");
    let shown = String::from_utf8_lossy(&looked.stdout).into_owned();
    assert!(looked.status.success() && shown.contains("first") && shown.contains("second"), "{looked:?}");
}

/// Volumes `one` and `two` of node a, written, with these replicas among b and c; the one in the store that can be taken out, and the other one.
fn volumes_in_two_stores(nodes: &mut Nodes, replicas: &str, more: &[&str]) -> (&'static str, &'static str) {
    let (first, second) = (nodes.path().join("first"), nodes.path().join("second"));
    two_nodes(nodes, &first, &second);
    nodes.add("c").expect("another joins");
    for name in ["one", "two"] {
        let create = ["volume", "create", name, "--size", "1M", "--replicas", replicas];
        nodes.run("a", &[&create, more].concat()).expect("is created");
        write_everywhere(nodes, "a", name, 1);
    }
    if store_of(nodes, "one") == first { ("one", "two") } else { ("two", "one") }
}

/// Takes the first disk of node a, which does not run, out.
fn take_out(nodes: &Nodes) {
    fs::rename(nodes.path().join("first"), nodes.path().join("gone")).expect("is taken out");
}

/// What `helio why` says at node `at`, once it says that the owner has stepped down.
fn told_of_stepping_down(nodes: &Nodes, at: &str, volume: &str) -> String {
    let mut told = String::new();
    until("it is told that the owner has stepped down", PATIENCE, || {
        // It may step down between two questions of the command, which then says that the volume is not served.
        told = nodes.run(at, &["why", volume]).unwrap_or_default();
        told.contains("has stepped down")
    });
    told
}

fn overview_of(admin: &Admin) -> Value {
    let request = format!("GET /v1/overview HTTP/1.0\r\nHost: {admin}\r\n{}\r\n\r\n", admin.header());
    let answer = http::send(&admin.address, request.as_bytes()).expect("is answered");
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{}: {error}", answer.body))
}

/// A volume that nobody served had no metric, and nothing on most screens: `node list` had the node as well, and `status` its disk's error and nothing of what comes next.
#[test]
fn a_failed_store_and_an_owner_that_has_stepped_down_are_told_on_every_screen() {
    let mut nodes = Nodes::none().expect("a directory");
    let (lost, kept) = volumes_in_two_stores(&mut nodes, "b", &[]);
    nodes.kill("a").expect("it runs");
    take_out(&nodes);
    nodes.start_node("a").expect("starts with the disk that is there");
    let why = told_of_stepping_down(&nodes, "c", lost);
    for expected in ["has been known for", "nothing is read or written", "gives the volume to node b at once"] {
        assert!(why.contains(expected), "{expected}: {why}");
    }
    assert!(!why.contains("  "), "{why}");
    let error = nodes.run("c", &["volume", "status", lost]).expect_err("is not served").to_string();
    for expected in ["is missing", "node a, has stepped down", &format!("`helio volume takeover {lost}`")] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let listed = nodes.run("c", &["node", "list"]).expect("tells");
    let store = nodes.path().join("first").display().to_string();
    assert!(
        listed.contains(&format!("store {store} of node a cannot be opened")) && listed.contains("docs/disks.md"),
        "{listed}"
    );
    let node = |name: &str| {
        let list = json(&nodes, &["node", "list"]);
        list["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == name).expect("is listed").clone()
    };
    assert_eq!(
        (&node("a")["store_faults"][0]["store"], &node("b")["store_faults"]),
        (&Value::from(store), &serde_json::json!([]))
    );

    // The dashboard and `helio top` are told the same, at any node.
    let admin = Admin::find(&nodes.path().join("c"), "c").expect("says where it is");
    let mut overview = Value::Null;
    until("the overview has it", PATIENCE, || {
        overview = overview_of(&admin);
        overview["owners"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|owner| owner["node"] == "a" && !owner["store_faults"][0].is_null())
    });
    let row = |name: &str| {
        overview["rows"].as_array().expect("a list").iter().find(|row| row["name"] == name).expect("is there")
    };
    assert_eq!(
        (&row(lost)["stepped_down"], &row(kept)["stepped_down"]),
        (&Value::from(true), &Value::from(false)),
        "{overview:#}"
    );
    assert!(
        row(lost)["waits"][0].as_str().is_some_and(|wait| wait.contains("nothing is read or written")),
        "{overview:#}"
    );
    let top = nodes.run("c", &["top", "--once"]).expect("shows");
    assert!(top.contains("STORE FAILED") && top.contains("NOT SERVED"), "{top}");

    // Of the metrics, the owner and the replica tell it, and nobody else.
    for (name, expected) in [("a", Some(1.0)), ("b", Some(1.0)), ("c", None)] {
        let admin = Admin::find(&nodes.path().join(name), name).expect("says where it is");
        let answer = http::get(&admin.address, "/metrics").expect("is answered");
        let seen = Exposition::parse(&answer.body).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(seen.get("helio_volume_stepped_down", &[("volume", lost)]), expected, "{name}");
        assert_eq!(seen.get("helio_volumes_stepped_down", &[]), Some(expected.unwrap_or(0.0)), "{name}");
        assert_eq!(seen.get("helio_volume_stepped_down", &[("volume", kept)]), None, "{name}");
    }

    // Where its only replica is away nobody can take it over.
    nodes.kill("b").expect("it runs");
    let why = told_of_stepping_down(&nodes, "c", lost);
    assert!(why.contains("no replica can take it over now") && why.contains("node b does not answer"), "{why}");
    assert!(why.contains(&format!("then `helio volume takeover {lost}` gives it to a replica")), "{why}");
    nodes.start_node("b").expect("starts");

    nodes.run("c", &["volume", "takeover", lost]).expect("is taken over");
    let answer = http::get(&admin.address, "/metrics").expect("is answered");
    let seen = Exposition::parse(&answer.body).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(seen.get("helio_volumes_stepped_down", &[]), Some(0.0));
    verify(&mut Client::connect(&nodes.socket("b"), lost).expect("connects"), 1, 1);
}

/// With `--takeover auto` the owner steps down as soon as its store has failed. Where nobody may take over then, nothing was read until somebody acted, and nobody was told what to do.
#[test]
fn what_keeps_every_replica_from_taking_over_is_told_with_what_to_do() {
    let mut nodes = Nodes::none().expect("a directory");
    let (lost, _) = volumes_in_two_stores(&mut nodes, "b,c", &["--durability", "geo:1"]);
    nodes.run("b", &["volume", "policy", lost, "--takeover", "auto", "--after", "1"]).expect("is set");
    // What was flushed is at one of two, and that one may be c.
    for name in ["a", "c"] {
        nodes.kill(name).expect("it runs");
    }
    take_out(&nodes);
    nodes.start_node("a").expect("starts with the disk that is there");
    let why = told_of_stepping_down(&nodes, "b", lost);
    for expected in [
        "no replica can take it over now",
        "class geo:1",
        "may be at node c alone",
        &format!("`helio volume takeover {lost} --behind`"),
        "tried again all the time",
    ] {
        assert!(why.contains(expected), "{expected}: {why}");
    }
    assert_eq!(owner_of(&nodes, lost), "a");
    nodes.start_node("c").expect("starts");
    until("it is taken over by itself", PATIENCE, || owner_of(&nodes, lost) != "a");
    verify(&mut Client::connect(&nodes.socket("b"), lost).expect("connects"), 1, 1);
}

/// The node followed the volumes on the disk that was replaced, and owned none, so nothing was noted. Their owner was lost before it had sent them again, in
/// its first epoch: nothing in the metadata shows that they were ever written. The node took them over, empty, and the report said that nothing was lost.
#[test]
fn a_replica_whose_disk_was_replaced_takes_nothing_over_before_something_has_come() {
    let mut nodes = Nodes::none().expect("a directory");
    let (first, second) = (nodes.path().join("first"), nodes.path().join("second"));
    two_nodes(&mut nodes, &first, &second);
    nodes.add("c").expect("another joins");
    for name in ["one", "two"] {
        let create = ["volume", "create", name, "--size", "1M", "--owner", "b", "--replicas", "a"];
        nodes.run("b", &create).expect("is created");
        write_everywhere(&nodes, "b", name, 1);
    }
    let lost = if store_of(&nodes, "one") == first { "one" } else { "two" };
    nodes.kill("a").expect("it runs");
    take_out(&nodes);
    disk_command(&nodes, "replace", &[first.to_str().expect("is UTF-8"), "--confirm"]).expect("is struck");
    nodes.kill("b").expect("it runs");
    nodes.start_node("a").expect("starts with an empty store");
    until("a takeover is refused since it would begin with nothing", PATIENCE, || {
        // It may have yet to open the volume.
        let refused = nodes.run("c", &["volume", "takeover", lost]).expect_err("nothing is there").to_string();
        refused.contains("nothing of what was written") && refused.contains("--behind")
    });
    nodes.start_node("b").expect("starts");
    assert_eq!(owner_of(&nodes, lost), "b");
    wait_for_replica(&nodes, lost);
    nodes.kill("b").expect("it runs");
    nodes.run("c", &["volume", "takeover", lost]).expect("it has everything again");
    verify(&mut Client::connect(&nodes.socket("a"), lost).expect("connects"), 1, 1);
}
