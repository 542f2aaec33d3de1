//! Makes this node do what the metadata says: volumes open and closed, owned or followed, peers known.
//!
//! One task, woken by every metadata change, compares what is with what should be, for the volumes that the change is about and those
//! that were not done with: others cost nothing. It runs only after this
//! process has proposed its own start and seen it applied, so what it acts on is never older than the process:
//! an ownership that was given away before a crash is not taken up again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, Lsn, NodeId, NodeName, ProviderId, SnapshotId, VolumeId};
use consensus::{MetaState, Snapshot, Volume};
use tokio::task::JoinHandle;

use super::access::forget_removed;
use crate::ownership::ceased::Ceased;
use crate::ownership::driver::OwnershipLog;
use crate::ownership::enclosure::{self, Enclosure};
use crate::ownership::gate::{Phase, View};
use crate::ownership::standing::Tail;
use crate::peer::client::PeerClient;
use crate::propagation::sender::Sender;
use crate::propagation::watermarks::Watermarks;
use crate::propagation::{debt, rpo};
use crate::serve::metadata::NewestMetadata;
use crate::serve::resize::{follow_size, grow};
use crate::serve::snapshots::follow_snapshots;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::serve::volumes::Volumes;
use crate::shard::handle::{ShardHandle, StoreError, VolumeReport};
use crate::shards::Shards;
use crate::volume::rejoin::Rejoining;

/// How often it is looked whether deleted snapshots are merged.
const MERGE_LOOK: Duration = Duration::from_millis(50);

/// What an owner runs for a volume, until its epoch ends.
struct Propagation {
    epoch: Epoch,
    watermarks: Arc<Watermarks>,
    senders: BTreeMap<NodeId, JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Propagation {
    fn drop(&mut self) {
        for task in self.senders.values().chain(&self.tasks) {
            task.abort();
        }
    }
}

/// How far a state was carried out.
#[derive(Default)]
struct CarriedOut {
    state: Arc<MetaState>,
    /// Under what the owned volumes were told that this node acts.
    acts_under: Option<u64>,
    /// The volumes that are to be looked at again.
    open: BTreeSet<VolumeId>,
    /// Whether nothing is left of volumes that are not listed.
    is_clean: bool,
}

impl CarriedOut {
    /// Whether there is nothing to do for any volume in `state`, under which this node acts as here, and nothing to be tried again.
    fn is_all_of(&self, state: &MetaState) -> bool {
        self.open.is_empty() && self.is_clean && self.state.differs_in_leases_only(state)
    }

    /// The volumes of `state`, under which this node acts as here, that are to be looked at.
    fn concerned<'a>(&self, state: &'a MetaState) -> Vec<&'a Volume> {
        let changed = state.volumes_changed_since(&self.state).map(|volume| (volume.id, volume));
        let open = self.open.iter().filter_map(|id| Some((*id, state.volume(*id)?)));
        BTreeMap::from_iter(changed.chain(open)).into_values().collect()
    }
}

/// Follows the metadata.
pub struct Reconciler {
    me: NodeId,
    volumes: Arc<Volumes>,
    shards: Arc<Shards>,
    peers: PeerClient,
    metadata: Arc<NewestMetadata>,
    log: Arc<dyn OwnershipLog>,
    peer_overrides: BTreeMap<NodeName, SocketAddr>,
    ceased: Arc<Ceased>,
    /// Whether what cannot be written here is given away.
    rescues: AtomicBool,
    propagation: Mutex<BTreeMap<VolumeId, Propagation>>,
}

impl Reconciler {
    /// A reconciler of node `me`.
    #[must_use]
    pub fn new(
        me: NodeId,
        volumes: Arc<Volumes>,
        shards: Arc<Shards>,
        peers: PeerClient,
        metadata: Arc<NewestMetadata>,
        log: Arc<dyn OwnershipLog>,
        peer_overrides: BTreeMap<NodeName, SocketAddr>,
    ) -> Reconciler {
        let (ceased, rescues, propagation) = (Arc::default(), AtomicBool::new(false), Mutex::default());
        Reconciler { me, volumes, shards, peers, metadata, log, peer_overrides, ceased, rescues, propagation }
    }

