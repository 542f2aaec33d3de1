//! How the use of a volume ends: what is sent no more, what is waited for, and what can still come to the volume after that.
//!
//! A session ends in two steps. While it is *finishing*, a write that is not acked is not sent any more, whoever began it; what is acked
//! still is, to an owner that lacks it, until it is durable. Once it is *closing*, nothing is sent. A volume that is dropped takes both at
//! once.
//!
//! An attempt that is on its way is never cut off, since that would not call it back: it ends as it ends, within the deadline of a call,
//! and [`Session::close`] waits for it. Where that leaves its outcome unknown, the owner may have it yet, and carry it out over what is
//! written next, by whomever: numbers and generations order the writes of one session only. So the owner is asked for a write of nothing in
//! a later generation, which it answers when all attempts of earlier ones are over, and after which it refuses those that come late
//! ([`Session::fence`]). An owner of another tenure refuses them anyway.

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use super::journal::WriteKey;
use super::nodes::{Tries, out_of_turn};
use super::session::{Attempt, Inner, Session};
use crate::error::Error;
use crate::wire::client::{ClientReply, ClientRequest, Tenure, WriteId};

impl Session {
    /// Makes what was acked durable and ends the session. Returns when none of its writes is on its way any more; with an error also when
    /// the owner could not be asked whether that is so. Tries for `patience` and no longer than any other operation.
    pub(super) async fn close(&self, patience: Option<Duration>) -> Result<(), Error> {
        let mut tries = Tries::new(self.settings.give_up.into_iter().chain(patience).min());
        self.inner().end = tries.end();
        self.finishing.cancel();
        self.sending.close();
        // Who waits to send is told.
        self.tell_changed();
        let finished = self.finish(&mut tries).await;
        self.end();
        self.sending.wait().await;
        finished
    }

    /// Waits until every write that has begun is over, and makes durable what was acked.
    pub(super) async fn settle(&self) -> Result<(), Error> {
        let mut tries = Tries::new(self.settings.give_up);
        let begun: Vec<WriteKey> = self.inner().journal.open().map(|(key, ..)| key).collect();
        let is_over = |inner: &Inner| begun.iter().all(|key| inner.journal.to_send(*key).is_none());
        self.until(&tries, |inner| is_over(inner).then_some(())).await?;
        self.flush_within(&mut tries).await?;
        self.fence(&mut tries).await
    }

    /// The session is over. Waits for nothing.
    pub(super) fn end(&self) {
        self.closing.cancel();
        self.tell_changed();
    }

    async fn finish(&self, tries: &mut Tries) -> Result<(), Error> {
        // First: attempts may take longer than it takes to find another owner.
        self.flush_acked(tries).await?;
        self.sending.wait().await;
        // What the last of them brought.
        self.flush_acked(tries).await?;
        self.fence(tries).await
    }

    async fn flush_acked(&self, tries: &mut Tries) -> Result<(), Error> {
        // Without any, nobody has to be asked, who may not answer.
        let has_acked = self.inner().journal.has_acked();
        if has_acked { self.flush_within(tries).await } else { Ok(()) }
    }

    /// Waits until no attempt at a write can be carried out any more, also none whose outcome is unknown.
    async fn fence(&self, tries: &mut Tries) -> Result<(), Error> {
        loop {
            let ready = |inner: &mut Inner| match inner.fenced < inner.generation {
                true => Some(Some((inner.attached()?, inner.owner))),
                false => Some(None),
            };
            let Some((tenure, owner)) = self.until(tries, ready).await? else { return Ok(()) };
            let (request, generation) = self.fence_request(tenure);
            match self.attempt(tenure, owner, tries, request, Bytes::new()).await? {
                Attempt::Done((ClientReply::Written { .. }, _)) => {
                    let mut inner = self.inner();
                    inner.fenced = inner.fenced.max(generation);
                }
                Attempt::Done((reply, _)) => return Err(out_of_turn(&reply)),
                Attempt::Again => {}
                Attempt::Failed(error) => {
                    self.tell_waiting(&error);
                    tries.failed(error).await?;
                }
            }
        }
    }

    /// Zeroes for no bytes at all, which an owner answers in its turn and carries out by doing nothing.
    fn fence_request(&self, tenure: Tenure) -> (ClientRequest, u64) {
        let inner = self.inner();
        let (session, answered, generation) = (inner.journal.session(), inner.journal.answered(), inner.generation);
        let id = WriteId { session, number: answered, answered, generation, right: inner.right };
        let request = ClientRequest::Zero { volume: self.volume, tenure, id, offset: 0, length: 0, fua: false };
        (request, generation)
    }
}
