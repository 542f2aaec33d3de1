//! Where the group is led from: at a node that is about to propose something that others wait for, and never at one that stops.
//!
//! A follower's proposal takes a round trip to the leader on top of the leader's to a majority (Ongaro and Ousterhout 2014,
//! §8), so who has time to prepare asks for the lead first. The leader gives it to a voter that has the whole log, with
//! openraft's transfer (Ongaro's thesis, §3.10). A transfer that fails leaves the group without a leader until one is
//! elected; so it is only begun towards a node that was heard from just now.

use std::sync::PoisonError;
use std::time::Duration;

use client_lib::NodeId;
use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::leader::NotHere;
use super::{Core, MetaRaft};
use crate::network::{LeaderReply, LeaderRequest};
use crate::store::types::MetaTypes;

/// How long a node that asked for the lead keeps it, whoever else asks: nodes that all hand volumes over do not take it
/// from each other all the time.
const KEPT: Duration = Duration::from_secs(5);

type Metrics = RaftMetrics<MetaTypes>;

impl MetaRaft {
    /// Has this node lead the group, if that can be had within `deadline`. Returns whether it leads. Nothing is lost when
    /// it does not: proposals take longer.
    ///
    /// # Cancel safety
    /// The node may come to lead all the same.
    pub async fn come_to_lead(&self, deadline: Duration) -> bool {
        let me = self.inner.node;
        if self.leader() == Some(me) {
            return true;
        }
        if !self.voters().contains(&me) {
            return false;
        }
        let until = Instant::now() + deadline;
        let asked = self.at_leader(&LeaderRequest::HandOn(me.0), until).await;
        if !matches!(asked, Ok((LeaderReply::HandedOn(true), _))) {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        let leads = self.core().wait(Some(left)).current_leader(me.0, "asked for the lead").await.is_ok();
        if leads {
            *self.inner.came_to_lead.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        leads
    }

    /// Gives the lead to another voter, if this node has it: it is about to stop.
    pub async fn hand_on(&self) {
        let core = self.core();
        let heir = heir(&core.metrics().borrow_watched());
        let Some(heir) = heir else { return };
        if core.trigger().transfer_leader(heir).await.is_ok() {
            // If nobody leads by then, somebody will be elected.
            let patience = self.timings().heartbeat;
            let _ = core.wait(Some(patience)).current_leader(heir, "handed on the lead").await;
        }
    }

    /// As the leader: lets `to` lead. Returns whether it was told to.
    pub(super) async fn hand_on_here(&self, to: NodeId) -> Result<bool, NotHere> {
        let core = self.core();
        let leader = core.metrics().borrow_watched().current_leader;
        if to == self.inner.node || leader != Some(self.inner.node.0) {
            return Err(NotHere::Leader(leader));
        }
        let came = *self.inner.came_to_lead.lock().unwrap_or_else(PoisonError::into_inner);
        if came.is_some_and(|came| came.elapsed() < KEPT) {
            return Ok(false);
        }
        let has_all = |metrics: &Metrics| may_lead(metrics, to.0);
        if core
            .wait(Some(self.timings().heartbeat))
            .metrics(has_all, "the next leader has the whole log")
            .await
            .is_err()
        {
            return Ok(false);
        }
        transfer(&core, to).await
    }
}

async fn transfer(core: &Core, to: NodeId) -> Result<bool, NotHere> {
    tracing::info!(node = %to, "the metadata's lead is handed on");
    core.trigger().transfer_leader(to.0).await.map(|()| true).map_err(|error| NotHere::Failed(error.to_string()))
}

/// Whether `node` votes and has the leader's whole log.
fn may_lead(metrics: &Metrics, node: u64) -> bool {
    let is_voter = metrics.membership_config.voter_ids().any(|voter| voter == node);
    let held = metrics.replication.as_ref().and_then(|replication| *replication.get(&node)?);
    is_voter && held.is_some_and(|held| Some(held.index()) == metrics.last_log_index)
}

/// Who should lead next: of those who may, the one that was heard from last.
fn heir(metrics: &Metrics) -> Option<u64> {
    let heard = metrics.heartbeat.as_ref()?;
    let others = heard.iter().filter(|(node, _)| **node != metrics.id && may_lead(metrics, **node));
    others.filter_map(|(node, heard)| Some((**heard.as_ref()?, *node))).max().map(|(_, node)| node)
}
