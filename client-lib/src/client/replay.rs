//! The keeper of a session: finds the owner, compares the journal with what it has, and sends what it lacks before anything else.
//!
//! One task per session. It looks now and then whether the session still is attached to the present tenure, and at once when a
//! request says that it is not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::journal::{Lost, WriteKey};
use super::nodes::{CallFailure, Tries, is_passing, out_of_turn};
use super::session::Session;
use crate::error::{Error, ErrorKind};
use crate::types::NodeId;
use crate::wire::client::{Attached, ClientReply, ClientRequest, Tenure};

/// How long nothing is heard before it is looked whether the tenure still is the present one.
const LOOK: Duration = Duration::from_secs(5);
/// How long what is known of the members counts as fresh: some may have come, gone or moved since.
const MEMBERS_FRESH: Duration = Duration::from_secs(60);
/// Writes that are sent again at a time.
const REPLAYED_MAX: usize = 32;

/// Why the session is not attached yet, or never will be.
enum Hindrance {
    /// It may be tried again.
    Passing(Error),
    /// The session is over.
    Lasting(Error),
}

fn hindrance(error: Error) -> Hindrance {
    if is_passing(error.kind()) { Hindrance::Passing(error) } else { Hindrance::Lasting(error) }
}

fn unanswered(failure: CallFailure) -> Hindrance {
    if failure.is_own_end() { Hindrance::Lasting(failure.error) } else { hindrance(failure.error) }
}

