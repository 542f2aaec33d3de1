//! The map on disk: the only user of RocksDB in this crate.
//!
//! Everything a shard must find again at its start, as of one position of the log: pages, volume records, layers,
//! change history, usage. A checkpoint is one synced write batch that moves all of it from one position to the next,
//! so what is on disk is always exactly the state at `position`, and recovery replays the log from there. RocksDB's
//! own log is only the carrier of these batches. Knows keys and bytes, not what they mean to a volume.
//! `docs/format.md` has the tables.
//!
//! A page of which few entries changed is not written again: the entries are written beside it, as an operand of
//! RocksDB's merge ([`merge_page`]), and whoever reads the page sees them in it. Pages with few entries share values
//! ([`Sheaf`]), to which they come by merging alone; which pages these are, the cache above says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use client_lib::{Lsn, SnapshotId, VolumeId};
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use super::MapKey;
use super::page::sheaf::{SHEAF_PAGES, Sheaf};
use super::page::{Index, Page, PageError, Version, encode_entries, merge_values};

/// The version of the shard directory as a whole: layout, keys and values.
pub const FORMAT_VERSION: u32 = 7;

/// The oldest that is read, and made one of [`FORMAT_VERSION`] by that: 6 does not say how many
/// entries a manifest came in, 5 knows nothing of nodes that come back by what differs, 4 has no sheaves yet, 2 no merge operands either, and what they have is read as it is.
pub const FORMAT_OLDEST: u32 = 2;

/// What RocksDB knows the merge by: another name for another meaning of the operands.
const MERGE_NAME: &str = "heliotrope.page-entries.1";

/// Operands of a page in the write buffer from which on the next is merged with them at once: whoever reads the page merges
/// them every time.
const MERGE_OPERANDS_MAX: usize = 16;

/// The file beside segments and map that names the version. Checked before anything else is touched.
pub const FORMAT_FILE: &str = "FORMAT";

/// What the file starts with.
const FORMAT_WORD: &str = "heliotrope-shard";

const TABLE_POSITION: u8 = 1;
const TABLE_VOLUME: u8 = 2;
const TABLE_PAGE: u8 = 3;
const TABLE_PAGE_SET: u8 = 4;
const TABLE_LAYER: u8 = 5;
const TABLE_HISTORY: u8 = 6;
const TABLE_USAGE: u8 = 7;
const TABLE_SHEAF: u8 = 8;
const TABLE_SPARSE_SET: u8 = 9;
/// The tables that are of one volume alone.
const VOLUME_TABLES: std::ops::RangeInclusive<u8> = TABLE_VOLUME..=TABLE_SPARSE_SET;
const TABLE_LOG: u8 = 64;
const TABLE_SCRUB: u8 = 65;
const TABLE_ALIASES: u8 = 66;
const TABLE_COLD_END: u8 = 67;

/// Memory for RocksDB's own blocks; the pages are cached above it.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// A write buffer; two of them at most.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

/// Room on the file system below which opening again is not tried: a write buffer, its log and their files.
const REOPEN_BYTES_MIN: u64 = 48 << 20;

