//! Bytes that a disk altered: no guest sees them, a read fails for nothing else, and what any holder still has is repaired from there. What
//! nobody has is an error for that block alone, until it is written again.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::{BLOCK_SIZE, ErrorKind, NodeId, ReadPart, VolumeId};
use nbd_frontend::export::{ExportDirectory, Session};

use super::snapshots::read;
use super::survivors::{newest, versions};
use crate::serve::admin::Admin;
use crate::simulation::guest::{self, BLOCKS, contents};
use crate::simulation::history::{Book, Content, Outcome, What};
use crate::simulation::machine::Running;
use crate::simulation::world::{World, text};
use crate::volume::Moment;

/// How long the repairs may take when nothing else is wrong: they pause longer and longer while nobody has a block.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_secs(2);

/// Every read that failed for damage had a block that was altered somewhere, or that was lost with a store that had failed.
pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let all = versions(book, volume);
    for operation in book.operations.iter().filter(|operation| operation.volume == volume) {
        let Outcome::Failed(at, ErrorKind::Corrupt) = operation.outcome else { continue };
        let What::Read { start, count, .. } = operation.what else {
            return Err(format!("{operation:?} failed for damage, and reads nothing"));
        };
        let versions = || (start..start + count).flat_map(|block| all.get(&block).into_iter().flatten());
        let mut flips = versions().filter_map(|version| book.flips.get(&version.content?));
        // Told of by an owner that could not make it durable, and restarted before anybody had it.
        let is_rescued = book.rescues.keys().any(|(rescued, _)| *rescued == volume);
        let is_lost = is_rescued && versions().any(|version| version.gone.is_some_and(|gone| gone <= at));
        if !is_lost && !flips.any(|flip| flip.at <= at) {
            return Err(format!("{operation:?} failed for damage that nobody did"));
        }
    }
    Ok(())
}

/// What a node holds by itself of each block, and what a guest there reads.
#[derive(Clone, Debug, Default)]
struct Look {
    held: Vec<Option<Content>>,
    read: Vec<Result<Content, (ErrorKind, String)>>,
}

async fn look(
    running: (crate::shard::handle::ShardHandle, std::sync::Arc<dyn Session>),
    volume: VolumeId,
    blocks: u32,
) -> Look {
    let (shard, session) = running;
    let mut found = Look::default();
    for block in 0..blocks {
        found.held.push(read(&shard, volume, Moment::Now, block).await.ok().and_then(Result::ok));
        let answer = session.read(u64::from(block) * u64::from(BLOCK_SIZE), BLOCK_SIZE).await;
        let content = answer.map(|parts| contents(&ReadPart::joined(parts)).first().copied().flatten());
        found.read.push(content.map_err(|error| (error.kind(), error.to_string())));
    }
    found
}

/// Waits until every block is repaired that any node holds, and writes the others again. Returns how many these were.
pub(crate) fn settle(world: &mut World, name: &str, volume: VolumeId) -> Result<usize, String> {
    let end = world.now + PATIENCE;
    let lost = loop {
        let mut looks: Vec<(NodeId, Look)> = Vec::new();
        // A size that was asked for before everything got all its blocks again may have come into force after that.
        let size = world.newest(volume).map_or(0, |volume| volume.size.bytes() / u64::from(BLOCK_SIZE));
        let blocks = u32::try_from(size).unwrap_or(u32::MAX).min(BLOCKS);
        for id in world.holders(volume) {
            let export = name.to_owned();
            let found = world.answer(id, PATIENCE, |running: &Running| {
                let (exports, shard) = (running.parts.exports.clone(), running.shard.clone());
                async move {
                    let session = exports.open(&export).await.map_err(text)?;
                    Ok::<_, String>(look((shard, session), volume, blocks).await)
                }
            });
            match found {
                Some(Ok(found)) => looks.push((id, found)),
                Some(Err(error)) => return Err(format!("node {id} does not serve {name}: {error}")),
                None => return Err(format!("node {id} does not tell what it has of {name}")),
            }
        }
        let judged = judge(&world.history.book(), volume, blocks, &looks);
        match judged {
            Ok(lost) => break lost,
            Err(why) if world.now >= end => return Err(why),
            Err(_) => world.run_for(LOOK),
        }
    };
    let owner = world.owner(name).ok_or("nobody owns it")?;
    for block in &lost {
        guest::rewrite(world, owner, name, *block)
            .map_err(|why| format!("block {block} cannot be written again: {why}"))?;
    }
    Ok(lost.len() + drop_snapshots(world, name, volume)?)
}

