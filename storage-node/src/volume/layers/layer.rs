//! One layer: versions by block, and which chunks of it a checkpoint has yet to write.
//!
//! A chunk is what [`Page`] is to the base: the versions of 256 neighbouring blocks, packed as they are stored, with the
//! few that were set since beside them. So a backlog takes in memory what it takes in the store, some 5 bytes per
//! block written in order and some 10 to 20 per block written at random, and not an entry of a tree for each.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::map::page::{Entries, Index, PAGE_ENTRIES, Page, Place, Version};

/// One layer: versions by block.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    pub(super) id: u64,
    /// None is empty.
    chunks: BTreeMap<u32, Page>,
    counts: Counts,
    /// Chunks that differ from what the store has.
    pub(super) dirty: BTreeSet<u32>,
}

/// How many versions of which kind there are.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    all: u64,
    stale: u64,
    local: u64,
    unknown: u64,
}

impl Counts {
    fn each(&mut self, version: &Version, change: impl Fn(&mut u64)) {
        change(&mut self.all);
        if version.content.is_stale() {
            change(&mut self.stale);
        }
        if version.content.place().is_some() {
            change(&mut self.local);
        }
        if version.is_unknown() {
            change(&mut self.unknown);
        }
    }

    fn add(&mut self, version: &Version) {
        self.each(version, |count| *count += 1);
    }

    fn remove(&mut self, version: &Version) {
        self.each(version, |count| *count -= 1);
    }

    fn join(&mut self, others: &Counts) {
        let Counts { all, stale, local, unknown } = others;
        self.all += all;
        self.stale += stale;
        self.local += local;
        self.unknown += unknown;
    }
}

/// The chunk of `block`, and where in it that is.
fn chunk_of(block: u32) -> (u32, Index) {
    (block / PAGE_ENTRIES, (block % PAGE_ENTRIES) as Index)
}

fn block_of(chunk: u32, index: Index) -> u32 {
    chunk * PAGE_ENTRIES + u32::from(index)
}

impl Layer {
    /// An empty layer.
    pub(super) fn new(id: u64) -> Layer {
        Layer { id, ..Layer::default() }
    }

    /// A layer as a checkpoint kept it.
    #[must_use]
    pub fn restore(id: u64, mut chunks: BTreeMap<u32, Page>) -> Layer {
        let mut counts = Counts::default();
        chunks.retain(|_, page| !page.is_empty());
        chunks.values().flat_map(Page::iter).for_each(|(_, version)| counts.add(&version));
        Layer { id, chunks, counts, dirty: BTreeSet::new() }
    }

