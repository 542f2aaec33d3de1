//! The links between nodes: what went over each. Every node knows those that begin at it.

use client_lib::wire::admin::{FreightStatus, LinkList, LinkStatus};
use client_lib::{Error, NodeId};
use futures_util::future::join_all;

use super::NodeAdmin;
use super::names::name_of;
use crate::peer::message::AdminForward;
use crate::propagation::freight::Freight;

impl NodeAdmin {
    /// All links; those of nodes that do not answer are left out, and the nodes are named.
    pub(super) async fn link_list(&self) -> Result<LinkList, Error> {
        let state = self.meta.state();
        let ids: Vec<NodeId> = state.nodes().map(|node| node.id).collect();
        let of = |node: NodeId| async move {
            match node == self.this.id {
                true => Ok(self.links_here()),
                false => self.ask::<Vec<LinkStatus>>(node, AdminForward::Links).await,
            }
        };
        let mut list = LinkList::default();
        for (node, links) in ids.iter().zip(join_all(ids.iter().map(|node| of(*node))).await) {
            match links {
                Ok(links) => list.links.extend(links),
                Err(error) => {
                    tracing::debug!(%node, %error, "its links are not told");
                    list.silent.push(name_of(&state, *node));
                }
            }
        }
        Ok(list)
    }

    /// The links that begin here.
    pub(super) fn links_here(&self) -> Vec<LinkStatus> {
        let state = self.meta.state();
        let others = state.nodes().filter(|node| node.id != self.this.id);
        let status = |to: &consensus::Node| LinkStatus {
            from: self.this.name.to_string(),
            to: to.name.to_string(),
            provider: to.provider.to_string(),
            rtt_ms: self.peers.transport().rtt(to.id).map(|rtt| rtt.as_secs_f64() * 1000.0),
            freight: freight_told(self.peers.links().link(to.id).freight),
        };
        others.map(status).collect()
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
        compressed_bytes: freight.compressed(),
    }
}
