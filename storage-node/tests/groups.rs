//! Groups of volumes on whole nodes without Raft and without a network: handed over in one step, kept at one cut.

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId, VolumeGroupId, VolumeId};
use cluster::{Cluster, TestLog, block, create, read, write};
use consensus::{Command, Response};
use nbd_frontend::export::{ExportDirectory, Session};
use storage_node::ownership::driver::{Driver, HandoverReport, OwnershipLog};
use storage_node::ownership::gate::Phase;
use storage_node::serve::cut::{CutReport, snapshot_together};
use storage_node::serve::volume::ServedVolume;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A cluster whose volumes `v` and `w` are a group.
struct Grouped {
    cluster: Cluster,
    group: VolumeGroupId,
    volumes: [VolumeId; 2],
}

impl Grouped {
    async fn start(one_way: Duration) -> Grouped {
        let cluster = Cluster::start(one_way).await;
        let volumes = [cluster.volume, create(&cluster.meta, "w")];
        for id in 1..=3 {
            cluster.until(|| async { cluster.nodes[&id].volumes.get(volumes[1]).is_some() }).await;
        }
        let command = Command::CreateGroup { name: "g".parse().expect("a name"), members: volumes.into(), nonce: 1 };
        let Ok(Response::GroupCreated { group }) = cluster.meta.propose(command) else { panic!("is created") };
        let grouped = Grouped { cluster, group, volumes };
        grouped.settled(1, 1).await;
        grouped
    }

    /// Waits until `node` serves both volumes in `epoch`.
    async fn settled(&self, node: u64, epoch: u64) {
        for volume in self.volumes {
            let served = self.cluster.nodes[&node].volumes.get(volume).expect("is served");
            let view = served.gate.settled(Epoch(epoch)).await.expect("is settled");
            assert_eq!((view.owner, view.phase), (NodeId(node), Phase::Owner));
        }
    }

    fn owned(&self, node: u64) -> Vec<(Arc<ServedVolume>, Epoch)> {
        let served = |volume| self.cluster.nodes[&node].volumes.get(volume).expect("is served");
        self.volumes.map(served).map(|volume| (volume.clone(), volume.gate.view().epoch)).into()
    }

    fn log(&self, node: u64, lose_answers: bool) -> Arc<TestLog> {
        Arc::new(TestLog { meta: self.cluster.meta.clone(), me: NodeId(node), lose_answers })
    }

    fn driver(&self, from: u64, to: u64, lose_answers: bool, cancel: CancellationToken) -> Driver {
        let log = self.log(from, lose_answers);
        Driver::of_group(self.group, self.owned(from), NodeId(to), log, cancel)
    }

    async fn migrate(&self, from: u64, to: u64, lose_answers: bool) -> Result<HandoverReport, Error> {
        self.driver(from, to, lose_answers, CancellationToken::new()).run().await
    }

    async fn snapshot(&self, name: &str, nonce: u64) -> Result<CutReport, Error> {
        let (volumes, log) = (self.owned(1), self.log(1, false));
        snapshot_together(self.group, &volumes, name.parse().expect("a name"), nonce, &*log).await
    }

    /// Where both volumes are, by the metadata.
    fn owners(&self) -> [(NodeId, Epoch); 2] {
        let state = self.cluster.meta.state();
        self.volumes.map(|id| state.volume(id).expect("exists")).map(|volume| (volume.owner, volume.epoch))
    }

    async fn sessions(&self, node: u64) -> [Arc<dyn Session>; 2] {
        let exports = &self.cluster.nodes[&node].exports;
        [exports.open("v").await.expect("opens"), exports.open("w").await.expect("opens")]
    }
}

/// Writes rounds, each to `w` after it was acked by `v`, until told to stop; returns the last.
fn rounds(sessions: [Arc<dyn Session>; 2], stop: CancellationToken) -> (Arc<AtomicU8>, JoinHandle<u8>) {
    let reached = Arc::new(AtomicU8::new(0));
    let told = reached.clone();
    let writing = tokio::spawn(async move {
        let mut round = 0;
        while !stop.is_cancelled() {
            // 1 to 200 and from the beginning, so that who reads knows which is ahead.
            round = round % 200 + 1;
            for session in &sessions {
                write(session, 0, round).await;
            }
            reached.store(round, Ordering::SeqCst);
        }
        round
    });
    (told, writing)
}

