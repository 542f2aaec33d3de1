//! Memory for direct I/O: owned, aligned, zeroed, a whole number of blocks.

#![expect(unsafe_code, reason = "aligned allocation; the only other place is io::uring")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

use super::ALIGNMENT;

/// A block-aligned buffer of a whole number of blocks.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory alone, like a `Box<[u8]>`; nothing is tied to a thread.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access only reads, as through `&[u8]`.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `length` zero bytes.
    ///
    /// # Panics
    /// If `length` is 0 or not a multiple of [`ALIGNMENT`].
    #[must_use]
    pub fn zeroed(length: usize) -> AlignedBuffer {
        let layout = layout(length);
        // SAFETY: the layout's size is not zero, `layout` checks.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuffer { start, length }
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
        // SAFETY: `start` points to `length` initialised bytes that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.length)
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), layout(self.length)) };
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
    #[should_panic(expected = "not a number of blocks")]
    fn a_buffer_of_part_of_a_block_is_a_mistake() {
        let _ = AlignedBuffer::zeroed(100);
    }
}
