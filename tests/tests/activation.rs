//! `helio-nbd` and `helio node` with a socket that a service manager holds: clients connect before there is a process, wait while it
//! is restarted, and stay while it is replaced; what cannot be used is refused with words.

use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::cluster::helio;
use tests::nbd_client::Client;
use tests::nodes::{Nodes, own_address};
use tests::service::{Service, passing};
use tests::tools::{Owned, until};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const SEED: u64 = 47;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(90);

fn node() -> Nodes {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    nodes
}

/// Connects while nobody accepts; says so when somebody does.
struct Early(UnixStream);

impl Early {
    fn new(socket: &Path) -> Early {
        Early(UnixStream::connect(socket).expect("the service manager listens"))
    }

    fn greeted(mut self) {
        self.0.set_read_timeout(Some(PATIENCE)).expect("is set");
        let mut greeting = [0; 8];
        self.0.read_exact(&mut greeting).expect("somebody accepted it");
        assert_eq!(&greeting, b"NBDMAGIC");
    }
}

fn ends_well(mut process: Owned) {
    process.terminate().expect("it runs");
    assert!(process.wait(PATIENCE).expect("it ends"), "it ended with a failure");
}

/// Through its credentials, with a control socket.
fn arguments(nodes: &Nodes, client: &str) -> Vec<String> {
    let credentials = nodes.credentials(client).expect("are written");
    let control = nodes.path().join(format!("{client}.control"));
    ["--cluster", &credentials.display().to_string(), "--control", &control.display().to_string()]
        .map(ToOwned::to_owned)
        .into()
}

#[test]
fn clients_of_helio_nbd_wait_for_it_and_stay_when_it_is_replaced() {
    let nodes = node();
    let (service, program) =
        (Service::new(nodes.path()).expect("listens"), nodes.helio_nbd_program().expect("is there"));
    let (arguments, socket) = (arguments(&nodes, "host"), service.socket());
    let early = Early::new(&socket);
    let first = service.start("first", &program, &arguments).expect("serves");
    early.greeted();
    let told = service.told().expect("is told");
    assert!(
        told.starts_with(&format!("MAINPID={}\nREADY=1\nSTATUS=NBD on {}", first.id(), socket.display())),
        "{told}"
    );
    let mut client = Client::connect(&socket, "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");

    // Replaced, with the same socket: the client stays, and so does the file.
    let replace: Vec<String> = arguments.iter().cloned().chain(["--replace".to_owned()]).collect();
    let second = service.start("second", &program, &replace).expect("takes over");
    let told = service.told().expect("is told");
    assert!(told.contains(&format!("MAINPID={}\nREADY=1", second.id())) && told.contains("taken over"), "{told}");
    let mut first = first;
    assert!(first.wait(PATIENCE).expect("it ends"), "it ended with a failure");
    client.write(BLOCK, &fill(SEED, 1, 1)).expect("goes on");
    Client::connect(&socket, "disk").expect("others come");

    // Who was not passed the socket does not get it: he would remove its file at his end.
    let socket_option = socket.display().to_string();
    let said = tests::tools::run(Command::new(&program).args(&replace).args(["--socket", &socket_option]));
    let said = said.expect_err("has it from nobody").to_string();
    assert!(said.contains("Sockets= in its unit"), "{said}");
    client.write(2 * BLOCK, &fill(SEED, 2, 1)).expect("goes on");

    // Stopped and started again: who comes meanwhile waits.
    drop(client);
    ends_well(second);
    assert!(service.told().expect("is told").starts_with("STOPPING=1"), "and not twice, by the first as well");
    let early = Early::new(&socket);
    let third = service.start("third", &program, &arguments).expect("serves");
    early.greeted();
    let mut client = Client::connect(&socket, "disk").expect("connects");
    for block in 0..3 {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(1));
    }
    drop(client);
    ends_well(third);
    assert!(socket.exists(), "it is the service manager's");
}

#[test]
fn clients_of_a_node_wait_while_it_is_restarted() {
    let mut nodes = node();
    nodes.stop("a").expect("stops");
    let (service, program) = (Service::new(nodes.path()).expect("listens"), helio().expect("is built"));
    let config = nodes.config("a");
    let arguments = ["node".as_ref(), "--config".as_ref(), config.as_os_str()];
    for round in 1..3 {
        let early = Early::new(&service.socket());
        let running = service.start(&format!("round-{round}"), &program, arguments).expect("serves");
        early.greeted();
        let told = service.told().expect("is told");
        assert_eq!(told, format!("MAINPID={}\nREADY=1\nSTATUS=node a serves", running.id()));
        let mut client = Client::connect(&service.socket(), "disk").expect("connects");
        client.write(round * BLOCK, &fill(SEED, round, round)).expect("is written");
        for earlier in 1..=round {
            let bytes = client.read(earlier * BLOCK, BLOCK as u32).expect("is read");
            assert_eq!(check(&bytes, SEED, earlier), Ok(earlier));
        }
        // Other commands are told of this socket, and there is no other.
        assert!(!nodes.socket("a").exists(), "that in the data directory is for who has none");
        let copy = nodes.path().join(format!("copy-{round}"));
        let copy = copy.display().to_string();
        nodes.run("a", &["volume", "export", "disk", &copy]).expect("finds it");
        drop(client);
        ends_well(running);
        assert!(service.told().expect("is told").starts_with("STOPPING=1"));
    }
    // Two words for one thing.
    let settings = std::fs::read_to_string(&config).expect("is read");
    std::fs::write(&config, format!("{settings}\n[nbd]\nunix = \"own.sock\"\n")).expect("is written");
    let said = service.start("both", &program, arguments).expect_err("which?").to_string();
    let expected = format!("has passed the Unix socket {}, and", service.socket().display());
    assert!(said.contains(&expected) && said.contains("leave one of both out"), "{said}");
}

