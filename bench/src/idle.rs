//! What do volumes cost that nobody uses? A cluster of three nodes in one process, with more and more idle volumes of one owner: CPU and
//! memory per node while nothing happens, and what one volume in use costs beside them.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::Bench;
use crate::load::{self, Extent, Figures, Workload};
use crate::process;
use crate::report::{Bar, print_bars};
use crate::server::Server;

/// Of which size the volumes are; none of it is written.
const VOLUME_BYTES: u64 = 1 << 30;
/// Nodes in the process.
const NODES: f64 = 3.0;
/// How long the cluster is left alone before it is measured: whatever follows a new volume is over then.
const SETTLE: Duration = Duration::from_secs(20);

const WRITES: Workload =
    Workload { name: "4k write", is_read: false, is_random: true, bytes: 4 << 10, depth: 1, flush_every: 0 };

/// Share of a core that a node may use for them, in percent.
const CPU_PERCENT_MAX: f64 = 1.0;
/// Memory of a node, in mebibytes.
const MEMORY_MIB_MAX: f64 = 64.0;
/// How much longer a write may take, in the middle.
const P50_RATIO_MAX: f64 = 1.1;

/// Options of `bench idle`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Idle volumes
    #[arg(long, default_value_t = 1000)]
    volumes: usize,
    /// Seconds per measurement
    #[arg(long, default_value_t = 20)]
    seconds: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { volumes: 1000, seconds: 20 }
    }
}

/// The cluster with so many volumes.
#[derive(Debug, Serialize)]
struct Row {
    volumes: usize,
    /// Of a core, per node.
    cpu_percent: f64,
    /// Per node.
    memory_mib: f64,
    /// Of one volume.
    writes: Figures,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let root = tempfile::tempdir_in(bench.root)?;
    let cluster = Server::helio_bare(root.path(), bench.helio, "a,b,c")?;
    cluster.create_volume(VOLUME_BYTES)?;
    let mut rows = vec![row(1, &cluster, options)?];
    for number in 1..options.volumes {
        cluster.create_named(&format!("idle-{number}"), VOLUME_BYTES)?;
    }
    rows.push(row(options.volumes, &cluster, options)?);
    println!("{:>8} {:>12} {:>12} {:>14} {:>12}", "volumes", "CPU/node %", "MiB/node", "write p50 us", "CPU us/op");
    for row in &rows {
        println!(
            "{:>8} {:>12.2} {:>12.1} {:>14.1} {:>12.1}",
            row.volumes,
            row.cpu_percent,
            row.memory_mib,
            row.writes.p50_us,
            row.writes.cpu_us_per_op.unwrap_or_default()
        );
    }
    let bars = bars(&rows);
    print_bars(&bars);
    bench.output.json("idle", &(&rows, &bars))
}

fn row(volumes: usize, cluster: &Server, options: &Options) -> anyhow::Result<Row> {
    std::thread::sleep(SETTLE);
    let id = cluster.id();
    let before = process::cpu_seconds(&id)?;
    std::thread::sleep(Duration::from_secs(options.seconds.into()));
    let cpu_percent = (process::cpu_seconds(&id)? - before) / f64::from(options.seconds) / NODES * 100.0;
    let memory_mib = process::resident_bytes(&id, false)? as f64 / NODES / f64::from(1 << 20);
    let extent = Extent::Seconds(options.seconds, VOLUME_BYTES);
    let writes = load::measure(&cluster.target(), &WRITES, extent, || process::cpu_seconds(&id).map(Some))?;
    Ok(Row { volumes, cpu_percent, memory_mib, writes })
}

fn bars(rows: &[Row]) -> Vec<Bar> {
    let [one, many] = rows else { return Vec::new() };
    vec![
        Bar::at_most(
            format!("{} volumes: CPU of a node, % of a core", many.volumes),
            many.cpu_percent,
            CPU_PERCENT_MAX,
        ),
        Bar::at_most(format!("{} volumes: memory of a node, MiB", many.volumes), many.memory_mib, MEMORY_MIB_MAX),
        Bar::at_most(
            "p50 of a write beside them, over that alone",
            many.writes.p50_us / one.writes.p50_us,
            P50_RATIO_MAX,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_compare_many_volumes_with_one() {
        let writes = |p50_us| Figures { iops: 1.0, p50_us, p99_us: 1.0, cpu_us_per_op: None };
        let row = |volumes, p50_us| Row { volumes, cpu_percent: 0.5, memory_mib: 70.0, writes: writes(p50_us) };
        let met = |rows: &[Row]| serde_json::to_value(bars(rows)).expect("is plain data");
        let told = met(&[row(1, 100.0), row(1000, 105.0)]);
        let marks: Vec<bool> = told.as_array().expect("a list").iter().map(|bar| bar["met"] == true).collect();
        assert_eq!(marks, [true, false, true]);
    }
}
