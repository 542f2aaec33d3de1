//! A disk that does not answer, under a group of volumes: writers are held for it, but not without end.

use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::{CreateSnapshot, Migrate};
use nbd_frontend::export::ExportDirectory;

use super::client::{BLOCK, block};
use super::machine::Running;
use super::world::{World, text};
use crate::serve::admin::Admin;

const A: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes `name` at a, if that is acked.
fn written(world: &mut World, name: &'static str) -> Option<()> {
    let written = world.answer(A, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open(name).await.map_err(text)?;
            session.write(u64::from(BLOCK), block(1), false).await.map_err(text)
        }
    });
    written.map(|written| written.expect("is written"))
}

/// A world of three, with these volumes of a, that nobody uses.
fn world(seed: u64, names: &[&'static str]) -> World {
    let mut world = World::found_at(seed, 3, false, None);
    for name in names {
        world.create(name, A);
        world.guests.place(name, None);
    }
    world
}

fn hangs(world: &World, hangs: bool) {
    world.machines[&A].disk.hold_syncs(hangs);
}

/// The disk of one volume of a group hung, and whoever made a snapshot of the group held the writers of all its volumes until that disk answered
/// again. Here it is the disk of both: plain writes need no sync. A move held nobody yet, and was not ended by its deadline nor by `--cancel`.
#[test]
fn a_disk_that_does_not_answer_holds_the_writers_of_a_group_for_some_seconds_at_the_most() {
    let mut world = world(41, &["v", "w"]);
    world.group("g", A);
    world.run_for(Duration::from_secs(3));
    assert!(written(&mut world, "v").is_some() && written(&mut world, "w").is_some());
    hangs(&world, true);
    let snapshot = world.ask(A, |running| {
        let admin = running.parts.admin.clone();
        let request = CreateSnapshot { name: "s".to_owned() };
        async move { admin.snapshot_group("g", request).await.map(drop).map_err(text) }
    });
    world.run_for(Duration::from_secs(1));
    assert!(snapshot.get().is_none(), "it waits for the disk");
    assert!(written(&mut world, "v").is_some(), "writers go on while the disk hangs");
    assert!(world.run_until(PATIENCE, |_| snapshot.get().is_some()), "it is answered");
    let refused = snapshot.get().cloned().expect("is there").expect_err("is not made");
    assert!(refused.contains("made of none of them"), "{refused}");

    fn migrate(running: &Running, deadline_ms: Option<u64>) -> impl Future<Output = Result<(), String>> + use<> {
        let admin = running.parts.admin.clone();
        let request = Migrate { to: "b".to_owned(), accept_unmet: false, synced: false, deadline_ms };
        async move { admin.migrate_group("g", request).await.map(drop).map_err(text) }
    }
    let moved = world.answer(A, PATIENCE, |running| migrate(running, Some(2_000))).expect("it answers");
    let kept = moved.expect_err("does not move");
    assert!(kept.contains("that were left, and stays where it is"), "{kept}");
    let moving = world.ask(A, |running| migrate(running, None));
    world.run_for(Duration::from_secs(1));
    let cancelled = world.answer(A, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { admin.cancel_group_migrate("g").await.map(|cancelled| cancelled.handover).map_err(text) }
    });
    assert_eq!(cancelled, Some(Ok(true)));
    assert!(world.run_until(PATIENCE, |_| moving.get().is_some()), "it is ended");
    assert!(written(&mut world, "w").is_some(), "writers go on while the disk hangs");

    hangs(&world, false);
    world.run_for(Duration::from_secs(3));
    let moved = world.answer(A, PATIENCE, |running| migrate(running, None)).expect("it answers");
    assert_eq!(moved, Ok(()), "nothing is left of what was given up");
    assert_eq!(world.owner("w"), Some(NodeId(2)));
    assert_eq!(world.panics(), 0);
}
