//! The members: who they are, what each says of itself, and what all of them must know before a command is proposed that older
//! programs do not.

use std::time::Duration;

use client_lib::wire::admin::{AccessReport, NodeList, NodeSummary, RemovedStatus, StoreFault};
use client_lib::{Error, ErrorKind, NodeId};
use consensus::MetaState;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::NodeAdmin;
use crate::peer::message::AdminForward;

/// How long a member may take to say what it is.
const ABOUT_PATIENCE: Duration = Duration::from_secs(2);

/// The same while a guest waits: some round trips of the farthest that a cluster may span.
const HASTE_PATIENCE: Duration = Duration::from_secs(1);

/// How long it is waited until the members that answer have applied something.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

/// The format of metadata that has places, what clients may do, and keys of volumes.
const FORMAT_9: u64 = 9;

/// The format of metadata that has owners which have stepped down.
const FORMAT_11: u64 = 11;

/// The set of commands that has those.
const COMMANDS_1: u64 = 1;

/// How often they are asked.
const CONFIRM_LOOK: Duration = Duration::from_millis(50);

/// What about this node is not in the metadata, and does not change while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::node) struct Standing {
    /// Whether it admits others.
    pub(in crate::node) holds_authority: bool,
    /// Whether it is one of several that `helio up` runs.
    pub(in crate::node) is_of_up: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeAbout {
    pub(super) version: String,
    pub(super) holds_authority: bool,
    /// Up to where its metadata is applied.
    pub(super) applied: u64,
    /// The format of metadata that it knows: it sees to what is in that. 0 of one that does not say so, which knows no more than 8.
    #[serde(default)]
    pub(super) metadata_format: u64,
    /// The set of commands that it knows; 0 of one that does not say so.
    #[serde(default)]
    pub(super) command_set: u64,
    /// Whether it renews its certificate before that ends; a program that does not say so does not.
    #[serde(default)]
    pub(super) renews: bool,
    /// Its stores that take no writes.
    #[serde(default)]
    pub(super) store_faults: Vec<StoreFault>,
}

impl NodeAdmin {
    pub(super) fn about_here(&self) -> NodeAbout {
        NodeAbout {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            holds_authority: self.standing.holds_authority,
            applied: self.meta.applied_index(),
            metadata_format: consensus::FORMAT,
            command_set: consensus::COMMAND_SET,
            renews: true,
            store_faults: self.store_faults(),
        }
    }

    /// What `node` says of itself, now.
    ///
    /// # Errors
    /// `Corrupt` from a program that does not know the question; `Unavailable` when it does not answer.
    pub(super) async fn about(&self, node: NodeId) -> Result<NodeAbout, Error> {
        if node == self.this.id {
            return Ok(self.about_here());
        }
        let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {ABOUT_PATIENCE:?}")));
        tokio::time::timeout(ABOUT_PATIENCE, self.ask(node, AdminForward::About)).await.unwrap_or_else(late)
    }

    /// Whether every member answers, and renews its certificate before that ends.
    pub(in crate::node) async fn all_renew(&self) -> bool {
        let state = self.meta.state();
        let told = join_all(state.nodes().map(|node| self.about(node.id))).await;
        told.iter().all(|about| about.as_ref().is_ok_and(|about| about.renews))
    }

    pub(super) async fn list_nodes(&self) -> Result<NodeList, Error> {
        let state = self.recall().await;
        let (leader, voters) = (self.meta.leader(), self.meta.voters());
        let told = join_all(state.nodes().map(|node| self.about(node.id))).await;
        let nodes = state.nodes().zip(told).map(|(node, about)| {
            let id = node.id;
            let role = match (leader == Some(id), voters.contains(&id)) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            let heard = match id == self.this.id {
                true => Some(Duration::ZERO),
                false => self.peers.links().heard_ago(id),
            };
            NodeSummary {
                id: id.0,
                name: node.name.to_string(),
                provider: node.provider.to_string(),
                address: node.address.clone(),
                role: role.to_owned(),
                // An older program answers, too.
                reachable: about.as_ref().map_or_else(|error| error.kind() == ErrorKind::Corrupt, |_| true),
                heard_seconds_ago: heard.map(|heard| heard.as_secs_f64()),
                owns: state.volumes().filter(|volume| volume.owner == id).count() as u64,
                follows: state.volumes().filter(|volume| volume.replicas.contains(&id)).count() as u64,
                version: about.as_ref().ok().map(|about| about.version.clone()),
                store_faults: about.map(|about| about.store_faults).unwrap_or_default(),
                labels: state.places().labels(id).map(ToString::to_string).collect(),
            }
        });
        Ok(NodeList { nodes: nodes.collect(), removed: removed_told(&state) })
    }

    /// Refuses while a member, other than `lost`, runs a program that cannot read the commands of removal and revocation.
    pub(super) async fn require_known_to_all(&self, state: &MetaState, lost: Option<NodeId>) -> Result<(), Error> {
        self.require_format(state, lost, 0, "removed nodes and revoked certificates", ABOUT_PATIENCE).await
    }

    /// The same of programs that know nothing of keys of volumes.
    pub(super) async fn require_keys_known_to_all(&self, state: &MetaState) -> Result<(), Error> {
        self.require_format(state, None, FORMAT_9, "encrypted volumes", ABOUT_PATIENCE).await
    }

