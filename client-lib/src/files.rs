//! Small files that are replaced whole: configuration, keys, markers. What is written often, or is large, has a format of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Mode of a file that all may read.
pub const PUBLIC: u32 = 0o644;
/// Mode of a file that holds a secret.
pub const PRIVATE: u32 = 0o600;

/// Makes `bytes` what the file at `path` holds. It is written beside it, as `.NAME.new`, in its final mode (less the umask), so that a secret is
/// never readable by others.
///
/// # Durability
/// The file and its directory are synced on return. A crash leaves the old file or the new one, and perhaps the one beside it, which
/// the next call replaces.
///
/// # Errors
/// What the system says; the old file is as it was, unless only its directory could not be synced.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let aside = aside(path)?;
    remove(&aside)?;
    let written = write_synced(&aside, bytes, mode).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // Half a file on a full disk; that it cannot be removed changes nothing for the caller.
        let _ = fs::remove_file(&aside);
    }
    written?;
    let directory = path.parent().filter(|directory| *directory != Path::new("")).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Removes a file, if there is one. Syncs nothing: after a crash it may be there again.
///
/// # Errors
/// What the system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where [`replace`] writes a file before it takes its place.
fn aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no file name"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_whatever_an_earlier_attempt_has_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key.pem");
        fs::write(directory.path().join(".key.pem.new"), "half, and readable by al").expect("is left");
        for text in ["one", "another"] {
            replace(&path, text.as_bytes(), PRIVATE).expect("is written");
            assert_eq!(fs::read_to_string(&path).expect("reads"), text);
            assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, PRIVATE);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("is listed").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("is made");
        replace(&path, b"one", PUBLIC).expect_err("a directory has its name");
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).expect("is listed").count(), 1);
        let error = replace(Path::new("/"), b"one", PUBLIC).expect_err("it is none");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
