//! The planned change of owner of one volume, or of several in one step, as a pure state machine at the source.
//!
//! Events in, effects out: no I/O, no clock. The driver carries out the effects one at a time and reports
//! each outcome as an event; what concerns several volumes it does for all of them at once. What must hold, whatever fails and whenever:
//!
//! - nothing but `Thaw` or `Release` ends a hold, so no write is acked in between;
//! - no end of an epoch is told before every volume is held, and none is released before all may be: that is the one cut of several;
//! - until the proposal, any failure thaws and the source goes on as owner;
//! - from the proposal on, the source stays frozen until it *knows* the outcome: a proposal whose reply was
//!   lost may still commit. Only consensus can tell, so the machine asks it ([`Effect::Resolve`]) until it can;
//! - an epoch may end by a takeover meanwhile ([`super::takeover`]): then the source steps down for whoever has it. A takeover is of
//!   one volume, and makes the proposal of several void: the others stay.
//!
//! ```text
//!            Start            Frozen            Prepared           Committed
//!  Serving ────────► Freezing ───────► Preparing ───────► Proposing ────────► Over
//!     ▲                 │ Failed           │ Failed           │ Refused          ▲
//!     └─────────────────┴──────────────────┴──────────────────┤                  │
//!                                                    Unknown, ▼   Resolved       │
//!                             Resolved(none moved) ── Resolving ─────────────────┘
//!                                                     Refused as not the owner
//! ```

use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId};

/// Where a handover stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Serving,
    Freezing,
    Preparing { final_lsns: Vec<Lsn> },
    Proposing,
    Resolving,
    Over,
}

/// What has happened. What is told of each volume is in the order of the volumes.
#[derive(Debug)]
pub enum Event {
    /// Begin.
    Start,
    /// Every volume is held: no write is under way any more and all are synced; these are the last LSNs.
    Frozen(Vec<Lsn>),
    /// The destination holds, durably, the manifest of each volume up to this LSN.
    Prepared(Vec<Lsn>),
    /// A step before the proposal failed or was cancelled.
    Failed(Error),
    /// The transfer was committed, under these epochs.
    Committed(Vec<Epoch>),
    /// Consensus refused the transfer: it certainly did not happen and never will.
    Refused(Error),
    /// No answer: the transfer may or may not have been, or still be, committed.
    Unknown,
    /// A linearizable read, made after the proposal was fenced off, showed these owners and epochs; none of a volume that was deleted.
    Resolved(Vec<Option<(NodeId, Epoch)>>),
}

/// What the driver must do next.
#[derive(Debug)]
pub enum Effect {
    /// Hold new writes of every volume, wait for those under way, sync; then [`Event::Frozen`].
    Freeze,
    /// Send the last manifest of each volume to the destination; then [`Event::Prepared`].
    Prepare {
        /// Where each must end.
        final_lsns: Vec<Lsn>,
    },
    /// Hold reads too, then propose the transfer of all; then `Committed`, `Refused` or `Unknown`.
    Propose {
        /// The last LSN of each epoch.
        final_lsns: Vec<Lsn>,
    },
    /// Make sure the proposal can not be committed later, then read the volumes' owners; then `Resolved`.
    Resolve,
    /// Go on as owner of all, release everything held, and report this failure.
    Thaw(Failure),
    /// Do with each volume what is said here, then release everything held.
    Release {
        /// For each volume.
        volumes: Vec<Released>,
        /// Why not all of them went where they should, if so.
        failure: Option<Failure>,
    },
}

/// Why a handover came to something else than was asked for. What nodes are called, whoever drives it knows.
#[derive(Debug)]
pub enum Failure {
    /// As the step or consensus said.
    Said(Error),
    /// The transfer was not committed, and nothing has moved.
    NotCommitted,
    /// This node, which is not the destination, has taken a volume over meanwhile.
    TakenOver(NodeId),
    /// The destination has taken some of the volumes over meanwhile; the others stay.
    SomeTakenOver,
    /// Some of the volumes were deleted meanwhile; the others are where they are found.
    Deleted,
}

