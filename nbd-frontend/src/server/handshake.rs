//! Drives a handshake: moves bytes, asks the directory, and rests when the gate closes, wherever it is.
//!
//! Another process goes on from where this one last waited for the client: what was asked of the directory since is asked
//! again there, which changes nothing but time. So a directory that takes long to answer holds up nobody.

use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use client_lib::ErrorKind;
use client_lib::error::whole;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::{Wire, parcel, park};
use crate::export::{ExportDirectory, Session};
use crate::negotiation::{Answer, Negotiated, Negotiation, Question, Step};
use crate::passing::gate::{Guest, Parcel, Stage, Verdict};
use crate::transmission::Rest;

/// Why a handshake ended without an export.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unagreed {
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the client closed the connection")]
    ClientClosed,
    #[error("another process goes on with it")]
    PassedOn,
    #[error("{0}")]
    Refused(&'static str),
}

/// A handshake and the bytes around it.
pub(super) struct Handshake<'a> {
    negotiation: Negotiation,
    input: BytesMut,
    unsent: BytesMut,
    peer: &'a str,
    directory: &'a dyn ExportDirectory,
}

impl<'a> Handshake<'a> {
    pub(super) fn new(
        mut negotiation: Negotiation,
        rest: Rest,
        peer: &'a str,
        directory: &'a dyn ExportDirectory,
    ) -> Handshake<'a> {
        let Rest { input, unsent, discard: _ } = rest;
        let mut unsent = BytesMut::from(&unsent[..]);
        unsent.extend_from_slice(&negotiation.take_output());
        Handshake { negotiation, input, unsent, peer, directory }
    }

    /// TLS has begun.
    pub(super) fn secured(&mut self) {
        self.negotiation.secured();
    }

    /// What was read past it, and what of it is to be sent.
    pub(super) fn rest(self) -> Rest {
        Rest { input: self.input, unsent: self.unsent.to_vec(), discard: None }
    }

    /// Goes on until there is an export, of whose last reply a part may be left to be sent; `None` when TLS is to begin.
    pub(super) async fn go_on<S: Wire>(
        &mut self,
        stream: &mut S,
        guest: &mut Guest,
    ) -> Result<Option<(Arc<dyn Session>, Negotiated)>, Unagreed> {
        let mut opened = None;
        loop {
            self.send(stream, guest).await?;
            // Until the client says more, everything can be done once more from here.
            let before = Handshake {
                negotiation: self.negotiation.clone(),
                input: self.input.clone(),
                unsent: BytesMut::new(),
                peer: self.peer,
                directory: self.directory,
            };
            let step = loop {
                match self.negotiation.advance(&mut self.input) {
                    Step::Ask(question) => {
                        let mut asking = pin!(ask(self.directory, question, self.peer));
                        let (answer, session) = loop {
                            tokio::select! {
                                biased;
                                answered = &mut asking => break answered,
                                () = guest.until_closed() => {
                                    let left = before.parcel(stream);
                                    rest(guest, left).await?;
                                }
                            }
                        };
                        opened = session.or(opened);
                        self.negotiation.answer(answer);
                    }
                    step => break step,
                }
            };
            self.unsent.extend_from_slice(&self.negotiation.take_output());
            match step {
                Step::Read => {
                    self.send(stream, guest).await?;
                    tokio::select! {
                        biased;
                        () = guest.until_closed() => {
                            let left = self.parcel(stream);
                            rest(guest, left).await?;
                        }
                        read = stream.read_buf(&mut self.input) => if read? == 0 {
                            return Err(Unagreed::ClientClosed);
                        }
                    }
                }
                Step::Close(reason) => {
                    // It is over: nobody waits for a client that does not read.
                    tokio::select! {
                        biased;
                        _ = send_all(stream, &mut self.unsent) => {}
                        () = guest.until_closed() => {}
                    }
                    return Err(Unagreed::Refused(reason));
                }
                Step::Transmit(negotiated) => {
                    let session = opened.take().ok_or(Unagreed::Refused("the export was not opened"))?;
                    // From here on it can be passed on with a part of this unsent.
                    tokio::select! {
                        biased;
                        () = guest.until_closed() => {}
                        sent = send_all(stream, &mut self.unsent) => sent?,
                    }
                    return Ok(Some((session, negotiated)));
                }
                Step::StartTls => {
                    // Keys and counters will be inside of the TLS library, where another process cannot have them from.
                    guest.stay();
                    self.send(stream, guest).await?;
                    return Ok(None);
                }
                // Sent before anything else is done.
                Step::Send | Step::Ask(_) => {}
            }
        }
    }

    /// Sends what is left.
    async fn send<S: Wire>(&mut self, stream: &mut S, guest: &Guest) -> Result<(), Unagreed> {
        while !self.unsent.is_empty() {
            tokio::select! {
                biased;
                () = guest.until_closed() => {
                    let left = self.parcel(stream);
                    rest(guest, left).await?;
                }
                sent = stream.write_buf(&mut self.unsent) => drop(sent?),
            }
        }
        // Nothing to do for a socket; what encrypts may have kept a part.
        Ok(stream.flush().await?)
    }

    /// All that another process needs to go on from here.
    fn parcel<S: Wire>(&self, stream: &S) -> Option<Parcel> {
        let state = self.negotiation.state()?;
        let rest = Rest { input: self.input.clone(), unsent: self.unsent.to_vec(), discard: None };
        parcel(stream, self.peer, rest, |_| Stage::Handshake(state))
    }
}

/// Cancel-safe: what is left is what was not sent.
async fn send_all<S: Wire>(stream: &mut S, unsent: &mut BytesMut) -> std::io::Result<()> {
    while !unsent.is_empty() {
        stream.write_buf(unsent).await?;
    }
    stream.flush().await
}

/// Rests until it is said what becomes of the client.
async fn rest(guest: &Guest, parcel: Option<Parcel>) -> Result<(), Unagreed> {
    match park(guest, parcel).await {
        Verdict::GoOn => Ok(()),
        Verdict::Gone => Err(Unagreed::PassedOn),
    }
}

/// Asks the directory; with the session that was opened for it.
async fn ask(directory: &dyn ExportDirectory, question: Question, peer: &str) -> (Answer, Option<Arc<dyn Session>>) {
    match question {
        Question::List => (Answer::List(directory.list().await), None),
        Question::Info(name) => (Answer::Export(directory.info(&name).await), None),
        Question::Open(name) => match directory.open(&name).await {
            Ok(session) => (Answer::Export(Ok(session.info())), Some(session)),
            Err(error) => {
                // Most clients show a number and not the words that they are sent.
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(peer, export = name, error = whole(&error), "an NBD client is refused an export");
                }
                (Answer::Export(Err(error)), None)
            }
        },
    }
}
