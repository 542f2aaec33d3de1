//! The listener of the admin API on loopback.
//!
//! Every user of the machine reaches it, and the secret is asked for in each request only. So everything has a bound that whoever has not shown it
//! may use up: there are never more than [`CONNECTIONS_MAX`] connections, each serves one request, which must come within
//! [`REQUEST_TIMEOUT`], and its answer must be taken within [`ANSWER_TIMEOUT`]. Whoever holds all places keeps others waiting for one, and
//! keeps the node from nothing. How long an answer takes to make has no bound: a handover may take what it takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use client_lib::{Error, ErrorKind};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::caller::Secret;
use super::local;
use crate::serve::accepting::accept;
use crate::serve::admin::Admin;
use crate::serve::audit::AuditLog;
use crate::serve::observe::Observe;

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// How long a request may take to come; then the connection is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take to be taken; then the connection is closed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are kept of a request before it is understood; one with a larger head is refused. A browser's has a few KiB.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// A listening admin API; dropped, it ends.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Listens on `address`, serves `admin` to whoever shows `secret`, and tells everybody of `observe`; acts are noted in `audit`.
    ///
    /// # Errors
    /// `InvalidRequest` for an address beyond loopback; `Busy` when the port is in use.
    pub async fn bind(
        address: SocketAddr,
        admin: Arc<dyn Admin>,
        audit: Arc<AuditLog>,
        observe: Arc<dyn Observe>,
        secret: Secret,
    ) -> Result<HttpServer, Error> {
        if !address.ip().is_loopback() {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "the admin API listens on loopback, not on {address}; `remote = true` serves it for other machines, over TLS"
                ),
            ));
        }
        HttpServer::serving(address, local(admin, audit, observe, secret), CONNECTIONS_MAX).await
    }

    async fn serving(address: SocketAddr, router: Router, connections_max: usize) -> Result<HttpServer, Error> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::new(
                ErrorKind::Busy,
                format!("the admin API cannot listen on {address}; choose another port with --http-port"),
            )
            .caused_by(error)
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::new(ErrorKind::Internal, "the admin API has no address").caused_by(error))?;
        let connections = accept(listener, "the admin API", connections_max, move |stream, _, place| {
            let router = router.clone();
            async move {
                serve(stream, router).await;
                drop(place);
            }
        });
        Ok(HttpServer { address, task: tokio::spawn(connections) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening; requests under way are cut off, what they began goes on.
    pub async fn stop(mut self) {
        self.task.abort();
        // Aborted or ended, it is gone now.
        let _ = (&mut self.task).await;
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request.
async fn serve(stream: TcpStream, router: Router) {
    let (routes, answered) = (TowerToHyperService::new(router), Notify::new());
    let answers = service_fn(|request| {
        let answer = routes.call(request);
        let answered = &answered;
        async move {
            let answer = answer.await;
            answered.notify_one();
            answer
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    server.max_buf_size(HEAD_BYTES_MAX).keep_alive(false);
    let connection = server.serve_connection(TokioIo::new(stream), answers);
    let overdue = async {
        answered.notified().await;
        tokio::time::sleep(ANSWER_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        served = connection => match served {
            Ok(()) => {}
            // Whoever sends something else is told so where that is possible.
            Err(error) => tracing::debug!(%error, "a request to the admin API broke off"),
        },
        () = overdue => tracing::debug!("an answer of the admin API was not taken"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::io::AsyncReadExt;
    use tokio::sync::Semaphore;

    use super::*;

    const PLACES: usize = 16;

    async fn listening(router: Router) -> HttpServer {
        let router = router.route("/health", get(|| async { "ok" }));
        HttpServer::serving(SocketAddr::from(([127, 0, 0, 1], 0)), router, PLACES).await.expect("listens")
    }

    /// Connects and sends `request`, whether or not it is accepted yet.
    fn send(server: &HttpServer, request: &str) -> TcpStream {
        let mut stream = std::net::TcpStream::connect(server.address()).expect("connects");
        stream.write_all(request.as_bytes()).expect("is sent");
        stream.set_nonblocking(true).expect("is set");
        TcpStream::from_std(stream).expect("is taken over")
    }

    fn ask(server: &HttpServer, path: &str) -> TcpStream {
        send(server, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Everything that comes until the connection is closed or cut off.
    async fn rest(mut stream: TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        rest
    }

    fn is_well(answer: &[u8]) -> bool {
        answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"ok")
    }

    /// Connections to loopback had no bound and no end, and the secret is asked for behind them: a user without any right opened so many that the
    /// node had no descriptor left for its clients and its log.
    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_given_up_for_who_waits() {
        let server = listening(Router::new()).await;
        for half in ["", "GET /health HT"] {
            let silent: Vec<TcpStream> = (0..PLACES).map(|_| send(&server, half)).collect();
            assert!(is_well(&rest(ask(&server, "/health")).await), "when one of them was given up");
            for stream in silent {
                assert!(!is_well(&rest(stream).await));
            }
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn there_are_never_more_connections_than_places_and_each_serves_one_request() {
        let (under_way, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, awaited) = (under_way.clone(), go_on.clone());
        let hold = move || {
            let (counted, awaited) = (counted.clone(), awaited.clone());
            async move {
                let now = counted.fetch_add(1, Ordering::Relaxed) + 1;
                assert!(now <= PLACES, "{now}");
                drop(awaited.acquire().await.expect("is never closed"));
                counted.fetch_sub(1, Ordering::Relaxed);
                "ok"
            }
        };
        let server = listening(Router::new().route("/hold", get(hold))).await;
        let twice = "GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2);
        let all: Vec<TcpStream> = (0..PLACES * 2).map(|_| send(&server, &twice)).collect();
        while under_way.load(Ordering::Relaxed) < PLACES {
            tokio::task::yield_now().await;
        }
        go_on.add_permits(1);
        for stream in all {
            let answer = String::from_utf8(rest(stream).await).expect("is text");
            assert!(is_well(answer.as_bytes()) && answer.matches("HTTP/1.1").count() == 1, "{answer}");
        }
    }

    /// An answer that nobody takes holds a place as well, and needs no secret to be asked for.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_his_answer_is_given_up() {
        const LEN: usize = 64 << 20;
        let server = listening(Router::new().route("/large", get(|| async { "x".repeat(LEN) }))).await;
        let greedy = ask(&server, "/large");
        greedy.readable().await.expect("is being answered");
        tokio::time::sleep(ANSWER_TIMEOUT * 2).await;
        let taken = rest(greedy).await;
        assert!(taken.starts_with(b"HTTP/1.1 200") && taken.len() < LEN, "{} bytes", taken.len());
        assert!(is_well(&rest(ask(&server, "/health")).await));
    }
}
