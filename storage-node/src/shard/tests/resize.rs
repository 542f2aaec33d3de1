//! Another size: what a growth shows, what a shrink drops, here and at replicas, and what a crash leaves of it.

use client_lib::{Epoch, Lsn, VolumeSize};

use super::rig::{Rig, VOLUME, uniform};
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::{FreezeWhen, Request, Role, StoreError};
use crate::volume::layers::Wanted;

const BLOCK: u64 = 4096;

fn owner(bytes: u64) -> Rig {
    let mut rig = Rig::new(1);
    rig.open(bytes);
    rig.activate(1);
    rig
}

/// Sends everything to `replica` and has it applied.
fn propagate(owner: &mut Rig, replica: &mut Rig) {
    let at = replica.report();
    let (manifest, delta) = owner.seal(at.known, Some(at.watermark));
    let delta = delta.expect("is sealed");
    replica.apply_manifest(&manifest, true, false).expect("is taken");
    let missing: Vec<BlockRun> = replica.missing(Wanted::Sealed, 100);
    let blocks = owner.read_sealed(delta.pin, missing).expect("reads");
    replica.receive(blocks).expect("receives");
    assert_eq!(replica.apply_sealed(delta.to), delta.to);
    owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
}

#[test]
fn a_grown_volume_reads_zeroes_and_is_written_to_its_new_end() {
    // The old end cuts a block.
    let mut rig = owner(8 * BLOCK + 512);
    rig.write(7 * BLOCK, vec![7; 4096 + 512]).expect("writes");
    let refused = rig.write(8 * BLOCK, vec![8; 1024]);
    assert!(matches!(refused, Err(StoreError::BeyondEnd { length: 1024, .. })), "{refused:?}");
    assert_eq!(rig.resize(20 * BLOCK).expect("grows").size.bytes(), 20 * BLOCK);
    let mut expected = vec![7; 4096 + 512];
    expected.resize(13 * BLOCK as usize, 0);
    assert_eq!(rig.read(7 * BLOCK, 13 * BLOCK as u32).expect("reads"), expected);
    rig.write(8 * BLOCK + 512, vec![9; 512]).expect("writes behind the old end");
    rig.write(20 * BLOCK - 512, vec![9; 512]).expect("writes the last sector");
    rig.crash();
    assert_eq!(rig.report().size.bytes(), 20 * BLOCK, "a power cut does not undo it");
    rig.activate(2);
    assert!(rig.write(20 * BLOCK, vec![1; 512]).is_err());
}

#[test]
fn what_a_shrink_dropped_reads_as_zeroes_when_the_volume_has_grown_again() {
    let mut rig = owner(64 * BLOCK);
    rig.write(0, vec![5; 64 * BLOCK as usize]).expect("writes");
    assert_eq!(rig.report().mapped_blocks, 64);
    let end = 10 * BLOCK + 1536;
    assert_eq!(rig.resize(end).expect("shrinks").size.bytes(), end);
    assert_eq!(rig.report().mapped_blocks, 11, "the space is free");
    assert_eq!(rig.read(0, end as u32).expect("reads"), vec![5; end as usize]);
    assert!(matches!(rig.read(0, end as u32 + 512), Err(StoreError::BeyondEnd { .. })));
    for restart in [Rig::crash, Rig::restart] {
        restart(&mut rig);
        assert_eq!(rig.report().size.bytes(), end);
    }
    rig.activate(2);
    rig.resize(64 * BLOCK).expect("grows");
    let mut expected = vec![5; end as usize];
    expected.resize(64 * BLOCK as usize, 0);
    assert!(rig.read(0, 64 * BLOCK as u32).expect("reads") == expected);
}

