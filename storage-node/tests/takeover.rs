//! Takeovers between whole nodes in one process: what the new owner begins with, what the others forget, what the old owner
//! keeps, and who is refused.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use client_lib::clock::SystemClock;
use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId};
use cluster::{Cluster, TestLog, block, read, write};
use consensus::Command;
use storage_node::ownership::driver as handover;
use storage_node::ownership::expiry::LeaseWatch;
use storage_node::ownership::gate::Phase;
use storage_node::ownership::standing::Tail;
use storage_node::ownership::takeover::driver::{Driver, Stage, Taken};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

impl Cluster {
    fn takeover(&self, to: u64, lose_answers: bool) -> (Driver, watch::Receiver<Stage>) {
        let volume = self.nodes[&to].volumes.get(self.volume).expect("is served");
        let meta = self.meta.state().volume(self.volume).expect("exists").clone();
        let log = Arc::new(TestLog { meta: self.meta.clone(), me: NodeId(to), lose_answers });
        let leases = Arc::new(LeaseWatch::new(Arc::new(SystemClock::new())));
        let (stage, stages) = watch::channel(Stage::Expiring);
        (Driver::new(volume, meta.owner, meta.epoch, log, leases, stage), stages)
    }

    async fn take_over(&self, to: u64) -> Result<Taken, Error> {
        self.takeover(to, false).0.run().await
    }

    /// Nothing comes to `node`, or from it, and it hears nothing of metadata until what is returned is dropped.
    async fn isolate(&self, node: u64) -> OwnedMutexGuard<()> {
        self.block(node, true);
        self.nodes[&node].hearing.clone().lock_owned().await
    }

    fn block(&self, node: u64, blocked: bool) {
        for other in self.nodes.keys().filter(|other| **other != node) {
            self.network.set_blocked(NodeId(node), NodeId(*other), blocked);
            self.network.set_blocked(NodeId(*other), NodeId(node), blocked);
        }
    }

    fn tail(&self, node: u64) -> Option<Tail> {
        self.nodes[&node].volumes.get(self.volume).expect("is served").standing.tail()
    }

    async fn known_and_held(&self, node: u64) -> (Lsn, Lsn) {
        let report = self.nodes[&node].shard.report(self.volume).await.expect("reports");
        (report.known, report.watermark)
    }

    /// Writes at node 1 until `node` has been told of more than it holds, and cuts it off from node 1 then. Returns how often
    /// every one of the first 500 blocks was written.
    async fn tell_more_than_it_holds(&self, node: u64) -> u8 {
        let at_a = self.session(1).await;
        let both = |blocked| {
            self.network.set_blocked(NodeId(1), NodeId(node), blocked);
            self.network.set_blocked(NodeId(node), NodeId(1), blocked);
        };
        for round in 2..250 {
            let (known, _) = self.known_and_held(node).await;
            for index in 0..500 {
                write(&at_a, index, round).await;
            }
            self.until(|| async { self.known_and_held(node).await.0 > known }).await;
            both(true);
            let (known, held) = self.known_and_held(node).await;
            if known > held {
                return round;
            }
            both(false);
        }
        panic!("it always had everything at once");
    }
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.map(drop).expect_err("is refused").kind()
}

