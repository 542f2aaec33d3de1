//! The composition root: builds a node from its parts, starts them in order, stops them in reverse.
//!
//! Order matters. The transport comes up first, then the store recovers, then everything above ([`compose`], which the
//! simulator shares), and only then do the faces open: NBD and HTTP never show a half-started node.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client_lib::cipher::KeySource;
use client_lib::pki::NODE_CERTIFICATE_FILE;
use client_lib::transport::quic::{QuicOptions, QuicTransport};
use client_lib::transport::unix::UnixServer;
use client_lib::wire::admin::NbdAddresses;
use client_lib::wire::join::Contact;
use client_lib::{NodeId, NodeName, ProviderId};
use consensus::Member;
use nbd_frontend::server::{Server, ServerOptions};
use nbd_frontend::service::sockets::PassedSockets;
use nbd_frontend::tls::TlsOptions;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::config::StoreSettings;
use crate::data_dir::DataDir;
use crate::metrics::figures::OWN_CERTIFICATE;
use crate::node::access::{Removed, ToldBy};
use crate::node::admission::AuthorityPlace;
use crate::node::certificate::Renewer;
use crate::node::compose::{Parts, Place, Seams};
use crate::node::service::NodeService;
use crate::ownership::lease::LeaseCell;
use crate::serve::admin::Admin;
use crate::serve::audit::AuditLog;
use crate::serve::http::caller::{SECRET_FILE, Secret};
use crate::serve::http::listener::HttpServer;
use crate::serve::http::remote::RemoteServer;
use crate::serve::observe::listener::ObserveServer;
use crate::shards::Shards;
use crate::stores::placements::Placements;
use crate::stores::{self, StorePlace};
use crate::trace::export::ExportOptions;

pub mod access;
pub mod admin;
pub mod admission;
pub mod certificate;
pub mod compose;
mod joining;
pub mod lease;
pub mod observe;
pub mod ownership_log;
mod placement;
mod policy;
mod propagation;
mod reach;
pub mod reconcile;
mod rescue;
pub mod rtt;
pub mod service;
mod stepping_down;
pub mod takeover;

/// How long a proposal or a linearizable read may wait for a leader.
pub const METADATA_DEADLINE: Duration = Duration::from_secs(20);

/// A node of the first set of voters.
#[derive(Clone, Debug)]
pub struct BootstrapMember {
    /// Its id, as in its certificate.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its provider.
    pub provider: ProviderId,
    /// Where it listens for other nodes.
    pub address: SocketAddr,
}

/// What a node is started with.
#[derive(Debug)]
pub struct NodeOptions {
    /// What people call it.
    pub name: NodeName,
    /// Its failure domain.
    pub provider: ProviderId,
    /// Its own data directory.
    pub data: PathBuf,
    /// The bound socket for other nodes.
    pub socket: UdpSocket,
    /// Where other nodes reach that socket.
    pub advertise: SocketAddr,
    /// Where to listen for NBD over TCP.
    pub nbd_tcp: Option<SocketAddr>,
    /// Where to listen for NBD over a Unix socket.
    pub nbd_unix: Option<PathBuf>,
    /// Sockets for NBD that listen already, instead of these.
    pub nbd_passed: Arc<PassedSockets>,
    /// TLS for NBD.
    pub nbd_tls: Option<TlsOptions>,
    /// Where to listen for administration, on loopback.
    pub http: Option<SocketAddr>,
    /// Where to listen for administration from other machines, over TLS.
    pub remote: Option<SocketAddr>,
    /// Where to listen for those who watch over the node and may do nothing else, beside administration.
    pub metrics: Option<SocketAddr>,
    /// Addresses to use instead of those the members announce: the WAN emulator's.
    pub peer_overrides: BTreeMap<NodeName, SocketAddr>,
    /// The first voters, when the cluster is new; ignored by a node that is a member already.
    pub bootstrap: Option<Vec<BootstrapMember>>,
    /// Members to turn to, for a node that joined and never started.
    pub contacts: Vec<Contact>,
    /// The cluster's authority, at the node that admits others.
    pub authority: Option<AuthorityPlace>,
    /// Where the keys are that open encrypted volumes for its own exports.
    pub keys: Option<KeySource>,
    /// Which collector is told of operations, if any.
    pub export: Option<ExportOptions>,
    /// Settings of the store.
    pub store: StoreSettings,
    /// Counts what crosses the WAN emulator, if there is one.
    pub wan_bytes: Option<WanBytes>,
}

