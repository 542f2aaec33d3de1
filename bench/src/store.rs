//! A shard in this process, with one volume, and a closed loop of requests to it: the store without NBD and network.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use client_lib::{BLOCK_SIZE, Epoch, SnapshotId, VolumeId, VolumeSize};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use storage_node::log::{LogSettings, Traffic};
use storage_node::shard::handle::{ShardHandle, StoreError};
use storage_node::shard::{Shard, ShardOptions};
use storage_node::volume::Moment;

use crate::load::{Figures, Workload};
use crate::process;

const VOLUME: VolumeId = VolumeId(1);
const BLOCK: usize = BLOCK_SIZE as usize;
/// Bytes that writes take their data from, at changing places.
const NOISE_BYTES: usize = 1 << 20;
/// A large write.
const FILL_BYTES: u64 = 1 << 20;

/// Which block is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Any, equally often.
    Uniform,
    /// Nine of ten in a tenth of the volume.
    HotCold,
}

impl Pattern {
    fn next(self, random: &mut Random, blocks: u32) -> u32 {
        let (blocks, hot) = (u64::from(blocks), u64::from(blocks / 10).max(1));
        let block = match self {
            Pattern::Uniform => random.below(blocks),
            Pattern::HotCold if random.below(10) < 9 => random.below(hot),
            Pattern::HotCold => hot + random.below(blocks - hot),
        };
        block as u32
    }
}

/// Sebastiano Vigna's splitmix64: a load needs no more, and the same seed is the same load.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What a run of requests came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Writes that were refused for want of space.
    pub(crate) refused: u64,
}

impl Run {
    pub(crate) fn new() -> Run {
        let latencies = Histogram::new(3).expect("three digits are possible");
        Run { operations: 0, elapsed: Duration::ZERO, latencies, refused: 0 }
    }

    /// Adds what another run came to.
    pub(crate) fn add(&mut self, other: &Run) -> anyhow::Result<()> {
        self.operations += other.operations;
        self.elapsed += other.elapsed;
        self.refused += other.refused;
        self.latencies.add(&other.latencies).context("latencies")
    }

    pub(crate) fn iops(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Microseconds that so many percent stay below.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        self.latencies.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// When a load ends.
enum Limit {
    /// When no more operations are left.
    Count(Cell<u64>),
    /// At this moment.
    Until(Instant),
}

impl Limit {
    /// Whether another operation may begin; it is counted then.
    fn admits(&self) -> bool {
        match self {
            Limit::Count(left) => left.get().checked_sub(1).map(|fewer| left.set(fewer)).is_some(),
            Limit::Until(end) => Instant::now() < *end,
        }
    }
}

/// A shard and its volume.
pub(crate) struct Store {
    runtime: tokio::runtime::Runtime,
    shard: ShardHandle,
    blocks: u32,
    noise: Bytes,
}

impl Store {
    /// Starts a shard in `directory` with a volume of `size` bytes that this process owns.
    pub(crate) fn start(directory: &Path, size: u64, log: LogSettings) -> anyhow::Result<Store> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = ShardOptions { log, ..ShardOptions::new(directory.to_owned()) };
        let volume_size = VolumeSize::try_from(size).context("the volume's size")?;
        let shard = runtime.block_on(async {
            let shard = Shard::start(options).await?;
            shard.open(VOLUME, volume_size).await?;
            shard.activate(VOLUME, Epoch(1)).await?;
            anyhow::Ok(shard)
        })?;
        let mut random = Random::new(7);
        let noise = (0..(NOISE_BYTES + BLOCK) / 8).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<u8>>();
        Ok(Store { runtime, shard, blocks: (size / BLOCK as u64) as u32, noise: noise.into() })
    }

    fn data(&self, seed: u64) -> Bytes {
        let at = seed.wrapping_mul(8) as usize % NOISE_BYTES;
        self.noise.slice(at..at + BLOCK)
    }

    /// Writes the whole volume once, in order.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let size = u64::from(self.blocks) * BLOCK as u64;
        self.runtime.block_on(async {
            for offset in (0..size).step_by(FILL_BYTES as usize) {
                let length = FILL_BYTES.min(size - offset) as usize;
                self.shard.write(VOLUME, offset, self.noise.slice(..length), false).await?;
            }
            self.shard.flush(VOLUME).await?;
            anyhow::Ok(())
        })
    }

