//! What replies look like on the wire, however little the socket takes at a time.

use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::contexts::Context as MetaContext;
use crate::proto::constants::{STATE_HOLE, STATE_ZERO};
use crate::proto::reply::{CHUNK_HEADER_LEN, SIMPLE_REPLY_LEN};

fn to(style: Style, offset: u64) -> ReplyTo {
    ReplyTo { style, cookie: 1, offset }
}

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
            let to = ReplyTo { cookie: cookie as u64, ..to(Style::Simple, 0) };
            output.read(to, *length as u32, false, vec![data(&bytes)]).expect("covered");
        }
        prop_assert_eq!(output.unsent(), expected.len() as u64);
        prop_assert_eq!(sent(&mut output, takes), expected);
    }
}

#[test]
fn a_simple_reply_carries_holes_as_zeroes() {
    let mut output = Output::default();
    let parts = vec![ReadPart::Zero(100_000), data(b"end")];
    output.read(to(Style::Simple, 0), 100_003, false, parts).expect("covered");
    let bytes = sent(&mut output, usize::MAX);
    assert_eq!(bytes.len(), SIMPLE_REPLY_LEN + 100_003);
    assert!(bytes[SIMPLE_REPLY_LEN..][..100_000].iter().all(|byte| *byte == 0) && bytes.ends_with(b"end"));
}

#[test]
fn adjacent_parts_of_one_kind_are_one_chunk() {
    for style in [Style::Structured, Style::Extended] {
        let (mut output, to) = (Output::default(), to(style, 10));
        let parts = vec![data(b"ab"), data(b""), data(b"cd"), ReadPart::Zero(3), ReadPart::Zero(5), data(b"e")];
        output.read(to, 13, false, parts).expect("covered");
        let mut expected = Vec::new();
        reply::offset_data(&mut expected, to, false, 10, 4);
        expected.extend(b"abcd");
        reply::offset_hole(&mut expected, to, false, 14, 8);
        reply::offset_data(&mut expected, to, true, 22, 1);
        expected.extend(b"e");
        assert_eq!(sent(&mut output, 7), expected);
    }
}

#[test]
fn an_answer_of_the_wrong_length_is_an_error_and_sends_nothing() {
    for parts in [vec![], vec![data(b"abc")], vec![ReadPart::Zero(5)]] {
        let mut output = Output::default();
        assert!(output.read(to(Style::Structured, 0), 4, false, parts).is_err());
        assert!(output.is_empty());
    }
}

/// What is sent for a range at `offset`, or nothing.
fn status(to: ReplyTo, told: &[Told], length: u64, one_extent: bool, export_size: u64) -> Vec<u8> {
    let mut output = Output::default();
    let ask = StatusAsk { length, one_extent, export_size, block_size_min: 512 };
    let is_told = output.block_status(to, told, &ask).is_ok();
    let wire = sent(&mut output, usize::MAX);
    assert_eq!(is_told, !wire.is_empty(), "an error sends nothing");
    wire
}

const HOLE: u32 = STATE_HOLE | STATE_ZERO;

#[test]
fn extents_are_merged_cut_and_end_with_the_request() {
    let longest = u64::from(u32::MAX) / 512 * 512;
    let size = 1 << 40;
    for (extents, length, one, compact, extended) in [
        (vec![(512, 0), (512, 0), (512, HOLE)], 1536, false, vec![(1024, 0), (512, HOLE)], None),
        (vec![(512, 0), (512, 0), (512, HOLE)], 1536, true, vec![(1024, 0)], None),
        (vec![(4096, 0)], 512, false, vec![(4096, 0)], None),
        (vec![(4096, 0)], 512, true, vec![(512, 0)], None),
        (vec![(512, 0), (512, HOLE)], 512, false, vec![(512, 0)], None),
        (vec![(1 << 39, HOLE), (512, 0)], 512, false, vec![(longest, HOLE)], Some(vec![(1 << 39, HOLE)])),
        (
            vec![(1 << 33, HOLE), (1 << 33, HOLE), (512, 0)],
            size,
            false,
            vec![(longest, HOLE)],
            Some(vec![(1 << 34, HOLE), (512, 0)]),
        ),
        (vec![], 512, false, vec![], None),
        (vec![(0, 0)], 512, false, vec![], None),
    ] {
        let told = [(MetaContext::Allocation, extents)];
        for (style, expected) in
            [(Style::Structured, Some(&compact)), (Style::Extended, extended.as_ref().or(Some(&compact)))]
        {
            let to = to(style, 0);
            let mut bytes = Vec::new();
            if let Some(expected) = expected.filter(|expected| !expected.is_empty()) {
                reply::block_status(&mut bytes, to, true, MetaContext::Allocation.id(), expected);
                assert!(bytes.len() > CHUNK_HEADER_LEN);
            }
            assert_eq!(status(to, &told, length, one, size), bytes, "{told:?} one {one} {style:?}");
        }
    }
    let to = to(Style::Structured, 512);
    let mut bytes = Vec::new();
    reply::block_status(&mut bytes, to, true, MetaContext::Allocation.id(), &[(512, 0)]);
    let told = [(MetaContext::Allocation, vec![(1 << 20, 0)])];
    assert_eq!(status(to, &told, 512, false, 1024), bytes, "never past the end of the export");
}

#[test]
fn every_context_has_a_chunk_and_the_last_ends_the_reply() {
    let told = [(MetaContext::Allocation, vec![(512, 0)]), (MetaContext::Residency, vec![(256, 1), (512, 2)])];
    for style in [Style::Structured, Style::Extended] {
        let to = to(style, 0);
        let mut bytes = Vec::new();
        reply::block_status(&mut bytes, to, false, 1, &[(512, 0)]);
        reply::block_status(&mut bytes, to, true, 2, &[(256, 1), (512, 2)]);
        assert_eq!(status(to, &told, 512, false, 1 << 20), bytes);
    }
    let told = [(MetaContext::Allocation, vec![(512, 0)]), (MetaContext::Residency, vec![])];
    assert!(status(to(Style::Structured, 0), &told, 512, false, 1 << 20).is_empty(), "an error, and nothing before it");
}
