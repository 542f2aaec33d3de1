//! How does an NBD disk of Heliotrope compare with `qemu-nbd` and `nbdkit file` on the same file system, and with the
//! file system itself? `nbdkit file` runs twice: through the page cache, as it comes, and past it, as the others do.
//!
//! The servers run side by side and are loaded by fio in turn, round by round; figures are medians over the rounds. Two
//! more rows tell where the time goes: `file` is fio on a bare file, what the disk takes; `shard` is the store in
//! this process, without NBD. The steps from one to the next are the store's share and the front end's.

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use storage_node::log::LogSettings;

use crate::Bench;
use crate::load::{self, Extent, Figures, Target, Workload};
use crate::process;
use crate::report::{Bar, print_bars};
use crate::server::Server;
use crate::store::{Random, Store};

const FLUSHED: &str = "4k write+FLUSH";
const WRITE: &str = "4k write, FLUSH/32";
const READ: &str = "4k read";
const LARGE_WRITE: &str = "1M write";
const LARGE_READ: &str = "1M read";
/// Of large requests: one fills the pipe, a few keep it full.
const LARGE_DEPTH: u32 = 4;

const WORKLOADS: [Workload; 5] = [
    Workload { name: FLUSHED, is_read: false, is_random: true, bytes: 4 << 10, depth: 1, flush_every: 1 },
    Workload { name: WRITE, is_read: false, is_random: true, bytes: 4 << 10, depth: 32, flush_every: 32 },
    Workload { name: READ, is_read: true, is_random: true, bytes: 4 << 10, depth: 32, flush_every: 0 },
    Workload {
        name: LARGE_WRITE,
        is_read: false,
        is_random: false,
        bytes: 1 << 20,
        depth: LARGE_DEPTH,
        flush_every: 0,
    },
    Workload { name: LARGE_READ, is_read: true, is_random: false, bytes: 1 << 20, depth: LARGE_DEPTH, flush_every: 0 },
];

/// Options of `bench speed`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Seconds per measurement
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Measurements of each kind, interleaved between the servers
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the disk in mebibytes
    #[arg(long, default_value_t = 1024)]
    size: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { seconds: 4, rounds: 3, size: 1024 }
    }
}

/// Something that is loaded.
struct Contender {
    name: &'static str,
    kind: Kind,
}

enum Kind {
    Server(Server),
    File(Target),
    Shard(Store),
}

