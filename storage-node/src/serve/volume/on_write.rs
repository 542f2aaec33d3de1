//! The implicit handover: a write where the volume is not, at the node to which its owner lets it go for that.
//!
//! This is how a virtual machine takes its disk along when nobody tells: its disk is flushed when it stops, and the first write
//! where it runs again asks the owner for the volume. The owner gives it only as a stopped machine leaves it, flushed and
//! with nothing under way ([`crate::shard::handle::FreezeWhen::Flushed`]): else two machines write the disk, and the one that
//! came uninvited is told so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Epoch, Error, ErrorKind};
use tokio::time::Instant;

use super::{Patience, RETRY_PAUSE, ServedVolume};
use crate::ownership::gate::{Phase, View};
use crate::peer::message::{AdminForward, Message, PeerReply, PeerRequest};

/// How long a write waits for the owner's clients to flush. A machine that moves has flushed before it runs elsewhere, so
/// who does not is in use where it is.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

impl ServedVolume {
    /// A session without a right writes here while the volume is elsewhere, as `view` says: waits until this node has heard of a
    /// newer epoch if there is one or may be, or has the volume come if it may.
    ///
    /// # Errors
    /// `NotOwner` when neither is so: whoever wants to write here has to move the volume first.
    pub(super) async fn overtaken(&self, view: View) -> Result<(), Error> {
        if let Phase::Transferring(_) = view.phase {
            return self.gate.settled(Epoch(0)).await.map(drop);
        }
        if self.may_come.load(Ordering::Relaxed) {
            // As this node has heard; the owner knows better.
            return self.come(view).await;
        }
        match self.metadata.get().await?.volume(self.id) {
            Some(meta) if meta.epoch > view.epoch => self.gate.settled(meta.epoch).await.map(drop),
            Some(meta) if meta.on_write == Some(self.me) => self.come(view).await,
            Some(_) => Err(self.not_owner(view)),
            None => Err(Error::new(ErrorKind::Closed, format!("volume {} was deleted", self.name))),
        }
    }

    /// Asks the owner to hand the volume over to this node, and waits until it is known to be here, or elsewhere.
    async fn come(&self, view: View) -> Result<(), Error> {
        // Many writes come together: one asks.
        let _turn = self.coming.lock().await;
        let (began, mut patience) = (Instant::now(), Patience::new());
        while self.gate.view() == view {
            let request = AdminForward::HandOverOnWrite { volume: self.id, to: self.me };
            let asked = self.peers.ask(view.owner, Class::Control, PeerRequest::Admin { request }, Bytes::new()).await;
            match asked {
                Ok(Message { head: PeerReply::Admin(_), .. }) => {
                    return self.gate.settled(view.epoch.next()).await.map(drop);
                }
                // In use there, or another handover is under way.
                Ok(Message { head: PeerReply::Failed(error), .. }) if error.kind() == ErrorKind::Busy => {
                    if began.elapsed() >= FLUSH_PATIENCE {
                        return Err(Error::new(
                            ErrorKind::NotOwner,
                            format!("volume {} cannot come here for this write: {error}", self.name),
                        ));
                    }
                    self.gate.changed_from(view, RETRY_PAUSE).await;
                }
                // It has moved, or the leave was withdrawn, in this moment.
                Ok(Message { head: head @ PeerReply::Failed(_), .. }) => {
                    let Some(newest) = self.metadata.get().await?.volume(self.id).cloned() else { return Ok(()) };
                    if newest.epoch > view.epoch {
                        return self.gate.settled(newest.epoch).await.map(drop);
                    }
                    if newest.on_write != Some(self.me) {
                        return Err(self.not_owner(view));
                    }
                    self.wait_for_owner(view, self.peers.unexpected(view.owner, &head), &mut patience).await?;
                }
                Ok(message) => return Err(self.peers.unexpected(view.owner, &message.head)),
                Err(error) => self.wait_for_owner(view, error.into(), &mut patience).await?,
            }
        }
        Ok(())
    }
}
