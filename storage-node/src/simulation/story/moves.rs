//! Who owns a volume: handovers and takeovers that are asked for, owners that are lost, nodes that come back.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::{AskTakeover, Migrate, OnWrite, Rejoin};

use super::Story;
use crate::serve::admin::Admin;
use crate::simulation::world::{NAMES, World, text};

/// How long after the faults a takeover is refused for what was flushed before it is told to go without.
const BEHIND_AFTER: Duration = Duration::from_secs(60);

/// A handover or takeover that was asked for.
pub(super) struct Errand {
    pub(super) volume: String,
    from: Option<NodeId>,
    to: NodeId,
    /// Whether the virtual machine moves with it.
    moves: bool,
    pub(super) done: Arc<OnceLock<Result<NodeId, String>>>,
    pub(super) until: Duration,
}

impl Story {
    pub(super) fn returned(&mut self, world: &mut World, errand: &Errand) {
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

    pub(super) fn migrate(&mut self, world: &mut World) {
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

    pub(super) fn take_over(&mut self, world: &mut World) {
        let Some((volume, _)) = self.some_vm(world) else { return };
        let serving = world.serving();
        let Some(asked) = Self::some_of(world, &serving) else { return };
        self.ask_takeover(world, volume, asked);
    }

    /// Some node that serves is to drop its tail, if it has one, whatever else is going on.
    pub(super) fn come_back(&mut self, world: &mut World) {
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

    pub(super) fn ask_takeover(&mut self, world: &mut World, volume: String, asked: NodeId) {
        self.ask_takeover_as(world, volume, asked, false);
    }

    /// The same; `behind`, if what only those hold that cannot take over may be cut off.
    fn ask_takeover_as(&mut self, world: &mut World, volume: String, asked: NodeId, behind: bool) {
        world.history.tell(world.now, format!("{volume} is to be taken over, asked of {asked}"));
        let name = volume.clone();
        let done = world.ask(asked, |running| {
            let admin = running.parts.admin.clone();
            async move {
                let report =
                    admin.take_over(&name, AskTakeover { behind, ..AskTakeover::default() }).await.map_err(text)?;
                let to = NAMES.iter().position(|node| **node == *report.to).ok_or("an unknown node")?;
                Ok(NodeId(to as u64 + 1))
            }
        });
        let until = world.now + Duration::from_secs(60);
        self.errands.push(Errand { volume, from: None, to: asked, moves: false, done, until });
    }

    /// The owner of a volume is cut off or stands still, its guests go on as they can, and a replica takes over.
    pub(super) fn lose_owner(&mut self, world: &mut World) {
        let Some((volume, _)) = self.some_vm(world) else { return };
        let Some(owner) = world.owner(&volume) else { return };
        let now = world.now;
        let rest = Duration::from_millis(12_000 + world.draw.below(20_000));
        if world.draw.happens(300) {
            world.history.tell(now, format!("{owner}, where {volume} runs, stands still for {rest:?}"));
            world.machine(owner).paused_until = now + rest;
        } else {
            let spared = if self.hazards.losses && world.draw.happens(500) {
                let ids = world.ids();
                Self::some_of(world, &ids)
            } else {
                None
            };
            world.history.tell(now, format!("{owner}, where {volume} runs, is cut off, but from {spared:?}"));
            for other in world.ids().into_iter().filter(|other| *other != owner && Some(*other) != spared) {
                self.cut(world, owner, other, rest, |link| link.is_cut = true);
                self.cut(world, other, owner, rest, |link| link.is_cut = true);
            }
        }
        let others: Vec<NodeId> = world.serving().into_iter().filter(|id| *id != owner).collect();
        let Some(asked) = Self::some_of(world, &others) else { return };
        self.ask_takeover(world, volume, asked);
    }

    /// Asks for the volumes whose owners are lost.
    pub(super) fn inherit(&mut self, world: &mut World) {
        let serving = world.serving();
        for (volume, _) in world.guests.vms() {
            let is_free = self.errands.iter().all(|errand| errand.volume != volume);
            if let Some(asked) = Self::some_of(world, &serving)
                && is_free
                && world.owner(&volume).is_some_and(|owner| world.lost.contains(&owner))
            {
                // Who alone has what was flushed may have left before the owner was lost: then it is an operator's decision, at last.
                let behind = self.end_of_faults.is_some_and(|end| world.now > end + BEHIND_AFTER);
                if let Some(vm) = world.guests.vms().get(&volume).filter(|_| behind) {
                    let now = world.now;
                    world.history.book().behind.entry(vm.volume).or_insert(now);
                }
                self.ask_takeover_as(world, volume, asked, behind);
            }
        }
    }

    /// Waits until every volume has an owner that is not lost.
    ///
    /// # Errors
    /// When one does not.
    pub(super) fn all_inherited(&mut self, world: &mut World) -> Result<(), String> {
        let end = world.now + super::PATIENCE;
        loop {
            let orphans: Vec<String> = world
                .guests
                .vms()
                .into_keys()
                .filter(|name| world.owner(name).is_none_or(|owner| world.lost.contains(&owner)))
                .collect();
            if orphans.is_empty() && self.errands.is_empty() {
                return Ok(());
            }
            if world.now >= end {
                return Err(format!("nobody takes over what lost nodes owned: {orphans:?}"));
            }
            world.step();
            self.follow_up(world);
        }
    }

    /// Has every node that a takeover left behind drop its tail.
    pub(super) fn rejoin(&mut self, world: &mut World) {
        for (volume, _) in world.guests.vms() {
            for id in world.serving() {
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
