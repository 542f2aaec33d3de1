//! The composition root: builds a node from its parts, starts them in order, stops them in reverse.
//!
//! Order matters. The transport comes up first (others may call while this node starts and are told so), then
//! the store recovers, then consensus; only when this process has proposed its own start and seen it applied
//! does it take up ownerships, and only then do the faces open: NBD and HTTP never show a half-started node.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client_lib::pki::NodeIdentity;
use client_lib::transport::quic::{QuicOptions, QuicTransport};
use client_lib::transport::{BoxFuture, Transport};
use client_lib::wire::admin::NbdAddresses;
use client_lib::wire::join::Contact;
use client_lib::{Error, ErrorKind, GroupId, NodeId, NodeName, ProviderId};
use consensus::{Command, Member, MetaOptions, MetaRaft, MetaState, Response};
use nbd_frontend::server::{Server, ServerOptions};
use tokio::task::JoinHandle;

use crate::config::StoreSettings;
use crate::data_dir::DataDir;
use crate::node::admin::NodeAdmin;
use crate::node::admission::Admission;
use crate::node::reconcile::{Reconciler, learn_peers};
use crate::node::service::{NodeService, RaftTransport};
use crate::ownership::driver::OwnershipLog;
use crate::ownership::lease::LeaseCell;
use crate::peer::client::PeerClient;
use crate::peer::server::PeerServer;
use crate::propagation::repair;
use crate::serve::admin::Admin;
use crate::serve::exports::Exports;
use crate::serve::http::HttpServer;
use crate::serve::metadata::{Metadata, NewestMetadata};
use crate::serve::volumes::Volumes;
use crate::shards::Shards;
use crate::stores;

pub mod admin;
pub mod admission;
pub mod lease;
pub mod ownership_log;
mod policy;
pub mod reconcile;
pub mod rtt;
pub mod service;
pub mod takeover;

/// How long a proposal or a linearizable read may wait for a leader.
pub const METADATA_DEADLINE: Duration = Duration::from_secs(20);

/// Pause between attempts to reach the metadata at start.
const START_PAUSE: Duration = Duration::from_millis(200);

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
    /// Where to listen for administration.
    pub http: Option<SocketAddr>,
    /// Addresses to use instead of those the members announce: the WAN emulator's.
    pub peer_overrides: BTreeMap<NodeName, SocketAddr>,
    /// The first voters, when the cluster is new; ignored by a node that is a member already.
    pub bootstrap: Option<Vec<BootstrapMember>>,
    /// Members to turn to, for a node that joined and never started.
    pub contacts: Vec<Contact>,
    /// The directory of the cluster's authority, at the node that admits others.
    pub authority: Option<PathBuf>,
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
    admin: Arc<NodeAdmin>,
    nbd: Option<Server>,
    http: Option<HttpServer>,
    reconciler: Arc<Reconciler>,
    meta: MetaRaft,
    shards: Arc<Shards>,
    transport: Arc<QuicTransport>,
    tasks: Vec<JoinHandle<()>>,
    /// Held until everything above has stopped.
    _data: DataDir,
    _stores: Vec<std::fs::File>,
}

