//! The owner's side of propagation: one sender per volume and replica, for as long as the ownership lasts.
//!
//! Two flows run beside each other. *Manifests* go out about every [`MANIFEST_INTERVAL`] and say what changed,
//! up to what is durable. *Data* follows: when the last delta was applied, the sender seals the next one
//! together with a manifest, and pushes what the replica misses of it in bulk calls, a bounded number at a time.
//! A slow replica gets fewer and larger deltas, each block once: lag costs distinct dirty blocks, no more. So does one that is to be sent
//! data now and then only ([`Mode::Lazy`]): what has changed it is told at once all the same. Data of deltas, and nothing else, keeps to
//! what its link may take.
//!
//! A lazy replica is sent some of the next delta's data *ahead*, in the order of the volume ([`super::order`]): what has been left alone for a
//! while. It is stored there and applied with the delta; what is written again meanwhile was sent for nothing, and is sent again.
//!
//! Where a flush waits for the replica ([`super::flushes`]) the two are one: manifest and data go out together and are applied at
//! once, in one call, as soon as the flush asks for it and with every tick; what is too much for a call goes as above. Several are
//! on their way at once, and flushes that come within a quarter of a round trip share one.
//!
//! While the replica has everything, nothing is looked at until something happens to the volume ([`super::rest`]). A replica whose node was started again
//! is asked again what it has ([`again`]).
//!
//! A replica that a takeover had cut off comes back by what differs ([`rejoin`]); one that has nothing is sent a large volume in parts
//! ([`initial`]).
//!
//! The replica is the authority on where it is: after any failure the sender asks it and goes on from its
//! answer, so a broken transfer resumes with the blocks that are still missing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::policy::Mode;
use client_lib::transport::{BoxFuture, Class};
use client_lib::{Epoch, Error, Lsn, NodeId, SnapshotId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ahead::Ahead;
use super::fan::Terms;
use super::freight::{Account, Covered};
use super::manifest::{BlockRun, Manifest, ManifestRun, RunContent, VersionedBlock};
use super::pinned::Pinned;
use super::progress::Rejoining;
use super::push::{Push, Way, count_sent, read_sealed};
use super::rest::Rest;
use super::seat::Seat;
use super::telling::Told;
use super::watermarks::Watermarks;
use crate::peer::message::{ENCODING_HELD, Message, PeerReply, PeerRequest, ReplicaPosition};
use crate::peer::packing::PackedBlocks;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::shard::handle::{Blocks, Seal, Sealed, SealedDelta, StoreError};

mod again;
mod initial;
mod pace;
mod rejoin;

use again::Word;
use initial::Initial;
use pace::Pace;
use rejoin::Comeback;

/// How often the owner looks for news to tell a replica.
pub const MANIFEST_INTERVAL: Duration = Duration::from_millis(100);

/// Most blocks that are delivered in one call: two mebibytes, which a link of 2 Mbit/s takes well within the time that a call may take. More
/// goes in parallel.
const DELIVER_BLOCKS_MAX: u64 = 512;

/// Deliveries on their way at once: a flush that comes while one is does not wait for that.
const DELIVERIES_MAX: usize = 4;

/// Most blocks that are delivered again because their delivery is not answered yet: 256 KiB.
const AGAIN_BLOCKS_MAX: u64 = 64;

/// How often it is looked what a lazy replica can be sent before its interval is over.
const AHEAD_INTERVAL: Duration = Duration::from_secs(1);

/// Most blocks that it is sent then: eight mebibytes.
const AHEAD_BLOCKS_MAX: usize = 2048;

/// First and longest pause after a replica could not be reached.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Keeps one replica of one volume up to date while this node owns it in `epoch`.
pub struct Sender {
    volume: Arc<ServedVolume>,
    replica: NodeId,
    epoch: Epoch,
    watermarks: Arc<Watermarks>,
    pace: Mutex<Pace>,
    pinned: Arc<Pinned>,
}

/// Why a session with a replica has ended.
enum Ended {
    /// It has left the volume.
    Left,
    /// Something failed.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Failed(error)
    }
}

