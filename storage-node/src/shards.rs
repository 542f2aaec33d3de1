//! The shards of a node, one per store, and which of them each volume is in.
//!
//! A volume is pinned to one shard: to the one that has it stored. A volume that none
//! has is placed where most space is free per volume, never in a shard that has failed while another has not. A store that cannot be
//! opened keeps no other from being used: the volumes in it, of which the node's record tells ([`crate::stores::placements`]), are refused, so
//! that none is taken for a new one. Where nothing tells, the node does not start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, VolumeId, VolumeName};
use tokio::time::Instant;

use crate::config::StoreSettings;
use crate::map::store::MapError;
use crate::ownership::lease::LeaseCell;
use crate::shard::handle::{ShardHandle, StoreError};
use crate::shard::operations::Operations;
use crate::shard::space::ShardSpace;
use crate::shard::{Shard, ShardOptions, StartError};
use crate::stores::offline::Lost;
use crate::stores::placements::Placements;
use crate::stores::{StorePlace, StoresError};

mod usage;

pub use usage::{StoreFigures, StoreUsage};
use usage::{file_system, files_bytes, free_bytes};

/// Why the shards of a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// None can be opened, or one is of a format that this program does not read.
    #[error("the store in {} cannot be opened (docs/disks.md)", directory.display())]
    Start {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: Refused,
    },
    /// One cannot be opened, and nothing tells which volumes are in it.
    #[error(
        "the store in {} cannot be opened ({reason}), and the node does not start without it: which volumes are in it is not written down (docs/disks.md)",
        directory.display()
    )]
    Unrecorded {
        /// Its directory.
        directory: PathBuf,
        /// Why it cannot be opened.
        reason: String,
        /// What is wrong with the record; `None` when there is none.
        source: Option<StoresError>,
    },
    /// The record of the volumes' stores cannot be written.
    #[error(transparent)]
    Record(#[from] StoresError),
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

/// Why a store is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not there, or does not answer.
    #[error(transparent)]
    Place(StoresError),
    /// What is in it cannot be opened.
    #[error(transparent)]
    Start(StartError),
}

impl Refused {
    /// Whether another program reads it: nothing is broken, and to go on without it would be wrong.
    fn is_of_another_format(&self) -> bool {
        matches!(self, Refused::Start(StartError::Map(MapError::NewerFormat { .. } | MapError::OlderFormat { .. })))
    }
}

/// A store of the node.
struct Store {
    directory: PathBuf,
    /// Which it is, wherever it lies.
    id: String,
    /// Its shard, or why there is none.
    shard: Result<ShardHandle, String>,
}

impl Store {
    fn shard(&self) -> Result<ShardHandle, StoreError> {
        let directory = || self.directory.display().to_string();
        self.shard.clone().map_err(|reason| StoreError::Unopened { directory: directory(), reason })
    }

    /// What keeps it from taking writes, in words that follow its name.
    fn fault(&self) -> Option<String> {
        match &self.shard {
            Ok(shard) => shard.fault().map(|fault| format!("takes no writes until the node is restarted: {fault}")),
            Err(reason) => Some(format!("cannot be opened: {reason}")),
        }
    }
}

/// Which store each volume is in.
#[derive(Default)]
struct Placed {
    /// The place in the node's list of stores of each volume that is stored or about to be.
    at: BTreeMap<VolumeId, usize>,
    /// Where that is written down; not at a node with one store.
    record: Option<Placements>,
}

impl Placed {
    /// `volume` goes into `stores[at]`. Written down first, which takes a sync: once in the life of a volume.
    fn put(&mut self, volume: VolumeId, at: usize, stores: &[Store]) -> Result<(), StoreError> {
        if let Some(record) = &mut self.record {
            record.note(volume, &stores[at].id).map_err(|error| StoreError::Io(error.to_string()))?;
        }
        self.at.insert(volume, at);
        Ok(())
    }
}

