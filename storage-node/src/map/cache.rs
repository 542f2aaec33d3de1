//! The pages in memory: bounded, with the changed ones held until a checkpoint has them.
//!
//! A page is clean (equal to the store, evictable), dirty (changed since the last checkpoint began) or committing
//! (part of the checkpoint under way). Beginning a checkpoint takes references to the dirty pages as they are at
//! that moment; a page changed meanwhile is copied first, so the committer and the shard never share a changing page.
//! Clean pages are evicted by a clock. The limit is in bytes, of what the pages really take ([`Page::memory`]); it can
//! be passed only by pages that are not clean: callers begin a checkpoint at [`PageCache::wants_checkpoint`] and hold
//! back writes at [`PageCache::is_full`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use client_lib::VolumeId;
use roaring::RoaringBitmap;

use super::page::{Index, PAGE_ENTRIES, PAGE_MEMORY_MAX, Page, Version};
use super::store::{Change, MapError, MapStore};

/// The smallest useful cache, in pages of the largest kind: less would thrash within one large request.
pub const PAGES_MIN: usize = 32;

#[derive(Debug)]
struct Slot {
    page: Arc<Page>,
    referenced: bool,
}

/// The base maps of a shard's volumes.
#[derive(Debug)]
pub struct PageCache {
    store: MapStore,
    slots: HashMap<(VolumeId, u32), Slot>,
    /// Every slot once, in the order the hand of the clock meets them.
    clock: VecDeque<(VolumeId, u32)>,
    dirty: BTreeSet<(VolumeId, u32)>,
    committing: BTreeSet<(VolumeId, u32)>,
    /// Which pages exist, so that what was never written costs no look-up.
    sets: HashMap<VolumeId, RoaringBitmap>,
    changed_sets: BTreeSet<VolumeId>,
    /// What the pages in `slots` take.
    bytes: usize,
    /// What those of them in `dirty` take.
    dirty_bytes: usize,
    /// What those in `committing` took when the checkpoint began.
    committing_bytes: usize,
    limit_bytes: usize,
}

impl PageCache {
    /// A cache of at most `limit_bytes` over `store`.
    #[must_use]
    pub fn new(store: MapStore, limit_bytes: usize) -> PageCache {
        PageCache {
            store,
            slots: HashMap::new(),
            clock: VecDeque::new(),
            dirty: BTreeSet::new(),
            committing: BTreeSet::new(),
            sets: HashMap::new(),
            changed_sets: BTreeSet::new(),
            bytes: 0,
            dirty_bytes: 0,
            committing_bytes: 0,
            limit_bytes: limit_bytes.max(PAGES_MIN * PAGE_MEMORY_MAX),
        }
    }

    /// Takes over the set of existing pages from a checkpoint.
    pub fn restore(&mut self, volume: VolumeId, pages: RoaringBitmap) {
        self.sets.insert(volume, pages);
    }

