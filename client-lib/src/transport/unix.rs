//! Calls over a node's Unix socket, for clients on its own machine: no certificates, the file says who may.
//!
//! Many calls share one connection: each is a header and a frame, and so is its answer, which carries the same number
//! (docs/format.md, "Call over a Unix socket"). Whoever calls is a client and no node. The calling end knows one socket and
//! sends everything there, whichever node is asked for: that node passes on what others must answer.

mod line;
pub mod quiet;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::line::Line;
use super::answers::Answers;
use super::{BoxFuture, Class, FRAME_SIZE_MAX, Home, Residence, Service, Transport, TransportError};
use crate::error::{Error, ErrorKind};
use crate::in_flight::InFlight;
use crate::types::NodeId;

/// The socket for clients of this machine, in a node's data directory.
pub const CLIENT_SOCKET: &str = "client.sock";

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 256;
/// Calls of one connection under way; further requests wait unread.
const CALLS_MAX: usize = 256;
/// Request bytes of one connection in memory; further requests wait unread.
const REQUEST_BUDGET: usize = 2 * FRAME_SIZE_MAX;
/// Bytes of one connection, in each direction, that the other end does not take: at the answering end further requests wait unread then, at the
/// calling end they wait to be sent.
const UNSENT_MAX: usize = 4 << 20;
/// How long accepting rests after it failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long calls that are being answered may take when the server closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The answering end: a socket file that only this user may use.
#[derive(Debug)]
pub struct UnixServer {
    path: PathBuf,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl UnixServer {
    /// Listens on `path` and answers with [`Service::serve_local`]. The file of a dead server is replaced. Needs a tokio runtime.
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
        let (service, closing, of_server) = (service.clone(), closing.clone(), tasks.clone());
        tasks.spawn(async move {
            let _place = place;
            if let Err(error) = serve(stream, service, closing, &of_server).await {
                tracing::debug!(%error, "a local client is gone");
            }
        });
    }
}

/// How serving a connection went on.
enum Served {
    /// It has ended.
    Ended,
    /// It is to be served elsewhere, beginning with this request.
    Moves(Home, (u64, Bytes)),
}

/// Answers the calls of one connection, on the runtime that suits what it uses.
async fn serve(
    stream: UnixStream,
    service: Arc<dyn Service>,
    closing: CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<()> {
    let mut line = Line::new(stream)?;
    let Served::Moves(home, first) = answer(&mut line, &*service, &closing, None).await? else { return Ok(()) };
    let Home { runtime, place } = home;
    let left = line.leave()?;
    let there = async move {
        let _place = place;
        let mut line = Line::arrive(left)?;
        answer(&mut line, &*service, &closing, Some(first)).await.map(drop)
    };
    // Ends with that runtime, or by itself.
    let moved = AbortOnDropHandle::new(tasks.spawn_on(there, &runtime));
    moved.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

/// Answers calls in whatever order they are done: one task for all of a connection, and one write for all answers that are ready.
/// Begins with `first`, which has come elsewhere; without it the service is asked once where the connection belongs.
async fn answer(
    line: &mut Line,
    service: &dyn Service,
    closing: &CancellationToken,
    mut first: Option<(u64, Bytes)>,
) -> io::Result<Served> {
    let answers = &Answers::new();
    let call = |(number, request): (u64, Bytes)| {
        let length = request.len();
        Box::pin(async move {
            let room = answers.set_aside(service.answer_bytes_max(&request)).await;
            (number, length, room.hold(service.serve_local(Class::Pull, request).await))
        })
    };
    let (mut is_settled, mut requested, mut is_ending) = (first.is_some(), 0, false);
    let answered = |line: &mut Line, requested: &mut usize, (number, length, reply): (u64, usize, Bytes)| {
        *requested -= length;
        line.push(number, reply);
    };
    let mut calls = InFlight::new();
    let mut closed = std::pin::pin!(closing.cancelled());
    std::future::poll_fn(|cx| {
        is_ending |= closed.as_mut().poll(cx).is_ready();
        loop {
            while let Poll::Ready(done) = calls.poll_next(cx) {
                answered(line, &mut requested, done);
            }
            let is_sent = match line.poll_send(cx) {
                Poll::Ready(sent) => sent.map(|()| true)?,
                Poll::Pending => false,
            };
            if is_ending {
                return if is_sent && calls.is_empty() { Poll::Ready(Ok(Served::Ended)) } else { Poll::Pending };
            }
            if calls.len() >= CALLS_MAX || requested >= REQUEST_BUDGET || line.unsent() >= UNSENT_MAX {
                return Poll::Pending;
            }
            let request = match first.take() {
                Some(request) => Some(request),
                None => ready!(line.poll_receive(cx))?,
            };
            match request {
                None => is_ending = true,
                Some(request) => {
                    if !is_settled && calls.is_empty() && is_sent {
                        match service.home(&request.1) {
                            Residence::Undecided => {}
                            Residence::Here => is_settled = true,
                            Residence::There(home) => return Poll::Ready(Ok(Served::Moves(home, request))),
                        }
                    }
                    requested += request.1.len();
                    if let Poll::Ready(done) = calls.begin(call(request), cx) {
                        answered(line, &mut requested, done);
                    }
                }
            }
        }
    })
    .await
}

/// A connection, as long as it is one. One task reads and writes for all that call.
struct Connection(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Bytes>>,
    /// Requests that the task has yet to take, in the order of their numbers.
    queue: VecDeque<(u64, Bytes)>,
    task: Option<Waker>,
    is_over: bool,
}

impl Calls {
    /// Nobody waits for this one any more. Where the task has taken it, all of it is sent: half a request would be the end of the connection. Whether it
    /// has not, and never will.
    fn give_up(&mut self, number: u64) -> bool {
        self.waiting.remove(&number);
        let queued = self.queue.binary_search_by_key(&number, |(queued, _)| *queued);
        queued.is_ok_and(|at| self.queue.remove(at).is_some())
    }
}

/// A call whose answer somebody waits for.
struct Waiting<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connection.calls().give_up(self.number);
    }
}

