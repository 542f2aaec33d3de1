//! The store against RocksDB itself: what it reads back, merges, and refuses.

use client_lib::Lsn;

use super::*;
use crate::map::page::{Content, Place, Version};

#[test]
fn a_checkpoint_reads_back_whole() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (VolumeId(1), VolumeId(2));
    let snapshot = |volume| MapKey { volume, snapshot: SnapshotId(9) };
    let mut page = Page::default();
    page.set(3, Version { lsn: Lsn::ZERO, content: Content::Zero });
    {
        let store = MapStore::open(directory.path()).expect("opens");
        assert_eq!((store.position().expect("reads"), store.log_number().expect("reads")), (None, None));
        let mut changes = vec![Change::Position(vec![1]), Change::Log(0xfeed)];
        for volume in [a, b] {
            changes.extend([
                Change::Volume(volume, vec![2]),
                Change::Page(volume.into(), 7, Arc::new(page.clone())),
                Change::Page(snapshot(volume), 7, Arc::new(page.clone())),
                Change::Page(snapshot(volume), 8, Arc::new(page.clone())),
                Change::PageSet(volume.into(), vec![3]),
                Change::PageSet(snapshot(volume), vec![3]),
                Change::PageSet(MapKey { volume, snapshot: SnapshotId(10) }, vec![4]),
                Change::Layer(volume, 5, 0, Some(vec![4])),
                Change::Layer(volume, 5, 1, Some(vec![5])),
                Change::Layer(volume, 6, 0, Some(vec![6])),
                Change::History(volume, 0, Some(vec![7])),
                Change::Usage(volume.into(), 4, 9),
                Change::Usage(volume.into(), 5, 9),
                Change::Usage(MapKey { volume, snapshot: SnapshotId(10) }, 4, 9),
                Change::Scrub(volume, Some(vec![volume.0 as u8])),
            ]);
        }
        store.commit(&changes).expect("commits");
        store
            .commit(&[
                Change::DropLayer(a, 5),
                Change::Usage(a.into(), 5, 0),
                Change::History(a, 0, None),
                Change::RemovePage(snapshot(a), 7),
                Change::ForgetMap(MapKey { volume: a, snapshot: SnapshotId(10) }),
                Change::Forget(b),
                Change::Aliases(4, 7),
                Change::Aliases(5, 9),
            ])
            .expect("commits");
        store.commit(&[Change::Aliases(5, 0)]).expect("commits");
    }
    let store = MapStore::open(directory.path()).expect("opens again");
    store.reopen().expect("opens while it is open");
    assert_eq!(store.log_number().expect("reads"), Some(0xfeed));
    assert_eq!(store.position().expect("reads"), Some(vec![1]));
    assert_eq!(store.scrubs().expect("reads"), [(a, vec![1])]);
    assert_eq!(store.aliases().expect("reads"), [(4, 7)]);
    assert_eq!(store.page(a, 7).expect("reads"), Some(page.clone()));
    assert_eq!(store.page(snapshot(a), 7).expect("reads"), None);
    assert_eq!(store.page(snapshot(a), 8).expect("reads"), Some(page));
    assert_eq!(store.page(b, 7).expect("reads"), None);
    assert_eq!(store.page(snapshot(b), 7).expect("reads"), None);
    let volumes = store.volumes().expect("reads");
    assert_eq!(volumes.len(), 1);
    let (id, stored) = &volumes[0];
    assert_eq!((*id, &stored.record), (a, &vec![2]));
    assert_eq!(stored.page_sets, vec![(SnapshotId(0), vec![3]), (SnapshotId(9), vec![3])]);
    assert_eq!(stored.layers, vec![(6, 0, vec![6])]);
    assert_eq!((stored.history.len(), &stored.usage), (0, &vec![(SnapshotId(0), 4, 9)]));
}

fn entry(sequence: u64) -> Version {
    Version { lsn: Lsn::new(client_lib::Epoch(1), sequence), content: Content::Zero }
}

/// Every value of a page in `store`, damaged or not.
fn merge_raw(store: &MapStore, page: u32, operand: &[u8]) {
    store
        .with(|db| {
            let mut batch = db.batch();
            batch.merge(map_key(TABLE_PAGE, VolumeId(1).into(), Some(page)), operand.to_vec());
            db.write(batch)
        })
        .expect("is written");
}

