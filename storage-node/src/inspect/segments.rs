//! The segment files: what is in each, and how much of that the map still needs.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use client_lib::BLOCK_SIZE;
use serde::Serialize;

use super::log::{Data, Walked, files, walk, walk_cold};
use super::{InspectError, Shard};
use crate::log::record::Entry;
use crate::map::MapKey;
use crate::map::usage::Usage;

/// The segments of a shard.
#[derive(Debug, Serialize)]
pub struct SegmentsReport {
    /// The shard.
    pub shard: String,
    /// Each segment, by number.
    pub segments: Vec<SegmentReport>,
    /// What cannot be as it is.
    pub damage: Vec<String>,
}

/// One segment.
#[derive(Debug, Serialize)]
pub struct SegmentReport {
    /// Its number.
    pub segment: u32,
    /// When it was taken into use; `None` for never.
    pub generation: Option<u64>,
    /// Its size.
    pub bytes: u64,
    /// What recovery would make of it.
    pub state: State,
    /// Records in it.
    pub records: u64,
    /// Data blocks of its records.
    pub data_blocks: u64,
    /// Those that the map of the last checkpoint points to.
    pub live_blocks: u64,
    /// The others that it could have pointed to.
    pub dead_blocks: u64,
    /// Those appended to the log after the last checkpoint. Copies of the cleaner are not told apart by age.
    pub new_blocks: u64,
}

/// What recovery would make of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The log ends in it, and goes on there.
    Active,
    /// It holds records of the log.
    Used,
    /// It holds copies of the cleaner.
    Cold,
    /// It waits to be used (again).
    Free,
}

impl State {
    /// As a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Active => "active",
            State::Used => "used",
            State::Cold => "cold",
            State::Free => "free",
        }
    }
}

/// What a walk over the log finds of a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    records: u64,
    data_blocks: u64,
    new_blocks: u64,
}

/// How many blocks of each segment are needed, as [`Usage::needed`] says.
fn live(shard: &Shard) -> Result<BTreeMap<u32, u64>, InspectError> {
    let mut usage = Usage::default();
    for (volume, stored) in shard.volumes()? {
        for (snapshot, segment, blocks) in stored.usage {
            usage.restore(MapKey { volume, snapshot }, segment, blocks);
        }
    }
    for (segment, aliases) in shard.store.aliases()? {
        usage.restore_aliases(segment, aliases);
    }
    Ok(usage.live_segments().into_iter().map(|segment| (segment, usage.needed(segment))).collect())
}

/// Looks at the segments of `shard`.
///
/// # Errors
/// When files or the map cannot be read.
pub fn report(shard: &Shard) -> Result<SegmentsReport, InspectError> {
    let mut damage = shard.damage.clone();
    let mut live = live(shard)?;
    let files = files(shard, &mut damage)?;
    let mut counted: BTreeMap<u32, Counted> = BTreeMap::new();
    let walked: Walked = walk(&files, shard.checkpoint, Data::Skipped, &mut |record| {
        let counted = counted.entry(record.at.segment).or_default();
        let blocks: u64 = record.entries.iter().map(Entry::data_blocks).map(u64::from).sum();
        counted.records += 1;
        counted.data_blocks += blocks;
        // Positions are in the order of the log.
        if shard.checkpoint.is_none_or(|checkpoint| record.at >= checkpoint) {
            counted.new_blocks += blocks;
        }
        ControlFlow::Continue(())
    })?;
    for file in files.iter().filter(|file| file.cold) {
        let counted = counted.entry(file.number).or_default();
        let end = walk_cold(file, Data::Skipped, &mut |record| {
            counted.records += 1;
            counted.data_blocks += record.entries.iter().map(Entry::data_blocks).map(u64::from).sum::<u64>();
        })?;
        let kept =
            shard.cold_end.filter(|kept| (kept.segment, Some(kept.generation)) == (file.number, file.generation));
        if let Some(kept) = kept.filter(|kept| kept.block > end) {
            damage.push(format!(
                "segment {}, block {end}: a record of the cleaner is damaged, or was cut off; the segment is in use up to block {}",
                file.number, kept.block
            ));
        }
    }
    damage.extend(walked.damage);
    let active = walked.end.map(|(at, _)| at.segment);
    let segments: Vec<SegmentReport> = files
        .iter()
        .map(|file| {
            let state = match file.generation {
                _ if active == Some(file.number) => State::Active,
                Some(_) if file.cold => State::Cold,
                Some(_) if !walked.cut.contains(&file.number) => State::Used,
                _ => State::Free,
            };
            let Counted { records, data_blocks, new_blocks } = counted.get(&file.number).copied().unwrap_or_default();
            let live_blocks = live.remove(&file.number).unwrap_or(0);
            let old_blocks = data_blocks - new_blocks;
            if live_blocks > old_blocks {
                damage.push(format!(
                    "segment {}: the map points to {live_blocks} blocks in it, but its records up to the checkpoint have {old_blocks}",
                    file.number
                ));
            }
            SegmentReport {
                segment: file.number,
                generation: file.generation,
                bytes: u64::from(file.blocks) * u64::from(BLOCK_SIZE),
                state,
                records,
                data_blocks,
                live_blocks,
                dead_blocks: old_blocks.saturating_sub(live_blocks),
                new_blocks,
            }
        })
        .collect();
    for (segment, blocks) in live {
        damage.push(format!(
            "segment {segment} is not there, but the map points to {blocks} blocks in it (docs/damage.md)"
        ));
    }
    Ok(SegmentsReport { shard: shard.name.clone(), segments, damage })
}
