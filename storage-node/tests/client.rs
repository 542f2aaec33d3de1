//! The client library against whole nodes over the in-memory network: any node will do, and handovers are only latency.

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client_lib::client::{Cluster as Client, OpenOptions, Volume, VolumeStatus};
use client_lib::transport::{BoxFuture, Class, Service, Transport};
use client_lib::wire::client::{ClientMessage, ClientReply, ClientRequest, ExtentState, MemberInfo, Tenure, WriteId};
use client_lib::wire::frame::Frame;
use client_lib::{Epoch, ErrorKind, NodeId};
use cluster::{BLOCK, Cluster, SIZE, block};

/// A client's end, which nobody calls.
struct Nobody;

impl Service for Nobody {
    fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async { request })
    }
}

const CLIENT: NodeId = NodeId(9);

/// A client that knows these nodes.
fn client(cluster: &Cluster, nodes: &[u64]) -> (Client, Arc<dyn Transport>) {
    let transport: Arc<dyn Transport> = cluster.network.endpoint(CLIENT, Arc::new(Nobody));
    let member = |id: &u64| {
        transport.set_peer(NodeId(*id), ([127, 0, 0, 1], *id as u16).into());
        MemberInfo { node: NodeId(*id), name: id.to_string(), provider: String::new(), address: String::new() }
    };
    let members = nodes.iter().map(member).collect();
    (Client::over(transport.clone(), members), transport)
}

async fn content(volume: &Volume, index: u64) -> u8 {
    let bytes = volume.read(index * BLOCK as u64, BLOCK as u32).await.expect("is read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {index} is torn");
    bytes[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_used_through_any_node_and_over_handovers() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    // It knows a node that owns nothing, and finds the others by itself.
    let (client, _) = client(&cluster, &[3]);
    let volume = Arc::new(client.open("v", OpenOptions::default()).await.expect("opens"));
    volume.write(0, block(1)).await.expect("is written");
    assert_eq!(volume.size(), SIZE);
    volume.zero(BLOCK as u64, SIZE - BLOCK as u64, false).await.expect("is zeroed");
    let extents = volume.extents(0, SIZE).await.expect("is told");
    let told: Vec<_> = extents.iter().map(|extent| (extent.length, extent.state)).collect();
    assert_eq!(told, [(BLOCK as u64, ExtentState::Data), (SIZE - BLOCK as u64, ExtentState::Zero)]);

    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (volume, stop) = (volume.clone(), stop.clone());
        async move {
            let mut newest = [0; 8];
            for count in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (index, fill) = (count % 8, (count % 250) as u8 + 1);
                volume.write(index * BLOCK as u64, block(fill)).await.expect("is written");
                newest[index as usize] = fill;
                if count % 16 == 0 {
                    volume.flush().await.expect("is flushed");
                }
                assert_eq!(content(&volume, index).await, fill, "it was acked");
            }
            newest
        }
    });
    for (from, to) in [(1, 2), (2, 3), (3, 1), (1, 2)] {
        cluster.migrate(from, to).await.expect("is handed over");
        cluster
            .until(|| async {
                volume.state().owner.as_deref().is_some_and(|owner| owner == ["a", "b", "c"][to as usize - 1])
            })
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    let newest = writing.await.expect("ends");
    let session = cluster.session(1).await;
    for index in 0..8 {
        assert_eq!(content(&volume, index).await, newest[index as usize]);
        assert_eq!(cluster::read(&session, index).await[0], newest[index as usize], "as others see it");
    }
    assert_eq!(volume.state().status, VolumeStatus::Connected);
    Arc::into_inner(volume).expect("nobody else has it").close().await.expect("is flushed");
    cluster.stop().await;
}

