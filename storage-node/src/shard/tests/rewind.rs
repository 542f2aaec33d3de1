//! What a takeover cuts off: what was told of is forgotten, what is held stays, whenever the power goes.

use client_lib::{BlockIndex, Lsn};

use super::rig::{Rig, VOLUME, catch_up};
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::{Request, VolumeReport};

const BLOCKS: u32 = 200;
const SIZE: u64 = BLOCKS as u64 * 4096;
/// Power cuts after so many operations of the disk: beyond those that a rewind makes.
const CUT_MAX: u64 = 12;

impl Rig {
    fn rewind(&mut self, to: Lsn) -> VolumeReport {
        self.ask(|reply| Request::Rewind { volume: VOLUME, to, reply }).expect("is answered")
    }

    fn write_all(&mut self, blocks: std::ops::Range<u32>, fill: u8) {
        for block in blocks {
            self.write_block(block, fill).expect("writes");
        }
    }
}

/// An owner that is lost, a replica that was told of more than it holds, and one that knows what it holds.
struct Lost {
    owner: Rig,
    told: Rig,
    heir: Rig,
    /// What both replicas hold.
    common: Lsn,
}

impl Lost {
    fn new(seed: u64) -> Lost {
        let (mut owner, mut told, mut heir) = (Rig::new(seed), Rig::new(seed + 1), Rig::new(seed + 2));
        for rig in [&mut owner, &mut told, &mut heir] {
            rig.open(SIZE);
        }
        owner.activate(1);
        owner.write_all(0..100, 1);
        catch_up(&mut owner, &mut told);
        catch_up(&mut owner, &mut heir);
        let common = heir.report().watermark;
        // Some blocks of a sealed delta come, then more is told of.
        owner.write_all(50..150, 2);
        let (manifest, delta) = owner.seal(common, Some(common));
        told.apply_manifest(&manifest, true, false).expect("is taken");
        let some = vec![BlockRun { start: BlockIndex(50), count: 30 }];
        let blocks = owner.read_sealed(delta.expect("was asked for").pin, some).expect("reads");
        assert_eq!(told.receive(blocks), Ok(30));
        owner.write_all(199..200, 3);
        owner.zero(0, 10 * 4096).expect("zeroes");
        let (manifest, _) = owner.seal(told.report().known, None);
        told.apply_manifest(&manifest, false, true).expect("is taken");
        Lost { owner, told, heir, common }
    }
}

fn content(ranges: &[(std::ops::Range<usize>, u8)]) -> Vec<u8> {
    let mut content = vec![0; BLOCKS as usize];
    for (range, fill) in ranges {
        content[range.clone()].fill(*fill);
    }
    content
}

/// The simulation found it at its first look at positions (seed 3, 25 seconds, all hazards): a node that had taken over told
/// of a durable position beyond its newest write, that of what it had been told of and had dropped.
#[test]
fn whoever_took_over_claims_nothing_durable_beyond_its_newest_write() {
    let Lost { mut told, common, .. } = Lost::new(20);
    assert!(told.report().durable > common, "it had made durable what it was told of");
    told.rewind(common);
    let report = told.activate(2);
    assert_eq!((report.head, report.durable), (common, common), "{report:?}");
    let answer = told.ask(|reply| Request::Flush { volume: VOLUME, reply });
    assert_eq!(answer, Ok(common));
}

#[test]
fn a_replica_forgets_what_it_was_told_of_and_follows_the_new_owner() {
    let Lost { mut told, mut heir, common, .. } = Lost::new(10);
    let before = told.report();
    assert!(before.known > common && before.stale_blocks > 0 && before.sealed_to.is_some(), "{before:?}");
    told.deactivate(2);
    let report = told.rewind(common);
    assert_eq!((report.known, report.watermark, report.held), (common, common, common));
    assert_eq!((report.stale_blocks, report.sealed_to, report.mapped_blocks), (0, None, 100), "and its space is free");
    assert_eq!(told.rewind(common).known, common, "once more changes nothing");

    heir.activate(2);
    heir.write_all(0..20, 7);
    catch_up(&mut heir, &mut told);
    assert_eq!(told.report().watermark, heir.report().head);
    let expected = content(&[(0..100, 1), (0..20, 7)]);
    assert_eq!(told.applied_prefix(), expected);
    // It is as good as any: it can own the volume, and tell others what changed since the fork.
    told.activate(3);
    let (manifest, _) = told.seal(common, None);
    assert_eq!(manifest.runs.iter().map(|run| run.blocks()).sum::<u32>(), 20);
    told.restart();
    assert_eq!(told.applied_prefix(), expected);
}

#[test]
fn whoever_takes_over_begins_with_what_it_holds() {
    let Lost { told: mut heir, common, .. } = Lost::new(20);
    assert_eq!(heir.rewind(common).known, common);
    assert_eq!(heir.activate(2).head, common);
    let found = heir.read(0, SIZE as u32).expect("nothing is stale");
    assert!(found.chunks(4096).map(|block| block[0]).eq(content(&[(0..100, 1)])));
    let first = heir.write_block(150, 9).expect("writes");
    assert!(first.epoch.0 == 2 && first > common);
}

