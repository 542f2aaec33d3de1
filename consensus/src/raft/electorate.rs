//! Who votes and who follows, as the leader sees it before it changes that, and whom it gives no vote.
//!
//! No node that was removed may vote: nobody calls it any more, and with enough of them there is no majority for good. So the leader looks under
//! the lock by which members are changed one at a time, at Raft's membership and at the metadata with everything in it that stands in its log:
//! a node gets a vote only if the metadata has it as a member, and is removed ([`crate::Command::RemoveNode`]) only while it does not vote.
//!
//! The leader also gives the votes that are missing, for who follows was not always there when it was chosen. A node that was just told to vote no
//! more is left out ([`RETIRED_FOR`]). Only the leader that told it so knows that; where another one leads since, and gives it its vote back, the
//! entry that removes it is refused, and whoever removes it begins again.
//!
//! A change of who votes is two entries, and the second is proposed by whoever proposed the first. Where that leader was lost in between, or gave up
//! waiting, both the voters before and those after have to agree until a leader finds that and finishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use client_lib::{Error, ErrorKind, NodeId, ProviderId};
use openraft::ChangeMembers;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::MetaRaft;
use super::leader::{CHANGE_PATIENCE, Metrics, NotHere, held, in_time};
use crate::command::{Command, Response};
use crate::placement;
use crate::state::MetaState;
use crate::store::types::{Member, StoredMembership};

/// How long a node that was told to vote no more gets no vote again at this leader. The removal that this was for is over by then, or given up:
/// its entry follows at once, and is waited for less long.
const RETIRED_FOR: Duration = Duration::from_secs(60);

/// How many entries a node may lack that is given a vote: what is to be agreed to waits until it has them.
const LACKS_MAX: u64 = 100;

/// What the leader looks at, under the lock, before it changes the members.
pub(super) struct Electorate {
    /// Who votes now; in the middle of a change, also who did before it.
    pub(super) voters: BTreeSet<NodeId>,
    /// In the middle of a change: who votes when it is finished.
    unfinished: Option<BTreeSet<u64>>,
    nodes: BTreeMap<NodeId, Member>,
    state: Arc<MetaState>,
    metrics: Metrics,
    retired: BTreeSet<NodeId>,
}

impl Electorate {
    /// Whether `node` follows, and could be given a vote as far as the metadata says.
    pub(super) fn may_vote(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node) && self.state.node(node).is_some() && !self.retired.contains(&node)
    }

    /// Those that are still sent the log, and are no members any more as the metadata says.
    pub(super) fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied().filter(|node| self.state.access().removed(*node).is_some())
    }

    /// Who should vote: those who do, and of the others those for which `answers` holds ([`placement`]).
    pub(super) fn wanted(&self, answers: impl Fn(NodeId) -> bool) -> Result<BTreeSet<NodeId>, NotHere> {
        let counts = |node: NodeId| self.voters.contains(&node) || (self.may_vote(node) && answers(node));
        let provider = |member: &Member| member.provider.parse::<ProviderId>();
        let members = self.nodes.iter().filter(|(node, _)| counts(**node));
        let members: BTreeMap<NodeId, ProviderId> = members
            .map(|(node, member)| Ok((*node, provider(member).map_err(|error| NotHere::Failed(error.to_string()))?)))
            .collect::<Result<_, NotHere>>()?;
        Ok(placement::voters(&members, &self.voters))
    }

    /// Whether this leader has heard from `node`. One that it has yet to hear of may be out of reach.
    pub(super) fn has_heard_from(&self, node: NodeId) -> bool {
        held(&self.metrics, node).is_some()
    }

    /// Whether `node` has answered just now, within `silence`, and has nearly everything: it can do at once what voters do.
    fn is_there(&self, node: NodeId, silence: Duration) -> bool {
        let heard = self.metrics.heartbeat.as_ref().and_then(|heard| heard.get(&node.0)?.as_ref().map(|at| **at));
        let has = held(&self.metrics, node).map(|held| held.index());
        let last = self.metrics.last_log_index.unwrap_or(0);
        heard.is_some_and(|at| at.elapsed() < silence) && has.is_some_and(|has| has + LACKS_MAX >= last)
    }

    /// Refuses that just `wanted` vote, without `node`, where that is no plan for the voters there are now: another removal, or a new member,
    /// came in between.
    pub(super) fn require_succession(&self, node: NodeId, wanted: &BTreeSet<NodeId>) -> Result<(), NotHere> {
        let name = |node: NodeId| self.state.name_of(node);
        if let Some(gone) = wanted.iter().find(|voter| self.state.access().removed(**voter).is_some()) {
            return Err(NotHere::Refused(format!(
                "node {} was removed meanwhile, and cannot vote; try again",
                name(*gone)
            )));
        }
        if let Some(left_out) = self.voters.iter().find(|voter| **voter != node && !wanted.contains(voter)) {
            return Err(NotHere::Refused(format!(
                "the voters have changed meanwhile: node {} votes, too; try again",
                name(*left_out)
            )));
        }
        for new in wanted.difference(&self.voters) {
            if self.retired.contains(new) {
                return Err(NotHere::Refused(format!(
                    "the voters have changed meanwhile: node {} was just told to vote no more; try again",
                    name(*new)
                )));
            }
            if !self.may_vote(*new) {
                return Err(NotHere::Failed(format!(
                    "node {} does not follow the metadata, and cannot vote",
                    name(*new)
                )));
            }
            if *new != NodeId(self.metrics.id) && !self.has_heard_from(*new) {
                return Err(NotHere::Failed(format!("the leader has yet to hear from node {}", name(*new))));
            }
        }
        Ok(())
    }
}

