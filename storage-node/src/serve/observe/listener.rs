//! A listener for [`super::routes`] alone, which may be reached from other machines: for Prometheus, and for whoever probes.
//!
//! Nothing can be changed through it. Each of its connections serves one request, with a bound on everything: whoever holds all
//! connections keeps others from looking, for [`CONNECTION_TIMEOUT`] at most, and keeps the node from nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client_lib::{Error, ErrorKind};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Observe, routes};
use crate::serve::accepting::accept;

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;

/// How long a request may take to come; then the connection is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may take with everything, the answer included; then it is closed.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest request, in bytes; a larger one is refused. As few as hyper allows.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Most headers of a request; one with more is refused.
const HEADERS_MAX: usize = 64;

/// A listener that runs; dropped, it ends.
#[derive(Debug)]
pub struct ObserveServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl ObserveServer {
    /// Listens on `address`, which may be any, and tells of `observe`.
    ///
    /// # Errors
    /// `Busy` when the port is in use or the address is not this machine's.
    pub async fn bind(address: SocketAddr, observe: Arc<dyn Observe>) -> Result<ObserveServer, Error> {
        let failed = |error| {
            let text = format!("metrics cannot be served on {address}; choose another address or port");
            Error::new(ErrorKind::Busy, text).caused_by(error)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "metrics and health are served");
        let connections = accept(listener, "metrics", CONNECTIONS_MAX, move |stream, _, place| {
            let observe = observe.clone();
            async move {
                serve(stream, observe).await;
                drop(place);
            }
        });
        Ok(ObserveServer { address, task: tokio::spawn(connections) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ObserveServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, observe: Arc<dyn Observe>) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    server.max_buf_size(REQUEST_BYTES_MAX).max_headers(HEADERS_MAX).keep_alive(false);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes(observe)));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        // Whoever sends something else is told so where that is possible.
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics broke off"),
        Err(_) => tracing::debug!("a request for metrics took too long"),
    }
}
