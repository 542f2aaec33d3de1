//! What a lazy replica has been told of and not been sent, and what of it is worth sending before the interval is over. Pure: time is
//! an argument.
//!
//! A block becomes a candidate when it has been left alone for a while; the volume's order says which go first, and which wait. It
//! is known of at most [`BLOCKS_MAX`] blocks: what is beyond that goes with the delta.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{BLOCK_SIZE, Lsn};

use super::heat::{Heat, Touched};
use super::manifest::{Manifest, RunContent};
use super::order::{Candidate, SendOrder, arranged};

/// Blocks that are remembered: 256 MiB of them.
pub const BLOCKS_MAX: usize = 1 << 16;

/// Of an interval, the share that a block must have been left alone for.
const REST_SHARE: u32 = 4;

/// The version of a block that the replica lacks.
#[derive(Clone, Copy, Debug)]
struct Lacking {
    lsn: Lsn,
    /// In how many manifests it was since the last delta: about how often it was written.
    writes: u32,
    told: Duration,
    is_sent: bool,
}

/// The blocks of the next delta.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    blocks: BTreeMap<u32, Lacking>,
}

impl Ahead {
    /// The replica was told of this.
    pub fn told(&mut self, manifest: &Manifest, now: Duration) {
        for run in &manifest.runs {
            for block in run.start.0..=run.start.0 + (run.blocks() - 1) {
                if let RunContent::Zero(_) = run.content {
                    self.blocks.remove(&block);
                    continue;
                }
                let is_full = self.blocks.len() >= BLOCKS_MAX;
                let fresh = Lacking { lsn: run.lsn, writes: 1, told: now, is_sent: false };
                match self.blocks.get_mut(&block) {
                    Some(known) => *known = Lacking { writes: known.writes.saturating_add(1), ..fresh },
                    None if is_full => {}
                    None => drop(self.blocks.insert(block, fresh)),
                }
            }
        }
    }

    /// Everything goes with a delta from here on.
    pub fn begin_anew(&mut self) {
        self.blocks.clear();
    }

    /// The replica has applied everything up to `watermark`.
    pub fn applied(&mut self, watermark: Lsn) {
        self.blocks.retain(|_, lacking| lacking.lsn > watermark);
    }

    /// Up to `most` blocks to send now, first things first; they count as sent.
    pub fn take(
        &mut self,
        order: &dyn SendOrder,
        heat: &Heat,
        interval: Duration,
        most: usize,
        now: Duration,
    ) -> Vec<(u32, Lsn)> {
        let rest = interval / REST_SHARE;
        let rested = self.blocks.iter().filter(|(_, it)| !it.is_sent && now.saturating_sub(it.told) >= rest);
        let candidates = rested.map(|(block, it)| {
            let Touched { reads, writes } = heat.of(*block, now);
            let touched = Touched { reads, writes: writes.max(f64::from(it.writes)) };
            Candidate { block: *block, lsn: it.lsn, touched, bytes: BLOCK_SIZE }
        });
        let mut taken = arranged(order, candidates);
        taken.truncate(most);
        for candidate in &taken {
            if let Some(it) = self.blocks.get_mut(&candidate.block) {
                it.is_sent = true;
            }
        }
        taken.iter().map(|candidate| (candidate.block, candidate.lsn)).collect()
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{BlockIndex, Epoch};

    use super::*;
    use crate::propagation::manifest::ManifestRun;
    use crate::propagation::order::{Benefit, LogOrder};

    const INTERVAL: Duration = Duration::from_secs(40);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn manifest(runs: &[(u32, u64, RunContent)]) -> Manifest {
        let run = |(start, sequence, content): &(u32, u64, RunContent)| ManifestRun {
            start: BlockIndex(*start),
            lsn: lsn(*sequence),
            content: content.clone(),
        };
        Manifest { from: lsn(0), to: lsn(99), runs: runs.iter().map(run).collect(), mark: None }
    }

    fn data(blocks: u32) -> RunContent {
        RunContent::Data((0..blocks).collect())
    }

    #[test]
    fn what_was_left_alone_is_sent_ahead_once_and_again_when_it_was_written_again() {
        let (mut ahead, heat) = (Ahead::default(), Heat::default());
        ahead.told(&manifest(&[(5, 2, data(2)), (9, 1, data(1))]), s(0));
        let take = |ahead: &mut Ahead, now| ahead.take(&LogOrder, &heat, INTERVAL, 2, now);
        assert!(take(&mut ahead, s(9)).is_empty(), "it may be written again");
        assert_eq!(take(&mut ahead, s(10)), [(9, lsn(1)), (5, lsn(2))], "so many at a time, the oldest first");
        assert_eq!(take(&mut ahead, s(11)), [(6, lsn(2))]);
        assert!(take(&mut ahead, s(12)).is_empty(), "once");
        ahead.told(&manifest(&[(5, 7, data(1)), (6, 8, RunContent::Zero(1))]), s(20));
        assert_eq!(take(&mut ahead, s(30)), [(5, lsn(7))], "of zeroes there is nothing to send");
        ahead.told(&manifest(&[(5, 9, data(1)), (7, 10, data(1))]), s(31));
        ahead.applied(lsn(9));
        assert_eq!(take(&mut ahead, s(41)), [(7, lsn(10))], "it has the other one");
        ahead.told(&manifest(&[(5, 11, data(1))]), s(42));
        ahead.begin_anew();
        assert!(take(&mut ahead, s(60)).is_empty(), "it goes with the delta");
    }

    #[test]
    fn what_is_written_again_and_again_waits_unless_it_is_read() {
        let (mut ahead, mut heat) = (Ahead::default(), Heat::default());
        for round in 1..=30 {
            ahead.told(&manifest(&[(5, round, data(1)), (100, round, data(1))]), s(round));
        }
        ahead.told(&manifest(&[(7, 31, data(1))]), s(31));
        for _ in 0..100 {
            heat.read(96, 16, s(31));
        }
        let taken = ahead.take(&Benefit, &heat, INTERVAL, 10, s(41));
        assert_eq!(taken, [(100, lsn(30)), (7, lsn(31))]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ahead = Ahead::default();
        ahead.told(&manifest(&[(0, 1, data(BLOCKS_MAX as u32 + 10))]), s(0));
        assert_eq!(ahead.blocks.len(), BLOCKS_MAX);
        let taken = ahead.take(&LogOrder, &Heat::default(), INTERVAL, usize::MAX, s(10));
        assert_eq!(taken.len(), BLOCKS_MAX);
    }
}
