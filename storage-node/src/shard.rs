//! One single-threaded data path: a log, a map and the volumes pinned to it.
//!
//! [`Shard::start`] recovers the directory on a thread of its own and returns a [`handle::ShardHandle`]; everything
//! after that happens on that thread, on a runtime that it shares with the connections it serves. [`core`] is the loop: requests in, log entries out, events applied in log
//! order, replies; [`sleep`] what it waits for. [`mod@write`], [`fetch`], [`replica`], [`control`], [`resize`], [`snapshots`], [`rollback`] and [`clone`] hold what the requests do, [`lease`] what may not be answered while the node's lease is out, [`unready`] what waits for volumes, [`sync`] who waits for
//! what to be durable, [`checkpoint`] and [`recover`] how the state gets into the map store and back, [`clean`] how
//! segments come free under random overwrites, [`damage`] what is known to be unreadable, [`fatal`] what a panic comes to, [`space`] where the space goes, [`figures`] what is counted, [`operations`] of guests likewise, [`scrub`] how it is found when nobody reads it. No lock is held anywhere: volumes of a shard share nothing with others.

pub mod figures;
pub mod handle;
pub mod news;
pub mod operations;
pub mod scrub;
pub mod space;

mod checkpoint;
mod clean;
mod clone;
mod control;
mod core;
mod damage;
mod entries;
mod extents;
mod fatal;
mod fetch;
mod held;
mod initial;
mod lease;
mod rebuild;
mod recover;
mod replica;
mod rescue;
mod resize;
mod rollback;
mod run;
mod sleep;
mod snapshots;
mod sync;
mod touched;
mod unready;
mod write;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::io::{Bell, EngineKind, open_engine};
use crate::log::{LogError, LogSettings};
use crate::map::store::MapError;
use crate::ownership::lease::LeaseCell;
pub(crate) use checkpoint::{decode_cold_end, decode_position};
use core::Core;
use fatal::EndsProcess;
use handle::{QUEUE_DEPTH, ShardHandle};

/// A week: a block is read often enough that two copies of it seldom decay between passes.
pub const SCRUB_PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);

/// A fifth of what a slow disk reads, and a terabyte in nine hours.
pub const SCRUB_BYTES_PER_SECOND: u64 = 32 << 20;

/// What was deleted is back in seconds, and an idle shard has next to nothing to do.
pub const RECLAIM_PAUSE: Duration = Duration::from_secs(5);

/// Settings of a shard.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Where it lives: `FORMAT`, `segments/` and `map/` are made in it.
    pub directory: PathBuf,
    /// Which I/O engine to use.
    pub engine: EngineKind,
    /// How segments are laid out and how much they may take together.
    pub log: LogSettings,
    /// Memory for pages of the block map. Less means more look-ups in RocksDB and more frequent checkpoints.
    pub map_cache_bytes: usize,
    /// Log written before a checkpoint begins by itself. More means longer recovery and fewer checkpoints.
    pub checkpoint_log_bytes: u64,
    /// How often a scrub of everything stored begins by itself, and over how long it is spread; `None`: never. Shorter finds
    /// damage sooner and reads more of the time.
    pub scrub_period: Option<Duration>,
    /// The most that a scrub reads in a second.
    pub scrub_bytes_per_second: u64,
    /// How often it is looked whether a checkpoint would free segments that nobody needs; `None` leaves them to the next one.
    pub reclaim_pause: Option<Duration>,
    /// Under what the node may act as an owner; looked at before anything is answered as one.
    pub lease: Arc<LeaseCell>,
}

impl ShardOptions {
    /// The usual settings for a shard in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> ShardOptions {
        ShardOptions {
            directory,
            engine: EngineKind::default(),
            log: LogSettings::default(),
            map_cache_bytes: 64 << 20,
            checkpoint_log_bytes: 512 << 20,
            scrub_period: Some(SCRUB_PERIOD),
            scrub_bytes_per_second: SCRUB_BYTES_PER_SECOND,
            reclaim_pause: Some(RECLAIM_PAUSE),
            lease: Arc::new(LeaseCell::forever()),
        }
    }
}

