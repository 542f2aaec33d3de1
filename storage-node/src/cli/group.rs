//! `helio group`: volumes that go together: moved in one step, and kept as of one moment.

use clap::{Args, Subcommand};
use client_lib::wire::admin::{
    self, ChangeGroup, CreateGroup, CreateSnapshot, GroupMigrateReport, GroupSnapshot, GroupSnapshotReport,
    GroupStatus, OnWriteStatus,
};
use client_lib::{Error, ErrorKind, GroupName, SnapshotName, VolumeName};

use super::Common;
use super::catch_up::hand_over;
use super::client::{Client, print_json, print_table};
use super::migrate::{How, Limit, Mode, cancel, follow};
use super::{place, replica};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Let volumes go together: those of a database, or the disks of a virtual machine
    #[command(
        after_help = "They have one owner and the same replicas.\n\nExample:\n  helio volume create data --size 10GiB --owner a\n  helio volume create wal --size 2GiB --owner a\n  helio group create db data wal"
    )]
    Create {
        /// Its name
        name: GroupName,
        /// Its volumes
        #[arg(required = true)]
        volumes: Vec<VolumeName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the groups
    #[command(after_help = "Example:\n  helio group list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show where its volumes are, and its snapshots
    #[command(after_help = "Example:\n  helio group status db")]
    Status {
        /// Its name
        name: GroupName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Migrate(Migrate),
    Place(place::Place),
    /// Change which nodes follow the volumes of a group, while they are in use
    #[command(subcommand)]
    Replica(replica::Verb),
    Snapshot(Snapshot),
    /// Put further volumes into a group
    #[command(after_help = "Example:\n  helio group add db index")]
    Add(Change),
    /// Take volumes out of a group; they stay as they are
    #[command(after_help = "Example:\n  helio group remove db index")]
    Remove(Change),
    /// End a group; its volumes and their snapshots stay
    #[command(after_help = "Example:\n  helio group delete db")]
    Delete {
        /// Its name
        name: GroupName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Change {
    /// The group
    name: GroupName,
    /// The volumes
    #[arg(required = true)]
    volumes: Vec<VolumeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Hand all volumes of a group over to another node in one step, while they are in use
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio group migrate db --to b\n  helio group migrate db --to b --mode synced --deadline 60\n  helio group migrate db --to b --on-write    # before the virtual machine is moved there\n  helio group migrate db --cancel\n\nWriters of all volumes wait together, for as many round trips as with one volume. Either all of them move or none does."
)]
pub(super) struct Migrate {
    /// Its name
    name: GroupName,
    #[command(flatten)]
    how: How,
}

/// Keep all volumes of a group as they are at one moment
#[derive(Debug, Args)]
#[command(
    after_help = "Each volume gets a snapshot of that name: read it as VOLUME@SNAPSHOT, roll back to it, clone it. A write is in it only if what was acked before it, on any of the volumes, is in it too.\n\nExamples:\n  helio group snapshot db@before-upgrade\n  helio group snapshot db@before-upgrade --delete"
)]
pub(super) struct Snapshot {
    /// Group and name, as GROUP@SNAPSHOT
    snapshot: Target,
    /// Delete it, of every volume, instead of making it
    #[arg(long)]
    delete: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `GROUP@SNAPSHOT`.
#[derive(Clone, Debug)]
struct Target {
    group: GroupName,
    snapshot: SnapshotName,
}

impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target, Error> {
        let (group, snapshot) = text.split_once('@').ok_or_else(|| {
            let what = format!("{text:?} names no snapshot: write GROUP@SNAPSHOT, as in db@monday");
            Error::new(ErrorKind::InvalidRequest, what)
        })?;
        Ok(Target { group: group.parse()?, snapshot: snapshot.parse()? })
    }
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    match verb {
        Verb::Create { name, volumes, json } => {
            let request = CreateGroup { name: name.to_string(), volumes: names(&volumes) };
            let status: GroupStatus = client.post("/v1/groups", &request)?;
            if json {
                return print_json(&status);
            }
            println!("{}", has(&status));
        }
        Verb::List { json } => {
            let groups: Vec<GroupStatus> = client.get("/v1/groups")?;
            if json {
                return print_json(&groups);
            }
            let rows = groups.into_iter().map(|group| {
                let volumes = volumes_of(&group);
                let owner = group.owner.unwrap_or_else(|| "different ones".to_owned());
                vec![group.name, owner, volumes]
            });
            print_table(&["group", "owner", "volumes"], rows.collect());
        }
        Verb::Status { name, json } => {
            let status: GroupStatus = client.get(&format!("/v1/groups/{name}"))?;
            if json {
                return print_json(&status);
            }
            print_status(&status);
        }
        Verb::Migrate(arguments) => return migrate(&arguments, &client),
        Verb::Place(arguments) => return place::run_group(&arguments, common),
        Verb::Replica(verb) => return replica::run(&verb, replica::Of::Group, common),
        Verb::Snapshot(arguments) => return snapshot(&arguments, &client),
        Verb::Add(Change { name, volumes, json }) => {
            let request = ChangeGroup { add: names(&volumes), ..ChangeGroup::default() };
            return change(&name, &request, json, &client);
        }
        Verb::Remove(Change { name, volumes, json }) => {
            let request = ChangeGroup { remove: names(&volumes), ..ChangeGroup::default() };
            return change(&name, &request, json, &client);
        }
        Verb::Delete { name, json } => {
            client.delete::<()>(&format!("/v1/groups/{name}"))?;
            if json {
                return print_json(&serde_json::json!({ "deleted": name }));
            }
            println!("deleted group {name}; its volumes stay");
        }
    }
    Ok(())
}

