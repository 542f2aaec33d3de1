//! Whole nodes without Raft and without a network: real shards, propagation and ownership over the in-memory
//! transport, with the real metadata state machine behind a lock in place of consensus. What is tested here is what
//! clients see: reads anywhere are the newest, writers travel, handovers do not depend on the backlog.

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client_lib::transport::Class;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId, VolumeSize};
use cluster::{BLOCK, Cluster, SIZE, TestLog, block, create, read, write};
use consensus::Command;
use nbd_frontend::export::{ExportDirectory, ZeroOptions};
use storage_node::ownership::driver::{OwnershipLog, Resize};
use storage_node::ownership::gate::Phase;
use storage_node::peer::message::{Operation, PeerReply, PeerRequest};
use storage_node::serve::resize::InForce;
use storage_node::volume::ledger::{Origin, Writer};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn reads_anywhere_are_the_newest_and_a_stranger_may_not_write() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_a, at_b) = (cluster.session(1).await, cluster.session(2).await);
    for round in 1..=20 {
        write(&at_a, 5, round).await;
        assert_eq!(read(&at_b, 5).await, block(round));
    }
    let refused = at_b.write(0, block(1), false).await.expect_err("a stranger");
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
    assert!(refused.message().contains("helio volume migrate v"), "says what to do: {refused}");
    at_b.flush().await.expect("a flush at a non-owner is answered");
    assert_eq!(read(&at_b, 0).await, block(0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_catch_up_to_the_owner() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..300 {
        write(&at_a, index * 7 % 2000, index as u8).await;
    }
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_carries_everything_and_the_writer_travels_along() {
    let cluster = Cluster::start(Duration::from_millis(5)).await;
    let at_a = cluster.session(1).await;
    for index in 0..200 {
        write(&at_a, index, 1 + (index % 200) as u8).await;
    }
    let report = cluster.migrate(1, 2).await.expect("is handed over");
    assert_eq!(report.epochs, [Epoch(2)]);

    // The writer at a goes on without a reconnect; what it writes is seen at b at once.
    let at_b = cluster.session(2).await;
    write(&at_a, 3, 250).await;
    at_a.flush().await.expect("flushes where the volume is");
    assert_eq!(read(&at_b, 3).await, block(250));
    for index in (0..200).filter(|index| *index != 3) {
        assert_eq!(read(&at_b, index).await, block(1 + (index % 200) as u8), "block {index}");
    }

    // A session at the owner writes: the traveller's right ends.
    write(&at_b, 4, 251).await;
    let fenced = at_a.write(0, block(9), false).await.expect_err("lost its right");
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    assert_eq!(read(&at_a, 4).await, block(251), "and still reads the newest");
    cluster.stop().await;
}

/// The simulation found it (seed 16 of those in which owners are lost): a write was passed on to the owner and carried out, but
/// its answer was lost, and its node was cut off for half a minute. Others wrote the same block meanwhile, at two
/// owners in turn. Then the volume came to the node of the waiting write, which carried it out a second time, over theirs.
/// It has its answer now: with the volume came word of what was carried out.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waited_while_others_wrote_is_not_carried_out_again_when_the_volume_comes() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 3, 1).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    // The request arrives, its answer does not.
    cluster.network.set_blocked(NodeId(2), NodeId(1), true);
    let waiting = tokio::spawn({
        let at_a = at_a.clone();
        async move { at_a.write(5 * BLOCK as u64, block(7), false).await }
    });
    cluster.until(|| async { read(&at_b, 5).await == block(7) }).await;
    write(&at_b, 5, 8).await;
    cluster.network.set_blocked(NodeId(2), NodeId(1), false);
    cluster.until(|| async { cluster.migrate(2, 1).await.is_ok() }).await;
    waiting.await.expect("joins").expect("was carried out, once");
    assert_eq!(read(&at_a, 5).await, block(8), "and others have written since");
    // A new write of the same connection is its own business.
    write(&at_a, 5, 9).await;
    assert_eq!(read(&at_b, 5).await, block(9));
    cluster.stop().await;
}

/// The simulation found it (seed 180 of those in which owners are lost): a write was passed on and carried out, its answer was
/// lost, and its session asked again and again while the link was cut. Another write of the session to the same block was
/// answered meanwhile; then an attempt at the first one came through, and was carried out over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_write_is_carried_out_once_however_often_it_is_asked_for() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (first, second) = (cluster.session(1).await, cluster.session(1).await);
    write(&first, 3, 1).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    for index in [5, 6] {
        write(&first, index, 1).await;
    }
    let head = cluster.nodes[&2].shard.report(cluster.volume).await.expect("reports").head;
    // Requests arrive, answers do not.
    cluster.network.set_blocked(NodeId(2), NodeId(1), true);
    let zero = ZeroOptions { fua: true, no_hole: false };
    let mut waiting = vec![tokio::spawn({
        let first = first.clone();
        async move { first.write(5 * BLOCK as u64, block(7), true).await }
    })];
    waiting.push(tokio::spawn(async move { first.write_zeroes(6 * BLOCK as u64, BLOCK as u64, zero).await }));
    cluster.until(|| async { read(&at_b, 5).await == block(7) && read(&at_b, 6).await == block(0) }).await;
    for index in [5, 6] {
        let second = second.clone();
        waiting.push(tokio::spawn(async move { second.write(index * BLOCK as u64, block(9), false).await }));
    }
    cluster.until(|| async { read(&at_b, 5).await == block(9) && read(&at_b, 6).await == block(9) }).await;
    cluster.network.set_blocked(NodeId(2), NodeId(1), false);
    for waiting in waiting {
        waiting.await.expect("joins").expect("was carried out");
    }
    for index in [5, 6] {
        assert_eq!(read(&at_b, index).await, block(9), "as it was before they were asked for again");
    }
    let now = cluster.nodes[&2].shard.report(cluster.volume).await.expect("reports").head;
    assert_eq!(now.sequence, head.sequence + 4, "four writes");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_with_the_first_write_where_it_may_go_once_it_was_flushed() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_a, at_b, at_c) = (cluster.session(1).await, cluster.session(2).await, cluster.session(3).await);
    let owner = || cluster.meta.state().volume(cluster.volume).expect("exists").owner;
    write(&at_a, 1, 1).await;
    cluster.meta.propose(Command::SetOnWrite { volume: cluster.volume, to: Some(NodeId(2)) }).expect("is allowed");
    assert_eq!(read(&at_b, 1).await, block(1));
    at_b.flush().await.expect("flushes");
    assert_eq!(owner(), NodeId(1), "neither a read nor a flush takes it along");
    let refused = at_c.write(0, block(3), false).await.expect_err("it may not go there");
    assert_eq!(refused.kind(), ErrorKind::NotOwner);

    let refused = at_b.write(0, block(2), false).await.expect_err("was written since the last flush");
    assert_eq!(refused.kind(), ErrorKind::NotOwner, "{refused}");
    assert!(refused.message().contains("since the last flush"), "{refused}");
    assert_eq!(owner(), NodeId(1));
    assert_eq!(read(&at_a, 0).await, block(0));

    at_a.flush().await.expect("as a machine does that stops");
    // As from a queue of a machine that begins: one handover for all of them.
    let writes = (10..40).map(|index| {
        let at_b = at_b.clone();
        tokio::spawn(async move { at_b.write(index * BLOCK as u64, block(index as u8), false).await })
    });
    for written in writes.collect::<Vec<_>>() {
        written.await.expect("joins").expect("is written");
    }
    let meta = cluster.meta.state().volume(cluster.volume).expect("exists").clone();
    assert_eq!((meta.owner, meta.epoch, meta.on_write), (NodeId(2), Epoch(2), None));
    for index in 10..40 {
        assert_eq!(read(&at_a, index).await, block(index as u8));
    }
    at_a.flush().await.expect("the late flush of a machine that ends");
    let fenced = at_a.write(0, block(9), false).await.expect_err("is written at b by now");
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    let refused = cluster.session(1).await.write(0, block(9), false).await.expect_err("once, and not back");
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
    cluster.stop().await;
}

