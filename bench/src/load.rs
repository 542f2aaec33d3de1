//! The load: fio's nbd engine, its JSON read into figures.

use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::server::Server;

/// What is measured.
pub(crate) struct Workload {
    /// What the table calls it.
    pub(crate) name: &'static str,
    rw: &'static str,
    /// A FLUSH after each write.
    flush: bool,
}

/// Reads, writes, and writes that are each flushed.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "read", rw: "randread", flush: false },
    Workload { name: "write", rw: "randwrite", flush: false },
    Workload { name: "write+flush", rw: "randwrite", flush: true },
];

/// What one measurement came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_us_per_op: f64,
}

impl Figures {
    /// The median of each figure by itself.
    pub(crate) fn median(all: Vec<Figures>) -> Option<Figures> {
        let median = |figure: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = all.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Figures {
            iops: median(|figures| figures.iops)?,
            p50_us: median(|figures| figures.p50_us)?,
            p99_us: median(|figures| figures.p99_us)?,
            cpu_us_per_op: median(|figures| figures.cpu_us_per_op)?,
        })
    }
}

/// Writes the whole disk once, so that reads find data.
pub(crate) fn fill(server: &Server, size: u64) -> anyhow::Result<()> {
    fio(server, &["--rw=write", "--bs=1M", "--iodepth=4", &format!("--size={size}")]).map(drop)
}

/// Loads `server` for some seconds.
pub(crate) fn measure(
    server: &Server,
    workload: &Workload,
    depth: u32,
    seconds: u32,
    size: u64,
) -> anyhow::Result<Figures> {
    let before = server.cpu_seconds()?;
    let depth = format!("--iodepth={depth}");
    let (seconds, size) = (format!("--runtime={seconds}"), format!("--size={size}"));
    let rw = format!("--rw={}", workload.rw);
    let mut arguments = vec![rw.as_str(), "--bs=4k", "--time_based", "--norandommap", &depth, &seconds, &size];
    if workload.flush {
        arguments.push("--fsync=1");
    }
    let result = fio(server, &arguments)?;
    let side = &result["jobs"][0][if workload.rw == "randread" { "read" } else { "write" }];
    let operations = side["total_ios"].as_f64().context("fio tells no operations")?;
    ensure!(operations > 0.0, "{} did nothing", server.name);
    let percentile = |which: &str| {
        let micros = side["clat_ns"]["percentile"][which].as_f64().map(|nanos| nanos / 1000.0);
        micros.with_context(|| format!("fio tells no {which} percentile"))
    };
    Ok(Figures {
        iops: side["iops"].as_f64().context("fio tells no IOPS")?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        cpu_us_per_op: (server.cpu_seconds()? - before) * 1e6 / operations,
    })
}

fn fio(server: &Server, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--thread", "--output-format=json"])
        .arg(format!("--uri={}", server.uri))
        .args(arguments)
        .output()
        .context("fio cannot be started; `make tools` installs it")?;
    ensure!(
        output.status.success(),
        "fio failed on {}: {}{}",
        server.name,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // fio's nbd engine prints a line of its own in front of the JSON.
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').context("fio printed no JSON")?;
    serde_json::from_str(&text[start..]).context("fio's JSON cannot be read")
}
