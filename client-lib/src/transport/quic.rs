//! The transport over QUIC; the only module that uses quinn.
//!
//! Each (peer, class) has a connection of its own, so that bulk data never delays a heartbeat: separate congestion
//! windows, separate flow control. A call is one bidirectional stream. Connections are mutually authenticated; the
//! caller's id that a service sees is the one in the certificate. A caller without a certificate gets in under hard
//! limits, for joining. Does not retry a request that may have been delivered.

mod exchange;
mod hold;
mod path;
mod peer;
mod tls;
mod yielding;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, Incoming, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::exchange::{Budgets, CallError, Caller};
use self::hold::{Carrier, Hold};
use self::path::Path;
use self::peer::{DialError, Entry, Peer};
use self::tls::Congestion;
use self::yielding::Yielding;
use super::answers::Answers;
use super::{BoxFuture, Class, FRAME_SIZE_MAX, Service, Transport, TransportError};
use crate::clock::{Clock, SystemClock};
use crate::pki::{self, CertificateHolder, ClientIdentity, Credentials, Fingerprint, NodeIdentity, Validity};
use crate::types::NodeId;
use crate::watch;

/// Asked of the kernel for each direction; less means losses under bursts, and a warning.
const SOCKET_BUFFER: usize = 8 << 20;
const SOCKET_BUFFER_ENOUGH: usize = 4 << 20;
/// Request bytes that one connection may have in memory at a time; further requests wait unread.
const REQUEST_BUDGET: usize = 2 * FRAME_SIZE_MAX;
/// Connections accepted at a time; more are refused.
const CONNECTIONS_MAX: usize = 1024;
/// Connections of callers without a certificate at a time; more are refused.
const UNAUTHENTICATED_MAX: usize = 8;
/// Connections of clients at a time; more are refused, so that nodes always get in.
const CLIENT_CONNECTIONS_MAX: usize = CONNECTIONS_MAX / 2;
/// The largest request of a caller without a certificate, in bytes.
const UNAUTHENTICATED_REQUEST_MAX: usize = 64 << 10;
/// How long a caller without a certificate may stay.
const UNAUTHENTICATED_LIFETIME: Duration = Duration::from_secs(30);
/// How long a handshake that someone else started may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection whose packets go unanswered for this long plus some round trips is given up: a living peer would
/// have acknowledged within one. The idle timeout would take much longer.
const SILENCE_MAX: Duration = Duration::from_secs(3);
const SILENCE_RTTS: u32 = 4;
const SILENCE_TICK: Duration = Duration::from_millis(500);
/// How long [`QuicTransport::close`] waits for calls being answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether the certificate of a client that is served has ended, at least: the calendar may be set.
const END_LOOK: Duration = Duration::from_secs(30);

/// Why a transport cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket cannot be used.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// Certificates or settings do not fit.
    #[error("transport set-up: {0}")]
    Config(String),
}

impl StartError {
    fn config(error: impl fmt::Display) -> StartError {
        StartError::Config(error.to_string())
    }
}

/// What a transport needs to start.
#[derive(Debug)]
pub struct QuicOptions {
    /// A bound socket; its buffers are set here.
    pub socket: UdpSocket,
    /// Who this node is and whom it trusts.
    pub identity: NodeIdentity,
}

