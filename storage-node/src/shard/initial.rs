//! The parts of an initial sync, at the owner and at the replica ([`crate::volume::initial`]).

use client_lib::{BlockIndex, Lsn, SnapshotId, VolumeId};

use super::control::{SealJob, pin_delta};
use super::core::Core;
use super::handle::{Part, Seal, SealedDelta, StoreError};
use super::run::Reply;
use super::sync::Done;
use crate::log::Entry;
use crate::map::page::PAGE_ENTRIES;
use crate::map::snapshot::Snapshot;
use crate::propagation::manifest::{Manifest, SnapshotMark};
#[cfg(test)]
use crate::simulation::rules;
use crate::volume::{Moment, manifest_fault, manifest_of};

/// Which part is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartAsked {
    /// The block that it begins at.
    pub(super) next: u32,
    /// About how many blocks it has from there on.
    pub(super) most: usize,
}

impl SealJob {
    /// The next part for a replica that is as of `base` before that.
    pub(super) fn part(
        volume: VolumeId,
        base: Lsn,
        asked: PartAsked,
        reply: Reply<(Manifest, Option<SealedDelta>)>,
    ) -> SealJob {
        let (after, also) = (SnapshotId::default(), std::sync::Arc::default());
        SealJob { volume, seal: Seal { from: base, after, delta_from: Some(base), also, reply }, part: Some(asked) }
    }
}

impl Core {
    pub(super) fn seal_part(
        &mut self,
        volume: VolumeId,
        base: Lsn,
        PartAsked { next, most }: PartAsked,
    ) -> Result<(Manifest, Option<SealedDelta>), StoreError> {
        let pin = self.ticket();
        let run = self.volumes.get_mut(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_owner()?;
        if base > run.state.known {
            return Err(StoreError::ManifestGap { expected: run.state.known, found: base });
        }
        // It has no snapshot yet, and must have those that it has not passed. One of nothing shows nothing that could come in parts.
        let is_ahead = |snapshot: &Snapshot| snapshot.lsn >= base && snapshot.lsn > Lsn::ZERO;
        let snapshot = run.state.all_snapshots().find(is_ahead);
        let (moment, to) = match snapshot {
            Some(snapshot) => (Moment::Snapshot(snapshot.id), snapshot.lsn),
            None => (Moment::Now, run.state.known),
        };
        let mut versions = match next {
            0 => Vec::new(),
            _ if base == to => Vec::new(),
            next => run.state.changed_up_to(moment, base, next - 1, &mut self.map)?,
        };
        #[cfg(test)]
        if !rules::holds(rules::Rule::PartsTellChanges) {
            versions.clear();
        }
        let (fresh, end) = run.state.mapped_some(moment, next, u32::MAX, most.max(1), &mut self.map)?;
        versions.extend(fresh);
        let mark = snapshot.filter(|_| end.is_none());
        let mark = mark.map(|snapshot| SnapshotMark { snapshot: snapshot.id, size: snapshot.size });
        // It tells of older writes than those after `base`.
        let manifest = Manifest { mark, ..manifest_of(Lsn::ZERO, to, &versions) };
        let snapshot = snapshot.map(|snapshot| snapshot.id);
        let delta = pin_delta(run, pin, snapshot, base, to, versions, &mut self.map);
        run.state.changes.cut();
        let rest = end.map_or(0, |end| self.map.mapped_from(volume, end / PAGE_ENTRIES));
        let part = Some(Part { end: end.map(BlockIndex), rest });
        Ok((manifest, Some(SealedDelta { part, ..delta })))
    }

    pub(super) fn apply_part(
        &mut self,
        volume: VolumeId,
        manifest: Manifest,
        end: Option<BlockIndex>,
        reply: Reply<Lsn>,
    ) {
        let done = Done::Known(reply);
        let Some(run) = self.volumes.get(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if let Some(fault) = manifest_fault(&manifest) {
            return done.fail(StoreError::Io(format!("a manifest of volume {volume} was refused: {fault}")));
        }
        let manifest_comes = || self.is_under_way(volume, |entry| matches!(entry, Entry::Told { .. }));
        if !run.state.takes_parts() || manifest_comes() {
            return done.fail(StoreError::NoParts(volume));
        }
        let Manifest { to, runs, mark, .. } = manifest;
        let (earlier, runs) = match self.append_earlier(volume, Lsn::ZERO, runs) {
            Ok(appended) => appended,
            Err(error) => return done.fail(error),
        };
        let manifest = Manifest { from: Lsn::ZERO, to, runs, mark };
        self.append_plain(Entry::SyncPart { volume, manifest, earlier, end }, true, done);
    }
}
