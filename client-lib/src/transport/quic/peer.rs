//! One peer and class: the shared connection to it, made on demand by one task at a time.
//!
//! The dial outlives the call that started it, so that calls with short deadlines cannot keep a far peer from
//! ever being reached. Failures are followed by a pause that doubles up to [`BACKOFF_MAX`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
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

type Dialled = Option<Result<Connection, DialError>>;

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    dialling: Option<(watch::Receiver<Dialled>, tokio::task::AbortHandle)>,
    failures: u32,
    /// When the last dial failed.
    failed_at: Option<Instant>,
    removed: bool,
}

pub(super) struct Peer {
    node: NodeId,
    class: Class,
    address: SocketAddr,
    state: Mutex<State>,
}

impl Peer {
    pub(super) fn new(node: NodeId, class: Class, address: SocketAddr) -> Arc<Peer> {
        Arc::new(Peer { node, class, address, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while holding the peer")
    }

    /// The live connection, if there is one.
    pub(super) fn connected(&self) -> Option<Connection> {
        self.state().connection.clone().filter(|connection| connection.close_reason().is_none())
    }

    /// A live connection; waits for the dial under way or starts one. Cancel safe.
    pub(super) async fn connect(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<Connection, DialError> {
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
        let result = self.handshake(&shared).await;
        let mut state = self.state();
        state.dialling = None;
        match &result {
            Ok(connection) if state.removed => connection.close(VarInt::from_u32(0), b"removed"),
            Ok(connection) => {
                state.failures = 0;
                tokio::spawn(watch_over(shared.clone(), self.node, connection.clone()));
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

    /// Stops dialling and takes no more calls; closes the connection if told to.
    pub(super) fn remove(&self, close: bool) {
        let mut state = self.state();
        state.removed = true;
        if let Some((_, task)) = state.dialling.take() {
            task.abort();
        }
        if let Some(connection) = state.connection.take()
            && close
        {
            connection.close(VarInt::from_u32(0), b"removed");
        }
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
