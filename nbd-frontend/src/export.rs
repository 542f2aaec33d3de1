//! What the NBD server serves: a directory of exports, and one session per connection.
//!
//! This is the seam between the protocol and the disk behind it. Implementers are the node (a volume in
//! process), a client-lib volume (a volume elsewhere) and the memory export of the tests. The server has
//! validated every request against [`ExportInfo`] before it calls; implementers answer in any order.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::trace::{Trace, What};
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// What a client is told about an export before it transmits (NBD protocol, `NBD_OPT_INFO`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name that clients ask for.
    pub name: String,
    /// One line for people, shown by `nbdinfo`; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether every write is refused for ever, as on a snapshot. A volume owned elsewhere is *not* read-only:
    /// ownership may move here while the client is connected.
    pub read_only: bool,
    /// Smallest request unit in bytes, a power of two.
    pub block_size_min: u32,
    /// Best request unit in bytes, a power of two.
    pub block_size_preferred: u32,
    /// Largest payload of one request in bytes.
    pub block_size_max: u32,
}

/// A run of bytes in one state, for BLOCK_STATUS with `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationExtent {
    /// Length in bytes, above 0.
    pub length: u64,
    /// Whether space is allocated (not `NBD_STATE_HOLE`).
    pub allocated: bool,
    /// Whether the bytes read as zeroes (`NBD_STATE_ZERO`).
    pub zero: bool,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// At this node.
    Local,
    /// Elsewhere: a read, or [`Session::cache`], fetches them.
    Stale,
    /// Nowhere: they read as zeroes.
    Zero,
}

/// A run of bytes in one place, for BLOCK_STATUS with `helio:residency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidencyExtent {
    /// Length in bytes, above 0.
    pub length: u64,
    /// Where they are.
    pub residency: Residency,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Durable before the reply (`NBD_CMD_FLAG_FUA`).
    pub fua: bool,
    /// Keep the range allocated (`NBD_CMD_FLAG_NO_HOLE`).
    pub no_hole: bool,
}

/// An operation that is looked at closely.
pub struct Traced {
    /// What carries it out, and nothing else.
    pub session: Arc<dyn Session>,
    /// What it carries along; that session marks the same.
    pub trace: Trace,
}

/// The exports of a server.
pub trait ExportDirectory: Send + Sync + 'static {
    /// Every export, for `NBD_OPT_LIST`.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>>;

    /// What is known of the export `name`, without opening it, for `NBD_OPT_INFO`. The empty name asks for
    /// the default export; a directory without one answers `NotFound`.
    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>>;

    /// Opens `name` for one connection.
    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>>;

    /// What a session of another process uses is about to be passed on to this one; `draft` is what [`Session::draft`] told there.
    /// Does now what takes time.
    ///
    /// # Errors
    /// Why it cannot be taken up here; unless told otherwise, nothing can.
    fn expect<'a>(&'a self, _draft: &'a [u8]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Err(not_passed_on()) })
    }

    /// Goes on where a session of another process stopped; `state` is what [`Session::settle`] told there. What comes is for all
    /// connections that shared it.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    fn resume<'a>(&'a self, _state: &'a [u8]) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async { Err(not_passed_on()) })
    }
}

/// One connection's use of an export. Dropped when the connection ends.
///
/// Offsets and lengths are bytes, multiples of `block_size_min`, and inside the export. Lengths of what carries data are at
/// most `block_size_max`, all others may be the whole export.
///
/// # Cancel safety
/// Dropping a returned future abandons the reply; the operation may or may not have been carried out.
pub trait Session: Send + Sync + 'static {
    /// The export as it is now; the size may have grown since the handshake.
    fn info(&self) -> ExportInfo;

    /// The runtime on which the session's requests are carried out, if the connection may be served there too: then no
    /// request or reply waits for another thread to wake up. Asked once, after the handshake. When the runtime ends,
    /// the connection does.
    fn home(&self) -> Option<Handle> {
        None
    }

    /// Whether any operation of this session may be looked at closely. Asked for every read of the socket: it should cost next to nothing.
    fn is_traced(&self) -> bool {
        false
    }

    /// An operation is about to be asked for whose bytes have come at `arrived`: what is to carry it out instead of this session, if
    /// it is to be looked at closely. Asked only where [`is_traced`](Self::is_traced).
    fn traced(&self, _what: What, _arrived: Instant) -> Option<Traced> {
        None
    }

    /// The same number for all sessions of this process that use the same thing together, where that can be passed on to another
    /// process; `None` where it cannot, and then its connections stay in this one.
    fn share(&self) -> Option<u64> {
        None
    }

    /// Why requests wait at present, if nobody can carry them out.
    fn waits_for(&self) -> Option<String> {
        None
    }

    /// What is used, for the directory of another process to look it up ([`ExportDirectory::expect`]).
    fn draft(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Makes durable what was acked to any connection, and tells what another process needs to go on
    /// ([`ExportDirectory::resume`]). Nothing is under way meanwhile on connections that are passed on, and nothing comes
    /// afterwards unless the passing on fails.
    ///
    /// # Errors
    /// Why it cannot be passed on now; it can be used as before.
    fn settle(&self) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async { Err(not_passed_on()) })
    }

    /// Reads `length` bytes at `offset`: the newest acked write of every byte, wherever it was acked.
    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>>;

    /// Writes `data` at `offset`.
    ///
    /// # Durability
    /// On return the data survives the death of the process; with `fua` also a power cut.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes `length` bytes at `offset` read as zeroes. Without `no_hole` this must be faster than writing them: the
    /// server promises `NBD_CMD_FLAG_FAST_ZERO` to its clients.
    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>>;

    /// Tells that `length` bytes at `offset` are not needed; they read as zeroes afterwards.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes durable every write that any connection of this export had acked before this call.
    fn flush(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// The allocation of `length` bytes at `offset`. The extents start at `offset`, cover at least one byte, and
    /// may stop short of `length` or pass it.
    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>>;

    /// Where the newest versions of `length` bytes at `offset` are that the implementer knows of, in extents as those of
    /// [`allocation`](Session::allocation). Unless told otherwise, all that is not zeroes is here.
    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        Box::pin(async move {
            let extents = self.allocation(offset, length).await?;
            let residency = |extent: AllocationExtent| ResidencyExtent {
                length: extent.length,
                residency: if extent.zero { Residency::Zero } else { Residency::Local },
            };
            Ok(extents.into_iter().map(residency).collect())
        })
    }

    /// Brings `length` bytes at `offset` here, as far as they are stale, and returns when they are. What becomes stale
    /// meanwhile may be left out. Changes nothing that a client could see but the time of later reads. Unless told otherwise,
    /// all is here.
    fn cache(&self, _offset: u64, _length: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

fn not_passed_on() -> Error {
    Error::new(ErrorKind::InvalidRequest, "what is exported here cannot be passed on to another process")
}