    /// Writes `count` blocks, `depth` at a time.
    pub(crate) fn write(&self, count: u64, depth: usize, pattern: Pattern, random: &mut Random) -> anyhow::Result<Run> {
        let blocks = self.blocks;
        self.drive(Limit::Count(Cell::new(count)), depth, random, async |random| {
            let (block, data) = {
                let mut random = random.borrow_mut();
                (pattern.next(&mut random, blocks), self.data(random.next()))
            };
            self.shard.write(VOLUME, u64::from(block) * BLOCK as u64, data, false).await.map(drop)
        })
    }

    /// The load of `workload` for some seconds, in figures as fio's.
    pub(crate) fn measure(&self, workload: &Workload, seconds: u32, random: &mut Random) -> anyhow::Result<Figures> {
        let length = u64::from(workload.bytes);
        let places = u64::from(self.blocks) * BLOCK as u64 / length;
        let (issued, next) = (Cell::new(0), Cell::new(0));
        let end = Instant::now() + Duration::from_secs(u64::from(seconds));
        let cpu = process::cpu_seconds("self")?;
        let run = self.drive(Limit::Until(end), workload.depth as usize, random, async |random| {
            let place = if workload.is_random { random.borrow_mut().below(places) } else { next.get() % places };
            next.set(place + 1);
            if workload.is_read {
                return self.shard.read(VOLUME, Moment::Now, place * length, workload.bytes).await.map(drop);
            }
            let data = match workload.bytes as usize {
                BLOCK => self.data(place),
                bytes => self.noise.slice(..bytes),
            };
            self.shard.write(VOLUME, place * length, data, false).await?;
            issued.set(issued.get() + 1);
            if workload.flush_every > 0 && issued.get() % workload.flush_every == 0 {
                self.shard.flush(VOLUME).await?;
            }
            Ok(())
        })?;
        Ok(Figures {
            iops: run.iops(),
            p50_us: run.percentile_us(50.0),
            p99_us: run.percentile_us(99.0),
            cpu_us_per_op: Some((process::cpu_seconds("self")? - cpu) * 1e6 / run.operations as f64),
        })
    }

    /// Reads `count` blocks anywhere, `depth` at a time.
    pub(crate) fn read(&self, count: u64, depth: usize, random: &mut Random) -> anyhow::Result<Run> {
        let blocks = u64::from(self.blocks);
        self.drive(Limit::Count(Cell::new(count)), depth, random, async |random| {
            let block = random.borrow_mut().below(blocks);
            self.shard.read(VOLUME, Moment::Now, block * BLOCK as u64, BLOCK_SIZE).await.map(drop)
        })
    }

    fn drive(
        &self,
        limit: Limit,
        depth: usize,
        random: &mut Random,
        operation: impl AsyncFn(&RefCell<&mut Random>) -> Result<(), StoreError>,
    ) -> anyhow::Result<Run> {
        let (random, run) = (RefCell::new(random), RefCell::new(Run::new()));
        let worker = async || {
            while limit.admits() {
                let begun = Instant::now();
                let outcome = operation(&random).await;
                let mut run = run.borrow_mut();
                run.latencies.record(begun.elapsed().as_nanos() as u64)?;
                match outcome {
                    Ok(()) => run.operations += 1,
                    Err(StoreError::OutOfSpace) => run.refused += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            anyhow::Ok(())
        };
        let begun = Instant::now();
        self.runtime.block_on(try_join_all((0..depth).map(|_| worker())))?;
        let mut run = run.into_inner();
        run.elapsed = begun.elapsed();
        Ok(run)
    }

    /// What the shard's log has written.
    pub(crate) fn traffic(&self) -> anyhow::Result<Traffic> {
        Ok(self.runtime.block_on(self.shard.traffic())?)
    }

    /// Keeps the volume as it is.
    pub(crate) fn snapshot(&self, number: u64) -> anyhow::Result<()> {
        self.runtime.block_on(self.shard.create_snapshot(VOLUME, SnapshotId(number)))?;
        Ok(())
    }

    /// Stops the shard in good order.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.shard.stop())?)
    }
}
