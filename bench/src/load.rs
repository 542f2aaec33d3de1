//! The load: fio's JSON read into figures, against an NBD server or a file.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::process::Process;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// What the table calls it.
    pub(crate) name: &'static str,
    pub(crate) is_read: bool,
    pub(crate) is_random: bool,
    /// Bytes per operation.
    pub(crate) bytes: u32,
    /// Operations under way at once.
    pub(crate) depth: u32,
    /// Writes after which a FLUSH follows; 0 is none.
    pub(crate) flush_every: u32,
}

/// What one measurement came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    /// Of an operation; with a FLUSH after each, of both together.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of the server; none for a file, which has none.
    pub(crate) cpu_us_per_op: Option<f64>,
}

impl Figures {
    /// The median of each figure by itself.
    pub(crate) fn median(all: &[Figures]) -> Option<Figures> {
        let median = |values: Vec<f64>| {
            let mut values = values;
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let of = |figure: fn(&Figures) -> f64| median(all.iter().map(figure).collect());
        Some(Figures {
            iops: of(|figures| figures.iops)?,
            p50_us: of(|figures| figures.p50_us)?,
            p99_us: of(|figures| figures.p99_us)?,
            cpu_us_per_op: median(all.iter().filter_map(|figures| figures.cpu_us_per_op).collect()),
        })
    }
}

/// What is loaded.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// An NBD server.
    Nbd(String),
    /// A file, around the page cache.
    File(PathBuf),
}

/// How long, and over how much.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// For some seconds over so many bytes.
    Seconds(u32, u64),
    /// So many operations over so many bytes; the seed makes them others than before.
    Operations(u64, u64, u64),
}

/// The median of each of `loaded`, which are measured in turn, round by round, so that a machine that grows slower slows all of them.
pub(crate) fn in_turns<T>(
    rounds: usize,
    loaded: &[T],
    measure: impl Fn(&T) -> anyhow::Result<Figures>,
) -> anyhow::Result<Vec<Figures>> {
    let mut all: Vec<Vec<Figures>> = loaded.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (one, figures) in loaded.iter().zip(&mut all) {
            figures.push(measure(one)?);
        }
    }
    all.iter().map(|figures| Figures::median(figures).context("no rounds were asked for")).collect()
}

/// A table of workloads, their depths, what was loaded (`heading`), and what came of it.
pub(crate) fn print(heading: &str, rows: impl IntoIterator<Item = (&'static str, u32, &'static str, Figures)>) {
    println!("{:<15} {:>3} {heading:<14} {:>9} {:>9} {:>9} {:>9}", "", "QD", "IOPS", "p50 us", "p99 us", "CPU us/op");
    for (workload, depth, name, Figures { iops, p50_us, p99_us, cpu_us_per_op }) in rows {
        let cpu = cpu_us_per_op.unwrap_or_default();
        println!("{workload:<15} {depth:>3} {name:<14} {iops:>9.0} {p50_us:>9.1} {p99_us:>9.1} {cpu:>9.1}");
    }
}

/// Writes the first `size` bytes once, so that reads find data.
pub(crate) fn fill(target: &Target, size: u64) -> anyhow::Result<()> {
    fio(target, &["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1", &format!("--size={size}")]).map(drop)
}

/// Goes on writing at random places of the first `size` bytes, so many in a second, until what is returned is dropped.
pub(crate) fn write_on(target: &Target, size: u64, bytes_per_second: u64) -> anyhow::Result<Process> {
    let (size, rate) = (format!("--size={size}"), format!("--rate={bytes_per_second}"));
    let mut command = command(
        target,
        &["--rw=randwrite", "--bs=4k", "--norandommap", "--time_based", "--runtime=86400", &size, &rate],
    );
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Process(child.context("fio cannot be started; `make tools` installs it")?))
}

/// Loads `target`; `cpu_seconds` tells what its server has used so far.
pub(crate) fn measure(
    target: &Target,
    workload: &Workload,
    extent: Extent,
    cpu_seconds: impl Fn() -> anyhow::Result<Option<f64>>,
) -> anyhow::Result<Figures> {
    let before = cpu_seconds()?;
    let kind = match (workload.is_read, workload.is_random) {
        (true, true) => "randread",
        (true, false) => "read",
        (false, true) => "randwrite",
        (false, false) => "write",
    };
    let mut arguments =
        vec![format!("--rw={kind}"), format!("--bs={}", workload.bytes), format!("--iodepth={}", workload.depth)];
    if workload.is_random {
        arguments.push("--norandommap".to_owned());
    }
    match extent {
        Extent::Seconds(seconds, size) => {
            arguments.extend([format!("--runtime={seconds}"), format!("--size={size}"), "--time_based".to_owned()]);
        }
        Extent::Operations(count, size, seed) => {
            let bytes = count * u64::from(workload.bytes);
            arguments.extend([format!("--io_size={bytes}"), format!("--size={size}"), format!("--randseed={seed}")]);
            arguments.push("--random_generator=tausworthe64".to_owned());
        }
    }
    if workload.flush_every > 0 {
        arguments.push(format!("--fsync={}", workload.flush_every));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = fio(target, &arguments)?;
    let job = &result["jobs"][0];
    let side = &job[if workload.is_read { "read" } else { "write" }];
    let operations = side["total_ios"].as_f64().context("fio tells no operations")?;
    ensure!(operations > 0.0, "{target:?} did nothing");
    let percentile = |of: &Value, which: &str| {
        let micros = of["percentile"][which].as_f64().map(|nanos| nanos / 1000.0);
        micros.with_context(|| format!("fio tells no {which} percentile"))
    };
    let latency = |which: &str| {
        let flush = if workload.flush_every == 1 { percentile(&job["sync"]["lat_ns"], which)? } else { 0.0 };
        Ok::<f64, anyhow::Error>(percentile(&side["clat_ns"], which)? + flush)
    };
    let used = cpu_seconds()?.zip(before).map(|(after, before)| after - before);
    Ok(Figures {
        iops: side["iops"].as_f64().context("fio tells no IOPS")?,
        p50_us: latency("50.000000")?,
        p99_us: latency("99.000000")?,
        cpu_us_per_op: used.map(|seconds| seconds * 1e6 / operations),
    })
}

fn command(target: &Target, arguments: &[&str]) -> Command {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--thread", "--output-format=json"]).args(arguments);
    match target {
        Target::Nbd(uri) => command.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
        Target::File(path) => {
            command.args(["--ioengine=libaio", "--direct=1"]).arg(format!("--filename={}", path.display()))
        }
    };
    command
}

fn fio(target: &Target, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = command(target, arguments).output().context("fio cannot be started; `make tools` installs it")?;
    ensure!(
        output.status.success(),
        "fio failed on {target:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // fio's nbd engine prints a line of its own in front of the JSON.
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').context("fio printed no JSON")?;
    serde_json::from_str(&text[start..]).context("fio's JSON cannot be read")
}
