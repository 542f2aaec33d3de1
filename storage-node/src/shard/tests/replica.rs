//! Two shards, one owning: what the replica shows is a prefix at every moment, and a handover loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_lib::geometry::VOLUME_SIZE_MAX;
use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId};
use proptest::prelude::*;

use super::rig::{Rig, VOLUME, cases, catch_up, uniform};
use crate::log::Entry;
use crate::propagation::manifest::{BlockRun, Manifest, ManifestRun, RunContent, VersionedBlock};
use crate::propagation::pull::split;
use crate::shard::handle::{FreezeWhen, Request, SealedDelta, StoreError};
use crate::shard::sync::Done;
use crate::volume::Moment;
use crate::volume::layers::Wanted;

const BLOCKS: u32 = 600;
const SIZE: u64 = BLOCKS as u64 * 4096;

/// A small generator of choices, so that one seed is one history.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % bound
    }
}

/// Owner and replica of one volume, and what the volume was at every LSN.
struct Pair {
    owner: Rig,
    replica: Rig,
    choices: Choices,
    epoch: u64,
    content: Vec<u8>,
    history: BTreeMap<Lsn, Vec<u8>>,
    snapshots: BTreeMap<u64, Vec<u8>>,
    next_snapshot: u64,
    delta: Option<SealedDelta>,
    fill: u8,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let mut pair = Pair {
            owner: Rig::new(seed),
            replica: Rig::new(seed + 1),
            choices: Choices(seed),
            epoch: 1,
            content: vec![0; BLOCKS as usize],
            history: BTreeMap::from([(Lsn::ZERO, vec![0; BLOCKS as usize])]),
            snapshots: BTreeMap::new(),
            next_snapshot: 1,
            delta: None,
            fill: 0,
        };
        pair.owner.open(SIZE);
        pair.replica.open(SIZE);
        pair.owner.activate(1);
        pair
    }

    fn write(&mut self) {
        let start = self.choices.below(BLOCKS);
        let count = (1 + self.choices.below(12)).min(BLOCKS - start);
        self.fill = self.fill % 250 + 1;
        let (offset, length) = (u64::from(start) * 4096, u64::from(count) * 4096);
        let (fill, written) = if self.choices.below(5) == 0 {
            (0, self.owner.zero(offset, length))
        } else {
            (self.fill, self.owner.write(offset, vec![self.fill; length as usize]))
        };
        let lsn = written.expect("writes");
        self.content[start as usize..(start + count) as usize].fill(fill);
        self.history.insert(lsn, self.content.clone());
    }

    fn snapshot(&mut self) {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        let lsn = self.owner.snapshot(id).expect("is made, whatever is stale");
        assert_eq!(lsn, self.owner.report().head);
        self.snapshots.insert(id, self.content.clone());
    }

    /// Deletes a snapshot at one of the two, and at the other sooner or later.
    fn delete_snapshot(&mut self) {
        let at = self.choices.below(self.snapshots.len().max(1) as u32) as usize;
        let Some(id) = self.snapshots.keys().nth(at).copied() else { return };
        self.snapshots.remove(&id);
        if self.choices.below(2) == 0 {
            self.replica.delete_snapshot(id).expect("is deleted");
        }
        self.owner.delete_snapshot(id).expect("is deleted");
    }

    /// As both do when they hear of metadata.
    fn delete_orphans(&mut self) {
        for node in [&mut self.owner, &mut self.replica] {
            for snapshot in node.snapshots() {
                if !self.snapshots.contains_key(&snapshot.snapshot.0) {
                    node.delete_snapshot(snapshot.snapshot.0).expect("is deleted");
                }
            }
        }
    }

    /// Every snapshot that the replica knows of, and all of them at the owner, show what the volume was.
    fn check_snapshots(&mut self) {
        for (id, content) in self.snapshots.clone() {
            for at_replica in [false, true] {
                loop {
                    let (node, other) = if at_replica {
                        (&mut self.replica, &mut self.owner)
                    } else {
                        (&mut self.owner, &mut self.replica)
                    };
                    match node.read_snapshot(id, 0, SIZE as u32) {
                        Ok(found) => {
                            for (block, (found, fill)) in found.chunks(4096).zip(&content).enumerate() {
                                assert_eq!(found, [*fill; 4096], "block {block} of snapshot {id}");
                            }
                            break;
                        }
                        Err(StoreError::Stale { runs }) => {
                            match other.read_versions(Moment::Snapshot(SnapshotId(id)), runs) {
                                Ok(blocks) => assert!(node.receive(blocks).expect("receives") > 0),
                                // Made here, and not told of there yet.
                                Err(StoreError::UnknownSnapshot { .. }) if !at_replica => self.send_manifest(false),
                                Err(error) => panic!("{error}"),
                            }
                        }
                        Err(StoreError::UnknownSnapshot { .. }) if at_replica => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }

    /// What a sender does next: a manifest, with a seal when no delta is on its way; or one up to each snapshot, and the last.
    fn send_manifest(&mut self, is_last: bool) {
        while self.send_one_manifest(is_last) && is_last {}
        if let (None, Some(snapshot)) = (&self.delta, self.replica.report().awaited_snapshot) {
            let from = self.replica.report().watermark;
            match self.owner.ask(|reply| Request::PinSnapshot {
                volume: VOLUME,
                snapshot,
                from,
                also: Arc::default(),
                reply,
            }) {
                Ok(delta) => self.delta = Some(delta),
                Err(StoreError::UnknownSnapshot { .. }) => self.delete_orphans(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Returns whether it ended at a snapshot.
    fn send_one_manifest(&mut self, is_last: bool) -> bool {
        let at = self.replica.report();
        let seal = self.delta.is_none() && at.awaited_snapshot.is_none();
        // Some writes are under way while the snapshot is taken.
        let mut under_way = Vec::new();
        for _ in 0..self.choices.below(8) * u32::from(!is_last) {
            let block = self.choices.below(BLOCKS / 8);
            self.fill = self.fill % 250 + 1;
            under_way.push((
                block,
                self.fill,
                self.owner.send_write(u64::from(block) * 4096, vec![self.fill; 4096], false),
            ));
            if self.choices.below(3) == 0 {
                self.owner.turn();
            }
        }
        let (from, after, delta_from) = (at.known, at.newest_snapshot, seal.then_some(at.watermark));
        let sealed = self.owner.send(|reply| Request::SealManifest { volume: VOLUME, from, after, delta_from, reply });
        for (block, fill, answer) in under_way {
            let lsn = self.owner.wait(answer).expect("writes");
            self.content[block as usize] = fill;
            self.history.insert(lsn, self.content.clone());
        }
        let (manifest, delta) = self.owner.wait(sealed).expect("seals");
        assert!(manifest.to <= self.owner.report().durable, "only what is durable leaves the owner");
        let known = self.replica.apply_manifest(&manifest, delta.is_some(), is_last).expect("is taken");
        assert_eq!(known, manifest.to);
        if self.choices.below(4) == 0 {
            assert_eq!(self.replica.apply_manifest(&manifest, false, false).expect("is taken twice"), known);
        }
        self.delta = delta.or(self.delta.take());
        manifest.mark.is_some()
    }

    fn push(&mut self, calls: u32) {
        let Some(delta) = self.delta.clone() else { return };
        let moment = delta.snapshot.map_or(Moment::Now, Moment::Snapshot);
        for _ in 0..calls {
            if self.replica.report().sealed_to != Some(delta.to) {
                // The snapshot was deleted that it ended at, or it was lost: another one is sealed now.
                self.delta = None;
                return;
            }
            let runs = self.replica.missing(Wanted::Sealed, 3);
            if runs.is_empty() {
                return;
            }
            let blocks = loop {
                match self.owner.read_sealed(delta.pin, runs.clone()) {
                    Err(StoreError::Stale { runs }) => {
                        let blocks = self.replica.read_versions(moment, runs).expect("one of the two has it");
                        assert!(self.owner.receive(blocks).expect("takes it") > 0);
                    }
                    blocks => break blocks.expect("reads"),
                }
            };
            assert!(!blocks.is_empty(), "a delta holds what the replica misses of it");
            self.replica.receive(blocks).expect("receives");
        }
    }

    fn apply(&mut self) {
        let Some(delta) = self.delta.clone() else { return };
        if self.replica.report().sealed_to != Some(delta.to) {
            self.delta = None;
            return;
        }
        let complete = self.replica.missing(Wanted::Sealed, 1).is_empty();
        let watermark = self.replica.apply_sealed(delta.to);
        if complete && watermark >= delta.to {
            self.owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
            self.owner.ask(|reply| Request::Prune { volume: VOLUME, up_to: watermark, reply }).expect("prunes");
            self.delta = None;
        } else {
            assert!(watermark < delta.to, "incomplete deltas are not applied");
        }
    }

    fn restart_replica(&mut self) {
        let before = self.replica.report();
        match self.choices.below(3) {
            0 => self.replica.kill(),
            1 => self.replica.restart(),
            _ => self.replica.crash(),
        }
        // A power cut right after the volume came here may have taken even that.
        let after = self.replica.open(SIZE);
        assert!(after.watermark >= before.watermark, "a watermark that was told does not move back");
        // A seal that was lost is made anew.
        self.delta = None;
    }

    fn restart_owner(&mut self) {
        self.owner.kill();
        self.delta = None;
        self.epoch += 1;
        self.owner.activate(self.epoch);
    }

    fn check_prefix(&mut self) {
        let watermark = self.replica.report().watermark;
        let (_, expected) = self.history.range(..=watermark).next_back().expect("starts at zero");
        assert!(self.replica.applied_prefix() == *expected, "the prefix at {watermark} is not the owner's");
    }

    /// Moves the ownership to the replica; it serves at once, whatever is stale.
    fn hand_over(&mut self) {
        let last = self
            .owner
            .ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply })
            .expect("freezes");
        self.send_manifest(true);
        assert_eq!(self.replica.report().known, last);
        self.epoch += 1;
        self.owner.deactivate(self.epoch);
        let report = self.replica.activate(self.epoch);
        assert_eq!(report.head, last);
        std::mem::swap(&mut self.owner, &mut self.replica);
        self.delta = None;
    }

    /// Reads some blocks as a guest would, pulling what is stale.
    fn read(&mut self) {
        let start = self.choices.below(BLOCKS);
        let count = (1 + self.choices.below(20)).min(BLOCKS - start);
        let found = loop {
            match self.owner.read(u64::from(start) * 4096, count * 4096) {
                Err(StoreError::Stale { runs }) => self.pull(runs),
                found => break found.expect("reads"),
            }
        };
        for (block, found) in (start..).zip(found.chunks(4096)) {
            assert_eq!(found, [self.content[block as usize]; 4096], "block {block}");
        }
    }

    fn pull(&mut self, runs: Vec<BlockRun>) {
        let blocks = self.replica.read_newest(runs).expect("the other holder has what is stale");
        self.owner.receive(blocks).expect("receives");
    }

    fn backfill(&mut self) {
        self.delete_orphans();
        self.check_snapshots();
        loop {
            let runs = self.owner.missing(Wanted::Now, 4);
            if runs.is_empty() {
                break;
            }
            self.pull(runs);
        }
        let report = self.owner.report();
        assert_eq!((report.stale_blocks, report.watermark), (0, report.head));
    }

    fn step(&mut self) {
        match self.choices.below(27) {
            24 => self.snapshot(),
            25 => match self.choices.below(3) {
                0 => self.delete_snapshot(),
                1 => self.delete_orphans(),
                _ => self.snapshot(),
            },
            26 if self.choices.below(4) == 0 => self.check_snapshots(),
            0..8 => self.write(),
            8..12 => self.send_manifest(false),
            12..16 => self.push(3),
            16..18 => self.apply(),
            18..20 => self.check_prefix(),
            20..22 => self.read(),
            22 => self.restart_replica(),
            _ => match self.choices.below(4) {
                0 => self.restart_owner(),
                1 => self.hand_over(),
                2 => self.owner.checkpoint().expect("is written"),
                _ => self.replica.checkpoint().expect("is written"),
            },
        }
    }

    /// Lets the replica catch up.
    fn drain(&mut self) {
        // Whatever delta is on its way, a new one merges with it.
        self.delta = None;
        self.delete_orphans();
        loop {
            self.send_manifest(true);
            self.push(u32::MAX);
            self.apply();
            self.check_prefix();
            let at = self.replica.report();
            if at.watermark >= self.owner.report().head && at.awaited_snapshot.is_none() {
                assert_eq!(at.stale_blocks, 0);
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_replica_is_a_prefix_at_every_moment_and_handovers_lose_nothing(seed in any::<u32>()) {
        let mut pair = Pair::new(u64::from(seed));
        for _ in 0..250 {
            pair.step();
        }
        pair.backfill();
        pair.drain();
        let content = pair.content.clone();
        prop_assert!(pair.replica.applied_prefix() == content);
        pair.check_snapshots();
        let known: Vec<u64> = pair.replica.snapshots().iter().map(|snapshot| snapshot.snapshot.0).collect();
        prop_assert!(known.iter().eq(pair.snapshots.keys()), "{known:?} and {:?}", pair.snapshots.keys());
        let lsns = |node: &mut Rig| node.snapshots().iter().map(|it| (it.lsn, it.size)).collect::<Vec<_>>();
        prop_assert_eq!(lsns(&mut pair.replica), lsns(&mut pair.owner), "at the same LSNs everywhere");
        pair.hand_over();
        pair.backfill();
        for (block, fill) in content.iter().enumerate() {
            let found = pair.owner.read(block as u64 * 4096, 4096).expect("reads");
            prop_assert_eq!(found, vec![*fill; 4096]);
        }
    }
}

/// A large manifest comes in several entries. When a crash, or want of room, had taken the last of them, the shard wrote no checkpoint until
/// it was told again: no segment came free, writes were refused as if the disk were full, and stopping waited for ever. What was
/// told next was told together with what was left, too.
#[test]
fn what_is_left_of_a_manifest_is_in_no_ones_way() {
    let mut pair = Pair::new(12);
    for _ in 0..20 {
        pair.write();
    }
    pair.send_manifest(false);
    let known = pair.replica.report().known;
    let left = ManifestRun { start: BlockIndex(1), lsn: Lsn::new(Epoch(1), 9999), content: RunContent::Zero(599) };
    let half = Manifest { from: known, to: known, runs: vec![left], mark: None };
    let append = |replica: &mut Rig| {
        let entry = Entry::Manifest { volume: VOLUME, manifest: half.clone(), seal: false };
        replica.core().append_plain(entry, false, Done::Nothing);
    };
    append(&mut pair.replica);
    pair.replica.checkpoint().expect("is written");
    pair.replica.restart();
    append(&mut pair.replica);
    pair.replica.flush().expect("flushes");
    pair.replica.kill();
    for _ in 0..20 {
        pair.write();
    }
    pair.send_manifest(true);
    pair.drain();
    assert_eq!(pair.replica.report().known, pair.owner.report().head);
    // Word of more runs than there are: some of them found no room.
    let head = pair.owner.report().head;
    let manifest = Manifest { from: head, to: Lsn::new(head.epoch, head.sequence + 5), runs: Vec::new(), mark: None };
    let entry = Entry::Told { volume: VOLUME, manifest, earlier: 3, seal: true };
    pair.replica.core().append_plain(entry, true, Done::Nothing);
    pair.replica.checkpoint().expect("is written");
    assert_eq!(pair.replica.report().known, head, "is not known");
    pair.write();
    pair.send_manifest(true);
    pair.drain();
    assert_eq!(pair.replica.report().known, pair.owner.report().head);
}

/// Told of a second manifest while the first waited for room in the log, a replica left out what the first tells. When the first was refused
/// and the second found room, it knew of a position without what lies before it, and showed old blocks as those of it.
#[test]
fn what_is_told_behind_a_manifest_that_is_refused_has_a_gap() {
    let mut pair = Pair::new(13);
    pair.write();
    pair.send_manifest(true);
    pair.drain();
    let at = pair.replica.report().known;
    pair.write();
    let between = pair.owner.report().head;
    pair.write();
    let (manifest, _) = pair.owner.seal(at, None);
    // As if what goes up to there were under way.
    pair.replica.core().volumes.get_mut(&VOLUME).expect("is there").known = between;
    assert_eq!(pair.replica.apply_manifest(&manifest, false, true), Ok(at), "the rest has to come first");
    assert_eq!(pair.replica.apply_manifest(&manifest, false, true), Ok(manifest.to));
    pair.send_manifest(true);
    pair.drain();
    let (known, shown) = (pair.replica.report().watermark, pair.replica.applied_prefix());
    assert_eq!(Some(&shown), pair.history.get(&known));
}

#[test]
fn a_handover_of_a_replica_that_has_no_data_serves_at_once_and_returns() {
    let mut pair = Pair::new(11);
    for _ in 0..100 {
        pair.write();
    }
    pair.send_manifest(false);
    let watermark = pair.replica.report().watermark;
    assert_eq!(watermark, Lsn::ZERO);
    pair.hand_over();
    let report = pair.owner.report();
    assert!(report.stale_blocks > 0);
    // A whole block is overwritten without a pull, part of one is not.
    let stale = pair.owner.missing(Wanted::Now, 1)[0].start;
    let partial = pair.owner.write(stale.byte_offset() + 512, vec![1; 512]);
    assert_eq!(partial, Err(StoreError::Stale { runs: vec![BlockRun { start: stale, count: 1 }] }));
    pair.owner.write_block(stale.0, 77).expect("writes");
    pair.content[stale.0 as usize] = 77;
    assert_eq!(pair.owner.report().stale_blocks, report.stale_blocks - 1);
    for _ in 0..50 {
        pair.read();
    }
    pair.owner.kill();
    pair.epoch += 1;
    pair.owner.activate(pair.epoch);
    pair.backfill();
    pair.history.insert(pair.owner.report().head, pair.content.clone());
    // The way back carries only what changed.
    let at = pair.replica.report();
    assert_eq!(at.watermark, at.known, "the old owner is complete up to the handover");
    let (manifest, delta) = pair.owner.seal(at.known, Some(at.watermark));
    assert_eq!(manifest.runs.iter().map(ManifestRun::blocks).sum::<u32>(), 1);
    assert_eq!(delta.expect("was asked for").blocks, 1);
    pair.drain();
    pair.hand_over();
    assert_eq!(pair.owner.report().stale_blocks, 0);
    pair.read();
}

/// A sealed delta once was a copy of the versions of all of its blocks, and counted their segments: an owner that had just been handed a volume with
/// gigabytes on their way to others served nobody for a third of a second.
#[test]
fn a_sealed_delta_shows_what_was_then_and_costs_what_is_overwritten() {
    let mut rig = Rig::new(4);
    rig.open(4 << 20);
    rig.activate(1);
    for block in 0..100 {
        rig.write_block(block, 1).expect("writes");
    }
    let before = rig.report().head;
    rig.snapshot(1).expect("is made");
    for block in 100..200 {
        rig.write_block(block, 2).expect("writes");
    }
    let head = rig.report().head;
    let (manifest, delta) = rig.seal(head, Some(before));
    let delta = delta.expect("was asked for");
    assert!(manifest.runs.is_empty() && (100..=200).contains(&delta.blocks), "{delta:?}");
    let is_pinned = |rig: &mut Rig| {
        let segments: Vec<u32> = rig.core().log.segments().iter().map(|info| info.segment).collect();
        segments.into_iter().any(|segment| rig.core().map.usage.is_pinned(segment))
    };
    assert!(!is_pinned(&mut rig), "the volume has all of it");
    rig.write_block(99, 3).expect("writes");
    rig.write_block(100, 3).expect("writes");
    rig.zero(101 * 4096, 4096).expect("zeroes");
    rig.write(102 * 4096 + 512, vec![3; 512]).expect("writes");
    rig.write_block(200, 3).expect("writes");
    assert!(is_pinned(&mut rig), "what was overwritten");
    rig.checkpoint().expect("is taken");
    // Everything after the snapshot goes.
    rig.roll_back(1).expect("rolls back");
    let all = BlockRun { start: BlockIndex(98), count: 103 };
    let found = rig.read_sealed(delta.pin, vec![all]).expect("reads");
    let seen: Vec<(u32, u8)> = found.iter().map(|it| (it.block.0, uniform(it.data.as_ref()))).collect();
    assert_eq!(seen, (100..200).map(|block| (block, 2)).collect::<Vec<_>>());
    assert!(found.iter().all(|it| it.lsn > before && it.lsn <= head));
    rig.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
    assert!(!is_pinned(&mut rig));
}

/// The run of the last block that there can be was left out of whatever was read for a replica: it asked for that for ever, and had nothing that
/// was written afterwards. A partition table is enough for it.
#[test]
fn the_last_block_of_the_largest_volume_reaches_a_replica() {
    let (mut owner, mut replica) = (Rig::in_memory(41, |_| {}), Rig::in_memory(42, |_| {}));
    for rig in [&mut owner, &mut replica] {
        rig.open(VOLUME_SIZE_MAX);
    }
    owner.activate(1);
    for (block, fill) in [(0, 1), (u32::MAX - 1, 2), (u32::MAX, 3)] {
        owner.write_block(block, fill).expect("writes");
    }
    catch_up(&mut owner, &mut replica);
    owner.deactivate(2);
    replica.activate(2);
    for (offset, fill) in [(0, 1), (VOLUME_SIZE_MAX - 8192, 2), (VOLUME_SIZE_MAX - 4096, 3)] {
        assert_eq!(replica.read(offset, 4096).expect("reads"), [fill; 4096]);
    }
    let last = BlockRun { start: BlockIndex(u32::MAX - 1), count: 2 };
    assert_eq!((last.blocks().collect::<Vec<_>>(), last.end()), (vec![u32::MAX - 1, u32::MAX], None));
    assert_eq!(split(&[last], 1).len(), 2);
}

#[test]
fn manifests_with_a_gap_and_blocks_with_a_wrong_checksum_are_refused() {
    let mut pair = Pair::new(3);
    pair.write();
    pair.send_manifest(false);
    let known = pair.replica.report().known;
    let later = Manifest {
        from: Lsn::new(known.epoch, known.sequence + 1),
        to: Lsn::new(known.epoch, known.sequence + 2),
        runs: vec![],
        mark: None,
    };
    let expected = StoreError::ManifestGap { expected: known, found: later.from };
    assert_eq!(pair.replica.apply_manifest(&later, false, false), Err(expected));
    let run = ManifestRun { start: BlockIndex(u32::MAX), lsn: known, content: RunContent::Zero(2) };
    let outside = Manifest { from: known, to: Lsn::new(known.epoch, known.sequence + 1), runs: vec![run], mark: None };
    assert!(matches!(pair.replica.apply_manifest(&outside, false, false), Err(StoreError::Io(_))));
    let lsn = Lsn::new(known.epoch, known.sequence + 1);
    let run = ManifestRun { start: BlockIndex(0), lsn, content: RunContent::Data(vec![5]) };
    let manifest = Manifest { from: known, to: lsn, runs: vec![run], mark: None };
    pair.replica.apply_manifest(&manifest, false, false).expect("is taken");
    let block = VersionedBlock { block: BlockIndex(0), lsn, data: Some(vec![1; 4096].into()) };
    assert!(matches!(pair.replica.receive(vec![block.clone()]), Err(StoreError::Corrupt { expected: 5, .. })));
    let old = VersionedBlock { lsn: Lsn::ZERO, ..block };
    assert_eq!(pair.replica.receive(vec![old]), Ok(0), "another version is not wanted");
}

/// A volume that had just been handed over was asked for the missing blocks of a hot extent of 64, and all that it lacked was looked through for
/// it, as that was one run: with 2 GiB on their way its guests waited for the shard, extent by extent.
#[test]
fn who_asks_what_is_missing_of_a_large_run_is_told_of_a_part() {
    const COUNT: u32 = 40_000;
    let mut replica = Rig::new(1);
    replica.open(u64::from(COUNT) * 4096);
    let to = Lsn::new(client_lib::Epoch(1), 1);
    let run = ManifestRun { start: BlockIndex(0), lsn: to, content: RunContent::Data((0..COUNT).collect()) };
    replica
        .apply_manifest(&Manifest { from: Lsn::ZERO, to, runs: vec![run], mark: None }, true, true)
        .expect("is taken");
    assert_eq!(replica.report().stale_blocks, u64::from(COUNT));
    assert_eq!(replica.missing(Wanted::Now, 64), [BlockRun { start: BlockIndex(0), count: 4096 }]);
}

#[test]
fn a_manifest_of_many_thousands_of_blocks_comes_in_parts_and_counts_whole() {
    const COUNT: u32 = 40_000;
    let mut replica = Rig::new(1);
    replica.open(u64::from(COUNT) * 2 * 4096);
    let to = Lsn::new(client_lib::Epoch(1), u64::from(COUNT));
    let runs = (0..COUNT)
        .map(|index| ManifestRun {
            start: BlockIndex(index * 2),
            lsn: Lsn::new(to.epoch, u64::from(index) + 1),
            content: RunContent::Data(vec![index]),
        })
        .collect();
    replica.apply_manifest(&Manifest { from: Lsn::ZERO, to, runs, mark: None }, true, true).expect("is taken");
    replica.crash();
    let report = replica.report();
    assert_eq!((report.known, report.stale_blocks), (to, u64::from(COUNT)));
    assert_eq!(replica.missing(Wanted::Sealed, 10).len(), 10);
    assert_eq!(replica.missing(Wanted::Now, u32::MAX).len(), COUNT as usize);
    replica.restart();
    assert_eq!(replica.report().stale_blocks, u64::from(COUNT));
}

/// Found by handovers under load: the sender's manifest was under way when the last one of the handover came. That one
/// brought no news, so it was answered at once, from the state before: "node 2 knows the volume up to 5.295, not
/// 5.297", and the handover was given up. Asked to be durable, it was told so before it was.
#[test]
fn a_manifest_that_comes_twice_is_answered_when_the_first_is_applied_and_durable() {
    let mut replica = Rig::new(1);
    replica.open(SIZE);
    let to = Lsn::new(client_lib::Epoch(1), 1);
    let run = ManifestRun { start: BlockIndex(0), lsn: to, content: RunContent::Zero(1) };
    let manifest = Manifest { from: Lsn::ZERO, to, runs: vec![run], mark: None };
    let mut send = |durable| {
        let manifest = manifest.clone();
        replica.send(|reply| Request::ApplyManifest { volume: VOLUME, manifest, seal: false, durable, reply })
    };
    let (first, second) = (send(false), send(true));
    assert_eq!(replica.wait(second), Ok(to), "from the state after it");
    replica.crash();
    assert_eq!(replica.report().known, to, "and durable");
    drop(first);
}
