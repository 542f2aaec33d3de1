//! Randomness as a seam: names that nobody else draws, and moments that differ from node to node.
//!
//! The system's randomness, unless this thread was given a seed: then everything that is drawn on it follows from that, as
//! simulation needs it. Nothing here is fit for secrets; those are drawn where certificates are made.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Sixty-four random bits.
#[must_use]
pub fn bits() -> u64 {
    SEEDED.with(|seeded| match seeded.get() {
        Some(state) => {
            let (next, bits) = step(state);
            seeded.set(Some(next));
            bits
        }
        // Each state is seeded from the system's randomness.
        None => RandomState::new().build_hasher().finish(),
    })
}

/// Lets everything that this thread draws follow from `seed`; with `None` it is random again.
pub fn seed_thread(seed: Option<u64>) {
    SEEDED.with(|seeded| seeded.set(seed));
}

/// A sequence of numbers that follows from its seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Sequence {
        Sequence(seed)
    }

    /// The next sixty-four bits.
    pub fn bits(&mut self) -> u64 {
        let (next, bits) = step(self.0);
        self.0 = next;
        bits
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a product spreads the bits evenly enough for any bound that is small beside 2^64.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// True this often out of a thousand times.
    pub fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

fn step(state: u64) -> (u64, u64) {
    let next = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (next, mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_draws_the_same_again_and_others_do_not() {
        let draw = || [bits(), bits(), bits()];
        seed_thread(Some(7));
        let first = draw();
        seed_thread(Some(7));
        assert_eq!(draw(), first);
        let elsewhere = std::thread::spawn(draw).join().expect("joins");
        assert_ne!(elsewhere, first);
        seed_thread(None);
        assert_ne!(draw(), draw());
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut sequence = Sequence::new(1);
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[sequence.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        assert_eq!(sequence.below(0), 0);
        assert!(!sequence.happens(0) && sequence.happens(1000));
    }
}