/// Tells how many bytes crossed the WAN emulator.
#[derive(Clone)]
pub struct WanBytes(pub Arc<dyn Fn() -> u64 + Send + Sync>);

impl std::fmt::Debug for WanBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WanBytes({})", (self.0)())
    }
}

/// A running node.
pub struct Node {
    parts: Parts,
    name: String,
    nbd: Option<Server>,
    http: Option<HttpServer>,
    remote: Option<RemoteServer>,
    metrics: Option<ObserveServer>,
    clients: Option<UnixServer>,
    transport: Arc<QuicTransport>,
    renewal: JoinHandle<()>,
    /// Held until everything above has stopped.
    data: DataDir,
    _stores: Vec<std::fs::File>,
}

impl Node {
    /// Starts a node and returns when it serves. Waits for a leader as long as it takes.
    ///
    /// # Errors
    /// When the data directory, a certificate, a port or the disk is not as it must be; nothing is left running.
    pub async fn start(options: NodeOptions) -> anyhow::Result<Node> {
        let data = DataDir::open(&options.data)?;
        let identity_directory = DataDir::identity(&options.data);
        let identity = DataDir::open_identity(&options.data)?;
        let clock = Arc::new(lease::BootClock);
        let authority = options.authority.as_ref();
        certificate::at_start(&identity, &identity_directory, options.name.as_str(), authority, &*clock)?;
        let (me, cluster) = (identity.node(), identity.cluster().clone());
        let own_identity = identity.clone();

        let service = Arc::new(NodeService::default());
        // The transport comes up first: others may call while this node starts, and are told so.
        let transport = QuicTransport::start(QuicOptions { socket: options.socket, identity }, service.clone())?;
        let lease = Arc::new(LeaseCell::new(clock.clone()));
        let mut places = stores::prepare(&options.data, &options.store.directories, &cluster, me)?;
        let locks = places.iter_mut().filter_map(StorePlace::take_lock).collect();
        let lost = stores::offline::Lost::load(&options.data)?;
        let record = Some(Placements::of(&options.data));
        let shards = Arc::new(Shards::start(&options.store, places, record, &lease).await?.without(lost));
        let meta = options.data.join("meta").into();
        let seams =
            Seams { transport: transport.clone(), service: service.clone(), clock: clock.clone(), lease, shards, meta };
        let place = Place {
            this: ThisNode { id: me, name: options.name, provider: options.provider, advertise: options.advertise },
            peer_overrides: options.peer_overrides,
            bootstrap: options.bootstrap,
            contacts: options.contacts,
            authority: options.authority.clone(),
            keys: options.keys,
            export: options.export,
            wan_bytes: options.wan_bytes,
            rescues: options.store.hand_over_when_failed,
        };
        let name = place.this.name.to_string();
        // Nobody answers a node that was removed: it would wait for a leader for ever.
        let parts = tokio::select! {
            biased;
            by = transport.revoked() => {
                transport.close().await;
                return Err(Removed { name, told_by: ToldBy::Node(by) }.into());
            }
            parts = Parts::start(seams, place) => parts?,
            never = certificate::while_starting(
                &own_identity,
                &identity_directory,
                &name,
                options.authority.as_ref(),
                &*clock,
            ) => match never {},
        };
        let (admin, observer) = (parts.admin.clone(), parts.observer.clone());
        let renewer = Renewer {
            identity: own_identity.clone(),
            directory: identity_directory,
            clock,
            admin: admin.clone(),
            admission: parts.admission.clone(),
        };
        let mut certificates = vec![(OWN_CERTIFICATE, options.data.join("identity").join(NODE_CERTIFICATE_FILE))];
        certificates.extend(options.nbd_tls.as_ref().map(|tls| ("nbd", tls.certificate.clone())));
        observer.certificates_are(certificates);

        // Told to clients, who may run elsewhere in the file system. A path that cannot be made absolute is told as it is.
        let unix = options.nbd_unix.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let (tcp, passed, tls) = (options.nbd_tcp, options.nbd_passed, options.nbd_tls);
        let nbd = if tcp.is_some() || unix.is_some() || !passed.is_empty() {
            let nbd_options = ServerOptions { tcp, unix, passed, tls, ..ServerOptions::default() };
            Some(Server::bind(nbd_options, parts.exports.clone()).await?)
        } else {
            None
        };
        if let Some(nbd) = &nbd {
            observer.nbd_serves(nbd.meter());
            admin.nbd_listens(NbdAddresses {
                tcp: nbd.tcp_address().map(|address| address.to_string()),
                unix: nbd.unix_path().map(|path| path.display().to_string()),
            });
        }
        let clients = listen_for_clients(&options.data, service).await?;
        let audit = Arc::new(AuditLog::new(&name, &options.data));
        if options.http.is_some() || options.remote.is_some() {
            admin.notes_acts_in(audit.clone());
        }
        let http = match options.http {
            Some(address) => {
                let secret = Secret::load_or_make(&options.data).context("the secret of the admin API")?;
                Some(HttpServer::bind(address, admin.clone(), audit.clone(), observer.clone(), secret).await?)
            }
            None => None,
        };
        let remote = match options.remote {
            Some(address) => Some(RemoteServer::bind(address, &own_identity, admin, audit).await?),
            None => None,
        };
        let metrics = match options.metrics {
            Some(address) => Some(ObserveServer::bind(address, observer).await?),
            None => None,
        };
        let renewal = tokio::spawn(certificate::keep(renewer));
        Ok(Node { parts, name, nbd, http, remote, metrics, clients, transport, renewal, data, _stores: locks })
    }

