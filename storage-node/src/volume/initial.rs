//! The initial sync of a replica that has nothing: the volume comes to it in parts, in the order of its blocks (docs/decisions/0049).
//!
//! A part tells of blocks from where the last one ended up to its own end, and of what has changed before that since. When it is
//! applied, what lies before its end is here as of the position up to which it goes, and nothing is here of the rest. So neither end
//! has more in hand than a part and what is written meanwhile, and what is here stays when the sync is broken off.
//!
//! Until the last part is applied the node holds no prefix of the volume: its watermark is zero, and it cannot take the volume over. Until
//! the last part is told it is told of nothing else, and cannot own the volume. From then on every block that is not right in the base
//! has an entry above it, so it may be given the volume in a handover: one that is wanted early tells of all the rest as one part.

use client_lib::Lsn;

use super::applying::told_by;
use super::{Volume, by_chunk};
use crate::map::Map;
use crate::propagation::manifest::Manifest;
use crate::shard::handle::Role;

/// How far the initial sync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialSync {
    /// Of this position is what is here.
    pub base: Lsn,
    /// The first block of which nothing is here.
    pub next: u32,
    /// Whether the last part is known, and perhaps more after it.
    pub is_told: bool,
}

impl InitialSync {
    /// Nothing has come.
    pub const BEGUN: InitialSync = InitialSync { base: Lsn::ZERO, next: 0, is_told: false };
}

impl Volume {
    /// Whether not all parts of an initial sync are known that is under way.
    #[must_use]
    pub fn lacks_parts(&self) -> bool {
        self.initial.is_some_and(|initial| !initial.is_told)
    }

    /// Whether the next part of an initial sync may be told here: nothing is, or earlier parts are.
    #[must_use]
    pub fn takes_parts(&self) -> bool {
        let has_nothing = self.known == Lsn::ZERO && self.held() == Lsn::ZERO && self.rejoin.is_none();
        self.role == Role::Replica && (self.lacks_parts() || (self.initial.is_none() && has_nothing))
    }

    /// A part that ends before block `end`, or is the last, became known, and is sealed. `earlier` of its runs came in entries before. An
    /// earlier part that was told and not applied is forgotten: its blocks are in this one.
    pub fn apply_sync_part(&mut self, mut manifest: Manifest, earlier: u32, end: Option<u32>, map: &mut Map) {
        let Some(mut runs) = self.take_earlier(earlier).filter(|_| self.takes_parts()) else { return };
        runs.append(&mut manifest.runs);
        let reached = self.drop_part(map);
        for told in by_chunk(runs.iter().flat_map(told_by), |(block, _)| *block) {
            self.layers.note_newer(&told, &mut map.usage);
        }
        self.initial = Some(InitialSync { is_told: end.is_none(), ..reached });
        (self.part, self.known) = (end, manifest.to);
        self.changes.begin_at(manifest.to);
        match manifest.mark {
            Some(mark) => self.seal_at_mark(mark, map),
            None => self.layers.seal(manifest.to, &mut map.usage),
        }
    }

    /// Forgets what is not applied.
    pub(super) fn drop_part(&mut self, map: &mut Map) -> InitialSync {
        let reached = InitialSync { is_told: false, ..self.initial.unwrap_or(InitialSync::BEGUN) };
        self.initial = Some(reached);
        self.partial.clear();
        // What it wrote as an owner that had not fetched everything is above the base, too.
        (self.part, self.written) = (None, Lsn::ZERO);
        self.layers.drop_unapplied(&mut map.usage);
        self.known = reached.base;
        self.changes.begin_at(reached.base);
        reached
    }
}
