//! One machine: its disks, which outlive every process, its clock, and the process that runs on it, if one does.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use client_lib::clock::Clock;
use client_lib::transport::Service;
use client_lib::wire::join::Contact;
use client_lib::{NodeId, random};
use consensus::{MetaDisk, MetaPlace};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::guest::{Guests, run_guests};
use super::history::History;
use super::network::{Body, Message, Network, SimTransport};
use super::rules::Rule;
use crate::io::sim::SimDisk;
use crate::log::LogSettings;
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::store::{Change, MapStore};
use crate::node::compose::{Parts, Place, Seams};
use crate::node::service::NodeService;
use crate::node::{BootstrapMember, ThisNode};
use crate::ownership::lease::LeaseCell;
use crate::shard::handle::ShardHandle;
use crate::shard::{Shard, ShardOptions};
use crate::shards::Shards;

/// How slow the clocks of the first two machines are where drift has no bound, in thousandths.
const UNBOUNDED_DRIFT: i64 = -400;

/// A lease's clock that is far ahead: for it every lease is long out.
#[derive(Debug)]
struct Hasty(LocalTime);

impl Clock for Hasty {
    fn now(&self) -> Duration {
        self.0.local() * 50
    }

    fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }
}

/// How a machine's clock stands to the simulation's: both at the beginning of the window, and how much faster it is.
#[derive(Clone, Copy, Debug)]
struct Window {
    world: Duration,
    local: Duration,
    per_mille: i64,
}

/// The clock of a process, and what the simulation's clock shows at the same time.
#[derive(Clone, Debug)]
pub(super) struct LocalTime {
    start: Instant,
    window: Arc<Mutex<Window>>,
}

fn scaled(duration: Duration, by_per_mille: i64) -> Duration {
    Duration::from_nanos((duration.as_nanos() as i128 * i128::from(1000 + by_per_mille) / 1000) as u64)
}

impl LocalTime {
    fn window(&self) -> Window {
        *self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self) -> Duration {
        Instant::now().duration_since(self.start)
    }

    /// The simulation's time.
    pub(super) fn now(&self) -> Duration {
        let window = self.window();
        let since = self.local().saturating_sub(window.local);
        window.world + Duration::from_nanos((since.as_nanos() * 1000 / (1000 + window.per_mille) as u128) as u64)
    }

    /// When the process's clock shows what the simulation's shows at `world`.
    fn at(&self, world: Duration) -> Instant {
        let window = self.window();
        self.start + window.local + scaled(world.saturating_sub(window.world), window.per_mille)
    }
}

impl Clock for LocalTime {
    fn now(&self) -> Duration {
        self.local()
    }

    fn unix_ms(&self) -> u64 {
        self.local().as_millis() as u64
    }
}

/// A node that serves.
pub(super) struct Running {
    pub(super) parts: Parts,
    pub(super) shard: ShardHandle,
}

/// What runs on a machine.
struct Process {
    runtime: Runtime,
    time: LocalTime,
    transport: Arc<SimTransport>,
    service: Arc<NodeService>,
    running: Arc<OnceLock<Result<Running, String>>>,
}

/// A machine.
pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    map: MapStore,
    meta: MetaDisk,
    network: Network,
    history: History,
    guests: Guests,
    member: BootstrapMember,
    founders: Vec<BootstrapMember>,
    broken: Option<Rule>,
    /// Whether the process that begins next gives away what it cannot write.
    pub(super) rescues: bool,
    /// What its store may take.
    capacity_bytes: Option<u64>,
    process: Option<Process>,
    lives: u64,
    /// By how many thousandths its clock is fast.
    pub(super) drift_per_mille: i64,
    /// Its process does nothing until then.
    pub(super) paused_until: Duration,
    /// How far its process has come.
    stands_at: Duration,
}

/// The directory by which the store of `id` is known; there is no such directory.
pub(super) fn directory(id: NodeId) -> PathBuf {
    PathBuf::from(format!("/simulated/{}", id.0))
}

