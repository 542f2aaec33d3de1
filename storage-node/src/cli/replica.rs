//! `helio volume replica` and `helio group replica`: which nodes follow, changed while the volumes are in use.
//!
//! Safe to interrupt and to repeat: what is waited for is looked at anew each time, and nothing has changed before it is over.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use client_lib::NodeName;
use client_lib::wire::admin::{ChangeReplicas, ReplicaStatus, ReplicasReport, VolumeStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Common;
use super::client::{Client, print_json};
use super::waiting::{Waits, until_over};

/// How often it is looked how much of a volume a new replica has.
const LOOK: Duration = Duration::from_millis(500);

const TEMPLATE: &str = "{prefix} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Let other nodes follow, too
    #[command(
        after_help = "Examples:\n  helio volume replica add disk d\n  helio volume replica add disk d --wait && helio volume replica remove disk b\n  helio group replica add db d\n\nThe node is sent everything in the background, as fast as its link and the policy of the volume let it; the volume is in use meanwhile, and can be \
                      migrated there at once. It counts for a class of durability, and can take over, when it has everything."
    )]
    Add(Add),
    /// Let nodes follow no more; they drop what they hold
    #[command(
        after_help = "Examples:\n  helio volume replica remove disk b\n  helio group replica remove db b\n\nFirst it is waited until the nodes that stay hold what was flushed in the class of the volume, and until its owner fetches nothing from the node \
                      any more. Interrupted, nothing has changed."
    )]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The volume, or the group
    name: String,
    /// The nodes
    #[arg(required = true)]
    nodes: Vec<NodeName>,
    /// Wait until they have everything
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The volume, or the group
    name: String,
    /// The nodes
    #[arg(required = true)]
    nodes: Vec<NodeName>,
    /// Also where no replica is left, or a class of durability cannot be met by those that are
    #[arg(long)]
    accept_fewer: bool,
    /// Fail instead of waiting until they are needed no more
    #[arg(long)]
    no_wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What replicas are of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Volume,
    Group,
}

impl Of {
    fn path(self, name: &str) -> anyhow::Result<String> {
        Ok(match self {
            Of::Volume => format!("/v1/volumes/{}/replicas", name.parse::<client_lib::VolumeName>()?),
            Of::Group => format!("/v1/groups/{}/replicas", name.parse::<client_lib::GroupName>()?),
        })
    }
}

pub(super) fn run(verb: &Verb, of: Of, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    match verb {
        Verb::Add(arguments) => add(arguments, of, &client),
        Verb::Remove(arguments) => remove(arguments, of, &client),
    }
}

fn add(arguments: &Add, of: Of, client: &Client) -> anyhow::Result<()> {
    let request = ChangeReplicas { add: names(&arguments.nodes), ..ChangeReplicas::default() };
    let report: ReplicasReport = client.post(&of.path(&arguments.name)?, &request)?;
    if arguments.wait {
        for volume in &report.volumes {
            until_whole(client, volume, &request.add)?;
        }
    }
    if arguments.json {
        return print_json(&report);
    }
    for volume in &report.volumes {
        println!("{}", told(volume, &report, arguments.wait));
    }
    Ok(())
}

impl Waits for ReplicasReport {
    fn waits_for(&self) -> Option<&[String]> {
        (self.state == "waiting").then_some(&self.waiting_for)
    }
}

fn remove(arguments: &Remove, of: Of, client: &Client) -> anyhow::Result<()> {
    let (remove, accept_fewer) = (names(&arguments.nodes), arguments.accept_fewer);
    let request = ChangeReplicas { remove, accept_fewer, ..ChangeReplicas::default() };
    let path = of.path(&arguments.name)?;
    let report: ReplicasReport = until_over("it", arguments.no_wait, || client.post(&path, &request))?;
    if arguments.json {
        return print_json(&report);
    }
    for volume in &report.volumes {
        println!("{}", told(volume, &report, true));
    }
    Ok(())
}

fn names(nodes: &[NodeName]) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