/// Why a shard could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The map cannot be used; a newer format is refused here.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The log cannot be used.
    #[error("the log in {}: {source}", directory.display())]
    Log {
        /// The segments' directory.
        directory: PathBuf,
        /// Why.
        source: LogError,
    },
    /// The directory, the I/O engine or the thread cannot be had.
    #[error("{}: {source}", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread ended before it had recovered: a bug; its panic is in the log.
    #[error("the shard's thread ended during recovery")]
    Died,
}

/// A shard, before it is a handle.
#[derive(Debug)]
pub struct Shard;

impl Shard {
    /// Recovers the shard in `options.directory`, or makes a new one, and returns the way into it when it is ready.
    /// The shard stops when asked to, or when the last handle is gone.
    ///
    /// # Errors
    /// When the directory is of a newer format (and then left untouched), damaged, or cannot be used.
    pub async fn start(options: ShardOptions) -> Result<ShardHandle, StartError> {
        Shard::start_with(options, open).await
    }

    /// A shard on a simulated disk, with its map in memory, which may have been there before.
    #[cfg(test)]
    pub(crate) async fn start_on(
        options: ShardOptions,
        disk: crate::io::sim::SimDisk,
        store: crate::map::store::MapStore,
    ) -> Result<ShardHandle, StartError> {
        Shard::start_with(options, move |options, bell| {
            recover::recover_with(options, Box::new(disk.engine()), bell, store)
        })
        .await
    }

    /// As [`start_on`](Self::start_on), as a task of this runtime and in its time.
    #[cfg(test)]
    pub(crate) fn start_as_task(
        options: ShardOptions,
        disk: &crate::io::sim::SimDisk,
        store: crate::map::store::MapStore,
    ) -> Result<ShardHandle, StartError> {
        let (queue, requests) = mpsc::channel(QUEUE_DEPTH);
        let bell = Arc::<Bell>::default();
        let engine = Box::new(disk.engine_in_time(bell.clone()));
        let core = recover::recover_with(options, engine, bell, store)?;
        let (fault, sleep) = (core.fault_cell(), core.sleep()?);
        tokio::spawn(async move {
            if let (Some(reply), outcome) = core.run(sleep, requests).await {
                drop(reply.send(outcome));
            }
        });
        Ok(ShardHandle::new(queue, tokio::runtime::Handle::current(), fault))
    }

    async fn start_with(
        options: ShardOptions,
        open: impl FnOnce(ShardOptions, Arc<Bell>) -> Result<Core, StartError> + Send + 'static,
    ) -> Result<ShardHandle, StartError> {
        let (queue, requests) = mpsc::channel(QUEUE_DEPTH);
        let (ready, started) = oneshot::channel();
        let directory = options.directory.clone();
        let failed = |source| StartError::Io { directory: directory.clone(), source };
        // Current-thread: the shard's state never leaves its thread.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let home = runtime.handle().clone();
        let at = directory.clone();
        let run = move || {
            let opened = open(options, Arc::default()).and_then(|core| {
                let _context = runtime.enter();
                let sleep = core.sleep()?;
                Ok((core, sleep))
            });
            match opened {
                Ok((core, sleep)) => {
                    if ready.send(Ok(core.fault_cell())).is_ok() {
                        let _ends = EndsProcess { directory: &at };
                        // Told only when the files are closed: the same process may open them again at once.
                        let (reply, outcome) = runtime.block_on(core.run(sleep, requests));
                        match (reply, outcome) {
                            (Some(reply), outcome) => drop(reply.send(outcome)),
                            (None, Err(error)) => tracing::error!(%error, "a shard did not stop cleanly"),
                            (None, Ok(())) => {}
                        }
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
            // What still runs here must not hold up the end.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("shard".to_owned()).spawn(run).map_err(failed)?;
        let fault = started.await.map_err(|_| StartError::Died)??;
        Ok(ShardHandle::new(queue, home, fault))
    }
}

fn open(options: ShardOptions, bell: Arc<Bell>) -> Result<Core, StartError> {
    let segments = recover::prepare(&options)?;
    let engine = open_engine(options.engine, &segments, &bell)
        .map_err(|source| StartError::Io { directory: segments.clone(), source })?;
    recover::recover(options, engine, bell)
}
