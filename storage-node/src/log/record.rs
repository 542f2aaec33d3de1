//! The record: one append, many entries, their data behind them. The codec is pure.
//!
//! ```text
//! ┌ header: 56 bytes ┬ entries (postcard) ┬ zero padding to a block ┬ data blocks, 4 KiB each ┐
//! ```
//!
//! A record belongs where it lies only if its generation, sequence and chain fit: segments are recycled without
//! being wiped, and the chain (the checksum of the record before) keeps a cut tail from coming back behind new
//! records. Each life of the log has a number of its own in its records, so that no new record is the cut one byte for byte. Every record also says up to which sequence the log was durable when it was laid out, and of which log it
//! is: whatever happens to older records, a later one proves that they had been synced (see [`super::recovery`]), and a
//! guest that stores another log's segments in its blocks cannot be mistaken for this one. The offsets are in
//! `docs/format.md`.

use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use serde::{Deserialize, Serialize};

use crate::io::buffer::AlignedBuffer;
use crate::propagation::manifest::{Manifest, ManifestRun, RunContent};
use crate::volume::ledger::LedgerNews;

/// Marks a record header.
pub const RECORD_MAGIC: [u8; 4] = *b"HELR";
/// The version this code writes, and the only one it reads.
pub const RECORD_VERSION: u16 = 2;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 56;
/// Where the header's checksum lies: it covers what stands before it.
const CHECKSUM_AT: usize = 48;
/// Most bytes of a record's header and entries: a manifest of [`MANIFEST_BLOCKS_MAX`] lone blocks fits.
pub const ENTRIES_BYTES_MAX: usize = 1 << 20;
/// Most data blocks of a record: two mebibytes, so that one append does not hold up those behind it.
pub const DATA_BLOCKS_MAX: u32 = 512;
/// Most changed blocks in one manifest entry; who has more splits the manifest.
pub const MANIFEST_BLOCKS_MAX: u32 = 16_384;

const BLOCK: usize = BLOCK_SIZE as usize;

/// What is recorded. New kinds go at the end; old ones never change (`docs/format.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The owner wrote these blocks; data follows.
    Write { volume: VolumeId, lsn: Lsn, start: BlockIndex, checksums: Vec<u32> },
    /// The owner zeroed these blocks.
    Zero { volume: VolumeId, lsn: Lsn, start: BlockIndex, count: u32 },
    /// Blocks in these versions came from another node; data follows.
    Received { volume: VolumeId, blocks: Vec<(BlockIndex, Lsn, u32)> },
    /// Some of the runs of what an owner tells, if the manifest ends where it starts and has runs: the rest follows. Else, of programs
    /// before [`Told`](Self::Told), the last of them.
    Manifest { volume: VolumeId, manifest: Manifest, seal: bool },
    /// The sealed delta was applied.
    Applied { volume: VolumeId, to: Lsn },
    /// This node became owner or replica.
    Role { volume: VolumeId, epoch: Epoch, owner: bool },
    /// The volume came to this node.
    Opened { volume: VolumeId, size: VolumeSize },
    /// The volume left this node.
    Deleted { volume: VolumeId },
    /// The cleaner copied blocks out of a segment. Each is named by where it was (segment, block) and is now at
    /// `block` of cold segment `segment`, the next one block further, and so on.
    Relocated { volume: VolumeId, segment: u32, block: u32, moves: Vec<(BlockIndex, u32, u32)> },
    /// The volume has another size.
    Resized { volume: VolumeId, size: VolumeSize },
    /// The owner kept the volume as it was at this point of the log.
    Snapshot { volume: VolumeId, snapshot: SnapshotId },
    /// The snapshot is not needed any more.
    SnapshotDeleted { volume: VolumeId, snapshot: SnapshotId },
    /// The owner made the volume what the snapshot is, as one write.
    RolledBack { volume: VolumeId, lsn: Lsn, snapshot: SnapshotId },
    /// A takeover cut the volume's history off at `to`: what is known beyond it, and held by nobody here, is dropped.
    Rewound { volume: VolumeId, to: Lsn },
    /// The volume came to this node, as a clone of another one's snapshot.
    Cloned { volume: VolumeId, origin: VolumeId, snapshot: SnapshotId },
    /// Who writes the volume from afar, and which of those writes were carried out.
    Writers { volume: VolumeId, news: LedgerNews },
    /// A takeover cut the volume's history off at `to`, and what is held beyond it here is discarded: the node follows again.
    Discarded { volume: VolumeId, to: Lsn },
    /// The owner told a part of an initial sync, which ends before block `end`, or is the last; `earlier` of its runs stand in entries before.
    SyncPart { volume: VolumeId, manifest: Manifest, earlier: u32, end: Option<BlockIndex> },
    /// The owner told what changed; `earlier` of the runs stand in entries before. With `seal`, everything known becomes the delta to apply
    /// next.
    Told { volume: VolumeId, manifest: Manifest, earlier: u32, seal: bool },
}

