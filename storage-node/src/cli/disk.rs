//! `helio node disk`: the disks of a node that does not run.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;

use super::client::{print_json, print_table};
use crate::config::NodeConfig;
use crate::stores::offline::{Disk, Disks, Known, Presence};

/// The disks of a node that does not run: where its stores are, what each has, and going on without a lost one
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the stores of a node that does not run, with the volumes in each and those that are missing
    #[command(after_help = "Example:\n  helio node disk list --config a.toml")]
    List {
        /// Settings of the node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a node start with an empty store in place of one that is lost for good
    #[command(
        after_help = "Without --confirm it only shows what would be lost. Mount the new disk at the same place, or name another\ndirectory instead of it in the settings. docs/disks.md has every step.\n\nExample:\n  helio node disk replace --config a.toml /mnt/b/heliotrope\n  helio node disk replace --config a.toml /mnt/b/heliotrope --confirm"
    )]
    Replace {
        /// Settings of the node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The directory of the lost store
        directory: PathBuf,
        /// Volumes that this node owned there, all of them: their data here is given up
        #[arg(long, value_name = "VOLUMES", value_delimiter = ',')]
        lose: Vec<String>,
        /// Do it
        #[arg(long)]
        confirm: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List { config, json } => {
            let config = NodeConfig::read(config)?;
            let disks = Disks::open(&config.data, &config.store.directories)?;
            show(&disks, *json)
        }
        Verb::Replace { config: file, directory, lose, confirm, json } => {
            let config = NodeConfig::read(file)?;
            let mut disks = Disks::open(&config.data, &config.store.directories)?;
            let directory = std::path::absolute(directory)?;
            if !json {
                show(&disks, false)?;
            }
            let lost: Vec<Known> = disks.lost_with(&directory).into_iter().cloned().collect();
            if !confirm {
                bail!(
                    "nothing was changed: add --confirm to let the node start with an empty store instead of {}",
                    directory.display()
                );
            }
            disks.give_up(&directory, lose)?;
            if *json {
                return print_json(
                    &json!({ "replaced": directory, "lost": lost.iter().map(volume_json).collect::<Vec<_>>() }),
                );
            }
            println!(
                "the store in {} is struck from the list; start the node: helio node --config {}",
                directory.display(),
                file.display()
            );
            Ok(())
        }
    }
}

fn show(disks: &Disks, json: bool) -> anyhow::Result<()> {
    let lost = disks.lost();
    if json {
        let each = disks.disks.iter().map(|disk| {
            let volumes = disk.volumes.iter().map(|id| match disks.volumes.get(id) {
                Some(known) => volume_json(known),
                None => json!({ "id": id.0, "name": disks.others.get(id) }),
            });
            json!({ "directory": disk.directory, "state": state(disk), "volumes": volumes.collect::<Vec<_>>() })
        });
        let lost = lost.into_iter().map(volume_json);
        return print_json(&json!({ "disks": each.collect::<Vec<_>>(), "lost": lost.collect::<Vec<_>>() }));
    }
    let rows = disks.disks.iter().map(|disk| {
        let names = disk.volumes.iter().map(|id| match disks.volumes.get(id) {
            Some(known) => format!("{} ({})", known.name, if known.owned { "owner" } else { "replica" }),
            None => match disks.others.get(id) {
                Some(name) => format!("{name} (not followed)"),
                None => format!("id {id} (deleted)"),
            },
        });
        vec![disk.directory.display().to_string(), state(disk), names.collect::<Vec<_>>().join(", ")]
    });
    print_table(&["store", "state", "volumes"], rows.collect());
    let is_there = |disk: &Disk| matches!(disk.presence, Presence::Here | Presence::Moved(_));
    if !disks.disks.iter().all(is_there) {
        println!();
        if lost.is_empty() {
            println!("every volume of this node is in a store that is there");
        } else {
            println!("not in any store that is there, by the last the node heard:");
            let rows = lost.into_iter().map(|known| {
                let role =
                    if known.owned { "owner: what no replica has is lost" } else { "replica: will be sent again" };
                vec![known.name.clone(), role.to_owned(), known.others.join(", ")]
            });
            print_table(&["volume", "this node was", "also at"], rows.collect());
        }
    }
    Ok(())
}

fn state(disk: &Disk) -> String {
    match &disk.presence {
        Presence::Here => "here".to_owned(),
        Presence::Moved(to) => format!("moved to {}", to.display()),
        Presence::Missing => "missing".to_owned(),
        Presence::Unreadable(why) => format!("unreadable: {why}"),
    }
}

fn volume_json(known: &Known) -> serde_json::Value {
    json!({ "id": known.id.0, "name": known.name, "owner": known.owned, "epoch": known.epoch.0, "also_at": known.others })
}
