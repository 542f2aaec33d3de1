//! Requests with callbacks, and watching a volume: what a caller is told on a thread of the library.
//!
//! A request's [`Completion`] calls its callback when it is dropped, if nothing else did: also when the request panicked, or the
//! threads end under it. When the callback is called the request's memory is the caller's again, and when it has returned the
//! volume is not in use by it any more.

#![expect(unsafe_code, reason = "a C caller's functions are called")]

use std::ffi::{c_int, c_void};

use super::engine::{Counted, Disk, InUse};
use super::failure::{EIO, Failure, set_last_error};
use super::operations::Operation;
use super::status::status;
use super::types::{Callback, Status, Watcher};
use crate::client::VolumeState;

/// What a callback is given of the caller's.
pub(super) struct User(pub(super) *mut c_void);

// SAFETY: it is not looked at, only handed back; the caller expects it on another thread.
unsafe impl Send for User {}

struct Completion {
    callback: unsafe extern "C" fn(*mut c_void, c_int),
    user: User,
    /// What is to be told, once that is known.
    outcome: Option<Result<(), Failure>>,
    request: Counted,
}

impl Completion {
    /// This is what is to be told.
    fn end(mut self, outcome: Result<(), Failure>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let broken =
            || Failure::new(EIO, "a request came to no end: its cluster ended, or there is a bug in libheliotrope");
        let result = match self.outcome.take().unwrap_or_else(|| Err(broken())) {
            Ok(()) => {
                set_last_error(String::new());
                0
            }
            Err(failure) => failure.tell(),
        };
        self.request.uncounted();
        // SAFETY: the caller gave this function for that, with this pointer, and it is called once only: here.
        unsafe { (self.callback)(self.user.0, result) };
    }
}

/// Begins a request.
///
/// # Errors
/// When it was not begun: the callback is not called then.
pub(super) fn begin(
    disk: &Disk,
    in_use: InUse,
    operation: Operation,
    callback: Callback,
    user: *mut c_void,
) -> Result<(), Failure> {
    let callback = callback.ok_or_else(|| Failure::invalid("the callback is NULL"))?;
    let request = in_use.one_more()?;
    let completion = Completion { callback, user: User(user), outcome: None, request };
    disk.engine().handle().spawn(async move {
        let outcome = completion.request.in_use().carry_out(operation).await;
        completion.end(outcome);
    });
    Ok(())
}

/// Tells how the volume stands, now and at every change, until it is closed.
///
/// # Errors
/// When there is nobody to tell.
pub(super) fn watch(disk: &Disk, in_use: InUse, watcher: Watcher, user: *mut c_void) -> Result<(), Failure> {
    let watcher = watcher.ok_or_else(|| Failure::invalid("the watcher is NULL"))?;
    let user = User(user);
    disk.engine().handle().spawn(async move {
        let user = user;
        let is_read_only = in_use.volume().is_read_only();
        let mut states = in_use.volume().subscribe();
        let mut told: Option<VolumeState> = None;
        loop {
            let now = states.borrow_and_update().clone();
            // Every write changes what is kept: that alone is not worth telling.
            let what = VolumeState { journal_bytes: 0, ..now.clone() };
            if told.as_ref() != Some(&what) {
                let status: Status = status(&now, is_read_only);
                // SAFETY: the caller gave this function for that, with this pointer; the status is there during the call.
                unsafe { watcher(user.0, &raw const status) };
                told = Some(what);
            }
            tokio::select! {
                biased;
                () = in_use.ended() => return,
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok(())
}
