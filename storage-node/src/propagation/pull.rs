//! Fetching stale blocks on demand, and filling in the rest after a handover.
//!
//! A [`Puller`] asks the holders of a volume in turn, the one who made most of the versions first, until the
//! blocks are here. One round trip when the first holder has them. The backfill asks for whatever is missing,
//! in block order and in the bulk class, so that a guest's pull overtakes it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind, NodeId, VolumeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::manifest::{BlockRun, VersionedBlock};
use crate::map::page::Version;
use crate::peer::client::{PeerClient, unexpected};
use crate::peer::message::{ENCODING_ZSTD, Message, PeerReply, PeerRequest};
use crate::peer::packing::{unpack_blocks, unpack_zstd};
use crate::serve::volume::store_failure;
use crate::shard::handle::{ShardHandle, StoreError, Versions};
use crate::volume::Moment;
use crate::volume::layers::Wanted;

/// Most blocks asked for in one call: a mebibyte, long enough to fill a link in a few calls, short enough
/// that one guest read never waits behind much.
pub const PULL_BLOCKS_MAX: u32 = 256;

/// Calls of the backfill under way at once. Eight mebibytes in flight fill 450 Mbit/s at 150 ms.
const BACKFILL_CALLS_MAX: usize = 8;

/// Runs of missing blocks looked up at a time.
const MISSING_RUNS_MAX: u32 = 1024;

/// Pause before asking again after no holder had what is missing.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Fetches a volume's stale blocks from the nodes that hold them.
#[derive(Clone)]
pub struct Puller {
    volume: VolumeId,
    me: NodeId,
    shard: ShardHandle,
    peers: PeerClient,
    holders: Arc<Mutex<Vec<NodeId>>>,
}

impl Puller {
    /// A puller for `volume` into `shard`, with no holders yet.
    #[must_use]
    pub fn new(volume: VolumeId, me: NodeId, shard: ShardHandle, peers: PeerClient) -> Puller {
        Puller { volume, me, shard, peers, holders: Arc::default() }
    }

    /// Replaces the nodes to ask, best first. This node is left out by itself.
    pub fn set_holders(&self, holders: impl IntoIterator<Item = NodeId>) {
        let holders = holders.into_iter().filter(|holder| *holder != self.me).collect();
        *self.holders.lock().unwrap_or_else(PoisonError::into_inner) = holders;
    }

    fn holders(&self) -> Vec<NodeId> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches `runs`, as `moment` shows them, from the first holder that has them, leaving out those that were `visited` for the
    /// same need.
    ///
    /// # Errors
    /// `Unavailable` when no holder had them; the blocks stay stale.
    ///
    /// # Cancel safety
    /// Safe: blocks that arrived are kept.
    pub async fn pull(&self, moment: Moment, runs: &[BlockRun], class: Class, visited: &[NodeId]) -> Result<(), Error> {
        let mut calls: FuturesUnordered<_> =
            split(runs, PULL_BLOCKS_MAX).into_iter().map(|runs| self.pull_part(moment, runs, class, visited)).collect();
        while let Some(part) = calls.next().await {
            part?;
        }
        Ok(())
    }

    async fn pull_part(
        &self,
        moment: Moment,
        runs: Vec<BlockRun>,
        class: Class,
        visited: &[NodeId],
    ) -> Result<(), Error> {
        let mut last = None;
        let mut told: Vec<NodeId> = visited.to_vec();
        told.push(self.me);
        for holder in self.holders().into_iter().filter(|holder| !visited.contains(holder)) {
            match self.ask(holder, class, moment, &runs, &told).await {
                Ok(blocks) => {
                    last = Some(match self.shard.receive(self.volume, blocks).await {
                        Ok(0) => Error::new(ErrorKind::Unavailable, format!("node {holder} holds other versions")),
                        Ok(_) => return Ok(()),
                        // What it sent is not what the manifest promised: another holder may be right.
                        Err(error @ StoreError::Corrupt { .. }) => store_failure(error),
                        Err(error) => return Err(store_failure(error)),
                    });
                }
                Err(error) => last = Some(error),
            }
            told.push(holder);
        }
        // Nothing was wanted any more is success too: another pull or an overwrite was faster.
        if self.still_missing(moment, &runs).await? {
            Err(Error::new(
                ErrorKind::Unavailable,
                format!("no other holder of volume {} could send a block that is stale or damaged here", self.volume),
            )
            .caused_by(last.map_or_else(|| "there is no other holder".to_owned(), |error| error.to_string())))
        } else {
            Ok(())
        }
    }

