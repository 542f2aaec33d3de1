//! The encoding of up to 256 versions of neighbouring blocks: runs in bit-packed rows, the checksums behind them.
//!
//! ```text
//! ┌ version, kinds ┬ per kind: ┬ starts ┬ lengths ┬ columns ┬ rows, bit-packed ┬ checksums ┬┄┬ checksum ┐
//! ```
//!
//! A run is what one or more writes in a row left in neighbouring blocks: index, LSN and place advance together, so
//! only its first block is described. A field that all runs share takes no room in the rows: each column has a base
//! and just the bits that the largest difference from it needs. The bytes are searched as they are ([`find`]), so a
//! page need not be unpacked to be read. Every sequence of entries has exactly one encoding; [`check`] refuses all
//! other bytes, and never panics. `docs/format.md` has the table.

use bytes::{Buf, BufMut};
use client_lib::{Epoch, Lsn};

use super::{Content, Index, PAGE_ENTRIES, PAGE_VERSION, PageError, Place, Version};

/// Version (1), kinds (1).
const HEADER_LEN: usize = 2;
/// Runs (1), blocks beyond one for each (1).
const SECTION_LEN: usize = 2;
/// CRC-32 (4).
pub(super) const TRAILER_LEN: usize = 4;
/// A block's checksum.
const CHECKSUM_LEN: usize = 4;

/// How LSN and place go on from block to block within a run.
const STRIDES: [Stride; 3] = [
    // One write of many blocks.
    Stride { sequence: 0, place: 1 },
    // Writes of a block each that share a record.
    Stride { sequence: 1, place: 1 },
    // Writes of a block each with a record, and thus a header block, of their own.
    Stride { sequence: 1, place: 2 },
];

/// Bits that one load of eight bytes yields wherever they begin within the first.
const WORD_BITS: usize = 57;

const CUT_OFF: PageError = PageError::Damaged("cut off");
const TOO_LARGE: PageError = PageError::Damaged("a number is too large");

#[derive(Clone, Copy, Debug)]
struct Stride {
    sequence: u64,
    place: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Stale,
    Local,
}

/// In the order of their bits and sections.
const KINDS: [Kind; 3] = [Kind::Zero, Kind::Stale, Kind::Local];

impl Kind {
    fn of(content: Content) -> Kind {
        match content {
            Content::Zero => Kind::Zero,
            Content::Stale { .. } => Kind::Stale,
            Content::Local { .. } => Kind::Local,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    fn has_checksums(self) -> bool {
        self != Kind::Zero
    }
}

/// The columns, in the order of their fields in a row.
const STRIDE: usize = 0;
const EPOCH: usize = 1;
const SEQUENCE: usize = 2;
const SEGMENT: usize = 3;
const BLOCK: usize = 4;
const COLUMNS: usize = 5;

/// Which columns a section of `kind` describes; the fields of the others are 0. One without `extra` blocks has runs of
/// one block, and no use for a stride.
fn columns(kind: Kind, extra: usize) -> std::ops::Range<usize> {
    let first = if extra == 0 { EPOCH } else { STRIDE };
    let end = if kind == Kind::Local { COLUMNS } else { SEGMENT };
    first..end
}

/// A run: its first block, and how it goes on.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: Index,
    length: u16,
    fields: [u64; COLUMNS],
}

impl Run {
    fn of(start: Index, version: &Version) -> Run {
        let (segment, block) = version.content.place().map_or((0, 0), |place| (place.segment, place.block));
        let Lsn { epoch, sequence } = version.lsn;
        Run { start, length: 1, fields: [0, epoch.0, sequence, u64::from(segment), u64::from(block)] }
    }

    /// The stride with which `next` goes on where this run ends, if it does. Both are of `kind`.
    fn stride_to(&self, next: &Run, kind: Kind) -> Option<u64> {
        let length = u64::from(self.length);
        let (ours, theirs) = (&self.fields, &next.fields);
        if u64::from(self.start) + length != u64::from(next.start)
            || (ours[EPOCH], ours[SEGMENT]) != (theirs[EPOCH], theirs[SEGMENT])
        {
            return None;
        }
        let fits = |stride: u64| {
            let Stride { sequence, place } = STRIDES[stride as usize];
            let place = if kind == Kind::Local { place } else { 0 };
            ours[SEQUENCE].checked_add(sequence * length) == Some(theirs[SEQUENCE])
                && ours[BLOCK] + u64::from(place) * length == theirs[BLOCK]
        };
        match self.length {
            1 => (0..STRIDES.len() as u64).find(|stride| fits(*stride)),
            _ => Some(ours[STRIDE]).filter(|stride| fits(*stride)),
        }
    }

