//! Fetching stale blocks on demand, and filling in the rest after a handover.
//!
//! What is lacking is asked for by name, of the holder from which it is likely there first ([`holders`]); what it does not have, of the
//! next one. Where a guest waits and the answer does not come in the time in which almost all of that link do, the next one is asked
//! as well, and the first answer counts. What nobody has by name is asked for as *the newest*: a holder then fetches it itself from
//! where it may be. What is on its way already is waited for and not asked for again ([`flights`]).
//!
//! A read that needs something from elsewhere has what follows it fetched ahead ([`readahead`]), by the task that fills in the rest
//! ([`fill`]).

mod bring;
pub mod fill;
pub mod flights;
pub mod holders;
pub mod readahead;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind, Lsn, NodeId, VolumeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::flights::{Flights, Joined};
use self::holders::Holders;
use self::readahead::Readahead;
use super::manifest::{BlockRun, VersionedBlock};
use crate::map::page::Version;
use crate::peer::client::PeerClient;
use crate::peer::message::{ENCODING_ZSTD, Message, PeerReply, PeerRequest};
use crate::peer::packing::{unpack_blocks, unpack_zstd};
use crate::serve::volume::store_failure;
use crate::shard::handle::{ShardHandle, Versions};
use crate::volume::Moment;
use crate::volume::layers::Wanted;

/// Most blocks asked for in one call: a mebibyte, long enough to fill a link in a few calls, short enough
/// that one guest read never waits behind much.
pub const PULL_BLOCKS_MAX: u32 = 256;

/// Most extents of a hot set that are taken: half a gibibyte.
pub const HOT_EXTENTS_MAX: usize = 8192;

/// Most runs that wait to be fetched ahead; of more the oldest are forgotten, which a guest then asks for itself.
const AHEAD_RUNS_MAX: usize = 64;

/// Why blocks are fetched, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A guest waits.
    Demand,
    /// A guest is likely to, soon.
    Near,
    /// It was read and written most at the last owner.
    Hot,
    /// It is missing.
    Rest,
}

impl Why {
    fn class(self) -> Class {
        match self {
            Why::Demand => Class::Pull,
            Why::Near => Class::Ahead,
            Why::Hot | Why::Rest => Class::Bulk,
        }
    }

    /// Whether somebody waits for just this.
    fn is_waited_for(self) -> bool {
        self == Why::Demand
    }
}

/// Blocks that were fetched for the volume since the ownership began, by why, and what became of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// That were stale when it began.
    pub stale: u64,
    /// For which a guest waited.
    pub demand: u64,
    /// Ahead of guests.
    pub near: u64,
    /// Of the hot set.
    pub hot: u64,
    /// In the background.
    pub rest: u64,
    /// Calls that a second holder was asked beside, because the answer was late.
    pub hedged: u64,
}

impl Fetched {
    /// Blocks that need not be fetched because they were written again before, where `stale` still are.
    #[must_use]
    pub fn overwritten(&self, stale: u64) -> u64 {
        self.stale.saturating_sub(self.demand + self.near + self.hot + self.rest + stale)
    }
}

/// What the clones of a puller share.
#[derive(Debug)]
struct Pulling {
    began: Instant,
    holders: Mutex<Holders>,
    flights: Flights,
    readahead: Mutex<Readahead>,
    /// Runs to be fetched ahead, the next one first.
    ahead: Mutex<VecDeque<BlockRun>>,
    /// Extents to be fetched first, the hottest first.
    hot: Mutex<VecDeque<u32>>,
    /// Whether there is a task that fetches ahead.
    is_filling: AtomicBool,
    /// Whether reads of what is here are told.
    is_followed: AtomicBool,
    /// There is something to be fetched ahead.
    news: Notify,
    fetched: Mutex<Fetched>,
}

impl Default for Pulling {
    fn default() -> Pulling {
        Pulling {
            began: Instant::now(),
            holders: Mutex::default(),
            flights: Flights::default(),
            readahead: Mutex::default(),
            ahead: Mutex::default(),
            hot: Mutex::default(),
            is_filling: AtomicBool::new(false),
            is_followed: AtomicBool::new(false),
            news: Notify::new(),
            fetched: Mutex::default(),
        }
    }
}

