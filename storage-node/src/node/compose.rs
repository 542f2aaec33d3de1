//! What a node is above its seams, put together the same way whatever lies below them: QUIC, files and the system's clock in
//! a process, or the simulator's.
//!
//! Order matters. Consensus comes first; only when this process has proposed its own start and seen it applied does the node
//! take up ownerships and let others ask it for volumes. What clients reach it by (NBD, HTTP) is opened by the caller, after.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client_lib::cipher::KeySource;
use client_lib::clock::Clock;
use client_lib::transport::{BoxFuture, Transport};
use client_lib::wire::join::Contact;
use client_lib::{Error, ErrorKind, GroupId, NodeId, NodeName};
use consensus::{Command, Member, MetaOptions, MetaPlace, MetaRaft, MetaState, Response};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::access::{self, Removed};
use super::admin::{NodeAdmin, Standing};
use super::admission::{Admission, AuthorityPlace};
use super::observe::{Observed, Observer};
use super::reconcile::{Reconciler, follow_peers, learn_peers};
use super::service::{NodeService, RaftTransport};
use super::{
    BootstrapMember, METADATA_DEADLINE, ThisNode, WanBytes, joining, lease, ownership_log, placement, policy, reach,
    rescue, rtt, stepping_down,
};
use crate::ownership::driver::OwnershipLog;
use crate::ownership::lease::LeaseCell;
use crate::peer::client::PeerClient;
use crate::peer::server::PeerServer;
use crate::propagation::repair;
use crate::serve::client::ClientService;
use crate::serve::exports::Exports;
use crate::serve::metadata::{Metadata, NewestMetadata};
use crate::serve::volumes::Volumes;
use crate::shards::Shards;
use crate::trace::export::{ExportOptions, Exporter};
use crate::trace::otlp::Teller;

/// Pause between attempts to reach the metadata at start.
const START_PAUSE: Duration = Duration::from_millis(200);

/// What a node stands on: everything that differs between a process and a simulation.
pub struct Seams {
    /// Reaches other nodes.
    pub transport: Arc<dyn Transport>,
    /// What the transport answers with; the parts are put in as they come up.
    pub service: Arc<NodeService>,
    /// Time that goes on while the machine sleeps.
    pub clock: Arc<dyn Clock>,
    /// Under what the shards act as owners; of the same clock.
    pub lease: Arc<LeaseCell>,
    /// The stores, recovered.
    pub shards: Arc<Shards>,
    /// Where the metadata is.
    pub meta: MetaPlace,
}

/// Where a node stands in its cluster.
pub struct Place {
    /// Who it is.
    pub this: ThisNode,
    /// Addresses to use instead of those the members announce.
    pub peer_overrides: BTreeMap<NodeName, SocketAddr>,
    /// The first voters, when the cluster is new.
    pub bootstrap: Option<Vec<BootstrapMember>>,
    /// Members to turn to, for a node that joined and never started.
    pub contacts: Vec<Contact>,
    /// The cluster's authority, at the node that admits others.
    pub authority: Option<AuthorityPlace>,
    /// Where the keys are that open encrypted volumes here.
    pub keys: Option<KeySource>,
    /// Which collector is told of operations, if any.
    pub export: Option<ExportOptions>,
    /// Counts what crosses the WAN emulator, if there is one.
    pub wan_bytes: Option<WanBytes>,
    /// Whether volumes are given away whose store takes no writes any more.
    pub rescues: bool,
}

/// A node that runs, without what clients reach it by.
pub struct Parts {
    /// What administrators ask.
    pub admin: Arc<NodeAdmin>,
    /// Who looks at the node for those who watch over it.
    pub observer: Arc<Observer>,
    /// What clients open.
    pub exports: Arc<Exports>,
    /// Consensus.
    pub meta: MetaRaft,
    /// Signs certificates, where the authority is.
    pub(super) admission: Arc<Admission>,
    me: NodeId,
    reconciler: Arc<Reconciler>,
    shards: Arc<Shards>,
    tasks: Vec<JoinHandle<()>>,
}

