//! What a node tells those who watch over it: numbers that are what was done, health with a reason, and nothing else to whoever may
//! only look. Rules and the board of `docs/monitoring` name nothing that a node does not tell.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use storage_node::metrics::families::ALL;
use storage_node::metrics::{Family, Kind};
use tests::cluster::Up;
use tests::exposition::Exposition;
use tests::http::{self, Answer};
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::rules;
use tests::tools::until;
use tests::workload::fill;

const BLOCK: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(60);
/// The settings of a listener of its own, on a free port.
const LISTENER: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\n";

/// An address that a node of a data directory announces.
fn announced(data: &Path, node: &str, what: &str) -> String {
    let file = std::fs::read(data.join("cluster.json")).expect("it runs");
    let file: Value = serde_json::from_slice(&file).expect("is JSON");
    let nodes = file["nodes"].as_array().expect("a list");
    let found = nodes.iter().find(|found| found["name"] == node).expect("the node is there");
    found[what].as_str().expect("it is served").to_owned()
}

fn scrape(address: &str) -> Exposition {
    let answer = http::get(address, "/metrics").expect("is answered");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    Exposition::parse(&answer.body).unwrap_or_else(|error| panic!("{error:#}"))
}

fn health(address: &str, what: &str) -> (u16, Value) {
    let Answer { status, body, .. } = http::get(address, &format!("/health/{what}")).expect("is answered");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{body}: {error}")))
}

/// Why a check fails; `None` when it does not.
fn reason(health: &Value, check: &str) -> Option<String> {
    let checks = health["checks"].as_array().expect("a list");
    let found = checks.iter().find(|found| found["check"] == check).expect("it is looked at");
    assert_eq!(found["ok"].as_bool(), Some(found["reason"].is_null()), "{health}");
    found["reason"].as_str().map(str::to_owned)
}

