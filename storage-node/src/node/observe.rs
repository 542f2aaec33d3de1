//! Gathers what a node tells those who watch over it: the numbers of all its parts, and whether it can serve.
//!
//! Nothing is counted here, and nothing runs while nobody asks. What many ask at once is looked up once, and told for [`FRESH`]: anybody
//! may ask as often as he likes without slowing guests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client_lib::pki::Validity;
use client_lib::transport::BoxFuture;
use client_lib::{BLOCK_SIZE, VolumeId};
use consensus::{MetaRaft, MetaState};
use futures_util::future::join_all;
use nbd_frontend::server::ConnectionMeter;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::ThisNode;
use super::lease::has_volumes;
use super::reach;
use super::reconcile::Reconciler;
use crate::metrics::figures::{
    LeaseFigures, LinkFigures, MetadataView, NodeFigures, OwnedFigures, ReplicaFigures, VolumeView, VolumesFigures,
};
use crate::metrics::process::ProcessFigures;
use crate::metrics::{exposition, fill};
use crate::ownership::changes::Changes;
use crate::ownership::gate::Phase;
use crate::ownership::lease::LeaseCell;
use crate::peer::client::PeerClient;
use crate::peer::links::Links;
use crate::propagation::watermarks::Watermarks;
use crate::serve::observe::{Check, Health, Observe};
use crate::serve::volume::ServedVolume;
use crate::serve::volumes::Volumes;
use crate::shard::figures::VolumeFigures;
use crate::shards::{Shards, StoreFigures};
use crate::trace::export::Exporter;

/// For how long an answer is given again.
const FRESH: Duration = Duration::from_millis(250);

/// How long a store may take to tell what it counts, before a scrape goes on without.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a majority may take to answer before the metadata is called out of reach. Above any round trip, and well below what a
/// scrape or a probe usually may take.
const METADATA_PATIENCE: Duration = Duration::from_secs(3);

/// How long a thread that serves volumes may take to look up from its work before it is said to hang.
const THREAD_PATIENCE: Duration = Duration::from_secs(10);

/// Most volumes of which something is told by name: above what a node is made for, and few enough that a scrape stays within some
/// megabytes. Of those beyond, by id, only the number is told.
const VOLUMES_MAX: usize = 2000;

/// What is looked at. The parts of a node that it is made of.
pub struct Observed {
    /// Who the node is.
    pub this: ThisNode,
    /// Consensus.
    pub meta: MetaRaft,
    /// The right to act as an owner.
    pub lease: Arc<LeaseCell>,
    /// What is served.
    pub volumes: Arc<Volumes>,
    /// Who knows the replicas.
    pub reconciler: Arc<Reconciler>,
    /// The disks.
    pub shards: Arc<Shards>,
    /// The other nodes.
    pub peers: PeerClient,
    /// Who counts handovers and takeovers.
    pub changes: Arc<Changes>,
    /// Who tells a collector of operations, if anybody does.
    pub exporter: Option<Arc<Exporter>>,
}

/// Looks at a node when it is asked.
pub struct Observer {
    node: Observed,
    /// Set once NBD is served.
    nbd: OnceLock<ConnectionMeter>,
    /// The files of certificates, and what each is for.
    certificates: OnceLock<Vec<(&'static str, PathBuf)>>,
    is_stopping: AtomicBool,
    scraped: Mutex<Option<(Instant, Arc<str>)>>,
    judged: Mutex<Option<(Instant, Health)>>,
}

impl Observer {
    /// An observer of `node`.
    #[must_use]
    pub fn new(node: Observed) -> Observer {
        Observer {
            node,
            nbd: OnceLock::new(),
            certificates: OnceLock::new(),
            is_stopping: AtomicBool::new(false),
            scraped: Mutex::default(),
            judged: Mutex::default(),
        }
    }

    /// NBD is served from now on; the first call counts.
    pub fn nbd_serves(&self, meter: ConnectionMeter) {
        // There is one server in the life of a node.
        let _ = self.nbd.set(meter);
    }

