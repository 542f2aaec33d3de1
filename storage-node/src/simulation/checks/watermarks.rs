//! Watermarks are in order: what an owner counts a replica with is no more than that replica holds from then on, durably, whatever happens to it; and
//! no more than the owner has made durable itself.

use std::time::Duration;

use client_lib::{NodeId, VolumeId};

use crate::shard::handle::Role;
use crate::simulation::history::{Book, Counted, History};
use crate::simulation::machine::{LocalTime, Running};

/// Notes what the node of `running` counts replicas of `volume` with, if it owns it.
pub(crate) fn look(running: &Running, history: &History, owner: NodeId, volume: VolumeId, time: &LocalTime) {
    let Some((epoch, told)) = running.parts.exports.flushes(volume).map(|flushes| flushes.told()) else { return };
    let at = time.now();
    let counted = told.into_iter().map(|(replica, held)| Counted { volume, epoch, owner, replica, held, at });
    history.book().counted.extend(counted);
}

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let of_volume = || book.seen.iter().filter(|seen| seen.volume == volume);
    for counted in book.counted.iter().filter(|counted| counted.volume == volume) {
        // Once it is removed it holds nothing, and is counted no more.
        let removals = book.removals.get(&(volume, counted.replica)).into_iter().flatten();
        let until = removals.copied().find(|removed| *removed > counted.at).unwrap_or(Duration::MAX);
        let later = of_volume().filter(|seen| seen.node == counted.replica && seen.at > counted.at && seen.at < until);
        // In a later epoch it may have been cut off.
        let mut replica = later.filter(|seen| seen.report.epoch <= counted.epoch && seen.report.role == Role::Replica);
        if let Some(seen) = replica.find(|seen| seen.report.watermark < counted.held) {
            let owners: Vec<_> = book.ownerships.iter().filter(|((id, _), _)| *id == volume).collect();
            return Err(format!("{counted:?}, but then {seen:?}; owners as they were first seen: {owners:?}"));
        }
        let later = of_volume().filter(|seen| seen.node == counted.owner && seen.at > counted.at);
        let mut owner = later.filter(|seen| seen.report.epoch == counted.epoch && seen.report.role == Role::Owner);
        if let Some(seen) = owner.find(|seen| seen.report.durable < counted.held) {
            return Err(format!("{counted:?}, of which the owner has less: {seen:?}"));
        }
    }
    Ok(())
}
