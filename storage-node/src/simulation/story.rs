//! What happens in a seed: handovers, takeovers, snapshots, and faults, drawn as time goes on.
//!
//! Every fault ends: what broke is repaired after a while drawn with it, everything at the end. At most one machine is dead
//! at a time as a rule, two now and then; more would only make everything stand still. Only what is [lost](Losable) never comes back.

mod faults;
mod moves;
mod replicas;
mod snapshots;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::NodeId;

use self::moves::Errand;
use self::turns::Clone;
use super::checks::positions;
use super::network::Link;
use super::world::World;

/// How long something may take once the faults are over.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

/// Blocks that are altered when the guests have ended.
const LAST_FLIPS: usize = 4;

/// Of how many hundredths, beside the first hundred, a kind of thing happens that is not part of every story.
const MORE: u64 = 25;

/// Something that happens.
type Happening = fn(&mut Story, &mut World);

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
    /// Machines that never come back, with all that they hold; and owners that are cut off from some nodes only.
    pub(super) losses: bool,
    /// Disks that alter what they have stored.
    pub(super) flips: bool,
    /// Rollbacks, clones, other sizes.
    pub(super) turns: bool,
    /// Nodes that follow volumes from now on, or no more.
    pub(super) replicas: bool,
    /// Stores that take no writes any more, until their nodes are restarted.
    pub(super) failures: bool,
}

impl Hazards {
    pub(super) const NONE: Hazards = Hazards {
        deaths: false,
        network: false,
        clocks: false,
        takeovers: false,
        full_disks: false,
        losses: false,
        flips: false,
        turns: false,
        replicas: false,
        failures: false,
    };
    pub(super) const ALL: Hazards =
        Hazards { deaths: true, network: true, clocks: true, takeovers: true, full_disks: true, ..Hazards::NONE };
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

/// What may be lost for good, once in a story: no more than the classes of the volumes allow for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Losable {
    Node,
    Provider,
}

/// Tells the story.
pub(super) struct Story {
    hazards: Hazards,
    losable: Losable,
    /// When who starts again.
    restarts: BTreeMap<NodeId, Duration>,
    /// When which link is as before.
    repairs: BTreeMap<(NodeId, NodeId), (Duration, Link)>,
    /// When whose disk takes more again.
    emptied: BTreeMap<NodeId, Duration>,
    /// When who is restarted because its store takes no writes.
    failed: BTreeMap<NodeId, Duration>,
    errands: Vec<Errand>,
    /// The group that all volumes are, if they are one: they move together, and so do the machines.
    group: Option<&'static str>,
    /// The snapshots that were asked for: volume, name.
    snapshots: Vec<(String, String)>,
    /// The clones that are being made, and how many were asked for.
    clones: Vec<Clone>,
    clones_made: usize,
    /// When the next look at everybody's positions is.
    look: Duration,
    /// When the volumes of lost owners are asked for again.
    inherit: Duration,
    end_of_faults: Option<Duration>,
    pub(super) handovers: u32,
    pub(super) takeovers: u32,
    pub(super) failures: u32,
}

impl Story {
    pub(super) fn new(hazards: Hazards) -> Story {
        Story {
            hazards,
            losable: Losable::Node,
            restarts: BTreeMap::new(),
            repairs: BTreeMap::new(),
            emptied: BTreeMap::new(),
            failed: BTreeMap::new(),
            errands: Vec::new(),
            group: None,
            snapshots: Vec::new(),
            clones: Vec::new(),
            clones_made: 0,
            look: Duration::ZERO,
            inherit: Duration::ZERO,
            end_of_faults: None,
            handovers: 0,
            takeovers: 0,
            failures: 0,
        }
    }

    /// A story in which nodes are lost.
    pub(super) fn of_losses(losable: Losable, hazards: Hazards) -> Story {
        Story { losable, ..Story::new(hazards) }
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
        let due: Vec<NodeId> = self.failed.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.replace_disk(world, id);
        }
        if self.look <= now {
            self.look = now + Duration::from_millis(700);
            positions::look(world);
        }
        self.welcome(world);
        if self.inherit <= now && !world.lost.is_empty() {
            self.inherit = now + Duration::from_secs(3);
            self.inherit(world);
        }
        let (over, under_way) = std::mem::take(&mut self.errands)
            .into_iter()
            .partition(|errand: &Errand| errand.done.get().is_some() || errand.until <= now);
        self.errands = under_way;
        for errand in over {
            self.returned(world, &errand);
        }
    }

    fn happen(&mut self, world: &mut World) {
        let more: [(bool, Happening); 5] = [
            (self.hazards.losses, Story::lose),
            (self.hazards.flips, Story::flip),
            (self.hazards.turns, Story::turn),
            (self.hazards.replicas, Story::change_replicas),
            (self.hazards.failures, Story::fail_store),
        ];
        let more: Vec<_> = more.into_iter().filter(|(happens, _)| *happens).collect();
        let choice = world.draw.below(100 + MORE * more.len() as u64);
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
            100.. => more[((choice - 100) / MORE) as usize].1(self, world),
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

    /// Another machine joins the cluster.
    fn join(&mut self, world: &mut World) {
        if let Some(id) = world.join() {
            world.history.tell(world.now, format!("{id} joins"));
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
        for id in self.failed.keys().copied().collect::<Vec<_>>() {
            self.replace_disk(world, id);
        }
        for (id, _) in std::mem::take(&mut self.restarts) {
            world.boot(id);
        }
        world.history.tell(world.now, "every fault is over");
        self.end_of_faults = Some(world.now);
        let all = world.machines.len() - world.lost.len();
        let is_up = world.run_until(Duration::from_secs(120), |world| world.serving().len() == all);
        if !is_up {
            return Err(format!("only these nodes serve: {:?}; {:?}", world.serving(), world.failures()));
        }
        while !self.errands.is_empty() {
            world.step();
            self.follow_up(world);
        }
        self.all_inherited(world)?;
        if self.hazards.turns {
            self.grow_all(world)?;
        }
        // The faults are over, the guests go on for a while: it must work again.
        world.run_for(Duration::from_secs(5));
        world.guests.end();
        world.run_for(Duration::from_secs(2));
        // What nobody writes any more stays altered, unless it is repaired.
        for _ in 0..if self.hazards.flips { LAST_FLIPS } else { 0 } {
            self.flip(world);
        }
        self.rejoin(world);
        Ok(())
    }
}
