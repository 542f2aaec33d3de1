//! One connection from accept to close: handshake, perhaps TLS, then transmission, perhaps on another thread.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, Stream};
use crate::export::{ExportDirectory, Session};
use crate::negotiation::{Answer, Encryption, Negotiated, Negotiation, Question, Step};
use crate::tls::{Encrypted, Tls, TlsMode};
use crate::transmission::{Bounds, transmit};

/// The read buffer of a handshake in bytes: options are short, and for the rare long one it grows.
const HANDSHAKE_BUFFER_LEN: usize = 1 << 10;

/// Logs a panic with the peer: the runtime confines it to the connection, but does not know whose it was.
struct PanicLog<'a>(&'a str);

impl Drop for PanicLog<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(peer = self.0, "NBD connection ended by a panic; others are not affected");
        }
    }
}

/// A connection after the handshake.
enum Talk<S> {
    Clear(S),
    Encrypted(Box<Encrypted<S>>),
}

/// What the handshake came to.
struct Agreed<S> {
    talk: Talk<S>,
    session: Arc<dyn Session>,
    negotiated: Negotiated,
    /// What was read past it.
    input: BytesMut,
}

/// Serves one client until it leaves, errs, or the server closes. Dropping the future cuts the client off.
pub(super) async fn serve<S: Stream>(stream: S, peer: String, shared: Arc<Shared>) {
    let log = PanicLog(&peer);
    let limit = shared.limits.handshake_timeout;
    // On the heap for as long as it is needed: an idle connection is to be small.
    let handshake = Box::pin(tokio::time::timeout(limit, shake_hands(stream, &shared)));
    let handshake = tokio::select! {
        biased;
        () = shared.closing.token().cancelled() => return,
        handshake = handshake => handshake,
    };
    let Agreed { talk, session, negotiated, input } = match handshake {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(Unagreed::Tls(error))) => {
            tracing::info!(peer, %error, "an NBD client could not begin TLS");
            return;
        }
        Ok(Err(reason)) => {
            tracing::debug!(peer, %reason, "NBD handshake ended without an export");
            return;
        }
        Err(_) => {
            tracing::info!(peer, ?limit, "NBD handshake took too long");
            return;
        }
    };
    let (style, tls) = (negotiated.style, matches!(talk, Talk::Encrypted(_)));
    tracing::info!(peer, export = negotiated.info.name, ?style, tls, "NBD client connected");
    drop(log);
    let stream = match talk {
        // Encryption takes more time than the request itself: it is not for the thread of a disk.
        Talk::Encrypted(stream) => {
            return Box::pin(converse(*stream, peer, session, negotiated, input, shared)).await;
        }
        Talk::Clear(stream) => stream,
    };
    let Some(home) = session.home() else {
        return Box::pin(converse(stream, peer, session, negotiated, input, shared)).await;
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

/// The handshake, with TLS in between where the client begins it.
async fn shake_hands<S: Stream>(mut stream: S, shared: &Shared) -> Result<Agreed<S>, Unagreed> {
    let mut input = BytesMut::with_capacity(HANDSHAKE_BUFFER_LEN);
    let mut negotiation = Negotiation::new(encryption(shared.tls.as_ref(), S::IS_LOCAL));
    let directory = &*shared.directory;
    if let Some((session, negotiated)) = negotiate(&mut stream, &mut negotiation, &mut input, directory).await? {
        return Ok(Agreed { talk: Talk::Clear(stream), session, negotiated, input });
    }
    let tls = shared.tls.as_ref().ok_or(Unagreed::Refused("TLS that was not offered"))?;
    let mut stream = Box::new(tls.acceptor().accept(stream).await.map_err(Unagreed::Tls)?);
    negotiation.secured();
    match negotiate(&mut *stream, &mut negotiation, &mut input, directory).await? {
        Some((session, negotiated)) => Ok(Agreed { talk: Talk::Encrypted(stream), session, negotiated, input }),
        None => Err(Unagreed::Refused("TLS within TLS")),
    }
}

/// What a client is told of TLS. A Unix socket's file says who may connect, so nothing is demanded there.
fn encryption(tls: Option<&Tls>, is_local: bool) -> Encryption {
    match tls.map(Tls::mode) {
        None => Encryption::Off,
        Some(TlsMode::Required) if !is_local => Encryption::Demanded,
        Some(TlsMode::Required | TlsMode::Optional) => Encryption::Offered,
    }
}

/// Answers the requests of one client.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
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
        stall: limits.stall_timeout,
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
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the client closed the connection")]
    ClientClosed,
    #[error("{0}")]
    Refused(&'static str),
}

/// Drives a handshake: moves bytes and asks the directory. `None` when TLS is to begin.
async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    negotiation: &mut Negotiation,
    input: &mut BytesMut,
    directory: &dyn ExportDirectory,
) -> Result<Option<(Arc<dyn Session>, Negotiated)>, Unagreed> {
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
            // Nothing to do for a socket; what encrypts may have kept a part.
            stream.flush().await?;
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
                return Ok(Some((session, negotiated)));
            }
            Step::StartTls => return Ok(None),
            Step::Ask(_) => {}
        }
    }
}
