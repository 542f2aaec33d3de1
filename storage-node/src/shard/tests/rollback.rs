//! Going back to a snapshot: whole or not at all, at every node, without a copy of the data. The model in
//! [`super::snapshots`] rolls back among everything else.

use client_lib::{BLOCK_SIZE, Lsn, SnapshotId};

use super::rig::{Rig, VOLUME, catch_up};
use crate::shard::handle::{FreezeWhen, Request, StoreError};

/// Pages for several steps.
const BLOCKS: u32 = 40 * 256;
const SIZE: u64 = BLOCKS as u64 * BLOCK_SIZE as u64;
/// Every so many blocks one is written.
const STEP: u32 = 100;

fn fill(rig: &mut Rig, fill: u8) {
    for block in (0..BLOCKS).step_by(STEP as usize) {
        rig.write_block(block, fill).expect("writes");
    }
}

/// The byte of each written block; all of them are the same.
fn content(rig: &mut Rig) -> u8 {
    let mut found: Vec<u8> = (0..BLOCKS)
        .step_by(STEP as usize)
        .map(|block| rig.read(u64::from(block) * u64::from(BLOCK_SIZE), 512).expect("reads")[0])
        .collect();
    found.dedup();
    assert_eq!(found.len(), 1, "a mix of {found:?}");
    found[0]
}

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::in_memory(seed, |_| {});
    rig.open(SIZE);
    rig.activate(1);
    fill(&mut rig, 1);
    rig.snapshot(1).expect("is made");
    fill(&mut rig, 2);
    rig
}

#[test]
fn whatever_is_asked_meanwhile_waits_and_sees_the_snapshot() {
    let mut rig = rig(1);
    let traffic = rig.core().log.traffic().data;
    let earlier = rig.send_write(0, vec![3; 4096], false);
    let rolled = rig.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(1), reply });
    let later = rig.send_write(u64::from(STEP) * 4096, vec![4; 4096], false);
    let mut frozen = rig.send(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply });
    let lsn = rig.wait(rolled).expect("is rolled back");
    assert!(rig.wait(earlier).expect("was under way") < lsn);
    assert!(rig.wait(later).expect("is written after it") > lsn);
    assert!(frozen.try_recv().is_ok_and(|position| position.is_ok()) || rig.wait(frozen).is_ok());
    assert_eq!(rig.core().log.traffic().data - traffic, 2, "the blocks of the two writes");
    rig.ask(|reply| Request::Thaw { volume: VOLUME, reply }).expect("thaws");
    assert_eq!(rig.read(u64::from(STEP) * 4096, 4096).expect("reads"), [4; 4096]);
    rig.write_block(STEP, 1).expect("writes");
    assert_eq!(content(&mut rig), 1);
    // What was written before the rollback is in no snapshot, and its space comes back.
    assert_eq!(rig.roll_back(9), Err(StoreError::UnknownSnapshot { volume: VOLUME, snapshot: SnapshotId(9) }));
}

#[test]
fn a_crash_at_any_moment_leaves_all_of_it_or_nothing() {
    for seed in 1..60 {
        let mut rig = rig(seed);
        rig.flush().expect("flushes");
        let mut rolled = rig.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(1), reply });
        (0..seed).for_each(|_| rig.turn());
        let was_told = rolled.try_recv().is_ok();
        if seed % 3 == 0 {
            rig.kill()
        } else {
            rig.crash()
        }
        rig.activate(2);
        let found = content(&mut rig);
        assert!(found == 1 || (found == 2 && !was_told), "seed {seed}: {found}, told: {was_told}");
        fill(&mut rig, 5);
        rig.restart();
        rig.activate(3);
        assert_eq!(content(&mut rig), 5);
        rig.roll_back(1).expect("again");
        assert_eq!(content(&mut rig), 1);
    }
}

