//! `helio inspect` on a data directory whose every byte is known: what is printed, what is refused, that nothing is
//! changed. The outputs are in `tests/golden/`; `HELIO_GOLDEN=write` writes them anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bytes::Bytes;
use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use storage_node::data_dir::DataDir;
use storage_node::io::EngineKind;
use storage_node::log::LogSettings;
use storage_node::log::segment::SEGMENT_BYTES_MIN;
use storage_node::map::store::{Change, MapStore, prepare_directory};
use storage_node::propagation::manifest::{Manifest, ManifestRun, RunContent, VersionedBlock};
use storage_node::shard::handle::ShardHandle;
use storage_node::shard::{Shard, ShardOptions};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const OWNED: VolumeId = VolumeId(7);
const FOLLOWED: VolumeId = VolumeId(9);

/// A node's directory with one shard: a volume that it owned and one that it follows, two segments, a checkpoint and
/// records after it. It is copied while the node runs, since one that stops writes a last checkpoint. One write at a
/// time, so that each is a record of its own.
struct Stored {
    root: TempDir,
}

/// The last of the segments that are made ahead while the second is in use: a spare one, and two that only the cleaner
/// may take.
const SPARE_SEGMENT: &str = "segments/00000005.seg";

impl Stored {
    async fn new() -> Stored {
        let root = tempfile::tempdir().expect("a directory");
        let running = root.path().join("running");
        let stored = Stored { root };
        let held = DataDir::open(&running).expect("is made");
        prepare_directory(&running.join("shard-0")).expect("is made");
        let mut options = ShardOptions::new(running.join("shard-0"));
        options.engine = EngineKind::Std;
        options.log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None };
        // Else drawn at random, and part of every record.
        let map = MapStore::open(&running.join("shard-0/map")).expect("opens");
        map.commit(&[Change::Log(0x0102_0304_0506_0708)]).expect("is kept");
        drop(map);
        let shard = Shard::start(options).await.expect("starts");
        let size = |bytes: u64| VolumeSize::try_from(bytes).expect("valid");
        shard.open(OWNED, size(64 << 20)).await.expect("opens");
        shard.activate(OWNED, Epoch(1)).await.expect("activates");
        write(&shard, 0, 300, 1).await;
        write(&shard, 5, 1, 2).await;
        write(&shard, 6, 1, 3).await;
        shard.zero(OWNED, 8 * BLOCK as u64, 4 * BLOCK as u64, false).await.expect("zeroes");
        for number in 0..4 {
            write(&shard, 1000 + 256 * number, 256, 10 + number as u8).await;
        }
        follow(&shard, size(1 << 30)).await;
        shard.checkpoint().await.expect("is written");
        // Past the end of the first segment.
        for number in 4..8 {
            write(&shard, 1000 + 256 * number, 256, 10 + number as u8).await;
        }
        write(&shard, 4000, 2, 40).await;
        let spare = running.join("shard-0").join(SPARE_SEGMENT);
        while std::fs::metadata(&spare).map_or(0, |found| found.len()) < SEGMENT_BYTES_MIN {
            shard.report(OWNED).await.expect("reports");
        }
        copy(&running, &stored.node());
        shard.stop().await.expect("stops");
        drop(held);
        stored
    }

    fn node(&self) -> PathBuf {
        self.root.path().join("node")
    }

    fn shard(&self) -> PathBuf {
        self.node().join("shard-0")
    }

    /// Changes a byte of a segment file.
    fn flip(&self, segment: u32, block: u64) {
        self.flip_byte(segment, block * BLOCK as u64 + 50);
    }

    fn flip_byte(&self, segment: u32, at: u64) {
        let path = self.shard().join(format!("segments/{segment:08}.seg"));
        let file = File::options().read(true).write(true).open(path).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("reads");
        file.write_all_at(&[byte[0] ^ 1], at).expect("writes");
    }

    fn inspect(&self, directory: &Path, arguments: &[&str]) -> Output {
        let (verb, rest) = arguments.split_first().expect("a verb");
        let mut helio = Command::new(env!("CARGO_BIN_EXE_helio"));
        helio.arg("inspect").arg(verb).arg(directory).args(rest).output().expect("helio runs")
    }
}

async fn write(shard: &ShardHandle, block: u64, count: usize, fill: u8) {
    let data = Bytes::from(vec![fill; count * BLOCK]);
    shard.write(OWNED, block * BLOCK as u64, data, false).await.expect("writes");
}

