//! A rollback: the volume becomes again what a snapshot has, as one write.
//!
//! The entry of the log says which snapshot and under which LSN. What differs gets a new version with that LSN and the
//! *place* that the snapshot's version has: nothing is copied. That is done page by page ([`Volume::rollback_step`]), while
//! nobody reads or writes the volume; how far it is belongs to the state, so it goes on after a crash. The steps are no
//! entries of the log: an entry that follows finds all of them done ([`Volume::finish_rollback`]).
//!
//! A version whose place another version has too is an *alias*. From then on a copy of the block that the cleaner makes must
//! be told to every map that points to the original, whatever lies between them ([`crate::map::snapshot`]).

use client_lib::{Lsn, SnapshotId};
use roaring::RoaringBitmap;

use super::Volume;
use crate::map::page::{Content, PAGE_ENTRIES, Version};
use crate::map::store::MapError;
use crate::map::{Map, MapKey};
use crate::shard::handle::Role;

/// A rollback under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// To this snapshot.
    pub snapshot: SnapshotId,
    /// The LSN of the one write that it is.
    pub lsn: Lsn,
    /// The pages from here on are still as they were.
    pub next_page: u32,
}

impl Volume {
    /// Whether the volume, as its owner has it now, can be rolled back to a snapshot that it has: everything up to here is in
    /// the base.
    #[must_use]
    pub fn may_roll_back(&self, snapshot: SnapshotId) -> bool {
        let is_kept = self.snapshots.find(snapshot).is_some_and(|found| found.size <= self.size);
        self.role == Role::Owner && self.layers.settled() && is_kept && self.rollback.is_none()
    }

    /// The volume becomes what `snapshot` has, by a write at `lsn`. Where that [cannot be](Self::may_roll_back) nothing
    /// happens, which the caller sees by `known`.
    pub fn apply_rolled_back(&mut self, lsn: Lsn, snapshot: SnapshotId, map: &mut Map) {
        assert!(lsn > self.known, "a rollback {lsn} of volume {} does not follow {}", self.id, self.known);
        if !self.may_roll_back(snapshot) {
            return;
        }
        // A page that no snapshot from this one on has kept is as it was.
        let mut changed = RoaringBitmap::new();
        let mut next = self.next_differing(snapshot, 0, map);
        while let Some(page) = next {
            let first = u64::from(page) * u64::from(PAGE_ENTRIES);
            let last = (first + u64::from(PAGE_ENTRIES) - 1).min(u64::from(self.last_block()));
            changed.insert_range(first as u32..=last as u32);
            next = page.checked_add(1).and_then(|page| self.next_differing(snapshot, page, map));
        }
        self.changes.append(lsn, changed);
        (self.known, self.written) = (lsn, lsn);
        self.snapshots.note_aliases();
        self.rollback = Some(Rollback { snapshot, lsn, next_page: 0 });
        self.settle_owner(map);
    }

    /// Puts up to `pages_max` pages back. Returns whether more are left.
    ///
    /// # Errors
    /// When a page cannot be read; that page may be put back in part, and the next step does the rest.
    pub fn rollback_step(&mut self, pages_max: usize, map: &mut Map) -> Result<bool, MapError> {
        for _ in 0..pages_max {
            let Some(Rollback { snapshot, lsn, next_page }) = self.rollback else { return Ok(false) };
            let Some(page) = self.next_differing(snapshot, next_page, map) else {
                self.rollback = None;
                self.settle_owner(map);
                return Ok(false);
            };
            self.put_back(snapshot, lsn, page, map)?;
            self.rollback = page.checked_add(1).map(|next_page| Rollback { snapshot, lsn, next_page });
        }
        Ok(self.rollback.is_some())
    }

    /// Puts back what is left.
    ///
    /// # Errors
    /// As [`rollback_step`](Self::rollback_step).
    pub fn finish_rollback(&mut self, map: &mut Map) -> Result<(), MapError> {
        while self.rollback_step(usize::MAX, map)? {}
        Ok(())
    }

    /// The first page from `from` on in which the volume may differ from `snapshot`.
    fn next_differing(&self, snapshot: SnapshotId, from: u32, map: &Map) -> Option<u32> {
        let newer = self.snapshots.iter().skip_while(|found| found.id != snapshot);
        let kept = newer.filter_map(|found| map.cache.next_page(MapKey { volume: self.id, snapshot: found.id }, from));
        let first = from.checked_mul(PAGE_ENTRIES)?;
        let folding = self.layers.blocks(first, u32::MAX).first().map(|block| block / PAGE_ENTRIES);
        kept.chain(folding).min().filter(|page| *page <= self.last_block() / PAGE_ENTRIES)
    }

    fn put_back(&mut self, snapshot: SnapshotId, lsn: Lsn, page: u32, map: &mut Map) -> Result<(), MapError> {
        let kept = map.snapshot_page(self.id, &self.snapshots, snapshot, page)?;
        let first = page * PAGE_ENTRIES;
        for block in first..=self.last_block().min(first + (PAGE_ENTRIES - 1)) {
            let of = |version: Option<Version>| version.map_or(Content::Zero, |version| version.content);
            let wanted = of(kept.as_ref().and_then(|kept| kept.entry((block - first) as u8)));
            #[cfg(test)]
            if block == 7 && !crate::simulation::rules::holds(crate::simulation::rules::Rule::RollbacksAreWhole) {
                continue;
            }
            if of(self.view(block, map)?) != wanted {
                self.put(block, &[Version { lsn, content: wanted }], map)?;
                if let Some(place) = wanted.place() {
                    map.usage.note_alias(place.segment);
                }
            }
        }
        Ok(())
    }
}
