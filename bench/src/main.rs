//! Does the block store hold what it promises? One command per question: [`speed`] beside other NBD servers, [`hop`] through
//! `helio-nbd`, [`floor`] over memory, [`cleaning`] under endless overwriting, [`growth`] of a large, sparsely written volume, [`idle`] volumes by the thousand,
//! [`rebuild`] of a replica beside guests, [`drain`] of a node and what is said of its end.
//!
//! Each prints a table and its bars, marked PASS or missed, and with `--out` writes its figures as JSON and its curves as
//! SVG. What is compared runs side by side, in turns, so that a machine that grows slower slows all of it: on a noisy
//! machine the ratios and the CPU per operation are what can be trusted.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

mod cleaning;
mod drain;
mod floor;
mod growth;
mod hop;
mod idle;
mod load;
mod process;
mod rebuild;
mod relay;
mod report;
mod server;
mod speed;
mod store;

use report::Output;

/// Measure Heliotrope's block store
#[derive(Debug, Parser)]
#[command(
    after_help = "Without a command everything is measured at its default size: about fifty minutes, 16 GiB of disk space.\n\
    Build with --release and leave the machine alone meanwhile.\n\n\
    Examples:\n  \
    bench --out target/bench\n  \
    bench speed --seconds 10 --rounds 5\n  \
    bench cleaning --full"
)]
struct Options {
    #[command(subcommand)]
    question: Option<Question>,
    /// Directory on the file system to measure [default: a temporary one]
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// Directory for figures (JSON) and curves (SVG)
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// The helio binary [default: beside this one]
    #[arg(long, global = true)]
    helio: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Beside qemu-nbd, nbdkit and the bare file system: IOPS, latency, CPU (8 minutes)
    Speed(speed::Options),
    /// Through helio-nbd beside the node instead of the node: latency, CPU (3 minutes)
    Hop(hop::Options),
    /// NBD by itself, over memory, beside nbdkit: IOPS, latency, CPU (2 minutes)
    Floor(floor::Options),
    #[command(hide = true)]
    MemoryServer(floor::MemoryServer),
    #[command(hide = true)]
    Relay(relay::Options),
    /// Random overwriting at 70 % utilisation: bytes written per byte, latency (10 minutes)
    Cleaning(cleaning::Options),
    /// A 4 TiB volume written at random: memory, map size, throughput, reopening, snapshots (10 minutes)
    Growth(growth::Options),
    /// A replica that has nothing, beside guests: what those wait for (4 minutes)
    Rebuild(rebuild::Options),
    /// A node drained over a narrow link: when it says that it will be over, and when it is (3 minutes)
    Drain(drain::Options),
    /// A thousand volumes that nobody uses: CPU, memory, and a write beside them (4 minutes)
    Idle(idle::Options),
}

/// What all questions share.
struct Bench<'a> {
    /// Where data goes.
    root: &'a Path,
    /// The helio binary.
    helio: &'a Path,
    output: &'a Output,
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
    let output = Output::new(options.out)?;
    let bench = Bench { root: root.path(), helio: &helio, output: &output };
    match options.question {
        Some(Question::Speed(options)) => speed::run(&options, &bench),
        Some(Question::Hop(options)) => hop::run(&options, &bench),
        Some(Question::Floor(options)) => floor::run(&options, &bench),
        Some(Question::MemoryServer(options)) => floor::serve(options),
        Some(Question::Relay(options)) => relay::serve(&options),
        Some(Question::Cleaning(options)) => cleaning::run(&options, &bench),
        Some(Question::Growth(options)) => growth::run(&options, &bench),
        Some(Question::Idle(options)) => idle::run(&options, &bench),
        Some(Question::Rebuild(options)) => rebuild::run(&options, &bench),
        Some(Question::Drain(options)) => drain::run(&options, &bench),
        None => {
            speed::run(&speed::Options::default(), &bench)?;
            hop::run(&hop::Options::default(), &bench)?;
            floor::run(&floor::Options::default(), &bench)?;
            cleaning::run(&cleaning::Options::default(), &bench)?;
            growth::run(&growth::Options::default(), &bench)?;
            idle::run(&idle::Options::default(), &bench)?;
            rebuild::run(&rebuild::Options::default(), &bench)?;
            drain::run(&drain::Options::default(), &bench)
        }
    }
}
