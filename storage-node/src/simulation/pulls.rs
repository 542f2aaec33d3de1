//! What a new owner fetches, and from whom: directed stories, without chance.

use std::time::Duration;

use client_lib::wire::admin::{ChangePolicy, Migrate, ReplicaStatus};
use client_lib::{BLOCK_SIZE, NodeId};

use super::world::{World, text};
use crate::serve::admin::Admin;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const PATIENCE: Duration = Duration::from_secs(60);
const KB4: u64 = BLOCK_SIZE as u64;

/// A cluster with a volume of node a, of which b is sent nothing for an hour and c everything; written by a guest for a while.
fn written(seed: u64) -> World {
    let mut world = World::found(seed, 3, None);
    world.create("v", A);
    let set = world.answer(A, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        let (propagation, interval_ms, replica) = (Some("lazy".to_owned()), Some(3_600_000), Some("b".to_owned()));
        let wanted = ChangePolicy { propagation, interval_ms, replica, ..ChangePolicy::default() };
        async move { admin.set_policy("v", wanted).await.map(drop).map_err(text) }
    });
    set.expect("it answers").expect("is set");
    world.run_for(Duration::from_secs(20));
    world.guests.place("v", None);
    let all_there = |world: &mut World| {
        let status = world.status("v", A);
        status.replicas.iter().any(|replica| replica.node == "c" && replica.watermark == status.head)
    };
    for _ in 0..60 {
        if all_there(&mut world) {
            return world;
        }
        world.run_for(Duration::from_secs(1));
    }
    panic!("c does not follow");
}

fn hand_over(world: &mut World) {
    let moved = world.answer(A, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move {
            let request = Migrate { to: "b".into(), synced: false, accept_unmet: false, deadline_ms: None };
            admin.migrate("v", request).await.map(drop).map_err(text)
        }
    });
    moved.expect("it answers").expect("is handed over");
}

/// Reads everything at b.
fn read_all(world: &mut World) {
    let read = world.answer(B, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = nbd_frontend::export::ExportDirectory::open(&*exports, "v").await.map_err(text)?;
            for block in 0..u64::from(super::guest::BLOCKS) {
                session.read(block * KB4, BLOCK_SIZE).await.map_err(text)?;
            }
            Ok::<(), String>(())
        }
    });
    read.expect("it answers").expect("is read");
}

/// What went to b from a and from c so far, as each of them counts it: sent, and named as zeroes.
fn sent_to_b(world: &mut World) -> [u64; 2] {
    let links = world.answer(B, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { admin.links().await.map_err(text) }
    });
    let links = links.expect("it answers").expect("tells").links;
    ["a", "c"].map(|from| {
        let link = links.iter().find(|link| link.from == from && link.to == "b").expect("is listed");
        link.freight.sent_bytes + link.freight.zero_bytes
    })
}

#[test]
fn the_nearest_that_has_it_is_asked_and_everything_is_accounted_for() {
    let mut world = written(2);
    // Some of it was sent to b ahead.
    let before = sent_to_b(&mut world);
    hand_over(&mut world);
    read_all(&mut world);
    let status = world.status("v", B);
    let fetch = status.fetch;
    assert_eq!(status.stale_bytes, 0);
    assert!(fetch.lacked_bytes > 10 * KB4, "{fetch:?}");
    let fetched = fetch.demanded_bytes + fetch.near_bytes + fetch.hot_bytes + fetch.rest_bytes;
    assert_eq!(fetched + fetch.overwritten_bytes, fetch.lacked_bytes, "{fetch:?}");
    assert!(fetch.hot_bytes > 0, "the last owner has told what was hot: {fetch:?}");
    // c is at the same provider.
    let [from_a, from_c] = sent_to_b(&mut world);
    let [from_a, from_c] = [from_a - before[0], from_c - before[1]];
    assert!(from_c > 4 * from_a, "{from_c} from c, {from_a} from a");
}

#[test]
fn an_answer_that_does_not_come_is_asked_of_another() {
    // Where no two are at one provider, the last owner is asked first.
    let mut world = written(3);
    for (from, to) in [(A, C), (C, A), (B, C), (C, B)] {
        world.network.change(from, to, |link| link.delay = Duration::from_millis(40));
    }
    for (from, to) in [(A, B), (B, A)] {
        world.network.change(from, to, |link| link.delay = Duration::from_millis(5));
    }
    hand_over(&mut world);
    // From here on what a says takes its time now and then: its round trip is as good as ever.
    world.network.change(A, B, |link| link.jitter = Duration::from_secs(2));
    read_all(&mut world);
    let fetch = world.status("v", B).fetch;
    assert!(fetch.hedged_calls > 0, "{fetch:?}");
}

/// Half a minute without the node that has a block ended in an I/O error for the guest that wanted it, whose new owner had everything else: the old one
/// had been restarted.
#[test]
fn a_block_whose_holder_is_out_of_reach_is_waited_for() {
    let mut world = quiet(3);
    let set = world.answer(A, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        let (propagation, interval_ms) = (Some("lazy".to_owned()), Some(3_600_000));
        let wanted = ChangePolicy { propagation, interval_ms, ..ChangePolicy::default() };
        async move { admin.set_policy("v", wanted).await.map(drop).map_err(text) }
    });
    set.expect("it answers").expect("is set");
    for generation in 1..4 {
        write(&mut world, generation);
        world.run_for(Duration::from_secs(2));
    }
    hand_over(&mut world);
    let cut = |world: &mut World, is_cut| {
        for (from, to) in [(A, B), (B, A)] {
            world.network.change(from, to, |link| link.is_cut = is_cut);
        }
    };
    cut(&mut world, true);
    let lacked = world.status("v", B).stale_bytes;
    let read = world.ask(B, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = nbd_frontend::export::ExportDirectory::open(&*exports, "v").await.map_err(text)?;
            for block in 0..u64::from(super::guest::BLOCKS) {
                session.read(block * KB4, BLOCK_SIZE).await.map_err(text)?;
                session.write(block * KB4 + 512, vec![7; 512].into(), false).await.map_err(text)?;
            }
            Ok::<(), String>(())
        }
    });
    world.run_for(Duration::from_secs(4));
    assert!(lacked > 0 && read.get().is_none(), "{lacked} bytes were lacking");
    world.run_for(Duration::from_secs(16));
    cut(&mut world, false);
    world.run_until(PATIENCE, |_| read.get().is_some());
    read.get().cloned().expect("it answers").expect("is read and written");
}

