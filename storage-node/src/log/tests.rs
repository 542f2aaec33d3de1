//! The log on the simulated disk: what was acked comes back, in order, whatever fails.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, VolumeId};

use super::record::Entry;
use super::segment::{ROOM_KEPT_BYTES, SEGMENT_BYTES_MIN};
use super::{Event, Known, Log, LogError, LogPosition, LogSettings, Replayed};
use crate::io::sim::SimDisk;

mod lives;

const VOLUME: VolumeId = VolumeId(3);
const IDENTITY: u64 = 0x1dea;

fn settings() -> LogSettings {
    LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None }
}

fn try_open(disk: &SimDisk, from: Option<LogPosition>) -> Result<(Log, Vec<Replayed>), LogError> {
    let mut found = Vec::new();
    let known = Known { identity: IDENTITY, life: 1 + disk.lives() as u16, from, live: &BTreeSet::new(), cold: None };
    let log = Log::recover(Box::new(disk.engine()), settings(), &known, &mut |replayed| found.push(replayed));
    log.map(|log| (log, found))
}

fn open(disk: &SimDisk, from: Option<LogPosition>) -> (Log, Vec<Replayed>) {
    try_open(disk, from).expect("recovers")
}

fn write(number: u64, blocks: u32) -> (Entry, Vec<Bytes>) {
    let data: Vec<Bytes> =
        (0..blocks).map(|block| Bytes::from(vec![(number + u64::from(block)) as u8; BLOCK_SIZE as usize])).collect();
    let checksums = data.iter().map(|block| crc32fast::hash(block)).collect();
    let entry =
        Entry::Write { volume: VOLUME, lsn: Lsn::new(Epoch(1), number), start: BlockIndex(number as u32), checksums };
    (entry, data)
}

fn number_of(entry: &Entry) -> u64 {
    match entry {
        Entry::Write { lsn, .. } => lsn.sequence,
        other => panic!("not written by these tests: {other:?}"),
    }
}

/// Turns until nothing is under way.
fn settle(log: &mut Log) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..100_000 {
        log.turn(Duration::ZERO, &mut events).expect("turns");
        if log.is_starved() {
            log.refuse_queued();
        }
        if log.idle() {
            return events;
        }
    }
    panic!("the log does not come to rest");
}

fn acked(events: &[Event]) -> Vec<u64> {
    let ticket = |event: &Event| match event {
        Event::Appended { ticket, result: Ok(_) } => Some(*ticket),
        _ => None,
    };
    events.iter().filter_map(ticket).collect()
}

#[test]
fn what_was_acked_survives_a_kill_in_order() {
    let disk = SimDisk::new(1);
    let (mut log, found) = open(&disk, None);
    assert!(found.is_empty());
    for number in 1..=100 {
        let (entry, data) = write(number, 1 + number as u32 % 5);
        log.append(entry, data, false, number).expect("is queued");
    }
    assert_eq!(acked(&settle(&mut log)), (1..=100).collect::<Vec<_>>());
    disk.kill();
    let (_, found) = open(&disk, None);
    assert_eq!(
        found.iter().map(|replayed| number_of(&replayed.entry)).collect::<Vec<_>>(),
        (1..=100).collect::<Vec<_>>()
    );
}

#[test]
fn data_is_read_back_from_where_it_was_placed() {
    let disk = SimDisk::new(2);
    let (mut log, _) = open(&disk, None);
    let (entry, data) = write(5, 3);
    log.append(entry, data.clone(), false, 1).expect("is queued");
    let events = settle(&mut log);
    let Event::Appended { result: Ok(placed), .. } = &events[0] else { panic!("{events:?}") };
    log.read(placed.segment, placed.first_block, 3, 2);
    let events = settle(&mut log);
    let Event::Read { ticket: 2, result: Ok(buffer) } = &events[0] else { panic!("{events:?}") };
    assert_eq!(&buffer[..], &data.concat()[..]);
}

#[test]
fn one_record_carries_what_gathered() {
    let disk = SimDisk::new(3);
    let (mut log, _) = open(&disk, None);
    let (entry, data) = write(1, 1);
    log.append(entry, data, false, 1).expect("is queued");
    settle(&mut log);
    let before = log.position();
    for number in 2..=33 {
        let (entry, data) = write(number, 1);
        log.append(entry, data, false, number).expect("is queued");
    }
    settle(&mut log);
    assert_eq!(log.position().sequence, before.sequence + 1, "32 writes in one append");
}

