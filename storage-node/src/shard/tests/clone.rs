//! Clones: as what they were cloned from, independent of it from then on, in crashes, cleaning and deletions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, Epoch, Lsn, ReadPart, SnapshotId, VolumeId, VolumeSize};

use super::rig::{Rig, VOLUME, catch_up};
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::shard::handle::{Request, StoreError, VolumeReport};
use crate::volume::Moment;
use crate::volume::ledger::Author;

/// Blocks of each volume: some pages, and most of a segment.
const BLOCKS: u32 = 1500;
const BLOCK: u64 = BLOCK_SIZE as u64;
const ORIGIN: VolumeId = VolumeId(1);
const CLONE: VolumeId = VolumeId(2);

/// Volumes in a shard, and the byte that fills each block of them and of their snapshots.
struct Volumes {
    rig: Rig,
    live: BTreeMap<VolumeId, Vec<u8>>,
    snapshots: BTreeMap<(VolumeId, SnapshotId), Vec<u8>>,
    next: u64,
    epoch: u64,
    random: u64,
}

impl Volumes {
    fn new(rig: Rig, seed: u64) -> Volumes {
        let live = BTreeMap::from([(ORIGIN, vec![0; BLOCKS as usize])]);
        let mut volumes = Volumes { rig, live, snapshots: BTreeMap::new(), next: 2, epoch: 1, random: seed | 1 };
        let size = VolumeSize::try_from(u64::from(BLOCKS) * BLOCK).expect("valid");
        volumes.rig.ask(|reply| Request::Open { volume: ORIGIN, size, reply }).expect("opens");
        volumes.activate();
        volumes
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn any_volume(&mut self) -> VolumeId {
        let at = self.random(self.live.len());
        *self.live.keys().nth(at).expect("one of them")
    }

    fn any_snapshot(&mut self) -> Option<(VolumeId, SnapshotId)> {
        let at = self.random(self.snapshots.len().max(1));
        self.snapshots.keys().nth(at).copied()
    }

    fn activate(&mut self) {
        for volume in self.live.keys().copied().collect::<Vec<_>>() {
            let (epoch, acts_under) = (Epoch(self.epoch), Some(0));
            self.rig.ask(|reply| Request::Activate { volume, epoch, acts_under, reply }).expect("activates");
        }
    }

    fn again(&mut self) {
        self.epoch += 1;
        self.activate();
    }

    fn write(&mut self, volume: VolumeId, start: u32, count: u32) {
        let fill = 1 + self.random(250) as u8;
        let data = Bytes::from(vec![fill; count as usize * BLOCK_SIZE as usize]);
        let offset = u64::from(start) * BLOCK;
        self.rig
            .ask(|reply| Request::Write { volume, offset, data, fua: false, author: Author::Session(None), reply })
            .expect("writes");
        self.live.get_mut(&volume).expect("is there")[start as usize..(start + count) as usize].fill(fill);
    }

    fn snapshot(&mut self, volume: VolumeId) -> SnapshotId {
        let snapshot = SnapshotId(self.next);
        self.next += 1;
        self.rig.ask(|reply| Request::CreateSnapshot { volume, snapshot, reply }).expect("is made");
        self.snapshots.insert((volume, snapshot), self.live[&volume].clone());
        snapshot
    }

    fn delete_snapshot(&mut self, (volume, snapshot): (VolumeId, SnapshotId)) {
        self.rig.ask(|reply| Request::DeleteSnapshot { volume, snapshot, reply }).expect("is deleted");
        self.snapshots.remove(&(volume, snapshot));
    }

    fn delete(&mut self, volume: VolumeId) {
        self.rig.ask(|reply| Request::Delete { volume, reply }).expect("is deleted");
        self.live.remove(&volume);
        self.snapshots.retain(|(of, _), _| *of != volume);
    }

    fn open_clone(
        &mut self,
        volume: VolumeId,
        (origin, snapshot): (VolumeId, SnapshotId),
    ) -> Result<VolumeReport, StoreError> {
        self.rig.ask(|reply| Request::OpenClone { volume, origin, snapshot, reply })
    }

    fn clone(&mut self, of: (VolumeId, SnapshotId)) -> VolumeId {
        let volume = VolumeId(self.next);
        self.next += 1;
        self.open_clone(volume, of).expect("is cloned");
        self.live.insert(volume, self.snapshots[&of].clone());
        let (epoch, acts_under) = (Epoch(self.epoch), Some(0));
        self.rig.ask(|reply| Request::Activate { volume, epoch, acts_under, reply }).expect("activates");
        volume
    }

    fn clean(&mut self) {
        self.rig.core().cleaner.hurry();
        for _ in 0..300 {
            self.rig.turn();
        }
    }

    fn read(&mut self, volume: VolumeId, moment: Moment) -> Vec<u8> {
        let length = BLOCKS * BLOCK_SIZE;
        let read = self.rig.ask(|reply| Request::Read { volume, moment, offset: 0, length, reply });
        let bytes = ReadPart::joined(read.expect("reads"));
        bytes
            .chunks(BLOCK_SIZE as usize)
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]), "a block is torn");
                block[0]
            })
            .collect()
    }

    fn check(&mut self, when: &str) {
        for (volume, content) in self.live.clone() {
            assert!(self.read(volume, Moment::Now) == content, "{when}: volume {volume}");
        }
        for ((volume, snapshot), content) in self.snapshots.clone() {
            assert!(
                self.read(volume, Moment::Snapshot(snapshot)) == content,
                "{when}: snapshot {snapshot} of {volume}"
            );
        }
    }

    fn roll_back(&mut self, (volume, snapshot): (VolumeId, SnapshotId)) {
        self.rig.ask(|reply| Request::RollBack { volume, snapshot, reply }).expect("is rolled back");
        self.live.insert(volume, self.snapshots[&(volume, snapshot)].clone());
    }

    /// The count of what each segment still holds for somebody is compared with what all maps and layers point to.
    fn check_usage(&mut self, when: &str) {
        while self.rig.core().has_background_work() {
            self.rig.turn();
        }
        let core = self.rig.core();
        let mut places: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut of_one: BTreeMap<u32, u64> = BTreeMap::new();
        for run in core.volumes.values() {
            let layers = run.state.layers.entries().map(|(_, version)| version);
            let mut found: Vec<_> = layers.filter_map(|version| version.content.place()).collect();
            for map in run.state.maps() {
                let mut next = core.map.cache.next_page(map, 0);
                while let Some(page) = next {
                    let content = core.map.cache.page(map, page).expect("reads").expect("is there");
                    found.extend(content.iter().filter_map(|(_, version)| version.content.place()));
                    next = core.map.cache.next_page(map, page + 1);
                }
            }
            for map in run.state.maps() {
                for info in core.log.segments() {
                    let most = of_one.entry(info.segment).or_default();
                    *most = (*most).max(core.map.usage.live_in(map, info.segment));
                }
            }
            for place in found {
                places.entry(place.segment).or_default().insert(place.block);
            }
        }
        for info in core.log.segments() {
            let held = places.get(&info.segment).map_or(0, |blocks| blocks.len() as u64);
            let (live, needed) = (core.map.usage.live(info.segment), core.map.usage.needed(info.segment));
            let told = format!("{when}: segment {}: {held} held, {live} entries, {needed} needed", info.segment);
            assert!((live == 0) == (held == 0) && live >= held, "{told}");
            assert!(needed <= held && needed >= of_one[&info.segment], "{told}");
            assert!(live > needed || live == held, "without aliases both are exact; {told}");
        }
    }

    fn live_blocks(&mut self) -> u64 {
        let core = self.rig.core();
        core.log.segments().iter().map(|info| core.map.usage.live(info.segment)).sum()
    }
}

