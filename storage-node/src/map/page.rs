//! Versions of blocks, and the page: 256 of them in one value, with a version number and a checksum.
//!
//! The codec is pure. It refuses what it did not write (another version, a bad checksum, indices out of order) and
//! never panics on bytes from disk. The same encoding holds a page of the base map and a chunk of a layer; only
//! chunks hold stale entries. `docs/format.md` has the table.

use bytes::{Buf, BufMut};
use client_lib::{Epoch, Lsn};

/// Blocks per page, so that an index within a page is a byte.
pub const PAGE_ENTRIES: u32 = 256;

/// The encoding that this code writes, and the only one it reads.
pub const PAGE_VERSION: u16 = 1;

/// Bytes a page takes in memory, for accounting against the cache's limit.
pub const PAGE_MEMORY: usize = size_of::<[Option<Version>; PAGE_ENTRIES as usize]>() + PAGE_OVERHEAD;

/// Estimated cost of a page's slot in the cache: hash entry, reference counts, clock entry.
const PAGE_OVERHEAD: usize = 128;

/// Version (2), count (2), reserved (4).
const HEADER_LEN: usize = 8;
/// Index (1), kind (1), epoch (8), sequence (8).
const ENTRY_LEN: usize = 18;
/// Segment (4), block (4), checksum (4).
const LOCAL_LEN: usize = 12;
/// Checksum (4).
const TRAILER_LEN: usize = 4;

const KIND_ZERO: u8 = 1;
const KIND_STALE: u8 = 2;
const KIND_LOCAL: u8 = 3;

/// Where a block's data lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: u32,
    /// The block within the segment.
    pub block: u32,
}

/// What a version of a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// Data with this checksum, which is not here.
    Stale {
        /// CRC-32 of the block.
        crc: u32,
    },
    /// Data with this checksum, which is in the log.
    Local {
        /// Where.
        place: Place,
        /// CRC-32 of the block.
        crc: u32,
    },
}

impl Content {
    /// Where the data is, if it is here.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self {
            Content::Local { place, .. } => Some(*place),
            Content::Zero | Content::Stale { .. } => None,
        }
    }

    /// The checksum of the data, if it is data.
    #[must_use]
    pub fn crc(&self) -> Option<u32> {
        match self {
            Content::Local { crc, .. } | Content::Stale { crc } => Some(*crc),
            Content::Zero => None,
        }
    }

    /// Whether the data is elsewhere.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Content::Stale { .. })
    }
}

/// A block as one write left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The write.
    pub lsn: Lsn,
    /// What it left.
    pub content: Content,
}

/// Why bytes are not a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Written by another version of the software.
    #[error("page version {0} is not known; this software reads {PAGE_VERSION}")]
    Version(u16),
    /// Not what was written.
    #[error("the page is damaged: {0}")]
    Damaged(&'static str),
}

/// A page of the base map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    entries: [Option<Version>; PAGE_ENTRIES as usize],
}

impl Default for Page {
    fn default() -> Page {
        Page { entries: [None; PAGE_ENTRIES as usize] }
    }
}

impl Page {
    /// The version at `index`; `None` was never written.
    #[must_use]
    pub fn entry(&self, index: u8) -> Option<Version> {
        self.entries[usize::from(index)]
    }

    /// Sets the version at `index` and returns the one before.
    pub fn set(&mut self, index: u8, version: Version) -> Option<Version> {
        assert!(!version.content.is_stale(), "the base map holds only what is here");
        self.entries[usize::from(index)].replace(version)
    }

    /// What is mapped, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Version)> + '_ {
        self.entries.iter().enumerate().filter_map(|(index, entry)| entry.map(|version| (index as u8, version)))
    }

    /// The page as a value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_entries(self.iter())
    }

    /// The page from a value.
    ///
    /// # Errors
    /// When the value is not a page that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Page, PageError> {
        let mut page = Page::default();
        for (index, version) in decode_entries(bytes)? {
            if version.content.is_stale() {
                return Err(PageError::Damaged("a stale entry in the base map"));
            }
            page.entries[usize::from(index)] = Some(version);
        }
        Ok(page)
    }
}

