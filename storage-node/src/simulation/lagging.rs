//! Replicas that lag: what is in memory for them, what flushes wait for, what they say of themselves meanwhile; and an owner that has no room for what it
//! lacks. Directed stories, without chance.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::wire::admin::{ChangePolicy, CreateSnapshot, Migrate};
use client_lib::{BLOCK_SIZE, Lsn, NodeId, VolumeId};
use nbd_frontend::export::ExportDirectory;

use super::world::{NAMES, World, text};
use crate::peer::links::budget::BUDGET_MAX;
use crate::peer::message::PeerReply;
use crate::propagation::receiver;
use crate::serve::admin::Admin;
use crate::serve::volume::ServedVolume;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks of a request.
const RUN_BLOCKS: u64 = 64;
/// More than goes to a replica in one delivery.
const MANY: u64 = 640;

/// Writes these blocks of volume v at `node`, each with this byte, and flushes them if so.
fn write(world: &mut World, node: NodeId, blocks: Range<u64>, fill: u8, flushes: bool) {
    let written = world.answer(node, PATIENCE, move |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            let mut start = blocks.start;
            while start < blocks.end {
                let count = RUN_BLOCKS.min(blocks.end - start);
                let data = Bytes::from(vec![fill; (count * u64::from(BLOCK_SIZE)) as usize]);
                session.write(start * u64::from(BLOCK_SIZE), data, false).await.map_err(text)?;
                start += count;
            }
            if flushes { session.flush().await.map_err(text) } else { Ok(()) }
        }
    });
    written.expect("it answers").expect("is written");
}

fn served(world: &World, node: NodeId, volume: VolumeId) -> Arc<ServedVolume> {
    let running = world.machines[&node].running().expect("serves");
    running.parts.exports.served(volume).expect("is there")
}

/// Whether what the owner knows of `replica` is that it has everything.
fn is_in_step(world: &mut World, owner: NodeId, replica: NodeId) -> bool {
    let (status, name) = (world.status("v", owner), NAMES[replica.0 as usize - 1]);
    status.replicas.iter().any(|replica| replica.node == name && replica.watermark == status.head)
}

fn lazy() -> ChangePolicy {
    let (propagation, interval_ms) = (Some("lazy".to_owned()), Some(3_600_000));
    ChangePolicy { propagation, interval_ms, ..ChangePolicy::default() }
}

/// What is read for a replica was counted by nobody ([`crate::peer::links::budget`] has the story).
#[test]
fn what_is_pushed_to_a_replica_is_counted_until_it_is_there() {
    let mut world = World::found_at(1, 3, false, None);
    let volume = world.create_unused("v", A, 1024);
    world.run_for(Duration::from_secs(3));
    world.network.change(A, B, |link| (link.delay, link.jitter) = (Duration::from_millis(300), Duration::ZERO));
    write(&mut world, A, 0..MANY, 1, false);
    let on_their_way = |world: &World| served(world, A, volume).peers.links().on_their_way(B);
    assert!(world.run_until(PATIENCE, |world| on_their_way(world) != (0, 0)), "it is on its way");
    let (awaited, rest) = on_their_way(&world);
    assert!(awaited == 0 && rest <= BUDGET_MAX && rest >= u64::from(BLOCK_SIZE), "{awaited} and {rest}");
    world.run_for(Duration::from_secs(10));
    assert!(is_in_step(&mut world, A, B));
    assert_eq!((on_their_way(&world), world.panics()), ((0, 0), 0), "what is there is in nobody's way");
}

