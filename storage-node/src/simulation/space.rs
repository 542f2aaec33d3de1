//! What a replica that is away costs: space and traffic in proportion to the blocks that differ, not to what was written meanwhile.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use client_lib::wire::admin::ReplicaStatus;
use client_lib::{BLOCK_SIZE, NodeId};
use nbd_frontend::export::ExportDirectory;

use super::guest::BLOCKS;
use super::world::World;
use crate::log::segment::SEGMENT_BYTES_MIN;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
/// What is written while a replica is away: three times what a store may take.
const WRITTEN_BYTES: u64 = 3 * STORE_BYTES_MAX;
/// What a store may take: four segments that it writes to or that wait for a checkpoint, and the twelve that it may keep to write to.
const STORE_BYTES_MAX: u64 = 16 * SEGMENT_BYTES_MIN;
const VOLUME_BYTES: u64 = BLOCKS as u64 * BLOCK_SIZE as u64;
const PATIENCE: Duration = Duration::from_secs(600);

/// Writes the whole volume at a, again and again, always something else, until it is enough.
fn write_much(world: &World) -> Arc<OnceLock<()>> {
    let done = Arc::new(OnceLock::new());
    let into = done.clone();
    world.machines[&A].spawn(|running, _| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.expect("it is exported");
            for round in 0..WRITTEN_BYTES / VOLUME_BYTES {
                for half in 0..2 {
                    let data: Vec<u8> = (0..VOLUME_BYTES / 2).map(|at| (at / 4096 + round + half) as u8 | 1).collect();
                    session.write(half * VOLUME_BYTES / 2, Bytes::from(data), false).await.expect("is written");
                }
            }
            // Set once, here.
            let _ = into.set(());
        }
    });
    done
}

fn replica(world: &mut World, node: &str) -> ReplicaStatus {
    let status = world.status("v", A);
    status.replicas.into_iter().find(|replica| replica.node == node).expect("is one")
}

#[test]
fn a_replica_that_is_away_costs_what_differs_and_not_what_was_written() {
    let mut world = World::found_at(1, 3, false, None);
    world.create("v", A);
    world.guests.place("v", None);
    world.run_for(Duration::from_secs(3));
    let before = replica(&mut world, "c").freight;
    for (from, to) in [(A, C), (C, A), (B, C), (C, B)] {
        world.network.change(from, to, |link| link.is_cut = true);
    }
    let done = write_much(&world);
    let mut most = 0;
    let is_done = world.run_until(PATIENCE, |world| {
        most = [A, B].iter().map(|id| world.machines[id].disk.bytes()).fold(most, u64::max);
        done.get().is_some()
    });
    assert!(is_done, "it is written");
    assert!(most <= STORE_BYTES_MAX, "{most} bytes are taken");

    for (from, to) in [(A, C), (C, A), (B, C), (C, B)] {
        world.network.change(from, to, |link| link.is_cut = false);
    }
    let head = world.status("v", A).head;
    let mut is_back = false;
    for _ in 0..120 {
        world.run_for(Duration::from_millis(500));
        is_back = replica(&mut world, "c").watermark == head;
        if is_back {
            break;
        }
    }
    assert!(is_back, "{:?}", replica(&mut world, "c"));
    let sent = replica(&mut world, "c").freight.sent_bytes - before.sent_bytes;
    // What was on its way when the link was cut may be sent once more.
    assert!(sent <= 2 * VOLUME_BYTES, "{sent} bytes are sent of a volume of {VOLUME_BYTES}");
    assert_eq!(world.panics(), 0);
}
