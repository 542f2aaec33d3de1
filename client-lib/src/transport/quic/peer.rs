//! One peer and class: the shared connection to it, made on demand by one task at a time.
//!
//! The dial outlives the call that started it, so that calls with short deadlines cannot keep a far peer from
//! ever being reached. Failures are followed by a pause that doubles up to [`BACKOFF_MAX`]. A connection that is not called over any more,
//! since its peer has another address, is closed when its last call has ended.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::tls::{self, Congestion};
use crate::pki;
use crate::transport::Class;
use crate::types::NodeId;

const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(800);
/// After this a handshake is started afresh: its own retransmissions grow ever rarer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// From this round trip on a path counts as crossing providers.
pub(super) const WAN_RTT: Duration = Duration::from_millis(5);

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct DialError {
    pub(super) reason: String,
    /// The other end was there, and one of both did not accept the other's certificate.
    pub(super) is_refusal: bool,
}

impl From<String> for DialError {
    fn from(reason: String) -> DialError {
        DialError { reason, is_refusal: false }
    }
}

impl From<ConnectionError> for DialError {
    fn from(error: ConnectionError) -> DialError {
        DialError { reason: error.to_string(), is_refusal: tls::is_refusal(&error) }
    }
}

/// A connection for as long as somebody calls over it, or may. Whoever only watches it holds the connection itself.
pub(super) struct Held(Connection);

impl Deref for Held {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Why it has ended already is not written over.
        if self.0.close_reason().is_none() {
            self.0.close(VarInt::from_u32(0), b"not needed any more");
        }
    }
}

type Dialled = Option<Result<Arc<Held>, DialError>>;

#[derive(Default)]
struct State {
    connection: Option<Arc<Held>>,
    dialling: Option<(watch::Receiver<Dialled>, tokio::task::AbortHandle)>,
    failures: u32,
    /// When the last dial failed.
    failed_at: Option<Instant>,
    removed: bool,
}

/// A peer: where it is, and how it is called.
pub(super) struct Entry {
    pub(super) address: SocketAddr,
    pub(super) classes: [Arc<Peer>; 3],
    /// Connections to addresses that it had before, over which calls may be under way.
    retired: Vec<Weak<Held>>,
}

impl Entry {
    /// The peer at this address, and as it was until now, if it was known. Calls under way go on over their connections.
    pub(super) fn new(node: NodeId, address: SocketAddr, before: Option<Entry>) -> Entry {
        let mut retired = before.map(Entry::retire).unwrap_or_default();
        retired.retain(|connection| connection.strong_count() > 0);
        Entry { address, classes: Class::ALL.map(|class| Peer::new(node, class, address)), retired }
    }

    /// Nothing is called any more, nor does anything under way go on.
    pub(super) fn remove(self) {
        for connection in self.retire().iter().filter_map(Weak::upgrade) {
            connection.close(VarInt::from_u32(0), b"removed");
        }
    }

    fn retire(self) -> Vec<Weak<Held>> {
        let Entry { classes, mut retired, .. } = self;
        // The last hold of a connection that nobody calls over closes it.
        retired.extend(classes.iter().map(|peer| peer.retire()));
        retired
    }
}

pub(super) struct Peer {
    node: NodeId,
    class: Class,
    address: SocketAddr,
    state: Mutex<State>,
}

impl Peer {
    fn new(node: NodeId, class: Class, address: SocketAddr) -> Arc<Peer> {
        Arc::new(Peer { node, class, address, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while holding the peer")
    }

    /// The live connection, if there is one.
    pub(super) fn connected(&self) -> Option<Arc<Held>> {
        self.state().connection.clone().filter(|connection| connection.close_reason().is_none())
    }

    /// A live connection; waits for the dial under way or starts one. Cancel safe.
    pub(super) async fn connect(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<Arc<Held>, DialError> {
        let mut dialled = {
            let mut state = self.state();
            if state.removed {
                return Err("it was removed".to_owned().into());
            }
            if let Some(connection) = &state.connection
                && connection.close_reason().is_none()
            {
                return Ok(connection.clone());
            }
            match &state.dialling {
                Some((dialled, _)) => dialled.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    let pause = backoff(state.failures, state.failed_at);
                    let task = shared.runtime.spawn(self.clone().dial(shared.clone(), pause, sender));
                    state.dialling = Some((receiver.clone(), task.abort_handle()));
                    receiver
                }
            }
        };
        match dialled.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err("no result".to_owned().into())),
            Err(_) => Err("dialling was abandoned".to_owned().into()),
        }
    }

