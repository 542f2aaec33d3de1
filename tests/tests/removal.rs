//! Members and clients that are taken away again: nodes that are drained and removed, nodes that are lost, credentials and tokens that are
//! taken back (docs/membership.md). Real processes, and the certificates that they were issued.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::NodeId;
use client_lib::client::{OpenOptions, blocking};
use client_lib::pki::{ClientIdentity, NodeIdentity};
use client_lib::transport::quic::{QuicOptions, QuicTransport};
use client_lib::transport::{BoxFuture, Class, Service, Transport, TransportError};
use client_lib::wire::frame::{Frame, ServiceId};
use serde_json::Value;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::until;
use tests::workload::{check, fill};
use tests::writer::Writer;

const BLOCK: u64 = 4096;
const SEED: u64 = 47;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);
const SERVICES: [ServiceId; 5] =
    [ServiceId::Raft, ServiceId::Peer, ServiceId::Admin, ServiceId::Join, ServiceId::Client];

/// The members as a node lists them: name, role, whether it answers.
fn members(nodes: &Nodes, asked: &str) -> Vec<(String, String, bool)> {
    let list = nodes.json(asked, &["node", "list", "--json"]).expect("are listed");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let member = |node: &Value| (text(&node["name"]), text(&node["role"]), node["reachable"] == true);
    list["nodes"].as_array().expect("a list").iter().map(member).collect()
}

fn voters(nodes: &Nodes, asked: &str) -> Vec<String> {
    let votes = |role: &str| role == "voter" || role == "leader";
    members(nodes, asked).into_iter().filter(|(_, role, _)| votes(role)).map(|(name, ..)| name).collect()
}

struct Nobody;

impl Service for Nobody {
    fn serve(&self, _peer: Option<NodeId>, _class: Class, _request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async { Bytes::new() })
    }
}

/// What comes of a call in each service, in each class, to each of these nodes.
async fn calls(transport: &QuicTransport, to: &[(NodeId, String)]) -> Vec<(String, Result<Bytes, TransportError>)> {
    let mut outcomes = Vec::new();
    for (node, name) in to {
        for service in SERVICES {
            for class in Class::ALL {
                let request = Frame::new(service, Bytes::new()).encode().expect("is small");
                let outcome = transport.call(*node, class, request, PATIENCE).await;
                outcomes.push((format!("{service:?} in {class:?} at {name}"), outcome));
            }
        }
    }
    outcomes
}

/// The members' ids, and where they listen, without some of them.
fn places(nodes: &Nodes, asked: &str) -> Vec<(NodeId, String, std::net::SocketAddr)> {
    let list = nodes.json(asked, &["node", "list", "--json"]).expect("are listed");
    let place = |node: &Value| {
        let name = node["name"].as_str().expect("a name").to_owned();
        let address = node["address"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        (NodeId(node["id"].as_u64().expect("an id")), name, address)
    };
    list["nodes"].as_array().expect("a list").iter().map(place).collect()
}

/// With the certificate of a removed node, from a process that ignores that it was removed: whatever is asked, of whomever, is refused
/// before it is looked at.
fn gets_nowhere(nodes: &Nodes, removed: &str, asked: &str) {
    let places = places(nodes, asked);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let identity = NodeIdentity::load(&nodes.path().join(removed).join("identity")).expect("is there");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let transport = QuicTransport::start(QuicOptions { socket, identity }, Arc::new(Nobody)).expect("starts");
        places.iter().for_each(|(node, _, address)| transport.set_peer(*node, *address));
        let to: Vec<_> = places.iter().map(|(node, name, _)| (*node, name.clone())).collect();
        for (what, outcome) in calls(&transport, &to).await {
            assert!(matches!(outcome, Err(TransportError::Revoked { .. })), "{what}: {outcome:?}");
        }
        transport.close().await;
    });
}

