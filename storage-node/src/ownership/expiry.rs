//! When another node's lease is out: counted from the moment at which its last renewal was seen applied *here*. Pure.
//!
//! Any node may count, leader or not: the renewal was asked for before it was committed, and committed before anybody
//! could see it applied, so the count never begins too early. It begins too late where a node hears late or has just
//! started, which costs time and nothing else. The expiry that follows names the renewal, so that one which this node has
//! not heard of makes it void (`consensus::Command::ExpireLease`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::clock::Clock;
use consensus::Lease;

/// By how much two nodes' clocks may drift apart over a lease, in thousandths. Quartz is off by 0.1 at worst, clocks that
/// are being slewed by 0.5; ten leaves room for virtual machines.
pub const DRIFT_PER_MILLE: u32 = 10;

/// The leases as they were seen here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    drift_per_mille: u32,
    seen: BTreeMap<NodeId, (u64, Duration)>,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch::new(DRIFT_PER_MILLE)
    }
}

impl Watch {
    /// A watch for clocks that drift apart by at most `drift_per_mille` thousandths.
    #[must_use]
    pub fn new(drift_per_mille: u32) -> Watch {
        Watch { drift_per_mille, seen: BTreeMap::new() }
    }

    /// `lease` of `node` is applied here at `now`. Returns when it will be out if it is not renewed.
    pub fn observe(&mut self, now: Duration, node: NodeId, lease: &Lease) -> Duration {
        let (renewals, since) = self.seen.entry(node).or_insert((lease.renewals, now));
        if *renewals != lease.renewals {
            (*renewals, *since) = (lease.renewals, now);
        }
        let duration = Duration::from_millis(lease.duration_ms);
        *since + duration + duration * self.drift_per_mille / 1000
    }
}

/// A [`Watch`] on a node's clock, kept up by whoever follows metadata and asked by takeovers: the earlier a renewal is noted,
/// the shorter is the wait after it.
pub struct LeaseWatch {
    clock: Arc<dyn Clock>,
    watch: Mutex<Watch>,
}

impl LeaseWatch {
    /// A watch by `clock`, which goes on while the machine sleeps.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> LeaseWatch {
        LeaseWatch { clock, watch: Mutex::default() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// As [`Watch::observe`], now.
    pub fn observe(&self, node: NodeId, lease: &Lease) -> Duration {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.observe(self.clock.now(), node, lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(renewals: u64) -> Lease {
        Lease { renewals, duration_ms: 10_000, ..Lease::default() }
    }

    #[test]
    fn a_lease_is_out_after_its_duration_and_the_drift_since_it_was_seen() {
        let mut watch = Watch::default();
        let out = s(110) + Duration::from_millis(100);
        assert_eq!(watch.observe(s(100), NODE, &lease(3)), out);
        assert_eq!(watch.observe(s(105), NODE, &lease(3)), out, "the same renewal, seen again");
        assert_eq!(watch.observe(s(106), NODE, &lease(4)), out + s(6));
    }

    #[test]
    fn a_node_that_never_had_a_lease_is_out_at_once() {
        assert_eq!(Watch::default().observe(s(100), NODE, &Lease::default()), s(100));
    }
}
