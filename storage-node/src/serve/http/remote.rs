//! The admin API for other machines: TLS, with a certificate of the cluster shown by whoever asks, which says who that is.
//!
//! One request on each connection, so that what a certificate is worth and what its client may do is looked at for each. Everything has a bound:
//! there are never more than [`HANDSHAKES_MAX`] and [`CONNECTIONS_MAX`] connections. Whoever holds all places of handshakes keeps others out for
//! [`HANDSHAKE_TIMEOUT`] at a time, and the API on loopback goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use client_lib::pki::{CertificateHolder, ClusterId, Fingerprint, NodeIdentity, certificate_holder, tls};
use client_lib::{Error, ErrorKind};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::caller::{Proof, Shown};
use super::{AuditLog, api, refused};
use crate::serve::accepting::accept;
use crate::serve::admin::Admin;

/// Handshakes at a time, with those that are done and wait for a place; further connections wait to be accepted.
const HANDSHAKES_MAX: usize = 64;

/// How long one may take; then the connection is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of clients that are served at a time; further ones wait.
const CONNECTIONS_MAX: usize = 64;

/// How long one waits for that; then it is told to come again.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request may take to come; then the connection is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take with everything, the answer included. Beyond what a command waits for.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// A listener that runs; dropped, it ends.
#[derive(Debug)]
pub struct RemoteServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl RemoteServer {
    /// Listens on `address` as the node of `identity`, and serves `admin`; acts are noted in `audit`.
    ///
    /// # Errors
    /// `Busy` when the port is in use or the address is not this machine's; `Internal` when the certificate cannot be used.
    pub async fn bind(
        address: SocketAddr,
        identity: &NodeIdentity,
        admin: Arc<dyn Admin>,
        audit: Arc<AuditLog>,
    ) -> Result<RemoteServer, Error> {
        let config = tls::node_server(identity).map_err(|error| {
            Error::new(ErrorKind::Internal, "the admin API cannot be served over TLS").caused_by(error)
        })?;
        let failed = |error| {
            let text =
                format!("the admin API cannot listen for other machines on {address} (TCP): another program does");
            Error::new(ErrorKind::Busy, text).caused_by(error)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "the admin API is served for other machines, over TLS");
        let door = Arc::new(Door {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            cluster: identity.cluster().clone(),
            admin: admin.clone(),
            router: api(admin, audit, Proof::Certificate).layer(from_fn(no_pages)),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let connections = accept(listener, "the admin API", HANDSHAKES_MAX, move |stream, from, handshake| {
            let door = door.clone();
            async move { door.serve(stream, from, handshake).await }
        });
        Ok(RemoteServer { address, task: tokio::spawn(connections) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RemoteServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What every connection needs.
struct Door {
    acceptor: TlsAcceptor,
    cluster: ClusterId,
    admin: Arc<dyn Admin>,
    router: Router,
    places: Arc<Semaphore>,
}

impl Door {
    async fn serve(&self, stream: TcpStream, from: SocketAddr, handshake: OwnedSemaphorePermit) {
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%from, %error, "a connection to the admin API was refused"),
            Err(_) => return tracing::debug!(%from, "a connection to the admin API took too long to begin"),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        // TLS has demanded one, and checked that the cluster's authority has signed it.
        let Some(certificate) = shown else { return };
        let client = match certificate_holder(certificate, &self.cluster) {
            Ok(CertificateHolder::Client(client)) => client,
            Ok(CertificateHolder::Node(node)) => {
                return tracing::warn!(%from, %node, "the admin API is for clients, and was asked with the certificate of a node");
            }
            Err(error) => {
                return tracing::warn!(%from, %error, "the admin API was asked with a certificate that names nobody");
            }
        };
        let shown = Shown { client, certificate: Fingerprint::of(certificate) };
        let is_let_in = self.admin.role_of(&shown.client, &shown.certificate).is_some();
        let router = self.router.clone().layer(Extension(shown));
        if !is_let_in {
            // The router says so. It takes no place of those who may ask.
            return answer(stream, from, router, HANDSHAKE_TIMEOUT).await;
        }
        // The place of its handshake it keeps until then, so that there is an end to how many wait.
        let place = match tokio::time::timeout(PLACE_TIMEOUT, self.places.acquire()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return,
            Err(_) => return answer(stream, from, Router::new().fallback(full), HANDSHAKE_TIMEOUT).await,
        };
        drop(handshake);
        answer(stream, from, router, CONNECTION_TIMEOUT).await;
        drop(place);
    }
}

/// Answers one request with `router`, if all of it takes no longer than `patience`.
async fn answer(stream: TlsStream<TcpStream>, from: SocketAddr, router: Router, patience: Duration) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).keep_alive(false);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(patience, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, %error, "a request to the admin API broke off"),
        Err(_) => tracing::debug!(%from, "a request to the admin API took too long"),
    }
}

/// Refuses for want of a place.
async fn full() -> Response {
    let message =
        format!("the node answers {CONNECTIONS_MAX} requests from other machines already: try again in a moment");
    refused(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, message)
}

/// Refuses what a page in a browser asks: one that has the certificate would ask with it, whoever's the page is.
async fn no_pages(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let of_page =
        headers.contains_key(header::ORIGIN) || headers.contains_key(HeaderName::from_static("sec-fetch-site"));
    if !of_page {
        return next.run(request).await;
    }
    let message = "a page in a browser may not use the admin API from another machine; the dashboard is on loopback (docs/dashboard.md)";
    refused(StatusCode::FORBIDDEN, ErrorKind::InvalidRequest, message.to_owned())
}