/// A flush in a class that only lazy replicas could meet, and with more behind it than goes in one delivery, waited for their interval; and its sender looked
/// for something to deliver all the while, without a pause: here, where time goes on when nobody has anything to do, it stood still.
#[test]
fn a_flush_that_lazy_replicas_must_meet_has_them_sent_everything_at_once() {
    let mut world = World::found_at(1, 3, false, None);
    world.create_unused("v", A, 2 * MANY as u32);
    world.set_policy("v", A, ChangePolicy { durability: Some("geo:1".to_owned()), ..lazy() });
    world.run_for(Duration::from_secs(3));
    // The first delta of a lazy replica waits for nothing.
    for (round, fill) in [(0, 1), (1, 2), (0, 3)] {
        let begun = world.now;
        write(&mut world, A, round * MANY..(round + 1) * MANY, fill, true);
        let took = world.now - begun;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    assert_eq!(world.panics(), 0);
}

/// What a replica says that it knows is what goes on from there in a handover, so it must be durable. While it was made so the replica was told more, and
/// said that it knew that, too.
#[test]
fn what_a_replica_is_told_while_it_syncs_is_not_what_it_says_that_it_knows() {
    let mut world = World::found_at(1, 3, false, None);
    let volume = world.create_unused("v", A, 64);
    world.run_for(Duration::from_secs(3));
    let known = |world: &mut World| {
        let served = served(world, B, volume);
        let report = world.answer(B, PATIENCE, |_| async move {
            served.shard.report(volume).await.map_err(|error| error.to_string())
        });
        report.expect("it answers").expect("tells").known
    };
    let told_more = |world: &mut World, blocks: Range<u64>| {
        let before = known(world);
        write(world, A, blocks, 1, true);
        for _ in 0..100 {
            world.run_for(Duration::from_millis(20));
            if known(world) > before {
                return known(world);
            }
        }
        panic!("b is told nothing");
    };
    world.machines[&B].disk.hold_syncs(true);
    let first = told_more(&mut world, 0..1);
    let asked = served(&world, B, volume);
    let says = world.ask(B, |_| async move {
        match receiver::status(&asked).await {
            PeerReply::Position(position) => Some(position.known),
            _ => None::<Lsn>,
        }
    });
    world.run_for(Duration::from_millis(100));
    assert!(says.get().is_none(), "it syncs");
    let second = told_more(&mut world, 1..2);
    assert!(says.get().is_none() && second > first);
    world.machines[&B].disk.hold_syncs(false);
    for _ in 0..100 {
        // Its disk is looked at again with each request.
        known(&mut world);
        world.run_for(Duration::from_millis(20));
    }
    assert_eq!((says.get(), world.panics()), (Some(&Some(first)), 0));
}

/// A replica was told of a snapshot, which was deleted before it was pinned for it at the owner, and before the replica heard of that: it awaited it, and
/// its owner awaited that it would say so. It stayed behind until the next write.
#[test]
fn a_replica_goes_on_whose_snapshot_is_deleted_at_the_owner_first() {
    let mut world = World::found_at(1, 3, false, None);
    let leader = world.machines[&A].running().and_then(|running| running.parts.meta.leader()).expect("somebody leads");
    let others: Vec<NodeId> = world.ids().into_iter().filter(|id| *id != leader).collect();
    let (owner, late) = (others[0], others[1]);
    world.create_unused("v", owner, 64);
    for from in world.ids() {
        for to in world.ids() {
            // As `late` has it: less than it waits for the leader before it calls for a vote.
            let delay =
                if (from, to) == (leader, late) { Duration::from_millis(400) } else { Duration::from_millis(5) };
            world.network.change(from, to, |link| (link.delay, link.jitter) = (delay, Duration::ZERO));
        }
    }
    world.run_for(Duration::from_secs(5));
    for number in 0..24 {
        write(&mut world, owner, 0..2, number + 1, true);
        let made = world.answer(owner, PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            let name = format!("s{number}");
            async move { admin.create_snapshot("v", CreateSnapshot { name }).await.map(drop).map_err(text) }
        });
        made.expect("it answers").expect("is made");
        world.run_for(Duration::from_millis(10 * u64::from(number)));
        let deleted = world.answer(owner, PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.delete_snapshot("v", &format!("s{number}")).await.map_err(text) }
        });
        deleted.expect("it answers").expect("is deleted");
        world.run_for(Duration::from_secs(4));
        assert!(is_in_step(&mut world, owner, late), "{number}: {:?}", world.status("v", owner).replicas);
    }
    assert_eq!(world.panics(), 0);
}

/// A new owner whose store was full was sent all that it lacked again and again, at the rate of its link, and had room for none of it.
#[test]
fn a_new_owner_whose_store_is_full_is_sent_little_until_it_has_room() {
    const BLOCKS: u64 = 5 * 1024;
    let mut world = World::found_at(1, 3, false, None);
    world.create_unused("v", A, BLOCKS as u32);
    world.set_policy("v", A, ChangePolicy { replica: Some("b".to_owned()), ..lazy() });
    world.run_for(Duration::from_secs(3));
    // The segment that it writes to, and the next one, are there already.
    let disk = world.machines[&B].disk.clone();
    disk.set_capacity(disk.bytes());
    write(&mut world, A, 0..BLOCKS, 1, true);
    let moved = world.answer(A, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        let request = Migrate { to: "b".into(), synced: false, accept_unmet: false, deadline_ms: None };
        async move { admin.migrate("v", request).await.map(drop).map_err(text) }
    });
    moved.expect("it answers").expect("is handed over");
    world.run_for(Duration::from_secs(15));
    let sent = |world: &mut World| -> u64 {
        let links = world.answer(B, PATIENCE, |running| {
            let admin = running.parts.admin.clone();
            async move { admin.links().await.map_err(text) }
        });
        let links = links.expect("it answers").expect("tells").links;
        links.iter().filter(|link| link.to == "b").map(|link| link.freight.sent_bytes + link.freight.same_bytes).sum()
    };
    let (before, lacks) = (sent(&mut world), world.status("v", B).stale_bytes);
    world.run_for(Duration::from_secs(60));
    let more = sent(&mut world) - before;
    assert!(lacks > 0 && world.status("v", B).stale_bytes == lacks, "its store is full: this tests nothing");
    assert!(more <= lacks / 2, "{more} bytes were sent for nothing, of {lacks} that it lacks");
    disk.set_capacity(u64::MAX);
    world.run_for(Duration::from_secs(90));
    assert_eq!((world.status("v", B).stale_bytes, world.panics()), (0, 0), "there is room");
}
