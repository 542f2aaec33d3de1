//! A volume in a shard: what its log entries do to its state, live and in recovery alike.
//!
//! [`Volume`] is the whole persistent state of a volume except its base map. Every change goes through one of the
//! `apply_*` methods, in the order of the log, so that replaying the log from a checkpoint gives the state that the
//! process had: they decide from the state and the entry alone. No I/O but page look-ups, no clock, no replies.
//!
//! [`layers`] holds what is known above the base, [`changes`] the change history, [`pins`] the sealed deltas of an
//! owner (in memory only), [`ledger`] who writes from afar, [`rollback`] how it becomes a snapshot again, [`clone`] how it
//! begins as another volume's, `rewind` what a takeover cuts off, [`rejoin`] how a node comes back after that,
//! [`initial`] how it comes to a node that has nothing, [`resident`] how much of it is here, [`record`] the encoding for the map store.

pub mod changes;
pub mod clone;
pub mod initial;
pub mod layers;
pub mod ledger;
pub mod pins;
pub mod record;
pub mod rejoin;
pub mod resident;
mod rewind;
pub mod rollback;
pub mod tally;

use std::collections::{BTreeMap, BTreeSet};

use client_lib::geometry::BLOCKS_MAX;
use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::map::page::{Content, NO_ENTRIES, PAGE_ENTRIES, Place, Version};
use crate::map::snapshot::{Snapshot, Snapshots};
use crate::map::store::MapError;
use crate::map::{Map, MapKey};
use crate::propagation::manifest::{Manifest, ManifestRun, RunContent, SnapshotMark};
use crate::shard::handle::Role;
use changes::Changes;
use clone::Filling;
use initial::InitialSync;
use layers::{Layer, Layers, MANY};
use ledger::Ledger;
use pins::{Pinned, Pins};
use rollback::Rollback;
use tally::Tally;

/// Blocks that are looked at at once where most of them are not meant.
const MAPPED_AT_ONCE: usize = 1 << 16;

/// Blocks with their versions, in order.
pub type Mapped = Vec<(u32, Version)>;

/// Which moment of a volume is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    /// The newest that is known.
    Now,
    /// As this snapshot, which must exist, has it.
    Snapshot(SnapshotId),
}

/// A volume's state as of the last applied log entry.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Which volume.
    pub id: VolumeId,
    /// Its size.
    pub size: VolumeSize,
    /// What this node is to it.
    pub role: Role,
    /// Under which ownership.
    pub epoch: Epoch,
    /// Up to where this node knows what changed; on an owner the newest applied write.
    pub known: Lsn,
    /// What is known above the base.
    pub layers: Layers,
    /// Which blocks changed when.
    pub changes: Changes,
    /// The deltas being sent.
    pub pins: Pins,
    /// The snapshots in the base. Others are on their way into it, in the layers.
    pub snapshots: Snapshots,
    /// Who writes it from afar.
    pub ledger: Ledger,
    /// The rollback under way; until it is done only its steps may look at the volume.
    pub rollback: Option<Rollback>,
    /// Where the rest of its pages come from; until it has them only the steps may look at the volume.
    pub filling: Option<Filling>,
    /// What the owner has written.
    pub tally: Tally,
    /// Whose clone it is, and whose that is, the first of them first.
    ancestors: Vec<VolumeId>,
    watermark: Lsn,
    /// The newest write that was made here, as the owner.
    written: Lsn,
    /// Of which position the base is, but for what the layers have, when this node is on its way back to the volume.
    rejoin: Option<Lsn>,
    /// How far the initial sync of this node has come.
    initial: Option<InitialSync>,
    /// Where the part of the initial sync ends that is sealed, if it is not the last.
    part: Option<u32>,
    /// The runs of a manifest that comes in several entries, until the last one; or what is left of one whose last never came.
    partial: Vec<ManifestRun>,
}

impl AsMut<Volume> for Volume {
    fn as_mut(&mut self) -> &mut Volume {
        self
    }
}

