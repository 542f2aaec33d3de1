//! A replica that has nothing is sent the volume in parts, block by block ([`crate::volume::initial`]).
//!
//! It is the authority on what it has, here too: after each part it is asked, and the next one goes on from its answer. Until it has all
//! of them it is told of nothing else and shares nothing with others.

use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BlockIndex, Error, ErrorKind, Lsn};

use super::{Sender, Transfer};
use crate::peer::message::{ENCODING_SYNC, PeerReply, PeerRequest, ReplicaPosition};
use crate::propagation::progress::Rejoining;
use crate::propagation::telling::tell_part;
use crate::serve::volume::store_failure;

/// About how many blocks a part has: 256 MiB.
#[cfg(not(test))]
const PART_BLOCKS: usize = 1 << 16;
/// In tests as few as a volume of a simulation has parts of.
#[cfg(test)]
const PART_BLOCKS: usize = 8;

/// How often, and after which pause each time, it is looked whether the replica is known to take parts.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(100));

/// How far the initial sync of a replica has come.
pub(super) struct Initial {
    base: Lsn,
    next: BlockIndex,
    /// About how many blocks are to come.
    rest: u64,
    /// A part was told: only the replica knows what came of it.
    is_unsure: bool,
}

impl Initial {
    pub(super) fn from(base: Lsn, next: BlockIndex) -> Initial {
        Initial { base, next, rest: 0, is_unsure: false }
    }

    pub(super) fn as_told(&self) -> Rejoining {
        Rejoining { base: self.base, discarded: self.rest }
    }
}

impl Sender {
    /// The initial sync of a replica at `position`, if it has nothing, and the volume is more than one part.
    pub(super) async fn initial(&self, position: ReplicaPosition) -> Result<Option<Initial>, Error> {
        if position != ReplicaPosition::default() {
            return Ok(None);
        }
        let report = self.volume.shard.report(self.volume.id).await.map_err(store_failure)?;
        if report.mapped_blocks <= PART_BLOCKS as u64 {
            return Ok(None);
        }
        let snapshots = self.volume.shard.snapshots(self.volume.id).await.map_err(store_failure)?;
        if snapshots.iter().any(|snapshot| snapshot.lsn == Lsn::ZERO) {
            // A snapshot that was made before the first write can be told as news only, and is the first of it.
            return Ok(None);
        }
        for _ in 0..LOOKS.0 {
            if self.volume.peers.encodings(self.replica) & ENCODING_SYNC != 0 {
                tracing::info!(volume = %self.volume.name, replica = %self.replica, blocks = report.mapped_blocks, "initial sync");
                return Ok(Some(Initial { rest: report.mapped_blocks, ..Initial::from(Lsn::ZERO, BlockIndex(0)) }));
            }
            tokio::time::sleep(LOOKS.1).await;
        }
        // An older program: it is told of everything at once.
        Ok(None)
    }

    /// Tells the replica of the next part, and begins to send it; or finds that it has all.
    pub(super) async fn next_part(
        &self,
        position: ReplicaPosition,
        initial: &mut Initial,
    ) -> Result<(ReplicaPosition, Option<Transfer>), Error> {
        let (volume, shard, epoch) = (self.volume.id, &self.volume.shard, self.epoch);
        if initial.is_unsure {
            let request = PeerRequest::ReplicaStatus { volume, epoch };
            match self.volume.peers.ask(self.replica, Class::Control, request, Bytes::new()).await?.head {
                PeerReply::InitialSync { base, next, .. } => (initial.base, initial.next) = (base, next),
                PeerReply::Position(position) if position.watermark > Lsn::ZERO => return Ok((position, None)),
                PeerReply::Rejoining { .. } => {
                    // It was told of all the rest meanwhile, for a handover, or did not get all of the last part.
                    let what =
                        format!("node {} is told of everything, and lacks some", self.volume.peers.name(self.replica));
                    return Err(Error::new(ErrorKind::Unavailable, what));
                }
                head => return Err(self.volume.peers.unexpected(self.replica, &head)),
            }
            initial.is_unsure = false;
        }
        let sealed = shard.seal_part(volume, initial.base, initial.next, PART_BLOCKS).await.map_err(store_failure)?;
        let (manifest, Some(delta)) = sealed else {
            return Err(Error::new(ErrorKind::Internal, "a part was sealed without its delta"));
        };
        let part = delta.part.ok_or_else(|| Error::new(ErrorKind::Internal, "a delta was sealed that is no part"))?;
        self.pinned.note(&delta);
        let told = tell_part(&self.volume.peers, self.replica, (volume, epoch), manifest, part.end).await;
        let is_sealed = told.as_ref().is_ok_and(|told| told.sealed_to == Some(delta.to));
        if !is_sealed {
            self.pinned.release(&delta).await?;
            // It has taken up something else meanwhile.
            told?;
            let what = format!("node {} did not take a part of the initial sync", self.volume.peers.name(self.replica));
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        (initial.rest, initial.is_unsure) = (part.rest, true);
        self.watermarks.with(self.replica, |progress| progress.comes_back(Some(initial.as_told())));
        self.watermarks.with_fan(|fan, _| fan.began(self.replica));
        Ok((position, Some(self.start(delta, None))))
    }
}