/// Turns until nothing goes on but syncs, which the disk holds.
fn settle_but_syncs(log: &mut Log) -> Vec<Event> {
    let mut events = Vec::new();
    (0..1000).for_each(|_| log.turn(Duration::ZERO, &mut events).expect("turns"));
    events
}

fn synced(events: &[Event]) -> Vec<u64> {
    let ticket = |event: &Event| match event {
        Event::Synced { ticket, result: Ok(()) } => Some(*ticket),
        _ => None,
    };
    events.iter().filter_map(ticket).collect()
}

#[test]
fn a_sync_that_always_comes_is_begun_ahead_and_covers_what_was_done_by_then() {
    let disk = SimDisk::new(12);
    let (mut log, _) = open(&disk, None);
    let append = |log: &mut Log, number: u64| {
        let (entry, data) = write(number, 1);
        log.append(entry, data, false, number).expect("is queued");
    };
    for number in 1..=10 {
        assert!(log.durable());
        append(&mut log, number);
        settle(&mut log);
        assert_eq!(log.durable(), number > 4, "after {number} appends, and a sync of each but the last");
        let is_done = log.sync(100 + number).expect("is asked for");
        assert_eq!((is_done, synced(&settle(&mut log)).len()), (number > 4, usize::from(number <= 4)));
    }

    // One that is asked for while it is under way is answered by it, unless something was done since it began.
    disk.hold_syncs(true);
    append(&mut log, 11);
    assert_eq!(acked(&settle_but_syncs(&mut log)), [11], "the write is not held up");
    assert!(!log.sync(111).expect("is asked for"));
    append(&mut log, 12);
    assert_eq!(acked(&settle_but_syncs(&mut log)), [12]);
    assert!(!log.sync(112).expect("is asked for"));
    assert!(synced(&settle_but_syncs(&mut log)).is_empty());
    disk.hold_syncs(false);
    assert_eq!(synced(&settle(&mut log)), [111, 112]);
    disk.crash();
    let (_, found) = open(&disk, None);
    assert_eq!(found.len(), 12);
}

#[test]
fn recovery_from_a_position_replays_only_what_follows() {
    let disk = SimDisk::new(4);
    let (mut log, _) = open(&disk, None);
    for number in 1..=10 {
        let (entry, data) = write(number, 2);
        log.append(entry, data, false, number).expect("is queued");
    }
    settle(&mut log);
    let position = log.position();
    let (entry, data) = write(11, 2);
    log.append(entry, data, true, 11).expect("is queued");
    settle(&mut log);
    disk.kill();
    let (_, found) = open(&disk, Some(position));
    assert_eq!(found.iter().map(|replayed| number_of(&replayed.entry)).collect::<Vec<_>>(), [11]);
}

#[test]
fn segments_are_recycled_and_their_old_records_never_come_back() {
    let disk = SimDisk::new(5);
    let (mut log, _) = open(&disk, None);
    let mut position = log.position();
    for number in 1..=60 {
        let (entry, data) = write(number, 256);
        log.append(entry, data, false, number).expect("is queued");
        assert_eq!(acked(&settle(&mut log)), [number]);
        position = log.position();
        for info in log.segments() {
            if !info.active && !info.free && info.generation < position.generation && info.generation > 0 {
                log.free(info.segment);
            }
        }
    }
    assert!(log.segments().len() <= 5, "recycled: {:?}", log.segments());
    let (entry, data) = write(61, 1);
    log.append(entry, data, false, 61).expect("is queued");
    settle(&mut log);
    disk.kill();
    let (_, found) = open(&disk, Some(position));
    assert_eq!(found.iter().map(|replayed| number_of(&replayed.entry)).collect::<Vec<_>>(), [61]);
}

#[test]
fn a_failed_write_poisons_the_log_for_good() {
    let disk = SimDisk::new(6);
    let (mut log, _) = open(&disk, None);
    let (entry, data) = write(1, 1);
    log.append(entry, data, false, 1).expect("is queued");
    settle(&mut log);
    disk.fail_after(0);
    let (entry, data) = write(2, 1);
    log.append(entry, data, false, 2).expect("is queued");
    let events = settle(&mut log);
    assert!(matches!(&events[..], [Event::Appended { ticket: 2, result: Err(LogError::Poisoned(_)) }]), "{events:?}");
    let (entry, data) = write(3, 1);
    assert!(matches!(log.append(entry, data, false, 3), Err(LogError::Poisoned(_))));
    assert!(matches!(log.sync(4), Err(LogError::Poisoned(_))));
}

