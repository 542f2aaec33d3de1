//! How often ownerships began and ended by this node's doing, and what handovers cost; for whoever watches over it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The counters of a node.
#[derive(Debug, Default)]
pub struct Changes {
    handed_over: AtomicU64,
    handovers_failed: AtomicU64,
    held_ns: AtomicU64,
    taken_over: AtomicU64,
    takeovers_failed: AtomicU64,
}

/// What was counted since the node was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeFigures {
    /// Handovers from this node that were carried out; one of a group counts once.
    pub handed_over: u64,
    /// Those that came to nothing: the volume stayed.
    pub handovers_failed: u64,
    /// For how long writers were held by those that were carried out, together.
    pub held: Duration,
    /// Takeovers by this node that were carried out.
    pub taken_over: u64,
    /// Those that came to nothing.
    pub takeovers_failed: u64,
}

impl Changes {
    /// A handover has ended: writers were held for so long, or it came to nothing.
    pub fn handed_over(&self, held: Option<Duration>) {
        match held {
            Some(held) => {
                self.handed_over.fetch_add(1, Ordering::Relaxed);
                self.held_ns.fetch_add(u64::try_from(held.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
            None => drop(self.handovers_failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A takeover by this node has ended.
    pub fn taken_over(&self, succeeded: bool) {
        let counter = if succeeded { &self.taken_over } else { &self.takeovers_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    #[must_use]
    pub fn figures(&self) -> ChangeFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ChangeFigures {
            handed_over: load(&self.handed_over),
            handovers_failed: load(&self.handovers_failed),
            held: Duration::from_nanos(load(&self.held_ns)),
            taken_over: load(&self.taken_over),
            takeovers_failed: load(&self.takeovers_failed),
        }
    }
}
