//! One connection from accept to close: handshake, perhaps TLS, then transmission, perhaps on another thread. It may begin where
//! another process stopped, and stop where another process goes on.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use super::handshake::{Handshake, Unagreed};
use super::{Shared, Stream};
use crate::export::Session;
use crate::negotiation::{Encryption, Negotiated, Negotiation};
use crate::passing::gate::{Guest, Parcel, Parked, Stage, Verdict};
use crate::passing::message::{Discard, Family, HandshakeState};
use crate::tls::{Encrypted, Tls, TlsMode};
use crate::transmission::{Bounds, Rest, Stop, Talk, Transmission};

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

/// Where a connection begins.
pub(crate) enum Begin {
    /// It was accepted just now.
    Accepted,
    /// In a handshake that another process has begun.
    Handshake { state: HandshakeState, rest: Rest },
    /// Behind a handshake with another process.
    Transmission { session: Arc<dyn Session>, negotiated: Negotiated, rest: Rest },
}

/// What carries requests and replies.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where another process can go on with it.
    fn socket(&self) -> Option<(BorrowedFd<'_>, Family)>;
}

impl<S: Stream> Wire for S {
    fn socket(&self) -> Option<(BorrowedFd<'_>, Family)> {
        Some((self.as_fd(), S::FAMILY))
    }
}

/// Keys and counters are inside of the TLS library.
impl<S: Stream> Wire for Encrypted<S> {
    fn socket(&self) -> Option<(BorrowedFd<'_>, Family)> {
        None
    }
}

/// A connection after the handshake.
enum Line<S> {
    Clear(S),
    Encrypted(Box<Encrypted<S>>),
}

/// What the handshake came to.
struct Agreed<S> {
    line: Line<S>,
    session: Arc<dyn Session>,
    negotiated: Negotiated,
    /// What was read past it, and what of it is to be sent.
    rest: Rest,
}

/// Serves one client until it leaves, errs, or the server closes. Holds `shaking` for as long as the handshake takes. Dropping the future cuts the client
/// off.
pub(super) async fn serve<S: Stream>(
    stream: S,
    peer: String,
    begin: Begin,
    mut guest: Guest,
    shaking: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
) {
    let log = PanicLog(&peer);
    let limit = shared.limits.handshake_timeout;
    let closed = shared.closing.token();
    if !matches!(begin, Begin::Accepted) {
        // Taken over, and not to be read before the other process has said that it does not.
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            verdict = guest.park(Parcel::Nothing) => if verdict == Verdict::Gone { return },
        }
    }
    // On the heap for as long as it is needed: an idle connection is to be small.
    let handshake = Box::pin(tokio::time::timeout(limit, shake_hands(stream, begin, &peer, &mut guest, &shared)));
    let handshake = tokio::select! {
        biased;
        () = closed.cancelled() => return,
        handshake = handshake => handshake,
    };
    drop(shaking);
    let Agreed { line, session, negotiated, rest } = match handshake {
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
    let (style, tls) = (negotiated.style, matches!(line, Line::Encrypted(_)));
    tracing::info!(peer, export = negotiated.info.name, ?style, tls, "NBD client connected");
    drop(log);
    guest.uses(&session);
    if session.share().is_none() {
        guest.stay();
    }
    let conversation = Conversation { peer, session, negotiated, guest, shared };
    let stream = match line {
        // Encryption takes more time than the request itself: it is not for the thread of a disk.
        Line::Encrypted(stream) => return Box::pin(conversation.hold(*stream, rest)).await,
        Line::Clear(stream) => stream,
    };
    let Some(home) = conversation.session.home() else {
        return Box::pin(conversation.hold(stream, rest)).await;
    };
    let left = stream.leave();
    let conversation = home.spawn(async move {
        match left.and_then(S::arrive) {
            Ok(stream) => conversation.hold(stream, rest).await,
            Err(error) => {
                tracing::warn!(peer = conversation.peer, %error, "an NBD connection cannot be moved to its export");
            }
        }
    });
    // It has told of its end itself, or its runtime has ended.
    let _ = AbortOnDropHandle::new(conversation).await;
}

