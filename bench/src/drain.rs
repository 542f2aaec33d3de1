//! Does `helio node drain` say when it will be over? A cluster of two providers with a narrow link between them, volumes of which much is still to be sent:
//! what `--dry-run` predicts of the whole, over how long it then takes.
//!
//! The volumes are written while the link is closed to what is sent in the background, so that all of it is to go when it is opened.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::Bench;
use crate::load;
use crate::report::{Bar, print_bars};
use crate::server::Server;

/// How long data goes over the link before anybody asks how long it will.
const SETTLE: Duration = Duration::from_secs(3);
/// What is predicted may be off by so much of what it takes.
const OFF_MAX: f64 = 0.2;
/// Of the link, what a guest writes meanwhile.
const WRITTEN_SHARE: f64 = 0.2;

/// Options of `bench drain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Data of all volumes, in MiB
    #[arg(long, default_value_t = 192)]
    mib: u64,
    /// What the link carries, in Mbit/s
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Its round trip, in milliseconds
    #[arg(long, default_value_t = 20)]
    rtt: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { mib: 192, rate: 100, rtt: 20 }
    }
}

/// A node that is drained.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    volumes: usize,
    /// Whether a guest goes on writing one of them.
    is_written: bool,
}

const CASES: [Case; 3] = [
    Case { name: "one volume", volumes: 1, is_written: false },
    Case { name: "three volumes", volumes: 3, is_written: false },
    Case { name: "three, one of them written", volumes: 3, is_written: true },
];

/// What came of it.
#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    to_send_mib: f64,
    predicted_seconds: f64,
    took_seconds: f64,
}

impl Row {
    /// By what share of what it took the prediction was off.
    fn off(&self) -> f64 {
        (self.predicted_seconds / self.took_seconds - 1.0).abs()
    }
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let rows: Vec<Row> = CASES.iter().map(|case| row(case, options, bench)).collect::<anyhow::Result<_>>()?;
    println!("{:<28} {:>12} {:>12} {:>9} {:>6}", "drain", "to send MiB", "predicted s", "took s", "ratio");
    for row in &rows {
        let ratio = row.predicted_seconds / row.took_seconds;
        println!(
            "{:<28} {:>12.1} {:>12.1} {:>9.1} {ratio:>6.2}",
            row.case, row.to_send_mib, row.predicted_seconds, row.took_seconds
        );
    }
    let bars = bars(&rows);
    print_bars(&bars);
    bench.output.json("drain", &(&rows, &bars))
}

fn row(case: &Case, options: &Options, bench: &Bench<'_>) -> anyhow::Result<Row> {
    let root = tempfile::tempdir_in(bench.root)?;
    let (rate, rtt) = (options.rate.to_string(), options.rtt.to_string());
    let cluster = Server::helio_with(root.path(), bench.helio, "a,b", &["--rate", &rate, "--rtt", &rtt])?;
    let size = (options.mib << 20) / case.volumes as u64;
    cluster.run(&["link", "set", "a", "b", "--rate", "0"])?;
    for number in 0..case.volumes {
        let name = format!("disk-{number}");
        cluster.create_named(&name, size)?;
        load::fill(&cluster.target_of(&name), size)?;
    }
    cluster.run(&["link", "set", "a", "b", "--rate", "unlimited"])?;
    let bytes_per_second = (options.rate * 1_000_000 / 8) as f64 * WRITTEN_SHARE;
    let target = cluster.target_of("disk-0");
    let _writer = case.is_written.then(|| load::write_on(&target, size, bytes_per_second as u64)).transpose()?;
    std::thread::sleep(SETTLE);
    let plan: Value = serde_json::from_str(&cluster.run(&["node", "drain", "a", "--dry-run", "--json"])?)?;
    let began = Instant::now();
    let steps = plan.as_array().context("a plan is a list")?;
    let to_send: u64 = steps.iter().filter_map(|step| step["to_send_bytes"].as_u64()).sum();
    let predicted = steps.last().and_then(|step| step["finish_seconds"].as_f64());
    cluster.run(&["node", "drain", "a"])?;
    let took_seconds = began.elapsed().as_secs_f64();
    let predicted_seconds = predicted.with_context(|| format!("no end is predicted: {plan:#}"))?;
    ensure!(predicted_seconds > 0.0, "all was there already: give it more to do (--mib)");
    let to_send_mib = to_send as f64 / f64::from(1 << 20);
    Ok(Row { case: case.name, to_send_mib, predicted_seconds, took_seconds })
}

fn bars(rows: &[Row]) -> Vec<Bar> {
    let bar = |row: &Row| Bar::at_most(format!("{}: the prediction is off by", row.case), row.off(), OFF_MAX);
    rows.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_early_and_too_late_are_both_off() {
        let row = |predicted_seconds| Row { case: "x", to_send_mib: 1.0, predicted_seconds, took_seconds: 10.0 };
        let told = serde_json::to_value(bars(&[row(8.1), row(11.9), row(7.0), row(13.0)])).expect("is plain data");
        let marks: Vec<bool> = told.as_array().expect("a list").iter().map(|bar| bar["met"] == true).collect();
        assert_eq!(marks, [true, true, false, false]);
    }
}
