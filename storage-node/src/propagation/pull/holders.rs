//! Which holder is asked first: the nearest, weighed with how often it had what it was asked for. Pure: time is an argument.
//!
//! Whom to ask first of two is known: asking `a` and then, where it had nothing, `b` takes `rtt_a + (1 - p_a) rtt_b` on average, which is less
//! than the other way round just when `rtt_a / p_a < rtt_b / p_b`. The last owner has everything as a rule, and the others what they were
//! sent; what is true is learned from every answer.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::NodeId;

/// The chance of the last owner, and of any other, before anything was asked.
const CHANCE: (f64, f64) = (1.0, 0.5);

/// A holder that never had anything is asked first only if it is so many times nearer.
const CHANCE_MIN: f64 = 0.02;

/// What one answer weighs beside those before.
const WEIGHT: f64 = 0.2;

/// With every answer of another holder, what is known of the rest fades so much: a replica is sent more as time goes on.
const FADING: f64 = 0.005;

/// How long a holder that could not be reached is asked after all others.
const SHUNNED_FOR: Duration = Duration::from_secs(5);

/// A shorter round trip cannot be told from this one.
const RTT_MIN: Duration = Duration::from_micros(200);

/// The round trip to a node that was not measured.
const RTT_UNKNOWN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Known {
    chance: f64,
    failed: Option<Duration>,
}

/// What is known of the holders of a volume.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    nodes: Vec<NodeId>,
    known: BTreeMap<NodeId, Known>,
}

impl Holders {
    /// These are the holders, the last owner first.
    pub fn set(&mut self, nodes: Vec<NodeId>) {
        if self.nodes.first() != nodes.first() {
            // Another one had everything last.
            self.known.clear();
        }
        self.known.retain(|node, _| nodes.contains(node));
        self.nodes = nodes;
    }

    /// The holders as they were set.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The holders, whom to ask first at the front.
    #[must_use]
    pub fn order(&self, now: Duration, rtt: impl Fn(NodeId) -> Option<Duration>) -> Vec<NodeId> {
        let cost = |node: NodeId| {
            let Known { chance, failed } = self.known(node);
            let is_shunned = failed.is_some_and(|failed| now < failed + SHUNNED_FOR);
            let rtt = rtt(node).unwrap_or(RTT_UNKNOWN).max(RTT_MIN);
            (is_shunned, rtt.as_secs_f64() / chance.max(CHANCE_MIN))
        };
        let mut nodes: Vec<(NodeId, (bool, f64))> = self.nodes.iter().map(|node| (*node, cost(*node))).collect();
        // Stable: of equals the one that was named first.
        nodes.sort_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        nodes.into_iter().map(|(node, _)| node).collect()
    }

    /// `node` had this share of what it was asked for.
    pub fn had(&mut self, node: NodeId, share: f64) {
        let initial = self.nodes.iter().map(|other| (*other, self.initial(*other))).collect::<Vec<_>>();
        for (other, initial) in initial {
            let known = self.known.entry(other).or_insert(Known { chance: initial, failed: None });
            match other == node {
                true => *known = Known { chance: known.chance + (share - known.chance) * WEIGHT, failed: None },
                false => known.chance += (initial - known.chance) * FADING,
            }
        }
    }

    /// `node` could not be reached, or did not answer as it should.
    pub fn failed(&mut self, node: NodeId, now: Duration) {
        let known = self.known(node);
        self.known.insert(node, Known { failed: Some(now), ..known });
    }

    fn known(&self, node: NodeId) -> Known {
        self.known.get(&node).copied().unwrap_or(Known { chance: self.initial(node), failed: None })
    }

    fn initial(&self, node: NodeId) -> f64 {
        if self.nodes.first() == Some(&node) { CHANCE.0 } else { CHANCE.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: NodeId = NodeId(1);
    const NEAR: NodeId = NodeId(2);
    const FAR: NodeId = NodeId(3);
    const NOW: Duration = Duration::from_secs(100);

    fn rtt(node: NodeId) -> Option<Duration> {
        [(SOURCE, 60), (NEAR, 1), (FAR, 90)]
            .into_iter()
            .find_map(|(of, ms)| (of == node).then(|| Duration::from_millis(ms)))
    }

    fn holders() -> Holders {
        let mut holders = Holders::default();
        holders.set(vec![SOURCE, NEAR, FAR]);
        holders
    }

    #[test]
    fn the_nearest_is_asked_first_and_the_last_owner_before_those_that_are_hardly_nearer() {
        assert_eq!(holders().order(NOW, rtt), [NEAR, SOURCE, FAR]);
        let equal = |_| Some(Duration::from_millis(60));
        assert_eq!(holders().order(NOW, equal), [SOURCE, NEAR, FAR]);
        assert_eq!(holders().order(NOW, |_| None), [SOURCE, NEAR, FAR]);
    }

    #[test]
    fn who_never_has_anything_is_asked_later_unless_that_costs_nothing() {
        let mut holders = holders();
        let near = |node| if node == NEAR { Some(Duration::from_millis(40)) } else { rtt(node) };
        for _ in 0..3 {
            holders.had(NEAR, 0.0);
        }
        assert_eq!(holders.order(NOW, near), [SOURCE, NEAR, FAR]);
        for _ in 0..30 {
            holders.had(NEAR, 0.0);
        }
        assert_eq!(holders.order(NOW, rtt)[0], NEAR, "a millisecond for one chance in fifty");
        // It is sent more as time goes on.
        for _ in 0..2000 {
            holders.had(SOURCE, 1.0);
        }
        for _ in 0..5 {
            holders.had(NEAR, 1.0);
        }
        assert_eq!(holders.order(NOW, near)[0], NEAR);
    }

    #[test]
    fn who_could_not_be_reached_comes_last_for_a_while() {
        let mut holders = holders();
        holders.failed(NEAR, NOW);
        assert_eq!(holders.order(NOW + SHUNNED_FOR / 2, rtt), [SOURCE, FAR, NEAR]);
        assert_eq!(holders.order(NOW + SHUNNED_FOR, rtt), [NEAR, SOURCE, FAR]);
        holders.failed(NEAR, NOW);
        holders.had(NEAR, 1.0);
        assert_eq!(holders.order(NOW, rtt)[0], NEAR, "it has answered since");
    }
}