impl Connection {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody gets an answer any more.
    fn end(&self) {
        let mut calls = self.calls();
        calls.is_over = true;
        calls.waiting.clear();
        calls.queue.clear();
    }

    /// Takes of the queue what is to be sent now. Whether there is anything to send.
    fn fill(&self, line: &mut Line) -> bool {
        let mut calls = self.calls();
        while line.unsent() < UNSENT_MAX
            && let Some((number, request)) = calls.queue.pop_front()
        {
            line.push(number, request);
        }
        line.unsent() > 0
    }

    /// Moves messages until the connection breaks or nobody has it any more.
    fn poll(weak: &Weak<Connection>, line: &mut Line, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(connection) = weak.upgrade() else { return Poll::Ready(Ok(())) };
        {
            let mut calls = connection.calls();
            if !calls.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                calls.task = Some(cx.waker().clone());
            }
        }
        // What the socket does not take stays in the queue, where who gives up takes it back: one that hangs would have each attempt of each write.
        while connection.fill(line) {
            match line.poll_send(cx) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => break,
            }
        }
        while let Some((number, reply)) = ready!(line.poll_receive(cx))? {
            let waiting = connection.calls().waiting.remove(&number);
            // Who gave up does not wait any more.
            let _ = waiting.map(|waiting| waiting.send(reply));
        }
        Poll::Ready(Ok(()))
    }
}

/// The calling end.
pub struct UnixTransport {
    path: PathBuf,
    runtime: Handle,
    live: Mutex<Option<Arc<Connection>>>,
    /// Held by who connects.
    connecting: tokio::sync::Mutex<()>,
}

impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixTransport").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for UnixTransport {
    fn drop(&mut self) {
        if let Some(connection) = self.live().take() {
            // Its task holds nothing of it, and ends.
            let task = connection.calls().task.take();
            drop(connection);
            let _ = task.map(Waker::wake);
        }
    }
}

