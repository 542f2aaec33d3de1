//! How much of what is sent to one node is in memory at a time, whichever volumes it is of.
//!
//! A push takes its share before it reads its blocks, and gives it back when its call has ended, however it did. Those who wait have read nothing,
//! and no deadline of theirs has begun; they go on in the order in which they came. What somebody waits for has a budget of its own, as large,
//! so that it stands behind nothing that nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use client_lib::watch;

/// Most bytes that are on their way to a node.
pub const BUDGET_MAX: u64 = 64 << 20;

/// As many may be on their way over however slow a link: those of one delta.
pub const BUDGET_MIN: u64 = 8 << 20;

/// What a link takes in so long may be on its way: well within the time that a call may take.
const BUDGET_TIME: Duration = Duration::from_secs(4);

/// Bytes that may be on their way over a link of which so many per second were measured.
fn budget(rate: Option<f64>) -> u64 {
    rate.map_or(BUDGET_MAX, |rate| ((rate * BUDGET_TIME.as_secs_f64()) as u64).clamp(BUDGET_MIN, BUDGET_MAX))
}

/// What is on its way to one node. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    turn: Arc<tokio::sync::Mutex<()>>,
    taken: Arc<watch::Sender<u64>>,
}

/// Bytes on their way, until this is dropped.
#[derive(Debug)]
pub struct Share {
    taken: Arc<watch::Sender<u64>>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.send_modify(|taken| *taken -= self.bytes);
    }
}

impl Budget {
    /// Waits until there is room for so many bytes over a link of this rate, and takes them. More than the whole budget go alone.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn share(&self, bytes: u64, rate: impl Fn() -> Option<f64>) -> Share {
        let _turn = self.turn.lock().await;
        // The sender is here as long as this is.
        let _ = self.taken.subscribe().wait_for(|taken| *taken == 0 || *taken + bytes <= budget(rate())).await;
        // Nobody else takes any in between: this is whose turn it is.
        self.taken.send_modify(|taken| *taken += bytes);
        Share { taken: self.taken.clone(), bytes }
    }

    /// Bytes that are on their way.
    #[must_use]
    pub fn taken(&self) -> u64 {
        *self.taken.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    const CALL: u64 = 1 << 20;

    /// A peer that came back after some minutes was sent eight mebibytes of every volume at once: with a thousand volumes their owner was out of
    /// memory, its guests with it, and began again when it was restarted. Calls that stood behind all that ended by their deadlines.
    #[tokio::test(start_paused = true)]
    async fn what_is_read_for_a_node_is_bounded_however_many_volumes_it_is_of() {
        let budget = Budget::default();
        let (answers, answered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
        let push = |_| {
            let (budget, answers, answered) = (budget.clone(), answers.clone(), answered.clone());
            tokio::spawn(async move {
                let call = |_| async {
                    let _share = budget.share(CALL, || None).await;
                    answers.acquire().await.expect("is open").forget();
                    answered.fetch_add(1, Ordering::Relaxed);
                };
                futures_util::future::join_all((0..8).map(call)).await;
            })
        };
        let pushes: Vec<_> = (0..100).map(push).collect();
        let settle = || tokio::time::sleep(Duration::from_secs(1));
        settle().await;
        assert_eq!(budget.taken(), BUDGET_MAX, "the others have read nothing");
        answers.add_permits(10);
        settle().await;
        assert_eq!((answered.load(Ordering::Relaxed), budget.taken()), (10, BUDGET_MAX), "as many go on");
        // Those that are given up give back what they had, and wait for nothing.
        let (gone, others) = pushes.split_at(50);
        gone.iter().for_each(|push| push.abort());
        settle().await;
        assert_eq!(budget.taken(), BUDGET_MAX);
        answers.add_permits(100 * 8);
        settle().await;
        assert!(others.iter().all(|push| push.is_finished()), "all go on");
        assert_eq!(budget.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_link_has_no_more_on_its_way_than_it_takes_in_time() {
        assert_eq!((budget(None), budget(Some(1e9)), budget(Some(1e3))), (BUDGET_MAX, BUDGET_MAX, BUDGET_MIN));
        assert_eq!(budget(Some(5e6)), 20_000_000);
        let budget = Budget::default();
        let first = budget.share(BUDGET_MIN - CALL, || Some(1e3)).await;
        let second = budget.share(CALL, || Some(1e3)).await;
        let third = budget.share(CALL, || Some(1e3));
        assert!(tokio::time::timeout(Duration::from_secs(60), third).await.is_err(), "there is no room");
        drop((first, second));
        drop(budget.share(BUDGET_MAX + 1, || Some(1e3)).await);
        assert_eq!(budget.taken(), 0, "more than there may be goes alone");
    }
}
