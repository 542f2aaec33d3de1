//! One volume at one node: guest I/O served here, or passed on to the owner.
//!
//! [`ServedVolume`] joins the shard (the data), the gate (who serves), the writers (who may write from afar)
//! and the peers. Reads anywhere return the newest acked write; a read that raced a handover is done over
//! rather than answered from a copy that may be old. I/O waits through a handover and fails only when the
//! owner stays out of reach for [`PATIENCE`].

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::trace::{OperationKind, Stage, Trace, What};
use client_lib::transport::Class;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId, ReadPart, VolumeId, VolumeName, VolumeSize};
use consensus::Volume;
use tokio::sync::Notify;

use super::durability::FlushGate;
use super::keys::SealedKeys;
use super::metadata::NewestMetadata;
use super::numbers::{Number, Numbers};
use super::pace::Pace;
use super::resize::Sizes;
use super::sending::Sending;
use super::snapshots::Snapshots;
use super::through;
use crate::ownership::gate::{Gate, Phase, View};
use crate::ownership::standing::Standing;
use crate::ownership::writers::{Refusal, Writers};
use crate::peer::client::PeerClient;
use crate::peer::message::{Message, Operation, PeerReply, PeerRequest};
use crate::propagation::hearing::Hearing;
use crate::propagation::intake::Intake;
use crate::propagation::manifest::BlockRun;
use crate::propagation::pull::Puller;
use crate::propagation::telling::Tellings;
use crate::shard::handle::{MappedExtent, RECEIVED_SEGMENT, ShardHandle, StoreError};
use crate::trace::Tracer;
use crate::volume::Moment;
use crate::volume::ledger::{Author, Writer};

mod ahead;
mod flush;
mod on_write;
mod patience;
mod rescue;

use flush::PassedOn;
pub use patience::PATIENCE;
use patience::{Patience, RETRY_PAUSE};
pub use rescue::Rescue;

/// A volume as this node serves it.
pub struct ServedVolume {
    /// The volume's id.
    pub id: VolumeId,
    /// The volume's name.
    pub name: VolumeName,
    /// Its size, and who follows it.
    pub sizes: Sizes,
    /// Its snapshots.
    pub snapshots: Snapshots,
    /// This node.
    pub me: NodeId,
    /// The data held here; every node that serves a volume has a place for it.
    pub shard: ShardHandle,
    /// Who serves it now.
    pub gate: Gate,
    /// Who may write it from afar, while this node owns it.
    pub writers: Writers,
    /// What takeovers mean to this node and its sessions.
    pub standing: Standing,
    /// What flushes wait for.
    pub flushes: FlushGate,
    /// How fast it is written here.
    pub pace: Pace,
    /// Who looks at its operations here.
    pub tracer: Tracer,
    /// When its replicas are sent data.
    pub sending: Sending,
    /// Where the owner's news come in.
    pub intake: Arc<Intake>,
    /// When they came.
    pub hearing: Hearing,
    /// Those that come in parts.
    tellings: Mutex<Tellings>,
    /// The other nodes.
    pub peers: PeerClient,
    /// Fetches stale blocks.
    pub puller: Puller,
    /// Asked before a client is refused for what this node may only not have heard of.
    metadata: Arc<NewestMetadata>,
    /// The writes that were passed on: a FLUSH here must make them durable there.
    passed_on: PassedOn,
    /// What opens it, sealed, if it is encrypted: everything below has ciphertext.
    pub keys: SealedKeys,
    /// Whether it comes here when it is written here, as far as this node has heard.
    pub may_come: AtomicBool,
    /// Whether this node is to hold a copy, as far as it has heard: its owner sends to nobody else, and nobody else takes anything.
    pub follows: AtomicBool,
    /// The addition as a replica that this node has carried out and has yet to be complete for; 0 when there is none.
    pub joins: AtomicU64,
    /// Whether nothing of it is here, since this node is no replica of it any more.
    pub dropped: AtomicBool,
    /// Held while the owner is asked for the volume, because it is written here.
    coming: tokio::sync::Mutex<()>,
    /// The epoch in which this node took up the volume last, and behind which position it begins.
    begun: Mutex<Option<(Epoch, Lsn)>>,
    /// Told when a freeze has ended and the volume is still here.
    thawed: Notify,
    /// Whether it waits to be given away because its store takes no writes any more.
    pub rescue: Rescue,
}

