//! A node's right to act as an owner: kept up by its [`Keeper`], looked at by its shards through a [`LeaseCell`].
//!
//! The keeper is pure: time is an argument, asking is an effect. What must hold, whatever fails and however late:
//!
//! - a grant counts from *before* it was asked for, and an answer belongs to the question it answers: one that comes after
//!   the keeper has asked again counts for nothing;
//! - a grant holds for the ownerships of one number of lapses. Consensus gives it only while nobody has found the lease to
//!   be out since; when somebody has, the node starts over with what metadata says it owns from then on;
//! - a shorter lease is in force here before it is asked for, so that others may count on it once it is granted.
//!
//! ```text
//!            Wake                    Granted
//!   idle ───────────► asked ───────────────────────► idle, until = asked + duration
//!    ▲                  │ Failed: again in a while
//!    └──────────────────┤ Lapsed: until = never, lapses = the new number, again at once
//!                       ▼
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_lib::clock::Clock;
use consensus::timings::LEASE_RENEWALS;

/// Pauses between attempts to renew, as a part of the lease's duration.
const RETRY_PART: u32 = 16;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It may be time to ask.
    Wake,
    /// What was asked for at `asked` was granted.
    Granted {
        /// When the question was put.
        asked: Duration,
    },
    /// What was asked for at `asked` was not answered, or not in time: nobody knows what came of it.
    Failed {
        /// When the question was put.
        asked: Duration,
    },
    /// The lease was found to be out for the `lapses`th time, as consensus says.
    Lapsed {
        /// How often.
        lapses: u64,
    },
}

/// What the driver must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Hold to [`Keeper::terms`] from now on, then ask consensus; then `Granted`, `Failed` or `Lapsed`.
    Ask {
        /// Names the question.
        asked: Duration,
        /// How often the lease was found to be out.
        lapses: u64,
        /// For how long it is wanted.
        duration: Duration,
    },
    /// Hold to [`Keeper::terms`] from now on.
    Hold,
}

/// Under what the node may act as an owner: for ownerships that it took up under `lapses`, until `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    /// How often the lease was found to be out.
    pub lapses: u64,
    /// The moment from which nothing is acked.
    pub until: Duration,
}

/// Keeps a node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keeper {
    terms: Terms,
    asked: Option<(Duration, Duration)>,
    next: Duration,
}

impl Keeper {
    /// A keeper without a lease, at a node whose lease was found to be out `lapses` times.
    #[must_use]
    pub fn new(lapses: u64) -> Keeper {
        Keeper { terms: Terms { lapses, until: Duration::ZERO }, asked: None, next: Duration::ZERO }
    }

    /// Under what the node may act.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// When to wake it next.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Takes an event, with the time `now` and the duration that is wanted from here on.
    pub fn on(&mut self, now: Duration, duration: Duration, event: Event) -> Option<Effect> {
        match event {
            Event::Wake if self.asked.is_none() && now >= self.next => {
                self.asked = Some((now, duration));
                self.terms.until = self.terms.until.min(now + duration);
                Some(Effect::Ask { asked: now, lapses: self.terms.lapses, duration })
            }
            Event::Granted { asked } => {
                let (_, duration) = self.asked.take_if(|(question, _)| *question == asked)?;
                self.terms.until = asked + duration;
                self.next = asked + duration / LEASE_RENEWALS;
                Some(Effect::Hold)
            }
            Event::Failed { asked } => {
                self.asked.take_if(|(question, _)| *question == asked)?;
                self.next = now + duration / RETRY_PART;
                None
            }
            Event::Lapsed { lapses } if lapses > self.terms.lapses => {
                self.terms = Terms { lapses, until: Duration::ZERO };
                self.asked = None;
                self.next = now;
                Some(Effect::Hold)
            }
            Event::Wake | Event::Lapsed { .. } => None,
        }
    }
}

/// The terms of a node's lease, shared with its shards. Looked at before every ack: two loads and a clock.
pub struct LeaseCell {
    lapses: AtomicU64,
    until_ns: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for LeaseCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseCell").field("lapses", &self.lapses).field("until_ns", &self.until_ns).finish()
    }
}

