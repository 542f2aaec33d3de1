//! The seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::ChangePolicy;

use super::backlog;
use super::checks::{
    classes, convergence, damage, durability, groups, linearizable, patience, positions, sizes, snapshots, watermarks,
    writers,
};
use super::guest::Ballast;
use super::rules::Rule;
use super::story::{Hazards, Losable, Story};
use super::world::World;
use crate::log::segment::SEGMENT_BYTES_MIN;

/// Seeds of a usual run.
struct Seeds {
    /// Without faults.
    calm: u64,
    usual: u64,
    groups: u64,
    losses: u64,
    flips: u64,
    turns: u64,
    replicas: u64,
    cleaning: u64,
    failures: u64,
}

const SEEDS: Seeds = Seeds {
    calm: 5,
    usual: 48,
    groups: 24,
    losses: 20,
    flips: 20,
    turns: 26,
    replicas: 26,
    cleaning: 16,
    failures: 24,
};

/// What a store may take where segments are emptied, and the blocks of the volume that fills them: there is room for what is live, and for what
/// deltas hold.
const CLEANED_SEGMENTS: u64 = 8;
const BALLAST_BLOCKS: u32 = 2048;
/// How long a volume waits for its turn where nodes have many.
const BACKLOG: Duration = Duration::from_millis(1500);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a story is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What is in every one.
    Usual,
    /// Two volumes that are a group.
    Group,
    /// Volumes of classes, at three providers of which two have two nodes; nodes are lost for good.
    Losses,
    /// Disks alter what they store.
    Flips,
    /// Volumes go back to snapshots, get clones and other sizes.
    Turns,
    /// Volumes of classes, at three providers of which two have two nodes; which nodes follow them changes, and some are lost.
    Replicas,
    /// Stores take no writes any more.
    Failures,
    /// Stores are so small for what is written that their segments are emptied all the time; disks alter what they store, and volumes go back to
    /// snapshots and get clones.
    Cleaning,
}

impl Kind {
    /// What else a seed is about.
    fn hazards(self, seed: u64) -> Hazards {
        let also = match seed % 4 {
            0 => Hazards::NONE,
            1 => Hazards { takeovers: true, ..Hazards::DEATHS },
            2 => Hazards { takeovers: true, ..Hazards::NETWORK },
            _ => Hazards::TAKEOVERS,
        };
        match self {
            Kind::Usual | Kind::Group => Hazards::of(seed),
            Kind::Losses => Hazards { losses: true, ..also },
            Kind::Flips => Hazards { flips: true, ..also },
            Kind::Turns => Hazards { turns: true, ..also },
            Kind::Failures => Hazards { failures: true, ..also },
            Kind::Cleaning => {
                Hazards { turns: seed % 3 == 1, flips: seed % 3 == 2, full_disks: false, ..Hazards::of(seed) }
            }
            Kind::Replicas => Hazards { replicas: true, losses: seed.is_multiple_of(3), turns: seed % 5 == 1, ..also },
        }
    }

    /// A cluster with two volumes.
    fn world(self, seed: u64, broken: Option<Rule>) -> World {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut world = match self {
            Kind::Losses | Kind::Replicas => World::found_at(seed, 5, true, broken),
            Kind::Cleaning => {
                let paired = seed.is_multiple_of(2) && broken.is_none();
                World::found_with(seed, 3, paired, broken, |_| Some(CLEANED_SEGMENTS * SEGMENT_BYTES_MIN))
            }
            _ => World::found(seed, 3, broken),
        };
        // What breaks a rule is known by its seed.
        if broken.is_none() && seed % 7 % 3 == 2 {
            backlog::begin(BACKLOG);
        }
        world.create("v", a);
        world.create("w", if self == Kind::Group { a } else { b });
        match self {
            Kind::Group => world.group("g", a),
            Kind::Cleaning => {
                let (volume, blocks) = ("ballast", BALLAST_BLOCKS);
                world.create_unused(volume, a, blocks);
                world.guests.load(Ballast { volume, at: a, blocks });
            }
            Kind::Losses | Kind::Replicas => {
                let takeover_after_ms = seed.is_multiple_of(3).then_some(Some(2_000));
                for (name, owner, class) in [("v", a, classes_of(seed).0), ("w", b, classes_of(seed).1)] {
                    let durability = Some(class.to_owned());
                    let wanted = ChangePolicy { durability, takeover_after_ms, ..ChangePolicy::default() };
                    world.set_policy(name, owner, wanted);
                }
            }
            _ if seed.is_multiple_of(3) => world.make_lazy("v", a),
            _ => {}
        }
        world
    }

