//! What makes a volume something else at once: rollbacks, clones, other sizes.

use std::sync::{Arc, OnceLock};

use client_lib::wire::admin::{CloneSnapshot, Resize, RollBack};
use client_lib::{BLOCK_SIZE, Error, NodeId, VolumeId};

use super::Story;
use crate::serve::admin::Admin;
use crate::simulation::guest::{BLOCKS, Vm};
use crate::simulation::history::{Operation, Outcome, What};
use crate::simulation::machine::Running;
use crate::simulation::world::{World, text};

/// Clones of a story.
const CLONES_MAX: usize = 2;
/// A volume keeps so many blocks.
const BLOCKS_MIN: u32 = 20;

/// A clone that was asked for.
pub(super) struct Clone {
    name: String,
    made: Arc<OnceLock<Result<u64, String>>>,
}

impl Story {
    pub(super) fn turn(&mut self, world: &mut World) {
        match world.draw.below(10) {
            _ if self.snapshots.is_empty() => self.snapshot(world),
            0..4 => self.roll_back(world),
            4..6 => self.clone_some(world),
            _ => self.resize(world),
        }
    }

    fn some_snapshot(&self, world: &mut World) -> Option<(String, String, NodeId)> {
        let at = world.draw.below(self.snapshots.len() as u64) as usize;
        let (volume, name) = self.snapshots.get(at)?.clone();
        let serving = world.serving();
        Some((volume, name, Self::some_of(world, &serving)?))
    }

    fn roll_back(&mut self, world: &mut World) {
        let Some((volume, name, asked)) = self.some_snapshot(world) else { return };
        world.history.tell(world.now, format!("{volume} goes back to {name}, asked of {asked}"));
        let back = volume.clone();
        operate(world, asked, &volume, What::RollBack, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.roll_back(&back, &name, RollBack { discard_changes: true }).await.map(drop) }
        });
    }

    fn clone_some(&mut self, world: &mut World) {
        let Some((volume, snapshot, asked)) = self.some_snapshot(world) else { return };
        if self.clones_made >= CLONES_MAX {
            return;
        }
        self.clones_made += 1;
        let name = format!("{volume}{}", self.clones_made);
        world.history.tell(world.now, format!("{name} is made of {volume}@{snapshot}, asked of {asked}"));
        let request = CloneSnapshot { name: name.clone() };
        let made = world.ask(asked, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.clone_snapshot(&volume, &snapshot, request).await.map(|made| made.id).map_err(text) }
        });
        self.clones.push(Clone { name, made });
    }

    /// Lets the machines of clones that are made run.
    pub(super) fn welcome(&mut self, world: &World) {
        self.clones.retain(|clone| {
            let Some(made) = clone.made.get() else { return true };
            world.history.tell(world.now, format!("{}: {made:?}", clone.name));
            if let Ok(id) = made {
                let volume = VolumeId(*id);
                let at = world.newest(volume).map(|volume| volume.owner);
                world.guests.add(&clone.name, Vm { volume, at, forgotten: None });
            }
            false
        });
    }

    fn resize(&mut self, world: &mut World) {
        let vms = world.guests.vms();
        let at = world.draw.below(vms.len() as u64) as usize;
        let Some(volume) = vms.into_keys().nth(at) else { return };
        let serving = world.serving();
        let Some(asked) = Self::some_of(world, &serving) else { return };
        let blocks = BLOCKS_MIN + world.draw.below(u64::from(BLOCKS - BLOCKS_MIN) + 1) as u32;
        world.history.tell(world.now, format!("{volume} is to have {blocks} blocks, asked of {asked}"));
        ask_size(world, asked, &volume, blocks);
    }

    /// Gives every volume all its blocks.
    ///
    /// # Errors
    /// When one does not get them.
    pub(super) fn grow_all(&mut self, world: &mut World) -> Result<(), String> {
        for name in world.guests.vms().into_keys() {
            let end = world.now + super::PATIENCE;
            loop {
                let Some(asked) = world.owner(&name) else { return Err(format!("nobody owns {name}")) };
                let number = ask_size(world, asked, &name, BLOCKS);
                let outcome =
                    |world: &World| number.get().map(|number| world.history.book().operations[*number].outcome);
                world.run_until(super::PATIENCE, |world| {
                    outcome(world).is_some_and(|outcome| outcome != Outcome::Pending)
                });
                match outcome(world) {
                    Some(Outcome::Done(_)) => break,
                    outcome if world.now >= end => return Err(format!("{name} does not grow: {outcome:?}")),
                    _ => world.run_for(super::PAUSE),
                }
            }
        }
        Ok(())
    }
}

fn ask_size(world: &World, asked: NodeId, volume: &str, blocks: u32) -> Arc<OnceLock<usize>> {
    let name = volume.to_owned();
    operate(world, asked, volume, What::Resize { blocks }, |running| {
        let admin = running.parts.admin.clone();
        let request = Resize { size_bytes: u64::from(blocks) * u64::from(BLOCK_SIZE), shrink: true };
        async move { admin.resize(&name, request).await.map(drop) }
    })
}

/// Has node `asked` do something to `volume`, and notes it as an operation; its number is there once it has begun.
fn operate<F>(
    world: &World,
    asked: NodeId,
    volume: &str,
    what: What,
    task: impl FnOnce(&Running) -> F,
) -> Arc<OnceLock<usize>>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (history, number) = (world.history.clone(), Arc::new(OnceLock::new()));
    let Some(vm) = world.guests.vms().remove(volume) else { return number };
    let into = number.clone();
    if let Some(machine) = world.machines.get(&asked) {
        machine.spawn(|running, time| {
            let work = task(running);
            async move {
                let (session, asked_at) = (history.session(), time.now());
                let operation = Operation {
                    volume: vm.volume,
                    node: asked,
                    session,
                    what,
                    asked: asked_at,
                    outcome: Outcome::Pending,
                };
                let number = *into.get_or_init(|| history.asks(operation));
                let outcome = match work.await {
                    Ok(()) => Outcome::Done(time.now()),
                    Err(error) => {
                        let kind = error.kind();
                        history.tell(time.now(), format!("operation {number}: {}", text(error)));
                        Outcome::Failed(time.now(), kind)
                    }
                };
                history.answers(number, outcome, None);
            }
        });
    }
    number
}
