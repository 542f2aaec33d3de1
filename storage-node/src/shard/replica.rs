//! What a replica is told, and what either role receives: manifests, fetched blocks, applied deltas.
//!
//! Everything is an entry of the log and takes effect in log order, so that a restart comes back to a state the
//! replica was in. What arrives is checked here, before it is logged: positions, ranges and checksums.

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, Lsn, VolumeId};

use super::core::Core;
use super::handle::{RECEIVED_SEGMENT, Role, StoreError, VolumeReport};
use super::run::Reply;
use super::sync::Done;
use super::write::ENTRY_BLOCKS_MAX;
use crate::log::Entry;
use crate::log::record::MANIFEST_BLOCKS_MAX;
use crate::propagation::manifest::{BlockRun, Manifest, ManifestRun, RunContent, SnapshotMark, VersionedBlock};
#[cfg(test)]
use crate::simulation::rules;
use crate::volume::layers::Wanted;
use crate::volume::manifest_fault;

/// Blocks that are looked up at a time for whoever asks what is missing: for each run that he takes, and at most. A volume that was just handed
/// over may lack all of a terabyte, which is one run, while its guests wait for the shard.
const MISSING_BLOCKS_PER_RUN: u64 = 64;
const MISSING_BLOCKS_MAX: u64 = 1 << 16;

/// Repaired blocks per log entry: in a full store as many entries as have room are carried out, and the others refused.
const REPAIR_BLOCKS_MAX: usize = 16;

/// A received block that is wanted: as a log entry has it, and its data.
type Wished = ((BlockIndex, Lsn, u32), Bytes);

impl Core {
    pub(super) fn apply_manifest(
        &mut self,
        volume: VolumeId,
        manifest: Manifest,
        seal: bool,
        durable: bool,
        reply: Reply<Lsn>,
    ) {
        let done = Done::Known(reply);
        let Some(run) = self.volumes.get(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if let Some(fault) = manifest_fault(&manifest) {
            return done.fail(StoreError::Io(format!("a manifest of volume {volume} was refused: {fault}")));
        }
        // Of one that has nothing yet the first part may be on its way to the log: what is told beside it would be lost.
        let part_comes = || self.is_under_way(volume, |entry| matches!(entry, Entry::SyncPart { .. }));
        if run.state.lacks_parts() || (run.state.takes_parts() && part_comes()) {
            return done.fail(StoreError::Syncing(volume));
        }
        let tells_unknown = run.role == Role::Replica && run.state.layers.unknown() > 0;
        if tells_unknown && !run.state.may_be_told(&manifest) {
            return done.fail(StoreError::Untold(volume));
        }
        let known = if run.role == Role::Owner { run.head } else { run.known };
        let news = manifest.to > known;
        if manifest.from > known || (news && run.role == Role::Owner) {
            return done.fail(StoreError::ManifestGap { expected: known, found: manifest.from });
        }
        let is_new_mark = |mark: SnapshotMark| mark.snapshot > run.state.newest_snapshot();
        let marks = manifest.to == known && manifest.mark.is_some_and(is_new_mark);
        if run.role == Role::Owner || !(news || marks || seal || tells_unknown) {
            // It may have come a moment before, from the sender or from a handover, and not be applied yet.
            let Some(done) = self.follow_manifest(volume, durable, done) else { return };
            return if durable { self.syncs.wait(volume, done) } else { self.answer(volume, done) };
        }
        let Manifest { from, to, runs, mark } = manifest;
        let runs: Vec<ManifestRun> = match (tells_unknown, news) {
            (true, _) => runs,
            (false, true) => runs.into_iter().filter(|run| run.lsn > known).collect(),
            (false, false) => Vec::new(),
        };
        // It tells of what lies behind that, as far as it is known. Were what brings the rest refused yet, it would have a gap.
        let from = if tells_unknown { from } else { from.max(known.min(to)) };
        let (earlier, runs) = match self.append_earlier(volume, from, runs) {
            Ok(appended) => appended,
            Err(error) => return done.fail(error),
        };
        let manifest = Manifest { from, to, runs, mark };
        match self.append(Entry::Told { volume, manifest, earlier, seal }, Vec::new(), durable, None, done) {
            Err((error, done)) => done.fail(error),
            Ok(()) => {
                if let Some(run) = self.volumes.get_mut(&volume) {
                    run.known = run.known.max(to);
                }
            }
        }
    }

    /// Appends of the runs of a manifest that starts at `from` all that do not fit its last entry; how many those are, and the rest.
    ///
    /// # Errors
    /// What the log says. Nothing takes effect.
    pub(super) fn append_earlier(
        &mut self,
        volume: VolumeId,
        from: Lsn,
        runs: Vec<ManifestRun>,
    ) -> Result<(u32, Vec<ManifestRun>), StoreError> {
        let mut parts = split_runs(runs);
        let last = parts.pop().unwrap_or_default();
        let earlier = parts.iter().map(Vec::len).sum::<usize>() as u32;
        let is_left = self.volumes.get(&volume).is_some_and(|run| run.state.has_left());
        if is_left && earlier > 0 {
            // Else each attempt that is broken off adds to it.
            let nothing = Manifest { from, to: from, runs: Vec::new(), mark: None };
            let entry = Entry::Told { volume, manifest: nothing, earlier: 0, seal: false };
            self.append(entry, Vec::new(), false, None, Done::Nothing).map_err(|(error, _)| error)?;
        }
        for runs in parts {
            // A part that ends where it starts takes effect with the last one.
            let entry =
                Entry::Manifest { volume, manifest: Manifest { from, to: from, runs, mark: None }, seal: false };
            self.append(entry, Vec::new(), false, None, Done::Nothing).map_err(|(error, _)| error)?;
        }
        Ok((earlier, last))
    }

    pub(super) fn missing(
        &self,
        volume: VolumeId,
        wanted: Wanted,
        after: BlockIndex,
        limit: u32,
    ) -> Result<Vec<BlockRun>, StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let blocks = (u64::from(limit) * MISSING_BLOCKS_PER_RUN).min(MISSING_BLOCKS_MAX);
        Ok(run.state.layers.missing(wanted, after.0, limit as usize, blocks))
    }

