//! Takeovers, as an administrator asks for them: which replica, what was lost; and the way back of a node that has left.
//!
//! Any node can be asked. It surveys the replicas, chooses one, and follows how that one takes over
//! ([`crate::ownership::takeover::driver`]); the takeover goes on there whoever stops waiting for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::watch;
use client_lib::wire::admin::{AskTakeover, Rejoin, TailStatus, TakeoverProgress, TakeoverReport};
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, Lsn, NodeId, VolumeId};
use consensus::state::Origin;
use consensus::{MetaRaft, MetaState, Places, Volume};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::METADATA_DEADLINE;
use super::admin::{Busy, NodeAdmin, ask, node_named, replicas_told, volume_named};
use super::policy::SteppedDown;
use super::reconcile::{discard, follow};
use crate::ownership::chronicle::{End, Kind, Subject};
use crate::ownership::expiry::LeaseWatch;
use crate::ownership::standing::Tail;
use crate::ownership::takeover::driver::{Confirm, Driver, Stage, Taken, incomplete, on_its_way_back};
use crate::peer::client::PeerClient;
use crate::peer::message::AdminForward;
use crate::propagation::classes;
use crate::serve::tail::tail_name;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::VolumeReport;
#[cfg(test)]
use crate::simulation::rules;

/// How long a replica may take to say what it holds before the takeover goes on without it.
const SURVEY_PATIENCE: Duration = Duration::from_secs(3);

/// How often the node that takes over is asked how it goes.
const LOOK: Duration = Duration::from_millis(100);

/// How long the node that takes over may be out of reach before nobody waits for it any more.
const LOOK_PATIENCE: Duration = Duration::from_secs(20);

/// How a takeover goes at the node that takes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Going {
    On(Stage),
    Taken(Taken),
    Failed(ErrorKind, String),
}

struct Running {
    epoch: Epoch,
    stage: watch::Receiver<Stage>,
    outcome: Arc<OnceLock<Going>>,
}

impl Running {
    fn going(&self) -> Going {
        self.outcome.get().cloned().unwrap_or_else(|| Going::On(*self.stage.borrow()))
    }
}

/// The takeovers by this node, and those that it was asked for.
pub(super) struct Takeovers {
    pub(super) leases: Arc<LeaseWatch>,
    stepped_down: Mutex<SteppedDown>,
    here: Mutex<BTreeMap<VolumeId, Running>>,
    asked: Mutex<BTreeMap<String, TakeoverProgress>>,
}

impl Takeovers {
    /// None yet; leases are counted by `clock`, which goes on while the machine sleeps.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Takeovers {
        let leases = Arc::new(LeaseWatch::new(clock));
        Takeovers { leases, stepped_down: Mutex::default(), here: Mutex::default(), asked: Mutex::default() }
    }

    /// Since when owners have been seen here to have stepped down.
    pub(super) fn stepped_down(&self) -> MutexGuard<'_, SteppedDown> {
        self.stepped_down.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the takeover of `volume` goes that this node was asked for.
    pub(super) fn progress(&self, volume: &str) -> Result<TakeoverProgress, Error> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(volume).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("this node is not asked for a takeover of volume {volume:?}"))
        })
    }

    /// How this node's takeover from the owner of `epoch` goes.
    pub(super) fn state(&self, volume: VolumeId, epoch: Epoch) -> Result<Going, Error> {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let running = here.get(&volume).filter(|running| running.epoch == epoch);
        running.map(Running::going).ok_or_else(|| {
            Error::new(ErrorKind::Closed, "the node that takes over was restarted; look at the volume, and try again")
        })
    }

    fn note(&self, volume: &str, progress: Option<TakeoverProgress>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Some(progress) => drop(asked.insert(volume.to_owned(), progress)),
            None => drop(asked.remove(volume)),
        }
    }
}

/// Shows how a takeover goes until it is dropped.
struct Shown<'a> {
    takeovers: &'a Takeovers,
    volume: &'a str,
    from: String,
    to: String,
}

impl Shown<'_> {
    fn show(&self, stage: Stage) {
        let (stage, doing, remaining_ms) = match stage {
            Stage::Waiting { remaining_ms } => {
                ("waiting", format!("waiting until the lease of node {} is out", self.from), Some(remaining_ms))
            }
            Stage::Expiring => ("expiring", format!("agreeing that the lease of node {} is out", self.from), None),
            Stage::Holding => ("holding", format!("applying what is complete at node {}", self.to), None),
            Stage::Proposing => ("proposing", format!("giving the volume to node {}", self.to), None),
            Stage::Resolving => ("resolving", "finding out whether the volume was given".to_owned(), None),
            Stage::TakingUp => ("taking_up", format!("starting to serve at node {}", self.to), None),
        };
        let (from, to) = (self.from.clone(), self.to.clone());
        let progress = TakeoverProgress { from, to, stage: stage.to_owned(), doing, remaining_ms };
        self.takeovers.note(self.volume, Some(progress));
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.takeovers.note(self.volume, None);
    }
}

