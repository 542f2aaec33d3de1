//! Carries out a takeover at the replica that takes over: the effects of [`Takeover`] on the real shard and consensus.
//!
//! Runs as a task of its own, never inside a caller's future: once a proposal is under way, nothing may be taken from the old
//! owner until its outcome is known, whoever stops waiting for the report.

use std::sync::Arc;
use std::time::Duration;

use client_lib::transport::BoxFuture;
use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId};
use consensus::MetaState;
use serde::{Deserialize, Serialize};

use super::{Effect, Event, Seen, Takeover};
use crate::ownership::chronicle::{self, Account};
use crate::ownership::driver::{OwnershipLog, Proposed, RESOLVE_PAUSE, TakeoverProposal, is_gone};
use crate::ownership::expiry::LeaseWatch;
use crate::ownership::gate::Phase;
use crate::propagation::intake::Hold;
use crate::serve::volume::{ServedVolume, store_failure};

/// How long this node may take to serve what it has taken over before the takeover is reported without that.
const ACTIVATE_PATIENCE: Duration = Duration::from_secs(20);

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The owner's lease is waited out.
    Waiting {
        /// How long it still lasts, in milliseconds.
        remaining_ms: u64,
    },
    /// Consensus is asked to agree that the lease is out.
    Expiring,
    /// What is complete is applied; nothing more is taken from the owner.
    Holding,
    /// Consensus is asked for the volume.
    Proposing,
    /// Nobody could tell whether consensus agreed: it is asked.
    Resolving,
    /// The volume is this node's, which begins to serve it.
    TakingUp,
}

/// A volume was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The new epoch.
    pub epoch: Epoch,
    /// What the new owner begins with: everything up to here.
    pub start: Lsn,
    /// The newest write that it had been told of.
    pub known: Lsn,
    /// How many distinct blocks it was told of that it did not hold.
    pub lost_blocks: u64,
}

/// Whether this node may begin with what it holds: up to that position. Asked when the owner's lease is out, so that nothing is flushed
/// any more that those who are asked do not tell of.
pub type Confirm = Box<dyn FnOnce(Lsn) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// One takeover of one volume by this node.
pub struct Driver {
    volume: Arc<ServedVolume>,
    from: NodeId,
    epoch: Epoch,
    log: Arc<dyn OwnershipLog>,
    leases: Arc<LeaseWatch>,
    stage: watch::Sender<Stage>,
    hold: Option<Hold>,
    confirm: Option<Confirm>,
    account: Option<Arc<Account>>,
    taken: Taken,
}

impl Driver {
    /// A takeover of `volume` from node `from`, which owns it in `epoch`; `stage` tells how it goes.
    #[must_use]
    pub fn new(
        volume: Arc<ServedVolume>,
        from: NodeId,
        epoch: Epoch,
        log: Arc<dyn OwnershipLog>,
        leases: Arc<LeaseWatch>,
        stage: watch::Sender<Stage>,
    ) -> Driver {
        let taken = Taken { epoch: epoch.next(), start: Lsn::ZERO, known: Lsn::ZERO, lost_blocks: 0 };
        Driver { volume, from, epoch, log, leases, stage, hold: None, confirm: None, account: None, taken }
    }

    /// The same, which goes on only if `confirm` has nothing against it.
    #[must_use]
    pub fn confirmed_by(self, confirm: Confirm) -> Driver {
        Driver { confirm: Some(confirm), ..self }
    }

    /// The same, and `account` tells how it goes; its end is told by the caller.
    #[must_use]
    pub fn told_in(self, account: Arc<Account>) -> Driver {
        Driver { account: Some(account), ..self }
    }

    fn enter(&self, stage: Stage) {
        self.stage.send_replace(stage);
        if let Some(account) = &self.account {
            account.enter(match stage {
                Stage::Waiting { .. } => chronicle::Phase::Waiting,
                Stage::Expiring => chronicle::Phase::Expiring,
                Stage::Holding => chronicle::Phase::Holding,
                Stage::Proposing => chronicle::Phase::Proposing,
                Stage::Resolving => chronicle::Phase::Resolving,
                Stage::TakingUp => chronicle::Phase::TakingUp,
            });
        }
    }

