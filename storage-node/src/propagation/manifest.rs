//! A delta's table: which blocks changed, at which LSN, with which checksum. No data.
//!
//! A manifest covers the LSNs `(from, to]` of a volume and names each changed block once, in its newest version.
//! Manifests of one volume reach a replica in order and without gap: `from` of the next is `to` of the last. None reaches
//! over a snapshot: one that ends at it says so, and those after it tell of newer versions only.

use std::ops::RangeInclusive;

use client_lib::{BlockIndex, Lsn, SnapshotId, VolumeSize};
use serde::{Deserialize, Serialize};

/// Neighbouring blocks that one write left in one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRun {
    /// The first block.
    pub start: BlockIndex,
    /// The write that made this version.
    pub lsn: Lsn,
    /// What the blocks hold.
    pub content: RunContent,
}

/// What the blocks of a run hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunContent {
    /// Data with these CRC-32s, one per block.
    Data(Vec<u32>),
    /// This many blocks of zeroes; there is nothing to fetch.
    Zero(u32),
}

impl ManifestRun {
    /// How many blocks the run has.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        match &self.content {
            RunContent::Data(checksums) => checksums.len() as u32,
            RunContent::Zero(count) => *count,
        }
    }
}

/// A snapshot that was made at the end of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMark {
    /// Which.
    pub snapshot: SnapshotId,
    /// The volume's size then.
    pub size: VolumeSize,
}

/// The table of the delta `(from, to]`. Runs are sorted by `start` and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The position the receiver must be at.
    pub from: Lsn,
    /// The position the receiver knows of afterwards.
    pub to: Lsn,
    /// The changed blocks.
    pub runs: Vec<ManifestRun>,
    /// The snapshot that was made at `to`, if this ends there.
    pub mark: Option<SnapshotMark>,
}

/// A run of neighbouring blocks, whatever their versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRun {
    /// The first block.
    pub start: BlockIndex,
    /// How many, above 0.
    pub count: u32,
}

impl BlockRun {
    /// Blocks in order, some perhaps several times, as runs.
    #[must_use]
    pub fn of(blocks: impl IntoIterator<Item = u32>) -> Vec<BlockRun> {
        let mut runs: Vec<BlockRun> = Vec::new();
        for block in blocks {
            match runs.last_mut().map(|last| (last.start.0 + (last.count - 1), last)) {
                Some((end, _)) if end == block => {}
                Some((end, last)) if end.checked_add(1) == Some(block) => last.count += 1,
                _ => runs.push(BlockRun { start: BlockIndex(block), count: 1 }),
            }
        }
        runs
    }

    /// Its blocks. The last one there can be is `u32::MAX`, so what is behind a run is no block in all cases.
    pub fn blocks(&self) -> RangeInclusive<u32> {
        self.start.0..=self.start.0 + (self.count - 1)
    }

    /// The block behind it, if there can be one.
    #[must_use]
    pub fn end(&self) -> Option<BlockIndex> {
        self.start.0.checked_add(self.count).map(BlockIndex)
    }
}

/// A run of neighbouring blocks in the version that one write made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRun {
    /// The first block.
    pub start: BlockIndex,
    /// How many, above 0.
    pub count: u32,
    /// The write.
    pub lsn: Lsn,
}

impl VersionRun {
    /// Versions in block order, as runs.
    #[must_use]
    pub fn of(versions: &[(u32, Lsn)]) -> Vec<VersionRun> {
        let mut runs: Vec<VersionRun> = Vec::new();
        for (block, lsn) in versions {
            match runs.last_mut() {
                Some(last) if last.lsn == *lsn && last.start.0.checked_add(last.count) == Some(*block) => {
                    last.count += 1
                }
                _ => runs.push(VersionRun { start: BlockIndex(*block), count: 1, lsn: *lsn }),
            }
        }
        runs
    }

    /// The versions, one by one. A run that comes from elsewhere is to be bounded first.
    pub fn versions(&self) -> impl Iterator<Item = (u32, Lsn)> + use<> {
        let (start, lsn) = (self.start.0, self.lsn);
        (0..self.count).filter_map(move |index| Some((start.checked_add(index)?, lsn)))
    }
}

/// One block in one version, with its data: what a push or a pull carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedBlock {
    /// Which block.
    pub block: BlockIndex,
    /// Which version.
    pub lsn: Lsn,
    /// Its content; `None` is a block of zeroes.
    pub data: Option<bytes::Bytes>,
}
