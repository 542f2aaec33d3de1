//! Snapshots in a shard: what they show, through crashes, cleaning, deletions and handovers, and what they hold.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::{BlockIndex, Lsn, SnapshotId};
use proptest::prelude::*;

use super::rig::{Rig, VOLUME, cases, catch_up};
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::page::{Place, Version};
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::{FreezeWhen, Request, StoreError};
use crate::volume::Moment;

/// A segment and a half.
const BLOCKS: u32 = 3000;
const SIZE: u64 = BLOCKS as u64 * 4096;
/// Turns after which background work must have ended.
const TURNS_MAX: u32 = 20_000;

#[derive(Clone, Debug)]
enum Op {
    Write {
        start: u32,
        count: u32,
    },
    Zero {
        start: u32,
        count: u32,
    },
    /// With so many writes sent before and after it, none waited for.
    Snapshot {
        before: u32,
        after: u32,
    },
    Delete(usize),
    RollBack(usize),
    Clean,
    Checkpoint,
    Kill,
    Restart,
    /// After a flush or not.
    Crash(bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let run = |max: u32| (0..BLOCKS, 1..max).prop_map(|(start, count)| (start, count.min(BLOCKS - start)));
    let op = prop_oneof![
        10 => run(400).prop_map(|(start, count)| Op::Write { start, count }),
        6 => run(8).prop_map(|(start, count)| Op::Write { start, count }),
        2 => run(800).prop_map(|(start, count)| Op::Zero { start, count }),
        6 => (0..6u32, 0..6u32).prop_map(|(before, after)| Op::Snapshot { before, after }),
        3 => any::<usize>().prop_map(Op::Delete),
        3 => any::<usize>().prop_map(Op::RollBack),
        3 => Just(Op::Clean),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Kill),
        1 => Just(Op::Restart),
        1 => any::<bool>().prop_map(Op::Crash),
    ];
    proptest::collection::vec(op, 10..70)
}

/// A volume, and the byte that fills each block of it and of its snapshots.
struct Kept {
    rig: Rig,
    live: Vec<u8>,
    snapshots: BTreeMap<u64, Vec<u8>>,
    next: u64,
    epoch: u64,
    fill: u8,
}

impl Kept {
    fn new(rig: Rig) -> Kept {
        let live = vec![0; BLOCKS as usize];
        let mut kept = Kept { rig, live, snapshots: BTreeMap::new(), next: 1, epoch: 1, fill: 0 };
        kept.rig.open(SIZE);
        kept.rig.activate(1);
        kept
    }

    fn next_fill(&mut self) -> u8 {
        self.fill = self.fill % 250 + 1;
        self.fill
    }

    fn write(&mut self, start: u32, count: u32) -> Result<Lsn, StoreError> {
        let fill = self.next_fill();
        let lsn = self.rig.write(u64::from(start) * 4096, vec![fill; count as usize * 4096])?;
        self.live[start as usize..(start + count) as usize].fill(fill);
        Ok(lsn)
    }

    /// The snapshot has exactly the writes up to its LSN.
    fn snapshot_under_load(&mut self, before: u32, after: u32) {
        let (id, mut writes) = (self.next, Vec::new());
        self.next += 1;
        let mut send = |kept: &mut Kept, number: u32| {
            let (block, fill) = ((id as u32 * 131 + number * 257) % BLOCKS, kept.next_fill());
            let answer = kept.rig.send_write(u64::from(block) * 4096, vec![fill; 4096], false);
            writes.push((block, fill, answer));
        };
        (0..before).for_each(|number| send(self, number));
        let snapshot = SnapshotId(id);
        let made = self.rig.send(|reply| Request::CreateSnapshot { volume: VOLUME, snapshot, reply });
        self.rig.turn();
        (before..before + after).for_each(|number| send(self, number));
        let lsn = self.rig.wait(made).expect("is made").lsn;
        let mut content = self.live.clone();
        for (block, fill, answer) in writes {
            let written = self.rig.wait(answer).expect("is written");
            self.live[block as usize] = fill;
            if written <= lsn {
                content[block as usize] = fill;
            }
        }
        self.snapshots.insert(id, content);
    }

    fn delete(&mut self, at: usize) {
        if let Some(id) = self.snapshots.keys().nth(at % self.snapshots.len().max(1)).copied() {
            self.rig.delete_snapshot(id).expect("is deleted");
            self.rig.delete_snapshot(id).expect("twice is once");
            self.snapshots.remove(&id);
        }
    }

    fn roll_back(&mut self, at: usize) {
        if let Some((id, content)) = self.snapshots.iter().nth(at % self.snapshots.len().max(1)) {
            self.rig.roll_back(*id).expect("is rolled back");
            self.live.clone_from(content);
        }
    }

