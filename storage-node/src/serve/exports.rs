//! NBD's directory of exports: every volume, and every snapshot as `VOLUME@SNAPSHOT`, at every node; and what this node holds of
//! a volume that it has left, as `VOLUME@tail-EPOCH`.

use std::sync::Arc;
use std::time::Duration;

use client_lib::cipher::KeySource;
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::transport::BoxFuture;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, SECTOR_SIZE};
use consensus::Snapshot;
use nbd_frontend::export::{ExportDirectory, ExportInfo, Session};

use super::kept::{KeptSnapshot, ReadOnly};
use super::keys::Unlocker;
use super::metadata::NewestMetadata;
use super::numbers::session_number;
use super::session::VolumeSession;
use super::tail::{KeptTail, tail_info, tail_name};
use super::volume::ServedVolume;
use super::volumes::Volumes;

/// How long a client waits for a volume that exists and that this node has not opened yet. Shorter than the patience
/// of the NBD handshake.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client waits until it is known which volume has a name now. If nobody says so, the one that is here is taken: by then the lease is out, in a
/// cluster of short round trips, by which this node might still act for one that was deleted. Shorter than the patience of the NBD handshake, too.
const NAME_PATIENCE: Duration = Duration::from_secs(9);

/// The volumes as exports.
pub struct Exports {
    volumes: Arc<Volumes>,
    metadata: Arc<NewestMetadata>,
    unlocker: Unlocker,
}

impl Exports {
    /// How `volume` stands to its class here.
    #[cfg(test)]
    pub(crate) fn flushes(&self, volume: client_lib::VolumeId) -> Option<crate::propagation::flushes::Flushes> {
        Some(self.volumes.get(volume)?.flushes.look().0)
    }

    /// `volume`, as it is served here.
    #[cfg(test)]
    pub(crate) fn served(&self, volume: client_lib::VolumeId) -> Option<Arc<ServedVolume>> {
        self.volumes.get(volume)
    }

    /// Exports `volumes`.
    #[must_use]
    pub fn new(volumes: Arc<Volumes>, metadata: Arc<NewestMetadata>) -> Exports {
        Exports { volumes, metadata, unlocker: Unlocker::default() }
    }

    /// The same with what opens encrypted volumes here.
    #[must_use]
    pub fn with_keys(self, source: Option<KeySource>) -> Exports {
        Exports { unlocker: Unlocker::new(source), ..self }
    }

    /// The volume and the snapshot that `VOLUME@SNAPSHOT` names.
    async fn snapshot_named(&self, volume: &str, name: &str) -> Result<(Arc<ServedVolume>, Snapshot), Error> {
        let served = self.named(volume).await?;
        let found = match served.snapshots.named(name).filter(|snapshot| snapshot.made.is_some()) {
            Some(snapshot) => Some(snapshot),
            // This node may not have heard of it.
            None => {
                let state = self.metadata.get().await?;
                state.volume(served.id).and_then(|meta| meta.snapshot_named(name)).cloned()
            }
        };
        match found {
            Some(snapshot) if snapshot.made.is_some() => Ok((served, snapshot)),
            Some(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "snapshot {volume}@{name} is not made yet; `helio volume snapshot list {volume}` shows when it is"
                ),
            )),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "volume {volume} has no snapshot {name:?}; `helio volume snapshot list {volume}` shows those it has"
                ),
            )),
        }
    }

    /// A session of what is stored under `name`, and whose that is.
    async fn stored(&self, name: &str) -> Result<(Arc<ServedVolume>, Arc<dyn Session>), Error> {
        let Some((volume, snapshot)) = name.split_once('@') else {
            let volume = self.named(name).await?;
            let session = VolumeSession::new(volume.clone(), session_number());
            return Ok((volume, session));
        };
        let served = self.named(volume).await?;
        if let Some(tail) = served.standing.tail().filter(|tail| tail_name(tail) == snapshot)
            && served.snapshots.named(snapshot).is_none()
        {
            return Ok((served.clone(), Arc::new(ReadOnly(KeptTail::open(served, tail).await?))));
        }
        let (volume, snapshot) = self.snapshot_named(volume, snapshot).await?;
        Ok((volume.clone(), Arc::new(ReadOnly(KeptSnapshot::new(volume, &snapshot)))))
    }

    /// The volume called `name`, also one that was made this moment at another node, in the place of one that is still here.
    async fn named(&self, name: &str) -> Result<Arc<ServedVolume>, Error> {
        let here = self.volumes.named(name);
        let state = match (here, self.metadata.get()) {
            (None, newest) => newest.await?,
            (Some(here), newest) => match tokio::time::timeout(NAME_PATIENCE, newest).await {
                Ok(Ok(state)) => match state.volume(here.id) {
                    Some(volume) if volume.name == here.name => return Ok(here),
                    _ => state,
                },
                Ok(Err(_)) | Err(_) => return Ok(here),
            },
        };
        let Some(volume) = state.volumes().find(|volume| volume.name.as_str() == name) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no volume {name:?}; `helio volume list` shows those that exist"),
            ));
        };
        self.volumes.arrival(volume.id, OPEN_PATIENCE).await.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("volume {name} exists, but this node cannot serve it yet; its log says why"),
            )
        })
    }
}

impl ExportDirectory for Exports {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(async {
            let mut exports = Vec::new();
            for volume in self.volumes.all() {
                exports.push(export_info(&volume));
                let made = volume.snapshots.all().into_iter().filter(|snapshot| snapshot.made.is_some());
                exports.extend(made.map(|snapshot| snapshot_info(&volume, &snapshot)));
                exports.extend(volume.standing.tail().map(|tail| tail_info(&volume, &tail, volume.size())));
            }
            Ok(exports)
        })
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        // What it is like may be told without a key.
        Box::pin(async { Ok(self.stored(name).await?.1.info()) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async move {
            let (volume, stored) = self.stored(name).await?;
            self.unlocker.readable(&volume, stored, &self.metadata).await
        })
    }
}

/// What an export is, for people, and whether it takes a key.
pub(super) fn described(volume: &ServedVolume, what: String) -> String {
    match volume.keys.get() {
        Some(keys) => format!("{what}, encrypted ({})", keys.cipher),
        None => what,
    }
}

pub(super) fn export_info(volume: &ServedVolume) -> ExportInfo {
    ExportInfo {
        name: volume.name.to_string(),
        description: described(volume, format!("Heliotrope volume {}", volume.name)),
        size: volume.size().bytes(),
        read_only: false,
        block_size_min: SECTOR_SIZE,
        block_size_preferred: BLOCK_SIZE,
        block_size_max: IO_SIZE_MAX,
    }
}

pub(super) fn snapshot_info(volume: &ServedVolume, snapshot: &Snapshot) -> ExportInfo {
    ExportInfo {
        name: format!("{}@{}", volume.name, snapshot.name),
        description: described(volume, format!("Heliotrope snapshot {} of volume {}", snapshot.name, volume.name)),
        size: snapshot.made.map_or(0, |made| made.size.bytes()),
        read_only: true,
        ..export_info(volume)
    }
}
