//! One connection after the handshake: a task that sends requests, a task that takes replies.
//!
//! Every request has a cookie that no other request of the connection ever had; a reply is matched by it, in whatever
//! order replies come. The first failure of either task ends the connection: it is remembered, fails what is in flight
//! and every later request. Data is received into the buffer that the caller is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use client_lib::ReadPart;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::handshake::Agreed;
use super::{ClientError, REQUESTS_IN_FLIGHT_MAX, errno_meaning};
use crate::export::AllocationExtent;
use crate::proto::Malformed;
use crate::proto::constants::{
    CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_READ, CMD_WRITE, REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_BLOCK_STATUS_EXT, REPLY_TYPE_NONE, REPLY_TYPE_OFFSET_DATA, REPLY_TYPE_OFFSET_HOLE, STATE_HOLE,
    STATE_ZERO,
};
use crate::proto::peer::{self, ReplyHeader};
use crate::proto::reply::EXTENDED_CHUNK_HEADER_LEN;
use crate::proto::request::RequestHeader;
use crate::proto::style::Style;

/// The read buffer in bytes: for headers and small replies. Large data is read past it.
const READ_BUFFER_LEN: usize = 32 << 10;
/// The longest content of a chunk without data that is believed, in bytes: tens of thousands of extents.
const CONTENT_LEN_MAX: u64 = 1 << 20;
/// The bytes in front of a data chunk's data: its offset.
const DATA_OFFSET_LEN: u64 = 8;
/// The bit that all error types have ("Structured reply types").
const ERROR_TYPE: u16 = 1 << 15;

/// What a request came to.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Read(Vec<ReadPart>),
    Extents(Vec<AllocationExtent>),
}

/// A request whose reply is not complete.
#[derive(Debug)]
struct InFlight {
    header: RequestHeader,
    /// What came so far of a read: offset and part, in the order of arrival.
    parts: Vec<(u64, ReadPart)>,
    /// How many bytes these are.
    received: u64,
    extents: Vec<AllocationExtent>,
    /// The first error that the server told.
    error: Option<(u32, String)>,
    answer: oneshot::Sender<Result<Answer, ClientError>>,
}

impl InFlight {
    /// Notes a part of a read. A server that sends more than was asked, or chunks of nothing, would fill the memory.
    fn add(&mut self, offset: u64, part: ReadPart) -> Result<(), Malformed> {
        let length = part.length();
        self.received += length;
        if length == 0 || self.received > self.header.length {
            return Err(Malformed("the chunks of a read are more than what was asked, or empty"));
        }
        self.parts.push((offset, part));
        Ok(())
    }
}

#[derive(Debug, Default)]
struct State {
    in_flight: HashMap<u64, InFlight>,
    cookies: u64,
    /// Why the connection is of no use any more.
    lost: Option<String>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is released: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection; the first reason counts.
    fn lose(&self, reason: &str) {
        let mut state = self.state();
        let reason = state.lost.get_or_insert_with(|| reason.to_owned()).clone();
        for (_, request) in state.in_flight.drain() {
            // Whoever asked may have gone.
            let _ = request.answer.send(Err(ClientError::Lost(reason.clone())));
        }
    }
}

/// A request on its way out.
#[derive(Debug)]
struct Outgoing {
    header: RequestHeader,
    payload: Bytes,
}

/// One connection. Dropping it disconnects once what was asked is sent.
#[derive(Debug)]
pub(super) struct Connection {
    requests: mpsc::Sender<Outgoing>,
    room: Semaphore,
    shared: Arc<Shared>,
    style: Style,
    receiver: JoinHandle<()>,
}

impl Connection {
    pub(super) fn start<R, W>(reader: R, writer: W, agreed: &Agreed) -> Connection
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        // Whoever has room has a place: sending into the channel never waits.
        let (requests, outgoing) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
        let shared = Arc::new(Shared::default());
        let sending = Arc::clone(&shared);
        let style = agreed.style;
        tokio::spawn(async move {
            if let Err(error) = send(writer, outgoing, style).await {
                sending.lose(&error.to_string());
            }
        });
        let mut receiving = Receiver {
            reader: BufReader::with_capacity(READ_BUFFER_LEN, reader),
            style,
            allocation: agreed.allocation,
            shared: Arc::clone(&shared),
        };
        let receiver = tokio::spawn(async move {
            let reason = receiving.receive().await;
            receiving.shared.lose(&reason);
        });
        Connection { requests, room: Semaphore::new(REQUESTS_IN_FLIGHT_MAX), shared, style, receiver }
    }

    pub(super) async fn request(
        &self,
        command: u16,
        offset: u64,
        length: u64,
        payload: Bytes,
    ) -> Result<Answer, ClientError> {
        // "Command flags", PAYLOAD_LEN: on every write, with extended headers only.
        let has_flag = self.style == Style::Extended && command == CMD_WRITE;
        let flags = if has_flag { CMD_FLAG_PAYLOAD_LEN } else { 0 };
        // The semaphore is never closed.
        let _room = self.room.acquire().await.map_err(|_| ClientError::Lost("it was closed".to_owned()))?;
        let (answer, answered) = oneshot::channel();
        let header = {
            let mut state = self.shared.state();
            if let Some(reason) = &state.lost {
                return Err(ClientError::Lost(reason.clone()));
            }
            state.cookies += 1;
            let header = RequestHeader { flags, command, cookie: state.cookies, offset, length };
            let request = InFlight { header, parts: Vec::new(), received: 0, extents: Vec::new(), error: None, answer };
            state.in_flight.insert(header.cookie, request);
            header
        };
        // The sender has ended only after it failed, and then the answer says why.
        let _ = self.requests.send(Outgoing { header, payload }).await;
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Lost("the reply was not waited for".to_owned())),
        }
    }

    /// Disconnects and waits until the server has closed its end.
    pub(super) async fn close(self) {
        drop(self.requests);
        // Ended, or panicked; it is over.
        let _ = self.receiver.await;
    }
}