    /// The base's version of `block`.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub fn version(&mut self, volume: VolumeId, block: u32) -> Result<Option<Version>, MapError> {
        let page = self.page(volume, block / PAGE_ENTRIES)?;
        Ok(page.and_then(|page| page.entry((block % PAGE_ENTRIES) as Index)))
    }

    /// A page; `None` when nothing in it was ever written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&mut self, volume: VolumeId, page: u32) -> Result<Option<&Arc<Page>>, MapError> {
        if !self.exists(volume, page) {
            return Ok(None);
        }
        self.load(volume, page)?;
        Ok(self.slots.get(&(volume, page)).map(|slot| &slot.page))
    }

    /// Sets the base's version of `block` and returns the one before.
    ///
    /// # Errors
    /// When the page cannot be read; then nothing changed.
    pub fn set(&mut self, volume: VolumeId, block: u32, version: Version) -> Result<Option<Version>, MapError> {
        let page = block / PAGE_ENTRIES;
        self.load(volume, page)?;
        let slot = self.slots.get_mut(&(volume, page)).expect("just loaded");
        let memory = slot.page.memory();
        let before = Arc::make_mut(&mut slot.page).set((block % PAGE_ENTRIES) as Index, version);
        self.bytes = self.bytes - memory + slot.page.memory();
        if self.dirty.insert((volume, page)) {
            self.dirty_bytes += slot.page.memory();
        } else {
            self.dirty_bytes = self.dirty_bytes - memory + slot.page.memory();
        }
        if self.sets.entry(volume).or_default().insert(page) {
            self.changed_sets.insert(volume);
        }
        Ok(before)
    }

    /// The first page at or after `page` that exists.
    #[must_use]
    pub fn next_page(&self, volume: VolumeId, page: u32) -> Option<u32> {
        let mut pages = self.sets.get(&volume)?.iter();
        pages.advance_to(page);
        pages.next()
    }

    /// Forgets everything of `volume`.
    pub fn forget(&mut self, volume: VolumeId) {
        self.sets.remove(&volume);
        self.changed_sets.remove(&volume);
        self.slots.retain(|(slot, _), _| *slot != volume);
        self.clock.retain(|(slot, _)| *slot != volume);
        self.dirty.retain(|(slot, _)| *slot != volume);
        self.committing.retain(|(slot, _)| *slot != volume);
        let memory = |at| self.slots.get(at).map_or(0, |slot| slot.page.memory());
        self.bytes = self.slots.values().map(|slot| slot.page.memory()).sum();
        self.dirty_bytes = self.dirty.iter().map(memory).sum();
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

    /// Begins a checkpoint: adds the dirty pages as they are now to `changes`.
    ///
    /// # Panics
    /// If one is under way.
    pub fn begin_checkpoint(&mut self, changes: &mut Vec<Change>) {
        assert!(self.committing.is_empty(), "one checkpoint at a time");
        self.committing = std::mem::take(&mut self.dirty);
        self.committing_bytes = std::mem::take(&mut self.dirty_bytes);
        for (volume, page) in &self.committing {
            let slot = self.slots.get(&(*volume, *page)).expect("dirty pages stay in memory");
            changes.push(Change::Page(*volume, *page, slot.page.clone()));
        }
        for volume in std::mem::take(&mut self.changed_sets) {
            changes.push(Change::PageSet(volume, encode_set(&self.sets[&volume])));
        }
    }

    /// The checkpoint is in the store.
    pub fn end_checkpoint(&mut self) {
        self.committing.clear();
        self.committing_bytes = 0;
        self.evict();
    }

    fn exists(&self, volume: VolumeId, page: u32) -> bool {
        self.sets.get(&volume).is_some_and(|pages| pages.contains(page))
    }

    fn load(&mut self, volume: VolumeId, page: u32) -> Result<(), MapError> {
        if let Some(slot) = self.slots.get_mut(&(volume, page)) {
            slot.referenced = true;
            return Ok(());
        }
        let loaded = if self.exists(volume, page) {
            // The set and the pages are committed together: a page of the set that is not there is damage.
            self.store.page(volume, page)?.ok_or(MapError::Value { what: "page set", volume })?
        } else {
            Page::default()
        };
        self.evict();
        self.bytes += loaded.memory();
        self.slots.insert((volume, page), Slot { page: Arc::new(loaded), referenced: true });
        self.clock.push_back((volume, page));
        Ok(())
    }

    /// Makes room for one more page, if that can be had from clean ones within two rounds of the clock: by packing
    /// those in use, by letting go of the others.
    fn evict(&mut self) {
        let mut steps = self.clock.len() * 2;
        while self.bytes + PAGE_MEMORY_MAX > self.limit_bytes && steps > 0 {
            steps -= 1;
            let Some(at) = self.clock.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&at) else { continue };
            if self.dirty.contains(&at) || self.committing.contains(&at) {
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
        assert_eq!(store.page(volume, 0).expect("reads").expect("is there").entry(1), Some(version(1)));
        checkpoint(&mut cache, &store);
        assert_eq!(store.page(volume, 0).expect("reads").expect("is there").entry(1), Some(version(2)));
    }
}