/// While it is there, somebody fetches ahead.
struct Filling<'a>(&'a Pulling);

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.0.is_filling.store(false, Ordering::Relaxed);
        self.0.is_followed.store(false, Ordering::Relaxed);
        *lock(&self.0.readahead) = Readahead::default();
        lock(&self.0.ahead).clear();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulling {
    fn fills(&self) -> Filling<'_> {
        self.is_filling.store(true, Ordering::Relaxed);
        Filling(self)
    }

    /// The next blocks to be fetched ahead.
    fn take_ahead(&self, blocks_max: u32) -> Option<BlockRun> {
        let mut ahead = lock(&self.ahead);
        let run = ahead.front_mut()?;
        let taken = BlockRun { start: run.start, count: run.count.min(blocks_max) };
        match run.count - taken.count {
            0 => drop(ahead.pop_front()),
            rest => *run = BlockRun { start: BlockIndex(run.start.0 + taken.count), count: rest },
        }
        Some(taken)
    }

    fn take_hot(&self, extents: u32) -> Vec<u32> {
        let mut hot = lock(&self.hot);
        let count = hot.len().min(extents as usize);
        hot.drain(..count).collect()
    }

    fn count(&self, why: Why, blocks: u64) {
        let mut fetched = lock(&self.fetched);
        match why {
            Why::Demand => fetched.demand += blocks,
            Why::Near => fetched.near += blocks,
            Why::Hot => fetched.hot += blocks,
            Why::Rest => fetched.rest += blocks,
        }
    }
}

/// Fetches a volume's stale blocks from the nodes that hold them.
#[derive(Clone)]
pub struct Puller {
    volume: VolumeId,
    me: NodeId,
    shard: ShardHandle,
    peers: PeerClient,
    pulling: Arc<Pulling>,
}

impl Puller {
    /// A puller for `volume` into `shard`, with no holders yet.
    #[must_use]
    pub fn new(volume: VolumeId, me: NodeId, shard: ShardHandle, peers: PeerClient) -> Puller {
        Puller { volume, me, shard, peers, pulling: Arc::default() }
    }

    /// Replaces the nodes to ask, the last owner first. This node is left out by itself.
    pub fn set_holders(&self, holders: impl IntoIterator<Item = NodeId>) {
        let holders = holders.into_iter().filter(|holder| *holder != self.me).collect();
        lock(&self.pulling.holders).set(holders);
    }

    fn holders(&self) -> Vec<NodeId> {
        lock(&self.pulling.holders).nodes().to_vec()
    }

    /// The holder that is asked first.
    #[must_use]
    pub fn nearest(&self) -> Option<NodeId> {
        self.order(&[]).first().copied()
    }

    /// The holders, whom to ask first at the front, without those that were `visited`.
    fn order(&self, visited: &[NodeId]) -> Vec<NodeId> {
        let rtt = |node| self.peers.transport().rtt(node);
        let mut order = lock(&self.pulling.holders).order(self.pulling.began.elapsed(), rtt);
        order.retain(|holder| !visited.contains(holder));
        order
    }

    /// An ownership begins with so many stale blocks.
    pub fn begin(&self, stale: u64) {
        *lock(&self.pulling.fetched) = Fetched { stale, ..Fetched::default() };
    }

    /// What was fetched since.
    #[must_use]
    pub fn fetched(&self) -> Fetched {
        *lock(&self.pulling.fetched)
    }

    /// These extents were hot at the last owner, the hottest first.
    pub fn is_hot(&self, mut extents: Vec<u32>) {
        extents.truncate(HOT_EXTENTS_MAX);
        *lock(&self.pulling.hot) = extents.into();
        self.pulling.news.notify_one();
    }

    /// A guest reads so many bytes at `offset`, which may be here: what follows may not.
    pub fn reads(&self, offset: u64, length: u64) {
        if self.pulling.is_followed.load(Ordering::Relaxed) && length > 0 {
            let (first, last) = (offset / u64::from(BLOCK_SIZE), (offset + (length - 1)) / u64::from(BLOCK_SIZE));
            self.follow(first as u32, (last - first + 1) as u32, false);
        }
    }

    /// A guest reads these blocks, some of which are not here if so: what follows is fetched ahead.
    fn follow(&self, start: u32, count: u32, is_stale: bool) {
        if !self.pulling.is_filling.load(Ordering::Relaxed) {
            return;
        }
        let most = self.filling_blocks() as u32;
        let next = lock(&self.pulling.readahead).read(start, count, is_stale, most);
        self.pulling.is_followed.store(true, Ordering::Relaxed);
        if let Some((start, count)) = next {
            let mut ahead = lock(&self.pulling.ahead);
            if ahead.len() == AHEAD_RUNS_MAX {
                ahead.pop_front();
            }
            ahead.push_back(BlockRun { start: BlockIndex(start), count });
            drop(ahead);
            self.pulling.news.notify_one();
        }
    }

