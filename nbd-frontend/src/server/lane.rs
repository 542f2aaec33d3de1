//! A thread that serves connections: its own runtime, its own readiness, no hand-over between threads.
//!
//! On the node's many-threaded runtime a request at queue depth 1 cost four futex calls and two to three turns of epoll,
//! since a reply wakes whichever worker sleeps best and the next request another (measured 2026-11-23). On a lane, the
//! one thread that reads a request also sends its reply. All lanes accept on the same sockets.

use std::sync::Arc;
use std::thread::JoinHandle;

use client_lib::{Error, ErrorKind};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{Listener, Shared, accept};
use crate::passing::message::Family;
use crate::passing::successor::Adopted;

/// Threads at most: beyond them the shard is the limit.
const LANES_MAX: usize = 4;

/// How many lanes suit this machine: half of its cores, since clients and shards need the others.
pub(super) fn count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 2).clamp(1, LANES_MAX)
}

/// The sockets a lane accepts on, not yet known to any runtime.
pub(crate) struct Sockets {
    pub(crate) tcp: Option<std::net::TcpListener>,
    pub(crate) unix: Option<std::os::unix::net::UnixListener>,
}

impl Sockets {
    pub(super) fn duplicate(&self) -> std::io::Result<Sockets> {
        Ok(Sockets {
            tcp: self.tcp.as_ref().map(std::net::TcpListener::try_clone).transpose()?,
            unix: self.unix.as_ref().map(std::os::unix::net::UnixListener::try_clone).transpose()?,
        })
    }
}

/// A running lane.
#[derive(Debug)]
pub(super) struct Lane {
    thread: JoinHandle<()>,
    runtime: Handle,
    ended: oneshot::Receiver<()>,
}

impl Lane {
    /// Starts a thread that serves until `shared` closes or somebody has taken over, and begins with `adopted`.
    ///
    /// # Errors
    /// `Internal` when the system gives no thread or descriptors.
    pub(super) fn start(
        number: usize,
        sockets: &Sockets,
        adopted: Vec<Adopted>,
        shared: Arc<Shared>,
    ) -> Result<Lane, Error> {
        let sockets = sockets.duplicate().map_err(failed)?;
        Lane::run(&format!("nbd-{number}"), move || async move {
            if let Err(error) = serve(sockets, adopted, shared).await {
                tracing::error!(%error, "NBD is not served any more: a listening socket cannot be used");
            }
        })
    }

    /// Starts a thread that runs what `make` makes.
    ///
    /// # Errors
    /// `Internal` when the system gives no thread or descriptors.
    pub(super) fn run<F: Future<Output = ()>>(
        name: &str,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Lane, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        // A lane logs where whoever made the server logs.
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _log = tracing::dispatcher::set_default(&dispatch);
            runtime.block_on(make());
            // What an export still holds must not hold up the shutdown.
            runtime.shutdown_background();
            // Nobody waits when the server was dropped.
            let _ = end.send(());
        });
        Ok(Lane { thread: thread.map_err(failed)?, runtime: handle, ended })
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(self) {
        // A thread that panicked has dropped its end, and its connections are gone with it.
        let _ = self.ended.await;
        let _ = self.thread.join();
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "a thread for NBD cannot be started").caused_by(error)
}

async fn serve(sockets: Sockets, adopted: Vec<Adopted>, shared: Arc<Shared>) -> std::io::Result<()> {
    let tcp = sockets.tcp.map(TcpListener::from_std).transpose()?;
    let unix = sockets.unix.map(UnixListener::from_std).transpose()?;
    let (of_unix, of_tcp) = adopted.into_iter().partition(|adopted| adopted.family == Family::Unix);
    tokio::join!(accept_on(tcp, of_tcp, &shared), accept_on(unix, of_unix, &shared));
    Ok(())
}

async fn accept_on<L: Listener>(listener: Option<L>, adopted: Vec<Adopted>, shared: &Arc<Shared>) {
    if let Some(listener) = listener {
        accept(listener, adopted, Arc::clone(shared)).await;
    }
}
