//! The node of tests, which answers as each of them says.

use std::fmt;
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Cluster;
use crate::transport::{BoxFuture, Class, Transport, TransportError};
use crate::types::NodeId;
use crate::wire::client::{ClientMessage, ClientReply, ClientRequest, MemberInfo};
use crate::wire::frame::Frame;

/// What it answers, without data.
pub(super) type Answer = Result<ClientReply, TransportError>;

struct Node(Box<dyn Fn(ClientRequest) -> BoxFuture<'static, Answer> + Send + Sync>);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

impl Transport for Node {
    fn call(
        &self,
        _node: NodeId,
        _class: Class,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let frame = Frame::decode(&request).expect("our own");
        let reply = (self.0)(ClientMessage::<ClientRequest>::decode(frame).expect("our own").head);
        Box::pin(async move {
            let head = tokio::time::timeout(deadline, reply).await.unwrap_or_else(|_| Err(no_reply()))?;
            Ok(ClientMessage { head, payload: Bytes::new() }.encode().expect("is small"))
        })
    }

    fn set_peer(&self, _node: NodeId, _address: SocketAddr) {}

    fn remove_peer(&self, _node: NodeId) {}

    fn rtt(&self, _node: NodeId) -> Option<Duration> {
        None
    }
}

/// The node has the request, perhaps.
pub(super) fn no_reply() -> TransportError {
    TransportError::OutcomeUnknown { node: NodeId(1), reason: "the connection broke".to_owned() }
}

/// A cluster of one node, which answers at once.
pub(super) fn cluster_of(answer: impl Fn(&ClientRequest) -> Answer + Send + Sync + 'static) -> Cluster {
    cluster_in_time(move |request| ready(answer(&request)))
}

/// A cluster of one node, which takes its time.
pub(super) fn cluster_in_time<A>(answer: impl Fn(ClientRequest) -> A + Send + Sync + 'static) -> Cluster
where
    A: Future<Output = Answer> + Send + 'static,
{
    let member = MemberInfo { node: NodeId(1), name: "a".into(), provider: "a".into(), address: "192.0.2.1:1".into() };
    Cluster::over(Arc::new(Node(Box::new(move |request| Box::pin(answer(request))))), vec![member])
}
