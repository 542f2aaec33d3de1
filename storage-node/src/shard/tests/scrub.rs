//! The scrub: what it reads, what it finds, how it is begun, ended and gone on with.

use std::time::Duration;

use client_lib::{SnapshotId, VolumeId, VolumeSize};

use super::damage::{flip, flip_in, place_in};
use super::rig::{Rig, VOLUME, catch_up};
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::{DamagedBlocks, Request, StoreError};
use crate::shard::scrub::{Pass, PassState, ScrubAction};
use crate::volume::Moment;

const SIZE: u64 = 64 << 20;
/// Every third block of the volume, so that they lie on several pages.
const WRITTEN: u32 = 600;
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn ask(rig: &mut Rig, action: ScrubAction, of: Option<VolumeId>) -> Pass {
    rig.ask(|reply| Request::Scrub { action, of, reply }).expect("tells").pass.expect("there is one")
}

fn damaged_now(rig: &mut Rig) -> u64 {
    rig.ask(|reply| Request::Scrub { action: ScrubAction::Look, of: None, reply }).expect("tells").damaged_now
}

/// Takes turns until the pass over `of` is over.
fn finish(rig: &mut Rig, of: Option<VolumeId>) -> Pass {
    for _ in 0..100_000 {
        let pass = ask(rig, ScrubAction::Look, of);
        if pass.state != PassState::Running {
            return pass;
        }
        rig.core().turn(Duration::from_millis(1));
    }
    panic!("the scrub does not come to its end");
}

fn owner(seed: u64, change: impl FnOnce(&mut crate::shard::ShardOptions)) -> Rig {
    let mut rig = Rig::in_memory(seed, change);
    rig.open(SIZE);
    rig.activate(1);
    for block in 0..WRITTEN {
        rig.write_block(block * 3, 7).expect("writes");
    }
    rig.flush().expect("flushes");
    rig
}

#[test]
fn a_scrub_finds_what_nobody_reads_and_others_are_served() {
    let mut rig = owner(1, |_| {});
    for block in [0, 300, 1797] {
        flip(&mut rig, block);
    }
    let begun = ask(&mut rig, ScrubAction::Start, None);
    assert_eq!((begun.state, begun.by_hand, begun.total_blocks), (PassState::Running, true, u64::from(WRITTEN)));
    let pass = finish(&mut rig, None);
    assert_eq!((pass.state, pass.checked_blocks, pass.damaged_blocks), (PassState::Finished, u64::from(WRITTEN), 3));
    assert_eq!((damaged_now(&mut rig), rig.report().verified_blocks), (3, u64::from(WRITTEN)));
    assert_eq!(rig.read(4096 * 3, 4096).expect("others are served"), [7; 4096]);
}

#[test]
fn it_begins_by_itself_and_rests_until_its_period_is_over_also_over_a_restart() {
    let mut rig = owner(3, |options| options.scrub_period = Some(Duration::ZERO));
    let seen = rig.report().verified_blocks;
    let mut turns = 0;
    while rig.report().verified_blocks < seen + 2 * u64::from(WRITTEN) {
        rig.core().turn(Duration::from_millis(1));
        turns += 1;
        assert!(turns < 100_000, "the scrub does not go on");
    }
    // Empty, the store was through with its first pass at once.
    let mut rig = Rig::in_memory(5, |options| options.scrub_period = Some(WEEK));
    rig.turn();
    assert_eq!(finish(&mut rig, None).checked_blocks, 0);
    rig.open(SIZE);
    rig.activate(1);
    rig.write_block(0, 7).expect("writes");
    rig.restart();
    assert_eq!(ask(&mut rig, ScrubAction::Look, None).state, PassState::Finished);
    for _ in 0..1000 {
        rig.turn();
    }
    assert_eq!(rig.report().verified_blocks, 0);
}

#[test]
fn it_waits_between_pages_as_its_rate_says() {
    let mut rig = owner(7, |options| options.scrub_bytes_per_second = 1);
    ask(&mut rig, ScrubAction::Start, None);
    for _ in 0..1000 {
        rig.turn();
    }
    let pass = ask(&mut rig, ScrubAction::Look, None);
    assert_eq!((pass.state, pass.checked_blocks), (PassState::Running, 86), "the first page, and a day's rest");
    assert!(rig.core().scrub.wait() > Duration::from_secs(3600));
}

