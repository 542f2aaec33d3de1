//! The seam to the network: calls between nodes, each a request and a reply.
//!
//! Everything that nodes say to each other is a call of one frame each way, in one of three traffic
//! classes, so that a simulator can replace the network by a queue of messages. Streams, if a transport has
//! them, stay below this seam. Retries, routing and the meaning of frames stay above it.

mod answers;
#[cfg(test)]
mod conformance;
pub mod memory;
pub mod quic;
pub mod unix;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::pki::{CertificateHolder, Fingerprint};
use crate::types::{ClientName, NodeId};

/// A boxed future, as the object-safe seams return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The largest frame that a call may carry in either direction, in bytes. A larger one is refused before
/// it is sent and before it is received, so that a peer cannot make us allocate more.
pub const FRAME_SIZE_MAX: usize = 40 << 20;

/// What a call competes with. Each class but the last has a connection of its own, with its own congestion window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Raft, heartbeats, handover: small and urgent.
    Control,
    /// A guest waits: pulls of stale blocks, reads and writes passed on to the owner.
    Pull,
    /// Background propagation: may wait for all others.
    Bulk,
    /// What somebody is likely to wait for soon: shares the connection of [`Class::Bulk`], which yields to the other two, and goes
    /// before what is there.
    Ahead,
}

impl Class {
    /// The classes that have a connection of their own, most urgent first.
    pub const ALL: [Class; 3] = [Class::Control, Class::Pull, Class::Bulk];

    /// The class on whose connection this one goes.
    #[must_use]
    pub fn carrier(self) -> Class {
        match self {
            Class::Ahead => Class::Bulk,
            own => own,
        }
    }
}

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// No address is known for the node: it is not a member, or membership has not arrived yet.
    UnknownPeer(NodeId),
    /// The node could not be reached; the request was not delivered.
    Unreachable {
        /// The node that was called.
        node: NodeId,
        /// What the network said.
        reason: String,
    },
    /// Who answers is not the node, or does not take this end for one of its cluster: by their certificates. The request was not
    /// delivered. Lasts until somebody changes certificates or addresses.
    Refused {
        /// The node that was called.
        node: NodeId,
        /// What was said of a certificate.
        reason: String,
    },
    /// This end's certificate was taken back, says the node. The request was not delivered. Lasts for good.
    Revoked {
        /// The node that was called.
        node: NodeId,
    },
    /// This end's certificate has ended, and the node does not accept it. The request was not delivered. Lasts until there is another one.
    Ended {
        /// The node that was called.
        node: NodeId,
        /// When it ended, in milliseconds since 1970.
        until_ms: u64,
    },
    /// The connection broke or the deadline passed after the request was sent: it may have been carried out.
    OutcomeUnknown {
        /// The node that was called.
        node: NodeId,
        /// What the network said.
        reason: String,
    },
    /// The frame is larger than [`FRAME_SIZE_MAX`]; nothing was sent.
    TooLarge(usize),
    /// The transport was closed.
    Closed,
}

impl TransportError {
    /// What it says of a node that people call `name`: [`Display`](fmt::Display) knows its number only.
    #[must_use]
    pub fn of(&self, name: &str) -> String {
        match self {
            TransportError::UnknownPeer(_) => format!("no address is known for node {name}"),
            TransportError::Unreachable { reason, .. } => format!("node {name} cannot be reached: {reason}"),
            TransportError::Refused { reason, .. } => format!("node {name} and this end refuse each other: {reason}"),
            TransportError::Revoked { .. } => format!("node {name} says that this end's certificate was revoked"),
            TransportError::Ended { until_ms, .. } => {
                let date = crate::pki::date(*until_ms);
                format!("this end's certificate ended on {date}, says node {name}, too")
            }
            TransportError::OutcomeUnknown { reason, .. } => {
                format!("no reply from node {name}, the outcome is unknown: {reason}")
            }
            TransportError::TooLarge(bytes) => {
                format!("a frame of {bytes} bytes is over the limit of {FRAME_SIZE_MAX}")
            }
            TransportError::Closed => "the transport is closed".to_owned(),
        }
    }

