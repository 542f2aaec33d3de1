//! Looking at a node's stored data offline: what its log, map, segments and volumes are, and what of it is damaged.
//!
//! Strictly read-only: RocksDB is opened to read, files are opened to read, nothing is made. A directory that a node has
//! locked is refused (what is being written to cannot be told from what is damaged); while one is looked at, a shared
//! lock keeps nodes from starting on it. Everything is read with the decoders that the node itself uses. Damage is
//! collected, not fatal: the rest is still shown. All figures are those of the last checkpoint, except for the log's.

pub mod log;
pub mod map;
pub mod segments;
pub mod volume;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use client_lib::VolumeId;
use rustix::fs::{FlockOperation, flock};

use crate::data_dir;
use crate::log::{ColdEnd, Entry, LogPosition};
use crate::map::store::{FORMAT_FILE, MapError, MapStore, StoredVolume, format_of};
use crate::shard::{decode_cold_end, decode_position};
use crate::stores::{self, StoresError};

/// What the name of a shard's directory begins with.
const SHARD_PREFIX: &str = "shard-";
/// What a shard's format file begins with; a node's differs.
const SHARD_MARKER: &str = "heliotrope-shard";
/// Most of the nodes' directories that an error names.
const NAMED_MAX: usize = 5;

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Neither a node's data directory nor a shard's.
    #[error("{} is not a data directory: it has no {FORMAT_FILE} file{hint}", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// What to do, where that can be told.
        hint: String,
    },
    /// A node's data directory of another format, or somebody else's.
    #[error(transparent)]
    Directory(#[from] client_lib::Error),
    /// A node runs on it.
    #[error("{} is in use by process {holder}: stop that node first, or inspect a copy of the directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as it wrote itself down.
        holder: String,
    },
    /// The list of a node's stores.
    #[error(transparent)]
    Stores(#[from] StoresError),
    /// The map cannot be opened or read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No shard here has the volume.
    #[error("volume {0} is not here; `helio inspect volume DIR` lists those that are")]
    NoVolume(VolumeId),
}

/// A directory that is being looked at.
#[derive(Debug)]
pub struct Inspected {
    /// Its shards, by name.
    pub shards: Vec<Shard>,
    /// Shards that could not be opened, and why.
    pub damage: Vec<String>,
    /// Keeps nodes from starting here.
    _locks: Vec<File>,
}

/// A shard's stored data.
#[derive(Debug)]
pub struct Shard {
    /// The name of its directory.
    pub name: String,
    /// The position of the last checkpoint; `None` before the first.
    pub checkpoint: Option<LogPosition>,
    /// How far the cold segment being filled was in use then, where that is kept.
    pub(super) cold_end: Option<ColdEnd>,
    /// Where it is.
    pub(super) directory: PathBuf,
    pub(super) store: MapStore,
    /// What was found damaged on opening.
    pub(super) damage: Vec<String>,
}

impl Inspected {
    /// Opens a node's data directory or a shard's.
    ///
    /// # Errors
    /// When it is neither, in use, of another format, or when no shard in it can be read.
    pub fn open(path: &Path) -> Result<Inspected, InspectError> {
        let marker = path.join(FORMAT_FILE);
        let text = match std::fs::read_to_string(&marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InspectError::NotOurs { path: path.to_owned(), hint: hint(path) });
            }
            Err(source) => return Err(InspectError::File { path: marker, source }),
        };
        let (locks, directories) = if text.starts_with(SHARD_MARKER) {
            // A store has a lock of its own, wherever it is; those of earlier versions only that of the node around them.
            let node = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
            let node = node.filter(|node| node.join(FORMAT_FILE).exists());
            let locks = [hold(path)?, node.map(|node| hold(&node)).transpose()?.flatten()];
            (locks.into_iter().flatten().collect(), vec![path.to_owned()])
        } else {
            data_dir::check(path)?;
            let mut locks: Vec<File> = hold(path)?.into_iter().collect();
            let mut directories = shard_directories(path)?;
            for store in stores::elsewhere(path, &directories)? {
                // Those that are missing are `helio node disk list`'s.
                if store.join(FORMAT_FILE).exists() {
                    locks.extend(hold(&store)?);
                    directories.push(store);
                }
            }
            (locks, directories)
        };
        let mut inspected = Inspected { shards: Vec::new(), damage: Vec::new(), _locks: locks };
        let mut failure = None;
        for directory in directories {
            match Shard::open(&directory) {
                Ok(shard) => inspected.shards.push(shard),
                Err(error) => {
                    inspected.damage.push(format!("{}: {error}", directory.display()));
                    failure = failure.or(Some(error));
                }
            }
        }
        match failure {
            Some(error) if inspected.shards.is_empty() => Err(error),
            _ => Ok(inspected),
        }
    }
}