pub(crate) struct Shared {
    /// Where connections live: not on the runtime of whoever called first.
    runtime: tokio::runtime::Handle,
    endpoint: Endpoint,
    identity: Credentials,
    crypto: Arc<quinn::crypto::rustls::QuicClientConfig>,
    /// For congestion control.
    paths: Mutex<HashMap<NodeId, Arc<Path>>>,
    hold: Arc<Hold>,
    /// Who was the first to say that this end's certificate was taken back.
    revoked_by: watch::Sender<Option<NodeId>>,
    /// Called before each handshake: the certificate may have been replaced where it came from.
    before_handshake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    fn paths(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Path>>> {
        self.paths.lock().expect("no code panics while holding the table")
    }

    fn path(&self, node: NodeId) -> Arc<Path> {
        self.paths().entry(node).or_default().clone()
    }

    /// `node` has ended a connection with this error.
    fn note_end(&self, node: NodeId, error: &quinn::ConnectionError) {
        if tls::is_revocation(error, false) {
            self.revoked_by.send_if_modified(|by| by.is_none() && by.replace(node).is_none());
        }
    }

    /// Why `node` does not accept this end, or this end that.
    fn refusal(&self, node: NodeId, reason: String) -> TransportError {
        let validity = self.identity.validity();
        match validity.has_ended(SystemClock::new().unix_ms()) {
            true => TransportError::Ended { node, until_ms: validity.until_ms },
            false => TransportError::Refused { node, reason },
        }
    }

    fn client_config(&self, congestion: Congestion, path: &Arc<Path>) -> quinn::ClientConfig {
        let mut config = quinn::ClientConfig::new(self.crypto.clone());
        config.transport_config(tls::transport_config(congestion, Some(path), &self.hold));
        config
    }
}

/// A connection that was accepted, and whose it is.
struct Accepted {
    holder: CertificateHolder,
    certificate: Fingerprint,
    connection: Connection,
}

/// Node-to-node calls over QUIC. Made by [`QuicTransport::start`]; ends with [`QuicTransport::close`].
pub struct QuicTransport {
    /// For people.
    who: String,
    shared: Arc<Shared>,
    /// `None` at a client, which nobody calls.
    service: Option<Arc<dyn Service>>,
    peers: Mutex<HashMap<NodeId, Entry>>,
    /// Accepted connections, by quinn's id, so that a removed peer, and whose certificate is taken back, loses them too.
    accepted: Mutex<HashMap<usize, Accepted>>,
    unauthenticated: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport").field("who", &self.who).finish_non_exhaustive()
    }
}

impl QuicTransport {
    /// Starts to listen on the socket and to answer calls with `service`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] when the socket or the identity cannot be used.
    pub fn start(options: QuicOptions, service: Arc<dyn Service>) -> Result<Arc<QuicTransport>, StartError> {
        let QuicOptions { socket, identity } = options;
        let (who, seed) = (format!("node {}", identity.node()), identity.seed());
        let transport = QuicTransport::make(who, socket, identity.credentials(), &seed, Some(service))?;
        transport.tasks.spawn(transport.clone().accept());
        Ok(transport)
    }

    /// A client's end, which calls and is not called; the nodes that the identity knows are set as peers. Needs a tokio runtime,
    /// on which the connections live.
    ///
    /// # Errors
    /// [`StartError`] when the socket or the identity cannot be used.
    pub fn client(socket: UdpSocket, identity: &ClientIdentity) -> Result<Arc<QuicTransport>, StartError> {
        let who = format!("client {}", identity.name());
        // Nobody has a connection to it that it did not make itself.
        let seed = identity.fingerprint().to_string();
        let transport = QuicTransport::make(who, socket, identity.credentials(), &seed.as_bytes()[..32], None)?;
        identity.nodes().iter().for_each(|node| transport.set_peer(node.id, node.address));
        Ok(transport)
    }