    /// Says, before anything is followed, whether volumes are given away whose store takes no writes any more.
    pub fn give_away_what_cannot_be_written(&self, rescues: bool) {
        self.rescues.store(rescues, Ordering::Relaxed);
    }

    /// The ownerships that this process takes up no more, since it steps down.
    #[must_use]
    pub fn ceased(&self) -> &Ceased {
        &self.ceased
    }

    /// Where the replicas of an owned volume are; `None` when it is not owned here.
    #[must_use]
    pub fn watermarks(&self, volume: VolumeId) -> Option<Arc<Watermarks>> {
        let propagation = self.propagation.lock().unwrap_or_else(PoisonError::into_inner);
        propagation.get(&volume).map(|running| running.watermarks.clone())
    }

    /// The shards of the node.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Follows `states` until the sender is gone.
    pub async fn run(self: Arc<Self>, mut states: watch::Receiver<Arc<MetaState>>) {
        let mut carried_out = CarriedOut::default();
        loop {
            let state = states.borrow_and_update().clone();
            carried_out = self.apply(&state, carried_out).await;
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends everything that is sent; for shutdown.
    pub fn stop(&self) {
        self.propagation.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.volumes.stop();
    }

    async fn apply(self: &Arc<Self>, state: &Arc<MetaState>, before: CarriedOut) -> CarriedOut {
        learn_peers(&self.peers, self.me, &self.peer_overrides, state);
        for node in state.nodes().filter(|node| node.id != self.me) {
            self.peers.greet(node.id);
            self.peers.links().follow(node.id, state.link(self.me, node.id));
        }
        let acts_under = state.lease(self.me).acts_under();
        let acts_as_before = before.acts_under == acts_under;
        if acts_as_before && before.is_all_of(state) {
            return before;
        }
        let concerned = if acts_as_before { before.concerned(state) } else { state.volumes().collect() };
        let is_listed = before.is_clean && state.has_volumes_of(&before.state);
        if !is_listed {
            // First: nobody is to find one here that was deleted beside the one that has its name now.
            self.close_unlisted(state);
        }
        let mut open = BTreeSet::new();
        for volume in concerned {
            #[cfg(test)]
            crate::simulation::backlog::turn().await;
            if !acts_as_before && volume.owner == self.me {
                self.arm(volume, acts_under).await;
            }
            let served = self.apply_volume(state, volume, acts_under).await;
            let is_news = self.volumes.set_trouble(volume.id, served.as_ref().err());
            if let Err(error) = &served
                && is_news
            {
                tracing::error!(volume = %volume.name, epoch = %volume.epoch, %error, "the volume cannot be served");
            }
            let is_done = |served: &ServedVolume| {
                let keeps_nothing = || served.dropped.load(Ordering::Relaxed);
                has_come_to(served.gate.view(), volume) && (is_holder(self.me, volume) || keeps_nothing())
            };
            if served.is_err() || !self.volumes.get(volume.id).is_some_and(|served| is_done(&served)) {
                open.insert(volume.id);
            }
        }
        let is_clean = is_listed || self.delete_unlisted(state).await;
        CarriedOut { state: state.clone(), acts_under, open, is_clean }
    }

    /// Ends the volumes that are not listed any more.
    fn close_unlisted(&self, state: &MetaState) {
        for gone in self.volumes.all().into_iter().filter(|volume| state.volume(volume.id).is_none()) {
            self.volumes.remove(gone.id);
            self.volumes.set_trouble(gone.id, None);
            self.stop_propagation(gone.id);
        }
    }

    /// Deletes what is stored and not listed, also what was deleted while this node was down. Returns whether nothing is left of it.
    async fn delete_unlisted(&self, state: &MetaState) -> bool {
        let wanted: BTreeSet<VolumeId> = state.volumes().map(|volume| volume.id).collect();
        let mut is_gone = true;
        for shard in self.shards.all() {
            let stored = match shard.list().await {
                Ok(stored) => stored,
                Err(error) => {
                    tracing::error!(%error, "the stored volumes cannot be listed");
                    is_gone = false;
                    continue;
                }
            };
            for id in stored.into_iter().filter(|id| !wanted.contains(id)) {
                match shard.delete(id).await {
                    Ok(()) => {
                        self.shards.forget(id);
                        tracing::info!(volume = %id, "deleted");
                    }
                    Err(error) => {
                        tracing::error!(volume = %id, %error, "a deleted volume still takes space");
                        is_gone = false;
                    }
                }
            }
        }
        is_gone
    }

    /// Tells the shard that this node acts for a volume under another number of lapses, if it had taken it up.
    async fn arm(&self, meta: &Volume, acts_under: Option<u64>) {
        if let Some(volume) = self.volumes.get(meta.id)
            && let Err(error) = volume.shard.arm(meta.id, meta.epoch, acts_under).await
        {
            tracing::error!(volume = %meta.name, epoch = %meta.epoch, %error, "the volume is not served under the new lease");
        }
    }

    async fn apply_volume(
        self: &Arc<Self>,
        state: &MetaState,
        meta: &Volume,
        acts_under: Option<u64>,
    ) -> Result<(), Error> {
        let owned = meta.owner == self.me;
        let (volume, view) = match self.volumes.get(meta.id) {
            Some(volume) => {
                let view = volume.gate.view();
                (volume, view)
            }
            None => {
                let Some((shard, report)) = self.open(meta, owned).await? else { return Ok(()) };
                let (peers, metadata) = (self.peers.clone(), self.metadata.clone());
                // A growth that this node has not carried out yet must not be promised to clients.
                let size = report.size.min(meta.size);
                let volume = ServedVolume::new(meta, size, self.me, Phase::Activating, shard, peers, metadata);
                // Before anybody can open it: ciphertext must not be taken for data.
                volume.keys.follow(state.keys(meta.id));
                self.volumes.insert(volume.clone());
                tokio::spawn(follow_size(volume.clone()));
                tokio::spawn(follow_snapshots(volume.clone(), self.log.clone()));
                let view = View { epoch: Epoch(0), ..volume.gate.view() };
                (volume, view)
            }
        };
        volume.puller.set_holders(holders(meta));
        volume.sizes.want(meta.size);
        volume.flushes.follow(meta, state);
        volume.pace.follow(meta.rpo);
        volume.may_come.store(meta.on_write == Some(self.me), Ordering::Relaxed);
        volume.sending.follow(&meta.propagation);
        let is_holder = is_holder(self.me, meta);
        volume.follows.store(is_holder, Ordering::Relaxed);
        if owned {
            let may_go = !meta.replicas.is_empty() && self.rescues.load(Ordering::Relaxed);
            volume.rescue.is_possible.store(may_go, Ordering::Relaxed);
        }
        // Also where this node has done already what it is told: a takeover may have ended what it handed over.
        volume.standing.heard(meta, state.last_takeover(meta));
        volume.keys.follow(state.keys(meta.id));
        let is_done = has_come_to(view, meta);
        if !is_done && !owned {
            self.stop_propagation(meta.id);
            follow(&volume, state, meta).await?;
        }
        if owned && is_done {
            self.follow_replicas(&volume, state, meta);
        }
        match is_holder {
            true => volume.dropped.store(false, Ordering::Relaxed),
            false => drop_copy(&volume, meta).await?,
        }
        // Behind what was to be dropped of an earlier copy.
        let joins = state.places().joined_since(meta.id, self.me);
        volume.joins.store(joins.unwrap_or(0), Ordering::Release);
        // Only now is it known whether this node has left the volume and keeps what is not listed any more.
        volume.snapshots.list(meta);
        if owned && !is_done {
            volume.gate.set(View { owner: self.me, epoch: meta.epoch, phase: Phase::Activating });
            self.activate(&volume, state, meta, acts_under).await?;
        }
        Ok(())
    }

    /// The volume's place in a shard. A clone begins here as its snapshot, if this node has all of that; if not, it begins empty
    /// and is sent everything, but only when there is somebody who has it: `None` until then.
    async fn open(&self, meta: &Volume, owned: bool) -> Result<Option<(ShardHandle, VolumeReport)>, Error> {
        let Some(origin) = meta.origin else {
            let shard = self.shards.of(meta.id).map_err(store_failure)?;
            let report = shard.open(meta.id, meta.size).await.map_err(store_failure)?;
            return Ok(Some((shard, report)));
        };
        let shard = self.shards.beside(meta.id, origin.volume).map_err(store_failure)?;
        match shard.open_clone(meta.id, origin.volume, origin.snapshot).await {
            Ok(report) => Ok(Some((shard, report))),
            Err(error) if owned && !origin.is_made => Err(store_failure(error)),
            Err(
                StoreError::UnknownVolume(_) | StoreError::UnknownSnapshot { .. } | StoreError::StillFetching { .. },
            ) if origin.is_made => {
                let report = shard.open(meta.id, meta.size).await.map_err(store_failure)?;
                Ok(Some((shard, report)))
            }
            Err(error) => {
                tracing::debug!(volume = %meta.name, %error, "the clone is not here before it is at its owner");
                Ok(None)
            }
        }
    }

    /// Takes up an ownership that consensus gave this node.
    async fn activate(
        self: &Arc<Self>,
        volume: &Arc<ServedVolume>,
        state: &MetaState,
        meta: &Volume,
        acts_under: Option<u64>,
    ) -> Result<(), Error> {
        let enclosed = state.enclosed(meta.id);
        tracing::debug!(volume = %meta.name, epoch = %meta.epoch, "taking up the ownership");
        self.shards.require_not_lost(meta.id, &meta.name, meta.epoch)?;
        // Until it is taken up, or not: nobody steps down for it meanwhile.
        let _turn = self.ceased.turn().await;
        if self.ceased.has(meta.id, meta.epoch) {
            return Err(store_failure(StoreError::SteppedDown(meta.id)));
        }
        if let Some(enclosed) = enclosed {
            // Not made durable first: metadata keeps it until it is.
            Enclosure::decode(enclosed)?.take(volume, false).await?;
        }
        let fork = state.last_takeover(meta).map(|fork| fork.epoch.next());
        // Taken over by this node: it begins with what it holds, and knows of nothing else.
        let report = match fork == Some(meta.epoch) {
            true => volume.shard.rewind(meta.id, meta.final_lsn).await,
            false => volume.shard.report(meta.id).await,
        };
        let report = report.map_err(store_failure)?;
        if meta.has_left(report.known) {
            // It held just this when it proposed the takeover, and took nothing more.
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "this node holds the volume up to {}, beyond {}, where it took over",
                    report.held, meta.final_lsn
                ),
            ));
        }
        // Sessions of other nodes: whatever they saw before is not what they would write upon.
        if let Some(epoch) = fork {
            volume.writers.claim(epoch);
        }
        if report.known < meta.final_lsn {
            // The source proposes only what this node was told up to there, or encloses the rest: something lost it.
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "this node knows the volume only up to {}, but was handed it up to {}",
                    report.known, meta.final_lsn
                ),
            ));
        }
        grow(volume, meta.size).await;
        let report = volume.shard.activate_under(meta.id, meta.epoch, acts_under).await.map_err(store_failure)?;
        volume.writers.claim(report.claimed);
        volume.standing.set_tail(None);
        if report.head == meta.final_lsn {
            make_again(volume, meta, report.newest_snapshot).await?;
        }
        volume.puller.begin(report.stale_blocks);
        let own = (report.stale_blocks > 0).then_some(report.watermark);
        volume.flushes.begin(meta.epoch, own);
        // What the owner before could not make durable is to be durable here before anything is said to be.
        let owed = meta.history.last().and_then(|ended| state.rescued_from(meta.id, ended.epoch));
        let owed = owed.filter(|_| report.stale_blocks > 0);
        if let Some(durable) = owed {
            volume.flushes.owe(meta.epoch, durable);
        }
        volume.begin(meta.epoch, meta.final_lsn);
        tracing::info!(volume = %meta.name, epoch = %meta.epoch, head = %report.head, stale_blocks = report.stale_blocks, "owner");
        self.start_propagation(volume, meta, report.head, far_sites(state, meta));
        if let Some(durable) = owed {
            self.run_beside(meta.id, tokio::spawn(debt::repay(volume.clone(), meta.epoch, durable)));
        }
        if enclosed.is_some() {
            let (volume, epoch, log) = (volume.clone(), meta.epoch, self.log.clone());
            tokio::spawn(async move { enclosure::settle(&volume, epoch, &*log).await });
        }
        Ok(())
    }

    fn start_propagation(
        &self,
        volume: &Arc<ServedVolume>,
        meta: &Volume,
        head: Lsn,
        sites: BTreeMap<NodeId, ProviderId>,
    ) {
        let watermarks = Watermarks::new(meta.replicas.iter().copied(), head).at(sites);
        let watermarks = Arc::new(watermarks);
        let sender = |replica: &NodeId| {
            let sender = Sender::new(volume.clone(), *replica, meta.epoch, watermarks.clone());
            (*replica, tokio::spawn(sender.run()))
        };
        let senders = meta.replicas.iter().map(sender).collect();
        let mut tasks = vec![tokio::spawn(rpo::watch(volume.clone(), watermarks.clone()))];
        let (backfill, epoch) = (volume.clone(), meta.epoch);
        tasks.push(tokio::spawn(async move {
            let filled = async {
                backfill.puller.backfill().await?;
                // What was fetched counts as held when it is synced.
                backfill.shard.sync(backfill.id).await.map_err(store_failure)
            };
            match filled.await {
                Ok(_) => {
                    backfill.flushes.whole(epoch);
                    tracing::info!(volume = %backfill.name, "every block is here");
                }
                Err(error) => tracing::error!(volume = %backfill.name, %error, "filling in stale blocks has ended"),
            }
        }));
        let running = Propagation { epoch: meta.epoch, watermarks, senders, tasks };
        let mut propagation = self.propagation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = propagation.insert(meta.id, running) {
            debug_assert!(before.epoch < meta.epoch, "an ownership is taken up once");
        }
    }

    /// Runs `task` for as long as this node owns the volume in its present epoch.
    fn run_beside(&self, volume: VolumeId, task: JoinHandle<()>) {
        let mut propagation = self.propagation.lock().unwrap_or_else(PoisonError::into_inner);
        match propagation.get_mut(&volume) {
            Some(running) => running.tasks.push(task),
            None => task.abort(),
        }
    }

    /// Sends to those that are replicas now, in the same epoch, and nothing more to those that are not: nobody waits for them, and nothing
    /// is kept for them.
    fn follow_replicas(&self, volume: &Arc<ServedVolume>, state: &MetaState, meta: &Volume) {
        if self.ceased.has(meta.id, meta.epoch) {
            return;
        }
        let mut propagation = self.propagation.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = propagation.get_mut(&meta.id).filter(|running| running.epoch == meta.epoch) else { return };
        let gone: Vec<NodeId> = running.senders.keys().copied().filter(|it| !meta.replicas.contains(it)).collect();
        for node in gone {
            tracing::info!(volume = %meta.name, %node, "the node is no replica any more");
            if let Some(sender) = running.senders.remove(&node) {
                sender.abort();
            }
            running.watermarks.give_up(node);
        }
        for (node, sender) in running.senders.iter_mut().filter(|(_, sender)| sender.is_finished()) {
            tracing::warn!(volume = %meta.name, %node, epoch = %meta.epoch, "sending to the replica had ended, and begins again");
            let again = Sender::new(volume.clone(), *node, meta.epoch, running.watermarks.clone());
            *sender = tokio::spawn(again.run());
        }
        let mut sites = far_sites(state, meta);
        for node in meta.replicas.iter().filter(|node| !running.senders.contains_key(node)).copied().collect::<Vec<_>>()
        {
            tracing::info!(volume = %meta.name, %node, "the node is a replica now");
            running.watermarks.add(node, sites.remove(&node));
            let sender = Sender::new(volume.clone(), node, meta.epoch, running.watermarks.clone());
            running.senders.insert(node, tokio::spawn(sender.run()));
        }
    }

    /// Sends nothing more of a volume for which this process has ceased to act: a replica that comes to hold more than the one that takes it over,
    /// after that has asked around, would have left the volume.
    pub(super) fn send_no_more(&self, volume: VolumeId) {
        let mut propagation = self.propagation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = propagation.get_mut(&volume) {
            std::mem::take(&mut running.senders).values().for_each(JoinHandle::abort);
        }
    }

    fn stop_propagation(&self, volume: VolumeId) {
        self.propagation.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }
}

