//! Asking a replica again where it is, when it is told nothing: what it said before its node was started again may not be so any more. Its disk may have
//! been replaced.

use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Error, ErrorKind};
use tokio::time::Instant;

use super::Sender;
use crate::peer::message::{PeerReply, PeerRequest, ReplicaPosition};

/// Pause before a replica is asked again that did not answer.
const SILENCE_PAUSE: Duration = Duration::from_secs(5);

/// Pause before a replica is asked that awaits a snapshot which is deleted: it hears of that from metadata.
const METADATA_PAUSE: Duration = Duration::from_millis(500);

/// What a replica has told, of which of its processes, as the metadata counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    incarnation: Option<u64>,
    asked: Instant,
}

impl Word {
    /// It was given by the process of this number, or by one before it, at `now`.
    pub(super) fn given(incarnation: Option<u64>, now: Instant) -> Word {
        Word { incarnation, asked: now }
    }

    /// Whether it is asked for at `now`, when the process of this number runs.
    fn is_old(&self, incarnation: Option<u64>, now: Instant) -> bool {
        self.incarnation != incarnation && now.duration_since(self.asked) >= SILENCE_PAUSE
    }
}

impl Sender {
    /// Where a replica is that was at `before` when it gave its `word`: it is asked if its node was started again since. One that does not answer is taken
    /// to be there yet, and asked again in a while.
    ///
    /// # Errors
    /// `Unavailable` when it holds less than before: what it lacks is for the next session to find out.
    pub(super) async fn look_again(&self, before: ReplicaPosition, word: &mut Word) -> Result<ReplicaPosition, Error> {
        let incarnation = self.volume.incarnation(self.replica);
        if !word.is_old(incarnation, Instant::now()) {
            return Ok(before);
        }
        word.asked = Instant::now();
        match self.present(before).await? {
            Ok(position) => {
                word.incarnation = incarnation;
                Ok(position)
            }
            Err(silence) if silence.kind() == ErrorKind::Unavailable => {
                tracing::debug!(volume = %self.volume.name, replica = %self.replica, epoch = %self.epoch, error = %silence, "the replica is silent");
                Ok(before)
            }
            Err(error) => Err(error),
        }
    }

    /// Where a replica is that was at `before`, awaiting a snapshot that is deleted: it may have heard of that, and awaits it no more.
    ///
    /// # Errors
    /// Those of the call, and as [`look_again`](Self::look_again).
    pub(super) async fn without_snapshot(&self, before: ReplicaPosition) -> Result<ReplicaPosition, Error> {
        tokio::time::sleep(METADATA_PAUSE).await;
        self.present(before).await?
    }

    /// The answer of the replica, or why there is none; the outer error is that it holds less than `before`.
    async fn present(&self, before: ReplicaPosition) -> Result<Result<ReplicaPosition, Error>, Error> {
        let request = PeerRequest::ReplicaStatus { volume: self.volume.id, epoch: self.epoch };
        let answer = self.volume.peers.ask(self.replica, Class::Control, request, Bytes::new()).await;
        let position = match answer.map_err(Error::from).map(|answer| answer.head) {
            Ok(PeerReply::Position(position) | PeerReply::Rejoining { position, .. }) => position,
            // It has begun from nothing, or is no replica: the next session hears more of it.
            Ok(PeerReply::InitialSync { .. } | PeerReply::Left(_)) => ReplicaPosition::default(),
            Ok(head) => return Ok(Err(self.volume.peers.unexpected(self.replica, &head))),
            Err(error) => return Ok(Err(error)),
        };
        if !holds_less(position, before) {
            return Ok(Ok(position));
        }
        tracing::warn!(
            volume = %self.volume.name, replica = %self.replica, epoch = %self.epoch, before = %before.watermark, now = %position.watermark,
            "the replica holds less than it told: it is sent what it lacks"
        );
        // What it holds it tells anew.
        self.volume.flushes.left(self.epoch, self.replica);
        let name = self.volume.peers.name(self.replica);
        Err(Error::new(ErrorKind::Unavailable, format!("node {name} holds less of the volume than it told")))
    }
}

/// Whether a replica at `position` has lost some of what it had at `before`.
fn holds_less(position: ReplicaPosition, before: ReplicaPosition) -> bool {
    position.watermark < before.watermark || position.known < before.known
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, Lsn};

    use super::*;

    fn at(known: u64, watermark: u64) -> ReplicaPosition {
        let lsn = |sequence| Lsn::new(Epoch(3), sequence);
        ReplicaPosition { known: lsn(known), watermark: lsn(watermark), ..ReplicaPosition::default() }
    }

    #[test]
    fn a_replica_is_asked_again_when_its_node_was_started_and_now_and_then_until_it_answers() {
        let now = Instant::now();
        let word = Word::given(Some(3), now);
        let later = now + SILENCE_PAUSE;
        assert!(!word.is_old(Some(3), now + 100 * SILENCE_PAUSE), "nothing has happened to it");
        assert!(!word.is_old(Some(4), now) && word.is_old(Some(4), later));
        assert!(!Word { asked: later, ..word }.is_old(Some(4), later), "it was silent");
    }

    /// The disk of a node was replaced, and the replicas on it were empty. Where nobody wrote their owner went by what they had told before that: they
    /// counted as complete, in `status` and for the flushes of a class, until the next write.
    #[test]
    fn a_replica_that_begins_anew_or_from_an_older_copy_holds_less_than_it_told() {
        let before = at(9, 9);
        assert!(holds_less(ReplicaPosition::default(), before), "it is empty");
        assert!(holds_less(at(9, 7), before) && holds_less(at(8, 8), before));
        assert!(!holds_less(before, before) && !holds_less(at(12, 9), before) && !holds_less(at(12, 12), before));
        assert!(holds_less(at(9, 7), at(12, 7)), "what it was told is not written down there");
    }
}