/// Why the map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A newer version wrote the directory. Nothing in it was changed.
    #[error(
        "{} has format {found}; this version of heliotrope reads {FORMAT_VERSION} and leaves it as it is: use the version that wrote it, or a newer one",
        directory.display()
    )]
    NewerFormat {
        /// The shard's directory.
        directory: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A version from before formats were kept readable wrote the directory. Nothing in it was changed.
    #[error(
        "{} has format {found} of an early development version; this one reads {FORMAT_OLDEST} and newer, and leaves it as it is: copy the volumes out with the version that wrote it (`nbdcopy`), and into a new directory with this one",
        directory.display()
    )]
    OlderFormat {
        /// The shard's directory.
        directory: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The format file is not one.
    #[error("{} should read {FORMAT_WORD:?} and a number, but reads {found:?}", path.display())]
    NoFormat {
        /// The file.
        path: PathBuf,
        /// Its text.
        found: String,
    },
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// RocksDB failed.
    #[error("the map store failed: {0}")]
    Store(#[from] rocksdb::Error),
    /// It could not be opened again after a failure.
    #[error("the map store is closed after a failure: restart the node")]
    Closed,
    /// A page does not decode.
    #[error("page {page} of volume {volume} in the map: {source}")]
    Page {
        /// The volume.
        volume: VolumeId,
        /// The page.
        page: u32,
        /// Why.
        source: PageError,
    },
    /// The log position does not decode.
    #[error("the map's log position is damaged")]
    Position,
    /// How far the cold segment is in use does not decode.
    #[error("what the map says of the cold segment being filled is damaged")]
    ColdEnd,
    /// The number of the log does not decode.
    #[error("the map's number of the log is damaged")]
    LogNumber,
    /// The log goes on from another state than the map has.
    #[error("the log contradicts the map: {found} of volume {volume} follows {known}")]
    Order {
        /// The volume.
        volume: VolumeId,
        /// The map's position.
        known: Lsn,
        /// The log's.
        found: Lsn,
    },
    /// A later program wrote a value.
    #[error(
        "the map's {what} of volume {volume} has format {found}, this program reads {known}: use the newer program"
    )]
    Newer {
        /// What it is.
        what: &'static str,
        /// The volume.
        volume: VolumeId,
        /// Its format.
        found: u16,
        /// The newest that is read.
        known: u16,
    },
    /// Another value does not decode.
    #[error("the map's {what} of volume {volume} is damaged")]
    Value {
        /// What it should be.
        what: &'static str,
        /// The volume.
        volume: VolumeId,
    },
}

impl MapError {
    /// Whether the file system had no room: that may change without anybody's doing.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            MapError::File { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            // RocksDB has no code of its own for it in what it hands on; its texts are those of strerror(3).
            MapError::Store(error) => {
                let text = error.to_string();
                ["No space left on device", "Disk quota exceeded"].iter().any(|full| text.contains(full))
            }
            _ => false,
        }
    }
}

/// The format of `directory`, which this software reads; `None` when it has no format file. Changes nothing.
///
/// # Errors
/// `NewerFormat`, `OlderFormat`, `NoFormat`; `File` when the file cannot be read.
pub fn format_of(directory: &Path) -> Result<Option<u32>, MapError> {
    let path = directory.join(FORMAT_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MapError::File { path, source }),
    };
    let number = text.trim_end().strip_prefix(FORMAT_WORD).and_then(|rest| rest.trim().parse::<u32>().ok());
    match number {
        None => Err(MapError::NoFormat { path, found: text.chars().take(80).collect() }),
        Some(found) if found > FORMAT_VERSION => Err(MapError::NewerFormat { directory: directory.to_owned(), found }),
        Some(found) if found < FORMAT_OLDEST => Err(MapError::OlderFormat { directory: directory.to_owned(), found }),
        Some(found) => Ok(Some(found)),
    }
}

/// Creates or checks the shard's directory before anything in it is opened. From then on it is of [`FORMAT_VERSION`].
///
/// # Errors
/// `NewerFormat`, `OlderFormat` and `NoFormat` leave the directory as it is.
pub fn prepare_directory(directory: &Path) -> Result<(), MapError> {
    if format_of(directory)? == Some(FORMAT_VERSION) {
        return Ok(());
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| MapError::File { path, source }
    };
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    // Written aside and renamed, so that a crash leaves no half of it.
    let (path, aside) = (directory.join(FORMAT_FILE), directory.join("FORMAT.new"));
    let mut file = std::fs::File::create(&aside).map_err(failed(&aside))?;
    std::io::Write::write_all(&mut file, format!("{FORMAT_WORD} {FORMAT_VERSION}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed(&aside))?;
    std::fs::rename(&aside, &path).map_err(failed(&path))?;
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))
}

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

