//! One session of a volume: its requests go to whoever owns the volume, again and again until they are answered.
//!
//! Requests are sent under the tenure that the session is attached to. When it turns out that there is another one, all wait;
//! [`super::replay`] compares the journal with the new tenure and sends what that lacks; then they go on under it. An answer
//! under an older tenure than the present one is not used: what it is about is asked again.
//!
//! A write that has begun is carried on by a task of its own, whether or not somebody still waits for it, until the session is
//! ended ([`super::closing`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::journal::line::{Line, Obstacle, Place};
use super::journal::{FlushMark, Journal, Write, WriteKey};
use super::nodes::{Nodes, Tries, is_passing, out_of_turn};
use super::standing::{Position, VolumeState, VolumeStatus};
use crate::error::{Error, ErrorKind};
use crate::types::{Epoch, NodeId, VolumeId};
use crate::watch;
use crate::wire::client::{ClientReply, ClientRequest, Opened, Tenure, WriteId};

/// What a session is like.
#[derive(Clone, Debug)]
pub(super) struct SessionSettings {
    pub(super) give_up: Option<Duration>,
    pub(super) journal_bytes: u64,
    pub(super) is_read_only: bool,
    /// Whether what goes through it is ciphertext.
    pub(super) is_encrypted: bool,
}

pub(super) struct Session {
    pub(super) nodes: Arc<Nodes>,
    pub(super) volume: VolumeId,
    /// As it was opened.
    pub(super) name: String,
    pub(super) settings: SessionSettings,
    runtime: Handle,
    inner: Mutex<Inner>,
    state: watch::Sender<VolumeState>,
    /// The journal has room, a write was acked, or the session goes on or has failed.
    changed: Notify,
    /// The keeper is to look whether it still is attached.
    pub(super) woken: Notify,
    /// Nothing is sent any more.
    pub(super) closing: CancellationToken,
    /// No write that is not acked is sent any more; so once it is [`closing`](Self::closing), too.
    pub(super) finishing: CancellationToken,
    /// Whoever may be sending a write has a token of it.
    pub(super) sending: TaskTracker,
}

/// What changes together.
pub(super) struct Inner {
    pub(super) journal: Journal,
    /// The writes that wait to begin.
    line: Line,
    /// The one that the journal was compared with last.
    pub(super) tenure: Option<Tenure>,
    /// The newest that was heard of: who claims an older one is not the owner any more.
    pub(super) newest: Option<Tenure>,
    /// Whether that has all that the journal has, and requests may be sent under it.
    pub(super) is_attached: bool,
    pub(super) owner: Option<NodeId>,
    pub(super) right: Epoch,
    /// Rises when the outcome of an attempt at a write is unknown.
    pub(super) generation: u64,
    /// Attempts of older generations are over: an owner has answered one of this generation, or they name an earlier tenure.
    pub(super) fenced: u64,
    /// Until when a session that is being closed sends anything.
    pub(super) end: Option<Instant>,
    is_flushing: bool,
    failure: Option<(ErrorKind, String)>,
}

/// What is next for a write that has begun.
enum Next {
    Send(Tenure, Option<NodeId>),
    /// It is acked: it was sent to a new tenure with all that this lacked.
    Acked,
    /// It is not sent any more.
    Closed,
}

/// What came of an attempt.
pub(super) enum Attempt<T> {
    Done(T),
    /// Under another tenure; nothing is to be waited for but the session.
    Again,
    Failed(Error),
}

impl Session {
    pub(super) fn new(
        runtime: Handle,
        nodes: Arc<Nodes>,
        (volume, name): (VolumeId, String),
        opened: &Opened,
        settings: SessionSettings,
    ) -> Session {
        let Opened { session, epoch: right, size, .. } = *opened;
        let status = VolumeStatus::Waiting("it is looked for its owner".to_owned());
        let state = VolumeState { status, owner: None, epoch: right, size, journal_bytes: 0 };
        let closing = CancellationToken::new();
        Session {
            nodes,
            volume,
            name,
            runtime,
            inner: Mutex::new(Inner {
                journal: Journal::new(settings.journal_bytes, session),
                line: Line::default(),
                tenure: None,
                newest: None,
                is_attached: false,
                owner: None,
                right,
                generation: 0,
                fenced: 0,
                end: None,
                is_flushing: false,
                failure: None,
            }),
            settings,
            state: watch::Sender::new(state),
            changed: Notify::new(),
            woken: Notify::new(),
            finishing: closing.child_token(),
            closing,
            sending: TaskTracker::new(),
        }
    }

