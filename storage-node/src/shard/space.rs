//! Where the space of a shard goes: counted from what the shard has in memory, without looking at a block or a page.
//!
//! What is exact and what is an estimate is said at each figure, and for operators in `docs/space.md`.
//!
//! A segment in which nothing is needed any more is free with the next checkpoint, and while guests write there is one often
//! enough. [`Reclaim`] asks for one when they do not, or when much waits for it: what was deleted shall come back.

use std::time::Duration;

use client_lib::{BLOCK_SIZE, VolumeId, VolumeSize};
use tokio::time::Instant;

use super::core::Core;
use super::handle::Role;
use super::run::VolumeRun;
use crate::map::MapKey;

/// Where the space of a shard's log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardSpace {
    /// Segment files.
    pub segments: u64,
    /// Their bytes. Exact: they are written through when they are made.
    pub log_bytes: u64,
    /// Those of them that wait to be used (again).
    pub pooled_segments: u64,
    /// Their bytes.
    pub pooled_bytes: u64,
    /// What is left in the segments that are written to.
    pub unwritten_bytes: u64,
    /// Blocks that the volumes and their snapshots need. Exact where no volumes or snapshots share them by a rollback or a clone;
    /// else, of segments that were not emptied since, at least so many.
    pub live_bytes: u64,
    /// The rest: blocks that nothing needs, or deltas in flight alone, headers of records, ends of segments. The cleaner gets
    /// most of it back when space is wanted.
    pub garbage_bytes: u64,
    /// Segments in which nothing is needed any more: free with the next checkpoint. Part of the garbage.
    pub emptied_bytes: u64,
    /// Why the shard takes no more writes until the node is restarted, if so.
    pub fault: Option<String>,
    /// Whether the shard refused the last data that it was to take, for want of space.
    pub is_full: bool,
    /// What guests' data may not take, for the cleaner and for what brings no data.
    pub reserve_bytes: u64,
    /// The volumes.
    pub volumes: Vec<VolumeSpace>,
}

/// Where the space of a volume goes, in blocks of [`BLOCK_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSpace {
    /// Which.
    pub volume: VolumeId,
    /// Its size here.
    pub size: VolumeSize,
    /// What this node is to it.
    pub role: Role,
    /// Blocks that are mapped: of the volume as it is now. Exact.
    pub mapped_blocks: u64,
    /// Those of them that are in no applied state yet: received by a replica, and what they replace is mapped as well.
    /// Exact.
    pub unapplied_blocks: u64,
    /// Blocks that only snapshots have. Exact.
    pub snapshot_blocks: u64,
    /// Those of them that only deleted snapshots have, which are being merged.
    pub deleted_blocks: u64,
    /// Overwritten blocks that are kept because a delta that is being sent has them. An estimate, rather too high.
    pub held_blocks: u64,
}

/// The share of the used segments, as a divisor, that may wait for a checkpoint while guests write.
const EMPTIED_SHARE: usize = 8;

/// Looks now and then for segments that only a checkpoint keeps from being free.
#[derive(Debug)]
pub(super) struct Reclaim {
    /// How often; `None`: never.
    pause: Option<Duration>,
    due: Instant,
    /// Bytes of log at the last look.
    written: u64,
}

impl Reclaim {
    pub(super) fn new(pause: Option<Duration>) -> Reclaim {
        Reclaim { pause, due: Instant::now() + pause.unwrap_or_default(), written: 0 }
    }
}

impl Core {
    /// Asks for a checkpoint if enough would come free by it; lets go of free segments that nobody will take soon.
    pub(super) fn reclaim_step(&mut self) {
        let Some(pause) = self.reclaim.pause else { return };
        let now = Instant::now();
        if now < self.reclaim.due {
            return;
        }
        self.reclaim.due = now + pause;
        let written = self.checkpoints.log_bytes_total();
        let is_quiet = std::mem::replace(&mut self.reclaim.written, written) == written;
        let emptied = self.freeable().count();
        let used = self.log.segments().iter().filter(|info| !info.free && !info.active).count();
        if emptied > 0 && (is_quiet || emptied * EMPTIED_SHARE >= used) {
            self.checkpoints.request_if_idle();
        }
        if is_quiet {
            self.log.trim();
        }
    }

    /// Where the space goes; with the volumes, or with `of` alone.
    pub(super) fn space(&self, of: Option<VolumeId>) -> ShardSpace {
        let wanted = self.volumes.values().filter(|run| of.is_none_or(|of| run.state.id == of));
        ShardSpace { volumes: wanted.map(|run| self.space_of(run)).collect(), ..self.log_space() }
    }

    /// The same without the volumes.
    pub(super) fn log_space(&self) -> ShardSpace {
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_SIZE);
        let usage = &self.map.usage;
        let fault = self.fault().map(str::to_owned);
        let mut space = ShardSpace {
            fault,
            is_full: self.is_full,
            reserve_bytes: self.log.reserve_bytes(),
            ..ShardSpace::default()
        };
        for info in self.log.segments() {
            let size = bytes(u64::from(info.blocks));
            space.segments += 1;
            space.log_bytes += size;
            if info.free {
                space.pooled_segments += 1;
                space.pooled_bytes += size;
                continue;
            }
            space.live_bytes += bytes(usage.needed(info.segment));
            if !info.active && usage.is_free(info.segment) {
                space.emptied_bytes += size;
            }
        }
        space.unwritten_bytes = bytes(u64::from(self.log.unwritten_blocks()));
        let written = space.log_bytes - space.pooled_bytes - space.unwritten_bytes;
        space.garbage_bytes = written.saturating_sub(space.live_bytes);
        space
    }

    fn space_of(&self, run: &VolumeRun) -> VolumeSpace {
        let (state, usage) = (&run.state, &self.map.usage);
        let mut space = VolumeSpace {
            volume: state.id,
            size: state.size,
            role: run.role,
            mapped_blocks: usage.mapped(state.id),
            unapplied_blocks: state.layers.unapplied(),
            snapshot_blocks: 0,
            deleted_blocks: 0,
            held_blocks: state.pins.held(|to| state.changes.since(to)),
        };
        for snapshot in state.snapshots.iter() {
            let blocks = usage.mapped(MapKey { volume: state.id, snapshot: snapshot.id });
            space.snapshot_blocks += blocks;
            space.deleted_blocks += if snapshot.is_deleted { blocks } else { 0 };
        }
        space
    }
}
