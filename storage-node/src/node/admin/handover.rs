//! Handovers, as an administrator asks for them; and that a volume changes in one way at a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::watch;
use client_lib::wire::admin::{CancelledMigrate, Migrate, MigrateReport, OnWrite, OnWriteStatus};
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, NodeId, VolumeId, VolumeName};
use consensus::{Command, MetaState, Refusal, Response, Volume};
use tokio_util::sync::CancellationToken;

use super::durability::require_possible;
use super::names::{node_named, replicas_told, volume_named};
use super::{NodeAdmin, deleted, moved, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::ownership::chronicle::{End, Kind, Subject};
use crate::ownership::driver::{Driver, HandoverReport};
use crate::peer::message::AdminForward;
use crate::serve::volume::{ServedVolume, store_failure};

mod under_way;

pub(super) use under_way::ANSWER_PATIENCE;
pub(crate) use under_way::GOES_ON;
use under_way::{UnderWay, in_time};

impl NodeAdmin {
    pub(super) async fn migrate_to(&self, name: &str, request: &Migrate) -> Result<MigrateReport, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        require_alone(&state, volume)?;
        let to = self.destination(&state, volume, &request.to, request.accept_unmet)?;
        let (volume, synced, deadline_ms) = (volume.id, request.synced, request.deadline_ms);
        let forward = AdminForward::Migrate { volume, to, synced, deadline_ms };
        let how = How::asked(synced, deadline_ms);
        self.at_owner(volume, forward, |served| self.migrate_here(served, to, how)).await
    }

    pub(super) async fn migrate_here(
        &self,
        volume: Arc<ServedVolume>,
        to: NodeId,
        how: How,
    ) -> Result<MigrateReport, Error> {
        let view = volume.gate.view();
        if to == self.this.id {
            // Already there: a repeated request is a success that took no time.
            let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
            return Ok(MigrateReport {
                handover_ms: 0.0,
                epoch: view.epoch.0,
                stale_bytes_at_handover: report.stale_blocks * u64::from(BLOCK_SIZE),
                caught_up_seconds: 0.0,
                was_there: true,
            });
        }
        let cancel = CancellationToken::new();
        let driver = Driver::new(volume.clone(), to, view.epoch, self.ownership.clone(), cancel.clone());
        let what = format!("volume {}", volume.name);
        let report = self.hand_over(driver, &what, std::slice::from_ref(&volume), how, cancel).await?;
        let epoch = report.epochs.first().copied().unwrap_or(view.epoch.next());
        tracing::info!(volume = %volume.name, %epoch, to = %to, held = ?report.held, stale_bytes = report.stale_bytes, "handed over");
        Ok(MigrateReport {
            handover_ms: report.held.as_secs_f64() * 1000.0,
            epoch: epoch.0,
            stale_bytes_at_handover: report.stale_bytes,
            caught_up_seconds: report.caught_up.as_secs_f64(),
            was_there: false,
        })
    }

    /// Gives the volume away, which is owned here in `epoch` and whose store takes no writes any more. One of a group goes alone: nothing of what was acked
    /// is lost, so the others are not ahead of it.
    ///
    /// # Errors
    /// Why it stays here.
    pub(in crate::node) async fn rescue_to(
        &self,
        volume: Arc<ServedVolume>,
        epoch: Epoch,
        to: NodeId,
    ) -> Result<HandoverReport, Error> {
        let cancel = CancellationToken::new();
        let driver = Driver::new(volume.clone(), to, epoch, self.ownership.clone(), cancel.clone()).rescuing();
        let what = format!("volume {}", volume.name);
        let how = How { rescues: true, ..How::default() };
        self.hand_over(driver, &what, std::slice::from_ref(&volume), how, cancel).await
    }

    /// Runs the handover of `volumes`, which are `what`, unless one of them is being changed already. Is that the same handover, which waits for the new owner,
    /// it is waited for.
    ///
    /// # Errors
    /// Why everything stays where it is; `Busy` also, with [`GOES_ON`], when the new owner has been waited for as long as an answer may take.
    pub(super) async fn hand_over(
        &self,
        driver: Driver,
        what: &str,
        volumes: &[Arc<ServedVolume>],
        how: How,
        cancel: CancellationToken,
    ) -> Result<HandoverReport, Error> {
        let to = self.peers.name(driver.to());
        if let Some(same) = self.under_way(&driver, how) {
            return same.answer(what, &to).await;
        }
        let (told, outcome) = watch::channel(None);
        let under_way = UnderWay { cancel: cancel.clone(), volumes: driver.volumes(), to: driver.to(), how, outcome };
        let under_way = Arc::new(under_way);
        let busy = volumes.iter().map(|volume| Busy::handing_over(self.busy.clone(), volume, under_way.clone()));
        let busy: Vec<Busy> = busy.collect::<Result<_, _>>()?;
        let watermarks =
            |volume: &Arc<ServedVolume>| self.reconciler.watermarks(volume.id).ok_or_else(|| moved(volume.id));
        let driver = match how.synced {
            false => driver,
            true => driver.synced(volumes.iter().map(watermarks).collect::<Result<_, _>>()?),
        };
        let driver = if how.flushed { driver.flushed() } else { driver };
        let kind = match (how.flushed, how.synced) {
            _ if how.rescues => Kind::Rescue,
            (true, _) => Kind::OnWrite,
            (false, true) => Kind::Synced,
            (false, false) => Kind::Instant,
        };
        let subject = Subject { kind, volumes: driver.volumes(), from: self.this.id, to: driver.to() };
        let account = self.chronicle.open(subject, SystemClock::new().unix_ms());
        let driver = driver.told_in(account.clone());
        // A task of its own: it goes on, stays marked, and keeps to its deadline when the one who asked stops waiting.
        let (changes, volumes_told) = (self.changes.clone(), what.to_owned());
        tokio::spawn(async move {
            let outcome = in_time(driver.run(), how.deadline, &cancel, &volumes_told).await;
            account.end(match &outcome {
                Ok(report) => End::Moved(report.stale_bytes),
                Err(error) => End::Failed(error.to_string()),
            });
            changes.handed_over(outcome.as_ref().ok().map(|report| report.held));
            // Before it is told: whoever hears that it failed may ask for another one at once.
            drop(busy);
            told.send_replace(Some(outcome.map_err(|error| (error.kind(), error.to_string()))));
        });
        under_way.answer(what, &to).await
    }

    /// The handover that `driver` would carry out, if it is under way already.
    fn under_way(&self, driver: &Driver, how: How) -> Option<Arc<UnderWay>> {
        let volumes = driver.volumes();
        let (first, _) = volumes.first()?;
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let found = busy.get(first)?.clone()?;
        found.is_meant(&volumes, driver.to(), how).then_some(found)
    }

    /// Lets a volume go to a node when it is written there.
    pub(super) async fn let_go_on_write(&self, name: &str, request: &OnWrite) -> Result<OnWriteStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let to = self.destination(&state, volume, &request.to, request.accept_unmet)?;
        if volume.owner == to {
            let what = format!("volume {name} is at node {} already, and is written there as it is", request.to);
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        self.set_on_write(volume.id, Some(to)).await?;
        Ok(OnWriteStatus { to: request.to.clone(), epoch: volume.epoch.0 })
    }

    async fn set_on_write(&self, volume: VolumeId, to: Option<NodeId>) -> Result<(), Error> {
        match self.meta.carry_out(Command::SetOnWrite { volume, to }, METADATA_DEADLINE).await? {
            Response::PolicySet => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Hands a volume over to the node that asks because it is written there.
    pub(super) async fn hand_over_on_write(
        &self,
        volume: Arc<ServedVolume>,
        to: NodeId,
    ) -> Result<MigrateReport, Error> {
        // As far as this node has heard: it hears of it before a withdrawal is reported done.
        let state = self.meta.state();
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        if meta.on_write != Some(to) || meta.owner != self.this.id {
            let what = format!("volume {} may not go to node {} by a write there", meta.name, state.name_of(to));
            return Err(Error::new(ErrorKind::NotOwner, what));
        }
        let how = How { flushed: true, ..How::default() };
        match state.group_of(volume.id) {
            None => self.migrate_here(volume, to, how).await,
            Some(group) => {
                let report = self.migrate_group_here(group.id, to, how).await?;
                Ok(MigrateReport {
                    handover_ms: report.handover_ms,
                    epoch: meta.epoch.next().0,
                    stale_bytes_at_handover: report.stale_bytes_at_handover,
                    caught_up_seconds: report.caught_up_seconds,
                    was_there: false,
                })
            }
        }
    }

    /// Ends a handover of a volume that is under way and not proposed yet, and takes back that it may go by a write.
    pub(super) async fn cancel_handover(&self, name: &str) -> Result<CancelledMigrate, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        require_alone(&state, volume)?;
        let on_write = volume.on_write.map(|to| state.name_of(to));
        if on_write.is_some() {
            self.set_on_write(volume.id, None).await?;
        }
        let forward = AdminForward::CancelMigrate { volume: volume.id };
        let handover = self.at_owner(volume.id, forward, |served| self.cancel_here(served)).await?;
        Ok(CancelledMigrate { handover, on_write })
    }

    /// Whether there was a handover that may be ended still; its outcome is told to whoever asked for it.
    pub(super) async fn cancel_here(&self, volume: Arc<ServedVolume>) -> Result<bool, Error> {
        // So that no write at the other node can begin one any more.
        self.meta.linearizable(METADATA_DEADLINE).await?;
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(under_way)) = busy.get(&volume.id) else { return Ok(false) };
        under_way.cancel.cancel();
        Ok(true)
    }

    /// The node `to`, if the volume may go there.
    pub(super) fn destination(
        &self,
        state: &MetaState,
        volume: &Volume,
        to: &str,
        accept_unmet: bool,
    ) -> Result<NodeId, Error> {
        let (name, to) = (volume.name.as_str(), node_named(state, to)?);
        if volume.owner != to && !volume.replicas.contains(&to) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "node {0} holds no replica of volume {name}; {1}; `helio volume replica add {name} {0}` makes it one, and the volume \
                     can go there at once",
                    state.name_of(to),
                    replicas_told(state, volume)
                ),
            ));
        }
        if volume.owner != to && !accept_unmet {
            require_class(state, volume, to)?;
        }
        Ok(to)
    }
}

