//! What guests ask of a shard: reads, writes and flushes, where bytes are, and who wrote.
//!
//! `*_traced` carry along the trace of the operation that is behind them.

use bytes::Bytes;
use client_lib::trace::Trace;
use client_lib::{Lsn, ReadPart, VolumeId};

use super::{MappedExtent, Request, ResidentExtent, ShardHandle, StoreError};
use crate::volume::Moment;
use crate::volume::ledger::{Author, LedgerNews};
use crate::volume::resident::Resident;

impl ShardHandle {
    /// Reads the newest acked write of each byte as the owner, or a snapshot in either role. `length` may be any number of
    /// sectors.
    ///
    /// # Errors
    /// `NotOwner` on a replica, `UnknownSnapshot`; `Stale` and `Damaged` name the blocks to fetch first. Served while
    /// frozen.
    pub async fn read(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
    ) -> Result<Vec<ReadPart>, StoreError> {
        self.read_traced(Trace::NONE, volume, moment, offset, length).await
    }

    /// Writes as the owner: answered once the log file holds it, with its LSN; `fua` waits until it is synced.
    /// Partial blocks are read, merged and written whole, in the order of arrival.
    ///
    /// # Errors
    /// `NotOwner`, `Frozen`; `Stale` when a partly written block must be fetched first; `OutOfSpace`, `Poisoned`, `Io`.
    ///
    /// The write is a session's of this node, and claims the volume for those of this node in its present epoch.
    pub async fn write(&self, volume: VolumeId, offset: u64, data: Bytes, fua: bool) -> Result<Lsn, StoreError> {
        self.write_traced(Trace::NONE, Author::Session(None), volume, offset, data, fua).await
    }

    /// Makes a range read as zeroes and frees the whole blocks in it. Otherwise as [`write`](Self::write).
    pub async fn zero(&self, volume: VolumeId, offset: u64, length: u64, fua: bool) -> Result<Lsn, StoreError> {
        self.zero_traced(Trace::NONE, Author::Session(None), volume, offset, length, fua).await
    }

    /// Syncs everything acked before; returns the durable LSN. On a replica: syncs what it has received.
    pub async fn flush(&self, volume: VolumeId) -> Result<Lsn, StoreError> {
        self.flush_traced(Trace::NONE, volume).await
    }

    /// As [`flush`](Self::flush), and not taken for one of a client ([`FreezeWhen::Flushed`](super::FreezeWhen::Flushed)).
    pub async fn sync(&self, volume: VolumeId) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Sync { volume, reply }).await
    }

    /// What is mapped in a range, as the owner, or of a snapshot in either role.
    pub async fn extents(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<MappedExtent>, StoreError> {
        self.ask(|reply| Request::Extents { volume, moment, offset, length, reply }).await
    }

    /// What is here of the newest versions that this node knows of, or of a snapshot's: as much as [`extents`](Self::extents)
    /// tells. Works in both roles.
    pub async fn residency(
        &self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<ResidentExtent>, StoreError> {
        self.ask(|reply| Request::Residency { volume, moment, offset, length, reply }).await
    }

    /// How much is here, and how much elsewhere, of each of `parts` parts of the volume, of `blocks` blocks each, from block `first` on: of
    /// as many of them as can be looked at while other requests wait, of one at least. None beyond the volume's end. Works in both roles.
    pub async fn resident_parts(
        &self,
        volume: VolumeId,
        first: u64,
        blocks: u32,
        parts: u32,
    ) -> Result<Vec<Resident>, StoreError> {
        self.ask(|reply| Request::ResidentParts { volume, first, blocks, parts, reply }).await
    }

    /// What is known of the volume's writers; of an owner that is frozen, all there is.
    pub async fn ledger(&self, volume: VolumeId) -> Result<LedgerNews, StoreError> {
        self.ask(|reply| Request::Ledger { volume, reply }).await
    }

    /// Takes note of what another node knows of the volume's writers. Logged, and durable with the next sync.
    pub async fn note_ledger(&self, volume: VolumeId, news: LedgerNews) -> Result<(), StoreError> {
        self.ask(|reply| Request::NoteLedger { volume, news, reply }).await
    }

    /// As [`read`](Self::read).
    pub async fn read_traced(
        &self,
        trace: &Trace,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
    ) -> Result<Vec<ReadPart>, StoreError> {
        self.ask_traced(trace, |reply| Request::Read { volume, moment, offset, length, reply }).await
    }

    /// As [`write`](Self::write). One of an author afar claims nothing, and is refused when a session at the owner has claimed the volume in a
    /// later epoch than the author's right is of. What has an origin is carried out once: was it before, the answer is an LSN that covers
    /// it. Earlier attempts must have ended.
    ///
    /// # Errors
    /// As [`write`](Self::write); `Claimed`.
    pub async fn write_traced(
        &self,
        trace: &Trace,
        author: Author,
        volume: VolumeId,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> Result<Lsn, StoreError> {
        self.ask_traced(trace, |reply| Request::Write { volume, offset, data, fua, author, reply }).await
    }

    /// As [`zero`](Self::zero), in the way of [`write_traced`](Self::write_traced).
    pub async fn zero_traced(
        &self,
        trace: &Trace,
        author: Author,
        volume: VolumeId,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> Result<Lsn, StoreError> {
        self.ask_traced(trace, |reply| Request::Zero { volume, offset, length, fua, author, reply }).await
    }

    /// As [`flush`](Self::flush).
    pub async fn flush_traced(&self, trace: &Trace, volume: VolumeId) -> Result<Lsn, StoreError> {
        self.ask_traced(trace, |reply| Request::Flush { volume, reply }).await
    }
}
