//! What clients may do: volumes by rules, which count at once, for every request, at every node (docs/membership.md, docs/security.md). Real
//! processes, and whatever a client could send with the certificate that it has.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use client_lib::client::{OpenOptions, blocking};
use client_lib::pki::ClientIdentity;
use client_lib::transport::quic::QuicTransport;
use client_lib::transport::{Class, Transport};
use client_lib::wire::client::{
    ClientMessage, ClientReply, ClientRequest, ExtentsOf, Target, Tenure, VolumeInfo, WriteId,
};
use client_lib::wire::frame::Frame;
use client_lib::{Epoch, ErrorKind, NodeId, SnapshotId, VolumeId};
use serde_json::Value;
use tests::cluster::helio;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::until;

/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: u32 = 4096;
/// NBD_FLAG_READ_ONLY.
const READ_ONLY: u16 = 1 << 1;

/// What a program does with the certificate of a client that does not care what it may do.
struct Attacker {
    runtime: tokio::runtime::Runtime,
    transport: std::sync::Arc<QuicTransport>,
    nodes: Vec<NodeId>,
}

impl Attacker {
    fn with(file: &Path) -> Attacker {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let identity = ClientIdentity::load(file).expect("is there");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let transport = runtime.block_on(async { QuicTransport::client(socket, &identity) }).expect("starts");
        let nodes = identity.nodes().iter().map(|place| place.id).collect();
        Attacker { runtime, transport, nodes }
    }

    fn knows(&mut self, node: NodeId, address: SocketAddr) {
        self.transport.set_peer(node, address);
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
    }

    fn ask(&self, node: NodeId, head: ClientRequest, payload: Bytes) -> ClientReply {
        let request = ClientMessage { head, payload }.encode().expect("is small");
        let called = self.transport.call(node, Class::Pull, request, PATIENCE);
        let reply = self.runtime.block_on(called).expect("it is let in");
        let frame = Frame::decode(&reply).expect("a frame");
        ClientMessage::<ClientReply>::decode(frame).expect("an answer to a client").head
    }

    /// The errors with which every node answers; anything else fails the test.
    fn refusals(&self, request: &ClientRequest) -> Vec<String> {
        let ask = |node: &NodeId| match self.ask(*node, request.clone(), Bytes::from(vec![9; BLOCK as usize])) {
            ClientReply::Failed(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{request:?}: {error}");
                error.to_string()
            }
            other => panic!("{request:?} was answered with {other:?}"),
        };
        self.nodes.iter().map(ask).collect()
    }
}

/// Each request there is about a volume: first those that read, then those that change something.
fn requests(volume: VolumeId, snapshot: SnapshotId, tenure: Tenure) -> (Vec<ClientRequest>, Vec<ClientRequest>) {
    let (live, kept) = (Target::Live { volume, tenure }, Target::Snapshot { volume, snapshot });
    let id = WriteId { session: 1 << 50, number: 1, answered: 1, generation: 1, right: tenure.epoch };
    let mut reads =
        vec![ClientRequest::Attach { volume, sessions: vec![1 << 50] }, ClientRequest::Flush { volume, tenure }];
    for target in [live, kept] {
        let (offset, length) = (0, u64::from(BLOCK));
        reads.extend([
            ClientRequest::Read { target, offset, length: BLOCK },
            ClientRequest::Extents { target, of: ExtentsOf::Allocation, offset, length },
            ClientRequest::Extents { target, of: ExtentsOf::Residency, offset, length },
            ClientRequest::Cache { target, offset, length },
        ]);
    }
    let changes = vec![
        ClientRequest::Write { volume, tenure, id, offset: 0, fua: false },
        ClientRequest::Zero { volume, tenure, id, offset: 0, length: u64::from(BLOCK), fua: true },
    ];
    (reads, changes)
}

fn opened(attacker: &Attacker, node: NodeId, name: &str) -> (VolumeId, Option<SnapshotId>, Epoch) {
    match attacker.ask(node, ClientRequest::Open { name: name.to_owned() }, Bytes::new()) {
        ClientReply::Opened(opened) => (opened.volume, opened.snapshot, opened.epoch),
        other => panic!("{name}: {other:?}"),
    }
}

