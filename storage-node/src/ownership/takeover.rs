//! The forced change of a volume's owner, as a pure state machine at the replica that takes over.
//!
//! Events in, effects out, as in [`super::handover`]. What must hold, whatever fails and whenever:
//!
//! - nothing is proposed before consensus has agreed that the owner's lease is out, or that the owner has stepped down;
//! - from the moment at which this replica says what it holds until it knows the outcome, it takes nothing more from the
//!   owner that is being left: what it proposes to begin with is exactly what it begins with;
//! - a proposal whose outcome is unknown is resolved as a handover's is, before anything goes on.
//!
//! An owner that renews while its lease is waited out is alive: the takeover ends there, and nothing has happened.
//!
//! ```text
//!           Start                Woke                 Expired          Held             Committed
//!  (begin) ───────► Waiting ──────────► Expiring ──────────► Holding ───────► Proposing ─────────► TakenOver
//!                      │ renewed           │ StillHeld          │ Failed         │ Refused  Unknown ↓    ▲
//!                      ▼                   ▼                    ▼                ▼              Resolving ┘
//!                 Release                Release             Release          Release ◄───────────┘ not ours
//! ```

pub mod driver;

use std::time::Duration;

use client_lib::{Epoch, Error, Lsn, NodeId};

/// Where a takeover stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Waiting { renewals: Option<u64> },
    Expiring { renewals: u64 },
    Holding,
    Proposing,
    Resolving,
    Ended,
}

/// The owner's lease, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of its last renewal.
    pub renewals: u64,
    /// Whether consensus has agreed that it is out, or that the owner acts no more, whatever its lease: it has stepped down.
    pub is_out: bool,
    /// When it will be out for certain, if it is not renewed.
    pub out_at: Duration,
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Look at the lease: at the start, and when the wait is over.
    Looked {
        /// The time.
        now: Duration,
        /// The owner's lease.
        lease: Seen,
    },
    /// Consensus has agreed that the lease is out.
    Expired,
    /// This replica takes nothing more from the owner, and holds the volume up to here.
    Held(Lsn),
    /// A step before the proposal failed, or was refused.
    Failed(Error),
    /// The takeover was committed under this epoch.
    Committed(Epoch),
    /// Consensus refused the takeover: it certainly did not happen and never will.
    Refused(Error),
    /// No answer: the takeover may or may not have been, or still be, committed.
    Unknown,
    /// A linearizable read, made after the proposal was fenced off, showed this owner and epoch.
    Resolved {
        /// The owner it showed.
        owner: NodeId,
        /// The epoch it showed.
        epoch: Epoch,
    },
}

/// What the driver must do next.
#[derive(Debug)]
pub enum Effect {
    /// Wait until then, or until the lease changes; then `Looked`.
    Wait {
        /// The time.
        until: Duration,
    },
    /// Propose that the lease is out; then `Expired` or `Failed`.
    Expire {
        /// The renewal that was waited for.
        renewals: u64,
    },
    /// Take nothing more from the owner, apply what is complete, and tell up to where; then `Held` or `Failed`.
    Hold,
    /// Propose the takeover; then `Committed`, `Refused` or `Unknown`.
    Propose {
        /// What is held.
        start: Lsn,
    },
    /// Make sure that the proposal can not be committed later, then read the volume's owner; then `Resolved` or `Unknown`.
    Resolve,
    /// Follow the owner as before, and report this failure.
    Release(Error),
    /// Follow the owner as before: it has renewed its lease, so it is alive.
    Alive,
    /// Follow whoever owns the volume: the takeover was not committed.
    NotCommitted {
        /// The owner.
        owner: NodeId,
        /// The epoch of its ownership.
        epoch: Epoch,
    },
    /// The volume is this node's under this epoch; where it begins is in the metadata.
    TakeUp(Epoch),
}

/// One takeover.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Takeover {
    me: NodeId,
    epoch: Epoch,
    state: State,
}

impl Takeover {
    /// A takeover by node `me` of a volume that another node owns in `epoch`. Begins when the lease is looked at.
    #[must_use]
    pub fn new(me: NodeId, epoch: Epoch) -> Takeover {
        Takeover { me, epoch, state: State::Waiting { renewals: None } }
    }

