//! When the faults are over, everybody comes to hold the same: what the writes that are part of the volume make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client_lib::{BlockIndex, Lsn, NodeId, VolumeId};

use super::survivors::{Version, newest};
use crate::propagation::manifest::BlockRun;
use crate::shard::handle::VolumeReport;
use crate::simulation::guest::{BLOCKS, contents};
use crate::simulation::history::{Book, Content};
use crate::simulation::machine::Running;
use crate::simulation::world::World;
use crate::volume::Moment;

/// How long after the last fault it may take: leases that run out, elections, pauses between attempts.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);

type State = BTreeMap<u32, (Lsn, Content)>;

/// What one node says of a volume, and what it holds.
async fn look(shard: crate::shard::handle::ShardHandle, volume: VolumeId) -> Result<(VolumeReport, State), String> {
    let report = shard.report(volume).await.map_err(|error| error.to_string())?;
    let all = vec![BlockRun { start: BlockIndex(0), count: BLOCKS }];
    let blocks = shard.read_versions(volume, Moment::Now, all).await.map_err(|error| error.to_string())?;
    let state = blocks.into_iter().map(|block| {
        let content = block.data.as_deref().and_then(|data| contents(data).first().copied().flatten());
        (block.block.0, (block.lsn, content))
    });
    Ok((report, state.collect()))
}

/// Waits until all nodes hold the same, and compares it with what was written.
pub(crate) fn check(world: &mut World, volume: VolumeId) -> Result<(), String> {
    let end = world.now + PATIENCE;
    loop {
        let logged = world.history.book().logged.len();
        let ids = world.holders(volume);
        let looks: Vec<(NodeId, _)> = ids
            .iter()
            .map(|id| (*id, world.ask(*id, |running: &Running| look(running.shard.clone(), volume))))
            .collect();
        world.run_for(LOOK);
        let found: Vec<_> = looks.iter().map(|(id, slot)| (*id, slot.get().cloned())).collect();
        match settled(&found) {
            // Some write came late: what the nodes told may be from before it.
            Ok(_) if world.history.book().logged.len() > logged && world.now < end => {}
            Ok(states) => {
                let book = world.history.book();
                return states.iter().try_for_each(|(id, state)| compare(&book, volume, *id, state));
            }
            Err(why) if world.now >= end => return Err(format!("volume {volume} does not converge: {why}")),
            Err(_) => {}
        }
    }
}

type Look = Option<Result<(VolumeReport, State), String>>;

fn settled(found: &[(NodeId, Look)]) -> Result<Vec<(NodeId, State)>, String> {
    let mut head = None;
    let mut states = Vec::new();
    for (id, look) in found {
        let (report, state) = match look {
            None => return Err(format!("node {id} does not answer")),
            Some(Err(error)) => return Err(format!("node {id}: {error}")),
            Some(Ok(look)) => look,
        };
        let is_whole = report.watermark == report.head && report.stale_blocks == 0 && report.known == report.head;
        if !is_whole || *head.get_or_insert(report.head) != report.head {
            return Err(format!("node {id}: {report:?}, others are at {head:?}"));
        }
        states.push((*id, state.clone()));
    }
    Ok(states)
}

fn compare(book: &Book, volume: VolumeId, id: NodeId, state: &State) -> Result<(), String> {
    let expected = newest(book, volume);
    let backs: BTreeSet<Lsn> = book
        .logged
        .iter()
        .filter(|logged| logged.volume == volume && logged.back_to.is_some())
        .map(|logged| logged.lsn)
        .collect();
    for block in 0..BLOCKS {
        let found = state.get(&block);
        let content = found.and_then(|(_, content)| *content);
        let wanted: Option<&Version> = expected.get(&block);
        let agrees = wanted.and_then(|version| version.content) == content
            && match (wanted, found) {
                // Zeroes upon zeroes, or upon nothing, need not be remembered.
                // A rollback may give a version to what was the same already.
                (Some(wanted), Some((lsn, _))) => {
                    wanted.lsn == *lsn || wanted.content.is_none() || (backs.contains(lsn) && *lsn > wanted.lsn)
                }
                (Some(wanted), None) => wanted.content.is_none(),
                (None, _) => true,
            };
        if !agrees {
            return Err(format!("node {id} holds {found:?} as block {block} of volume {volume}, which is {wanted:?}"));
        }
    }
    Ok(())
}
