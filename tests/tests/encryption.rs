//! Encrypted volumes, as users have them: what lies on disks and in logs, who can open them, and what happens to them like to any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client_lib::ErrorKind;
use client_lib::cipher::{Kek, KeySource, VolumeKeys};
use client_lib::client::{OpenOptions, blocking};
use tests::nbd_client::{Client, Error};
use tests::nodes::Nodes;
use tests::tools::{Owned, run, tool};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const SEED: u64 = 45;
/// Blocks that are written.
const BLOCKS: u64 = 300;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every written block begins with.
const MARK: &[u8] = b"heliotst";

/// Nodes `a`, which has a directory for keys, and `others`, which have none.
fn cluster(others: &[&str]) -> Nodes {
    let mut nodes = Nodes::none().expect("a directory");
    fs::create_dir(keys(&nodes)).expect("is made");
    nodes.add_with("a", "[keys]\ndirectory = \"keys\"\n").expect("a node starts");
    others.iter().for_each(|name| nodes.add(name).expect("a node starts"));
    nodes
}

fn keys(nodes: &Nodes) -> PathBuf {
    nodes.path().join("keys")
}

/// Makes a key where `a` finds it; its file.
fn key(nodes: &Nodes, name: &str) -> String {
    generated(nodes, &keys(nodes).join(name))
}

fn generated(nodes: &Nodes, path: &Path) -> String {
    let path = path.display().to_string();
    nodes.run("a", &["volume", "key", "generate", "--out", &path]).expect("is made");
    path
}

fn create(nodes: &Nodes, name: &str, key: &str) {
    let arguments = ["volume", "create", name, "--size", "16M", "--owner", "a", "--encrypt", "--key-file", key];
    let told = nodes.run("a", &arguments).expect("is created");
    assert!(told.contains("encrypted (AES-256-XTS)"), "{told}");
}

fn write(client: &mut Client, blocks: std::ops::Range<u64>, generation: u64) {
    for block in blocks {
        client.write(block * BLOCK, &fill(SEED, block, generation)).expect("is written");
    }
    client.flush().expect("is flushed");
}

fn generation(client: &mut Client, block: u64) -> u64 {
    check(&client.read(block * BLOCK, BLOCK as u32).expect("is read"), SEED, block).expect("is a block")
}

fn connect(nodes: &Nodes, node: &str, export: &str) -> Client {
    Client::connect(&nodes.socket(node), export).expect("connects")
}

fn refused(outcome: anyhow::Result<String>, expected: &str) {
    let error = outcome.expect_err(expected).to_string();
    assert!(error.contains(expected) && !error.contains("panicked"), "{error}");
}

/// The files below `directory` that have `sought` in them.
fn found_in(directory: &Path, sought: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("is a directory").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("has one");
        if kind.is_dir() {
            found.extend(found_in(&path, sought));
        } else if kind.is_file() {
            let content = fs::read(&path).expect("is read");
            if content.windows(sought.len()).any(|window| window == sought) {
                found.push(path);
            }
        }
    }
    found
}

/// What an operator has in a file of a key.
fn kek(file: &str) -> Kek {
    Kek::parse(&fs::read(file).expect("is read")).expect("is a key")
}

/// The node's log, its metadata and what it stores have neither the volume's plaintext nor a key of it, in no form.
fn require_hidden(nodes: &Nodes, files: &[&str], keys: &VolumeKeys) {
    let opened = files.iter().find_map(|file| keys.open(&kek(file)).expect("is undamaged")).expect("one opens it");
    let mut secrets = vec![MARK.to_vec()];
    let key = opened.reveal();
    secrets.extend([key[..32].to_vec(), key[32..].to_vec()]);
    secrets.extend(files.iter().map(|file| fs::read(file).expect("is read").trim_ascii_end().to_vec()));
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes();
    secrets.push(digits(&key[..16]));
    for file in files {
        let text = fs::read_to_string(file).expect("is read");
        let bytes: Vec<u8> =
            (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("digits")).collect();
        secrets.push(bytes);
    }
    for secret in &secrets {
        for name in ["a", "b", "c"] {
            assert_eq!(found_in(&nodes.path().join(name), secret), [] as [PathBuf; 0], "{}", secret.escape_ascii());
        }
        let logs = fs::read_dir(nodes.path()).expect("is a directory").flatten().map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|kind| kind == "log" || kind == "out")) {
            let content = fs::read(&log).expect("is read");
            assert!(!content.windows(secret.len()).any(|window| window == secret), "{}", log.display());
        }
    }
}