/// How a replica that holds no prefix of the volume comes to one.
enum Arrival {
    /// It comes back.
    Rejoin(Comeback),
    /// It has nothing, or some parts of an initial sync.
    Initial(Initial),
}

impl Arrival {
    fn as_told(&self) -> Rejoining {
        match self {
            Arrival::Rejoin(comeback) => comeback.as_told(),
            Arrival::Initial(initial) => initial.as_told(),
        }
    }
}

/// Whether the next delta may be sealed.
enum Turn {
    /// Nothing is lacking, or it is too early.
    Wait,
    /// When those that follow sit.
    Soon,
    /// It is sealed with the next one of this replica, which waits for that if so.
    With(NodeId, bool),
    /// Now, and what this replica is sent the other one shall fetch, if there is one.
    Now(Option<NodeId>),
}

/// A delta whose data is on its way.
struct Transfer {
    delta: SealedDelta,
    task: JoinHandle<Result<ReplicaPosition, Error>>,
}

/// The deliveries on their way to a replica. Each begins where the replica is known to be, so they may arrive in any order: what one
/// has brought the others bring for nothing.
#[derive(Default)]
struct Deliveries<'a> {
    calls: FuturesUnordered<BoxFuture<'a, Result<ReplicaPosition, Error>>>,
    /// Up to where the newest of them goes.
    sent: Lsn,
    /// When it was sent.
    last: Option<Instant>,
    /// What is to be delivered next is too much to be sent more than once: those on their way come first.
    is_blocked: bool,
}

impl<'a> Deliveries<'a> {
    fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn has_room(&self) -> bool {
        self.calls.len() < DELIVERIES_MAX && !self.is_blocked
    }

    /// When another may be sent while some are on their way; `None` is at once.
    fn not_before(&self, spacing: Duration) -> Option<Instant> {
        self.last.filter(|_| !self.is_empty()).map(|last| last + spacing)
    }

    fn blocks_max(&self) -> u64 {
        if self.is_empty() { DELIVER_BLOCKS_MAX } else { AGAIN_BLOCKS_MAX }
    }

    fn push(&mut self, to: Lsn, call: BoxFuture<'a, Result<ReplicaPosition, Error>>) {
        (self.sent, self.last) = (to, Some(Instant::now()));
        self.calls.push(call);
    }

    /// The next answer; `None` when nothing is on its way.
    async fn next(&mut self) -> Option<Result<ReplicaPosition, Error>> {
        let answer = self.calls.next().await;
        self.is_blocked = false;
        if self.is_empty() {
            self.sent = Lsn::ZERO;
        }
        answer
    }
}