    pub(super) fn receive(&mut self, volume: VolumeId, blocks: Vec<VersionedBlock>, reply: Reply<u64>) {
        let (wanted, repairs) = match self.wanted(volume, blocks) {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let count = wanted.len() + repairs.len();
        let parts = repairs.chunks(REPAIR_BLOCKS_MAX).map(|part| (part, true));
        let mut parts = parts.chain(wanted.chunks(ENTRY_BLOCKS_MAX).map(|part| (part, false))).peekable();
        let mut done = Some(Done::Count(reply, count as u64));
        while let Some((part, is_repair)) = parts.next() {
            let entry = Entry::Received { volume, blocks: part.iter().map(|(head, _)| *head).collect() };
            let data = part.iter().map(|(_, data)| data.clone()).collect();
            let then = done.take_if(|_| parts.peek().is_none()).unwrap_or(Done::Nothing);
            let appended = match is_repair {
                true => self.append_repair(entry, data, then),
                false => self.append(entry, data, false, None, then),
            };
            if let Err((error, then)) = appended {
                then.fail(error.clone());
                if let Some(done) = done.take() {
                    done.fail(error);
                }
                return;
            }
        }
        if let Some(done) = done {
            self.answer(volume, done);
        }
    }

    /// Those of `blocks` that a layer or a pin waits for, and those that are damaged here, verified.
    fn wanted(&self, volume: VolumeId, blocks: Vec<VersionedBlock>) -> Result<(Vec<Wished>, Vec<Wished>), StoreError> {
        let run = self.volumes.get(&volume).ok_or(StoreError::UnknownVolume(volume))?;
        let state = &run.state;
        let (mut wanted, mut repairs) = (Vec::with_capacity(blocks.len()), Vec::new());
        for VersionedBlock { block, lsn, data } in blocks {
            let awaited = state.layers.wants(block.0, lsn).or_else(|| state.pins.wants(block.0, lsn));
            let damaged = run.damage.wants(block.0, lsn);
            let Some(expected) = awaited.or(damaged) else { continue };
            let into = if awaited.is_some() { &mut wanted } else { &mut repairs };
            let data = data.unwrap_or_else(|| Bytes::from_static(&[0; BLOCK_SIZE as usize]));
            #[cfg(test)]
            if damaged.is_some() && !rules::holds(rules::Rule::RepairsFit) {
                into.push(((block, lsn, expected), Bytes::from_static(&[0xff; BLOCK_SIZE as usize])));
                continue;
            }
            let found = crc32fast::hash(&data);
            if data.len() != BLOCK_SIZE as usize || found != expected {
                return Err(StoreError::Corrupt {
                    volume,
                    block,
                    segment: RECEIVED_SEGMENT,
                    offset: 0,
                    expected,
                    found,
                });
            }
            into.push(((block, lsn, expected), data));
        }
        Ok((wanted, repairs))
    }

    pub(super) fn apply_sealed(&mut self, volume: VolumeId, to: Lsn, reply: Reply<Lsn>) {
        let Some(run) = self.volumes.get(&volume) else {
            return Done::Watermark(reply, to).fail(StoreError::UnknownVolume(volume));
        };
        let layers = &run.state.layers;
        if run.role == Role::Replica && layers.sealed_to() == Some(to) && layers.sealed_complete() {
            self.append_plain(Entry::Applied { volume, to }, true, Done::Watermark(reply, to));
        } else {
            // The watermark that is told must be durable, whoever moved it; and it may move on meanwhile.
            let reached = run.state.watermark();
            self.syncs.wait(volume, Done::Watermark(reply, reached));
        }
    }

    /// Always an entry: a manifest that is under way, or half of one that a crash left behind, may reach beyond `to`.
    pub(super) fn rewind(&mut self, volume: VolumeId, to: Lsn, reply: Reply<VolumeReport>) {
        let done = Done::Report(reply);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.role == Role::Replica {
            // Until it has taken effect nothing is admitted that would not follow whatever is left.
            run.known = run.state.watermark();
        }
        self.append_plain(Entry::Rewound { volume, to }, true, done);
    }

    /// As [`rewind`](Self::rewind), whatever is held: unless a snapshot was made beyond `to`.
    pub(super) fn discard(&mut self, volume: VolumeId, to: Lsn, reply: Reply<VolumeReport>) {
        let done = Done::Report(reply);
        let Some(run) = self.volumes.get_mut(&volume) else { return done.fail(StoreError::UnknownVolume(volume)) };
        if run.role == Role::Owner {
            return done.fail(StoreError::NotOwner { volume, epoch: run.epoch });
        }
        if run.state.has_snapshot_beyond(to) {
            return done.fail(StoreError::HasSnapshots { volume, beyond: to });
        }
        run.known = Lsn::ZERO;
        self.append_plain(Entry::Discarded { volume, to }, true, done);
    }
}

/// Runs in groups of at most [`MANIFEST_BLOCKS_MAX`] blocks with data, in order. Zero runs weigh one.
fn split_runs(runs: Vec<ManifestRun>) -> Vec<Vec<ManifestRun>> {
    let mut groups = Vec::new();
    let (mut group, mut weight) = (Vec::new(), 0);
    let max = MANIFEST_BLOCKS_MAX as usize;
    for run in runs {
        let mut rest = Some(run);
        while let Some(mut run) = rest.take() {
            let blocks = match &mut run.content {
                RunContent::Zero(_) => 1,
                RunContent::Data(checksums) => {
                    let fits = max - weight;
                    if checksums.len() > fits {
                        let tail = checksums.split_off(fits);
                        let start = BlockIndex(run.start.0 + fits as u32);
                        rest = Some(ManifestRun { start, lsn: run.lsn, content: RunContent::Data(tail) });
                    }
                    checksums.len()
                }
            };
            weight += blocks;
            group.push(run);
            if weight >= max {
                groups.push(std::mem::take(&mut group));
                weight = 0;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_manifest_falls_into_parts_that_fit_an_entry() {
        let max = MANIFEST_BLOCKS_MAX;
        let run = |start: u32, blocks: u32| ManifestRun {
            start: BlockIndex(start),
            lsn: Lsn::ZERO,
            content: RunContent::Data((0..blocks).collect()),
        };
        let zero = ManifestRun { start: BlockIndex(3 * max), lsn: Lsn::ZERO, content: RunContent::Zero(max) };
        let parts = split_runs(vec![run(0, 1), run(10, 2 * max), zero.clone()]);
        let shape: Vec<Vec<(u32, u32)>> =
            parts.iter().map(|part| part.iter().map(|run| (run.start.0, run.blocks())).collect()).collect();
        assert_eq!(
            shape,
            vec![vec![(0, 1), (10, max - 1)], vec![(9 + max, max)], vec![(9 + 2 * max, 1), (3 * max, max)]]
        );
        assert!(split_runs(Vec::new()).is_empty());
    }
}
