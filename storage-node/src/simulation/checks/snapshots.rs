//! A snapshot holds what the volume held at its position, at every node that says that it has all of it; but for blocks that
//! were altered there and that nobody could repair yet.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{BlockIndex, Lsn, NodeId, SnapshotId, VolumeId};

use super::survivors::versions;
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::{ShardHandle, StoreError};
use crate::simulation::guest::{BLOCKS, contents};
use crate::simulation::history::{Book, Content};
use crate::simulation::world::World;
use crate::volume::Moment;

/// How long all nodes together may take to tell.
const PATIENCE: Duration = Duration::from_secs(20);

/// A block as it was found; `Err` when it is damaged.
type Held = Result<Content, String>;

type Found = Vec<(SnapshotId, Lsn, BTreeMap<u32, Held>)>;

/// What `block` is at `moment`, and since when.
pub(crate) async fn read(shard: &ShardHandle, volume: VolumeId, moment: Moment, block: u32) -> Result<Held, String> {
    let run = vec![BlockRun { start: BlockIndex(block), count: 1 }];
    match shard.read_versions(volume, moment, run).await {
        Ok(blocks) => {
            let data = blocks.first().and_then(|block| block.data.as_deref());
            Ok(Ok(data.and_then(|data| contents(data).first().copied().flatten())))
        }
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Damaged { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error.to_string()),
    }
}

async fn look(shard: ShardHandle, volume: VolumeId) -> Result<Found, String> {
    let mut found = Vec::new();
    let text = |error: StoreError| error.to_string();
    for snapshot in shard.snapshots(volume).await.map_err(text)?.iter().filter(|snapshot| snapshot.stale_blocks == 0) {
        let mut held = BTreeMap::new();
        for block in 0..BLOCKS {
            held.insert(block, read(&shard, volume, Moment::Snapshot(snapshot.snapshot), block).await?);
        }
        found.push((snapshot.snapshot, snapshot.lsn, held));
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
            compare(&book, volume, id, lsn, &held).map_err(|why| format!("node {id}, snapshot {snapshot}: {why}"))?;
            compared += 1;
        }
    }
    Ok(compared)
}

fn compare(book: &Book, volume: VolumeId, id: NodeId, lsn: Lsn, held: &BTreeMap<u32, Held>) -> Result<(), String> {
    for (block, versions) in versions(book, volume) {
        let wanted = versions.iter().rev().find(|version| version.lsn <= lsn && version.gone.is_none());
        let wanted = wanted.and_then(|version| version.content);
        let was_altered =
            || wanted.and_then(|content| book.flips.get(&content)).is_some_and(|flip| flip.nodes.contains(&id));
        match held.get(&block) {
            Some(Err(_)) if was_altered() => {}
            Some(Err(why)) => return Err(format!("block {block}, which nobody altered: {why}")),
            found => {
                let found = found.cloned().and_then(Result::ok).flatten();
                if wanted != found {
                    return Err(format!("block {block} is {found:?} and was {wanted:?} at {lsn}"));
                }
            }
        }
    }
    Ok(())
}
