//! The request loop of one connection: requests in, replies out of order.
//!
//! One task does everything for a connection. It reads into a buffer that holds many pipelined requests, starts each
//! on the session, polls all that are in flight itself (no task per request, no lock, no channel), and sends
//! every reply that is ready in one vectored write. A payload is read once, into the buffer that the session is given;
//! data replies are sent from the session's own buffers.
//!
//! Bounds: requests and bytes in flight ([`Bounds`]), unsent replies ([`REPLY_BACKLOG_MAX`]). At a bound the loop stops
//! reading, so the client's socket fills and the client waits. A request that has begun to arrive must go on arriving. An
//! idle connection holds no buffers: the read buffer is its thread's ([`spare`]). When the server's gate closes ([`GateWatch`]), nothing
//! more is read, what is in flight is finished, and the loop pauses; another process can go on from [`Rest`]. Whether a request is allowed is for `validate`; sockets
//! are opened and closed by `server`.

mod operation;
mod outcome;
mod output;
mod spare;

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use client_lib::in_flight::InFlight;
use client_lib::{Error, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::operation::{Done, Operation, Outcome};
pub(crate) use self::outcome::{Broken, Closing, End, Rest, Stop};
use self::output::{Output, StatusAsk};
use crate::errno;
use crate::export::Session;
use crate::negotiation::Negotiated;
use crate::passing::gate::GateWatch;
use crate::passing::message::Discard;
use crate::proto::constants::{CMD_DISC, CMD_READ, CMD_WRITE, ESHUTDOWN};
use crate::proto::reply::ReplyTo;
use crate::proto::request::RequestHeader;
use crate::proto::style::Style;
use crate::validate::{Constraints, READ_BEYOND_END, Refusal, Request, WRITE_BEYOND_END, validate, validate_filter};

/// The read buffer in bytes: some fifteen pipelined writes of 4 KiB per system call, and small enough for a cache.
pub(crate) const READ_BUFFER_LEN: usize = 64 << 10;
/// The free space below which a new read buffer is taken rather than a short read done.
const READ_SPACE_MIN: usize = 16 << 10;
/// Payloads up to this many bytes arrive in the read buffer and are handed on as a part of it; larger ones get a
/// buffer of their own.
const SHARED_PAYLOAD_MAX: usize = READ_BUFFER_LEN / 2;
/// Unsent reply bytes above which no further request is taken. More would not make the socket busier.
const REPLY_BACKLOG_MAX: u64 = 4 << 20;
/// The payload of a refused write that is read and thrown away so that the connection can go on, in bytes. A client
/// that announces more is disconnected ("Block size constraints" allows it above 32 MiB). With extended headers the bound is
/// the advertised maximum ("Request message").
const DISCARD_LEN_MAX: u64 = 64 << 20;
/// How many different refusals one connection logs at all.
const LOGGED_REFUSALS_MAX: usize = 16;

/// What one connection may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) requests: usize,
    /// Payloads and lengths of reads in flight. A single request is always let in when nothing else is in flight.
    pub(crate) bytes: u64,
    /// How long nothing may come of a request that has begun.
    pub(crate) stall: Duration,
    /// How long requests in flight and unsent replies may take once the connection is ending.
    pub(crate) drain: Duration,
}

/// What is said of a refusal that another process has made.
const REFUSED_BEFORE: &str = "the request was refused";

/// Where the stream of requests stands.
enum Incoming {
    /// Before a header.
    Header,
    /// Inside a large payload.
    Payload { header: RequestHeader, offset: u64, fua: bool, payload: BytesMut, arrived: Option<Instant> },
    /// Inside the payload of a refused request; the refusal goes out after it, as clients expect no reply while they send.
    Discard { header: RequestHeader, remaining: usize, refusal: Refusal },
    /// No more requests are read.
    Ended(End),
}

/// What the parser wants before it can go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Bytes,
    /// Room: something in flight must finish or be sent.
    Room,
    Nothing,
}

/// An empty buffer for `length` bytes that begins at a page of memory: whoever stores them can hand them to a device from
/// where they are.
fn at_page(length: usize) -> BytesMut {
    const PAGE: usize = 4096;
    let mut buffer = BytesMut::with_capacity(length + PAGE);
    let before = buffer.as_ptr().align_offset(PAGE);
    buffer.put_bytes(0, before);
    buffer.advance(before);
    buffer
}

/// Who talks to whom about what.
#[derive(Clone, Copy)]
pub(crate) struct Talk<'a> {
    pub(crate) session: &'a dyn Session,
    pub(crate) negotiated: &'a Negotiated,
    /// The client, for the log.
    pub(crate) peer: &'a str,
}

