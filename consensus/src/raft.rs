//! The handle of the metadata group that the node uses: propose, read, watch, grow.
//!
//! Any node may propose and read: a follower passes it on to the leader and waits until its own state has caught up,
//! so that what a caller did is visible to that caller here. Calls retry while there is no leader, until their
//! deadline; proposals are safe to repeat (see [`crate::Command`]).

mod electorate;
mod figures;
mod leader;
mod leadership;
mod replace;
mod retirement;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::watch;
use client_lib::{Error, ErrorKind, GroupId, NodeId};
pub use figures::MetaFigures;
use leader::{NotHere, out_of_turn};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, Raft, SnapshotPolicy};
use tokio::time::Instant;

use crate::command::{Command, Refusal, Response};
use crate::network::parts::{Parts, Taken};
use crate::network::{LeaderReply, LeaderRequest, Network, RaftCalls, Reply, Request, decode, encode};
use crate::state::MetaState;
use crate::store::database::MetaPlace;
use crate::store::log_store::LogStore;
use crate::store::state_machine::{Published, StateMachine, Stores, open};
use crate::store::types::{Member, MetaTypes, Snapshot, SnapshotMeta, Vote};
use crate::timings::Timings;

/// Entries after which a snapshot is taken; older entries are purged then.
const SNAPSHOT_ENTRIES: u64 = 5_000;

/// Pause between attempts to find a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for the first membership to be committed.
const INITIALIZE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a stopped core may hold its stores. Its tasks end by themselves, a moment after it says that it has stopped.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

type Core = Raft<MetaTypes, StateMachine>;

/// What the group is started with.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// This node.
    pub node: NodeId,
    /// The group.
    pub group: GroupId,
    /// Where log and state are kept.
    pub place: MetaPlace,
    /// Timings to begin with.
    pub timings: Timings,
    /// Members to ask for the leader while this node knows of no group; the calls must reach them.
    pub contacts: Vec<NodeId>,
}

/// The metadata group at this node. Cheap to clone.
#[derive(Clone)]
pub struct MetaRaft {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    contacts: Vec<NodeId>,
    network: Network,
    /// `None` once this was [closed](MetaRaft::close).
    stores: Mutex<Option<Stores>>,
    published: watch::Receiver<Published>,
    states: watch::Sender<Arc<MetaState>>,
    core: Mutex<(Core, Timings)>,
    /// One change of the core or of the membership at a time.
    changing: tokio::sync::Mutex<()>,
    /// A snapshot that is on its way here.
    parts: Parts,
    /// Who was told to vote no more while this node led, and when.
    retired: Mutex<BTreeMap<NodeId, Instant>>,
    /// One value is replaced at a time.
    replacing: tokio::sync::Mutex<()>,
}

impl MetaRaft {
    /// Opens the stores and starts the group's core at this node.
    ///
    /// # Errors
    /// When the stores cannot be opened.
    pub async fn start(options: MetaOptions, calls: Arc<dyn RaftCalls>) -> Result<MetaRaft, Error> {
        let stores = open(&options.place, options.group).map_err(failed)?;
        let network = Network::new(calls, options.group);
        let core = start_core(options.node, &options.timings, &network, &stores).await?;
        let published = stores.published();
        let states = watch::Sender::new(published.borrow().state.clone());
        let inner = Inner {
            node: options.node,
            contacts: options.contacts,
            network,
            stores: Mutex::new(Some(stores)),
            published: published.clone(),
            states: states.clone(),
            core: Mutex::new((core, options.timings)),
            changing: tokio::sync::Mutex::new(()),
            parts: Parts::default(),
            retired: Mutex::default(),
            replacing: tokio::sync::Mutex::new(()),
        };
        tokio::spawn(forward_states(published, states));
        Ok(MetaRaft { inner: Arc::new(inner) })
    }