/// What a replica holds of a volume.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Holding {
    known: Lsn,
    watermark: Lsn,
    held: Lsn,
    tail: Option<Tail>,
    /// It has discarded its tail, and what took the place of that is not here yet.
    #[serde(default)]
    is_rejoining: bool,
    /// When the owner was last heard of, and how long before that the oldest write was told of that is not applied.
    heard: Option<(Duration, Duration)>,
}

/// What a replica said.
struct Survey {
    node: NodeId,
    name: String,
    answer: Result<Holding, Error>,
}

impl Survey {
    /// What `asked` comes to, of `node`.
    async fn of(state: &MetaState, node: NodeId, asked: impl Future<Output = Result<Holding, Error>>) -> Survey {
        let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {SURVEY_PATIENCE:?}")));
        let answer = tokio::time::timeout(SURVEY_PATIENCE, asked).await.unwrap_or_else(late);
        Survey { node, name: state.name_of(node), answer }
    }
}

/// What the other replicas hold once the owner's lease is out. What they held before, when the one that takes over was chosen, they may
/// hold more than by now: an owner that is cut off from that one alone goes on, as long as its lease lasts, with those that it reaches.
struct LastSurvey {
    volume: VolumeId,
    me: NodeId,
    meta: MetaRaft,
    peers: PeerClient,
}

impl LastSurvey {
    fn confirm(self) -> Confirm {
        Box::new(move |start| Box::pin(async move { self.require_most(start).await }))
    }

    /// Refuses to begin at `start` where another replica holds more, or may hold more that was flushed.
    async fn require_most(&self, start: Lsn) -> Result<(), Error> {
        let state = self.meta.state();
        let gone = || Error::new(ErrorKind::NotFound, format!("volume {} was deleted", self.volume));
        let volume = state.volume(self.volume).ok_or_else(gone)?;
        let others = volume.replicas.iter().filter(|node| **node != self.me);
        let asked = |node| ask(&self.peers, node, AdminForward::Holding { volume: self.volume });
        let mut surveys = join_all(others.map(|node| Survey::of(&state, *node, asked(*node)))).await;
        let (tail, heard, is_rejoining) = (None, None, false);
        let own = Holding { known: start, watermark: start, held: start, tail, is_rejoining, heard };
        surveys.push(Survey { node: self.me, name: state.name_of(self.me), answer: Ok(own) });
        let chosen = choose(&state, volume, &surveys, Some(self.me), self.me, false)?;
        require_heard(&state, volume, &surveys, chosen)
    }
}

impl NodeAdmin {
    pub(super) async fn take_over_volume(&self, name: &str, request: AskTakeover) -> Result<TakeoverReport, Error> {
        let began = Instant::now();
        let state = self.meta.linearizable(METADATA_DEADLINE).await.map_err(no_majority)?;
        let volume = volume_named(&state, name)?;
        let to = request.to.as_ref().map(|to| node_named(&state, to)).transpose()?;
        if let Some(to) = to {
            may_take_over(&state, volume, to)?;
        }
        let (mut is_last, mut is_asked, mut is_again) = (request.to.is_some(), false, false);
        let (surveys, to, holding, shown, taken) = loop {
            let surveys = join_all(volume.replicas.iter().map(|node| self.survey(&state, volume.id, *node))).await;
            let chosen = choose(&state, volume, &surveys, to, self.this.id, request.behind)?;
            if !request.behind {
                require_heard(&state, volume, &surveys, chosen)?;
            }
            let (to, holding) =
                (chosen.node, *chosen.answer.as_ref().map_err(|_| no_replica(volume, state.places(), &surveys))?);
            let shown = Shown {
                takeovers: &self.takeovers,
                volume: name,
                from: state.name_of(volume.owner),
                to: state.name_of(to),
            };
            if !std::mem::replace(&mut is_asked, true) && self.keeps_others_waiting(volume) {
                // Not before it is known that there is somebody to go on: from then on not even reads are answered.
                self.have_owner_step_down(volume).await;
            }
            match self.see_through(volume, to, request.behind, &shown).await {
                Ok(taken) => break (surveys, to, holding, shown, taken),
                // The one that takes over had heard of a renewal after the others had heard that the owner steps down.
                Err(error) if error.kind() == ErrorKind::Busy && !is_again && self.has_stepped_down(volume) => {
                    is_again = true
                }
                // While the lease was waited out another one has come to hold more, and nothing more is to come.
                Err(error) if error.kind() == ErrorKind::InvalidRequest && !is_last => {
                    tracing::info!(volume = %name, node = %shown.to, %error, "another one is asked to take over");
                    is_last = true;
                }
                Err(error) => return Err(error),
            }
        };
        tracing::info!(volume = %name, epoch = %taken.epoch, from = %shown.from, to = %shown.to, start = %taken.start, "taken over");
        let answers = surveys.iter().filter_map(|survey| Some((survey, survey.answer.as_ref().ok()?)));
        let known = answers.clone().filter(|(_, holding)| holding.tail.is_none()).map(|(_, holding)| holding.known);
        let known = known.fold(taken.known, Lsn::max).max(taken.start);
        let is_lost = |snapshot: &&consensus::Snapshot| snapshot.made.is_some_and(|made| made.lsn > taken.start);
        let (heard, behind) = holding.heard.map_or((None, Duration::ZERO), |(heard, behind)| (Some(heard), behind));
        Ok(TakeoverReport {
            volume: name.to_owned(),
            from: shown.from.clone(),
            to: shown.to.clone(),
            epoch: taken.epoch.0,
            start: taken.start.to_string(),
            known: known.to_string(),
            lost_writes: known.sequence.saturating_sub(taken.start.sequence),
            lost_bytes: taken.lost_blocks * u64::from(BLOCK_SIZE),
            lost_seconds: if known > taken.start { behind.as_secs_f64() } else { 0.0 },
            heard_seconds_ago: heard.map(|heard| (heard + began.elapsed()).as_secs_f64()),
            took_seconds: began.elapsed().as_secs_f64(),
            lost_snapshots: volume.snapshots.iter().filter(is_lost).map(|snapshot| snapshot.name.to_string()).collect(),
            left: answers
                .filter(|(survey, holding)| survey.node != to && holding.held > taken.start)
                .map(|(survey, _)| survey.name.clone())
                .collect(),
        })
    }

