//! A replica that has nothing gets a volume in parts, while it is written: what it shows at the end is a prefix of the volume, whatever happens on
//! the way.

use std::collections::BTreeMap;

use client_lib::{BlockIndex, Lsn};
use proptest::prelude::*;

use super::rejoin::bring_back;
use super::rig::{Rig, VOLUME, cases, catch_up};
use crate::map::page::PAGE_ENTRIES;
use crate::shard::handle::{Request, StoreError, VolumeReport};
use crate::volume::initial::InitialSync;
use crate::volume::layers::Wanted;

const PAGES: u32 = 6;
const BLOCKS: u32 = PAGES * PAGE_ENTRIES;
const SIZE: u64 = BLOCKS as u64 * 4096;

#[derive(Clone, Debug)]
enum Step {
    Write(u32, u8),
    /// So many blocks from this one on.
    Zero(u32, u32),
    Snapshot,
    /// The snapshot of this number, modulo how many there are.
    Delete(usize),
    /// About so many blocks of the next part, of which at most so many are sent.
    Part(usize, u64),
    Fold,
    KillReplica,
    CrashReplica,
    RestartReplica,
    RestartOwner,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = || (0..PAGES, prop_oneof![Just(0), Just(PAGE_ENTRIES - 1), 0..PAGE_ENTRIES]);
    let block = || block().prop_map(|(page, index)| page * PAGE_ENTRIES + index);
    let step = prop_oneof![
        30 => (block(), 1..=255u8).prop_map(|(block, fill)| Step::Write(block, fill)),
        4 => (block(), 1..400u32).prop_map(|(block, count)| Step::Zero(block, count)),
        2 => Just(Step::Snapshot),
        2 => any::<usize>().prop_map(Step::Delete),
        8 => (1..20usize, prop_oneof![4 => Just(u64::MAX), 1 => 0..10u64]).prop_map(|(most, sent)| Step::Part(most, sent)),
        2 => Just(Step::Fold),
        1 => Just(Step::KillReplica),
        1 => Just(Step::CrashReplica),
        1 => Just(Step::RestartReplica),
        1 => Just(Step::RestartOwner),
    ];
    proptest::collection::vec(step, 1..80)
}

/// As of which position a replica has what lies before which block.
fn reached(report: &VolumeReport) -> (Lsn, BlockIndex) {
    let initial = report.rejoining.and_then(|rejoining| rejoining.initial).unwrap_or(InitialSync::BEGUN);
    (initial.base, BlockIndex(initial.next))
}

