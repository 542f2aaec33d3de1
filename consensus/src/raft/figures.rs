//! Numbers of the metadata group at this node, for whoever watches over it. As this node knows them, without asking anybody.

use client_lib::NodeId;
use openraft::async_runtime::watch::WatchReceiver;

use super::MetaRaft;

/// Where the group is, as seen from one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaFigures {
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The term this node is in.
    pub term: u64,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// The newest entry of the log here.
    pub last_log_index: u64,
    /// The newest entry that is carried out here.
    pub applied_index: u64,
    /// The newest entry in the snapshot here.
    pub snapshot_index: u64,
}

impl MetaRaft {
    /// The numbers at this moment.
    #[must_use]
    pub fn figures(&self) -> MetaFigures {
        let voters = self.voters();
        let metrics = self.core().metrics();
        let metrics = metrics.borrow_watched();
        MetaFigures {
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            voters,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.as_ref().map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.as_ref().map_or(0, |id| id.index),
        }
    }
}
