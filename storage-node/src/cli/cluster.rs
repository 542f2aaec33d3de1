//! `helio cluster`: look at the cluster.

use clap::Subcommand;
use client_lib::wire::admin::ClusterStatus;

use super::Common;
use super::client::{Client, print_json, print_table};
use super::size::human;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the members, the leader and the distances
    #[command(after_help = "Example:\n  helio cluster status --json")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    let Verb::Status { json } = verb;
    let status: ClusterStatus = Client::find(common)?.get("/v1/cluster")?;
    if json {
        return print_json(&status);
    }
    let rows = status.members.iter().map(|member| {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let rtt = member.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1} ms"));
        let reach = if member.reachable { "yes" } else { "no" };
        vec![member.name.clone(), member.provider.clone(), role.into(), rtt, reach.into(), member.address.clone()]
    });
    print_table(&["node", "provider", "role", "rtt", "reachable", "address"], rows.collect());
    println!(
        "\nseen from node {}, term {}, {} over the emulated WAN",
        status.node,
        status.term,
        human(status.wan_bytes)
    );
    Ok(())
}
