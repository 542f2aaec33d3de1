//! What a takeover cuts off: knowledge beyond the fork goes, what is held stays.
//!
//! A replica may have been told of writes that the new owner never got. They are no part of the volume any more. Whoever
//! knows them from manifests only drops that knowledge and follows. Whoever *holds* such writes, applied here or
//! made here as the owner, is left as it is: its copy may be all that there is of them (`docs/ownership.md`).

use client_lib::Lsn;

use super::Volume;
use crate::map::Map;
use crate::shard::handle::Role;

impl Volume {
    /// Up to where this node has what only an operator may discard: the applied prefix, and what was written here.
    #[must_use]
    pub fn held(&self) -> Lsn {
        self.watermark.max(self.written)
    }

    /// The history was cut off at `to`. Does nothing at an owner, at who holds more, and at who comes back to the volume: it has to
    /// [discard](Self::apply_discarded) what it was told.
    pub fn apply_rewound(&mut self, to: Lsn, map: &mut Map) {
        if self.role == Role::Replica && self.held() <= to && self.rejoin.is_none() && self.initial.is_none() {
            self.forget_beyond(to, map);
        }
    }

    pub(super) fn forget_beyond(&mut self, to: Lsn, map: &mut Map) {
        self.partial.clear();
        if self.known > to {
            let sealed_end = self.layers.rewind(to, &mut map.usage);
            self.known = sealed_end.unwrap_or(self.watermark);
            self.changes.rewind(self.known);
        }
    }
}