    /// These files are read at each scrape, for when their certificates expire; the first call counts.
    pub fn certificates_are(&self, files: Vec<(&'static str, PathBuf)>) {
        // Other files come with a restart.
        let _ = self.certificates.set(files);
    }

    /// The node is ready no more, whatever else holds.
    pub fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    async fn scrape(&self) -> Arc<str> {
        let mut scraped = self.scraped.lock().await;
        if let Some((_, text)) = scraped.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return text.clone();
        }
        let text: Arc<str> = exposition::text(fill::sheet(&self.figures().await)).into();
        *scraped = Some((Instant::now(), text.clone()));
        text
    }

    async fn figures(&self) -> NodeFigures {
        let Observed { this, meta, lease, shards, .. } = &self.node;
        let (health, stores) = tokio::join!(self.ready(), shards.figures(STORE_PATIENCE));
        let (state, figures) = (meta.state(), meta.figures());
        NodeFigures {
            node: this.name.to_string(),
            provider: this.provider.to_string(),
            process: ProcessFigures::of_this(),
            health,
            metadata: MetadataView {
                is_leader: figures.leader == Some(this.id),
                is_voter: figures.voters.contains(&this.id),
                nodes: state.nodes().count() as u64,
                figures,
            },
            lease: LeaseFigures {
                is_needed: has_volumes(&state, this.id),
                remaining: lease.remaining(),
                duration: meta.timings().lease,
                lapses: state.lease(this.id).lapses,
            },
            certificates: self.expiries(),
            links: self.links(&state),
            nbd: self.nbd.get().map(ConnectionMeter::figures),
            changes: self.node.changes.figures(),
            exported: self.node.exporter.as_ref().map(|exporter| exporter.figures()),
            volumes: self.volumes(&state, &stores),
            stores,
        }
    }

    /// What cannot be read is left out: whoever uses it says so.
    fn expiries(&self) -> Vec<(&'static str, Validity)> {
        let files = self.certificates.get().into_iter().flatten();
        let expiry = |(what, file): &(&'static str, PathBuf)| {
            let pem = std::fs::read_to_string(file).ok()?;
            Some((*what, Validity::of_pem(&pem).ok()?))
        };
        files.filter_map(expiry).collect()
    }

    fn links(&self, state: &MetaState) -> Vec<LinkFigures> {
        let Observed { this, peers, .. } = &self.node;
        let others = state.nodes().filter(|node| node.id != this.id);
        let link = |to: &consensus::Node| LinkFigures {
            peer: to.name.to_string(),
            rtt: peers.transport().rtt(to.id),
            link: peers.links().link(to.id),
            limit: peers.links().limit(to.id),
        };
        others.map(link).collect()
    }

    fn volumes(&self, state: &MetaState, stores: &[StoreFigures]) -> VolumesFigures {
        let shards = stores.iter().filter_map(|store| store.shard.as_ref());
        let stored: BTreeMap<VolumeId, VolumeFigures> =
            shards.flat_map(|shard| &shard.volumes).map(|volume| (volume.volume, *volume)).collect();
        let me = self.node.this.id;
        let all = self.node.volumes.all();
        let follows = |volume: &&Arc<ServedVolume>| {
            state.volume(volume.id).is_some_and(|meta| meta.replicas.contains(&me) && meta.owner != me)
        };
        let owned = all.iter().filter(|volume| volume.gate.view().phase == Phase::Owner).count();
        let troubled = self.node.volumes.troubled().into_iter().filter(|volume| state.volume(*volume).is_some());
        // What a node neither owns nor follows, it only passes on.
        let concerned = || all.iter().filter(|volume| volume.gate.view().phase == Phase::Owner || follows(volume));
        let is_concerned = |meta: &&consensus::Volume| meta.owner == me || meta.replicas.contains(&me);
        let stepped_down = || state.volumes().filter(|meta| state.has_stepped_down(meta.id)).filter(is_concerned);
        VolumesFigures {
            stepped_down: stepped_down().count() as u64,
            each_stepped_down: stepped_down().take(VOLUMES_MAX).map(|meta| meta.name.to_string()).collect(),
            owned: owned as u64,
            followed: all.iter().filter(follows).count() as u64,
            troubled: troubled.count() as u64,
            omitted: concerned().count().saturating_sub(VOLUMES_MAX) as u64,
            each: concerned().take(VOLUMES_MAX).map(|volume| self.volume(state, volume, &stored)).collect(),
        }
    }