/// What a served request came to when it has to be tried again or elsewhere, where a session's may be ahead of the volume.
enum Detour {
    Again,
    Elsewhere(View),
}

/// What became of a write that another node or a client asked for.
#[derive(Debug)]
pub enum Forwarded {
    /// It is in the volume, here.
    Written(Lsn),
    /// This node does not own the volume.
    NotOwner,
    /// Its writer may not write any more, or tries again already.
    Refused(Refusal),
}

/// Who asks for something to be done here.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// A session of this node, which writes with this right, or reads; it may go ahead.
    Session(Option<&'a dyn SessionWriter>),
    /// Whoever waits until it is known who owns the volume, in this epoch or a later one: another node.
    Patient(Epoch),
    /// Who means the owner of this very epoch, and sends again what another one lacks: a client. Its attempts elsewhere know nothing of those
    /// here.
    Tenant(Epoch),
}

impl Asker<'_> {
    /// The view to act upon.
    async fn view(self, gate: &Gate) -> Result<View, Error> {
        match self {
            Asker::Session(_) => gate.heading().await,
            Asker::Patient(epoch) | Asker::Tenant(epoch) => gate.settled(epoch).await,
        }
    }

    /// Whether this node is the owner that is meant.
    fn means(self, view: View) -> bool {
        view.phase == Phase::Owner && !matches!(self, Asker::Tenant(epoch) if epoch != view.epoch)
    }
}

impl ServedVolume {
    /// The volume `meta` at node `me`, in `phase` of its present epoch; of `size` so far.
    #[must_use]
    pub fn new(
        meta: &Volume,
        size: VolumeSize,
        me: NodeId,
        phase: Phase,
        shard: ShardHandle,
        peers: PeerClient,
        metadata: Arc<NewestMetadata>,
    ) -> Arc<ServedVolume> {
        Arc::new(ServedVolume {
            id: meta.id,
            name: meta.name.clone(),
            sizes: Sizes::new(size),
            snapshots: Snapshots::default(),
            me,
            gate: Gate::new(View { owner: meta.owner, epoch: meta.epoch, phase }),
            writers: Writers::default(),
            standing: Standing::default(),
            flushes: FlushGate::default(),
            pace: Pace::default(),
            tracer: Tracer::default(),
            sending: Sending::default(),
            intake: Arc::default(),
            hearing: Hearing::default(),
            tellings: Mutex::default(),
            puller: Puller::new(meta.id, me, shard.clone(), peers.clone()),
            shard,
            peers,
            metadata,
            passed_on: PassedOn::new(meta.owner != me),
            keys: SealedKeys::default(),
            may_come: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            joins: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            coming: tokio::sync::Mutex::default(),
            begun: Mutex::default(),
            thawed: Notify::new(),
            rescue: Rescue::default(),
        })
    }

    /// What the owner tells in parts.
    pub fn tellings(&self) -> MutexGuard<'_, Tellings> {
        self.tellings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a freeze here: what was held goes on at once.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn thaw(&self) -> Result<(), Error> {
        self.shard.thaw(self.id).await.map_err(store_failure)?;
        self.thawed.notify_waiters();
        Ok(())
    }

    /// The size that clients are told.
    #[must_use]
    pub fn size(&self) -> VolumeSize {
        self.sizes.in_force().size
    }

    /// Makes sure that a range that another node asks for lies inside. That node may have heard of a growth first, so
    /// consensus is asked before it is refused.
    ///
    /// # Errors
    /// `InvalidRequest`, or `OutOfSpace` for what would write.
    pub async fn require_inside(&self, moment: Moment, offset: u64, length: u64, writes: bool) -> Result<(), Error> {
        // A snapshot keeps its size, and the shard knows it.
        if moment != Moment::Now || self.size().contains(offset, length) {
            return Ok(());
        }
        let newest = self.metadata.get().await?.volume(self.id).map(|meta| meta.size);
        if newest.is_some_and(|size| size.contains(offset, length))
            && self.sizes.covers(offset + length, PATIENCE).await
        {
            return Ok(());
        }
        let (volume, size) = (self.id, self.size());
        let refusal = store_failure(StoreError::BeyondEnd { volume, offset, length, size });
        Err(if writes { no_space_beyond_end(refusal) } else { refusal })
    }