/// Follows the owner of `meta` from now on: nothing of an earlier one is on its way any more, and what takeovers cut off is
/// forgotten, unless it is held here: then this node has left the volume.
pub async fn follow(volume: &ServedVolume, state: &MetaState, meta: &Volume) -> Result<(), Error> {
    let _hold = volume.intake.hold().await;
    let mut report = match volume.shard.deactivate(meta.id, meta.epoch).await {
        Ok(report) => report,
        Err(error) => {
            if volume.shard.fault().is_some() {
                follow_without_store(volume, state, meta).await;
            }
            return Err(store_failure(error));
        }
    };
    let common = meta.common_with(report.known);
    if common < report.known {
        report = match report.rejoining {
            // Parts of an initial sync that go beyond it are good for nothing.
            Some(Rejoining { base, initial: Some(_), .. }) if base > common => discard(volume, meta, Lsn::ZERO).await?,
            Some(_) => discard(volume, meta, common).await?,
            None => volume.shard.rewind(meta.id, common).await.map_err(store_failure)?,
        };
    }
    if meta.has_left(report.held) && state.has_lost_nothing(meta, report.held) {
        // Nobody was told that it is written: it is the remains of writes that were done elsewhere, when this store took none any more.
        let common = meta.common_with(report.held);
        tracing::info!(volume = %meta.name, epoch = %meta.epoch, held = %report.held, %common, "what was never acked is dropped");
        report = discard(volume, meta, common).await?;
    }
    let has_left = meta.has_left(report.held);
    if has_left && report.known > report.held && report.held == report.watermark {
        // Its tail is what it holds, not what it was told of besides.
        report = volume.shard.rewind(meta.id, report.held).await.map_err(store_failure)?;
    }
    let tail = match has_left {
        false => None,
        true => {
            let from = meta.common_with(report.held);
            let blocks = volume.shard.changed_blocks(meta.id, from).await.map_err(store_failure)?;
            Some(Tail { from, to: report.held, blocks })
        }
    };
    if let Some(Tail { from, to, blocks }) = tail
        && volume.standing.tail() != tail
    {
        tracing::warn!(volume = %meta.name, epoch = %meta.epoch, %from, %to, blocks, "the volume was taken over, and this node holds what was cut off: its copy stays as it is");
    }
    volume.standing.set_tail(tail);
    volume.gate.set(View { owner: meta.owner, epoch: meta.epoch, phase: Phase::Elsewhere });
    Ok(())
}

