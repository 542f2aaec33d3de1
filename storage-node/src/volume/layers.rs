//! The layers above a volume's base map: what is known but not yet part of the applied prefix.
//!
//! ```text
//!   open      up to `known`                manifests, and an owner's writes while anything is stale
//!   sealed    deltas whose data is being transferred, oldest first; each ends at an LSN
//!   folding   at or before the watermark: applied, on their way into the base in bounded steps, oldest first
//!   base      the map's pages, complete up to the watermark (without what folding still holds)
//! ```
//!
//! A layer that ends at a snapshot is its *barrier*: nothing newer gets into the base before it, and when it has folded
//! the base is what the snapshot shall keep. So a snapshot is known, and can be read, from the moment it is told of, however
//! much of it is still elsewhere. A delta that ends at no snapshot is merged with what is sealed after it; there is at most
//! one, the newest.
//!
//! Invariant: a block's LSN rises from base to open, so the view of a block is the first entry found from the top.
//! Entries that are stale below the top are *moot* when no barrier lies between: nobody waits for them, except a delta that
//! must be applied whole. `stale` counts the blocks whose view is stale and is kept with every change. Pure: it counts
//! references to places in [`Usage`] and leaves the base, and the snapshots in it, to its caller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use client_lib::{BlockIndex, Lsn, SnapshotId, VolumeId};

use crate::map::page::{Content, Entries, NO_ENTRIES, PAGE_ENTRIES, Page, Place, Version};
use crate::map::snapshot::Snapshot;
use crate::map::usage::Usage;
use crate::propagation::manifest::{BlockRun, SnapshotMark};

mod layer;

pub use layer::Layer;

/// Entries of a layer up to which it is merged into the one that folds before it, at once; more would hold up the shard.
const SMALL_LAYER_BLOCKS: u64 = 1024;

/// Blocks of one chunk from which on it is unpacked once, and not searched for each.
pub(super) const MANY: usize = 8;

/// A layer that takes no newer versions.
#[derive(Clone, Debug)]
struct Closed {
    layer: Layer,
    to: Lsn,
    mark: Option<SnapshotMark>,
}

impl Closed {
    fn snapshot(&self) -> Option<Snapshot> {
        self.mark.map(|mark| Snapshot { id: mark.snapshot, lsn: self.to, size: mark.size, is_deleted: false })
    }

    fn is_barrier_of(&self, snapshot: SnapshotId) -> bool {
        self.mark.is_some_and(|mark| mark.snapshot == snapshot)
    }

    fn shape(&self) -> ClosedShape {
        ClosedShape { id: self.layer.id, to: self.to, mark: self.mark }
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

/// A layer that takes no newer versions, for the volume's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedShape {
    /// Its name in the store.
    pub id: u64,
    /// Where it ends.
    pub to: Lsn,
    /// The snapshot that it ends at, if it does.
    pub mark: Option<SnapshotMark>,
}

/// Which layers there are, for the volume's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayersShape {
    /// The id of the next new layer.
    pub next_id: u64,
    /// The open layer.
    pub open: u64,
    /// The sealed layers, oldest first.
    pub sealed: Vec<ClosedShape>,
    /// The folding layers, oldest first.
    pub folding: Vec<ClosedShape>,
}

/// Which stale blocks are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those of the oldest sealed delta, all of them: it is applied whole.
    Sealed,
    /// Those that a reader of the volume would miss.
    Now,
    /// Those that a reader of this snapshot, which is not in the base yet, would miss.
    Snapshot(SnapshotId),
}

/// The layers of a volume.
#[derive(Clone, Debug)]
pub struct Layers {
    volume: VolumeId,
    folding: VecDeque<Closed>,
    sealed: VecDeque<Closed>,
    open: Layer,
    stale: u64,
    next_id: u64,
    dropped: Vec<u64>,
    /// Snapshots that the base has reached.
    reached: Vec<Snapshot>,
}

impl Layers {
    /// No layer holds anything.
    #[must_use]
    pub fn new(volume: VolumeId) -> Layers {
        Layers {
            volume,
            folding: VecDeque::new(),
            sealed: VecDeque::new(),
            open: Layer::new(0),
            stale: 0,
            next_id: 1,
            dropped: Vec::new(),
            reached: Vec::new(),
        }
    }

