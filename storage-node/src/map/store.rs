//! The map on disk: the only user of RocksDB in this crate.
//!
//! Everything a shard must find again at its start, as of one position of the log: pages, volume records, layers,
//! change history, usage. A checkpoint is one synced write batch that moves all of it from one position to the next,
//! so what is on disk is always exactly the state at `position`, and recovery replays the log from there. RocksDB's
//! own log is only the carrier of these batches. Knows keys and bytes, not what they mean to a volume.
//! `docs/format.md` has the tables.
//!
//! A page of which few entries changed is not written again: the entries are written beside it, as an operand of
//! RocksDB's merge (`merging`), and whoever reads the page sees them in it. Pages with few entries share values
//! ([`Sheaf`]), to which they come by merging alone; which pages these are, the cache above says.

mod error;
mod format;
mod keys;
mod merging;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use client_lib::{SnapshotId, VolumeId};

pub use error::MapError;
pub use format::{FORMAT_FILE, FORMAT_OLDEST, FORMAT_VERSION, format_of, prepare_directory};
use keys::{
    TABLE_ALIASES, TABLE_COLD_END, TABLE_HISTORY, TABLE_LAYER, TABLE_LOG, TABLE_PAGE, TABLE_PAGE_SET, TABLE_POSITION,
    TABLE_SCRUB, TABLE_SHEAF, TABLE_SPARSE_SET, TABLE_USAGE, TABLE_VOLUME, VOLUME_TABLES, aliases_key, key, layer_key,
    map_key,
};
use rows::Db;

use super::MapKey;
use super::page::sheaf::{SHEAF_PAGES, Sheaf};
use super::page::{Index, Page, Version, encode_entries};

/// Room on the file system below which opening again is not tried: a write buffer, its log and their files.
const REOPEN_BYTES_MIN: u64 = 48 << 20;

/// A volume's values as the store has them, still encoded.
#[derive(Debug, Default)]
pub struct StoredVolume {
    /// The record.
    pub record: Vec<u8>,
    /// Map, the set of its pages that exist.
    pub page_sets: Vec<(SnapshotId, Vec<u8>)>,
    /// Map, the set of those of them that share values.
    pub sparse_sets: Vec<(SnapshotId, Vec<u8>)>,
    /// Layer, chunk, entries.
    pub layers: Vec<(u64, u32, Vec<u8>)>,
    /// Id, interval.
    pub history: Vec<(u64, Vec<u8>)>,
    /// Map, segment, live blocks.
    pub usage: Vec<(SnapshotId, u32, u32)>,
}

/// One change of the store.
#[derive(Debug)]
pub enum Change {
    /// The number of the log, once.
    Log(u64),
    /// The log position that everything else belongs to.
    Position(Vec<u8>),
    /// How far the cold segment being filled is in use at that position.
    ColdEnd(Vec<u8>),
    /// A volume's record.
    Volume(VolumeId, Vec<u8>),
    /// A page, encoded when it is written.
    Page(MapKey, u32, Arc<Page>),
    /// Entries of a page that is in the store already, by rising index.
    Entries(MapKey, u32, Vec<(Index, Version)>),
    /// Entries of a page that shares a value, or is to from now on, by rising index.
    Sparse(MapKey, u32, Vec<(Index, Version)>),
    /// A page that has a value of its own is gone.
    RemovePage(MapKey, u32),
    /// A page that shares a value is gone, or is to have its own.
    RemoveSparse(MapKey, u32),
    /// Which pages exist.
    PageSet(MapKey, Vec<u8>),
    /// Which of them share values.
    SparseSet(MapKey, Vec<u8>),
    /// A chunk of a layer; `None` deletes it.
    Layer(VolumeId, u64, u32, Option<Vec<u8>>),
    /// A layer is gone.
    DropLayer(VolumeId, u64),
    /// An interval of the history; `None` deletes it.
    History(VolumeId, u64, Option<Vec<u8>>),
    /// Live blocks in a segment; 0 deletes the value.
    Usage(MapKey, u32, u32),
    /// Aliases in a segment, at most; 0 deletes the value.
    Aliases(u32, u64),
    /// A pass of the scrub, of a volume or (0) of everything; `None` deletes it.
    Scrub(VolumeId, Option<Vec<u8>>),
    /// The map of a snapshot is gone.
    ForgetMap(MapKey),
    /// The volume and everything of it is gone.
    Forget(VolumeId),
}