#[test]
fn a_full_disk_refuses_data_keeps_room_for_the_rest_and_recovers() {
    let disk = SimDisk::new(7);
    disk.set_capacity(ROOM_KEPT_BYTES + 2 * SEGMENT_BYTES_MIN);
    let (mut log, _) = open(&disk, None);
    let mut number = 0;
    let refused = loop {
        number += 1;
        assert!(number < 1000, "never full");
        let (entry, data) = write(number, 100);
        if let Err(error) = log.append(entry, data, false, number) {
            break error;
        }
        if acked(&settle(&mut log)).is_empty() {
            break LogError::OutOfSpace;
        }
    };
    assert_eq!(refused, LogError::OutOfSpace);
    let zero = Entry::Zero { volume: VOLUME, lsn: Lsn::new(Epoch(1), 9999), start: BlockIndex(0), count: 8 };
    log.append(zero, Vec::new(), false, 5000).expect("room is kept for this");
    assert_eq!(acked(&settle(&mut log)), [5000]);
    disk.set_capacity(ROOM_KEPT_BYTES + 4 * SEGMENT_BYTES_MIN);
    // A refused write makes the log look for space again; the next ones find it.
    let accepted = (0..100).any(|_| {
        let (entry, data) = write(number, 100);
        let accepted = log.append(entry, data, false, 6000).is_ok();
        let events = settle(&mut log);
        accepted && acked(&events) == [6000]
    });
    assert!(accepted, "there is space again");
}

/// Data was written to what is kept for others, as long as a segment was being made that the file system refused in the end.
#[test]
fn what_is_kept_on_a_full_disk_is_kept_while_another_segment_is_asked_for() {
    let disk = SimDisk::new(21);
    disk.set_quota(4 * SEGMENT_BYTES_MIN);
    let (mut log, _) = open(&disk, None);
    let mut number = 0;
    let mut refused = 0;
    while refused < 500 {
        number += 1;
        let (entry, data) = write(number, 1);
        log.append(entry, data, false, number).expect("is queued");
        refused += u32::from(acked(&settle(&mut log)).is_empty());
    }
    assert!(log.unwritten_blocks() >= 2048 / 16, "{} blocks are left", log.unwritten_blocks());
}

/// How many of what `next` gives a full log takes until it refuses one.
fn taken(log: &mut Log, mut next: impl FnMut() -> (Entry, bool)) -> u32 {
    for count in 0..10_000 {
        let (entry, is_repair) = next();
        let data = vec![Bytes::from_static(&[1; BLOCK_SIZE as usize]); entry.data_blocks() as usize];
        match is_repair {
            true => log.append_repair(entry, data, 1).expect("is queued"),
            false => log.append(entry, data, false, 1).expect("is queued"),
        }
        if acked(&settle(log)).is_empty() {
            return count;
        }
    }
    panic!("never full");
}

#[test]
fn repairs_have_a_share_of_a_full_disk_and_take_nothing_from_the_others() {
    let received = |blocks: usize| Entry::Received {
        volume: VOLUME,
        blocks: vec![(BlockIndex(3), Lsn::new(Epoch(1), 4), crc32fast::hash(&[1; BLOCK_SIZE as usize])); blocks],
    };
    let data = |log: &mut Log| taken(log, || (received(1), false));
    let repairs = |log: &mut Log| taken(log, || (received(16), true));
    let trim = Entry::Zero { volume: VOLUME, lsn: Lsn::new(Epoch(1), 9999), start: BlockIndex(0), count: 8 };
    let trims = |log: &mut Log| taken(log, || (trim.clone(), false));
    let moved = Entry::Relocated { volume: VOLUME, segment: 1, block: 1, moves: vec![(BlockIndex(0), 2, 2)] };
    let moves = |log: &mut Log| taken(log, || (moved.clone(), false));
    let role = Entry::Role { volume: VOLUME, epoch: Epoch(1), owner: true };
    let roles = |log: &mut Log| taken(log, || (role.clone(), false));
    // Of 2048 blocks: 128 in records of 17, and of the other 128, or one more, all but 32, all but 8, and the rest.
    let (share, trims_share, moves_share) = (128 / 17, 96..=97, 32 - 8);
    for is_reopened in [false, true] {
        for repairs_first in [true, false] {
            let disk = SimDisk::new(19);
            disk.set_capacity(ROOM_KEPT_BYTES + 4 * SEGMENT_BYTES_MIN);
            let (mut log, _) = open(&disk, None);
            data(&mut log);
            // The cleaner has begun to copy, so that only its next segment is free.
            log.copy(&[received(1)], &[Bytes::from_static(&[1; BLOCK_SIZE as usize])], 2).expect("has room");
            settle(&mut log);
            assert_eq!(log.free_segments(), 1);
            if is_reopened {
                disk.kill();
                drop(log);
                log = open(&disk, None).0;
                assert_eq!(data(&mut log), 0, "it is still full");
            }
            if repairs_first {
                assert_eq!(repairs(&mut log), share);
                let trims = trims(&mut log);
                assert!(trims_share.contains(&trims), "{trims}");
            } else {
                let trims = trims(&mut log);
                assert!(trims_share.contains(&trims), "{trims}");
                assert_eq!(repairs(&mut log), share);
            }
            assert_eq!(data(&mut log), 0);
            assert_eq!(moves(&mut log), moves_share);
            assert!(roles(&mut log) >= 8);
            assert_eq!(log.free_segments(), 1, "the cleaner has its own");
        }
    }
}

