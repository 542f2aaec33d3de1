//! The data of deltas on its way to one replica: in bulk calls, a bounded number at a time, as its link may take it; and what goes ahead of
//! its delta. Whether and when is the sender's part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Error, Lsn, NodeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::freight::Freight;
use super::manifest::{BlockRun, VersionedBlock};
use super::pull::split;
use super::sender::MANIFEST_INTERVAL;
use super::watermarks::Watermarks;
use crate::peer::alike::take_alike;
use crate::peer::links::budget::Share;
use crate::peer::message::{Alike, Message, PeerReply, PeerRequest, ReplicaPosition};
use crate::peer::packing::PackedBlocks;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::{SealedDelta, StoreError};
use crate::volume::Moment;

/// Blocks per bulk call: a mebibyte.
const PUSH_BLOCKS_MAX: u32 = 256;

/// Blocks per call of a rebuild beside guests: whoever comes behind it waits for 128 KiB.
const REBUILD_BLOCKS_MAX: u32 = 32;

/// Bulk calls under way per replica. With [`PUSH_BLOCKS_MAX`], eight mebibytes: 450 Mbit/s at 150 ms.
const PUSH_CALLS_MAX: usize = 8;

/// Missing runs asked for at a time.
const MISSING_RUNS_MAX: u32 = 4096;

/// How long a replica that fetches from another waits for more before it tells how far it is.
const FETCH_PATIENCE: Duration = Duration::from_secs(1);

/// When nothing has come for so long while the other one is sent the same, beside twice the time that what is on its way there takes, the
/// owner sends it itself.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// The way of block data to one replica.
pub(super) struct Way {
    pub(super) volume: Arc<ServedVolume>,
    pub(super) replica: NodeId,
    pub(super) epoch: Epoch,
    pub(super) watermarks: Arc<Watermarks>,
    /// Whether the replica is brought to a copy that it has not, which gives way to guests.
    pub(super) is_rebuild: bool,
}

impl Way {
    /// Whose data the replica is to fetch, if it is not to be sent its own.
    pub(super) fn source(&self) -> Option<NodeId> {
        let (volume, replica) = (&self.volume, self.replica);
        // Who counts toward the class is sent what a flush waits for, and who is waited for is not made to wait.
        if volume.flushes.counts(replica) || volume.sending.is_hurried(replica) {
            return None;
        }
        let rtt = |node| volume.peers.transport().rtt(node);
        self.watermarks.with_fan(|fan, now| fan.lead_of(replica, now, rtt))
    }

    /// Waits until so many blocks may be read and sent; returns the bytes that were taken of the link's limit, and what is held until the call
    /// has ended.
    async fn turn(&self, blocks: u64) -> (u64, Share) {
        let (bytes, links) = (blocks * u64::from(BLOCK_SIZE), self.volume.peers.links());
        let turn = async {
            if self.is_rebuild {
                self.volume.shard.rebuild_turn(bytes).await;
            }
            let share = links.share(self.replica, bytes, false).await;
            links.turn(self.replica, bytes).await;
            share
        };
        tokio::select! {
            biased;
            () = self.volume.sending.hurried(self.replica) => {}
            // A flush waits for what comes after this.
            () = self.volume.flushes.urged(self.epoch, self.replica, Lsn::ZERO) => {}
            share = turn => return (bytes, share),
        }
        (0, links.share(self.replica, bytes, true).await)
    }

    /// Most blocks that are sent in one call.
    fn part_max(&self) -> u32 {
        match self.is_rebuild && self.volume.shard.rebuilds_beside_guests() {
            true => REBUILD_BLOCKS_MAX,
            false => PUSH_BLOCKS_MAX,
        }
    }