/// The same where the store takes no writes: nothing can be noted there, and nothing goes back to where a takeover left it, until the node is
/// started with a store that works, and comes here again. Until then it acts as no owner, tells what its tail is, and passes clients on.
async fn follow_without_store(volume: &ServedVolume, state: &MetaState, meta: &Volume) {
    if let Ok(report) = volume.shard.report(meta.id).await
        && meta.has_left(report.held)
        && !state.has_lost_nothing(meta, report.held)
    {
        let from = meta.common_with(report.held);
        let blocks = volume.shard.changed_blocks(meta.id, from).await.unwrap_or_default();
        volume.standing.set_tail(Some(Tail { from, to: report.held, blocks }));
    }
    // Before anybody is passed on: what was acked here may not be durable.
    volume.owe_flush();
    volume.gate.set(View { owner: meta.owner, epoch: meta.epoch, phase: Phase::Elsewhere });
}

/// Drops what is held here of a volume of which this node is no replica any more. A tail that a takeover cut off stays: nobody else has it.
async fn drop_copy(volume: &ServedVolume, meta: &Volume) -> Result<(), Error> {
    // Nothing is taken in for whoever does not follow: it stays so.
    if volume.dropped.load(Ordering::Relaxed) {
        return Ok(());
    }
    let _hold = volume.intake.hold().await;
    if volume.standing.tail().is_some() {
        return Ok(());
    }
    let report = volume.shard.report(meta.id).await.map_err(store_failure)?;
    if report.known > Lsn::ZERO || report.rejoining.is_some() {
        discard(volume, meta, Lsn::ZERO).await?;
        tracing::info!(volume = %meta.name, "this node is no replica any more, and has dropped its copy");
    }
    volume.dropped.store(true, Ordering::Relaxed);
    Ok(())
}