/// A repair that has no room waits for some; the trim that makes some must not wait for the repair.
#[test]
fn what_waits_beside_a_repair_overtakes_it_and_is_overtaken() {
    let disk = SimDisk::new(20);
    disk.set_capacity(ROOM_KEPT_BYTES + 4 * SEGMENT_BYTES_MIN);
    let (mut log, _) = open(&disk, None);
    let received = |blocks: usize| Entry::Received {
        volume: VOLUME,
        blocks: vec![(BlockIndex(3), Lsn::new(Epoch(1), 4), crc32fast::hash(&[1; BLOCK_SIZE as usize])); blocks],
    };
    taken(&mut log, || (received(1), false));
    log.copy(&[received(1)], &[Bytes::from_static(&[1; BLOCK_SIZE as usize])], 9).expect("has room");
    settle(&mut log);
    let block = Bytes::from_static(&[1; BLOCK_SIZE as usize]);
    let trim = Entry::Zero { volume: VOLUME, lsn: Lsn::new(Epoch(1), 9999), start: BlockIndex(0), count: 8 };
    log.append(received(1), vec![block.clone()], false, 1).expect("is queued");
    log.append_repair(received(1), vec![block.clone()], 2).expect("is queued");
    assert_eq!(acked(&settle(&mut log)), [2], "data waits, the repair need not");
    while log.append_repair(received(16), vec![block.clone(); 16], 3).is_ok() && acked(&settle(&mut log)) == [3] {}
    log.append_repair(received(16), vec![block.clone(); 16], 4).expect("is queued");
    log.append(trim, Vec::new(), false, 5).expect("is queued");
    assert_eq!(acked(&settle(&mut log)), [5], "a repair waits, what makes room need not");
}

/// Ten records, synced after each but the last.
fn synced_records(disk: &SimDisk) -> Vec<(LogPosition, LogPosition)> {
    let (mut log, _) = open(disk, None);
    let mut records = Vec::new();
    for number in 1..=10 {
        let before = log.position();
        let (entry, data) = write(number, 2);
        log.append(entry, data, false, number).expect("is queued");
        settle(&mut log);
        records.push((before, log.position()));
        if number < 10 {
            log.sync(number).expect("not poisoned");
            settle(&mut log);
        }
    }
    disk.kill();
    records
}

/// Recovery used to cut the log at the first record that was not whole, whatever lay behind it: a flipped bit in one
/// that had been synced silently undid all writes from there on.
#[test]
fn damage_to_a_synced_record_is_not_taken_for_a_torn_tail() {
    let disk = SimDisk::new(8);
    let records = synced_records(&disk);
    let file = format!("{:08}.seg", records[1].1.segment);
    for (number, (start, end)) in (1u64..).zip(&records) {
        // The first record starts where the segment does, behind its header.
        let first = start.block.max(1);
        for (block, byte) in [(first, 0), (first, 4), (first, 9), (first, 35), (first, 70), (end.block - 1, 100)] {
            disk.flip(&file, block as usize * BLOCK_SIZE as usize + byte);
            let reopened = try_open(&disk, None);
            match reopened {
                // Nobody vouches for the last record yet: it was not synced, and is cut off.
                Ok((_, found)) if number == 10 => assert_eq!(found.len(), 9, "byte {byte} of block {block}"),
                // The entries are whole, and their checksums keep the data from every reader.
                Ok((_, found)) if block != first => assert_eq!(found.len(), 10, "record {number}"),
                Err(LogError::Damaged { segment, block: named, sequence, durable, .. }) if block == first => {
                    assert_eq!((segment, named, sequence), (records[1].1.segment, first, number));
                    assert!(durable >= number, "{durable} vouches for {number}");
                }
                other => panic!("byte {byte} of block {block} in record {number}: {other:?}"),
            }
            disk.flip(&file, block as usize * BLOCK_SIZE as usize + byte);
        }
    }
    assert_eq!(open(&disk, None).1.len(), 10, "nothing was changed meanwhile");
}

