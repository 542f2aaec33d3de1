//! A disk that fails the block map: said, and nothing written that could not be applied; what can be read is served.

use std::io::ErrorKind;

use client_lib::{SnapshotId, VolumeId};

use super::rig::{Rig, VOLUME};
use crate::map::page::PAGE_ENTRIES;
use crate::map::store::Faults;
use crate::shard::handle::{QUEUE_DEPTH, Request, StoreError};
use crate::shard::scrub::ScrubAction;

const SIZE: u64 = 64 << 20;
const BLOCK: u64 = 4096;
/// The byte where page 1 begins.
const PAGE_1: u64 = PAGE_ENTRIES as u64 * BLOCK;
const PAGE_1_FAILS: Faults = Faults { page: Some(1), commits: None };

/// An owner with a block in each of two pages, neither of them in memory; page 1 cannot be read.
fn rig(seed: u64) -> Rig {
    let mut rig = Rig::in_memory(seed, |_| {});
    rig.open(SIZE);
    rig.activate(1);
    rig.write(0, vec![1; BLOCK as usize]).expect("writes");
    rig.write(PAGE_1, vec![2; BLOCK as usize]).expect("writes");
    rig.restart();
    rig.activate(2);
    rig.fail_map(PAGE_1_FAILS);
    rig
}

fn refused(outcome: Result<impl std::fmt::Debug, StoreError>) -> String {
    match outcome {
        Err(error @ (StoreError::Poisoned(_) | StoreError::Io(_))) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The first reader was told once, and nobody else: `helio volume status` showed a store in good order, and the next write
/// was logged, could not be applied, and kept the node from starting.
#[test]
fn a_page_that_cannot_be_read_is_a_fault_and_nothing_more_is_logged() {
    let mut rig = rig(1);
    assert_eq!(rig.report().fault, None);
    refused(rig.read(PAGE_1, 512));
    let fault = rig.report().fault.expect("the report says why");
    assert!(fault.contains("the block map cannot be read") && fault.contains("an injected fault"), "{fault}");
    let space = rig.ask(|reply| Request::Space { of: None, reply }).expect("tells");
    assert_eq!(space.fault.as_ref(), Some(&fault));
    rig.turn();
    assert_eq!(rig.core().fault_cell().get(), Some(fault.as_str()), "seen without asking the shard");

    let position = rig.core().log.position();
    let told = refused(rig.write(PAGE_1, vec![3; BLOCK as usize]));
    assert!(told.contains("takes no writes until the node is restarted") && told.contains(&fault), "{told}");
    refused(rig.zero(0, 2 * PAGE_1));
    assert_eq!(rig.core().log.position(), position, "what could not be applied is not logged");
    assert_eq!(rig.read(0, 512).expect("what can be read is served"), [1; 512]);
    rig.flush().expect("what was acked is durable");
    refused(rig.checkpoint());
    refused(rig.ask(|reply| Request::Stop { reply }));

    // The cause is gone.
    rig.fail_map(Faults::default());
    rig.kill();
    rig.activate(3);
    assert_eq!(rig.report().fault, None);
    rig.write(PAGE_1 + BLOCK, vec![4; BLOCK as usize]).expect("writes again");
    assert_eq!(rig.read(PAGE_1, 4096).expect("reads"), [2; 4096]);
}

/// Told when the turn was over, and the reader before: who then looked for a store for a new volume was sent back to this one.
#[test]
fn a_fault_is_seen_before_its_first_victim_hears_of_it() {
    let mut rig = rig(11);
    let moment = crate::volume::Moment::Now;
    let mut answer = rig.send(|reply| Request::Read { volume: VOLUME, moment, offset: PAGE_1, length: 512, reply });
    answer.try_recv().expect("is answered at once").expect_err("cannot be read");
    assert!(rig.core().fault_cell().get().is_some());
}

#[test]
fn whoever_meets_the_page_makes_it_known() {
    type Meet = fn(&mut Rig);
    let ways: [(&str, Meet); 4] = [
        ("a write of a part", |rig| drop(refused(rig.write(PAGE_1, vec![9; 512])))),
        ("a whole block", |rig| drop(refused(rig.write(PAGE_1, vec![9; BLOCK as usize])))),
        ("extents", |rig| {
            let (volume, moment) = (VOLUME, crate::volume::Moment::Now);
            drop(refused(rig.ask(|reply| Request::Extents { volume, moment, offset: 0, length: SIZE, reply })));
        }),
        ("the scrub", |rig| {
            rig.ask(|reply| Request::Scrub { action: ScrubAction::Start, of: None, reply }).expect("begins");
            for _ in 0..1000 {
                rig.turn();
            }
        }),
    ];
    for (name, meet) in ways {
        let mut rig = rig(3);
        meet(&mut rig);
        let fault = rig.report().fault.unwrap_or_else(|| panic!("{name} leaves no trace"));
        assert!(fault.contains("block map") && fault.contains("an injected fault"), "{name}: {fault}");
    }
}

/// Turns of background work ended at the fault, and with them whatever made room: with a map cache that was full, or a log
/// without a free segment, the shard never took another request.
#[test]
fn nobody_waits_for_what_a_failed_shard_does_not_do() {
    let mut rig = rig(5);
    rig.snapshot(1).expect("is made");
    rig.write_block(0, 7).expect("writes");
    while rig.core().has_background_work() {
        rig.turn();
    }
    rig.disk.hold_syncs(true);
    let checkpoint = rig.send(|reply| Request::Checkpoint { reply });
    rig.turn();
    let rollback = rig.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(1), reply });
    let held = rig.send(|reply| Request::Report { volume: VOLUME, reply });
    let read = rig.send(|reply| Request::Read {
        volume: VOLUME,
        moment: crate::volume::Moment::Now,
        offset: 0,
        length: 512,
        reply,
    });
    rig.core().fail("an injected fault");
    refused(rig.wait(rollback));
    refused(rig.wait(read));
    rig.wait(held).expect("tells");
    rig.disk.hold_syncs(false);
    refused(rig.wait(checkpoint));
    assert!(!rig.core().has_background_work(), "it rests");
    assert_eq!(rig.read(0, 512).expect("reads are served"), [7; 512]);
    refused(rig.ask(|reply| Request::Delete { volume: VolumeId(7), reply }));
}

