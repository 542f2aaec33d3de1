//! A data directory: ours, of a format we know, and used by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use client_lib::files;
use client_lib::pki::NodeIdentity;
use client_lib::{Error, ErrorKind};
use rustix::fs::{FlockOperation, flock};

/// The layout this program writes, and the only one it uses.
const FORMAT: u32 = 1;
/// What the marker says in front of the number.
const MARKER: &str = "heliotrope ";

/// What to do about an identity that cannot be read.
pub(crate) const IDENTITY_ADVICE: &str = "read it as the user as whom the node runs; if it is damaged or gone, put the copy of `identity/` back that was \
     kept of the data directory, or else remove the node and have its machine join as a new one (docs/membership.md, *A damaged identity*)";

/// A directory that this process holds locked.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Locked while it is open.
    _lock: File,
}

impl DataDir {
    /// Locks `path` for this process; makes it when it is not there or empty.
    ///
    /// # Errors
    /// `Busy`, naming the process, when another one uses it; `InvalidRequest` when it is not ours or of another
    /// format: nothing in it was touched then.
    pub fn open(path: &Path) -> Result<DataDir, Error> {
        let denied = |what: &str, error: io::Error| {
            Error::new(ErrorKind::InvalidRequest, format!("the data directory {} cannot be {what}", path.display()))
                .caused_by(error)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| denied("made", error))?;
        check(path)?;
        let lock = path.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(|error| denied("locked", error))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            // Without a readable number the message is only less helpful.
            let _ = file.read_to_string(&mut holder);
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the data directory {} is in use by process {}; stop that one first",
                    path.display(),
                    holder.trim()
                ),
            ));
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| denied("locked", error))?;
        let format = path.join("FORMAT");
        if std::fs::metadata(&format).map_or(true, |found| found.len() == 0) {
            let text = format!("{MARKER}{FORMAT}\n");
            files::replace(&format, text.as_bytes(), files::PUBLIC).map_err(|error| denied("marked", error))?;
        }
        Ok(DataDir { path: path.to_owned(), _lock: file })
    }

    /// Where a node's identity is, in its data directory.
    #[must_use]
    pub fn identity(path: &Path) -> PathBuf {
        path.join("identity")
    }

    /// The identity of the node that has this data directory.
    ///
    /// # Errors
    /// `Corrupt`, which names the file that is at fault, and what to do.
    pub fn load_identity(path: &Path) -> Result<NodeIdentity, Error> {
        NodeIdentity::load(&DataDir::identity(path)).map_err(unreadable)
    }

    /// The same for the process that holds the directory: it also goes on with a renewal that was broken off.
    ///
    /// # Errors
    /// As [`load_identity`](Self::load_identity).
    pub fn open_identity(path: &Path) -> Result<NodeIdentity, Error> {
        NodeIdentity::open(&DataDir::identity(path)).map_err(unreadable)
    }

    /// Where the cluster's authority is, in the data directory of the node that began the cluster.
    #[must_use]
    pub fn authority(path: &Path) -> PathBuf {
        path.join("authority")
    }

    /// Makes a directory that only this user may enter; nothing to do when it is there.
    ///
    /// # Errors
    /// `InvalidRequest`, with what the system said.
    pub fn private(path: &Path) -> Result<(), Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("{} cannot be made", path.display())).caused_by(error)
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes a data directory with everything in it; nothing to do when there is none.
    ///
    /// # Errors
    /// `InvalidRequest` when it is not ours, `Busy` when it is in use.
    pub fn wipe(path: &Path) -> Result<(), Error> {
        if !path.exists() {
            return Ok(());
        }
        let held = DataDir::open(path)?;
        std::fs::remove_dir_all(held.path()).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the data directory {} cannot be deleted", path.display()))
                .caused_by(error)
        })
    }
}

fn unreadable(error: client_lib::pki::PkiError) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the node's identity cannot be read: {error}; {IDENTITY_ADVICE}"))
}

/// Makes a directory that holds data of volumes, wherever it is: only this user may enter it. One that is there and that others may enter is closed to
/// them, and it is told; where that cannot be done, it is told as well, and used all the same.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let (directory, was) = (path.display(), format!("{mode:04o}"));
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & !0o077)) {
        Ok(()) => {
            tracing::warn!(%directory, was, "others could enter a directory with data of volumes: it is closed to them")
        }
        Err(error) => {
            tracing::warn!(%directory, was, %error, "others may enter a directory with data of volumes, and it cannot be closed to them: chmod 700")
        }
    }
    Ok(())
}

