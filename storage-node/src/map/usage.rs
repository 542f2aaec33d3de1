//! Which segments are still needed: live blocks per map and segment, and pins.
//!
//! A block is live once per version that points to it: the live map of a volume counts for its layers too, and what
//! snapshots share is counted in one of them ([`super::snapshot`]). A segment without live blocks and without pins is free for
//! recycling once a checkpoint that says so is committed: nothing can come to point into it again, since new
//! entries only come from appends. Counting per map makes deletion of a map cost segments, not blocks.
//! Deliberately knows nothing of segment files.
//!
//! Several versions may point to one place, after a rollback or from a clone: *aliases*. What such a segment would cost to
//! empty is less than its live blocks. Which versions they are is not kept, only how many at most point to a place that another
//! points to as well: told when an alias comes to be ([`Usage::add_alias`]), and counted when the cleaner has moved the blocks
//! ([`Usage::note_moved`]). When a version goes, it is not looked up whether it was one. So [`Usage::needed`] is exact where there
//! are none and right after a move, and never too high: else segments full of garbage would be taken for full ones for as long as
//! the volumes share anything (`docs/decisions/0018-clones-share-places.md`).

use std::collections::{BTreeMap, BTreeSet};

use crate::map::MapKey;
use crate::map::page::Place;

/// Reference counts of one segment over all maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    live: u64,
    pinned: u64,
    /// Of `live`, those that point where another does too: at most so many.
    aliases: u64,
}

impl Counts {
    /// So many are gone. Returns whether that says something about the aliases.
    fn let_go(&mut self, count: u32) -> bool {
        self.live -= u64::from(count);
        // What is live needs one place at least.
        let most = self.live.saturating_sub(1);
        let is_more = self.aliases > most;
        self.aliases = self.aliases.min(most);
        is_more
    }
}

/// The reference counts of a shard.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    maps: BTreeMap<MapKey, BTreeMap<u32, u32>>,
    segments: BTreeMap<u32, Counts>,
    changed: BTreeSet<(MapKey, u32)>,
    /// Segments whose aliases the next checkpoint writes.
    changed_aliases: BTreeSet<u32>,
    /// Where the blocks are now that are being moved.
    moved: BTreeSet<Place>,
}

impl Usage {
    /// Takes over a count from a checkpoint.
    pub fn restore(&mut self, map: impl Into<MapKey>, segment: u32, live: u32) {
        self.maps.entry(map.into()).or_default().insert(segment, live);
        self.segments.entry(segment).or_default().live += u64::from(live);
    }

    /// Takes over from a checkpoint, after the counts, how many aliases a segment has at most.
    pub fn restore_aliases(&mut self, segment: u32, aliases: u64) {
        // The counts of a segment that is free are gone, and this may have been written before.
        if let Some(counts) = self.segments.get_mut(&segment) {
            counts.aliases = aliases;
            counts.let_go(0);
        }
    }

    /// Blocks are about to be moved, with all entries that point to them.
    pub fn begin_moves(&mut self) {
        self.moved.clear();
    }

    /// So many entries that pointed into segment `from` point to `to` now: they were added there and removed here. May be told
    /// more than once of a block, for one volume after the other.
    pub fn note_moved(&mut self, from: u32, to: Place, entries: u32) {
        let is_first = entries > 0 && self.moved.insert(to);
        let aliases = u64::from(entries - u32::from(is_first));
        if aliases == 0 {
            return;
        }
        self.segments.entry(to.segment).or_default().aliases += aliases;
        let counts = self.segments.entry(from).or_default();
        counts.aliases = counts.aliases.saturating_sub(aliases);
        self.changed_aliases.extend([from, to.segment]);
    }

    /// An entry of `map` now points to `place`, where another entry of this or another map points too.
    pub fn add_alias(&mut self, map: impl Into<MapKey>, place: Place) {
        self.add(map, place);
        self.note_alias(place.segment);
    }

    /// An entry that was added points where another does.
    pub fn note_alias(&mut self, segment: u32) {
        self.segments.entry(segment).or_default().aliases += 1;
        self.changed_aliases.insert(segment);
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
        if self.segments.get_mut(&segment).expect("the segment has live blocks").let_go(count) {
            self.changed_aliases.insert(segment);
        }
        self.changed.insert((map, segment));
    }

    /// Every entry of `map` is gone.
    pub fn forget(&mut self, map: impl Into<MapKey>) {
        let map = map.into();
        for (segment, live) in self.maps.remove(&map).unwrap_or_default() {
            if self.segments.get_mut(&segment).expect("the segment has live blocks").let_go(live) {
                self.changed_aliases.insert(segment);
            }
        }
        self.changed.retain(|(changed, _)| *changed != map);
    }