impl Node {
    /// Starts a node and returns when it serves. Waits for a leader as long as it takes.
    ///
    /// # Errors
    /// When the data directory, a certificate, a port or the disk is not as it must be; nothing is left running.
    pub async fn start(options: NodeOptions) -> anyhow::Result<Node> {
        let data = DataDir::open(&options.data)?;
        let identity = NodeIdentity::load(&options.data.join("identity"))?;
        let (me, cluster) = (identity.node(), identity.cluster().clone());

        let service = Arc::new(NodeService::default());
        let known = first_peers(me, &options);
        let others: Vec<NodeId> = known.iter().map(|(node, _)| *node).collect();
        let transport = QuicTransport::start(QuicOptions { socket: options.socket, identity }, service.clone())?;
        let peers = PeerClient::new(transport.clone());
        known.iter().for_each(|(node, address)| transport.set_peer(*node, *address));

        let lease = Arc::new(LeaseCell::new(Arc::new(lease::BootClock)));
        let directories = stores::prepare(&options.data, &options.store.directories, &cluster, me)?;
        let locks = stores::lock(&directories)?;
        let lost = stores::offline::Lost::load(&options.data)?;
        let shards = Arc::new(Shards::start(&options.store, &directories, &lease).await?.without(lost));
        let meta_options = MetaOptions {
            node: me,
            group: GroupId::META,
            directory: options.data.join("meta"),
            timings: rtt::first_timings(&peers, &others).await,
            contacts: others,
        };
        let meta = MetaRaft::start(meta_options, Arc::new(RaftTransport(transport.clone()))).await?;
        service.set_meta(meta.clone());
        // What was known at the last stop: this node may have to tell the others a new address.
        learn_peers(&*transport, me, &options.peer_overrides, &meta.state());
        if let Some(members) = &options.bootstrap {
            initialize(&meta, me, members).await?;
        }

        let this = ThisNode { id: me, name: options.name, provider: options.provider, advertise: options.advertise };
        if !meta.is_member() {
            let member = this.member();
            until_available(&this, || meta.enrol(member.clone(), METADATA_DEADLINE)).await?;
            learn_peers(&*transport, me, &options.peer_overrides, &meta.state());
        }
        let incarnation = until_available(&this, || announce(&meta, &this)).await?;
        tracing::info!(node = %this.name, id = %me, incarnation, "started");

        let volumes = Arc::new(Volumes::default());
        let newest = Arc::new(NewestMetadata::new(Arc::new(meta.clone())));
        let log: Arc<dyn OwnershipLog> = Arc::new(ownership_log::RaftOwnership::new(meta.clone(), me, incarnation));
        let reconciler = Arc::new(Reconciler::new(
            me,
            volumes.clone(),
            shards.clone(),
            peers.clone(),
            newest.clone(),
            log.clone(),
            options.peer_overrides,
        ));
        let admin = Arc::new(NodeAdmin::new(
            this,
            options.wan_bytes,
            meta.clone(),
            volumes.clone(),
            reconciler.clone(),
            peers.clone(),
            log,
        ));
        service.set_peers(PeerServer::new(volumes.clone(), admin.clone()));
        service.set_admission(Admission::new(options.authority, meta.clone()));
        let mut tasks = vec![
            tokio::spawn(reconciler.clone().run(meta.subscribe())),
            tokio::spawn(rtt::follow(meta.clone(), peers.clone(), me)),
            tokio::spawn(lease::keep(meta.clone(), me, lease)),
            tokio::spawn(lease::watch_others(meta.clone(), admin.leases())),
            tokio::spawn(policy::take_over_what_is_due(admin.clone())),
        ];
        tasks.extend(shards.all().map(|shard| tokio::spawn(repair::run(volumes.clone(), shard.clone()))));

        // Told to clients, who may run elsewhere in the file system. A path that cannot be made absolute is told as it is.
        let unix = options.nbd_unix.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let nbd_options = ServerOptions { tcp: options.nbd_tcp, unix: options.nbd_unix, ..ServerOptions::default() };
        let nbd = if nbd_options.tcp.is_some() || nbd_options.unix.is_some() {
            // Session numbers are unique over the cluster's life: node, incarnation, count.
            let first_session = (me.0 << 48) | ((incarnation & 0xffff) << 32);
            Some(Server::bind(nbd_options, Arc::new(Exports::new(volumes, newest, first_session))).await?)
        } else {
            None
        };
        if let Some(nbd) = &nbd {
            admin.nbd_listens(NbdAddresses {
                tcp: nbd.tcp_address().map(|address| address.to_string()),
                unix: unix.map(|path| path.display().to_string()),
            });
        }
        let http = match options.http {
            Some(address) => Some(HttpServer::bind(address, admin.clone()).await?),
            None => None,
        };
        Ok(Node { admin, nbd, http, reconciler, meta, shards, transport, tasks, _data: data, _stores: locks })
    }

