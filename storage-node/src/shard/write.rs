//! Writing as the owner: splitting into blocks, merging partial ones, and the order of writes to the same block.
//!
//! Whole blocks go to the log as they come; the log's order is the order of LSNs, so a later write wins. A block that
//! is written in part takes its other bytes from the newest version: the write waits until nothing else is in flight
//! on that block, fetches it, and holds up every later write to its blocks meanwhile.

use bytes::{Bytes, BytesMut};
use client_lib::trace::Stage;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, VolumeId, VolumeSize};

use super::core::Core;
use super::fetch::Then;
use super::handle::{Role, StoreError};
use super::run::{Busy, Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::page::{Content, Version};
use crate::propagation::manifest::BlockRun;
use crate::volume::ledger::{Author, LedgerNews};

/// Blocks per log entry: a mebibyte, so that a large write does not hold up the small ones behind it.
pub(super) const ENTRY_BLOCKS_MAX: usize = 256;

/// Sessions per log entry of a ledger that comes from another node: with all that may be known of them, the entry is within
/// the limit of a record.
const LEDGER_SESSIONS_MAX: usize = 64;

const BLOCK: usize = BLOCK_SIZE as usize;

/// What to write.
#[derive(Debug)]
pub(super) enum Source {
    Data(Bytes),
    Zeroes,
}

/// A write or zero request on its way.
#[derive(Debug)]
pub(super) struct WriteJob {
    volume: VolumeId,
    offset: u64,
    length: u64,
    source: Source,
    fua: bool,
    author: Author,
    /// In which it was admitted.
    epoch: Epoch,
    reply: Reply<Lsn>,
}

/// A block that cannot be taken from the request as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EdgeBlock {
    block: u32,
    /// Whether bytes outside the request matter; not so beyond the end of the volume.
    merges: bool,
}

/// How a request lies on the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    first: u32,
    last: u32,
    /// First and last of the blocks that are covered whole, if any.
    whole: Option<(u32, u32)>,
    edges: Vec<EdgeBlock>,
}

impl Shape {
    /// The blocks of a request of `length` bytes, above 0, inside the volume. `pads` says whether a last block that the
    /// volume's end cuts off must be filled up, as data must and zeroes need not.
    fn of(offset: u64, length: u64, size: VolumeSize, pads: bool) -> Shape {
        let block = u64::from(BLOCK_SIZE);
        let end = offset + length;
        let (first, last) = (offset / block, (end - 1) / block);
        let at_end = end == size.bytes();
        let whole_first = offset.div_ceil(block);
        // One past the last whole block.
        let mut whole_end = if at_end && !pads { last + 1 } else { end / block };
        whole_end = whole_end.max(whole_first);
        let edges = [first, last]
            .into_iter()
            .take(if first == last { 1 } else { 2 })
            .filter(|edge| !(whole_first..whole_end).contains(edge))
            .map(|edge| {
                let starts_inside = offset > edge * block;
                let ends_inside = end < (edge + 1) * block && !at_end;
                EdgeBlock { block: edge as u32, merges: starts_inside || ends_inside }
            })
            .collect();
        let whole = (whole_first < whole_end).then(|| (whole_first as u32, (whole_end - 1) as u32));
        Shape { first: first as u32, last: last as u32, whole, edges }
    }
}

impl WriteJob {
    /// Data from a session.
    pub(super) fn data(
        volume: VolumeId,
        offset: u64,
        data: Bytes,
        fua: bool,
        author: Author,
        reply: Reply<Lsn>,
    ) -> WriteJob {
        let (length, source) = (data.len() as u64, Source::Data(data));
        WriteJob { volume, offset, length, source, fua, author, epoch: Epoch(0), reply }
    }

    /// Zeroes for `author`; the shard's may lie beyond what is admitted from others.
    pub(super) fn zeroes(
        volume: VolumeId,
        offset: u64,
        length: u64,
        fua: bool,
        author: Author,
        reply: Reply<Lsn>,
    ) -> WriteJob {
        WriteJob { volume, offset, length, source: Source::Zeroes, fua, author, epoch: Epoch(0), reply }
    }

