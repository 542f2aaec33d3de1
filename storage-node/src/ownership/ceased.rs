//! For which ownerships this process acts no more, whatever becomes of what it proposes: it steps down, since a store has failed.
//!
//! What is noted here stays so until the process ends: others may have been told already that they need not wait for this node's lease
//! (docs/ownership.md). It is one epoch per volume, of the volumes that this process has stepped down for.
//!
//! Who takes an ownership up holds the turn for as long as that takes. So whoever has noted one knows that it either is taken up, and
//! its shard can be told to answer nothing more, or never will be.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use client_lib::{Epoch, VolumeId};

/// The ownerships that are over for this process.
#[derive(Debug, Default)]
pub struct Ceased {
    epochs: Mutex<BTreeMap<VolumeId, Epoch>>,
    turn: tokio::sync::Mutex<()>,
}

impl Ceased {
    fn epochs(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Epoch>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process acts no more for `volume` in `epoch`.
    #[must_use]
    pub fn has(&self, volume: VolumeId, epoch: Epoch) -> bool {
        self.epochs().get(&volume).is_some_and(|ceased| *ceased >= epoch)
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_any(&self) -> bool {
        !self.epochs().is_empty()
    }

    /// The turn of whoever takes ownerships up: nothing is noted while it is held.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// This process acts no more for `volume` in `epoch`: it takes that ownership up no more. Waits until none is being taken up.
    ///
    /// # Cancel safety
    /// Safe: it is noted, or not.
    pub async fn note(&self, volume: VolumeId, epoch: Epoch) {
        let _turn = self.turn().await;
        let mut epochs = self.epochs();
        let ceased = epochs.entry(volume).or_default();
        *ceased = epoch.max(*ceased);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(7);

    #[tokio::test]
    async fn an_ownership_that_is_over_stays_so_and_a_later_one_is_not() {
        let ceased = Ceased::default();
        assert!(!ceased.is_any() && !ceased.has(VOLUME, Epoch(1)));
        ceased.note(VOLUME, Epoch(3)).await;
        ceased.note(VOLUME, Epoch(2)).await;
        assert!(ceased.is_any() && ceased.has(VOLUME, Epoch(2)) && ceased.has(VOLUME, Epoch(3)));
        assert!(!ceased.has(VOLUME, Epoch(4)) && !ceased.has(VolumeId(8), Epoch(1)));
    }

    #[tokio::test]
    async fn nothing_is_noted_while_an_ownership_is_taken_up() {
        let ceased = Ceased::default();
        let turn = ceased.turn().await;
        let mut note = Box::pin(ceased.note(VOLUME, Epoch(1)));
        assert!(futures_util::poll!(&mut note).is_pending() && !ceased.has(VOLUME, Epoch(1)));
        drop(turn);
        note.await;
        assert!(ceased.has(VOLUME, Epoch(1)));
    }
}
