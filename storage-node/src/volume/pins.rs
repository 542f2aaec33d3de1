//! Sealed deltas at the owner: the versions at seal time, kept readable while they are sent.
//!
//! A pin knows which blocks its delta has, and of those that were overwritten since, the version, with a reference to its segment so that the log does
//! not recycle what a replica still needs. The others are as the volume has them. So a delta costs what is overwritten while it is
//! sent, and to seal one costs no more the more it has. Pins live in memory: after a restart the owner seals anew. A block that was
//! stale when it was sealed can be filled in later. Pure.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::Lsn;
use roaring::RoaringBitmap;

use crate::map::page::{Content, Place, Version};
use crate::map::usage::Usage;

/// One delta.
#[derive(Clone, Debug)]
struct Pin {
    /// Where the delta begins and ends.
    from: Lsn,
    to: Lsn,
    /// Blocks that were not overwritten since. The volume has their versions, of which those after `from` are in the delta.
    open: RoaringBitmap,
    /// The versions of others, by block.
    kept: BTreeMap<u32, Version>,
}

impl Pin {
    /// How many blocks with data here are among `changed`.
    fn count_in(&self, changed: &RoaringBitmap) -> u64 {
        let has_place = |version: &&Version| version.content.place().is_some();
        // The shorter of the two is walked.
        let count = if changed.len() < self.kept.len() as u64 {
            changed.iter().filter_map(|block| self.kept.get(&block)).filter(has_place).count()
        } else {
            let kept = self.kept.iter().filter(|(block, _)| changed.contains(**block));
            kept.map(|(_, version)| version).filter(has_place).count()
        };
        count as u64
    }
}

/// Where the version of a block in a delta is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// It is this one.
    Kept(Version),
    /// It is the volume's, if that is newer than this.
    Open(Lsn),
}

/// The pinned deltas of a volume.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    pins: BTreeMap<u64, Pin>,
}

impl Pins {
    /// Pins `versions`, sorted by block, of a delta that ends at `to`, as `pin`.
    pub fn insert(&mut self, pin: u64, to: Lsn, versions: Vec<(u32, Version)>, usage: &mut Usage) {
        let kept = BTreeMap::from_iter(versions);
        for (segment, count) in by_segment(&kept) {
            usage.pin_many(segment, count);
        }
        self.add(pin, Pin { from: Lsn::ZERO, to, open: RoaringBitmap::new(), kept });
    }

    /// Pins what `blocks` have now that changed after `from`, up to `to`, as `pin`. Whoever overwrites one of them [keeps](Self::keep)
    /// its version first.
    pub fn open(&mut self, pin: u64, from: Lsn, to: Lsn, blocks: RoaringBitmap) {
        self.add(pin, Pin { from, to, open: blocks, kept: BTreeMap::new() });
    }

