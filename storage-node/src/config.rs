//! Settings of a node: plain values, checked once.

use std::path::PathBuf;

use crate::io::EngineKind;
use crate::log::LogSettings;
use crate::shard::ShardOptions;

/// Settings of the block store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// Size of a segment file in bytes, a multiple of 4096, at least 8 MiB. Larger ones cost less bookkeeping, smaller
    /// ones come free sooner.
    pub segment_bytes: u64,
    /// Most bytes of segment files; `None` leaves it to the file system.
    pub capacity_bytes: Option<u64>,
    /// Memory for the block map, in bytes. Less means more look-ups on disk.
    pub map_cache_bytes: usize,
    /// The I/O engine.
    pub engine: EngineKind,
}

impl Default for StoreSettings {
    fn default() -> StoreSettings {
        StoreSettings {
            segment_bytes: 64 << 20,
            capacity_bytes: None,
            map_cache_bytes: 64 << 20,
            engine: EngineKind::Auto,
        }
    }
}

impl StoreSettings {
    /// A shard in `directory` with these settings.
    #[must_use]
    pub fn shard(&self, directory: PathBuf) -> ShardOptions {
        let log = LogSettings {
            segment_bytes: self.segment_bytes,
            capacity_bytes: self.capacity_bytes,
            ..LogSettings::default()
        };
        ShardOptions { log, map_cache_bytes: self.map_cache_bytes, engine: self.engine, ..ShardOptions::new(directory) }
    }
}
