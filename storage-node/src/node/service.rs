//! The node's answering end: sorts frames by service to consensus, volumes and admission.
//!
//! The transport needs its service before the parts behind it exist (they need the transport to start), so
//! each part is put in its place once; until then its frames are answered with "not ready".

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use client_lib::transport::{BoxFuture, Class, Service, Transport, TransportError};
use client_lib::wire::frame::{Frame, FrameError, ServiceId, decode_head, encode_head};
use client_lib::wire::join::{JoinReply, JoinRequest};
use client_lib::{Error, ErrorKind, GroupId, NodeId};
use consensus::{MetaRaft, RaftCalls};

use super::admission::Admission;
use crate::peer::message::{Message, PeerReply};
use crate::peer::server::{PeerServer, encode_reply};

/// What the transport of a node answers with.
#[derive(Default)]
pub struct NodeService {
    meta: OnceLock<MetaRaft>,
    peers: OnceLock<PeerServer>,
    admission: OnceLock<Admission>,
}

impl NodeService {
    /// Consensus is ready to be asked.
    pub fn set_meta(&self, meta: MetaRaft) {
        assert!(self.meta.set(meta).is_ok(), "consensus is set once");
    }

    /// The volumes are ready to be asked.
    pub fn set_peers(&self, peers: PeerServer) {
        assert!(self.peers.set(peers).is_ok(), "the peer server is set once");
    }

    /// Nodes may join.
    pub fn set_admission(&self, admission: Admission) {
        assert!(self.admission.set(admission).is_ok(), "admission is set once");
    }

    async fn answer(&self, peer: Option<NodeId>, request: Bytes) -> Bytes {
        let frame = match Frame::decode(&request) {
            Ok(frame) => frame,
            Err(error) => {
                return refusal(Error::new(ErrorKind::Corrupt, "the frame cannot be read").caused_by(error));
            }
        };
        match (frame.service, peer) {
            (ServiceId::Raft, Some(_)) => match self.meta.get() {
                Some(meta) => {
                    let reply = raft_frame(meta.serve(frame.payload).await).encode();
                    reply.unwrap_or_else(|error| {
                        refusal(
                            Error::new(ErrorKind::Internal, "an answer of consensus cannot be sent").caused_by(error),
                        )
                    })
                }
                None => refusal(not_ready()),
            },
            (ServiceId::Peer, Some(peer)) => match self.peers.get() {
                Some(peers) => peers.serve(peer, frame).await,
                None => refusal(not_ready()),
            },
            (ServiceId::Join, _) => {
                let reply = match (self.admission.get(), decode_head::<JoinRequest>(&frame.head)) {
                    (Some(admission), Ok(request)) => admission.answer(request).await,
                    (None, _) => Err(not_ready()),
                    (_, Err(error)) => {
                        Err(Error::new(ErrorKind::InvalidRequest, "the request cannot be read").caused_by(error))
                    }
                };
                join_frame(&reply).unwrap_or_else(|error| {
                    refusal(Error::new(ErrorKind::Internal, "the answer cannot be sent").caused_by(error))
                })
            }
            (service, peer) => refusal(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "service {service:?} is not offered to {}",
                    peer.map_or("a caller without certificate".into(), |id| format!("node {id}"))
                ),
            )),
        }
    }
}

fn not_ready() -> Error {
    Error::new(ErrorKind::Unavailable, "the node is still starting")
}

fn refusal(error: Error) -> Bytes {
    encode_reply(Message { head: PeerReply::Failed(error), payload: Bytes::new() })
}

fn raft_frame(payload: Bytes) -> Frame {
    Frame { service: ServiceId::Raft, group: GroupId::META, head: Bytes::new(), payload }
}

fn join_frame(reply: &JoinReply) -> Result<Bytes, FrameError> {
    let head = encode_head(reply)?;
    Frame { service: ServiceId::Join, group: GroupId::META, head, payload: Bytes::new() }.encode()
}

impl Service for NodeService {
    fn serve(&self, peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(self.answer(peer, request))
    }
}

/// Consensus's calls, as frames over the node's transport.
#[derive(Clone, Debug)]
pub struct RaftTransport(pub Arc<dyn Transport>);

impl RaftCalls for RaftTransport {
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: std::time::Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let size = request.len();
            let frame = raft_frame(request).encode().map_err(|_| TransportError::TooLarge(size))?;
            let reply = self.0.call(to, Class::Control, frame, deadline).await?;
            match Frame::decode(&reply) {
                Ok(Frame { service: ServiceId::Raft, payload, .. }) => Ok(payload),
                // A peer that is still starting answers in another service's name: as good as not there.
                Ok(_) => {
                    Err(TransportError::Unreachable { node: to, reason: "its consensus is not running yet".into() })
                }
                Err(error) => Err(TransportError::OutcomeUnknown { node: to, reason: error.to_string() }),
            }
        })
    }
}
