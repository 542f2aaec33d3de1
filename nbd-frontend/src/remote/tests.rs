//! Exports that are closed and opened again, over a node that holds writes.

use std::net::SocketAddr;
use std::pin::pin;

use client_lib::transport::{Class, Transport, TransportError};
use client_lib::wire::client::{Attached, ClientMessage, ClientReply, ClientRequest, MemberInfo, Opened, Tenure};
use client_lib::wire::frame::Frame;
use client_lib::{Epoch, Lsn, NodeId, VolumeId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;

/// A moment, on a clock that stands still while something runs.
const SHORT: Duration = Duration::from_secs(5);

/// What becomes of what an owner is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    /// Writes are answered when it is decided how.
    Held,
    /// Answers to writes get lost.
    Lost,
    /// Nobody is the owner.
    Waiting,
}

/// The only node; what it was asked that matters here.
#[derive(Debug)]
struct Node {
    fate: watch::Sender<Fate>,
    asked: std::sync::Mutex<Vec<String>>,
}

impl Node {
    fn note(&self, what: String) {
        self.asked.lock().expect("no panic").push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    async fn answer(&self, request: ClientRequest) -> Result<ClientReply, TransportError> {
        let (tenure, size) = (Tenure { epoch: Epoch(1), incarnation: 1 }, 1 << 20);
        let is_fence = matches!(request, ClientRequest::Zero { length: 0, .. });
        match request {
            ClientRequest::OpenFor { name } => {
                self.note(format!("open {name}"));
                let opened = Opened { volume: VolumeId(1), snapshot: None, size, session: 1, epoch: Epoch(1) };
                return Ok(ClientReply::OpenedFor { opened, right: Right::Write, keys: None });
            }
            ClientRequest::Members => return Ok(ClientReply::Members(Vec::new())),
            _ if *self.fate.borrow() == Fate::Waiting => {
                return Ok(ClientReply::Failed(Error::new(ErrorKind::Unavailable, "nobody owns it")));
            }
            ClientRequest::Attach { .. } => {
                return Ok(ClientReply::Attached(Attached {
                    tenure,
                    owner: NodeId(1),
                    size,
                    head: Lsn::ZERO,
                    forks: Vec::new(),
                    claimed: Epoch(0),
                    done: Vec::new(),
                }));
            }
            ClientRequest::Flush { .. } => return Ok(ClientReply::Flushed(true)),
            ClientRequest::Write { .. } => self.note("write".to_owned()),
            ClientRequest::Zero { .. } if is_fence => self.note("nothing".to_owned()),
            other => panic!("not asked here: {other:?}"),
        }
        let mut fate = self.fate.subscribe();
        let fate = *fate.wait_for(|fate| is_fence || *fate != Fate::Held).await.expect("we have the sender");
        match fate {
            Fate::Lost if !is_fence => {
                Err(TransportError::OutcomeUnknown { node: NodeId(1), reason: "the connection broke".to_owned() })
            }
            _ => Ok(ClientReply::Written { lsn: Lsn::new(Epoch(1), 1), durable: false }),
        }
    }
}

impl Transport for Node {
    fn call(
        &self,
        _node: NodeId,
        _class: Class,
        request: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let frame = Frame::decode(&request).expect("our own");
        let request = ClientMessage::<ClientRequest>::decode(frame).expect("our own").head;
        Box::pin(async move {
            let head = self.answer(request).await?;
            Ok(ClientMessage { head, payload: Bytes::new() }.encode().expect("is small"))
        })
    }

    fn set_peer(&self, _node: NodeId, _address: SocketAddr) {}

    fn remove_peer(&self, _node: NodeId) {}

    fn rtt(&self, _node: NodeId) -> Option<Duration> {
        None
    }
}

fn directory(fate: Fate) -> (Arc<Node>, RemoteDirectory) {
    let node = Arc::new(Node { fate: watch::Sender::new(fate), asked: std::sync::Mutex::default() });
    let member = MemberInfo { node: NodeId(1), name: "a".into(), provider: "a".into(), address: "192.0.2.1:1".into() };
    let cluster = Cluster::over(node.clone(), vec![member]);
    (node, RemoteDirectory::new(vec![cluster], None, OpenOptions::default()))
}

fn block() -> Bytes {
    Bytes::from(vec![1; 512])
}

/// A machine died with a write on its way, and was started again at once: its disk was opened beside the session that still sent the
/// write again and again, and that came over what the machine had written after its start.
#[tokio::test(start_paused = true)]
async fn an_export_is_opened_anew_only_after_it_was_closed_behind_its_last_connection() {
    let (node, directory) = directory(Fate::Held);
    let first = directory.open("disk").await.expect("opens");
    assert!(timeout(SHORT, first.write(0, block(), false)).await.is_err(), "is not acked");
    drop(first);
    let mut second = pin!(directory.open("disk"));
    assert!(timeout(SHORT, &mut second).await.is_err(), "the first one's write is on its way");
    timeout(SHORT, directory.open("other")).await.expect("others need not wait").expect("opens");
    node.fate.send_replace(Fate::Lost);
    let second = second.await.expect("opens");
    // The third is answered when nothing of the first can be carried out any more.
    assert_eq!(node.asked(), ["open disk", "write", "open other", "nothing", "open disk"]);
    node.fate.send_replace(Fate::Answered);
    second.write(0, block(), false).await.expect("is written");
}

#[tokio::test(start_paused = true)]
async fn an_export_that_cannot_be_closed_is_refused_until_it_was_waited_long_enough() {
    let (node, directory) = directory(Fate::Answered);
    let first = directory.open("disk").await.expect("opens");
    first.write(0, block(), false).await.expect("is written");
    node.fate.send_replace(Fate::Waiting);
    drop(first);
    let Err(refused) = directory.open("disk").await else {
        panic!("what was written is not durable, and may be sent again")
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.to_string().contains("still being closed"), "{refused}");
    assert_eq!(node.asked(), ["open disk", "write"]);
    timeout(CLOSE_PATIENCE, directory.open("disk")).await.expect("in time").expect("opens");
}

#[tokio::test(start_paused = true)]
async fn connections_share_an_export_and_names_that_lead_nowhere_are_forgotten() {
    let (node, directory) = directory(Fate::Answered);
    let first = directory.open("disk").await.expect("opens");
    let second = directory.open("disk").await.expect("opens");
    assert_eq!(first.share(), second.share());
    assert_eq!(node.asked(), ["open disk"]);
    drop((first, second));
    directory.open("other").await.expect("opens");
    directory.closed().await;
    directory.place("another");
    assert_eq!(directory.places.lock().expect("no panic").len(), 1);
}
