//! How long a writer waits for a handover, in round trips: nothing else takes time here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::wire::admin::Migrate;
use client_lib::{BLOCK_SIZE, NodeId};
use nbd_frontend::export::ExportDirectory;

use super::world::{NAMES, World, text};
use crate::serve::admin::Admin;

/// One way between any two of the machines.
const ONE_WAY: Duration = Duration::from_millis(50);
/// How long a quiet cluster is left alone between two moves.
const REST: Duration = Duration::from_millis(1_700);
/// What a window of the simulation, and looking again after a freeze, may add, in round trips.
const SLACK: f64 = 0.2;
/// Every ordered pair of three nodes, each move beginning where the one before ended.
const TOUR: [u64; 7] = [1, 2, 3, 1, 3, 2, 1];

/// What the writes of a session took, while it ran.
#[derive(Clone, Default)]
struct Writes {
    is_over: Arc<AtomicBool>,
    longest: Arc<Mutex<Duration>>,
}

impl Writes {
    /// Forgets what the writes before took.
    fn begin(&self) {
        *self.longest.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
    }

    fn note(&self, took: Duration) {
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = took.max(*longest);
    }
}

/// A cluster whose machines are all as far from each other.
fn equidistant(seed: u64) -> World {
    let world = World::found(seed, 3, None);
    for from in world.ids() {
        for to in world.ids() {
            world.network.change(from, to, |link| (link.delay, link.jitter) = (ONE_WAY, Duration::ZERO));
        }
    }
    world
}

/// Writes one block after the other at `node`, until it is told that it is over.
fn write_at(world: &World, node: NodeId) -> Writes {
    let writes = Writes::default();
    let (all, machine) = (writes.clone(), &world.machines[&node]);
    machine.spawn(|running, time| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.expect("it is exported");
            while !all.is_over.load(Ordering::Relaxed) {
                let asked = time.now();
                session.write(0, Bytes::from(vec![1; BLOCK_SIZE as usize]), false).await.expect("is written");
                all.note(time.now() - asked);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    writes
}

/// Moves the volume while it is written: the longest wait of a write, in round trips.
fn moved(world: &mut World, writes: &Writes, from: NodeId, to: NodeId) -> f64 {
    world.run_for(REST);
    writes.begin();
    let destination = NAMES[to.0 as usize - 1].to_owned();
    let done = world.answer(from, Duration::from_secs(10), |running| {
        let admin = running.parts.admin.clone();
        let order = Migrate { to: destination, synced: false, accept_unmet: false, deadline_ms: None };
        async move { admin.migrate("v", order).await.map(drop).map_err(text) }
    });
    done.expect("it answers").expect("is moved");
    world.run_for(REST);
    let longest = *writes.longest.lock().unwrap_or_else(PoisonError::into_inner);
    longest.as_secs_f64() / (ONE_WAY * 2).as_secs_f64()
}

/// A round trip to the new owner and back is in it, for what was held.
#[test]
fn a_writer_waits_for_two_round_trips_or_half_a_one_more_where_others_lead_the_metadata() {
    let mut world = equidistant(1);
    world.create("v", NodeId(1));
    world.guests.place("v", None);
    for pair in TOUR.windows(2) {
        let (from, to) = (NodeId(pair[0]), NodeId(pair[1]));
        let writes = write_at(&world, from);
        // There, back to who writes, and there again.
        for (from, to) in [(from, to), (to, from), (from, to)] {
            let took = moved(&mut world, &writes, from, to);
            let leader = world.machines[&from].running().and_then(|running| running.parts.meta.leader());
            let bar = if leader == Some(from) || leader == Some(to) { 2.0 } else { 2.5 };
            assert!(took < bar + SLACK, "from {from} to {to}, led by {leader:?}: {took:.2} round trips");
        }
        writes.is_over.store(true, Ordering::Relaxed);
        world.run_for(REST);
    }
}
