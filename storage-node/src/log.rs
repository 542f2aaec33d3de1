//! The segment log of a shard: append-only records in pre-written, recycled files. The log *is* the data.
//!
//! [`record`] is the format, [`segment`] the files, [`writer`] gathers entries into appends and syncs, [`cold`] holds
//! what the cleaner copies, [`recovery`] replays, through [`reader`], with [`proof`] telling a damaged log from a torn one. What holds:
//!
//! - an append is reported done only when every earlier one is, so what was acked is a prefix of the log;
//! - a sync reported done covers every append that was reported done before it was asked for;
//! - after a failed write or sync the log takes nothing more until it is opened again (fsync failures cannot be
//!   retried: the kernel may have dropped the pages, see Rebello et al., "Can Applications Recover from fsync
//!   Failures?", USENIX ATC 2020).
//!
//! The log knows nothing of volumes beyond what its entries say; which segments are still needed is told from above.

use bytes::Bytes;

use crate::io::buffer::AlignedBuffer;

pub mod cold;
mod foresight;
mod parts;
mod proof;
mod reader;
pub mod record;
pub mod recovery;
pub mod segment;
pub mod writer;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use cold::ColdEnd;
pub use record::Entry;
pub use recovery::Known;
pub use writer::Log;

/// What an operator can do about damage that keeps a log from being opened.
const DAMAGE_ADVICE: &str = "nothing was changed; other holders of the node's volumes have their blocks: see docs/damage.md for how to keep what is here and bring the node back";

/// How a log is laid out. Settings, fixed for the life of a data directory except where noted.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Size of a segment file in bytes; may change between starts, old files keep theirs. Larger segments cost less
    /// bookkeeping, smaller ones come free sooner.
    pub segment_bytes: u64,
    /// Prepared segments kept ready beyond the one in use. More of them ride out longer bursts.
    pub spare_segments: usize,
    /// Most bytes of segment files; `None` leaves it to the file system. When reached, writes fail with
    /// [`LogError::OutOfSpace`] until segments come free.
    pub capacity_bytes: Option<u64>,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings { segment_bytes: 64 << 20, spare_segments: 2, capacity_bytes: None }
    }
}

/// Where the next record goes, and what it must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct LogPosition {
    /// The generation of the segment: rises with every segment taken into use.
    pub generation: u64,
    /// The segment's number.
    pub segment: u32,
    /// The block within it.
    pub block: u32,
    /// The sequence number of the next record.
    pub sequence: u64,
    /// The header checksum of the record before.
    pub chain: u32,
}

/// What the log could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No segment has room and none can be made.
    #[error("no segment is free and the data directory has no room for another")]
    OutOfSpace,
    /// A write or sync failed earlier.
    #[error("{0}")]
    Poisoned(String),
    /// The file system or device failed.
    #[error("{0}")]
    Io(String),
    /// The files are not what a log can be.
    #[error("segment {segment} is corrupt at block {block}: {reason}")]
    Corrupt {
        /// The segment's number.
        segment: u32,
        /// The block within it.
        block: u32,
        /// What is wrong.
        reason: String,
    },
    /// A record that had been synced is gone or altered: the disk lost it. Cutting the log there would undo writes that
    /// were flushed.
    #[error(
        "record {sequence} is damaged or missing at block {block} of segment {segment} (segments/{segment:08}.seg), though it had been synced: the record at block {proof_block} of segment {proof_segment} vouches for all up to {durable}; {DAMAGE_ADVICE}"
    )]
    Damaged {
        /// The segment where the log seems to end.
        segment: u32,
        /// The block within it.
        block: u32,
        /// The record that should be there.
        sequence: u64,
        /// The segment of the record that proves it.
        proof_segment: u32,
        /// Its block.
        proof_block: u32,
        /// Up to which sequence it vouches.
        durable: u64,
    },
    /// The log ends, or goes on, in a block that cannot be read.
    #[error(
        "segment {segment} (segments/{segment:08}.seg) cannot be read at block {block}, where record {sequence} of the log may lie: whether something that was acked is in it cannot be told; {DAMAGE_ADVICE}"
    )]
    Unreadable {
        /// The segment's number.
        segment: u32,
        /// The block within it.
        block: u32,
        /// The record that would be there.
        sequence: u64,
    },
}

/// Where an entry's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The segment.
    pub segment: u32,
    /// The first data block; means nothing for entries without data.
    pub first_block: u32,
    /// Whether the append is durable already.
    pub durable: bool,
}

/// Something the log was asked for is done.
#[derive(Debug)]
pub enum Event {
    /// An append, in the order of the appends.
    Appended {
        /// The ticket it was asked with.
        ticket: u64,
        /// Where it is.
        result: Result<Placed, LogError>,
    },
    /// A copy into a cold segment, durable.
    Copied {
        /// The ticket it was asked with.
        ticket: u64,
        /// Where the first data block is; the others follow.
        result: Result<Placed, LogError>,
    },
    /// A sync.
    Synced {
        /// The ticket it was asked with.
        ticket: u64,
        /// Whether everything appended before it was asked for is durable.
        result: Result<(), LogError>,
    },
    /// A read.
    Read {
        /// The ticket it was asked with.
        ticket: u64,
        /// The blocks.
        result: Result<AlignedBuffer, LogError>,
    },
}

/// An entry found at recovery.
#[derive(Debug)]
pub struct Replayed {
    /// The entry.
    pub entry: Entry,
    /// The segment of its data.
    pub segment: u32,
    /// The first block of its data.
    pub first_block: u32,
}

/// What is known of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub segment: u32,
    /// Its size in blocks, the header included.
    pub blocks: u32,
    /// When it was taken into use; 0 for never.
    pub generation: u64,
    /// Whether it holds, or held, copies of the cleaner instead of a part of the log.
    pub cold: bool,
    /// Whether appends or copies go there now.
    pub active: bool,
    /// Whether it waits to be used (again).
    pub free: bool,
}

/// What a log has written since it was opened, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Data of guests and of other nodes.
    pub data: u64,
    /// Headers of the log's records and segments.
    pub headers: u64,
    /// What the cleaner copied.
    pub copies: u64,
    /// Headers of its records and segments.
    pub copy_headers: u64,
    /// Zeroes of new segments.
    pub prepared: u64,
}

/// How often a log did something since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Records that were appended, each with the entries that had gathered.
    pub records: u64,
    /// The entries in them.
    pub entries: u64,
    /// Syncs that were asked of the disk by themselves; those that are part of an append are not among them.
    pub syncs: u64,
}

/// An entry on its way: with its data and what to say when it is done.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) entry: Entry,
    pub(crate) data: Vec<Bytes>,
    pub(crate) durable: bool,
    pub(crate) ticket: u64,
}
