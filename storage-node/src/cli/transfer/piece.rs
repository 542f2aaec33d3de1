//! The unit of copying: a piece of an image, its digest, and what of it is not zero. Pure.
//!
//! The checksum of an image is a chain over its pieces of [`PIECE_LEN`], the last one shorter: starting from 32 zero
//! bytes, `chain = BLAKE3(chain ‖ BLAKE3(piece))`. So it is 32 bytes to resume from, pieces are hashed in parallel, and a
//! hole costs one small hash per piece instead of reading and hashing its zeroes.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use blake3::Hash;
use bytes::Bytes;
use client_lib::{BLOCK_SIZE, ReadPart};
use serde::{Deserialize, Serialize};

/// Bytes of a piece: large enough that requests cost little beside their data, small enough for a processor's cache.
/// Part of what a checksum means.
pub(super) const PIECE_LEN: u64 = 1 << 20;
/// The smallest run of zeroes that is told from data, in bytes: a block of a volume's map.
pub(super) const ZERO_LEN_MIN: u32 = BLOCK_SIZE;
const _: () = assert!(PIECE_LEN.is_multiple_of(ZERO_LEN_MIN as u64), "pieces begin at blocks");

/// A block of zeroes to compare with; the longest that any target allocates.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

static ZERO_PIECE: LazyLock<Hash> = LazyLock::new(|| hash_of_zeroes(PIECE_LEN));

fn hash_of_zeroes(length: u64) -> Hash {
    let mut hasher = blake3::Hasher::new();
    update_with_zeroes(&mut hasher, length);
    hasher.finalize()
}

fn update_with_zeroes(hasher: &mut blake3::Hasher, length: u64) {
    let mut left = length as usize;
    while left > 0 {
        let some = left.min(ZEROES.len());
        hasher.update(&ZEROES[..some]);
        left -= some;
    }
}

/// The checksum of the pieces so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(in crate::cli) struct Checksum([u8; 32]);

/// What a checksum is called in front of its digits.
const CHECKSUM_NAME: &str = "blake3-1m";

impl Checksum {
    /// Of no pieces.
    pub(super) fn new() -> Checksum {
        Checksum([0; 32])
    }

