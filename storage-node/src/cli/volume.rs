//! `helio volume`: create, list, look at, resize and delete volumes; `migrate`, `takeover`, `policy`, `snapshot`, `import` and
//! `export` have files of their own.

use clap::Subcommand;
use client_lib::VolumeName;
use client_lib::policy::placement::Placement;
use client_lib::wire::admin::{
    CloneOrigin, CreateVolume, OwnerStatus, ReplicaStatus, Resize, SnapshotStatus, VolumeStatus, VolumeSummary,
};

use super::client::{Client, print_json, print_table};
use super::confirm::confirm;
use super::{
    Common, export, import, key, link, migrate, place, policy, replica, scrub, snapshot, space, takeover, why,
};
use crate::size;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a volume
    #[command(
        after_help = "Example:\n  helio volume create disk --size 10GiB --owner a --replicas b,c\n  helio volume create disk --size 10GiB --durability geo:1\n  helio volume create disk --size 10GiB --place \"2 in eu, 1 elsewhere\"\n  helio volume create disk --size 10GiB --encrypt --key-file prod.key"
    )]
    Create {
        /// Its name
        name: String,
        /// Its size: bytes, or a number with K, M, G or T, which are powers of 1024
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// The node that owns it [default: the node asked]
        #[arg(long)]
        owner: Option<String>,
        /// The nodes that follow, with commas between them: `b,c` [default: all others, at most 15]
        #[arg(long, value_delimiter = ',', conflicts_with = "place")]
        replicas: Option<Vec<String>>,
        /// Where copies are to be, now and later, as "2 in eu, 1 elsewhere" (`helio volume place --help`)
        #[arg(long, value_name = "RULE")]
        place: Option<Placement>,
        #[command(flatten)]
        durability: policy::DurabilityArguments,
        #[command(flatten)]
        encrypt: key::Encrypt,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the volumes
    #[command(after_help = "Example:\n  helio volume list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show owner, epoch and how far each replica is
    #[command(after_help = "Example:\n  helio volume status disk")]
    Status {
        /// Its name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Migrate(migrate::Migrate),
    Takeover(takeover::Takeover),
    Rejoin(takeover::Rejoin),
    Policy(policy::Policy),
    /// Give a volume another size, while it is in use
    #[command(after_help = "Example:\n  helio volume resize disk --size 20GiB")]
    Resize {
        /// Its name
        name: String,
        /// The new size: bytes, or a number with K, M, G or T, which are powers of 1024
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// Allow a smaller size: the data beyond its end is dropped
        #[arg(long)]
        shrink: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change which nodes follow a volume, while it is in use
    #[command(subcommand)]
    Replica(replica::Verb),
    Place(place::Place),
    /// Keep a volume as it is now; go back to that, or make another volume of it
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// The keys that open an encrypted volume: exchanged while it is in use
    #[command(subcommand)]
    Key(key::Verb),
    Scrub(scrub::VolumeScrub),
    Import(import::Import),
    Export(export::Export),
    /// Delete a volume, its snapshots and all data, everywhere. It asks first, and where it cannot ask it wants --yes
    #[command(after_help = "Example:\n  helio volume delete disk\n  helio volume delete disk --yes")]
    Delete {
        /// Its name
        name: String,
        /// It is meant: do not ask
        #[arg(long, short)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    let client = || Client::find(common);
    match verb {
        Verb::Create { name, size: size_bytes, owner, replicas, place, durability, encrypt, json } => {
            // Checked here too: an odd name must not become part of a URL, and needs no cluster to be refused.
            let volume = name.parse::<VolumeName>()?;
            let keys = key::block_on(encrypt.keys(&volume))?;
            let request = CreateVolume {
                name,
                size_bytes,
                owner,
                replicas,
                placement: place.map(|rule| rule.to_string()),
                durability: durability.class(),
                unmet: durability.unmet(),
                degrade_after_ms: durability.degrade_after_ms(),
                accept_unmet: durability.accept_unmet,
                keys,
            };
            let status: VolumeStatus = client()?.post("/v1/volumes", &request)?;
            if json {
                return print_json(&status);
            }
            println!("created volume {} of {} at node {}", status.name, size::human(status.size_bytes), status.owner);
            if let Some(encryption) = &status.encryption {
                println!("{}: without one of its keys its data is lost", key::sentence(encryption));
            }
        }
        Verb::List { json } => {
            let volumes: Vec<VolumeSummary> = client()?.get("/v1/volumes")?;
            if json {
                return print_json(&volumes);
            }
            let rows = volumes.into_iter().map(|volume| {
                let size = size::human(volume.size_bytes);
                let (epoch, replicas) = (volume.epoch.to_string(), volume.replicas.join(", "));
                vec![volume.name, size, volume.owner, epoch, volume.durability, replicas]
            });
            print_table(&["volume", "size", "owner", "epoch", "durability", "replicas"], rows.collect());
        }
        Verb::Status { name, json } => {
            let client = client()?;
            let status: VolumeStatus = client.get(&path(&name)?)?;
            if json {
                return print_json(&status);
            }
            let owner = match status.stepped_down {
                true => Some(client.get(&format!("{}/owner", path(&name)?))?),
                false => None,
            };
            print_status(&status, owner.as_ref());
        }
        Verb::Migrate(arguments) => return migrate::run(&arguments, common),
        Verb::Resize { name, size: size_bytes, shrink, json } => {
            let status: VolumeStatus =
                client()?.post(&format!("{}/resize", path(&name)?), &Resize { size_bytes, shrink })?;
            if json {
                return print_json(&status);
            }
            println!(
                "volume {} has {}; clients see it when they reconnect",
                status.name,
                size::human(status.size_bytes)
            );
        }
        Verb::Takeover(arguments) => return takeover::run(arguments, common),
        Verb::Rejoin(arguments) => return takeover::rejoin(arguments, common),
        Verb::Policy(arguments) => return policy::run(&arguments, common),
        Verb::Place(arguments) => return place::run_volume(&arguments, common),
        Verb::Replica(verb) => return replica::run(&verb, replica::Of::Volume, common),
        Verb::Snapshot(verb) => return snapshot::run(verb, common),
        Verb::Key(verb) => return key::run(verb, common),
        Verb::Scrub(arguments) => return scrub::run_volume(&arguments, common),
        Verb::Import(arguments) => return import::run(&arguments, common),
        Verb::Export(arguments) => return export::run(&arguments, common),
        Verb::Delete { name, yes, json } => {
            let client = client()?;
            if !yes {
                confirm(|| deletion_question(&client, &name))?;
            }
            client.delete::<()>(&path(&name)?)?;
            if json {
                return print_json(&serde_json::json!({ "deleted": name }));
            }
            println!("deleted volume {name}");
        }
    }
    Ok(())
}

/// Says what there is to lose, as far as the owner answers.
fn deletion_question(client: &Client, name: &str) -> anyhow::Result<String> {
    let question = format!("delete volume {name} at every node?");
    let owner: OwnerStatus = client.get(&format!("{}/owner", path(name)?))?;
    if !owner.reachable {
        return Ok(question);
    }
    let status: VolumeStatus = client.get(&path(name)?)?;
    let snapshots: Vec<SnapshotStatus> = client.get(&format!("{}/snapshots", path(name)?))?;
    let and = if snapshots.is_empty() { String::new() } else { format!(" and {} snapshots", snapshots.len()) };
    Ok(format!("{question} It holds {}{and}.", size::human(status.mapped_bytes)))
}

fn path(name: &str) -> anyhow::Result<String> {
    Ok(format!("/v1/volumes/{}", name.parse::<VolumeName>()?))
}

/// What a clone began as.
fn origin_line(origin: &CloneOrigin) -> String {
    let what = match (&origin.volume, &origin.snapshot) {
        (Some(volume), Some(snapshot)) => format!("clone of {volume}@{snapshot}"),
        (Some(volume), None) => format!("clone of {volume}, of a snapshot that is deleted"),
        (None, _) => "clone of a volume that is deleted".to_owned(),
    };
    if origin.is_made { what } else { format!("{what}, being made") }
}

fn print_status(status: &VolumeStatus, stepped_down: Option<&OwnerStatus>) {
    println!(
        "volume {} of {}: owner {}, epoch {}, head {}, {} in use",
        status.name,
        size::human(status.size_bytes),
        status.owner,
        status.epoch,
        status.head,
        size::human(status.mapped_bytes)
    );
    if let Some(group) = &status.group {
        println!("it is in group {group}, and moves with it (`helio group status {group}`)");
    }
    if let Some(encryption) = &status.encryption {
        println!("{}", key::sentence(encryption));
    }
    if let Some(origin) = &status.clone_of {
        println!("{}", origin_line(origin));
    }
    match status.fetched_from() {
        Some(elsewhere) => println!("{} still come from {}", size::human(elsewhere.bytes), elsewhere.told()),
        None => println!("every block is at the owner"),
    }
    if let Some(sentence) = link::fetch_sentence(&status.owner, &status.fetch) {
        println!("{sentence}");
    }
    if let Some(to) = status.on_write.as_ref().filter(|_| status.group.is_none()) {
        println!(
            "it goes to node {to} when it is written there, after a flush here (`helio volume migrate {} --cancel` takes that back)",
            status.name
        );
    }
    policy::print_durability(status);
    if let Some(placement) = &status.placement {
        place::lines(&format!("placement of {}", status.name), placement).iter().for_each(|line| println!("{line}"));
    }
    // A node that does not tell yet.
    if !status.space.store.is_empty() {
        space::print_of_volume(&status.space);
    }
    if status.damaged_blocks + status.repaired_blocks > 0 {
        println!(
            "{} damaged blocks at the owner, {} repaired from other nodes since it started: look at its disk",
            status.damaged_blocks, status.repaired_blocks
        );
    }
    if let Some(fault) = &status.fault {
        let since = status.fault_since_ms.map_or_else(String::new, |at_ms| format!(", found {}", snapshot::age(at_ms)));
        println!("node {} takes no writes of this volume until it is restarted: {fault}{since}", status.owner);
        if let Some(why) = &status.not_given_away {
            println!("it could not be given to a replica: {why}");
        }
        match stepped_down {
            Some(owner) => println!("{}", why::of_owner_that_stepped_down(&status.name, owner, true)),
            None => println!(
                "reads go on, from other nodes where the disk fails; next: `helio volume takeover {}` has a replica go on, or look at the disk of \
                 {} (dmesg, smartctl), then restart node {}; is it lost for good, see docs/disks.md",
                status.name, status.space.store, status.owner
            ),
        }
    }
    if status.is_full {
        println!("{}", space::full(&format!("store {}", status.space.store)));
    }
    for tail in status.replicas.iter().filter_map(|replica| replica.tail.as_ref()) {
        println!(
            "node {} has left the volume: a takeover cut off {} writes ({}) that it holds, from {} to {}; read them there as the export \
             {}, or drop them with `helio volume rejoin {} --node {} --discard-tail`",
            tail.node,
            tail.writes,
            size::human(tail.bytes),
            tail.from,
            tail.to,
            tail.export,
            status.name,
            tail.node
        );
    }
    let rows = status.replicas.iter().map(|replica| {
        if replica.tail.is_some() {
            let reachable = in_reach(replica).to_owned();
            let unknown = || "-".to_owned();
            let (node, provider) = (replica.node.clone(), replica.provider.clone());
            return vec![node, provider, "has left".to_owned(), unknown(), unknown(), unknown(), unknown(), reachable];
        }
        vec![
            replica.node.clone(),
            replica.provider.clone(),
            match (replica.is_rejoining, replica.is_joining) {
                (_, true) => "joins".to_owned(),
                (true, false) => "catches up".to_owned(),
                (false, false) => replica.watermark.clone(),
            },
            size::human(replica.bytes_behind),
            format!("{:.1} s", replica.seconds_behind),
            policy::as_of(replica),
            size::human(replica.stale_bytes),
            in_reach(replica).to_owned(),
        ]
    });
    if status.replicas.is_empty() {
        println!(
            "no other node has it (`helio volume replica add {} NODE` makes one follow): what node {} loses of it is lost",
            status.name, status.owner
        );
        return;
    }
    print_table(&["replica", "provider", "watermark", "behind", "for", "as of", "stale", "reachable"], rows.collect());
    for replica in &status.replicas {
        if let Some(sentence) = link::sentence(&replica.node, &replica.freight) {
            println!("{sentence}");
        }
    }
    for replica in status.replicas.iter().filter(|replica| !replica.reachable) {
        if let Some(error) = &replica.error {
            println!("replica {} does not follow: {error}", replica.node);
        }
    }
}

/// Whether a replica can be reached; nothing is known of one that this owner has yet to hear of.
fn in_reach(replica: &ReplicaStatus) -> &'static str {
    match (replica.reachable, &replica.error) {
        (true, _) => "yes",
        (false, Some(_)) => "no",
        (false, None) => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_tells_what_it_began_as_as_far_as_that_has_a_name() {
        let told = |volume: Option<&str>, snapshot: Option<&str>, is_made| {
            origin_line(&CloneOrigin {
                volume: volume.map(str::to_owned),
                snapshot: snapshot.map(str::to_owned),
                is_made,
            })
        };
        assert_eq!(told(Some("disk"), Some("monday"), true), "clone of disk@monday");
        assert_eq!(told(Some("disk"), Some("monday"), false), "clone of disk@monday, being made");
        assert_eq!(told(Some("disk"), None, true), "clone of disk, of a snapshot that is deleted");
        assert_eq!(told(None, None, true), "clone of a volume that is deleted");
    }
}
