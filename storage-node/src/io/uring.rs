//! The io_uring engine: one ring per shard thread, no thread hops on the data path.
//!
//! Rules of the ring (io_uring(7), and `docs/decisions/0004`): a buffer belongs to the kernel from submission
//! to completion, so operations live in a slab until then; an operation that came back short is finished by
//! another; `EINTR` and `EAGAIN` are tried again; every other failure is the caller's. Whoever sleeps for completions
//! polls the ring's descriptor.

#![expect(unsafe_code, reason = "submission hands pointers to the kernel; the only other place is io::buffer")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{IoUring, opcode, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files::{Files, create_zeroed};
use super::{Bell, Completions, FileId, IoCompletion, IoEngine, IoKind, IoOp, assert_aligned};

/// Entries of the ring. More operations than this wait in a queue of ours.
const ENTRIES: u32 = 256;
/// How often a wait that blocks looks for files that threads have made.
const CREATED_LOOK: Duration = Duration::from_millis(1);
/// How often an engine that goes looks whether the kernel has let go of its buffers.
const DROP_LOOK: Duration = Duration::from_millis(100);

/// The io_uring engine.
pub struct UringEngine {
    ring: IoUring,
    files: Files,
    slab: Vec<Option<Pending>>,
    free: Vec<usize>,
    under_way: usize,
    /// Operations in the ring that the kernel does not know of yet.
    unsent: usize,
    /// Operations that found the ring full.
    backlog: std::collections::VecDeque<usize>,
    /// Files are made by threads, which ring the bell: it is rare, long, and blocks.
    bell: Arc<Bell>,
    creating: usize,
    created: Receiver<IoCompletion>,
    created_sender: Sender<IoCompletion>,
}

/// An operation between submission and completion.
struct Pending {
    token: u64,
    file: FileId,
    kind: IoKind,
    /// Bytes done so far.
    done: usize,
    /// Of a write in parts: those of `kind` that are left, as the kernel wants them (readv(2)). Looked at by it alone.
    vectors: Vec<IoSlice<'static>>,
}

/// What is left of a write in parts when `done` bytes of it are written. To be kept no longer than the parts.
fn vectors(buffer: &[u8], rest: &[Bytes], done: usize) -> Vec<IoSlice<'static>> {
    let mut skipped = 0;
    let parts = std::iter::once(buffer).chain(rest.iter().map(|part| &part[..]));
    parts
        .filter_map(|part| {
            let skip = (done - skipped).min(part.len());
            skipped += skip;
            let left = &part[skip..];
            // SAFETY: the parts are on the heap and live as long as the operation, as does what is made here.
            let left = unsafe { std::slice::from_raw_parts(left.as_ptr(), left.len()) };
            (!left.is_empty()).then(|| IoSlice::new(left))
        })
        .collect()
}

impl std::fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringEngine({}, {} under way)", self.files.directory().display(), self.under_way)
    }
}

