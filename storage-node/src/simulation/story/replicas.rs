//! Which nodes follow a volume: added and removed while everything else goes on.

use client_lib::NodeId;
use client_lib::wire::admin::{ChangeReplicas, Migrate};

use super::Story;
use crate::serve::admin::Admin;
use crate::simulation::world::{NAMES, World, text};

/// What is asked for as soon as it is so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    /// That the node owns the volume: into the first moments of its initial sync.
    Owns,
    /// That the node follows it again, with what it had: where it has much to do, it may not have noticed that it did not.
    Returns,
}

impl Then {
    fn told(self) -> &'static str {
        match self {
            Then::Nothing => "",
            Then::Owns => ", and is to own it at once",
            Then::Returns => ", and again at once",
        }
    }
}

impl Story {
    /// Some node is to follow a volume that does not, or the other way round. Whether it does is seen in the metadata.
    pub(super) fn change_replicas(&mut self, world: &mut World) {
        let vms = world.guests.vms();
        let at = world.draw.below(vms.len() as u64) as usize;
        let Some((name, vm)) = vms.into_iter().nth(at) else { return };
        let (serving, ids) = (world.serving(), world.ids());
        let (Some(asked), Some(node)) = (Self::some_of(world, &serving), Self::some_of(world, &ids)) else { return };
        let Some(volume) = world.newest(vm.volume).filter(|volume| volume.owner != node) else { return };
        let follows = volume.replicas.contains(&node);
        let then = match (world.draw.happens(300), follows) {
            (false, _) => Then::Nothing,
            (true, false) => Then::Owns,
            (true, true) => Then::Returns,
        };
        self.ask_for_replicas(world, asked, &name, (node, follows), then);
    }

    fn ask_for_replicas(
        &self,
        world: &World,
        asked: NodeId,
        volume: &str,
        (node, follows): (NodeId, bool),
        then: Then,
    ) {
        let verb = if follows { "follows no more" } else { "follows" };
        let what = format!("{node} {verb} {volume}{}", then.told());
        world.history.tell(world.now, format!("{what}, asked of {asked}"));
        let destination = NAMES[node.0 as usize - 1].to_owned();
        let add = ChangeReplicas { add: vec![destination.clone()], ..ChangeReplicas::default() };
        let remove = ChangeReplicas { remove: vec![destination.clone()], ..ChangeReplicas::default() };
        let (history, name) = (world.history.clone(), volume.to_owned());
        let Some(machine) = world.machines.get(&asked) else { return };
        machine.spawn(|running, time| {
            let admin = running.parts.admin.clone();
            async move {
                let first = if follows { remove } else { add.clone() };
                let outcome = admin.change_replicas(&name, first).await.map(|report| report.state).map_err(text);
                history.tell(time.now(), format!("{what}: {outcome:?}"));
                let next = match then {
                    _ if outcome.is_err() => return,
                    Then::Nothing => return,
                    Then::Owns => {
                        let order = Migrate { to: destination, synced: false, accept_unmet: false, deadline_ms: None };
                        admin.migrate(&name, order).await.map(drop).map_err(text)
                    }
                    Then::Returns => admin.change_replicas(&name, add).await.map(drop).map_err(text),
                };
                history.tell(time.now(), format!("{what}, then: {next:?}"));
            }
        });
    }
}
