//! The cluster and its time: machines moved on in turn, a window at a time.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use client_lib::random::{self, Sequence};
use client_lib::wire::admin::{ChangePolicy, CreateGroup, CreateVolume, VolumeStatus};
use client_lib::{BLOCK_SIZE, Error, NodeId, VolumeId};
use consensus::Volume;

use super::backlog;
use super::guest::{BLOCKS, Guests, Vm};
use super::history::{Death, History};
use super::machine::{Machine, Running};
use super::network::{DELAY_MIN, Network};
use super::rules::{Rule, break_rule};
use crate::node::BootstrapMember;
use crate::serve::admin::Admin;

/// How long a new cluster may take until all its nodes serve.
const FOUNDING_PATIENCE: Duration = Duration::from_secs(60);

/// The names of the machines, and of the providers.
pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Counts the panics of this thread from now on: those of tasks, which nobody else hears of, too.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    PANICS.set(0);
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) now: Duration,
    /// What the story draws from; what the nodes draw does not change it.
    pub(super) draw: Sequence,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    pub(super) network: Network,
    pub(super) history: History,
    pub(super) guests: Guests,
    /// The machines that never come back.
    pub(super) lost: BTreeSet<NodeId>,
    founders: Vec<BootstrapMember>,
    /// Whether there are providers with two machines.
    paired: bool,
    broken: Option<Rule>,
    capacity: Capacity,
}

/// What the store of a machine may take.
pub(super) type Capacity = fn(NodeId) -> Option<u64>;

/// The machine of number `id`: at a provider of its own, or, if some are `paired`, every even one at that of the next.
fn member(id: u64, paired: bool) -> BootstrapMember {
    let provider = if paired && id.is_multiple_of(2) && (id as usize) < NAMES.len() { id + 1 } else { id };
    BootstrapMember {
        id: NodeId(id),
        name: NAMES[id as usize - 1].parse().expect("a name"),
        provider: NAMES[provider as usize - 1].parse().expect("a name"),
        address: format!("192.0.2.{id}:1").parse().expect("an address"),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.machines.clear();
        random::seed_thread(None);
        break_rule(None);
        backlog::begin(Duration::ZERO);
    }
}

impl World {
    /// A new cluster of `count` machines, all of which serve.
    pub(super) fn found(seed: u64, count: u64, broken: Option<Rule>) -> World {
        // What breaks a rule is known by its seed.
        World::found_at(seed, count, seed.is_multiple_of(2) && broken.is_none(), broken)
    }

    /// The same, where some machines are `paired` at a provider, or none.
    pub(super) fn found_at(seed: u64, count: u64, paired: bool, broken: Option<Rule>) -> World {
        World::found_with(seed, count, paired, broken, |_| None)
    }

    /// The same, where stores may take no more than `capacity`.
    pub(super) fn found_with(seed: u64, count: u64, paired: bool, broken: Option<Rule>, capacity: Capacity) -> World {
        count_panics();
        break_rule(broken);
        let mut draw = Sequence::new(seed);
        random::seed_thread(Some(draw.bits()));
        let (network, history, guests) = (Network::new(draw.bits()), History::begin(), Guests::default());
        let founders: Vec<BootstrapMember> = (1..=count).map(|id| member(id, paired)).collect();
        let machine = |founder: &BootstrapMember| {
            Machine::new(founder, &founders, &network, &history, &guests, (broken, capacity(founder.id)))
        };
        let machines = founders.iter().map(|founder| (founder.id, machine(founder))).collect();
        let mut world = World {
            seed,
            now: Duration::ZERO,
            draw,
            machines,
            network,
            history,
            guests,
            lost: BTreeSet::new(),
            founders: Vec::new(),
            paired,
            broken,
            capacity,
        };
        world.founders = founders;
        for from in 1..=count {
            for to in (1..=count).filter(|to| *to != from) {
                let is_near = paired && from.min(to).is_multiple_of(2) && from.abs_diff(to) == 1;
                let drawn = Duration::from_millis(world.draw.below(40));
                let delay = if is_near { DELAY_MIN } else { DELAY_MIN + drawn };
                let jitter = Duration::from_micros(world.draw.below(8_000));
                world.network.change(NodeId(from), NodeId(to), |link| {
                    link.delay = delay;
                    link.jitter = jitter;
                });
            }
        }
        for id in world.ids() {
            world.boot(id);
        }
        let is_founded = world.run_until(FOUNDING_PATIENCE, |world| world.machines.values().all(Machine::is_serving));
        assert!(is_founded, "{}: the cluster is not founded: {:?}", world.replay(), world.failures());
        world
    }

