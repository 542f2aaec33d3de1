//! The seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use client_lib::{NodeId, VolumeId};

use super::checks::{convergence, durability, linearizable, writers};
use super::story::{Hazards, Story};
use super::world::World;

/// Seeds of a usual run, without faults and with all of them.
const SEEDS: (u64, u64) = (5, 60);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `seed` and tells what it came to: the same for the same seed.
fn run(seed: u64, hazards: Hazards) -> String {
    let mut world = World::found(seed, 3);
    let volumes = [world.create("v", NodeId(1)), world.create("w", NodeId(2))];
    let mut story = Story::new(hazards);
    story.tell(&mut world, Duration::from_secs(30));
    story.end(&mut world);
    let judged = volumes.iter().try_for_each(|volume| judge(&mut world, *volume));
    let book = world.history.book();
    if let Err(why) = judged {
        for (at, what) in &book.told {
            eprintln!("{at:>12.3?} {what}");
        }
        panic!("{}: {why}", world.replay());
    }
    let (sent, digest) = world.network.digest();
    let done = book.operations.iter().filter(|operation| operation.done().is_some()).count();
    format!(
        "{} operations, {done} answered, {} logged, {} handovers, {} takeovers, {sent} messages, {digest:08x}",
        book.operations.len(),
        book.logged.len(),
        story.handovers,
        story.takeovers,
    )
}

fn judge(world: &mut World, volume: VolumeId) -> Result<(), String> {
    {
        let book = world.history.book();
        writers::check(&book, volume)?;
        durability::check(&book, volume)?;
        linearizable::check(&book, volume)?;
    }
    convergence::check(world, volume)
}

/// `HELIO_SEED` runs one seed again, `HELIO_SEEDS` says how many there are.
fn seeds(usual: u64, hazards: Hazards) {
    if let Some(seed) = number("HELIO_SEED") {
        eprintln!("seed {seed}: {}", run(seed, hazards));
        return;
    }
    let mut failed = Vec::new();
    for seed in 1..=number("HELIO_SEEDS").unwrap_or(usual) {
        match catch_unwind(AssertUnwindSafe(|| run(seed, hazards))) {
            Ok(result) => eprintln!("seed {seed}: {result}"),
            Err(_) => failed.push(seed),
        }
    }
    assert!(
        failed.is_empty(),
        "these seeds failed, each runs again with HELIO_SEED=n cargo nextest run -p storage-node simulation: {failed:?}"
    );
}

#[test]
fn without_faults_everything_is_answered_and_everybody_agrees() {
    seeds(SEEDS.0, Hazards::NONE);
}

#[test]
fn whatever_fails_the_promises_hold() {
    seeds(SEEDS.1, Hazards::ALL);
}

#[test]
fn a_seed_run_twice_is_the_same() {
    for seed in 1..=3 {
        assert_eq!(run(seed, Hazards::ALL), run(seed, Hazards::ALL), "seed {seed}");
    }
}