/// The tenure of a volume's owner, as one who may use it is told.
fn tenure(attacker: &Attacker, node: NodeId, volume: VolumeId) -> Tenure {
    match attacker.ask(node, ClientRequest::Attach { volume, sessions: Vec::new() }, Bytes::new()) {
        ClientReply::Attached(attached) => attached.tenure,
        other => panic!("{other:?}"),
    }
}

fn names(volumes: &[VolumeInfo]) -> Vec<&str> {
    volumes.iter().map(|volume| volume.name.as_str()).collect()
}

#[test]
fn whatever_a_limited_client_sends_it_gets_what_its_rules_allow_and_nothing_else() {
    let nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    for (volume, owner) in [("mine", "a"), ("shared", "b"), ("secret", "b")] {
        nodes.run("a", &["volume", "create", volume, "--size", "16M", "--owner", owner]).expect("is created");
        nodes.run("a", &["volume", "snapshot", "create", &format!("{volume}@kept")]).expect("is made");
    }
    let free = nodes.credentials("free").expect("are issued");
    let file = nodes.path().join("limited.helio").display().to_string();
    let issue = ["cluster", "client", "limited", "--out", &file, "--allow", "mine", "--allow", "sha*:ro"];
    let told = nodes.run("a", &issue).expect("is issued");
    assert!(told.contains("role volume: may use mine, sha*:ro, and nothing else"), "{told}");

    let list = nodes.json("b", &["node", "list", "--json"]).expect("are listed");
    let place = |node: &Value| {
        let address = node["address"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        (NodeId(node["id"].as_u64().expect("an id")), address)
    };
    let places: Vec<(NodeId, SocketAddr)> = list["nodes"].as_array().expect("a list").iter().map(place).collect();
    let [mut insider, mut attacker] = [&free, Path::new(&file)].map(Attacker::with);
    for (node, address) in &places {
        insider.knows(*node, *address);
        attacker.knows(*node, *address);
    }
    let node = places[0].0;

    // Nothing of what it may not use, by name or by number, at the owner and elsewhere.
    let (secret, kept, _) = opened(&insider, node, "secret@kept");
    let (reads, changes) = requests(secret, kept.expect("a snapshot"), tenure(&insider, node, secret));
    for request in reads.iter().chain(&changes) {
        for text in attacker.refusals(request) {
            assert!(text.contains("client limited may not use this volume") && !text.contains("secret"), "{text}");
        }
    }
    let by_name = |name: &str| {
        let name = name.to_owned();
        [ClientRequest::Open { name: name.clone() }, ClientRequest::OpenFor { name }]
            .map(|request| attacker.refusals(&request))
    };
    assert_eq!(by_name("secret"), by_name("no-such-volume"), "it is not told which volumes there are");
    assert_eq!(by_name("secret@kept"), by_name("secret"));

    // What it may read it may read, and nothing else.
    let (shared, kept, _) = opened(&attacker, node, "shared@kept");
    let (reads, changes) = requests(shared, kept.expect("a snapshot"), tenure(&attacker, node, shared));
    for request in &reads {
        for node in &attacker.nodes {
            let reply = attacker.ask(*node, request.clone(), Bytes::new());
            assert!(!matches!(reply, ClientReply::Failed(_)), "{request:?}: {reply:?}");
        }
    }
    for text in changes.iter().flat_map(|request| attacker.refusals(request)) {
        assert!(text.contains("client limited may only read volume shared"), "{text}");
        assert!(text.contains("helio cluster client allow limited shared"), "{text}");
    }
    for request in [ClientRequest::Volumes, ClientRequest::List] {
        let listed: Vec<VolumeInfo> = match attacker.ask(node, request, Bytes::new()) {
            ClientReply::Volumes(volumes) => volumes,
            ClientReply::Listed(listed) => listed.into_iter().map(|listed| listed.volume).collect(),
            other => panic!("{other:?}"),
        };
        assert_eq!(names(&listed), ["mine", "mine@kept", "shared", "shared@kept"]);
    }

    // As programs see it.
    let cluster = blocking::Cluster::from_credentials(Path::new(&file)).expect("is one");
    let open = |name: &str, is_read_only| {
        cluster.open(name, OpenOptions { is_read_only, give_up: Some(PATIENCE), ..OpenOptions::default() })
    };
    assert_eq!(names(&cluster.volumes().expect("are listed")), ["mine", "mine@kept", "shared", "shared@kept"]);
    let mine = open("mine", false).expect("opens");
    mine.write(0, vec![7; BLOCK as usize].into(), true).expect("is written");
    assert_eq!(mine.read(0, BLOCK).expect("is read")[0], 7);
    let refused = open("shared", false).map(drop).expect_err("may not be written");
    assert_eq!(refused.kind(), ErrorKind::InvalidRequest);
    assert!(refused.to_string().contains("client limited may only read volume shared"), "{refused}");
    assert_eq!(open("shared", true).expect("opens").read(0, BLOCK).expect("is read")[0], 0, "nothing was written");
    let refused = open("secret", true).map(drop).expect_err("is none of its");
    assert!(refused.to_string().contains("client limited may not use this volume"), "{refused}");

    // A read-only export where only reading is allowed, and none where nothing is.
    let remote = nodes.helio_nbd_with(Path::new(&file), "limited", &[]).expect("starts");
    let mut nbd = Client::connect(remote.socket(), "shared").expect("connects");
    assert!(nbd.flags() & READ_ONLY != 0, "the client is told");
    nbd.read(0, BLOCK).expect("is read");
    let mut writer = Client::connect(remote.socket(), "mine").expect("connects");
    assert_eq!(writer.flags() & READ_ONLY, 0);
    writer.write(0, &[8; BLOCK as usize]).expect("is written");
    assert!(Client::connect(remote.socket(), "secret").is_err());
}

#[test]
fn a_rule_that_is_given_or_withdrawn_counts_at_once_for_what_is_in_use() {
    let nodes = Nodes::start(&["a", "b", "c"]).expect("three nodes start");
    for volume in ["disk", "other"] {
        nodes.run("a", &["volume", "create", volume, "--size", "16M", "--owner", "b"]).expect("is created");
    }
    let file = nodes.credentials("host").expect("are issued");
    let open = |name: &str| {
        let cluster = blocking::Cluster::from_credentials(&file).expect("is one");
        cluster.open(name, OpenOptions { give_up: Some(PATIENCE), ..OpenOptions::default() })
    };
    let refused =
        nodes.run("c", &["cluster", "client", "deny", "host", "disk"]).expect_err("it has no rules").to_string();
    assert!(refused.contains("was never given a rule"), "{refused}");
    let listed = nodes.run("c", &["cluster", "client", "list"]).expect("are listed");
    assert!(listed.contains("all (no rules)") && listed.contains("Clients without rules"), "{listed}");
    let mut doctor = std::process::Command::new(helio().expect("was built"));
    // Whatever else it finds on this machine.
    let told = doctor.arg("doctor").arg("--data").arg(nodes.path().join("a")).output().expect("it runs").stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("host has no rules, and may use every volume"), "{told}");

    let (disk, other) = (open("disk").expect("opens"), open("other").expect("opens"));
    let block = || Bytes::from(vec![1; BLOCK as usize]);
    disk.write(0, block(), false).expect("is written");
    other.write(0, block(), false).expect("is written");
    let told = nodes.run("c", &["cluster", "client", "allow", "host", "di*"]).expect("is given");
    assert!(told.contains("may use di*, and nothing else") && told.contains("in force at a, b, c"), "{told}");
    disk.write(0, block(), false).expect("goes on");
    for refused in [other.write(0, block(), false).map(drop), other.read(0, BLOCK).map(drop)] {
        let refused = refused.expect_err("no rule is for it");
        assert!(refused.to_string().contains("client host may not use this volume"), "{refused}");
    }
    // From writing to reading.
    nodes.run("a", &["cluster", "client", "allow", "host", "di*:ro"]).expect("is given");
    let refused = disk.write(0, block(), false).expect_err("may only be read");
    assert!(refused.to_string().contains("client host may only read volume disk"), "{refused}");
    assert_eq!(disk.read(0, BLOCK).expect("is read")[0], 1);
    nodes.run("b", &["cluster", "client", "allow", "host", "disk"]).expect("is given");
    disk.write(0, block(), true).expect("goes on");
    let told = nodes.run("b", &["cluster", "client", "deny", "host", "disk"]).expect("is withdrawn");
    assert!(told.contains("volume disk may still be used, by rule di*:ro"), "{told}");
    let shown = nodes.run("b", &["cluster", "client", "show", "host"]).expect("is shown");
    assert!(shown.contains("rule di*:ro: reading; disk") && shown.contains("certificate "), "{shown}");
    let refused = nodes.run("a", &["cluster", "client", "deny", "host", "disk"]).expect_err("is gone").to_string();
    assert!(refused.contains("client host has no rule disk"), "{refused}");

    // All of it: the session ends by itself, and a new file of the name does not help.
    nodes.run("a", &["cluster", "client", "deny", "host", "di*"]).expect("is withdrawn");
    disk.read(0, BLOCK).expect_err("may not be used");
    until("the session is over", PATIENCE, || format!("{:?}", disk.state().status).contains("may not use this volume"));
    nodes.run("a", &["cluster", "client", "host", "--out", &file.display().to_string(), "--force"]).expect("is issued");
    let refused = open("disk").map(drop).expect_err("rules are of the name");
    assert!(refused.to_string().contains("may not use this volume"), "{refused}");
    nodes.run("a", &["cluster", "client", "allow", "host", "*"]).expect("is given");
    open("disk").expect("opens").write(0, block(), false).expect("is written");
    let audit = nodes.run("a", &["cluster", "audit"]).expect("is told");
    assert!(audit.contains("POST /v1/clients/rights") && audit.contains("di*"), "{audit}");

    // A role that uses no volumes.
    nodes.run("a", &["cluster", "client", "role", "host", "viewer"]).expect("is given");
    let refused = open("disk").map(drop).expect_err("only looks");
    assert!(refused.to_string().contains("client host has role viewer, which uses no volumes"), "{refused}");
}

