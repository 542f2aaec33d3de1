//! Which segments are still needed: live blocks per map and segment, and pins.
//!
//! A block is live once per version that points to it: the live map of a volume counts for its layers too, and what
//! snapshots share is counted in one of them ([`super::snapshot`]). A segment without live blocks and without pins is free for
//! recycling once a checkpoint that says so is committed: nothing can come to point into it again, since new
//! entries only come from appends. Counting per map makes deletion of a map cost segments, not blocks.
//! Deliberately knows nothing of segment files.

use std::collections::{BTreeMap, BTreeSet};

use crate::map::MapKey;
use crate::map::page::Place;

/// Reference counts of one segment over all maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    live: u64,
    pinned: u64,
}

/// The reference counts of a shard.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    maps: BTreeMap<MapKey, BTreeMap<u32, u32>>,
    segments: BTreeMap<u32, Counts>,
    changed: BTreeSet<(MapKey, u32)>,
}

impl Usage {
    /// Takes over a count from a checkpoint.
    pub fn restore(&mut self, map: impl Into<MapKey>, segment: u32, live: u32) {
        self.maps.entry(map.into()).or_default().insert(segment, live);
        self.segments.entry(segment).or_default().live += u64::from(live);
    }

    /// An entry of `map` now points to `place`.
    pub fn add(&mut self, map: impl Into<MapKey>, place: Place) {
        self.add_many(map, place.segment, 1);
    }

    /// So many entries of `map`, at least one, now point into `segment`.
    pub fn add_many(&mut self, map: impl Into<MapKey>, segment: u32, count: u32) {
        let map = map.into();
        *self.maps.entry(map).or_default().entry(segment).or_default() += count;
        self.segments.entry(segment).or_default().live += u64::from(count);
        self.changed.insert((map, segment));
    }

    /// An entry of `map` no longer points to `place`.
    ///
    /// # Panics
    /// If none did: the counts guard data against being overwritten.
    pub fn remove(&mut self, map: impl Into<MapKey>, place: Place) {
        self.remove_many(map, place.segment, 1);
    }

    /// So many entries of `map` no longer point into `segment`.
    ///
    /// # Panics
    /// As [`remove`](Self::remove).
    pub fn remove_many(&mut self, map: impl Into<MapKey>, segment: u32, count: u32) {
        let map = map.into();
        let table = self.maps.get_mut(&map).expect("the map has live blocks");
        let live = table.get_mut(&segment).expect("the segment has live blocks of the map");
        *live = live.checked_sub(count).expect("as many as pointed there");
        if *live == 0 {
            table.remove(&segment);
        }
        let counts = self.segments.get_mut(&segment).expect("the segment has live blocks");
        counts.live -= u64::from(count);
        self.changed.insert((map, segment));
    }

    /// Every entry of `map` is gone.
    pub fn forget(&mut self, map: impl Into<MapKey>) {
        let map = map.into();
        for (segment, live) in self.maps.remove(&map).unwrap_or_default() {
            self.segments.get_mut(&segment).expect("the segment has live blocks").live -= u64::from(live);
        }
        self.changed.retain(|(changed, _)| *changed != map);
    }

    /// Something reads from `segment`, or will.
    pub fn pin(&mut self, segment: u32) {
        self.segments.entry(segment).or_default().pinned += 1;
    }

    /// The opposite of [`pin`](Self::pin), once for each.
    ///
    /// # Panics
    /// If nothing pinned it.
    pub fn unpin(&mut self, segment: u32) {
        let counts = self.segments.get_mut(&segment).expect("the segment is pinned");
        assert!(counts.pinned > 0, "segment {segment} is not pinned");
        counts.pinned -= 1;
    }

    /// Blocks that occupy space and are counted in `map`.
    #[must_use]
    pub fn mapped(&self, map: impl Into<MapKey>) -> u64 {
        self.maps.get(&map.into()).map_or(0, |table| table.values().map(|live| u64::from(*live)).sum())
    }

    /// Live blocks of `segment` that are counted in `map`.
    #[must_use]
    pub fn live_in(&self, map: impl Into<MapKey>, segment: u32) -> u64 {
        self.maps.get(&map.into()).and_then(|table| table.get(&segment)).map_or(0, |live| u64::from(*live))
    }

    /// Every segment with live blocks.
    #[must_use]
    pub fn live_segments(&self) -> BTreeSet<u32> {
        self.segments.iter().filter(|(_, counts)| counts.live > 0).map(|(segment, _)| *segment).collect()
    }

    /// Whether nothing needs `segment`.
    #[must_use]
    pub fn is_free(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_none_or(|counts| *counts == Counts::default())
    }

    /// Live blocks of `segment`.
    #[must_use]
    pub fn live(&self, segment: u32) -> u64 {
        self.segments.get(&segment).map_or(0, |counts| counts.live)
    }

    /// Whether something reads from `segment`, or will.
    #[must_use]
    pub fn is_pinned(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_some_and(|counts| counts.pinned > 0)
    }

    /// The counts that changed since the last call, for the checkpoint.
    pub fn take_changed(&mut self) -> Vec<(MapKey, u32, u32)> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|(map, segment)| {
                let live = self.maps.get(&map).and_then(|table| table.get(&segment)).copied().unwrap_or(0);
                (map, segment, live)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use client_lib::VolumeId;

    use super::*;

    const A: VolumeId = VolumeId(1);
    const B: VolumeId = VolumeId(2);

    fn place(segment: u32) -> Place {
        Place { segment, block: 0 }
    }

    #[test]
    fn a_segment_is_free_when_neither_live_nor_pinned() {
        let mut usage = Usage::default();
        usage.add(A, place(7));
        usage.add(B, place(7));
        usage.pin(7);
        usage.remove(A, place(7));
        usage.forget(B);
        assert!(!usage.is_free(7), "a pin holds it");
        usage.unpin(7);
        assert!(usage.is_free(7));
        assert!(usage.is_free(8), "never used");
    }

    #[test]
    fn a_deleted_volume_takes_only_its_own_counts() {
        let mut usage = Usage::default();
        usage.restore(A, 1, 10);
        usage.restore(B, 1, 5);
        usage.forget(A);
        assert_eq!((usage.live(1), usage.mapped(A), usage.mapped(B)), (5, 0, 5));
        assert_eq!((usage.live_in(A, 1), usage.live_in(B, 1), usage.live_in(B, 2)), (0, 5, 0));
    }
}
