//! What every engine must do, run on all of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::buffer::AlignedBuffer;
use super::sim::SimDisk;
use super::std::StdEngine;
use super::uring::UringEngine;
use super::{Bell, FileId, IoCompletion, IoEngine, IoKind, IoOp};

/// Long enough that running out of it means a hang.
const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;

fn run(engine: &mut dyn IoEngine, ops: Vec<IoOp>) -> Vec<IoCompletion> {
    let wanted = ops.len();
    for op in ops {
        engine.submit(op);
    }
    let mut completions = Vec::new();
    let begun = std::time::Instant::now();
    while completions.len() < wanted {
        engine.wait(Duration::from_secs(1), &mut completions).expect("waits");
        assert!(begun.elapsed() < PATIENCE, "{} of {wanted} completions came", completions.len());
    }
    assert_eq!(completions.len(), wanted);
    completions.sort_by_key(|completion| completion.token);
    completions
}

fn filled(byte: u8) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(4096);
    buffer.fill(byte);
    buffer
}

fn read(token: u64, file: FileId, offset: u64) -> IoOp {
    IoOp { token, file, kind: IoKind::Read { offset, buffer: AlignedBuffer::with_room(4096) } }
}

fn write(token: u64, file: FileId, offset: u64, byte: u8, durable: bool) -> IoOp {
    IoOp { token, file, kind: IoKind::Write { offset, buffer: filled(byte), rest: Vec::new(), durable } }
}

fn conforms(mut engine: Box<dyn IoEngine>, bell: &Bell) {
    let engine = &mut *engine;
    // A file is made whole, of zeroes, and is listed.
    let made =
        run(engine, vec![IoOp { token: 1, file: FileId(0), kind: IoKind::Create { name: "x".into(), size: SIZE } }]);
    made[0].result.as_ref().expect("is made");
    assert_eq!(engine.list().expect("lists"), [("x".to_owned(), SIZE)]);
    assert!(engine.free_bytes().expect("tells") > 0);
    let file = engine.open("x").expect("opens");
    let blank = run(engine, vec![read(2, file, 4096)]);
    assert!(blank[0].buffer.as_ref().expect("a buffer").iter().all(|byte| *byte == 0));

    // More operations at once than a ring has entries; each finds its own data afterwards.
    let writes = (0..200).map(|n| write(n, file, n * 4096, n as u8 + 1, n % 3 == 0)).collect();
    for completion in run(engine, writes) {
        completion.result.expect("is written");
        assert_eq!(completion.buffer.expect("comes back")[0], completion.token as u8 + 1);
    }
    run(engine, vec![IoOp { token: 0, file, kind: IoKind::Sync }])[0].result.as_ref().expect("is synced");
    for completion in run(engine, (0..200).map(|n| read(n, file, n * 4096)).collect()) {
        completion.result.expect("is read");
        let buffer = completion.buffer.expect("comes back");
        assert!(buffer.iter().all(|byte| *byte == completion.token as u8 + 1), "block {}", completion.token);
    }

    // A write in parts is one write.
    let rest = [201, 202].map(|byte| filled(byte).into_bytes()).to_vec();
    let kind = IoKind::Write { offset: 8 * 4096, buffer: filled(200), rest, durable: true };
    run(engine, vec![IoOp { token: 7, file, kind }])[0].result.as_ref().expect("is written");
    let found = run(engine, (7..12).map(|n| read(n, file, n * 4096)).collect());
    let bytes: Vec<u8> = found.iter().map(|completion| completion.buffer.as_ref().expect("comes back")[4095]).collect();
    assert_eq!(bytes, [8, 200, 201, 202, 12]);

    // Beyond the end: an error, and the buffer back.
    let beyond = &run(engine, vec![read(9, file, SIZE)])[0];
    assert_eq!(beyond.result.as_ref().expect_err("beyond the end").kind(), io::ErrorKind::UnexpectedEof);
    assert!(beyond.buffer.is_some());
    assert_eq!(engine.open("y").expect_err("is not there").kind(), io::ErrorKind::NotFound);

    // A timeout ends a wait for nothing.
    let mut none = Vec::new();
    engine.wait(Duration::from_millis(1), &mut none).expect("timed out");
    assert!(none.is_empty() && !engine.has_unsent());

    // Who sleeps elsewhere is woken: by the descriptor, by the bell, or it has more to do before it may sleep.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let completions = engine.completions().expect("are told");
        for round in 0..50 {
            engine.submit(read(round, file, 0));
            let mut found = Vec::new();
            while found.is_empty() {
                engine.wait(Duration::ZERO, &mut found).expect("looks");
                if !found.is_empty() || engine.has_unsent() {
                    continue;
                }
                let woken = async { tokio::select!(() = completions.some() => {}, () = bell.rung() => {}) };
                tokio::time::timeout(PATIENCE, woken).await.expect("is woken");
            }
            assert_eq!(found[0].token, round);
        }
    });

    engine.remove("x", Some(file)).expect("is removed");
    assert!(engine.list().expect("lists").is_empty());
}

