//! Whether the nodes that follow volumes of this one are still there.
//!
//! Who has nothing to be sent is not called, so its last word alone would count for ever: a node that died was in reach as long as nobody wrote,
//! and the next flush hung without anything having warned of it. Each is asked for a word when it has said none for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::transport::Class;
use futures_util::future::join_all;

use super::admin::NodeAdmin;
use crate::peer::links::Links;
use crate::peer::message::PeerRequest;
use crate::propagation::progress::Progress;
use crate::propagation::watermarks::Watermarks;

/// How often, and after how much silence, a follower is asked.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// The silence after which a node is out of reach: it has been asked twice.
const SILENT_AFTER: Duration = Duration::from_secs(15);

/// Asks the silent ones among the followers of what this node owns. Runs for ever.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut look = tokio::time::interval(ASK_AFTER);
    loop {
        look.tick().await;
        let (state, peers) = (admin.meta.state(), &admin.peers);
        let owned = state.volumes().filter(|volume| volume.owner == admin.this.id);
        let followers: BTreeSet<NodeId> = owned.flat_map(|volume| volume.replicas.iter().copied()).collect();
        let is_silent = |node: &NodeId| peers.links().heard_ago(*node).is_none_or(|ago| ago >= ASK_AFTER);
        // The answer is noted where it arrives; none is the news.
        join_all(followers.into_iter().filter(is_silent).map(|node| async move {
            let _ = peers.ask(node, Class::Control, PeerRequest::Ping, Bytes::new()).await;
        }))
        .await;
    }
}

/// What is known of each replica, where one that has fallen silent is out of reach.
pub(super) fn known(marks: &Watermarks, links: &Links) -> BTreeMap<NodeId, Progress> {
    let mut known = marks.snapshot();
    for (node, progress) in &mut known {
        judge(progress, links.heard_ago(*node));
    }
    known
}

fn judge(progress: &mut Progress, heard_ago: Option<Duration>) {
    if let Some(ago) = heard_ago.filter(|ago| progress.reachable && *ago >= SILENT_AFTER) {
        progress.reachable = false;
        progress.error = Some(format!("it has said nothing for {} s", ago.as_secs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::message::ReplicaPosition;

    /// A replica that was killed stayed "reachable", "as of now", and its class "met", for as long as nobody wrote.
    #[test]
    fn a_replica_that_has_fallen_silent_is_out_of_reach_and_one_that_was_not_asked_yet_is_not_judged() {
        let judged = |was_heard, ago: Option<u64>| {
            let mut progress = Progress::default();
            if was_heard {
                progress.heard(ReplicaPosition::default());
            }
            judge(&mut progress, ago.map(Duration::from_secs));
            (progress.reachable, progress.error)
        };
        assert_eq!(judged(true, Some(14)), (true, None));
        assert_eq!(judged(true, Some(26)), (false, Some("it has said nothing for 26 s".to_owned())));
        assert_eq!(judged(true, None), (true, None));
        assert_eq!(judged(false, Some(26)), (false, None));
    }
}
