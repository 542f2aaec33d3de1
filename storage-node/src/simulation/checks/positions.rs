//! Positions are in order, in every node and at all times: applied up to what is known, and known only what is durable at
//! its owner.

use client_lib::{Lsn, NodeId, VolumeId};

use super::watermarks;
use crate::shard::handle::{Role, ShardHandle, VolumeReport};
use crate::simulation::history::{Book, History, Seen};
use crate::simulation::machine::LocalTime;
use crate::simulation::world::World;

/// Has every node that serves note its positions.
pub(crate) fn look(world: &World) {
    for (_, vm) in world.guests.vms() {
        for machine in world.machines.values() {
            let (history, id) = (world.history.clone(), machine.id);
            machine.spawn(|running, time| {
                watermarks::look(running, &history, id, vm.volume, &time);
                note(running.shard.clone(), history, id, vm.volume, time)
            });
        }
    }
}

async fn note(shard: ShardHandle, history: History, node: NodeId, volume: VolumeId, time: LocalTime) {
    // Whoever does not know the volume yet has no positions.
    if let Ok(report) = shard.report(volume).await {
        history.book().seen.push(Seen { node, volume, at: time.now(), report });
    }
}

/// Whether the log of `node` shows that everything of `volume` up to `lsn` was durable there: a record behind it that was made durable later
/// says so.
pub(crate) fn vouches(book: &Book, node: NodeId, volume: VolumeId, lsn: Lsn) -> bool {
    let of_it = book.seen.iter().filter(|seen| seen.node == node && seen.volume == volume);
    let durable = of_it.map(|seen| match seen.report.role {
        Role::Owner => seen.report.durable,
        Role::Replica => seen.report.watermark,
    });
    let mut reached = durable.skip_while(|durable| *durable < lsn);
    let Some(mut last) = reached.next() else { return false };
    let rises = reached.filter(|durable| std::mem::replace(&mut last, *durable) < *durable).count();
    // What made it rise for the second time was appended after the first look.
    rises > 1
}

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    for seen in book.seen.iter().filter(|seen| seen.volume == volume) {
        let VolumeReport { watermark, known, head, durable, held, role, .. } = seen.report;
        let is_in_order =
            watermark <= known && held <= known && known <= head && (role == Role::Replica || durable <= head);
        if !is_in_order {
            return Err(format!("positions out of order: {seen:?}"));
        }
        if role == Role::Replica {
            is_durable(book, seen, known)?;
        }
    }
    Ok(())
}

/// What a replica knows was durable at its owner: it cannot be lost there any more.
fn is_durable(book: &Book, seen: &Seen, known: Lsn) -> Result<(), String> {
    let lost = book.logged.iter().find(|logged| {
        logged.volume == seen.volume
            && logged.lsn == known
            && logged.node != seen.node
            && logged.lost.is_some_and(|death| death.at() > seen.at)
            && logged.at < seen.at
    });
    match lost {
        Some(lost) => Err(format!("a replica knew of a write that its owner lost: {seen:?}, {lost:?}")),
        None => Ok(()),
    }
}