impl Volume {
    /// A volume that was never written.
    #[must_use]
    pub fn new(id: VolumeId, size: VolumeSize) -> Volume {
        Volume {
            id,
            size,
            role: Role::Replica,
            epoch: Epoch(0),
            known: Lsn::ZERO,
            layers: Layers::new(id),
            changes: Changes::default(),
            pins: Pins::default(),
            snapshots: Snapshots::default(),
            ledger: Ledger::default(),
            rollback: None,
            filling: None,
            tally: Tally::default(),
            ancestors: Vec::new(),
            watermark: Lsn::ZERO,
            written: Lsn::ZERO,
            rejoin: None,
            initial: None,
            part: None,
            partial: Vec::new(),
        }
    }

    /// Up to where this node holds a complete prefix.
    #[must_use]
    pub fn watermark(&self) -> Lsn {
        self.watermark
    }

    /// The last block.
    #[must_use]
    pub fn last_block(&self) -> u32 {
        (self.size.blocks() - 1) as u32
    }

    /// The live map, and those of the snapshots from the newest on.
    pub fn maps(&self) -> impl Iterator<Item = MapKey> + '_ {
        let snapshots = self.snapshots.iter().rev().map(|snapshot| MapKey { volume: self.id, snapshot: snapshot.id });
        std::iter::once(self.id.into()).chain(snapshots)
    }

    /// The newest known version of `block`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn view(&self, block: u32, map: &mut Map) -> Result<Option<Version>, MapError> {
        match self.layers.view(block) {
            Some(version) => Ok(Some(version)),
            None => map.cache.version(self.id, block),
        }
    }

    /// The version of `block` in the delta `pin`; `None` when that, or the block in it, does not exist.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn pinned(&self, pin: u64, block: u32, map: &mut Map) -> Result<Option<Version>, MapError> {
        match self.pins.find(pin, block) {
            None => Ok(None),
            Some(Pinned::Kept(version)) => Ok(Some(version)),
            Some(Pinned::Open(from)) => Ok(self.view(block, map)?.filter(|version| version.lsn > from)),
        }
    }

    /// The version of `block` in the applied prefix.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn applied_view(&self, block: u32, map: &mut Map) -> Result<Option<Version>, MapError> {
        match self.layers.applied(block) {
            Some(version) => Ok(Some(version)),
            None => map.cache.version(self.id, block),
        }
    }

    /// The snapshot `id`, whether it is complete here or not.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<Snapshot> {
        self.snapshots.find(id).copied().or_else(|| self.layers.snapshots().find(|snapshot| snapshot.id == id))
    }

    /// Every snapshot, the oldest first.
    pub fn all_snapshots(&self) -> impl Iterator<Item = Snapshot> + '_ {
        let in_base = self.snapshots.iter().filter(|snapshot| !snapshot.is_deleted).copied();
        in_base.chain(self.layers.snapshots())
    }

    /// The newest snapshot that is known here; 0 when there is none.
    #[must_use]
    pub fn newest_snapshot(&self) -> SnapshotId {
        let in_base = self.snapshots.iter().next_back().map(|snapshot| snapshot.id);
        self.layers.snapshots().last().map(|snapshot| snapshot.id).or(in_base).unwrap_or_default()
    }

    /// The version of each block from `first` to `last`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn versions(
        &self,
        moment: Moment,
        first: u32,
        last: u32,
        map: &mut Map,
    ) -> Result<Vec<(u32, Option<Version>)>, MapError> {
        let mut versions = Vec::with_capacity((last - first + 1) as usize);
        let Moment::Snapshot(id) = moment else {
            for block in first..=last {
                versions.push((block, self.view(block, map)?));
            }
            return Ok(versions);
        };
        if let Some(layers) = self.layers.below(id) {
            for block in first..=last {
                versions.push((block, self.version_in(&layers, block, map)?));
            }
            return Ok(versions);
        }
        for number in first / PAGE_ENTRIES..=last / PAGE_ENTRIES {
            let page = map.snapshot_page(self.id, &self.snapshots, id, number)?;
            let version = |block: u32| page.as_ref().and_then(|page| page.entry((block % PAGE_ENTRIES) as u8));
            let (start, end) = (number * PAGE_ENTRIES, number * PAGE_ENTRIES + (PAGE_ENTRIES - 1));
            versions.extend((start.max(first)..=end.min(last)).map(|block| (block, version(block))));
        }
        Ok(versions)
    }

    /// The version of `block` at `lsn`, if it is here: in a layer, in the base, or, of a snapshot, in that.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn named(&self, moment: Moment, block: u32, lsn: Lsn, map: &mut Map) -> Result<Option<Version>, MapError> {
        if let Some(version) = self.layers.held(block, lsn) {
            return Ok(Some(version));
        }
        let is_it = |version: &Version| version.lsn == lsn && !version.content.is_stale();
        let base = map.cache.version(self.id, block)?.filter(is_it);
        let is_known = |id: SnapshotId| self.snapshot(id).is_some();
        match moment {
            Moment::Snapshot(id) if base.is_none() && is_known(id) => {
                let versions = self.versions(moment, block, block, map)?;
                Ok(versions.into_iter().find_map(|(_, version)| version.filter(is_it)))
            }
            _ => Ok(base),
        }
    }

    /// A version of `block` with this checksum whose data is here, in a layer or in the base.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn alike(&self, block: u32, crc: u32, map: &mut Map) -> Result<Option<Version>, MapError> {
        if let Some(version) = self.layers.alike(block, crc) {
            return Ok(Some(version));
        }
        let base = map.cache.version(self.id, block)?;
        Ok(base.filter(|version| version.content.place().is_some() && version.content.crc() == Some(crc)))
    }

    /// Blocks from `first` to `last` that have any version, with that version, in order.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn mapped(
        &self,
        moment: Moment,
        first: u32,
        last: u32,
        map: &mut Map,
    ) -> Result<Vec<(u32, Version)>, MapError> {
        Ok(self.mapped_some(moment, first, last, usize::MAX, map)?.0)
    }

    /// Mapped blocks up to `last` with a version after `from`; of others no more than [`MAPPED_AT_ONCE`] are in memory at a time.
    fn mapped_after(
        &self,
        moment: Moment,
        from: Lsn,
        last: u32,
        map: &mut Map,
    ) -> Result<Vec<(u32, Version)>, MapError> {
        let (mut changed, mut next) = (Vec::new(), Some(0));
        while let Some(first) = next.filter(|first| *first <= last) {
            let (some, end) = self.mapped_some(moment, first, last, MAPPED_AT_ONCE, map)?;
            changed.extend(some.into_iter().filter(|(_, version)| version.lsn > from));
            next = end;
        }
        Ok(changed)
    }

    /// As [`mapped`](Self::mapped), but no more than `most`, which is above zero; and the block to go on at, if there are others.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn mapped_some(
        &self,
        moment: Moment,
        first: u32,
        last: u32,
        most: usize,
        map: &mut Map,
    ) -> Result<(Mapped, Option<u32>), MapError> {
        let layers: Vec<&Layer> = match moment {
            Moment::Now => self.layers.each().map(|(_, layer)| layer).collect(),
            Moment::Snapshot(id) => self.layers.below(id).unwrap_or_default(),
        };
        let maps: Vec<MapKey> = match moment {
            Moment::Snapshot(id) if self.snapshots.find(id).is_some() => self
                .maps()
                .take_while(|key| key.snapshot != id)
                .chain([MapKey { volume: self.id, snapshot: id }])
                .collect(),
            _ => vec![self.id.into()],
        };
        let next_of = |from: u32, map: &Map| {
            let in_maps = maps.iter().filter_map(|key| map.cache.next_page(*key, from)).min();
            let in_layers = layers.iter().filter_map(|layer| layer.next_chunk(from)).min();
            in_maps.into_iter().chain(in_layers).min()
        };
        let (mut versions, mut further) = (Vec::new(), None);
        let mut next = Some(first / PAGE_ENTRIES);
        while let Some(page) = next.and_then(|page| next_of(page, map)).filter(|page| *page <= last / PAGE_ENTRIES) {
            let base = page * PAGE_ENTRIES;
            if versions.len() >= most {
                further = Some(base);
                break;
            }
            let entries = match moment {
                Moment::Snapshot(id) if maps.len() > 1 => map.snapshot_page(self.id, &self.snapshots, id, page)?,
                _ => map.cache.page(self.id, page)?.cloned(),
            };
            let (from, to) = (base.max(first), (base + (PAGE_ENTRIES - 1)).min(last));
            let below = entries.iter().flat_map(|page| page.iter());
            let below = below.map(|(index, version)| (base + u32::from(index), version));
            let below = below.filter(|(block, _)| (from..=to).contains(block));
            let mut on_page: BTreeSet<u32> = layers.iter().flat_map(|layer| layer.blocks(from, to)).collect();
            if on_page.is_empty() {
                versions.extend(below);
            } else {
                on_page.extend(below.map(|(block, _)| block));
                versions.extend(self.versions_of(moment, on_page.into_iter(), map)?);
            }
            next = page.checked_add(1).filter(|page| *page <= u32::MAX / PAGE_ENTRIES);
        }
        let end = versions.get(most).map(|(block, _)| *block).or(further);
        versions.truncate(most);
        Ok((versions, end))
    }

    /// The versions of those of `blocks`, in order, that have one.
    fn versions_of(
        &self,
        moment: Moment,
        blocks: impl Iterator<Item = u32>,
        map: &mut Map,
    ) -> Result<Vec<(u32, Version)>, MapError> {
        let layers = match moment {
            Moment::Now => None,
            Moment::Snapshot(id) => self.layers.below(id),
        };
        let mut versions = Vec::with_capacity(blocks.size_hint().0);
        for blocks in by_chunk(blocks, |block| *block) {
            if moment == Moment::Now && blocks.len() >= MANY {
                let page = blocks[0] / PAGE_ENTRIES;
                let base = map.cache.page(self.id, page)?;
                let mut seen = base.map_or(NO_ENTRIES, |page| page.entries());
                self.layers.overlay(page, &mut seen);
                let version = |block: u32| Some((block, seen[(block % PAGE_ENTRIES) as usize]?));
                versions.extend(blocks.into_iter().filter_map(version));
                continue;
            }
            for block in blocks {
                let version = match (moment, &layers) {
                    (Moment::Now, _) => self.view(block, map)?,
                    (Moment::Snapshot(_), Some(layers)) => self.version_in(layers, block, map)?,
                    (Moment::Snapshot(id), None) => {
                        let page = map.snapshot_page(self.id, &self.snapshots, id, block / PAGE_ENTRIES)?;
                        page.and_then(|page| page.entry((block % PAGE_ENTRIES) as u8))
                    }
                };
                versions.extend(version.map(|version| (block, version)));
            }
        }
        Ok(versions)
    }

    /// The first version of `block` in `layers`, or the base's: which has nothing newer than a snapshot that is on its way
    /// into it.
    fn version_in(&self, layers: &[&Layer], block: u32, map: &mut Map) -> Result<Option<Version>, MapError> {
        match layers.iter().find_map(|layer| layer.get(block)) {
            Some(version) => Ok(Some(version)),
            None => map.cache.version(self.id, block),
        }
    }

    /// The version of every block that changed after `from`, in block order. Reaches back by every mapped block when the
    /// history does not.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn changed_since(&self, moment: Moment, from: Lsn, map: &mut Map) -> Result<Mapped, MapError> {
        // Also beyond the end: what a shrink dropped must be dropped everywhere.
        self.changed_up_to(moment, from, u32::MAX, map)
    }

    /// The same of the blocks up to `last`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn changed_up_to(&self, moment: Moment, from: Lsn, last: u32, map: &mut Map) -> Result<Mapped, MapError> {
        let Some(blocks) = self.changes.since(from) else { return self.mapped_after(moment, from, last, map) };
        let mut changed = self.versions_of(moment, blocks.into_iter().take_while(|block| *block <= last), map)?;
        changed.retain(|(_, version)| version.lsn > from);
        Ok(changed)
    }

    /// The version of every block that changed after `from`, and of those of `also`, in block order. Of the latter one that was never
    /// written is told as zeroes.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn changed_since_and(
        &self,
        moment: Moment,
        from: Lsn,
        also: &RoaringBitmap,
        map: &mut Map,
    ) -> Result<Vec<(u32, Version)>, MapError> {
        const NEVER_WRITTEN: Version = Version { lsn: Lsn::ZERO, content: Content::Zero };
        let changed = self.changed_since(moment, from, map)?;
        if also.is_empty() {
            // As it is for every replica but one that comes back.
            return Ok(changed);
        }
        let mut versions: BTreeMap<u32, Version> = also.iter().map(|block| (block, NEVER_WRITTEN)).collect();
        versions.extend(self.versions_of(moment, also.iter(), map)?);
        versions.extend(changed);
        Ok(versions.into_iter().collect())
    }

    /// A write left these checksums in the blocks from `start`; their data lies at `place` and after it.
    ///
    /// # Errors
    /// When a page cannot be read; the state is then between two entries and good for nothing.
    pub fn apply_write(
        &mut self,
        lsn: Lsn,
        start: u32,
        checksums: &[u32],
        place: Place,
        map: &mut Map,
    ) -> Result<(), MapError> {
        assert!(lsn > self.known, "write {lsn} of volume {} does not follow {}", self.id, self.known);
        let version = |(index, crc): (u32, &u32)| {
            let place = Place { segment: place.segment, block: place.block + index };
            Version { lsn, content: Content::Local { place, crc: *crc } }
        };
        let versions: Vec<Version> = (0u32..).zip(checksums).map(version).collect();
        self.put(start, &versions, map)?;
        self.changes.record(lsn, (0u32..).zip(checksums).map(|(index, _)| start + index));
        (self.known, self.written) = (lsn, lsn);
        self.tally.blocks += checksums.len() as u64;
        self.settle_owner(map);
        Ok(())
    }

    /// A write left zeroes in `count` blocks from `start`. What reads as zeroes already is not touched.
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn apply_zero(&mut self, lsn: Lsn, start: u32, count: u32, map: &mut Map) -> Result<(), MapError> {
        assert!(lsn > self.known, "zeroes {lsn} of volume {} do not follow {}", self.id, self.known);
        let mut changed = Vec::new();
        if count > 0 {
            let last = start.saturating_add(count - 1).min(self.last_block());
            for (block, version) in self.mapped(Moment::Now, start, last, map)? {
                if version.content != Content::Zero {
                    self.put(block, &[Version { lsn, content: Content::Zero }], map)?;
                    changed.push(block);
                }
            }
        }
        self.tally.blocks += changed.len() as u64;
        self.changes.record(lsn, changed);
        (self.known, self.written) = (lsn, lsn);
        self.settle_owner(map);
        Ok(())
    }

    /// Some of the runs of a manifest came, if it starts and ends at the same position; else the last of them, without word of how many
    /// belong to it.
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn apply_manifest(&mut self, manifest: Manifest, seal: bool, map: &mut Map) -> Result<(), MapError> {
        if manifest.to == manifest.from && !manifest.runs.is_empty() {
            self.partial.extend(manifest.runs);
            return Ok(());
        }
        let runs = std::mem::take(&mut self.partial);
        self.learn(manifest, runs, seal, map)
    }

    /// Whether runs of a manifest are here whose last entry is not.
    #[must_use]
    pub fn has_left(&self) -> bool {
        !self.partial.is_empty()
    }

    /// A manifest became known; `earlier` of its runs came in entries before. It takes effect if all of them are here and nothing lies
    /// between it and what was known. One of nothing only ends what came of another one.
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn apply_told(&mut self, manifest: Manifest, earlier: u32, seal: bool, map: &mut Map) -> Result<(), MapError> {
        let has_runs = earlier > 0 || !manifest.runs.is_empty();
        let says_something = has_runs || manifest.to > manifest.from || manifest.mark.is_some() || seal;
        match self.take_earlier(earlier) {
            Some(runs) if manifest.from <= self.known && says_something => self.learn(manifest, runs, seal, map),
            _ => Ok(()),
        }
    }

    /// What a manifest tells, with the `runs` that came before. Blocks known already are left alone. At the snapshot that it ends at, if it
    /// does, everything known is sealed.
    fn learn(
        &mut self,
        manifest: Manifest,
        mut runs: Vec<ManifestRun>,
        seal: bool,
        map: &mut Map,
    ) -> Result<(), MapError> {
        if self.lacks_parts() {
            // It does not say what this node lacks besides: it is told in parts.
            return Ok(());
        }
        runs.extend(manifest.runs);
        let tells_unknown = self.layers.unknown() > 0;
        if manifest.to > self.known || tells_unknown {
            let (known, mut changed) = (self.known, RoaringBitmap::new());
            let told = runs.iter().filter(|run| run.lsn > known || tells_unknown).flat_map(told_by);
            for told in by_chunk(told, |(block, _)| *block) {
                let (news, mut others): (Vec<_>, Vec<_>) =
                    told.into_iter().partition(|(_, version)| version.lsn > known);
                let known_here = self.layers.note_newer(&news, &mut map.usage);
                let is_noted = |block: &u32| known_here.binary_search_by_key(block, |(known, _)| *known).is_err();
                changed.extend(news.iter().map(|(block, _)| *block).filter(is_noted));
                others.extend(known_here);
                for (block, version) in others {
                    if self.layers.is_unknown(block) {
                        self.tell(block, version, map)?;
                    }
                }
            }
            self.changes.append(manifest.to, changed);
            self.known = known.max(manifest.to);
        }
        if let Some(mark) = manifest.mark {
            // Told again, it is known, or what followed it is.
            if manifest.to == self.known && mark.snapshot > self.newest_snapshot() {
                self.seal_at_mark(mark, map);
            }
            return Ok(());
        }
        let beyond_sealed = self.layers.sealed_end().is_none_or(|sealed| manifest.to > sealed);
        // Who comes back has no watermark, and may do so to a volume in which nothing was written.
        let is_ahead = manifest.to > self.watermark || self.rejoin.is_some();
        if seal && beyond_sealed && is_ahead {
            self.layers.seal(self.known, &mut map.usage);
        }
        Ok(())
    }

    /// The runs that came in entries before and belong to what comes now, if all of them are here. What lies before them is left of a
    /// manifest whose last entry never came.
    fn take_earlier(&mut self, earlier: u32) -> Option<Vec<ManifestRun>> {
        let mut partial = std::mem::take(&mut self.partial);
        let start = partial.len().checked_sub(earlier as usize)?;
        Some(partial.split_off(start))
    }

    /// Everything known is a delta that ends at this snapshot.
    fn seal_at_mark(&mut self, SnapshotMark { snapshot: id, size }: SnapshotMark, map: &mut Map) {
        let snapshot = Snapshot { id, lsn: self.known, size, is_deleted: false };
        self.layers.seal_at(snapshot, &mut map.usage);
    }

    /// Fetched blocks are in the log, at `place` and after it. A copy of a version that is here already replaces it: that
    /// is how damaged blocks are repaired. Those that nothing waits for (any more) are left alone.
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn apply_received(
        &mut self,
        blocks: &[(BlockIndex, Lsn, u32)],
        place: Place,
        map: &mut Map,
    ) -> Result<(), MapError> {
        for (index, (block, lsn, _)) in (0u32..).zip(blocks) {
            let place = Place { segment: place.segment, block: place.block + index };
            let by_layer = self.layers.receive(block.0, *lsn, place, &mut map.usage);
            let by_pin = self.pins.receive(block.0, *lsn, place, &mut map.usage);
            if !by_layer && !by_pin {
                self.replace_copy(block.0, *lsn, place, map)?;
            }
        }
        self.settle_owner(map);
        Ok(())
    }

    /// The data of `block` at `lsn`, if it is here, is at `place` from now on.
    fn replace_copy(&mut self, block: u32, lsn: Lsn, place: Place, map: &mut Map) -> Result<(), MapError> {
        if let Some(before) = self.layers.place_of(block, lsn) {
            self.layers.relocate(block, before, place, &mut map.usage);
        } else if let Some(before) = map.place_of(self.id, block, lsn, &self.snapshots)? {
            // For everybody who shares it.
            let moved = map.relocate(self.id, block, before, place, &self.snapshots)?;
            map.usage.begin_moves();
            map.usage.note_moved(before.segment, place, moved);
        }
        Ok(())
    }

    /// The cleaner copied blocks to `to` and after it: what is still where it copied from is there now. Whoever applies it to
    /// several volumes [says when the moves begin](crate::map::usage::Usage::begin_moves).
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn apply_relocated(
        &mut self,
        moves: &[(BlockIndex, u32, u32)],
        to: Place,
        map: &mut Map,
    ) -> Result<(), MapError> {
        for (index, (block, segment, block_in_segment)) in (0u32..).zip(moves) {
            let from = Place { segment: *segment, block: *block_in_segment };
            let to = Place { segment: to.segment, block: to.block + index };
            // What a layer has is younger than every snapshot, so no map shares it.
            if !self.layers.relocate(block.0, from, to, &mut map.usage) {
                let moved = map.relocate(self.id, block.0, from, to, &self.snapshots)?;
                map.usage.note_moved(from.segment, to, moved);
            }
        }
        Ok(())
    }

    /// Whether the volume or a snapshot needs the copy of `block` at `place`, which is of the write `lsn`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn holds(&self, block: u32, lsn: Lsn, place: Place, map: &mut Map) -> Result<bool, MapError> {
        Ok(self.layers.holds(block, place) || map.holds(self.id, block, lsn, place, &self.snapshots)?)
    }

    /// What shows the copy of `block` at `place`: the volume, now or as far as it is applied, or else a snapshot.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn shows(&self, block: u32, place: Place, map: &mut Map) -> Result<Moment, MapError> {
        let is_there = |version: Option<Version>| version.is_some_and(|it| it.content.place() == Some(place));
        if is_there(self.view(block, map)?) {
            return Ok(Moment::Now);
        }
        for snapshot in self.all_snapshots() {
            let moment = Moment::Snapshot(snapshot.id);
            if self.versions(moment, block, block, map)?.into_iter().any(|(_, version)| is_there(version)) {
                return Ok(moment);
            }
        }
        Ok(Moment::Now)
    }

    /// The sealed delta up to `to` was found complete.
    pub fn apply_applied(&mut self, to: Lsn, map: &mut Map) {
        if !self.layers.apply_sealed(to, &mut map.usage) {
            return;
        }
        match self.part.take() {
            Some(next) => self.initial = Some(InitialSync { base: to, next, is_told: false }),
            None => (self.watermark, self.rejoin, self.initial) = (to, None, None),
        }
        self.keep_reached();
    }

    /// The volume has another size. What lies beyond a smaller one was zeroed before.
    pub fn apply_resized(&mut self, size: VolumeSize) {
        self.size = size;
    }

    /// The owner keeps the volume as it is, as snapshot `id`: with everything up to `known`. It is readable from now on, as
    /// far as its blocks are here. On anybody else, or with an id that is not the highest, this does nothing, which the caller
    /// sees by its absence.
    pub fn apply_snapshot(&mut self, id: SnapshotId, map: &mut Map) {
        if self.role == Role::Owner && id > self.newest_snapshot() {
            let snapshot = Snapshot { id, lsn: self.known, size: self.size, is_deleted: false };
            self.layers.seal_at(snapshot, &mut map.usage);
            self.settle_owner(map);
        }
    }

    /// The snapshot `id` is not needed any more.
    pub fn apply_snapshot_deleted(&mut self, id: SnapshotId, map: &mut Map) {
        self.snapshots.delete(id);
        self.layers.forget_snapshot(id, &mut map.usage);
        self.settle_owner(map);
    }

    /// The base keeps the snapshots that it has come to.
    fn keep_reached(&mut self) {
        for snapshot in self.layers.take_reached() {
            self.snapshots.add(snapshot);
        }
    }

    /// Merges up to `pages_max` pages of deleted snapshots; what is seen does not change. Returns whether more is left.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn merge_snapshots(&mut self, pages_max: usize, map: &mut Map) -> Result<bool, MapError> {
        if self.rollback.is_some() {
            // It goes through the snapshots.
            return Ok(false);
        }
        map.merge_snapshots(self.id, &mut self.snapshots, pages_max)
    }

    /// The volume changed hands.
    pub fn apply_role(&mut self, epoch: Epoch, owner: bool, map: &mut Map) {
        self.epoch = epoch;
        self.role = if owner { Role::Owner } else { Role::Replica };
        // What is left of a manifest whose other entries a crash took: who told of it tells it again, if it is still so.
        self.partial.clear();
        self.tally = Tally { since: self.known, blocks: 0 };
        self.changes.cut();
        if !owner {
            self.pins.release_all(&mut map.usage);
        }
        self.settle_owner(map);
    }

    /// Moves up to `max` applied entries into the base; what is seen does not change. Returns whether more is left.
    ///
    /// # Errors
    /// As [`apply_write`](Self::apply_write).
    pub fn fold(&mut self, max: usize, map: &mut Map) -> Result<bool, MapError> {
        for (block, version) in self.layers.fold(max) {
            map.absorb(self.id, block, version, &self.snapshots)?;
        }
        self.keep_reached();
        Ok(self.layers.is_folding())
    }

    /// Folds all that is to be folded.
    ///
    /// # Errors
    /// As [`fold`](Self::fold).
    pub fn finish_folding(&mut self, map: &mut Map) -> Result<(), MapError> {
        while self.fold(PAGE_ENTRIES as usize, map)? {}
        Ok(())
    }

    /// Versions newer than all others of the blocks from `first` on, with their data in one segment.
    fn put(&mut self, first: u32, versions: &[Version], map: &mut Map) -> Result<(), MapError> {
        let blocks = || (0u32..).zip(versions).map(|(index, version)| (first + index, version));
        if !self.pins.is_empty() {
            for (block, _) in blocks() {
                if self.pins.is_open(block) {
                    let version = self.view(block, map)?;
                    self.pins.keep(block, version, &mut map.usage);
                }
            }
        }
        if self.layers.settled() {
            blocks().for_each(|(block, _)| self.layers.supersede(block, &mut map.usage));
            map.replace(self.id, first, versions, &self.snapshots)
        } else {
            // The base stays the prefix it is until everything stale below the new writes has arrived.
            blocks().for_each(|(block, version)| self.layers.note(block, *version, &mut map.usage));
            Ok(())
        }
    }

    /// An owner applies by itself what is complete: up to its newest write, when nothing is stale to it.
    fn settle_owner(&mut self, map: &mut Map) {
        if self.role == Role::Owner
            && let Some(reached) = self.layers.settle(self.known, &mut map.usage)
        {
            (self.watermark, self.rejoin, self.initial) = (reached, None, None);
            self.keep_reached();
        }
    }
}

