//! The seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use client_lib::{NodeId, VolumeId};

use super::checks::{convergence, durability, groups, linearizable, positions, snapshots, writers};
use super::machine::Rule;
use super::story::{Hazards, Story};
use super::world::World;

/// Seeds of a usual run, without faults and with all of them; of groups.
const SEEDS: (u64, u64, u64) = (5, 60, 30);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `seed`, with a rule broken perhaps, and tells what it came to: the same for the same seed.
fn try_run(seed: u64, hazards: Hazards, broken: Option<Rule>) -> Result<String, String> {
    let mut world = World::found(seed, 3, broken);
    let volumes = [world.create("v", NodeId(1)), world.create("w", NodeId(2))];
    if seed.is_multiple_of(3) {
        world.make_lazy("v", NodeId(1));
    }
    tell(world, volumes, Story::new(hazards), false)
}

/// The same with two volumes that are a group.
fn try_run_group(seed: u64, hazards: Hazards) -> Result<String, String> {
    let mut world = World::found(seed, 3, None);
    let volumes = [world.create("v", NodeId(1)), world.create("w", NodeId(1))];
    world.group("g", NodeId(1));
    tell(world, volumes, Story::of_group("g", hazards), true)
}

fn tell(mut world: World, volumes: [VolumeId; 2], mut story: Story, is_group: bool) -> Result<String, String> {
    story.tell(&mut world, Duration::from_secs(25));
    let mut judged = story.end(&mut world);
    let (mut snapshots, mut cuts) = (0, 0);
    for volume in volumes {
        judged = judged.and_then(|()| judge(&mut world, volume)).map(|count| snapshots += count);
    }
    if is_group {
        judged = judged.and_then(|()| groups::check(&world, volumes)).map(|count| cuts += count);
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
        "{} operations, {done} answered, {} logged, {} handovers, {} takeovers, {snapshots} snapshots, {cuts} cuts, {} machines, {sent} messages, {digest:08x}",
        book.operations.len(),
        book.logged.len(),
        story.handovers,
        story.takeovers,
        world.machines.len(),
    ))
}

fn run_group(seed: u64, hazards: Hazards) -> String {
    try_run_group(seed, hazards).unwrap_or_else(|why| panic!("{why}"))
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

/// Runs the first `count` seeds, or the one that `HELIO_SEED` names.
fn seeds(count: u64, run: impl Fn(u64) -> String) {
    if let Some(seed) = number("HELIO_SEED") {
        eprintln!("seed {seed}: {}", run(seed));
        return;
    }
    let mut failed = Vec::new();
    for seed in 1..=count {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
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
    // There is little to be found in it: a soak does not spend its time here.
    let count = number("HELIO_SEEDS").map_or(SEEDS.0, |seeds| seeds.min(50));
    seeds(count, |seed| run(seed, Hazards::NONE));
    seeds(count, |seed| run_group(seed, Hazards::NONE));
}

#[test]
fn whatever_fails_a_group_moves_as_one_and_is_kept_at_one_cut() {
    seeds(number("HELIO_SEEDS").unwrap_or(SEEDS.2), |seed| run_group(seed, Hazards::of(seed)));
}

#[test]
fn whatever_fails_the_promises_hold() {
    seeds(number("HELIO_SEEDS").unwrap_or(SEEDS.1), |seed| run(seed, Hazards::of(seed)));
}

#[test]
fn a_seed_run_twice_is_the_same() {
    for seed in 1..=3 {
        assert_eq!(run(seed, Hazards::of(seed)), run(seed, Hazards::of(seed)), "seed {seed}");
    }
}

/// The checks are worth something only if they notice what is wrong: `rule` is broken in every machine, and some seed must
/// fail for it. Those before `first` are known not to.
fn is_noticed(rule: Rule, hazards: Hazards, first: u64) {
    const TRIES: u64 = 40;
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
    assert!((first..first + TRIES).any(|seed| fails(&seed)), "nobody noticed that {rule:?} does not hold");
}

#[test]
fn a_lease_that_nobody_looks_at_is_noticed() {
    is_noticed(Rule::LeaseIsLookedAt, Hazards::TAKEOVERS, 1);
}

#[test]
fn a_takeover_that_does_not_wait_is_noticed() {
    is_noticed(Rule::LeaseIsWaitedOut, Hazards::TAKEOVERS, 1);
}

#[test]
fn clocks_that_drift_too_far_are_noticed() {
    is_noticed(Rule::DriftIsBounded, Hazards::TAKEOVERS, 8);
}

#[test]
fn disks_that_only_say_that_they_sync_are_noticed() {
    is_noticed(Rule::DiskSyncs, Hazards::DEATHS, 1);
}

#[test]
fn metadata_that_is_only_said_to_be_synced_is_noticed() {
    is_noticed(Rule::MetadataSyncs, Hazards::DEATHS, 1);
}

#[test]
fn writes_that_are_lost_with_their_process_are_noticed() {
    is_noticed(Rule::WritesOutliveProcesses, Hazards::DEATHS, 23);
}
