//! Whole nodes without Raft and without a network, for tests: real shards, propagation and ownership over the in-memory
//! transport, with the real metadata state machine behind a lock in place of consensus.

#![allow(dead_code, reason = "no test uses all of it")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::memory::MemoryNetwork;
use client_lib::transport::{BoxFuture, Class, Service, Transport};
use client_lib::watch;
use client_lib::wire::frame::{Frame, ServiceId};
use client_lib::{
    Epoch, Error, ErrorKind, NodeId, ReadPart, SnapshotId, SnapshotName, VolumeGroupId, VolumeId, VolumeSize,
};
use consensus::{Command, Made, MetaState, Response};
use nbd_frontend::export::{ExportDirectory, Session};
use storage_node::config::StoreSettings;
use storage_node::node::reconcile::Reconciler;
use storage_node::ownership::driver::{
    Driver, HandoverProposal, HandoverReport, OwnerNow, OwnershipLog, Proposed, ReplicaChange, Resize, TakeoverProposal,
};
use storage_node::ownership::lease::LeaseCell;
use storage_node::peer::client::PeerClient;
use storage_node::peer::message::{AdminForward, Message, PeerReply};
use storage_node::peer::server::{ForwardedAdmin, PeerServer, encode_reply};
use storage_node::serve::client::ClientService;
use storage_node::serve::client::rights::Asker;
use storage_node::serve::exports::Exports;
use storage_node::serve::metadata::{Metadata, NewestMetadata};
use storage_node::serve::resize::InForce;
use storage_node::serve::volume::ServedVolume;
use storage_node::serve::volumes::Volumes;
use storage_node::shard::handle::ShardHandle;
use storage_node::shards::Shards;
use storage_node::stores::StorePlace;
use tokio_util::sync::CancellationToken;

pub(crate) const SIZE: u64 = 64 << 20;
pub(crate) const BLOCK: usize = 4096;

/// Consensus reduced to a lock: commands are applied at once, in one order, and everybody sees the result.
#[derive(Clone)]
pub(crate) struct Meta {
    pub(crate) state: Arc<Mutex<(u64, MetaState)>>,
    published: watch::Sender<Arc<MetaState>>,
}

impl Meta {
    pub(crate) fn new() -> Meta {
        let state = MetaState::default();
        Meta { published: watch::Sender::new(Arc::new(state.clone())), state: Arc::new(Mutex::new((0, state))) }
    }

    pub(crate) fn propose(&self, command: Command) -> Result<Response, Error> {
        let mut guard = self.state.lock().expect("no test panics with the lock held");
        guard.0 += 1;
        let index = guard.0;
        let response = guard.1.apply(index, command);
        self.published.send_replace(Arc::new(guard.1.clone()));
        response.into_result()
    }

    /// What a node hears of the changes, and a lock: while it is held, the node hears nothing.
    pub(crate) fn follow(&self) -> (Arc<tokio::sync::Mutex<()>>, watch::Receiver<Arc<MetaState>>) {
        let mut published = self.published.subscribe();
        let (sender, receiver) = watch::channel(published.borrow_and_update().clone());
        let hearing = Arc::new(tokio::sync::Mutex::new(()));
        let lock = hearing.clone();
        tokio::spawn(async move {
            while published.changed().await.is_ok() {
                let _heard = lock.lock().await;
                let state = published.borrow_and_update().clone();
                if sender.send(state).is_err() {
                    return;
                }
            }
        });
        (hearing, receiver)
    }

    pub(crate) fn state(&self) -> MetaState {
        self.state.lock().expect("no test panics with the lock held").1.clone()
    }
}

impl Metadata for Meta {
    fn linearizable(&self) -> BoxFuture<'_, Result<Arc<MetaState>, Error>> {
        Box::pin(async { Ok(Arc::new(self.state())) })
    }

    fn here(&self) -> Arc<MetaState> {
        Arc::new(self.state())
    }
}

/// One node's view of [`Meta`]; may pretend that answers get lost.
pub(crate) struct TestLog {
    pub(crate) meta: Meta,
    pub(crate) me: NodeId,
    pub(crate) lose_answers: bool,
}

