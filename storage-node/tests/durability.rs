//! Classes of durability between whole nodes in one process: when a flush is answered, what it waits for, and what a change of owner
//! makes of it.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::{Class, Durability, Unmet};
use client_lib::{Epoch, Lsn, NodeId};
use cluster::{Cluster, block, read, write};
use consensus::Command;
use storage_node::propagation::flushes::Flushes;

impl Cluster {
    /// Gives the volume a class, and waits until every node knows.
    async fn set_class(&self, class: Class, unmet: Unmet) {
        let durability = Durability { class, unmet };
        self.meta.propose(Command::SetDurability { volume: self.volume, durability }).expect("is set");
        for node in self.nodes.values() {
            let served = node.volumes.get(self.volume).expect("is served");
            self.until(|| async { served.flushes.policy() == durability }).await;
        }
    }

    fn flushes(&self, node: u64) -> Flushes {
        self.nodes[&node].volumes.get(self.volume).expect("is served").flushes.look().0
    }

    /// No replica can be reached from `owner`, and it cannot be from them.
    fn cut_off(&self, owner: u64, others: &[u64], blocked: bool) {
        for other in others {
            self.network.set_blocked(NodeId(owner), NodeId(*other), blocked);
            self.network.set_blocked(NodeId(*other), NodeId(owner), blocked);
        }
    }

    async fn watermark(&self, node: u64) -> Lsn {
        self.nodes[&node].shard.report(self.volume).await.expect("reports").watermark
    }

