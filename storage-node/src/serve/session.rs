//! NBD's view of the volumes: the directory of exports and one session per connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::transport::BoxFuture;
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, SECTOR_SIZE, VolumeId};
use nbd_frontend::export::{AllocationExtent, ExportDirectory, ExportInfo, ReadPart, Session, ZeroOptions};

use super::volume::{Change, ServedVolume, SessionWriter};
use crate::ownership::gate::Phase;
use crate::peer::message::Writer;
use crate::shard::handle::ReadChunk;

/// The volumes of a node, by id; the composition root adds and removes them as metadata says.
#[derive(Default)]
pub struct Volumes {
    by_id: RwLock<BTreeMap<VolumeId, Arc<ServedVolume>>>,
    /// Numbers the sessions of this process; starts at the node's incarnation so that numbers never repeat.
    next_session: AtomicU64,
}

impl Volumes {
    /// No volumes yet. Session numbers count up from `first_session`.
    #[must_use]
    pub fn new(first_session: u64) -> Volumes {
        Volumes { by_id: RwLock::default(), next_session: AtomicU64::new(first_session) }
    }

    /// The volume `id`, if this node serves it.
    #[must_use]
    pub fn get(&self, id: VolumeId) -> Option<Arc<ServedVolume>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Every volume, in order of id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServedVolume>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Adds a volume.
    pub fn insert(&self, volume: Arc<ServedVolume>) {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).insert(volume.id, volume);
    }

    /// Removes and closes a volume.
    pub fn remove(&self, id: VolumeId) -> Option<Arc<ServedVolume>> {
        let volume = self.by_id.write().unwrap_or_else(PoisonError::into_inner).remove(&id)?;
        volume.gate.close();
        Some(volume)
    }

    /// The volume called `name`.
    ///
    /// # Errors
    /// `NotFound`, naming it.
    pub fn named(&self, name: &str) -> Result<Arc<ServedVolume>, Error> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        by_id.values().find(|volume| volume.name.as_str() == name).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no volume {name:?}; `helio volume list` shows those that exist"),
            )
        })
    }

    fn open(&self, name: &str) -> Result<VolumeSession, Error> {
        let volume = self.named(name)?;
        let view = volume.gate.view();
        // Opened at the owner: this session may write from here wherever the volume goes (docs/decisions/0007).
        let right = if view.owner == volume.me && view.phase != Phase::Closed { view.epoch } else { Epoch(0) };
        Ok(VolumeSession {
            volume,
            id: self.next_session.fetch_add(1, Ordering::Relaxed),
            right: AtomicU64::new(right.0),
            generation: AtomicU64::new(0),
        })
    }
}

impl ExportDirectory for Volumes {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(async { Ok(self.all().iter().map(|volume| export_info(volume)).collect()) })
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async { Ok(export_info(&*self.named(name)?)) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async { Ok(Arc::new(Volumes::open(self, name)?) as Arc<dyn Session>) })
    }
}

fn export_info(volume: &ServedVolume) -> ExportInfo {
    ExportInfo {
        name: volume.name.to_string(),
        description: format!("Heliotrope volume {}", volume.name),
        size: volume.size.bytes(),
        read_only: false,
        block_size_min: SECTOR_SIZE,
        block_size_preferred: BLOCK_SIZE,
        block_size_max: IO_SIZE_MAX,
    }
}

/// One connection to a volume.
struct VolumeSession {
    volume: Arc<ServedVolume>,
    id: u64,
    /// The epoch of its right to write; 0 without one.
    right: AtomicU64,
    /// Its present attempt at forwarded writes.
    generation: AtomicU64,
}

impl SessionWriter for VolumeSession {
    fn credentials(&self) -> Option<Writer> {
        let right = Epoch(self.right.load(Ordering::Relaxed));
        (right > Epoch(0)).then(|| Writer {
            session: self.id,
            generation: self.generation.load(Ordering::Acquire),
            right,
        })
    }

    fn wrote_at_owner(&self, epoch: Epoch) {
        // Read first: it changes once per epoch, and this is on the path of every write.
        if self.right.load(Ordering::Relaxed) < epoch.0 {
            self.right.fetch_max(epoch.0, Ordering::Relaxed);
        }
    }

    fn outcome_unknown(&self, generation: u64) {
        // Several writes of one attempt may fail together: raise it once.
        let _ = self.generation.compare_exchange(generation, generation + 1, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Session for VolumeSession {
    fn info(&self) -> ExportInfo {
        export_info(&self.volume)
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            let chunks = self.volume.read(offset, length).await?;
            Ok(chunks
                .into_iter()
                .map(|chunk| match chunk {
                    ReadChunk::Data(data) => ReadPart::Data(data),
                    ReadChunk::Zero(length) => ReadPart::Hole(length),
                })
                .collect())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume.write(Change::Data { offset, data, fua }, self))
    }

    fn write_zeroes(&self, offset: u64, length: u32, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        // A log allocates nothing ahead, so NO_HOLE has nothing to keep: space is found at the write either way.
        Box::pin(self.volume.write(Change::Zero { offset, length: u64::from(length), fua: options.fua }, self))
    }

    fn trim(&self, offset: u64, length: u32, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume.write(Change::Zero { offset, length: u64::from(length), fua }, self))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume.flush())
    }

    fn allocation(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move {
            let extents = self.volume.extents(offset, u64::from(length)).await?;
            Ok(extents
                .into_iter()
                .map(|extent| AllocationExtent {
                    length: extent.length,
                    allocated: extent.mapped,
                    zero: !extent.mapped,
                })
                .collect())
        })
    }
}
