//! Who may ask the admin API for what: every request in every role, on loopback with the node's secret and from other machines with
//! certificates, and whoever else comes (docs/security.md).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client_lib::pki::{ClientIdentity, ClusterAuthority, ClusterId, NodeIdentity, NodePlace, Validity, provider, tls};
use client_lib::rights::Role;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use storage_node::serve::http::permissions::REQUESTS;
use tests::cluster::helio;
use tests::http::{self, Admin};
use tests::nodes::Nodes;
use tests::tools::run;

/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// What no request can be: whoever may ask is told so, and nothing is done.
const NO_JSON: &str = "{";

/// Nodes that are asked from other machines, too.
fn start(names: &[&str]) -> Nodes {
    let mut nodes = Nodes::none().expect("is made");
    for name in names {
        nodes.configure(name).expect("is written");
        let text = std::fs::read_to_string(nodes.config(name)).expect("is there");
        std::fs::write(nodes.config(name), text.replace("[admin]\n", "[admin]\nremote = true\n")).expect("is written");
        nodes.join(name).expect("starts");
    }
    nodes
}

/// Credentials of a client with this role, which is its name.
fn credentials(nodes: &Nodes, role: Role) -> PathBuf {
    let file = nodes.path().join(format!("{role}.helio"));
    let arguments =
        ["cluster", "client", &role.to_string(), "--out", &file.display().to_string(), "--role", &role.to_string()];
    nodes.run("a", &arguments).expect("are issued");
    file
}

/// A request as it is routed, with names that nothing has.
fn path_of(routed: &str) -> String {
    ["{name}", "{snapshot}", "{from}", "{to}"]
        .iter()
        .fold(routed.to_owned(), |path, part| path.replace(part, "nothing"))
}

/// The status with which a node answers over TLS; an error if the connection is refused or cut off without an answer.
fn ask_with(
    config: ClientConfig,
    place: &NodePlace,
    cluster: &ClusterId,
    head: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let socket = TcpStream::connect(place.address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = tls::node_name(cluster, place.id).expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("is made");
    let mut stream = StreamOwned::new(connection, socket);
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}",
        place.address
    )?;
    stream.flush()?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.split(' ').nth(1).and_then(|status| status.parse().ok()) {
        Some(status) => Ok((status, answer)),
        None => Err(read.err().unwrap_or_else(|| std::io::Error::other("closed without an answer"))),
    }
}

fn ask(identity: &ClientIdentity, head: &str, body: &str) -> std::io::Result<(u16, String)> {
    let config = tls::client_of_nodes(identity).expect("is made");
    ask_with(config, &identity.nodes()[0], identity.cluster(), head, body)
}