    /// How this seed is run again.
    pub(super) fn replay(&self) -> String {
        format!("seed {0} (HELIO_SEED={0} cargo nextest run -p storage-node simulation)", self.seed)
    }

    /// How often anything has panicked in this simulation.
    pub(super) fn panics(&self) -> u32 {
        PANICS.get()
    }

    /// Why nodes did not start.
    pub(super) fn failures(&self) -> Vec<(NodeId, &str)> {
        self.machines.values().filter_map(|machine| Some((machine.id, machine.failure()?))).collect()
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.machines.keys().copied().collect()
    }

    /// Those whose nodes serve.
    pub(super) fn serving(&self) -> Vec<NodeId> {
        self.machines.values().filter(|machine| machine.is_serving()).map(|machine| machine.id).collect()
    }

    pub(super) fn is_founder(&self, id: NodeId) -> bool {
        self.founders.iter().any(|founder| founder.id == id)
    }

    /// The newest metadata of `volume` that anybody has.
    pub(super) fn newest(&self, volume: VolumeId) -> Option<Volume> {
        let states = self.machines.values().filter_map(|machine| Some(machine.running()?.parts.meta.state()));
        states.filter_map(|state| state.volume(volume).cloned()).max_by_key(|volume| volume.epoch)
    }

    /// The owner of the volume called `name`, as far as anybody knows.
    pub(super) fn owner(&self, name: &str) -> Option<NodeId> {
        Some(self.newest(self.guests.vms().get(name)?.volume)?.owner)
    }

    /// The owner of `volume` and those that follow, as far as anybody knows, without those that are lost.
    pub(super) fn holders(&self, volume: VolumeId) -> Vec<NodeId> {
        let newest = self.newest(volume);
        let all = newest.map_or(Vec::new(), |volume| volume.replicas.iter().copied().chain([volume.owner]).collect());
        all.into_iter().filter(|id| !self.lost.contains(id)).collect()
    }

    /// Whether two machines are at one provider.
    pub(super) fn are_neighbours(&self, one: NodeId, other: NodeId) -> bool {
        member(one.0, self.paired).provider == member(other.0, self.paired).provider
    }

    pub(super) fn machine(&mut self, id: NodeId) -> &mut Machine {
        self.machines.get_mut(&id).expect("there is one")
    }

    pub(super) fn boot(&mut self, id: NodeId) {
        let now = self.now;
        self.machine(id).boot(now);
    }

    /// Another machine joins the cluster, if there may be one more; which.
    pub(super) fn join(&mut self) -> Option<NodeId> {
        let id = self.machines.len() as u64 + 1;
        if id as usize > NAMES.len() {
            return None;
        }
        let machine = Machine::new(
            &member(id, self.paired),
            &self.founders,
            &self.network,
            &self.history,
            &self.guests,
            (self.broken, (self.capacity)(NodeId(id))),
        );
        self.machines.insert(NodeId(id), machine);
        self.boot(NodeId(id));
        Some(NodeId(id))
    }

    /// The process of `id` dies.
    pub(super) fn kill(&mut self, id: NodeId, power: bool) {
        let now = self.now;
        self.history.died(id, if power { Death::PowerCut(now) } else { Death::Killed(now) });
        let machine = self.machine(id);
        if power { machine.crash() } else { machine.kill() }
    }

    /// The machine of `id` is lost, with all that it holds.
    pub(super) fn lose(&mut self, id: NodeId) {
        if self.machine(id).is_up() {
            self.kill(id, true);
        }
        self.lost.insert(id);
    }

