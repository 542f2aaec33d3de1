//! Takes over from a running server: its sockets, its connections, and what they use.
//!
//! The order of events is that of [`super`]. Nothing is read from a connection before the predecessor has said `Go`, or has died
//! when everything was here already.

use std::io::ErrorKind as IoKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use client_lib::{Error, ErrorKind};
use futures_util::future::try_join_all;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::listen;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use super::channel::{Channel, ChannelError};
use super::message::{ConnectionStage, ConnectionState, Family, Hello, Message, Sockets};
use super::{PREPARE_PATIENCE, STEP_PATIENCE};
use crate::export::ExportDirectory;
use crate::negotiation::Negotiated;
use crate::server::connection::Begin;
use crate::server::lane;
use crate::transmission::Rest;

/// Successors that may wait until they are heard.
const BACKLOG: i32 = 128;

/// How long the end of a process may take to be told, once its sockets have closed.
const END_PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A connection that was begun by another process.
pub(crate) struct Adopted {
    pub(crate) socket: OwnedFd,
    pub(crate) family: Family,
    pub(crate) peer: String,
    pub(crate) begin: Begin,
}

/// All that a predecessor passes on.
pub(crate) struct Inheritance {
    pub(super) channel: Channel,
    pub(super) process: Process,
    pub(crate) sockets: lane::Sockets,
    pub(crate) control: std::os::unix::net::UnixListener,
    pub(crate) connections: Vec<Adopted>,
    pub(crate) staying: u32,
}

/// Asks who listens on the control socket at `path` to pass everything on; `None` when nobody does, or does any more: a process that
/// died before everything was here has left its clients without a server, and whoever came to replace it can be theirs.
///
/// # Errors
/// `Busy` when it does not, and says why; `InvalidRequest` when the path cannot be used. It goes on serving.
pub(crate) async fn ask(
    path: &Path,
    hello: Hello,
    directory: &dyn ExportDirectory,
) -> Result<Option<Inheritance>, Error> {
    loop {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            // A socket file without a process, or none (unix(7)); or a process that has just closed the socket, with this in its queue.
            Err(error)
                if [IoKind::ConnectionRefused, IoKind::ConnectionReset, IoKind::NotFound].contains(&error.kind()) =>
            {
                return Ok(None);
            }
            Err(error) => {
                let text = format!("{} cannot be connected to", path.display());
                return Err(Error::new(ErrorKind::InvalidRequest, text).caused_by(error));
            }
        };
        let listener = Process::of(stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw));
        let channel = Channel::new(stream);
        match fetch(&channel, hello.clone(), directory).await {
            Ok(Fetched { sockets, control, connections, staying }) => {
                // Not who listened when this process came: another successor may have been in between.
                let process = Process::of(socket_peercred(&control).ok().map(|listens| listens.pid));
                return Ok(Some(Inheritance { channel, process, sockets, control, connections, staying }));
            }
            // Its last word would have been that it goes on. Somebody who has succeeded it meanwhile listens there now.
            Err(NotTaken::Channel(ChannelError::Ended)) if listener.has_ended() => {
                tracing::warn!(
                    "the process that was to be replaced died before it had passed everything on; its clients must connect anew"
                );
            }
            Err(error) => {
                if !matches!(error, NotTaken::Refused(_)) {
                    channel.try_send(&Message::Refused(error.to_string()));
                }
                return Err(error.into());
            }
        }
    }
}

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unusable(String),
    #[error("{message:?} comes out of turn")]
    OutOfTurn { message: Box<Message> },
    #[error("{0}")]
    Export(#[from] Error),
}

impl From<NotTaken> for Error {
    fn from(error: NotTaken) -> Error {
        let text = format!("the running process goes on serving, and this one does not take over: {error}");
        Error::new(ErrorKind::Busy, text)
    }
}

struct Fetched {
    sockets: lane::Sockets,
    control: std::os::unix::net::UnixListener,
    connections: Vec<Adopted>,
    staying: u32,
}