    fn make(
        who: String,
        socket: UdpSocket,
        identity: Credentials,
        seed: &[u8],
        service: Option<Arc<dyn Service>>,
    ) -> Result<Arc<QuicTransport>, StartError> {
        enlarge_buffers(&socket)?;
        let hold = Arc::<Hold>::default();
        let server = service.is_some().then(|| tls::server_config(&identity, &hold)).transpose()?;
        let endpoint = Endpoint::new(tls::endpoint_config(seed)?, server, socket, Arc::new(TokioRuntime))?;
        let crypto = tls::client_crypto(&identity)?;
        Ok(Arc::new(QuicTransport {
            who,
            shared: Arc::new(Shared {
                runtime: tokio::runtime::Handle::current(),
                endpoint,
                identity,
                crypto,
                paths: Mutex::default(),
                hold,
                revoked_by: watch::Sender::new(None),
                before_handshake: OnceLock::new(),
            }),
            service,
            peers: Mutex::default(),
            accepted: Mutex::default(),
            unauthenticated: Arc::new(Semaphore::new(UNAUTHENTICATED_MAX)),
            clients: Arc::new(Semaphore::new(CLIENT_CONNECTIONS_MAX)),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Has this called before each handshake that this end begins: it may replace the certificate of the identity. It must not wait for long. The
    /// first call counts.
    pub fn before_handshakes(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.before_handshake.set(Box::new(look));
    }

    /// The address the socket is bound to.
    ///
    /// # Errors
    /// As the system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Takes no more calls, lets those being answered finish for a short while, closes every connection and frees
    /// the socket. Idempotent.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await;
        self.peers().drain().for_each(|(_, entry)| entry.remove());
        self.shared.endpoint.close(VarInt::from_u32(0), b"closed");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.shared.endpoint.wait_idle()).await;
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Entry>> {
        self.peers.lock().expect("no code panics while holding the peers")
    }

    /// Waits until a node says that this end's certificate was taken back; which one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn revoked(&self) -> NodeId {
        let mut revoked_by = self.shared.revoked_by.subscribe();
        loop {
            let by = *revoked_by.borrow_and_update();
            if let Some(by) = by {
                return by;
            }
            if revoked_by.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn accepted(&self) -> MutexGuard<'_, HashMap<usize, Accepted>> {
        self.accepted.lock().expect("no code panics while holding the connections")
    }

    fn peer(&self, node: NodeId, class: Class) -> Option<Arc<Peer>> {
        self.peers().get(&node).map(|entry| entry.classes[class.carrier() as usize].clone())
    }

    async fn accept(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                () = self.closing.cancelled() => return,
                incoming = self.shared.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            if self.shared.endpoint.open_connections() > CONNECTIONS_MAX {
                incoming.refuse();
                continue;
            }
            self.tasks.spawn(self.clone().accepted_connection(incoming));
        }
    }

    async fn accepted_connection(self: Arc<Self>, incoming: Incoming) {
        let address = incoming.remote_address();
        let connection = match Self::accept_one(incoming).await {
            Ok(connection) => connection,
            Err(reason) => {
                tracing::debug!(%address, reason, "a connection was not accepted");
                return;
            }
        };
        match self.identify(&connection) {
            Ok(Some((holder, certificate, validity))) => {
                let accepted = Accepted { holder: holder.clone(), certificate, connection: connection.clone() };
                // Listed before it is asked: whoever changes the answer after that looks at the list.
                self.accepted().insert(connection.stable_id(), accepted);
                if self.admits(&holder, &certificate) {
                    tls::let_in(&connection);
                    self.serve_holder(&connection, address, holder, validity).await;
                } else {
                    tracing::warn!(%address, ?holder, %certificate, "a revoked certificate was refused");
                    connection.close(tls::CODE_CERTIFICATE, tls::CERTIFICATE_REVOKED);
                }
                self.accepted().remove(&connection.stable_id());
            }
            Ok(None) => {
                let Ok(_place) = self.unauthenticated.clone().try_acquire_owned() else {
                    connection.close(VarInt::from_u32(1), b"too many callers without a certificate");
                    return;
                };
                let serving = self.serve(&connection, Caller::Nobody, UNAUTHENTICATED_REQUEST_MAX);
                let _ = tokio::time::timeout(UNAUTHENTICATED_LIFETIME, serving).await;
                connection.close(VarInt::from_u32(0), b"done");
            }
            Err(reason) => {
                tracing::warn!(%address, reason, "a caller's certificate was refused");
                connection.close(tls::CODE_CERTIFICATE, tls::CERTIFICATE_REFUSED);
            }
        }
    }

    /// A client's connection ends with its certificate; that of a node goes on, with which it was made.
    async fn serve_holder(
        &self,
        connection: &Connection,
        address: SocketAddr,
        holder: CertificateHolder,
        validity: Validity,
    ) {
        match holder {
            CertificateHolder::Node(node) => {
                if let Some(entry) = self.peers().get(&node) {
                    entry.classes.iter().for_each(|peer| peer.heard_of());
                }
                self.serve(connection, Caller::Node(node), FRAME_SIZE_MAX).await;
            }
            CertificateHolder::Client(name) => {
                let Ok(_place) = self.clients.clone().try_acquire_owned() else {
                    tracing::warn!(%address, client = %name, "a client was refused: too many");
                    connection.close(VarInt::from_u32(1), b"too many clients");
                    return;
                };
                tokio::select! {
                    () = self.serve(connection, Caller::Client(name.clone()), FRAME_SIZE_MAX) => {}
                    () = end_of(validity) => {
                        tracing::warn!(%address, client = %name, "a connection was ended: its certificate has ended");
                        connection.close(tls::CODE_TAKEN_BACK, tls::CERTIFICATE_ENDED);
                    }
                }
            }
        }
    }

    fn admits(&self, holder: &CertificateHolder, certificate: &Fingerprint) -> bool {
        self.service.as_ref().is_none_or(|service| service.admits(holder, certificate))
    }

    async fn accept_one(incoming: Incoming) -> Result<Connection, String> {
        let connecting = incoming.accept().map_err(|error| error.to_string())?;
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connection) => connection.map_err(|error| error.to_string()),
            Err(_) => Err("the handshake took too long".to_owned()),
        }
    }

