//! What the entries of the log do to a volume, each once and in order.

use client_lib::{BlockIndex, Epoch, Lsn, SnapshotId, VolumeSize};
use roaring::RoaringBitmap;

use super::initial::InitialSync;
use super::tally::Tally;
use super::{Moment, Volume, by_chunk};
use crate::map::Map;
use crate::map::page::{Content, PAGE_ENTRIES, Place, Version};
use crate::map::snapshot::Snapshot;
use crate::map::store::MapError;
use crate::propagation::manifest::{Manifest, ManifestRun, RunContent, SnapshotMark};
use crate::shard::handle::Role;

impl Volume {
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
    pub(super) fn learn(
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
    pub(super) fn take_earlier(&mut self, earlier: u32) -> Option<Vec<ManifestRun>> {
        let mut partial = std::mem::take(&mut self.partial);
        let start = partial.len().checked_sub(earlier as usize)?;
        Some(partial.split_off(start))
    }

    /// Everything known is a delta that ends at this snapshot.
    pub(super) fn seal_at_mark(&mut self, SnapshotMark { snapshot: id, size }: SnapshotMark, map: &mut Map) {
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
    pub(super) fn replace_copy(&mut self, block: u32, lsn: Lsn, place: Place, map: &mut Map) -> Result<(), MapError> {
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
    pub(super) fn keep_reached(&mut self) {
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
    pub(super) fn put(&mut self, first: u32, versions: &[Version], map: &mut Map) -> Result<(), MapError> {
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
    pub(super) fn settle_owner(&mut self, map: &mut Map) {
        if self.role == Role::Owner
            && let Some(reached) = self.layers.settle(self.known, &mut map.usage)
        {
            (self.watermark, self.rejoin, self.initial) = (reached, None, None);
            self.keep_reached();
        }
    }
}

/// The versions that a run of a manifest tells of.
pub(super) fn told_by(run: &ManifestRun) -> impl Iterator<Item = (u32, Version)> + '_ {
    (0..run.blocks()).map(|index| {
        let content = match &run.content {
            RunContent::Data(checksums) => Content::Stale { crc: checksums[index as usize] },
            RunContent::Zero(_) => Content::Zero,
        };
        (run.start.0 + index, Version { lsn: run.lsn, content })
    })
}
