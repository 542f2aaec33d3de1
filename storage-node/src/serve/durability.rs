//! FLUSH and FUA of a volume wait here until they are durable in its class ([`Flushes`] decides).
//!
//! The senders of the owner tell what their replicas hold, the reconciler what the policy is and which ownership is in force, and
//! whoever has flushed locally waits for the verdict. A flush that waits urges the senders whose replicas count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_lib::policy::{Class, Durability};
use client_lib::watch;
use client_lib::{Epoch, Lsn, NodeId, ProviderId};
use consensus::{MetaState, Volume};
use tokio::time::Instant;

use crate::propagation::flushes::{Flushes, Verdict};
#[cfg(test)]
use crate::simulation::rules;

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable in the volume's class.
    Durable,
    /// The class is not met, and the policy says not to wait any longer.
    Degraded,
    /// The ownership under which it began is over.
    Over,
    /// Some of what was acked before will never be here.
    Lost,
}

/// The class of one volume, and who waits for it.
#[derive(Debug)]
pub struct FlushGate {
    began: Instant,
    flushes: watch::Sender<Flushes>,
    /// The replica that told last that it holds more; 0 before any did.
    heard_last: AtomicU64,
}

impl Default for FlushGate {
    fn default() -> FlushGate {
        FlushGate {
            began: Instant::now(),
            flushes: watch::Sender::new(Flushes::default()),
            heard_last: AtomicU64::new(0),
        }
    }
}

/// Ends a wait however it ends.
struct Waiting<'a> {
    gate: &'a FlushGate,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.flushes.send_if_modified(|flushes| {
            flushes.end(self.number);
            false
        });
    }
}

impl FlushGate {
    /// Metadata has this policy for the volume, and its nodes at these providers. A replica that joins it counts when it is complete.
    pub fn follow(&self, meta: &Volume, state: &MetaState) {
        let provider = |node: NodeId| state.node(node).map(|node| node.provider.clone());
        let whole = meta.replicas.iter().filter(|node| !state.places().is_joining(meta.id, **node));
        let replicas: BTreeMap<NodeId, ProviderId> = whole.filter_map(|node| Some((*node, provider(*node)?))).collect();
        self.flushes.send_if_modified(|flushes| flushes.follow(meta.durability, provider(meta.owner), replicas));
    }

    /// Lets replicas count no more that are to be removed; up to where the volume was durable with them.
    pub fn leave_out(&self, nodes: &BTreeSet<NodeId>) -> Lsn {
        let mut before = Lsn::ZERO;
        self.flushes.send_modify(|flushes| before = flushes.leave_out(nodes));
        before
    }

    /// Lets them count again.
    pub fn let_count(&self, nodes: &BTreeSet<NodeId>) {
        self.flushes.send_modify(|flushes| flushes.let_count(nodes));
    }

    /// An ownership of this node begins, as [`Flushes::begin`].
    pub fn begin(&self, epoch: Epoch, own: Option<Lsn>) {
        self.flushes.send_modify(|flushes| flushes.begin(epoch, own));
    }

    /// The owner of `epoch`, this node, has fetched everything, durably.
    pub fn whole(&self, epoch: Epoch) {
        self.flushes.send_modify(|flushes| flushes.whole(epoch));
    }

    /// As [`Flushes::owe`].
    pub fn owe(&self, epoch: Epoch, durable: Lsn) {
        self.flushes.send_modify(|flushes| flushes.owe(epoch, durable));
    }

    /// As [`Flushes::owed`].
    #[must_use]
    pub fn owed(&self) -> Option<Lsn> {
        self.flushes.borrow().owed()
    }

    /// As [`Flushes::repaid`].
    pub fn repaid(&self, epoch: Epoch) {
        self.flushes.send_modify(|flushes| flushes.repaid(epoch));
    }

    /// As [`Flushes::lost`].
    pub fn lost(&self, epoch: Epoch) {
        self.flushes.send_modify(|flushes| flushes.lost(epoch));
    }

    /// A replica holds everything up to `lsn`, durably.
    pub fn held(&self, epoch: Epoch, replica: NodeId, lsn: Lsn) {
        self.flushes.send_if_modified(|flushes| {
            let is_news = flushes.held(epoch, replica, lsn);
            if is_news && flushes.counts(replica) {
                self.heard_last.store(replica.0, Ordering::Relaxed);
            }
            is_news
        });
    }

    /// The replica that counts toward the class and told last that it holds more.
    #[must_use]
    pub fn heard_last(&self) -> Option<NodeId> {
        Some(NodeId(self.heard_last.load(Ordering::Relaxed))).filter(|node| node.0 > 0)
    }

