//! Volumes of a cluster as exports, for a host that runs no node: what `helio-nbd` serves.
//!
//! All connections of an export share one [`Volume`]: a FLUSH on one covers what was acked on all of them, as several
//! connections of one client need it. It is opened with the first connection, and flushed and closed behind the last. A connection that
//! comes meanwhile waits for that, and has it opened anew: a machine that died leaves writes on their way, which must not come over those
//! of its successor. One that cannot be used any more is opened anew for the next connection. Where a volume stands is passed on to the
//! directory of another process as [`RemoteState`]: it is settled before, so no write goes along or comes later.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use client_lib::client::{Cluster, Extent, Found, OpenOptions, Position, Volume, VolumeStatus};
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::rights::Right;
use client_lib::transport::BoxFuture;
use client_lib::wire::client::{ExtentState, ListedVolume};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, ReadPart, SECTOR_SIZE};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::export::{AllocationExtent, ExportDirectory, ExportInfo, Residency, ResidencyExtent, Session, ZeroOptions};

/// How long a handshake waits for what was open before to be closed, and for a node that answers: shorter than the handshake may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);
/// How long the flush behind the last connection of an export may take; the data is as safe as its node is then. No shorter than an
/// attempt at a write, which is waited for in any case.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the owner of a volume that is passed on to this process may take to answer; its clients wait meanwhile.
const RESUME_PATIENCE: Duration = Duration::from_secs(4);

/// A volume as one process passes it on to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteState {
    /// How its cluster is reached ([`Cluster::way`]): the same volume may be another one elsewhere.
    pub way: String,
    /// Whether writes are refused, which its clients were told.
    pub is_read_only: bool,
    /// Where its use stands.
    pub position: Position,
}

impl RemoteState {
    /// As bytes (docs/format.md, "helio-nbd to its successor").
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("numbers and strings can be encoded")
    }

    /// From bytes.
    ///
    /// # Errors
    /// `Corrupt`: they are something else.
    pub fn decode(bytes: &[u8]) -> Result<RemoteState, Error> {
        match postcard::take_from_bytes(bytes) {
            Ok((state, [])) => Ok(state),
            Ok(_) | Err(_) => Err(Error::new(ErrorKind::Corrupt, "what was passed on is not the state of a volume")),
        }
    }
}

/// The volumes of a cluster.
pub struct RemoteDirectory {
    /// The same one, on a thread each; volumes are spread over them.
    clusters: Vec<Cluster>,
    turn: AtomicUsize,
    /// Those that are exported; `None` is all.
    names: Option<Vec<String>>,
    options: OpenOptions,
    places: std::sync::Mutex<BTreeMap<String, Arc<Mutex<Place>>>>,
    /// What is about to be passed on to this process.
    expected: Mutex<BTreeMap<String, (Cluster, Found)>>,
    closing: TaskTracker,
}

/// What is known of an export's volume: one at a time is open, or being closed. Locked while one is being opened.
#[derive(Default)]
struct Place {
    shared: Weak<Shared>,
    /// Cancelled when it was closed; `None` before the first.
    closed: Option<CancellationToken>,
}

impl Place {
    fn of(shared: &Arc<Shared>) -> Place {
        Place { shared: Arc::downgrade(shared), closed: Some(shared.closed.clone()) }
    }

    /// What a further connection uses, too.
    fn usable(&self) -> Option<Arc<Shared>> {
        let is_failed = |volume: &Volume| matches!(volume.state().status, VolumeStatus::Failed(_));
        self.shared.upgrade().filter(|shared| shared.volume.as_ref().is_some_and(|volume| !is_failed(volume)))
    }

    /// What has no connection any more and is not closed yet.
    fn being_closed(&self) -> Option<&CancellationToken> {
        // One that has failed sends nothing any more, for as long as it still has connections.
        self.closed.as_ref().filter(|closed| self.shared.strong_count() == 0 && !closed.is_cancelled())
    }

    fn is_empty(&self) -> bool {
        self.shared.strong_count() == 0 && self.being_closed().is_none()
    }
}

/// A volume and its connections.
struct Shared {
    /// `None` once it is being closed.
    volume: Option<Volume>,
    /// The same for no other.
    number: u64,
    way: Arc<str>,
    is_read_only: bool,
    runtime: Handle,
    closing: TaskTracker,
    /// Cancelled when the volume was closed.
    closed: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Also if its runtime has ended, and the task with it.
        let closed = self.closed.clone().drop_guard();
        let Some(volume) = self.volume.take() else { return };
        let name = volume.name().to_owned();
        self.closing.spawn_on(
            async move {
                let _closed = closed;
                match volume.close_within(CLOSE_PATIENCE).await {
                    Ok(()) => tracing::info!(export = name, "closed"),
                    Err(error) => tracing::warn!(export = name, %error, "closed, and not flushed"),
                }
            },
            &self.runtime,
        );
    }
}