/// A volume of another node: three blocks known of, two of them here, one applied.
async fn follow(shard: &ShardHandle, size: VolumeSize) {
    let lsn = |sequence| Lsn::new(Epoch(4), sequence);
    let data = |fill: u8| Bytes::from(vec![fill; BLOCK]);
    let crc = |fill: u8| crc32fast::hash(&data(fill));
    let manifest = |from, to, runs| Manifest { from, to, runs, mark: None };
    let run = |start, sequence, content| ManifestRun { start: BlockIndex(start), lsn: lsn(sequence), content };
    let block =
        |block, sequence, fill| VersionedBlock { block: BlockIndex(block), lsn: lsn(sequence), data: Some(data(fill)) };
    shard.open(FOLLOWED, size).await.expect("opens");
    let first = manifest(Lsn::ZERO, lsn(1), vec![run(70_000, 1, RunContent::Data(vec![crc(50)]))]);
    shard.apply_manifest(FOLLOWED, first, true, true).await.expect("is noted");
    shard.receive(FOLLOWED, vec![block(70_000, 1, 50)]).await.expect("is stored");
    assert_eq!(shard.apply_sealed(FOLLOWED, lsn(1)).await.expect("is applied"), lsn(1));
    let second = vec![run(3, 2, RunContent::Data(vec![crc(51), crc(52)])), run(9, 3, RunContent::Zero(2))];
    shard.apply_manifest(FOLLOWED, manifest(lsn(1), lsn(3), second), false, true).await.expect("is noted");
    shard.receive(FOLLOWED, vec![block(4, 2, 52)]).await.expect("is stored");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("is made");
    for entry in std::fs::read_dir(from).expect("lists") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("is copied");
        }
    }
}

/// Every file below `directory` with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).expect("reads");
            found.insert(path, bytes);
        }
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// `said` by `helio inspect log` without the checksums of records, which are of each life of a log alone: the column of the chain, or the values of
/// two names in JSON.
fn without_checksums(said: &str) -> String {
    let is_checksum = |word: &&str| word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut masked = String::new();
    for line in said.lines() {
        let named = ["\"chain\":\"", "\"checksum\":\""].map(|name| line.find(name).map(|at| at + name.len()));
        let column = line.split_whitespace().nth(2).filter(is_checksum).and_then(|word| line.find(word));
        let mut line = line.to_owned();
        for at in named.into_iter().chain([column]).flatten() {
            line.replace_range(at..at + 8, "--------");
        }
        masked.push_str(&line);
        masked.push('\n');
    }
    masked
}

/// Compares with the golden file `name`, or writes it.
fn golden(name: &str, output: &Output) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let said = text(&output.stdout);
    let found = if name.starts_with("inspect-log") { without_checksums(&said) } else { said };
    if std::env::var("HELIO_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &found).expect("the golden file is written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(kept == found, "{name} has\n{kept}\nbut this is printed now\n{found}\n{}", text(&output.stderr));
}

#[tokio::test]
async fn golden_outputs_of_a_whole_directory() {
    let stored = Stored::new().await;
    let before = contents(&stored.node());
    let runs: [(&str, &[&str]); 10] = [
        ("inspect-segments.txt", &["segments"]),
        ("inspect-segments.json", &["segments", "--json"]),
        ("inspect-log.txt", &["log"]),
        ("inspect-log.json", &["log", "--json", "--volume", "9"]),
        ("inspect-map.txt", &["map", "7"]),
        ("inspect-map-9.txt", &["map", "9"]),
        ("inspect-map.json", &["map", "7", "--range", "4..9", "--json"]),
        ("inspect-volumes.txt", &["volume"]),
        ("inspect-volume.txt", &["volume", "9"]),
        ("inspect-volume.json", &["volume", "7", "--json"]),
    ];
    for (name, arguments) in runs {
        let output = stored.inspect(&stored.node(), arguments);
        golden(name, &output);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{name}");
        let of_shard = stored.inspect(&stored.shard(), arguments);
        assert_eq!(text(&of_shard.stdout), text(&output.stdout), "{name}: a shard's directory shows the same");
    }
    assert!(contents(&stored.node()) == before, "nothing was changed, added or taken away");
}