    /// The replica that would take `volume` over, if that were asked for now; nothing is begun.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn outlook(&self, state: &MetaState, volume: &Volume) -> Result<String, Error> {
        let surveys = join_all(volume.replicas.iter().map(|node| self.survey(state, volume.id, *node))).await;
        let chosen = choose(state, volume, &surveys, None, self.this.id, false)?;
        require_heard(state, volume, &surveys, chosen)?;
        Ok(chosen.name.clone())
    }

    /// Whether the lease of the volume's owner must be waited for.
    fn keeps_others_waiting(&self, volume: &Volume) -> bool {
        let lease = self.meta.state().lease(volume.owner);
        let out_at = self.takeovers.leases.observe(volume.owner, &lease);
        !lease.is_out && out_at > self.takeovers.leases.now() && !self.has_stepped_down(volume)
    }

    /// Whether its owner has ceased to act for it, as far as this node has heard.
    fn has_stepped_down(&self, volume: &Volume) -> bool {
        let state = self.meta.state();
        let is_it = state.volume(volume.id).is_some_and(|now| now.epoch == volume.epoch);
        is_it && state.has_stepped_down(volume.id)
    }

    /// Has node `to` take over, and waits until it has.
    async fn see_through(&self, volume: &Volume, to: NodeId, behind: bool, shown: &Shown<'_>) -> Result<Taken, Error> {
        let (id, from, epoch) = (volume.id, volume.owner, volume.epoch);
        let mut going = match to == self.this.id {
            true => self.take_over_here(id, from, epoch, behind).await?,
            false if behind => self.ask(to, AdminForward::TakeoverBehind { volume: id, from, epoch }).await?,
            false => self.ask(to, AdminForward::Takeover { volume: id, from, epoch }).await?,
        };
        let mut heard = Instant::now();
        loop {
            match going {
                Going::On(stage) => shown.show(stage),
                Going::Taken(taken) => return Ok(taken),
                Going::Failed(kind, message) => return Err(Error::new(kind, message)),
            }
            tokio::time::sleep(LOOK).await;
            let state = match to == self.this.id {
                true => self.takeovers.state(id, epoch),
                false => self.ask(to, AdminForward::TakeoverState { volume: id, epoch }).await,
            };
            going = match state {
                Ok(going) => {
                    heard = Instant::now();
                    going
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && heard.elapsed() < LOOK_PATIENCE => going,
                Err(error) => return Err(error),
            };
        }
    }

    /// Takes a volume over, unless another replica may hold more that was flushed or the copy that was here is lost, or `behind` says that this does not
    /// matter; returns how that goes, or how it went when it was asked for before.
    pub(super) async fn take_over_here(
        &self,
        id: VolumeId,
        from: NodeId,
        epoch: Epoch,
        behind: bool,
    ) -> Result<Going, Error> {
        let served = self.volumes.require(id)?;
        if !behind {
            self.require_not_replaced(&served).await?;
        }
        let mut here = self.takeovers.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = here.get(&id).filter(|running| running.epoch == epoch) {
            let going = running.going();
            if !matches!(going, Going::Failed(..)) {
                return Ok(going);
            }
        }
        let busy = Busy::begin(self.busy.clone(), &served)?;
        let (stage, stages) = watch::channel(Stage::Waiting { remaining_ms: 0 });
        let outcome = Arc::new(OnceLock::new());
        let subject = Subject { kind: Kind::Takeover, volumes: vec![(id, epoch)], from, to: self.this.id };
        let account = self.chronicle.open(subject, SystemClock::new().unix_ms());
        let driver = Driver::new(served, from, epoch, self.ownership.clone(), self.takeovers.leases.clone(), stage);
        let mut driver = driver.told_in(account.clone());
        if !behind {
            let last = LastSurvey { volume: id, me: self.this.id, meta: self.meta.clone(), peers: self.peers.clone() };
            driver = driver.confirmed_by(last.confirm());
        }
        let (told, taking) = (outcome.clone(), tokio::spawn(driver.run()));
        let changes = self.changes.clone();
        // It is told how it went, and marked until then, also when the driver panics.
        tokio::spawn(async move {
            let _busy = busy;
            let going = match taking.await {
                Ok(Ok(taken)) => Going::Taken(taken),
                Ok(Err(error)) => Going::Failed(error.kind(), error.to_string()),
                Err(error) => Going::Failed(ErrorKind::Internal, format!("the takeover ended early: {error}")),
            };
            account.end(match &going {
                Going::Taken(taken) => End::Moved(taken.lost_blocks * u64::from(BLOCK_SIZE)),
                Going::Failed(_, error) => End::Failed(error.clone()),
                Going::On(_) => unreachable!("it has ended"),
            });
            changes.taken_over(matches!(going, Going::Taken(_)));
            // Set once, here.
            let _ = told.set(going);
        });
        let running = Running { epoch, stage: stages, outcome };
        let going = running.going();
        here.insert(id, running);
        Ok(going)
    }

    /// Refuses to begin with nothing where there was a copy before a disk was given up. The metadata takes this node for a complete replica, and need not
    /// show that anything was written.
    async fn require_not_replaced(&self, served: &ServedVolume) -> Result<(), Error> {
        if !self.reconciler.shards().has_lost_copy_of(served.id) {
            return Ok(());
        }
        let watermark = served.shard.report(served.id).await.map_err(store_failure)?.watermark;
        if watermark.sequence == 0 { Err(begins_empty(self.this.name.as_str())) } else { Ok(()) }
    }

    async fn survey(&self, state: &MetaState, volume: VolumeId, node: NodeId) -> Survey {
        let asked = async {
            match node == self.this.id {
                true => self.holding_here(volume).await,
                false => self.ask(node, AdminForward::Holding { volume }).await,
            }
        };
        Survey::of(state, node, asked).await
    }

    pub(super) async fn holding_here(&self, id: VolumeId) -> Result<Holding, Error> {
        let served = self.volumes.require(id)?;
        let report = served.shard.report(id).await.map_err(store_failure)?;
        let (tail, heard) = (served.standing.tail(), served.hearing.last());
        let VolumeReport { known, watermark, held, rejoining, .. } = report;
        Ok(Holding { known, watermark, held, tail, is_rejoining: rejoining.is_some(), heard })
    }

    pub(super) async fn rejoin_node(&self, name: &str, request: Rejoin) -> Result<TailStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let (volume, node) = (volume_named(&state, name)?.id, node_named(&state, &request.node)?);
        if !request.discard_tail {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "this drops for good what node {} holds of volume {name} beyond the takeover (`helio volume status {name}` \
                     shows how much); add --discard-tail if that is meant",
                    request.node
                ),
            ));
        }
        match node == self.this.id {
            true => self.rejoin_here(volume).await,
            false => self.ask(node, AdminForward::Rejoin { volume }).await,
        }
    }

    /// Drops the tail and follows again.
    pub(super) async fn rejoin_here(&self, id: VolumeId) -> Result<TailStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let gone = || Error::new(ErrorKind::NotFound, format!("volume {id} was deleted"));
        let meta = state.volume(id).ok_or_else(gone)?.clone();
        let served = self.volumes.require(id)?;
        let Some(tail) = served.standing.tail() else {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("node {} follows volume {}: it has no tail to discard", self.this.name, served.name),
            ));
        };
        let busy = Busy::begin(self.busy.clone(), &served)?;
        // A task of its own: half of it would leave the node without a copy until the next change of the metadata.
        let rejoined = tokio::spawn({
            let (state, meta) = (state.clone(), meta.clone());
            async move {
                let _busy = busy;
                rejoin(&served, &state, &meta).await
            }
        });
        rejoined
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, "the rejoin ended early").caused_by(error))??;
        Ok(tail_status(&state, &meta, self.this.id, tail))
    }
}

