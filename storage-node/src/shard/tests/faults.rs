//! Full disks, flipped bytes, failed writes, roles.

use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};

use super::rig::{Rig, VOLUME};
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::page::Content;
use crate::shard::handle::{FreezeWhen, Request, Role, StoreError};

const SIZE: u64 = 64 << 20;

#[test]
fn a_flipped_byte_is_named_and_other_blocks_are_served() {
    let mut rig = Rig::new(1);
    rig.open(SIZE);
    rig.activate(1);
    for block in 0..3 {
        rig.write_block(block, 7).expect("writes");
    }
    let core = rig.core();
    let version = core.volumes[&VOLUME].state.view(1, &mut core.map).expect("reads").expect("mapped");
    let Content::Local { place, .. } = version.content else { panic!("{version:?}") };
    rig.disk.flip(&format!("{:08}.seg", place.segment), place.block as usize * 4096 + 100);
    match rig.read(0, 3 * 4096) {
        Err(StoreError::Corrupt { volume, block, segment, offset, expected, found }) => {
            assert_eq!((volume, block, segment), (VOLUME, BlockIndex(1), u64::from(place.segment)));
            assert_eq!(offset, u64::from(place.block) * 4096);
            assert_ne!(expected, found);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(rig.write(4096 + 512, vec![1; 512]), Err(StoreError::Damaged { .. })),
        "nothing is merged with damage"
    );
    assert_eq!(rig.read(0, 4096).expect("reads"), [7; 4096]);
    rig.write_block(1, 8).expect("a whole block heals it");
    assert_eq!(rig.read(0, 3 * 4096).expect("reads")[4096..8192], [8; 4096]);
}

#[test]
fn a_failed_write_of_the_log_refuses_all_later_ones_until_a_restart() {
    let mut rig = Rig::new(3);
    rig.open(SIZE);
    rig.activate(1);
    rig.write_block(0, 1).expect("writes");
    rig.flush().expect("flushes");
    rig.disk.fail_after(0);
    assert_eq!(rig.report().fault, None);
    assert!(matches!(rig.write_block(1, 2), Err(StoreError::Poisoned(_))));
    assert!(matches!(rig.write_block(2, 2), Err(StoreError::Poisoned(_))));
    assert!(matches!(rig.flush(), Err(StoreError::Poisoned(_))));
    assert_eq!(rig.read(0, 4096).expect("reads are served"), [1; 4096]);
    let fault = rig.report().fault.expect("the report says why");
    assert!(fault.contains("a write to the log failed: an injected fault"), "{fault}");
    assert!(matches!(rig.ask(|reply| Request::Stop { reply }), Err(StoreError::Poisoned(_))));
    rig.kill();
    rig.activate(2);
    rig.write_block(1, 3).expect("writes again");
    assert_eq!(rig.read(0, 4096).expect("reads"), [1; 4096]);
}

/// It was refused as if it had not been carried out, and was carried out once more by the next owner, over what had been written between.
#[test]
fn a_write_that_is_carried_out_and_could_not_be_made_durable_says_so() {
    let mut rig = Rig::new(4);
    rig.open(SIZE);
    rig.activate(1);
    // Not synced, so that the next one is written first and synced then.
    rig.write_block(0, 1).expect("writes");
    rig.disk.fail_writes_after(1);
    let answer = rig.send_write(4096, vec![2; 4096], true);
    let refused = rig.wait(answer);
    assert!(matches!(&refused, Err(StoreError::NotDurable { lsn, .. }) if lsn.sequence == 2), "{refused:?}");
    assert_eq!(rig.read(4096, 4096).expect("reads"), [2; 4096]);
}

/// A freeze waited for a sync that could not come, so that such a volume could not be handed over.
#[test]
fn the_end_of_an_epoch_in_a_store_that_takes_no_writes_is_what_was_acked() {
    let mut rig = Rig::new(4);
    rig.open(SIZE);
    rig.activate(1);
    rig.write_block(0, 1).expect("writes");
    let durable = rig.flush().expect("flushes");
    let acked = rig.write_block(1, 2).expect("writes");
    rig.disk.fail_after(0);
    assert!(rig.write_block(2, 3).is_err());
    let (volume, from, after) = (VOLUME, Lsn::ZERO, SnapshotId(0));
    let seal = |rig: &mut Rig| rig.ask(|reply| Request::SealUnsynced { volume, from, after, reply });
    assert!(seal(&mut rig).is_err(), "it is not frozen");
    let frozen = rig.ask(|reply| Request::Freeze { volume, when: FreezeWhen::Always, reply });
    assert!(matches!(frozen, Err(StoreError::Poisoned(_))), "{frozen:?}");
    let frozen = rig.ask(|reply| Request::Freeze { volume, when: FreezeWhen::Unsynced, reply });
    assert_eq!(frozen, Ok(acked));
    let end = seal(&mut rig).expect("is told");
    assert_eq!((end.manifest.to, end.durable), (acked, durable));
    assert_eq!(end.manifest.runs.iter().map(|run| run.blocks()).sum::<u32>(), 2);
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_when_space_is_back() {
    let mut rig = Rig::with(5, |options| options.log.capacity_bytes = Some(3 * SEGMENT_BYTES_MIN));
    rig.open(SIZE);
    rig.activate(1);
    let (mut written, mut last) = (0, Lsn::ZERO);
    let refused = loop {
        match rig.write(written << 20, vec![(written + 1) as u8; 1 << 20]) {
            Ok(lsn) => (written, last) = (written + 1, lsn),
            Err(error) => break error,
        }
        assert!(written < 60, "the capacity is three segments");
    };
    assert_eq!(refused, StoreError::OutOfSpace);
    // It counted as written, so that every replica was behind for ever, and was told of nothing again and again.
    assert_eq!(rig.report().head, last);
    assert!(written > 4, "{written} MiB were written");
    assert_eq!(rig.read(0, 4096).expect("reads"), [1; 4096]);
    rig.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply }).expect("freezes");
    rig.ask(|reply| Request::Thaw { volume: VOLUME, reply }).expect("thaws");
    rig.zero(0, SIZE).expect("zeroes");
    rig.activate(2);
    rig.checkpoint().expect("is written");
    // Give the log turns to take its segments back.
    rig.flush().expect("flushes");
    let mut tries = 0;
    while rig.write_block(0, 9) == Err(StoreError::OutOfSpace) {
        tries += 1;
        assert!(tries < 1000, "space does not come back");
    }
    assert_eq!(rig.read(0, 4096).expect("reads"), [9; 4096]);
    rig.restart();
    rig.activate(3);
    assert_eq!(rig.read(0, 8192).expect("reads"), [[9; 4096], [0; 4096]].concat());
}