fn names(volumes: &[VolumeName]) -> Vec<String> {
    volumes.iter().map(ToString::to_string).collect()
}

fn volumes_of(group: &GroupStatus) -> String {
    group.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Which volumes a group has, and where.
fn has(group: &GroupStatus) -> String {
    let at = group.owner.as_ref().map_or_else(|| "different nodes".to_owned(), |owner| format!("node {owner}"));
    format!("group {} has {} at {at}", group.name, volumes_of(group))
}

fn change(name: &GroupName, request: &ChangeGroup, json: bool, client: &Client) -> anyhow::Result<()> {
    let status: GroupStatus = client.post(&format!("/v1/groups/{name}/volumes"), request)?;
    if json {
        return print_json(&status);
    }
    println!("{}", has(&status));
    Ok(())
}

fn print_status(group: &GroupStatus) {
    for line in lines(group) {
        println!("{line}");
    }
    let rows = group.volumes.iter().map(|volume| {
        vec![volume.name.clone(), volume.owner.clone(), volume.epoch.to_string(), volume.replicas.join(", ")]
    });
    print_table(&["volume", "owner", "epoch", "replicas"], rows.collect());
    if !group.snapshots.is_empty() {
        let all = group.volumes.len();
        let row = |snapshot: &GroupSnapshot| {
            let state = match (snapshot.is_made, snapshot.volumes.len() < all) {
                (false, _) => "being made",
                (true, false) => "made",
                (true, true) => "not of all",
            };
            vec![format!("{}@{}", group.name, snapshot.name), state.to_owned(), snapshot.volumes.join(", ")]
        };
        print_table(&["snapshot", "state", "of"], group.snapshots.iter().map(row).collect());
    }
}

/// What there is to say of a group besides its volumes.
fn lines(group: &GroupStatus) -> Vec<String> {
    let first = match (&group.advice, &group.owner) {
        (Some(advice), _) => format!("group {}: {advice}", group.name),
        (None, Some(owner)) => format!("group {}: owner {owner}", group.name),
        (None, None) => format!("group {}", group.name),
    };
    let on_write = group.on_write.as_ref().map(|to| {
        format!(
            "it goes to node {to} when one of its volumes is written there, after a flush here (`helio group migrate {} --cancel` takes that back)",
            group.name
        )
    });
    std::iter::once(first).chain(on_write).collect()
}

fn migrate(arguments: &Migrate, client: &Client) -> anyhow::Result<()> {
    let path = format!("/v1/groups/{}", arguments.name);
    let how = &arguments.how;
    let Some(to) = &how.to else {
        return cancel(client, &path, &format!("group {}", arguments.name), how.json);
    };
    if how.on_write {
        return on_write(arguments, to, client, &path);
    }
    let (synced, limit) = (how.mode == Mode::Synced, Limit::of(how.deadline));
    let report: GroupMigrateReport = match synced {
        true => {
            let group: GroupStatus = client.get(&path)?;
            let goes = group.volumes.iter().filter(|volume| volume.owner != *to);
            let volumes: Vec<&str> = goes.map(|volume| volume.name.as_str()).collect();
            hand_over(client, &path, &volumes, || how.request(to, &limit))?
        }
        false => client.post(&format!("{path}/migrate"), &how.request(to, &limit))?,
    };
    if how.json {
        return print_json(&report);
    }
    println!("{}", told(&arguments.name, to, synced, &report));
    Ok(())
}

/// What a handover came to.
pub(super) fn told(name: &GroupName, to: &str, synced: bool, report: &GroupMigrateReport) -> String {
    if report.volumes.is_empty() {
        return format!("group {name} is at node {to} already");
    }
    let follow = follow(report.stale_bytes_at_handover, synced);
    let volumes: Vec<String> =
        report.volumes.iter().map(|volume| format!("{} (epoch {})", volume.name, volume.epoch)).collect();
    format!(
        "group {name} is at node {to}: writers waited {:.1} ms, {follow}\n{}",
        report.handover_ms,
        volumes.join(", ")
    )
}

fn on_write(arguments: &Migrate, to: &str, client: &Client, path: &str) -> anyhow::Result<()> {
    let request = admin::OnWrite { to: to.to_owned(), accept_unmet: arguments.how.accept_unmet };
    let status: OnWriteStatus = client.post(&format!("{path}/on-write"), &request)?;
    if arguments.how.json {
        return print_json(&status);
    }
    println!(
        "group {} goes to node {to} with the first write there to one of its volumes after a flush of each; once, and until `helio group migrate {} --cancel`",
        arguments.name, arguments.name
    );
    Ok(())
}

fn snapshot(arguments: &Snapshot, client: &Client) -> anyhow::Result<()> {
    let Target { group, snapshot } = &arguments.snapshot;
    let path = format!("/v1/groups/{group}/snapshots");
    if arguments.delete {
        let deleted: GroupSnapshot = client.delete(&format!("{path}/{snapshot}"))?;
        if arguments.json {
            return print_json(&deleted);
        }
        println!("deleted snapshot {group}@{snapshot} of {}", deleted.volumes.join(", "));
        return Ok(());
    }
    let report: GroupSnapshotReport = client.post(&path, &CreateSnapshot { name: snapshot.to_string() })?;
    if arguments.json {
        return print_json(&report);
    }
    let volumes: Vec<String> = report.volumes.iter().map(|volume| format!("{} {}", volume.name, volume.lsn)).collect();
    println!(
        "snapshot {group}@{snapshot} has everything up to {}; writers waited {:.1} ms",
        volumes.join(", "),
        report.held_ms
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::{GroupVolume, MovedVolume};

    use super::*;

    fn group(owner: Option<&str>, advice: Option<&str>) -> GroupStatus {
        let volume = |name: &str| GroupVolume { name: name.into(), owner: "a".into(), epoch: 1, replicas: vec![] };
        GroupStatus {
            name: "db".into(),
            id: 1,
            owner: owner.map(str::to_owned),
            volumes: vec![volume("data"), volume("wal")],
            snapshots: vec![],
            on_write: None,
            advice: advice.map(str::to_owned),
        }
    }

    #[test]
    fn a_group_is_told_with_where_it_is_and_what_to_do() {
        assert_eq!(has(&group(Some("a"), None)), "group db has data, wal at node a");
        assert_eq!(has(&group(None, None)), "group db has data, wal at different nodes");
        assert_eq!(lines(&group(Some("a"), None)), ["group db: owner a"]);
        assert_eq!(lines(&group(None, Some("bring them together"))), ["group db: bring them together"]);
        let goes = GroupStatus { on_write: Some("b".into()), ..group(Some("a"), None) };
        assert!(lines(&goes)[1].contains("`helio group migrate db --cancel`"), "{:?}", lines(&goes));
    }

    #[test]
    fn a_move_is_told_for_all_volumes_at_once() {
        let name: GroupName = "db".parse().expect("a name");
        let moved = |name: &str, epoch| MovedVolume { name: name.into(), epoch };
        let volumes = vec![moved("data", 2), moved("wal", 5)];
        let report = GroupMigrateReport { handover_ms: 240.25, volumes, ..GroupMigrateReport::default() };
        assert_eq!(
            told(&name, "b", true, &report),
            "group db is at node b: writers waited 240.2 ms, everything is there, and the old owner is needed no more\n\
             data (epoch 2), wal (epoch 5)"
        );
        assert_eq!(told(&name, "b", false, &GroupMigrateReport::default()), "group db is at node b already");
    }

    #[test]
    fn a_snapshot_is_named_with_its_group() {
        assert!("db@monday".parse::<Target>().is_ok());
        let error = "db".parse::<Target>().expect_err("no snapshot");
        assert!(error.to_string().contains("GROUP@SNAPSHOT"), "{error}");
        for wrong in ["@monday", "db@", "d/b@monday"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
