//! What a shard answers while the node's lease is out: nothing, until it is there again or the volume is lost.

use std::sync::Arc;
use std::time::Duration;

use client_lib::clock::VirtualClock;
use client_lib::{Epoch, Lsn, SnapshotId};
use tokio::sync::oneshot::error::TryRecvError;

use super::rig::{Rig, VOLUME};
use crate::ownership::lease::{LeaseCell, Terms};
use crate::shard::handle::{FreezeWhen, Request, StoreError};
use crate::volume::Moment;

const LEASE: Duration = Duration::from_secs(8);

/// An owner in epoch 1 with a lease of eight seconds, and its clock.
fn owner() -> (Rig, Arc<VirtualClock>, Arc<LeaseCell>) {
    let clock = Arc::new(VirtualClock::new(0));
    let cell = Arc::new(LeaseCell::new(clock.clone()));
    cell.hold(Terms { lapses: 0, until: LEASE });
    let mut rig = Rig::in_memory(1, |options| options.lease = cell.clone());
    rig.open(1 << 20);
    rig.activate(1);
    (rig, clock, cell)
}

fn arm(rig: &mut Rig, acts_under: Option<u64>) {
    rig.ask(|reply| Request::Arm { volume: VOLUME, epoch: Epoch(1), acts_under, reply }).expect("is armed");
}

fn turns(rig: &mut Rig) {
    for _ in 0..100 {
        rig.turn();
    }
}

/// The write is in the log when the process is paused, and the lease is out when it goes on.
#[test]
fn a_write_that_was_overtaken_by_the_end_of_the_lease_is_acked_only_if_nobody_took_over() {
    let (mut rig, clock, cell) = owner();
    let mut write = rig.send_write(0, vec![1; 4096], false);
    clock.advance(LEASE);
    turns(&mut rig);
    assert_eq!(write.try_recv(), Err(TryRecvError::Empty), "not acked, and not failed");
    cell.hold(Terms { lapses: 0, until: LEASE * 2 });
    assert_eq!(rig.wait(write), Ok(Lsn::new(Epoch(1), 1)));
}