impl UnixTransport {
    /// Calls whoever listens on `path`, or, where that is a directory, on [`CLIENT_SOCKET`] in it. Connects when needed. Needs a tokio runtime, on which connections live.
    #[must_use]
    pub fn new(path: &Path) -> Arc<UnixTransport> {
        let (runtime, live, connecting) = (Handle::current(), Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(UnixTransport { path: path.to_owned(), runtime, live, connecting })
    }

    fn live(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, unless there is none, or it is over.
    fn connection(&self) -> Option<Arc<Connection>> {
        self.live().clone().filter(|connection| !connection.calls().is_over)
    }

    async fn connected(&self) -> io::Result<Arc<Connection>> {
        let _connecting = self.connecting.lock().await;
        if let Some(live) = self.connection() {
            return Ok(live);
        }
        // Who gives a node's data directory means the socket in it.
        let path = if self.path.is_dir() { self.path.join(CLIENT_SOCKET) } else { self.path.clone() };
        // On the runtime where it is to live, which may be another than the caller's.
        let connecting = self.runtime.spawn(async move { UnixStream::connect(path).await.and_then(Line::new) });
        let mut line = connecting.await.map_err(io::Error::other)??;
        let live = Arc::new(Connection(Mutex::default()));
        let weak = Arc::downgrade(&live);
        self.runtime.spawn(async move {
            if let Err(error) = std::future::poll_fn(|cx| Connection::poll(&weak, &mut line, cx)).await {
                tracing::debug!(%error, "the connection to the node broke");
            }
            if let Some(connection) = weak.upgrade() {
                connection.end();
            }
        });
        *self.live() = Some(live.clone());
        Ok(live)
    }

    async fn exchange(&self, node: NodeId, request: Bytes, end: Instant) -> Result<Bytes, TransportError> {
        let unreachable = |reason: String| TransportError::Unreachable { node, reason };
        let unknown = |reason: &str| TransportError::OutcomeUnknown { node, reason: reason.to_owned() };
        let connection = match self.connection() {
            Some(connection) => connection,
            None => tokio::time::timeout_at(end, self.connected())
                .await
                .map_err(|_| unreachable("the deadline passed while connecting".to_owned()))?
                .map_err(|error| unreachable(error.to_string()))?,
        };
        let (sender, receiver) = oneshot::channel();
        let (number, task) = {
            let mut calls = connection.calls();
            if calls.is_over {
                return Err(unreachable("the connection has just ended".to_owned()));
            }
            let number = calls.next;
            calls.next += 1;
            calls.waiting.insert(number, sender);
            calls.queue.push_back((number, request));
            (number, calls.task.clone())
        };
        let _waiting = Waiting { connection: &connection, number };
        // Until its task was polled once there is none to wake, and it looks then.
        let _ = task.map(Waker::wake);
        match tokio::time::timeout_at(end, receiver).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(unknown("the connection ended")),
            Err(_) if connection.calls().give_up(number) => {
                Err(unreachable("the deadline passed before it could be sent".to_owned()))
            }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::line::HEADER_SIZE;
    use super::*;
    use crate::types::ClientName;

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

    /// A node that was stopped took nothing, and each attempt of each write stayed in the queue of its connection, every 30 seconds all of them
    /// anew: the memory of `helio-nbd` grew until it was killed, with all of its guests.
    #[tokio::test(start_paused = true)]
    async fn what_a_hung_node_does_not_take_is_not_kept_for_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("client.sock");
        let _hung = UnixListener::bind(&path).expect("listens");
        let transport = UnixTransport::new(&path);
        let request = Bytes::from(vec![7; 1 << 20]);
        let mut taken = 0;
        for _ in 0..3 {
            let calls = (0..20).map(|_| transport.call(NODE, Class::Pull, request.clone(), PATIENCE));
            let ended = futures_util::future::join_all(calls).await;
            for ended in ended {
                match ended {
                    Err(TransportError::OutcomeUnknown { .. }) => taken += 1,
                    Err(TransportError::Unreachable { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
            assert!((1..=UNSENT_MAX / request.len() + 1).contains(&taken), "{taken}");
            let connection = transport.connection().expect("is there");
            assert!(connection.calls().queue.is_empty() && connection.calls().waiting.is_empty());
        }
        // Nobody waits for it any more: it goes nowhere either.
        drop(tokio::time::timeout(Duration::from_millis(1), ask(&transport, request)).await);
        assert!(transport.connection().expect("is there").calls().queue.is_empty());
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

    /// `helio-nbd --node DIR`, "client.sock in its data directory" as its help said, was refused a connection for ever.
    #[tokio::test]
    async fn a_data_directory_stands_for_the_socket_in_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let asked = UnixTransport::new(dir.path());
        assert!(ask(&asked, "x").await.is_err(), "nobody listens yet");
        let service = Arc::new(Probe(Semaphore::new(0)));
        let server = UnixServer::bind(&dir.path().join(CLIENT_SOCKET), service).await.expect("listens");
        assert_eq!(ask(&asked, "x").await.expect("answered"), "x");
        server.close().await;
    }

    /// Tells on which thread it answers; once something is used, that is to be the thread of a runtime of its own.
    struct Elsewhere(Mutex<Option<Home>>);

    impl Service for Elsewhere {
        fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
            Box::pin(async move {
                let thread = std::thread::current();
                drop(request);
                Bytes::from(thread.name().unwrap_or_default().to_owned())
            })
        }

        fn home(&self, request: &Bytes) -> Residence {
            if request != "use" {
                return Residence::Undecided;
            }
            let home = self.0.lock().expect("no thread panics with it").take();
            home.map_or(Residence::Here, Residence::There)
        }
    }

    #[tokio::test]
    async fn a_connection_moves_to_where_it_belongs_and_ends_with_that() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("client.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (end, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("home".to_owned());
        let thread = thread.spawn(move || drop(runtime.block_on(ended))).expect("starts");
        let places = Arc::new(Semaphore::new(1));
        let place = Box::new(places.clone().try_acquire_owned().expect("is free"));
        let home = Home { runtime: handle, place };
        let server = UnixServer::bind(&path, Arc::new(Elsewhere(Mutex::new(Some(home))))).await.expect("listens");
        let transport = UnixTransport::new(&path);
        let before = ask(&transport, "list").await.expect("answered");
        assert_ne!(before, "home");
        // Together, so that some are behind the one that it moves with.
        let both = tokio::join!(ask(&transport, "use"), ask(&transport, "list"));
        assert_eq!((both.0.expect("answered"), both.1.expect("answered")), ("home".into(), "home".into()));
        assert_eq!(ask(&transport, "use").await.expect("answered"), "home");
        let other = UnixTransport::new(&path);
        assert_eq!(ask(&other, "use").await.expect("answered"), before, "there is no more place");
        assert_eq!(places.available_permits(), 0);
        drop(end);
        thread.join().expect("ends");
        // The end of the connection may be noticed by the first call only.
        let _ = ask(&transport, "list").await;
        assert_eq!(ask(&transport, "use").await.expect("connects anew"), before);
        let _place = places.acquire().await.expect("is free again");
        server.close().await;
    }
}
