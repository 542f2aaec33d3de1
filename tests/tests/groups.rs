//! A group of two volumes, as a database has them: each generation is written to the log and, once that was acked, to the data. It goes
//! from provider to provider and back, and is kept as snapshots, while it is written. Nothing fails, nothing is lost, and nowhere is the
//! data ahead of its log. How long the writers wait is printed beside what one volume alone costs, not asserted: machines differ.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::Up;
use tests::ledger::Ledger;
use tests::nbd_client::{Client, Error};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
/// Blocks that are written round and round.
const HOT: u64 = 16;
const SEED: u64 = 8;
const RTT_MS: u64 = 60;

/// What the writer says of itself.
#[derive(Default)]
struct Watched {
    /// Generations that are in every volume.
    done: AtomicU64,
    /// Whether waits count.
    counts: AtomicBool,
    stop: AtomicBool,
    /// The longest wait, in microseconds.
    longest: AtomicU64,
}

/// Writes generations to `volumes` at node a, each to all of them in their order, until told to stop.
fn write(socket: &Path, volumes: &[&str], ledgers: &[Mutex<Ledger>], watched: &Watched) -> Result<(), Error> {
    let mut clients = volumes.iter().map(|volume| Client::connect(socket, volume)).collect::<Result<Vec<_>, _>>()?;
    let mut last = Instant::now();
    while !watched.stop.load(Ordering::SeqCst) {
        for (client, ledger) in clients.iter_mut().zip(ledgers) {
            let mut ledger = ledger.lock().expect("no thread panics");
            let block = ledger.generation() % HOT;
            let generation = ledger.begin(block);
            client.write(block * BLOCK, &fill(SEED, block, generation))?;
            ledger.ack();
            let now = Instant::now();
            if watched.counts.load(Ordering::SeqCst) {
                watched.longest.fetch_max((now - last).as_micros() as u64, Ordering::SeqCst);
            }
            last = now;
        }
        watched.done.fetch_add(1, Ordering::SeqCst);
    }
    clients.iter_mut().try_for_each(Client::flush)
}

/// Waits until the writer has gone on by some generations.
fn go_on(watched: &Watched) {
    let then = watched.done.load(Ordering::SeqCst);
    while watched.done.load(Ordering::SeqCst) < then + 5 && !watched.stop.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

/// What `act` comes to, and the longest wait of the writer from its beginning until it has gone on after it.
fn during<T>(watched: &Watched, act: impl FnOnce() -> T) -> (T, Duration) {
    watched.longest.store(0, Ordering::SeqCst);
    watched.counts.store(true, Ordering::SeqCst);
    let outcome = act();
    go_on(watched);
    watched.counts.store(false, Ordering::SeqCst);
    (outcome, Duration::from_micros(watched.longest.load(Ordering::SeqCst)))
}

/// Does `act` while `volumes` are written. Then everything that was acked must be there, at every node.
fn under_writers(up: &Up, volumes: &[&str], act: impl FnOnce(&Watched)) {
    let (socket, watched) = (up.socket("a"), Watched::default());
    let ledgers: Vec<Mutex<Ledger>> = volumes.iter().map(|_| Mutex::new(Ledger::default())).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = write(&socket, volumes, &ledgers, &watched);
            // Whoever waits for it must not wait for ever.
            watched.stop.store(true, Ordering::SeqCst);
            written
        });
        go_on(&watched);
        act(&watched);
        watched.stop.store(true, Ordering::SeqCst);
        writer.join().expect("ends").expect("the writer's clients see no error");
    });
    for (volume, ledger) in volumes.iter().zip(&ledgers) {
        for node in ["a", "b", "c"] {
            let found = generations(up, node, volume);
            let mut ledger = ledger.lock().expect("no thread panics");
            ledger.check(|block| Ok(found[block as usize])).expect("what was acked is there");
        }
    }
}

/// The generation of each block of `export`.
fn generations(up: &Up, node: &str, export: &str) -> Vec<u64> {
    let mut client = Client::connect(&up.socket(node), export).expect("connects");
    let generation = |block: u64| {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        check(&bytes, SEED, block).expect("is what was written")
    };
    (0..HOT).map(generation).collect()
}

fn print(what: &str, wait: Duration) {
    let round_trips = wait.as_secs_f64() * 1000.0 / RTT_MS as f64;
    println!(
        "{what}: longest wait {:.1} ms = {round_trips:.1} round trips of {RTT_MS} ms",
        wait.as_secs_f64() * 1000.0
    );
}