#[test]
fn the_simulated_engine_conforms() {
    conforms(Box::new(SimDisk::new(1).engine()), &Bell::default());
}

#[test]
fn the_thread_engine_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let bell = Arc::new(Bell::default());
    conforms(Box::new(StdEngine::open(directory.path(), bell.clone()).expect("opens")), &bell);
}

#[test]
fn the_io_uring_engine_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let bell = Arc::new(Bell::default());
    match UringEngine::open(directory.path(), bell.clone()) {
        Ok(engine) => conforms(Box::new(engine), &bell),
        Err(error) => eprintln!("skipped: the kernel gives no io_uring here: {error}"),
    }
}

#[test]
fn a_full_file_system_says_so() {
    let disk = SimDisk::new(1);
    disk.set_capacity(SIZE);
    let mut engine = disk.engine();
    let create =
        |name: &str| IoOp { token: 1, file: FileId(0), kind: IoKind::Create { name: name.into(), size: SIZE } };
    run(&mut engine, vec![create("a")])[0].result.as_ref().expect("fits");
    let full = run(&mut engine, vec![create("b")]);
    assert_eq!(full[0].result.as_ref().expect_err("is full").kind(), io::ErrorKind::StorageFull);
    assert_eq!(engine.free_bytes().expect("tells"), 0);
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_tears_the_rest_by_sectors() {
    let disk = SimDisk::new(7);
    let mut engine = disk.engine();
    run(&mut engine, vec![IoOp { token: 1, file: FileId(0), kind: IoKind::Create { name: "x".into(), size: SIZE } }]);
    let file = engine.open("x").expect("opens");
    run(&mut engine, vec![write(1, file, 0, 1, false)]);
    run(&mut engine, vec![IoOp { token: 2, file, kind: IoKind::Sync }]);
    run(&mut engine, vec![write(3, file, 4096, 2, true), write(4, file, 8192, 3, false)]);
    disk.crash();
    assert!(run(&mut engine, vec![read(5, file, 0)])[0].result.is_err(), "the old engine is dead");
    let mut engine = disk.engine();
    let file = engine.open("x").expect("opens");
    let found = run(&mut engine, vec![read(0, file, 0), read(1, file, 4096), read(2, file, 8192)]);
    let block = |n: usize| found[n].buffer.as_ref().expect("comes back");
    assert!(block(0).iter().all(|byte| *byte == 1), "synced");
    assert!(block(1).iter().all(|byte| *byte == 2), "written durably");
    let sectors: Vec<u8> = block(2).chunks(512).map(|sector| sector[0]).collect();
    assert!(sectors.contains(&0) && sectors.contains(&3), "torn: {sectors:?}");
    assert!(block(2).chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "never within a sector");
}