impl Failure {
    /// What is told to whoever asked for a handover to node `to`.
    #[must_use]
    pub fn told(self, to: NodeId, name: impl Fn(NodeId) -> String) -> Error {
        let fenced = |what| Error::new(ErrorKind::Fenced, what);
        match self {
            Failure::Said(error) => error,
            Failure::NotCommitted => {
                let what = format!("the transfer to node {} was not committed; nothing has moved, try again", name(to));
                Error::new(ErrorKind::Unavailable, what)
            }
            Failure::TakenOver(owner) => fenced(format!("the volume was taken over by node {} meanwhile", name(owner))),
            Failure::Deleted => Error::new(ErrorKind::NotFound, "it was deleted meanwhile, or one of the volumes was"),
            Failure::SomeTakenOver => {
                fenced(format!("one of the volumes was taken over by node {} meanwhile; the others stay", name(to)))
            }
        }
    }
}

/// What becomes of a volume when the outcome is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It stays here.
    Here,
    /// This transfer was committed: it is followed here from now on.
    To {
        /// The new owner.
        owner: NodeId,
        /// The epoch of its ownership.
        epoch: Epoch,
    },
    /// It has this owner by now, by this transfer or by a takeover, which may have cut off what was written here: only whoever knows the volume's
    /// history may follow it.
    Found {
        /// The new owner.
        owner: NodeId,
        /// The epoch of its ownership.
        epoch: Epoch,
    },
    /// It was deleted.
    Gone,
}

/// One handover.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handover {
    to: NodeId,
    epochs: Vec<Epoch>,
    state: State,
}

impl Handover {
    /// A handover of volumes that are owned in `epochs`, to node `to`.
    #[must_use]
    pub fn new(to: NodeId, epochs: Vec<Epoch>) -> Handover {
        Handover { to, epochs, state: State::Serving }
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
        let state = std::mem::replace(&mut self.state, State::Over);
        let (next, effect) = match (state, event) {
            (State::Serving, Event::Start) => (State::Freezing, Effect::Freeze),
            (State::Freezing, Event::Frozen(final_lsns)) => {
                assert_eq!(final_lsns.len(), self.epochs.len(), "every volume is frozen");
                (State::Preparing { final_lsns: final_lsns.clone() }, Effect::Prepare { final_lsns })
            }
            (State::Preparing { final_lsns }, Event::Prepared(known)) => {
                // The destination may not know more than the source wrote, and must not know less.
                assert_eq!(known, final_lsns, "the destination is prepared up to the final LSN");
                (State::Proposing, Effect::Propose { final_lsns })
            }
            (State::Freezing | State::Preparing { .. }, Event::Failed(error)) => {
                (State::Serving, Effect::Thaw(Failure::Said(error)))
            }
            (State::Proposing, Event::Refused(error)) if error.kind() == ErrorKind::NotOwner => {
                // An epoch is over: whoever owns the volume now took it over.
                (State::Resolving, Effect::Resolve)
            }
            (State::Proposing, Event::Refused(error)) => (State::Serving, Effect::Thaw(Failure::Said(error))),
            (State::Proposing, Event::Committed(epochs)) => {
                assert!(
                    epochs.iter().copied().eq(self.epochs.iter().map(|epoch| epoch.next())),
                    "a transfer raises each epoch by one"
                );
                let to = |epoch| Released::To { owner: self.to, epoch };
                let volumes = epochs.into_iter().map(to).collect();
                (State::Over, Effect::Release { volumes, failure: None })
            }
            (State::Proposing | State::Resolving, Event::Unknown) => (State::Resolving, Effect::Resolve),
            (State::Resolving, Event::Resolved(owners)) => self.resolved(&owners),
            (state, event) => panic!("handover in state {state:?} cannot take {event:?}"),
        };
        self.state = next;
        Some(effect)
    }

