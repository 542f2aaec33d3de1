//! The layers against a list of versions per block.

use std::collections::BTreeMap;

use client_lib::{Epoch, VolumeSize};
use proptest::prelude::*;

use super::*;

const VOLUME: VolumeId = VolumeId(1);
/// Some in one chunk, some in the next.
const BLOCKS: std::ops::Range<u32> = 236..276;

#[derive(Clone, Debug)]
enum Step {
    Note(u32, bool),
    Tell(u32, u32, bool),
    Receive(u32),
    Seal,
    SealAt,
    Forget(usize),
    Apply,
    Fold(usize),
    Store,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (BLOCKS, any::<bool>()).prop_map(|(block, zero)| Step::Note(block, zero)),
        2 => (BLOCKS, 1..30u32, any::<bool>()).prop_map(|(first, count, zero)| Step::Tell(first, count, zero)),
        8 => BLOCKS.prop_map(Step::Receive),
        2 => Just(Step::Seal),
        2 => Just(Step::SealAt),
        1 => (0..4usize).prop_map(Step::Forget),
        3 => Just(Step::Apply),
        2 => (0..40usize).prop_map(Step::Fold),
        1 => Just(Step::Store),
    ];
    proptest::collection::vec(step, 0..400)
}

fn at(sequence: u64) -> Lsn {
    Lsn::new(Epoch(1), sequence)
}

/// The store's side of the layers.
#[derive(Default)]
struct Stored(BTreeMap<(u64, u32), Vec<u8>>);

impl Stored {
    fn take(&mut self, delta: LayersDelta) {
        self.0.retain(|(layer, _), _| !delta.dropped.contains(layer));
        for (layer, chunk, value) in delta.chunks {
            match value {
                Some(value) => drop(self.0.insert((layer, chunk), value)),
                None => drop(self.0.remove(&(layer, chunk))),
            }
        }
    }

    fn layer(&self, id: u64) -> BTreeMap<u32, Page> {
        let chunks = self.0.range((id, 0)..=(id, u32::MAX));
        chunks.map(|((_, chunk), value)| (*chunk, Page::decode(value).expect("decodes"))).collect()
    }
}

