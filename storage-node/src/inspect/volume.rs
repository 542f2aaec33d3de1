//! What the last checkpoint says of a volume: its record, layers, change history and the segments that it needs.

use std::collections::BTreeMap;

use client_lib::{BLOCK_SIZE, VolumeId};
use roaring::RoaringBitmap;
use serde::Serialize;

use super::{InspectError, Shard};
use crate::map::cache::decode_set;
use crate::map::store::StoredVolume;
use crate::shard::handle::Role;
use crate::volume::{Volume, record};

/// The volumes of a shard.
#[derive(Debug, Serialize)]
pub struct VolumesReport {
    /// The shard.
    pub shard: String,
    /// Each volume, by id.
    pub volumes: Vec<VolumeReport>,
    /// What cannot be as it is.
    pub damage: Vec<String>,
}

/// A volume.
#[derive(Debug, Serialize)]
pub struct VolumeReport {
    /// Its id.
    pub volume: VolumeId,
    /// Pages of its base map.
    pub pages: u64,
    /// Bytes of blocks that it has in the log.
    pub mapped_bytes: u64,
    /// Live blocks by segment.
    pub segments: Vec<SegmentUse>,
    /// What its record, layers and history say; `None` when they are damaged.
    #[serde(flatten)]
    pub state: Option<VolumeState>,
}

/// What a volume needs of a segment.
#[derive(Debug, Serialize)]
pub struct SegmentUse {
    /// The segment.
    pub segment: u32,
    /// Live blocks of the volume in it.
    pub live_blocks: u32,
}

/// The state of a volume at the last checkpoint. LSNs are `EPOCH.SEQUENCE`.
#[derive(Debug, Serialize)]
pub struct VolumeState {
    /// Its size.
    pub size_bytes: u64,
    /// `owner` or `replica`.
    pub role: &'static str,
    /// The epoch.
    pub epoch: u64,
    /// The newest write known of.
    pub known: String,
    /// Up to where it is complete here.
    pub watermark: String,
    /// Of which position the base is, but for what the layers have, when the node comes back to the volume after a takeover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejoins_from: Option<String>,
    /// The end of the sealed delta, if one is sealed.
    pub sealed_to: Option<String>,
    /// Blocks whose newest version is elsewhere.
    pub stale_blocks: u64,
    /// The layers, the oldest first.
    pub layers: Vec<LayerReport>,
    /// The oldest position that the change history can answer for.
    pub history_start: String,
    /// The intervals of the change history, the oldest first.
    pub history: Vec<IntervalReport>,
}

/// A layer.
#[derive(Debug, Serialize)]
pub struct LayerReport {
    /// `folding`, `sealed` or `open`.
    pub layer: &'static str,
    /// Its id in the store.
    pub id: u64,
    /// Blocks that it has a version of.
    pub blocks: u64,
    /// Those of them whose data is elsewhere.
    pub stale_blocks: u64,
}

/// An interval of the change history.
#[derive(Debug, Serialize)]
pub struct IntervalReport {
    /// After this position.
    pub from: String,
    /// Up to and with this.
    pub to: String,
    /// Blocks that changed.
    pub blocks: u64,
}

/// Looks at the volumes of `shard`, or at one of them.
///
/// # Errors
/// When the map cannot be read. A volume that is not there is none.
pub fn report(shard: &Shard, only: Option<VolumeId>) -> Result<VolumesReport, InspectError> {
    let mut report = VolumesReport { shard: shard.name.clone(), volumes: Vec::new(), damage: shard.damage.clone() };
    for (volume, stored) in shard.volumes()? {
        if only.is_none_or(|only| only == volume) {
            report.volumes.push(volume_report(volume, &stored, &mut report.damage));
        }
    }
    Ok(report)
}

fn volume_report(volume: VolumeId, stored: &StoredVolume, damage: &mut Vec<String>) -> VolumeReport {
    let state = match record::restore(volume, stored) {
        Ok(state) => Some(state_report(&state)),
        Err(error) => {
            damage.push(error.to_string());
            None
        }
    };
    let sets: Option<Vec<_>> = stored.page_sets.iter().map(|(_, set)| decode_set(set)).collect();
    let pages = sets.map(|sets| sets.iter().map(RoaringBitmap::len).sum());
    if pages.is_none() {
        damage.push(format!("a page set of volume {volume} does not decode"));
    }
    let mut live: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, segment, live_blocks) in &stored.usage {
        *live.entry(*segment).or_default() += live_blocks;
    }
    let segments: Vec<SegmentUse> =
        live.into_iter().map(|(segment, live_blocks)| SegmentUse { segment, live_blocks }).collect();
    let mapped: u64 = segments.iter().map(|used| u64::from(used.live_blocks)).sum();
    VolumeReport { volume, pages: pages.unwrap_or(0), mapped_bytes: mapped * u64::from(BLOCK_SIZE), segments, state }
}

fn state_report(state: &Volume) -> VolumeState {
    let layers = state.layers.each().map(|(name, layer)| LayerReport {
        layer: name,
        id: layer.id(),
        blocks: layer.len(),
        stale_blocks: layer.stale(),
    });
    let history = state.changes.intervals().iter().map(|interval| IntervalReport {
        from: interval.from.to_string(),
        to: interval.to.to_string(),
        blocks: interval.blocks.len(),
    });
    VolumeState {
        size_bytes: state.size.bytes(),
        role: match state.role {
            Role::Owner => "owner",
            Role::Replica => "replica",
        },
        epoch: state.epoch.0,
        known: state.known.to_string(),
        watermark: state.watermark().to_string(),
        rejoins_from: state.rejoining().map(|rejoining| rejoining.base.to_string()),
        sealed_to: state.layers.sealed_to().map(|to| to.to_string()),
        stale_blocks: state.layers.stale(),
        layers: layers.collect(),
        history_start: state.changes.start().to_string(),
        history: history.collect(),
    }
}
