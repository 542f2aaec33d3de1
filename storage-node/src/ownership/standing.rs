//! What the takeovers of a volume mean for this node's copy of it, and for the sessions that use it here.
//!
//! A node that holds what a takeover cut off has *left* the volume: its copy, the [`Tail`] included, stays as it is until an
//! operator discards it. A session that saw the volume in an epoch that was taken over from may have seen what is gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use client_lib::{Epoch, Error, ErrorKind, Lsn};
use consensus::{Fork, Volume};
use serde::{Deserialize, Serialize};

/// What a node that has left a volume holds of it and nobody else may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where the volume was cut off.
    pub from: Lsn,
    /// The newest write.
    pub to: Lsn,
    /// How many distinct blocks may differ from what they were there.
    pub blocks: u64,
}

impl Tail {
    /// The refusal of what only a node that follows the volume can do.
    #[must_use]
    pub fn refusal(&self, node: &str) -> Error {
        Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "node {node} has left the volume: it keeps the writes after {} up to {}, which a takeover cut off; \
                 `helio volume rejoin` with --discard-tail drops them and lets it follow again",
                self.from, self.to
            ),
        )
    }
}

/// How this node stands to a volume.
#[derive(Debug, Default)]
pub struct Standing {
    forked: AtomicU64,
    /// The forks that were heard of, oldest first.
    forks: Mutex<Vec<Fork>>,
    tail: Mutex<Option<Tail>>,
}

impl Standing {
    /// Metadata tells of these forks, of which `takeover` is the last that was a takeover. Called before anything of their epochs is acted upon.
    pub fn heard(&self, meta: &Volume, takeover: Option<Fork>) {
        if let Some(fork) = meta.forks.last() {
            let mut forks = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
            if forks.last().is_none_or(|known| known.epoch <= fork.epoch) {
                forks.clone_from(&meta.forks);
            }
        }
        if let Some(fork) = takeover {
            self.forked.fetch_max(fork.epoch.0, Ordering::AcqRel);
        }
    }

    /// The newest epoch that was taken over from; 0 when there is none.
    #[must_use]
    pub fn forked(&self) -> Epoch {
        Epoch(self.forked.load(Ordering::Acquire))
    }

    /// The takeovers and rescues that this node has heard of, oldest first.
    #[must_use]
    pub fn forks(&self) -> Vec<Fork> {
        self.forks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This node's tail, if it has left the volume.
    #[must_use]
    pub fn tail(&self) -> Option<Tail> {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node has left the volume with this tail, or follows it.
    pub fn set_tail(&self, tail: Option<Tail>) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_takeover_counts_however_often_it_is_heard_of() {
        let standing = Standing::default();
        standing.heard(&Volume::example(), None);
        assert_eq!(standing.forked(), Epoch(0));
        let fork = |epoch| Fork { epoch: Epoch(epoch), end: Lsn::ZERO };
        standing.heard(&Volume { forks: vec![fork(2), fork(5)], ..Volume::example() }, Some(fork(5)));
        standing.heard(&Volume { forks: vec![fork(2)], ..Volume::example() }, Some(fork(2)));
        assert_eq!(standing.forked(), Epoch(5));
        assert_eq!(standing.forks(), [fork(2), fork(5)], "what is old news changes nothing");
        // A rescue has lost nobody anything; clients send again what was not flushed.
        standing.heard(&Volume { forks: vec![fork(2), fork(5), fork(6)], ..Volume::example() }, Some(fork(5)));
        assert_eq!((standing.forked(), standing.forks().len()), (Epoch(5), 3));
    }
}
