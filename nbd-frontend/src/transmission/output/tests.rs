//! What replies look like on the wire, however little the socket takes at a time.

use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::proto::reply::{CHUNK_HEADER_LEN, SIMPLE_REPLY_LEN};

/// A socket that takes at most `takes` bytes per write, and at every other call none.
struct Trickle {
    takes: usize,
    pending: bool,
    taken: Vec<u8>,
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.pending = !self.pending;
        if self.pending {
            return Poll::Pending;
        }
        let taken = bytes.len().min(self.takes);
        self.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn sent(output: &mut Output, takes: usize) -> Vec<u8> {
    let mut socket = Trickle { takes, pending: false, taken: Vec::new() };
    let mut cx = Context::from_waker(Waker::noop());
    while output.poll_write(&mut socket, &mut cx).is_pending() {}
    assert!(output.is_empty() && output.unsent() == 0);
    socket.taken
}

fn data(bytes: &[u8]) -> ReadPart {
    ReadPart::Data(Bytes::copy_from_slice(bytes))
}

proptest! {
    #[test]
    fn replies_are_whole_and_in_order_however_little_the_socket_takes(
        lengths in proptest::collection::vec(0..300usize, 1..150), takes in 1..400usize,
    ) {
        let mut output = Output::default();
        let mut expected = Vec::new();
        for (cookie, length) in lengths.iter().enumerate() {
            let bytes = vec![cookie as u8; *length];
            reply::simple(&mut expected, cookie as u64, 0);
            expected.extend_from_slice(&bytes);
            output.read(cookie as u64, false, 0, *length as u32, false, vec![data(&bytes)]).expect("covered");
        }
        prop_assert_eq!(output.unsent(), expected.len() as u64);
        prop_assert_eq!(sent(&mut output, takes), expected);
    }
}

#[test]
fn a_simple_reply_carries_holes_as_zeroes() {
    let mut output = Output::default();
    let parts = vec![ReadPart::Hole(100_000), data(b"end")];
    output.read(1, false, 0, 100_003, false, parts).expect("covered");
    let bytes = sent(&mut output, usize::MAX);
    assert_eq!(bytes.len(), SIMPLE_REPLY_LEN + 100_003);
    assert!(bytes[SIMPLE_REPLY_LEN..][..100_000].iter().all(|byte| *byte == 0) && bytes.ends_with(b"end"));
}

#[test]
fn adjacent_parts_of_one_kind_are_one_chunk() {
    let mut output = Output::default();
    let parts = vec![data(b"ab"), data(b""), data(b"cd"), ReadPart::Hole(3), ReadPart::Hole(5), data(b"e")];
    output.read(1, true, 10, 13, false, parts).expect("covered");
    let mut expected = Vec::new();
    reply::offset_data(&mut expected, 1, false, 10, 4);
    expected.extend(b"abcd");
    reply::offset_hole(&mut expected, 1, false, 14, 8);
    reply::offset_data(&mut expected, 1, true, 22, 1);
    expected.extend(b"e");
    assert_eq!(sent(&mut output, 7), expected);
}

#[test]
fn an_answer_of_the_wrong_length_is_an_error_and_sends_nothing() {
    for parts in [vec![], vec![data(b"abc")], vec![ReadPart::Hole(5)]] {
        let mut output = Output::default();
        assert!(output.read(1, true, 0, 4, false, parts).is_err());
        assert!(output.is_empty());
    }
}

#[test]
fn extents_are_merged_cut_and_end_with_the_request() {
    let extent = |length, allocated| AllocationExtent { length, allocated, zero: !allocated };
    let hole = STATE_HOLE | STATE_ZERO;
    let longest = u32::MAX / 512 * 512;
    let size = 1 << 40;
    for (extents, length, one, expected) in [
        (
            vec![extent(512, true), extent(512, true), extent(512, false)],
            1536,
            false,
            Some(vec![(1024, 0), (512, hole)]),
        ),
        (vec![extent(512, true), extent(512, true), extent(512, false)], 1536, true, Some(vec![(1024, 0)])),
        (vec![extent(4096, true)], 512, false, Some(vec![(4096, 0)])),
        (vec![extent(4096, true)], 512, true, Some(vec![(512, 0)])),
        (vec![extent(512, true), extent(512, false)], 512, false, Some(vec![(512, 0)])),
        (vec![extent(1 << 39, false), extent(512, true)], 512, false, Some(vec![(longest, hole)])),
        (vec![], 512, false, None),
        (vec![extent(0, true)], 512, false, None),
    ] {
        let mut output = Output::default();
        let told = output.block_status(1, 0, length, one, &extents, size, 512);
        let wire = sent(&mut output, usize::MAX);
        match expected {
            None => assert!(told.is_err() && wire.is_empty()),
            Some(expected) => {
                let mut bytes = Vec::new();
                reply::block_status(&mut bytes, 1, ALLOCATION_CONTEXT_ID, &expected);
                assert_eq!(wire, bytes, "{extents:?} one {one}");
                assert!(bytes.len() > CHUNK_HEADER_LEN);
            }
        }
    }
    let mut output = Output::default();
    output.block_status(1, 512, 512, false, &[extent(1 << 20, true)], 1024, 512).expect("told");
    let mut bytes = Vec::new();
    reply::block_status(&mut bytes, 1, ALLOCATION_CONTEXT_ID, &[(512, 0)]);
    assert_eq!(sent(&mut output, usize::MAX), bytes, "never past the end of the export");
}