/// Deletes the snapshots of which a block is lost everywhere: what is sent of a volume would wait for that block for ever. Returns how many.
fn drop_snapshots(world: &mut World, name: &str, volume: VolumeId) -> Result<usize, String> {
    let listed = world.newest(volume).map_or(Vec::new(), |volume| volume.snapshots);
    let mut dropped = 0;
    for snapshot in listed {
        let Some(made) = snapshot.made else { continue };
        let altered: Vec<(u32, u32)> = {
            let book = world.history.book();
            let all = versions(&book, volume).into_iter();
            let shown = all.filter_map(|(block, versions)| {
                let version =
                    versions.into_iter().rfind(|version| version.lsn <= made.lsn && version.gone.is_none())?;
                Some((block, version.content?))
            });
            shown.filter(|(_, content)| book.flips.contains_key(content)).collect()
        };
        let mut missing: BTreeSet<u32> = altered.iter().map(|(block, _)| *block).collect();
        for id in world.holders(volume) {
            let blocks: Vec<u32> = missing.iter().copied().collect();
            let found = world.answer(id, PATIENCE, |running: &Running| {
                let shard = running.shard.clone();
                async move {
                    let mut found = BTreeSet::new();
                    for block in blocks {
                        if let Ok(Ok(_)) = read(&shard, volume, Moment::Snapshot(snapshot.id), block).await {
                            found.insert(block);
                        }
                    }
                    found
                }
            });
            missing.retain(|block| found.as_ref().is_none_or(|found| !found.contains(block)));
        }
        if missing.is_empty() {
            continue;
        }
        let owner = world.owner(name).ok_or("nobody owns it")?;
        let (export, snapshot_name) = (name.to_owned(), snapshot.name.to_string());
        world.history.tell(world.now, format!("nobody has {missing:?} of {name}@{snapshot_name}: it is deleted"));
        let deleted = world.answer(owner, PATIENCE, |running: &Running| {
            let admin = running.parts.admin.clone();
            async move { admin.delete_snapshot(&export, &snapshot_name).await.map_err(text) }
        });
        deleted.unwrap_or_else(|| Err("no answer".to_owned()))?;
        dropped += 1;
    }
    Ok(dropped)
}

/// The blocks that are lost everywhere, if everything else can be read.
fn judge(book: &Book, volume: VolumeId, blocks: u32, looks: &[(NodeId, Look)]) -> Result<BTreeSet<u32>, String> {
    let newest = newest(book, volume);
    let mut lost = BTreeSet::new();
    for block in 0..blocks {
        let wanted = newest.get(&block).and_then(|version| version.content);
        let is_held = looks.iter().any(|(_, look)| look.held[block as usize] == Some(wanted));
        for (id, look) in looks {
            match &look.read[block as usize] {
                Ok(content) if *content == wanted => {}
                Err((ErrorKind::Corrupt, _))
                    if !is_held && wanted.is_some_and(|content| book.flips.contains_key(&content)) =>
                {
                    lost.insert(block);
                }
                other => {
                    return Err(format!(
                        "block {block} of volume {volume} at node {id} is {other:?}, not {wanted:?}; somebody has it: {is_held}"
                    ));
                }
            }
        }
    }
    Ok(lost)
}