proptest! {
    /// The view is the newest version noted, what is applied the newest at the watermark; a snapshot shows the newest at its
    /// LSN, on its way into the base, and the base is that when it gets there; counts are exact; the stored form comes
    /// back; references never go below zero and are as many as places.
    #[test]
    fn layers_show_the_newest_version_and_the_applied_prefix(steps in steps()) {
        let mut usage = Usage::default();
        let mut layers = Layers::new(VOLUME);
        let mut stored = Stored::default();
        let mut base: BTreeMap<u32, Version> = BTreeMap::new();
        let mut noted: BTreeMap<u32, Vec<Lsn>> = BTreeMap::new();
        let (mut known, mut watermark, mut next_place) = (0, Lsn::ZERO, 0);
        let (mut snapshots, mut next_snapshot): (Vec<Snapshot>, u64) = (Vec::new(), 1);
        let newest_at = |noted: &BTreeMap<u32, Vec<Lsn>>, block: u32, lsn: Lsn| {
            noted.get(&block).and_then(|lsns| lsns.iter().rev().find(|found| **found <= lsn).copied())
        };
        for step in steps {
            match step {
                Step::Note(block, zero) => {
                    known += 1;
                    let content = if zero { Content::Zero } else { Content::Stale { crc: known as u32 } };
                    layers.note(block, Version { lsn: at(known), content }, &mut usage);
                    noted.entry(block).or_default().push(at(known));
                }
                Step::Tell(first, count, zero) => {
                    known += 1;
                    let content = if zero { Content::Zero } else { Content::Stale { crc: known as u32 } };
                    let end = (first + count).min(BLOCKS.end).min((first / PAGE_ENTRIES + 1) * PAGE_ENTRIES);
                    // Every third one is told again.
                    let lsn = |block: u32| layers.view(block).filter(|_| block.is_multiple_of(3)).map_or(at(known), |view| view.lsn);
                    let told: Vec<_> = (first..end).map(|block| (block, Version { lsn: lsn(block), content })).collect();
                    let (news, again): (Vec<_>, Vec<_>) = told.iter().copied().partition(|(_, version)| version.lsn == at(known));
                    prop_assert_eq!(layers.note_newer(&told, &mut usage), again);
                    news.iter().for_each(|(block, version)| noted.entry(*block).or_default().push(version.lsn));
                }
                Step::Receive(block) => {
                    for lsn in noted.get(&block).into_iter().flatten() {
                        let wanted = layers.wants(block, *lsn);
                        prop_assert_eq!(wanted.is_some(), wanted == Some(lsn.sequence as u32));
                        next_place += 1;
                        let place = Place { segment: next_place / 10, block: next_place % 10 };
                        prop_assert_eq!(layers.receive(block, *lsn, place, &mut usage), wanted.is_some());
                    }
                }
                Step::Seal => layers.seal(at(known), &mut usage),
                Step::SealAt => {
                    let size = VolumeSize::try_from(4096 * u64::from(BLOCKS.end)).expect("valid");
                    let snapshot = Snapshot { id: SnapshotId(next_snapshot), lsn: at(known), size, is_deleted: false };
                    next_snapshot += 1;
                    snapshots.push(snapshot);
                    layers.seal_at(snapshot, &mut usage);
                }
                Step::Forget(index) if index < snapshots.len() => {
                    layers.forget_snapshot(snapshots.remove(index).id, &mut usage);
                }
                Step::Forget(_) => {}
                Step::Apply => {
                    if let Some(to) = layers.sealed_to() {
                        let complete = layers.missing(Wanted::Sealed, 0, 1, 1).is_empty();
                        prop_assert_eq!(layers.sealed_complete(), complete);
                        prop_assert_eq!(layers.apply_sealed(to, &mut usage), complete);
                        watermark = if complete { to } else { watermark };
                    }
                }
                Step::Fold(max) => {
                    for (block, version) in layers.fold(max) {
                        let before = base.insert(block, version);
                        prop_assert!(before.is_none_or(|before| before.lsn < version.lsn));
                        if let Some(place) = before.and_then(|before| before.content.place()) {
                            usage.remove(VOLUME, place);
                        }
                    }
                }
                Step::Store => {
                    stored.take(layers.take_delta());
                    layers = Layers::restore(VOLUME, &layers.shape(), |id| stored.layer(id));
                }
            }
            for reached in layers.take_reached() {
                prop_assert_eq!(reached, snapshots.remove(0), "in their order");
                for block in BLOCKS {
                    let kept = base.get(&block).map(|version| version.lsn);
                    prop_assert_eq!(kept, newest_at(&noted, block, reached.lsn), "block {}", block);
                }
            }
            prop_assert!(layers.snapshots().eq(snapshots.iter().copied()));
            let mut wanted: BTreeSet<(u32, Lsn)> = BTreeSet::new();
            for snapshot in &snapshots {
                let shown = layers.below(snapshot.id).expect("is on its way");
                let mut stale = 0;
                for block in BLOCKS {
                    let version = shown.iter().find_map(|layer| layer.get(block)).or_else(|| base.get(&block).copied());
                    prop_assert_eq!(version.map(|version| version.lsn), newest_at(&noted, block, snapshot.lsn));
                    if let Some(version) = version.filter(|version| version.content.is_stale()) {
                        wanted.insert((block, version.lsn));
                        stale += 1;
                    }
                }
                prop_assert_eq!(layers.stale_at(snapshot.id), stale);
            }
            let mut stale = 0;
            for block in BLOCKS {
                let view = layers.view(block).or_else(|| base.get(&block).copied());
                let newest = noted.get(&block).and_then(|lsns| lsns.last().copied());
                prop_assert_eq!(view.map(|view| view.lsn), newest);
                if let Some(view) = view.filter(|view| view.content.is_stale()) {
                    wanted.insert((block, view.lsn));
                    stale += 1;
                }
                let applied = layers.applied(block).or_else(|| base.get(&block).copied());
                let prefix = newest_at(&noted, block, watermark);
                prop_assert_eq!(applied.map(|applied| applied.lsn), prefix, "block {} at {}", block, watermark);
                prop_assert!(applied.is_none_or(|applied| !applied.content.is_stale()));
            }
            prop_assert_eq!(layers.stale(), stale);
            prop_assert_eq!(layers.wanted(), wanted.len() as u64);
            let missing = layers.missing(Wanted::Now, 0, usize::MAX, u64::MAX);
            prop_assert_eq!(missing.iter().map(|run| u64::from(run.count)).sum::<u64>(), stale);
            let (mut in_parts, mut after) = (0, 0);
            while let Some(last) = layers.missing(Wanted::Now, after, 3, 5).last() {
                let part = layers.missing(Wanted::Now, after, 3, 5);
                let blocks: u64 = part.iter().map(|run| u64::from(run.count)).sum();
                prop_assert!(part.len() <= 3 && blocks <= 5);
                (in_parts, after) = (in_parts + blocks, last.start.0 + last.count);
            }
            prop_assert_eq!(in_parts, stale);
            let places = layers.entries().map(|(_, version)| version).chain(base.values().copied());
            let places = places.filter(|version| version.content.place().is_some()).count() as u64;
            prop_assert_eq!(usage.mapped(VOLUME), places);
        }
    }
}

