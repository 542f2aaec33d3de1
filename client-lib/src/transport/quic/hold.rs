//! Holding bulk back for a moment: while a volume is handed over, nothing that can wait is in the queues on the path.
//!
//! A moment and not until told otherwise, so that bulk goes on whatever becomes of who asked for it. What is under way when it
//! begins leaves the queue within some 10 ms ([`super::yielding`]); from then on each connection has a datagram under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::path::Path;

/// No longer than this at a time, whatever is asked for.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// Until when the bulk of a transport is held back.
#[derive(Debug)]
pub(super) struct Hold {
    began: Instant,
    /// Nanoseconds since `began`.
    until: AtomicU64,
}

impl Default for Hold {
    fn default() -> Hold {
        Hold { began: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Hold {
    /// Holds bulk for so long from `now` on, instead of what was asked for before; nothing ends that.
    pub(super) fn hold(&self, now: Instant, duration: Duration) {
        let until = (now + duration.min(HOLD_MAX)).saturating_duration_since(self.began);
        self.until.store(until.as_nanos() as u64, Ordering::Relaxed);
    }

    fn is_on(&self, now: Instant) -> bool {
        u128::from(self.until.load(Ordering::Relaxed)) > now.saturating_duration_since(self.began).as_nanos()
    }
}

/// A connection: whether what it carries is held, and where it leads.
#[derive(Clone, Debug)]
pub(super) struct Carrier {
    hold: Arc<Hold>,
    is_bulk: Arc<AtomicBool>,
    path: Arc<OnceLock<Arc<Path>>>,
}

impl Carrier {
    pub(super) fn new(hold: Arc<Hold>, is_bulk: bool) -> Carrier {
        Carrier { hold, is_bulk: Arc::new(AtomicBool::new(is_bulk)), path: Arc::default() }
    }

    /// It is known who the other end is. The first call counts.
    pub(super) fn leads_along(&self, path: &Arc<Path>) {
        let _ = self.path.set(path.clone());
    }

    /// Where it leads, as soon as that is known.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.get().map(|path| &**path)
    }

    /// The other end has called for bulk: replies are that.
    pub(super) fn carries_bulk(&self) {
        self.is_bulk.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.is_bulk.load(Ordering::Relaxed) && self.hold.is_on(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_held_for_as_long_as_was_asked_for_and_nothing_else_ever() {
        let hold = Arc::new(Hold::default());
        let (bulk, replies) = (Carrier::new(hold.clone(), true), Carrier::new(hold.clone(), false));
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        assert!(!bulk.is_held(now), "nobody has asked for it");
        hold.hold(now, Duration::from_millis(100));
        assert!(bulk.is_held(at(99)) && !bulk.is_held(at(100)));
        assert!(!replies.is_held(at(50)));
        replies.clone().carries_bulk();
        assert!(replies.is_held(at(50)), "the controller and who serves the connection have the same one");
        hold.hold(at(50), Duration::ZERO);
        assert!(!bulk.is_held(at(50)), "it is over");
        hold.hold(now, Duration::from_secs(3600));
        assert!(bulk.is_held(at(1999)) && !bulk.is_held(at(2001)), "never for long");
    }
}