/// Goes back to what this node has in common with the volume, and follows from there.
async fn rejoin(served: &ServedVolume, state: &MetaState, meta: &Volume) -> Result<(), Error> {
    let _hold = served.intake.hold().await;
    let (shard, id) = (&served.shard, served.id);
    let base = meta.common_with(shard.report(id).await.map_err(store_failure)?.held);
    let unknown = discard(served, meta, base).await?.rejoining.map_or(0, |rejoining| rejoining.unknown);
    follow(served, state, meta).await?;
    served.snapshots.told();
    tracing::info!(volume = %served.name, epoch = %meta.epoch, %base, blocks = unknown, "the tail is dropped; this node follows again");
    Ok(())
}

/// A tail as an administrator is told of it.
pub(super) fn tail_status(state: &MetaState, volume: &Volume, node: NodeId, tail: Tail) -> TailStatus {
    TailStatus {
        node: state.name_of(node),
        from: tail.from.to_string(),
        to: tail.to.to_string(),
        export: format!("{}@{}", volume.name, tail_name(&tail)),
        writes: tail.to.sequence.saturating_sub(tail.from.sequence),
        bytes: tail.blocks * u64::from(BLOCK_SIZE),
    }
}

fn no_majority(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unavailable => Error::new(
            ErrorKind::Unavailable,
            "nothing can be taken over without a leader of the metadata: a majority of the voters must be up",
        )
        .caused_by(error),
        _ => error,
    }
}

