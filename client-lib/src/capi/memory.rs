//! What callers point at: texts, structures and buffers, read and written here and nowhere else.
//!
//! Invariants: no byte outside what a caller named is touched, nothing is assumed of alignment, and a buffer is used only while
//! its [`Landing`] or [`Source`] lives, which ends before the request's callback is called.

#![expect(unsafe_code, reason = "a C caller's memory; what it promises is in the header")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use bytes::Bytes;

use super::failure::{E2BIG, Failure};
use super::types::{ClusterOptions, IoVec, OpenOptions, Status};

/// Most buffers of a vectored request (IOV_MAX of Linux, readv(2)).
const PARTS_MAX: c_int = 1024;

/// A text of the caller.
///
/// # Safety
/// `text` is NULL or ends with a zero byte.
pub(super) unsafe fn text(text: *const c_char, what: &str) -> Result<String, Failure> {
    if text.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL")));
    }
    // SAFETY: it is not NULL, and the caller of this function promises the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(str::to_owned).map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))
}

/// Structures that callers fill: a size, and then fields that mean something in every pattern of bits, 0 the default.
///
/// # Safety
/// The type is `repr(C)`, made of integers and pointers alone and begins with its size as a `u32`.
pub(super) unsafe trait Options: Copy {
    /// All defaults.
    const DEFAULT: Self;
    /// The size of its first version.
    const SIZE_MIN: usize;
}

// SAFETY: its fields are two `u32`.
unsafe impl Options for ClusterOptions {
    const DEFAULT: ClusterOptions = ClusterOptions { size: 0, threads: 0 };
    const SIZE_MIN: usize = 8;
}

// SAFETY: its fields are two `u32`, two `u64` and two pointers.
unsafe impl Options for OpenOptions {
    const DEFAULT: OpenOptions = OpenOptions {
        size: 0,
        flags: 0,
        give_up_ms: 0,
        journal_bytes: 0,
        key_file: ptr::null(),
        key_command: ptr::null(),
    };
    const SIZE_MIN: usize = 24;
}

/// What a caller wants, who may know fewer fields than there are, or more; NULL is all defaults.
///
/// # Safety
/// `options` is NULL or points at as many bytes as the first field says.
pub(super) unsafe fn options<T: Options>(options: *const T) -> Result<T, Failure> {
    if options.is_null() {
        return Ok(T::DEFAULT);
    }
    // SAFETY: every such structure has at least its size; it may stand anywhere.
    let size = unsafe { options.cast::<u32>().read_unaligned() } as usize;
    if size < T::SIZE_MIN {
        return Err(Failure::invalid(format!("the options' size is {size}: set it to sizeof the structure")));
    }
    if !size.is_multiple_of(align_of::<T>()) {
        // No field may be there in part, least of all a pointer.
        return Err(Failure::invalid(format!("the options' size is {size}, which is the size of no version of them")));
    }
    // SAFETY: the caller of this function promises `size` bytes.
    let given = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), size) };
    let (known, unknown) = given.split_at(size.min(size_of::<T>()));
    if unknown.iter().any(|byte| *byte != 0) {
        return Err(Failure::new(
            E2BIG,
            "an option is set that this libheliotrope does not know: set it to 0, or use a newer one",
        ));
    }
    let mut found = T::DEFAULT;
    // SAFETY: `known` is at most as long as the type, whose integers and pointers may have any bits.
    unsafe { ptr::copy_nonoverlapping(known.as_ptr(), (&raw mut found).cast::<u8>(), known.len()) };
    Ok(found)
}

/// Fills as much of the caller's structure as it knows, and what only it knows with zeroes.
///
/// # Safety
/// `place` is NULL or points at as many bytes as its first field says.
pub(super) unsafe fn put_status(place: *mut Status, status: &Status) -> Result<(), Failure> {
    /// The size of its first version.
    const SIZE_MIN: usize = 368;
    if place.is_null() {
        return Err(Failure::invalid("the place for the status is NULL"));
    }
    // SAFETY: it has at least its size.
    let size = unsafe { place.cast::<u32>().read_unaligned() };
    if (size as usize) < SIZE_MIN {
        return Err(Failure::invalid(format!("the status' size is {size}: set it to sizeof the structure")));
    }
    // SAFETY: the caller of this function promises `size` bytes.
    unsafe { place.cast::<u8>().write_bytes(0, size as usize) };
    let known = (size as usize).min(size_of::<Status>());
    // SAFETY: as many bytes are in both; the structure has no padding, its size is the sum of its fields.
    unsafe { ptr::copy_nonoverlapping((&raw const *status).cast::<u8>(), place.cast::<u8>(), known) };
    // SAFETY: within `size` again.
    unsafe { place.cast::<u32>().write_unaligned(size) };
    Ok(())
}

/// A place for a handle.
pub(super) struct Place<T>(*mut *mut T);

impl<T> Place<T> {
    /// NULL is put there first, so that it is never what it was.
    ///
    /// # Safety
    /// `place` is NULL or can be written until [`fill`](Self::fill).
    pub(super) unsafe fn new(place: *mut *mut T) -> Result<Place<T>, Failure> {
        if place.is_null() {
            return Err(Failure::invalid("the place for the handle is NULL"));
        }
        let place = Place(place);
        place.put(ptr::null_mut());
        Ok(place)
    }

    pub(super) fn fill(self, handle: *mut T) {
        self.put(handle);
    }

    fn put(&self, handle: *mut T) {
        // SAFETY: the maker of the place promised that.
        unsafe { self.0.write_unaligned(handle) };
    }
}

