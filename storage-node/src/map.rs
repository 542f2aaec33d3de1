//! Where every block of every volume is: pages of versions, cached in memory, kept in RocksDB.
//!
//! [`page`] is the format of a page, [`store`] the only user of RocksDB, [`cache`] the bounded memory between the
//! two, [`usage`] the count of what still points into each segment. The map holds the *base* of each volume; what is
//! known but not yet part of the base is in [`crate::volume::layers`]. The map decides nothing about LSNs: who calls
//! it has compared versions.

pub mod cache;
pub mod page;
pub mod store;
pub mod usage;

use client_lib::VolumeId;

use cache::PageCache;
use page::Version;
use store::MapError;
use usage::Usage;

/// The base maps of a shard together with the references that they and the layers hold.
#[derive(Debug)]
pub struct Map {
    /// The base maps.
    pub cache: PageCache,
    /// The references.
    pub usage: Usage,
}

impl Map {
    /// Makes `version`, whose place is not yet counted, the base's version of `block`; lets go of the one before.
    ///
    /// # Errors
    /// When the page cannot be read; then nothing changed.
    pub fn replace(&mut self, volume: VolumeId, block: u32, version: Version) -> Result<(), MapError> {
        let before = self.cache.set(volume, block, version)?;
        if let Some(place) = version.content.place() {
            self.usage.add(volume, place);
        }
        if let Some(place) = before.and_then(|before| before.content.place()) {
            self.usage.remove(volume, place);
        }
        Ok(())
    }

    /// As [`replace`](Self::replace) for a version whose place is counted already, because a layer held it.
    ///
    /// # Errors
    /// When the page cannot be read; then nothing changed.
    pub fn absorb(&mut self, volume: VolumeId, block: u32, version: Version) -> Result<(), MapError> {
        let before = self.cache.set(volume, block, version)?;
        if let Some(place) = before.and_then(|before| before.content.place()) {
            self.usage.remove(volume, place);
        }
        Ok(())
    }
}
