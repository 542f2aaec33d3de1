//! An NBD client: many requests in flight over one or several connections to an export.
//!
//! Owns the handshake ([`handshake`]), the connections ([`connection`]) and the addresses of exports ([`NbdUri`]). It
//! uses what the server offers: extended headers, so that zeroes and queries cover any range at once; else structured replies,
//! so that holes cross as holes; `base:allocation`; several connections, where the server says that a flush on one covers all. Needs fixed newstyle with GO, which every server
//! of the last ten years has. TLS where the address asks for it ([`NbdUri`]). No reconnecting: a broken connection fails every request on it, and the
//! caller decides.
//!
//! Bounds: [`ClientOptions`] says how many connections; each has at most [`REQUESTS_IN_FLIGHT_MAX`] requests in flight,
//! and a further one waits.

mod connection;
mod handshake;
mod tls;
mod uri;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client_lib::ReadPart;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use self::connection::{Answer, Connection};
use self::handshake::Agreed;
pub use self::uri::{InvalidUri, NbdUri, PORT, ServerAddress, UriTls};
use crate::export::AllocationExtent;
use crate::proto::Malformed;
use crate::proto::constants::{
    CMD_BLOCK_STATUS, CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, EIO, ENOSPC, ENOTSUP, EPERM, ESHUTDOWN,
    FLAG_CAN_MULTI_CONN, FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_WRITE_ZEROES,
};
use crate::proto::style::Style;

/// Requests in flight on one connection; a further one waits for a reply.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// The largest range of one WRITE_ZEROES or BLOCK_STATUS, which carry no payload, without extended headers: a multiple of
/// every block size that the protocol allows, and below 2 GiB, where some servers' arithmetic ends.
const COMPACT_RANGE_LEN_MAX: u64 = 1 << 30;
/// The same with extended headers: long enough that no disk needs many, short enough that a server is not busy with one for
/// long.
const EXTENDED_RANGE_LEN_MAX: u64 = 1 << 40;
/// How long connecting and the handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// After how much silence the kernel probes a server, so that one that vanished is noticed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);

/// Why the client cannot do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to the server.
    #[error("{uri} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        uri: String,
        /// What the system said.
        reason: String,
    },
    /// TLS with the server cannot begin: it is not who it should be, does not know this client, or certificates cannot be used.
    #[error("TLS with {uri} cannot begin: {reason}")]
    Tls {
        /// Where.
        uri: String,
        /// Why.
        reason: String,
    },
    /// The server does not let this client use the export.
    #[error("the server refuses the export {export:?}: {message}")]
    Refused {
        /// Its name.
        export: String,
        /// What the server said, or what its number means.
        message: String,
    },
    /// The server breaks the protocol, or does not speak what this client needs of it.
    #[error("the server does not speak NBD as this client does: {0}")]
    Protocol(#[from] Malformed),
    /// The connection broke; requests that were in flight may or may not have been carried out.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The server answered a request with an error.
    #[error("{} of {length} bytes at {offset} failed: {message}", command_name(*.command))]
    Failed {
        /// `CMD_*`.
        command: u16,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The protocol's error number.
        errno: u32,
        /// What the server said, or what the number means.
        message: String,
    },
}

impl ClientError {
    /// The error number of a request that the server failed.
    #[must_use]
    pub fn errno(&self) -> Option<u32> {
        match self {
            ClientError::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn command_name(command: u16) -> &'static str {
    match command {
        CMD_READ => "a read",
        CMD_WRITE => "a write",
        CMD_WRITE_ZEROES => "a write of zeroes",
        CMD_FLUSH => "a flush",
        CMD_BLOCK_STATUS => "a query for block status",
        _ => "a request",
    }
}

/// What an error number means, for servers that say no more ("Error values").
fn errno_meaning(errno: u32) -> String {
    match errno {
        EPERM => "operation not permitted".to_owned(),
        EIO => "input/output error".to_owned(),
        EINVAL => "invalid argument".to_owned(),
        ENOSPC => "no space left".to_owned(),
        ENOTSUP => "not supported".to_owned(),
        ESHUTDOWN => "the server is shutting down".to_owned(),
        other => format!("error {other}"),
    }
}

/// How to use a server.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Connections at most; one where the server does not allow several. More help where the server spreads them over
    /// processors.
    pub connections: usize,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { connections: 1 }
    }
}