#[test]
fn a_restart_goes_on_where_the_last_checkpoint_was() {
    let mut rig = owner(9, |options| options.scrub_bytes_per_second = 1);
    let begun = ask(&mut rig, ScrubAction::Start, Some(VOLUME));
    while ask(&mut rig, ScrubAction::Look, Some(VOLUME)).checked_blocks == 0 {
        rig.turn();
    }
    rig.options.scrub_bytes_per_second = u64::MAX;
    rig.restart();
    let pass = ask(&mut rig, ScrubAction::Look, Some(VOLUME));
    assert_eq!((pass.state, pass.began_ms, pass.checked_blocks), (PassState::Running, begun.began_ms, 86));
    let again = ask(&mut rig, ScrubAction::Start, Some(VOLUME));
    assert_eq!(again.began_ms, begun.began_ms, "the one under way is told of");
    let pass = finish(&mut rig, Some(VOLUME));
    assert_eq!((pass.state, pass.checked_blocks), (PassState::Finished, u64::from(WRITTEN)));
    assert_eq!(rig.report().verified_blocks, u64::from(WRITTEN) - 86, "the rest");
    rig.restart();
    assert_eq!(ask(&mut rig, ScrubAction::Look, Some(VOLUME)), pass, "its outcome is kept");
}

#[test]
fn a_scrub_of_one_volume_reads_no_other_and_can_be_stopped() {
    let mut rig = owner(11, |options| options.scrub_bytes_per_second = 1);
    let other = VolumeId(8);
    let size = VolumeSize::try_from(SIZE).expect("valid");
    rig.ask(|reply| Request::Open { volume: other, size, reply }).expect("opens");
    assert_eq!(ask(&mut rig, ScrubAction::Start, Some(other)).total_blocks, 0);
    assert_eq!(finish(&mut rig, Some(other)).checked_blocks, 0);
    ask(&mut rig, ScrubAction::Start, Some(VOLUME));
    assert_eq!(ask(&mut rig, ScrubAction::Stop, Some(VOLUME)).state, PassState::Stopped);
    for _ in 0..100 {
        rig.turn();
    }
    let stopped = ask(&mut rig, ScrubAction::Look, Some(VOLUME));
    assert_eq!((stopped.state, stopped.checked_blocks), (PassState::Stopped, 0));
    let nobody = rig.ask(|reply| Request::Scrub { action: ScrubAction::Start, of: Some(VolumeId(9)), reply });
    assert_eq!(nobody, Err(StoreError::UnknownVolume(VolumeId(9))));
    rig.ask(|reply| Request::Delete { volume: other, reply }).expect("is deleted");
    rig.restart();
    rig.ask(|reply| Request::Open { volume: other, size, reply }).expect("opens");
    let report = rig.ask(|reply| Request::Scrub { action: ScrubAction::Look, of: Some(other), reply }).expect("tells");
    assert_eq!(report.pass, None, "that was of the one before");
}

/// Fetches what is damaged at `to` from `from`, as the background task does.
fn repair(to: &mut Rig, from: &mut Rig) {
    let damaged = to.ask(|reply| Request::Damaged { reply }).expect("tells");
    for DamagedBlocks { moment, runs, .. } in damaged {
        let blocks = from.read_versions(moment, runs).expect("the other holder has them");
        assert!(to.receive(blocks).expect("receives") > 0);
    }
}

