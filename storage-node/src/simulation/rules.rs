//! Rules that are broken on purpose, to see that the checks notice: below the seams by the simulation, above them by the product's
//! code, which asks [`holds`] in test builds where it keeps to the rule.

use std::cell::Cell;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Shards look at the lease before they answer as owners.
    LeaseIsLookedAt,
    /// Whoever takes over waits until the lease is out.
    LeaseIsWaitedOut,
    /// A sync of the disk is done when it says so.
    DiskSyncs,
    /// A sync of the metadata store is done when it says so.
    MetadataSyncs,
    /// What was written is there when the process is killed.
    WritesOutliveProcesses,
    /// Clocks drift apart by no more than leases allow for.
    DriftIsBounded,
    /// A flush waits until its class is met.
    FlushesWait,
    /// A takeover hears of those who may hold what was flushed.
    AllAreHeard,
    /// What is read is compared with its checksum.
    ChecksumsAreCompared,
    /// What a repair brings is what was damaged.
    RepairsFit,
    /// A rollback puts back every block that differs.
    RollbacksAreWhole,
    /// A smaller size drops what lies beyond it.
    ShrinksDrop,
    /// A segment is used again only when nothing in it is needed.
    SegmentsAreEmptied,
    /// A part of an initial sync tells of what has changed before it.
    PartsTellChanges,
    /// Who gives a volume away that it cannot write tells of all that it acked.
    RescuesTellAll,
    /// Who is refused by an owner that starts or stops asks again.
    OwnersAreAwaited,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

/// From now on this rule is broken on this thread, or none.
pub(super) fn break_rule(rule: Option<Rule>) {
    BROKEN.set(rule);
}

/// Whether the rule holds, as it does in every test but those that break it.
pub(crate) fn holds(rule: Rule) -> bool {
    BROKEN.get() != Some(rule)
}