fn may_take_over(state: &MetaState, volume: &Volume, to: NodeId) -> Result<(), Error> {
    let what = if volume.owner == to {
        format!("node {} owns volume {} already, in epoch {}", state.name_of(to), volume.name, volume.epoch)
    } else if !volume.replicas.contains(&to) {
        format!(
            "node {} holds no replica of volume {}; {}",
            state.name_of(to),
            volume.name,
            replicas_told(state, volume)
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidRequest, what))
}

/// The replica that is to take over: `to`, or the one that holds most; this node, if there are several.
fn choose<'a>(
    state: &MetaState,
    volume: &Volume,
    surveys: &'a [Survey],
    to: Option<NodeId>,
    me: NodeId,
    behind: bool,
) -> Result<&'a Survey, Error> {
    let places = state.places();
    let may = |survey: &Survey| match &survey.answer {
        Ok(Holding { tail: Some(tail), .. }) => Err(tail.refusal(&survey.name)),
        Ok(_) if places.is_joining(volume.id, survey.node) && !behind => Err(joins(survey)),
        Ok(holding) if holding.is_rejoining => Err(on_its_way_back(&survey.name)),
        Ok(holding) if holding.held > holding.watermark => {
            Err(incomplete(&survey.name, holding.watermark, holding.held))
        }
        Ok(holding) if lacks_all(state, volume, holding) && !behind => Err(begins_empty(&survey.name)),
        Ok(holding) => Ok(holding.watermark),
        Err(error) => Err(Error::new(ErrorKind::Unavailable, format!("node {} does not answer: {error}", survey.name))),
    };
    let able = surveys.iter().filter_map(|survey| Some((may(survey).ok()?, survey.node == me, survey)));
    let best = able.max_by_key(|(watermark, is_here, _)| (*watermark, *is_here));
    let Some(to) = to else {
        return best.map(|(.., survey)| survey).ok_or_else(|| no_replica(volume, places, surveys));
    };
    let chosen = surveys.iter().find(|survey| survey.node == to).ok_or_else(|| no_replica(volume, places, surveys))?;
    let watermark = may(chosen)?;
    match best {
        Some((most, _, other)) if most > watermark && !behind => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "node {other} holds volume {} up to {most}, node {} only up to {watermark}: take it over at {other} and migrate it \
                 then, or add --behind to cut off what {other} holds more",
                volume.name,
                chosen.name,
                other = other.name
            ),
        )),
        _ => Ok(chosen),
    }
}

/// Whether the replica has nothing of a volume in which something was written, by what the metadata shows: its disk was replaced, or it has been away
/// since the volume was made, or the volume is a clone of which it has been told nothing yet.
fn lacks_all(state: &MetaState, volume: &Volume, holding: &Holding) -> bool {
    let made = volume.snapshots.iter().filter_map(|snapshot| snapshot.made);
    let written = made.map(|made| made.lsn).fold(volume.final_lsn, Lsn::max);
    holding.watermark.sequence == 0
        && (written.sequence > 0 || volume.origin.is_some_and(|of| began_written(state, of)))
}

/// Whether a clone may have begun with something: it has not only where its snapshot is still listed, and of an empty volume.
fn began_written(state: &MetaState, origin: Origin) -> bool {
    let listed = state.volume(origin.volume).map_or(&[][..], |volume| &volume.snapshots);
    let made = listed.iter().find(|snapshot| snapshot.id == origin.snapshot).and_then(|snapshot| snapshot.made);
    made.is_none_or(|made| made.lsn.sequence > 0)
}

fn begins_empty(name: &str) -> Error {
    let what = format!(
        "node {name} has nothing of what was written, as one whose disk was replaced, or which has been sent nothing of a clone yet: a takeover there would \
         begin with an empty volume. Bring a node that has something back, or add --behind if that is meant"
    );
    Error::new(ErrorKind::Unavailable, what)
}