/// Who may use a node's files is no client with a certificate, whatever that is called.
#[test]
fn the_socket_of_a_node_is_not_limited_by_a_client_of_its_name() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "1M", "--owner", "a"]).expect("is created");
    let file = nodes.path().join("local.helio").display().to_string();
    nodes.run("a", &["cluster", "client", "local", "--out", &file, "--allow", "none"]).expect("is issued");
    let options = || OpenOptions { give_up: Some(PATIENCE), ..OpenOptions::default() };
    let limited = blocking::Cluster::from_credentials(Path::new(&file)).expect("is one");
    assert!(limited.open("disk", options()).is_err());
    let beside = blocking::Cluster::from_socket(&nodes.path().join("a/client.sock")).expect("is one");
    let disk = beside.open("disk", options()).expect("opens");
    disk.write(0, vec![1; BLOCK as usize].into(), false).expect("is written");
}

/// An operator may not say where copies are, and could all the same. An older volume without a rule, made a group with one that was never to be at some
/// provider, gave that one its own rule, which was none; and so did one that was added to a group.
#[test]
fn no_volume_loses_its_rule_of_placement_to_a_group() {
    let nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    for volume in ["scratch", "secret"] {
        nodes.run("a", &["volume", "create", volume, "--size", "16M", "--owner", "a"]).expect("is created");
    }
    nodes.run("a", &["volume", "place", "secret", "2 anywhere, never cloud-3"]).expect("is placed");
    let rule = |volume: &str| {
        nodes.json("b", &["volume", "place", volume, "--json"]).expect("is told")["rule"].as_str().map(str::to_owned)
    };
    let kept = rule("secret");
    assert!(kept.as_ref().is_some_and(|rule| rule.contains("never cloud-3")), "{kept:?}");
    let refused = nodes.refusal("a", &["group", "create", "g", "scratch", "secret"]);
    assert!(refused.contains("volume secret has another rule of placement than volume scratch"), "{refused}");
    nodes.run("a", &["group", "create", "g", "scratch"]).expect("is made");
    let refused = nodes.refusal("b", &["group", "add", "g", "secret"]);
    assert!(refused.contains("give both the same with `helio volume place` first"), "{refused}");
    assert_eq!((rule("secret"), rule("scratch")), (kept.clone(), None));

    // Placed alike by who may do that they go together.
    nodes.run("a", &["group", "place", "g", "2 anywhere, never cloud-3"]).expect("is placed");
    nodes.run("a", &["group", "add", "g", "secret"]).expect("is added");
    assert_eq!((rule("secret"), rule("scratch")), (kept.clone(), kept));
}