impl Entry {
    /// Which volume it is of.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        match self {
            Entry::Write { volume, .. }
            | Entry::Zero { volume, .. }
            | Entry::Received { volume, .. }
            | Entry::Manifest { volume, .. }
            | Entry::Applied { volume, .. }
            | Entry::Role { volume, .. }
            | Entry::Opened { volume, .. }
            | Entry::Deleted { volume }
            | Entry::Relocated { volume, .. }
            | Entry::Resized { volume, .. }
            | Entry::Snapshot { volume, .. }
            | Entry::SnapshotDeleted { volume, .. }
            | Entry::RolledBack { volume, .. }
            | Entry::Rewound { volume, .. }
            | Entry::Cloned { volume, .. }
            | Entry::Writers { volume, .. }
            | Entry::Discarded { volume, .. }
            | Entry::SyncPart { volume, .. }
            | Entry::Told { volume, .. } => *volume,
        }
    }

    /// Whether a volume changes hands by it, or space comes free as a whole: what must find room when nothing else does.
    #[must_use]
    pub fn is_vital(&self) -> bool {
        matches!(self, Entry::Deleted { .. } | Entry::SnapshotDeleted { .. } | Entry::Role { .. })
    }

    /// Whether it tells where the cleaner has put blocks.
    #[must_use]
    pub fn is_move(&self) -> bool {
        matches!(self, Entry::Relocated { .. })
    }

    /// How many data blocks belong to the entry.
    #[must_use]
    pub fn data_blocks(&self) -> u32 {
        match self {
            Entry::Write { checksums, .. } => checksums.len() as u32,
            Entry::Received { blocks, .. } => blocks.len() as u32,
            _ => 0,
        }
    }

    /// Most bytes that it takes encoded. Of each kind, since a record is laid out for what it says.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        // Postcard's varints: of 32 bits in five bytes, of 64 in ten.
        const LSN: usize = 20;
        const FIXED: usize = 128;
        let of_run = |run: &ManifestRun| match &run.content {
            RunContent::Data(checksums) => 5 + LSN + 1 + 5 + 5 * checksums.len(),
            RunContent::Zero(_) => 5 + LSN + 1 + 5,
        };
        let variable = match self {
            Entry::Write { checksums, .. } => 5 * checksums.len(),
            Entry::Received { blocks, .. } => (5 + LSN + 5) * blocks.len(),
            Entry::Relocated { moves, .. } => 15 * moves.len(),
            Entry::Writers { news, .. } => news.done.iter().map(|(_, runs)| 20 + 20 * runs.len()).sum(),
            Entry::Manifest { manifest, .. } | Entry::SyncPart { manifest, .. } | Entry::Told { manifest, .. } => {
                manifest.runs.iter().map(of_run).sum()
            }
            Entry::Zero { .. }
            | Entry::Applied { .. }
            | Entry::Role { .. }
            | Entry::Opened { .. }
            | Entry::Deleted { .. }
            | Entry::Resized { .. }
            | Entry::Snapshot { .. }
            | Entry::SnapshotDeleted { .. }
            | Entry::RolledBack { .. }
            | Entry::Rewound { .. }
            | Entry::Cloned { .. }
            | Entry::Discarded { .. } => 0,
        };
        FIXED + variable
    }

    /// The checksum of each of its data blocks, in order.
    fn checksums(&self) -> Vec<u32> {
        match self {
            Entry::Write { checksums, .. } => checksums.clone(),
            Entry::Received { blocks, .. } => blocks.iter().map(|(_, _, checksum)| *checksum).collect(),
            _ => Vec::new(),
        }
    }
}

