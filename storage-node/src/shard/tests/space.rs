//! Where space goes, and that it comes back: after TRIM, WRITE_ZEROES and deletions, to the pool and to the file system.

use std::time::Duration;

use super::rig::{Rig, VOLUME, catch_up};
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::Request;
use crate::shard::space::{ShardSpace, VolumeSpace};
use crate::volume::layers::Wanted;

const MIB: u64 = 1 << 20;
const BLOCKS_PER_MIB: u64 = 256;

fn space(rig: &mut Rig) -> ShardSpace {
    let space = rig.ask(|reply| Request::Space { of: None, reply }).expect("tells");
    let parts = space.pooled_bytes + space.unwritten_bytes + space.live_bytes + space.garbage_bytes;
    assert_eq!(parts, space.log_bytes, "every byte of the log is one of these: {space:?}");
    space
}

fn volume(rig: &mut Rig) -> VolumeSpace {
    *space(rig).volumes.iter().find(|space| space.volume == VOLUME).expect("is there")
}

fn write(rig: &mut Rig, mibs: std::ops::Range<u64>, fill: u8) {
    for mib in mibs {
        rig.write(mib * MIB, vec![fill; MIB as usize]).expect("writes");
    }
}

/// Takes turns until nothing is left to be done in the background.
fn settle(rig: &mut Rig) {
    while rig.core().has_background_work() {
        rig.core().turn(Duration::from_millis(1));
    }
}

#[test]
fn what_is_trimmed_zeroed_and_deleted_comes_back() {
    let mut rig = Rig::new(1);
    rig.open(64 * MIB);
    rig.activate(1);
    write(&mut rig, 0..32, 1);
    let full = space(&mut rig);
    assert_eq!((full.live_bytes, volume(&mut rig).mapped_blocks), (32 * MIB, 32 * BLOCKS_PER_MIB));
    assert!(full.garbage_bytes < 5 * MIB, "headers, and the ends of segments: {full:?}");

    rig.zero(0, 16 * MIB).expect("zeroes");
    let trimmed = space(&mut rig);
    assert_eq!((trimmed.live_bytes, volume(&mut rig).mapped_blocks), (16 * MIB, 16 * BLOCKS_PER_MIB));
    assert!(trimmed.garbage_bytes > 16 * MIB && trimmed.emptied_bytes >= SEGMENT_BYTES_MIN, "{trimmed:?}");
    rig.checkpoint().expect("is written");
    settle(&mut rig);
    let after = space(&mut rig);
    assert_eq!((after.emptied_bytes, after.live_bytes), (0, 16 * MIB));
    assert!(after.log_bytes < trimmed.log_bytes || after.pooled_bytes > trimmed.pooled_bytes, "{after:?}");

    // What a snapshot shares costs nothing; what is overwritten after it, it holds alone.
    rig.snapshot(1).expect("is made");
    settle(&mut rig);
    assert_eq!((volume(&mut rig).snapshot_blocks, space(&mut rig).live_bytes), (0, 16 * MIB));
    write(&mut rig, 16..32, 2);
    settle(&mut rig);
    let held = volume(&mut rig);
    assert_eq!((held.mapped_blocks, held.snapshot_blocks), (16 * BLOCKS_PER_MIB, 16 * BLOCKS_PER_MIB));
    assert_eq!((held.deleted_blocks, space(&mut rig).live_bytes), (0, 32 * MIB));
    rig.delete_snapshot(1).expect("is deleted");
    settle(&mut rig);
    let gone = volume(&mut rig);
    assert_eq!((gone.snapshot_blocks, gone.deleted_blocks, space(&mut rig).live_bytes), (0, 0, 16 * MIB));

    rig.ask(|reply| Request::Delete { volume: VOLUME, reply }).expect("is deleted");
    let deleted = space(&mut rig);
    assert_eq!((deleted.live_bytes, deleted.volumes.len()), (0, 0));
    rig.checkpoint().expect("is written");
    settle(&mut rig);
    let empty = space(&mut rig);
    assert_eq!(empty.emptied_bytes, 0);
    assert_eq!(
        empty.log_bytes - empty.pooled_bytes,
        SEGMENT_BYTES_MIN,
        "only the one that is written is in use: {empty:?}"
    );
    rig.restart();
    let restarted = space(&mut rig);
    assert_eq!((restarted.live_bytes, restarted.log_bytes), (0, empty.log_bytes));
}

/// Nobody writes any more after the deletion, so that no checkpoint comes by itself.
#[test]
fn an_idle_shard_gets_the_space_of_a_deleted_volume_back_by_itself() {
    let mut rig = Rig::with(3, |options| options.reclaim_pause = Some(Duration::ZERO));
    rig.open(64 * MIB);
    rig.activate(1);
    write(&mut rig, 0..40, 1);
    settle(&mut rig);
    let full = space(&mut rig);
    rig.ask(|reply| Request::Delete { volume: VOLUME, reply }).expect("is deleted");
    for turns in 0.. {
        rig.core().turn(Duration::from_millis(1));
        let now = space(&mut rig);
        if now.emptied_bytes == 0 && now.log_bytes < full.log_bytes {
            break;
        }
        assert!(turns < 10_000, "nothing comes back: {now:?}");
    }
}

#[test]
fn what_a_lagging_replica_costs_is_told_at_both_ends() {
    let (mut owner, mut replica) = (Rig::in_memory(5, |_| {}), Rig::in_memory(6, |_| {}));
    owner.open(4 * MIB);
    replica.open(4 * MIB);
    owner.activate(1);
    write(&mut owner, 0..2, 1);
    catch_up(&mut owner, &mut replica);
    assert_eq!((volume(&mut owner).held_blocks, volume(&mut replica).unapplied_blocks), (0, 0));

    write(&mut owner, 0..1, 2);
    let report = replica.report();
    let (manifest, delta) = owner.seal(report.known, Some(report.watermark));
    let delta = delta.expect("was asked for");
    assert_eq!(volume(&mut owner).held_blocks, 0, "the volume has them itself");
    owner.write(0, vec![3; 100 * 4096]).expect("writes");
    let held = volume(&mut owner);
    assert_eq!((held.mapped_blocks, held.held_blocks), (2 * BLOCKS_PER_MIB, 100));

    replica.apply_manifest(&manifest, true, true).expect("is taken");
    let missing: Vec<BlockRun> = replica.missing(Wanted::Sealed, 10);
    replica.receive(owner.read_sealed(delta.pin, missing).expect("reads")).expect("receives");
    let received = volume(&mut replica);
    assert_eq!((received.mapped_blocks, received.unapplied_blocks), (3 * BLOCKS_PER_MIB, BLOCKS_PER_MIB));
    replica.apply_sealed(delta.to);
    settle(&mut replica);
    let applied = volume(&mut replica);
    assert_eq!((applied.mapped_blocks, applied.unapplied_blocks), (2 * BLOCKS_PER_MIB, 0));
    owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
    assert_eq!(volume(&mut owner).held_blocks, 0);
}
