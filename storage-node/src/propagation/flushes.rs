//! The flushes of an owned volume that wait for its class: which are answered, which wait, and when they stop waiting. Pure:
//! time is an argument.
//!
//! ```text
//!              flush                        held by enough
//!   (nothing) ───────► waiting ────────────────────────────► durable
//!                         │ for as long as the policy allows
//!                         ▼
//!                     degraded: every flush is answered as in class `local`, until enough hold what was flushed so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client_lib::policy::{Durability, Unmet};
use client_lib::{Epoch, Lsn, NodeId, ProviderId};

use super::classes;

/// What becomes of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is durable in the class, as the volume's class is now.
    Durable,
    /// It is answered though it is not.
    Degraded,
    /// It waits, at most until then if the policy says so.
    Wait(Option<Duration>),
    /// The ownership under which it began is over.
    Over,
}

/// The volume is degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Since when.
    pub since: Duration,
    /// What was flushed meanwhile, and is not durable in the class.
    pub acked: Lsn,
}

/// How a volume stands to its class.
#[derive(Clone, Debug, Default)]
pub struct Flushes {
    policy: Durability,
    home: Option<ProviderId>,
    /// Those that may count: complete copies.
    replicas: BTreeMap<NodeId, ProviderId>,
    /// Those that do not count, because they are to be removed: by how many who ask for that. One that is not complete yet is among them, since it may
    /// become so meanwhile; each who asks takes back what it has added, and nobody else does.
    left_out: BTreeMap<NodeId, u32>,
    /// Of the ownership here; 0 when there is none.
    epoch: Epoch,
    own: Lsn,
    held: BTreeMap<NodeId, Lsn>,
    durable: Lsn,
    wanted: Lsn,
    waiting: BTreeMap<u64, Duration>,
    next: u64,
    degraded: Option<Degraded>,
    /// What the owner before has acked, and could not make durable, is not held here yet: it is what is newer than this.
    owed: Option<Lsn>,
    /// The flushes with smaller numbers are not answered with success: some of that will never be held here.
    failed_below: u64,
}

impl Flushes {
    /// The policy, and where the owner and the replicas are that are complete copies, as metadata has it. Returns whether anything changed.
    pub fn follow(
        &mut self,
        policy: Durability,
        home: Option<ProviderId>,
        replicas: BTreeMap<NodeId, ProviderId>,
    ) -> bool {
        if (self.policy, &self.home, &self.replicas) == (policy, &home, &replicas) {
            return false;
        }
        if policy != self.policy {
            // What was promised of degraded flushes, nothing, stays so; what waits is judged anew.
            self.degraded = None;
        }
        // What one held before it was removed and came back, or before it was complete, it may not hold any more.
        self.held.retain(|node, _| self.replicas.contains_key(node) && replicas.contains_key(node));
        (self.policy, self.home, self.replicas) = (policy, home, replicas);
        self.reckon();
        true
    }

    /// These count no more, since they are to be removed; up to where the volume was durable with them.
    pub fn leave_out(&mut self, nodes: &BTreeSet<NodeId>) -> Lsn {
        let before = self.durable;
        for node in nodes {
            *self.left_out.entry(*node).or_default() += 1;
        }
        if self.waits() {
            // Those who stay are asked for it, though no flush may wait for that.
            self.wanted = self.wanted.max(before);
        }
        self.reckon();
        before
    }

    /// Who has left them out does so no more: they count again, unless somebody else has left them out, too.
    pub fn let_count(&mut self, nodes: &BTreeSet<NodeId>) {
        self.left_out.retain(|node, by| {
            *by -= u32::from(nodes.contains(node));
            *by > 0
        });
        self.reckon();
    }

    /// An ownership begins here, which holds the volume up to `own`; `None` is all of it, whatever is written.
    pub fn begin(&mut self, epoch: Epoch, own: Option<Lsn>) {
        if epoch > self.epoch {
            (self.epoch, self.own, self.wanted) = (epoch, Lsn::ZERO, Lsn::ZERO);
            (self.held, self.degraded) = (BTreeMap::new(), None);
            (self.owed, self.failed_below) = (None, 0);
            self.own = own.unwrap_or(Lsn::MAX);
            self.reckon();
        }
    }

