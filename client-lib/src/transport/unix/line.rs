//! Messages over a socket: what has come is read at once however many they are, and what is to be sent is sent at once.
//!
//! A message is a number, a length and a body (docs/format.md, "Call over a Unix socket"). Polled by one task; what they mean, and
//! how many there may be, is for its users. Bodies share the memory that they were read into.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::FRAME_SIZE_MAX;
use super::quiet::QuietStream;

/// Number and length.
pub(super) const HEADER_SIZE: usize = 8 + 4;
/// Bodies up to this many bytes are copied behind their header, so that many messages are one piece; larger ones are sent from
/// where they are.
const COPIED_MAX: usize = 1 << 10;
/// What is read at once, unless a message is longer.
const READ_LEN: usize = 64 << 10;
/// The free space below which more is made.
const READ_SPACE_MIN: usize = 8 << 10;
/// Pieces of one write: the array is on the stack.
const SLICES_MAX: usize = 64;

pub(super) struct Line {
    stream: QuietStream,
    input: BytesMut,
    /// The end of what is to be sent, which still grows.
    tail: BytesMut,
    output: VecDeque<Bytes>,
    unsent: usize,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> io::Result<Line> {
        Line::arrive((stream.into_std()?, BytesMut::new()))
    }

    fn of(stream: QuietStream) -> Line {
        Line { stream, input: BytesMut::new(), tail: BytesMut::new(), output: VecDeque::new(), unsent: 0 }
    }

    /// Bytes that are to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Moves to the runtime that `arrive` is called in. Nothing may be left to be sent.
    pub(super) fn leave(self) -> io::Result<(std::os::unix::net::UnixStream, BytesMut)> {
        debug_assert_eq!(self.unsent, 0, "an answer would be lost");
        Ok((self.stream.into_std()?, self.input))
    }

    pub(super) fn arrive((stream, input): (std::os::unix::net::UnixStream, BytesMut)) -> io::Result<Line> {
        Ok(Line { input, ..Line::of(QuietStream::from_std(stream)?) })
    }

    /// Puts a message behind those that are to be sent.
    pub(super) fn push(&mut self, number: u64, body: Bytes) {
        self.tail.put_u64_le(number);
        self.tail.put_u32_le(body.len() as u32);
        self.unsent += HEADER_SIZE + body.len();
        if body.len() <= COPIED_MAX {
            self.tail.put_slice(&body);
        } else {
            self.output.push_back(self.tail.split().freeze());
            self.output.push_back(body);
        }
    }

    /// Ready when everything is sent.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unsent > 0 {
            if !self.tail.is_empty() {
                self.output.push_back(self.tail.split().freeze());
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.output) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            let written = ready!(self.stream.poll_send(cx, &slices[..used]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent(written);
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, mut written: usize) {
        self.unsent -= written;
        while let Some(piece) = self.output.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.output.pop_front();
        }
    }

    /// The next message; `None` at the end.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<(u64, Bytes)>>> {
        loop {
            let missing = match self.input.first_chunk::<HEADER_SIZE>() {
                None => 0,
                Some(header) => {
                    let [number @ .., l0, l1, l2, l3] = *header;
                    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
                    if length > FRAME_SIZE_MAX {
                        let text = format!("{length} bytes are over the limit of a frame");
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                    }
                    if self.input.len() >= HEADER_SIZE + length {
                        self.input.advance(HEADER_SIZE);
                        let body = self.input.split_to(length).freeze();
                        return Poll::Ready(Ok(Some((u64::from_le_bytes(number), body))));
                    }
                    HEADER_SIZE + length - self.input.len()
                }
            };
            if self.input.capacity() - self.input.len() < missing.max(READ_SPACE_MIN) {
                self.input.reserve(missing.max(READ_LEN));
            }
            if ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx))? == 0 {
                let ended = if self.input.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                return Poll::Ready(ended);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn messages_of_all_sizes_come_whole_and_in_order() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (mut one, mut other) = (Line::new(one).expect("is watched"), Line::new(other).expect("is watched"));
        let sizes = [0, 1, 100, COPIED_MAX, COPIED_MAX + 1, READ_LEN, 1 << 20, 3, 5 << 20, 4096];
        let body = |number: usize| Bytes::from(vec![number as u8; sizes[number % sizes.len()]]);
        let send = async {
            for number in 0..3 * sizes.len() {
                one.push(number as u64, body(number));
                if number % 4 == 0 {
                    poll_fn(|cx| one.poll_send(cx)).await.expect("is sent");
                }
            }
            poll_fn(|cx| one.poll_send(cx)).await.expect("is sent");
            assert_eq!(one.unsent(), 0);
        };
        let receive = async {
            for number in 0..3 * sizes.len() {
                let received = poll_fn(|cx| other.poll_receive(cx)).await.expect("is received");
                assert!(received == Some((number as u64, body(number))), "message {number}");
            }
        };
        tokio::join!(send, receive);
        one.push(7, Bytes::from_static(b"rest"));
        poll_fn(|cx| one.poll_send(cx)).await.expect("is sent");
        // What was read and not taken goes along to another runtime.
        poll_fn(|cx| other.poll_receive(cx).map(drop)).await;
        let mut other = Line::arrive(other.leave().expect("leaves")).expect("arrives");
        drop(one);
        assert!(matches!(poll_fn(|cx| other.poll_receive(cx)).await, Ok(None)));
    }

    #[tokio::test]
    async fn half_a_message_at_the_end_is_an_error() {
        let (one, other) = UnixStream::pair().expect("a pair");
        one.try_write(&[0; HEADER_SIZE - 1]).expect("is sent");
        drop(one);
        let mut other = Line::new(other).expect("is watched");
        let ended = poll_fn(|cx| other.poll_receive(cx)).await.expect_err("it was cut");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
