//! A network inside the process, for tests and simulation: calls are handed over directly, under per-link delay,
//! partition and loss that the test sets.
//!
//! Runs on tokio's time, so a paused clock makes it exact. Each direction of a link is set on its own. Knows no
//! bandwidth and no packets: what is lost is a whole request or reply, and its caller waits for the deadline.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{BoxFuture, Class, FRAME_SIZE_MAX, Service, Transport, TransportError};
use crate::types::NodeId;

/// What has crossed one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCount {
    /// Requests and replies delivered.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests and replies lost to partition or drops.
    pub lost: u64,
}

#[derive(Clone, Copy, Default)]
struct Link {
    delay: Duration,
    blocked: bool,
    drop_next: u64,
    count: LinkCount,
}

#[derive(Default)]
struct State {
    services: HashMap<NodeId, Arc<dyn Service>>,
    links: HashMap<(NodeId, NodeId), Link>,
}

/// The network that a test's endpoints share. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryNetwork")
    }
}

impl MemoryNetwork {
    /// A network without nodes, delay or loss.
    #[must_use]
    pub fn new() -> MemoryNetwork {
        MemoryNetwork::default()
    }

    /// Puts `node` on the network, answering with `service`; replaces its former endpoint, as a restart does.
    pub fn endpoint(&self, node: NodeId, service: Arc<dyn Service>) -> Arc<MemoryTransport> {
        self.state().services.insert(node, service);
        Arc::new(MemoryTransport { node, network: self.clone(), peers: Mutex::default() })
    }

    /// Takes `node` off the network: calls to it fail as unreachable.
    pub fn stop(&self, node: NodeId) {
        self.state().services.remove(&node);
    }

    /// How long everything from `from` to `to` takes.
    pub fn set_delay(&self, from: NodeId, to: NodeId, delay: Duration) {
        self.state().links.entry((from, to)).or_default().delay = delay;
    }

    /// Whether everything from `from` to `to` is lost. The other direction is set separately.
    pub fn set_blocked(&self, from: NodeId, to: NodeId, blocked: bool) {
        self.state().links.entry((from, to)).or_default().blocked = blocked;
    }

    /// Loses the next `frames` requests or replies from `from` to `to`.
    pub fn drop_next(&self, from: NodeId, to: NodeId, frames: u64) {
        self.state().links.entry((from, to)).or_default().drop_next = frames;
    }

    /// What went from `from` to `to` so far.
    #[must_use]
    pub fn count(&self, from: NodeId, to: NodeId) -> LinkCount {
        self.state().links.get(&(from, to)).map(|link| link.count).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while holding the network")
    }

    /// Sends something of `bytes`: the delay until it arrives, or `None` if it is lost.
    fn pass(&self, from: NodeId, to: NodeId, bytes: usize) -> Option<Duration> {
        let mut state = self.state();
        let link = state.links.entry((from, to)).or_default();
        if link.blocked || link.drop_next > 0 {
            link.drop_next = link.drop_next.saturating_sub(1);
            link.count.lost += 1;
            return None;
        }
        link.count.frames += 1;
        link.count.bytes += bytes as u64;
        Some(link.delay)
    }
}

/// One node's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    node: NodeId,
    network: MemoryNetwork,
    peers: Mutex<HashSet<NodeId>>,
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport").field("node", &self.node).finish_non_exhaustive()
    }
}

impl MemoryTransport {
    fn peers(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.peers.lock().expect("no code panics while holding the peers")
    }

    async fn exchange(&self, to: NodeId, class: Class, request: Bytes, end: Instant) -> Result<Bytes, TransportError> {
        let lost = |reason: &str| TransportError::OutcomeUnknown { node: to, reason: reason.to_owned() };
        let unreachable = |reason: &str| TransportError::Unreachable { node: to, reason: reason.to_owned() };
        let Some(delay) = self.network.pass(self.node, to, request.len()) else {
            tokio::time::sleep_until(end).await;
            return Err(unreachable("the link is down"));
        };
        let (network, from) = (self.network.clone(), self.node);
        // A task of its own: a caller that gives up does not stop what was sent.
        let answer = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let service = network.state().services.get(&to).cloned();
            let Some(service) = service else {
                return Err(true);
            };
            let reply = service.serve(Some(from), class, request).await;
            let Some(delay) = network.pass(to, from, reply.len()) else {
                return Err(false);
            };
            tokio::time::sleep(delay).await;
            Ok(reply)
        });
        match tokio::time::timeout_at(end, answer).await {
            Ok(Ok(Ok(reply))) if reply.len() > FRAME_SIZE_MAX => Err(lost("the reply is over the frame limit")),
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(true))) => Err(unreachable("nobody listens")),
            Ok(Ok(Err(false))) => {
                tokio::time::sleep_until(end).await;
                Err(lost("the reply was lost"))
            }
            Ok(Err(_)) => Err(lost("the service failed")),
            Err(_) => Err(lost("the deadline passed")),
        }
    }
}

impl Transport for MemoryTransport {
    fn call(
        &self,
        node: NodeId,
        class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            if request.len() > FRAME_SIZE_MAX {
                return Err(TransportError::TooLarge(request.len()));
            }
            if !self.peers().contains(&node) {
                return Err(TransportError::UnknownPeer(node));
            }
            self.exchange(node, class, request, Instant::now() + deadline).await
        })
    }

    fn set_peer(&self, node: NodeId, _address: SocketAddr) {
        self.peers().insert(node);
    }

    fn remove_peer(&self, node: NodeId) {
        self.peers().remove(&node);
    }

    fn rtt(&self, node: NodeId) -> Option<Duration> {
        let state = self.network.state();
        let delay = |from, to| state.links.get(&(from, to)).map(|link| link.delay).unwrap_or_default();
        self.peers().contains(&node).then(|| delay(self.node, node) + delay(node, self.node))
    }
}
