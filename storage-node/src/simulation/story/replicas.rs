//! Which nodes follow a volume: added and removed while everything else goes on.

use client_lib::NodeId;
use client_lib::wire::admin::{ChangeReplicas, Migrate};

use super::Story;
use crate::serve::admin::Admin;
use crate::simulation::world::{NAMES, World, text};

impl Story {
    /// Some node is to follow a volume that does not, or the other way round. Whether it does is seen in the metadata.
    pub(super) fn change_replicas(&mut self, world: &mut World) {
        let vms = world.guests.vms();
        let at = world.draw.below(vms.len() as u64) as usize;
        let Some((name, vm)) = vms.into_iter().nth(at) else { return };
        let (serving, ids) = (world.serving(), world.ids());
        let (Some(asked), Some(node)) = (Self::some_of(world, &serving), Self::some_of(world, &ids)) else { return };
        let Some(volume) = world.newest(vm.volume).filter(|volume| volume.owner != node) else { return };
        let destination = NAMES[node.0 as usize - 1];
        let named = vec![destination.to_owned()];
        let (request, verb, to) = match volume.replicas.contains(&node) {
            true => (ChangeReplicas { remove: named, ..ChangeReplicas::default() }, "follows no more", None),
            false => {
                // Into the first moments of its initial sync.
                let to = world.draw.happens(300).then_some(destination);
                (ChangeReplicas { add: named, ..ChangeReplicas::default() }, "follows", to)
            }
        };
        let then = if to.is_some() { ", and is to own it at once" } else { "" };
        self.ask_for_replicas(world, asked, &name, request, to, format!("{node} {verb} {name}{then}"));
    }

    fn ask_for_replicas(
        &self,
        world: &World,
        asked: NodeId,
        volume: &str,
        request: ChangeReplicas,
        to: Option<&'static str>,
        what: String,
    ) {
        world.history.tell(world.now, format!("{what}, asked of {asked}"));
        let (history, name) = (world.history.clone(), volume.to_owned());
        if let Some(machine) = world.machines.get(&asked) {
            machine.spawn(|running, time| {
                let admin = running.parts.admin.clone();
                async move {
                    let outcome = admin.change_replicas(&name, request).await.map(|report| report.state).map_err(text);
                    history.tell(time.now(), format!("{what}: {outcome:?}"));
                    if let (Some(to), Ok(_)) = (to, outcome) {
                        let order =
                            Migrate { to: to.to_owned(), synced: false, accept_unmet: false, deadline_ms: None };
                        let outcome = admin.migrate(&name, order).await.map(drop).map_err(text);
                        history.tell(time.now(), format!("{name} to {to} at once: {outcome:?}"));
                    }
                }
            });
        }
    }
}