/// One bit in a record's version, and the node did not start: it asked for the newer program that had written the record, and there was none.
/// One that a newer program wrote fits its checksum.
#[test]
fn a_record_is_a_newer_programs_only_if_it_fits_its_checksum() {
    let disk = SimDisk::new(18);
    let records = synced_records(&disk);
    let (start, end) = records[4];
    let file = format!("{:08}.seg", start.segment);
    let at = start.block as usize * BLOCK_SIZE as usize;
    // The last one: nobody vouches for it.
    let last = records[9].0.block as usize * BLOCK_SIZE as usize;
    disk.flip(&file, last + 5);
    assert_eq!(numbers(&open(&disk, None).1), (1..=9).collect::<Vec<_>>());
    disk.flip(&file, last + 5);
    disk.flip(&file, at + 4);
    let damaged = try_open(&disk, None).expect_err("is damaged");
    assert!(matches!(damaged, LogError::Damaged { sequence: 5, .. }), "{damaged}");
    // As a newer program would have written it.
    disk.alter(&file, start.block as usize, |block| {
        let entries_bytes = u32::from_le_bytes(block[28..32].try_into().expect("four bytes")) as usize;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&block[..48]);
        hasher.update(&block[56..56 + entries_bytes]);
        block[48..52].copy_from_slice(&hasher.finalize().to_le_bytes());
    });
    let newer = try_open(&disk, None).expect_err("is of a newer program");
    assert!(matches!(&newer, LogError::Corrupt { block, .. } if *block == start.block), "{newer}");
    assert!(newer.to_string().contains("use the newer program"), "{newer}");
    assert!(start.block < end.block);
}

/// How the first block of a segment is lost.
const LOSSES: [fn(&SimDisk, &str); 2] = [|disk, file| disk.flip(file, 16), |disk, file| disk.make_unreadable(file, 0)];

/// A log of several segments with a checkpoint after `checkpoint` of its records, and what is to be found behind that.
fn several_segments(disk: &SimDisk, checkpoint: u64) -> (Option<LogPosition>, Vec<u64>) {
    const RECORDS: u64 = 24;
    let (mut log, _) = open(disk, None);
    let mut from = None;
    for number in 1..=RECORDS {
        let (entry, data) = write(number, 256);
        log.append(entry, data, true, number).expect("is queued");
        assert_eq!(acked(&settle(&mut log)), [number]);
        if number == checkpoint {
            from = Some(log.position());
        }
    }
    assert!(log.segments().iter().filter(|info| info.generation > 0).count() > 2, "{:?}", log.segments());
    disk.kill();
    (from, (checkpoint + 1..=RECORDS).collect())
}

/// A bit of a segment's header, or its sector, and the log could not be opened, and the node did not start: the checkpoint went on in a
/// segment that was taken not to be there, or the log seemed to end before the segment, or the read failed.
#[test]
fn a_header_that_is_lost_is_written_anew_from_what_the_checkpoint_and_the_records_say() {
    for (loss, checkpoint) in LOSSES.into_iter().flat_map(|loss| [0, 3, 12].map(|checkpoint| (loss, checkpoint))) {
        let disk = SimDisk::new(9);
        let (from, expected) = several_segments(&disk, checkpoint);
        let files: BTreeSet<String> = disk.written().into_iter().map(|(file, _)| file).collect();
        // One after the other, then all at once.
        for lost in files.iter().map(|file| vec![file]).chain([files.iter().collect()]) {
            lost.iter().for_each(|file| loss(&disk, file));
            // The second finds what the first has written.
            for _ in 0..2 {
                let (_, found) = open(&disk, from);
                assert_eq!(numbers(&found), expected, "{lost:?}, checkpoint after {checkpoint}");
                disk.kill();
            }
        }
        let (mut log, _) = open(&disk, from);
        let generations: Vec<u64> =
            log.segments().iter().map(|info| info.generation).filter(|generation| *generation > 0).collect();
        assert_eq!(generations.iter().collect::<BTreeSet<_>>().len(), generations.len(), "{generations:?}");
        let (entry, data) = write(99, 1);
        log.append(entry, data, true, 99).expect("is queued");
        settle(&mut log);
        disk.kill();
        assert_eq!(numbers(&open(&disk, from).1).last(), Some(&99));
    }
}

