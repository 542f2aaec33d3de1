//! Replies that wait for the socket, and the one vectored write that sends many of them.
//!
//! Headers of successive replies lie in one piece of memory; data stays in the buffers the session gave. Nothing is
//! sent in part and forgotten: what the socket did not take stays, in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use client_lib::ReadPart;
use client_lib::trace::{Stage, Trace};
use tokio::io::AsyncWrite;

use super::operation::Told;
use crate::proto::reply::{self, ReplyTo};
use crate::proto::style::Style;

/// How many pieces one write hands to the kernel; it takes up to 1024 (`IOV_MAX`), but the array is on the stack.
const SLICES_MAX: usize = 64;
/// Sent header bytes above which the rest is moved to the front.
const SENT_HEADS_MAX: usize = 64 << 10;
/// Memory that a connection without unsent replies keeps, in bytes of headers and in pieces.
const HEADS_KEPT: usize = 4 << 10;
const SEGMENTS_KEPT: usize = 64;
/// The most extents of one BLOCK_STATUS answer for each context; a client asks again for the rest.
const EXTENTS_MAX: usize = 4096;
/// The source of zeroes where a hole must be sent as data.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

enum Segment {
    /// So many bytes of `heads`.
    Heads(usize),
    Data(Bytes),
}

#[derive(Default)]
pub(super) struct Output {
    heads: Vec<u8>,
    /// How much of `heads` was sent.
    heads_sent: usize,
    segments: VecDeque<Segment>,
    unsent: u64,
    /// Bytes that the socket has taken.
    taken: u64,
    /// Those who look at an operation until the socket has taken so many bytes.
    traces: VecDeque<(u64, Trace)>,
    /// Whether the stream may hold back a part of what it took, as one that encrypts does.
    is_unflushed: bool,
}

impl Output {
    /// Begins with bytes that another process had to send.
    pub(super) fn begin(unsent: Vec<u8>) -> Output {
        let mut output = Output::default();
        output.data(unsent.into());
        output
    }

    /// The bytes that the socket has not taken.
    pub(super) fn rest(&self) -> Vec<u8> {
        let mut rest = Vec::with_capacity(self.unsent as usize);
        let mut heads = &self.heads[self.heads_sent..];
        for segment in &self.segments {
            match segment {
                Segment::Heads(length) => {
                    let (head, others) = heads.split_at(*length);
                    rest.extend_from_slice(head);
                    heads = others;
                }
                Segment::Data(data) => rest.extend_from_slice(data),
            }
        }
        rest
    }

