//! Answers that name a pin. Whoever asked may be dropped when the shard has answered and before it has looked: then nobody knows of the pin,
//! which would keep versions for as long as the ownership lasts.

use client_lib::VolumeId;

use super::{Answer, Reply, Request, Sealed, SealedDelta, ShardHandle, StoreError};

/// An answer of a shard that may have pinned a delta.
pub(super) trait Pinning {
    /// The pin, if there is one.
    fn pin(&self) -> Option<u64>;
}

impl Pinning for Sealed {
    fn pin(&self) -> Option<u64> {
        self.1.as_ref().map(|delta| delta.pin)
    }
}

impl Pinning for SealedDelta {
    fn pin(&self) -> Option<u64> {
        Some(self.pin)
    }
}

/// Waits for such an answer.
struct Awaited<'a, T: Pinning> {
    shard: &'a ShardHandle,
    volume: VolumeId,
    answer: Answer<T>,
}

impl<T: Pinning> Drop for Awaited<'_, T> {
    fn drop(&mut self) {
        // What comes from now on the shard lets go of itself.
        self.answer.close();
        if let Ok(Ok(unread)) = self.answer.try_recv()
            && let Some(pin) = unread.pin()
        {
            let (shard, volume) = (self.shard.clone(), self.volume);
            // A shard that has stopped has nothing pinned.
            self.shard.home.spawn(async move { shard.release(volume, pin).await.ok() });
        }
    }
}

impl ShardHandle {
    /// As [`ask`](Self::ask), for what pins a delta of `volume`.
    ///
    /// # Cancel safety
    /// Safe: what was pinned for nobody is let go of.
    pub(super) async fn ask_pinning<T: Pinning>(
        &self,
        volume: VolumeId,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = Reply::channel();
        self.queue.send(request(reply)).await.map_err(|_| StoreError::Stopped)?;
        let mut awaited = Awaited { shard: self, volume, answer };
        (&mut awaited.answer).await.map_err(|_| StoreError::Stopped)?
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use client_lib::{Lsn, SnapshotId};
    use tokio::runtime::Handle;

    use super::*;
    use crate::fault::FaultCell;
    use crate::propagation::freight::Covered;
    use crate::propagation::manifest::Manifest;

    const VOLUME: VolumeId = VolumeId(7);

    fn delta() -> SealedDelta {
        let covered = Covered::default();
        SealedDelta { pin: 5, snapshot: None, from: Lsn::ZERO, to: Lsn::ZERO, blocks: 0, covered, part: None }
    }

    /// A sender whose replica was removed just as the shard had answered its seal went away with the answer unread: the delta stayed
    /// pinned, and every version that was overwritten under it was kept, until the volume changed hands.
    #[tokio::test]
    async fn what_is_pinned_for_a_call_that_is_gone_is_released() {
        let (queue, mut requests) = tokio::sync::mpsc::channel(4);
        let shard = ShardHandle::new(queue, Handle::current(), FaultCell::default());
        {
            let mut sealing = pin!(shard.seal_manifest(VOLUME, Lsn::ZERO, SnapshotId(0), Some(Lsn::ZERO)));
            let asked = tokio::select! {
                biased;
                _ = &mut sealing => panic!("nobody has answered"),
                asked = requests.recv() => asked,
            };
            let Some(Request::SealManifest { reply, .. }) = asked else { panic!("a seal") };
            let manifest = Manifest { from: Lsn::ZERO, to: Lsn::ZERO, runs: Vec::new(), mark: None };
            reply.send(Ok((manifest, Some(delta())))).expect("is awaited");
        }
        let Some(Request::Release { volume, pin, .. }) = requests.recv().await else { panic!("a release") };
        assert_eq!((volume, pin), (VOLUME, 5));
    }

    #[tokio::test]
    async fn what_was_received_stays_pinned() {
        let (queue, mut requests) = tokio::sync::mpsc::channel(4);
        let shard = ShardHandle::new(queue, Handle::current(), FaultCell::default());
        let answers = async {
            let Some(Request::PinSnapshot { reply, .. }) = requests.recv().await else { panic!("a pin") };
            reply.send(Ok(delta())).expect("is awaited");
        };
        let pins = shard.pin_snapshot(VOLUME, SnapshotId(1), Lsn::ZERO, super::super::Blocks::default());
        let (pinned, ()) = tokio::join!(pins, answers);
        assert_eq!(pinned.expect("is pinned").pin, 5);
        tokio::task::yield_now().await;
        assert!(requests.try_recv().is_err());
    }
}
