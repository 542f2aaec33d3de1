//! What functions take and give: handles, structures, constants and types of callbacks.
//!
//! Structures that callers fill or have filled begin with their size and grow at their end only; 0 in a field means what it meant
//! before there was the field. Their layout is fixed by the assertions at the end.

use std::ffi::{c_char, c_int, c_void};

use super::declare::{callbacks, constants, structures};
use crate::geometry::{BLOCK_SIZE, IO_SIZE_MAX, SECTOR_SIZE};

constants! {
    /// Offsets and lengths are multiples of this.
    HELIO_SECTOR_BYTES: u32 = SECTOR_SIZE;
    /// Requests of whole such blocks are cheapest.
    HELIO_BLOCK_BYTES: u32 = BLOCK_SIZE;
    /// A request of at most this is carried out as one.
    HELIO_REQUEST_BYTES_MAX: u32 = IO_SIZE_MAX;
    /// Most requests with callbacks of a volume under way.
    HELIO_REQUESTS_MAX: u32 = 1024;
    /// Of a write: durable on completion, in the volume's class.
    HELIO_FUA: u32 = 1;
    /// Of an open volume: writes are refused.
    HELIO_READ_ONLY: u32 = 2;
    /// Of a listed volume: it is a snapshot.
    HELIO_SNAPSHOT: u32 = 4;
    /// Of helio_extents: tell what the owner has yet to fetch, too.
    HELIO_RESIDENCY: u32 = 8;
    /// State of a volume: what is asked of it is done.
    HELIO_CONNECTED: u32 = 1;
    /// State of a volume: what is asked of it waits.
    HELIO_WAITING: u32 = 2;
    /// State of a volume: it cannot be used any more. Close it and open it anew.
    HELIO_FAILED: u32 = 3;
    /// Level of a line: something is over, or broken.
    HELIO_LOG_ERROR: u32 = 1;
    /// Level of a line: something waits, and why.
    HELIO_LOG_WARNING: u32 = 2;
    /// Level of a line: something goes on.
    HELIO_LOG_INFO: u32 = 3;
    /// State of an extent: there is data; asked for residency: at the owner.
    HELIO_DATA: u32 = 1;
    /// State of an extent: it reads as zeroes.
    HELIO_ZERO: u32 = 2;
    /// State of an extent: there is data, and the owner has yet to fetch it.
    HELIO_STALE: u32 = 3;
}

structures! {
    /// A cluster.
    Cluster = helio_cluster {}
    /// A volume or snapshot in use.
    Volume = helio_volume {}
    /// How a cluster is used. 0 in every field but the first is the default.
    ClusterOptions = helio_cluster_options {
        /// sizeof this structure.
        size: u32,
        /// Threads of the library for this cluster, at most 64; 0: one.
        threads: u32,
    }
    /// How a volume is used. 0 in every field but the first is the default.
    OpenOptions = helio_open_options {
        /// sizeof this structure.
        size: u32,
        /// HELIO_READ_ONLY or 0.
        flags: u32,
        /// Milliseconds that an operation may wait for a node that can carry it out; 0: as long as it takes.
        give_up_ms: u64,
        /// Bytes of writes that are kept in memory until they are durable; 0: 64 MiB. At half of it the volume is flushed by
        /// itself; when it is full, writes wait for that.
        journal_bytes: u64,
        /// The file of the key that opens an encrypted volume, 32 bytes or 64 hexadecimal digits, which only its owner may read; NULL: none.
        /// With a key, here or by key_command, a volume that is not encrypted is refused.
        key_file: *const c_char,
        /// A line for /bin/sh that prints the key that HELIO_KEY_NAME names; NULL: none. Not together with key_file.
        key_command: *const c_char,
    }
    /// A volume or snapshot, as helio_cluster_volumes tells of it.
    VolumeInfo = helio_volume_info {
        /// How many bytes of this structure there are.
        size: u32,
        /// HELIO_SNAPSHOT or 0.
        flags: u32,
        /// Its size.
        volume_bytes: u64,
        /// VOLUME or VOLUME@SNAPSHOT; during the call only.
        name: *const c_char,
    }
    /// A node, as helio_cluster_nodes tells of it. The texts are there during the call only.
    NodeInfo = helio_node_info {
        /// How many bytes of this structure there are.
        size: u32,
        /// 0.
        flags: u32,
        /// Its name.
        name: *const c_char,
        /// Its provider; empty if not known.
        provider: *const c_char,
        /// Where it listens for the cluster, as HOST:PORT.
        address: *const c_char,
    }
    /// How a volume stands.
    Status = helio_status {
        /// sizeof this structure.
        size: u32,
        /// HELIO_CONNECTED, HELIO_WAITING or HELIO_FAILED.
        state: u32,
        /// HELIO_READ_ONLY or 0.
        flags: u32,
        /// As HELIO_SECTOR_BYTES.
        sector_bytes: u32,
        /// As HELIO_BLOCK_BYTES.
        block_bytes: u32,
        /// As HELIO_REQUEST_BYTES_MAX.
        request_bytes_max: u32,
        /// Its size.
        volume_bytes: u64,
        /// The epoch of its ownership.
        epoch: u64,
        /// Writes that are kept because they are not durable yet.
        journal_bytes: u64,
        /// The node that owns it; empty while that is not known, and for a snapshot.
        owner: [c_char; 64],
        /// Why it is not HELIO_CONNECTED; else empty.
        reason: [c_char; 256],
    }
}

callbacks! {
    /// Called exactly once for a request that was begun, on a thread of the library; result is 0 or a negative error, about which
    /// helio_last_error tells then. Must not block, and nothing may be thrown out of it.
    Callback = helio_callback(user: *mut c_void, result: c_int) -> ();
    /// Called for each volume. Anything but 0 ends the listing, which returns it.
    VolumeVisitor = helio_volume_visitor(user: *mut c_void, volume: *const VolumeInfo) -> c_int;
    /// Called for each node. Anything but 0 ends the listing, which returns it.
    NodeVisitor = helio_node_visitor(user: *mut c_void, node: *const NodeInfo) -> c_int;
    /// Called for each extent, in order and without gaps. Anything but 0 ends the listing, which returns it.
    ExtentVisitor = helio_extent_visitor(user: *mut c_void, offset: u64, length: u64, state: u32) -> c_int;
    /// Called with a line, without its end, on a thread that does nothing else. The text is there during the call.
    Logger = helio_logger(user: *mut c_void, level: u32, text: *const c_char) -> ();
    /// Called with how the volume stands, on a thread of the library. As with helio_callback.
    Watcher = helio_watcher(user: *mut c_void, status: *const Status) -> ();
}

/// `struct iovec` of `<sys/uio.h>` (readv(2)).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    /// The first byte.
    pub base: *mut c_void,
    /// How many.
    pub length: usize,
}

#[cfg(test)]
impl super::declare::CType for *const IoVec {
    fn declare(name: &str) -> String {
        super::declare::join("const struct iovec *", name)
    }
}

// Programs are compiled with these: a structure grows at its end, and a new size gets a new line here.
const _: () = assert!(size_of::<ClusterOptions>() == 8);
const _: () = assert!(size_of::<OpenOptions>() == 40);
const _: () = assert!(size_of::<VolumeInfo>() == 24);
const _: () = assert!(size_of::<NodeInfo>() == 32);
const _: () = assert!(size_of::<Status>() == 368);