/// Who has a volume now; `is_over` if nothing more is to come.
fn told(volume: &str, report: &ReplicasReport, is_over: bool) -> String {
    let ReplicasReport { owner, replicas, joining, .. } = report;
    let at = match replicas.is_empty() {
        true => "nowhere".to_owned(),
        false => format!("at {}", replicas.join(", ")),
    };
    let first = format!("volume {volume} is owned by {owner}, with replicas {at}");
    match joining.is_empty() || is_over {
        true => first,
        false => format!(
            "{first}; {} in the background (`helio volume status {volume}` shows how far that is)",
            if let [one] = joining.as_slice() {
                format!("{one} gets everything")
            } else {
                format!("{} get everything", joining.join(", "))
            }
        ),
    }
}

/// Waits until `nodes` have all of `volume` for the first time.
fn until_whole(client: &Client, volume: &str, nodes: &[String]) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(volume.to_owned());
    loop {
        let status: VolumeStatus = client.get(&format!("/v1/volumes/{volume}"))?;
        let replicas = status.replicas.iter().map(|replica| replica.node.as_str());
        if let Some(gone) = no_holder(&replicas.chain([status.owner.as_str()]).collect::<Vec<_>>(), nodes) {
            bar.finish_and_clear();
            bail!(
                "node {gone} is no replica of volume {volume} any more, and does not have everything: it was removed meanwhile, by hand or by a rule of \
                 placement (`helio volume place {volume}` shows it)"
            );
        }
        let new = status.replicas.iter().filter(|replica| nodes.contains(&replica.node));
        let new: Vec<&ReplicaStatus> = new.filter(|replica| replica.is_joining).collect();
        if new.is_empty() {
            bar.finish_and_clear();
            return Ok(());
        }
        let whole = status.mapped_bytes * new.len() as u64;
        let lacks: u64 = new.iter().map(|replica| lacks(replica)).sum();
        bar.set_length(whole.max(lacks));
        bar.set_position(whole.saturating_sub(lacks));
        let away: Vec<&str> =
            new.iter().filter(|replica| !replica.reachable).map(|replica| replica.node.as_str()).collect();
        bar.set_message(if away.is_empty() {
            String::new()
        } else {
            format!("({} cannot be reached)", away.join(", "))
        });
        std::thread::sleep(LOOK);
    }
}

/// One of `nodes` that is none of `holders`.
fn no_holder<'a>(holders: &[&str], nodes: &'a [String]) -> Option<&'a String> {
    nodes.iter().find(|node| !holders.contains(&node.as_str()))
}

/// How many bytes a new replica is to get yet. Those that have arrived are not applied before all of them have.
fn lacks(replica: &ReplicaStatus) -> u64 {
    match replica.stale_bytes {
        0 => replica.bytes_behind,
        stale => stale.min(replica.bytes_behind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_its_template() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn who_has_a_volume_is_told_and_who_is_to_get_it() {
        let report = ReplicasReport {
            owner: "a".into(),
            replicas: vec!["b".into(), "d".into()],
            joining: vec!["d".into()],
            ..ReplicasReport::default()
        };
        assert_eq!(told("disk", &report, true), "volume disk is owned by a, with replicas at b, d");
        assert!(told("disk", &report, false).contains("; d gets everything in the background"));
        let alone = ReplicasReport { owner: "a".into(), ..ReplicasReport::default() };
        assert_eq!(told("disk", &alone, false), "volume disk is owned by a, with replicas nowhere");
    }

    /// A rule of placement gave the new copy up at once, and the wait for it ended with the words that the node has everything.
    #[test]
    fn a_node_that_is_no_replica_any_more_is_not_taken_for_one_that_has_everything() {
        let nodes = ["b".to_owned(), "c".to_owned()];
        assert_eq!(no_holder(&["b", "c", "a"], &nodes), None);
        assert_eq!(no_holder(&["b", "a"], &nodes), Some(&nodes[1]));
        assert_eq!(no_holder(&["b", "c"], &nodes), None, "the owner has everything");
    }

    #[test]
    fn an_odd_name_becomes_no_part_of_an_address() {
        assert!(Of::Volume.path("a/b").is_err() && Of::Group.path("../x").is_err());
        assert_eq!(Of::Group.path("db").expect("is a name"), "/v1/groups/db/replicas");
    }
}
