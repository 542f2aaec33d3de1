//! `helio volume migrate`: hands a volume over; at once, when the new owner holds everything, or when it is written there.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use client_lib::VolumeName;
use client_lib::wire::admin::{self, CancelledMigrate, MigrateReport, OnWriteStatus};

use super::Common;
use super::catch_up::hand_over;
use super::client::{Client, print_json};
use crate::size;

/// When a volume is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
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
    #[command(flatten)]
    how: How,
}

/// Where a volume, or the volumes of a group, are to go, and how.
#[derive(Debug, Args)]
pub(super) struct How {
    /// The new owner
    #[arg(long, required_unless_present = "cancel")]
    pub(super) to: Option<String>,
    /// When it is handed over
    #[arg(long, default_value = "instant")]
    pub(super) mode: Mode,
    /// Give up after so many seconds, if it is not decided by then; everything stays where it is
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "on_write")]
    pub(super) deadline: Option<u32>,
    /// Not now, but with the first write at the new owner after the last flush at the old one: as a virtual machine moves that nobody tells of
    #[arg(long, conflicts_with = "mode")]
    pub(super) on_write: bool,
    /// End a handover that is under way and not decided yet, and take `--on-write` back
    #[arg(long, conflicts_with_all = ["to", "mode", "deadline", "on_write", "accept_unmet"])]
    cancel: bool,
    /// Also where a class of durability can never be met
    #[arg(long)]
    pub(super) accept_unmet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl How {
    /// What a node is asked for, with as long as is left.
    pub(super) fn request(&self, to: &str, limit: &Limit) -> admin::Migrate {
        let (synced, deadline_ms) = (self.mode == Mode::Synced, limit.left_ms());
        admin::Migrate { to: to.to_owned(), accept_unmet: self.accept_unmet, synced, deadline_ms }
    }
}

pub(super) fn run(arguments: &Migrate, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let path = format!("/v1/volumes/{}", arguments.name);
    let how = &arguments.how;
    let Some(to) = &how.to else {
        return cancel(&client, &path, &format!("volume {}", arguments.name), how.json);
    };
    if how.on_write {
        return on_write(arguments, to, &client, &path);
    }
    let (synced, limit) = (how.mode == Mode::Synced, Limit::of(how.deadline));
    let report: MigrateReport = match synced {
        true => hand_over(&client, &path, &[arguments.name.as_str()], || how.request(to, &limit))?,
        false => client.post(&format!("{path}/migrate"), &how.request(to, &limit))?,
    };
    if how.json {
        return print_json(&report);
    }
    println!("{}", told(&arguments.name, to, synced, &report)?);
    Ok(())
}

/// What a handover came to.
///
/// # Errors
/// The volume was to have everything there and does not: nothing may be done about the old owner yet.
fn told(name: &VolumeName, to: &str, synced: bool, report: &MigrateReport) -> anyhow::Result<String> {
    let stale = report.stale_bytes_at_handover;
    if !report.was_there {
        let (waited, follow) = (report.handover_ms, follow(stale, synced));
        return Ok(format!(
            "volume {name} is at node {to} (epoch {}): writers waited {waited:.1} ms, {follow}",
            report.epoch
        ));
    }
    let is_there = format!("volume {name} is at node {to} already (epoch {})", report.epoch);
    match stale {
        0 => Ok(format!("{is_there}, and everything is there")),
        stale => {
            let rest = size::human(stale);
            let what = format!("{is_there}, and still fetches {rest}: `helio volume status {name}` says from where");
            ensure!(!synced, "{what}, and when everything is there");
            Ok(what)
        }
    }
}

fn on_write(arguments: &Migrate, to: &str, client: &Client, path: &str) -> anyhow::Result<()> {
    let request = admin::OnWrite { to: to.to_owned(), accept_unmet: arguments.how.accept_unmet };
    let status: OnWriteStatus = client.post(&format!("{path}/on-write"), &request)?;
    if arguments.how.json {
        return print_json(&status);
    }
    println!(
        "volume {} goes to node {to} with the first write there after a flush; once, and until `helio volume migrate {} --cancel`",
        arguments.name, arguments.name
    );
    Ok(())
}

/// Ends a handover of `what`, which is at `path` of the API, and takes `--on-write` back.
pub(super) fn cancel(client: &Client, path: &str, what: &str, json: bool) -> anyhow::Result<()> {
    let cancelled: CancelledMigrate = client.delete(&format!("{path}/migrate"))?;
    if json {
        return print_json(&cancelled);
    }
    if cancelled.handover {
        println!("the handover of {what} was told to end; the command that began it says whether it did");
    }
    if let Some(to) = &cancelled.on_write {
        println!("{what} does not go to node {to} any more when it is written there");
    }
    if !cancelled.handover && cancelled.on_write.is_none() {
        println!("no handover of {what} is under way, or can still be ended, and it goes nowhere by a write");
    }
    Ok(())
}

/// What the old owner is needed for after a handover.
pub(super) fn follow(stale_bytes: u64, synced: bool) -> String {
    match stale_bytes {
        0 if synced => "everything is there, and the old owner is needed no more".to_owned(),
        stale => format!("{} follow", size::human(stale)),
    }
}

/// How long a handover may take, from now on.
pub(super) struct Limit {
    began: Instant,
    deadline: Option<Duration>,
}

impl Limit {
    /// As `--deadline` has it, in seconds.
    pub(super) fn of(seconds: Option<u32>) -> Limit {
        Limit { began: Instant::now(), deadline: seconds.map(|seconds| Duration::from_secs(u64::from(seconds))) }
    }

    /// What is left of it, and at least something: the node says so when it is over.
    pub(super) fn left_ms(&self) -> Option<u64> {
        self.deadline.map(|deadline| deadline.saturating_sub(self.began.elapsed()).as_millis().max(1) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume that had come at once and still fetched 72 MiB was told to have everything, when it was sent there synced.
    #[test]
    fn a_volume_that_is_there_already_has_everything_only_if_it_does() {
        let name = "disk".parse().expect("a name");
        let report = |stale_bytes_at_handover, was_there| MigrateReport {
            handover_ms: 12.0,
            epoch: 3,
            stale_bytes_at_handover,
            caught_up_seconds: 0.0,
            was_there,
        };
        let said = |synced, report: &MigrateReport| told(&name, "b", synced, report).map_err(|error| error.to_string());
        let rest = "volume disk is at node b already (epoch 3), and still fetches 72 MiB: `helio volume status disk` says from where";
        assert_eq!(said(false, &report(72 << 20, true)), Ok(rest.to_owned()));
        assert_eq!(said(true, &report(72 << 20, true)), Err(format!("{rest}, and when everything is there")));
        let whole = "volume disk is at node b already (epoch 3), and everything is there";
        assert_eq!(said(true, &report(0, true)), Ok(whole.to_owned()));
        let moved = "volume disk is at node b (epoch 3): writers waited 12.0 ms, everything is there, and the old owner is needed no more";
        assert_eq!(said(true, &report(0, false)), Ok(moved.to_owned()));
    }
}
