//! Blocks as they cross the network: a head for each, the data of those that have some one after the other, compressed where that pays.
//!
//! Of zeroes a mark is sent. zstd is used here alone, at its fastest level: a sample of a payload shows first whether it shrinks, so
//! that data that does not costs a sixtieth of compressing it. What comes from the network says how large it will be before memory
//! is taken for it, and must be just as large as its heads tell.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use client_lib::transport::FRAME_SIZE_MAX;
use client_lib::{BLOCK_SIZE, Error, ErrorKind};
use tokio::time::Instant;

use super::links::choice;
use super::message::BlockHead;
use crate::propagation::freight::Freight;
use crate::propagation::manifest::VersionedBlock;

const BLOCK: usize = BLOCK_SIZE as usize;

/// The fastest of zstd's usual levels.
const LEVEL: i32 = 1;

/// Blocks of a payload that are tried first.
const SAMPLE_BLOCKS: usize = 4;

/// A payload from this size on is tried by a sample; a smaller one at once.
const SAMPLED_FROM: usize = 4 * SAMPLE_BLOCKS * BLOCK;

/// Smaller payloads do not tell how fast the compressor is.
const TIMED_FROM: usize = 16 * BLOCK;

/// What a measurement that is slower than those before weighs beside them. A faster one counts at once: who is interrupted looks slow.
const SLOWER_WEIGHT: f64 = 0.05;

/// Blocks as they are sent.
#[derive(Debug)]
pub struct PackedBlocks {
    /// Which they are.
    pub heads: Vec<BlockHead>,
    /// The data of those that have some.
    pub payload: Bytes,
    /// Whether that is one zstd frame.
    pub is_zstd: bool,
    /// What they come to.
    pub freight: Freight,
}

/// Splits blocks into heads and one payload. Of data that is all zeroes only a mark is sent.
#[must_use]
pub fn pack_blocks(blocks: &[VersionedBlock]) -> PackedBlocks {
    const ZEROES: &[u8] = &[0; BLOCK];
    let mut payload = BytesMut::with_capacity(blocks.len() * BLOCK);
    let mut zero = 0;
    let heads = blocks.iter().map(|block| {
        let data = block.data.as_ref().filter(|data| data[..] != *ZEROES);
        match data {
            Some(data) => payload.extend_from_slice(data),
            None => zero += u64::from(BLOCK_SIZE),
        }
        BlockHead { block: block.block, lsn: block.lsn, zero: data.is_none() }
    });
    let heads = heads.collect();
    let payload = payload.freeze();
    let sent = payload.len() as u64;
    PackedBlocks { heads, payload, is_zstd: false, freight: Freight { sent, wire: sent, zero, ..Freight::default() } }
}

/// Joins heads and payload into blocks.
///
/// # Errors
/// `Corrupt` when the payload does not have one block for each head with data.
pub fn unpack_blocks(heads: &[BlockHead], mut payload: Bytes) -> Result<Vec<VersionedBlock>, Error> {
    let with_data = with_data(heads);
    if payload.len() != with_data * BLOCK {
        return Err(corrupt(format!("a peer announced {with_data} blocks and sent {} bytes", payload.len())));
    }
    Ok(heads
        .iter()
        .map(|head| VersionedBlock {
            block: head.block,
            lsn: head.lsn,
            data: (!head.zero).then(|| payload.split_to(BLOCK)),
        })
        .collect())
}

/// Joins heads and a compressed payload into blocks.
///
/// # Errors
/// `Corrupt` when the payload is no zstd frame of just the blocks that the heads announce; no memory was taken for more.
pub fn unpack_zstd(heads: &[BlockHead], payload: &Bytes) -> Result<Vec<VersionedBlock>, Error> {
    let expected = with_data(heads) * BLOCK;
    if expected > FRAME_SIZE_MAX {
        return Err(corrupt(format!(
            "a peer announced {expected} bytes of blocks, at most {FRAME_SIZE_MAX} are taken"
        )));
    }
    let announced = zstd::zstd_safe::get_frame_content_size(payload).ok().flatten();
    if announced != Some(expected as u64) {
        return Err(corrupt(format!("a peer sent a frame of {announced:?} bytes for {expected} bytes of blocks")));
    }
    let mut expanded = Vec::with_capacity(expected);
    let written = zstd::zstd_safe::decompress(&mut expanded, payload).map_err(|code| {
        corrupt(format!("a peer's frame cannot be expanded: {}", zstd::zstd_safe::get_error_name(code)))
    })?;
    if written != expected {
        return Err(corrupt(format!("a peer's frame has {written} bytes and not {expected}")));
    }
    unpack_blocks(heads, Bytes::from(expanded))
}

fn with_data(heads: &[BlockHead]) -> usize {
    heads.iter().filter(|head| !head.zero).count()
}

fn corrupt(what: String) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// Compresses payloads, and knows how fast it was.
#[derive(Debug, Default)]
pub struct Compressor {
    /// Bytes per second.
    speed: Mutex<Option<f64>>,
}

impl Compressor {
    /// Compresses the payload if that pays on a link of so many bytes per second.
    pub fn press(&self, packed: &mut PackedBlocks, link: f64) {
        if let Some(payload) = self.shrunk(&packed.payload, link) {
            packed.freight.wire = payload.len() as u64;
            (packed.payload, packed.is_zstd) = (payload, true);
        }
    }

    fn shrunk(&self, payload: &[u8], link: f64) -> Option<Bytes> {
        let speed = *self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        if payload.is_empty() || !choice::pays(0.0, speed, link) {
            return None;
        }
        if payload.len() >= SAMPLED_FROM && !choice::pays(sampled_ratio(payload), speed, link) {
            return None;
        }
        let begun = Instant::now();
        let shrunk = compress(payload)?;
        self.note(payload.len(), begun.elapsed().as_secs_f64());
        let ratio = shrunk.len() as f64 / payload.len() as f64;
        (ratio < choice::RATIO_MAX).then(|| Bytes::from(shrunk))
    }

    fn note(&self, bytes: usize, seconds: f64) {
        // A clock that stands still while a task runs, as a simulation's does, measures nothing.
        if bytes >= TIMED_FROM && seconds > 0.0 {
            let mut speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
            let (sample, before) = (bytes as f64 / seconds, speed.unwrap_or(choice::COMPRESSOR_ASSUMED));
            *speed = Some(sample.max(before + (sample - before) * SLOWER_WEIGHT));
        }
    }

    /// How fast it is, in bytes per second, if that is known.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        *self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a few blocks from all over the payload shrink to.
fn sampled_ratio(payload: &[u8]) -> f64 {
    let blocks = payload.len() / BLOCK;
    let mut sample = Vec::with_capacity(SAMPLE_BLOCKS * BLOCK);
    for number in 0..SAMPLE_BLOCKS {
        let at = number * (blocks - 1) / (SAMPLE_BLOCKS - 1) * BLOCK;
        sample.extend_from_slice(&payload[at..at + BLOCK]);
    }
    compress(&sample).map_or(1.0, |shrunk| shrunk.len() as f64 / sample.len() as f64)
}

/// `None` when it cannot be compressed, for whatever reason: then it is sent as it is.
fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).ok()
}

#[cfg(test)]
mod tests;