    /// Takes the volume over, or follows as before and says why.
    ///
    /// # Errors
    /// The volume is not this node's; or, `Unavailable` and saying so, it is and is not served yet.
    ///
    /// # Cancel safety
    /// Not safe: run it as a task.
    pub async fn run(mut self) -> Result<Taken, Error> {
        let mut states = self.log.states();
        let mut machine = Takeover::new(self.volume.me, self.epoch);
        let mut event = self.look(&states.borrow_and_update().clone());
        loop {
            let effect = machine.on(event).expect("a takeover ends released or taken up");
            tracing::debug!(volume = %self.volume.name, epoch = %self.epoch, ?effect, "takeover");
            event = match effect {
                Effect::Wait { until } => {
                    self.wait(&mut states, until).await;
                    self.look(&states.borrow_and_update().clone())
                }
                Effect::Expire { renewals } => {
                    self.enter(Stage::Expiring);
                    match self.log.expire(self.from, renewals).await {
                        Ok(()) => Event::Expired,
                        Err(error) if error.kind() == ErrorKind::Busy => Event::Failed(self.alive()),
                        Err(error) => Event::Failed(error),
                    }
                }
                Effect::Hold => {
                    self.enter(Stage::Holding);
                    let held = match (self.hold().await, self.confirm.take()) {
                        (Ok(start), Some(confirm)) => confirm(start).await.map(|()| start),
                        (held, _) => held,
                    };
                    match held {
                        Ok(start) => Event::Held(start),
                        Err(error) => Event::Failed(error),
                    }
                }
                Effect::Propose { start } => {
                    self.enter(Stage::Proposing);
                    let proposal =
                        TakeoverProposal { volume: self.volume.id, from: self.from, epoch: self.epoch, start };
                    match self.log.take_over(proposal).await {
                        Proposed::Committed(epoch) => Event::Committed(epoch),
                        Proposed::Refused(error) => Event::Refused(error),
                        Proposed::Unknown => Event::Unknown,
                    }
                }
                Effect::Resolve => {
                    self.enter(Stage::Resolving);
                    self.resolve().await?
                }
                Effect::Release(error) => return Err(error),
                Effect::Alive => return Err(self.alive()),
                Effect::NotCommitted { owner, epoch } => return Err(self.not_committed(owner, epoch)),
                Effect::TakeUp(epoch) => {
                    self.enter(Stage::TakingUp);
                    self.served(epoch).await?;
                    return Ok(self.taken);
                }
            };
        }
    }

    /// The owner's lease as metadata has it, if there is still something to take over. One that has stepped down in this epoch is as good as
    /// out, and stays so: only a new process of that node could act again, whose start makes the proposal void.
    fn look(&self, state: &MetaState) -> Event {
        let meta = state.volume(self.volume.id);
        if let Some((owner, epoch)) = meta.map(|meta| (meta.owner, meta.epoch)).filter(|now| now.1 != self.epoch) {
            let owner = state.name_of(owner);
            let what = format!("volume {} is at node {owner} by now, in epoch {epoch}", self.volume.name);
            return Event::Failed(Error::new(ErrorKind::Busy, what));
        }
        if meta.is_none() {
            return Event::Failed(Error::new(ErrorKind::NotFound, format!("volume {} was deleted", self.volume.name)));
        }
        let lease = state.lease(self.from);
        let out_at = self.leases.observe(self.from, &lease);
        let is_out = lease.is_out || state.has_stepped_down(self.volume.id);
        Event::Looked { now: self.leases.now(), lease: Seen { renewals: lease.renewals, is_out, out_at } }
    }

    /// The refusal to take over from an owner that is not lost.
    fn alive(&self) -> Error {
        let state = self.log.states().borrow().clone();
        let move_it = match state.group_of(self.volume.id) {
            Some(group) => format!("`helio group migrate {} --to NODE` to move the volume with its group", group.name),
            None => format!("`helio volume migrate {} --to NODE` to move the volume", self.volume.name),
        };
        let from = state.name_of(self.from);
        let what = format!("node {from} has renewed its lease: it is alive; use {move_it}");
        Error::new(ErrorKind::Busy, what)
    }

