//! The bottom of Heliotrope: the words, the wire and the transport that every other crate shares.
//!
//! Owns the identifiers and positions ([`types`]), sizes ([`geometry`]), policies ([`policy`]), what clients may do
//! ([`rights`]), what an operation spends its time on ([`trace`]), the error that callers act
//! on ([`error`]), files that are replaced whole ([`files`]), what a read brings ([`read_part`]), the requests of a connection ([`in_flight`]), the seam to the network ([`transport`]) and the frames that cross it ([`wire`]). It links
//! neither RocksDB, openraft nor io_uring, and never will, so that outside programs can link it.

pub mod capi;
pub mod cipher;
pub mod client;
pub mod clock;
pub mod error;
pub mod files;
pub mod geometry;
pub mod in_flight;
pub mod pki;
pub mod policy;
pub mod random;
pub mod read_part;
pub mod rights;
pub mod trace;
pub mod transport;
pub mod types;
pub mod watch;
pub mod wire;

pub use error::{Error, ErrorKind};
pub use geometry::{BLOCK_SIZE, BlockIndex, SECTOR_SIZE, VolumeSize};
pub use read_part::ReadPart;
pub use types::{
    ClientName, Epoch, GroupId, GroupName, KeyName, Label, Lsn, NodeId, NodeName, ProviderId, SnapshotId, SnapshotName,
    VolumeGroupId, VolumeId, VolumeName,
};
