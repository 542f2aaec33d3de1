//! Each order by itself, and all of them on the same traces.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::random::Sequence;
use client_lib::{BLOCK_SIZE, Epoch};

use super::*;

fn candidate(block: u32, sequence: u64, reads: f64, writes: f64) -> Candidate {
    let touched = Touched { reads, writes };
    Candidate { block, lsn: Lsn::new(Epoch(1), sequence), touched, bytes: BLOCK_SIZE }
}

fn blocks(order: Order, candidates: &[Candidate]) -> Vec<u32> {
    arranged(order_of(order), candidates.iter().copied()).iter().map(|candidate| candidate.block).collect()
}

#[test]
fn each_order_has_its_own_first_and_its_own_that_wait() {
    let all = [
        candidate(1, 40, 0.0, 30.0), // written again and again
        candidate(2, 30, 0.0, 1.0),  // written once
        candidate(3, 20, 9.0, 1.5),  // written now and then, and read
        candidate(4, 10, 9.0, 30.0), // both, all the time
    ];
    assert_eq!(blocks(Order::Log, &all), [4, 3, 2, 1]);
    assert_eq!(blocks(Order::LeastVolatile, &all), [2, 3, 1, 4]);
    assert_eq!(blocks(Order::WriteCount, &all), [3, 2]);
    assert_eq!(blocks(Order::Benefit, &all), [3, 4, 2]);
}

#[test]
fn what_costs_less_comes_first_where_it_is_as_useful() {
    let small = Candidate { bytes: 400, ..candidate(9, 1, 0.0, 1.0) };
    assert_eq!(blocks(Order::Benefit, &[candidate(2, 1, 0.0, 1.0), small]), [9, 2]);
    assert_eq!(blocks(Order::Benefit, &[candidate(5, 1, 0.0, 1.0), candidate(4, 1, 0.0, 1.0)]), [4, 5], "equals");
}

/// What a run of the trace below came to.
#[derive(Debug, Default)]
struct Outcome {
    /// Blocks that were sent.
    sent: u64,
    /// Those of them that were written again before their delta.
    wasted: u64,
    /// Reads at the new owner, after each handover that is imagined, that found their block there.
    hits: u64,
    /// And those that did not.
    misses: u64,
}

/// A volume with a journal that is written all the time and never read, files that are written now and then and read often, and many
/// more that are hardly touched, over a link that takes `room` blocks a step. Every `interval` steps there is a delta, whatever is left of it is sent then; before each, a handover is
/// imagined and blocks are read as they were before.
fn run(order: &dyn SendOrder, seed: u64, room: usize, interval: u64) -> Outcome {
    const HOT: u64 = 64;
    const COLD: u64 = 20_000;
    let mut draw = Sequence::new(seed);
    let mut outcome = Outcome::default();
    // By block: version, writes since the delta, reads.
    let mut dirty: BTreeMap<u32, (u64, f64)> = BTreeMap::new();
    let mut reads: BTreeMap<u32, f64> = BTreeMap::new();
    let mut ahead: BTreeSet<u32> = BTreeSet::new();
    let mut sequence = 0;
    let read_block = |draw: &mut Sequence| match draw.below(8) {
        0 => (HOT + 200 + draw.below(COLD)) as u32,
        _ => (HOT + draw.below(200)) as u32,
    };
    for step in 1..=10 * interval {
        for _ in 0..24 {
            sequence += 1;
            let block = match draw.below(3) {
                0 => (HOT + draw.below(200)) as u32,
                1 => (HOT + 200 + draw.below(COLD)) as u32,
                _ => draw.below(HOT) as u32,
            };
            let (version, writes) = dirty.entry(block).or_default();
            (*version, *writes) = (sequence, *writes + 1.0);
            outcome.wasted += u64::from(ahead.remove(&block));
        }
        for _ in 0..8 {
            *reads.entry(read_block(&mut draw)).or_default() += 0.2;
        }
        let waiting = dirty.iter().filter(|(block, _)| !ahead.contains(block));
        let candidates = waiting.map(|(block, (version, writes))| {
            candidate(*block, *version, reads.get(block).copied().unwrap_or(0.0), *writes)
        });
        for sent in arranged(order, candidates.collect::<Vec<_>>()).into_iter().take(room) {
            outcome.sent += 1;
            ahead.insert(sent.block);
        }
        if step % interval == 0 {
            for _ in 0..200 {
                let block = read_block(&mut draw);
                match !dirty.contains_key(&block) || ahead.contains(&block) {
                    true => outcome.hits += 1,
                    false => outcome.misses += 1,
                }
            }
            outcome.sent += dirty.keys().filter(|block| !ahead.contains(block)).count() as u64;
            (dirty, ahead) = (BTreeMap::new(), BTreeSet::new());
        }
    }
    outcome
}

/// Offline, on traces of hot and cold blocks: what each order sends, wastes and finds.
#[test]
fn orders_are_compared_by_what_they_send_and_what_is_there_when_it_is_needed() {
    /// The least that must be sent is what nobody sends ahead: each dirty block of each delta once.
    #[derive(Debug)]
    struct Nothing;
    impl SendOrder for Nothing {
        fn score(&self, _candidate: &Candidate) -> Option<f64> {
            None
        }
    }
    for seed in 1..=2 {
        for room in [4, 12, 40] {
            let outcome = |order: &dyn SendOrder| run(order, seed, room, 60);
            let (least, log) = (outcome(&Nothing), outcome(&LogOrder));
            let (volatile, count) = (outcome(&LeastVolatile), outcome(order_of(Order::WriteCount)));
            let benefit = outcome(&Benefit);
            println!("seed {seed}, {room} blocks a step: nothing ahead {least:?}");
            println!("  log {log:?}\n  least volatile {volatile:?}\n  write count {count:?}\n  benefit {benefit:?}");
            for (name, one) in [("log", &log), ("volatile", &volatile), ("count", &count), ("benefit", &benefit)] {
                assert_eq!(one.sent, least.sent + one.wasted, "{name}: what is not wasted is sent once");
                assert!(one.hits >= least.hits, "{name}: sending ahead never takes anything away");
            }
            // What is found more for what is sent in vain: the benefit finds most.
            for (name, other) in [("log", &log), ("volatile", &volatile), ("count", &count)] {
                let (gain, others) = (benefit.hits - least.hits, other.hits - least.hits);
                assert!(gain * other.wasted > others * benefit.wasted, "{name} {other:?}, benefit {benefit:?}");
                // With room for everything that is written, 24 blocks a step, there is no order.
                assert!(room > 24 || benefit.hits > other.hits, "{name} {other:?}, benefit {benefit:?}");
            }
            assert!(room < 24 || benefit.sent < log.sent, "log {log:?}, benefit {benefit:?}");
            assert!(count.sent <= log.sent, "{count:?}, {log:?}");
        }
    }
}
