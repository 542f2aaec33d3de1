//! A shard without its thread: requests go in, turns are taken until the answer is there.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, ReadPart, SnapshotId, VolumeId, VolumeSize};
use proptest::prelude::ProptestConfig;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::io::EngineKind;
use crate::io::sim::SimDisk;
use crate::log::LogSettings;
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::page::Content;
use crate::map::store::{Faults, MapStore};
use crate::propagation::manifest::{BlockRun, Manifest, VersionedBlock};
use crate::shard::core::Core;
use crate::shard::handle::{Answer, Reply, Request, SealedDelta, SnapshotReport, StoreError, VolumeReport};
use crate::shard::{ShardOptions, StartError, recover};
use crate::volume::Moment;
use crate::volume::layers::Wanted;
use crate::volume::ledger::Author;

pub(super) const VOLUME: VolumeId = VolumeId(7);
const TURNS_MAX: usize = 100_000;
const BLOCK: usize = BLOCK_SIZE as usize;

/// How many histories a property is tried on: `usual`, or as `PROPTEST_CASES` says for a soak.
pub(super) fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual);
    ProptestConfig { cases, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

/// A shard on a disk that can fail.
pub(super) struct Rig {
    pub(super) disk: SimDisk,
    pub(super) options: ShardOptions,
    core: Option<Core>,
    /// The map, if it is kept in memory.
    store: Option<MapStore>,
    _directory: Option<TempDir>,
}

fn options(directory: PathBuf) -> ShardOptions {
    ShardOptions {
        directory,
        engine: EngineKind::Std,
        log: LogSettings { segment_bytes: SEGMENT_BYTES_MIN, spare_segments: 1, capacity_bytes: None },
        map_cache_bytes: 0,
        checkpoint_log_bytes: 1 << 20,
        scrub_period: None,
        scrub_bytes_per_second: u64::MAX,
        reclaim_pause: None,
        lease: std::sync::Arc::new(crate::ownership::lease::LeaseCell::forever()),
    }
}

impl Rig {
    pub(super) fn new(seed: u64) -> Rig {
        Rig::with(seed, |_| {})
    }

    pub(super) fn with(seed: u64, change: impl FnOnce(&mut ShardOptions)) -> Rig {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut options = options(directory.path().join("shard-0"));
        change(&mut options);
        let mut rig = Rig { disk: SimDisk::new(seed), options, core: None, store: None, _directory: Some(directory) };
        rig.start();
        rig
    }

    /// A shard that touches nothing but memory and depends on nothing but `seed`: fast enough for many thousands.
    pub(super) fn in_memory(seed: u64, change: impl FnOnce(&mut ShardOptions)) -> Rig {
        let mut options = options(PathBuf::from("(memory)"));
        change(&mut options);
        let store = Some(MapStore::in_memory());
        let mut rig = Rig { disk: SimDisk::new(seed), options, core: None, store, _directory: None };
        rig.start();
        rig
    }

    /// From now on this of the map, which is kept in memory, fails; also after a restart.
    pub(super) fn fail_map(&self, faults: Faults) {
        self.store.as_ref().expect("the map is in memory").inject(faults);
    }

    pub(super) fn start(&mut self) {
        self.try_start().expect("recovers");
    }

    pub(super) fn try_start(&mut self) -> Result<(), StartError> {
        assert!(self.core.is_none(), "runs already");
        let (options, engine) = (self.options.clone(), Box::new(self.disk.engine()));
        self.core = Some(match &self.store {
            Some(store) => recover::recover_with(options, engine, Arc::default(), store.clone())?,
            None => {
                recover::prepare(&self.options)?;
                recover::recover(options, engine, Arc::default())?
            }
        });
        Ok(())
    }

    /// The process is gone, however it ended.
    pub(super) fn drop_core(&mut self) {
        self.core = None;
    }

    /// The process is killed and started again.
    pub(super) fn kill(&mut self) {
        self.disk.kill();
        self.core = None;
        self.start();
    }

    /// The power is cut, and the process started again.
    pub(super) fn crash(&mut self) {
        self.disk.crash();
        self.core = None;
        self.start();
    }

    /// The process stops in good order and starts again.
    pub(super) fn restart(&mut self) {
        self.ask(|reply| Request::Stop { reply }).expect("stops");
        self.core = None;
        self.start();
    }

    pub(super) fn core(&mut self) -> &mut Core {
        self.core.as_mut().expect("runs")
    }

    pub(super) fn turn(&mut self) {
        self.core().turn(std::time::Duration::ZERO);
    }

    /// Asks without waiting.
    pub(super) fn send<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> Answer<T> {
        // As the loop does.
        while self.core().map.cache.is_full() {
            self.core().turn(std::time::Duration::from_millis(1));
        }
        let (reply, answer) = Reply::channel();
        self.core().handle(request(reply));
        answer
    }

    /// Takes turns until `answer` is there.
    pub(super) fn wait<T>(&mut self, mut answer: Answer<T>) -> Result<T, StoreError> {
        for _ in 0..TURNS_MAX {
            match answer.try_recv() {
                Ok(result) => return result,
                Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Stopped),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let core = self.core();
            core.turn(std::time::Duration::from_millis(1));
            core.stop_if_asked();
        }
        panic!("no answer in {TURNS_MAX} turns");
    }

    pub(super) fn ask<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let answer = self.send(request);
        self.wait(answer)
    }

    pub(super) fn open(&mut self, bytes: u64) -> VolumeReport {
        let size = VolumeSize::try_from(bytes).expect("valid");
        self.ask(|reply| Request::Open { volume: VOLUME, size, reply }).expect("opens")
    }

    pub(super) fn resize(&mut self, bytes: u64) -> Result<VolumeReport, StoreError> {
        let size = VolumeSize::try_from(bytes).expect("valid");
        let owner = Some(self.report().epoch);
        self.ask(|reply| Request::Resize { volume: VOLUME, size, owner, reply })
    }

    pub(super) fn activate(&mut self, epoch: u64) -> VolumeReport {
        self.ask(|reply| Request::Activate { volume: VOLUME, epoch: Epoch(epoch), acts_under: Some(0), reply })
            .expect("activates")
    }

    pub(super) fn deactivate(&mut self, epoch: u64) -> VolumeReport {
        self.ask(|reply| Request::Deactivate { volume: VOLUME, epoch: Epoch(epoch), reply }).expect("deactivates")
    }

    pub(super) fn report(&mut self) -> VolumeReport {
        self.ask(|reply| Request::Report { volume: VOLUME, reply }).expect("reports")
    }

    pub(super) fn send_write(&mut self, offset: u64, data: Vec<u8>, fua: bool) -> Answer<Lsn> {
        self.send(|reply| Request::Write {
            volume: VOLUME,
            offset,
            data: Bytes::from(data),
            fua,
            author: Author::Session(None),
            reply,
        })
    }

    pub(super) fn write(&mut self, offset: u64, data: Vec<u8>) -> Result<Lsn, StoreError> {
        let answer = self.send_write(offset, data, false);
        self.wait(answer)
    }

    pub(super) fn write_block(&mut self, block: u32, fill: u8) -> Result<Lsn, StoreError> {
        self.write(u64::from(block) * BLOCK as u64, vec![fill; BLOCK])
    }

    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Zero {
            volume: VOLUME,
            offset,
            length,
            fua: false,
            author: Author::Session(None),
            reply,
        })
    }

    pub(super) fn flush(&mut self) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Flush { volume: VOLUME, reply })
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.ask(|reply| Request::Checkpoint { reply })
    }

    pub(super) fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, StoreError> {
        let chunks = self.ask(|reply| Request::Read { volume: VOLUME, moment: Moment::Now, offset, length, reply })?;
        Ok(ReadPart::joined(chunks).to_vec())
    }

    pub(super) fn snapshot(&mut self, id: u64) -> Result<Lsn, StoreError> {
        let made = self.ask(|reply| Request::CreateSnapshot { volume: VOLUME, snapshot: SnapshotId(id), reply })?;
        let listed = self.snapshots().into_iter().find(|listed| listed.snapshot == SnapshotId(id));
        let listed = listed.map(|listed| (listed.lsn, listed.size));
        assert_eq!(listed, Some((made.lsn, made.size)), "it is listed as it was made");
        Ok(made.lsn)
    }

    pub(super) fn delete_snapshot(&mut self, id: u64) -> Result<(), StoreError> {
        self.ask(|reply| Request::DeleteSnapshot { volume: VOLUME, snapshot: SnapshotId(id), reply })
    }

    pub(super) fn roll_back(&mut self, id: u64) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(id), reply })
    }

    pub(super) fn snapshots(&mut self) -> Vec<SnapshotReport> {
        self.ask(|reply| Request::Snapshots { volume: VOLUME, reply }).expect("lists")
    }

    pub(super) fn read_snapshot(&mut self, id: u64, offset: u64, length: u32) -> Result<Vec<u8>, StoreError> {
        let snapshot = SnapshotId(id);
        let moment = Moment::Snapshot(snapshot);
        let chunks = self.ask(|reply| Request::Read { volume: VOLUME, moment, offset, length, reply })?;
        Ok(ReadPart::joined(chunks).to_vec())
    }

    pub(super) fn seal(&mut self, from: Lsn, delta_from: Option<Lsn>) -> (Manifest, Option<SealedDelta>) {
        self.seal_after(0, from, delta_from)
    }

    /// As [`seal`](Self::seal), for a replica that knows the snapshots up to `after`.
    pub(super) fn seal_after(
        &mut self,
        after: u64,
        from: Lsn,
        delta_from: Option<Lsn>,
    ) -> (Manifest, Option<SealedDelta>) {
        let after = SnapshotId(after);
        self.ask(|reply| Request::SealManifest { volume: VOLUME, from, after, delta_from, reply }).expect("seals")
    }

    pub(super) fn apply_manifest(&mut self, manifest: &Manifest, seal: bool, durable: bool) -> Result<Lsn, StoreError> {
        let manifest = manifest.clone();
        self.ask(|reply| Request::ApplyManifest { volume: VOLUME, manifest, seal, durable, reply })
    }

    pub(super) fn missing(&mut self, wanted: Wanted, limit: u32) -> Vec<BlockRun> {
        let after = BlockIndex(0);
        self.ask(|reply| Request::Missing { volume: VOLUME, wanted, after, limit, reply }).expect("lists")
    }

    pub(super) fn receive(&mut self, blocks: Vec<VersionedBlock>) -> Result<u64, StoreError> {
        self.ask(|reply| Request::Receive { volume: VOLUME, blocks, reply })
    }

    pub(super) fn apply_sealed(&mut self, to: Lsn) -> Lsn {
        self.ask(|reply| Request::ApplySealed { volume: VOLUME, to, reply }).expect("applies")
    }

    pub(super) fn read_sealed(&mut self, pin: u64, runs: Vec<BlockRun>) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadSealed { volume: VOLUME, pin, runs, reply })
    }

    pub(super) fn read_newest(&mut self, runs: Vec<BlockRun>) -> Result<Vec<VersionedBlock>, StoreError> {
        self.read_versions(Moment::Now, runs)
    }

    pub(super) fn read_versions(
        &mut self,
        moment: Moment,
        runs: Vec<BlockRun>,
    ) -> Result<Vec<VersionedBlock>, StoreError> {
        self.ask(|reply| Request::ReadVersions { volume: VOLUME, moment, runs, reply })
    }

    /// The first byte of every block of the applied prefix: what a takeover of this replica would show. Blocks are
    /// filled with one byte in the tests that use it, and all bytes are compared.
    pub(super) fn applied_prefix(&mut self) -> Vec<u8> {
        let core = self.core();
        let state = &core.volumes[&VOLUME].state;
        let last = state.last_block();
        let versions: Vec<_> =
            (0..=last).map(|block| (block, state.applied_view(block, &mut core.map).expect("reads"))).collect();
        let (reply, answer) = Reply::channel();
        let lsns = versions.iter().map(|_| Lsn::ZERO).collect();
        for (block, version) in &versions {
            let stale = version.is_some_and(|version| matches!(version.content, Content::Stale { .. }));
            assert!(!stale, "block {block} of the applied prefix is stale");
        }
        core.fetch(VOLUME, &versions, crate::shard::fetch::Then::Versions { lsns, reply });
        let blocks = self.wait(answer).expect("reads");
        blocks.iter().map(|block| uniform(block.data.as_ref())).collect()
    }
}

