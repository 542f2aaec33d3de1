//! Filling in what a new owner lacks: what guests are about to read, what was hot at the last owner, then everything else in block order.
//!
//! One task per ownership. What is on its way is bounded by what fills the link from the holder that is asked first, so that little of it
//! is in anybody's queue; what is fetched ahead goes before the rest, of which no more is asked for while any of it is on its way. Which versions are
//! lacking is looked up when they are asked for: what a guest has overwritten by then is never asked for.
//!
//! What a full store has no room for has crossed the network for nothing. So nothing more is asked for then but one part now and then, until that is
//! taken.

use std::time::Duration;

use client_lib::{BLOCK_SIZE, BlockIndex, Error, ErrorKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{PULL_BLOCKS_MAX, Puller, Why, split, wanted};
use crate::propagation::heat::EXTENT_BLOCKS;
use crate::propagation::manifest::BlockRun;
use crate::serve::volume::store_failure;
use crate::volume::Moment;

/// Runs of missing blocks looked up at a time.
const MISSING_RUNS_MAX: u32 = 256;

/// Pause before asking again after no holder had what is missing.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// First and longest pause after the store had no room for what came.
const FULL_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Calls under way at once: with a link's filling in as many parts, one that ends leaves the link busy.
const CALLS_MAX: u64 = 8;

/// The least and most bytes under way, over whatever link. Less would never fill a link whose rate is not known yet: what is measured is
/// what is asked for. Guests do not wait for it, since it has a connection that yields to theirs.
const UNDER_WAY: (f64, f64) = (8_388_608.0, 33_554_432.0);

/// Of a link that takes longer for the least of that, as much as it takes in this time.
const UNDER_WAY_FOR: f64 = 2.0;

/// Queue that is allowed for beside the round trip: timers are not exact.
const SLACK: Duration = Duration::from_millis(50);

/// Fewest blocks of a call.
const PART_BLOCKS_MIN: u32 = 32;

/// The bytes that keep a link of so many bytes per second and this round trip busy while calls end and others begin.
#[must_use]
pub(super) fn filling(rate: f64, rtt: Duration) -> u64 {
    let least = UNDER_WAY.0.min(UNDER_WAY_FOR * rate);
    (2.0 * rate * (rtt + SLACK).as_secs_f64()).max(least).min(UNDER_WAY.1) as u64
}

/// What is still to be looked up, in the order in which it is wanted.
#[derive(Debug, Default)]
struct Plan {
    /// Parts of a look-up that are still to be asked for, the next one last.
    parts: Vec<Vec<BlockRun>>,
    /// Where the next look-up begins.
    after: BlockIndex,
    /// Nothing was found on the way from the first block.
    is_clean: bool,
}

/// Whether the store has room for what comes. Pure.
#[derive(Debug, Default)]
struct Room {
    /// It had none for some of what was on its way.
    is_refused: bool,
    /// The pause that there was for that, until something is taken again.
    pause: Option<Duration>,
}

impl Room {
    /// Whether another part may be asked for beside `calls` that are under way.
    fn admits(&self, calls: usize) -> bool {
        !self.is_refused && (self.pause.is_none() || calls == 0)
    }

    /// A part came, and was taken or not.
    fn came(&mut self, refused: Option<ErrorKind>) {
        match refused {
            Some(ErrorKind::OutOfSpace) => self.is_refused = true,
            // What came beside one that was refused says nothing.
            None if !self.is_refused => self.pause = None,
            _ => {}
        }
    }

    /// Nothing is under way any more: how long nothing is to be asked for, if the store had no room.
    fn rest(&mut self) -> Option<Duration> {
        if !std::mem::take(&mut self.is_refused) {
            return None;
        }
        self.pause = Some(self.pause.map_or(FULL_PAUSE.0, |pause| (pause * 2).min(FULL_PAUSE.1)));
        self.pause
    }
}

impl Puller {
    /// Fetches everything that is missing, for the volume first and then for its snapshots, and returns when nothing is. Runs
    /// until then: failures are retried.
    ///
    /// # Cancel safety
    /// Safe: blocks that arrived are kept.
    pub async fn backfill(&self) -> Result<(), Error> {
        let _filling = self.pulling.fills();
        let mut moment = Moment::Now;
        loop {
            self.fill(moment).await?;
            let snapshots = self.shard.snapshots(self.volume).await.map_err(store_failure)?;
            match snapshots.iter().find(|snapshot| snapshot.stale_blocks > 0) {
                Some(snapshot) => moment = Moment::Snapshot(snapshot.snapshot),
                None => return Ok(()),
            }
        }
    }

    /// Fetches everything that `moment` lacks.
    async fn fill(&self, moment: Moment) -> Result<(), Error> {
        let mut plan = Plan { is_clean: true, ..Plan::default() };
        let mut calls = FuturesUnordered::new();
        // Blocks under way: those of the background, and those ahead of guests. These go first, so they are counted by themselves.
        let (mut under_way, mut ahead_under_way) = (0, 0);
        let (mut failed, mut room) = (None, Room::default());
        loop {
            let most = self.filling_blocks();
            while ahead_under_way < most && room.admits(calls.len()) {
                let (moment, part, why) = match self.pulling.take_ahead(self.part_blocks(most)) {
                    Some(run) => (Moment::Now, vec![run], Why::Near),
                    None if ahead_under_way > 0 || under_way >= most => break,
                    None => match self.next_part(moment, &mut plan, most).await? {
                        Some((part, why)) => (moment, part, why),
                        None => break,
                    },
                };
                let blocks: u64 = part.iter().map(|run| u64::from(run.count)).sum();
                *(if why == Why::Near { &mut ahead_under_way } else { &mut under_way }) += blocks;
                calls.push(async move { (blocks, why, self.pull_part(moment, part, why, &[]).await) });
            }
            if calls.is_empty() {
                if let Some(error) = failed.take() {
                    tracing::warn!(volume = %self.volume, %error, "filling in stale blocks goes on later");
                    tokio::time::sleep(room.rest().unwrap_or(RETRY_PAUSE)).await;
                } else if plan.is_clean {
                    return Ok(());
                }
                // One pass is through; another looks for what failed or became stale meanwhile.
                plan = Plan { is_clean: true, ..Plan::default() };
                continue;
            }
            tokio::select! {
                biased;
                Some((blocks, why, outcome)) = calls.next() => {
                    *(if why == Why::Near { &mut ahead_under_way } else { &mut under_way }) -= blocks;
                    room.came(outcome.as_ref().err().map(Error::kind));
                    failed = outcome.err().or(failed);
                }
                () = self.pulling.news.notified() => {}
            }
        }
    }

    /// Blocks that fill the link from the holder that is asked first.
    pub(super) fn filling_blocks(&self) -> u64 {
        let first = self.order(&[]).first().copied();
        let rtt = first.and_then(|node| self.peers.transport().rtt(node)).unwrap_or_default();
        let rate = first.map_or(f64::INFINITY, |node| self.peers.rate_from(node));
        filling(rate, rtt) / u64::from(BLOCK_SIZE)
    }

    /// How long what is fetched ahead may take before it is late: everything that is under way comes with it.
    pub(super) fn patience_ahead(&self) -> Duration {
        let first = self.order(&[]).first().copied();
        first.map_or(Duration::ZERO, |node| self.peers.patience(node, self.filling_blocks() as usize))
    }

    fn part_blocks(&self, most: u64) -> u32 {
        ((most / CALLS_MAX) as u32).clamp(PART_BLOCKS_MIN, PULL_BLOCKS_MAX)
    }

    /// The next blocks of the background: hot ones of the volume, or those that come next; `None` at the end of a pass.
    async fn next_part(
        &self,
        moment: Moment,
        plan: &mut Plan,
        most: u64,
    ) -> Result<Option<(Vec<BlockRun>, Why)>, Error> {
        if moment == Moment::Now {
            let part = self.hot_part(self.part_blocks(most)).await?;
            if !part.is_empty() {
                plan.is_clean = false;
                return Ok(Some((part, Why::Hot)));
            }
        }
        if plan.parts.is_empty() {
            let missing = self.shard.missing(self.volume, wanted(moment), plan.after, MISSING_RUNS_MAX);
            let runs = missing.await.map_err(store_failure)?;
            if let Some(last) = runs.last() {
                // Behind the last block there can be, it begins anew: what is there by then is not missing.
                plan.after = last.end().unwrap_or(BlockIndex(0));
            }
            plan.is_clean &= runs.is_empty();
            plan.parts = split(&runs, self.part_blocks(most));
            plan.parts.reverse();
        }
        Ok(plan.parts.pop().map(|part| (part, Why::Rest)))
    }

    /// Stale blocks of the hottest extents that are left.
    async fn hot_part(&self, blocks: u32) -> Result<Vec<BlockRun>, Error> {
        let mut part = Vec::new();
        for extent in self.pulling.take_hot((blocks / EXTENT_BLOCKS).max(1)) {
            let Some(first) = extent.checked_mul(EXTENT_BLOCKS) else { continue };
            let end = first.saturating_add(EXTENT_BLOCKS);
            let missing = self.shard.missing(self.volume, wanted(Moment::Now), BlockIndex(first), EXTENT_BLOCKS);
            let runs = missing.await.map_err(store_failure)?;
            let inside = runs.into_iter().filter(|run| run.start.0 < end);
            part.extend(inside.map(|run| BlockRun { start: run.start, count: run.count.min(end - run.start.0) }));
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_fills_the_link_and_is_bounded() {
        let ms = Duration::from_millis;
        assert_eq!(filling(5e6, ms(60)), 8 << 20);
        assert_eq!(filling(1e6, ms(60)), 2_000_000, "for two seconds");
        assert_eq!(filling(50e6, ms(150)), 20_000_000);
        assert_eq!(filling(f64::INFINITY, ms(150)), 32 << 20);
        assert_eq!(filling(1e9, ms(0)), 32 << 20);
    }

    /// A new owner whose store was full fetched all that it lacked again and again, five times a second if there was little, and had room for none of it.
    #[test]
    fn a_full_store_is_asked_for_room_one_part_at_a_time_and_more_and_more_seldom() {
        let (mut room, s) = (Room::default(), Duration::from_secs);
        assert!(room.admits(7) && room.rest().is_none());
        for pause in [10, 20, 40, 60, 60] {
            room.came(Some(ErrorKind::OutOfSpace));
            // Others were under way, too.
            room.came(Some(ErrorKind::OutOfSpace));
            room.came(None);
            assert!(!room.admits(0), "it is full");
            assert_eq!(room.rest(), Some(s(pause)));
            assert!(room.admits(0) && !room.admits(1), "one part is to show whether it still is");
        }
        room.came(Some(ErrorKind::Unavailable));
        assert!(!room.admits(1) && room.rest().is_none(), "nobody knows");
        room.came(None);
        assert!(room.admits(7), "it has room again");
        room.came(Some(ErrorKind::OutOfSpace));
        assert_eq!(room.rest(), Some(FULL_PAUSE.0), "from the beginning");
    }
}