#[test]
fn nodes_hold_ciphertext_and_only_who_has_a_key_reads_and_writes_it() {
    let mut nodes = cluster(&["b", "c"]);
    let prod = key(&nodes, "prod.key");
    create(&nodes, "disk", &prod);
    let mut local = connect(&nodes, "a", "disk");
    write(&mut local, 0..BLOCKS, 1);
    // A sector in the middle of a block, and a block that is half there.
    local.write(5 * BLOCK + 1024, &[0xa5; 512]).expect("is written");
    local.write(1000 * BLOCK + 512, &[0x5a; 512]).expect("is written");
    local.trim(7 * BLOCK, BLOCK as u32).expect("is trimmed");
    local.flush().expect("is flushed");
    assert!(matches!(local.write(512 + 100, &[1; 100]), Err(Error::Refused(22))), "half of a sector");
    let told = run(Command::new("nbdinfo").arg(nodes.uri("a", "disk"))).expect("tells");
    assert!(told.contains("encrypted (AES-256-XTS)") && told.contains("block_size_minimum: 512"), "{told}");

    // A node without a key tells what it is, and lets nobody have it.
    assert!(matches!(Client::connect(&nodes.socket("b"), "disk"), Err(Error::Refused(_))));
    let qemu =
        run(Command::new("qemu-img").args(["info", &nodes.uri("b", "disk")])).expect_err("is refused").to_string();
    assert!(qemu.contains("is encrypted, and this node has no keys") && qemu.contains("prod.key ("), "{qemu}");
    let status = nodes.json("b", &["volume", "status", "disk", "--json"]).expect("tells");
    assert_eq!(status["encryption"]["keys"][0]["name"], "prod.key", "{status}");
    assert_eq!(nodes.json("b", &["volume", "list", "--json"]).expect("tells")[0]["encrypted"], true);

    nodes.run("a", &["volume", "migrate", "disk", "--to", "b", "--mode", "synced"]).expect("is handed over");
    assert_eq!(
        (generation(&mut local, 6), generation(&mut local, 7)),
        (1, 0),
        "through the new owner, which has no key"
    );
    assert_eq!(local.read(1000 * BLOCK, 1536).expect("is read"), [[0; 512], [0x5a; 512], [0; 512]].concat());
    local.write(8 * BLOCK, &fill(SEED, 8, 2)).expect("is written at the new owner");
    drop(local);
    let image = nodes.path().join("disk.raw").display().to_string();
    refused(nodes.run("b", &["volume", "export", "disk", &image]), "this node has no keys");

    let remote = nodes.helio_nbd("host", &["--export", "disk", "--key-file", &prod]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    let mut sectors = fill(SEED, 5, 1);
    sectors[1024..1536].fill(0xa5);
    assert_eq!(client.read(5 * BLOCK, BLOCK as u32).expect("is read"), sectors);
    assert_eq!((generation(&mut client, 0), generation(&mut client, 8), generation(&mut client, 7)), (1, 2, 0));
    write(&mut client, 100..200, 3);
    let told = run(Command::new("nbdinfo").arg(format!("nbd+unix:///disk?socket={}", remote.socket().display())));
    assert!(told.expect("tells").contains("Heliotrope volume disk, encrypted"));

    let keys: VolumeKeys =
        serde_json::from_value(nodes.json("c", &["volume", "key", "list", "disk", "--json"]).expect("lists"))
            .expect("are keys");
    drop(client);
    remote.stop().expect("stops");
    // The search would find it: what is not encrypted lies there as it is.
    nodes.run("a", &["volume", "create", "open", "--size", "1M", "--owner", "a"]).expect("is created");
    let mut open = connect(&nodes, "a", "open");
    open.write(0, &b"in the clear, all of it ".repeat(171)[..4096]).expect("is written");
    open.flush().expect("is flushed");
    drop(open);
    ["a", "b", "c"].iter().for_each(|name| nodes.stop(name).expect("stops"));
    assert!(!found_in(&nodes.path().join("a"), b"in the clear").is_empty(), "what is not encrypted is found");
    require_hidden(&nodes, &[&prod], &keys);
}

#[test]
fn a_key_is_exchanged_for_another_while_the_volume_is_written() {
    let nodes = cluster(&[]);
    let (old, new) = (key(&nodes, "old.key"), generated(&nodes, &nodes.path().join("new.key")));
    create(&nodes, "disk", &old);
    refused(nodes.run("a", &["volume", "key", "remove", "disk", "old.key"]), "is the only one that opens volume disk");
    refused(
        nodes.run("a", &["volume", "key", "add", "disk", "--key-file", &new, "--new-key-file", &old]),
        "has none of the keys that open it, old.key (",
    );
    let remote = nodes.helio_nbd("host", &["--export", "disk", "--key-file", &old]).expect("starts");
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = Client::connect(remote.socket(), "disk").expect("connects");
            while !stop.load(Ordering::SeqCst) {
                let next = written.load(Ordering::SeqCst) + 1;
                write(&mut client, next % 50..next % 50 + 1, next);
                written.store(next, Ordering::SeqCst);
            }
        });
        let further = |count: u64| {
            let from = written.load(Ordering::SeqCst);
            nodes.until("the writer writes", PATIENCE, || {
                assert!(!writer.is_finished(), "the writer writes");
                written.load(Ordering::SeqCst) > from + count
            });
        };
        further(20);
        let told = nodes.run("a", &["volume", "key", "rotate", "disk", "--key-file", &old, "--new-key-file", &new]);
        assert!(told.expect("is exchanged").contains("key new.key opens volume disk instead of old.key"));
        further(20);
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("sees nothing of it");
    });
    let last = written.load(Ordering::SeqCst);
    remote.stop().expect("stops");
    let listed = nodes.run("a", &["volume", "key", "list", "disk"]).expect("lists");
    assert!(listed.contains("new.key") && !listed.contains("old.key"), "{listed}");

    // Whoever comes with the old one is told so, at the node too.
    let remote = nodes.helio_nbd("late", &["--key-file", &old]).expect("starts");
    assert!(matches!(Client::connect(remote.socket(), "disk"), Err(Error::Refused(_))));
    assert!(matches!(Client::connect(&nodes.socket("a"), "disk"), Err(Error::Refused(_))));
    fs::copy(&new, keys(&nodes).join("new.key")).expect("is copied");
    assert_eq!(generation(&mut connect(&nodes, "a", "disk"), last % 50), last, "found as soon as it is there");
    // What was sealed before is not believed under another name.
    let again = ["volume", "key", "add", "disk", "--key-file", &new, "--new-key-file", &new, "--new-key-name", "x"];
    refused(nodes.run("a", &again), "is opened by key new.key");
    let by_command = format!("cat {new}");
    let added = ["volume", "key", "add", "disk", "--key-command", &by_command, "--new-key-file", &old];
    nodes.run("a", &added).expect("is added");
    remote.stop().expect("stops");
}