fn is_holder(node: NodeId, volume: &Volume) -> bool {
    volume.owner == node || volume.replicas.contains(&node)
}

/// Whether a node with this view is to the volume what `meta` has it be.
fn has_come_to(view: View, meta: &Volume) -> bool {
    view.epoch >= meta.epoch && view.phase != Phase::Activating
}

/// Drops what is held here beyond `to`, with the snapshots that were made of it.
pub async fn discard(volume: &ServedVolume, meta: &Volume, to: Lsn) -> Result<VolumeReport, Error> {
    let (shard, id) = (&volume.shard, volume.id);
    if to == Lsn::ZERO {
        // Nothing of it is the volume's.
        shard.delete(id).await.map_err(store_failure)?;
        shard.open(id, meta.size).await.map_err(store_failure)?;
        return shard.deactivate(id, meta.epoch).await.map_err(store_failure);
    }
    let listed = shard.snapshots(id).await.map_err(store_failure)?;
    for snapshot in listed.into_iter().filter(|snapshot| snapshot.lsn > to) {
        shard.delete_snapshot(id, snapshot.snapshot).await.map_err(store_failure)?;
    }
    loop {
        // Recovery must not find them either.
        shard.checkpoint().await.map_err(store_failure)?;
        match shard.discard(id, to).await {
            Err(StoreError::HasSnapshots { .. }) => tokio::time::sleep(MERGE_LOOK).await,
            discarded => return discarded.map_err(store_failure),
        }
    }
}

