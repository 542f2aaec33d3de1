//! The sheaf: sixteen neighbouring pages with few entries each in one value.
//!
//! A page of its own costs some 25 bytes for its key, header, columns and checksum. In a volume of which a block here and
//! there was written that is more than an entry. So pages with at most [`SPARSE_MAX`] entries share a value: one set of columns
//! for all, and a byte per entry for its index. What is merged into a sheaf is a sheaf too, with the entries that changed, and
//! with the pages of which everything before goes (*dropped*: they have grown into a value of their own, or are gone). So
//! operands can be merged with each other, in any grouping ([`Sheaf::merge`]). Pure; `docs/format.md` has the table.

use bytes::{Buf, BufMut};

use super::codec;
use super::{Index, Page, PageError, Version};

/// Pages in a sheaf.
pub const SHEAF_PAGES: u32 = 16;

/// Most entries of a page in a sheaf. A sheaf then has as many as one page at most, which bounds what is read and written again
/// for one of them, and the ordinal of an entry is an index.
pub const SPARSE_MAX: usize = 16;

const SHEAF_VERSION: u8 = 1;
/// Version (1), dropped (2), present (2).
const HEADER_LEN: usize = 5;
const TRAILER_LEN: usize = 4;

const CUT_OFF: PageError = PageError::Damaged("cut off");

/// The entries of some of sixteen pages, and which of them lose what they had before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheaf {
    /// A bit per page.
    dropped: u16,
    /// By rising page and index.
    entries: Vec<((u8, Index), Version)>,
}

impl Sheaf {
    /// `entries` of `page`, which is the number of a page of a map; later ones are [added](Self::add).
    #[must_use]
    pub fn of(page: u32, entries: impl IntoIterator<Item = (Index, Version)>) -> Sheaf {
        let mut sheaf = Sheaf::default();
        sheaf.add(page, entries);
        sheaf
    }

    /// Adds entries, by rising index, of a page behind those that it has entries of.
    pub fn add(&mut self, page: u32, entries: impl IntoIterator<Item = (Index, Version)>) {
        let at = in_sheaf(page);
        self.entries.extend(entries.into_iter().map(|(index, version)| ((at, index), version)));
        assert!(self.entries.is_sorted_by(|one, next| one.0 < next.0), "pages and indexes rise");
    }

    /// Nothing of `page` from before is kept.
    #[must_use]
    pub fn dropping(page: u32) -> Sheaf {
        Sheaf { dropped: 1 << in_sheaf(page), entries: Vec::new() }
    }

    /// What it has of `page`; `None` when that is nothing.
    #[must_use]
    pub fn page(&self, page: u32) -> Option<Page> {
        let of_page = self.entries.iter().filter(|((at, _), _)| *at == in_sheaf(page));
        let packed = codec::encode(of_page.map(|((_, index), version)| (*index, *version)));
        (codec::count(&packed) > 0).then(|| Page { packed: packed.into_boxed_slice(), changed: Vec::new() })
    }

    /// This with `newer` over it.
    #[must_use]
    pub fn merge(self, newer: Sheaf) -> Sheaf {
        let is_kept = |(page, _): &(u8, Index)| newer.dropped & 1 << page == 0;
        let mut entries = Vec::with_capacity(self.entries.len() + newer.entries.len());
        let mut older = self.entries.into_iter().filter(|(at, _)| is_kept(at)).peekable();
        for (at, version) in newer.entries {
            while let Some(entry) = older.next_if(|(older, _)| *older < at) {
                entries.push(entry);
            }
            older.next_if(|(older, _)| *older == at);
            entries.push((at, version));
        }
        entries.extend(older);
        Sheaf { dropped: self.dropped | newer.dropped, entries }
    }