    fn core(&self) -> Core {
        self.inner.core.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Founds the group with `members` as its voters, and waits until that is committed. Nothing to do when it is
    /// founded already.
    ///
    /// # Errors
    /// `Unavailable` when the members do not come up.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<(), Error> {
        let members: BTreeMap<u64, Member> = members.into_iter().map(|(node, member)| (node.0, member)).collect();
        match self.core().initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(failed(error)),
        }
        let founded = async {
            while self.core().metrics().borrow_watched().current_leader.is_none()
                || self.inner.published.borrow().index.is_none()
            {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        tokio::time::timeout(INITIALIZE_DEADLINE, founded).await.map_err(|_| {
            Error::new(ErrorKind::Unavailable, "no leader was elected: are a majority of the first members up?")
        })
    }

    /// Answers a request of consensus at another node.
    pub async fn serve(&self, request: Bytes) -> Bytes {
        let group = self.inner.network.group;
        let reply = match decode(group, &request) {
            Ok(request) => self.answer(request).await,
            Err(error) => Reply::Failed(error.to_string()),
        };
        encode(group, &reply)
    }

    async fn answer(&self, request: Request) -> Reply {
        let core = self.core();
        let failed = |error: String| Reply::Failed(error);
        match request {
            Request::Append(rpc) => {
                core.append_entries(rpc).await.map_or_else(|e| failed(e.to_string()), Reply::Append)
            }
            Request::Vote(rpc) => core.vote(rpc).await.map_or_else(|e| failed(e.to_string()), Reply::Vote),
            Request::PreVote(rpc) => core.pre_vote(rpc).await.map_or_else(|e| failed(e.to_string()), Reply::Vote),
            Request::Snapshot { vote, last_log_id, membership, data } => {
                let meta = SnapshotMeta { last_log_id, last_membership: membership };
                install(&core, vote, Snapshot { meta, snapshot: data }).await
            }
            Request::SnapshotPart(part) => match self.inner.parts.take(part) {
                Taken::Kept => Reply::PartTaken,
                Taken::Whole(vote, snapshot) => install(&core, vote, snapshot).await,
                Taken::Refused(reason) => failed(reason),
            },
            Request::TransferLeader(request) => {
                core.handle_transfer_leader(request).await.map_or_else(|e| failed(e.to_string()), Reply::TransferLeader)
            }
            Request::Lead(request) => self.lead(request).await.map_or_else(NotHere::into_reply, Reply::Lead),
            Request::PassOn(request) => self.pass_on(request).await.map_or_else(NotHere::into_reply, Reply::Lead),
        }
    }

    /// Proposes `command` and returns its response once it is applied at the leader and here.
    ///
    /// # Errors
    /// `Unavailable` when no leader answered within `deadline`: the command may or may not be applied, now or later.
    ///
    /// # Cancel safety
    /// The command may be applied all the same.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Response, Error> {
        let until = Instant::now() + deadline;
        let (reply, attempts) = self.at_leader(&LeaderRequest::Propose(command.clone()), until).await?;
        let LeaderReply::Proposed(index, response) = reply else { return Err(out_of_turn()) };
        self.applied(Some(index), until).await?;
        Ok(match response {
            // A repeated deletion whose first answer was lost.
            Response::Refused(Refusal::UnknownVolume(_))
                if attempts > 1 && matches!(command, Command::DeleteVolume { .. }) =>
            {
                Response::VolumeDeleted
            }
            response => response,
        })
    }

