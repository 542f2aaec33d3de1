//! The layers above a volume's base map: what is known but not yet part of the applied prefix.
//!
//! ```text
//!   open      beyond T, up to `known`      manifests, and an owner's writes while anything is stale
//!   sealed    (W, T]: the delta whose data is being transferred
//!   folding   at or before W: applied, on their way into the base in bounded steps, oldest first
//!   base      the map's pages, complete up to W (without what folding still holds)
//! ```
//!
//! Invariant: a block's LSN rises from base to open, so the view of a block is the first entry found from the top.
//! Entries that are stale below the top are *moot*: nobody waits for them, except a delta that must be applied
//! whole. `stale` counts the blocks whose view is stale and is kept with every change. Pure: it counts references to
//! places in [`Usage`] and leaves the base to its caller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use client_lib::{BlockIndex, Lsn, VolumeId};

use crate::map::page::{Content, PAGE_ENTRIES, Place, Version, encode_entries};
use crate::map::usage::Usage;
use crate::propagation::manifest::BlockRun;

/// One layer: versions by block.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    id: u64,
    entries: BTreeMap<u32, Version>,
    stale: u64,
    /// Chunks that differ from what the store has.
    dirty: BTreeSet<u32>,
}

impl Layer {
    /// A layer as a checkpoint kept it.
    #[must_use]
    pub fn restore(id: u64, entries: BTreeMap<u32, Version>) -> Layer {
        let stale = entries.values().filter(|version| version.content.is_stale()).count() as u64;
        Layer { id, entries, stale, dirty: BTreeSet::new() }
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

    fn set(&mut self, block: u32, version: Version) -> Option<Version> {
        let before = self.entries.insert(block, version);
        self.stale += u64::from(version.content.is_stale());
        self.stale -= u64::from(before.is_some_and(|before| before.content.is_stale()));
        self.dirty.insert(block / PAGE_ENTRIES);
        before
    }

    fn take(&mut self, block: u32) -> Option<Version> {
        let before = self.entries.remove(&block)?;
        self.stale -= u64::from(before.content.is_stale());
        self.dirty.insert(block / PAGE_ENTRIES);
        Some(before)
    }

    fn chunk(&self, chunk: u32) -> Option<Vec<u8>> {
        let first = chunk * PAGE_ENTRIES;
        let last = first + (PAGE_ENTRIES - 1);
        let mut entries =
            self.entries.range(first..=last).map(|(block, version)| ((block - first) as u8, *version)).peekable();
        entries.peek()?;
        Some(encode_entries(entries))
    }
}

/// What a checkpoint must write of the layers.
#[derive(Debug, Default)]
pub struct LayersDelta {
    /// Layer, chunk and its new value; `None` deletes it.
    pub chunks: Vec<(u64, u32, Option<Vec<u8>>)>,
    /// Layers that are gone.
    pub dropped: Vec<u64>,
}

/// Which layers there are, for the volume's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayersShape {
    /// The id of the next new layer.
    pub next_id: u64,
    /// The end of the sealed delta.
    pub sealed_to: Option<Lsn>,
    /// The sealed layer.
    pub sealed: u64,
    /// The open layer.
    pub open: u64,
    /// The folding layers, oldest first.
    pub folding: Vec<u64>,
}

/// The layers of a volume.
#[derive(Clone, Debug)]
pub struct Layers {
    volume: VolumeId,
    folding: VecDeque<Layer>,
    sealed: Layer,
    sealed_to: Option<Lsn>,
    open: Layer,
    stale: u64,
    next_id: u64,
    dropped: Vec<u64>,
}

impl Layers {
    /// No layer holds anything.
    #[must_use]
    pub fn new(volume: VolumeId) -> Layers {
        Layers {
            volume,
            folding: VecDeque::new(),
            sealed: Layer { id: 0, ..Layer::default() },
            sealed_to: None,
            open: Layer { id: 1, ..Layer::default() },
            stale: 0,
            next_id: 2,
            dropped: Vec::new(),
        }
    }