    fn identify(&self, connection: &Connection) -> Result<Option<(CertificateHolder, Fingerprint, Validity)>, String> {
        let Some(identity) = connection.peer_identity() else {
            return Ok(None);
        };
        let chain =
            identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "no certificate chain".to_owned())?;
        let certificate = chain.first().ok_or("an empty certificate chain")?;
        let holder = pki::certificate_holder(certificate, self.shared.identity.cluster());
        let holder = holder.map_err(|error| error.to_string())?;
        let validity = Validity::of(certificate).map_err(|error| error.to_string())?;
        Ok(Some((holder, Fingerprint::of(certificate), validity)))
    }

    /// Answers calls until the connection or the transport closes. Their number is bounded by QUIC's stream limit.
    async fn serve(&self, connection: &Connection, caller: Caller, request_size_max: usize) {
        let Some(service) = &self.service else { return };
        let budgets = Budgets { requests: Arc::new(Semaphore::new(REQUEST_BUDGET)), answers: Answers::new() };
        let carrier = carrier(connection);
        if let (Some(carrier), Caller::Node(node)) = (&carrier, &caller) {
            carrier.leads_along(&self.shared.path(*node));
        }
        loop {
            let accepted = tokio::select! {
                () = self.closing.cancelled() => return,
                accepted = connection.accept_bi() => accepted,
            };
            let Ok((send, receive)) = accepted else {
                return;
            };
            let call = exchange::Incoming { send, receive, caller: caller.clone(), carrier: carrier.clone() };
            self.tasks.spawn(exchange::serve(call, request_size_max, budgets.clone(), service.clone()));
        }
    }

    async fn exchange(
        &self,
        node: NodeId,
        class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        if self.closing.is_cancelled() {
            return Err(TransportError::Closed);
        }
        if request.len() > FRAME_SIZE_MAX {
            return Err(TransportError::TooLarge(request.len()));
        }
        let peer = self.peer(node, class).ok_or(TransportError::UnknownPeer(node))?;
        let end = tokio::time::Instant::now() + deadline;
        let unreachable = |reason: String| TransportError::Unreachable { node, reason };
        let connection = match tokio::time::timeout_at(end, peer.connect(&self.shared)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(DialError { reason, is_refusal: true })) => return Err(self.shared.refusal(node, reason)),
            Ok(Err(DialError { reason, .. })) => return Err(unreachable(reason)),
            Err(_) => {
                return Err(unreachable("the deadline passed while connecting".to_owned()));
            }
        };
        let outcome = tokio::select! {
            outcome = exchange::call(&connection, class, request) => outcome,
            () = tokio::time::sleep_until(end) => Err(CallError::Sent("the deadline passed".to_owned())),
        };
        // In TLS 1.3 the dialling end has finished before its own certificate was looked at (RFC 8446 §2): it hears of that when it
        // calls already, and nothing that it said was listened to.
        outcome.map_err(|error| {
            let end = connection.close_reason();
            if let Some(end) = &end {
                self.shared.note_end(node, end);
            }
            match (error, end) {
                (_, Some(end)) if tls::is_revocation(&end, true) => TransportError::Revoked { node },
                (_, Some(end)) if tls::is_refusal(&end) => self.shared.refusal(node, end.to_string()),
                (CallError::NotSent(_), Some(end)) if tls::is_end(&end) => {
                    unreachable(OWN_CERTIFICATE_ENDED.to_owned())
                }
                (CallError::NotSent(reason), _) => unreachable(reason),
                (CallError::Sent(_), Some(end)) if tls::is_end(&end) => {
                    TransportError::OutcomeUnknown { node, reason: OWN_CERTIFICATE_ENDED.to_owned() }
                }
                (CallError::Sent(reason), _) => TransportError::OutcomeUnknown { node, reason },
            }
        })
    }
}