#[test]
fn what_was_done_is_what_is_told() {
    let up = Up::start(&["--metrics-port", "0"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let [a, b] = ["a", "b"].map(|node| announced(&up.data(), node, "metrics"));
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    for number in 0..17 {
        client.write(number * 4 * BLOCK, &fill(1, number, 1).repeat(2)).expect("is written");
    }
    for number in 0..5 {
        client.read(number * BLOCK, 512).expect("is read");
    }
    client.trim(0, 2 * BLOCK as u32).expect("is dropped");
    client.write_zeroes(4 * BLOCK, BLOCK as u32).expect("is zeroes");
    for _ in 0..3 {
        client.flush().expect("is flushed");
    }
    let count = |seen: &Exposition, kind| seen.get("helio_operation_duration_seconds_count", &[("kind", kind)]);
    until("flushes are counted", PATIENCE, || count(&scrape(&a), "flush") == Some(3.0));
    let seen = scrape(&a);
    let bytes = |kind| seen.get("helio_operation_bytes_total", &[("kind", kind)]);
    for (kind, operations, moved) in [
        ("write", 17.0, 17.0 * 8192.0),
        ("read", 5.0, 5.0 * 512.0),
        ("trim", 1.0, 8192.0),
        ("zero", 1.0, 4096.0),
        ("flush", 3.0, 0.0),
    ] {
        assert_eq!((count(&seen, kind), bytes(kind)), (Some(operations), Some(moved)), "{kind}");
        assert_eq!(seen.get("helio_operation_errors_total", &[("kind", kind)]), Some(0.0), "{kind}");
        assert!(seen.get("helio_operation_duration_seconds_sum", &[("kind", kind)]) > Some(0.0), "{kind}");
    }
    let of_disk = |name| seen.get(name, &[("volume", "disk")]);
    assert_eq!(of_disk("helio_volume_written_bytes_total"), Some(17.0 * 8192.0));
    assert_eq!(of_disk("helio_volume_size_bytes"), Some(f64::from(64 << 20)));
    assert_eq!(of_disk("helio_volume_mapped_bytes"), Some(31.0 * 4096.0), "34 blocks, 3 of which were dropped");
    assert_eq!((of_disk("helio_volume_owned"), seen.get("helio_volumes_owned", &[])), (Some(1.0), Some(1.0)));
    assert_eq!(seen.get("helio_store_written_bytes_total", &[("what", "data")]), Some(34.0 * 4096.0));
    assert_eq!(seen.get("helio_nbd_connections", &[]), Some(1.0));
    assert!(seen.get("helio_store_log_entries_total", &[]) >= seen.get("helio_store_log_records_total", &[]));
    assert_eq!(seen.get("helio_node_info", &[("node", "a"), ("provider", "a")]), Some(1.0));
    assert_eq!(seen.get("helio_ready", &[]), Some(1.0));
    for name in ["helio_process_cpu_seconds_total", "helio_process_resident_memory_bytes", "helio_process_open_fds"] {
        assert!(seen.get(name, &[]) > Some(0.0), "{name}");
    }
    assert!(seen.get("helio_lease_remaining_seconds", &[]) > Some(0.0));

    // The same as administrators are told; a log file may be made meanwhile.
    until("both tell the same", PATIENCE, || {
        let space: Value = up.json(&["node", "space", "--json"]).expect("is told");
        scrape(&a).get("helio_store_log_bytes", &[]) == space["stores"][0]["log_bytes"].as_f64()
    });
    let leads = |address: &str| scrape(address).get("helio_metadata_is_leader", &[]) == Some(1.0);
    let nodes = ["a", "b", "c"].map(|node| announced(&up.data(), node, "metrics"));
    until("one of them leads", PATIENCE, || nodes.iter().filter(|address| leads(address)).count() == 1);

    // The replicas catch up, as their owner sees it and as they do.
    for replica in ["b", "c"] {
        until("it catches up", PATIENCE, || {
            scrape(&a).get("helio_replica_lag_seconds", &[("volume", "disk"), ("replica", replica)]) == Some(0.0)
        });
    }
    until("b has everything", PATIENCE, || {
        let seen = scrape(&b);
        let of_disk = |name| seen.get(name, &[("volume", "disk")]);
        of_disk("helio_volume_mapped_bytes") == Some(31.0 * 4096.0) && of_disk("helio_volume_stale_bytes") == Some(0.0)
    });
    let (at_a, at_b) = (scrape(&a), scrape(&b));
    assert_eq!(at_b.get("helio_volume_owned", &[("volume", "disk")]), Some(0.0));
    assert_eq!(at_b.get("helio_volume_written_bytes_total", &[("volume", "disk")]), None, "the owner tells that");
    until("a is connected to b", PATIENCE, || {
        let seen = scrape(&a);
        let link = |name| seen.get(name, &[("peer", "b")]);
        link("helio_link_round_trip_seconds") > Some(0.0) && link("helio_link_connected") == Some(1.0)
    });
    // Each of the two may have had blocks from the other one, and not both all of them.
    let sent = |peer| at_a.get("helio_link_sent_bytes_total", &[("peer", peer)]).expect("is told");
    assert!(sent("b") + sent("c") > 0.0);
    assert_eq!(at_a.get("helio_volume_rpo_seconds", &[("volume", "disk")]), Some(0.0));

    // It goes elsewhere, and who owns it then tells so.
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    until("b owns it", PATIENCE, || scrape(&b).get("helio_volume_owned", &[("volume", "disk")]) == Some(1.0));
    until("a has handed it over", PATIENCE, || {
        scrape(&a).get("helio_handovers_total", &[("outcome", "done")]) == Some(1.0)
    });
    let at_a = scrape(&a);
    assert!(at_a.get("helio_handover_held_seconds_total", &[]) > Some(0.0));
    assert_eq!(at_a.get("helio_volume_owned", &[("volume", "disk")]), Some(0.0));
    assert_eq!(at_a.get("helio_handovers_total", &[("outcome", "failed")]), Some(0.0));
    client.write(0, &fill(1, 0, 2)).expect("is passed on");
    until("it is counted where the client is", PATIENCE, || count(&scrape(&a), "write") == Some(18.0));
    assert_eq!(count(&scrape(&b), "write"), Some(0.0), "and not again at the owner");

    // Both listeners tell the same families.
    let on_admin = scrape(&announced(&up.data(), "a", "http"));
    assert_eq!(on_admin.names(), at_a.names());
    drop(client);
    until("nobody is connected", PATIENCE, || scrape(&a).get("helio_nbd_connections", &[]) == Some(0.0));
    assert_eq!(scrape(&a).get("helio_nbd_connections_accepted_total", &[]), Some(1.0));
}

#[test]
fn whoever_may_only_look_can_do_nothing_else() {
    let up = Up::start(&["--providers", "a", "--metrics-port", "0"]).expect("starts");
    let address = announced(&up.data(), "a", "metrics");
    for path in
        ["/", "/v1/volumes", "/v1/cluster", "/health", "/metrics/x", "//metrics", "/health/live/../../v1/volumes"]
    {
        assert_eq!(http::get(&address, path).expect("is answered").status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        assert_eq!(http::send(&address, request.as_bytes()).expect("is answered").status, 405, "{method}");
    }
    let create = "POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n\
        {\"name\":\"x\",\"size_bytes\":1048576}";
    assert_eq!(http::send(&address, create.as_bytes()).expect("is answered").status, 404);
    assert_eq!(up.json(&["volume", "list", "--json"]).expect("is told"), serde_json::json!([]));
    let large = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let refused = http::send(&address, large.as_bytes()).map_or(0, |answer| answer.status);
    assert!([0, 400, 431].contains(&refused), "{refused}");
    let status =
        http::send(&address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").map_or(0, |answer| answer.status);
    assert!([0, 400].contains(&status), "{status}");
    // A second request on the same connection is not served.
    let twice = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    let answer = http::send(&address, twice.as_bytes()).expect("is answered");
    assert!(answer.status == 200 && !answer.body.contains("HTTP/1.1"), "{answer:?}");
    // More than may be open at once, each with half a request: others wait until those are given up.
    let halves: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).expect("is accepted");
            stream.write_all(b"GET /metrics HT").expect("is sent");
            stream
        })
        .collect();
    assert_eq!(health(&address, "ready").0, 200);
    drop(halves);
}

#[test]
fn a_node_without_a_majority_says_why_it_is_not_ready_and_what_is_at_risk() {
    let mut nodes = Nodes::none().expect("a directory");
    for name in ["a", "b", "c"] {
        nodes.add_with(name, LISTENER).expect("starts");
    }
    nodes.run("a", &["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    let address = announced(&nodes.path().join("a"), "a", "metrics");
    let (status, ready) = health(&address, "ready");
    assert_eq!((status, ready["status"].as_str()), (200, Some("ok")), "{ready}");
    for check in ["running", "metadata", "lease", "stores"] {
        assert_eq!(reason(&ready, check), None);
    }
    for name in ["b", "c"] {
        nodes.kill(name).expect("it runs");
    }
    until("it is not ready", PATIENCE, || health(&address, "ready").0 == 503);
    // The lease runs out some seconds later: only then guests wait.
    until("its lease is out", PATIENCE, || reason(&health(&address, "ready").1, "lease").is_some());
    let (status, ready) = health(&address, "ready");
    assert_eq!((status, ready["status"].as_str()), (503, Some("failing")), "{ready}");
    assert!(reason(&ready, "metadata").is_some_and(|why| why.contains("majority")), "{ready}");
    assert!(reason(&ready, "lease").is_some_and(|why| why.contains("wait")), "{ready}");
    assert_eq!((reason(&ready, "running"), reason(&ready, "stores")), (None, None));
    let (status, live) = health(&address, "live");
    assert_eq!((status, reason(&live, "threads")), (200, None), "a restart would not help");
    let seen = scrape(&address);
    for (check, holds) in [("metadata", 0.0), ("lease", 0.0), ("stores", 1.0), ("running", 1.0)] {
        assert_eq!(seen.get("helio_ready_check", &[("check", check)]), Some(holds), "{check}");
    }
    assert_eq!((seen.get("helio_ready", &[]), seen.get("helio_lease_remaining_seconds", &[])), (Some(0.0), Some(0.0)));
    nodes.start_node("b").expect("starts again");
    until("it is ready again", PATIENCE, || health(&address, "ready").0 == 200);
    until("its lease is in force", PATIENCE, || scrape(&address).get("helio_lease_remaining_seconds", &[]) > Some(0.0));
}

/// Only the end of a scrub was told, and only until the next one began, a week after the last one had: the alert for three
/// weeks without one could not fire, and of a store too busy to be read through nothing was told for months.
#[test]
fn a_scrub_that_goes_on_for_weeks_is_told_of_and_the_alert_looks_at_it() {
    let mut nodes = Nodes::none().expect("a directory");
    // A page of 256 blocks takes sixteen seconds, so that it cannot be through before it was looked at.
    let slow = format!("scrub_bytes_per_second = \"64KiB\"\nscrub_days = 0\n{LISTENER}");
    nodes.add_with("a", &slow).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "16M"]).expect("is created");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for mib in 0..16 {
        client.write(mib << 20, &vec![7; 1 << 20]).expect("is written");
    }
    client.flush().expect("is flushed");
    let address = announced(&nodes.path().join("a"), "a", "metrics");
    let [began, finished] = ["began", "finished"].map(|what| format!("helio_scrub_{what}_timestamp_seconds"));
    let told = || {
        let seen = scrape(&address);
        [&began, &finished].map(|name| seen.get(name, &[]))
    };
    assert_eq!(told(), [None, None], "there was none");
    let scrub = nodes.json("a", &["node", "scrub", "--no-wait", "--json"]).expect("begins");
    let began_ms = scrub["began_ms"].as_u64().expect("has begun");
    until("it is told when it began", PATIENCE, || told() == [Some(began_ms as f64 / 1000.0), None]);
    nodes.run("a", &["node", "scrub", "--stop"]).expect("ends");
    until("none is under way", PATIENCE, || told() == [None, None]);

    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring/alerts.yml");
    let rules = rules::alerts(&std::fs::read_to_string(rules).expect("is there")).expect("are rules");
    let overdue = rules.iter().find(|rule| rule.alert == "HelioScrubOverdue").expect("is there");
    let looked_at = rules::named(&overdue.fields["expr"]).expect("is whole").metrics;
    assert!(looked_at.into_keys().eq([began, finished]), "{overdue:?}");
}

/// What monitoring adds to every sample.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// Whether what `expression` names is told; returns the labels that its result may have.
fn require_told(expression: &str, names: &BTreeSet<String>, what: &str) -> BTreeSet<&'static str> {
    let found = rules::named(expression).unwrap_or_else(|error| panic!("{what}: {expression}: {error}"));
    let mut known: BTreeSet<&str> = ADDED.into();
    for (metric, asked) in &found.metrics {
        assert!(names.contains(metric), "{what}: no node tells {metric}");
        let is_of = |family: &&Family| {
            let name = family.full_name();
            *metric == name || (family.kind == Kind::Histogram && metric.starts_with(&name))
        };
        let family = ALL.iter().find(is_of).expect("what is told is in the table");
        known.extend(family.labels);
        for label in asked {
            let is_there = family.labels.contains(&label.as_str()) || ADDED.contains(&label.as_str());
            assert!(is_there, "{what}: {metric} has no label {label}");
        }
    }
    for label in &found.labels {
        assert!(known.contains(label.as_str()), "{what}: nothing in {expression} has a label {label}");
    }
    known
}