    fn shape(&self, size: VolumeSize) -> Shape {
        Shape::of(self.offset, self.length, size, matches!(self.source, Source::Data(_)))
    }

    pub(super) fn fail(self, error: StoreError) {
        drop(self.reply.send(Err(error)));
    }

    /// The content of an edge block: the old one with this request's bytes over it.
    fn merge(&self, block: u32, old: Option<&Bytes>) -> Bytes {
        let mut merged = BytesMut::zeroed(BLOCK);
        if let Some(old) = old {
            merged.copy_from_slice(old);
        }
        let start = u64::from(block) * u64::from(BLOCK_SIZE);
        let from = self.offset.max(start);
        let to = (self.offset + self.length).min(start + u64::from(BLOCK_SIZE));
        let target = &mut merged[(from - start) as usize..(to - start) as usize];
        match &self.source {
            Source::Data(data) => {
                target.copy_from_slice(&data[(from - self.offset) as usize..(to - self.offset) as usize]);
            }
            Source::Zeroes => target.fill(0),
        }
        merged.freeze()
    }
}

impl Core {
    pub(super) fn admit_write(&mut self, mut job: WriteJob) {
        let Some(run) = self.volumes.get_mut(&job.volume) else {
            let volume = job.volume;
            return job.fail(StoreError::UnknownVolume(volume));
        };
        if let Err(error) = run.require_owner() {
            return job.fail(error);
        }
        if run.frozen {
            let volume = job.volume;
            return job.fail(StoreError::Frozen(volume));
        }
        if job.author.origin().is_some_and(|origin| run.state.ledger.has(origin)) {
            return self.nothing_to_write(job);
        }
        if let Err(error) = run.require_inside(job.offset, job.length) {
            return job.fail(error);
        }
        if job.length == 0 {
            return self.nothing_to_write(job);
        }
        job.epoch = run.epoch;
        run.waiting.push_back(job);
        let volume = run.state.id;
        self.wake_writes(volume);
    }

    /// Answers a job whose bytes are in the volume already.
    fn nothing_to_write(&mut self, job: WriteJob) {
        let known = self.volumes.get(&job.volume).map_or(Lsn::ZERO, |run| run.state.known);
        let done = Done::Lsn(job.reply, known);
        if job.fua { self.syncs.wait(job.volume, done) } else { self.answer(job.volume, done) }
    }

    /// Starts every waiting write that nothing earlier is in the way of.
    pub(super) fn wake_writes(&mut self, volume: VolumeId) {
        let Some(run) = self.volumes.get_mut(&volume) else { return };
        let waiting = std::mem::take(&mut run.waiting);
        let mut kept: Vec<Busy> = Vec::new();
        for job in waiting {
            let Some(run) = self.volumes.get_mut(&volume) else {
                job.fail(StoreError::UnknownVolume(volume));
                continue;
            };
            let shape = job.shape(run.state.size);
            let in_the_way = run.merging.iter().chain(&kept).any(|busy| busy.overlaps(shape.first, shape.last))
                || shape
                    .edges
                    .iter()
                    .filter(|edge| edge.merges)
                    .any(|edge| run.flights.iter().any(|flight| flight.overlaps(edge.block, edge.block)));
            if in_the_way {
                kept.push(Busy { ticket: 0, first: shape.first, last: shape.last });
                run.waiting.push_back(job);
            } else {
                self.start_write(job, shape);
            }
        }
        self.finish_freeze(volume);
    }

