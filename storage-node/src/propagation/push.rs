//! The data of deltas on its way to one replica: in bulk calls, a bounded number at a time, as its link may take it; and what goes ahead of
//! its delta. Whether and when is the sender's part.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Error, Lsn, NodeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::freight::Freight;
use super::manifest::{BlockRun, VersionedBlock};
use super::pull::split;
use super::sender::MANIFEST_INTERVAL;
use super::watermarks::Watermarks;
use crate::peer::client::unexpected;
use crate::peer::message::{Message, PeerReply, PeerRequest, ReplicaPosition};
use crate::peer::packing::PackedBlocks;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::{SealedDelta, StoreError};
use crate::volume::Moment;

/// Blocks per bulk call: a mebibyte.
const PUSH_BLOCKS_MAX: u32 = 256;

/// Bulk calls under way per replica. With [`PUSH_BLOCKS_MAX`], eight mebibytes: 450 Mbit/s at 150 ms.
const PUSH_CALLS_MAX: usize = 8;

/// Missing runs asked for at a time.
const MISSING_RUNS_MAX: u32 = 4096;

/// The way of block data to one replica.
pub(super) struct Way {
    pub(super) volume: Arc<ServedVolume>,
    pub(super) replica: NodeId,
    pub(super) epoch: Epoch,
    pub(super) watermarks: Arc<Watermarks>,
}

impl Way {
    /// Waits until so many blocks may be sent; returns the bytes that were taken of the link's limit.
    async fn turn(&self, blocks: u64) -> u64 {
        let bytes = blocks * u64::from(BLOCK_SIZE);
        tokio::select! {
            biased;
            () = self.volume.sending.hurried(self.replica) => 0,
            // A flush waits for what comes after this.
            () = self.volume.flushes.urged(self.epoch, self.replica, Lsn::ZERO) => 0,
            () = self.volume.peers.links().turn(self.replica, bytes) => bytes,
        }
    }

    /// Sends blocks, for which `taken` bytes were taken of the link's limit.
    async fn send(&self, blocks: &[VersionedBlock], taken: u64) -> Result<(), Error> {
        let PackedBlocks { heads: blocks, payload, is_zstd, freight } = self.volume.peers.pack(self.replica, blocks);
        self.volume.peers.links().give_back(self.replica, taken.saturating_sub(freight.wire));
        let (volume, epoch) = (self.volume.id, self.epoch);
        let request = match is_zstd {
            true => PeerRequest::BlocksZstd { volume, epoch, blocks },
            false => PeerRequest::Blocks { volume, epoch, blocks },
        };
        count_sent(&self.volume, &self.watermarks, self.replica, freight);
        self.volume.peers.ask_position(self.replica, Class::Bulk, request, payload).await.map(drop)
    }

    /// Sends these versions, first things first, as far as they are still the newest.
    pub(super) async fn lead(self, blocks: Vec<(u32, Lsn)>) -> Result<(), Error> {
        for part in blocks.chunks(PUSH_BLOCKS_MAX as usize) {
            let wanted: BTreeMap<u32, Lsn> = part.iter().copied().collect();
            let run = |block: &u32| BlockRun { start: BlockIndex(*block), count: 1 };
            let runs: Vec<BlockRun> = wanted.keys().map(run).collect();
            let taken = self.turn(wanted.len() as u64).await;
            let newest = match self.volume.shard.read_versions(self.volume.id, Moment::Now, runs).await {
                Ok(newest) => newest,
                // It is not here, or not whole: with its delta it is fetched first.
                Err(StoreError::Stale { .. } | StoreError::Damaged { .. } | StoreError::Corrupt { .. }) => continue,
                Err(error) => return Err(store_failure(error)),
            };
            let is_wanted = |block: &VersionedBlock| wanted.get(&block.block.0) == Some(&block.lsn);
            let blocks: Vec<VersionedBlock> = newest.into_iter().filter(is_wanted).collect();
            match blocks.is_empty() {
                true => self.volume.peers.links().give_back(self.replica, taken),
                false => self.send(&blocks, taken).await?,
            }
        }
        Ok(())
    }
}

