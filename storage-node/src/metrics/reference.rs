//! Keeps `docs/metrics.md` what [`families`] says. `HELIO_GOLDEN=write cargo nextest run -p storage-node metrics` writes it anew.

use std::fmt::Write;
use std::path::Path;

use super::{Family, Kind, Unit, families};

/// Headings, and what the names below them begin with.
const SECTIONS: [(&str, &[&str]); 8] = [
    ("The process and the node", &["build", "node", "process", "ready", "certificate"]),
    ("Metadata and the lease", &["metadata", "lease"]),
    ("Links to other nodes", &["link"]),
    ("NBD", &["nbd"]),
    ("What guests ask for", &["operation", "trace"]),
    ("Stores", &["store", "scrub"]),
    ("Volumes", &["volumes", "handovers", "handover", "takeovers", "volume"]),
    ("Replicas", &["replica"]),
];

const INTRODUCTION: &str = "\
# Metrics

What `GET /metrics` of a node tells (docs/monitoring.md). This page is written from the program's own table by
`HELIO_GOLDEN=write cargo nextest run -p storage-node metrics`, and a test compares it.

- The text is OpenMetrics 1.0, which Prometheus reads. Every family is there with its HELP, TYPE and UNIT, also one without samples.
- Units are seconds and bytes. 1 is yes and 0 is no. What ends in `_total` is a counter, and begins anew with the process.
- Labels: `store` is the directory of a store, a disk each; `volume` and `replica`, `peer` are the names of a volume and of nodes; the others
  have the few values that are listed. Of more than 2000 volumes those beyond are left out, by age, and counted in `helio_volumes_omitted`.
- A node tells of volumes that it owns or follows, and of nothing that others would have to be asked for. What is known only
  at the owner of a volume says so: sum or look at it over all nodes.
- Nothing is counted for a scrape, but read where it is counted anyway: a scrape of a node that owns a thousand volumes took 20 to 60 ms (two busy
  cores, dev profile). Scrapes within a quarter of a second are given the same text.
";

fn kind(family: &Family) -> &'static str {
    match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

fn unit(family: &Family) -> &'static str {
    match family.unit {
        Unit::Number => "",
        Unit::Seconds => "s",
        Unit::Bytes => "B",
        Unit::BytesPerSecond => "B/s",
    }
}

fn text() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (heading, beginnings) in SECTIONS {
        write!(text, "\n## {heading}\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n")
            .expect("a string takes any text");
        let begins = |family: &&Family| family.name.split('_').next().is_some_and(|first| beginnings.contains(&first));
        for family in families::ALL.iter().filter(begins) {
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                family.full_name(),
                kind(family),
                unit(family),
                labels.join(", "),
                family.help
            )
            .expect("a string takes any text");
        }
    }
    text
}

#[test]
fn the_reference_of_metrics_is_what_the_table_says() {
    let (path, text) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"), text());
    for family in families::ALL {
        let rows = text.matches(&format!("| `{}` |", family.full_name())).count();
        assert_eq!(rows, 1, "{} is in one section", family.full_name());
    }
    if std::env::var("HELIO_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &text).expect("is written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/metrics.md is out of date: `HELIO_GOLDEN=write cargo nextest run -p storage-node metrics` writes it anew"
    );
}