impl Session {
    /// Keeps the session attached, until it is closed or cannot be.
    pub(super) async fn keep(self: Arc<Self>) {
        let closing = self.closing.clone();
        let keeping = async {
            let mut looked: Option<Instant> = None;
            loop {
                if let Err(error) = self.attach().await {
                    return self.fail(&error);
                }
                if looked.is_none_or(|looked| looked.elapsed() >= MEMBERS_FRESH) {
                    looked = Some(Instant::now());
                    let session = self.clone();
                    tokio::spawn(async move {
                        session.nodes.refresh().await;
                        session.tell_owner();
                    });
                }
                tokio::select! {
                    biased;
                    () = self.woken.notified() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = keeping => {}
        }
    }

    /// Returns when the session is attached to the present tenure.
    async fn attach(self: &Arc<Self>) -> Result<(), Error> {
        let mut tries = Tries::new(None);
        loop {
            let error = match self.attach_once(tries.made()).await {
                Ok(()) => return Ok(()),
                Err(Hindrance::Lasting(error)) => return Err(error),
                Err(Hindrance::Passing(error)) => error,
            };
            self.tell_waiting(&error);
            tries.failed(error).await?;
            if self.nodes.begins_round(tries.made()) {
                // A node may be elsewhere by now, or a new one may know.
                self.nodes.refresh().await;
            }
        }
    }

    async fn attach_once(self: &Arc<Self>, made: u32) -> Result<(), Hindrance> {
        let (session, owner) = {
            let inner = self.inner();
            (inner.journal.session(), inner.owner)
        };
        let node = self.nodes.choose(owner, made).map_err(Hindrance::Lasting)?;
        let request = ClientRequest::Attach { volume: self.volume, sessions: vec![session] };
        let attached = match self.nodes.call(node, request, Bytes::new(), None).await {
            Ok((ClientReply::Attached(attached), _)) => attached,
            Ok((ClientReply::Failed(error), _)) => return Err(hindrance(error)),
            Ok((reply, _)) => return Err(Hindrance::Passing(out_of_turn(&reply))),
            Err(failure) => return Err(unanswered(failure)),
        };
        let tenure = attached.tenure;
        let needs_session = {
            let inner = self.inner();
            if inner.newest > Some(tenure) {
                let text = format!("node {} thinks that it owns the volume", self.nodes.name(attached.owner));
                return Err(Hindrance::Passing(Error::new(ErrorKind::Unavailable, text)));
            }
            if inner.attached() == Some(tenure) {
                drop(inner);
                self.tell(|state| state.size = attached.size);
                self.go_on(tenure);
                return Ok(());
            }
            inner.journal.needs_session(&attached)
        };
        let session = if needs_session { self.new_session(node).await? } else { session };
        self.take_up(&attached, session)?;
        self.send_missing(tenure).await?;
        self.go_on(tenure);
        Ok(())
    }

    /// Compares the journal with the new tenure.
    fn take_up(&self, attached: &Attached, session: u64) -> Result<(), Hindrance> {
        let is_first;
        let missing = {
            let mut inner = self.inner();
            let was_taken_over = inner.journal.needs_session(attached);
            is_first = inner.tenure.is_none();
            if inner.journal.is_new() {
                // The volume may have been handed or taken over since it was opened, and nobody has read or written here. It is as if it were
                // opened now.
                inner.right = inner.right.max(attached.tenure.epoch);
            }
            inner.journal.recover(attached, session).map_err(|lost| Hindrance::Lasting(self.too_much(&lost)))?;
            if was_taken_over {
                // Every older right is over with that, because nobody knew what is gone. This session does: nothing.
                if attached.claimed > inner.right {
                    return Err(Hindrance::Lasting(self.claimed(attached)));
                }
                inner.right = attached.tenure.epoch;
            }
            if inner.tenure != Some(attached.tenure) {
                // No owner carries out what names another tenure than its own.
                inner.fenced = inner.generation;
            }
            (inner.tenure, inner.newest) = (Some(attached.tenure), Some(attached.tenure));
            (inner.is_attached, inner.owner) = (false, Some(attached.owner));
            inner.journal.open().count()
        };
        if missing > 0 && !is_first {
            tracing::info!(volume = self.name, tenure = %attached.tenure, writes = missing, "a volume is sent what it may lack");
        }
        self.tell(|state| state.size = attached.size);
        // Some writes that wait may turn out to be there.
        self.tell_changed();
        Ok(())
    }

    fn too_much(&self, lost: &Lost) -> Error {
        let text = format!(
            "volume {} was taken over without writes that were flushed or that were there before ({lost}): what was read or \
             written here may be gone; open it anew and check the file system",
            self.name
        );
        Error::new(ErrorKind::Fenced, text)
    }

    fn claimed(&self, attached: &Attached) -> Error {
        let (name, claimed) = (&self.name, attached.claimed);
        let text = format!("volume {name} was taken over, and is written at its owner's node since epoch {claimed}");
        Error::new(ErrorKind::Fenced, format!("{text}: this client lost its right to write"))
    }

    async fn new_session(&self, node: NodeId) -> Result<u64, Hindrance> {
        let name = self.name.clone();
        let request = match self.settings.is_encrypted {
            true => ClientRequest::OpenFor { name },
            false => ClientRequest::Open { name },
        };
        match self.nodes.call(node, request, Bytes::new(), None).await {
            Ok((ClientReply::Opened(opened) | ClientReply::OpenedFor { opened, .. }, _))
                if opened.volume == self.volume =>
            {
                Ok(opened.session)
            }
            Ok((ClientReply::Opened(_) | ClientReply::OpenedFor { .. }, _)) => {
                let text = format!("volume {} was deleted, and another one has its name", self.name);
                Err(Hindrance::Lasting(Error::new(ErrorKind::NotFound, text)))
            }
            Ok((ClientReply::Failed(error), _)) => Err(hindrance(error)),
            Ok((reply, _)) => Err(Hindrance::Passing(out_of_turn(&reply))),
            Err(failure) => Err(unanswered(failure)),
        }
    }

    /// Sends all that `tenure` lacks; what overlaps in the order in which it was written.
    async fn send_missing(self: &Arc<Self>, tenure: Tenure) -> Result<(), Hindrance> {
        let missing: Vec<(WriteKey, u64, u64)> = {
            let inner = self.inner();
            inner.journal.open().map(|(key, _, write)| (key, write.offset, write.length)).collect()
        };
        let mut under_way: Vec<(WriteKey, u64, u64)> = Vec::new();
        let mut sending = Replays { session: self, tasks: JoinSet::new() };
        for (key, offset, length) in missing {
            let overlaps = |under_way: &[(WriteKey, u64, u64)]| {
                under_way.iter().any(|(_, from, bytes)| *from < offset + length && offset < from + bytes)
            };
            while under_way.len() >= REPLAYED_MAX || overlaps(&under_way) {
                let sent = sent(sending.tasks.join_next().await)?;
                under_way.retain(|(key, ..)| *key != sent);
            }
            under_way.push((key, offset, length));
            sending.tasks.spawn(self.clone().send_again(key, tenure, self.sending.token()));
        }
        while !sending.tasks.is_empty() {
            sent(sending.tasks.join_next().await)?;
        }
        Ok(())
    }

    async fn send_again(
        self: Arc<Self>,
        key: WriteKey,
        tenure: Tenure,
        _sending: TaskTrackerToken,
    ) -> Result<WriteKey, Hindrance> {
        let Some((request, payload, generation)) = self.write_request(key, tenure) else { return Ok(key) };
        let (owner, end) = {
            let inner = self.inner();
            (inner.owner, inner.end)
        };
        let node = self.nodes.choose(owner, 0).map_err(Hindrance::Lasting)?;
        let error = match self.nodes.call(node, request, payload, end).await {
            Ok((ClientReply::Written { lsn, .. }, _)) => {
                let mut inner = self.inner();
                if inner.tenure == Some(tenure) {
                    inner.journal.acked(key, lsn);
                    inner.right = inner.right.max(tenure.epoch);
                    inner.fenced = inner.fenced.max(generation);
                }
                return Ok(key);
            }
            Ok((ClientReply::Moved(now), _)) => {
                self.leave(tenure, now);
                Error::new(ErrorKind::Unavailable, "the owner changes again")
            }
            Ok((ClientReply::Outrun, _)) => Error::new(ErrorKind::Unavailable, "a later attempt was seen"),
            Ok((ClientReply::Failed(error), _)) if is_passing(error.kind()) => error,
            Ok((ClientReply::Failed(error), _)) if error.kind() == ErrorKind::Fenced => {
                return Err(Hindrance::Lasting(error));
            }
            // Its user hears of that when it is tried again, and nothing else depends on it.
            Ok((ClientReply::Failed(_), _)) if !self.inner().journal.was_acked(key) => return Ok(key),
            // Acked, so it must not be given up: somebody has to make room.
            Ok((ClientReply::Failed(error), _)) if error.kind() == ErrorKind::OutOfSpace => error,
            Ok((ClientReply::Failed(error), _)) => return Err(Hindrance::Lasting(error)),
            Ok((reply, _)) => out_of_turn(&reply),
            Err(failure) => failure.error,
        };
        self.outcome_unknown(generation);
        Err(Hindrance::Passing(error))
    }
}

/// Writes that are being sent again.
struct Replays<'a> {
    session: &'a Session,
    tasks: JoinSet<Result<WriteKey, Hindrance>>,
}

impl Drop for Replays<'_> {
    /// Ends what is under way: all of it is sent again, in a later generation. Not so once the session is over, and then who closes that waits for
    /// what becomes of it.
    fn drop(&mut self) {
        if self.session.closing.is_cancelled() {
            self.tasks.detach_all();
        } else if !self.tasks.is_empty() {
            self.tasks.abort_all();
            let generation = self.session.inner().generation;
            self.session.outcome_unknown(generation);
        }
    }
}

fn sent(joined: Option<Result<Result<WriteKey, Hindrance>, tokio::task::JoinError>>) -> Result<WriteKey, Hindrance> {
    match joined {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => {
            Err(Hindrance::Lasting(Error::new(ErrorKind::Internal, "a write could not be sent again").caused_by(error)))
        }
        None => Err(Hindrance::Lasting(Error::new(ErrorKind::Internal, "nothing is under way"))),
    }
}
