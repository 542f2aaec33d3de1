//! A store that fails while its node lives: the owner steps down, and a replica takes the volume over.

use std::time::Duration;

use client_lib::wire::admin::{AskTakeover, ChangePolicy};
use client_lib::{ErrorKind, NodeId};
use nbd_frontend::export::ExportDirectory;

use super::client::{BLOCK, block, first_byte};
use super::world::{World, text};
use crate::serve::admin::Admin;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const PATIENCE: Duration = Duration::from_secs(60);
/// Less than what is left of a lease that is renewed all the time.
const AT_ONCE: Duration = Duration::from_secs(3);

/// What a new session at `node` reads of a block of `volume`.
fn read(world: &mut World, node: NodeId, volume: &'static str, index: u64) -> Result<u8, String> {
    let read = world.answer(node, PATIENCE, move |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open(volume).await.map_err(text)?;
            first_byte(&*session, index).await.map_err(text)
        }
    });
    read.expect("it answers")
}

/// Volumes v and w of a, written and flushed, which both others follow; then the log of a fails, with a write in it that nobody has heard of.
/// A session of a that used v stays, and tells the kind of error that it gets when it reads once the volume is another's.
fn with_a_failed_store(automatic: bool) -> (World, std::sync::Arc<std::sync::OnceLock<ErrorKind>>) {
    let mut world = World::found_at(7, 3, false, None);
    // Else v would be handed over at once.
    world.machines.get_mut(&A).expect("is there").rescues = false;
    world.kill(A, false);
    world.boot(A);
    assert!(world.run_until(PATIENCE, |world| world.machines[&A].is_serving()), "{:?}", world.failures());
    for name in ["v", "w"] {
        world.create(name, A);
        world.guests.place(name, None);
    }
    if automatic {
        let wanted = ChangePolicy { takeover_after_ms: Some(Some(1_000)), ..ChangePolicy::default() };
        world.set_policy("v", A, wanted);
    }
    world.run_for(Duration::from_secs(3));
    for name in ["v", "w"] {
        let written = world.answer(A, PATIENCE, |running| {
            let exports = running.parts.exports.clone();
            async move {
                let session = exports.open(name).await.map_err(text)?;
                for index in 0..3 {
                    session.write(index * u64::from(BLOCK), block(1), false).await.map_err(text)?;
                }
                session.flush().await.map_err(text)
            }
        });
        written.expect("it answers").expect("is written");
        let head = world.status(name, A).head;
        let mut follow = false;
        for _ in 0..100 {
            world.run_for(Duration::from_millis(100));
            follow = world.status(name, A).replicas.iter().all(|replica| replica.watermark == head);
            if follow {
                break;
            }
        }
        assert!(follow, "the replicas of {name} follow");
    }
    let disk = world.machines[&A].disk.clone();
    let refused = world.answer(A, PATIENCE, move |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            session.write(u64::from(BLOCK), block(2), false).await.map_err(text)?;
            disk.fail_after(0);
            let refused = session.write(2 * u64::from(BLOCK), block(3), false).await;
            Ok::<_, String>(refused.map_err(|error| error.kind()))
        }
    });
    assert_eq!(refused, Some(Ok(Err(ErrorKind::Internal))), "its store takes no writes");
    let told = world.ask(A, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.expect("it is exported");
            loop {
                if let Err(error) = first_byte(&*session, 1).await {
                    return error.kind();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    (world, told)
}

/// Of the volume that another node owns by now, and of the old owner, whose process lives; and when that is restarted with a disk in order.
fn goes_on_elsewhere(mut world: World, told: &std::sync::OnceLock<ErrorKind>) {
    let owner = world.owner("v").expect("is owned");
    assert_ne!(owner, A);
    let lease = world.machines[&B].running().expect("serves").parts.meta.state().lease(A);
    assert_eq!((lease.is_out, lease.lapses), (false, 0), "nobody waited for it, and a keeps its other volumes");
    assert!(world.run_until(PATIENCE, |_| told.get().is_some()), "who used the volume before is told");
    assert_eq!(told.get(), Some(&ErrorKind::Fenced));
    assert_eq!(read(&mut world, A, "w", 0), Ok(1), "of the other volume in that store reads are served");
    assert_eq!(world.owner("w"), Some(A));
    assert_eq!(read(&mut world, owner, "v", 0), Ok(1));
    assert_eq!(read(&mut world, A, "v", 0), Ok(1), "who connects anew is served from there");
    assert_eq!(read(&mut world, A, "v", 1), Ok(1), "what nobody had heard of is no part of the volume");
    let written = world.answer(owner, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            session.write(u64::from(BLOCK), block(9), true).await.map_err(text)
        }
    });
    assert_eq!(written, Some(Ok(())));

    world.kill(A, false);
    world.boot(A);
    assert!(world.run_until(PATIENCE, |world| world.machines[&A].is_serving()), "{:?}", world.failures());
    let mut tail = None;
    for _ in 0..200 {
        world.run_for(Duration::from_millis(100));
        let status = world.status("v", owner);
        tail = status.replicas.into_iter().find(|replica| replica.node == "a").and_then(|replica| replica.tail);
        if tail.is_some() {
            break;
        }
    }
    let tail = tail.expect("the old owner has left the volume, and keeps what nobody else has");
    assert!(tail.writes >= 1, "{tail:?}");
    let export: &'static str = tail.export.leak();
    assert_eq!(read(&mut world, A, export, 1), Ok(2));
    assert_eq!(read(&mut world, A, "v", 1), Ok(9), "it serves the volume from the new owner");
    // The other one is its own again, with writes.
    let written = world.answer(A, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("w").await.map_err(text)?;
            session.write(0, block(5), true).await.map_err(text)
        }
    });
    assert_eq!((written, world.panics()), (Some(Ok(())), 0));
}

