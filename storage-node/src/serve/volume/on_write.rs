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

use super::{Patience, ServedVolume};
use crate::ownership::gate::{Phase, View};
use crate::peer::message::{AdminForward, Message, PeerReply, PeerRequest};
use crate::shard::handle::NOT_FLUSHED;

/// How long a write waits for the owner's clients to flush. A machine that moves has flushed before it runs elsewhere, so
/// who does not is in use where it is.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// Since when the owner has said, every time, that its clients have not flushed.
#[derive(Default)]
struct Unflushed(Option<Instant>);

impl Unflushed {
    /// The owner is busy, as `error` says: whether it is in use there for so long that it will not come. Whatever else keeps it from coming is over in a while.
    fn is_for_good(&mut self, error: &Error) -> bool {
        if !error.message().contains(NOT_FLUSHED) {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() >= FLUSH_PATIENCE
    }
}

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
        let (mut patience, mut unflushed) = (Patience::new(), Unflushed::default());
        // Many writes come together: one asks.
        let _turn = self.coming.lock().await;
        while self.gate.view() == view {
            let request = AdminForward::HandOverOnWrite { volume: self.id, to: self.me };
            let asked = self.peers.ask(view.owner, Class::Control, PeerRequest::Admin { request }, Bytes::new()).await;
            match asked {
                Ok(Message { head: PeerReply::Admin(_), .. }) => {
                    return self.gate.settled(view.epoch.next()).await.map(drop);
                }
                // In use there, or being changed.
                Ok(Message { head: PeerReply::Failed(error), .. }) if error.kind() == ErrorKind::Busy => {
                    let what = format!("volume {} cannot come here for this write: {error}", self.name);
                    let refusal = Error::new(ErrorKind::NotOwner, what);
                    if unflushed.is_for_good(&error) {
                        return Err(refusal);
                    }
                    self.wait_for_owner(view, refusal, &mut patience).await?;
                }
                // It has moved, or the leave was withdrawn, in this moment.
                Ok(Message { head: head @ PeerReply::Failed(_), .. }) => {
                    let newest = match self.metadata.get().await {
                        Ok(state) => state.volume(self.id).cloned(),
                        // Nobody leads: a handover under way waits for that, too.
                        Err(error) => {
                            self.wait_for_owner(view, error, &mut patience).await?;
                            continue;
                        }
                    };
                    let Some(newest) = newest else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use client_lib::VolumeId;

    use super::*;
    use crate::serve::volume::store_failure;
    use crate::shard::handle::StoreError;

    /// An owner that was resizing the volume, or waited for the metadata's next leader, was given five seconds like one whose clients do not flush. The
    /// first write of a machine that had moved was refused then, and its file system went read-only.
    #[tokio::test(start_paused = true)]
    async fn only_an_owner_whose_clients_do_not_flush_is_not_waited_for() {
        let in_use = store_failure(StoreError::NotFlushed(VolumeId(1)));
        let changes = Error::new(ErrorKind::Busy, "volume v is being handed over, taken over, resized");
        assert_eq!(in_use.kind(), ErrorKind::Busy);
        let mut unflushed = Unflushed::default();
        for error in [&changes, &in_use, &changes, &in_use] {
            assert!(!unflushed.is_for_good(error));
            tokio::time::advance(FLUSH_PATIENCE).await;
        }
        assert!(unflushed.is_for_good(&in_use));
        assert!(!unflushed.is_for_good(&changes));
    }
}
