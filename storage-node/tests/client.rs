//! The client library against whole nodes over the in-memory network: any node will do, and handovers are only latency.

mod cluster;

use std::fs::OpenOptions as OpenFile;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client_lib::cipher::{Kek, KeySource, VolumeKeys};
use client_lib::client::{Cluster as Client, OpenOptions, Volume, VolumeStatus};
use client_lib::policy::Durability;
use client_lib::transport::{BoxFuture, Class, Service, Transport};
use client_lib::wire::client::{ClientMessage, ClientReply, ClientRequest, ExtentState, MemberInfo, Tenure, WriteId};
use client_lib::wire::frame::Frame;
use client_lib::{Epoch, ErrorKind, NodeId, VolumeSize};
use cluster::{BLOCK, Cluster, SIZE, block};
use consensus::{Command, Response};
use nbd_frontend::export::ExportDirectory;

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

/// Makes an encrypted volume at node 1; the file of its key.
fn create_encrypted(cluster: &Cluster, name: &str, directory: &Path) -> PathBuf {
    let (kek, path) = (Kek::random().expect("randomness"), directory.join(format!("{name}.key")));
    let mut file = OpenFile::new().write(true).create_new(true).mode(0o600).open(&path).expect("is made");
    file.write_all(kek.to_text().as_bytes()).expect("is written");
    let (keys, _) = VolumeKeys::create("prod".parse().expect("a name"), &kek).expect("are made");
    let command = Command::CreateEncryptedVolume {
        name: name.parse().expect("a name"),
        size: VolumeSize::try_from(SIZE).expect("a size"),
        owner: NodeId(1),
        replicas: [NodeId(2), NodeId(3)].into(),
        durability: Durability::default(),
        keys,
        nonce: 7,
    };
    let created = cluster.meta.propose(command).expect("is applied");
    assert!(matches!(created, Response::VolumeCreated { .. }), "{created:?}");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_volume_is_opened_by_who_decrypts_it_and_by_nobody_else() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let key = create_encrypted(&cluster, "secret", directory.path());
    let (client, transport) = client(&cluster, &[1, 2, 3]);
    // A program of before would take ciphertext for data.
    let reply = ask(&*transport, 2, ClientRequest::Open { name: "secret".into() }, Bytes::new()).await;
    let ClientReply::Failed(error) = reply else { panic!("{reply:?}") };
    assert!(error.kind() == ErrorKind::InvalidRequest && error.to_string().contains("is encrypted"), "{error}");
    let error = client.open("secret", OpenOptions::default()).await.expect_err("without a key");
    assert!(error.to_string().contains("it takes one of prod ("), "{error}");

    let options = OpenOptions { keys: Some(KeySource::File(key)), ..OpenOptions::default() };
    let volume = client.open("secret", options.clone()).await.expect("opens");
    volume.write(0, block(1)).await.expect("is written");
    assert_eq!((content(&volume, 0).await, content(&volume, 1).await), (1, 0));
    volume.flush().await.expect("is flushed");
    let error = client.open("v", options).await.expect_err("is not encrypted");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);

    let exports = &cluster.nodes[&2].exports;
    let info = exports.info("secret").await.expect("is told");
    assert_eq!(info.description, "Heliotrope volume secret, encrypted (AES-256-XTS)");
    let error = exports.open("secret").await.err().expect("the node has no key");
    assert!(error.to_string().contains("this node has no keys: it takes one of prod ("), "{error}");
    drop(volume);
    cluster.stop().await;
}

/// Encrypting a large write takes turns; a small one of the same bytes that was begun after it was ahead of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_an_encrypted_volume_are_carried_out_in_the_order_in_which_they_were_begun() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let key = create_encrypted(&cluster, "secret", directory.path());
    let (client, _) = client(&cluster, &[1]);
    let options = OpenOptions { keys: Some(KeySource::File(key)), ..OpenOptions::default() };
    let volume = client.open("secret", options).await.expect("opens");
    for round in 0..20u8 {
        let large = Bytes::from(vec![2 * round + 1; 1 << 20]);
        let (first, second, third) = tokio::join!(
            volume.write(0, large),
            volume.write(100 * BLOCK as u64, block(2 * round + 2)),
            volume.zero(200 * BLOCK as u64, BLOCK as u64, false)
        );
        first.and(second).and(third).expect("are written");
        let found = [content(&volume, 99).await, content(&volume, 100).await, content(&volume, 200).await];
        assert_eq!(found, [2 * round + 1, 2 * round + 2, 0]);
    }
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