/// The owner kept its lease, so the volume could neither be written, nor handed over, nor taken over, until somebody stopped the node.
#[test]
fn who_is_asked_for_a_takeover_has_an_owner_step_down_whose_store_has_failed() {
    let (mut world, told) = with_a_failed_store(false);
    world.run_for(Duration::from_secs(5));
    let status = world.status("v", A);
    assert!(status.fault.is_some() && !status.stepped_down, "nobody has asked");
    assert_eq!(read(&mut world, A, "v", 1), Ok(2), "reads are served");
    let begun = world.now;
    let taken = world.answer(B, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { admin.take_over("v", AskTakeover::default()).await.map(|report| report.from).map_err(text) }
    });
    assert_eq!(taken, Some(Ok("a".to_owned())));
    let took = world.now - begun;
    assert!(took < AT_ONCE, "its lease is not waited for: {took:?}");
    goes_on_elsewhere(world, &told);
}

#[test]
fn a_replica_takes_over_by_itself_from_an_owner_whose_store_has_failed() {
    let (mut world, told) = with_a_failed_store(true);
    assert!(world.run_until(PATIENCE, |world| world.owner("v") != Some(A)), "it is taken over");
    goes_on_elsewhere(world, &told);
}

/// What was flushed is at a replica that is away when the owner steps down: the takeover is refused, and everybody is told why. It is tried again for as long
/// as the volume is served by nobody, and goes through when that replica is back.
#[test]
fn a_takeover_that_is_refused_is_tried_again_for_as_long_as_nobody_serves_the_volume() {
    let c = NodeId(3);
    let mut world = World::found_at(7, 3, false, None);
    world.machines.get_mut(&A).expect("is there").rescues = false;
    world.kill(A, false);
    world.boot(A);
    assert!(world.run_until(PATIENCE, |world| world.machines[&A].is_serving()), "{:?}", world.failures());
    world.create("v", A);
    world.guests.place("v", None);
    let (takeover_after_ms, durability) = (Some(Some(1_000)), Some("geo:1".to_owned()));
    world.set_policy("v", A, ChangePolicy { takeover_after_ms, durability, ..ChangePolicy::default() });
    world.run_for(Duration::from_secs(3));
    world.kill(B, false);
    let disk = world.machines[&A].disk.clone();
    let written = world.answer(A, PATIENCE, move |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            session.write(0, block(4), true).await.map_err(text)?;
            disk.fail_after(0);
            let refused = session.write(u64::from(BLOCK), block(5), false).await;
            Ok::<_, String>(refused.map_err(|error| error.kind()))
        }
    });
    assert_eq!(
        written,
        Some(Ok(Err(ErrorKind::Internal))),
        "c alone has what was flushed, and its owner can write no more"
    );
    world.kill(c, false);
    world.boot(B);
    world.run_for(Duration::from_secs(60));
    let told = world.answer(B, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { admin.owner("v").await.map_err(text) }
    });
    let told = told.expect("it answers").expect("is told");
    assert_eq!((told.owner.as_str(), told.stepped_down), ("a", true));
    let refused = told.takeover_refused.unwrap_or_default();
    assert!(refused.contains("at node c alone"), "{refused}");
    world.boot(c);
    assert!(
        world.run_until(PATIENCE, |world| world.owner("v") == Some(c)),
        "it is taken over by the one that has everything"
    );
    // Who connects before that node has heard of it uses the owner before.
    world.run_for(Duration::from_secs(3));
    assert_eq!((read(&mut world, c, "v", 0), world.panics()), (Ok(4), 0));
}

/// An owner that serves the volume does not step down for anybody.
#[test]
fn an_owner_whose_store_works_goes_on() {
    let mut world = World::found_at(8, 3, false, None);
    world.create("v", A);
    world.run_for(Duration::from_secs(3));
    let refused = world.answer(B, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { admin.take_over("v", AskTakeover::default()).await.map(drop).map_err(text) }
    });
    let refused = refused.expect("it answers").expect_err("it is alive");
    assert!(refused.contains("node a has renewed its lease: it is alive"), "{refused}");
    assert!(!world.status("v", A).stepped_down);
    assert_eq!((world.owner("v"), world.panics()), (Some(A), 0));
}
