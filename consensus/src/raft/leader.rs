//! What only the leader can do, and how any node has it done.
//!
//! A node that knows no leader (it joins, or was away while the others elected one) asks the members it knows, who
//! name the leader; where it does not know that one's address, who has named it passes the request on. Nothing here gives up before the
//! caller's deadline, and everything may be repeated.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::transport::TransportError;
use client_lib::{Error, ErrorKind, NodeId};
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::metrics::WaitError;
use openraft::raft::linearizable_read::Linearizer;
use openraft::{RaftMetrics, ReadPolicy};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::{MetaRaft, RETRY_PAUSE};
use crate::command::{Command, Response};
use crate::network::{LeaderReply, LeaderRequest, Reply, Request, ask};
use crate::store::types::{LogId, Member, MetaTypes};

pub(super) type Metrics = RaftMetrics<MetaTypes>;

/// How long a node that enrols may take to catch up before it is told that it does not.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(15);

/// How long a change of who votes may take before it is left to itself: two entries, and many round trips. Also how long one waits for another.
pub(super) const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the answer to a change of the members is waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

// Else whoever asks has gone when the leader says what is wrong.
const _: () = assert!(CATCH_UP_PATIENCE.as_secs() < ANSWER_PATIENCE.as_secs());

/// Why something was not carried out.
#[derive(Debug)]
pub(super) enum NotHere {
    /// The one who was asked does not lead; perhaps this one does.
    Leader(Option<u64>),
    /// This node does not know the address of the one that is to be asked.
    Stranger(String),
    /// It failed, and may have been carried out.
    Failed(String),
    /// The leader does not do that, and nothing was changed: the same again would be refused, too.
    Refused(String),
}

impl NotHere {
    /// In words, of what the leader does by itself.
    pub(super) fn at_the_leader(self) -> String {
        match self {
            NotHere::Leader(_) => "this node leads no more".to_owned(),
            NotHere::Stranger(reason) | NotHere::Failed(reason) | NotHere::Refused(reason) => reason,
        }
    }

    /// What another node is told that has asked.
    pub(super) fn into_reply(self) -> Reply {
        match self {
            NotHere::Leader(leader) => Reply::NotLeader(leader),
            NotHere::Stranger(reason) | NotHere::Failed(reason) => Reply::Failed(reason),
            NotHere::Refused(reason) => Reply::Refused(reason),
        }
    }
}

impl MetaRaft {
    /// Has the leader carry out `request`; also tells at which attempt it answered.
    pub(super) async fn at_leader(
        &self,
        request: &LeaderRequest,
        until: Instant,
    ) -> Result<(LeaderReply, usize), Error> {
        let (mut attempt, mut named, mut namer, mut silent) = (0, None, None, None);
        let mut request = request.clone();
        loop {
            attempt += 1;
            // Who leads by what this node heard last may lead no more: it hears nothing of others that it has not joined, or that cannot
            // reach it. What somebody else says goes first, and one that has just not answered is not asked at once again.
            let heard = self.leader().filter(|leader| Some(*leader) != silent);
            let target = named.or(heard).or_else(|| self.contact(attempt));
            let (mut asked, mut outcome) = match target {
                Some(node) if node == self.inner.node => (target, within(until, self.lead(request.clone())).await),
                Some(node) => (target, self.ask(node, Request::Lead(request.clone()), until).await),
                None => (None, Err(NotHere::Leader(None))),
            };
            // A leader that has joined while this node was away, or before this one did.
            if let (Err(NotHere::Stranger(_)), Some(member)) = (&outcome, namer) {
                outcome = self.ask(member, Request::PassOn(request.clone()), until).await;
                asked = namer;
            }
            let why = match outcome {
                Ok(reply) => return Ok((reply, attempt)),
                Err(NotHere::Refused(reason)) => return Err(Error::new(ErrorKind::Busy, reason)),
                Err(why) => why,
            };
            if let Some(older) = request.for_older(&why) {
                request = older;
            }
            (named, silent) = match &why {
                NotHere::Leader(leader) => (leader.map(NodeId).filter(|leader| Some(*leader) != asked), None),
                NotHere::Stranger(_) | NotHere::Failed(_) | NotHere::Refused(_) => (None, target),
            };
            namer = asked.filter(|member| named.is_some() && *member != self.inner.node);
            pause(why, until).await?;
        }
    }

    /// Whom to ask for the leader: each known member in its turn.
    fn contact(&self, attempt: usize) -> Option<NodeId> {
        let known: BTreeSet<NodeId> = self.voters().into_iter().chain(self.inner.contacts.iter().copied()).collect();
        let others: Vec<NodeId> = known.into_iter().filter(|node| *node != self.inner.node).collect();
        others.get(attempt % others.len().max(1)).copied()
    }

