//! What a shard counts, as plain numbers, for whoever watches over it.
//!
//! Read at the moment that it is asked for: nothing is counted twice for it. A volume costs a few look-ups in memory: a whole scrape of a
//! node with a thousand volumes took 20 to 60 ms (2026-11-27, two busy cores, dev profile).

use client_lib::{Epoch, VolumeId, VolumeSize};

use super::core::Core;
use super::handle::Role;
use super::run::VolumeRun;
use super::scrub::ScrubFigures;
use super::space::ShardSpace;
use crate::log::{Traffic, Turns};
use crate::map::MapKey;

/// The numbers of a shard. Counters begin anew with the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardFigures {
    /// Where the space of the log goes; without the volumes.
    pub space: ShardSpace,
    /// What the log has written, in blocks.
    pub traffic: Traffic,
    /// How often it wrote.
    pub turns: Turns,
    /// Checkpoints that were written.
    pub checkpoints: u64,
    /// Attempts to write one that failed.
    pub failed_checkpoints: u64,
    /// Segments that the cleaner has emptied.
    pub cleaned_segments: u64,
    /// The scrub.
    pub scrub: ScrubFigures,
    /// Answers that wait until the node's lease is in force.
    pub held_answers: u64,
    /// The volumes.
    pub volumes: Vec<VolumeFigures>,
}

/// The numbers of a volume in a shard, in blocks where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeFigures {
    /// Which.
    pub volume: VolumeId,
    /// What this node is to it.
    pub role: Role,
    /// The epoch that it is in here.
    pub epoch: Epoch,
    /// Its size here.
    pub size: VolumeSize,
    /// That occupy space as a part of the volume as it is now.
    pub mapped: u64,
    /// That only snapshots have.
    pub snapshots: u64,
    /// Known in a version that is not held.
    pub stale: u64,
    /// Damaged, and not repaired.
    pub damaged: u64,
    /// Repaired from another node.
    pub repaired: u64,
}

impl Core {
    pub(super) fn figures(&mut self) -> ShardFigures {
        let damaged = self.volumes.values().filter(|run| run.damage.count() > 0);
        for volume in damaged.map(|run| run.state.id).collect::<Vec<_>>() {
            self.forget_replaced(volume);
        }
        let (checkpoints, failed_checkpoints) = self.checkpoints.counts();
        ShardFigures {
            space: self.log_space(),
            traffic: self.log.traffic(),
            turns: self.log.turns(),
            checkpoints,
            failed_checkpoints,
            cleaned_segments: self.cleaner.emptied(),
            scrub: self.scrub.figures(),
            held_answers: self.volumes.values().map(|run| run.held.len() as u64).sum(),
            volumes: self.volumes.values().map(|run| self.figures_of(run)).collect(),
        }
    }

    fn figures_of(&self, run: &VolumeRun) -> VolumeFigures {
        let (state, usage) = (&run.state, &self.map.usage);
        let snapshot = |id| usage.mapped(MapKey { volume: state.id, snapshot: id });
        VolumeFigures {
            volume: state.id,
            role: run.role,
            epoch: run.epoch,
            size: state.size,
            mapped: usage.mapped(state.id),
            snapshots: state.snapshots.iter().map(|found| snapshot(found.id)).sum(),
            stale: state.layers.wanted(),
            damaged: run.damage.count(),
            repaired: run.damage.repaired(),
        }
    }
}
