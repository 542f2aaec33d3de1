//! Sizes: what lies beyond a smaller end is dropped when that size is in force, whatever size the volume gets later.

use client_lib::VolumeId;

use super::survivors::{Version, versions};
use crate::simulation::guest::BLOCKS;
use crate::simulation::history::{Book, What};

/// Looks for blocks that were kept; returns how many sizes there were.
pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<usize, String> {
    let all = versions(book, volume);
    let mut sizes = 0;
    for resize in book.operations.iter().filter(|operation| operation.volume == volume) {
        let (What::Resize { blocks }, Some(done)) = (&resize.what, resize.done()) else { continue };
        sizes += 1;
        for block in *blocks..BLOCKS {
            let is_there = |version: &&Version| version.logged <= done && version.gone.is_none_or(|gone| gone > done);
            let newest = all.get(&block).and_then(|versions| versions.iter().rfind(is_there));
            // What was written after somebody else had made it larger again is no business of this one.
            if let Some(kept) = newest.filter(|newest| newest.content.is_some() && newest.logged < resize.asked) {
                return Err(format!("{resize:?} has not dropped block {block}: {kept:?}"));
            }
        }
    }
    Ok(sizes)
}
