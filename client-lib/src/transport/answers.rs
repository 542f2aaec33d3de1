//! What the answers of one connection may take in memory: room is set aside before a request is served, and is free again
//! when its answer has gone.
//!
//! Requests have a budget of their own, which is taken first and never waited for with room in hand, so that the two cannot wait for each
//! other. For clients only: a node bounds what it asks of others itself, and may be asked by them what it waits for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FRAME_SIZE_MAX;

/// Bytes of answers that one connection may have in memory at a time, from before they are read until they are sent; further requests wait,
/// in their order, but for those whose answers are small.
pub(super) const ANSWER_BUDGET: usize = 2 * FRAME_SIZE_MAX;

/// An answer of so many bytes, or fewer, is not counted: the requests that a connection may have under way bound those together.
const SMALL_MAX: usize = 128 << 10;

/// The room of one connection.
#[derive(Clone, Debug)]
pub(super) struct Answers(Arc<Semaphore>);

impl Answers {
    pub(super) fn new() -> Answers {
        Answers(Arc::new(Semaphore::new(ANSWER_BUDGET)))
    }

    /// Waits for room for an answer of at most `bytes`; what needs more than there is takes all of it.
    ///
    /// # Cancel safety
    /// Safe; the place in the queue is lost.
    pub(super) async fn set_aside(&self, bytes: usize) -> Room {
        if bytes <= SMALL_MAX {
            return Room(None);
        }
        let permits = bytes.min(ANSWER_BUDGET) as u32;
        // Only a closed semaphore refuses, and nobody closes it.
        Room(self.0.clone().acquire_many_owned(permits).await.ok())
    }
}

/// Room for an answer.
#[derive(Debug)]
pub(super) struct Room(Option<OwnedSemaphorePermit>);

impl Room {
    /// The answer, which keeps as much of the room as it needs until all who have its bytes have dropped them.
    pub(super) fn hold(self, answer: Bytes) -> Bytes {
        let Room(Some(mut permit)) = self else { return answer };
        drop(permit.split(permit.num_permits().saturating_sub(answer.len())));
        Bytes::from_owner(Held { answer, _permit: permit })
    }
}

struct Held {
    answer: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn room_is_held_until_the_answer_has_gone_and_no_more_of_it_than_that_needs() {
        let answers = Answers::new();
        let is_room = |bytes| answers.set_aside(bytes).now_or_never().is_some();
        let left = 2 * SMALL_MAX;
        let room = answers.set_aside(ANSWER_BUDGET - left).now_or_never().expect("there is room");
        assert_eq!([0, left, left + 1].map(is_room), [true, true, false]);
        let mut answer = room.hold(Bytes::from_static(&[7; 100]));
        assert!(is_room(ANSWER_BUDGET - 100), "the rest is free");
        let sent = answer.split_to(60);
        drop(answer);
        assert_eq!(&sent[..], [7; 60]);
        assert!(!is_room(ANSWER_BUDGET), "a part of it has yet to go");
        drop(sent);
        assert!(is_room(usize::MAX), "what is larger than everything has everything");
    }

    #[test]
    fn an_answer_that_never_came_leaves_no_trace() {
        let answers = Answers::new();
        drop(answers.set_aside(usize::MAX).now_or_never().expect("there is room"));
        let all = answers.set_aside(usize::MAX).now_or_never().expect("there is room");
        assert!(answers.set_aside(SMALL_MAX).now_or_never().is_some(), "what is small does not wait");
        drop(all);
        let waiting = answers.set_aside(SMALL_MAX + 1).now_or_never().expect("there is room");
        assert!(answers.set_aside(usize::MAX).now_or_never().is_none(), "gives up waiting");
        drop(waiting);
        assert!(answers.set_aside(usize::MAX).now_or_never().is_some());
    }
}