    /// Block `at` of it.
    fn version(&self, kind: Kind, at: usize, crc: impl FnOnce() -> u32) -> Version {
        let [stride, epoch, sequence, segment, block] = self.fields;
        let stride = STRIDES[stride as usize];
        let content = match kind {
            Kind::Zero => Content::Zero,
            Kind::Stale => Content::Stale { crc: crc() },
            Kind::Local => {
                let block = block as u32 + stride.place * at as u32;
                Content::Local { place: Place { segment: segment as u32, block }, crc: crc() }
            }
        };
        Version { lsn: Lsn::new(Epoch(epoch), sequence + stride.sequence * at as u64), content }
    }
}

/// What the entries of one kind come to.
#[derive(Debug, Default)]
struct Runs {
    runs: Vec<Run>,
    checksums: Vec<u8>,
}

/// Entries in order of their index as a value.
pub(super) fn encode(entries: impl Iterator<Item = (Index, Version)>) -> Vec<u8> {
    let mut kinds: [Runs; KINDS.len()] = Default::default();
    for (index, version) in entries {
        let kind = Kind::of(version.content);
        let Runs { runs, checksums } = &mut kinds[kind as usize];
        if let Some(crc) = version.content.crc() {
            checksums.put_u32_le(crc);
        }
        let next = Run::of(index, &version);
        match runs.last_mut().and_then(|last| last.stride_to(&next, kind).map(|stride| (last, stride))) {
            Some((last, stride)) => {
                last.fields[STRIDE] = stride;
                last.length += 1;
            }
            None => runs.push(next),
        }
    }
    let estimate = kinds.iter().map(|kind| kind.runs.len() * 8 + kind.checksums.len() + 24).sum();
    let mut bytes = Vec::with_capacity(estimate);
    bytes.put_u8(PAGE_VERSION as u8);
    bytes.put_u8(KINDS.iter().filter(|kind| !kinds[**kind as usize].runs.is_empty()).map(|kind| kind.bit()).sum());
    for kind in KINDS {
        let Runs { runs, checksums } = &kinds[kind as usize];
        if !runs.is_empty() {
            encode_section(&mut bytes, kind, runs);
            bytes.extend_from_slice(checksums);
        }
    }
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

fn encode_section(bytes: &mut Vec<u8>, kind: Kind, runs: &[Run]) {
    let extra = runs.iter().map(|run| usize::from(run.length) - 1).sum::<usize>();
    bytes.put_u8((runs.len() - 1) as u8);
    bytes.put_u8(extra as u8);
    bytes.extend(runs.iter().map(|run| run.start));
    if extra > 0 {
        let mut before = 0;
        for run in runs {
            bytes.put_u8(before as u8);
            before += run.length - 1;
        }
    }
    let shapes = Column::of(runs);
    for column in columns(kind, extra) {
        bytes.put_u8(shapes[column].width);
        put_varint(bytes, shapes[column].base);
    }
    let mut writer = BitWriter { bytes, pending: 0, bits: 0 };
    for run in runs {
        for (field, column) in run.fields.iter().zip(&shapes) {
            writer.put(field - column.base, column.width);
        }
    }
    writer.finish();
}

/// What is to be added to a field, and how wide it is. One that is 0 everywhere has base and width 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Column {
    base: u64,
    width: u8,
}

impl Column {
    /// The smaller of the two for each: differences from the smallest value, or the values themselves.
    fn of(runs: &[Run]) -> [Column; COLUMNS] {
        let (mut min, mut max) = ([u64::MAX; COLUMNS], [0; COLUMNS]);
        for run in runs {
            for (column, field) in run.fields.iter().enumerate() {
                min[column] = min[column].min(*field);
                max[column] = max[column].max(*field);
            }
        }
        let width = |span: u64| (u64::BITS - span.leading_zeros()) as u8;
        let cost = |column: &Column| varint_len(column.base) * 8 + usize::from(column.width) * runs.len();
        std::array::from_fn(|column| {
            let relative = Column { base: min[column], width: width(max[column] - min[column]) };
            let absolute = Column { base: 0, width: width(max[column]) };
            if cost(&absolute) < cost(&relative) { absolute } else { relative }
        })
    }

