//! The door through which a replica takes what its owner sends.
//!
//! It is open, or held shut while the volume changes hands: from the moment at which a hold is there, nothing is inside and
//! nothing gets in. So a replica can say what it has, and be sure that it has just that, until it lets go.

use std::sync::Arc;
use std::time::Duration;

use client_lib::watch;

#[derive(Debug, Default)]
struct State {
    inside: usize,
    holds: usize,
}

/// The door of one volume.
#[derive(Debug, Default)]
pub struct Intake {
    state: watch::Sender<State>,
}

/// Something of the owner's is being taken.
#[derive(Debug)]
pub struct Entered<'a>(&'a Intake);

/// Nothing is taken.
#[derive(Debug)]
pub struct Hold(Arc<Intake>);

impl Intake {
    /// Goes in once nobody holds the door shut; `None` when that is not so within `patience`.
    ///
    /// # Cancel safety
    /// Safe. Whoever is dropped inside has left; what it has asked the shard for is in the shard's queue, ahead of
    /// everything that a hold is followed by.
    pub async fn enter(&self, patience: Duration) -> Option<Entered<'_>> {
        let entered = async {
            let mut watch = self.state.subscribe();
            while !self.try_enter() {
                if watch.wait_for(|state| state.holds == 0).await.is_err() {
                    return None;
                }
            }
            Some(Entered(self))
        };
        tokio::time::timeout(patience, entered).await.ok()?
    }

    fn try_enter(&self) -> bool {
        self.state.send_if_modified(|state| {
            let is_open = state.holds == 0;
            state.inside += usize::from(is_open);
            is_open
        })
    }

    /// Shuts the door at once, and waits until nobody is inside. There may be several holds.
    ///
    /// # Cancel safety
    /// Safe: the door is as it was.
    pub async fn hold(self: &Arc<Intake>) -> Hold {
        self.state.send_modify(|state| state.holds += 1);
        let hold = Hold(self.clone());
        let mut watch = self.state.subscribe();
        let left = watch.wait_for(|state| state.inside == 0).await;
        debug_assert!(left.is_ok(), "the hold keeps the sender");
        drop(left);
        hold
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.inside -= 1);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.holds -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hold_waits_for_those_inside_and_lets_nobody_in() {
        let intake = Arc::new(Intake::default());
        let inside = intake.enter(LONG).await.expect("it is open");
        let holding = tokio::spawn({
            let intake = intake.clone();
            async move { intake.hold().await }
        });
        while intake.state.borrow().holds == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!holding.is_finished(), "somebody is inside");
        assert!(intake.enter(Duration::from_millis(1)).await.is_none(), "it is shut");
        drop(inside);
        let hold = holding.await.expect("joins");
        let other = intake.hold().await;
        drop(hold);
        assert!(intake.enter(Duration::from_millis(1)).await.is_none(), "the other one holds it");
        drop(other);
        assert!(intake.enter(LONG).await.is_some());
    }

    #[tokio::test]
    async fn whoever_waits_goes_in_when_it_opens() {
        let intake = Arc::new(Intake::default());
        let hold = intake.hold().await;
        let (entered, ()) = tokio::join!(intake.enter(LONG), async { drop(hold) });
        assert!(entered.is_some());
    }

    #[tokio::test]
    async fn a_hold_that_is_given_up_leaves_the_door_open() {
        let intake = Arc::new(Intake::default());
        let inside = intake.enter(LONG).await.expect("it is open");
        assert!(tokio::time::timeout(Duration::from_millis(1), intake.hold()).await.is_err());
        drop(inside);
        assert!(intake.enter(LONG).await.is_some());
    }
}