    /// Takes an event and says what to do; `None` when there is nothing more to do.
    ///
    /// # Panics
    /// On an event that its state cannot have: the driver answers each effect with one of its outcomes.
    pub fn on(&mut self, event: Event) -> Option<Effect> {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let (next, effect) = match (state, event) {
            (State::Waiting { renewals }, Event::Looked { now, lease }) => self.looked(renewals, now, lease),
            (State::Expiring { .. }, Event::Expired) => (State::Holding, Effect::Hold),
            (State::Waiting { .. } | State::Expiring { .. } | State::Holding, Event::Failed(error)) => {
                (State::Ended, Effect::Release(error))
            }
            (State::Holding, Event::Held(start)) => (State::Proposing, Effect::Propose { start }),
            (State::Proposing, Event::Refused(error)) => (State::Ended, Effect::Release(error)),
            (State::Proposing, Event::Committed(epoch)) => {
                assert_eq!(epoch, self.epoch.next(), "a takeover raises the epoch by one");
                (State::Ended, Effect::TakeUp(epoch))
            }
            (State::Proposing | State::Resolving, Event::Unknown) => (State::Resolving, Effect::Resolve),
            (State::Resolving, Event::Resolved { owner, epoch }) => {
                // Or by a handover that the owner had proposed before it was lost. Either way it is here.
                if owner == self.me && epoch == self.epoch.next() {
                    (State::Ended, Effect::TakeUp(epoch))
                } else {
                    (State::Ended, Effect::NotCommitted { owner, epoch })
                }
            }
            (state, event) => panic!("takeover in state {state:?} cannot take {event:?}"),
        };
        self.state = next;
        Some(effect)
    }

    fn looked(&self, waited_for: Option<u64>, now: Duration, lease: Seen) -> (State, Effect) {
        if lease.is_out {
            return (State::Holding, Effect::Hold);
        }
        if waited_for.is_some_and(|renewals| renewals != lease.renewals) {
            return (State::Ended, Effect::Alive);
        }
        let renewals = lease.renewals;
        if now < lease.out_at {
            (State::Waiting { renewals: Some(renewals) }, Effect::Wait { until: lease.out_at })
        } else {
            (State::Expiring { renewals }, Effect::Expire { renewals })
        }
    }
}

#[cfg(test)]
mod tests {
    use client_lib::ErrorKind;

    use super::*;

    const ME: NodeId = NodeId(2);
    const FROM: NodeId = NodeId(1);
    const EPOCH: Epoch = Epoch(4);
    const START: Lsn = Lsn::new(EPOCH, 99);

    fn looked(now: u64, renewals: u64, is_out: bool) -> Event {
        let lease = Seen { renewals, is_out, out_at: Duration::from_secs(10) };
        Event::Looked { now: Duration::from_secs(now), lease }
    }

    fn proposing() -> Takeover {
        let mut takeover = Takeover::new(ME, EPOCH);
        assert!(matches!(takeover.on(looked(3, 7, false)), Some(Effect::Wait { until }) if until.as_secs() == 10));
        assert!(matches!(takeover.on(looked(10, 7, false)), Some(Effect::Expire { renewals: 7 })));
        assert!(matches!(takeover.on(Event::Expired), Some(Effect::Hold)));
        assert!(matches!(takeover.on(Event::Held(START)), Some(Effect::Propose { start: START })));
        takeover
    }

    fn failure() -> Error {
        Error::new(ErrorKind::Unavailable, "no leader")
    }

    #[test]
    fn a_lease_is_waited_out_found_out_and_the_volume_taken() {
        let taken = proposing().on(Event::Committed(Epoch(5)));
        assert!(matches!(taken, Some(Effect::TakeUp(Epoch(5)))));
    }

    #[test]
    fn a_lease_that_is_out_is_not_waited_for() {
        assert!(matches!(Takeover::new(ME, EPOCH).on(looked(0, 7, true)), Some(Effect::Hold)));
    }

    #[test]
    fn an_owner_that_renews_keeps_its_volume() {
        let mut takeover = Takeover::new(ME, EPOCH);
        takeover.on(looked(3, 7, false));
        let released = takeover.on(looked(5, 8, false));
        assert!(matches!(released, Some(Effect::Alive)));
    }

    #[test]
    fn an_early_look_waits_on() {
        let mut takeover = Takeover::new(ME, EPOCH);
        takeover.on(looked(3, 7, false));
        assert!(matches!(takeover.on(looked(9, 7, false)), Some(Effect::Wait { .. })));
    }

    #[test]
    fn an_unknown_outcome_is_resolved_before_anything_goes_on() {
        let mut takeover = proposing();
        assert!(matches!(takeover.on(Event::Unknown), Some(Effect::Resolve)));
        assert!(matches!(takeover.on(Event::Unknown), Some(Effect::Resolve)));
        let taken = takeover.on(Event::Resolved { owner: ME, epoch: Epoch(5) });
        assert!(matches!(taken, Some(Effect::TakeUp(Epoch(5)))));
        for (owner, epoch) in [(FROM, EPOCH), (NodeId(3), Epoch(5)), (FROM, Epoch(6))] {
            let mut takeover = proposing();
            takeover.on(Event::Unknown);
            let ended = takeover.on(Event::Resolved { owner, epoch });
            assert!(matches!(ended, Some(Effect::NotCommitted { owner: by, .. }) if by == owner));
        }
    }

    #[test]
    fn a_failure_before_the_proposal_changes_nothing() {
        let mut takeover = Takeover::new(ME, EPOCH);
        takeover.on(looked(0, 7, true));
        assert!(matches!(takeover.on(Event::Failed(failure())), Some(Effect::Release(_))));
        assert!(matches!(proposing().on(Event::Refused(failure())), Some(Effect::Release(_))));
    }
}
