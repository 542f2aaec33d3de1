//! The examples of the client library, run against nodes that are processes, which end now and then.

use std::time::Duration;

use bytes::Bytes;
use client_lib::client::{Cluster, OpenOptions, blocking};
use client_lib::transport::unix::UnixTransport;
use client_lib::transport::{Class, Transport};
use client_lib::wire::client::{ClientMessage, ClientReply, ClientRequest, WriteId};
use client_lib::wire::frame::Frame;
use client_lib::{ErrorKind, NodeId};
use tests::nbd_client::{Client, Error};
use tests::nodes::Nodes;
use tests::service::Service;
use tests::workload::{check, fill};

#[allow(dead_code, reason = "its main function is not needed here")]
#[path = "../../client-lib/examples/append_log.rs"]
mod append_log;
#[allow(dead_code, reason = "its main function is not needed here")]
#[path = "../../client-lib/examples/copy_volume.rs"]
mod copy_volume;

const BLOCK: u64 = 4096;
const SEED: u64 = 43;

#[test]
fn a_log_goes_on_over_the_death_of_its_node() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "notes", "--size", "1M", "--owner", "a"]).expect("is created");
    let credentials = nodes.credentials("program").expect("are issued");
    let cluster = blocking::Cluster::from_credentials(&credentials).expect("is one");
    let notes = cluster.open("notes", OpenOptions::default()).expect("opens");
    for line in ["one", "two"] {
        append_log::append(&notes, line).expect("is written");
        nodes.kill("a").expect("it runs");
        nodes.start_node("a").expect("starts");
    }
    append_log::append(&notes, "three").expect("is written");
    assert_eq!(append_log::lines(&notes).expect("are read"), ["one", "two", "three"]);
    notes.close().expect("is flushed");
    let again = cluster.open("notes", OpenOptions { is_read_only: true, ..OpenOptions::default() }).expect("opens");
    assert_eq!(append_log::lines(&again).expect("are read").len(), 3);
    let refused = again.write(0, vec![1; 512].into(), false).expect_err("it was opened for reading");
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_copied_without_what_it_does_not_hold() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let credentials = nodes.credentials("program").expect("are issued");
    let cluster = Cluster::from_credentials(&credentials).expect("is one");
    let disk = cluster.open("disk", OpenOptions::default()).await.expect("opens");
    let blocks = [0, 1, 77, 16 * 1024 - 1];
    for block in blocks {
        disk.write(block * BLOCK, fill(SEED, block, 1).into()).await.expect("is written");
    }
    let parts: Vec<bytes::Bytes> = (200..210).map(|block| fill(SEED, block, 1).into()).collect();
    disk.write_vectored(200 * BLOCK, &parts).await.expect("is written");
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    disk.write(0, fill(SEED, 0, 2).into()).await.expect("is written");
    let image = nodes.path().join("monday.raw");
    let copied = copy_volume::copy(&cluster, "disk@monday", &image).await.expect("is copied");
    assert_eq!(copied, 14 * BLOCK);
    let bytes = std::fs::read(&image).expect("is read");
    assert_eq!(bytes.len() as u64, disk.size());
    for (block, found) in bytes.chunks(BLOCK as usize).enumerate() {
        let is_there = blocks.contains(&(block as u64)) || (200..210).contains(&block);
        assert_eq!(check(found, SEED, block as u64), Ok(u64::from(is_there)), "block {block}");
    }
    let listed = cluster.volumes(Some(Duration::from_secs(60))).await.expect("are listed");
    let names: Vec<&str> = listed.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["disk", "disk@monday"]);
    disk.close().await.expect("is flushed");
    cluster.close().await;
}

