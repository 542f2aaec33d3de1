//! Where a volume's blocks are that its owner has yet to fetch: which nodes must stay up until then.
//!
//! The owner before is a holder of them only where it had fetched them itself: after two instant moves in a row the first owner may have
//! all of it still, and the second nothing. So what counts is what each node tells.

use std::collections::BTreeMap;

use client_lib::wire::admin::Elsewhere;
use client_lib::{BLOCK_SIZE, Lsn, NodeId};
use consensus::state::{MetaState, Volume};

use crate::propagation::progress::Progress;

/// Who has the `lacking` blocks of the volume that the owner lacks; none if it lacks none.
pub(super) fn elsewhere(
    state: &MetaState,
    volume: &Volume,
    lacking: u64,
    progress: &BTreeMap<NodeId, Progress>,
) -> Option<Elsewhere> {
    if lacking == 0 {
        return None;
    }
    let others = volume.source.into_iter().filter(|source| !volume.replicas.contains(source));
    // One that has told that it has nothing has none of them.
    let may_have = |node: &NodeId| progress.get(node).is_none_or(|it| !it.reachable || it.position.known > Lsn::ZERO);
    let nodes = volume.replicas.iter().copied().chain(others).filter(may_have);
    let (all, some): (Vec<NodeId>, Vec<NodeId>) =
        nodes.partition(|node| progress.get(node).is_some_and(|progress| has_all(progress, volume.final_lsn)));
    let named = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| state.name_of(node)).collect();
    Some(Elsewhere { bytes: lacking * u64::from(BLOCK_SIZE), all_at: named(all), some_at: named(some) })
}

/// Whether a replica is in reach and holds all that was written up to `end`, where the present ownership began: what was written later is at the owner.
fn has_all(progress: &Progress, end: Lsn) -> bool {
    let follows = progress.tail.is_none() && progress.rejoining.is_none();
    progress.reachable && follows && progress.position.watermark >= end
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;
    use crate::peer::message::ReplicaPosition;

    fn progress(is_in_reach: bool, watermark: Lsn) -> Progress {
        let mut progress = Progress::default();
        progress.heard(ReplicaPosition { watermark, ..ReplicaPosition::default() });
        if !is_in_reach {
            progress.failed("it has said nothing for 26 s".to_owned());
        }
        progress
    }

    #[test]
    fn a_node_has_everything_when_it_has_told_so_and_is_in_reach() {
        let end = Lsn::new(Epoch(2), 7);
        assert!(has_all(&progress(true, end), end));
        assert!(!has_all(&progress(true, Lsn::new(Epoch(2), 6)), end), "the owner before, which had fetched nothing");
        assert!(!has_all(&progress(false, end), end), "it may be gone");
    }
}
