//! Raft's timings from the distance between the voters. Pure.
//!
//! openraft gives replication and heartbeats the heartbeat interval as their deadline, votes the lower election
//! timeout, and the leader's lease the upper one. An interval below the round trip therefore never succeeds: the
//! heartbeat must be at least two round trips and a sync apart. Raft wants the broadcast time an order of
//! magnitude below the election timeout (Ongaro and Ousterhout 2014, §5.6).

use std::time::Duration;

/// Shortest heartbeat: well above a sync on a busy disk and the scheduling of a busy machine.
const HEARTBEAT_MIN: Duration = Duration::from_millis(250);
/// Allowance for syncing an entry before it is answered.
const SYNC_ALLOWANCE: Duration = Duration::from_millis(50);
/// Round trips within a heartbeat: one that is late by its own length still counts.
const ROUND_TRIPS: u32 = 2;
/// Election timeouts, in heartbeats.
const ELECTION_HEARTBEATS: (u32, u32) = (4, 8);
/// A lease, in the longest election timeouts. An owner renews after a quarter of it ([`LEASE_RENEWALS`]); a leader that dies
/// just then is missed after one, elections that split take another, and a third is left: no owner stops for that.
const LEASE_ELECTIONS: u32 = 4;
/// Renewals within a lease.
pub const LEASE_RENEWALS: u32 = 4;

/// Raft's timings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Between heartbeats; also the deadline of one.
    pub heartbeat: Duration,
    /// Shortest time without a leader before a voter stands.
    pub election_min: Duration,
    /// Longest; also the leader's lease.
    pub election_max: Duration,
    /// How long a node may act as an owner after it asked for a lease (docs/ownership.md).
    pub lease: Duration,
}

impl Timings {
    /// Timings for voters whose farthest pair is `rtt` apart.
    #[must_use]
    pub fn for_rtt(rtt: Duration) -> Timings {
        let heartbeat = (rtt * ROUND_TRIPS + SYNC_ALLOWANCE).max(HEARTBEAT_MIN);
        Timings {
            heartbeat,
            election_min: heartbeat * ELECTION_HEARTBEATS.0,
            election_max: heartbeat * ELECTION_HEARTBEATS.1,
            lease: heartbeat * ELECTION_HEARTBEATS.1 * LEASE_ELECTIONS,
        }
    }

    /// Whether `other` is so different that it is worth a restart of the Raft core: by more than a half.
    #[must_use]
    pub fn differs_clearly_from(&self, other: &Timings) -> bool {
        let (short, long) = (self.heartbeat.min(other.heartbeat), self.heartbeat.max(other.heartbeat));
        long > short * 3 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_leave_room_for_two_round_trips_and_never_go_below_the_floor() {
        for (rtt_ms, heartbeat_ms) in [(0, 250), (60, 250), (100, 250), (150, 350), (300, 650)] {
            let timings = Timings::for_rtt(Duration::from_millis(rtt_ms));
            assert_eq!(timings.heartbeat, Duration::from_millis(heartbeat_ms), "at {rtt_ms} ms");
            assert_eq!(timings.election_min, timings.heartbeat * 4);
            assert_eq!(timings.election_max, timings.heartbeat * 8);
        }
    }

    #[test]
    fn small_changes_of_distance_are_not_worth_a_restart() {
        let at = |ms| Timings::for_rtt(Duration::from_millis(ms));
        assert!(!at(150).differs_clearly_from(&at(180)));
        assert!(at(0).differs_clearly_from(&at(300)));
        assert!(at(300).differs_clearly_from(&at(0)));
    }
}
