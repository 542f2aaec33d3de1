//! What happens in a seed: handovers, takeovers, snapshots, and faults, drawn as time goes on.
//!
//! Every fault ends: what broke is repaired after a while drawn with it, everything at the end. At most one machine is dead
//! at a time as a rule, two now and then; more would only make everything stand still.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::{AskTakeover, CreateSnapshot, Migrate, OnWrite, Rejoin};

use super::checks::positions;
use super::machine::Running;
use super::network::Link;
use super::world::{NAMES, World, text};
use crate::serve::admin::Admin;

/// What kinds of things may happen in a story.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hazards {
    /// Machines that lose their power or have their process killed.
    pub(super) deaths: bool,
    /// Links that are cut, one way or both, lose or delay messages.
    pub(super) network: bool,
    /// Processes that stand still, clocks that drift.
    pub(super) clocks: bool,
    /// Owners that are taken over from.
    pub(super) takeovers: bool,
    /// Disks that take no more for a while.
    pub(super) full_disks: bool,
}

impl Hazards {
    pub(super) const NONE: Hazards =
        Hazards { deaths: false, network: false, clocks: false, takeovers: false, full_disks: false };
    pub(super) const ALL: Hazards =
        Hazards { deaths: true, network: true, clocks: true, takeovers: true, full_disks: true };
    /// Owners are lost and nothing else is wrong.
    pub(super) const TAKEOVERS: Hazards = Hazards { takeovers: true, ..Hazards::NONE };
    /// Machines die, and disks are full.
    pub(super) const DEATHS: Hazards = Hazards { deaths: true, full_disks: true, ..Hazards::NONE };
    /// The network fails, and clocks are off.
    pub(super) const NETWORK: Hazards = Hazards { network: true, clocks: true, ..Hazards::NONE };

    /// What a seed is about: where everything fails at once, little gets done.
    pub(super) fn of(seed: u64) -> Hazards {
        match seed % 5 {
            0 => Hazards::ALL,
            1 => Hazards::TAKEOVERS,
            2 => Hazards::DEATHS,
            3 => Hazards::NETWORK,
            _ => Hazards { takeovers: true, ..Hazards::DEATHS },
        }
    }
}

/// A handover or takeover that was asked for.
struct Errand {
    volume: String,
    from: Option<NodeId>,
    to: NodeId,
    /// Whether the virtual machine moves with it.
    moves: bool,
    done: Arc<OnceLock<Result<NodeId, String>>>,
    until: Duration,
}

/// Tells the story.
pub(super) struct Story {
    hazards: Hazards,
    /// When who starts again.
    restarts: BTreeMap<NodeId, Duration>,
    /// When which link is as before.
    repairs: BTreeMap<(NodeId, NodeId), (Duration, Link)>,
    /// When whose disk takes more again.
    emptied: BTreeMap<NodeId, Duration>,
    errands: Vec<Errand>,
    /// The group that all volumes are, if they are one: they move together, and so do the machines.
    group: Option<&'static str>,
    /// The snapshots that were asked for: volume, name.
    snapshots: Vec<(String, String)>,
    /// When the next look at everybody's positions is.
    look: Duration,
    pub(super) handovers: u32,
    pub(super) takeovers: u32,
}

impl Story {
    pub(super) fn new(hazards: Hazards) -> Story {
        Story {
            hazards,
            restarts: BTreeMap::new(),
            repairs: BTreeMap::new(),
            emptied: BTreeMap::new(),
            errands: Vec::new(),
            group: None,
            snapshots: Vec::new(),
            look: Duration::ZERO,
            handovers: 0,
            takeovers: 0,
        }
    }

    /// The same of volumes that are the group `name`.
    pub(super) fn of_group(name: &'static str, hazards: Hazards) -> Story {
        Story { group: Some(name), ..Story::new(hazards) }
    }

    /// Lets the machine of `volume` run at another place or nowhere, and those that go with it.
    fn place(&self, world: &World, volume: &str, at: Option<NodeId>) {
        for (name, _) in world.guests.vms() {
            if name == volume || self.group.is_some() {
                world.guests.place(&name, at);
            }
        }
    }

    /// Lets things happen for `duration`.
    pub(super) fn tell(&mut self, world: &mut World, duration: Duration) {
        let end = world.now + duration;
        while world.now < end {
            let pause = Duration::from_millis(100 + world.draw.below(1800));
            let next = (world.now + pause).min(end);
            while world.now < next {
                world.step();
                self.follow_up(world);
            }
            self.happen(world);
        }
    }

