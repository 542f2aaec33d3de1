//! The ownership protocol, checked exhaustively within small bounds: the real metadata state machine, handover, lease and
//! takeover machines, in every order of messages, crashes, losses, repetitions, pauses and clock drift that the bounds allow
//! (docs/ownership.md). Each scenario is checked as it is, and each rule that it rests on is broken once: the explorer must
//! then find what goes wrong.

mod explorer;
mod failing;
mod group;
mod steps;
mod world;

use explorer::{Counterexample, explore};
use steps::{Action, Protocol};
use world::{Budget, World};

/// More states than this are not waited for.
const STATES_MAX: usize = 1_500_000;
/// One in this many states is followed to its orderly end.
const SETTLED_PART: u64 = 64;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The end of the epoch is told while a write is under way.
    NoSeal,
    /// The lease counts from the answer.
    LeaseFromReply,
    /// The destination serves as soon as it is prepared.
    ActivateBeforeCommit,
    /// A handover is cancelled after its proposal.
    LateCancel,
    /// A handover whose outcome is unknown ends.
    ThawOnUnknown,
    /// The source answers reads while its proposal is under way.
    ReadsWhileTransferring,
    /// What an earlier process proposed is carried out.
    IncarnationIgnored,
    /// A replica takes what an owner of an older epoch sends.
    OldEpochAccepted,
    /// The lease is not waited for.
    TakeoverInLease,
    /// It is waited for without regard to the drift of clocks.
    NoDriftBound,
    /// An expiry does not name the renewal it waited for: it may come from before a change of leader.
    AnyRenewalExpires,
    /// An ownership is taken up in a state in which the lease is out. Found by this model: it was taken over before the node had
    /// its lease again.
    ArmedWhileOut,
    /// A lease that was out is renewed as if it had not been.
    LapsesIgnored,
    /// The lease is looked at when a write comes, and not again when it is acked.
    LeaseLookedAtOnArrival,
    /// A replica follows the owner on while it takes over from it.
    TakesWhileTakingOver,
    /// An old owner that is back takes what the new one sends on top of its tail.
    TailMixed,
    /// It drops its tail.
    TailCut,
    /// The new owner begins without what was enclosed for it.
    EnclosureIgnored,
    /// A flush that waits for the other node is acked before that one holds everything.
    FlushNotHeld,
    /// An owner goes on answering once it has proposed that it has stepped down.
    ActsAfterSteppingDown,
    /// It is armed again by a later lease, as after a lapse.
    ArmedAfterSteppingDown,
    /// A process takes up what it owned before its own start is known to be applied.
    ActsBeforeStart,
    /// The start of a process does not end that an earlier one has stepped down.
    StartKeepsStepDown,
    /// What a store that takes nothing more has not made durable is told before the proposal, and not in it.
    RescueToldBefore,
    /// The end of a rescue is that of a handover: the old owner takes what its store has beyond it for the volume's.
    RescueWithoutFork,
    /// It begins where the store is durable, not with what was acked.
    RescueOfDurable,
}

/// Nothing is left to happen.
pub(crate) const QUIET: Budget = Budget {
    ticks: 0,
    renewals: 0,
    writes: 0,
    deltas: 0,
    handovers: 0,
    takeovers: 0,
    crashes: 0,
    losses: 0,
    duplicates: 0,
    timeouts: 0,
    drifts: 0,
    failures: 0,
    rescues: 0,
};

/// How a handover tells the new owner the end of the volume: in its proposal, or before.
const WAYS: [bool; 2] = [true, false];

fn run(bug: Option<Bug>, encloses: bool, budget: Budget) -> Result<usize, Counterexample<Action>> {
    let leases = budget.ticks > 0;
    explore(&Protocol { bug, leases, encloses }, World::new(budget, leases), STATES_MAX)
}

fn holds(name: &str, budget: Budget) {
    for encloses in if budget.handovers > 0 { &WAYS[..] } else { &WAYS[..1] } {
        let begun = std::time::Instant::now();
        match run(None, *encloses, budget) {
            Ok(states) => eprintln!("{name}, encloses: {encloses}: {states} states {:?}", begun.elapsed()),
            Err(Counterexample { what, trace }) => panic!("{name}, encloses: {encloses}: {what}, after {trace:#?}"),
        }
    }
}

