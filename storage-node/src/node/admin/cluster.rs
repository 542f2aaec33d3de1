//! The cluster, as this node sees it.

use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::wire::admin::{ClusterStatus, MemberStatus};
use client_lib::{Error, NodeId};
use futures_util::future::join_all;

use super::NodeAdmin;
use crate::peer::message::PeerRequest;

/// How long a member may take to answer before `cluster status` calls it out of reach.
const REACH_PATIENCE: Duration = Duration::from_secs(2);

impl NodeAdmin {
    /// Whether `node` answers, now.
    pub(in crate::node) async fn reach(&self, node: NodeId) -> bool {
        let ping = self.peers.ask(node, Class::Control, PeerRequest::Ping, Bytes::new());
        node == self.this.id || tokio::time::timeout(REACH_PATIENCE, ping).await.is_ok_and(|answer| answer.is_ok())
    }

    pub(super) async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let state = self.meta.state();
        let (leader, voters) = (self.meta.leader(), self.meta.voters());
        let reached = join_all(state.nodes().map(|node| self.reach(node.id))).await;
        // One that has no majority behind it leads nobody, and may not know yet.
        let voting = state.nodes().zip(&reached).filter(|(node, reachable)| **reachable && voters.contains(&node.id));
        let leader = leader.filter(|_| voting.count() > voters.len() / 2);
        let members = state
            .nodes()
            .zip(reached)
            .map(|(node, reachable)| {
                let rtt = self.peers.transport().rtt(node.id).filter(|_| reachable);
                MemberStatus {
                    id: node.id.0,
                    name: node.name.to_string(),
                    provider: node.provider.to_string(),
                    address: node.address.clone(),
                    voter: voters.contains(&node.id),
                    leader: leader == Some(node.id),
                    reachable,
                    rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                }
            })
            .collect();
        let wan_bytes = self.wan_bytes.as_ref().map_or(0, |bytes| (bytes.0)());
        let nbd = self.nbd.get().cloned().unwrap_or_default();
        Ok(ClusterStatus { node: self.this.name.to_string(), nbd, term: self.meta.term(), members, wan_bytes })
    }
}
