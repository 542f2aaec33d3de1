//! Which sessions may write a volume they do not sit at: the rule of the travelling writer.
//!
//! A session that was opened at the owner, or wrote there, holds the right to write of that epoch, and keeps
//! it through handovers: its writes are passed on to the new owner. The first write by a session *at* the new owner
//! claims the volume; rights of older epochs end there (docs/decisions/0007). The registry also keeps a
//! session's attempts apart: after an unknown outcome the session raises its generation, and an attempt waits until those of
//! older ones have ended, which are refused once it was seen. Which writes were carried out is part of the volume ([`crate::volume::ledger`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use client_lib::Epoch;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::volume::ledger::Writer;

/// How many forwarding sessions a volume remembers; the one that has not written for longest is forgotten first, and none with a write under way
/// while there are others. A forgotten session starts over at whatever generation it shows next.
const SESSIONS_MAX: usize = 4096;

/// Why a forwarded write is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A session at the owner has claimed the volume in this epoch.
    Claimed(Epoch),
    /// A later attempt of the same session was seen.
    Outrun,
}

/// Held while an admitted write is carried out, so that a later attempt waits for it.
#[derive(Debug)]
pub struct Admission {
    _attempt: OwnedRwLockReadGuard<u64>,
}

/// The writers of one volume, at its owner.
#[derive(Debug, Default)]
pub struct Writers {
    claim: AtomicU64,
    sessions: Mutex<Sessions>,
}

/// The sessions that forward writes to here, by their numbers.
#[derive(Debug, Default)]
struct Sessions {
    known: BTreeMap<u64, Attempts>,
    /// Rises with every write: who has the lowest has not written for longest.
    writes: u64,
}

#[derive(Debug, Default)]
struct Attempts {
    /// The newest generation seen; whoever holds it has a write under way.
    newest: Arc<RwLock<u64>>,
    /// The last write.
    last: u64,
}

impl Sessions {
    fn of(&mut self, id: u64) -> Arc<RwLock<u64>> {
        if self.known.len() >= SESSIONS_MAX && !self.known.contains_key(&id) {
            let idle_first = |attempts: &Attempts| (Arc::strong_count(&attempts.newest) > 1, attempts.last);
            let idle = self.known.iter().min_by_key(|(_, attempts)| idle_first(attempts)).map(|(id, _)| *id);
            idle.and_then(|id| self.known.remove(&id));
        }
        self.writes += 1;
        let attempts = self.known.entry(id).or_default();
        attempts.last = self.writes;
        attempts.newest.clone()
    }
}

impl Writers {
    /// A session at the owner writes in `epoch`: rights of older epochs end.
    pub fn claim(&self, epoch: Epoch) {
        // Read first: the claim is set once per epoch and this is on the path of every write.
        if self.claim.load(Ordering::Relaxed) < epoch.0 {
            self.claim.fetch_max(epoch.0, Ordering::Relaxed);
        }
    }

    /// The epoch of the last claim; travels with a handover.
    #[must_use]
    pub fn claimed(&self) -> Epoch {
        Epoch(self.claim.load(Ordering::Relaxed))
    }

    /// Admits a forwarded write, after every earlier attempt of its session has ended.
    ///
    /// # Errors
    /// As [`Refusal`] says.
    ///
    /// # Cancel safety
    /// Safe: a dropped wait admits nothing.
    pub async fn admit(&self, writer: Writer) -> Result<Admission, Refusal> {
        self.require_right(writer.right)?;
        let attempt = self.session(writer.origin.session);
        loop {
            let current = attempt.clone().read_owned().await;
            match writer.generation.cmp(&current) {
                std::cmp::Ordering::Less => return Err(Refusal::Outrun),
                std::cmp::Ordering::Equal => return Ok(Admission { _attempt: current }),
                std::cmp::Ordering::Greater => {
                    drop(current);
                    let mut newest = attempt.write().await;
                    *newest = (*newest).max(writer.generation);
                }
            }
        }
    }

    /// Refuses a right of an epoch before the last claim: to be asked again after every wait of an admitted write.
    ///
    /// # Errors
    /// `Claimed`.
    pub fn require_right(&self, right: Epoch) -> Result<(), Refusal> {
        let claimed = self.claimed();
        if right < claimed { Err(Refusal::Claimed(claimed)) } else { Ok(()) }
    }

    fn session(&self, id: u64) -> Arc<RwLock<u64>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).of(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ledger::Origin;

    fn writer(generation: u64, right: u64) -> Writer {
        Writer { origin: Origin { session: 7, number: 0, answered: 0 }, generation, right: Epoch(right) }
    }

    #[tokio::test]
    async fn a_right_lasts_until_a_session_at_the_new_owner_writes() {
        let writers = Writers::default();
        writers.claim(Epoch(1));
        assert!(writers.admit(writer(0, 1)).await.is_ok(), "handed over, nobody wrote there yet");
        writers.claim(Epoch(2));
        assert_eq!(writers.admit(writer(0, 1)).await.expect_err("claimed"), Refusal::Claimed(Epoch(2)));
        assert!(writers.admit(writer(0, 2)).await.is_ok());
    }

    #[tokio::test]
    async fn a_late_first_attempt_is_refused_after_its_retry() {
        let writers = Writers::default();
        drop(writers.admit(writer(1, 1)).await.expect("the retry"));
        assert_eq!(writers.admit(writer(0, 1)).await.expect_err("late"), Refusal::Outrun);
    }

    /// The session with the lowest number was forgotten first, whoever that was: numbers say nothing of who came first. One that writes all the time,
    /// or has a write under way, would start over, and a late first attempt be carried out after its retry.
    #[tokio::test]
    async fn who_has_not_written_for_longest_is_forgotten_first_and_nobody_with_a_write_under_way() {
        let writers = Writers::default();
        let by = |session, generation| {
            let writer = writer(generation, 1);
            Writer { origin: Origin { session, ..writer.origin }, ..writer }
        };
        let under_way = writers.admit(by(0, 1)).await.expect("admitted");
        for session in (1..SESSIONS_MAX as u64).rev() {
            drop(writers.admit(by(session, 1)).await.expect("admitted"));
        }
        drop(writers.admit(by(2, 2)).await.expect("it goes on"));
        let news = u64::MAX - 9..u64::MAX;
        for session in news.clone() {
            drop(writers.admit(by(session, 1)).await.expect("admitted"));
        }
        for (session, generation) in news.map(|session| (session, 1)).chain([(0, 1), (1, 1), (2, 2)]) {
            let late = writers.admit(by(session, generation - 1)).await.map(drop);
            assert_eq!(late, Err(Refusal::Outrun), "session {session} is remembered");
        }
        assert!(writers.admit(by(SESSIONS_MAX as u64 - 1, 0)).await.is_ok(), "forgotten");
        drop(under_way);
    }

    #[tokio::test]
    async fn a_retry_waits_for_the_attempt_under_way() {
        let writers = Arc::new(Writers::default());
        let first = writers.admit(writer(0, 1)).await.expect("first");
        let retry = tokio::spawn({
            let writers = writers.clone();
            async move { writers.admit(writer(1, 1)).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(!retry.is_finished());
        drop(first);
        assert!(retry.await.expect("joins"));
    }
}
