//! What a walk over the pages finds, against a look at every block.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::map::Map;
use crate::map::cache::PageCache;
use crate::map::page::{Content, Place};
use crate::map::store::MapStore;
use crate::map::usage::Usage;

const PAGES: u32 = 4;
const BLOCKS: u32 = PAGES * PAGE_ENTRIES;

fn version(sequence: u64, is_data: bool) -> Version {
    let place = Place { segment: 1, block: sequence as u32 };
    let content = if is_data { Content::Local { place, crc: sequence as u32 } } else { Content::Zero };
    Version { lsn: Lsn::new(Epoch(1), sequence), content }
}

/// Blocks on a few pages, often the first or the last of one, and whether they hold data.
fn blocks(most: usize) -> impl Strategy<Value = BTreeMap<u32, bool>> {
    let block = (0..PAGES, prop_oneof![Just(0), Just(PAGE_ENTRIES - 1), 0..PAGE_ENTRIES])
        .prop_map(|(page, index)| page * PAGE_ENTRIES + index);
    proptest::collection::btree_map(block, any::<bool>(), 0..most)
}

proptest! {
    #[test]
    fn a_walk_finds_what_a_look_at_every_block_does(
        base in blocks(40),
        sealed in blocks(6),
        open in blocks(6),
        first in 0..BLOCKS,
        count in 1..BLOCKS,
    ) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = MapStore::open(directory.path()).expect("opens");
        let mut map = Map { cache: PageCache::new(store, 1 << 20), usage: Usage::default(), forgotten: Vec::new() };
        let mut volume = Volume::new(VolumeId(1), VolumeSize::try_from(u64::from(BLOCKS) * 4096).expect("a size"));
        let mut sequence = 0;
        let mut next = |is_data| {
            sequence += 1;
            version(sequence, is_data)
        };
        for (block, is_data) in base {
            map.cache.set(volume.id, block, next(is_data)).expect("reads");
        }
        for (block, is_data) in sealed {
            volume.layers.note(block, next(is_data), &mut map.usage);
        }
        let snapshot = Snapshot { id: SnapshotId(1), lsn: Lsn::new(Epoch(1), 100), size: volume.size, is_deleted: false };
        volume.layers.seal_at(snapshot, &mut map.usage);
        for (block, is_data) in open {
            volume.layers.note(block, next(is_data), &mut map.usage);
        }
        let last = (first + count - 1).min(BLOCKS - 1);
        for moment in [Moment::Now, Moment::Snapshot(snapshot.id)] {
            let each = volume.versions(moment, first, last, &mut map).expect("reads").into_iter();
            let each: Vec<(u32, Version)> = each.filter_map(|(block, version)| Some((block, version?))).collect();
            prop_assert_eq!(volume.mapped(moment, first, last, &mut map).expect("reads"), each);
        }
    }
}
