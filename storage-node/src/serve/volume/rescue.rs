//! Writes and flushes of a volume whose store takes no writes any more: they wait for the volume to be given away, and go on at its next owner.
//!
//! What was acked is acked, and what was not is done over there: to whoever uses the volume it is a handover. They wait for [`RESCUE_PATIENCE`] and no
//! longer; then they fail, as those of a disk do that has failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client_lib::trace::Trace;
use client_lib::{Epoch, Error};
use tokio::time::Instant;

use super::{Detour, RETRY_PAUSE, ServedVolume, store_failure};
use crate::ownership::gate::{Phase, View};
use crate::shard::handle::StoreError;
use crate::volume::Moment;

/// How long a write waits for its volume to be given away: less than the time-out that a guest has for its disk, which is 30 s as a rule.
const RESCUE_PATIENCE: Duration = Duration::from_secs(20);

/// Whether a volume waits to be given away.
#[derive(Debug, Default)]
pub struct Rescue {
    /// Whether this node, as its owner, would give it away: there are replicas, and the node is not told to keep it.
    pub is_possible: AtomicBool,
    /// Since when its store takes no writes, and in which epoch that was seen.
    since: Mutex<Option<(Epoch, Instant)>>,
    /// What came of the last attempt, and in which epoch that was, if it came to nothing.
    refused: Mutex<Option<(Epoch, String)>>,
}

impl Rescue {
    /// The store was found to take no writes in this epoch; for how long that is known now.
    fn begin(&self, epoch: Epoch) -> Duration {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, began) = since.filter(|(seen, _)| *seen == epoch).unwrap_or((epoch, Instant::now()));
        *since = Some((epoch, began));
        began.elapsed()
    }

    /// It could not be given away in this epoch, for this reason; returns whether that is another one than before.
    pub fn note_refused(&self, epoch: Epoch, reason: String) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = Some((epoch, reason));
        let is_new = *refused != noted;
        *refused = noted;
        is_new
    }

    /// Why it could not be given away in this epoch when that was last tried.
    #[must_use]
    pub fn refused(&self, epoch: Epoch) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().filter(|(seen, _)| *seen == epoch).map(|(_, reason)| reason.clone())
    }

    /// Whether what is asked for in this epoch, in which its store takes no writes, waits.
    pub fn is_awaited(&self, epoch: Epoch) -> bool {
        self.is_possible.load(Ordering::Relaxed) && self.begin(epoch) < RESCUE_PATIENCE
    }
}

impl ServedVolume {
    /// As [`recover`](Self::recover), of what the store refused that only one can do that takes writes.
    pub(super) async fn recover_write(&self, trace: &Trace, seen: View, error: StoreError) -> Result<Detour, Error> {
        let has_failed = matches!(error, StoreError::Poisoned(_) | StoreError::Io(_)) && self.shard.fault().is_some();
        if !has_failed {
            return self.recover(trace, Moment::Now, seen, error).await;
        }
        if self.gate.view() != seen {
            return Ok(Detour::Again);
        }
        // What has been proposed is waited for, however long that takes.
        let is_going = matches!(seen.phase, Phase::Transferring(_));
        if !is_going && !self.rescue.is_awaited(seen.epoch) {
            return Err(store_failure(error));
        }
        self.gate.changed_from(seen, RETRY_PAUSE).await;
        Ok(Detour::Again)
    }

    /// What was acked here is not durable, and never will be here: flushes go to the owner from now on.
    pub fn owe_flush(&self) {
        self.passed_on.note();
    }
}