/// The owner found that its volume had been taken over when the outcome of its handover was not the one that it had asked for, and followed the new
/// owner before anybody had looked what of its own had been cut off: there was no tail, and the new owner's writes were applied on top of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_handover_a_takeover_has_overtaken_keeps_its_tail() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..20 {
        write(&at_a, index, 1).await;
    }
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
    }
    let (_, held) = cluster.known_and_held(2).await;
    for (from, to) in [(1, 2), (2, 1)] {
        cluster.network.set_blocked(NodeId(from), NodeId(to), true);
    }
    for index in 0..10 {
        write(&at_a, index, 2).await;
    }
    let head = cluster.known_and_held(1).await.0;
    // Neither the owner nor where it is to go hears of it.
    let deaf =
        (cluster.nodes[&1].hearing.clone().lock_owned().await, cluster.nodes[&3].hearing.clone().lock_owned().await);
    cluster.meta.propose(Command::ExpireLease { node: NodeId(1), renewals: 0 }).expect("was never renewed");
    let (volume, from, to) = (cluster.volume, NodeId(1), NodeId(2));
    let takeover = Command::Takeover { volume, from, epoch: Epoch(1), to, incarnation: 1, start: held };
    cluster.meta.propose(takeover).expect("is taken over");
    let handover = {
        let log = Arc::new(TestLog { meta: cluster.meta.clone(), me: NodeId(1), lose_answers: false });
        handover::Driver::new(cluster.served(1), NodeId(3), Epoch(1), log, CancellationToken::new())
    };
    let running = tokio::spawn(handover.run());
    let served = cluster.served(1);
    cluster.until(|| async { matches!(served.gate.view().phase, Phase::Transferring(_)) }).await;
    drop(deaf);
    assert_eq!(kind(running.await.expect("joins")), ErrorKind::Fenced);
    assert_eq!(
        cluster.tail(1),
        Some(Tail { from: held, to: head, blocks: 10 }),
        "before anything is taken from the new owner"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_goes_on_with_what_it_holds_and_the_old_owner_keeps_its_tail() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..100 {
        write(&at_a, index, 1).await;
    }
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
    }
    let (_, held) = cluster.known_and_held(2).await;
    let deaf = cluster.isolate(1).await;
    for index in 0..10 {
        write(&at_a, index, 2).await;
    }
    let head = cluster.known_and_held(1).await.0;
    // A traveller: it wrote through node 1, from node 3's point of view it may go on, and it may not.
    let at_c = cluster.session(3).await;

    let taken = cluster.take_over(2).await.expect("is taken over");
    assert_eq!((taken.epoch, taken.start, taken.known, taken.lost_blocks), (Epoch(2), held, held, 0));
    let at_b = cluster.session(2).await;
    assert_eq!(read(&at_b, 3).await, block(1), "what the owner told nobody is lost");
    write(&at_b, 3, 7).await;
    cluster.until(|| cluster.in_step(3)).await;
    assert_eq!(read(&at_c, 3).await, block(7), "it had used nothing before");

    // The old owner comes back.
    cluster.block(1, false);
    drop(deaf);
    cluster.until(|| async { cluster.tail(1).is_some() }).await;
    assert_eq!(cluster.tail(1), Some(Tail { from: held, to: head, blocks: 10 }));
    assert_eq!(cluster.tail(3), None);
    assert_eq!(kind(at_a.read(0, 4096).await), ErrorKind::Fenced);
    assert_eq!(kind(at_a.write(0, block(9), false).await), ErrorKind::Fenced);
    let refused = at_a.flush().await.expect_err("what it would make durable may be gone");
    assert!(refused.message().contains("connect anew"), "says what to do: {refused}");
    assert_eq!(read(&cluster.session(1).await, 3).await, block(7), "a new connection sees the volume");

    // It keeps what it has, and takes and gives nothing.
    cluster
        .until(|| async {
            let watermarks = cluster.nodes[&2].reconciler.watermarks(cluster.volume).expect("is owned");
            watermarks.snapshot()[&NodeId(1)].tail == cluster.tail(1)
        })
        .await;
    let refused = cluster.migrate(2, 1).await.expect_err("has left");
    assert!(refused.message().contains("has left the volume"), "{refused}");
    let refused = cluster.take_over(1).await.expect_err("has left");
    assert!(matches!(refused.kind(), ErrorKind::InvalidRequest), "{refused}");
    let tail = cluster.export(1, "v@tail-1").await;
    assert_eq!((read(&tail, 3).await, read(&tail, 50).await), (block(2).into(), block(1).into()));
    assert_eq!(read(&tail, 5000).await, block(0));
    assert_eq!(kind(tail.write(0, block(9), false).await), ErrorKind::NotOwner);
    assert_eq!(cluster.known_and_held(1).await.0, head);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_forgets_what_it_was_told_of_and_does_not_hold() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    cluster.block(2, true);
    cluster.tell_more_than_it_holds(3).await;
    let (known, held) = cluster.known_and_held(3).await;
    let deaf = cluster.isolate(1).await;
    cluster.network.set_blocked(NodeId(2), NodeId(3), false);
    cluster.network.set_blocked(NodeId(3), NodeId(2), false);
    let taken = cluster.take_over(3).await.expect("is taken over");
    assert!(taken.start >= held && taken.known == known && taken.lost_blocks > 0, "{taken:?}");
    let at_c = cluster.session(3).await;
    // On a busy machine a round of writes is more than one delta: a prefix ends within it, and has the round before behind that.
    let mut rounds = Vec::new();
    for index in 0..500 {
        rounds.push(read(&at_c, index).await[0]);
    }
    let (newest, before) = (rounds[0], if rounds[0] == 2 { 0 } else { rounds[0].saturating_sub(1) });
    let end = rounds.iter().position(|round| *round != newest).unwrap_or(rounds.len());
    assert!(
        rounds[end..].iter().all(|round| *round == before),
        "blocks from {end} on are of another moment: {rounds:?}"
    );
    write(&at_c, 0, 251).await;
    cluster.until(|| cluster.in_step(2)).await;
    drop(deaf);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_told_of_more_forgets_it_and_follows() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    for index in 0..500 {
        write(&at_a, index, 1).await;
    }
    cluster.until(|| cluster.in_step(2)).await;
    cluster.block(2, true);
    cluster.tell_more_than_it_holds(3).await;
    let held = cluster.known_and_held(3).await.1;
    let deaf = cluster.isolate(1).await;
    cluster.network.set_blocked(NodeId(2), NodeId(3), false);
    cluster.network.set_blocked(NodeId(3), NodeId(2), false);
    let taken = cluster.take_over(2).await.expect("is taken over");
    let at_b = cluster.session(2).await;
    for index in 0..500 {
        assert_eq!(read(&at_b, index).await, block(1));
    }
    write(&at_b, 0, 251).await;
    match held > taken.start {
        // It had applied a delta more: that is its tail.
        true => cluster.until(|| async { cluster.tail(3).is_some() }).await,
        false => cluster.until(|| cluster.in_step(3)).await,
    }
    drop(deaf);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_renews_its_lease_keeps_its_volume() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let renew = Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 3_600_000 };
    cluster.meta.propose(renew.clone()).expect("is granted");
    let (driver, mut stages) = cluster.takeover(2, false);
    let taking = tokio::spawn(driver.run());
    let waited = stages.wait_for(|stage| matches!(stage, Stage::Waiting { .. })).await.expect("it goes on").to_owned();
    assert!(matches!(waited, Stage::Waiting { remaining_ms: 3_600_000.. }), "{waited:?}");
    cluster.meta.propose(renew).expect("is granted");
    let refused = taking.await.expect("joins").expect_err("it is alive");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.message().contains("migrate"), "says what to do: {refused}");
    write(&cluster.session(1).await, 0, 1).await;
    cluster.until(|| cluster.in_step(2)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_whose_answer_was_lost_still_ends() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    write(&cluster.session(1).await, 1, 1).await;
    cluster.until(|| cluster.in_step(2)).await;
    let deaf = cluster.isolate(1).await;
    let taken = cluster.takeover(2, true).0.run().await.expect("consensus tells that it happened");
    assert_eq!(taken.epoch, Epoch(2));
    write(&cluster.session(2).await, 1, 2).await;
    drop(deaf);
    cluster.stop().await;
}

