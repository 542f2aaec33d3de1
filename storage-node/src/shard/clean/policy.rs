//! Which segment to empty next, when, and how fast. Pure.
//!
//! *Which*: the one whose cost of cleaning falls the slowest (Lomet and Luo, "Efficiently Reclaiming Space in a Log
//! Structured Store", ICDE 2021): one that loses its live blocks quickly is better left until it has lost more, one that
//! hardly changes has nothing to wait for. *How fast*: by the space that is left. While guests write, the cleaner earns as
//! much work as keeps the space at its level, more the less there is, and is owed what it cannot do at once; it works
//! without measure when guests would otherwise run out of space. While they do not write, it goes on in small steps.

/// Free segments below which guests' writes would soon have to wait: the log keeps two for itself and the cleaner.
const CRITICAL_SEGMENTS: u64 = 3;
/// Free segments below which cleaning begins, beyond those that wait for a checkpoint together. Not more: what is kept free makes every other
/// segment fuller.
const LOW_SEGMENTS: u64 = 4;
/// Most emptied segments that wait for one checkpoint together, and the fewest; between them, one of so many that the store may hold. A checkpoint
/// writes the pages of the map that were changed since the one before, and of a large volume that is overwritten at random each write changes
/// another: the larger the store, the more each one costs, and the less it is to keep a segment for it.
const TOGETHER_MAX: u64 = 64;
const TOGETHER_MIN: u64 = 2;
const SEGMENTS_PER_ONE_TOGETHER: u64 = 256;
/// Where no capacity is set, the store may hold this many times its live blocks before cleaning begins.
const GARBAGE_FACTOR: u64 = 2;
/// Segments beyond that before it is worth it.
const SLACK_SEGMENTS: u64 = 8;
/// A segment must free at least this share, in percent, or emptying it only moves blocks about: with less the store is
/// full.
const GAIN_PERCENT_MIN: u64 = 10;
/// Most blocks that the cleaner is owed: what it cannot do while a checkpoint or a slow disk holds it up.
const CREDIT_MAX: u64 = 4096;
/// What each written block earns more than it costs to keep the level, in percent and per segment that is missing.
const EARN_PERCENT: u64 = 25;
/// Segments beyond which it does not matter how many are missing.
const EARNED_MAX: u64 = 6;

/// A segment that could be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) segment: u32,
    /// Blocks that it can hold.
    pub(super) blocks: u64,
    /// Blocks that are needed.
    pub(super) live: u64,
    /// Segments that were taken into use since.
    pub(super) age: u64,
}

impl Candidate {
    /// The higher, the less there is to gain from waiting; `None` if it is not worth emptying.
    ///
    /// With `u` live of 1, a block gained costs `1 / (1 - u)` segments of work. If live blocks are lost at a constant
    /// rate each, the rate is `-ln(u) / age`, and the cost falls by `rate * u / (1 - u)^2`.
    fn score(&self) -> Option<f64> {
        let dead = self.blocks.checked_sub(self.live)?;
        if self.live == 0 || dead * 100 < self.blocks * GAIN_PERCENT_MIN {
            return None;
        }
        let live = self.live as f64 / self.blocks as f64;
        let rate = -live.ln() / (self.age + 1) as f64;
        Some((1.0 - live) * (1.0 - live) / (rate * live))
    }
}

/// The segment to empty next. Those without live blocks are no candidates: a checkpoint frees them.
pub(super) fn choose(candidates: impl Iterator<Item = Candidate>) -> Option<Candidate> {
    let scored = candidates.filter_map(|candidate| Some((candidate.score()?, candidate)));
    scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, candidate)| candidate)
}

/// How badly space is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Nothing needs to be done.
    #[default]
    None,
    /// More is held than there should be, or little is left: as fast as guests write.
    Some,
    /// Guests are about to wait for it: as fast as possible.
    Critical,
}

/// What a store holds, in segments but for `live_blocks`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    /// But for those that the next checkpoint frees.
    pub(super) used: u64,
    /// `None`: as much as the file system has.
    pub(super) capacity: Option<u64>,
    pub(super) blocks_per_segment: u64,
    pub(super) live_blocks: u64,
    /// A write was refused for want of space.
    pub(super) refused: bool,
}

/// How many emptied segments wait for one checkpoint together, in a store that may hold so many `segments`.
pub(super) fn freed_together(segments: u64) -> u64 {
    (segments / SEGMENTS_PER_ONE_TOGETHER).clamp(TOGETHER_MIN, TOGETHER_MAX)
}

impl Space {
    pub(super) fn pressure(&self) -> Pressure {
        let left = self.capacity.map(|capacity| capacity.saturating_sub(self.used));
        if self.refused || left.is_some_and(|left| left < CRITICAL_SEGMENTS) {
            return Pressure::Critical;
        }
        if self.missing() > 0 { Pressure::Some } else { Pressure::None }
    }

    /// How many segments fewer should be in use.
    fn missing(&self) -> u64 {
        match self.capacity {
            Some(capacity) => {
                (LOW_SEGMENTS + freed_together(capacity)).saturating_sub(capacity.saturating_sub(self.used))
            }
            None => {
                let wanted = (self.live_blocks * GARBAGE_FACTOR).div_ceil(self.blocks_per_segment) + SLACK_SEGMENTS;
                self.used.saturating_sub(wanted)
            }
        }
    }
}

/// How much the cleaner may do now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pacer {
    pressure: Pressure,
    /// Blocks to copy for 100 that guests write.
    rate: u64,
    /// Blocks that may be copied, times 100.
    credit: u64,
}

impl Pacer {
    /// How the store stands.
    pub(super) fn look(&mut self, space: &Space) {
        self.pressure = space.pressure();
        if self.pressure == Pressure::None {
            (self.rate, self.credit) = (0, 0);
        }
    }

    /// `victim` is to be emptied, while the store stands so.
    pub(super) fn begin(&mut self, victim: &Candidate, space: &Space) {
        let dead = victim.blocks.saturating_sub(victim.live).max(1);
        let percent = 100 + EARN_PERCENT * space.missing().min(EARNED_MAX);
        self.rate = (victim.live * percent).div_ceil(dead);
    }

    /// Space is short now.
    pub(super) fn hurry(&mut self) {
        self.pressure = Pressure::Critical;
    }

    /// Whether guests are about to wait for space.
    pub(super) fn is_critical(&self) -> bool {
        self.pressure == Pressure::Critical
    }

    /// Whether work may go on now.
    pub(super) fn may_work(&self) -> bool {
        self.is_critical() || self.credit > 0
    }

    /// Guests wrote `blocks`.
    pub(super) fn earn(&mut self, blocks: u64) {
        self.credit = (self.credit + blocks * self.rate).min(CREDIT_MAX * 100);
    }

    /// Nobody has asked for anything for a while: some work may be done on the side.
    pub(super) fn earn_idle(&mut self, blocks: u64) {
        self.credit = self.credit.max(blocks * 100);
    }

    pub(super) fn spend(&mut self, blocks: u64) {
        self.credit = self.credit.saturating_sub(blocks * 100);
    }
}

#[cfg(test)]
mod tests;
