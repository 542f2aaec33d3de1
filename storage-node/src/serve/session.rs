//! One connection's use of a volume, and its right to write there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use client_lib::trace::{Trace, What};
use client_lib::transport::BoxFuture;
use client_lib::{Epoch, Error, ErrorKind, ReadPart};
use nbd_frontend::export::{AllocationExtent, ExportInfo, ResidencyExtent, Session, Traced, ZeroOptions};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::exports::export_info;
use super::numbers::Numbers;
use super::residency;
use super::status::{Extent, in_steps, zero_pieces};
use super::volume::{Change, ServedVolume, SessionWriter};
use crate::ownership::gate::{Phase, View};
use crate::shard::handle::MappedExtent;
use crate::shard::operations::{Counted, OperationKind};
use crate::volume::Moment;
use traced::TracedSession;

mod traced;

/// One connection to a volume.
pub(super) struct VolumeSession {
    /// Itself, for operations that are looked at.
    me: Weak<VolumeSession>,
    volume: Arc<ServedVolume>,
    id: u64,
    /// The epoch of its right to write; 0 without one.
    right: AtomicU64,
    /// The epoch in which it used the volume first; 0 until then.
    since: AtomicU64,
    /// Its present attempt at forwarded writes.
    generation: AtomicU64,
    /// The numbers of its forwarded writes.
    numbers: Numbers,
    /// Its place on the thread of the volume's shard, once it has asked for one and got it.
    place: OnceLock<OwnedSemaphorePermit>,
}

impl VolumeSession {
    /// A session of `volume`, whose number `id` no other session of the cluster ever had.
    pub(super) fn new(volume: Arc<ServedVolume>, id: u64) -> Arc<VolumeSession> {
        let view = volume.gate.view();
        // Opened at the owner: this session may write from here wherever the volume goes (docs/decisions/0007).
        // Not where the node has just heard that it is the owner no more, and has yet to act upon it.
        let is_owner = view.owner == volume.me && view.phase != Phase::Closed && view.epoch > volume.standing.forked();
        let right = if is_owner { view.epoch } else { Epoch(0) };
        let [right, since] = [right.0, right.0].map(AtomicU64::new);
        Arc::new_cyclic(|me| VolumeSession {
            me: me.clone(),
            volume,
            id,
            right,
            since,
            generation: AtomicU64::new(0),
            numbers: Numbers::default(),
            place: OnceLock::new(),
        })
    }

    /// Before an operation: refuses it if the volume was taken over from an owner under whom this session used it. A client must not see its
    /// own writes undone, nor be told that they are durable; so it is looked at again afterwards.
    fn enter(&self) -> Result<(), Error> {
        if self.since.load(Ordering::Relaxed) == 0 {
            // It has seen nothing yet, so nothing that is gone.
            let epoch = self.volume.gate.view().epoch.max(self.volume.standing.forked().next());
            // Of two that are first together, either is right.
            let _ = self.since.compare_exchange(0, epoch.0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.require_current()
    }

    /// The same for an operation on so many bytes that is counted, which begins now.
    fn begin(&self, kind: OperationKind, bytes: u64) -> Result<Counted<'_>, Error> {
        let counted = self.volume.shard.operations().begin(kind, bytes);
        match self.enter() {
            Ok(()) => Ok(counted),
            Err(error) => {
                counted.end(false);
                Err(error)
            }
        }
    }

    /// What a counted operation came to.
    fn end<T>(&self, counted: Counted<'_>, trace: &Trace, outcome: Result<T, Error>) -> Result<T, Error> {
        let outcome = self.require_current().and(outcome);
        counted.end(outcome.is_ok());
        trace.answered(outcome.is_ok());
        outcome
    }

    /// Writes zeroes, piece by piece where the range is large; with `fua` all of it is durable on return.
    async fn zero(&self, trace: &Trace, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        let mut pieces = zero_pieces(offset, length).peekable();
        let Some((first, piece)) = pieces.next() else { return Ok(()) };
        let is_cut = pieces.peek().is_some();
        for (offset, length) in std::iter::once((first, piece)).chain(pieces) {
            self.volume.write(trace, Change::Zero { offset, length, fua: fua && !is_cut }, self).await?;
        }
        if fua && is_cut { self.volume.flush(trace).await } else { Ok(()) }
    }

    async fn read_bytes(&self, trace: &Trace, offset: u64, length: u32) -> Result<Vec<ReadPart>, Error> {
        let counted = self.begin(OperationKind::Read, u64::from(length))?;
        let outcome = self.volume.read(trace, Moment::Now, offset, length).await;
        self.end(counted, trace, outcome)
    }

    async fn write_bytes(&self, trace: &Trace, offset: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        let counted = self.begin(OperationKind::Write, data.len() as u64)?;
        let outcome = self.volume.write(trace, Change::Data { offset, data, fua }, self).await;
        self.end(counted, trace, outcome)
    }

    async fn make_zeroes(&self, trace: &Trace, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        let counted = self.begin(OperationKind::Zero, length)?;
        let outcome = self.zero(trace, offset, length, fua).await;
        self.end(counted, trace, outcome)
    }

    async fn drop_bytes(&self, trace: &Trace, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        let counted = self.begin(OperationKind::Trim, length)?;
        let outcome = self.zero(trace, offset, length, fua).await;
        self.end(counted, trace, outcome).map_err(|error| match error.kind() {
            // A trim asks for no space: what is wrong is the range.
            ErrorKind::OutOfSpace if !self.volume.size().contains(offset, length) => {
                Error::new(ErrorKind::InvalidRequest, error.to_string())
            }
            _ => error,
        })
    }

    async fn make_durable(&self, trace: &Trace) -> Result<(), Error> {
        let counted = self.begin(OperationKind::Flush, 0)?;
        let outcome = self.volume.flush(trace).await;
        self.end(counted, trace, outcome)
    }
}

impl SessionWriter for VolumeSession {
    fn session(&self) -> u64 {
        self.id
    }

