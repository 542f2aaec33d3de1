//! Who serves a volume's guest I/O now, as this node sees it, and waiting until that changes.
//!
//! One [`Gate`] per volume. Metadata and the handover driver set the phase; sessions look at it before each
//! operation and wait on it while it says that nobody may be served. The gate decides nothing about safety:
//! the shard refuses writes on its own authority. It keeps *reads* honest, which the shard cannot do alone:
//! from the moment a transfer is proposed, the source must not answer from its own copy.

use std::time::Duration;

use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId};

/// Who owns a volume if a transfer that was proposed is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heir {
    /// The new owner.
    pub node: NodeId,
    /// The last position of the present epoch: the new one begins behind it.
    pub begins: Lsn,
}

/// What this node does with guest I/O of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serves it: the shard is active under this epoch.
    Owner,
    /// Holds it: this node has yet to do what metadata says, as the owner or as a replica.
    Activating,
    /// Holds it, or sends it ahead: a transfer was proposed and its outcome is not known here yet.
    Transferring(Heir),
    /// Passes it on to the owner.
    Elsewhere,
    /// The volume was deleted, or this node stops.
    Closed,
}

/// The owner and epoch as this node knows them, and what it does accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The owner by the newest metadata seen here.
    pub owner: NodeId,
    /// The epoch of that ownership.
    pub epoch: Epoch,
    /// What this node does.
    pub phase: Phase,
}

/// The volume's [`View`], shared by its sessions, its handover and its metadata watcher.
#[derive(Debug)]
pub struct Gate {
    view: watch::Sender<View>,
}

impl Gate {
    /// A gate that starts with `view`.
    #[must_use]
    pub fn new(view: View) -> Gate {
        Gate { view: watch::Sender::new(view) }
    }

    /// The view now.
    #[must_use]
    pub fn view(&self) -> View {
        *self.view.borrow()
    }

    /// Replaces the view, unless it would go back in epochs or re-open a closed volume. Returns whether it did.
    pub fn set(&self, view: View) -> bool {
        self.view.send_if_modified(|current| {
            let stale = view.epoch < current.epoch || current.phase == Phase::Closed;
            if stale || *current == view {
                return false;
            }
            *current = view;
            true
        })
    }

    /// Changes only the phase, if the epoch is still `epoch`. Returns whether it did.
    pub fn set_phase(&self, epoch: Epoch, phase: Phase) -> bool {
        self.view.send_if_modified(|current| {
            if current.epoch != epoch || current.phase == Phase::Closed || current.phase == phase {
                return false;
            }
            current.phase = phase;
            true
        })
    }

    /// Ends every wait with `Closed`, for good.
    pub fn close(&self) {
        self.view.send_modify(|view| view.phase = Phase::Closed);
    }

    /// Waits until the view is one to act on: [`Phase::Owner`] or [`Phase::Elsewhere`], of at least `epoch`.
    ///
    /// # Errors
    /// `Closed` when the volume is gone.
    ///
    /// # Cancel safety
    /// Safe: waiting changes nothing.
    pub async fn settled(&self, epoch: Epoch) -> Result<View, Error> {
        let mut watch = self.view.subscribe();
        let view = watch
            .wait_for(|view| match view.phase {
                Phase::Owner | Phase::Elsewhere => view.epoch >= epoch,
                Phase::Closed => true,
                Phase::Activating | Phase::Transferring(_) => false,
            })
            .await
            .map_err(|_| closed())?;
        if view.phase == Phase::Closed { Err(closed()) } else { Ok(*view) }
    }

    /// The same for I/O that may go ahead: while a transfer is proposed, the view is that of the ownership it would bring, with
    /// the phase [`Phase::Transferring`].
    ///
    /// # Errors
    /// `Closed` when the volume is gone.
    ///
    /// # Cancel safety
    /// Safe: waiting changes nothing.
    pub async fn heading(&self) -> Result<View, Error> {
        let View { epoch, phase, .. } = self.view();
        match phase {
            Phase::Transferring(heir) => Ok(View { owner: heir.node, epoch: epoch.next(), phase }),
            _ => self.settled(Epoch(0)).await,
        }
    }

    /// Waits until the view is no longer `seen`, at most `patience`; returns whether it changed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed_from(&self, seen: View, patience: Duration) -> bool {
        let mut watch = self.view.subscribe();
        tokio::time::timeout(patience, watch.wait_for(|view| *view != seen)).await.is_ok_and(|seen| seen.is_ok())
    }

    /// A receiver of every later view.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the volume was deleted or its node is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transferring() -> Phase {
        Phase::Transferring(Heir { node: NodeId(5), begins: Lsn::new(Epoch(3), 8) })
    }

    fn view(epoch: u64, phase: Phase) -> View {
        View { owner: NodeId(1), epoch: Epoch(epoch), phase }
    }

    #[tokio::test]
    async fn a_view_never_goes_back_in_epochs() {
        let gate = Gate::new(view(3, Phase::Owner));
        assert!(!gate.set(view(2, Phase::Elsewhere)));
        assert!(gate.set(view(4, Phase::Elsewhere)));
        assert_eq!(gate.view(), view(4, Phase::Elsewhere));
        assert!(!gate.set_phase(Epoch(3), Phase::Owner), "a late word about an old epoch");
    }

    #[tokio::test]
    async fn held_operations_go_on_when_the_outcome_is_known() {
        let gate = std::sync::Arc::new(Gate::new(view(3, transferring())));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.settled(Epoch(0)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.set(view(4, Phase::Elsewhere));
        assert_eq!(waiting.await.expect("joins").expect("settles"), view(4, Phase::Elsewhere));
    }

    #[tokio::test]
    async fn a_wait_for_a_newer_epoch_skips_older_views() {
        let gate = Gate::new(view(3, Phase::Elsewhere));
        assert!(tokio::time::timeout(Duration::from_millis(1), gate.settled(Epoch(4))).await.is_err());
        gate.set(view(4, Phase::Activating));
        gate.set_phase(Epoch(4), Phase::Owner);
        assert_eq!(gate.settled(Epoch(4)).await.expect("settles").phase, Phase::Owner);
    }

    #[tokio::test]
    async fn closing_ends_every_wait_for_good() {
        let gate = Gate::new(view(3, Phase::Activating));
        gate.close();
        assert_eq!(gate.settled(Epoch(0)).await.expect_err("closed").kind(), ErrorKind::Closed);
        assert!(!gate.set(view(9, Phase::Owner)));
    }
}
