//! [`Volume`](super::Volume) for programs without `async`: the same operations, which block the calling thread.
//!
//! Owns a runtime of its own with one thread. Not to be used on a thread of another tokio runtime.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::cluster::Cluster as AsyncCluster;
use super::opening::OpenOptions;
use super::standing::VolumeState;
use super::volume::Volume as AsyncVolume;
use crate::error::{Error, ErrorKind};
use crate::wire::client::VolumeInfo;

/// A cluster; as [`super::Cluster`].
#[derive(Clone, Debug)]
pub struct Cluster {
    cluster: AsyncCluster,
    runtime: Arc<Runtime>,
}

/// A volume; as [`super::Volume`].
#[derive(Debug)]
pub struct Volume {
    volume: AsyncVolume,
    runtime: Arc<Runtime>,
}

impl Cluster {
    /// As [`super::Cluster::from_credentials`].
    ///
    /// # Errors
    /// As there, and `Internal` when the system gives no thread.
    pub fn from_credentials(path: &Path) -> Result<Cluster, Error> {
        Cluster::made(|| AsyncCluster::from_credentials(path))
    }

    /// As [`super::Cluster::from_socket`].
    ///
    /// # Errors
    /// `Internal` when the system gives no thread.
    pub fn from_socket(path: &Path) -> Result<Cluster, Error> {
        Cluster::made(|| Ok(AsyncCluster::from_socket(path)))
    }

    fn made(make: impl FnOnce() -> Result<AsyncCluster, Error>) -> Result<Cluster, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| Error::new(ErrorKind::Internal, "no thread").caused_by(error))?;
        let cluster = {
            let _entered = runtime.enter();
            make()?
        };
        Ok(Cluster { cluster, runtime: Arc::new(runtime) })
    }

    /// As [`super::Cluster::volumes`].
    ///
    /// # Errors
    /// As there.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>, Error> {
        self.runtime.block_on(self.cluster.volumes(None))
    }

    /// As [`super::Cluster::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(&self, name: &str, options: OpenOptions) -> Result<Volume, Error> {
        let volume = self.runtime.block_on(self.cluster.open(name, options))?;
        Ok(Volume { volume, runtime: self.runtime.clone() })
    }
}

impl Volume {
    /// As [`super::Volume::size`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.volume.size()
    }

    /// As [`super::Volume::state`].
    #[must_use]
    pub fn state(&self) -> VolumeState {
        self.volume.state()
    }

    /// As [`super::Volume::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        self.runtime.block_on(self.volume.read(offset, length))
    }

    /// As [`super::Volume::write_with`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        self.runtime.block_on(self.volume.write_with(offset, data, fua))
    }

    /// As [`super::Volume::zero`].
    ///
    /// # Errors
    /// As there.
    pub fn zero(&self, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        self.runtime.block_on(self.volume.zero(offset, length, fua))
    }

    /// As [`super::Volume::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<(), Error> {
        self.runtime.block_on(self.volume.flush())
    }

    /// As [`super::Volume::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(self) -> Result<(), Error> {
        self.runtime.block_on(self.volume.close())
    }
}