#[test]
fn writes_that_were_admitted_before_a_shrink_do_not_outlive_it() {
    let mut rig = owner(64 * BLOCK);
    // Partial writes wait for the old content, so these are still waiting when the shrink is asked for.
    let mut writes: Vec<_> = (0..40).map(|at| rig.send_write(20 * BLOCK + at * 700, vec![3; 700], false)).collect();
    let size = VolumeSize::try_from(16 * BLOCK).expect("valid");
    let shrink = rig.send(|reply| Request::Resize { volume: VOLUME, size, owner: Some(Epoch(1)), reply });
    let again = rig.send(|reply| Request::Resize { volume: VOLUME, size, owner: Some(Epoch(1)), reply });
    let late = rig.send_write(20 * BLOCK, vec![4; 512], false);
    assert!(matches!(rig.wait(late), Err(StoreError::BeyondEnd { .. })), "refused from the moment it is asked for");
    for write in writes.drain(..) {
        rig.wait(write).expect("was admitted");
    }
    assert_eq!(rig.wait(shrink).expect("shrinks").size, size);
    assert_eq!(rig.wait(again).expect("the same").size, size);
    rig.resize(64 * BLOCK).expect("grows");
    assert!(rig.read(0, 64 * BLOCK as u32).expect("reads").iter().all(|byte| *byte == 0));
}

/// A size that was wanted under an earlier ownership may be asked for late, when the volume has another one and data there.
#[test]
fn a_shrink_of_another_epoch_drops_nothing() {
    let mut rig = owner(64 * BLOCK);
    rig.write_block(40, 1).expect("writes");
    rig.activate(3);
    for owner in [None, Some(Epoch(1)), Some(Epoch(4))] {
        let size = VolumeSize::try_from(8 * BLOCK).expect("valid");
        let report = rig.ask(|reply| Request::Resize { volume: VOLUME, size, owner, reply }).expect("is answered");
        assert_eq!(report.size.bytes(), 64 * BLOCK);
        let size = VolumeSize::try_from(64 * BLOCK).expect("valid");
        rig.ask(|reply| Request::Resize { volume: VOLUME, size, owner, reply }).expect("is answered");
    }
    assert_eq!(rig.read(40 * BLOCK, 4096).expect("reads"), [1; 4096]);
}

#[test]
fn a_frozen_volume_is_not_shrunk() {
    let mut rig = owner(64 * BLOCK);
    rig.write_block(40, 1).expect("writes");
    let last = rig.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply }).expect("freezes");
    assert_eq!(rig.resize(8 * BLOCK), Err(StoreError::Frozen(VOLUME)));
    assert_eq!(rig.report().head, last, "nothing was written");
    rig.ask(|reply| Request::Thaw { volume: VOLUME, reply }).expect("thaws");
    assert_eq!(rig.read(40 * BLOCK, 4096).expect("is inside again"), [1; 4096]);
    assert_eq!(rig.resize(8 * BLOCK).expect("shrinks").size.bytes(), 8 * BLOCK);
}

#[test]
fn a_large_shrink_goes_in_steps_and_leaves_nothing() {
    let mut rig = owner(1 << 43);
    // In every part of the volume, and on both sides of the borders between steps.
    let blocks: Vec<u32> = (0..32).flat_map(|part| [part << 26, (part << 26) + (1 << 18) - 1]).collect();
    for block in &blocks {
        rig.write_block(*block, 6).expect("writes");
    }
    assert_eq!(rig.report().mapped_blocks, blocks.len() as u64);
    rig.resize(512).expect("shrinks");
    assert_eq!(rig.report().mapped_blocks, 1);
    assert_eq!(rig.read(0, 512).expect("reads"), [6; 512]);
    rig.resize(1 << 43).expect("grows");
    for block in &blocks {
        let found = rig.read(u64::from(*block) * BLOCK + 512, 512).expect("reads");
        assert_eq!(found, [0; 512], "block {block}");
    }
}

