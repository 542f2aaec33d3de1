//! What does random overwriting of a well-filled store cost: bytes written per byte of the guest's, and waiting?
//!
//! A shard with a fixed capacity holds one volume that takes up seven tenths of it and is overwritten again and again. A
//! second shard, made anew for each window and far from full, takes the same load in turn: what it needs is what the
//! load takes without cleaning. The first half of the overwriting brings the store to its steady state; the
//! second half is measured.

use std::path::Path;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use storage_node::log::{LogSettings, Traffic};

use crate::Bench;
use crate::process;
use crate::report::{Bar, Plot, print_bars};
use crate::store::{Pattern, Random, Run, Store};

const BLOCK: u64 = client_lib::BLOCK_SIZE as u64;
/// Of the capacity, in percent: what the volume takes.
const UTILISATION: u64 = 70;
/// Windows per run of overwriting, each followed by one on the empty store.
const WINDOWS: u64 = 16;
/// Most blocks per window of the empty store: beyond it would have to clean too.
const FRESH_BLOCKS: u64 = 32 << 10;

/// Options of `bench cleaning`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// How often the volume is overwritten
    #[arg(long, default_value_t = 4.0)]
    times: f64,
    /// Overwrite eight times, as the bar has it (half an hour)
    #[arg(long)]
    full: bool,
    /// Capacity of the store in mebibytes
    #[arg(long, default_value_t = 2048)]
    capacity: u64,
    /// Size of a segment in mebibytes
    #[arg(long, default_value_t = 8)]
    segment: u64,
    /// Writes under way at once
    #[arg(long, default_value_t = 32)]
    depth: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { times: 4.0, full: false, capacity: 2048, segment: 8, depth: 32 }
    }
}

/// What one load came to.
#[derive(Debug, Serialize)]
struct Figures {
    load: &'static str,
    write_amplification: f64,
    /// Shares of it, per byte of the guest's.
    data: f64,
    headers: f64,
    copies: f64,
    copy_headers: f64,
    prepared: f64,
    map: f64,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    empty_iops: f64,
    empty_p50_us: f64,
    empty_p99_us: f64,
    refused: u64,
    cpu_us_per_op: f64,
    empty_cpu_us_per_op: f64,
    /// How often the volume was overwritten so far; amplification and percentiles of each window.
    windows: Vec<Window>,
}

#[derive(Debug, Serialize)]
struct Window {
    overwritten: f64,
    amplification: f64,
    p99_us: f64,
    empty_p99_us: f64,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let output = bench.output;
    let mut all = Vec::new();
    let mut bars = Vec::new();
    for (load, pattern, limit) in [("uniform", Pattern::Uniform, 2.0), ("90/10", Pattern::HotCold, 1.5)] {
        let figures = measure(options, bench.root, load, pattern)?;
        print(&figures);
        bars.extend([
            Bar::at_most(format!("{load}: bytes written per byte"), figures.write_amplification, limit),
            Bar::at_most(
                format!("{load}: p99 over that of an empty store"),
                figures.p99_us / figures.empty_p99_us,
                2.0,
            ),
            Bar::at_most(format!("{load}: writes refused for want of space"), figures.refused as f64, 0.0),
        ]);
        all.push(figures);
    }
    print_bars(&bars);
    output.json("cleaning", &(&all, &bars))?;
    let curves = |of: fn(&Window) -> f64, name: &str| -> Vec<(String, Vec<(f64, f64)>)> {
        let curve = |figures: &Figures| figures.windows.iter().map(|window| (window.overwritten, of(window))).collect();
        all.iter().map(|figures| (format!("{}{name}", figures.load), curve(figures))).collect()
    };
    let x = "times overwritten";
    let written = Plot {
        title: "Bytes written per byte at 70 % utilisation",
        x,
        y: "bytes per byte",
        curves: curves(|window| window.amplification, ""),
    };
    output.plot("cleaning-amplification", &written)?;
    let mut latencies = curves(|window| window.p99_us / 1000.0, "");
    latencies.extend(curves(|window| window.empty_p99_us / 1000.0, ", empty store"));
    let waited = Plot { title: "p99 of random 4 KiB writes while cleaning", x, y: "milliseconds", curves: latencies };
    output.plot("cleaning-latency", &waited)
}