/// Data on its way before its delta; nobody waits for it.
struct Leading(JoinHandle<Result<(), Error>>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sender {
    /// A sender; [`run`](Self::run) does the work.
    #[must_use]
    pub fn new(volume: Arc<ServedVolume>, replica: NodeId, epoch: Epoch, watermarks: Arc<Watermarks>) -> Sender {
        let pinned = Arc::new(Pinned::new(volume.clone()));
        Sender { volume, replica, epoch, watermarks, pace: Mutex::default(), pinned }
    }

    /// Sends until aborted or fenced by a newer epoch.
    pub async fn run(self) {
        let mut pause = RETRY_PAUSE.0;
        loop {
            let begun = Instant::now();
            let ended = self.session().await;
            self.pace().ended();
            self.pinned.release_all().await;
            self.watermarks.with_fan(|fan, _| fan.lost(self.replica));
            self.watermarks.fan_changed();
            let error = match ended {
                Err(Ended::Failed(error)) => error,
                Err(Ended::Left) => {
                    // It tells when it follows again.
                    tokio::time::sleep(RETRY_PAUSE.1).await;
                    continue;
                }
            };
            self.watermarks.with(self.replica, |progress| progress.failed(error.to_string()));
            // Else it refuses what it may take later, or metadata has yet to say here that the ownership is over.
            if error.kind() == client_lib::ErrorKind::Fenced && self.volume.gate.view().epoch > self.epoch {
                tracing::info!(volume = %self.volume.name, replica = %self.replica, epoch = %self.epoch, "sending ends: {error}");
                return;
            }
            tracing::debug!(volume = %self.volume.name, replica = %self.replica, epoch = %self.epoch, %error, "replica out of reach");
            // A session that lasted was a success: the next failure starts with a short pause again.
            pause = if begun.elapsed() > RETRY_PAUSE.1 { RETRY_PAUSE.0 } else { (pause * 2).min(RETRY_PAUSE.1) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the replica from where it says it is, until something fails.
    async fn session(&self) -> Result<std::convert::Infallible, Ended> {
        let volume = self.volume.id;
        // By the process that runs now, or by the next: never by one before it.
        let mut word = Word::given(self.volume.incarnation(self.replica), Instant::now());
        let (mut position, mut arrival) = self.first_word().await?;
        self.count_reached(position.watermark);
        self.watermarks.with_account(self.replica, Account::begin_anew);
        let mut transfer: Option<Transfer> = None;
        let mut deliveries = Deliveries::default();
        let (mut seat, mut fan_news) = (Seat::new(self.pinned.clone()), self.watermarks.fan_news());
        let (mut ahead, mut leading, mut looked) = (Ahead::default(), None::<Leading>, Instant::now());
        let mut rest = Rest::new(self.volume.shard.news(volume).await.map_err(store_failure)?);
        // What a replica at this watermark lacks is too much to be delivered, and does not become less.
        let mut too_much: Option<Lsn> = None;
        let mut ticker = tokio::time::interval(MANIFEST_INTERVAL);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Else a flush that waits would have this look again and again for nothing: the next tick does.
            let may_deliver = transfer.is_none()
                && arrival.is_none()
                && position.awaited_snapshot.is_none()
                && too_much != Some(position.watermark)
                && deliveries.has_room();
            let is_resting = rest.is_resting();
            let (sent, not_before) = (deliveries.sent, deliveries.not_before(self.spacing()));
            tokio::select! {
                biased;
                finished = finished(&mut transfer) => {
                    let delta = transfer.take().expect("a transfer finished").delta.clone();
                    self.watermarks.with_fan(|fan, _| fan.ended(self.replica));
                    self.watermarks.fan_changed();
                    self.pinned.release(&delta).await?;
                    position = finished?;
                    if position.watermark < delta.to && delta.part.is_none() {
                        // Another one goes there instead.
                        self.watermarks.with_account(self.replica, Account::begin_anew);
                        self.pace().ended();
                    } else {
                        self.pace().arrived();
                    }
                    // It is the answer to `Apply`.
                    self.volume.flushes.held(self.epoch, self.replica, position.watermark);
                }
                Some(reached) = deliveries.next() => {
                    let reached = reached?;
                    // An earlier one may be answered later.
                    if (reached.watermark, reached.known) >= (position.watermark, position.known) {
                        position = reached;
                    }
                }
                // What is delivered while a transfer is under way could not be applied before that.
                () = self.awaited(sent, not_before), if may_deliver => {}
                () = seat.sealed() => {}
                // Another replica's delta may be sealed, or is over: so may this one's.
                _ = fan_news.changed(), if transfer.is_none() && !seat.is_taken() => {}
                _ = rest.over(), if is_resting => ticker.reset(),
                _ = ticker.tick(), if !is_resting => {}
            }
            // What it would be sealed from may change now.
            if let Some((lead, sealed)) = seat.leave(self.replica, &self.watermarks).await {
                let (manifest, delta) = sealed.map_err(store_failure)?;
                (position, transfer) = self.begin(position, manifest, delta, Some(lead), &mut ahead).await?;
                leading = None;
            }
            if let Some(arrival) = arrival.as_mut().filter(|_| position.watermark == Lsn::ZERO) {
                if transfer.is_none() {
                    (position, transfer) = match arrival {
                        Arrival::Rejoin(comeback) => self.bring_back(position, comeback, &mut ahead).await?,
                        Arrival::Initial(initial) => self.next_part(position, initial).await?,
                    };
                }
                self.watermarks.with(self.replica, |progress| progress.heard(position));
                rest.looked(false);
                continue;
            }
            if arrival.take().is_some() {
                self.watermarks.with(self.replica, |progress| progress.comes_back(None));
                tracing::info!(volume = %self.volume.name, replica = %self.replica, watermark = %position.watermark, "the replica follows");
            }
            if transfer.is_none() && deliveries.is_empty() {
                position = self.look_again(position, &mut word).await?;
            }
            let report = self.volume.shard.report(volume).await.map_err(store_failure)?;
            let flushes = &self.volume.flushes;
            let counts = flushes.counts(self.replica);
            let is_awaited = flushes.urges(self.epoch, self.replica, deliveries.sent);
            // After a change of owner: what it holds it has told another.
            let is_unsure = flushes.is_unsure(self.epoch, self.replica, position.watermark);
            let is_wanted = match deliveries.is_empty() {
                true => is_awaited || is_unsure || (counts && position.watermark < report.head),
                false => is_awaited && not_before.is_none_or(|moment| moment <= Instant::now()),
            };
            if transfer.is_none() && position.awaited_snapshot.is_none() && deliveries.has_room() && is_wanted {
                match self.deliver(position, deliveries.blocks_max(), deliveries.sent).await? {
                    Some((to, delivery)) => deliveries.push(to, Box::pin(delivery)),
                    None => {
                        too_much = deliveries.is_empty().then_some(position.watermark);
                        deliveries.is_blocked = true;
                    }
                }
            }
            if !deliveries.is_empty() {
                self.note(position).await?;
                rest.looked(false);
                continue;
            }
            deliveries.is_blocked = false;
            if let (None, Some(snapshot)) = (&transfer, position.awaited_snapshot) {
                let pinned = self.pin(snapshot, position.watermark, Blocks::default()).await?;
                transfer = pinned.map(|delta| self.start(delta, None));
                if transfer.is_none() {
                    position = self.without_snapshot(position).await?;
                }
            }
            // A snapshot is applied by itself: what is beyond it is sealed when it is there.
            let lacks = transfer.is_none() && position.awaited_snapshot.is_none() && position.watermark < report.head;
            let turn = if lacks && self.is_due() { self.turn(report.head) } else { Turn::Wait };
            let is_news = position.known < report.head || position.newest_snapshot < report.newest_snapshot;
            match turn {
                Turn::Now(lead) => {
                    let (manifest, delta) = self.seal(position, lead).await?;
                    (position, transfer) = self.begin(position, manifest, delta, lead, &mut ahead).await?;
                    if transfer.is_some() {
                        // Everything goes with it.
                        leading = None;
                    }
                }
                // What it waits for brings the news, too.
                Turn::Soon | Turn::With(_, true) => {}
                Turn::Wait | Turn::With(..) if is_news => {
                    let shard = &self.volume.shard;
                    let made = shard.seal_manifest(volume, position.known, position.newest_snapshot, None);
                    let (manifest, _) = made.await.map_err(store_failure)?;
                    let reached = self.tell(manifest, false, &mut ahead).await?;
                    position = ReplicaPosition { watermark: position.watermark, ..reached };
                }
                Turn::Wait | Turn::With(..) => {}
            }
            if let Turn::With(lead, _) = turn {
                let (seal, answer) = Seal::new(position.known, position.newest_snapshot, position.watermark);
                seat.sit(lead, answer);
                self.watermarks.with_fan(|fan, _| fan.sit(self.replica, lead, seal));
                self.watermarks.fan_changed();
            }
            let is_leading = leading.as_ref().is_some_and(|leading| !leading.0.is_finished());
            if transfer.is_none() && !is_leading && looked.elapsed() >= AHEAD_INTERVAL {
                looked = Instant::now();
                ahead.applied(position.watermark);
                // Who follows has it from the lead.
                leading = if self.way().source().is_none() { self.lead(&mut ahead) } else { None };
            }
            self.note(position).await?;
            let has_all = position.watermark >= report.head && position.awaited_snapshot.is_none() && !is_news;
            rest.looked(has_all && transfer.is_none() && !seat.is_taken() && !is_unsure);
        }
    }

    /// Sends some of what the replica has been told of, if it is lazy.
    fn lead(&self, ahead: &mut Ahead) -> Option<Leading> {
        let sending = &self.volume.sending;
        let Mode::Lazy { interval_ms } = sending.mode(self.replica) else { return None };
        let (order, interval) = (sending.order(), Duration::from_millis(interval_ms));
        let blocks = sending.with_heat(|heat, now| ahead.take(order, heat, interval, AHEAD_BLOCKS_MAX, now));
        (!blocks.is_empty()).then(|| Leading(tokio::spawn(self.way().lead(blocks))))
    }

    fn way(&self) -> Way {
        Way {
            volume: self.volume.clone(),
            replica: self.replica,
            epoch: self.epoch,
            watermarks: self.watermarks.clone(),
            is_rebuild: self.watermarks.with(self.replica, |progress| progress.rejoining.is_some()),
        }
    }

    /// Where the replica is, if it follows; and how it comes to a prefix of the volume, if it has none.
    async fn first_word(&self) -> Result<(ReplicaPosition, Option<Arrival>), Ended> {
        let request = PeerRequest::ReplicaStatus { volume: self.volume.id, epoch: self.epoch };
        let answer = self.volume.peers.ask(self.replica, Class::Control, request, Bytes::new()).await;
        let (position, arrival) = match answer.map_err(Error::from)?.head {
            PeerReply::Position(position) => (position, self.initial(position).await?.map(Arrival::Initial)),
            PeerReply::Rejoining { position, base, unknown } => {
                (position, Some(Arrival::Rejoin(self.comeback(base, unknown).await?)))
            }
            PeerReply::InitialSync { position, base, next } => {
                (position, Some(Arrival::Initial(Initial::from(base, next))))
            }
            PeerReply::Left(tail) => {
                self.watermarks.with(self.replica, |progress| progress.has_left(tail));
                self.volume.flushes.left(self.epoch, self.replica);
                return Err(Ended::Left);
            }
            head => return Err(self.volume.peers.unexpected(self.replica, &head).into()),
        };
        self.watermarks.with(self.replica, |progress| progress.comes_back(arrival.as_ref().map(Arrival::as_told)));
        Ok((position, arrival))
    }

    /// Seals the next delta of this replica, and those that wait for it. It may end at a snapshot, and then there is none.
    async fn seal(&self, position: ReplicaPosition, lead: Option<NodeId>) -> Result<Sealed, Error> {
        let (own, answer) = Seal::new(position.known, position.newest_snapshot, position.watermark);
        let mut seals = vec![own];
        if lead.is_none() {
            seals.extend(self.watermarks.with_fan(|fan, _| fan.take_seats(self.replica)));
        }
        self.volume.shard.seal_together(self.volume.id, seals).await.map_err(store_failure)?;
        answer.await.unwrap_or(Err(StoreError::Stopped)).map_err(store_failure)
    }

    /// Tells of what was sealed, and begins to send it.
    async fn begin(
        &self,
        position: ReplicaPosition,
        manifest: Manifest,
        delta: Option<SealedDelta>,
        lead: Option<NodeId>,
        ahead: &mut Ahead,
    ) -> Result<(ReplicaPosition, Option<Transfer>), Error> {
        if let Some(delta) = &delta {
            self.pinned.note(delta);
            self.watermarks.with_fan(|fan, _| fan.began(self.replica));
        }
        let reached = self.tell(manifest, delta.is_some(), ahead).await?;
        let position = ReplicaPosition { watermark: position.watermark, ..reached };
        Ok((position, delta.map(|delta| self.start(delta, lead))))
    }

    /// Sends a manifest, with which a delta was sealed if `seal`.
    async fn tell(&self, manifest: Manifest, seal: bool, ahead: &mut Ahead) -> Result<ReplicaPosition, Error> {
        let volume = self.volume.id;
        // At a snapshot everything known is sealed, too.
        match seal || manifest.mark.is_some() {
            true => ahead.begin_anew(),
            false if self.volume.sending.mode(self.replica) == Mode::Eager => {}
            false => ahead.told(&manifest, self.volume.sending.now()),
        }
        let (epoch, prune) = (self.epoch, self.watermarks.lowest());
        let told = Told { volume, epoch, manifest, seal, durable: false, prune };
        told.tell(&self.volume.peers, self.replica).await
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next delta may begin, by the policy.
    fn is_due(&self) -> bool {
        let sending = &self.volume.sending;
        let is_waited_for =
            sending.is_hurried(self.replica) || self.volume.flushes.urges(self.epoch, self.replica, Lsn::ZERO);
        self.pace().is_due(sending.mode(self.replica), is_waited_for, Instant::now())
    }

    /// How long after a delivery another may be sent while that one is on its way.
    fn spacing(&self) -> Duration {
        let rtt = self.volume.peers.transport().rtt(self.replica).unwrap_or_default();
        rtt / DELIVERIES_MAX as u32
    }

    /// Waits until a flush waits for more than what the replica has and what is on its way brings, up to `sent`.
    async fn awaited(&self, sent: Lsn, not_before: Option<Instant>) {
        self.volume.flushes.urged(self.epoch, self.replica, sent).await;
        if let Some(not_before) = not_before {
            tokio::time::sleep_until(not_before).await;
        }
    }

    /// Takes everything that the replica lacks, to be delivered and applied: up to where that is, and the delivery. `None` when it is more
    /// than `blocks_max`, or ends at a snapshot. What was written up to `sent` is on its way already.
    async fn deliver(
        &self,
        position: ReplicaPosition,
        blocks_max: u64,
        sent: Lsn,
    ) -> Result<Option<(Lsn, impl Future<Output = Result<ReplicaPosition, Error>>)>, Error> {
        let (volume, from) = (self.volume.id, position.watermark);
        let shard = &self.volume.shard;
        // About: a look at the history only.
        if shard.changed_blocks(volume, from).await.map_err(store_failure)? > blocks_max {
            return Ok(None);
        }
        let sealed = shard.seal_manifest(volume, from, position.newest_snapshot, Some(from)).await;
        let (manifest, Some(delta)) = sealed.map_err(store_failure)? else { return Ok(None) };
        self.pinned.note(&delta);
        let is_data = |run: &&ManifestRun| matches!(run.content, RunContent::Data(_));
        let data = manifest.runs.iter().filter(is_data);
        let runs: Vec<BlockRun> = data.map(|run| BlockRun { start: run.start, count: run.blocks() }).collect();
        let blocks = match delta.blocks > blocks_max {
            true => Ok(None),
            false => read_sealed(&self.volume, &delta, &runs).await.map(Some),
        };
        self.pinned.release(&delta).await?;
        let Some(blocks) = blocks? else { return Ok(None) };
        let covered = covered_after(sent, &manifest, &delta);
        self.watermarks.with_account(self.replica, |account| account.sealed(manifest.to, covered));
        Ok(Some((manifest.to, self.send_delivery(manifest, blocks))))
    }

    async fn send_delivery(&self, manifest: Manifest, blocks: Vec<VersionedBlock>) -> Result<ReplicaPosition, Error> {
        let PackedBlocks { heads: blocks, payload, is_zstd, freight } = self.volume.peers.pack(self.replica, &blocks);
        let (volume, epoch, prune) = (self.volume.id, self.epoch, self.watermarks.lowest());
        let request = match is_zstd {
            true => PeerRequest::DeliverZstd { volume, epoch, manifest, blocks, prune },
            false => PeerRequest::Deliver { volume, epoch, manifest, blocks, prune },
        };
        count_sent(&self.volume, &self.watermarks, self.replica, freight);
        match self.volume.peers.ask(self.replica, Class::Pull, request, payload).await? {
            Message { head: PeerReply::Delivered { position, held }, .. } => {
                self.volume.flushes.held(self.epoch, self.replica, held);
                Ok(position)
            }
            message => Err(self.volume.peers.unexpected(self.replica, &message.head)),
        }
    }

    /// The delta up to a snapshot that the replica waits for, and the blocks of `also`; `None` when the snapshot is deleted, which the
    /// replica has yet to hear, or to tell ([`without_snapshot`](Self::without_snapshot)).
    async fn pin(&self, snapshot: SnapshotId, from: Lsn, also: Blocks) -> Result<Option<SealedDelta>, Error> {
        match self.volume.shard.pin_snapshot(self.volume.id, snapshot, from, also).await {
            Ok(delta) => {
                self.pinned.note(&delta);
                Ok(Some(delta))
            }
            Err(StoreError::UnknownSnapshot { .. }) => Ok(None),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// Whether the next delta may be sealed, where some replicas have what others are sent.
    fn turn(&self, head: Lsn) -> Turn {
        let lead = self.way().source();
        let rtt = self.volume.peers.transport().rtt(self.replica).unwrap_or_default();
        let is_hurried = self.volume.sending.is_hurried(self.replica);
        let (is_new, turn) = self.watermarks.with_fan(|fan, now| {
            let (is_new, waited) = fan.due(self.replica, now);
            let turn = match lead {
                Some(lead) if fan.may_follow(lead, head, waited) => Turn::Now(Some(lead)),
                Some(lead) => Turn::With(lead, fan.is_due(lead)),
                None if is_hurried || fan.may_lead(self.replica, head, waited, now, rtt) => Turn::Now(None),
                None => Turn::Soon,
            };
            (is_new, turn)
        });
        if is_new && matches!(turn, Turn::Soon) {
            // Who follows is to sit.
            self.watermarks.fan_changed();
        }
        turn
    }

    fn start(&self, delta: SealedDelta, lead: Option<NodeId>) -> Transfer {
        self.pace().begin(Instant::now());
        self.watermarks.with_account(self.replica, |account| account.sealed(delta.to, delta.covered));
        let push = Push { way: self.way(), delta: delta.clone(), lead };
        Transfer { delta, task: tokio::spawn(push.run()) }
    }

    /// Records where the replica is, and lets go of history that nobody needs any more.
    async fn note(&self, position: ReplicaPosition) -> Result<(), Error> {
        self.watermarks.with(self.replica, |progress| progress.heard(position));
        // Who counts toward the class is sent what a flush waits for.
        let takes_part =
            self.volume.peers.encodings(self.replica) & ENCODING_HELD != 0 && !self.volume.flushes.counts(self.replica);
        let terms = takes_part.then(|| Terms {
            mode: self.volume.sending.mode(self.replica),
            limit: self.volume.peers.links().limit(self.replica),
        });
        self.watermarks.with_fan(|fan, _| fan.seen(self.replica, position.watermark, terms));
        self.count_reached(position.watermark);
        self.volume.shard.prune(self.volume.id, self.watermarks.lowest()).await.map_err(store_failure)
    }

    /// Accounts for the deltas that the replica has reached.
    fn count_reached(&self, watermark: Lsn) {
        let added = self.watermarks.with_account(self.replica, |account| account.reached(watermark));
        self.volume.peers.links().carried(self.replica, added);
    }
}

/// What a delta covers, without what was written up to `sent`.
fn covered_after(sent: Lsn, manifest: &Manifest, delta: &SealedDelta) -> Covered {
    let since = delta.covered.tally.map_or(sent, |tally| tally.since.max(sent));
    let fresh = || manifest.runs.iter().filter(|run| run.lsn > since);
    let zeroes = fresh().filter(|run| matches!(run.content, RunContent::Zero(_)));
    let blocks = |run: &ManifestRun| u64::from(run.blocks());
    Covered { tally: delta.covered.tally, blocks: fresh().map(blocks).sum(), zeroes: zeroes.map(blocks).sum() }
}

/// Waits for the transfer under way; for ever when there is none.
async fn finished(transfer: &mut Option<Transfer>) -> Result<ReplicaPosition, Error> {
    match transfer {
        Some(transfer) => (&mut transfer.task).await.unwrap_or_else(|error| {
            Err(Error::new(client_lib::ErrorKind::Internal, "a push ended early").caused_by(error))
        }),
        None => std::future::pending().await,
    }
}