    /// The node that was called; `None` where it is not about one.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self {
            TransportError::UnknownPeer(node)
            | TransportError::Unreachable { node, .. }
            | TransportError::Refused { node, .. }
            | TransportError::Revoked { node }
            | TransportError::Ended { node, .. }
            | TransportError::OutcomeUnknown { node, .. } => Some(*node),
            TransportError::TooLarge(_) | TransportError::Closed => None,
        }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of(&self.node().map(|node| format!("#{node}")).unwrap_or_default()))
    }
}

impl std::error::Error for TransportError {}

/// The calling end: reaches other nodes by id.
///
/// Implementers: quinn (`transport::quic`) and the simulator; one conformance suite runs on both.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Sends `request` to `node` and returns its reply. Connects when needed and shares connections.
    ///
    /// # Errors
    /// As [`TransportError`] says; after `OutcomeUnknown` the request may have been carried out or may still be.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call: the request may have been carried out, the reply is discarded.
    fn call(
        &self,
        node: NodeId,
        class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>>;

    /// Tells where `node` listens; replaces what was known. Calls under way are not disturbed.
    fn set_peer(&self, node: NodeId, address: SocketAddr);

    /// Forgets `node` and closes its connections.
    fn remove_peer(&self, node: NodeId);

    /// The service may admit others than before ([`Service::admits`]): ends the connections of those that it does not. A transport
    /// without certificates does nothing.
    fn look_again(&self) {}

    /// Connects to `node` for calls of `class`, if it is not connected: the first call need not wait for that. Nobody waits for it here. A
    /// transport without connections does nothing.
    fn connect(&self, _node: NodeId, _class: Class) {}

    /// For so long from now on at the most, and not for the time that was asked for before, what goes in [`Class::Bulk`] and
    /// [`Class::Ahead`], requests and replies, is held to a trickle, so that nothing else waits behind it on a slow path. Zero ends that. A
    /// transport whose calls do not share a path does nothing.
    fn hold_bulk(&self, _duration: Duration) {}

    /// The smoothed round-trip time of the control connection to `node`; `None` before the first connection.
    fn rtt(&self, node: NodeId) -> Option<Duration>;
}

/// The answering end, implemented by the node and handed to the transport when it starts.
///
/// Implementers must answer every request (an application error is a reply, not a missing one) and must not
/// block the calling task: requests of one connection run concurrently.
pub trait Service: Send + Sync + 'static {
    /// Answers `request` from `peer`. `None` for a caller without a certificate, who may only ask to join.
    fn serve(&self, peer: Option<NodeId>, class: Class, request: Bytes) -> BoxFuture<'_, Bytes>;

    /// Answers `request` from a client, whose certificate lets it use volumes, as far as it may, and nothing else. Unless told otherwise it is
    /// answered as a caller without a certificate.
    fn serve_client<'a>(&'a self, _client: &'a ClientName, class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
        self.serve(None, class, request)
    }

    /// Answers `request` from a program of this machine, which has shown no certificate, and may use the socket's file. Unless told otherwise
    /// it is answered as a client called `local`, as a certificate may call somebody, too.
    fn serve_local(&self, class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            let local: ClientName = "local".parse().expect("is a name");
            self.serve_client(&local, class, request).await
        })
    }

    /// The most bytes that the answer to a client's `request` may take, but for a few: a transport has room for as many before it has the
    /// request served. More than none only for what changes nothing: a transport may drop that when nobody waits for the answer any more.
    /// Asked once for each; who is asked takes no more time than it takes to see what a request is.
    fn answer_bytes_max(&self, _request: &Bytes) -> usize {
        0
    }

    /// Whether who has this certificate of the cluster is let in. Asked when a connection is made, before anything is served, and again
    /// at [`Transport::look_again`].
    fn admits(&self, _holder: &CertificateHolder, _certificate: &Fingerprint) -> bool {
        true
    }

    /// Where the connection of a client of this machine is best served that begins with `request`; asked until it is decided, while
    /// nothing else of it is under way.
    fn home(&self, _request: &Bytes) -> Residence {
        Residence::Here
    }
}

/// A runtime on which a connection is served.
pub struct Home {
    /// The runtime. When it ends, the connection does.
    pub runtime: tokio::runtime::Handle,
    /// The right to be there; held as long as the connection is.
    pub place: Box<dyn std::any::Any + Send>,
}

/// Where a connection is served.
pub enum Residence {
    /// What it asks tells nothing of that.
    Undecided,
    /// Where it is.
    Here,
    /// There.
    There(Home),
}
