//! What this node knows of its links to others: what it has sent over each, how fast each is, and what the other end understands.

pub mod choice;
pub mod meter;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client_lib::NodeId;
use tokio::time::Instant;

use self::meter::Meter;
use crate::propagation::freight::Freight;

/// After so long a node is asked again what it understands: it may run another program by now.
const ENCODINGS_FRESH: Duration = Duration::from_secs(60);

/// One direction between this node and another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// What this node has sent there, of all volumes, since it was started.
    pub freight: Freight,
    meter: Meter,
    /// Those that the other end understands, once it has told.
    pub(super) encodings: Option<u32>,
    /// When the other end was asked for them.
    pub(super) asked: Option<Duration>,
}

impl Link {
    /// Bytes of bulk data per second, if that was measured.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.meter.rate()
    }
}

/// The links of a node.
#[derive(Debug)]
pub struct Links {
    began: Instant,
    links: Mutex<BTreeMap<NodeId, Link>>,
}

impl Default for Links {
    fn default() -> Links {
        Links { began: Instant::now(), links: Mutex::default() }
    }
}

impl Links {
    /// Blocks were sent to `node`, or need not be.
    pub fn carried(&self, node: NodeId, freight: Freight) {
        self.with(node, |link| link.freight += freight);
    }

    /// What is known of the link to `node`.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Link {
        self.with(node, |link| *link)
    }

    /// A call with bulk data begins.
    pub(super) fn call_begins(&self, node: NodeId) {
        let now = self.began.elapsed();
        self.with(node, |link| link.meter.begin(now));
    }

    /// A call with so many bytes of bulk data has ended; with none if it failed.
    pub(super) fn call_ends(&self, node: NodeId, bytes: u64, rtt: Duration) {
        let now = self.began.elapsed();
        self.with(node, |link| link.meter.end(now, bytes, rtt));
    }

    /// What `node` understands, as far as is known, and whether it is to be asked now.
    pub(super) fn encodings(&self, node: NodeId) -> (u32, bool) {
        let now = self.began.elapsed();
        self.with(node, |link| {
            let is_due = link.asked.is_none_or(|asked| now >= asked + ENCODINGS_FRESH);
            if is_due {
                link.asked = Some(now);
            }
            (link.encodings.unwrap_or(0), is_due)
        })
    }

    /// `node` has told what it understands, or could not be asked.
    pub(super) fn told_encodings(&self, node: NodeId, encodings: Option<u32>) {
        let now = self.began.elapsed();
        self.with(node, |link| match encodings {
            Some(_) => (link.encodings, link.asked) = (encodings, Some(now)),
            None => link.asked = None,
        });
    }

    /// `node` may understand less than it has told.
    pub(super) fn forget_encodings(&self, node: NodeId) {
        self.with(node, |link| (link.encodings, link.asked) = (None, None));
    }

    fn with<T>(&self, node: NodeId, f: impl FnOnce(&mut Link) -> T) -> T {
        f(self.links.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default())
    }
}