    fn right(&self) -> Option<Epoch> {
        let right = Epoch(self.right.load(Ordering::Relaxed));
        (right > Epoch(0)).then_some(right)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    fn wrote_at_owner(&self, epoch: Epoch) {
        // Read first: it changes once per epoch, and this is on the path of every write.
        if self.right.load(Ordering::Relaxed) < epoch.0 {
            self.right.fetch_max(epoch.0, Ordering::Relaxed);
        }
    }

    fn require_current(&self) -> Result<(), Error> {
        if self.since.load(Ordering::Relaxed) > self.volume.standing.forked().0 {
            return Ok(());
        }
        let View { owner, epoch, .. } = self.volume.gate.view();
        let owner = self.volume.peers.name(owner);
        Err(Error::new(
            ErrorKind::Fenced,
            format!(
                "volume {} was taken over from the owner that this connection has used (it is at node {owner} now, in epoch \
                 {epoch}): what it wrote or read may be gone; connect anew and check the file system",
                self.volume.name
            ),
        ))
    }

    fn outcome_unknown(&self, generation: u64) {
        // Several writes of one attempt may fail together: raise it once.
        let _ = self.generation.compare_exchange(generation, generation + 1, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Extent for MappedExtent {
    fn length(&self) -> u64 {
        self.length
    }

    fn is_like(&self, other: &MappedExtent) -> bool {
        self.mapped == other.mapped
    }

    fn lengthen(&mut self, bytes: u64) {
        self.length += bytes;
    }
}

impl Session for VolumeSession {
    fn info(&self) -> ExportInfo {
        export_info(&self.volume)
    }

    fn home(&self) -> Option<Handle> {
        let (home, permit) = self.volume.shard.home()?;
        self.place.set(permit).is_ok().then_some(home)
    }

    fn is_traced(&self) -> bool {
        self.volume.tracer.is_on()
    }

    fn traced(&self, what: What, arrived: Instant) -> Option<Traced> {
        let trace = self.volume.tracer.begin(what, arrived);
        let session = self.me.upgrade().filter(|_| trace.is_some())?;
        Some(Traced { session: Arc::new(TracedSession { session, trace: trace.clone() }), trace })
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(self.read_bytes(Trace::NONE, offset, length))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.write_bytes(Trace::NONE, offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        // A log allocates nothing ahead, so NO_HOLE has nothing to keep: space is found at the write either way.
        Box::pin(self.make_zeroes(Trace::NONE, offset, length, options.fua))
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.drop_bytes(Trace::NONE, offset, length, fua))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.make_durable(Trace::NONE))
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move {
            let ask = |at, piece| self.volume.extents(Moment::Now, at, piece);
            self.enter()?;
            let outcome = in_steps(offset, length, ask).await;
            self.require_current().and(outcome).map(allocation_extents)
        })
    }

    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        Box::pin(residency::residency(&self.volume, Moment::Now, offset, length))
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(residency::cache(&self.volume, Moment::Now, offset, length))
    }
}

pub(super) fn allocation_extents(extents: Vec<MappedExtent>) -> Vec<AllocationExtent> {
    let extent = |extent: MappedExtent| AllocationExtent {
        length: extent.length,
        allocated: extent.mapped,
        zero: !extent.mapped,
    };
    extents.into_iter().map(extent).collect()
}
