//! Certificates that end: renewed under load, come back from, refused (docs/membership.md). Real processes, with lifetimes of half a minute.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use client_lib::ErrorKind;
use client_lib::client::Cluster;
use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{ClientIdentity, ClusterAuthority, NodeIdentity, Validity};
use client_lib::transport::quic::QuicTransport;
use client_lib::transport::{Class, Transport, TransportError};
use client_lib::wire::frame::{Frame, ServiceId};
use tests::cluster::helio;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::{Owned, until};
use tests::workload::{check, fill};
use tests::writer::Writer;

const NAMES: [&str; 3] = ["a", "b", "c"];
const BLOCK: u64 = 4096;
const SEED: u64 = 61;
/// Long enough for a node to start in it on a busy machine.
const LIFETIME_S: u64 = 30;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(180);

/// Three nodes, of which `a` signs certificates that count for so long.
fn start() -> Nodes {
    let mut nodes = Nodes::none().expect("is made");
    for name in NAMES {
        nodes.configure(name).expect("is written");
        let text = std::fs::read_to_string(nodes.config(name)).expect("is there");
        let text = text.replace("[admin]\n", "[admin]\nremote = true\n");
        let settings = format!("{text}\n[certificates]\nnode_lifetime = \"{LIFETIME_S}s\"\n");
        std::fs::write(nodes.config(name), settings).expect("is written");
        nodes.join(name).expect("starts");
    }
    nodes
}

fn identity(nodes: &Nodes, name: &str) -> NodeIdentity {
    NodeIdentity::load(&nodes.path().join(name).join("identity")).expect("is there, and whole")
}

fn now_ms() -> u64 {
    SystemClock::new().unix_ms()
}

fn has_ended(nodes: &Nodes, name: &str) -> bool {
    identity(nodes, name).validity().has_ended(now_ms())
}

