//! The file of a Unix socket: whose it is, and who removes it.

use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use client_lib::{Error, ErrorKind};
use tokio::net::{UnixListener, UnixStream};

use super::cannot_listen;

/// A socket file that this process made; dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, by which the file is known.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file of a socket that another process has passed on.
    pub(super) fn adopted(path: PathBuf) -> SocketFile {
        let identity = identity(&path);
        SocketFile { path, identity }
    }

    /// Another process goes on with the socket: the file stays.
    pub(crate) fn disown(mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && identity(&self.path) == self.identity
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the NBD socket file");
        }
    }
}

/// Device and inode of a file.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Listens at `path`, replacing the file of a server that is dead.
pub(super) async fn bind(path: PathBuf) -> Result<(UnixListener, SocketFile), Error> {
    let listener = match UnixListener::bind(&path) {
        Err(error) if error.kind() == IoKind::AddrInUse => {
            make_way(&path).await?;
            UnixListener::bind(&path)
        }
        result => result,
    };
    let listener = listener.map_err(|error| cannot_listen(&path.display().to_string(), error))?;
    let identity = identity(&path);
    Ok((listener, SocketFile { path, identity }))
}

/// Removes what lies at `path` if it is the socket of a dead server.
async fn make_way(path: &Path) -> Result<(), Error> {
    let refuse = |kind, why: &str| Err(Error::new(kind, format!("cannot listen for NBD on {}: {why}", path.display())));
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return refuse(
                ErrorKind::InvalidRequest,
                "a file that is not a socket is in the way; remove it or choose another path",
            );
        }
        Ok(_) => {}
        Err(error) if error.kind() == IoKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot_listen(&path.display().to_string(), error)),
    }
    match UnixStream::connect(path).await {
        // Nobody listens: the kernel refuses (unix(7)), or whoever did has just closed the socket.
        Err(error) if [IoKind::ConnectionRefused, IoKind::ConnectionReset].contains(&error.kind()) => {
            tracing::info!(path = %path.display(), "the socket file of a dead server is replaced");
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != IoKind::NotFound => {
                    Err(cannot_listen(&path.display().to_string(), error))
                }
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == IoKind::NotFound => Ok(()),
        // Connected, or alive but unable to take us.
        Ok(_) | Err(_) => refuse(ErrorKind::Busy, "another server is listening there; stop it or choose another path"),
    }
}