/// What `v` and `w` hold: of the same round, or `v` is one ahead.
async fn require_cut(sessions: &[Arc<dyn Session>; 2]) -> u8 {
    let (second, first) = (read(&sessions[1], 0).await[0], read(&sessions[0], 0).await[0]);
    assert!(first == second || first == second % 200 + 1, "v is of round {first}, w of {second}");
    second
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_there_and_back_under_writers_with_both_volumes_at_once() {
    let grouped = Grouped::start(Duration::from_millis(3)).await;
    let stop = CancellationToken::new();
    let (reached, writing) = rounds(grouped.sessions(1).await, stop.clone());
    grouped.cluster.until(|| async { reached.load(Ordering::SeqCst) > 5 }).await;
    for (epoch, (from, to)) in [(1, 2), (2, 3), (3, 1)].into_iter().enumerate() {
        let epoch = epoch as u64 + 2;
        let report = grouped.migrate(from, to, false).await.expect("is handed over");
        assert_eq!(report.epochs, [Epoch(epoch); 2]);
        assert_eq!(grouped.owners(), [(NodeId(to), Epoch(epoch)); 2]);
        grouped.settled(to, epoch).await;
        let before = reached.load(Ordering::SeqCst);
        grouped.cluster.until(|| async { reached.load(Ordering::SeqCst) != before }).await;
    }
    stop.cancel();
    let last = writing.await.expect("sees no error");
    for node in 1..=3 {
        assert_eq!(require_cut(&grouped.sessions(node).await).await, last);
    }
    grouped.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_holds_both_volumes_until_it_is_known_that_they_have_moved() {
    let grouped = Grouped::start(Duration::from_millis(2)).await;
    let at_a = grouped.sessions(1).await;
    for session in &at_a {
        write(session, 0, 7).await;
    }
    grouped.migrate(1, 2, true).await.expect("it was committed");
    assert_eq!(grouped.owners(), [(NodeId(2), Epoch(2)); 2]);
    grouped.settled(2, 2).await;
    for session in &at_a {
        write(session, 1, 8).await;
    }
    for session in grouped.sessions(2).await {
        assert_eq!((read(&session, 0).await, read(&session, 1).await), (block(7).into(), block(8).into()));
    }
    grouped.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_or_is_ended_leaves_both_volumes_where_they_are_and_in_use() {
    let grouped = Grouped::start(Duration::from_millis(2)).await;
    let at_a = grouped.sessions(1).await;
    // The destination is gone when the last manifests are sent; whoever asked ends it.
    let cancel = CancellationToken::new();
    cancel.cancel();
    let ended = grouped.driver(1, 2, false, cancel).run().await.expect_err("is ended");
    assert_eq!(ended.kind(), ErrorKind::Closed);
    // A volume that is not flushed keeps the other as well.
    write(&at_a[0], 0, 1).await;
    at_a[0].flush().await.expect("flushes");
    write(&at_a[1], 0, 1).await;
    let busy = grouped.driver(1, 2, false, CancellationToken::new()).flushed().run().await.expect_err("is in use");
    assert_eq!(busy.kind(), ErrorKind::Busy);
    // Another volume comes into the group in between: then it is not the group that would move.
    let third = create(&grouped.cluster.meta, "x");
    let driver = grouped.driver(1, 2, false, CancellationToken::new());
    let change = Command::ChangeGroup { group: grouped.group, add: [third].into(), remove: [].into() };
    grouped.cluster.meta.propose(change).expect("is changed");
    let other = driver.run().await.expect_err("is refused");
    assert!(other.message().contains("helio group status g"), "{other}");
    assert_eq!(grouped.owners(), [(NodeId(1), Epoch(1)); 2]);
    for session in &at_a {
        write(session, 1, 9).await;
    }
    grouped.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_of_one_volume_meanwhile_moves_none_and_the_other_goes_on() {
    let grouped = Grouped::start(Duration::from_millis(2)).await;
    let at_a = grouped.sessions(1).await;
    for node in [2, 3] {
        grouped.cluster.until(|| grouped.cluster.in_step(node)).await;
    }
    // The owner and its destination hear of nothing that happens to the other volume.
    let hearing = [1, 2].map(|node| grouped.cluster.nodes[&node].hearing.clone());
    let deaf = [hearing[0].lock().await, hearing[1].lock().await];
    let driver = grouped.driver(1, 2, false, CancellationToken::new());
    // Not by its lease, which would be that of the other volume too.
    let stepped_down = vec![(grouped.volumes[1], Epoch(1))];
    grouped.log(1, false).step_down(stepped_down).await.expect("owns it");
    let start = grouped.cluster.nodes[&3].shard.report(grouped.volumes[1]).await.expect("reports").watermark;
    assert_eq!(start, Lsn::ZERO);
    let takeover = Command::Takeover {
        volume: grouped.volumes[1],
        from: NodeId(1),
        epoch: Epoch(1),
        to: NodeId(3),
        incarnation: 1,
        start,
    };
    grouped.cluster.meta.propose(takeover).expect("is taken over");
    let running = tokio::spawn(driver.run());
    let served = grouped.cluster.nodes[&1].volumes.get(grouped.volumes[1]).expect("is served");
    grouped.cluster.until(|| async { matches!(served.gate.view().phase, Phase::Transferring(_)) }).await;
    drop(deaf);
    let fenced = running.await.expect("joins").expect_err("one of them was taken over");
    assert_eq!(fenced.kind(), ErrorKind::Fenced, "{fenced}");
    assert_eq!(grouped.owners(), [(NodeId(1), Epoch(1)), (NodeId(3), Epoch(2))]);
    write(&at_a[0], 0, 5).await;
    // What is left of it goes in one step, and they are together again.
    let served = grouped.cluster.served(1);
    let log = grouped.log(1, false);
    let members = vec![(served, Epoch(1))];
    let report = Driver::of_group(grouped.group, members, NodeId(3), log, CancellationToken::new()).run().await;
    assert_eq!(report.expect("is handed over").epochs, [Epoch(2)]);
    assert_eq!(grouped.owners(), [(NodeId(3), Epoch(2)); 2]);
    grouped.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_group_under_a_writer_is_of_one_moment_at_every_node() {
    let grouped = Grouped::start(Duration::from_millis(2)).await;
    let stop = CancellationToken::new();
    let (reached, writing) = rounds(grouped.sessions(1).await, stop.clone());
    let mut before = reached.load(Ordering::SeqCst);
    for nonce in 0..12 {
        grouped.cluster.until(|| async { reached.load(Ordering::SeqCst) != before }).await;
        let made = grouped.snapshot(&format!("s{nonce}"), nonce).await.expect("is made");
        assert!(made.made.iter().all(|made| made.lsn > Lsn::ZERO), "{made:?}");
        before = reached.load(Ordering::SeqCst);
    }
    stop.cancel();
    writing.await.expect("sees no error");
    for (node, nonce) in [(1, 0), (1, 5), (1, 11), (2, 0), (3, 11)] {
        let names = ["v", "w"].map(|volume| format!("{volume}@s{nonce}"));
        let [first, second] = names.each_ref().map(|name| grouped.cluster.export(node, name));
        require_cut(&[first.await, second.await]).await;
    }
    grouped.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_given_up_is_dropped_and_what_came_after_it_is_made() {
    let grouped = Grouped::start(Duration::from_millis(2)).await;
    let log = grouped.log(1, false);
    let members = grouped.volumes.map(|volume| (volume, Epoch(1))).into();
    // Recorded, and nobody makes it: as if the answer to whoever would have was lost.
    log.snapshot_group(grouped.group, "lost".parse().expect("a name"), members, 1).await.expect("is listed");
    let (after, _) = grouped.cluster.snapshot("after").await;
    assert!(after.0 > 0);
    for volume in grouped.volumes {
        let is_lost = || grouped.cluster.meta.state().volume(volume).expect("exists").snapshot_named("lost").is_none();
        grouped.cluster.until(|| async { is_lost() }).await;
    }
    grouped.snapshot("one", 2).await.expect("nothing is in its way");
    grouped.cluster.stop().await;
}