fn caught(bug: Bug, budget: Budget) {
    for encloses in if budget.handovers > 0 { &WAYS[..] } else { &WAYS[..1] } {
        // What only one of the ways has.
        if *encloses && bug == Bug::ActivateBeforeCommit || !encloses && bug == Bug::EnclosureIgnored {
            continue;
        }
        match run(Some(bug), *encloses, budget) {
            Ok(states) => panic!("{bug:?} was not found in {states} states, encloses: {encloses}"),
            Err(Counterexample { what, trace }) => eprintln!("{bug:?}: {what}, after {} steps: {trace:?}", trace.len()),
        }
    }
}

/// A handover, with time standing still and leases that last.
const HANDOVER: Budget = Budget { writes: 2, deltas: 1, handovers: 1, ..QUIET };

/// A takeover from an owner that is cut off or paused, perhaps while it writes, and its return.
const TAKEOVER: Budget = Budget { writes: 1, deltas: 1, takeovers: 1, ticks: 3, renewals: 1, ..QUIET };

/// The same with more renewals and more time, and nothing written: who may act is all that matters.
const LEASES: Budget = Budget { takeovers: 1, ticks: 3, renewals: 2, ..QUIET };

#[test]
fn a_handover_is_safe_and_ends_whatever_is_lost_or_late() {
    holds("loss", Budget { losses: 2, timeouts: 1, ..HANDOVER });
}

#[test]
fn a_handover_is_safe_and_ends_whatever_comes_twice() {
    holds("repetition", Budget { duplicates: 2, timeouts: 1, ..HANDOVER });
}

#[test]
fn a_handover_is_safe_and_ends_whoever_crashes() {
    holds("crash", Budget { crashes: 1, losses: 1, timeouts: 1, writes: 1, ..HANDOVER });
}

#[test]
fn a_takeover_is_safe_and_ends_in_every_order() {
    holds("takeover", Budget { drifts: 1, ..TAKEOVER });
}

#[test]
fn a_takeover_is_safe_and_ends_whatever_is_lost_or_late() {
    holds("takeover with loss", Budget { losses: 1, timeouts: 1, writes: 0, deltas: 0, ..TAKEOVER });
}

#[test]
fn a_takeover_is_safe_and_ends_whoever_crashes() {
    holds("takeover with a crash", Budget { crashes: 1, writes: 0, deltas: 0, ..TAKEOVER });
}

#[test]
fn a_takeover_is_safe_and_ends_amid_renewals() {
    holds("leases", LEASES);
}

#[test]
fn a_takeover_is_safe_and_ends_amid_a_handover() {
    holds("takeover in a handover", Budget { handovers: 1, writes: 0, deltas: 0, ..TAKEOVER });
}

/// The owner's store fails at some moment, and it steps down; leases last, so that nothing else lets the other one take over.
const STEPPING_DOWN: Budget = Budget { failures: 1, takeovers: 1, writes: 1, ..QUIET };

#[test]
fn stepping_down_is_safe_and_ends_in_every_order() {
    holds("stepping down", Budget { deltas: 1, duplicates: 1, ..STEPPING_DOWN });
}

#[test]
fn stepping_down_is_safe_and_ends_whatever_is_lost_or_late() {
    holds("stepping down with loss", Budget { deltas: 1, losses: 1, timeouts: 1, ..STEPPING_DOWN });
}

#[test]
fn stepping_down_is_safe_and_ends_whoever_crashes() {
    holds("stepping down with crashes", Budget { crashes: 2, timeouts: 1, ..STEPPING_DOWN });
    holds("stepping down with a crash", Budget { crashes: 1, deltas: 1, losses: 1, ..STEPPING_DOWN });
}

#[test]
fn stepping_down_is_safe_and_ends_amid_a_handover() {
    holds("stepping down in a handover", Budget { handovers: 1, timeouts: 1, ..STEPPING_DOWN });
}

#[test]
fn stepping_down_is_safe_and_ends_amid_leases() {
    holds("stepping down with leases", Budget { ticks: 3, renewals: 1, ..STEPPING_DOWN });
}

