//! Carries out a handover of a volume, or of those of a group: the effects of [`Handover`] on the real shards, peers and consensus.
//! What concerns several volumes is done for all of them at once, so that it takes no more round trips than for one.
//!
//! Runs as a task of its own, never inside a caller's future: once the source is frozen, someone must see it
//! through, whoever stops waiting for the report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client_lib::transport::BoxFuture;
use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId, SnapshotId, SnapshotName, VolumeGroupId, VolumeId, VolumeSize};
use consensus::{ENCLOSED_BYTES_MAX, Ended, Made, MetaState};
use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chronicle::{self, Account};
use super::gate::{Heir, Phase};
use super::handover::{Effect, Event, Failure, Handover, Released};
use crate::peer::client::PeerClient;
use crate::propagation::watermarks::Watermarks;
use crate::serve::volume::ServedVolume;
use crate::shard::handle::FreezeWhen;

mod beginning;
mod member;

pub use beginning::FREEZE_DEADLINE;
pub use member::Member;

/// How long the destination may take to answer the last manifest before the handover is given up.
const PREPARE_DEADLINE: Duration = Duration::from_secs(10);

/// Pause before consensus is asked again for an outcome that nobody could tell.
pub const RESOLVE_PAUSE: Duration = Duration::from_millis(200);

/// Whether what became of a proposal does not matter any more: its volume was deleted, or this node stops. Anything else is asked again.
#[must_use]
pub fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Closed)
}

/// Who owns a volume, and in which epoch; none of one that was deleted.
pub type OwnerNow = Option<(NodeId, Epoch)>;

/// What consensus said to a proposed change of owner.
#[derive(Debug)]
pub enum Proposed<T> {
    /// Committed.
    Committed(T),
    /// Refused: did not and will not happen.
    Refused(Error),
    /// Nobody knows yet.
    Unknown,
}

/// The end of epochs, as their owner proposes it: of all volumes or of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverProposal {
    /// The group that the volumes are all of, as far as they are owned here; a volume that goes by itself has none.
    pub group: Option<VolumeGroupId>,
    /// The new owner.
    pub to: NodeId,
    /// The volumes, and where their epochs end.
    pub members: Vec<Ended>,
    /// What the new owner must know and was not told before, by volume ([`super::enclosure`]).
    pub enclosed: BTreeMap<VolumeId, Vec<u8>>,
    /// Of a rescue, which is of one volume: up to where it is durable at its owner.
    pub rescued: Option<Lsn>,
}

/// The start of an epoch by force, as the new owner proposes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeoverProposal {
    /// The volume.
    pub volume: VolumeId,
    /// The owner that is lost.
    pub from: NodeId,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// What the new owner holds, and nothing beyond it.
    pub start: Lsn,
}

/// Another size of a volume, as its owner proposes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the ownership.
    pub epoch: Epoch,
    /// The size that the owner has carried out.
    pub expected: VolumeSize,
    /// The new size.
    pub size: VolumeSize,
}

/// Other nodes that follow volumes, as their owner proposes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaChange {
    /// The volumes, and the epochs of the ownership.
    pub members: Vec<(VolumeId, Epoch)>,
    /// Those that follow from now on.
    pub add: BTreeSet<NodeId>,
    /// Those that follow no more.
    pub remove: BTreeSet<NodeId>,
}

