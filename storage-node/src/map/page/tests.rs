//! Properties of the encoding, of a page as a map, and what pages of the usual shapes cost.

mod cost;
mod golden;

use std::collections::BTreeMap;

use client_lib::Epoch;
use proptest::prelude::*;

use super::*;

type Entries = BTreeMap<Index, Version>;

/// Any numbers at all, but often close to each other, as real ones are.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..4u64, 2 => 1000..1100u64, 1 => any::<u64>(), 1 => u64::MAX - 3..=u64::MAX]
}

fn version() -> impl Strategy<Value = Version> {
    let small = || number().prop_map(|number| number as u32);
    let content = prop_oneof![
        Just(Content::Zero),
        any::<u32>().prop_map(|crc| Content::Stale { crc }),
        (small(), small(), any::<u32>())
            .prop_map(|(segment, block, crc)| Content::Local { place: Place { segment, block }, crc }),
    ];
    (number(), number(), content)
        .prop_map(|(epoch, sequence, content)| Version { lsn: Lsn::new(Epoch(epoch), sequence), content })
}

/// Writes of several blocks over each other: LSN and place go on as they do in life, or nearly.
fn writes() -> impl Strategy<Value = Entries> {
    let write = (any::<Index>(), 1..64u64, version(), 0..3u64, 0..3u32);
    proptest::collection::vec(write, 0..12).prop_map(|writes| {
        let mut entries = Entries::new();
        for (start, length, first, sequence_step, place_step) in writes {
            for at in 0..length.min(256 - u64::from(start)) {
                let mut version = first;
                version.lsn.sequence = version.lsn.sequence.saturating_add(sequence_step * at);
                if let Content::Local { place, crc } = &mut version.content {
                    place.block = place.block.saturating_add(place_step * at as u32);
                    *crc ^= at as u32;
                }
                entries.insert(start + at as Index, version);
            }
        }
        entries
    })
}

fn entries() -> impl Strategy<Value = Entries> {
    prop_oneof![writes(), proptest::collection::btree_map(any::<Index>(), version(), 0..256)]
}