impl LeaseCell {
    /// No lease yet; `until` of later terms is a time on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> LeaseCell {
        LeaseCell { lapses: AtomicU64::new(0), until_ns: AtomicU64::new(0), clock }
    }

    /// A lease that lasts for ever, for ownerships taken up under no lapse: without a cluster nobody takes anything over.
    #[must_use]
    pub fn forever() -> LeaseCell {
        let cell = LeaseCell::new(Arc::new(client_lib::clock::SystemClock::new()));
        cell.hold(Terms { lapses: 0, until: Duration::MAX });
        cell
    }

    /// The time that terms are measured by.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// These terms are in force from now on. One thread at a time.
    pub fn hold(&self, terms: Terms) {
        if self.lapses.load(Ordering::Relaxed) != terms.lapses {
            // Nobody may take the new time together with the old number, or the other way round.
            self.until_ns.store(0, Ordering::SeqCst);
            self.lapses.store(terms.lapses, Ordering::SeqCst);
        }
        let until = u64::try_from(terms.until.as_nanos()).unwrap_or(u64::MAX);
        self.until_ns.store(until, Ordering::SeqCst);
    }

    /// For how long the terms are in force from now on; zero when they are not.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.until_ns.load(Ordering::SeqCst)).saturating_sub(self.clock.now())
    }

    /// Whether the node may act for an ownership that it took up under `lapses`, at this moment.
    #[must_use]
    pub fn allows(&self, lapses: u64) -> bool {
        let until = self.until_ns.load(Ordering::SeqCst);
        self.lapses.load(Ordering::SeqCst) == lapses && self.clock.now().as_nanos() < u128::from(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client_lib::clock::VirtualClock;

    const LEASE: Duration = Duration::from_secs(8);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ask(keeper: &mut Keeper, now: u64) -> Duration {
        match keeper.on(s(now), LEASE, Event::Wake) {
            Some(Effect::Ask { asked, .. }) => asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_counts_from_the_question() {
        let mut keeper = Keeper::new(0);
        let asked = ask(&mut keeper, 100);
        assert_eq!(keeper.on(s(105), LEASE, Event::Granted { asked }), Some(Effect::Hold));
        assert_eq!(keeper.terms(), Terms { lapses: 0, until: s(108) });
        assert_eq!(keeper.on(s(101), LEASE, Event::Wake), None, "not yet");
        assert_eq!(keeper.next(), s(102));
    }

    #[test]
    fn an_answer_to_an_earlier_question_counts_for_nothing() {
        let mut keeper = Keeper::new(0);
        let first = ask(&mut keeper, 100);
        keeper.on(s(110), LEASE, Event::Failed { asked: first });
        let second = ask(&mut keeper, 111);
        assert_eq!(keeper.on(s(112), LEASE, Event::Granted { asked: first }), None);
        assert_eq!(keeper.terms().until, Duration::ZERO);
        keeper.on(s(113), LEASE, Event::Granted { asked: second });
        assert_eq!(keeper.terms().until, s(119));
        assert_eq!(keeper.on(s(114), LEASE, Event::Granted { asked: second }), None, "it came twice");
    }

    #[test]
    fn whoever_was_found_out_starts_over() {
        let mut keeper = Keeper::new(2);
        let asked = ask(&mut keeper, 100);
        keeper.on(s(101), LEASE, Event::Granted { asked });
        let asked = ask(&mut keeper, 103);
        assert_eq!(keeper.on(s(104), LEASE, Event::Lapsed { lapses: 3 }), Some(Effect::Hold));
        assert_eq!(keeper.terms(), Terms { lapses: 3, until: Duration::ZERO });
        assert_eq!(keeper.on(s(104), LEASE, Event::Granted { asked }), None, "it was for another number");
        assert_eq!(keeper.on(s(104), LEASE, Event::Lapsed { lapses: 3 }), None, "known");
        ask(&mut keeper, 104);
    }

    #[test]
    fn a_shorter_lease_is_kept_before_it_is_asked_for() {
        let mut keeper = Keeper::new(0);
        let asked = ask(&mut keeper, 100);
        keeper.on(s(100), LEASE, Event::Granted { asked });
        keeper.on(s(104), s(1), Event::Wake);
        assert_eq!(keeper.terms().until, s(105));
    }

    #[test]
    fn a_shard_sees_the_terms_in_force() {
        let clock = Arc::new(VirtualClock::new(0));
        let cell = LeaseCell::new(clock.clone());
        assert!(!cell.allows(0));
        cell.hold(Terms { lapses: 0, until: s(8) });
        assert!(cell.allows(0) && !cell.allows(1));
        clock.advance(s(3));
        assert_eq!(cell.remaining(), s(5));
        clock.advance(s(5));
        assert_eq!(cell.remaining(), Duration::ZERO);
        assert!(!cell.allows(0), "at the very end it is over");
        cell.hold(Terms { lapses: 1, until: s(9) });
        assert!(cell.allows(1) && !cell.allows(0));
    }
}
