//! The links between nodes: what went over each, and how much each may take. Every node knows those that begin at it.

use std::time::Duration;

use client_lib::wire::admin::{ChangeLink, FetchStatus, FreightStatus, LinkList, LinkStatus};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId};
use consensus::{Command, Response};
use futures_util::future::join_all;

use super::names::node_named;
use super::{NodeAdmin, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::node::propagation::{link_asked_for, windows_told};
use crate::peer::message::AdminForward;
use crate::propagation::freight::Freight;
use crate::propagation::pull::Fetched;

/// How long a node may take to tell of its links before they are left out.
const PATIENCE: Duration = Duration::from_secs(2);

impl NodeAdmin {
    /// All links; those of nodes that do not answer are left out, and the nodes are named.
    pub(super) async fn link_list(&self) -> Result<LinkList, Error> {
        let state = self.meta.state();
        let ids: Vec<NodeId> = state.nodes().map(|node| node.id).collect();
        let of = |node: NodeId| async move {
            match node == self.this.id {
                true => Ok(self.links_here()),
                false => {
                    let asked = self.ask::<Vec<LinkStatus>>(node, AdminForward::Links);
                    let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE:?}")));
                    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(late)
                }
            }
        };
        let mut list = LinkList::default();
        for (node, links) in ids.iter().zip(join_all(ids.iter().map(|node| of(*node))).await) {
            match links {
                Ok(links) => list.links.extend(links),
                Err(error) => {
                    tracing::debug!(%node, %error, "its links are not told");
                    list.silent.push(state.name_of(*node));
                }
            }
        }
        Ok(list)
    }

    /// Changes how much a link may take; it is in force as soon as the node that sends hears of it.
    pub(super) async fn change_link(&self, from: &str, to: &str, wanted: ChangeLink) -> Result<LinkStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let (from, to) = (node_named(&state, from)?, node_named(&state, to)?);
        if from == to {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a link is between two nodes: name another one to send to",
            ));
        }
        let policy = link_asked_for(&state.link(from, to), wanted)?;
        if policy != state.link(from, to) {
            match self.meta.carry_out(Command::SetLink { from, to, policy: policy.clone() }, METADATA_DEADLINE).await? {
                Response::PolicySet => {}
                other => return Err(out_of_turn(&other)),
            }
        }
        let (from, to) = (state.name_of(from), state.node(to));
        let (to, provider) = to.map(|node| (node.name.to_string(), node.provider.to_string())).unwrap_or_default();
        let windows = windows_told(&policy);
        Ok(LinkStatus { from, to, provider, rate_bytes_per_second: policy.rate, windows, ..LinkStatus::default() })
    }

    /// The links that begin here.
    pub(super) fn links_here(&self) -> Vec<LinkStatus> {
        let state = self.meta.state();
        let others = state.nodes().filter(|node| node.id != self.this.id);
        let links = self.peers.links();
        let status = |to: &consensus::Node| {
            let (link, policy) = (links.link(to.id), state.link(self.this.id, to.id));
            LinkStatus {
                from: self.this.name.to_string(),
                to: to.name.to_string(),
                provider: to.provider.to_string(),
                rtt_ms: self.peers.transport().rtt(to.id).map(|rtt| rtt.as_secs_f64() * 1000.0),
                freight: freight_told(link.freight),
                fetch_p95_ms: link.p95().map(|p95| p95.as_secs_f64() * 1000.0),
                hedged_calls: link.hedged,
                measured_bytes_per_second: link.rate().map(|rate| rate as u64),
                rate_bytes_per_second: policy.rate,
                windows: windows_told(&policy),
                limit_bytes_per_second: links.limit(to.id),
            }
        };
        others.map(status).collect()
    }
}

/// What a new owner fetched, as it is told, where it still lacks `stale` blocks.
pub(super) fn fetch_told(fetched: Fetched, stale: u64) -> FetchStatus {
    let bytes = |blocks: u64| blocks * u64::from(BLOCK_SIZE);
    FetchStatus {
        lacked_bytes: bytes(fetched.stale),
        demanded_bytes: bytes(fetched.demand),
        near_bytes: bytes(fetched.near),
        hot_bytes: bytes(fetched.hot),
        rest_bytes: bytes(fetched.rest),
        overwritten_bytes: bytes(fetched.overwritten(stale)),
        hedged_calls: fetched.hedged,
    }
}

/// The counts, as they are told.
pub(super) fn freight_told(freight: Freight) -> FreightStatus {
    FreightStatus {
        written_bytes: freight.written,
        sent_bytes: freight.sent,
        wire_bytes: freight.wire,
        zero_bytes: freight.zero,
        overwritten_bytes: freight.overwritten,
        same_bytes: freight.same,
        relayed_bytes: freight.relayed,
        compressed_bytes: freight.compressed(),
    }
}
