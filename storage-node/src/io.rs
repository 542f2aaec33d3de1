//! The seam to the disk: one engine per shard, completion-based, used from one thread.
//!
//! An engine owns a directory of flat files and carries out aligned reads, writes and syncs on them. A buffer
//! moves into its operation and comes back with its completion, so nothing can free what the kernel still
//! writes. Engines decide nothing: no retries of failed operations, no caching, no ordering between operations
//! under way. Implementations: io_uring ([`uring`]), threads and system calls ([`std`]), and a simulated disk
//! ([`sim`]); one conformance suite runs on all three.
//!
//! The shard that uses an engine sleeps outside of it, in its runtime, and is woken by its [`Completions`] or by its [`Bell`].

use ::std::fmt;
use ::std::io;
use ::std::os::fd::OwnedFd;
use ::std::path::Path;
use ::std::sync::Arc;
use ::std::time::Duration;

use buffer::AlignedBuffer;
use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

pub mod buffer;
#[cfg(test)]
mod conformance;
mod files;
pub mod sim;
pub mod std;
pub mod uring;

/// Offsets, lengths and buffers of direct I/O are multiples of this; the block size, and no device here asks for more.
pub const ALIGNMENT: usize = 4096;

/// An open file of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// What an operation does.
#[derive(Debug)]
pub enum IoKind {
    /// Fills all of the buffer's room from `offset`.
    Read { offset: u64, buffer: AlignedBuffer },
    /// Writes what the buffer is filled with at `offset`, and `rest` behind it; with `durable` it is on stable storage at
    /// completion. Each part is a whole number of blocks; `rest` begins at multiples of [`ALIGNMENT`] in memory too.
    Write { offset: u64, buffer: AlignedBuffer, rest: Vec<Bytes>, durable: bool },
    /// Makes durable every write of the file that completed before this was submitted.
    Sync,
    /// Makes the file `name` of `size` zero bytes, written through and synced, replacing nothing. `file` is ignored.
    Create { name: String, size: u64 },
}

impl IoKind {
    /// The operation's buffer, if it has one.
    #[must_use]
    pub fn into_buffer(self) -> Option<AlignedBuffer> {
        match self {
            IoKind::Read { buffer, .. } | IoKind::Write { buffer, .. } => Some(buffer),
            IoKind::Sync | IoKind::Create { .. } => None,
        }
    }
}

/// An operation.
#[derive(Debug)]
pub struct IoOp {
    /// Comes back with the completion.
    pub token: u64,
    /// On which file.
    pub file: FileId,
    /// What.
    pub kind: IoKind,
}

/// A finished operation. The buffer comes back whether or not it succeeded.
#[derive(Debug)]
pub struct IoCompletion {
    /// The operation's token.
    pub token: u64,
    /// Whether it was carried out whole.
    pub result: io::Result<()>,
    /// The operation's buffer, if it had one.
    pub buffer: Option<AlignedBuffer>,
}

/// Wakes a shard that sleeps, from any thread. A ring while it is awake is not lost: its next sleep ends at once.
#[derive(Debug, Default)]
pub struct Bell(Notify);

impl Bell {
    /// Makes the shard look at what has become of its work.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits for the next ring.
    ///
    /// # Cancel safety
    /// A ring is not lost by dropping the future.
    pub async fn rung(&self) {
        self.0.notified().await;
    }
}

/// Tells that an engine has completed something.
#[derive(Debug, Default)]
pub struct Completions(Option<AsyncFd<OwnedFd>>);

impl Completions {
    /// Waits until something may have completed since this was told the last time; for ever where the engine rings the
    /// bell instead.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn some(&self) {
        match &self.0 {
            // A failure is the engine's to tell, in the next `wait`.
            Some(fd) => drop(fd.readable().await.map(|mut ready| ready.clear_ready())),
            None => ::std::future::pending().await,
        }
    }
}

/// A disk, as a shard uses it. Dropping it waits for the operations under way.
pub trait IoEngine: fmt::Debug + Send {
    /// The files of the directory with their sizes, sorted by name; 0 where the disk does not give the size. Blocks; used at start.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;

    /// Opens an existing file for direct reading and writing. Blocks briefly.
    fn open(&mut self, name: &str) -> io::Result<FileId>;

    /// Closes and deletes a file; nothing may be under way on it. Blocks briefly.
    fn remove(&mut self, name: &str, file: Option<FileId>) -> io::Result<()>;

    /// Bytes that files may still take on the file system, without what it keeps for the superuser; `u64::MAX` where it does not tell. Others may
    /// take them first: a file may be refused all the same. Blocks briefly.
    fn free_bytes(&mut self) -> io::Result<u64>;

    /// Starts an operation. Completions come from [`wait`](Self::wait) in any order.
    ///
    /// # Panics
    /// If offset or buffer is not aligned: that is a mistake of ours.
    fn submit(&mut self, op: IoOp);

    /// Hands on what was submitted and collects completions; if there are none, blocks until there is one or `timeout`
    /// passes.
    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()>;

    /// Whether something that was submitted goes on only in the next [`wait`](Self::wait).
    fn has_unsent(&self) -> bool;

    /// What tells that an operation has completed, on the runtime that this is called in. What it does not tell, the engine
    /// rings its bell for.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    fn completions(&self) -> io::Result<Completions>;
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// Threads and system calls.
    Std,
}

/// Opens an engine on `directory`, which must exist, that rings `bell`.
///
/// # Errors
/// When io_uring was demanded and is not to be had, or the directory cannot be used.
pub fn open_engine(kind: EngineKind, directory: &Path, bell: &Arc<Bell>) -> io::Result<Box<dyn IoEngine>> {
    match kind {
        EngineKind::Std => Ok(Box::new(std::StdEngine::open(directory, bell.clone())?)),
        EngineKind::Uring => Ok(Box::new(uring::UringEngine::open(directory, bell.clone())?)),
        EngineKind::Auto => match uring::UringEngine::open(directory, bell.clone()) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => {
                tracing::warn!(%error, "io_uring is not available (kernel.io_uring_disabled or a seccomp profile?): using threads");
                Ok(Box::new(std::StdEngine::open(directory, bell.clone())?))
            }
        },
    }
}

/// Whether `error`, of opening a file, says that the disk has lost or damaged it. Anything else is of the system or of who runs it (too many open
/// files, no permission), and says nothing about the file.
#[must_use]
pub fn is_loss(error: &io::Error) -> bool {
    let lost = [rustix::io::Errno::IO, rustix::io::Errno::UCLEAN, rustix::io::Errno::BADMSG];
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error().is_some_and(|code| lost.iter().any(|errno| errno.raw_os_error() == code))
}

fn assert_aligned(kind: &IoKind) {
    let (offset, bytes) = match kind {
        IoKind::Read { offset, buffer } => (offset, buffer.room()),
        IoKind::Write { offset, buffer, rest, .. } => {
            let is_aligned = |part: &Bytes| part.len().is_multiple_of(ALIGNMENT) && is_at_page(part);
            assert!(rest.iter().all(is_aligned), "a part to write is not aligned");
            (offset, buffer.len())
        }
        IoKind::Sync | IoKind::Create { .. } => return,
    };
    assert!(offset.is_multiple_of(ALIGNMENT as u64), "offset {offset} is not aligned");
    assert!(bytes > 0 && bytes.is_multiple_of(ALIGNMENT), "{bytes} bytes are not a number of blocks");
}

/// Whether a device can take the bytes from where they are in memory.
#[must_use]
pub fn is_at_page(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
}
