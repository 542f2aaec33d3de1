//! In which order blocks are sent ahead to a replica, and which are not: one trait, several policies. Pure.
//!
//! A block that is sent and then written again before the replica's delta is applied was sent for nothing; one that is not there when the
//! replica becomes the owner and is read costs a guest a round trip. An order weighs the two. What waits is sent with the
//! delta at the latest: an order never decides whether, only when.

use std::fmt;

use client_lib::Lsn;
use client_lib::policy::Order;

use super::heat::Touched;

/// A block that a replica lacks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub block: u32,
    /// The version that would be sent.
    pub lsn: Lsn,
    /// How often it is read and written, lately; the write that made this version counts.
    pub touched: Touched,
    /// What sending it costs, in bytes.
    pub bytes: u32,
}

/// Decides what is sent first.
///
/// Implementers: the same candidate always gets the same answer; nothing is remembered.
pub trait SendOrder: Send + Sync + fmt::Debug {
    /// How early a block is sent: higher scores first, and among equals lower blocks. `None` waits for the delta.
    fn score(&self, candidate: &Candidate) -> Option<f64>;
}

/// Oldest versions first.
#[derive(Clone, Copy, Debug)]
pub struct LogOrder;

/// What is written least first.
#[derive(Clone, Copy, Debug)]
pub struct LeastVolatile;

/// Oldest versions first, but what is written more often than this waits.
#[derive(Clone, Copy, Debug)]
pub struct WriteCount {
    /// So many writes, lately, are not too many.
    pub writes_max: f64,
}

/// What is most likely read before it is written again first, for its bytes; what hardly ever is waits.
#[derive(Clone, Copy, Debug)]
pub struct Benefit;

/// Writes, lately, after which the order of that name lets a block wait.
pub const WRITES_MAX: f64 = 2.0;

/// Below this probability of being read before it is written again, a block waits.
const USEFUL_MIN: f64 = 0.1;

fn age(lsn: Lsn) -> f64 {
    // Exact up to 2^53; beyond that neighbours may count as equals.
    -(lsn.epoch.0 as f64 * 2f64.powi(32) + lsn.sequence as f64)
}

impl SendOrder for LogOrder {
    fn score(&self, candidate: &Candidate) -> Option<f64> {
        Some(age(candidate.lsn))
    }
}

impl SendOrder for LeastVolatile {
    fn score(&self, candidate: &Candidate) -> Option<f64> {
        Some(-candidate.touched.writes)
    }
}

impl SendOrder for WriteCount {
    fn score(&self, candidate: &Candidate) -> Option<f64> {
        (candidate.touched.writes <= self.writes_max).then(|| age(candidate.lsn))
    }
}

impl SendOrder for Benefit {
    fn score(&self, candidate: &Candidate) -> Option<f64> {
        let Touched { reads, writes } = candidate.touched;
        // Half a read and half a write are assumed besides what was seen; the write that made this version is over.
        let useful = (reads + 0.5) / (reads + (writes - 1.0).max(0.0) + 1.0);
        (useful >= USEFUL_MIN).then(|| useful * (1.0 + reads) / f64::from(candidate.bytes.max(1)))
    }
}

/// The order that a volume's policy names.
#[must_use]
pub fn order_of(order: Order) -> &'static dyn SendOrder {
    match order {
        Order::Log => &LogOrder,
        Order::LeastVolatile => &LeastVolatile,
        Order::WriteCount => &WriteCount { writes_max: WRITES_MAX },
        Order::Benefit => &Benefit,
    }
}

/// Those that do not wait, in the order in which they are sent.
#[must_use]
pub fn arranged(order: &dyn SendOrder, candidates: impl IntoIterator<Item = Candidate>) -> Vec<Candidate> {
    let scored = candidates.into_iter().filter_map(|candidate| Some((order.score(&candidate)?, candidate)));
    let mut scored: Vec<(f64, Candidate)> = scored.collect();
    scored.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.block.cmp(&second.block)));
    scored.into_iter().map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests;
