//! A pass of the scrub, and its bytes in the map store (`docs/format.md`).

use bytes::{Buf, BufMut};
use client_lib::{SnapshotId, VolumeId};

use crate::map::MapKey;

/// The layout of the value.
const VERSION: u16 = 1;
/// Its length with the checksum.
const BYTES: usize = 76;

/// Whether a pass is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassState {
    /// It is not.
    Running,
    /// Everything was read.
    Finished,
    /// Somebody ended it.
    Stopped,
}

/// A pass of the scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Whether it is over.
    pub state: PassState,
    /// Whether somebody asked for it; else it began by itself.
    pub by_hand: bool,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// When it ended; 0 while it runs.
    pub ended_ms: u64,
    /// Blocks that it is to read: about, until it is through.
    pub total_blocks: u64,
    /// Blocks that were read and compared.
    pub checked_blocks: u64,
    /// Those of them that were damaged.
    pub damaged_blocks: u64,
    /// Those of them that were repaired since.
    pub repaired_blocks: u64,
    /// The map that comes next.
    pub(super) at: MapKey,
    /// Its page that comes next.
    pub(super) page: u32,
}

impl Pass {
    /// One that begins.
    pub(super) fn new(by_hand: bool, total_blocks: u64, now_ms: u64) -> Pass {
        Pass {
            state: PassState::Running,
            by_hand,
            began_ms: now_ms,
            ended_ms: 0,
            total_blocks,
            checked_blocks: 0,
            damaged_blocks: 0,
            repaired_blocks: 0,
            at: MapKey { volume: VolumeId(0), snapshot: SnapshotId(0) },
            page: 0,
        }
    }

    /// Its value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.put_u16_le(VERSION);
        bytes.put_u8(match self.state {
            PassState::Running => 0,
            PassState::Finished => 1,
            PassState::Stopped => 2,
        });
        bytes.put_u8(u8::from(self.by_hand));
        bytes.put_u32_le(self.page);
        let numbers = [self.at.volume.0, self.at.snapshot.0, self.began_ms, self.ended_ms];
        let counts = [self.total_blocks, self.checked_blocks, self.damaged_blocks, self.repaired_blocks];
        numbers.into_iter().chain(counts).for_each(|number| bytes.put_u64_le(number));
        let checksum = crc32fast::hash(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    /// The pass of a value; `None` if it is none, or of another version.
    pub(super) fn decode(value: &[u8]) -> Option<Pass> {
        let (mut bytes, checksum) = value.split_last_chunk::<4>()?;
        if value.len() != BYTES
            || crc32fast::hash(bytes) != u32::from_le_bytes(*checksum)
            || bytes.get_u16_le() != VERSION
        {
            return None;
        }
        let state = match bytes.get_u8() {
            0 => PassState::Running,
            1 => PassState::Finished,
            2 => PassState::Stopped,
            _ => return None,
        };
        let by_hand = bytes.get_u8() == 1;
        let page = bytes.get_u32_le();
        let at = MapKey { volume: VolumeId(bytes.get_u64_le()), snapshot: SnapshotId(bytes.get_u64_le()) };
        Some(Pass {
            state,
            by_hand,
            began_ms: bytes.get_u64_le(),
            ended_ms: bytes.get_u64_le(),
            total_blocks: bytes.get_u64_le(),
            checked_blocks: bytes.get_u64_le(),
            damaged_blocks: bytes.get_u64_le(),
            repaired_blocks: bytes.get_u64_le(),
            at,
            page,
        })
    }
}

const _: () = assert!(BYTES == 2 + 1 + 1 + 4 + 8 * 8 + 4, "version, state, flag, page, eight numbers, checksum");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_these_bytes() {
        let pass = Pass {
            state: PassState::Stopped,
            by_hand: true,
            began_ms: 0x0102,
            ended_ms: 0x0304,
            total_blocks: 0x0506,
            checked_blocks: 0x0708,
            damaged_blocks: 0x090a,
            repaired_blocks: 0x0b0c,
            at: MapKey { volume: VolumeId(0x0d0e), snapshot: SnapshotId(0x0f10) },
            page: 0x1112,
        };
        let kept = crate::golden::check("scrub-pass.hex", &pass.encode());
        assert_eq!(Pass::decode(&kept), Some(pass));
        for at in 0..kept.len() {
            let mut damaged = kept.clone();
            damaged[at] ^= 1;
            assert_eq!(Pass::decode(&damaged), None, "byte {at}");
            assert_eq!(Pass::decode(&kept[..at]), None, "cut at {at}");
        }
    }
}