    fn add(&mut self, number: u64, pin: Pin) {
        assert!(self.pins.insert(number, pin).is_none(), "pin {number} is new");
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    /// Whether a pin has no version of its own of `block`, and wants one before the volume has another.
    #[must_use]
    pub fn is_open(&self, block: u32) -> bool {
        self.pins.values().any(|pin| pin.open.contains(block))
    }

    /// `block` is about to be overwritten: `version` is what it has.
    pub fn keep(&mut self, block: u32, version: Option<Version>, usage: &mut Usage) {
        for pin in self.pins.values_mut() {
            let is_in = pin.open.remove(block);
            let Some(version) = version.filter(|version| is_in && version.lsn > pin.from) else { continue };
            if let Some(place) = version.content.place() {
                usage.pin(place.segment);
            }
            pin.kept.insert(block, version);
        }
    }

    /// Where the version of `block` under `pin` is; `None` if the pin or the block in it does not exist.
    #[must_use]
    pub fn find(&self, pin: u64, block: u32) -> Option<Pinned> {
        let pin = self.pins.get(&pin)?;
        let open = || pin.open.contains(block).then_some(Pinned::Open(pin.from));
        pin.kept.get(&block).map(|version| Pinned::Kept(*version)).or_else(open)
    }

    /// About how many blocks are kept for pins alone: those that changed since their delta was sealed, as `changed_since` tells.
    /// Some of them a snapshot may need as well, and two pins may share some.
    pub fn held(&self, changed_since: impl Fn(Lsn) -> Option<RoaringBitmap>) -> u64 {
        let held = |pin: &Pin| changed_since(pin.to).map_or(pin.kept.len() as u64, |changed| pin.count_in(&changed));
        self.pins.values().filter(|pin| !pin.kept.is_empty()).map(held).sum()
    }

    /// Whether `pin` exists.
    #[must_use]
    pub fn contains(&self, pin: u64) -> bool {
        self.pins.contains_key(&pin)
    }

    /// The checksum under which a pin, and not the volume, wants the data of `block` at `lsn`, if one does.
    #[must_use]
    pub fn wants(&self, block: u32, lsn: Lsn) -> Option<u32> {
        self.pins.values().find_map(|pin| match *pin.kept.get(&block)? {
            Version { lsn: found, content: Content::Stale { crc } } if found == lsn => Some(crc),
            _ => None,
        })
    }

    /// The version of `block` that a pin, and not the volume, lacks, if one does.
    #[must_use]
    pub fn stale(&self, block: u32) -> Option<Lsn> {
        let found = self.pins.values().filter_map(|pin| pin.kept.get(&block));
        found.into_iter().find(|version| version.content.is_stale()).map(|version| version.lsn)
    }

    /// The data of `block` at `lsn` is now at `place`, for pins that have it already too: the place they know may be damaged.
    /// Returns whether a pin wanted it.
    pub fn receive(&mut self, block: u32, lsn: Lsn, place: Place, usage: &mut Usage) -> bool {
        let mut wanted = false;
        for pin in self.pins.values_mut() {
            let Some(version) = pin.kept.get_mut(&block).filter(|version| version.lsn == lsn) else { continue };
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
        for (segment, count) in by_segment(&pin.kept) {
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
fn by_segment(versions: &BTreeMap<u32, Version>) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    let segments = versions.values().filter_map(|version| version.content.place()).map(|place| place.segment);
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
        let moved = Version { lsn, content: Content::Local { place: Place { segment: 6, block: 0 }, crc: 8 } };
        assert_eq!(pins.find(1, 6), Some(Pinned::Kept(moved)), "moved");
        assert!(usage.is_free(5) && !usage.is_free(6));
        let changed = |blocks: &[u32]| Some(RoaringBitmap::from_iter(blocks.iter().copied()));
        assert_eq!(pins.held(|to| changed(if to == lsn { &[6, 7] } else { &[4] })), 1, "overwritten since");
        assert_eq!(pins.held(|_| changed(&[3, 4, 5, 6, 7])), 2, "a long list of changes");
        assert_eq!(pins.held(|_| None), 2, "all, if nobody knows");
        pins.release(1, &mut usage);
        assert!(usage.is_free(3) && usage.is_free(5) && usage.is_free(6));
        pins.release(1, &mut usage);
    }

    #[test]
    fn an_open_pin_keeps_what_is_overwritten_and_only_that() {
        let (mut usage, mut pins) = (Usage::default(), Pins::default());
        let at = |sequence| Lsn::new(Epoch(1), sequence);
        let local = |sequence, segment| {
            let content = Content::Local { place: Place { segment, block: 0 }, crc: 7 };
            Some(Version { lsn: at(sequence), content })
        };
        pins.open(1, at(5), at(9), RoaringBitmap::from_iter([2, 3, 4]));
        assert_eq!((pins.find(1, 2), pins.find(1, 5), pins.find(2, 2)), (Some(Pinned::Open(at(5))), None, None));
        assert!(pins.is_open(2) && !pins.is_open(5));
        // A history says "and perhaps more": this one was written before the delta begins.
        pins.keep(3, local(5, 8), &mut usage);
        assert_eq!(pins.find(1, 3), None);
        pins.keep(4, None, &mut usage);
        assert_eq!(pins.find(1, 4), None);
        assert!(usage.is_free(8) && usage.is_free(9));
        pins.keep(2, local(7, 9), &mut usage);
        assert_eq!(pins.find(1, 2), local(7, 9).map(Pinned::Kept));
        assert!(!usage.is_free(9) && !pins.is_open(2));
        pins.keep(2, local(10, 8), &mut usage);
        assert_eq!(
            pins.find(1, 2),
            local(7, 9).map(Pinned::Kept),
            "the version of then, however often it is overwritten"
        );
        assert_eq!(pins.held(|_| Some(RoaringBitmap::from_iter([2, 3]))), 1);
        pins.release(1, &mut usage);
        assert!(usage.is_free(9) && usage.is_free(8) && pins.find(1, 2).is_none());
    }
}
