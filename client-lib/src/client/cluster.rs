//! A cluster, as its clients reach it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::credentials::{CredentialsFile, Stamp, require_not_ended};
use super::nodes::{Nodes, out_of_turn};
use super::opening::{Found, OpenOptions};
use super::standing::Position;
use super::volume::Volume;
use crate::cipher::{VolumeCipher, VolumeKeys};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind};
use crate::pki::{ClientIdentity, PkiError};
use crate::rights::Right;
use crate::transport::Transport;
use crate::transport::quic::QuicTransport;
use crate::transport::unix::UnixTransport;
use crate::types::{NAME_LEN_MAX, NodeId};
use crate::wire::client::{
    ClientReply, ClientRequest, ListedVolume, MemberInfo, OPEN_NAME_LEN_MAX, Opened, VolumeInfo,
};

/// A cluster. Clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    nodes: Arc<Nodes>,
    /// Where everything lives that nobody waits for.
    runtime: Handle,
    /// Closed with the cluster.
    quic: Option<Arc<QuicTransport>>,
    way: Arc<str>,
    /// As whom it is asked: `client NAME`.
    who: Arc<str>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("quic", &self.quic).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster of these credentials, a file that `helio cluster client` wrote. Connects to nobody yet. Needs a tokio
    /// runtime, on which connections, writes that have begun and what keeps volumes connected live.
    ///
    /// When the file is replaced, the next connection is made with what is in it then: nodes end those of a client whose certificate has ended.
    ///
    /// # Errors
    /// `InvalidRequest` when the file cannot be used, or its certificate has ended, and says what to do; `Internal` when the system gives no socket.
    pub fn from_credentials(path: &Path) -> Result<Cluster, Error> {
        let unusable = |error: PkiError| {
            let text = "the credentials cannot be used; `helio cluster client NAME --out FILE` writes such a file";
            Error::new(ErrorKind::InvalidRequest, text).caused_by(error)
        };
        // Looked at before they are read: a change in between is seen as one.
        let stamp = Stamp::of(path);
        let identity = ClientIdentity::load(path).map_err(unusable)?;
        require_not_ended(&identity, SystemClock::new().unix_ms())?;
        let cluster = Cluster::with_identity(&identity)?;
        let file = CredentialsFile::new(path, stamp, identity);
        cluster.quic.iter().for_each(|quic| {
            quic.before_handshakes({
                let file = file.clone();
                move || file.look()
            })
        });
        Ok(cluster)
    }

    /// The same for credentials that were read already.
    ///
    /// # Errors
    /// As [`from_credentials`](Self::from_credentials).
    pub fn with_identity(identity: &ClientIdentity) -> Result<Cluster, Error> {
        let failed = |what: &'static str| move |error| Error::new(ErrorKind::Internal, what).caused_by(error);
        let is_v6 = identity.nodes().iter().any(|node| node.address.is_ipv6());
        let any: SocketAddr =
            if is_v6 { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any).map_err(failed("no socket for the cluster"))?;
        let quic = QuicTransport::client(socket, identity)
            .map_err(|error| Error::new(ErrorKind::Internal, "the cluster cannot be called").caused_by(error))?;
        let member = |node: &crate::pki::NodePlace| MemberInfo {
            node: node.id,
            name: node.name.to_string(),
            provider: String::new(),
            address: node.address.to_string(),
        };
        let members = identity.nodes().iter().map(member).collect();
        let nodes = Arc::new(Nodes::new(quic.clone(), members));
        let way = format!("cluster {}", identity.cluster()).into();
        let who = format!("client {}", identity.name()).into();
        Ok(Cluster { nodes, runtime: Handle::current(), quic: Some(quic), way, who })
    }

    /// The cluster of the node whose socket for clients this is (`client.sock` in its data directory, or that directory), on this machine. Connects to
    /// nobody yet; everything goes through that node, and waits while it does not run. Needs a tokio runtime, as
    /// [`from_credentials`](Self::from_credentials).
    #[must_use]
    pub fn from_socket(path: &Path) -> Cluster {
        let (name, address) = (path.display().to_string(), String::new());
        let node = MemberInfo { node: NodeId(0), name, provider: String::new(), address };
        let way = format!("the node at {}", std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display());
        Cluster { way: way.into(), ..Cluster::over(UnixTransport::new(path), vec![node]) }
    }

    /// The cluster of `members` over a transport that reaches them: for tests and simulation. Needs a tokio runtime.
    #[must_use]
    pub fn over(transport: Arc<dyn Transport>, members: Vec<MemberInfo>) -> Cluster {
        let nodes = Arc::new(Nodes::new(transport, members));
        Cluster { nodes, runtime: Handle::current(), quic: None, way: "a transport".into(), who: "this client".into() }
    }

    /// The nodes.
    ///
    /// # Errors
    /// `Unavailable` when none answers within `give_up`; `InvalidRequest` when none of them accepts the credentials, however long it
    /// is waited.
    pub async fn members(&self, give_up: Option<Duration>) -> Result<Vec<MemberInfo>, Error> {
        match self.nodes.ask_first(ClientRequest::Members, give_up).await?.0 {
            ClientReply::Members(members) => Ok(members),
            reply => Err(out_of_turn(&reply)),
        }
    }

    /// The volumes and their snapshots that this client may use, by name.
    ///
    /// # Errors
    /// As [`members`](Self::members).
    pub async fn volumes(&self, give_up: Option<Duration>) -> Result<Vec<VolumeInfo>, Error> {
        Ok(self.list(give_up).await?.into_iter().map(|listed| listed.volume).collect())
    }

    /// The same, and what it may do with each.
    ///
    /// # Errors
    /// As [`members`](Self::members).
    pub async fn list(&self, give_up: Option<Duration>) -> Result<Vec<ListedVolume>, Error> {
        match self.ask_for(ClientRequest::List, ClientRequest::Volumes, give_up).await? {
            ClientReply::Listed(volumes) => Ok(volumes),
            // Of a node that limits nobody.
            ClientReply::Volumes(volumes) => {
                Ok(volumes.into_iter().map(|volume| ListedVolume { volume, right: Right::Write }).collect())
            }
            reply => Err(out_of_turn(&reply)),
        }
    }

    /// Asks for `request`, or for `before` where a node is of a version that does not know that.
    async fn ask_for(
        &self,
        request: ClientRequest,
        before: ClientRequest,
        give_up: Option<Duration>,
    ) -> Result<ClientReply, Error> {
        match self.nodes.ask_first(request, give_up).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(self.nodes.ask_first(before, give_up).await?.0),
            answer => Ok(answer?.0),
        }
    }

    /// Opens a volume, or a snapshot by `VOLUME@SNAPSHOT`, which can only be read. Returns when a node knows it; what is asked
    /// of it then waits until its owner is found.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when no node answers in time, or the snapshot is not made yet; `InvalidRequest` when no node accepts
    /// the credentials, their client may not use the volume so, or it is encrypted and [`OpenOptions::keys`] do not open it; `Corrupt`
    /// when what is sealed under one of them is damaged.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(&self, name: &str, options: OpenOptions) -> Result<Volume, Error> {
        let found = self.find(name, &options).await?;
        let may_read_only = found.right < Right::Write && found.opened.snapshot.is_none();
        if may_read_only && !options.is_read_only && !options.or_read_only {
            let text = format!(
                "{} may only read volume {name}: open it read-only; or, for it to be written, `helio cluster client allow NAME {name}` at a \
                 node",
                self.who
            );
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        }
        let options = found.options(options);
        Ok(Volume::new(&self.runtime, self.nodes.clone(), name, found, options, None))
    }

    /// Looks a volume or snapshot up: the part of [`resume`](Self::resume) that asks somebody.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn find(&self, name: &str, options: &OpenOptions) -> Result<Found, Error> {
        let (opened, right, keys) = self.look_up(name, options.give_up).await?;
        let cipher = match (&options.keys, keys) {
            (Some(source), Some(keys)) => Some(VolumeCipher::unlocked(source, name, &keys).await?),
            (None, Some(keys)) => {
                let text =
                    format!("volume {name} is encrypted, and no key was given: it takes one of {}", keys.openers());
                return Err(Error::new(ErrorKind::InvalidRequest, text));
            }
            (Some(_), None) if !options.allows_plain => {
                let text = format!(
                    "volume {name} is not encrypted, as the cluster says, and keys were given: say that this is allowed if it is to be"
                );
                return Err(Error::new(ErrorKind::InvalidRequest, text));
            }
            (_, None) => None,
        };
        Ok(Found { opened, cipher, right })
    }

    /// Whether a volume or snapshot is encrypted, as the cluster says. Takes no key.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable` and `InvalidRequest` as [`open`](Self::open).
    pub async fn is_encrypted(&self, name: &str, give_up: Option<Duration>) -> Result<bool, Error> {
        Ok(self.look_up(name, give_up).await?.2.is_some())
    }

    async fn look_up(
        &self,
        name: &str,
        give_up: Option<Duration>,
    ) -> Result<(Opened, Right, Option<VolumeKeys>), Error> {
        // Which no node reads: it would be taken for one of another version.
        if name.len() > OPEN_NAME_LEN_MAX {
            let begins: String = name.chars().take(NAME_LEN_MAX).collect();
            let text = format!("there is no volume {begins:?}…: names have at most {NAME_LEN_MAX} characters");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let request = ClientRequest::OpenFor { name: name.to_owned() };
        let before = ClientRequest::Open { name: name.to_owned() };
        match self.ask_for(request, before, give_up).await? {
            ClientReply::OpenedFor { opened, right, keys } => Ok((opened, right, keys)),
            // Of a node that limits nobody and has no encrypted volumes; others refuse to open them so.
            ClientReply::Opened(opened) => Ok((opened, Right::Write, None)),
            reply => Err(out_of_turn(&reply)),
        }
    }

    /// Goes on with the use of a volume where another process has left it, which asks nothing of it any more. What would have
    /// ended its use there, ends this one: no takeover is missed in between.
    ///
    /// # Errors
    /// `NotFound` when what has the name now is not what was used.
    pub fn resume(&self, found: &Found, position: &Position, options: OpenOptions) -> Result<Volume, Error> {
        let opened = &found.opened;
        if (opened.volume, opened.snapshot) != (position.volume, position.snapshot) {
            let text = format!("{} is not what it was: what was used is deleted, or in another cluster", position.name);
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let options = found.options(options);
        Ok(Volume::new(&self.runtime, self.nodes.clone(), &position.name, found.clone(), options, Some(position)))
    }

    /// Where everything lives that nobody waits for. What is asked from there wakes no other thread.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// By what the cluster is known and reached: the same for who uses it in the same way.
    #[must_use]
    pub fn way(&self) -> &str {
        &self.way
    }

    /// Ends every connection. Close the volumes first: what is asked of them fails from now on.
    pub async fn close(&self) {
        if let Some(quic) = &self.quic {
            quic.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;

    use super::super::stub::cluster_of;
    use super::*;
    use crate::transport::TransportError;
    use crate::types::{Epoch, Lsn, SnapshotId, VolumeId};
    use crate::wire::client::{Attached, ForkInfo, Tenure};

    /// Its node answers who opens and who lists, and nothing else. With no `right` it is of a version that does not know the question what may be
    /// done.
    fn cluster(right: Option<Right>) -> Cluster {
        let opened = |name: &str| Opened {
            volume: VolumeId(9),
            snapshot: name.contains('@').then_some(SnapshotId(2)),
            size: 1 << 20,
            session: 1,
            epoch: Epoch(1),
        };
        cluster_of(move |request| {
            let volume = VolumeInfo { name: "disk".into(), size: 1 << 20, is_snapshot: false };
            Ok(match (request, right) {
                (ClientRequest::OpenFor { name }, Some(right)) => {
                    ClientReply::OpenedFor { opened: opened(name), right, keys: None }
                }
                (ClientRequest::List, Some(right)) => ClientReply::Listed(vec![ListedVolume { volume, right }]),
                (ClientRequest::Open { name }, None) => ClientReply::Opened(opened(name)),
                (ClientRequest::Volumes, None) => ClientReply::Volumes(vec![volume]),
                (ClientRequest::Attach { .. } | ClientRequest::Members, _) => {
                    ClientReply::Failed(Error::new(ErrorKind::Unavailable, "nobody owns it"))
                }
                _ => ClientReply::Failed(Error::new(ErrorKind::Corrupt, "a message cannot be read")),
            })
        })
    }

    #[tokio::test]
    async fn what_may_only_be_read_is_opened_for_reading_or_not_at_all() {
        let cluster = cluster(Some(Right::Read));
        let refused = cluster.open("disk", OpenOptions::default()).await.expect_err("may not be written");
        assert_eq!(refused.kind(), ErrorKind::InvalidRequest);
        assert!(refused.to_string().contains("may only read volume disk"), "{refused}");
        for options in [
            OpenOptions { is_read_only: true, ..OpenOptions::default() },
            OpenOptions { or_read_only: true, ..OpenOptions::default() },
        ] {
            let volume = cluster.open("disk", options).await.expect("opens");
            assert!(volume.is_read_only());
            assert_eq!(
                volume.write(0, Bytes::from(vec![0; 512])).await.expect_err("reads").kind(),
                ErrorKind::NotOwner
            );
        }
        assert!(cluster.open("disk@kept", OpenOptions::default()).await.expect("a snapshot").is_read_only());
        assert_eq!(cluster.list(None).await.expect("are listed")[0].right, Right::Read);
    }

    /// While a cluster is upgraded a client meets nodes that cannot read what it asks first.
    #[tokio::test]
    async fn a_node_of_the_version_before_limits_nobody() {
        let cluster = cluster(None);
        let volume = cluster.open("disk", OpenOptions { or_read_only: true, ..OpenOptions::default() }).await;
        assert!(!volume.expect("opens").is_read_only());
        assert_eq!(cluster.list(None).await.expect("are listed")[0].right, Right::Write);
        assert_eq!(cluster.volumes(None).await.expect("are listed").len(), 1);
    }

    /// A volume that was opened in epoch 3, and is taken over before anybody has written; and what closes its cluster.
    async fn taken_over() -> (Volume, Arc<AtomicBool>) {
        let (owner, size) = (NodeId(1), 1 << 20);
        let tenure = Tenure { epoch: Epoch(4), incarnation: 1 };
        let opened = Opened { volume: VolumeId(9), snapshot: None, size, session: 1, epoch: Epoch(3) };
        let end = Lsn::new(opened.epoch, 7);
        let closing = Arc::new(AtomicBool::new(false));
        let is_closed = closing.clone();
        let cluster = cluster_of(move |request| {
            if is_closed.load(Ordering::Relaxed) {
                return Err(TransportError::Closed);
            }
            let opened = opened.clone();
            Ok(match request {
                ClientRequest::OpenFor { .. } => ClientReply::OpenedFor { opened, right: Right::Write, keys: None },
                ClientRequest::Attach { .. } => ClientReply::Attached(Attached {
                    tenure,
                    owner,
                    size,
                    head: end,
                    forks: vec![ForkInfo { epoch: tenure.epoch, end }],
                    claimed: Epoch(0),
                    done: Vec::new(),
                }),
                ClientRequest::Write { id, .. } if id.right < tenure.epoch => {
                    ClientReply::Failed(Error::new(ErrorKind::Fenced, "this client lost its right to write"))
                }
                ClientRequest::Write { .. } => ClientReply::Written { lsn: Lsn::new(tenure.epoch, 1), durable: false },
                ClientRequest::Flush { .. } => ClientReply::Flushed(true),
                _ => ClientReply::Failed(Error::new(ErrorKind::Unavailable, "not now")),
            })
        });
        (cluster.open("disk", OpenOptions::default()).await.expect("opens"), closing)
    }

    /// A machine that was started between the loss of a node and the takeover had an error of its first write: the right that it was opened with
    /// was over, though nothing that it relied on was lost.
    #[tokio::test]
    async fn what_was_opened_before_a_takeover_and_not_used_may_write_after_it() {
        let (volume, _) = taken_over().await;
        volume.write(0, Bytes::from(vec![1; 512])).await.expect("is written");
        volume.flush().await.expect("is durable");
    }

    /// Operations of a volume without `give_up` waited for ever for a cluster that was closed.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_is_closed_fails_what_is_asked_of_its_volumes() {
        let (volume, closing) = taken_over().await;
        volume.write(0, Bytes::from(vec![1; 512])).await.expect("is written");
        closing.store(true, Ordering::Relaxed);
        let patience = Duration::from_secs(60);
        let asked = tokio::time::timeout(patience, volume.write(512, Bytes::from(vec![2; 512]))).await;
        assert_eq!(asked.expect("does not wait").expect_err("is closed").kind(), ErrorKind::Closed);
        let asked = tokio::time::timeout(patience, volume.flush()).await;
        assert_eq!(asked.expect("does not wait").expect_err("is closed").kind(), ErrorKind::Closed);
    }
}
