//! Another size for a volume: growing is one entry; shrinking first makes everything beyond the new end zeroes.
//!
//! The zeroes are ordinary writes of the owner, in bounded pieces: they have LSNs, so replicas drop the same data at the
//! same position of the volume's order, and a later growth reads zeroes everywhere. The size follows as an entry of its
//! own, so a crash in between leaves the old size, and whoever asked asks again. From the moment a shrink is asked for,
//! requests beyond the new end are refused; those admitted before are ordered before its zeroes.
//!
//! A replica only grows. What it holds beyond a smaller end goes when the owner's zeroes arrive; a replica that becomes
//! the owner is asked again, and shrinks then. Who asks for a shrink names the epoch that it is meant for: a request that
//! was delayed until the volume had changed hands, and size, drops nothing. Which size a volume should have is metadata's
//! business.

use std::cmp::Ordering;

use client_lib::{Epoch, Lsn, VolumeId, VolumeSize};
use tokio::sync::oneshot::error::TryRecvError;

use super::core::Core;
use super::handle::{Answer, Role, StoreError, VolumeReport};
use super::run::Reply;
use super::sync::Done;
use super::write::WriteJob;
use crate::log::Entry;
use crate::volume::ledger::Author;

/// Bytes dropped per step: their pages fit a small cache, and the guest's writes go on in between.
const STEP_BYTES: u64 = 1 << 30;

/// A shrink under way.
#[derive(Debug)]
pub(super) struct Shrink {
    size: VolumeSize,
    /// Up to here zeroes were asked for, from the new end on.
    at: u64,
    /// The zeroes under way.
    piece: Option<Answer<Lsn>>,
    /// Whether the entry with the new size is under way.
    is_logged: bool,
    replies: Vec<Reply<VolumeReport>>,
}

impl Shrink {
    /// Whether the next turn can do something about it; otherwise the log must answer first.
    pub(super) fn has_work(&self) -> bool {
        self.piece.is_none() && !self.is_logged
    }

    /// Tells everybody that it has failed.
    pub(super) fn fail(self, error: &StoreError) {
        for reply in self.replies {
            drop(reply.send(Err(error.clone())));
        }
    }
}

impl Core {
    pub(super) fn resize(
        &mut self,
        volume: VolumeId,
        size: VolumeSize,
        owner: Option<Epoch>,
        reply: Reply<VolumeReport>,
    ) {
        let Some(run) = self.volumes.get_mut(&volume) else {
            return Done::Report(reply).fail(StoreError::UnknownVolume(volume));
        };
        if let Some(shrink) = &mut run.shrink {
            // Another size can only be wanted once this one is carried out.
            match shrink.size == size {
                true => shrink.replies.push(reply),
                false => drop(reply.send(Err(StoreError::Resizing(volume)))),
            }
            return;
        }
        match size.cmp(&run.state.size) {
            Ordering::Greater => {
                self.append_plain(Entry::Resized { volume, size }, true, Done::Report(reply));
            }
            Ordering::Less if run.role == Role::Owner && owner == Some(run.epoch) => {
                run.end = size;
                run.shrink =
                    Some(Shrink { size, at: size.bytes(), piece: None, is_logged: false, replies: vec![reply] });
                self.touched.note(run);
            }
            // The entry that brought this size may not be durable yet.
            Ordering::Less | Ordering::Equal => self.syncs.wait(volume, Done::Report(reply)),
        }
    }

    /// Takes every shrink under way a bounded step further.
    pub(super) fn shrink_step(&mut self) {
        let shrinking = self.working().filter(|run| run.shrink.is_some());
        for volume in shrinking.map(|run| run.state.id).collect::<Vec<_>>() {
            if let Err(error) = self.shrink_volume(volume) {
                self.resize_failed(volume, &error);
            }
        }
    }

    /// An entry with a new size was applied.
    pub(super) fn resized(&mut self, volume: VolumeId) {
        let Some(run) = self.volumes.get_mut(&volume) else { return };
        run.end = run.state.size;
        for reply in run.shrink.take().into_iter().flat_map(|shrink| shrink.replies) {
            self.syncs.wait(volume, Done::Report(reply));
        }
    }

    /// The volume keeps the size it has.
    pub(super) fn resize_failed(&mut self, volume: VolumeId, error: &StoreError) {
        let Some(run) = self.volumes.get_mut(&volume) else { return };
        run.end = run.state.size;
        if let Some(shrink) = run.shrink.take() {
            shrink.fail(error);
        }
    }

    fn shrink_volume(&mut self, volume: VolumeId) -> Result<(), StoreError> {
        let Some(run) = self.volumes.get_mut(&volume) else { return Ok(()) };
        let Some(shrink) = run.shrink.as_mut().filter(|shrink| !shrink.is_logged) else { return Ok(()) };
        if let Some(piece) = &mut shrink.piece {
            match piece.try_recv() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Closed) => return Err(StoreError::Stopped),
            }
            shrink.piece = None;
        }
        run.require_owner()?;
        if run.frozen {
            return Err(StoreError::Frozen(volume));
        }
        let Some(shrink) = &mut run.shrink else { return Ok(()) };
        if self.map.cache.wants_checkpoint() {
            // The pages that were changed so far must be written before more are.
            return Ok(());
        }
        let (at, end) = (shrink.at, run.state.size.bytes());
        #[cfg(test)]
        let at = if crate::simulation::rules::holds(crate::simulation::rules::Rule::ShrinksDrop) { at } else { end };
        if at < end {
            // Whole blocks but for the first piece, which may begin within one.
            let length = (STEP_BYTES - at % STEP_BYTES).min(end - at);
            let (reply, piece) = Reply::channel();
            shrink.piece = Some(piece);
            shrink.at = at + length;
            run.waiting.push_back(WriteJob::zeroes(volume, at, length, false, Author::Shard, reply));
            self.wake_writes(volume);
        } else {
            shrink.is_logged = true;
            let size = shrink.size;
            let entry = Entry::Resized { volume, size };
            self.append(entry, Vec::new(), false, None, Done::Nothing).map_err(|(error, _)| error)?;
        }
        Ok(())
    }
}