    fn volume(
        &self,
        state: &MetaState,
        volume: &ServedVolume,
        stored: &BTreeMap<VolumeId, VolumeFigures>,
    ) -> VolumeView {
        let view = volume.gate.view();
        let marks = (view.phase == Phase::Owner).then(|| self.node.reconciler.watermarks(volume.id)).flatten();
        VolumeView {
            name: volume.name.to_string(),
            stored: stored.get(&volume.id).copied(),
            tail_bytes: volume.standing.tail().map(|tail| tail.blocks * u64::from(BLOCK_SIZE)),
            owned: marks.map(|marks| owned(state, volume, &marks, self.node.peers.links())),
            epoch: view.epoch.0,
        }
    }

    async fn judge(&self) -> Health {
        let Observed { this, meta, lease, shards, .. } = &self.node;
        let running = self.is_stopping.load(Ordering::Relaxed).then(|| "the node is stopping".to_owned());
        let metadata = meta.linearizable(METADATA_PATIENCE).await.err();
        let metadata = metadata.map(|error| {
            format!("the metadata is out of reach (a majority of the nodes that vote must be up): {error}")
        });
        let is_out = has_volumes(&meta.state(), this.id) && lease.remaining().is_zero();
        let lease = is_out.then(|| {
            "the node's lease is not in force, so reads and writes of its volumes wait: it is renewed through the metadata"
                .to_owned()
        });
        let faults: Vec<String> =
            shards.faults().map(|(directory, fault)| format!("{} {fault}", directory.display())).collect();
        let stores = (!faults.is_empty()).then(|| faults.join("; "));
        let checks = [("running", running), ("metadata", metadata), ("lease", lease), ("stores", stores)];
        Health { checks: checks.into_iter().map(|(name, failure)| Check { name, failure }).collect() }
    }

    async fn look_at_threads(&self) -> Health {
        let looks = self.node.shards.all().enumerate().map(|(number, shard)| async move {
            let turn = shard.thread().spawn(std::future::ready(()));
            match tokio::time::timeout(THREAD_PATIENCE, turn).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(format!("the thread of store {number} has ended")),
                Err(_) => Some(format!("the thread of store {number} has taken no turn for {THREAD_PATIENCE:?}")),
            }
        });
        let hanging: Vec<String> = join_all(looks).await.into_iter().flatten().collect();
        let failure = (!hanging.is_empty()).then(|| hanging.join("; "));
        Health { checks: vec![Check { name: "threads", failure }] }
    }
}

fn owned(state: &MetaState, volume: &ServedVolume, marks: &Watermarks, links: &Links) -> OwnedFigures {
    let target = volume.pace.rpo().map(|rpo| Duration::from_millis(rpo.target_ms));
    let rpo = marks.highest().map(|watermark| marks.behind(watermark));
    let is_within = |target| rpo.is_some_and(|lag| lag <= target);
    let (flushes_waiting, is_degraded) = volume.flushes.figures();
    OwnedFigures {
        written_bytes: volume.pace.written(),
        rpo,
        rpo_target: target,
        // The target is looked at now and then, the lag is as of now.
        rpo_missed: target.filter(|target| !is_within(*target)).and_then(|_| marks.missed_for()),
        write_limit: volume.pace.rate(),
        flushes_waiting,
        is_degraded,
        fetched: Some(volume.puller.fetched()).filter(|fetched| fetched.stale > 0),
        replicas: reach::known(marks, links)
            .into_iter()
            .map(|(node, progress)| ReplicaFigures {
                replica: state.name_of(node),
                lag: marks.behind(progress.position.watermark),
                is_reachable: progress.reachable,
                stale_bytes: progress.stale_blocks() * u64::from(BLOCK_SIZE),
                is_rejoining: progress.rejoining.is_some(),
                tail_bytes: progress.tail.map(|tail| tail.blocks * u64::from(BLOCK_SIZE)),
            })
            .collect(),
    }
}

impl Observe for Observer {
    fn metrics(&self) -> BoxFuture<'_, Arc<str>> {
        Box::pin(self.scrape())
    }

    fn live(&self) -> BoxFuture<'_, Health> {
        Box::pin(self.look_at_threads())
    }

    fn ready(&self) -> BoxFuture<'_, Health> {
        Box::pin(async {
            let mut judged = self.judged.lock().await;
            if let Some((_, health)) = judged.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
                return health.clone();
            }
            let health = self.judge().await;
            *judged = Some((Instant::now(), health.clone()));
            health
        })
    }
}