    /// Goes on for the session of another process, before anything was asked of this one.
    pub(super) fn resume(&self, position: &Position) {
        {
            let mut inner = self.inner();
            if let Some(tenure) = position.tenure {
                let (capacity, session) = (self.settings.journal_bytes, inner.journal.session());
                inner.journal = Journal::resumed(capacity, session, tenure.epoch, position.settled);
            }
            (inner.newest, inner.right) = (position.tenure, position.right);
        }
        self.tell(|state| state.epoch = position.right);
        if let Some(failure) = &position.failure {
            self.fail(&Error::new(failure.0, failure.1.clone()));
        }
    }

    /// What [`resume`](Self::resume) takes.
    pub(super) fn position(&self) -> Position {
        let inner = self.inner();
        Position {
            volume: self.volume,
            snapshot: None,
            name: self.name.clone(),
            right: inner.right,
            tenure: inner.tenure,
            settled: inner.journal.settled(),
            failure: inner.failure.clone(),
        }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> watch::Receiver<VolumeState> {
        self.state.subscribe()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut VolumeState)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }

    /// Tells what is waited for.
    pub(super) fn tell_waiting(&self, why: &Error) {
        let why = why.to_string();
        self.tell(|state| {
            if matches!(state.status, VolumeStatus::Connected) {
                tracing::warn!(volume = self.name, why, "a volume waits");
            }
            if !matches!(state.status, VolumeStatus::Failed(_)) {
                state.status = VolumeStatus::Waiting(why);
            }
        });
    }

    /// Wakes who waits for room, for an ack or for the session.
    pub(super) fn tell_changed(&self) {
        let kept = self.inner().journal.bytes();
        // With every write: not by `tell`, which compares copies.
        self.state.send_if_modified(|state| std::mem::replace(&mut state.journal_bytes, kept) != kept);
        self.changed.notify_waiters();
    }

    /// The session is over: everything fails from now on.
    pub(super) fn fail(&self, error: &Error) {
        tracing::error!(volume = self.name, %error, "a volume cannot be used any more");
        let why = error.to_string();
        self.inner().failure.get_or_insert((error.kind(), why.clone()));
        self.tell(|state| state.status = VolumeStatus::Failed(why));
        self.changed.notify_waiters();
        self.closing.cancel();
    }

    /// The session goes on under `tenure`.
    pub(super) fn go_on(&self, tenure: Tenure) {
        let owner = {
            let mut inner = self.inner();
            // Not if it is known to be over by now.
            inner.is_attached = inner.tenure == Some(tenure) && inner.newest <= Some(tenure);
            if !inner.is_attached {
                return self.woken.notify_one();
            }
            inner.owner
        };
        let name = owner.map(|owner| self.nodes.name(owner));
        self.tell(|state| {
            if state.status != VolumeStatus::Connected {
                tracing::info!(volume = self.name, owner = name.as_deref(), %tenure, "a volume is connected");
            }
            (state.status, state.owner, state.epoch) = (VolumeStatus::Connected, name, tenure.epoch);
        });
        self.tell_changed();
    }

    /// Tells the owner's name, which may not have been known when the session became attached to it.
    pub(super) fn tell_owner(&self) {
        let owner = {
            let inner = self.inner();
            inner.attached().and(inner.owner)
        };
        if let Some(owner) = owner {
            let name = self.nodes.name(owner);
            self.tell(|state| state.owner = Some(name));
        }
    }

    /// `tenure` is over, for there is `newer`: all wait until the keeper has seen to it.
    pub(super) fn leave(&self, tenure: Tenure, newer: Tenure) {
        let mut inner = self.inner();
        inner.newest = inner.newest.max(Some(newer));
        if inner.tenure == Some(tenure) {
            inner.is_attached = false;
            drop(inner);
            self.woken.notify_one();
        }
    }