/// Where a record belongs, and what it vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The log, by the number it was given when it began.
    pub log: u64,
    /// The generation of the segment it is written to.
    pub generation: u64,
    /// Its number in the log.
    pub sequence: u64,
    /// The checksum of the record before.
    pub chain: u32,
    /// Every record up to this number was durable when this one was laid out.
    pub durable: u64,
    /// The life of the log that it is laid out in, by a number drawn when it was opened.
    pub life: u16,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log it is of.
    pub log: u64,
    /// The generation of the segment it was written to.
    pub generation: u64,
    /// Its number in the log.
    pub sequence: u64,
    /// The checksum of the record before.
    pub chain: u32,
    /// Every record up to this number was durable when this one was laid out.
    pub durable: u64,
    /// The life of the log that it was laid out in; 0 by programs that did not number them.
    pub life: u16,
    /// Bytes of the encoded entries.
    pub entries_bytes: u32,
    /// Its own checksum: over header and entries.
    pub checksum: u32,
}

impl Header {
    /// Blocks that header and entries take.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        (HEADER_BYTES + self.entries_bytes as usize).div_ceil(BLOCK) as u32
    }
}

/// Why bytes are not the record that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a record, or one of another life of the segment: the log ends here.
    #[error("no record of this log begins here")]
    NotHere,
    /// A record begins here and is not whole: the log ends here too.
    #[error("the record is torn: {0}")]
    Torn(&'static str),
    /// Of another version: of a newer program if it is whole ([`is_whole_of_its_version`]), damaged if not.
    #[error("the record has format {found}, this program reads {RECORD_VERSION}: use the newer program")]
    Version {
        /// What the record says.
        found: u16,
    },
}

/// Lays out the front of a record in an aligned buffer, behind `prefix_blocks` of zeroes and with room for `data_blocks`
/// more. Returns the buffer, the first data block relative to the record, and the checksum for the chain.
///
/// # Panics
/// If the entries are over the limit, or the record would vouch for itself.
#[must_use]
pub fn encode(stamp: &Stamp, entries: &[&Entry], data_blocks: u32, prefix_blocks: u32) -> (AlignedBuffer, u32, u32) {
    let Stamp { log, generation, sequence, chain, durable, life } = *stamp;
    assert!(
        durable < sequence || (sequence, durable) == (0, 0),
        "record {sequence} cannot know that {durable} is durable"
    );
    let body = postcard::to_stdvec(entries).expect("entries are plain data");
    assert!(body.len() <= ENTRIES_BYTES_MAX, "{} bytes of entries are over the limit", body.len());
    let header_blocks = (HEADER_BYTES + body.len()).div_ceil(BLOCK) as u32;
    let total = (prefix_blocks + header_blocks + data_blocks) as usize * BLOCK;
    let mut buffer = AlignedBuffer::with_room(total);
    buffer.zero_to((prefix_blocks + header_blocks) as usize * BLOCK);
    let record = &mut buffer[prefix_blocks as usize * BLOCK..];
    record[0..4].copy_from_slice(&RECORD_MAGIC);
    record[4..6].copy_from_slice(&RECORD_VERSION.to_le_bytes());
    record[6..8].copy_from_slice(&life.to_le_bytes());
    record[8..16].copy_from_slice(&generation.to_le_bytes());
    record[16..24].copy_from_slice(&sequence.to_le_bytes());
    record[24..28].copy_from_slice(&chain.to_le_bytes());
    record[28..32].copy_from_slice(&(body.len() as u32).to_le_bytes());
    record[32..40].copy_from_slice(&durable.to_le_bytes());
    record[40..48].copy_from_slice(&log.to_le_bytes());
    record[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
    let checksum = checksum(record, body.len());
    record[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    (buffer, header_blocks, checksum)
}

/// The record's checksum: over what stands before it, and the entries.
fn checksum(record: &[u8], entries_bytes: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..CHECKSUM_AT]);
    hasher.update(&record[HEADER_BYTES..HEADER_BYTES + entries_bytes]);
    hasher.finalize()
}

