//! What a guest that reads stale blocks will read next. Pure.
//!
//! A read that needs something from elsewhere is followed by the rest of its extent. One that goes on where another ended begins a stream:
//! the blocks after it are fetched ahead, in a window that grows with every step up to what fills the link. From then on reads of what
//! is here already move the stream on too. Guests have several requests under way, so a read belongs to a stream if it begins near
//! where that has come to.

use crate::propagation::heat::EXTENT_BLOCKS;

/// Streams that are followed at a time; the one that was longest idle is forgotten.
const STREAMS_MAX: usize = 8;

/// How far from where a stream has come to a read may begin, in blocks: as much as a guest has under way.
const NEAR_BLOCKS: u32 = 256;

/// The first window of a stream, in blocks: a mebibyte. What it has too much would be fetched in the background anyway.
const WINDOW_MIN: u32 = 256;

/// How much larger each is than the one before: the guest, whose first reads wait for a round trip each, takes few steps until the link is full.
const WINDOW_GROWTH: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The first block that was not read.
    next: u32,
    /// The first block that was not fetched ahead.
    until: u32,
    window: u32,
    touched: u64,
}

/// The streams of a volume.
#[derive(Clone, Debug, Default)]
pub struct Readahead {
    streams: Vec<Stream>,
    reads: u64,
}

impl Readahead {
    /// Whether any stream is followed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// `count` blocks at `start` are read, some of which are elsewhere if so; the blocks to fetch ahead of it, first and number.
    /// `window_max` blocks fill the link.
    pub fn read(&mut self, start: u32, count: u32, is_stale: bool, window_max: u32) -> Option<(u32, u32)> {
        self.reads += 1;
        let (touched, end) = (self.reads, start.saturating_add(count));
        let is_near = |stream: &&mut Stream| {
            stream.next.saturating_sub(NEAR_BLOCKS) <= start && start <= stream.next.saturating_add(NEAR_BLOCKS)
        };
        let Some(stream) = self.streams.iter_mut().find(is_near) else {
            if !is_stale {
                return None;
            }
            let until = end.div_ceil(EXTENT_BLOCKS).saturating_mul(EXTENT_BLOCKS);
            self.begin(Stream { next: end, until, window: 0, touched });
            return (until > end).then(|| (end, until - end));
        };
        stream.touched = touched;
        if end <= stream.next {
            return None;
        }
        stream.next = end;
        stream.until = stream.until.max(end);
        let ahead = stream.until - end;
        if ahead > stream.window / 2 {
            return None;
        }
        stream.window = stream.window.saturating_mul(WINDOW_GROWTH).clamp(WINDOW_MIN, window_max.max(WINDOW_MIN));
        let (from, until) = (stream.until, end.saturating_add(stream.window).max(stream.until));
        stream.until = until;
        (until > from).then(|| (from, until - from))
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() == STREAMS_MAX
            && let Some(idle) = self.streams.iter_mut().min_by_key(|stream| stream.touched)
        {
            *idle = stream;
            return;
        }
        self.streams.push(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = 1024;

    #[test]
    fn a_single_read_is_followed_by_its_neighbours() {
        let mut ahead = Readahead::default();
        assert!(ahead.is_idle());
        assert_eq!(ahead.read(5, 1, false, MAX), None, "everything is here");
        assert!(ahead.is_idle());
        assert_eq!(ahead.read(5, 1, true, MAX), Some((6, 10)));
        assert_eq!(ahead.read(100_000, 16, true, MAX), None, "it ends where its extent does");
    }

    #[test]
    fn a_sequential_read_has_a_window_ahead_of_it_that_grows_to_what_fills_the_link() {
        let mut ahead = Readahead::default();
        let (mut fetched, mut next, mut least) = (0, 0, u32::MAX);
        for read in 0..200 {
            if let Some((from, count)) = ahead.read(next, 32, read < 3, MAX) {
                assert_eq!(from, fetched.max(from.min(next + 32)), "without a gap, each once");
                assert!(from >= fetched);
                fetched = from + count;
            }
            next += 32;
            if read > 20 {
                assert!(fetched >= next && fetched - next <= MAX);
                least = least.min(fetched - next);
            }
        }
        assert!(least >= MAX / 2 - 32, "{least}: at least half of the window is on its way at any time");
    }

    #[test]
    fn reads_that_are_under_way_together_are_one_stream() {
        let mut ahead = Readahead::default();
        let mut until = 0;
        // Each pair in the wrong order.
        for pair in 0..50 {
            for start in [pair * 64 + 32, pair * 64] {
                if let Some((from, count)) = ahead.read(start, 32, true, MAX) {
                    assert!(from >= until, "each once");
                    until = from + count;
                }
            }
        }
        assert!(until >= 50 * 64 + MAX / 2);
        assert_eq!(ahead.streams.len(), 1);
    }

    #[test]
    fn random_reads_fetch_no_more_than_their_extents() {
        let mut ahead = Readahead::default();
        for read in 0..1000u32 {
            let start = (read.wrapping_mul(2_654_435_761) >> 8) / 600 * 600;
            if let Some((from, count)) = ahead.read(start, 1, true, MAX) {
                assert!(from > start && count < EXTENT_BLOCKS, "{from}, {count}");
            }
        }
        assert!(ahead.streams.len() <= STREAMS_MAX);
    }

    #[test]
    fn the_end_of_the_largest_volume_is_no_matter() {
        let mut ahead = Readahead::default();
        assert_eq!(ahead.read(u32::MAX - 4, 4, true, MAX), None);
        assert_eq!(ahead.read(u32::MAX, 1, true, MAX), None);
    }
}
