//! Volumes of a cluster as exports, for a host that runs no node: what `helio-nbd` serves.
//!
//! All connections of an export share one [`Volume`]: a FLUSH on one covers what was acked on all of them, as several
//! connections of one client need it. It is opened with the first connection, and flushed and closed behind the last: then no
//! write of it can be sent again over what somebody else writes later. One that cannot be used any more is opened anew for the
//! next connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use client_lib::client::{Cluster, Extent, OpenOptions, Volume, VolumeStatus};
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::transport::BoxFuture;
use client_lib::wire::client::{ExtentState, Part, VolumeInfo};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, SECTOR_SIZE};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::export::{
    AllocationExtent, ExportDirectory, ExportInfo, ReadPart, Residency, ResidencyExtent, Session, ZeroOptions,
};

/// How long a handshake waits for a node that answers: shorter than the handshake may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);
/// How long the flush behind the last connection of an export may take; the data is as safe as its node is.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// The volumes of a cluster.
pub struct RemoteDirectory {
    cluster: Cluster,
    /// Those that are exported; `None` is all.
    names: Option<Vec<String>>,
    options: OpenOptions,
    open: Mutex<BTreeMap<String, Weak<Shared>>>,
    runtime: Handle,
    closing: TaskTracker,
}

/// A volume and its connections.
struct Shared {
    /// `None` once it is being closed.
    volume: Option<Volume>,
    runtime: Handle,
    closing: TaskTracker,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(volume) = self.volume.take() else { return };
        let name = volume.name().to_owned();
        self.closing.spawn_on(
            async move {
                match tokio::time::timeout(CLOSE_PATIENCE, volume.close()).await {
                    Ok(Ok(())) => tracing::info!(export = name, "closed"),
                    Ok(Err(error)) => tracing::warn!(export = name, %error, "closed, and not flushed"),
                    Err(_) => tracing::warn!(export = name, "closed, and not flushed: that takes too long"),
                }
            },
            &self.runtime,
        );
    }
}

impl RemoteDirectory {
    /// Exports `names` of `cluster`, or all of its volumes, opened with `options`. Needs a tokio runtime, which must outlive it.
    #[must_use]
    pub fn new(cluster: Cluster, names: Option<Vec<String>>, options: OpenOptions) -> RemoteDirectory {
        let (open, runtime, closing) = (Mutex::default(), Handle::current(), TaskTracker::new());
        RemoteDirectory { cluster, names, options, open, runtime, closing }
    }

    /// Waits until the volumes of connections that have ended are flushed and closed.
    pub async fn closed(&self) {
        self.closing.close();
        self.closing.wait().await;
    }

    /// The name that a client means: the empty one is the only export, if there is only one.
    fn meant<'a>(&'a self, name: &'a str) -> Result<&'a str, Error> {
        let refuse = |text: String| Err(Error::new(ErrorKind::NotFound, text));
        match &self.names {
            None if name.is_empty() => refuse("no export has the empty name; name a volume".to_owned()),
            None => Ok(name),
            Some(names) if name.is_empty() => match names.as_slice() {
                [only] => Ok(only),
                _ => refuse("there are several exports; name one of them".to_owned()),
            },
            Some(names) if names.iter().any(|exported| exported == name) => Ok(name),
            Some(_) => refuse(format!("{name:?} is not exported here")),
        }
    }

    async fn shared(&self, name: &str) -> Result<Arc<Shared>, Error> {
        let name = self.meant(name)?;
        let mut open = self.open.lock().await;
        open.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = open.get(name).and_then(Weak::upgrade)
            && shared.volume.as_ref().is_some_and(|volume| !matches!(volume.state().status, VolumeStatus::Failed(_)))
        {
            return Ok(shared);
        }
        let opening = self.cluster.open(name, self.options.clone());
        let volume = tokio::time::timeout(OPEN_PATIENCE, opening).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "no node of the cluster answers; the log says more"))
        })?;
        let (runtime, closing) = (self.runtime.clone(), self.closing.clone());
        let shared = Arc::new(Shared { volume: Some(volume), runtime, closing });
        open.insert(name.to_owned(), Arc::downgrade(&shared));
        Ok(shared)
    }

    async fn listed(&self) -> Result<Vec<ExportInfo>, Error> {
        let volumes = self.cluster.volumes(Some(OPEN_PATIENCE)).await?;
        let is_exported = |volume: &&VolumeInfo| self.names.as_ref().is_none_or(|names| names.contains(&volume.name));
        let exported = volumes.iter().filter(is_exported);
        Ok(exported.map(|volume| self.described(&volume.name, volume.size, volume.is_snapshot)).collect())
    }

    fn described(&self, name: &str, size: u64, is_snapshot: bool) -> ExportInfo {
        described(name, size, is_snapshot || self.options.is_read_only)
    }
}

fn described(name: &str, size: u64, read_only: bool) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: format!("Heliotrope volume {name}"),
        size,
        read_only,
        block_size_min: SECTOR_SIZE,
        block_size_preferred: BLOCK_SIZE,
        block_size_max: IO_SIZE_MAX,
    }
}

impl ExportDirectory for RemoteDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(self.listed())
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async move {
            let name = self.meant(name)?;
            let none = || Error::new(ErrorKind::NotFound, format!("the cluster has no volume {name:?}"));
            self.listed().await?.into_iter().find(|export| export.name == name).ok_or_else(none)
        })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async move { Ok(Arc::new(Connection(self.shared(name).await?)) as Arc<dyn Session>) })
    }
}

/// One connection.
struct Connection(Arc<Shared>);

impl Connection {
    fn volume(&self) -> &Volume {
        self.0.volume.as_ref().expect("it is closed behind the last connection")
    }
}

impl Session for Connection {
    fn info(&self) -> ExportInfo {
        let volume = self.volume();
        described(volume.name(), volume.size(), volume.is_read_only())
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            let part = |part| match part {
                Part::Data(data) => ReadPart::Data(data),
                Part::Zero(length) => ReadPart::Hole(length),
            };
            Ok(self.volume().read_parts(offset, length).await?.into_iter().map(part).collect())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume().write_with(offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume().zero(offset, length, options.fua))
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume().zero(offset, length, fua))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume().flush())
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async move {
            let extent = |Extent { length, state }| {
                let zero = state == ExtentState::Zero;
                AllocationExtent { length, allocated: !zero, zero }
            };
            Ok(self.volume().extents(offset, length).await?.into_iter().map(extent).collect())
        })
    }

    /// Seen from the owner: what is there needs no fetching.
    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        Box::pin(async move {
            let residency = |state| match state {
                ExtentState::Data => Residency::Local,
                ExtentState::Stale => Residency::Stale,
                ExtentState::Zero => Residency::Zero,
            };
            let extent = |Extent { length, state }| ResidencyExtent { length, residency: residency(state) };
            Ok(self.volume().residency(offset, length).await?.into_iter().map(extent).collect())
        })
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.volume().cache(offset, length))
    }
}
