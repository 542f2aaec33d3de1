//! A store that takes no writes any more while its node lives: the owner gives the volume away with all that it acked, and nobody notices.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use client_lib::{Error, ErrorKind, NodeId};
use nbd_frontend::export::{ExportDirectory, Session};

use super::client::{BLOCK, block, first_byte};
use super::world::{World, text};

const A: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// Less than what is left of a lease that is renewed all the time.
const AT_ONCE: Duration = Duration::from_secs(3);

async fn write(session: &dyn Session, index: u64, fill: u8) -> Result<(), Error> {
    session.write(index * u64::from(BLOCK), block(fill), false).await
}

/// A volume v of a with three blocks of 1, which both others follow and hold.
fn world(seed: u64) -> World {
    let mut world = World::found_at(seed, 3, false, None);
    world.create("v", A);
    world.guests.place("v", None);
    world.run_for(Duration::from_secs(3));
    let written = world.answer(A, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            for index in 0..3 {
                write(&*session, index, 1).await.map_err(text)?;
            }
            session.flush().await.map_err(text)
        }
    });
    written.expect("it answers").expect("is written");
    assert!(follows(&mut world, A), "the replicas follow");
    world
}

/// Waits until all replicas hold what `owner` has.
fn follows(world: &mut World, owner: NodeId) -> bool {
    for _ in 0..100 {
        world.run_for(Duration::from_millis(100));
        let status = world.status("v", owner);
        if status.replicas.len() == 2 && status.replicas.iter().all(|replica| replica.watermark == status.head) {
            return true;
        }
    }
    false
}

/// What a client of a came to that wrote block 1, and block 2 when the store took nothing any more, and then flushed.
type Told = Arc<OnceLock<Result<(u8, u8), (ErrorKind, String)>>>;

/// A client of a writes block 1, which nobody else hears of, then the store fails, and it goes on.
fn fails_under_a_client(world: &World, flushes: bool) -> Told {
    let disk = world.machines[&A].disk.clone();
    world.ask(A, move |running| {
        let exports = running.parts.exports.clone();
        async move {
            let failed = |error: Error| (error.kind(), error.to_string());
            let session = exports.open("v").await.expect("it is exported");
            write(&*session, 1, 2).await.map_err(failed)?;
            disk.fail_writes_after(0);
            write(&*session, 2, 3).await.map_err(failed)?;
            if flushes {
                session.flush().await.map_err(failed)?;
            }
            Ok((first_byte(&*session, 1).await.map_err(failed)?, first_byte(&*session, 2).await.map_err(failed)?))
        }
    })
}

/// The write failed with EIO, and the volume stayed where it could not be written; a takeover cost what the replicas did not have, and the connection.
#[test]
fn a_client_of_a_store_that_takes_no_writes_any_more_goes_on_at_a_replica() {
    let mut world = world(21);
    let (told, begun) = (fails_under_a_client(&world, true), world.now);
    assert!(world.run_until(PATIENCE, |_| told.get().is_some()), "the client is answered");
    assert_eq!(told.get(), Some(&Ok((2, 3))));
    let took = world.now - begun;
    assert!(took < AT_ONCE, "nothing is waited out: {took:?}");
    let owner = world.owner("v").expect("is owned");
    assert_ne!(owner, A);
    let state = world.machines[&owner].running().expect("serves").parts.meta.state();
    assert_eq!((state.lease(A).is_out, state.lease(A).lapses), (false, 0));
    let changes = world.answer(owner, PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move { crate::serve::admin::Admin::timeline(&*admin, "v").await.map_err(text) }
    });
    let changes = changes.expect("it answers").expect("there is a timeline").changes;
    assert_eq!(changes.first().and_then(|change| change.mode.as_deref()), Some("rescue"), "{changes:?}");

    // The process that begins with the disk in order follows, without what was never acked.
    world.kill(A, false);
    world.machine(A).disk.mend();
    world.boot(A);
    assert!(world.run_until(PATIENCE, |world| world.machines[&A].is_serving()), "{:?}", world.failures());
    assert!(follows(&mut world, owner), "{:?}", world.status("v", owner).replicas);
    assert_eq!(world.panics(), 0);
}

/// With a replica that did not answer, writes stood still for four seconds: for that one to say where it is, and before that what program it runs.
#[test]
fn a_replica_that_does_not_answer_is_not_waited_for_while_another_one_will_do() {
    let mut world = world(21);
    let leader = world.machines[&A].running().and_then(|running| running.parts.meta.leader());
    let silent = if leader == Some(NodeId(3)) { NodeId(2) } else { NodeId(3) };
    for other in world.ids().into_iter().filter(|id| *id != silent) {
        for (from, to) in [(other, silent), (silent, other)] {
            world.network.change(from, to, |link| link.is_cut = true);
        }
    }
    let (told, begun) = (fails_under_a_client(&world, true), world.now);
    assert!(world.run_until(PATIENCE, |_| told.get().is_some()), "the client is answered");
    assert_eq!(told.get(), Some(&Ok((2, 3))));
    let took = world.now - begun;
    assert!(took < Duration::from_secs(2), "it is not waited for: {took:?}");
    assert_eq!((world.owner("v"), world.panics()), (Some(NodeId(5 - silent.0)), 0));
}

/// The new owner knew of the block and did not hold it; a flush there was answered as if it did.
#[test]
fn a_flush_waits_for_what_was_not_durable_and_says_so_when_that_is_lost() {
    let mut lost = 0;
    for seed in 30..36 {
        let mut world = world(seed);
        let told = fails_under_a_client(&world, false);
        assert!(world.run_until(PATIENCE, |world| world.owner("v") != Some(A)), "it is given away");
        let owner = world.owner("v").expect("is owned");
        // With all that it had not made durable, before or after the other one has fetched that.
        world.kill(A, true);
        drop(told);
        let outcome = world.answer(owner, PATIENCE * 3, |running| {
            let exports = running.parts.exports.clone();
            async move {
                let session = exports.open("v").await.map_err(text)?;
                // Before it is the owner, it has nothing to make durable.
                first_byte(&*session, 0).await.map_err(text)?;
                let flushed = session.flush().await;
                let read = first_byte(&*session, 1).await;
                let again = session.flush().await;
                Ok::<_, String>((
                    flushed.map_err(|error| (error.kind(), error.to_string())),
                    read.ok(),
                    again.map_err(text),
                ))
            }
        });
        let (flushed, read, again) = outcome.expect("it answers").expect("it is exported");
        assert_eq!(again, Ok(()), "what was said of it once is not said again: {flushed:?}, {read:?}");
        match flushed {
            Ok(()) => assert_eq!(read, Some(2), "it is durable where it is now"),
            Err((kind, _)) => {
                assert_eq!((kind, read), (ErrorKind::Corrupt, None), "what is lost is not read as something else");
                lost += 1;
            }
        }
        assert_eq!(world.panics(), 0);
    }
    assert!(lost > 0, "it was always fetched in time: this tests nothing");
}