/// Refuses a directory that is not ours or of another format. Changes nothing.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(ErrorKind::InvalidRequest, format!("{} {why}", path.display())));
    match std::fs::read_to_string(path.join("FORMAT")) {
        // Its name was there after a power cut, and what was in it was not: once it was not synced.
        Ok(text) if text.is_empty() && path.join("lock").exists() => Ok(()),
        Ok(text) => match text.trim().strip_prefix(MARKER).and_then(|number| number.parse::<u32>().ok()) {
            Some(FORMAT) => Ok(()),
            Some(found) => refuse(format!(
                "has data of format {found}, this program uses {FORMAT}: use the helio that wrote it (nothing was changed)"
            )),
            None => refuse("has a FORMAT file that is not Heliotrope's: choose another directory".into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // What starting a node may leave before the marker is written.
            let foreign = std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name())
                .find(|name| !["identity", "lock", ".FORMAT.new"].iter().any(|ours| name == ours));
            match foreign {
                None => Ok(()),
                Some(name) => {
                    refuse(format!("holds other files ({}): choose an empty or new directory", name.to_string_lossy()))
                }
            }
        }
        Err(error) => refuse(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        let held = DataDir::open(&path).expect("is made");
        let error = DataDir::open(&path).expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(held);
        DataDir::open(&path).expect("is free again");
    }

    /// The node did not start, and said "certificate cannot be read: no items found": neither of which file, nor what could be done.
    #[test]
    fn a_damaged_identity_is_told_with_its_file_and_what_to_do() {
        use client_lib::NodeId;
        use client_lib::pki::{ClusterAuthority, ClusterId, Validity};
        let root = tempfile::tempdir().expect("a directory");
        let directory = DataDir::identity(root.path());
        std::fs::create_dir(&directory).expect("is made");
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("is made");
        let identity = authority.issue(NodeId(7), Validity::ENDLESS).expect("is issued");
        identity.save(&directory).expect("is written");
        assert_eq!(DataDir::load_identity(root.path()).expect("is whole").node(), NodeId(7));
        let other = authority.issue(NodeId(8), Validity::ENDLESS).expect("is issued");
        let strangers = tempfile::tempdir().expect("a directory");
        other.save(strangers.path()).expect("is written");
        let strange_key = std::fs::read(strangers.path().join("node.key")).expect("reads");
        for name in ["ca.crt", "node.crt", "node.key"] {
            let path = directory.join(name);
            let whole = std::fs::read(&path).expect("reads");
            let cut = whole[..whole.len() / 2].to_vec();
            let mut altered = whole.clone();
            // Within the base64, so that it is still a letter of that.
            altered[whole.len() / 2] = if altered[whole.len() / 2] == b'A' { b'B' } else { b'A' };
            let mut damages = vec![Vec::new(), cut, vec![0; whole.len()], vec![0xff; 9]];
            // One letter more or less in a certificate may be one of its signature, which nobody looks at before TLS does.
            damages.extend((name == "node.key").then_some(altered));
            damages.extend((name == "node.key").then(|| strange_key.clone()));
            for damaged in damages {
                std::fs::write(&path, &damaged).expect("is written");
                for told in [DataDir::load_identity(root.path()), DataDir::open_identity(root.path())] {
                    let error = told.expect_err(name);
                    let text = error.to_string();
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    assert!(
                        text.contains(&path.display().to_string()) && text.contains("docs/membership.md"),
                        "{text}"
                    );
                }
            }
            std::fs::remove_file(&path).expect("is removed");
            let text = DataDir::load_identity(root.path()).expect_err(name).to_string();
            assert!(text.contains(&path.display().to_string()) && text.contains("put the copy"), "{text}");
            std::fs::write(&path, &whole).expect("is written");
        }
        for (name, text) in [("node.renewed", "-----BEGIN"), ("reset.seed", "12")] {
            std::fs::write(directory.join(name), text).expect("is written");
            let told = DataDir::load_identity(root.path()).expect_err(name).to_string();
            assert!(told.contains(name), "{told}");
            std::fs::remove_file(directory.join(name)).expect("is removed");
        }
        assert_eq!(DataDir::load_identity(root.path()).expect("is whole again").node(), NodeId(7));
    }

    #[test]
    fn a_newer_format_is_refused_and_left_untouched() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("FORMAT"), "heliotrope 2\n").expect("is written");
        let error = DataDir::open(root.path()).expect_err("newer");
        assert!(error.to_string().contains("format 2"), "{error}");
        assert!(DataDir::wipe(root.path()).is_err());
        assert_eq!(std::fs::read_dir(root.path()).expect("lists").count(), 1, "untouched");
    }

    /// The marker was written and not synced. A power cut soon after the first start left it empty, and a node with all its data did not start any more:
    /// its directory was another program's.
    #[test]
    fn a_marker_that_a_power_cut_has_emptied_is_written_again() {
        let root = tempfile::tempdir().expect("a directory");
        drop(DataDir::open(root.path()).expect("is made"));
        std::fs::create_dir(root.path().join("meta")).expect("is made");
        std::fs::write(root.path().join("FORMAT"), "").expect("is emptied");
        drop(DataDir::open(root.path()).expect("is ours"));
        let text = std::fs::read_to_string(root.path().join("FORMAT")).expect("is read");
        assert_eq!(text, format!("{MARKER}{FORMAT}\n"));
    }

    /// A crash leaves the one beside it.
    #[test]
    fn a_marker_that_was_not_finished_is_made() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join(".FORMAT.new"), "helio").expect("is written");
        drop(DataDir::open(root.path()).expect("is ours"));
        check(root.path()).expect("has its marker");
    }

    #[test]
    fn a_directory_with_other_files_is_not_ours() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("thesis.tex"), "years of work").expect("is written");
        assert!(DataDir::open(root.path()).expect_err("foreign").to_string().contains("thesis.tex"));
        assert!(DataDir::wipe(root.path()).is_err());
        assert!(root.path().join("thesis.tex").exists());
    }
}
