//! The format of a shard's directory, named in a file beside segments and map, and checked before anything else is touched.

use std::path::Path;

use client_lib::files;

use super::MapError;
use crate::data_dir::make_private;

/// The version of the shard directory as a whole: layout, keys and values.
pub const FORMAT_VERSION: u32 = 7;

/// The oldest that is read, and made one of [`FORMAT_VERSION`] by that: 6 does not say how many
/// entries a manifest came in, 5 knows nothing of nodes that come back by what differs, 4 has no sheaves yet, 2 no merge operands either, and what they have is read as it is.
pub const FORMAT_OLDEST: u32 = 2;

/// The file beside segments and map that names the version. Checked before anything else is touched.
pub const FORMAT_FILE: &str = "FORMAT";

/// What the file starts with.
pub(super) const FORMAT_WORD: &str = "heliotrope-shard";

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

/// Creates or checks the shard's directory before anything in it is opened. From then on it is of [`FORMAT_VERSION`], and nobody else may enter it.
///
/// # Errors
/// `NewerFormat`, `OlderFormat` and `NoFormat` leave the directory as it is.
pub fn prepare_directory(directory: &Path) -> Result<(), MapError> {
    let format = format_of(directory)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| MapError::File { path, source }
    };
    // Everything below it, the map's files included, whose modes are RocksDB's, is behind this.
    make_private(directory).map_err(failed(directory))?;
    if format == Some(FORMAT_VERSION) {
        return Ok(());
    }
    let path = directory.join(FORMAT_FILE);
    let text = format!("{FORMAT_WORD} {FORMAT_VERSION}\n");
    files::replace(&path, text.as_bytes(), files::PUBLIC).map_err(failed(&path))
}