impl Machine {
    pub(super) fn new(
        member: &BootstrapMember,
        founders: &[BootstrapMember],
        network: &Network,
        history: &History,
        guests: &Guests,
        (broken, capacity_bytes): (Option<Rule>, Option<u64>),
    ) -> Machine {
        let map = MapStore::in_memory();
        map.commit(&[Change::Log(random::bits())]).expect("memory takes it");
        let (disk, meta) = (SimDisk::new(random::bits()), MetaDisk::default());
        disk.lie_about_syncs(broken == Some(Rule::DiskSyncs));
        meta.lie_about_syncs(broken == Some(Rule::MetadataSyncs));
        Machine {
            id: member.id,
            disk,
            map,
            meta,
            network: network.clone(),
            history: history.clone(),
            guests: guests.clone(),
            member: member.clone(),
            founders: founders.to_vec(),
            broken,
            rescues: true,
            capacity_bytes,
            process: None,
            lives: 0,
            drift_per_mille: match broken {
                Some(Rule::DriftIsBounded) if member.id.0 <= 2 => UNBOUNDED_DRIFT,
                _ => 0,
            },
            paused_until: Duration::ZERO,
            stands_at: Duration::ZERO,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether its node serves.
    pub(super) fn is_serving(&self) -> bool {
        self.running().is_some()
    }

    pub(super) fn running(&self) -> Option<&Running> {
        self.process.as_ref()?.running.get()?.as_ref().ok()
    }

    /// Why its node did not start, if so.
    pub(super) fn failure(&self) -> Option<&str> {
        self.process.as_ref()?.running.get()?.as_ref().err().map(String::as_str)
    }

    /// Starts a process at `now`.
    pub(super) fn boot(&mut self, now: Duration) {
        assert!(self.process.is_none(), "one process at a time");
        self.lives += 1;
        self.network.set_life(self.id, self.lives);
        self.stands_at = now;
        // No I/O driver: there is nothing to wait for but time.
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let window = Window { world: now, local: Duration::ZERO, per_mille: self.drift_per_mille };
        let start = runtime.block_on(async { Instant::now() });
        let time = LocalTime { start, window: Arc::new(Mutex::new(window)) };
        self.history.booted(self.id, &time);
        let transport = Arc::new(SimTransport::new(self.id, self.lives, self.network.clone(), time.clone()));
        let service = Arc::new(NodeService::default());
        let running = Arc::new(OnceLock::new());
        let BootstrapMember { id, name, provider, address } = self.member.clone();
        let this = ThisNode { id, name, provider, advertise: address };
        let is_founder = self.founders.iter().any(|founder| founder.id == id);
        let contact =
            |member: &BootstrapMember| Contact { node: member.id, name: member.name.clone(), address: member.address };
        let contacts = if is_founder { Vec::new() } else { self.founders.iter().map(contact).collect() };
        let place = Place {
            this,
            peer_overrides: Default::default(),
            bootstrap: is_founder.then(|| self.founders.clone()),
            contacts,
            authority: None,
            keys: None,
            export: None,
            wan_bytes: None,
            rescues: self.rescues,
        };
        let start = Start {
            place,
            disk: self.disk.clone(),
            map: self.map.clone(),
            meta: self.meta.clone(),
            transport: transport.clone(),
            service: service.clone(),
            time: time.clone(),
            broken: self.broken,
            capacity_bytes: self.capacity_bytes,
        };
        let (slot, guests, history, times) = (running.clone(), self.guests.clone(), self.history.clone(), time.clone());
        runtime.spawn(async move {
            let started = start.run().await.map_err(|error| format!("{error:#}"));
            if let Ok(running) = &started {
                tokio::spawn(history.clone().follow(running.parts.meta.subscribe(), times.clone()));
                run_guests(id, guests, history, running.parts.exports.clone(), &times);
            }
            assert!(slot.set(started).is_ok(), "a process starts once");
        });
        self.process = Some(Process { runtime, time, transport, service, running });
    }

    /// Moves its process on to `end`, delivering what arrives by then.
    pub(super) fn advance(&mut self, end: Duration) {
        let arrivals = if self.paused_until >= end { Vec::new() } else { self.network.arrivals(self.id, end) };
        let Some(process) = &self.process else {
            for (at, message) in arrivals {
                if let Message { from, to, life, call, body: Body::Request { .. }, .. } = message {
                    self.network.send(at, Message { from: to, to: from, life, heard_by: 0, call, body: Body::Refused });
                }
            }
            return;
        };
        if self.paused_until >= end {
            return;
        }
        let (missed, time) = (self.paused_until.saturating_sub(self.stands_at), process.time.clone());
        let (network, transport, service) = (&self.network, &process.transport, &process.service);
        let stands_at = self.stands_at;
        process.runtime.block_on(async {
            let before = time.window();
            if !missed.is_zero() {
                // Its clock went on while it stood still: the first that it does is to see a later time.
                tokio::time::advance(scaled(missed, before.per_mille)).await;
            }
            // Where the clock stands by its rate, not where tokio's granularity has put it: no time is seen twice.
            let world = stands_at + missed;
            let local = before.local + scaled(world.saturating_sub(before.world), before.per_mille);
            let window = Window { world, local, per_mille: self.drift_per_mille };
            *time.window.lock().unwrap_or_else(PoisonError::into_inner) = window;
            let is_heard = |message: &Message| message.heard_by == 0 || message.heard_by == self.lives;
            for (at, message) in arrivals.into_iter().filter(|(_, message)| is_heard(message)) {
                deliver(network.clone(), transport.clone(), service.clone(), time.clone(), at, message);
            }
            tokio::time::sleep_until(time.at(end)).await;
        });
        self.stands_at = end;
    }

    /// The power is cut: what was not synced is lost, in parts.
    pub(super) fn crash(&mut self) {
        self.disk.crash();
        self.end();
        self.meta.crash();
    }

    /// The process is killed: whatever it had written stays.
    pub(super) fn kill(&mut self) {
        match self.broken {
            Some(Rule::WritesOutliveProcesses) => self.disk.crash(),
            _ => self.disk.kill(),
        }
        self.end();
    }

    fn end(&mut self) {
        self.process = None;
        self.network.set_life(self.id, 0);
    }

    /// Runs `task` in the process, if its node serves.
    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(&Running, LocalTime) -> F,
    ) -> bool {
        let (Some(process), Some(running)) = (&self.process, self.running()) else { return false };
        process.runtime.spawn(task(running, process.time.clone()));
        true
    }
}

/// What a process needs to start.
struct Start {
    place: Place,
    disk: SimDisk,
    map: MapStore,
    meta: MetaDisk,
    transport: Arc<SimTransport>,
    service: Arc<NodeService>,
    time: LocalTime,
    broken: Option<Rule>,
    capacity_bytes: Option<u64>,
}

impl Start {
    async fn run(self) -> anyhow::Result<Running> {
        let lease = Arc::new(LeaseCell::new(Arc::new(self.time.clone())));
        let looked_at = match self.broken {
            Some(Rule::LeaseIsLookedAt) => Arc::new(LeaseCell::forever()),
            _ => lease.clone(),
        };
        let clock: Arc<dyn Clock> = match self.broken {
            Some(Rule::LeaseIsWaitedOut) => Arc::new(Hasty(self.time.clone())),
            _ => Arc::new(self.time),
        };
        let (segment_bytes, capacity_bytes) = (SEGMENT_BYTES_MIN, self.capacity_bytes);
        let log = LogSettings { segment_bytes, spare_segments: 1, capacity_bytes };
        let options = ShardOptions {
            log,
            checkpoint_log_bytes: 1 << 20,
            map_cache_bytes: 1 << 20,
            scrub_period: None,
            lease: looked_at,
            ..ShardOptions::new(directory(self.place.this.id))
        };
        let shard = Shard::start_as_task(options, &self.disk, self.map)?;
        let shards = Arc::new(Shards::of_one(directory(self.place.this.id), shard.clone()).await?);
        let seams = Seams {
            transport: self.transport,
            service: self.service,
            clock,
            lease,
            shards,
            meta: MetaPlace::Simulated(self.meta),
        };
        Ok(Running { parts: Parts::start(seams, self.place).await?, shard })
    }
}

/// Lets `message` arrive at `at`.
fn deliver(
    network: Network,
    transport: Arc<SimTransport>,
    service: Arc<NodeService>,
    time: LocalTime,
    at: Duration,
    message: Message,
) {
    tokio::spawn(async move {
        tokio::time::sleep_until(time.at(at)).await;
        let Message { from, to, life, call, body, .. } = message;
        match body {
            Body::Request { class, bytes } => {
                let reply = service.serve(Some(from), class, bytes).await;
                network.send(
                    time.now(),
                    Message { from: to, to: from, life, heard_by: 0, call, body: Body::Reply(reply) },
                );
            }
            body => transport.answered(Message { from, to, life, heard_by: 0, call, body }),
        }
    });
}