/// One block of a free segment that could not be read, or of what had never been written, and the log could not be opened.
#[test]
fn an_unreadable_block_that_the_log_does_not_need_is_passed_over() {
    let disk = SimDisk::new(13);
    let records = synced_records(&disk);
    let end = records.last().expect("there are some").1;
    let mut log = open(&disk, None).0;
    settle(&mut log);
    for info in log.segments() {
        let file = format!("{:08}.seg", info.segment);
        let first = if info.segment == end.segment { end.block as usize + 1 } else { 0 };
        (first..first + 40).for_each(|block| disk.make_unreadable(&file, block));
    }
    disk.kill();
    let (mut log, found) = open(&disk, None);
    assert_eq!(numbers(&found), (1..=10).collect::<Vec<_>>());
    // Over all of them, so that the log does not end at one.
    let (entry, data) = write(11, 60);
    log.append(entry, data, true, 11).expect("is queued");
    assert_eq!(acked(&settle(&mut log)), [11]);
    disk.kill();
    assert_eq!(open(&disk, None).1.len(), 11);
}

/// Data that had been synced and cannot be read kept the log from being opened; altered data did not.
#[test]
fn unreadable_data_of_a_synced_record_is_left_to_its_checksums() {
    let disk = SimDisk::new(14);
    let records = synced_records(&disk);
    let file = format!("{:08}.seg", records[1].1.segment);
    disk.make_unreadable(&file, records[4].1.block as usize - 1);
    assert_eq!(numbers(&open(&disk, None).1), (1..=10).collect::<Vec<_>>());
}

/// What cannot be read where the log ends may be a record that was acked and flushed: to go on there would undo it.
#[test]
fn a_log_that_ends_at_an_unreadable_block_is_not_opened() {
    let disk = SimDisk::new(15);
    let records = synced_records(&disk);
    let file = format!("{:08}.seg", records[1].1.segment);
    let (last, end) = *records.last().expect("there are some");
    // The header of the last record, its data, and what would follow it.
    for (at, sequence) in [(last.block, 10), (end.block - 1, 10), (end.block, 11)] {
        let copy = SimDisk::new(15);
        synced_records(&copy);
        copy.make_unreadable(&file, at as usize);
        let error = try_open(&copy, None).expect_err("nobody can tell");
        assert_eq!(error, LogError::Unreadable { segment: end.segment, block: at, sequence });
        assert!(error.to_string().contains(&format!("segments/{file}")), "{error}");
    }
    assert_eq!(open(&disk, None).1.len(), 10);
}

/// As above, where the log is at the end of a segment: the next record may be the first of any that was free.
#[test]
fn a_log_whose_next_segment_cannot_be_read_is_not_opened() {
    let disk = SimDisk::new(16);
    let (mut log, _) = open(&disk, None);
    let mut end = log.position();
    for number in 1.. {
        let (entry, data) = write(number, 256);
        log.append(entry, data, true, number).expect("is queued");
        settle(&mut log);
        let position = log.position();
        if position.generation > end.generation && end.generation > 0 {
            // The only record there, and nobody vouches for it.
            end = position;
            break;
        }
        end = position;
    }
    disk.kill();
    let file = format!("{:08}.seg", end.segment);
    (0..2).for_each(|block| disk.make_unreadable(&file, block));
    let error = try_open(&disk, None).expect_err("nobody can tell");
    let expected = LogError::Unreadable { segment: end.segment, block: 1, sequence: end.sequence - 1 };
    assert_eq!(error, expected);
}

