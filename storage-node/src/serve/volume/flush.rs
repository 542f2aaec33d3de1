//! FLUSH and FUA of a volume at one node: durable here, then in the volume's class, or wherever the volume is by then.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// Writes that were passed on to an owner elsewhere and acked by it, and up to which of them a flush has followed. They are counted: a
/// flush vouches for those that there were when it began, and for no later one.
#[derive(Debug)]
pub(super) struct PassedOn {
    /// Whether the process before this one may have passed some on.
    earlier: bool,
    acked: AtomicU64,
    durable: AtomicU64,
}

impl PassedOn {
    /// None by this process; perhaps some by an `earlier` one, which count as one.
    pub(super) fn new(earlier: bool) -> PassedOn {
        PassedOn { earlier, acked: AtomicU64::new(u64::from(earlier)), durable: AtomicU64::new(0) }
    }

    /// One was acked.
    pub(super) fn note(&self) {
        self.acked.fetch_add(1, Ordering::AcqRel);
    }

    /// How many there are: asked before it is looked who owns the volume, so that all of them belong to that ownership or one before.
    fn count(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Whether some of the first `count` may not be durable.
    fn is_due(&self, count: u64) -> bool {
        self.durable.load(Ordering::Acquire) < count
    }

    /// Whether all that may be due is of an earlier process.
    fn is_earlier(&self, count: u64) -> bool {
        self.earlier && count == 1
    }

    /// The first `count` are durable.
    fn made_durable(&self, count: u64) {
        self.durable.fetch_max(count, Ordering::AcqRel);
    }
}

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
    /// the volume and passed nothing on that was not flushed since: the handover synced what was written here (DESIGN, "late FLUSH"). In any
    /// other the owner is asked.
    pub async fn flush(&self, trace: &Trace) -> Result<(), Error> {
        let mut patience = Patience::new();
        loop {
            let passed_on = self.passed_on.count();
            let view = self.gate.view();
            let waits = self.flushes.waits();
            match view.phase {
                Phase::Closed => {
                    return Err(Error::new(ErrorKind::Closed, format!("volume {} was deleted", self.name)));
                }
                Phase::Transferring(_) | Phase::Activating if waits => drop(self.gate.settled(Epoch(0)).await?),
                Phase::Owner if waits => {
                    if self.flush_here(trace, view).await? {
                        self.passed_on.made_durable(passed_on);
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
                    if !self.passed_on.is_due(passed_on) {
                        return Ok(());
                    }
                    // Writes went elsewhere before the volume came here: they were synced by that handover.
                    if view.phase == Phase::Owner {
                        self.passed_on.made_durable(passed_on);
                        return Ok(());
                    }
                    self.gate.settled(Epoch(0)).await?;
                }
                Phase::Elsewhere => {
                    // Where the volume may come by a write, a flush of what may be nothing must not be taken for that of a machine that stops.
                    let is_due = self.passed_on.is_due(passed_on)
                        && !(self.passed_on.is_earlier(passed_on) && self.may_come.load(Ordering::Relaxed));
                    if !waits && !is_due {
                        return Ok(());
                    }
                    let request = PeerRequest::Flush { volume: self.id, epoch: view.epoch };
                    trace.spent(Stage::Queue);
                    let answer = self.peers.ask(view.owner, Class::Pull, request, Bytes::new()).await;
                    self.waited_for(trace, view.owner);
                    match answer {
                        Ok(Message { head: PeerReply::Done, .. }) => {
                            self.passed_on.made_durable(passed_on);
                            return Ok(());
                        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A flush that was nearly done at the owner when the volume left, and ended afterwards, cleared the mark that a write had been passed on
    /// since: the next flush was answered without asking the new owner, which could lose that write with its power.
    #[test]
    fn a_flush_vouches_for_nothing_that_was_passed_on_after_it_began() {
        let passed_on = PassedOn::new(false);
        let first = passed_on.count();
        passed_on.note();
        passed_on.made_durable(first);
        let second = passed_on.count();
        assert!(passed_on.is_due(second));
        passed_on.made_durable(second);
        passed_on.made_durable(first);
        assert!(!passed_on.is_due(passed_on.count()));
    }
}