/// A rollback, and the zeroes of a shrink, counted as something that a client had written and not flushed. The machine that was started at another
/// node afterwards could not write its disk, and nobody was left where the volume was who could have flushed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_with_the_first_write_also_after_a_rollback_and_a_shrink() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_a, at_b) = (cluster.session(1).await, cluster.session(2).await);
    let shard = &cluster.nodes[&1].shard;
    write(&at_a, 1, 1).await;
    let (snapshot, _) = cluster.snapshot("before").await;
    write(&at_a, 1, 2).await;
    shard.roll_back(cluster.volume, snapshot).await.expect("goes back");
    cluster.meta.propose(Command::SetOnWrite { volume: cluster.volume, to: Some(NodeId(2)) }).expect("is allowed");
    let refused = at_b.write(0, block(2), false).await.expect_err("was in use when it went back");
    assert!(refused.message().contains("since the last flush"), "{refused}");

    write(&at_a, SIZE / BLOCK as u64 - 1, 3).await;
    at_a.flush().await.expect("as a machine does that stops");
    shard.roll_back(cluster.volume, snapshot).await.expect("goes back");
    cluster.meta.propose(Command::DeleteSnapshot { volume: cluster.volume, snapshot }).expect("is deleted");
    cluster.until(|| async { shard.snapshots(cluster.volume).await.expect("lists").is_empty() }).await;
    let head = shard.report(cluster.volume).await.expect("reports").head;
    cluster.resize(1, SIZE / 2).await;
    assert!(shard.report(cluster.volume).await.expect("reports").head > head, "zeroes were written");
    at_b.write(0, block(4), false).await.expect("it comes");
    assert_eq!(cluster.meta.state().volume(cluster.volume).expect("exists").owner, NodeId(2));
    assert_eq!((read(&at_a, 0).await, read(&at_a, 1).await), (block(4).to_vec(), block(1).to_vec()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_goes_round_all_nodes_under_load() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let writer = cluster.session(1).await;
    let stop = CancellationToken::new();
    let load = tokio::spawn({
        let (writer, stop) = (writer.clone(), stop.clone());
        async move {
            let mut newest = BTreeMap::new();
            let mut count = 0u64;
            while !stop.is_cancelled() {
                let index = count * 13 % 500;
                let fill = 1 + (count % 250) as u8;
                write(&writer, index, fill).await;
                newest.insert(index, fill);
                if count.is_multiple_of(17) {
                    writer.flush().await.expect("flushes");
                }
                assert_eq!(read(&writer, index).await[0], fill, "reads its own write");
                count += 1;
            }
            newest
        }
    });
    let mut at = 1;
    for to in [2, 3, 1, 3, 2, 1] {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.migrate(at, to).await.unwrap_or_else(|error| panic!("{at} to {to}: {error}"));
        cluster
            .until(|| async {
                cluster.nodes[&to].volumes.get(cluster.volume).expect("served").gate.view().owner == NodeId(to)
            })
            .await;
        at = to;
    }
    stop.cancel();
    let newest = load.await.expect("the load saw no error");
    for node in 1..=3 {
        let session = cluster.session(node).await;
        for (index, fill) in &newest {
            assert_eq!(read(&session, *index).await, block(*fill), "block {index} at node {node}");
        }
    }
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_whose_answer_was_lost_still_ends() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    let report = cluster.migrate_with(1, 2, true).await.expect("consensus tells that it happened");
    assert_eq!(report.epochs, [Epoch(2)]);
    write(&at_a, 1, 2).await;
    assert_eq!(read(&cluster.session(2).await, 1).await, block(2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_to_a_node_out_of_reach_leaves_the_volume_where_it_is() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    cluster.network.set_blocked(NodeId(1), NodeId(2), true);
    cluster.network.set_blocked(NodeId(2), NodeId(1), true);
    cluster.migrate(1, 2).await.expect_err("out of reach");
    write(&at_a, 1, 2).await;
    assert_eq!(read(&at_a, 1).await, block(2));
    assert_eq!(cluster.meta.state().volume(cluster.volume).expect("exists").owner, NodeId(1));
    cluster.stop().await;
}

/// Late: the transfer for which a write went ahead came to nothing, others were acked since, and then another transfer is made.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_ahead_is_carried_out_in_the_epoch_it_was_meant_for_or_never() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    let end = async || cluster.nodes[&1].shard.report(cluster.volume).await.expect("reports").head;
    let ahead = |number: u64, after: Lsn| {
        let origin = Origin { session: 1 << 40, number, answered: 0 };
        let writer = Writer { origin, generation: 0, right: Epoch(1) };
        let operation = Operation::Write { writer, offset: number * BLOCK as u64, fua: false };
        let request = PeerRequest::Ahead { volume: cluster.volume, epoch: Epoch(2), after, operation };
        let peers = cluster.served(1).peers.clone();
        tokio::spawn(async move { peers.ask(NodeId(2), Class::Pull, request, block(9)).await.expect("answers").head })
    };
    let late = ahead(1, end().await);
    write(&at_a, 1, 2).await;
    let meant = ahead(2, end().await);
    cluster.migrate(1, 2).await.expect("is handed over");
    assert!(matches!(late.await.expect("joins"), PeerReply::NotOwner(Epoch(2))));
    assert!(matches!(meant.await.expect("joins"), PeerReply::Written(Epoch(2))));
    let at_b = cluster.session(2).await;
    assert_eq!((read(&at_b, 1).await, read(&at_b, 2).await), (block(2).to_vec(), block(9).to_vec()));
    cluster.stop().await;
}

/// Found under load: `helio volume create` at one node had returned, and another node told an NBD client that there is
/// no such volume, since it had not heard of it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_made_elsewhere_a_moment_ago_is_found() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let node = &cluster.nodes[&2];
    let deaf = node.hearing.lock().await;
    create(&cluster.meta, "w");
    assert!(node.volumes.named("w").is_none(), "not heard of");
    let open = async { node.exports.open("w").await.map(|session| session.info().name) };
    let hear = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(deaf);
    };
    let (opened, ()) = tokio::join!(open, hear);
    assert_eq!(opened.expect("is there"), "w");
    let missing = node.exports.open("x").await.map(|session| session.info().name).expect_err("was never made");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    cluster.stop().await;
}

