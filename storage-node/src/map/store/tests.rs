//! The store against RocksDB itself: what it reads back, merges, and refuses.

use super::*;
use crate::map::page::{Content, Version};

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
fn a_directory_of_the_format_before_is_taken_over() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let shard = directory.path().join("shard-0");
    prepare_directory(&shard).expect("creates");
    std::fs::write(shard.join(FORMAT_FILE), "heliotrope-shard 2\n").expect("writes");
    assert_eq!(format_of(&shard).expect("is read"), Some(2));
    prepare_directory(&shard).expect("takes it over");
    assert_eq!(format_of(&shard).expect("is read"), Some(FORMAT_VERSION));
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