/// Why a connection is gone that was served until then.
const OWN_CERTIFICATE_ENDED: &str = "this end's certificate has ended, and its connections with it";

/// What tells the controller of an accepted connection that it carries bulk.
fn carrier(connection: &Connection) -> Option<Carrier> {
    let controller = connection.congestion_state().into_any().downcast::<Yielding>().ok()?;
    Some(controller.carrier().clone())
}

/// Closes `connection` once what it sends has gone unanswered for [`SILENCE_MAX`] and some round trips. Watches the
/// connection and not a call, so that calls with short deadlines notice a dead peer too.
async fn close_when_silent(connection: Connection) {
    let datagrams = || {
        let stats = connection.stats();
        (stats.udp_rx.datagrams, stats.udp_tx.datagrams)
    };
    let (mut heard, mut sent) = datagrams();
    let mut unanswered_since = None;
    while connection.close_reason().is_none() {
        tokio::time::sleep(SILENCE_TICK).await;
        let (heard_now, sent_now) = datagrams();
        if heard_now != heard {
            (heard, sent, unanswered_since) = (heard_now, sent_now, None);
        } else if sent_now != sent {
            let since: &tokio::time::Instant = unanswered_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() > SILENCE_MAX + connection.rtt() * SILENCE_RTTS {
                connection.close(VarInt::from_u32(0), b"silent");
            }
        }
    }
}

impl Transport for QuicTransport {
    fn call(
        &self,
        node: NodeId,
        class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(self.exchange(node, class, request, deadline))
    }

    fn set_peer(&self, node: NodeId, address: SocketAddr) {
        let mut peers = self.peers();
        if self.closing.is_cancelled() || peers.get(&node).is_some_and(|entry| entry.address == address) {
            return;
        }
        let entry = Entry::new(node, address, peers.remove(&node));
        peers.insert(node, entry);
    }

    fn remove_peer(&self, node: NodeId) {
        if let Some(entry) = self.peers().remove(&node) {
            entry.remove();
        }
        self.shared.paths().remove(&node);
        for accepted in self.accepted().values() {
            if accepted.holder == CertificateHolder::Node(node) && self.admits(&accepted.holder, &accepted.certificate)
            {
                accepted.connection.close(VarInt::from_u32(0), b"removed");
            }
        }
    }