#[test]
fn every_request_is_answered_in_the_roles_that_may_and_refused_in_all_others() {
    let nodes = start(&["a"]);
    let admin = Admin::find(&nodes.path().join("a"), "a").expect("is told");
    let identities: Vec<(Role, ClientIdentity)> = Role::ALL
        .into_iter()
        .map(|role| (role, ClientIdentity::load(&credentials(&nodes, role)).expect("is one")))
        .collect();
    // Nothing was ever said of what it is there for: as all clients were.
    let plain = ClientIdentity::load(&nodes.credentials("plain").expect("are issued")).expect("is one");
    for (method, routed, needs) in REQUESTS {
        let head = format!("{method} {}", path_of(routed));
        let body = if *method == "POST" { NO_JSON } else { "" };
        for (role, identity) in &identities {
            let (status, answer) =
                ask(identity, &head, body).unwrap_or_else(|error| panic!("{head} as {role}: {error}"));
            let is_refused = [401, 403, 405].contains(&status);
            assert_eq!(is_refused, !needs.is_met_by(*role), "{head} as {role}: {answer}");
            if is_refused {
                assert!(status == 403 && answer.contains(&format!("client {role} has role {role}")), "{answer}");
            }
        }
        assert_eq!(ask(&plain, &head, body).expect("is answered").0, 403, "{head}");
        // On loopback: nobody but who has the secret.
        let local = |proof: &str| {
            let length = body.len();
            let request = format!(
                "{head} HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\nConnection: close\r\n{proof}Content-Length: {length}\r\n\r\n{body}"
            );
            http::send(&admin.address, request.as_bytes()).expect("is answered").status
        };
        assert_eq!(local(""), 401, "{head}");
        assert_eq!(local(&format!("Authorization: Bearer {}\r\n", "0".repeat(64))), 401, "{head}");
        assert_eq!(local("Authorization: Bearer \r\n"), 401, "{head}");
        assert!(![401, 403, 405].contains(&local(&format!("{}\r\n", admin.header()))), "{head}");
    }
    // What is not in the table is there for nobody.
    let root = &identities.iter().find(|(role, _)| *role == Role::Admin).expect("is there").1;
    assert_eq!(ask(root, "PUT /v1/volumes", "{}").expect("is answered").0, 405);
    for path in [
        "/v1/nothing",
        "/metrics",
        "/health",
        "/",
        "/dashboard/api.js",
        "/v1/volumes/",
        "//v1/volumes",
        "/v1/../v1/volumes",
    ] {
        assert_eq!(ask(root, &format!("GET {path}"), "").expect("is answered").0, 404, "{path}");
    }
    // What anybody may see, on the machine itself.
    for path in ["/health", "/health/live", "/health/ready", "/metrics", "/", "/dashboard/api.js"] {
        assert_eq!(http::get(&admin.address, path).expect("is answered").status, 200, "{path}");
    }
    // A page in a browser that has the certificate.
    for header in ["Origin: https://example.com", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none"] {
        let head = format!("GET /v1/volumes HTTP/1.1\r\n{header}\r\nX: ");
        assert_eq!(ask(root, &head, "").expect("is answered").0, 403, "{header}");
    }
    // Refused requests leave nothing in the list of what was done.
    let audit = nodes.run("a", &["cluster", "audit", "--limit", "10000"]).expect("is told");
    assert!(audit.contains("client admin") && audit.contains("client operator"), "{audit}");
    assert!(!audit.contains("client viewer") && !audit.contains("client plain"), "{audit}");
}

/// A configuration of TLS without a certificate, or with that of somebody else.
fn tls_as(
    ca: &[CertificateDer<'static>],
    of: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    ca.iter().for_each(|certificate| roots.add(certificate.clone()).expect("is one"));
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("is known")
        .with_root_certificates(roots);
    match of {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("go together"),
    }
}

#[test]
fn whoever_has_no_certificate_that_counts_gets_nowhere() {
    let nodes = start(&["a"]);
    let file = credentials(&nodes, Role::Admin);
    let identity = ClientIdentity::load(&file).expect("is one");
    let (place, cluster) = (&identity.nodes()[0], identity.cluster());
    let look = "GET /v1/volumes";
    assert_eq!(ask(&identity, look, "").expect("is answered").0, 200);
    let own = nodes.path().join("a/identity");
    let ca = vec![CertificateDer::from_pem_file(own.join("ca.crt")).expect("is one")];

    ask_with(tls_as(&ca, None), place, cluster, look, "").expect_err("without a certificate");
    let stranger = ClusterAuthority::create(cluster.clone()).expect("is made");
    let forged = stranger
        .issue_client(&"admin".parse().expect("a name"), vec![place.clone()], Validity::ENDLESS)
        .expect("is issued");
    let forged_file = nodes.path().join("forged.helio");
    forged.save(&forged_file).expect("is written");
    let text: toml::Value = toml::from_str(&std::fs::read_to_string(&forged_file).expect("is there")).expect("is TOML");
    let pem = |key: &str| text[key].as_str().expect("is text").as_bytes().to_vec();
    let of = || {
        let chain = vec![CertificateDer::from_pem_slice(&pem("certificate")).expect("is one")];
        (chain, PrivateKeyDer::from_pem_slice(&pem("key")).expect("is one"))
    };
    ask_with(tls_as(&ca, Some(of())), place, cluster, look, "").expect_err("of another authority of the same name");
    // The cluster's authority has signed it, and it has ended.
    let ours = ClusterAuthority::load(&nodes.path().join("a/authority")).expect("is there");
    let validity = Validity::starting(identity.validity().from_ms, Duration::from_secs(60));
    let ended = ours.issue_client(identity.name(), vec![place.clone()], validity).expect("is issued");
    ask(&ended, look, "").expect_err("has ended");
    // Of a node: it belongs to the cluster, and is no client.
    assert_eq!(NodeIdentity::load(&own).expect("is there").node(), place.id);
    let chain = vec![CertificateDer::from_pem_file(own.join("node.crt")).expect("is one")];
    let key = PrivateKeyDer::from_pem_file(own.join("node.key")).expect("is one");
    ask_with(tls_as(&ca, Some((chain, key))), place, cluster, look, "").expect_err("of a node");
    // Without TLS at all, and with something else.
    for bytes in [&b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], b""] {
        let mut socket = TcpStream::connect(place.address).expect("connects");
        socket.set_read_timeout(Some(PATIENCE)).expect("is set");
        socket.write_all(bytes).expect("is sent");
        socket.shutdown(std::net::Shutdown::Write).expect("is ended");
        let mut answer = Vec::new();
        // Reset or ended.
        let _ = socket.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"), "{answer:?}");
    }

    // From the next request on: a role that is taken away, and then everything.
    nodes.run("a", &["cluster", "client", "role", "admin", "viewer"]).expect("is given");
    assert_eq!(ask(&identity, "POST /v1/volumes", NO_JSON).expect("is answered").0, 403);
    assert_eq!(ask(&identity, look, "").expect("is answered").0, 200);
    nodes.run("a", &["cluster", "client", "revoke", "admin"]).expect("is revoked");
    let (status, answer) = ask(&identity, look, "").expect("is answered");
    assert!(status == 401 && answer.contains("were revoked"), "{answer}");
}