    /// Its name in the store.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many blocks it has a version of.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.counts.all
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.all == 0
    }

    /// How many of its versions are stale.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.counts.stale
    }

    /// How many of its versions have their data here.
    #[must_use]
    pub fn local(&self) -> u64 {
        self.counts.local
    }

    /// How many of its versions are unknown.
    pub(super) fn unknown(&self) -> u64 {
        self.counts.unknown
    }

    /// Bytes that the versions take in memory.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.chunks.values().map(Page::memory).sum()
    }

    /// Its version of `block`.
    #[must_use]
    pub fn get(&self, block: u32) -> Option<Version> {
        let (chunk, index) = chunk_of(block);
        self.chunks.get(&chunk)?.entry(index)
    }

    /// Whether it has a version of `block`.
    pub(super) fn has(&self, block: u32) -> bool {
        self.get(block).is_some()
    }

    /// Its versions, in block order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Version)> + '_ {
        self.range(0, u32::MAX)
    }

    /// Its versions of the blocks from `first` to `last`, in block order.
    pub fn range(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, Version)> + '_ {
        let chunks = (first <= last).then(|| self.chunks.range(chunk_of(first).0..=chunk_of(last).0));
        let versions = chunks.into_iter().flatten().flat_map(|(chunk, page)| versions_of(*chunk, page));
        versions.filter(move |(block, _)| (first..=last).contains(block))
    }

    /// The blocks from `first` to `last` that it has a version of.
    pub fn blocks(&self, first: u32, last: u32) -> impl Iterator<Item = u32> + '_ {
        self.range(first, last).map(|(block, _)| block)
    }

    /// The first chunk at or after `chunk` that it has a version in.
    #[must_use]
    pub fn next_chunk(&self, chunk: u32) -> Option<u32> {
        self.chunks.range(chunk..).next().map(|(chunk, _)| *chunk)
    }

    /// The blocks at or after `after` whose data is elsewhere.
    pub(super) fn stale_from(&self, after: u32) -> impl Iterator<Item = u32> + '_ {
        let chunks = (self.counts.stale > 0).then(|| self.chunks.range(chunk_of(after).0..));
        let chunks = chunks.into_iter().flatten().filter(|(_, page)| page.may_have_stale());
        let versions = chunks.flat_map(|(chunk, page)| versions_of(*chunk, page));
        versions.filter(move |(block, version)| *block >= after && version.content.is_stale()).map(|(block, _)| block)
    }

    pub(super) fn set(&mut self, block: u32, version: Version) -> Option<Version> {
        let (chunk, index) = chunk_of(block);
        let before = self.chunks.entry(chunk).or_default().set(index, version);
        self.counts.add(&version);
        before.iter().for_each(|before| self.counts.remove(before));
        self.dirty.insert(chunk);
        before
    }

    /// Sets versions of blocks of one chunk and returns those before, in order: cheaper than one by one where they are many.
    pub(super) fn set_many(&mut self, chunk: u32, versions: &[(u32, Version)]) -> Vec<Option<Version>> {
        let each = versions.iter().map(|(block, version)| (chunk_of(*block).1, *version));
        let before = self.chunks.entry(chunk).or_default().set_each(versions.len(), each);
        versions.iter().for_each(|(_, version)| self.counts.add(version));
        before.iter().flatten().for_each(|before| self.counts.remove(before));
        self.dirty.insert(chunk);
        before
    }

    /// Its versions of a chunk's blocks over those in `seen`.
    pub(super) fn overlay(&self, chunk: u32, seen: &mut Entries) {
        if let Some(page) = self.chunks.get(&chunk) {
            page.overlay(seen);
        }
    }

    pub(super) fn take(&mut self, block: u32) -> Option<Version> {
        let (chunk, index) = chunk_of(block);
        let page = self.chunks.get_mut(&chunk)?;
        let before = page.remove(index)?;
        if page.is_empty() {
            self.chunks.remove(&chunk);
        }
        self.counts.remove(&before);
        self.dirty.insert(chunk);
        Some(before)
    }

    /// Takes its first versions, at most `max` of them.
    pub(super) fn take_first(&mut self, max: usize) -> Vec<(u32, Version)> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(mut first) = self.chunks.first_entry()
        {
            let chunk = *first.key();
            let mut versions = first.get().iter();
            taken.extend(
                versions.by_ref().take(max - taken.len()).map(|(index, version)| (block_of(chunk, index), version)),
            );
            let rest = Page::of(versions);
            if rest.is_empty() {
                first.remove();
            } else {
                first.insert(rest);
            }
            self.dirty.insert(chunk);
        }
        taken.iter().for_each(|(_, version)| self.counts.remove(version));
        taken
    }

    /// Drops every stale version, and tells of its block.
    pub(super) fn drop_stale(&mut self, mut dropped: impl FnMut(u32)) {
        let (counts, dirty) = (&mut self.counts, &mut self.dirty);
        self.chunks.retain(|chunk, page| {
            if page.may_have_stale() {
                let (stale, kept): (Vec<_>, Vec<_>) = page.iter().partition(|(_, version)| version.content.is_stale());
                for (index, version) in stale {
                    counts.remove(&version);
                    dropped(block_of(*chunk, index));
                }
                *page = Page::of(kept.into_iter());
                dirty.insert(*chunk);
            }
            !page.is_empty()
        });
    }

    /// Puts the versions of `newer` over its own, and tells of every place that is not needed for them any more.
    pub(super) fn cover(&mut self, newer: Layer, mut let_go: impl FnMut(Place)) {
        self.counts.join(&newer.counts);
        for (chunk, over) in newer.chunks {
            self.dirty.insert(chunk);
            match self.chunks.entry(chunk) {
                Entry::Vacant(free) => drop(free.insert(over)),
                Entry::Occupied(taken) => {
                    let page = taken.into_mut();
                    let hidden = over.iter().filter_map(|(index, _)| page.entry(index));
                    hidden.for_each(|before| {
                        self.counts.remove(&before);
                        before.content.place().into_iter().for_each(&mut let_go);
                    });
                    page.cover(&over);
                }
            }
        }
    }

    /// A chunk as the store keeps it; `None` when there is nothing in it.
    pub(super) fn chunk(&mut self, chunk: u32) -> Option<Vec<u8>> {
        let page = self.chunks.get_mut(&chunk)?;
        page.pack();
        Some(page.encode())
    }
}

fn versions_of(chunk: u32, page: &Page) -> impl Iterator<Item = (u32, Version)> + '_ {
    page.iter().map(move |(index, version)| (block_of(chunk, index), version))
}