    /// Fetches `runs`, as `moment` shows them, from the holders that have them, leaving out those that were `visited` for the
    /// same need. In [`Class::Pull`] a guest waits.
    ///
    /// # Errors
    /// `Unavailable` when no holder had them; the blocks stay stale.
    ///
    /// # Cancel safety
    /// Safe: blocks that arrived are kept.
    pub async fn pull(&self, moment: Moment, runs: &[BlockRun], class: Class, visited: &[NodeId]) -> Result<(), Error> {
        let why = if class == Class::Pull { Why::Demand } else { Why::Rest };
        if let (Why::Demand, Moment::Now, Some(first), Some(last)) = (why, moment, runs.first(), runs.last()) {
            self.follow(first.start.0, last.start.0 - first.start.0 + last.count, true);
        }
        let mut calls: FuturesUnordered<_> = split(runs, PULL_BLOCKS_MAX)
            .into_iter()
            .map(|runs| async move {
                let joined = self.pull_part(moment, runs.clone(), why, visited).await?;
                // What others were to bring, and did not.
                match joined {
                    true => self.bring(moment, self.lacking(moment, &runs).await?, why, visited).await,
                    false => Ok(()),
                }
            })
            .collect();
        while let Some(part) = calls.next().await {
            part?;
        }
        Ok(())
    }

    /// Fetches what is lacking of `runs`; whether it waited for others to bring some of it.
    async fn pull_part(
        &self,
        moment: Moment,
        runs: Vec<BlockRun>,
        why: Why,
        visited: &[NodeId],
    ) -> Result<bool, Error> {
        let lacking = self.lacking(moment, &runs).await?;
        if !visited.is_empty() {
            // For another node, which may be the one that somebody here waits for.
            return self.bring(moment, lacking, why, visited).await.map(|()| false);
        }
        let (boarded, joined) = self.pulling.flights.board(lacking, why);
        self.bring(moment, boarded.versions().to_vec(), why, visited).await?;
        drop(boarded);
        if why.is_waited_for() {
            // Others may wait for a holder that has fallen silent, in the background.
            let late = Instant::now() + self.patience_ahead();
            let _ = tokio::time::timeout_at(late, all_over(&joined)).await;
        } else {
            all_over(&joined).await;
        }
        Ok(!joined.over.is_empty())
    }

    async fn lacking(&self, moment: Moment, runs: &[BlockRun]) -> Result<Vec<(u32, Lsn)>, Error> {
        self.shard.lacking(self.volume, moment, runs.to_vec()).await.map_err(store_failure)
    }

    /// Fetches `runs` in the versions that `expected` has, in order, without storing them: for a store that takes no writes, or is full.
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
                    last = Some(Error::new(
                        ErrorKind::Unavailable,
                        format!("node {} holds other versions", self.peers.name(holder)),
                    ));
                }
                Err(error) => last = Some(error),
            }
            told.push(holder);
        }
        let first = runs.first().map_or(0, |run| run.start.0);
        let text = format!(
            "block {first} of volume {} cannot be read here, the store cannot keep a copy of it, and no other node has it in this version",
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
        blocks_in(&self.peers, holder, self.peers.ask(holder, class, request, Bytes::new()).await?)
    }

    /// Fetches blocks that are damaged here. Their bytes are compared with the checksum that was theirs when they were
    /// whole.
    ///
    /// # Errors
    /// `Corrupt` when no other holder has them in the version that is damaged here; `OutOfSpace` when the store is so full that they cannot be kept.
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
            let (kind, why) = match error.kind() {
                ErrorKind::OutOfSpace => (ErrorKind::OutOfSpace, "the full store has no room left for a copy of it"),
                _ => (ErrorKind::Corrupt, "no other node has it"),
            };
            Error::new(kind, format!("block {first} of volume {} is damaged here, and {why}", self.volume))
                .caused_by(error)
        })
    }
}

async fn all_over(joined: &Joined) {
    for over in &joined.over {
        over.cancelled().await;
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

/// The blocks of an answer to a pull.
fn blocks_in(peers: &PeerClient, holder: NodeId, answer: Message<PeerReply>) -> Result<Vec<VersionedBlock>, Error> {
    match answer {
        Message { head: PeerReply::Blocks(heads), payload } => unpack_blocks(&heads, payload),
        Message { head: PeerReply::BlocksZstd(heads), payload } => unpack_zstd(&heads, &payload),
        message => Err(peers.unexpected(holder, &message.head)),
    }
}

/// The blocks of versions in block order, as runs.
fn runs_of(versions: &[(u32, Lsn)]) -> Vec<BlockRun> {
    BlockRun::of(versions.iter().map(|(block, _)| *block))
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
            rest = BlockRun { start: BlockIndex(rest.start.0.wrapping_add(count)), count: rest.count - count };
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
