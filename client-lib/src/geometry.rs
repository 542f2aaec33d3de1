//! Sizes, and the arithmetic between bytes, sectors and blocks.
//!
//! A volume's map works in blocks of [`BLOCK_SIZE`]; clients may write single sectors of
//! [`SECTOR_SIZE`]. This module owns every conversion between the two, so that no other module divides.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The unit of the map, of checksums and of propagation, in bytes.
pub const BLOCK_SIZE: u32 = 4096;
/// The smallest unit a client may read or write, in bytes.
pub const SECTOR_SIZE: u32 = 512;
/// The largest volume, in bytes: 16 TiB. A dirty set of it still fits 32-bit block numbers.
pub const VOLUME_SIZE_MAX: u64 = 1 << 44;
/// The largest single read or write a volume accepts, in bytes; 32 MiB is NBD's customary maximum
/// (NBD protocol, "Block size constraints").
pub const IO_SIZE_MAX: u32 = 32 << 20;

/// Blocks of the largest volume.
pub const BLOCKS_MAX: u64 = VOLUME_SIZE_MAX / BLOCK_SIZE as u64;

/// Most snapshots of a volume: each costs some bytes in every checkpoint, and look-ups in older ones pass by the newer.
pub const SNAPSHOTS_MAX: usize = 1024;

/// Most volumes of a group: each is frozen, prepared and synced while writers of all of them are held.
pub const GROUP_VOLUMES_MAX: usize = 64;

/// Most copies of a volume, the owner's among them: the owner sends to each provider that has one.
pub const COPIES_OF_VOLUME_MAX: usize = 16;

const _: () = assert!(BLOCKS_MAX <= u32::MAX as u64 + 1, "block numbers fit u32 bitmaps");

/// The number of a block within its volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u32);

impl BlockIndex {
    /// The volume's byte at which the block starts.
    #[must_use]
    pub fn byte_offset(self) -> u64 {
        u64::from(self.0) * u64::from(BLOCK_SIZE)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A volume's validated size: a multiple of [`SECTOR_SIZE`], above 0, at most [`VOLUME_SIZE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct VolumeSize(u64);

impl VolumeSize {
    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How many blocks the volume has; the last may be partial.
    #[must_use]
    pub fn blocks(self) -> u64 {
        self.0.div_ceil(u64::from(BLOCK_SIZE))
    }

    /// Whether `offset..offset + length` lies inside the volume.
    #[must_use]
    pub fn contains(self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.0)
    }
}

impl TryFrom<u64> for VolumeSize {
    type Error = Error;

    fn try_from(bytes: u64) -> Result<VolumeSize, Error> {
        let refuse = |why: &str| {
            Err(Error::new(ErrorKind::InvalidRequest, format!("a volume of {bytes} bytes is not possible: {why}")))
        };
        if bytes == 0 {
            return refuse("the size must be above 0");
        }
        if bytes > VOLUME_SIZE_MAX {
            return refuse("the largest volume has 16 TiB");
        }
        if !bytes.is_multiple_of(u64::from(SECTOR_SIZE)) {
            return refuse("the size must be a multiple of 512");
        }
        Ok(VolumeSize(bytes))
    }
}

impl From<VolumeSize> for u64 {
    fn from(size: VolumeSize) -> u64 {
        size.0
    }
}

/// The blocks that `offset..offset + length` touches. An empty range touches none.
///
/// # Panics
/// If the range lies beyond [`VOLUME_SIZE_MAX`]: callers validate against the volume first.
#[must_use]
pub fn blocks_touched(offset: u64, length: u64) -> Range<u32> {
    let block = u64::from(BLOCK_SIZE);
    let end = offset + length;
    assert!(end <= VOLUME_SIZE_MAX, "range {offset}+{length} lies beyond the largest volume");
    let first = offset / block;
    let last = if length == 0 { first } else { end.div_ceil(block) };
    first as u32..last as u32
}

/// The blocks that lie wholly inside `offset..offset + length`; may be empty.
///
/// # Panics
/// As [`blocks_touched`].
#[must_use]
pub fn blocks_covered(offset: u64, length: u64) -> Range<u32> {
    let block = u64::from(BLOCK_SIZE);
    let end = offset + length;
    assert!(end <= VOLUME_SIZE_MAX, "range {offset}+{length} lies beyond the largest volume");
    let first = offset.div_ceil(block);
    let last = (end / block).max(first);
    first as u32..last as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_and_covered_blocks_of_a_range() {
        for (offset, length, touched, covered) in [
            (0, 4096, 0..1, 0..1),
            (0, 512, 0..1, 0..0),
            (512, 4096, 0..2, 1..1),
            (512, 8192, 0..3, 1..2),
            (4096, 8192, 1..3, 1..3),
            (8192, 0, 2..2, 2..2),
        ] {
            assert_eq!(blocks_touched(offset, length), touched, "touched by {offset}+{length}");
            assert_eq!(blocks_covered(offset, length), covered, "covered by {offset}+{length}");
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for bytes in [0, 1, 513, VOLUME_SIZE_MAX + 512, u64::MAX] {
            assert!(VolumeSize::try_from(bytes).is_err(), "{bytes}");
        }
        let size = VolumeSize::try_from(4096 + 512).expect("valid");
        assert_eq!(size.blocks(), 2);
        assert!(size.contains(4096, 512));
        assert!(!size.contains(4096, 513));
        assert!(!size.contains(u64::MAX, 1));
    }
}
