//! Nodes that follow a volume from now on, or no more, while it is in use (docs/replicas.md). Real processes.

use std::time::Duration;

use serde_json::Value;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::{self, until};
use tests::writer::Writer;

const SEED: u64 = 71;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

fn qemu_io(nodes: &Nodes, node: &str, export: &str, commands: &[&str]) -> anyhow::Result<String> {
    tools::qemu_io(&nodes.uri(node, export), export.contains('@'), commands)
}

fn status(nodes: &Nodes, asked: &str, volume: &str) -> Value {
    nodes.json(asked, &["volume", "status", volume, "--json"]).expect("tells")
}

fn replicas(nodes: &Nodes, asked: &str, volume: &str) -> Vec<String> {
    let replicas = status(nodes, asked, volume)["replicas"].clone();
    let name = |replica: &Value| replica["node"].as_str().expect("a name").to_owned();
    replicas.as_array().expect("a list").iter().map(name).collect()
}

/// Bytes of blocks of a volume, and of its snapshots, that a node has.
fn stored(nodes: &Nodes, node: &str, volume: &str) -> u64 {
    let space = nodes.json(node, &["node", "space", "--json"]).expect("tells");
    let listed = space["volumes"].as_array().expect("a list").iter().find(|listed| listed["volume"] == volume);
    let bytes = |field: &str| listed.map_or(0, |listed| listed[field].as_u64().expect("a number"));
    bytes("mapped_bytes") + bytes("snapshot_bytes") + bytes("held_bytes")
}

/// A node that joined later takes the place of one that is to go, under a writer that sees nothing of it; then it is all that is left.
#[test]
fn a_node_that_joined_later_becomes_a_replica_and_the_others_go() {
    let nodes = Nodes::start(&["a", "b", "c", "d"]).expect("four nodes start");
    nodes
        .run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a", "--replicas", "b"])
        .expect("is created");
    qemu_io(&nodes, "a", "disk", &["write -P 1 32M 16M", "flush"]).expect("is written");
    nodes.run("a", &["volume", "snapshot", "create", "disk@before"]).expect("is made");
    qemu_io(&nodes, "a", "disk", &["write -P 2 40M 16M", "flush"]).expect("is written");

    let (writer, socket) = (Writer::new(0..500, SEED), nodes.socket("a"));
    let wrote = |more: u64| {
        let target = writer.acked() + more;
        nodes.until("the writer does not get on", PATIENCE, || writer.acked() >= target);
    };
    std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        wrote(100);
        let told = nodes.run("c", &["volume", "replica", "add", "disk", "d", "--wait"]).expect("is added");
        assert!(told.contains("volume disk is owned by a, with replicas at b, d"), "{told}");
        let joined = status(&nodes, "b", "disk");
        let joined =
            joined["replicas"].as_array().expect("a list").iter().find(|it| it["node"] == "d").expect("is one").clone();
        assert_eq!(
            (&joined["is_joining"], &joined["reachable"]),
            (&Value::Bool(false), &Value::Bool(true)),
            "{joined}"
        );
        wrote(100);
        let told = nodes.run("b", &["volume", "replica", "remove", "disk", "b"]).expect("is removed");
        assert!(told.contains("with replicas at d"), "{told}");
        wrote(100);
        nodes.run("a", &["volume", "migrate", "disk", "--to", "d", "--mode", "synced"]).expect("is moved");
        wrote(100);
        running.finish().expect("a client at another node sees no error");
    });
    assert_eq!(replicas(&nodes, "a", "disk"), ["a"]);
    let last = nodes.refusal("a", &["volume", "replica", "remove", "disk", "a"]);
    assert!(last.contains("would have no replica") && last.contains("--accept-fewer"), "{last}");
    nodes.run("a", &["volume", "replica", "remove", "disk", "a", "--accept-fewer"]).expect("is removed");
    assert!(replicas(&nodes, "a", "disk").is_empty());
    for gone in ["a", "b"] {
        until("a node that is no replica drops its copy", PATIENCE, || stored(&nodes, gone, "disk") == 0);
    }
    assert!(stored(&nodes, "d", "disk") > 0, "what is measured is there where it is kept");
    // Read through by a node that has nothing of it.
    let written = ["read -P 1 32M 8M", "read -P 2 40M 16M"];
    for asked in ["d", "b"] {
        qemu_io(&nodes, asked, "disk", &written).expect("is all there");
        qemu_io(&nodes, asked, "disk@before", &["read -P 1 32M 16M", "read -P 0 48M 8M"]).expect("as it was");
    }
    let mut client = Client::connect(&nodes.socket("d"), "disk").expect("connects");
    writer.check(&mut client).expect("what was acked is there");
}

