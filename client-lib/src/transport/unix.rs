//! Calls over a node's Unix socket, for clients on its own machine: no certificates, the file says who may.
//!
//! Many calls share one connection: each is a header and a frame, and so is its answer, which carries the same number
//! (docs/format.md, "Call over a Unix socket"). Whoever calls is a client and no node. The calling end knows one socket and
//! sends everything there, whichever node is asked for: that node passes on what others must answer.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{BoxFuture, Class, FRAME_SIZE_MAX, Service, Transport, TransportError};
use crate::error::{Error, ErrorKind};
use crate::types::{ClientName, NodeId};

/// Number and length.
const HEADER_SIZE: usize = 8 + 4;
/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 256;
/// Calls of one connection under way; further requests wait unread.
const CALLS_MAX: usize = 256;
/// Request bytes of one connection in memory; further requests wait unread.
const REQUEST_BUDGET: usize = 2 * FRAME_SIZE_MAX;
/// How long accepting rests after it failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long calls that are being answered may take when the server closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// What callers are called in logs.
const LOCAL: &str = "local";

async fn read_message(stream: &mut OwnedReadHalf) -> io::Result<Option<(u64, u32)>> {
    let mut header = [0; HEADER_SIZE];
    match stream.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let number = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
    let length = u32::from_le_bytes(header[8..].try_into().expect("four bytes"));
    if length as usize > FRAME_SIZE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} bytes are over the limit of a frame"),
        ));
    }
    Ok(Some((number, length)))
}

async fn read_body(stream: &mut OwnedReadHalf, length: u32) -> io::Result<Bytes> {
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok(body.into())
}

async fn write_message(stream: &mut OwnedWriteHalf, number: u64, body: &Bytes) -> io::Result<()> {
    let mut header = [0; HEADER_SIZE];
    header[..8].copy_from_slice(&number.to_le_bytes());
    header[8..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    stream.write_all(&header).await?;
    stream.write_all(body).await
}

/// The answering end: a socket file that only this user may use.
#[derive(Debug)]
pub struct UnixServer {
    path: PathBuf,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl UnixServer {
    /// Listens on `path` and answers with [`Service::serve_client`]. The file of a dead server is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    /// `Busy` when somebody listens there; `InvalidRequest` when the path cannot be used.
    pub async fn bind(path: &Path, service: Arc<dyn Service>) -> Result<UnixServer, Error> {
        let unusable = |error: io::Error| {
            let text = format!("cannot listen for clients on {}", path.display());
            Error::new(ErrorKind::InvalidRequest, text).caused_by(error)
        };
        if path.exists() {
            if UnixStream::connect(path).await.is_ok() {
                return Err(Error::new(ErrorKind::Busy, format!("somebody listens on {} already", path.display())));
            }
            std::fs::remove_file(path).map_err(unusable)?;
        }
        let listener = UnixListener::bind(path).map_err(unusable)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(unusable)?;
        let server = UnixServer { path: path.to_owned(), closing: CancellationToken::new(), tasks: TaskTracker::new() };
        server.tasks.spawn(accept(listener, service, server.closing.clone(), server.tasks.clone()));
        Ok(server)
    }

    /// Takes no more calls, lets those being answered finish for a short while, and removes the file.
    pub async fn close(self) {
        self.closing.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await;
        // Gone already is fine too.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

async fn accept(listener: UnixListener, service: Arc<dyn Service>, closing: CancellationToken, tasks: TaskTracker) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = CONNECTIONS_MAX, "a local client was refused: too many");
            continue;
        };
        let (service, closing) = (service.clone(), closing.clone());
        tasks.spawn(async move {
            let _place = place;
            if let Err(error) = serve(stream, service, closing).await {
                tracing::debug!(%error, "a local client is gone");
            }
        });
    }
}

