//! Blocks whose data here does not fit its checksum or cannot be read: noted when found, refused until repaired.
//!
//! A damaged block is one version at one place in the log. While it is noted it is refused with
//! [`StoreError::Damaged`], which asks the caller to fetch that version from another holder and to
//! [`receive`](super::handle::ShardHandle::receive) it. The copy is appended like any received block, and the map moves to
//! it; so a repair is crash-safe without a format of its own. In a full store it has a share of the space that guests' data may not take
//! ([`crate::log::writer`]): where damage is all that keeps a segment in use, it gains one. A newer version heals a
//! block as well. Nothing of this is kept over a restart: damage that is still there is found again.
//!
//! Fetching is left to [`crate::propagation::repair`].

use std::collections::BTreeMap;

use client_lib::{BLOCK_SIZE, BlockIndex, Lsn, VolumeId};

use super::core::Core;
use super::handle::{DamagedBlocks, StoreError};
use crate::log::Entry;
use crate::map::page::{Content, Place, Version};
use crate::propagation::manifest::BlockRun;
use crate::volume::Moment;

/// Most damaged blocks noted per volume. Beyond that a disk is not worth repairing block by block: what is found is
/// refused each time it is read.
const NOTED_MAX: usize = 1 << 16;

/// How often a block is repaired before its reads just fail: a disk that alters every copy would otherwise keep a guest
/// waiting for ever.
const REPAIRS_MAX: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct Damaged {
    crc: u32,
    place: Place,
}

/// The damaged blocks of a volume.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// By block and write: the volume and a snapshot may have two versions of a block that are both damaged.
    blocks: BTreeMap<(u32, Lsn), Damaged>,
    /// How often each block was repaired since the start.
    repairs: BTreeMap<u32, u32>,
    repaired: u64,
}

impl Damage {
    /// Blocks that are damaged now.
    pub(super) fn count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Blocks that were repaired since the start.
    pub(super) fn repaired(&self) -> u64 {
        self.repaired
    }

    /// The segments that damaged blocks lie in, each as often as it has some.
    pub(super) fn segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.values().map(|damaged| damaged.place.segment)
    }

    /// The checksum under which the data of `block` at `lsn` is wanted to repair it, if it is.
    pub(super) fn wants(&self, block: u32, lsn: Lsn) -> Option<u32> {
        self.blocks.get(&(block, lsn)).map(|damaged| damaged.crc)
    }

    /// Refuses what is known to be damaged among `versions`.
    ///
    /// # Errors
    /// `Damaged` names the blocks to fetch; `Io` when one was repaired too often.
    pub(super) fn refuse(&self, volume: VolumeId, versions: &[(u32, Option<Version>)]) -> Result<(), StoreError> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let is_damaged = |(block, version): &&(u32, Option<Version>)| {
            let noted = version.and_then(|version| self.blocks.get(&(*block, version.lsn)));
            noted.is_some_and(|damaged| version.and_then(|version| version.content.place()) == Some(damaged.place))
        };
        let blocks: Vec<u32> = versions.iter().filter(is_damaged).map(|(block, _)| *block).collect();
        if let Some(block) = blocks.iter().find(|block| self.repairs.get(block).is_some_and(|n| *n >= REPAIRS_MAX)) {
            return Err(StoreError::Io(format!(
                "block {block} of volume {volume} was repaired {REPAIRS_MAX} times and is damaged again"
            )));
        }
        if blocks.is_empty() { Ok(()) } else { Err(StoreError::Damaged { volume, runs: BlockRun::of(blocks) }) }
    }

    /// `entry` has taken effect: what it replaced is damaged no more. Where there are snapshots, one may still show it: then it
    /// is looked up when somebody asks ([`Core::forget_replaced`]).
    pub(super) fn settle(&mut self, entry: &Entry, has_snapshots: bool) {
        if self.blocks.is_empty() {
            return;
        }
        let (first, last) = match entry {
            Entry::Write { start, checksums, .. } => (start.0, start.0.saturating_add(checksums.len() as u32)),
            Entry::Zero { start, count, .. } => (start.0, start.0.saturating_add(*count)),
            Entry::Received { volume, blocks } => return self.received(*volume, blocks),
            _ => return,
        };
        if has_snapshots {
            return;
        }
        let range = (first, Lsn::ZERO)..(last, Lsn::ZERO);
        let healed: Vec<(u32, Lsn)> = self.blocks.range(range).map(|(key, _)| *key).collect();
        for key in healed {
            self.blocks.remove(&key);
        }
    }

    fn received(&mut self, volume: VolumeId, blocks: &[(BlockIndex, Lsn, u32)]) {
        for (block, lsn, _) in blocks {
            let Some(Damaged { place, .. }) = self.blocks.remove(&(block.0, *lsn)) else { continue };
            *self.repairs.entry(block.0).or_default() += 1;
            self.repaired += 1;
            tracing::warn!(
                %volume, %block, segment = place.segment, offset = u64::from(place.block) * u64::from(BLOCK_SIZE),
                "a damaged block was repaired from another node"
            );
        }
    }
}

