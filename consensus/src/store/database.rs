//! The only user of RocksDB in this crate: keys, values, syncs. A simulated machine has a [`MetaDisk`] instead.
//!
//! Keys start with the group id, big-endian, so that groups lie apart and entries in order. A value is a version
//! byte, a CRC-32 of the rest, and postcard bytes; anything else is an error that names the key. One thread
//! syncs, for all who wait at that moment, in the order they came.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use client_lib::GroupId;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, IteratorMode, Options, WriteBatch,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::memory::{MetaDisk, Step, Waiter};

use super::state_machine::{State4, State5, State6, State7, State8, State9, take_over};

/// The version of every value.
const VALUE_VERSION: u8 = 1;
/// The version of the database's layout and of the state in it. Others but [`FORMAT_10`] down to [`FORMAT_4`] are refused;
/// those below were of development versions only.
pub const FORMAT: u64 = 11;
/// What is taken over when it is found: nothing is said in it of owners that have stepped down.
pub(super) const FORMAT_10: u64 = 10;
/// The same, and the state is one value in it.
pub(super) const FORMAT_9: u64 = 9;
/// The same, and nothing is said in it of places, of what clients may do, and of keys.
pub(super) const FORMAT_8: u64 = 8;
/// The same, and nobody was removed or revoked in it.
pub(super) const FORMAT_7: u64 = 7;
/// The same, and nothing is enclosed in it.
pub(super) const FORMAT_6: u64 = 6;
/// The same, and it has no groups of volumes, and its snapshots are of one volume each.
pub(super) const FORMAT_5: u64 = 5;
/// The same, and its volumes have no policies of propagation and do not go anywhere by a write, and links no limits.
pub(super) const FORMAT_4: u64 = 4;
/// Write-ahead logs kept for recycling: overwriting blocks needs no change of the file's size in the journal, and a
/// sync is a third faster for it (measured, see shared figures in docs/decisions/0002).
const RECYCLED_LOGS: usize = 4;
/// Bytes of write-ahead log before the oldest column family is flushed.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// What a column family holds in memory before it is written out. RocksDB's default is 64 MiB each, which a node without much else to do
/// grows into in the end; metadata is written at a few kilobytes per second. A write-ahead log is preallocated by the largest of these.
const WRITE_BUFFER_BYTES: usize = 4 << 20;

/// Column family of log entries, keyed by index.
pub(super) const LOG: &str = "log";
/// Column family of vote, committed and purged positions.
pub(super) const RAFT: &str = "raft";
/// Column family of applied state and snapshots.
pub(super) const META: &str = "meta";

/// Where a metadata store is.
#[derive(Clone, Debug)]
pub enum MetaPlace {
    /// In this directory; made when missing.
    Directory(PathBuf),
    /// On the disk of a simulated machine.
    Simulated(MetaDisk),
}

impl From<PathBuf> for MetaPlace {
    fn from(directory: PathBuf) -> MetaPlace {
        MetaPlace::Directory(directory)
    }
}

/// The database of one group. Cheap to clone.
#[derive(Clone)]
pub(super) struct Database {
    rows: Rows,
    group: GroupId,
    place: String,
}

/// What holds the keys and values, and who syncs them.
#[derive(Clone)]
enum Rows {
    /// Without a syncer it is there to be read.
    Rocks(Arc<Opened>, Option<Arc<Syncer>>),
    Simulated(MetaDisk, UnboundedSender<Waiter>),
}

/// RocksDB's own. Its fields are dropped in this order.
struct Opened {
    db: DB,
    is_written: bool,
    /// Tells that it is closed.
    open: watch::Sender<()>,
}

impl Opened {
    fn new(db: DB, is_written: bool) -> Arc<Opened> {
        Arc::new(Opened { db, is_written, open: watch::Sender::new(()) })
    }
}

impl Drop for Opened {
    /// Writes out what is in memory: whoever opens it next has nothing to do again. What is acked is in the write-ahead log all the same.
    fn drop(&mut self) {
        let families = if self.is_written { &[LOG, RAFT, META][..] } else { &[] };
        for family in families {
            if let Err(error) = self.db.flush_cf(in_db(&self.db, family)) {
                return tracing::warn!(%error, "the metadata store is not written out; the next start does that");
            }
        }
    }
}

