//! Which replica is to have the volume, and how long another one is waited for that might be better.
//!
//! All are asked at once. One that lacks nothing is gone on with as soon as it has answered; one that will do when no better one has answered for
//! [`GRACE`]. Who says nothing is waited for only where there is nobody else.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::{Error, Lsn, NodeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::peer::message::ReplicaPosition;

/// How long a better one is waited for: a far node's round trip, and a sync there.
const GRACE: Duration = Duration::from_millis(500);

/// How good a replica is as the next owner; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    fails_class: bool,
    /// What it was told of nothing it lacks nothing of: that makes it no better than one that has almost everything.
    has_nothing: bool,
    lacks_some: bool,
    rtt: Duration,
}

impl Rank {
    pub(super) fn new(meets_class: bool, joins: bool, position: &ReplicaPosition, rtt: Duration) -> Rank {
        let has_nothing = joins || position.watermark == Lsn::ZERO;
        Rank { fails_class: !meets_class, has_nothing, lacks_some: position.stale_blocks > 0, rtt }
    }

    /// Whether it is not worth waiting for another one, or not for long.
    fn will_do(self) -> bool {
        !self.fails_class && !self.has_nothing
    }
}

/// The replicas that are asked where they are.
pub(super) struct Heirs<F> {
    asked: FuturesUnordered<F>,
    found: BTreeSet<(Rank, NodeId)>,
    /// Why others have not said where they are.
    silent: Vec<(NodeId, Error)>,
    has_an_answer: bool,
    /// Until when a better one is waited for, once there is one that will do.
    grace: Option<Instant>,
}

impl<F: Future<Output = (NodeId, Result<Rank, Error>)>> Heirs<F> {
    pub(super) fn new(asked: impl IntoIterator<Item = F>) -> Heirs<F> {
        let asked = asked.into_iter().collect();
        Heirs { asked, found: BTreeSet::new(), silent: Vec::new(), has_an_answer: false, grace: None }
    }

    /// Waits for the best that it is worth waiting for, or until all have answered.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn hear(&mut self) {
        loop {
            let best = self.found.first().map(|(rank, _)| *rank).filter(|rank| rank.will_do());
            if best.is_some_and(|rank| !rank.lacks_some) {
                return;
            }
            let grace = best.map(|_| *self.grace.get_or_insert_with(|| Instant::now() + GRACE));
            let (node, answer) = tokio::select! {
                biased;
                answer = self.asked.next() => match answer {
                    Some(answer) => answer,
                    None => return,
                },
                () = tokio::time::sleep_until(grace.unwrap_or_else(Instant::now)), if grace.is_some() => return,
            };
            self.has_an_answer |= answer.is_ok();
            match answer {
                Ok(rank) => drop(self.found.insert((rank, node))),
                Err(error) => self.silent.push((node, error)),
            }
        }
    }

    /// The next one, the best first; `None` when all were tried that have said where they are.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> Option<NodeId> {
        self.hear().await;
        self.found.pop_first().map(|(_, node)| node)
    }

    /// Why some have not said where they are.
    pub(super) fn silent(&self) -> &[(NodeId, Error)] {
        &self.silent
    }

    /// Whether any has.
    pub(super) fn has_an_answer(&self) -> bool {
        self.has_an_answer
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, ErrorKind};

    use super::*;

    const SILENT: Duration = Duration::from_secs(2);

    fn position(watermark: u64, stale_blocks: u64) -> ReplicaPosition {
        let watermark = Lsn::new(Epoch(1), watermark);
        ReplicaPosition { known: watermark, watermark, stale_blocks, ..ReplicaPosition::default() }
    }

    fn rank(meets_class: bool, joins: bool, position: ReplicaPosition, ms: u64) -> Rank {
        Rank::new(meets_class, joins, &position, Duration::from_millis(ms))
    }

    /// One that had just been added, and had been told of nothing, came before all that lacked a block: the volume went where nothing of it was.
    #[test]
    fn a_replica_that_has_almost_everything_comes_before_one_that_has_nothing() {
        let empty = ReplicaPosition::default();
        let ranks = [
            rank(true, false, position(9, 0), 20),
            rank(true, false, position(9, 0), 30),
            rank(true, false, position(8, 3), 1),
            rank(true, false, empty, 1),
            rank(true, true, position(9, 0), 2),
            rank(false, false, position(9, 0), 1),
        ];
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    /// In which order, and when, replicas are tried that answer after so many milliseconds, or not at all.
    async fn tried(replicas: Vec<Option<(u64, Rank)>>) -> (Vec<(u64, u64)>, usize) {
        let begun = Instant::now();
        let mut heirs = Heirs::new((2..).zip(replicas).map(|(node, replica)| async move {
            let node = NodeId(node);
            let Some((after_ms, rank)) = replica else {
                tokio::time::sleep(SILENT).await;
                return (node, Err(Error::new(ErrorKind::Unavailable, "no answer")));
            };
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            (node, Ok(rank))
        }));
        let mut tried = Vec::new();
        while let Some(node) = heirs.next().await {
            tried.push((node.0, begun.elapsed().as_millis() as u64));
        }
        (tried, heirs.silent().len())
    }

    /// With one replica that did not answer, writes stood still for two seconds though another one had everything and had said so at once.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_silent_replica_while_another_one_will_do() {
        let whole = |ms| rank(true, false, position(9, 0), ms);
        let lacks = |ms| rank(true, false, position(8, 3), ms);
        let (order, silent) = tried(vec![None, Some((20, whole(20)))]).await;
        assert_eq!((order, silent), (vec![(3, 20)], 1), "if it can have the volume, that is all");
        let (order, _) = tried(vec![Some((20, lacks(20))), None, Some((200, whole(200)))]).await;
        assert_eq!(order, [(4, 200), (2, 520)], "a better one is waited for, a little");
        let (order, _) = tried(vec![Some((20, lacks(20))), None]).await;
        assert_eq!(order, [(2, 520)]);
        let fails_class = rank(false, false, position(9, 0), 20);
        let (order, silent) = tried(vec![Some((20, fails_class)), None]).await;
        assert_eq!((order, silent), (vec![(2, 2000)], 1), "with the other one the class might be met");
    }
}