/// Who closes a volume relies on that where an answer was lost: nothing comes over what is written next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_nothing_is_answered_once_and_refuses_earlier_attempts_that_come_late() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "1M", "--owner", "a"]).expect("is created");
    let socket = nodes.path().join("a/client.sock");
    let disk = Cluster::from_socket(&socket).open("disk", OpenOptions::default()).await.expect("opens");
    disk.write(0, fill(SEED, 0, 1).into()).await.expect("is written");

    let transport = UnixTransport::new(&socket);
    let ask = async |head, payload| {
        let request = ClientMessage { head, payload }.encode().expect("is small");
        let reply =
            transport.call(NodeId(0), Class::Pull, request, Duration::from_secs(60)).await.expect("is answered");
        ClientMessage::<ClientReply>::decode(Frame::decode(&reply).expect("a frame")).expect("an answer").head
    };
    let ClientReply::Opened(opened) = ask(ClientRequest::Open { name: "disk".into() }, Bytes::new()).await else {
        panic!("it is there")
    };
    let (volume, session) = (opened.volume, opened.session);
    let ClientReply::Attached(attached) =
        ask(ClientRequest::Attach { volume, sessions: vec![session] }, Bytes::new()).await
    else {
        panic!("it has an owner")
    };
    let tenure = attached.tenure;
    let id = |generation| WriteId { session, number: 0, answered: 0, generation, right: opened.epoch };
    let nothing = ClientRequest::Zero { volume, tenure, id: id(1), offset: 0, length: 0, fua: false };
    let answer = ask(nothing, Bytes::new()).await;
    assert!(matches!(answer, ClientReply::Written { .. }), "{answer:?}");
    let late = ClientRequest::Write { volume, tenure, id: id(0), offset: 0, fua: false };
    let answer = ask(late, fill(SEED, 0, 2).into()).await;
    assert!(matches!(answer, ClientReply::Outrun), "{answer:?}");
    assert_eq!(check(&disk.read(0, BLOCK as u32).await.expect("is read"), SEED, 0), Ok(1));
}

/// It was once waited for, for ever, as if the nodes might come.
#[test]
fn credentials_of_another_cluster_are_refused_and_a_node_that_starts_is_waited_for() {
    let mut ours = Nodes::start(&["a"]).expect("a node starts");
    let theirs = Nodes::start(&["a"]).expect("another starts");
    ours.run("a", &["volume", "create", "disk", "--size", "1M", "--owner", "a"]).expect("is created");
    let own = ours.credentials("program").expect("are issued");
    // Theirs, at our address, and ours at theirs: nodes changed places.
    let (here, there) = (ours.address("a").expect("is known"), theirs.address("a").expect("is known"));
    let text = std::fs::read_to_string(&own).expect("is read").replace(&here.to_string(), &there.to_string());
    let (wrong, other) = (ours.path().join("wrong.helio"), ours.path().join("other.helio"));
    std::fs::write(&wrong, text).expect("is written");
    let foreign = theirs.credentials("program").expect("are issued");
    let text = std::fs::read_to_string(&foreign).expect("is read").replace(&there.to_string(), &here.to_string());
    std::fs::write(&other, text).expect("is written");
    for file in [&wrong, &other] {
        let cluster = blocking::Cluster::from_credentials(file).expect("is one");
        let error = cluster.open("disk", OpenOptions::default()).expect_err("is not of that cluster");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("no node of the cluster accepts these credentials"), "{error}");
        assert_eq!(cluster.volumes().expect_err("neither").kind(), ErrorKind::InvalidRequest);
    }
    // The same through helio-nbd: its client is told.
    let program = ours.helio_nbd_program().expect("is there");
    let service = Service::new(ours.path()).expect("listens");
    let running = service.start("wrong", &program, ["--cluster".as_ref(), wrong.as_os_str()]).expect("serves");
    let refused = Client::connect(&service.socket(), "disk");
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let log = std::fs::read_to_string(ours.path().join("wrong.log")).expect("is read");
    assert!(log.contains("accepts these credentials"), "{log}");
    drop(running);

    let cluster = blocking::Cluster::from_credentials(&own).expect("is one");
    ours.kill("a").expect("it runs");
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| cluster.open("disk", OpenOptions::default()).map(|disk| disk.size()));
        ours.start_node("a").expect("starts");
        assert_eq!(opening.join().expect("ends").expect("is waited for"), 1 << 20);
    });
}