impl RemoteDirectory {
    /// Exports `names` of a cluster, or all of its volumes, opened with `options`; for reading what may only be read. `clusters` are the same one, each on a runtime of
    /// one thread; the connections of a volume are served on the thread of its cluster.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn new(clusters: Vec<Cluster>, names: Option<Vec<String>>, options: OpenOptions) -> RemoteDirectory {
        assert!(!clusters.is_empty(), "volumes of no cluster");
        let options = OpenOptions { or_read_only: true, ..options };
        let (places, expected, turn) = (std::sync::Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        RemoteDirectory { clusters, turn, names, options, places, expected, closing: TaskTracker::new() }
    }

    /// For the next volume.
    fn cluster(&self) -> &Cluster {
        &self.clusters[self.turn.fetch_add(1, Ordering::Relaxed) % self.clusters.len()]
    }

    /// How a volume is looked up by who does not wait for ever.
    fn looking(&self) -> OpenOptions {
        OpenOptions { give_up: Some(OPEN_PATIENCE), ..self.options.clone() }
    }

    /// For what any answers.
    fn any(&self) -> &Cluster {
        &self.clusters[0]
    }

    /// Why exports cannot be served as the cluster is now: a sentence each, none when all can. Asks the cluster as a client's handshake
    /// would, and tries no keys.
    pub async fn hindrances(&self) -> Vec<String> {
        let Some(names) = &self.names else {
            return self.any().list(Some(OPEN_PATIENCE)).await.err().iter().map(Error::to_string).collect();
        };
        let mut hindrances = Vec::new();
        for name in names {
            match self.look_for(name).await {
                Ok(()) => {}
                // Of no other will it say anything else.
                Err(error) if error.kind() == ErrorKind::Unavailable => return vec![error.to_string()],
                Err(error) => hindrances.push(format!("export {name}: {error}")),
            }
        }
        hindrances
    }

    async fn look_for(&self, name: &str) -> Result<(), Error> {
        match &self.options.keys {
            Some(_) => self.any().is_encrypted(name, Some(OPEN_PATIENCE)).await.map(drop),
            None => self.any().find(name, &self.looking()).await.map(drop),
        }
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

    /// Where the volume of an export is noted.
    fn place(&self, name: &str) -> Arc<Mutex<Place>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        // Clients name what they like. One that somebody has is about to be filled.
        places.retain(|_, place| Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|place| !place.is_empty()));
        places.entry(name.to_owned()).or_default().clone()
    }

    async fn shared(&self, name: &str) -> Result<Arc<Shared>, Error> {
        let end = Instant::now() + OPEN_PATIENCE;
        let name = self.meant(name)?;
        let place = self.place(name);
        let mut place = place.lock().await;
        if let Some(shared) = place.usable() {
            return Ok(shared);
        }
        if let Some(closed) = place.being_closed() {
            tokio::time::timeout_at(end, closed.cancelled()).await.map_err(|_| still_closing(name))?;
        }
        let cluster = self.cluster();
        let opening = cluster.open(name, self.options.clone());
        let volume = tokio::time::timeout_at(end, opening).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "no node of the cluster answers; the log says more"))
        })?;
        let shared = self.share(cluster, volume);
        *place = Place::of(&shared);
        Ok(shared)
    }

    fn share(&self, cluster: &Cluster, volume: Volume) -> Arc<Shared> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (runtime, closing) = (cluster.runtime().clone(), self.closing.clone());
        Arc::new(Shared {
            volume: Some(volume),
            number,
            way: self.any().way().into(),
            is_read_only: self.options.is_read_only,
            runtime,
            closing,
            closed: CancellationToken::new(),
        })
    }

    /// What another process passes on, if it can be taken up here.
    fn passed(&self, state: &[u8]) -> Result<Position, Error> {
        let RemoteState { way, is_read_only, position } = RemoteState::decode(state)?;
        let refuse = |text: String| Err(Error::new(ErrorKind::InvalidRequest, text));
        if way != self.any().way() {
            return refuse(format!(
                "it uses {way}, and this one {}: give it the same --cluster or --node",
                self.any().way()
            ));
        }
        if is_read_only != self.options.is_read_only {
            let told = if is_read_only { "only read" } else { "written" };
            return refuse(format!(
                "its disks can be {told}, and this one has it otherwise: --read-only is to be the same"
            ));
        }
        self.meant(&position.name)?;
        Ok(position)
    }

    /// Looks a volume up for the thread that is to serve it, which has a connection to a node then.
    async fn look_up(&self, name: &str) -> Result<(Cluster, Found), Error> {
        let cluster = self.cluster().clone();
        let found = cluster.find(name, &self.looking()).await?;
        Ok((cluster, found))
    }

    async fn take_up(&self, state: &[u8]) -> Result<Arc<Shared>, Error> {
        let position = self.passed(state)?;
        let name = &position.name;
        let expected = self.expected.lock().await.remove(name);
        let (cluster, found) = match expected {
            Some(expected) => expected,
            // Opened after it was told what is in use.
            None => self.look_up(name).await?,
        };
        let volume = cluster.resume(&found, &position, self.options.clone())?;
        let mut followed = volume.subscribe();
        let known = followed.wait_for(|state| !matches!(state.status, VolumeStatus::Waiting(_)));
        if tokio::time::timeout(RESUME_PATIENCE, known).await.is_err()
            && let VolumeStatus::Waiting(why) = volume.state().status
        {
            return Err(Error::new(ErrorKind::Unavailable, format!("volume {name} waits: {why}")));
        }
        let is_usable = !matches!(volume.state().status, VolumeStatus::Failed(_));
        let shared = self.share(&cluster, volume);
        if is_usable {
            *self.place(&position.name).lock().await = Place::of(&shared);
        }
        Ok(shared)
    }

    async fn listed(&self) -> Result<Vec<ExportInfo>, Error> {
        let volumes = self.any().list(Some(OPEN_PATIENCE)).await?;
        let is_exported =
            |listed: &&ListedVolume| self.names.as_ref().is_none_or(|names| names.contains(&listed.volume.name));
        let exported = volumes.iter().filter(is_exported);
        Ok(exported.map(|listed| self.described(listed)).collect())
    }

    fn described(&self, ListedVolume { volume, right }: &ListedVolume) -> ExportInfo {
        let read_only = volume.is_snapshot || self.options.is_read_only || *right < Right::Write;
        described(&volume.name, volume.size, read_only, false)
    }
}