#[test]
fn whoever_holds_more_is_left_as_it_is() {
    let Lost { mut owner, common, .. } = Lost::new(30);
    let head = owner.report().head;
    let tail = owner.ask(|reply| Request::ChangedBlocks { volume: VOLUME, since: common, reply });
    assert_eq!(tail, Ok(111), "a hundred, one, and ten that are zeroes now");
    owner.kill();
    owner.deactivate(2);
    let report = owner.rewind(common);
    assert_eq!((report.known, report.held), (head, head));
    let run = vec![BlockRun { start: BlockIndex(199), count: 1 }];
    assert_eq!(owner.read_newest(run).expect("is here")[0].data.as_deref(), Some(&[3; 4096][..]));
}

/// It was handed the volume before the blocks, so its own writes are in no complete prefix; they are its writes all the same.
#[test]
fn what_an_owner_wrote_over_stale_blocks_is_held_too() {
    let Lost { told: mut owner, common, .. } = Lost::new(40);
    owner.activate(2);
    let own = owner.write_block(180, 9).expect("writes");
    owner.restart();
    owner.deactivate(3);
    let before = owner.report();
    assert_eq!((before.watermark, before.held), (common, own), "over a checkpoint and a restart");
    let after = owner.rewind(common);
    assert_eq!((after.known, after.stale_blocks), (before.known, before.stale_blocks));
}

#[test]
fn a_snapshot_before_the_fork_stays_and_one_behind_it_goes() {
    let Lost { mut owner, heir: mut replica, common, .. } = Lost::new(50);
    for snapshot in [1, 2] {
        let lsn = owner.snapshot(snapshot).expect("is made");
        let at = replica.report();
        let (manifest, _) = owner.seal_after(at.newest_snapshot.0, at.known, None);
        replica.apply_manifest(&manifest, false, true).expect("is taken");
        assert_eq!(replica.report().known, lsn);
        owner.write_all(20..30, 4);
    }
    let known: Vec<Lsn> = replica.snapshots().iter().map(|snapshot| snapshot.lsn).collect();
    // Somebody else had all up to the first, and nothing of the second.
    let report = replica.rewind(known[0]);
    assert_eq!((report.known, report.watermark, report.newest_snapshot.0), (known[0], common, 1));
    assert_eq!(replica.snapshots().len(), 1);
    replica.crash();
    let report = replica.rewind(common);
    assert_eq!((report.known, report.newest_snapshot.0), (common, 0));
}

#[test]
fn a_power_cut_leaves_it_before_or_after() {
    for cut in 0..CUT_MAX {
        let Lost { told: mut replica, common, .. } = Lost::new(100 + 3 * cut);
        let (before, lives) = (replica.report().known, replica.disk.lives());
        replica.disk.crash_after(cut);
        let mut answer = replica.send(|reply| Request::Rewind { volume: VOLUME, to: common, reply });
        let mut answered = None;
        while answered.is_none() && replica.disk.lives() == lives {
            replica.turn();
            answered = answer.try_recv().ok();
        }
        if replica.disk.lives() == lives {
            replica.disk.crash();
        }
        replica.drop_core();
        replica.start();
        let found = replica.report().known;
        assert!(found == common || (found == before && !matches!(answered, Some(Ok(_)))), "cut {cut}: {found}");
        let report = replica.rewind(common);
        assert_eq!((report.known, report.stale_blocks, report.mapped_blocks), (common, 0, 100), "cut {cut}");
        assert_eq!(replica.applied_prefix(), content(&[(0..100, 1)]), "cut {cut}");
    }
}

/// Nothing slips in between the request and its effect that would be told of under the new owner and hang in the air.
#[test]
fn a_manifest_that_comes_at_the_same_moment_must_follow_what_is_left() {
    let Lost { mut owner, mut told, common, .. } = Lost::new(60);
    let known = told.report().known;
    owner.write_all(10..12, 8);
    let (late, _) = owner.seal(known, None);
    let rewound = told.send(|reply| Request::Rewind { volume: VOLUME, to: common, reply });
    assert!(told.apply_manifest(&late, false, false).is_err(), "it begins where nothing is any more");
    assert_eq!(told.wait(rewound).expect("is answered").known, common);
}

/// As a node does that drops its tail: the new copy must have nothing of the old one, in the map store either.
#[test]
fn a_copy_that_begins_anew_under_the_same_name_is_empty() {
    for checkpoint in [false, true] {
        let Lost { mut owner, mut heir, .. } = Lost::new(70);
        owner.checkpoint().expect("is written");
        owner.deactivate(2);
        owner.ask(|reply| Request::Delete { volume: VOLUME, reply }).expect("is deleted");
        let report = owner.open(SIZE);
        assert_eq!((report.known, report.held, report.mapped_blocks), (Lsn::ZERO, Lsn::ZERO, 0));
        owner.deactivate(2);
        heir.activate(2);
        heir.write_all(150..160, 6);
        catch_up(&mut heir, &mut owner);
        if checkpoint {
            owner.checkpoint().expect("is written");
        }
        owner.crash();
        catch_up(&mut heir, &mut owner);
        assert_eq!(owner.applied_prefix(), content(&[(0..100, 1), (150..160, 6)]));
        owner.restart();
        assert_eq!(owner.report().mapped_blocks, 110);
        assert_eq!(owner.applied_prefix(), content(&[(0..100, 1), (150..160, 6)]));
    }
}