    fn look_again(&self) {
        for Accepted { holder, certificate, connection } in self.accepted().values() {
            if connection.close_reason().is_none() && !self.admits(holder, certificate) {
                tracing::warn!(address = %connection.remote_address(), ?holder, %certificate, "a connection was ended: its certificate was revoked");
                connection.close(tls::CODE_TAKEN_BACK, tls::CERTIFICATE_REVOKED);
            }
        }
    }

    fn connect(&self, node: NodeId, class: Class) {
        let peer = self.peer(node, class).filter(|peer| peer.connected().is_none());
        if let Some(peer) = peer
            && !self.closing.is_cancelled()
        {
            let shared = self.shared.clone();
            // Who calls next is told if it fails.
            self.shared.runtime.spawn(async move { peer.connect(&shared).await.map(drop) });
        }
    }

    fn hold_bulk(&self, duration: Duration) {
        self.shared.hold.hold(std::time::Instant::now(), duration);
    }

    fn rtt(&self, node: NodeId) -> Option<Duration> {
        self.peer(node, Class::Control)?.connected().map(|connection| connection.rtt())
    }
}

/// One call by a node that has no certificate yet, to any node whose cluster's CA has this fingerprint.
///
/// # Errors
/// [`TransportError`]; its node id is 0, since the caller does not know whom it asks.
pub async fn join_call(
    address: SocketAddr,
    ca_fingerprint: &str,
    request: Bytes,
    deadline: Duration,
) -> Result<Bytes, TransportError> {
    let node = NodeId(0);
    let unreachable = |reason: String| TransportError::Unreachable { node, reason };
    if request.len() > UNAUTHENTICATED_REQUEST_MAX {
        return Err(TransportError::TooLarge(request.len()));
    }
    let local: SocketAddr =
        if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint = Endpoint::client(local).map_err(|error| unreachable(error.to_string()))?;
    let mut config =
        quinn::ClientConfig::new(tls::joining_crypto(ca_fingerprint).map_err(|error| unreachable(error.to_string()))?);
    config.transport_config(tls::transport_config(Congestion::Cubic, Some(&Arc::default()), &Arc::default()));
    let end = tokio::time::Instant::now() + deadline;
    let connecting =
        endpoint.connect_with(config, address, "join.helio").map_err(|error| unreachable(error.to_string()))?;
    let connection = match tokio::time::timeout_at(end, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => {
            return Err(unreachable("the deadline passed while connecting".to_owned()));
        }
    };
    let outcome = tokio::time::timeout_at(end, exchange::call(&connection, Class::Control, request)).await;
    connection.close(VarInt::from_u32(0), b"done");
    match outcome {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(CallError::NotSent(reason))) => Err(unreachable(reason)),
        Ok(Err(CallError::Sent(reason))) => Err(TransportError::OutcomeUnknown { node, reason }),
        Err(_) => Err(TransportError::OutcomeUnknown { node, reason: "the deadline passed".to_owned() }),
    }
}

/// Waits until a certificate has ended, by the calendar as TLS goes by it.
async fn end_of(validity: Validity) {
    loop {
        let now_ms = SystemClock::new().unix_ms();
        if validity.has_ended(now_ms) {
            return;
        }
        // Over only when the last second is.
        let left = Duration::from_millis(validity.until_ms.saturating_sub(now_ms) + 1000);
        tokio::time::sleep(left.min(END_LOOK)).await;
    }
}

fn enlarge_buffers(socket: &UdpSocket) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    // The kernel reports twice what it grants (socket(7), SO_RCVBUF).
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    if granted < SOCKET_BUFFER_ENOUGH {
        tracing::warn!(
            granted,
            wanted = SOCKET_BUFFER,
            "small UDP socket buffers lose packets; run: sysctl -w net.core.rmem_max={SOCKET_BUFFER} net.core.wmem_max={SOCKET_BUFFER}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
