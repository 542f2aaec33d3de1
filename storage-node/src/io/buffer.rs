//! Memory for direct I/O: owned, aligned, a whole number of blocks, and filled from its start.
//!
//! What is not filled yet was never written and cannot be seen: a block that is about to be overwritten need not be zeroed.

#![expect(unsafe_code, reason = "aligned allocation; the only other place is io::uring")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

use super::ALIGNMENT;

/// A block-aligned buffer with room for a whole number of blocks. Dereferences to what is filled.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    room: usize,
    /// So many bytes from `start` are initialised.
    filled: usize,
}

// SAFETY: the buffer owns its memory alone, like a `Box<[u8]>`; nothing is tied to a thread.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access only reads, as through `&[u8]`.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// An empty buffer with room for `room` bytes.
    ///
    /// # Panics
    /// If `room` is 0 or not a multiple of [`ALIGNMENT`].
    #[must_use]
    pub fn with_room(room: usize) -> AlignedBuffer {
        let layout = layout(room);
        // SAFETY: the layout's size is not zero, `layout` checks.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuffer { start, room, filled: 0 }
    }

    /// `length` zero bytes.
    ///
    /// # Panics
    /// As [`with_room`](Self::with_room).
    #[must_use]
    pub fn zeroed(length: usize) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::with_room(length);
        buffer.zero_to(length);
        buffer
    }

    /// How many bytes it can hold.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Fills it up with zeroes until `length` bytes are filled. Nothing to do when there are as many.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn zero_to(&mut self, length: usize) {
        assert!(length <= self.room, "{length} bytes do not fit into {}", self.room);
        if length > self.filled {
            let end = self.end();
            // SAFETY: from `filled` to `length` lies within the allocation, which this has alone.
            unsafe { end.write_bytes(0, length - self.filled) };
            self.filled = length;
        }
    }

    /// Fills in `bytes` behind what is filled.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn push(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room - self.filled, "{} bytes do not fit", bytes.len());
        // SAFETY: the target lies within the allocation, which this has alone, so that `bytes` is elsewhere.
        unsafe { self.end().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.filled += bytes.len();
    }

    /// Where what is filled ends.
    fn end(&mut self) -> *mut u8 {
        // SAFETY: no more is filled than there is room for.
        unsafe { self.start.as_ptr().add(self.filled) }
    }

    /// Where the bytes are, filled or not.
    pub(super) fn as_mut_start(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Takes note that somebody filled the first `length` bytes, or more.
    ///
    /// # Safety
    /// They are initialised, and there is room for them.
    pub(super) unsafe fn assume_filled(&mut self, length: usize) {
        self.filled = self.filled.max(length);
    }

    /// The buffer as shared bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

fn layout(length: usize) -> Layout {
    assert!(length > 0 && length.is_multiple_of(ALIGNMENT), "a buffer of {length} bytes is not a number of blocks");
    Layout::from_size_align(length, ALIGNMENT).expect("far below the address space")
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `filled` initialised bytes that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.filled) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.filled) }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} of {} bytes)", self.filled, self.room)
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_room` with this very layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), layout(self.room)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_becomes_bytes() {
        let mut buffer = AlignedBuffer::zeroed(8192);
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[5] = 7;
        assert_eq!(buffer.into_bytes()[5], 7);
    }

    #[test]
    fn a_buffer_shows_what_it_was_filled_with() {
        let mut buffer = AlignedBuffer::with_room(8192);
        assert!(buffer.is_empty());
        buffer.push(&[1, 2, 3]);
        buffer.zero_to(5);
        buffer.zero_to(4);
        buffer.push(&[9; 4096]);
        assert_eq!((buffer.len(), buffer.room()), (5 + 4096, 8192));
        assert_eq!(buffer[..6], [1, 2, 3, 0, 0, 9]);
        buffer.zero_to(8192);
        assert_eq!((buffer[5 + 4095], buffer[5 + 4096]), (9, 0));
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn more_than_there_is_room_for_is_a_mistake() {
        let mut buffer = AlignedBuffer::with_room(4096);
        buffer.push(&[1; 4000]);
        buffer.push(&[1; 97]);
    }

    #[test]
    #[should_panic(expected = "not a number of blocks")]
    fn a_buffer_of_part_of_a_block_is_a_mistake() {
        let _ = AlignedBuffer::zeroed(100);
    }
}
