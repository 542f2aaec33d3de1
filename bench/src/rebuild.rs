//! What do guests wait for while a replica is rebuilt? A cluster of three nodes in one process, a volume with data that one of them has
//! no copy of: a guest's reads and writes by themselves, then while that node is sent everything, and how long that takes beside them and without
//! them.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use client_lib::wire::admin::{ReplicaStatus, VolumeStatus};
use serde::Serialize;

use crate::Bench;
use crate::load::{self, Extent, Figures, Workload};
use crate::process;
use crate::report::{Bar, print_bars};
use crate::server::{Server, VOLUME};

/// One at a time: what more would queue is not the rebuild's.
const WORKLOADS: [Workload; 2] = [
    Workload { name: "4k read", is_read: true, is_random: true, bytes: 4 << 10, depth: 1, flush_every: 0 },
    Workload { name: "4k write", is_read: false, is_random: true, bytes: 4 << 10, depth: 1, flush_every: 0 },
];
/// The node that is rebuilt.
const REPLICA: &str = "b";
/// Pause between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// How long a rebuild goes on before it is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a rebuild may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How much longer guests may wait, in the hundredth that waits longest.
const P99_RATIO_MAX: f64 = 1.5;

/// Options of `bench rebuild`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Data of the volume, in GiB
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// Seconds per measurement
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { gib: 4, seconds: 10 }
    }
}

/// What guests do.
#[derive(Debug, Serialize)]
struct Row {
    workload: &'static str,
    alone: Figures,
    beside: Figures,
    /// Bytes per second of the rebuild meanwhile.
    rebuilt_per_second: f64,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let root = tempfile::tempdir_in(bench.root)?;
    let size = options.gib << 30;
    let cluster = Server::helio_bare(root.path(), bench.helio, "a,b,c")?;
    cluster.create_volume(size)?;
    cluster.run(&["volume", "replica", "remove", VOLUME, REPLICA])?;
    load::fill(&cluster.target(), size)?;
    wait(&cluster)?;
    let free = size as f64 / rebuild(&cluster)?.as_secs_f64();
    let rows = WORKLOADS.iter().map(|workload| row(workload, &cluster, size, options.seconds));
    let rows: Vec<Row> = rows.collect::<anyhow::Result<_>>()?;
    load::print(
        "rebuild",
        rows.iter().flat_map(|row| [(row.workload, 1, "none", row.alone), (row.workload, 1, "beside", row.beside)]),
    );
    for row in &rows {
        println!(
            "{}: {:.0} MiB/s rebuilt beside it, {:.0} without guests",
            row.workload,
            mebi(row.rebuilt_per_second),
            mebi(free)
        );
    }
    let bars = bars(&rows);
    print_bars(&bars);
    bench.output.json("rebuild", &(&rows, free, &bars))
}

/// What the owner says of its replicas.
fn replicas(cluster: &Server) -> anyhow::Result<Vec<ReplicaStatus>> {
    let status: VolumeStatus = serde_json::from_str(&cluster.run(&["volume", "status", VOLUME, "--json"])?)?;
    Ok(status.replicas)
}

/// What they lack together, in bytes. It is one of them that is rebuilt, and the other one has what there is.
fn to_come(cluster: &Server) -> anyhow::Result<u64> {
    Ok(replicas(cluster)?.iter().map(|replica| replica.bytes_behind).sum())
}

/// Waits until every replica has everything.
fn wait(cluster: &Server) -> anyhow::Result<()> {
    let begun = Instant::now();
    while replicas(cluster)?.iter().any(|replica| replica.is_joining || replica.bytes_behind > 0) {
        ensure!(begun.elapsed() < PATIENCE, "the replicas do not get everything");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// How long it takes without guests.
fn rebuild(cluster: &Server) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    cluster.run(&["volume", "replica", "add", VOLUME, REPLICA])?;
    wait(cluster)?;
    let took = begun.elapsed();
    cluster.run(&["volume", "replica", "remove", VOLUME, REPLICA])?;
    Ok(took)
}

fn bars(rows: &[Row]) -> Vec<Bar> {
    let bar = |row: &Row| {
        let name = format!("{}: p99 beside a rebuild, over that alone", row.workload);
        Bar::at_most(name, row.beside.p99_us / row.alone.p99_us, P99_RATIO_MAX)
    };
    rows.iter().map(bar).collect()
}

fn mebi(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn row(workload: &Workload, cluster: &Server, size: u64, seconds: u32) -> anyhow::Result<Row> {
    let id = cluster.id();
    let measure = || {
        load::measure(&cluster.target(), workload, Extent::Seconds(seconds, size), || {
            process::cpu_seconds(&id).map(Some)
        })
    };
    let alone = measure()?;
    cluster.run(&["volume", "replica", "add", VOLUME, REPLICA])?;
    // It begins with a look at who is there, and with how large the first part is.
    std::thread::sleep(SETTLE);
    let (begun, before) = (Instant::now(), to_come(cluster)?);
    let beside = measure()?;
    let left = to_come(cluster)?;
    ensure!(left > 0, "the rebuild was over before the guests were: give it more to do (--gib)");
    let rebuilt_per_second = before.saturating_sub(left) as f64 / begun.elapsed().as_secs_f64();
    cluster.run(&["volume", "replica", "remove", VOLUME, REPLICA])?;
    Ok(Row { workload: workload.name, alone, beside, rebuilt_per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_are_on_the_slowest_hundredth() {
        let figures = |p99_us| Figures { iops: 1.0, p50_us: 1.0, p99_us, cpu_us_per_op: None };
        let row = |p99_us| Row {
            workload: "4k read",
            alone: figures(100.0),
            beside: figures(p99_us),
            rebuilt_per_second: 1.0,
        };
        let told = serde_json::to_value(bars(&[row(149.0), row(151.0)])).expect("is plain data");
        let marks: Vec<bool> = told.as_array().expect("a list").iter().map(|bar| bar["met"] == true).collect();
        assert_eq!(marks, [true, false]);
    }
}
