//! Follow the sun: SQLite on a file system whose disk goes round three providers, while nodes are killed and stopped under it.
//!
//! The machine stays where it is and reaches its disk through `helio-nbd`; what moves is the disk. After each move one node is
//! killed, or stands still for a while, in turn. No committed transaction may be lost, and both the database and the file system
//! must be whole at the end, also as another provider shows them. A few moves here, 50 in `make soak` (`HELIO_MOVES`). Needs root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tests::mount::{Device, Mounted};
use tests::nodes::Nodes;
use tests::tools::{count, run, tool};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Moves of a usual run.
const MOVES: u64 = 3;
/// Transactions between two things that happen.
const TRANSACTIONS: u64 = 15;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a node stands still: less than a lease.
const STANDSTILL: Duration = Duration::from_secs(3);

const SCHEMA: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE entry(number INTEGER PRIMARY KEY, source INTEGER, target INTEGER, note BLOB);
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i<99) INSERT INTO account SELECT i, 1000 FROM n;\n";

/// What the database has committed, for who watches it.
#[derive(Default)]
struct Bank {
    committed: AtomicU64,
    stop: AtomicBool,
}

/// Transaction `number`: a transfer between two accounts, and an entry in the book with a page of bytes.
fn transfer(number: u64) -> String {
    let (source, target) = (number % 100, number * 7 % 100);
    format!(
        "BEGIN IMMEDIATE;\n\
         UPDATE account SET balance = balance - 1 WHERE id = {source};\n\
         UPDATE account SET balance = balance + 1 WHERE id = {target};\n\
         INSERT INTO entry VALUES ({number}, {source}, {target}, randomblob(3000));\n\
         COMMIT;\nSELECT {number};\n"
    )
}

impl Bank {
    /// Commits one transaction after the other, and knows of each only what the database has said.
    fn run(&self, database: &Path) -> anyhow::Result<()> {
        let mut sqlite = Command::new("sqlite3")
            .args(["-batch", "-bail"])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(sqlite.stdout.take().expect("it is piped")).lines();
        let mut input: ChildStdin = sqlite.stdin.take().expect("it is piped");
        for number in 1.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            input.write_all(transfer(number).as_bytes())?;
            let answer = said.next().ok_or_else(|| anyhow::anyhow!("sqlite3 ended at transaction {number}"))??;
            anyhow::ensure!(answer == number.to_string(), "transaction {number}: {answer}");
            self.committed.store(number, Ordering::SeqCst);
        }
        drop(input);
        anyhow::ensure!(sqlite.wait()?.success(), "sqlite3 failed");
        Ok(())
    }

    /// Waits for some more transactions.
    fn goes_on(&self) {
        let (begun, target) = (Instant::now(), self.committed.load(Ordering::SeqCst) + TRANSACTIONS);
        while self.committed.load(Ordering::SeqCst) < target {
            assert!(begun.elapsed() < PATIENCE, "nothing is committed for {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What the database at `path` says to `query`, a value per line.
fn ask(path: &Path, query: &str) -> Vec<String> {
    let said =
        run(Command::new("sqlite3").args(["-batch", "-bail"]).arg(path).arg(query)).expect("the database answers");
    said.lines().map(str::to_owned).collect()
}

/// Every transaction up to `committed` is there, whole, and at most one more, whose answer had not come yet.
fn check(database: &Path, committed: u64) {
    assert_eq!(ask(database, "PRAGMA integrity_check"), ["ok"]);
    let found = ask(database, "SELECT count(*), max(number), sum(length(note)) FROM entry");
    let entries: Vec<u64> = found[0].split('|').map(|number| number.parse().expect("a number")).collect();
    assert!(
        entries[1] == committed || entries[1] == committed + 1,
        "{committed} are committed, {} are there",
        entries[1]
    );
    assert_eq!(entries, [entries[1], entries[1], entries[1] * 3000], "none is missing");
    assert_eq!(ask(database, "SELECT sum(balance) FROM account"), ["100000"], "half a transaction");
}

/// Something that goes wrong with a node, while the database goes on.
fn trouble(nodes: &mut Nodes, round: u64, bank: &Bank) {
    let name = NAMES[(round / 2 % 3) as usize];
    if round.is_multiple_of(2) {
        nodes.kill(name).expect("it runs");
        nodes.start_node(name).expect("starts");
    } else {
        nodes.pause(name).expect("it runs");
        std::thread::sleep(STANDSTILL);
        nodes.resume(name).expect("it runs");
    }
    bank.goes_on();
}

#[test]
fn a_database_follows_the_sun_and_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a file system needs root to be mounted");
    }
    let mut nodes = Nodes::start(&NAMES).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "256M", "--owner", "a"]).expect("is created");
    let remote = nodes.helio_nbd("host", &["--export", "disk"]).expect("starts");
    let uri = format!("nbd+unix:///disk?socket={}", remote.socket().display());
    let place = tempfile::tempdir().expect("a directory");
    let device = Device::new(place.path(), &uri).expect("is a device");
    run(tool("mkfs.ext4").args(["-q", "-E", "nodiscard"]).arg(device.path())).expect("is formatted");
    device.finish().expect("is taken back");

    let mounted = Mounted::new(place.path(), &uri).expect("is mounted");
    let database = mounted.point().join("bank.db");
    ask(&database, SCHEMA);
    let bank = Bank::default();
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bank.run(&database));
        bank.goes_on();
        for round in 0..count("HELIO_MOVES", MOVES) {
            let to = NAMES[((round + 1) % 3) as usize];
            let asked = Instant::now();
            nodes.run(to, &["volume", "migrate", "disk", "--to", to]).expect("is handed over");
            bank.goes_on();
            waits.push(asked.elapsed());
            trouble(&mut nodes, round, &bank);
        }
        bank.stop.store(true, Ordering::SeqCst);
        running.join().expect("ends").expect("the database is told of nothing");
    });
    let committed = bank.committed.into_inner();
    check(&database, committed);
    mounted.finish().expect("is unmounted");
    remote.stop().expect("stops");

    // As a replica shows it: the same file system, clean, and the same database.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let image = elsewhere.path().join("disk.raw");
    nodes.run("b", &["volume", "export", "disk", &image.display().to_string()]).expect("is exported");
    run(tool("e2fsck").args(["-f", "-n"]).arg(&image)).expect("is clean");
    println!("{committed} transactions over {} moves, each with a node killed or stopped behind it", waits.len());
    assert!(fs::metadata(&image).expect("is there").len() > 0);
}