impl TestLog {
    fn incarnation(&self) -> u64 {
        self.meta.state().node(self.me).expect("a member").incarnation
    }
}

impl OwnershipLog for TestLog {
    fn hand_over(&self, handover: HandoverProposal) -> BoxFuture<'_, Proposed<()>> {
        let HandoverProposal { group, to, members, enclosed, rescued: _ } = handover;
        Box::pin(async move {
            let (from, incarnation) = (self.me, self.incarnation());
            match self.meta.propose(Command::HandOver { group, from, incarnation, to, members, enclosed }) {
                _ if self.lose_answers => Proposed::Unknown,
                Ok(Response::GroupTransferred) => Proposed::Committed(()),
                Ok(other) => panic!("out of turn: {other:?}"),
                Err(error) => Proposed::Refused(error),
            }
        })
    }

    fn enclosure_taken(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.meta.propose(Command::EnclosureTaken { volume, epoch }).map(drop) })
    }

    fn clone_made(&self, volume: VolumeId, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.meta.propose(Command::CloneMade { volume, from: self.me, epoch }).map(drop) })
    }

    fn expire(&self, node: NodeId, renewals: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.meta.propose(Command::ExpireLease { node, renewals }).map(drop) })
    }

    fn step_down(&self, volumes: Vec<(VolumeId, Epoch)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (node, incarnation) = (self.me, self.incarnation());
            self.meta.propose(Command::StepDown { node, incarnation, volumes }).map(drop)
        })
    }

    fn take_over(&self, takeover: TakeoverProposal) -> BoxFuture<'_, Proposed<Epoch>> {
        let TakeoverProposal { volume, from, epoch, start } = takeover;
        Box::pin(async move {
            let incarnation = self.incarnation();
            match self.meta.propose(Command::Takeover { volume, from, epoch, to: self.me, incarnation, start }) {
                _ if self.lose_answers => Proposed::Unknown,
                Ok(Response::TakenOver { epoch }) => Proposed::Committed(epoch),
                Ok(other) => panic!("out of turn: {other:?}"),
                Err(error) => Proposed::Refused(error),
            }
        })
    }

    fn states(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.published.subscribe()
    }

    fn settle(&self, volumes: Vec<VolumeId>) -> BoxFuture<'_, Result<Vec<OwnerNow>, Error>> {
        Box::pin(async move {
            self.meta.propose(Command::NodeStarted { node: self.me })?;
            let state = self.meta.state();
            Ok(volumes.iter().map(|id| state.volume(*id).map(|volume| (volume.owner, volume.epoch))).collect())
        })
    }

    fn snapshot_group(
        &self,
        group: VolumeGroupId,
        name: SnapshotName,
        members: Vec<(VolumeId, Epoch)>,
        nonce: u64,
    ) -> BoxFuture<'_, Result<SnapshotId, Error>> {
        Box::pin(async move {
            let (from, incarnation) = (self.me, self.incarnation());
            match self.meta.propose(Command::CreateGroupSnapshot { group, name, from, incarnation, members, nonce })? {
                Response::SnapshotCreated { snapshot } => Ok(snapshot),
                other => panic!("out of turn: {other:?}"),
            }
        })
    }

    fn group_snapshot_made(
        &self,
        snapshot: SnapshotId,
        made: Vec<(VolumeId, Epoch, Made)>,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(
            async move { self.meta.propose(Command::GroupSnapshotMade { snapshot, from: self.me, made }).map(drop) },
        )
    }

    fn drop_unmade(&self, snapshots: Vec<(VolumeId, SnapshotId)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.meta.propose(Command::DeleteSnapshots { snapshots, if_unmade: true }).map(drop) })
    }

    fn resize(&self, resize: Resize) -> BoxFuture<'_, Result<(), Error>> {
        let Resize { volume, epoch, expected, size } = resize;
        Box::pin(async move {
            let incarnation = self.incarnation();
            let command = Command::ResizeVolume { volume, from: self.me, incarnation, epoch, expected, size };
            self.meta.propose(command).map(drop)
        })
    }

    fn change_replicas(&self, change: ReplicaChange) -> BoxFuture<'_, Result<(), Error>> {
        let ReplicaChange { members, add, remove } = change;
        Box::pin(async move {
            let (from, incarnation) = (self.me, self.incarnation());
            self.meta.propose(Command::ChangeReplicas { members, from, incarnation, add, remove }).map(drop)
        })
    }

    fn snapshot_made(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        snapshot: SnapshotId,
        made: Made,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.meta.propose(Command::SnapshotMade { volume, snapshot, from: self.me, epoch, made }).map(drop)
        })
    }
}