fn measure(options: &Options, root: &Path, load: &'static str, pattern: Pattern) -> anyhow::Result<Figures> {
    let capacity = options.capacity << 20;
    let size = capacity * UTILISATION / 100 / BLOCK * BLOCK;
    ensure!(options.times > 0.0 && options.depth > 0, "there must be something to do");
    let times = if options.full { 8.0 } else { options.times };
    let settings =
        |capacity_bytes| LogSettings { segment_bytes: options.segment << 20, capacity_bytes, ..LogSettings::default() };
    let directory = tempfile::tempdir_in(root)?;
    let store = Store::start(&directory.path().join("full"), size, settings(Some(capacity)))?;
    store.fill()?;
    let window_blocks = ((size / BLOCK) as f64 * times / WINDOWS as f64).ceil() as u64;
    let mut random = Random::new(1);
    let (mut total, mut fresh_total) = (Run::new(), Run::new());
    let (mut traffic, mut device, mut cpu, mut fresh_cpu) = (Traffic::default(), 0, 0.0, 0.0);
    let mut windows = Vec::new();
    for window in 1..=WINDOWS {
        let before = (store.traffic()?, process::written_bytes("self")?, process::cpu_seconds("self")?);
        let run = store.write(window_blocks, options.depth, pattern, &mut random)?;
        let after = (store.traffic()?, process::written_bytes("self")?, process::cpu_seconds("self")?);
        let written = after.1 - before.1;
        let fresh_directory = tempfile::tempdir_in(root)?;
        let fresh = Store::start(&fresh_directory.path().join("empty"), size, settings(None))?;
        let fresh_before = process::cpu_seconds("self")?;
        let fresh_run = fresh.write(window_blocks.min(FRESH_BLOCKS), options.depth, pattern, &mut random)?;
        let fresh_after = process::cpu_seconds("self")?;
        fresh.stop()?;
        windows.push(Window {
            overwritten: window as f64 * times / WINDOWS as f64,
            amplification: written as f64 / (run.operations * BLOCK) as f64,
            p99_us: run.percentile_us(99.0),
            empty_p99_us: fresh_run.percentile_us(99.0),
        });
        if window * 2 > WINDOWS {
            total.add(&run)?;
            fresh_total.add(&fresh_run)?;
            traffic = sum(traffic, difference(after.0, before.0));
            device += written;
            cpu += after.2 - before.2;
            fresh_cpu += fresh_after - fresh_before;
        }
    }
    store.stop()?;
    let guest = total.operations as f64;
    let share = |blocks: u64| blocks as f64 / guest;
    let Traffic { data, headers, copies, copy_headers, prepared } = traffic;
    let log = data + headers + copies + copy_headers + prepared;
    let amplification = device as f64 / (guest * BLOCK as f64);
    Ok(Figures {
        load,
        write_amplification: amplification,
        data: share(data),
        headers: share(headers),
        copies: share(copies),
        copy_headers: share(copy_headers),
        prepared: share(prepared),
        map: amplification - share(log),
        iops: total.iops(),
        p50_us: total.percentile_us(50.0),
        p99_us: total.percentile_us(99.0),
        empty_iops: fresh_total.iops(),
        empty_p50_us: fresh_total.percentile_us(50.0),
        empty_p99_us: fresh_total.percentile_us(99.0),
        refused: total.refused,
        cpu_us_per_op: cpu * 1e6 / guest,
        empty_cpu_us_per_op: fresh_cpu * 1e6 / fresh_total.operations as f64,
        windows,
    })
}

fn difference(after: Traffic, before: Traffic) -> Traffic {
    Traffic {
        data: after.data - before.data,
        headers: after.headers - before.headers,
        copies: after.copies - before.copies,
        copy_headers: after.copy_headers - before.copy_headers,
        prepared: after.prepared - before.prepared,
    }
}

fn sum(one: Traffic, other: Traffic) -> Traffic {
    Traffic {
        data: one.data + other.data,
        headers: one.headers + other.headers,
        copies: one.copies + other.copies,
        copy_headers: one.copy_headers + other.copy_headers,
        prepared: one.prepared + other.prepared,
    }
}

fn print(figures: &Figures) {
    println!("\n{} overwrite at {UTILISATION} % utilisation", figures.load);
    println!(
        "  bytes written per byte {:>6.2} = data {:.2} + headers {:.2} + copies {:.2} + their headers {:.2} + new segments {:.2} + map {:.2}",
        figures.write_amplification,
        figures.data,
        figures.headers,
        figures.copies,
        figures.copy_headers,
        figures.prepared,
        figures.map
    );
    println!("  {:<12} {:>9} {:>9} {:>9} {:>10}", "", "IOPS", "p50 us", "p99 us", "CPU us/op");
    for (name, iops, p50, p99, cpu) in [
        ("cleaning", figures.iops, figures.p50_us, figures.p99_us, figures.cpu_us_per_op),
        ("empty store", figures.empty_iops, figures.empty_p50_us, figures.empty_p99_us, figures.empty_cpu_us_per_op),
    ] {
        println!("  {name:<12} {iops:>9.0} {p50:>9.0} {p99:>9.0} {cpu:>10.1}");
    }
}
