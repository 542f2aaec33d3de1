//! Functions that begin to read or write a volume, and have a callback called when that is done.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{c_int, c_void};

use super::declare::functions;
use super::failure::Failure;
use super::handles;
use super::memory::{Landing, Source};
use super::operations::{Operation, is_durable, require_flags};
use super::requests;
use super::types::{Callback, IoVec, Volume};

fn begin(volume: *mut Volume, operation: Operation, callback: Callback, user: *mut c_void) -> Result<c_int, Failure> {
    let (disk, in_use) = handles::volume(volume)?;
    requests::begin(&disk, in_use, operation, callback, user).map(|()| 0)
}

functions! {
    /// As helio_read. The buffer is the library's until the callback.
    fn helio_aio_read(volume: *mut Volume, offset: u64, buffer: *mut c_void, length: usize, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        require_flags(flags, 0)?;
        // SAFETY: the caller's promise, see the header.
        begin(volume, Operation::Read(offset, unsafe { Landing::new(buffer, length) }?), callback, user)
    }

    /// As helio_readv. The buffers are the library's until the callback; parts itself is not needed any more on return.
    fn helio_aio_readv(volume: *mut Volume, offset: u64, parts: *const IoVec, count: c_int, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        require_flags(flags, 0)?;
        // SAFETY: the caller's promise, see the header.
        begin(volume, Operation::Read(offset, unsafe { Landing::listed(parts, count) }?), callback, user)
    }

    /// As helio_write. The buffer is the library's until the callback.
    fn helio_aio_write(volume: *mut Volume, offset: u64, buffer: *const c_void, length: usize, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        let is_durable = is_durable(flags)?;
        // SAFETY: the caller's promise, see the header.
        begin(volume, Operation::Write(offset, unsafe { Source::new(buffer, length) }?, is_durable), callback, user)
    }

    /// As helio_writev. The buffers are the library's until the callback; parts itself is not needed any more on return.
    fn helio_aio_writev(volume: *mut Volume, offset: u64, parts: *const IoVec, count: c_int, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        let is_durable = is_durable(flags)?;
        // SAFETY: the caller's promise, see the header.
        begin(volume, Operation::Write(offset, unsafe { Source::listed(parts, count) }?, is_durable), callback, user)
    }

    /// As helio_write_zeroes.
    fn helio_aio_write_zeroes(volume: *mut Volume, offset: u64, length: u64, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        begin(volume, Operation::Zero(offset, length, is_durable(flags)?), callback, user)
    }

    /// As helio_discard.
    fn helio_aio_discard(volume: *mut Volume, offset: u64, length: u64, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        require_flags(flags, 0)?;
        begin(volume, Operation::Zero(offset, length, false), callback, user)
    }

    /// As helio_flush: everything durable whose callback was called, or whose call returned, before this was begun.
    fn helio_aio_flush(volume: *mut Volume, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        require_flags(flags, 0)?;
        begin(volume, Operation::Flush, callback, user)
    }

    /// As helio_cache.
    fn helio_aio_cache(volume: *mut Volume, offset: u64, length: u64, flags: u32, callback: Callback, user: *mut c_void) -> c_int {
        require_flags(flags, 0)?;
        begin(volume, Operation::Cache(offset, length), callback, user)
    }
}
