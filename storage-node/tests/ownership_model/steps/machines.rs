//! The machines of a node's process: what they are fed with, and what they want done.

use std::time::Duration;

use client_lib::Epoch;
use storage_node::ownership::handover;
use storage_node::ownership::lease;
use storage_node::ownership::takeover::{self, Seen};

use super::messages::failure;
use super::process::{extended, step_down, thaw};
use super::{Protocol, TICK};
use crate::Bug;
use crate::world::{Ask, LEASE, Message, Process, VOLUME, World, Write, end, id};

impl Protocol {
    pub(super) fn keep(&self, world: &mut World, node: usize, event: lease::Event) {
        let process = &mut world.nodes[node];
        let effect = process.keeper.on(process.clock, LEASE, event);
        if !matches!(event, lease::Event::Wake) && (effect.is_some() || matches!(event, lease::Event::Failed { .. })) {
            process.asking = None;
        }
        if effect.is_some() {
            process.terms = process.keeper.terms();
        }
        if self.has(Bug::LeaseFromReply) && effect.is_some() && matches!(event, lease::Event::Granted { .. }) {
            process.terms.until = process.clock + LEASE;
        }
        if let Some(lease::Effect::Ask { asked, lapses, .. }) = effect {
            let ask = Ask::Renew { lapses, asked };
            process.asking = Some(ask);
            self.ask(world, node, ask);
        }
    }

    pub(super) fn learn(&self, world: &mut World, node: usize) {
        let process = &mut world.nodes[node];
        process.seen = world.meta;
        let (state, clock) = (process.seen.get(), process.clock);
        process.watch.observe(clock, id(1 - node), &state.lease(id(1 - node)));
        // Its own start may have been committed twice.
        process.incarnation = process.incarnation.max(state.node(id(node)).expect("a member").incarnation);
        let lapses = state.lease(id(node)).lapses;
        if lapses > process.keeper.terms().lapses && !self.has(Bug::LapsesIgnored) {
            self.keep(world, node, lease::Event::Lapsed { lapses });
        }
    }

    pub(super) fn hand_over(&self, world: &mut World, node: usize, event: handover::Event) {
        let process = &mut world.nodes[node];
        let Some(machine) = process.handover.as_mut() else { return };
        let ask = match machine.on(event) {
            None => return,
            // What is held would be waited for, which is never answered here. Found by this model.
            Some(handover::Effect::Freeze) if process.has_ceased() => {
                return self.hand_over(world, node, handover::Event::Failed(failure()));
            }
            Some(handover::Effect::Freeze) => {
                (process.frozen, process.freezing) = (true, true);
                return;
            }
            Some(handover::Effect::Prepare { final_lsns }) => {
                let final_lsn = final_lsns[0];
                let encloses = if process.rescues { !self.has(Bug::RescueToldBefore) } else { self.encloses };
                if encloses {
                    return self.hand_over(world, node, handover::Event::Prepared(final_lsns));
                }
                (process.preparing, process.sealed) = (true, final_lsn);
                let prepare = Message::Prepare { from: node, epoch: process.epoch, writes: process.writes.clone() };
                return world.send(prepare);
            }
            Some(handover::Effect::Propose { final_lsns }) => {
                let final_lsn = final_lsns[0];
                process.transferring = !self.has(Bug::ReadsWhileTransferring);
                let (incarnation, epoch) = (process.incarnation, process.epoch);
                match process.rescues {
                    true => {
                        let durable = process.stored.as_deref().map_or(final_lsn, end);
                        let final_lsn = if self.has(Bug::RescueOfDurable) { durable } else { final_lsn };
                        Ask::Rescue { incarnation, epoch, to: 1 - node, final_lsn }
                    }
                    false => Ask::Transfer { incarnation, epoch, to: 1 - node, final_lsn },
                }
            }
            Some(handover::Effect::Resolve) => Ask::Started,
            Some(handover::Effect::Thaw(_)) => return thaw(process),
            Some(handover::Effect::Release { volumes, .. }) => {
                let (handover::Released::To { epoch, .. } | handover::Released::Found { epoch, .. }) = volumes[0]
                else {
                    unreachable!("of one volume, which is not deleted")
                };
                (process.handover, process.rescues) = (None, false);
                if epoch > process.epoch {
                    step_down(process, epoch);
                }
                return;
            }
        };
        process.question = Some(ask);
        self.ask(world, node, ask);
    }

    pub(super) fn look(&self, world: &mut World, node: usize) {
        let other = 1 - node;
        let process = &mut world.nodes[node];
        let lease = process.seen.get().lease(id(other));
        let (now, seen) = (process.clock, lease.renewals);
        let out_at = process.watch.observe(now, id(other), &lease);
        // Without allowance for the drift.
        let out_at = if self.has(Bug::NoDriftBound) { out_at - TICK } else { out_at };
        let out_at = if self.leases { out_at } else { Duration::MAX };
        let now = if self.has(Bug::TakeoverInLease) { out_at } else { now };
        process.wait = None;
        let is_out = lease.is_out || process.seen.get().has_stepped_down(VOLUME);
        let lease = Seen { renewals: seen, is_out, out_at };
        self.take_over(world, node, takeover::Event::Looked { now, lease });
    }