impl MetaRaft {
    /// What the leader goes by. The lock is held for as long as it is used, so that nobody else's change comes in between.
    pub(super) async fn electorate(&self, _one_at_a_time: &MutexGuard<'_, ()>) -> Result<Electorate, NotHere> {
        let core = self.core();
        let metrics = core.metrics().borrow_watched().clone();
        if metrics.current_leader != Some(self.inner.node.0) {
            return Err(NotHere::Leader(metrics.current_leader));
        }
        // From the core itself, behind whatever it was asked for before: its figures are a moment behind.
        let looked = core.with_raft_state(|raft| {
            (raft.log_ids.last().map(|last| last.index()), raft.membership_state.effective().clone())
        });
        let (last, membership) = looked.await.map_err(|error| NotHere::Failed(error.to_string()))?;
        // A removal may be in the log whose proposer does not wait for it any more.
        let applied = self.applied(last, Instant::now() + CHANGE_PATIENCE).await;
        applied.map_err(|error| NotHere::Failed(error.to_string()))?;
        Ok(self.electorate_of(&membership, metrics))
    }

    fn electorate_of(&self, membership: &StoredMembership, metrics: Metrics) -> Electorate {
        Electorate {
            voters: membership.voter_ids().map(NodeId).collect(),
            unfinished: unfinished(membership),
            nodes: membership.nodes().map(|(node, member)| (NodeId(*node), member.clone())).collect(),
            state: self.state(),
            metrics,
            retired: self.retired(),
        }
    }

    /// If this node leads: finishes a change of who votes that was left in its middle, and gives those followers a vote that should have one and
    /// answer. Takes none away but by such a change.
    ///
    /// # Errors
    /// When it is not done; it may be repeated.
    pub async fn give_missing_votes(&self) -> Result<(), Error> {
        let silence = 2 * self.timings().election_max;
        let missing = |electorate: &Electorate| {
            let wanted = electorate.wanted(|node| electorate.is_there(node, silence)).map_err(not_given)?;
            Ok::<_, Error>(wanted.difference(&electorate.voters).map(|node| node.0).collect::<BTreeSet<u64>>())
        };
        let metrics = self.core().metrics().borrow_watched().clone();
        if metrics.current_leader != Some(self.inner.node.0) {
            return Ok(());
        }
        // At nearly every look nothing is missing, and nobody is kept waiting for that.
        let seen = self.electorate_of(&metrics.membership_config.clone(), metrics);
        if seen.unfinished.is_none() && missing(&seen)?.is_empty() {
            return Ok(());
        }
        let one_at_a_time = self.one_at_a_time().await.map_err(not_given)?;
        let mut electorate = self.electorate(&one_at_a_time).await.map_err(not_given)?;
        // Whoever has the lock is in the middle of no change.
        if let Some(voters) = electorate.unfinished.take() {
            tracing::warn!(nodes = ?voters, "a change of who votes in the metadata was left in its middle, and is finished");
            // Those may be about to be removed.
            let no_more = electorate.voters.iter().filter(|voter| !voters.contains(&voter.0));
            no_more.for_each(|voter| self.note_retired(*voter));
            in_time(self.core().change_membership(voters, true)).await.map_err(not_given)?;
            electorate = self.electorate(&one_at_a_time).await.map_err(not_given)?;
        }
        let missing = missing(&electorate)?;
        if missing.is_empty() {
            return Ok(());
        }
        tracing::info!(nodes = ?missing, "more nodes vote in the metadata");
        let core = self.core();
        let change = core.change_membership(ChangeMembers::AddVoterIds(missing), true);
        in_time(change).await.map(drop).map_err(not_given)
    }

    /// Proposes that `node` was removed, as the leader, if it does not vote.
    pub(super) async fn remove_here(&self, node: NodeId, command: Command) -> Result<(u64, Response), NotHere> {
        let one_at_a_time = self.one_at_a_time().await?;
        let electorate = self.electorate(&one_at_a_time).await?;
        if electorate.voters.contains(&node) {
            let name = electorate.state.name_of(node);
            return Err(NotHere::Refused(format!("node {name} has a vote in the metadata again; try again")));
        }
        self.write_in_time(command).await
    }

    /// Notes that `node` was told to vote no more.
    pub(super) fn note_retired(&self, node: NodeId) {
        let mut retired = self.inner.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.insert(node, Instant::now());
    }

    /// Who was told so just now.
    fn retired(&self) -> BTreeSet<NodeId> {
        let mut retired = self.inner.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|_, since| since.elapsed() < RETIRED_FOR);
        retired.keys().copied().collect()
    }
}

/// Who votes when the change is finished that a membership is in the middle of, if it is.
fn unfinished(membership: &StoredMembership) -> Option<BTreeSet<u64>> {
    membership.get_joint_config().split_last().filter(|(_, before)| !before.is_empty()).map(|(after, _)| after.clone())
}

fn not_given(why: NotHere) -> Error {
    let text = format!("nodes that should vote in the metadata have no vote yet: {}", why.at_the_leader());
    Error::new(ErrorKind::Unavailable, text)
}
