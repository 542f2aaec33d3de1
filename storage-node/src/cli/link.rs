//! `helio link`: the ways from node to node, and what went over them.

use clap::Subcommand;
use client_lib::wire::admin::{FreightStatus, LinkList, LinkStatus};

use super::Common;
use super::client::{Client, print_json, print_table};
use crate::size::human;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the links: what each node has sent to each other one, and what it had not to send
    #[command(
        after_help = "Counted since each node was started, of all volumes. docs/links.md explains every column.\n\nExamples:\n  helio link list\n  helio link list --json"
    )]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    match verb {
        Verb::List { json } => list(json, common),
    }
}

fn list(json: bool, common: &Common) -> anyhow::Result<()> {
    let list: LinkList = Client::find(common)?.get("/v1/links")?;
    if json {
        return print_json(&list);
    }
    let heading = ["from", "to", "rtt", "written", "sent", "on the wire", "zero", "overwritten", "compressed"];
    print_table(&heading, list.links.iter().map(row).collect());
    for node in &list.silent {
        println!("node {node} does not answer: the links from it are not shown");
    }
    Ok(())
}

fn row(link: &LinkStatus) -> Vec<String> {
    let freight = &link.freight;
    vec![
        link.from.clone(),
        link.to.clone(),
        link.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
        human(freight.written_bytes),
        human(freight.sent_bytes),
        human(freight.wire_bytes),
        human(freight.zero_bytes),
        human(freight.overwritten_bytes),
        human(freight.compressed_bytes),
    ]
}

/// What was sent to a replica, and why not more; nothing where nothing was written.
pub(super) fn sentence(replica: &str, freight: &FreightStatus) -> Option<String> {
    if freight.written_bytes + freight.sent_bytes == 0 {
        return None;
    }
    let saved = [
        (freight.overwritten_bytes, "written again before it was sent"),
        (freight.zero_bytes, "zeroes"),
        (freight.compressed_bytes, "by compression"),
    ];
    let saved: Vec<String> =
        saved.iter().filter(|(bytes, _)| *bytes > 0).map(|(bytes, what)| format!("{} {what}", human(*bytes))).collect();
    let saved = if saved.is_empty() { String::new() } else { format!("; saved: {}", saved.join(", ")) };
    let (wire, written) = (human(freight.wire_bytes), human(freight.written_bytes));
    Some(format!("to {replica} went {wire} for {written} written{saved}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_told_by_its_means() {
        assert_eq!(sentence("b", &FreightStatus::default()), None);
        let freight = FreightStatus {
            written_bytes: 10 << 20,
            sent_bytes: 6 << 20,
            wire_bytes: 2 << 20,
            zero_bytes: 1 << 20,
            overwritten_bytes: 3 << 20,
            compressed_bytes: 4 << 20,
        };
        assert_eq!(
            sentence("b", &freight).as_deref(),
            Some(
                "to b went 2 MiB for 10 MiB written; saved: 3 MiB written again before it was sent, 1 MiB zeroes, 4 MiB by compression"
            )
        );
        let plain =
            FreightStatus { written_bytes: 4096, sent_bytes: 4096, wire_bytes: 4096, ..FreightStatus::default() };
        assert_eq!(sentence("b", &plain).as_deref(), Some("to b went 4 KiB for 4 KiB written"));
    }
}