    fn story(self, seed: u64, hazards: Hazards) -> Story {
        match self {
            Kind::Group => Story::of_group("g", hazards),
            Kind::Losses | Kind::Replicas if classes_of(seed).2 => Story::of_losses(Losable::Provider, hazards),
            _ => Story::new(hazards),
        }
    }
}

/// The classes of both volumes, and whether what was flushed survives the loss of a whole provider.
fn classes_of(seed: u64) -> (&'static str, &'static str, bool) {
    match seed / 4 % 4 {
        0 => ("geo:1", "site:1", false),
        1 => ("geo:2", "geo:1", true),
        _ => ("geo:1", "geo:1", true),
    }
}

/// What a seed came to: the same for the same seed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    text: String,
    /// Blocks of the guests that cleaners have moved.
    moved: u64,
}

/// Runs `seed`, with a rule broken perhaps.
fn try_run(kind: Kind, seed: u64, hazards: Hazards, broken: Option<Rule>) -> Result<Told, String> {
    let mut world = kind.world(seed, broken);
    let mut story = kind.story(seed, hazards);
    story.tell(&mut world, Duration::from_secs(25));
    let judged = story.end(&mut world).and_then(|()| judge_all(&mut world, kind));
    let book = world.history.book();
    let told = || book.told.iter().map(|(at, what)| format!("{at:>12.3?} {what}\n")).collect::<String>();
    if number("HELIO_SEED").is_some() {
        eprintln!("{}", told());
    }
    let counted = judged.map_err(|why| format!("{}{kind:?} {}: {why}", told(), world.replay()))?;
    let (sent, digest) = world.network.digest();
    let done = book.operations.iter().filter(|operation| operation.done().is_some()).count();
    let moved = world.guests.vms().values().filter_map(|vm| book.moved.get(&vm.volume)).sum();
    let text = format!(
        "{} operations, {done} answered, {} logged, {} handovers, {} takeovers, {} failures, {} rescues, {counted}, {moved} moved, {} machines, {sent} messages, {digest:08x}",
        book.operations.len(),
        book.logged.len(),
        story.handovers,
        story.takeovers,
        story.failures,
        book.rescues.len(),
        world.machines.len(),
    );
    Ok(Told { text, moved })
}

fn run(kind: Kind, seed: u64, hazards: Hazards) -> Told {
    try_run(kind, seed, hazards, None).unwrap_or_else(|why| panic!("{why}"))
}

/// Judges every volume; tells what there was to judge.
fn judge_all(world: &mut World, kind: Kind) -> Result<String, String> {
    let vms = world.guests.vms();
    let (mut snapshots, mut flushed, mut sizes, mut lost) = (0, 0, 0, 0);
    for (name, vm) in &vms {
        let volume = vm.volume;
        {
            let book = world.history.book();
            writers::check(&book, volume)?;
            durability::check(&book, volume)?;
            linearizable::check(&book, volume)?;
            positions::check(&book, volume)?;
            damage::check(&book, volume)?;
            patience::check(&book, volume)?;
            sizes += sizes::check(&book, volume)?;
            if matches!(kind, Kind::Losses | Kind::Replicas) {
                flushed += classes::check(&book, volume)?;
            }
        }
        if kind.hazards(world.seed).flips || kind == Kind::Cleaning {
            lost += damage::settle(world, name, volume)?;
        }
        watermarks::check(&world.history.book(), volume)?;
        convergence::check(world, volume)?;
        snapshots += snapshots::check(world, volume)?;
    }
    let cuts = match kind {
        Kind::Group => groups::check(world, [vms["v"].volume, vms["w"].volume])?,
        _ => 0,
    };
    if world.panics() > 0 {
        return Err("a task of a node has panicked".to_owned());
    }
    let book = world.history.book();
    let backs = book.logged.iter().filter(|logged| logged.back_to.is_some()).count();
    Ok(format!(
        "{snapshots} snapshots, {cuts} cuts, {flushed} flushed, {backs} rollbacks, {} clones, {sizes} sizes, {} flips, {lost} lost to them",
        book.clones.len(),
        book.flips.len(),
    ))
}

