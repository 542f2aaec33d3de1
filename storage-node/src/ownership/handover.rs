//! The planned change of a volume's owner, as a pure state machine at the source.
//!
//! Events in, effects out: no I/O, no clock. The driver carries out the effects one at a time and reports
//! each outcome as an event. What must hold, whatever fails and whenever:
//!
//! - nothing but `Thaw` or `Step down` ends a hold, so no write is acked in between;
//! - until the proposal, any failure thaws and the source goes on as owner;
//! - from the proposal on, the source stays frozen until it *knows* the outcome: a proposal whose reply was
//!   lost may still commit. Only consensus can tell, so the machine asks it ([`Effect::Resolve`]) until it can;
//! - the epoch may end by a takeover meanwhile ([`super::takeover`]): then the source steps down for whoever has it.
//!
//! ```text
//!            Start            Frozen            Prepared           Committed
//!  Serving ────────► Freezing ───────► Preparing ───────► Proposing ────────► SteppedDown
//!     ▲                 │ Failed           │ Failed           │ Refused             ▲
//!     └─────────────────┴──────────────────┴──────────────────┤                     │
//!                                                    Unknown, ▼   Resolved(moved)   │
//!                              Resolved(not moved) ── Resolving ────────────────────┘
//!                                                     Refused as not the owner
//! ```

use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId};

/// Where a handover stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Serving,
    Freezing,
    Preparing { final_lsn: Lsn },
    Proposing { final_lsn: Lsn },
    Resolving { final_lsn: Lsn },
    SteppedDown,
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Begin.
    Start,
    /// No write is under way any more and all are synced; this is the last LSN.
    Frozen(Lsn),
    /// The destination holds, durably, the manifest up to this LSN.
    Prepared(Lsn),
    /// A step before the proposal failed or was cancelled.
    Failed(Error),
    /// The transfer was committed under this epoch.
    Committed(Epoch),
    /// Consensus refused the transfer: it certainly did not happen and never will.
    Refused(Error),
    /// No answer: the transfer may or may not have been, or still be, committed.
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
    /// Hold new writes, wait for those under way, sync; then [`Event::Frozen`].
    Freeze,
    /// Send the last manifest to the destination; then [`Event::Prepared`].
    Prepare {
        /// Where it must end.
        final_lsn: Lsn,
    },
    /// Hold reads too, then propose the transfer; then `Committed`, `Refused` or `Unknown`.
    Propose {
        /// The last LSN of the epoch.
        final_lsn: Lsn,
    },
    /// Make sure the proposal can not be committed later, then read the volume's owner; then `Resolved`.
    Resolve,
    /// Go on as owner, release everything held, and report this failure.
    Thaw(Error),
    /// Become a replica of this owner, then release everything held: it goes there.
    StepDown {
        /// The new owner.
        owner: NodeId,
        /// The epoch of its ownership.
        epoch: Epoch,
    },
}

/// One handover.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handover {
    to: NodeId,
    epoch: Epoch,
    state: State,
}

impl Handover {
    /// A handover of a volume that is owned in `epoch`, to node `to`.
    #[must_use]
    pub fn new(to: NodeId, epoch: Epoch) -> Handover {
        Handover { to, epoch, state: State::Serving }
    }

    /// Whether the handover may still be cancelled: nothing has been proposed.
    #[must_use]
    pub fn abortable(&self) -> bool {
        matches!(self.state, State::Serving | State::Freezing | State::Preparing { .. })
    }

