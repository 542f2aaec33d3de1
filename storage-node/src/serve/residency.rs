//! What of a volume is at this node, and bringing the rest here before somebody reads it: NBD's `helio:residency` and CACHE.
//!
//! Both are about this node alone, whoever owns the volume: at a replica they tell what a handover would leave to be
//! fetched, and fetch it.

use std::time::Duration;

use client_lib::transport::Class;
use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nbd_frontend::export::{Residency, ResidencyExtent};

use super::status::{Extent, in_steps};
use super::volume::{ServedVolume, store_failure};
use crate::propagation::manifest::BlockRun;
use crate::propagation::pull::PULL_BLOCKS_MAX;
use crate::shard::handle;
use crate::volume::Moment;
use crate::volume::layers::Wanted;

/// Pulls of one CACHE under way at once: a mebibyte each, so that a guest's own reads, which are of the same class, find the
/// link free again soon.
const CALLS_MAX: usize = 4;
/// Runs of missing blocks looked up at a time.
const RUNS_MAX: u32 = 256;
/// How often a pull that no holder could answer is tried again, and the pause before: a block that is written again just now
/// is at its owner in a version that is told of here in a moment.
const RETRIES_MAX: usize = 25;
const RETRY_PAUSE: Duration = Duration::from_millis(200);

impl Extent for ResidencyExtent {
    fn length(&self) -> u64 {
        self.length
    }

    fn is_like(&self, other: &ResidencyExtent) -> bool {
        self.residency == other.residency
    }

    fn lengthen(&mut self, bytes: u64) {
        self.length += bytes;
    }
}

/// Where the newest versions in a range are that this node has heard of, or those of a snapshot.
///
/// # Errors
/// What the shard says.
pub(super) async fn residency(
    volume: &ServedVolume,
    moment: Moment,
    offset: u64,
    length: u64,
) -> Result<Vec<ResidencyExtent>, Error> {
    if moment == Moment::Now && volume.standing.tail().is_some() {
        // What is here belongs to a history that was cut off.
        return Ok(vec![ResidencyExtent { length, residency: Residency::Stale }]);
    }
    let told = |extent: handle::ResidentExtent| ResidencyExtent {
        length: extent.length,
        residency: match extent.residency {
            handle::Residency::Local => Residency::Local,
            handle::Residency::Stale => Residency::Stale,
            handle::Residency::Zero => Residency::Zero,
        },
    };
    in_steps(offset, length, |at, piece| async move {
        let extents = volume.shard.residency(volume.id, moment, at, piece).await.map_err(store_failure)?;
        Ok(extents.into_iter().map(told).collect())
    })
    .await
}

/// Fetches what is stale in a range, once through: what becomes stale behind is left.
///
/// # Errors
/// `Unavailable` when no holder had a block.
///
/// # Cancel safety
/// Safe: blocks that arrived are kept.
pub(super) async fn cache(volume: &ServedVolume, moment: Moment, offset: u64, length: u64) -> Result<(), Error> {
    if moment == Moment::Now && volume.standing.tail().is_some() {
        return Ok(());
    }
    let wanted = match moment {
        Moment::Now => Wanted::Now,
        Moment::Snapshot(snapshot) => Wanted::Snapshot(snapshot),
    };
    let block_bytes = u64::from(BLOCK_SIZE);
    // The first block and the one behind the last.
    let (mut after, end) = (offset / block_bytes, (offset + length).div_ceil(block_bytes));
    let mut calls = FuturesUnordered::new();
    while after < end {
        let missing = volume.shard.missing(volume.id, wanted, BlockIndex(after as u32), RUNS_MAX);
        let missing = missing.await.map_err(store_failure)?;
        for part in parts(&missing, after, end) {
            if calls.len() >= CALLS_MAX {
                calls.next().await.transpose()?;
            }
            calls.push(fetch(volume, moment, part));
        }
        let Some(last) = missing.last() else { break };
        after = u64::from(last.start.0) + u64::from(last.count);
    }
    while calls.next().await.transpose()?.is_some() {}
    Ok(())
}

async fn fetch(volume: &ServedVolume, moment: Moment, part: BlockRun) -> Result<(), Error> {
    let mut retries = 0;
    loop {
        match volume.puller.pull(moment, &[part], Class::Pull, &[]).await {
            Err(error) if error.kind() == ErrorKind::Unavailable && retries < RETRIES_MAX => {
                retries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// What of `runs` lies in the blocks `from..end`, in parts of one call each.
fn parts(runs: &[BlockRun], from: u64, end: u64) -> impl Iterator<Item = BlockRun> {
    runs.iter().flat_map(move |run| {
        let start = u64::from(run.start.0).max(from);
        let stop = (u64::from(run.start.0) + u64::from(run.count)).min(end);
        (start..stop).step_by(PULL_BLOCKS_MAX as usize).map(move |at| BlockRun {
            start: BlockIndex(at as u32),
            count: (stop - at).min(u64::from(PULL_BLOCKS_MAX)) as u32,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_cut_to_the_range_and_to_calls() {
        let run = |start, count| BlockRun { start: BlockIndex(start), count };
        let missing = [run(1, 3), run(10, 600), run(700, 1), run(900, u32::MAX - 900)];
        let cut: Vec<_> = parts(&missing, 2, 1000).collect();
        assert_eq!(cut, [run(2, 2), run(10, 256), run(266, 256), run(522, 88), run(700, 1), run(900, 100)]);
        assert_eq!(parts(&missing, 4, 10).count(), 0);
    }
}