    /// Sends blocks, for which `taken` bytes were taken of the link's limit, and names those of which the replica has offered the content.
    async fn send(&self, mut blocks: Vec<VersionedBlock>, taken: u64, offers: &[Alike]) -> Result<(), Error> {
        let alike = take_alike(&mut blocks, offers);
        let PackedBlocks { heads, payload, is_zstd, mut freight } = self.volume.peers.pack(self.replica, &blocks);
        freight.same = alike.len() as u64 * u64::from(BLOCK_SIZE);
        self.volume.peers.links().give_back(self.replica, taken.saturating_sub(freight.wire));
        let (volume, epoch, blocks) = (self.volume.id, self.epoch, heads);
        let request = match is_zstd {
            _ if !alike.is_empty() => PeerRequest::BlocksAlike { volume, epoch, blocks, is_zstd, alike },
            true => PeerRequest::BlocksZstd { volume, epoch, blocks },
            false => PeerRequest::Blocks { volume, epoch, blocks },
        };
        count_sent(&self.volume, &self.watermarks, self.replica, freight);
        let told = self.volume.peers.ask_position(self.replica, Class::Bulk, request, payload).await?;
        self.watermarks.with(self.replica, |progress| progress.came(told));
        Ok(())
    }

    /// Sends these versions, first things first, as far as they are still the newest.
    pub(super) async fn lead(self, blocks: Vec<(u32, Lsn)>) -> Result<(), Error> {
        for part in blocks.chunks(PUSH_BLOCKS_MAX as usize) {
            let wanted: BTreeMap<u32, Lsn> = part.iter().copied().collect();
            let run = |block: &u32| BlockRun { start: BlockIndex(*block), count: 1 };
            let runs: Vec<BlockRun> = wanted.keys().map(run).collect();
            let (taken, _share) = self.turn(wanted.len() as u64).await;
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
                false => self.send(blocks, taken, &[]).await?,
            }
        }
        Ok(())
    }
}

/// The data of one sealed delta on its way to one replica.
pub(super) struct Push {
    pub(super) way: Way,
    pub(super) delta: SealedDelta,
    /// The replica that is sent the same, from which this one is to have it.
    pub(super) lead: Option<NodeId>,
}

