//! The maps of a volume against arrays of versions: what every snapshot shows, and what is counted.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::Epoch;
use proptest::prelude::*;

use super::*;
use crate::map::cache::{PageCache, decode_set};
use crate::map::store::{Change, MapStore};
use crate::map::usage::Usage;

const VOLUME: VolumeId = VolumeId(4);
const PAGES: u32 = 5;
/// Blocks used in each page.
const BLOCKS: u32 = 4;
const PLACES_PER_SEGMENT: u32 = 64;
/// A write has fewer blocks.
const RUN_MAX: u32 = 40;

type View = BTreeMap<u32, Version>;

#[derive(Clone, Debug)]
enum Step {
    /// So many blocks from this one on, as one write.
    Write(u32, u32),
    Zero(u32),
    Snapshot,
    Delete(usize),
    Merge(usize),
    /// The version that this view has of a block is copied elsewhere.
    Relocate(usize, u32),
    /// The maps as a checkpoint keeps them.
    Store,
}

/// The last of a page is at its end, so that a run goes on in the next.
fn block_at(at: u32) -> u32 {
    at / BLOCKS * PAGE_ENTRIES + at % BLOCKS * 84
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = || (0..PAGES * BLOCKS).prop_map(block_at);
    let step = prop_oneof![
        12 => (block(), prop_oneof![Just(1), 2..RUN_MAX]).prop_map(|(block, count)| Step::Write(block, count)),
        2 => block().prop_map(Step::Zero),
        4 => Just(Step::Snapshot),
        3 => any::<usize>().prop_map(Step::Delete),
        4 => (1..4usize).prop_map(Step::Merge),
        4 => (any::<usize>(), block()).prop_map(|(view, block)| Step::Relocate(view, block)),
        1 => Just(Step::Store),
    ];
    proptest::collection::vec(step, 1..120)
}

fn new_map(store: &MapStore) -> Map {
    Map { cache: PageCache::new(store.clone(), 0), usage: Usage::default(), forgotten: Vec::new() }
}

/// Writes a checkpoint and reads the maps back as a restart does.
fn restored(map: &mut Map, store: &MapStore) -> Map {
    let mut changes: Vec<Change> = map.forgotten.drain(..).map(Change::ForgetMap).collect();
    changes.push(Change::Volume(VOLUME, vec![1]));
    map.cache.begin_checkpoint(&mut changes);
    changes.extend(map.usage.take_changed().into_iter().map(|(key, segment, live)| Change::Usage(key, segment, live)));
    store.commit(&changes).expect("commits");
    map.cache.end_checkpoint();
    let mut restored = new_map(store);
    for (volume, stored) in store.volumes().expect("reads") {
        for (snapshot, pages) in stored.page_sets {
            restored.cache.restore(MapKey { volume, snapshot }, decode_set(&pages).expect("is a set"));
        }
        for (snapshot, pages) in stored.sparse_sets {
            restored.cache.restore_sparse(MapKey { volume, snapshot }, decode_set(&pages).expect("is a set"));
        }
        for (snapshot, segment, live) in stored.usage {
            restored.usage.restore(MapKey { volume, snapshot }, segment, live);
        }
    }
    restored
}

fn version_in(map: &mut Map, snapshots: &Snapshots, id: SnapshotId, block: u32) -> Option<Version> {
    let page = map.snapshot_page(VOLUME, snapshots, id, block / PAGE_ENTRIES).expect("reads");
    page.and_then(|page| page.entry((block % PAGE_ENTRIES) as u8))
}

struct Model {
    live: View,
    kept: BTreeMap<SnapshotId, View>,
    sequence: u64,
    places: u32,
}

impl Model {
    /// What one write leaves: all in one segment.
    fn versions(&mut self, count: u32) -> Vec<Version> {
        if self.places % PLACES_PER_SEGMENT + count >= PLACES_PER_SEGMENT {
            self.places = self.places.next_multiple_of(PLACES_PER_SEGMENT);
        }
        self.sequence += 1;
        let lsn = Lsn::new(Epoch(1), self.sequence);
        (0..count).map(|_| Version { lsn, content: Content::Local { place: self.place(), crc: self.places } }).collect()
    }

    fn place(&mut self) -> Place {
        self.places += 1;
        Place { segment: self.places / PLACES_PER_SEGMENT, block: self.places % PLACES_PER_SEGMENT }
    }

    fn views(&self) -> impl Iterator<Item = &View> {
        std::iter::once(&self.live).chain(self.kept.values())
    }

    fn relocate(&mut self, block: u32, lsn: Lsn, place: Place) {
        for view in std::iter::once(&mut self.live).chain(self.kept.values_mut()) {
            if let Some(Version { lsn: found, content: Content::Local { place: at, .. } }) = view.get_mut(&block)
                && *found == lsn
            {
                *at = place;
            }
        }
    }

