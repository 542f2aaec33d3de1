//! Entries on their way through the log, and what each does to its volume: live when the log has answered, and again in recovery.

use bytes::Bytes;
use client_lib::trace::Stage;
use client_lib::{Lsn, VolumeId};

use super::clone::finish_fillings;
use super::core::Core;
use super::handle::{Role, StoreError};
use super::run::{Busy, VolumeRun};
use super::sync::Done;
use crate::log::{Entry, LogError, Placed};
use crate::map::Map;
use crate::map::page::Place;
use crate::map::store::MapError;
use crate::volume::Volume;

/// An entry in the log's hands.
#[derive(Debug)]
pub(super) struct InFlight {
    volume: VolumeId,
    entry: Entry,
    /// Whether nothing depends on it that is admitted behind it, and it takes the reserve where there is one for it: a move, a repair.
    is_apart: bool,
    durable: bool,
    done: Done,
    /// Others who asked for what this entry brings while it was under way, and whether it must be durable for them.
    followers: Vec<(bool, Done)>,
}

impl Core {
    /// Gives `entry` to the log. `blocks` are those that a write changes.
    ///
    /// # Errors
    /// Nothing was queued; `done` comes back.
    pub(super) fn append(
        &mut self,
        entry: Entry,
        data: Vec<Bytes>,
        durable: bool,
        blocks: Option<(u32, u32)>,
        done: Done,
    ) -> Result<(), (StoreError, Done)> {
        if let Some(reason) = self.map_fault() {
            return Err((StoreError::Poisoned(reason.to_owned()), done));
        }
        let changes_pages = matches!(
            entry,
            Entry::Write { .. } | Entry::Zero { .. } | Entry::Received { .. } | Entry::Relocated { .. }
        );
        if changes_pages && self.map.cache.is_full() && self.checkpoints.is_failing() {
            self.is_full = true;
            return Err((StoreError::OutOfSpace, done));
        }
        let ticket = self.ticket();
        let volume = entry.volume();
        match self.log.append(entry.clone(), data, durable, ticket) {
            Ok(()) => {
                if let (Some((first, last)), Some(run)) = (blocks, self.volumes.get_mut(&volume)) {
                    run.flights.push_back(Busy { ticket, first, last });
                }
                let flight = InFlight { volume, entry, is_apart: false, durable, done, followers: Vec::new() };
                self.in_flight.insert(ticket, flight);
                Ok(())
            }
            Err(error) => Err((error.into(), done)),
        }
    }

    /// Gives an entry of the cleaner to the log, ahead of what waits for the space that the cleaner makes.
    ///
    /// # Errors
    /// Nothing was queued.
    pub(super) fn append_move(&mut self, entry: Entry) -> Result<(), StoreError> {
        if let Some(reason) = self.map_fault() {
            return Err(StoreError::Poisoned(reason.to_owned()));
        }
        let (ticket, volume) = (self.ticket(), entry.volume());
        self.log.append_first(entry.clone(), ticket)?;
        let (done, followers) = (Done::Nothing, Vec::new());
        self.in_flight.insert(ticket, InFlight { volume, entry, is_apart: true, durable: false, done, followers });
        Ok(())
    }

    /// Gives copies of damaged blocks to the log, beside what waits for space, and with a share of what a full store has left.
    ///
    /// # Errors
    /// Nothing was queued; `done` comes back.
    pub(super) fn append_repair(
        &mut self,
        entry: Entry,
        data: Vec<Bytes>,
        done: Done,
    ) -> Result<(), (StoreError, Done)> {
        if let Some(reason) = self.map_fault() {
            return Err((StoreError::Poisoned(reason.to_owned()), done));
        }
        if self.map.cache.is_full() && self.checkpoints.is_failing() {
            return Err((StoreError::OutOfSpace, done));
        }
        let (ticket, volume) = (self.ticket(), entry.volume());
        if let Err(error) = self.log.append_repair(entry.clone(), data, ticket) {
            return Err((error.into(), done));
        }
        let followers = Vec::new();
        self.in_flight.insert(ticket, InFlight { volume, entry, is_apart: true, durable: false, done, followers });
        Ok(())
    }

    /// As [`append`](Self::append) for entries without data, answering a failure itself.
    pub(super) fn append_plain(&mut self, entry: Entry, durable: bool, done: Done) {
        if let Err((error, done)) = self.append(entry, Vec::new(), durable, None, done) {
            done.fail(error);
        }
    }

    /// Has `done` answered together with the newest manifest of `volume` that is under way; gives it back when there
    /// is none.
    pub(super) fn follow_manifest(&mut self, volume: VolumeId, durable: bool, done: Done) -> Option<Done> {
        let is_manifest = |flight: &InFlight| flight.volume == volume && matches!(flight.entry, Entry::Told { .. });
        let manifests = self.in_flight.iter_mut().filter(|(_, flight)| is_manifest(flight));
        match manifests.max_by_key(|(ticket, _)| **ticket) {
            Some((_, flight)) => {
                flight.followers.push((durable, done));
                None
            }
            None => Some(done),
        }
    }

