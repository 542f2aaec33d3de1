//! A picture of where a volume's blocks are, as one node has them.

use client_lib::wire::admin::ResidencyMap;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, VolumeId};

use super::NodeAdmin;
use super::names::volume_named;
use crate::ownership::gate::Phase;
use crate::peer::message::AdminForward;
use crate::serve::volume::store_failure;

/// Parts of a picture, at most, and if it is not said how many.
const PARTS_MAX: u32 = 4096;
/// Parts that are asked of the shard at once.
const PARTS_STEP: u32 = 64;

impl NodeAdmin {
    /// What of a volume is at `node`, by default its owner, in at most so many parts.
    pub(super) async fn residency_of(
        &self,
        name: &str,
        node: Option<&str>,
        parts: Option<u32>,
    ) -> Result<ResidencyMap, Error> {
        let parts = parts.unwrap_or(PARTS_MAX);
        if !(1..=PARTS_MAX).contains(&parts) {
            let what = format!("a residency map has 1 to {PARTS_MAX} parts, not {parts}");
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        let state = self.meta.state();
        let volume = volume_named(&state, name)?;
        let owner = state.name_of(volume.owner);
        let forward = AdminForward::Residency { volume: volume.id, parts };
        self.at_node(Some(node.unwrap_or(&owner)), forward, || self.residency_here(volume.id, parts)).await
    }

    pub(super) async fn residency_here(&self, id: VolumeId, parts: u32) -> Result<ResidencyMap, Error> {
        let missing = || {
            let what = format!("node {} holds nothing of this volume: ask its owner or a replica", self.this.name);
            Error::new(ErrorKind::NotFound, what)
        };
        let volume = self.volumes.get(id).ok_or_else(missing)?;
        let size_bytes = volume.shard.report(id).await.map_err(store_failure)?.size.bytes();
        let (block_bytes, parts) = (u64::from(BLOCK_SIZE), u64::from(parts));
        let blocks = size_bytes.div_ceil(block_bytes);
        let part_blocks = blocks.div_ceil(parts).max(1);
        let mut map = ResidencyMap {
            volume: volume.name.to_string(),
            node: self.this.name.to_string(),
            owner: volume.gate.view().phase == Phase::Owner,
            size_bytes,
            part_bytes: part_blocks * block_bytes,
            exact: true,
            // What is here then belongs to a history that was cut off.
            cut_off: volume.standing.tail().is_some(),
            ..ResidencyMap::default()
        };
        let mut at = 0;
        while at < blocks {
            let found =
                volume.shard.resident_parts(id, at, part_blocks as u32, PARTS_STEP).await.map_err(store_failure)?;
            if found.is_empty() {
                break;
            }
            at += found.len() as u64 * part_blocks;
            for part in found {
                let (local, stale) = match map.cut_off {
                    true => (0, part.local + part.stale),
                    false => (part.local, part.stale),
                };
                map.local.push(local * block_bytes);
                map.stale.push(stale * block_bytes);
                map.exact &= !part.is_guess;
            }
        }
        map.local_bytes = map.local.iter().sum();
        map.stale_bytes = map.stale.iter().sum();
        Ok(map)
    }
}
