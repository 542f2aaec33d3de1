//! What is counted of blocks on their way to replicas, in whole nodes in one process.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::policy::{Class, Durability, Unmet};
use cluster::{BLOCK, Cluster, read, write};
use consensus::Command;
use storage_node::propagation::freight::Freight;
use storage_node::serve::volume::ServedVolume;

const BLOCK_BYTES: u64 = BLOCK as u64;

impl Cluster {
    fn freight(&self, replica: u64) -> Freight {
        let watermarks = self.nodes[&1].reconciler.watermarks(self.volume).expect("is owned");
        watermarks.freight(NodeId(replica))
    }

    fn served(&self, node: u64) -> Arc<ServedVolume> {
        self.nodes[&node].volumes.get(self.volume).expect("is served")
    }

    fn cut_off_owner(&self, blocked: bool) {
        for other in [2, 3] {
            self.network.set_blocked(NodeId(1), NodeId(other), blocked);
            self.network.set_blocked(NodeId(other), NodeId(1), blocked);
        }
    }

    async fn until_written(&self, blocks: u64) {
        self.until(|| async { [2, 3].iter().all(|id| self.freight(*id).written == blocks * BLOCK_BYTES) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_sent_once_or_is_zeroes_or_was_written_again_before() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    cluster.cut_off_owner(true);
    for fill in 1..=20 {
        write(&at_a, 7, fill).await;
    }
    // Data that is all zeroes, and zeroes over data.
    write(&at_a, 8, 0).await;
    write(&at_a, 9, 1).await;
    at_a.trim(9 * BLOCK_BYTES, BLOCK as u32, false).await.expect("is trimmed");
    at_a.write(100 * BLOCK_BYTES, Bytes::from(vec![5; 10 * BLOCK]), false).await.expect("is written");
    cluster.cut_off_owner(false);

    cluster.until_written(20 + 1 + 2 + 10).await;
    for replica in [2, 3] {
        let Freight { sent, wire, zero, overwritten, .. } = cluster.freight(replica);
        assert_eq!((sent, wire), (11 * BLOCK_BYTES, 11 * BLOCK_BYTES), "node {replica}");
        assert_eq!((zero, overwritten), (2 * BLOCK_BYTES, 20 * BLOCK_BYTES), "node {replica}");
        assert!(cluster.in_step(replica).await);
        let link = cluster.nodes[&1]
            .volumes
            .get(cluster.volume)
            .expect("is served")
            .peers
            .links()
            .link(NodeId(replica))
            .freight;
        assert_eq!(link, cluster.freight(replica), "it is the only volume");
    }
    // What is written in step with the replicas is sent as it is written.
    let before = cluster.freight(2);
    write(&at_a, 7, 99).await;
    cluster.until_written(34).await;
    assert_eq!(cluster.freight(2).sent, before.sent + BLOCK_BYTES);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_a_handover_leave_the_counts_in_order() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    for fill in 1..=5 {
        write(&at_a, 1, fill).await;
    }
    let (snapshot, _) = cluster.snapshot("s").await;
    for fill in 6..=9 {
        write(&at_a, 2, fill).await;
    }
    cluster.until(|| cluster.holds_snapshot(2, snapshot)).await;
    cluster.until_written(9).await;
    let Freight { written, sent, zero, overwritten, .. } = cluster.freight(2);
    assert_eq!(written, sent + zero + overwritten);
    assert!(sent >= 2 * BLOCK_BYTES, "each of the two blocks at least once");

    cluster.until(|| cluster.in_step(2)).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    cluster.until(|| async { cluster.nodes[&2].reconciler.watermarks(cluster.volume).is_some() }).await;
    let at_b = cluster.session(2).await;
    write(&at_b, 3, 1).await;
    let counted = || {
        let watermarks = cluster.nodes[&2].reconciler.watermarks(cluster.volume).expect("is owned");
        watermarks.freight(NodeId(1))
    };
    cluster.until(|| async { counted().written == BLOCK_BYTES }).await;
    assert_eq!(counted().sent, BLOCK_BYTES, "it counts from its own beginning");
    cluster.stop().await;
}

/// Text that shrinks to a tenth at least.
fn text(index: u64) -> Bytes {
    let line = format!("{index}: what a log file says, again and again with another number\n");
    Bytes::from(line.repeat(BLOCK / line.len() + 1).into_bytes()).slice(..BLOCK)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shrinks_is_compressed_between_providers_in_pushes_deliveries_and_pulls() {
    // Twice this is what a link between providers has at least.
    let cluster = Cluster::start(Duration::from_millis(5)).await;
    let at_a = cluster.session(1).await;
    // By then the nodes have told each other what they understand.
    write(&at_a, 0, 1).await;
    cluster.until_written(1).await;
    let before = cluster.freight(2);
    for index in 1..=64 {
        at_a.write(index * BLOCK_BYTES, text(index), false).await.expect("is written");
    }
    cluster.until_written(65).await;
    let pushed = cluster.freight(2);
    assert!((pushed.wire - before.wire) * 4 < pushed.sent - before.sent, "{pushed:?}");

    let durability = Durability { class: Class::Geo(2), unmet: Unmet::Block };
    cluster.meta.propose(Command::SetDurability { volume: cluster.volume, durability }).expect("is set");
    cluster.until(|| async { cluster.served(1).flushes.policy() == durability }).await;
    for index in 1..=64 {
        at_a.write(index * BLOCK_BYTES, text(index + 1000), false).await.expect("is written");
    }
    at_a.flush().await.expect("is flushed");
    let delivered = cluster.freight(2);
    assert!(delivered.sent - pushed.sent >= 64 * BLOCK_BYTES, "{delivered:?}");
    assert!((delivered.wire - pushed.wire) * 4 < delivered.sent - pushed.sent, "{delivered:?}");

    // The new owner has yet to fetch: nothing reaches it but manifests and pulls.
    let durability = Durability::default();
    cluster.meta.propose(Command::SetDurability { volume: cluster.volume, durability }).expect("is set");
    cluster.until(|| async { cluster.served(1).flushes.policy() == durability }).await;
    for index in 1..=64 {
        at_a.write(index * BLOCK_BYTES, text(index + 2000), false).await.expect("is written");
    }
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    for index in 1..=64 {
        assert!(read(&at_b, index).await == text(index + 2000), "block {index}");
    }
    let link = cluster.served(1).peers.links().link(NodeId(2)).freight;
    assert!(link.wire * 4 < link.sent, "{link:?}");
    cluster.until(|| cluster.in_step(3)).await;
    cluster.stop().await;
}