/// The replica came later, and was never complete.
fn joins(survey: &Survey) -> Error {
    let what = format!(
        "node {} became a replica and has not got everything yet: a takeover there would begin with an empty volume. Add --behind if that is meant",
        survey.name
    );
    Error::new(ErrorKind::Unavailable, what)
}

/// Refuses to go on without replicas that may hold, and they alone, what was flushed in the volume's class.
fn require_heard(state: &MetaState, volume: &Volume, surveys: &[Survey], chosen: &Survey) -> Result<(), Error> {
    #[cfg(test)]
    if !rules::holds(rules::Rule::AllAreHeard) {
        return Ok(());
    }
    let start = chosen.answer.as_ref().map_or(Lsn::ZERO, |holding| holding.watermark);
    // Who joins never counted. Who holds no more than is begun with has nothing to add. A node that has left counts for no class any more, but it did.
    let has_told = |survey: &Survey| match &survey.answer {
        _ if state.places().is_joining(volume.id, survey.node) => true,
        Ok(Holding { tail: Some(tail), .. }) => tail.from <= start,
        Ok(holding) if holding.is_rejoining => holding.held <= start,
        Ok(holding) => holding.watermark <= start,
        Err(_) => false,
    };
    let provider = |node: NodeId| state.node(node).map(|node| &node.provider);
    let class = volume.durability.class;
    // Also of those before the present owner that had written what is not here: what was flushed under one counts from where that one was.
    let before = volume.history.iter().filter(|ended| ended.final_lsn > start).map(|ended| ended.owner);
    let hidden = before.chain([volume.owner]).find_map(|owner| {
        let home = provider(owner)?;
        let others = || surveys.iter().filter(|survey| survey.node != owner);
        let told = others().filter_map(|survey| Some((provider(survey.node)?, has_told(survey))));
        let counts = |survey: &&Survey| provider(survey.node).is_some_and(|at| classes::counts(class, home, at));
        let silent = || others().filter(|survey| !has_told(survey)).filter(counts);
        classes::may_hide_flushes(class, home, told).then(|| silent().map(|survey| survey.name.as_str()).collect())
    });
    let Some(names): Option<Vec<&str>> = hidden else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Unavailable,
        format!(
            "what was flushed in class {class} of volume {} may be at node {} alone, which cannot take over now: bring it back, or add \
             --behind to go on at node {} without what only that one holds (a node that has left keeps it, and shows it as a tail)",
            volume.name,
            names.join(" or "),
            chosen.name
        ),
    ))
}

fn no_replica(volume: &Volume, places: &Places, surveys: &[Survey]) -> Error {
    let why = surveys.iter().map(|survey| match &survey.answer {
        Ok(Holding { tail: Some(tail), .. }) => {
            format!("node {} has left the volume and holds it up to {}", survey.name, tail.to)
        }
        Ok(_) if places.is_joining(volume.id, survey.node) => {
            format!("node {} became a replica and has not got everything yet", survey.name)
        }
        Ok(holding) if holding.is_rejoining => {
            format!("node {} has discarded its tail and not yet fetched what took its place", survey.name)
        }
        Ok(holding) if holding.held > holding.watermark => {
            format!("node {} has writes of its own beyond {}", survey.name, holding.watermark)
        }
        Ok(_) => format!(
            "node {} has nothing of what was written (a takeover with --behind would begin there with an empty volume)",
            survey.name
        ),
        Err(error) => format!("node {} does not answer ({error})", survey.name),
    });
    let why: Vec<String> = why.collect();
    let why = if why.is_empty() { "it has none".to_owned() } else { why.join("; ") };
    let what = format!(
        "volume {} has no replica that could take over: {why}; bring one of them, or the owner, back",
        volume.name
    );
    Error::new(ErrorKind::Unavailable, what)
}

#[cfg(test)]
mod tests {
    use client_lib::policy::{Class, Durability, Unmet};

    use super::*;

    const ME: NodeId = NodeId(2);

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn survey(node: u64, known: u64, watermark: u64, held: u64) -> Survey {
        let holding = Holding {
            known: lsn(known),
            watermark: lsn(watermark),
            held: lsn(held),
            tail: None,
            is_rejoining: false,
            heard: None,
        };
        Survey { node: NodeId(node), name: format!("n{node}"), answer: Ok(holding) }
    }

    fn silent(node: u64) -> Survey {
        Survey { answer: Err(Error::new(ErrorKind::Unavailable, "no route")), ..survey(node, 0, 0, 0) }
    }

    fn left(node: u64) -> Survey {
        let mut survey = survey(node, 9, 9, 9);
        let tail = Some(Tail { from: lsn(5), to: lsn(9), blocks: 3 });
        survey.answer = survey.answer.map(|holding| Holding { tail, ..holding });
        survey
    }

