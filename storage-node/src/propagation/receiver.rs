//! The replica's side of propagation: what the owner sends goes into the shard, if the owner is who it says.
//!
//! Nothing of an older epoch is accepted; something of a newer one waits until metadata has arrived here. A node that has
//! left the volume takes nothing, nor does one that is no replica. The shard keeps what is shown a prefix: this module only checks the sender and reports
//! positions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use client_lib::{BlockIndex, Epoch, Error, ErrorKind, Lsn, NodeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::intake::Entered;
use super::manifest::{BlockRun, Manifest, VersionedBlock};
use super::pull::{PULL_BLOCKS_MAX, split};
use crate::ownership::gate::{Phase, View};
use crate::peer::alike::{named, offers_of};
use crate::peer::message::{Alike, PeerReply, ReplicaPosition};
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::{StoreError, VolumeReport};
use crate::volume::initial::InitialSync;
use crate::volume::layers::Wanted;
use crate::volume::rejoin::Rejoining;

/// How long a request of a newer epoch waits for metadata to arrive here before the sender must try again.
const METADATA_PATIENCE: Duration = Duration::from_secs(5);

/// Missing blocks that are looked at in one step for what may be the same: four mebibytes, if all are.
const OFFERED_PART_BLOCKS: u32 = 1024;

/// Steps for an answer: where nothing is found in so many the owner learns of everything that is missing at once.
const OFFERED_PARTS: usize = 64;

/// Offers of an answer after which it ends: about a hundred kibibytes.
const OFFERS_MAX: usize = 4096;

/// How long a replica fetches from another before it tells its owner how far that has come.
const FETCH_MAX: Duration = Duration::from_secs(5);

/// Calls under way at once to the replica that is fetched from: eight mebibytes.
const FETCH_PARTS_MAX: usize = 8;

/// Pause before that is asked again for what it had not.
const FETCH_PAUSE: Duration = Duration::from_millis(20);

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
                format!("volume {} has not reached epoch {epoch} at node {}", volume.name, volume.my_name()),
            )));
        }
    };
    if is_superseded(view, peer, epoch) {
        return Err(PeerReply::Superseded(view.epoch));
    }
    let Some(entered) = volume.intake.enter(METADATA_PATIENCE).await else {
        let what = format!("volume {} is changing hands at node {}", volume.name, volume.my_name());
        return Err(PeerReply::Failed(Error::new(ErrorKind::Unavailable, what)));
    };
    // From here on nothing changes: who changes it holds the door.
    let view = volume.gate.view();
    if is_superseded(view, peer, epoch) {
        return Err(PeerReply::Superseded(view.epoch));
    }
    if view.epoch != epoch || view.phase != Phase::Elsewhere {
        let what = format!("node {} takes nothing of volume {} at this moment", volume.my_name(), volume.name);
        return Err(PeerReply::Failed(Error::new(ErrorKind::Unavailable, what)));
    }
    if !volume.follows.load(Ordering::Relaxed) {
        let what = format!("node {} is no replica of volume {}, as far as it has heard", volume.my_name(), volume.name);
        return Err(PeerReply::Failed(Error::new(ErrorKind::Unavailable, what)));
    }
    match volume.standing.tail() {
        Some(tail) => Err(PeerReply::Left(tail)),
        None => Ok(entered),
    }
}

/// Whether a node with this view knows of a newer ownership than that of `peer` in `epoch`, or of another owner in it. A node that stops knows of
/// none: the owner is to come again.
fn is_superseded(view: View, peer: NodeId, epoch: Epoch) -> bool {
    view.epoch > epoch || (view.epoch == epoch && view.owner != peer)
}

/// This replica's positions.
pub async fn position(volume: &ServedVolume) -> Result<ReplicaPosition, StoreError> {
    Ok(position_in(&volume.shard.report(volume.id).await?))
}

fn position_in(report: &VolumeReport) -> ReplicaPosition {
    ReplicaPosition {
        known: report.known,
        watermark: report.watermark,
        stale_blocks: report.stale_blocks,
        newest_snapshot: report.newest_snapshot,
        awaited_snapshot: report.awaited_snapshot,
        sealed_to: report.sealed_to,
    }
}