/// A node leaves while its volume is written: nobody notices but itself.
#[test]
fn a_node_is_drained_and_removed_and_another_votes_in_its_place() {
    let mut nodes = Nodes::start(&["a", "b", "c", "d"]).expect("four nodes start");
    assert_eq!(voters(&nodes, "a"), ["a", "b", "c"]);
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");

    let (writer, socket) = (Writer::new(0..500, SEED), nodes.socket("a"));
    let wrote = |nodes: &Nodes, more: u64| {
        let target = writer.acked() + more;
        nodes.until("the writer does not get on", PATIENCE, || writer.acked() >= target);
    };
    let told = std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        wrote(&nodes, 300);
        nodes.run("a", &["volume", "migrate", "disk", "--to", "c"]).expect("is moved");
        wrote(&nodes, 100);
        let refused = nodes.refusal("a", &["node", "remove", "c"]);
        assert!(refused.contains("owns volume disk") && refused.contains("helio node drain c"), "{refused}");
        nodes.run("a", &["node", "drain", "c", "--to", "b"]).expect("is drained");
        let planned = nodes.run("a", &["node", "remove", "c", "--dry-run"]).expect("is planned");
        assert!(planned.contains("would remove c; voters are a, b, d"), "{planned}");
        assert_eq!(voters(&nodes, "a"), ["a", "b", "c"], "nothing was done");
        let told = nodes.run("a", &["node", "remove", "c"]).expect("is removed");
        wrote(&nodes, 300);
        running.finish().expect("a client at another node sees no error");
        told
    });
    assert!(told.contains("removed c; voters are a, b, d"), "{told}");
    assert!(told.contains("given up: volume disk has 2 replicas left"), "{told}");
    let (code, log) = nodes.ended("c").expect("ends by itself");
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("node c was removed from the cluster"), "{log}");

    for asked in ["a", "b", "d"] {
        until("another node votes, at every node", PATIENCE, || voters(&nodes, asked) == ["a", "b", "d"]);
    }
    let list = nodes.json("d", &["node", "list", "--json"]).expect("are listed");
    assert_eq!(list["removed"][0]["name"], "c");
    assert!(list["nodes"].as_array().expect("a list").iter().all(|node| node["version"].is_string()), "{list}");
    // The owner keeps nothing for it any more.
    let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("is told");
    let replicas: Vec<&str> =
        status["replicas"].as_array().expect("a list").iter().filter_map(|it| it["node"].as_str()).collect();
    assert_eq!(replicas, ["a", "d"]);
    let told = nodes.run("a", &["node", "remove", "c"]).expect("the same again is done");
    assert!(told.contains("removed c"), "{told}");

    for _ in 0..2 {
        let again = nodes.start_node("c").expect_err("it was removed").to_string();
        assert!(again.contains("exit status: 3") && again.contains("was removed from the cluster"), "{again}");
    }
    gets_nowhere(&nodes, "c", "a");
    // The two that are left of the voters of before would not have been a majority of them without d.
    nodes.kill("a").expect("it runs");
    nodes.run("b", &["volume", "create", "other", "--size", "1M", "--owner", "d"]).expect("there is a majority");
    nodes.start_node("a").expect("starts");

    // The name is free, the node is another one.
    nodes.forget("c").expect("is deleted");
    nodes.add("c").expect("joins");
    let ids = |asked: &str| places(&nodes, asked).into_iter().find(|(_, name, _)| name == "c").map(|(id, ..)| id.0);
    assert_ne!(ids("a"), list["removed"][0]["id"].as_u64());
    nodes.run("a", &["volume", "create", "third", "--size", "1M", "--owner", "c"]).expect("it is a member");
}

/// A machine burns; when a copy of its disk is started after all, it can do nothing.
#[test]
fn a_lost_node_is_given_up_and_disturbs_nobody_when_it_is_back() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    for volume in ["disk", "solo"] {
        nodes.run("a", &["volume", "create", volume, "--size", "64M", "--owner", "c"]).expect("is created");
    }
    let mut client = Client::connect(&nodes.socket("c"), "disk").expect("connects");
    for block in 0..50 {
        client.write(block * BLOCK, &fill(SEED, block, 1)).expect("is written");
    }
    client.flush().expect("is flushed");
    let is_in_step = |nodes: &Nodes| {
        let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("is told");
        status["replicas"].as_array().expect("a list").iter().all(|replica| replica["watermark"] == status["head"])
    };
    nodes.until("the replicas do not follow", PATIENCE, || is_in_step(&nodes));
    let alive = nodes.refusal("a", &["node", "remove", "c", "--lost"]);
    assert!(alive.contains("owns volumes disk, solo"), "{alive}");
    nodes.kill("c").expect("it runs");
    let owns = nodes.refusal("a", &["node", "remove", "c", "--lost"]);
    assert!(owns.contains("owns volumes disk, solo") && owns.contains("helio volume takeover"), "{owns}");
    for volume in ["disk", "solo"] {
        nodes.run("a", &["volume", "takeover", volume, "--to", "b"]).expect("is taken over");
    }
    let silent = nodes.refusal("a", &["node", "remove", "c"]);
    assert!(silent.contains("does not answer") && silent.contains("--lost"), "{silent}");
    let told = nodes.run("a", &["node", "remove", "c", "--lost"]).expect("is given up");
    assert!(told.contains("removed c (lost); voters are a, b"), "{told}");
    assert!(told.contains("given up: volume disk has 1 replica left: a"), "{told}");
    let removed = nodes.run("b", &["node", "list", "--removed"]).expect("is listed");
    assert!(removed.contains('c') && removed.contains("lost"), "{removed}");

    let before = nodes.json("a", &["cluster", "status", "--json"]).expect("is told");
    let back = nodes.start_node("c").expect_err("it was removed").to_string();
    assert!(back.contains("exit status: 3") && back.contains("refuses its certificate"), "{back}");
    let again = nodes.start_node("c").expect_err("it knows by now").to_string();
    assert!(again.contains("its data directory says so"), "{again}");
    gets_nowhere(&nodes, "c", "a");
    let after = nodes.json("a", &["cluster", "status", "--json"]).expect("is told");
    assert_eq!(after["term"], before["term"], "it called no election");
    assert_eq!(after["members"].as_array().map(Vec::len), Some(2));
    let mut client = Client::connect(&nodes.socket("b"), "disk").expect("connects");
    for block in 0..50 {
        let found = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert_eq!(check(&found, SEED, block), Ok(1), "block {block}");
    }
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    client.flush().expect("is flushed");
}

