//! What does NBD cost by itself? An export in memory, by our server and by `nbdkit memory`: what no store below can be quicker than.
//!
//! Through `helio-nbd` there is no such thing: behind it is a node, whose volumes are in a log. What that hop costs is `hop`'s question.
//! Both are loaded in turn, round by round; figures are medians over the rounds.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use nbd_frontend::{MemoryDirectory, MemoryExport, ServerOptions};
use serde::Serialize;

use crate::Bench;
use crate::load::{self, Extent, Figures, Workload};
use crate::process;
use crate::server::{Server, VOLUME};

const fn random(name: &'static str, is_read: bool, bytes: u32, depth: u32) -> Workload {
    Workload { name, is_read, is_random: true, bytes, depth, flush_every: 0 }
}

const WORKLOADS: [Workload; 6] = [
    random("4k read", true, 4 << 10, 1),
    random("4k write", false, 4 << 10, 1),
    random("4k read", true, 4 << 10, 32),
    random("4k write", false, 4 << 10, 32),
    random("1M read", true, 1 << 20, 4),
    random("1M write", false, 1 << 20, 4),
];

/// Options of `bench floor`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Seconds per measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Measurements of each kind, interleaved between both
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the disk in mebibytes
    #[arg(long, default_value_t = 256)]
    size: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { seconds: 3, rounds: 3, size: 256 }
    }
}

/// Our server, as a process of its own.
#[derive(Debug, Args)]
pub(crate) struct MemoryServer {
    socket: PathBuf,
    bytes: u64,
}

/// One workload, of both.
#[derive(Debug, Serialize)]
struct Row {
    workload: &'static str,
    depth: u32,
    heliotrope: Figures,
    nbdkit: Figures,
}

pub(crate) fn run(options: &Options, bench: &Bench<'_>) -> anyhow::Result<()> {
    let size = options.size << 20;
    let root = tempfile::tempdir_in(bench.root)?;
    let servers = [Server::memory(root.path(), size)?, Server::nbdkit_memory(root.path(), size)?];
    for server in &servers {
        load::fill(&server.target(), size)?;
    }
    let extent = Extent::Seconds(options.seconds, size);
    let mut rows = Vec::new();
    for workload in &WORKLOADS {
        let figures = load::in_turns(options.rounds, &servers, |server| {
            load::measure(&server.target(), workload, extent, || process::cpu_seconds(&server.id()).map(Some))
        })?;
        let (heliotrope, nbdkit) = (figures[0], figures[1]);
        rows.push(Row { workload: workload.name, depth: workload.depth, heliotrope, nbdkit });
    }
    let both = |row: &Row| {
        [("heliotrope", row.heliotrope), ("nbdkit memory", row.nbdkit)]
            .map(|(name, figures)| (row.workload, row.depth, name, figures))
    };
    load::print("server", rows.iter().flat_map(both));
    bench.output.json("floor", &rows)
}

/// Serves until it is ended.
pub(crate) fn serve(options: MemoryServer) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let exports = MemoryDirectory::new(vec![Arc::new(MemoryExport::new(VOLUME, options.bytes))]);
        let unix = ServerOptions { unix: Some(options.socket), ..ServerOptions::default() };
        let _server = nbd_frontend::Server::bind(unix, Arc::new(exports)).await?;
        std::future::pending().await
    })
}