    /// The same of programs that do not see to what clients may do.
    pub(super) async fn require_rights_known_to_all(&self, state: &MetaState) -> Result<(), Error> {
        self.require_format(state, None, FORMAT_9, "what clients may do", ABOUT_PATIENCE).await
    }

    /// The same of the commands of places: replicas that change, labels, rules.
    pub(super) async fn require_places_known(&self, state: &MetaState) -> Result<(), Error> {
        let what = "replicas that change, labels and rules of placement";
        self.require_format(state, None, FORMAT_9, what, ABOUT_PATIENCE).await
    }

    /// The same of programs that would refuse a takeover from an owner which has stepped down.
    pub(in crate::node) async fn require_stepping_down_known(&self, state: &MetaState) -> Result<(), Error> {
        self.require_format(state, None, FORMAT_11, "owners that step down", ABOUT_PATIENCE).await
    }

    /// The same where guests wait: whoever does not answer at once is taken not to answer.
    pub(in crate::node) async fn require_rescues_known(&self, state: &MetaState) -> Result<(), Error> {
        self.require_format(state, None, FORMAT_11, "owners that step down", HASTE_PATIENCE).await
    }

    /// The same of programs that cannot read the commands by which volumes with too many copies get fewer, and ended certificates are forgotten.
    pub(super) async fn require_room_known(&self, state: &MetaState) -> Result<(), Error> {
        let what = "replicas that are given up one by one, and certificates that are forgotten";
        self.require_known(state, None, what, ABOUT_PATIENCE, |about| about.command_set >= COMMANDS_1).await
    }

    async fn require_format(
        &self,
        state: &MetaState,
        lost: Option<NodeId>,
        format: u64,
        what: &str,
        patience: Duration,
    ) -> Result<(), Error> {
        self.require_known(state, lost, what, patience, |about| about.metadata_format >= format).await
    }

    /// One that does not answer is not known to be old; if it is, it stops at such a command, and goes on when it is upgraded.
    async fn require_known(
        &self,
        state: &MetaState,
        lost: Option<NodeId>,
        what: &str,
        patience: Duration,
        knows: impl Fn(&NodeAbout) -> bool,
    ) -> Result<(), Error> {
        let asked: Vec<_> = state.nodes().filter(|node| Some(node.id) != lost).collect();
        let about = |node| async move {
            let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {patience:?}")));
            tokio::time::timeout(patience, self.about(node)).await.unwrap_or_else(late)
        };
        let told = join_all(asked.iter().map(|node| about(node.id))).await;
        let is_old = |about: &Result<NodeAbout, Error>| match about {
            Ok(about) => !knows(about),
            Err(error) => error.kind() == ErrorKind::Corrupt,
        };
        let old: Vec<String> =
            asked.iter().zip(&told).filter(|(_, about)| is_old(about)).map(|(node, _)| node.name.to_string()).collect();
        if old.is_empty() {
            return Ok(());
        }
        let text = format!(
            "these nodes run a program that does not know of {what} yet: {}; upgrade them first",
            old.join(", ")
        );
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// Waits until everything that is applied here is applied at the members that answer, for a while; who has said so.
    pub(super) async fn confirmed(&self) -> AccessReport {
        let (state, index) = (self.meta.state(), self.meta.applied_index());
        let end = tokio::time::Instant::now() + CONFIRM_PATIENCE;
        let has_it = |node: NodeId| async move {
            loop {
                match self.about(node).await {
                    Ok(about) if about.applied >= index => return true,
                    Ok(_) if tokio::time::Instant::now() < end => tokio::time::sleep(CONFIRM_LOOK).await,
                    _ => return false,
                }
            }
        };
        let told = join_all(state.nodes().map(|node| has_it(node.id))).await;
        let mut report = AccessReport::default();
        for (node, has_it) in state.nodes().zip(told) {
            let list = if has_it { &mut report.confirmed } else { &mut report.unconfirmed };
            list.push(node.name.to_string());
        }
        report
    }
}

fn removed_told(state: &MetaState) -> Vec<RemovedStatus> {
    let mut removed: Vec<_> = state.access().removed_nodes().collect();
    removed.sort_by_key(|node| (node.at_ms, node.id));
    let told = |node: &consensus::RemovedNode| RemovedStatus {
        id: node.id.0,
        name: node.name.to_string(),
        provider: node.provider.to_string(),
        at_ms: node.at_ms,
        was_lost: node.was_lost,
    };
    removed.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While one of them runs, nobody takes a certificate that ends: see [`NodeAdmin::all_renew`].
    #[test]
    fn an_earlier_program_is_known_not_to_renew() {
        let told = r#"{"version":"0.1.0","holds_authority":true,"applied":12,"metadata_format":9}"#;
        let about: NodeAbout = serde_json::from_str(told).expect("reads");
        assert!(!about.renews && about.metadata_format == 9 && about.command_set == 0);
        let oldest: NodeAbout =
            serde_json::from_str(r#"{"version":"0.1.0","holds_authority":false,"applied":1}"#).expect("reads");
        assert!(!oldest.renews && oldest.metadata_format == 0);
    }
}