/// Reads the fixed header at the start of `block`, whatever record it is of. The checksum is not verified yet: that
/// needs the entries ([`decode_entries`]).
///
/// # Errors
/// As [`RecordError`] says; never panics, whatever the bytes.
pub fn decode_any_header(block: &[u8]) -> Result<Header, RecordError> {
    let Some(bytes) = block.get(..HEADER_BYTES) else { return Err(RecordError::NotHere) };
    if bytes[0..4] != RECORD_MAGIC {
        return Err(RecordError::NotHere);
    }
    let version = u16::from_le_bytes(bytes[4..6].try_into().expect("two bytes"));
    if version != RECORD_VERSION {
        return Err(RecordError::Version { found: version });
    }
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let header = Header {
        life: u16::from_le_bytes(bytes[6..8].try_into().expect("two bytes")),
        generation: u64_at(8),
        sequence: u64_at(16),
        chain: u32_at(24),
        entries_bytes: u32_at(28),
        durable: u64_at(32),
        log: u64_at(40),
        checksum: u32_at(CHECKSUM_AT),
    };
    if header.entries_bytes as usize > ENTRIES_BYTES_MAX {
        return Err(RecordError::Torn("more entries than a record may have"));
    }
    Ok(header)
}

/// Whether the record at the start of `bytes`, of whatever version, fits its checksum. That of another version than ours is a newer program's then; else
/// the disk has altered it. What this looks at stands in the same place in every version (`docs/format.md`).
#[must_use]
pub fn is_whole_of_its_version(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..HEADER_BYTES) else { return false };
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let entries_bytes = u32_at(28) as usize;
    entries_bytes <= bytes.len() - HEADER_BYTES && checksum(bytes, entries_bytes) == u32_at(CHECKSUM_AT)
}

/// As [`decode_any_header`], if the record is the one that is expected there.
///
/// # Errors
/// As [`RecordError`] says; never panics, whatever the bytes.
pub fn decode_header(block: &[u8], generation: u64, sequence: u64, chain: u32) -> Result<Header, RecordError> {
    let is = |at: usize, expected: &[u8]| block.get(at..at + expected.len()) == Some(expected);
    // These four stand in the same place in every version, and are compared first, so that a stale record of another
    // version is not mistaken for a newer program's.
    if is(0, &RECORD_MAGIC)
        && is(8, &generation.to_le_bytes())
        && is(16, &sequence.to_le_bytes())
        && is(24, &chain.to_le_bytes())
    {
        decode_any_header(block)
    } else {
        Err(RecordError::NotHere)
    }
}

/// Reads the header of whichever record of `generation` begins here: for a segment that is read by itself, where the
/// log's order is not known. [`decode_entries`] verifies it.
///
/// # Errors
/// As [`decode_header`].
pub fn decode_header_of(block: &[u8], generation: u64) -> Result<Header, RecordError> {
    let sequence = block.get(16..24).ok_or(RecordError::NotHere)?;
    let chain = block.get(24..28).ok_or(RecordError::NotHere)?;
    let sequence = u64::from_le_bytes(sequence.try_into().expect("eight bytes"));
    decode_header(block, generation, sequence, u32::from_le_bytes(chain.try_into().expect("four bytes")))
}

