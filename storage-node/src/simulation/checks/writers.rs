//! One writer: under each epoch one node logs, the one that metadata gave it to, and once an epoch is known to be over
//! nothing is asked for and answered under it.

use std::collections::BTreeMap;

use client_lib::{Epoch, NodeId, VolumeId};

use crate::simulation::history::{Book, Content, What};

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let owner = |epoch: Epoch| book.ownerships.get(&(volume, epoch));
    let mut writers: BTreeMap<Epoch, NodeId> = BTreeMap::new();
    let mut by_content: BTreeMap<Content, Epoch> = BTreeMap::new();
    for logged in book.logged.iter().filter(|logged| logged.volume == volume) {
        let epoch = logged.lsn.epoch;
        let writer = *writers.entry(epoch).or_insert(logged.node);
        if writer != logged.node {
            return Err(format!("nodes {writer} and {} both wrote under epoch {epoch}: {logged:?}", logged.node));
        }
        if let Some((owner, _)) = owner(epoch)
            && *owner != logged.node
        {
            return Err(format!("node {} wrote under epoch {epoch}, which is node {owner}'s: {logged:?}", logged.node));
        }
        by_content.extend(logged.contents.iter().filter(|content| content.is_some()).map(|content| (*content, epoch)));
    }
    for operation in book.operations.iter().filter(|operation| operation.volume == volume) {
        let (Some(done), What::Write { contents, .. }) = (operation.done(), &operation.what) else { continue };
        let Some(epoch) = contents.iter().find_map(|content| by_content.get(content)) else { continue };
        if let Some(end) = book.ended(volume, *epoch)
            && operation.asked > end
        {
            return Err(format!("{operation:?} was acked at {done:?} under epoch {epoch}, which ended at {end:?}"));
        }
    }
    Ok(())
}