    /// Its value; `None` when a page has more than [`SPARSE_MAX`] entries.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let pages: Vec<_> = self.entries.chunk_by(|one, next| one.0.0 == next.0.0).collect();
        if pages.iter().any(|page| page.len() > SPARSE_MAX) {
            return None;
        }
        let mut bytes = Vec::with_capacity(64 + self.entries.len() * 12);
        bytes.put_u8(SHEAF_VERSION);
        bytes.put_u16_le(self.dropped);
        bytes.put_u16_le(pages.iter().map(|page| 1 << page[0].0.0).sum());
        for two in pages.chunks(2) {
            let counts = two.iter().map(|page| page.len() as u8 - 1);
            bytes.put_u8(counts.rev().fold(0, |byte, count| byte << 4 | count));
        }
        bytes.extend(self.entries.iter().map(|((_, index), _)| *index));
        let versions = self.entries.iter().map(|(_, version)| *version);
        let value = codec::encode((0..=Index::MAX).zip(versions));
        let (starts, body) = (codec::lone_starts(&value), &value[..value.len() - codec::TRAILER_LEN]);
        bytes.extend_from_slice(&body[..starts.start]);
        bytes.extend_from_slice(&body[starts.end..]);
        let checksum = crc32fast::hash(&bytes);
        bytes.put_u32_le(checksum);
        Some(bytes)
    }

    /// The sheaf of a value.
    ///
    /// # Errors
    /// When [`encode`](Self::encode) did not write it.
    pub fn decode(value: &[u8]) -> Result<Sheaf, PageError> {
        match value.first() {
            Some(&SHEAF_VERSION) => {}
            Some(version) => return Err(PageError::Version(u16::from(*version))),
            None => return Err(CUT_OFF),
        }
        let at = value.len().checked_sub(TRAILER_LEN).filter(|at| *at >= HEADER_LEN).ok_or(CUT_OFF)?;
        let (body, mut trailer) = value.split_at(at);
        if crc32fast::hash(body) != trailer.get_u32_le() {
            return Err(PageError::Damaged("checksum"));
        }
        let mut rest = &body[1..];
        let (dropped, present) = (rest.get_u16_le(), rest.get_u16_le());
        let pages: Vec<u8> = (0..SHEAF_PAGES as u8).filter(|page| present & 1 << page != 0).collect();
        let (counts, rest) = rest.split_at_checked(pages.len().div_ceil(2)).ok_or(CUT_OFF)?;
        let count = |number: usize| usize::from(counts[number / 2] >> (number % 2 * 4) & 0xf) + 1;
        if pages.len() % 2 == 1 && counts.last().is_some_and(|last| last >> 4 != 0) {
            return Err(PageError::Damaged("a count of no page"));
        }
        let all = (0..pages.len()).map(count).sum();
        let (indexes, value) = rest.split_at_checked(all).ok_or(CUT_OFF)?;
        let versions = codec::decode(&codec::with_lone_starts(value)?)?;
        let places = pages.iter().enumerate().flat_map(|(number, page)| std::iter::repeat_n(*page, count(number)));
        let in_order = versions.len() == all && (0..=Index::MAX).zip(&versions).all(|(at, (index, _))| at == *index);
        let keys = places.zip(indexes.iter().copied());
        let entries: Vec<_> = keys.zip(versions).map(|(key, (_, version))| (key, version)).collect();
        if !in_order || !entries.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(PageError::Damaged("entries out of order"));
        }
        if entries.iter().any(|(_, version)| version.content.is_stale()) {
            return Err(PageError::Damaged("a stale entry in the base map"));
        }
        Ok(Sheaf { dropped, entries })
    }
}

fn in_sheaf(page: u32) -> u8 {
    (page % SHEAF_PAGES) as u8
}