proptest! {
    #[test]
    fn entries_read_back_as_written(entries in entries()) {
        let bytes = encode_entries(entries.clone().into_iter());
        prop_assert!(bytes.len() + PAGE_OVERHEAD + CHANGED_MAX * CHANGED_LEN <= PAGE_MEMORY_MAX);
        for index in 0..=Index::MAX {
            prop_assert_eq!(codec::find(&bytes, index), entries.get(&index).copied());
        }
        prop_assert_eq!(decode_entries(&bytes).expect("decodes"), entries.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn any_flipped_bit_is_noticed(entries in entries(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = encode_entries(entries.into_iter());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode_entries(&bytes).is_err());
    }

    #[test]
    fn a_cut_value_is_refused(entries in entries(), at in any::<prop::sample::Index>()) {
        let bytes = encode_entries(entries.into_iter());
        prop_assert!(decode_entries(&bytes[..at.index(bytes.len())]).is_err());
    }

    /// Bytes with a fitting checksum are read only if they are what would be written, and never panic.
    #[test]
    fn what_decodes_has_one_encoding(
        entries in entries(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encode_entries(entries.into_iter());
        let end = bytes.len() - 4;
        for (at, value) in changes {
            bytes[at.index(end)] = value;
        }
        sealed(&mut bytes, end);
        // A page that was let in by mistake must not panic either.
        for index in 0..=Index::MAX {
            let _ = codec::find(&bytes, index);
        }
        if let Ok(entries) = decode_entries(&bytes) {
            prop_assert_eq!(encode_entries(entries.into_iter()), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kinds in 0..8u8) {
        let _ = decode_entries(&bytes);
        if let Some(end) = bytes.len().checked_sub(4).filter(|end| *end >= 2) {
            bytes[0] = PAGE_VERSION as u8;
            bytes[1] = kinds;
            sealed(&mut bytes, end);
            let _ = decode_entries(&bytes);
            let _ = codec::find(&bytes, bytes[2]);
        }
    }

    /// RocksDB merges operands with each other before it merges them with the page, or does not.
    #[test]
    fn merged_values_hold_the_newest_entries_in_whatever_order_they_are_merged(
        base in entries(),
        older in entries(),
        newer in entries(),
    ) {
        let value = |entries: &Entries| encode_entries(entries.clone().into_iter());
        let merge = |base: &[u8], over: &[u8]| merge_values(base, over).expect("both are whole");
        let mut model = base.clone();
        model.extend(older.clone());
        model.extend(newer.clone());
        let one_by_one = merge(&merge(&value(&base), &value(&older)), &value(&newer));
        prop_assert_eq!(&decode_entries(&one_by_one).expect("decodes"), &model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(&one_by_one, &merge(&value(&base), &merge(&value(&older), &value(&newer))));
        prop_assert_eq!(merge(&[], &value(&newer)), value(&newer));
        let mut damaged = value(&older);
        damaged[1] ^= 1;
        prop_assert!(merge_values(&damaged, &value(&newer)).is_err() && merge_values(&value(&base), &damaged).is_err());
    }

    /// A page is a map of index to version, whatever part of it is packed.
    #[test]
    fn a_page_holds_what_was_set(
        steps in proptest::collection::vec((any::<Index>(), version(), 0..20u8, prop_oneof![Just(1), 1..=256u32]), 0..300),
    ) {
        let (mut page, mut model) = (Page::default(), Entries::new());
        for (index, version, then, count) in steps {
            if count > 1 {
                let run = vec![version; count.min(PAGE_ENTRIES - u32::from(index)) as usize];
                let before: Vec<_> = (index..=Index::MAX).zip(&run).map(|(index, version)| model.insert(index, *version)).collect();
                prop_assert_eq!(page.set_run(index, &run), before);
            } else {
                prop_assert_eq!(page.set(index, version), model.insert(index, version));
            }
            match then {
                0 => page.pack(),
                1 => page = Page::decode(&page.encode()).expect("decodes"),
                2 => prop_assert_eq!(page.remove(index), model.remove(&index)),
                3 => {
                    let over: Entries = model.keys().map(|index| (index.wrapping_add(1), version)).collect();
                    page.cover(&Page::of(over.clone().into_iter()));
                    model.extend(over);
                }
                _ => {}
            }
            prop_assert_eq!(page.entry(index), model.get(&index).copied());
            prop_assert_eq!(page.is_empty(), model.is_empty());
            prop_assert!(page.may_have_stale() || !model.values().any(|version| version.content.is_stale()));
            prop_assert!(page.memory() <= PAGE_MEMORY_MAX);
        }
        for index in 0..=Index::MAX {
            prop_assert_eq!(page.entry(index), model.get(&index).copied());
        }
        prop_assert_eq!(page.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(Page::decode(&page.encode()).expect("decodes"), page);
    }
}

/// Puts the checksum that fits behind the first `end` bytes.
fn sealed(bytes: &mut [u8], end: usize) {
    let crc = crc32fast::hash(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_page_of_another_version_is_refused_as_such() {
    for version in [1, 3] {
        let mut bytes = Page::default().encode();
        bytes[0] = version;
        assert_eq!(Page::decode(&bytes), Err(PageError::Version(version.into())));
    }
}

#[test]
fn a_stale_entry_is_no_part_of_a_page_of_the_base() {
    let stale = Version { lsn: Lsn::ZERO, content: Content::Stale { crc: 1 } };
    let bytes = encode_entries([(7, stale)].into_iter());
    assert_eq!(decode_entries(&bytes), Ok(vec![(7, stale)]));
    assert_eq!(Page::decode(&bytes).map(|page| page.entry(7)), Ok(Some(stale)), "a chunk of a layer has it");
    assert!(matches!(Page::decode_base(&bytes), Err(PageError::Damaged(_))));
}
