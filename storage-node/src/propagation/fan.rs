//! One copy for each provider: where several replicas of a volume are at one, the owner sends data to one of them, the *lead*, and the
//! others have it from there. Pure: time is an argument.
//!
//! Those that follow a lead are sent deltas that are sealed with the lead's, at one position, so that they have the same versions, and fetch
//! them by name while the lead gets them. For that they take a *seat* when their next delta may be sealed, and the lead waits a little until
//! all of them sit. What they do not find there, and everything while the lead is out of reach or gets nowhere, the owner sends them
//! itself: a lead saves bytes and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client_lib::policy::Mode;
use client_lib::{Lsn, NodeId, ProviderId};

/// How long a replica waits for the lead's next delta before it gets one of its own.
const LEAD_PATIENCE: Duration = Duration::from_secs(2);

/// How long the lead's next delta waits for those that follow to sit, beside the round trip that what they do now may take.
const SEATING: Duration = Duration::from_millis(100);

/// How long a replica that got nowhere with its lead is sent everything by the owner.
const SHUNNED_FOR: Duration = Duration::from_secs(30);

/// On which terms a replica is sent data. Only those with the same ones share a lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// When.
    pub mode: Mode,
    /// What its link may take.
    pub limit: Option<u64>,
}

#[derive(Debug)]
struct Place<S> {
    /// `None` while it does not answer, or cannot fetch and be fetched from.
    terms: Option<Terms>,
    watermark: Lsn,
    /// Since when its next delta waits to be sealed.
    due: Option<Duration>,
    /// With which of the leads' deltas the last one was.
    round: u64,
    is_on_its_way: bool,
    /// What to seal for it, when the lead's is sealed.
    seat: Option<(NodeId, S)>,
    shunned: Option<Duration>,
}

impl<S> Default for Place<S> {
    fn default() -> Place<S> {
        Place {
            terms: None,
            watermark: Lsn::ZERO,
            due: None,
            round: 0,
            is_on_its_way: false,
            seat: None,
            shunned: None,
        }
    }
}

/// The replicas of a volume, by provider.
#[derive(Debug)]
pub struct Fan<S> {
    sites: BTreeMap<NodeId, ProviderId>,
    places: BTreeMap<NodeId, Place<S>>,
    leads: BTreeSet<NodeId>,
    /// Counts the deltas of leads.
    round: u64,
}

impl<S> Default for Fan<S> {
    fn default() -> Fan<S> {
        Fan::new(BTreeMap::new())
    }
}

impl<S> Fan<S> {
    /// Nobody leads yet. `sites` are the replicas that are not at the owner's provider.
    #[must_use]
    pub fn new(sites: BTreeMap<NodeId, ProviderId>) -> Fan<S> {
        Fan { sites, places: BTreeMap::new(), leads: BTreeSet::new(), round: 0 }
    }

    /// Another replica that is not at the owner's provider.
    pub fn add(&mut self, replica: NodeId, site: ProviderId) {
        self.sites.insert(replica, site);
    }

    /// A replica answers, and is there; on which terms it may share, if it may.
    pub fn seen(&mut self, replica: NodeId, watermark: Lsn, terms: Option<Terms>) {
        let place = self.place(replica);
        (place.terms, place.watermark) = (terms, watermark);
    }

    /// It could not be brought further.
    pub fn lost(&mut self, replica: NodeId) {
        let place = self.place(replica);
        *place = Place { shunned: place.shunned, ..Place::default() };
        self.leads.remove(&replica);
    }

    /// The next delta for `replica` may be sealed, as far as it is concerned; whether that is new, and how long it has been so.
    pub fn due(&mut self, replica: NodeId, now: Duration) -> (bool, Duration) {
        let due = &mut self.place(replica).due;
        (due.is_none(), now.saturating_sub(*due.get_or_insert(now)))
    }

    /// Whether the next delta for `replica` may be sealed, as far as it is concerned.
    #[must_use]
    pub fn is_due(&self, replica: NodeId) -> bool {
        self.places.get(&replica).is_some_and(|place| place.due.is_some())
    }

    /// A delta was sealed for `replica`.
    pub fn began(&mut self, replica: NodeId) {
        let place = self.place(replica);
        (place.due, place.is_on_its_way) = (None, true);
    }

    /// It is there, or will not be.
    pub fn ended(&mut self, replica: NodeId) {
        self.place(replica).is_on_its_way = false;
    }

    /// Nothing came from the lead: for a while the owner sends `replica` everything.
    pub fn shun(&mut self, replica: NodeId, now: Duration) {
        self.place(replica).shunned = Some(now);
    }