/// An open export. Requests are answered in any order; those that overlap while in flight are not ordered.
///
/// Dropping it disconnects in the background, [`Client::close`] waits for it.
///
/// # Cancel safety
/// Dropping a request's future abandons the answer; the request may or may not be carried out.
#[derive(Debug)]
pub struct Client {
    agreed: Agreed,
    connections: Vec<Connection>,
    next: AtomicUsize,
}

impl Client {
    /// Connects to `uri`; its connections are tasks of the runtime that this is called on.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, or `Protocol` for a server that is none or too old.
    pub async fn connect(uri: &NbdUri, options: ClientOptions) -> Result<Client, ClientError> {
        let (agreed, first) = connect_in_time(uri).await?;
        let wanted = if agreed.flags & FLAG_CAN_MULTI_CONN != 0 { options.connections.max(1) } else { 1 };
        let mut connections = vec![first];
        while connections.len() < wanted {
            let (again, next) = connect_in_time(uri).await?;
            if again.size != agreed.size {
                return Err(Malformed("the export has another size on another connection").into());
            }
            connections.push(next);
        }
        Ok(Client { agreed, connections, next: AtomicUsize::new(0) })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// Whether the server refuses every write.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.agreed.flags & FLAG_READ_ONLY != 0
    }

    /// Whether the server writes zeroes without being sent them.
    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.agreed.flags & FLAG_SEND_WRITE_ZEROES != 0
    }

    /// Smallest unit of a request in bytes, a power of two.
    #[must_use]
    pub fn block_size_min(&self) -> u32 {
        self.agreed.block_size_min
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Reads `length` bytes at `offset`: parts without gap that together cover the range.
    ///
    /// # Errors
    /// `Failed` or `Lost`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<ReadPart>, ClientError> {
        let mut parts = Vec::with_capacity(1);
        for (offset, length) in pieces(offset, u64::from(length), u64::from(self.agreed.payload_max)) {
            match self.request(CMD_READ, offset, length, Bytes::new()).await? {
                Answer::Read(read) if parts.is_empty() => parts = read,
                Answer::Read(read) => parts.extend(read),
                Answer::Done | Answer::Extents(_) => return Err(Malformed("a read was answered without data").into()),
            }
        }
        Ok(parts)
    }

    /// Writes `data` at `offset`; not durable before [`Client::flush`].
    ///
    /// # Errors
    /// `Failed` or `Lost`; parts of the data may have been written.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), ClientError> {
        for (at, length) in pieces(offset, data.len() as u64, u64::from(self.agreed.payload_max)) {
            let start = (at - offset) as usize;
            self.request(CMD_WRITE, at, length, data.slice(start..start + length as usize)).await?;
        }
        Ok(())
    }

    /// Makes `length` bytes at `offset` read as zeroes, with a hole where the server can. Needs
    /// [`Client::can_write_zeroes`].
    ///
    /// # Errors
    /// `Failed` or `Lost`.
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ClientError> {
        for (offset, length) in pieces(offset, length, self.range_len_max()) {
            self.request(CMD_WRITE_ZEROES, offset, length, Bytes::new()).await?;
        }
        Ok(())
    }

    /// Makes every write that was answered before this call durable; nothing to do where the server knows no flush.
    ///
    /// # Errors
    /// `Failed` or `Lost`.
    pub async fn flush(&self) -> Result<(), ClientError> {
        if self.agreed.flags & FLAG_SEND_FLUSH == 0 {
            return Ok(());
        }
        // One is enough: that is what the server promised before it got several connections.
        self.request(CMD_FLUSH, 0, 0, Bytes::new()).await.map(drop)
    }

    /// The allocation from `offset` on, at most `length` bytes of it: at least one extent, and no more than the server
    /// likes to tell at once. Without `base:allocation` everything is data.
    ///
    /// # Errors
    /// `Failed` or `Lost`.
    pub async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<AllocationExtent>, ClientError> {
        if self.agreed.allocation.is_none() {
            return Ok(vec![AllocationExtent { length, allocated: true, zero: false }]);
        }
        let asked = length.min(self.range_len_max());
        let Answer::Extents(mut extents) = self.request(CMD_BLOCK_STATUS, offset, asked, Bytes::new()).await? else {
            return Err(Malformed("a query for block status was answered without extents").into());
        };
        // The last extent may reach beyond what was asked ("Block status"), and beyond what the caller wants.
        let mut left = length;
        extents.retain_mut(|extent| {
            extent.length = extent.length.min(left);
            left -= extent.length;
            extent.length > 0
        });
        if extents.is_empty() {
            return Err(Malformed("a query for block status was answered with nothing").into());
        }
        Ok(extents)
    }

    /// Disconnects in good order: requests in flight are answered first.
    pub async fn close(self) {
        for connection in self.connections {
            connection.close().await;
        }
    }

    /// The largest range of a request without payload.
    fn range_len_max(&self) -> u64 {
        match self.agreed.style {
            Style::Simple | Style::Structured => COMPACT_RANGE_LEN_MAX,
            Style::Extended => EXTENDED_RANGE_LEN_MAX,
        }
    }

    async fn request(&self, command: u16, offset: u64, length: u64, payload: Bytes) -> Result<Answer, ClientError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        self.connections[index].request(command, offset, length, payload).await
    }
}