    /// Whether an entry of `volume` is under way to the log that `is_one`.
    pub(super) fn is_under_way(&self, volume: VolumeId, is_one: impl Fn(&Entry) -> bool) -> bool {
        self.in_flight.values().any(|flight| flight.volume == volume && is_one(&flight.entry))
    }

    pub(super) fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    /// The log has answered.
    pub(super) fn appended(&mut self, ticket: u64, result: Result<Placed, LogError>) {
        let InFlight { volume, entry, is_apart, durable, done, followers } =
            self.in_flight.remove(&ticket).expect("the log answers each append once");
        let needs_room = entry.data_blocks() > 0 && !is_apart;
        let outcome = match result {
            Ok(placed) => match &self.failed {
                None => {
                    self.checkpoints.note_appended(&entry);
                    self.cleaner.note_written(u64::from(entry.data_blocks()));
                    self.is_full &= !needs_room;
                    self.apply(&entry, placed).map(|()| placed).map_err(|error| {
                        self.fail(&format!("an entry of volume {volume} cannot be applied to the block map: {error}"));
                        StoreError::from(error)
                    })
                }
                Some(reason) => Err(StoreError::Poisoned(reason.clone())),
            },
            Err(error) => {
                self.is_full |= error == LogError::OutOfSpace && needs_room;
                Err(error.into())
            }
        };
        if let Some(run) = self.volumes.get_mut(&volume) {
            run.flights.retain(|flight| flight.ticket != ticket);
            match &outcome {
                Ok(_) => run.news.happened(),
                Err(_) if is_apart => {}
                Err(error) => {
                    // What was admitted on top of the failed entry is refused by the same failure or by its gap.
                    run.known = run.state.known;
                    run.epoch = run.state.epoch;
                    if let Entry::Writers { .. } = entry {
                        run.claimed = run.state.ledger.claimed();
                    }
                    // Of an owner, what was refused for want of space is not there and never will be; after another failure it may be.
                    if run.role == Role::Replica || (*error == StoreError::OutOfSpace && run.flights.is_empty()) {
                        run.head = run.state.known;
                        run.flushed = run.flushed.min(run.head);
                    }
                }
            }
        }
        if let (Entry::Resized { .. }, Err(error)) = (&entry, &outcome) {
            self.resize_failed(volume, error);
        }
        if outcome.as_ref().is_ok_and(|placed| placed.durable)
            && let Some(run) = self.volumes.get_mut(&volume)
        {
            // A durable append is only made when everything before it was durable.
            run.durable = run.durable.max(run.state.known);
        }
        if let Entry::Relocated { segment, .. } = &entry {
            self.relocated(*segment, outcome.as_ref().map(drop));
        }
        // With FUA, one write of the device may do both.
        let is_synced = durable && outcome.as_ref().is_ok_and(|placed| placed.durable);
        done.trace().spent(if is_synced { Stage::Disk } else { Stage::Log });
        for (durable, done) in std::iter::once((durable, done)).chain(followers) {
            match &outcome {
                Ok(placed) if durable && !placed.durable => self.syncs.wait(volume, done),
                Ok(_) => self.answer(volume, done),
                Err(error) => done.fail(error.clone()),
            }
        }
        self.wake_writes(volume);
    }

