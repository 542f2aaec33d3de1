//! What a node does about those who are let in no more, and about itself when it is one of them (docs/decisions/0041).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use client_lib::NodeId;
use client_lib::transport::Transport;
use consensus::{MetaRaft, MetaState};

use super::METADATA_DEADLINE;

/// How often a leader looks whether votes are missing,
const VOTES_LOOK: Duration = Duration::from_secs(5);
/// and from which of these looks on it gives some. With that, longer than an entry that removes a node is waited for.
const VOTES_AFTER: u32 = 6;

const _: () = assert!(VOTES_LOOK.as_secs() * (VOTES_AFTER as u64 - 1) > METADATA_DEADLINE.as_secs());

/// The node was removed from its cluster, and is to do nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Removed {
    /// What it was called.
    pub name: String,
    /// Who says so: another node, or the metadata.
    pub told_by: ToldBy,
}

/// Who says that a node was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldBy {
    /// The metadata, as it is at the node itself.
    Metadata,
    /// Another node, which refuses its certificate.
    Node(NodeId),
    /// Its data directory, where an earlier process has noted it.
    Directory,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.told_by {
            ToldBy::Metadata => "so says the metadata".to_owned(),
            // Which one it was says nothing, and its name may not be known here any more.
            ToldBy::Node(_) => "another node refuses its certificate".to_owned(),
            ToldBy::Directory => "its data directory says so".to_owned(),
        };
        write!(
            f,
            "node {} was removed from the cluster ({by}): it serves nothing, and its data is of no use to the cluster. To use this machine \
             again, delete the data directory, and have it join with `helio cluster join` as a new node",
            self.name
        )
    }
}

/// Follows the metadata: ends connections of those who are let in no more.
pub async fn follow(meta: MetaRaft, transport: Arc<dyn Transport>) {
    let mut states = meta.subscribe();
    let mut seen: Option<Arc<MetaState>> = None;
    loop {
        let state = states.borrow_and_update().clone();
        if !seen.as_ref().is_some_and(|seen| seen.has_same_access(&state)) {
            forget_removed(&*transport, &state);
            transport.look_again();
        }
        seen = Some(state);
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Follows the metadata: has Raft forget removed nodes while this node leads. Tried again with every change, of which there is one
/// whenever a lease is renewed.
pub async fn have_raft_forget(meta: MetaRaft) {
    let mut states = meta.subscribe();
    loop {
        states.borrow_and_update();
        if let Err(error) = meta.forget_removed().await {
            tracing::warn!(%error, "the metadata is still sent to a removed node; it is tried again");
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Has votes given that are missing, while this node leads ([`MetaRaft::give_missing_votes`]): a node that was off when it came to that has none.
///
/// A leader that has just begun gives none yet. It knows nothing of a node that the leader before it told to vote no more, which is removed in a
/// moment.
pub async fn have_votes_given(meta: MetaRaft, me: NodeId) {
    let mut look = tokio::time::interval(VOTES_LOOK);
    let mut led: Option<(u64, u32)> = None;
    loop {
        look.tick().await;
        led = (meta.leader() == Some(me)).then(|| match (led, meta.term()) {
            (Some((term, looks)), now) if term == now => (term, looks.saturating_add(1)),
            (_, now) => (now, 1),
        });
        if led.is_none_or(|(_, looks)| looks < VOTES_AFTER) {
            continue;
        }
        if let Err(error) = meta.give_missing_votes().await {
            tracing::warn!(%error, "it is tried again");
        }
    }
}

/// Calls those nodes no more that were removed.
pub fn forget_removed(transport: &dyn Transport, state: &MetaState) {
    for removed in state.access().removed_nodes() {
        transport.remove_peer(removed.id);
    }
}

/// Waits until the metadata, as it is here, says that node `me` was removed.
///
/// # Cancel safety
/// Safe.
pub async fn removal(meta: &MetaRaft, me: NodeId) -> Removed {
    let mut states = meta.subscribe();
    loop {
        let removed = removed_by(&states.borrow_and_update(), me);
        if let Some(removed) = removed {
            return removed;
        }
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether `state` says that node `me` was removed.
#[must_use]
pub fn removed_by(state: &MetaState, me: NodeId) -> Option<Removed> {
    let removed = state.access().removed(me)?;
    Some(Removed { name: removed.name.to_string(), told_by: ToldBy::Metadata })
}
