//! The listening sockets, and what becomes of each connection.
//!
//! Owns accepting, the limits on connections and handshakes, the Unix socket file, and shutdown. Each connection is a
//! task of its own, on one of a few threads ([`lane`]) or, after the handshake, where its export lives: whatever a client
//! sends, and even a panic in an export, ends that connection alone. What is said on a connection is for `negotiation`
//! and `transmission`.

mod connection;
mod lane;
mod unix_socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client_lib::{Error, ErrorKind};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::lane::{Lane, Sockets};
use self::unix_socket::SocketFile;
use crate::export::ExportDirectory;
use crate::tls::{Tls, TlsOptions};
use crate::transmission::Closing;

/// How long accepting rests after it failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// After how much silence the kernel probes a TCP client, so that one that vanished does not hold a connection for ever.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// How much longer than [`Limits::drain_timeout`] shutdown waits before it cuts connections off: they end by
/// themselves at the time-out, unless an export blocks its thread.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// The bounds of a server. Each says what happens when it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, over all sockets; a further one is closed at once.
    pub connections_max: usize,
    /// How long a handshake may take; then the connection is closed.
    pub handshake_timeout: Duration,
    /// Requests in flight of one connection; at the bound nothing more is read from it.
    pub requests_in_flight_max: usize,
    /// Bytes of payloads and reads in flight of one connection; at the bound nothing more is read from it. A single
    /// request may be larger.
    pub bytes_in_flight_max: u64,
    /// How long nothing may come of a request of which a part has come; then the connection is closed, after at most twice
    /// this time. Bounds what a client can hold with half a request.
    pub stall_timeout: Duration,
    /// How long requests in flight may take once a client has disconnected or the server shuts down; then they
    /// are abandoned.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(30),
            requests_in_flight_max: 256,
            bytes_in_flight_max: 64 << 20,
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Where to listen, and within which bounds.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// The TCP address; port 0 takes a free one ([`Server::tcp_address`]).
    pub tcp: Option<SocketAddr>,
    /// The path of the Unix socket. The file of a dead server is replaced, a live server's is refused.
    pub unix: Option<PathBuf>,
    /// TLS; without it there is none.
    pub tls: Option<TlsOptions>,
    /// The bounds.
    pub limits: Limits,
}

/// A running NBD server. Dropping it stops it without waiting; [`Server::shutdown`] waits.
#[derive(Debug)]
pub struct Server {
    tcp_address: Option<SocketAddr>,
    unix: Option<SocketFile>,
    closing: Closing,
    limits: Limits,
    lanes: Vec<Lane>,
}

/// What all connections of a server share.
struct Shared {
    directory: Arc<dyn ExportDirectory>,
    tls: Option<Tls>,
    limits: Limits,
    closing: Closing,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Listens as `options` say and serves `directory`, on threads of its own: the directory's futures are polled
    /// there, and must not rely on the runtime that this is called on.
    ///
    /// # Errors
    /// `InvalidRequest` if there is nothing to listen on, or an address, path or certificate is not usable, `Busy` if another
    /// process listens there.
    pub async fn bind(options: ServerOptions, directory: Arc<dyn ExportDirectory>) -> Result<Server, Error> {
        let ServerOptions { tcp, unix, tls, limits } = options;
        if tcp.is_none() && unix.is_none() {
            return Err(Error::new(ErrorKind::InvalidRequest, "an NBD server needs a TCP address or a Unix socket"));
        }
        // Before anything listens: whoever asked for TLS must not be served without.
        let tls = tls.map(Tls::load).transpose()?;
        let tcp = match tcp {
            Some(address) => {
                let listener = TcpListener::bind(address).await.and_then(TcpListener::into_std);
                Some(listener.map_err(|error| cannot_listen(&address.to_string(), error))?)
            }
            None => None,
        };
        let tcp_address = match &tcp {
            Some(listener) => Some(listener.local_addr().map_err(|error| cannot_listen("the TCP address", error))?),
            None => None,
        };
        let (unix_listener, unix) = match unix {
            Some(path) => {
                let (listener, file) = unix_socket::bind(path).await?;
                let listener = listener.into_std().map_err(|error| cannot_listen("the Unix socket", error))?;
                (Some(listener), Some(file))
            }
            None => (None, None),
        };
        let closing = Closing::default();
        let shared = Arc::new(Shared {
            directory,
            tls,
            limits,
            closing: closing.clone(),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
        });
        let sockets = Sockets { tcp, unix: unix_listener };
        let mut server = Server { tcp_address, unix, closing, limits, lanes: Vec::new() };
        for number in 0..lane::count() {
            server.lanes.push(Lane::start(number, &sockets, Arc::clone(&shared))?);
        }
        let tls = shared.tls.as_ref().map(Tls::mode);
        tracing::info!(tcp = ?tcp_address, ?tls, unix = ?server.unix.as_ref().map(SocketFile::path), "NBD server listens");
        Ok(server)
    }