/// What owners, and those who take over, need from consensus.
pub trait OwnershipLog: Send + Sync + 'static {
    /// Proposes a handover. When it is committed, each volume has the epoch after the one that was named.
    fn hand_over(&self, handover: HandoverProposal) -> BoxFuture<'_, Proposed<()>>;

    /// Tells that the owner of `epoch` has made durable what was enclosed for it. May be repeated.
    ///
    /// # Errors
    /// `Unavailable` when consensus cannot be reached: it may have been committed.
    fn enclosure_taken(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes that the lease of `node` is out: its renewal of the number `renewals` was waited out.
    ///
    /// # Errors
    /// The refusal: it has been renewed. `Unavailable` when consensus cannot be reached: it may have been committed.
    fn expire(&self, node: NodeId, renewals: u64) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes that this process, which owns `volumes` in these epochs, has ceased to act for them: it must have. May be repeated; what is
    /// not owned any more does not matter.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn step_down(&self, volumes: Vec<(VolumeId, Epoch)>) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes a takeover by this node; tells the new epoch.
    fn take_over(&self, takeover: TakeoverProposal) -> BoxFuture<'_, Proposed<Epoch>>;

    /// Metadata as applied here, as it changes.
    fn states(&self) -> watch::Receiver<Arc<MetaState>>;

    /// Makes sure that nothing that was proposed before can be committed after, then reads the owner of each of `volumes`; `None` of one that
    /// was deleted.
    ///
    /// # Errors
    /// When consensus cannot be reached: try again.
    fn settle(&self, volumes: Vec<VolumeId>) -> BoxFuture<'_, Result<Vec<OwnerNow>, Error>>;

    /// Lists a snapshot of all volumes of `group`, which this process is about to make, and nobody else. May be repeated with the same
    /// `nonce`.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn snapshot_group(
        &self,
        group: VolumeGroupId,
        name: SnapshotName,
        members: Vec<(VolumeId, Epoch)>,
        nonce: u64,
    ) -> BoxFuture<'_, Result<SnapshotId, Error>>;

    /// Tells what such a snapshot is of each volume. May be repeated.
    ///
    /// # Errors
    /// The refusal: it is not listed any more. `Unavailable` when consensus cannot be reached: it may have been committed.
    fn group_snapshot_made(
        &self,
        snapshot: SnapshotId,
        made: Vec<(VolumeId, Epoch, Made)>,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Takes snapshots that are not made, and will not be, off the list. May be repeated.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn drop_unmade(&self, snapshots: Vec<(VolumeId, SnapshotId)>) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes `resize`. When it returns, the outcome is known: it was committed, or never will be. It waits for that as long as consensus
    /// cannot be reached.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when it was not committed for want of consensus.
    ///
    /// # Cancel safety
    /// None: the outcome is unknown then.
    fn resize(&self, resize: Resize) -> BoxFuture<'_, Result<(), Error>>;

    /// Proposes `change`. When it returns, the outcome is known: it was committed, or never will be. It waits for that as long as consensus
    /// cannot be reached.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when it was not committed for want of consensus.
    ///
    /// # Cancel safety
    /// None: the outcome is unknown then.
    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, Result<(), Error>>;

    /// Tells what a snapshot is that the owner of `epoch` has made. May be repeated.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn snapshot_made(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        snapshot: SnapshotId,
        made: Made,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Tells that the owner of `epoch` has the clone that `volume` is. May be repeated.
    ///
    /// # Errors
    /// The refusal; `Unavailable` when consensus cannot be reached: it may have been committed.
    fn clone_made(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>>;
}

/// What a handover came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverReport {
    /// The new epochs, in the order of the volumes; of one volume there is one.
    pub epochs: Vec<Epoch>,
    /// From the freeze to the release: how long writers were held.
    pub held: Duration,
    /// Bytes that the destination knew of and did not hold when it was prepared.
    pub stale_bytes: u64,
    /// How long the destination was waited for before that.
    pub caught_up: Duration,
}

/// One handover.
pub struct Driver {
    members: Vec<Member>,
    to: NodeId,
    /// The group that the volumes are all of, as far as they are owned here; else there is one.
    group: Option<VolumeGroupId>,
    log: Arc<dyn OwnershipLog>,
    cancel: CancellationToken,
    when: FreezeWhen,
    caught_up: Duration,
    account: Option<Arc<Account>>,
}

impl Driver {
    /// A handover of `volume`, owned here in `epoch`, to node `to`. `cancel` is heeded until the proposal.
    #[must_use]
    pub fn new(
        volume: Arc<ServedVolume>,
        to: NodeId,
        epoch: Epoch,
        log: Arc<dyn OwnershipLog>,
        cancel: CancellationToken,
    ) -> Driver {
        let members = vec![Member::new(volume, to, epoch)];
        Driver::of(members, to, None, log, cancel)
    }

    /// The same of several volumes, with the epochs in which they are owned here: all of `group` that are.
    #[must_use]
    pub fn of_group(
        group: VolumeGroupId,
        volumes: Vec<(Arc<ServedVolume>, Epoch)>,
        to: NodeId,
        log: Arc<dyn OwnershipLog>,
        cancel: CancellationToken,
    ) -> Driver {
        let members = volumes.into_iter().map(|(volume, epoch)| Member::new(volume, to, epoch)).collect();
        Driver::of(members, to, Some(group), log, cancel)
    }