    /// As [`propose`](Self::propose), with a refusal as the caller's error, in which nodes and volumes have their names.
    ///
    /// # Errors
    /// As there, and the refusal.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn carry_out(&self, command: Command, deadline: Duration) -> Result<Response, Error> {
        self.propose(command, deadline).await?.into_result_told(&self.state())
    }

    /// The state as of now: everything that was applied anywhere before this call is in it.
    ///
    /// # Errors
    /// `Unavailable` when no leader answered within `deadline`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn linearizable(&self, deadline: Duration) -> Result<Arc<MetaState>, Error> {
        let until = Instant::now() + deadline;
        let (reply, _) = self.at_leader(&LeaderRequest::ReadIndex, until).await?;
        let LeaderReply::ReadIndex(index) = reply else { return Err(out_of_turn()) };
        self.applied(index, until).await?;
        Ok(self.state())
    }

    /// The state as applied here; may be old.
    #[must_use]
    pub fn state(&self) -> Arc<MetaState> {
        self.inner.published.borrow().state.clone()
    }

    /// The state as applied here, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<MetaState>> {
        self.inner.states.subscribe()
    }

    /// Makes this node a member: it follows, and votes once it has caught up if it should ([`crate::placement`]).
    /// Nothing to do when it is one. Also tells the others its present address.
    ///
    /// # Errors
    /// `AlreadyExists` when name or id are another node's; `Unavailable` when no leader could do so within `deadline`.
    ///
    /// # Cancel safety
    /// The node may become a member all the same.
    pub async fn enrol(&self, member: Member, deadline: Duration) -> Result<(), Error> {
        let request = LeaderRequest::Enrol(self.inner.node.0, member);
        let (reply, _) = self.at_leader(&request, Instant::now() + deadline).await?;
        let LeaderReply::Enrolled(response) = reply else { return Err(out_of_turn()) };
        response.into_result_told(&self.state()).map(drop)
    }

    /// Whether this node follows or votes, as far as it knows.
    #[must_use]
    pub fn is_member(&self) -> bool {
        let membership = self.core().metrics().borrow_watched().membership_config.clone();
        membership.nodes().any(|(node, _)| *node == self.inner.node.0)
    }

    /// The leader, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.core().metrics().borrow_watched().current_leader.map(NodeId)
    }

    /// The term this node is in.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.core().metrics().borrow_watched().current_term
    }

    /// The voters.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        self.core().voter_ids().map(NodeId).collect()
    }

    /// The timings in force.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.inner.core.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Puts other timings in force. openraft fixes them for the life of a core, so the core is stopped and another is
    /// started on the same stores; to the group it looks like a pause of this node.
    ///
    /// # Errors
    /// When the new core cannot be started; this node then takes no part until it is restarted. `Closed` after [`close`](Self::close).
    pub async fn retime(&self, timings: Timings) -> Result<(), Error> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let stores = self.stores().clone().ok_or_else(stopped)?;
        self.core().shutdown().await.map_err(failed)?;
        let core = start_core(self.inner.node, &timings, &self.inner.network, &stores).await?;
        *self.inner.core.lock().unwrap_or_else(PoisonError::into_inner) = (core, timings);
        Ok(())
    }

    /// Stops taking part. What was answered is on disk.
    ///
    /// # Errors
    /// When the core had failed before.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.core().shutdown().await.map_err(failed)
    }

    /// After [`shutdown`](Self::shutdown): waits until the stores are written out and closed, for some seconds at most, so that whoever opens them
    /// next, this process or another, has nothing to carry out again.
    pub async fn close(&self) {
        let stores = self.stores().take();
        if let Some(stores) = stores
            && tokio::time::timeout(CLOSE_PATIENCE, stores.close()).await.is_err()
        {
            tracing::warn!(patience = ?CLOSE_PATIENCE, "the metadata store is still in use, and stays open");
        }
    }

    fn stores(&self) -> MutexGuard<'_, Option<Stores>> {
        self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `index` is applied here.
    async fn applied(&self, index: Option<u64>, until: Instant) -> Result<(), Error> {
        let mut published = self.inner.published.clone();
        let applied = published.wait_for(|published| published.index >= index);
        match tokio::time::timeout_at(until, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "it was carried out, but this node's metadata does not catch up: is the leader in reach?",
            )),
        }
    }
}

async fn install(core: &Core, vote: Vote, snapshot: Snapshot) -> Reply {
    let installed = core.install_full_snapshot(vote, snapshot).await;
    installed.map_or_else(|error| Reply::Failed(error.to_string()), Reply::Snapshot)
}

async fn start_core(node: NodeId, timings: &Timings, network: &Network, stores: &Stores) -> Result<Core, Error> {
    let millis = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "heliotrope".into(),
        heartbeat_interval: millis(timings.heartbeat),
        election_timeout_min: millis(timings.election_min),
        election_timeout_max: millis(timings.election_max),
        install_snapshot_timeout: 120_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        replication_lag_threshold: SNAPSHOT_ENTRIES * 2,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * millis(timings.election_max)),
        ..Config::default()
    };
    let config = Arc::new(config.validate().map_err(failed)?);
    let (log, machine) = let_go(stores).await.map_err(failed)?;
    Raft::new(node.0, config, network.clone(), log, machine).await.map_err(failed)
}

/// The stores, as soon as the core before lets go of them. It does so by itself, when it has applied what it was told to.
async fn let_go(stores: &Stores) -> io::Result<(LogStore, StateMachine)> {
    loop {
        match tokio::time::timeout(CLOSE_PATIENCE, stores.storages()).await {
            Ok(storages) => return storages,
            Err(_) => {
                tracing::warn!(patience = ?CLOSE_PATIENCE, "consensus waits: what it ran with before still uses the metadata store")
            }
        }
    }
}

/// Shows each applied state to those who watch only the state.
async fn forward_states(mut published: watch::Receiver<Published>, states: watch::Sender<Arc<MetaState>>) {
    while published.changed().await.is_ok() {
        let state = published.borrow_and_update().state.clone();
        states.send_replace(state);
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Closed, "consensus has stopped")
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "consensus failed").caused_by(error)
}
