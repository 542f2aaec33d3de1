//! Functions about the library itself.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{CStr, c_char};

use super::declare::functions;
use super::failure::last_error;

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
}