#[test]
fn what_cannot_be_used_is_refused_with_words() {
    let nodes = Nodes::none().expect("a directory");
    let program = nodes.helio_nbd_program().expect("is there");
    let path = |name: &str| nodes.path().join(name);
    // None of them comes so far as to ask it.
    let node = path("nobody.sock").display().to_string();
    let refused = |mut command: Command, more: &[&str], expected: &str| {
        let output = command.args(["--node", &node]).args(more).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    };
    let listener = |name: &str| UnixListener::bind(path(name)).expect("listens");
    refused(passing(listener("1"), "admin", &program), &[], "socket name \"admin\"");
    refused(passing(listener("2"), "nbd:nbd", &program), &[], "2 names for 1 sockets");
    let datagrams = UnixDatagram::bind(path("3")).expect("is bound");
    refused(passing(datagrams, "nbd", &program), &[], "(descriptor 3), passed by the service manager, is neither");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("is bound");
    refused(passing(udp, "nbd", &program), &[], "use ListenStream=");
    let file = std::fs::File::create(path("4")).expect("is made");
    refused(passing(file, "nbd", &program), &[], "is neither a Unix nor a TCP stream socket");
    let (connection, _other) = UnixStream::pair().expect("a pair");
    refused(passing(connection, "nbd", &program), &[], "use Accept=no");
    let own = path("own.sock").display().to_string();
    refused(passing(listener("5"), "nbd", &program), &["--socket", &own], "leave one of both out");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    refused(passing(tcp, "nbd", &program), &["--listen", "127.0.0.1:0"], "leave one of both out");
    refused(Command::new(&program), &[], "start it from a systemd .socket unit");
}

#[test]
fn a_watchdog_hears_of_it_again_and_again() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    let (service, program) =
        (Service::new(nodes.path()).expect("listens"), nodes.helio_nbd_program().expect("is there"));
    let mut command = service.command(&program).expect("is made");
    command.arg("--node").arg(nodes.path().join("a").join("client.sock")).env("WATCHDOG_USEC", "100000");
    let process = Owned::start_fed(&mut command, "helio-nbd").expect("starts");
    assert!(service.told().expect("is told").contains("READY=1"));
    for _ in 0..3 {
        assert_eq!(service.told().expect("is told"), "WATCHDOG=1");
    }
    // One that does not move is not told of: what comes now was told before.
    process.pause().expect("it runs");
    process.resume().expect("it is paused");
    assert_eq!(service.told().expect("is told"), "WATCHDOG=1");
    ends_well(process);
}

/// With systemd's own tool: both kinds at once, and the program is started by the first client.
#[test]
fn systemd_passes_both_kinds_and_starts_it_for_the_first_client() {
    let activate = PathBuf::from("/usr/bin/systemd-socket-activate");
    if !activate.exists() {
        return eprintln!("skipped: there is no {}; `make tools` installs it", activate.display());
    }
    let nodes = node();
    let program = nodes.helio_nbd_program().expect("is there");
    let (socket, address) = (nodes.path().join("activated.sock"), own_address());
    let out = nodes.path().join("activated.out");
    let mut command = Command::new(activate);
    command.arg("-l").arg(&socket).arg("-l").arg(address.to_string()).arg("--fdname=helio.socket:nbd");
    command.arg(&program).args(arguments(&nodes, "host"));
    let create = |name: &str| std::fs::File::create(nodes.path().join(name)).expect("is made");
    command.stdout(create("activated.out")).stderr(create("activated.log"));
    let process = Owned::start_fed(command.stdin(Stdio::null()), "systemd-socket-activate").expect("starts");
    until("systemd listens", PATIENCE, || socket.exists());
    let mut client = Client::connect(&socket, "disk").expect("starts it");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    client.flush().expect("is flushed");
    let said = std::fs::read_to_string(&out).expect("is read");
    assert!(said.contains(&format!("ready: NBD on {} and {address}", socket.display())), "{said}");
    let uri = format!("nbd://{address}/disk");
    let size = tests::tools::run(Command::new("nbdinfo").arg("--size").arg(uri)).expect("TCP is served");
    assert_eq!(size.trim(), (64 << 20).to_string());
    drop(client);
    ends_well(process);
    assert!(socket.exists(), "it is not the program's");
}