    /// The layers as a checkpoint kept them; `layer` yields the chunks of each.
    #[must_use]
    pub fn restore(volume: VolumeId, shape: &LayersShape, mut layer: impl FnMut(u64) -> BTreeMap<u32, Page>) -> Layers {
        let mut restored = |id| Layer::restore(id, layer(id));
        let mut closed = |shapes: &[ClosedShape]| -> VecDeque<Closed> {
            let each = shapes.iter().map(|shape| (shape, restored(shape.id)));
            each.map(|(shape, layer)| Closed { layer, to: shape.to, mark: shape.mark }).collect()
        };
        let (folding, sealed) = (closed(&shape.folding), closed(&shape.sealed));
        let open = restored(shape.open);
        let mut layers = Layers { folding, sealed, open, next_id: shape.next_id, ..Layers::new(volume) };
        layers.stale = layers.count_stale();
        layers
    }

    fn count_stale(&self) -> u64 {
        self.missing(Wanted::Now, 0, usize::MAX, u64::MAX).iter().map(|run| u64::from(run.count)).sum()
    }

    /// Which layers there are.
    #[must_use]
    pub fn shape(&self) -> LayersShape {
        LayersShape {
            next_id: self.next_id,
            open: self.open.id,
            sealed: self.sealed.iter().map(Closed::shape).collect(),
            folding: self.folding.iter().map(Closed::shape).collect(),
        }
    }

    /// What changed since the last call.
    pub fn take_delta(&mut self) -> LayersDelta {
        let mut delta = LayersDelta { dropped: std::mem::take(&mut self.dropped), ..LayersDelta::default() };
        for layer in self.each_mut() {
            for chunk in std::mem::take(&mut layer.dirty) {
                delta.chunks.push((layer.id(), chunk, layer.chunk(chunk)));
            }
        }
        delta
    }

    /// Chunks that a checkpoint would write now.
    #[must_use]
    pub fn dirty_chunks(&self) -> usize {
        self.oldest_first().map(|layer| layer.dirty.len()).sum()
    }

    /// Every layer, the oldest first.
    fn oldest_first(&self) -> impl Iterator<Item = &Layer> {
        self.folding.iter().chain(&self.sealed).map(|closed| &closed.layer).chain([&self.open])
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        let closed = self.folding.iter_mut().chain(&mut self.sealed);
        closed.map(|closed| &mut closed.layer).chain([&mut self.open])
    }

    /// The layers that are not applied, the newest first.
    fn upper(&self) -> impl Iterator<Item = &Layer> {
        [&self.open].into_iter().chain(self.sealed.iter().rev().map(|closed| &closed.layer))
    }

    /// The newest entry of `block`; `None` leaves it to the base.
    #[must_use]
    pub fn view(&self, block: u32) -> Option<Version> {
        let upper = self.upper().find_map(|layer| layer.get(block));
        upper.or_else(|| self.applied(block))
    }

    /// The newest entries of a chunk's blocks over those in `seen`, which are the base's.
    pub fn overlay(&self, chunk: u32, seen: &mut Entries) {
        self.each().for_each(|(_, layer)| layer.overlay(chunk, seen));
    }

    /// The newest applied entry of `block`; `None` leaves it to the base.
    #[must_use]
    pub fn applied(&self, block: u32) -> Option<Version> {
        self.folding.iter().rev().find_map(|closed| closed.layer.get(block))
    }

    /// The layers that `snapshot` shows, the newest first; `None` when it is not on its way into the base.
    #[must_use]
    pub fn below(&self, snapshot: SnapshotId) -> Option<Vec<&Layer>> {
        let closed: Vec<&Closed> = self.folding.iter().chain(&self.sealed).collect();
        let at = closed.iter().position(|closed| closed.is_barrier_of(snapshot))?;
        Some(closed[..=at].iter().rev().map(|closed| &closed.layer).collect())
    }