    /// The layers as a checkpoint kept them; `layer` yields the entries of each.
    #[must_use]
    pub fn restore(
        volume: VolumeId,
        shape: &LayersShape,
        mut layer: impl FnMut(u64) -> BTreeMap<u32, Version>,
    ) -> Layers {
        let mut layers = Layers {
            volume,
            folding: shape.folding.iter().map(|id| Layer::restore(*id, layer(*id))).collect(),
            sealed: Layer::restore(shape.sealed, layer(shape.sealed)),
            sealed_to: shape.sealed_to,
            open: Layer::restore(shape.open, layer(shape.open)),
            stale: 0,
            next_id: shape.next_id,
            dropped: Vec::new(),
        };
        layers.stale = layers.open.stale
            + layers
                .sealed
                .entries
                .iter()
                .filter(|(block, version)| version.content.is_stale() && !layers.open.entries.contains_key(block))
                .count() as u64;
        layers
    }

    /// Which layers there are.
    #[must_use]
    pub fn shape(&self) -> LayersShape {
        LayersShape {
            next_id: self.next_id,
            sealed_to: self.sealed_to,
            sealed: self.sealed.id,
            open: self.open.id,
            folding: self.folding.iter().map(Layer::id).collect(),
        }
    }

    /// What changed since the last call.
    pub fn take_delta(&mut self) -> LayersDelta {
        let mut delta = LayersDelta { dropped: std::mem::take(&mut self.dropped), ..LayersDelta::default() };
        for layer in self.folding.iter_mut().chain([&mut self.sealed, &mut self.open]) {
            for chunk in std::mem::take(&mut layer.dirty) {
                delta.chunks.push((layer.id, chunk, layer.chunk(chunk)));
            }
        }
        delta
    }

    /// Chunks that a checkpoint would write now.
    #[must_use]
    pub fn dirty_chunks(&self) -> usize {
        self.open.dirty.len()
            + self.sealed.dirty.len()
            + self.folding.iter().map(|layer| layer.dirty.len()).sum::<usize>()
    }

    /// The newest entry of `block`; `None` leaves it to the base.
    #[must_use]
    pub fn view(&self, block: u32) -> Option<Version> {
        let upper = self.open.entries.get(&block).or_else(|| self.sealed.entries.get(&block));
        upper.copied().or_else(|| self.applied(block))
    }

    /// The newest applied entry of `block`; `None` leaves it to the base.
    #[must_use]
    pub fn applied(&self, block: u32) -> Option<Version> {
        self.folding.iter().rev().find_map(|layer| layer.entries.get(&block)).copied()
    }

    /// The blocks from `first` to `last` that any layer has an entry of.
    #[must_use]
    pub fn blocks(&self, first: u32, last: u32) -> BTreeSet<u32> {
        if first > last {
            return BTreeSet::new();
        }
        let layers = self.folding.iter().chain([&self.sealed, &self.open]);
        layers.flat_map(|layer| layer.entries.range(first..=last).map(|(block, _)| *block)).collect()
    }

    /// The data of `block` at `from` was copied to `to`. Returns whether a layer has it.
    pub fn relocate(&mut self, block: u32, from: Place, to: Place, usage: &mut Usage) -> bool {
        for layer in self.folding.iter_mut().chain([&mut self.sealed, &mut self.open]) {
            if let Some(Version { lsn, content: Content::Local { place, crc } }) = layer.entries.get(&block).copied()
                && place == from
            {
                layer.set(block, Version { lsn, content: Content::Local { place: to, crc } });
                usage.add(self.volume, to);
                usage.remove(self.volume, from);
                return true;
            }
        }
        false
    }

    /// Where the data of `block` at `lsn` is, if a layer has it.
    #[must_use]
    pub fn place_of(&self, block: u32, lsn: Lsn) -> Option<Place> {
        let layers = self.folding.iter().chain([&self.sealed, &self.open]);
        let mut versions = layers.filter_map(|layer| layer.entries.get(&block));
        versions.find(|version| version.lsn == lsn).and_then(|version| version.content.place())
    }