#[test]
fn the_command_line_finds_the_secret_by_itself_and_asks_nodes_elsewhere_with_credentials() {
    let mut nodes = start(&["a", "b"]);
    nodes.run("a", &["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    let secret = nodes.path().join("a/admin.secret");
    assert_eq!(std::fs::metadata(&secret).expect("is there").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&secret).expect("is there");
    let link = nodes.run("a", &["dashboard"]).expect("is printed");
    let admin = Admin::find(&nodes.path().join("a"), "a").expect("is told");
    assert_eq!(link.trim(), format!("http://{admin}/#secret={}", text.trim()));
    assert!(
        !std::fs::read_to_string(nodes.path().join("a.log")).expect("is there").contains(text.trim()),
        "in the log"
    );

    // From a machine that has nothing but the file.
    let elsewhere = nodes.path().join("elsewhere");
    let with = |file: &Path, arguments: &[&str]| {
        let mut command = Command::new(helio().expect("is built"));
        run(command.args(arguments).arg("--cluster").arg(file).arg("--data").arg(&elsewhere))
    };
    let refused = |file: &Path, arguments: &[&str]| match with(file, arguments) {
        Ok(told) => panic!("{arguments:?} was not refused: {told}"),
        Err(error) => error.to_string(),
    };
    let [volume, viewer, operator, root] = Role::ALL.map(|role| credentials(&nodes, role));
    let told = refused(&volume, &["volume", "list"]);
    assert!(told.contains("client volume has role volume, and this needs viewer"), "{told}");
    assert!(with(&viewer, &["volume", "list"]).expect("looks").contains("disk"));
    assert!(with(&viewer, &["top", "--once"]).expect("looks").contains("disk"));
    let told = refused(&viewer, &["volume", "migrate", "disk", "--to", "b"]);
    assert!(told.contains("client viewer has role viewer, and this needs operator"), "{told}");
    with(&operator, &["volume", "migrate", "disk", "--to", "b"]).expect("moves");
    with(&operator, &["volume", "snapshot", "create", "disk@kept"]).expect("keeps");
    with(&operator, &["volume", "policy", "disk", "--propagation", "lazy"]).expect("says how");
    with(&operator, &["node", "drain", "b"]).expect("drains");
    for denied in [
        &["volume", "delete", "disk", "--yes"][..],
        &["volume", "snapshot", "delete", "disk@kept"],
        &["volume", "create", "other", "--size", "1M"],
        &["cluster", "client", "role", "operator", "admin"],
        &["cluster", "client", "allow", "operator", "*"],
        &["cluster", "client", "revoke", "admin"],
        &["node", "remove", "b"],
    ] {
        let told = refused(&operator, denied);
        assert!(told.contains("client operator has role operator, and this needs admin"), "{denied:?}: {told}");
    }
    // A node that is away is not needed.
    with(&root, &["cluster", "client", "allow", "volume", "disk:ro"]).expect("says who may do what");
    let told = refused(&root, &["volume", "export", "disk", &elsewhere.display().to_string()]);
    assert!(told.contains("run this at a node"), "{told}");
    let audit = with(&viewer, &["cluster", "audit"]).expect("is told");
    assert!(audit.contains("client operator") && audit.contains("client admin"), "{audit}");
    nodes.stop("b").expect("stops");
    assert!(with(&viewer, &["cluster", "client", "show", "volume"]).expect("looks").contains("disk:ro"));
    nodes.start_node("b").expect("starts");

    // Nobody finds the secret of another node in its own directory, and who has none is told what to do.
    let bare = |arguments: &[&str]| {
        run(Command::new(helio().expect("is built")).args(arguments).arg("--data").arg(&elsewhere))
    };
    let told = bare(&["volume", "list", "--cluster", &admin.address]).expect_err("has no secret").to_string();
    assert!(told.contains("wants its secret") && told.contains("--secret-file"), "{told}");
    let other = nodes.path().join("b/admin.secret").display().to_string();
    let told = bare(&["volume", "list", "--cluster", &admin.address, "--secret-file", &other]).expect_err("another's");
    assert!(told.to_string().contains("wants this node's secret"), "{told}");
    let named = ["volume", "list", "--cluster", &admin.address, "--secret-file", &secret.display().to_string()];
    bare(&named).expect("is its");
    // With a proxy for the web in the environment every command went there, its secret too, and none found its node.
    let proxies = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:9"));
    let mut command = Command::new(helio().expect("is built"));
    run(command.args(named).arg("--data").arg(&elsewhere).envs(proxies)).expect("asks the node itself");
    nodes.stop("a").expect("stops");
    nodes.start_node("a").expect("starts");
    assert_eq!(std::fs::read_to_string(&secret).expect("is there"), text, "links stay what they are");
    let address: SocketAddr = nodes.address("a").expect("is told");
    assert!(TcpStream::connect(address).is_ok(), "on TCP, at the address of `listen`");
}

/// Whoever had a certificate of the cluster, were it one that had been revoked, could use up the descriptors of a node's process: a connection gave the place
/// of its handshake back before it had one to be answered in, and waited for that with any number of others, without an end.
#[test]
fn connections_that_ask_for_nothing_are_bounded_in_number() {
    const CONNECTIONS: usize = 240;
    // Handshakes and places, 64 of each, and what else comes and goes.
    const DESCRIPTORS_MAX: usize = 64 + 64 + 40;
    let nodes = start(&["a"]);
    let told = std::fs::read_to_string(nodes.path().join("a/cluster.json")).expect("is there");
    let pid = serde_json::from_str::<serde_json::Value>(&told).expect("is JSON")["pid"].as_u64().expect("a number");
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    let [lasting, revoked] =
        [Role::Viewer, Role::Volume].map(|role| ClientIdentity::load(&credentials(&nodes, role)).expect("is one"));
    nodes.run("a", &["cluster", "client", "revoke", "volume"]).expect("is revoked");
    for identity in [&revoked, &lasting] {
        let (before, left) = (descriptors(), AtomicUsize::new(CONNECTIONS));
        let wait = || {
            let place = &identity.nodes()[0];
            let name = tls::node_name(identity.cluster(), place.id).expect("a name");
            let config = tls::client_of_nodes(identity).expect("is made");
            let mut connection = ClientConnection::new(Arc::new(config), name).expect("is made");
            let mut socket = TcpStream::connect(place.address).expect("connects");
            socket.set_read_timeout(Some(PATIENCE)).expect("is set");
            // Until the node has had enough; how it ends that does not matter.
            while connection.complete_io(&mut socket).is_ok_and(|(read, written)| read + written > 0) {}
            left.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            (0..CONNECTIONS).for_each(|_| drop(scope.spawn(wait)));
            while left.load(Ordering::SeqCst) > 0 {
                let now = descriptors();
                assert!(now < before + DESCRIPTORS_MAX, "{now} descriptors, {before} before");
                std::thread::yield_now();
            }
        });
        assert_eq!(ask(&lasting, "GET /v1/volumes", "").expect("is answered").0, 200);
    }
}