    /// Whether a delta is on its way to `replica`.
    #[must_use]
    pub fn is_on_its_way(&self, replica: NodeId) -> bool {
        self.places.get(&replica).is_some_and(|place| place.is_on_its_way)
    }

    /// Whose data `replica` is to fetch, if it is not to be sent its own. Who leads goes on with it as long as it can; else who is
    /// furthest does, and of those the nearest.
    pub fn lead_of(
        &mut self,
        replica: NodeId,
        now: Duration,
        rtt: impl Fn(NodeId) -> Option<Duration>,
    ) -> Option<NodeId> {
        let group = self.group_of(replica, now);
        if group.len() < 2 {
            return None;
        }
        let rank = |node: &NodeId| {
            let watermark = self.places.get(node).map(|place| place.watermark);
            (watermark, std::cmp::Reverse((rtt(*node).unwrap_or(Duration::MAX), *node)))
        };
        let lead = match group.iter().find(|node| self.leads.contains(node)) {
            Some(lead) => *lead,
            None => group.into_iter().max_by_key(rank)?,
        };
        self.leads.insert(lead);
        (lead != replica).then_some(lead)
    }

    /// Those at the provider of `replica`, itself among them, that share what is sent there on its terms; nobody if it shares nothing.
    fn group_of(&self, replica: NodeId, now: Duration) -> Vec<NodeId> {
        let terms = |node: &NodeId| {
            let place = self.places.get(node)?;
            let is_shunned = place.shunned.is_some_and(|shunned| now < shunned + SHUNNED_FOR);
            place.terms.filter(|_| !is_shunned)
        };
        let (Some(site), Some(own)) = (self.sites.get(&replica), terms(&replica)) else { return Vec::new() };
        let group = self.sites.iter().filter(|(node, at)| *at == site && terms(node) == Some(own));
        group.map(|(node, _)| *node).collect()
    }

    /// Whether a delta may be sealed now for a replica that follows `lead` and has waited for that so long: the lead has everything up to
    /// `head`, or does not come on. Else it is to sit.
    #[must_use]
    pub fn may_follow(&self, lead: NodeId, head: Lsn, waited: Duration) -> bool {
        self.places.get(&lead).is_none_or(|place| place.watermark >= head) || waited >= LEAD_PATIENCE
    }

    /// Whether a delta up to `head` may be sealed now for a replica that leads and has waited for that so long: those that follow sit, or
    /// had the time. Who is still busy with an earlier one than the lead's last is not waited for.
    #[must_use]
    pub fn may_lead(&self, replica: NodeId, head: Lsn, waited: Duration, now: Duration, rtt: Duration) -> bool {
        let round = self.places.get(&replica).map_or(0, |place| place.round);
        let is_awaited = |node: &NodeId| {
            self.places.get(node).is_some_and(|place| {
                let is_late = place.is_on_its_way && place.round < round;
                place.seat.is_none() && place.watermark < head && !is_late
            })
        };
        let mut others = self.group_of(replica, now).into_iter().filter(|node| *node != replica);
        waited >= SEATING + rtt || !others.any(|node| is_awaited(&node))
    }

    /// `replica` waits for the next delta of `lead`, with which `seat` is to be sealed for it.
    pub fn sit(&mut self, replica: NodeId, lead: NodeId, seat: S) {
        self.place(replica).seat = Some((lead, seat));
    }

    /// It does not wait any longer: its seat, unless that was taken for the lead's delta.
    pub fn stand(&mut self, replica: NodeId) -> Option<S> {
        self.place(replica).seat.take().map(|(_, seat)| seat)
    }

    /// A delta is about to be sealed for `lead`: takes the seats of all who wait for that.
    pub fn take_seats(&mut self, lead: NodeId) -> Vec<S> {
        self.round += 1;
        let round = self.round;
        self.place(lead).round = round;
        let take = |place: &mut Place<S>| {
            let (_, seat) = place.seat.take_if(|(for_lead, _)| *for_lead == lead)?;
            place.round = round;
            Some(seat)
        };
        self.places.values_mut().filter_map(take).collect()
    }

    fn place(&mut self, replica: NodeId) -> &mut Place<S> {
        self.places.entry(replica).or_default()
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const EAGER: Option<Terms> = Some(Terms { mode: Mode::Eager, limit: None });

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn fan() -> Fan<&'static str> {
        let site = |name: &str| name.parse::<ProviderId>().expect("is one");
        Fan::new([(A, site("x")), (B, site("x")), (C, site("y"))].into())
    }

    fn rtt(node: NodeId) -> Option<Duration> {
        Some(ms(if node == A { 60 } else { 50 }))
    }