/// In parts, of which each is kept: the node is killed in between, and the volume written all the time.
#[test]
fn a_large_volume_comes_in_parts_and_what_has_come_stays() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes
        .run("a", &["volume", "create", "disk", "--size", "1G", "--owner", "a", "--replicas", "b"])
        .expect("is created");
    qemu_io(&nodes, "a", "disk", &["write -P 1 32M 700M", "write -z 100M 8M", "flush"]).expect("is written");
    let (writer, socket) = (Writer::new(0..2000, SEED), nodes.socket("a"));
    std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        nodes.run("b", &["volume", "replica", "add", "disk", "c"]).expect("is added");
        // The volume was left with nothing but an owner and a replica that had nothing, without a word.
        let refused = nodes.refusal("a", &["volume", "replica", "remove", "disk", "b"]);
        assert!(refused.contains("yet to get everything") && refused.contains("--accept-fewer"), "{refused}");
        let refused = nodes.refusal("a", &["node", "remove", "b"]);
        assert!(refused.contains("node b has the only replica of volume disk that has everything"), "{refused}");
        nodes.until("the first part does not come", PATIENCE, || stored(&nodes, "c", "disk") > 300 << 20);
        let told = nodes.run("a", &["why", "disk"]).expect("tells");
        assert!(told.contains("node c became a replica and is sent everything"), "{told}");
        nodes.kill("c").expect("is killed");
        nodes.start_node("c").expect("starts");
        nodes.until("what had come does not count", PATIENCE, || stored(&nodes, "c", "disk") > 256 << 20);
        let joining = || {
            let replicas = status(&nodes, "a", "disk")["replicas"].clone();
            replicas.as_array().expect("a list").iter().any(|it| it["is_joining"] == true)
        };
        nodes.until("it does not come to an end", PATIENCE, || !joining());
        nodes.run("a", &["volume", "migrate", "disk", "--to", "c", "--mode", "synced"]).expect("is moved");
        running.finish().expect("a client at another node sees no error");
    });
    nodes.until("there is something to fetch", PATIENCE, || status(&nodes, "c", "disk")["stale_bytes"] == 0);
    nodes.kill("a").expect("is killed");
    let written = ["read -P 1 32M 68M", "read -P 0 100M 8M", "read -P 1 108M 624M", "read -P 0 732M 100M"];
    qemu_io(&nodes, "c", "disk", &written).expect("is all there");
    let mut client = Client::connect(&nodes.socket("c"), "disk").expect("connects");
    writer.check(&mut client).expect("what was acked is there");
}

/// A move takes round trips, also to a node that has nothing of the volume yet, or a part of it.
#[test]
fn a_volume_goes_at_once_to_a_node_that_was_no_replica_a_moment_before() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes
        .run("a", &["volume", "create", "disk", "--size", "1G", "--owner", "a", "--replicas", "b"])
        .expect("is created");
    qemu_io(&nodes, "a", "disk", &["write -P 7 0 600M", "flush"]).expect("is written");
    let refused = nodes.refusal("a", &["volume", "migrate", "disk", "--to", "c"]);
    assert!(refused.contains("helio volume replica add disk c"), "{refused}");
    let told = nodes.run("a", &["volume", "replica", "add", "disk", "c"]).expect("is added");
    assert!(told.contains("with replicas at b, c"), "{told}");
    nodes.run("a", &["volume", "migrate", "disk", "--to", "c"]).expect("is moved");
    // Nobody may take away where the rest is.
    let waits = nodes.run("a", &["volume", "replica", "remove", "disk", "a", "--no-wait"]);
    if let Err(error) = &waits {
        assert!(error.to_string().contains("still fetches"), "{error}");
    }
    qemu_io(&nodes, "c", "disk", &["read -P 7 0 600M", "write -P 8 64M 1M", "flush"]).expect("is there");
    until("everything is fetched", PATIENCE, || status(&nodes, "c", "disk")["stale_bytes"] == 0);
    if waits.is_err() {
        nodes.run("a", &["volume", "replica", "remove", "disk", "a"]).expect("is removed");
    }
    assert_eq!(replicas(&nodes, "a", "disk"), ["b"]);
    qemu_io(&nodes, "a", "disk", &["read -P 7 0 64M", "read -P 8 64M 1M"]).expect("is read through");
}

#[test]
fn what_would_cost_more_than_was_meant_is_refused_with_what_to_do() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    let create = |name: &str, class: &str| {
        let arguments =
            ["volume", "create", name, "--size", "8M", "--owner", "a", "--replicas", "b", "--durability", class];
        nodes.run("a", &arguments).expect("is created");
    };
    create("disk", "geo:1");
    create("log", "geo:1");
    nodes.run("a", &["group", "create", "db", "disk", "log"]).expect("is made");
    for (arguments, said) in [
        (&["volume", "replica", "add", "disk", "c"][..], "helio group replica add db"),
        (&["group", "replica", "add", "db", "a"], "node a owns volume disk, and holds it already"),
        (&["group", "replica", "remove", "db", "a"], "hand it over with `helio volume migrate disk"),
        (&["group", "replica", "remove", "db", "c"], "node c holds no replica of volume disk; they are at b"),
        (&["group", "replica", "remove", "db", "b"], "would have no replica"),
        (&["group", "replica", "add", "db", "x"], "there is no node \"x\""),
    ] {
        let refused = nodes.refusal("b", arguments);
        assert!(refused.contains(said), "{arguments:?}: {refused}");
    }
    let told = nodes.run("b", &["group", "replica", "add", "db", "c", "--wait"]).expect("is added");
    assert_eq!(told.lines().count(), 2, "{told}");
    qemu_io(&nodes, "a", "disk", &["write -P 5 0 4M", "flush"]).expect("is written, flushed in its class");
    nodes.run("c", &["group", "replica", "remove", "db", "b"]).expect("c counts by now");
    qemu_io(&nodes, "a", "disk", &["write -P 6 0 1M", "flush"]).expect("is flushed to c");
    for volume in ["disk", "log"] {
        assert_eq!(replicas(&nodes, "c", volume), ["c"]);
    }
    nodes.run("a", &["group", "migrate", "db", "--to", "c"]).expect("the group still is one");
    qemu_io(&nodes, "c", "disk", &["read -P 6 0 1M", "read -P 5 1M 3M"]).expect("is there");
}