impl Parts {
    /// Starts everything; waits for a leader as long as it takes.
    ///
    /// # Errors
    /// When the metadata cannot be opened, or refuses this node.
    pub async fn start(seams: Seams, place: Place) -> anyhow::Result<Parts> {
        let Seams { transport, service, clock, lease, shards, meta } = seams;
        let me = place.this.id;
        let peers = PeerClient::new(transport.clone()).by(clock.clone());
        let known = first_peers(&place);
        let others: Vec<NodeId> = known.iter().map(|(node, ..)| *node).collect();
        peers.names().note(me, place.this.name.as_str());
        for (node, name, address) in &known {
            peers.names().note(*node, name.as_str());
            transport.set_peer(*node, *address);
        }
        let meta_options = MetaOptions {
            node: me,
            group: GroupId::META,
            place: meta,
            timings: rtt::first_timings(&peers, &others).await,
            contacts: others,
        };
        let meta = MetaRaft::start(meta_options, Arc::new(RaftTransport(transport.clone()))).await?;
        if let Some(removed) = access::removed_by(&meta.state(), me) {
            meta.shutdown().await?;
            return Err(removed.into());
        }
        service.set_meta(meta.clone());
        // Before there is a leader: there may be none until a member has a certificate again.
        let admission = Arc::new(Admission::new(place.authority, meta.clone(), clock.clone()));
        service.set_admission(admission.clone());
        // What was known at the last stop: this node may have to tell the others a new address.
        learn_peers(&peers, me, &place.peer_overrides, &meta.state());
        // And from then on: it may be that only one leads that has joined since.
        let learning = tokio::spawn(follow_peers(meta.subscribe(), peers.clone(), me, place.peer_overrides.clone()));
        if let Some(members) = &place.bootstrap {
            initialize(&meta, me, members).await?;
        }

        let this = place.this;
        if !meta.is_member() {
            let member = this.member();
            until_available(&this, || meta.enrol(member.clone(), METADATA_DEADLINE)).await?;
        }
        let incarnation = until_available(&this, || announce(&meta, &this)).await?;
        until_begun(&meta, me, incarnation).await?;
        tracing::info!(node = %this.name, id = %me, incarnation, "started");

        let (exporter, exporting) = place.export.map(Exporter::new).unzip();
        let volumes = Arc::new(Volumes::exported_by(exporter.clone()));
        let newest = Arc::new(NewestMetadata::new(Arc::new(meta.clone())));
        let log: Arc<dyn OwnershipLog> = Arc::new(ownership_log::RaftOwnership::new(meta.clone(), me, incarnation));
        let reconciler = Arc::new(Reconciler::new(
            me,
            volumes.clone(),
            shards.clone(),
            peers.clone(),
            newest.clone(),
            log.clone(),
            place.peer_overrides,
        ));
        reconciler.give_away_what_cannot_be_written(place.rescues);
        let admin = NodeAdmin::new(this, clock, meta.clone(), volumes.clone(), reconciler.clone(), peers.clone(), log);
        let is_of_up = place.bootstrap.as_ref().is_some_and(|founders| founders.len() > 1);
        let holds_authority = admission.holds_authority() && !is_of_up;
        let admin = admin.counting(place.wan_bytes).standing(Standing { holds_authority, is_of_up }).shared();
        let observer = Arc::new(Observer::new(Observed {
            this: admin.this.clone(),
            meta: meta.clone(),
            lease: lease.clone(),
            volumes: volumes.clone(),
            reconciler: reconciler.clone(),
            shards: shards.clone(),
            peers: peers.clone(),
            changes: admin.changes(),
            exporter,
        }));
        let clients = Arc::new(ClientService::new(incarnation, volumes.clone(), newest.clone(), peers.clone()));
        service.set_peers(
            PeerServer::new(volumes.clone(), admin.clone(), transport.clone())
                .with_clients(clients.clone())
                .with_admission(admission.clone()),
        );
        service.set_clients(clients);
        // The reconciler learns them, too.
        learning.abort();
        let mut tasks = vec![
            tokio::spawn(access::follow(meta.clone(), transport.clone())),
            tokio::spawn(access::have_raft_forget(meta.clone())),
            tokio::spawn(access::have_votes_given(meta.clone(), me)),
            tokio::spawn(reconciler.clone().run(meta.subscribe())),
            tokio::spawn(rtt::follow(meta.clone(), peers.clone(), me)),
            tokio::spawn(lease::keep(meta.clone(), me, lease)),
            tokio::spawn(lease::watch_others(meta.clone(), admin.leases())),
            tokio::spawn(policy::take_over_what_is_due(admin.clone())),
            tokio::spawn(stepping_down::keep(admin.clone())),
            tokio::spawn(rescue::keep(admin.clone())),
            tokio::spawn(reach::keep(admin.clone())),
            tokio::spawn(placement::keep(admin.clone())),
            tokio::spawn(joining::finish(me, meta.clone(), volumes.clone(), peers.clone())),
        ];
        if let Some(exporting) = exporting {
            let teller = Teller { node: admin.this.name.to_string(), provider: admin.this.provider.to_string() };
            let meta = meta.clone();
            tasks.push(tokio::spawn(exporting.run(teller, move |node| meta.state().name_of(node))));
        }
        tasks.extend(shards.all().map(|shard| tokio::spawn(repair::run(volumes.clone(), shard.clone()))));
        let exports = Arc::new(Exports::new(volumes, newest).with_keys(place.keys));
        Ok(Parts { admin, observer, exports, meta, admission, me, reconciler, shards, tasks })
    }

