//! The engine without io_uring: a few threads that make the system calls.
//!
//! Used where the kernel forbids io_uring. Same semantics, more CPU at depth.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::OFlags;

use super::buffer::AlignedBuffer;
use super::{FileId, IoCompletion, IoEngine, IoKind, IoOp, assert_aligned};
use crate::shard::handle::Doorbell;

/// Threads per engine; enough to keep a device's queue busy when each call blocks.
const THREADS: usize = 4;

/// Chunk in which a new file is written through with zeroes: a mebibyte, large enough for full bandwidth.
const ZERO_CHUNK: usize = 1 << 20;

type Job = (u64, Option<Arc<File>>, IoKind);

/// An engine of threads.
pub struct StdEngine {
    directory: PathBuf,
    files: Files,
    jobs: Option<Sender<Job>>,
    events: Receiver<Option<IoCompletion>>,
    bell: Sender<Option<IoCompletion>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for StdEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StdEngine({})", self.directory.display())
    }
}

impl StdEngine {
    /// An engine on `directory`.
    ///
    /// # Errors
    /// When the directory is not one.
    pub fn open(directory: &Path) -> io::Result<StdEngine> {
        if !directory.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is not a directory", directory.display()),
            ));
        }
        let (bell, events) = channel();
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..THREADS)
            .map(|number| {
                let (queue, done, directory) = (queue.clone(), bell.clone(), directory.to_owned());
                std::thread::Builder::new()
                    .name(format!("helio-io-{number}"))
                    .spawn(move || work(&queue, &done, &directory))
            })
            .collect::<io::Result<_>>()?;
        Ok(StdEngine {
            directory: directory.to_owned(),
            files: Files::default(),
            jobs: Some(jobs),
            events,
            bell,
            threads,
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>, done: &Sender<Option<IoCompletion>>, directory: &Path) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((token, file, kind)) = job else { return };
        let (result, buffer) = carry_out(file.as_deref(), kind, directory);
        if done.send(Some(IoCompletion { token, result, buffer })).is_err() {
            return;
        }
    }
}

fn carry_out(file: Option<&File>, kind: IoKind, directory: &Path) -> (io::Result<()>, Option<AlignedBuffer>) {
    let file = || file.expect("operations on files name an open one");
    match kind {
        IoKind::Read { offset, mut buffer } => (file().read_exact_at(&mut buffer, offset), Some(buffer)),
        IoKind::Write { offset, buffer, durable } => {
            let mut result = file().write_all_at(&buffer, offset);
            if durable && result.is_ok() {
                result = file().sync_data();
            }
            (result, Some(buffer))
        }
        IoKind::Sync => (file().sync_data(), None),
        IoKind::Create { name, size } => (create_zeroed(directory, &name, size), None),
    }
}

/// Makes a file whose every block has been written, so that overwriting it later changes no metadata. It
/// appears under its name only when it is complete and synced.
pub(super) fn create_zeroed(directory: &Path, name: &str, size: u64) -> io::Result<()> {
    let (temporary, path) = (directory.join(format!("{name}.tmp")), directory.join(name));
    let made = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        // First ask for the space: a full file system says so before a byte is written.
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let zeroes = vec![0; ZERO_CHUNK.min(size as usize)];
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
pub(super) fn open_direct(path: &Path) -> io::Result<File> {
    let open = |flags: OFlags| OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path);
    match open(OFlags::DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tracing::warn!(path = %path.display(), "the file system offers no direct I/O: reads and writes go through the page cache");
            open(OFlags::empty())
        }
        opened => opened,
    }
}

/// The open files of an engine; ids are never used again.
#[derive(Debug, Default)]
pub(super) struct Files {
    open: BTreeMap<FileId, Arc<File>>,
    next: u32,
}

impl Files {
    pub(super) fn open(&mut self, path: &Path) -> io::Result<FileId> {
        let file = Arc::new(open_direct(path)?);
        let id = FileId(self.next);
        self.next += 1;
        self.open.insert(id, file);
        Ok(id)
    }

    pub(super) fn get(&self, id: FileId) -> &Arc<File> {
        self.open.get(&id).expect("the shard uses only files it has open")
    }

    pub(super) fn close(&mut self, id: FileId) {
        self.open.remove(&id);
    }
}

/// The files of `directory` with their sizes, sorted; half-made files of an earlier process are removed.
pub(super) fn list(directory: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(".tmp") {
            std::fs::remove_file(entry.path())?;
        } else {
            files.push((name, entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}

impl IoEngine for StdEngine {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        list(&self.directory)
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        self.files.open(&self.directory.join(name))
    }

    fn remove(&mut self, name: &str, file: Option<FileId>) -> io::Result<()> {
        if let Some(file) = file {
            self.files.close(file);
        }
        std::fs::remove_file(self.directory.join(name))
    }

    fn submit(&mut self, op: IoOp) {
        let file = match &op.kind {
            IoKind::Read { offset, buffer } | IoKind::Write { offset, buffer, .. } => {
                assert_aligned(*offset, buffer);
                Some(self.files.get(op.file).clone())
            }
            IoKind::Sync => Some(self.files.get(op.file).clone()),
            IoKind::Create { .. } => None,
        };
        let jobs = self.jobs.as_ref().expect("the queue is there until the engine is dropped");
        jobs.send((op.token, file, op.kind)).expect("the threads live as long as the queue");
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => completions.extend(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the I/O threads have ended")),
        }
        completions.extend(self.events.try_iter().flatten());
        Ok(())
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::new(ChannelBell(Mutex::new(self.bell.clone())))
    }
}

impl Drop for StdEngine {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

struct ChannelBell(Mutex<Sender<Option<IoCompletion>>>);

impl Doorbell for ChannelBell {
    fn ring(&self) {
        // No receiver means no sleeper.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(None);
    }
}
