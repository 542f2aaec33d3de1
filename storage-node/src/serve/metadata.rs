//! The metadata as of now, for the moments in which what this node has applied may be too old to answer a client.
//!
//! A node hears of a change up to a heartbeat after it was committed. Whoever created or moved a volume elsewhere and
//! then comes here must not be told that it does not exist, or that it may not be written.

use std::sync::Arc;

use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind};
use consensus::MetaState;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Reads metadata through consensus.
pub trait Metadata: Send + Sync + 'static {
    /// Everything that was committed before this call is in the answer.
    ///
    /// # Errors
    /// `Unavailable` when there is no leader to ask.
    fn linearizable(&self) -> BoxFuture<'_, Result<Arc<MetaState>, Error>>;

    /// What is applied here, at once: what is looked at with every request.
    fn here(&self) -> Arc<MetaState>;
}

/// [`Metadata`] that many may ask for at once: one read is under way at a time, and serves all who asked before it began, also where it fails.
pub struct NewestMetadata {
    source: Arc<dyn Metadata>,
    last: Mutex<Option<Read>>,
}

struct Read {
    began: Instant,
    /// What it came to; why, if it failed.
    outcome: Result<Arc<MetaState>, (ErrorKind, String)>,
}

impl NewestMetadata {
    /// Reads from `source`.
    #[must_use]
    pub fn new(source: Arc<dyn Metadata>) -> NewestMetadata {
        NewestMetadata { source, last: Mutex::default() }
    }

    /// What is applied here.
    #[must_use]
    pub fn here(&self) -> Arc<MetaState> {
        self.source.here()
    }

    /// The state as of now; one round trip to the leader, two when others are asking.
    ///
    /// # Errors
    /// `Unavailable` when there is no leader to ask.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn get(&self) -> Result<Arc<MetaState>, Error> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(read) = last.as_ref().filter(|read| read.began > asked) {
            return read.outcome.clone().map_err(|(kind, why)| Error::new(kind, why));
        }
        let began = Instant::now();
        let read = self.source.linearizable().await;
        // Also where it failed, after a long time: those who wait behind it would each try for as long.
        let outcome = read.as_ref().map(Arc::clone).map_err(|error| (error.kind(), error.to_string()));
        *last = Some(Read { began, outcome });
        read
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Slow {
        reads: AtomicU64,
        has_no_leader: bool,
    }

    impl Metadata for Slow {
        fn linearizable(&self) -> BoxFuture<'_, Result<Arc<MetaState>, Error>> {
            Box::pin(async {
                self.reads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                let no_leader = || Error::new(ErrorKind::Unavailable, "the metadata has no leader");
                if self.has_no_leader { Err(no_leader()) } else { Ok(Arc::default()) }
            })
        }

        fn here(&self) -> Arc<MetaState> {
            Arc::default()
        }
    }

    #[tokio::test]
    async fn a_read_serves_those_who_asked_before_it_began_and_nobody_else() {
        let source = Arc::new(Slow::default());
        let newest = NewestMetadata::new(source.clone());
        let all = futures_util::future::join_all((0..100).map(|_| newest.get())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(source.reads.load(Ordering::Relaxed), 2, "one for the first, one for the ninety-nine behind it");
        newest.get().await.expect("reads");
        assert_eq!(source.reads.load(Ordering::Relaxed), 3, "what was read before is old");
    }

    /// Without a leader a read takes twenty seconds to fail, and each of those who waited began one of his own: of fifty clients the last one heard after a
    /// quarter of an hour that nothing could be read.
    #[tokio::test(start_paused = true)]
    async fn a_read_that_fails_serves_those_who_asked_before_it_began_too() {
        let source = Arc::new(Slow { has_no_leader: true, ..Slow::default() });
        let newest = NewestMetadata::new(source.clone());
        let all = futures_util::future::join_all((0..100).map(|_| newest.get())).await;
        let is_told = |read: &Result<Arc<MetaState>, Error>| {
            read.as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::Unavailable && error.message().contains("leader"))
        };
        assert!(all.iter().all(is_told));
        assert_eq!(source.reads.load(Ordering::Relaxed), 2, "one for the first, one for the ninety-nine behind it");
        assert!(is_told(&newest.get().await));
        assert_eq!(source.reads.load(Ordering::Relaxed), 3, "there may be a leader by now");
    }
}