/// The window in which a machine that moved along with its disk would have been refused: the handover had been reported
/// as done, and the destination, which had not heard that it was the owner, answered a write with EPERM.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_told_of_the_handover_may_write_at_once() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let node = &cluster.nodes[&2];
    let deaf = node.hearing.lock().await;
    cluster.migrate(1, 2).await.expect("is handed over");
    assert_eq!(node.volumes.get(cluster.volume).expect("is served").gate.view().owner, NodeId(1), "not heard of");
    let at_b = cluster.session(2).await;
    let hear = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(deaf);
    };
    tokio::join!(write(&at_b, 1, 7), hear);
    assert_eq!(read(&cluster.session(3).await, 1).await, block(7));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growth_is_written_at_once_and_handed_over() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_a, at_b) = (cluster.session(1).await, cluster.session(2).await);
    let last = 2 * SIZE / BLOCK as u64 - 1;
    let refused = at_a.write(last * BLOCK as u64, block(1), false).await.expect_err("beyond the end");
    assert_eq!(refused.kind(), ErrorKind::OutOfSpace);
    // The replicas hear of it late: manifests tell them of blocks beyond the size they know.
    let deaf = (cluster.nodes[&2].hearing.lock().await, cluster.nodes[&3].hearing.lock().await);
    cluster.resize(1, 2 * SIZE).await;
    assert_eq!(at_a.info().size, 2 * SIZE, "without a reconnect, for whoever asks");
    write(&at_a, last, 7).await;
    write(&at_a, 3, 8).await;
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
    }
    drop(deaf);
    cluster.until(|| async { at_b.info().size == 2 * SIZE }).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    let size = VolumeSize::try_from(2 * SIZE).expect("a size");
    cluster.in_force(2, InForce { size, epoch: Epoch(2) }).await;
    assert_eq!(read(&at_b, last).await, block(7));
    write(&at_a, last, 9).await;
    assert_eq!(read(&at_b, last).await, block(9));
    cluster.stop().await;
}

