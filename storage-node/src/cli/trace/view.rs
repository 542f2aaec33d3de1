//! A report, for people.

use std::fmt::Write;

use client_lib::wire::admin::{TraceReport, TraceTimes, TracedKind, TracedOperation};

use crate::cli::client::table;
use crate::size::human;

/// Another node is named where at least one part in so many of an operation was the wait for it.
const WAITED_PART: u64 = 10;

/// The whole of it.
pub(super) fn text(report: &TraceReport) -> String {
    let TraceReport { volume, node, took_ms, moved, kinds, slowest } = report;
    let seconds = *took_ms as f64 / 1000.0;
    let mut text = format!("volume {volume} at node {node}, {seconds:.1} s\n");
    if *moved {
        text.push_str("it changed its owner, or was about to, meanwhile\n");
    }
    if kinds.is_empty() {
        text.push_str("nobody asked anything of it; `helio volume status` shows where it is, and clients of it are counted there\n");
    }
    for kind in kinds {
        add_kind(&mut text, kind, seconds);
    }
    if !slowest.is_empty() {
        text.push_str("\nslowest:\n");
        for line in table(&slowest.iter().map(single).collect::<Vec<_>>()) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

fn add_kind(text: &mut String, kind: &TracedKind, seconds: f64) {
    let TracedKind { operation, count, sampled, failed, sampled_bytes, total, stages } = kind;
    let rate = *count as f64 / seconds.max(0.001);
    let _ = write!(text, "\n{operation}: {count}, {rate:.0} a second");
    if *sampled_bytes > 0 && *sampled > 0 {
        let _ = write!(text, ", {} each", human(sampled_bytes / sampled));
    }
    if sampled < count {
        let _ = write!(text, "; {sampled} looked at");
    }
    if *failed > 0 {
        let _ = write!(text, "; {failed} failed");
    }
    text.push('\n');
    let row = |name: &str, times: &TraceTimes| {
        let share = times.sum_ns as f64 * 100.0 / total.sum_ns.max(1) as f64;
        let TraceTimes { p50_ns, p99_ns, max_ns, .. } = times;
        let mut row = vec![name.to_owned(), format!("{share:.1} %")];
        row.extend([p50_ns, p99_ns, max_ns].map(|ns| time(*ns)));
        row
    };
    let mut rows = vec![["STAGE", "SHARE", "P50", "P99", "MAX"].map(str::to_owned).to_vec()];
    rows.extend(stages.iter().filter(|stage| stage.times.sum_ns > 0).map(|stage| row(&stage.stage, &stage.times)));
    rows.push(row("total", total));
    for line in table(&rows) {
        let _ = writeln!(text, "  {line}");
    }
}

fn single(operation: &TracedOperation) -> Vec<String> {
    let TracedOperation { operation, began_ms, offset, bytes, took_ns, succeeded, waited_for, spans } = operation;
    let mut stages: Vec<(&str, u64)> = Vec::new();
    for span in spans {
        match stages.iter_mut().find(|(stage, _)| *stage == span.stage) {
            Some((_, ns)) => *ns += span.took_ns,
            None => stages.push((&span.stage, span.took_ns)),
        }
    }
    let waited: u64 = stages.iter().filter(|(stage, _)| matches!(*stage, "network" | "remote")).map(|(_, ns)| ns).sum();
    stages.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    let mut did: String =
        stages.iter().map(|(stage, ns)| format!("{stage} {}", time(*ns))).collect::<Vec<_>>().join(", ");
    if let Some(node) = waited_for
        && waited * WAITED_PART >= *took_ns
    {
        let _ = write!(did, "; waited for {node}");
    }
    if !succeeded {
        did.push_str("; failed");
    }
    let what = match operation.as_str() {
        "flush" => "flush".to_owned(),
        kind => format!("{kind} {} at {offset}", human(*bytes)),
    };
    vec![time(*took_ns), time_of_day(*began_ms), what, did]
}

/// With three digits, in the unit that makes that readable.
fn time(ns: u64) -> String {
    let (number, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match number {
        0.0..10.0 => format!("{number:.2} {unit}"),
        10.0..100.0 => format!("{number:.1} {unit}"),
        _ => format!("{number:.0} {unit}"),
    }
}

fn time_of_day(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03} UTC", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::{TraceSpan, TraceStage};

    use super::*;

    #[test]
    fn a_report_is_a_table_for_each_kind_and_a_line_for_each_slow_operation() {
        let times =
            |sum_ns, p50_ns, p99_ns, max_ns| TraceTimes { sum_ns, p50_ns, p99_ns, max_ns, histogram: Vec::new() };
        let stage = |stage: &str, times| TraceStage { stage: stage.to_owned(), times };
        let span = |stage: &str, after_ns, took_ns| TraceSpan { stage: stage.to_owned(), after_ns, took_ns };
        let flush = TracedKind {
            operation: "flush".to_owned(),
            count: 20,
            sampled: 20,
            total: times(1_300_000_000, 65_000_000, 70_000_000, 70_500_000),
            stages: vec![
                stage("socket", times(0, 0, 0, 0)),
                stage("disk", times(100_000_000, 4_000_000, 9_000_000, 9_500_000)),
                stage("network", times(1_200_000_000, 60_000_000, 61_000_000, 61_000_000)),
            ],
            ..TracedKind::default()
        };
        let write = TracedKind {
            operation: "write".to_owned(),
            count: 48_211,
            sampled: 2000,
            failed: 3,
            sampled_bytes: 2000 * 8192,
            total: times(170_000_000, 85_000, 410_000, 980),
            stages: vec![stage("log", times(170_000_000, 85_000, 410_000, 980))],
        };
        let slowest = vec![
            TracedOperation {
                operation: "flush".to_owned(),
                began_ms: 1_000 * (3600 * 30 + 61) + 7,
                took_ns: 70_500_000,
                succeeded: true,
                waited_for: Some("b".to_owned()),
                spans: vec![
                    span("disk", 0, 4_000_000),
                    span("network", 4_000_000, 61_000_000),
                    span("disk", 65_000_000, 5_500_000),
                ],
                ..TracedOperation::default()
            },
            TracedOperation {
                operation: "write".to_owned(),
                offset: 4096,
                bytes: 8192,
                took_ns: 12_345,
                waited_for: Some("b".to_owned()),
                spans: vec![span("log", 0, 12_340), span("remote", 12_340, 5)],
                ..TracedOperation::default()
            },
        ];
        let (volume, node) = ("disk".to_owned(), "a".to_owned());
        let report = TraceReport { volume, node, took_ms: 10_000, moved: false, kinds: vec![write, flush], slowest };
        let expected = "\
volume disk at node a, 10.0 s

write: 48211, 4821 a second, 8 KiB each; 2000 looked at; 3 failed
  STAGE  SHARE    P50      P99     MAX
  log    100.0 %  85.0 us  410 us  980 ns
  total  100.0 %  85.0 us  410 us  980 ns

flush: 20, 2 a second
  STAGE    SHARE    P50      P99      MAX
  disk     7.7 %    4.00 ms  9.00 ms  9.50 ms
  network  92.3 %   60.0 ms  61.0 ms  61.0 ms
  total    100.0 %  65.0 ms  70.0 ms  70.5 ms

slowest:
  70.5 ms  06:01:01.007 UTC  flush                network 61.0 ms, disk 9.50 ms; waited for b
  12.3 us  00:00:00.000 UTC  write 8 KiB at 4096  log 12.3 us, remote 5 ns; failed
";
        assert_eq!(text(&report), expected);
        let nothing = text(&TraceReport::default());
        assert!(nothing.contains("nobody asked anything of it"), "{nothing}");
    }

    #[test]
    fn times_have_three_digits() {
        let told = [0, 999, 1_000, 12_345, 999_900, 1_500_000, 61_000_000_000].map(time);
        assert_eq!(told, ["0 ns", "999 ns", "1.00 us", "12.3 us", "1000 us", "1.50 ms", "61.0 s"]);
    }
}
