//! A tail as an export: what a node that has left a volume holds of it, read-only, as `VOLUME@tail-EPOCH` at that node.
//!
//! The copy of a node that has left does not change, so it is read as it is: no snapshot of it is needed. It ends when the node
//! rejoins.

use std::sync::Arc;

use client_lib::transport::{BoxFuture, Class};
use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind, ReadPart, SnapshotName, VolumeSize};
use nbd_frontend::export::{AllocationExtent, ExportInfo, Residency, ResidencyExtent};

use super::exports::{described, export_info};
use super::kept::Kept;
use super::volume::{ServedVolume, store_failure};
use crate::ownership::standing::Tail;
use crate::propagation::manifest::{BlockRun, VersionedBlock};
use crate::shard::handle::StoreError;
use crate::shard::operations::OperationKind;
use crate::volume::Moment;

/// A tail, read by one connection.
pub(super) struct KeptTail {
    volume: Arc<ServedVolume>,
    tail: Tail,
    info: ExportInfo,
}

impl KeptTail {
    /// `tail`, which `volume` has here.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn open(volume: Arc<ServedVolume>, tail: Tail) -> Result<KeptTail, Error> {
        let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
        let info = tail_info(&volume, &tail, report.size);
        Ok(KeptTail { volume, tail, info })
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
                None => ReadPart::Zero((to - from) as u32),
            }
        };
        Ok((0u64..).zip(blocks).map(part).collect())
    }
}

/// What the names of tails begin with; an epoch follows.
const TAIL_PREFIX: &str = "tail-";

/// The name of `tail` as an export, behind the volume's.
pub fn tail_name(tail: &Tail) -> String {
    format!("{TAIL_PREFIX}{}", tail.to.epoch)
}

/// Refuses a name for a new snapshot that a tail may have: one would hide the other, and who compares the wrong one drops what he looks for.
///
/// # Errors
/// `InvalidRequest`.
pub fn require_no_tail_name(name: &SnapshotName) -> Result<(), Error> {
    let epoch = name.as_str().strip_prefix(TAIL_PREFIX).unwrap_or_default();
    if epoch.is_empty() || !epoch.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(());
    }
    let text = format!(
        "{name} is how a tail is called that a node has kept (docs/takeover.md): choose another name for the snapshot"
    );
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

pub(super) fn tail_info(volume: &ServedVolume, tail: &Tail, size: VolumeSize) -> ExportInfo {
    ExportInfo {
        name: format!("{}@{}", volume.name, tail_name(tail)),
        description: described(
            volume,
            format!("What a takeover cut off of Heliotrope volume {}, up to {}", volume.name, tail.to),
        ),
        size: size.bytes(),
        read_only: true,
        ..export_info(volume)
    }
}

impl Kept for KeptTail {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    fn nature(&self) -> &'static str {
        "what a takeover cut off,"
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            let counted = self.volume.shard.operations().begin(OperationKind::Read, u64::from(length));
            let outcome = self.read_parts(offset, length).await;
            counted.end(outcome.is_ok());
            outcome
        })
    }

    /// Which blocks are zeroes is seen when they are read.
    fn allocation(&self, _offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move { Ok(vec![AllocationExtent { length, allocated: true, zero: false }]) })
    }

    /// All of it was this node's, but for what it never fetched while it owned the volume, which is seen when it is read.
    fn residency(&self, _offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        Box::pin(async move { Ok(vec![ResidencyExtent { length, residency: Residency::Local }]) })
    }

    fn cache(&self, _offset: u64, _length: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot called `tail-3` was shown in place of the tail of epoch 3: whoever compared the two before dropping the tail saw no difference.
    #[test]
    fn no_snapshot_is_called_like_a_tail() {
        for (name, is_free) in [
            ("tail-3", false),
            ("tail-03", false),
            ("tail-", true),
            ("tail-3a", true),
            ("tails-3", true),
            ("monday", true),
        ] {
            let name: SnapshotName = name.parse().expect("is a name");
            assert_eq!(require_no_tail_name(&name).is_ok(), is_free, "{name}");
        }
    }
}