fn still_closing(name: &str) -> Error {
    let text = format!(
        "export {name} is still being closed behind its last connection, and its owner does not answer; within half a minute it is closed \
         in any case, and can be used again"
    );
    Error::new(ErrorKind::Unavailable, text)
}

/// `is_encrypted` as far as that is known before it is opened.
fn described(name: &str, size: u64, read_only: bool, is_encrypted: bool) -> ExportInfo {
    let encrypted = if is_encrypted { ", encrypted" } else { "" };
    ExportInfo {
        name: name.to_owned(),
        description: format!("Heliotrope volume {name}{encrypted}"),
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
            let none = || {
                let text = format!("the cluster has no volume {name:?} that may be used with these credentials");
                Error::new(ErrorKind::NotFound, text)
            };
            let export = self.listed().await?.into_iter().find(|export| export.name == name).ok_or_else(none)?;
            // Nobody who has no key could open it, and nobody else has to wait for the answer.
            let is_encrypted =
                self.options.keys.is_some() && self.any().is_encrypted(name, Some(OPEN_PATIENCE)).await?;
            Ok(described(name, export.size, export.read_only, is_encrypted))
        })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async move { Ok(Arc::new(Connection(self.shared(name).await?)) as Arc<dyn Session>) })
    }

    fn expect<'a>(&'a self, draft: &'a [u8]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let position = self.passed(draft)?;
            let found = self.look_up(&position.name).await?;
            self.expected.lock().await.insert(position.name, found);
            Ok(())
        })
    }

    fn resume<'a>(&'a self, state: &'a [u8]) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async move { Ok(Arc::new(Connection(self.take_up(state).await?)) as Arc<dyn Session>) })
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
        described(volume.name(), volume.size(), volume.is_read_only(), volume.is_encrypted())
    }

    /// Where its requests are sent from and their answers come to.
    fn home(&self) -> Option<Handle> {
        Some(self.0.runtime.clone())
    }

    fn share(&self) -> Option<u64> {
        Some(self.0.number)
    }

    fn waits_for(&self) -> Option<String> {
        match self.volume().state().status {
            VolumeStatus::Waiting(why) => Some(why),
            VolumeStatus::Connected | VolumeStatus::Failed(_) => None,
        }
    }

    fn draft(&self) -> Vec<u8> {
        let position = self.volume().position();
        // A snapshot is read-only in itself, whatever was asked for.
        let is_read_only = self.0.is_read_only;
        RemoteState { way: self.0.way.to_string(), is_read_only, position }.encode()
    }

    fn settle(&self) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            // Also what connections have left behind that are gone: it must not come over what the other process writes.
            match self.volume().settle().await {
                // What is over is passed on as that.
                Err(error) if !matches!(self.volume().state().status, VolumeStatus::Failed(_)) => Err(error),
                Ok(()) | Err(_) => Ok(self.draft()),
            }
        })
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(self.volume().read_parts(offset, length))
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