#[test]
fn what_must_not_be_removed_is_not_and_the_error_says_what_to_do() {
    let mut nodes = Nodes::start(&["a"]).expect("a node starts");
    let only = nodes.refusal("a", &["node", "remove", "a"]);
    assert!(only.contains("is the only one"), "{only}");
    nodes.add("b").expect("joins");
    nodes.add("c").expect("joins");
    nodes
        .run(
            "a",
            &["volume", "create", "far", "--size", "1M", "--owner", "a", "--replicas", "b", "--durability", "geo:1"],
        )
        .expect("is created");
    nodes
        .run("a", &["volume", "create", "near", "--size", "1M", "--owner", "b", "--replicas", "c"])
        .expect("is created");
    for (asked, arguments, expected) in [
        ("a", &["node", "remove", "z"][..], &["there is no node \"z\""][..]),
        ("b", &["node", "remove", "a"], &["owns volume far", "helio node drain a"]),
        ("c", &["node", "remove", "c"], &["does not remove itself", "--cluster HOST:PORT"]),
        ("a", &["node", "remove", "c", "--lost"], &["answers, so it is not lost"]),
        ("a", &["node", "remove", "c"], &["has the only replica of volume near", "--accept-fewer"]),
        ("a", &["node", "remove", "b"], &["owns volume near"]),
    ] {
        let refused = nodes.refusal(asked, arguments);
        assert!(expected.iter().all(|text| refused.contains(text)), "{arguments:?}: {refused}");
    }
    nodes.run("a", &["volume", "migrate", "near", "--to", "c"]).expect("is moved");
    let unmet = nodes.refusal("a", &["node", "remove", "b"]);
    assert!(unmet.contains("no flush of volume far could be answered in class geo:1"), "{unmet}");
    nodes.run("a", &["volume", "migrate", "far", "--to", "b"]).expect("is moved");
    let authority = nodes.refusal("b", &["node", "remove", "a", "--accept-fewer"]);
    assert!(authority.contains("holds the cluster's authority"), "{authority}");
    nodes.run("a", &["volume", "delete", "near", "--yes"]).expect("is deleted");
    nodes.run("a", &["volume", "delete", "far", "--yes"]).expect("is deleted");
    // Two of three are a majority, and one of the two that would be left is none.
    nodes.kill("b").expect("it runs");
    nodes.until("the others lead", PATIENCE, || nodes.run("a", &["volume", "list"]).is_ok());
    let quorum = nodes.refusal("a", &["node", "remove", "c"]);
    assert!(quorum.contains("would lose its quorum") && quorum.contains("(a, b)"), "{quorum}");
    assert_eq!(voters(&nodes, "a"), ["a", "b", "c"], "nothing was done");
    nodes.start_node("b").expect("starts");
    nodes.run("a", &["node", "remove", "c"]).expect("is removed");
    assert_eq!(nodes.ended("c").expect("ends by itself").0, Some(3));
}

