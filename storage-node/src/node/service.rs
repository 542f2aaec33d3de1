//! The node's answering end: sorts frames by service to consensus, volumes, clients and admission, and by who asks: a client is
//! offered volumes and nothing else.
//!
//! The transport needs its service before the parts behind it exist (they need the transport to start), so
//! each part is put in its place once; until then its frames are answered with "not ready", but for requests to join and for certificates.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use client_lib::pki::{CertificateHolder, Fingerprint};
use client_lib::transport::{BoxFuture, Class, Residence, Service, Transport, TransportError};
use client_lib::wire::client::{ClientMessage, ClientReply, ClientRequest, REQUEST_HEAD_MAX};
use client_lib::wire::frame::{Frame, FrameError, ServiceId, decode_head, encode_head};
use client_lib::wire::join::{JoinReply, JoinRequest};
use client_lib::{ClientName, Error, ErrorKind, GroupId, NodeId};
use consensus::{MetaRaft, RaftCalls};

use super::admission::Admission;
use crate::peer::message::{Message, PeerReply, PeerRequest};
use crate::peer::server::{PeerServer, encode_reply};
use crate::serve::client::rights::Asker;
use crate::serve::client::{ClientService, answer_bytes_max};

/// What the transport of a node answers with.
#[derive(Default)]
pub struct NodeService {
    meta: OnceLock<MetaRaft>,
    peers: OnceLock<PeerServer>,
    admission: OnceLock<Arc<Admission>>,
    clients: OnceLock<Arc<ClientService>>,
}

/// Who asks, as its certificate says.
#[derive(Clone, Copy, Debug)]
enum Caller<'a> {
    Node(NodeId),
    Client(&'a ClientName),
    /// A program of this machine that may use the socket for clients.
    Local,
    Nobody,
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
    pub fn set_admission(&self, admission: Arc<Admission>) {
        assert!(self.admission.set(admission).is_ok(), "admission is set once");
    }

    /// Clients may use volumes.
    pub fn set_clients(&self, clients: Arc<ClientService>) {
        assert!(self.clients.set(clients).is_ok(), "the clients' service is set once");
    }

    /// The answer, as a future of the size that this request needs: one that could answer any of them has the size of the largest, and is
    /// allocated for every read of a guest.
    fn answer<'a>(&'a self, caller: Caller<'a>, request: &Bytes) -> BoxFuture<'a, Bytes> {
        let frame = match Frame::decode(request) {
            Ok(frame) => frame,
            Err(error) => {
                return at_once(refusal(Error::new(ErrorKind::Corrupt, "the frame cannot be read").caused_by(error)));
            }
        };
        match (frame.service, caller) {
            (ServiceId::Raft, Caller::Node(_)) => Box::pin(self.answer_raft(frame)),
            (ServiceId::Peer, Caller::Node(peer)) => match self.peers.get() {
                Some(peers) => Box::pin(peers.serve(peer, frame)),
                None => Box::pin(self.answer_while_starting(peer, frame)),
            },
            // A node may do what a client may.
            (ServiceId::Client, Caller::Node(_) | Caller::Local) => self.answer_client(frame, Asker::Trusted),
            (ServiceId::Client, Caller::Client(name)) => self.answer_client(frame, Asker::Client(name)),
            (ServiceId::Join, Caller::Node(_) | Caller::Nobody) => Box::pin(self.answer_join(frame)),
            (service, caller) => {
                let caller = match caller {
                    Caller::Nobody => "a caller without certificate".to_owned(),
                    Caller::Node(node) => format!("node {node}"),
                    Caller::Client(name) => format!("client {name}"),
                    Caller::Local => "a client of this machine".to_owned(),
                };
                let text = format!("service {service:?} is not offered to {caller}");
                at_once(refusal(Error::new(ErrorKind::InvalidRequest, text)))
            }
        }
    }

    async fn answer_raft(&self, frame: Frame) -> Bytes {
        let Some(meta) = self.meta.get() else { return refusal(not_ready()) };
        let reply = raft_frame(meta.serve(frame.payload).await).encode();
        reply.unwrap_or_else(|error| {
            refusal(Error::new(ErrorKind::Internal, "an answer of consensus cannot be sent").caused_by(error))
        })
    }

    async fn answer_join(&self, frame: Frame) -> Bytes {
        let reply = match (self.admission.get(), decode_head::<JoinRequest>(&frame.head)) {
            (Some(admission), Ok(request)) => admission.answer(request, frame.payload).await,
            (None, _) => Err(not_ready()),
            (_, Err(error)) => {
                Err(Error::new(ErrorKind::InvalidRequest, "the request cannot be read").caused_by(error))
            }
        };
        join_frame(&reply).unwrap_or_else(|error| {
            refusal(Error::new(ErrorKind::Internal, "the answer cannot be sent").caused_by(error))
        })
    }

    /// A node that waits for a leader may be the one that has the cluster's authority, and the leader's certificate may have ended: the certificates
    /// of those that ask in time are renewed.
    async fn answer_while_starting(&self, peer: NodeId, frame: Frame) -> Bytes {
        let (Some(admission), Ok(PeerRequest::Renew { request_pem })) =
            (self.admission.get(), decode_head(&frame.head))
        else {
            return refusal(not_ready());
        };
        match admission.renew_by_what_is_known(peer, &request_pem).await {
            Ok(certificate_pem) => {
                encode_reply(Message { head: PeerReply::Signed { certificate_pem }, payload: Bytes::new() })
            }
            Err(error) => refusal(error),
        }
    }

    fn answer_client<'a>(&'a self, frame: Frame, asker: Asker<'a>) -> BoxFuture<'a, Bytes> {
        match self.clients.get() {
            Some(clients) => Box::pin(clients.serve(frame, asker)),
            None => at_once(client_refusal(not_ready())),
        }
    }
}

