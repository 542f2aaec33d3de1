//! The `helio` command line: one module per noun.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage; 3 from a node that was
//! removed from its cluster, and is not to be started again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use client_lib::error::whole;
use nbd_frontend::service::log::{self, LogFormat};

use self::client::CLUSTER_FILE;
use self::output::Unprinted;
use crate::node::access::Removed;

mod audit;
mod catch_up;
mod client;
mod cluster;
mod completions;
mod confirm;
mod credentials;
mod dashboard;
mod disk;
mod doctor;
mod drain;
mod export;
mod group;
mod import;
mod inspect;
mod key;
mod link;
mod man;
mod members;
mod migrate;
mod node;
mod output;
mod place;
mod policy;
mod remote;
mod remove;
mod replica;
mod rights;
mod scrub;
mod serving;
mod snapshot;
mod space;
mod support_bundle;
mod takeover;
mod top;
mod trace;
mod transfer;
mod up;
mod volume;
mod waiting;
mod why;

/// A replicated block store for virtual machines that move between cloud providers.
#[derive(Debug, Parser)]
#[command(name = "helio", version, max_term_width = 100)]
#[command(
    after_help = "Example:\n  helio up --rtt 60 &\n  helio volume create disk --size 10GiB\n  helio volume migrate disk --to b\n\nExit codes: 0 done, 1 failed (standard error says why and what to do), 2 wrong usage."
)]
pub struct Helio {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

/// Where the cluster is, and how much to say.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Data directory of the local cluster, or of a node [default: $XDG_DATA_HOME/heliotrope; if nothing runs there,
    /// /var/lib/heliotrope, where packages have it]
    #[arg(long, global = true, env = "HELIO_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// A node's admin API on this machine, as HOST:PORT, or a file with credentials for nodes elsewhere; found in the data directory if not given
    #[arg(long, global = true, env = "HELIO_CLUSTER", value_name = "ADDR|FILE")]
    cluster: Option<String>,
    /// The secret of the admin API at --cluster HOST:PORT; found in the data directory if not given
    #[arg(long, global = true, env = "HELIO_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// What to log to standard error: error, warn, info, debug, or a tracing filter
    #[arg(long, global = true, env = "HELIO_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How to log: a line for people, or a JSON object on a line
    #[arg(long, global = true, env = "HELIO_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// So many of what is called `one` or `many`.
fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The data directory of the units that a package brings (docs/systemd.md).
const PACKAGED_DATA: &str = "/var/lib/heliotrope";

impl Common {
    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| {
            let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
            let own = base.or_else(home).unwrap_or_else(|| PathBuf::from(".")).join("heliotrope");
            one_that_serves(own, PathBuf::from(PACKAGED_DATA))
        })
    }
}

/// `own`, or `packaged` if only there a cluster says where it is.
fn one_that_serves(own: PathBuf, packaged: PathBuf) -> PathBuf {
    let serves = |data: &Path| data.join(CLUSTER_FILE).exists();
    if !serves(&own) && serves(&packaged) { packaged } else { own }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a whole cluster in this process: one node per provider
    Up(up::Up),
    /// Run one node of a cluster of separate processes, or ask one that runs
    Node(node::NodeArguments),
    /// Create, list, move and delete volumes
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Let volumes go together: moved in one step, and kept as of one moment
    #[command(subcommand)]
    Group(group::Verb),
    Why(why::Why),
    Top(top::Top),
    Trace(trace::Trace),
    Dashboard(dashboard::Dashboard),
    Doctor(doctor::Doctor),
    SupportBundle(support_bundle::SupportBundle),
    /// Begin a cluster, let nodes join it, look at it
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Look at the ways from node to node
    #[command(subcommand)]
    Link(link::Verb),
    /// Look at a data directory without a node: log, map, segments, volumes; changes nothing
    #[command(subcommand)]
    Inspect(inspect::Verb),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Of a node that was removed from its cluster.
const REMOVED_EXIT: u8 = 3;

/// Runs a command; returns what the process exits with.
#[must_use]
pub fn run(helio: Helio) -> ExitCode {
    output::end_when_printing_fails();
    let default = if matches!(&helio.verb, Verb::Up(_)) || matches!(&helio.verb, Verb::Node(node) if node.runs_a_node())
    {
        // What openraft warns of is each message to a node that is off, several a second; consensus tells of that node once.
        "info,openraft=error,quinn=warn"
    } else {
        "warn"
    };
    let filter = helio.common.log.as_deref().unwrap_or(default);
    if let Err(error) = log::begin(filter, helio.common.log_format) {
        log::complain(format_args!("helio: {error}"));
        return ExitCode::from(2);
    }
    let outcome = match helio.verb {
        Verb::Up(up) => up::run(up, &helio.common),
        Verb::Node(arguments) => node::run(&arguments, &helio.common),
        Verb::Volume(verb) => volume::run(verb, &helio.common),
        Verb::Group(verb) => group::run(verb, &helio.common),
        Verb::Why(why) => why::run(&why, &helio.common),
        Verb::Top(top) => top::run(&top, &helio.common),
        Verb::Trace(trace) => trace::run(&trace, &helio.common),
        Verb::Dashboard(dashboard) => dashboard::run(&dashboard, &helio.common),
        Verb::Doctor(doctor) => doctor::run(&doctor, &helio.common),
        Verb::SupportBundle(bundle) => support_bundle::run(&bundle, &helio.common),
        Verb::Cluster(verb) => cluster::run(verb, &helio.common),
        Verb::Link(verb) => link::run(verb, &helio.common),
        Verb::Inspect(verb) => inspect::run(verb),
        Verb::Completions(completions) => completions::run(&completions),
        Verb::Man(man) => man::run(&man),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some((code, told)) = error.downcast_ref::<Unprinted>().map(Unprinted::end) {
                told.into_iter().for_each(log::complain);
                return ExitCode::from(code);
            }
            log::complain(format_args!("helio: {}", whole(error.as_ref())));
            ExitCode::from(if error.is::<Removed>() { REMOVED_EXIT } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Helio::command().debug_assert();
    }

    #[test]
    fn the_data_directory_may_stand_anywhere() {
        let helio = Helio::try_parse_from(["helio", "volume", "list", "--json", "--data", "/x"]).expect("parses");
        assert_eq!(helio.common.data(), PathBuf::from("/x"));
    }

    /// Whoever had installed the package was told that no cluster runs from a directory below his home.
    #[test]
    fn a_node_of_the_package_is_found_unless_another_one_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let (own, packaged) = (directory.path().join("own"), directory.path().join("packaged"));
        let found = || one_that_serves(own.clone(), packaged.clone());
        assert_eq!(found(), own, "nothing runs: the message names the usual one");
        for (data, expected) in [(&packaged, &packaged), (&own, &own)] {
            std::fs::create_dir(data).expect("is made");
            std::fs::write(data.join(CLUSTER_FILE), "{}").expect("is written");
            assert_eq!(found(), *expected);
        }
    }
}