/// Sends what comes, then disconnects.
async fn send<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut requests: mpsc::Receiver<Outgoing>,
    style: Style,
) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(style.request_header_len());
    while let Some(Outgoing { header, payload }) = requests.recv().await {
        head.clear();
        header.encode(style, &mut head);
        writer.write_all_buf(&mut Buf::chain(&head[..], payload)).await?;
        // Nothing to do for a socket; what encrypts may have kept a part.
        writer.flush().await?;
    }
    let disconnect = RequestHeader { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
    head.clear();
    disconnect.encode(style, &mut head);
    writer.write_all(&head).await?;
    writer.shutdown().await
}

/// Why no more replies are taken.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("the server breaks the protocol: {0}")]
    Malformed(#[from] Malformed),
}

struct Receiver<R> {
    reader: BufReader<R>,
    style: Style,
    allocation: Option<u32>,
    shared: Arc<Shared>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Takes replies until the connection ends; returns why.
    async fn receive(&mut self) -> String {
        loop {
            match self.take_reply().await {
                Ok(true) => {}
                Ok(false) => return "the server closed it".to_owned(),
                Err(broken) => return broken.to_string(),
            }
        }
    }

    /// Takes one simple reply or one chunk; false when the server has closed its end.
    async fn take_reply(&mut self) -> Result<bool, Broken> {
        let (shortest, longest) = self.style.reply_header_lens();
        let mut head = [0; EXTENDED_CHUNK_HEADER_LEN];
        match self.reader.read(&mut head[..shortest]).await? {
            0 => return Ok(false),
            some => self.reader.read_exact(&mut head[some..shortest]).await?,
        };
        let header = match ReplyHeader::decode(&head[..shortest], self.style)? {
            Some(header) => header,
            None => {
                self.reader.read_exact(&mut head[shortest..longest]).await?;
                let header = ReplyHeader::decode(&head[..longest], self.style)?;
                header.ok_or(Malformed("a reply has no header"))?
            }
        };
        match header {
            ReplyHeader::Simple { error, cookie } => self.take_simple(error, cookie).await?,
            ReplyHeader::Chunk { flags, kind, cookie, offset, length } => {
                // "Extended reply chunk message": the offset must match the request's.
                if offset.is_some_and(|offset| self.header_of(cookie).is_ok_and(|header| header.offset != offset)) {
                    return Err(Malformed("a reply names another offset than its request").into());
                }
                self.take_chunk(kind, cookie, length).await?;
                if flags & REPLY_FLAG_DONE != 0 {
                    self.finish(cookie)?;
                }
            }
        }
        Ok(true)
    }

    async fn take_simple(&mut self, error: u32, cookie: u64) -> Result<(), Broken> {
        let header = self.header_of(cookie)?;
        if self.style != Style::Simple && header.command == CMD_READ {
            return Err(Malformed("a read has a simple reply though structured ones were agreed on").into());
        }
        if error != 0 {
            self.with(cookie, |request| request.error = Some((error, String::new())))?;
        } else if header.command == CMD_READ {
            let data = self.data(header.length as usize).await?;
            self.with(cookie, |request| request.add(header.offset, ReadPart::Data(data)))??;
        }
        self.finish(cookie)?;
        Ok(())
    }