#[test]
fn a_clone_needs_neither_snapshot_nor_volume() {
    let mut all = Volumes::new(Rig::new(1), 1);
    all.write(ORIGIN, 0, BLOCKS);
    let snapshot = all.snapshot(ORIGIN);
    all.write(ORIGIN, 100, 50);
    let written = all.rig.core().log.traffic().data;
    let clone = all.clone((ORIGIN, snapshot));
    assert_eq!(all.rig.core().log.traffic().data, written, "no data is copied");
    all.check("cloned");
    all.write(clone, 120, 300);
    all.write(ORIGIN, 300, 300);
    let second = all.snapshot(clone);
    let grandchild = all.clone((clone, second));
    all.delete_snapshot((ORIGIN, snapshot));
    all.clean();
    all.check("without the snapshot");
    all.delete(ORIGIN);
    all.rig.restart();
    all.again();
    all.clean();
    all.check("without the volume");
    all.delete(clone);
    all.clean();
    all.check("without the parent");
    all.delete(grandchild);
    assert_eq!(all.live_blocks(), 0, "and nothing is left of any");
}

#[test]
fn a_clone_goes_on_in_the_order_of_its_origin_also_at_a_replica() {
    let mut all = Volumes::new(Rig::new(1), 1);
    all.write(ORIGIN, 0, 700);
    let snapshot = all.snapshot(ORIGIN);
    let of = all.rig.ask(|reply| Request::Report { volume: ORIGIN, reply }).expect("reports");
    let report = all.open_clone(CLONE, (ORIGIN, snapshot)).expect("is cloned");
    assert_eq!((report.known, report.watermark), (of.head, of.head));
    all.live.insert(CLONE, all.live[&ORIGIN].clone());
    all.activate();
    all.write(CLONE, 5, 1);
    // One that begins as the clone did is told of what came since, one that begins empty of everything.
    for (from, blocks) in [(report.known, 1), (Lsn::ZERO, 700)] {
        let after = SnapshotId(0);
        let seal = |reply| Request::SealManifest { volume: CLONE, from, after, delta_from: None, reply };
        let (manifest, _) = all.rig.ask(seal).expect("is made");
        assert_eq!(manifest.runs.iter().map(|run| u64::from(run.blocks())).sum::<u64>(), blocks);
        assert!(manifest.to > report.known);
    }
    assert_eq!(
        all.open_clone(VolumeId(9), (ORIGIN, SnapshotId(99))),
        Err(StoreError::UnknownSnapshot { volume: ORIGIN, snapshot: SnapshotId(99) })
    );
    assert_eq!(all.open_clone(VolumeId(9), (VolumeId(8), snapshot)), Err(StoreError::UnknownVolume(VolumeId(8))));
    assert!(all.open_clone(CLONE, (VolumeId(8), snapshot)).expect("is there").head > report.head, "twice is once");
}

