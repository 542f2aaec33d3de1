//! What guests ask of a shard, with what their operations carry along.

use bytes::Bytes;
use client_lib::trace::Trace;
use client_lib::{Lsn, VolumeId};

use super::{ReadChunk, Request, ShardHandle, StoreError};
use crate::volume::Moment;
use crate::volume::ledger::Author;

impl ShardHandle {
    /// As [`read`](Self::read).
    pub async fn read_traced(
        &self,
        trace: &Trace,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u32,
    ) -> Result<Vec<ReadChunk>, StoreError> {
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
