//! Checkpoints are taken beside the running shard: nobody waits for them, and what they hold is durable.

use client_lib::Lsn;

use super::rig::{Rig, VOLUME};
use crate::shard::handle::{Request, Seal, StoreError};

const SIZE: u64 = 64 << 20;

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::in_memory(seed, |options| options.checkpoint_log_bytes = 1 << 30);
    rig.open(SIZE);
    rig.activate(1);
    rig
}

/// Acks once waited for the sync of a checkpoint or a manifest that was under way: up to a second with a slow disk.
#[test]
fn writes_are_acked_while_a_checkpoint_or_a_manifest_waits_for_its_sync() {
    let mut rig = rig(1);
    rig.write_block(0, 1).expect("writes");
    rig.disk.hold_syncs(true);
    let mut checkpoint = rig.send(|reply| Request::Checkpoint { reply });
    let mut manifest = rig.send(|reply| Request::SealManifest {
        volume: VOLUME,
        from: Lsn::ZERO,
        after: Default::default(),
        delta_from: None,
        reply,
    });
    for block in 0..50 {
        rig.write_block(block, 2).expect("is acked");
    }
    assert!(checkpoint.try_recv().is_err() && manifest.try_recv().is_err(), "their sync is under way");
    let written = rig.report().head;
    rig.disk.hold_syncs(false);
    rig.wait(checkpoint).expect("is written");
    let (manifest, _) = rig.wait(manifest).expect("is made");
    assert!(manifest.to < written, "{} tells of nothing that was written after it was made", manifest.to);
    // The log from the checkpoint on has the rest.
    rig.kill();
    rig.activate(2);
    assert_eq!(rig.read(0, 50 * 4096).expect("reads"), [2; 50 * 4096]);
}

#[test]
fn a_power_cut_during_the_sync_of_a_checkpoint_leaves_the_one_before() {
    for seed in 1..40 {
        let mut rig = rig(seed);
        rig.write_block(0, 1).expect("writes");
        rig.flush().expect("flushes");
        rig.checkpoint().expect("is written");
        rig.write_block(1, 2).expect("writes");
        rig.disk.hold_syncs(true);
        let _checkpoint = rig.send(|reply| Request::Checkpoint { reply });
        (0..seed % 5).for_each(|_| rig.turn());
        rig.crash();
        rig.disk.hold_syncs(false);
        rig.activate(2);
        assert_eq!(rig.read(0, 4096).expect("reads"), [1; 4096]);
        let unflushed = rig.read(4096, 4096).expect("reads");
        assert!(unflushed == [0; 4096] || unflushed == [2; 4096], "seed {seed}");
    }
}

#[test]
fn a_log_that_fails_under_a_checkpoint_fails_the_checkpoint_and_all_that_wait_for_it() {
    let mut rig = rig(3);
    rig.write_block(0, 1).expect("writes");
    rig.disk.hold_syncs(true);
    let checkpoint = rig.send(|reply| Request::Checkpoint { reply });
    let manifest = rig.send(|reply| Request::SealManifest {
        volume: VOLUME,
        from: Lsn::ZERO,
        after: Default::default(),
        delta_from: Some(Lsn::ZERO),
        reply,
    });
    rig.turn();
    rig.disk.fail_after(0);
    rig.disk.hold_syncs(false);
    assert!(matches!(rig.wait(checkpoint), Err(StoreError::Poisoned(_))));
    assert!(matches!(rig.wait(manifest), Err(StoreError::Poisoned(_))));
    assert!(matches!(rig.checkpoint(), Err(StoreError::Poisoned(_))), "and so do later ones");
    assert_eq!(rig.read(0, 4096).expect("reads are served"), [1; 4096]);
    assert!(rig.core().volumes[&VOLUME].state.pins.is_empty(), "the delta pins nothing");
}

/// Sealed one after the other, what was written in between was in one delta only, and a replica that has its data from another one did
/// not find it there.
#[test]
fn what_is_sealed_together_ends_at_one_position_and_is_released_where_nobody_waits_for_it() {
    let mut rig = rig(3);
    let first = rig.write_block(0, 1).expect("writes");
    rig.write_block(1, 2).expect("writes");
    rig.disk.hold_syncs(true);
    // A sync for others is under way, so they wait for the next one, and writes go on.
    let _other = rig.send(|reply| Request::Checkpoint { reply });
    let (own, own_answer) = Seal::new(Lsn::ZERO, Default::default(), Lsn::ZERO);
    let (other, other_answer) = Seal::new(first, Default::default(), first);
    let (gone, _) = Seal::new(first, Default::default(), Lsn::ZERO);
    rig.core().handle(Request::SealTogether { volume: VOLUME, seals: vec![own, other, gone] });
    for block in 0..20 {
        rig.write_block(block, 3).expect("is acked");
    }
    rig.disk.hold_syncs(false);
    let (own, own_delta) = rig.wait(own_answer).expect("seals");
    rig.write_block(30, 4).expect("writes");
    let (other, other_delta) = rig.wait(other_answer).expect("seals");
    assert_eq!((own.to, own.from, other.from), (other.to, Lsn::ZERO, first));
    for delta in [own_delta, other_delta] {
        let delta = delta.expect("is pinned");
        assert_eq!(delta.to, own.to);
        rig.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
    }
    assert!(rig.core().volumes[&VOLUME].state.pins.is_empty(), "the third one pins nothing");
}
