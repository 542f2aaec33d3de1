//! `helio node list`: who belongs to the cluster, and who does no more.

use clap::Args;
use client_lib::wire::admin::{NodeList, NodeSummary};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::snapshot::age;

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
    Ok(())
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
