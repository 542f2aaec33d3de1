//! What an owner acked, could not make durable, and gave away with its volume: the next owner fetches that first, and answers no flush before it is
//! durable there (docs/ownership.md, *Rescue*).

use std::sync::Arc;

use client_lib::transport::Class;
use client_lib::{BlockIndex, Epoch, Error, Lsn};

use super::manifest::BlockRun;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::LackingSince;
use crate::volume::Moment;

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
        Err(error) => {
            volume.flushes.lost(epoch);
            tracing::error!(volume = %volume.name, %epoch, %error, "what was not durable at the owner before is lost: a flush will say so");
        }
    }
}

async fn fetch(volume: &ServedVolume, durable: Lsn) -> Result<(), Error> {
    let mut after = Some(BlockIndex(0));
    while let Some(from) = after {
        let LackingSince { runs, next } = lacking(volume, durable, from).await?;
        if let Err(error) = volume.puller.pull(Moment::Now, &runs, Class::Pull, &[]).await
            && are_lacking(volume, durable, &runs).await?
        {
            return Err(error);
        }
        after = next;
    }
    volume.shard.sync(volume.id).await.map(drop).map_err(store_failure)
}

async fn lacking(volume: &ServedVolume, durable: Lsn, from: BlockIndex) -> Result<LackingSince, Error> {
    volume.shard.lacking_since(volume.id, durable, from).await.map_err(store_failure)
}

/// Whether some of these are still not here: clients send again what they have not flushed.
async fn are_lacking(volume: &ServedVolume, durable: Lsn, runs: &[BlockRun]) -> Result<bool, Error> {
    let Some(first) = runs.first() else { return Ok(false) };
    let left = lacking(volume, durable, first.start).await?.runs;
    let is_asked = |left: &BlockRun| {
        runs.iter().any(|run| run.start.0 < left.start.0 + left.count && left.start.0 < run.start.0 + run.count)
    };
    Ok(left.iter().any(is_asked))
}
