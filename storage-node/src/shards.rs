//! The shards of a node, one per store, and which of them each volume is in.
//!
//! A volume is pinned to one shard: to the one that has it stored, which is the only record of that. A volume that none
//! has is placed where most space is free per volume, never in a shard that has failed while another has not. All shards are opened, or none: a node that started without one
//! would take the volumes in it for new ones.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, VolumeId, VolumeName};

use crate::config::StoreSettings;
use crate::ownership::lease::LeaseCell;
use crate::shard::figures::ShardFigures;
use crate::shard::handle::{ShardHandle, StoreError};
use crate::shard::operations::{Answered, OperationKind};
use crate::shard::space::ShardSpace;
use crate::shard::{Shard, ShardOptions, StartError};
use crate::stores::offline::Lost;

/// Why the shards of a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// One cannot be opened.
    #[error("the store in {} cannot be opened, and the node does not start without it (docs/disks.md)", directory.display())]
    Start {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: StartError,
    },
    /// One ended at once.
    #[error("the store in {} has failed", directory.display())]
    Failed {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// Two have the same volume: one is an old copy.
    #[error("volume {volume} is in {} and in {}: one of them is an old copy; remove it", first.display(), second.display())]
    Twice {
        /// Which.
        volume: VolumeId,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

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
    let more = free.min(by_capacity);
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

/// A shard and where it is.
#[derive(Clone)]
struct Store {
    directory: PathBuf,
    handle: ShardHandle,
}

/// The shards of a node. Never empty.
pub struct Shards {
    stores: Vec<Store>,
    capacity_bytes: Option<u64>,
    /// What was given up with a disk.
    lost: Lost,
    /// The place in `stores` of each volume that is stored or about to be.
    placed: Mutex<BTreeMap<VolumeId, usize>>,
}

impl Shards {
    /// Opens a shard in each of `directories`, which are ready for it, all at once; owners in them act under `lease`.
    ///
    /// # Errors
    /// [`ShardsError`]; then none runs.
    pub async fn start(
        settings: &StoreSettings,
        directories: &[PathBuf],
        lease: &Arc<LeaseCell>,
    ) -> Result<Shards, ShardsError> {
        assert!(!directories.is_empty(), "a node has a store");
        let starts = directories.iter().map(|directory| async move {
            let store = settings.shard(directory.clone(), directories.len());
            let options = ShardOptions { lease: lease.clone(), ..store };
            let started = Shard::start(options).await;
            started.map_err(|source| ShardsError::Start { directory: directory.clone(), source })
        });
        // Each is waited for, so that none is still opening its files when another has failed.
        let started = futures_util::future::join_all(starts).await;
        let (mut stores, mut failure) = (Vec::with_capacity(directories.len()), None);
        for (directory, started) in directories.iter().zip(started) {
            match started {
                Ok(handle) => stores.push(Store { directory: directory.clone(), handle }),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let (capacity_bytes, lost, placed) = (settings.capacity_bytes, Lost::default(), Mutex::default());
        let mut shards = Shards { stores, capacity_bytes, lost, placed };
        let placed = match failure {
            None => shards.stored().await,
            Some(error) => Err(error),
        };
        match placed {
            Ok(placed) => shards.placed = Mutex::new(placed),
            Err(error) => {
                shards.stop().await;
                return Err(error);
            }
        }
        Ok(shards)
    }

    /// One shard, which runs already.
    #[cfg(test)]
    pub(crate) async fn of_one(directory: PathBuf, handle: ShardHandle) -> Result<Shards, ShardsError> {
        let stores = vec![Store { directory, handle }];
        let mut shards = Shards { stores, capacity_bytes: None, lost: Lost::default(), placed: Mutex::default() };
        shards.placed = Mutex::new(shards.stored().await?);
        Ok(shards)
    }

    /// The same, with what was given up when a disk was replaced.
    #[must_use]
    pub fn without(self, lost: Lost) -> Shards {
        Shards { lost, ..self }
    }

    /// Refuses to own `volume` in `epoch` when what this node wrote under it was on a disk that was given up.
    ///
    /// # Errors
    /// `Corrupt`, with what to do.
    pub fn require_not_lost(&self, volume: VolumeId, name: &VolumeName, epoch: Epoch) -> Result<(), Error> {
        if !self.lost.has(volume, epoch) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the disk of this node that held volume {name} was given up with what was written there: have a replica take it over, or delete it (docs/disks.md)"
            ),
        ))
    }

    /// Which shard has which volume.
    async fn stored(&self) -> Result<BTreeMap<VolumeId, usize>, ShardsError> {
        let mut placed = BTreeMap::new();
        for (at, store) in self.stores.iter().enumerate() {
            let stored = store.handle.list().await;
            let stored = stored.map_err(|source| ShardsError::Failed { directory: store.directory.clone(), source })?;
            for volume in stored {
                if let Some(earlier) = placed.insert(volume, at) {
                    let (first, second) = (self.stores[earlier].directory.clone(), store.directory.clone());
                    return Err(ShardsError::Twice { volume, first, second });
                }
            }
        }
        Ok(placed)
    }

    /// The shard that has `volume`, or is to have it from now on.
    #[must_use]
    pub fn of(&self, volume: VolumeId) -> ShardHandle {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match placed.get(&volume) {
            Some(at) => *at,
            None => {
                let at = self.place(&placed);
                if self.stores.len() > 1 {
                    tracing::info!(%volume, directory = %self.stores[at].directory.display(), "a store for a new volume");
                }
                placed.insert(volume, at);
                at
            }
        };
        self.stores[at].handle.clone()
    }

    /// As [`of`](Self::of) for a volume that shares its data with `origin`: the shard that has that, if one has.
    #[must_use]
    pub fn beside(&self, volume: VolumeId, origin: VolumeId) -> ShardHandle {
        {
            let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = placed.get(&origin).copied() {
                placed.entry(volume).or_insert(at);
            }
        }
        self.of(volume)
    }

    /// The directory of the store that has `volume`.
    #[must_use]
    pub fn directory_of(&self, volume: VolumeId) -> Option<&Path> {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.get(&volume).map(|at| self.stores[*at].directory.as_path())
    }

    /// Where the space of each store goes.
    ///
    /// # Errors
    /// When a shard has stopped.
    pub async fn usage(&self) -> Result<Vec<StoreUsage>, StoreError> {
        let mut usages = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            let shard = store.handle.space(None).await?;
            let (file_system_bytes, file_system_free_bytes) = file_system(&store.directory);
            usages.push(StoreUsage {
                directory: store.directory.clone(),
                file_system_bytes,
                file_system_free_bytes,
                capacity_bytes: self.capacity_bytes,
                map_bytes: files_bytes(&store.directory.join("map")),
                shard,
            });
        }
        Ok(usages)
    }

    /// What each store counts; waits at most `patience` for a shard.
    pub async fn figures(&self, patience: Duration) -> Vec<StoreFigures> {
        let each = self.stores.iter().map(|store| async move {
            let shard = tokio::time::timeout(patience, store.handle.figures()).await;
            let (file_system_bytes, file_system_free_bytes) = file_system(&store.directory);
            StoreFigures {
                directory: store.directory.clone(),
                file_system_bytes,
                file_system_free_bytes,
                capacity_bytes: self.capacity_bytes,
                map_bytes: files_bytes(&store.directory.join("map")),
                is_faulted: store.handle.fault().is_some(),
                queued: store.handle.queued() as u64,
                operations: store.handle.operations().so_far(),
                shard: shard.ok().and_then(Result::ok),
            }
        });
        futures_util::future::join_all(each).await
    }

    /// The stores that take no more writes, and why.
    pub fn faults(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.stores.iter().filter_map(|store| Some((store.directory.as_path(), store.handle.fault()?)))
    }

    /// Every shard.
    pub fn all(&self) -> impl Iterator<Item = &ShardHandle> {
        self.stores.iter().map(|store| &store.handle)
    }

    /// `volume` was deleted from its shard.
    pub fn forget(&self, volume: VolumeId) {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }

    /// Stops every shard at once; a failure does not keep the others from stopping.
    pub async fn stop(&self) {
        let stops = self.stores.iter().map(|store| async {
            if let Err(error) = store.handle.stop().await {
                tracing::error!(directory = %store.directory.display(), %error, "a store did not stop cleanly; it will recover at the next start");
            }
        });
        futures_util::future::join_all(stops).await;
    }

    fn place(&self, placed: &BTreeMap<VolumeId, usize>) -> usize {
        let room = |(at, store): (usize, &Store)| {
            let volumes = placed.values().filter(|other| **other == at).count() as u64;
            let works = store.handle.fault().is_none();
            works.then(|| (free_bytes(&store.directory, self.capacity_bytes), volumes))
        };
        choose(self.stores.iter().enumerate().map(room))
    }
}