    /// Reads the newest acked bytes, or a snapshot's, wherever they are.
    pub async fn read(&self, trace: &Trace, moment: Moment, offset: u64, length: u32) -> Result<Vec<ReadPart>, Error> {
        let mut patience = Patience::new();
        loop {
            match self.read_here(trace, moment, Asker::Session(None), offset, length, &mut patience).await? {
                Ok(chunks) => return Ok(chunks),
                Err(Detour::Again) => {}
                Err(Detour::Elsewhere(view)) => {
                    trace.spent(Stage::Queue);
                    let answer = match moment {
                        Moment::Now => self.ask_there(view, Operation::Read { offset, length }, Bytes::new()).await?,
                        _ => {
                            let (volume, epoch) = (self.id, view.epoch);
                            let request = PeerRequest::Read { volume, epoch, moment, offset, length };
                            Some(self.peers.ask(view.owner, Class::Pull, request, Bytes::new()).await)
                        }
                    };
                    self.waited_for(trace, view.owner);
                    let Some(answer) = answer else { continue };
                    match answer {
                        Ok(Message { head: PeerReply::Read(parts), payload }) => {
                            return ReadPart::unpack(&parts, payload, length);
                        }
                        answer => self.after_detour(view, answer, &mut patience).await?,
                    }
                }
            }
        }
    }

