//! Snapshots of a volume: made, deleted and listed.
//!
//! A snapshot is an entry of the log like a write, so it has everything before it and nothing after it, and recovery makes
//! it at the same place. The owner makes it whatever of the volume is still elsewhere; a replica is told of it by the
//! manifest that ends there. It can be read from then on, as far as its blocks are here ([`crate::volume::layers`]). A
//! deletion takes effect at once; its pages are merged in the background. Which snapshots there are is decided elsewhere:
//! ids come with the requests, and rise.

use client_lib::geometry::SNAPSHOTS_MAX;
use client_lib::{SnapshotId, VolumeId};

use super::core::Core;
use super::handle::{MadeSnapshot, SnapshotReport, StoreError};
use super::run::{Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::MapKey;
use crate::map::snapshot::Snapshot;

impl Core {
    /// Of a volume that may be written, or, if `is_frozen`, of one that may not.
    pub(super) fn create_snapshot(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
        is_frozen: bool,
        reply: Reply<MadeSnapshot>,
    ) {
        let done = Done::Snapshot(reply, snapshot);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.state.snapshot(snapshot).is_some() {
            // Asked for again: it may not be durable yet.
            return self.syncs.wait(volume, done);
        }
        match may_snapshot(run, snapshot, is_frozen) {
            Err(error) => done.fail(error),
            Ok(()) => self.append_plain(Entry::Snapshot { volume, snapshot }, true, done),
        }
    }

    pub(super) fn delete_snapshot(&mut self, volume: VolumeId, snapshot: SnapshotId, reply: Reply<()>) {
        let done = Done::Unit(reply);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.state.snapshot(snapshot).is_some() {
            self.append_plain(Entry::SnapshotDeleted { volume, snapshot }, true, done);
        } else {
            // A deletion before this one may not be durable yet.
            self.syncs.wait(volume, done);
        }
    }

    pub(super) fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotReport>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let report = |snapshot: Snapshot| SnapshotReport {
            snapshot: snapshot.id,
            lsn: snapshot.lsn,
            size: snapshot.size,
            held_blocks: self.map.usage.mapped(MapKey { volume, snapshot: snapshot.id }),
            stale_blocks: run.state.layers.stale_at(snapshot.id),
            is_whole: run.state.snapshots.find(snapshot.id).is_some(),
        };
        Ok(run.state.all_snapshots().map(report).collect())
    }
}

/// Whether a snapshot can be made now.
fn may_snapshot(run: &VolumeRun, snapshot: SnapshotId, is_frozen: bool) -> Result<(), StoreError> {
    run.require_owner()?;
    let volume = run.state.id;
    if run.frozen && !is_frozen {
        return Err(StoreError::Frozen(volume));
    }
    if run.state.newest_snapshot() > snapshot {
        // Their ids would not tell their order.
        return Err(StoreError::UnknownSnapshot { volume, snapshot });
    }
    if run.state.all_snapshots().count() >= SNAPSHOTS_MAX {
        return Err(StoreError::TooManySnapshots(volume));
    }
    Ok(())
}
