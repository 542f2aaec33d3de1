//! `helio volume takeover` and `rejoin`: give a volume whose owner is lost to a replica, and let the old owner follow again.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use client_lib::VolumeName;
use client_lib::wire::admin::{AskTakeover, TailStatus, TakeoverProgress, TakeoverReport};

use super::Common;
use super::client::{Client, print_json};
use crate::size;

/// How often a takeover is looked at while it goes on.
const LOOK: Duration = Duration::from_millis(500);

/// Give a volume whose owner is lost to a replica; what the replica does not hold is lost
#[derive(Debug, Args)]
#[command(
    after_help = "Waits until the owner's lease is out, so that never two nodes write; one whose store has failed steps down when it is asked, and nobody waits. An owner that is alive otherwise is not taken from: use `helio volume migrate` then.\n\nExample:\n  helio volume takeover disk\n  helio volume takeover disk --to b"
)]
pub(super) struct Takeover {
    /// The volume
    volume: VolumeName,
    /// The node that is to own it [default: the replica that holds most]
    #[arg(long)]
    to: Option<String>,
    /// Allow a node that holds less than another replica, or than one that does not answer and may hold what was flushed in the
    /// volume's class: what only that one holds is cut off
    #[arg(long)]
    behind: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Let a node that has left a volume after a takeover follow it again: it is sent what differs
#[derive(Debug, Args)]
#[command(
    after_help = "What the node wrote and the takeover cut off is dropped for good; `helio volume status` shows how much that is.\n\nExample:\n  helio volume rejoin disk --node a --discard-tail"
)]
pub(super) struct Rejoin {
    /// The volume
    volume: VolumeName,
    /// The node
    #[arg(long)]
    node: String,
    /// Drop what the takeover cut off
    #[arg(long)]
    discard_tail: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(takeover: Takeover, common: &Common) -> anyhow::Result<()> {
    let path = format!("/v1/volumes/{}/takeover", takeover.volume);
    let (asking, looking) = (Client::find(common)?, Client::find(common)?);
    let request = AskTakeover { to: takeover.to, behind: takeover.behind };
    let (told, report) = channel();
    let asked = path.clone();
    // The receiver lives as long as the command.
    std::thread::spawn(move || drop(told.send(asking.post::<TakeoverReport>(&asked, &request))));
    let mut line = ProgressLine::default();
    let report = loop {
        match report.recv_timeout(LOOK) {
            Ok(report) => break report,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the request ended early"),
        }
        if let Ok(progress) = looking.get::<TakeoverProgress>(&path) {
            line.show(&progress);
        }
    };
    line.end();
    let report = report?;
    if takeover.json {
        return print_json(&report);
    }
    print!("{}", told_in_words(&report));
    Ok(())
}

pub(super) fn rejoin(rejoin: Rejoin, common: &Common) -> anyhow::Result<()> {
    let path = format!("/v1/volumes/{}/rejoin", rejoin.volume);
    let request = client_lib::wire::admin::Rejoin { node: rejoin.node.clone(), discard_tail: rejoin.discard_tail };
    let dropped: TailStatus = Client::find(common)?.post(&path, &request)?;
    if rejoin.json {
        return print_json(&dropped);
    }
    println!(
        "node {} follows volume {} again from {}; {} writes ({}) after that are dropped. It is sent what differs: until it has that it cannot \
         take the volume over (`helio volume status {}` shows how much is left)",
        rejoin.node,
        rejoin.volume,
        dropped.from,
        dropped.writes,
        size::human(dropped.bytes),
        rejoin.volume
    );
    Ok(())
}

/// What goes on, on standard error: one line that changes, or on no terminal a line for each thing done.
#[derive(Default)]
struct ProgressLine {
    shown: Option<String>,
}

impl ProgressLine {
    fn show(&mut self, progress: &TakeoverProgress) {
        let left = progress.remaining_ms.map(|ms| format!(", {:.0} s left", (ms as f64 / 1000.0).ceil()));
        let left = left.unwrap_or_default();
        let is_terminal = std::io::stderr().is_terminal();
        let line = match is_terminal {
            true => format!("{}{left}", progress.doing),
            false => progress.doing.clone(),
        };
        if self.shown.as_ref() == Some(&line) {
            return;
        }
        match is_terminal {
            // Back to the start, and clear what stood there (ECMA-48, EL).
            true => eprint!("\r\x1b[K{line}"),
            false => eprintln!("{line}{left}"),
        }
        // A progress line that cannot be written is no reason to fail.
        let _ = std::io::stderr().flush();
        self.shown = Some(line);
    }

    fn end(&self) {
        if self.shown.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

fn told_in_words(report: &TakeoverReport) -> String {
    let TakeoverReport { volume, from, to, epoch, start, known, took_seconds, .. } = report;
    let mut text =
        format!("volume {volume} is at node {to} (epoch {epoch}) after {took_seconds:.1} s, as it was at {start}\n");
    text += &match report.lost_writes {
        0 => format!("lost: nothing that any replica in reach had been told of (up to {known})\n"),
        writes => format!(
            "lost: at least {writes} writes, up to {known}: {} of blocks that {to} knew of, {:.1} s of writing\n",
            size::human(report.lost_bytes),
            report.lost_seconds
        ),
    };
    text += &match report.heard_seconds_ago {
        Some(ago) => format!("node {to} had last heard of node {from} {ago:.1} s before; "),
        None => format!("node {to} had not heard of node {from} since it was started; "),
    };
    text += &format!(
        "what {from} wrote and told nobody is not counted: `helio volume status {volume}` shows it when {from} is back\n"
    );
    if !report.lost_snapshots.is_empty() {
        text += &format!("lost snapshots: {}\n", report.lost_snapshots.join(", "));
    }
    if !report.left.is_empty() {
        text += &format!("these hold more, and have left the volume with it: {}\n", report.left.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> TakeoverReport {
        TakeoverReport {
            volume: "disk".into(),
            from: "a".into(),
            to: "b".into(),
            epoch: 2,
            start: "1.40".into(),
            known: "1.52".into(),
            lost_writes: 12,
            lost_bytes: 40960,
            lost_seconds: 0.3,
            heard_seconds_ago: Some(9.1),
            took_seconds: 8.2,
            lost_snapshots: Vec::new(),
            left: Vec::new(),
        }
    }

    #[test]
    fn the_report_says_what_is_lost_and_what_nobody_can_know() {
        let text = told_in_words(&report());
        assert!(text.contains("at least 12 writes, up to 1.52"), "{text}");
        assert!(text.contains("helio volume status disk"), "{text}");
        let whole = TakeoverReport { lost_writes: 0, known: "1.40".into(), ..report() };
        assert!(told_in_words(&whole).contains("lost: nothing that any replica in reach had been told of"));
        let more = TakeoverReport { lost_snapshots: vec!["monday".into()], left: vec!["c".into()], ..report() };
        let text = told_in_words(&more);
        assert!(text.contains("lost snapshots: monday") && text.contains("have left the volume with it: c"), "{text}");
    }
}
