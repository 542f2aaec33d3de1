//! Guests wait for who is away: what a machine asks of its disk does not fail because another one is restarted, or cannot be reached for a while.

use std::time::Duration;

use client_lib::{ErrorKind, VolumeId};

use crate::serve::volume::PATIENCE;
use crate::simulation::history::{Book, Operation, Outcome, What};

/// Whoever waits for [`PATIENCE`] does so by its own clock, which may be fast.
const PATIENCE_MIN: Duration = PATIENCE.saturating_sub(Duration::from_secs(20));

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let is_impatient = |operation: &&Operation| {
        let Outcome::Failed(at, kind) = operation.outcome else { return false };
        let is_guests = matches!(operation.what, What::Write { .. } | What::Read { .. } | What::Flush);
        let is_passing = matches!(kind, ErrorKind::Unavailable | ErrorKind::Closed);
        is_guests && is_passing && at.saturating_sub(operation.asked) < PATIENCE_MIN
    };
    match book.operations.iter().filter(|operation| operation.volume == volume).find(is_impatient) {
        Some(operation) => Err(format!("a guest was refused what would have come to pass: {operation:?}")),
        None => Ok(()),
    }
}
