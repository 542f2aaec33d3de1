//! `helio trace` with nodes that run: stages of real operations add up to their times, and a flush that waits for another provider has
//! spent its time on the way there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tests::cluster::Up;
use tests::nbd_client::Client;
use tests::page::tree;
use tests::schema::{faults, unnamed};

const BLOCK: u64 = 4096;

/// Uses the volume until told to stop: reads, writes, zeroes and flushes, one after the other.
fn load(socket: &Path, stop: &AtomicBool) {
    let mut client = Client::connect(socket, "disk").expect("connects");
    let mut at = 0;
    while !stop.load(Ordering::SeqCst) {
        for _ in 0..4 {
            at = (at + BLOCK) % (8 << 20);
            client.write(at, &[at as u8; BLOCK as usize]).expect("is written");
        }
        // A payload that comes in parts.
        client.write(16 << 20, &[9; 256 << 10]).expect("is written");
        client.read(at, BLOCK as u32).expect("is read");
        client.write_zeroes(at, BLOCK as u32).expect("is zeroed");
        client.flush().expect("is flushed");
    }
}

/// What `arguments` print while the volume is used through `socket`.
fn traced(up: &Up, socket: &Path, arguments: &[&str]) -> Value {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(socket, &stop));
        let report = up.json(arguments);
        stop.store(true, Ordering::SeqCst);
        load.join().expect("no panic");
        report.expect("is traced")
    })
}

fn kind<'a>(report: &'a Value, name: &str) -> &'a Value {
    let kinds = report["kinds"].as_array().expect("a list");
    kinds.iter().find(|kind| kind["operation"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

fn stage<'a>(kind: &'a Value, name: &str) -> &'a Value {
    let stages = kind["stages"].as_array().expect("a list");
    &stages.iter().find(|stage| stage["stage"] == name).expect("is there")["times"]
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// What must hold of any report.
fn check(report: &Value) {
    let described = std::fs::read_to_string(tree().join("docs/openapi.json")).expect("is read");
    let described: Value = serde_json::from_str(&described).expect("is JSON");
    let schema = json!({ "$ref": "#/components/schemas/TraceReport" });
    assert_eq!(faults(&described, &schema, report), Vec::<String>::new());
    assert!(unnamed(&described, &schema, report).is_empty(), "it says more than is described");
    for kind in report["kinds"].as_array().expect("a list") {
        let (total, sampled) = (&kind["total"], number(&kind["sampled"]));
        assert!(sampled > 0 && sampled <= number(&kind["count"]), "{kind:#}");
        assert_eq!(number(&kind["failed"]), 0);
        let stages = kind["stages"].as_array().expect("a list");
        let sum: u64 = stages.iter().map(|stage| number(&stage["times"]["sum_ns"])).sum();
        assert_eq!(sum, number(&total["sum_ns"]), "{kind:#}");
        let [p50, p99, max] = ["p50_ns", "p99_ns", "max_ns"].map(|name| number(&total[name]));
        assert!(0 < p50 && p50 <= p99 && p99 <= max, "{kind:#}");
        for name in ["socket", "queue"] {
            assert!(number(&stage(kind, name)["sum_ns"]) > 0, "every operation has a {name}: {kind:#}");
        }
    }
    let slowest = report["slowest"].as_array().expect("a list");
    let took: Vec<u64> = slowest.iter().map(|one| number(&one["took_ns"])).collect();
    assert!(!took.is_empty() && took.is_sorted_by(|a, b| a >= b), "{took:?}");
    for one in slowest {
        let spans = one["spans"].as_array().expect("a list");
        let mut at = 0;
        for span in spans {
            assert_eq!(number(&span["after_ns"]), at, "{one:#}");
            at += number(&span["took_ns"]);
        }
        assert_eq!(at, number(&one["took_ns"]), "{one:#}");
    }
}

#[test]
fn stages_add_up_to_what_operations_take() {
    let up = Up::start(&["--rtt", "60"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let report = traced(&up, &up.socket("a"), &["trace", "disk", "--for", "1s", "--json"]);
    check(&report);
    assert_eq!((report["volume"].as_str(), report["node"].as_str()), (Some("disk"), Some("a")));
    for (name, own) in [("write", "log"), ("zero", "log"), ("read", "log"), ("flush", "disk")] {
        assert!(number(&stage(kind(&report, name), own)["sum_ns"]) > 0, "{name} {own}");
        let network = number(&stage(kind(&report, name), "network")["sum_ns"]);
        assert_eq!(network, 0, "{name} waits for nobody in class local");
    }

    up.run(&["volume", "policy", "disk", "--durability", "geo:1"]).expect("is changed");
    let report = traced(&up, &up.socket("a"), &["trace", "disk", "--for", "2500ms", "--op", "flush,write", "--json"]);
    check(&report);
    let kinds: Vec<&str> =
        report["kinds"].as_array().expect("a list").iter().filter_map(|kind| kind["operation"].as_str()).collect();
    assert_eq!(kinds, ["write", "flush"], "nothing else was asked for");
    let flush = kind(&report, "flush");
    let (network, total) = (number(&stage(flush, "network")["sum_ns"]), number(&flush["total"]["sum_ns"]));
    assert!(network * 2 > total, "most of it is the way to another provider: {flush:#}");
    let write = kind(&report, "write");
    assert_eq!(number(&stage(write, "network")["sum_ns"]), 0, "a plain write waits for nobody");
    let slowest = &report["slowest"][0];
    assert_eq!(slowest["operation"], "flush");
    assert!(["b", "c"].iter().any(|node| slowest["waited_for"] == **node), "{slowest:#}");

    let shown = up.run(&["trace", "disk", "--for", "100ms"]).expect("is traced");
    assert!(shown.starts_with("volume disk at node a, ") && shown.contains("nobody asked anything"), "{shown}");
    let refused = up.run(&["trace", "nothing", "--for", "100ms"]).expect_err("there is no such volume");
    assert!(refused.to_string().contains("nothing"), "{refused}");
}
