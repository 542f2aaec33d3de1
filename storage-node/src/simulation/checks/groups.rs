//! Groups: as long as nothing was taken over, both volumes have the same owner in the same epoch, in every state that anybody has applied;
//! and a snapshot of both is one cut: whatever it has was asked for before anything that it lacks was done.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{Lsn, SnapshotId, VolumeId};
use consensus::Volume;

use crate::simulation::history::{Book, Content, What};
use crate::simulation::world::World;

/// Compares the snapshots of `volumes`, which are a group; returns how many there were.
pub(crate) fn check(world: &World, volumes: [VolumeId; 2]) -> Result<usize, String> {
    let book = world.history.book();
    if let Some(apart) = &book.apart {
        return Err(apart.clone());
    }
    let found = volumes.map(|volume| world.newest(volume));
    let [Some(first), Some(second)] = &found else { return Err("nobody tells of the group".to_owned()) };
    let ends = [made(first), made(second)];
    let mut compared = 0;
    for (snapshot, first_end) in &ends[0] {
        let Some(second_end) = ends[1].get(snapshot) else { continue };
        let halves = [(volumes[0], *first_end), (volumes[1], *second_end)];
        for [(one, one_end), (other, other_end)] in [halves, [halves[1], halves[0]]] {
            let (lacking, having) =
                (first_done_beyond(&book, one, one_end), last_asked_within(&book, other, other_end));
            if let (Some(done), Some(asked)) = (lacking, having)
                && done < asked
            {
                return Err(format!(
                    "snapshot {snapshot} lacks a write to {one} that was done at {done:?}, and has one to {other} that was asked for at {asked:?}"
                ));
            }
        }
        compared += 1;
    }
    Ok(compared)
}

/// The snapshots of a group that a volume has, and where they end.
fn made(volume: &Volume) -> BTreeMap<SnapshotId, Lsn> {
    let of_group = volume.snapshots.iter().filter(|snapshot| snapshot.cut.is_some());
    of_group.filter_map(|snapshot| Some((snapshot.id, snapshot.made?.lsn))).collect()
}

/// Where the writes of a volume are in its order, by what they hold. No two hold the same but zeroes, which are left out.
fn positions(book: &Book, volume: VolumeId) -> BTreeMap<&[Content], Lsn> {
    let logged = book.logged.iter().filter(|logged| logged.volume == volume && logged.lost.is_none());
    logged.map(|logged| (logged.contents.as_slice(), logged.lsn)).collect()
}

fn writes(book: &Book, volume: VolumeId) -> impl Iterator<Item = (&crate::simulation::history::Operation, Lsn)> {
    let positions = positions(book, volume);
    book.operations.iter().filter(move |operation| operation.volume == volume).filter_map(move |operation| {
        match &operation.what {
            What::Write { contents, .. } if contents.iter().all(Option::is_some) => {
                Some((operation, *positions.get(contents.as_slice())?))
            }
            _ => None,
        }
    })
}

/// When the first write was done that lies beyond `end`, and is a part of the volume.
fn first_done_beyond(book: &Book, volume: VolumeId, end: Lsn) -> Option<Duration> {
    let is_cut_off =
        |lsn: Lsn| book.cuts.values().any(|cut| cut.volume == volume && lsn.epoch <= cut.epoch && lsn > cut.end);
    let beyond = writes(book, volume).filter(|(_, lsn)| *lsn > end && !is_cut_off(*lsn));
    beyond.filter_map(|(operation, _)| operation.done()).min()
}

/// When the last write was asked for that lies up to `end`.
fn last_asked_within(book: &Book, volume: VolumeId, end: Lsn) -> Option<Duration> {
    writes(book, volume).filter(|(_, lsn)| *lsn <= end).map(|(operation, _)| operation.asked).max()
}