    async fn head(&self, node: u64) -> Lsn {
        self.nodes[&node].shard.report(self.volume).await.expect("reports").head
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_is_answered_when_as_many_providers_hold_it_as_the_class_names() {
    let cluster = Cluster::start(Duration::from_millis(5)).await;
    let at_a = cluster.session(1).await;
    for (class, least) in [(Class::Geo(1), 1), (Class::Geo(2), 2)] {
        cluster.set_class(class, Unmet::Block).await;
        for round in 0..20 {
            for index in 0..10 {
                write(&at_a, round * 7 + index, round as u8 + 1).await;
            }
            let head = cluster.head(1).await;
            if round % 2 == 0 {
                at_a.flush().await.expect("is flushed");
            } else {
                at_a.write(0, block(9), true).await.expect("is written through");
            }
            let held = [cluster.watermark(2).await >= head, cluster.watermark(3).await >= head];
            assert!(held.iter().filter(|held| **held).count() >= least, "{class}: {held:?} in round {round}");
        }
        assert_eq!(cluster.flushes(1).waiting(), (0, None), "nothing is left over");
    }
    cluster.stop().await;
}

/// Several deliveries are on their way to each replica at once, and overlap.
#[tokio::test(flavor = "multi_thread")]
async fn flushes_of_many_clients_at_once_are_all_held_and_the_replicas_have_what_was_written() {
    const CLIENTS: u64 = 8;
    let cluster = Arc::new(Cluster::start(Duration::from_millis(8)).await);
    cluster.set_class(Class::Geo(1), Unmet::Block).await;
    let clients = (0..CLIENTS).map(|client| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let session = cluster.session(1).await;
            for round in 1..=25 {
                for index in 0..=client {
                    write(&session, client * 100 + index, round).await;
                }
                // Not the head: that counts writes of others that are under way, and no flush covers those.
                let acked = cluster.nodes[&1].shard.flush(cluster.volume).await.expect("syncs");
                session.flush().await.expect("is flushed");
                let held = cluster.watermark(2).await.max(cluster.watermark(3).await);
                assert!(held >= acked, "client {client}, round {round}: {held} of {acked}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client fails");
    }
    for to in [2, 3] {
        cluster.until(|| cluster.in_step(to)).await;
        let owner = cluster.meta.state().volume(cluster.volume).expect("exists").owner;
        cluster.migrate(owner.0, to).await.expect("is handed over");
        let session = cluster.session(to).await;
        for client in 0..CLIENTS {
            for index in 0..=client {
                assert_eq!(read(&session, client * 100 + index).await, block(25));
            }
        }
    }
    Arc::into_inner(cluster).expect("every client has ended").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_provider_that_is_away_costs_a_flush_nothing_and_two_block_it_until_one_is_back() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    cluster.set_class(Class::Geo(1), Unmet::Block).await;
    let at_a = cluster.session(1).await;
    cluster.cut_off(1, &[2], true);
    write(&at_a, 1, 1).await;
    at_a.flush().await.expect("node 3 holds it");
    cluster.cut_off(1, &[3], true);
    write(&at_a, 2, 2).await;
    let flushing = tokio::spawn({
        let at_a = at_a.clone();
        async move { at_a.flush().await }
    });
    cluster.until(|| async { cluster.flushes(1).waiting().0 == 1 }).await;
    for index in 0..50 {
        write(&at_a, index, 3).await;
    }
    assert_eq!(read(&at_a, 2).await, block(3), "reads and plain writes do not wait");
    assert!(!flushing.is_finished());
    cluster.cut_off(1, &[2], false);
    flushing.await.expect("joins").expect("is flushed when node 2 is back");

    // Whoever waits is let go when the class asks for no more.
    cluster.cut_off(1, &[2], true);
    write(&at_a, 2, 4).await;
    let flushing = tokio::spawn({
        let at_a = at_a.clone();
        async move { at_a.flush().await }
    });
    cluster.until(|| async { cluster.flushes(1).waiting().0 == 1 }).await;
    cluster.set_class(Class::Local, Unmet::Block).await;
    flushing.await.expect("joins").expect("is flushed");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_is_not_met_degrades_as_the_policy_says_and_heals_by_itself() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    cluster.set_class(Class::Geo(1), Unmet::Degrade { after_ms: 50 }).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    at_a.flush().await.expect("is flushed");
    assert_eq!(cluster.flushes(1).degraded(), None);
    cluster.cut_off(1, &[2, 3], true);
    for index in 0..10 {
        write(&at_a, index, 2).await;
        at_a.flush().await.expect("is answered");
    }
    let head = cluster.head(1).await;
    let degraded = cluster.flushes(1).degraded().expect("it says so");
    assert_eq!(degraded.acked, head);
    assert!(cluster.flushes(1).durable() < head);
    cluster.cut_off(1, &[2, 3], false);
    cluster.until(|| async { cluster.flushes(1).degraded().is_none() }).await;
    assert!(cluster.watermark(2).await.max(cluster.watermark(3).await) >= head, "it has healed for a reason");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_keeps_the_class_there_and_back() {
    let cluster = Cluster::start(Duration::from_millis(2)).await;
    cluster.set_class(Class::Geo(1), Unmet::Block).await;
    let at_a = cluster.session(1).await;
    for (from, to) in [(1, 2), (2, 1), (1, 3)] {
        for index in 0..200 {
            write(&at_a, index, to as u8).await;
        }
        cluster.migrate(from, to).await.expect("is handed over");
        // The late flush of whoever wrote there: it has written nothing since, and it was not flushed before.
        at_a.flush().await.expect("is flushed");
        cluster.until(|| async { cluster.flushes(to).is_whole() }).await;
        let head = cluster.head(to).await;
        let held = [cluster.watermark(from).await, cluster.watermark(6 - from - to).await];
        assert!(held.iter().any(|held| *held >= head), "{from} to {to}: {held:?} of {head}");
        assert!(cluster.flushes(to).durable() >= head);
    }
    cluster.stop().await;
}

/// The owner that was handed a volume and has not fetched it stands for nothing: the only other holder must not be counted as if
/// there were two.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_that_still_fetches_is_no_second_copy() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    // Node 3 is away, and node 2 is told of more than it can fetch.
    cluster.cut_off(3, &[1, 2], true);
    cluster.set_class(Class::Geo(1), Unmet::Block).await;
    for index in 0..2000 {
        write(&at_a, index, 7).await;
    }
    cluster.migrate(1, 2).await.expect("is handed over");
    let flushing = tokio::spawn(async move { at_a.flush().await });
    flushing.await.expect("joins").expect("is flushed in the end");
    assert!(cluster.flushes(2).is_whole(), "only then is it in two places");
    assert_eq!(cluster.meta.state().volume(cluster.volume).expect("exists").epoch, Epoch(2));
    cluster.stop().await;
}
