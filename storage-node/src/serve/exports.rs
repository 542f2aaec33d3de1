//! NBD's directory of exports: every volume, at every node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_lib::geometry::IO_SIZE_MAX;
use client_lib::transport::BoxFuture;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, SECTOR_SIZE};
use nbd_frontend::export::{ExportDirectory, ExportInfo, Session};

use super::metadata::NewestMetadata;
use super::session::VolumeSession;
use super::volume::ServedVolume;
use super::volumes::Volumes;

/// How long a client waits for a volume that exists and that this node has not opened yet. Shorter than the patience
/// of the NBD handshake.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// The volumes as exports.
pub struct Exports {
    volumes: Arc<Volumes>,
    metadata: Arc<NewestMetadata>,
    next_session: AtomicU64,
}

impl Exports {
    /// Exports `volumes`. Session numbers count up from `first_session`; they must never repeat in the cluster's life.
    #[must_use]
    pub fn new(volumes: Arc<Volumes>, metadata: Arc<NewestMetadata>, first_session: u64) -> Exports {
        Exports { volumes, metadata, next_session: AtomicU64::new(first_session) }
    }

    /// The volume called `name`, also one that was made this moment at another node.
    async fn named(&self, name: &str) -> Result<Arc<ServedVolume>, Error> {
        if let Some(volume) = self.volumes.named(name) {
            return Ok(volume);
        }
        let state = self.metadata.get().await?;
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
        Box::pin(async { Ok(self.volumes.all().iter().map(|volume| export_info(volume)).collect()) })
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async { Ok(export_info(&*self.named(name).await?)) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async {
            let session =
                VolumeSession::new(self.named(name).await?, self.next_session.fetch_add(1, Ordering::Relaxed));
            Ok(Arc::new(session) as Arc<dyn Session>)
        })
    }
}

pub(super) fn export_info(volume: &ServedVolume) -> ExportInfo {
    ExportInfo {
        name: volume.name.to_string(),
        description: format!("Heliotrope volume {}", volume.name),
        size: volume.size().bytes(),
        read_only: false,
        block_size_min: SECTOR_SIZE,
        block_size_preferred: BLOCK_SIZE,
        block_size_max: IO_SIZE_MAX,
    }
}