const _: () = assert!(SHEAF_PAGES as usize * SPARSE_MAX <= super::PAGE_ENTRIES as usize, "an ordinal is an index");
const _: () = assert!(SPARSE_MAX <= 16, "a count, less 1, fits four bits");

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use client_lib::{Epoch, Lsn};
    use proptest::prelude::*;

    use super::*;
    use crate::map::page::{Content, Place};

    fn version(sequence: u64) -> Version {
        let place = Place { segment: 1 + (sequence / 100) as u32, block: sequence as u32 * 3 };
        let content = match sequence % 4 {
            0 => Content::Zero,
            _ => Content::Local { place, crc: sequence as u32 ^ 0xdead_beef },
        };
        Version { lsn: Lsn::new(Epoch(2), sequence), content }
    }

    fn sheaf(dropped: u16, entries: &BTreeMap<(u8, Index), u64>) -> Sheaf {
        Sheaf { dropped, entries: entries.iter().map(|(at, sequence)| (*at, version(*sequence))).collect() }
    }

    fn any_sheaf() -> impl Strategy<Value = Sheaf> {
        let entries = prop::collection::btree_map((0..16u8, 0..12u8), 1..400u64, 0..80);
        (prop_oneof![Just(0), any::<u16>()], entries).prop_map(|(dropped, entries)| sheaf(dropped, &entries))
    }

    proptest! {
        #[test]
        fn a_sheaf_reads_back_and_has_its_pages(sheaf in any_sheaf()) {
            let value = sheaf.encode().expect("is sparse");
            prop_assert_eq!(Sheaf::decode(&value).expect("decodes"), sheaf.clone());
            for page in 0..SHEAF_PAGES {
                let expected: Vec<_> = sheaf.entries.iter().filter(|entry| u32::from(entry.0.0) == page)
                    .map(|entry| (entry.0.1, entry.1)).collect();
                let found = sheaf.page(3200 + page).map(|page| page.iter().collect::<Vec<_>>());
                prop_assert_eq!(found, (!expected.is_empty()).then_some(expected));
            }
        }

        #[test]
        fn operands_may_be_merged_in_any_grouping(a in any_sheaf(), b in any_sheaf(), c in any_sheaf()) {
            let left = a.clone().merge(b.clone()).merge(c.clone());
            prop_assert_eq!(&left, &a.clone().merge(b.clone().merge(c.clone())));
            let mut model: BTreeMap<(u8, Index), Version> = BTreeMap::new();
            for sheaf in [a, b, c] {
                model.retain(|(page, _), _| sheaf.dropped & 1 << page == 0);
                model.extend(sheaf.entries);
            }
            prop_assert_eq!(left.entries, model.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn damaged_bytes_are_refused(sheaf in any_sheaf(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut value = sheaf.encode().expect("is sparse");
            prop_assert!(Sheaf::decode(&value[..at.index(value.len())]).is_err());
            let at = at.index(value.len());
            value[at] ^= flip;
            prop_assert!(Sheaf::decode(&value).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Sheaf::decode(&bytes));
            bytes.insert(0, SHEAF_VERSION);
            let checksum = crc32fast::hash(&bytes);
            bytes.put_u32_le(checksum);
            if let Ok(sheaf) = Sheaf::decode(&bytes) {
                prop_assert_eq!(sheaf.encode(), Some(bytes), "one encoding of any entries");
            }
        }
    }

    #[test]
    fn a_sheaf_has_these_bytes() {
        let entries = [((0, 5), 7), ((0, 9), 8), ((2, 0), 250), ((15, 255), 9), ((15, 254), 4)];
        for (name, entries) in [("sheaf.hex", &entries[..]), ("sheaf-one-kind.hex", &entries[2..4])] {
            let sheaf = sheaf(0x8001, &entries.iter().copied().collect());
            let kept = crate::golden::check(name, &sheaf.encode().expect("is sparse"));
            assert_eq!(Sheaf::decode(&kept), Ok(sheaf));
        }
    }

    #[test]
    fn a_page_with_too_many_entries_has_no_place_in_it() {
        let entries = |count: u8| (0..count).map(|index| (index, version(u64::from(index) * 7)));
        assert!(Sheaf::of(5, entries(16)).encode().is_some());
        assert_eq!(Sheaf::of(5, entries(17)).encode(), None);
    }
}
