//! What an owner keeps readable for one replica: the pins of the deltas that are sent to it.
//!
//! A session with a replica may end anywhere, and so may its task. A pin that nobody lets go of keeps each version of its blocks that is
//! overwritten, for as long as the ownership lasts. So every one is noted here, and what is left is let go of when the session ends, or
//! with this.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client_lib::Error;

use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::SealedDelta;

pub(super) struct Pinned {
    volume: Arc<ServedVolume>,
    pins: Mutex<BTreeSet<u64>>,
}

impl Pinned {
    pub(super) fn new(volume: Arc<ServedVolume>) -> Pinned {
        Pinned { volume, pins: Mutex::default() }
    }

    fn pins(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The delta was sealed for the replica.
    pub(super) fn note(&self, delta: &SealedDelta) {
        self.pins().insert(delta.pin);
    }

    /// It is not needed any more.
    pub(super) async fn release(&self, delta: &SealedDelta) -> Result<(), Error> {
        self.volume.shard.release(self.volume.id, delta.pin).await.map_err(store_failure)?;
        self.pins().remove(&delta.pin);
        Ok(())
    }

    /// None is needed any more.
    pub(super) async fn release_all(&self) {
        let pins = std::mem::take(&mut *self.pins());
        release_all(&self.volume, pins).await;
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let pins = std::mem::take(&mut *self.pins());
        if pins.is_empty() {
            return;
        }
        // Without a runtime the process ends, and with it what is pinned.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let volume = self.volume.clone();
            runtime.spawn(async move { release_all(&volume, pins).await });
        }
    }
}

async fn release_all(volume: &ServedVolume, pins: BTreeSet<u64>) {
    for pin in pins {
        if let Err(error) = volume.shard.release(volume.id, pin).await {
            // Its store has stopped, or has the volume no more: nothing is pinned there.
            tracing::debug!(volume = %volume.name, %error, "what was pinned for a replica is gone");
        }
    }
}