#[test]
fn what_only_snapshots_have_is_read_once_and_repaired_too() {
    let (mut owner, mut replica) = (Rig::in_memory(13, |_| {}), Rig::in_memory(14, |_| {}));
    owner.open(SIZE);
    replica.open(SIZE);
    owner.activate(1);
    let all = 600;
    for block in 0..all {
        owner.write_block(block, 1).expect("writes");
    }
    // Each snapshot alone has ten blocks; all share the rest.
    for snapshot in 1..=3u32 {
        owner.snapshot(u64::from(snapshot)).expect("is made");
        catch_up(&mut owner, &mut replica);
        for block in 0..10 {
            owner.write_block(snapshot * 50 + block, 1 + snapshot as u8).expect("writes");
        }
    }
    catch_up(&mut owner, &mut replica);
    while owner.core().has_background_work() {
        owner.turn();
    }
    let moment = |snapshot| Moment::Snapshot(SnapshotId(snapshot));
    let blocks = [(moment(1), 50), (moment(2), 105), (moment(3), 159), (Moment::Now, 50), (Moment::Now, 599)];
    for (moment, block) in blocks {
        flip_in(&mut owner, moment, block);
    }
    ask(&mut owner, ScrubAction::Start, Some(VOLUME));
    let pass = finish(&mut owner, Some(VOLUME));
    assert_eq!((pass.checked_blocks, pass.damaged_blocks), (u64::from(all) + 30, 5), "each version once");
    assert_eq!(damaged_now(&mut owner), 5, "also both versions of block 50");
    repair(&mut owner, &mut replica);
    let after = ask(&mut owner, ScrubAction::Look, Some(VOLUME));
    assert_eq!((after.repaired_blocks, damaged_now(&mut owner)), (5, 0));
    assert_eq!(owner.read_snapshot(1, 50 * 4096, 4096).expect("reads"), [1; 4096]);
    assert_eq!(owner.read(50 * 4096, 4096).expect("reads"), [2; 4096]);
    let shared = place_in(&mut owner, Moment::Now, 599);
    assert_eq!(place_in(&mut owner, moment(1), 599), shared, "what is shared is repaired for all");

    // A replica's snapshots are read at the replica, and repaired from the owner.
    flip_in(&mut replica, moment(2), 105);
    ask(&mut replica, ScrubAction::Start, None);
    assert_eq!(finish(&mut replica, None).damaged_blocks, 1);
    repair(&mut replica, &mut owner);
    assert_eq!(replica.read_snapshot(2, 105 * 4096, 4096).expect("reads"), [1; 4096]);
}

/// Overwritten in the volume, the damaged version is still what a snapshot shows.
#[test]
fn an_overwritten_block_stays_damaged_in_the_snapshot_that_has_it() {
    let mut rig = owner(15, |_| {});
    rig.snapshot(1).expect("is made");
    flip(&mut rig, 30);
    ask(&mut rig, ScrubAction::Start, None);
    assert_eq!(finish(&mut rig, None).damaged_blocks, 1);
    rig.write_block(30, 9).expect("writes");
    assert_eq!((rig.read(30 * 4096, 4096).expect("is whole"), damaged_now(&mut rig)), (vec![9; 4096], 1));
    let runs = vec![BlockRun { start: client_lib::BlockIndex(30), count: 1 }];
    assert_eq!(rig.read_snapshot(1, 30 * 4096, 4096), Err(StoreError::Damaged { volume: VOLUME, runs }));
    rig.delete_snapshot(1).expect("is deleted");
    while rig.core().has_background_work() {
        rig.turn();
    }
    assert_eq!(damaged_now(&mut rig), 0, "nobody shows it any more");
}

/// The place of the only version of `block` that a layer has.
fn place_in_layers(rig: &mut Rig, block: u32) -> crate::map::page::Place {
    let layers = &rig.core().volumes[&VOLUME].state.layers;
    let mut places = layers.entries().filter(|(known, _)| *known == block).filter_map(|(_, it)| it.content.place());
    let place = places.next().expect("a layer has it");
    assert_eq!(places.next(), None, "one layer");
    place
}