    /// Serves a read as the owner of at least `epoch`, for this node's sessions and for other nodes. A snapshot never
    /// changes: it is served wherever it is known.
    async fn read_here(
        &self,
        trace: &Trace,
        moment: Moment,
        asker: Asker<'_>,
        offset: u64,
        length: u32,
        patience: &mut Patience,
    ) -> Result<Result<Vec<ReadPart>, Detour>, Error> {
        if length > IO_SIZE_MAX {
            // Its answer would be no frame, and would be in memory before that was seen.
            let what = format!("a read of {length} bytes is more than the {IO_SIZE_MAX} that one may have");
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        let view = match self.reader(moment, asker).await? {
            Ok(view) => view,
            Err(detour) => return Ok(Err(detour)),
        };
        self.sending.read(offset, u64::from(length));
        if moment == Moment::Now {
            self.puller.reads(offset, u64::from(length));
        }
        let read = match self.shard.read_traced(trace, self.id, moment, offset, length).await {
            // Nothing can be stored, so nothing can be repaired: what is read is passed through.
            Err(StoreError::Stale { runs } | StoreError::Damaged { runs, .. }) if self.shard.fault().is_some() => {
                trace.spent(Stage::Queue);
                let read = through::read(self, moment, offset, length, runs).await?;
                self.fetched(trace);
                read
            }
            Err(error) => {
                let missing = through::missing(&error);
                match self.recover(trace, moment, view, error).await {
                    // A full store can be read.
                    Err(full) if full.kind() == ErrorKind::OutOfSpace && !missing.is_empty() => {
                        through::read(self, moment, offset, length, missing).await?
                    }
                    detour => return self.await_holders(view, &missing, detour, patience).await.map(Err),
                }
            }
            read => read,
        };
        match read {
            // Still the owner after the read: no transfer was proposed before it ended, so what it saw was the newest.
            Ok(chunks) if moment != Moment::Now || self.gate.view() == view => Ok(Ok(chunks)),
            Ok(_) => Ok(Err(Detour::Again)),
            Err(error) => self.recover(trace, moment, view, error).await.map(Err),
        }
    }

    /// Under which view this node may read `moment`, or who is to be asked.
    async fn reader(&self, moment: Moment, asker: Asker<'_>) -> Result<Result<View, Detour>, Error> {
        if moment != Moment::Now {
            return Ok(Ok(self.gate.view()));
        }
        let view = asker.view(&self.gate).await?;
        Ok(if view.phase == Phase::Owner { Ok(view) } else { Err(Detour::Elsewhere(view)) })
    }

    /// As [`read`](Self::read), asked by another node; `None` when this node is not the owner.
    pub async fn read_for_peer(
        &self,
        trace: &Trace,
        moment: Moment,
        epoch: Epoch,
        offset: u64,
        length: u32,
    ) -> Result<Option<Vec<ReadPart>>, Error> {
        let mut patience = Patience::new();
        loop {
            match self.read_here(trace, moment, Asker::Patient(epoch), offset, length, &mut patience).await? {
                Ok(chunks) => return Ok(Some(chunks)),
                Err(Detour::Again) => {}
                Err(Detour::Elsewhere(_)) => return Ok(None),
            }
        }
    }

    /// Writes for a session with `writer`'s right; a session of this node passes a right that may be too old
    /// for a forwarded write, and is told so.
    pub async fn write(&self, trace: &Trace, change: Change, writer: &dyn SessionWriter) -> Result<(), Error> {
        let mut patience = Patience::new();
        // Once it was sent to another node: it may have been carried out there.
        let mut sent: Option<Number<'_>> = None;
        loop {
            let author = Author::Session(sent.as_ref().map(|number| number.origin(writer.session())));
            match self.write_here(trace, Asker::Session(Some(writer)), &change, author, &mut patience).await? {
                Ok(lsn) => {
                    // It was taken over from meanwhile, twice: the write is in another history than this session.
                    writer.require_current()?;
                    self.writers.claim(lsn.epoch);
                    writer.wrote_at_owner(lsn.epoch);
                    // Handed over meanwhile, it is in the volume, and made durable where that is now.
                    return match self.is_settled(trace, &change, lsn).await? {
                        true => Ok(()),
                        false => self.flush(trace).await,
                    };
                }
                Err(Detour::Again) => {}
                Err(Detour::Elsewhere(view)) => {
                    let Some(right) = writer.right() else {
                        self.overtaken(view).await?;
                        continue;
                    };
                    let generation = writer.generation();
                    let origin = sent.get_or_insert_with(|| writer.numbers().take()).origin(writer.session());
                    let credentials = Writer { origin, generation, right };
                    let (operation, payload) = change.to_operation(credentials);
                    trace.spent(Stage::Queue);
                    let answer = self.ask_there(view, operation, payload).await?;
                    self.waited_for(trace, view.owner);
                    let Some(answer) = answer else {
                        writer.outcome_unknown(generation);
                        continue;
                    };
                    match answer {
                        Ok(Message { head: PeerReply::Written(_), .. }) => {
                            self.passed_on.note();
                            return Ok(());
                        }
                        Ok(Message { head: PeerReply::Waiting, .. }) => {
                            self.passed_on.note();
                            return self.flush(trace).await;
                        }
                        // An older attempt of this very session: try again with the present generation.
                        Ok(Message { head: PeerReply::Done, .. }) => {}
                        Ok(Message { head: PeerReply::Superseded(epoch), .. }) => {
                            return Err(Error::new(
                                ErrorKind::Fenced,
                                format!(
                                    "volume {} is written at node {} since epoch {epoch}: this connection lost its right to write",
                                    self.name,
                                    self.peers.name(view.owner)
                                ),
                            ));
                        }
                        answer => {
                            if matches!(&answer, Err(error) if !error.not_delivered()) {
                                writer.outcome_unknown(generation);
                            }
                            self.after_detour(view, answer, &mut patience).await?;
                        }
                    }
                }
            }
        }
    }

    async fn write_here(
        &self,
        trace: &Trace,
        asker: Asker<'_>,
        change: &Change,
        author: Author,
        patience: &mut Patience,
    ) -> Result<Result<Lsn, Detour>, Error> {
        let view = asker.view(&self.gate).await?;
        if let Asker::Session(Some(writer)) = asker {
            writer.require_current()?;
        }
        if !asker.means(view) {
            return Ok(Err(Detour::Elsewhere(view)));
        }
        // A takeover ends rights before this node is the owner by it, and the write may have waited for that.
        if matches!(author, Author::Afar(writer) if self.writers.require_right(writer.right).is_err()) {
            return Ok(Err(Detour::Again));
        }
        if let Change::Data { offset, data, .. } = change {
            self.pace.turn(data.len() as u64).await;
            if self.gate.view() != view {
                return Ok(Err(Detour::Again));
            }
            self.sending.wrote(*offset, data.len() as u64);
        }
        let (shard, id) = (&self.shard, self.id);
        let written = match change {
            Change::Data { offset, data, fua } => {
                shard.write_traced(trace, author, id, *offset, data.clone(), *fua).await
            }
            Change::Zero { offset, length, fua } => shard.zero_traced(trace, author, id, *offset, *length, *fua).await,
        };
        match written {
            // Durable or not: whether it is settled says that.
            Ok(lsn) | Err(StoreError::NotDurable { lsn, .. }) => Ok(Ok(lsn)),
            Err(error @ StoreError::BeyondEnd { .. }) => Err(no_space_beyond_end(store_failure(error))),
            Err(error) => {
                // Of a block of which it writes a part.
                let missing = through::missing(&error);
                let detour = self.recover_write(trace, view, error).await;
                self.await_holders(view, &missing, detour, patience).await.map(Err)
            }
        }
    }

    /// As [`write`](Self::write), for who is not at this node, after its earlier attempts have ended.
    pub(crate) async fn write_from_afar(
        &self,
        trace: &Trace,
        asker: Asker<'_>,
        change: &Change,
        writer: Writer,
    ) -> Result<Forwarded, Error> {
        let _admission = match self.writers.admit(writer).await {
            Ok(admission) => admission,
            Err(refusal) => return Ok(Forwarded::Refused(refusal)),
        };
        let mut patience = Patience::new();
        loop {
            match self.write_here(trace, asker, change, Author::Afar(writer), &mut patience).await? {
                Ok(lsn) => return Ok(Forwarded::Written(lsn)),
                // It may have been a claim that was in the way.
                Err(Detour::Again) => match self.writers.require_right(writer.right) {
                    Ok(()) => {}
                    Err(refusal) => return Ok(Forwarded::Refused(refusal)),
                },
                Err(Detour::Elsewhere(_)) => return Ok(Forwarded::NotOwner),
            }
        }
    }

    /// What is mapped in a range, as the owner knows it, or in a snapshot.
    pub async fn extents(&self, moment: Moment, offset: u64, length: u64) -> Result<Vec<MappedExtent>, Error> {
        let mut patience = Patience::new();
        loop {
            match self.extents_here(moment, Asker::Patient(Epoch(0)), offset, length).await? {
                Ok(extents) => return Ok(extents),
                Err(Detour::Again) => {}
                Err(Detour::Elsewhere(view)) => {
                    let request = PeerRequest::Extents { volume: self.id, epoch: view.epoch, moment, offset, length };
                    match self.peers.ask(view.owner, Class::Pull, request, Bytes::new()).await {
                        Ok(Message { head: PeerReply::Extents(extents), .. }) => {
                            return Ok(extents
                                .into_iter()
                                .map(|(length, mapped)| MappedExtent { length, mapped })
                                .collect());
                        }
                        answer => self.after_detour(view, answer, &mut patience).await?,
                    }
                }
            }
        }
    }

    async fn extents_here(
        &self,
        moment: Moment,
        asker: Asker<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Result<Vec<MappedExtent>, Detour>, Error> {
        let view = match self.reader(moment, asker).await? {
            Ok(view) => view,
            Err(detour) => return Ok(Err(detour)),
        };
        match self.shard.extents(self.id, moment, offset, length).await {
            Ok(extents) if moment != Moment::Now || self.gate.view() == view => Ok(Ok(extents)),
            Ok(_) => Ok(Err(Detour::Again)),
            Err(error) => self.recover(Trace::NONE, moment, view, error).await.map(Err),
        }
    }

    /// As [`extents`](Self::extents), asked by another node; `None` when this node is not the owner.
    pub async fn extents_for_peer(
        &self,
        moment: Moment,
        epoch: Epoch,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<MappedExtent>>, Error> {
        loop {
            match self.extents_here(moment, Asker::Patient(epoch), offset, length).await? {
                Ok(extents) => return Ok(Some(extents)),
                Err(Detour::Again) => {}
                Err(Detour::Elsewhere(_)) => return Ok(None),
            }
        }
    }

    /// Those who have what is `missing` here may be back in a moment: as long as an owner out of reach is waited for, they are. Then `detour` is another
    /// attempt.
    async fn await_holders(
        &self,
        view: View,
        missing: &[BlockRun],
        detour: Result<Detour, Error>,
        patience: &Patience,
    ) -> Result<Detour, Error> {
        match detour {
            Err(error) if error.kind() == ErrorKind::Unavailable && !missing.is_empty() && !patience.exhausted() => {
                self.gate.changed_from(view, RETRY_PAUSE).await;
                Ok(Detour::Again)
            }
            detour => detour,
        }
    }

    /// Deals with what the shard refused: fetches stale and damaged blocks, waits out a freeze, or fails for good.
    async fn recover(&self, trace: &Trace, moment: Moment, seen: View, error: StoreError) -> Result<Detour, Error> {
        trace.spent(Stage::Queue);
        match error {
            StoreError::Stale { runs } => {
                self.puller.pull(moment, &runs, Class::Pull, &[]).await?;
                self.fetched(trace);
                Ok(Detour::Again)
            }
            // Just found, and noted: another attempt is told which blocks to fetch, or finds a newer version.
            StoreError::Corrupt { segment, .. } if segment != RECEIVED_SEGMENT => Ok(Detour::Again),
            StoreError::Damaged { runs, .. } => {
                self.puller.repair(moment, &runs, Class::Pull, &[]).await?;
                self.fetched(trace);
                Ok(Detour::Again)
            }
            // By a session here, while the write was on its way.
            StoreError::Claimed { epoch, .. } => {
                self.writers.claim(epoch);
                Ok(Detour::Again)
            }
            // Made at the owner, and not told of here yet.
            StoreError::UnknownSnapshot { .. } if seen.phase == Phase::Elsewhere => Ok(Detour::Elsewhere(seen)),
            // Nor can it be, before it is known who the owner is.
            StoreError::UnknownSnapshot { .. } if seen.phase != Phase::Owner => {
                self.gate.settled(Epoch(0)).await.map(|_| Detour::Again)
            }
            StoreError::Frozen(_) | StoreError::NotOwner { .. } => {
                // The gate follows within moments; if it does not (a handover still preparing), look again.
                tokio::select! {
                    biased;
                    _ = self.gate.changed_from(seen, RETRY_PAUSE) => {}
                    () = self.thawed.notified() => {}
                }
                Ok(Detour::Again)
            }
            other => Err(store_failure(other)),
        }
    }

    /// An operation has waited for `node`.
    fn waited_for(&self, trace: &Trace, node: NodeId) {
        if trace.is_some() {
            trace.waited_for(node, self.peers.transport().rtt(node));
        }
    }

    /// An operation has waited for blocks from elsewhere.
    fn fetched(&self, trace: &Trace) {
        if let Some(holder) = trace.is_some().then(|| self.puller.nearest()).flatten() {
            self.waited_for(trace, holder);
        }
    }

    /// How often `node` was started, as far as the metadata is known here.
    #[must_use]
    pub fn incarnation(&self, node: NodeId) -> Option<u64> {
        self.metadata.here().node(node).map(|node| node.incarnation)
    }

    /// What this node is called.
    #[must_use]
    pub fn my_name(&self) -> String {
        self.peers.name(self.me)
    }

    fn not_owner(&self, view: View) -> Error {
        Error::new(
            ErrorKind::NotOwner,
            format!(
                "volume {} is owned by node {} (epoch {}); a write here needs `helio volume migrate {} --to` this node first",
                self.name,
                self.peers.name(view.owner),
                view.epoch,
                self.name
            ),
        )
    }
}

/// A write as it is carried to wherever it belongs.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes at `offset`.
    Data {
        /// The first byte.
        offset: u64,
        /// What to write.
        data: Bytes,
        /// Durable before the answer.
        fua: bool,
    },
    /// Zeroes.
    Zero {
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
        /// Durable before the answer.
        fua: bool,
    },
}

impl Change {
    /// Whether it must be durable before it is answered.
    fn fua(&self) -> bool {
        match self {
            Change::Data { fua, .. } | Change::Zero { fua, .. } => *fua,
        }
    }

    /// What it is, as an operation.
    #[must_use]
    pub fn what(&self) -> What {
        match *self {
            Change::Data { offset, ref data, .. } => {
                What { kind: OperationKind::Write, offset, bytes: data.len() as u64 }
            }
            Change::Zero { offset, length, .. } => What { kind: OperationKind::Zero, offset, bytes: length },
        }
    }

    fn to_operation(&self, writer: Writer) -> (Operation, Bytes) {
        match *self {
            Change::Data { offset, ref data, fua } => (Operation::Write { writer, offset, fua }, data.clone()),
            Change::Zero { offset, length, fua } => (Operation::Zero { writer, offset, length, fua }, Bytes::new()),
        }
    }
}

/// What a session knows of its own right to write.
pub trait SessionWriter: Sync {
    /// Unique, over the life of the cluster.
    fn session(&self) -> u64;
    /// The epoch of its right to write from afar; `None` without one.
    fn right(&self) -> Option<Epoch>;
    /// Its present attempt at forwarded writes.
    fn generation(&self) -> u64;
    /// The numbers of its forwarded writes.
    fn numbers(&self) -> &Numbers;
    /// The session wrote at the owner, under `epoch`: its right is renewed.
    fn wrote_at_owner(&self, epoch: Epoch);
    /// Makes sure that the volume was not taken over from an owner under whom the session used it.
    ///
    /// # Errors
    /// `Fenced`: what the session wrote or read may be gone.
    fn require_current(&self) -> Result<(), Error>;
    /// A forwarded attempt of `generation` may still be on its way.
    fn outcome_unknown(&self, generation: u64);
}

/// The same refusal for a write: a disk says that there is no space beyond its end.
fn no_space_beyond_end(refusal: Error) -> Error {
    Error::new(ErrorKind::OutOfSpace, refusal.to_string())
}

/// The caller's error for what the store could not do.
#[must_use]
pub fn store_failure(error: StoreError) -> Error {
    let kind = match &error {
        StoreError::UnknownVolume(_) | StoreError::Stopped => ErrorKind::Closed,
        StoreError::NotOwner { .. } => ErrorKind::NotOwner,
        StoreError::Claimed { .. } => ErrorKind::Fenced,
        StoreError::BeyondEnd { .. } | StoreError::SmallerThanSnapshot { .. } => ErrorKind::InvalidRequest,
        StoreError::Frozen(_)
        | StoreError::Resizing(_)
        | StoreError::StillFetching { .. }
        | StoreError::HasSnapshots { .. }
        | StoreError::NotFlushed(_) => ErrorKind::Busy,
        StoreError::UnknownSnapshot { .. } => ErrorKind::NotFound,
        StoreError::TooManySnapshots(_) => ErrorKind::InvalidRequest,
        StoreError::Stale { .. }
        | StoreError::ManifestGap { .. }
        | StoreError::Untold(_)
        | StoreError::Syncing(_)
        | StoreError::SteppedDown(_)
        | StoreError::NoParts(_) => ErrorKind::Unavailable,
        StoreError::Corrupt { .. } | StoreError::Damaged { .. } => ErrorKind::Corrupt,
        StoreError::OutOfSpace => ErrorKind::OutOfSpace,
        StoreError::Poisoned(_) | StoreError::NotDurable { .. } | StoreError::Unopened { .. } | StoreError::Io(_) => {
            ErrorKind::Internal
        }
    };
    Error::new(kind, error.to_string())
}
