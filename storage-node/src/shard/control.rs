//! What owners and the node ask: open, delete, activate, deactivate, freeze, seal, and the change history.
//!
//! Changes of role are log entries like writes: they take effect in log order and are answered when durable. A
//! deactivation refuses writes from the moment it is asked for, an activation admits them from the moment it is applied.

use client_lib::{Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};
use roaring::RoaringBitmap;

use super::core::Core;
use super::handle::{FreezeWhen, Role, Seal, SealedDelta, StoreError, VolumeReport};
use super::initial::PartAsked;
use super::run::{Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::Map;
use crate::map::page::Version;
use crate::map::snapshot::Snapshot;
use crate::map::store::MapError;
use crate::propagation::freight::Covered;
use crate::propagation::manifest::{Manifest, SnapshotMark};
use crate::volume::tally::Tally;
use crate::volume::{Moment, manifest_of};

/// A manifest to be made when everything acked is durable.
#[derive(Debug)]
pub(super) struct SealJob {
    pub(super) volume: VolumeId,
    pub(super) seal: Seal,
    /// Of an initial sync.
    pub(super) part: Option<PartAsked>,
}

/// What a [`SealJob`] asked for, on its way to be durable.
#[derive(Debug)]
pub(super) struct Sealed {
    volume: VolumeId,
    outcome: Result<(Manifest, Option<SealedDelta>), StoreError>,
    pub(super) reply: Reply<(Manifest, Option<SealedDelta>)>,
}

impl Core {
    pub(super) fn open(&mut self, volume: VolumeId, size: VolumeSize, reply: Reply<VolumeReport>) {
        if self.volumes.contains_key(&volume) {
            self.answer(volume, Done::Report(reply));
        } else {
            self.append_plain(Entry::Opened { volume, size }, false, Done::Report(reply));
        }
    }

    pub(super) fn delete(&mut self, volume: VolumeId, reply: Reply<()>) {
        if self.volumes.contains_key(&volume) {
            self.append_plain(Entry::Deleted { volume }, true, Done::Unit(reply));
        } else {
            // A deletion before this one may not be durable yet.
            self.syncs.wait(volume, Done::Unit(reply));
        }
    }

    pub(super) fn activate(
        &mut self,
        volume: VolumeId,
        epoch: Epoch,
        acts_under: Option<u64>,
        reply: Reply<VolumeReport>,
    ) {
        let Some(run) = self.volumes.get_mut(&volume) else {
            return Done::Report(reply).fail(StoreError::UnknownVolume(volume));
        };
        if epoch < run.epoch {
            return Done::Report(reply).fail(StoreError::NotOwner { volume, epoch: run.epoch });
        }
        if run.state.layers.unknown() > 0 {
            return Done::Report(reply).fail(StoreError::Untold(volume));
        }
        if run.state.lacks_parts() {
            return Done::Report(reply).fail(StoreError::Syncing(volume));
        }
        run.acts_under = acts_under;
        if run.role == Role::Owner && run.epoch == epoch {
            run.frozen = false;
            self.finish_freeze(volume);
            return self.syncs.wait(volume, Done::Report(reply));
        }
        run.epoch = epoch;
        self.append_plain(Entry::Role { volume, epoch, owner: true }, true, Done::Report(reply));
    }

    pub(super) fn deactivate(&mut self, volume: VolumeId, epoch: Epoch, reply: Reply<VolumeReport>) {
        let Some(run) = self.volumes.get_mut(&volume) else {
            return Done::Report(reply).fail(StoreError::UnknownVolume(volume));
        };
        if epoch < run.epoch {
            return Done::Report(reply).fail(StoreError::NotOwner { volume, epoch: run.epoch });
        }
        if run.role == Role::Replica && run.state.role == Role::Replica && run.state.epoch == epoch {
            return self.syncs.wait(volume, Done::Report(reply));
        }
        run.role = Role::Replica;
        run.epoch = epoch;
        let refusal = StoreError::NotOwner { volume, epoch };
        for job in std::mem::take(&mut run.waiting) {
            job.fail(refusal.clone());
        }
        for held in std::mem::take(&mut run.held) {
            held.fail(refusal.clone());
        }
        self.append_plain(Entry::Role { volume, epoch, owner: false }, true, Done::Report(reply));
        self.finish_freeze(volume);
    }

    /// A client flushes the volume.
    pub(super) fn note_flush(&mut self, volume: VolumeId) {
        if let Some(run) = self.volumes.get_mut(&volume)
            && run.is_quiet()
        {
            run.flushed = run.head;
        }
    }

    pub(super) fn freeze(&mut self, volume: VolumeId, when: FreezeWhen, reply: Reply<Lsn>) {
        let Some(run) = self.volumes.get_mut(&volume) else {
            return Done::Durable(reply).fail(StoreError::UnknownVolume(volume));
        };
        if let Err(error) = run.require_owner() {
            return Done::Durable(reply).fail(error);
        }
        if run.has_ceased() {
            return Done::Durable(reply).fail(StoreError::SteppedDown(volume));
        }
        if when == FreezeWhen::Flushed && !run.frozen && !run.is_flushed() {
            return Done::Durable(reply).fail(StoreError::NotFlushed(volume));
        }
        (run.frozen, run.freezes) = (true, when);
        run.freezers.push(reply);
        self.finish_freeze(volume);
    }

    pub(super) fn thaw(&mut self, volume: VolumeId) -> Result<(), StoreError> {
        self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?.frozen = false;
        self.finish_freeze(volume);
        Ok(())
    }

    pub(super) fn seal_manifest(&mut self, job: SealJob) {
        self.syncs.wait(job.volume, Done::Seal(Box::new(job)));
    }

    /// Makes the manifest of what is applied at this moment.
    pub(super) fn seal(&mut self, job: SealJob) -> Sealed {
        let SealJob { volume, seal, part } = job;
        let outcome = match part {
            Some(asked) => self.seal_part(volume, seal.from, asked),
            None => self.seal_now(volume, &seal),
        };
        Sealed { volume, outcome, reply: seal.reply }
    }

    /// What the manifest tells of is durable.
    pub(super) fn answer_sealed(&mut self, sealed: Sealed) {
        let Sealed { volume, mut outcome, reply } = sealed;
        // It may have been handed over, or be gone, since.
        let is_owner = || self.volumes.get(&volume).map(VolumeRun::require_owner);
        if let (Ok(_), Err(error)) = (&outcome, is_owner().unwrap_or(Err(StoreError::UnknownVolume(volume)))) {
            outcome = Err(error);
        }
        if let Err(Ok((_, Some(delta)))) = reply.send(outcome) {
            // Nobody is there to release it.
            drop(self.release(volume, delta.pin));
        }
    }

    /// What the manifest tells of may not be durable: nobody will hear of it.
    pub(super) fn release_sealed(&mut self, sealed: &Sealed) {
        if let Ok((_, Some(delta))) = &sealed.outcome {
            drop(self.release(sealed.volume, delta.pin));
        }
    }

    pub(super) fn seal_now(
        &mut self,
        volume: VolumeId,
        job: &Seal,
    ) -> Result<(Manifest, Option<SealedDelta>), StoreError> {
        let pin = self.ticket();
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_owner()?;
        let to = run.state.known;
        if job.from > to {
            return Err(StoreError::ManifestGap { expected: to, found: job.from });
        }
        // What was passed without it had no replica to tell, or was told and is deleted there.
        let is_news = |snapshot: &Snapshot| snapshot.id > job.after && snapshot.lsn >= job.from;
        if let Some(snapshot) = run.state.all_snapshots().find(is_news) {
            let moment = Moment::Snapshot(snapshot.id);
            let changed = run.state.changed_since_and(moment, job.from, &job.also, &mut self.map)?;
            let mark = Some(SnapshotMark { snapshot: snapshot.id, size: snapshot.size });
            return Ok((Manifest { mark, ..manifest_of(job.from, snapshot.lsn, &changed) }, None));
        }
        let changed = run.state.changed_since_and(Moment::Now, job.from, &job.also, &mut self.map)?;
        let manifest = manifest_of(job.from, to, &changed);
        let delta = match job.delta_from {
            None => None,
            Some(from) => Some(match job.also.is_empty().then(|| run.state.changes.since(from)).flatten() {
                Some(blocks) => open_delta(run, pin, (job.from, &changed), from, blocks, &mut self.map)?,
                None => {
                    let versions = match from == job.from {
                        true => changed,
                        false => run.state.changed_since_and(Moment::Now, from, &job.also, &mut self.map)?,
                    };
                    pin_delta(run, pin, None, from, to, versions, &mut self.map)
                }
            }),
        };
        run.state.changes.cut();
        Ok((manifest, delta))
    }

    /// Pins what changed after `from` up to `snapshot`, and the blocks of `also`.
    pub(super) fn pin_snapshot(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        from: Lsn,
        also: &RoaringBitmap,
    ) -> Result<SealedDelta, StoreError> {
        let pin = self.ticket();
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_owner()?;
        let found = run.state.snapshot(snapshot).ok_or(StoreError::UnknownSnapshot { volume, snapshot })?;
        let versions = run.state.changed_since_and(Moment::Snapshot(snapshot), from, also, &mut self.map)?;
        Ok(pin_delta(run, pin, Some(snapshot), from, found.lsn, versions, &mut self.map))
    }

    pub(super) fn release(&mut self, volume: VolumeId, pin: u64) -> Result<(), StoreError> {
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.state.pins.release(pin, &mut self.map.usage);
        Ok(())
    }

    pub(super) fn changed_blocks(&mut self, volume: VolumeId, since: Lsn) -> Result<u64, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        Ok(match run.state.changes.since(since) {
            Some(blocks) => blocks.len(),
            None => self.map.usage.mapped(volume) + run.state.layers.wanted(),
        })
    }

    pub(super) fn prune(&mut self, volume: VolumeId, up_to: Lsn) -> Result<(), StoreError> {
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.state.changes.prune(up_to);
        Ok(())
    }
}

