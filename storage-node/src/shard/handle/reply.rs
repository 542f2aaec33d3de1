//! Whom a shard answers, and what the operation carries along for which it is asked.

use client_lib::trace::Trace;
use tokio::sync::oneshot;

use super::StoreError;

/// Takes the answer to a request. Dropped, the one who asked is told that the shard has stopped.
#[derive(Debug)]
pub struct Reply<T> {
    sender: oneshot::Sender<Result<T, StoreError>>,
    /// Of the operation of a guest that is behind the request, if somebody looks at it.
    pub(in crate::shard) trace: Trace,
}

/// Where the answer to a request comes.
pub type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

impl<T> Reply<T> {
    /// A reply, and where it comes.
    #[must_use]
    pub fn channel() -> (Reply<T>, Answer<T>) {
        Reply::traced(Trace::default())
    }

    /// The same for a guest's operation.
    pub(super) fn traced(trace: Trace) -> (Reply<T>, Answer<T>) {
        let (sender, answer) = oneshot::channel();
        (Reply { sender, trace }, answer)
    }

    /// Answers.
    ///
    /// # Errors
    /// Whoever asked has abandoned the call; the answer comes back.
    pub fn send(self, answer: Result<T, StoreError>) -> Result<(), Result<T, StoreError>> {
        self.sender.send(answer)
    }
}
