//! Snapshots in the map: what a volume's base was, kept by the pages that have changed since.
//!
//! ```text
//!   oldest snapshot ── … ── newest snapshot ── live map
//!   each with the pages that changed first after it      whole
//! ```
//!
//! The live map is always whole, so a volume with a hundred snapshots is read and written like one without. A snapshot
//! begins empty. Before a page of the live map changes for the first time after it, the page as it was is kept in it. So
//! a snapshot's page is the first that is found in itself, in the newer snapshots, in the live map.
//!
//! A deleted snapshot goes in bounded steps: what older ones see through it moves to the one before it. The oldest is
//! dropped at once. A page that was merged leaves the deleted snapshot, so that the state says how far it is.
//!
//! Every version that has a place is counted once ([`super::usage`]), in the newest map that has it: in the live map while
//! it is the live version, then in the newest snapshot that shows it. What a snapshot counts is what its deletion frees,
//! up to what older ones need. All versions of the base at a snapshot are at or before its LSN and all later ones
//! after it, so the LSN alone tells whether a snapshot has a version. Two versions at one place, as a rollback leaves them, are
//! counted twice, and told to be aliases.

use std::sync::Arc;

use client_lib::{Lsn, SnapshotId, VolumeId, VolumeSize};

use super::page::{Content, Index, PAGE_ENTRIES, Page, Place, Version};
use super::store::MapError;
use super::{Map, MapKey};

/// A snapshot of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, for ever.
    pub id: SnapshotId,
    /// Up to where it has the volume's writes.
    pub lsn: Lsn,
    /// The volume's size then.
    pub size: VolumeSize,
    /// Whether it is only there until its pages are merged.
    pub is_deleted: bool,
}

/// The snapshots of a volume, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    list: Vec<Snapshot>,
    /// Whether several versions of a block may lie at one place: see [`crate::volume::rollback`].
    has_aliases: bool,
}

impl Snapshots {
    /// The snapshots as a checkpoint kept them: oldest first.
    #[must_use]
    pub fn restore(list: Vec<Snapshot>, has_aliases: bool) -> Snapshots {
        Snapshots { list, has_aliases }
    }

    /// From now on several versions of a block may lie at one place.
    pub fn note_aliases(&mut self) {
        self.has_aliases = true;
    }

    /// Whether they may.
    #[must_use]
    pub fn has_aliases(&self) -> bool {
        self.has_aliases
    }

    /// The snapshot `id`, if it exists and is not deleted.
    #[must_use]
    pub fn find(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.id == id && !snapshot.is_deleted)
    }

    /// Every snapshot, oldest first, with those that are being merged.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Snapshot> + ExactSizeIterator {
        self.list.iter()
    }

    /// Adds the newest.
    pub fn add(&mut self, snapshot: Snapshot) {
        assert!(snapshot.id > SnapshotId(0), "0 is the live map");
        assert!(self.list.iter().all(|known| known.id != snapshot.id), "snapshot {} is new", snapshot.id);
        assert!(self.list.last().is_none_or(|last| last.lsn <= snapshot.lsn), "snapshot {} is the newest", snapshot.id);
        self.list.push(snapshot);
    }

    /// Marks `id` as deleted; [`Map::merge_snapshots`] does the rest.
    pub fn delete(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.list.iter_mut().find(|snapshot| snapshot.id == id) {
            snapshot.is_deleted = true;
        }
    }

    /// Whether a deleted one is left to be merged.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        self.list.iter().any(|snapshot| snapshot.is_deleted)
    }

    /// The newest that is not deleted, and those after it: one of them must have a page before it changes.
    fn keepers(&self) -> &[Snapshot] {
        let newest = self.list.iter().rposition(|snapshot| !snapshot.is_deleted);
        newest.map_or(&[], |at| &self.list[at..])
    }
}

