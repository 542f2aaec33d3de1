//! `helio volume migrate`: hands a volume over; at once, when the new owner holds everything, or when it is written there.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use client_lib::VolumeName;
use client_lib::wire::admin::{self, CancelledMigrate, MigrateReport, OnWriteStatus, VolumeStatus};
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
    after_help = "Examples:\n  helio volume migrate disk --to b\n  helio volume migrate disk --to b --mode synced --deadline 60\n  helio volume migrate disk --to b --on-write    # before a virtual machine is moved there\n  helio volume migrate disk --cancel\n\nWriters wait for some round trips only, whatever the mode. `helio volume status` shows how long the old owner is still needed. docs/migrate.md has the recipes for virtual machines."
)]
pub(super) struct Migrate {
    /// Its name
    name: VolumeName,
    /// The node that is to own it
    #[arg(long, required_unless_present = "cancel")]
    to: Option<String>,
    /// When it is handed over
    #[arg(long, default_value = "instant")]
    mode: Mode,
    /// Give up after so many seconds, if it is not decided by then; the volume stays where it is
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "on_write")]
    deadline: Option<u32>,
    /// Not now, but with the first write at the new owner after the last flush at the old one: as a virtual machine moves that nobody tells of
    #[arg(long, conflicts_with = "mode")]
    on_write: bool,
    /// End a handover that is under way and not decided yet, and take `--on-write` back
    #[arg(long, conflicts_with_all = ["to", "mode", "deadline", "on_write", "accept_unmet"])]
    cancel: bool,
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
    let Some(to) = &arguments.to else { return cancel(arguments, &client, &path) };
    if arguments.on_write {
        return on_write(arguments, to, &client, &path);
    }
    let began = Instant::now();
    let deadline = arguments.deadline.map(|seconds| Duration::from_secs(u64::from(seconds)));
    let synced = arguments.mode == Mode::Synced;
    if synced {
        catch_up(&client, &path, to, deadline.map(|deadline| began + deadline))?;
    }
    // What is left of it; the node says so when it is over.
    let deadline_ms = deadline.map(|deadline| deadline.saturating_sub(began.elapsed()).as_millis() as u64);
    let request = admin::Migrate { to: to.clone(), accept_unmet: arguments.accept_unmet, synced, deadline_ms };
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
        arguments.name, to, report.epoch, report.handover_ms
    );
    Ok(())
}

fn on_write(arguments: &Migrate, to: &str, client: &Client, path: &str) -> anyhow::Result<()> {
    let request = admin::OnWrite { to: to.to_owned(), accept_unmet: arguments.accept_unmet };
    let status: OnWriteStatus = client.post(&format!("{path}/on-write"), &request)?;
    if arguments.json {
        return print_json(&status);
    }
    println!(
        "volume {} goes to node {to} with the first write there after a flush; once, and until `helio volume migrate {} --cancel`",
        arguments.name, arguments.name
    );
    Ok(())
}

fn cancel(arguments: &Migrate, client: &Client, path: &str) -> anyhow::Result<()> {
    let cancelled: CancelledMigrate = client.delete(&format!("{path}/migrate"))?;
    if arguments.json {
        return print_json(&cancelled);
    }
    let name = &arguments.name;
    if cancelled.handover {
        println!("the handover of volume {name} was told to end; the command that began it says whether it did");
    }
    if let Some(to) = &cancelled.on_write {
        println!("volume {name} does not go to node {to} any more when it is written there");
    }
    if !cancelled.handover && cancelled.on_write.is_none() {
        println!("no handover of volume {name} is under way, or can still be ended, and it goes nowhere by a write");
    }
    Ok(())
}

/// Shows how the new owner catches up, until it lacks little.
fn catch_up(client: &Client, path: &str, to: &str, until: Option<Instant>) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut most, mut least, mut looks) = (0, u64::MAX, 0);
    while looks < LOOKS_MAX && until.is_none_or(|until| Instant::now() < until) {
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