/// The same where that segment was used before. What lay there then was taken for what it is, so that it seemed to be no part of what
/// follows, and a write that had been flushed was gone without a word.
#[test]
fn a_log_whose_next_segment_had_an_earlier_life_is_not_opened() {
    let disk = SimDisk::new(17);
    let (mut log, _) = open(&disk, None);
    let (mut used, mut before, mut end) = (BTreeSet::new(), log.position(), log.position());
    for number in 1.. {
        let (entry, data) = write(number, 256);
        log.append(entry, data, true, number).expect("is queued");
        settle(&mut log);
        (before, end) = (end, log.position());
        if end.generation > before.generation && before.generation > 0 {
            if used.contains(&end.segment) {
                // The only record of its new life, and nobody vouches for it.
                break;
            }
            used.insert(before.segment);
            let old = log.segments().into_iter().filter(|info| !info.free && !info.active);
            old.for_each(|info| log.free(info.segment));
        }
    }
    disk.kill();
    let file = format!("{:08}.seg", end.segment);
    (0..2).for_each(|block| disk.make_unreadable(&file, block));
    let error = try_open(&disk, Some(before)).expect_err("nobody can tell");
    let expected = LogError::Unreadable { segment: end.segment, block: 1, sequence: before.sequence };
    assert_eq!(error, expected);
}

/// Blocks of a guest may hold a log: that of a node inside it. It says nothing about this one.
#[test]
fn a_log_stored_by_a_guest_vouches_for_nothing() {
    let disk = SimDisk::new(10);
    let (mut log, _) = open(&disk, None);
    let (entry, data) = write(1, 1);
    log.append(entry, data, true, 1).expect("is queued");
    settle(&mut log);
    let stamp =
        super::record::Stamp { log: IDENTITY + 1, generation: 1, sequence: 1000, chain: 0, durable: 999, life: 1 };
    let (inner, _, _) = super::record::encode(&stamp, &[&write(1000, 0).0], 0, 0);
    let inner = Bytes::from_owner(inner);
    let entry = Entry::Write {
        volume: VOLUME,
        lsn: Lsn::new(Epoch(1), 2),
        start: BlockIndex(0),
        checksums: vec![crc32fast::hash(&inner)],
    };
    log.append(entry, vec![inner], false, 2).expect("is queued");
    settle(&mut log);
    let end = log.position();
    disk.kill();
    // The record around it is torn, before anything vouched for it.
    disk.flip(&format!("{:08}.seg", end.segment), (end.block as usize - 2) * BLOCK_SIZE as usize + 20);
    assert_eq!(open(&disk, None).1.len(), 1);
}

/// The number of a lost segment was given to the next that was made: what the map has in the one pointed into the other then.
#[test]
fn the_number_of_a_lost_segment_is_not_used_again() {
    let disk = SimDisk::new(19);
    let live = BTreeSet::from([3]);
    let known = Known { identity: IDENTITY, life: 1, from: None, live: &live, cold: None };
    let mut log = Log::recover(Box::new(disk.engine()), settings(), &known, &mut |_| {}).expect("recovers");
    let (entry, data) = write(1, 1);
    log.append(entry, data, true, 1).expect("is queued");
    assert_eq!(acked(&settle(&mut log)), [1]);
    let numbers: Vec<u32> = log.segments().iter().map(|info| info.segment).collect();
    assert!(!numbers.is_empty() && numbers.iter().all(|number| *number > 3), "{numbers:?}");
}

fn randomly(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    }
}

fn numbers(found: &[Replayed]) -> Vec<u64> {
    found.iter().map(|replayed| number_of(&replayed.entry)).collect()
}