/// Lets volumes go that are written elsewhere, and nothing else.
struct TestAdmin {
    volumes: Arc<Volumes>,
    log: Arc<TestLog>,
    /// One handover at a time.
    handing_over: tokio::sync::Mutex<()>,
}

impl ForwardedAdmin for TestAdmin {
    fn forwarded(&self, request: AdminForward) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async move {
            let AdminForward::HandOverOnWrite { volume, to } = request else {
                return Err(Error::new(ErrorKind::InvalidRequest, "not in this test"));
            };
            let busy = |_| Error::new(ErrorKind::Busy, "is being handed over");
            let _turn = self.handing_over.try_lock().map_err(busy)?;
            let served = self.volumes.get(volume).expect("is served");
            let view = served.gate.settled(Epoch(0)).await?;
            if view.owner != self.log.me {
                return Err(Error::new(ErrorKind::Unavailable, "is not here"));
            }
            let driver = Driver::new(served, to, view.epoch, self.log.clone(), CancellationToken::new());
            driver.flushed().run().await.map(|_| "{}".to_owned())
        })
    }
}

#[derive(Default)]
struct TestService(std::sync::OnceLock<PeerServer>, std::sync::OnceLock<Arc<ClientService>>, Arc<Refusing>);

/// What a node answers others with while it starts or stops, and how many were answered so.
#[derive(Default)]
pub(crate) struct Refusing {
    with: Mutex<Option<ErrorKind>>,
    refused: AtomicU64,
}

impl Refusing {
    /// From now on others are refused with this, or served.
    pub(crate) fn set(&self, with: Option<ErrorKind>) {
        *self.with.lock().expect("no test panics with the lock held") = with;
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn refusal(&self) -> Option<Bytes> {
        let kind = (*self.with.lock().expect("no test panics with the lock held"))?;
        self.refused.fetch_add(1, Ordering::SeqCst);
        let head = PeerReply::Failed(Error::new(kind, "not now"));
        Some(encode_reply(Message { head, payload: Bytes::new() }))
    }
}

impl Service for TestService {
    fn serve(&self, peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            let frame = Frame::decode(&request).expect("our own frames");
            if frame.service == ServiceId::Client {
                return self.1.get().expect("set at start").serve(frame, Asker::Trusted).await;
            }
            if let Some(refusal) = self.2.refusal() {
                return refusal;
            }
            self.0.get().expect("set at start").serve(peer.expect("nodes are known"), frame).await
        })
    }
}

pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) exports: Exports,
    /// Held, this node hears of no change of the metadata.
    pub(crate) hearing: Arc<tokio::sync::Mutex<()>>,
    pub(crate) refusing: Arc<Refusing>,
    pub(crate) shard: ShardHandle,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) running: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

pub(crate) struct Cluster {
    pub(crate) meta: Meta,
    pub(crate) network: MemoryNetwork,
    pub(crate) nodes: BTreeMap<u64, TestNode>,
    pub(crate) volume: VolumeId,
}