#[test]
fn a_replica_takes_blocks_beyond_the_size_it_has_heard_of() {
    let (mut owner, mut replica) = (owner(8 * BLOCK), Rig::new(2));
    replica.open(8 * BLOCK);
    owner.resize(100 * BLOCK).expect("grows");
    owner.write_block(90, 9).expect("writes");
    propagate(&mut owner, &mut replica);
    assert_eq!(replica.report().size.bytes(), 8 * BLOCK);
    let newest = replica.read_newest(vec![BlockRun { start: client_lib::BlockIndex(90), count: 1 }]).expect("is there");
    assert_eq!(uniform(newest[0].data.as_ref()), 9);
    replica.kill();
    assert_eq!(replica.resize(100 * BLOCK).expect("grows").role, Role::Replica);
    owner.deactivate(2);
    replica.activate(2);
    assert_eq!(replica.read(90 * BLOCK, 4096).expect("reads"), [9; 4096]);
}

#[test]
fn a_replica_drops_what_its_owner_dropped_whoever_shrinks() {
    let (mut owner, mut replica) = (owner(64 * BLOCK), Rig::new(2));
    replica.open(64 * BLOCK);
    owner.write(0, vec![5; 64 * BLOCK as usize]).expect("writes");
    propagate(&mut owner, &mut replica);
    assert_eq!(replica.report().mapped_blocks, 64);
    owner.resize(10 * BLOCK + 512).expect("shrinks");
    assert_eq!(replica.resize(10 * BLOCK + 512).expect("is answered").size.bytes(), 64 * BLOCK, "a replica only grows");
    assert_eq!(replica.report().mapped_blocks, 64, "its prefix is from before");
    propagate(&mut owner, &mut replica);
    while replica.report().mapped_blocks > 11 {
        replica.turn();
    }
    owner.deactivate(2);
    replica.activate(2);
    assert_eq!(replica.resize(10 * BLOCK + 512).expect("shrinks").size.bytes(), 10 * BLOCK + 512);
    replica.resize(64 * BLOCK).expect("grows");
    let mut expected = vec![5; 10 * BLOCK as usize + 512];
    expected.resize(64 * BLOCK as usize, 0);
    assert!(replica.read(0, 64 * BLOCK as u32).expect("reads") == expected);
}

/// The history of changes may not reach back to where a replica stands; then every mapped block is sent, and that must
/// include the zeroes beyond the end, or the replica would show old data after a growth.
#[test]
fn a_replica_that_was_long_away_hears_of_what_was_dropped() {
    let (mut owner, mut replica) = (owner(64 * BLOCK), Rig::new(2));
    replica.open(64 * BLOCK);
    owner.write(0, vec![5; 64 * BLOCK as usize]).expect("writes");
    propagate(&mut owner, &mut replica);
    owner.resize(10 * BLOCK).expect("shrinks");
    let head = owner.report().head;
    owner.ask(|reply| Request::Prune { volume: VOLUME, up_to: head, reply }).expect("prunes");
    propagate(&mut owner, &mut replica);
    assert!(replica.report().watermark > Lsn::ZERO);
    assert_eq!(replica.applied_prefix(), [vec![5; 10], vec![0; 54]].concat());
}

#[test]
fn the_block_that_the_new_end_cuts_is_fetched_first() {
    let (mut owner, mut replica) = (owner(64 * BLOCK), Rig::new(2));
    replica.open(64 * BLOCK);
    owner.write(0, vec![5; 64 * BLOCK as usize]).expect("writes");
    let (manifest, _) = owner.seal(Lsn::ZERO, None);
    replica.apply_manifest(&manifest, false, true).expect("is taken");
    owner.deactivate(2);
    replica.activate(2);
    let Err(StoreError::Stale { runs }) = replica.resize(10 * BLOCK + 512) else { panic!("block 10 is stale") };
    assert_eq!(runs, [BlockRun { start: client_lib::BlockIndex(10), count: 1 }]);
    assert_eq!(replica.report().size.bytes(), 64 * BLOCK, "nothing has happened");
    let blocks = owner.read_newest(runs).expect("reads");
    replica.receive(blocks).expect("receives");
    replica.resize(10 * BLOCK + 512).expect("shrinks");
    assert_eq!(replica.read(10 * BLOCK, 512).expect("reads"), [5; 512]);
    assert_eq!(replica.report().stale_blocks, 10, "nothing beyond the end is waited for");
}
