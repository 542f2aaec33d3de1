//! Sessions of what is only read: a snapshot, or the tail that a takeover cut off ([`super::tail`]).

use std::sync::Arc;

use bytes::Bytes;
use client_lib::trace::Trace;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};
use consensus::Snapshot;
use nbd_frontend::export::{AllocationExtent, ExportInfo, ResidencyExtent, Session, ZeroOptions};

use super::exports::snapshot_info;
use super::residency;
use super::session::allocation_extents;
use super::status::in_steps;
use super::volume::ServedVolume;
use crate::shard::operations::OperationKind;
use crate::volume::Moment;

/// What can be read and never changes.
pub(super) trait Kept: Send + Sync + 'static {
    /// The export.
    fn info(&self) -> &ExportInfo;

    /// What it is, for who would write to it.
    fn nature(&self) -> &'static str;

    /// As [`Session::read`].
    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>>;

    /// As [`Session::allocation`].
    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>>;

    /// As [`Session::residency`].
    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>>;

    /// As [`Session::cache`].
    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>>;
}

/// One connection to something that is only read.
pub(super) struct ReadOnly<K>(pub(super) K);

impl<K: Kept> ReadOnly<K> {
    fn refuse(&self) -> BoxFuture<'_, Result<(), Error>> {
        let text = format!("{} is {} and never changes", self.0.info().name, self.0.nature());
        Box::pin(async { Err(Error::new(ErrorKind::NotOwner, text)) })
    }
}

impl<K: Kept> Session for ReadOnly<K> {
    fn info(&self) -> ExportInfo {
        self.0.info().clone()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        self.0.read(offset, length)
    }

    fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    /// What can be opened is durable: a snapshot is listed when it is, a tail was synced before the node knew of it.
    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.0.allocation(offset, length)
    }

    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        self.0.residency(offset, length)
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.0.cache(offset, length)
    }
}

/// A snapshot, read at one node.
pub(super) struct KeptSnapshot {
    volume: Arc<ServedVolume>,
    moment: Moment,
    info: ExportInfo,
}

impl KeptSnapshot {
    /// `snapshot` of `volume`, which is made.
    pub(super) fn new(volume: Arc<ServedVolume>, snapshot: &Snapshot) -> KeptSnapshot {
        let info = snapshot_info(&volume, snapshot);
        KeptSnapshot { volume, moment: Moment::Snapshot(snapshot.id), info }
    }
}

impl Kept for KeptSnapshot {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    fn nature(&self) -> &'static str {
        "a snapshot"
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            let counted = self.volume.shard.operations().begin(OperationKind::Read, u64::from(length));
            let outcome = self.volume.read(Trace::NONE, self.moment, offset, length).await;
            counted.end(outcome.is_ok());
            outcome
        })
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move {
            let extents = in_steps(offset, length, |at, piece| self.volume.extents(self.moment, at, piece)).await;
            extents.map(allocation_extents)
        })
    }

    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        Box::pin(residency::residency(&self.volume, self.moment, offset, length))
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(residency::cache(&self.volume, self.moment, offset, length))
    }
}
