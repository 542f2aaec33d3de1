//! A replica that came later says when it is a complete copy for the first time: from then on it counts, and may take over.
//!
//! It says so itself, and of which addition: whatever the metadata had said of it before, it has carried out by then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client_lib::wire::admin::VolumeStatus;
use client_lib::{Error, Lsn, NodeId, VolumeId};
use consensus::{Command, MetaRaft};

use super::METADATA_DEADLINE;
use super::admin::ask;
use crate::ownership::gate::Phase;
use crate::peer::client::PeerClient;
use crate::peer::message::AdminForward;
use crate::serve::volumes::Volumes;

/// How often it is looked while something joins.
const LOOK: Duration = Duration::from_millis(300);

/// Follows what this node joins, for as long as it runs.
pub(super) async fn finish(me: NodeId, meta: MetaRaft, volumes: Arc<Volumes>, peers: PeerClient) {
    let mut states = meta.subscribe();
    loop {
        let state = states.borrow_and_update().clone();
        let joining: Vec<(VolumeId, u64)> = state.places().joined_by(me).collect();
        for (volume, since) in &joining {
            if is_whole(*volume, *since, &volumes, &peers).await {
                let command = Command::ReplicaJoined { volume: *volume, node: me, since: *since };
                match meta.carry_out(command, METADATA_DEADLINE).await {
                    Ok(_) => tracing::info!(%volume, "this node has everything, and counts as a replica now"),
                    Err(error) => tracing::debug!(%volume, %error, "it is said again that this node has everything"),
                }
            }
        }
        let rest = if joining.is_empty() { Duration::MAX } else { LOOK };
        if let Ok(Err(_)) = tokio::time::timeout(rest, states.changed()).await {
            return;
        }
    }
}

/// Whether this node, as one that follows `volume` as far as it has heard, has all of it up to somewhere. Before it has carried out this very
/// addition, what it has may be what it is about to drop.
async fn is_whole(id: VolumeId, since: u64, volumes: &Volumes, peers: &PeerClient) -> bool {
    let Some(volume) = volumes.get(id) else { return false };
    if volume.joins.load(Ordering::Acquire) != since {
        return false;
    }
    let view = volume.gate.view();
    if view.phase != Phase::Elsewhere || !volume.follows.load(Ordering::Relaxed) {
        return false;
    }
    match volume.shard.report(id).await {
        Ok(report) if report.rejoining.is_some() => false,
        Ok(report) if report.watermark > Lsn::ZERO => true,
        // Nothing was told of: then there is nothing, if the owner says so.
        Ok(report) if report.known == Lsn::ZERO => was_never_written(id, view.owner, peers).await.unwrap_or(false),
        _ => false,
    }
}

async fn was_never_written(volume: VolumeId, owner: NodeId, peers: &PeerClient) -> Result<bool, Error> {
    let status: VolumeStatus = ask(peers, owner, AdminForward::Status { volume }).await?;
    Ok(status.head == Lsn::ZERO.to_string())
}