/// The shards of a node. At least one is open.
pub struct Shards {
    stores: Vec<Store>,
    capacity_bytes: Option<u64>,
    /// What was given up with a disk.
    lost: Lost,
    placed: Mutex<Placed>,
}

impl Shards {
    /// Opens a shard in each of `places`, all at once; owners in them act under `lease`. One that cannot be opened is left out, with the volumes that
    /// `record` has in it.
    ///
    /// # Errors
    /// [`ShardsError`]; then none runs.
    pub async fn start(
        settings: &StoreSettings,
        places: Vec<StorePlace>,
        record: Option<Placements>,
        lease: &Arc<LeaseCell>,
    ) -> Result<Shards, ShardsError> {
        assert!(!places.is_empty(), "a node has a store");
        let count = places.len();
        let starts = places.into_iter().map(|place| async move {
            let started = match place.trouble {
                Some(trouble) => Err(Refused::Place(trouble)),
                None => {
                    let store = settings.shard(place.directory.clone(), count);
                    let options = ShardOptions { lease: lease.clone(), ..store };
                    Shard::start(options).await.map_err(Refused::Start)
                }
            };
            (place.directory, place.store, started)
        });
        // Each is waited for, so that none is still opening its files when another has failed.
        let started = futures_util::future::join_all(starts).await;
        let is_any_open = started.iter().any(|(.., started)| started.is_ok());
        let (mut stores, mut failure) = (Vec::with_capacity(count), None);
        for (directory, id, started) in started {
            let shard = match started {
                Ok(shard) => Ok(shard),
                Err(source) => {
                    let reason = source.to_string();
                    if !is_any_open || source.is_of_another_format() {
                        let directory = directory.clone();
                        failure = failure.or(Some(ShardsError::Start { directory, source }));
                    }
                    Err(reason)
                }
            };
            stores.push(Store { directory, id, shard });
        }
        let mut shards =
            Shards { stores, capacity_bytes: settings.capacity_bytes, lost: Lost::default(), placed: Mutex::default() };
        let placed = match failure {
            None => shards.find(record).await,
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

    /// Which store each volume is in: as those say that are open, and the record of the others; it is written anew.
    async fn find(&self, record: Option<Placements>) -> Result<Placed, ShardsError> {
        let mut at = self.stored().await?;
        let Some(mut record) = record else { return Ok(Placed { at, record: None }) };
        let refused = self.stores.iter().enumerate();
        let refused: Vec<_> =
            refused.filter_map(|(at, store)| Some((at, store, store.shard.as_ref().err()?))).collect();
        let recorded = match refused.first() {
            None => BTreeMap::new(),
            Some((_, Store { directory, .. }, reason)) => {
                let unrecorded = |source| {
                    let (directory, reason) = (directory.clone(), (*reason).clone());
                    ShardsError::Unrecorded { directory, reason, source }
                };
                record.read().map_err(|error| unrecorded(Some(error)))?.ok_or_else(|| unrecorded(None))?
            }
        };
        for (place, store, reason) in refused {
            let volumes: Vec<VolumeId> =
                recorded.iter().filter(|(_, id)| **id == store.id).map(|(volume, _)| *volume).collect();
            tracing::error!(directory = %store.directory.display(), %reason, volumes = volumes.len(), "the store cannot be opened: the node goes on without it, and its volumes are not served here (docs/disks.md)");
            for volume in volumes {
                self.require_once(at.insert(volume, place), volume, place)?;
            }
        }
        match self.stores.len() {
            1 => {
                record.remove()?;
                Ok(Placed { at, record: None })
            }
            _ => {
                record.replace(&at.iter().map(|(volume, at)| (*volume, self.stores[*at].id.clone())).collect())?;
                Ok(Placed { at, record: Some(record) })
            }
        }
    }

    /// One shard, which runs already.
    #[cfg(test)]
    pub(crate) async fn of_one(directory: PathBuf, handle: ShardHandle) -> Result<Shards, ShardsError> {
        Shards::of_open(vec![(directory, handle)]).await
    }

    /// Shards that run already.
    #[cfg(test)]
    async fn of_open(open: Vec<(PathBuf, ShardHandle)>) -> Result<Shards, ShardsError> {
        let store = |(at, (directory, shard)): (usize, (PathBuf, ShardHandle))| Store {
            directory,
            id: at.to_string(),
            shard: Ok(shard),
        };
        let stores = open.into_iter().enumerate().map(store).collect();
        let mut shards = Shards { stores, capacity_bytes: None, lost: Lost::default(), placed: Mutex::default() };
        shards.placed = Mutex::new(shards.find(None).await?);
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

    /// Whether a copy of `volume` was on a disk of this node that was given up: what is here has come since.
    #[must_use]
    pub fn has_lost_copy_of(&self, volume: VolumeId) -> bool {
        self.lost.has_copy_of(volume)
    }

    /// Which open shard has which volume.
    async fn stored(&self) -> Result<BTreeMap<VolumeId, usize>, ShardsError> {
        let mut placed = BTreeMap::new();
        for (at, store) in self.stores.iter().enumerate() {
            let Ok(shard) = &store.shard else { continue };
            let stored = shard.list().await;
            let stored = stored.map_err(|source| ShardsError::Failed { directory: store.directory.clone(), source })?;
            for volume in stored {
                self.require_once(placed.insert(volume, at), volume, at)?;
            }
        }
        Ok(placed)
    }

    /// Refuses a volume that is in `earlier` as well.
    fn require_once(&self, earlier: Option<usize>, volume: VolumeId, at: usize) -> Result<(), ShardsError> {
        let Some(earlier) = earlier else { return Ok(()) };
        let (first, second) = (self.stores[earlier].directory.clone(), self.stores[at].directory.clone());
        Err(ShardsError::Twice { volume, first, second })
    }

    /// The shard that has `volume`, or is to have it from now on.
    ///
    /// # Errors
    /// `Unopened` when it is in a store that cannot be opened; `Io` when it cannot be written down where it goes.
    pub fn of(&self, volume: VolumeId) -> Result<ShardHandle, StoreError> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match placed.at.get(&volume) {
            Some(at) => *at,
            None => {
                let at = self.place(&placed.at);
                if self.stores.len() > 1 {
                    tracing::info!(%volume, directory = %self.stores[at].directory.display(), "a store for a new volume");
                }
                placed.put(volume, at, &self.stores)?;
                at
            }
        };
        self.stores[at].shard()
    }

    /// As [`of`](Self::of) for a volume that shares its data with `origin`: the shard that has that, if one has.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn beside(&self, volume: VolumeId, origin: VolumeId) -> Result<ShardHandle, StoreError> {
        {
            let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = placed.at.get(&origin).copied().filter(|at| self.stores[*at].shard.is_ok())
                && !placed.at.contains_key(&volume)
            {
                placed.put(volume, at, &self.stores)?;
            }
        }
        self.of(volume)
    }

    /// The shard that has `volume` or is about to have it, if one does.
    #[must_use]
    pub fn holder(&self, volume: VolumeId) -> Option<&ShardHandle> {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.at.get(&volume).and_then(|at| self.stores[*at].shard.as_ref().ok())
    }

    /// Whether `volume` is in a store that cannot be opened.
    #[must_use]
    pub fn is_refused(&self, volume: VolumeId) -> bool {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.at.get(&volume).is_some_and(|at| self.stores[*at].shard.is_err())
    }

    /// Whether anything was given up with a disk.
    #[must_use]
    pub fn lacks_any(&self) -> bool {
        !self.lost.is_empty()
    }

    /// The directory of the store that has `volume`.
    #[must_use]
    pub fn directory_of(&self, volume: VolumeId) -> Option<&Path> {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.at.get(&volume).map(|at| self.stores[*at].directory.as_path())
    }

    /// Where the space of each store goes.
    ///
    /// # Errors
    /// When a shard has stopped.
    pub async fn usage(&self) -> Result<Vec<StoreUsage>, StoreError> {
        let mut usages = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            let shard = match &store.shard {
                Ok(shard) => shard.space(None).await?,
                Err(reason) => {
                    let fault = Some(format!("it could not be opened: {reason}"));
                    ShardSpace { fault, ..ShardSpace::default() }
                }
            };
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
            let shard = match &store.shard {
                Ok(shard) => tokio::time::timeout(patience, shard.figures()).await.ok().and_then(Result::ok),
                Err(_) => None,
            };
            let open = store.shard.as_ref().ok();
            let (file_system_bytes, file_system_free_bytes) = file_system(&store.directory);
            StoreFigures {
                directory: store.directory.clone(),
                file_system_bytes,
                file_system_free_bytes,
                capacity_bytes: self.capacity_bytes,
                map_bytes: files_bytes(&store.directory.join("map")),
                is_faulted: open.is_none_or(|shard| shard.fault().is_some()),
                queued: open.map_or(0, |shard| shard.queued() as u64),
                operations: open
                    .map(|shard| shard.operations().so_far())
                    .unwrap_or_else(|| Operations::default().so_far()),
                shard,
            }
        });
        futures_util::future::join_all(each).await
    }

    /// The stores that take no writes, and why, in words that follow their names.
    pub fn faults(&self) -> impl Iterator<Item = (&Path, String)> {
        self.stores.iter().filter_map(|store| Some((store.directory.as_path(), store.fault()?)))
    }

    /// The same, with when it was found; `None` for one that could not be opened when the node was started.
    pub fn faulted(&self) -> impl Iterator<Item = (&Path, String, Option<Instant>)> {
        let since = |store: &Store| store.shard.as_ref().ok().and_then(ShardHandle::fault_since);
        self.stores.iter().filter_map(move |store| Some((store.directory.as_path(), store.fault()?, since(store))))
    }

    /// Every shard that is open.
    pub fn all(&self) -> impl Iterator<Item = &ShardHandle> {
        self.stores.iter().filter_map(|store| store.shard.as_ref().ok())
    }

    /// `volume` was deleted from its shard.
    pub fn forget(&self, volume: VolumeId) {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.at.remove(&volume);
        if let Some(record) = &mut placed.record
            && let Err(error) = record.forget(volume)
        {
            // The next start that opens its store finds that out.
            tracing::warn!(%volume, %error, "it is not written down that the volume is gone");
        }
    }

    /// Stops every shard at once; a failure does not keep the others from stopping.
    pub async fn stop(&self) {
        let open = self.stores.iter().filter_map(|store| Some((&store.directory, store.shard.as_ref().ok()?)));
        let stops = open.map(|(directory, shard)| async move {
            if let Err(error) = shard.stop().await {
                tracing::error!(directory = %directory.display(), %error, "a store did not stop cleanly; it will recover at the next start");
            }
        });
        futures_util::future::join_all(stops).await;
    }

    fn place(&self, placed: &BTreeMap<VolumeId, usize>) -> usize {
        let room = |(at, store): (usize, &Store)| {
            let shard = store.shard.as_ref().ok()?;
            let volumes = placed.values().filter(|other| **other == at).count() as u64;
            let works = shard.fault().is_none();
            Some((at, works.then(|| (free_bytes(&store.directory, self.capacity_bytes), volumes))))
        };
        choose(self.stores.iter().enumerate().filter_map(room)).expect("one is open")
    }
}

/// The place of the store with most free bytes per volume, the new one included; the first of equals. Free space alone
/// would put volumes that are made together, and are all empty, on one disk. Without a number is a store that takes no writes.
fn choose(stores: impl Iterator<Item = (usize, Option<(u64, u64)>)>) -> Option<usize> {
    let score = stores.map(|(at, room)| (at, room.map(|(free, volumes)| free / (volumes + 1))));
    score.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(at, _)| at)
}

#[cfg(test)]
mod tests;
