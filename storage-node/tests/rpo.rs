//! How far replicas are behind, told honestly by whole nodes in one process, and writes that are slowed for it.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::{Rpo, RpoAction};
use cluster::{Cluster, block, write};
use consensus::Command;
use storage_node::propagation::watermarks::Watermarks;

impl Cluster {
    fn watermarks(&self, node: u64) -> Arc<Watermarks> {
        self.nodes[&node].reconciler.watermarks(self.volume).expect("is owned")
    }

    fn set_rpo(&self, rpo: Option<Rpo>) {
        self.meta.propose(Command::SetRpo { volume: self.volume, rpo }).expect("is set");
    }
}

/// Was told to be up to date once for as long as nothing could be told to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_away_is_behind_from_the_first_write_that_it_lacks() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    write(&at_a, 1, 1).await;
    cluster.until(|| cluster.in_step(2)).await;
    let marks = cluster.watermarks(1);
    let head = cluster.nodes[&1].shard.report(cluster.volume).await.expect("reports").head;
    cluster.until(|| async { marks.highest() == Some(head) && marks.behind(head).is_zero() }).await;
    let held = head;
    assert!(marks.moment_ago(held).is_some());

    cluster.cut_off_owner(true);
    let began = marks.now();
    write(&at_a, 2, 2).await;
    let behind = || marks.behind(marks.highest().expect("there are replicas"));
    cluster.until(|| async { behind() > Duration::from_millis(300) }).await;
    let (behind, since) = (behind(), marks.now() - began);
    assert!(behind <= since + Duration::from_secs(1), "{behind:?}, and it was cut off {since:?} ago");
    write(&at_a, 3, 3).await;
    cluster.cut_off_owner(false);
    cluster.until(|| async { marks.behind(marks.highest().expect("there are replicas")).is_zero() }).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_target_is_noted_and_slows_writes_only_if_it_shall_and_never_fails_them() {
    let cluster = Cluster::start(Duration::from_millis(1)).await;
    let at_a = cluster.session(1).await;
    let (marks, served) = (cluster.watermarks(1), cluster.served(1));
    let target_ms = 500;
    cluster.set_rpo(Some(Rpo { target_ms, action: RpoAction::Alarm }));
    for index in 0..100 {
        write(&at_a, index, 1).await;
    }
    cluster
        .until(|| async { marks.missed_for().is_none() && marks.behind(marks.highest().expect("there are")).is_zero() })
        .await;
    cluster.cut_off_owner(true);
    write(&at_a, 0, 2).await;
    cluster.until(|| async { marks.missed_for().is_some() }).await;
    assert_eq!(served.pace.rate(), None, "an alarm slows nothing");

    cluster.set_rpo(Some(Rpo { target_ms, action: RpoAction::Throttle }));
    cluster.until(|| async { served.pace.rate().is_some() }).await;
    for index in 0..20 {
        at_a.write(index * 4096, block(3), false).await.expect("is slow, not refused");
    }
    cluster.cut_off_owner(false);
    cluster.until(|| async { marks.missed_for().is_none() && served.pace.rate().is_none() }).await;
    cluster.set_rpo(None);
    cluster.until(|| async { served.pace.rpo().is_none() }).await;
    cluster.stop().await;
}
