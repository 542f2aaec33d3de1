//! The pages in memory: bounded, with the changed ones held until a checkpoint has them.
//!
//! A page is clean (equal to the store, evictable), dirty (changed since the last checkpoint began) or committing
//! (part of the checkpoint under way). Beginning a checkpoint takes the changed entries of the dirty pages, or
//! references to those of which much has changed, as they are at that moment; a page changed meanwhile is copied first, so
//! the committer and the shard never share a changing page.
//! Clean pages are evicted by a clock. The limit is in bytes, of what the pages really take ([`Page::memory`]); it can
//! be passed only by pages that are not clean: callers begin a checkpoint at [`PageCache::wants_checkpoint`] and hold
//! back writes at [`PageCache::is_full`]. That a page could not be read is remembered ([`PageCache::fault`]): an entry of the log
//! that changes it could not be applied, so who asked is not the only one who must know.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use client_lib::VolumeId;
use roaring::RoaringBitmap;

use super::MapKey;
use super::page::sheaf::SPARSE_MAX;
use super::page::{Index, PAGE_ENTRIES, PAGE_MEMORY_MAX, Page, Version};
use super::store::{Change, MapError, MapStore};
use crate::fault::FaultCell;

/// The smallest useful cache, in pages of the largest kind: less would thrash within one large request.
pub const PAGES_MIN: usize = 32;

/// What the base map never has: data that is elsewhere.
const STALE_BASE: &str = "the base map holds only what is here";

/// Changed entries of a page from which on it is written whole: where neither is cheaper. An entry by itself takes some 30
/// bytes, a page with all its entries written at random 3 KiB; and what is written by itself is merged later.
const ENTRIES_CHANGED_MAX: u32 = 48;

#[derive(Debug)]
struct Slot {
    page: Arc<Page>,
    referenced: bool,
}

/// What changed of a page since the last checkpoint began.
#[derive(Clone, Copy, Debug)]
enum Changed {
    /// More than is worth telling apart, or the store does not have the page.
    All,
    /// The entries whose bits are set.
    Entries([u64; PAGE_ENTRIES as usize / 64]),
}

impl Changed {
    fn add(&mut self, index: Index) {
        let Changed::Entries(bits) = self else { return };
        bits[usize::from(index) / 64] |= 1 << (index % 64);
        if bits.iter().map(|bits| bits.count_ones()).sum::<u32>() > ENTRIES_CHANGED_MAX {
            *self = Changed::All;
        }
    }

    /// The changed entries of `page`.
    fn entries(&self, page: &Page) -> Vec<(Index, Version)> {
        let Changed::Entries(bits) = self else { return page.iter().collect() };
        let is_changed = |index: Index| bits[usize::from(index) / 64] & (1 << (index % 64)) != 0;
        let indexes = (0..=Index::MAX).filter(|index| is_changed(*index));
        indexes.filter_map(|index| Some((index, page.entry(index)?))).collect()
    }
}

/// The maps of a shard's volumes and their snapshots.
#[derive(Debug)]
pub struct PageCache {
    store: MapStore,
    slots: HashMap<(MapKey, u32), Slot>,
    /// Every slot once, in the order the hand of the clock meets them.
    clock: VecDeque<(MapKey, u32)>,
    dirty: BTreeMap<(MapKey, u32), Changed>,
    committing: BTreeSet<(MapKey, u32)>,
    /// Which pages exist, so that what was never written costs no look-up.
    sets: HashMap<MapKey, RoaringBitmap>,
    changed_sets: BTreeSet<MapKey>,
    /// Which of them share a value with their neighbours in the store ([`super::page::sheaf`]): those that had few entries when they
    /// came there, until they have more.
    sparse: HashMap<MapKey, RoaringBitmap>,
    changed_sparse: BTreeSet<MapKey>,
    /// Pages that are gone since the last checkpoint began, and whether they shared a value.
    removed: Vec<(MapKey, u32, bool)>,
    /// What the pages in `slots` take; one that two maps share counts twice.
    bytes: usize,
    /// What those of them in `dirty` take.
    dirty_bytes: usize,
    /// What those in `committing` took when the checkpoint began.
    committing_bytes: usize,
    limit_bytes: usize,
    /// Why a page could not be read, the first time.
    fault: Option<String>,
    /// Where that is told at once.
    told: FaultCell,
}