#[test]
fn changed_entries_are_seen_in_their_page_also_when_opened_again_and_compacted() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(1);
    let mut model = Page::default();
    let open = || MapStore::open(directory.path()).expect("opens");
    for store in [open(), MapStore::in_memory()] {
        for index in 0..200 {
            model.set(index, entry(1));
        }
        store.commit(&[Change::Page(volume.into(), 3, Arc::new(model.clone()))]).expect("commits");
        for sequence in 2..60 {
            let changed = [(sequence as Index, entry(sequence)), (250, entry(sequence))];
            for (index, version) in changed {
                model.set(index, version);
            }
            store.commit(&[Change::Entries(volume.into(), 3, changed.to_vec())]).expect("commits");
            assert_eq!(store.page(volume, 3).expect("reads"), Some(model.clone()), "after {sequence}");
        }
    }
    let store = open();
    assert_eq!(store.page(volume, 3).expect("reads"), Some(model.clone()));
    store.compact();
    assert_eq!(store.page(volume, 3).expect("reads"), Some(model));
    store.commit(&[Change::RemovePage(volume.into(), 3)]).expect("commits");
    store.commit(&[Change::Entries(volume.into(), 3, vec![(7, entry(70))])]).expect("commits");
    let page = store.page(volume, 3).expect("reads").expect("is there");
    assert_eq!(page.iter().collect::<Vec<_>>(), [(7, entry(70))], "nothing of the removed page is back");
}

#[test]
fn a_damaged_page_or_operand_spoils_its_page_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(1);
    {
        let store = MapStore::open(directory.path()).expect("opens");
        let mut page = Page::default();
        page.set(3, entry(1));
        let pages = (1..=3).map(|number| Change::Page(volume.into(), number, Arc::new(page.clone())));
        store.commit(&pages.collect::<Vec<_>>()).expect("commits");
        let mut damaged = encode_entries(std::iter::once((5, entry(2))));
        damaged[3] ^= 1;
        merge_raw(&store, 1, &damaged);
        // Damaged operands alone, and with others around them.
        merge_raw(&store, 4, &damaged);
        for number in [1, 2, 4] {
            store.commit(&[Change::Entries(volume.into(), number, vec![(6, entry(3))])]).expect("commits");
        }
        store.compact();
    }
    let store = MapStore::open(directory.path()).expect("opens again");
    for number in [1, 4] {
        let found = store.page(volume, number);
        assert!(matches!(found, Err(MapError::Page { page, .. }) if page == number), "{found:?}");
    }
    assert_eq!(store.page(volume, 2).expect("reads").expect("is there").entry(6), Some(entry(3)));
    assert_eq!(store.page(volume, 3).expect("reads").expect("is there").entry(3), Some(entry(1)));
}

#[test]
fn a_directory_of_a_format_before_is_taken_over() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let shard = directory.path().join("shard-0");
    prepare_directory(&shard).expect("creates");
    for before in FORMAT_OLDEST..FORMAT_VERSION {
        std::fs::write(shard.join(FORMAT_FILE), format!("heliotrope-shard {before}\n")).expect("writes");
        assert_eq!(format_of(&shard).expect("is read"), Some(before));
        prepare_directory(&shard).expect("takes it over");
        assert_eq!(format_of(&shard).expect("is read"), Some(FORMAT_VERSION));
    }
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let shard = directory.path().join("shard-0");
    prepare_directory(&shard).expect("creates");
    prepare_directory(&shard).expect("accepts its own");
    std::fs::write(shard.join(FORMAT_FILE), "heliotrope-shard 99\n").expect("writes");
    let error = prepare_directory(&shard).expect_err("newer");
    assert!(matches!(error, MapError::NewerFormat { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("has format 99"), "{error}");
    std::fs::write(shard.join(FORMAT_FILE), "heliotrope-shard 1\n").expect("writes");
    let error = prepare_directory(&shard).expect_err("older");
    assert!(matches!(error, MapError::OlderFormat { found: 1, .. }), "{error}");
    assert!(error.to_string().contains("copy the volumes out"), "{error}");
    std::fs::write(shard.join(FORMAT_FILE), "what?").expect("writes");
    assert!(matches!(prepare_directory(&shard), Err(MapError::NoFormat { .. })));
    let names: Vec<_> =
        std::fs::read_dir(&shard).expect("lists").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names, [FORMAT_FILE], "nothing was added");
}

