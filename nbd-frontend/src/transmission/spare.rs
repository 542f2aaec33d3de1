//! The read buffer of a thread, which its connections lend each other.
//!
//! A connection holds it while something of it was read and not consumed, which on a thread that serves many connections is
//! seldom more than one at a time. Parts that were handed on as payloads stay theirs: what is lent is the rest.

use std::cell::Cell;

use bytes::BytesMut;

thread_local! {
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// The thread's buffer, empty; one without memory if it is lent.
pub(super) fn take() -> BytesMut {
    SPARE.take().unwrap_or_default()
}

/// Gives back a buffer of which everything was consumed. Of several the largest is kept.
pub(super) fn give(buffer: BytesMut) {
    debug_assert!(buffer.is_empty(), "unread bytes of one connection");
    let kept = SPARE.take().filter(|kept| kept.capacity() > buffer.capacity());
    SPARE.set(Some(kept.unwrap_or(buffer)));
}
