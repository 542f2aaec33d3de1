//! Functions about the library itself.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{CStr, c_char, c_int, c_void};

use super::declare::functions;
use super::failure::last_error;
use super::types::Logger;
use super::{handles, log};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

functions! {
    /// The version of the library that runs, as HELIO_VERSION is that of the header.
    fn helio_version() -> *const c_char {
        Ok(VERSION.as_ptr())
    }

    /// What the last failure on this thread was and, where it helps, what to do; in a callback, of that request. Never NULL. There
    /// until the next call on this thread.
    fn helio_last_error() -> *const c_char {
        Ok(last_error())
    }

    /// Has logger called with what the library tells of by itself, up to level; for the whole process, and from now on. NULL: nobody, as in
    /// the beginning. When this returns whoever was told before is not called any more.
    fn helio_log(level: u32, logger: Logger, user: *mut c_void) -> c_int {
        handles::require_process()?;
        log::tell(level, logger, user).map(|()| 0)
    }
}