    /// Carries out `request` as the leader.
    pub(super) async fn lead(&self, request: LeaderRequest) -> Result<LeaderReply, NotHere> {
        match request {
            LeaderRequest::Propose(command) => {
                let (index, response) = self.propose_here(command).await?;
                Ok(LeaderReply::Proposed(index, response))
            }
            LeaderRequest::Replace { command, read } => {
                let (index, response) = self.replace_here(command, &read).await?;
                Ok(LeaderReply::Proposed(index, response))
            }
            LeaderRequest::ReadIndex => self.read_index_here().await.map(LeaderReply::ReadIndex),
            LeaderRequest::Enrol(node, member) => {
                self.enrol_here(NodeId(node), member).await.map(LeaderReply::Enrolled)
            }
            LeaderRequest::Retire(node, voters) => {
                self.retire_here(NodeId(node), voters).await.map(|()| LeaderReply::Retired)
            }
        }
    }

    /// Has the leader carry out `request` for a node that does not know where that is. It goes no further: two that take each other for the
    /// leader would never end.
    pub(super) async fn pass_on(&self, request: LeaderRequest) -> Result<LeaderReply, NotHere> {
        match self.leader() {
            Some(leader) if leader != self.inner.node => {
                self.ask(leader, Request::Lead(request), Instant::now() + ANSWER_PATIENCE).await
            }
            _ => self.lead(request).await,
        }
    }

    async fn propose_here(&self, command: Command) -> Result<(u64, Response), NotHere> {
        if let Command::RemoveNode { node, .. } = &command {
            return self.remove_here(*node, command).await;
        }
        self.core().client_write(command).await.map(|written| (written.log_id.index, written.data)).map_err(not_written)
    }

    /// The same, for what is written while the members are not changed.
    pub(super) async fn write_in_time(&self, command: Command) -> Result<(u64, Response), NotHere> {
        in_time(self.core().client_write(command)).await.map(|written| (written.log_id.index, written.data))
    }

    /// Up to where must be applied to read what is newest now; confirmed with a quorum.
    pub(super) async fn read_index_here(&self) -> Result<Option<u64>, NotHere> {
        let linearizer: Linearizer<MetaTypes> = match self.core().get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                return Err(NotHere::Leader(forward.leader_id));
            }
            Err(error) => return Err(NotHere::Failed(error.to_string())),
        };
        Ok(Some(linearizer.read_log_id().index()))
    }

    /// Registers the node where it is now, has it follow until it has caught up, and gives it a vote if it should
    /// have one.
    async fn enrol_here(&self, node: NodeId, member: Member) -> Result<Response, NotHere> {
        let name = |error: Error| NotHere::Failed(error.to_string());
        let register = Command::RegisterNode {
            id: node,
            name: member.name.parse().map_err(name)?,
            provider: member.provider.parse().map_err(name)?,
            address: member.address.clone(),
        };
        // First, and not under the lock: this is how the leader's transport learns where the node is.
        let (_, registered) = self.propose_here(register).await?;
        if matches!(registered, Response::Refused(_)) {
            return Ok(registered);
        }
        let added = {
            let _one_at_a_time = self.one_at_a_time().await?;
            in_time(self.core().add_learner(node.0, member, false)).await?.log_id
        };
        // Not under the lock: a node that cannot be reached would keep all others from being let in.
        self.caught_up(node, added).await?;
        let one_at_a_time = self.one_at_a_time().await?;
        let electorate = self.electorate(&one_at_a_time).await?;
        let wanted = electorate.wanted(|other| other == node || electorate.has_heard_from(other))?;
        if wanted != electorate.voters {
            let wanted: BTreeSet<u64> = wanted.into_iter().map(|node| node.0).collect();
            in_time(self.core().change_membership(wanted, true)).await?;
        }
        Ok(registered)
    }

    /// Waits until `node` has the log up to `added`, the entry by which it follows.
    async fn caught_up(&self, node: NodeId, added: LogId) -> Result<(), NotHere> {
        if node == self.inner.node {
            return Ok(());
        }
        let is_over = |metrics: &Metrics| metrics.replication.is_none() || held(metrics, node) >= Some(added);
        match self.core().wait(Some(CATCH_UP_PATIENCE)).metrics(is_over, "a node catches up").await {
            Ok(metrics) if metrics.replication.is_none() => Err(NotHere::Leader(metrics.current_leader)),
            Ok(_) => Ok(()),
            Err(WaitError::Timeout(..)) => {
                Err(NotHere::Failed("the leader cannot reach the node at the address it gave".into()))
            }
            Err(error) => Err(NotHere::Failed(error.to_string())),
        }
    }

    /// The members are changed by nobody else while this is held: each change has a bound.
    pub(super) async fn one_at_a_time(&self) -> Result<MutexGuard<'_, ()>, NotHere> {
        tokio::time::timeout(CHANGE_PATIENCE, self.inner.changing.lock()).await.map_err(|_| {
            NotHere::Failed(
                "the members are being changed already, and a majority of the voters has yet to agree".into(),
            )
        })
    }

    async fn ask(&self, to: NodeId, request: Request, until: Instant) -> Result<LeaderReply, NotHere> {
        let network = &self.inner.network;
        let patience = match &request {
            Request::Lead(request) | Request::PassOn(request) if request.changes_members() => ANSWER_PATIENCE,
            // One attempt must not use up the whole deadline: the leader may just have died.
            _ => self.timings().election_max,
        };
        let deadline = until.saturating_duration_since(Instant::now()).min(patience);
        match ask(&*network.calls, network.group, to, &request, deadline).await {
            Ok(Reply::Lead(reply)) => Ok(reply),
            Ok(Reply::NotLeader(leader)) => Err(NotHere::Leader(leader)),
            Ok(Reply::Failed(reason)) => Err(NotHere::Failed(reason)),
            Ok(Reply::Refused(reason)) => Err(NotHere::Refused(reason)),
            Ok(_) => Err(NotHere::Failed("the leader answered out of turn".into())),
            Err(error @ TransportError::UnknownPeer(_)) => Err(NotHere::Stranger(error.of(&self.state().name_of(to)))),
            Err(error) => Err(NotHere::Failed(error.of(&self.state().name_of(to)))),
        }
    }
}