async fn fetch(channel: &Channel, hello: Hello, directory: &dyn ExportDirectory) -> Result<Fetched, NotTaken> {
    channel.send(&Message::Hello(hello), &[]).await?;
    let drafts = match channel.receive_within(STEP_PATIENCE + PREPARE_PATIENCE).await?.0 {
        Message::Prepare(drafts) => drafts,
        other => return Err(otherwise(other)),
    };
    try_join_all(drafts.iter().map(|draft| directory.expect(draft))).await?;
    channel.send(&Message::Ready, &[]).await?;

    let (mut states, mut connections) = (Vec::new(), Vec::new());
    let (sockets, descriptors) = loop {
        let (message, mut descriptors) = channel.receive_within(STEP_PATIENCE).await?;
        match message {
            Message::Session(state) => states.push(state),
            Message::Connection(state) => connections.push((*state, descriptors.pop())),
            Message::Sockets(sockets) => break (sockets, descriptors),
            other => return Err(otherwise(other)),
        }
    };
    let Sockets { unix, tcp, staying, .. } = sockets;
    if (sockets.sessions as usize, sockets.connections as usize) != (states.len(), connections.len()) {
        return Err(NotTaken::Unusable("not all came that was announced".to_owned()));
    }
    let sessions = try_join_all(states.iter().map(|state| directory.resume(state))).await?;
    let mut adopted = Vec::with_capacity(connections.len());
    for (ConnectionState { family, peer, stage, unsent, input }, socket) in connections {
        let rest = Rest { input: BytesMut::from(&input[..]), unsent, discard: None };
        let begin = match stage {
            ConnectionStage::Handshake(state) => Begin::Handshake { state, rest },
            ConnectionStage::Transmission { session, negotiated, discard } => {
                let session = sessions.get(session as usize).cloned();
                let session = session.ok_or_else(|| NotTaken::Unusable("a connection of no session".to_owned()))?;
                require_same(&negotiated, &session.info())?;
                Begin::Transmission { session, negotiated, rest: Rest { discard, ..rest } }
            }
        };
        let listens = if family == Family::Unix { unix } else { tcp };
        match socket {
            Some(socket) if listens => adopted.push(Adopted { socket, family, peer, begin }),
            _ => {
                return Err(NotTaken::Unusable(
                    "a connection without a socket, or of one that is not there".to_owned(),
                ));
            }
        }
    }
    let mut descriptors = descriptors.into_iter();
    let control = descriptors.next().ok_or_else(|| NotTaken::Unusable("no control socket".to_owned()))?.into();
    let unix = if unix { descriptors.next().map(Into::into) } else { None };
    let tcp = if tcp { descriptors.next().map(Into::into) } else { None };
    Ok(Fetched { sockets: lane::Sockets { tcp, unix }, control, connections: adopted, staying })
}

fn otherwise(message: Message) -> NotTaken {
    match message {
        Message::Refused(why) => NotTaken::Refused(why),
        message => NotTaken::OutOfTurn { message: Box::new(message) },
    }
}

/// What its client was told must hold here.
fn require_same(negotiated: &Negotiated, now: &crate::export::ExportInfo) -> Result<(), NotTaken> {
    let told = &negotiated.info;
    let of = |info: &crate::export::ExportInfo| (info.read_only, info.block_size_min, info.block_size_max);
    if of(told) == of(now) {
        return Ok(());
    }
    Err(NotTaken::Unusable(format!("{} is exported otherwise here: {now:?} instead of {told:?}", told.name)))
}

impl Inheritance {
    /// All is taken up: returns when this process is to serve, and no other does.
    ///
    /// # Errors
    /// `Busy` when the other one goes on serving.
    pub(crate) async fn confirm(self) -> Result<(), Error> {
        let Inheritance { channel, process, control, .. } = self;
        let go = async {
            channel.send(&Message::Prepared, &[]).await?;
            match channel.receive_within(STEP_PATIENCE).await?.0 {
                Message::Go => Ok(()),
                other => Err(otherwise(other)),
            }
        };
        match go.await {
            Ok(()) => {
                if channel.send(&Message::Serving, &[]).await.is_err() {
                    tracing::warn!("the process before this one died while it passed everything on");
                }
            }
            Err(NotTaken::Channel(ChannelError::Ended)) if process.has_ended() => {
                tracing::warn!("the process before this one died when everything was here: this one serves");
            }
            Err(error) => return Err(error.into()),
        }
        // A successor is told who listened last (unix(7), SO_PEERCRED), and looks whether that process has died: it must not be the one that
        // has made the socket, long ago.
        if let Err(error) = listen(&control, BACKLOG) {
            tracing::warn!(%error, "a successor will not see whether this process has died");
        }
        Ok(())
    }

    /// It cannot be taken up.
    pub(crate) fn decline(&self, why: &Error) {
        self.channel.try_send(&Message::Refused(why.to_string()));
    }
}

/// Another process, whatever number a later one gets.
#[derive(Debug)]
pub(super) enum Process {
    Known(OwnedFd),
    /// It had ended when it was looked for.
    Ended,
    Unknown,
}

impl Process {
    pub(super) fn of(pid: Option<Pid>) -> Process {
        match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(process)) => Process::Known(process),
            Some(Err(Errno::SRCH)) => Process::Ended,
            Some(Err(_)) | None => Process::Unknown,
        }
    }

    /// Whether it has ended, or does now.
    fn has_ended(&self) -> bool {
        match self {
            // Readable when it has (pidfd_open(2)).
            Process::Known(process) => {
                poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&END_PATIENCE)).is_ok_and(|ready| ready == 1)
            }
            Process::Ended => true,
            Process::Unknown => false,
        }
    }
}

/// Where a server listens, as its successor is asked to tell it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
