//! How does an NBD disk of Heliotrope compare with `qemu-nbd` and `nbdkit file` on the same file system?
//!
//! The servers run side by side and are loaded in turn, round by round, so that a machine that grows slower
//! slows all of them. The load is fio's nbd engine over the Unix socket. Figures are medians over the rounds; what
//! can be trusted on a noisy machine are the ratios and the CPU per operation.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use serde::Serialize;

mod load;
mod server;

use load::{Figures, WORKLOADS};
use server::Server;

/// Measure 4 KiB reads, writes and flushed writes beside other NBD servers.
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  cargo run --release -p bench -- --seconds 3 --rounds 3 --json bench.json")]
struct Options {
    /// Seconds per measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Measurements of each kind, interleaved between the servers
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the disk in mebibytes
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Directory on the file system to measure [default: a temporary one]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The helio binary [default: beside this one]
    #[arg(long)]
    helio: Option<PathBuf>,
    /// Also write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
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

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = match &options.data_dir {
        Some(directory) => tempfile::tempdir_in(directory)?,
        None => tempfile::tempdir()?,
    };
    let helio = match options.helio {
        Some(helio) => helio,
        None => std::env::current_exe()?.with_file_name("helio"),
    };
    let size = options.size << 20;
    let servers = [
        Server::helio(root.path(), size, &helio)?,
        Server::qemu_nbd(root.path(), size)?,
        Server::nbdkit_file(root.path(), size)?,
    ];
    for server in &servers {
        load::fill(server, size).with_context(|| format!("filling {}", server.name))?;
    }
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        for depth in [1, 32] {
            let mut rounds: Vec<Vec<Figures>> = servers.iter().map(|_| Vec::new()).collect();
            for _ in 0..options.rounds {
                for (server, figures) in servers.iter().zip(&mut rounds) {
                    figures.push(load::measure(server, workload, depth, options.seconds, size)?);
                }
            }
            for (server, figures) in servers.iter().zip(rounds) {
                let figures = Figures::median(figures).context("no rounds were asked for")?;
                rows.push(Row { workload: workload.name, depth, server: server.name, figures });
            }
        }
    }
    print(&rows);
    if let Some(path) = options.json {
        std::fs::write(&path, serde_json::to_string_pretty(&rows)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The table; `vs qemu` above 1 means more operations than `qemu-nbd`.
fn print(rows: &[Row]) {
    println!(
        "{:<12} {:>3} {:<12} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "4 KiB", "QD", "server", "IOPS", "p50 us", "p99 us", "CPU us/op", "vs qemu"
    );
    for row in rows {
        let same =
            |other: &&Row| other.workload == row.workload && other.depth == row.depth && other.server == "qemu-nbd";
        let ratio = rows.iter().find(same).map_or(0.0, |qemu| row.figures.iops / qemu.figures.iops);
        println!(
            "{:<12} {:>3} {:<12} {:>9.0} {:>9.0} {:>9.0} {:>9.1} {:>8.2}",
            row.workload,
            row.depth,
            row.server,
            row.figures.iops,
            row.figures.p50_us,
            row.figures.p99_us,
            row.figures.cpu_us_per_op,
            ratio
        );
    }
}
