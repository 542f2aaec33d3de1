//! Owners that have ceased to act for a volume while they live: their store has failed, and their lease goes on.
//!
//! What makes it true is that the process which says so answers nothing more for the volume in that epoch, from before it said so. It
//! says its number, so that what a process said that has ended counts for nothing, and with the start of the next one all of it is
//! over: that one may act again (docs/ownership.md).

use client_lib::{Epoch, NodeId, VolumeId};

use super::MetaState;
use crate::command::{Refusal, Response, STEP_DOWN_MAX};

impl MetaState {
    /// Whether the volume's owner has ceased to act for it, so that it may be taken over though the owner's lease is not out.
    #[must_use]
    pub fn has_stepped_down(&self, volume: VolumeId) -> bool {
        self.stepped_down.contains_key(&volume)
    }

    /// The volumes whose owners have ceased to act for them, and in which epochs.
    pub(crate) fn stepped_down(&self) -> impl Iterator<Item = (VolumeId, Epoch)> {
        self.stepped_down.iter().map(|(volume, epoch)| (*volume, *epoch))
    }

    /// Whether nothing is in it that programs of format 10 would drop.
    pub(crate) fn has_only_what_format_10_has(&self) -> bool {
        self.stepped_down.is_empty() && self.rescues.is_empty()
    }

    /// May be said twice, and late: what the node does not own any more in the epoch that it named is somebody else's to act for.
    pub(super) fn step_down(
        &mut self,
        node: NodeId,
        incarnation: u64,
        volumes: &[(VolumeId, Epoch)],
    ) -> Result<Response, Refusal> {
        if volumes.len() > STEP_DOWN_MAX {
            return Err(Refusal::TooManyToStepDownFor(volumes.len()));
        }
        self.require_incarnation(node, incarnation)?;
        for (id, epoch) in volumes {
            let is_owned = self.volumes.get(id).is_some_and(|volume| volume.owner == node && volume.epoch == *epoch);
            if is_owned && !self.stepped_down.contains_key(id) {
                self.stepped_down.insert(*id, *epoch);
            }
        }
        Ok(Response::SteppedDown)
    }

    /// The epoch has ended, or the volume is gone.
    pub(super) fn forget_step_down(&mut self, volume: VolumeId) {
        self.stepped_down.remove(&volume);
    }

    /// Another process of the node begins, which may act for what the node owns.
    pub(super) fn forget_step_downs_of(&mut self, node: NodeId) {
        let volumes = &self.volumes;
        self.stepped_down.retain(|id, _| volumes.get(id).is_some_and(|volume| volume.owner != node));
    }
}