    fn apply(&mut self, entry: &Entry, placed: Placed) -> Result<(), MapError> {
        #[cfg(test)]
        crate::simulation::history::applied(&self.options.directory, entry);
        let place = Place { segment: placed.segment, block: placed.first_block };
        if self.unready.may_be_any() {
            finish_fillings(&mut self.volumes, entry, &mut self.map)?;
        }
        match entry {
            Entry::Cloned { volume, origin, snapshot } => self.cloned(*volume, *origin, *snapshot),
            Entry::Relocated { volume, .. } => {
                self.map.usage.begin_moves();
                for run in self.volumes.values_mut().filter(|run| run.state.may_hold(*volume)) {
                    apply_to(&mut run.state, entry, place, &mut self.map)?;
                    self.touched.note(run);
                }
            }
            Entry::Opened { volume, size } => {
                self.volumes.entry(*volume).or_insert_with(|| VolumeRun::new(Volume::new(*volume, *size)));
            }
            Entry::Deleted { volume } => {
                if let Some(mut run) = self.volumes.remove(volume) {
                    run.state.pins.release_all(&mut self.map.usage);
                    self.map.forget(*volume);
                    self.scrub.forget(*volume);
                    self.touched.forget(*volume);
                    self.forgotten.push(*volume);
                    self.refuse_waiting(run, &StoreError::UnknownVolume(*volume));
                }
            }
            entry => {
                if let Some(run) = self.volumes.get_mut(&entry.volume()) {
                    apply_to(&mut run.state, entry, place, &mut self.map)?;
                    #[cfg(test)]
                    crate::simulation::history::changed(&self.options.directory, entry, &run.state);
                    let repaired_before = run.damage.repaired();
                    run.damage.settle(entry, run.state.all_snapshots().next().is_some());
                    self.scrub.note_repaired(run.state.id, run.damage.repaired() - repaired_before);
                    match entry {
                        // A later word is admitted already, and counts.
                        Entry::Role { epoch, .. } if *epoch < run.epoch => {}
                        Entry::Role { epoch, owner, .. } => {
                            run.epoch = *epoch;
                            run.begin(*owner);
                        }
                        _ => {}
                    }
                    let is_cut = matches!(entry, Entry::Told { manifest, .. } if manifest.to > run.state.known);
                    if is_cut {
                        // Not all of it found room, so it was not told; what was admitted behind it has a gap.
                        run.known = run.state.known;
                    } else if let Entry::Rewound { .. } | Entry::Discarded { .. } | Entry::SyncPart { .. } = entry {
                        run.known = run.state.known;
                        // What was made durable beyond it is no part of the volume any more.
                        run.durable = run.durable.min(run.known);
                        run.syncing = run.syncing.min(run.known);
                    } else if run.role == Role::Replica {
                        run.known = run.known.max(run.state.known);
                    }
                    run.claimed = run.claimed.max(run.state.ledger.claimed());
                    if let Entry::Resized { volume, .. } = entry {
                        self.resized(*volume);
                    }
                }
            }
        }
        if let Some(run) = self.volumes.get(&entry.volume()) {
            self.touched.note(run);
        }
        Ok(())
    }
}

/// Lets an entry of a volume take effect; live and in recovery.
///
/// # Errors
/// When a page cannot be read or the entry does not follow the volume's state.
pub(super) fn apply_to(state: &mut Volume, entry: &Entry, place: Place, map: &mut Map) -> Result<(), MapError> {
    if state.rollback.is_some() && !matches!(entry, Entry::Role { .. } | Entry::Relocated { .. }) {
        // In recovery: nobody was served before it was done.
        state.finish_rollback(map)?;
    }
    let (volume, known) = (state.id, state.known);
    let in_order = |found: Lsn| if found > known { Ok(()) } else { Err(MapError::Order { volume, known, found }) };
    match entry {
        Entry::Write { lsn, start, checksums, .. } => {
            in_order(*lsn)?;
            state.apply_write(*lsn, start.0, checksums, place, map)
        }
        Entry::Zero { lsn, start, count, .. } => {
            in_order(*lsn)?;
            state.apply_zero(*lsn, start.0, *count, map)
        }
        Entry::Received { blocks, .. } => state.apply_received(blocks, place, map),
        Entry::Relocated { segment, block, moves, .. } => {
            state.apply_relocated(moves, Place { segment: *segment, block: *block }, map)
        }
        Entry::Manifest { manifest, seal, .. } => state.apply_manifest(manifest.clone(), *seal, map),
        Entry::Applied { to, .. } => {
            state.apply_applied(*to, map);
            Ok(())
        }
        Entry::Role { epoch, owner, .. } => {
            state.apply_role(*epoch, *owner, map);
            Ok(())
        }
        Entry::Resized { size, .. } => {
            state.apply_resized(*size);
            Ok(())
        }
        Entry::Snapshot { snapshot, .. } => {
            state.apply_snapshot(*snapshot, map);
            Ok(())
        }
        Entry::SnapshotDeleted { snapshot, .. } => {
            state.apply_snapshot_deleted(*snapshot, map);
            Ok(())
        }
        Entry::RolledBack { lsn, snapshot, .. } => {
            in_order(*lsn)?;
            state.apply_rolled_back(*lsn, *snapshot, map);
            Ok(())
        }
        Entry::Rewound { to, .. } => {
            state.apply_rewound(*to, map);
            Ok(())
        }
        Entry::Discarded { to, .. } => state.apply_discarded(*to, map),
        Entry::Told { manifest, earlier, seal, .. } => state.apply_told(manifest.clone(), *earlier, *seal, map),
        Entry::SyncPart { manifest, earlier, end, .. } => {
            state.apply_sync_part(manifest.clone(), *earlier, end.map(|end| end.0), map);
            Ok(())
        }
        Entry::Writers { news, .. } => {
            state.ledger.note(news);
            Ok(())
        }
        Entry::Opened { .. } | Entry::Cloned { .. } | Entry::Deleted { .. } => Ok(()),
    }
}
