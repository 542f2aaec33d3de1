//! Where keys come from: a file, a directory of files, or what a command prints.
//!
//! Never an argument or a variable of the environment, which others on a machine can look at. A file that others may read is refused.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::keys::{Kek, KeyFingerprint, SealedKey, VolumeKey, VolumeKeys};
use crate::error::{Error, ErrorKind};
use crate::types::KeyName;

/// The most that is read of what should be a key, in bytes.
const CONTENT_BYTES_MAX: usize = 4096;
/// How long a command may take, which is ended then, with all that it has started: an NBD handshake waits for it.
const COMMAND_PATIENCE: Duration = Duration::from_secs(20);

/// Where the keys are that open volumes.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that holds one.
    File(PathBuf),
    /// A directory of such files, of which each has the name of its key.
    Directory(PathBuf),
    /// A line for `/bin/sh` that prints the key that `HELIO_KEY_NAME` and `HELIO_KEY_FINGERPRINT` name; `HELIO_VOLUME` is what it is to
    /// open.
    Command(String),
}

/// Of a command only that it is one.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "key file {}", path.display()),
            KeySource::Directory(path) => write!(f, "key directory {}", path.display()),
            KeySource::Command(_) => f.write_str("the key command"),
        }
    }
}

impl KeySource {
    /// The key of the volume called `volume`, opened with the first of these that is there.
    ///
    /// # Errors
    /// `InvalidRequest` when none is, which says what is missing and what was found instead; `Corrupt` as [`VolumeKeys::open`].
    ///
    /// # Cancel safety
    /// Safe. A command that was begun is ended.
    pub async fn unlock(&self, volume: &str, keys: &VolumeKeys) -> Result<VolumeKey, Error> {
        let mut found_instead = Vec::new();
        for sealed in &keys.sealed {
            let kek = match self.find(volume, sealed).await {
                Ok(Some(kek)) => kek,
                Ok(None) => continue,
                Err(error) => {
                    found_instead.push(error.to_string());
                    continue;
                }
            };
            if let Some(key) = keys.open(&kek)? {
                return Ok(key);
            }
            found_instead.push(format!("{self} has key {} instead", kek.fingerprint()));
            if let KeySource::File(_) = self {
                break;
            }
        }
        found_instead.dedup();
        let instead = if found_instead.is_empty() { String::new() } else { format!(": {}", found_instead.join("; ")) };
        let text = format!(
            "volume {volume} is encrypted, and {self} has none of the keys that open it, {}{instead}",
            keys.openers()
        );
        Err(Error::new(ErrorKind::InvalidRequest, text))
    }

    /// What is there for one of the keys; `None` if nothing is.
    async fn find(&self, volume: &str, sealed: &SealedKey) -> Result<Option<Kek>, Error> {
        match self {
            KeySource::File(path) => read(path).map(Some),
            KeySource::Directory(directory) => {
                // A name is safe as that of a file, whoever has put it into the metadata.
                let path = directory.join(sealed.name.as_str());
                if path.exists() { read(&path).map(Some) } else { Ok(None) }
            }
            KeySource::Command(line) => {
                ask(line, volume, Some(&sealed.name), Some(&sealed.fingerprint)).await.map(Some)
            }
        }
    }

    /// The key to seal with, and what it is called: by `name`, or as its file is.
    ///
    /// # Errors
    /// `InvalidRequest` when there is none, or no name.
    ///
    /// # Cancel safety
    /// As [`unlock`](Self::unlock).
    pub async fn named(&self, volume: &str, name: Option<KeyName>) -> Result<(KeyName, Kek), Error> {
        let nameless = |what: &str| {
            Error::new(ErrorKind::InvalidRequest, format!("{what}: say with --key-name what the key is called"))
        };
        match self {
            KeySource::File(path) => {
                let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let own = || file_name.parse().map_err(|_| nameless(&format!("{file_name:?} is no name of a key")));
                Ok((name.map_or_else(own, Ok)?, read(path)?))
            }
            KeySource::Directory(directory) => {
                let name = name.ok_or_else(|| nameless("a directory has several keys"))?;
                let kek = read(&directory.join(name.as_str()))?;
                Ok((name, kek))
            }
            KeySource::Command(line) => {
                let name = name.ok_or_else(|| nameless("what a command prints has no name"))?;
                let kek = ask(line, volume, Some(&name), None).await?;
                Ok((name, kek))
            }
        }
    }
}

