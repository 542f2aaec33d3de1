//! The loop of a shard: requests, log, events, replies; and the bookkeeping that all of them share.
//!
//! Every turn takes what waits in the queue, lets the log start and finish things, applies finished appends in log
//! order, serves who waits for durability and does a bounded step of background work (folding, merging of deleted
//! snapshots, checkpoint, cleaning).
//! An entry that cannot be applied (the map store cannot be read) ends all writing: the state would no longer be
//! what the log says. So does a page that anybody could not read, before an entry that changes it is in the log, and a map store
//! that cannot be written ([`super::checkpoint`]). From then on what can be read is served, and everybody else refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client_lib::VolumeId;
use client_lib::trace::Stage;
use tokio::sync::mpsc;

use super::checkpoint::Checkpoints;
use super::clean::Cleaner;
use super::control::SealJob;
use super::entries::InFlight;
use super::fetch::Fetches;
use super::handle::{Request, Seal, StoreError};
use super::initial::PartAsked;
use super::lease::LEASE_PAUSE;
use super::run::{Reply, VolumeRun};
use super::scrub::Scrub;
use super::sleep::{Sleep, Woken};
use super::space::Reclaim;
use super::sync::{Done, Syncs};
use super::touched::Touched;
use super::unready::Unready;
use super::write::WriteJob;
use super::{ShardOptions, StartError};
use crate::fault::FaultCell;
use crate::io::Bell;
use crate::io::buffer::AlignedBuffer;
use crate::log::{Event, Log, LogError};
use crate::map::Map;
use crate::map::store::MapError;

/// Requests taken from the queue per turn, so that completions are never starved.
const REQUESTS_PER_TURN: usize = 256;
/// Entries folded into the base per turn and volume.
const FOLD_STEP: usize = 128;
/// Pages of deleted snapshots merged per turn and volume: each may take a few reads.
const MERGE_STEP: usize = 8;
/// The longest sleep of an idle shard; whatever happens ends it at once.
const IDLE_SLEEP: Duration = Duration::from_secs(1);
/// How long nothing must happen until the cleaner does a step on the side.
const CLEANING_PAUSE: Duration = Duration::from_millis(50);

/// A shard's whole state. Used from one thread.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) options: ShardOptions,
    bell: Arc<Bell>,
    pub(super) log: Log,
    pub(super) map: Map,
    pub(super) volumes: BTreeMap<VolumeId, VolumeRun>,
    pub(super) forgotten: Vec<VolumeId>,
    pub(super) touched: Touched,
    pub(super) fetches: Fetches,
    pub(super) syncs: Syncs,
    pub(super) checkpoints: Checkpoints,
    pub(super) cleaner: Cleaner,
    pub(super) scrub: Scrub,
    pub(super) unready: Unready,
    pub(super) reclaim: Reclaim,
    pub(super) in_flight: HashMap<u64, InFlight>,
    pub(super) next_ticket: u64,
    /// Why nothing is written any more, if so.
    pub(super) failed: Option<String>,
    /// Whether the last entry with data was refused for want of space.
    pub(super) is_full: bool,
    /// What is in [`Core::fault`], for those who do not ask the shard.
    fault_cell: FaultCell,
    stopping: Option<Reply<()>>,
    is_stopping: bool,
    /// Whether any answer waits for the lease.
    pub(super) is_holding_answers: bool,
    events: Vec<Event>,
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> StoreError {
        match error {
            LogError::OutOfSpace => StoreError::OutOfSpace,
            LogError::Poisoned(reason) => StoreError::Poisoned(reason),
            LogError::Io(reason) => StoreError::Io(reason),
            corrupt @ (LogError::Corrupt { .. } | LogError::Damaged { .. } | LogError::Unreadable { .. }) => {
                StoreError::Io(corrupt.to_string())
            }
        }
    }
}

impl From<MapError> for StoreError {
    fn from(error: MapError) -> StoreError {
        StoreError::Io(error.to_string())
    }
}

