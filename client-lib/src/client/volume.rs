//! A volume of a cluster, as programs use it.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use super::journal::Write;
use super::nodes::{Nodes, out_of_turn};
use super::opening::{Found, OpenOptions};
use super::session::{Session, SessionSettings};
use super::standing::{Position, VolumeState, VolumeStatus};
use crate::cipher::VolumeCipher;
use crate::error::{Error, ErrorKind};
use crate::geometry::{IO_SIZE_MAX, SECTOR_SIZE};
use crate::read_part::ReadPart;
use crate::types::Lsn;
use crate::watch;
use crate::wire::client::{ClientReply, ClientRequest, ExtentState, ExtentsOf, Target, ZERO_MAX};

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many, above 0.
    pub length: u64,
    /// In which.
    pub state: ExtentState,
}

/// A volume or snapshot of a cluster, in use.
///
/// Offsets and lengths are bytes, multiples of 512. Operations may run side by side; writes that overlap are carried out in the
/// order in which they were begun. All wait while no node can carry them out, as long as [`OpenOptions::give_up`] says.
///
/// # Durability
/// A write is acked once it survives the death of its node's process. What survives a power cut there, or the loss of the node, is
/// what was flushed, as far as the volume's durability class goes. But for as long as this `Volume` lives it sends again what was
/// acked and is gone: the loss of a node is not seen here.
///
/// # Cancel safety
/// A read that is dropped is forgotten. A write that is dropped goes on once it has begun, until the volume is closed or dropped, and later
/// writes of the same bytes wait for it. One that has to wait before it begins, for room in the journal for instance, has its place in a line: while
/// it is kept and not polled, those that came after it wait, too. A flush that is dropped may be done or not.
pub struct Volume {
    kind: Kind,
    name: String,
    /// Of one that is encrypted. What is below, the journal among it, has ciphertext.
    cipher: Option<Arc<VolumeCipher>>,
    /// Whose write is being encrypted.
    turn: tokio::sync::Mutex<()>,
}