#[test]
fn broken_rules_of_stepping_down_are_caught() {
    caught(Bug::ActsAfterSteppingDown, STEPPING_DOWN);
    caught(Bug::ActsBeforeStart, Budget { crashes: 1, ..STEPPING_DOWN });
    caught(Bug::StartKeepsStepDown, Budget { crashes: 1, ..STEPPING_DOWN });
    caught(Bug::IncarnationIgnored, Budget { crashes: 1, ..STEPPING_DOWN });
    caught(Bug::ArmedAfterSteppingDown, Budget { ticks: 3, renewals: 2, ..STEPPING_DOWN });
}

/// The owner's store fails, and has lost the last that was acked or has what never was; the owner gives the volume away.
const RESCUE: Budget = Budget { failures: 1, rescues: 1, writes: 2, ..QUIET };

#[test]
fn a_rescue_is_safe_and_ends_in_every_order() {
    holds("rescue", Budget { deltas: 1, duplicates: 1, ..RESCUE });
    holds("two rescues", Budget { rescues: 2, failures: 2, deltas: 1, ..RESCUE });
}

#[test]
fn a_rescue_is_safe_and_ends_whatever_is_lost_or_late() {
    holds("rescue with loss", Budget { rescues: 2, losses: 1, timeouts: 1, ..RESCUE });
}

#[test]
fn a_rescue_is_safe_and_ends_whoever_crashes() {
    holds("rescue with a crash", Budget { crashes: 1, timeouts: 1, writes: 3, ..RESCUE });
    holds("rescue with a crash and a delta", Budget { crashes: 1, deltas: 2, ..RESCUE });
}

#[test]
fn a_rescue_is_safe_and_ends_amid_a_takeover() {
    holds("rescue and takeover", Budget { takeovers: 1, timeouts: 1, deltas: 1, ..RESCUE });
    holds("rescue, takeover and a crash", Budget { takeovers: 1, crashes: 1, ..RESCUE });
}

#[test]
fn broken_rules_of_a_rescue_are_caught() {
    let crash = Budget { crashes: 1, timeouts: 1, writes: 3, deltas: 2, ..RESCUE };
    caught(Bug::RescueToldBefore, crash);
    caught(Bug::RescueWithoutFork, crash);
    caught(Bug::RescueOfDurable, RESCUE);
    caught(Bug::IncarnationIgnored, crash);
}

#[test]
fn broken_rules_of_a_handover_are_caught() {
    caught(Bug::NoSeal, HANDOVER);
    caught(Bug::ActivateBeforeCommit, HANDOVER);
    caught(Bug::LateCancel, HANDOVER);
    caught(Bug::EnclosureIgnored, HANDOVER);
    caught(Bug::ThawOnUnknown, Budget { timeouts: 1, ..HANDOVER });
    caught(Bug::ReadsWhileTransferring, Budget { timeouts: 1, ..HANDOVER });
    caught(Bug::IncarnationIgnored, Budget { timeouts: 1, crashes: 1, ..HANDOVER });
}

#[test]
fn broken_rules_of_leases_are_caught() {
    caught(Bug::LeaseFromReply, TAKEOVER);
    caught(Bug::TakeoverInLease, TAKEOVER);
    caught(Bug::NoDriftBound, Budget { drifts: 1, ..TAKEOVER });
    caught(Bug::AnyRenewalExpires, LEASES);
    caught(Bug::ArmedWhileOut, TAKEOVER);
    caught(Bug::LapsesIgnored, TAKEOVER);
    caught(Bug::LeaseLookedAtOnArrival, TAKEOVER);
}

#[test]
fn broken_rules_of_a_takeover_are_caught() {
    caught(Bug::TakesWhileTakingOver, TAKEOVER);
    caught(Bug::TailMixed, Budget { writes: 2, deltas: 2, ..TAKEOVER });
    caught(Bug::TailCut, TAKEOVER);
    caught(Bug::FlushNotHeld, TAKEOVER);
    caught(Bug::OldEpochAccepted, Budget { crashes: 1, ..TAKEOVER });
}