/// The data of one sealed delta on its way to one replica.
pub(super) struct Push {
    pub(super) way: Way,
    pub(super) delta: SealedDelta,
}

impl Push {
    /// Sends what the replica misses, then has it applied; returns where the replica is then.
    pub(super) async fn run(self) -> Result<ReplicaPosition, Error> {
        let volume = self.way.volume.id;
        loop {
            self.send_missing().await?;
            let request = PeerRequest::Apply { volume, epoch: self.way.epoch, to: self.delta.to };
            let position =
                self.way.volume.peers.ask_position(self.way.replica, Class::Control, request, Bytes::new()).await?;
            // Another delta is sealed there when the snapshot was deleted that this one ends at.
            if position.watermark >= self.delta.to || position.sealed_to != Some(self.delta.to) {
                return Ok(position);
            }
            // Something was lost on the replica meanwhile (it restarted): send what it misses now.
            tokio::time::sleep(MANIFEST_INTERVAL).await;
        }
    }

    async fn send_missing(&self) -> Result<(), Error> {
        let volume = self.way.volume.id;
        let mut after = BlockIndex(0);
        let mut calls = FuturesUnordered::new();
        loop {
            let request = PeerRequest::Missing { volume, epoch: self.way.epoch, after, limit: MISSING_RUNS_MAX };
            let runs = match self.way.volume.peers.ask(self.way.replica, Class::Bulk, request, Bytes::new()).await? {
                Message { head: PeerReply::Missing(runs), .. } => runs,
                message => return Err(unexpected(self.way.replica, &message.head)),
            };
            let Some(last) = runs.last() else { break };
            after = BlockIndex(last.start.0 + last.count);
            for part in split(&runs, PUSH_BLOCKS_MAX) {
                if calls.len() >= PUSH_CALLS_MAX
                    && let Some(sent) = calls.next().await
                {
                    let () = sent?;
                }
                calls.push(self.send(part));
            }
        }
        while let Some(sent) = calls.next().await {
            sent?;
        }
        Ok(())
    }

    async fn send(&self, runs: Vec<BlockRun>) -> Result<(), Error> {
        // Before it is read: what waits takes no memory.
        let taken = self.way.turn(runs.iter().map(|run| u64::from(run.count)).sum()).await;
        let blocks = read_sealed(&self.way.volume, &self.delta, &runs).await?;
        self.way.send(&blocks, taken).await
    }
}

/// Accounts for what is sent to a replica.
pub(super) fn count_sent(volume: &ServedVolume, watermarks: &Watermarks, replica: NodeId, freight: Freight) {
    watermarks.with_account(replica, |account| account.sent(freight));
    volume.peers.links().carried(replica, freight);
}

/// Blocks of a sealed delta, fetched first where they are stale or damaged here.
pub(super) async fn read_sealed(
    volume: &ServedVolume,
    delta: &SealedDelta,
    runs: &[BlockRun],
) -> Result<Vec<VersionedBlock>, Error> {
    let moment = delta.snapshot.map_or(Moment::Now, Moment::Snapshot);
    let mut is_found = false;
    loop {
        match volume.shard.read_sealed(volume.id, delta.pin, runs.to_vec()).await {
            Ok(blocks) => return Ok(blocks),
            Err(StoreError::Stale { runs }) => volume.puller.pull(moment, &runs, Class::Bulk, &[]).await?,
            Err(StoreError::Damaged { runs, .. }) => volume.puller.repair(moment, &runs, Class::Bulk, &[]).await?,
            // Noted by now, unless it was overwritten since it was sealed: then the next delta has it.
            Err(StoreError::Corrupt { .. }) if !std::mem::replace(&mut is_found, true) => {}
            Err(error) => return Err(store_failure(error)),
        }
    }
}