/// Cuts a range into parts of at most `max`; an empty range has none.
fn pieces(offset: u64, length: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let piece = (end - at).min(max);
            at += piece;
            (at - piece, piece)
        })
    })
}

async fn connect_in_time(uri: &NbdUri) -> Result<(Agreed, Connection), ClientError> {
    let unreachable = |reason: String| ClientError::Unreachable { uri: uri.to_string(), reason };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect(uri)).await {
        Ok(result) => result.map_err(|error| match error {
            Unconnected::Socket(error) => unreachable(error.to_string()),
            Unconnected::Client(error) => error,
        }),
        Err(_) => Err(unreachable(format!("no answer in {} seconds", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// As [`ClientError`], before the address is put into it.
enum Unconnected {
    Socket(std::io::Error),
    Client(ClientError),
}

impl Unconnected {
    fn of(error: handshake::Disagreed, export: &str) -> Unconnected {
        match error {
            handshake::Disagreed::Socket(error) => Unconnected::Socket(error),
            handshake::Disagreed::Malformed(error) => Unconnected::Client(error.into()),
            handshake::Disagreed::Refused(message) => {
                Unconnected::Client(ClientError::Refused { export: export.to_owned(), message })
            }
        }
    }
}

impl From<std::io::Error> for Unconnected {
    fn from(error: std::io::Error) -> Unconnected {
        Unconnected::Socket(error)
    }
}

async fn connect(uri: &NbdUri) -> Result<(Agreed, Connection), Unconnected> {
    match &uri.server {
        ServerAddress::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            // Requests are small and waited for: Nagle's algorithm (RFC 896) would hold them back.
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
            if let Some(tls) = &uri.tls {
                return agree_over_tls(stream, uri, tls).await;
            }
            let (reader, writer) = stream.into_split();
            agree(reader, writer, &uri.export).await
        }
        ServerAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            if let Some(tls) = &uri.tls {
                return agree_over_tls(stream, uri, tls).await;
            }
            let (reader, writer) = stream.into_split();
            agree(reader, writer, &uri.export).await
        }
    }
}

async fn agree<R, W>(mut reader: R, mut writer: W, export: &str) -> Result<(Agreed, Connection), Unconnected>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let disagreed = |error| Unconnected::of(error, export);
    handshake::greet(&mut reader, &mut writer).await.map_err(disagreed)?;
    let agreed = handshake::agree(&mut reader, &mut writer, export).await.map_err(disagreed)?;
    let connection = Connection::start(reader, writer, &agreed);
    Ok((agreed, connection))
}

async fn agree_over_tls<S>(stream: S, uri: &NbdUri, tls: &UriTls) -> Result<(Agreed, Connection), Unconnected>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let disagreed = |error| Unconnected::of(error, &uri.export);
    // Before anything is said: a directory that cannot be used is no reason to trouble the server.
    let (connector, name) = tls::connector(uri, tls).map_err(Unconnected::Client)?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    handshake::greet(&mut reader, &mut writer).await.map_err(disagreed)?;
    handshake::start_tls(&mut reader, &mut writer).await.map_err(disagreed)?;
    let failed = |error: std::io::Error| {
        Unconnected::Client(ClientError::Tls { uri: uri.to_string(), reason: error.to_string() })
    };
    let stream = connector.connect(name, reader.unsplit(writer)).await.map_err(failed)?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // With TLS 1.3 a server that does not know the client says so only now.
    let agreed = handshake::agree(&mut reader, &mut writer, &uri.export).await.map_err(|error| match error {
        handshake::Disagreed::Socket(error) => failed(error),
        error => disagreed(error),
    })?;
    let connection = Connection::start(reader, writer, &agreed);
    Ok((agreed, connection))
}

#[cfg(test)]
mod tests;