#[test]
fn a_crash_while_a_clone_is_made_leaves_all_of_it_or_none() {
    for seed in 1..60 {
        let mut all = Volumes::new(Rig::in_memory(seed, |_| {}), seed);
        for start in (0..BLOCKS).step_by(100) {
            all.write(ORIGIN, start, 1);
        }
        let snapshot = all.snapshot(ORIGIN);
        let asked = |reply| Request::OpenClone { volume: CLONE, origin: ORIGIN, snapshot, reply };
        let mut cloned = all.rig.send(asked);
        (0..seed % 20).for_each(|_| all.rig.turn());
        if seed % 2 == 0 {
            // What it comes from goes at once.
            let _deleted = all.rig.send(|reply| Request::DeleteSnapshot { volume: ORIGIN, snapshot, reply });
            (0..seed % 7).for_each(|_| all.rig.turn());
        }
        let was_told = cloned.try_recv().is_ok_and(|outcome| outcome.is_ok());
        if seed % 3 == 0 {
            all.rig.kill()
        } else {
            all.rig.crash()
        }
        let there = all.rig.ask(|reply| Request::List { reply }).expect("lists").contains(&CLONE);
        assert!(there || !was_told, "seed {seed}");
        if there {
            all.live.insert(CLONE, all.live[&ORIGIN].clone());
        }
        all.again();
        all.snapshots.clear();
        all.check(&format!("seed {seed}, there: {there}"));
    }
}

#[test]
fn volumes_and_their_clones_keep_what_is_theirs_whatever_happens() {
    for seed in 1..=8 {
        let rig = Rig::with(seed, |options| options.log.capacity_bytes = Some(14 * SEGMENT_BYTES_MIN));
        let mut all = Volumes::new(rig, seed * 7919);
        for step in 0..250 {
            match all.random(20) {
                0..10 => {
                    let (volume, start) = (all.any_volume(), all.random(BLOCKS as usize) as u32);
                    let count = (1 + all.random(200) as u32).min(BLOCKS - start);
                    all.write(volume, start, count);
                }
                10 | 11 if all.snapshots.len() < 3 => {
                    let volume = all.any_volume();
                    all.snapshot(volume);
                }
                12 | 13 if all.live.len() < 4 => {
                    if let Some(of) = all.any_snapshot() {
                        all.clone(of);
                    }
                }
                14 => {
                    if let Some(of) = all.any_snapshot() {
                        all.delete_snapshot(of);
                    }
                }
                15 if all.live.len() > 2 => {
                    let volume = all.any_volume();
                    all.delete(volume);
                }
                16 => all.clean(),
                15 => {
                    if let Some(of) = all.any_snapshot() {
                        all.roll_back(of);
                    }
                }
                17 => all.rig.checkpoint().expect("is written"),
                18 if step % 3 == 0 => {
                    all.rig.kill();
                    all.again();
                }
                19 if step % 3 == 0 => {
                    all.rig.restart();
                    all.again();
                }
                _ => {}
            }
            if step % 5 == 0 {
                all.check_usage(&format!("seed {seed}, step {step}"));
            }
        }
        all.check(&format!("seed {seed}"));
        all.clean();
        all.rig.restart();
        all.again();
        all.check(&format!("seed {seed}, again"));
        for volume in all.live.keys().copied().collect::<Vec<_>>() {
            all.delete(volume);
        }
        assert_eq!(all.live_blocks(), 0, "seed {seed}: nothing is left");
    }
}

