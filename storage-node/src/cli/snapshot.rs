//! `helio volume snapshot`: create, list and delete snapshots, go back to one, make a volume of one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use client_lib::wire::admin::{CloneSnapshot, CreateSnapshot, RollBack, SnapshotStatus, VolumeStatus};
use client_lib::{Error, ErrorKind, SnapshotName, VolumeName};

use super::Common;
use super::client::{Client, print_json, print_table};
use crate::size;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Keep a volume as it is now, while it is in use
    #[command(
        after_help = "Copies nothing, and exists at every replica. Read it as the NBD export VOLUME@SNAPSHOT, at any node.\n\nExample:\n  helio volume snapshot create disk@before-upgrade"
    )]
    Create {
        /// Volume and name, as VOLUME@SNAPSHOT
        snapshot: Target,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the snapshots of a volume
    #[command(after_help = "Example:\n  helio volume snapshot list disk")]
    List {
        /// The volume
        volume: VolumeName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the volume what the snapshot is; all snapshots stay, also newer ones
    #[command(
        after_help = "Shut the machine down and unmount the volume first: whoever has it open finds another content in it.\nCopies no data at the owner; replicas are sent what differs. What was written since is gone, unless another snapshot has it.\n\nExample:\n  helio volume snapshot create disk@today\n  helio volume snapshot rollback disk@before-upgrade --discard-changes"
    )]
    Rollback {
        /// Volume and name, as VOLUME@SNAPSHOT
        snapshot: Target,
        /// Drop what was written to the volume since
        #[arg(long)]
        discard_changes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a new volume that begins as the snapshot
    #[command(
        after_help = "Copies no data, at any node that holds the snapshot. Neither needs the other from then on: both may be written, moved and deleted.\n\nExample:\n  helio volume snapshot clone disk@before-upgrade try-it"
    )]
    Clone {
        /// Volume and name, as VOLUME@SNAPSHOT
        snapshot: Target,
        /// The new volume's name
        name: VolumeName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a snapshot, everywhere; the volume and its other snapshots stay as they are
    #[command(after_help = "Example:\n  helio volume snapshot delete disk@before-upgrade")]
    Delete {
        /// Volume and name, as VOLUME@SNAPSHOT
        snapshot: Target,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) volume: VolumeName,
    pub(super) snapshot: SnapshotName,
}

impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target, Error> {
        let (volume, snapshot) = text.split_once('@').ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("{text:?} names no snapshot: write VOLUME@SNAPSHOT, as in disk@monday"),
            )
        })?;
        Ok(Target { volume: volume.parse()?, snapshot: snapshot.parse()? })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    match verb {
        Verb::Create { snapshot: target, json } => {
            let request = CreateSnapshot { name: target.snapshot.to_string() };
            let made: SnapshotStatus = client.post(&format!("/v1/volumes/{}/snapshots", target.volume), &request)?;
            if json {
                return print_json(&made);
            }
            println!("snapshot {target} has everything up to {}", made.lsn.unwrap_or_default());
        }
        Verb::List { volume, json } => {
            let snapshots: Vec<SnapshotStatus> = client.get(&format!("/v1/volumes/{volume}/snapshots"))?;
            if json {
                return print_json(&snapshots);
            }
            let rows = snapshots.into_iter().map(|snapshot| {
                vec![
                    format!("{}@{}", snapshot.volume, snapshot.name),
                    snapshot.lsn.unwrap_or_else(|| "not made yet".to_owned()),
                    size::human(snapshot.size_bytes),
                    snapshot.created_ms.map_or_else(String::new, age),
                    size::human(snapshot.held_bytes),
                    snapshot.complete_at.join(", "),
                ]
            });
            print_table(&["snapshot", "up to", "size", "made", "alone holds", "complete at"], rows.collect());
        }
        Verb::Rollback { snapshot: target, discard_changes, json } => {
            let path = format!("/v1/volumes/{}/snapshots/{}/rollback", target.volume, target.snapshot);
            let status: VolumeStatus = client.post(&path, &RollBack { discard_changes })?;
            if json {
                return print_json(&status);
            }
            println!("volume {} is what {target} is", target.volume);
        }
        Verb::Clone { snapshot: target, name, json } => {
            let path = format!("/v1/volumes/{}/snapshots/{}/clone", target.volume, target.snapshot);
            let status: VolumeStatus = client.post(&path, &CloneSnapshot { name: name.to_string() })?;
            if json {
                return print_json(&status);
            }
            println!("volume {name} begins as {target}, owned by {}", status.owner);
        }
        Verb::Delete { snapshot: target, json } => {
            client.delete::<()>(&format!("/v1/volumes/{}/snapshots/{}", target.volume, target.snapshot))?;
            if json {
                return print_json(&serde_json::json!({ "deleted": target.to_string() }));
            }
            println!("deleted snapshot {target}");
        }
    }
    Ok(())
}

/// How long ago, in the largest unit that says something.
pub(super) fn age(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    // A clock that is behind the owner's.
    let seconds = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        let target: Target = "disk@before-upgrade".parse().expect("parses");
        assert_eq!(target.to_string(), "disk@before-upgrade");
        for wrong in ["disk", "@snap", "disk@", "disk@a@b", "di/sk@a"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
        assert!("disk".parse::<Target>().expect_err("no snapshot").to_string().contains("VOLUME@SNAPSHOT"));
    }
}
