//! `helio node remove`: takes a node out of the cluster for good.
//!
//! Safe to interrupt and to repeat: the node asked looks anew each time, and nothing changes before everything is elsewhere.

use clap::Args;
use client_lib::NodeName;
use client_lib::wire::admin::{NodeRemoval, RemoveNode};

use super::Common;
use super::client::{Client, print_json};
use super::waiting::{Waits, until_over};

/// Take a node out of the cluster for good
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio node drain c && helio node remove c\n  helio node remove c --dry-run   # what stands against it, and what would be given up\n  helio node remove c --lost      # its machine is gone; what it owned was taken over before\n\nIts certificate counts no more, anywhere. It stops by itself, with exit code 3. docs/membership.md says what is checked."
)]
pub(super) struct Remove {
    /// The node
    node: NodeName,
    /// It is gone for good: do not ask it for anything
    #[arg(long)]
    lost: bool,
    /// Also where it has the only replica of a volume, or a class of durability cannot be met without it
    #[arg(long)]
    accept_fewer: bool,
    /// Fail instead of waiting until what only it has is elsewhere
    #[arg(long)]
    no_wait: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Waits for NodeRemoval {
    fn waits_for(&self) -> Option<&[String]> {
        (self.state == "waiting").then_some(&self.waiting_for)
    }
}

pub(super) fn run(arguments: &Remove, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let Remove { node, lost, accept_fewer, dry_run, .. } = arguments;
    let request = RemoveNode { lost: *lost, accept_fewer: *accept_fewer, dry_run: *dry_run };
    let path = format!("/v1/nodes/{node}/remove");
    let removal = until_over(&format!("node {node}"), arguments.no_wait, || client.post(&path, &request))?;
    if arguments.json {
        return print_json(&removal);
    }
    print!("{}", told_in_words(&removal, *lost));
    Ok(())
}

fn told_in_words(removal: &NodeRemoval, lost: bool) -> String {
    let NodeRemoval { node, state, waiting_for, voters, given_up, incomplete, unconfirmed } = removal;
    let is_done = state == "removed";
    let done = if is_done { "removed" } else { "would remove" };
    let how = if lost { " (lost)" } else { "" };
    let (verb, voters) = (if voters.len() == 1 { "voter is" } else { "voters are" }, voters.join(", "));
    let mut text = format!("{done} {node}{how}; {verb} {voters}\n");
    for what in waiting_for {
        text += &format!("would wait: {what}\n");
    }
    for given in given_up {
        let count = given.replicas.len();
        let left = match count {
            0 => "no replica left".to_owned(),
            1 => format!("1 replica left: {}", given.replicas.join(", ")),
            _ => format!("{count} replicas left: {}", given.replicas.join(", ")),
        };
        let unmet = if given.is_unmet { ", and its class of durability cannot be met" } else { "" };
        text += &format!("given up: volume {} has {left}{unmet}\n", given.volume);
    }
    for volume in incomplete {
        text += &format!(
            "given up: volume {volume} still fetched blocks from it; reads of those that no other node has fail (`helio volume status {volume}`)\n"
        );
    }
    if !unconfirmed.is_empty() {
        text += &format!(
            "not confirmed by {}: its certificate counts no more there as soon as they hear of it\n",
            unconfirmed.join(", ")
        );
    }
    if is_done {
        text += "if you do not trust it any more, make the join token worthless that it may have kept: `helio cluster token --renew`\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::GivenUpReplica;

    use super::*;

    #[test]
    fn what_is_given_up_is_told() {
        let given = |volume: &str, replicas: &[&str], is_unmet| GivenUpReplica {
            volume: volume.to_owned(),
            replicas: replicas.iter().map(|name| (*name).to_owned()).collect(),
            is_unmet,
        };
        let removal = NodeRemoval {
            node: "c".into(),
            state: "removed".into(),
            voters: vec!["a".into(), "b".into()],
            given_up: vec![given("disk", &["b"], false), given("db", &[], true)],
            incomplete: vec!["disk".into()],
            unconfirmed: vec!["b".into()],
            ..NodeRemoval::default()
        };
        let text = told_in_words(&removal, true);
        for expected in [
            "removed c (lost); voters are a, b\n",
            "given up: volume disk has 1 replica left: b\n",
            "given up: volume db has no replica left, and its class of durability cannot be met\n",
            "given up: volume disk still fetched blocks",
            "not confirmed by b",
            "helio cluster token --renew",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let planned = NodeRemoval { state: "planned".into(), voters: vec!["a".into()], ..NodeRemoval::default() };
        assert!(told_in_words(&planned, false).starts_with("would remove ; voter is a\n"));
    }
}
