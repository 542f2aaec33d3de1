//! What an owner acked, could not make durable, and gave away with its volume: the next owner fetches that first, and answers no flush before it is
//! durable there (docs/ownership.md, *Rescue*).

use std::sync::Arc;
use std::time::Duration;

use client_lib::transport::Class;
use client_lib::{BlockIndex, Epoch, Error, ErrorKind, Lsn};
use tokio::time::Instant;

use super::manifest::BlockRun;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::LackingSince;
use crate::volume::Moment;

/// How long the holder of it may be out of reach since some of it came.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Fetches what is newer than `durable` for the owner of `epoch`, this node, makes it durable, and lets flushes go on. If some of it is nowhere any
/// more, and was not written again meanwhile, those are told that wait.
///
/// # Cancel safety
/// Safe: flushes wait until the ownership is over.
pub async fn repay(volume: Arc<ServedVolume>, epoch: Epoch, durable: Lsn) {
    match fetch(&volume, durable).await {
        Ok(()) => {
            volume.flushes.repaid(epoch);
            tracing::info!(volume = %volume.name, %epoch, "what was not durable at the owner before is durable here");
        }
        // Another owner will see to it.
        Err(error) if volume.shard.fault().is_some() => {
            tracing::warn!(volume = %volume.name, %epoch, %error, "what was not durable at the owner before cannot be made so here");
        }
        Err(error) => {
            volume.flushes.lost(epoch);
            tracing::error!(volume = %volume.name, %epoch, %error, "what was not durable at the owner before is lost: a flush will say so");
        }
    }
}

async fn fetch(volume: &ServedVolume, durable: Lsn) -> Result<(), Error> {
    let (mut after, mut heard) = (Some(BlockIndex(0)), Instant::now());
    while let Some(from) = after {
        let LackingSince { runs, next } = lacking(volume, durable, from).await?;
        if let Err(error) = volume.puller.pull(Moment::Now, &runs, Class::Pull, &[]).await
            && are_lacking(volume, durable, &runs).await?
        {
            if !may_pass(error.kind(), heard.elapsed()) {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        }
        (after, heard) = (next, Instant::now());
    }
    volume.shard.sync(volume.id).await.map(drop).map_err(store_failure)
}

/// Whether it is tried again: its holder may be back in a moment, and there may be room here again, however long that takes.
fn may_pass(kind: ErrorKind, waited: Duration) -> bool {
    kind == ErrorKind::OutOfSpace || (kind == ErrorKind::Unavailable && waited < PATIENCE)
}

async fn lacking(volume: &ServedVolume, durable: Lsn, from: BlockIndex) -> Result<LackingSince, Error> {
    volume.shard.lacking_since(volume.id, durable, from).await.map_err(store_failure)
}

/// Whether some of these are still not here: clients send again what they have not flushed.
async fn are_lacking(volume: &ServedVolume, durable: Lsn, runs: &[BlockRun]) -> Result<bool, Error> {
    let Some(first) = runs.first() else { return Ok(false) };
    let left = lacking(volume, durable, first.start).await?.runs;
    let is_asked = |left: &BlockRun| {
        runs.iter().any(|run| left.blocks().contains(&run.start.0) || run.blocks().contains(&left.start.0))
    };
    Ok(left.iter().any(is_asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store without room for what was owed told flushes that it was lost, and let the next ones go on without it.
    #[test]
    fn what_there_is_no_room_for_is_not_lost() {
        assert!(may_pass(ErrorKind::OutOfSpace, 100 * PATIENCE));
        assert!(may_pass(ErrorKind::Unavailable, PATIENCE / 2) && !may_pass(ErrorKind::Unavailable, PATIENCE));
        assert!(!may_pass(ErrorKind::Corrupt, Duration::ZERO));
    }
}
