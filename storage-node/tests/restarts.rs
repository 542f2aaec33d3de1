//! Volumes that are used at another node than their owner, while that one stops and starts again: whole nodes without Raft and without a
//! network, as in `handover.rs`.

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Epoch, ErrorKind, NodeId};
use cluster::{BLOCK, Cluster, block, read, write};
use consensus::Command;
use storage_node::peer::message::{Operation, PeerReply};

/// A volume owned by node 2, and a session at node 1 that may write it.
async fn used_from_afar() -> (Cluster, std::sync::Arc<dyn nbd_frontend::export::Session>) {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    write(&at_a, 1, 2).await;
    (cluster, at_a)
}

/// A node that stopped told others that the volume is closed, and one that started that it does not know it yet. Who used the volume at
/// another node was given that as an error of its disk, at every restart of the owner: a file system goes read-only by it.
#[tokio::test(flavor = "multi_thread")]
async fn who_uses_a_volume_elsewhere_sees_the_restart_of_its_owner_as_a_pause() {
    let (cluster, at_a) = used_from_afar().await;
    let refusing = cluster.nodes[&2].refusing.clone();
    for (round, kind) in [ErrorKind::Closed, ErrorKind::Unavailable].into_iter().enumerate() {
        let fill = 10 + round as u8;
        // So that a flush has something to ask for.
        write(&at_a, 3, fill).await;
        refusing.set(Some(kind));
        let before = refusing.refused();
        let reading = tokio::spawn({
            let at_a = at_a.clone();
            async move { read(&at_a, 1).await }
        });
        let writing = tokio::spawn({
            let at_a = at_a.clone();
            async move { at_a.write(2 * BLOCK as u64, block(fill), false).await }
        });
        let flushing = tokio::spawn({
            let at_a = at_a.clone();
            async move { at_a.flush().await }
        });
        let looking = tokio::spawn({
            let at_a = at_a.clone();
            async move { at_a.allocation(0, BLOCK as u64).await }
        });
        cluster.until(|| async { refusing.refused() >= before + 40 }).await;
        let is_over = [reading.is_finished(), writing.is_finished(), flushing.is_finished(), looking.is_finished()];
        assert_eq!(is_over, [false; 4], "they wait: {kind:?}");
        refusing.set(None);
        assert_eq!(reading.await.expect("joins"), block(2));
        writing.await.expect("joins").expect("is written");
        flushing.await.expect("joins").expect("is flushed");
        looking.await.expect("joins").expect("is told");
        assert_eq!(read(&cluster.session(2).await, 2).await, block(fill));
    }
    // What lasts is told at once.
    refusing.set(Some(ErrorKind::Internal));
    assert_eq!(at_a.read(0, BLOCK as u32).await.expect_err("is refused").kind(), ErrorKind::Internal);
    refusing.set(Some(ErrorKind::Closed));
    let reading = tokio::spawn({
        let at_a = at_a.clone();
        async move { at_a.read(0, BLOCK as u32).await }
    });
    cluster.meta.propose(Command::DeleteVolume { volume: cluster.volume }).expect("is deleted");
    assert_eq!(reading.await.expect("joins").expect_err("was deleted").kind(), ErrorKind::Closed);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_so_to_others() {
    let (cluster, _) = used_from_afar().await;
    cluster.nodes[&2].running.abort();
    cluster.nodes[&2].reconciler.stop();
    let request = Operation::Read { offset: 0, length: BLOCK as u32 }.for_owner(cluster.volume, Epoch(2));
    let answer = cluster.served(1).peers.ask(NodeId(2), Class::Pull, request, Bytes::new()).await;
    let PeerReply::Failed(error) = answer.expect("answers").head else { panic!("is not served") };
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "the node is stopping"));
    cluster.stop().await;
}

/// A node that had passed writes on and was restarted knew of none: a flush there was answered without asking the owner, which had acked
/// them and not synced them.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_flush_of_a_process_asks_the_owner_for_what_an_earlier_one_may_have_passed_on() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_b, refusing) = (cluster.session(2).await, &cluster.nodes[&1].refusing);
    refusing.set(Some(ErrorKind::Internal));
    assert_eq!(at_b.flush().await.expect_err("is asked").kind(), ErrorKind::Internal);
    refusing.set(None);
    at_b.flush().await.expect("is answered");
    refusing.set(Some(ErrorKind::Internal));
    at_b.flush().await.expect("nothing was passed on since");
    // It may come by a write at c: then only a flush where it is written counts.
    refusing.set(None);
    cluster.meta.propose(Command::SetOnWrite { volume: cluster.volume, to: Some(NodeId(3)) }).expect("is allowed");
    let at_c = cluster.served(3);
    cluster.until(|| async { at_c.may_come.load(std::sync::atomic::Ordering::Relaxed) }).await;
    refusing.set(Some(ErrorKind::Internal));
    cluster.session(3).await.flush().await.expect("nobody is asked");
    refusing.set(None);
    cluster.stop().await;
}