    async fn dial(self: Arc<Self>, shared: Arc<Shared>, pause: Duration, done: watch::Sender<Dialled>) {
        tokio::time::sleep(pause).await;
        let result = self.handshake(&shared).await.map(|connection| Arc::new(Held(connection)));
        let mut state = self.state();
        state.dialling = None;
        match &result {
            Ok(connection) if state.removed => connection.close(VarInt::from_u32(0), b"removed"),
            Ok(connection) => {
                state.failures = 0;
                tokio::spawn(watch_over(shared.clone(), self.node, connection.0.clone()));
                state.connection = Some(connection.clone());
            }
            Err(DialError { reason, .. }) => {
                state.failures = state.failures.saturating_add(1);
                state.failed_at = Some(Instant::now());
                tracing::debug!(peer = %self.node, class = ?self.class, address = %self.address, reason, "dialling failed");
            }
        }
        drop(state);
        let _ = done.send(Some(result));
    }

    async fn handshake(&self, shared: &Shared) -> Result<Connection, DialError> {
        let congestion = self.congestion(shared);
        let connection = self.attempt(shared, congestion).await?;
        shared.path(self.node).note_rtt(connection.rtt());
        // The first connection measures the path; if it chose wrongly, the next one is made at once.
        let better = self.congestion(shared);
        if better == congestion {
            return Ok(connection);
        }
        connection.close(VarInt::from_u32(0), b"other congestion control");
        self.attempt(shared, better).await
    }

    fn congestion(&self, shared: &Shared) -> Congestion {
        let far = shared.path(self.node).rtt().is_some_and(|rtt| rtt > WAN_RTT);
        match self.class {
            Class::Pull if far => Congestion::Bbr,
            Class::Bulk => Congestion::Yielding,
            _ => Congestion::Cubic,
        }
    }

    async fn attempt(&self, shared: &Shared, congestion: Congestion) -> Result<Connection, DialError> {
        if let Some(look) = shared.before_handshake.get() {
            look();
        }
        let name = pki::server_name(shared.identity.cluster(), self.node);
        let config = shared.client_config(congestion, &shared.path(self.node));
        let connecting =
            shared.endpoint.connect_with(config, self.address, &name).map_err(|error| error.to_string())?;
        match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(format!("no answer from {} within {} s", self.address, DIAL_TIMEOUT.as_secs()).into()),
        }
    }

    /// The peer was heard from: there is no reason to wait before the next dial.
    pub(super) fn heard_of(&self) {
        let mut state = self.state();
        state.failures = 0;
        state.failed_at = None;
    }

    /// Stops dialling and takes no more calls; returns the connection, which is closed when the calls over it have ended.
    fn retire(&self) -> Weak<Held> {
        let mut state = self.state();
        state.removed = true;
        if let Some((_, task)) = state.dialling.take() {
            task.abort();
        }
        state.connection.take().map_or_else(Weak::new, |connection| Arc::downgrade(&connection))
    }
}

/// Follows a connection to its end: closes it when the other end is silent, and notes what that said at the end.
async fn watch_over(shared: Arc<Shared>, node: NodeId, connection: Connection) {
    super::close_when_silent(connection.clone()).await;
    if let Some(end) = connection.close_reason() {
        shared.note_end(node, &end);
    }
}

/// How long to wait before the next dial.
fn backoff(failures: u32, failed_at: Option<Instant>) -> Duration {
    let Some(failed_at) = failed_at.filter(|_| failures > 0) else {
        return Duration::ZERO;
    };
    let pause = BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(10)).min(BACKOFF_MAX);
    pause.saturating_sub(failed_at.elapsed())
}
