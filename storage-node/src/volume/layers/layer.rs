//! One layer: versions by block, and which chunks of it a checkpoint has yet to write.

use std::collections::{BTreeMap, BTreeSet};

use crate::map::page::{PAGE_ENTRIES, Version, encode_entries};

/// One layer: versions by block.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    pub(super) id: u64,
    pub(super) entries: BTreeMap<u32, Version>,
    pub(super) stale: u64,
    pub(super) local: u64,
    pub(super) unknown: u64,
    /// Chunks that differ from what the store has.
    pub(super) dirty: BTreeSet<u32>,
}

impl Layer {
    /// An empty layer.
    pub(super) fn new(id: u64) -> Layer {
        Layer { id, ..Layer::default() }
    }

    /// A layer as a checkpoint kept it.
    #[must_use]
    pub fn restore(id: u64, entries: BTreeMap<u32, Version>) -> Layer {
        let stale = entries.values().filter(|version| version.content.is_stale()).count() as u64;
        let local = entries.values().filter(|version| version.content.place().is_some()).count() as u64;
        let unknown = entries.values().filter(|version| version.is_unknown()).count() as u64;
        Layer { id, entries, stale, local, unknown, dirty: BTreeSet::new() }
    }

    /// Its name in the store.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it has, in block order.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<u32, Version> {
        &self.entries
    }

    /// How many of its entries are stale.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// How many of its entries have their data here.
    #[must_use]
    pub fn local(&self) -> u64 {
        self.local
    }

    /// Its versions, in block order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Version)> + '_ {
        self.entries.iter().map(|(block, version)| (*block, *version))
    }

    /// The blocks from `first` to `last` that it has a version of.
    pub fn blocks(&self, first: u32, last: u32) -> impl Iterator<Item = u32> + '_ {
        (first <= last).then(|| self.entries.range(first..=last)).into_iter().flatten().map(|(block, _)| *block)
    }

    /// The blocks at or after `after` whose data is elsewhere.
    pub(super) fn stale_from(&self, after: u32) -> impl Iterator<Item = u32> + '_ {
        let is_any = self.stale > 0;
        let entries = self.entries.range(after..).filter(move |(_, version)| is_any && version.content.is_stale());
        entries.map(|(block, _)| *block)
    }

    pub(super) fn set(&mut self, block: u32, version: Version) -> Option<Version> {
        let before = self.entries.insert(block, version);
        self.stale += u64::from(version.content.is_stale());
        self.stale -= u64::from(before.is_some_and(|before| before.content.is_stale()));
        self.local += u64::from(version.content.place().is_some());
        self.local -= u64::from(before.is_some_and(|before| before.content.place().is_some()));
        self.unknown += u64::from(version.is_unknown());
        self.unknown -= u64::from(before.is_some_and(|before| before.is_unknown()));
        self.dirty.insert(block / PAGE_ENTRIES);
        before
    }

    pub(super) fn take(&mut self, block: u32) -> Option<Version> {
        let before = self.entries.remove(&block)?;
        self.stale -= u64::from(before.content.is_stale());
        self.local -= u64::from(before.content.place().is_some());
        self.unknown -= u64::from(before.is_unknown());
        self.dirty.insert(block / PAGE_ENTRIES);
        Some(before)
    }

    pub(super) fn chunk(&self, chunk: u32) -> Option<Vec<u8>> {
        let first = chunk * PAGE_ENTRIES;
        let last = first + (PAGE_ENTRIES - 1);
        let mut entries =
            self.entries.range(first..=last).map(|(block, version)| ((block - first) as u8, *version)).peekable();
        entries.peek()?;
        Some(encode_entries(entries))
    }
}
