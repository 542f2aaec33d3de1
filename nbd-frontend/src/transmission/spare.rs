//! The read buffer of a thread, which its connections lend each other.
//!
//! A connection holds it while something of it was read and not consumed, which on a thread that serves many connections is
//! seldom more than one at a time. Parts that were handed on as payloads stay theirs: what is lent is the rest.

use std::cell::RefCell;

use bytes::BytesMut;

thread_local! {
    static SPARE: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Exchanges `buffer`, of which everything was consumed, for the thread's; that has no memory while it is lent.
pub(super) fn take(buffer: &mut BytesMut) {
    debug_assert!(buffer.is_empty(), "unread bytes of one connection");
    SPARE.with_borrow_mut(|spare| std::mem::swap(spare, buffer));
}

/// Gives back a buffer of which everything was consumed, and leaves one without memory. Of two the larger is kept.
pub(super) fn give(buffer: &mut BytesMut) {
    debug_assert!(buffer.is_empty(), "unread bytes of one connection");
    SPARE.with_borrow_mut(|spare| {
        if buffer.capacity() > spare.capacity() {
            std::mem::swap(spare, buffer);
        }
        if buffer.capacity() > 0 {
            *buffer = BytesMut::new();
        }
    });
}