    /// The snapshots on their way into the base, the oldest first.
    pub fn snapshots(&self) -> impl Iterator<Item = Snapshot> + '_ {
        self.folding.iter().chain(&self.sealed).filter_map(Closed::snapshot)
    }

    /// The snapshot that the oldest sealed delta ends at, if it does.
    #[must_use]
    pub fn awaited(&self) -> Option<SnapshotId> {
        self.sealed.front().and_then(|closed| closed.mark).map(|mark| mark.snapshot)
    }

    /// How many blocks a reader of `snapshot` would miss.
    #[must_use]
    pub fn stale_at(&self, snapshot: SnapshotId) -> u64 {
        let sealed_at = self.sealed.iter().position(|closed| closed.is_barrier_of(snapshot));
        let Some(at) = sealed_at else { return 0 };
        if self.sealed.iter().take(at + 1).all(|closed| closed.layer.stale() == 0) {
            return 0;
        }
        let runs = self.missing(Wanted::Snapshot(snapshot), 0, usize::MAX, u64::MAX);
        runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The blocks from `first` to `last` that any layer has an entry of.
    #[must_use]
    pub fn blocks(&self, first: u32, last: u32) -> BTreeSet<u32> {
        self.oldest_first().flat_map(|layer| layer.blocks(first, last)).collect()
    }

    /// The data of `block` at `from` was copied to `to`. Returns whether a layer has it.
    pub fn relocate(&mut self, block: u32, from: Place, to: Place, usage: &mut Usage) -> bool {
        let volume = self.volume;
        for layer in self.each_mut() {
            if let Some(Version { lsn, content: Content::Local { place, crc } }) = layer.get(block)
                && place == from
            {
                layer.set(block, Version { lsn, content: Content::Local { place: to, crc } });
                usage.add(volume, to);
                usage.remove(volume, from);
                return true;
            }
        }
        false
    }

    /// Where the data of `block` at `lsn` is, if a layer has it.
    #[must_use]
    pub fn place_of(&self, block: u32, lsn: Lsn) -> Option<Place> {
        let mut versions = self.oldest_first().filter_map(|layer| layer.get(block));
        versions.find(|version| version.lsn == lsn).and_then(|version| version.content.place())
    }

    /// The version of `block` at `lsn`, if a layer has it with what it holds.
    #[must_use]
    pub fn held(&self, block: u32, lsn: Lsn) -> Option<Version> {
        let mut versions = self.oldest_first().filter_map(|layer| layer.get(block));
        versions.find(|version| version.lsn == lsn && !version.content.is_stale())
    }

    /// The version of `block` that is lacking as `wanted` has it, and its checksum. Not told of snapshots.
    #[must_use]
    pub fn lacks(&self, wanted: Wanted, block: u32) -> Option<(Lsn, u32)> {
        let version = match wanted {
            Wanted::Sealed => self.sealed.front().and_then(|closed| closed.layer.get(block)),
            Wanted::Now => self.view(block),
            Wanted::Snapshot(_) => None,
        };
        version.and_then(|version| match version.content {
            Content::Stale { crc } => Some((version.lsn, crc)),
            _ => None,
        })
    }

    /// A version of `block` with this checksum, if a layer has one with its data: the newest.
    #[must_use]
    pub fn alike(&self, block: u32, crc: u32) -> Option<Version> {
        let versions = self.oldest_first().filter_map(|layer| layer.get(block));
        versions.filter(|version| version.content.place().is_some() && version.content.crc() == Some(crc)).last()
    }

    /// Whether a layer has `block` at `place`.
    #[must_use]
    pub fn holds(&self, block: u32, place: Place) -> bool {
        let mut versions = self.oldest_first().filter_map(|layer| layer.get(block));
        versions.any(|version| version.content.place() == Some(place))
    }

    /// Every entry of every layer, for a cleaner that looks for what still lies in a segment.
    pub fn entries(&self) -> impl Iterator<Item = (u32, Version)> + '_ {
        self.oldest_first().flat_map(Layer::iter)
    }

    /// The first page at or after `page` in which a layer that has data here has an entry.
    #[must_use]
    pub fn next_page(&self, page: u32) -> Option<u32> {
        let with_data = self.oldest_first().filter(|layer| layer.local() > 0);
        with_data.filter_map(|layer| layer.next_chunk(page)).min()
    }

    /// Every entry on `page` that has its data here, of the oldest layer first.
    #[must_use]
    pub fn local_of_page(&self, page: u32) -> Vec<(u32, Version)> {
        let (first, last) = (page * PAGE_ENTRIES, page * PAGE_ENTRIES + (PAGE_ENTRIES - 1));
        let entries = self.oldest_first().flat_map(|layer| layer.range(first, last));
        entries.filter(|(_, version)| version.content.place().is_some()).collect()
    }

    /// Every layer with what it is, the oldest first.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Layer)> {
        let folding = self.folding.iter().map(|closed| ("folding", &closed.layer));
        let sealed = self.sealed.iter().map(|closed| ("sealed", &closed.layer));
        folding.chain(sealed).chain([("open", &self.open)])
    }

    /// How many blocks have a stale view.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// How many blocks are here in a version that is not applied yet.
    #[must_use]
    pub fn unapplied(&self) -> u64 {
        self.upper().map(Layer::local).sum()
    }

    /// How many versions are wanted from elsewhere: for the view, and for snapshots.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        let barriers = self.sealed.iter().filter(|closed| closed.mark.is_some());
        let below: u64 = barriers.map(|closed| closed.layer.stale()).sum();
        if below == 0 {
            return self.stale;
        }
        let is_moot = |block: &u32| self.open.has(*block);
        let last = self.sealed.back().filter(|closed| closed.mark.is_none());
        let sealed = last.map_or(0, |closed| closed.layer.stale_from(0).filter(|block| !is_moot(block)).count() as u64);
        below + sealed + self.open.stale()
    }

    /// Whether everything known is in the base or on its way there with no snapshot before it: new versions of an owner may
    /// go straight to the base.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.open.is_empty() && self.sealed.is_empty() && !self.has_barrier_folding()
    }

    fn has_barrier_folding(&self) -> bool {
        self.folding.iter().any(|closed| closed.mark.is_some())
    }

    /// The end of the oldest sealed delta, if one is sealed.
    #[must_use]
    pub fn sealed_to(&self) -> Option<Lsn> {
        self.sealed.front().map(|closed| closed.to)
    }

    /// The end of the newest sealed delta, if one is sealed.
    #[must_use]
    pub fn sealed_end(&self) -> Option<Lsn> {
        self.sealed.back().map(|closed| closed.to)
    }

    /// Whether the oldest sealed delta lacks nothing.
    #[must_use]
    pub fn sealed_complete(&self) -> bool {
        self.sealed.front().is_none_or(|closed| closed.layer.stale() == 0)
    }

    /// A newer version of `block` than any layer has: from a manifest, or a write of an owner that is not settled.
    pub fn note(&mut self, block: u32, version: Version, usage: &mut Usage) {
        let view = self.view(block);
        if let Some(view) = view.filter(|view| !view.is_unknown()) {
            assert!(view.lsn < version.lsn, "block {block}: {} does not follow {}", version.lsn, view.lsn);
        }
        self.show(view, version, usage);
        if let Some(place) = self.open.set(block, version).and_then(|before| before.content.place()) {
            usage.remove(self.volume, place);
        }
    }

    /// Counts `version` as what is seen of a block, in place of `view`.
    fn show(&mut self, view: Option<Version>, version: Version, usage: &mut Usage) {
        self.stale -= u64::from(view.is_some_and(|view| view.content.is_stale()));
        self.stale += u64::from(version.content.is_stale());
        if let Some(place) = version.content.place() {
            usage.add(self.volume, place);
        }
    }

    /// As [`note`](Self::note), of those of `told` that are newer than what any layer has; returns the others. All are of one chunk, by rising
    /// block. What costs most, looking at a chunk and packing it anew, is done once for many.
    pub fn note_newer(&mut self, told: &[(u32, Version)], usage: &mut Usage) -> Vec<(u32, Version)> {
        let Some((first, _)) = told.first() else { return Vec::new() };
        let chunk = first / PAGE_ENTRIES;
        let views: Vec<Option<Version>> = if told.len() < MANY {
            told.iter().map(|(block, _)| self.view(*block)).collect()
        } else {
            let mut seen = NO_ENTRIES;
            self.overlay(chunk, &mut seen);
            told.iter().map(|(block, _)| seen[(block % PAGE_ENTRIES) as usize]).collect()
        };
        let (mut newer, mut others) = (Vec::with_capacity(told.len()), Vec::new());
        for ((block, version), view) in told.iter().zip(views) {
            assert_eq!(block / PAGE_ENTRIES, chunk, "of one chunk");
            if view.is_some_and(|view| view.lsn >= version.lsn) {
                others.push((*block, *version));
                continue;
            }
            self.show(view, *version, usage);
            newer.push((*block, *version));
        }
        if newer.is_empty() {
            return others;
        }
        let before = self.open.set_many(chunk, &newer);
        let places = before.iter().flatten().filter_map(|before| before.content.place());
        places.for_each(|place| usage.remove(self.volume, place));
        others
    }

    /// The checksum under which the data of `block` at `lsn` is wanted, if it is.
    #[must_use]
    pub fn wants(&self, block: u32, lsn: Lsn) -> Option<u32> {
        self.upper().find_map(|layer| match layer.get(block) {
            Some(Version { lsn: found, content: Content::Stale { crc } }) if found == lsn => Some(crc),
            _ => None,
        })
    }

    /// The data of `block` at `lsn` is now at `place`. Returns whether it was wanted.
    pub fn receive(&mut self, block: u32, lsn: Lsn, place: Place, usage: &mut Usage) -> bool {
        let Some(crc) = self.wants(block, lsn) else { return false };
        let volume = self.volume;
        let view_stale = self.view(block).is_some_and(|view| view.lsn == lsn && view.content.is_stale());
        self.stale -= u64::from(view_stale);
        // One that is applied may have this version, too, of a history that was gone back on: its data stays where it is.
        let wanted =
            |layer: &&mut Layer| layer.get(block).is_some_and(|entry| entry.lsn == lsn && entry.content.is_stale());
        let sealed = self.sealed.iter_mut().map(|closed| &mut closed.layer);
        if let Some(layer) = sealed.chain([&mut self.open]).find(wanted) {
            layer.set(block, Version { lsn, content: Content::Local { place, crc } });
            usage.add(volume, place);
        }
        true
    }

    /// Everything known up to `to` becomes a delta to apply, together with one sealed before that ends at no snapshot.
    pub fn seal(&mut self, to: Lsn, usage: &mut Usage) {
        let fresh = Layer::new(self.fresh_id());
        let open = std::mem::replace(&mut self.open, fresh);
        match self.sealed.back_mut().filter(|last| last.mark.is_none()) {
            Some(last) if last.layer.is_empty() => {
                self.dropped.push(last.layer.id);
                *last = Closed { layer: open, to, mark: None };
            }
            Some(last) => {
                self.dropped.push(open.id);
                last.to = to;
                cover(self.volume, &mut last.layer, open, usage);
            }
            None => self.sealed.push_back(Closed { layer: open, to, mark: None }),
        }
    }

    /// As [`seal`](Self::seal), at a snapshot.
    pub fn seal_at(&mut self, snapshot: Snapshot, usage: &mut Usage) {
        self.seal(snapshot.lsn, usage);
        if let Some(last) = self.sealed.back_mut() {
            last.mark = Some(SnapshotMark { snapshot: snapshot.id, size: snapshot.size });
        }
    }

    /// The snapshot, which may be on its way into the base, is not needed any more.
    pub fn forget_snapshot(&mut self, snapshot: SnapshotId, usage: &mut Usage) {
        if let Some(closed) = self.folding.iter_mut().find(|closed| closed.is_barrier_of(snapshot)) {
            closed.mark = None;
        }
        let Some(at) = self.sealed.iter().position(|closed| closed.is_barrier_of(snapshot)) else { return };
        self.sealed[at].mark = None;
        if let Some(newer) = self.sealed.remove(at + 1) {
            let Closed { layer, to, mark } = newer;
            self.dropped.push(layer.id);
            let older = &mut self.sealed[at];
            (older.to, older.mark) = (to, mark);
            cover(self.volume, &mut older.layer, layer, usage);
        }
    }

    /// Moves the oldest sealed delta, which must be complete and end at `to`, below the watermark. Returns whether it did.
    pub fn apply_sealed(&mut self, to: Lsn, usage: &mut Usage) -> bool {
        if self.sealed_to() != Some(to) || !self.sealed_complete() {
            return false;
        }
        if let Some(sealed) = self.sealed.pop_front() {
            self.start_folding(sealed, usage);
        }
        true
    }

    /// On an owner: applies what is complete, up to everything, which ends at `known`. Returns up to where it is complete
    /// now, if that is further than it was.
    pub fn settle(&mut self, known: Lsn, usage: &mut Usage) -> Option<Lsn> {
        let mut reached = None;
        while self.awaited().is_some() && self.sealed_complete() {
            reached = self.sealed_to();
            if let Some(sealed) = self.sealed.pop_front() {
                self.start_folding(sealed, usage);
            }
        }
        if self.awaited().is_some() || self.stale > 0 {
            return reached;
        }
        if !(self.open.is_empty() && self.sealed.is_empty()) {
            self.fold_all(known, usage);
        }
        Some(known)
    }

    fn fold_all(&mut self, known: Lsn, usage: &mut Usage) {
        let fresh = Layer::new(self.fresh_id());
        let open = std::mem::replace(&mut self.open, fresh);
        if let Some(mut sealed) = self.sealed.pop_front() {
            // What is stale here is moot: the open layer has a newer version, or the view would be stale.
            sealed.layer.drop_stale(|block| assert!(open.has(block), "block {block} is stale and not moot"));
            self.start_folding(sealed, usage);
        }
        self.start_folding(Closed { layer: open, to: known, mark: None }, usage);
    }

    /// A newer version of `block` goes straight to the base: what folds must not overwrite it.
    pub fn supersede(&mut self, block: u32, usage: &mut Usage) {
        assert!(self.settled(), "the base takes no writes above layers");
        for closed in &mut self.folding {
            if let Some(place) = closed.layer.take(block).and_then(|before| before.content.place()) {
                usage.remove(self.volume, place);
            }
        }
        self.drop_folded();
    }

    /// How many blocks are here in a version that is none of the volume's, and which one is meant is not known yet.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.open.unknown()
    }

    /// Whether it is not known which version of `block` is meant.
    #[must_use]
    pub fn is_unknown(&self, block: u32) -> bool {
        self.open.unknown() > 0 && self.open.get(block).is_some_and(|version| version.is_unknown())
    }

    /// What is here of `block` is none of the volume's versions. Nothing but applied layers lies below.
    pub fn make_unknown(&mut self, block: u32) {
        debug_assert!(self.sealed.is_empty(), "whoever makes blocks unknown drops what is sealed");
        self.stale += u64::from(self.open.set(block, Version::UNKNOWN).is_none_or(|before| !before.content.is_stale()));
    }

    /// The version of `block` that `lsn` wrote is meant, and nothing newer. Returns whether an applied layer has it, or else it is to be had from the
    /// base.
    pub fn take_back(&mut self, block: u32, lsn: Lsn, usage: &mut Usage) -> bool {
        let before = self.open.take(block);
        self.stale -= u64::from(before.is_some_and(|before| before.content.is_stale()));
        for closed in &mut self.folding {
            if closed.layer.get(block).is_some_and(|version| version.lsn > lsn)
                && let Some(place) = closed.layer.take(block).and_then(|before| before.content.place())
            {
                usage.remove(self.volume, place);
            }
        }
        let is_here = self.applied(block).is_some();
        self.drop_folded();
        is_here
    }

    /// Drops everything that is not applied, and tells which blocks that was.
    pub fn drop_unapplied(&mut self, usage: &mut Usage) -> BTreeSet<u32> {
        let blocks = self.upper().flat_map(|layer| layer.iter().map(|(block, _)| block)).collect();
        self.drop_above(0, usage);
        blocks
    }

    /// Drops what is known beyond `to`, which is not before the watermark, and returns the end of what is known then; `None`
    /// when that is the watermark. The open layer goes whole: it has no version of `to` where it has a newer one.
    pub fn rewind(&mut self, to: Lsn, usage: &mut Usage) -> Option<Lsn> {
        let kept = self.sealed.iter().take_while(|closed| closed.to <= to).count();
        self.drop_above(kept, usage);
        self.sealed_end()
    }

    /// Drops the open layer, and all sealed ones but the first `kept`.
    fn drop_above(&mut self, kept: usize, usage: &mut Usage) {
        let fresh = Layer::new(self.fresh_id());
        let open = std::mem::replace(&mut self.open, fresh);
        let gone = self.sealed.split_off(kept).into_iter().map(|closed| closed.layer).chain([open]);
        for layer in gone {
            self.dropped.push(layer.id);
            for place in layer.iter().filter_map(|(_, version)| version.content.place()) {
                usage.remove(self.volume, place);
            }
        }
        self.stale = self.count_stale();
    }

    /// Takes up to `max` entries of the oldest folding layer for the base. The places stay counted.
    pub fn fold(&mut self, max: usize) -> Vec<(u32, Version)> {
        let Some(oldest) = self.folding.front_mut() else { return Vec::new() };
        let entries = oldest.layer.take_first(max);
        self.drop_folded();
        entries
    }

    /// The snapshots that the base is to keep now, after everything that [`fold`](Self::fold) yielded and nothing else.
    pub fn take_reached(&mut self) -> Vec<Snapshot> {
        std::mem::take(&mut self.reached)
    }

    /// Whether anything is to be folded.
    #[must_use]
    pub fn is_folding(&self) -> bool {
        !self.folding.is_empty()
    }

    /// Runs of stale blocks at or after `after`, at most `limit`, of about `blocks` blocks together: who wants more goes on behind the last.
    #[must_use]
    pub fn missing(&self, wanted: Wanted, after: u32, limit: usize, blocks: u64) -> Vec<BlockRun> {
        let layers = match wanted {
            Wanted::Sealed => self.sealed.front().map(|closed| &closed.layer).into_iter().collect(),
            Wanted::Now => self.upper().collect(),
            Wanted::Snapshot(snapshot) => self.below(snapshot).unwrap_or_default(),
        };
        let mut stale: Vec<_> = layers.iter().map(|layer| layer.stale_from(after).peekable()).collect();
        let (mut runs, mut left): (Vec<BlockRun>, u64) = (Vec::new(), blocks);
        while let Some(block) = stale.iter_mut().filter_map(|blocks| blocks.peek().copied()).min() {
            let newest = stale.iter_mut().position(|blocks| blocks.peek() == Some(&block)).unwrap_or_default();
            for blocks in &mut stale {
                blocks.next_if_eq(&block);
            }
            if layers[..newest].iter().any(|layer| layer.has(block)) {
                continue;
            }
            let is_full = runs.len() >= limit;
            let Some(rest) = left.checked_sub(1) else { break };
            left = rest;
            match runs.last_mut() {
                Some(last) if last.end() == Some(BlockIndex(block)) => last.count += 1,
                _ if is_full => break,
                _ => runs.push(BlockRun { start: BlockIndex(block), count: 1 }),
            }
        }
        runs
    }

    fn start_folding(&mut self, closed: Closed, usage: &mut Usage) {
        match self.folding.back_mut().filter(|last| last.mark.is_none()) {
            // As when an owner writes while a snapshot below folds.
            Some(last) if closed.layer.len() <= SMALL_LAYER_BLOCKS => {
                (last.to, last.mark) = (closed.to, closed.mark);
                self.dropped.push(closed.layer.id);
                cover(self.volume, &mut last.layer, closed.layer, usage);
            }
            _ => self.folding.push_back(closed),
        }
        self.drop_folded();
    }

    fn drop_folded(&mut self) {
        while let Some(folded) = self.folding.pop_front_if(|closed| closed.layer.is_empty()) {
            self.dropped.push(folded.layer.id);
            self.reached.extend(folded.snapshot());
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }
}

/// Puts the versions of `newer` over those of `older`.
fn cover(volume: VolumeId, older: &mut Layer, newer: Layer, usage: &mut Usage) {
    older.cover(newer, |place| usage.remove(volume, place));
}

#[cfg(test)]
mod tests;
