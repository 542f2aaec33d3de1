//! What breaks: machines, links, clocks, disks. Every fault ends, but for a loss for good.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::{BLOCK_SIZE, Lsn, NodeId};

use super::{Losable, Story};
use crate::serve::admin::Admin;
use crate::shard::scrub::ScrubAction;
use crate::simulation::checks::positions;
use crate::simulation::checks::survivors::newest;
use crate::simulation::history::Flip;
use crate::simulation::network::Link;
use crate::simulation::world::{World, text};

impl Story {
    pub(super) fn cut(
        &mut self,
        world: &World,
        from: NodeId,
        to: NodeId,
        rest: Duration,
        change: impl FnOnce(&mut Link),
    ) {
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

    pub(super) fn fill(&mut self, world: &mut World) {
        let ids = world.ids();
        let Some(id) = Self::some_of(world, &ids) else { return };
        let rest = Duration::from_millis(500 + world.draw.below(8_000));
        world.history.tell(world.now, format!("the disk of {id} is full for {rest:?}"));
        world.machine(id).disk.set_capacity(0);
        self.emptied.insert(id, world.now + rest);
    }

    pub(super) fn kill(&mut self, world: &mut World) {
        let up: Vec<NodeId> =
            world.machines.values().filter(|machine| machine.is_up()).map(|machine| machine.id).collect();
        let up: Vec<NodeId> = up.into_iter().filter(|id| !self.failed.contains_key(id)).collect();
        let dead = world.machines.len() - world.lost.len() - up.len();
        let most = if world.draw.happens(150) { 2 } else { 1 };
        let Some(id) = Self::some_of(world, &up).filter(|_| dead < most) else { return };
        let (power, rest) = (world.draw.happens(600), Duration::from_millis(200 + world.draw.below(25_000)));
        world.history.tell(world.now, format!("{id} dies, power: {power}"));
        world.kill(id, power);
        self.restarts.insert(id, world.now + rest);
    }

    /// A store takes no writes any more from some operation on: of one machine at a time, which is not killed otherwise meanwhile, since what it has acked
    /// and not made durable may be nowhere else for a moment.
    pub(super) fn fail_store(&mut self, world: &mut World) {
        if !self.failed.is_empty() {
            return;
        }
        let serving = world.serving();
        let owners = world.guests.vms().into_keys().filter_map(|name| world.owner(&name));
        let owners: Vec<NodeId> = owners.filter(|id| serving.contains(id)).collect();
        let among = if world.draw.happens(800) { &owners } else { &serving };
        let Some(id) = Self::some_of(world, among) else { return };
        let (operations, rest) = (world.draw.below(12), Duration::from_millis(500 + world.draw.below(12_000)));
        world.history.tell(world.now, format!("the disk of {id} fails after {operations} operations, for {rest:?}"));
        world.machine(id).disk.fail_writes_after(operations);
        self.failed.insert(id, world.now + rest);
        self.failures += 1;
    }

    /// The process of the machine ends, and starts again with a disk that takes writes and has what it had.
    pub(super) fn replace_disk(&mut self, world: &mut World, id: NodeId) {
        self.failed.remove(&id);
        world.machine(id).disk.mend();
        if world.machine(id).is_up() {
            world.history.tell(world.now, format!("{id} is stopped, and its disk is in order"));
            world.kill(id, false);
            let rest = Duration::from_millis(200 + world.draw.below(5_000));
            self.restarts.insert(id, world.now + rest);
        }
    }

    pub(super) fn break_link(&mut self, world: &mut World) {
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

    pub(super) fn pause_or_drift(&mut self, world: &mut World) {
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

    /// Some bytes that a disk has stored are altered on the medium: of one node, or everywhere. Not at the end of a log, where nobody could
    /// tell that from a crash.
    pub(super) fn flip(&mut self, world: &mut World) {
        let vms = world.guests.vms();
        let at = world.draw.below(vms.len() as u64) as usize;
        let Some((name, vm)) = vms.into_iter().nth(at) else { return };
        let candidates: Vec<(u32, Lsn, u32)> = {
            let book = world.history.book();
            let versions = newest(&book, vm.volume).into_iter();
            let kept = versions.filter_map(|(block, version)| Some((block, version.lsn, version.content?)));
            kept.filter(|(.., content)| !book.flips.contains_key(content)).collect()
        };
        let at = world.draw.below(candidates.len() as u64) as usize;
        let Some((block, lsn, content)) = candidates.get(at).copied() else { return };
        let ids: Vec<NodeId> = world.ids().into_iter().filter(|id| !world.lost.contains(id)).collect();
        let everywhere = world.draw.happens(150);
        let nodes = if everywhere { ids } else { Self::some_of(world, &ids).into_iter().collect() };
        for id in nodes {
            if !positions::vouches(&world.history.book(), id, vm.volume, lsn) {
                continue;
            }
            let places = world.machine(id).disk.find(|bytes| crc32fast::hash(bytes) == content);
            if places.is_empty() {
                continue;
            }
            world.history.tell(world.now, format!("block {block} of {name} is altered at {id}: {places:?}"));
            for (file, at) in places {
                let byte = world.draw.below(u64::from(BLOCK_SIZE)) as usize;
                world.machine(id).disk.flip(&file, at * BLOCK_SIZE as usize + byte);
            }
            let (mut book, at) = (world.history.book(), world.now);
            book.flips.entry(content).or_insert_with(|| Flip { at, nodes: BTreeSet::new() }).nodes.insert(id);
        }
        let serving = world.serving();
        if let Some(id) = Self::some_of(world, &serving).filter(|_| world.draw.happens(300)) {
            world.history.tell(world.now, format!("{id} scrubs"));
            world.ask(id, |running| {
                let admin = running.parts.admin.clone();
                async move { admin.scrub(ScrubAction::Start, None, None).await.map(drop).map_err(text) }
            });
        }
    }

    /// A node, or a provider with all its nodes, is lost with all that it holds: once.
    pub(super) fn lose(&mut self, world: &mut World) {
        let ids = world.ids();
        let Some(id) = Self::some_of(world, &ids).filter(|_| world.lost.is_empty()) else { return };
        let lost: Vec<NodeId> = match self.losable {
            Losable::Node => vec![id],
            Losable::Provider => ids.into_iter().filter(|other| world.are_neighbours(*other, id)).collect(),
        };
        world.history.tell(world.now, format!("{lost:?} are lost for good"));
        for id in lost {
            self.restarts.remove(&id);
            world.lose(id);
        }
    }
}