/// Crash at a random moment of a random history: what was reported synced is there, what is there is a prefix
/// of what was appended, and the log goes on; three lives in a row, so that a cut tail could come back if it did, or
/// vouch for what never was. Now and then a checkpoint gives segments back, so that they are used again.
fn survives_crashes(seed: u64) {
    let disk = SimDisk::new(seed);
    let mut next = randomly(seed);
    let blocks_max = if seed.is_multiple_of(4) { 500 } else { 30 };
    let mut from = None;
    let mut history: Vec<u64> = Vec::new();
    let mut number = 0;
    for life in 0..3 {
        let (mut log, found) =
            try_open(&disk, from).unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
        let found = numbers(&found);
        assert!(found.starts_with(&history), "seed {seed}, life {life}: synced {history:?}, found {found:?}");
        history = found;
        let (mut appended, mut acked, mut covered) = (Vec::new(), 0, 0);
        for _ in 0..next(60) {
            match next(8) {
                0 => {
                    if log.sync(acked as u64).expect("not poisoned") {
                        covered = acked;
                    }
                }
                1 if log.idle() && log.durable() => {
                    from = Some(log.position());
                    let position = log.position();
                    for info in log.segments() {
                        if !info.active && !info.free && info.generation < position.generation {
                            log.free(info.segment);
                        }
                    }
                    history.clear();
                    appended.drain(..acked);
                    (acked, covered) = (0, 0);
                }
                1..4 => {
                    let mut events = Vec::new();
                    log.turn(Duration::ZERO, &mut events).expect("turns");
                    for event in events {
                        match event {
                            Event::Appended { ticket, result } => {
                                let placed = result.expect("is appended");
                                assert_eq!(ticket, appended[acked], "seed {seed}: in order");
                                acked += 1;
                                if placed.durable {
                                    covered = covered.max(acked);
                                }
                            }
                            Event::Synced { ticket, result } => {
                                result.expect("is synced");
                                covered = covered.max(ticket as usize);
                            }
                            Event::Read { .. } | Event::Copied { .. } => {}
                        }
                    }
                }
                _ => {
                    number += 1;
                    let (entry, data) = write(number, 1 + next(blocks_max) as u32);
                    log.append(entry, data, next(5) == 0, number).expect("is queued");
                    appended.push(number);
                }
            }
        }
        let all: Vec<u64> = history.iter().chain(&appended).copied().collect();
        history.extend(&appended[..covered]);
        disk.crash();
        let (_, found) = try_open(&disk, from).unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
        let found = numbers(&found);
        assert!(all.starts_with(&found), "seed {seed}, life {life}: appended {all:?}, found {found:?}");
        assert!(found.starts_with(&history), "seed {seed}, life {life}: synced {history:?}, found {found:?}");
        history = found;
        disk.crash();
    }
}

/// A torn record stays behind at the end of a segment when what was written instead, after the crash, did not fit there.
/// Its header is whole and its data is not, and later records vouch for its sequence: it was once taken for a damaged
/// record of the log.
#[test]
fn a_torn_record_left_at_a_segments_end_is_not_taken_for_a_damaged_one() {
    survives_crashes(1880);
}

/// Any one bit of a log whose records are synced, but for the newest: it is found at the start or, in data, left to the
/// checksums of the entries; no record is lost without a word.
fn finds_a_flip(seed: u64) {
    let disk = SimDisk::new(seed);
    let mut next = randomly(seed);
    let (mut log, _) = open(&disk, None);
    let mut places = Vec::new();
    let count = 2 + next(12);
    for number in 1..=count {
        let (entry, data) = write(number, 1 + next(if seed.is_multiple_of(8) { 500 } else { 6 }) as u32);
        log.append(entry, data, false, number).expect("is queued");
        for event in settle(&mut log) {
            if let Event::Appended { result: Ok(placed), .. } = event {
                places.push(placed);
            }
        }
        log.sync(number).expect("not poisoned");
        settle(&mut log);
    }
    disk.kill();
    let record = places[next(count - 1) as usize];
    let block = (record.first_block - 1 + next(2) as u32) as usize;
    // The header and the entries of a small record, or anywhere in its data.
    let in_header = block as u32 == record.first_block - 1;
    let byte = if in_header { next(52) } else { next(4096) } as usize;
    disk.flip(&format!("{:08}.seg", record.segment), block * BLOCK_SIZE as usize + byte);
    match try_open(&disk, None) {
        Err(LogError::Damaged { segment, block: named, .. }) => {
            assert!(in_header, "seed {seed}: only data was damaged");
            // The first record of a segment is missed where the segment before it ends.
            assert!((segment, named as usize) == (record.segment, block) || block == 1, "seed {seed}");
        }
        Ok((_, found)) => {
            assert!(!in_header, "seed {seed}: byte {byte} of block {block} went unnoticed");
            assert_eq!(found.len() as u64, count, "seed {seed}: nothing is cut");
        }
        Err(error) => panic!("seed {seed}: {error}"),
    }
}

/// How many seeds: `HELIO_SEEDS` of them in a soak.
fn seeds(usual: u64) -> std::ops::RangeInclusive<u64> {
    1..=std::env::var("HELIO_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}

#[test]
fn synced_records_survive_power_cuts_at_any_moment() {
    seeds(600).for_each(survives_crashes);
}

#[test]
fn a_flip_in_any_synced_record_is_found() {
    seeds(1000).for_each(finds_a_flip);
}
