//! Tells that something was applied to a volume, so that whoever follows it need not ask again and again: of a thousand volumes most are
//! idle. Costs a look at a flag while nobody waits.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

/// What there is to be told of a volume.
#[derive(Debug)]
pub struct News {
    is_awaited: AtomicBool,
    /// When something happened that was waited for.
    at: Mutex<Instant>,
    happened: Arc<Notify>,
}

impl Default for News {
    fn default() -> News {
        News { is_awaited: AtomicBool::new(false), at: Mutex::new(Instant::now()), happened: Arc::default() }
    }
}

impl News {
    /// Something was applied.
    pub(super) fn happened(&self) {
        if self.is_awaited.load(Ordering::Acquire) && self.is_awaited.swap(false, Ordering::AcqRel) {
            *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.happened.notify_waiters();
        }
    }

    /// Waits for what is applied from now on. What was applied before is in any report that is asked for after this.
    #[must_use]
    pub fn listen(self: &Arc<Self>) -> Listening {
        let happened = Box::pin(self.happened.clone().notified_owned());
        self.is_awaited.store(true, Ordering::Release);
        Listening { news: self.clone(), happened }
    }
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Listening {
    news: Arc<News>,
    happened: Pin<Box<OwnedNotified>>,
}

impl Listening {
    /// When it happened, as soon as it did. Not to be called again after that.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn heard(&mut self) -> Instant {
        self.happened.as_mut().await;
        *self.news.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_applied_while_somebody_listens_is_heard_by_all_of_them_and_once() {
        let news = Arc::<News>::default();
        news.happened();
        let (mut one, mut other) = (news.listen(), news.listen());
        let pause = Duration::from_secs(5);
        assert!(tokio::time::timeout(pause, one.heard()).await.is_err(), "what was before is not news");
        let at = Instant::now();
        news.happened();
        tokio::time::advance(pause).await;
        news.happened();
        assert_eq!((one.heard().await, other.heard().await), (at, at), "the first counts");
        let mut again = news.listen();
        assert!(tokio::time::timeout(pause, again.heard()).await.is_err());
        news.happened();
        again.heard().await;
    }
}