#[test]
fn a_group_moves_there_and_back_and_is_kept_at_one_cut_under_writers() {
    let up = Up::start(&["--rtt", &RTT_MS.to_string()]).expect("starts");
    for volume in ["wal", "data", "alone"] {
        up.run(&["volume", "create", volume, "--size", "16M", "--owner", "a"]).expect("is created");
    }
    let created = up.run(&["group", "create", "db", "data", "wal"]).expect("is created");
    assert_eq!(created.trim(), "group db has wal, data at node a");

    under_writers(&up, &["alone"], |watched| {
        for to in ["b", "a"] {
            let (_, wait) =
                during(watched, || up.json(&["volume", "migrate", "alone", "--to", to, "--json"]).expect("succeeds"));
            print(&format!("one volume to {to}"), wait);
        }
    });
    under_writers(&up, &["wal", "data"], |watched| {
        for (to, epoch) in [("b", 2), ("c", 3), ("a", 4)] {
            let migrate = || up.json(&["group", "migrate", "db", "--to", to, "--json"]).expect("succeeds");
            let (report, wait) = during(watched, migrate);
            let moved = report["volumes"].as_array().expect("has volumes");
            assert!(moved.len() == 2 && moved.iter().all(|volume| volume["epoch"] == epoch), "{report}");
            print(&format!("a group of two to {to}"), wait);
        }
        for name in ["one", "two", "three"] {
            let (report, wait) =
                during(watched, || up.json(&["group", "snapshot", &format!("db@{name}"), "--json"]).expect("succeeds"));
            assert_eq!(report["volumes"].as_array().map(Vec::len), Some(2), "{report}");
            print(&format!("a snapshot of two ({:.1} ms held)", report["held_ms"].as_f64().unwrap_or(0.0)), wait);
        }
    });

    // At every node: what the data has the log has, and no generation is missing in between.
    for name in ["one", "two", "three"] {
        for node in ["a", "b", "c"] {
            let [wal, data] = ["wal", "data"].map(|volume| {
                generations(&up, node, &format!("{volume}@{name}")).into_iter().max().expect("there are blocks")
            });
            assert!(data <= wal && wal <= data + 1, "{name} at {node}: the log is at {wal}, the data at {data}");
        }
    }
    let status = up.json(&["group", "status", "db", "--json"]).expect("succeeds");
    assert_eq!((&status["owner"], &status["advice"]), (&Value::from("a"), &Value::Null));
    assert_eq!(status["snapshots"].as_array().map(Vec::len), Some(3), "{status}");
}

#[test]
fn what_would_split_a_group_is_refused_with_what_to_do() {
    let up = Up::start(&[]).expect("starts");
    for (volume, owner) in [("data", "a"), ("wal", "a"), ("index", "b")] {
        up.run(&["volume", "create", volume, "--size", "16M", "--owner", owner]).expect("is created");
    }
    let refused = |arguments: &[&str]| format!("{:#}", up.run(arguments).expect_err("is refused"));
    let said = refused(&["group", "create", "db", "data", "wal", "index"]);
    assert!(said.contains("`helio volume migrate index --to a` first"), "{said}");
    up.run(&["group", "create", "db", "data", "wal"]).expect("is created");
    for arguments in [
        &["volume", "migrate", "wal", "--to", "c"][..],
        &["volume", "migrate", "wal", "--to", "c", "--on-write"],
        &["volume", "migrate", "wal", "--cancel"],
    ] {
        let said = refused(arguments);
        assert!(
            said.contains(
                "`helio group migrate db --to NODE` moves all of it, `helio group remove db wal` takes it out"
            ),
            "{said}"
        );
    }
    let said = refused(&["volume", "delete", "wal", "--yes"]);
    assert!(said.contains("`helio group remove db wal` first"), "{said}");
    let said = refused(&["group", "status", "nothing"]);
    assert!(said.contains("`helio group list`"), "{said}");

    up.run(&["volume", "migrate", "index", "--to", "a"]).expect("moves");
    let added = up.run(&["group", "add", "db", "index"]).expect("is added");
    assert_eq!(added.trim(), "group db has data, wal, index at node a");
    assert!(up.run(&["volume", "status", "wal"]).expect("tells").contains("it is in group db"));

    // As a virtual machine with three disks takes them along: all were flushed, and one is written.
    up.run(&["group", "migrate", "db", "--to", "b", "--on-write"]).expect("may go");
    let mut client = Client::connect(&up.socket("b"), "wal").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("it comes");
    let status = up.json(&["group", "status", "db", "--json"]).expect("succeeds");
    assert_eq!((&status["owner"], &status["on_write"]), (&Value::from("b"), &Value::Null), "{status}");

    up.run(&["node", "drain", "b", "--to", "c"]).expect("is drained");
    let status = up.json(&["group", "status", "db", "--json"]).expect("succeeds");
    assert_eq!(status["owner"], "c", "in one step: {status}");
    let epochs: Vec<_> =
        status["volumes"].as_array().expect("has volumes").iter().map(|volume| &volume["epoch"]).collect();
    assert_eq!(epochs, [&Value::from(3), &Value::from(3), &Value::from(4)]);
    up.run(&["group", "snapshot", "db@one"]).expect("is made");
    let deleted = up.run(&["group", "snapshot", "db@one", "--delete"]).expect("is deleted");
    assert_eq!(deleted.trim(), "deleted snapshot db@one of data, wal, index");
    up.run(&["group", "delete", "db"]).expect("is deleted");
    up.run(&["volume", "delete", "wal", "--yes"]).expect("is deleted");
}
