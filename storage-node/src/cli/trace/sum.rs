//! Reports of one volume, put together. Pure.

use client_lib::trace::{OperationKind, Stage};
use client_lib::wire::admin::{TraceReport, TraceStage, TracedKind, TracedOperation};

use crate::trace::histogram::Histogram;

/// The kinds of operations, each with what was counted and its times, in total and by stage.
#[derive(Default)]
struct Kind {
    counts: TracedKind,
    total: Histogram,
    stages: [Histogram; Stage::ALL.len()],
}

/// Several reports as one.
pub(super) struct Sum {
    slowest_max: usize,
    volume: String,
    nodes: Vec<String>,
    took_ms: u64,
    moved: bool,
    kinds: [Kind; OperationKind::ALL.len()],
    slowest: Vec<TracedOperation>,
}

impl Sum {
    /// Of nothing yet; keeps so many single operations.
    pub(super) fn new(slowest_max: usize) -> Sum {
        let (volume, nodes, kinds, slowest) = Default::default();
        Sum { slowest_max, volume, nodes, took_ms: 0, moved: false, kinds, slowest }
    }

    /// Takes another one in. Kinds and stages that are not known here are left out.
    pub(super) fn add(&mut self, report: TraceReport) {
        self.volume = report.volume;
        if !self.nodes.contains(&report.node) {
            self.nodes.push(report.node);
        }
        self.took_ms += report.took_ms;
        self.moved |= report.moved;
        for told in report.kinds {
            let known = OperationKind::ALL.iter().position(|kind| kind.name() == told.operation);
            let Some(kind) = known.and_then(|at| self.kinds.get_mut(at)) else { continue };
            kind.counts.count += told.count;
            kind.counts.sampled += told.sampled;
            kind.counts.failed += told.failed;
            kind.counts.sampled_bytes += told.sampled_bytes;
            kind.total.add(&told.total);
            for stage in &told.stages {
                let known = Stage::ALL.iter().position(|known| known.name() == stage.stage);
                if let Some(times) = known.and_then(|at| kind.stages.get_mut(at)) {
                    times.add(&stage.times);
                }
            }
        }
        self.slowest.extend(report.slowest);
        self.slowest.sort_by_key(|operation| std::cmp::Reverse(operation.took_ns));
        self.slowest.truncate(self.slowest_max);
    }

    /// How many operations there were.
    pub(super) fn count(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.counts.count).sum()
    }

    pub(super) fn told(self) -> TraceReport {
        let stage =
            |(stage, times): (Stage, Histogram)| TraceStage { stage: stage.name().to_owned(), times: times.told() };
        let kind = |(named, kind): (OperationKind, Kind)| TracedKind {
            operation: named.name().to_owned(),
            total: kind.total.told(),
            stages: Stage::ALL.into_iter().zip(kind.stages).map(stage).collect(),
            ..kind.counts
        };
        let kinds = OperationKind::ALL.into_iter().zip(self.kinds).filter(|(_, kind)| kind.counts.count > 0);
        TraceReport {
            volume: self.volume,
            node: self.nodes.join(", "),
            took_ms: self.took_ms,
            moved: self.moved,
            kinds: kinds.map(kind).collect(),
            slowest: self.slowest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(node: &str, us: &[u64]) -> TraceReport {
        let mut times = Histogram::default();
        us.iter().for_each(|us| times.note(Duration::from_micros(*us), 1));
        let single = |us: &u64| TracedOperation { took_ns: us * 1000, ..TracedOperation::default() };
        let kind = TracedKind {
            operation: "write".to_owned(),
            count: us.len() as u64,
            sampled: us.len() as u64,
            total: times.told(),
            stages: vec![TraceStage { stage: "log".to_owned(), times: times.told() }],
            ..TracedKind::default()
        };
        TraceReport {
            volume: "disk".to_owned(),
            node: node.to_owned(),
            took_ms: 2000,
            kinds: vec![kind],
            slowest: us.iter().map(single).collect(),
            ..TraceReport::default()
        }
    }

    #[test]
    fn reports_add_up_across_a_move() {
        let mut sum = Sum::new(2);
        sum.add(TraceReport { moved: true, ..report("a", &[10, 20]) });
        sum.add(report("b", &[30, 400, 15]));
        sum.add(report("b", &[]));
        assert_eq!(sum.count(), 5);
        let told = sum.told();
        assert_eq!((told.node.as_str(), told.took_ms, told.moved), ("a, b", 6000, true));
        let [write] = &told.kinds[..] else { panic!("{:?}", told.kinds) };
        assert_eq!((write.operation.as_str(), write.count, write.total.max_ns), ("write", 5, 400_000));
        assert_eq!(write.total.sum_ns, 475_000);
        let of_stages: Vec<u64> = write.stages.iter().map(|stage| stage.times.sum_ns).collect();
        assert_eq!(of_stages, [0, 0, 475_000, 0, 0, 0]);
        let slowest: Vec<u64> = told.slowest.iter().map(|one| one.took_ns).collect();
        assert_eq!(slowest, [400_000, 30_000]);
    }
}