/// What a replica has received, and not applied before the rest is there, lay unread for as long as that took.
#[test]
fn what_only_layers_have_is_read_and_repaired_before_anybody_reads_it() {
    let (mut owner, mut replica) = (owner(17, |_| {}), Rig::in_memory(18, |_| {}));
    replica.open(SIZE);
    catch_up(&mut owner, &mut replica);
    // A delta of which all but the last block is here, and above it a write that is known and a few blocks of it pulled.
    let first = |block: u32| block * 3;
    for block in 0..20 {
        owner.write_block(first(block), 8).expect("writes");
    }
    let report = replica.report();
    let (manifest, delta) = owner.seal(report.known, Some(report.watermark));
    let delta = delta.expect("was asked for");
    replica.apply_manifest(&manifest, true, false).expect("is taken");
    let run = |block: u32, count: u32| vec![BlockRun { start: client_lib::BlockIndex(block), count }];
    for block in 0..19 {
        replica.receive(owner.read_sealed(delta.pin, run(first(block), 1)).expect("reads")).expect("receives");
    }
    for block in 100..104 {
        owner.write_block(first(block), 9).expect("writes");
    }
    let (manifest, _) = owner.seal(replica.report().known, None);
    replica.apply_manifest(&manifest, false, false).expect("is taken");
    for block in 100..102 {
        replica.receive(owner.read_newest(run(first(block), 1)).expect("reads")).expect("receives");
    }
    // One in each layer, and what the base has of a block that a layer has too.
    for block in [first(3), first(101)] {
        let place = place_in_layers(&mut replica, block);
        replica.disk.flip(&super::damage::file_of(place), place.block as usize * 4096 + 9);
    }
    let core = replica.core();
    let below = core.map.cache.version(VOLUME, first(3)).expect("reads").and_then(|version| version.content.place());
    let below = below.expect("the base has it");
    replica.disk.flip(&super::damage::file_of(below), below.block as usize * 4096 + 9);

    ask(&mut replica, ScrubAction::Start, None);
    let pass = finish(&mut replica, None);
    let all = u64::from(WRITTEN) + 19 + 2;
    assert_eq!((pass.checked_blocks, pass.damaged_blocks, pass.total_blocks), (all, 3, all), "also two of one block");
    assert_eq!(damaged_now(&mut replica), 3);
    repair(&mut replica, &mut owner);
    let missing = replica.missing(crate::volume::layers::Wanted::Sealed, 10);
    assert_eq!(missing, run(first(19), 1), "what was repaired is still here");
    replica.receive(owner.read_sealed(delta.pin, missing).expect("reads")).expect("receives");
    assert_eq!(replica.apply_sealed(delta.to), delta.to);
    owner
        .ask(|reply| crate::shard::handle::Request::Release { volume: VOLUME, pin: delta.pin, reply })
        .expect("releases");
    while replica.core().has_background_work() {
        replica.turn();
    }
    assert_eq!(damaged_now(&mut replica), 0, "what the base had is replaced");
    catch_up(&mut owner, &mut replica);
    let shown = replica.applied_prefix();
    assert_eq!((shown[first(3) as usize], shown[first(101) as usize], shown[first(200) as usize]), (8, 9, 7));
}

/// Folding layers of an owner, which keep what a snapshot shall have from being overwritten, are read as well.
#[test]
fn what_folds_into_the_base_is_read_too_and_a_volume_of_stale_blocks_ends() {
    let (mut owner, mut replica) = (owner(19, |_| {}), Rig::in_memory(20, |_| {}));
    replica.open(SIZE);
    let (manifest, _) = owner.seal(Default::default(), None);
    replica.apply_manifest(&manifest, false, false).expect("is taken");
    let run = |block: u32| vec![BlockRun { start: client_lib::BlockIndex(block), count: 1 }];
    replica.receive(owner.read_newest(run(3)).expect("reads")).expect("receives");
    ask(&mut replica, ScrubAction::Start, None);
    assert_eq!(finish(&mut replica, None).checked_blocks, 1, "the rest is elsewhere");
    // Taken over, all that was written lies in layers above what is stale.
    replica.activate(2);
    for block in 0..50 {
        replica.write_block(block * 3, 5).expect("writes");
    }
    replica.snapshot(1).expect("is made");
    let place = place_in_layers(&mut replica, 60);
    replica.disk.flip(&super::damage::file_of(place), place.block as usize * 4096 + 9);
    ask(&mut replica, ScrubAction::Start, None);
    let pass = finish(&mut replica, None);
    assert_eq!((pass.checked_blocks, pass.damaged_blocks), (50, 1));
}