impl Core {
    pub(super) fn new(
        options: ShardOptions,
        bell: Arc<Bell>,
        log: Log,
        mut map: Map,
        volumes: BTreeMap<VolumeId, VolumeRun>,
        forgotten: Vec<VolumeId>,
        checkpoints: Checkpoints,
    ) -> Core {
        let scrub = Scrub::new(options.scrub_period, options.scrub_bytes_per_second);
        let reclaim = Reclaim::new(options.reclaim_pause);
        let unready = Unready::of(volumes.values());
        let fault_cell = FaultCell::default();
        map.cache.tell_faults_to(fault_cell.clone());
        let touched = Touched::all(volumes.keys().copied());
        Core {
            options,
            bell,
            log,
            map,
            volumes,
            forgotten,
            touched,
            fetches: Fetches::default(),
            syncs: Syncs::default(),
            checkpoints,
            cleaner: Cleaner::default(),
            scrub,
            unready,
            reclaim,
            in_flight: HashMap::new(),
            next_ticket: 1,
            failed: None,
            is_full: false,
            fault_cell,
            stopping: None,
            is_stopping: false,
            is_holding_answers: false,
            events: Vec::new(),
        }
    }

    /// What the shard will sleep with, on the runtime that this is called in.
    ///
    /// # Errors
    /// When the system gives no descriptors.
    pub(super) fn sleep(&self) -> Result<Sleep, StartError> {
        let failed = |source| StartError::Io { directory: self.options.directory.clone(), source };
        Ok(Sleep::new(self.bell.clone(), self.log.completions().map_err(failed)?))
    }

    pub(super) fn fault_cell(&self) -> FaultCell {
        self.fault_cell.clone()
    }

    /// Serves `requests` until told to stop or nobody can ask any more. Returns whom to tell, and what, once everything
    /// is closed. Shares the thread with what else runs on the runtime: others get their turn whenever nothing more can be
    /// done at once, and between steps of background work.
    pub(super) async fn run(
        mut self,
        mut sleep: Sleep,
        mut requests: mpsc::Receiver<Request>,
    ) -> (Option<Reply<()>>, Result<(), StoreError>) {
        loop {
            let mut taken = 0;
            while taken < REQUESTS_PER_TURN && !self.is_stopping && !self.must_hold_back() {
                match requests.try_recv() {
                    Ok(request) => self.handle(request),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => self.is_stopping = true,
                }
                taken += 1;
            }
            self.turn(Duration::ZERO);
            if self.is_stopping
                && let Some(outcome) = self.stop_step()
            {
                return (self.stopping.take(), outcome);
            }
            if taken == REQUESTS_PER_TURN || self.is_stopping || self.has_background_work() {
                tokio::task::yield_now().await;
                continue;
            }
            if self.log.wants_turn() {
                continue;
            }
            let longest = if self.is_holding_answers {
                LEASE_PAUSE
            } else if self.cleaner.is_waiting() {
                CLEANING_PAUSE
            } else {
                IDLE_SLEEP.min(self.scrub.wait())
            };
            let takes_requests = !self.must_hold_back();
            match sleep.until(longest, takes_requests.then_some(&mut requests)).await {
                Woken::Request(request) => self.handle(request),
                Woken::Disconnected => self.is_stopping = true,
                Woken::Something => {}
                Woken::Time if self.is_quiet() => self.cleaner.note_idle(),
                Woken::Time => {}
            }
        }
    }

    /// Lets everything that is under way go on; blocks at most `timeout` when there is nothing to do.
    pub(super) fn turn(&mut self, timeout: Duration) {
        if self.is_holding_answers {
            self.lease_step();
        }
        self.pump_syncs();
        let mut events = std::mem::take(&mut self.events);
        if let Err(error) = self.log.turn(timeout, &mut events) {
            tracing::error!(%error, "the log's engine failed");
        }
        // Before anybody hears of a failure: who then looks for another shard shall not come back to this one.
        self.note_fault();
        for event in events.drain(..) {
            self.event(event);
        }
        self.events = events;
        self.pump_syncs();
        self.background();
        self.pump_syncs();
        self.note_fault();
    }

