//! Where the space of a store goes, and what it counts: its shard's numbers beside those of the file system.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::log::segment::ROOM_KEPT_BYTES;
use crate::shard::figures::ShardFigures;
use crate::shard::operations::{Answered, OperationKind};
use crate::shard::space::ShardSpace;

/// Where the space of a store goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Its directory.
    pub directory: PathBuf,
    /// The size of the file system that it is on; 0 when that does not tell.
    pub file_system_bytes: u64,
    /// What is free there.
    pub file_system_free_bytes: u64,
    /// Most bytes of segments, if that was set.
    pub capacity_bytes: Option<u64>,
    /// What the files of the block map take.
    pub map_bytes: u64,
    /// What the shard counts.
    pub shard: ShardSpace,
}

impl StoreUsage {
    /// What guests may still write before anything must be cleaned: the files of the map grow too, so it is an estimate.
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        available_bytes(&self.shard, self.file_system_free_bytes, self.capacity_bytes)
    }
}

fn available_bytes(shard: &ShardSpace, free: u64, capacity: Option<u64>) -> u64 {
    let ready = shard.pooled_bytes + shard.unwritten_bytes;
    let by_capacity = capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(shard.log_bytes));
    let more = free.saturating_sub(ROOM_KEPT_BYTES).min(by_capacity);
    if shard.fault.is_some() { 0 } else { (ready + more).saturating_sub(shard.reserve_bytes) }
}

/// What a store counts, for whoever watches over it.
#[derive(Clone, Debug)]
pub struct StoreFigures {
    /// Its directory.
    pub directory: PathBuf,
    /// The size of the file system that it is on; 0 when that does not tell.
    pub file_system_bytes: u64,
    /// What is free there.
    pub file_system_free_bytes: u64,
    /// Most bytes of segments, if that was set.
    pub capacity_bytes: Option<u64>,
    /// What the files of the block map take.
    pub map_bytes: u64,
    /// Whether it takes no more writes until the node is restarted.
    pub is_faulted: bool,
    /// Requests that wait for it.
    pub queued: u64,
    /// What guests have asked of it.
    pub operations: [Answered; OperationKind::ALL.len()],
    /// What the shard counts; `None` when it has not answered in time, or has ended.
    pub shard: Option<ShardFigures>,
}

impl StoreFigures {
    /// As [`StoreUsage::available_bytes`], where the shard has answered.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        let shard = self.shard.as_ref()?;
        Some(available_bytes(&shard.space, self.file_system_free_bytes, self.capacity_bytes))
    }
}

/// The size of the file system that a directory is on, and what is free there. A disk that does not tell has neither.
pub(super) fn file_system(directory: &Path) -> (u64, u64) {
    let Ok(stat) = rustix::fs::statvfs(directory) else { return (0, 0) };
    (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What may still be written to a store: the file system's free space, or less where the store's capacity is fixed. A
/// disk that does not tell has none.
pub(super) fn free_bytes(directory: &Path, capacity: Option<u64>) -> u64 {
    let (_, free) = file_system(directory);
    let Some(capacity) = capacity else { return free };
    free.min(capacity.saturating_sub(files_bytes(&directory.join("segments"))))
}

/// What the files in `directory` take on the disk. Those that go away meanwhile take nothing.
pub(super) fn files_bytes(directory: &Path) -> u64 {
    /// The unit of [`MetadataExt::blocks`], stat(2).
    const STAT_BLOCK: u64 = 512;
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|data| data.blocks() * STAT_BLOCK).sum()
}
