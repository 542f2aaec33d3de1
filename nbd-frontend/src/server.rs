//! The listening sockets, and what becomes of each connection.
//!
//! Owns accepting, the limits on connections and handshakes, the files of Unix sockets, shutdown, and giving way to a successor
//! ([`crate::passing`]). Each connection is a
//! task of its own, on one of a few threads ([`lane`]) or, after the handshake, where its export lives: whatever a client
//! sends, and even a panic in an export, ends that connection alone. What is said on a connection is for `negotiation`
//! and `transmission`.

pub(crate) mod connection;
mod handshake;
pub(crate) mod lane;
mod meter;
pub(crate) mod unix_socket;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::transport::unix::quiet::QuietStream;
use client_lib::{Error, ErrorKind};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use self::connection::Begin;
use self::lane::{Lane, Sockets};
pub use self::meter::{ConnectionFigures, ConnectionMeter};
use self::unix_socket::SocketFile;
use crate::export::ExportDirectory;
use crate::passing::gate::{Gate, Parcel, Verdict};
use crate::passing::message::{Family, Hello, Holder, STATE_VERSION};
use crate::passing::predecessor::{self, Place};
use crate::passing::successor::{self, Adopted, absolute};
use crate::service::sockets::PassedSockets;
use crate::tls::{Tls, TlsMode, TlsOptions};
use crate::transmission::Closing;

/// How long accepting rests after it failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Handshakes over TCP at a time, at most, and never more than half of all connections: further clients wait in the socket's queue. Whoever can reach the
/// port can begin one; what is over has shown what was asked of it.
const TCP_HANDSHAKES_MAX: usize = 256;
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
    /// How long requests in flight may hold up a successor, while nothing new is read; then nothing is passed on, and all go on.
    pub pause_timeout: Duration,
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
            pause_timeout: Duration::from_secs(5),
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
    /// Sockets that listen already, and whose files are somebody else's; instead of those above.
    pub passed: Arc<PassedSockets>,
    /// The path of the socket on which a newer process may take over ([`Server::replace`]), mode 0600; without it nobody can.
    pub control: Option<PathBuf>,
    /// TLS; without it there is none.
    pub tls: Option<TlsOptions>,
    /// The bounds.
    pub limits: Limits,
}

/// A running NBD server. Dropping it stops it without waiting; [`Server::shutdown`] waits.
pub struct Server {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("place", &self.shared.place).finish_non_exhaustive()
    }
}

/// What all connections of a server share.
pub(crate) struct Shared {
    directory: Arc<dyn ExportDirectory>,
    tls: Option<Tls>,
    pub(crate) limits: Limits,
    pub(crate) closing: Closing,
    connections: Arc<Semaphore>,
    tcp_handshakes: Arc<Semaphore>,
    meter: ConnectionMeter,
    pub(crate) gate: Arc<Gate>,
    pub(crate) place: Place,
    /// The files of the sockets, removed when they are dropped.
    files: Mutex<Vec<SocketFile>>,
}

impl Shared {
    /// The files of the sockets, for who sees to them; none is removed at the end then.
    pub(crate) fn take_files(&self) -> Vec<SocketFile> {
        std::mem::take(&mut *self.files())
    }

