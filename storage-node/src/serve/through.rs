//! Reads of a volume whose store has failed, or is too full for a repair: what its disk no longer gives is fetched from another holder and
//! handed on.
//!
//! Such a store cannot keep what is fetched, so it is fetched again for every read. What is handed on is
//! the version that the map here names, with its checksum, so a holder that lags is never believed. The role and the lease
//! are looked at after the fetch, like those of any read. Without a holder the read fails, for those blocks alone.

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, Error, ReadPart};

use super::volume::{ServedVolume, store_failure};
use crate::propagation::manifest::{BlockRun, VersionedBlock};
use crate::shard::handle::StoreError;
use crate::volume::Moment;

/// What a read that ended so lacks, and another holder may have.
pub(super) fn missing(error: &StoreError) -> Vec<BlockRun> {
    match error {
        StoreError::Stale { runs } | StoreError::Damaged { runs, .. } => runs.clone(),
        _ => Vec::new(),
    }
}

/// Reads a range of which `missing` cannot be read here. More of it may turn out to be missing on the way.
///
/// # Errors
/// Outside, that no other holder has what is missing; inside, what the shard says of the rest.
pub(super) async fn read(
    volume: &ServedVolume,
    moment: Moment,
    offset: u64,
    length: u32,
    mut missing: Vec<BlockRun>,
) -> Result<Result<Vec<ReadPart>, StoreError>, Error> {
    let blocks = (u64::from(length) / u64::from(BLOCK_SIZE)) as usize + 2;
    // Every round finds one more that cannot be read, at least.
    for _ in 0..=blocks {
        let expected = match volume.shard.versions(volume.id, moment, missing.clone()).await {
            Ok(expected) => expected,
            Err(error) => return Ok(Err(error)),
        };
        let fetched = volume.puller.fetch(moment, &missing, &expected).await?;
        match volume.shard.versions(volume.id, moment, missing.clone()).await {
            Ok(now) if now == expected => {}
            // What was fetched is not the newest any more.
            Ok(_) => continue,
            Err(error) => return Ok(Err(error)),
        }
        match compose(volume, moment, (offset, length), &fetched).await {
            Ok(chunks) => return Ok(Ok(chunks)),
            Err(StoreError::Stale { runs } | StoreError::Damaged { runs, .. }) => missing = join(&missing, &runs),
            // Noted by now: the next round is told which.
            Err(StoreError::Corrupt { block, .. }) => missing = join(&missing, &[BlockRun { start: block, count: 1 }]),
            Err(error) => return Ok(Err(error)),
        }
    }
    Err(store_failure(StoreError::Io(format!("{length} bytes at {offset} change faster than they can be read"))))
}

/// What was fetched, in its place, and what is between it from the shard.
async fn compose(
    volume: &ServedVolume,
    moment: Moment,
    (offset, length): (u64, u32),
    fetched: &[VersionedBlock],
) -> Result<Vec<ReadPart>, StoreError> {
    let end = offset + u64::from(length);
    let mut chunks = Vec::new();
    let mut at = offset;
    for block in fetched {
        let start = u64::from(block.block.0) * u64::from(BLOCK_SIZE);
        let (from, to) = (start.max(offset), (start + u64::from(BLOCK_SIZE)).min(end));
        if at < from {
            chunks.extend(volume.shard.read(volume.id, moment, at, (from - at) as u32).await?);
        }
        let zeroes = Bytes::from_static(&[0; BLOCK_SIZE as usize]);
        let data = block.data.as_ref().unwrap_or(&zeroes);
        chunks.push(ReadPart::Data(data.slice((from - start) as usize..(to - start) as usize)));
        at = to;
    }
    if at < end {
        chunks.extend(volume.shard.read(volume.id, moment, at, (end - at) as u32).await?);
    }
    Ok(chunks)
}

/// Both lists as one, sorted, each block once.
fn join(a: &[BlockRun], b: &[BlockRun]) -> Vec<BlockRun> {
    let blocks = a.iter().chain(b).flat_map(BlockRun::blocks);
    let blocks: std::collections::BTreeSet<u32> = blocks.collect();
    BlockRun::of(blocks)
}

#[cfg(test)]
mod tests {
    use client_lib::BlockIndex;

    use super::*;

    #[test]
    fn what_is_missing_is_joined_in_order_without_repeats() {
        let run = |start, count| BlockRun { start: BlockIndex(start), count };
        assert_eq!(join(&[run(5, 2), run(9, 1)], &[run(6, 2), run(1, 1)]), [run(1, 1), run(5, 3), run(9, 1)]);
        // It was left out.
        assert_eq!(join(&[run(u32::MAX, 1)], &[run(u32::MAX - 1, 2)]), [run(u32::MAX - 1, 2)]);
    }
}