/// The header at the start of `bytes` and the blocks of its record, if it is of log `identity` and it and its entries are whole.
pub(super) fn whole_header(bytes: &[u8], identity: u64) -> Option<(Header, u32)> {
    let header = decode_any_header(bytes).ok().filter(|header| header.log == identity)?;
    let entries = decode_entries(&header, bytes).ok()?;
    let data: u32 = entries.iter().map(Entry::data_blocks).sum();
    Some((header, header.blocks() + data))
}

/// Reads the entries of a record whose header is `header`; `record` holds its header blocks.
///
/// # Errors
/// `Torn` when the checksum does not fit or the entries cannot be read.
pub fn decode_entries(header: &Header, record: &[u8]) -> Result<Vec<Entry>, RecordError> {
    let entries_bytes = header.entries_bytes as usize;
    if record.len() < HEADER_BYTES + entries_bytes {
        return Err(RecordError::Torn("it ends within its entries"));
    }
    if checksum(record, entries_bytes) != header.checksum {
        return Err(RecordError::Torn("its checksum does not fit"));
    }
    let entries: Vec<Entry> = postcard::from_bytes(&record[HEADER_BYTES..HEADER_BYTES + entries_bytes])
        .map_err(|_| RecordError::Torn("its entries cannot be read"))?;
    let blocks: u64 = entries.iter().map(|entry| u64::from(entry.data_blocks())).sum();
    if blocks > u64::from(DATA_BLOCKS_MAX) {
        return Err(RecordError::Torn("more data than a record may have"));
    }
    Ok(entries)
}

