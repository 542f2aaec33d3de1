//! An export in memory, for tests and benchmarks.
//!
//! Sparse: space is taken in chunks of [`CHUNK_LEN`] where something was written. Every answer is ready at once, so a
//! benchmark of it measures the server. Writes are atomic per chunk only, and nothing outlives the process, whatever
//! FLUSH and FUA answer.

use std::collections::HashMap;
use std::future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use client_lib::geometry::{BLOCK_SIZE, IO_SIZE_MAX, SECTOR_SIZE};
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};

use crate::export::{AllocationExtent, ExportDirectory, ExportInfo, Session, ZeroOptions};

/// The unit of allocation in bytes.
pub const CHUNK_LEN: usize = 64 << 10;
/// How many chunks are looked up one by one; of a larger range those that exist are.
const FEW_CHUNKS: u64 = 1024;
/// Over how many locks the chunks are spread.
const SHARDS: usize = 64;

type Chunks = HashMap<u64, Box<[u8]>>;

/// A sparse disk in memory. Its own [`Session`]: all connections see the same bytes.
#[derive(Debug)]
pub struct MemoryExport {
    info: ExportInfo,
    shards: Vec<Mutex<Chunks>>,
}

/// A part of a range inside one chunk.
struct Piece {
    chunk: u64,
    start: usize,
    length: usize,
}

impl MemoryExport {
    /// An export called `name` of `size` bytes that reads as zeroes.
    #[must_use]
    pub fn new(name: &str, size: u64) -> MemoryExport {
        MemoryExport::with_info(ExportInfo {
            name: name.to_owned(),
            description: "memory".to_owned(),
            size,
            read_only: false,
            block_size_min: SECTOR_SIZE,
            block_size_preferred: BLOCK_SIZE,
            block_size_max: IO_SIZE_MAX,
        })
    }

    /// An export that tells `info` about itself.
    #[must_use]
    pub fn with_info(info: ExportInfo) -> MemoryExport {
        MemoryExport { info, shards: (0..SHARDS).map(|_| Mutex::new(Chunks::new())).collect() }
    }

    fn pieces(offset: u64, length: u64) -> impl Iterator<Item = Piece> {
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let start = (at % CHUNK_LEN as u64) as usize;
                let piece = ((end - at) as usize).min(CHUNK_LEN - start);
                let chunk = at / CHUNK_LEN as u64;
                at += piece as u64;
                Piece { chunk, start, length: piece }
            })
        })
    }

    fn shard(&self, chunk: u64) -> MutexGuard<'_, Chunks> {
        // Bytes cannot be half-valid: a panic elsewhere leaves them usable.
        self.shards[chunk as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_now(&self, offset: u64, length: u32) -> Vec<ReadPart> {
        let mut parts = Vec::with_capacity(1);
        for Piece { chunk, start, length } in Self::pieces(offset, u64::from(length)) {
            match self.shard(chunk).get(&chunk) {
                Some(bytes) => parts.push(ReadPart::Data(Bytes::copy_from_slice(&bytes[start..start + length]))),
                None => match parts.last_mut() {
                    Some(ReadPart::Zero(hole)) => *hole += length as u32,
                    _ => parts.push(ReadPart::Zero(length as u32)),
                },
            }
        }
        parts
    }

    fn write_now(&self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for Piece { chunk, start, length } in Self::pieces(offset, data.len() as u64) {
            let (head, tail) = rest.split_at(length);
            rest = tail;
            let mut shard = self.shard(chunk);
            let bytes = shard.entry(chunk).or_insert_with(|| vec![0; CHUNK_LEN].into_boxed_slice());
            bytes[start..start + length].copy_from_slice(head);
        }
    }

    fn zero_now(&self, offset: u64, length: u64, keep: bool) {
        if !keep && length > FEW_CHUNKS * CHUNK_LEN as u64 {
            // Whole chunks are dropped by a look at those that exist, which may be few in a large range.
            let (first, last) = (offset.div_ceil(CHUNK_LEN as u64), (offset + length) / CHUNK_LEN as u64);
            for shard in &self.shards {
                shard.lock().unwrap_or_else(PoisonError::into_inner).retain(|chunk, _| !(first..last).contains(chunk));
            }
            let (middle, end) = (first * CHUNK_LEN as u64, last * CHUNK_LEN as u64);
            self.zero_now(offset, middle - offset, false);
            return self.zero_now(end, offset + length - end, false);
        }
        for Piece { chunk, start, length } in Self::pieces(offset, length) {
            let mut shard = self.shard(chunk);
            if keep {
                shard.entry(chunk).or_insert_with(|| vec![0; CHUNK_LEN].into_boxed_slice());
            } else if length == CHUNK_LEN {
                shard.remove(&chunk);
            }
            if let Some(bytes) = shard.get_mut(&chunk) {
                bytes[start..start + length].fill(0);
            }
        }
    }

    fn allocation_now(&self, offset: u64, length: u64) -> Vec<AllocationExtent> {
        let (first, end) = (offset / CHUNK_LEN as u64, (offset + length).div_ceil(CHUNK_LEN as u64));
        let mut allocated: Vec<u64> = if end - first <= FEW_CHUNKS {
            (first..end).filter(|chunk| self.shard(*chunk).contains_key(chunk)).collect()
        } else {
            let shards = self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
            shards.flat_map(|shard| shard.keys().copied().collect::<Vec<_>>()).collect()
        };
        allocated.retain(|chunk| (first..end).contains(chunk));
        allocated.sort_unstable();
        let mut extents: Vec<AllocationExtent> = Vec::new();
        let mut at = offset;
        let mut push = |to: u64, allocated: bool| {
            let length = to.clamp(at, offset + length) - at;
            at += length;
            match extents.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.allocated == allocated => last.length += length,
                _ => extents.push(AllocationExtent { length, allocated, zero: !allocated }),
            }
        };
        for chunk in allocated {
            push(chunk * CHUNK_LEN as u64, false);
            push((chunk + 1) * CHUNK_LEN as u64, true);
        }
        push(offset + length, false);
        extents
    }

    /// The bytes `offset..offset + length`, for tests that look behind the protocol.
    #[must_use]
    pub fn contents(&self, offset: u64, length: u32) -> Vec<u8> {
        ReadPart::joined(self.read_now(offset, length)).to_vec()
    }
}