impl Shard {
    pub(crate) fn open(directory: &Path) -> Result<Shard, InspectError> {
        if format_of(directory)?.is_none() {
            return Err(InspectError::NotOurs { path: directory.to_owned(), hint: String::new() });
        }
        let store = MapStore::open_read_only(&directory.join("map"))?;
        let mut damage = Vec::new();
        let checkpoint = match store.position()?.map(|bytes| decode_position(&bytes)).transpose() {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                damage.push(error.to_string());
                None
            }
        };
        let cold_end = match store.cold_end()?.map(|bytes| decode_cold_end(&bytes)).transpose() {
            Ok(cold_end) => cold_end,
            Err(error) => {
                damage.push(error.to_string());
                None
            }
        };
        let canonical = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name = canonical.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Shard { name, checkpoint, cold_end, directory: directory.to_owned(), store, damage })
    }

    /// Every volume in it: those of the last checkpoint, and what the log behind it says.
    ///
    /// # Errors
    /// When map or log cannot be read.
    pub fn volume_ids(&self) -> Result<BTreeSet<VolumeId>, InspectError> {
        let mut ids: BTreeSet<VolumeId> = self.volumes()?.into_iter().map(|(id, _)| id).collect();
        let first = self.checkpoint.map_or(0, |checkpoint| checkpoint.sequence);
        let files = log::files(self, &mut Vec::new())?;
        log::walk(&files, self.checkpoint, log::Data::Skipped, &mut |record| {
            for entry in record.entries.iter().filter(|_| record.at.sequence >= first) {
                match entry {
                    Entry::Opened { volume, .. } | Entry::Cloned { volume, .. } => drop(ids.insert(*volume)),
                    Entry::Deleted { volume } => drop(ids.remove(volume)),
                    _ => {}
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(ids)
    }

    /// The values of its volumes, still encoded.
    fn volumes(&self) -> Result<Vec<(VolumeId, StoredVolume)>, InspectError> {
        Ok(self.store.volumes()?)
    }
}

/// Takes a shared lock, which a running node's excludes.
fn hold(path: &Path) -> Result<Option<File>, InspectError> {
    let lock = path.join("lock");
    let mut file = match File::open(&lock) {
        Ok(file) => file,
        // A copy may come without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(InspectError::File { path: lock, source }),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Without a readable number the message is only less helpful.
            let _ = file.read_to_string(&mut holder);
            Err(InspectError::InUse { path: path.to_owned(), holder: holder.trim().to_owned() })
        }
        Err(error) => Err(InspectError::File { path: lock, source: error.into() }),
    }
}

fn shard_directories(path: &Path) -> Result<Vec<PathBuf>, InspectError> {
    let mut found = directories(path)?;
    found
        .retain(|directory| directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SHARD_PREFIX)));
    Ok(found)
}

/// The directories in `path`, by name.
fn directories(path: &Path) -> Result<Vec<PathBuf>, InspectError> {
    let failed = |source| InspectError::File { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// What somebody may have meant who named `path`.
fn hint(path: &Path) -> String {
    let nodes: Vec<String> = directories(path)
        .unwrap_or_default()
        .into_iter()
        .filter(|directory| directory.join(FORMAT_FILE).exists())
        .take(NAMED_MAX)
        .map(|directory| directory.display().to_string())
        .collect();
    match nodes.is_empty() {
        true => "; name the directory of a node, the `data` of its settings".to_owned(),
        false => format!(", but directories in it have: name one of {}", nodes.join(", ")),
    }
}