    /// What was found when the answer to the proposal was lost.
    fn not_committed(&self, owner: NodeId, epoch: Epoch) -> Error {
        let (volume, owner) = (&self.volume.name, self.log.states().borrow().name_of(owner));
        let what = format!("the takeover of volume {volume} was not committed: node {owner} owns it in epoch {epoch}");
        Error::new(ErrorKind::Unavailable, what)
    }

    /// Until then, or until metadata changes.
    async fn wait(&self, states: &mut watch::Receiver<Arc<MetaState>>, until: Duration) {
        let remaining = until.saturating_sub(self.leases.now());
        self.enter(Stage::Waiting { remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX) });
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() {
                // The node stops, and this task with it.
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep(remaining) => {}
        }
    }

    /// Takes nothing more from the owner, applies what is complete, and says up to where that is. The hold lasts until the
    /// driver is dropped.
    async fn hold(&mut self) -> Result<Lsn, Error> {
        self.hold = Some(self.volume.intake.hold().await);
        let (shard, id) = (&self.volume.shard, self.volume.id);
        let mut report = shard.report(id).await.map_err(store_failure)?;
        while let Some(to) = report.sealed_to {
            if shard.apply_sealed(id, to).await.map_err(store_failure)? < to {
                break;
            }
            report = shard.report(id).await.map_err(store_failure)?;
        }
        self.taken.known = report.known;
        // An entry like any other: what an owner's request had begun has taken effect when it has.
        let report = shard.rewind(id, report.known).await.map_err(store_failure)?;
        if let Some(tail) = self.volume.standing.tail() {
            return Err(tail.refusal(&self.volume.my_name()));
        }
        if report.rejoining.is_some() {
            return Err(on_its_way_back(&self.volume.my_name()));
        }
        if report.held > report.watermark {
            return Err(incomplete(&self.volume.my_name(), report.watermark, report.held));
        }
        self.taken.start = report.watermark;
        self.taken.lost_blocks = shard.changed_blocks(id, report.watermark).await.map_err(store_failure)?;
        Ok(report.watermark)
    }

    /// # Errors
    /// `NotFound` when there is nothing to take over any more, `Closed` when this node stops.
    async fn resolve(&self) -> Result<Event, Error> {
        let settled = self.log.settle(vec![self.volume.id]).await;
        Ok(match settled.map(|owners| owners.first().copied().flatten()) {
            Ok(Some((owner, epoch))) => Event::Resolved { owner, epoch },
            Ok(None) => {
                return Err(Error::new(ErrorKind::NotFound, format!("volume {} was deleted", self.volume.name)));
            }
            Err(error) if is_gone(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(volume = %self.volume.name, epoch = %self.epoch, %error, "the outcome of a takeover is not known yet");
                tokio::time::sleep(RESOLVE_PAUSE).await;
                Event::Unknown
            }
        })
    }

    /// Waits until this node serves the volume.
    async fn served(&self, epoch: Epoch) -> Result<(), Error> {
        let mut views = self.volume.gate.subscribe();
        let is_served = |phase| matches!(phase, Phase::Owner | Phase::Closed);
        let served = views.wait_for(|view| view.epoch > epoch || (view.epoch == epoch && is_served(view.phase)));
        match tokio::time::timeout(ACTIVATE_PATIENCE, served).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "volume {} was taken over in epoch {epoch}, but node {} does not serve it yet; its log says why",
                    self.volume.name,
                    self.volume.my_name()
                ),
            )),
        }
    }
}

/// The refusal of a node that has discarded its tail and nothing in the place of that yet.
#[must_use]
pub fn on_its_way_back(node: &str) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "node {node} comes back to the volume: it has discarded what an earlier takeover cut off, and has not fetched yet what took the \
             place of that, which only the owner or another replica has"
        ),
    )
}

/// The refusal of a node that has written more than it holds all of.
#[must_use]
pub fn incomplete(node: &str, watermark: Lsn, held: Lsn) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "node {node} holds the volume completely only up to {watermark}, and has writes of its own up to {held} that a \
             takeover would cut off; choose another replica, or wait until it has fetched the rest"
        ),
    )
}