    /// Moves everything on by a window.
    pub(super) fn step(&mut self) {
        let end = self.now + DELAY_MIN;
        for machine in self.machines.values_mut() {
            machine.advance(end);
        }
        self.now = end;
    }

    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    /// Moves on until `is_met`, at most for `patience`; whether it is.
    pub(super) fn run_until(&mut self, patience: Duration, mut is_met: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + patience;
        while !is_met(self) {
            if self.now >= end {
                return false;
            }
            self.step();
        }
        true
    }

    /// Has the node of `id` do something; its result is there once it is done.
    pub(super) fn ask<T, F>(&self, id: NodeId, task: impl FnOnce(&Running) -> F) -> Arc<OnceLock<T>>
    where
        T: Send + Sync + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let slot = Arc::new(OnceLock::new());
        let into = slot.clone();
        if let Some(machine) = self.machines.get(&id) {
            machine.spawn(|running, _| {
                let work = task(running);
                async move {
                    let _ = into.set(work.await);
                }
            });
        }
        slot
    }

    /// As [`ask`](Self::ask), and waits for it at most for `patience`.
    pub(super) fn answer<T, F>(&mut self, id: NodeId, patience: Duration, task: impl FnOnce(&Running) -> F) -> Option<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let slot = self.ask(id, task);
        self.run_until(patience, |_| slot.get().is_some());
        slot.get().cloned()
    }

    /// A new volume of `owner`, followed by all others, and a virtual machine there that uses it.
    pub(super) fn create(&mut self, name: &'static str, owner: NodeId) -> VolumeId {
        let id = self.create_unused(name, owner, BLOCKS);
        self.guests.add(name, Vm { volume: id, at: Some(owner), forgotten: None });
        id
    }

    /// A new volume of `owner` with so many blocks, followed by all others.
    pub(super) fn create_unused(&mut self, name: &'static str, owner: NodeId, blocks: u32) -> VolumeId {
        let created = self.answer(owner, FOUNDING_PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            let request = CreateVolume {
                name: name.into(),
                size_bytes: u64::from(blocks) * u64::from(BLOCK_SIZE),
                ..CreateVolume::default()
            };
            async move { admin.create_volume(request).await.map(|status| status.id).map_err(text) }
        });
        VolumeId(created.expect("it answers").expect("is created"))
    }

    /// Gives volume `name` another policy, asked of `asked`.
    pub(super) fn set_policy(&mut self, name: &'static str, asked: NodeId, wanted: ChangePolicy) {
        let set = self.answer(asked, FOUNDING_PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.set_policy(name, wanted).await.map(drop).map_err(text) }
        });
        set.expect("it answers").expect("is set");
    }

    /// All volumes go together from now on.
    pub(super) fn group(&mut self, name: &'static str, asked: NodeId) {
        let volumes: Vec<String> = self.guests.vms().into_keys().collect();
        let made = self.answer(asked, FOUNDING_PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            let request = CreateGroup { name: name.to_owned(), volumes };
            async move { admin.create_group(request).await.map(drop).map_err(text) }
        });
        made.expect("it answers").expect("is made");
    }

    /// What the owner says of volume `name`, asked of `asked`.
    pub(super) fn status(&mut self, name: &'static str, asked: NodeId) -> VolumeStatus {
        let status = self.answer(asked, FOUNDING_PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.volume(name).await.map_err(text) }
        });
        status.expect("it answers").expect("tells")
    }

    /// The replicas of volume `name` are sent data now and then only, and some ahead.
    pub(super) fn make_lazy(&mut self, name: &'static str, asked: NodeId) {
        let (propagation, interval_ms) = (Some("lazy".to_owned()), Some(6_000));
        self.set_policy(name, asked, ChangePolicy { propagation, interval_ms, ..ChangePolicy::default() });
    }
}

/// An error, as it is shown.
pub(super) fn text(error: Error) -> String {
    format!("{:?}: {error}", error.kind())
}
