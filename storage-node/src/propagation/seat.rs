//! A replica's wait for the delta of the one that it has its data from ([`super::fan`]): seen from its sender.

use std::sync::Arc;

use client_lib::NodeId;
use tokio::sync::oneshot;

use super::pinned::Pinned;
use super::watermarks::Watermarks;
use crate::shard::handle::{Sealed, StoreError};

type Answer = Result<Result<Sealed, StoreError>, oneshot::error::RecvError>;

/// The wait, while it lasts.
pub(super) struct Seat {
    waits: Option<(NodeId, oneshot::Receiver<Result<Sealed, StoreError>>)>,
    sealed: Option<(NodeId, Answer)>,
    pinned: Arc<Pinned>,
}

/// What was sealed and not taken is not needed.
impl Drop for Seat {
    fn drop(&mut self) {
        let unread = self.waits.take().and_then(|(_, mut answer)| {
            // What comes from now on is let go of where it is sealed.
            answer.close();
            answer.try_recv().ok()
        });
        let untaken = self.sealed.take().and_then(|(_, answer)| answer.ok());
        for (_, delta) in unread.into_iter().chain(untaken).flatten() {
            delta.iter().for_each(|delta| self.pinned.note(delta));
        }
    }
}

impl Seat {
    /// Nobody sits.
    pub(super) fn new(pinned: Arc<Pinned>) -> Seat {
        Seat { waits: None, sealed: None, pinned }
    }

    /// It is sealed with the next delta of `lead`, which `answer` then tells of.
    pub(super) fn sit(&mut self, lead: NodeId, answer: oneshot::Receiver<Result<Sealed, StoreError>>) {
        self.waits = Some((lead, answer));
    }

    pub(super) fn is_taken(&self) -> bool {
        self.waits.is_some()
    }

    /// Waits until it is sealed; for ever if it does not sit.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn sealed(&mut self) {
        let Some((lead, answer)) = &mut self.waits else { return std::future::pending().await };
        let answer = answer.await;
        self.sealed = Some((*lead, answer));
        self.waits = None;
    }

    /// Ends the wait of `replica`: what was sealed for it by then, if anything was, and with whose.
    pub(super) async fn leave(
        &mut self,
        replica: NodeId,
        watermarks: &Watermarks,
    ) -> Option<(NodeId, Result<Sealed, StoreError>)> {
        if self.is_taken() && watermarks.with_fan(|fan, _| fan.stand(replica)).is_none() {
            // The lead's is being sealed at this moment.
            self.sealed().await;
        }
        self.waits = None;
        // Without an answer the lead's sender has ended before it asked.
        self.sealed.take().and_then(|(lead, answer)| Some((lead, answer.ok()?)))
    }
}