    /// Something reads from `segment`, or will.
    pub fn pin(&mut self, segment: u32) {
        self.pin_many(segment, 1);
    }

    /// As [`pin`](Self::pin), so many times.
    pub fn pin_many(&mut self, segment: u32, count: u64) {
        self.segments.entry(segment).or_default().pinned += count;
    }

    /// The opposite of [`pin`](Self::pin), once for each.
    ///
    /// # Panics
    /// If nothing pinned it.
    pub fn unpin(&mut self, segment: u32) {
        self.unpin_many(segment, 1);
    }

    /// As [`unpin`](Self::unpin), so many times.
    ///
    /// # Panics
    /// If it is not pinned as often.
    pub fn unpin_many(&mut self, segment: u32, count: u64) {
        let counts = self.segments.get_mut(&segment).expect("the segment is pinned");
        let left = counts.pinned.checked_sub(count);
        counts.pinned = left.unwrap_or_else(|| panic!("segment {segment} is not pinned {count} times"));
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

    /// Blocks of `segment` that something points to: exactly, where it has no aliases, and never more than there are.
    #[must_use]
    pub fn needed(&self, segment: u32) -> u64 {
        let Some(counts) = self.segments.get(&segment) else { return 0 };
        if counts.aliases == 0 {
            return counts.live;
        }
        // No map points to a place twice.
        let most = self.maps.values().filter_map(|table| table.get(&segment)).max().copied().unwrap_or(0);
        (counts.live - counts.aliases).max(u64::from(most))
    }

    /// Entries that point into `segment`, aliases too: 0 when nothing there is needed.
    #[must_use]
    pub fn live(&self, segment: u32) -> u64 {
        self.segments.get(&segment).map_or(0, |counts| counts.live)
    }

    /// Whether something reads from `segment`, or will.
    #[must_use]
    pub fn is_pinned(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_some_and(|counts| counts.pinned > 0)
    }

    /// Segments whose aliases changed since the last call, with how many they have at most, for the checkpoint.
    pub fn take_changed_aliases(&mut self) -> Vec<(u32, u64)> {
        let aliases = |segment: &u32| self.segments.get(segment).map_or(0, |counts| counts.aliases);
        std::mem::take(&mut self.changed_aliases).into_iter().map(|segment| (segment, aliases(&segment))).collect()
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
    fn aliases_are_counted_once_where_that_is_known_and_never_too_often() {
        let mut usage = Usage::default();
        usage.add_many(A, 7, 10);
        // B begins as A; each then loses five: of the same blocks, or of others.
        (0..10).for_each(|_| usage.add_alias(B, place(7)));
        assert_eq!((usage.live(7), usage.needed(7)), (20, 10));
        usage.remove_many(A, 7, 5);
        assert_eq!(usage.needed(7), 10, "all of B's");
        usage.remove_many(B, 7, 5);
        assert_eq!(usage.needed(7), 5, "as many at least");
        // They were others: ten blocks are moved, with one entry each.
        for block in 0..10 {
            usage.begin_moves();
            let (map, to) = (if block < 5 { A } else { B }, Place { segment: 8, block });
            usage.add(map, to);
            usage.remove(map, place(7));
            usage.note_moved(7, to, 1);
        }
        assert_eq!((usage.live(8), usage.needed(8), usage.is_free(7)), (10, 10, true));
        // Both have one more, which is moved with both.
        usage.add(A, place(9));
        usage.add_alias(B, place(9));
        usage.begin_moves();
        let to = Place { segment: 8, block: 10 };
        for map in [A, B] {
            usage.add(map, to);
            usage.remove(map, place(9));
            usage.note_moved(9, to, 1);
        }
        assert_eq!((usage.live(8), usage.needed(8), usage.needed(9)), (12, 11, 0));
        assert_eq!(usage.take_changed_aliases(), [(7, 0), (8, 1), (9, 0)]);
        let mut restored = Usage::default();
        restored.restore(A, 8, 6);
        restored.restore(B, 8, 6);
        restored.restore_aliases(8, 1);
        restored.restore_aliases(9, 3);
        assert_eq!((restored.needed(8), restored.is_free(9)), (11, true), "what is free has none");
        restored.forget(B);
        assert_eq!(restored.needed(8), 6);
        restored.forget(A);
        assert_eq!((restored.is_free(8), restored.take_changed_aliases()), (true, vec![(8, 0)]));
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