    fn of(
        members: Vec<Member>,
        to: NodeId,
        group: Option<VolumeGroupId>,
        log: Arc<dyn OwnershipLog>,
        cancel: CancellationToken,
    ) -> Driver {
        let (when, caught_up, account) = (FreezeWhen::Always, Duration::ZERO, None);
        Driver { members, to, group, log, cancel, when, caught_up, account }
    }

    /// The same, and `account` tells how it goes; its end is told by the caller.
    #[must_use]
    pub fn told_in(self, account: Arc<Account>) -> Driver {
        Driver { account: Some(account), ..self }
    }

    /// Where it goes.
    #[must_use]
    pub fn to(&self) -> NodeId {
        self.to
    }

    /// What moves, and out of which epochs.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, Epoch)> {
        self.members.iter().map(|member| (member.volume.id, member.epoch)).collect()
    }

    fn enter(&self, phase: chronicle::Phase) {
        if let Some(account) = &self.account {
            account.enter(phase);
        }
    }

    /// The same, but it is handed over only when the destination holds everything, as `watermarks` tells of each volume: from then on
    /// the loss of the source costs nothing.
    #[must_use]
    pub fn synced(mut self, watermarks: Vec<Arc<Watermarks>>) -> Driver {
        assert_eq!(watermarks.len(), self.members.len(), "every volume has them");
        for (member, watermarks) in self.members.iter_mut().zip(watermarks) {
            member.synced = Some(watermarks);
        }
        self
    }

    /// The same, but it is handed over only as a virtual machine that was stopped leaves its disks: flushed, with nothing under way.
    #[must_use]
    pub fn flushed(self) -> Driver {
        Driver { when: FreezeWhen::Flushed, ..self }
    }

    /// The same of a volume whose store takes no writes any more: what was acked and is not durable here is told in the proposal and nowhere before it.
    #[must_use]
    pub fn rescuing(mut self) -> Driver {
        self.members.iter_mut().for_each(|member| member.rescues = true);
        Driver { when: FreezeWhen::Unsynced, ..self }
    }

    /// Hands over, or leaves everything where it was and says why.
    ///
    /// # Errors
    /// What stays owned here goes on.
    ///
    /// # Cancel safety
    /// Not safe: run it as a task.
    pub async fn run(mut self) -> Result<HandoverReport, Error> {
        // Whoever waits for the destination does not wait for its policy or its link's.
        let waited_for = self.members.iter().filter(|member| member.synced.is_some());
        let _hurry: Vec<_> = waited_for.map(|member| member.volume.sending.hurry(self.to)).collect();
        let cancel = self.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(beginning::cancelled()),
            ready = self.make_ready() => ready?,
        }
        let outcome = self.hand_over().await;
        self.peers().end_way(self.to);
        outcome
    }

    fn peers(&self) -> &PeerClient {
        &self.members.first().expect("a handover is of a volume at least").volume.peers
    }

    fn told(&self, failure: Failure) -> Error {
        failure.told(self.to, |node| self.peers().name(node))
    }

    async fn hand_over(&mut self) -> Result<HandoverReport, Error> {
        let began = Instant::now();
        let mut machine = Handover::new(self.to, self.members.iter().map(|member| member.epoch).collect());
        let mut effect = machine.on(Event::Start);
        while let Some(next) = effect {
            effect = match next {
                Effect::Thaw(failure) => {
                    self.release(&vec![Released::Here; self.members.len()]).await?;
                    return Err(self.told(failure));
                }
                Effect::Release { volumes, failure } => {
                    self.release(&volumes).await?;
                    return match failure {
                        None => Ok(self.report(&volumes, began.elapsed())),
                        Some(failure) => Err(self.told(failure)),
                    };
                }
                step => {
                    let event = self.carry_out(step).await?;
                    tracing::debug!(volume = %self.names(), ?event, since = ?began.elapsed(), "handover");
                    machine.on(event)
                }
            };
        }
        unreachable!("a handover ends thawed or released")
    }

    /// # Errors
    /// When this node stops: what was held ends with it.
    async fn carry_out(&mut self, step: Effect) -> Result<Event, Error> {
        match &step {
            Effect::Freeze => self.enter(chronicle::Phase::Freezing),
            Effect::Prepare { .. } => self.enter(chronicle::Phase::Preparing),
            Effect::Propose { .. } => self.enter(chronicle::Phase::Proposing),
            Effect::Resolve => self.enter(chronicle::Phase::Resolving),
            Effect::Thaw(_) | Effect::Release { .. } => {}
        }
        Ok(match step {
            Effect::Freeze => self.freeze().await,
            Effect::Prepare { final_lsns } => self.prepare(&final_lsns).await,
            Effect::Propose { final_lsns } => {
                // From here on this node must not answer reads from its own copies either.
                for (member, final_lsn) in self.members.iter().zip(&final_lsns) {
                    let heir = Heir { node: self.to, begins: *final_lsn };
                    member.volume.gate.set_phase(member.epoch, Phase::Transferring(heir));
                }
                self.propose(&final_lsns).await
            }
            Effect::Resolve => {
                let volumes = self.members.iter().map(|member| member.volume.id).collect();
                match self.log.settle(volumes).await {
                    Ok(owners) => Event::Resolved(owners),
                    Err(error) if is_gone(&error) => return Err(error),
                    Err(error) => {
                        tracing::warn!(volume = %self.names(), %error, "the outcome of a handover is not known yet; I/O is held");
                        tokio::time::sleep(RESOLVE_PAUSE).await;
                        Event::Unknown
                    }
                }
            }
            Effect::Thaw(_) | Effect::Release { .. } => unreachable!("handled by the caller"),
        })
    }

    async fn prepare(&mut self, final_lsns: &[Lsn]) -> Event {
        let (name, cancel) = (self.peers().name(self.to), self.cancel.clone());
        let room = ENCLOSED_BYTES_MAX / self.members.len();
        let members = self.members.iter_mut().zip(final_lsns);
        let all = try_join_all(members.map(|(member, final_lsn)| member.prepare(*final_lsn, room, &cancel)));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Event::Failed(beginning::cancelled()),
            prepared = tokio::time::timeout(PREPARE_DEADLINE, all) => match prepared {
                Ok(Ok(known)) => Event::Prepared(known),
                Ok(Err(error)) => Event::Failed(error),
                Err(_) => Event::Failed(Error::new(
                    ErrorKind::Unavailable,
                    format!("node {name} did not take the last manifest within {PREPARE_DEADLINE:?}"),
                )),
            },
        }
    }

    async fn propose(&mut self, final_lsns: &[Lsn]) -> Event {
        let (group, to) = (self.group, self.to);
        let members = self.members.iter().zip(final_lsns).map(|(member, final_lsn)| member.ended(*final_lsn)).collect();
        let enclosed = self.members.iter_mut().filter_map(Member::take_enclosed).collect();
        let rescued = self.members.iter().find_map(Member::rescued);
        match self.log.hand_over(HandoverProposal { group, to, members, enclosed, rescued }).await {
            Proposed::Committed(()) => {
                Event::Committed(self.members.iter().map(|member| member.epoch.next()).collect())
            }
            Proposed::Refused(error) => Event::Refused(error),
            Proposed::Unknown => Event::Unknown,
        }
    }

    /// Releases every volume as it is said, whatever fails with one of them.
    async fn release(&self, released: &[Released]) -> Result<(), Error> {
        self.enter(chronicle::Phase::Releasing);
        let members = self.members.iter().zip(released);
        let all = join_all(members.map(|(member, released)| member.release(*released))).await;
        all.into_iter().collect()
    }

    fn report(&self, released: &[Released], held: Duration) -> HandoverReport {
        let epoch = |released: &Released| match released {
            Released::To { epoch, .. } | Released::Found { epoch, .. } => Some(*epoch),
            Released::Here | Released::Gone => None,
        };
        HandoverReport {
            epochs: released.iter().filter_map(epoch).collect(),
            held,
            stale_bytes: self.members.iter().map(Member::stale_bytes).sum(),
            caught_up: self.caught_up,
        }
    }

    fn names(&self) -> String {
        self.members.iter().map(|member| member.volume.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}