#[test]
fn random_overwrites_do_not_fill_the_disk() {
    const BLOCKS: u32 = 512;
    // In memory, so that no checkpoint is late because the machine is busy.
    let mut rig = Rig::in_memory(7, |options| options.log.capacity_bytes = Some(8 * SEGMENT_BYTES_MIN));
    rig.open(SIZE);
    rig.activate(1);
    let mut newest = vec![0u8; BLOCKS as usize];
    let mut random = 1u64;
    // Some twenty times the capacity's worth of live data goes through.
    for number in 0..BLOCKS * 60 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (random >> 33) as u32 % BLOCKS;
        let fill = (number % 250) as u8 + 1;
        rig.write_block(block, fill).unwrap_or_else(|error| panic!("write {number}: {error}"));
        newest[block as usize] = fill;
    }
    assert_eq!(rig.report().mapped_blocks, u64::from(BLOCKS));
    for round in 0..2 {
        for (block, fill) in newest.iter().enumerate() {
            let found = rig.read(block as u64 * 4096, 4096).expect("reads");
            assert_eq!(found, [*fill; 4096], "block {block} in round {round}");
        }
        rig.kill();
        rig.activate(2);
    }
}

#[test]
fn only_an_owner_that_is_not_frozen_writes() {
    let mut rig = Rig::new(1);
    let report = rig.open(SIZE);
    assert_eq!((report.role, report.epoch), (Role::Replica, Epoch(0)));
    assert!(matches!(rig.write_block(0, 1), Err(StoreError::NotOwner { .. })));
    assert!(matches!(rig.read(0, 512), Err(StoreError::NotOwner { .. })));
    let report = rig.activate(4);
    assert_eq!((report.role, report.epoch), (Role::Owner, Epoch(4)));
    let lsn = rig.write_block(0, 1).expect("writes");
    assert_eq!(lsn.to_string(), "4.1");
    let answer = rig.send_write(4096, vec![2; 512], false);
    let frozen = rig.send(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply });
    assert_eq!(rig.write_block(2, 3), Err(StoreError::Frozen(VOLUME)));
    assert_eq!(rig.wait(answer).expect("what was under way ends").to_string(), "4.2");
    assert_eq!(rig.wait(frozen).expect("freezes").to_string(), "4.2");
    assert_eq!(rig.read(0, 4096).expect("reads are served"), [1; 4096]);
    let stale = rig.ask(|reply| Request::Activate { volume: VOLUME, epoch: Epoch(3), acts_under: Some(0), reply });
    assert!(matches!(stale, Err(StoreError::NotOwner { .. })));
    rig.ask(|reply| Request::Thaw { volume: VOLUME, reply }).expect("thaws");
    rig.write_block(2, 3).expect("writes again");
    let report = rig.deactivate(5);
    assert_eq!((report.role, report.epoch, report.known.to_string()), (Role::Replica, Epoch(5), "4.3".to_owned()));
    assert_eq!(report.watermark, report.known);
    assert!(matches!(rig.write_block(2, 4), Err(StoreError::NotOwner { .. })));
    assert_eq!(rig.activate(6).head.to_string(), "4.3");
    assert_eq!(rig.write_block(2, 4).expect("writes").to_string(), "6.4");
}