/// The versions that a run of a manifest tells of.
fn told_by(run: &ManifestRun) -> impl Iterator<Item = (u32, Version)> + '_ {
    (0..run.blocks()).map(|index| {
        let content = match &run.content {
            RunContent::Data(checksums) => Content::Stale { crc: checksums[index as usize] },
            RunContent::Zero(_) => Content::Zero,
        };
        (run.start.0 + index, Version { lsn: run.lsn, content })
    })
}

/// Groups what is about blocks by the chunk that these are in, as long as they rise.
fn by_chunk<T>(all: impl Iterator<Item = T>, block: impl Fn(&T) -> u32) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.peekable();
    std::iter::from_fn(move || {
        let mut group = vec![all.next()?];
        let follows = |last: u32, next: u32| next > last && next / PAGE_ENTRIES == last / PAGE_ENTRIES;
        while let Some(next) = all.next_if(|next| follows(block(&group[group.len() - 1]), block(next))) {
            group.push(next);
        }
        Some(group)
    })
}

/// The manifest `(from, to]` of versions in block order.
#[must_use]
pub fn manifest_of(from: Lsn, to: Lsn, versions: &[(u32, Version)]) -> Manifest {
    let mut runs: Vec<ManifestRun> = Vec::new();
    for (block, version) in versions {
        if let Some(last) = runs.last_mut()
            && last.lsn == version.lsn
            && u64::from(last.start.0) + u64::from(last.blocks()) == u64::from(*block)
        {
            match (&mut last.content, version.content.crc()) {
                (RunContent::Data(checksums), Some(crc)) => {
                    checksums.push(crc);
                    continue;
                }
                (RunContent::Zero(count), None) => {
                    *count += 1;
                    continue;
                }
                _ => {}
            }
        }
        let content = version.content.crc().map_or(RunContent::Zero(1), |crc| RunContent::Data(vec![crc]));
        runs.push(ManifestRun { start: BlockIndex(*block), lsn: version.lsn, content });
    }
    Manifest { from, to, runs, mark: None }
}

/// Why a manifest from outside cannot be taken; `None` when it can. It may tell of blocks beyond the size known here: the
/// owner hears first that the volume has grown.
#[must_use]
pub fn manifest_fault(manifest: &Manifest) -> Option<&'static str> {
    if manifest.from > manifest.to {
        return Some("it ends before it starts");
    }
    let mut end = 0;
    for run in &manifest.runs {
        if u64::from(run.start.0) < end {
            return Some("its runs are not in order");
        }
        end = u64::from(run.start.0) + u64::from(run.blocks());
        if run.blocks() == 0 || end > BLOCKS_MAX {
            return Some("a run is empty or lies outside any volume");
        }
        if run.lsn > manifest.to {
            return Some("a run is newer than its end");
        }
    }
    None
}

#[cfg(test)]
mod tests;