/// Runs the first `count` seeds, or the one that `HELIO_SEED` names.
/// Returns how many blocks were moved in all of them.
fn seeds(count: u64, run: impl Fn(u64) -> Told) -> u64 {
    let (mut failed, mut moved) = (Vec::new(), 0);
    if let Some(seed) = number("HELIO_SEED") {
        let told = run(seed);
        eprintln!("seed {seed}: {}", told.text);
        return told.moved;
    }
    for seed in 1..=count {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(told) => {
                eprintln!("seed {seed}: {}", told.text);
                moved += told.moved;
            }
            Err(_) => failed.push(seed),
        }
    }
    assert!(
        failed.is_empty(),
        "these seeds failed, each runs again with HELIO_SEED=n cargo nextest run -p storage-node simulation: {failed:?}"
    );
    moved
}

#[test]
fn without_faults_everything_is_answered_and_everybody_agrees() {
    // There is little to be found in it: a soak does not spend its time here.
    let count = number("HELIO_SEEDS").map_or(SEEDS.calm, |seeds| seeds.min(50));
    seeds(count, |seed| run(Kind::Usual, seed, Hazards::NONE));
    seeds(count, |seed| run(Kind::Group, seed, Hazards::NONE));
}

fn of_kind(kind: Kind, usual: u64) -> u64 {
    seeds(number("HELIO_SEEDS").unwrap_or(usual), |seed| run(kind, seed, kind.hazards(seed)))
}

#[test]
fn whatever_fails_the_promises_hold() {
    of_kind(Kind::Usual, SEEDS.usual);
}

#[test]
fn whatever_fails_a_group_moves_as_one_and_is_kept_at_one_cut() {
    of_kind(Kind::Group, SEEDS.groups);
}

#[test]
fn whatever_is_lost_within_its_class_what_was_flushed_is_there() {
    of_kind(Kind::Losses, SEEDS.losses);
}

#[test]
fn whatever_a_disk_alters_no_guest_sees_it_and_what_anybody_has_is_repaired() {
    of_kind(Kind::Flips, SEEDS.flips);
}

#[test]
fn whatever_fails_a_volume_goes_back_is_cloned_and_gets_another_size_as_a_whole() {
    of_kind(Kind::Turns, SEEDS.turns);
}

#[test]
fn whoever_follows_from_now_on_or_no_more_the_promises_hold() {
    of_kind(Kind::Replicas, SEEDS.replicas);
}

/// In the other stories the stores have room for all that is written: cleaners never ran beside anything.
#[test]
fn whatever_fails_while_segments_are_emptied_the_promises_hold() {
    let moved = of_kind(Kind::Cleaning, SEEDS.cleaning);
    assert!(number("HELIO_SEED").is_some() || moved > 0, "no cleaner has moved anything of a guest");
}

#[test]
fn whatever_store_takes_no_writes_any_more_its_volumes_go_on_with_all_that_was_acked() {
    of_kind(Kind::Failures, SEEDS.failures);
}

#[test]
fn a_seed_run_twice_is_the_same() {
    for seed in 1..=3 {
        let run = || run(Kind::Usual, seed, Hazards::of(seed));
        assert_eq!(run(), run(), "seed {seed}");
    }
    for kind in [Kind::Losses, Kind::Flips, Kind::Turns, Kind::Replicas, Kind::Cleaning, Kind::Failures] {
        let run = || run(kind, 1, kind.hazards(1));
        assert_eq!(run(), run(), "{kind:?}");
    }
}