#[test]
fn reads_and_flushes_wait_too_and_are_refused_when_the_volume_is_lost() {
    let (mut rig, clock, cell) = owner();
    rig.write_block(0, 1).expect("within the lease");
    clock.advance(LEASE);
    let mut read =
        rig.send(|reply| Request::Read { volume: VOLUME, moment: Moment::Now, offset: 0, length: 512, reply });
    let mut flush = rig.send(|reply| Request::Flush { volume: VOLUME, reply });
    let mut write = rig.send_write(4096, vec![2; 4096], true);
    turns(&mut rig);
    assert_eq!(read.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(flush.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(write.try_recv(), Err(TryRecvError::Empty));
    let extents =
        rig.ask(|reply| Request::Extents { volume: VOLUME, moment: Moment::Now, offset: 0, length: 512, reply });
    assert_eq!(extents, Err(StoreError::Frozen(VOLUME)));

    // The lease is granted anew, and then the node hears that it was taken over from.
    cell.hold(Terms { lapses: 1, until: LEASE * 3 });
    turns(&mut rig);
    assert_eq!(write.try_recv(), Err(TryRecvError::Empty), "it was taken up under another number");
    rig.deactivate(2);
    let refusal = StoreError::NotOwner { volume: VOLUME, epoch: Epoch(2) };
    assert_eq!(rig.wait(read), Err(refusal.clone()));
    assert_eq!(rig.wait(flush), Err(refusal.clone()));
    assert_eq!(rig.wait(write), Err(refusal));
}

#[test]
fn an_owner_that_kept_its_volume_through_a_lapse_goes_on_when_it_is_told_so() {
    let (mut rig, clock, cell) = owner();
    clock.advance(LEASE);
    arm(&mut rig, None);
    let mut write = rig.send_write(0, vec![1; 4096], false);
    cell.hold(Terms { lapses: 1, until: LEASE * 2 });
    turns(&mut rig);
    assert_eq!(write.try_recv(), Err(TryRecvError::Empty));
    arm(&mut rig, Some(1));
    rig.wait(write).expect("is acked");
}

#[test]
fn a_freeze_waits_for_answers_that_are_held() {
    let (mut rig, clock, cell) = owner();
    let write = rig.send_write(0, vec![1; 4096], false);
    clock.advance(LEASE);
    let mut freeze = rig.send(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply });
    turns(&mut rig);
    assert_eq!(freeze.try_recv(), Err(TryRecvError::Empty));
    cell.hold(Terms { lapses: 0, until: LEASE * 2 });
    rig.wait(write).expect("is acked first");
    assert_eq!(rig.wait(freeze), Ok(Lsn::new(Epoch(1), 1)));
}

/// Story: a rollback was asked for at an owner that was cut off. It waited for a write whose answer the lease held back, and everything else
/// waited for it, also the word that the volume was taken over: the node told nothing of the volume until it was restarted, and what
/// waited filled the queue of the whole store. Found by the simulation.
#[test]
fn a_rollback_that_waits_for_the_lease_ends_when_the_volume_is_lost() {
    let (mut rig, clock, cell) = owner();
    for is_lost in [true, false] {
        rig.write_block(0, 1).expect("within the lease");
        let snapshot = if is_lost { 1 } else { 2 };
        rig.snapshot(snapshot).expect("is made");
        clock.advance(LEASE);
        let write = rig.send_write(0, vec![2; 4096], false);
        turns(&mut rig);
        let mut rolled = rig.send(|reply| Request::RollBack { volume: VOLUME, snapshot: SnapshotId(snapshot), reply });
        turns(&mut rig);
        assert_eq!(rolled.try_recv(), Err(TryRecvError::Empty));
        if is_lost {
            let report = rig.deactivate(2);
            assert_eq!(report.epoch, Epoch(2));
            let refusal = StoreError::NotOwner { volume: VOLUME, epoch: Epoch(2) };
            assert_eq!(rig.wait(rolled), Err(refusal.clone()));
            assert_eq!(rig.wait(write), Err(refusal));
            // The lease is there again, and so is the volume.
            cell.hold(Terms { lapses: 0, until: LEASE * 2 });
            rig.activate(3);
        } else {
            // The same lease under another number: nobody took the volume over.
            cell.hold(Terms { lapses: 1, until: LEASE * 3 });
            turns(&mut rig);
            assert_eq!(rolled.try_recv(), Err(TryRecvError::Empty));
            rig.ask(|reply| Request::Arm { volume: VOLUME, epoch: Epoch(3), acts_under: Some(1), reply })
                .expect("is armed");
            rig.wait(write).expect("is acked");
            rig.wait(rolled).expect("is rolled back");
            assert_eq!(rig.read(0, 4096).expect("reads"), [1; 4096]);
        }
    }
}

#[test]
fn a_shard_without_a_lease_stops() {
    let (mut rig, clock, _) = owner();
    let write = rig.send_write(0, vec![1; 4096], false);
    clock.advance(LEASE);
    turns(&mut rig);
    rig.restart();
    assert_eq!(rig.wait(write), Err(StoreError::Stopped));
    assert_eq!(rig.report().known, Lsn::new(Epoch(1), 1), "it is in the log all the same");
}

fn cease(rig: &mut Rig, epoch: u64) {
    rig.ask(|reply| Request::Cease { volume: VOLUME, epoch: Epoch(epoch), reply }).expect("is noted");
}

/// The lease of a node lasts while a store of it has failed; others were told that they need not wait for it.
#[test]
fn an_owner_that_has_stepped_down_answers_nothing_under_any_lease_and_refuses_when_another_has_the_volume() {
    let (mut rig, _, cell) = owner();
    rig.write_block(0, 1).expect("within the lease");
    let mut write = rig.send_write(4096, vec![2; 4096], false);
    cease(&mut rig, 1);
    let mut read =
        rig.send(|reply| Request::Read { volume: VOLUME, moment: Moment::Now, offset: 0, length: 512, reply });
    let mut vouch = rig.send(|reply| Request::Vouch { volume: VOLUME, reply });
    turns(&mut rig);
    // Neither a later lease, nor being armed, nor taken up once more, brings it back.
    cell.hold(Terms { lapses: 1, until: LEASE * 2 });
    arm(&mut rig, Some(1));
    let activate = rig.send(|reply| Request::Activate { volume: VOLUME, epoch: Epoch(1), acts_under: Some(1), reply });
    rig.wait(activate).expect("is the owner");
    turns(&mut rig);
    assert_eq!(write.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(read.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(vouch.try_recv(), Err(TryRecvError::Empty));
    let frozen = rig.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply });
    assert_eq!(frozen, Err(StoreError::SteppedDown(VOLUME)), "it would wait for those");

    // Its store takes no writes, so that the new role is not stored; it is in force all the same.
    rig.disk.fail_after(0);
    let deactivated = rig.ask(|reply| Request::Deactivate { volume: VOLUME, epoch: Epoch(2), reply });
    assert!(matches!(deactivated, Err(StoreError::Poisoned(_))), "{deactivated:?}");
    let refusal = StoreError::NotOwner { volume: VOLUME, epoch: Epoch(2) };
    assert_eq!(rig.wait(write), Err(refusal.clone()));
    assert_eq!(rig.wait(read).map(drop), Err(refusal.clone()));
    assert_eq!(rig.wait(vouch), Err(refusal));
    let read = rig.ask(|reply| Request::Read { volume: VOLUME, moment: Moment::Now, offset: 0, length: 512, reply });
    assert!(matches!(read, Err(StoreError::NotOwner { .. })), "{read:?}");
}

#[test]
fn a_later_ownership_is_acted_upon() {
    let (mut rig, _, _) = owner();
    cease(&mut rig, 1);
    rig.deactivate(2);
    rig.activate(3);
    rig.write_block(0, 1).expect("is acked");
    // It had not been taken up when it was given up.
    cease(&mut rig, 5);
    rig.deactivate(4);
    let activate = rig.send(|reply| Request::Activate { volume: VOLUME, epoch: Epoch(5), acts_under: Some(0), reply });
    rig.wait(activate).expect("becomes the owner");
    let mut read =
        rig.send(|reply| Request::Read { volume: VOLUME, moment: Moment::Now, offset: 0, length: 512, reply });
    turns(&mut rig);
    assert_eq!(read.try_recv().map(drop), Err(TryRecvError::Empty));
}