    fn chosen(surveys: &[Survey], to: Option<u64>, behind: bool) -> Result<u64, String> {
        let chosen = choose(&MetaState::default(), &Volume::example(), surveys, to.map(NodeId), ME, behind);
        chosen.map(|survey| survey.node.0).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn the_replica_that_holds_most_takes_over() {
        assert_eq!(chosen(&[survey(2, 9, 4, 4), survey(3, 5, 5, 5), silent(4)], None, false), Ok(3));
        assert_eq!(chosen(&[survey(3, 5, 5, 5), survey(2, 5, 5, 5), survey(4, 5, 5, 5)], None, false), Ok(2), "here");
        assert_eq!(chosen(&[left(3), survey(4, 7, 2, 6), survey(2, 1, 1, 1)], None, false), Ok(2));
    }

    #[test]
    fn what_was_flushed_in_a_class_is_not_given_up_unasked() {
        let mut state = MetaState::default();
        for id in 1..=3 {
            let (name, provider) = (format!("n{id}"), format!("p{id}"));
            let (name, provider) = (name.parse().expect("a name"), provider.parse().expect("a name"));
            let register = consensus::Command::RegisterNode { id: NodeId(id), name, provider, address: String::new() };
            state.apply(id, register).into_result().expect("is applied");
        }
        let heard = |class, surveys: &[Survey]| {
            let durability = Durability { class, unmet: Unmet::Block };
            let volume = Volume { durability, ..Volume::example() };
            let chosen = choose(&state, &volume, surveys, None, ME, false).expect("one is able");
            require_heard(&state, &volume, surveys, chosen).map_err(|error| error.message().to_owned())
        };
        let silent = [survey(2, 9, 4, 4), silent(3)];
        assert_eq!(heard(Class::Local, &silent), Ok(()));
        let refused = heard(Class::Geo(1), &silent).expect_err("it may be the one");
        assert!(refused.contains("at node n3 alone") && refused.contains("--behind"), "{refused}");
        assert_eq!(heard(Class::Geo(2), &silent), Ok(()), "then node 2 has it too");
        assert_eq!(heard(Class::Geo(1), &[survey(2, 9, 4, 4), survey(3, 5, 5, 5)]), Ok(()));
        assert_eq!(heard(Class::Geo(1), &[survey(2, 9, 5, 5), left(3)]), Ok(()), "it was cut off there");
        // Found by the simulation: what was flushed to node 3 before it left, and to an owner that was lost since, was given up unasked.
        let refused = heard(Class::Geo(1), &[survey(2, 9, 4, 4), left(3)]).expect_err("it held more before it left");
        assert!(refused.contains("at node n3 alone"), "{refused}");
        let unable = [survey(2, 9, 4, 4), survey(3, 9, 6, 8)];
        assert!(heard(Class::Geo(1), &unable).is_err(), "it holds more, and cannot take over");
    }

    /// Flushed at n1 and n3 of p1, then given to n2 of p2, which was lost before it had fetched anything: n4 of p2 took over, and the two of p1,
    /// which held it, were not asked for since they do not count for an owner at p2.
    #[test]
    fn what_was_flushed_under_an_owner_before_is_not_given_up_unasked_either() {
        let mut state = MetaState::default();
        for (id, at) in [(1, 1), (2, 2), (3, 1), (4, 2)] {
            let (name, provider) = (format!("n{id}"), format!("p{at}"));
            let (name, provider) = (name.parse().expect("a name"), provider.parse().expect("a name"));
            let register = consensus::Command::RegisterNode { id: NodeId(id), name, provider, address: String::new() };
            state.apply(id, register).into_result().expect("is applied");
        }
        let durability = Durability { class: Class::Site(1), unmet: Unmet::Block };
        let ended = consensus::EpochRecord { epoch: Epoch(1), owner: NodeId(1), final_lsn: lsn(9), manifest_digest: 0 };
        let volume = Volume { durability, owner: NodeId(2), history: vec![ended], ..Volume::example() };
        let heard = |surveys: &[Survey]| {
            let chosen = choose(&state, &volume, surveys, None, NodeId(4), false).expect("one is able");
            require_heard(&state, &volume, surveys, chosen).map_err(|error| error.message().to_owned())
        };
        let refused = heard(&[silent(1), silent(3), survey(4, 9, 4, 4)]).expect_err("they may be the ones");
        assert!(refused.contains("at node n3 alone"), "{refused}");
        assert_eq!(heard(&[silent(1), silent(3), survey(4, 9, 9, 9)]), Ok(()), "it has all of that time");
        assert_eq!(heard(&[silent(1), survey(3, 9, 3, 3), survey(4, 9, 4, 4)]), Ok(()), "it was not flushed there");
    }

    /// The disk of node n2, a complete replica, was replaced, and the owner was lost before it had sent everything again. To the metadata n2 was complete:
    /// it took the volume over by itself, served an empty one, and the report said that nothing was lost.
    #[test]
    fn a_replica_that_has_nothing_of_a_written_volume_does_not_take_over_unasked() {
        let written = Volume { final_lsn: lsn(9), ..Volume::example() };
        let made = consensus::Made { lsn: lsn(9), size: written.size, at_ms: 0 };
        let snapshot = consensus::Snapshot {
            id: client_lib::SnapshotId(3),
            name: "before".parse().expect("a name"),
            made: Some(made),
            nonce: 0,
            cut: None,
        };
        let kept = Volume { snapshots: vec![snapshot], ..Volume::example() };
        let empty = || survey(2, 0, 0, 0);
        let chosen = |volume: &Volume, surveys: &[Survey], to: Option<u64>, behind| {
            let chosen = choose(&MetaState::default(), volume, surveys, to.map(NodeId), ME, behind);
            chosen.map(|survey| survey.node.0).map_err(|error| error.message().to_owned())
        };
        for volume in [&written, &kept] {
            for to in [None, Some(2)] {
                let refused = chosen(volume, &[empty(), silent(4)], to, false).expect_err("it has nothing");
                assert!(refused.contains("nothing of what was written") && refused.contains("--behind"), "{refused}");
                assert_eq!(chosen(volume, &[empty()], to, true), Ok(2), "it was asked for");
            }
            assert_eq!(chosen(volume, &[empty(), survey(3, 9, 1, 1)], None, false), Ok(3));
        }
        assert_eq!(chosen(&Volume::example(), &[empty()], None, false), Ok(2), "nothing was written");
    }

    /// A clone begins empty at a replica that lacks part of its snapshot. Its owner was lost before it had told of any of it, and the replica, a complete
    /// one to the metadata, took the clone over by itself: a machine was given zeroes, and the report said that nothing was lost.
    #[test]
    fn a_replica_that_has_been_told_nothing_of_a_clone_does_not_take_it_over_unasked() {
        use consensus::Command;
        let name = |text: &str| text.parse().expect("a name");
        let (owner, epoch, size) = (NodeId(1), Epoch(1), client_lib::VolumeSize::try_from(1 << 20).expect("a size"));
        // A clone of a snapshot with so many writes.
        let clone_of = |writes| {
            let mut state = MetaState::default();
            let provider = "p".parse().expect("a name");
            let (disk, id) = (VolumeId(2), client_lib::SnapshotId(3));
            let made = consensus::Made { lsn: lsn(writes), size, at_ms: 0 };
            let commands = [
                Command::RegisterNode {
                    id: owner,
                    name: "n1".parse().expect("a name"),
                    provider,
                    address: String::new(),
                },
                Command::CreateVolume { name: name("disk"), size, owner, replicas: [].into(), nonce: 2 },
                Command::CreateSnapshot { volume: disk, name: "before".parse().expect("a name"), nonce: 3 },
                Command::SnapshotMade { volume: disk, snapshot: id, from: owner, epoch, made },
                Command::CloneVolume { name: name("clone"), origin: disk, snapshot: id, from: owner, epoch, nonce: 5 },
                Command::CloneMade { volume: VolumeId(5), from: owner, epoch },
            ];
            for (command, index) in commands.into_iter().zip(1..) {
                state.apply(index, command).into_result().expect("is applied");
            }
            state
        };
        let chosen = |state: &MetaState, behind| {
            let clone = state.volume(VolumeId(5)).expect("is made").clone();
            let surveys = [survey(2, 0, 0, 0)];
            let chosen = choose(state, &clone, &surveys, None, ME, behind);
            chosen.map(|survey| survey.node.0).map_err(|error| error.message().to_owned())
        };
        let (written, empty) = (clone_of(9), clone_of(0));
        let refused = chosen(&written, false).expect_err("it has nothing");
        assert!(refused.contains("nothing of what was written") && refused.contains("--behind"), "{refused}");
        assert_eq!(chosen(&written, true), Ok(2), "it was asked for");
        assert_eq!(chosen(&empty, false), Ok(2), "there is nothing to have");
        let mut gone = empty;
        gone.apply(7, Command::DeleteVolume { volume: VolumeId(2) }).into_result().expect("is applied");
        assert!(chosen(&gone, false).is_err(), "nobody knows any more what it began with");
    }

    #[test]
    fn who_cannot_take_over_is_refused_with_the_reason() {
        for (surveys, to, said) in [
            (vec![survey(2, 9, 4, 4), survey(3, 5, 5, 5)], Some(2), "take it over at n3"),
            (vec![left(3), survey(2, 1, 1, 1)], Some(3), "has left the volume"),
            (vec![survey(3, 7, 2, 6), survey(2, 1, 1, 1)], Some(3), "writes of its own"),
            (vec![silent(3), survey(2, 1, 1, 1)], Some(3), "does not answer"),
            (
                vec![left(3), silent(4)],
                None,
                "node n3 has left the volume and holds it up to 1.9; node n4 does not answer",
            ),
            (vec![], None, "it has none"),
        ] {
            let error = chosen(&surveys, to, false).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(chosen(&[survey(2, 9, 4, 4), survey(3, 5, 5, 5)], Some(2), true), Ok(2), "it was asked for");
    }
}
