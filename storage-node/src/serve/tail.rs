//! A tail as an export: what a node that has left a volume holds of it, read-only, as `VOLUME@tail-EPOCH` at that node.
//!
//! The copy of a node that has left does not change, so it is read as it is: no snapshot of it is needed. It ends when the node
//! rejoins.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::transport::{BoxFuture, Class};
use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind, VolumeSize};
use nbd_frontend::export::{AllocationExtent, ExportInfo, ReadPart, Session, ZeroOptions};

use super::exports::export_info;
use super::volume::{ServedVolume, store_failure};
use crate::ownership::standing::Tail;
use crate::propagation::manifest::{BlockRun, VersionedBlock};
use crate::shard::handle::StoreError;
use crate::volume::Moment;

/// One connection to a tail.
pub(super) struct TailSession {
    volume: Arc<ServedVolume>,
    tail: Tail,
    info: ExportInfo,
}

impl TailSession {
    /// A session of `tail`, which `volume` has here.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn open(volume: Arc<ServedVolume>, tail: Tail) -> Result<TailSession, Error> {
        let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
        let info = tail_info(&volume, &tail, report.size);
        Ok(TailSession { volume, tail, info })
    }

    fn refuse<T>(&self) -> BoxFuture<'_, Result<T, Error>>
    where
        T: Send + 'static,
    {
        let text = format!("{} is what a takeover cut off, and never changes", self.info.name);
        Box::pin(async { Err(Error::new(ErrorKind::NotOwner, text)) })
    }

    fn require_here(&self) -> Result<(), Error> {
        if self.volume.standing.tail() == Some(self.tail) {
            return Ok(());
        }
        let text = format!("{} is dropped: the node has rejoined the volume", self.info.name);
        Err(Error::new(ErrorKind::Closed, text))
    }

    async fn blocks(&self, run: BlockRun) -> Result<Vec<VersionedBlock>, Error> {
        let volume = &self.volume;
        loop {
            self.require_here()?;
            match volume.shard.read_versions(volume.id, Moment::Now, vec![run]).await {
                Ok(blocks) => {
                    self.require_here()?;
                    return Ok(blocks);
                }
                // Of before the takeover, when this node had just been given the volume: others may have them still.
                Err(StoreError::Stale { runs }) => volume.puller.pull(Moment::Now, &runs, Class::Pull, &[]).await?,
                Err(StoreError::Corrupt { .. }) => {}
                Err(StoreError::Damaged { runs, .. }) => {
                    volume.puller.repair(Moment::Now, &runs, Class::Pull, &[]).await?;
                }
                Err(error) => return Err(store_failure(error)),
            }
        }
    }

    async fn read_parts(&self, offset: u64, length: u32) -> Result<Vec<ReadPart>, Error> {
        let block_bytes = u64::from(BLOCK_SIZE);
        let end = offset.saturating_add(u64::from(length));
        if end > self.info.size {
            let text = format!("{length} bytes at {offset} lie beyond the end of {}", self.info.name);
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        }
        if length == 0 {
            return Ok(Vec::new());
        }
        let (first, last) = (offset / block_bytes, (end - 1) / block_bytes);
        let run = BlockRun { start: BlockIndex(first as u32), count: (last - first + 1) as u32 };
        let blocks = self.blocks(run).await?;
        let part = |(number, block): (u64, VersionedBlock)| {
            let start = (first + number) * block_bytes;
            let from = (offset.max(start) - start) as usize;
            let to = (end.min(start + block_bytes) - start) as usize;
            match block.data {
                Some(data) => ReadPart::Data(data.slice(from..to)),
                None => ReadPart::Hole((to - from) as u32),
            }
        };
        Ok((0u64..).zip(blocks).map(part).collect())
    }
}

/// The name of `tail` as an export, behind the volume's.
pub fn tail_name(tail: &Tail) -> String {
    format!("tail-{}", tail.to.epoch)
}

pub(super) fn tail_info(volume: &ServedVolume, tail: &Tail, size: VolumeSize) -> ExportInfo {
    ExportInfo {
        name: format!("{}@{}", volume.name, tail_name(tail)),
        description: format!("What a takeover cut off of Heliotrope volume {}, up to {}", volume.name, tail.to),
        size: size.bytes(),
        read_only: true,
        ..export_info(volume)
    }
}

impl Session for TailSession {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(self.read_parts(offset, length))
    }

    fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _length: u32, _options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    fn trim(&self, _offset: u64, _length: u32, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.refuse()
    }

    /// It was synced before the node knew that it had left.
    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    /// Which blocks are zeroes is seen when they are read.
    fn allocation(&self, _offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move { Ok(vec![AllocationExtent { length: u64::from(length), allocated: true, zero: false }]) })
    }
}
