//! What does a large volume cost as more and more of it is written at random, and what do snapshots cost its reads?
//!
//! A node serves a sparse volume of 4 TiB, and fio writes 4 KiB blocks all over it. After each step its memory and the
//! size of its map are looked at; at the end it is killed and started again. Snapshots are measured on two stores in
//! this process that got the same writes, one of them with snapshots in between; they are read in turn.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use storage_node::log::LogSettings;

use crate::Bench;
use crate::load::{self, Extent, Workload};
use crate::process;
use crate::report::{Bar, Plot, print_bars};
use crate::server::Server;
use crate::store::{Pattern, Random, Run, Store};

const BLOCK: u64 = client_lib::BLOCK_SIZE as u64;
const VOLUME_BYTES: u64 = 4 << 40;
/// Writes between two looks.
const STEP: u64 = 1 << 18;
/// Writes in a million, as the issue counts.
const MILLION: u64 = 1 << 20;
/// What the log takes for each block, with its headers and a segment or two, in percent.
const SPACE_PERCENT: u64 = 130;
const WORKLOAD: Workload =
    Workload { name: "4k write", is_read: false, is_random: true, bytes: BLOCK as u32, depth: 32, flush_every: 0 };
const MIB: f64 = (1 << 20) as f64;

/// How many snapshots there are when reads are measured.
const SNAPSHOTS: [u64; 4] = [0, 1, 10, 100];
const SNAPSHOT_VOLUME_BYTES: u64 = 512 << 20;
/// Blocks that change from one snapshot to the next.
const CHANGED_BLOCKS: u64 = 1000;
/// Rounds of reads, each on both stores, and reads in each.
const READ_ROUNDS: usize = 5;
const READS: u64 = 40_000;
const READ_DEPTH: usize = 32;

/// Options of `bench growth`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Millions (2^20) of blocks to write
    #[arg(long, default_value_t = 2)]
    millions: u64,
    /// Write 16 million, as the bar has it (half an hour, 85 GiB)
    #[arg(long)]
    full: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { millions: 2, full: false }
    }
}

/// What was seen after a step.
#[derive(Debug, Serialize)]
struct Step {
    blocks_written: u64,
    iops: f64,
    p99_us: f64,
    cpu_us_per_op: f64,
    resident_bytes: u64,
    map_bytes: u64,
}

impl Step {
    fn map_percent(&self) -> f64 {
        self.map_bytes as f64 * 100.0 / (self.blocks_written * BLOCK) as f64
    }

    fn millions(&self) -> f64 {
        self.blocks_written as f64 / MILLION as f64
    }
}

/// Reads of a volume with snapshots, beside one without.
#[derive(Debug, Serialize)]
struct SnapshotReads {
    snapshots: u64,
    iops: f64,
    p50_us: f64,
    plain_iops: f64,
    plain_p50_us: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    create_seconds: f64,
    steps: Vec<Step>,
    resident_bytes_max: u64,
    reopen_seconds: f64,
    reads: Vec<SnapshotReads>,
    bars: Vec<Bar>,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let blocks = if options.full { 16 } else { options.millions } * MILLION;
    ensure!(blocks > 0, "there must be something to write");
    require_space(bench.root, blocks * BLOCK * SPACE_PERCENT / 100)?;
    let root = tempfile::tempdir_in(bench.root)?;
    let server = Server::helio_bare(root.path(), bench.helio, "a")?;
    let begun = Instant::now();
    server.create_volume(VOLUME_BYTES)?;
    let create_seconds = begun.elapsed().as_secs_f64();
    println!("\nA volume of 4 TiB was created in {create_seconds:.2} s and is written at random");
    let header = ["blocks", "IOPS", "p99 us", "CPU us/op", "RSS MiB", "map MiB", "of written"];
    println!(
        "{:>10} {:>9} {:>9} {:>10} {:>9} {:>9} {:>11}",
        header[0], header[1], header[2], header[3], header[4], header[5], header[6]
    );
    let mut steps: Vec<Step> = Vec::new();
    for number in 1..=blocks / STEP {
        let extent = Extent::Operations(STEP, VOLUME_BYTES, number);
        let cpu = || process::cpu_seconds(&server.id()).map(Some);
        let figures = load::measure(&server.target(), &WORKLOAD, extent, cpu)?;
        let step = Step {
            blocks_written: number * STEP,
            iops: figures.iops,
            p99_us: figures.p99_us,
            cpu_us_per_op: figures.cpu_us_per_op.unwrap_or_default(),
            resident_bytes: process::resident_bytes(&server.id(), false)?,
            map_bytes: disk_bytes(&server.map_directory())?,
        };
        println!(
            "{:>10} {:>9.0} {:>9.0} {:>10.1} {:>9.0} {:>9.1} {:>9.2} %",
            step.blocks_written,
            step.iops,
            step.p99_us,
            step.cpu_us_per_op,
            step.resident_bytes as f64 / MIB,
            step.map_bytes as f64 / MIB,
            step.map_percent()
        );
        steps.push(step);
    }
    let resident_bytes_max = process::resident_bytes(&server.id(), true)?;
    let server = server.killed();
    let begun = Instant::now();
    let server = server.start()?;
    let one_read = Workload { is_read: true, depth: 1, ..WORKLOAD };
    load::measure(&server.target(), &one_read, Extent::Operations(1, VOLUME_BYTES, 1), || Ok(None))
        .context("reading after the kill")?;
    let reopen_seconds = begun.elapsed().as_secs_f64();
    println!("killed, started again, and read from: {reopen_seconds:.2} s");
    drop(server);
    drop(root);
    let reads = snapshot_reads(bench.root)?;
    let last = steps.last().context("at least one step")?;
    let deepest = reads.last().context("at least one depth")?;
    let bars = vec![
        Bar::at_most("a 4 TiB volume is created: seconds", create_seconds, 1.0),
        Bar::at_most("RSS of the node: most MiB", resident_bytes_max as f64 / MIB, 256.0),
        Bar::at_most("map: percent of the bytes written", last.map_percent(), 0.3),
        Bar::at_most("reopening after kill -9, to the first read: seconds", reopen_seconds, 3.0),
        Bar::at_most("read p50 below 100 snapshots over none", deepest.p50_us / deepest.plain_p50_us, 1.1),
    ];
    print_bars(&bars);
    let figures = Figures { create_seconds, steps, resident_bytes_max, reopen_seconds, reads, bars };
    bench.output.json("growth", &figures)?;
    plot(&figures, bench)
}