    /// What an administrator can ask of this node.
    #[must_use]
    pub fn admin(&self) -> Arc<dyn Admin> {
        self.admin.clone()
    }

    /// Where NBD listens over TCP.
    #[must_use]
    pub fn nbd_address(&self) -> Option<SocketAddr> {
        self.nbd.as_ref().and_then(Server::tcp_address)
    }

    /// Where HTTP listens.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpServer::address)
    }

    /// Stops: faces first, so that nothing new comes in; then what runs for volumes; then the store, which
    /// syncs and writes a checkpoint; consensus and the transport last. A second failure does not hide the first.
    pub async fn stop(self) {
        if let Some(http) = self.http {
            http.stop().await;
        }
        if let Some(nbd) = self.nbd {
            nbd.shutdown().await;
        }
        for task in &self.tasks {
            task.abort();
        }
        self.reconciler.stop();
        self.shards.stop().await;
        if let Err(error) = self.meta.shutdown().await {
            tracing::error!(%error, "consensus did not stop cleanly; it will recover at the next start");
        }
        self.transport.close().await;
    }
}

impl Metadata for MetaRaft {
    fn linearizable(&self) -> BoxFuture<'_, Result<Arc<MetaState>, Error>> {
        Box::pin(MetaRaft::linearizable(self, METADATA_DEADLINE))
    }
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

/// The nodes other than `me` that are known before there is any metadata, and how they are reached.
fn first_peers(me: NodeId, options: &NodeOptions) -> Vec<(NodeId, SocketAddr)> {
    let founders = options.bootstrap.iter().flatten().map(|member| (member.id, &member.name, member.address));
    let contacts = options.contacts.iter().map(|contact| (contact.node, &contact.name, contact.address));
    let others = founders.chain(contacts).filter(|(node, ..)| *node != me);
    others.map(|(node, name, address)| (node, options.peer_overrides.get(name).copied().unwrap_or(address))).collect()
}

/// Founds the cluster, if this is its first node and it does not exist yet.
async fn initialize(meta: &MetaRaft, me: NodeId, members: &[BootstrapMember]) -> anyhow::Result<()> {
    let first = members.iter().map(|member| member.id).min();
    if first != Some(me) {
        return Ok(());
    }
    let voters = members
        .iter()
        .map(|member| {
            let value = Member {
                name: member.name.to_string(),
                provider: member.provider.to_string(),
                address: member.address.to_string(),
            };
            (member.id, value)
        })
        .collect();
    meta.initialize(voters).await?;
    Ok(())
}

/// Repeats `attempt` while there is no leader, and says once that it waits.
async fn until_available<T, F: Future<Output = Result<T, Error>>>(
    this: &ThisNode,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let mut told = false;
    loop {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                if !told {
                    tracing::warn!(node = %this.name, %error, "waiting for a metadata leader (a majority of the voters must be up)");
                    told = true;
                }
                tokio::time::sleep(START_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Tells the cluster where this node is now and that a new process runs it; returns its incarnation.
async fn announce(meta: &MetaRaft, this: &ThisNode) -> Result<u64, Error> {
    let register = Command::RegisterNode {
        id: this.id,
        name: this.name.clone(),
        provider: this.provider.clone(),
        address: this.advertise.to_string(),
    };
    meta.propose(register, METADATA_DEADLINE).await?.into_result()?;
    match meta.propose(Command::NodeStarted { node: this.id }, METADATA_DEADLINE).await?.into_result()? {
        Response::Started { incarnation } => Ok(incarnation),
        other => Err(Error::new(ErrorKind::Internal, format!("a start was answered with {other:?}"))),
    }
}
