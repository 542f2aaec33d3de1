//! Sealed deltas at the owner: the versions at seal time, kept readable while they are sent.
//!
//! A pin holds the version of every block of its delta and a reference to the segment of each, so that the log does
//! not recycle what a replica still needs. Pins live in memory: after a restart the owner seals anew. A block that was
//! stale when it was sealed can be filled in later. Pure.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::Lsn;
use roaring::RoaringBitmap;

use crate::map::page::{Content, Place, Version};
use crate::map::usage::Usage;

/// The versions of one delta, by block.
#[derive(Clone, Debug)]
struct Pin {
    /// Where the delta ends.
    to: Lsn,
    versions: Vec<(u32, Version)>,
}

impl Pin {
    /// How many blocks with data here are among `changed`.
    fn count_in(&self, changed: &RoaringBitmap) -> u64 {
        let has_place = |at: usize| self.versions[at].1.content.place().is_some();
        // The shorter of the two is walked.
        let count = if changed.len() < self.versions.len() as u64 {
            changed.iter().filter_map(|block| self.find(block)).filter(|at| has_place(*at)).count()
        } else {
            (0..self.versions.len()).filter(|at| has_place(*at) && changed.contains(self.versions[*at].0)).count()
        };
        count as u64
    }

    fn find(&self, block: u32) -> Option<usize> {
        self.versions.binary_search_by_key(&block, |(block, _)| *block).ok()
    }
}

/// The pinned deltas of a volume.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    pins: BTreeMap<u64, Pin>,
}

impl Pins {
    /// Pins `versions`, sorted by block, of a delta that ends at `to`, as `pin`.
    pub fn insert(&mut self, pin: u64, to: Lsn, versions: Vec<(u32, Version)>, usage: &mut Usage) {
        for (segment, count) in by_segment(&versions) {
            usage.pin_many(segment, count);
        }
        assert!(self.pins.insert(pin, Pin { to, versions }).is_none(), "pin {pin} is new");
    }

    /// The version of `block` under `pin`; `None` if the pin or the block in it does not exist.
    #[must_use]
    pub fn version(&self, pin: u64, block: u32) -> Option<Version> {
        let pin = self.pins.get(&pin)?;
        pin.find(block).map(|at| pin.versions[at].1)
    }

    /// About how many blocks are kept for pins alone: those that changed since their delta was sealed, as `changed_since` tells.
    /// Some of them a snapshot may need as well, and two pins may share some.
    pub fn held(&self, changed_since: impl Fn(Lsn) -> Option<RoaringBitmap>) -> u64 {
        let held =
            |pin: &Pin| changed_since(pin.to).map_or(pin.versions.len() as u64, |changed| pin.count_in(&changed));
        self.pins.values().map(held).sum()
    }

    /// Whether `pin` exists.
    #[must_use]
    pub fn contains(&self, pin: u64) -> bool {
        self.pins.contains_key(&pin)
    }

    /// The checksum under which a pin wants the data of `block` at `lsn`, if one does.
    #[must_use]
    pub fn wants(&self, block: u32, lsn: Lsn) -> Option<u32> {
        self.pins.values().find_map(|pin| match pin.versions[pin.find(block)?].1 {
            Version { lsn: found, content: Content::Stale { crc } } if found == lsn => Some(crc),
            _ => None,
        })
    }

    /// The version of `block` that a pin lacks, if one does.
    #[must_use]
    pub fn stale(&self, block: u32) -> Option<Lsn> {
        let found = |pin: &Pin| pin.find(block).map(|at| pin.versions[at].1);
        self.pins.values().filter_map(found).find(|version| version.content.is_stale()).map(|version| version.lsn)
    }

    /// The data of `block` at `lsn` is now at `place`, for pins that have it already too: the place they know may be damaged.
    /// Returns whether a pin wanted it.
    pub fn receive(&mut self, block: u32, lsn: Lsn, place: Place, usage: &mut Usage) -> bool {
        let mut wanted = false;
        for pin in self.pins.values_mut() {
            let Some(at) = pin.find(block) else { continue };
            let version = &mut pin.versions[at].1;
            if version.lsn != lsn {
                continue;
            }
            match version.content {
                Content::Stale { crc } => {
                    version.content = Content::Local { place, crc };
                    usage.pin(place.segment);
                    wanted = true;
                }
                Content::Local { place: before, crc } => {
                    version.content = Content::Local { place, crc };
                    usage.pin(place.segment);
                    usage.unpin(before.segment);
                }
                Content::Zero => {}
            }
        }
        wanted
    }

    /// Lets go of `pin`.
    pub fn release(&mut self, pin: u64, usage: &mut Usage) {
        let Some(pin) = self.pins.remove(&pin) else { return };
        for (segment, count) in by_segment(&pin.versions) {
            usage.unpin_many(segment, count);
        }
    }

    /// Lets go of everything.
    pub fn release_all(&mut self, usage: &mut Usage) {
        let pins: BTreeSet<u64> = self.pins.keys().copied().collect();
        for pin in pins {
            self.release(pin, usage);
        }
    }
}

/// How many of `versions` lie in each segment.
fn by_segment(versions: &[(u32, Version)]) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    let segments = versions.iter().filter_map(|(_, version)| version.content.place()).map(|place| place.segment);
    for segment in segments {
        *counts.entry(segment).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;

    #[test]
    fn a_pin_holds_its_segments_and_takes_what_was_stale() {
        let mut usage = Usage::default();
        let mut pins = Pins::default();
        let lsn = Lsn::new(Epoch(1), 9);
        let local = Content::Local { place: Place { segment: 3, block: 1 }, crc: 7 };
        pins.insert(
            1,
            lsn,
            vec![(4, Version { lsn, content: local }), (6, Version { lsn, content: Content::Stale { crc: 8 } })],
            &mut usage,
        );
        assert!(!usage.is_free(3));
        assert_eq!(pins.wants(4, lsn), None, "it is here");
        assert_eq!(pins.wants(6, Lsn::ZERO), None, "another version");
        assert_eq!(pins.wants(6, lsn), Some(8));
        assert!(pins.receive(6, lsn, Place { segment: 5, block: 0 }, &mut usage));
        assert!(!pins.receive(6, lsn, Place { segment: 6, block: 0 }, &mut usage), "once");
        assert_eq!(pins.version(1, 6).expect("pinned").content.place(), Some(Place { segment: 6, block: 0 }), "moved");
        assert!(usage.is_free(5) && !usage.is_free(6));
        let changed = |blocks: &[u32]| Some(RoaringBitmap::from_iter(blocks.iter().copied()));
        assert_eq!(pins.held(|to| changed(if to == lsn { &[6, 7] } else { &[4] })), 1, "overwritten since");
        assert_eq!(pins.held(|_| changed(&[3, 4, 5, 6, 7])), 2, "a long list of changes");
        assert_eq!(pins.held(|_| None), 2, "all, if nobody knows");
        pins.release(1, &mut usage);
        assert!(usage.is_free(3) && usage.is_free(5) && usage.is_free(6));
        pins.release(1, &mut usage);
    }
}
