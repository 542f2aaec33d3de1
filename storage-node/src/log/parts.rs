//! Where the data of a record comes from: small parts are copied together, large ones go to the device from where they are.

use bytes::Bytes;
use client_lib::BLOCK_SIZE;

use crate::io::buffer::AlignedBuffer;
use crate::io::is_at_page;

const BLOCK: usize = BLOCK_SIZE as usize;

/// Parts from this many bytes on are not copied, if they lie so that the device can take them. Below it, a copy costs less
/// than one more element of the write.
const IN_PLACE_MIN: usize = 64 << 10;

/// The data of a record, in order: runs of parts that are copied, and of parts that are not.
#[derive(Debug)]
pub(super) struct Parts<'a>(Vec<&'a Bytes>);

fn is_in_place(part: &Bytes) -> bool {
    part.len() >= IN_PLACE_MIN && is_at_page(part)
}

fn bytes(parts: &[&Bytes]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

impl<'a> Parts<'a> {
    /// These parts, each a whole number of blocks.
    pub(super) fn of(parts: impl IntoIterator<Item = &'a Bytes>) -> Parts<'a> {
        Parts(parts.into_iter().collect())
    }

    /// How many blocks of data belong right behind the header, in its buffer.
    pub(super) fn first_blocks(&self) -> u32 {
        let first = self.0.iter().position(|part| is_in_place(part)).unwrap_or(self.0.len());
        (bytes(&self.0[..first]) / BLOCK) as u32
    }

    /// Fills what belongs into `buffer` behind what is there, and returns what follows it.
    ///
    /// # Panics
    /// If `buffer` has no room for [`first_blocks`](Self::first_blocks).
    pub(super) fn lay_out(&self, buffer: &mut AlignedBuffer) -> Vec<Bytes> {
        let mut rest = Vec::new();
        for run in self.0.chunk_by(|one, other| is_in_place(one) == is_in_place(other)) {
            if is_in_place(run[0]) {
                rest.extend(run.iter().copied().cloned());
            } else if rest.is_empty() {
                run.iter().for_each(|part| buffer.push(part));
            } else {
                let mut copied = AlignedBuffer::with_room(bytes(run));
                run.iter().for_each(|part| copied.push(part));
                rest.push(copied.into_bytes());
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(fill: u8, blocks: usize) -> Bytes {
        let mut buffer = AlignedBuffer::zeroed(blocks * BLOCK);
        buffer.fill(fill);
        buffer.into_bytes()
    }

    #[test]
    fn small_parts_are_copied_and_large_ones_stay_where_they_are() {
        let shifted = Bytes::from(vec![7; 33 * BLOCK]);
        let shifted = shifted.slice(if is_at_page(&shifted) { 512..512 + 32 * BLOCK } else { 0..32 * BLOCK });
        let parts = [part(1, 1), part(2, 15), part(3, 16), part(4, 300), part(5, 1), part(6, 2), shifted, part(8, 16)];
        let laid = Parts::of(&parts);
        assert_eq!(laid.first_blocks(), 16);
        let mut buffer = AlignedBuffer::with_room(17 * BLOCK);
        buffer.zero_to(BLOCK);
        let rest = laid.lay_out(&mut buffer);
        assert_eq!(buffer.len(), 17 * BLOCK);
        let whole = [&buffer[BLOCK..], &rest.concat()].concat();
        assert!(whole == parts.concat(), "the order is kept");
        let sizes: Vec<usize> = rest.iter().map(|part| part.len() / BLOCK).collect();
        assert_eq!(sizes, [16, 300, 35, 16]);
        let in_place = [(0, 2), (1, 3), (3, 7)];
        assert!(in_place.iter().all(|(rest_at, at)| rest[*rest_at].as_ptr() == parts[*at].as_ptr()), "not copied");
        assert!(rest.iter().all(|part| is_at_page(part)));
    }

    #[test]
    fn a_record_without_data_is_its_header() {
        let laid = Parts::of(&[]);
        let mut buffer = AlignedBuffer::zeroed(BLOCK);
        assert_eq!((laid.first_blocks(), laid.lay_out(&mut buffer).len(), buffer.len()), (0, 0, BLOCK));
    }
}