impl PageCache {
    /// A cache of at most `limit_bytes` over `store`.
    #[must_use]
    pub fn new(store: MapStore, limit_bytes: usize) -> PageCache {
        PageCache {
            store,
            slots: HashMap::new(),
            clock: VecDeque::new(),
            dirty: BTreeMap::new(),
            committing: BTreeSet::new(),
            sets: HashMap::new(),
            changed_sets: BTreeSet::new(),
            sparse: HashMap::new(),
            changed_sparse: BTreeSet::new(),
            removed: Vec::new(),
            bytes: 0,
            dirty_bytes: 0,
            committing_bytes: 0,
            limit_bytes: limit_bytes.max(PAGES_MIN * PAGE_MEMORY_MAX),
            fault: None,
            told: FaultCell::default(),
        }
    }

    /// Why a page could not be read, if that has happened, whoever wanted it.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Puts that into `told` as well, before who wanted the page hears of it.
    pub fn tell_faults_to(&mut self, told: FaultCell) {
        self.told = told;
    }

    /// Takes over the set of existing pages from a checkpoint.
    pub fn restore(&mut self, map: impl Into<MapKey>, pages: RoaringBitmap) {
        self.sets.insert(map.into(), pages);
    }

    /// The same of the set of those that share values.
    pub fn restore_sparse(&mut self, map: impl Into<MapKey>, pages: RoaringBitmap) {
        self.sparse.insert(map.into(), pages);
    }