    /// The TCP address that the server listens on.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp_address
    }

    /// Stops: accepts no more, answers new requests with `ESHUTDOWN`, waits for those in flight at most
    /// [`Limits::drain_timeout`] and a little, closes every connection, removes the socket file.
    pub async fn shutdown(mut self) {
        self.closing.close();
        self.unix = None;
        let patience = self.limits.drain_timeout + 2 * DRAIN_GRACE;
        let all = std::mem::take(&mut self.lanes).into_iter().map(Lane::ended);
        if tokio::time::timeout(patience, futures_util::future::join_all(all)).await.is_err() {
            tracing::warn!("an NBD thread is left behind: an export blocks it");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.close();
    }
}

fn cannot_listen(place: &str, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
        std::io::ErrorKind::AddrNotAvailable
        | std::io::ErrorKind::PermissionDenied
        | std::io::ErrorKind::NotFound
        | std::io::ErrorKind::InvalidInput => ErrorKind::InvalidRequest,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot listen for NBD on {place}")).caused_by(error)
}

/// A connected socket of either family, which may move from one runtime to another.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket while no runtime watches it.
    type Resting: Send + 'static;
    /// Whether only this machine can reach it, and a file says who may.
    const IS_LOCAL: bool;

    fn leave(self) -> std::io::Result<Self::Resting>;

    /// Has the runtime that this is called in watch the socket.
    fn arrive(socket: Self::Resting) -> std::io::Result<Self>
    where
        Self: Sized;
}

impl Stream for tokio::net::TcpStream {
    type Resting = std::net::TcpStream;
    const IS_LOCAL: bool = false;

    fn leave(self) -> std::io::Result<Self::Resting> {
        self.into_std()
    }

    fn arrive(socket: Self::Resting) -> std::io::Result<Self> {
        Self::from_std(socket)
    }
}

impl Stream for tokio::net::UnixStream {
    type Resting = std::os::unix::net::UnixStream;
    const IS_LOCAL: bool = true;

    fn leave(self) -> std::io::Result<Self::Resting> {
        self.into_std()
    }

    fn arrive(socket: Self::Resting) -> std::io::Result<Self> {
        Self::from_std(socket)
    }
}

/// A listening socket of either family.
trait Listener: Send + 'static {
    type Stream: Stream;

    fn next(&self) -> impl Future<Output = std::io::Result<(Self::Stream, String)>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> std::io::Result<(Self::Stream, String)> {
        let (stream, peer) = self.accept().await?;
        // Replies are small and waited for: without this, Nagle's algorithm (RFC 896) and delayed
        // acknowledgements hold each for up to 40 ms.
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
        Ok((stream, peer.to_string()))
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> std::io::Result<(Self::Stream, String)> {
        let (stream, _) = self.accept().await?;
        let peer = match stream.peer_cred().ok().and_then(|credentials| credentials.pid()) {
            Some(pid) => format!("unix:pid={pid}"),
            None => "unix".to_owned(),
        };
        Ok((stream, peer))
    }
}

/// Accepts until the server closes, then waits for its connections.
async fn accept<L: Listener>(listener: L, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let closed = shared.closing.token().clone();
    loop {
        tokio::select! {
            biased;
            () = closed.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.next() => match accepted {
                Ok((stream, peer)) => match Arc::clone(&shared.connections).try_acquire_owned() {
                    Ok(permit) => {
                        let shared = Arc::clone(&shared);
                        connections.spawn(async move {
                            connection::serve(stream, peer, shared).await;
                            drop(permit);
                        });
                    }
                    Err(_) => {
                        tracing::warn!(peer, limit = shared.limits.connections_max, "NBD connection refused: too many");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    tokio::select! {
                        () = closed.cancelled() => break,
                        () = tokio::time::sleep(ACCEPT_RETRY) => {}
                    }
                }
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(shared.limits.drain_timeout + DRAIN_GRACE, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!(connections = connections.len(), "NBD connections are cut off: they did not drain in time");
        connections.shutdown().await;
    }
}
