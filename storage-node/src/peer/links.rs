//! What this node knows of its links to others: what it has sent over each, how fast each is, what the other end understands, and how
//! much bulk data each may take, in time and at a time.

pub mod budget;
pub mod choice;
pub mod latency;
pub mod limit;
pub mod meter;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::clock::{Clock, SystemClock};
use client_lib::policy::LinkPolicy;
use tokio::time::Instant;

use self::budget::{Budget, Share};
use self::latency::Latency;
use self::limit::Bucket;
use self::meter::Meter;
use crate::propagation::freight::Freight;

/// After so long a node is asked again what it understands: it may run another program by now.
const ENCODINGS_FRESH: Duration = Duration::from_secs(60);

/// One direction between this node and another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// What this node has sent there, of all volumes, since it was started.
    pub freight: Freight,
    meter: Meter,
    /// The other direction, as far as blocks were fetched.
    inward: Meter,
    latency: Latency,
    /// Calls that fetch blocks from there and were so late that another node was asked as well.
    pub hedged: u64,
    /// Those that the other end understands, once it has told.
    pub(super) encodings: Option<u32>,
    /// When the other end was asked for them.
    pub(super) asked: Option<Duration>,
    /// When it last answered anything.
    heard: Option<Duration>,
}

impl Link {
    /// Bytes of bulk data per second, if that was measured.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.meter.rate()
    }

    /// Bytes per second of the other direction, if that was measured.
    #[must_use]
    pub fn rate_inward(&self) -> Option<f64> {
        self.inward.rate()
    }

    /// How long almost all calls that fetch blocks take, beside their bytes, if that is known.
    #[must_use]
    pub fn p95(&self) -> Option<Duration> {
        self.latency.p95()
    }
}

/// The links of a node.
pub struct Links {
    began: Instant,
    /// Whose calendar windows go by.
    clock: Arc<dyn Clock>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    limits: Mutex<BTreeMap<NodeId, Limit>>,
    budgets: Mutex<BTreeMap<NodeId, Budgets>>,
}

/// What is on its way to a node.
#[derive(Clone, Debug, Default)]
struct Budgets {
    awaited: Budget,
    rest: Budget,
}

/// What a link may take. Those who wait for it do so in turn.
#[derive(Clone, Debug, Default)]
struct Limit {
    policy: LinkPolicy,
    turn: Arc<tokio::sync::Mutex<()>>,
    bucket: Arc<Mutex<Bucket>>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("links", &self.links).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Default for Links {
    fn default() -> Links {
        Links::new(Arc::new(SystemClock::new()))
    }
}

impl Links {
    /// No links yet; windows go by the calendar of `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Links {
        Links {
            began: Instant::now(),
            clock,
            links: Mutex::default(),
            limits: Mutex::default(),
            budgets: Mutex::default(),
        }
    }