enum Kind {
    Live(Arc<Session>),
    Kept { nodes: Arc<Nodes>, target: Target, options: OpenOptions, state: watch::Sender<VolumeState> },
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Volume {
    pub(super) fn new(
        runtime: &Handle,
        nodes: Arc<Nodes>,
        name: &str,
        found: Found,
        options: OpenOptions,
        position: Option<&Position>,
    ) -> Volume {
        let Found { opened, cipher, .. } = found;
        let kind = match opened.snapshot {
            Some(snapshot) => {
                let state = VolumeState {
                    status: VolumeStatus::Connected,
                    owner: None,
                    epoch: opened.epoch,
                    size: opened.size,
                    journal_bytes: 0,
                };
                let target = Target::Snapshot { volume: opened.volume, snapshot };
                Kind::Kept { nodes, target, options, state: watch::Sender::new(state) }
            }
            None => {
                let OpenOptions { is_read_only, give_up, journal_bytes, .. } = options;
                let settings = SessionSettings { give_up, journal_bytes, is_read_only, is_encrypted: cipher.is_some() };
                let volume = (opened.volume, name.to_owned());
                let session = Session::new(runtime.clone(), nodes, volume, &opened, settings);
                if let Some(position) = position {
                    session.resume(position);
                }
                let session = Arc::new(session);
                runtime.spawn(session.clone().keep());
                Kind::Live(session)
            }
        };
        Volume { kind, name: name.to_owned(), cipher, turn: tokio::sync::Mutex::default() }
    }

    /// As it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is encrypted, here and by a key that its nodes need not have.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Whether every write is refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match &self.kind {
            Kind::Live(session) => session.settings.is_read_only,
            Kind::Kept { .. } => true,
        }
    }

    /// Bytes. A volume may grow while it is in use.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// How it stands now.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        self.subscribe().borrow().clone()
    }

    /// Follows how it stands.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<VolumeState> {
        match &self.kind {
            Kind::Live(session) => session.state(),
            Kind::Kept { state, .. } => state.subscribe(),
        }
    }

    /// Asks something that changes nothing, of a snapshot anywhere or of the owner.
    async fn ask<T>(
        &self,
        make: impl Fn(Target) -> ClientRequest,
        take: impl Fn(ClientReply, Bytes) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.kind {
            Kind::Live(session) => {
                let volume = session.volume;
                session.ask(|tenure| make(Target::Live { volume, tenure }), take).await
            }
            Kind::Kept { nodes, target, options, .. } => {
                let (reply, payload) = nodes.ask_any(make(*target), options.give_up).await?;
                take(reply, payload)
            }
        }
    }

    /// Reads `length` bytes at `offset`: the newest acked write of each, and of those that are under way perhaps.
    ///
    /// # Errors
    /// `InvalidRequest` beyond the end; `Corrupt` where the data is damaged and no node has it otherwise; `Fenced` and `NotFound`
    /// when the volume cannot be used any more; `Unavailable` when it was given up.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        Ok(ReadPart::joined(self.read_parts(offset, length).await?))
    }

    /// The same, with what is known to be zeroes told as such.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_parts(&self, offset: u64, length: u32) -> Result<Vec<ReadPart>, Error> {
        require_sectors(offset, u64::from(length))?;
        let mut parts = Vec::new();
        let mut done = 0;
        while done < length {
            let (at, piece) = (offset + u64::from(done), (length - done).min(IO_SIZE_MAX));
            let make = |target| ClientRequest::Read { target, offset: at, length: piece };
            let take = |reply, payload| match reply {
                ClientReply::Read(parts) => ReadPart::unpack(&parts, payload, piece),
                other => Err(out_of_turn(&other)),
            };
            let mut read = self.ask(make, take).await?;
            if let Some(cipher) = &self.cipher {
                cipher.decrypt_parts(at, &mut read).await;
            }
            parts.extend(read);
            done += piece;
        }
        Ok(parts)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `OutOfSpace` when the store is full, or beyond the end; `NotOwner` when the volume was opened for reading; else as
    /// [`read`](Self::read).
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.write_with(offset, data, false).await
    }

    /// The same; with `fua` it is durable on return, in the volume's class.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_with(&self, offset: u64, mut data: Bytes, fua: bool) -> Result<(), Error> {
        let session = self.writable()?;
        require_sectors(offset, data.len() as u64)?;
        let mut at = offset;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(IO_SIZE_MAX as usize));
            let length = piece.len() as u64;
            self.begin(session, Write { offset: at, length, data: Some(piece), fua }).await?;
            at += length;
        }
        Ok(())
    }

    /// Carries out a write, of an encrypted volume after those before it have begun: encryption takes time, in which a later one of the
    /// same bytes must not get ahead.
    async fn begin(&self, session: &Arc<Session>, mut write: Write) -> Result<(), Error> {
        let Some(cipher) = &self.cipher else { return session.write(write).await };
        let turn = self.turn.lock().await;
        if let Some(data) = write.data.take() {
            write.data = Some(cipher.encrypt(write.offset, data).await);
        }
        let mut writing = pin!(session.write(write));
        let begun = futures_util::poll!(writing.as_mut());
        drop(turn);
        match begun {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => writing.await,
        }
    }

    /// Writes `parts` one behind the other, as one write if they are at most 32 MiB together.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_vectored(&self, offset: u64, parts: &[Bytes]) -> Result<(), Error> {
        let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| joined.extend_from_slice(part));
        self.write(offset, joined.freeze()).await
    }

    /// Makes `length` bytes at `offset` read as zeroes, and frees their space; with `fua` that is durable on return.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn zero(&self, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        let session = self.writable()?;
        require_sectors(offset, length)?;
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let length = (end - at).min(ZERO_MAX);
            self.begin(session, Write { offset: at, length, data: None, fua }).await?;
            at += length;
        }
        Ok(())
    }

    /// Tells that `length` bytes at `offset` are not needed: they read as zeroes from now on.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.zero(offset, length, false).await
    }

    /// Makes every write durable that was acked before, in the volume's class; whoever made it.
    ///
    /// # Errors
    /// As [`read`](Self::read). A class that is not met is waited for.
    pub async fn flush(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Live(session) if !session.settings.is_read_only => session.flush().await,
            Kind::Live(_) | Kind::Kept { .. } => Ok(()),
        }
    }

    /// Where there is data in a range. The extents begin at `offset`, and may end before the range does.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, Error> {
        self.extents_of(ExtentsOf::Allocation, offset, length).await
    }

    /// Where the newest versions in a range are, seen from the owner; as [`extents`](Self::extents).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn residency(&self, offset: u64, length: u64) -> Result<Vec<Extent>, Error> {
        self.extents_of(ExtentsOf::Residency, offset, length).await
    }

    pub(crate) async fn extents_of(&self, of: ExtentsOf, offset: u64, length: u64) -> Result<Vec<Extent>, Error> {
        require_sectors(offset, length)?;
        let make = |target| ClientRequest::Extents { target, of, offset, length };
        let take = |reply, _| match reply {
            ClientReply::Extents(extents) => {
                Ok(extents.into_iter().map(|(length, state)| Extent { length, state }).collect())
            }
            other => Err(out_of_turn(&other)),
        };
        self.ask(make, take).await
    }

    /// Has the owner fetch what it lacks of a range, so that later reads need not wait for that.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        require_sectors(offset, length)?;
        let make = |target| ClientRequest::Cache { target, offset, length };
        let take = |reply, _| if matches!(reply, ClientReply::Done) { Ok(()) } else { Err(out_of_turn(&reply)) };
        self.ask(make, take).await
    }

    /// Waits until every write that has begun is acked or has failed, those that nobody waits for any more among them, and makes durable what
    /// was acked, as [`flush`](Self::flush). If nothing more is asked of the volume, nothing comes to it any more.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Cancel safety
    /// As a flush.
    pub async fn settle(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Live(session) if !session.settings.is_read_only => session.settle().await,
            Kind::Live(_) | Kind::Kept { .. } => Ok(()),
        }
    }

    /// Where its use stands. [`settle`](Self::settle) before, so that it covers all that was written.
    #[must_use]
    pub fn position(&self) -> Position {
        match &self.kind {
            Kind::Live(session) => session.position(),
            Kind::Kept { target, state, .. } => Position {
                volume: target.volume(),
                snapshot: match target {
                    Target::Snapshot { snapshot, .. } => Some(*snapshot),
                    Target::Live { .. } => None,
                },
                name: self.name.clone(),
                right: state.borrow().epoch,
                tenure: None,
                settled: Lsn::ZERO,
                failure: None,
            },
        }
    }

    /// Makes durable what was acked, as [`flush`](Self::flush), and ends the use of the volume: a write that has begun and is not acked, since
    /// who asked for it has dropped it, is not sent again, and what is on its way to a node is waited for, at most 30 s. On return
    /// nothing that was written here can come to the volume any more, and somebody else may use it. This waits for the owner as
    /// [`flush`](Self::flush) does.
    ///
    /// Dropping the volume without this is allowed. What was not flushed is then as safe as its node is, nothing is sent again either, and
    /// what is on its way may still be carried out.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); the use has ended all the same. Then what was not flushed is as safe as its node is, and a write that was
    /// not acked may still be carried out if a node has it that cannot be reached, until that hears of a new owner, or ends.
    ///
    /// # Cancel safety
    /// Dropped, it is as if the volume had been dropped.
    pub async fn close(self) -> Result<(), Error> {
        self.finish(None).await
    }

    /// The same, but the owner is waited for no longer than `patience`: this returns after that, or after 30 s where that is longer.
    ///
    /// # Errors
    /// As [`close`](Self::close), with `Unavailable` when it was given up.
    ///
    /// # Cancel safety
    /// As [`close`](Self::close).
    pub async fn close_within(self, patience: Duration) -> Result<(), Error> {
        self.finish(Some(patience)).await
    }

    /// As [`close`](Self::close), for who holds it in common with others.
    pub(crate) async fn finish(&self, patience: Option<Duration>) -> Result<(), Error> {
        match &self.kind {
            Kind::Live(session) => session.close(patience).await,
            Kind::Kept { .. } => Ok(()),
        }
    }

    fn writable(&self) -> Result<&Arc<Session>, Error> {
        match &self.kind {
            Kind::Live(session) if !session.settings.is_read_only => Ok(session),
            Kind::Live(_) => {
                Err(Error::new(ErrorKind::NotOwner, format!("volume {} was opened for reading", self.name)))
            }
            Kind::Kept { .. } => {
                Err(Error::new(ErrorKind::NotOwner, format!("{} is a snapshot and never changes", self.name)))
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Kind::Live(session) = &self.kind {
            session.end();
        }
    }
}

fn require_sectors(offset: u64, length: u64) -> Result<(), Error> {
    let sector = u64::from(SECTOR_SIZE);
    if offset.is_multiple_of(sector) && length.is_multiple_of(sector) {
        return Ok(());
    }
    let text = format!("{length} bytes at {offset} are not whole sectors of {sector} bytes");
    Err(Error::new(ErrorKind::InvalidRequest, text))
}