    /// They are this process's, and removed at its end, which may have come.
    pub(crate) fn keep_files(&self, files: Vec<SocketFile>) {
        let mut kept = self.files();
        // Looked at under the lock, under which they are taken at the end.
        if !self.closing.is_closed() {
            kept.extend(files);
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<SocketFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server begins with.
struct Inventory {
    sockets: Sockets,
    control: Option<std::os::unix::net::UnixListener>,
    files: Vec<SocketFile>,
    connections: Vec<Adopted>,
    gate: Arc<Gate>,
}

impl Server {
    /// Listens as `options` say and serves `directory`, on threads of its own: the directory's futures are polled
    /// there, and must not rely on the runtime that this is called on.
    ///
    /// # Errors
    /// `InvalidRequest` if there is nothing to listen on, or an address, path or certificate is not usable, `Busy` if another
    /// process listens there.
    pub async fn bind(options: ServerOptions, directory: Arc<dyn ExportDirectory>) -> Result<Server, Error> {
        // Before anything listens: whoever asked for TLS must not be served without.
        let tls = require_usable(&options)?;
        let passed = passed(&options.passed)?;
        let tcp = match options.tcp {
            Some(address) => {
                let listener = TcpListener::bind(address).await.and_then(TcpListener::into_std);
                Some(listener.map_err(|error| cannot_listen(&address.to_string(), error))?)
            }
            None => passed.tcp,
        };
        let mut files = Vec::new();
        let unix = match &options.unix {
            Some(path) => {
                let (listener, file) = unix_socket::bind(path.clone()).await?;
                files.push(file);
                Some(listener.into_std().map_err(|error| cannot_listen("the Unix socket", error))?)
            }
            None => passed.unix,
        };
        let control = match &options.control {
            Some(path) => {
                let (listener, file) = unix_socket::bind(path.clone()).await?;
                files.push(file);
                let unusable = |error| cannot_listen(&path.display().to_string(), error);
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(unusable)?;
                Some(listener.into_std().map_err(unusable)?)
            }
            None => None,
        };
        let sockets = Sockets { tcp, unix };
        let inventory = Inventory { sockets, control, files, connections: Vec::new(), gate: Gate::opened() };
        Server::start(options, tls, directory, inventory)
    }

    /// Takes over from the process that listens on [`ServerOptions::control`]: its sockets and its connections, whose clients see
    /// nothing but a pause. `None` when there is none. Connections with TLS stay there until they end.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and `Busy` when the other one does not pass them on, or they cannot be taken up here: it says why, and
    /// goes on as if nothing had been asked.
    pub async fn replace(options: ServerOptions, directory: Arc<dyn ExportDirectory>) -> Result<Option<Server>, Error> {
        let tls = require_usable(&options)?;
        let Some(control) = &options.control else {
            let text = "a server can only be replaced at its control socket, and none is named";
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        };
        let own = passed(&options.passed)?;
        let hello = Hello {
            oldest: STATE_VERSION,
            newest: STATE_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            unix: unix_path(&options),
            tcp: tcp_address(&options)?,
            tls: strictness(tls.as_ref()),
            passed: Holder::of(&options.passed),
        };
        let Some(mut inheritance) = successor::ask(control, hello, &*directory).await? else { return Ok(None) };
        let failed = |error| Error::new(ErrorKind::Internal, "what was passed on cannot be used").caused_by(error);
        // What the service manager has now is where clients come to; usually it is what the other process has, too.
        let Sockets { tcp, unix } = inheritance.sockets.duplicate().map_err(failed)?;
        let inventory = Inventory {
            sockets: Sockets { tcp: own.tcp.or(tcp), unix: own.unix.or(unix) },
            control: Some(inheritance.control.try_clone().map_err(failed)?),
            files: Vec::new(),
            connections: std::mem::take(&mut inheritance.connections),
            gate: Gate::closed(),
        };
        let (count, staying) = (inventory.connections.len(), inheritance.staying);
        let paths = options.unix.clone().into_iter().chain(options.control.clone());
        let server = match Server::start(options, tls, directory, inventory) {
            Ok(server) => server,
            Err(error) => {
                inheritance.decline(&error);
                return Err(error);
            }
        };
        inheritance.confirm().await?;
        server.shared.gate.open();
        let files: Vec<_> = paths.map(SocketFile::adopted).collect();
        server.shared.keep_files(files);
        tracing::info!(connections = count, staying, "took over from another process");
        Ok(Some(server))
    }

    fn start(
        options: ServerOptions,
        tls: Option<Tls>,
        directory: Arc<dyn ExportDirectory>,
        inventory: Inventory,
    ) -> Result<Server, Error> {
        let Inventory { sockets, control, files, connections, gate } = inventory;
        let tcp = match &sockets.tcp {
            Some(listener) => Some(listener.local_addr().map_err(|error| cannot_listen("the TCP address", error))?),
            None => None,
        };
        let limits = options.limits;
        let (unix, passed) = (unix_path(&options), Holder::of(&options.passed));
        let place = Place { unix, tcp, tls: strictness(tls.as_ref()), passed };
        let places = Arc::new(Semaphore::new(limits.connections_max));
        let shared = Arc::new(Shared {
            directory,
            tls,
            limits,
            closing: Closing::default(),
            meter: ConnectionMeter::new(places.clone(), limits.connections_max),
            connections: places,
            tcp_handshakes: Arc::new(Semaphore::new(TCP_HANDSHAKES_MAX.min(limits.connections_max / 2).max(1))),
            gate,
            place,
            files: Mutex::new(files),
        });
        let mut server = Server { shared, lanes: Vec::new() };
        let count = lane::count();
        let mut shares: Vec<Vec<Adopted>> = (0..count).map(|_| Vec::new()).collect();
        for (number, adopted) in connections.into_iter().enumerate() {
            shares[number % count].push(adopted);
        }
        for (number, adopted) in shares.into_iter().enumerate() {
            server.lanes.push(Lane::start(number, &sockets, adopted, Arc::clone(&server.shared))?);
        }
        let shared = &server.shared;
        tracing::info!(?tcp, tls = ?shared.tls.as_ref().map(Tls::mode), unix = ?shared.place.unix, "NBD server listens");
        if let Some(control) = control {
            let shared = Arc::clone(shared);
            let lane = Lane::run("nbd-control", move || predecessor::serve(control, sockets, shared))?;
            server.lanes.push(lane);
        }
        Ok(server)
    }

    /// The TCP address that the server listens on.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.shared.place.tcp
    }

    /// The path of the Unix socket that the server listens on, if it has one.
    #[must_use]
    pub fn unix_path(&self) -> Option<&Path> {
        self.shared.place.unix.as_deref()
    }

    /// Where clients come to, for people.
    #[must_use]
    pub fn places(&self) -> String {
        let unix = self.unix_path().map(|path| path.display().to_string());
        let tcp = self.tcp_address().map(|address| address.to_string());
        let places: Vec<String> = unix.into_iter().chain(tcp).collect();
        if places.is_empty() { "a Unix socket without a path".to_owned() } else { places.join(" and ") }
    }

    /// What is counted of its connections.
    #[must_use]
    pub fn meter(&self) -> ConnectionMeter {
        self.shared.meter.clone()
    }

    /// The threads of the server, by their runtimes.
    #[must_use]
    pub fn threads(&self) -> Vec<Handle> {
        self.lanes.iter().map(|lane| lane.runtime().clone()).collect()
    }

    /// Returns when another process has taken over.
    pub async fn replaced(&self) {
        self.shared.gate.left().await;
    }

    /// How many connections cannot be passed on, and are served until they end.
    #[must_use]
    pub fn staying(&self) -> usize {
        self.shared.gate.staying()
    }

    /// Behind [`replaced`](Self::replaced): serves the connections that could not be passed on until the last has ended. When `stop`
    /// is done before, shuts down.
    pub async fn drained(mut self, stop: impl Future<Output = ()>) {
        let mut all = std::pin::pin!(futures_util::future::join_all(self.take_lanes()));
        tokio::select! {
            biased;
            _ = &mut all => return,
            () = stop => {}
        }
        self.shared.closing.close();
        self.wait_for(all).await;
    }

    /// Stops: accepts no more, answers new requests with `ESHUTDOWN`, waits for those in flight at most
    /// [`Limits::drain_timeout`] and a little, closes every connection, removes the files of its sockets.
    pub async fn shutdown(mut self) {
        self.shared.closing.close();
        drop(self.shared.take_files());
        let all = futures_util::future::join_all(self.take_lanes());
        self.wait_for(all).await;
    }

    fn take_lanes(&mut self) -> Vec<impl Future<Output = ()> + use<>> {
        std::mem::take(&mut self.lanes).into_iter().map(Lane::ended).collect()
    }

    async fn wait_for<T>(&self, all: impl Future<Output = T>) {
        let patience = self.shared.limits.drain_timeout + 2 * DRAIN_GRACE;
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("an NBD thread is left behind: an export blocks it");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.closing.close();
        drop(self.shared.take_files());
    }
}

/// Reads the certificates of `options`, and looks whether there is anything to listen on.
fn require_usable(options: &ServerOptions) -> Result<Option<Tls>, Error> {
    let refused = |text: String| Err(Error::new(ErrorKind::InvalidRequest, text));
    if options.tcp.is_none() && options.unix.is_none() && options.passed.is_empty() {
        return refused("an NBD server needs a TCP address or a Unix socket".to_owned());
    }
    if let (Some(path), true) = (&options.unix, options.passed.unix().is_some()) {
        let (named, path) = (path.display(), options.passed.unix_path().unwrap_or_default());
        let path = path.display();
        return refused(format!(
            "the service manager has passed the Unix socket {path}, and {named} is named as well: leave one of both out"
        ));
    }
    if let (Some(named), Some(address)) = (options.tcp, passed_address(&options.passed)?) {
        return refused(format!(
            "the service manager has passed a socket at {address}, and {named} is named as well: leave one of both out"
        ));
    }
    options.tls.clone().map(Tls::load).transpose()
}

/// The sockets of the service manager, for this process to accept on.
fn passed(sockets: &PassedSockets) -> Result<Sockets, Error> {
    let ready = || {
        let sockets = Sockets {
            tcp: sockets.tcp().map(std::net::TcpListener::try_clone).transpose()?,
            unix: sockets.unix().map(std::os::unix::net::UnixListener::try_clone).transpose()?,
        };
        sockets.tcp.as_ref().map(|socket| socket.set_nonblocking(true)).transpose()?;
        sockets.unix.as_ref().map(|socket| socket.set_nonblocking(true)).transpose()?;
        Ok(sockets)
    };
    ready().map_err(|error| cannot_listen("a socket that the service manager has passed", error))
}

/// Where the Unix socket is or will be.
fn unix_path(options: &ServerOptions) -> Option<PathBuf> {
    options.unix.as_deref().map(absolute).or_else(|| options.passed.unix_path())
}

/// Where the socket for TCP is or will be.
fn tcp_address(options: &ServerOptions) -> Result<Option<SocketAddr>, Error> {
    Ok(options.tcp.or(passed_address(&options.passed)?))
}

/// Where the one that was passed is.
fn passed_address(sockets: &PassedSockets) -> Result<Option<SocketAddr>, Error> {
    sockets.tcp_address().map_err(|error| cannot_listen("a socket that the service manager has passed", error))
}

/// As [`Hello::tls`] has it.
fn strictness(tls: Option<&Tls>) -> u8 {
    match tls.map(Tls::mode) {
        None => 0,
        Some(TlsMode::Optional) => 1,
        Some(TlsMode::Required) => 2,
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
pub(crate) trait Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static {
    /// The socket while no runtime watches it.
    type Resting: From<OwnedFd> + Send + 'static;
    /// Which it is. Only this machine can reach a Unix socket, and a file says who may.
    const FAMILY: Family;

    fn leave(self) -> std::io::Result<Self::Resting>;

    /// Has the runtime that this is called in watch the socket.
    fn arrive(socket: Self::Resting) -> std::io::Result<Self>
    where
        Self: Sized;
}

impl Stream for tokio::net::TcpStream {
    type Resting = std::net::TcpStream;
    const FAMILY: Family = Family::Tcp;

    fn leave(self) -> std::io::Result<Self::Resting> {
        self.into_std()
    }

    fn arrive(socket: Self::Resting) -> std::io::Result<Self> {
        Self::from_std(socket)
    }
}

impl Stream for QuietStream {
    type Resting = std::os::unix::net::UnixStream;
    const FAMILY: Family = Family::Unix;

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
    type Stream = QuietStream;

    async fn next(&self) -> std::io::Result<(Self::Stream, String)> {
        let (stream, _) = self.accept().await?;
        let peer = match stream.peer_cred().ok().and_then(|credentials| credentials.pid()) {
            Some(pid) => format!("unix:pid={pid}"),
            None => "unix".to_owned(),
        };
        Ok((QuietStream::from_std(stream.into_std()?)?, peer))
    }
}

/// Accepts until the server closes or somebody has taken over, then waits for its connections. Begins with those of another
/// process.
async fn accept<L: Listener>(listener: L, adopted: Vec<Adopted>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let guest = shared.gate.guest();
    for Adopted { socket, peer, begin, .. } in adopted {
        match L::Stream::arrive(socket.into()) {
            // Even above the limit: it was let in.
            Ok(stream) => {
                let place = Arc::clone(&shared.connections).try_acquire_owned().ok();
                begin_with(&mut connections, stream, peer, begin, (place, None), &shared);
            }
            Err(error) => tracing::error!(peer, %error, "an NBD connection cannot be taken over"),
        }
    }
    let closed = shared.closing.token().clone();
    loop {
        tokio::select! {
            biased;
            () = closed.cancelled() => break,
            () = guest.until_closed() => {
                let verdict = tokio::select! {
                    biased;
                    () = closed.cancelled() => break,
                    verdict = guest.park(Parcel::Nothing) => verdict,
                };
                if verdict == Verdict::Gone {
                    break;
                }
            }
            Some(_) = connections.join_next() => {}
            (accepted, shaking) = next_with_room(&listener, &shared) => match accepted {
                Ok((stream, peer)) => match Arc::clone(&shared.connections).try_acquire_owned() {
                    Ok(place) => begin_with(&mut connections, stream, peer, Begin::Accepted, (Some(place), shaking), &shared),
                    Err(_) => {
                        shared.meter.refused();
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
    drop((listener, guest));
    // Those that nobody could take over may take as long as they like.
    tokio::select! {
        biased;
        () = closed.cancelled() => {}
        () = all_ended(&mut connections) => return,
    }
    let patience = shared.limits.drain_timeout + DRAIN_GRACE;
    if tokio::time::timeout(patience, all_ended(&mut connections)).await.is_err() {
        tracing::warn!(connections = connections.len(), "NBD connections are cut off: they did not drain in time");
        connections.shutdown().await;
    }
}

/// The next connection, and its place among handshakes, if it is over TCP: those of a Unix socket, whose file says who may connect, have none to wait
/// for. Cancel-safe, as both parts are.
async fn next_with_room<L: Listener>(
    listener: &L,
    shared: &Shared,
) -> (std::io::Result<(L::Stream, String)>, Option<OwnedSemaphorePermit>) {
    let shaking = match L::Stream::FAMILY {
        // It is never closed.
        Family::Tcp => Arc::clone(&shared.tcp_handshakes).acquire_owned().await.ok(),
        Family::Unix => None,
    };
    (listener.next().await, shaking)
}

/// With the connection's place, and that of its handshake.
fn begin_with<S: Stream>(
    connections: &mut JoinSet<()>,
    stream: S,
    peer: String,
    begin: Begin,
    (place, shaking): (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
    shared: &Arc<Shared>,
) {
    // From here on it counts: a gate that closes waits for it.
    let (guest, shared) = (shared.gate.guest(), Arc::clone(shared));
    shared.meter.accepted();
    connections.spawn(async move {
        connection::serve(stream, peer, begin, guest, shaking, shared).await;
        drop(place);
    });
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}
