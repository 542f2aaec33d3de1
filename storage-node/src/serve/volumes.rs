//! The volumes that a node serves, by id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client_lib::VolumeId;
use tokio::sync::watch;

use super::volume::ServedVolume;

/// The volumes of a node; the reconciler adds and removes them as metadata says.
#[derive(Default)]
pub struct Volumes {
    by_id: watch::Sender<BTreeMap<VolumeId, Arc<ServedVolume>>>,
}

impl Volumes {
    /// The volume `id`, if this node serves it.
    #[must_use]
    pub fn get(&self, id: VolumeId) -> Option<Arc<ServedVolume>> {
        self.by_id.borrow().get(&id).cloned()
    }

    /// The volume `id`, which metadata has and this node may be about to open; waits at most `patience` for it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn arrival(&self, id: VolumeId, patience: Duration) -> Option<Arc<ServedVolume>> {
        let mut watch = self.by_id.subscribe();
        let arrived = tokio::time::timeout(patience, watch.wait_for(|volumes| volumes.contains_key(&id))).await;
        arrived.ok()?.ok()?.get(&id).cloned()
    }

    /// The volume called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<ServedVolume>> {
        self.by_id.borrow().values().find(|volume| volume.name.as_str() == name).cloned()
    }

    /// Every volume, in order of id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServedVolume>> {
        self.by_id.borrow().values().cloned().collect()
    }

    /// Adds a volume.
    pub fn insert(&self, volume: Arc<ServedVolume>) {
        self.by_id.send_modify(|volumes| drop(volumes.insert(volume.id, volume)));
    }

    /// Removes and closes a volume.
    pub fn remove(&self, id: VolumeId) {
        self.by_id.send_modify(|volumes| {
            if let Some(volume) = volumes.remove(&id) {
                volume.gate.close();
            }
        });
    }
}
