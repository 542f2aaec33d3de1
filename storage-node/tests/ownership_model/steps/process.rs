//! What happens to a process as a whole, and to the writes that it holds.

use client_lib::Epoch;
use storage_node::ownership::expiry::Watch;
use storage_node::ownership::lease::{Keeper, Terms};

use crate::world::{DRIFT_PER_MILLE, Process, Write, end};

pub(super) fn thaw(process: &mut Process) {
    (process.frozen, process.freezing, process.transferring) = (false, false, false);
    (process.handover, process.question, process.rescues) = (None, None, false);
}

pub(super) fn step_down(process: &mut Process, epoch: Epoch) {
    (process.owner, process.epoch) = (false, epoch);
    (process.frozen, process.transferring, process.holding) = (false, false, false);
    process.pending = None;
}

pub(super) fn crash(process: &mut Process) {
    step_down(process, process.epoch);
    (process.up, process.started) = (false, false);
    (process.freezing, process.preparing) = (false, false);
    (process.handover, process.takeover, process.wait) = (None, None, None);
    (process.question, process.asking) = (None, None);
    (process.keeper, process.terms) = (Keeper::new(0), Terms::default());
    process.watch = Watch::new(DRIFT_PER_MILLE);
    process.applied_there = 0;
    (process.failed, process.ceased, process.stepping_down) = (false, None, None);
    process.rescues = false;
    if let Some(stored) = process.stored.take() {
        (process.writes, process.known) = (stored.clone(), stored);
    }
}

pub(super) fn encoded(writes: &[Write]) -> Vec<u8> {
    postcard::to_stdvec(writes).expect("plain data")
}

/// What a replica has after it was sent `writes`: those after its own end, as LSNs order them.
pub(super) fn extended(held: &[Write], writes: &[Write]) -> Result<Vec<Write>, String> {
    let from = end(held);
    let is_news = |(index, write): &(usize, &Write)| (write.0, *index as u64 + 1) > (from.epoch.0, from.sequence);
    let news = writes.iter().enumerate().filter(is_news).map(|(_, write)| *write);
    let extended: Vec<Write> = held.iter().copied().chain(news).collect();
    let is_prefix = extended.starts_with(writes) || writes.starts_with(&extended);
    if is_prefix { Ok(extended) } else { Err(format!("a mix: {held:?} and {writes:?} became {extended:?}")) }
}