fn at_once(answer: Bytes) -> BoxFuture<'static, Bytes> {
    Box::pin(std::future::ready(answer))
}

fn not_ready() -> Error {
    Error::new(ErrorKind::Unavailable, "the node is still starting")
}

fn refusal(error: Error) -> Bytes {
    encode_reply(Message { head: PeerReply::Failed(error), payload: Bytes::new() })
}

/// A refusal that clients can read.
fn client_refusal(error: Error) -> Bytes {
    let message = ClientMessage { head: ClientReply::Failed(error), payload: Bytes::new() };
    message.encode().expect("an error is far below the limit of a frame")
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
        self.answer(peer.map_or(Caller::Nobody, Caller::Node), &request)
    }

    fn serve_client<'a>(&'a self, client: &'a ClientName, _class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
        self.answer(Caller::Client(client), &request)
    }

    fn serve_local(&self, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        self.answer(Caller::Local, &request)
    }

    fn answer_bytes_max(&self, request: &Bytes) -> usize {
        // Nothing is verified here, and the request of a read is short.
        let head = Frame::peek_head(request, ServiceId::Client).filter(|head| head.len() <= REQUEST_HEAD_MAX);
        let request = head.and_then(|head| decode_head::<ClientRequest>(&head).ok());
        request.map_or(0, |request| answer_bytes_max(&request))
    }

    /// As the metadata says, as soon as there is any: before that nothing is served, and the transport asks again then.
    fn admits(&self, holder: &CertificateHolder, certificate: &Fingerprint) -> bool {
        self.meta.get().is_none_or(|meta| meta.state().access().admits(holder, certificate))
    }

    /// On the thread of the disk that has the first volume in use (docs/decisions/0024): neither requests nor answers wake another one.
    fn home(&self, request: &Bytes) -> Residence {
        let message = Frame::decode(request).ok().and_then(|frame| ClientMessage::<ClientRequest>::decode(frame).ok());
        match message.zip(self.clients.get()) {
            Some((message, clients)) => clients.home(&message.head),
            None => Residence::Undecided,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(service: &NodeService, caller: Option<&ClientName>, asked: ServiceId) -> (ServiceId, String) {
        let request = Frame::new(asked, Bytes::new()).encode().expect("is small");
        let reply = match caller {
            Some(client) => service.serve_client(client, Class::Control, request).await,
            None => service.serve(None, Class::Control, request).await,
        };
        let frame = Frame::decode(&reply).expect("our own");
        let error = match frame.service {
            ServiceId::Client => match ClientMessage::decode(frame.clone()).expect("our own").head {
                ClientReply::Failed(error) => error,
                other => panic!("{other:?}"),
            },
            ServiceId::Join => decode_head::<JoinReply>(&frame.head).expect("our own").expect_err("nobody joins"),
            _ => match Message::decode(frame.clone()).expect("our own").head {
                PeerReply::Failed(error) => error,
                other => panic!("{other:?}"),
            },
        };
        (frame.service, error.to_string())
    }

    #[tokio::test]
    async fn a_client_is_offered_volumes_and_nothing_else() {
        let (service, host) = (NodeService::default(), "host".parse().expect("a name"));
        for asked in [ServiceId::Raft, ServiceId::Peer, ServiceId::Admin, ServiceId::Join] {
            let (_, text) = told(&service, Some(&host), asked).await;
            assert_eq!(text, format!("service {asked:?} is not offered to client host"));
        }
        let (answered, text) = told(&service, Some(&host), ServiceId::Client).await;
        assert_eq!((answered, text.as_str()), (ServiceId::Client, "the node is still starting"));
        for asked in [ServiceId::Raft, ServiceId::Peer, ServiceId::Client] {
            let (_, text) = told(&service, None, asked).await;
            assert!(text.ends_with("is not offered to a caller without certificate"), "{text}");
        }
        assert_eq!(told(&service, None, ServiceId::Join).await.1, "the node is still starting");
    }

    /// Only of its own requests a client's connection had a bound: the answers of reads had none.
    #[test]
    fn of_a_read_it_is_told_how_much_it_may_bring() {
        use client_lib::wire::client::{Target, Tenure};
        use client_lib::{Epoch, VolumeId};

        let (service, volume, tenure) =
            (NodeService::default(), VolumeId(1), Tenure { epoch: Epoch(1), incarnation: 1 });
        let told = |head: ClientRequest| {
            let message = ClientMessage { head, payload: Bytes::from_static(b"anything") };
            service.answer_bytes_max(&message.encode().expect("is small"))
        };
        let read = |length| ClientRequest::Read { target: Target::Live { volume, tenure }, offset: 0, length };
        assert_eq!([1, 4096, u32::MAX].map(|length| told(read(length))), [1, 4096, 32 << 20]);
        assert_eq!(told(ClientRequest::Flush { volume, tenure }), 0);
        assert_eq!(service.answer_bytes_max(&Bytes::from_static(b"noise")), 0);
    }
}
