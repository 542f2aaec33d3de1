//! The volumes that a node serves, by id.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::watch;
use client_lib::{Error, ErrorKind, VolumeId};

use super::volume::ServedVolume;
use crate::trace::export::Exporter;

/// The volumes of a node; the reconciler adds and removes them as metadata says.
#[derive(Default)]
pub struct Volumes {
    by_id: watch::Sender<BTreeMap<VolumeId, Arc<ServedVolume>>>,
    /// Why volumes that this node should serve are not served.
    troubles: Mutex<BTreeMap<VolumeId, (ErrorKind, String)>>,
    /// Who tells a collector of their operations.
    exporter: Option<Arc<Exporter>>,
    /// The node stops: they are closed, and none of them was deleted.
    is_stopping: AtomicBool,
}

impl Volumes {
    /// Those of a node that tells a collector of their operations.
    #[must_use]
    pub fn exported_by(exporter: Option<Arc<Exporter>>) -> Volumes {
        Volumes { exporter, ..Volumes::default() }
    }

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

    /// The volume called `name`. One of that name that was deleted may still be here, beside the one that was made after it.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<ServedVolume>> {
        self.by_id.borrow().values().rev().find(|volume| volume.name.as_str() == name).cloned()
    }

    /// The volume `id`, for somebody elsewhere who knows of it.
    ///
    /// # Errors
    /// `Unavailable`: the metadata may come here a moment later, so it is to be tried again. Says why this node does not serve it, if that is known.
    pub fn require(&self, id: VolumeId) -> Result<Arc<ServedVolume>, Error> {
        self.get(id).ok_or_else(|| {
            let what = match self.trouble(id) {
                Some(trouble) => trouble.to_string(),
                None => format!("volume {id} is not (yet) known here"),
            };
            Error::new(ErrorKind::Unavailable, what)
        })
    }

    /// Every volume, in order of id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServedVolume>> {
        self.by_id.borrow().values().cloned().collect()
    }

    /// Why this node does not serve the volume `id` as metadata says, if so.
    #[must_use]
    pub fn trouble(&self, id: VolumeId) -> Option<Error> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.get(&id).map(|(kind, text)| Error::new(*kind, text.clone()))
    }

    /// The volumes that this node does not serve as metadata said when it was looked at last; one that was deleted since may be among them.
    #[must_use]
    pub fn troubled(&self) -> Vec<VolumeId> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// This node does not serve the volume `id`, for this reason; or it does. Returns whether that is another reason than before.
    pub fn set_trouble(&self, id: VolumeId, trouble: Option<&Error>) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let now = trouble.map(|trouble| (trouble.kind(), trouble.to_string()));
        let before = match now.clone() {
            Some(trouble) => troubles.insert(id, trouble),
            None => troubles.remove(&id),
        };
        before != now
    }

    /// Adds a volume.
    pub fn insert(&self, volume: Arc<ServedVolume>) {
        if let Some(exporter) = &self.exporter {
            volume.tracer.look_always(exporter.of(volume.name.clone()));
        }
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

    /// Closes all of them, since the node stops.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        for volume in self.all() {
            volume.gate.close();
        }
    }

    /// What another node is told that asked for something which ended with `error`: who stops is to be asked again, or somebody else.
    #[must_use]
    pub fn told(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Closed if self.is_stopping.load(Ordering::Acquire) => {
                Error::new(ErrorKind::Unavailable, "the node is stopping")
            }
            _ => error,
        }
    }
}
