//! The log on the simulated disk: what was acked comes back, in order, whatever fails.

use std::time::Duration;

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, VolumeId};

use super::record::Entry;
use super::segment::SEGMENT_BYTES_MIN;
use super::{Event, Log, LogError, LogPosition, LogSettings, Replayed};
use crate::io::sim::SimDisk;

const VOLUME: VolumeId = VolumeId(3);

fn settings() -> LogSettings {
    LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None }
}

fn open(disk: &SimDisk, from: Option<LogPosition>) -> (Log, Vec<Replayed>) {
    let mut found = Vec::new();
    let log = Log::recover(Box::new(disk.engine()), settings(), from, &mut |replayed| found.push(replayed));
    (log.expect("recovers"), found)
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
    assert!(log.segments().len() <= 4, "recycled: {:?}", log.segments());
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
    disk.set_capacity(2 * SEGMENT_BYTES_MIN);
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
    disk.set_capacity(4 * SEGMENT_BYTES_MIN);
    // A refused write makes the log look for space again; the next ones find it.
    let accepted = (0..100).any(|_| {
        let (entry, data) = write(number, 100);
        let accepted = log.append(entry, data, false, 6000).is_ok();
        let events = settle(&mut log);
        accepted && acked(&events) == [6000]
    });
    assert!(accepted, "there is space again");
}

/// Crash at a random moment of a random history: what was reported synced is there, what is there is a prefix
/// of what was appended, and the log goes on; three lives in a row, so that a cut tail could come back if it did.
fn survives_crashes(seed: u64) {
    let disk = SimDisk::new(seed);
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut history: Vec<u64> = Vec::new();
    let mut number = 0;
    for life in 0..3 {
        let (mut log, found) = open(&disk, None);
        let found: Vec<u64> = found.iter().map(|replayed| number_of(&replayed.entry)).collect();
        assert!(found.len() >= history.len(), "seed {seed}, life {life}: synced {history:?}, found {found:?}");
        assert_eq!(found[..history.len()], history[..], "seed {seed}, life {life}");
        history = found;
        let (mut appended, mut acked_numbers, mut covered) = (Vec::new(), 0, 0);
        for _ in 0..next(60) {
            match next(4) {
                0 => {
                    log.sync(acked_numbers as u64).expect("not poisoned");
                }
                1 => {
                    let mut events = Vec::new();
                    log.turn(Duration::ZERO, &mut events).expect("turns");
                    for event in events {
                        match event {
                            Event::Appended { ticket, result } => {
                                let placed = result.expect("is appended");
                                acked_numbers += 1;
                                assert_eq!(ticket, appended[acked_numbers - 1], "seed {seed}: in order");
                                if placed.durable {
                                    covered = covered.max(acked_numbers);
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
                    let (entry, data) = write(number, 1 + next(40) as u32);
                    log.append(entry, data, next(5) == 0, number).expect("is queued");
                    appended.push(number);
                }
            }
        }
        history.extend(&appended[..covered]);
        // A prefix of what was appended may be there beyond what was synced; remember how it may go on.
        disk.crash();
        let (_, found) = open(&disk, None);
        let found: Vec<u64> = found.iter().map(|replayed| number_of(&replayed.entry)).collect();
        let all: Vec<u64> = history[..history.len() - covered].iter().chain(&appended).copied().collect();
        assert!(all.starts_with(&found), "seed {seed}, life {life}: appended {all:?}, found {found:?}");
        assert!(found.starts_with(&history), "seed {seed}, life {life}: synced {history:?}, found {found:?}");
        history = found;
        disk.crash();
    }
}

#[test]
fn synced_records_survive_power_cuts_at_any_moment() {
    let seeds = std::env::var("HELIO_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    for seed in 1..=seeds {
        survives_crashes(seed);
    }
}
