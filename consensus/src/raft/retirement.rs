//! How a node stops voting, and how Raft forgets one that was removed (docs/decisions/0041).
//!
//! Two steps, with the metadata's own in between ([`crate::Command::RemoveNode`]): first others vote in its place, so that those who are left
//! have a majority without it; when the metadata says that it is no member, the leader drops it from Raft's membership. Each may be
//! repeated, and what the first has done harms nothing if the second never comes.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::{Error, ErrorKind, NodeId};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::MetaRaft;
use super::leader::{NotHere, in_time, out_of_turn};
use crate::network::{LeaderReply, LeaderRequest};

impl MetaRaft {
    /// Has just `voters` vote, and another node than `node` lead. Returns when that is committed. All of them must follow already.
    ///
    /// # Errors
    /// `Busy` when who votes has changed since `voters` was thought out: nothing was done, and it is to be thought out anew. `Unavailable` when it
    /// could not be done within `deadline`; it may be done later.
    ///
    /// # Cancel safety
    /// It may be done all the same.
    pub async fn retire(&self, node: NodeId, voters: BTreeSet<NodeId>, deadline: Duration) -> Result<(), Error> {
        assert!(!voters.is_empty() && !voters.contains(&node), "others vote than {node}: {voters:?}");
        let request = LeaderRequest::Retire(node.0, voters.into_iter().map(|voter| voter.0).collect());
        match self.at_leader(&request, Instant::now() + deadline).await? {
            (LeaderReply::Retired, _) => Ok(()),
            _ => Err(out_of_turn()),
        }
    }

    /// Carries that out as the leader. A leader that is to retire itself lets its heirs vote first, and leaves the rest to whoever leads
    /// then.
    pub(super) async fn retire_here(&self, node: NodeId, voters: BTreeSet<u64>) -> Result<(), NotHere> {
        let is_me = node == self.inner.node;
        {
            let one_at_a_time = self.one_at_a_time().await?;
            let electorate = self.electorate(&one_at_a_time).await?;
            // What was planned may be too old: it was made before this lock was taken, and another node may be going as well.
            electorate.require_succession(node, &voters.iter().copied().map(NodeId).collect())?;
            self.note_retired(node);
            let wanted: BTreeSet<u64> = voters.into_iter().chain(is_me.then_some(node.0)).collect();
            let current: BTreeSet<u64> = electorate.voters.iter().map(|voter| voter.0).collect();
            if wanted != current {
                in_time(self.core().change_membership(wanted, true)).await?;
            }
        }
        if is_me {
            self.hand_on().await;
            return Err(NotHere::Leader(self.leader().filter(|leader| *leader != node).map(|leader| leader.0)));
        }
        Ok(())
    }

    /// If this node leads: drops those from Raft's membership that the metadata says are removed.
    ///
    /// # Errors
    /// When it is not done; it may be repeated.
    pub async fn forget_removed(&self) -> Result<(), Error> {
        let state = self.state();
        let is_removed = |node: &u64| state.access().removed(NodeId(*node)).is_some();
        let membership = self.core().metrics().borrow_watched().membership_config.clone();
        if self.leader() != Some(self.inner.node) || !membership.nodes().any(|(node, _)| is_removed(node)) {
            return Ok(());
        }
        let one_at_a_time = self.one_at_a_time().await.map_err(not_forgotten)?;
        // What was read before the lock was taken may be too old: a change that was under way would be undone.
        let electorate = self.electorate(&one_at_a_time).await.map_err(not_forgotten)?;
        let gone: BTreeSet<u64> = electorate.removed().map(|node| node.0).collect();
        if gone.is_empty() || gone.contains(&self.inner.node.0) {
            return Ok(());
        }
        let core = self.core();
        let (going, left): (BTreeSet<u64>, BTreeSet<u64>) =
            electorate.voters.iter().map(|voter| voter.0).partition(|voter| gone.contains(voter));
        if !going.is_empty() && !left.is_empty() {
            in_time(core.change_membership(left, true)).await.map_err(not_forgotten)?;
        }
        tracing::info!(nodes = ?gone, "the metadata is not sent to removed nodes any more");
        in_time(core.change_membership(ChangeMembers::RemoveNodes(gone), true)).await.map_err(not_forgotten)?;
        Ok(())
    }

    /// Up to where the log is applied here.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.inner.published.borrow().index.unwrap_or(0)
    }
}

fn not_forgotten(why: NotHere) -> Error {
    let text = format!("removed nodes are still sent the metadata: {}", why.at_the_leader());
    Error::new(ErrorKind::Unavailable, text)
}