/// A file with a rule for one volume told the names of all others. Asked for one by its number, in an epoch that there will never be, a node waited to
/// hear of that, and said that volume so-and-so was being handed over, before it looked at the rules. Of a number that is none it said so.
#[test]
fn no_name_is_told_by_a_volume_that_is_waited_for() {
    let nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    for volume in ["mine", "payroll"] {
        nodes.run("a", &["volume", "create", volume, "--size", "16M", "--owner", "b"]).expect("is created");
        nodes.run("a", &["volume", "snapshot", "create", &format!("{volume}@kept")]).expect("is made");
    }
    let free = nodes.credentials("free").expect("are issued");
    let file = nodes.path().join("limited.helio").display().to_string();
    nodes.run("a", &["cluster", "client", "limited", "--out", &file, "--allow", "mine"]).expect("is issued");
    let list = nodes.json("b", &["node", "list", "--json"]).expect("are listed");
    let [mut insider, mut attacker] = [&free, Path::new(&file)].map(Attacker::with);
    for node in list["nodes"].as_array().expect("a list") {
        let id = NodeId(node["id"].as_u64().expect("an id"));
        let address = node["address"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        insider.knows(id, address);
        attacker.knows(id, address);
    }
    let node = attacker.nodes[0];
    let (payroll, kept, _) = opened(&insider, node, "payroll@kept");
    let kept = kept.expect("a snapshot");
    let never = Tenure { epoch: Epoch(u64::MAX), incarnation: 0 };
    let all = |volume| {
        let (reads, changes) = requests(volume, kept, never);
        reads.into_iter().chain(changes).collect::<Vec<_>>()
    };
    for (known, unknown) in all(payroll).iter().zip(&all(VolumeId(u64::MAX))) {
        let told = attacker.refusals(known);
        for text in &told {
            assert!(text.contains("client limited may not use this volume") && !text.contains("payroll"), "{text}");
        }
        assert_eq!(told, attacker.refusals(unknown), "{known:?}: it is not told which volumes there are");
    }
    // What it may use it is told about, and who may use all of them that there is none.
    let (mine, _, _) = opened(&attacker, node, "mine");
    tenure(&attacker, node, mine);
    for request in all(VolumeId(u64::MAX)) {
        match insider.ask(node, request, Bytes::from(vec![9; BLOCK as usize])) {
            ClientReply::Failed(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

/// A client ended a node, or took its leases, by asking about millions of sessions, or for a volume with a name of megabytes: all of it was read, twice,
/// before anybody looked at what that client may do.
#[test]
fn a_request_of_any_length_costs_a_node_nothing() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "mine", "--size", "16M", "--owner", "a"]).expect("is created");
    let file = nodes.path().join("limited.helio").display().to_string();
    let issue = ["cluster", "client", "limited", "--out", &file, "--allow", "mine:ro", "--allow", "x*y*z"];
    nodes.run("a", &issue).expect("is issued");
    let attacker = Attacker::with(Path::new(&file));
    let node = attacker.nodes[0];
    let (mine, _, _) = opened(&attacker, node, "mine");
    let long = "xy".repeat(1 << 19);
    for volume in [mine, VolumeId(u64::MAX)] {
        for request in [
            ClientRequest::Attach { volume, sessions: vec![0; 1 << 20] },
            ClientRequest::Open { name: long.clone() },
            ClientRequest::OpenFor { name: long.clone() },
        ] {
            match attacker.ask(node, request, Bytes::new()) {
                ClientReply::Failed(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }
    // By our own client it is said what is wrong.
    let cluster = blocking::Cluster::from_credentials(Path::new(&file)).expect("is one");
    let options = OpenOptions { give_up: Some(PATIENCE), ..OpenOptions::default() };
    let refused = cluster.open(&long, options).map(drop).expect_err("is no name");
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    tenure(&attacker, node, mine);
}
