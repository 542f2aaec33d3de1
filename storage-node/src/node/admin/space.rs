//! Where the space of this node goes: what its shards count, joined with the names of volumes and what the file systems say.

use client_lib::clock::{Clock, SystemClock};
use client_lib::wire::admin::{NodeSpace, StoreFault, StoreSpace, VolumeSpace};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId};
use consensus::MetaState;
use tokio::time::Instant;

use super::NodeAdmin;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::Role;
use crate::shard::space as shard;
use crate::shards::StoreUsage;

impl NodeAdmin {
    pub(super) async fn space_here(&self) -> Result<NodeSpace, Error> {
        let state = self.meta.state();
        let usages = self.reconciler.shards().usage().await.map_err(store_failure)?;
        let mut space = NodeSpace { node: self.this.name.to_string(), ..NodeSpace::default() };
        for usage in &usages {
            let directory = usage.directory.display().to_string();
            let volumes = usage.shard.volumes.iter();
            space.volumes.extend(volumes.map(|volume| volume_space(&state, self.this.id, &directory, volume)));
            let mut told = store_space(usage);
            let faulted = self.store_faults().into_iter().find(|fault| fault.store == told.directory);
            told.fault_since_ms = faulted.and_then(|fault| fault.since_ms);
            space.stores.push(told);
        }
        space.volumes.sort_by(|a, b| (&a.volume, a.id).cmp(&(&b.volume, b.id)));
        Ok(space)
    }

    /// The stores here that take no writes.
    pub(super) fn store_faults(&self) -> Vec<StoreFault> {
        let faulted = self.reconciler.shards().faulted();
        let told = faulted.map(|(store, fault, since)| StoreFault {
            store: store.display().to_string(),
            fault,
            since_ms: since.map(unix_ms_of),
        });
        told.collect()
    }

    /// The space of a volume that is served here.
    pub(super) async fn volume_space(&self, volume: &ServedVolume) -> Result<VolumeSpace, Error> {
        let counted = volume.shard.space(Some(volume.id)).await.map_err(store_failure)?;
        let directory = self.reconciler.shards().directory_of(volume.id);
        let directory = directory.map_or_else(String::new, |path| path.display().to_string());
        let found = counted.volumes.first();
        let found = found.map(|found| volume_space(&self.meta.state(), self.this.id, &directory, found));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("volume {} was deleted", volume.name)))
    }
}

/// When that was, in milliseconds since 1970, as this machine's clock is now.
pub(super) fn unix_ms_of(instant: Instant) -> u64 {
    let ago = u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX);
    SystemClock::new().unix_ms().saturating_sub(ago)
}

fn volume_space(state: &MetaState, me: NodeId, directory: &str, volume: &shard::VolumeSpace) -> VolumeSpace {
    let bytes = |blocks: u64| blocks * u64::from(BLOCK_SIZE);
    VolumeSpace {
        volume: state.volume(volume.volume).map_or_else(String::new, |known| known.name.to_string()),
        id: volume.volume.0,
        store: directory.to_owned(),
        owner: volume.role == Role::Owner,
        follows: Some(state.volume(volume.volume).is_some_and(|known| known.replicas.contains(&me))),
        size_bytes: volume.size.bytes(),
        mapped_bytes: bytes(volume.mapped_blocks),
        snapshot_bytes: bytes(volume.snapshot_blocks),
        deleted_bytes: bytes(volume.deleted_blocks),
        unapplied_bytes: bytes(volume.unapplied_blocks),
        held_bytes: bytes(volume.held_blocks),
    }
}

fn store_space(usage: &StoreUsage) -> StoreSpace {
    let shard = &usage.shard;
    StoreSpace {
        directory: usage.directory.display().to_string(),
        file_system_bytes: usage.file_system_bytes,
        file_system_free_bytes: usage.file_system_free_bytes,
        capacity_bytes: usage.capacity_bytes,
        segments: shard.segments,
        log_bytes: shard.log_bytes,
        pooled_segments: shard.pooled_segments,
        pooled_bytes: shard.pooled_bytes,
        unwritten_bytes: shard.unwritten_bytes,
        live_bytes: shard.live_bytes,
        garbage_bytes: shard.garbage_bytes,
        emptied_bytes: shard.emptied_bytes,
        map_bytes: usage.map_bytes,
        reserve_bytes: shard.reserve_bytes,
        available_bytes: usage.available_bytes(),
        fault: shard.fault.clone(),
        fault_since_ms: None,
        is_full: shard.is_full,
    }
}