/// Answers the calls of one connection, in whatever order they are done.
async fn serve(stream: UnixStream, service: Arc<dyn Service>, closing: CancellationToken) -> io::Result<()> {
    let (mut requests, replies) = stream.into_split();
    let replies = Arc::new(tokio::sync::Mutex::new(replies));
    let (calls, budget) = (Arc::new(Semaphore::new(CALLS_MAX)), Arc::new(Semaphore::new(REQUEST_BUDGET)));
    let tasks = TaskTracker::new();
    let closed = || io::Error::other("the limits of the connection are gone");
    let outcome = loop {
        let message = tokio::select! {
            biased;
            () = closing.cancelled() => break Ok(()),
            message = read_message(&mut requests) => message,
        };
        let (number, length) = match message {
            Ok(Some(message)) => message,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let call = calls.clone().acquire_owned().await.map_err(|_| closed())?;
        let memory = budget.clone().acquire_many_owned(length).await.map_err(|_| closed())?;
        let request = match read_body(&mut requests, length).await {
            Ok(request) => request,
            Err(error) => break Err(error),
        };
        let (service, replies) = (service.clone(), replies.clone());
        tasks.spawn(async move {
            let name: ClientName = LOCAL.parse().expect("is a name");
            let reply = service.serve_client(&name, Class::Pull, request).await;
            drop(memory);
            // A client that has gone reads no more; its connection ends by itself.
            let _ = write_message(&mut *replies.lock().await, number, &reply).await;
            drop(call);
        });
    };
    tasks.close();
    tasks.wait().await;
    outcome
}

type Waiting = HashMap<u64, oneshot::Sender<Bytes>>;

/// A connection, as long as it is one.
struct Connection {
    requests: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    is_over: AtomicBool,
    /// Ends the reading of answers with the connection.
    ended: CancellationToken,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Connection {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody gets an answer any more.
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.ended.cancel();
        self.waiting().clear();
    }
}

/// The calling end.
pub struct UnixTransport {
    path: PathBuf,
    runtime: Handle,
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixTransport").field("path", &self.path).finish_non_exhaustive()
    }
}

impl UnixTransport {
    /// Calls whoever listens on `path`. Connects when needed. Needs a tokio runtime, on which connections live.
    #[must_use]
    pub fn new(path: &Path) -> Arc<UnixTransport> {
        let (runtime, connection) = (Handle::current(), tokio::sync::Mutex::default());
        Arc::new(UnixTransport { path: path.to_owned(), runtime, connection })
    }

    async fn connected(&self) -> io::Result<Arc<Connection>> {
        let mut connection = self.connection.lock().await;
        if let Some(live) = connection.as_ref().filter(|live| !live.is_over.load(Ordering::Acquire)) {
            return Ok(live.clone());
        }
        let path = self.path.clone();
        // On the runtime where it is to live, which may be another than the caller's.
        let connecting = self.runtime.spawn(async move { UnixStream::connect(path).await.map(UnixStream::into_split) });
        let (mut replies, requests) = connecting.await.map_err(io::Error::other)??;
        let live = Arc::new(Connection {
            requests: tokio::sync::Mutex::new(requests),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            ended: CancellationToken::new(),
        });
        let (ended, weak) = (live.ended.clone(), Arc::downgrade(&live));
        self.runtime.spawn(async move {
            let reading = async {
                while let Ok(Some((number, length))) = read_message(&mut replies).await {
                    let Ok(reply) = read_body(&mut replies, length).await else { return };
                    let Some(connection) = weak.upgrade() else { return };
                    let waiting = connection.waiting().remove(&number);
                    // Who gave up does not wait any more.
                    let _ = waiting.map(|waiting| waiting.send(reply));
                }
            };
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = reading => {}
            }
            if let Some(connection) = weak.upgrade() {
                connection.end();
            }
        });
        *connection = Some(live.clone());
        Ok(live)
    }

    async fn exchange(&self, node: NodeId, request: Bytes, end: Instant) -> Result<Bytes, TransportError> {
        let unreachable =
            |reason: String| TransportError::Unreachable { node, reason: format!("{}: {reason}", self.path.display()) };
        let unknown = |reason: &str| TransportError::OutcomeUnknown { node, reason: reason.to_owned() };
        let connecting = tokio::time::timeout_at(end, self.connected()).await;
        let connection = connecting
            .map_err(|_| unreachable("the deadline passed while connecting".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let number = connection.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        connection.waiting().insert(number, sender);
        if connection.is_over.load(Ordering::Acquire) {
            return Err(unreachable("the connection has just ended".to_owned()));
        }
        // A task of its own: half a request would end the connection for all.
        let sending = self.runtime.spawn({
            let connection = connection.clone();
            async move {
                let sent = write_message(&mut *connection.requests.lock().await, number, &request).await;
                if sent.is_err() {
                    connection.end();
                }
            }
        });
        let answered = tokio::time::timeout_at(end, receiver).await;
        connection.waiting().remove(&number);
        drop(sending);
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(unknown("the connection ended")),
            Err(_) => Err(unknown("the deadline passed")),
        }
    }
}

