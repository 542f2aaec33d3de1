//! The change history of a volume: which blocks changed between which LSNs.
//!
//! An ordered list of intervals `(from, to]`, without gap, each with a bitmap. An owner grows the last interval with
//! every write and cuts it when it seals a manifest; a replica appends one per manifest, so that it can serve others
//! once it is the owner. Too many intervals are merged, cheapest neighbours first, so the space is bounded by the
//! distinct dirty blocks: a merged interval that contains the position asked for yields more blocks than changed after
//! it, never fewer. Callers that need it exact compare the LSN in the map. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use client_lib::Lsn;
use roaring::RoaringBitmap;

/// Intervals kept before neighbours are merged. More make positions of slow replicas more exact.
pub const INTERVALS_MAX: usize = 64;

/// What changed in `(from, to]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Names it in the store; rises along the list.
    pub id: u64,
    /// After this position.
    pub from: Lsn,
    /// Up to and with this.
    pub to: Lsn,
    /// The blocks.
    pub blocks: Arc<RoaringBitmap>,
}

/// What a checkpoint must write of a history.
#[derive(Debug, Default)]
pub struct ChangesDelta {
    /// New and changed intervals.
    pub puts: Vec<Interval>,
    /// Intervals that are gone.
    pub deletes: Vec<u64>,
}

/// The history.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    start: Lsn,
    intervals: Vec<Interval>,
    growing: bool,
    next_id: u64,
    changed: BTreeSet<u64>,
    deleted: BTreeSet<u64>,
}

impl Changes {
    /// The history as a checkpoint kept it: `intervals` by rising id.
    #[must_use]
    pub fn restore(start: Lsn, intervals: Vec<Interval>) -> Changes {
        let next_id = intervals.last().map_or(0, |last| last.id + 1);
        Changes { start, intervals, next_id, ..Changes::default() }
    }