/// Reads a key from a file, which nobody but its owner may read.
fn read(path: &Path) -> Result<Kek, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidRequest, format!("key file {}: {what}", path.display()));
    let unreadable = |error: io::Error| wrong(error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    // Of what is open, so that it cannot be exchanged in between.
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(wrong("it is no file".to_owned()));
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(wrong(format!(
            "others may read or write it (mode {mode:04o}): chmod 600, and consider whether they have"
        )));
    }
    Kek::parse(&content(file).map_err(unreadable)?).map_err(|error| wrong(error.to_string()))
}

/// All of it, if it is as short as a key.
fn content(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Of its full size from the beginning, so that no part of it is left behind where it grew.
    let mut content = Zeroizing::new(vec![0; CONTENT_BYTES_MAX + 1]);
    let mut from = from.take(content.len() as u64);
    let mut length = 0;
    loop {
        match from.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    content.truncate(length);
    Ok(content)
}

/// Has a command print a key.
async fn ask(
    line: &str,
    volume: &str,
    name: Option<&KeyName>,
    fingerprint: Option<&KeyFingerprint>,
) -> Result<Kek, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidRequest, format!("the key command {what}"));
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).env("HELIO_VOLUME", volume).stdin(Stdio::null()).stdout(Stdio::piped());
    command.env("HELIO_KEY_NAME", name.map_or("", KeyName::as_str));
    command.env("HELIO_KEY_FINGERPRINT", fingerprint.map(ToString::to_string).unwrap_or_default());
    // A group of its own, so that what it starts ends with it: a shell that is ended leaves the program behind that it waits for.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| wrong(format!("cannot be run: {error}")))?;
    let (group, _ends_with_this) = Group::of(&child);
    let (told, hears) = oneshot::channel();
    let printed = child.stdout.take();
    // A thread of its own: one of the runtime's would be waited for when that ends, however long the command takes.
    let waiting = std::thread::Builder::new().name("key-command".to_owned()).spawn(move || {
        let content = printed.map_or_else(|| Ok(Zeroizing::default()), content);
        group.let_go(&child);
        let status = child.wait();
        // Nobody waits any more: it took too long, and was ended.
        let _ = told.send(content.and_then(|content| Ok((content, status?))));
    });
    waiting.map_err(|error| wrong(format!("cannot be waited for: {error}")))?;
    let ended = tokio::time::timeout(COMMAND_PATIENCE, hears).await;
    let ended = ended.map_err(|_| wrong(format!("has printed no key for {COMMAND_PATIENCE:?}")))?;
    let (content, status) = ended
        .map_err(|_| wrong("was not waited for".to_owned()))?
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if !status.success() {
        return Err(wrong(format!("failed ({status})")));
    }
    Kek::parse(&content).map_err(|error| wrong(format!("printed {error}")))
}

/// The processes of a command, by their group; `None` when it is over. What a command has left running on purpose is let alone then.
#[derive(Clone)]
struct Group(Arc<Mutex<Option<Pid>>>);

/// Ends the processes of a command that is not over when this is dropped.
struct EndsGroup(Group);

impl Group {
    fn of(child: &std::process::Child) -> (Group, EndsGroup) {
        let group = Group(Arc::new(Mutex::new(Some(Pid::from_child(child)))));
        (group.clone(), EndsGroup(group))
    }

    /// Waits until the command has ended. Its number is still its own then, and not to be used any more once it was waited for: another process may
    /// have it.
    fn let_go(&self, child: &std::process::Child) {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // It fails for no child of ours.
        let _ = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(child)), ended));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for EndsGroup {
    fn drop(&mut self) {
        // Held while it is ended: nobody waits for it in between.
        let mut group = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = group.take() {
            // All of it may just have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