    fn start_write(&mut self, job: WriteJob, shape: Shape) {
        let volume = job.volume;
        job.reply.trace.spent(Stage::Queue);
        let mut old: Vec<(u32, Option<Version>)> = Vec::new();
        let mut stale = Vec::new();
        for edge in shape.edges.iter().filter(|edge| edge.merges) {
            let Some(run) = self.volumes.get(&volume) else { return job.fail(StoreError::UnknownVolume(volume)) };
            match run.state.view(edge.block, &mut self.map) {
                Ok(Some(Version { content: Content::Stale { .. }, .. })) => {
                    stale.push(BlockRun { start: BlockIndex(edge.block), count: 1 });
                }
                Ok(version) => old.push((edge.block, version)),
                Err(error) => return job.fail(error.into()),
            }
        }
        if !stale.is_empty() {
            return job.fail(StoreError::Stale { runs: stale });
        }
        if let Some(run) = self.volumes.get(&volume)
            && let Err(error) = run.damage.refuse(volume, &old)
        {
            return job.fail(error);
        }
        if old.iter().all(|(_, version)| version.is_none_or(|version| version.content == Content::Zero)) {
            return self.append_write(job, &shape, &[]);
        }
        let ticket = self.ticket();
        if let Some(run) = self.volumes.get_mut(&volume) {
            run.merging.push(Busy { ticket, first: shape.first, last: shape.last });
        }
        self.fetch(volume, &old, Then::Merge { job, shape, ticket });
    }

    /// The old content of the edge blocks is here: everything goes to the log now.
    pub(super) fn finish_write(
        &mut self,
        job: WriteJob,
        shape: &Shape,
        ticket: u64,
        old: Result<Vec<(u32, Option<Bytes>)>, StoreError>,
    ) {
        let volume = job.volume;
        // The old content was read.
        job.reply.trace.spent(Stage::Disk);
        let Some(run) = self.volumes.get_mut(&volume) else { return job.fail(StoreError::UnknownVolume(volume)) };
        run.merging.retain(|busy| busy.ticket != ticket);
        // The volume may have gone and come back meanwhile: whoever asked for this looks again who may write.
        let is_over = job.epoch != run.epoch && !matches!(job.author, Author::Shard);
        match (run.require_owner(), old) {
            _ if is_over => job.fail(StoreError::NotOwner { volume, epoch: run.epoch }),
            (Err(error), _) | (_, Err(error)) => job.fail(error),
            (Ok(()), Ok(old)) => self.append_write(job, shape, &old),
        }
    }

    fn append_write(&mut self, job: WriteJob, shape: &Shape, old: &[(u32, Option<Bytes>)]) {
        let edge = |edge: &EdgeBlock| {
            let old = old.iter().find(|(block, _)| *block == edge.block).and_then(|(_, bytes)| bytes.as_ref());
            (edge.block, old, job.merge(edge.block, old))
        };
        // First block, last block and data; without data zeroes.
        let mut pieces: Vec<(u32, u32, Option<Vec<Bytes>>)> = Vec::new();
        match &job.source {
            Source::Data(data) => {
                let mut parts: Vec<(u32, Bytes)> =
                    shape.edges.iter().map(edge).map(|(block, _, data)| (block, data)).collect();
                if let Some((first, last)) = shape.whole {
                    let from = (u64::from(first) * u64::from(BLOCK_SIZE) - job.offset) as usize;
                    let to = from + (last - first + 1) as usize * BLOCK;
                    parts.push((first, data.slice(from..to)));
                }
                parts.sort_by_key(|(block, _)| *block);
                pieces = split_parts(shape.first, parts);
            }
            Source::Zeroes => {
                if let Some((first, last)) = shape.whole {
                    // The largest volume has one block more than an entry's count can say.
                    let stop = if last - first == u32::MAX { last - 1 } else { last };
                    pieces.push((first, stop, None));
                    if stop < last {
                        pieces.push((last, last, None));
                    }
                }
                // Part of a block that reads as zeroes stays so.
                let merged = shape.edges.iter().map(edge).filter(|(_, old, _)| old.is_some());
                pieces.extend(merged.map(|(block, _, data)| (block, block, Some(vec![data]))));
            }
        }
        let carried_out = job.author.origin().map(LedgerNews::carried_out);
        if pieces.is_empty() && carried_out.is_none() {
            return self.nothing_to_write(job);
        }
        if let Err(error) = self.claim(&job) {
            return job.fail(error);
        }
        let is_own = matches!(job.author, Author::Shard);
        let WriteJob { volume, fua, reply, .. } = job;
        let (mut reply, pieces_len) = (Some(reply), pieces.len());
        for (index, (first, last, data)) in pieces.into_iter().enumerate() {
            let Some(run) = self.volumes.get(&volume) else { return };
            let lsn = Lsn::new(run.epoch, run.head.sequence + 1);
            let done = match reply.take_if(|_| index + 1 == pieces_len && carried_out.is_none()) {
                Some(reply) => Done::Lsn(reply, lsn),
                None => Done::Nothing,
            };
            let (entry, data) = entry_of(volume, lsn, first, last, data);
            match self.append(entry, data, fua, Some((first, last)), done) {
                Ok(()) => {
                    if let Some(run) = self.volumes.get_mut(&volume) {
                        run.assigned(lsn, is_own);
                    }
                }
                Err((error, done)) => {
                    done.fail(error.clone());
                    if let Some(reply) = reply.take() {
                        drop(reply.send(Err(error)));
                    }
                    return;
                }
            }
        }
        if let (Some(news), Some(reply)) = (carried_out, reply) {
            // A flight on the same blocks, so that a freeze waits for it: the next owner must hear of it.
            let blocks = Some((shape.first, shape.last));
            let lsn = self.volumes.get(&volume).map_or(Lsn::ZERO, |run| run.head);
            let done = Done::Lsn(reply, lsn);
            if let Err((error, done)) = self.append(Entry::Writers { volume, news }, Vec::new(), fua, blocks, done) {
                done.fail(error);
            }
        }
    }

