//! A clone: a volume that begins as what a snapshot of another volume is.
//!
//! It has the snapshot's versions, LSNs and places: nothing is copied but the pages of the map, a few at a time
//! ([`Volume::fill_step`]), while nobody reads or writes it. From then on neither needs the other: snapshot and volume may be
//! deleted. The steps are no entries of the log: an entry of the clone that follows, and one that takes the snapshot away,
//! find all of them done.
//!
//! What lies in the log under another volume's name may be a clone's too. A clone knows whose: its [ancestors](Volume::may_hold).

use client_lib::{SnapshotId, VolumeId};

use super::Volume;
use super::changes::Changes;
use crate::map::snapshot::Snapshots;
use crate::map::store::MapError;
use crate::map::{Map, MapKey};

/// Where a clone's pages come from, until it has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// The volume.
    pub origin: VolumeId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
    /// The pages from here on are still to come.
    pub next_page: u32,
}

impl Volume {
    /// The volume `id` as a clone of this one's `snapshot`, still without its pages; `None` where not all of the snapshot is in
    /// the base.
    #[must_use]
    pub fn clone_of(&self, snapshot: SnapshotId, id: VolumeId) -> Option<Volume> {
        let found = self.snapshots.find(snapshot)?;
        let mut clone = Volume::new(id, found.size);
        (clone.known, clone.watermark) = (found.lsn, found.lsn);
        clone.changes = Changes::restore(found.lsn, Vec::new());
        clone.filling = Some(Filling { origin: self.id, snapshot, next_page: 0 });
        clone.ancestors = self.ancestors.iter().copied().chain([self.id]).collect();
        Some(clone)
    }

    /// Whether it began as another volume's snapshot.
    #[must_use]
    pub fn is_clone(&self) -> bool {
        !self.ancestors.is_empty()
    }

    /// Whether a block that was written to `volume` may be one of this volume's.
    #[must_use]
    pub fn may_hold(&self, volume: VolumeId) -> bool {
        self.id == volume || self.ancestors.contains(&volume)
    }

    /// Takes up to `pages_max` pages from the snapshot; `snapshots` are its volume's. Returns whether more are left.
    ///
    /// # Errors
    /// When a page cannot be read; then it was not taken.
    pub fn fill_step(&mut self, pages_max: usize, snapshots: &Snapshots, map: &mut Map) -> Result<bool, MapError> {
        for _ in 0..pages_max {
            let Some(Filling { origin, snapshot, next_page }) = self.filling else { return Ok(false) };
            let newer = snapshots.iter().skip_while(|found| found.id != snapshot);
            let keys = newer.map(|found| MapKey { volume: origin, snapshot: found.id }).chain([origin.into()]);
            let Some(page) = keys.filter_map(|key| map.cache.next_page(key, next_page)).min() else {
                self.filling = None;
                return Ok(false);
            };
            if let Some(content) = map.snapshot_page(origin, snapshots, snapshot, page)?
                && content.iter().next().is_some()
            {
                content
                    .iter()
                    .filter_map(|(_, version)| version.content.place())
                    .for_each(|it| map.usage.add_alias(self.id, it));
                map.cache.insert(self.id.into(), page, content);
            }
            self.filling = page.checked_add(1).map(|next_page| Filling { origin, snapshot, next_page });
        }
        Ok(self.filling.is_some())
    }

    /// Takes what is left.
    ///
    /// # Errors
    /// As [`fill_step`](Self::fill_step).
    pub fn finish_filling(&mut self, snapshots: &Snapshots, map: &mut Map) -> Result<(), MapError> {
        while self.fill_step(usize::MAX, snapshots, map)? {}
        Ok(())
    }
}
