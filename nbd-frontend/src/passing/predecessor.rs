//! The control socket of a server: a successor comes there and gets everything, or nothing.
//!
//! The order of events is that of [`super`]. Whatever fails before `Go`, the gate is opened again and all go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use super::channel::{Channel, ChannelError};
use super::gate::{Gate, Parcel, Parked, Stage};
use super::message::{ConnectionStage, ConnectionState, Hello, Holder, Message, STATE_VERSION, Sockets};
use super::{PREPARE_PATIENCE, STEP_PATIENCE};
use crate::export::Session;
use crate::server::unix_socket::{self, SocketFile};
use crate::server::{Shared, lane};

/// Pause after a successor that could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where a server listens, and how strict it is: a successor must do the same.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) unix: Option<PathBuf>,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) tls: u8,
    /// Which of both are the service manager's.
    pub(crate) passed: Holder,
}

/// Why nothing was passed on.
#[derive(Debug, thiserror::Error)]
enum NotNow {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Refused(String),
    /// The successor says so.
    #[error("the new process cannot take over: {0}")]
    Declined(String),
}

/// What was passed on.
struct Passed {
    connections: usize,
    sessions: usize,
    since: Instant,
}

/// Opens the gate again unless everything was passed on, even in a panic.
struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Serves successors until one has taken over or the server closes.
pub(crate) async fn serve(control: std::os::unix::net::UnixListener, sockets: lane::Sockets, shared: Arc<Shared>) {
    let listener = match UnixListener::from_std(control) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the control socket cannot be used: nobody can take over"),
    };
    // What this process has yet to take over is not its own to pass on: another one may serve it still.
    tokio::select! {
        biased;
        () = shared.closing.token().cancelled() => return,
        () = shared.gate.served() => {}
    }
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closing.token().cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if let Err(error) = require_same_user(&stream) {
            tracing::warn!(%error, "somebody was sent away from the control socket");
            continue;
        }
        if pass_on(&Channel::new(stream), &listener, &sockets, &shared).await {
            return;
        }
    }
}

/// The file's mode says the same; this holds from the first moment on.
fn require_same_user(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    let own = rustix::process::geteuid().as_raw();
    if peer == own || peer == 0 { Ok(()) } else { Err(format!("it is user {peer}, and this is user {own}")) }
}

/// Whether a successor has taken over.
async fn pass_on(channel: &Channel, control: &UnixListener, sockets: &lane::Sockets, shared: &Shared) -> bool {
    let closed = Closed(&shared.gate);
    let prepared = tokio::select! {
        biased;
        () = shared.closing.token().cancelled() => Err(NotNow::Refused("it is being stopped".to_owned())),
        prepared = prepare(channel, control, sockets, shared) => prepared,
    };
    let Passed { connections, sessions, since } = match prepared {
        Ok(passed) => passed,
        Err(error) => {
            tracing::warn!(%error, "nothing was passed on; all goes on as before");
            if let NotNow::Refused(_) | NotNow::Channel(ChannelError::TimedOut | ChannelError::Malformed(_)) = error {
                // A successor that is not told of it gives up as well.
                channel.try_send(&Message::Refused(error.to_string()));
            }
            return false;
        }
    };
    // From `Go` on they may be the other one's: whoever stops this process now must not remove them.
    let files = shared.take_files();
    if !channel.try_send(&Message::Go) {
        shared.keep_files(files);
        tracing::warn!("nothing was passed on, the new process has gone; all goes on as before");
        return false;
    }
    // As long as it takes: it may serve already.
    match channel.receive().await {
        Ok((Message::Serving, _)) => {}
        Ok(_) | Err(_) => {
            shared.keep_files(files);
            tracing::warn!("the new process has gone before it served; all goes on as before");
            return false;
        }
    }
    std::mem::forget(closed);
    shared.gate.leave();
    files.into_iter().for_each(SocketFile::disown);
    let (pause, staying) = (since.elapsed(), shared.gate.staying());
    tracing::info!(connections, sessions, ?pause, staying, "passed on to a new process");
    true
}