/// Entries in order of their index as a value.
#[must_use]
pub fn encode_entries(entries: impl Iterator<Item = (u8, Version)>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    let mut count = 0u16;
    for (index, version) in entries {
        count += 1;
        bytes.put_u8(index);
        bytes.put_u8(match version.content {
            Content::Zero => KIND_ZERO,
            Content::Stale { .. } => KIND_STALE,
            Content::Local { .. } => KIND_LOCAL,
        });
        bytes.put_u64_le(version.lsn.epoch.0);
        bytes.put_u64_le(version.lsn.sequence);
        match version.content {
            Content::Zero => {}
            Content::Stale { crc } => bytes.put_u32_le(crc),
            Content::Local { place, crc } => {
                bytes.put_u32_le(place.segment);
                bytes.put_u32_le(place.block);
                bytes.put_u32_le(crc);
            }
        }
    }
    bytes[..2].copy_from_slice(&PAGE_VERSION.to_le_bytes());
    bytes[2..4].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

/// The entries of a value.
///
/// # Errors
/// When [`encode_entries`] did not write it.
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<(u8, Version)>, PageError> {
    if bytes.len() < HEADER_LEN + TRAILER_LEN {
        return Err(PageError::Damaged("shorter than a header"));
    }
    let version = u16::from_le_bytes([bytes[0], bytes[1]]);
    if version != PAGE_VERSION {
        return Err(PageError::Version(version));
    }
    let (body, mut trailer) = bytes.split_at(bytes.len() - TRAILER_LEN);
    if crc32fast::hash(body) != trailer.get_u32_le() {
        return Err(PageError::Damaged("checksum"));
    }
    let count = u16::from_le_bytes([bytes[2], bytes[3]]);
    let mut rest = &body[HEADER_LEN..];
    let mut entries = Vec::with_capacity(usize::from(count).min(PAGE_ENTRIES as usize));
    let mut last = None;
    for _ in 0..count {
        if rest.len() < ENTRY_LEN {
            return Err(PageError::Damaged("cut off"));
        }
        let index = rest.get_u8();
        if last.is_some_and(|last| last >= index) {
            return Err(PageError::Damaged("entries out of order"));
        }
        last = Some(index);
        let kind = rest.get_u8();
        let lsn = Lsn::new(Epoch(rest.get_u64_le()), rest.get_u64_le());
        let content = match kind {
            KIND_ZERO => Content::Zero,
            KIND_STALE if rest.len() >= 4 => Content::Stale { crc: rest.get_u32_le() },
            KIND_LOCAL if rest.len() >= LOCAL_LEN => Content::Local {
                place: Place { segment: rest.get_u32_le(), block: rest.get_u32_le() },
                crc: rest.get_u32_le(),
            },
            KIND_STALE | KIND_LOCAL => return Err(PageError::Damaged("cut off")),
            _ => return Err(PageError::Damaged("unknown kind of entry")),
        };
        entries.push((index, Version { lsn, content }));
    }
    if rest.is_empty() { Ok(entries) } else { Err(PageError::Damaged("bytes after the last entry")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions() -> impl Strategy<Value = Version> {
        let content = prop_oneof![
            Just(Content::Zero),
            any::<u32>().prop_map(|crc| Content::Stale { crc }),
            any::<(u32, u32, u32)>()
                .prop_map(|(segment, block, crc)| Content::Local { place: Place { segment, block }, crc }),
        ];
        (any::<(u64, u64)>(), content)
            .prop_map(|((epoch, sequence), content)| Version { lsn: Lsn::new(Epoch(epoch), sequence), content })
    }

    proptest! {
        #[test]
        fn entries_read_back_as_written(entries in proptest::collection::btree_map(any::<u8>(), versions(), 0..256)) {
            let bytes = encode_entries(entries.clone().into_iter());
            prop_assert_eq!(decode_entries(&bytes).expect("decodes"), entries.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn any_flipped_bit_is_noticed(entries in proptest::collection::btree_map(any::<u8>(), versions(), 0..8), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = encode_entries(entries.into_iter());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_entries(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_entries(&bytes);
        }
    }

    #[test]
    fn a_page_of_a_newer_version_is_refused_as_such() {
        let mut bytes = Page::default().encode();
        bytes[0] = 2;
        assert_eq!(Page::decode(&bytes), Err(PageError::Version(2)));
    }
}