/// A node may hear of a growth before the owner does. A client there sees the new size and uses it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_has_not_heard_of_a_growth_asks_before_it_refuses() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_b = cluster.session(2).await;
    let deaf = cluster.nodes[&1].hearing.lock().await;
    let log = TestLog { meta: cluster.meta.clone(), me: NodeId(1), lose_answers: false };
    let [expected, size] = [SIZE, 2 * SIZE].map(|size| VolumeSize::try_from(size).expect("a size"));
    log.resize(Resize { volume: cluster.volume, epoch: Epoch(1), expected, size }).await.expect("is committed");
    cluster.until(|| async { at_b.info().size == 2 * SIZE }).await;
    let hear = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(deaf);
    };
    let (found, ()) = tokio::join!(read(&at_b, 2 * SIZE / BLOCK as u64 - 1), hear);
    assert_eq!(found, block(0));
    let beyond = at_b.read(2 * SIZE, BLOCK as u32).await.expect_err("beyond the end");
    assert_eq!(beyond.kind(), ErrorKind::InvalidRequest, "{beyond}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_shrunk_volume_are_told_and_what_was_dropped_is_gone_everywhere() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let (at_a, at_b) = (cluster.session(1).await, cluster.session(2).await);
    let (end, last) = (SIZE / 2 + 512, SIZE / BLOCK as u64 - 1);
    for index in [1, end / BLOCK as u64, last] {
        write(&at_a, index, 5).await;
    }
    cluster.resize(1, end).await;
    let at = last * BLOCK as u64;
    for session in [&at_a, &at_b] {
        let kind = |result: Result<(), Error>| result.expect_err("beyond the end").kind();
        assert_eq!(kind(session.read(at, 512).await.map(drop)), ErrorKind::InvalidRequest);
        assert_eq!(kind(session.allocation(at, 512).await.map(drop)), ErrorKind::InvalidRequest);
    }
    let kind = |result: Result<(), Error>| result.expect_err("beyond the end").kind();
    assert_eq!(kind(at_a.write(at, block(6), false).await), ErrorKind::OutOfSpace);
    assert_eq!(kind(at_a.write_zeroes(at, 4096, Default::default()).await), ErrorKind::OutOfSpace);
    assert_eq!(kind(at_a.trim(at, 4096, false).await), ErrorKind::InvalidRequest);
    write(&at_a, 2, 5).await;

    // At a node that never shrank by itself, since it was a replica.
    cluster.migrate(1, 2).await.expect("is handed over");
    let size = VolumeSize::try_from(end).expect("a size");
    cluster.in_force(2, InForce { size, epoch: Epoch(2) }).await;
    assert_eq!(kind(at_a.write(at, block(6), false).await), ErrorKind::OutOfSpace, "also when it is passed on");
    cluster.resize(2, SIZE).await;
    for session in [&at_a, &at_b] {
        assert_eq!(read(session, 1).await, block(5));
        assert_eq!(read(session, last).await, block(0));
        let edge = read(session, end / BLOCK as u64).await;
        assert_eq!((&edge[..512], &edge[512..]), (&[5; 512][..], &[0; 3584][..]));
    }
    cluster.until(|| cluster.in_step(1)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_everywhere_at_the_same_position_and_stays_as_it_was() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..200 {
        write(&at_a, index, 1).await;
    }
    let (snapshot, made) = cluster.snapshot("monday").await;
    for index in 0..200 {
        write(&at_a, index, 2).await;
    }
    // At once, wherever its data is.
    for node in 1..=3 {
        let session = cluster.export(node, "v@monday").await;
        assert_eq!(read(&session, 17).await, block(1), "at node {node}");
        let refused = session.write(0, block(9), false).await.expect_err("is a snapshot");
        assert!(session.info().read_only && refused.message().contains("never changes"), "{refused}");
    }
    for node in 1..=3 {
        cluster.until(|| cluster.holds_snapshot(node, snapshot)).await;
        let stored = cluster.nodes[&node].shard.snapshots(cluster.volume).await.expect("lists");
        assert_eq!((stored[0].lsn, stored[0].size), (made.lsn, made.size), "at node {node}");
    }
    let names: Vec<String> =
        cluster.nodes[&2].exports.list().await.expect("lists").into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["v", "v@monday"]);
    let unknown = cluster.nodes[&2].exports.open("v@tuesday").await.map(drop).expect_err("is not there");
    assert!(unknown.message().contains("helio volume snapshot list v"), "says what to do: {unknown}");

    cluster.meta.propose(Command::DeleteSnapshot { volume: cluster.volume, snapshot }).expect("is deleted");
    for node in 1..=3 {
        let shard = &cluster.nodes[&node].shard;
        cluster.until(|| async { shard.snapshots(cluster.volume).await.expect("lists").is_empty() }).await;
    }
    assert_eq!(read(&at_a, 17).await, block(2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_survives_the_move_to_a_node_that_has_none_of_its_data() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..3000 {
        write(&at_a, index, 1).await;
    }
    let (before, _) = cluster.snapshot("before").await;
    for index in 0..1500 {
        write(&at_a, index, 2).await;
    }
    cluster.migrate(1, 2).await.expect("is handed over");
    // A new owner that still fetches makes one too, and both are what they were whatever is written over them.
    let (after, _) = cluster.snapshot("after").await;
    let at_b = cluster.session(2).await;
    for index in 0..3000 {
        write(&at_b, index, 3).await;
    }
    for node in 1..=3 {
        let (first, second) = (cluster.export(node, "v@before").await, cluster.export(node, "v@after").await);
        assert_eq!(
            (read(&first, 7).await, read(&second, 7).await),
            (block(1).into(), block(2).into()),
            "at node {node}"
        );
        assert_eq!((read(&first, 2999).await, read(&second, 2999).await), (block(1).into(), block(1).into()));
    }
    for snapshot in [before, after] {
        for node in 1..=3 {
            cluster.until(|| cluster.holds_snapshot(node, snapshot)).await;
        }
    }
    for node in 1..=3 {
        cluster.until(|| cluster.in_step(node)).await;
    }
    cluster.stop().await;
}

/// Found under load: a node that was about to follow the volume, and had not been told of the snapshot yet, said that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_waited_for_where_it_is_not_known_yet_who_the_owner_is() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 0, 1).await;
    let (at_c, epoch) = (cluster.served(3), Epoch(1));
    cluster.until(|| async { at_c.gate.view().phase == Phase::Elsewhere }).await;
    cluster.network.set_blocked(NodeId(1), NodeId(3), true);
    cluster.snapshot("early").await;
    let session = cluster.export(3, "v@early").await;
    assert!(at_c.gate.set_phase(epoch, Phase::Activating));
    let mut reading = tokio::spawn(async move { read(&session, 0).await });
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut reading).await;
    assert!(waits.is_err(), "it waits");
    // Unless the node has come to that by itself, as it does with whatever changes in the metadata.
    at_c.gate.set_phase(epoch, Phase::Elsewhere);
    cluster.network.set_blocked(NodeId(1), NodeId(3), false);
    assert_eq!(reading.await.expect("joins"), block(1));
    cluster.stop().await;
}