impl Transport for UnixTransport {
    fn call(
        &self,
        node: NodeId,
        _class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            if request.len() > FRAME_SIZE_MAX {
                return Err(TransportError::TooLarge(request.len()));
            }
            self.exchange(node, request, Instant::now() + deadline).await
        })
    }

    /// There is one way only.
    fn set_peer(&self, _node: NodeId, _address: SocketAddr) {}

    fn remove_peer(&self, _node: NodeId) {}

    fn rtt(&self, _node: NodeId) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Echoes; `hold` waits until it is released.
    struct Probe(Semaphore);

    impl Service for Probe {
        fn serve(&self, _peer: Option<NodeId>, _class: Class, _request: Bytes) -> BoxFuture<'_, Bytes> {
            Box::pin(async { Bytes::from_static(b"taken for somebody else") })
        }

        fn serve_client<'a>(&'a self, client: &'a ClientName, _class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
            Box::pin(async move {
                match &request[..] {
                    b"who" => Bytes::from(client.to_string()),
                    b"hold" => {
                        let _released = self.0.acquire().await;
                        request
                    }
                    _ => request,
                }
            })
        }
    }

    async fn ask(transport: &UnixTransport, request: impl Into<Bytes>) -> Result<Bytes, TransportError> {
        transport.call(NODE, Class::Pull, request.into(), PATIENCE).await
    }

    #[tokio::test]
    async fn calls_share_a_connection_and_are_answered_in_any_order() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("client.sock");
        let probe = Arc::new(Probe(Semaphore::new(0)));
        let server = UnixServer::bind(&path, probe.clone()).await.expect("listens");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(UnixServer::bind(&path, probe.clone()).await.expect_err("is in use").kind(), ErrorKind::Busy);
        let transport = UnixTransport::new(&path);
        let held = tokio::spawn({
            let transport = transport.clone();
            async move { ask(&transport, "hold").await }
        });
        assert_eq!(ask(&transport, "who").await.expect("answered"), "local");
        let large = Bytes::from(vec![7; FRAME_SIZE_MAX]);
        assert_eq!(ask(&transport, large.clone()).await.expect("answered"), large);
        assert!(matches!(ask(&transport, vec![0; FRAME_SIZE_MAX + 1]).await, Err(TransportError::TooLarge(_))));
        let given_up = transport.call(NODE, Class::Pull, "hold".into(), Duration::from_millis(1)).await;
        assert!(matches!(given_up, Err(TransportError::OutcomeUnknown { .. })), "{given_up:?}");
        probe.0.add_permits(2);
        assert_eq!(held.await.expect("joins").expect("answered"), "hold");
        server.close().await;
        assert!(!path.exists());
        // The end of the connection may be noticed by the first call only.
        assert!(ask(&transport, "x").await.is_err());
        assert!(matches!(ask(&transport, "x").await, Err(TransportError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn a_server_that_dies_and_comes_back_is_found_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("client.sock");
        let probe = Arc::new(Probe(Semaphore::new(0)));
        // Its file stays, as that of a killed process does.
        let listener = UnixListener::bind(&path).expect("listens");
        let transport = UnixTransport::new(&path);
        let asking = tokio::spawn({
            let transport = transport.clone();
            async move { ask(&transport, "hold").await }
        });
        let (taken, _) = listener.accept().await.expect("connects");
        drop((taken, listener));
        let lost = asking.await.expect("joins");
        assert!(matches!(lost, Err(TransportError::OutcomeUnknown { .. })), "{lost:?}");
        let server = UnixServer::bind(&path, probe).await.expect("replaces the file");
        assert_eq!(ask(&transport, "again").await.expect("answered"), "again");
        server.close().await;
    }

    #[tokio::test]
    async fn a_header_that_makes_no_sense_ends_its_connection_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("client.sock");
        let server = UnixServer::bind(&path, Arc::new(Probe(Semaphore::new(0)))).await.expect("listens");
        let mut hostile = UnixStream::connect(&path).await.expect("connects");
        hostile.write_all(&[0xff; HEADER_SIZE]).await.expect("is sent");
        let mut rest = Vec::new();
        hostile.read_to_end(&mut rest).await.expect("ends");
        assert!(rest.is_empty());
        assert_eq!(ask(&UnixTransport::new(&path), "x").await.expect("answered"), "x");
        server.close().await;
    }
}