async fn prepare(
    channel: &Channel,
    control: &UnixListener,
    sockets: &lane::Sockets,
    shared: &Shared,
) -> Result<Passed, NotNow> {
    let hello = match channel.receive_within(STEP_PATIENCE).await?.0 {
        Message::Hello(hello) => hello,
        other => return Err(out_of_turn(&other)),
    };
    tracing::info!(program = hello.program, "a new process wants to take over");
    require_fit(&hello, &shared.place).map_err(NotNow::Refused)?;

    // While all are served: what is left to be flushed afterwards is little.
    let used = shared.gate.used();
    tokio::select! {
        biased;
        // It has nothing to say now but that it does not go on: the next one need not wait behind it.
        said = channel.receive() => return Err(unasked(said?.0)),
        settled = settle(&used, PREPARE_PATIENCE) => drop(settled?),
    }
    let drafts = used.iter().map(|session| session.draft()).collect();
    channel.send_within(&Message::Prepare(drafts), &[], STEP_PATIENCE).await?;
    drop(used);
    expect(channel, PREPARE_PATIENCE, &Message::Ready).await?;

    let since = Instant::now();
    shared.gate.close();
    let patience = shared.limits.pause_timeout;
    let parcels = tokio::time::timeout(patience, shared.gate.all_parked()).await.map_err(|_| {
        let text = format!("requests are under way that take longer than {patience:?}; try again later");
        NotNow::Refused(unserved(&shared.gate.used()).unwrap_or(text))
    })?;
    let parked: Vec<Parked> = parcels
        .into_iter()
        .filter_map(|parcel| match parcel {
            Parcel::Nothing => None,
            Parcel::Connection(parked) => Some(*parked),
        })
        .collect();
    let (sessions, numbers) = shares(&parked);
    for state in settle(&sessions, patience).await? {
        channel.send_within(&Message::Session(state), &[], patience).await?;
    }
    let (connections, sessions) = (parked.len(), sessions.len());
    for parked in parked {
        let Parked { descriptor, family, peer, unsent, input, stage } = parked;
        let stage = match stage {
            Stage::Handshake(state) => ConnectionStage::Handshake(state),
            Stage::Transmission { session, negotiated, discard } => {
                let number = session.share().and_then(|share| numbers.get(&share).copied());
                let session = number.ok_or_else(|| NotNow::Refused("an export cannot be passed on".to_owned()))?;
                ConnectionStage::Transmission { session, negotiated, discard }
            }
        };
        let state = ConnectionState { family, peer, stage, unsent, input };
        channel.send_within(&Message::Connection(Box::new(state)), &[descriptor.as_fd()], patience).await?;
    }
    let (unix, tcp) = (sockets.unix.as_ref(), sockets.tcp.as_ref());
    let told = Sockets {
        unix: unix.is_some(),
        tcp: tcp.is_some(),
        sessions: sessions as u32,
        connections: connections as u32,
        staying: shared.gate.staying() as u32,
    };
    let descriptors = [Some(control.as_fd()), unix.map(AsFd::as_fd), tcp.map(AsFd::as_fd)];
    let descriptors: Vec<_> = descriptors.into_iter().flatten().collect();
    channel.send_within(&Message::Sockets(told), &descriptors, patience).await?;
    expect(channel, STEP_PATIENCE, &Message::Prepared).await?;
    Ok(Passed { connections, sessions, since })
}

async fn expect(channel: &Channel, patience: Duration, expected: &Message) -> Result<(), NotNow> {
    match channel.receive_within(patience).await?.0 {
        message if message == *expected => Ok(()),
        other => Err(unasked(other)),
    }
}

/// Why nothing is passed on to who says something else than it should.
fn unasked(message: Message) -> NotNow {
    match message {
        Message::Refused(why) => NotNow::Declined(why),
        other => out_of_turn(&other),
    }
}