/// The checks are worth something only if they notice what is wrong: `rule` is broken in every machine, and some seed must
/// fail for it. Those before `first` are known not to; `HELIO_SEED` names another one to begin with.
fn is_noticed(rule: Rule, kind: Kind, hazards: impl Fn(u64) -> Hazards, first: u64) {
    const TRIES: u64 = 120;
    let first = number("HELIO_SEED").unwrap_or(first);
    let fails = |seed: &u64| {
        let outcome = catch_unwind(AssertUnwindSafe(|| try_run(kind, *seed, hazards(*seed), Some(rule))));
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

/// As [`is_noticed`], in the usual stories, of these hazards.
fn is_noticed_among(rule: Rule, hazards: Hazards, first: u64) {
    is_noticed(rule, Kind::Usual, |_| hazards, first);
}

/// As [`is_noticed`], in the stories of a kind.
fn is_noticed_in(rule: Rule, kind: Kind, first: u64) {
    is_noticed(rule, kind, |seed| kind.hazards(seed), first);
}

#[test]
fn a_lease_that_nobody_looks_at_is_noticed() {
    is_noticed_among(Rule::LeaseIsLookedAt, Hazards::TAKEOVERS, 1);
}

#[test]
fn a_takeover_that_does_not_wait_is_noticed() {
    is_noticed_among(Rule::LeaseIsWaitedOut, Hazards::TAKEOVERS, 1);
}

#[test]
fn clocks_that_drift_too_far_are_noticed() {
    is_noticed_among(Rule::DriftIsBounded, Hazards::TAKEOVERS, 8);
}

#[test]
fn disks_that_only_say_that_they_sync_are_noticed() {
    is_noticed_among(Rule::DiskSyncs, Hazards::DEATHS, 1);
}

#[test]
fn metadata_that_is_only_said_to_be_synced_is_noticed() {
    is_noticed_among(Rule::MetadataSyncs, Hazards::DEATHS, 1);
}

#[test]
fn writes_that_are_lost_with_their_process_are_noticed() {
    is_noticed_among(Rule::WritesOutliveProcesses, Hazards::DEATHS, 23);
}

#[test]
fn flushes_that_do_not_wait_for_their_class_are_noticed() {
    is_noticed_in(Rule::FlushesWait, Kind::Losses, 1);
}

#[test]
fn takeovers_that_do_not_hear_of_those_who_may_hold_more_are_noticed() {
    is_noticed_in(Rule::AllAreHeard, Kind::Losses, 147);
}

#[test]
fn damage_that_nobody_looks_for_is_noticed() {
    is_noticed_in(Rule::ChecksumsAreCompared, Kind::Flips, 1);
}

#[test]
fn repairs_with_something_else_are_noticed() {
    is_noticed_in(Rule::RepairsFit, Kind::Flips, 1);
}

#[test]
fn rollbacks_that_forget_a_block_are_noticed() {
    is_noticed_in(Rule::RollbacksAreWhole, Kind::Turns, 1);
}

#[test]
fn smaller_sizes_that_keep_what_lies_beyond_are_noticed() {
    is_noticed_in(Rule::ShrinksDrop, Kind::Turns, 1);
}

#[test]
fn segments_that_are_used_again_before_they_are_empty_are_noticed() {
    is_noticed_in(Rule::SegmentsAreEmptied, Kind::Cleaning, 1);
}

#[test]
fn parts_of_an_initial_sync_that_forget_what_has_changed_are_noticed() {
    is_noticed_in(Rule::PartsTellChanges, Kind::Replicas, 1);
}

#[test]
fn rescues_that_do_not_tell_all_are_noticed() {
    is_noticed_in(Rule::RescuesTellAll, Kind::Failures, 1);
}

#[test]
fn guests_that_do_not_wait_for_an_owner_that_starts_are_noticed() {
    is_noticed_among(Rule::OwnersAreAwaited, Hazards::DEATHS, 1);
}