    /// Takes an event and says what to do; `None` when there is nothing more to do.
    ///
    /// # Panics
    /// On an event that its state cannot have: the driver answers each effect with one of its outcomes.
    pub fn on(&mut self, event: Event) -> Option<Effect> {
        let state = std::mem::replace(&mut self.state, State::SteppedDown);
        let (next, effect) = match (state, event) {
            (State::Serving, Event::Start) => (State::Freezing, Some(Effect::Freeze)),
            (State::Freezing, Event::Frozen(final_lsn)) => {
                (State::Preparing { final_lsn }, Some(Effect::Prepare { final_lsn }))
            }
            (State::Preparing { final_lsn }, Event::Prepared(known)) => {
                // The destination may not know more than the source wrote, and must not know less.
                assert_eq!(known, final_lsn, "the destination is prepared up to the final LSN");
                (State::Proposing { final_lsn }, Some(Effect::Propose { final_lsn }))
            }
            (State::Freezing | State::Preparing { .. }, Event::Failed(error)) => {
                (State::Serving, Some(Effect::Thaw(error)))
            }
            (State::Proposing { final_lsn }, Event::Refused(error)) if error.kind() == ErrorKind::NotOwner => {
                // The epoch is over: whoever owns the volume now took it over.
                (State::Resolving { final_lsn }, Some(Effect::Resolve))
            }
            (State::Proposing { .. }, Event::Refused(error)) => (State::Serving, Some(Effect::Thaw(error))),
            (State::Proposing { .. }, Event::Committed(epoch)) => {
                assert_eq!(epoch, self.epoch.next(), "a transfer raises the epoch by one");
                (State::SteppedDown, Some(Effect::StepDown { owner: self.to, epoch }))
            }
            (State::Proposing { final_lsn } | State::Resolving { final_lsn }, Event::Unknown) => {
                (State::Resolving { final_lsn }, Some(Effect::Resolve))
            }
            (State::Resolving { .. }, Event::Resolved { owner, epoch }) => {
                if epoch == self.epoch {
                    let error = Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "the transfer to node {} was not committed; the volume stays where it was, try again",
                            self.to
                        ),
                    );
                    (State::Serving, Some(Effect::Thaw(error)))
                } else {
                    // This very transfer, or a takeover.
                    assert!(epoch > self.epoch, "epochs only rise: had {}, saw {epoch} of node {owner}", self.epoch);
                    (State::SteppedDown, Some(Effect::StepDown { owner, epoch }))
                }
            }
            (state, event) => panic!("handover in state {state:?} cannot take {event:?}"),
        };
        self.state = next;
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: NodeId = NodeId(2);
    const EPOCH: Epoch = Epoch(4);
    const FINAL: Lsn = Lsn::new(EPOCH, 99);

    fn proposing() -> Handover {
        let mut handover = Handover::new(TO, EPOCH);
        assert!(matches!(handover.on(Event::Start), Some(Effect::Freeze)));
        assert!(matches!(handover.on(Event::Frozen(FINAL)), Some(Effect::Prepare { final_lsn }) if final_lsn == FINAL));
        assert!(handover.abortable());
        assert!(matches!(handover.on(Event::Prepared(FINAL)), Some(Effect::Propose { .. })));
        assert!(!handover.abortable());
        handover
    }

    fn failure() -> Error {
        Error::new(ErrorKind::Unavailable, "link down")
    }

    #[test]
    fn a_committed_transfer_steps_down() {
        assert!(matches!(
            proposing().on(Event::Committed(Epoch(5))),
            Some(Effect::StepDown { owner: TO, epoch: Epoch(5) })
        ));
    }

    #[test]
    fn an_epoch_that_a_takeover_ended_steps_down_for_the_new_owner() {
        let mut handover = proposing();
        let over = Error::new(ErrorKind::NotOwner, "the epoch is over");
        assert!(matches!(handover.on(Event::Refused(over)), Some(Effect::Resolve)), "does not thaw");
        let resolved = handover.on(Event::Resolved { owner: NodeId(3), epoch: Epoch(5) });
        assert!(matches!(resolved, Some(Effect::StepDown { owner: NodeId(3), epoch: Epoch(5) })));
    }

    #[test]
    fn a_failure_before_the_proposal_thaws() {
        let mut handover = Handover::new(TO, EPOCH);
        handover.on(Event::Start);
        assert!(matches!(handover.on(Event::Failed(failure())), Some(Effect::Thaw(_))));

        let mut handover = Handover::new(TO, EPOCH);
        handover.on(Event::Start);
        handover.on(Event::Frozen(FINAL));
        assert!(matches!(handover.on(Event::Failed(failure())), Some(Effect::Thaw(_))));
        assert!(handover.abortable(), "and may be started again");
    }

    #[test]
    fn an_unknown_outcome_holds_until_consensus_tells() {
        let mut handover = proposing();
        assert!(matches!(handover.on(Event::Unknown), Some(Effect::Resolve)));
        assert!(matches!(handover.on(Event::Unknown), Some(Effect::Resolve)), "asks again, does not thaw");
        assert!(matches!(
            handover.on(Event::Resolved { owner: TO, epoch: Epoch(5) }),
            Some(Effect::StepDown { owner: TO, epoch: Epoch(5) })
        ));

        let mut handover = proposing();
        handover.on(Event::Unknown);
        assert!(matches!(handover.on(Event::Resolved { owner: NodeId(1), epoch: EPOCH }), Some(Effect::Thaw(_))));
    }

    #[test]
    #[should_panic(expected = "prepared up to the final LSN")]
    fn a_destination_that_misses_the_end_is_not_proposed() {
        let mut handover = Handover::new(TO, EPOCH);
        handover.on(Event::Start);
        handover.on(Event::Frozen(FINAL));
        handover.on(Event::Prepared(Lsn::new(EPOCH, 98)));
    }
}