impl Contender {
    fn fill(&self, size: u64) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Server(server) => load::fill(&server.target(), size),
            Kind::File(target) => load::fill(target, size),
            Kind::Shard(store) => store.fill(),
        }
    }

    fn measure(&self, workload: &Workload, seconds: u32, size: u64) -> anyhow::Result<Figures> {
        let extent = Extent::Seconds(seconds, size);
        match &self.kind {
            Kind::Server(server) => {
                load::measure(&server.target(), workload, extent, || process::cpu_seconds(&server.id()).map(Some))
            }
            Kind::File(target) => load::measure(target, workload, extent, || Ok(None)),
            Kind::Shard(store) => store.measure(workload, seconds, &mut Random::new(u64::from(seconds))),
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    workload: &'static str,
    depth: u32,
    server: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let size = options.size << 20;
    let root = tempfile::tempdir_in(bench.root)?;
    let root = root.path();
    let file = root.join("file.img");
    std::fs::File::create(&file)?.set_len(size)?;
    let contenders = [
        Contender { name: "helio", kind: Kind::Server(Server::helio(root, size, bench.helio)?) },
        Contender { name: "qemu-nbd", kind: Kind::Server(Server::qemu_nbd(root, size)?) },
        Contender { name: "nbdkit file", kind: Kind::Server(Server::nbdkit_file(root, size)?) },
        Contender { name: "nbdkit none", kind: Kind::Server(Server::nbdkit_none(root, size)?) },
        Contender {
            name: "shard",
            kind: Kind::Shard(Store::start(&root.join("shard"), size, LogSettings::default())?),
        },
        Contender { name: "file", kind: Kind::File(Target::File(file)) },
    ];
    for contender in &contenders {
        contender.fill(size).with_context(|| format!("filling {}", contender.name))?;
    }
    let mut rows = Vec::new();
    for workload in &WORKLOADS {
        let figures = load::in_turns(options.rounds, &contenders, |contender| {
            let measured = contender.measure(workload, options.seconds, size);
            measured.with_context(|| format!("{} of {}", workload.name, contender.name))
        })?;
        for (contender, figures) in contenders.iter().zip(figures) {
            rows.push(Row { workload: workload.name, depth: workload.depth, server: contender.name, figures });
        }
    }
    print(&rows);
    let bars = bars(&rows)?;
    print_bars(&bars);
    bench.output.json("speed", &(&rows, &bars))
}

/// The table; `vs file` is the share of what the bare file does.
fn print(rows: &[Row]) {
    println!(
        "{:<19} {:>3} {:<12} {:>9} {:>8} {:>9} {:>9} {:>9} {:>8}",
        "", "QD", "server", "IOPS", "MiB/s", "p50 us", "p99 us", "CPU us/op", "vs file"
    );
    for row in rows {
        let file = rows.iter().find(|other| other.workload == row.workload && other.server == "file");
        let bytes = WORKLOADS.iter().find(|workload| workload.name == row.workload).map_or(0, |it| it.bytes);
        let cpu = row.figures.cpu_us_per_op.map_or("-".to_owned(), |cpu| format!("{cpu:.1}"));
        println!(
            "{:<19} {:>3} {:<12} {:>9.0} {:>8.1} {:>9.0} {:>9.0} {:>9} {:>8.2}",
            row.workload,
            row.depth,
            row.server,
            row.figures.iops,
            row.figures.iops * f64::from(bytes) / f64::from(1 << 20),
            row.figures.p50_us,
            row.figures.p99_us,
            cpu,
            file.map_or(0.0, |file| row.figures.iops / file.figures.iops),
        );
    }
}

fn bars(rows: &[Row]) -> anyhow::Result<Vec<Bar>> {
    let of = |workload: &str, server: &str| {
        let row = rows.iter().find(|row| row.workload == workload && row.server == server);
        row.map(|row| row.figures).with_context(|| format!("no row for {workload} of {server}"))
    };
    let others = |workload: &str| Ok::<_, anyhow::Error>([of(workload, "qemu-nbd")?, of(workload, "nbdkit file")?]);
    let best_iops =
        |workload: &str| Ok::<_, anyhow::Error>(others(workload)?.map(|it| it.iops).into_iter().fold(0.0, f64::max));
    let faster = |workload: &str| Ok::<_, anyhow::Error>(of(workload, "helio")?.iops / best_iops(workload)?);
    // What was read a moment ago, and what is only to be written, is in memory with `nbdkit file`; these go to the disk.
    let faster_on_disk = |workload: &str| {
        let best = of(workload, "qemu-nbd")?.iops.max(of(workload, "nbdkit none")?.iops);
        Ok::<_, anyhow::Error>(of(workload, "helio")?.iops / best)
    };
    let cpu = |workload: &str, server: &str| of(workload, server)?.cpu_us_per_op.context("a server uses CPU");
    let quickest = others(FLUSHED)?.map(|it| it.p50_us).into_iter().fold(f64::INFINITY, f64::min);
    let cheaper = |workload: &str| Ok::<_, anyhow::Error>(cpu(workload, "helio")? / cpu(workload, "qemu-nbd")?);
    Ok(vec![
        Bar::at_most(format!("{FLUSHED} QD1: p50 over the better's"), of(FLUSHED, "helio")?.p50_us / quickest, 1.15),
        Bar::at_least(format!("{WRITE} QD32: throughput over the better's"), faster(WRITE)?, 1.5),
        Bar::at_least(format!("{LARGE_WRITE}: throughput over the better's"), faster(LARGE_WRITE)?, 0.9),
        Bar::at_least(format!("{LARGE_READ}: throughput over the better's"), faster(LARGE_READ)?, 0.9),
        Bar::at_least(
            format!("{LARGE_WRITE}: over the better's without page cache"),
            faster_on_disk(LARGE_WRITE)?,
            0.9,
        ),
        Bar::at_least(format!("{LARGE_READ}: over the better's without page cache"), faster_on_disk(LARGE_READ)?, 0.9),
        Bar::at_least(
            format!("{READ} QD32: throughput over qemu-nbd's"),
            of(READ, "helio")?.iops / of(READ, "qemu-nbd")?.iops,
            1.0,
        ),
        Bar::at_most(format!("{WRITE} QD32: CPU per operation over qemu-nbd's"), cheaper(WRITE)?, 0.5),
        Bar::at_most(format!("{READ} QD32: CPU per operation over qemu-nbd's"), cheaper(READ)?, 0.5),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_compares_with_what_the_issue_names() {
        let row = |workload, server, iops, p50_us, cpu| Row {
            workload,
            depth: 1,
            server,
            figures: Figures { iops, p50_us, p99_us: 0.0, cpu_us_per_op: Some(cpu) },
        };
        let mut rows = Vec::new();
        for workload in WORKLOADS {
            rows.push(row(workload.name, "helio", 90.0, 110.0, 10.0));
            rows.push(row(workload.name, "qemu-nbd", 60.0, 100.0, 20.0));
            rows.push(row(workload.name, "nbdkit none", 75.0, 300.0, 5.0));
            rows.push(row(workload.name, "nbdkit file", 100.0, 200.0, 5.0));
        }
        let bars = serde_json::to_value(bars(&rows).expect("all rows are there")).expect("is plain data");
        let measured: Vec<f64> = (0..9).map(|at| bars[at]["measured"].as_f64().expect("a number")).collect();
        assert_eq!(measured, [1.1, 0.9, 0.9, 0.9, 1.2, 1.2, 1.5, 0.5, 0.5]);
        let met: Vec<bool> = (0..9).map(|at| bars[at]["met"].as_bool().expect("a mark")).collect();
        assert_eq!(met, [true, false, true, true, true, true, true, true, true]);
        rows.pop();
        assert!(super::bars(&rows).is_err(), "what was not measured is not passed");
    }
}