    /// The first write of a session of this node in an epoch claims the volume in it. Behind that in the log, one from afar whose right is of
    /// an earlier epoch is refused, however long ago it was admitted.
    fn claim(&mut self, job: &WriteJob) -> Result<(), StoreError> {
        let volume = job.volume;
        let Some(run) = self.volumes.get_mut(&volume) else { return Err(StoreError::UnknownVolume(volume)) };
        let epoch = run.epoch;
        match job.author {
            Author::Afar(writer) if writer.right < run.claimed => {
                return Err(StoreError::Claimed { volume, epoch: run.claimed });
            }
            Author::Session(_) if run.claimed < epoch => {}
            Author::Session(_) | Author::Afar(_) | Author::Shard => return Ok(()),
        }
        let entry = Entry::Writers { volume, news: LedgerNews::claim(epoch) };
        self.append(entry, Vec::new(), false, None, Done::Nothing).map_err(|(error, _)| error)?;
        if let Some(run) = self.volumes.get_mut(&volume) {
            run.claimed = epoch;
        }
        Ok(())
    }

    /// What is known of the writers of `volume`.
    pub(super) fn ledger(&self, volume: VolumeId) -> Result<LedgerNews, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        Ok(run.state.ledger.all())
    }

    /// Logs what another node knows of them, in entries that are small enough for a record.
    pub(super) fn note_ledger(&mut self, volume: VolumeId, news: LedgerNews, reply: Reply<()>) {
        if !self.volumes.contains_key(&volume) {
            return drop(reply.send(Err(StoreError::UnknownVolume(volume))));
        }
        let news = news.bounded();
        let mut parts: Vec<LedgerNews> = news
            .done
            .chunks(LEDGER_SESSIONS_MAX)
            .map(|done| LedgerNews { claim: news.claim, done: done.to_vec() })
            .collect();
        let last = parts.pop().unwrap_or(LedgerNews { done: Vec::new(), ..news });
        for news in parts {
            if let Err((error, _)) =
                self.append(Entry::Writers { volume, news }, Vec::new(), false, None, Done::Nothing)
            {
                return drop(reply.send(Err(error)));
            }
        }
        self.append_plain(Entry::Writers { volume, news: last }, false, Done::Unit(reply));
    }

    /// The volume takes no more writes: those that wait are refused.
    pub(super) fn refuse_waiting(&mut self, run: VolumeRun, error: &StoreError) {
        for job in run.waiting {
            job.fail(error.clone());
        }
        for held in run.held {
            held.fail(error.clone());
        }
        for reply in run.freezers {
            drop(reply.send(Err(error.clone())));
        }
        if let Some(shrink) = run.shrink {
            shrink.fail(error);
        }
        if let Some(rollback) = run.rollback {
            rollback.fail(error);
        }
    }

    /// Answers those who wait for a freeze when nothing is under way any more.
    pub(super) fn finish_freeze(&mut self, volume: VolumeId) {
        let Some(run) = self.volumes.get_mut(&volume) else { return };
        if run.freezers.is_empty() || !run.is_quiet() {
            return;
        }
        let freezers = std::mem::take(&mut run.freezers);
        let (frozen, owner) = (run.frozen, run.role == Role::Owner);
        let refusal = run.require_owner().err().unwrap_or(StoreError::Stopped);
        let unsynced = self.volumes.get(&volume).is_some_and(|run| self.ends_unsynced(run));
        for reply in freezers {
            if frozen && owner && unsynced {
                self.answer(volume, Done::Known(reply));
            } else if frozen && owner {
                self.syncs.wait(volume, Done::Durable(reply));
            } else {
                drop(reply.send(Err(refusal.clone())));
            }
        }
    }
}

