//! The replica's side of propagation: what the owner sends goes into the shard, if the owner is who it says.
//!
//! Nothing of an older epoch is accepted; something of a newer one waits until metadata has arrived here. A node that has
//! left the volume takes nothing. The shard keeps what is shown a prefix: this module only checks the sender and reports
//! positions.

use std::time::Duration;

use client_lib::{BlockIndex, Epoch, Error, ErrorKind, Lsn, NodeId};

use super::intake::Entered;
use super::manifest::{Manifest, VersionedBlock};
use crate::ownership::gate::Phase;
use crate::peer::message::{PeerReply, ReplicaPosition};
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::StoreError;
use crate::volume::layers::Wanted;

/// How long a request of a newer epoch waits for metadata to arrive here before the sender must try again.
const METADATA_PATIENCE: Duration = Duration::from_secs(5);

/// Makes sure that `peer`, as the owner of `epoch`, may tell this replica anything, until what is returned is dropped.
///
/// # Errors
/// The reply to send instead.
pub async fn admit(volume: &ServedVolume, peer: NodeId, epoch: Epoch) -> Result<Entered<'_>, PeerReply> {
    let view = match tokio::time::timeout(METADATA_PATIENCE, volume.gate.settled(epoch)).await {
        Ok(Ok(view)) => view,
        Ok(Err(closed)) => return Err(PeerReply::Failed(closed)),
        Err(_) => {
            return Err(PeerReply::Failed(Error::new(
                ErrorKind::Unavailable,
                format!("volume {} has not reached epoch {epoch} at node {}", volume.name, volume.me),
            )));
        }
    };
    if view.epoch > epoch || view.phase == Phase::Owner {
        return Err(PeerReply::Superseded(view.epoch));
    }
    let Some(entered) = volume.intake.enter(METADATA_PATIENCE).await else {
        let what = format!("volume {} is changing hands at node {}", volume.name, volume.me);
        return Err(PeerReply::Failed(Error::new(ErrorKind::Unavailable, what)));
    };
    // From here on nothing changes: who changes it holds the door.
    let view = volume.gate.view();
    if view.epoch != epoch || view.phase != Phase::Elsewhere || view.owner != peer {
        return Err(PeerReply::Superseded(view.epoch));
    }
    match volume.standing.tail() {
        Some(tail) => Err(PeerReply::Left(tail)),
        None => Ok(entered),
    }
}

/// This replica's positions.
pub async fn position(volume: &ServedVolume) -> Result<ReplicaPosition, StoreError> {
    let report = volume.shard.report(volume.id).await?;
    Ok(ReplicaPosition {
        known: report.known,
        watermark: report.watermark,
        stale_blocks: report.stale_blocks,
        newest_snapshot: report.newest_snapshot,
        awaited_snapshot: report.awaited_snapshot,
        sealed_to: report.sealed_to,
    })
}

/// Takes note of a manifest and lets go of history up to `prune`.
pub async fn manifest(volume: &ServedVolume, manifest: Manifest, seal: bool, durable: bool, prune: Lsn) -> PeerReply {
    let has_mark = manifest.mark.is_some();
    let applied = volume.shard.apply_manifest(volume.id, manifest, seal, durable).await;
    match applied {
        Ok(_) => {
            if has_mark {
                // It may be deleted by now.
                volume.snapshots.told();
            }
            if let Err(error) = volume.shard.prune(volume.id, prune).await {
                return failed(error);
            }
            reply_position(volume).await
        }
        Err(StoreError::ManifestGap { .. }) => match position(volume).await {
            Ok(position) => PeerReply::Gap(position),
            Err(error) => failed(error),
        },
        Err(error) => failed(error),
    }
}

/// Takes a manifest with its data and applies them, with whatever was on its way before; durable on return.
pub async fn deliver(volume: &ServedVolume, manifest: Manifest, blocks: Vec<VersionedBlock>, prune: Lsn) -> PeerReply {
    let to = manifest.to;
    let held = async {
        volume.shard.apply_manifest(volume.id, manifest, true, false).await?;
        if !blocks.is_empty() {
            volume.shard.receive(volume.id, blocks).await?;
        }
        let held = volume.shard.apply_sealed(volume.id, to).await?;
        volume.shard.prune(volume.id, prune).await?;
        Ok((held, position(volume).await?))
    };
    match held.await {
        Ok((held, position)) => PeerReply::Delivered { position, held },
        Err(StoreError::ManifestGap { .. }) => match position(volume).await {
            Ok(position) => PeerReply::Gap(position),
            Err(error) => failed(error),
        },
        Err(error) => failed(error),
    }
}

/// Which blocks of the sealed delta are still missing.
pub async fn missing(volume: &ServedVolume, after: BlockIndex, limit: u32) -> PeerReply {
    match volume.shard.missing(volume.id, Wanted::Sealed, after, limit).await {
        Ok(runs) => PeerReply::Missing(runs),
        Err(error) => failed(error),
    }
}

/// Stores pushed blocks.
pub async fn blocks(volume: &ServedVolume, blocks: Vec<VersionedBlock>) -> PeerReply {
    match volume.shard.receive(volume.id, blocks).await {
        Ok(_) => reply_position(volume).await,
        Err(error) => failed(error),
    }
}

/// Applies the sealed delta, if it is complete. The watermark in the answer is durable.
pub async fn apply(volume: &ServedVolume, to: Lsn) -> PeerReply {
    let applied = async {
        let watermark = volume.shard.apply_sealed(volume.id, to).await?;
        Ok(ReplicaPosition { watermark, ..position(volume).await? })
    };
    match applied.await {
        Ok(position) => PeerReply::Position(position),
        Err(error) => failed(error),
    }
}

/// The positions as a reply.
pub async fn reply_position(volume: &ServedVolume) -> PeerReply {
    match position(volume).await {
        Ok(position) => PeerReply::Position(position),
        Err(error) => failed(error),
    }
}

fn failed(error: StoreError) -> PeerReply {
    PeerReply::Failed(store_failure(error))
}