/// Refuses an owner with which the volume's class could not be met.
pub(in crate::node) fn require_class(state: &MetaState, volume: &Volume, to: NodeId) -> Result<(), Error> {
    let replicas = volume.replicas.iter().copied().chain([volume.owner]).filter(|node| *node != to);
    require_possible(state, volume.name.as_str(), volume.durability.class, to, replicas)
}

/// Refuses what is done with all volumes of a group or with none of them.
fn require_alone(state: &MetaState, volume: &Volume) -> Result<(), Error> {
    match state.group_of(volume.id) {
        None => Ok(()),
        Some(group) => Err(Refusal::InGroup { volume: volume.name.clone(), group: group.name.clone() }.into()),
    }
}

/// How a volume is handed over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// Only when the new owner holds everything.
    pub(super) synced: bool,
    /// Only as a virtual machine that was stopped leaves it.
    pub(super) flushed: bool,
    /// Because its store takes no writes any more.
    pub(super) rescues: bool,
    /// Not later than so long after it was asked for.
    pub(super) deadline: Option<Duration>,
}

impl How {
    /// As a request has it.
    pub(super) fn asked(synced: bool, deadline_ms: Option<u64>) -> How {
        How { synced, deadline: deadline_ms.map(Duration::from_millis), ..How::default() }
    }
}

