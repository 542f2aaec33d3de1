//! The beginning of a handover: the destination is asked and told, and then the writers of every volume are held, or, before long, of none.

use std::time::Duration;

use client_lib::{Error, ErrorKind};
use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::{Driver, Member};
use crate::ownership::chronicle;
use crate::ownership::handover::Event;
use crate::shard::handle::FreezeWhen;

/// How long volumes may take until their writes under way have ended and are durable. One whose disk does not answer, or that is being rolled back, would
/// hold the writers of all volumes that go with it, for as long as that takes.
pub const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

impl Driver {
    /// All that is done before anything is held.
    pub(super) async fn make_ready(&mut self) -> Result<(), Error> {
        // Is the destination there, and near? What is sent now need not be sent frozen.
        self.enter(chronicle::Phase::Asking);
        try_join_all(self.members.iter_mut().map(Member::ask_position)).await?;
        if self.members.iter().any(|member| member.synced.is_some()) {
            self.enter(chronicle::Phase::CatchingUp);
        }
        let asked = Instant::now();
        try_join_all(self.members.iter().map(|member| member.catch_up(None, &self.cancel))).await?;
        self.caught_up = asked.elapsed();
        let tells_first = match self.when {
            FreezeWhen::Always => true,
            FreezeWhen::Flushed => self.members.iter().any(Member::is_new),
            // It could say of nothing that it is durable.
            FreezeWhen::Unsynced => false,
        };
        if tells_first {
            // Else nobody writes, so nobody would be held up by what is sent frozen; but all of a volume is too much for that.
            self.enter(chronicle::Phase::Telling);
            self.peers().make_way(self.to);
            try_join_all(self.members.iter_mut().map(Member::send_manifest)).await?;
        }
        Ok(())
    }

    /// Holds the writers of all of them before it is looked what came of any: whatever fails, none is left half way.
    pub(super) async fn freeze(&self) -> Event {
        let all = join_all(self.members.iter().map(|member| member.freeze(self.when)));
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Event::Failed(cancelled()),
            frozen = tokio::time::timeout(FREEZE_DEADLINE, all) => match frozen.map(|frozen| frozen.into_iter().collect()) {
                Ok(Ok(final_lsns)) => Event::Frozen(final_lsns),
                Ok(Err(error)) => Event::Failed(error),
                Err(_) => {
                    let what = format!(
                        "writes under way on {} have not ended within {FREEZE_DEADLINE:?}: is a disk slow, or a volume being rolled back? \
                         Everything stays where it is",
                        self.names()
                    );
                    Event::Failed(Error::new(ErrorKind::Unavailable, what))
                }
            },
        }
    }
}

/// What a handover ends with that was cancelled, or whose time is over.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Closed, "the handover was cancelled")
}
