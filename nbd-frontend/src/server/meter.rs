//! How many connections a server has, and had: for whoever watches over it, who may hold on to this longer than the server lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

/// What a server counts of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFigures {
    /// Open now, handshakes included.
    pub open: u64,
    /// As many may be open.
    pub most: u64,
    /// Accepted since the start, or taken over from another process.
    pub accepted: u64,
    /// Closed at once since the start, because as many were open as may be.
    pub refused: u64,
}

/// The counters of a server. Clones count the same.
#[derive(Clone, Debug)]
pub struct ConnectionMeter {
    places: Arc<Semaphore>,
    most: usize,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl ConnectionMeter {
    /// Counters of a server whose connections take `places`, of which there are `most`.
    pub(super) fn new(places: Arc<Semaphore>, most: usize) -> ConnectionMeter {
        ConnectionMeter { places, most, counts: Arc::default() }
    }

    pub(super) fn accepted(&self) {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    #[must_use]
    pub fn figures(&self) -> ConnectionFigures {
        ConnectionFigures {
            open: self.most.saturating_sub(self.places.available_permits()) as u64,
            most: self.most as u64,
            accepted: self.counts.accepted.load(Ordering::Relaxed),
            refused: self.counts.refused.load(Ordering::Relaxed),
        }
    }
}