/// Copies go where a rule wants them: when a volume is made, when a node is lost for good, when the rule is another one; and the right to
/// write moves by hand alone.
#[test]
fn a_rule_keeps_copies_where_they_are_to_be_whoever_comes_and_goes() {
    let mut nodes = Nodes::start(&["a", "b", "c", "d"]).expect("four nodes start");
    for (node, labels) in [("a", &["eu", "ssd"][..]), ("b", &["eu"]), ("c", &["us"]), ("d", &["us"])] {
        nodes.run("b", &[&["node", "label", node], labels].concat()).expect("is labelled");
    }
    let list = nodes.json("c", &["node", "list", "--json"]).expect("are listed");
    assert_eq!(list["nodes"][0]["labels"], serde_json::json!(["eu", "ssd"]), "{list}");
    let rule = "1 in eu, 1 in us";
    let create = ["volume", "create", "disk", "--size", "16M", "--owner", "a", "--place", rule];
    nodes.run("b", &create).expect("is created");
    assert_eq!(replicas(&nodes, "a", "disk"), ["c"], "the first of those that fit");
    qemu_io(&nodes, "a", "disk", &["write -P 9 0 8M", "flush"]).expect("is written");

    nodes.kill("c").expect("runs");
    nodes.run("a", &["node", "remove", "c", "--lost", "--accept-fewer"]).expect("is removed");
    until("another node gets the copy", PATIENCE, || replicas(&nodes, "b", "disk") == ["d"]);
    let whole = |node: &str| {
        let status = status(&nodes, "b", "disk");
        let replicas = status["replicas"].as_array().expect("a list").clone();
        replicas.iter().any(|replica| replica["node"] == node && replica["is_joining"] == false)
    };
    until("it is complete", PATIENCE, || whole("d"));

    nodes.run("b", &["volume", "migrate", "disk", "--to", "d", "--mode", "synced"]).expect("is moved");
    let planned = nodes.run("b", &["volume", "place", "disk", "2 in eu", "--dry-run"]).expect("is planned");
    assert!(planned.contains("to get a copy: b") && planned.contains("the owner, node d, is where"), "{planned}");
    assert_eq!(replicas(&nodes, "b", "disk"), ["a"], "nothing has changed");
    nodes.run("b", &["volume", "place", "disk", "2 in eu"]).expect("is set");
    until("the copy is added", PATIENCE, || replicas(&nodes, "b", "disk") == ["a", "b"] && whole("b"));
    let told = nodes.run("a", &["volume", "status", "disk"]).expect("tells");
    assert!(told.contains("placement of disk: 2 in eu") && told.contains("the owner, node d, is where"), "{told}");
    nodes.run("b", &["volume", "migrate", "disk", "--to", "a", "--mode", "synced"]).expect("is moved");
    until("the copy of the old owner is given up", PATIENCE, || replicas(&nodes, "b", "disk") == ["b"]);
    let told = nodes.run("d", &["volume", "place", "disk"]).expect("tells");
    assert!(told.contains("they are where they are to be"), "{told}");
    qemu_io(&nodes, "d", "disk", &["read -P 9 0 8M"]).expect("is read through");
    until("it drops what it had", PATIENCE, || stored(&nodes, "d", "disk") == 0);

    let lacking = nodes.run("a", &["volume", "place", "disk", "2 in eu, 1 in asia"]).expect("is set all the same");
    assert!(lacking.contains("lacking, as no node that is up fits: 1 in asia"), "{lacking}");
    nodes.run("a", &["node", "label", "d", "asia"]).expect("is labelled");
    until("who fits by now gets a copy", PATIENCE, || replicas(&nodes, "b", "disk") == ["b", "d"]);
    nodes.run("a", &["volume", "place", "disk", "--none"]).expect("ends");
    let told = nodes.run("a", &["volume", "place", "disk"]).expect("tells");
    assert!(told.contains("has no rule of placement; copies at a, b, d"), "{told}");
    for wrong in ["2 of eu", "0 in eu", ""] {
        let refused = nodes.refusal("a", &["volume", "place", "disk", wrong]);
        assert!(refused.contains("2 in eu, 1 elsewhere"), "{refused}");
    }
}