    async fn take_chunk(&mut self, kind: u16, cookie: u64, length: u64) -> Result<(), Broken> {
        let header = self.header_of(cookie)?;
        if kind == REPLY_TYPE_OFFSET_DATA && header.command == CMD_READ {
            let mut offset = [0; DATA_OFFSET_LEN as usize];
            // Bounded by the request before anything is allocated: the length is the server's word.
            let Some(data) = length.checked_sub(DATA_OFFSET_LEN).filter(|data| *data <= header.length) else {
                return Err(Malformed("a data chunk is longer than what was asked, or too short").into());
            };
            self.reader.read_exact(&mut offset).await?;
            let offset = peer::data_offset(&offset)?;
            let data = self.data(data as usize).await?;
            self.with(cookie, |request| request.add(offset, ReadPart::Data(data)))??;
            return Ok(());
        }
        if length > CONTENT_LEN_MAX {
            return Err(Malformed("a chunk is too long").into());
        }
        let mut content = vec![0; length as usize];
        self.reader.read_exact(&mut content).await?;
        match kind {
            REPLY_TYPE_NONE => {}
            REPLY_TYPE_OFFSET_HOLE if header.command == CMD_READ => {
                let (offset, hole) = peer::hole(&content)?;
                self.with(cookie, |request| request.add(offset, ReadPart::Zero(hole)))??;
            }
            REPLY_TYPE_BLOCK_STATUS | REPLY_TYPE_BLOCK_STATUS_EXT
                if header.command == CMD_BLOCK_STATUS
                    && (kind == REPLY_TYPE_BLOCK_STATUS_EXT) == (self.style == Style::Extended) =>
            {
                let (context, extents) = peer::extents(&content, self.style)?;
                if Some(context) == self.allocation {
                    let extents = extents.into_iter().map(|(length, flags)| AllocationExtent {
                        length,
                        allocated: flags & u64::from(STATE_HOLE) == 0,
                        zero: flags & u64::from(STATE_ZERO) != 0,
                    });
                    let is_first = self.with(cookie, |request| {
                        let is_first = request.extents.is_empty();
                        request.extents.extend(extents);
                        is_first
                    })?;
                    // "Structured reply types": exactly one chunk for each context.
                    if !is_first {
                        return Err(Malformed("a context has more than one chunk").into());
                    }
                }
            }
            kind if kind & ERROR_TYPE != 0 => {
                let error = peer::error(&content)?;
                self.with(cookie, |request| request.error = request.error.take().or(Some(error)))?;
            }
            _ => return Err(Malformed("a chunk has a type that does not fit its request").into()),
        }
        Ok(())
    }

    /// Reads `length` bytes into a buffer of their own.
    async fn data(&mut self, length: usize) -> std::io::Result<Bytes> {
        let mut data = BytesMut::with_capacity(length);
        while data.len() < length {
            let missing = length - data.len();
            if self.reader.read_buf(&mut BufMut::limit(&mut data, missing)).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(data.freeze())
    }

    fn header_of(&self, cookie: u64) -> Result<RequestHeader, Malformed> {
        self.with(cookie, |request| request.header)
    }

    fn with<T>(&self, cookie: u64, change: impl FnOnce(&mut InFlight) -> T) -> Result<T, Malformed> {
        self.shared
            .state()
            .in_flight
            .get_mut(&cookie)
            .map(change)
            .ok_or(Malformed("a reply is to a request that is not in flight"))
    }

    /// The reply is complete.
    fn finish(&self, cookie: u64) -> Result<(), Malformed> {
        // Checked while it is in flight, so that it learns why the connection ends.
        self.with(cookie, |request| {
            let whole = request.error.is_some() || request.header.command != CMD_READ;
            if whole { Ok(()) } else { put_in_order(&request.header, &mut request.parts) }
        })??;
        let request = self.shared.state().in_flight.remove(&cookie);
        let InFlight { header, parts, extents, error, answer, .. } =
            request.ok_or(Malformed("a reply is to a request that is not in flight"))?;
        let outcome = match (error, header.command) {
            (Some((errno, message)), command) => Err(ClientError::Failed {
                command,
                offset: header.offset,
                length: header.length,
                errno,
                message: if message.is_empty() { errno_meaning(errno) } else { message },
            }),
            (None, CMD_READ) => Ok(Answer::Read(parts.into_iter().map(|(_, part)| part).collect())),
            (None, CMD_BLOCK_STATUS) => Ok(Answer::Extents(extents)),
            (None, _) => Ok(Answer::Done),
        };
        // Whoever asked may have gone.
        let _ = answer.send(outcome);
        Ok(())
    }
}

/// Sorts the parts of a read; they must cover it, each byte once ("Structured reply types", `OFFSET_DATA`).
fn put_in_order(header: &RequestHeader, parts: &mut [(u64, ReadPart)]) -> Result<(), Malformed> {
    parts.sort_by_key(|(offset, _)| *offset);
    let mut at = header.offset;
    for (offset, part) in parts {
        if *offset != at {
            return Err(Malformed("the chunks of a read leave a gap or overlap"));
        }
        at += part.length();
    }
    if at != header.offset + header.length {
        return Err(Malformed("the chunks of a read do not cover it"));
    }
    Ok(())
}
