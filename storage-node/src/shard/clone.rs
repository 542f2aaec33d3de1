//! Clones: opened as what a snapshot of another volume is, in the shard that has it.

use std::collections::BTreeMap;

use client_lib::{SnapshotId, VolumeId};

use super::core::Core;
use super::handle::{StoreError, VolumeReport};
use super::run::{Reply, VolumeRun};
use super::sync::Done;
use crate::log::Entry;
use crate::map::Map;
use crate::map::snapshot::Snapshots;
use crate::map::store::MapError;
use crate::volume::Volume;

/// Pages taken per turn and clone.
const PAGES_PER_STEP: usize = 8;

impl Core {
    pub(super) fn open_clone(
        &mut self,
        volume: VolumeId,
        origin: VolumeId,
        snapshot: SnapshotId,
        reply: Reply<VolumeReport>,
    ) {
        if self.volumes.contains_key(&volume) {
            // It may not be durable yet.
            return self.syncs.wait(volume, Done::Report(reply));
        }
        let Some(run) = self.volumes.get(&origin) else {
            return drop(reply.send(Err(StoreError::UnknownVolume(origin))));
        };
        if run.state.clone_of(snapshot, volume).is_none() {
            let refusal = match run.state.snapshot(snapshot) {
                Some(_) => StoreError::StillFetching { volume: origin, blocks: run.state.layers.wanted() },
                None => StoreError::UnknownSnapshot { volume: origin, snapshot },
            };
            return drop(reply.send(Err(refusal)));
        }
        self.append_plain(Entry::Cloned { volume, origin, snapshot }, true, Done::Report(reply));
    }

    /// A clone came to be: nothing is asked of it before it has its pages.
    pub(super) fn cloned(&mut self, volume: VolumeId, origin: VolumeId, snapshot: SnapshotId) {
        if self.volumes.contains_key(&volume) {
            return;
        }
        // Deleted just before: who asked is told that there is no such volume.
        if let Some(clone) = self.volumes.get(&origin).and_then(|run| run.state.clone_of(snapshot, volume)) {
            self.volumes.insert(volume, VolumeRun::new(clone));
            self.unready.note();
        }
    }

    /// Takes a clone a bounded step further towards all of its pages.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn fill_volume(&mut self, volume: VolumeId) -> Result<(), MapError> {
        let Some(filling) = self.volumes.get(&volume).and_then(|run| run.state.filling) else { return Ok(()) };
        if self.failed.is_some() || self.map.cache.wants_checkpoint() {
            return Ok(());
        }
        let snapshots = self.volumes.get(&filling.origin).map(|run| run.state.snapshots.clone()).unwrap_or_default();
        let Some(run) = self.volumes.get_mut(&volume) else { return Ok(()) };
        if !run.state.fill_step(PAGES_PER_STEP, &snapshots, &mut self.map)? {
            // So that recovery need not take them at once, before the entries that follow.
            self.checkpoints.request(None);
        }
        Ok(())
    }
}

/// Before `entry` takes effect: clones have all their pages, when it takes away what they come from or finds them done.
///
/// # Errors
/// When a page cannot be read.
pub(super) fn finish_fillings<V: AsMut<Volume>>(
    volumes: &mut BTreeMap<VolumeId, V>,
    entry: &Entry,
    map: &mut Map,
) -> Result<(), MapError> {
    let takes_away = matches!(entry, Entry::SnapshotDeleted { .. } | Entry::Deleted { .. });
    let may_lie_between = matches!(entry, Entry::Role { .. } | Entry::Relocated { .. });
    let touched = entry.volume();
    let must_be_done = |state: &Volume| {
        let needs = |filling: crate::volume::clone::Filling| {
            (takes_away && filling.origin == touched) || (!may_lie_between && state.id == touched)
        };
        state.filling.is_some_and(needs)
    };
    let unfinished = volumes.values_mut().map(AsMut::as_mut).filter(|state| must_be_done(state)).map(|state| state.id);
    for volume in unfinished.collect::<Vec<_>>() {
        let origin = volumes.get_mut(&volume).and_then(|it| it.as_mut().filling).map(|filling| filling.origin);
        let snapshots: Snapshots = origin
            .and_then(|origin| volumes.get_mut(&origin))
            .map(|it| it.as_mut().snapshots.clone())
            .unwrap_or_default();
        if let Some(clone) = volumes.get_mut(&volume) {
            clone.as_mut().finish_filling(&snapshots, map)?;
        }
    }
    Ok(())
}