    fn mask(self) -> u64 {
        u64::MAX.checked_shr(u64::BITS - u32::from(self.width)).unwrap_or(0)
    }
}

/// The runs of one kind, where they lie in a value.
#[derive(Debug)]
struct Section<'a> {
    kind: Kind,
    starts: &'a [u8],
    /// Blocks before each run that are not the first of theirs; empty when all are.
    before: &'a [u8],
    extra: usize,
    columns: [Column; COLUMNS],
    row_bits: usize,
    rows: &'a [u8],
    checksums: &'a [u8],
}

impl<'a> Section<'a> {
    fn parse(kind: Kind, rest: &mut &'a [u8]) -> Result<Section<'a>, PageError> {
        let &[runs, extra] = take(rest, 2)? else { return Err(CUT_OFF) };
        let (runs, extra) = (usize::from(runs) + 1, usize::from(extra));
        let starts = take(rest, runs)?;
        let before = take(rest, if extra == 0 { 0 } else { runs })?;
        let mut shapes = [Column::default(); COLUMNS];
        for column in columns(kind, extra) {
            let width = *take(rest, 1)?.first().ok_or(CUT_OFF)?;
            if u32::from(width) > u64::BITS {
                return Err(PageError::Damaged("a column wider than a number"));
            }
            shapes[column] = Column { base: get_varint(rest)?, width };
        }
        let row_bits: usize = shapes.iter().map(|column| usize::from(column.width)).sum();
        let rows = take(rest, (runs * row_bits).div_ceil(8))?;
        let checksums = take(rest, if kind.has_checksums() { (runs + extra) * CHECKSUM_LEN } else { 0 })?;
        Ok(Section { kind, starts, before, extra, columns: shapes, row_bits, rows, checksums })
    }

    /// The blocks of the first `run` runs beyond one for each.
    fn before(&self, run: usize) -> usize {
        if run == self.starts.len() {
            self.extra
        } else {
            self.before.get(run).map_or(0, |before| usize::from(*before))
        }
    }

    /// A run; `None` when the value contradicts itself.
    fn run(&self, run: usize) -> Option<Run> {
        let length = self.before(run + 1).checked_sub(self.before(run))? + 1;
        let mut fields = [0; COLUMNS];
        let mut at = run * self.row_bits;
        let mut word = if self.row_bits <= WORD_BITS { bits(self.rows, at, self.row_bits) } else { 0 };
        for (field, column) in fields.iter_mut().zip(self.columns) {
            let width = usize::from(column.width);
            if self.row_bits <= WORD_BITS {
                *field = column.base.checked_add(word & column.mask())?;
                word >>= width;
            } else {
                *field = column.base.checked_add(bits(self.rows, at, width))?;
                at += width;
            }
        }
        let start = self.starts[run];
        let last = length as u64 - 1;
        let stride = STRIDES.get(usize::try_from(fields[STRIDE]).ok()?)?;
        let is_sound = u64::from(start) + last < u64::from(PAGE_ENTRIES)
            && self.before(run) + length <= self.extra + 1
            && fields[SEQUENCE].checked_add(stride.sequence * last).is_some()
            && fields[SEGMENT] <= u64::from(u32::MAX)
            && fields[BLOCK].checked_add(u64::from(stride.place) * last)? <= u64::from(u32::MAX);
        is_sound.then_some(Run { start, length: length as u16, fields })
    }

    fn runs(&self) -> Result<Vec<Run>, PageError> {
        let mut runs = Vec::with_capacity(self.starts.len());
        for run in 0..self.starts.len() {
            runs.push(self.run(run).ok_or(PageError::Damaged("a run that cannot be"))?);
        }
        Ok(runs)
    }

    /// The checksum of the `ordinal`th block of the section.
    fn crc(&self, ordinal: usize) -> u32 {
        let crc = self.checksums[ordinal * CHECKSUM_LEN..].first_chunk().expect("as many as blocks");
        u32::from_le_bytes(*crc)
    }

    /// Whether [`encode`] would have described `runs` by these bytes.
    fn is_canonical(&self, runs: &[Run]) -> bool {
        // A stride with another of the same meaning: in a run of one, or without places.
        let strides = if self.kind == Kind::Local { STRIDES.len() } else { STRIDES.len() - 1 };
        let has_first_stride = |run: &Run| run.fields[STRIDE] < if run.length == 1 { 1 } else { strides as u64 };
        let used = self.starts.len() * self.row_bits % 8;
        self.before.first().is_none_or(|before| *before == 0)
            && runs.iter().all(has_first_stride)
            && runs.windows(2).all(|pair| pair[0].stride_to(&pair[1], self.kind).is_none())
            && self.columns == Column::of(runs)
            && (used == 0 || self.rows.last().is_none_or(|last| last >> used == 0))
    }
}

/// The entry at `index` of a value that [`check`] has accepted or [`encode`] made.
pub(super) fn find(value: &[u8], index: Index) -> Option<Version> {
    let kinds = *value.get(1)?;
    let mut rest = value.get(HEADER_LEN..value.len().checked_sub(TRAILER_LEN)?)?;
    for kind in KINDS.into_iter().filter(|kind| kinds & kind.bit() != 0) {
        let section = Section::parse(kind, &mut rest).ok()?;
        let Some(number) = section.starts.partition_point(|start| *start <= index).checked_sub(1) else { continue };
        let at = usize::from(index - section.starts[number]);
        let run = section.run(number)?;
        if at < usize::from(run.length) {
            let ordinal = number + section.before(number) + at;
            return Some(run.version(kind, at, || section.crc(ordinal)));
        }
    }
    None
}

/// The entries of a value, by rising index.
pub(super) fn decode(value: &[u8]) -> Result<Vec<(Index, Version)>, PageError> {
    check(value)?;
    Ok(unpack(value))
}

/// Whether [`encode`] wrote the value.
pub(super) fn check(value: &[u8]) -> Result<(), PageError> {
    // Before the checksum, which another version may have elsewhere.
    match value.first() {
        Some(version) if u16::from(*version) == PAGE_VERSION => {}
        Some(version) => return Err(PageError::Version(u16::from(*version))),
        None => return Err(CUT_OFF),
    }
    let Some((body, mut trailer)) = value.len().checked_sub(TRAILER_LEN).and_then(|at| value.split_at_checked(at))
    else {
        return Err(CUT_OFF);
    };
    if crc32fast::hash(body) != trailer.get_u32_le() {
        return Err(PageError::Damaged("checksum"));
    }
    let (Some(kinds), Some(mut rest)) = (body.get(1), body.get(HEADER_LEN..)) else { return Err(CUT_OFF) };
    if usize::from(*kinds) >> KINDS.len() != 0 {
        return Err(PageError::Damaged("an unknown kind of entry"));
    }
    let mut is_taken = [false; PAGE_ENTRIES as usize];
    for kind in KINDS.into_iter().filter(|kind| kinds & kind.bit() != 0) {
        let section = Section::parse(kind, &mut rest)?;
        let runs = section.runs()?;
        let mut end = 0;
        for run in &runs {
            let start = usize::from(run.start);
            if start < end {
                return Err(PageError::Damaged("runs out of order"));
            }
            end = start + usize::from(run.length);
            if is_taken[start..end].contains(&true) {
                return Err(PageError::Damaged("a block of two kinds"));
            }
            is_taken[start..end].fill(true);
        }
        if !section.is_canonical(&runs) {
            return Err(PageError::Damaged("not as it would be written"));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(PageError::Damaged("bytes after the last entry")) }
}

/// How many entries a value that [`check`] has accepted or [`encode`] made has; no bytes have none.
///
/// # Panics
/// On other bytes.
pub(super) fn count(value: &[u8]) -> usize {
    let Some(mut rest) = value.len().checked_sub(TRAILER_LEN).and_then(|end| value.get(HEADER_LEN..end)) else {
        return 0;
    };
    let sections = KINDS.into_iter().filter(|kind| value[1] & kind.bit() != 0);
    let lengths = sections.map(|kind| {
        let section = Section::parse(kind, &mut rest).expect("the value was checked");
        section.starts.len() + section.extra
    });
    lengths.sum()
}

/// Where the indexes of runs lie in a value of entries `0..n` of one kind, which [`encode`] made: they follow from the lengths of
/// the runs. Empty where entries are of several kinds, or none.
pub(super) fn lone_starts(value: &[u8]) -> std::ops::Range<usize> {
    if !value[1].is_power_of_two() {
        return 0..0;
    }
    let first = HEADER_LEN + SECTION_LEN;
    first..first + usize::from(value[HEADER_LEN]) + 1
}

/// A value from which what is at [`lone_starts`], and the checksum, were taken away. Not checked.
///
/// # Errors
/// When it cannot be one.
pub(super) fn with_lone_starts(body: &[u8]) -> Result<Vec<u8>, PageError> {
    let mut value = Vec::with_capacity(body.len() + PAGE_ENTRIES as usize + TRAILER_LEN);
    let kinds = *body.get(1).ok_or(CUT_OFF)?;
    if kinds.is_power_of_two() {
        let (head, rest) = body.split_at_checked(HEADER_LEN + SECTION_LEN).ok_or(CUT_OFF)?;
        let (runs, has_extra) = (usize::from(head[HEADER_LEN]) + 1, head[HEADER_LEN + 1] > 0);
        let before = rest.get(..if has_extra { runs } else { 0 }).ok_or(CUT_OFF)?;
        value.extend_from_slice(head);
        value.extend((0..runs).map(|run| (run as Index).wrapping_add(before.get(run).copied().unwrap_or(0))));
        value.extend_from_slice(rest);
    } else {
        value.extend_from_slice(body);
    }
    let checksum = crc32fast::hash(&value);
    value.put_u32_le(checksum);
    Ok(value)
}

/// Whether a value that [`check`] has accepted has no entries.
pub(super) fn is_empty(value: &[u8]) -> bool {
    value[1] == 0
}

/// Whether a value that [`check`] has accepted has stale entries.
pub(super) fn has_stale(value: &[u8]) -> bool {
    value[1] & Kind::Stale.bit() != 0
}

/// The entries of a value that [`check`] has accepted or [`encode`] made, by rising index.
///
/// # Panics
/// On other bytes.
pub(super) fn unpack(value: &[u8]) -> Vec<(Index, Version)> {
    let mut rest = &value[HEADER_LEN..value.len() - TRAILER_LEN];
    let mut entries = Vec::with_capacity(PAGE_ENTRIES as usize);
    let mut sections = 0;
    for kind in KINDS.into_iter().filter(|kind| value[1] & kind.bit() != 0) {
        let section = Section::parse(kind, &mut rest).expect("the value was checked");
        let mut ordinal = 0;
        for run in section.runs().expect("the value was checked") {
            for at in 0..usize::from(run.length) {
                entries.push((run.start + at as Index, run.version(kind, at, || section.crc(ordinal))));
                ordinal += 1;
            }
        }
        sections += 1;
    }
    if sections > 1 {
        entries.sort_unstable_by_key(|(index, _)| *index);
    }
    entries
}

// The counts of runs, of blocks and of blocks beyond the first of each run fit a byte, as indices do.
const _: () = assert!(PAGE_ENTRIES == Index::MAX as u32 + 1);

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], PageError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(CUT_OFF)?;
    *rest = left;
    Ok(taken)
}