/// The old owner had given the volume away before it was lost: there is nothing to take over, and nothing was forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_handed_over_meanwhile_is_left_alone() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let renew = Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 3_600_000 };
    cluster.meta.propose(renew).expect("is granted");
    write(&cluster.session(1).await, 1, 1).await;
    let (driver, mut stages) = cluster.takeover(2, false);
    let taking = tokio::spawn(driver.run());
    stages.wait_for(|stage| matches!(stage, Stage::Waiting { .. })).await.expect("it goes on");
    cluster.migrate(1, 3).await.expect("is handed over");
    assert_eq!(kind(taking.await.expect("joins")), ErrorKind::Busy);
    write(&cluster.session(3).await, 1, 2).await;
    cluster.until(|| cluster.in_step(2)).await;
    assert!(cluster.meta.state().volume(cluster.volume).expect("exists").forks.is_empty());
    cluster.stop().await;
}

/// A client at a third node wrote through the owner that is lost. Its writes may be gone, and it must hear of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_travelling_writer_is_refused_after_a_takeover() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    cluster.migrate(1, 3).await.expect("is handed over");
    // It writes on, from node 1, at node 3.
    write(&at_a, 2, 2).await;
    cluster.until(|| cluster.in_step(2)).await;
    let at_b = cluster.session(2).await;
    assert_eq!(read(&at_b, 2).await, block(2), "from the owner that is lost then");
    let deaf = cluster.isolate(3).await;
    cluster.take_over(2).await.expect("is taken over");
    cluster
        .until(|| async {
            cluster.nodes[&1].volumes.get(cluster.volume).expect("is served").gate.view().owner == NodeId(2)
        })
        .await;
    for result in [at_a.write(0, block(9), false).await, at_a.flush().await, at_a.read(0, 4096).await.map(drop)] {
        assert_eq!(kind(result), ErrorKind::Fenced);
    }
    // Also at the new owner itself, where nobody would have to ask another node.
    for result in [at_b.write(0, block(9), false).await, at_b.read(0, 4096).await.map(drop)] {
        assert_eq!(kind(result), ErrorKind::Fenced);
    }
    assert_eq!(read(&cluster.session(1).await, 2).await, block(2), "a new connection reads what survived");
    drop(deaf);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_before_the_fork_stay_and_those_behind_it_are_gone() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 0, 1).await;
    let (before, _) = cluster.snapshot("before").await;
    write(&at_a, 0, 2).await;
    for node in [2, 3] {
        cluster.until(|| cluster.in_step(node)).await;
        cluster.until(|| cluster.holds_snapshot(node, before)).await;
    }
    // The owner alone has it. It can still tell metadata of it.
    cluster.block(1, true);
    write(&at_a, 0, 3).await;
    let (after, _) = cluster.snapshot("after").await;
    let deaf = cluster.isolate(1).await;
    cluster.take_over(2).await.expect("is taken over");
    let listed = cluster.meta.state().volume(cluster.volume).expect("exists").snapshots.clone();
    assert_eq!(listed.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [before]);
    assert_eq!(read(&cluster.export(3, "v@before").await, 0).await, block(1));
    cluster.block(1, false);
    drop(deaf);
    cluster.until(|| async { cluster.tail(1).is_some() }).await;
    // What the old owner has, it keeps.
    let kept = cluster.nodes[&1].shard.snapshots(cluster.volume).await.expect("lists");
    assert_eq!(kept.iter().map(|snapshot| snapshot.snapshot).collect::<Vec<_>>(), [before, after]);
    cluster.stop().await;
}