/// The node had the only replica, and the volume's rule seated it there: it was not removed without others, which were to be added by hand, and the rule
/// gave those up again at once.
#[test]
fn a_rule_puts_a_copy_elsewhere_before_the_node_that_has_it_is_removed() {
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    let create = ["volume", "create", "disk", "--size", "16M", "--owner", "a", "--replicas", "c"];
    nodes.run("a", &create).expect("is created");
    nodes.run("a", &["volume", "place", "disk", "2 anywhere"]).expect("is placed");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    client.flush().expect("is flushed");
    let planned = nodes.run("a", &["node", "remove", "c", "--dry-run"]).expect("is planned");
    assert!(
        planned.contains("would wait: volume disk: its rule of placement gives it another copy first"),
        "{planned}"
    );
    let told = nodes.run("a", &["node", "remove", "c"]).expect("is removed");
    assert!(told.contains("removed c; voters are a, b"), "{told}");
    assert_eq!(nodes.ended("c").expect("ends by itself").0, Some(3));
    let status = nodes.json("a", &["volume", "status", "disk", "--json"]).expect("is told");
    let replicas = status["replicas"].as_array().expect("a list");
    assert_eq!(replicas.len(), 1, "{status}");
    assert!(replicas[0]["node"] == "b" && replicas[0]["is_joining"] == false, "{status}");
}

/// The one who leads, and votes alone, leaves: the other has the metadata.
#[test]
fn the_only_voter_is_removed_when_another_votes_and_leads() {
    let mut nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    assert_eq!(voters(&nodes, "a"), ["a"]);
    nodes.run("a", &["volume", "create", "disk", "--size", "1M", "--owner", "b"]).expect("is created");
    // Its authority goes where somebody stays.
    nodes.stop("a").expect("stops");
    nodes.stop("b").expect("stops");
    std::fs::rename(nodes.path().join("a/authority"), nodes.path().join("b/authority")).expect("is moved");
    let (a, b) = (nodes.path().join("a"), nodes.path().join("b"));
    assert!(!a.join("authority").exists() && b.join("authority").exists());
    nodes.start_node("a").expect("starts");
    nodes.start_node("b").expect("starts");
    let told = nodes.run("b", &["node", "remove", "a", "--accept-fewer"]).expect("is removed");
    assert!(told.contains("removed a; voter is b"), "{told}");
    assert_eq!(nodes.ended("a").expect("ends by itself").0, Some(3));
    nodes.run("b", &["volume", "create", "other", "--size", "1M", "--owner", "b"]).expect("it goes on alone");
    assert_eq!(members(&nodes, "b"), [("b".to_owned(), "leader".to_owned(), true)]);
    gets_nowhere(&nodes, "a", "b");
}

#[test]
fn a_revoked_client_is_cut_off_and_a_new_file_lets_it_in_again() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "16M", "--owner", "b"]).expect("is created");
    let (good, other) =
        (nodes.credentials("good").expect("are issued"), nodes.credentials("other").expect("are issued"));
    let open = |file: &std::path::Path| {
        let cluster = blocking::Cluster::from_credentials(file).expect("is one");
        cluster.open("disk", OpenOptions { give_up: Some(PATIENCE), ..OpenOptions::default() })
    };
    let kept = good.with_extension("kept");
    std::fs::copy(&good, &kept).expect("is copied");
    let volume = open(&good).expect("opens");
    volume.write(0, vec![7; 4096].into(), false).expect("is written");
    let remote = nodes.helio_nbd_with(&good, "good", &["--export", "disk"]).expect("starts");
    let mut nbd = Client::connect(remote.socket(), "disk").expect("connects");
    nbd.read(0, 4096).expect("is read");

    let listed = nodes.json("c", &["cluster", "client", "list", "--json"]).expect("are listed");
    let names: Vec<&str> =
        listed["clients"].as_array().expect("a list").iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["good", "other"]);
    let file = good.display().to_string();
    let worth = nodes.run("a", &["cluster", "client", "list", "--file", &file]).expect("is told");
    assert!(worth.contains("counts: it is listed"), "{worth}");

    let told = nodes.run("c", &["cluster", "client", "revoke", "good"]).expect("is revoked");
    assert!(told.contains("in force at a, b, c"), "{told}");
    // Nothing is written by it any more: neither on the connections that it has, nor on others.
    let refused = volume.write(0, vec![8; 4096].into(), false).expect_err("was revoked");
    assert!(refused.to_string().contains("were revoked"), "{refused}");
    nbd.read(0, 4096).expect_err("its helio-nbd was cut off");
    let again = open(&kept).map(drop).expect_err("was revoked");
    assert!(again.to_string().contains("were revoked"), "{again}");
    cut_off(&nodes, &kept, "a");
    let still = open(&other).expect("the other client is not disturbed");
    assert_eq!(still.read(0, 4096).expect("is read")[0], 7, "what the revoked one wrote before, and nothing after");

    let worth = nodes.run("a", &["cluster", "client", "list", "--file", &file]).expect("is told");
    assert!(worth.contains("counts no more"), "{worth}");
    nodes.run("a", &["cluster", "client", "good", "--out", &file, "--force"]).expect("is issued anew");
    let anew = open(&good).expect("opens");
    anew.write(0, vec![9; 4096].into(), false).expect("is written");
    assert!(open(&kept).is_err(), "the old file stays what it is");

    // One certificate of two of a name.
    let second = good.with_extension("second");
    let issued = nodes
        .json("a", &["cluster", "client", "good", "--out", &second.display().to_string(), "--json"])
        .expect("is issued");
    let fingerprint = issued["fingerprint"].as_str().expect("a fingerprint");
    open(&second).expect("opens");
    nodes.run("b", &["cluster", "client", "revoke", "--fingerprint", fingerprint]).expect("is revoked");
    assert!(open(&second).is_err());
    anew.write(0, vec![10; 4096].into(), false).expect("the first is not disturbed");
}