fn out_of_turn(message: &Message) -> NotNow {
    NotNow::Refused(format!("{message:?} comes out of turn"))
}

/// Whether a successor that says `hello` does what this server does.
fn require_fit(hello: &Hello, place: &Place) -> Result<(), String> {
    let Hello { oldest, newest, ref program, ref unix, tcp, tls, passed } = *hello;
    if !(oldest..=newest).contains(&STATE_VERSION) {
        return Err(format!(
            "helio-nbd {program} takes up states of version {oldest} to {newest}, and this is helio-nbd {} with version \
             {STATE_VERSION}: stop this one and start the other, which its clients will notice",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let is_same_file = |one: &Path, other: &Path| {
        one == other
            || matches!((unix_socket::identity(one), unix_socket::identity(other)), (Some(a), Some(b)) if a == b)
    };
    // A process that takes the file for its own would remove it at its end, under the service manager's socket.
    if (place.passed.unix && !passed.unix) || (place.passed.tcp && !passed.tcp) {
        return Err("its sockets are the service manager's: start the new one with the same, by Sockets= in its unit"
            .to_owned());
    }
    match (&place.unix, unix) {
        (None, None) => {}
        (Some(ours), Some(theirs)) if is_same_file(ours, theirs) => {}
        (Some(ours), _) => return Err(format!("it listens on {}: use --socket with that", ours.display())),
        (None, Some(_)) => return Err("it listens on no Unix socket: leave --socket out".to_owned()),
    }
    match (place.tcp, tcp) {
        (None, None) => {}
        (Some(ours), Some(theirs)) if ours.ip() == theirs.ip() && [0, ours.port()].contains(&theirs.port()) => {}
        (Some(ours), _) => return Err(format!("it listens on {ours}: use --listen with that")),
        (None, Some(_)) => return Err("it listens on no TCP address: leave --listen out".to_owned()),
    }
    if tls < place.tls {
        return Err("it is stricter about TLS: use the same --tls options".to_owned());
    }
    Ok(())
}

/// Has all of `sessions` make durable what was acked; where they stand then.
async fn settle(sessions: &[Arc<dyn Session>], patience: Duration) -> Result<Vec<Vec<u8>>, NotNow> {
    let all = try_join_all(sessions.iter().map(|session| async move {
        let name = session.info().name;
        session.settle().await.map_err(|error| NotNow::Refused(format!("{name} cannot be flushed: {error}")))
    }));
    let late = |_| {
        let text = format!("what was written is not flushed within {patience:?}; the log says why");
        NotNow::Refused(unserved(sessions).unwrap_or(text))
    };
    tokio::time::timeout(patience, all).await.map_err(late)?
}

/// Why nothing can be passed on while nobody serves one of `sessions`: what was written and is not durable is in this process's memory
/// alone, and so is what becomes of requests that may have been carried out (docs/decisions/0035).
fn unserved(sessions: &[Arc<dyn Session>]) -> Option<String> {
    let (name, why) = sessions.iter().find_map(|session| Some((session.info().name, session.waits_for()?)))?;
    Some(format!(
        "{name} waits ({why}), and only this process has what of it is not durable yet: replace it when {name} is served again; to stop this one \
         instead ends its clients' connections, and loses what they have not flushed"
    ))
}

/// What the connections use, each once, and its number by what it is shared as.
fn shares(parked: &[Parked]) -> (Vec<Arc<dyn Session>>, BTreeMap<u64, u32>) {
    let (mut sessions, mut numbers) = (Vec::new(), BTreeMap::new());
    for parked in parked {
        if let Stage::Transmission { session, .. } = &parked.stage
            && let Some(share) = session.share()
        {
            numbers.entry(share).or_insert_with(|| {
                sessions.push(Arc::clone(session));
                sessions.len() as u32 - 1
            });
        }
    }
    (sessions, numbers)
}