    pub(super) fn take_over(&self, world: &mut World, node: usize, event: takeover::Event) {
        let process = &mut world.nodes[node];
        let Some(machine) = process.takeover.as_mut() else { return };
        let ask = match machine.on(event) {
            None => return,
            Some(takeover::Effect::Wait { until }) => return process.wait = Some(until),
            Some(takeover::Effect::Expire { renewals }) => Ask::Expire { node: 1 - node, renewals },
            Some(takeover::Effect::Hold) if process.failed => {
                return self.take_over(world, node, takeover::Event::Failed(failure()));
            }
            Some(takeover::Effect::Hold) => {
                process.holding = true;
                let held = end(&process.writes);
                return self.take_over(world, node, takeover::Event::Held(held));
            }
            Some(takeover::Effect::Propose { start }) => {
                let volume = process.seen.volume();
                let from = usize::from(volume.owner == id(1));
                Ask::Takeover { incarnation: process.incarnation, from, epoch: volume.epoch, start }
            }
            Some(takeover::Effect::Resolve) => Ask::Started,
            Some(takeover::Effect::Release(_) | takeover::Effect::Alive | takeover::Effect::NotCommitted { .. }) => {
                (process.holding, process.takeover) = (false, None);
                return;
            }
            Some(takeover::Effect::TakeUp(_)) => return process.takeover = None,
        };
        process.question = Some(ask);
        self.ask(world, node, ask);
    }

    pub(super) fn reconcile(&self, world: &mut World, node: usize) -> Result<(), String> {
        let process = &mut world.nodes[node];
        let (volume, lease) = (process.seen.volume(), process.seen.get().lease(id(node)));
        let acts_under = if self.has(Bug::ArmedWhileOut) { Some(lease.lapses) } else { lease.acts_under() };
        if volume.owner == id(node) && process.owner && process.epoch == volume.epoch {
            if self.has(Bug::ArmedAfterSteppingDown) && process.armed != acts_under {
                process.ceased = None;
            }
            process.armed = acts_under;
            return Ok(());
        }
        let is_new = volume.epoch > process.epoch;
        if volume.owner != id(node) {
            step_down(process, volume.epoch);
            if self.has(Bug::TailCut) && volume.has_left(end(&process.writes)) {
                process.writes.retain(|write| Epoch(write.0) > volume.forks[0].epoch);
            }
        }
        let left = end(&process.writes);
        let state = process.seen.get();
        if volume.owner != id(node) && !process.failed && volume.has_left(left) && state.has_lost_nothing(&volume, left)
        {
            // Nobody was told that it is written.
            process.writes.truncate(volume.common_with(left).sequence as usize);
            process.known = process.writes.clone();
        }
        if volume.has_left(end(&process.known)) && !volume.has_left(end(&process.writes)) {
            process.known = process.writes.clone();
        }
        if volume.owner != id(node) {
            return Ok(());
        }
        if let Some(enclosed) = process.seen.get().enclosed(VOLUME)
            && !self.has(Bug::EnclosureIgnored)
        {
            let writes: Vec<Write> = postcard::from_bytes(enclosed).expect("what was enclosed");
            process.known = extended(&process.known, &writes)?;
        }
        if is_new && end(&process.known) != volume.final_lsn {
            return Err(format!("the new owner begins at {}, not {}", end(&process.known), volume.final_lsn));
        }
        process.writes = process.known.clone();
        (process.owner, process.epoch, process.armed) = (true, volume.epoch, acts_under);
        (process.frozen, process.transferring, process.holding) = (false, false, false);
        process.applied_there = 0;
        let has = |write: &Write| process.writes.contains(write);
        if let Some(lost) = world.promised.iter().find(|write| !has(write)) {
            return Err(format!("{lost:?} was flushed to both nodes and is lost"));
        }
        if process.seen.get().last_takeover(&volume).is_some_and(|fork| fork.epoch.next() == volume.epoch) {
            world.acked.retain(has);
        } else if let Some(lost) = world.acked.iter().find(|write| !has(write)) {
            return Err(format!("the acked write {lost:?} was lost in a handover"));
        }
        Ok(())
    }
}

/// Whether it owns what it cannot serve any more, and that is not known to others.
pub(super) fn must_step_down(node: usize, process: &Process) -> bool {
    let (volume, state) = (process.seen.volume(), process.seen.get());
    volume.owner == id(node) && volume.epoch >= process.epoch && !state.has_stepped_down(VOLUME)
}

pub(super) fn must_reconcile(node: usize, process: &Process) -> bool {
    let volume = process.seen.volume();
    // A store that has failed takes no ownership up, and nobody takes up what it has stepped down for.
    let is_over = process.failed || process.ceased.is_some_and(|ceased| ceased >= volume.epoch);
    if volume.owner == id(node) && is_over && !(process.owner && process.epoch == volume.epoch) {
        return false;
    }
    let is_armed = process.armed == process.seen.get().lease(id(node)).acts_under();
    match volume.owner == id(node) {
        true => volume.epoch >= process.epoch && !(process.owner && process.epoch == volume.epoch && is_armed),
        false => volume.epoch > process.epoch,
    }
}