impl UringEngine {
    /// An engine on `directory` that rings `bell` when a file is made.
    ///
    /// # Errors
    /// When the kernel refuses a ring.
    pub fn open(directory: &Path, bell: Arc<Bell>) -> io::Result<UringEngine> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_single_issuer()
            .build(ENTRIES)
            .or_else(|_| IoUring::new(ENTRIES))?;
        let (created_sender, created) = channel();
        Ok(UringEngine {
            ring,
            files: Files::new(directory),
            slab: Vec::new(),
            free: Vec::new(),
            under_way: 0,
            unsent: 0,
            backlog: std::collections::VecDeque::new(),
            bell,
            creating: 0,
            created,
            created_sender,
        })
    }

    fn enqueue(&mut self, index: usize) {
        let pending = self.slab[index].as_mut().expect("enqueued operations are in the slab");
        let done = pending.done;
        let file = types::Fd(self.files.get(pending.file).as_raw_fd());
        let entry = match &mut pending.kind {
            IoKind::Read { offset, buffer } => {
                let missing = buffer.room() - done;
                // SAFETY: `done` bytes of the room were read, and some are missing.
                let start = unsafe { buffer.as_mut_start().add(done) };
                opcode::Read::new(file, start, missing as u32).offset(*offset + done as u64).build()
            }
            IoKind::Write { offset, buffer, rest, durable } => {
                let flags = if *durable { rustix::io::ReadWriteFlags::DSYNC.bits() as i32 } else { 0 };
                let offset = *offset + done as u64;
                if rest.is_empty() {
                    let left = &buffer[done..];
                    opcode::Write::new(file, left.as_ptr(), left.len() as u32).offset(offset).rw_flags(flags).build()
                } else {
                    pending.vectors = vectors(buffer, rest, done);
                    let vectors = &pending.vectors;
                    opcode::Writev::new(file, vectors.as_ptr().cast(), vectors.len() as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build()
                }
            }
            IoKind::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::Create { .. } => unreachable!("files are made by threads"),
        };
        let entry = entry.user_data(index as u64);
        // SAFETY: buffers and vectors live in the slab, unmoved on the heap, until the completion of this index is seen; the
        // file stays open because the shard removes no file with an operation under way.
        match unsafe { self.ring.submission().push(&entry) } {
            Ok(()) => self.unsent += 1,
            Err(_) => self.backlog.push_back(index),
        }
    }

    fn reap(&mut self, completions: &mut Vec<IoCompletion>) {
        let finished: Vec<(u64, i32)> =
            self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (index, result) in finished {
            self.finish(index as usize, result, completions);
        }
        while let Some(index) = self.backlog.pop_front() {
            let waiting = self.backlog.len();
            self.enqueue(index);
            if self.backlog.len() > waiting {
                // Still full: it went to the back; keep the order of the others behind it.
                self.backlog.rotate_right(1);
                break;
            }
        }
        while let Ok(completion) = self.created.try_recv() {
            self.creating -= 1;
            completions.push(completion);
        }
    }

    fn finish(&mut self, index: usize, result: i32, completions: &mut Vec<IoCompletion>) {
        let pending = self.slab[index].as_mut().expect("a completion belongs to an operation under way");
        let length = match &pending.kind {
            IoKind::Read { buffer, .. } => buffer.room(),
            IoKind::Write { buffer, rest, .. } => buffer.len() + rest.iter().map(Bytes::len).sum::<usize>(),
            IoKind::Sync | IoKind::Create { .. } => 0,
        };
        let outcome = if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return self.enqueue(index),
                _ => Err(error),
            }
        } else {
            pending.done += result as usize;
            if let IoKind::Read { buffer, .. } = &mut pending.kind {
                // SAFETY: the kernel has filled so much of the room.
                unsafe { buffer.assume_filled(pending.done) };
            }
            match &pending.kind {
                IoKind::Sync => Ok(()),
                _ if pending.done == length => Ok(()),
                _ if result == 0 => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before the operation"))
                }
                _ => return self.enqueue(index),
            }
        };
        let pending = self.slab[index].take().expect("looked at above");
        self.free.push(index);
        self.under_way -= 1;
        completions.push(IoCompletion { token: pending.token, result: outcome, buffer: pending.kind.into_buffer() });
    }

    fn create(&mut self, token: u64, name: String, size: u64) {
        let (directory, done, bell) =
            (self.files.directory().to_owned(), self.created_sender.clone(), self.bell.clone());
        self.creating += 1;
        let made = std::thread::Builder::new().name("helio-segment".into()).spawn(move || {
            let result = create_zeroed(&directory, &name, size);
            // The engine waits for what is under way before it goes, so the receiver is there.
            let _ = done.send(IoCompletion { token, result, buffer: None });
            bell.ring();
        });
        if let Err(error) = made {
            let _ = self.created_sender.send(IoCompletion { token, result: Err(error), buffer: None });
        }
    }

    /// Submits what is queued and blocks until something completes, at most `timeout`.
    fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        let time = types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let arguments = types::SubmitArgs::new().timespec(&time);
        let sent = self.ring.submitter().submit_with_args(1, &arguments);
        self.note_sent(sent)
    }

    /// Submits what is queued, and has the kernel put out what it holds back.
    fn send(&mut self) -> io::Result<()> {
        let sent = self.ring.submit();
        self.note_sent(sent)
    }

    fn note_sent(&mut self, sent: io::Result<usize>) -> io::Result<()> {
        match sent {
            Ok(count) => self.unsent = self.unsent.saturating_sub(count),
            // What was not taken is taken the next time. A time-out comes after all was.
            Err(error) => match error.raw_os_error() {
                Some(libc_errno::ETIME) => self.unsent = 0,
                Some(libc_errno::EINTR | libc_errno::EBUSY | libc_errno::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        Ok(())
    }
}

/// The errno values that end a submission without harm (errno(3), Linux).
mod libc_errno {
    pub(super) const EINTR: i32 = 4;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const ETIME: i32 = 62;
}

impl IoEngine for UringEngine {
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
        if let IoKind::Create { name, size } = op.kind {
            return self.create(op.token, name, size);
        }
        let pending = Pending { token: op.token, file: op.file, kind: op.kind, done: 0, vectors: Vec::new() };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            self.slab.len() - 1
        });
        self.slab[index] = Some(pending);
        self.under_way += 1;
        self.enqueue(index);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()> {
        let is_ready = timeout.is_zero() || !self.ring.completion().is_empty();
        if !is_ready {
            self.sleep(if self.creating > 0 { timeout.min(CREATED_LOOK) } else { timeout })?;
        } else {
            let queue = self.ring.submission();
            // The kernel may hold completions back until it is entered.
            let holds_back = queue.cq_overflow() || queue.taskrun();
            drop(queue);
            if holds_back || self.unsent > 0 {
                self.send()?;
            }
        }
        self.reap(completions);
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.unsent > 0 || !self.backlog.is_empty()
    }

    fn completions(&self) -> io::Result<Completions> {
        // SAFETY: the ring, and so its descriptor, lives as long as this borrow of the engine.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let fd = ring.try_clone_to_owned()?;
        // SAFETY: the descriptor is open, and nothing takes it out of the `AsyncFd` that owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Completions(Some(fd?)))
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // The kernel may still write into our buffers, and threads into our directory.
        let mut completions = Vec::new();
        while self.under_way > 0 || self.creating > 0 {
            if self.sleep(if self.creating > 0 { CREATED_LOOK } else { DROP_LOOK }).is_err() {
                // A ring that cannot be waited for: leak what it may still use rather than free it under the kernel.
                std::mem::forget(std::mem::take(&mut self.slab));
                return;
            }
            self.reap(&mut completions);
        }
    }
}
