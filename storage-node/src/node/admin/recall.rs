//! The metadata for questions: as of now, or, while there is no leader, as this node knew it last. Who has lost a provider must be able to
//! look at what is left.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consensus::Timings;
use consensus::state::MetaState;
use tokio::time::Instant;

use super::NodeAdmin;
use crate::serve::http::stale::note_stale;

/// How long it is waited for a leader, in the longest election timeouts: the second election is over as well.
const ELECTIONS: u32 = 2;
/// And when it was waited in vain just now, in heartbeats, of which each has room for two round trips.
const HEARTBEATS: u32 = 2;
/// How long that is remembered.
const REMEMBERED: Duration = Duration::from_secs(15);

/// When it was last waited for a leader in vain.
#[derive(Debug, Default)]
pub(super) struct LastMiss(Mutex<Option<Instant>>);

impl LastMiss {
    fn patience(&self, timings: &Timings) -> Duration {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < REMEMBERED) {
            timings.heartbeat * HEARTBEATS
        } else {
            timings.election_max * ELECTIONS
        }
    }

    fn note(&self, missed: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = missed.then(Instant::now);
    }
}

impl NodeAdmin {
    /// For what changes nothing. The answer to the request says when it may be old.
    pub(in crate::node) async fn recall(&self) -> Arc<MetaState> {
        let read = self.meta.linearizable(self.last_miss.patience(&self.meta.timings())).await;
        self.last_miss.note(read.is_err());
        read.unwrap_or_else(|_| {
            note_stale();
            self.meta.state()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_waited_long_once_and_again_when_there_was_a_leader_or_some_time_passed() {
        for rtt_ms in [0, 300] {
            let rtt = Duration::from_millis(rtt_ms);
            let timings = Timings::for_rtt(rtt);
            let long = timings.election_max * 2;
            let last = LastMiss::default();
            assert_eq!(last.patience(&timings), long);
            last.note(true);
            // A follower asks the leader, and that a majority: shorter, it would not be noticed far away that there is one again.
            let short = last.patience(&timings);
            assert!(short > rtt * 2 && short < long, "{short:?}");
            last.note(false);
            assert_eq!(last.patience(&timings), long);
            last.note(true);
            tokio::time::advance(REMEMBERED).await;
            assert_eq!(last.patience(&timings), long);
        }
    }
}