    /// Fetches `runs` in the versions that `expected` has, in order, without storing them: for a store that takes no writes.
    ///
    /// # Errors
    /// `Corrupt` when no other holder has them so.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn fetch(
        &self,
        moment: Moment,
        runs: &[BlockRun],
        expected: &Versions,
    ) -> Result<Vec<VersionedBlock>, Error> {
        let mut fetched = Vec::new();
        for runs in split(runs, PULL_BLOCKS_MAX) {
            let wanted = &expected[fetched.len()..];
            fetched.extend(self.fetch_part(moment, runs, wanted).await?);
        }
        Ok(fetched)
    }

    async fn fetch_part(
        &self,
        moment: Moment,
        runs: Vec<BlockRun>,
        wanted: &[(u32, Option<Version>)],
    ) -> Result<Vec<VersionedBlock>, Error> {
        let mut last = None;
        let mut told = vec![self.me];
        for holder in self.holders() {
            match self.ask(holder, Class::Pull, moment, &runs, &told).await {
                Ok(blocks) => {
                    let count: usize = runs.iter().map(|run| run.count as usize).sum();
                    if blocks.len() == count
                        && blocks.iter().zip(wanted).all(|(block, wanted)| is_version(block, wanted))
                    {
                        return Ok(blocks);
                    }
                    last = Some(Error::new(ErrorKind::Unavailable, format!("node {holder} holds other versions")));
                }
                Err(error) => last = Some(error),
            }
            told.push(holder);
        }
        let first = runs.first().map_or(0, |run| run.start.0);
        let text = format!(
            "block {first} of volume {} cannot be read here, the store takes no writes, and no other node has it in this version",
            self.volume
        );
        let why = last.map_or_else(|| "there is no other holder".to_owned(), |error| error.to_string());
        Err(Error::new(ErrorKind::Corrupt, text).caused_by(why))
    }

    /// Asks one holder for `runs`; `visited` have been asked before.
    async fn ask(
        &self,
        holder: NodeId,
        class: Class,
        moment: Moment,
        runs: &[BlockRun],
        visited: &[NodeId],
    ) -> Result<Vec<VersionedBlock>, Error> {
        let (volume, runs, visited) = (self.volume, runs.to_vec(), visited.to_vec());
        let request = match self.peers.encodings(holder) & ENCODING_ZSTD {
            0 => PeerRequest::Pull { volume, moment, runs, visited },
            _ => PeerRequest::PullZstd { volume, moment, runs, visited },
        };
        match self.peers.ask(holder, class, request, Bytes::new()).await? {
            Message { head: PeerReply::Blocks(heads), payload } => unpack_blocks(&heads, payload),
            Message { head: PeerReply::BlocksZstd(heads), payload } => unpack_zstd(&heads, &payload),
            message => Err(unexpected(holder, &message.head)),
        }
    }

    async fn still_missing(&self, moment: Moment, runs: &[BlockRun]) -> Result<bool, Error> {
        for run in runs {
            let missing = self.shard.missing(self.volume, wanted(moment), run.start, 1).await.map_err(store_failure)?;
            if missing.iter().any(|found| found.start.0 < run.start.0 + run.count) {
                return Ok(true);
            }
        }
        let damaged = self.shard.damaged().await.map_err(store_failure)?;
        let here = damaged.iter().filter(|blocks| blocks.volume == self.volume && blocks.moment == moment);
        let overlap = |a: &BlockRun, b: &BlockRun| a.start.0 < b.start.0 + b.count && b.start.0 < a.start.0 + a.count;
        Ok(here.flat_map(|blocks| &blocks.runs).any(|found| runs.iter().any(|run| overlap(found, run))))
    }

    /// Fetches blocks that are damaged here. Their bytes are compared with the checksum that was theirs when they were
    /// whole.
    ///
    /// # Errors
    /// `Corrupt` when no other holder has them in the version that is damaged here.
    ///
    /// # Cancel safety
    /// Safe: blocks that arrived are kept.
    pub async fn repair(
        &self,
        moment: Moment,
        runs: &[BlockRun],
        class: Class,
        visited: &[NodeId],
    ) -> Result<(), Error> {
        self.pull(moment, runs, class, visited).await.map_err(|error| {
            let first = runs.first().map_or(0, |run| run.start.0);
            let text = format!("block {first} of volume {} is damaged here, and no other node has it", self.volume);
            Error::new(ErrorKind::Corrupt, text).caused_by(error)
        })
    }

    /// Fetches everything that is missing, for the volume first and then for its snapshots, and returns when nothing is. Runs
    /// until then: failures are retried.
    ///
    /// # Cancel safety
    /// Safe: blocks that arrived are kept.
    pub async fn backfill(&self) -> Result<(), Error> {
        let mut moment = Moment::Now;
        loop {
            self.fill(moment).await?;
            let snapshots = self.shard.snapshots(self.volume).await.map_err(store_failure)?;
            match snapshots.iter().find(|snapshot| snapshot.stale_blocks > 0) {
                Some(snapshot) => moment = Moment::Snapshot(snapshot.snapshot),
                None => return Ok(()),
            }
        }
    }

    /// Fetches everything that `moment` lacks.
    async fn fill(&self, moment: Moment) -> Result<(), Error> {
        let mut after = BlockIndex(0);
        let mut failed = None;
        let mut calls = FuturesUnordered::new();
        loop {
            let missing = self.shard.missing(self.volume, wanted(moment), after, MISSING_RUNS_MAX);
            let runs = missing.await.map_err(store_failure)?;
            for part in split(&runs, PULL_BLOCKS_MAX) {
                if calls.len() >= BACKFILL_CALLS_MAX
                    && let Some(Err(error)) = calls.next().await
                {
                    failed = Some(error);
                }
                calls.push(self.pull_part(moment, part, Class::Bulk, &[]));
            }
            after = match runs.last() {
                Some(last) => BlockIndex(last.start.0 + last.count),
                None => {
                    while let Some(part) = calls.next().await {
                        failed = part.err().or(failed);
                    }
                    if after == BlockIndex(0) && failed.is_none() {
                        return Ok(());
                    }
                    // One pass is through; another looks for what failed or became stale meanwhile.
                    if let Some(error) = failed.take() {
                        tracing::warn!(volume = %self.volume, %error, "filling in stale blocks goes on later");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    BlockIndex(0)
                }
            };
        }
    }
}

