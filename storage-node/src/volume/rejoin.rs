//! A node that has left the volume, or was cut off from it again, follows once more with what it still has (docs/decisions/0033).
//!
//! A takeover cut the history off at the *base*, which lies before what this node holds. Of every block that changed here after that, what is
//! here is none of the volume's versions any more, and which one is meant only a node that has the volume can tell: those are noted as
//! [unknown](Version::UNKNOWN), in the open layer, and all other blocks are as they were at the base. The owner asks which they are, and tells
//! of their versions with what has changed since the base, in one manifest. From then on they are stale blocks like others, so the rest is
//! what every replica does: they are fetched, sealed, and applied with the first delta.
//!
//! Until that is applied, the node holds no prefix of the volume: its watermark is zero, as that of a replica without anything. It may be given
//! the volume in a handover all the same, as soon as it was told: every block that is not right in the base has an entry above it.
//!
//! Where a snapshot has the version that is meant, the base takes it back from there: a version that two maps share lies in one place
//! ([`crate::map::snapshot`]). Snapshots that were made beyond the base are deleted and merged before it is discarded, and a checkpoint is
//! written, so that recovery finds none either.

use std::collections::BTreeSet;

use client_lib::Lsn;

use super::initial::InitialSync;
use super::{Moment, Volume};
use crate::map::Map;
use crate::map::page::Version;
use crate::map::store::MapError;
use crate::propagation::manifest::Manifest;
use crate::shard::handle::Role;

/// A node on its way back to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejoining {
    /// Of this position is what is here, but for what the layers have.
    pub base: Lsn,
    /// Blocks of which it was not told yet in which version they are meant.
    pub unknown: u64,
    /// How far its initial sync has come, if it never had the volume.
    pub initial: Option<InitialSync>,
}

impl Volume {
    /// How this node comes back to the volume, if it does.
    #[must_use]
    pub fn rejoining(&self) -> Option<Rejoining> {
        let base = self.initial.map(|initial| initial.base).or(self.rejoin)?;
        Some(Rejoining { base, unknown: self.layers.unknown(), initial: self.initial })
    }

    /// What this node holds beyond `to` was cut off by a takeover, and is discarded. Does nothing at an owner.
    ///
    /// # Errors
    /// When a page cannot be read; the state is then between two entries and good for nothing.
    pub fn apply_discarded(&mut self, to: Lsn, map: &mut Map) -> Result<(), MapError> {
        if self.role == Role::Owner {
            return Ok(());
        }
        if self.initial.is_some() {
            // Whoever asks sees that what is here does not reach beyond `to`.
            self.drop_part(map);
            return Ok(());
        }
        if self.rejoin.is_some() || self.watermark > to {
            return self.fall_back(to, map);
        }
        // What it held beyond the watermark was its own, and in pieces.
        self.written = self.written.min(self.watermark);
        self.forget_beyond(to, map);
        Ok(())
    }

    /// Whether snapshots are left that were made after `to`, or what older ones need of them.
    #[must_use]
    pub fn has_snapshot_beyond(&self, to: Lsn) -> bool {
        self.snapshots.iter().copied().chain(self.layers.snapshots()).any(|snapshot| snapshot.lsn > to)
    }

    /// Goes back to `to`, which lies before what is applied here, or to the base, if that lies before it.
    fn fall_back(&mut self, to: Lsn, map: &mut Map) -> Result<(), MapError> {
        self.partial.clear();
        let dropped = self.layers.drop_unapplied(&mut map.usage);
        // Those of a node that was on its way back are right nowhere.
        let mut unknown = if self.rejoin.is_some() { dropped } else { BTreeSet::new() };
        let base = self.rejoin.unwrap_or(self.watermark).min(to);
        unknown.extend(self.changed_since(Moment::Now, base, map)?.into_iter().map(|(block, _)| block));
        for block in &unknown {
            self.layers.make_unknown(*block);
        }
        self.rejoin = (!unknown.is_empty()).then_some(base);
        self.watermark = if unknown.is_empty() { base } else { Lsn::ZERO };
        (self.known, self.written) = (base, self.watermark);
        self.changes.rewind(base);
        Ok(())
    }

    /// Whether a manifest may be taken now: from a node that is on its way back, only one that tells of everything that is unknown.
    #[must_use]
    pub fn may_be_told(&self, manifest: &Manifest) -> bool {
        let blocks = manifest.runs.iter().flat_map(|run| (0..run.blocks()).map(|index| run.start.0 + index));
        self.layers.unknown() == 0
            || blocks.filter(|block| self.layers.is_unknown(*block)).count() as u64 == self.layers.unknown()
    }

    /// The `version` of `block`, which was unknown, is meant. What becomes of it depends on what is seen alone, not on how much of it has been
    /// folded: it is the same in recovery.
    pub(super) fn tell(&mut self, block: u32, version: Version, map: &mut Map) -> Result<(), MapError> {
        let is_it = |found: Option<Version>| found.is_some_and(|found| found.lsn == version.lsn);
        if is_it(self.applied_view(block, map)?) {
            self.layers.take_back(block, version.lsn, &mut map.usage);
            return Ok(());
        }
        let newest = self.all_snapshots().last().filter(|snapshot| snapshot.lsn >= version.lsn);
        let in_snapshot = match newest {
            Some(snapshot) => self.versions(Moment::Snapshot(snapshot.id), block, block, map)?.pop(),
            None => None,
        };
        if !is_it(in_snapshot.and_then(|(_, found)| found)) {
            self.layers.note(block, version, &mut map.usage);
            return Ok(());
        }
        if !self.layers.take_back(block, version.lsn, &mut map.usage) {
            map.take_back(self.id, block, version.lsn, &self.snapshots)?;
        }
        self.keep_reached();
        Ok(())
    }
}
