//! Where every block of every volume is: pages of versions, cached in memory, kept in RocksDB.
//!
//! [`page`] is the format of a page, [`store`] the only user of RocksDB, [`cache`] the bounded memory between the
//! two, [`usage`] the count of what still points into each segment, [`snapshot`] what snapshots keep. The map holds the
//! *base* of each volume; what is known but not yet part of the base is in [`crate::volume::layers`]. Who calls it has
//! compared LSNs: a version set here is newer than the one before, and than every snapshot.

pub mod cache;
pub mod page;
pub mod snapshot;
pub mod store;
pub mod usage;

use client_lib::{SnapshotId, VolumeId};

use cache::PageCache;
use page::{PAGE_ENTRIES, Version};
use snapshot::Snapshots;
use store::MapError;
use usage::Usage;

/// A map of a volume: the live one, or what a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapKey {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot; 0 is the live map.
    pub snapshot: SnapshotId,
}

impl From<VolumeId> for MapKey {
    /// The live map.
    fn from(volume: VolumeId) -> MapKey {
        MapKey { volume, snapshot: SnapshotId(0) }
    }
}

/// The base maps of a shard together with the references that they and the layers hold.
#[derive(Debug)]
pub struct Map {
    /// The base maps.
    pub cache: PageCache,
    /// The references.
    pub usage: Usage,
    /// Maps that are gone since the last checkpoint began.
    pub forgotten: Vec<MapKey>,
}

impl Map {
    /// About how many blocks of `volume` lie on its pages from `page` on.
    #[must_use]
    pub fn mapped_from(&self, volume: VolumeId, page: u32) -> u64 {
        let pages = self.cache.pages_between(volume, page, u32::MAX);
        let all = self.cache.pages_between(volume, 0, u32::MAX).max(1);
        (u128::from(self.usage.mapped(volume)) * u128::from(pages) / u128::from(all)) as u64
    }

    /// Makes `versions`, whose places are not yet counted and in one segment, the base's of the blocks from `first` on; lets
    /// go of those before, but for what `snapshots` keep.
    ///
    /// # Errors
    /// When a page cannot be read; then the blocks of pages before it have changed.
    pub fn replace(
        &mut self,
        volume: VolumeId,
        first: u32,
        versions: &[Version],
        snapshots: &Snapshots,
    ) -> Result<(), MapError> {
        if let [version] = versions {
            self.absorb(volume, first, *version, snapshots)?;
            if let Some(place) = version.content.place() {
                self.usage.add(volume, place);
            }
            return Ok(());
        }
        let (mut block, mut rest) = (first, versions);
        while !rest.is_empty() {
            let (run, others) = rest.split_at(rest.len().min((PAGE_ENTRIES - block % PAGE_ENTRIES) as usize));
            self.keep(volume, block / PAGE_ENTRIES, snapshots)?;
            let before = self.cache.set_run(volume, block, run)?;
            self.let_go_run(volume, block, &before, snapshots);
            if let Some(place) = run[0].content.place() {
                self.usage.add_many(volume, place.segment, run.len() as u32);
            }
            // The last block may be the largest number.
            (block, rest) = (block.saturating_add(run.len() as u32), others);
        }
        Ok(())
    }

    /// As [`replace`](Self::replace) for a version whose place is counted already, because a layer held it.
    ///
    /// # Errors
    /// When a page cannot be read; then nothing changed.
    pub fn absorb(
        &mut self,
        volume: VolumeId,
        block: u32,
        version: Version,
        snapshots: &Snapshots,
    ) -> Result<(), MapError> {
        self.keep(volume, block / PAGE_ENTRIES, snapshots)?;
        if let Some(before) = self.cache.set(volume, block, version)? {
            self.let_go(volume, block, before, snapshots);
        }
        Ok(())
    }

    /// Forgets the live map of `volume` and all its snapshots.
    pub fn forget(&mut self, volume: VolumeId) {
        let mut keys = self.cache.maps_of(volume);
        keys.push(volume.into());
        for key in keys {
            self.usage.forget(key);
            self.cache.forget(key);
        }
        self.forgotten.retain(|key| key.volume != volume);
    }

    fn forget_map(&mut self, key: MapKey) {
        self.usage.forget(key);
        self.cache.forget(key);
        self.forgotten.push(key);
    }
}