/// The first block of the data of `entries` that is missing or does not fit its checksum.
#[must_use]
pub fn first_misfit(entries: &[Entry], data: &[u8]) -> Option<u32> {
    let checksums = entries.iter().flat_map(Entry::checksums);
    let mut blocks = data.chunks_exact(BLOCK);
    let fits = |checksum| blocks.next().is_some_and(|block| crc32fast::hash(block) == checksum);
    checksums.map(fits).position(|fits| !fits).map(|index| index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::manifest::SnapshotMark;
    use client_lib::geometry::VOLUME_SIZE_MAX;
    use proptest::prelude::*;

    fn stamp(generation: u64, sequence: u64, chain: u32) -> Stamp {
        Stamp { log: 0x10, generation, sequence, chain, durable: sequence - 1, life: 7 }
    }

    fn write() -> Entry {
        let checksums = vec![crc32fast::hash(&[7; BLOCK]), crc32fast::hash(&[8; BLOCK])];
        Entry::Write { volume: VolumeId(3), lsn: Lsn::new(Epoch(1), 9), start: BlockIndex(5), checksums }
    }

    #[test]
    fn a_record_reads_back_what_was_laid_out() {
        let entries =
            [write(), Entry::Zero { volume: VolumeId(3), lsn: Lsn::new(Epoch(1), 10), start: BlockIndex(1), count: 4 }];
        let (mut buffer, data, checksum) = encode(&stamp(4, 77, 0xabcd), &[&entries[0], &entries[1]], 2, 1);
        assert_eq!(data, 1);
        buffer.push(&[7; BLOCK]);
        buffer.push(&[8; BLOCK]);
        let record = &buffer[BLOCK..];
        let header = decode_header(record, 4, 77, 0xabcd).expect("the header");
        assert_eq!((header.checksum, header.blocks()), (checksum, 1));
        assert_eq!((header.log, header.durable), (0x10, 76));
        assert_eq!(decode_any_header(record), Ok(header));
        assert_eq!(decode_entries(&header, record).expect("the entries"), entries);
        assert_eq!(first_misfit(&entries, &record[BLOCK..]), None);
        assert_eq!(first_misfit(&entries, &record[BLOCK..2 * BLOCK]), Some(1), "a block is missing");
    }

    #[test]
    fn a_record_of_another_life_of_the_segment_is_not_here() {
        let (buffer, _, _) = encode(&stamp(4, 77, 1), &[&write()], 2, 0);
        for (generation, sequence, chain) in [(5, 77, 1), (4, 78, 1), (4, 77, 2)] {
            assert_eq!(decode_header(&buffer, generation, sequence, chain), Err(RecordError::NotHere));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let entries = [write()];
        let (buffer, _, _) = encode(&stamp(4, 77, 1), &[&entries[0]], 2, 0);
        let body = decode_header(&buffer, 4, 77, 1).expect("the header").entries_bytes as usize;
        for at in 0..HEADER_BYTES + body {
            let mut bytes = buffer.to_vec();
            bytes[at] ^= 0x40;
            let read = decode_header(&bytes, 4, 77, 1).and_then(|header| decode_entries(&header, &bytes));
            assert!(read.is_err() || (CHECKSUM_AT + 4..HEADER_BYTES).contains(&at), "byte {at} flipped: {read:?}");
        }
    }

    /// What a record is laid out for came from a match with a wildcard, which a new kind of entry fell under: with several parts of an initial
    /// sync in one record, or one beside manifests, the shard panicked.
    #[test]
    fn an_entry_takes_no_more_than_it_says() {
        let (volume, block, epoch) = (VolumeId(u64::MAX), BlockIndex(u32::MAX), Epoch(u64::MAX));
        let (snapshot, size) = (SnapshotId(u64::MAX), VolumeSize::try_from(VOLUME_SIZE_MAX).expect("valid"));
        let lsn = Lsn::new(epoch, u64::MAX);
        let mark = Some(SnapshotMark { snapshot, size });
        for count in [0, 1, 3, 1000] {
            let run = |content| ManifestRun { start: block, lsn, content };
            let lone = vec![run(RunContent::Data(vec![u32::MAX])); count];
            let zeroes = vec![run(RunContent::Zero(u32::MAX)); count];
            let long = vec![run(RunContent::Data(vec![u32::MAX; count]))];
            let manifests = [lone, zeroes, long].map(|runs| Manifest { from: lsn, to: lsn, runs, mark });
            let told = manifests.clone().map(|manifest| Entry::Manifest { volume, manifest, seal: true });
            let in_entries =
                manifests.clone().map(|manifest| Entry::Told { volume, manifest, earlier: u32::MAX, seal: true });
            let parts =
                manifests.map(|manifest| Entry::SyncPart { volume, manifest, earlier: u32::MAX, end: Some(block) });
            let done = vec![(u64::MAX, vec![(u64::MAX, u64::MAX); count]); count.min(10)];
            let others = [
                Entry::Write { volume, lsn, start: block, checksums: vec![u32::MAX; count] },
                Entry::Received { volume, blocks: vec![(block, lsn, u32::MAX); count] },
                Entry::Relocated {
                    volume,
                    segment: u32::MAX,
                    block: u32::MAX,
                    moves: vec![(block, u32::MAX, u32::MAX); count],
                },
                Entry::Writers { volume, news: LedgerNews { claim: epoch, done } },
                Entry::Zero { volume, lsn, start: block, count: u32::MAX },
                Entry::RolledBack { volume, lsn, snapshot },
                Entry::Cloned { volume, origin: volume, snapshot },
                Entry::Resized { volume, size },
            ];
            for entry in told.into_iter().chain(in_entries).chain(parts).chain(others) {
                let bytes = postcard::to_stdvec(&[&entry]).expect("is encoded").len();
                let (most, kind) = (entry.bytes_max(), std::mem::discriminant(&entry));
                assert!(bytes <= most, "{bytes} > {most}: {kind:?} of {count}");
                assert!(most <= bytes + bytes / 4 + 256, "{bytes} << {most}: {kind:?} of {count}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = decode_header(&bytes, 1, 2, 3);
            let _ = decode_any_header(&bytes);
            let (log, generation, sequence, chain, durable, life) = (9, 1, 2, 3, 1, 4);
            let header =
                Header { log, generation, sequence, chain, durable, life, entries_bytes: 100, checksum: 0 };
            prop_assert!(decode_entries(&header, &bytes).is_err());
        }
    }
}