    /// Whether a layer has `block` at `place`.
    #[must_use]
    pub fn holds(&self, block: u32, place: Place) -> bool {
        let layers = self.folding.iter().chain([&self.sealed, &self.open]);
        let mut versions = layers.filter_map(|layer| layer.entries.get(&block));
        versions.any(|version| version.content.place() == Some(place))
    }

    /// Every entry of every layer, for a cleaner that looks for what still lies in a segment.
    pub fn entries(&self) -> impl Iterator<Item = (u32, Version)> + '_ {
        let layers = self.folding.iter().chain([&self.sealed, &self.open]);
        layers.flat_map(|layer| layer.entries.iter().map(|(block, version)| (*block, *version)))
    }

    /// Every layer with what it is, the oldest first.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Layer)> {
        let folding = self.folding.iter().map(|layer| ("folding", layer));
        folding.chain([("sealed", &self.sealed), ("open", &self.open)])
    }

    /// How many blocks have a stale view.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// Whether everything known is applied: new versions of an owner may go straight to the base.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.open.entries.is_empty() && self.sealed.entries.is_empty() && self.sealed_to.is_none()
    }

    /// The end of the sealed delta, if one is sealed.
    #[must_use]
    pub fn sealed_to(&self) -> Option<Lsn> {
        self.sealed_to
    }

    /// Whether the sealed delta lacks nothing.
    #[must_use]
    pub fn sealed_complete(&self) -> bool {
        self.sealed.stale == 0
    }

    /// A newer version of `block` than any layer has: from a manifest, or a write of an owner that is not settled.
    pub fn note(&mut self, block: u32, version: Version, usage: &mut Usage) {
        let view = self.view(block);
        if let Some(view) = view {
            assert!(view.lsn < version.lsn, "block {block}: {} does not follow {}", version.lsn, view.lsn);
        }
        self.stale -= u64::from(view.is_some_and(|view| view.content.is_stale()));
        self.stale += u64::from(version.content.is_stale());
        if let Some(place) = version.content.place() {
            usage.add(self.volume, place);
        }
        if let Some(place) = self.open.set(block, version).and_then(|before| before.content.place()) {
            usage.remove(self.volume, place);
        }
    }

    /// The checksum under which the data of `block` at `lsn` is wanted, if it is.
    #[must_use]
    pub fn wants(&self, block: u32, lsn: Lsn) -> Option<u32> {
        [&self.open, &self.sealed].into_iter().find_map(|layer| match layer.entries.get(&block) {
            Some(Version { lsn: found, content: Content::Stale { crc } }) if *found == lsn => Some(*crc),
            _ => None,
        })
    }

    /// The data of `block` at `lsn` is now at `place`. Returns whether it was wanted.
    pub fn receive(&mut self, block: u32, lsn: Lsn, place: Place, usage: &mut Usage) -> bool {
        let Some(crc) = self.wants(block, lsn) else { return false };
        let view_stale = self.view(block).is_some_and(|view| view.lsn == lsn && view.content.is_stale());
        self.stale -= u64::from(view_stale);
        let version = Version { lsn, content: Content::Local { place, crc } };
        let open = self.open.entries.get(&block).is_some_and(|entry| entry.lsn == lsn);
        let layer = if open { &mut self.open } else { &mut self.sealed };
        layer.set(block, version);
        usage.add(self.volume, place);
        true
    }

    /// Everything known up to `to` becomes the delta to apply next, together with one sealed before.
    pub fn seal(&mut self, to: Lsn, usage: &mut Usage) {
        let fresh = Layer { id: self.fresh_id(), ..Layer::default() };
        let open = std::mem::replace(&mut self.open, fresh);
        if self.sealed.entries.is_empty() {
            self.dropped.push(self.sealed.id);
            self.sealed = open;
        } else {
            for (block, version) in open.entries {
                if let Some(place) = self.sealed.set(block, version).and_then(|before| before.content.place()) {
                    usage.remove(self.volume, place);
                }
            }
            self.dropped.push(open.id);
        }
        self.sealed_to = Some(to);
    }

    /// Moves the sealed delta, which must be complete and end at `to`, below the watermark. Returns whether it did.
    pub fn apply_sealed(&mut self, to: Lsn) -> bool {
        if self.sealed_to != Some(to) || !self.sealed_complete() {
            return false;
        }
        let fresh = Layer { id: self.fresh_id(), ..Layer::default() };
        let sealed = std::mem::replace(&mut self.sealed, fresh);
        self.sealed_to = None;
        self.start_folding(sealed);
        true
    }

    /// On an owner with nothing stale: everything is applied.
    ///
    /// # Panics
    /// If something is stale.
    pub fn settle(&mut self) {
        assert_eq!(self.stale, 0, "an owner with stale blocks is not complete");
        let fresh = Layer { id: self.fresh_id(), ..Layer::default() };
        let mut sealed = std::mem::replace(&mut self.sealed, fresh);
        let fresh = Layer { id: self.fresh_id(), ..Layer::default() };
        let open = std::mem::replace(&mut self.open, fresh);
        // What is stale here is moot: the open layer has a newer version, or the view would be stale.
        let moot: Vec<u32> =
            sealed.entries.iter().filter(|(_, version)| version.content.is_stale()).map(|(block, _)| *block).collect();
        for block in moot {
            assert!(open.entries.contains_key(&block), "block {block} is stale and not moot");
            sealed.take(block);
        }
        self.sealed_to = None;
        self.start_folding(sealed);
        self.start_folding(open);
    }

    /// A newer version of `block` goes straight to the base: what folds must not overwrite it.
    pub fn supersede(&mut self, block: u32, usage: &mut Usage) {
        assert!(self.settled(), "the base takes no writes above layers");
        for layer in &mut self.folding {
            if let Some(place) = layer.take(block).and_then(|before| before.content.place()) {
                usage.remove(self.volume, place);
            }
        }
        self.drop_folded();
    }

    /// Takes up to `max` entries of the oldest folding layer for the base. The places stay counted.
    pub fn fold(&mut self, max: usize) -> Vec<(u32, Version)> {
        let Some(oldest) = self.folding.front_mut() else { return Vec::new() };
        let blocks: Vec<u32> = oldest.entries.keys().take(max).copied().collect();
        let entries =
            blocks.into_iter().filter_map(|block| oldest.take(block).map(|version| (block, version))).collect();
        self.drop_folded();
        entries
    }

    /// Whether anything is to be folded.
    #[must_use]
    pub fn is_folding(&self) -> bool {
        !self.folding.is_empty()
    }

    /// Runs of stale blocks at or after `after`, at most `limit`: of the sealed delta, or of the view.
    #[must_use]
    pub fn missing(&self, sealed_only: bool, after: u32, limit: usize) -> Vec<BlockRun> {
        let mut runs: Vec<BlockRun> = Vec::new();
        let sealed = self.sealed.entries.range(after..).filter(|(block, version)| {
            version.content.is_stale() && (sealed_only || !self.open.entries.contains_key(block))
        });
        let open = self.open.entries.range(after..).filter(|(_, version)| !sealed_only && version.content.is_stale());
        for block in merge_sorted(sealed.map(|(block, _)| *block), open.map(|(block, _)| *block)) {
            let is_full = runs.len() >= limit;
            match runs.last_mut() {
                Some(last) if last.start.0 + last.count == block => last.count += 1,
                _ if is_full => break,
                _ => runs.push(BlockRun { start: BlockIndex(block), count: 1 }),
            }
        }
        runs
    }

    fn start_folding(&mut self, layer: Layer) {
        if layer.entries.is_empty() {
            self.dropped.push(layer.id);
        } else {
            self.folding.push_back(layer);
        }
    }

    fn drop_folded(&mut self) {
        while self.folding.front().is_some_and(|layer| layer.entries.is_empty()) {
            self.dropped.extend(self.folding.pop_front().map(|layer| layer.id));
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }
}

/// Two sorted sequences without common elements as one.
fn merge_sorted(a: impl Iterator<Item = u32>, b: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if x < y => a.next(),
        (Some(_), None) => a.next(),
        _ => b.next(),
    })
}

#[cfg(test)]
mod tests;
