//! Versions of blocks, and the page: those of 256 neighbouring blocks in one value, with a checksum.
//!
//! [`codec`] is the encoding. A page in memory *is* its encoded bytes, searched as they are, and a short list of what
//! was set since: a page costs in memory what it costs on disk and little more, so the cache covers as much of a
//! volume as it can. The same encoding holds a page of the base map and a chunk of a layer; only chunks hold stale
//! entries. Pages with few entries share a value in the store: [`sheaf`]. Pure. `docs/decisions/0013-compact-pages.md` says why
//! this and not arrays, and why 256.

mod codec;
pub mod sheaf;
#[cfg(test)]
mod tests;

use client_lib::Lsn;

/// The index of a block within its page.
pub type Index = u8;

/// Blocks per page.
pub const PAGE_ENTRIES: u32 = 256;

/// The encoding that this code writes, and the only one it reads.
pub const PAGE_VERSION: u16 = 2;

/// Entries set since a page was last encoded, before it is encoded again. More make setting cheaper and a changed
/// page larger.
const CHANGED_MAX: usize = 16;

/// Entries set since up to which no room is made for the next.
const CHANGED_FEW: usize = 4;

/// What a page takes beside its bytes: its slot in the cache's tables and in its clock, reference counts, what the
/// allocator rounds up. Measured on 2026-11-25 as growth of the process: 136 with 200,000 pages in tables that were nearly
/// full; tables that have just grown take some 40 more.
const PAGE_OVERHEAD: usize = 160;

/// The most that [`Page::memory`] comes to: every block in a run of its own, every field as wide as it can be.
pub const PAGE_MEMORY_MAX: usize = PAGE_OVERHEAD + PAGE_ENTRIES as usize * 31 + 64 + CHANGED_MAX * CHANGED_LEN;

/// Bytes of an entry of [`Page::changed`].
const CHANGED_LEN: usize = size_of::<(Index, Version)>();

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

impl Version {
    /// A version of which is known only that it is another one than what is here ([`crate::volume::rejoin`]). No write has its LSN.
    pub const UNKNOWN: Version = Version { lsn: Lsn::ZERO, content: Content::Stale { crc: 0 } };

    /// Whether it is [`UNKNOWN`](Self::UNKNOWN).
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.lsn == Lsn::ZERO && self.content.is_stale()
    }
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

/// What is at each index of a page.
pub type Entries = [Option<Version>; PAGE_ENTRIES as usize];

/// Of a page in which nothing is mapped.
pub const NO_ENTRIES: Entries = [None; PAGE_ENTRIES as usize];

/// A page of the base map, or a chunk of a layer. Clones and comparisons are of what it holds.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// A value; empty when nothing is mapped in it.
    packed: Box<[u8]>,
    /// What was set since, by rising index; hides what is packed.
    changed: Vec<(Index, Version)>,
}

