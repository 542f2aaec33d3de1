//! Typed calls to other nodes, over the transport.
//!
//! Owns encoding, deadlines and the mapping of failures; routing and retries are the callers'. A reply of a
//! kind that the request cannot have is the peer's fault and comes as `Internal`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::{Class, Transport, TransportError};
use client_lib::wire::frame::Frame;
use client_lib::{Error, ErrorKind, NodeId};

use super::links::Links;
use super::message::{Message, PeerReply, PeerRequest};

/// How long a call may take before its outcome counts as unknown. Well above any round trip and transfer of a
/// frame, so that a slow link is not taken for a broken one.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Why a peer call gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The network failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The answer could not be read.
    #[error(transparent)]
    Reply(Error),
}

impl PeerError {
    /// Whether the request certainly was not carried out.
    #[must_use]
    pub fn not_delivered(&self) -> bool {
        match self {
            PeerError::Transport(TransportError::OutcomeUnknown { .. } | TransportError::Closed)
            | PeerError::Reply(_) => false,
            PeerError::Transport(_) => true,
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Error {
        match error {
            PeerError::Transport(error) => Error::new(ErrorKind::Unavailable, error.to_string()),
            PeerError::Reply(error) => error,
        }
    }
}

/// Calls other nodes.
#[derive(Clone, Debug)]
pub struct PeerClient {
    transport: Arc<dyn Transport>,
    links: Arc<Links>,
}

impl PeerClient {
    /// A client over `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> PeerClient {
        PeerClient { transport, links: Arc::default() }
    }

    /// What is known of the links to the other nodes.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The network below.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Asks `node` and returns its answer, whatever it says.
    ///
    /// # Errors
    /// When no readable answer came; see [`PeerError::not_delivered`].
    ///
    /// # Cancel safety
    /// As [`Transport::call`].
    pub async fn ask(
        &self,
        node: NodeId,
        class: Class,
        head: PeerRequest,
        payload: Bytes,
    ) -> Result<Message<PeerReply>, PeerError> {
        let request = Message { head, payload }.encode().map_err(PeerError::Reply)?;
        let reply = self.transport.call(node, class, request, CALL_DEADLINE).await?;
        let frame = Frame::decode(&reply).map_err(|error| {
            PeerError::Reply(
                Error::new(ErrorKind::Corrupt, format!("node {node} sent a frame that cannot be read"))
                    .caused_by(error),
            )
        })?;
        Message::decode(frame).map_err(PeerError::Reply)
    }
}

/// The error for a reply that does not belong to its request.
#[must_use]
pub fn unexpected(node: NodeId, reply: &PeerReply) -> Error {
    match reply {
        PeerReply::Failed(error) => Error::new(error.kind(), format!("node {node}: {error}")),
        PeerReply::NotOwner(epoch) => {
            Error::new(ErrorKind::NotOwner, format!("node {node} does not own the volume (it knows epoch {epoch})"))
        }
        PeerReply::Left(tail) => tail.refusal(node),
        PeerReply::Superseded(epoch) => Error::new(
            ErrorKind::Fenced,
            format!("node {node} refused: a newer writer or epoch ({epoch}) has taken over"),
        ),
        other => Error::new(ErrorKind::Internal, format!("node {node} answered out of turn: {other:?}")),
    }
}