/// An owner with a block in the log, whose map cannot be written for `reason`; a checkpoint has been tried once.
fn unwritable(seed: u64, reason: ErrorKind) -> Rig {
    let mut rig = Rig::in_memory(seed, |_| {});
    rig.open(SIZE);
    rig.activate(1);
    rig.write_block(0, 1).expect("writes");
    rig.fail_map(Faults { page: None, commits: Some(reason) });
    refused(rig.checkpoint());
    rig.write_block(1, 2).expect("is in the log");
    rig
}

/// A checkpoint that failed is tried again.
async fn try_again(rig: &mut Rig) {
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    for _ in 0..10 {
        rig.turn();
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_cannot_be_written_is_tried_again_and_then_a_fault() {
    let mut rig = unwritable(7, ErrorKind::Other);
    try_again(&mut rig).await;
    assert_eq!(rig.report().fault, None, "twice is not enough");
    rig.fail_map(Faults::default());
    try_again(&mut rig).await;
    rig.checkpoint().expect("it goes on");

    rig.fail_map(Faults { page: None, commits: Some(ErrorKind::Other) });
    refused(rig.checkpoint());
    let late = rig.send(|reply| Request::Checkpoint { reply });
    try_again(&mut rig).await;
    assert_eq!(rig.report().fault, None, "counted anew");
    try_again(&mut rig).await;
    let fault = rig.report().fault.expect("the report says why");
    assert!(fault.contains("the block map cannot be written") && fault.contains("an injected fault"), "{fault}");
    refused(rig.wait(late));
    refused(rig.write_block(2, 3));
    assert_eq!(rig.read(0, 8192).expect("reads are served"), [[1; 4096], [2; 4096]].concat());
    rig.fail_map(Faults::default());
    rig.kill();
    rig.activate(2);
    assert_eq!(rig.read(0, 8192).expect("nothing acked is lost"), [[1; 4096], [2; 4096]].concat());
    rig.checkpoint().expect("is written");
}

fn refused_for_room(outcome: Result<(), StoreError>) {
    assert!(outcome.as_ref().is_err_and(|error| error.to_string().contains("an injected fault")), "{outcome:?}");
}

/// The requests that waited for one volume kept those of all others from being taken up, also those that would have made room.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_volume_that_waits_for_room_holds_up_no_other() {
    let mut rig = Rig::in_memory(10, |_| {});
    rig.open(SIZE);
    rig.activate(1);
    rig.write_block(0, 1).expect("writes");
    rig.snapshot(1).expect("is made");
    rig.fail_map(Faults { page: None, commits: Some(ErrorKind::StorageFull) });
    rig.checkpoint().expect_err("there is no room");
    rig.disk.hold_syncs(true);
    let mut rollback = rig.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(1), reply });
    let read =
        |reply| Request::Read { volume: VOLUME, moment: crate::volume::Moment::Now, offset: 0, length: 512, reply };
    let mut waiting: Vec<_> = (0..QUEUE_DEPTH).map(|_| rig.send(read)).collect();
    assert!(waiting.iter_mut().all(|answer| answer.try_recv().is_err()), "they wait for the rollback");
    assert!(!rig.core().must_hold_back());
    let one_more = rig.send(read);
    assert_eq!(rig.wait(one_more).err(), Some(StoreError::OutOfSpace));
    assert!(rollback.try_recv().is_err());
    rig.disk.hold_syncs(false);
    for _ in 0..3 {
        try_again(&mut rig).await;
    }
    rig.wait(rollback).expect("is rolled back, and recovery would have more to do");
    for answer in waiting {
        rig.wait(answer).expect("reads");
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_without_room_is_no_fault_and_goes_on_when_there_is_some() {
    let mut rig = unwritable(9, ErrorKind::StorageFull);
    for _ in 0..10 {
        // Once it waited for as long as there was no room, as what is rolled back did behind it, and whoever uses that.
        let late = rig.send(|reply| Request::Checkpoint { reply });
        try_again(&mut rig).await;
        assert_eq!(rig.report().fault, None);
        refused_for_room(rig.wait(late));
    }
    rig.write_block(2, 3).expect("is in the log");
    rig.fail_map(Faults::default());
    try_again(&mut rig).await;
    rig.checkpoint().expect("is written");
    rig.kill();
    rig.activate(2);
    assert_eq!(rig.read(0, 8192).expect("reads"), [[1; 4096], [2; 4096]].concat());
}
