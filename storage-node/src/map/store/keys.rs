//! The keys of the map's tables (`docs/format.md`).

use client_lib::VolumeId;

use crate::map::MapKey;

pub(super) const TABLE_POSITION: u8 = 1;
pub(super) const TABLE_VOLUME: u8 = 2;
pub(super) const TABLE_PAGE: u8 = 3;
pub(super) const TABLE_PAGE_SET: u8 = 4;
pub(super) const TABLE_LAYER: u8 = 5;
pub(super) const TABLE_HISTORY: u8 = 6;
pub(super) const TABLE_USAGE: u8 = 7;
pub(super) const TABLE_SHEAF: u8 = 8;
pub(super) const TABLE_SPARSE_SET: u8 = 9;
/// The tables that are of one volume alone.
pub(super) const VOLUME_TABLES: std::ops::RangeInclusive<u8> = TABLE_VOLUME..=TABLE_SPARSE_SET;
pub(super) const TABLE_LOG: u8 = 64;
pub(super) const TABLE_SCRUB: u8 = 65;
pub(super) const TABLE_ALIASES: u8 = 66;
pub(super) const TABLE_COLD_END: u8 = 67;

/// Table (1), volume (8), and what the table adds; big-endian, so that keys sort as numbers do.
pub(super) fn key(table: u8, volume: VolumeId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(table);
    key.extend_from_slice(&volume.0.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

/// A key of a table that has rows per map: after the volume the snapshot (8), then a number.
pub(super) fn map_key(table: u8, map: MapKey, number: Option<u32>) -> Vec<u8> {
    let mut key = key(table, map.volume, &map.snapshot.0.to_be_bytes());
    key.extend(number.into_iter().flat_map(u32::to_be_bytes));
    key
}

/// Aliases are counted by segment, whatever the volume.
pub(super) fn aliases_key(segment: u32) -> Vec<u8> {
    key(TABLE_ALIASES, VolumeId(0), &segment.to_be_bytes())
}

pub(super) fn layer_key(volume: VolumeId, layer: u64, chunk: Option<u32>) -> Vec<u8> {
    let mut key = key(TABLE_LAYER, volume, &layer.to_be_bytes());
    key.extend(chunk.into_iter().flat_map(u32::to_be_bytes));
    key
}
