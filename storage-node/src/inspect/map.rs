//! The map of a volume as of the last checkpoint: the base's pages and the layers above, in runs of blocks.

use client_lib::{Lsn, SnapshotId, VolumeId};
use serde::{Serialize, Serializer};

use super::{InspectError, Shard};
use crate::map::cache::decode_set;
use crate::map::page::{Content, PAGE_ENTRIES, Place, Version};
use crate::volume::record;

/// Neighbouring blocks that one write left, one behind the other in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRun {
    /// `base`, or the layer that has them: `folding`, `sealed`, `open`.
    pub layer: &'static str,
    /// The first block.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// `data`, `stale` (data that is elsewhere) or `zeroes`.
    pub kind: &'static str,
    /// The write.
    #[serde(serialize_with = "as_text")]
    pub lsn: Lsn,
    /// The segment of the data.
    pub segment: Option<u32>,
    /// The first block's place in the segment.
    pub segment_block: Option<u32>,
    /// The CRC-32 of each block that has data.
    #[serde(serialize_with = "as_hex")]
    pub checksums: Vec<u32>,
}

impl MapRun {
    fn of(layer: &'static str, block: u32, version: Version) -> MapRun {
        let place = version.content.place();
        let kind = match version.content {
            Content::Zero => "zeroes",
            Content::Stale { .. } => "stale",
            Content::Local { .. } => "data",
        };
        MapRun {
            layer,
            first: block,
            last: block,
            kind,
            lsn: version.lsn,
            segment: place.map(|place| place.segment),
            segment_block: place.map(|place| place.block),
            checksums: version.content.crc().into_iter().collect(),
        }
    }

    /// Where its first block is, if that is here.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        Some(Place { segment: self.segment?, block: self.segment_block? })
    }

    /// Takes in `next` if it goes on where this ends.
    fn extend(&mut self, next: &MapRun) -> bool {
        let length = self.last - self.first + 1;
        let after = self.segment_block.and_then(|block| block.checked_add(length));
        let goes_on = (self.layer, self.kind, self.lsn, self.segment)
            == (next.layer, next.kind, next.lsn, next.segment)
            && self.last.checked_add(1) == Some(next.first)
            && after == next.segment_block;
        if goes_on {
            self.last = next.last;
            self.checksums.extend(&next.checksums);
        }
        goes_on
    }
}

/// Shows the runs of `volume` among the blocks of `range` to `visit`: the base's, then those of each layer, the oldest
/// layer first. Returns what is damaged.
///
/// # Errors
/// `NoVolume`; when the map cannot be read at all.
pub fn runs(
    shard: &Shard,
    volume: VolumeId,
    range: std::ops::RangeInclusive<u32>,
    visit: &mut dyn FnMut(MapRun),
) -> Result<Vec<String>, InspectError> {
    let stored = shard.volumes()?.into_iter().find(|(id, _)| *id == volume);
    let (_, stored) = stored.ok_or(InspectError::NoVolume(volume))?;
    let mut damage = shard.damage.clone();
    let mut runs = Runs { pending: None, visit };
    // A volume that was never written has none.
    let live = stored.page_sets.iter().find(|(map, _)| *map == SnapshotId(0)).map_or(&[][..], |(_, set)| set);
    let pages = decode_set(live).unwrap_or_else(|| {
        damage.push(format!("the page set of volume {volume} does not decode: its base is not shown"));
        Default::default()
    });
    let sparse = stored.sparse_sets.iter().find(|(map, _)| *map == SnapshotId(0)).map_or(&[][..], |(_, set)| set);
    let sparse = decode_set(sparse).unwrap_or_else(|| {
        damage.push(format!("the sparse set of volume {volume} does not decode: some of its base is not shown"));
        Default::default()
    });
    for page in pages.range(range.start() / PAGE_ENTRIES..=range.end() / PAGE_ENTRIES) {
        let is_sparse = sparse.contains(page);
        let read = if is_sparse { shard.store.sparse_page(volume, page) } else { shard.store.page(volume, page) };
        let entries = match read {
            Ok(Some(entries)) => entries,
            Ok(None) => {
                damage.push(format!("page {page} of volume {volume} is not there"));
                continue;
            }
            Err(error) => {
                damage.push(error.to_string());
                continue;
            }
        };
        for (index, version) in entries.iter() {
            let block = page * PAGE_ENTRIES + u32::from(index);
            if range.contains(&block) {
                runs.push(MapRun::of("base", block, version));
            }
        }
    }
    match record::restore(volume, &stored) {
        Ok(state) => {
            for (name, layer) in state.layers.each() {
                for (block, version) in layer.range(*range.start(), *range.end()) {
                    runs.push(MapRun::of(name, block, version));
                }
            }
        }
        Err(error) => damage.push(format!("{error}: its layers are not shown")),
    }
    runs.finish();
    Ok(damage)
}

/// Puts runs together.
struct Runs<'a> {
    pending: Option<MapRun>,
    visit: &'a mut dyn FnMut(MapRun),
}

impl Runs<'_> {
    fn push(&mut self, next: MapRun) {
        if !self.pending.as_mut().is_some_and(|pending| pending.extend(&next))
            && let Some(run) = self.pending.replace(next)
        {
            (self.visit)(run);
        }
    }

    fn finish(self) {
        if let Some(run) = self.pending {
            (self.visit)(run);
        }
    }
}

fn as_text<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

fn as_hex<S: Serializer>(checksums: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(checksums.iter().map(|checksum| format!("{checksum:08x}")))
}
