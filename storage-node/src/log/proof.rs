//! Telling a damaged log from a torn one: a later record that vouches for where the log seems to end.
//!
//! Every record says up to which sequence the log was durable when it was laid out. Crashes never take back what was
//! durable, so unless the disk has lost or altered it, the log always reaches beyond every such mark that was ever
//! written: those of cut tails and of earlier lives of recycled segments too. A record of this log, wherever it is
//! found, whose mark is at or above the sequence at which the log seems to end is therefore proof of damage, and no
//! stale record can be a false one. A record counts when its header and entries fit their checksum and it bears the
//! log's own number: blocks of guests lie in the log as well, and a guest may store another log in its volume.
//!
//! The search is bounded. It covers what follows in the same segment, the segments of later generations, and those
//! that were free at the last checkpoint (the log may go on in one whose first write was lost). In each it gives up
//! after [`GAP_BLOCKS`] without a record: damage in one place of up to three mebibytes is bridged.
//!
//! What it cannot see: damage to the newest records when nothing was laid out after the sync that covered them. Then
//! there is no witness, and they are taken for a torn tail. A clean shutdown ends with a checkpoint and leaves no such
//! records.

use client_lib::BLOCK_SIZE;

use super::record::{decode_any_header, whole_header};
use super::recovery::{LOOK_BLOCKS, Recovery, WINDOW_BLOCKS};
use super::segment::{Pool, SEGMENT_HEADER_BLOCKS};
use super::{LogError, LogPosition};

const BLOCK: usize = BLOCK_SIZE as usize;

/// Blocks without a record after which a segment is searched no further: the largest record, and a damaged one is no
/// larger.
const GAP_BLOCKS: u32 = WINDOW_BLOCKS;

/// The record that proves it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    pub(super) segment: u32,
    pub(super) block: u32,
    /// Up to which sequence it says that the log was durable.
    pub(super) durable: u64,
}

/// Looks for a record that vouches for the one at `position`.
///
/// # Errors
/// When a segment cannot be read.
pub(super) fn find(recovery: &mut Recovery<'_>, pool: &Pool, position: LogPosition) -> Result<Option<Proof>, LogError> {
    if position.generation > 0
        && let Some(proof) = search(recovery, pool, position.segment, position.block, position)?
    {
        return Ok(Some(proof));
    }
    for number in pool.numbers() {
        if recovery.replayed.contains(&number) || recovery.known.live.contains(&number) {
            continue;
        }
        if let Some(proof) = search(recovery, pool, number, SEGMENT_HEADER_BLOCKS, position)? {
            return Ok(Some(proof));
        }
    }
    Ok(None)
}

/// Looks through segment `number` from block `at` on.
fn search(
    recovery: &mut Recovery<'_>,
    pool: &Pool,
    number: u32,
    mut at: u32,
    position: LogPosition,
) -> Result<Option<Proof>, LogError> {
    let segment = *pool.get(number).expect("numbers name segments");
    let mut end = segment.blocks.min(at.saturating_add(GAP_BLOCKS));
    let mut wanted = LOOK_BLOCKS;
    while at < end {
        let count = wanted.min(segment.blocks - at);
        let window = recovery.reader.read(number, segment, at, count)?;
        let first = at;
        let widest = wanted == WINDOW_BLOCKS;
        wanted = LOOK_BLOCKS;
        while at < end && at < first + count {
            let bytes = &window[(at - first) as usize * BLOCK..];
            match whole_header(bytes, recovery.known.identity) {
                Some((header, _)) if header.durable >= position.sequence => {
                    return Ok(Some(Proof { segment: number, block: at, durable: header.durable }));
                }
                // Older ones lie where no newer record was written over them.
                Some((header, blocks)) if header.generation >= position.generation => {
                    at = at.saturating_add(blocks);
                    end = segment.blocks.min(at.saturating_add(GAP_BLOCKS));
                }
                Some(_) => at += 1,
                // It shows again from its start, in a window that any record fits.
                None if (at > first || !widest) && is_cut_off(bytes) => {
                    wanted = WINDOW_BLOCKS;
                    break;
                }
                None => at += 1,
            }
        }
        recovery.reader.give_back(window);
    }
    Ok(None)
}

/// Whether the entries of the record at the start of `bytes` go on behind them.
fn is_cut_off(bytes: &[u8]) -> bool {
    decode_any_header(bytes).is_ok_and(|header| header.blocks() as usize * BLOCK > bytes.len())
}
