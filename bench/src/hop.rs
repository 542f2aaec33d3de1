//! What does a disk cost that outlives its node? The same volume through the node's own NBD and through `helio-nbd --node`, which
//! is a process more on the way of every request. What such a process costs at the least is measured beside them, with a [`relay`](crate::relay)
//! before the node's socket: it hands bytes on, and could not follow a volume anywhere.
//!
//! All are loaded in turn, round by round; figures are medians over the rounds. The CPU of each is that of all processes on its way.

use clap::Args;
use serde::Serialize;

use crate::Bench;
use crate::load::{self, Extent, Figures, Workload};
use crate::process;
use crate::report::{Bar, print_bars};
use crate::server::Server;

const fn small(name: &'static str, is_read: bool, depth: u32, flush_every: u32) -> Workload {
    Workload { name, is_read, is_random: true, bytes: 4 << 10, depth, flush_every }
}

const WORKLOADS: [Workload; 5] = [
    small("4k read", true, 1, 0),
    small("4k write", false, 1, 0),
    small("4k write+FLUSH", false, 1, 1),
    small("4k read", true, 32, 0),
    small("4k write", false, 32, 0),
];

/// What the way through `helio-nbd` may take longer, in the middle, one request at a time, in microseconds.
const LONGER_US_MAX: f64 = 30.0;
/// The same, beyond what a relay takes: it asks and answers in words of its own, and keeps what was not flushed.
const OVER_RELAY_US_MAX: f64 = 10.0;
/// How much more CPU an operation may take.
const CPU_RATIO_MAX: f64 = 2.0;

/// Options of `bench hop`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Seconds per measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Measurements of each kind, interleaved between all
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the disk in mebibytes
    #[arg(long, default_value_t = 256)]
    size: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { seconds: 3, rounds: 5, size: 256 }
    }
}

/// One workload, all ways.
#[derive(Debug, Serialize)]
struct Row {
    workload: &'static str,
    depth: u32,
    node: Figures,
    relay: Figures,
    helio_nbd: Figures,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let size = options.size << 20;
    let root = tempfile::tempdir_in(bench.root)?;
    let node = Server::helio(root.path(), size, bench.helio)?;
    let beside = Server::helio_nbd(root.path(), &node, bench.helio)?;
    let relay = Server::relay(root.path(), &node)?;
    load::fill(&node.target(), size)?;
    let extent = Extent::Seconds(options.seconds, size);
    // What is loaded, and whose CPU counts.
    let ways: [(&Server, &[&Server]); 3] =
        [(&node, &[&node]), (&relay, &[&node, &relay]), (&beside, &[&node, &beside])];
    let mut rows = Vec::new();
    for workload in &WORKLOADS {
        let figures = load::in_turns(options.rounds, &ways, |(server, uses)| {
            let cpu = || uses.iter().map(|server| process::cpu_seconds(&server.id())).sum::<anyhow::Result<f64>>();
            load::measure(&server.target(), workload, extent, || cpu().map(Some))
        })?;
        let (node, relay, helio_nbd) = (figures[0], figures[1], figures[2]);
        rows.push(Row { workload: workload.name, depth: workload.depth, node, relay, helio_nbd });
    }
    let ways = |row: &Row| {
        [("node", row.node), ("relay", row.relay), ("helio-nbd", row.helio_nbd)]
            .map(|(name, figures)| (row.workload, row.depth, name, figures))
    };
    load::print("through", rows.iter().flat_map(ways));
    let bars = bars(&rows);
    print_bars(&bars);
    bench.output.json("hop", &(&rows, &bars))
}

fn bars(rows: &[Row]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for Row { workload, depth, node, relay, helio_nbd } in rows {
        if *depth == 1 {
            let longer = helio_nbd.p50_us - node.p50_us;
            bars.push(Bar::at_most(format!("{workload} QD1: us longer, p50"), longer, LONGER_US_MAX));
            let longer = helio_nbd.p50_us - relay.p50_us;
            bars.push(Bar::at_most(format!("{workload} QD1: us longer than a relay, p50"), longer, OVER_RELAY_US_MAX));
        }
        let ratio = helio_nbd.cpu_us_per_op.zip(node.cpu_us_per_op).map_or(f64::NAN, |(more, less)| more / less);
        bars.push(Bar::at_most(
            format!("{workload} QD{depth}: CPU per operation over the node's"),
            ratio,
            CPU_RATIO_MAX,
        ));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_are_what_the_hop_adds() {
        let figures = |p50_us, cpu| Figures { iops: 1.0, p50_us, p99_us: 0.0, cpu_us_per_op: Some(cpu) };
        let row = |depth, node, relay, helio_nbd| Row { workload: "4k read", depth, node, relay, helio_nbd };
        let rows = [
            row(1, figures(50.0, 10.0), figures(75.0, 15.0), figures(81.0, 20.0)),
            row(32, figures(1.0, 4.0), figures(8.0, 8.0), figures(9.0, 9.0)),
        ];
        let bars = serde_json::to_value(bars(&rows)).expect("is plain data");
        let measured: Vec<f64> = (0..4).map(|at| bars[at]["measured"].as_f64().expect("a number")).collect();
        let met: Vec<bool> = (0..4).map(|at| bars[at]["met"].as_bool().expect("a mark")).collect();
        assert_eq!((measured, met), (vec![31.0, 6.0, 2.0, 2.25], vec![false, true, true, false]));
    }
}