/// What a node says that must not start.
fn refused_start(nodes: &Nodes, name: &str) -> String {
    let mut command = Command::new(helio().expect("is built"));
    let out = command.args(["node", "--config"]).arg(nodes.config(name)).output().expect("runs");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Credentials that were issued some time ago, for so long.
fn issued(nodes: &Nodes, client: &str, age: Duration, lifetime: Duration) -> (ClientIdentity, PathBuf) {
    let file = nodes.credentials(client).expect("are issued");
    let listed = ClientIdentity::load(&file).expect("reads");
    let authority = ClusterAuthority::load(&nodes.path().join("a").join("authority")).expect("is there");
    let validity = Validity::starting(now_ms() - age.as_millis() as u64, lifetime);
    let identity = authority.issue_client(listed.name(), listed.nodes().to_vec(), validity).expect("is issued");
    identity.save(&file).expect("is written");
    (identity, file)
}

/// Every node shows three certificates after one another, its leader is restarted in between, and neither who writes through a node nor who
/// writes through helio-nbd from elsewhere is told of anything.
#[test]
fn nodes_renew_their_certificates_while_volumes_are_written() {
    let mut nodes = start();
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    nodes.run("a", &["volume", "create", "far", "--size", "64M", "--owner", "b"]).expect("is created");
    let remote = nodes.helio_nbd("host", &["--export", "far"]).expect("starts");
    let (near, far) = (Writer::new(0..400, SEED), Writer::new(0..400, SEED + 1));
    let renewals = |nodes: &Nodes, times: usize| {
        for _ in 0..times {
            let before = NAMES.map(|name| identity(nodes, name).fingerprint());
            nodes.until("a certificate is not renewed", PATIENCE, || {
                NAMES.iter().zip(before).all(|(name, before)| identity(nodes, name).fingerprint() != before)
            });
        }
    };
    let (socket, remote_socket) = (nodes.socket("a"), remote.socket().to_owned());
    std::thread::scope(|scope| {
        let near_runs = near.start(scope, &socket, "disk");
        let far_runs = far.start(scope, &remote_socket, "far");
        renewals(&nodes, 1);
        // From here on everything of b is connected with certificates that did not exist when it began.
        nodes.kill("b").expect("it runs");
        nodes.start_node("b").expect("starts");
        renewals(&nodes, 2);
        let (acked_near, acked_far) = (near.acked(), far.acked());
        nodes.until("the writers do not get on", PATIENCE, || near.acked() > acked_near && far.acked() > acked_far);
        near_runs.finish().expect("a client at a node sees no error");
        far_runs.finish().expect("a client of helio-nbd sees no error");
    });
    near.check(&mut Client::connect(&nodes.socket("c"), "disk").expect("connects")).expect("every byte is right");
    far.check(&mut Client::connect(remote.socket(), "far").expect("connects")).expect("every byte is right");
    for name in NAMES {
        let validity = identity(&nodes, name).validity();
        assert!(validity.has_end() && !validity.has_ended(now_ms()), "{name}: {validity}");
    }
    remote.stop().expect("stops");
}

/// One node was off for longer than its certificate counted, and then all of them were. Their data and their places stay.
#[test]
fn who_was_off_for_too_long_says_so_and_comes_back_with_a_token() {
    let mut nodes = start();
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "c"]).expect("is created");
    let write = |nodes: &Nodes, node: &str, block: u64| {
        let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
        client.write(block * BLOCK, &fill(SEED, block, 1)).expect("is written");
        client.flush().expect("is flushed");
    };
    let read = |nodes: &Nodes, node: &str, block: u64| {
        let mut client = Client::connect(&nodes.socket(node), "disk").expect("connects");
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(1), "{node}");
    };
    write(&nodes, "c", 1);
    let was = identity(&nodes, "c").node();
    nodes.stop("c").expect("stops");
    nodes.until("the certificate goes on", PATIENCE, || has_ended(&nodes, "c"));
    let told = refused_start(&nodes, "c");
    assert!(told.contains("the certificate of node c ended on") && told.contains("helio cluster join"), "{told}");

    let token = nodes.cluster(&["token"], "a", "").expect("is printed");
    let (secret, rest) = token.trim().split_once('.').expect("a secret and more");
    let wrong = format!("{}.{rest}", secret.chars().rev().collect::<String>());
    let refused = nodes.cluster(&["join"], "c", &wrong).expect_err("another secret").to_string();
    assert!(refused.contains("the token is not valid"), "{refused}");
    let told = nodes.cluster(&["join"], "c", &token).expect("is let in");
    assert!(told.contains("node c has a certificate again"), "{told}");
    nodes.start_node("c").expect("starts");
    assert_eq!(identity(&nodes, "c").node(), was, "it is the node that it was");
    read(&nodes, "c", 1);
    let refused = nodes.cluster(&["join"], "c", &token).expect_err("it runs, and needs none").to_string();
    assert!(!refused.contains("certificate again"), "{refused}");

    write(&nodes, "c", 2);
    for name in NAMES {
        nodes.stop(name).expect("stops");
    }
    until("a certificate goes on", PATIENCE, || NAMES.iter().all(|name| has_ended(&nodes, name)));
    // Nobody leads until another one is back, and that one is let in by a node that waits for a leader.
    let mut command = Command::new(helio().expect("is built"));
    let log = std::fs::File::create(nodes.path().join("first.log")).expect("is made");
    let first = Owned::start(command.args(["node", "--config"]).arg(nodes.config("a")).stderr(log), "helio node");
    let first = first.expect("starts");
    until("the authority's own node renews its certificate", PATIENCE, || !has_ended(&nodes, "a"));
    for name in ["b", "c"] {
        until("the node that waits signs", PATIENCE, || nodes.cluster(&["join"], name, &token).is_ok());
        nodes.start_node(name).expect("starts");
    }
    drop(first);
    nodes.start_node("a").expect("starts");
    for name in NAMES {
        read(&nodes, name, 1);
        read(&nodes, name, 2);
    }

    // What holds for members holds for nobody else.
    nodes.kill("c").expect("it runs");
    nodes.run("a", &["volume", "takeover", "disk"]).expect("is taken over");
    nodes.run("a", &["node", "remove", "c", "--lost"]).expect("is removed");
    until("the certificate goes on", PATIENCE, || has_ended(&nodes, "c"));
    let refused = nodes.cluster(&["join"], "c", &token).expect_err("it was removed").to_string();
    assert!(refused.contains("node c was removed from the cluster"), "{refused}");
}