    /// The owner of `epoch` has fetched everything, durably.
    pub fn whole(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            self.own = Lsn::MAX;
            self.reckon();
        }
    }

    /// The owner before `epoch` gave the volume away from a store that took no writes any more, durable up to `durable`: until the rest of what it
    /// acked is held here, durably, nothing is, of whatever class.
    pub fn owe(&mut self, epoch: Epoch, durable: Lsn) {
        if epoch == self.epoch {
            self.owed = Some(durable);
        }
    }

    /// Beyond where something is owed, if it is.
    #[must_use]
    pub fn owed(&self) -> Option<Lsn> {
        self.owed
    }

    /// It is held here now.
    pub fn repaid(&mut self, epoch: Epoch) {
        self.owed.take_if(|_| epoch == self.epoch);
    }

    /// Some of it will never be. The flushes that wait hear of it, or the next one if there is none, as those of a disk do that has lost what it
    /// had in its cache; those after them speak of what is there.
    pub fn lost(&mut self, epoch: Epoch) {
        if epoch == self.epoch && self.owed.take().is_some() {
            self.failed_below = self.next + if self.waiting.is_empty() { 2 } else { 1 };
        }
    }

    /// Whether the flush of this number is one of those.
    #[must_use]
    pub fn has_failed(&self, number: u64) -> bool {
        number < self.failed_below
    }

    /// Replica `node` has told the owner of `epoch` that it holds everything up to `lsn`.
    pub fn held(&mut self, epoch: Epoch, node: NodeId, lsn: Lsn) -> bool {
        // The sender to one that was removed may have yet to end.
        let is_listed = epoch == self.epoch && self.replicas.contains_key(&node);
        let news = is_listed && self.held.get(&node).is_none_or(|held| *held < lsn);
        if news {
            self.held.insert(node, lsn);
            self.reckon();
        }
        news
    }

    /// The ownership here, and what its replicas have told, but for those that are left out.
    #[cfg(test)]
    pub(crate) fn told(&self) -> (Epoch, BTreeMap<NodeId, Lsn>) {
        let held = self.held.iter().filter(|(node, _)| !self.left_out.contains_key(node));
        (self.epoch, held.map(|(node, lsn)| (*node, *lsn)).collect())
    }

    /// Replica `node` has left the volume.
    pub fn left(&mut self, epoch: Epoch, node: NodeId) {
        if epoch == self.epoch && self.held.remove(&node).is_some() {
            self.reckon();
        }
    }

    /// A flush up to `lsn` begins under `epoch`; returns its number, to [`end`](Self::end) it by.
    pub fn start(&mut self, epoch: Epoch, lsn: Lsn, now: Duration) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, now);
        if epoch == self.epoch {
            self.wanted = self.wanted.max(lsn);
        }
        self.next
    }

    /// Nobody waits for the flush `number` any more.
    pub fn end(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// What becomes of a flush up to `lsn` that began under `epoch` at `since`.
    #[must_use]
    pub fn verdict(&self, epoch: Epoch, lsn: Lsn, since: Duration, now: Duration) -> Verdict {
        if !self.waits() {
            return Verdict::Durable;
        }
        if epoch != self.epoch {
            return Verdict::Over;
        }
        if self.owed.is_some() || self.next + 1 < self.failed_below {
            return Verdict::Wait(None);
        }
        if self.durable >= lsn {
            return Verdict::Durable;
        }
        match self.policy.unmet {
            _ if self.degraded.is_some() => Verdict::Degraded,
            Unmet::Block => Verdict::Wait(None),
            Unmet::Degrade { after_ms } => {
                let until = since + Duration::from_millis(after_ms);
                if now >= until { Verdict::Degraded } else { Verdict::Wait(Some(until)) }
            }
        }
    }

    /// A flush up to `lsn` is answered though it is not durable in the class. Returns whether the volume was not degraded before.
    pub fn degrade(&mut self, epoch: Epoch, lsn: Lsn, now: Duration) -> bool {
        if epoch != self.epoch || self.durable >= lsn {
            return false;
        }
        let is_new = self.degraded.is_none();
        let degraded = self.degraded.get_or_insert(Degraded { since: now, acked: lsn });
        degraded.acked = degraded.acked.max(lsn);
        is_new
    }

    /// Whether flushes wait for anything but what is here already.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.policy.class.others() > 0 || self.owed.is_some() || self.next + 1 < self.failed_below
    }

    /// Whether what `node` holds counts.
    #[must_use]
    pub fn counts(&self, node: NodeId) -> bool {
        let provider = self.replicas.get(&node).filter(|_| !self.left_out.contains_key(&node));
        let counts = |home, provider| classes::counts(self.policy.class, home, provider);
        self.home.as_ref().zip(provider).is_some_and(|(home, provider)| counts(home, provider))
    }

    /// Whether a flush waits for more than `node` holds and than is on its way there, up to `sent`, and what it holds counts.
    #[must_use]
    pub fn urges(&self, epoch: Epoch, node: NodeId, sent: Lsn) -> bool {
        let is_behind = || self.held.get(&node).is_none_or(|held| *held < self.wanted);
        epoch == self.epoch && self.wanted > self.durable.max(sent) && is_behind() && self.counts(node)
    }

    /// Whether `node`, whose watermark counts, has yet to tell that it is durable.
    #[must_use]
    pub fn is_unsure(&self, epoch: Epoch, node: NodeId, watermark: Lsn) -> bool {
        epoch == self.epoch && self.counts(node) && self.held.get(&node).is_none_or(|held| *held < watermark)
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Durability {
        self.policy
    }

    /// Up to where the volume is durable in its class, as far as is known.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Whether the owner holds everything itself.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.own == Lsn::MAX
    }

    /// How many places there are for copies besides the owner.
    #[must_use]
    pub fn places(&self) -> usize {
        let places = |home| classes::places(self.policy.class, home, self.counting().map(|(_, provider)| provider));
        self.home.as_ref().map_or(0, places)
    }

    /// How many flushes wait, and since when the first of them does.
    #[must_use]
    pub fn waiting(&self) -> (usize, Option<Duration>) {
        (self.waiting.len(), self.waiting.values().next().copied())
    }

    /// How the volume is degraded, if it is.
    #[must_use]
    pub fn degraded(&self) -> Option<Degraded> {
        self.degraded
    }

    fn counting(&self) -> impl Iterator<Item = (&NodeId, &ProviderId)> + Clone {
        self.replicas.iter().filter(|(node, _)| !self.left_out.contains_key(node))
    }

    fn reckon(&mut self) {
        let held = self.counting().filter_map(|(node, provider)| Some((provider, *self.held.get(node)?)));
        let durable = |home| classes::durable(self.policy.class, home, self.own, held);
        self.durable = self.home.as_ref().map_or(Lsn::ZERO, durable);
        self.degraded.take_if(|degraded| self.durable >= degraded.acked);
    }
}