#[tokio::test]
async fn a_part_of_the_log_is_shown_on_request() {
    let stored = Stored::new().await;
    let all = text(&stored.inspect(&stored.node(), &["log"]).stdout);
    let rows: Vec<&str> = all.lines().skip(2).take_while(|line| !line.starts_with("the log ends")).collect();
    let from = |position: &str| {
        let shown = text(&stored.inspect(&stored.node(), &["log", "--from", position, "--limit", "2"]).stdout);
        shown.lines().skip(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let fifth = rows.iter().position(|row| row.split_whitespace().nth(1) == Some("5")).expect("a fifth record");
    assert_eq!(from("5"), rows[fifth..fifth + 2]);
    let place = rows[fifth].split_whitespace().next().expect("a place");
    assert_eq!(from(place), rows[fifth..fifth + 2]);
    let refused = stored.inspect(&stored.node(), &["log", "--from", "here"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("SEGMENT:BLOCK"), "{}", text(&refused.stderr));
}

/// The log ends before a record that is not whole; one before the checkpoint is damage, and the rest is still shown.
#[tokio::test]
async fn the_end_of_the_log_is_told_from_damage() {
    let stored = Stored::new().await;
    let all = text(&stored.inspect(&stored.node(), &["log"]).stdout);
    // A record is told of in a line for each of its entries; the first says where it lies.
    let place_of = |write: usize| {
        let place = |line: &str| {
            let (segment, block) = line.split_whitespace().next()?.split_once(':')?;
            Some((segment.parse::<u32>().ok()?, block.parse::<u64>().ok()?))
        };
        all.lines().take(write + 1).filter_map(place).last().expect("a place")
    };
    let mut writes = all.lines().enumerate().filter(|(_, line)| line.contains(" write "));
    let (first_write, _) = writes.next().expect("a write");
    let (last_write, _) = writes.last().expect("another write");
    let (segment, block) = place_of(last_write);
    // Its first data block, behind the header.
    stored.flip(segment, block + 1);
    let torn = stored.inspect(&stored.node(), &["log"]);
    assert!(torn.status.success(), "a torn end is what crashes leave: {}", text(&torn.stderr));
    let end = format!("the log ends at {segment}:{block}, before record ");
    assert!(text(&torn.stdout).contains(&end), "{}", text(&torn.stdout));
    assert!(text(&torn.stdout).contains("its data does not fit its checksums"), "{}", text(&torn.stdout));

    let (segment, block) = place_of(first_write);
    stored.flip(segment, block + 1);
    let damaged = stored.inspect(&stored.node(), &["log"]);
    assert_eq!(damaged.status.code(), Some(1));
    let said = text(&damaged.stderr);
    assert!(said.contains(&format!("damage: shard-0: segment {segment}, block {block}: ")), "{said}");
    assert!(text(&damaged.stdout).contains(&end), "what comes later is shown: {}", text(&damaged.stdout));
}

/// The records of a segment whose header was damaged were not shown, and the log seemed to end before them; recovery finds them.
#[tokio::test]
async fn what_lies_behind_a_damaged_header_is_shown() {
    let stored = Stored::new().await;
    let healthy = text(&stored.inspect(&stored.node(), &["log"]).stdout);
    [1, 2].into_iter().for_each(|segment| stored.flip_byte(segment, 17));
    let damaged = stored.inspect(&stored.node(), &["log"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert_eq!(text(&damaged.stdout), healthy);
    let said = text(&damaged.stderr);
    assert!([1, 2].iter().all(|segment| said.contains(&format!("segment {segment}: its header is damaged"))), "{said}");
}

/// A segment that is gone or short is named with what is lost, and the others are shown.
#[tokio::test]
async fn a_segment_that_is_gone_or_short_is_named_and_the_others_are_shown() {
    let stored = Stored::new().await;
    let path = |segment: u32| stored.shard().join(format!("segments/{segment:08}.seg"));
    let says = |with: &[&str]| {
        let output = stored.inspect(&stored.node(), &["segments"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        let said = text(&output.stderr);
        assert!(with.iter().all(|part| said.contains(part)), "{with:?}: {said}");
        assert!(text(&output.stdout).contains("8 MiB"), "the others are shown: {}", text(&output.stdout));
    };
    let whole = std::fs::read(path(1)).expect("reads");
    let file = || File::options().write(true).open(path(1)).expect("opens");
    let name = path(1).display().to_string();
    file().set_len(SEGMENT_BYTES_MIN / 2).expect("is cut");
    says(&["damage: shard-0: segment 1 (", &name, "has 4194304 bytes, and no segment has less than 8388608"]);
    file().set_len(0).expect("is cut");
    says(&[&name, "has 0 bytes", "segment 1: the map points to"]);
    std::fs::remove_file(path(1)).expect("is removed");
    says(&["damage: shard-0: segment 1 is not there, but the map points to ", "docs/damage.md"]);
    // Of who runs it, and no damage.
    std::os::unix::fs::symlink(path(1), path(1)).expect("is made");
    let refused = stored.inspect(&stored.node(), &["segments"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains(&name) && said.contains("symbolic links"), "{said}");
    std::fs::remove_file(path(1)).expect("is removed");
    std::fs::write(path(1), whole).expect("is written");
    assert!(stored.inspect(&stored.node(), &["segments"]).status.success());
}

/// Blocks that a clone has with its origin, and a rollback with its snapshot, were counted twice: a healthy store was damaged, by the very tool that one
/// asks before a disk is given up.
#[tokio::test]
async fn what_a_clone_or_a_rollback_shares_is_no_damage() {
    const CLONE: VolumeId = VolumeId(40);
    let stored = Stored { root: tempfile::tempdir().expect("a directory") };
    let held = DataDir::open(&stored.node()).expect("is made");
    prepare_directory(&stored.shard()).expect("is made");
    let mut options = ShardOptions::new(stored.shard());
    options.engine = EngineKind::Std;
    options.log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None };
    let shard = Shard::start(options).await.expect("starts");
    shard.open(OWNED, VolumeSize::try_from(64 << 20).expect("valid")).await.expect("opens");
    shard.activate(OWNED, Epoch(1)).await.expect("activates");
    write(&shard, 0, 300, 1).await;
    shard.create_snapshot(OWNED, SnapshotId(1)).await.expect("is made");
    write(&shard, 0, 300, 2).await;
    shard.open_clone(CLONE, OWNED, SnapshotId(1)).await.expect("is made");
    shard.roll_back(OWNED, SnapshotId(1)).await.expect("is rolled back");
    shard.report(CLONE).await.expect("is filled");
    shard.stop().await.expect("stops");
    drop(held);
    let healthy = stored.inspect(&stored.node(), &["segments"]);
    assert!(healthy.status.success(), "{}{}", text(&healthy.stdout), text(&healthy.stderr));
}

/// A record of the cleaner that is damaged hides those behind it: up to where the segment is in use is said all the same.
#[tokio::test]
async fn a_damaged_record_of_the_cleaner_is_named_with_how_far_its_segment_is_in_use() {
    const CHUNK: u64 = 64;
    const CHUNKS: u64 = 600;
    let stored = Stored { root: tempfile::tempdir().expect("a directory") };
    let running = stored.root.path().join("running");
    let held = DataDir::open(&running).expect("is made");
    prepare_directory(&running.join("shard-0")).expect("is made");
    let mut options = ShardOptions::new(running.join("shard-0"));
    options.engine = EngineKind::Std;
    let capacity_bytes = Some(24 * SEGMENT_BYTES_MIN);
    options.log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes };
    let shard = Shard::start(options).await.expect("starts");
    let size = VolumeSize::try_from(CHUNKS * CHUNK * BLOCK as u64).expect("valid");
    shard.open(OWNED, size).await.expect("opens");
    shard.activate(OWNED, Epoch(1)).await.expect("activates");
    for chunk in 0..CHUNKS {
        write(&shard, chunk * CHUNK, CHUNK as usize, 1).await;
    }
    // Half of a chunk here and there, until some of what is left of the others was moved.
    let mut number = 0u64;
    while shard.traffic().await.expect("tells").copies < 600 {
        number += 1;
        assert!(number < 100_000, "nothing is cleaned");
        write(&shard, number * 7919 % CHUNKS * CHUNK, 32, number as u8 | 1).await;
    }
    shard.checkpoint().await.expect("is written");
    copy(&running, &stored.node());
    shard.stop().await.expect("stops");
    drop(held);
    let healthy = stored.inspect(&stored.node(), &["segments"]);
    assert!(healthy.status.success(), "{}", text(&healthy.stderr));
    // By generation, the second column, the newest: the one that is being filled.
    let rows = text(&healthy.stdout);
    let number_in = |row: &str, column: usize| row.split_whitespace().nth(column)?.parse::<u32>().ok();
    let cold = rows
        .lines()
        .filter(|row| row.contains("cold"))
        .filter_map(|row| Some((number_in(row, 1)?, number_in(row, 0)?)));
    let (_, segment) = cold.max().expect("there is one");
    // The header of its first record, behind the segment's own.
    stored.flip(segment, 1);
    let damaged = stored.inspect(&stored.node(), &["segments"]);
    assert_eq!(damaged.status.code(), Some(1), "{}", text(&damaged.stdout));
    let said = text(&damaged.stderr);
    let line = format!(
        "damage: shard-0: segment {segment}, block 1: a record of the cleaner is damaged, or was cut off; the segment is in use up to block "
    );
    assert!(said.contains(&line), "{said}");
}

/// A value that does not decode is named, and all others are shown.
#[tokio::test]
async fn damage_of_one_volume_does_not_hide_the_other() {
    let stored = Stored::new().await;
    let healthy = text(&stored.inspect(&stored.node(), &["map", "9"]).stdout);
    let store = MapStore::open(&stored.shard().join("map")).expect("opens");
    store.commit(&[Change::Volume(OWNED, vec![1, 2, 3])]).expect("commits");
    drop(store);
    let volumes = stored.inspect(&stored.node(), &["volume"]);
    assert_eq!(volumes.status.code(), Some(1));
    assert!(text(&volumes.stderr).contains("record of volume 7 is damaged"), "{}", text(&volumes.stderr));
    assert!(text(&volumes.stdout).contains("9       1 GiB"), "{}", text(&volumes.stdout));
    let map = stored.inspect(&stored.node(), &["map", "7"]);
    assert_eq!(map.status.code(), Some(1));
    assert!(text(&map.stdout).contains("12..255"), "its pages are whole: {}", text(&map.stdout));
    let map = stored.inspect(&stored.node(), &["map", "9"]);
    assert!(map.status.success());
    assert_eq!(text(&map.stdout), healthy);
}

#[tokio::test]
async fn what_cannot_be_inspected_says_why_and_what_to_do() {
    let stored = Stored::new().await;
    let fails = |directory: &Path, arguments: &[&str], with: &str| {
        let output = stored.inspect(directory, arguments);
        assert_eq!(output.status.code(), Some(1), "{with}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains(with), "{with}: {}", text(&output.stderr));
    };
    fails(stored.root.path(), &["segments"], "is not a data directory");
    fails(stored.root.path(), &["segments"], &stored.node().display().to_string());
    fails(&stored.root.path().join("nowhere"), &["segments"], "is not a data directory");
    fails(&stored.node(), &["map", "8"], "volume 8 is not here");
    fails(&stored.node(), &["volume", "8"], "volume 8 is not here");
    let held = DataDir::open(&stored.node()).expect("is free");
    fails(&stored.node(), &["segments"], "inspect a copy");
    fails(&stored.shard(), &["segments"], "stop that node first");
    drop(held);
    std::fs::write(stored.shard().join("FORMAT"), "heliotrope-shard 99\n").expect("is written");
    fails(&stored.node(), &["segments"], "has format 99");
    fails(&stored.shard(), &["segments"], "has format 99");
    std::fs::write(stored.node().join("FORMAT"), "heliotrope 99\n").expect("is written");
    fails(&stored.node(), &["segments"], "format 99");
}

/// Into a full disk they ended with "No space left on device", of which nobody could say whose it was; and with code 0 where nobody read on, as no other command does.
#[tokio::test]
async fn an_output_that_nobody_takes_ends_each_of_them_as_other_commands_end() {
    let stored = Stored::new().await;
    let volume = OWNED.to_string();
    for arguments in
        [&["segments"][..], &["log"], &["log", "--json"], &["map", &volume], &["map", &volume, "--json"], &["volume"]]
    {
        let run = |stdout: std::process::Stdio| {
            let (verb, rest) = arguments.split_first().expect("a verb");
            let mut helio = Command::new(env!("CARGO_BIN_EXE_helio"));
            helio
                .arg("inspect")
                .arg(verb)
                .arg(stored.node())
                .args(rest)
                .stdout(stdout)
                .stderr(std::process::Stdio::piped());
            helio.spawn().expect("helio runs").wait_with_output().expect("ends")
        };
        let full = run(File::options().write(true).open("/dev/full").expect("is there").into());
        let said = text(&full.stderr);
        assert_eq!(full.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(said, "helio: cannot write the output: No space left on device\n", "{arguments:?}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let closed = run(writer.into());
        assert_eq!((closed.status.code(), text(&closed.stderr)), (Some(141), String::new()), "{arguments:?}");
    }
}
