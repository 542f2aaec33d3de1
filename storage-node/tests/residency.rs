//! What of a volume is at a node, and bringing the rest here, in whole nodes in one process.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::policy::{Mode, Propagation};
use cluster::{BLOCK, Cluster, read, write};
use consensus::Command;
use nbd_frontend::export::{Residency, Session, ZeroOptions};

const BLOCK_BYTES: u64 = BLOCK as u64;

/// Blocks in each place, in order.
async fn residency(session: &Arc<dyn Session>) -> Vec<(u64, Residency)> {
    let (mut at, mut told) = (0, Vec::new());
    let size = session.info().size;
    while at < size {
        for extent in session.residency(at, size - at).await.expect("is told") {
            at += extent.length;
            told.push((extent.length / BLOCK_BYTES, extent.residency));
        }
    }
    assert_eq!(at, size);
    told
}

impl Cluster {
    /// Node 2 is told of everything from now on and sent nothing.
    async fn make_lazy(&self) {
        // It is sent something once, as an interval begins with the last delta.
        write(&self.session(1).await, 0, 9).await;
        self.until(|| self.in_step(2)).await;
        let propagation = Propagation {
            replicas: [(NodeId(2), Mode::Lazy { interval_ms: 3_600_000 })].into(),
            ..Propagation::default()
        };
        self.meta.propose(Command::SetPropagation { volume: self.volume, propagation }).expect("is set");
        let mode = || async { self.served(1).sending.mode(NodeId(2)) == Mode::Lazy { interval_ms: 3_600_000 } };
        self.until(mode).await;
    }

    /// Whether `node` was told of everything, snapshots too: of those it may hear a moment after what they are of.
    async fn knows(&self, node: u64) -> bool {
        let owner = self.nodes[&1].shard.report(self.volume).await.expect("reports");
        let replica = self.nodes[&node].shard.report(self.volume).await.expect("reports");
        (replica.known, replica.newest_snapshot) == (owner.head, owner.newest_snapshot)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_tells_what_it_lacks_and_fetches_a_range_when_asked() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let (at_a, at_b) = (cluster.session(1).await, cluster.session(2).await);
    let blocks = at_a.info().size / BLOCK_BYTES;
    assert_eq!(residency(&at_b).await, [(blocks, Residency::Zero)]);
    cluster.make_lazy().await;
    at_a.write(0, Bytes::from(vec![1; 600 * BLOCK]), false).await.expect("is written");
    at_a.write_zeroes(100 * BLOCK_BYTES, 50 * BLOCK_BYTES, ZeroOptions::default()).await.expect("is zeroed");
    cluster.until(|| cluster.knows(2)).await;

    let (local, stale, zero) = (Residency::Local, Residency::Stale, Residency::Zero);
    let rest = (blocks - 600, zero);
    assert_eq!(residency(&at_a).await, [(100, local), (50, zero), (450, local), rest]);
    assert_eq!(residency(&at_b).await, [(100, stale), (50, zero), (450, stale), rest]);

    // Not the owner, and it stays so; a range that begins and ends inside a block takes the whole ones.
    at_b.cache(10 * BLOCK_BYTES + 512, 300 * BLOCK_BYTES).await.expect("is fetched");
    assert_eq!(
        residency(&at_b).await,
        [(10, stale), (90, local), (50, zero), (161, local), (289, stale), rest],
        "all of the range, and nothing else"
    );
    assert_eq!(residency(&at_a).await, [(100, local), (50, zero), (450, local), rest], "the owner lost nothing");

    // Written again, it is stale again.
    write(&at_a, 20, 2).await;
    cluster.until(|| cluster.knows(2)).await;
    assert_eq!(residency(&at_b).await[1..4], [(10, local), (1, stale), (79, local)]);
    at_b.cache(0, at_b.info().size).await.expect("is fetched");
    assert_eq!(residency(&at_b).await, [(100, local), (50, zero), (450, local), rest]);

    // So a handover leaves nothing to fetch.
    let report = cluster.migrate(1, 2).await.expect("is handed over");
    assert_eq!(report.stale_bytes, 0);
    assert_eq!((read(&at_b, 20).await, read(&at_b, 120).await), (vec![2; BLOCK], vec![0; BLOCK]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_fetched_where_it_is_read() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    cluster.make_lazy().await;
    let at_a = cluster.session(1).await;
    at_a.write(0, Bytes::from(vec![1; 40 * BLOCK]), false).await.expect("is written");
    cluster.snapshot("monday").await;
    cluster.until(|| cluster.knows(2)).await;
    let monday = cluster.export(2, "v@monday").await;
    let blocks = monday.info().size / BLOCK_BYTES;
    monday.cache(0, monday.info().size).await.expect("is fetched");
    assert_eq!(residency(&monday).await, [(40, Residency::Local), (blocks - 40, Residency::Zero)]);
    assert_eq!(read(&monday, 39).await, vec![1; BLOCK]);
    cluster.stop().await;
}
