//! What holds the map's keys and values: RocksDB, or memory for a simulated disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use super::MapError;
use super::merging::merge;

/// What RocksDB knows the merge by: another name for another meaning of the operands.
const MERGE_NAME: &str = "heliotrope.page-entries.1";

/// Operands of a page in the write buffer from which on the next is merged with them at once: whoever reads the page merges
/// them every time.
const MERGE_OPERANDS_MAX: usize = 16;

/// Memory for RocksDB's own blocks; the pages are cached above it.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// A write buffer; two of them at most.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

/// What holds the keys and values.
pub(super) enum Db {
    Rocks(DB),
    /// For simulated disks: every commit is durable at once, as a synced batch is.
    Memory(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>),
}

impl Db {
    /// Opens or creates RocksDB in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Db, MapError> {
        Ok(Db::Rocks(DB::open(&options(), directory)?))
    }

    /// Opens it to look at: nothing in it is changed.
    pub(super) fn open_read_only(directory: &Path) -> Result<Db, MapError> {
        let mut options = options();
        options.create_if_missing(false);
        Ok(Db::Rocks(DB::open_for_read_only(&options, directory, false)?))
    }

    /// Writes out what is in memory, so that opening it next carries nothing out again. Every batch is durable without that.
    pub(super) fn write_out(&self) -> Result<(), MapError> {
        match self {
            Db::Rocks(db) => Ok(db.flush()?),
            Db::Memory(_) => Ok(()),
        }
    }

    /// How many keys and values are in memory alone, or in the log.
    #[cfg(test)]
    pub(super) fn unwritten(&self) -> u64 {
        let Db::Rocks(db) = self else { return 0 };
        db.property_int_value("rocksdb.num-entries-active-mem-table").expect("tells").expect("has a number")
    }

    /// Hands the value of `key`, if there is one, to `f`.
    pub(super) fn get<T>(&self, key: &[u8], f: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, MapError> {
        Ok(match self {
            Db::Rocks(db) => db.get_pinned(key)?.map(|value| f(&value)),
            Db::Memory(rows) => rows.read().unwrap_or_else(PoisonError::into_inner).get(key).map(|value| f(value)),
        })
    }

    /// Hands every key from `prefix` on, with its value, to `f`, until that returns false or fails.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        mut f: impl FnMut(&[u8], &[u8]) -> Result<bool, MapError>,
    ) -> Result<(), MapError> {
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
    pub(super) fn batch(&self) -> Batch {
        match self {
            Db::Rocks(_) => Batch::Rocks(WriteBatch::default()),
            Db::Memory(_) => Batch::Memory(Vec::new()),
        }
    }

    /// Carries out `batch`, whole and durably.
    pub(super) fn write(&self, batch: Batch) -> Result<(), MapError> {
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
pub(super) enum Batch {
    Rocks(WriteBatch),
    Memory(Vec<Step>),
}

pub(super) enum Step {
    Put(Vec<u8>, Vec<u8>),
    Merge(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Batch {
    pub(super) fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        match self {
            Batch::Rocks(batch) => batch.put(key, value),
            Batch::Memory(steps) => steps.push(Step::Put(key.as_ref().to_vec(), value.as_ref().to_vec())),
        }
    }

    /// Adds `operand` to the value of `key`, as [`merge`] does.
    pub(super) fn merge(&mut self, key: Vec<u8>, operand: Vec<u8>) {
        match self {
            Batch::Rocks(batch) => batch.merge(key, operand),
            Batch::Memory(steps) => steps.push(Step::Merge(key, operand)),
        }
    }

    pub(super) fn delete(&mut self, key: impl AsRef<[u8]>) {
        match self {
            Batch::Rocks(batch) => batch.delete(key),
            Batch::Memory(steps) => steps.push(Step::Delete(key.as_ref().to_vec())),
        }
    }

    /// Deletes the keys from `from` up to and without `to`.
    pub(super) fn delete_range(&mut self, from: Vec<u8>, to: Vec<u8>) {
        match self {
            Batch::Rocks(batch) => batch.delete_range(from, to),
            Batch::Memory(steps) => steps.push(Step::DeleteRange(from, to)),
        }
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
