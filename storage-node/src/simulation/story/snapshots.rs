//! Snapshots: made and deleted.

use client_lib::wire::admin::CreateSnapshot;

use super::Story;
use crate::serve::admin::Admin;
use crate::simulation::machine::Running;
use crate::simulation::world::{World, text};

impl Story {
    pub(super) fn snapshot(&mut self, world: &mut World) {
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
}
