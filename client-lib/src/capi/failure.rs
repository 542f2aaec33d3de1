//! Errors as C has them: a negative number of `errno.h`, and a text of the thread that it was returned on.
//!
//! The one place where an [`ErrorKind`] becomes a number, and where a panic ends.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::error::{Error, ErrorKind};

// Linux: asm-generic/errno-base.h and asm-generic/errno.h, which x86-64 and AArch64 use. The test of the C library compares them
// with the compiler's.
pub(super) const ENOENT: c_int = 2;
pub(super) const EIO: c_int = 5;
pub(super) const E2BIG: c_int = 7;
pub(super) const EBADF: c_int = 9;
pub(super) const EAGAIN: c_int = 11;
pub(super) const EBUSY: c_int = 16;
pub(super) const EEXIST: c_int = 17;
pub(super) const EINVAL: c_int = 22;
pub(super) const ENOSPC: c_int = 28;
pub(super) const EROFS: c_int = 30;
pub(super) const EDEADLK: c_int = 35;
pub(super) const EBADMSG: c_int = 74;
pub(super) const ENOTSUP: c_int = 95;
pub(super) const ETIMEDOUT: c_int = 110;
pub(super) const ESTALE: c_int = 116;
pub(super) const ECANCELED: c_int = 125;

/// What a call failed with.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) errno: c_int,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(errno: c_int, text: impl Into<String>) -> Failure {
        Failure { errno, text: text.into() }
    }

    /// An argument that no call can do anything with.
    pub(super) fn invalid(text: impl Into<String>) -> Failure {
        Failure::new(EINVAL, text)
    }

    /// The volume was cancelled.
    pub(super) fn cancelled() -> Failure {
        Failure::new(ECANCELED, "the volume was cancelled: what was being written may be done or not")
    }

    fn panicked(payload: &(dyn Any + Send)) -> Failure {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Failure::new(EIO, format!("a bug in libheliotrope, please report it: {text}"))
    }

    /// Leaves the text with the thread; returns the number.
    pub(super) fn tell(self) -> c_int {
        set_last_error(self.text);
        -self.errno
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let errno = match error.kind() {
            ErrorKind::InvalidRequest => EINVAL,
            ErrorKind::NotFound => ENOENT,
            ErrorKind::AlreadyExists => EEXIST,
            // What another node owns is asked there; what is left is a volume that was opened for reading.
            ErrorKind::NotOwner => EROFS,
            ErrorKind::Fenced => ESTALE,
            ErrorKind::Busy => EBUSY,
            // Only when there was an end to the waiting.
            ErrorKind::Unavailable => ETIMEDOUT,
            ErrorKind::OutOfSpace => ENOSPC,
            ErrorKind::Corrupt => EBADMSG,
            ErrorKind::Closed => ECANCELED,
            ErrorKind::Internal => EIO,
        };
        Failure::new(errno, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

pub(super) fn set_last_error(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is ending has no such text any more.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
}

/// The text of the last failure on this thread; there until the next one.
pub(super) fn last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// What a function returns.
pub(super) trait Answer {
    /// What its body gives.
    type Value;

    fn value(value: Self::Value) -> Self;
    fn failed(number: c_int) -> Self;
}

impl Answer for c_int {
    type Value = c_int;

    fn value(value: c_int) -> c_int {
        value
    }

    fn failed(number: c_int) -> c_int {
        number
    }
}

impl Answer for i64 {
    type Value = i64;

    fn value(value: i64) -> i64 {
        value
    }

    fn failed(number: c_int) -> i64 {
        i64::from(number)
    }
}

/// Texts do not fail.
impl Answer for *const c_char {
    type Value = *const c_char;

    fn value(value: *const c_char) -> *const c_char {
        value
    }

    fn failed(_: c_int) -> *const c_char {
        ptr::null()
    }
}

/// Runs the body of a function. Nothing that it does reaches C but its answer.
pub(super) fn answered<A: Answer>(body: impl FnOnce() -> Result<A::Value, Failure>) -> A {
    // Whatever a panic leaves behind is of one call: what calls share is kept by locks that take poison for what it is.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return A::value(value),
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::panicked(&*payload),
    };
    A::failed(failure.tell())
}