impl Push {
    /// Sends what the replica misses, then has it applied; returns where the replica is then.
    pub(super) async fn run(self) -> Result<ReplicaPosition, Error> {
        let volume = self.way.volume.id;
        let mut is_whole = match self.lead {
            Some(lead) => self.have_fetched(lead).await,
            None => false,
        };
        let mut takes_offers = self.way.volume.peers.takes_offers(self.way.replica);
        loop {
            if !std::mem::take(&mut is_whole) {
                self.send_missing(takes_offers).await?;
                // What it has offered it may not have any more.
                takes_offers = false;
            }
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

    /// Has the replica fetch what it misses from `lead`, while that is sent the same; whether it misses nothing then. What is missing
    /// after all is sent as ever.
    async fn have_fetched(&self, lead: NodeId) -> bool {
        let Way { volume, replica, epoch, watermarks, .. } = &self.way;
        let in_flight = PUSH_CALLS_MAX as f64 * f64::from(PUSH_BLOCKS_MAX * BLOCK_SIZE);
        let stuck_after = STUCK_AFTER + Duration::from_secs_f64(2.0 * in_flight / volume.peers.rate_to(lead));
        let mut came_last = Instant::now();
        loop {
            // What it has when nothing more comes to it is looked through once.
            let is_on_its_way = watermarks.with_fan(|fan, _| fan.is_on_its_way(lead));
            let patience = if is_on_its_way { FETCH_PATIENCE } else { Duration::ZERO };
            let request = PeerRequest::FetchFrom {
                volume: volume.id,
                epoch: *epoch,
                holder: lead,
                patience_ms: patience.as_millis() as u32,
            };
            let answer = tokio::select! {
                biased;
                () = volume.sending.hurried(*replica) => return false,
                answer = volume.peers.ask(*replica, Class::Bulk, request, Bytes::new()) => answer,
            };
            match answer.map(|answer| answer.head) {
                Ok(PeerReply::Fetched { blocks, is_whole }) => {
                    let relayed = Freight { relayed: blocks * u64::from(BLOCK_SIZE), ..Freight::default() };
                    count_sent(volume, watermarks, *replica, relayed);
                    if blocks > 0 {
                        came_last = Instant::now();
                    }
                    if is_whole || !is_on_its_way {
                        return is_whole;
                    }
                    if came_last.elapsed() < stuck_after {
                        continue;
                    }
                    tracing::debug!(volume = %volume.name, %replica, %lead, "nothing comes from the other one");
                }
                Ok(head) => {
                    let error = volume.peers.unexpected(*replica, &head);
                    tracing::debug!(volume = %volume.name, %replica, %lead, %error, "it cannot fetch from the other one");
                }
                Err(error) => {
                    tracing::debug!(volume = %volume.name, %replica, %lead, %error, "it cannot fetch from the other one");
                }
            }
            watermarks.with_fan(|fan, now| fan.shun(*replica, now));
            return false;
        }
    }

    async fn send_missing(&self, takes_offers: bool) -> Result<(), Error> {
        let volume = self.way.volume.id;
        let mut after = BlockIndex(0);
        let mut calls = FuturesUnordered::new();
        loop {
            let (epoch, limit) = (self.way.epoch, MISSING_RUNS_MAX);
            let request = match takes_offers {
                true => PeerRequest::MissingOffered { volume, epoch, after, limit },
                false => PeerRequest::Missing { volume, epoch, after, limit },
            };
            let answer = self.way.volume.peers.ask(self.way.replica, Class::Bulk, request, Bytes::new());
            let (runs, offers) = match answer.await? {
                Message { head: PeerReply::Missing(runs), .. } => (runs, Vec::new()),
                Message { head: PeerReply::Offered { runs, offers }, .. } => (runs, offers),
                message => return Err(self.way.volume.peers.unexpected(self.way.replica, &message.head)),
            };
            let Some(last) = runs.last() else { break };
            let next = last.end();
            let part_max = self.way.part_max();
            // As many bytes, however many calls they are.
            let calls_max = PUSH_CALLS_MAX * (PUSH_BLOCKS_MAX / part_max) as usize;
            for part in split(&runs, part_max) {
                if calls.len() >= calls_max
                    && let Some(sent) = calls.next().await
                {
                    let () = sent?;
                }
                let within = |offer: &&Alike| {
                    part.iter().any(|run| run.start <= offer.block && offer.block.0 - run.start.0 < run.count)
                };
                let offers: Vec<Alike> =
                    if offers.is_empty() { Vec::new() } else { offers.iter().filter(within).copied().collect() };
                calls.push(self.send(part, offers));
            }
            let Some(next) = next else { break };
            after = next;
        }
        while let Some(sent) = calls.next().await {
            sent?;
        }
        Ok(())
    }

    async fn send(&self, runs: Vec<BlockRun>, offers: Vec<Alike>) -> Result<(), Error> {
        let volume = &self.way.volume;
        let mut is_noted = false;
        loop {
            // Before it is read: what waits takes no memory.
            let (taken, share) = self.way.turn(runs.iter().map(|run| u64::from(run.count)).sum()).await;
            let lacks = match volume.shard.read_sealed(volume.id, self.delta.pin, runs.clone()).await {
                Ok(blocks) => return self.way.send(blocks, taken, &offers).await,
                Err(error) => error,
            };
            // A holder that is silent is waited for without a share: with a few such volumes nothing else would get to this replica.
            drop(share);
            volume.peers.links().give_back(self.way.replica, taken);
            bring(volume, &self.delta, lacks, &mut is_noted).await?;
        }
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
    let mut is_noted = false;
    loop {
        match volume.shard.read_sealed(volume.id, delta.pin, runs.to_vec()).await {
            Ok(blocks) => return Ok(blocks),
            Err(lacks) => bring(volume, delta, lacks, &mut is_noted).await?,
        }
    }
}

/// Fetches what was not read of a sealed delta since it is stale or damaged here. What is damaged is noted by who reads it, once.
async fn bring(
    volume: &ServedVolume,
    delta: &SealedDelta,
    lacks: StoreError,
    is_noted: &mut bool,
) -> Result<(), Error> {
    let moment = delta.snapshot.map_or(Moment::Now, Moment::Snapshot);
    match lacks {
        StoreError::Stale { runs } => volume.puller.pull(moment, &runs, Class::Bulk, &[]).await,
        StoreError::Damaged { runs, .. } => volume.puller.repair(moment, &runs, Class::Bulk, &[]).await,
        // Noted by now, unless it was overwritten since it was sealed: then the next delta has it.
        StoreError::Corrupt { .. } if !std::mem::replace(is_noted, true) => Ok(()),
        error => Err(store_failure(error)),
    }
}