/// An owner, a replica, and what the volume was after each write.
struct Pair {
    owner: Rig,
    replica: Rig,
    epoch: u64,
    content: Vec<u8>,
    states: BTreeMap<Lsn, Vec<u8>>,
    /// The snapshots that there are, with what they show.
    snapshots: BTreeMap<u64, Vec<u8>>,
    next_snapshot: u64,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let (mut owner, mut replica) = (Rig::in_memory(seed, |_| {}), Rig::in_memory(seed + 1, |_| {}));
        owner.open(SIZE);
        replica.open(SIZE);
        owner.activate(1);
        replica.deactivate(1);
        let content = vec![0; BLOCKS as usize];
        let (states, snapshots) = (BTreeMap::new(), BTreeMap::new());
        let mut pair = Pair { owner, replica, epoch: 1, content, states, snapshots, next_snapshot: 1 };
        // A snapshot of nothing does not come in parts.
        pair.write(0, 1);
        pair
    }

    fn written(&mut self, lsn: Lsn) {
        self.states.insert(lsn, self.content.clone());
    }

    fn write(&mut self, block: u32, fill: u8) {
        self.content[block as usize] = fill;
        let lsn = self.owner.write_block(block, fill).expect("is written");
        self.written(lsn);
    }

    fn zero(&mut self, block: u32, count: u32) {
        let count = count.min(BLOCKS - block);
        self.content[block as usize..(block + count) as usize].fill(0);
        let lsn = self.owner.zero(u64::from(block) * 4096, u64::from(count) * 4096).expect("is zeroed");
        self.written(lsn);
    }

    /// As the owner's sender does it. Whether the replica has everything up to somewhere.
    fn part(&mut self, most: usize, sent_max: u64) -> bool {
        let at = self.replica.report();
        if at.watermark > Lsn::ZERO {
            return true;
        }
        if at.rejoining.and_then(|rejoining| rejoining.initial).is_some_and(|initial| initial.is_told) {
            // As a node that comes back.
            return bring_back(&mut self.owner, &mut self.replica, sent_max).1;
        }
        let (base, next) = reached(&at);
        let sealed = self.owner.ask(|reply| Request::SealPart { volume: VOLUME, base, next, most, reply });
        let (manifest, delta) = sealed.expect("is sealed");
        let delta = delta.expect("there is one");
        let part = delta.part.expect("is a part");
        let fresh: u32 = manifest.runs.iter().filter(|run| run.start >= next).map(|run| run.blocks()).sum();
        assert!(fresh as usize <= most, "{fresh} blocks are in hand, {most} were asked for");
        assert!(part.end.is_some() || part.rest == 0);
        assert_eq!(manifest.from, Lsn::ZERO);
        let (to, end) = (manifest.to, part.end);
        let mut is_sent = to > Lsn::ZERO;
        if is_sent {
            let told = self.replica.ask(|reply| Request::ApplyPart { volume: VOLUME, manifest, end, reply });
            assert_eq!(told, Ok(to));
            let mut sent = 0;
            is_sent = sent_max > 0;
            while let missing = self.replica.missing(Wanted::Sealed, 10)
                && !missing.is_empty()
                && is_sent
            {
                let blocks = self.owner.read_sealed(delta.pin, missing).expect("what is lacked is pinned");
                sent += self.replica.receive(blocks).expect("receives");
                is_sent = sent < sent_max;
            }
        }
        self.owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
        if !is_sent {
            return false;
        }
        let watermark = self.replica.apply_sealed(to);
        assert_eq!(watermark, if end.is_none() { to } else { Lsn::ZERO }, "no prefix before the last part");
        end.is_none()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(block, fill) => self.write(block, fill),
            Step::Zero(block, count) => self.zero(block, count),
            Step::Snapshot => {
                self.owner.snapshot(self.next_snapshot).expect("is made");
                self.snapshots.insert(self.next_snapshot, self.content.clone());
                self.next_snapshot += 1;
            }
            Step::Delete(number) if !self.snapshots.is_empty() => {
                let id = *self.snapshots.keys().nth(number % self.snapshots.len()).expect("there are some");
                self.snapshots.remove(&id);
                self.owner.delete_snapshot(id).expect("is deleted");
                // As the replica hears from the metadata.
                self.replica.delete_snapshot(id).expect("is deleted, or not known");
            }
            Step::Delete(_) => {}
            Step::Part(most, sent) => drop(self.part(most, sent)),
            Step::Fold => {
                self.replica.turn();
                self.owner.turn();
            }
            Step::KillReplica => self.replica.kill(),
            Step::CrashReplica => self.replica.crash(),
            Step::RestartReplica => self.replica.restart(),
            Step::RestartOwner => {
                self.owner.restart();
                self.epoch += 1;
                self.owner.activate(self.epoch);
                self.replica.deactivate(self.epoch);
            }
        }
    }

    fn check(&mut self) {
        let watermark = self.replica.report().watermark;
        assert_eq!(self.replica.applied_prefix(), self.states[&watermark], "at {watermark}");
        for listed in self.replica.snapshots().into_iter().filter(|listed| listed.stale_blocks == 0) {
            let Some(shown) = self.snapshots.get(&listed.snapshot.0) else { continue };
            let found = self.replica.read_snapshot(listed.snapshot.0, 0, SIZE as u32).expect("reads");
            let found: Vec<u8> = found.chunks(4096).map(|block| block[0]).collect();
            assert_eq!(&found, shown, "snapshot {}", listed.snapshot);
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// What it has then it can give to others: as their owner, from its own history.
    #[test]
    fn what_comes_in_parts_is_the_volume(steps in steps()) {
        let mut pair = Pair::new(1);
        steps.iter().for_each(|step| pair.step(step));
        pair.write(3, 33);
        for round in 0.. {
            assert!(round < 50, "it comes to an end");
            if pair.part(300, u64::MAX) {
                break;
            }
        }
        pair.check();
        let known: Vec<u64> = pair.snapshots.keys().copied().collect();
        catch_up(&mut pair.owner, &mut pair.replica);
        pair.check();
        let there: Vec<u64> = pair.replica.snapshots().iter().map(|listed| listed.snapshot.0).collect();
        prop_assert_eq!(there, known, "every snapshot came with it");
        prop_assert_eq!(pair.replica.applied_prefix(), pair.content.clone());

        pair.replica.activate(pair.epoch + 1);
        let mut third = Rig::in_memory(3, |_| {});
        third.open(SIZE);
        third.deactivate(pair.epoch + 1);
        catch_up(&mut pair.replica, &mut third);
        prop_assert_eq!(third.applied_prefix(), pair.content.clone(), "from its own history");
    }
}

#[test]
fn until_it_has_all_parts_a_node_owns_nothing_and_is_told_of_nothing_else() {
    let mut pair = Pair::new(7);
    for page in 1..PAGES {
        pair.write(page * PAGE_ENTRIES, 1);
    }
    assert!(!pair.part(1, u64::MAX));
    let report = pair.replica.report();
    assert_eq!(reached(&report).1, BlockIndex(PAGE_ENTRIES));
    assert_eq!((report.watermark, report.stale_blocks), (Lsn::ZERO, 0));
    let activated = pair.replica.ask(|reply| Request::Activate {
        volume: VOLUME,
        epoch: client_lib::Epoch(9),
        acts_under: Some(0),
        reply,
    });
    assert_eq!(activated, Err(StoreError::Syncing(VOLUME)));
    let (manifest, _) = pair.owner.seal(report.known, None);
    assert_eq!(pair.replica.apply_manifest(&manifest, false, false), Err(StoreError::Syncing(VOLUME)));

    // A takeover cut off what is known, and not what is here: the parts that have come stay.
    let base = report.known;
    pair.write(0, 2);
    assert!(!pair.part(1, 0), "told, and not sent");
    assert!(pair.replica.report().known > base);
    let back = pair.replica.ask(|reply| Request::Discard { volume: VOLUME, to: base, reply }).expect("discards");
    assert_eq!((back.known, back.rejoining, back.sealed_to), (base, report.rejoining, None));

    // A handover that does not wait tells of the rest at once, and then the node may own the volume.
    assert!(!pair.part(usize::MAX, 0), "told, and not sent");
    let told = pair.replica.report();
    assert_eq!((told.known, told.stale_blocks), (pair.owner.report().head, u64::from(PAGES)));
    pair.owner.deactivate(2);
    assert_eq!(pair.replica.activate(2).stale_blocks, u64::from(PAGES));
    pair.replica.deactivate(3);
    pair.owner.activate(3);

    while !pair.part(1, u64::MAX) {}
    pair.check();
    let part = pair.owner.ask(|reply| Request::SealPart {
        volume: VOLUME,
        base: Lsn::ZERO,
        next: BlockIndex(0),
        most: 1,
        reply,
    });
    let (manifest, _) = part.expect("is sealed");
    let told = pair.replica.ask(|reply| Request::ApplyPart { volume: VOLUME, manifest, end: None, reply });
    assert_eq!(told, Err(StoreError::NoParts(VOLUME)), "it has everything");
}

/// A volume was handed over to a node to which the sender told the first part of an initial sync in the same moment. The log had taken neither
/// the part nor the handover's manifest yet, so both were taken; the manifest then had no effect, the positions looked as if it had, and the
/// node was given a volume that it could not own.
#[test]
fn of_a_part_and_a_manifest_that_come_in_one_moment_one_is_refused() {
    for part_first in [true, false] {
        let mut pair = Pair::new(11);
        for page in 1..PAGES {
            pair.write(page * PAGE_ENTRIES, 1);
        }
        let (base, next) = (Lsn::ZERO, BlockIndex(0));
        let sealed = pair.owner.ask(|reply| Request::SealPart { volume: VOLUME, base, next, most: 2, reply });
        let (part, delta) = sealed.expect("is sealed");
        let end = delta.and_then(|delta| delta.part).expect("is a part").end;
        let (manifest, _) = pair.owner.seal(Lsn::ZERO, None);
        let (known, replica) = (manifest.to, &mut pair.replica);
        let part = |reply| Request::ApplyPart { volume: VOLUME, manifest: part, end, reply };
        let manifest = |reply| Request::ApplyManifest { volume: VOLUME, manifest, seal: false, durable: true, reply };
        let (part, manifest) = match part_first {
            true => {
                let part = replica.send(part);
                (part, replica.send(manifest))
            }
            false => {
                let manifest = replica.send(manifest);
                (replica.send(part), manifest)
            }
        };
        let (part, manifest) = (replica.wait(part), replica.wait(manifest));
        let refused = if part_first { StoreError::Syncing(VOLUME) } else { StoreError::NoParts(VOLUME) };
        let expected = if part_first { (Ok(known), Err(refused)) } else { (Err(refused), Ok(known)) };
        assert_eq!((part, manifest), expected);
        assert_eq!(replica.report().rejoining.is_some(), part_first);
        let activated = replica.ask(|reply| Request::Activate {
            volume: VOLUME,
            epoch: client_lib::Epoch(2),
            acts_under: Some(0),
            reply,
        });
        assert_eq!(activated.is_ok(), !part_first);
    }
}
