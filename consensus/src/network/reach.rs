//! Which members of consensus do not answer, for the log: told once when one is out of reach, and once when it is back.
//!
//! openraft warns of every message that fails, several a second for as long as a member is off. Decides nothing: openraft does, by itself.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client_lib::NodeId;
use tokio::time::Instant;

/// A member is out of reach when it has answered nothing for so long,
const SILENCE: Duration = Duration::from_secs(5);
/// and so many requests: one that is lost is nothing to tell of.
const REQUESTS: u32 = 4;
/// After such a pause it begins anew: a follower asks others only when it wants to lead.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A change of whether a member can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// It is out of reach, the last time for this reason.
    Lost(String),
    Back,
}

/// What was asked of a member since it answered last.
#[derive(Debug)]
struct Silence {
    since: Instant,
    last: Instant,
    requests: u32,
    reason: String,
    is_told: bool,
}

/// All members that have yet to answer.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<BTreeMap<NodeId, Silence>>);

impl Reach {
    /// A request is about to be made.
    pub(super) fn asked(&self, member: NodeId) {
        tell(member, self.begin(member, Instant::now()));
    }

    /// A request was answered.
    pub(super) fn answered(&self, member: NodeId) {
        tell(member, self.end(member));
    }

    /// A request was not.
    pub(super) fn failed(&self, member: NodeId, reason: &impl Display) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(silence) = silent.get_mut(&member).filter(|silence| !silence.is_told) {
            silence.reason = reason.to_string();
        }
    }

    fn begin(&self, member: NodeId, now: Instant) -> Option<Change> {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = || Silence { since: now, last: now, requests: 0, reason: String::new(), is_told: false };
        let silence = silent.entry(member).or_insert_with(anew);
        if !silence.is_told && now.duration_since(silence.last) > PAUSE_MAX {
            *silence = anew();
        }
        let is_lost = silence.requests >= REQUESTS && now.duration_since(silence.since) >= SILENCE;
        silence.last = now;
        silence.requests = silence.requests.saturating_add(1);
        if !is_lost || silence.is_told {
            return None;
        }
        silence.is_told = true;
        Some(Change::Lost(silence.reason.clone()))
    }

    fn end(&self, member: NodeId) -> Option<Change> {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.remove(&member).filter(|silence| silence.is_told).map(|_| Change::Back)
    }
}

fn tell(member: NodeId, change: Option<Change>) {
    match change {
        None => {}
        Some(Change::Back) => tracing::info!(node = %member, "this node answers again in consensus"),
        Some(Change::Lost(reason)) => tracing::warn!(
            node = %member, %reason,
            "this node does not answer in consensus; the metadata can be changed for as long as a majority of the voters answers"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: NodeId = NodeId(2);
    const HEARTBEAT: Duration = Duration::from_millis(250);

    /// openraft's warnings of each heartbeat to a node that was off filled the log.
    #[test]
    fn a_member_that_is_off_is_told_of_once_and_once_when_it_is_back() {
        let (reach, begun) = (Reach::default(), Instant::now());
        let mut told = Vec::new();
        for heartbeat in 0..1000 {
            told.extend(reach.begin(MEMBER, begun + HEARTBEAT * heartbeat).map(|change| (heartbeat, change)));
            reach.failed(MEMBER, &"it is off");
        }
        assert_eq!(told, [(20, Change::Lost("it is off".to_owned()))], "after five seconds");
        assert_eq!((reach.end(MEMBER), reach.end(MEMBER)), (Some(Change::Back), None));
    }

    #[test]
    fn lost_messages_are_not_told_of() {
        let (reach, mut now) = (Reach::default(), Instant::now());
        for _ in 0..100 {
            for _ in 0..REQUESTS {
                assert_eq!(reach.begin(MEMBER, now), None);
                now += SILENCE;
            }
            assert_eq!(reach.end(MEMBER), None, "the last of them was answered");
        }
        // The elections of a follower, of which each ends before one member has answered.
        for _ in 0..100 {
            assert_eq!(reach.begin(MEMBER, now), None);
            now += PAUSE_MAX * 2;
        }
    }
}