/// With the certificate of a revoked client nothing is answered, in no service.
fn cut_off(nodes: &Nodes, file: &std::path::Path, asked: &str) {
    let places = places(nodes, asked);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let identity = ClientIdentity::load(file).expect("is there");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let transport = QuicTransport::client(socket, &identity).expect("starts");
        let to: Vec<_> = places.iter().map(|(node, name, _)| (*node, name.clone())).collect();
        for (what, outcome) in calls(&transport, &to).await {
            assert!(matches!(outcome, Err(TransportError::Revoked { .. })), "{what}: {outcome:?}");
        }
        transport.close().await;
    });
}

/// Each node keeps what it was asked itself, and any tells of all; looking at something is no act, and no secret is in it.
#[test]
fn what_administrators_did_is_kept_with_what_came_of_it() {
    let mut nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    nodes.run("a", &["volume", "create", "disk", "--size", "1M", "--owner", "a"]).expect("is created");
    nodes.run("a", &["volume", "list"]).expect("is listed");
    nodes.refusal("b", &["node", "remove", "a"]);
    nodes.credentials("host").expect("are issued");
    nodes.run("b", &["cluster", "client", "revoke", "host"]).expect("is revoked");
    let acts = |nodes: &Nodes| {
        let list = nodes.json("b", &["cluster", "audit", "--json"]).expect("is told");
        assert_eq!(list["silent"].as_array().map(Vec::len), Some(0), "{list}");
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let entries = list["entries"].as_array().expect("a list").clone();
        entries.iter().map(|it| (text(it, "node"), text(it, "act"), text(it, "error"))).collect::<Vec<_>>()
    };
    let found = acts(&nodes);
    let expected = [
        ("a", "POST /v1/volumes", ""),
        ("b", "POST /v1/nodes/a/remove", "owns volume disk"),
        ("a", "POST /v1/clients", ""),
        ("b", "POST /v1/clients/revoke", ""),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((node, act, error), expected) in found.iter().zip(expected) {
        assert_eq!((node.as_str(), act.as_str()), (expected.0, expected.1));
        assert!(error.contains(expected.2) && error.is_empty() == expected.2.is_empty(), "{error}");
    }
    nodes.kill("b").expect("it runs");
    nodes.start_node("b").expect("starts");
    assert_eq!(acts(&nodes), found, "it outlives the process");
    let told = nodes.run("a", &["cluster", "audit"]).expect("is told");
    assert!(told.contains("done") && told.contains("failed: node a owns volume disk"), "{told}");
    let secret = nodes.cluster(&["token"], "a", "").expect("is shown");
    let kept = std::fs::read_to_string(nodes.path().join("a/audit.jsonl")).expect("is there");
    assert!(!kept.contains(secret.split('.').next().expect("a secret")) && !kept.contains("PRIVATE"), "{kept}");
}

#[test]
fn a_token_that_was_withdrawn_or_is_that_of_before_lets_nobody_in() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.configure("b").expect("is written");
    let first = nodes.cluster(&["token"], "a", "").expect("is shown");
    let turned_away = |token: &str| {
        let error = nodes.cluster(&["join"], "b", token).expect_err("is turned away").to_string();
        assert!(error.contains("the token is not valid"), "{error}");
    };
    nodes.cluster(&["token", "--withdraw"], "a", "").expect("is withdrawn");
    turned_away(&first);
    let none = nodes.cluster(&["token"], "a", "").expect_err("there is none").to_string();
    assert!(none.contains("was withdrawn"), "{none}");
    let second = nodes.cluster(&["token", "--renew", "--hours", "1"], "a", "").expect("is renewed");
    turned_away(&first);
    nodes.cluster(&["join"], "b", &second).expect("joins");
    assert_eq!(nodes.cluster(&["token"], "a", "").expect("is shown"), second, "for an hour");
}