    /// A replica has left the volume.
    pub fn left(&self, epoch: Epoch, replica: NodeId) {
        self.flushes.send_modify(|flushes| flushes.left(epoch, replica));
    }

    /// Whether flushes wait for anything but what is here already.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.flushes.borrow().waits()
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> Class {
        self.policy().class
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Durability {
        self.flushes.borrow().policy()
    }

    /// Whether what `replica` holds counts toward the class.
    #[must_use]
    pub fn counts(&self, replica: NodeId) -> bool {
        self.flushes.borrow().counts(replica)
    }

    /// Everything, and the time on the clock that it is measured by.
    #[must_use]
    pub fn look(&self) -> (Flushes, Duration) {
        (self.flushes.borrow().clone(), self.began.elapsed())
    }

    /// How many flushes wait for the class, and whether they are answered without it.
    #[must_use]
    pub fn figures(&self) -> (u64, bool) {
        let flushes = self.flushes.borrow();
        (flushes.waiting().0 as u64, flushes.degraded().is_some())
    }

    /// Whether a flush waits for more than `replica` holds, and than is on its way there, up to `sent`.
    #[must_use]
    pub fn urges(&self, epoch: Epoch, replica: NodeId, sent: Lsn) -> bool {
        self.flushes.borrow().urges(epoch, replica, sent)
    }

    /// Whether `replica`, which is at `watermark` and counts, has yet to tell that this is durable.
    #[must_use]
    pub fn is_unsure(&self, epoch: Epoch, replica: NodeId, watermark: Lsn) -> bool {
        self.flushes.borrow().is_unsure(epoch, replica, watermark)
    }

    /// Waits until [`urges`](Self::urges).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn urged(&self, epoch: Epoch, replica: NodeId, sent: Lsn) {
        let mut watch = self.flushes.subscribe();
        // The sender is here as long as this is.
        let _ = watch.wait_for(|flushes| flushes.urges(epoch, replica, sent)).await;
    }

    /// Waits until the volume, which this node owns in `epoch`, is durable in its class up to `lsn`, which it is here already.
    ///
    /// # Cancel safety
    /// Safe: dropping it stops waiting.
    pub async fn settled(&self, epoch: Epoch, lsn: Lsn) -> Outcome {
        #[cfg(test)]
        if !rules::holds(rules::Rule::FlushesWait) {
            return Outcome::Durable;
        }
        let since = self.began.elapsed();
        let verdict = |flushes: &Flushes| flushes.verdict(epoch, lsn, since, self.began.elapsed());
        if let Some(outcome) = outcome(verdict(&self.flushes.borrow())) {
            // What is answered degraded is wanted all the same: that is how it heals.
            if outcome != Outcome::Degraded {
                return outcome;
            }
        }
        let mut number = 0;
        self.flushes.send_modify(|flushes| number = flushes.start(epoch, lsn, since));
        let _waiting = Waiting { gate: self, number };
        let mut watch = self.flushes.subscribe();
        loop {
            // At one look: a loss in between would pass for what is durable.
            let (has_failed, verdict) = {
                let flushes = watch.borrow_and_update();
                (flushes.has_failed(number), verdict(&flushes))
            };
            if has_failed {
                return Outcome::Lost;
            }
            match (outcome(verdict), verdict) {
                (Some(Outcome::Degraded), _) => {
                    let mut is_new = false;
                    self.flushes.send_if_modified(|flushes| {
                        is_new = flushes.degrade(epoch, lsn, self.began.elapsed());
                        is_new
                    });
                    if is_new {
                        tracing::warn!(%epoch, %lsn, class = %self.class(), "the volume is degraded: its class is not met, and flushes are answered without it");
                    }
                    return Outcome::Degraded;
                }
                (Some(outcome), _) => return outcome,
                (None, Verdict::Wait(Some(until))) => {
                    let rest = until.saturating_sub(self.began.elapsed());
                    // Either way it is looked at again.
                    let _ = tokio::time::timeout(rest, watch.changed()).await;
                }
                (None, _) => drop(watch.changed().await),
            }
        }
    }
}

fn outcome(verdict: Verdict) -> Option<Outcome> {
    match verdict {
        Verdict::Durable => Some(Outcome::Durable),
        Verdict::Degraded => Some(Outcome::Degraded),
        Verdict::Over => Some(Outcome::Over),
        Verdict::Wait(_) => None,
    }
}