/// A key service of Debian's: Tang, whose answers Clevis needs to decrypt anything.
struct Tang {
    keys: PathBuf,
    port: u16,
    running: Option<Owned>,
}

impl Tang {
    fn new(keys: PathBuf) -> Tang {
        fs::create_dir(&keys).expect("is made");
        run(Command::new("/usr/libexec/tangd-keygen").arg(&keys)).expect("makes its keys; `make tools` installs it");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Tang { keys, port: port.expect("a port is free").port(), running: None }
    }

    /// It answers one connection per process, so somebody listens for it.
    fn start(&mut self) {
        let listen = format!("TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr", self.port);
        let answer = format!("EXEC:/usr/libexec/tangd {}", self.keys.display());
        let process = Owned::start(tool("socat").args([listen, answer]), "socat; `make tools` installs it");
        self.running = Some(process.expect("starts"));
        let (port, begun) = (self.port, std::time::Instant::now());
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "tang listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        self.running = None;
    }
}

#[test]
fn a_key_that_a_service_keeps_opens_a_volume_while_the_service_answers() {
    let nodes = cluster(&[]);
    let mut tang = Tang::new(nodes.path().join("tang"));
    tang.start();
    let (plain, kept) = (nodes.path().join("prod.key"), nodes.path().join("prod.key.jwe"));
    generated(&nodes, &plain);
    let by_tang = format!(r#"{{"url": "http://127.0.0.1:{}"}}"#, tang.port);
    let encrypt = Command::new("clevis")
        .args(["encrypt", "tang", &by_tang, "-y"])
        .stdin(fs::File::open(&plain).expect("is there"))
        .output()
        .expect("clevis runs; `make tools` installs it");
    assert!(encrypt.status.success(), "{}", String::from_utf8_lossy(&encrypt.stderr));
    fs::write(&kept, encrypt.stdout).expect("is written");
    fs::remove_file(&plain).expect("is removed");

    let by_name = format!("clevis decrypt < \"{}/$HELIO_KEY_NAME.jwe\"", nodes.path().display());
    let create = ["volume", "create", "disk", "--size", "16M", "--owner", "a", "--encrypt", "--key-name", "prod.key"];
    nodes.run("a", &[&create[..], &["--key-command", &by_name]].concat()).expect("is created");
    let remote = nodes.helio_nbd("host", &["--key-command", &by_name]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    write(&mut client, 0..10, 1);

    tang.stop();
    write(&mut client, 0..5, 2);
    let late = nodes.helio_nbd("late", &["--key-command", &by_name]).expect("starts");
    assert!(matches!(Client::connect(late.socket(), "disk"), Err(Error::Refused(_))), "nobody gives the key");
    let says_why = || late.log().expect("is there").contains("the key command failed");
    nodes.until("the reason is logged", PATIENCE, says_why);

    tang.start();
    let mut client = Client::connect(late.socket(), "disk").expect("is opened as soon as the service answers");
    assert_eq!((generation(&mut client, 2), generation(&mut client, 7)), (2, 1));
    late.stop().expect("stops");
    remote.stop().expect("stops");
}

#[test]
fn snapshots_clones_sizes_and_moves_are_those_of_any_volume() {
    let nodes = cluster(&["b"]);
    let prod = key(&nodes, "prod.key");
    create(&nodes, "disk", &prod);
    let mut client = connect(&nodes, "a", "disk");
    write(&mut client, 0..10, 1);
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    write(&mut client, 0..5, 2);
    nodes.run("a", &["volume", "snapshot", "clone", "disk@monday", "copy"]).expect("is made");
    let status = nodes.json("a", &["volume", "status", "copy", "--json"]).expect("tells");
    assert_eq!(status["encryption"]["keys"][0]["name"], "prod.key");
    let mut copy = connect(&nodes, "a", "copy");
    assert_eq!((generation(&mut copy, 2), generation(&mut connect(&nodes, "a", "disk@monday"), 2)), (1, 1));
    write(&mut copy, 2..3, 7);
    assert_eq!((generation(&mut copy, 2), generation(&mut client, 2), generation(&mut client, 9)), (7, 2, 1));
    drop(copy);
    assert!(matches!(Client::connect(&nodes.socket("b"), "disk@monday"), Err(Error::Refused(_))), "b has no key");

    nodes.run("a", &["volume", "resize", "disk", "--size", "32M"]).expect("grows");
    let mut larger = connect(&nodes, "a", "disk");
    assert_eq!(larger.size(), 32 << 20);
    write(&mut larger, 8000..8001, 3);
    nodes.run("a", &["volume", "snapshot", "rollback", "disk@monday", "--discard-changes"]).expect("is rolled back");
    let mut back = connect(&nodes, "a", "disk");
    assert_eq!((generation(&mut back, 2), generation(&mut back, 9)), (1, 1));

    // As QEMU does at a destination: it looks before the move, and is the first to write after it. Here the other end has the key.
    let remote = nodes.helio_nbd_beside("b", "host", &["--export", "disk", "--key-file", &prod]).expect("starts");
    let mut there = Client::connect(remote.socket(), "disk").expect("connects");
    assert_eq!(there.read(0, 512).expect("is read"), fill(SEED, 0, 1)[..512]);
    nodes.run("a", &["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    write(&mut there, 3..4, 9);
    assert_eq!(generation(&mut back, 3), 9, "whoever is connected where it was goes on");
    nodes.run("a", &["group", "create", "both", "disk"]).expect("is made");
    nodes.run("a", &["group", "migrate", "both", "--to", "a"]).expect("is handed over");
    assert_eq!((generation(&mut there, 3), generation(&mut connect(&nodes, "a", "disk"), 3)), (9, 9));
}

#[test]
fn an_image_is_imported_into_an_encrypted_volume_and_exported_from_it() {
    let nodes = cluster(&[]);
    let prod = key(&nodes, "prod.key");
    let (image, copy) = (nodes.path().join("in.raw"), nodes.path().join("out.raw"));
    let content: Vec<u8> = (0..64).flat_map(|block| fill(SEED, block, 1)).chain(vec![0; 1 << 20]).collect();
    fs::write(&image, &content).expect("is written");
    let (image, copy) = (image.display().to_string(), copy.display().to_string());
    refused(nodes.run("a", &["volume", "import", "disk", &image, "--key-file", &prod]), "add --encrypt");
    nodes
        .run("a", &["volume", "import", "disk", &image, "--encrypt", "--key-file", &prod, "--verify"])
        .expect("is imported");
    let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("tells");
    assert_eq!(status["mapped_bytes"], 64 * BLOCK, "what is zeroes takes no space");
    nodes.run("a", &["volume", "export", "disk", &copy]).expect("is exported");
    assert!(fs::read(&copy).expect("is read") == content, "the plaintext again");
    assert_eq!(found_in(&nodes.path().join("a"), MARK), [] as [PathBuf; 0]);
}

#[test]
fn the_library_opens_what_its_key_does_and_is_not_sent_into_the_clear() {
    let nodes = cluster(&[]);
    let prod = key(&nodes, "prod.key");
    create(&nodes, "disk", &prod);
    nodes.run("a", &["volume", "create", "open", "--size", "1M", "--owner", "a"]).expect("is created");
    let cluster =
        blocking::Cluster::from_credentials(&nodes.credentials("program").expect("are issued")).expect("is one");
    let source = KeySource::File(prod.into());
    let with_key = || OpenOptions { keys: Some(source.clone()), ..OpenOptions::default() };
    let disk = cluster.open("disk", with_key()).expect("opens");
    let large: Vec<u8> = (0..700).flat_map(|block| fill(SEED, block, 4)).collect();
    disk.write(0, large.clone().into(), false).expect("is written");
    disk.flush().expect("is flushed");
    assert!(disk.read(0, large.len() as u32).expect("is read") == large);
    assert_eq!(generation(&mut connect(&nodes, "a", "disk"), 699), 4, "the node's export has the same");
    let error = |name: &str, options| cluster.open(name, options).expect_err("is refused");
    let locked = error("disk", OpenOptions::default());
    assert!(locked.kind() == ErrorKind::InvalidRequest && locked.to_string().contains("prod.key ("), "{locked}");
    assert!(error("open", with_key()).to_string().contains("is not encrypted"), "a node could say so of any");
    cluster.open("open", OpenOptions { allows_plain: true, ..with_key() }).expect("opens, as it is allowed");
    disk.close().expect("is flushed");
}

#[test]
fn a_newer_helio_nbd_takes_over_with_the_key_and_not_without() {
    let nodes = cluster(&[]);
    let prod = key(&nodes, "prod.key");
    create(&nodes, "disk", &prod);
    let mut remote = nodes.helio_nbd("host", &["--export", "disk", "--key-file", &prod]).expect("starts");
    let mut client = Client::connect(remote.socket(), "disk").expect("connects");
    write(&mut client, 0..20, 1);
    remote.replace().expect("takes over");
    assert_eq!(generation(&mut client, 19), 1);
    write(&mut client, 0..20, 2);
    let other = generated(&nodes, &nodes.path().join("other.key"));
    fs::copy(&other, &prod).expect("is exchanged");
    let error = remote.replace_with(&[]).expect_err("the new one has another key").to_string();
    assert!(error.contains("none of the keys that open it"), "{error}");
    assert_eq!(generation(&mut client, 7), 2, "the old one serves on");
}

#[test]
fn what_a_takeover_cuts_off_is_read_with_the_key() {
    let mut nodes = cluster(&["b", "c"]);
    let prod = key(&nodes, "prod.key");
    create(&nodes, "disk", &prod);
    let mut client = connect(&nodes, "a", "disk");
    write(&mut client, 0..10, 1);
    nodes.until("the replicas follow", PATIENCE, || {
        let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("tells");
        status["replicas"].as_array().expect("a list").iter().all(|replica| replica["bytes_behind"] == 0)
    });
    ["b", "c"].iter().for_each(|name| nodes.pause(name).expect("is paused"));
    client.write(3 * BLOCK, &fill(SEED, 3, 2)).expect("is written while the lease lasts");
    nodes.kill("a").expect("it runs");
    ["b", "c"].iter().for_each(|name| nodes.resume(name).expect("goes on"));
    let report = nodes.json("b", &["volume", "takeover", "disk", "--to", "b", "--json"]).expect("is taken over");
    assert_eq!(report["to"], "b", "{report}");
    let remote = nodes.helio_nbd_beside("b", "host", &["--export", "disk", "--key-file", &prod]).expect("starts");
    assert_eq!(generation(&mut Client::connect(remote.socket(), "disk").expect("connects"), 3), 1);
    nodes.start_node("a").expect("starts");
    let mut tail = String::new();
    nodes.until("the node tells what it keeps", PATIENCE, || {
        let status = nodes.json("b", &["volume", "status", "disk", "--json"]).expect("tells");
        let replicas = status["replicas"].as_array().expect("a list").clone();
        let export = replicas.iter().find_map(|replica| replica["tail"]["export"].as_str().map(str::to_owned));
        tail = export.unwrap_or_default();
        !tail.is_empty()
    });
    let mut kept = connect(&nodes, "a", &tail);
    assert_eq!((generation(&mut kept, 3), generation(&mut kept, 4)), (2, 1), "what was written last, decrypted");
}