/// The open store. Cheap to clone: the shard reads, the committer writes.
#[derive(Clone)]
pub struct MapStore {
    directory: PathBuf,
    /// Replaced only by [`MapStore::reopen`]; `None` when that could not open it again.
    db: Arc<RwLock<Option<Db>>>,
    #[cfg(test)]
    faults: Arc<std::sync::Mutex<Faults>>,
}

/// What of a store fails, in tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Reads of this page, of whatever map.
    pub(crate) page: Option<u32>,
    /// Every commit, in this way.
    pub(crate) commits: Option<std::io::ErrorKind>,
}

impl std::fmt::Debug for MapStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MapStore({})", self.directory.display())
    }
}

impl MapStore {
    /// Opens or creates the store in `directory`.
    ///
    /// # Errors
    /// When RocksDB cannot: another process has it open, the disk fails.
    pub fn open(directory: &Path) -> Result<MapStore, MapError> {
        Ok(MapStore::of(directory.to_owned(), Db::open(directory)?))
    }

    /// An empty store in memory, for a shard on a simulated disk: what is committed outlives every crash.
    #[must_use]
    pub fn in_memory() -> MapStore {
        MapStore::of(PathBuf::from("(memory)"), Db::Memory(RwLock::default()))
    }

    fn of(directory: PathBuf, db: Db) -> MapStore {
        MapStore {
            directory,
            db: Arc::new(RwLock::new(Some(db))),
            #[cfg(test)]
            faults: Arc::default(),
        }
    }

    /// From now on, and in every clone of the store, this fails.
    #[cfg(test)]
    pub(crate) fn inject(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    #[cfg(test)]
    fn injected(&self, fails: impl FnOnce(&Faults) -> Option<std::io::ErrorKind>) -> Result<(), MapError> {
        match fails(&self.faults.lock().unwrap_or_else(PoisonError::into_inner)) {
            Some(kind) => {
                let source = std::io::Error::new(kind, "an injected fault");
                Err(MapError::File { path: self.directory.clone(), source })
            }
            None => Ok(()),
        }
    }

    /// Whether it is in memory.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        matches!(&*self.db.read().unwrap_or_else(PoisonError::into_inner), Some(Db::Memory(_)))
    }

    /// Opens the store in `directory` to look at: nothing in it is changed, whatever is asked for.
    ///
    /// # Errors
    /// When there is none or RocksDB cannot read it.
    pub fn open_read_only(directory: &Path) -> Result<MapStore, MapError> {
        Ok(MapStore::of(directory.to_owned(), Db::open_read_only(directory)?))
    }

    /// Opens the database again: after a failed write it takes no more, whatever the cause becomes. Waits for readers
    /// and keeps them out meanwhile. Without room for that nothing is done, so that reads go on.
    ///
    /// # Errors
    /// When there is no room, or RocksDB cannot open it to write; then it is open to read, if that much is possible.
    pub fn reopen(&self) -> Result<(), MapError> {
        if self.is_in_memory() {
            return Ok(());
        }
        let failed = |error: rustix::io::Errno| MapError::File { path: self.directory.clone(), source: error.into() };
        let space = rustix::fs::statvfs(&self.directory).map_err(failed)?;
        if space.f_bavail.saturating_mul(space.f_frsize) < REOPEN_BYTES_MIN {
            return Err(failed(rustix::io::Errno::NOSPC));
        }
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // The lock on the directory is given up first.
        *db = None;
        match Db::open(&self.directory) {
            Ok(opened) => {
                *db = Some(opened);
                Ok(())
            }
            Err(error) => {
                *db = Db::open_read_only(&self.directory).ok();
                Err(error)
            }
        }
    }

    /// Nothing more will be committed: what is in memory is written out, so that the next start has nothing to do again.
    ///
    /// # Errors
    /// When RocksDB cannot; what was committed is durable all the same.
    pub fn write_out(&self) -> Result<(), MapError> {
        self.with(Db::write_out)
    }

    /// How many keys and values are to be written out yet.
    #[cfg(test)]
    pub(crate) fn unwritten(&self) -> u64 {
        self.with(|db| Ok(db.unwritten())).expect("is open")
    }

