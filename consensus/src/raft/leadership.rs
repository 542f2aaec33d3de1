//! Who leads the group when its leader stops: a voter that has the whole log and was heard from just now, told so by openraft's transfer
//! (Ongaro's thesis, §3.10). Without that the others would wait for an election.

use client_lib::NodeId;
use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;

use super::MetaRaft;
use crate::store::types::MetaTypes;

type Metrics = RaftMetrics<MetaTypes>;

impl MetaRaft {
    /// Gives the lead to another voter, if this node has it: it is about to stop. Takes a heartbeat at most.
    ///
    /// # Cancel safety
    /// The lead may be given all the same.
    pub async fn hand_on(&self) {
        let core = self.core();
        let heir = heir(&core.metrics().borrow_watched());
        let Some(heir) = heir else { return };
        tracing::info!(node = %NodeId(heir), "the metadata's lead is handed on");
        if core.trigger().transfer_leader(heir).await.is_ok() {
            // If nobody leads by then, somebody will be elected.
            let patience = self.timings().heartbeat;
            let _ = core.wait(Some(patience)).current_leader(heir, "handed on the lead").await;
        }
    }
}

/// Who should lead next: of the voters with the whole log, the one that was heard from last. `None` where this node does not lead.
fn heir(metrics: &Metrics) -> Option<u64> {
    let (heard, held) = (metrics.heartbeat.as_ref()?, metrics.replication.as_ref()?);
    let has_all =
        |node: &u64| held.get(node).copied().flatten().is_some_and(|held| Some(held.index()) == metrics.last_log_index);
    let others = metrics.membership_config.voter_ids().filter(|node| *node != metrics.id && has_all(node));
    others.filter_map(|node| Some((**heard.get(&node)?.as_ref()?, node))).max().map(|(_, node)| node)
}
