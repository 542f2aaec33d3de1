//! The engine without io_uring: a few threads that make the system calls.
//!
//! Used where the kernel forbids io_uring. Same semantics, more CPU at depth.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::buffer::AlignedBuffer;
use super::files::{Files, create_zeroed};
use super::{Bell, Completions, FileId, IoCompletion, IoEngine, IoKind, IoOp, assert_aligned};

/// Threads per engine; enough to keep a device's queue busy when each call blocks.
const THREADS: usize = 4;

type Job = (u64, Option<Arc<File>>, IoKind);

/// An engine of threads.
pub struct StdEngine {
    files: Files,
    jobs: Option<Sender<Job>>,
    completed: Receiver<IoCompletion>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for StdEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StdEngine({})", self.files.directory().display())
    }
}

impl StdEngine {
    /// An engine on `directory` that rings `bell` whenever something is done.
    ///
    /// # Errors
    /// When the directory is not one.
    pub fn open(directory: &Path, bell: Arc<Bell>) -> io::Result<StdEngine> {
        if !directory.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is not a directory", directory.display()),
            ));
        }
        let (done, completed) = channel();
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..THREADS)
            .map(|number| {
                let (queue, done, directory) = (queue.clone(), (done.clone(), bell.clone()), directory.to_owned());
                std::thread::Builder::new()
                    .name(format!("helio-io-{number}"))
                    .spawn(move || work(&queue, &done, &directory))
            })
            .collect::<io::Result<_>>()?;
        Ok(StdEngine { files: Files::new(directory), jobs: Some(jobs), completed, threads })
    }
}

fn work(queue: &Mutex<Receiver<Job>>, (done, bell): &(Sender<IoCompletion>, Arc<Bell>), directory: &Path) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((token, file, kind)) = job else { return };
        let (result, buffer) = carry_out(file.as_deref(), kind, directory);
        if done.send(IoCompletion { token, result, buffer }).is_err() {
            return;
        }
        bell.ring();
    }
}

fn carry_out(file: Option<&File>, kind: IoKind, directory: &Path) -> (io::Result<()>, Option<AlignedBuffer>) {
    let file = || file.expect("operations on files name an open one");
    match kind {
        IoKind::Read { offset, mut buffer } => {
            buffer.zero_to(buffer.room());
            (file().read_exact_at(&mut buffer, offset), Some(buffer))
        }
        IoKind::Write { offset, buffer, rest, durable } => {
            let mut at = offset;
            let parts = std::iter::once(&buffer[..]).chain(rest.iter().map(|part| &part[..]));
            let mut result = parts.into_iter().try_for_each(|part| {
                let written = file().write_all_at(part, at);
                at += part.len() as u64;
                written
            });
            if durable && result.is_ok() {
                result = file().sync_data();
            }
            (result, Some(buffer))
        }
        IoKind::Sync => (file().sync_data(), None),
        IoKind::Create { name, size } => (create_zeroed(directory, &name, size), None),
    }
}

impl IoEngine for StdEngine {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        self.files.open(name)
    }

    fn remove(&mut self, name: &str, file: Option<FileId>) -> io::Result<()> {
        self.files.remove(name, file)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.files.free_bytes()
    }

    fn submit(&mut self, op: IoOp) {
        assert_aligned(&op.kind);
        let file = match &op.kind {
            IoKind::Read { .. } | IoKind::Write { .. } | IoKind::Sync => Some(self.files.get(op.file).clone()),
            IoKind::Create { .. } => None,
        };
        let jobs = self.jobs.as_ref().expect("the queue is there until the engine is dropped");
        jobs.send((op.token, file, op.kind)).expect("the threads live as long as the queue");
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()> {
        match self.completed.recv_timeout(timeout) {
            Ok(completion) => completions.push(completion),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the I/O threads have ended")),
        }
        completions.extend(self.completed.try_iter());
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn completions(&self) -> io::Result<Completions> {
        Ok(Completions::default())
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