    /// Merges everything on disk into one, as RocksDB does by and by.
    #[cfg(test)]
    fn compact(&self) {
        if let Some(Db::Rocks(db)) = &*self.db.read().unwrap_or_else(PoisonError::into_inner) {
            db.compact_range(None::<&[u8]>, None::<&[u8]>);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&Db) -> Result<T, MapError>) -> Result<T, MapError> {
        match &*self.db.read().unwrap_or_else(PoisonError::into_inner) {
            Some(db) => f(db),
            None => Err(MapError::Closed),
        }
    }

    /// The position of the last checkpoint; `None` before the first.
    ///
    /// # Errors
    /// When RocksDB fails.
    pub fn position(&self) -> Result<Option<Vec<u8>>, MapError> {
        self.with(|db| db.get(&[TABLE_POSITION], <[u8]>::to_vec))
    }

    /// How far the cold segment was in use that was filled last; `None` before the first, and where a program before this did
    /// not keep it. One that did not keep it may have filled others since, or this one further.
    ///
    /// # Errors
    /// When RocksDB fails.
    pub fn cold_end(&self) -> Result<Option<Vec<u8>>, MapError> {
        self.with(|db| db.get(&[TABLE_COLD_END], <[u8]>::to_vec))
    }

    /// The number of the log; `None` before it was given one.
    ///
    /// # Errors
    /// When RocksDB fails or the value is damaged.
    pub fn log_number(&self) -> Result<Option<u64>, MapError> {
        let value = self.with(|db| db.get(&[TABLE_LOG], <[u8]>::to_vec))?;
        value.map(|bytes| decode_log_number(&bytes).ok_or(MapError::LogNumber)).transpose()
    }

    /// A page that has a value of its own.
    ///
    /// # Errors
    /// When RocksDB fails or the page is damaged.
    pub fn page(&self, map: impl Into<MapKey>, page: u32) -> Result<Option<Page>, MapError> {
        let map = map.into();
        #[cfg(test)]
        self.injected(|faults| (faults.page == Some(page)).then_some(std::io::ErrorKind::Other))?;
        self.with(|db| {
            let decoded = db.get(&map_key(TABLE_PAGE, map, Some(page)), Page::decode_base)?;
            let damaged = |source| MapError::Page { volume: map.volume, page, source };
            decoded.transpose().map_err(damaged)
        })
    }

    /// A page that shares a value.
    ///
    /// # Errors
    /// When RocksDB fails or the value is damaged.
    pub fn sparse_page(&self, map: impl Into<MapKey>, page: u32) -> Result<Option<Page>, MapError> {
        let map = map.into();
        #[cfg(test)]
        self.injected(|faults| (faults.page == Some(page)).then_some(std::io::ErrorKind::Other))?;
        self.with(|db| {
            let decoded = db.get(&map_key(TABLE_SHEAF, map, Some(page / SHEAF_PAGES)), Sheaf::decode)?;
            let damaged = |source| MapError::Page { volume: map.volume, page, source };
            Ok(decoded.transpose().map_err(damaged)?.and_then(|sheaf| sheaf.page(page)))
        })
    }

    /// Every volume with its values, without its pages.
    ///
    /// # Errors
    /// When RocksDB fails or a key has another length than it should.
    pub fn volumes(&self) -> Result<Vec<(VolumeId, StoredVolume)>, MapError> {
        let mut volumes = Vec::new();
        for (volume, rest, record) in self.scan(&[TABLE_VOLUME])? {
            if !rest.is_empty() {
                return Err(MapError::Value { what: "record key", volume });
            }
            let mut stored = StoredVolume { record: record.into(), ..StoredVolume::default() };
            let wrong = |what| move || MapError::Value { what, volume };
            for (table, sets) in [(TABLE_PAGE_SET, &mut stored.page_sets), (TABLE_SPARSE_SET, &mut stored.sparse_sets)]
            {
                for (_, rest, value) in self.scan(&key(table, volume, &[]))? {
                    let snapshot = u64::from_be_bytes(rest.as_slice().try_into().map_err(|_| wrong("page set key")())?);
                    sets.push((SnapshotId(snapshot), value.into()));
                }
            }
            for (_, rest, value) in self.scan(&key(TABLE_LAYER, volume, &[]))? {
                let (layer, chunk) = rest.split_at_checked(8).ok_or_else(wrong("layer key"))?;
                let layer = u64::from_be_bytes(layer.try_into().map_err(|_| wrong("layer key")())?);
                let chunk = u32::from_be_bytes(chunk.try_into().map_err(|_| wrong("layer key")())?);
                stored.layers.push((layer, chunk, value.into()));
            }
            for (_, rest, value) in self.scan(&key(TABLE_HISTORY, volume, &[]))? {
                let id = u64::from_be_bytes(rest.as_slice().try_into().map_err(|_| wrong("history key")())?);
                stored.history.push((id, value.into()));
            }
            for (_, rest, value) in self.scan(&key(TABLE_USAGE, volume, &[]))? {
                let (snapshot, segment) = rest.split_at_checked(8).ok_or_else(wrong("usage key"))?;
                let snapshot = u64::from_be_bytes(snapshot.try_into().map_err(|_| wrong("usage key")())?);
                let segment = u32::from_be_bytes(segment.try_into().map_err(|_| wrong("usage key")())?);
                let live = u32::from_le_bytes(value.as_ref().try_into().map_err(|_| wrong("usage")())?);
                stored.usage.push((SnapshotId(snapshot), segment, live));
            }
            volumes.push((volume, stored));
        }
        Ok(volumes)
    }

