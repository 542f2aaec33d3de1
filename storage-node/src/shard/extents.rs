//! What is known of ranges without reading them: what is mapped, and what of it is here.
//!
//! An answer ends after a bounded amount of data; whoever wants more asks again from there on.

use client_lib::{BLOCK_SIZE, VolumeId};

use super::core::Core;
use super::handle::{MappedExtent, Residency, ResidentExtent, StoreError};
use crate::map::page::Content;
use crate::volume::Moment;
use crate::volume::resident::Resident;

/// Mapped blocks after which an answer about extents ends: 16 MiB of data. The shard's other requests wait while it is
/// made, and a client that wants one extent only, as QEMU does, has it made again for each: over a full gigabyte that
/// was 160 ms a question (2026-11-25). Holes cost nothing, so they are told to any length.
pub(super) const EXTENT_BLOCKS_MAX: usize = 4096;
/// Blocks that are looked at between two looks at that bound.
const EXTENT_WINDOW_BLOCKS: u32 = 1024;
/// Blocks that are looked at before an answer about parts ends: some milliseconds.
const LOOKED_BLOCKS_MAX: usize = 1 << 15;
/// Pages of the base that are looked at in each part: with two, a picture of 4096 parts is exact up to 4 GiB, wherever its parts begin.
const PART_PAGES_MAX: u32 = 2;
const _: () = assert!(EXTENT_WINDOW_BLOCKS.is_power_of_two(), "windows end at multiples of it");

impl Core {
    /// What is mapped from `offset` on: at most `length` bytes of it, less after [`EXTENT_BLOCKS_MAX`] mapped blocks.
    pub(super) fn extents(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<MappedExtent>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_readable(moment, offset, length)?;
        if moment == Moment::Now {
            self.require_lease(run)?;
        }
        let states = self.states(volume, moment, (offset, length), false, |content| content != Content::Zero)?;
        Ok(states.into_iter().map(|(length, mapped)| MappedExtent { length, mapped }).collect())
    }

    /// What is here of the newest versions that this node knows of, or of a snapshot's, from `offset` on; as much of it as
    /// [`extents`](Self::extents) tells. In both roles: a replica tells what it would have to fetch.
    pub(super) fn residency(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        offset: u64,
        length: u64,
    ) -> Result<Vec<ResidentExtent>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_known(moment, offset, length)?;
        let state = |content| match content {
            Content::Zero => Residency::Zero,
            Content::Stale { .. } => Residency::Stale,
            Content::Local { .. } => Residency::Local,
        };
        let states = self.states(volume, moment, (offset, length), Residency::Zero, state)?;
        Ok(states.into_iter().map(|(length, residency)| ResidentExtent { length, residency }).collect())
    }

    /// What is here of each of `parts` parts of `blocks` blocks from block `first` on, of at least one of them and of no more when
    /// [`LOOKED_BLOCKS_MAX`] are looked at.
    pub(super) fn resident_parts(
        &mut self,
        volume: VolumeId,
        first: u64,
        blocks: u32,
        parts: u32,
    ) -> Result<Vec<Resident>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let (blocks, end) = (u64::from(blocks.max(1)), run.state.size.bytes().div_ceil(u64::from(BLOCK_SIZE)));
        let (mut found, mut looked_all) = (Vec::new(), 0);
        for part in 0..u64::from(parts) {
            let from = first + part * blocks;
            if from >= end || looked_all >= LOOKED_BLOCKS_MAX {
                break;
            }
            let last = (from + blocks).min(end) - 1;
            let (resident, looked) = run.state.resident(from as u32, last as u32, PART_PAGES_MAX, &mut self.map)?;
            found.push(resident);
            looked_all += looked;
        }
        Ok(found)
    }

    /// Runs of bytes in one state: that of their blocks' versions, or `unmapped` where there is none.
    fn states<T: Copy + PartialEq>(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        (offset, length): (u64, u64),
        unmapped: T,
        state_of: impl Fn(Content) -> T,
    ) -> Result<Vec<(u64, T)>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let mut extents: Vec<(u64, T)> = Vec::new();
        if length == 0 {
            return Ok(extents);
        }
        let block_bytes = u64::from(BLOCK_SIZE);
        let mut end = offset + length;
        let mut push = |length: u64, state: T| match extents.last_mut() {
            _ if length == 0 => {}
            Some((last, last_state)) if *last_state == state => *last += length,
            _ => extents.push((length, state)),
        };
        let (mut at, mut seen) = (offset, 0);
        let last = ((end - 1) / block_bytes) as u32;
        let mut first = (offset / block_bytes) as u32;
        while first <= last {
            let window_last = last.min(first | (EXTENT_WINDOW_BLOCKS - 1));
            for (block, version) in run.state.mapped(moment, first, window_last, &mut self.map)? {
                seen += 1;
                let state = state_of(version.content);
                if state == unmapped {
                    continue;
                }
                let start = (u64::from(block) * block_bytes).max(offset);
                push(start - at, unmapped);
                let stop = ((u64::from(block) + 1) * block_bytes).min(end);
                push(stop - start, state);
                at = stop;
            }
            if seen >= EXTENT_BLOCKS_MAX {
                end = end.min((u64::from(window_last) + 1) * block_bytes);
                break;
            }
            let Some(next) = window_last.checked_add(1) else { break };
            first = next;
        }
        push(end - at, unmapped);
        Ok(extents)
    }
}