/// What holds the keys and values.
enum Db {
    Rocks(DB),
    /// For simulated disks: every commit is durable at once, as a synced batch is.
    Memory(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>),
}

impl Db {
    /// Hands the value of `key`, if there is one, to `f`.
    fn get<T>(&self, key: &[u8], f: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, MapError> {
        Ok(match self {
            Db::Rocks(db) => db.get_pinned(key)?.map(|value| f(&value)),
            Db::Memory(rows) => rows.read().unwrap_or_else(PoisonError::into_inner).get(key).map(|value| f(value)),
        })
    }

    /// Hands every key from `prefix` on, with its value, to `f`, until that returns false or fails.
    fn scan(&self, prefix: &[u8], mut f: impl FnMut(&[u8], &[u8]) -> Result<bool, MapError>) -> Result<(), MapError> {
        match self {
            Db::Rocks(db) => {
                for row in db.iterator(IteratorMode::From(prefix, Direction::Forward)) {
                    let (key, value) = row?;
                    if !f(&key, &value)? {
                        break;
                    }
                }
            }
            Db::Memory(rows) => {
                for (key, value) in rows.read().unwrap_or_else(PoisonError::into_inner).range(prefix.to_vec()..) {
                    if !f(key, value)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// An empty batch for [`write`](Self::write).
    fn batch(&self) -> Batch {
        match self {
            Db::Rocks(_) => Batch::Rocks(WriteBatch::default()),
            Db::Memory(_) => Batch::Memory(Vec::new()),
        }
    }

    /// Carries out `batch`, whole and durably.
    fn write(&self, batch: Batch) -> Result<(), MapError> {
        match (self, batch) {
            (Db::Rocks(db), Batch::Rocks(batch)) => {
                let mut options = WriteOptions::default();
                options.set_sync(true);
                Ok(db.write_opt(batch, &options)?)
            }
            (Db::Memory(rows), Batch::Memory(steps)) => {
                let mut rows = rows.write().unwrap_or_else(PoisonError::into_inner);
                for step in steps {
                    match step {
                        Step::Put(key, value) => drop(rows.insert(key, value)),
                        Step::Merge(key, operand) => {
                            let merged = merge(&key, rows.get(&key).map(Vec::as_slice), std::iter::once(&*operand));
                            drop(rows.insert(key, merged));
                        }
                        Step::Delete(key) => drop(rows.remove(&key)),
                        Step::DeleteRange(from, to) => rows.retain(|key, _| !(&from..&to).contains(&key)),
                    }
                }
                Ok(())
            }
            _ => unreachable!("a batch is written where it was begun"),
        }
    }
}

/// Changes on their way to a [`Db`], with RocksDB's words.
enum Batch {
    Rocks(WriteBatch),
    Memory(Vec<Step>),
}

enum Step {
    Put(Vec<u8>, Vec<u8>),
    Merge(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Batch {
    fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        match self {
            Batch::Rocks(batch) => batch.put(key, value),
            Batch::Memory(steps) => steps.push(Step::Put(key.as_ref().to_vec(), value.as_ref().to_vec())),
        }
    }

    /// Adds `operand` to the value of `key`, as [`merge`] does.
    fn merge(&mut self, key: Vec<u8>, operand: Vec<u8>) {
        match self {
            Batch::Rocks(batch) => batch.merge(key, operand),
            Batch::Memory(steps) => steps.push(Step::Merge(key, operand)),
        }
    }

    fn delete(&mut self, key: impl AsRef<[u8]>) {
        match self {
            Batch::Rocks(batch) => batch.delete(key),
            Batch::Memory(steps) => steps.push(Step::Delete(key.as_ref().to_vec())),
        }
    }

    /// Deletes the keys from `from` up to and without `to`.
    fn delete_range(&mut self, from: Vec<u8>, to: Vec<u8>) {
        match self {
            Batch::Rocks(batch) => batch.delete_range(from, to),
            Batch::Memory(steps) => steps.push(Step::DeleteRange(from, to)),
        }
    }
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
        let db = DB::open(&options(), directory)?;
        Ok(MapStore::of(directory.to_owned(), Db::Rocks(db)))
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
        let mut options = options();
        options.create_if_missing(false);
        let db = Db::Rocks(DB::open_for_read_only(&options, directory, false)?);
        Ok(MapStore::of(directory.to_owned(), db))
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
        match DB::open(&options(), &self.directory) {
            Ok(opened) => {
                *db = Some(Db::Rocks(opened));
                Ok(())
            }
            Err(error) => {
                *db = DB::open_for_read_only(&options(), &self.directory, false).ok().map(Db::Rocks);
                Err(error.into())
            }
        }
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

/// The value of a page with `operands`, each a value with entries, over it. What cannot be decoded stays as it is, so that
/// this page is found to be damaged when it is read, and not the whole store when it is compacted.
fn merge_page<'a>(page: Option<&[u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut merged = page.unwrap_or_default().to_vec();
    for operand in operands {
        match merge_values(&merged, operand) {
            Ok(value) => merged = value,
            Err(error) => {
                tracing::error!(%error, "a page of the map cannot be merged with what changed in it");
                return if Page::decode_base(&merged).is_ok() { operand.to_vec() } else { merged };
            }
        }
    }
    merged
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

/// As [`merge_page`], for the value of a sheaf. What comes out of something damaged is damaged.
fn merge_sheaf<'a>(value: Option<&'a [u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut merged: Option<Sheaf> = None;
    for next in value.into_iter().chain(operands) {
        match Sheaf::decode(next) {
            Ok(newer) => {
                merged = Some(match merged {
                    None => newer,
                    Some(older) => older.merge(newer),
                });
            }
            Err(error) => {
                tracing::error!(%error, "a sheaf of the map cannot be merged with what changed in it");
                return next.to_vec();
            }
        }
    }
    merged.unwrap_or_default().encode().unwrap_or_else(|| {
        tracing::error!("a page in a sheaf of the map has more entries than it may have");
        Vec::new()
    })
}

/// What RocksDB calls for whatever is merged.
fn merge<'a>(key: &[u8], value: Option<&'a [u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    match key.first() {
        Some(&TABLE_SHEAF) => merge_sheaf(value, operands),
        _ => merge_page(value, operands),
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_merge_operator_associative(MERGE_NAME, |key, page, operands| Some(merge(key, page, operands.iter())));
    options.set_max_successive_merges(MERGE_OPERANDS_MAX);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_wal_bytes_per_sync(1 << 20);
    options.set_max_total_wal_size(64 << 20);
    // A recycled log needs no journal commit per sync (measured: +45 % of synced writes).
    options.set_recycle_log_file_num(2);
    options.set_paranoid_checks(true);
    options.set_keep_log_file_num(2);
    options.set_max_open_files(128);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    options.set_block_based_table_factory(&table);
    options
}

/// Table (1), volume (8), and what the table adds; big-endian, so that keys sort as numbers do.
fn key(table: u8, volume: VolumeId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(table);
    key.extend_from_slice(&volume.0.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

/// A key of a table that has rows per map: after the volume the snapshot (8), then a number.
fn map_key(table: u8, map: MapKey, number: Option<u32>) -> Vec<u8> {
    let mut key = key(table, map.volume, &map.snapshot.0.to_be_bytes());
    key.extend(number.into_iter().flat_map(u32::to_be_bytes));
    key
}

/// Aliases are counted by segment, whatever the volume.
fn aliases_key(segment: u32) -> Vec<u8> {
    key(TABLE_ALIASES, VolumeId(0), &segment.to_be_bytes())
}

fn layer_key(volume: VolumeId, layer: u64, chunk: Option<u32>) -> Vec<u8> {
    let mut key = key(TABLE_LAYER, volume, &layer.to_be_bytes());
    key.extend(chunk.into_iter().flat_map(u32::to_be_bytes));
    key
}

#[cfg(test)]
mod tests;