/// Neighbouring parts, from block `first` on, as pieces of at most [`ENTRY_BLOCKS_MAX`] blocks.
fn split_parts(first: u32, parts: Vec<(u32, Bytes)>) -> Vec<(u32, u32, Option<Vec<Bytes>>)> {
    let mut pieces = Vec::new();
    let (mut start, mut blocks, mut data) = (first, 0, Vec::new());
    for (_, mut bytes) in parts {
        while !bytes.is_empty() {
            let take = (bytes.len() / BLOCK).min(ENTRY_BLOCKS_MAX - blocks);
            data.push(bytes.split_to(take * BLOCK));
            blocks += take;
            if blocks == ENTRY_BLOCKS_MAX {
                pieces.push((start, start + (blocks as u32 - 1), Some(std::mem::take(&mut data))));
                start = start.saturating_add(blocks as u32);
                blocks = 0;
            }
        }
    }
    if blocks > 0 {
        pieces.push((start, start + (blocks as u32 - 1), Some(data)));
    }
    pieces
}

fn entry_of(volume: VolumeId, lsn: Lsn, first: u32, last: u32, data: Option<Vec<Bytes>>) -> (Entry, Vec<Bytes>) {
    let start = BlockIndex(first);
    match data {
        Some(data) => {
            let checksums = data.iter().flat_map(|bytes| bytes.chunks(BLOCK)).map(crc32fast::hash).collect();
            (Entry::Write { volume, lsn, start, checksums }, data)
        }
        None => (Entry::Zero { volume, lsn, start, count: last - first + 1 }, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::type_complexity, reason = "whole blocks, and edges with whether they merge")]
    fn shape(offset: u64, length: u64, pads: bool) -> (Option<(u32, u32)>, Vec<(u32, bool)>) {
        // Ten blocks and a sector.
        let size = VolumeSize::try_from(10 * 4096 + 512).expect("valid");
        let shape = Shape::of(offset, length, size, pads);
        (shape.whole, shape.edges.iter().map(|edge| (edge.block, edge.merges)).collect())
    }

    #[test]
    fn requests_fall_into_whole_blocks_and_edges() {
        assert_eq!(shape(0, 4096, true), (Some((0, 0)), vec![]));
        assert_eq!(shape(0, 512, true), (None, vec![(0, true)]));
        assert_eq!(shape(512, 512, true), (None, vec![(0, true)]));
        assert_eq!(shape(512, 4096, true), (None, vec![(0, true), (1, true)]));
        assert_eq!(shape(512, 3 * 4096, true), (Some((1, 2)), vec![(0, true), (3, true)]));
        assert_eq!(shape(4096, 2 * 4096, true), (Some((1, 2)), vec![]));
        assert_eq!(shape(10 * 4096, 512, true), (None, vec![(10, false)]), "the end of the volume fills up");
        assert_eq!(shape(10 * 4096, 512, false), (Some((10, 10)), vec![]), "zeroes need not");
        assert_eq!(shape(9 * 4096 + 512, 4096, true), (None, vec![(9, true), (10, false)]));
        assert_eq!(shape(10 * 4096 + 1, 511, true), (None, vec![(10, true)]));
    }
}