/// One buffer as a list of buffers.
fn whole(base: *mut c_void, length: usize) -> Result<Vec<IoVec>, Failure> {
    checked(vec![IoVec { base, length }])
}

/// The caller's list of buffers.
///
/// # Safety
/// `parts` is NULL or points at `count` of them.
unsafe fn listed(parts: *const IoVec, count: c_int) -> Result<Vec<IoVec>, Failure> {
    if !(0..=PARTS_MAX).contains(&count) {
        return Err(Failure::invalid(format!("{count} buffers, where there may be 0 to {PARTS_MAX}")));
    }
    if parts.is_null() && count > 0 {
        return Err(Failure::invalid("the list of buffers is NULL"));
    }
    // SAFETY: the caller of this function promises `count` of them.
    let part = |index: usize| unsafe { parts.wrapping_add(index).read_unaligned() };
    checked((0..count as usize).map(part).collect())
}

fn checked(parts: Vec<IoVec>) -> Result<Vec<IoVec>, Failure> {
    if parts.iter().any(|part| part.base.is_null() && part.length > 0) {
        return Err(Failure::invalid("a buffer is NULL"));
    }
    let total = parts.iter().try_fold(0, |total: usize, part| total.checked_add(part.length));
    if total.is_none_or(|total| total > isize::MAX as usize) {
        return Err(Failure::invalid("the buffers are longer than memory is"));
    }
    Ok(parts)
}

/// What is left of a caller's buffers, one behind the other.
#[derive(Debug)]
struct Rest {
    parts: Vec<IoVec>,
    /// The first part that is not used up.
    next: usize,
}

impl Rest {
    fn length(&self) -> usize {
        self.parts[self.next..].iter().map(|part| part.length).sum()
    }

    /// The next run of at most `most` bytes, not empty, which counts as used from now on.
    ///
    /// # Panics
    /// If nothing is left.
    fn take(&mut self, most: usize) -> (*mut u8, usize) {
        while self.parts[self.next].length == 0 {
            self.next += 1;
        }
        let part = &mut self.parts[self.next];
        let (base, length) = (part.base.cast::<u8>(), part.length.min(most));
        (part.base, part.length) = (part.base.wrapping_byte_add(length), part.length - length);
        (base, length)
    }
}

/// Buffers that a read fills from the first byte to the last.
#[derive(Debug)]
pub(super) struct Landing(Rest);

// SAFETY: the buffers are the library's for as long as this lives, on whichever thread; nothing else refers to them.
unsafe impl Send for Landing {}

impl Landing {
    /// # Safety
    /// `buffer` is NULL or can be written, and is nobody else's, for `length` bytes as long as this lives.
    pub(super) unsafe fn new(buffer: *mut c_void, length: usize) -> Result<Landing, Failure> {
        Ok(Landing(Rest { parts: whole(buffer, length)?, next: 0 }))
    }

    /// # Safety
    /// `parts` is NULL or points at `count` buffers, each as with [`new`](Self::new); the list itself is needed during the call only.
    pub(super) unsafe fn listed(parts: *const IoVec, count: c_int) -> Result<Landing, Failure> {
        // SAFETY: the same promise.
        Ok(Landing(Rest { parts: unsafe { listed(parts, count) }?, next: 0 }))
    }

    /// Bytes that are not filled yet.
    pub(super) fn length(&self) -> usize {
        self.0.length()
    }

    /// Fills the next bytes.
    ///
    /// # Panics
    /// If there are fewer left.
    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (base, length) = self.0.take(bytes.len());
            let (now, later) = bytes.split_at(length);
            // SAFETY: `length` bytes of a caller's buffer, which overlaps nothing that Rust owns.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), base, length) };
            bytes = later;
        }
    }

    /// Fills the next bytes with zeroes.
    ///
    /// # Panics
    /// If there are fewer left.
    pub(super) fn put_zeroes(&mut self, mut count: usize) {
        while count > 0 {
            let (base, length) = self.0.take(count);
            // SAFETY: `length` bytes of a caller's buffer.
            unsafe { base.write_bytes(0, length) };
            count -= length;
        }
    }
}

/// Buffers that a write takes its bytes from.
#[derive(Debug)]
pub(super) struct Source(Rest);

// SAFETY: nobody changes the buffers for as long as this lives, so any thread may read them.
unsafe impl Send for Source {}

impl Source {
    /// # Safety
    /// `buffer` is NULL or can be read, and is changed by nobody, for `length` bytes as long as this lives.
    pub(super) unsafe fn new(buffer: *const c_void, length: usize) -> Result<Source, Failure> {
        Ok(Source(Rest { parts: whole(buffer.cast_mut(), length)?, next: 0 }))
    }

    /// # Safety
    /// `parts` is NULL or points at `count` buffers, each as with [`new`](Self::new); the list itself is needed during the call only.
    pub(super) unsafe fn listed(parts: *const IoVec, count: c_int) -> Result<Source, Failure> {
        // SAFETY: the same promise.
        Ok(Source(Rest { parts: unsafe { listed(parts, count) }?, next: 0 }))
    }

    /// Bytes that were not taken yet.
    pub(super) fn length(&self) -> usize {
        self.0.length()
    }

    /// A copy of the next `count` bytes.
    ///
    /// # Panics
    /// If there are fewer left.
    pub(super) fn take(&mut self, count: usize) -> Bytes {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let (base, length) = self.0.take(count - taken.len());
            // SAFETY: `length` bytes of a caller's buffer.
            taken.extend_from_slice(unsafe { std::slice::from_raw_parts(base, length) });
        }
        taken.into()
    }
}