    fn again(&mut self) {
        self.epoch += 1;
        self.rig.activate(self.epoch);
    }

    /// Some cleaning, which moves blocks under everybody who shares them.
    fn clean(&mut self) {
        self.rig.core().cleaner.hurry();
        for _ in 0..300 {
            self.rig.turn();
        }
    }

    fn read_live(&mut self) -> Vec<u8> {
        fills(self.rig.read(0, SIZE as u32).expect("reads"))
    }

    fn check(&mut self) {
        assert!(self.read_live() == self.live, "the volume");
        assert!(self.rig.snapshots().iter().map(|it| it.snapshot.0).eq(self.snapshots.keys().copied()));
        for (id, content) in &self.snapshots {
            assert!(fills(self.rig.read_snapshot(*id, 0, SIZE as u32).expect("reads")) == *content, "snapshot {id}");
        }
    }

    /// Waits until everything has folded and deleted snapshots are merged; then every version that somebody shows is counted once, and no other.
    fn check_usage(&mut self) {
        let is_merging = |rig: &mut Rig| {
            let state = &rig.core().volumes[&VOLUME].state;
            state.snapshots.is_merging() || state.layers.is_folding()
        };
        for turn in 0.. {
            if !is_merging(&mut self.rig) {
                break;
            }
            assert!(turn < TURNS_MAX, "merging does not end");
            self.rig.turn();
        }
        let core = self.rig.core();
        let state = &core.volumes[&VOLUME].state;
        // Each once per version: two may lie at one place.
        let mut places: BTreeSet<(Place, Lsn)> = BTreeSet::new();
        let placed = |version: Option<Version>| version.and_then(|it| Some((it.content.place()?, it.lsn)));
        for block in 0..BLOCKS {
            places.extend(placed(state.view(block, &mut core.map).expect("reads")));
        }
        for id in self.snapshots.keys() {
            let versions =
                state.versions(Moment::Snapshot(SnapshotId(*id)), 0, BLOCKS - 1, &mut core.map).expect("reads");
            places.extend(versions.into_iter().filter_map(|(_, version)| placed(version)));
        }
        for info in core.log.segments() {
            let needed = places.iter().filter(|(place, _)| place.segment == info.segment).count() as u64;
            assert_eq!(core.map.usage.live(info.segment), needed, "segment {}", info.segment);
        }
    }
}

/// The byte that fills each block.
fn fills(bytes: Vec<u8>) -> Vec<u8> {
    bytes
        .chunks(4096)
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a block is torn");
            block[0]
        })
        .collect()
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn snapshots_stay_as_they_were_whatever_happens_to_the_volume(ops in ops(), seed in any::<u64>()) {
        let mut kept = Kept::new(Rig::new(seed));
        for op in ops {
            match op {
                Op::Write { start, count } => drop(kept.write(start, count).expect("writes").sequence),
                Op::Zero { start, count } => {
                    kept.rig.zero(u64::from(start) * 4096, u64::from(count) * 4096).expect("zeroes");
                    kept.live[start as usize..(start + count) as usize].fill(0);
                }
                Op::Snapshot { before, after } => kept.snapshot_under_load(before, after),
                Op::Delete(at) => kept.delete(at),
                Op::RollBack(at) => kept.roll_back(at),
                Op::Clean => kept.clean(),
                Op::Checkpoint => kept.rig.checkpoint().expect("is written"),
                Op::Kill => {
                    kept.rig.kill();
                    kept.again();
                    kept.check();
                }
                Op::Restart => {
                    kept.rig.restart();
                    kept.again();
                    kept.check_usage();
                }
                Op::Crash(flushed) => {
                    if flushed {
                        kept.rig.flush().expect("flushes");
                    }
                    kept.rig.crash();
                    kept.again();
                    if !flushed {
                        // The volume may have lost what was not flushed. Its snapshots were durable when they were told.
                        kept.live = kept.read_live();
                    }
                    kept.check();
                }
            }
        }
        kept.check();
        kept.check_usage();
        kept.clean();
        kept.check();
        while !kept.snapshots.is_empty() {
            kept.delete(kept.fill as usize);
            kept.check_usage();
        }
        kept.check();
    }
}

