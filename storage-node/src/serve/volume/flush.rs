//! FLUSH and FUA of a volume at one node: durable here, then in the volume's class, or wherever the volume is by then.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client_lib::trace::{Stage, Trace};
use client_lib::transport::Class;
use client_lib::{Epoch, Error, ErrorKind, Lsn};

use super::{Change, Patience, ServedVolume};
use crate::ownership::gate::{Phase, View};
use crate::peer::message::{Message, PeerReply, PeerRequest};
use crate::serve::durability::Outcome;

/// How long a flush for another node waits for the volume's class before that node is told to ask again: less than a call may take.
const PEER_PATIENCE: Duration = Duration::from_secs(5);

impl ServedVolume {
    /// Whether what was written here, up to `lsn`, is as durable as it was asked to be; waits for that. False when the volume was
    /// handed over meanwhile.
    pub(super) async fn is_settled(&self, trace: &Trace, change: &Change, lsn: Lsn) -> Result<bool, Error> {
        if change.fua() && self.shard.fault().is_some() {
            // It may have been applied and not be durable: a flush says so, here or at the next owner. It must not be carried out twice.
            return Ok(false);
        }
        if !change.fua() || !self.flushes.waits() {
            return Ok(true);
        }
        let view = self.gate.view();
        if view.epoch != lsn.epoch { Ok(false) } else { self.settle(trace, view, lsn).await }
    }

    /// The same for another node, which does not wait for long.
    pub async fn is_settled_for_peer(&self, trace: &Trace, change: &Change, lsn: Lsn) -> Result<bool, Error> {
        tokio::time::timeout(PEER_PATIENCE, self.is_settled(trace, change, lsn)).await.unwrap_or(Ok(false))
    }

    /// Waits until the volume, owned here under `view` and durable here up to `lsn`, is so in its class. False when it was handed
    /// over meanwhile.
    async fn settle(&self, trace: &Trace, view: View, lsn: Lsn) -> Result<bool, Error> {
        trace.spent(Stage::Queue);
        let mut views = self.gate.subscribe();
        let outcome = tokio::select! {
            biased;
            outcome = self.flushes.settled(view.epoch, lsn) => outcome,
            _ = views.wait_for(|now| *now != view) => Outcome::Over,
        };
        if let Some(replica) = self.flushes.heard_last() {
            self.waited_for(trace, replica);
        }
        match outcome {
            Outcome::Over => Ok(false),
            Outcome::Lost => {
                let what = format!(
                    "some of what was written to volume {} before this flush was lost with the store of the owner before: check the file system",
                    self.name
                );
                Err(Error::new(ErrorKind::Corrupt, what))
            }
            // The volume may have been taken over meanwhile, by somebody who has asked those that hold this before they did.
            Outcome::Durable | Outcome::Degraded => match self.shard.vouch(self.id).await {
                Ok(()) => Ok(true),
                Err(error) => self.recover_write(trace, view, error).await.map(|_| false),
            },
        }
    }

    /// Makes every acked write durable in the volume's class. In class `local` there is nothing to do at a node that does not own
    /// the volume and passed nothing on: the handover synced what was written here (DESIGN, "late FLUSH"). In any other the
    /// owner is asked.
    pub async fn flush(&self, trace: &Trace) -> Result<(), Error> {
        let mut patience = Patience::new();
        loop {
            let view = self.gate.view();
            let waits = self.flushes.waits();
            match view.phase {
                Phase::Closed => {
                    return Err(Error::new(ErrorKind::Closed, format!("volume {} was deleted", self.name)));
                }
                Phase::Transferring(_) | Phase::Activating if waits => drop(self.gate.settled(Epoch(0)).await?),
                Phase::Owner if waits => {
                    if self.flush_here(trace, view).await? {
                        self.forwarded.store(false, Ordering::Release);
                        return Ok(());
                    }
                }
                Phase::Owner | Phase::Transferring(_) | Phase::Activating => {
                    match self.shard.flush_traced(trace, self.id).await {
                        Ok(_) => {}
                        Err(error) => {
                            self.recover_write(trace, view, error).await?;
                            continue;
                        }
                    }
                    if !self.forwarded.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    // Writes went elsewhere before the volume came here: they were synced by that handover.
                    if view.phase == Phase::Owner {
                        self.forwarded.store(false, Ordering::Release);
                        return Ok(());
                    }
                    self.gate.settled(Epoch(0)).await?;
                }
                Phase::Elsewhere => {
                    if !waits && !self.forwarded.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    let request = PeerRequest::Flush { volume: self.id, epoch: view.epoch };
                    trace.spent(Stage::Queue);
                    let answer = self.peers.ask(view.owner, Class::Pull, request, Bytes::new()).await;
                    self.waited_for(trace, view.owner);
                    match answer {
                        Ok(Message { head: PeerReply::Done, .. }) => return Ok(()),
                        // The owner is there, and does what it can.
                        Ok(Message { head: PeerReply::Waiting, .. }) => patience = Patience::new(),
                        answer => self.after_detour(view, answer, &mut patience).await?,
                    }
                }
            }
        }
    }

    /// Flushes as the owner, in the volume's class; false when it has to be done over, perhaps elsewhere.
    async fn flush_here(&self, trace: &Trace, view: View) -> Result<bool, Error> {
        match self.shard.flush_traced(trace, self.id).await {
            Ok(lsn) => self.settle(trace, view, lsn).await,
            Err(error) => self.recover_write(trace, view, error).await.map(|_| false),
        }
    }

    /// Flushes as the owner of at least `epoch`, for another node; false when it is to ask again, `None` when this node is not
    /// the owner.
    pub async fn flush_for_peer(&self, trace: &Trace, epoch: Epoch) -> Result<Option<bool>, Error> {
        let view = self.gate.settled(epoch).await?;
        if view.phase == Phase::Elsewhere {
            return Ok(None);
        }
        tokio::time::timeout(PEER_PATIENCE, self.flush_here(trace, view)).await.unwrap_or(Ok(false)).map(Some)
    }
}