    /// Every volume's owner is known, for good.
    fn resolved(&self, owners: &[Option<(NodeId, Epoch)>]) -> (State, Effect) {
        assert_eq!(owners.len(), self.epochs.len(), "of every volume it is told");
        let released = |(before, now): (&Epoch, &Option<(NodeId, Epoch)>)| match *now {
            None => Released::Gone,
            Some((_, epoch)) if epoch == *before => Released::Here,
            Some((owner, epoch)) => {
                assert!(epoch > *before, "epochs only rise: had {before}, saw {epoch} of node {owner}");
                Released::Found { owner, epoch }
            }
        };
        let volumes: Vec<Released> = self.epochs.iter().zip(owners).map(released).collect();
        if volumes.iter().all(|released| *released == Released::Here) {
            return (State::Serving, Effect::Thaw(Failure::NotCommitted));
        }
        // This very transfer, or takeovers: by the destination, that is as good.
        let lost = volumes.iter().find_map(|released| match released {
            Released::Found { owner, .. } if *owner != self.to => Some(*owner),
            _ => None,
        });
        let failure = match lost {
            Some(owner) => Some(Failure::TakenOver(owner)),
            None if volumes.contains(&Released::Gone) => Some(Failure::Deleted),
            // Not the transfer, which is of all or none.
            None if volumes.contains(&Released::Here) => Some(Failure::SomeTakenOver),
            None => None,
        };
        (State::Over, Effect::Release { volumes, failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: NodeId = NodeId(2);
    const EPOCH: Epoch = Epoch(4);
    const FINAL: Lsn = Lsn::new(EPOCH, 99);
    const OTHER: Epoch = Epoch(7);
    const OTHER_FINAL: Lsn = Lsn::new(OTHER, 5);

    /// Of a volume, or of two.
    fn proposing(of_two: bool) -> Handover {
        let count = if of_two { 2 } else { 1 };
        let lsns = || [FINAL, OTHER_FINAL][..count].to_vec();
        let mut handover = Handover::new(TO, [EPOCH, OTHER][..count].to_vec());
        assert!(matches!(handover.on(Event::Start), Some(Effect::Freeze)));
        assert!(
            matches!(handover.on(Event::Frozen(lsns())), Some(Effect::Prepare { final_lsns }) if final_lsns == lsns())
        );
        assert!(handover.abortable());
        assert!(matches!(handover.on(Event::Prepared(lsns())), Some(Effect::Propose { .. })));
        assert!(!handover.abortable());
        handover
    }

    fn failure() -> Error {
        Error::new(ErrorKind::Unavailable, "link down")
    }

    fn to(owner: NodeId, epoch: u64) -> Released {
        Released::To { owner, epoch: Epoch(epoch) }
    }

    fn found(owner: NodeId, epoch: u64) -> Released {
        Released::Found { owner, epoch: Epoch(epoch) }
    }

    /// What is released how, and whether that is a failure.
    fn released(effect: Option<Effect>) -> (Vec<Released>, bool) {
        let Some(Effect::Release { volumes, failure }) = effect else { panic!("{effect:?} releases nothing") };
        (volumes, failure.is_some())
    }

    #[test]
    fn a_committed_transfer_steps_down() {
        assert_eq!(released(proposing(false).on(Event::Committed(vec![Epoch(5)]))), (vec![to(TO, 5)], false));
        let committed = proposing(true).on(Event::Committed(vec![Epoch(5), Epoch(8)]));
        assert_eq!(released(committed), (vec![to(TO, 5), to(TO, 8)], false));
    }

    /// Whoever found the volume at another owner followed that as if the transfer had been committed: what a takeover had cut off was not compared
    /// with what is here, and the new owner's deltas were applied on top of it.
    #[test]
    fn an_epoch_that_a_takeover_ended_is_left_to_who_knows_its_history() {
        let mut handover = proposing(false);
        let over = Error::new(ErrorKind::NotOwner, "the epoch is over");
        assert!(matches!(handover.on(Event::Refused(over)), Some(Effect::Resolve)), "does not thaw");
        let resolved = handover.on(Event::Resolved(vec![Some((NodeId(3), Epoch(5)))]));
        assert_eq!(released(resolved), (vec![found(NodeId(3), 5)], true));
    }

    /// The others stayed frozen until the node was started again.
    #[test]
    fn a_volume_that_was_deleted_meanwhile_holds_up_no_other() {
        for (other, expected) in [((NodeId(1), EPOCH), Released::Here), ((TO, Epoch(5)), found(TO, 5))] {
            let mut handover = proposing(true);
            handover.on(Event::Unknown);
            let resolved = handover.on(Event::Resolved(vec![Some(other), None]));
            assert_eq!(released(resolved), (vec![expected, Released::Gone], true));
        }
    }

    #[test]
    fn a_takeover_of_one_of_two_leaves_the_other_where_it_was() {
        for by in [TO, NodeId(3)] {
            let mut handover = proposing(true);
            handover.on(Event::Unknown);
            let resolved = handover.on(Event::Resolved(vec![Some((NodeId(1), EPOCH)), Some((by, Epoch(8)))]));
            assert_eq!(released(resolved), (vec![Released::Here, found(by, 8)], true));
        }
    }

    #[test]
    fn a_failure_before_the_proposal_thaws() {
        let mut handover = Handover::new(TO, vec![EPOCH]);
        handover.on(Event::Start);
        assert!(matches!(handover.on(Event::Failed(failure())), Some(Effect::Thaw(_))));

        let mut handover = Handover::new(TO, vec![EPOCH, OTHER]);
        handover.on(Event::Start);
        handover.on(Event::Frozen(vec![FINAL, OTHER_FINAL]));
        assert!(matches!(handover.on(Event::Failed(failure())), Some(Effect::Thaw(_))));
        assert!(handover.abortable(), "and may be started again");
    }

    #[test]
    fn an_unknown_outcome_holds_until_consensus_tells() {
        for of_two in [false, true] {
            let count = if of_two { 2 } else { 1 };
            let mut handover = proposing(of_two);
            assert!(matches!(handover.on(Event::Unknown), Some(Effect::Resolve)));
            assert!(matches!(handover.on(Event::Unknown), Some(Effect::Resolve)), "asks again, does not thaw");
            let moved = [Some((TO, Epoch(5))), Some((TO, Epoch(8)))][..count].to_vec();
            let all = [found(TO, 5), found(TO, 8)][..count].to_vec();
            assert_eq!(released(handover.on(Event::Resolved(moved))), (all, false));

            let mut handover = proposing(of_two);
            handover.on(Event::Unknown);
            let stayed = [Some((NodeId(1), EPOCH)), Some((NodeId(1), OTHER))][..count].to_vec();
            assert!(matches!(handover.on(Event::Resolved(stayed)), Some(Effect::Thaw(_))));
        }
    }

    #[test]
    fn a_failure_is_told_with_the_names_of_the_nodes() {
        let told = |failure: Failure| failure.told(TO, |node| format!("cloud-{node}")).to_string();
        assert!(told(Failure::NotCommitted).contains("to node cloud-2 was not committed"));
        assert!(told(Failure::TakenOver(NodeId(3))).contains("taken over by node cloud-3 meanwhile"));
        assert!(told(Failure::SomeTakenOver).contains("taken over by node cloud-2 meanwhile; the others stay"));
        assert_eq!(told(Failure::Said(failure())), failure().to_string());
    }

    #[test]
    #[should_panic(expected = "prepared up to the final LSN")]
    fn a_destination_that_misses_the_end_is_not_proposed() {
        let mut handover = Handover::new(TO, vec![EPOCH]);
        handover.on(Event::Start);
        handover.on(Event::Frozen(vec![FINAL]));
        handover.on(Event::Prepared(vec![Lsn::new(EPOCH, 98)]));
    }
}
