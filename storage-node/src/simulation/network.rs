//! The network between machines: a queue of messages with the time at which each arrives.
//!
//! Everything about a link is set per direction. A request or a reply is lost, late or in time; later ones overtake earlier
//! ones. Nothing is delivered twice: that the transport does not do so is in its contract, and QUIC's part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::random::Sequence;
use client_lib::transport::{BoxFuture, Class, FRAME_SIZE_MAX, Transport, TransportError};
use tokio::sync::oneshot;

use super::machine::LocalTime;

/// The least that a message is under way: no window of the simulation is longer.
pub(super) const DELAY_MIN: Duration = Duration::from_millis(5);

/// One direction between two machines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) delay: Duration,
    /// Added to the delay, drawn for each message.
    pub(super) jitter: Duration,
    pub(super) is_cut: bool,
    /// Messages that are lost, of a thousand.
    pub(super) lost: u64,
    /// Messages that are seconds late, of a thousand.
    pub(super) late: u64,
}

impl Default for Link {
    fn default() -> Link {
        Link { delay: DELAY_MIN, jitter: Duration::ZERO, is_cut: false, lost: 0, late: 0 }
    }
}

/// What is said.
#[derive(Debug)]
pub(super) enum Body {
    Request {
        class: Class,
        bytes: Bytes,
    },
    Reply(Bytes),
    /// Nobody listens there.
    Refused,
}

/// Something under way.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// The life of the process that called.
    pub(super) life: u64,
    /// The life of the process at the other end when it was sent; 0 when there was none. A connection does not outlive
    /// either.
    pub(super) heard_by: u64,
    pub(super) call: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
struct State {
    draw: Sequence,
    links: BTreeMap<(NodeId, NodeId), Link>,
    lives: BTreeMap<NodeId, u64>,
    under_way: BTreeMap<(Duration, u64), Message>,
    sent: u64,
    /// A digest of everything sent, in order.
    digest: u32,
}

/// The network that all machines are on. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Network(Arc<Mutex<State>>);

impl Network {
    pub(super) fn new(seed: u64) -> Network {
        let draw = Sequence::new(seed);
        let state = State {
            draw,
            links: BTreeMap::new(),
            lives: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            digest: 0,
        };
        Network(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one direction.
    pub(super) fn change(&self, from: NodeId, to: NodeId, change: impl FnOnce(&mut Link)) {
        change(self.state().links.entry((from, to)).or_default());
    }

    /// A process of `node` lives from now on, or (0) none.
    pub(super) fn set_life(&self, node: NodeId, life: u64) {
        self.state().lives.insert(node, life);
    }

    fn link(&self, from: NodeId, to: NodeId) -> Link {
        self.state().links.get(&(from, to)).copied().unwrap_or_default()
    }

    /// What everything that was sent so far comes to, and how much it was.
    pub(super) fn digest(&self) -> (u64, u32) {
        let state = self.state();
        (state.sent, state.digest)
    }

    /// Sends at `now`; whether it will arrive.
    pub(super) fn send(&self, now: Duration, mut message: Message) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        message.heard_by = state.lives.get(&message.to).copied().unwrap_or_default();
        let link = state.links.get(&(message.from, message.to)).copied().unwrap_or_default();
        state.sent += 1;
        let (kind, length) = match &message.body {
            Body::Request { bytes, .. } => (1, bytes.len()),
            Body::Reply(bytes) => (2, bytes.len()),
            Body::Refused => (3, 0),
        };
        let facts = [now.as_micros() as u64, message.from.0, message.to.0, message.call, kind, length as u64];
        for fact in facts {
            let mut hasher = crc32fast::Hasher::new_with_initial(state.digest);
            hasher.update(&fact.to_le_bytes());
            state.digest = hasher.finalize();
        }
        if link.is_cut || state.draw.happens(link.lost) {
            return false;
        }
        let jitter = Duration::from_micros(state.draw.below(link.jitter.as_micros() as u64 + 1));
        let late = match state.draw.happens(link.late) {
            true => Duration::from_millis(state.draw.below(20_000)),
            false => Duration::ZERO,
        };
        let arrives = now + link.delay.max(DELAY_MIN) + jitter + late;
        state.under_way.insert((arrives, state.sent), message);
        true
    }

    /// What arrives before `end` at `node`, in the order of its arrival.
    pub(super) fn arrivals(&self, node: NodeId, end: Duration) -> Vec<(Duration, Message)> {
        let mut state = self.state();
        let due = state.under_way.range(..(end, 0)).filter(|(_, message)| message.to == node);
        let keys: Vec<(Duration, u64)> = due.map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| Some((key.0, state.under_way.remove(&key)?))).collect()
    }

    fn drawn(&self, per_mille: u64) -> bool {
        self.state().draw.happens(per_mille)
    }
}

type Answer = Result<Bytes, TransportError>;

/// The end of the network that a process has.
pub(super) struct SimTransport {
    node: NodeId,
    life: u64,
    network: Network,
    time: LocalTime,
    peers: Mutex<BTreeSet<NodeId>>,
    calls: Mutex<(u64, BTreeMap<u64, oneshot::Sender<Answer>>)>,
}

impl std::fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimTransport").field("node", &self.node).field("life", &self.life).finish_non_exhaustive()
    }
}

impl SimTransport {
    pub(super) fn new(node: NodeId, life: u64, network: Network, time: LocalTime) -> SimTransport {
        SimTransport { node, life, network, time, peers: Mutex::default(), calls: Mutex::default() }
    }

    /// The answer to a call of this process has arrived.
    pub(super) fn answered(&self, message: Message) {
        if message.life != self.life {
            return;
        }
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = calls.1.remove(&message.call) else { return };
        let answer = match message.body {
            Body::Reply(bytes) => Ok(bytes),
            _ => Err(TransportError::Unreachable { node: message.from, reason: "nobody listens".into() }),
        };
        // Whoever stopped waiting does not need it.
        let _ = waiting.send(answer);
    }
}

impl Transport for SimTransport {
    fn call(&self, node: NodeId, class: Class, request: Bytes, deadline: Duration) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            if request.len() > FRAME_SIZE_MAX {
                return Err(TransportError::TooLarge(request.len()));
            }
            if !self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&node) {
                return Err(TransportError::UnknownPeer(node));
            }
            let (sender, answer) = oneshot::channel();
            let call = {
                let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
                calls.0 += 1;
                let call = calls.0;
                calls.1.insert(call, sender);
                call
            };
            let body = Body::Request { class, bytes: request };
            let message = Message { from: self.node, to: node, life: self.life, heard_by: 0, call, body };
            let is_sent = self.network.send(self.time.now(), message);
            let answered = tokio::time::timeout(deadline, answer).await;
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&call);
            match answered {
                Ok(Ok(answer)) => answer,
                // A transport may know that nothing was delivered, but need not.
                _ if !is_sent && self.network.drawn(500) => {
                    Err(TransportError::Unreachable { node, reason: "the link is down".into() })
                }
                _ => Err(TransportError::OutcomeUnknown { node, reason: "the deadline passed".into() }),
            }
        })
    }

    fn set_peer(&self, node: NodeId, _address: SocketAddr) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    fn remove_peer(&self, node: NodeId) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    fn rtt(&self, node: NodeId) -> Option<Duration> {
        let knows = self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&node);
        knows.then(|| self.network.link(self.node, node).delay + self.network.link(node, self.node).delay)
    }
}