    /// Adds the next piece.
    pub(super) fn push(&mut self, piece: &Hash) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(piece.as_bytes());
        self.0 = *hasher.finalize().as_bytes();
    }

    /// Adds the next pieces, which are `length` bytes of zeroes.
    pub(super) fn push_zeroes(&mut self, length: u64) {
        for _ in 0..length / PIECE_LEN {
            self.push(&ZERO_PIECE);
        }
        if !length.is_multiple_of(PIECE_LEN) {
            self.push(&hash_of_zeroes(length % PIECE_LEN));
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CHECKSUM_NAME}:{}", Hash::from_bytes(self.0).to_hex())
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Checksum, String> {
        let digits = text.strip_prefix(CHECKSUM_NAME).and_then(|rest| rest.strip_prefix(':'));
        let hash = digits.and_then(|digits| Hash::from_hex(digits).ok());
        hash.map(|hash| Checksum(*hash.as_bytes())).ok_or_else(|| format!("{text:?} is not a checksum"))
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> String {
        checksum.to_string()
    }
}

impl TryFrom<String> for Checksum {
    type Error = String;

    fn try_from(text: String) -> Result<Checksum, String> {
        text.parse()
    }
}

/// A piece that was read and looked at.
#[derive(Debug)]
pub(super) struct Piece {
    /// Its hash, zeroes included.
    pub(super) hash: Hash,
    /// What is to be written: position and bytes, in order. Between them are zeroes.
    pub(super) runs: Vec<(u64, Bytes)>,
    /// The last byte's position and one.
    pub(super) end: u64,
}

impl Piece {
    /// Looks at the piece that begins at `offset` and was read as `parts`. Runs begin and end at multiples of
    /// `granularity`, a power of two at least [`ZERO_LEN_MIN`], or at the end of the piece.
    pub(super) fn new(offset: u64, parts: Vec<ReadPart>, granularity: u32) -> Piece {
        let granularity = granularity as usize;
        let parts = aligned(parts, granularity);
        let mut hasher = blake3::Hasher::new();
        let (mut at, mut runs) = (offset, Vec::new());
        for part in parts {
            match part {
                ReadPart::Zero(length) => {
                    update_with_zeroes(&mut hasher, u64::from(length));
                    at += u64::from(length);
                }
                ReadPart::Data(data) => {
                    hasher.update(&data);
                    for (start, run) in runs_in(&data, granularity) {
                        runs.push((at + start as u64, run));
                    }
                    at += data.len() as u64;
                }
            }
        }
        Piece { hash: hasher.finalize(), runs, end: at }
    }

    /// Bytes that are to be written.
    pub(super) fn data_bytes(&self) -> u64 {
        self.runs.iter().map(|(_, run)| run.len() as u64).sum()
    }

    /// The zeroes before, between and after the runs, from `offset` on, where the piece begins: position and length.
    pub(super) fn zeroes(&self, offset: u64) -> impl Iterator<Item = (u64, u64)> {
        let ends = self.runs.iter().map(|(at, run)| at + run.len() as u64);
        let begins = self.runs.iter().map(|(at, _)| *at);
        let (gap_begins, gap_ends) = (std::iter::once(offset).chain(ends), begins.chain(std::iter::once(self.end)));
        gap_begins.zip(gap_ends).map(|(begin, end)| (begin, end - begin)).filter(|(_, length)| *length > 0)
    }
}

/// The same bytes in parts that each begin at a multiple of `granularity`: all in one where they do not.
fn aligned(parts: Vec<ReadPart>, granularity: usize) -> Vec<ReadPart> {
    let inner = parts.split_last().map_or(&[][..], |(_, inner)| inner);
    if inner.iter().all(|part| part.length().is_multiple_of(granularity as u64)) {
        return parts;
    }
    vec![ReadPart::Data(ReadPart::joined(parts))]
}

/// What of `data` is not zero, in units of `granularity`: position and bytes.
fn runs_in(data: &Bytes, granularity: usize) -> Vec<(usize, Bytes)> {
    let (mut runs, mut begin) = (Vec::new(), None);
    for (index, unit) in data.chunks(granularity).enumerate() {
        let at = index * granularity;
        // A comparison of memory is many times as fast as looking at bytes one by one.
        match (unit == &ZEROES[..unit.len()], begin) {
            (true, Some(first)) => {
                runs.push((first, data.slice(first..at)));
                begin = None;
            }
            (false, None) => begin = Some(at),
            _ => {}
        }
    }
    if let Some(first) = begin {
        runs.push((first, data.slice(first..)));
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A part of some sectors: a hole, zeroes, or data.
    fn part() -> impl Strategy<Value = ReadPart> {
        (0..3u8, 1..20usize).prop_map(|(kind, sectors)| match kind {
            0 => ReadPart::Zero(sectors as u32 * 512),
            kind => ReadPart::Data(vec![kind - 1; sectors * 512].into()),
        })
    }

    proptest! {
        #[test]
        fn runs_and_zeroes_make_the_piece_and_the_hash_is_that_of_its_bytes(
            parts in proptest::collection::vec(part(), 1..12), pieces in 0..3u64, coarse: bool,
        ) {
            let (offset, granularity) = (pieces * PIECE_LEN, if coarse { 64 << 10 } else { ZERO_LEN_MIN });
            let bytes = ReadPart::joined(parts.clone());
            let piece = Piece::new(offset, parts, granularity);
            prop_assert_eq!(piece.hash, blake3::hash(&bytes));
            prop_assert_eq!(piece.end, offset + bytes.len() as u64);
            let mut rebuilt = vec![0xee; bytes.len()];
            for (at, run) in &piece.runs {
                prop_assert!(at.is_multiple_of(u64::from(granularity)));
                prop_assert!(!run.chunks(granularity as usize).any(|unit| unit.iter().all(|byte| *byte == 0)));
                let start = (at - offset) as usize;
                rebuilt[start..start + run.len()].copy_from_slice(run);
            }
            for (at, length) in piece.zeroes(offset) {
                let start = (at - offset) as usize;
                rebuilt[start..start + length as usize].fill(0);
            }
            prop_assert_eq!(rebuilt, bytes);
            prop_assert_eq!(piece.data_bytes() + piece.zeroes(offset).map(|(_, it)| it).sum::<u64>(), piece.end - offset);
        }
    }

    #[test]
    fn a_hole_and_written_zeroes_have_the_same_checksum() {
        let (mut hole, mut written) = (Checksum::new(), Checksum::new());
        hole.push_zeroes(2 * PIECE_LEN + 512);
        for length in [PIECE_LEN, PIECE_LEN, 512] {
            written.push(&Piece::new(0, vec![ReadPart::Data(vec![0; length as usize].into())], ZERO_LEN_MIN).hash);
        }
        assert_eq!(hole, written);
        assert_eq!(hole.to_string().parse(), Ok(hole));
        assert!("blake3:00".parse::<Checksum>().is_err());
    }

    /// The checksum is written down by users and kept in state files: its value is a format (docs/import-export.md).
    #[test]
    fn the_checksum_of_a_known_image_stays() {
        let image: Vec<u8> = (0..PIECE_LEN + 4096).map(|at| (at % 251) as u8).collect();
        let mut checksum = Checksum::new();
        let mut by_hand = [0; 32];
        for piece in image.chunks(PIECE_LEN as usize) {
            checksum.push(&blake3::hash(piece));
            by_hand = *blake3::hash(&[&by_hand[..], blake3::hash(piece).as_bytes()].concat()).as_bytes();
        }
        assert_eq!(checksum, Checksum(by_hand));
        assert!(checksum.to_string().starts_with("blake3-1m:"), "{checksum}");
    }
}