/// The requests of one connection.
pub(crate) struct Transmission<'a, S> {
    stream: &'a mut S,
    session: &'a dyn Session,
    constraints: Constraints,
    bounds: Bounds,
    input: BytesMut,
    incoming: Incoming,
    in_flight: InFlight<Operation<'a>>,
    bytes_in_flight: u64,
    output: Output,
    closing: Closing,
    is_closing: bool,
    /// `None` where the connection cannot be passed on.
    gate: Option<GateWatch>,
    is_pausing: bool,
    /// The waker that the closing token knows, and the registration itself.
    wakes_on_closing: Option<(Waker, Pin<Box<WaitForCancellationFutureOwned>>)>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// When bytes came last; only while operations are looked at closely.
    arrived: Option<Instant>,
    /// Bytes that came, and times when none were wanted.
    received: u64,
    /// While a request is arriving: when that is looked at next, and [`received`](Self::received) at the last look.
    stall: Option<(Pin<Box<Sleep>>, u64)>,
    /// The refusals already logged, as (command, errno).
    logged: Vec<(u16, u32)>,
    peer: &'a str,
    export: &'a str,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Transmission<'a, S> {
    /// Begins where `rest` says: with what was read past the handshake, or where another process stopped.
    pub(crate) fn new(
        stream: &'a mut S,
        talk: Talk<'a>,
        rest: Rest,
        bounds: Bounds,
        closing: &Closing,
        gate: Option<GateWatch>,
    ) -> Transmission<'a, S> {
        let Talk { session, negotiated, peer } = talk;
        let Negotiated { ref info, style, contexts } = *negotiated;
        let Rest { input, unsent, discard } = rest;
        let incoming = discard.map_or(Incoming::Header, |Discard { header, remaining, errno }| Incoming::Discard {
            header,
            remaining: remaining as usize,
            refusal: Refusal { errno, reason: REFUSED_BEFORE },
        });
        Transmission {
            stream,
            session,
            constraints: Constraints { style, contexts, ..Constraints::of(info) },
            bounds,
            input,
            incoming,
            in_flight: InFlight::new(),
            bytes_in_flight: 0,
            output: Output::begin(unsent),
            closing: closing.clone(),
            is_closing: false,
            gate,
            is_pausing: false,
            wakes_on_closing: None,
            deadline: None,
            arrived: None,
            received: 0,
            stall: None,
            logged: Vec::new(),
            peer,
            export: &info.name,
        }
    }

    /// Serves requests until the connection ends or the gate closes; after that it may be called again.
    pub(crate) async fn run(&mut self) -> Result<Stop, Broken> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    pub(crate) fn stream(&self) -> &S {
        self.stream
    }

    /// How the connection stands while it is paused.
    pub(crate) fn rest(&self) -> Rest {
        let style = self.constraints.style;
        let (mut input, mut discard) = (self.input.clone(), None);
        match &self.incoming {
            Incoming::Header | Incoming::Ended(_) => {}
            // As if it had not been looked at yet.
            Incoming::Payload { header, payload, .. } => {
                debug_assert!(input.is_empty(), "bytes that are read go to the payload");
                let mut bytes = Vec::with_capacity(style.request_header_len() + payload.len());
                header.encode(style, &mut bytes);
                bytes.extend_from_slice(payload);
                input = BytesMut::from(&bytes[..]);
            }
            Incoming::Discard { header, remaining, refusal } => {
                discard = Some(Discard { header: *header, remaining: *remaining as u64, errno: refusal.errno });
            }
        }
        Rest { input, unsent: self.output.rest(), discard }
    }

    /// Does all that can be done now. Ends in `Pending` only when every source was asked last with `cx`'s waker:
    /// requests in flight, the socket's readability where bytes are wanted, its writability where replies are left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stop, Broken>> {
        self.watch_closing(cx);
        self.is_pausing = !self.is_closing && self.gate.as_mut().is_some_and(|gate| gate.is_closed(cx));
        loop {
            let wants = if self.is_pausing { Wants::Nothing } else { self.take_requests(cx)? };
            let mut freed = false;
            while let Poll::Ready(done) = self.in_flight.poll_next(cx) {
                self.finish(done);
                freed = true;
            }
            if !self.output.is_empty() {
                freed |= self.output.poll_write(self.stream, cx)?.is_ready();
            }
            match wants {
                Wants::Room if freed => continue,
                Wants::Bytes => match self.poll_fill(cx)? {
                    Poll::Ready(0) => {
                        self.end(End::ClientClosed);
                        continue;
                    }
                    Poll::Ready(read) => {
                        self.arrived = self.session.is_traced().then(Instant::now);
                        self.received += read as u64;
                        continue;
                    }
                    // What the client had sent is answered; it is not kept waiting for more.
                    Poll::Pending if self.is_closing => {
                        self.end(End::Shutdown);
                    }
                    Poll::Pending => {}
                },
                Wants::Room | Wants::Nothing => {}
            }
            if let Incoming::Ended(end) = self.incoming
                && self.in_flight.is_empty()
                && self.output.is_empty()
            {
                return Poll::Ready(Ok(Stop::Ended(end)));
            }
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ok(Stop::Ended(End::DrainTimedOut)));
            }
            // What the client does not take is not waited for: it goes along.
            if self.is_pausing && self.in_flight.is_empty() {
                return Poll::Ready(Ok(Stop::Paused));
            }
            // What does not come because it is not read is not the client's fault.
            self.received += u64::from(wants != Wants::Bytes);
            if self.poll_stall(cx).is_ready() {
                return Poll::Ready(Ok(Stop::Ended(End::Stalled)));
            }
            if self.input.is_empty() && self.input.capacity() > 0 {
                spare::give(&mut self.input);
            }
            return Poll::Pending;
        }
    }

    /// Ready when a request has begun to arrive and nothing has come of it for a while. Looks now and then only, so that a
    /// payload in many pieces costs one timer.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_arriving = match self.incoming {
            Incoming::Header => !self.input.is_empty(),
            Incoming::Payload { .. } | Incoming::Discard { .. } => true,
            Incoming::Ended(_) => false,
        };
        let (limit, received) = (self.bounds.stall, self.received);
        let Some((look, seen)) = &mut self.stall else {
            if is_arriving {
                let mut look = Box::pin(tokio::time::sleep(limit));
                // Has the timer know the waker, which for a task stays the same: below it is only looked at.
                let _ = look.as_mut().poll(cx);
                self.stall = Some((look, received));
            }
            return Poll::Pending;
        };
        if !look.is_elapsed() {
            return Poll::Pending;
        }
        if !is_arriving {
            self.stall = None;
        } else if *seen == received {
            return Poll::Ready(());
        } else {
            *seen = received;
            look.set(tokio::time::sleep(limit));
            let _ = look.as_mut().poll(cx);
        }
        Poll::Pending
    }

    fn watch_closing(&mut self, cx: &mut Context<'_>) {
        if self.is_closing {
            return;
        }
        // One registration serves as long as the waker is the same, which for a task it is.
        if !self.wakes_on_closing.as_ref().is_some_and(|(waker, _)| waker.will_wake(cx.waker())) {
            let mut registration = Box::pin(self.closing.token().clone().cancelled_owned());
            // Ready is no loss: the flag was set before.
            let _ = registration.as_mut().poll(cx);
            self.wakes_on_closing = Some((cx.waker().clone(), registration));
        }
        if self.closing.is_closed() {
            self.is_closing = true;
            self.start_deadline();
        }
    }

    fn start_deadline(&mut self) {
        let drain = self.bounds.drain;
        self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(drain)));
    }

    fn end(&mut self, end: End) {
        // While the server closes, the client may still send; requests in flight keep the connection open and
        // later ones are answered until they are done.
        if end == End::Shutdown && !(self.in_flight.is_empty() && self.output.is_empty()) {
            return;
        }
        self.incoming = Incoming::Ended(end);
        self.start_deadline();
    }

    /// Reads once, into the payload or the buffer, whichever is next.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        match &mut self.incoming {
            Incoming::Payload { header, payload, .. } => {
                let missing = header.length as usize - payload.len();
                pin!(self.stream.read_buf(&mut (&mut *payload).limit(missing))).poll(cx)
            }
            _ => {
                if self.input.is_empty() && self.input.capacity() < READ_SPACE_MIN {
                    spare::take(&mut self.input);
                }
                if self.input.capacity() - self.input.len() < READ_SPACE_MIN {
                    self.input.reserve(READ_BUFFER_LEN.saturating_sub(self.input.len()).max(READ_SPACE_MIN));
                }
                pin!(self.stream.read_buf(&mut self.input)).poll(cx)
            }
        }
    }

    /// Starts every request that is in the buffer and has room.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<Wants, Broken> {
        loop {
            match &mut self.incoming {
                Incoming::Ended(_) => return Ok(Wants::Nothing),
                Incoming::Payload { header, payload, .. } if payload.len() < header.length as usize => {
                    return Ok(Wants::Bytes);
                }
                Incoming::Discard { remaining, .. } if *remaining > 0 => {
                    let discarded = self.input.len().min(*remaining);
                    self.input.advance(discarded);
                    *remaining -= discarded;
                    if *remaining > 0 {
                        return Ok(Wants::Bytes);
                    }
                }
                Incoming::Header => {
                    if let Some(wants) = self.take_header(cx)? {
                        return Ok(wants);
                    }
                }
                Incoming::Payload { .. } | Incoming::Discard { .. } => {
                    match std::mem::replace(&mut self.incoming, Incoming::Header) {
                        Incoming::Payload { header, offset, fua, payload, arrived } => {
                            let payload = payload.freeze();
                            self.start(Operation::write(self.session, &header, offset, payload, fua, arrived), cx);
                        }
                        Incoming::Discard { header, refusal, .. } => self.refuse(&header, refusal),
                        Incoming::Header | Incoming::Ended(_) => {}
                    }
                }
            }
        }
    }

    /// Takes one request off the buffer; `Some` if it cannot be taken yet.
    fn take_header(&mut self, cx: &mut Context<'_>) -> Result<Option<Wants>, Broken> {
        if self.in_flight.len() >= self.bounds.requests || self.output.unsent() >= REPLY_BACKLOG_MAX {
            return Ok(Some(Wants::Room));
        }
        let style = self.constraints.style;
        let Some(header) = RequestHeader::decode(&self.input, style)? else {
            return Ok(Some(Wants::Bytes));
        };
        let mut judged = self.judge(&header, validate);
        let mut header_len = style.request_header_len();
        if let Ok(Request::FilteredStatus { payload }) = judged {
            let Some(payload) = self.input.get(header_len..header_len + payload).map(<[u8]>::to_vec) else {
                return Ok(Some(Wants::Bytes));
            };
            header_len += payload.len();
            judged = self.judge(&header, |header, constraints| validate_filter(header, &payload, constraints));
        }
        let request = match judged {
            Ok(request) => request,
            Err(refusal) => {
                // A filter that was judged has been seen whole.
                let payload = header.payload_len(style) - (header_len - style.request_header_len()) as u64;
                self.input.advance(header_len);
                return self.discard(header, payload, refusal).map(|()| None);
            }
        };
        let cost = match request {
            Request::Read { length, .. } | Request::Write { length, .. } => u64::from(length),
            _ => 0,
        };
        if self.bytes_in_flight > 0 && self.bytes_in_flight + cost > self.bounds.bytes {
            return Ok(Some(Wants::Room));
        }
        if let Request::Write { offset, length, fua } = request {
            return Ok(self.take_write(&header, offset, length as usize, fua, cx));
        }
        self.input.advance(header_len);
        match request {
            Request::Disconnect => self.end(End::Disconnected),
            Request::Nothing => self.finish(Done::nothing(&header)),
            request => {
                self.bytes_in_flight += cost;
                self.start(Operation::new(self.session, &header, request, self.arrived), cx);
            }
        }
        Ok(None)
    }

    /// Refuses a request whose header was consumed, once its payload was too.
    fn discard(&mut self, header: RequestHeader, payload: u64, refusal: Refusal) -> Result<(), Broken> {
        let longest = match self.constraints.style {
            Style::Simple | Style::Structured => DISCARD_LEN_MAX,
            Style::Extended => u64::from(self.constraints.payload_max),
        };
        if payload > longest {
            return Err(Broken::Malformed(crate::proto::Malformed(
                "a refused request has too large a payload to skip",
            )));
        }
        if payload == 0 {
            self.refuse(&header, refusal);
        } else {
            self.incoming = Incoming::Discard { header, remaining: payload as usize, refusal };
        }
        Ok(())
    }

    fn take_write(
        &mut self,
        header: &RequestHeader,
        offset: u64,
        length: usize,
        fua: bool,
        cx: &mut Context<'_>,
    ) -> Option<Wants> {
        let header_len = self.constraints.style.request_header_len();
        let whole = header_len + length;
        if self.input.len() >= whole {
            self.input.advance(header_len);
            let payload = self.input.split_to(length).freeze();
            self.bytes_in_flight += length as u64;
            self.start(Operation::write(self.session, header, offset, payload, fua, self.arrived), cx);
        } else if length <= SHARED_PAYLOAD_MAX {
            // The rest must lie behind what is here; the header is decoded again when it has come.
            self.input.reserve(whole - self.input.len());
            return Some(Wants::Bytes);
        } else {
            self.input.advance(header_len);
            let mut payload = at_page(length);
            payload.put_slice(&self.input);
            self.input.clear();
            self.bytes_in_flight += length as u64;
            self.incoming = Incoming::Payload { header: *header, offset, fua, payload, arrived: self.arrived };
        }
        None
    }

    fn judge(
        &mut self,
        header: &RequestHeader,
        validate: impl Fn(&RequestHeader, &Constraints) -> Result<Request, Refusal>,
    ) -> Result<Request, Refusal> {
        if self.is_closing && header.command != CMD_DISC {
            // "Terminating the transmission phase": new requests are answered with ESHUTDOWN.
            return Err(Refusal { errno: ESHUTDOWN, reason: "the server is shutting down" });
        }
        validate(header, &self.constraints).or_else(|refusal| {
            if refusal != READ_BEYOND_END && refusal != WRITE_BEYOND_END {
                return Err(refusal);
            }
            // The export may have grown since the handshake; asked only here, as it costs an allocation.
            self.constraints.size = self.session.info().size;
            validate(header, &self.constraints)
        })
    }

    /// Polls an operation once: one that is ready at once is answered at once.
    fn start(&mut self, operation: Operation<'a>, cx: &mut Context<'_>) {
        if let Poll::Ready(done) = self.in_flight.begin(operation, cx) {
            self.finish(done);
        }
    }

    /// Puts the reply of a finished request into the output.
    fn finish(&mut self, mut done: Done) {
        let trace = std::mem::take(&mut done.trace);
        self.reply(done);
        self.output.trace(trace);
    }

    fn reply(&mut self, done: Done) {
        self.bytes_in_flight -= done.cost;
        let style = self.constraints.style;
        let to = ReplyTo { style, cookie: done.cookie, offset: done.offset };
        let failure = match done.outcome {
            // "Simple reply message": allowed for a reply without payload even after structured replies were
            // negotiated, and shorter; never with extended headers. A read has no simple reply in either.
            Outcome::Nothing if style == Style::Structured && done.command == CMD_READ => {
                self.output.none(to);
                return;
            }
            Outcome::Done(Ok(())) | Outcome::Nothing => {
                match style {
                    Style::Extended => self.output.none(to),
                    Style::Simple | Style::Structured => self.output.simple(done.cookie, 0),
                }
                return;
            }
            Outcome::Read { length, one_chunk, result: Ok(parts) } => {
                let fits = self.output.read(to, length, one_chunk, parts);
                fits.err().map(|reason| Error::new(ErrorKind::Internal, reason))
            }
            Outcome::Status { length, one_extent, result: Ok(told) } => {
                let Constraints { size: export_size, block_size_min, .. } = self.constraints;
                let ask = StatusAsk { length, one_extent, export_size, block_size_min };
                let fits = self.output.block_status(to, &told, &ask);
                fits.err().map(|reason| Error::new(ErrorKind::Internal, reason))
            }
            Outcome::Done(Err(error))
            | Outcome::Read { result: Err(error), .. }
            | Outcome::Status { result: Err(error), .. } => Some(error),
        };
        if let Some(error) = failure {
            let reason = error.to_string();
            self.fail(done.command, to, errno::of_request(error.kind()), &reason, true);
        }
    }

    fn refuse(&mut self, header: &RequestHeader, refusal: Refusal) {
        // Only a refused write is worth a warning: a client that sends what it should not is told on the wire.
        let to = ReplyTo { style: self.constraints.style, cookie: header.cookie, offset: header.offset };
        self.fail(header.command, to, refusal.errno, refusal.reason, header.command == CMD_WRITE);
    }

    fn fail(&mut self, command: u16, to: ReplyTo, errno: u32, reason: &str, warn: bool) {
        if self.logged.len() < LOGGED_REFUSALS_MAX && !self.logged.contains(&(command, errno)) {
            self.logged.push((command, errno));
            let (peer, export) = (self.peer, self.export);
            if command == CMD_WRITE {
                tracing::warn!(
                    peer,
                    export,
                    errno,
                    reason,
                    "WRITE refused; later ones on this connection are not logged"
                );
            } else if warn {
                tracing::warn!(
                    peer,
                    export,
                    command,
                    errno,
                    reason,
                    "request failed; later ones on this connection are not logged"
                );
            } else {
                tracing::debug!(peer, export, command, errno, reason, "request refused");
            }
        }
        match to.style {
            Style::Simple => self.output.simple(to.cookie, errno),
            Style::Structured | Style::Extended => self.output.error(to, errno, reason),
        }
    }
}

#[cfg(test)]
mod tests;