    /// Waits until this node was removed from its cluster; it is to be stopped then, and its data directory marked.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn removal(&self) -> Removed {
        tokio::select! {
            biased;
            removed = self.parts.removal() => removed,
            by = self.transport.revoked() => Removed { name: self.name.clone(), told_by: ToldBy::Node(by) },
        }
    }

    /// What an administrator can ask of this node.
    #[must_use]
    pub fn admin(&self) -> Arc<dyn Admin> {
        self.parts.admin.clone()
    }

    /// Where NBD listens over TCP.
    #[must_use]
    pub fn nbd_address(&self) -> Option<SocketAddr> {
        self.nbd.as_ref().and_then(Server::tcp_address)
    }

    /// The path of the Unix socket for NBD.
    #[must_use]
    pub fn nbd_path(&self) -> Option<&Path> {
        self.nbd.as_ref().and_then(Server::unix_path)
    }

    /// The threads that serve volumes, by their runtimes.
    #[must_use]
    pub fn threads(&self) -> Vec<Handle> {
        self.parts.homes().into_iter().chain(self.nbd.iter().flat_map(Server::threads)).collect()
    }

    /// Where HTTP listens.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpServer::address)
    }

    /// The file with the secret of the admin API on loopback.
    #[must_use]
    pub fn secret_path(&self) -> PathBuf {
        self.data.path().join(SECRET_FILE)
    }

    /// Where administration listens for other machines.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.remote.as_ref().map(RemoteServer::address)
    }

    /// Where those who only watch may look.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(ObserveServer::address)
    }

    /// Gives the metadata's lead to another node, if this one has it: for a node that is about to stop while others go on.
    pub async fn hand_on(&self) {
        self.parts.meta.hand_on().await;
    }

    /// It is about to stop: whoever asks is told that it is ready no more.
    pub fn stopping(&self) {
        self.parts.observer.stopping();
    }

    /// Stops: faces first, so that nothing new comes in; then what runs for volumes; then the store, which
    /// syncs and writes a checkpoint; consensus and the transport last. A second failure does not hide the first.
    pub async fn stop(self) {
        self.stopping();
        self.renewal.abort();
        drop(self.remote);
        if let Some(http) = self.http {
            http.stop().await;
        }
        if let Some(nbd) = self.nbd {
            nbd.shutdown().await;
        }
        if let Some(clients) = self.clients {
            clients.close().await;
        }
        // Until now it told that the node stops.
        drop(self.metrics);
        self.parts.stop().await;
        self.transport.close().await;
    }
}

/// The longest path of a Unix socket, in bytes (unix(7): 108 with the zero behind it).
const SOCKET_PATH_MAX: usize = 107;

/// Listens for clients of this machine, in the data directory.
async fn listen_for_clients(data: &Path, service: Arc<NodeService>) -> anyhow::Result<Option<UnixServer>> {
    let path = data.join(client_lib::transport::unix::CLIENT_SOCKET);
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        tracing::warn!(path = %path.display(), "no socket for clients of this machine: its path is too long");
        return Ok(None);
    }
    Ok(Some(UnixServer::bind(&path, service).await?))
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct ThisNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its provider.
    pub provider: ProviderId,
    /// Where others reach it.
    pub advertise: SocketAddr,
}

impl ThisNode {
    fn member(&self) -> Member {
        Member { name: self.name.to_string(), provider: self.provider.to_string(), address: self.advertise.to_string() }
    }
}