/// One call of the client's service, made by hand.
async fn ask(transport: &dyn Transport, node: u64, head: ClientRequest, payload: Bytes) -> ClientReply {
    let request = ClientMessage { head, payload }.encode().expect("is small");
    let reply = transport.call(NodeId(node), Class::Pull, request, Duration::from_secs(60)).await.expect("answers");
    ClientMessage::decode(Frame::decode(&reply).expect("a frame")).expect("a reply").head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_asked_for_again_is_not_done_over_newer_ones_and_no_tenure_does_anothers_work() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let (client, transport) = client(&cluster, &[1, 2, 3]);
    let volume = client.open("v", OpenOptions::default()).await.expect("opens");
    let ask = |node, head, payload| ask(&*transport, node, head, payload);
    let ClientReply::Opened(opened) = ask(2, ClientRequest::Open { name: "v".into() }, Bytes::new()).await else {
        panic!("is not opened")
    };
    let attach = || ClientRequest::Attach { volume: opened.volume, sessions: vec![opened.session] };
    let ClientReply::Attached(first) = ask(2, attach(), Bytes::new()).await else { panic!("is not attached") };
    assert_eq!((first.owner, first.tenure.epoch), (NodeId(1), Epoch(1)));
    let id = |number| WriteId { session: opened.session, number, answered: 0, generation: 0, right: opened.epoch };
    let write =
        |tenure, number| ClientRequest::Write { volume: opened.volume, tenure, id: id(number), offset: 0, fua: false };
    let written = |reply: &ClientReply| matches!(reply, ClientReply::Written { .. });
    // Through one node, then through another, with a newer write of somebody else in between.
    assert!(written(&ask(2, write(first.tenure, 0), block(1)).await));
    volume.write(0, block(2)).await.expect("is written");
    for node in [1, 2, 3] {
        assert!(written(&ask(node, write(first.tenure, 0), block(1)).await));
        assert_eq!(content(&volume, 0).await, 2, "it was done before");
    }
    cluster.migrate(1, 3).await.expect("is handed over");
    let reply = ask(2, write(first.tenure, 1), block(3)).await;
    let ClientReply::Moved(second) = reply else { panic!("{reply:?}") };
    assert_eq!(second.epoch, Epoch(2));
    assert_eq!(content(&volume, 0).await, 2, "it was not done");
    // The next owner knows which it has.
    let ClientReply::Attached(next) = ask(1, attach(), Bytes::new()).await else { panic!("is not attached") };
    assert_eq!((next.tenure, next.owner, next.done), (second, NodeId(3), vec![(opened.session, vec![(0, 1)])]));
    assert!(written(&ask(1, write(second, 0), block(1)).await));
    assert_eq!(content(&volume, 0).await, 2, "it was done before, at another owner");
    let past = Tenure { incarnation: second.incarnation + 1, ..second };
    assert!(matches!(
        ask(3, ClientRequest::Flush { volume: opened.volume, tenure: past }, Bytes::new()).await,
        ClientReply::Moved(_)
    ));

    let error = client.open("nothing", OpenOptions::default()).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = volume.read(SIZE, 512).await.expect_err("beyond the end");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(volume.write(SIZE, block(1)).await.expect_err("beyond the end").kind(), ErrorKind::OutOfSpace);
    assert_eq!(volume.read(1, 512).await.expect_err("no sector").kind(), ErrorKind::InvalidRequest);
    assert_eq!(content(&volume, 0).await, 2, "and it goes on");
    drop(volume);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_nobody_serves_is_given_up_in_time_and_goes_on_later() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let (client, _) = client(&cluster, &[1, 2, 3]);
    let options = OpenOptions { give_up: Some(Duration::from_millis(300)), ..OpenOptions::default() };
    let volume = client.open("v", options).await.expect("opens");
    volume.write(0, block(1)).await.expect("is written");
    for node in 1..=3 {
        // Not even a request gets through, so nothing is unknown.
        cluster.network.set_blocked(CLIENT, NodeId(node), true);
    }
    let reading = tokio::time::timeout(Duration::from_secs(60), volume.read(0, BLOCK as u32)).await;
    let error = reading.expect("is given up").expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    for node in 1..=3 {
        cluster.network.set_blocked(CLIENT, NodeId(node), false);
    }
    assert_eq!(content(&volume, 0).await, 1);
    assert_eq!(volume.state().status, VolumeStatus::Connected);
    drop(volume);
    cluster.stop().await;
}
