//! The files of an engine's directory, for the engines that have a real one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::buffer::AlignedBuffer;
use super::{FileId, is_loss};

/// Chunk in which a new file is written through with zeroes: a mebibyte, large enough for full bandwidth.
const ZERO_CHUNK: usize = 1 << 20;

/// Mode of a file with data of volumes: nobody else's, whatever the umask is and whoever may enter its directory.
const MODE: u32 = 0o600;

/// A directory and what is open in it; ids are never used again.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    open: BTreeMap<FileId, Arc<File>>,
    next: u32,
}

impl Files {
    pub(super) fn new(directory: &Path) -> Files {
        Files { directory: directory.to_owned(), open: BTreeMap::new(), next: 0 }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files with their sizes, sorted; half-made files of an earlier process are removed.
    pub(super) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(".tmp") {
                std::fs::remove_file(entry.path())?;
            } else {
                let size = match entry.metadata() {
                    Err(error) if is_loss(&error) => 0,
                    metadata => metadata?.len(),
                };
                files.push((name, size));
            }
        }
        files.sort();
        Ok(files)
    }

    pub(super) fn open(&mut self, name: &str) -> io::Result<FileId> {
        let file = Arc::new(open_direct(&self.directory.join(name))?);
        let id = FileId(self.next);
        self.next += 1;
        self.open.insert(id, file);
        Ok(id)
    }

    pub(super) fn get(&self, id: FileId) -> &Arc<File> {
        self.open.get(&id).expect("the shard uses only files it has open")
    }

    pub(super) fn remove(&mut self, name: &str, file: Option<FileId>) -> io::Result<()> {
        if let Some(file) = file {
            self.open.remove(&file);
        }
        std::fs::remove_file(self.directory.join(name))
    }

    /// What is free on the file system, as [`IoEngine::free_bytes`](super::IoEngine::free_bytes) says.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.directory)?;
        // File systems that have no sizes to tell (some over FUSE) say zero to everything, statfs(2).
        let tells = space.f_blocks > 0;
        Ok(if tells { space.f_bavail.saturating_mul(space.f_frsize) } else { u64::MAX })
    }
}

/// Makes a file whose every block has been written, so that overwriting it later changes no metadata. It
/// appears under its name only when it is complete and synced.
pub(super) fn create_zeroed(directory: &Path, name: &str, size: u64) -> io::Result<()> {
    let (temporary, path) = (directory.join(format!("{name}.tmp")), directory.join(name));
    let made = (|| {
        // One that an earlier attempt has left has that one's mode.
        client_lib::files::remove(&temporary)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&temporary)?;
        // First ask for the space: a full file system says so before a byte is written.
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        // Past the page cache: what it kept of the file would have to be dropped by every first write to a part of it.
        let file = open_as_it_can(&temporary)?.0;
        let zeroes = AlignedBuffer::zeroed(ZERO_CHUNK.min(size as usize));
        let mut offset = 0;
        while offset < size {
            let chunk = (size - offset).min(zeroes.len() as u64);
            file.write_all_at(&zeroes[..chunk as usize], offset)?;
            offset += chunk;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    })();
    if made.is_err() {
        // What is left of the attempt must not hold space; that it cannot be removed changes nothing for the caller.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

/// Opens a file for direct I/O, or through the page cache where the file system knows no direct I/O (tmpfs).
fn open_direct(path: &Path) -> io::Result<File> {
    let (file, is_direct) = open_as_it_can(path)?;
    if !is_direct {
        tracing::warn!(path = %path.display(), "the file system offers no direct I/O: reads and writes go through the page cache");
    }
    Ok(file)
}

/// As [`open_direct`]; says which it is.
fn open_as_it_can(path: &Path) -> io::Result<(File, bool)> {
    let open = |flags: OFlags| OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path);
    match open(OFlags::DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok((open(OFlags::empty())?, false)),
        opened => Ok((opened?, true)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Every user of a machine could read the blocks of every volume: a store that is not in the data directory had the modes that the umask left, which
    /// is mostly 0755 and 0644.
    #[test]
    fn a_segment_is_nobody_elses() {
        let directory = tempfile::tempdir().expect("a directory");
        // What is left of an attempt of an older program.
        std::fs::write(directory.path().join("1.seg.tmp"), "").expect("is left");
        for name in ["1.seg", "2.seg"] {
            create_zeroed(directory.path(), name, 4096).expect("is made");
            let mode = std::fs::metadata(directory.path().join(name)).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