    /// The version of `block` in a map.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub fn version(&mut self, map: impl Into<MapKey>, block: u32) -> Result<Option<Version>, MapError> {
        let page = self.page(map, block / PAGE_ENTRIES)?;
        Ok(page.and_then(|page| page.entry((block % PAGE_ENTRIES) as Index)))
    }

    /// A page; `None` when nothing in it was ever written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&mut self, map: impl Into<MapKey>, page: u32) -> Result<Option<&Arc<Page>>, MapError> {
        let map = map.into();
        if !self.has(map, page) {
            return Ok(None);
        }
        self.load(map, page)?;
        Ok(self.slots.get(&(map, page)).map(|slot| &slot.page))
    }

    /// Sets the version of `block` in a map and returns the one before.
    ///
    /// # Errors
    /// When the page cannot be read; then nothing changed.
    pub fn set(&mut self, map: impl Into<MapKey>, block: u32, version: Version) -> Result<Option<Version>, MapError> {
        assert!(!version.content.is_stale(), "{STALE_BASE}");
        let index = (block % PAGE_ENTRIES) as Index;
        self.change(map.into(), block / PAGE_ENTRIES, index..=index, |page| page.set(index, version))
    }

    /// Sets the versions of the blocks from `first` on, all of one page, and returns those before.
    ///
    /// # Errors
    /// When the page cannot be read; then nothing changed.
    ///
    /// # Panics
    /// If there are none, or they go beyond the page.
    pub fn set_run(
        &mut self,
        map: impl Into<MapKey>,
        first: u32,
        versions: &[Version],
    ) -> Result<Vec<Option<Version>>, MapError> {
        assert!(versions.iter().all(|version| !version.content.is_stale()), "{STALE_BASE}");
        let index = (first % PAGE_ENTRIES) as usize;
        let last = index + versions.len() - 1;
        assert!(last < PAGE_ENTRIES as usize, "the run is in one page");
        let indexes = index as Index..=last as Index;
        self.change(map.into(), first / PAGE_ENTRIES, indexes, |page| page.set_run(index as Index, versions))
    }

    /// Has `change` set the entries at `indexes` of a page.
    fn change<T>(
        &mut self,
        map: MapKey,
        page: u32,
        indexes: RangeInclusive<Index>,
        change: impl FnOnce(&mut Page) -> T,
    ) -> Result<T, MapError> {
        self.load(map, page)?;
        let slot = self.slots.get_mut(&(map, page)).expect("just loaded");
        let memory_before = slot.page.memory();
        let before = change(Arc::make_mut(&mut slot.page));
        let memory = slot.page.memory();
        self.bytes = self.bytes - memory_before + memory;
        if let Some(changed) = self.dirty.get_mut(&(map, page)) {
            indexes.for_each(|index| changed.add(index));
            self.dirty_bytes = self.dirty_bytes - memory_before + memory;
        } else {
            let mut changed = if self.has(map, page) { Changed::Entries(Default::default()) } else { Changed::All };
            indexes.for_each(|index| changed.add(index));
            self.note_dirty(map, page, changed, memory);
        }
        Ok(before)
    }

    /// Gives a map a page that it does not have. The content may be shared with another map's. It is kept for later: once it
    /// is in a checkpoint it is the first to go.
    pub fn insert(&mut self, map: MapKey, page: u32, content: Arc<Page>) {
        assert!(!self.has(map, page), "page {page} of {map:?} is new");
        let memory = content.memory();
        self.put(map, page, Slot { page: content, referenced: false });
        self.note_dirty(map, page, Changed::All, memory);
    }

    /// Takes a page away from a map.
    pub fn remove(&mut self, map: MapKey, page: u32) {
        let memory = self.slots.remove(&(map, page)).map_or(0, |slot| slot.page.memory());
        self.bytes -= memory;
        if self.dirty.remove(&(map, page)).is_some() {
            self.dirty_bytes -= memory;
        }
        if self.sets.get_mut(&map).is_some_and(|pages| pages.remove(page)) {
            self.changed_sets.insert(map);
            let was_sparse = self.set_sparse(map, page, false);
            self.removed.push((map, page, was_sparse));
        }
    }

    fn is_sparse(&self, map: MapKey, page: u32) -> bool {
        self.sparse.get(&map).is_some_and(|pages| pages.contains(page))
    }

    /// Returns whether that is a change.
    fn set_sparse(&mut self, map: MapKey, page: u32, is_sparse: bool) -> bool {
        let pages = self.sparse.entry(map).or_default();
        let has_changed = if is_sparse { pages.insert(page) } else { pages.remove(page) };
        if has_changed {
            self.changed_sparse.insert(map);
        }
        has_changed
    }

    /// Whether a map has a page.
    #[must_use]
    pub fn has(&self, map: MapKey, page: u32) -> bool {
        self.sets.get(&map).is_some_and(|pages| pages.contains(page))
    }

    /// The first page at or after `page` that exists.
    #[must_use]
    pub fn next_page(&self, map: impl Into<MapKey>, page: u32) -> Option<u32> {
        let mut pages = self.sets.get(&map.into())?.iter();
        pages.advance_to(page);
        pages.next()
    }

    /// How many pages from `first` to `last` exist.
    #[must_use]
    pub fn pages_between(&self, map: impl Into<MapKey>, first: u32, last: u32) -> u64 {
        self.sets.get(&map.into()).map_or(0, |pages| pages.range_cardinality(first..=last))
    }

    /// Of the pages at or after `page` that exist, the one behind `n` others.
    #[must_use]
    pub fn nth_page(&self, map: impl Into<MapKey>, page: u32, n: u64) -> Option<u32> {
        let pages = self.sets.get(&map.into())?;
        let before = page.checked_sub(1).map_or(0, |before| pages.rank(before));
        u32::try_from(before + n).ok().and_then(|n| pages.select(n))
    }

    /// The maps of `volume` that have pages, or had.
    #[must_use]
    pub fn maps_of(&self, volume: VolumeId) -> Vec<MapKey> {
        self.sets.keys().filter(|map| map.volume == volume).copied().collect()
    }

    /// Forgets everything of a map.
    pub fn forget(&mut self, map: impl Into<MapKey>) {
        let map = map.into();
        self.sets.remove(&map);
        self.changed_sets.remove(&map);
        self.sparse.remove(&map);
        self.changed_sparse.remove(&map);
        self.slots.retain(|(slot, _), _| *slot != map);
        self.clock.retain(|(slot, _)| *slot != map);
        self.dirty.retain(|(slot, _), _| *slot != map);
        self.committing.retain(|(slot, _)| *slot != map);
        self.removed.retain(|(removed, ..)| *removed != map);
        let memory = |at| self.slots.get(at).map_or(0, |slot| slot.page.memory());
        self.bytes = self.slots.values().map(|slot| slot.page.memory()).sum();
        self.dirty_bytes = self.dirty.keys().map(memory).sum();
        // Of a page that changed meanwhile, its memory now stands for that of what is being written.
        self.committing_bytes = self.committing.iter().map(memory).sum();
    }

    /// Whether so much is dirty that a checkpoint should begin.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.dirty_bytes >= self.limit_bytes / 2
    }

    /// Whether so much cannot be evicted that changes must wait for a checkpoint.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.dirty_bytes + self.committing_bytes >= self.limit_bytes
    }

    /// Pages in memory.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.slots.len()
    }

    /// What they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The limit of that.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Begins a checkpoint: adds the dirty pages, or what changed of them, as they are now to `changes`.
    ///
    /// # Panics
    /// If one is under way.
    pub fn begin_checkpoint(&mut self, changes: &mut Vec<Change>) {
        assert!(self.committing.is_empty(), "one checkpoint at a time");
        let dirty = std::mem::take(&mut self.dirty);
        self.committing_bytes = std::mem::take(&mut self.dirty_bytes);
        changes.extend(self.removed.drain(..).map(|(map, page, was_sparse)| match was_sparse {
            true => Change::RemoveSparse(map, page),
            false => Change::RemovePage(map, page),
        }));
        for ((map, page), changed) in &dirty {
            let (map, page) = (*map, *page);
            let content = self.slots.get(&(map, page)).expect("dirty pages stay in memory").page.clone();
            let was_sparse = self.is_sparse(map, page);
            // What has a value of its own and has changed in some entries keeps it.
            let may_be_sparse = was_sparse || matches!(changed, Changed::All);
            if may_be_sparse && content.is_sparse(SPARSE_MAX) {
                self.set_sparse(map, page, true);
                let entries = if was_sparse { changed.entries(&content) } else { content.iter().collect() };
                changes.push(Change::Sparse(map, page, entries));
                continue;
            }
            if was_sparse {
                self.set_sparse(map, page, false);
                changes.push(Change::RemoveSparse(map, page));
            }
            changes.push(match changed {
                Changed::Entries(_) if !was_sparse => Change::Entries(map, page, changed.entries(&content)),
                _ => Change::Page(map, page, content),
            });
        }
        self.committing = dirty.into_keys().collect();
        for map in std::mem::take(&mut self.changed_sparse) {
            changes.push(Change::SparseSet(map, encode_set(&self.sparse[&map])));
        }
        for map in std::mem::take(&mut self.changed_sets) {
            changes.push(Change::PageSet(map, encode_set(&self.sets[&map])));
        }
    }

    /// The checkpoint is in the store.
    pub fn end_checkpoint(&mut self) {
        self.committing.clear();
        self.committing_bytes = 0;
        self.evict();
    }

    /// A page that was not dirty has changed and takes `memory` bytes.
    fn note_dirty(&mut self, map: MapKey, page: u32, changed: Changed, memory: usize) {
        self.dirty.insert((map, page), changed);
        self.dirty_bytes += memory;
        if self.sets.entry(map).or_default().insert(page) {
            self.changed_sets.insert(map);
        }
    }

    fn load(&mut self, map: MapKey, page: u32) -> Result<(), MapError> {
        if let Some(slot) = self.slots.get_mut(&(map, page)) {
            slot.referenced = true;
            return Ok(());
        }
        let loaded = if self.has(map, page) {
            let is_sparse = self.is_sparse(map, page);
            let read = if is_sparse { self.store.sparse_page(map, page) } else { self.store.page(map, page) };
            // The set and the pages are committed together: a page of the set that is not there is damage.
            let found = read.and_then(|read| read.ok_or(MapError::Value { what: "page set", volume: map.volume }));
            found.inspect_err(|error| {
                self.told.set(self.fault.get_or_insert_with(|| format!("the block map cannot be read: {error}")));
            })?
        } else {
            Page::default()
        };
        self.put(map, page, Slot { page: Arc::new(loaded), referenced: true });
        Ok(())
    }

    fn put(&mut self, map: MapKey, page: u32, slot: Slot) {
        self.evict();
        self.bytes += slot.page.memory();
        self.slots.insert((map, page), slot);
        self.clock.push_back((map, page));
    }

    /// Makes room for one more page, if that can be had from clean ones within two rounds of the clock: by packing
    /// those in use, by letting go of the others.
    fn evict(&mut self) {
        let mut steps = self.clock.len() * 2;
        while self.bytes + PAGE_MEMORY_MAX > self.limit_bytes && steps > 0 {
            steps -= 1;
            let Some(at) = self.clock.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&at) else { continue };
            if self.dirty.contains_key(&at) || self.committing.contains(&at) {
                // Its turn comes when it could go: else what is kept for later would outlive what is in use.
                self.clock.push_back(at);
            } else if slot.referenced {
                slot.referenced = false;
                let memory = slot.page.memory();
                // The committer may still have a reference for a moment; then it stays as it is until the next round.
                if let Some(page) = Arc::get_mut(&mut slot.page) {
                    page.pack();
                }
                self.bytes = self.bytes - memory + slot.page.memory();
                self.clock.push_back(at);
            } else {
                self.bytes -= slot.page.memory();
                self.slots.remove(&at);
            }
        }
    }
}

