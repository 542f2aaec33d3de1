//! What a shard that has nothing to do waits for: a request, its disk, its bell, or time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::handle::Request;
use crate::io::{Bell, Completions};

/// What ended a sleep.
#[derive(Debug)]
pub(super) enum Woken {
    /// Somebody asks for this.
    Request(Request),
    /// Nobody can ask any more.
    Disconnected,
    /// Something may have finished.
    Something,
    /// The time is over.
    Time,
}

/// The sleep of a shard.
#[derive(Debug)]
pub(super) struct Sleep {
    bell: Arc<Bell>,
    completions: Completions,
    /// Kept from sleep to sleep: a timer is set anew only when it would ring too late.
    alarm: Pin<Box<tokio::time::Sleep>>,
}

impl Sleep {
    /// For a shard whose engine rings `bell` and tells of its `completions`. To be called on the shard's runtime.
    pub(super) fn new(bell: Arc<Bell>, completions: Completions) -> Sleep {
        Sleep { bell, completions, alarm: Box::pin(tokio::time::sleep(Duration::MAX)) }
    }

    /// Sleeps until there is something to do, at most `longest`, and perhaps less: an alarm set by an earlier sleep counts as
    /// [`Woken::Something`]. Without `requests` none is taken.
    pub(super) async fn until(&mut self, longest: Duration, requests: Option<&mut mpsc::Receiver<Request>>) -> Woken {
        let end = Instant::now() + longest;
        if self.alarm.is_elapsed() || self.alarm.deadline() > end {
            self.alarm.as_mut().reset(end);
        }
        let is_early = self.alarm.deadline() < end;
        tokio::select! {
            biased;
            () = self.completions.some() => Woken::Something,
            request = taken(requests) => request.map_or(Woken::Disconnected, Woken::Request),
            () = self.bell.rung() => Woken::Something,
            () = self.alarm.as_mut() => if is_early { Woken::Something } else { Woken::Time },
        }
    }
}

async fn taken(requests: Option<&mut mpsc::Receiver<Request>>) -> Option<Request> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::Checkpoint { reply: crate::shard::handle::Reply::channel().0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_with_whatever_comes_first() {
        let (sender, mut requests) = mpsc::channel(4);
        let bell = Arc::new(Bell::default());
        let mut sleep = Sleep::new(bell.clone(), Completions::default());
        let second = Duration::from_secs(1);

        assert!(matches!(sleep.until(second, Some(&mut requests)).await, Woken::Time));
        bell.ring();
        assert!(matches!(sleep.until(second, Some(&mut requests)).await, Woken::Something), "no ring is lost");
        sender.try_send(request()).expect("is taken");
        let time = sleep.until(Duration::from_millis(1), None).await;
        assert!(matches!(time, Woken::Time), "who cannot take a request is not woken by it: {time:?}");
        assert!(matches!(sleep.until(second, Some(&mut requests)).await, Woken::Request(_)));
        drop(sender);
        assert!(matches!(sleep.until(second, Some(&mut requests)).await, Woken::Disconnected));
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_that_is_set_serves_a_later_end_too() {
        let mut sleep = Sleep::new(Arc::default(), Completions::default());
        let begun = Instant::now();
        let bell = sleep.bell.clone();
        bell.ring();
        assert!(matches!(sleep.until(Duration::from_secs(1), None).await, Woken::Something));
        assert!(matches!(sleep.until(Duration::from_secs(5), None).await, Woken::Something), "the earlier alarm");
        assert_eq!(begun.elapsed().as_secs(), 1);
        assert!(matches!(sleep.until(Duration::from_secs(5), None).await, Woken::Time));
        assert_eq!(begun.elapsed().as_secs(), 6);
    }
}