#[cfg(test)]
mod tests {
    use client_lib::policy::Class;

    use super::*;

    const EPOCH: Epoch = Epoch(3);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(EPOCH, sequence)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Owned at a, with replicas at b and c, each at a provider of its own.
    fn flushes(class: Class, unmet: Unmet) -> Flushes {
        let mut flushes = Flushes::default();
        let provider = |name: &str| name.parse::<ProviderId>().expect("a name");
        let replicas = [(B, provider("b")), (C, provider("c"))].into();
        flushes.follow(Durability { class, unmet }, Some(provider("a")), replicas);
        flushes.begin(EPOCH, None);
        flushes
    }

    #[test]
    fn a_flush_waits_until_the_fastest_replica_holds_it() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Block);
        let number = flushes.start(EPOCH, lsn(5), s(1));
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(900)), Verdict::Wait(None), "for as long as it takes");
        assert!(flushes.urges(EPOCH, B, Lsn::ZERO) && flushes.urges(EPOCH, C, lsn(4)));
        assert!(!flushes.urges(EPOCH, C, lsn(5)), "it is on its way");
        assert!(!flushes.held(Epoch(2), B, lsn(9)), "told to an earlier owner");
        flushes.held(EPOCH, B, lsn(4));
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(2)), Verdict::Wait(None));
        flushes.held(EPOCH, C, lsn(5));
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(2)), Verdict::Durable);
        assert!(!flushes.urges(EPOCH, B, Lsn::ZERO), "nobody waits for the other one");
        assert_eq!(flushes.waiting(), (1, Some(s(1))));
        flushes.end(number);
        assert_eq!(flushes.waiting(), (0, None));
    }

    #[test]
    fn what_the_owner_before_could_not_make_durable_is_waited_for_in_every_class() {
        for class in [Class::Local, Class::Geo(1)] {
            let mut flushes = flushes(class, Unmet::Degrade { after_ms: 1 });
            flushes.held(EPOCH, B, lsn(9));
            assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(1)), Verdict::Durable);
            flushes.owe(Epoch(2), lsn(1));
            assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(1)), Verdict::Durable, "of another epoch");
            flushes.owe(EPOCH, lsn(1));
            assert!(flushes.waits() && flushes.owed() == Some(lsn(1)));
            assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(900)), Verdict::Wait(None));
            flushes.repaid(EPOCH);
            assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(900)), Verdict::Durable);
            assert_eq!(flushes.waits(), class != Class::Local);
        }
    }

    #[test]
    fn what_is_lost_of_that_fails_those_who_wait_or_the_next_one_and_nobody_after() {
        for waits in [true, false] {
            let mut flushes = flushes(Class::Local, Unmet::Block);
            flushes.owe(EPOCH, lsn(1));
            let first = waits.then(|| flushes.start(EPOCH, lsn(5), s(1)));
            flushes.lost(EPOCH);
            let failed = first.unwrap_or_else(|| {
                assert_eq!(flushes.verdict(EPOCH, lsn(5), s(2), s(2)), Verdict::Wait(None), "not before it is begun");
                flushes.start(EPOCH, lsn(5), s(2))
            });
            assert!(flushes.has_failed(failed));
            flushes.end(failed);
            let next = flushes.start(EPOCH, lsn(6), s(3));
            assert!(!flushes.has_failed(next));
            assert_eq!(flushes.verdict(EPOCH, lsn(6), s(3), s(3)), Verdict::Durable);
        }
    }

    #[test]
    fn an_unmet_class_degrades_after_its_time_for_everybody_and_heals_by_itself() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Degrade { after_ms: 10_000 });
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(10)), Verdict::Wait(Some(s(11))));
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(11)), Verdict::Degraded);
        assert!(flushes.degrade(EPOCH, lsn(5), s(11)));
        assert_eq!(flushes.verdict(EPOCH, lsn(8), s(12), s(12)), Verdict::Degraded, "the next one does not wait");
        assert!(!flushes.degrade(EPOCH, lsn(8), s(12)), "it is degraded already");
        assert_eq!(flushes.degraded(), Some(Degraded { since: s(11), acked: lsn(8) }));
        flushes.held(EPOCH, B, lsn(7));
        assert!(flushes.degraded().is_some(), "what was flushed is not there yet");
        flushes.held(EPOCH, B, lsn(8));
        assert_eq!(flushes.degraded(), None);
        assert_eq!(flushes.verdict(EPOCH, lsn(9), s(20), s(20)), Verdict::Wait(Some(s(30))));
    }

    #[test]
    fn another_class_is_in_force_at_once_for_those_who_wait() {
        let mut flushes = flushes(Class::Geo(2), Unmet::Block);
        flushes.held(EPOCH, B, lsn(5));
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(2)), Verdict::Wait(None));
        let (home, replicas) = (flushes.home.clone(), flushes.replicas.clone());
        let geo = Durability { class: Class::Geo(1), ..flushes.policy() };
        assert!(flushes.follow(geo, home.clone(), replicas.clone()));
        assert!(!flushes.follow(geo, home.clone(), replicas.clone()), "no news");
        assert_eq!(flushes.verdict(EPOCH, lsn(5), s(1), s(2)), Verdict::Durable);
        flushes.follow(Durability::default(), home, replicas);
        assert_eq!(flushes.verdict(EPOCH, lsn(99), s(1), s(2)), Verdict::Durable, "local");
        assert!(!flushes.counts(B));
    }

    #[test]
    fn who_is_to_be_removed_counts_no_more_and_who_stays_must_hold_what_was_flushed() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Block);
        flushes.held(EPOCH, B, lsn(9));
        flushes.held(EPOCH, C, lsn(4));
        let gone = BTreeSet::from([B]);
        assert_eq!(flushes.leave_out(&gone), lsn(9), "that was promised with it");
        assert_eq!((flushes.durable(), flushes.places(), flushes.counts(B)), (lsn(4), 1, false));
        assert!(flushes.urges(EPOCH, C, Lsn::ZERO), "it is to bring that, though no flush waits");
        flushes.held(EPOCH, B, lsn(12));
        assert_eq!(flushes.verdict(EPOCH, lsn(12), s(1), s(2)), Verdict::Wait(None), "nobody else holds it");
        // A request may arrive twice: the end of one let the node count again, though the other was under way.
        flushes.leave_out(&gone);
        flushes.let_count(&gone);
        assert_eq!(flushes.durable(), lsn(4), "the other one is under way");
        flushes.let_count(&gone);
        assert_eq!(flushes.durable(), lsn(12), "it stays after all");
    }

    /// Replicas b and c were being removed while c still joined. It became complete meanwhile, and as it had been none when the removal began, it
    /// counted: what was flushed with b was taken to be held by those that stay, the removal went through, and b and c dropped their copies.
    #[test]
    fn who_becomes_complete_while_it_is_being_removed_does_not_count() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Block);
        let (policy, home, all) = (flushes.policy(), flushes.home.clone(), flushes.replicas.clone());
        let d = NodeId(4);
        let with_d = |mut replicas: BTreeMap<NodeId, ProviderId>| {
            replicas.insert(d, "d".parse().expect("a name"));
            replicas
        };
        let without_c: BTreeMap<_, _> = with_d(all.clone()).into_iter().filter(|(node, _)| *node != C).collect();
        flushes.follow(policy, home.clone(), without_c.clone());
        flushes.held(EPOCH, B, lsn(9));
        flushes.held(EPOCH, d, lsn(4));
        let gone = BTreeSet::from([B, C]);
        assert_eq!(flushes.leave_out(&gone), lsn(9));
        flushes.follow(policy, home.clone(), with_d(all.clone()));
        flushes.held(EPOCH, C, lsn(9));
        assert!(!flushes.counts(C));
        assert_eq!(flushes.durable(), lsn(4), "what the one that stays holds");
        assert_eq!(flushes.verdict(EPOCH, lsn(9), s(1), s(2)), Verdict::Wait(None));
        // The end of the first request took back what a second one had added, when it had added nothing for c itself.
        flushes.leave_out(&BTreeSet::from([C]));
        flushes.let_count(&gone);
        assert!(!flushes.counts(C) && flushes.counts(B));
        // Nor does a look at the metadata in between, in which it is no replica, forget who is left out.
        flushes.follow(policy, home.clone(), without_c);
        flushes.follow(policy, home, with_d(all));
        flushes.held(EPOCH, C, lsn(12));
        assert_eq!((flushes.counts(C), flushes.durable()), (false, lsn(9)));
        flushes.let_count(&BTreeSet::from([C]));
        assert_eq!((flushes.counts(C), flushes.durable()), (true, lsn(12)), "it stays after all");
    }

    /// A replica that was removed, dropped its copy and was added again must tell anew what it holds.
    #[test]
    fn what_a_replica_held_before_it_was_removed_counts_no_more() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Block);
        flushes.held(EPOCH, B, lsn(9));
        let (policy, home, both) = (flushes.policy(), flushes.home.clone(), flushes.replicas.clone());
        let without = both.clone().into_iter().filter(|(node, _)| *node != B).collect();
        flushes.follow(policy, home.clone(), without);
        // The sender to it may have yet to end.
        assert!(!flushes.held(EPOCH, B, lsn(9)) && !flushes.told().1.contains_key(&B));
        flushes.follow(policy, home, both);
        assert_eq!(flushes.durable(), Lsn::ZERO);
        assert!(flushes.is_unsure(EPOCH, B, lsn(9)), "it is asked");
    }

    #[test]
    fn a_new_owner_counts_for_what_it_holds_and_asks_the_replicas_again() {
        let mut flushes = flushes(Class::Geo(1), Unmet::Block);
        flushes.held(EPOCH, B, lsn(9));
        let next = EPOCH.next();
        flushes.begin(next, Some(lsn(4)));
        assert_eq!(flushes.verdict(EPOCH, lsn(3), s(1), s(2)), Verdict::Over);
        assert_eq!(flushes.durable(), Lsn::ZERO, "what they told another is not known");
        assert!(flushes.is_unsure(next, B, lsn(9)) && !flushes.is_unsure(EPOCH, B, lsn(9)));
        flushes.held(next, B, lsn(9));
        assert_eq!(flushes.durable(), lsn(4), "a second place must hold it");
        assert!(!flushes.is_unsure(next, B, lsn(9)));
        flushes.held(next, C, lsn(8));
        assert_eq!(flushes.durable(), lsn(8), "the two others do");
        flushes.whole(EPOCH);
        assert_eq!(flushes.durable(), lsn(8), "an earlier owner");
        flushes.whole(next);
        assert_eq!(flushes.durable(), lsn(9));
        flushes.left(next, B);
        assert_eq!(flushes.durable(), lsn(8));
    }
}