/// A set of numbers as a value.
#[must_use]
pub fn encode_set(set: &RoaringBitmap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(set.serialized_size());
    set.serialize_into(&mut bytes).expect("a vector takes any bytes");
    bytes
}

/// A set of numbers from a value; `None` when it is not one. No bytes are the empty set.
#[must_use]
pub fn decode_set(bytes: &[u8]) -> Option<RoaringBitmap> {
    if bytes.is_empty() { Some(RoaringBitmap::new()) } else { RoaringBitmap::deserialize_from(bytes).ok() }
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, Lsn};

    use super::*;
    use crate::map::page::{Content, Place};

    fn version(sequence: u64) -> Version {
        let place = Place { segment: 1, block: sequence as u32 };
        Version { lsn: Lsn::new(Epoch(1), sequence), content: Content::Local { place, crc: 0 } }
    }

    /// Page 0 of volume 1 as the store has it.
    fn stored(cache: &PageCache, store: &MapStore) -> Option<Arc<Page>> {
        let volume = VolumeId(1);
        let is_sparse = cache.is_sparse(volume.into(), 0);
        let page = if is_sparse { store.sparse_page(volume, 0) } else { store.page(volume, 0) };
        page.expect("reads").map(Arc::new)
    }

    fn checkpoint(cache: &mut PageCache, store: &MapStore) {
        let mut changes = Vec::new();
        cache.begin_checkpoint(&mut changes);
        store.commit(&changes).expect("commits");
        cache.end_checkpoint();
    }

    #[test]
    fn a_map_larger_than_the_cache_stays_within_its_limit() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = MapStore::open(directory.path()).expect("opens");
        let mut cache = PageCache::new(store.clone(), 0);
        let volume = VolumeId(1);
        // Pages with one entry: many times what fits, however small they are.
        let pages = (3 * cache.limit_bytes() / Page::default().memory()) as u32;
        for page in 0..pages {
            cache.set(volume, page * PAGE_ENTRIES + 5, version(u64::from(page))).expect("sets");
            if cache.wants_checkpoint() {
                checkpoint(&mut cache, &store);
            }
            assert!(cache.bytes() <= cache.limit_bytes(), "{} bytes of {}", cache.bytes(), cache.limit_bytes());
        }
        for page in (0..pages).rev() {
            let found = cache.version(volume, page * PAGE_ENTRIES + 5).expect("reads");
            assert_eq!(found, Some(version(u64::from(page))));
            assert_eq!(cache.version(volume, page * PAGE_ENTRIES + 6).expect("reads"), None);
            assert!(cache.bytes() <= cache.limit_bytes());
        }
        let counted: usize = cache.slots.values().map(|slot| slot.page.memory()).sum();
        assert_eq!(cache.bytes(), counted, "no page is counted twice or not at all");
        assert_eq!(cache.version(volume, u32::MAX).expect("reads"), None);
    }

    #[test]
    fn a_checkpoint_writes_few_changed_entries_by_themselves_and_many_with_their_page() {
        let store = MapStore::in_memory();
        let mut cache = PageCache::new(store.clone(), 0);
        let volume = VolumeId(1);
        let mut next = 0;
        let mut change = |cache: &mut PageCache, entries: u32| {
            (0..entries).for_each(|index| {
                next += 1;
                cache.set(volume, 5 * index % PAGE_ENTRIES, version(next)).expect("sets");
            });
            let mut changes = Vec::new();
            cache.begin_checkpoint(&mut changes);
            store.commit(&changes).expect("commits");
            cache.end_checkpoint();
            assert_eq!(stored(cache, &store), cache.page(volume, 0).expect("reads").cloned());
            let what = |change: &Change| match change {
                Change::Page(..) => Some("whole".to_owned()),
                Change::Entries(_, _, entries) => Some(format!("{} entries", entries.len())),
                Change::Sparse(_, _, entries) => Some(format!("{} into a sheaf", entries.len())),
                Change::RemovePage(..) => Some("gone".to_owned()),
                Change::RemoveSparse(..) => Some("gone from its sheaf".to_owned()),
                _ => None,
            };
            changes.iter().filter_map(what).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(change(&mut cache, 3), "3 into a sheaf", "the page is new");
        assert_eq!(change(&mut cache, SPARSE_MAX as u32), "16 into a sheaf");
        assert_eq!(change(&mut cache, 1), "1 into a sheaf");
        assert_eq!(change(&mut cache, SPARSE_MAX as u32 + 1), "gone from its sheaf, whole");
        assert_eq!(change(&mut cache, 3), "3 entries");
        assert_eq!(change(&mut cache, ENTRIES_CHANGED_MAX), "48 entries");
        assert_eq!(change(&mut cache, ENTRIES_CHANGED_MAX + 1), "whole");
        cache.remove(volume.into(), 0);
        assert_eq!(change(&mut cache, 1), "gone, 1 into a sheaf", "the store has none to merge it with");
        cache.remove(volume.into(), 0);
        assert_eq!(change(&mut cache, 2), "gone from its sheaf, 2 into a sheaf");
        cache.remove(volume.into(), 0);
        assert_eq!(change(&mut cache, 40), "gone from its sheaf, whole");
    }

    #[test]
    fn a_page_with_few_entries_from_before_there_were_sheaves_keeps_its_value() {
        let store = MapStore::in_memory();
        let volume = VolumeId(1);
        let mut page = Page::default();
        page.set(3, version(1));
        store.commit(&[Change::Page(volume.into(), 0, Arc::new(page))]).expect("commits");
        for round in 2..5 {
            let mut cache = PageCache::new(store.clone(), 0);
            cache.restore(volume, [0].into_iter().collect());
            assert_eq!(cache.version(volume, 3).expect("reads"), Some(version(round - 1)));
            cache.set(volume, 3, version(round)).expect("sets");
            checkpoint(&mut cache, &store);
            assert_eq!(stored(&cache, &store), cache.page(volume, 0).expect("reads").cloned());
        }
    }

    #[test]
    fn a_page_changed_during_a_checkpoint_is_in_the_next_one() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = MapStore::open(directory.path()).expect("opens");
        let mut cache = PageCache::new(store.clone(), 0);
        let volume = VolumeId(1);
        cache.set(volume, 1, version(1)).expect("sets");
        let mut changes = Vec::new();
        cache.begin_checkpoint(&mut changes);
        assert_eq!(cache.set(volume, 1, version(2)).expect("sets"), Some(version(1)));
        store.commit(&changes).expect("commits");
        cache.end_checkpoint();
        assert_eq!(stored(&cache, &store).expect("is there").entry(1), Some(version(1)));
        checkpoint(&mut cache, &store);
        assert_eq!(stored(&cache, &store).expect("is there").entry(1), Some(version(2)));
    }
}