/// A node that came back behind what it had applied, and had two large deltas to fold yet, was sent a block in the version of the first one. What came
/// went there, and what was lacking stayed so: it was sent again and again, counted as one fewer each time, and the segment that it had been in was
/// never empty.
#[test]
fn what_is_received_after_coming_back_goes_where_it_is_lacking() {
    const BLOCK: u32 = 7;
    const OTHERS: std::ops::Range<u32> = 1000..2100;
    let (mut layers, mut usage) = (Layers::new(VOLUME), Usage::default());
    let place = |number: u32| Place { segment: number, block: 1 };
    let local = |number: u32| Content::Local { place: place(number), crc: 1 };
    for (sequence, to, segment) in [(8, 10, 1), (15, 20, 2)] {
        for block in [BLOCK].into_iter().chain(OTHERS) {
            let content = if block == BLOCK { local(segment) } else { Content::Zero };
            layers.note(block, Version { lsn: at(sequence), content }, &mut usage);
        }
        layers.seal(at(to), &mut usage);
        assert!(layers.apply_sealed(at(to), &mut usage));
    }
    layers.drop_unapplied(&mut usage);
    layers.make_unknown(BLOCK);
    layers.note(BLOCK, Version { lsn: at(8), content: Content::Stale { crc: 1 } }, &mut usage);
    layers.seal(at(12), &mut usage);
    assert!(layers.receive(BLOCK, at(8), place(3), &mut usage));
    assert_eq!((layers.stale(), layers.sealed_complete()), (0, true));
    assert_eq!(layers.view(BLOCK), Some(Version { lsn: at(8), content: local(3) }));
    assert_eq!([1, 2, 3].map(|segment| usage.live(segment)), [1, 1, 1]);
}

/// How many bytes of memory each of `noted` blocks takes that another node has, as a checkpoint leaves them.
fn memory_per_block(noted: u64, blocks_of_write: u64, block: impl Fn(u64) -> u64) -> u64 {
    let (mut layers, mut usage) = (Layers::new(VOLUME), Usage::default());
    for number in 0..noted {
        let content = Content::Stale { crc: (number as u32).wrapping_mul(0x9E37_79B1) };
        layers.note(block(number) as u32, Version { lsn: at(1 + number / blocks_of_write), content }, &mut usage);
    }
    layers.take_delta();
    let missing = layers.missing(Wanted::Now, 0, usize::MAX, u64::MAX);
    assert_eq!(missing.iter().map(|run| u64::from(run.count)).sum::<u64>(), noted, "each block is another one");
    layers.each().map(|(_, layer)| layer.memory() as u64).sum::<u64>() / noted
}

/// The layers once were trees with an entry for each block: 50 to 100 bytes of memory for each one that a slow replica, or an
/// owner that had just been handed the volume, did not have yet, without any bound but the volume's size.
#[test]
fn a_backlog_takes_about_as_much_memory_as_it_takes_in_the_store() {
    const NOTED: u64 = 200_000;
    let in_order = memory_per_block(NOTED, 32, |number| number);
    assert!(in_order <= 6, "{in_order} bytes");
    // Every tenth block, in an order without neighbours.
    let scattered = memory_per_block(NOTED, 1, |number| number * 7_368_787 % (10 * NOTED));
    assert!(scattered <= 20, "{scattered} bytes");
}