impl Cluster {
    pub(crate) async fn start(one_way: Duration) -> Cluster {
        let (meta, network) = (Meta::new(), MemoryNetwork::new());
        let mut nodes = BTreeMap::new();
        for id in 1..=3 {
            let name = ["a", "b", "c"][id as usize - 1];
            let command = Command::RegisterNode {
                id: NodeId(id),
                name: name.parse().expect("a name"),
                provider: name.parse().expect("a name"),
                address: format!("127.0.0.1:{id}"),
            };
            meta.propose(command).expect("registers");
            meta.propose(Command::NodeStarted { node: NodeId(id) }).expect("starts");
        }
        for id in 1..=3u64 {
            let directory = tempfile::tempdir().expect("a directory");
            let settings = StoreSettings { segment_bytes: 8 << 20, ..StoreSettings::default() };
            let place = StorePlace::alone(directory.path().join("shard-0"));
            let lease = Arc::new(LeaseCell::forever());
            let shards = Shards::start(&settings, vec![place], None, &lease).await.expect("starts");
            let shard = shards.all().next().expect("there is one").clone();
            let service = Arc::new(TestService::default());
            let transport: Arc<dyn Transport> = network.endpoint(NodeId(id), service.clone());
            for other in (1..=3).filter(|other| *other != id) {
                network.set_delay(NodeId(id), NodeId(other), one_way);
            }
            let peers = PeerClient::new(transport.clone());
            let volumes = Arc::new(Volumes::default());
            let newest = Arc::new(NewestMetadata::new(Arc::new(meta.clone())));
            let exports = Exports::new(volumes.clone(), newest.clone());
            let overrides = BTreeMap::new();
            let log = Arc::new(TestLog { meta: meta.clone(), me: NodeId(id), lose_answers: false });
            let reconciler = Arc::new(Reconciler::new(
                NodeId(id),
                volumes.clone(),
                Arc::new(shards),
                peers.clone(),
                newest.clone(),
                log,
                overrides,
            ));
            let log = Arc::new(TestLog { meta: meta.clone(), me: NodeId(id), lose_answers: false });
            let admin = TestAdmin { volumes: volumes.clone(), log, handing_over: tokio::sync::Mutex::default() };
            let clients = Arc::new(ClientService::new(1, volumes.clone(), newest, peers));
            let peer_server =
                PeerServer::new(volumes.clone(), Arc::new(admin), transport.clone()).with_clients(clients.clone());
            assert!(service.0.set(peer_server).is_ok() && service.1.set(clients).is_ok());
            let (hearing, heard) = meta.follow();
            let running = tokio::spawn(reconciler.clone().run(heard));
            let node = TestNode {
                id: NodeId(id),
                volumes,
                exports,
                shard,
                reconciler,
                running,
                hearing,
                refusing: service.2.clone(),
                _directory: directory,
            };
            nodes.insert(id, node);
        }
        let volume = create(&meta, "v");
        let cluster = Cluster { meta, network, nodes, volume };
        for id in 1..=3 {
            cluster.until(|| async { cluster.nodes[&id].volumes.get(volume).is_some() }).await;
        }
        cluster
    }

    pub(crate) async fn until<F: Future<Output = bool>>(&self, condition: impl Fn() -> F) {
        let met = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), met).await.expect("happens within a minute");
    }

    pub(crate) async fn session(&self, node: u64) -> Arc<dyn Session> {
        self.nodes[&node].exports.open("v").await.expect("opens")
    }

    /// The volume as `node` serves it.
    pub(crate) fn served(&self, node: u64) -> Arc<ServedVolume> {
        self.nodes[&node].volumes.get(self.volume).expect("is served")
    }

    /// Lets nothing through between node 1 and the others, or everything again.
    pub(crate) fn cut_off_owner(&self, blocked: bool) {
        for other in [2, 3] {
            self.network.set_blocked(NodeId(1), NodeId(other), blocked);
            self.network.set_blocked(NodeId(other), NodeId(1), blocked);
        }
    }

    pub(crate) async fn migrate(&self, from: u64, to: u64) -> Result<HandoverReport, Error> {
        self.migrate_with(from, to, false).await
    }

    pub(crate) async fn migrate_with(&self, from: u64, to: u64, lose_answers: bool) -> Result<HandoverReport, Error> {
        let volume = self.served(from);
        let view = volume.gate.settled(Epoch(0)).await?;
        let log = Arc::new(TestLog { meta: self.meta.clone(), me: NodeId(from), lose_answers });
        Driver::new(volume, NodeId(to), view.epoch, log, CancellationToken::new()).run().await
    }

    /// Hands the volume over once the new owner holds everything.
    pub(crate) async fn migrate_synced(&self, from: u64, to: u64) -> Result<HandoverReport, Error> {
        let volume = self.served(from);
        let view = volume.gate.settled(Epoch(0)).await?;
        let log = Arc::new(TestLog { meta: self.meta.clone(), me: NodeId(from), lose_answers: false });
        let watermarks = self.nodes[&from].reconciler.watermarks(self.volume).expect("is owned");
        let driver = Driver::new(volume, NodeId(to), view.epoch, log, CancellationToken::new());
        driver.synced(vec![watermarks]).run().await
    }

    pub(crate) async fn in_step(&self, node: u64) -> bool {
        let owner = self.meta.state().volume(self.volume).expect("exists").owner;
        let head = self.nodes[&owner.0].shard.report(self.volume).await.expect("reports");
        let here = self.nodes[&node].shard.report(self.volume).await.expect("reports");
        here.watermark == head.head && here.stale_blocks == 0 && head.stale_blocks == 0
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes.values() {
            node.running.abort();
            node.reconciler.stop();
        }
        for node in self.nodes.values() {
            node.shard.stop().await.unwrap_or_else(|error| panic!("node {}: {error}", node.id));
        }
    }
}