/// The volumes that are being changed, and those of them that are handed over.
pub(in crate::node) type BusyVolumes = Arc<Mutex<BTreeMap<VolumeId, Option<Arc<UnderWay>>>>>;

/// Marks a volume as being handed over, taken over, resized or cut; another such request meanwhile is refused.
pub(in crate::node) struct Busy {
    busy: BusyVolumes,
    volume: VolumeId,
}

impl Busy {
    pub(in crate::node) fn begin(busy: BusyVolumes, volume: &ServedVolume) -> Result<Busy, Error> {
        Busy::with(busy, volume, None)
    }

    /// Of a handover.
    fn handing_over(busy: BusyVolumes, volume: &ServedVolume, under_way: Arc<UnderWay>) -> Result<Busy, Error> {
        Busy::with(busy, volume, Some(under_way))
    }

    /// Of a volume that this node may not serve.
    pub(in crate::node) fn stepping_down(busy: BusyVolumes, volume: &Volume) -> Result<Busy, Error> {
        Busy::of(busy, (volume.id, &volume.name), None)
    }

    fn with(busy: BusyVolumes, volume: &ServedVolume, handover: Option<Arc<UnderWay>>) -> Result<Busy, Error> {
        Busy::of(busy, (volume.id, &volume.name), handover)
    }

    fn of(
        busy: BusyVolumes,
        (id, name): (VolumeId, &VolumeName),
        handover: Option<Arc<UnderWay>>,
    ) -> Result<Busy, Error> {
        match busy.lock().unwrap_or_else(PoisonError::into_inner).entry(id) {
            Entry::Vacant(place) => drop(place.insert(handover)),
            Entry::Occupied(_) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "volume {name} is being handed over, taken over, resized, or kept as a snapshot of its group already; wait for that to end"
                    ),
                ));
            }
        }
        Ok(Busy { busy, volume: id })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}
