//! Values that are read, changed and written back whole: policies, and labels of nodes. Whoever writes one back says what it has read, and the leader
//! proposes it only where that is still so. Of two who do it at once the second is refused, and reads again.
//!
//! The leader looks when it has applied all that its log has, and at one replacement after the other. What was proposed before by another leader is in
//! that log, or will never be. Older programs know nothing of this: what they propose goes in unseen, and a leader of theirs is asked to propose as before.

use std::time::Duration;

use client_lib::Error;
use tokio::time::Instant;

use super::MetaRaft;
use super::leader::{CHANGE_PATIENCE, NotHere, out_of_turn};
use crate::command::{Command, Response};
use crate::network::{LeaderReply, LeaderRequest, UNREADABLE};
use crate::state::MetaState;

impl MetaRaft {
    /// As [`carry_out`](Self::carry_out) of `command`, which sets a value, if that is still what `read` would set, or what `command` itself does.
    ///
    /// # Errors
    /// As there; `Busy` where it is another one meanwhile: it is to be read again.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn replace(&self, command: Command, read: Command, deadline: Duration) -> Result<Response, Error> {
        let until = Instant::now() + deadline;
        let (reply, _) = self.at_leader(&LeaderRequest::Replace { command, read }, until).await?;
        let LeaderReply::Proposed(index, response) = reply else { return Err(out_of_turn()) };
        self.applied(Some(index), until).await?;
        response.into_result_told(&self.state())
    }

    /// The same, as the leader.
    pub(super) async fn replace_here(&self, command: Command, read: &Command) -> Result<(u64, Response), NotHere> {
        let failed = |error: &dyn std::error::Error| NotHere::Failed(error.to_string());
        let busy = |_| NotHere::Failed("a majority of the voters has yet to agree to what was replaced before".into());
        let _one_at_a_time = tokio::time::timeout(CHANGE_PATIENCE, self.inner.replacing.lock()).await.map_err(busy)?;
        let last = self.core().with_raft_state(|raft| raft.log_ids.last().map(|last| last.index())).await;
        let last = last.map_err(|error| failed(&error))?;
        self.applied(last, Instant::now() + CHANGE_PATIENCE).await.map_err(|error| failed(&error))?;
        let state = self.state();
        // The value that is asked for is no loss to anybody, whoever set it: this request, perhaps, whose first answer was lost.
        if !is_as(&state, read) && !is_as(&state, &command) {
            // One that leads no more does not know.
            self.read_index_here().await?;
            return Err(NotHere::Refused(
                "somebody else has changed the same meanwhile; look at it, and try again".into(),
            ));
        }
        self.write_in_time(command).await
    }
}

impl LeaderRequest {
    /// What a leader is asked for instead that could not read the request, for this reason: it runs an older program.
    pub(super) fn for_older(&self, why: &NotHere) -> Option<LeaderRequest> {
        match (self, why) {
            (LeaderRequest::Replace { command, .. }, NotHere::Failed(reason)) if reason.starts_with(UNREADABLE) => {
                Some(LeaderRequest::Propose(command.clone()))
            }
            _ => None,
        }
    }
}

/// Whether what `command` sets is so already; also where there is nothing to set it of, which is for the command to say.
fn is_as(state: &MetaState, command: &Command) -> bool {
    match command {
        Command::SetDurability { volume, durability } => {
            state.volume(*volume).is_none_or(|volume| volume.durability == *durability)
        }
        Command::SetRpo { volume, rpo } => state.volume(*volume).is_none_or(|volume| volume.rpo == *rpo),
        Command::SetPropagation { volume, propagation } => {
            state.volume(*volume).is_none_or(|volume| volume.propagation == *propagation)
        }
        Command::LabelNode { node, labels } => state.places().labels(*node).eq(labels),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{GroupId, NodeId};

    use super::*;
    use crate::network::{Request, decode, encode};

    #[test]
    fn an_older_leader_is_asked_to_propose_as_before() {
        let label = Command::LabelNode { node: NodeId(1), labels: [].into() };
        let request = LeaderRequest::Replace { command: label.clone(), read: label.clone() };
        let mut bytes = encode(GroupId::META, &Request::Lead(request.clone())).to_vec();
        // As a number of a request that is not known yet.
        bytes[10] = 99;
        let why = decode::<Request>(GroupId::META, &bytes).map(drop).expect_err("cannot be read");
        let older = request.for_older(&NotHere::Failed(why.to_string()));
        assert!(matches!(older, Some(LeaderRequest::Propose(command)) if command == label));
        assert!(request.for_older(&NotHere::Failed("a majority of the voters is out of reach".into())).is_none());
        assert!(LeaderRequest::ReadIndex.for_older(&NotHere::Failed(why.to_string())).is_none());
    }
}
