//! An owner that cannot do now what it is asked for, and how long it is waited for.
//!
//! A node that stops, that is not there, or that has yet to start and to open its volumes is waited for all the same: whoever
//! uses a volume elsewhere sees its owner's restart as a pause. What an owner refuses for good is an error at once.

use std::time::Duration;

use client_lib::{Error, ErrorKind};
use tokio::time::Instant;

use super::ServedVolume;
use crate::ownership::gate::View;
use crate::peer::client::PeerError;
use crate::peer::message::{Message, PeerReply};

/// How long an operation waits for an owner that cannot be reached before it fails. Long enough for a node
/// to restart and recover; a guest's own disk time-out is usually 30 s, so a dead link shows there first.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between attempts to reach the owner.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How long an operation has been waiting for an owner out of reach.
pub(super) struct Patience {
    since: Instant,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { since: Instant::now() }
    }

    pub(super) fn exhausted(&self) -> bool {
        self.since.elapsed() >= PATIENCE
    }
}

impl ServedVolume {
    /// After a forwarded request that was not answered as hoped: waits for a change and returns to try again, or fails.
    pub(super) async fn after_detour(
        &self,
        view: View,
        answer: Result<Message<PeerReply>, PeerError>,
        patience: &mut Patience,
    ) -> Result<(), Error> {
        let error = match answer {
            Ok(message) => {
                let error = self.peers.unexpected(view.owner, &message.head);
                if !self.is_passing(&message.head) {
                    return Err(error);
                }
                error
            }
            Err(error) => Error::from(error),
        };
        self.wait_for_owner(view, error, patience).await
    }

    /// Whether whoever answered so may answer otherwise in a while. A write may have been carried out in spite of it: it keeps its number.
    fn is_passing(&self, answer: &PeerReply) -> bool {
        #[cfg(test)]
        if !crate::simulation::rules::holds(crate::simulation::rules::Rule::OwnersAreAwaited) {
            return matches!(answer, PeerReply::NotOwner(_));
        }
        match answer {
            PeerReply::NotOwner(_) => true,
            PeerReply::Failed(error) => match error.kind() {
                // It starts, has yet to open the volume, or waits for somebody itself.
                ErrorKind::Unavailable => true,
                // It stops, unless the volume was deleted: then this node hears of it, too.
                ErrorKind::Closed => self.metadata.here().volume(self.id).is_some(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Waits a moment for what failed with `error` to be worth another attempt, or fails.
    pub(super) async fn wait_for_owner(&self, view: View, error: Error, patience: &mut Patience) -> Result<(), Error> {
        if patience.exhausted() {
            return Err(error);
        }
        self.gate.changed_from(view, RETRY_PAUSE).await;
        Ok(())
    }
}