#[test]
fn pages_with_few_entries_share_values_until_they_have_more_or_are_gone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(1);
    let open = || MapStore::open(directory.path()).expect("opens");
    let shown = |store: &MapStore, page: u32| -> Vec<(Index, Version)> {
        store.sparse_page(volume, page).expect("reads").map(|page| page.iter().collect()).unwrap_or_default()
    };
    for store in [open(), MapStore::in_memory()] {
        let few = |sequence: u64| vec![(3, entry(sequence)), (250, entry(sequence))];
        // Of two sheaves, and of another map.
        let snapshot = MapKey { volume, snapshot: SnapshotId(4) };
        let pages = [14, 15, 16, 17].map(|page| Change::Sparse(volume.into(), page, few(1)));
        store.commit(&pages).expect("commits");
        store.commit(&[Change::Sparse(snapshot, 15, few(2))]).expect("commits");
        store.commit(&[Change::Sparse(volume.into(), 15, vec![(3, entry(5)), (9, entry(5))])]).expect("commits");
        let changed = [(3, entry(5)), (9, entry(5)), (250, entry(1))];
        for compacts in [false, true] {
            if compacts {
                store.compact();
            }
            assert_eq!((shown(&store, 14), shown(&store, 15)), (few(1), changed.to_vec()));
            assert_eq!((shown(&store, 17), shown(&store, 18)), (few(1), Vec::new()));
        }
        // Gone and back in one batch, gone for good, and with a value of its own.
        let mut page = Page::default();
        page.set(7, entry(9));
        let changes = [
            Change::RemoveSparse(volume.into(), 14),
            Change::RemoveSparse(volume.into(), 15),
            Change::Sparse(volume.into(), 14, vec![(1, entry(9))]),
            Change::RemoveSparse(volume.into(), 17),
            Change::Page(volume.into(), 17, Arc::new(page.clone())),
        ];
        store.commit(&changes).expect("commits");
        for compacts in [false, true] {
            if compacts {
                store.compact();
            }
            assert_eq!((shown(&store, 14), shown(&store, 15)), (vec![(1, entry(9))], Vec::new()));
            assert_eq!((shown(&store, 16), shown(&store, 17)), (few(1), Vec::new()));
            assert_eq!(store.page(volume, 17).expect("reads"), Some(page.clone()));
        }
        store.commit(&[Change::ForgetMap(volume.into())]).expect("commits");
        assert_eq!((shown(&store, 14), shown(&store, 16)), (Vec::new(), Vec::new()));
        let left = store.sparse_page(snapshot, 15).expect("reads").expect("is there");
        assert_eq!(left.iter().collect::<Vec<_>>(), few(2), "that of the snapshot is another");
    }
}

#[test]
fn a_damaged_sheaf_or_operand_is_found_and_spoils_no_other() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(1);
    {
        let store = MapStore::open(directory.path()).expect("opens");
        let few = |page| Change::Sparse(volume.into(), page, vec![(3, entry(1))]);
        store.commit(&[few(0), few(16), few(32), few(33)]).expect("commits");
        let mut damaged = Sheaf::of(0, [(3, entry(2))]).encode().expect("is sparse");
        damaged[3] ^= 1;
        let many = |count: u8| Sheaf::of(1, (0..count).map(|index| (index, entry(3)))).encode().expect("is sparse");
        let more = Sheaf::of(1, (100..110).map(|index| (index, entry(3)))).encode().expect("is sparse");
        let merges = [(0, damaged), (2, many(16)), (2, more)];
        for (number, operand) in merges {
            store
                .with(|db| {
                    let mut batch = db.batch();
                    batch.merge(map_key(TABLE_SHEAF, volume.into(), Some(number)), operand);
                    db.write(batch)
                })
                .expect("is written");
        }
        store.commit(&[Change::Sparse(volume.into(), 0, vec![(9, entry(4))])]).expect("commits");
        store.compact();
    }
    let store = MapStore::open(directory.path()).expect("opens again");
    for page in [0, 32, 33] {
        let found = store.sparse_page(volume, page);
        assert!(matches!(found, Err(MapError::Page { .. })), "page {page}: {found:?}");
    }
    assert_eq!(store.sparse_page(volume, 16).expect("reads").expect("is there").entry(3), Some(entry(1)));
}

/// Blocks of a segment file of 64 MiB behind its header.
const SEGMENT_BLOCKS: u64 = 16_383;

