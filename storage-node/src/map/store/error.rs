//! What can go wrong with the map on disk.

use std::path::PathBuf;

use client_lib::{Lsn, VolumeId};

use super::format::{FORMAT_OLDEST, FORMAT_VERSION, FORMAT_WORD};
use crate::map::page::PageError;

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