/// Makes a volume at node 1, with replicas at the others.
pub(crate) fn create(meta: &Meta, name: &str) -> VolumeId {
    let created = meta.propose(Command::CreateVolume {
        name: name.parse().expect("a name"),
        size: VolumeSize::try_from(SIZE).expect("a size"),
        owner: NodeId(1),
        replicas: [NodeId(2), NodeId(3)].into(),
        nonce: u64::from(crc32fast::hash(name.as_bytes())),
    });
    let Ok(Response::VolumeCreated { volume }) = created else { panic!("{created:?}") };
    volume
}

pub(crate) fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK])
}

pub(crate) async fn read(session: &Arc<dyn Session>, index: u64) -> Vec<u8> {
    ReadPart::joined(session.read(index * BLOCK as u64, BLOCK as u32).await.expect("is read")).to_vec()
}

pub(crate) async fn write(session: &Arc<dyn Session>, index: u64, fill: u8) {
    session.write(index * BLOCK as u64, block(fill), false).await.expect("is written");
}

impl Cluster {
    /// Proposes another size as the owner does, and waits until it has carried it out.
    pub(crate) async fn resize(&self, owner: u64, size: u64) {
        let meta = self.meta.state().volume(self.volume).expect("exists").clone();
        let log = TestLog { meta: self.meta.clone(), me: NodeId(owner), lose_answers: false };
        let size = VolumeSize::try_from(size).expect("a size");
        let resize = Resize { volume: self.volume, epoch: meta.epoch, expected: meta.size, size };
        log.resize(resize).await.expect("is committed");
        self.in_force(owner, InForce { size, epoch: meta.epoch }).await;
    }

    pub(crate) async fn in_force(&self, owner: u64, wanted: InForce) {
        let volume = self.served(owner);
        assert!(volume.sizes.reaches(wanted, Duration::from_secs(60)).await, "{wanted:?} is not in force");
    }
}

impl Cluster {
    /// Asks for a snapshot of the volume.
    pub(crate) fn record_snapshot(&self, name: &str) -> SnapshotId {
        let (volume, name) = (self.volume, name.parse().expect("a name"));
        let nonce = self.meta.state.lock().expect("no test panics with the lock held").0;
        let created = self.meta.propose(Command::CreateSnapshot { volume, name, nonce }).expect("is recorded");
        let Response::SnapshotCreated { snapshot } = created else { panic!("{created:?}") };
        snapshot
    }

    /// Makes a snapshot of the volume; returns what it is.
    pub(crate) async fn snapshot(&self, name: &str) -> (SnapshotId, Made) {
        let snapshot = self.record_snapshot(name);
        let owner = self.meta.state().volume(self.volume).expect("exists").owner;
        let volume = self.served(owner.0);
        (snapshot, volume.snapshots.made(snapshot, Duration::from_secs(60)).await.expect("is made"))
    }

    pub(crate) async fn export(&self, node: u64, name: &str) -> Arc<dyn Session> {
        self.nodes[&node].exports.open(name).await.expect("opens")
    }

    /// Whether `node` holds all of its only snapshot.
    pub(crate) async fn holds_snapshot(&self, node: u64, snapshot: SnapshotId) -> bool {
        let stored = self.nodes[&node].shard.snapshots(self.volume).await.expect("lists");
        stored.iter().any(|stored| stored.snapshot == snapshot && stored.stale_blocks == 0)
    }
}