    /// The oldest position that [`since`](Self::since) can answer for.
    #[must_use]
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The newest position recorded.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.intervals.last().map_or(self.start, |last| last.to)
    }

    /// The intervals, oldest first.
    #[must_use]
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// A write at `lsn` changed `blocks`.
    pub fn record(&mut self, lsn: Lsn, blocks: impl IntoIterator<Item = u32>) {
        assert!(lsn > self.end(), "{lsn} is recorded after {}", self.end());
        if !self.growing {
            self.push(Interval { id: 0, from: self.end(), to: lsn, blocks: Arc::default() });
            self.growing = true;
        }
        let last = self.intervals.last_mut().expect("one was pushed or is growing");
        last.to = lsn;
        Arc::make_mut(&mut last.blocks).extend(blocks);
        self.changed.insert(last.id);
    }

    /// A manifest said that `blocks` changed after the end of the history, up to `to`.
    pub fn append(&mut self, to: Lsn, blocks: RoaringBitmap) {
        if to <= self.end() {
            return;
        }
        self.growing = false;
        match self.intervals.last_mut() {
            Some(last) if blocks.is_empty() => {
                last.to = to;
                self.changed.insert(last.id);
            }
            _ => self.push(Interval { id: 0, from: self.end(), to, blocks: Arc::new(blocks) }),
        }
    }

    /// Ends the growing interval: a position that somebody will ask for is here.
    pub fn cut(&mut self) {
        self.growing = false;
    }

    /// The blocks that changed after `lsn`, and perhaps more; `None` if the history does not reach back that far.
    #[must_use]
    pub fn since(&self, lsn: Lsn) -> Option<RoaringBitmap> {
        if lsn < self.start {
            return None;
        }
        let mut blocks = RoaringBitmap::new();
        for interval in self.intervals.iter().rev().take_while(|interval| interval.to > lsn) {
            blocks |= &*interval.blocks;
        }
        Some(blocks)
    }

    /// Nobody will ask for a position before `up_to`.
    pub fn prune(&mut self, up_to: Lsn) {
        let gone = self.intervals.iter().take_while(|interval| interval.to <= up_to).count();
        if gone == 0 {
            return;
        }
        if gone == self.intervals.len() {
            self.growing = false;
        }
        self.start = self.intervals[gone - 1].to;
        for interval in self.intervals.drain(..gone) {
            self.changed.remove(&interval.id);
            self.deleted.insert(interval.id);
        }
    }

    /// Nothing is known of what changed before `lsn`, and nothing has changed after.
    pub fn begin_at(&mut self, lsn: Lsn) {
        self.growing = false;
        for gone in self.intervals.drain(..) {
            self.changed.remove(&gone.id);
            self.deleted.insert(gone.id);
        }
        self.start = lsn;
    }

    /// What was recorded after `to` is no part of the volume: a takeover cut its history off there. An interval that
    /// reaches beyond it keeps all its blocks.
    pub fn rewind(&mut self, to: Lsn) {
        self.growing = false;
        while let Some(gone) = self.intervals.pop_if(|last| last.from >= to) {
            self.changed.remove(&gone.id);
            self.deleted.insert(gone.id);
        }
        if let Some(last) = self.intervals.last_mut().filter(|last| last.to > to) {
            last.to = to;
            self.changed.insert(last.id);
        }
        self.start = self.start.min(to);
    }

    /// What changed in the history itself since the last call.
    pub fn take_delta(&mut self) -> ChangesDelta {
        let changed = std::mem::take(&mut self.changed);
        let puts = self.intervals.iter().filter(|interval| changed.contains(&interval.id)).cloned().collect();
        ChangesDelta { puts, deletes: std::mem::take(&mut self.deleted).into_iter().collect() }
    }

    fn push(&mut self, mut interval: Interval) {
        interval.id = self.next_id;
        self.next_id += 1;
        self.changed.insert(interval.id);
        self.intervals.push(interval);
        if self.intervals.len() > INTERVALS_MAX {
            self.merge_cheapest();
        }
    }

    /// Merges the two neighbours with the fewest blocks; never the last, which may be growing.
    fn merge_cheapest(&mut self) {
        let pairs = self.intervals.len() - 2;
        let Some(at) =
            (0..pairs).min_by_key(|at| self.intervals[*at].blocks.len() + self.intervals[at + 1].blocks.len())
        else {
            return;
        };
        let second = self.intervals.remove(at + 1);
        let first = &mut self.intervals[at];
        first.to = second.to;
        *Arc::make_mut(&mut first.blocks) |= &*second.blocks;
        self.changed.insert(first.id);
        self.changed.remove(&second.id);
        self.deleted.insert(second.id);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use client_lib::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn at(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32),
        Manifest(Vec<u32>),
        Cut,
        Prune(u64),
        Rewind(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..50u32).prop_map(Step::Write),
            2 => proptest::collection::vec(0..50u32, 0..4).prop_map(Step::Manifest),
            3 => Just(Step::Cut),
            1 => (0..40u64).prop_map(Step::Prune),
            1 => (0..40u64).prop_map(Step::Rewind),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        /// Nothing that changed is ever left out, whatever was merged and pruned, and a restored history is the same.
        #[test]
        fn since_never_misses_a_change(steps in steps()) {
            let mut changes = Changes::default();
            let mut stored: BTreeMap<u64, Interval> = BTreeMap::new();
            let mut written: Vec<(u32, u64)> = Vec::new();
            let mut head = 0;
            for step in steps {
                match step {
                    Step::Write(block) => {
                        head += 1;
                        written.push((block, head));
                        changes.record(at(head), [block]);
                    }
                    Step::Manifest(blocks) => {
                        head += 1;
                        written.extend(blocks.iter().map(|block| (*block, head)));
                        changes.append(at(head), blocks.into_iter().collect());
                    }
                    Step::Cut => changes.cut(),
                    Step::Prune(back) => changes.prune(at(head.saturating_sub(back))),
                    Step::Rewind(back) => {
                        head = head.saturating_sub(back);
                        written.retain(|(_, lsn)| *lsn <= head);
                        changes.rewind(at(head));
                        prop_assert!(changes.end() <= at(head));
                    }
                }
                prop_assert!(changes.intervals.len() <= INTERVALS_MAX);
                let delta = changes.take_delta();
                stored.extend(delta.puts.into_iter().map(|interval| (interval.id, interval)));
                stored.retain(|id, _| !delta.deletes.contains(id));
            }
            let restored = Changes::restore(changes.start(), stored.into_values().collect());
            prop_assert_eq!(&restored.intervals, &changes.intervals);
            // Later versions come later in the list.
            let newest: BTreeMap<u32, u64> = written.into_iter().collect();
            for asked in 0..=head {
                match changes.since(at(asked)) {
                    None => prop_assert!(at(asked) < changes.start()),
                    Some(blocks) => {
                        for (block, lsn) in &newest {
                            prop_assert!(*lsn <= asked || blocks.contains(*block), "{block} of {lsn} after {asked}");
                        }
                    }
                }
            }
            prop_assert!(changes.since(at(head)).expect("kept").is_empty());
        }
    }

    #[test]
    fn what_was_cut_off_is_forgotten_and_the_history_goes_on() {
        let mut changes = Changes::default();
        changes.record(at(1), [1]);
        changes.cut();
        changes.record(at(2), [2]);
        changes.record(at(4), [4]);
        changes.cut();
        changes.record(at(5), [5]);
        changes.rewind(at(3));
        assert_eq!(changes.end(), at(3), "in the middle of an interval");
        assert_eq!(changes.since(at(1)), Some([2, 4].into_iter().collect()), "more, not fewer");
        changes.append(Lsn::new(Epoch(2), 1), [9].into_iter().collect());
        assert_eq!(changes.since(at(3)), Some([9].into_iter().collect()));
    }

    #[test]
    fn positions_at_a_cut_are_exact() {
        let mut changes = Changes::default();
        changes.record(at(1), [1]);
        changes.cut();
        changes.record(at(2), [2]);
        changes.record(at(3), [3]);
        assert_eq!(changes.since(at(1)), Some([2, 3].into_iter().collect()));
        assert_eq!(changes.since(at(2)), Some([2, 3].into_iter().collect()), "inside an interval: more, not fewer");
        changes.prune(at(1));
        assert_eq!(changes.since(Lsn::ZERO), None);
        assert_eq!(changes.since(at(1)), Some([2, 3].into_iter().collect()));
    }
}
