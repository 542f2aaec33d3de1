//! `helio volume scrub` and `helio node scrub`: reading everything stored and comparing it with its checksums, now.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use client_lib::wire::admin::{ScrubState, ScrubStatus};
use client_lib::{NodeName, VolumeName};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Common;
use super::client::{Client, print_json};
use crate::size::human;

/// Pause between two looks at the scrub.
const LOOK: Duration = Duration::from_millis(250);
/// How many looks the repair of what was found last is waited for: ten seconds.
const REPAIR_LOOKS: u32 = 40;
/// What the bar shows; bytes per second are counted by it.
const TEMPLATE: &str = "{wide_bar} {bytes} of {total_bytes} checked, {bytes_per_sec}, {msg}";

/// Read everything a volume has, snapshots included, and compare it with its checksums
#[derive(Debug, Args)]
#[command(
    after_help = "What is damaged is repaired from another node that has it. It goes on when this command is interrupted; the\nsame command shows it again.\n\nExamples:\n  helio volume scrub disk\n  helio volume scrub disk --node b --no-wait\n  helio volume scrub disk --stop"
)]
pub(super) struct VolumeScrub {
    /// The volume
    volume: VolumeName,
    #[command(flatten)]
    common: ScrubArguments,
}

/// Read everything a node stores, and compare it with its checksums
#[derive(Debug, Args)]
#[command(
    after_help = "What is damaged is repaired from another node that has it. It goes on when this command is interrupted; the\nsame command shows it again.\n\nExamples:\n  helio node scrub\n  helio node scrub --node b --status --json"
)]
pub(super) struct NodeScrub {
    #[command(flatten)]
    common: ScrubArguments,
}

#[derive(Debug, Args)]
struct ScrubArguments {
    /// At this node [default: the owner of the volume, or the node asked]
    #[arg(long)]
    node: Option<NodeName>,
    /// Begin it and return at once
    #[arg(long, conflicts_with_all = ["stop", "status"])]
    no_wait: bool,
    /// Only show how far it is, or what the last one found
    #[arg(long, conflicts_with = "stop")]
    status: bool,
    /// End the one under way
    #[arg(long)]
    stop: bool,
    /// Print JSON: how it ended, or stands
    #[arg(long)]
    json: bool,
}

pub(super) fn run_volume(arguments: &VolumeScrub, common: &Common) -> anyhow::Result<()> {
    run(Some(&arguments.volume), &arguments.common, common)
}

pub(super) fn run_node(arguments: &NodeScrub, common: &Common) -> anyhow::Result<()> {
    run(None, &arguments.common, common)
}

fn run(volume: Option<&VolumeName>, arguments: &ScrubArguments, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let volume = volume.map(|volume| format!("volume={volume}"));
    let node = arguments.node.as_ref().map(|node| format!("node={node}"));
    let path = format!("/v1/scrub?{}", volume.into_iter().chain(node).collect::<Vec<_>>().join("&"));
    let status: ScrubStatus = match arguments {
        ScrubArguments { stop: true, .. } => client.delete(&path)?,
        ScrubArguments { status: true, .. } => client.get(&path)?,
        ScrubArguments { no_wait: true, .. } => client.post(&path, &())?,
        _ => follow(&client, &path)?,
    };
    if arguments.json {
        print_json(&status)?;
    } else {
        println!("{}", summary(&status));
    }
    // Whoever waited for it is told by the exit code.
    let waited = !(arguments.stop || arguments.status || arguments.no_wait);
    match (waited, status.state) {
        (true, ScrubState::Stopped) => bail!("it was stopped before everything was read"),
        (true, _) if status.damaged_now > 0 => bail!(
            "{} blocks are damaged, and no other node has sent them: what is written anew is whole again (docs/damage.md)",
            status.damaged_now
        ),
        _ => Ok(()),
    }
}

/// Begins a scrub, or goes on watching the one under way, until it is over.
fn follow(client: &Client, path: &str) -> anyhow::Result<ScrubStatus> {
    let mut status: ScrubStatus = client.post(path, &())?;
    let bar = ProgressBar::with_draw_target(Some(status.total_bytes), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(status.checked_bytes);
    bar.reset_eta();
    let mut repair_looks = 0;
    while status.state == ScrubState::Running || (status.damaged_now > 0 && repair_looks < REPAIR_LOOKS) {
        if status.state != ScrubState::Running {
            repair_looks += 1;
        }
        std::thread::sleep(LOOK);
        status = client.get(path)?;
        bar.set_length(status.total_bytes);
        bar.set_position(status.checked_bytes);
        bar.set_message(format!("{} damaged, {} repaired", status.damaged_blocks, status.repaired_blocks));
    }
    bar.finish_and_clear();
    Ok(status)
}

fn summary(status: &ScrubStatus) -> String {
    let what = status.volume.as_ref().map_or_else(|| "everything".to_owned(), |volume| format!("volume {volume}"));
    let took = match (status.began_ms, status.ended_ms) {
        (Some(began), Some(ended)) => format!(" in {:.1} s", ended.saturating_sub(began) as f64 / 1000.0),
        _ => String::new(),
    };
    let how = match status.state {
        ScrubState::Never => return format!("no scrub of {what} at node {} yet", status.node),
        ScrubState::Running if status.by_hand => "under way",
        ScrubState::Running => "under way (it began by itself)",
        ScrubState::Finished => "finished",
        ScrubState::Stopped => "stopped",
    };
    format!(
        "scrub of {what} at node {}: {how}, {} of {} checked{took}, {} damaged blocks found, {} repaired, {} damaged now",
        status.node,
        human(status.checked_bytes),
        human(status.total_bytes),
        status.damaged_blocks,
        status.repaired_blocks,
        status.damaged_now
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_summed_up_and_the_bar_has_its_template() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let mut status = ScrubStatus { node: "a".to_owned(), ..ScrubStatus::default() };
        assert_eq!(summary(&status), "no scrub of everything at node a yet");
        (status.state, status.volume) = (ScrubState::Finished, Some("disk".to_owned()));
        (status.began_ms, status.ended_ms) = (Some(1000), Some(3500));
        (status.checked_bytes, status.total_bytes, status.damaged_blocks) = (1 << 20, 1 << 20, 2);
        let expected = "scrub of volume disk at node a: finished, 1 MiB of 1 MiB checked in 2.5 s, 2 damaged blocks found, 0 repaired, 0 damaged now";
        assert_eq!(summary(&status), expected);
    }
}
