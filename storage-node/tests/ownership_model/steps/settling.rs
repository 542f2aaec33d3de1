//! Whether everything comes to rest by itself: the volume served, and nothing under way.

use super::{Action, Protocol};
use crate::QUIET;
use crate::explorer::Model;
use crate::world::{Budget, Process, VOLUME, World, id};

/// Longest fair run to an orderly state, in rounds.
const ROUNDS_MAX: usize = 40;

impl Protocol {
    /// Lets everything go on in a fair order and without further faults.
    ///
    /// # Errors
    /// When the volume is not served, or something is still under way, when that has had time enough.
    pub(super) fn settles(&self, world: &mut World) -> Result<(), String> {
        world.budget = Budget { ticks: u8::MAX, timeouts: u8::MAX, renewals: u8::MAX, ..QUIET };
        let mut actions = Vec::new();
        for _ in 0..ROUNDS_MAX {
            // Everything but time, until nothing is left to do.
            loop {
                actions.clear();
                self.actions(world, &mut actions);
                let next = actions.iter().find(|action| !is_idle(action));
                let Some(action) = next else { break };
                self.step(world, action)?;
                self.check(world)?;
            }
            // Where leases last for ever, an owner that is well is waited for as long.
            let may_wait = !self.leases && !world.meta.get().has_stepped_down(VOLUME);
            let waits = |process: &Process| may_wait && process.wait.is_some();
            let is_over =
                |process: &Process| process.handover.is_none() && (process.takeover.is_none() || waits(process));
            // A node whose store has failed serves nothing until somebody restarts it, or has another one take over.
            let owner = world.nodes.iter().zip(0..).find(|(_, node)| world.meta.volume().owner == id(*node));
            let is_lost = owner.is_some_and(|(process, _)| process.failed && process.stepping_down.is_none());
            let is_served = is_lost || world.nodes.iter().any(Process::serves_writes);
            if is_served && world.nodes.iter().all(is_over) {
                return Ok(());
            }
            self.step(world, &Action::Tick { slow: None })?;
            for node in 0..2 {
                if world.nodes[node].wait.is_some() {
                    self.look(world, node);
                } else if world.nodes[node].preparing {
                    // Its message was lost.
                    self.step(world, &Action::Cancel(node))?;
                }
            }
        }
        Err("the volume is not served again".to_owned())
    }
}

/// What a fair run leaves to its own rhythm.
pub(super) fn is_idle(action: &Action) -> bool {
    matches!(action, Action::Tick { .. } | Action::Look(_) | Action::Cancel(_) | Action::Flush(_))
}