#[test]
fn rules_and_the_board_name_nothing_that_a_node_does_not_tell() {
    let up = Up::start(&["--providers", "a"]).expect("starts");
    let names = scrape(&announced(&up.data(), "a", "http")).names();
    let told: BTreeSet<String> = ALL
        .iter()
        .flat_map(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| family.full_name() + end).to_vec(),
            _ => vec![family.full_name()],
        })
        .collect();
    assert_eq!(names, told, "a node tells what the table has");

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |path: &str| std::fs::read_to_string(docs.join(path)).expect("is there");
    let alerts = rules::alerts(&read("monitoring/alerts.yml")).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(alerts.len() > 20, "{}", alerts.len());
    let page = read("monitoring.md");
    let unique: BTreeSet<&str> = alerts.iter().map(|rule| rule.alert.as_str()).collect();
    assert_eq!(unique.len(), alerts.len(), "a name is there twice");
    for rule in &alerts {
        let field = |name: &str| rule.fields.get(name).unwrap_or_else(|| panic!("{} has no {name}", rule.alert));
        let known = require_told(field("expr"), &names, &rule.alert);
        assert!(["critical", "warning"].contains(&field("labels.severity").as_str()), "{rule:?}");
        for label in
            ["annotations.summary", "annotations.description"].into_iter().flat_map(|it| rules::in_template(field(it)))
        {
            assert!(known.contains(label.as_str()), "{}: nothing has a label {label}", rule.alert);
        }
    }

    let board: Value = serde_json::from_str(&read("monitoring/grafana.json")).expect("is JSON");
    let panels = board["panels"].as_array().expect("a list");
    let shown: Vec<&Value> = panels.iter().filter(|panel| panel["type"] != "row").collect();
    assert!(shown.len() > 20, "{}", shown.len());
    for panel in shown {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("a list") {
            let known = require_told(target["expr"].as_str().expect("an expression"), &names, title);
            for label in rules::in_template(target["legendFormat"].as_str().expect("a legend")) {
                assert!(known.contains(label.as_str()), "{title}: nothing has a label {label}");
            }
        }
    }
    for variable in board["templating"]["list"].as_array().expect("a list") {
        if let Some(query) = variable["query"]["query"].as_str() {
            require_told(query, &names, query);
        }
    }
    for rule in &alerts {
        assert!(page.contains(&format!("`{}`", rule.alert)), "{} is not in monitoring.md", rule.alert);
    }
}

/// The log of `helio up` as objects, one a line.
#[test]
fn a_log_in_json_is_an_object_a_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let mut up = Up::start_in(directory, &["--providers", "a", "--log-format", "json"]).expect("starts");
    up.stop().expect("ends");
    let text = std::fs::read_to_string(log).expect("is there");
    let events: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect();
    let started = events.iter().find(|event| event["message"] == "started").expect("it says so");
    assert!(started["level"] == "INFO" && started["node"] == "a" && started["timestamp"].is_string(), "{started}");
}