    #[test]
    fn the_furthest_leads_then_the_nearest_and_goes_on_with_it() {
        let mut fan = fan();
        assert_eq!(fan.lead_of(A, ms(0), rtt), None, "nobody has been heard of");
        fan.seen(A, lsn(5), EAGER);
        assert_eq!(fan.lead_of(A, ms(0), rtt), None, "it is alone");
        fan.seen(B, lsn(5), EAGER);
        assert_eq!((fan.lead_of(A, ms(0), rtt), fan.lead_of(B, ms(0), rtt)), (Some(B), None));
        fan.seen(A, lsn(9), EAGER);
        assert_eq!(fan.lead_of(A, ms(0), rtt), Some(B), "it stays");
        fan.lost(B);
        assert_eq!((fan.lead_of(A, ms(0), rtt), fan.lead_of(B, ms(0), rtt)), (None, None));
        fan.seen(B, lsn(5), EAGER);
        assert_eq!(fan.lead_of(B, ms(0), rtt), Some(A), "which is furthest now");
        assert_eq!(fan.lead_of(C, ms(0), rtt), None, "it is at another provider");
        fan.seen(B, lsn(5), None);
        assert_eq!(fan.lead_of(B, ms(0), rtt), None, "it runs an older program");
    }

    #[test]
    fn only_those_on_the_same_terms_share() {
        let mut fan = fan();
        fan.seen(A, lsn(5), EAGER);
        fan.seen(B, lsn(5), Some(Terms { mode: Mode::Lazy { interval_ms: 1000 }, limit: None }));
        assert_eq!((fan.lead_of(A, ms(0), rtt), fan.lead_of(B, ms(0), rtt)), (None, None));
        fan.seen(B, lsn(5), Some(Terms { mode: Mode::Eager, limit: Some(0) }));
        assert_eq!((fan.lead_of(A, ms(0), rtt), fan.lead_of(B, ms(0), rtt)), (None, None), "its link is closed");
    }

    #[test]
    fn who_got_nowhere_is_sent_everything_for_a_while() {
        let mut fan = fan();
        fan.seen(A, lsn(5), EAGER);
        fan.seen(B, lsn(5), EAGER);
        assert_eq!(fan.lead_of(A, ms(0), rtt), Some(B));
        fan.shun(A, ms(0));
        assert_eq!((fan.lead_of(A, ms(10), rtt), fan.lead_of(B, ms(10), rtt)), (None, None));
        fan.lost(A);
        fan.seen(A, lsn(5), EAGER);
        assert_eq!(fan.lead_of(A, ms(20), rtt), None, "a break does not change that");
        assert_eq!(fan.lead_of(A, SHUNNED_FOR, rtt), Some(B));
    }

    #[test]
    fn deltas_are_sealed_together() {
        let mut fan = fan();
        fan.seen(A, lsn(5), EAGER);
        fan.seen(B, lsn(5), EAGER);
        assert!(fan.may_follow(B, lsn(5), ms(0)), "the lead has everything");
        assert!(!fan.may_follow(B, lsn(6), ms(0)));
        assert!(fan.may_follow(B, lsn(6), LEAD_PATIENCE), "it does not come on");
        let may_lead = |fan: &Fan<_>, waited| fan.may_lead(B, lsn(6), waited, ms(0), ms(60));
        assert_eq!((fan.due(B, ms(70)), fan.due(B, ms(80))), ((true, ms(0)), (false, ms(10))));
        assert!(!may_lead(&fan, ms(0)) && may_lead(&fan, SEATING + ms(60)), "it need not be waited for any longer");
        fan.sit(A, B, "a");
        assert!(may_lead(&fan, ms(0)));
        assert_eq!((fan.take_seats(B), fan.stand(A)), (vec!["a"], None));
        fan.began(A);
        fan.began(B);
        assert!(!fan.is_due(B) && fan.due(B, ms(1500)).0, "that was another one");
        fan.ended(B);
        assert!(fan.is_on_its_way(A) && !fan.is_on_its_way(B) && !may_lead(&fan, ms(0)));
        assert!(fan.take_seats(B).is_empty());
        fan.began(B);
        fan.ended(B);
        assert!(may_lead(&fan, ms(0)), "it is late");
        fan.ended(A);
        assert!(!may_lead(&fan, ms(0)));
        fan.sit(A, B, "again");
        assert_eq!(fan.stand(A), Some("again"));
        fan.seen(A, lsn(6), EAGER);
        assert!(may_lead(&fan, ms(0)), "it lacks nothing");
    }
}