/// The place of the store with most free bytes per volume, the new one included; the first of equals. Free space alone
/// would put volumes that are made together, and are all empty, on one disk. `None` is a store that takes no writes.
fn choose(stores: impl Iterator<Item = Option<(u64, u64)>>) -> usize {
    let score = stores.map(|store| store.map(|(free, volumes)| free / (volumes + 1))).enumerate();
    score.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |(at, _)| at)
}

/// The size of the file system that a directory is on, and what is free there. A disk that does not tell has neither.
fn file_system(directory: &Path) -> (u64, u64) {
    let Ok(stat) = rustix::fs::statvfs(directory) else { return (0, 0) };
    (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What may still be written to a store: the file system's free space, or less where the store's capacity is fixed. A
/// disk that does not tell has none.
fn free_bytes(directory: &Path, capacity: Option<u64>) -> u64 {
    let (_, free) = file_system(directory);
    let Some(capacity) = capacity else { return free };
    free.min(capacity.saturating_sub(files_bytes(&directory.join("segments"))))
}

/// What the files in `directory` take on the disk. Those that go away meanwhile take nothing.
fn files_bytes(directory: &Path) -> u64 {
    /// The unit of [`MetadataExt::blocks`], stat(2).
    const STAT_BLOCK: u64 = 512;
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|data| data.blocks() * STAT_BLOCK).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use client_lib::VolumeSize;

    use super::*;
    use crate::io::sim::SimDisk;
    use crate::log::LogSettings;
    use crate::log::segment::SEGMENT_BYTES_MIN;
    use crate::map::store::{Faults, MapStore};
    use crate::shard::handle::{FreezeWhen, ReadChunk};
    use crate::volume::Moment;

    #[test]
    fn volumes_go_where_most_space_is_free_for_each() {
        for (stores, expected) in [
            (&[Some((100, 0)), Some((100, 0))][..], 0),
            (&[Some((100, 1)), Some((100, 0))], 1),
            (&[Some((1000, 1)), Some((100, 0))], 0),
            (&[Some((0, 0)), Some((1, 9))], 0),
            (&[Some((0, 0)), Some((100, 9))], 1),
            (&[None, Some((0, 9))], 1),
            (&[None, None], 0),
        ] {
            assert_eq!(choose(stores.iter().copied()), expected, "{stores:?}");
        }
    }

    /// A node with two disks, simulated; their directories are only looked at for the space that is free.
    async fn two_disks(root: &Path) -> (Shards, [SimDisk; 2]) {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let maps = [MapStore::in_memory(), MapStore::in_memory()];
        (shards_on(root, &disks, &maps).await, disks)
    }

    async fn shards_on(root: &Path, disks: &[SimDisk; 2], maps: &[MapStore; 2]) -> Shards {
        let mut stores = Vec::new();
        for (disk, map) in disks.iter().zip(maps) {
            let log = LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None };
            let options = ShardOptions { log, scrub_period: None, ..ShardOptions::new(root.to_owned()) };
            let handle = Shard::start_on(options, disk.clone(), map.clone()).await.expect("starts");
            stores.push(Store { directory: root.to_owned(), handle });
        }
        let mut shards = Shards { stores, capacity_bytes: None, lost: Lost::default(), placed: Mutex::default() };
        shards.placed = Mutex::new(shards.stored().await.expect("both tell"));
        shards
    }

    async fn read(shards: &Shards, volume: VolumeId, block: u64) -> Result<u8, StoreError> {
        let chunks = shards.of(volume).read(volume, Moment::Now, block * 4096, 4096).await?;
        match chunks.as_slice() {
            [ReadChunk::Data(data)] => Ok(data[0]),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_failed_disk_stops_its_own_volumes_and_gets_no_new_ones() {
        let root = tempfile::tempdir().expect("a directory");
        for is_sync in [false, true] {
            let (shards, disks) = two_disks(root.path()).await;
            let volumes = [1, 2, 3, 4].map(VolumeId);
            for volume in volumes {
                write(&shards, volume, volume.0 as u8).await;
            }
            let at = |volume: VolumeId| shards.placed.lock().expect("no thread panics")[&volume];
            assert_eq!(volumes.map(at), [0, 1, 0, 1]);
            let failing = shards.of(VolumeId(1));
            let data = Bytes::from(vec![9; 4096]);
            if is_sync {
                failing.write(VolumeId(1), 4096, data.clone(), false).await.expect("is acked");
                disks[0].fail_after(0);
                let refused = failing.flush(VolumeId(1)).await;
                assert!(matches!(refused, Err(StoreError::Poisoned(_))), "{refused:?}");
            } else {
                disks[0].fail_after(0);
                let refused = failing.write(VolumeId(1), 4096, data.clone(), false).await;
                assert!(matches!(refused, Err(StoreError::Poisoned(_))), "{refused:?}");
            }
            assert!(failing.fault().is_some_and(|fault| fault.contains("injected")), "{:?}", failing.fault());
            for volume in volumes {
                let shard = shards.of(volume);
                let written = shard.write(volume, 8192, data.clone(), true).await;
                assert_eq!(written.is_ok(), at(volume) == 1, "{volume}: {written:?}");
                assert_eq!(shard.flush(volume).await.is_ok(), at(volume) == 1, "{volume}");
                assert_eq!(read(&shards, volume, 0).await.expect("is read"), volume.0 as u8, "reads go on");
                let report = shard.report(volume).await.expect("tells");
                assert_eq!(report.fault.is_some(), at(volume) == 0, "{volume}");
            }
            // More than its share, for want of another.
            for volume in [5, 6, 7].map(VolumeId) {
                write(&shards, volume, volume.0 as u8).await;
                assert_eq!(at(volume), 1);
            }
            let usage = shards.usage().await.expect("tells");
            assert_eq!(usage[0].available_bytes(), 0);
            assert_eq!(usage.iter().map(|store| store.shard.fault.is_some()).collect::<Vec<_>>(), [true, false]);
            shards.stop().await;
        }
    }

    #[tokio::test]
    async fn a_map_that_cannot_be_read_stops_its_own_volumes_and_says_so() {
        let root = tempfile::tempdir().expect("a directory");
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let maps = [MapStore::in_memory(), MapStore::in_memory()];
        let shards = shards_on(root.path(), &disks, &maps).await;
        let volumes = [1, 2].map(VolumeId);
        for volume in volumes {
            write(&shards, volume, volume.0 as u8).await;
        }
        shards.stop().await;
        let shards = shards_on(root.path(), &disks, &maps).await;
        maps[0].inject(Faults { page: Some(0), commits: None });
        for volume in volumes {
            shards.of(volume).activate(volume, Epoch(2)).await.expect("activates");
        }
        let refused = read(&shards, volumes[0], 0).await;
        assert!(matches!(refused, Err(StoreError::Io(_))), "{refused:?}");
        let data = Bytes::from(vec![9; 4096]);
        for (volume, fails) in [(volumes[0], true), (volumes[1], false)] {
            let shard = shards.of(volume);
            let report = shard.report(volume).await.expect("tells");
            assert_eq!(report.fault.is_some_and(|fault| fault.contains("block map")), fails, "{volume}");
            let written = shard.write(volume, 4096, data.clone(), true).await;
            assert_eq!(written.is_err(), fails, "{volume}: {written:?}");
        }
        assert_eq!(read(&shards, volumes[1], 0).await.expect("is read"), 2);
        let usage = shards.usage().await.expect("tells");
        assert_eq!(usage.iter().map(|store| store.shard.fault.is_some()).collect::<Vec<_>>(), [true, false]);
        for volume in [3, 4].map(VolumeId) {
            write(&shards, volume, volume.0 as u8).await;
            assert_eq!(shards.placed.lock().expect("no thread panics")[&volume], 1, "new volumes go elsewhere");
        }
        shards.stop().await;
    }

    #[tokio::test]
    async fn one_full_disk_refuses_writes_and_nothing_else_and_goes_on_when_space_is_back() {
        let root = tempfile::tempdir().expect("a directory");
        let (shards, disks) = two_disks(root.path()).await;
        let (full, other, victim) = (VolumeId(1), VolumeId(2), VolumeId(3));
        for volume in [full, other, victim] {
            write(&shards, volume, volume.0 as u8).await;
        }
        // The least that a node can be given is eight.
        disks[0].set_capacity(10 * SEGMENT_BYTES_MIN);
        let shard = shards.of(full);
        let size = VolumeSize::try_from(256 << 20).expect("valid");
        shard.resize(full, size, Some(Epoch(1))).await.expect("grows");
        /// So large that an eighth of each segment stays empty: the cleaner once squeezed those again and again, and its
        /// moves took the room that a handover needs.
        const CHUNK: u64 = 1 << 20;
        let data = Bytes::from(vec![5; CHUNK as usize]);
        let mut written = 0;
        let refused = loop {
            match shard.write(full, written * CHUNK, data.clone(), false).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written * CHUNK < 80 << 20, "more than fits is not there");
        };
        assert_eq!(refused, StoreError::OutOfSpace);
        assert!(written * CHUNK > 8 << 20, "only {written} times {CHUNK} bytes fit");

        // The other disk notices nothing, and what takes no space works on the full one.
        shards.of(other).write(other, 0, data.slice(..4096), true).await.expect("is written");
        assert_eq!(read(&shards, full, 0).await.expect("is read"), 5);
        shard.flush(full).await.expect("what was acked can be made durable");
        shard.freeze(full, FreezeWhen::Always).await.expect("a handover can begin");
        shard.deactivate(full, Epoch(2)).await.expect("and end");
        shard.activate(full, Epoch(3)).await.expect("and come back");
        shard.delete(victim).await.expect("a volume can be deleted");
        assert_eq!(shard.fault(), None, "full is not failed");
        let is_full = async || shard.report(full).await.expect("tells").is_full;
        assert!(is_full().await, "and is told of");

        // Space is back: nobody restarts anything.
        disks[0].set_capacity(u64::MAX);
        let mut tries = 0;
        while shard.write(full, 200 << 20, data.clone(), true).await == Err(StoreError::OutOfSpace) {
            tries += 1;
            assert!(tries < 1000, "it does not go on");
        }
        assert!(!is_full().await);
        disks[0].set_capacity(0);
        let refused = loop {
            match shard.write(full, written * CHUNK, data.clone(), false).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, StoreError::OutOfSpace, "full again");
        shard.zero(full, 0, 32 << 20, true).await.expect("TRIM works on a full disk");
        let mut tries = 0;
        while shard.write(full, 0, data.clone(), true).await == Err(StoreError::OutOfSpace) {
            tries += 1;
            assert!(tries < 1000, "what was trimmed does not come back");
        }
        assert_eq!(read(&shards, full, 200 << 8).await.expect("is read"), 5);
        shards.stop().await;
    }

    async fn start(directories: &[PathBuf]) -> Result<Shards, ShardsError> {
        let settings = StoreSettings { segment_bytes: 8 << 20, ..StoreSettings::default() };
        Shards::start(&settings, directories, &Arc::new(LeaseCell::forever())).await
    }

    async fn write(shards: &Shards, volume: VolumeId, fill: u8) {
        let shard = shards.of(volume);
        shard.open(volume, VolumeSize::try_from(1 << 20).expect("valid")).await.expect("opens");
        shard.activate(volume, Epoch(1)).await.expect("activates");
        shard.write(volume, 0, Bytes::from(vec![fill; 4096]), true).await.expect("writes");
    }

    #[tokio::test]
    async fn volumes_are_spread_and_found_where_they_are_stored_after_a_restart() {
        let root = tempfile::tempdir().expect("a directory");
        let mut directories = [root.path().join("x"), root.path().join("y")];
        let shards = start(&directories).await.expect("starts");
        for volume in 1..=4 {
            write(&shards, VolumeId(volume), volume as u8).await;
        }
        let mut held = Vec::new();
        for shard in shards.all() {
            held.push(shard.list().await.expect("lists"));
        }
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2], "two on each: {held:?}");
        shards.stop().await;
        directories.reverse();
        held.reverse();
        let shards = start(&directories).await.expect("starts");
        for (shard, held) in shards.all().zip(&held) {
            assert_eq!(shard.list().await.expect("lists"), *held);
        }
        for volume in 1..=4 {
            let id = VolumeId(volume);
            let shard = shards.of(id);
            shard.activate(id, Epoch(2)).await.expect("is there");
            let chunks = shard.read(id, Moment::Now, 0, 4096).await.expect("reads");
            assert_eq!(chunks, [ReadChunk::Data(Bytes::from(vec![volume as u8; 4096]))]);
        }
        shards.stop().await;
    }

    #[tokio::test]
    async fn one_store_that_cannot_be_opened_is_named_and_a_volume_in_two_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = [root.path().join("x"), root.path().join("y")];
        for directory in &directories {
            let shards = start(std::slice::from_ref(directory)).await.expect("starts");
            write(&shards, VolumeId(1), 1).await;
            shards.stop().await;
        }
        let error = start(&directories).await.err().expect("one volume in two");
        assert!(matches!(&error, ShardsError::Twice { volume: VolumeId(1), .. }), "{error}");
        std::fs::write(directories[1].join("FORMAT"), "heliotrope-shard 99\n").expect("is written");
        let error = start(&directories).await.err().expect("one is newer");
        assert!(matches!(&error, ShardsError::Start { directory, .. } if *directory == directories[1]), "{error}");
    }
}