    fn check(&self, map: &mut Map, snapshots: &Snapshots) {
        for block in (0..PAGES * BLOCKS).flat_map(|at| block_at(at)..block_at(at) + RUN_MAX) {
            assert_eq!(
                map.cache.version(VOLUME, block).expect("reads"),
                self.live.get(&block).copied(),
                "live {block}"
            );
            for (id, view) in &self.kept {
                let found = version_in(map, snapshots, *id, block);
                assert_eq!(found, view.get(&block).copied(), "snapshot {id}, block {block}");
            }
        }
        let places: BTreeSet<Place> = self.views().flat_map(View::values).filter_map(|v| v.content.place()).collect();
        let live = self.live.values().filter(|version| version.content.place().is_some()).count();
        assert_eq!(map.usage.mapped(VOLUME), live as u64);
        for segment in 0..=self.places / PLACES_PER_SEGMENT {
            let (counted, needed) =
                (map.usage.live(segment), places.iter().filter(|place| place.segment == segment).count() as u64);
            assert!(counted >= needed, "segment {segment}: {counted} of {needed} are counted");
            assert!(
                snapshots.is_merging() || counted == needed,
                "segment {segment}: {counted} of {needed} are counted"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_shows_what_was_and_every_version_is_counted_once(steps in steps()) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = MapStore::open(directory.path()).expect("opens");
        let mut map = new_map(&store);
        let mut snapshots = Snapshots::default();
        let mut model = Model { live: View::new(), kept: BTreeMap::new(), sequence: 0, places: 0 };
        for step in steps {
            match step {
                Step::Write(first, count) => {
                    let versions = model.versions(count);
                    map.replace(VOLUME, first, &versions, &snapshots).expect("replaces");
                    model.live.extend((first..).zip(versions));
                }
                Step::Zero(block) => {
                    let version = Version { content: Content::Zero, ..model.versions(1)[0] };
                    map.replace(VOLUME, block, &[version], &snapshots).expect("replaces");
                    model.live.insert(block, version);
                }
                Step::Snapshot => {
                    let id = SnapshotId(100 + model.places as u64 * 1000 + model.kept.len() as u64);
                    if snapshots.iter().all(|known| known.id != id) {
                        let (lsn, size) = (Lsn::new(Epoch(1), model.sequence), VolumeSize::try_from(1 << 30).expect("valid"));
                        snapshots.add(Snapshot { id, lsn, size, is_deleted: false });
                        model.kept.insert(id, model.live.clone());
                    }
                }
                Step::Delete(at) => {
                    if let Some(id) = model.kept.keys().nth(at % model.kept.len().max(1)).copied() {
                        snapshots.delete(id);
                        model.kept.remove(&id);
                    }
                }
                Step::Merge(pages) => drop(map.merge_snapshots(VOLUME, &mut snapshots, pages).expect("merges")),
                Step::Relocate(view, block) => {
                    let found = model.views().nth(view % (model.kept.len() + 1)).and_then(|view| view.get(&block)).copied();
                    if let Some((version, from)) = found.and_then(|it| Some((it, it.content.place()?))) {
                        let to = model.place();
                        assert!(map.holds(VOLUME, block, version.lsn, from, &snapshots).expect("looks"));
                        map.relocate(VOLUME, block, from, to, &snapshots).expect("relocates");
                        model.relocate(block, version.lsn, to);
                        let is_left = map.holds(VOLUME, block, version.lsn, from, &snapshots).expect("looks");
                        assert!(!is_left, "block {block} is at its old place too");
                    }
                }
                Step::Store => {
                    map = restored(&mut map, &store);
                    snapshots = Snapshots::restore(snapshots.iter().copied().collect(), false);
                }
            }
            model.check(&mut map, &snapshots);
        }
        while map.merge_snapshots(VOLUME, &mut snapshots, 1).expect("merges") {}
        model.check(&mut map, &snapshots);
        map = restored(&mut map, &store);
        model.check(&mut map, &snapshots);
        let ids: Vec<SnapshotId> = model.kept.keys().copied().collect();
        for id in ids {
            snapshots.delete(id);
            model.kept.remove(&id);
        }
        while map.merge_snapshots(VOLUME, &mut snapshots, 100).expect("merges") {}
        model.check(&mut map, &snapshots);
        restored(&mut map, &store);
        let left = &store.volumes().expect("reads")[0].1;
        prop_assert!(left.page_sets.iter().all(|(id, _)| *id == SnapshotId(0)), "nothing is left of them");
        prop_assert!(left.usage.iter().all(|(id, ..)| *id == SnapshotId(0)), "nothing is left of them");
    }
}

#[test]
fn a_volume_with_a_hundred_snapshots_is_read_from_its_own_pages() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = MapStore::open(directory.path()).expect("opens");
    let mut map = new_map(&store);
    let (mut snapshots, mut model) =
        (Snapshots::default(), Model { live: View::new(), kept: BTreeMap::new(), sequence: 0, places: 0 });
    let size = VolumeSize::try_from(1 << 30).expect("valid");
    for number in 0..100 {
        let version = model.versions(1)[0];
        map.replace(VOLUME, 7, &[version], &snapshots).expect("replaces");
        snapshots.add(Snapshot { id: SnapshotId(number + 1), lsn: version.lsn, size, is_deleted: false });
    }
    let newest = model.versions(1)[0];
    map.replace(VOLUME, 7, &[newest], &snapshots).expect("replaces");
    map = restored(&mut map, &store);
    assert_eq!(map.cache.version(VOLUME, 7).expect("reads"), Some(newest));
    assert_eq!(map.cache.pages(), 1, "one page, whatever the depth");
    let found = version_in(&mut map, &snapshots, SnapshotId(50), 7);
    assert_eq!(found.map(|version| version.lsn.sequence), Some(50));
    assert_eq!(map.cache.pages(), 2, "and one more for a snapshot");
    assert_eq!(map.usage.mapped(VOLUME), 1);
    let of_snapshots = |map: &Map| {
        (1..=100).map(|id| map.usage.mapped(MapKey { volume: VOLUME, snapshot: SnapshotId(id) })).sum::<u64>()
    };
    assert_eq!(of_snapshots(&map), 100, "each keeps one version");
}