    /// The passes of the scrub that were kept: of volumes, and (0) of everything.
    ///
    /// # Errors
    /// When RocksDB fails or a key has another length than it should.
    pub fn scrubs(&self) -> Result<Vec<(VolumeId, Vec<u8>)>, MapError> {
        let rows = self.scan(&[TABLE_SCRUB])?;
        Ok(rows.into_iter().map(|(volume, _, value)| (volume, value.into())).collect())
    }

    /// The segments that may have aliases, with how many at most. What another version of this software left of segments that it
    /// did not count for is among them, so it is no more than that.
    ///
    /// # Errors
    /// When RocksDB fails or a value has another length than it should.
    pub fn aliases(&self) -> Result<Vec<(u32, u64)>, MapError> {
        let wrong = || MapError::Value { what: "number of aliases", volume: VolumeId(0) };
        let rows = self.scan(&[TABLE_ALIASES])?.into_iter().map(|(_, segment, value)| {
            let segment = segment.as_slice().try_into().map_err(|_| wrong())?;
            let aliases = value.as_ref().try_into().map_err(|_| wrong())?;
            Ok((u32::from_be_bytes(segment), u64::from_le_bytes(aliases)))
        });
        rows.collect()
    }

    /// Carries out `changes` all together, durably.
    ///
    /// # Errors
    /// When RocksDB fails; then none of them happened, or (after a crash) all of them.
    pub fn commit(&self, changes: &[Change]) -> Result<(), MapError> {
        #[cfg(test)]
        self.injected(|faults| faults.commits)?;
        let mut batch = self.with(|db| Ok(db.batch()))?;
        // Neighbours that share a value are merged into it together.
        for group in changes.chunk_by(|one, next| sheaf_of(one).is_some() && sheaf_of(one) == sheaf_of(next)) {
            match &group[0] {
                Change::Sparse(map, page, _) => {
                    let mut sheaf = Sheaf::default();
                    for change in group {
                        if let Change::Sparse(_, page, entries) = change {
                            sheaf.add(*page, entries.iter().copied());
                        }
                    }
                    batch.merge(map_key(TABLE_SHEAF, *map, Some(page / SHEAF_PAGES)), encode_sheaf(&sheaf));
                }
                Change::RemoveSparse(map, page) => {
                    let key = map_key(TABLE_SHEAF, *map, Some(*page / SHEAF_PAGES));
                    batch.merge(key, encode_sheaf(&Sheaf::dropping(*page)));
                }
                Change::SparseSet(map, pages) => batch.put(map_key(TABLE_SPARSE_SET, *map, None), pages),
                Change::Log(number) => batch.put([TABLE_LOG], encode_log_number(*number)),
                Change::Position(position) => batch.put([TABLE_POSITION], position),
                Change::ColdEnd(end) => batch.put([TABLE_COLD_END], end),
                Change::Volume(volume, record) => batch.put(key(TABLE_VOLUME, *volume, &[]), record),
                Change::Page(map, page, content) => {
                    batch.put(map_key(TABLE_PAGE, *map, Some(*page)), content.encode());
                }
                Change::Entries(map, page, entries) => {
                    let operand = encode_entries(entries.iter().copied());
                    batch.merge(map_key(TABLE_PAGE, *map, Some(*page)), operand);
                }
                Change::RemovePage(map, page) => batch.delete(map_key(TABLE_PAGE, *map, Some(*page))),
                Change::PageSet(map, pages) => batch.put(map_key(TABLE_PAGE_SET, *map, None), pages),
                Change::Layer(volume, layer, chunk, Some(entries)) => {
                    batch.put(layer_key(*volume, *layer, Some(*chunk)), entries);
                }
                Change::Layer(volume, layer, chunk, None) => batch.delete(layer_key(*volume, *layer, Some(*chunk))),
                Change::DropLayer(volume, layer) => {
                    batch.delete_range(layer_key(*volume, *layer, None), layer_key(*volume, layer + 1, None));
                }
                Change::History(volume, id, Some(interval)) => {
                    batch.put(key(TABLE_HISTORY, *volume, &id.to_be_bytes()), interval);
                }
                Change::History(volume, id, None) => batch.delete(key(TABLE_HISTORY, *volume, &id.to_be_bytes())),
                Change::Usage(map, segment, 0) => batch.delete(map_key(TABLE_USAGE, *map, Some(*segment))),
                Change::Usage(map, segment, live) => {
                    batch.put(map_key(TABLE_USAGE, *map, Some(*segment)), live.to_le_bytes());
                }
                Change::Aliases(segment, 0) => batch.delete(aliases_key(*segment)),
                Change::Aliases(segment, aliases) => batch.put(aliases_key(*segment), aliases.to_le_bytes()),
                Change::Scrub(volume, Some(pass)) => batch.put(key(TABLE_SCRUB, *volume, &[]), pass),
                Change::Scrub(volume, None) => batch.delete(key(TABLE_SCRUB, *volume, &[])),
                Change::ForgetMap(map) => {
                    let after = MapKey { snapshot: SnapshotId(map.snapshot.0 + 1), ..*map };
                    for table in [TABLE_PAGE, TABLE_PAGE_SET, TABLE_USAGE, TABLE_SHEAF, TABLE_SPARSE_SET] {
                        batch.delete_range(map_key(table, *map, None), map_key(table, after, None));
                    }
                }
                Change::Forget(volume) => {
                    for table in VOLUME_TABLES {
                        // Volume ids end far below the largest number: the metadata log counts them.
                        batch.delete_range(key(table, *volume, &[]), key(table, VolumeId(volume.0 + 1), &[]));
                    }
                    batch.delete(key(TABLE_SCRUB, *volume, &[]));
                }
            }
        }
        self.with(|db| db.write(batch))
    }