impl Deref for Opened {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

/// The sync thread; ends, and lets go of the database, when the last [`Database`] is dropped.
struct Syncer {
    waiters: Option<Sender<Waiter>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.waiters = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Database {
    pub(super) fn open(place: &MetaPlace, group: GroupId) -> io::Result<Database> {
        let (rows, place) = match place {
            MetaPlace::Directory(directory) => (open_rocks(directory)?, directory.display().to_string()),
            MetaPlace::Simulated(disk) => (Rows::Simulated(disk.clone(), disk.syncer()), "(simulated)".to_owned()),
        };
        let database = Database { rows, group, place };
        match database.get::<u64>(RAFT, b"format")? {
            None => database.put(RAFT, b"format", &FORMAT)?,
            Some(FORMAT) => {}
            // Its records are read as they are, and its snapshot, too.
            Some(FORMAT_10) => database.put(RAFT, b"format", &FORMAT)?,
            Some(FORMAT_9) => take_over::<State9>(&database)?,
            Some(FORMAT_8) => take_over::<State8>(&database)?,
            Some(FORMAT_7) => take_over::<State7>(&database)?,
            Some(FORMAT_6) => take_over::<State6>(&database)?,
            Some(FORMAT_5) => take_over::<State5>(&database)?,
            Some(FORMAT_4) => take_over::<State4>(&database)?,
            Some(found) => {
                let what = if found > FORMAT { "use the newer program" } else { "a development version wrote it" };
                return Err(io::Error::other(format!(
                    "the metadata store {} has format {found}, this program reads {FORMAT}: {what}",
                    database.place
                )));
            }
        }
        Ok(database)
    }

    /// The database in `directory`, which nobody has open, to be read: nothing in it is changed. And its format; `None` when nothing was
    /// ever written to it.
    pub(super) fn open_to_read(directory: &Path, group: GroupId) -> io::Result<(Database, Option<u64>)> {
        let families = [LOG, RAFT, META];
        let db = DB::open_cf_for_read_only(&Options::default(), directory, families, false).map_err(|error| {
            io::Error::other(format!("the metadata store {} cannot be read: {error}", directory.display()))
        })?;
        let database =
            Database { rows: Rows::Rocks(Opened::new(db, false), None), group, place: directory.display().to_string() };
        let format = database.get(RAFT, b"format")?;
        Ok((database, format))
    }

    /// Lets go of the database, and waits until everybody else has and it is closed.
    pub(super) async fn close(self) {
        let Rows::Rocks(opened, _) = &self.rows else { return };
        let mut open = opened.open.subscribe();
        drop(self);
        // Nothing is ever sent: it ends with the sender.
        let _ = open.changed().await;
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn key(&self, name: &[u8]) -> Vec<u8> {
        [&self.group.0.to_be_bytes()[..], name].concat()
    }

    /// Reads a value.
    pub(super) fn get<T: DeserializeOwned>(&self, family: &'static str, name: &[u8]) -> io::Result<Option<T>> {
        let read = |value: &[u8]| decode(family, name, value);
        let value = match &self.rows {
            Rows::Rocks(db, _) => {
                db.get_cf(in_db(db, family), self.key(name)).map_err(io::Error::other)?.map(|value| read(&value))
            }
            Rows::Simulated(disk, _) => disk.get(family, self.key(name), read),
        };
        value.transpose()
    }

    /// Writes a value, not synced.
    pub(super) fn put<T: Serialize>(&self, family: &'static str, name: &[u8], value: &T) -> io::Result<()> {
        let mut batch = self.batch();
        batch.put(family, name, value)?;
        batch.write()
    }

    /// Starts a batch.
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { database: self, steps: Vec::new() }
    }

    /// The values of a family whose names lie in `from..to`, in order.
    pub(super) fn range<T: DeserializeOwned>(
        &self,
        family: &'static str,
        from: &[u8],
        to: &[u8],
    ) -> io::Result<Vec<T>> {
        let (start, end) = (self.key(from), self.key(to));
        let read = |key: &[u8], value: &[u8]| decode(family, &key[size_of::<u64>()..], value);
        match &self.rows {
            Rows::Rocks(db, _) => {
                let mut values = Vec::new();
                let from = IteratorMode::From(&start, rocksdb::Direction::Forward);
                for item in db.iterator_cf(in_db(db, family), from) {
                    let (key, value) = item.map_err(io::Error::other)?;
                    if *key >= *end {
                        break;
                    }
                    values.push(read(&key, &value)?);
                }
                Ok(values)
            }
            Rows::Simulated(disk, _) => {
                disk.range(family, start, end).iter().map(|(key, value)| read(key, value)).collect()
            }
        }
    }

    /// The last value of a family.
    pub(super) fn last<T: DeserializeOwned>(&self, family: &'static str) -> io::Result<Option<T>> {
        let prefix = self.group.0.to_be_bytes();
        let end = self.key(&[0xff; 16]);
        let last = match &self.rows {
            Rows::Rocks(db, _) => {
                let from = IteratorMode::From(&end, rocksdb::Direction::Reverse);
                let last = db.iterator_cf(in_db(db, family), from).next().transpose().map_err(io::Error::other)?;
                last.map(|(key, value)| (key.into_vec(), value.into_vec()))
            }
            Rows::Simulated(disk, _) => disk.last(family, end),
        };
        match last {
            Some((key, value)) if key.starts_with(&prefix) => decode(family, &key[prefix.len()..], &value).map(Some),
            _ => Ok(None),
        }
    }

    /// Calls `waiter` when everything written before is on stable storage. In order of the calls.
    pub(super) fn when_synced(&self, waiter: impl FnOnce(io::Result<()>) + Send + 'static) -> io::Result<()> {
        let waiter: Waiter = Box::new(waiter);
        let is_taken = match &self.rows {
            Rows::Rocks(_, syncer) => {
                let waiters = syncer.as_ref().and_then(|syncer| syncer.waiters.as_ref());
                waiters.is_some_and(|waiters| waiters.send(waiter).is_ok())
            }
            Rows::Simulated(_, syncer) => syncer.send(waiter).is_ok(),
        };
        if is_taken { Ok(()) } else { Err(io::Error::other("what syncs has ended")) }
    }

    /// Waits until everything written before is on stable storage.
    pub(super) async fn synced(&self) -> io::Result<()> {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.when_synced(move |result| {
            // Whoever stopped waiting does not need to know.
            let _ = done.send(result);
        })?;
        wait.await.map_err(|_| io::Error::other("the sync thread has ended"))?
    }
}

fn open_rocks(directory: &Path) -> io::Result<Rows> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_recycle_log_file_num(RECYCLED_LOGS);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    let mut family = Options::default();
    family.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // The default family holds nothing, and is opened in any case: with a large buffer if it is not named.
    let families =
        [DEFAULT_COLUMN_FAMILY_NAME, LOG, RAFT, META].map(|name| ColumnFamilyDescriptor::new(name, family.clone()));
    let db = DB::open_cf_descriptors(&options, directory, families).map_err(|error| {
        io::Error::other(format!("the metadata store {} cannot be opened: {error}", directory.display()))
    })?;
    let db = Opened::new(db, true);
    let (sender, waiters) = channel();
    let syncing = db.clone();
    let thread =
        std::thread::Builder::new().name("helio-meta-sync".into()).spawn(move || sync_for(&syncing, &waiters))?;
    let syncer = Syncer { waiters: Some(sender), thread: Some(thread) };
    Ok(Rows::Rocks(db, Some(Arc::new(syncer))))
}

/// One sync for all who wait. After a failed one nothing is ever reported synced again.
fn sync_for(db: &DB, waiters: &Receiver<Waiter>) {
    let mut failed: Option<String> = None;
    while let Ok(first) = waiters.recv() {
        let all: Vec<Waiter> = std::iter::once(first).chain(waiters.try_iter()).collect();
        if failed.is_none()
            && let Err(error) = db.flush_wal(true)
        {
            tracing::error!(%error, "the metadata log cannot be synced: restart the node after the cause is removed");
            failed = Some(error.to_string());
        }
        for waiter in all {
            waiter(failed.as_ref().map_or(Ok(()), |reason| Err(io::Error::other(reason.clone()))));
        }
    }
}

/// Writes that happen together or not at all.
pub(super) struct Batch<'a> {
    database: &'a Database,
    steps: Vec<Step>,
}