/// Whether a block that was sent is what the map here says it must be.
fn is_version(block: &VersionedBlock, (number, version): &(u32, Option<Version>)) -> bool {
    let Some(version) = version.filter(|version| block.block.0 == *number && block.lsn == version.lsn) else {
        return false;
    };
    let zeroes = Bytes::from_static(&[0; BLOCK_SIZE as usize]);
    let data = block.data.as_ref().unwrap_or(&zeroes);
    data.len() == BLOCK_SIZE as usize && version.content.crc() == Some(crc32fast::hash(data))
}

fn wanted(moment: Moment) -> Wanted {
    match moment {
        Moment::Now => Wanted::Now,
        Moment::Snapshot(snapshot) => Wanted::Snapshot(snapshot),
    }
}

/// Regroups runs into parts of at most `blocks_max` blocks each.
#[must_use]
pub fn split(runs: &[BlockRun], blocks_max: u32) -> Vec<Vec<BlockRun>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut room = blocks_max;
    for run in runs {
        let mut rest = *run;
        while rest.count > 0 {
            let count = rest.count.min(room);
            part.push(BlockRun { start: rest.start, count });
            rest = BlockRun { start: BlockIndex(rest.start.0 + count), count: rest.count - count };
            room -= count;
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = blocks_max;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, count: u32) -> BlockRun {
        BlockRun { start: BlockIndex(start), count }
    }

    #[test]
    fn runs_are_regrouped_into_parts_of_bounded_size() {
        assert_eq!(split(&[], 4), Vec::<Vec<BlockRun>>::new());
        assert_eq!(split(&[run(0, 3), run(10, 1)], 4), vec![vec![run(0, 3), run(10, 1)]]);
        assert_eq!(
            split(&[run(0, 3), run(10, 7)], 4),
            vec![vec![run(0, 3), run(10, 1)], vec![run(11, 4)], vec![run(15, 2)]]
        );
    }
}