    /// Volume, rest of the key, and value of every key that starts with `prefix`.
    #[expect(clippy::type_complexity, reason = "a row")]
    fn scan(&self, prefix: &[u8]) -> Result<Vec<(VolumeId, Vec<u8>, Box<[u8]>)>, MapError> {
        self.with(|db| {
            let mut rows = Vec::new();
            db.scan(prefix, |found, value| {
                if !found.starts_with(prefix) {
                    return Ok(false);
                }
                let Some((volume, rest)) = found[1..].split_first_chunk::<8>() else {
                    return Err(MapError::Value { what: "key", volume: VolumeId(0) });
                };
                rows.push((VolumeId(u64::from_be_bytes(*volume)), rest.to_vec(), value.into()));
                Ok(true)
            })?;
            Ok(rows)
        })
    }
}

/// The number of a log as a value: 8 bytes and a checksum.
fn encode_log_number(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn decode_log_number(bytes: &[u8]) -> Option<u64> {
    let (number, checksum) = bytes.split_first_chunk::<8>()?;
    (checksum == crc32fast::hash(number).to_le_bytes()).then(|| u64::from_le_bytes(*number))
}

/// The sheaf that a change gives entries to.
fn sheaf_of(change: &Change) -> Option<(MapKey, u32)> {
    match change {
        Change::Sparse(map, page, _) => Some((*map, page / SHEAF_PAGES)),
        _ => None,
    }
}

fn encode_sheaf(sheaf: &Sheaf) -> Vec<u8> {
    sheaf.encode().expect("only pages with few entries share values")
}

#[cfg(test)]
mod tests;
