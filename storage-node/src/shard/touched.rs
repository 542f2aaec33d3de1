//! Which volumes a turn has to look at: a shard may have thousands, of which few are in use, and a turn is to cost what happens in it.
//!
//! A volume is noted when something was applied to it, or something else has given it something to do. Who looks at the volumes noted for
//! one purpose says which of them are done with.

use std::collections::BTreeSet;

use client_lib::VolumeId;

use super::run::VolumeRun;

/// Volumes that something has happened to.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Have something to be done in the background, or had when they were looked at last.
    working: BTreeSet<VolumeId>,
    /// May hold more than what was durable when the last sync began.
    unsynced: BTreeSet<VolumeId>,
    /// Have chunks of layers that the last checkpoint has not, or had.
    chunked: BTreeSet<VolumeId>,
}

impl Touched {
    /// All of them: nothing is known yet.
    pub(super) fn all(volumes: impl Iterator<Item = VolumeId>) -> Touched {
        let all: BTreeSet<VolumeId> = volumes.collect();
        Touched { working: all.clone(), unsynced: all.clone(), chunked: all }
    }

    /// Something has happened to the volume of `run`.
    pub(super) fn note(&mut self, run: &VolumeRun) {
        self.unsynced.insert(run.state.id);
        if run.may_have_work() {
            self.working.insert(run.state.id);
        }
        self.note_chunks(run);
    }

    fn note_chunks(&mut self, run: &VolumeRun) {
        if run.state.layers.dirty_chunks() > 0 {
            self.chunked.insert(run.state.id);
        }
    }

    /// Those that may have something to be done.
    pub(super) fn working(&self) -> &BTreeSet<VolumeId> {
        &self.working
    }

    /// A step was taken with the volume of `run`, which may have changed its layers.
    pub(super) fn stepped(&mut self, run: &VolumeRun) {
        self.note_chunks(run);
        if !run.may_have_work() {
            self.working.remove(&run.state.id);
        }
    }

    /// `volume` is gone.
    pub(super) fn forget(&mut self, volume: VolumeId) {
        self.working.remove(&volume);
        self.unsynced.remove(&volume);
        self.chunked.remove(&volume);
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