#[test]
fn the_space_of_deleted_snapshots_comes_back() {
    let mut kept = Kept::new(Rig::with(3, |options| options.log.capacity_bytes = Some(8 * SEGMENT_BYTES_MIN)));
    let mut refused = 0;
    // Each round overwrites the volume, of a segment and a half, and keeps two rounds: four and a half in all.
    for round in 0..12 {
        for start in (0..BLOCKS).step_by(250) {
            while let Err(error) = kept.write(start, 250) {
                assert_eq!(error, StoreError::OutOfSpace);
                refused += 1;
                assert!(refused < TURNS_MAX, "space does not come back");
                kept.rig.turn();
            }
        }
        kept.snapshot_under_load(0, 0);
        if round >= 2 {
            kept.delete(0);
        }
    }
    kept.check();
    kept.check_usage();
    let held: Vec<u64> = kept.rig.snapshots().iter().map(|snapshot| snapshot.held_blocks).collect();
    assert_eq!(held, [u64::from(BLOCKS), 0], "the newest shares everything with the volume");
    assert_eq!(kept.rig.report().mapped_blocks, u64::from(BLOCKS));
}

#[test]
fn a_hundred_snapshots_cost_the_volume_no_look_up() {
    let mut kept = Kept::new(Rig::new(1));
    for _ in 0..100 {
        kept.write(7, 1).expect("writes");
        kept.snapshot_under_load(0, 1);
    }
    kept.rig.restart();
    kept.again();
    assert_eq!(kept.rig.core().map.cache.pages(), 0);
    assert_eq!(kept.rig.read(7 * 4096, 4096).expect("reads")[0], kept.live[7]);
    assert_eq!(kept.rig.core().map.cache.pages(), 1, "one page, whatever the depth");
    kept.check();
}

#[test]
fn a_snapshot_has_the_size_that_the_volume_had() {
    let mut kept = Kept::new(Rig::new(1));
    kept.write(BLOCKS - 1, 1).expect("writes");
    kept.snapshot_under_load(0, 0);
    kept.rig.resize(SIZE / 2).expect("shrinks");
    kept.rig.resize(SIZE).expect("grows");
    kept.live[BLOCKS as usize - 1] = 0;
    kept.check();
    let beyond = kept.rig.read_snapshot(1, SIZE - 512, 1024);
    assert!(matches!(beyond, Err(StoreError::BeyondEnd { .. })), "{beyond:?}");
    assert_eq!(
        kept.rig.read_snapshot(2, 0, 512),
        Err(StoreError::UnknownSnapshot { volume: VOLUME, snapshot: SnapshotId(2) })
    );
}

/// Owner and replica; the replica has all that is known, but for the data of the last manifest when `lags`.
fn pair(lags: bool) -> (Kept, Rig) {
    let (mut kept, mut replica) = (Kept::new(Rig::new(1)), Rig::new(2));
    replica.open(SIZE);
    for start in (0..BLOCKS).step_by(200) {
        kept.write(start, 100).expect("writes");
    }
    catch_up(&mut kept.rig, &mut replica);
    if lags {
        kept.write(0, 10).expect("writes");
        let (manifest, _) = kept.rig.seal(replica.report().known, None);
        replica.apply_manifest(&manifest, false, true).expect("is taken");
    }
    (kept, replica)
}

#[test]
fn a_new_owner_folds_first_and_then_makes_the_snapshot_also_in_recovery() {
    let (mut kept, mut replica) = pair(false);
    kept.rig.deactivate(2);
    replica.activate(2);
    assert!(replica.core().volumes[&VOLUME].state.layers.is_folding(), "or this tests nothing");
    replica.snapshot(1).expect("is made");
    replica.write_block(0, 99).expect("writes");
    for _ in 0..2 {
        assert!(fills(replica.read_snapshot(1, 0, SIZE as u32).expect("reads")) == kept.live);
        replica.kill();
    }
}

