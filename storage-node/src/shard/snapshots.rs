//! Snapshots of a volume: made, deleted, listed and read.
//!
//! A snapshot is an entry of the log like a write, so it has everything before it and nothing after it, and recovery makes
//! it at the same place. Only an owner that lacks nothing can make one; while something still folds into the base it
//! waits, which a volume in use soon ends. A deletion takes effect at once; its pages are merged in the background.
//! Which snapshots there are is decided elsewhere: ids come with the requests.

use client_lib::{BLOCK_SIZE, Lsn, SnapshotId, VolumeId};

use super::core::Core;
use super::fetch::Then;
use super::handle::{ReadChunk, SnapshotReport, StoreError};
use super::run::{Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::MapKey;
use crate::map::page::Version;

/// Most snapshots of a volume: each costs some bytes in every checkpoint, and look-ups in older ones pass by the newer.
pub(super) const SNAPSHOTS_MAX: usize = 1024;

impl Core {
    pub(super) fn create_snapshot(&mut self, volume: VolumeId, snapshot: SnapshotId, reply: Reply<Lsn>) {
        let done = Done::Snapshot(reply, snapshot);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.state.snapshots.find(snapshot).is_some() {
            // Asked for again: it may not be durable yet.
            return self.syncs.wait(volume, done);
        }
        match may_snapshot(run) {
            Err(error) => done.fail(error),
            Ok(()) => {
                if let Done::Snapshot(reply, snapshot) = done {
                    run.snapshotting.push((snapshot, reply));
                }
            }
        }
    }

    /// Logs the snapshots that waited for the base.
    pub(super) fn snapshot_step(&mut self) {
        // After a failure nothing folds any more, and the log says why.
        let has_failed = self.has_failed();
        let is_ready = |run: &VolumeRun| !run.snapshotting.is_empty() && (has_failed || !run.state.layers.is_folding());
        let ready = self.volumes.iter().filter(|(_, run)| is_ready(run)).map(|(volume, _)| *volume);
        for volume in ready.collect::<Vec<_>>() {
            let Some(run) = self.volumes.get_mut(&volume) else { continue };
            let allowed = may_snapshot(run);
            for (snapshot, reply) in std::mem::take(&mut run.snapshotting) {
                let done = Done::Snapshot(reply, snapshot);
                match &allowed {
                    Ok(()) => self.append_plain(Entry::Snapshot { volume, snapshot }, true, done),
                    Err(error) => done.fail(error.clone()),
                }
            }
        }
    }

    pub(super) fn delete_snapshot(&mut self, volume: VolumeId, snapshot: SnapshotId, reply: Reply<()>) {
        let done = Done::Unit(reply);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.state.snapshots.find(snapshot).is_some() {
            self.append_plain(Entry::SnapshotDeleted { volume, snapshot }, true, done);
        } else {
            // A deletion before this one may not be durable yet.
            self.syncs.wait(volume, done);
        }
    }

    pub(super) fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotReport>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let kept = run.state.snapshots.iter().filter(|snapshot| !snapshot.is_deleted);
        let report = |snapshot: &crate::map::snapshot::Snapshot| SnapshotReport {
            snapshot: snapshot.id,
            lsn: snapshot.lsn,
            size: snapshot.size,
            held_blocks: self.map.usage.mapped(MapKey { volume, snapshot: snapshot.id }),
        };
        Ok(kept.map(report).collect())
    }

    pub(super) fn read_snapshot(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        offset: u64,
        length: u32,
        reply: Reply<Vec<ReadChunk>>,
    ) {
        match self.snapshot_versions(volume, snapshot, offset, length) {
            Ok(versions) => self.fetch(volume, &versions, Then::Read { offset, length, reply }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn snapshot_versions(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(u32, Option<Version>)>, StoreError> {
        let state = &self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?.state;
        let found = state.snapshots.find(snapshot).ok_or(StoreError::UnknownSnapshot { volume, snapshot })?;
        if !found.size.contains(offset, u64::from(length)) {
            let length = u64::from(length);
            return Err(StoreError::BeyondEnd { volume, offset, length, size: found.size });
        }
        if length == 0 {
            return Ok(Vec::new());
        }
        let block = |byte: u64| (byte / u64::from(BLOCK_SIZE)) as u32;
        let last = block(offset + u64::from(length) - 1);
        Ok(state.snapshot_view(snapshot, block(offset), last, &mut self.map)?)
    }
}

/// Whether a snapshot can be made now, or as soon as nothing folds any more.
fn may_snapshot(run: &VolumeRun) -> Result<(), StoreError> {
    run.require_owner()?;
    let volume = run.state.id;
    if run.frozen {
        return Err(StoreError::Frozen(volume));
    }
    if run.state.layers.stale() > 0 {
        return Err(StoreError::Incomplete { volume, stale_blocks: run.state.layers.stale() });
    }
    if run.state.snapshots.iter().len() + run.snapshotting.len() >= SNAPSHOTS_MAX {
        return Err(StoreError::TooManySnapshots(volume));
    }
    Ok(())
}