impl Batch<'_> {
    /// Puts a value at a name.
    pub(super) fn put<T: Serialize>(&mut self, family: &'static str, name: &[u8], value: &T) -> io::Result<&mut Self> {
        self.steps.push(Step::Put(family, self.database.key(name), encode(value)?));
        Ok(self)
    }

    /// Deletes a name, if it is there.
    pub(super) fn delete(&mut self, family: &'static str, name: &[u8]) -> &mut Self {
        self.steps.push(Step::Delete(family, self.database.key(name)));
        self
    }

    /// Deletes the names in `from..to`.
    pub(super) fn delete_range(&mut self, family: &'static str, from: &[u8], to: &[u8]) -> &mut Self {
        self.steps.push(Step::DeleteRange(family, self.database.key(from), self.database.key(to)));
        self
    }

    /// Writes the batch, not synced.
    pub(super) fn write(self) -> io::Result<()> {
        match &self.database.rows {
            Rows::Rocks(db, _) => {
                let mut batch = WriteBatch::default();
                for step in &self.steps {
                    match step {
                        Step::Put(family, key, value) => batch.put_cf(in_db(db, family), key, value),
                        Step::Delete(family, key) => batch.delete_cf(in_db(db, family), key),
                        Step::DeleteRange(family, from, to) => batch.delete_range_cf(in_db(db, family), from, to),
                    }
                }
                db.write(batch).map_err(io::Error::other)
            }
            Rows::Simulated(disk, _) => {
                disk.write(self.steps);
                Ok(())
            }
        }
    }
}

