//! Versions by their names: which ones this node lacks, those of a list that it holds, and what may be the same under another name.
//!
//! A version of a block is named by the write that made it, so it is the same wherever it is. What is asked for by name is looked for in
//! everything that this node has, applied or not; what is not here, or damaged, is left out of the answer.

use client_lib::{BlockIndex, Lsn, VolumeId};

use super::core::Core;
use super::fetch::{Then, blocks_of, check_runs, refuse_too_many};
use super::handle::StoreError;
use super::run::Reply;
use crate::map::page::Version;
use crate::propagation::manifest::{BlockRun, VersionedBlock};
use crate::volume::Moment;
use crate::volume::layers::Wanted;

impl Core {
    /// The versions of blocks in `runs` that `moment`, or a pinned delta, has and this node lacks, or has damaged.
    pub(super) fn lacking(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        runs: &[BlockRun],
    ) -> Result<Vec<(u32, Lsn)>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        run.require_moment(moment)?;
        check_runs(runs)?;
        let mut lacking = Vec::new();
        for BlockRun { start, count } in runs {
            for (block, version) in run.state.versions(moment, start.0, start.0 + (count - 1), &mut self.map)? {
                let lacks =
                    |version: &Version| version.content.is_stale() || run.damage.wants(block, version.lsn).is_some();
                let here = version.filter(lacks).map(|version| version.lsn);
                let pinned = run.state.pins.stale(block).filter(|lsn| Some(*lsn) != here);
                lacking.extend(here.into_iter().chain(pinned).map(|lsn| (block, lsn)));
            }
        }
        Ok(lacking)
    }

    /// The first `most` versions at or after block `after` that the oldest sealed delta lacks.
    pub(super) fn lacking_sealed(
        &self,
        volume: VolumeId,
        after: BlockIndex,
        most: usize,
    ) -> Result<Vec<(u32, Lsn)>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let layers = &run.state.layers;
        let missing = layers.missing(Wanted::Sealed, after.0, most, most as u64);
        let lacks = |block: u32| layers.lacks(Wanted::Sealed, block).map(|(lsn, _)| (block, lsn));
        Ok(missing.iter().flat_map(BlockRun::blocks).filter_map(lacks).take(most).collect())
    }

    /// Reads those of `wanted` that are here, in their order.
    pub(super) fn read_held(
        &mut self,
        volume: VolumeId,
        moment: Moment,
        wanted: &[(u32, Lsn)],
        reply: Reply<Vec<VersionedBlock>>,
    ) {
        let versions = (|| {
            let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
            refuse_too_many(wanted.len() as u64)?;
            let mut versions = Vec::with_capacity(wanted.len());
            for (block, lsn) in wanted {
                if let Some(version) = run.state.named(moment, *block, *lsn, &mut self.map)?
                    && run.damage.wants(*block, *lsn).is_none()
                {
                    versions.push((*block, Some(version)));
                }
            }
            Ok(versions)
        })();
        self.send_versions(volume, versions, reply);
    }

    /// Reads, under the names of those versions in `runs` that are lacking as `wanted` has it, what is here with the same checksum: it
    /// may be the same data.
    pub(super) fn read_alike(
        &mut self,
        volume: VolumeId,
        wanted: Wanted,
        runs: &[BlockRun],
        reply: Reply<Vec<VersionedBlock>>,
    ) {
        let found = (|| {
            let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
            check_runs(runs)?;
            let (mut lsns, mut versions) = (Vec::new(), Vec::new());
            for block in blocks_of(runs) {
                let Some((lsn, crc)) = run.state.layers.lacks(wanted, block) else { continue };
                if let Some(version) = run.state.alike(block, crc, &mut self.map)?
                    && run.damage.wants(block, version.lsn).is_none()
                {
                    lsns.push(lsn);
                    versions.push((block, Some(version)));
                }
            }
            Ok((lsns, versions))
        })();
        match found {
            Ok((lsns, versions)) => self.fetch(volume, &versions, Then::Versions { lsns, reply }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }
}
