//! Stores that take nothing more: what they have of the volume, and what is lost with them.

use crate::world::{Message, Process, World, Write};

/// What a store that takes nothing more has of the volume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stored {
    /// What its node has.
    All,
    /// The last write is lost, which nobody was told to be durable.
    Less,
    /// The last write is there, and was refused.
    More,
}

/// The store of `process` takes nothing more.
pub(crate) fn fail(process: &mut Process, stored: Stored) {
    process.failed = true;
    let writes = process.writes.clone();
    match stored {
        Stored::All => {}
        Stored::Less => process.stored = Some(writes[..writes.len() - 1].to_vec()),
        Stored::More => {
            // It is not carried out here, and whoever asked for it is not answered yet.
            process.pending = None;
            process.writes.pop();
            process.known = process.writes.clone();
            process.stored = Some(writes);
        }
    }
}

/// What others may be told of: nobody hears of what is not durable.
pub(crate) fn durable(process: &Process) -> Vec<Write> {
    let lacks = process.stored.as_ref().filter(|stored| stored.len() < process.writes.len());
    lacks.unwrap_or(&process.writes).clone()
}

/// Whether nobody was told of its last write, so that it need not be durable; or carried out, if it is not acked.
pub(crate) fn is_untold(world: &World, node: usize) -> bool {
    let (process, other) = (&world.nodes[node], &world.nodes[1 - node]);
    let Some(last) = process.writes.last() else { return false };
    let is_told = |message: &Message| match message {
        Message::Delta { writes, .. } | Message::Prepare { writes, .. } => writes.contains(last),
        Message::Ask { enclosed, .. } => enclosed.as_ref().is_some_and(|writes| writes.contains(last)),
        _ => false,
    };
    process.handover.is_none()
        && last.0 == process.epoch.0
        && !other.writes.contains(last)
        && !other.known.contains(last)
        && !world.messages.iter().any(is_told)
}

/// What was acked and is lost with the store, as with the power, unless the next owner has it.
pub(crate) fn forget_lost(world: &mut World, node: usize) {
    let (process, other, enclosed) = (&world.nodes[node], &world.nodes[1 - node], world.enclosed());
    let Some(stored) = &process.stored else { return };
    let is_lost = |write: &Write| {
        process.writes.contains(write)
            && ![stored, &other.writes, &enclosed].iter().any(|writes| writes.contains(write))
    };
    let lost: Vec<Write> = process.writes.iter().copied().filter(is_lost).collect();
    world.acked.retain(|write| !lost.contains(write));
    world.ever_acked.retain(|write| !lost.contains(write));
}