#[test]
fn a_replica_goes_back_as_by_any_write_and_knows_the_newer_snapshots() {
    let (mut owner, mut replica) = (rig(1), Rig::in_memory(2, |_| {}));
    replica.open(SIZE);
    owner.snapshot(2).expect("is made");
    catch_up(&mut owner, &mut replica);
    let before = replica.report().watermark;
    owner.roll_back(1).expect("is rolled back");
    // In two steps: a replica has all of it or nothing.
    let (manifest, _) = owner.seal_after(2, before, None);
    replica.apply_manifest(&manifest, false, true).expect("is taken");
    assert!(replica.applied_prefix().iter().step_by(STEP as usize).all(|byte| *byte == 2));
    catch_up(&mut owner, &mut replica);
    assert!(replica.applied_prefix().iter().step_by(STEP as usize).all(|byte| *byte == 1));
    owner.deactivate(2);
    replica.activate(2);
    assert_eq!(content(&mut replica), 1);
    replica.roll_back(2).expect("forward again, at the new owner");
    assert_eq!(content(&mut replica), 2);
    replica.delete_snapshot(1).expect("is deleted");
    replica.delete_snapshot(2).expect("is deleted");
    replica.restart();
    replica.activate(3);
    assert_eq!(content(&mut replica), 2);
}

/// A manifest that waited for its sync when a rollback was applied was sealed between two of its steps: it ended at the rollback and told of the
/// blocks that were put back by then. The others had the replica's position and older content, for good.
#[test]
fn a_manifest_that_waited_tells_of_all_that_was_put_back_or_of_nothing() {
    let (mut owner, mut replica) = (rig(1), Rig::in_memory(2, |_| {}));
    replica.open(SIZE);
    catch_up(&mut owner, &mut replica);
    let at = replica.report();
    owner.write_block(0, 3).expect("writes");
    owner.disk.hold_syncs(true);
    let flushed = owner.send(|reply| Request::Flush { volume: VOLUME, reply });
    (0..10).for_each(|_| owner.turn());
    let (volume, from, after, delta_from) = (VOLUME, at.known, at.newest_snapshot, Some(at.watermark));
    let sealed = owner.send(|reply| Request::SealManifest { volume, from, after, delta_from, reply });
    let rolled = owner.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(1), reply });
    while owner.core().volumes[&VOLUME].state.rollback.is_none() {
        owner.turn();
    }
    owner.disk.hold_syncs(false);
    owner.wait(flushed).expect("flushes");
    let (manifest, delta) = owner.wait(sealed).expect("seals");
    owner.wait(rolled).expect("is rolled back");
    replica.apply_manifest(&manifest, delta.is_some(), false).expect("is taken");
    catch_up(&mut owner, &mut replica);
    assert!(replica.applied_prefix().iter().step_by(STEP as usize).all(|byte| *byte == 1));
}

#[test]
fn what_is_not_all_here_or_too_small_is_not_rolled_back() {
    let (mut owner, mut replica) = (rig(1), Rig::in_memory(2, |_| {}));
    replica.open(SIZE);
    let (manifest, _) = owner.seal_after(1, Lsn::ZERO, None);
    replica.apply_manifest(&manifest, false, true).expect("is taken");
    assert_eq!(owner.roll_back(1).map(|lsn| lsn > manifest.to), Ok(true));
    assert!(matches!(replica.roll_back(1), Err(StoreError::NotOwner { .. })));
    replica.activate(2);
    assert!(matches!(replica.roll_back(1), Err(StoreError::StillFetching { .. } | StoreError::UnknownSnapshot { .. })));
    owner.resize(SIZE / 2).expect("shrinks");
    assert!(matches!(owner.roll_back(1), Err(StoreError::SmallerThanSnapshot { .. })));
    owner.resize(SIZE).expect("grows");
    owner.roll_back(1).expect("is rolled back");
    assert_eq!(content(&mut owner), 1);
    owner.resize(SIZE * 2).expect("grows");
    owner.write(SIZE, vec![7; 4096]).expect("writes");
    owner.roll_back(1).expect("is rolled back");
    assert_eq!(owner.read(SIZE, 4096).expect("reads"), [0; 4096], "beyond the snapshot's end");
    assert_eq!(content(&mut owner), 1);
}
