//! Segment files that the system does not open, or that are shorter than they were made: what is told, and that nothing else is lost.

use rustix::io::Errno;

use super::clean::{CHUNK, Chunks};
use super::damage::{BLOCKS, file_of, read_block, read_repairing, stopped};
use super::rig::{Rig, catch_up};
use crate::log::LogError;
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::shard::StartError;
use crate::shard::handle::StoreError;

const BLOCKS_MIN: usize = SEGMENT_BYTES_MIN as usize / 4096;

/// Why the store does not start.
fn refusal(rig: &mut Rig) -> String {
    match rig.try_start() {
        Err(error @ StartError::Log { source: LogError::Io(_), .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_system_does_not_open_keeps_the_store_shut_until_it_does_and_costs_nothing() {
    let (mut owner, _, place) = stopped();
    let file = file_of(place);
    let before = owner.disk.written();
    let reasons = [
        (Errno::ACCESS, "Permission denied", "let the user that the node runs as read and write it"),
        (Errno::PERM, "Operation not permitted", "let the user that the node runs as read and write it"),
        (Errno::MFILE, "Too many open files", "LimitNOFILE"),
        (Errno::NFILE, "Too many open files in system", "LimitNOFILE"),
        (Errno::ISDIR, "Is a directory", "remove the cause"),
    ];
    for (errno, why, remedy) in reasons {
        owner.disk.shut(&file, Some(errno));
        let told = refusal(&mut owner);
        for part in [&format!("segments: {file} cannot be opened"), why, remedy] {
            assert!(told.contains(part), "{part}: {told}");
        }
        owner.disk.shut(&file, None);
        owner.disk.shut_all(Some(errno));
        let told = refusal(&mut owner);
        assert!(told.contains(".seg cannot be opened") && told.contains(remedy), "{told}");
        owner.disk.shut_all(None);
    }
    assert_eq!(owner.disk.written(), before, "nothing was changed");
    owner.start();
    owner.activate(3);
    for block in 1..BLOCKS {
        assert_eq!(read_block(&mut owner, block).expect("reads"), [block as u8 + 1; 4096]);
    }
    assert_eq!(owner.report().damaged_blocks, 0);
}

/// Each attempt to make a segment left a file that the store did not know of, and the disk filled with them.
#[test]
fn segments_that_are_made_and_cannot_be_opened_are_not_left_behind_and_writes_go_on_later() {
    let mut rig = Rig::in_memory(3, |_| {});
    rig.open(64 * SEGMENT_BYTES_MIN);
    rig.activate(1);
    rig.write(0, vec![1; CHUNK as usize]).expect("writes");
    rig.disk.shut_all(Some(Errno::MFILE));
    let (mut written, mut refused) = (1, 0);
    let before = rig.disk.bytes();
    while refused < 20 {
        assert!(written < 10_000, "segments are opened that cannot be");
        match rig.write(written * CHUNK, vec![2; CHUNK as usize]) {
            Ok(_) => written += 1,
            Err(error) => {
                assert_eq!(error, StoreError::OutOfSpace);
                refused += 1;
            }
        }
    }
    assert!(rig.disk.bytes() <= before + SEGMENT_BYTES_MIN, "{} bytes, {before} before", rig.disk.bytes());
    assert_eq!(rig.core().log.poisoned(), None);
    rig.disk.shut_all(None);
    let is_taken = (0..100).any(|_| rig.write(written * CHUNK, vec![3; CHUNK as usize]).is_ok());
    assert!(is_taken, "it goes on without a restart");
    rig.flush().expect("flushes");
    rig.kill();
    rig.activate(2);
    assert_eq!(rig.read((written - 1) * CHUNK, 4096).expect("reads"), [2; 4096]);
}

/// A segment that could not be made once was not tried again before something had been refused: whoever had made room was told that the disk is
/// full all the same.
#[test]
fn room_that_was_made_meanwhile_is_found_before_anything_is_refused() {
    let mut rig = Rig::in_memory(4, |_| {});
    rig.open(64 * SEGMENT_BYTES_MIN);
    rig.activate(1);
    let mut written = 0;
    let mut write = |rig: &mut Rig| {
        rig.write(written * CHUNK, vec![1; CHUNK as usize]).expect("there is room");
        written += 1;
    };
    let active = |rig: &mut Rig| {
        let segments = rig.core().log.segments();
        segments.into_iter().find(|info| info.active && !info.cold).map(|info| info.segment)
    };
    write(&mut rig);
    let first = active(&mut rig);
    rig.disk.set_capacity(rig.disk.bytes());
    while active(&mut rig) == first {
        write(&mut rig);
    }
    // The one after this was asked for, and refused.
    rig.disk.set_capacity(u64::MAX);
    for _ in 0..3 * SEGMENT_BYTES_MIN / CHUNK {
        write(&mut rig);
    }
}

/// What the file that was written last has lost may be anything that was acked. Where it ended within a record, that was taken for one that a crash
/// had torn: the store was opened without it and all that had been flushed after it.
#[test]
fn a_log_whose_last_file_is_short_is_not_opened_and_names_it() {
    for has_checkpoint in [false, true] {
        let mut rig = Rig::in_memory(5, |options| {
            options.log.segment_bytes = 2 * SEGMENT_BYTES_MIN;
            options.checkpoint_log_bytes = u64::MAX;
        });
        rig.open(4 * SEGMENT_BYTES_MIN);
        rig.activate(1);
        for chunk in 0..SEGMENT_BYTES_MIN / CHUNK + 20 {
            rig.write(chunk * CHUNK, vec![1; CHUNK as usize]).expect("writes");
        }
        rig.flush().expect("flushes");
        if has_checkpoint {
            rig.checkpoint().expect("is written");
        }
        rig.write(0, vec![1; 4096]).expect("writes");
        rig.flush().expect("flushes");
        let segments = rig.core().log.segments();
        let last = segments.into_iter().find(|info| info.active && !info.cold).expect("one is written to");
        let file = format!("{:08}.seg", last.segment);
        rig.disk.kill();
        rig.drop_core();
        rig.disk.cut(&file, BLOCKS_MIN + 3);
        let told = match rig.try_start() {
            Err(error @ StartError::Log { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(told.contains(&file) && told.contains("docs/damage.md"), "{told}");
    }
}

/// Segments twice as large as the smallest, and a store in which the cleaner has just filled more than the half of one; and a replica.
fn cleaned() -> (Rig, Rig, Chunks, String) {
    let mut rig = Rig::in_memory(7, |options| {
        options.log.segment_bytes = 2 * SEGMENT_BYTES_MIN;
        options.log.capacity_bytes = Some(20 * SEGMENT_BYTES_MIN);
    });
    let (mut replica, mut chunks) = (Rig::in_memory(8, |_| {}), Chunks::new(7));
    let count = chunks.values.len() as u64;
    for rig in [&mut rig, &mut replica] {
        rig.open(count * CHUNK);
    }
    rig.activate(1);
    for chunk in 0..count {
        chunks.write(&mut rig, chunk);
    }
    let file = loop {
        chunks.overwrite(&mut rig, 1);
        let segments = rig.core().log.segments();
        let Some(target) = segments.iter().find(|info| info.cold && info.active) else { continue };
        if rig.core().map.usage.live(target.segment) as usize > BLOCKS_MIN + BLOCKS_MIN / 2 {
            break format!("{:08}.seg", target.segment);
        }
    };
    rig.flush().expect("flushes");
    catch_up(&mut rig, &mut replica);
    chunks.settle();
    (rig, replica, chunks, file)
}

/// Reads all, with what is damaged from `replica`; how many blocks those were.
fn check(rig: &mut Rig, replica: &mut Rig, chunks: &Chunks) -> u64 {
    for (chunk, values) in (0u32..).zip(&chunks.values) {
        for block in chunk * 16..chunk * 16 + 16 {
            let found = read_repairing(rig, replica, block).expect("is repaired");
            assert!(values.contains(&found[0]) && found.iter().all(|byte| *byte == found[0]), "block {block}");
        }
    }
    rig.report().repaired_blocks
}

#[test]
fn of_a_cold_segment_that_is_short_or_gone_blocks_are_repaired_and_cleaning_goes_on() {
    for loss in ["cut", "cut below a segment", "lost", "not opened by the disk"] {
        let (mut rig, mut replica, mut chunks, file) = cleaned();
        rig.disk.kill();
        rig.drop_core();
        match loss {
            "cut" => rig.disk.cut(&file, BLOCKS_MIN + 100),
            "cut below a segment" => rig.disk.cut(&file, 100),
            "lost" => rig.disk.lose(&file),
            _ => rig.disk.shut(&file, Some(Errno::IO)),
        }
        rig.start();
        rig.activate(2);
        let repaired = check(&mut rig, &mut replica, &chunks);
        assert!(repaired > 300, "{loss}: {repaired} blocks are repaired");
        let emptied = rig.core().cleaner.emptied();
        while rig.core().cleaner.emptied() < emptied + 3 {
            chunks.overwrite(&mut rig, 1);
        }
        rig.flush().expect("flushes");
        chunks.settle();
        rig.crash();
        rig.activate(3);
        chunks.check(&mut rig, loss);
    }
}

#[test]
fn a_cold_segment_that_may_not_be_opened_keeps_the_store_shut_and_costs_nothing() {
    let (mut rig, mut replica, chunks, file) = cleaned();
    rig.disk.kill();
    rig.drop_core();
    rig.disk.shut(&file, Some(Errno::ACCESS));
    let told = refusal(&mut rig);
    assert!(told.contains(&file) && told.contains("Permission denied"), "{told}");
    rig.disk.shut(&file, None);
    rig.start();
    rig.activate(2);
    assert_eq!(check(&mut rig, &mut replica, &chunks), 0);
}