/// What the files of a map take per mapped block, after writes that come by way of the cache, a checkpoint after each of
/// several rounds. `writes` has the first block, the number of blocks, and how many other writes there were before, for each.
fn bytes_per_block(rounds: u64, writes: impl Fn(u64) -> Vec<(u32, u32, u64)>) -> f64 {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(7);
    let mut blocks = std::collections::BTreeSet::new();
    {
        let store = MapStore::open(directory.path()).expect("opens");
        let mut cache = crate::map::cache::PageCache::new(store.clone(), 256 << 20);
        let (mut sequence, mut log, mut crc) = (0, 0, 1u32);
        for round in 0..rounds {
            for (first, count, others) in writes(round) {
                (sequence, log) = (sequence + others + 1, log + others * 2 + 1);
                for block in first..first + count {
                    let place =
                        Place { segment: 1 + (log / SEGMENT_BLOCKS) as u32, block: 1 + (log % SEGMENT_BLOCKS) as u32 };
                    crc = crc.wrapping_mul(0x9e37_79b1).rotate_left(13) ^ block;
                    let lsn = Lsn::new(client_lib::Epoch(3), sequence);
                    let version = Version { lsn, content: Content::Local { place, crc } };
                    cache.set(volume, block, version).expect("sets");
                    blocks.insert(block);
                    log += 1;
                }
            }
            let mut changes = Vec::new();
            cache.begin_checkpoint(&mut changes);
            store.commit(&changes).expect("commits");
            cache.end_checkpoint();
        }
        store.compact();
    }
    let files = std::fs::read_dir(directory.path()).expect("lists").map(|file| file.expect("a file"));
    let tables = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "sst"));
    let bytes: u64 = tables.map(|file| file.metadata().expect("tells").len()).sum();
    bytes as f64 / blocks.len() as f64
}

/// Numbers that look random and are the same in every run (splitmix64; Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014).
fn random(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bar is 0.3 % of what was written: 12.3 bytes for a block of 4 KiB.
#[test]
fn maps_of_the_usual_shapes_are_small_on_disk() {
    // A 256th of 16 Mi random writes over 4 TiB, and of the volume: one block in 64.
    let sparse = bytes_per_block(8, |round| {
        (0..1 << 13).map(|write| (random(round << 13 | write) as u32 % (1 << 22), 1, 255)).collect()
    });
    // A 512th of 64 GiB that was overwritten five times.
    let dense = bytes_per_block(5, |round| {
        (0..1 << 15).map(|write| (random(round << 15 | write) as u32 % (1 << 15), 1, 511)).collect()
    });
    let sequential =
        bytes_per_block(4, |round| (0..256).map(|write| ((round << 8 | write) as u32 * 256, 256, 0)).collect());
    println!("bytes per block: sparse {sparse:.2}, dense {dense:.2}, sequential {sequential:.2}");
    assert!(sparse < 12.3 && dense < 12.3 && sequential < 4.25, "{sparse} {dense} {sequential}");
}

/// What the disk alters of RocksDB's files is found by RocksDB: a page of it is an error, and never another page or none.
#[test]
fn an_altered_table_file_is_an_error_and_no_page() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let volume = VolumeId(1);
    let mut page = Page::default();
    for index in 0..200 {
        page.set(index, entry(u64::from(index) * 7 + 1));
    }
    {
        let store = MapStore::open(directory.path()).expect("opens");
        let pages = (0..40).map(|number| Change::Page(volume.into(), number, Arc::new(page.clone())));
        store.commit(&pages.collect::<Vec<_>>()).expect("commits");
        store.compact();
    }
    let files = std::fs::read_dir(directory.path()).expect("lists").map(|file| file.expect("a file").path());
    for table in files.filter(|file| file.extension().is_some_and(|extension| extension == "sst")) {
        let mut bytes = std::fs::read(&table).expect("reads");
        bytes[100] ^= 1;
        std::fs::write(&table, bytes).expect("writes");
    }
    let store = MapStore::open(directory.path()).expect("opens again");
    let found = store.page(volume, 0);
    assert!(matches!(&found, Err(MapError::Store(_))), "{found:?}");
    assert!(found.is_err_and(|error| !error.is_out_of_space() && error.to_string().contains("orrupt")));
    assert_eq!(store.page(volume, 39).expect("another block of the file is whole"), Some(page));
}