/// Writes blocks at a, each of its number and `generation`.
fn write(world: &mut World, generation: u8) {
    let written = world.answer(A, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = nbd_frontend::export::ExportDirectory::open(&*exports, "v").await.map_err(text)?;
            for block in 0..super::guest::BLOCKS as u8 {
                let data = vec![[block, generation]; BLOCK_SIZE as usize / 2].concat();
                session.write(u64::from(block) * KB4, data.into(), false).await.map_err(text)?;
            }
            session.flush().await.map_err(text)
        }
    });
    written.expect("it answers").expect("is written");
}

/// Waits until the replicas at `nodes` have everything; what they were sent.
fn in_step(world: &mut World, nodes: &[&str]) -> Vec<ReplicaStatus> {
    for _ in 0..120 {
        let status = world.status("v", A);
        let all: Vec<ReplicaStatus> =
            status.replicas.into_iter().filter(|replica| nodes.contains(&replica.node.as_str())).collect();
        if all.len() == nodes.len() && all.iter().all(|replica| replica.watermark == status.head) {
            return all;
        }
        world.run_for(Duration::from_millis(500));
    }
    panic!("{nodes:?} do not follow: {:?}", world.status("v", A).replicas);
}

/// A cluster with a volume that nobody writes by himself.
fn quiet(seed: u64) -> World {
    let mut world = World::found(seed, 3, None);
    world.create("v", A);
    world.guests.place("v", None);
    world.run_for(Duration::from_secs(3));
    world
}

#[test]
fn what_is_written_again_as_it_was_is_named_and_not_sent() {
    let mut world = quiet(3);
    write(&mut world, 1);
    let before = in_step(&mut world, &["b", "c"]);
    write(&mut world, 1);
    for (now, before) in in_step(&mut world, &["b", "c"]).iter().zip(&before) {
        let (now, before) = (now.freight, before.freight);
        assert!(now.same_bytes > before.same_bytes, "{now:?}");
        assert_eq!(now.sent_bytes, before.sent_bytes, "{now:?}");
        assert_eq!(now.written_bytes, now.sent_bytes + now.zero_bytes + now.same_bytes + now.overwritten_bytes);
    }
    write(&mut world, 2);
    for now in in_step(&mut world, &["b", "c"]) {
        assert!(now.freight.sent_bytes > 0, "what differs is sent: {:?}", now.freight);
    }
    hand_over(&mut world);
    read_all(&mut world);
    assert_eq!(world.status("v", B).stale_bytes, 0);
}

#[test]
fn of_two_replicas_at_a_provider_one_has_it_from_the_other_and_from_the_owner_when_that_is_gone() {
    // b and c are at one provider.
    let mut world = quiet(2);
    let mut generation = 0;
    let mut rewrite = |world: &mut World| {
        generation += 1;
        write(world, generation);
    };
    let relayed = |all: &[ReplicaStatus]| -> Vec<u64> { all.iter().map(|one| one.freight.relayed_bytes).collect() };
    for _ in 0..5 {
        rewrite(&mut world);
        in_step(&mut world, &["b", "c"]);
    }
    let all = in_step(&mut world, &["b", "c"]);
    let (b, c) = (relayed(&all)[0], relayed(&all)[1]);
    assert!((b == 0) != (c == 0), "{b} and {c} relayed");
    let (lead, other, other_id, name) = if b == 0 { (B, "c", C, "b") } else { (C, "b", B, "c") };
    let sent =
        |all: &[ReplicaStatus], node: &str| all.iter().find(|one| one.node == node).expect("is one").freight.sent_bytes;
    assert!(sent(&all, other) * 2 < sent(&all, name), "{all:?}");

    // The lead is cut off, from the owner alone and then from its neighbour too, while it is fetched from.
    for (from, to) in [(A, lead), (lead, A), (other_id, lead), (lead, other_id)] {
        rewrite(&mut world);
        world.run_for(Duration::from_millis(150));
        world.network.change(from, to, |link| link.is_cut = true);
        in_step(&mut world, &[other]);
    }
    for (from, to) in [(A, lead), (lead, A), (other_id, lead), (lead, other_id)] {
        world.network.change(from, to, |link| link.is_cut = false);
    }
    rewrite(&mut world);
    in_step(&mut world, &["b", "c"]);
    assert_eq!(world.panics(), 0);
}

/// The deltas of the two were sealed one after the other once: what a guest wrote in between, and wrote again, crossed twice.
#[test]
fn a_load_that_goes_on_crosses_once_to_a_provider() {
    let mut world = World::found(2, 3, None);
    world.create("v", A);
    world.run_for(Duration::from_secs(60));
    world.guests.place("v", None);
    let mut sent: Vec<u64> = in_step(&mut world, &["b", "c"]).iter().map(|one| one.freight.sent_bytes).collect();
    sent.sort_unstable();
    assert!(sent[0] * 4 < sent[1], "{sent:?}");
    assert_eq!(world.panics(), 0);
}