impl Session for MemoryExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    /// Passed on within one process only: to another directory that has the same export.
    fn share(&self) -> Option<u64> {
        Some(std::ptr::from_ref(self).addr() as u64)
    }

    fn draft(&self) -> Vec<u8> {
        self.info.name.clone().into_bytes()
    }

    fn settle(&self) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(future::ready(Ok(self.draft())))
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(future::ready(Ok(self.read_now(offset, length))))
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.write_now(offset, &data);
        Box::pin(future::ready(Ok(())))
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.zero_now(offset, length, options.no_hole);
        Box::pin(future::ready(Ok(())))
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.zero_now(offset, length, false);
        Box::pin(future::ready(Ok(())))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(future::ready(Ok(())))
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(future::ready(Ok(self.allocation_now(offset, length))))
    }
}

/// A fixed set of memory exports. The first is the default export.
#[derive(Debug, Default)]
pub struct MemoryDirectory {
    exports: Vec<Arc<MemoryExport>>,
}

impl MemoryDirectory {
    /// A directory of `exports`.
    #[must_use]
    pub fn new(exports: Vec<Arc<MemoryExport>>) -> MemoryDirectory {
        MemoryDirectory { exports }
    }

    fn find(&self, name: &str) -> Result<&Arc<MemoryExport>, Error> {
        self.exports
            .iter()
            .find(|export| name.is_empty() || export.info.name == name)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no export {name:?}")))
    }
}

impl ExportDirectory for MemoryDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(future::ready(Ok(self.exports.iter().map(|export| export.info.clone()).collect())))
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(future::ready(self.find(name).map(|export| export.info.clone())))
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(future::ready(self.find(name).map(|export| Arc::clone(export) as Arc<dyn Session>)))
    }

    fn expect<'a>(&'a self, draft: &'a [u8]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(future::ready(self.find(&String::from_utf8_lossy(draft)).map(|_| ())))
    }

    fn resume<'a>(&'a self, state: &'a [u8]) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        let found = self.find(&String::from_utf8_lossy(state));
        Box::pin(future::ready(found.map(|export| Arc::clone(export) as Arc<dyn Session>)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_rest_is_hole() {
        let export = MemoryExport::new("disk", 1 << 20);
        let edge = CHUNK_LEN as u64 - 512;
        export.write_now(edge, &[7; 1024]);
        assert_eq!(export.contents(edge, 1024), vec![7; 1024]);
        assert_eq!(export.contents(edge - 512, 512), vec![0; 512]);
        assert_eq!(
            export.allocation_now(0, 1 << 20),
            [
                AllocationExtent { length: 2 * CHUNK_LEN as u64, allocated: true, zero: false },
                AllocationExtent { length: (1 << 20) - 2 * CHUNK_LEN as u64, allocated: false, zero: true },
            ]
        );
        export.zero_now(0, 3 * CHUNK_LEN as u64, false);
        assert_eq!(export.read_now(0, 1 << 20), [ReadPart::Zero(1 << 20)]);
        export.zero_now(0, 512, true);
        assert!(export.allocation_now(0, 512)[0].allocated);
    }

    #[test]
    fn huge_ranges_cost_what_is_in_them() {
        let export = MemoryExport::new("disk", 1 << 50);
        let chunk = CHUNK_LEN as u64;
        export.write_now(1 << 45, &[7; 1024]);
        export.write_now((1 << 46) - 512, &[7; 1024]);
        let extent = |length, allocated| AllocationExtent { length, allocated, zero: !allocated };
        assert_eq!(
            export.allocation_now(512, (1 << 50) - 512),
            [
                extent((1 << 45) - 512, false),
                extent(chunk, true),
                extent((1 << 46) - (1 << 45) - 2 * chunk, false),
                extent(2 * chunk, true),
                extent((1 << 50) - (1 << 46) - chunk, false),
            ]
        );
        export.zero_now(512, (1 << 46) - 512, false);
        assert_eq!(export.contents((1 << 46) - 512, 1024), [vec![0; 512], vec![7; 512]].concat());
        assert_eq!(
            export.allocation_now(0, 1 << 50),
            [extent(1 << 46, false), extent(chunk, true), extent((1 << 50) - (1 << 46) - chunk, false)]
        );
    }
}