#[test]
fn an_owner_comes_back_as_a_replica_at_its_last_write() {
    let mut rig = Rig::new(1);
    rig.open(SIZE);
    rig.activate(1);
    let mut last = None;
    for block in 0..20 {
        last = Some(rig.write_block(block, 5).expect("writes"));
    }
    rig.kill();
    let report = rig.open(SIZE);
    assert_eq!((report.role, Some(report.known), Some(report.watermark)), (Role::Replica, last, last));
    rig.kill();
    assert_eq!(rig.report().role, Role::Replica);
}

#[test]
fn a_deleted_volume_is_gone_for_good_and_its_space_free() {
    let mut rig = Rig::new(1);
    rig.open(SIZE);
    rig.activate(1);
    let other = VolumeId(8);
    let size = VolumeSize::try_from(SIZE).expect("valid");
    rig.ask(|reply| Request::Open { volume: other, size, reply }).expect("opens");
    rig.write(0, vec![3; 8 << 20]).expect("writes");
    rig.checkpoint().expect("is written");
    for _ in 0..2 {
        rig.ask(|reply| Request::Delete { volume: VOLUME, reply }).expect("deletes");
        assert!(matches!(
            rig.ask(|reply| Request::Report { volume: VOLUME, reply }),
            Err(StoreError::UnknownVolume(_))
        ));
    }
    rig.crash();
    assert_eq!(rig.ask(|reply| Request::List { reply }).expect("lists"), [other]);
    rig.restart();
    assert_eq!(rig.ask(|reply| Request::List { reply }).expect("lists"), [other]);
    assert_eq!(rig.core().map.usage.mapped(VOLUME), 0);
    let report = rig.open(SIZE);
    assert_eq!((report.epoch, report.mapped_blocks), (Epoch(0), 0));
}
