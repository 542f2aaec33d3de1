//! Functions that read and write a volume, and return when that is done.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{c_int, c_void};

use super::declare::functions;
use super::failure::Failure;
use super::handles;
use super::memory::{Landing, Source};
use super::operations::{Operation, is_durable, require_flags, require_range};
use super::types::{ExtentVisitor, HELIO_DATA, HELIO_RESIDENCY, HELIO_STALE, HELIO_ZERO, IoVec, Volume};
use crate::client::Extent;
use crate::wire::client::{ExtentState, ExtentsOf};

fn run(volume: *mut Volume, operation: Operation) -> Result<c_int, Failure> {
    let (disk, in_use) = handles::volume(volume)?;
    disk.engine().wait(in_use.carry_out(operation)).map(|()| 0)
}

/// Extents as C counts them.
fn state(extent: Extent) -> u32 {
    match extent.state {
        ExtentState::Data => HELIO_DATA,
        ExtentState::Zero => HELIO_ZERO,
        ExtentState::Stale => HELIO_STALE,
    }
}

functions! {
    /// Reads the newest acked write of every byte. flags: 0.
    fn helio_read(volume: *mut Volume, offset: u64, buffer: *mut c_void, length: usize, flags: u32) -> c_int {
        require_flags(flags, 0)?;
        // SAFETY: the caller's promise, see the header.
        run(volume, Operation::Read(offset, unsafe { Landing::new(buffer, length) }?))
    }

    /// helio_read into count buffers, one behind the other; at most 1024.
    fn helio_readv(volume: *mut Volume, offset: u64, parts: *const IoVec, count: c_int, flags: u32) -> c_int {
        require_flags(flags, 0)?;
        // SAFETY: the caller's promise, see the header.
        run(volume, Operation::Read(offset, unsafe { Landing::listed(parts, count) }?))
    }

    /// Writes. flags: HELIO_FUA or 0.
    fn helio_write(volume: *mut Volume, offset: u64, buffer: *const c_void, length: usize, flags: u32) -> c_int {
        let is_durable = is_durable(flags)?;
        // SAFETY: the caller's promise, see the header.
        run(volume, Operation::Write(offset, unsafe { Source::new(buffer, length) }?, is_durable))
    }

    /// helio_write from count buffers, one behind the other; at most 1024. flags: HELIO_FUA or 0.
    fn helio_writev(volume: *mut Volume, offset: u64, parts: *const IoVec, count: c_int, flags: u32) -> c_int {
        let is_durable = is_durable(flags)?;
        // SAFETY: the caller's promise, see the header.
        run(volume, Operation::Write(offset, unsafe { Source::listed(parts, count) }?, is_durable))
    }

    /// Makes a range read as zeroes, and frees its space. flags: HELIO_FUA or 0.
    fn helio_write_zeroes(volume: *mut Volume, offset: u64, length: u64, flags: u32) -> c_int {
        run(volume, Operation::Zero(offset, length, is_durable(flags)?))
    }

    /// Tells that a range is not needed (TRIM): it reads as zeroes from now on. flags: 0.
    fn helio_discard(volume: *mut Volume, offset: u64, length: u64, flags: u32) -> c_int {
        require_flags(flags, 0)?;
        run(volume, Operation::Zero(offset, length, false))
    }

    /// Makes everything durable that was acked before, whoever wrote it, in the volume's class. flags: 0.
    fn helio_flush(volume: *mut Volume, flags: u32) -> c_int {
        require_flags(flags, 0)?;
        run(volume, Operation::Flush)
    }

    /// Has the owner fetch what it lacks of a range, so that later reads need not wait for that. flags: 0.
    fn helio_cache(volume: *mut Volume, offset: u64, length: u64, flags: u32) -> c_int {
        require_flags(flags, 0)?;
        run(volume, Operation::Cache(offset, length))
    }

    /// Calls visit, on this thread, for the extents of a range: where there is data, and where zeroes. flags: HELIO_RESIDENCY or 0.
    fn helio_extents(volume: *mut Volume, offset: u64, length: u64, flags: u32, visit: ExtentVisitor, user: *mut c_void) -> c_int {
        let visit = visit.ok_or_else(|| Failure::invalid("the visitor is NULL"))?;
        require_flags(flags, HELIO_RESIDENCY)?;
        let of = if flags & HELIO_RESIDENCY != 0 { ExtentsOf::Residency } else { ExtentsOf::Allocation };
        require_range(offset, length)?;
        let (mut at, end) = (offset, offset + length);
        while at < end {
            // Anew for every piece: the volume may be closed by the visitor.
            let (disk, in_use) = handles::volume(volume)?;
            let extents = in_use.unless_cancelled(in_use.volume().extents_of(of, at, end - at));
            let extents = disk.engine().wait(extents)?;
            drop(in_use);
            if extents.is_empty() {
                return Err(Failure::new(super::failure::EIO, "a node told no extents"));
            }
            for extent in extents {
                // SAFETY: the caller gave this function for that, with this pointer.
                let wish = unsafe { visit(user, at, extent.length, state(extent)) };
                if wish != 0 {
                    return Ok(wish);
                }
                at += extent.length;
            }
        }
        Ok(0)
    }
}
