//! What is seen of a volume: the version of each block now, in a snapshot, in a delta, and what has changed since.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::{Lsn, SnapshotId};
use roaring::RoaringBitmap;

use super::layers::{Layer, MANY};
use super::pins::Pinned;
use super::{Mapped, Moment, Volume, by_chunk};
use crate::map::page::{Content, NO_ENTRIES, PAGE_ENTRIES, Version};
use crate::map::store::MapError;
use crate::map::{Map, MapKey};

/// Blocks that are looked at at once where most of them are not meant.
const MAPPED_AT_ONCE: usize = 1 << 16;

impl Volume {
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
}
