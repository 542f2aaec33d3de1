//! How often parts of a volume are read and written, lately. Pure: time is an argument.
//!
//! Counts are kept per extent of [`EXTENT_BLOCKS`] blocks and halve every [`HALF_LIFE`]. At most [`EXTENTS_MAX`] extents are remembered:
//! beyond that, or beyond what is asked for, the coldest half is forgotten, which then counts as never touched.

use std::collections::BTreeMap;
use std::time::Duration;

/// Blocks that are counted together: 64 KiB.
pub const EXTENT_BLOCKS: u32 = 16;

/// After so long a count is half of what it was.
pub const HALF_LIFE: Duration = Duration::from_secs(60);

/// Extents that are remembered: a few mebibytes.
pub const EXTENTS_MAX: usize = 1 << 16;

/// How often something was touched, lately: the count of a steady rate settles at that rate times [`HALF_LIFE`] over ln 2.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Touched {
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
}

impl Touched {
    fn total(&self) -> f64 {
        self.reads + self.writes
    }

    fn faded(self, by: Duration) -> Touched {
        let factor = (-(by.as_secs_f64() / HALF_LIFE.as_secs_f64())).exp2();
        Touched { reads: self.reads * factor, writes: self.writes * factor }
    }
}

/// The heat of a volume.
#[derive(Clone, Debug)]
pub struct Heat {
    /// As of the time beside it.
    extents: BTreeMap<u32, (Touched, Duration)>,
    extents_max: usize,
}

impl Default for Heat {
    fn default() -> Heat {
        Heat { extents: BTreeMap::new(), extents_max: EXTENTS_MAX }
    }
}

impl Heat {
    /// Blocks from `start` on were written, once each.
    pub fn wrote(&mut self, start: u32, count: u32, now: Duration) {
        self.touch(start, count, now, |touched, share| touched.writes += share);
    }

    /// Blocks from `start` on were read, once each.
    pub fn read(&mut self, start: u32, count: u32, now: Duration) {
        self.touch(start, count, now, |touched, share| touched.reads += share);
    }

    /// How often a block was touched, as its extent was on average.
    #[must_use]
    pub fn of(&self, block: u32, now: Duration) -> Touched {
        let found = self.extents.get(&(block / EXTENT_BLOCKS));
        found.map_or(Touched::default(), |(touched, at)| touched.faded(now.saturating_sub(*at)))
    }

    /// The hottest extents, at most so many, what is most likely read first at the front. A guest keeps what it has written itself for a
    /// while, so a write counts a quarter of a read.
    #[must_use]
    pub fn hottest(&self, most: usize, now: Duration) -> Vec<u32> {
        let heat = |(touched, at): &(Touched, Duration)| {
            let touched = touched.faded(now.saturating_sub(*at));
            touched.reads + touched.writes / 4.0
        };
        let mut extents: Vec<(u32, f64)> = self.extents.iter().map(|(extent, entry)| (*extent, heat(entry))).collect();
        // Stable: of equals the first in the volume, as they are read together.
        extents.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        extents.truncate(most);
        extents.into_iter().map(|(extent, _)| extent).collect()
    }

    fn touch(&mut self, start: u32, count: u32, now: Duration, add: impl Fn(&mut Touched, f64)) {
        let Some(last) = count.checked_sub(1).map(|more| start.saturating_add(more)) else { return };
        for extent in start / EXTENT_BLOCKS..=last / EXTENT_BLOCKS {
            let (first, end) = (extent * EXTENT_BLOCKS, extent * EXTENT_BLOCKS + (EXTENT_BLOCKS - 1));
            let share = f64::from(end.min(last) - first.max(start) + 1) / f64::from(EXTENT_BLOCKS);
            let (touched, at) = self.extents.entry(extent).or_insert((Touched::default(), now));
            *touched = touched.faded(now.saturating_sub(*at));
            *at = now;
            add(touched, share);
        }
        if self.extents.len() > self.extents_max {
            self.forget(now);
        }
    }

    /// Remembers no more than so many extents from now on, those that are hottest.
    pub fn shrink(&mut self, extents_max: usize, now: Duration) {
        self.extents_max = extents_max;
        while self.extents.len() > extents_max {
            self.forget(now);
        }
    }

    fn forget(&mut self, now: Duration) {
        let heat = |(touched, at): &(Touched, Duration)| touched.faded(now.saturating_sub(*at)).total();
        let mut heats: Vec<f64> = self.extents.values().map(heat).collect();
        let middle = heats.len() / 2;
        let (_, median, _) = heats.select_nth_unstable_by(middle, f64::total_cmp);
        let median = *median;
        self.extents.retain(|_, entry| heat(entry) > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_touched_is_hot_and_cools_down() {
        let mut heat = Heat::default();
        heat.wrote(0, EXTENT_BLOCKS, s(0));
        heat.read(8, EXTENT_BLOCKS, s(0));
        assert_eq!(heat.of(3, s(0)), Touched { reads: 0.5, writes: 1.0 });
        assert_eq!(heat.of(20, s(0)), Touched { reads: 0.5, writes: 0.0 });
        assert_eq!(heat.of(3, HALF_LIFE), Touched { reads: 0.25, writes: 0.5 });
        assert_eq!(heat.of(99, s(0)), Touched::default());
        heat.wrote(0, EXTENT_BLOCKS, HALF_LIFE);
        assert_eq!(heat.of(0, HALF_LIFE).writes, 1.5);
        heat.wrote(5, 0, s(0));
    }

    #[test]
    fn the_hottest_come_first_and_reads_count_more_than_writes() {
        let mut heat = Heat::default();
        for (extent, reads, writes) in [(3, 1, 0), (5, 0, 3), (9, 2, 0), (12, 1, 0)] {
            (0..reads).for_each(|_| heat.read(extent * EXTENT_BLOCKS, EXTENT_BLOCKS, s(1)));
            (0..writes).for_each(|_| heat.wrote(extent * EXTENT_BLOCKS, EXTENT_BLOCKS, s(1)));
        }
        assert_eq!(heat.hottest(10, s(2)), [9, 3, 12, 5]);
        assert_eq!(heat.hottest(2, s(2)), [9, 3]);
        heat.read(5 * EXTENT_BLOCKS, EXTENT_BLOCKS, s(300));
        assert_eq!(heat.hottest(1, s(300)), [5], "what was is forgotten");
        heat.shrink(2, s(300));
        assert!(heat.extents.len() <= 2);
        assert_eq!(heat.hottest(1, s(300)), [5]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_it_is_the_cold_that_is_forgotten() {
        let mut heat = Heat::default();
        for _ in 0..3 {
            heat.wrote(0, 10 * EXTENT_BLOCKS, s(1));
        }
        for extent in 10..EXTENTS_MAX as u32 + 10 {
            heat.wrote(extent * EXTENT_BLOCKS, 1, s(1));
        }
        assert!(heat.extents.len() <= EXTENTS_MAX);
        assert!((0..10).all(|extent| heat.of(extent * EXTENT_BLOCKS, s(1)).writes == 3.0));
    }
}
