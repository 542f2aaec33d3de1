//! A synced handover, as it is waited for: asked for at once, so that its owner hurries from the beginning and keeps to its deadline, with a progress bar
//! meanwhile. Ctrl-C ends it as `--cancel` does, and whoever asked hears what became of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use client_lib::wire::admin::{CancelledMigrate, Migrate, VolumeStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use crate::node::admin::GOES_ON;

/// What the next owner may lack.
pub(super) const LEFT_BYTES_MAX: u64 = 4 << 20;

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// The exit status of a command that a signal has ended: 128 and that of SIGINT.
const INTERRUPTED: i32 = 130;

const TEMPLATE: &str = "{prefix} {bar:30} {bytes} of {total_bytes} at the new owner, {bytes_per_sec}, {eta} left {msg}";

/// Hands over what is at `path` of the API, which has these `volumes`, as `request` says each time that it is asked for: its owner answers in bounded time
/// also while the new one lacks something.
///
/// # Errors
/// What the owner says; also that it was interrupted.
pub(super) fn hand_over<T: DeserializeOwned + Send>(
    client: &Client,
    path: &str,
    volumes: &[&str],
    request: impl Fn() -> Migrate + Sync,
) -> anyhow::Result<T> {
    let interrupted = interrupts()?;
    ensure!(!interrupted.load(Ordering::SeqCst), "it was interrupted");
    let path = format!("{path}/migrate");
    let ask = || loop {
        match client.post::<T>(&path, &request()) {
            Err(error) if goes_on(&error) && !interrupted.load(Ordering::SeqCst) => {}
            answer => break answer,
        }
    };
    std::thread::scope(|scope| {
        let (told, answer) = channel();
        // The receiver lives as long as this thread.
        scope.spawn(move || drop(told.send(ask())));
        let mut bar = CatchUp::of(volumes, &request().to);
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => {
                    bar.end();
                    return answer;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the request ended early"),
            }
            if interrupted.load(Ordering::SeqCst) {
                // Again with every look: the first may have come before what it is to end. What cannot be ended any more is answered soon.
                let _ = client.delete::<CancelledMigrate>(&path);
            } else {
                bar.look(client);
            }
        }
    })
}

/// Whether the owner says that it has not been decided yet.
fn goes_on(error: &anyhow::Error) -> bool {
    error.to_string().ends_with(GOES_ON)
}

/// Set by SIGINT and SIGTERM from the first call on. The second one ends the process at once, as the first would have.
fn interrupts() -> anyhow::Result<&'static AtomicBool> {
    static INTERRUPTED_BY: AtomicBool = AtomicBool::new(false);
    static WATCHED: OnceLock<()> = OnceLock::new();
    if WATCHED.get().is_some() {
        return Ok(&INTERRUPTED_BY);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED_BY.swap(true, Ordering::SeqCst) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    });
    WATCHED.get_or_init(|| ());
    Ok(&INTERRUPTED_BY)
}

/// How far a node is with volumes that are handed over to it.
struct CatchUp<'a> {
    volumes: &'a [&'a str],
    to: String,
    bar: ProgressBar,
    /// The most that it lacked.
    most: u64,
}

impl<'a> CatchUp<'a> {
    fn of(volumes: &'a [&'a str], to: &str) -> CatchUp<'a> {
        CatchUp { volumes, to: to.to_owned(), bar: bar(&volumes.join(", ")), most: 0 }
    }

    /// Shows how far it is, unless that is not known or no news.
    fn look(&mut self, client: &Client) {
        let (mut behind, mut reachable) = (0, true);
        for volume in self.volumes {
            let Ok(status) = client.get::<VolumeStatus>(&format!("/v1/volumes/{volume}")) else { return };
            for replica in status.replicas.iter().filter(|replica| replica.node == self.to) {
                behind += replica.bytes_behind;
                reachable &= replica.reachable;
            }
        }
        if behind == 0 && self.most == 0 {
            return;
        }
        self.most = self.most.max(behind);
        self.bar.set_length(self.most);
        self.bar.set_position(self.most - behind);
        self.bar.set_message(unreachable(reachable, &self.to));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}

fn unreachable(reachable: bool, to: &str) -> String {
    if reachable { String::new() } else { format!("(node {to} cannot be reached)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_its_template() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn what_goes_on_is_asked_for_again_also_when_another_node_has_passed_it_on() {
        assert!(goes_on(&anyhow::anyhow!("node a: volume disk goes to node b later: {GOES_ON}")));
        assert!(!goes_on(&anyhow::anyhow!("volume disk is being handed over already; wait for that to end")));
    }
}