/// The handshake, with TLS in between where the client begins it.
async fn shake_hands<S: Stream>(
    mut stream: S,
    begin: Begin,
    peer: &str,
    guest: &mut Guest,
    shared: &Shared,
) -> Result<Agreed<S>, Unagreed> {
    let encryption = encryption(shared.tls.as_ref(), S::FAMILY == Family::Unix);
    let (negotiation, rest) = match begin {
        Begin::Transmission { session, negotiated, rest } => {
            return Ok(Agreed { line: Line::Clear(stream), session, negotiated, rest });
        }
        Begin::Handshake { state, rest } => (Negotiation::resumed(state, encryption), rest),
        Begin::Accepted => {
            let input = BytesMut::with_capacity(HANDSHAKE_BUFFER_LEN);
            (Negotiation::new(encryption), Rest { input, ..Rest::default() })
        }
    };
    let mut handshake = Handshake::new(negotiation, rest, peer, &*shared.directory);
    if let Some((session, negotiated)) = handshake.go_on(&mut stream, guest).await? {
        return Ok(Agreed { line: Line::Clear(stream), session, negotiated, rest: handshake.rest() });
    }
    let tls = shared.tls.as_ref().ok_or(Unagreed::Refused("TLS that was not offered"))?;
    guest.stay();
    let mut stream = Box::new(tls.acceptor().accept(stream).await.map_err(Unagreed::Tls)?);
    handshake.secured();
    match handshake.go_on(&mut *stream, guest).await? {
        Some((session, negotiated)) => {
            Ok(Agreed { line: Line::Encrypted(stream), session, negotiated, rest: handshake.rest() })
        }
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

/// A client and what it uses.
struct Conversation {
    peer: String,
    session: Arc<dyn Session>,
    negotiated: Negotiated,
    guest: Guest,
    shared: Arc<Shared>,
}

impl Conversation {
    /// Answers requests. A client that another process goes on with is let alone.
    async fn hold<S: Wire>(&self, mut stream: S, rest: Rest) {
        let _log = PanicLog(&self.peer);
        let limits = &self.shared.limits;
        let bounds = Bounds {
            requests: limits.requests_in_flight_max.max(1),
            bytes: limits.bytes_in_flight_max,
            stall: limits.stall_timeout,
            drain: limits.drain_timeout,
        };
        let talk = Talk { session: &*self.session, negotiated: &self.negotiated, peer: &self.peer };
        let gate = self.guest.watch();
        let mut transmission = Transmission::new(&mut stream, talk, rest, bounds, &self.shared.closing, gate);
        let (peer, export) = (&self.peer, &self.negotiated.info.name);
        loop {
            match transmission.run().await {
                Ok(Stop::Paused) => {
                    let stage = |discard| {
                        let (session, negotiated) = (self.session.clone(), self.negotiated.clone());
                        Stage::Transmission { session, negotiated, discard }
                    };
                    let parked = parcel(transmission.stream(), peer, transmission.rest(), stage);
                    match park(&self.guest, parked).await {
                        Verdict::GoOn => {}
                        // Not even a shutdown: that would be the other process's as well.
                        Verdict::Gone => return tracing::debug!(peer, export, "NBD client passed on"),
                    }
                }
                Ok(Stop::Ended(end)) => break tracing::info!(peer, export, ?end, "NBD client gone"),
                Err(error) => break tracing::info!(peer, export, %error, "NBD connection broken"),
            }
        }
        drop(transmission);
        // A closing handshake where the transport has one; the peer may be gone, or read nothing.
        let _ = tokio::time::timeout(limits.drain_timeout, stream.shutdown()).await;
    }
}

/// All that another process needs to go on with a client; `None` when it cannot be had.
pub(super) fn parcel<S: Wire>(
    stream: &S,
    peer: &str,
    rest: Rest,
    stage: impl FnOnce(Option<Discard>) -> Stage,
) -> Option<Parcel> {
    // Who has no socket has told the gate so, and is not asked to rest.
    let (descriptor, family) = stream.socket()?;
    let Rest { input, unsent, discard } = rest;
    match descriptor.try_clone_to_owned() {
        Ok(descriptor) => {
            let (peer, stage) = (peer.to_owned(), stage(discard));
            Some(Parcel::Connection(Box::new(Parked { descriptor, family, peer, unsent, input: input.into(), stage })))
        }
        Err(error) => {
            tracing::warn!(peer, %error, "an NBD connection cannot be passed on");
            None
        }
    }
}

/// Rests until it is said what becomes of the client.
pub(super) async fn park(guest: &Guest, parcel: Option<Parcel>) -> Verdict {
    match parcel {
        Some(parcel) => guest.park(parcel).await,
        // It is waited for in vain, so nobody is passed on, and all go on.
        None => guest.until_opened().await,
    }
}
