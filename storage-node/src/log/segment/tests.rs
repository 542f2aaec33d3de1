//! Segment files on the simulated disk, and their headers.

use std::time::Duration;

use super::*;
use crate::io::sim::{SimDisk, SimEngine};

#[test]
fn what_was_taken_between_two_checkpoints_is_expected_again() {
    let mut demand = Demand::default();
    (0..5).for_each(|_| demand.take());
    assert_eq!(demand.expected(), 5);
    (0..3).for_each(|_| demand.give_back());
    demand.take();
    assert_eq!(demand.expected(), 5, "the next time has just begun");
    demand.give_back();
    demand.take();
    assert_eq!(demand.expected(), 1);
}

/// Eight segments were taken between two checkpoints and eight given back with each, and every time four of those were deleted, and four made
/// anew meanwhile, since four are wanted at hand: a third of what the disk was given was zeroes, and who wrote waited for it.
#[test]
fn segments_that_come_free_as_fast_as_they_are_taken_are_not_made_anew() {
    let mut engine = SimDisk::new(1).engine();
    let settings = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, ..LogSettings::default() };
    let mut pool = Pool::open(&mut engine, settings).expect("opens");
    let mut completions = Vec::new();
    let mut take = |pool: &mut Pool, engine: &mut SimEngine| loop {
        pool.make_ahead(engine, 0);
        if pool.is_making() {
            engine.wait(Duration::ZERO, &mut completions).expect("goes on");
            completions.drain(..).for_each(|completion| pool.made(engine, completion.result));
            continue;
        }
        break pool.take(RESERVED_SEGMENTS, false).expect("one is free").0;
    };
    let mut in_use = VecDeque::new();
    let mut prepared = Vec::new();
    for _ in 0..6 {
        in_use.extend((0..8).map(|_| take(&mut pool, &mut engine)));
        prepared.push(pool.prepared_blocks());
        in_use.drain(..8).for_each(|number| pool.give_back(&mut engine, number).expect("is taken back"));
    }
    assert_eq!(prepared[1..], [prepared[1]; 5], "blocks made so far, each time");
    pool.trim(&mut engine).expect("is tidied");
    assert_eq!(pool.free_count(), pool.wanted(), "nobody writes");
}

#[test]
fn a_header_reads_back_and_a_torn_one_is_none() {
    let mut block = vec![0; BLOCK_SIZE as usize];
    let header = SegmentHeader { segment: 7, generation: 9, cold: false };
    for header in [SegmentHeader { cold: true, ..header }, header] {
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(Some(header)));
    }
    block[9] ^= 1;
    assert_eq!(SegmentHeader::decode(&block), Ok(None));
    assert_eq!(SegmentHeader::decode(&[0; 10]), Ok(None));
}

#[test]
fn a_newer_format_is_told_apart_from_garbage() {
    let mut block = vec![0; BLOCK_SIZE as usize];
    SegmentHeader { segment: 7, generation: 9, cold: false }.encode(&mut block);
    block[4] = 2;
    let checksum = crc32fast::hash(&block[..24]);
    block[24..28].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(SegmentHeader::decode(&block), Err(2));
}

/// On a full file system a node that started made a spare segment, took the last bytes for it until there were none, and gave them back. In that
/// moment the metadata store beside it could not be opened, and the node did not start. A segment is now made only where room is left for others.
#[test]
fn the_last_room_is_for_others() {
    let disk = SimDisk::new(2);
    let mut engine = disk.engine();
    let settings = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, ..LogSettings::default() };
    let mut pool = Pool::open(&mut engine, settings).expect("opens");
    let mut completions = Vec::new();
    for (beside, is_made) in [(0, false), (SEGMENT_BYTES_MIN - 1, false), (SEGMENT_BYTES_MIN, true)] {
        disk.set_capacity(ROOM_KEPT_BYTES + beside);
        pool.retry();
        pool.make_ahead(&mut engine, 0);
        engine.wait(Duration::ZERO, &mut completions).expect("goes on");
        assert_eq!((completions.len(), pool.is_full()), (usize::from(is_made), !is_made), "{beside} bytes beside it");
    }
    completions.drain(..).for_each(|completion| pool.made(&mut engine, completion.result));
    assert_eq!((pool.free_count(), disk.bytes()), (1, SEGMENT_BYTES_MIN));
}