/// A client whose certificate has ended is refused wherever certificates are looked at, and told why; one whose certificate ends while it is
/// connected is cut off, and goes on when its file is replaced.
#[test]
fn clients_are_let_in_until_their_certificates_end() {
    let nodes = start();
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let hour = Duration::from_secs(3600);
    let (ended, file) = issued(&nodes, "old", 2 * hour, hour);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let refused = Cluster::from_credentials(&file).expect_err("has ended");
        let text = refused.to_string();
        assert_eq!(refused.kind(), ErrorKind::InvalidRequest);
        assert!(text.contains("client old ended on") && text.contains("helio cluster client old --out"), "{text}");
        // A program that does not look by itself is told so by each node.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let transport = QuicTransport::client(socket, &ended).expect("starts");
        let request = Frame::new(ServiceId::Client, Bytes::new()).encode().expect("is small");
        for place in ended.nodes() {
            for class in Class::ALL {
                let outcome = transport.call(place.id, class, request.clone(), PATIENCE).await;
                assert!(
                    matches!(outcome, Err(TransportError::Ended { .. })),
                    "{class:?} at {}: {outcome:?}",
                    place.name
                );
            }
        }
        let cluster = Cluster::with_identity(&ended).expect("is made");
        let refused = cluster.members(None).await.expect_err("nobody lets it in").to_string();
        assert!(refused.contains("these credentials ended on"), "{refused}");
    });
    let mut command = Command::new(helio().expect("is built"));
    let out = command.arg("--cluster").arg(&file).args(["node", "list"]).output().expect("runs");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && told.contains("client old ended on"), "{told}");
    let refused = nodes.helio_nbd_with(&file, "old", &[]).map(drop).expect_err("does not start").to_string();
    assert!(refused.contains("client old ended on"), "{refused}");
    let shown =
        nodes.run("a", &["cluster", "client", "list", "--file", &file.display().to_string()]).expect("is shown");
    assert!(shown.contains("counts no more: it has ended"), "{shown}");

    // Cut off at its end, its client waits; with another file it goes on, and was told of nothing.
    let (_, file) = issued(&nodes, "host", Duration::ZERO, Duration::from_secs(12));
    let remote = nodes.helio_nbd_with(&file, "host", &["--export", "disk"]).expect("starts");
    let writer = Writer::new(0..400, SEED);
    let socket = remote.socket().to_owned();
    std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        nodes.until("the writer does not begin", PATIENCE, || writer.acked() > 0);
        let log = || remote.log().expect("is there");
        // In the middle of a call, or before the next one.
        let is_cut_off = || ["certificate has ended", "credentials ended on"].iter().any(|told| log().contains(told));
        nodes.until("it is not cut off", PATIENCE, is_cut_off);
        let acked = writer.acked();
        nodes
            .run("a", &["cluster", "client", "host", "--out", &file.display().to_string(), "--force", "--days", "2"])
            .expect("are issued");
        nodes.until("the writer does not get on", PATIENCE, || writer.acked() > acked + 100);
        assert!(log().contains("the credentials were read again"), "{}", log());
        running.finish().expect("its client is told of nothing");
    });
    let list = nodes.json("a", &["cluster", "client", "list", "--json"]).expect("are listed");
    let host = list["clients"].as_array().expect("a list").iter().find(|client| client["name"] == "host");
    let ends = host.expect("is listed")["certificates"].as_array().expect("a list").iter();
    let lasts = |until: &serde_json::Value| until.as_u64().expect("has an end").saturating_sub(now_ms()) / 1000;
    let mut days: Vec<_> = ends.map(|it| lasts(&it["until_ms"]).div_ceil(86_400)).collect();
    days.sort_unstable();
    assert_eq!(days, [2, 365], "what was issued with --days, and without");
    let shown = nodes.run("a", &["cluster", "client", "list"]).expect("are listed");
    assert!(!shown.contains("end within a month, or have ended"), "one of its certificates lasts: {shown}");
    remote.stop().expect("stops");
}