fn in_db<'a>(db: &'a DB, family: &str) -> &'a ColumnFamily {
    db.cf_handle(family).expect("opened with every column family")
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(5 + body.len());
    bytes.push(VALUE_VERSION);
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(family: &str, name: &[u8], bytes: &[u8]) -> io::Result<T> {
    let corrupt = |reason: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("metadata {family}/{} is corrupt: {reason}", name.escape_ascii()),
        )
    };
    let (version, rest) = bytes.split_first().ok_or_else(|| corrupt("it is empty".into()))?;
    if *version != VALUE_VERSION {
        return Err(corrupt(format!("it has version {version}, this program reads {VALUE_VERSION}")));
    }
    let (checksum, body) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short".into()))?;
    let found = crc32fast::hash(body);
    if found != u32::from_le_bytes(*checksum) {
        return Err(corrupt(format!("checksum {found:08x}, expected {:08x}", u32::from_le_bytes(*checksum))));
    }
    postcard::from_bytes(body).map_err(|error| corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// The default family had RocksDB's own buffer of 64 MiB, and each write-ahead log as much space of a disk that may be full.
    #[test]
    fn an_empty_store_takes_little_of_the_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        let Rows::Rocks(db, _syncer) = open_rocks(&directory.path().join("meta")).expect("opens") else {
            unreachable!("it was opened as one")
        };
        // Space is asked for with the first record.
        db.put_cf(in_db(&db, META), "name", "value").expect("is written");
        let files = std::fs::read_dir(directory.path().join("meta")).expect("is listed");
        let blocks = files.map(|file| file.expect("is listed").metadata().expect("is there").blocks()).sum::<u64>();
        assert!(blocks * 512 < 16 << 20, "{} KiB", blocks / 2);
    }

    /// A node that had been stopped left its metadata store as a killed one does, and the next start carried out the write-ahead log again.
    #[tokio::test]
    async fn a_store_that_was_closed_has_nothing_to_do_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = MetaPlace::Directory(directory.path().join("meta"));
        let database = Database::open(&place, GroupId::META).expect("opens");
        [LOG, RAFT, META].iter().for_each(|family| database.put(family, b"name", &7u64).expect("is written"));
        let other = database.clone();
        let closed = tokio::spawn(database.close());
        other.put(META, b"late", &8u64).expect("whoever still has it may write");
        drop(other);
        closed.await.expect("is closed");
        let (database, _) = Database::open_to_read(&directory.path().join("meta"), GroupId::META).expect("opens");
        let Rows::Rocks(db, _) = &database.rows else { unreachable!("it was opened as one") };
        for family in [LOG, RAFT, META] {
            let again = db.property_int_value_cf(in_db(db, family), "rocksdb.num-entries-active-mem-table");
            assert_eq!(again.expect("tells"), Some(0), "{family}");
            assert_eq!(database.get::<u64>(family, b"name").expect("is read"), Some(7));
        }
        assert_eq!(database.get::<u64>(META, b"late").expect("is read"), Some(8));
    }

    #[test]
    fn a_flipped_byte_is_reported_with_its_place() {
        let mut bytes = encode(&"value".to_owned()).expect("encodes");
        assert_eq!(decode::<String>(RAFT, b"vote", &bytes).expect("decodes"), "value");
        bytes[7] ^= 1;
        let error = decode::<String>(RAFT, b"vote", &bytes).expect_err("flipped");
        assert!(error.to_string().contains("raft/vote"), "{error}");
        assert!(decode::<String>(RAFT, b"vote", &[]).is_err());
        assert!(decode::<String>(RAFT, b"vote", &[9, 0, 0, 0, 0]).is_err());
    }
}
