//! A replica that comes back to the volume is sent what differs, and nothing else ([`crate::volume::rejoin`]).
//!
//! It says as of which position it is, and which blocks it lacks besides: those that it had written itself and discarded. Both are sealed as
//! one delta. As long as it has not applied that, it is no replica to anybody: it is told of nothing more, and shares nothing with others.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BlockIndex, Error, Lsn};
use roaring::RoaringBitmap;

use super::{Sender, Transfer};
use crate::peer::message::{Message, PeerReply, PeerRequest, ReplicaPosition};
use crate::propagation::ahead::Ahead;
use crate::propagation::manifest::BlockRun;
use crate::propagation::progress::Rejoining;
use crate::serve::volume::store_failure;
use crate::shard::handle::{Seal, StoreError};

/// Runs of blocks that are asked for at once.
const LACKING_RUNS_MAX: u32 = 16_384;

/// What a replica that comes back has.
pub(super) struct Comeback {
    base: Lsn,
    lacks: Arc<RoaringBitmap>,
    /// Whether it knows in which versions it lacks them.
    is_told: bool,
}

impl Comeback {
    pub(super) fn as_told(&self) -> Rejoining {
        Rejoining { base: self.base, discarded: self.lacks.len() }
    }
}

impl Sender {
    /// Asks a replica that is as of `base`, and does not know of `unknown` blocks in which version they are meant, what it lacks.
    pub(super) async fn comeback(&self, base: Lsn, unknown: u64) -> Result<Comeback, Error> {
        let mut lacks = RoaringBitmap::new();
        let mut after = BlockIndex(0);
        loop {
            let (volume, epoch) = (self.volume.id, self.epoch);
            let request = PeerRequest::Lacking { volume, epoch, after, limit: LACKING_RUNS_MAX };
            let runs = match self.volume.peers.ask(self.replica, Class::Control, request, Bytes::new()).await? {
                Message { head: PeerReply::Missing(runs), .. } => runs,
                message => return Err(self.volume.peers.unexpected(self.replica, &message.head)),
            };
            for run in &runs {
                lacks.insert_range(run.blocks());
            }
            let Some(next) = runs.last().and_then(BlockRun::end) else { break };
            after = next;
        }
        tracing::info!(volume = %self.volume.name, replica = %self.replica, %base, lacks = lacks.len(), "the replica comes back to the volume");
        Ok(Comeback { base, lacks: Arc::new(lacks), is_told: unknown == 0 })
    }

    /// Tells it of what it lacks and of what has changed, as one delta, and begins to send that.
    pub(super) async fn bring_back(
        &self,
        position: ReplicaPosition,
        comeback: &mut Comeback,
        ahead: &mut Ahead,
    ) -> Result<(ReplicaPosition, Option<Transfer>), Error> {
        let (shard, base) = (&self.volume.shard, comeback.base);
        if let Some(snapshot) = position.awaited_snapshot {
            let delta = self.pin(snapshot, base, comeback.lacks.clone()).await?;
            return match delta {
                Some(delta) => Ok((position, Some(self.start(delta, None)))),
                None => Ok((self.without_snapshot(position).await?, None)),
            };
        }
        let from = if comeback.is_told { position.known } else { base };
        let (seal, answer) = Seal::new(from, position.newest_snapshot, base);
        shard.seal_together(self.volume.id, vec![seal.with(comeback.lacks.clone())]).await.map_err(store_failure)?;
        let sealed = answer.await.unwrap_or(Err(StoreError::Stopped)).map_err(store_failure)?;
        let (mut manifest, delta) = sealed;
        if !comeback.is_told {
            // It tells of older writes, too; and it may end where the base does.
            manifest.from = Lsn::ZERO;
        }
        let begun = self.begin(position, manifest, delta, None, ahead).await?;
        comeback.is_told = true;
        Ok(begun)
    }
}
