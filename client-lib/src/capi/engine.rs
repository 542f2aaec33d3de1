//! What stands behind the handles: a cluster with its threads, and a volume with what is under way on it.
//!
//! A call that blocks carries its operation out on the calling thread; the threads of the cluster do what the network and requests
//! with callbacks need. Closing a volume waits until nothing is in use ([`InUse`]); that is why a thread of the library, which
//! others wait for, may not block.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use super::failure::{EAGAIN, EDEADLK, EIO, Failure};
use super::operations::{Budget, Operation};
use super::types::HELIO_REQUESTS_MAX;
use crate::client;
use crate::error::Error;

/// How long threads that have nothing to do any more may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster and its threads. They end with the last handle to it or to a volume of it.
pub(super) struct Engine {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    cluster: client::Cluster,
}

impl Engine {
    /// Starts the threads, and makes the cluster with them there.
    pub(super) fn start(
        threads: usize,
        make: impl FnOnce() -> Result<client::Cluster, Error>,
    ) -> Result<Engine, Failure> {
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name("heliotrope").enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(EIO, format!("no threads can be started: {error}")))?;
        let handle = runtime.handle().clone();
        let cluster = {
            let _entered = runtime.enter();
            make()?
        };
        Ok(Engine { runtime: Some(runtime), handle, cluster })
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> &client::Cluster {
        &self.cluster
    }

    /// Where requests with callbacks are carried out.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Carries `operation` out on this thread.
    ///
    /// # Errors
    /// What comes of it; `EDEADLK` on a thread of the library.
    pub(super) fn wait<T>(&self, operation: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        require_own_thread()?;
        self.handle.block_on(operation)
    }
}

/// A call that blocks is about to.
///
/// # Errors
/// `EDEADLK` on a thread of the library.
pub(super) fn require_own_thread() -> Result<(), Failure> {
    if Handle::try_current().is_err() {
        return Ok(());
    }
    let text = "a call that blocks was made in a callback: begin a request instead, or leave it to another thread";
    Err(Failure::new(EDEADLK, text))
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if require_own_thread().is_ok() {
            runtime.block_on(self.cluster.close());
            runtime.shutdown_timeout(STOP_TIMEOUT);
        } else {
            // A request in a callback was the last to hold it. A thread cannot wait for itself.
            runtime.shutdown_background();
        }
    }
}

/// A volume in use.
pub(super) struct Disk {
    engine: Arc<Engine>,
    core: Arc<Core>,
}

/// What requests under way share with the volume. Does not hold the engine, whose threads they run on.
struct Core {
    volume: client::Volume,
    /// Whatever waits is to end.
    cancelled: CancellationToken,
    /// Nobody is to be told any more how it stands.
    ended: CancellationToken,
    budget: Budget,
    requests: AtomicU32,
    uses: Mutex<usize>,
    idle: Condvar,
}

impl Disk {
    pub(super) fn new(engine: Arc<Engine>, volume: client::Volume) -> Disk {
        let core = Core {
            volume,
            cancelled: CancellationToken::new(),
            ended: CancellationToken::new(),
            budget: Budget::new(),
            requests: AtomicU32::new(0),
            uses: Mutex::new(0),
            idle: Condvar::new(),
        };
        Disk { engine, core: Arc::new(core) }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// It is in use until that is dropped.
    pub(super) fn begin(&self) -> InUse {
        *self.core.uses() += 1;
        InUse(self.core.clone())
    }

    /// Ends whatever waits, now and later.
    pub(super) fn cancel(&self) {
        self.core.cancelled.cancel();
    }

    /// Waits until nothing is under way, flushes, and ends the use of the volume.
    ///
    /// # Errors
    /// That of the flush; nothing is flushed, and no node waited for, once it was cancelled.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        self.core.ended.cancel();
        let mut uses = self.core.uses();
        while *uses > 0 {
            uses = self.core.idle.wait(uses).unwrap_or_else(PoisonError::into_inner);
        }
        drop(uses);
        let in_use = self.begin();
        self.engine.wait(in_use.unless_cancelled(in_use.volume().finish(None)))
    }
}

impl Core {
    fn uses(&self) -> MutexGuard<'_, usize> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume that is in use. The last one that is dropped lets it be closed.
pub(super) struct InUse(Arc<Core>);

impl InUse {
    pub(super) fn volume(&self) -> &client::Volume {
        &self.0.volume
    }

    /// Resolves when nobody is to be told any more how it stands.
    pub(super) async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Carries an operation out.
    pub(super) async fn carry_out(&self, operation: Operation) -> Result<(), Failure> {
        self.unless_cancelled(operation.carry_out(&self.0.volume, &self.0.budget)).await
    }

    /// What comes of a question, unless everything was cancelled.
    pub(super) async fn unless_cancelled<T>(
        &self,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        if self.0.cancelled.is_cancelled() {
            return Err(Failure::cancelled());
        }
        tokio::select! {
            biased;
            outcome = operation => outcome.map_err(Failure::from),
            () = self.0.cancelled.cancelled() => Err(Failure::cancelled()),
        }
    }

    /// One more request with a callback.
    ///
    /// # Errors
    /// `EAGAIN` when there are too many.
    pub(super) fn one_more(self) -> Result<Counted, Failure> {
        if self.0.requests.fetch_add(1, Ordering::Relaxed) >= HELIO_REQUESTS_MAX {
            self.0.requests.fetch_sub(1, Ordering::Relaxed);
            let text = format!("{HELIO_REQUESTS_MAX} requests are under way: wait until one is done");
            return Err(Failure::new(EAGAIN, text));
        }
        Ok(Counted(self))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut uses = self.0.uses();
        *uses -= 1;
        // A wake-up is a system call. Who waits has cancelled that before looking at the uses.
        if *uses == 0 && self.0.ended.is_cancelled() {
            self.0.idle.notify_all();
        }
    }
}

/// A request that is counted as under way.
pub(super) struct Counted(InUse);

impl Counted {
    pub(super) fn in_use(&self) -> &InUse {
        &self.0
    }

    /// It does not count any more, and is still in use: its callback may begin the next one.
    pub(super) fn uncounted(&self) {
        self.0.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
