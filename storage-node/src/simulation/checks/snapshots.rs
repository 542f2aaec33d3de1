//! A snapshot holds what the volume held at its position, at every node that says that it has all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{BlockIndex, Lsn, SnapshotId, VolumeId};

use super::survivors::versions;
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::ShardHandle;
use crate::simulation::guest::{BLOCKS, contents};
use crate::simulation::history::{Book, Content};
use crate::simulation::world::World;
use crate::volume::Moment;

/// How long all nodes together may take to tell.
const PATIENCE: Duration = Duration::from_secs(20);

type Found = Vec<(SnapshotId, Lsn, BTreeMap<u32, Content>)>;

async fn look(shard: ShardHandle, volume: VolumeId) -> Result<Found, String> {
    let mut found = Vec::new();
    let text = |error: crate::shard::handle::StoreError| error.to_string();
    for snapshot in shard.snapshots(volume).await.map_err(text)?.iter().filter(|snapshot| snapshot.stale_blocks == 0) {
        let all = vec![BlockRun { start: BlockIndex(0), count: BLOCKS }];
        let moment = Moment::Snapshot(snapshot.snapshot);
        let blocks = shard.read_versions(volume, moment, all).await.map_err(text)?;
        let content = |data: &[u8]| contents(data).first().copied().flatten();
        let held = blocks.iter().map(|block| (block.block.0, block.data.as_deref().and_then(content)));
        found.push((snapshot.snapshot, snapshot.lsn, held.collect()));
    }
    Ok(found)
}

/// Compares the snapshots of every node; returns how many there were.
pub(crate) fn check(world: &mut World, volume: VolumeId) -> Result<usize, String> {
    let mut compared = 0;
    for id in world.holders(volume) {
        let found = world.answer(id, PATIENCE, |running| look(running.shard.clone(), volume));
        let found = found.ok_or_else(|| format!("node {id} does not tell of its snapshots"))?;
        let book = world.history.book();
        for (snapshot, lsn, held) in found.map_err(|error| format!("node {id}: {error}"))? {
            compare(&book, volume, lsn, &held).map_err(|why| format!("node {id}, snapshot {snapshot}: {why}"))?;
            compared += 1;
        }
    }
    Ok(compared)
}

fn compare(book: &Book, volume: VolumeId, lsn: Lsn, held: &BTreeMap<u32, Content>) -> Result<(), String> {
    for (block, versions) in versions(book, volume) {
        let wanted = versions.iter().rev().find(|version| version.lsn <= lsn && version.gone.is_none());
        let (wanted, found) = (wanted.and_then(|version| version.content), held.get(&block).copied().flatten());
        if wanted != found {
            return Err(format!("block {block} is {found:?} and was {wanted:?} at {lsn}"));
        }
    }
    Ok(())
}