#[test]
fn an_owner_that_still_fetches_makes_a_snapshot_and_fills_it_in_later() {
    let (mut kept, mut replica) = pair(true);
    kept.rig.deactivate(2);
    replica.activate(2);
    replica.snapshot(1).expect("is made");
    replica.write(0, vec![99; 5 * 4096]).expect("overwrites what is stale");
    let report = replica.report();
    assert_eq!((report.stale_blocks, report.watermark < report.head), (10, true), "the snapshot wants all ten");
    let moment = Moment::Snapshot(SnapshotId(1));
    let stale = vec![BlockRun { start: BlockIndex(0), count: 10 }];
    for restart in [Rig::turn, Rig::kill, Rig::restart] {
        restart(&mut replica);
        assert_eq!(
            replica.read_snapshot(1, 0, 4096),
            Err(StoreError::Stale { runs: vec![BlockRun { count: 1, ..stale[0] }] })
        );
        assert_eq!(replica.read_versions(moment, stale.clone()), Err(StoreError::Stale { runs: stale.clone() }));
    }
    replica.activate(3);
    // The old owner has them until it has taken the snapshot itself.
    replica.receive(kept.rig.read_newest(stale).expect("has them")).expect("receives");
    assert!(fills(replica.read_snapshot(1, 0, SIZE as u32).expect("is whole")) == kept.live);
    while replica.core().volumes[&VOLUME].state.layers.is_folding() {
        replica.turn();
    }
    let report = replica.report();
    assert_eq!((report.stale_blocks, report.watermark), (0, report.head));
    assert!(fills(replica.read_snapshot(1, 0, SIZE as u32).expect("reads")) == kept.live, "out of the base");
    assert!(matches!(kept.rig.snapshot(1), Err(StoreError::NotOwner { .. })));
    assert!(replica.snapshot(1).is_ok(), "asked for again");
    replica.delete_snapshot(1).expect("is deleted");
    replica.snapshot(3).expect("is made");
    assert!(matches!(replica.snapshot(2), Err(StoreError::UnknownSnapshot { .. })), "ids rise");
    replica.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply }).expect("freezes");
    assert_eq!(replica.snapshot(4), Err(StoreError::Frozen(VOLUME)));
}

#[test]
fn a_snapshot_stays_when_its_volume_is_handed_over_and_changes_elsewhere() {
    let (mut kept, mut replica) = pair(false);
    kept.snapshot_under_load(3, 0);
    catch_up(&mut kept.rig, &mut replica);
    let content = kept.live.clone();
    kept.rig.deactivate(2);
    replica.activate(2);
    for start in (0..BLOCKS).step_by(300) {
        replica.write(u64::from(start) * 4096, vec![200; 150 * 4096]).expect("writes");
    }
    catch_up(&mut replica, &mut kept.rig);
    while kept.rig.core().volumes[&VOLUME].state.layers.is_folding() {
        kept.rig.turn();
    }
    assert_eq!(kept.rig.applied_prefix()[0], 200);
    for restart in [Rig::turn, Rig::kill, Rig::restart] {
        restart(&mut kept.rig);
        assert!(fills(kept.rig.read_snapshot(1, 0, SIZE as u32).expect("reads")) == content);
    }
    kept.check_usage();
    kept.rig.delete_snapshot(1).expect("a replica deletes too");
    kept.snapshots.clear();
    kept.check_usage();
}

#[test]
fn a_deleted_volume_takes_its_snapshots_along() {
    let mut kept = Kept::new(Rig::new(1));
    for _ in 0..3 {
        kept.write(0, 300).expect("writes");
        kept.snapshot_under_load(0, 0);
    }
    kept.rig.checkpoint().expect("is written");
    kept.rig.ask(|reply| Request::Delete { volume: VOLUME, reply }).expect("is deleted");
    let is_empty = |rig: &mut Rig| {
        let core = rig.core();
        core.log.segments().iter().all(|info| core.map.usage.live(info.segment) == 0)
    };
    assert!(is_empty(&mut kept.rig));
    kept.rig.kill();
    assert!(is_empty(&mut kept.rig));
    kept.rig.checkpoint().expect("is written");
    kept.rig.restart();
    assert!(is_empty(&mut kept.rig));
}

#[test]
fn the_cleaner_moves_what_a_snapshot_shares_for_everybody() {
    let mut kept = Kept::new(Rig::new(1));
    for start in (0..BLOCKS).step_by(250) {
        kept.write(start, 250).expect("writes");
    }
    kept.snapshot_under_load(0, 0);
    // Three of four blocks stay shared, the others are the snapshot's alone; a second snapshot is deleted meanwhile.
    for block in (0..BLOCKS).step_by(4) {
        kept.write(block, 1).expect("writes");
    }
    kept.snapshot_under_load(0, 0);
    kept.delete(1);
    let places = |kept: &mut Kept| {
        let core = kept.rig.core();
        let versions =
            core.volumes[&VOLUME].state.versions(Moment::Snapshot(SnapshotId(1)), 0, BLOCKS - 1, &mut core.map);
        let versions = versions.expect("reads").into_iter();
        versions.map(|(_, version)| version.and_then(|it| it.content.place())).collect::<Vec<_>>()
    };
    let before = places(&mut kept);
    kept.clean();
    let after = places(&mut kept);
    let moved = |at: usize| before[at] != after[at];
    assert!((0..BLOCKS as usize).step_by(4).any(moved), "what only the snapshot has");
    assert!((1..BLOCKS as usize).step_by(4).any(moved), "what both have");
    kept.check();
    kept.check_usage();
    kept.rig.kill();
    kept.again();
    kept.check();
    kept.check_usage();
}
