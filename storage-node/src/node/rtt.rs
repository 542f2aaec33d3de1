//! Consensus's timings follow the distance to the other voters, as the transport measures it.
//!
//! Timings that are too short for the distance make a group elect for ever; too long ones make it slow to
//! notice a death. The node measures before it starts consensus and goes on looking.

use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::transport::Class;
use consensus::{MetaRaft, Timings};
use futures_util::future::join_all;

use crate::peer::client::PeerClient;
use crate::peer::message::PeerRequest;

/// The distance assumed while nothing is known: generous, since too short is worse than too long.
const RTT_UNKNOWN: Duration = Duration::from_millis(150);

/// How long the first measurement waits for the others to come up.
const FIRST_PATIENCE: Duration = Duration::from_millis(1500);

/// Pause between two looks at the distances.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Timings from those of `others` that answer within a moment; generous ones when none does.
pub async fn first_timings(peers: &PeerClient, others: &[NodeId]) -> Timings {
    let reached = join_all(others.iter().map(|node| reach(peers, *node)));
    let rtts = tokio::time::timeout(FIRST_PATIENCE, reached).await.unwrap_or_default();
    let timings = Timings::for_rtt(rtts.into_iter().flatten().max().unwrap_or(RTT_UNKNOWN));
    tracing::info!(?timings, "consensus timings");
    timings
}

/// Calls `node` until it answers; any answer will do.
async fn reach(peers: &PeerClient, node: NodeId) -> Option<Duration> {
    while peers
        .ask(node, Class::Control, PeerRequest::Ping, Bytes::new())
        .await
        .is_err_and(|error| error.not_delivered())
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    peers.transport().rtt(node)
}

/// Keeps the timings fitting while the distances change.
pub async fn follow(meta: MetaRaft, peers: PeerClient, me: NodeId) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        look.tick().await;
        let farthest =
            meta.voters().into_iter().filter(|node| *node != me).filter_map(|node| peers.transport().rtt(node)).max();
        let Some(farthest) = farthest else { continue };
        let wanted = Timings::for_rtt(farthest);
        // Only a clear change is worth a restart of the consensus core.
        if wanted.differs_clearly_from(&meta.timings()) {
            tracing::info!(rtt = ?farthest, ?wanted, "the distance to the voters changed: new consensus timings");
            if let Err(error) = meta.retime(wanted).await {
                tracing::error!(%error, "consensus keeps its timings");
            }
        }
    }
}
