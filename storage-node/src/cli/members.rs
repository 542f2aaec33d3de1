//! `helio node list`: who belongs to the cluster, and who does no more.

use anyhow::ensure;
use clap::Args;
use client_lib::wire::admin::{ClusterStatus, MemberStatus, NodeList, NodeSummary};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::snapshot::age;
use super::space;

/// Show the nodes: part in the metadata, last heard, volumes, version
#[derive(Debug, Args)]
#[command(
    after_help = "docs/membership.md explains every column.\n\nExamples:\n  helio node list\n  helio node list --removed   # those that were removed"
)]
pub(super) struct List {
    /// Show the nodes that were removed instead
    #[arg(long)]
    removed: bool,
    /// Print JSON: all of it
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &List, common: &Common) -> anyhow::Result<()> {
    let list: NodeList = Client::find(common)?.get("/v1/nodes")?;
    if arguments.json {
        return print_json(&list);
    }
    if arguments.removed {
        let rows = list.removed.iter().map(|node| {
            let how = if node.was_lost { "lost" } else { "removed" };
            vec![node.name.clone(), node.provider.clone(), how.to_owned(), age(node.at_ms)]
        });
        print_table(&["node", "provider", "how", "when"], rows.collect());
        return Ok(());
    }
    print_table(
        &["node", "provider", "role", "heard", "owns", "follows", "labels", "version", "address"],
        list.nodes.iter().map(row).collect(),
    );
    for node in &list.nodes {
        node.store_faults.iter().for_each(|fault| println!("{}", space::faulted(&node.name, fault)));
    }
    Ok(())
}

/// Refuses a node that is none of the cluster's.
pub(super) fn require(members: &[MemberStatus], node: &str) -> anyhow::Result<()> {
    let known = || members.iter().map(|member| format!("{} of {}", member.name, member.provider)).collect::<Vec<_>>();
    ensure!(
        members.iter().any(|member| member.name == node),
        "there is no node {node}; the cluster has {}",
        known().join(", ")
    );
    Ok(())
}

/// The voters, by whether the node that was asked reaches them.
pub(super) struct Voters<'a> {
    pub(super) reached: usize,
    pub(super) lost: Vec<&'a str>,
}

impl<'a> Voters<'a> {
    pub(super) fn of(status: &'a ClusterStatus) -> Voters<'a> {
        let (reached, lost): (Vec<_>, Vec<_>) =
            status.members.iter().filter(|member| member.voter).partition(|member| member.reachable);
        Voters { reached: reached.len(), lost: lost.iter().map(|member| member.name.as_str()).collect() }
    }

    pub(super) fn count(&self) -> usize {
        self.reached + self.lost.len()
    }

    pub(super) fn majority(&self) -> usize {
        self.count() / 2 + 1
    }

    /// How many more make a majority.
    pub(super) fn missing(&self) -> usize {
        self.majority().saturating_sub(self.reached)
    }
}

/// What it means that most of the voters are out of reach, where they are.
pub(super) fn lost_majority(status: &ClusterStatus) -> Option<String> {
    let voters = Voters::of(status);
    let missing = voters.missing();
    (missing > 0).then(|| {
        format!(
            "node {} reaches {} of {} voters, which is no majority: nothing is created, moved or taken over, and volumes stand still when \
             the leases of their owners are out, until {missing} more of {} are up",
            status.node,
            voters.reached,
            voters.count(),
            voters.lost.join(", ")
        )
    })
}

fn row(node: &NodeSummary) -> Vec<String> {
    let heard = match (node.reachable, node.heard_seconds_ago) {
        (true, _) => "now".to_owned(),
        (false, Some(ago)) => format!("{ago:.0} s ago"),
        (false, None) => "-".to_owned(),
    };
    vec![
        node.name.clone(),
        node.provider.clone(),
        node.role.clone(),
        heard,
        node.owns.to_string(),
        node.follows.to_string(),
        if node.labels.is_empty() { "-".to_owned() } else { node.labels.join(" ") },
        node.version.clone().unwrap_or_else(|| "-".to_owned()),
        node.address.clone(),
    ]
}