impl Core {
    /// The data of `version` of a block is damaged, as `what` says. Noted if the map still leads there. Returns whether
    /// another attempt to read the block comes to something else: a refusal that asks for repair, or a newer version.
    pub(super) fn note_damage(&mut self, volume: VolumeId, block: u32, version: Version, what: &str) -> bool {
        let Version { lsn, content: Content::Local { place, crc } } = version else { return true };
        let Some(run) = self.volumes.get_mut(&volume) else { return true };
        // What cannot be looked up is noted.
        if !run.state.holds(block, lsn, place, &mut self.map).unwrap_or(true) {
            return true;
        }
        if run.damage.blocks.get(&(block, lsn)).is_some_and(|damaged| damaged.place == place) {
            return true;
        }
        if run.damage.blocks.len() >= NOTED_MAX {
            return false;
        }
        tracing::error!(
            %volume, block, %lsn, segment = place.segment, offset = u64::from(place.block) * u64::from(BLOCK_SIZE),
            "a block is damaged: {what}"
        );
        run.damage.blocks.insert((block, lsn), Damaged { crc, place });
        true
    }

    /// The damaged blocks by what shows them, in a full store first those whose segments have the least else in them: they make room for others. Forgets
    /// those that a newer version has replaced.
    pub(super) fn damaged(&mut self) -> Vec<DamagedBlocks> {
        let volumes: Vec<VolumeId> =
            self.volumes.iter().filter(|(_, run)| run.damage.count() > 0).map(|(id, _)| *id).collect();
        let mut all = Vec::new();
        for volume in volumes {
            self.forget_replaced(volume);
            let Some(run) = self.volumes.get(&volume) else { continue };
            // With what their segments need, where that counts.
            let mut by_moment: Vec<(Moment, Vec<(u64, u32)>)> = Vec::new();
            for ((block, _), damaged) in &run.damage.blocks {
                // What cannot be looked up is looked for where most is.
                let moment = run.state.shows(*block, damaged.place, &mut self.map).unwrap_or(Moment::Now);
                let needed = if self.is_full { self.map.usage.needed(damaged.place.segment) } else { 0 };
                match by_moment.iter_mut().find(|(known, _)| *known == moment) {
                    Some((_, blocks)) if blocks.last().is_some_and(|(_, last)| last == block) => {}
                    Some((_, blocks)) => blocks.push((needed, *block)),
                    None => by_moment.push((moment, vec![(needed, *block)])),
                }
            }
            for (moment, mut blocks) in by_moment {
                blocks.sort_unstable();
                let runs = BlockRun::of(blocks.into_iter().map(|(_, block)| block));
                all.push(DamagedBlocks { volume, moment, runs });
            }
        }
        all
    }

    /// Forgets damage that nothing leads to any more, as when a replica has applied a newer version.
    pub(super) fn forget_replaced(&mut self, volume: VolumeId) {
        let Some(run) = self.volumes.get_mut(&volume) else { return };
        let mut replaced = Vec::new();
        for ((block, lsn), damaged) in &run.damage.blocks {
            // What cannot be looked up is kept.
            if !run.state.holds(*block, *lsn, damaged.place, &mut self.map).unwrap_or(true) {
                replaced.push((*block, *lsn));
            }
        }
        for key in replaced {
            run.damage.blocks.remove(&key);
        }
    }
}
