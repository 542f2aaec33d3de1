//! `helio volume migrate`: hands a volume over; at once, or when the new owner holds everything.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use client_lib::VolumeName;
use client_lib::wire::admin::{self, MigrateReport, VolumeStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Common;
use super::client::{Client, print_json};
use crate::size;

/// When a volume is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// At once: what is still on its way is fetched on demand, and the old owner is needed until then
    Instant,
    /// When the new owner holds everything: the loss of the old one costs nothing from then on
    Synced,
}

/// Hand a volume over to another node, while it is in use
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume migrate disk --to b\n  helio volume migrate disk --to b --mode synced\n\nEither way writers wait for some round trips only. `helio volume status` shows how long the old owner is still needed."
)]
pub(super) struct Migrate {
    /// Its name
    name: VolumeName,
    /// The node that is to own it
    #[arg(long)]
    to: String,
    /// When it is handed over
    #[arg(long, default_value = "instant")]
    mode: Mode,
    /// Also where its class of durability can never be met
    #[arg(long)]
    accept_unmet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the new owner may lack when the owner is asked: it waits for that by itself, in less time than an answer may take.
const LEFT_BYTES_MAX: u64 = 4 << 20;

/// How often it is looked how far the new owner is.
const LOOK: Duration = Duration::from_millis(500);

/// So many looks without progress, and it is asked all the same: the owner says what is wrong.
const LOOKS_MAX: u32 = 60;

const TEMPLATE: &str = "{bar:30} {bytes} of {total_bytes} at the new owner, {bytes_per_sec}, {eta} left {msg}";

pub(super) fn run(arguments: &Migrate, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let path = format!("/v1/volumes/{}", arguments.name);
    let synced = arguments.mode == Mode::Synced;
    if synced {
        catch_up(&client, &path, &arguments.to)?;
    }
    let request = admin::Migrate { to: arguments.to.clone(), accept_unmet: arguments.accept_unmet, synced };
    let report: MigrateReport = client.post(&format!("{path}/migrate"), &request)?;
    if arguments.json {
        return print_json(&report);
    }
    let follow = match report.stale_bytes_at_handover {
        0 if synced => "everything is there, and the old owner is needed no more".to_owned(),
        stale => format!("{} follow", size::human(stale)),
    };
    println!(
        "volume {} is at node {} (epoch {}): writers waited {:.1} ms, {follow}",
        arguments.name, arguments.to, report.epoch, report.handover_ms
    );
    Ok(())
}

/// Shows how the new owner catches up, until it lacks little.
fn catch_up(client: &Client, path: &str, to: &str) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut most, mut least, mut looks) = (0, u64::MAX, 0);
    while looks < LOOKS_MAX {
        let status: VolumeStatus = client.get(path)?;
        let Some(replica) = status.replicas.iter().find(|replica| replica.node == to) else { break };
        if let Some(tail) = &replica.tail {
            bail!("node {to} has left the volume with {} writes that a takeover cut off", tail.writes);
        }
        let behind = replica.bytes_behind;
        if behind <= LEFT_BYTES_MAX {
            break;
        }
        looks = if behind < least { 0 } else { looks + 1 };
        (most, least) = (most.max(behind), least.min(behind));
        bar.set_length(most);
        bar.set_position(most - behind);
        bar.set_message(if replica.reachable { String::new() } else { format!("(node {to} cannot be reached)") });
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_its_template() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
