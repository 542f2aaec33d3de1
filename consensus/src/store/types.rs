//! openraft's types, with the metadata group's commands, responses and members in them.

use serde::{Deserialize, Serialize};

use crate::command::{Command, Response};
use crate::runtime::SeamRuntime;

/// A voter or learner as Raft's membership knows it. The node's own record is in [`crate::MetaState`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its failure domain.
    pub provider: String,
    /// Socket address for other nodes, as of when it joined.
    pub address: String,
}

openraft::declare_raft_types!(
    /// The metadata group.
    pub MetaTypes:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = SeamRuntime,
);

/// The position of an entry.
pub type LogId = openraft::alias::LogIdOf<MetaTypes>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<MetaTypes>;
/// An entry.
pub type Entry = openraft::alias::EntryOf<MetaTypes>;
/// A membership with its position.
pub type StoredMembership = openraft::alias::StoredMembershipOf<MetaTypes>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<MetaTypes>;
/// A snapshot: the encoded state.
pub type Snapshot = openraft::alias::SnapshotOf<MetaTypes, Vec<u8>>;

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::fmt::Display for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}
