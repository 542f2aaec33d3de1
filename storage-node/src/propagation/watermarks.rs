//! Where the replicas of an owned volume are, and what that means in time; shared by its senders, `status`, the watch on its target and
//! the pruning of the history.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client_lib::{Lsn, NodeId, ProviderId, watch};
use tokio::time::Instant;

use super::fan::Fan;
use super::freight::{Account, Freight};
use super::progress::Progress;
use super::timeline::Timeline;
use crate::shard::handle::Seal;

/// The replicas of one volume, for as long as an ownership lasts.
#[derive(Debug)]
pub struct Watermarks {
    started: Instant,
    replicas: Mutex<BTreeMap<NodeId, Progress>>,
    timeline: Mutex<Timeline>,
    missed: Mutex<Option<Duration>>,
    accounts: Mutex<BTreeMap<NodeId, Account>>,
    fan: Mutex<Fan<Seal>>,
    /// Counts what a sender may wait for that happens to another one.
    fan_news: watch::Sender<u64>,
}

impl Watermarks {
    /// Starts to follow `replicas`, of a volume whose newest write is `head`.
    #[must_use]
    pub fn new(replicas: impl IntoIterator<Item = NodeId>, head: Lsn) -> Watermarks {
        let replicas = replicas.into_iter().map(|node| (node, Progress::default())).collect();
        let this = Watermarks {
            started: Instant::now(),
            replicas: Mutex::new(replicas),
            timeline: Mutex::default(),
            missed: Mutex::default(),
            accounts: Mutex::default(),
            fan: Mutex::default(),
            fan_news: watch::Sender::new(0),
        };
        this.note_head(head);
        this
    }

    /// The same, where replicas that are at one of these `sites` share what is sent there.
    #[must_use]
    pub fn at(self, sites: BTreeMap<NodeId, ProviderId>) -> Watermarks {
        Watermarks { fan: Mutex::new(Fan::new(sites)), ..self }
    }

    /// Looks at, or changes, who fetches from whom.
    pub(super) fn with_fan<T>(&self, f: impl FnOnce(&mut Fan<Seal>, Duration) -> T) -> T {
        f(&mut self.fan.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }

    /// A delta may be sealed for a replica, or is over; or one waits for another's.
    pub(super) fn fan_changed(&self) {
        self.fan_news.send_modify(|count| *count += 1);
    }

    /// Tells of that.
    pub(super) fn fan_news(&self) -> watch::Receiver<u64> {
        self.fan_news.subscribe()
    }

    /// The time since the ownership began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The newest write is `head`, now.
    pub fn note_head(&self, head: Lsn) {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).note(head, self.now());
    }

    /// Nothing was written until `moment` since the newest write that was noted.
    pub(super) fn note_calm(&self, moment: Instant) {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).note_calm(moment.duration_since(self.started));
    }

    /// How old the oldest write is that a replica at `watermark` lacks, as [`Timeline::behind`].
    #[must_use]
    pub fn behind(&self, watermark: Lsn) -> Duration {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).behind(watermark, self.now())
    }

    /// How long ago the volume was, for certain, as a replica at `watermark` shows it; `None` when that was before this ownership.
    #[must_use]
    pub fn moment_ago(&self, watermark: Lsn) -> Option<Duration> {
        let moment = self.timeline.lock().unwrap_or_else(PoisonError::into_inner).moment(watermark);
        moment.map(|moment| self.now().saturating_sub(moment))
    }

    /// The watermark of the replica that a takeover would go on with: the highest of those that follow.
    #[must_use]
    pub fn highest(&self) -> Option<Lsn> {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let following = replicas.values().filter(|progress| progress.tail.is_none());
        following.map(|progress| progress.position.watermark).max()
    }

    /// The target is missed, or met. Returns whether that is news.
    pub fn note_target(&self, is_missed: bool) -> bool {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = missed.is_some() != is_missed;
        *missed = is_missed.then(|| missed.unwrap_or_else(|| self.now()));
        is_news
    }

    /// For how long the target has been missed, if it is.
    #[must_use]
    pub fn missed_for(&self) -> Option<Duration> {
        let missed = *self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.map(|since| self.now().saturating_sub(since))
    }

    /// Changes what is known of a replica; of one that was given up nothing is.
    pub(super) fn with<T>(&self, replica: NodeId, f: impl FnOnce(&mut Progress) -> T) -> T {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        f(replicas.get_mut(&replica).unwrap_or(&mut Progress::default()))
    }

    /// Follows `replica` too from now on, from nothing; `site` if it shares what is sent to its provider.
    pub fn add(&self, replica: NodeId, site: Option<ProviderId>) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(replica, Progress::default());
        if let Some(site) = site {
            self.with_fan(|fan, _| fan.add(replica, site));
        }
    }

    /// Follows `replica` no more. Its sender may not have ended yet.
    pub fn give_up(&self, replica: NodeId) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).remove(&replica);
        self.with_fan(|fan, _| fan.lost(replica));
        self.fan_changed();
    }

    /// Changes the account of what is sent to a replica.
    pub(super) fn with_account<T>(&self, replica: NodeId, f: impl FnOnce(&mut Account) -> T) -> T {
        f(self.accounts.lock().unwrap_or_else(PoisonError::into_inner).entry(replica).or_default())
    }

    /// What became of the volume's blocks on their way to a replica.
    #[must_use]
    pub fn freight(&self, replica: NodeId) -> Freight {
        self.with_account(replica, |account| account.freight())
    }

    /// What is known of each replica.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<NodeId, Progress> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether no replica lacks anything of a volume whose newest write is `head`.
    pub(super) fn is_level(&self, head: Lsn) -> bool {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.values().all(|progress| progress.position.watermark >= head)
    }

    /// The lowest watermark: history up to here is needed by nobody. A replica that has left the volume, or comes back to it, needs what
    /// has changed since it was cut off.
    #[must_use]
    pub fn lowest(&self) -> Lsn {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.values().map(Progress::base).min().unwrap_or(Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;
    use crate::peer::message::ReplicaPosition;

    /// History was kept for a removed node for as long as the ownership lasted: its sender, which had not ended yet, listed it anew, at
    /// the very beginning.
    #[test]
    fn who_was_given_up_is_not_waited_for_whatever_its_sender_still_says() {
        let (near, gone, head) = (NodeId(2), NodeId(3), Lsn::new(Epoch(1), 9));
        let watermarks = Watermarks::new([near, gone], head);
        let position = ReplicaPosition { watermark: head, ..ReplicaPosition::default() };
        watermarks.with(near, |progress| progress.heard(position));
        assert_eq!(watermarks.lowest(), Lsn::ZERO);
        watermarks.give_up(gone);
        watermarks.with(gone, |progress| progress.failed("it was removed".to_owned()));
        assert_eq!(watermarks.lowest(), head);
        assert!(watermarks.is_level(head));
        assert_eq!(watermarks.snapshot().into_keys().collect::<Vec<_>>(), [near]);
    }
}