/// A block counted once for each volume that has it, so segments that were half garbage seemed to be more than full: they were
/// never emptied, and writes were refused on a store that had room.
#[test]
fn garbage_beside_what_volumes_share_is_cleaned() {
    const SEGMENTS: u64 = 10;
    const CHUNK: u64 = 16 * BLOCK;
    const CHUNKS: u64 = 7 * SEGMENT_BYTES_MIN / (17 * BLOCK);
    let mut rig = Rig::in_memory(31, |options| options.log.capacity_bytes = Some(SEGMENTS * SEGMENT_BYTES_MIN));
    let size = VolumeSize::try_from(CHUNKS * CHUNK).expect("valid");
    let activate = |rig: &mut Rig, volume| {
        rig.ask(|reply| Request::Activate { volume, epoch: Epoch(1), acts_under: Some(0), reply }).expect("activates");
    };
    let write = |rig: &mut Rig, volume, chunk: u64, fill| {
        let data = Bytes::from(vec![fill; CHUNK as usize]);
        rig.ask(|reply| Request::Write {
            volume,
            offset: chunk * CHUNK,
            data,
            fua: false,
            author: Author::Session(None),
            reply,
        })
    };
    rig.ask(|reply| Request::Open { volume: ORIGIN, size, reply }).expect("opens");
    activate(&mut rig, ORIGIN);
    for chunk in 0..CHUNKS {
        write(&mut rig, ORIGIN, chunk, 1 + (chunk % 250) as u8).expect("writes");
    }
    let snapshot = SnapshotId(1);
    rig.ask(|reply| Request::CreateSnapshot { volume: ORIGIN, snapshot, reply }).expect("is made");
    let clones = [2, 3, 4].map(VolumeId);
    for volume in clones {
        rig.ask(|reply| Request::OpenClone { volume, origin: ORIGIN, snapshot, reply }).expect("is cloned");
        activate(&mut rig, volume);
    }
    rig.ask(|reply| Request::DeleteSnapshot { volume: ORIGIN, snapshot, reply }).expect("is deleted");
    for volume in [ORIGIN].into_iter().chain(clones) {
        for chunk in (0..CHUNKS).step_by(2) {
            rig.ask(|reply| Request::Zero {
                volume,
                offset: chunk * CHUNK,
                length: CHUNK,
                fua: false,
                author: Author::Session(None),
                reply,
            })
            .expect("is trimmed");
        }
    }
    // Half of what there was has room again.
    for chunk in (0..CHUNKS).step_by(2) {
        write(&mut rig, ORIGIN, chunk, 255).unwrap_or_else(|error| panic!("chunk {chunk}: {error}"));
    }
    for (volume, even) in [(ORIGIN, 255), (clones[2], 0)] {
        for chunk in 0..CHUNKS {
            let (moment, offset, length) = (Moment::Now, chunk * CHUNK, CHUNK as u32);
            let read = rig.ask(|reply| Request::Read { volume, moment, offset, length, reply }).expect("reads");
            let expected = if chunk % 2 == 0 { even } else { 1 + (chunk % 250) as u8 };
            assert_eq!(ReadPart::joined(read), vec![expected; CHUNK as usize], "chunk {chunk} of {volume}");
        }
    }
}

/// Folding goes on in the background and is no entry of the log: after a kill it had to be done over, and a clone whose snapshot it had not
/// reached by then was gone, with what had been flushed to it.
#[test]
fn a_clone_of_what_was_folded_since_the_last_checkpoint_outlives_a_kill() {
    let (mut owner, mut replica) = (Rig::new(3), Rig::new(4));
    owner.open(u64::from(BLOCKS) * BLOCK);
    replica.open(u64::from(BLOCKS) * BLOCK);
    owner.activate(1);
    for block in 0..BLOCKS {
        owner.write_block(block, 7).expect("writes");
    }
    owner.snapshot(2).expect("is made");
    catch_up(&mut owner, &mut replica);
    let (volume, origin, snapshot) = (VolumeId(VOLUME.0 + 1), VOLUME, SnapshotId(2));
    let open = |rig: &mut Rig| rig.ask(|reply| Request::OpenClone { volume, origin, snapshot, reply });
    // Until all of the snapshot is in the base.
    while matches!(open(&mut replica), Err(StoreError::StillFetching { .. })) {
        replica.turn();
    }
    replica.kill();
    replica
        .ask(|reply| Request::Activate { volume, epoch: Epoch(1), acts_under: Some(0), reply })
        .expect("the clone is there");
    let (moment, length) = (Moment::Now, BLOCKS * BLOCK_SIZE);
    let read = replica.ask(|reply| Request::Read { volume, moment, offset: 0, length, reply }).expect("reads");
    assert!(ReadPart::joined(read).iter().all(|byte| *byte == 7), "as the snapshot");
}
