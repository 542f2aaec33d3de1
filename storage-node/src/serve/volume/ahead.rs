//! I/O that is sent to whoever owns the volume, or is about to.
//!
//! While a transfer is proposed this node must not serve any more, and does not know yet who does. What clients ask for then goes
//! ahead to the node it was proposed for, which carries it out once it owns the volume: so they wait for half a round trip less, or
//! a whole one (docs/decisions/0032). It must not be carried out late, when that transfer came to nothing and another one is
//! made: it names the position behind which the new epoch begins, and everything that is acked here in between moves that.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Epoch, Error, Lsn};

use super::ServedVolume;
use crate::ownership::gate::{Phase, View};
use crate::peer::client::PeerError;
use crate::peer::message::{Message, Operation, PeerReply, PeerRequest};

/// How long what went ahead waits for this node to be the owner: less than a call may take.
const AHEAD_PATIENCE: Duration = Duration::from_secs(10);

type Answer = Result<Message<PeerReply>, PeerError>;

impl ServedVolume {
    /// Has the owner by `view`, or who is about to be, carry out `operation`. `None` when it is to be looked again who that is: what
    /// went ahead may have been carried out, and may still be if this very transfer is committed; what a last owner was asked for may
    /// have been.
    ///
    /// # Errors
    /// `Closed` when the volume is gone.
    pub(super) async fn ask_there(
        &self,
        view: View,
        operation: Operation,
        payload: Bytes,
    ) -> Result<Option<Answer>, Error> {
        let View { owner, epoch, phase } = view;
        let mut views = self.gate.subscribe();
        let Phase::Transferring(heir) = phase else {
            let request = operation.for_owner(self.id, epoch);
            return Ok(tokio::select! {
                biased;
                answer = self.peers.ask(owner, Class::Pull, request, payload) => Some(answer),
                // It has come here meanwhile: what the last owner holds, it only sends back.
                _ = views.wait_for(|now| now.phase == Phase::Owner && now.epoch > epoch) => None,
            });
        };
        let request = PeerRequest::Ahead { volume: self.id, epoch, after: heir.begins, operation };
        let is_on_its_way = |now: &View| now.phase == phase || *now == View { owner, epoch, phase: Phase::Elsewhere };
        let answer = tokio::select! {
            biased;
            answer = self.peers.ask(owner, Class::Pull, request, payload) => answer.ok(),
            _ = views.wait_for(|now| !is_on_its_way(now)) => None,
        };
        let is_answer =
            |message: &Message<PeerReply>| !matches!(message.head, PeerReply::NotOwner(_) | PeerReply::Failed(_));
        match answer.filter(is_answer) {
            Some(answer) => Ok(Some(Ok(answer))),
            // It was not the owner, or could not be asked: wait until it is known who is.
            None => self.gate.settled(Epoch(0)).await.map(|_| None),
        }
    }

    /// This node owns the volume from now on, in an epoch that begins behind `position`.
    pub fn begin(&self, epoch: Epoch, position: Lsn) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, position));
        self.gate.set_phase(epoch, Phase::Owner);
    }

    /// Waits until this node owns the volume in `epoch`; whether it does, and that epoch begins behind `after`.
    ///
    /// # Errors
    /// `Closed` when the volume is gone.
    pub async fn begins(&self, epoch: Epoch, after: Lsn) -> Result<bool, Error> {
        let Ok(view) = tokio::time::timeout(AHEAD_PATIENCE, self.gate.settled(epoch)).await else { return Ok(false) };
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(view?.epoch == epoch && begun == Some((epoch, after)))
    }
}
