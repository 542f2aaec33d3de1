//! What is counted of blocks on their way to replicas, in whole nodes in one process.

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::policy::{Class, Durability, LinkPolicy, Mode, Propagation, Unmet};
use cluster::{BLOCK, Cluster, SIZE, read, write};
use consensus::Command;
use futures_util::future::join_all;
use storage_node::peer::message::ENCODING_PARTS;
use storage_node::propagation::freight::Freight;

const BLOCK_BYTES: u64 = BLOCK as u64;

impl Cluster {
    fn freight(&self, replica: u64) -> Freight {
        let watermarks = self.nodes[&1].reconciler.watermarks(self.volume).expect("is owned");
        watermarks.freight(NodeId(replica))
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
    at_a.trim(9 * BLOCK_BYTES, BLOCK as u64, false).await.expect("is trimmed");
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

/// More than a part of a manifest: each of so many writes stands by itself in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_changed_in_thousands_of_places_is_told_in_parts_and_arrives() {
    const PLACES: u64 = SIZE / BLOCK_BYTES / 2;
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    let takes_parts = || async {
        let volume = cluster.nodes[&1].volumes.get(cluster.volume).expect("is served");
        [2, 3].iter().all(|id| volume.peers.encodings(NodeId(*id)) & ENCODING_PARTS != 0)
    };
    cluster.until(takes_parts).await;
    cluster.cut_off_owner(true);
    for first in (0..PLACES).step_by(64) {
        join_all((first..first + 64).map(|place| write(&at_a, 2 * place, place as u8))).await;
    }
    cluster.cut_off_owner(false);
    for replica in [2, 3] {
        cluster.until(|| cluster.in_step(replica)).await;
    }
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    for place in (0..PLACES).step_by(511) {
        assert_eq!(read(&at_b, 2 * place).await, [place as u8; BLOCK], "block {}", 2 * place);
        assert_eq!(read(&at_b, 2 * place + 1).await, [0; BLOCK]);
    }
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

impl Cluster {
    fn set_link(&self, to: u64, rate: Option<u64>) {
        let policy = LinkPolicy { rate, windows: Vec::new() };
        self.meta.propose(Command::SetLink { from: NodeId(1), to: NodeId(to), policy }).expect("is set");
    }

    /// Has the replicas sent data by these modes, and waits until the owner knows.
    async fn set_modes(&self, modes: &[(u64, Mode)]) {
        let replicas = modes.iter().map(|(node, mode)| (NodeId(*node), *mode)).collect();
        let propagation = Propagation { replicas, ..Propagation::default() };
        self.meta.propose(Command::SetPropagation { volume: self.volume, propagation }).expect("is set");
        for (node, mode) in modes {
            self.until(|| async { self.served(1).sending.mode(NodeId(*node)) == *mode }).await;
        }
    }

    /// Whether `node` knows of everything that was written.
    async fn knows(&self, node: u64) -> bool {
        let head = self.nodes[&1].shard.report(self.volume).await.expect("reports").head;
        self.nodes[&node].shard.report(self.volume).await.expect("reports").known == head
    }

    async fn stale(&self, node: u64) -> u64 {
        self.nodes[&node].shard.report(self.volume).await.expect("reports").stale_blocks
    }
}

const HOURLY: Mode = Mode::Lazy { interval_ms: 3_600_000 };

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_link_holds_up_the_data_of_deltas_and_nothing_else() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    cluster.set_link(2, Some(0));
    cluster.until(|| async { cluster.served(1).peers.links().limit(NodeId(2)) == Some(0) }).await;
    for index in 0..20 {
        write(&at_a, index, 1).await;
    }
    cluster.until(|| cluster.in_step(3)).await;
    cluster.until(|| cluster.knows(2)).await;
    assert_eq!((cluster.stale(2).await, cluster.freight(2).sent), (20, 0), "it is told, and sent nothing");

    // A flush in a class takes what it needs with it, and what was begun before.
    let durability = Durability { class: Class::Geo(2), unmet: Unmet::Block };
    cluster.meta.propose(Command::SetDurability { volume: cluster.volume, durability }).expect("is set");
    cluster.until(|| async { cluster.served(1).flushes.policy() == durability }).await;
    write(&at_a, 3, 2).await;
    for index in 0..20 {
        write(&at_a, index, 3).await;
        at_a.flush().await.expect("is flushed, though the link is closed");
    }
    cluster.until(|| cluster.in_step(2)).await;

    // So does what is fetched on demand after a handover.
    let durability = Durability::default();
    cluster.meta.propose(Command::SetDurability { volume: cluster.volume, durability }).expect("is set");
    cluster.until(|| async { cluster.served(1).flushes.policy() == durability }).await;
    for index in 0..20 {
        write(&at_a, index, 4).await;
    }
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    for index in 0..20 {
        assert_eq!(read(&at_b, index).await, vec![4; BLOCK]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_link_does_not_keep_a_volume_from_moving_with_everything() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    cluster.set_modes(&[(2, HOURLY)]).await;
    cluster.set_link(2, Some(0));
    cluster.until(|| async { cluster.served(1).peers.links().limit(NodeId(2)) == Some(0) }).await;
    for index in 0..600 {
        write(&at_a, index, 1).await;
    }
    cluster.until(|| cluster.knows(2)).await;
    assert_eq!(cluster.stale(2).await, 600);
    let report = cluster.migrate_synced(1, 2).await.expect("is handed over");
    assert_eq!(report.stale_bytes, 0, "it holds everything");
    let at_b = cluster.session(2).await;
    assert_eq!(read(&at_b, 599).await, vec![1; BLOCK]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_replica_is_told_at_once_and_sent_each_block_once() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 0, 1).await;
    cluster.until_written(1).await;
    cluster.set_modes(&[(2, HOURLY)]).await;
    for fill in 1..=30 {
        write(&at_a, 5, fill).await;
        write(&at_a, 6, fill).await;
        // The eager one is sent each version that it has time for; both are told of each.
        cluster.until(|| cluster.in_step(3)).await;
        cluster.until(|| cluster.knows(2)).await;
    }
    assert_eq!(cluster.freight(2).sent, BLOCK_BYTES, "nothing since it is lazy");
    assert_eq!(cluster.freight(3).sent, (1 + 2 * 30) * BLOCK_BYTES);

    cluster.set_modes(&[(2, Mode::Eager)]).await;
    cluster.until_written(61).await;
    let Freight { sent, overwritten, .. } = cluster.freight(2);
    assert_eq!((sent, overwritten), (3 * BLOCK_BYTES, 58 * BLOCK_BYTES));
    assert!(cluster.in_step(2).await);

    // A lazy one is sent the next delta when its interval is over, and not before.
    cluster.set_modes(&[(2, Mode::Lazy { interval_ms: 1000 })]).await;
    for fill in 1..=5 {
        write(&at_a, 7, fill).await;
    }
    cluster.until(|| cluster.in_step(2)).await;

    // What nobody has sent is found after a handover all the same.
    cluster.set_modes(&[(2, HOURLY)]).await;
    write(&at_a, 8, 77).await;
    cluster.migrate(1, 2).await.expect("is handed over");
    let at_b = cluster.session(2).await;
    assert_eq!(read(&at_b, 8).await, vec![77; BLOCK]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_replica_is_sent_ahead_what_was_left_alone_and_applies_nothing_before_its_delta() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 0, 1).await;
    cluster.until_written(1).await;
    // Left alone for a quarter of it; the delta is due when all of it is over.
    cluster.set_modes(&[(2, Mode::Lazy { interval_ms: 40_000 })]).await;
    let watermark = || async { cluster.nodes[&2].shard.report(cluster.volume).await.expect("reports").watermark };
    let before = watermark().await;
    for index in 0..40 {
        write(&at_a, index, 9).await;
    }
    cluster.until(|| cluster.knows(2)).await;
    assert_eq!((cluster.stale(2).await, cluster.freight(2).sent), (40, BLOCK_BYTES));
    cluster.until(|| async { cluster.stale(2).await == 0 }).await;
    assert_eq!(watermark().await, before, "it has everything, and shows what it showed");
    assert_eq!(cluster.freight(2).sent, 41 * BLOCK_BYTES);
    let report = cluster.migrate(1, 2).await.expect("is handed over");
    assert_eq!(report.stale_bytes, 0, "nothing is left to fetch");
    let at_b = cluster.session(2).await;
    assert_eq!(read(&at_b, 39).await, vec![9; BLOCK]);
    cluster.stop().await;
}