/// Up to where `node` has the log, as far as this leader has heard from it.
pub(super) fn held(metrics: &Metrics, node: NodeId) -> Option<LogId> {
    metrics.replication.as_ref()?.get(&node.0).copied().flatten()
}

/// Bounds what waits for a quorum by itself: a leader that lost its majority never answers.
async fn within<T>(until: Instant, work: impl Future<Output = Result<T, NotHere>>) -> Result<T, NotHere> {
    tokio::time::timeout_at(until, work)
        .await
        .unwrap_or_else(|_| Err(NotHere::Failed("a majority of the voters is out of reach".into())))
}

/// Bounds a change of the membership. A leader that loses its majority in the middle of one may never hear what has become of it, and whatever
/// else is to be changed waits for its end. It may be carried out all the same.
pub(super) async fn in_time<T>(
    change: impl Future<Output = Result<T, RaftError<MetaTypes, ClientWriteError<MetaTypes>>>>,
) -> Result<T, NotHere> {
    match tokio::time::timeout(CHANGE_PATIENCE, change).await {
        Ok(changed) => changed.map_err(not_written),
        Err(_) => Err(NotHere::Failed("a majority of the voters did not agree in time".into())),
    }
}

/// Waits a moment before the next attempt, or gives up.
async fn pause(why: NotHere, until: Instant) -> Result<(), Error> {
    if Instant::now() + RETRY_PAUSE >= until {
        let reason = match why {
            NotHere::Leader(_) => {
                "the metadata has no leader: a majority of the voters must be up and reach each other (`helio cluster status` shows them)".into()
            }
            NotHere::Stranger(reason) | NotHere::Failed(reason) | NotHere::Refused(reason) => {
                format!("the metadata leader did not answer, the outcome is unknown: {reason}")
            }
        };
        return Err(Error::new(ErrorKind::Unavailable, reason));
    }
    tokio::time::sleep(RETRY_PAUSE).await;
    Ok(())
}

fn not_written(error: RaftError<MetaTypes, ClientWriteError<MetaTypes>>) -> NotHere {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => NotHere::Leader(forward.leader_id),
        error => NotHere::Failed(error.to_string()),
    }
}

/// A reply that does not fit its request.
pub(super) fn out_of_turn() -> Error {
    Error::new(ErrorKind::Internal, "the metadata leader answered out of turn")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that lost its majority in the middle of a change, and came to lead again, let nobody in any more: the one who had asked for
    /// the change was gone, and what carried it out held all others up for ever.
    #[tokio::test(start_paused = true)]
    async fn a_change_whose_outcome_never_comes_is_left_to_itself() {
        let begun = Instant::now();
        let outcome: Result<(), NotHere> = in_time(std::future::pending()).await;
        assert!(matches!(&outcome, Err(NotHere::Failed(why)) if why.contains("majority")), "{outcome:?}");
        assert_eq!(begun.elapsed(), CHANGE_PATIENCE);
        assert!(in_time(async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
    }
}