    /// Metadata has this policy for the link to `node`.
    pub fn follow(&self, node: NodeId, policy: LinkPolicy) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.contains_key(&node) || policy != LinkPolicy::default() {
            limits.entry(node).or_default().policy = policy;
        }
    }

    /// Bytes of bulk data per second that the link to `node` may take now; `None` is as many as come.
    #[must_use]
    pub fn limit(&self, node: NodeId) -> Option<u64> {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.get(&node).and_then(|limit| limit::rate_at(&limit.policy, self.clock.unix_ms()))
    }

    /// Waits until so many bytes of bulk data may be sent to `node`, and takes them.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn turn(&self, node: NodeId, bytes: u64) {
        let limit = |links: &Links| links.limits.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        let Some(Limit { turn, .. }) = limit(self) else { return };
        let _turn = turn.lock().await;
        while let Some(Limit { policy, bucket, .. }) = limit(self) {
            let rate = limit::rate_at(&policy, self.clock.unix_ms());
            let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.began.elapsed(), rate, bytes);
            match taken {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Waits until so many bytes may be read that are sent to `node`; they are on their way until what is returned is dropped. What `is_awaited` does
    /// not stand behind what nobody waits for.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn share(&self, node: NodeId, bytes: u64, is_awaited: bool) -> Share {
        let budget = {
            let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
            let budgets = budgets.entry(node).or_default();
            if is_awaited { budgets.awaited.clone() } else { budgets.rest.clone() }
        };
        budget.share(bytes, || self.link(node).rate()).await
    }

    /// Bytes that are on their way to `node`: what is awaited, and the rest.
    #[must_use]
    pub fn on_their_way(&self, node: NodeId) -> (u64, u64) {
        let budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.get(&node).map_or((0, 0), |budgets| (budgets.awaited.taken(), budgets.rest.taken()))
    }

    /// So many bytes that were taken for `node` need not be sent.
    pub fn give_back(&self, node: NodeId, bytes: u64) {
        if let Some(limit) = self.limits.lock().unwrap_or_else(PoisonError::into_inner).get(&node) {
            limit.bucket.lock().unwrap_or_else(PoisonError::into_inner).give_back(bytes);
        }
    }

    /// Blocks were sent to `node`, or need not be.
    pub fn carried(&self, node: NodeId, freight: Freight) {
        self.with(node, |link| link.freight += freight);
    }

    /// What is known of the link to `node`.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Link {
        self.with(node, |link| *link)
    }

    /// A call with bulk data begins.
    pub(super) fn call_begins(&self, node: NodeId) {
        let now = self.began.elapsed();
        self.with(node, |link| link.meter.begin(now));
    }

    /// A call with so many bytes of bulk data has ended; with none if it failed.
    pub(super) fn call_ends(&self, node: NodeId, bytes: u64, rtt: Duration) {
        let now = self.began.elapsed();
        self.with(node, |link| link.meter.end(now, bytes, rtt));
    }

    /// A call that fetches blocks from `node` begins.
    pub(super) fn fetch_begins(&self, node: NodeId) {
        let now = self.began.elapsed();
        self.with(node, |link| link.inward.begin(now));
    }

    /// It has brought so many bytes, or none if it failed or was given up.
    pub(super) fn fetch_ends(&self, node: NodeId, bytes: u64, rtt: Duration) {
        let now = self.began.elapsed();
        self.with(node, |link| link.inward.end(now, bytes, rtt));
    }

    /// A call for which somebody waited took so long beside its bytes.
    pub(super) fn took(&self, node: NodeId, took: Duration) {
        self.with(node, |link| link.latency.note(took));
    }

    /// An answer of `node` is late: another node is asked as well.
    pub fn hedged(&self, node: NodeId) {
        self.with(node, |link| link.hedged += 1);
    }

    /// What `node` understands, as far as is known, and whether it is to be asked now.
    pub(super) fn encodings(&self, node: NodeId) -> (u32, bool) {
        let now = self.began.elapsed();
        self.with(node, |link| {
            let is_due = link.asked.is_none_or(|asked| now >= asked + ENCODINGS_FRESH);
            if is_due {
                link.asked = Some(now);
            }
            (link.encodings.unwrap_or(0), is_due)
        })
    }

    /// `node` has answered.
    pub(super) fn heard(&self, node: NodeId) {
        let now = self.began.elapsed();
        self.with(node, |link| link.heard = Some(now));
    }

    /// How long ago `node` last answered; `None` if it has not yet.
    #[must_use]
    pub fn heard_ago(&self, node: NodeId) -> Option<Duration> {
        let now = self.began.elapsed();
        self.with(node, |link| link.heard).map(|heard| now.saturating_sub(heard))
    }

    /// `node` has told what it understands, or could not be asked.
    pub(super) fn told_encodings(&self, node: NodeId, encodings: Option<u32>) {
        let now = self.began.elapsed();
        self.with(node, |link| match encodings {
            Some(_) => (link.encodings, link.asked) = (encodings, Some(now)),
            None => link.asked = None,
        });
    }

    /// `node` may understand less than it has told.
    pub(super) fn forget_encodings(&self, node: NodeId) {
        self.with(node, |link| (link.encodings, link.asked) = (None, None));
    }

    fn with<T>(&self, node: NodeId, f: impl FnOnce(&mut Link) -> T) -> T {
        f(self.links.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default())
    }
}

#[cfg(test)]
mod tests {
    use client_lib::clock::VirtualClock;
    use client_lib::policy::RateWindow;

    use super::*;

    const NODE: NodeId = NodeId(2);
    const MIB: u64 = 1 << 20;

    fn policy(rate: Option<u64>) -> LinkPolicy {
        LinkPolicy { rate, windows: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_data_waits_its_turn_and_a_new_rate_is_in_force_for_those_who_wait() {
        let links = Arc::new(Links::default());
        let begun = Instant::now();
        links.turn(NODE, 1 << 40).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "there is no limit");
        links.follow(NODE, policy(Some(MIB)));
        for _ in 0..11 {
            links.turn(NODE, MIB).await;
        }
        // The first leaves a debt, which the second waits for, and so on.
        let waited = begun.elapsed();
        assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&waited), "{waited:?}");
        links.follow(NODE, policy(Some(0)));
        let waiting = tokio::spawn({
            let links = links.clone();
            async move { links.turn(NODE, MIB).await }
        });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!waiting.is_finished(), "the link is closed");
        assert_eq!(links.limit(NODE), Some(0));
        links.follow(NODE, policy(None));
        waiting.await.expect("goes on");
        assert_eq!(links.limit(NODE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_opens_by_the_calendar() {
        let clock = Arc::new(VirtualClock::new(0));
        let links = Arc::new(Links::new(clock.clone()));
        let window = RateWindow { from_minute: 60, to_minute: 120, rate: None };
        links.follow(NODE, LinkPolicy { rate: Some(0), windows: vec![window] });
        let waiting = tokio::spawn({
            let links = links.clone();
            async move { links.turn(NODE, MIB).await }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!waiting.is_finished());
        clock.advance(Duration::from_secs(3600));
        waiting.await.expect("goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_after_all_is_given_back() {
        let links = Links::default();
        links.follow(NODE, policy(Some(MIB)));
        links.turn(NODE, 1).await;
        let begun = Instant::now();
        links.turn(NODE, 100 * MIB).await;
        links.give_back(NODE, 99 * MIB);
        links.turn(NODE, 1).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
