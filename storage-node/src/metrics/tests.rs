//! The table keeps to the rules of names, and samples are written as the rules of the text have it.

use std::collections::BTreeSet;

use super::families::{ALL, Id};
use super::figures::NodeFigures;
use super::{Kind, Sheet, Unit, Value, exposition, fill};

#[test]
fn names_are_unique_and_say_their_unit_once() {
    let names: BTreeSet<String> = ALL.iter().map(super::Family::full_name).collect();
    assert_eq!(names.len(), ALL.len(), "a name is there twice");
    for family in ALL {
        let plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit());
        assert!(plain(family.name) && family.labels.iter().all(|label| plain(label)), "{family:?}");
        for ending in ["_total", "_seconds", "_bytes", "_bytes_per_second", "_count", "_sum", "_bucket"] {
            assert!(!family.name.ends_with(ending), "{family:?}: that is added");
        }
        assert!(family.labels.iter().all(|label| !["le", "job", "instance"].contains(label)), "{family:?}");
        assert!(!family.help.is_empty() && !family.help.contains(['\n', '|', '\\']), "{family:?}");
        assert!(family.kind != Kind::Histogram || family.unit != Unit::Number, "{family:?}");
    }
    assert_eq!(ALL[Id::OperationDuration as usize].full_name(), "helio_operation_duration_seconds");
    assert_eq!(ALL[Id::OperationBytes as usize].full_name(), "helio_operation_bytes_total");
}

#[test]
fn samples_are_written_with_their_labels_escaped() {
    let mut sheet = Sheet::default();
    sheet.put(Id::StoreQueued, &["/mnt/a \"b\"\\c"], 7);
    sheet.put(Id::ProcessCpu, &[], 1.5);
    let value = Value::Buckets { buckets: vec![(0.5, 2), (f64::INFINITY, 1)], sum: 3.25 };
    sheet.put(Id::OperationDuration, &["/d", "read"], value);
    let text = exposition::text(sheet);
    for line in [
        "# TYPE helio_store_queued_requests gauge",
        r#"helio_store_queued_requests{store="/mnt/a \"b\"\\c"} 7"#,
        "# TYPE helio_process_cpu_seconds counter",
        "# UNIT helio_process_cpu_seconds seconds",
        "helio_process_cpu_seconds_total 1.5",
        r#"helio_operation_duration_seconds_bucket{le="0.5",store="/d",kind="read"} 2"#,
        r#"helio_operation_duration_seconds_bucket{le="+Inf",store="/d",kind="read"} 3"#,
        r#"helio_operation_duration_seconds_count{store="/d",kind="read"} 3"#,
        r#"helio_operation_duration_seconds_sum{store="/d",kind="read"} 3.25"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
#[should_panic(expected = "has the labels")]
fn a_sample_has_the_labels_of_its_family() {
    Sheet::default().put(Id::StoreQueued, &[], 7);
}

/// A node that has just begun tells what it has, and of everything else that it exists.
#[test]
fn every_family_is_told_of_even_when_it_has_no_samples() {
    let text = exposition::text(fill::sheet(&NodeFigures::default()));
    for family in ALL {
        let name = family.full_name();
        let name = name.strip_suffix("_total").unwrap_or(&name);
        assert!(text.contains(&format!("# HELP {name} {}\n", family.help)), "{name}");
    }
}
