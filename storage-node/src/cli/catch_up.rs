//! Waiting, with a progress bar, until the next owner of a volume lacks so little that the owner may be asked to hand it over
//! synced: that waits for the rest by itself, in less time than an answer may take.

use std::time::{Duration, Instant};

use anyhow::bail;
use client_lib::wire::admin::VolumeStatus;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::Client;
use crate::size;

/// What the next owner may lack.
pub(super) const LEFT_BYTES_MAX: u64 = 4 << 20;

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// So many looks without progress, and the owner is asked all the same: it says what is wrong.
const LOOKS_MAX: u32 = 60;

const TEMPLATE: &str = "{prefix} {bar:30} {bytes} of {total_bytes} at the new owner, {bytes_per_sec}, {eta} left {msg}";

/// Waits until node `to` lacks little of `volume`, not longer than `until`.
///
/// # Errors
/// When the time is over, or the node does not follow the volume any more; the volume stays where it is.
pub(super) fn catch_up(client: &Client, volume: &str, to: &str, until: Option<Instant>) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(volume.to_owned());
    let (mut most, mut least, mut looks) = (0, u64::MAX, 0);
    while looks < LOOKS_MAX {
        let status: VolumeStatus = client.get(&format!("/v1/volumes/{volume}"))?;
        let Some(replica) = status.replicas.iter().find(|replica| replica.node == to) else { break };
        if let Some(tail) = &replica.tail {
            bail!("node {to} has left the volume with {} writes that a takeover cut off", tail.writes);
        }
        let behind = replica.bytes_behind;
        if behind <= LEFT_BYTES_MAX {
            break;
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            bar.abandon();
            bail!("the time is over, and node {to} still lacks {}: the volume stays where it is", size::human(behind));
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