    /// Whether everything is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent == 0 && !self.is_unflushed
    }

    /// Bytes that the socket has not taken.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent
    }

    fn head(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        encode(&mut self.heads);
        let added = self.heads.len() - before;
        self.unsent += added as u64;
        match self.segments.back_mut() {
            Some(Segment::Heads(length)) => *length += added,
            _ => self.segments.push_back(Segment::Heads(added)),
        }
    }

    fn data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.unsent += data.len() as u64;
            self.segments.push_back(Segment::Data(data));
        }
    }

    fn zeroes(&mut self, mut length: usize) {
        while length > 0 {
            let piece = length.min(ZEROES.len());
            self.data(Bytes::from_static(&ZEROES[..piece]));
            length -= piece;
        }
    }

    pub(super) fn simple(&mut self, cookie: u64, error: u32) {
        self.head(|out| reply::simple(out, cookie, error));
    }

    pub(super) fn none(&mut self, to: ReplyTo) {
        self.head(|out| reply::none(out, to));
    }

    pub(super) fn error(&mut self, to: ReplyTo, error: u32, message: &str) {
        self.head(|out| reply::error(out, to, error, message));
    }

    /// The answer to a read.
    ///
    /// # Errors
    /// The session's parts do not cover the request; nothing was added.
    pub(super) fn read(
        &mut self,
        to: ReplyTo,
        length: u32,
        one_chunk: bool,
        parts: Vec<ReadPart>,
    ) -> Result<(), String> {
        let covered: u64 = parts.iter().map(ReadPart::length).sum();
        if covered != u64::from(length) {
            return Err(format!("the export answered a read of {length} bytes with {covered}"));
        }
        if !to.style.is_chunked() {
            self.simple(to.cookie, 0);
        } else if !one_chunk || parts.iter().all(|part| matches!(part, ReadPart::Zero(_))) {
            self.chunks(to, parts);
            return Ok(());
        } else {
            self.head(|out| reply::offset_data(out, to, true, to.offset, length));
        }
        for part in parts {
            match part {
                ReadPart::Data(data) => self.data(data),
                ReadPart::Zero(hole) => self.zeroes(hole as usize),
            }
        }
        Ok(())
    }

    /// One chunk for every run of data and of hole. `parts` are not all empty.
    fn chunks(&mut self, to: ReplyTo, parts: Vec<ReadPart>) {
        let mut offset = to.offset;
        let mut left: u64 = parts.iter().map(ReadPart::length).sum();
        let mut parts = parts.into_iter().filter(|part| part.length() > 0).peekable();
        let mut run = Vec::new();
        while let Some(part) = parts.next() {
            let is_hole = matches!(part, ReadPart::Zero(_));
            let mut length = part.length();
            run.push(part);
            while let Some(next) = parts.next_if(|next| matches!(next, ReadPart::Zero(_)) == is_hole) {
                length += next.length();
                run.push(next);
            }
            left -= length;
            let done = left == 0;
            // A run is no longer than the request, whose length is 32 bits wide.
            self.head(|out| match is_hole {
                true => reply::offset_hole(out, to, done, offset, length as u32),
                false => reply::offset_data(out, to, done, offset, length as u32),
            });
            for part in run.drain(..) {
                if let ReadPart::Data(data) = part {
                    self.data(data);
                }
            }
            offset += length;
        }
    }

    /// The answer to a BLOCK_STATUS, a chunk for each context ("Request types", `NBD_CMD_BLOCK_STATUS`).
    ///
    /// # Errors
    /// The session told nothing of a context; nothing was added.
    pub(super) fn block_status(&mut self, to: ReplyTo, told: &[Told], ask: &StatusAsk) -> Result<(), String> {
        let mut chunks = Vec::with_capacity(told.len());
        for (context, states) in told {
            let extents = extents(states, to, ask);
            if extents.is_empty() {
                return Err(format!("the export told nothing of {}", context.name()));
            }
            chunks.push((*context, extents));
        }
        let last = chunks.len().saturating_sub(1);
        for (index, (context, extents)) in chunks.into_iter().enumerate() {
            self.head(|out| reply::block_status(out, to, index == last, context.id(), &extents));
        }
        Ok(())
    }

    /// The reply that was put in last, all of it, is that of the operation of `trace`.
    pub(super) fn trace(&mut self, trace: Trace) {
        if trace.is_some() {
            self.traces.push_back((self.taken + self.unsent, trace));
        }
    }

    /// Sends until nothing is left or the socket takes no more.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unsent > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            let mut head = self.heads_sent;
            for segment in self.segments.iter().take(SLICES_MAX) {
                slices[used] = match segment {
                    Segment::Heads(length) => {
                        let start = head;
                        head += length;
                        IoSlice::new(&self.heads[start..head])
                    }
                    Segment::Data(data) => IoSlice::new(data),
                };
                used += 1;
            }
            let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..used]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_unflushed = true;
            self.sent(written);
        }
        // Costs a socket nothing.
        ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, mut written: usize) {
        self.unsent -= written as u64;
        self.taken += written as u64;
        while let Some((_, trace)) = self.traces.pop_front_if(|(until, _)| *until <= self.taken) {
            trace.spent(Stage::Socket);
        }
        while written > 0 {
            let Some(segment) = self.segments.front_mut() else {
                break;
            };
            let (taken, is_done) = match segment {
                Segment::Heads(length) => {
                    let taken = written.min(*length);
                    *length -= taken;
                    self.heads_sent += taken;
                    (taken, *length == 0)
                }
                Segment::Data(data) => {
                    let taken = written.min(data.len());
                    data.advance(taken);
                    (taken, data.is_empty())
                }
            };
            written -= taken;
            if is_done {
                self.segments.pop_front();
            }
        }
        if self.segments.is_empty() {
            self.heads.clear();
            self.heads_sent = 0;
            if self.heads.capacity() > HEADS_KEPT || self.segments.capacity() > SEGMENTS_KEPT {
                self.heads.shrink_to(HEADS_KEPT);
                self.segments.shrink_to(SEGMENTS_KEPT);
            }
        } else if self.heads_sent > SENT_HEADS_MAX {
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }
}

/// What a BLOCK_STATUS asked for, and what bounds its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusAsk {
    pub(super) length: u64,
    /// Only the first extent is told, and not past the request.
    pub(super) one_extent: bool,
    pub(super) export_size: u64,
    pub(super) block_size_min: u32,
}

/// Adjacent runs of one state become one extent.
fn extents(states: &[(u64, u32)], to: ReplyTo, ask: &StatusAsk) -> Vec<(u64, u32)> {
    // A structured extent's length has 32 bits; a longer run is cut at a multiple of the unit.
    let longest = match to.style {
        Style::Simple | Style::Structured => u64::from(u32::MAX / ask.block_size_min * ask.block_size_min),
        Style::Extended => u64::MAX,
    };
    let mut at = to.offset;
    let mut told: Vec<(u64, u32)> = Vec::with_capacity(states.len().min(EXTENTS_MAX));
    for (length, flags) in states {
        // An extent may pass the request, but never the end of the export.
        let run = (*length).min(ask.export_size.saturating_sub(at));
        if run == 0 {
            continue;
        }
        at += run;
        let count = told.len();
        match told.last_mut() {
            Some((last, last_flags)) if last_flags == flags && *last + run <= longest => *last += run,
            _ if count == EXTENTS_MAX || (ask.one_extent && count == 1) => break,
            _ => told.push((run.min(longest), *flags)),
        }
        if run > longest {
            break;
        }
    }
    if ask.one_extent
        && let Some((first, _)) = told.first_mut()
    {
        *first = (*first).min(ask.length);
    }
    // Only the last extent may reach past the request; what lies wholly behind it was not asked for.
    let mut reached = 0;
    told.retain(|(run, _)| {
        let starts_inside = reached < ask.length;
        reached += run;
        starts_inside
    });
    told
}

#[cfg(test)]
mod tests;
