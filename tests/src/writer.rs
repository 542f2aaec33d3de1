//! A client that writes steadily while its volume is moved under it: what it was promised, and how long it waited.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::nbd_client::{Client, Error};
use crate::workload::{check, fill};

const BLOCK: u64 = crate::workload::BLOCK as u64;

/// A writer of some blocks, one write at a time. Shared between the thread that runs it and who watches it.
#[derive(Debug)]
pub struct Writer {
    blocks: Range<u64>,
    seed: u64,
    ledger: Mutex<Ledger>,
    acked: AtomicU64,
    longest_us: AtomicU64,
    stop: AtomicBool,
}

impl Writer {
    /// One that writes `blocks` in turn, again and again.
    #[must_use]
    pub fn new(blocks: Range<u64>, seed: u64) -> Writer {
        let (acked, longest_us, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Writer { blocks, seed, ledger: Mutex::default(), acked, longest_us, stop }
    }

    /// Writes until told to stop, and flushes then.
    fn run(&self, socket: &Path, volume: &str) -> Result<(), Error> {
        let mut client = Client::connect(socket, volume)?;
        let mut last = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let block = self.blocks.start + ledger.generation() % (self.blocks.end - self.blocks.start);
            let generation = ledger.begin(block);
            drop(ledger);
            client.write(block * BLOCK, &fill(self.seed, block, generation))?;
            self.ledger.lock().unwrap_or_else(PoisonError::into_inner).ack();
            let now = Instant::now();
            self.longest_us.fetch_max((now - last).as_micros() as u64, Ordering::SeqCst);
            self.acked.fetch_add(1, Ordering::SeqCst);
            last = now;
        }
        client.flush()
    }

    /// Has a thread of `scope` write through this socket.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        socket: &'scope Path,
        volume: &'scope str,
    ) -> Running<'scope> {
        Running { writer: self, thread: Some(scope.spawn(move || self.run(socket, volume))) }
    }

    /// How many of its writes were acked.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Forgets how long it waited so far.
    pub fn watch(&self) {
        self.longest_us.store(0, Ordering::SeqCst);
    }

    /// The longest time between two acks since [`watch`](Self::watch); one that is not over does not count.
    #[must_use]
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::SeqCst))
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Compares what `client` reads with what was acked.
    ///
    /// # Errors
    /// Names the first block that is otherwise.
    pub fn check(&self, client: &mut Client) -> Result<(), String> {
        let read = |block: u64| {
            let bytes = client.read(block * BLOCK, BLOCK as u32).map_err(|error| format!("{error:?}"))?;
            check(&bytes, self.seed, block)
        };
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).check(read)
    }
}

/// A writer that runs. It is stopped with this, so that a test that fails meanwhile ends: a scope waits for its threads.
#[derive(Debug)]
pub struct Running<'scope> {
    writer: &'scope Writer,
    thread: Option<ScopedJoinHandle<'scope, Result<(), Error>>>,
}

impl Running<'_> {
    /// Whether it has ended by itself, which only an error makes it do.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(ScopedJoinHandle::is_finished)
    }

    /// Stops it after the write under way.
    ///
    /// # Errors
    /// What its client was told.
    pub fn finish(mut self) -> Result<(), Error> {
        self.writer.stop();
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("a writer does not panic"))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.writer.stop();
    }
}