    /// Waits until `ready` gives something, while the session is in use.
    pub(super) async fn until<T>(
        &self,
        tries: &Tries,
        mut ready: impl FnMut(&mut Inner) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            // Made before the look: a change after that wakes it.
            let changed = self.changed.notified();
            {
                let mut inner = self.inner();
                if let Some((kind, why)) = &inner.failure {
                    return Err(Error::new(*kind, why.clone()));
                }
                // Before anything that is ready: who was let through would send once more.
                if self.closing.is_cancelled() {
                    return Err(closed());
                }
                if let Some(found) = ready(&mut inner) {
                    return Ok(found);
                }
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.closing.cancelled() => {}
                () = at(tries.end()) => {
                    let why = match &self.state.borrow().status {
                        VolumeStatus::Waiting(why) => why.clone(),
                        VolumeStatus::Connected | VolumeStatus::Failed(_) => "it takes too long".to_owned(),
                    };
                    return Err(Error::new(ErrorKind::Unavailable, format!("volume {}: {why}", self.name)));
                }
            }
        }
    }

    /// Carries out what may be done any number of times.
    pub(super) async fn ask<T>(
        &self,
        make: impl Fn(Tenure) -> ClientRequest,
        take: impl Fn(ClientReply, Bytes) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut tries = Tries::new(self.settings.give_up);
        loop {
            let (tenure, owner) = self.until(&tries, |inner| Some((inner.attached()?, inner.owner))).await?;
            match self.attempt(tenure, owner, &tries, make(tenure), Bytes::new()).await? {
                Attempt::Done((reply, payload)) => return take(reply, payload),
                Attempt::Again => {}
                Attempt::Failed(error) => {
                    self.tell_waiting(&error);
                    tries.failed(error).await?;
                }
            }
        }
    }

    pub(super) async fn attempt(
        &self,
        tenure: Tenure,
        owner: Option<NodeId>,
        tries: &Tries,
        request: ClientRequest,
        payload: Bytes,
    ) -> Result<Attempt<(ClientReply, Bytes)>, Error> {
        let node = self.nodes.choose(owner, tries.made())?;
        Ok(match self.nodes.call(node, request, payload, tries.end()).await {
            Ok((ClientReply::Moved(now), _)) => {
                if now > tenure {
                    self.leave(tenure, now);
                    Attempt::Again
                } else {
                    // It was the owner once, and has yet to hear that it is no more.
                    let text = format!("node {} thinks that it owns the volume", self.nodes.name(node));
                    Attempt::Failed(Error::new(ErrorKind::Unavailable, text))
                }
            }
            Ok((ClientReply::Failed(error), _)) if is_passing(error.kind()) => Attempt::Failed(error),
            Ok((ClientReply::Failed(error), _)) if error.kind() == ErrorKind::NotFound => {
                self.fail(&error);
                return Err(error);
            }
            Ok((ClientReply::Failed(error), _)) => return Err(error),
            Ok(answer) => {
                if self.inner().attached() != Some(tenure) {
                    return Ok(Attempt::Again);
                }
                if matches!(self.state.borrow().status, VolumeStatus::Waiting(_)) {
                    self.tell(|state| {
                        if matches!(state.status, VolumeStatus::Waiting(_)) {
                            state.status = VolumeStatus::Connected;
                        }
                    });
                }
                Attempt::Done(answer)
            }
            Err(failure) if failure.error.kind() == ErrorKind::Fenced || failure.is_own_end() => {
                self.fail(&failure.error);
                return Err(failure.error);
            }
            Err(failure) => {
                if failure.is_unknown || failure.is_revoked {
                    // It may have died, or nobody lets this end in any more: who asks next asks the keeper's question, too.
                    self.woken.notify_one();
                }
                Attempt::Failed(failure.error)
            }
        })
    }

    /// Makes every acked write durable.
    pub(super) async fn flush(&self) -> Result<(), Error> {
        self.flush_within(&mut Tries::new(self.settings.give_up)).await
    }

    /// The same, as long as there are `tries`.
    pub(super) async fn flush_within(&self, tries: &mut Tries) -> Result<(), Error> {
        loop {
            let begun = |inner: &mut Inner| Some((inner.attached()?, inner.owner, inner.journal.mark()));
            let (tenure, owner, mark): (_, _, FlushMark) = self.until(tries, begun).await?;
            let request = ClientRequest::Flush { volume: self.volume, tenure };
            match self.attempt(tenure, owner, tries, request, Bytes::new()).await? {
                Attempt::Done((ClientReply::Flushed(true), _)) => {
                    self.inner().journal.flushed(mark);
                    self.tell_changed();
                    return Ok(());
                }
                Attempt::Done((ClientReply::Flushed(false), _)) => {
                    let text = "the volume's durability class is not met; a flush waits for that";
                    let error = Error::new(ErrorKind::Unavailable, text);
                    self.tell_waiting(&error);
                    if tries.end().is_some_and(|end| Instant::now() >= end) {
                        return Err(error);
                    }
                }
                Attempt::Done((reply, _)) => return Err(out_of_turn(&reply)),
                Attempt::Again => {}
                Attempt::Failed(error) => {
                    self.tell_waiting(&error);
                    tries.failed(error).await?;
                }
            }
        }
    }

    /// Writes, and goes on with that if the returned future is dropped once it has begun.
    pub(super) async fn write(self: &Arc<Self>, write: Write) -> Result<(), Error> {
        let tries = Tries::new(self.settings.give_up);
        let mut turn = Turn { session: self, place: None };
        let begin = |inner: &mut Inner| {
            let Some(obstacle) = inner.line.obstacle(turn.place, &write, &inner.journal) else {
                return Some(inner.journal.begin(write.clone()));
            };
            turn.place = Some(inner.line.wait(turn.place, &write, obstacle));
            if obstacle == Obstacle::Room {
                self.flush_aside(inner);
            }
            None
        };
        let key = self.until(&tries, begin).await?;
        drop(turn);
        let carried = self.runtime.spawn(self.clone().carry_out(key, write.fua, tries, self.sending.token()));
        carried.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "a write was ended").caused_by(error)))
    }

    async fn carry_out(
        self: Arc<Self>,
        key: WriteKey,
        fua: bool,
        mut tries: Tries,
        sending: TaskTrackerToken,
    ) -> Result<(), Error> {
        let acked = self.send_until_acked(key, &mut tries).await;
        // While the session ends, an attempt of the keeper's may still bring an ack; nothing else depends on it.
        if acked.is_err() && !self.finishing.is_cancelled() {
            self.give_up(key);
        }
        drop(sending);
        let is_durable = acked?;
        if self.inner().journal.wants_flush() {
            self.flush_aside(&mut self.inner());
        }
        if fua && !is_durable { self.flush().await } else { Ok(()) }
    }

    /// Sends a write again and again; whether it is as durable as it was asked to be, once it is acked.
    async fn send_until_acked(&self, key: WriteKey, tries: &mut Tries) -> Result<bool, Error> {
        loop {
            let ready = |inner: &mut Inner| match inner.journal.to_send(key) {
                None => Some(Next::Acked),
                Some(_) if !self.may_send(inner, key) => Some(Next::Closed),
                Some(_) => Some(Next::Send(inner.attached()?, inner.owner)),
            };
            let (tenure, owner) = match self.until(tries, ready).await? {
                Next::Acked => return Ok(false),
                Next::Closed => return Err(closed()),
                Next::Send(tenure, owner) => (tenure, owner),
            };
            match self.send_write(key, tenure, owner, tries).await? {
                Attempt::Done(is_durable) => return Ok(is_durable),
                Attempt::Again => {}
                Attempt::Failed(error) => {
                    self.tell_waiting(&error);
                    tokio::select! {
                        biased;
                        () = self.finishing.cancelled() => {}
                        paused = tries.failed(error) => paused?,
                    }
                }
            }
        }
    }

    /// Whether a write may be sent, for the first time or again. To be asked by who has a token of [`sending`](Self::sending): who ends
    /// the session waits for those that were let through.
    fn may_send(&self, inner: &Inner, key: WriteKey) -> bool {
        !self.finishing.is_cancelled() || (inner.journal.was_acked(key) && !self.closing.is_cancelled())
    }

    fn give_up(self: &Arc<Self>, key: WriteKey) {
        let mut inner = self.inner();
        inner.journal.refused(key);
        // The owner remembers a gap for each until all before it are over.
        self.flush_aside(&mut inner);
        drop(inner);
        self.tell_changed();
    }

    /// One attempt at a write; whether it is as durable as it was asked to be.
    async fn send_write(
        &self,
        key: WriteKey,
        tenure: Tenure,
        owner: Option<NodeId>,
        tries: &Tries,
    ) -> Result<Attempt<bool>, Error> {
        let Some((request, payload, generation)) = self.write_request(key, tenure) else {
            return Ok(Attempt::Again);
        };
        let attempt = self.attempt(tenure, owner, tries, request, payload).await;
        let attempt = attempt.inspect_err(|error| {
            if error.kind() == ErrorKind::Fenced {
                self.fail(error);
            }
        })?;
        Ok(match attempt {
            Attempt::Done((ClientReply::Written { lsn, durable }, _)) => {
                let mut inner = self.inner();
                if inner.attached() != Some(tenure) {
                    return Ok(Attempt::Again);
                }
                inner.journal.acked(key, lsn);
                inner.right = inner.right.max(tenure.epoch);
                inner.fenced = inner.fenced.max(generation);
                drop(inner);
                self.tell_changed();
                Attempt::Done(durable)
            }
            Attempt::Done((ClientReply::Outrun, _)) => Attempt::Again,
            Attempt::Done((reply, _)) => return Err(out_of_turn(&reply)),
            Attempt::Again => Attempt::Again,
            Attempt::Failed(error) => {
                self.outcome_unknown(generation);
                Attempt::Failed(error)
            }
        })
    }

    /// The write as it is sent under `tenure` now, and in which generation; `None` once it is acked, or may not be sent any more.
    pub(super) fn write_request(&self, key: WriteKey, tenure: Tenure) -> Option<(ClientRequest, Bytes, u64)> {
        let inner = self.inner();
        if !self.may_send(&inner, key) {
            return None;
        }
        let (number, write) = inner.journal.to_send(key)?;
        let (session, answered) = (inner.journal.session(), inner.journal.answered());
        let id = WriteId { session, number, answered, generation: inner.generation, right: inner.right };
        let (volume, offset, fua) = (self.volume, write.offset, write.fua);
        let request = match &write.data {
            Some(_) => ClientRequest::Write { volume, tenure, id, offset, fua },
            None => ClientRequest::Zero { volume, tenure, id, offset, length: write.length, fua },
        };
        Some((request, write.data.unwrap_or_default(), inner.generation))
    }

    /// An attempt of `generation` may still be on its way. Several may fail together: raised once.
    pub(super) fn outcome_unknown(&self, generation: u64) {
        let mut inner = self.inner();
        if inner.generation == generation {
            inner.generation += 1;
        }
    }

    /// Flushes beside everything else, so that the journal has room again.
    fn flush_aside(self: &Arc<Self>, inner: &mut Inner) {
        if inner.is_flushing || inner.journal.is_empty() {
            return;
        }
        inner.is_flushing = true;
        let session = self.clone();
        self.runtime.spawn(async move {
            // Who waits for room is told by the session what is the matter.
            let _ = session.flush().await;
            session.inner().is_flushing = false;
            session.tell_changed();
        });
    }
}

/// The turn of a write, from when it has to wait until it begins or is given up.
struct Turn<'a> {
    session: &'a Session,
    place: Option<Place>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.session.inner().line.leave(place);
            self.session.changed.notify_waiters();
        }
    }
}

impl Inner {
    /// The tenure that requests may be sent under.
    pub(super) fn attached(&self) -> Option<Tenure> {
        self.tenure.filter(|_| self.is_attached)
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the volume was closed")
}

/// Waits until then, or for ever.
async fn at(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