impl Page {
    /// The version at `index`; `None` was never written.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<Version> {
        match self.changed.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => Some(self.changed[at].1),
            Err(_) => codec::find(&self.packed, index),
        }
    }

    /// A page with these entries, by rising index.
    #[must_use]
    pub fn of(entries: impl Iterator<Item = (Index, Version)>) -> Page {
        let mut entries = entries.peekable();
        let is_any = entries.peek().is_some();
        let packed = if is_any { codec::encode(entries).into_boxed_slice() } else { Box::default() };
        Page { packed, changed: Vec::new() }
    }

    /// Whether nothing is mapped in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty() && self.changed.is_empty()
    }

    /// Whether it has stale entries, or had some when it was packed.
    #[must_use]
    pub fn may_have_stale(&self) -> bool {
        let is_packed = !self.packed.is_empty() && codec::has_stale(&self.packed);
        is_packed || self.changed.iter().any(|(_, version)| version.content.is_stale())
    }

    /// Sets the version at `index` and returns the one before.
    pub fn set(&mut self, index: Index, version: Version) -> Option<Version> {
        match self.changed.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => Some(std::mem::replace(&mut self.changed[at].1, version)),
            Err(at) => {
                let before = codec::find(&self.packed, index);
                if self.changed.len() < CHANGED_FEW {
                    // Most pages that are written at random have no more before they are packed.
                    self.changed.reserve_exact(1);
                }
                self.changed.insert(at, (index, version));
                if self.changed.len() == CHANGED_MAX {
                    self.pack();
                }
                before
            }
        }
    }

    /// Sets the versions from `first` on and returns those before, in order: cheaper than one by one where they are many.
    ///
    /// # Panics
    /// If they are more than the page has.
    pub fn set_run(&mut self, first: Index, versions: &[Version]) -> Vec<Option<Version>> {
        assert!(usize::from(first) + versions.len() <= PAGE_ENTRIES as usize, "a run ends with its page");
        self.set_each(versions.len(), (first..=Index::MAX).zip(versions.iter().copied()))
    }

    /// The same for so many entries in any order.
    pub fn set_each(&mut self, count: usize, each: impl Iterator<Item = (Index, Version)>) -> Vec<Option<Version>> {
        if count < CHANGED_MAX {
            return each.map(|(index, version)| self.set(index, version)).collect();
        }
        let mut entries = self.entries();
        let before = each.map(|(index, version)| entries[usize::from(index)].replace(version)).collect();
        let mapped = (0..=Index::MAX).zip(entries).filter_map(|(index, entry)| Some((index, entry?)));
        self.packed = codec::encode(mapped).into_boxed_slice();
        self.changed = Vec::new();
        before
    }

    /// What is at each index.
    #[must_use]
    pub fn entries(&self) -> Entries {
        let mut entries = NO_ENTRIES;
        self.overlay(&mut entries);
        entries
    }

    /// Its entries in place of those in `seen`.
    pub fn overlay(&self, seen: &mut Entries) {
        self.iter().for_each(|(index, version)| seen[usize::from(index)] = Some(version));
    }

    /// Takes the version at `index` away and returns it. Encodes what is packed anew if that has one.
    pub fn remove(&mut self, index: Index) -> Option<Version> {
        let before = self.entry(index)?;
        self.changed.retain(|(changed, _)| *changed != index);
        if codec::find(&self.packed, index).is_some() {
            *self = Page::of(self.iter().filter(|(other, _)| *other != index));
        }
        Some(before)
    }

    /// Sets every entry of `over`: cheaper than one by one where they are many.
    pub fn cover(&mut self, over: &Page) {
        let merged = Merged { packed: self.iter().peekable(), changed: over.iter().peekable() };
        *self = Page::of(merged);
    }

    /// What is mapped, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Index, Version)> + '_ {
        let packed = match self.packed.is_empty() {
            true => Vec::new(),
            false => codec::unpack(&self.packed),
        };
        Merged { packed: packed.into_iter().peekable(), changed: self.changed.iter().copied().peekable() }
    }

    /// Whether it has any entry, and at most `most`.
    #[must_use]
    pub fn is_sparse(&self, most: usize) -> bool {
        if codec::count(&self.packed) > most {
            return false;
        }
        (1..=most).contains(&self.iter().count())
    }

    /// Packs what was set, so that the page takes as little memory as it can.
    pub fn pack(&mut self) {
        if !self.changed.is_empty() {
            self.packed = codec::encode(self.iter()).into_boxed_slice();
            self.changed = Vec::new();
        }
    }

    /// Bytes it takes in memory, in a cache.
    #[must_use]
    pub fn memory(&self) -> usize {
        PAGE_OVERHEAD + self.packed.len() + self.changed.capacity() * CHANGED_LEN
    }

    /// The page as a value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.changed.is_empty() && !self.packed.is_empty() {
            self.packed.to_vec()
        } else {
            codec::encode(self.iter())
        }
    }

    /// The page from a value.
    ///
    /// # Errors
    /// When the value is not a page that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Page, PageError> {
        codec::check(bytes)?;
        let packed = if codec::is_empty(bytes) { Box::default() } else { bytes.into() };
        Ok(Page { packed, changed: Vec::new() })
    }

    /// As [`decode`](Self::decode), for the base, which has nothing stale.
    ///
    /// # Errors
    /// Also when it has a stale entry.
    pub fn decode_base(bytes: &[u8]) -> Result<Page, PageError> {
        let page = Page::decode(bytes)?;
        if page.may_have_stale() {
            return Err(PageError::Damaged("a stale entry in the base map"));
        }
        Ok(page)
    }
}

impl PartialEq for Page {
    fn eq(&self, other: &Page) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Page {}

/// The entries of a page, by rising index: the changed ones in place of the packed.
struct Merged<P: Iterator, C: Iterator> {
    packed: std::iter::Peekable<P>,
    changed: std::iter::Peekable<C>,
}

impl<P, C> Iterator for Merged<P, C>
where
    P: Iterator<Item = (Index, Version)>,
    C: Iterator<Item = (Index, Version)>,
{
    type Item = (Index, Version);

    fn next(&mut self) -> Option<(Index, Version)> {
        match (self.packed.peek(), self.changed.peek()) {
            (Some((packed, _)), Some((changed, _))) if packed < changed => self.packed.next(),
            (Some((packed, _)), Some((changed, _))) => {
                if packed == changed {
                    self.packed.next();
                }
                self.changed.next()
            }
            (Some(_), None) => self.packed.next(),
            (None, _) => self.changed.next(),
        }
    }
}

/// The value `base`, empty when there is none, with the entries of the value `over` in place of its own.
///
/// # Errors
/// When one of them is damaged.
pub fn merge_values(base: &[u8], over: &[u8]) -> Result<Vec<u8>, PageError> {
    let packed = if base.is_empty() { Vec::new() } else { decode_entries(base)? };
    let changed = decode_entries(over)?;
    Ok(codec::encode(Merged { packed: packed.into_iter().peekable(), changed: changed.into_iter().peekable() }))
}

/// Entries in order of their index as a value.
#[must_use]
pub fn encode_entries(entries: impl Iterator<Item = (Index, Version)>) -> Vec<u8> {
    codec::encode(entries)
}

/// The entries of a value.
///
/// # Errors
/// When [`encode_entries`] did not write it.
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<(Index, Version)>, PageError> {
    codec::decode(bytes)
}
