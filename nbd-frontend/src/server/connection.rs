//! One connection from accept to close: handshake, then transmission, perhaps on another thread.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, Stream};
use crate::export::{ExportDirectory, Session};
use crate::negotiation::{Answer, Negotiated, Negotiation, Question, Step};
use crate::transmission::{Bounds, READ_BUFFER_LEN, transmit};

/// Logs a panic with the peer: the runtime confines it to the connection, but does not know whose it was.
struct PanicLog<'a>(&'a str);

impl Drop for PanicLog<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(peer = self.0, "NBD connection ended by a panic; others are not affected");
        }
    }
}

/// Serves one client until it leaves, errs, or the server closes. Dropping the future cuts the client off.
pub(super) async fn serve<S: Stream>(mut stream: S, peer: String, shared: Arc<Shared>) {
    let log = PanicLog(&peer);
    let limit = shared.limits.handshake_timeout;
    let mut input = BytesMut::with_capacity(READ_BUFFER_LEN);
    let handshake = tokio::select! {
        biased;
        () = shared.closing.token().cancelled() => return,
        handshake = tokio::time::timeout(limit, negotiate(&mut stream, &mut input, &*shared.directory)) => handshake,
    };
    let (session, negotiated) = match handshake {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(reason)) => {
            tracing::debug!(peer, %reason, "NBD handshake ended without an export");
            return;
        }
        Err(_) => {
            tracing::info!(peer, ?limit, "NBD handshake took too long");
            return;
        }
    };
    tracing::info!(peer, export = negotiated.info.name, style = ?negotiated.style, "NBD client connected");
    drop(log);
    let Some(home) = session.home() else {
        return converse(stream, peer, session, negotiated, input, shared).await;
    };
    let left = stream.leave();
    let conversation = home.spawn(async move {
        match left.and_then(S::arrive) {
            Ok(stream) => converse(stream, peer, session, negotiated, input, shared).await,
            Err(error) => tracing::warn!(peer, %error, "an NBD connection cannot be moved to its export"),
        }
    });
    // It has told of its end itself, or its runtime has ended.
    let _ = AbortOnDropHandle::new(conversation).await;
}

/// Answers the requests of one client.
async fn converse<S: Stream>(
    mut stream: S,
    peer: String,
    session: Arc<dyn Session>,
    negotiated: Negotiated,
    input: BytesMut,
    shared: Arc<Shared>,
) {
    let _log = PanicLog(&peer);
    let (limits, export) = (&shared.limits, &negotiated.info.name);
    let bounds = Bounds {
        requests: limits.requests_in_flight_max.max(1),
        bytes: limits.bytes_in_flight_max,
        drain: limits.drain_timeout,
    };
    match transmit(&mut stream, &*session, &negotiated, input, bounds, &shared.closing, &peer).await {
        Ok(end) => tracing::info!(peer, export, ?end, "NBD client gone"),
        Err(error) => tracing::info!(peer, export, %error, "NBD connection broken"),
    }
    // A closing handshake where the transport has one; the peer may be gone.
    let _ = stream.shutdown().await;
}

/// Why a handshake ended without an export.
#[derive(Debug, thiserror::Error)]
enum Unagreed {
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("the client closed the connection")]
    ClientClosed,
    #[error("{0}")]
    Refused(&'static str),
}

/// Drives a handshake: moves bytes and asks the directory.
async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
    directory: &dyn ExportDirectory,
) -> Result<(Arc<dyn Session>, Negotiated), Unagreed> {
    let mut negotiation = Negotiation::new();
    let mut opened = None;
    loop {
        let step = negotiation.advance(input);
        if let Step::Ask(question) = step {
            let answer = match question {
                Question::List => Answer::List(directory.list().await),
                Question::Info(name) => Answer::Export(directory.info(&name).await),
                Question::Open(name) => Answer::Export(directory.open(&name).await.map(|session| {
                    let info = session.info();
                    opened = Some(session);
                    info
                })),
            };
            negotiation.answer(answer);
            continue;
        }
        let output = negotiation.take_output();
        if !output.is_empty() {
            stream.write_all(&output).await?;
        }
        match step {
            Step::Read => {
                if stream.read_buf(input).await? == 0 {
                    return Err(Unagreed::ClientClosed);
                }
            }
            Step::Close(reason) => return Err(Unagreed::Refused(reason)),
            Step::Transmit(negotiated) => {
                let session = opened.take().ok_or(Unagreed::Refused("the export was not opened"))?;
                return Ok((session, negotiated));
            }
            Step::Ask(_) => {}
        }
    }
}