/// Sends everything from an owner to a replica.
pub(super) fn catch_up(owner: &mut Rig, replica: &mut Rig) {
    loop {
        let at = replica.report();
        let delta = match at.awaited_snapshot {
            Some(snapshot) => {
                let from = at.watermark;
                Some(
                    owner
                        .ask(|reply| Request::PinSnapshot {
                            volume: VOLUME,
                            snapshot,
                            from,
                            also: Arc::default(),
                            reply,
                        })
                        .expect("is there"),
                )
            }
            None => {
                let (manifest, delta) = owner.seal_after(at.newest_snapshot.0, at.known, Some(at.watermark));
                replica.apply_manifest(&manifest, delta.is_some(), false).expect("is taken");
                delta
            }
        };
        let Some(delta) = delta else { continue };
        loop {
            let missing: Vec<BlockRun> = replica.missing(Wanted::Sealed, 10);
            if missing.is_empty() {
                break;
            }
            replica.receive(owner.read_sealed(delta.pin, missing).expect("reads")).expect("receives");
        }
        assert_eq!(replica.apply_sealed(delta.to), delta.to);
        owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
        if delta.snapshot.is_none() {
            return;
        }
    }
}

/// The byte that fills a block.
pub(super) fn uniform(data: Option<&Bytes>) -> u8 {
    data.map_or(0, |data| {
        assert!(data.iter().all(|byte| *byte == data[0]), "a block is torn");
        data[0]
    })
}