/// Pins what changed after `from`, which is in `blocks` at the most, without looking at it: a replica may lack any number. What changed after `told.0`
/// is known.
fn open_delta(
    run: &mut VolumeRun,
    pin: u64,
    told: (Lsn, &[(u32, Version)]),
    from: Lsn,
    blocks: RoaringBitmap,
    map: &mut Map,
) -> Result<SealedDelta, MapError> {
    let (to, tally) = (run.state.known, run.state.tally);
    let since = from.max(tally.since);
    let written;
    let fresh = match told {
        (known, changed) if known <= since => changed,
        _ => {
            written = run.state.changed_since(Moment::Now, since, map)?;
            &written
        }
    };
    let covered = covered(Some(tally), since, fresh);
    let blocks_max = match told {
        (known, changed) if known <= from => data_blocks(changed),
        _ => blocks.len(),
    };
    run.state.pins.open(pin, from, to, blocks);
    Ok(SealedDelta { pin, snapshot: None, from, to, blocks: blocks_max, covered, part: None })
}

pub(super) fn pin_delta(
    run: &mut VolumeRun,
    pin: u64,
    snapshot: Option<SnapshotId>,
    from: Lsn,
    to: Lsn,
    versions: Vec<(u32, Version)>,
    map: &mut Map,
) -> SealedDelta {
    let (blocks, tally) = (data_blocks(&versions), run.state.tally);
    // A snapshot was made before: more may have been written since.
    let covered = covered(snapshot.is_none().then_some(tally), tally.since, &versions);
    run.state.pins.insert(pin, to, versions, &mut map.usage);
    SealedDelta { pin, snapshot, from, to, blocks, covered, part: None }
}

/// How many of `versions` hold data.
fn data_blocks(versions: &[(u32, Version)]) -> u64 {
    versions.iter().filter(|(_, version)| version.content.crc().is_some()).count() as u64
}

/// What those of `versions` cover that were written after `since`.
fn covered(tally: Option<Tally>, since: Lsn, versions: &[(u32, Version)]) -> Covered {
    let fresh = || versions.iter().filter(|(_, version)| version.lsn > since);
    let zeroes = fresh().filter(|(_, version)| version.content.crc().is_none());
    Covered { tally, blocks: fresh().count() as u64, zeroes: zeroes.count() as u64 }
}
