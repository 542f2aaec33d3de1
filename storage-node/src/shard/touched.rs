//! Which volumes a turn has to look at: a shard may have thousands, of which few are in use, and a turn is to cost what happens in it.
//!
//! Whatever is applied to a volume, and whatever else gives it something to do, is noted. Who looks at the volumes noted for one purpose
//! says which of them are done with.

use std::collections::BTreeSet;

use client_lib::VolumeId;

/// Volumes that something has happened to.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// May have something to be done in the background.
    working: BTreeSet<VolumeId>,
    /// May hold more than what was durable when the last sync began.
    unsynced: BTreeSet<VolumeId>,
    /// May have chunks of layers that the last checkpoint has not.
    chunked: BTreeSet<VolumeId>,
}

impl Touched {
    /// All of them: nothing is known yet.
    pub(super) fn all(volumes: impl Iterator<Item = VolumeId>) -> Touched {
        let all: BTreeSet<VolumeId> = volumes.collect();
        Touched { working: all.clone(), unsynced: all.clone(), chunked: all }
    }

    /// Something has happened to `volume`.
    pub(super) fn note(&mut self, volume: VolumeId) {
        self.working.insert(volume);
        self.unsynced.insert(volume);
        self.chunked.insert(volume);
    }

    /// Those that may have something to be done.
    pub(super) fn working(&self) -> &BTreeSet<VolumeId> {
        &self.working
    }

    /// A step was taken with `volume`, which changes its layers; is there more to do?
    pub(super) fn stepped(&mut self, volume: VolumeId, has_more: bool) {
        self.chunked.insert(volume);
        if !has_more {
            self.working.remove(&volume);
        }
    }

    /// The chunks that a checkpoint would write, of which `dirty` tells for each volume.
    pub(super) fn count_chunks(&mut self, dirty: impl Fn(VolumeId) -> usize) -> usize {
        let mut chunks = 0;
        self.chunked.retain(|volume| {
            let of_it = dirty(*volume);
            chunks += of_it;
            of_it > 0
        });
        chunks
    }

    /// A checkpoint has everything.
    pub(super) fn checkpointed(&mut self) {
        self.chunked.clear();
    }

    /// A sync begins: what it makes durable.
    pub(super) fn take_unsynced(&mut self) -> BTreeSet<VolumeId> {
        std::mem::take(&mut self.unsynced)
    }

    /// It has failed.
    pub(super) fn not_synced(&mut self, volumes: BTreeSet<VolumeId>) {
        self.unsynced.extend(volumes);
    }
}