/// Makes the snapshots again that were made at the very position where this node took over, and of which it had not heard: as
/// long as nothing is written they are the same.
async fn make_again(volume: &ServedVolume, meta: &Volume, newest: SnapshotId) -> Result<(), Error> {
    let is_here = |snapshot: &&Snapshot| snapshot.made.is_some_and(|made| made.lsn == meta.final_lsn);
    for snapshot in meta.snapshots.iter().filter(is_here).filter(|snapshot| snapshot.id > newest) {
        volume.shard.create_snapshot(meta.id, snapshot.id).await.map_err(store_failure)?;
    }
    Ok(())
}

/// Learns what the nodes are called, and where those other than `me` are.
pub fn learn_peers(peers: &PeerClient, me: NodeId, overrides: &BTreeMap<NodeName, SocketAddr>, state: &MetaState) {
    peers.names().learn(state);
    let transport = &**peers.transport();
    forget_removed(transport, state);
    for node in state.nodes().filter(|node| node.id != me) {
        match overrides.get(&node.name).copied().or_else(|| node.address.parse().ok()) {
            Some(address) => transport.set_peer(node.id, address),
            None => tracing::error!(node = %node.name, address = %node.address, "not an address"),
        }
    }
}

/// [Learns](learn_peers) the addresses from each of `states`, until the sender is gone.
pub async fn follow_peers(
    mut states: watch::Receiver<Arc<MetaState>>,
    peers: PeerClient,
    me: NodeId,
    overrides: BTreeMap<NodeName, SocketAddr>,
) {
    loop {
        let state = states.borrow_and_update().clone();
        learn_peers(&peers, me, &overrides, &state);
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// The providers of the replicas that are at another one than the owner.
fn far_sites(state: &MetaState, meta: &Volume) -> BTreeMap<NodeId, ProviderId> {
    let site = |node: NodeId| state.node(node).map(|node| node.provider.clone());
    let own = site(meta.owner);
    let sites = meta.replicas.iter().filter_map(|replica| Some((*replica, site(*replica)?)));
    sites.filter(|(_, site)| Some(site) != own.as_ref()).collect()
}

/// Whom to ask for stale blocks: the last owner first, then the other holders.
fn holders(meta: &Volume) -> Vec<NodeId> {
    let first = meta.source.into_iter().chain(std::iter::once(meta.owner));
    let mut holders: Vec<NodeId> = first.collect();
    for replica in &meta.replicas {
        if !holders.contains(replica) {
            holders.push(*replica);
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use client_lib::VolumeSize;
    use consensus::Command;

    use super::*;

    /// With a thousand volumes a handover came after a look at each of them.
    #[test]
    fn only_volumes_that_something_new_is_said_of_are_looked_at_and_those_that_were_not_done() {
        let mut state = MetaState::default();
        let register = |id: u64| Command::RegisterNode {
            id: NodeId(id),
            name: format!("n{id}").parse().expect("a name"),
            provider: format!("p{id}").parse().expect("a name"),
            address: format!("127.0.0.1:{id}"),
        };
        let mut log = 10..;
        let mut apply = |state: &mut MetaState, command: Command| {
            state.apply(log.next().expect("endless"), command).into_result().expect("is applied");
        };
        [1, 2].into_iter().for_each(|id| apply(&mut state, register(id)));
        apply(&mut state, Command::NodeStarted { node: NodeId(1) });
        for name in ["x", "y", "z"] {
            let (name, size) = (name.parse().expect("a name"), VolumeSize::try_from(1 << 20).expect("a size"));
            let (owner, replicas) = (NodeId(1), [NodeId(2)].into());
            apply(&mut state, Command::CreateVolume { name, size, owner, replicas, nonce: 1 });
        }
        let ids: Vec<VolumeId> = state.volumes().map(|volume| volume.id).collect();
        let looked_at = |before: &CarriedOut, state: &MetaState| -> Vec<VolumeId> {
            before.concerned(state).iter().map(|volume| volume.id).collect()
        };
        assert_eq!(looked_at(&CarriedOut::default(), &state), ids, "at first all");
        let done = CarriedOut { state: Arc::new(state.clone()), is_clean: true, ..CarriedOut::default() };
        apply(&mut state, Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 9000 });
        assert!(done.is_all_of(&state) && looked_at(&done, &state).is_empty());
        let open = CarriedOut { state: done.state.clone(), open: [ids[2]].into(), ..CarriedOut::default() };
        assert!(!open.is_all_of(&state));
        assert_eq!(looked_at(&open, &state), [ids[2]]);
        apply(&mut state, Command::SetTakeover { volume: ids[1], after_ms: Some(5) });
        assert_eq!(looked_at(&done, &state), [ids[1]]);
        assert_eq!(looked_at(&open, &state), [ids[1], ids[2]]);
        apply(&mut state, Command::DeleteVolume { volume: ids[2] });
        assert_eq!(looked_at(&open, &state), [ids[1]]);
        assert!(!state.has_volumes_of(&done.state));
        apply(&mut state, register(3));
        assert_eq!(looked_at(&done, &state), ids[..2], "who is where concerns all");
    }

    #[test]
    fn the_last_owner_is_asked_first() {
        let volume = Volume {
            owner: NodeId(2),
            replicas: [NodeId(1), NodeId(3)].into(),
            source: Some(NodeId(1)),
            ..Volume::example()
        };
        assert_eq!(holders(&volume), [NodeId(1), NodeId(2), NodeId(3)]);
    }
}
