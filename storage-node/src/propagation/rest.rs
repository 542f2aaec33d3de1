//! When a task that looks at a volume again and again may stop until something happens to it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::shard::news::{Listening, News};

/// It looks again after so long, come what may.
const REST_MAX: Duration = Duration::from_secs(60);

/// The rest of one task.
#[derive(Debug)]
pub(super) struct Rest {
    news: Arc<News>,
    listening: Option<Listening>,
    is_resting: bool,
}

impl Rest {
    /// Nothing was looked at yet.
    pub(super) fn new(news: Arc<News>) -> Rest {
        Rest { news, listening: None, is_resting: false }
    }

    /// A look has shown whether there is nothing to do but wait. A second such look in a row, which nothing can have slipped by, begins
    /// the rest.
    pub(super) fn looked(&mut self, is_calm: bool) {
        self.is_resting = is_calm && self.listening.is_some();
        if !is_calm {
            self.listening = None;
        } else if self.listening.is_none() {
            self.listening = Some(self.news.listen());
        }
    }

    /// Whether nothing need be looked at before [`over`](Self::over).
    pub(super) fn is_resting(&self) -> bool {
        self.is_resting
    }

    /// Waits until something happens to the volume, and tells when that was; or for [`REST_MAX`].
    ///
    /// # Cancel safety
    /// Safe: it rests on.
    pub(super) async fn over(&mut self) -> Option<Instant> {
        let heard = match &mut self.listening {
            Some(listening) => tokio::time::timeout(REST_MAX, listening.heard()).await.ok(),
            None => None,
        };
        (self.listening, self.is_resting) = (None, false);
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_begins_with_the_second_calm_look_and_ends_by_itself() {
        let mut rest = Rest::new(Arc::default());
        for (is_calm, is_resting) in [(true, false), (false, false), (true, false), (true, true), (true, true)] {
            rest.looked(is_calm);
            assert_eq!(rest.is_resting(), is_resting);
        }
        let begun = Instant::now();
        assert_eq!(rest.over().await, None);
        assert!(begun.elapsed() >= REST_MAX && !rest.is_resting());
    }
}