/// This replica's positions, for an owner that begins to send, or gives the volume away: what it says that it knows is durable here, since what is
/// enclosed in a handover goes on from there.
pub async fn status(volume: &ServedVolume) -> PeerReply {
    if let Some(fault) = volume.shard.fault() {
        // It can note nothing that it is told, and own nothing.
        return failed(StoreError::Poisoned(fault.to_owned()));
    }
    let report = volume.shard.report(volume.id).await;
    // Behind the report: it may be told more meanwhile.
    if let Err(error) = volume.shard.sync(volume.id).await {
        return failed(error);
    }
    match report {
        Ok(report) => match report.rejoining {
            None => PeerReply::Position(position_in(&report)),
            Some(Rejoining { base, initial: Some(InitialSync { next, is_told: false, .. }), .. }) => {
                PeerReply::InitialSync { position: position_in(&report), base, next: BlockIndex(next) }
            }
            Some(Rejoining { base, unknown, .. }) => {
                PeerReply::Rejoining { position: position_in(&report), base, unknown }
            }
        },
        Err(error) => failed(error),
    }
}

/// Which blocks this replica lacks, or does not know in which version they are meant.
pub async fn lacking(volume: &ServedVolume, after: BlockIndex, limit: u32) -> PeerReply {
    match volume.shard.missing(volume.id, Wanted::Now, after, limit).await {
        Ok(runs) => PeerReply::Missing(runs),
        Err(error) => failed(error),
    }
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

/// Takes note of a part of an initial sync.
pub async fn sync_part(volume: &ServedVolume, manifest: Manifest, end: Option<BlockIndex>) -> PeerReply {
    match volume.shard.apply_part(volume.id, manifest, end).await {
        Ok(_) => reply_position(volume).await,
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

/// Which blocks of the sealed delta are still missing, and for which of them there is something here that may be the same.
pub async fn offered(volume: &ServedVolume, after: BlockIndex, limit: u32) -> PeerReply {
    let runs = match volume.shard.missing(volume.id, Wanted::Sealed, after, limit).await {
        Ok(runs) => runs,
        Err(error) => return failed(error),
    };
    let mut offers = Vec::new();
    let mut looked_at = Vec::new();
    for (number, part) in split(&runs, OFFERED_PART_BLOCKS).into_iter().enumerate() {
        if number == OFFERED_PARTS || offers.len() >= OFFERS_MAX {
            break;
        }
        looked_at.extend_from_slice(&part);
        match volume.shard.read_alike(volume.id, Wanted::Sealed, part).await {
            Ok(alike) => offers.extend(offers_of(&alike)),
            // It can be sent all the same.
            Err(error) => tracing::debug!(volume = %volume.name, %error, "what is here cannot be offered"),
        }
    }
    // Where nothing was found the rest is not likely to be the same either.
    PeerReply::Offered { runs: if offers.is_empty() { runs } else { looked_at }, offers }
}

/// Fetches what the sealed delta misses from `holder`, which is sent the same, until nothing is missing, or nothing has come for `patience` and
/// everything was looked for, or for [`FETCH_MAX`].
pub async fn fetch_from(
    volume: &ServedVolume,
    peer: NodeId,
    epoch: Epoch,
    holder: NodeId,
    patience: Duration,
) -> PeerReply {
    if let Err(refusal) = admit(volume, peer, epoch).await {
        return refusal;
    }
    let (begun, mut came_last) = (Instant::now(), Instant::now());
    // It comes to the holder in block order, as a rule; what is further on is looked for in turn.
    let (mut further, mut rounds, mut parts_max, mut fetched) = (BlockIndex(0), 0, 1, 0);
    loop {
        let most = parts_max * PULL_BLOCKS_MAX as usize;
        let step = async {
            let first = volume.shard.lacking_sealed(volume.id, BlockIndex(0), most).await.map_err(failed)?;
            let came = fetch_parts(volume, peer, epoch, holder, &first).await?;
            if came > 0 || first.is_empty() {
                return Ok((came, first.is_empty()));
            }
            let next = volume.shard.lacking_sealed(volume.id, further, most).await.map_err(failed)?;
            rounds += u32::from(next.is_empty());
            further = next.last().map_or(BlockIndex(0), |(block, _)| BlockIndex(block.saturating_add(1)));
            Ok((fetch_parts(volume, peer, epoch, holder, &next).await?, false))
        };
        let (came, is_whole) = match step.await {
            Ok(step) => step,
            Err(refusal) => return refusal,
        };
        fetched += came;
        if is_whole {
            return PeerReply::Fetched { blocks: fetched, is_whole };
        }
        if came > 0 {
            (came_last, rounds) = (Instant::now(), 0);
        }
        // The first one may have begun anywhere.
        let is_over = rounds > 1 && came_last.elapsed() >= patience;
        if is_over || begun.elapsed() >= FETCH_MAX {
            return PeerReply::Fetched { blocks: fetched, is_whole: false };
        }
        parts_max = if came > 0 || patience.is_zero() { FETCH_PARTS_MAX } else { 1 };
        if came == 0 && !patience.is_zero() {
            tokio::time::sleep(FETCH_PAUSE).await;
        }
    }
}

/// Fetches those of `wanted` that `holder` has; how many came.
async fn fetch_parts(
    volume: &ServedVolume,
    peer: NodeId,
    epoch: Epoch,
    holder: NodeId,
    wanted: &[(u32, Lsn)],
) -> Result<u64, PeerReply> {
    let parts = wanted.chunks(PULL_BLOCKS_MAX as usize);
    let mut calls: FuturesUnordered<_> = parts.map(|part| volume.puller.ask_for(holder, part.to_vec())).collect();
    let mut came = 0;
    while let Some(answer) = calls.next().await {
        let blocks = answer.map_err(PeerReply::Failed)?;
        if !blocks.is_empty() {
            // Only for so long: who holds the door shut must not wait for another node.
            let _entered = admit(volume, peer, epoch).await?;
            came += volume.shard.receive(volume.id, blocks).await.map_err(failed)?;
        }
    }
    Ok(came)
}

/// Stores pushed blocks, and those that are here already under another name.
pub async fn blocks_alike(volume: &ServedVolume, mut blocks: Vec<VersionedBlock>, alike: &[Alike]) -> PeerReply {
    let runs: Vec<BlockRun> = alike.iter().map(|alike| BlockRun { start: alike.block, count: 1 }).collect();
    match volume.shard.read_alike(volume.id, Wanted::Sealed, runs).await {
        // What has changed meanwhile stays missing.
        Ok(here) => blocks.extend(named(here, alike)),
        Err(error) => return failed(error),
    }
    self::blocks(volume, blocks).await
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

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: NodeId = NodeId(1);

    /// A request of the owner that waited at a replica's door while that was stopped in good order heard that a newer epoch had taken over, though it
    /// was the owner's own. Its sender ended: the replica was sent nothing more under that ownership.
    #[test]
    fn a_replica_that_stops_supersedes_nobody() {
        let view = |owner, epoch, phase| View { owner, epoch: Epoch(epoch), phase };
        for phase in [Phase::Elsewhere, Phase::Activating, Phase::Closed] {
            assert!(!is_superseded(view(OWNER, 7, phase), OWNER, Epoch(7)), "{phase:?}");
            assert!(!is_superseded(view(NodeId(2), 6, phase), OWNER, Epoch(7)), "{phase:?}: it has yet to hear of it");
            assert!(is_superseded(view(NodeId(2), 7, phase), OWNER, Epoch(7)), "{phase:?}: of another owner");
            assert!(is_superseded(view(OWNER, 8, phase), OWNER, Epoch(7)), "{phase:?}: of a newer ownership");
        }
        assert!(is_superseded(view(NodeId(2), 7, Phase::Owner), OWNER, Epoch(7)));
    }
}