    /// Takes note of something that the log finished.
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Appended { ticket, result } => self.appended(ticket, result),
            Event::Synced { ticket, result } => self.synced(ticket, result),
            Event::Copied { ticket, result } => self.copied(ticket, result),
            Event::Read { ticket, result } if self.cleaner.is_reading(ticket) => {
                self.scan_read(result.map(AlignedBuffer::into_bytes));
            }
            Event::Read { ticket, result } => self.read_done(ticket, result),
        }
    }

    pub(super) fn handle(&mut self, request: Request) {
        let Some(request) = self.hold_until_ready(request) else { return };
        match request {
            Request::Open { volume, size, reply } => self.open(volume, size, reply),
            Request::OpenClone { volume, origin, snapshot, reply } => self.open_clone(volume, origin, snapshot, reply),
            Request::List { reply } => drop(reply.send(Ok(self.volumes.keys().copied().collect()))),
            Request::Delete { volume, reply } => self.delete(volume, reply),
            Request::Resize { volume, size, owner, reply } => self.resize(volume, size, owner, reply),
            Request::CreateSnapshot { volume, snapshot, reply } => self.create_snapshot(volume, snapshot, false, reply),
            Request::CreateFrozen { volume, snapshot, reply } => self.create_snapshot(volume, snapshot, true, reply),
            Request::DeleteSnapshot { volume, snapshot, reply } => self.delete_snapshot(volume, snapshot, reply),
            Request::RollBack { volume, snapshot, reply } => self.roll_back(volume, snapshot, reply),
            Request::Snapshots { volume, reply } => drop(reply.send(self.snapshots(volume))),
            Request::Report { volume, reply } => {
                self.forget_replaced(volume);
                self.answer(volume, Done::Report(reply));
            }
            Request::News { volume, reply } => {
                let news = self.volumes.get(&volume).map(|run| run.news.clone());
                drop(reply.send(news.ok_or(StoreError::UnknownVolume(volume))));
            }
            Request::Vouch { volume, reply } => {
                let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume));
                match run.and_then(VolumeRun::require_owner) {
                    Ok(()) => self.answer(volume, Done::Durable(reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::Damaged { reply } => drop(reply.send(Ok(self.damaged()))),
            Request::Read { volume, moment, offset, length, reply } => self.read(volume, moment, offset, length, reply),
            Request::Write { volume, offset, data, fua, author, reply } => {
                self.admit_write(WriteJob::data(volume, offset, data, fua, author, reply));
            }
            Request::Zero { volume, offset, length, fua, author, reply } => {
                self.admit_write(WriteJob::zeroes(volume, offset, length, fua, author, reply));
            }
            Request::Ledger { volume, reply } => drop(reply.send(self.ledger(volume))),
            Request::NoteLedger { volume, news, reply } => self.note_ledger(volume, news, reply),
            Request::Flush { volume, reply } => {
                reply.trace.spent(Stage::Queue);
                self.note_flush(volume);
                self.syncs.wait(volume, Done::Durable(reply));
            }
            Request::Sync { volume, reply } => self.syncs.wait(volume, Done::Durable(reply)),
            Request::Extents { volume, moment, offset, length, reply } => {
                drop(reply.send(self.extents(volume, moment, offset, length)));
            }
            Request::Residency { volume, moment, offset, length, reply } => {
                drop(reply.send(self.residency(volume, moment, offset, length)));
            }
            Request::ResidentParts { volume, first, blocks, parts, reply } => {
                drop(reply.send(self.resident_parts(volume, first, blocks, parts)));
            }
            Request::Activate { volume, epoch, acts_under, reply } => self.activate(volume, epoch, acts_under, reply),
            Request::Arm { volume, epoch, acts_under, reply } => drop(reply.send(self.arm(volume, epoch, acts_under))),
            Request::Cease { volume, epoch, reply } => drop(reply.send(self.cease(volume, epoch))),
            Request::Deactivate { volume, epoch, reply } => self.deactivate(volume, epoch, reply),
            Request::Freeze { volume, when, reply } => self.freeze(volume, when, reply),
            Request::Thaw { volume, reply } => drop(reply.send(self.thaw(volume))),
            Request::SealManifest { volume, from, after, delta_from, reply } => {
                let also = Arc::default();
                let seal = Seal { from, after, delta_from, also, reply };
                self.seal_manifest(SealJob { volume, seal, part: None });
            }
            Request::SealPart { volume, base, next, most, reply } => {
                self.seal_manifest(SealJob::part(volume, base, PartAsked { next: next.0, most }, reply));
            }
            // They wait for one sync, when it begins they are all taken.
            Request::SealTogether { volume, seals } => {
                for seal in seals {
                    self.seal_manifest(SealJob { volume, seal, part: None });
                }
            }
            Request::SealUnsynced { volume, from, after, reply } => {
                drop(reply.send(self.seal_unsynced(volume, from, after)));
            }
            Request::PinSnapshot { volume, snapshot, from, also, reply } => {
                let pinned = self.pin_snapshot(volume, snapshot, from, &also);
                if let Err(Ok(delta)) = reply.send(pinned) {
                    // Nobody is there to release it.
                    drop(self.release(volume, delta.pin));
                }
            }
            Request::ReadSealed { volume, pin, runs, reply } => self.read_sealed(volume, pin, &runs, reply),
            Request::Release { volume, pin, reply } => drop(reply.send(self.release(volume, pin))),
            Request::ChangedBlocks { volume, since, reply } => drop(reply.send(self.changed_blocks(volume, since))),
            Request::Prune { volume, up_to, reply } => drop(reply.send(self.prune(volume, up_to))),
            Request::ApplyManifest { volume, manifest, seal, durable, reply } => {
                self.apply_manifest(volume, manifest, seal, durable, reply);
            }
            Request::ApplyPart { volume, manifest, end, reply } => self.apply_part(volume, manifest, end, reply),
            Request::Missing { volume, wanted, after, limit, reply } => {
                drop(reply.send(self.missing(volume, wanted, after, limit)));
            }
            Request::Receive { volume, blocks, reply } => self.receive(volume, blocks, reply),
            Request::ApplySealed { volume, to, reply } => self.apply_sealed(volume, to, reply),
            Request::Rewind { volume, to, reply } => self.rewind(volume, to, reply),
            Request::Discard { volume, to, reply } => self.discard(volume, to, reply),
            Request::ReadHeld { volume, moment, wanted, reply } => self.read_held(volume, moment, &wanted, reply),
            Request::LackingSealed { volume, after, most, reply } => {
                drop(reply.send(self.lacking_sealed(volume, after, most)));
            }
            Request::LackingSince { volume, since, after, reply } => {
                drop(reply.send(self.lacking_since(volume, since, after)));
            }
            Request::ReadAlike { volume, wanted, runs, reply } => self.read_alike(volume, wanted, &runs, reply),
            Request::Lacking { volume, moment, runs, reply } => {
                drop(reply.send(self.lacking(volume, moment, &runs)));
            }
            Request::ReadVersions { volume, moment, runs, reply } => self.read_versions(volume, moment, &runs, reply),
            Request::Versions { volume, moment, runs, reply } => {
                drop(reply.send(self.versions_of(volume, moment, &runs)));
            }
            Request::Traffic { reply } => drop(reply.send(Ok(self.log.traffic()))),
            Request::Scrub { action, of, reply } => drop(reply.send(self.scrub(action, of))),
            Request::Space { of, reply } => drop(reply.send(Ok(self.space(of)))),
            Request::Figures { reply } => drop(reply.send(Ok(self.figures()))),
            Request::Checkpoint { reply } => self.checkpoints.request(Some(reply)),
            Request::Stop { reply } => {
                self.is_stopping = true;
                self.stopping = Some(reply);
            }
        }
    }

    /// Why nothing is written any more, if so.
    pub(super) fn fault(&self) -> Option<&str> {
        self.map_fault().or(self.log.poisoned())
    }

    /// The same, if it is not the log's.
    pub(super) fn map_fault(&self) -> Option<&str> {
        self.failed.as_deref().or(self.map.cache.fault())
    }

    /// Nothing is written from now on. The first reason counts.
    pub(super) fn fail(&mut self, reason: &str) {
        if self.failed.is_none() {
            let directory = self.options.directory.display();
            tracing::error!(%directory, reason, "the store takes no writes until the node is restarted");
            self.fault_cell.set(reason);
            self.failed = Some(reason.to_owned());
        }
    }

    fn note_fault(&mut self) {
        if let Some(reason) = self.map.cache.fault().map(str::to_owned) {
            self.fail(&reason);
        }
        if let Some(reason) = self.fault() {
            self.fault_cell.set(reason);
        }
    }

    /// Lets nobody wait for what a shard that takes no writes does not do any more.
    fn refuse_waiting_for_writes(&mut self, reason: String) {
        if self.log.is_starved() {
            self.log.refuse_queued();
        }
        let error = StoreError::Poisoned(reason);
        self.take_checkpoint_results();
        self.refuse_checkpoints(&error);
        self.refuse_unready(&error);
    }

    /// Whether requests must wait for a checkpoint. While checkpoints fail they need not: reads are served, and what
    /// would change pages is refused.
    pub(super) fn must_hold_back(&self) -> bool {
        // Where nothing is written, nothing that is waited for would come.
        if self.map_fault().is_some() {
            return false;
        }
        let waits_for_checkpoint = self.map.cache.is_full() || self.unready.is_full();
        (waits_for_checkpoint && !self.checkpoints.is_failing()) || self.log.is_starved()
    }

    fn background(&mut self) {
        if !self.is_stopping {
            self.shrink_step();
        }
        if let Some(reason) = self.failed.clone() {
            return self.refuse_waiting_for_writes(reason);
        }
        if !self.map.cache.wants_checkpoint() {
            for volume in self.touched.working().iter().copied().collect::<Vec<_>>() {
                let Some(run) = self.volumes.get_mut(&volume) else { continue };
                let folded = run.state.fold(FOLD_STEP, &mut self.map);
                let merged = folded.and_then(|_| run.state.merge_snapshots(MERGE_STEP, &mut self.map));
                if merged.is_err() {
                    return self.note_fault();
                }
                self.touched.stepped(run);
            }
        }
        self.space_step();
        self.clean_step();
        self.reclaim_step();
        if !self.is_stopping {
            self.scrub_step();
        }
        self.checkpoint_step();
        self.unready_step();
    }

    /// Whether the next turn has something to do even if nothing happens.
    pub(super) fn has_background_work(&self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        #[cfg(test)]
        self.volumes
            .values()
            .for_each(|run| assert!(!run.has_work() || self.touched.working().contains(&run.state.id)));
        let may_change_pages = !self.map.cache.wants_checkpoint();
        // Room is to be made, and nobody is at it: the next turn decides.
        let is_stuck = self.log.is_starved() && self.cleaner.is_idle() && !self.checkpoints.is_under_way();
        self.checkpoints.is_due()
            || is_stuck
            || self.cleaner.is_working()
            || (may_change_pages && self.working().any(VolumeRun::has_work))
            || (self.unready.may_be_any()
                && self.volumes.values().any(|run| self.has_unready_work(run, may_change_pages)))
    }

    /// The volumes that may have something to be done in the background.
    pub(super) fn working(&self) -> impl Iterator<Item = &VolumeRun> {
        self.touched.working().iter().filter_map(|volume| self.volumes.get(volume))
    }

    /// Whether it is on its way to its end.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Whether anybody reads or writes at this moment.
    pub(super) fn is_serving(&self) -> bool {
        !self.in_flight.is_empty() || !self.fetches.is_empty()
    }

    /// Whether nothing is under way for any caller, or for the cleaner.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
            && self.fetches.is_empty()
            && self.cleaner.is_quiet()
            && self.syncs.is_idle()
            && self.volumes.values().all(VolumeRun::is_quiet)
    }

    /// What [`run`](Self::run) does after each turn, for tests that take the turns themselves.
    #[cfg(test)]
    pub(super) fn stop_if_asked(&mut self) {
        if self.is_stopping
            && let Some(outcome) = self.stop_step()
            && let Some(reply) = self.stopping.take()
        {
            drop(reply.send(outcome));
        }
    }

    /// Ends what is under way, then writes a checkpoint; tells how it went when all is done.
    fn stop_step(&mut self) -> Option<Result<(), StoreError>> {
        if let Some(reason) = self.fault() {
            return Some(Err(StoreError::Poisoned(reason.to_owned())));
        }
        if self.is_quiet() { self.checkpoints.final_outcome() } else { None }
    }
}