fn plot(figures: &Figures, bench: &Bench<'_>) -> anyhow::Result<()> {
    let curve = |name: &str, of: fn(&Step) -> f64| {
        (name.to_owned(), figures.steps.iter().map(|step| (step.millions(), of(step))).collect())
    };
    let draw =
        |file: &str, title: &str, x: &str, y: &str, curves| bench.output.plot(file, &Plot { title, x, y, curves });
    let x = "millions of blocks written";
    let title = "Random 4 KiB writes to a 4 TiB volume, QD32";
    draw("growth-throughput", title, x, "IOPS", vec![curve("helio", |step| step.iops)])?;
    let resident = vec![curve("helio", |step| step.resident_bytes as f64 / MIB)];
    draw("growth-memory", "Resident memory of the node", x, "MiB", resident)?;
    let map = vec![curve("map", Step::map_percent)];
    draw("growth-map", "Size of the map", x, "percent of the bytes written", map)?;
    let reads = |of: fn(&SnapshotReads) -> f64| figures.reads.iter().map(|it| (it.snapshots as f64, of(it))).collect();
    let curves = vec![
        ("with snapshots".to_owned(), reads(|it| it.p50_us)),
        ("same writes, none".to_owned(), reads(|it| it.plain_p50_us)),
    ];
    draw("growth-snapshots", "p50 of random 4 KiB reads, QD32", "snapshots", "microseconds", curves)
}

fn snapshot_reads(root: &Path) -> anyhow::Result<Vec<SnapshotReads>> {
    let directory = tempfile::tempdir_in(root)?;
    let start = |name: &str| {
        let store = Store::start(&directory.path().join(name), SNAPSHOT_VOLUME_BYTES, LogSettings::default())?;
        store.fill()?;
        anyhow::Ok(store)
    };
    let (kept, plain) = (start("kept")?, start("plain")?);
    let mut random = Random::new(3);
    let mut taken = 0;
    let mut reads = Vec::new();
    println!("\n{:>9} {:>9} {:>9} {:>11} {:>11}", "snapshots", "IOPS", "p50 us", "none: IOPS", "none: p50");
    for snapshots in SNAPSHOTS {
        while taken < snapshots {
            taken += 1;
            kept.snapshot(taken)?;
            for store in [&kept, &plain] {
                store.write(CHANGED_BLOCKS, READ_DEPTH, Pattern::Uniform, &mut random)?;
            }
        }
        let (mut with, mut without) = (Run::new(), Run::new());
        for _ in 0..READ_ROUNDS {
            with.add(&kept.read(READS, READ_DEPTH, &mut random)?)?;
            without.add(&plain.read(READS, READ_DEPTH, &mut random)?)?;
        }
        let (iops, p50_us) = (with.iops(), with.percentile_us(50.0));
        let (plain_iops, plain_p50_us) = (without.iops(), without.percentile_us(50.0));
        println!("{snapshots:>9} {iops:>9.0} {p50_us:>9.0} {plain_iops:>11.0} {plain_p50_us:>11.0}");
        reads.push(SnapshotReads { snapshots, iops, p50_us, plain_iops, plain_p50_us });
    }
    kept.stop()?;
    plain.stop()?;
    Ok(reads)
}

fn require_space(directory: &Path, bytes: u64) -> anyhow::Result<()> {
    let space = rustix::fs::statvfs(directory).with_context(|| directory.display().to_string())?;
    let free = space.f_bavail * space.f_frsize;
    ensure!(
        free >= bytes,
        "{} has {} GiB free, and this takes {} GiB: write fewer --millions or choose another --data-dir",
        directory.display(),
        free >> 30,
        bytes >> 30
    );
    Ok(())
}

/// What the files in `directory` take on the disk. Files that go meanwhile count nothing.
fn disk_bytes(directory: &Path) -> anyhow::Result<u64> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    // POSIX leaves the unit to the system; Linux counts 512 bytes (stat(2)).
    Ok(entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum())
}