/// LEB128: seven bits a byte, the lowest first, the top bit set in all but the last.
fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}

fn varint_len(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()).div_ceil(7).max(1) as usize
}

fn get_varint(rest: &mut &[u8]) -> Result<u64, PageError> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, left) = rest.split_first().ok_or(CUT_OFF)?;
        *rest = left;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            break;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            // Shorter without a last byte of nothing.
            return if part == 0 && shift > 0 { Err(PageError::Damaged("a number is too long")) } else { Ok(value) };
        }
    }
    Err(TOO_LARGE)
}

/// Packs numbers one after the other, the lowest bit of each first.
struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    pending: u128,
    bits: u32,
}

impl BitWriter<'_> {
    fn put(&mut self, value: u64, width: u8) {
        self.pending |= u128::from(value) << self.bits;
        self.bits += u32::from(width);
        if self.bits >= u64::BITS {
            self.bytes.put_u64_le(self.pending as u64);
            self.pending >>= u64::BITS;
            self.bits -= u64::BITS;
        }
    }

    fn finish(self) {
        let bytes = self.bits.div_ceil(8) as usize;
        self.bytes.extend_from_slice(&self.pending.to_le_bytes()[..bytes]);
    }
}

/// The `width` bits at bit `at`; zeroes beyond the end.
fn bits(bytes: &[u8], at: usize, width: usize) -> u64 {
    let (byte, shift) = (at / 8, at % 8);
    let mut value = match bytes.get(byte..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes.iter().skip(byte).rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
    } >> shift;
    if shift + width > 64 {
        value |= bytes.get(byte + 8).map_or(0, |next| u64::from(*next) << (64 - shift));
    }
    value & u64::MAX.checked_shr(u64::BITS - width as u32).unwrap_or(0)
}
