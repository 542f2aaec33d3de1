//! Blocks that need not be sent because the receiver has their content: what it offers, and what of that is the same.
//!
//! Whoever lacks a version knows its checksum. Where it has a block there with the same one, it offers the hash of that; whoever has the version
//! compares, and names it instead of sending it. The checksum only says where to look: 32 bits of it are no proof, 128 bits of
//! BLAKE3 are. A hash is of the bytes as they were read just now, and what is taken is compared with its hash, and with its checksum, again.

use std::collections::BTreeMap;

use client_lib::{BLOCK_SIZE, BlockIndex, Lsn};

use super::message::Alike;
use crate::propagation::manifest::VersionedBlock;

/// What is compared of a hash, in bytes: half of it, which nobody finds a second block for.
const HASH_BYTES: usize = 16;

/// From this rate of a link on, in bytes per second, nothing is offered: the receiver reads and hashes what it offers twice, which is slower then
/// than to be sent it.
const LINK_RATE_MAX: f64 = 250e6;

/// Whether it pays to offer what there is over a link of so many bytes per second.
#[must_use]
pub fn pays(link: f64) -> bool {
    link < LINK_RATE_MAX
}

impl Alike {
    /// The version that `block` is named by, with the hash of its data. `None` of zeroes: of them a mark is sent.
    #[must_use]
    pub fn of(block: &VersionedBlock) -> Option<Alike> {
        let mut hash = [0; HASH_BYTES];
        let data = block.data.as_ref().filter(|data| data.len() == BLOCK_SIZE as usize)?;
        hash.copy_from_slice(&blake3::hash(data).as_bytes()[..HASH_BYTES]);
        Some(Alike { block: block.block, lsn: block.lsn, hash })
    }
}

/// What `blocks` are as offers.
#[must_use]
pub fn offers_of(blocks: &[VersionedBlock]) -> Vec<Alike> {
    blocks.iter().filter_map(Alike::of).collect()
}

/// Takes from `blocks` those that are what was offered for them; returns these.
pub fn take_alike(blocks: &mut Vec<VersionedBlock>, offers: &[Alike]) -> Vec<Alike> {
    if offers.is_empty() {
        return Vec::new();
    }
    let offered: BTreeMap<(BlockIndex, Lsn), &Alike> =
        offers.iter().map(|offer| ((offer.block, offer.lsn), offer)).collect();
    let mut alike = Vec::new();
    blocks.retain(|block| {
        let offer = offered.get(&(block.block, block.lsn)).copied();
        let same = offer.filter(|offer| Alike::of(block).as_ref() == Some(*offer));
        alike.extend(same.copied());
        same.is_none()
    });
    alike
}

/// Of what is here, those blocks that `alike` names.
#[must_use]
pub fn named(here: Vec<VersionedBlock>, alike: &[Alike]) -> Vec<VersionedBlock> {
    let named: std::collections::BTreeSet<&Alike> = alike.iter().collect();
    here.into_iter().filter(|block| Alike::of(block).is_some_and(|found| named.contains(&found))).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use client_lib::Epoch;

    use super::*;

    fn block(number: u32, sequence: u64, fill: u8) -> VersionedBlock {
        let data = Some(Bytes::from(vec![fill; BLOCK_SIZE as usize]));
        VersionedBlock { block: BlockIndex(number), lsn: Lsn::new(Epoch(1), sequence), data }
    }

    #[test]
    fn only_what_is_the_same_under_the_same_name_is_not_sent() {
        let here = [block(1, 5, 1), block(2, 5, 2), block(3, 5, 3), block(4, 4, 4)];
        let mut blocks = vec![block(1, 5, 1), block(2, 5, 9), block(3, 6, 3), block(4, 4, 4), block(7, 5, 7)];
        let offers = offers_of(&here);
        let alike = take_alike(&mut blocks, &offers);
        let numbers = |blocks: &[VersionedBlock]| blocks.iter().map(|block| block.block.0).collect::<Vec<u32>>();
        assert_eq!(alike.iter().map(|alike| alike.block.0).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(numbers(&blocks), [2, 3, 7], "other content, another version, not offered");
        assert_eq!(numbers(&named(here.to_vec(), &alike)), [1, 4]);
        // What was here has changed since it was offered.
        assert_eq!(numbers(&named(vec![block(1, 5, 8), block(4, 4, 4)], &alike)), [4]);
        assert!(take_alike(&mut blocks, &[]).is_empty());
        let zeroes = VersionedBlock { data: None, ..block(1, 5, 0) };
        assert!(offers_of(&[zeroes]).is_empty());
    }
}