    /// Waits until the metadata says that this node was removed.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn removal(&self) -> Removed {
        access::removal(&self.meta, self.me).await
    }

    /// The threads of the shards, by their runtimes.
    pub(super) fn homes(&self) -> Vec<Handle> {
        self.shards.all().map(|shard| shard.thread().clone()).collect()
    }

    /// Stops: what runs for volumes first; then the store, which syncs and writes a checkpoint; then consensus, whose store
    /// is written out and closed. A second failure does not hide the first.
    pub async fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
        self.reconciler.stop();
        self.shards.stop().await;
        if let Err(error) = self.meta.shutdown().await {
            tracing::error!(%error, "consensus did not stop cleanly; it will recover at the next start");
        }
        self.meta.close().await;
    }
}

impl Metadata for MetaRaft {
    fn linearizable(&self) -> BoxFuture<'_, Result<Arc<MetaState>, Error>> {
        Box::pin(MetaRaft::linearizable(self, METADATA_DEADLINE))
    }

    fn here(&self) -> Arc<MetaState> {
        self.state()
    }
}

/// The nodes other than this one that are known before there is any metadata, and how they are reached.
fn first_peers(place: &Place) -> Vec<(NodeId, &NodeName, SocketAddr)> {
    let founders = place.bootstrap.iter().flatten().map(|member| (member.id, &member.name, member.address));
    let contacts = place.contacts.iter().map(|contact| (contact.node, &contact.name, contact.address));
    let others = founders.chain(contacts).filter(|(node, ..)| *node != place.this.id);
    others
        .map(|(node, name, address)| (node, name, place.peer_overrides.get(name).copied().unwrap_or(address)))
        .collect()
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

/// Waits until those who follow the metadata here see the start of this process: what is applied is shown to them a moment later. An ownership
/// that they saw before may have been taken over since, from the process before that had stepped down or been found without a lease.
async fn until_begun(meta: &MetaRaft, me: NodeId, incarnation: u64) -> Result<(), Error> {
    let has_begun = |state: &Arc<MetaState>| state.node(me).is_some_and(|node| node.incarnation >= incarnation);
    let stopped = |_| Error::new(ErrorKind::Closed, "consensus has stopped");
    meta.subscribe().wait_for(has_begun).await.map(drop).map_err(stopped)
}

/// Tells the cluster where this node is now and that a new process runs it; returns its incarnation.
async fn announce(meta: &MetaRaft, this: &ThisNode) -> Result<u64, Error> {
    let register = Command::RegisterNode {
        id: this.id,
        name: this.name.clone(),
        provider: this.provider.clone(),
        address: this.advertise.to_string(),
    };
    meta.carry_out(register, METADATA_DEADLINE).await?;
    match meta.carry_out(Command::NodeStarted { node: this.id }, METADATA_DEADLINE).await? {
        Response::Started { incarnation } => Ok(incarnation),
        other => Err(Error::new(ErrorKind::Internal, format!("a start was answered with {other:?}"))),
    }
}
