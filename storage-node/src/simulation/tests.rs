//! The seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use client_lib::{NodeId, VolumeId};

use super::checks::{convergence, durability, linearizable, positions, snapshots, writers};
use super::machine::Rule;
use super::story::{Hazards, Story};
use super::world::World;

/// Seeds of a usual run, without faults and with all of them.
const SEEDS: (u64, u64) = (5, 60);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `seed`, with a rule broken perhaps, and tells what it came to: the same for the same seed.
fn try_run(seed: u64, hazards: Hazards, broken: Option<Rule>) -> Result<String, String> {
    let mut world = World::found(seed, 3, broken);
    let volumes = [world.create("v", NodeId(1)), world.create("w", NodeId(2))];
    let mut story = Story::new(hazards);
    story.tell(&mut world, Duration::from_secs(25));
    let mut judged = story.end(&mut world);
    let mut snapshots = 0;
    for volume in volumes {
        judged = judged.and_then(|()| judge(&mut world, volume)).map(|count| snapshots += count);
    }
    if world.panics() > 0 {
        judged = judged.and(Err("a task of a node has panicked".to_owned()));
    }
    let book = world.history.book();
    let told = || book.told.iter().map(|(at, what)| format!("{at:>12.3?} {what}\n")).collect::<String>();
    if number("HELIO_SEED").is_some() {
        eprintln!("{}", told());
    }
    if let Err(why) = judged {
        let told = told();
        return Err(format!("{told}{}: {why}", world.replay()));
    }
    let (sent, digest) = world.network.digest();
    let done = book.operations.iter().filter(|operation| operation.done().is_some()).count();
    Ok(format!(
        "{} operations, {done} answered, {} logged, {} handovers, {} takeovers, {snapshots} snapshots, {} machines, {sent} messages, {digest:08x}",
        book.operations.len(),
        book.logged.len(),
        story.handovers,
        story.takeovers,
        world.machines.len(),
    ))
}

fn run(seed: u64, hazards: Hazards) -> String {
    try_run(seed, hazards, None).unwrap_or_else(|why| panic!("{why}"))
}

fn judge(world: &mut World, volume: VolumeId) -> Result<usize, String> {
    {
        let book = world.history.book();
        writers::check(&book, volume)?;
        durability::check(&book, volume)?;
        linearizable::check(&book, volume)?;
        positions::check(&book, volume)?;
    }
    convergence::check(world, volume)?;
    snapshots::check(world, volume)
}

/// `HELIO_SEED` runs one seed again, `HELIO_SEEDS` says how many there are.
fn seeds(usual: u64, hazards: impl Fn(u64) -> Hazards) {
    if let Some(seed) = number("HELIO_SEED") {
        eprintln!("seed {seed}: {}", run(seed, hazards(seed)));
        return;
    }
    let mut failed = Vec::new();
    for seed in 1..=number("HELIO_SEEDS").unwrap_or(usual) {
        match catch_unwind(AssertUnwindSafe(|| run(seed, hazards(seed)))) {
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
    seeds(SEEDS.0, |_| Hazards::NONE);
}

#[test]
fn whatever_fails_the_promises_hold() {
    seeds(SEEDS.1, Hazards::of);
}

#[test]
fn a_seed_run_twice_is_the_same() {
    for seed in 1..=3 {
        assert_eq!(run(seed, Hazards::of(seed)), run(seed, Hazards::of(seed)), "seed {seed}");
    }
}

/// The checks are worth something only if they notice what is wrong: each of these rules is broken in every machine, and
/// some seed must fail for it. Most do at once.
#[test]
fn a_rule_that_is_broken_is_noticed() {
    const TRIES: u64 = 40;
    for (rule, hazards) in [
        (Rule::LeaseIsLookedAt, Hazards::TAKEOVERS),
        (Rule::LeaseIsWaitedOut, Hazards::TAKEOVERS),
        (Rule::DiskSyncs, Hazards::DEATHS),
        (Rule::MetadataSyncs, Hazards::DEATHS),
    ] {
        let fails = |seed: &u64| {
            let outcome = catch_unwind(AssertUnwindSafe(|| try_run(*seed, hazards, Some(rule))));
            let why = match outcome {
                Ok(Ok(_)) => return false,
                Ok(Err(why)) => why,
                Err(_) => "a panic".to_owned(),
            };
            eprintln!("{rule:?}: seed {seed}: {}", why.lines().last().unwrap_or_default());
            true
        };
        assert!((1..=TRIES).any(|seed| fails(&seed)), "nobody noticed that {rule:?} does not hold");
    }
}