    /// What was begun and is due.
    fn follow_up(&mut self, world: &mut World) {
        let now = world.now;
        let due: Vec<NodeId> = self.restarts.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.restarts.remove(&id);
            world.history.tell(now, format!("{id} starts"));
            world.boot(id);
        }
        let due: Vec<(NodeId, NodeId)> =
            self.repairs.iter().filter(|(_, (at, _))| *at <= now).map(|(link, _)| *link).collect();
        for (from, to) in due {
            if let Some((_, before)) = self.repairs.remove(&(from, to)) {
                world.history.tell(now, format!("{from} to {to} is as before"));
                world.network.change(from, to, |link| *link = before);
            }
        }
        let due: Vec<NodeId> = self.emptied.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.emptied.remove(&id);
            world.machine(id).disk.set_capacity(u64::MAX);
        }
        if self.look <= now {
            self.look = now + Duration::from_millis(700);
            positions::look(world);
        }
        let (over, under_way) = std::mem::take(&mut self.errands)
            .into_iter()
            .partition(|errand: &Errand| errand.done.get().is_some() || errand.until <= now);
        self.errands = under_way;
        for errand in over {
            self.returned(world, &errand);
        }
    }

    fn returned(&mut self, world: &mut World, errand: &Errand) {
        let outcome = errand.done.get();
        world.history.tell(world.now, format!("{} to {}: {outcome:?}", errand.volume, errand.to));
        match outcome {
            Some(Ok(owner)) => {
                if errand.from.is_some() {
                    self.handovers += 1
                } else {
                    self.takeovers += 1
                }
                match errand.from {
                    None => world.guests.start_another(&errand.volume, *owner),
                    Some(_) if errand.moves => self.place(world, &errand.volume, Some(*owner)),
                    Some(_) => {}
                }
            }
            // Nobody knows whether it moved: whoever runs the machine takes it back to where it was, or goes on there.
            _ if errand.moves => {
                let back = errand.from.filter(|_| world.draw.happens(500)).unwrap_or(errand.to);
                self.place(world, &errand.volume, Some(back));
            }
            _ => {}
        }
    }

    fn happen(&mut self, world: &mut World) {
        let choice = world.draw.below(100);
        match choice {
            0..30 => self.migrate(world),
            30..36 => self.snapshot(world),
            36..39 if self.group.is_some() => self.snapshot(world),
            36..39 => self.join(world),
            39..52 if self.hazards.deaths => self.kill(world),
            52..70 if self.hazards.network => self.break_link(world),
            70..80 if self.hazards.clocks => self.pause_or_drift(world),
            80..83 if self.hazards.full_disks => self.fill(world),
            83..87 if self.hazards.takeovers => self.take_over(world),
            87..90 if self.hazards.takeovers => self.come_back(world),
            90..100 if self.hazards.takeovers => self.lose_owner(world),
            _ => {}
        }
    }

    fn some_vm(&self, world: &mut World) -> Option<(String, Option<NodeId>)> {
        let vms = world.guests.vms();
        let at = world.draw.below(vms.len() as u64) as usize;
        let (name, vm) = vms.into_iter().nth(at)?;
        let is_free = self.errands.iter().all(|errand| errand.volume != name && self.group.is_none());
        is_free.then_some((name, vm.at))
    }

    fn some_of(world: &mut World, ids: &[NodeId]) -> Option<NodeId> {
        let at = world.draw.below(ids.len() as u64) as usize;
        ids.get(at).copied()
    }

    fn migrate(&mut self, world: &mut World) {
        let Some((volume, Some(from))) = self.some_vm(world) else { return };
        let serving = world.serving();
        let holders: Vec<NodeId> = serving.iter().copied().filter(|id| world.is_founder(*id)).collect();
        let (Some(to), Some(asked)) = (Self::some_of(world, &holders), Self::some_of(world, &serving)) else { return };
        let moves = world.draw.happens(700);
        // The volume follows the machine by itself, or is told to go first.
        let on_write = moves && from != to && world.draw.happens(400);
        let how = if on_write { "when it is written" } else { "now" };
        world.history.tell(world.now, format!("{volume} from {from} to {to} {how}, asked of {asked}, moves: {moves}"));
        if moves {
            self.place(world, &volume, None);
        }
        let (name, destination) = (volume.clone(), NAMES[to.0 as usize - 1].to_owned());
        let group = self.group;
        let done = world.ask(asked, |running| {
            let admin = running.parts.admin.clone();
            async move {
                let leave = OnWrite { to: destination.clone(), accept_unmet: false };
                let order = Migrate { to: destination, synced: false, accept_unmet: false, deadline_ms: None };
                let done = match (group, on_write) {
                    (None, true) => admin.let_go_on_write(&name, leave).await.map(drop),
                    (None, false) => admin.migrate(&name, order).await.map(drop),
                    (Some(group), true) => admin.let_group_go_on_write(group, leave).await.map(drop),
                    (Some(group), false) => admin.migrate_group(group, order).await.map(drop),
                };
                done.map(|()| to).map_err(text)
            }
        });
        let until = world.now + Duration::from_secs(60);
        self.errands.push(Errand { volume, from: Some(from), to, moves, done, until });
    }

    fn take_over(&mut self, world: &mut World) {
        let Some((volume, _)) = self.some_vm(world) else { return };
        let serving = world.serving();
        let Some(asked) = Self::some_of(world, &serving) else { return };
        self.ask_takeover(world, volume, asked);
    }

    /// Some node that serves is to drop its tail, if it has one, whatever else is going on.
    fn come_back(&mut self, world: &mut World) {
        let (Some((volume, _)), serving) = (self.some_vm(world), world.serving()) else { return };
        for id in serving {
            let (name, node) = (volume.clone(), NAMES[id.0 as usize - 1].to_owned());
            world.ask(id, |running| {
                let admin = running.parts.admin.clone();
                let request = Rejoin { node, discard_tail: true };
                async move { admin.rejoin(&name, request).await.map(drop).map_err(text) }
            });
        }
    }

    fn ask_takeover(&mut self, world: &mut World, volume: String, asked: NodeId) {
        world.history.tell(world.now, format!("{volume} is to be taken over, asked of {asked}"));
        let name = volume.clone();
        let done = world.ask(asked, |running| {
            let admin = running.parts.admin.clone();
            async move {
                let report = admin.take_over(&name, AskTakeover::default()).await.map_err(text)?;
                let to = NAMES.iter().position(|node| **node == *report.to).ok_or("an unknown node")?;
                Ok(NodeId(to as u64 + 1))
            }
        });
        let until = world.now + Duration::from_secs(60);
        self.errands.push(Errand { volume, from: None, to: asked, moves: false, done, until });
    }

    /// The owner of a volume is cut off or stands still, its guests go on as they can, and a replica takes over.
    fn lose_owner(&mut self, world: &mut World) {
        let Some((volume, _)) = self.some_vm(world) else { return };
        let Some(owner) = world.owner(&volume) else { return };
        let now = world.now;
        let rest = Duration::from_millis(12_000 + world.draw.below(20_000));
        if world.draw.happens(300) {
            world.history.tell(now, format!("{owner}, where {volume} runs, stands still for {rest:?}"));
            world.machine(owner).paused_until = now + rest;
        } else {
            world.history.tell(now, format!("{owner}, where {volume} runs, is cut off"));
            for other in world.ids().into_iter().filter(|other| *other != owner) {
                self.cut(world, owner, other, rest, |link| link.is_cut = true);
                self.cut(world, other, owner, rest, |link| link.is_cut = true);
            }
        }
        let others: Vec<NodeId> = world.serving().into_iter().filter(|id| *id != owner).collect();
        let Some(asked) = Self::some_of(world, &others) else { return };
        self.ask_takeover(world, volume, asked);
    }

    fn cut(&mut self, world: &World, from: NodeId, to: NodeId, rest: Duration, change: impl FnOnce(&mut Link)) {
        if self.repairs.contains_key(&(from, to)) {
            return;
        }
        let mut before = Link::default();
        world.network.change(from, to, |link| {
            before = *link;
            change(link);
        });
        self.repairs.insert((from, to), (world.now + rest, before));
    }

    fn snapshot(&mut self, world: &mut World) {
        let Some((volume, _)) = self.some_vm(world) else { return };
        let serving = world.serving();
        let Some(asked) = Self::some_of(world, &serving) else { return };
        let admin_of = |running: &Running| running.parts.admin.clone();
        if self.snapshots.len() > 2 && world.draw.happens(500) {
            let (volume, name) = self.snapshots.remove(world.draw.below(self.snapshots.len() as u64) as usize);
            world.history.tell(world.now, format!("{volume}@{name} is deleted, asked of {asked}"));
            world.ask(asked, |running| {
                let admin = admin_of(running);
                async move { admin.delete_snapshot(&volume, &name).await.map_err(text) }
            });
            return;
        }
        let name = format!("s{}", world.now.as_millis());
        world.history.tell(world.now, format!("{volume}@{name} is made, asked of {asked}"));
        // Of both together, mostly, and of one of them now and then.
        if let Some(group) = self.group.filter(|_| world.draw.happens(800)) {
            world.ask(asked, |running| {
                let admin = admin_of(running);
                async move { admin.snapshot_group(group, CreateSnapshot { name }).await.map(drop).map_err(text) }
            });
            return;
        }
        self.snapshots.push((volume.clone(), name.clone()));
        world.ask(asked, |running| {
            let admin = admin_of(running);
            async move { admin.create_snapshot(&volume, CreateSnapshot { name }).await.map(drop).map_err(text) }
        });
    }

    /// Another machine joins the cluster.
    fn join(&mut self, world: &mut World) {
        if let Some(id) = world.join() {
            world.history.tell(world.now, format!("{id} joins"));
        }
    }

    fn fill(&mut self, world: &mut World) {
        let ids = world.ids();
        let Some(id) = Self::some_of(world, &ids) else { return };
        let rest = Duration::from_millis(500 + world.draw.below(8_000));
        world.history.tell(world.now, format!("the disk of {id} is full for {rest:?}"));
        world.machine(id).disk.set_capacity(0);
        self.emptied.insert(id, world.now + rest);
    }

    fn kill(&mut self, world: &mut World) {
        let up: Vec<NodeId> =
            world.machines.values().filter(|machine| machine.is_up()).map(|machine| machine.id).collect();
        let dead = world.machines.len() - up.len();
        let most = if world.draw.happens(150) { 2 } else { 1 };
        let Some(id) = Self::some_of(world, &up).filter(|_| dead < most) else { return };
        let (power, rest) = (world.draw.happens(600), Duration::from_millis(200 + world.draw.below(25_000)));
        world.history.tell(world.now, format!("{id} dies, power: {power}"));
        world.kill(id, power);
        self.restarts.insert(id, world.now + rest);
    }

    fn break_link(&mut self, world: &mut World) {
        let ids = world.ids();
        let (Some(from), Some(to)) = (Self::some_of(world, &ids), Self::some_of(world, &ids)) else { return };
        let rest = Duration::from_millis(200 + world.draw.below(20_000));
        let (isolates, both, kind) = (world.draw.happens(400), world.draw.happens(500), world.draw.below(4));
        world
            .history
            .tell(world.now, format!("{from} to {to} breaks: isolates: {isolates}, both: {both}, kind {kind}"));
        let others = ids.iter().copied().filter(|id| *id != from && (isolates || *id == to));
        let one_way: Vec<(NodeId, NodeId)> = others.map(|other| (from, other)).collect();
        let links = one_way
            .iter()
            .flat_map(|(from, to)| [Some((*from, *to)), both.then_some((*to, *from))].into_iter().flatten());
        let links: Vec<(NodeId, NodeId)> = links.collect();
        for (from, to) in links {
            self.cut(world, from, to, rest, |link| match kind {
                0 | 1 => link.is_cut = true,
                2 => link.lost = 300,
                _ => {
                    link.late = 100;
                    link.jitter = Duration::from_millis(200);
                }
            });
        }
    }

    fn pause_or_drift(&mut self, world: &mut World) {
        let ids = world.ids();
        let Some(id) = Self::some_of(world, &ids) else { return };
        let now = world.now;
        if world.draw.happens(500) {
            let rest = Duration::from_millis(50 + world.draw.below(15_000));
            world.history.tell(now, format!("{id} stands still for {rest:?}"));
            world.machine(id).paused_until = now + rest;
        } else {
            // Two of them are at most as far apart as leases allow for.
            let drift = world.draw.below(9) as i64 - 4;
            world.history.tell(now, format!("the clock of {id} is fast by {drift} of a thousand"));
            world.machine(id).drift_per_mille = drift;
        }
    }

    /// Ends every fault; whoever is dead starts.
    ///
    /// # Errors
    /// When not all of them come up.
    pub(super) fn end(&mut self, world: &mut World) -> Result<(), String> {
        for ((from, to), (_, before)) in std::mem::take(&mut self.repairs) {
            world.network.change(from, to, |link| *link = before);
        }
        for id in world.ids() {
            let now = world.now;
            let machine = world.machine(id);
            machine.paused_until = machine.paused_until.min(now);
            machine.disk.set_capacity(u64::MAX);
        }
        for (id, _) in std::mem::take(&mut self.restarts) {
            world.boot(id);
        }
        world.history.tell(world.now, "every fault is over");
        let all = world.machines.len();
        let is_up = world.run_until(Duration::from_secs(120), |world| world.serving().len() == all);
        if !is_up {
            return Err(format!("only these nodes serve: {:?}; {:?}", world.serving(), world.failures()));
        }
        while !self.errands.is_empty() {
            world.step();
            self.follow_up(world);
        }
        // The faults are over, the guests go on for a while: it must work again.
        world.run_for(Duration::from_secs(5));
        world.guests.end();
        world.run_for(Duration::from_secs(2));
        self.rejoin(world);
        Ok(())
    }

    /// Has every node that a takeover left behind drop its tail.
    fn rejoin(&mut self, world: &mut World) {
        for (volume, _) in world.guests.vms() {
            for id in world.ids() {
                let name = volume.clone();
                let rejoined = world.answer(id, Duration::from_secs(60), |running| {
                    let admin = running.parts.admin.clone();
                    let request = Rejoin { node: NAMES[id.0 as usize - 1].into(), discard_tail: true };
                    async move { admin.rejoin(&name, request).await.map_err(text) }
                });
                world.history.tell(world.now, format!("{volume} at {id} rejoins: {rejoined:?}"));
            }
        }
    }
}