impl Map {
    /// A page as the snapshot `id`, which exists, has it; `None` when nothing in it was ever written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn snapshot_page(
        &mut self,
        volume: VolumeId,
        snapshots: &Snapshots,
        id: SnapshotId,
        page: u32,
    ) -> Result<Option<Arc<Page>>, MapError> {
        let newer = snapshots.list.iter().skip_while(|snapshot| snapshot.id != id);
        let key = self.holder(volume, newer, page);
        Ok(self.cache.page(key, page)?.cloned())
    }

    /// The first of `snapshots` that has `page`, or the live map.
    fn holder<'a>(&self, volume: VolumeId, snapshots: impl Iterator<Item = &'a Snapshot>, page: u32) -> MapKey {
        let mut keys = snapshots.map(|snapshot| MapKey { volume, snapshot: snapshot.id });
        keys.find(|key| self.cache.has(*key, page)).unwrap_or_else(|| volume.into())
    }

    /// The versions with data on a page of a map that are counted there: those that no newer map has.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn counted_page(
        &mut self,
        key: MapKey,
        snapshots: &Snapshots,
        page: u32,
    ) -> Result<Vec<(Index, Version)>, MapError> {
        let Some(content) = self.cache.page(key, page)?.cloned() else { return Ok(Vec::new()) };
        let above = if key.snapshot.0 == 0 {
            None
        } else {
            let newer = snapshots.list.iter().skip_while(|snapshot| snapshot.id <= key.snapshot);
            let holder = self.holder(key.volume, newer, page);
            self.cache.page(holder, page)?.cloned()
        };
        let is_above = |index: Index, lsn: Lsn| {
            above.as_ref().is_some_and(|page| page.entry(index).is_some_and(|above| above.lsn == lsn))
        };
        let counted = content
            .iter()
            .filter(|(index, version)| version.content.place().is_some() && !is_above(*index, version.lsn));
        Ok(counted.collect())
    }

    /// The live page is about to change: the newest snapshot keeps it, if it has not changed since.
    pub(super) fn keep(&mut self, volume: VolumeId, page: u32, snapshots: &Snapshots) -> Result<(), MapError> {
        let Some(target) = snapshots.keepers().first() else { return Ok(()) };
        if self.holder(volume, snapshots.keepers().iter(), page) == volume.into() {
            // Also a page that was never written: it must not show what is written from now on.
            let content = self.cache.page(volume, page)?.cloned().unwrap_or_default();
            self.cache.insert(MapKey { volume, snapshot: target.id }, page, content);
        }
        Ok(())
    }

    /// The live map no longer has `version` of `block`: from now on it is counted in the newest snapshot that has it.
    pub(super) fn let_go(&mut self, volume: VolumeId, block: u32, version: Version, snapshots: &Snapshots) {
        let Some(place) = version.content.place() else { return };
        self.usage.remove(volume, place);
        let page = block / PAGE_ENTRIES;
        let has_page = |snapshot: &&Snapshot| self.cache.has(MapKey { volume, snapshot: snapshot.id }, page);
        if let Some(holder) = snapshots.list.iter().rev().find(has_page)
            && version.lsn <= holder.lsn
        {
            self.usage.add(MapKey { volume, snapshot: holder.id }, place);
        }
    }

    /// As [`let_go`](Self::let_go) for the blocks of a page from `first` on, where there was a version.
    pub(super) fn let_go_run(
        &mut self,
        volume: VolumeId,
        first: u32,
        versions: &[Option<Version>],
        snapshots: &Snapshots,
    ) {
        if !snapshots.list.is_empty() {
            let known = (0u32..).zip(versions).filter_map(|(index, version)| Some((first + index, (*version)?)));
            return known.for_each(|(block, version)| self.let_go(volume, block, version, snapshots));
        }
        let segment = |version: &Option<Version>| Some(version.as_ref()?.content.place()?.segment);
        for run in versions.chunk_by(|one, other| segment(one) == segment(other)) {
            if let Some(segment) = segment(&run[0]) {
                self.usage.remove_many(volume, segment, run.len() as u32);
            }
        }
    }

    /// The data of `block` at `from` was copied to `to`: every map that points there points to the copy now. Returns how many
    /// versions are counted there.
    ///
    /// # Errors
    /// When a page cannot be read; some maps may point to the copy already.
    pub fn relocate(
        &mut self,
        volume: VolumeId,
        block: u32,
        from: Place,
        to: Place,
        snapshots: &Snapshots,
    ) -> Result<u32, MapError> {
        let mut moved = 0;
        let older = snapshots.list.iter().rev().map(|snapshot| MapKey { volume, snapshot: snapshot.id });
        // The version that was found last.
        let mut found: Option<Lsn> = None;
        for key in std::iter::once(volume.into()).chain(older) {
            // The newest that has it counts it. The others that have it come right behind, but for those without the page, and
            // for those of other versions that lie there too.
            let may_have = if found.is_some() {
                self.cache.has(key, block / PAGE_ENTRIES)
            } else {
                self.usage.live_in(key, from.segment) > 0
            };
            if !may_have {
                continue;
            }
            match self.cache.version(key, block)? {
                Some(Version { lsn, content: Content::Local { place, crc } }) if place == from => {
                    self.cache.set(key, block, Version { lsn, content: Content::Local { place: to, crc } })?;
                    if found != Some(lsn) {
                        self.usage.add(key, to);
                        self.usage.remove(key, from);
                        moved += 1;
                        found = Some(lsn);
                    }
                }
                _ if found.is_some() && !snapshots.has_aliases => break,
                _ => {}
            }
        }
        Ok(moved)
    }

    /// Whether a map has `block` at `place`, where the write `lsn` put it.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn holds(
        &mut self,
        volume: VolumeId,
        block: u32,
        lsn: Lsn,
        place: Place,
        snapshots: &Snapshots,
    ) -> Result<bool, MapError> {
        for key in self.first_holders(volume, block, lsn, snapshots) {
            if self.cache.version(key, block)?.is_some_and(|version| version.content.place() == Some(place)) {
                return Ok(true);
            }
        }
        if snapshots.has_aliases {
            // Under another LSN.
            for snapshot in snapshots.list.iter().rev() {
                let key = MapKey { volume, snapshot: snapshot.id };
                if self.usage.live_in(key, place.segment) > 0
                    && self.cache.version(key, block)?.is_some_and(|version| version.content.place() == Some(place))
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Where the data of `block` at `lsn` is, if a map has that version.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn place_of(
        &mut self,
        volume: VolumeId,
        block: u32,
        lsn: Lsn,
        snapshots: &Snapshots,
    ) -> Result<Option<Place>, MapError> {
        for key in self.first_holders(volume, block, lsn, snapshots) {
            if let Some(found) = self.cache.version(key, block)?.filter(|found| found.lsn == lsn) {
                return Ok(found.content.place());
            }
        }
        Ok(None)
    }

    /// Makes the version of `block` that `lsn` wrote the live map's again, if a snapshot still has it. Returns whether it is.
    ///
    /// # Errors
    /// When a page cannot be read; then nothing changed.
    pub fn take_back(
        &mut self,
        volume: VolumeId,
        block: u32,
        lsn: Lsn,
        snapshots: &Snapshots,
    ) -> Result<bool, MapError> {
        if self.cache.version(volume, block)?.is_some_and(|live| live.lsn == lsn) {
            return Ok(true);
        }
        for snapshot in snapshots.list.iter().rev().take_while(|snapshot| snapshot.lsn >= lsn) {
            let key = MapKey { volume, snapshot: snapshot.id };
            if !self.cache.has(key, block / PAGE_ENTRIES) {
                continue;
            }
            let Some(version) = self.cache.version(key, block)?.filter(|found| found.lsn == lsn) else { continue };
            self.absorb(volume, block, version, snapshots)?;
            if let Some(place) = version.content.place() {
                // The newest map that has it counts it.
                self.usage.remove(key, place);
                self.usage.add(volume, place);
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The maps of which one has the version of `block` that `lsn` wrote, if any map has.
    fn first_holders(&self, volume: VolumeId, block: u32, lsn: Lsn, snapshots: &Snapshots) -> [MapKey; 2] {
        // A version that any snapshot has, the first one after the write has.
        let first = snapshots.list.iter().skip_while(|snapshot| snapshot.lsn < lsn);
        [MapKey::from(volume), self.holder(volume, first, block / PAGE_ENTRIES)]
    }

    /// Merges up to `pages_max` pages of deleted snapshots; what the others show does not change. Returns whether more is
    /// left.
    ///
    /// # Errors
    /// When a page cannot be read; that page was not touched.
    pub fn merge_snapshots(
        &mut self,
        volume: VolumeId,
        snapshots: &mut Snapshots,
        pages_max: usize,
    ) -> Result<bool, MapError> {
        // The oldest first, so that whatever is before it is not deleted.
        let Some(at) = snapshots.list.iter().position(|snapshot| snapshot.is_deleted) else { return Ok(false) };
        let key = MapKey { volume, snapshot: snapshots.list[at].id };
        if at > 0 {
            for _ in 0..pages_max {
                let Some(page) = self.cache.next_page(key, 0) else { break };
                let newer = self.holder(volume, snapshots.list[at + 1..].iter(), page);
                self.merge_page(key, page, &snapshots.list[at - 1], newer)?;
            }
            if self.cache.next_page(key, 0).is_some() {
                return Ok(true);
            }
        }
        self.forget_map(key);
        snapshots.list.remove(at);
        Ok(snapshots.is_merging())
    }

    /// Gives `older` what it sees of `page` through the deleted map `key`; `newer` is where others see it after that.
    fn merge_page(&mut self, key: MapKey, page: u32, older: &Snapshot, newer: MapKey) -> Result<(), MapError> {
        let content: Arc<Page> = self.cache.page(key, page)?.cloned().unwrap_or_default();
        let above: Arc<Page> = self.cache.page(newer, page)?.cloned().unwrap_or_default();
        let heir = MapKey { volume: key.volume, snapshot: older.id };
        for (index, version) in content.iter().filter(|(_, version)| version.lsn <= older.lsn) {
            // A version that the newer map has too is counted there.
            let is_counted_here = above.entry(index).is_none_or(|above| above.lsn != version.lsn);
            if let Some(place) = version.content.place().filter(|_| is_counted_here) {
                self.usage.remove(key, place);
                self.usage.add(heir, place);
            }
        }
        if !self.cache.has(heir, page) {
            self.cache.insert(heir, page, content);
        }
        self.cache.remove(key, page);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