/// Asked for while the owner could not tell: whoever owns the volume then makes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_asked_for_is_made_by_the_next_owner() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 0, 1).await;
    let deaf = cluster.nodes[&1].hearing.lock().await;
    let snapshot = cluster.record_snapshot("late");
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.nodes[&2].volumes.get(cluster.volume).expect("is served");
    let made = at_b.snapshots.made(snapshot, Duration::from_secs(60)).await.expect("is made");
    assert_eq!(made.lsn, cluster.nodes[&2].shard.report(cluster.volume).await.expect("reports").head);
    drop(deaf);
    let session = cluster.export(3, "v@late").await;
    assert_eq!(read(&session, 0).await, block(1));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_synced_handover_under_load_the_old_owner_is_needed_no_more() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    let stop = Arc::new(AtomicBool::new(false));
    for index in 0..4000 {
        write(&at_a, index, 1).await;
    }
    let writer = tokio::spawn({
        let (at_a, stop) = (at_a.clone(), stop.clone());
        async move {
            let mut fill = 2;
            while !stop.load(Ordering::SeqCst) {
                for index in 0..20 {
                    write(&at_a, index, fill).await;
                }
                fill = fill % 200 + 2;
            }
            fill
        }
    });
    let report = cluster.migrate_synced(1, 2).await.expect("is handed over");
    assert_eq!(report.stale_bytes, 0);
    stop.store(true, Ordering::SeqCst);
    writer.await.expect("joins");
    let at_b = cluster.session(2).await;
    let last = read(&at_b, 0).await;
    cluster.network.set_blocked(NodeId(1), NodeId(2), true);
    cluster.network.set_blocked(NodeId(2), NodeId(1), true);
    assert_eq!(read(&at_b, 0).await, last);
    for index in 20..4000 {
        assert_eq!(read(&at_b, index).await, block(1), "block {index} is here");
    }
    let gone = cluster.migrate_synced(2, 1).await.expect_err("it cannot be reached");
    assert_eq!(gone.kind(), ErrorKind::Unavailable);
    write(&at_b, 0, 9).await;
    cluster.stop().await;
}
