//! What every [`Transport`] must do, run on each implementation, and what only the real one can show.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::answers::ANSWER_BUDGET;
use super::memory::MemoryNetwork;
use super::quic::{QuicOptions, QuicTransport, join_call};
use super::unix::{UnixServer, UnixTransport};
use super::{BoxFuture, Class, FRAME_SIZE_MAX, Service, Transport, TransportError};
use crate::pki::{
    CertificateHolder, ClientIdentity, ClusterAuthority, ClusterId, Fingerprint, NodeIdentity, NodePlace, Validity,
};
use crate::types::{ClientName, NodeId};

/// Long enough never to decide a test that passes.
const PATIENCE: Duration = Duration::from_secs(60);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// Echoes; `who` names the caller; `hold` waits until released; `bulk` counts itself and waits.
struct Probe {
    held: AtomicUsize,
    release: Semaphore,
    /// Those that are let in no more.
    revoked: Mutex<Vec<CertificateHolder>>,
}

impl Probe {
    fn new() -> Arc<Probe> {
        Arc::new(Probe { held: AtomicUsize::new(0), release: Semaphore::new(0), revoked: Mutex::default() })
    }
}

impl Service for Probe {
    fn serve(&self, peer: Option<NodeId>, class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            match &request[..] {
                b"who" => format!("{peer:?} {class:?}").into(),
                b"hold" => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    let _permit = self.release.acquire().await;
                    request
                }
                _ => request,
            }
        })
    }

    fn serve_client<'a>(&'a self, client: &'a ClientName, class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
        let who = Bytes::from(format!("{client} {class:?}"));
        Box::pin(async move {
            match &request[..] {
                b"who" => who,
                b"hold" => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    let _permit = self.release.acquire().await;
                    request
                }
                _ => request,
            }
        })
    }

    fn admits(&self, holder: &CertificateHolder, _certificate: &Fingerprint) -> bool {
        !self.revoked.lock().expect("no test panics with the lock held").contains(holder)
    }
}

/// A caller A and an answering node B that A knows.
struct Pair {
    caller: Arc<dyn Transport>,
    probe: Arc<Probe>,
}

fn memory_pair() -> Pair {
    let network = MemoryNetwork::new();
    let probe = Probe::new();
    let caller = network.endpoint(A, Probe::new());
    network.endpoint(B, probe.clone());
    caller.set_peer(B, ([127, 0, 0, 1], 1).into());
    Pair { caller, probe }
}

fn authority(name: &str) -> ClusterAuthority {
    ClusterAuthority::create(ClusterId::try_from(name.to_owned()).expect("valid")).expect("made")
}

fn quic_on(address: SocketAddr, identity: NodeIdentity, probe: Arc<Probe>) -> (Arc<QuicTransport>, SocketAddr) {
    let socket = UdpSocket::bind(address).expect("bound");
    let address = socket.local_addr().expect("bound");
    (QuicTransport::start(QuicOptions { socket, identity }, probe).expect("started"), address)
}

fn quic(identity: NodeIdentity, probe: Arc<Probe>) -> (Arc<QuicTransport>, SocketAddr) {
    quic_on(([127, 0, 0, 1], 0).into(), identity, probe)
}

fn quic_pair() -> (Pair, [Arc<QuicTransport>; 2]) {
    let authority = authority("one");
    let probe = Probe::new();
    let (a, _) = quic(authority.issue(A, Validity::ENDLESS).expect("issued"), Probe::new());
    let (b, address) = quic(authority.issue(B, Validity::ENDLESS).expect("issued"), probe.clone());
    a.set_peer(B, address);
    (Pair { caller: a.clone(), probe }, [a, b])
}

async fn ask(transport: &dyn Transport, class: Class, request: impl Into<Bytes>) -> Result<Bytes, TransportError> {
    transport.call(B, class, request.into(), PATIENCE).await
}

async fn conforms(pair: Pair) {
    let caller = &*pair.caller;
    for class in Class::ALL {
        assert_eq!(ask(caller, class, "hello").await.expect("echoed"), "hello");
        assert_eq!(ask(caller, class, "").await.expect("echoed"), "");
    }
    let who = ask(caller, Class::Pull, "who").await.expect("answered");
    assert_eq!(who, "Some(NodeId(1)) Pull", "the service learns who calls, in which class");
    assert!(caller.rtt(B).is_some());

    let large = Bytes::from((0..32usize << 20).map(|at| (at / 7) as u8).collect::<Vec<_>>());
    assert!(ask(caller, Class::Bulk, large.clone()).await.expect("echoed") == large, "32 MiB come back as sent");

    let over = FRAME_SIZE_MAX + 1;
    assert_eq!(ask(caller, Class::Bulk, vec![0; over]).await, Err(TransportError::TooLarge(over)));
    let unknown = NodeId(99);
    assert_eq!(
        caller.call(unknown, Class::Control, Bytes::new(), PATIENCE).await,
        Err(TransportError::UnknownPeer(unknown))
    );

    // Many at once, none of which can end before all have begun.
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let caller = pair.caller.clone();
            tokio::spawn(async move { ask(&*caller, Class::Bulk, "hold").await })
        })
        .collect();
    while pair.probe.held.load(Ordering::SeqCst) < 64 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(caller, Class::Control, "beat").await.expect("answered"), "beat", "control passes held bulk calls");
    let late = caller.call(B, Class::Control, "hold".into(), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(TransportError::OutcomeUnknown { .. })), "{late:?}");
    pair.probe.release.add_permits(Semaphore::MAX_PERMITS / 2);
    for call in calls {
        assert_eq!(call.await.expect("no panic").expect("answered"), "hold");
    }

    caller.remove_peer(B);
    assert_eq!(ask(caller, Class::Control, "x").await, Err(TransportError::UnknownPeer(B)));
}

#[tokio::test]
async fn the_memory_network_conforms() {
    conforms(memory_pair()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_conforms() {
    let (pair, ends) = quic_pair();
    conforms(pair).await;
    for end in ends {
        end.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_network_delays_and_partitions_one_way() {
    let network = MemoryNetwork::new();
    let probe = Probe::new();
    let caller = network.endpoint(A, Probe::new());
    network.endpoint(B, probe);
    caller.set_peer(B, ([127, 0, 0, 1], 1).into());
    network.set_delay(A, B, Duration::from_millis(30));
    let start = tokio::time::Instant::now();
    ask(&*caller, Class::Control, "x").await.expect("answered");
    assert_eq!(start.elapsed(), Duration::from_millis(30));
    network.set_blocked(B, A, true);
    assert!(matches!(ask(&*caller, Class::Control, "x").await, Err(TransportError::OutcomeUnknown { .. })));
    network.set_blocked(A, B, true);
    assert!(matches!(ask(&*caller, Class::Control, "x").await, Err(TransportError::Unreachable { .. })));
    assert_eq!(network.count(A, B).frames, 2);
    assert_eq!(network.count(A, B).lost, 1);
    network.stop(B);
    network.set_blocked(A, B, false);
    assert!(matches!(ask(&*caller, Class::Control, "x").await, Err(TransportError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_listen_is_unreachable() {
    let (a, _) = quic(authority("one").issue(A, Validity::ENDLESS).expect("issued"), Probe::new());
    // Bound and never read: nobody else can take the port.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("bound");
    a.set_peer(B, silent.local_addr().expect("bound"));
    let outcome = a.call(B, Class::Control, Bytes::new(), Duration::from_millis(100)).await;
    assert!(matches!(outcome, Err(TransportError::Unreachable { .. })), "{outcome:?}");
    a.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_restarted_on_the_same_address_answers_again() {
    let authority = authority("one");
    let identity = authority.issue(B, Validity::ENDLESS).expect("issued");
    let (a, _) = quic(authority.issue(A, Validity::ENDLESS).expect("issued"), Probe::new());
    let (b, address) = quic(identity.clone(), Probe::new());
    a.set_peer(B, address);
    ask(&*a, Class::Control, "x").await.expect("answered");
    b.close().await;
    drop(b);
    // The socket is freed when quinn's driver ends, shortly after the last handle.
    let b = loop {
        let Ok(socket) = UdpSocket::bind(address) else {
            tokio::task::yield_now().await;
            continue;
        };
        break QuicTransport::start(QuicOptions { socket, identity }, Probe::new()).expect("started");
    };
    let mut attempts = 0;
    while ask(&*a, Class::Control, "x").await.is_err() {
        attempts += 1;
        assert!(attempts < 10, "the restarted peer does not answer");
    }
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_another_cluster_and_other_nodes_are_refused() {
    let (ours, theirs) = (authority("one"), authority("one"));
    let (a, _) = quic(ours.issue(A, Validity::ENDLESS).expect("issued"), Probe::new());
    let (stranger, address) = quic(theirs.issue(B, Validity::ENDLESS).expect("issued"), Probe::new());
    a.set_peer(B, address);
    let outcome = ask(&*a, Class::Control, "x").await;
    assert!(matches!(outcome, Err(TransportError::Refused { .. })), "another CA: {outcome:?}");
    // Our CA, but another node than the one dialled.
    let (other, address) = quic(ours.issue(NodeId(3), Validity::ENDLESS).expect("issued"), Probe::new());
    a.set_peer(B, address);
    let outcome = ask(&*a, Class::Control, "x").await;
    assert!(matches!(outcome, Err(TransportError::Refused { .. })), "another node: {outcome:?}");
    for end in [a, stranger, other] {
        end.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_node_is_served_without_a_certificate_and_pins_the_authority() {
    let authority = authority("one");
    let (b, address) = quic(authority.issue(B, Validity::ENDLESS).expect("issued"), Probe::new());
    let reply = join_call(address, &authority.fingerprint(), "who".into(), PATIENCE).await.expect("answered");
    assert_eq!(reply, "None Control");
    let refused = join_call(address, &"0".repeat(64), "who".into(), PATIENCE).await;
    assert!(matches!(refused, Err(TransportError::Unreachable { .. })), "{refused:?}");
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_known_by_its_name_and_is_no_node() {
    let (ours, theirs) = (authority("one"), authority("one"));
    let (b, address) = quic(ours.issue(B, Validity::ENDLESS).expect("issued"), Probe::new());
    let place = NodePlace { id: B, name: "b".parse().expect("a name"), address };
    let client = |authority: &ClusterAuthority| {
        let identity = authority
            .issue_client(&"host".parse().expect("a name"), vec![place.clone()], Validity::ENDLESS)
            .expect("issued");
        QuicTransport::client(UdpSocket::bind("127.0.0.1:0").expect("bound"), &identity).expect("started")
    };
    let (known, stranger) = (client(&ours), client(&theirs));
    assert_eq!(ask(&*known, Class::Pull, "who").await.expect("answered"), "host Pull");
    let refused = ask(&*stranger, Class::Pull, "who").await;
    assert!(matches!(refused, Err(TransportError::Refused { .. })), "{refused:?}");
    // One that knows the cluster's authority, and has its own certificate from another: the node is who refuses, when the client has
    // made its call already.
    let directory = tempfile::tempdir().expect("a directory");
    let file = |authority: &ClusterAuthority, name: &str| {
        let identity = authority
            .issue_client(&"host".parse().expect("a name"), vec![place.clone()], Validity::ENDLESS)
            .expect("issued");
        let path = directory.path().join(name);
        identity.save(&path).expect("is saved");
        std::fs::read_to_string(path).expect("is read").parse::<toml::Table>().expect("is TOML")
    };
    let mut mixed = file(&theirs, "theirs");
    mixed.insert("ca".to_owned(), file(&ours, "ours")["ca"].clone());
    let path = directory.path().join("mixed");
    std::fs::write(&path, toml::to_string(&mixed).expect("is TOML")).expect("is written");
    let mixed = ClientIdentity::load(&path).expect("nothing looks at that here");
    let mixed = QuicTransport::client(UdpSocket::bind("127.0.0.1:0").expect("bound"), &mixed).expect("started");
    let refused = ask(&*mixed, Class::Pull, "who").await;
    assert!(matches!(refused, Err(TransportError::Refused { .. })), "{refused:?}");
    mixed.close().await;
    for end in [b, known, stranger] {
        end.close().await;
    }
}

/// Of each kind of caller: what is under way ends with an outcome that nobody knows, what comes after that is refused, and what is not
/// revoked goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_certificate_is_taken_back_is_cut_off_and_does_not_come_back() {
    let authority = authority("one");
    let probe = Probe::new();
    let (b, address) = quic(authority.issue(B, Validity::ENDLESS).expect("issued"), probe.clone());
    let place = NodePlace { id: B, name: "b".parse().expect("a name"), address };
    let client = |name: &str| {
        let identity = authority
            .issue_client(&name.parse().expect("a name"), vec![place.clone()], Validity::ENDLESS)
            .expect("issued");
        QuicTransport::client(UdpSocket::bind("127.0.0.1:0").expect("bound"), &identity).expect("started")
    };
    let node = |id: u64| {
        let (node, _) = quic(authority.issue(NodeId(id), Validity::ENDLESS).expect("issued"), Probe::new());
        node.set_peer(B, address);
        node
    };
    let pairs = [
        (CertificateHolder::Client("x".parse().expect("a name")), client("x"), client("y")),
        (CertificateHolder::Node(NodeId(3)), node(3), node(4)),
    ];
    for (holder, taken_back, other) in pairs {
        ask(&*other, Class::Pull, "x").await.expect("answered");
        let held = probe.held.load(Ordering::SeqCst);
        let under_way = tokio::spawn({
            let taken_back = taken_back.clone();
            async move { ask(&*taken_back, Class::Pull, "hold").await }
        });
        while probe.held.load(Ordering::SeqCst) == held {
            tokio::task::yield_now().await;
        }
        probe.revoked.lock().expect("no test panics with the lock held").push(holder.clone());
        b.look_again();
        let outcome = under_way.await.expect("no panic");
        assert!(matches!(outcome, Err(TransportError::OutcomeUnknown { .. })), "{holder:?}: {outcome:?}");
        for class in Class::ALL {
            let refused = ask(&*taken_back, class, "x").await;
            assert_eq!(refused, Err(TransportError::Revoked { node: B }), "{holder:?}, {class:?}");
        }
        assert_eq!(taken_back.revoked().await, B, "it knows");
        ask(&*other, Class::Pull, "x").await.expect("the others are not disturbed");
        taken_back.close().await;
        other.close().await;
    }
    b.close().await;
}

/// As much as an answer of [`Reads`] may take.
const ANSWER_MAX: usize = 32 << 20;

/// What `read` asks for may be large; it is answered when somebody says so.
struct Reads {
    /// How many were looked at.
    asked: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    release: Semaphore,
}

impl Service for Reads {
    fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async { request })
    }

    fn serve_client<'a>(&'a self, _client: &'a ClientName, _class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
        Box::pin(async move {
            if request == "read" {
                let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_under_way.fetch_max(now, Ordering::SeqCst);
                drop(self.release.acquire().await);
                self.under_way.fetch_sub(1, Ordering::SeqCst);
            }
            request
        })
    }

    fn answer_bytes_max(&self, request: &Bytes) -> usize {
        if request != "read" {
            return 0;
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        ANSWER_MAX
    }
}

/// More reads than there is room for their answers, and something small behind them.
async fn bounds_answers(caller: Arc<dyn Transport>, service: Arc<Reads>) {
    const CALLS: usize = 24;
    let read = |_| {
        let caller = caller.clone();
        tokio::spawn(async move { ask(&*caller, Class::Pull, "read").await })
    };
    let reads: Vec<_> = (0..CALLS).map(read).collect();
    let together = ANSWER_BUDGET / ANSWER_MAX;
    while service.asked.load(Ordering::SeqCst) < CALLS || service.under_way.load(Ordering::SeqCst) < together {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&*caller, Class::Pull, "flush").await.expect("is answered meanwhile"), "flush");
    service.release.add_permits(1);
    for read in reads {
        assert_eq!(read.await.expect("no panic").expect("is answered in its turn"), "read");
    }
    assert_eq!(service.most_under_way.load(Ordering::SeqCst), together);
}

/// A client could have 256 reads of 32 MiB under way on each of its connections, 8 GiB: only what it sends was counted, not what it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_clients_connection_have_a_bound() {
    let service = || {
        Arc::new(Reads {
            asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            release: Semaphore::new(0),
        })
    };
    let (over_quic, over_unix) = (service(), service());
    let authority = authority("one");
    let identity = authority.issue(B, Validity::ENDLESS).expect("issued");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    let node = QuicTransport::start(QuicOptions { socket, identity }, over_quic.clone()).expect("started");
    let place = NodePlace { id: B, name: "b".parse().expect("a name"), address };
    let identity = authority.issue_client(&"host".parse().expect("a name"), vec![place], Validity::ENDLESS);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let client = QuicTransport::client(socket, &identity.expect("issued")).expect("started");
    bounds_answers(client.clone(), over_quic).await;
    client.close().await;
    node.close().await;

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("client.sock");
    let node = UnixServer::bind(&path, over_unix.clone()).await.expect("listens");
    bounds_answers(UnixTransport::new(&path), over_unix).await;
    node.close().await;
}

/// Serves nothing before somebody says so, and counts what comes of what it was asked.
struct Slow {
    begun: AtomicUsize,
    done: AtomicUsize,
    dropped: AtomicUsize,
    release: Semaphore,
}

/// A request that [`Slow`] serves.
struct Begun<'a> {
    service: &'a Slow,
    is_done: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let ended = if self.is_done { &self.service.done } else { &self.service.dropped };
        ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Service for Slow {
    fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async { request })
    }

    fn serve_client<'a>(&'a self, _client: &'a ClientName, _class: Class, request: Bytes) -> BoxFuture<'a, Bytes> {
        Box::pin(async move {
            let mut begun = Begun { service: self, is_done: false };
            self.begun.fetch_add(1, Ordering::SeqCst);
            drop(self.release.acquire().await);
            begun.is_done = true;
            request
        })
    }

    fn answer_bytes_max(&self, request: &Bytes) -> usize {
        if request == "read" { ANSWER_MAX } else { 0 }
    }
}

/// A read whose caller had gone was served to its end: it waited for blocks that nobody wanted any more, with room set aside for its answer,
/// which those who did want something had to wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_nobody_waits_for_is_dropped_and_a_write_is_carried_out() {
    let service = Arc::new(Slow {
        begun: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        dropped: AtomicUsize::new(0),
        release: Semaphore::new(0),
    });
    let authority = authority("one");
    let identity = authority.issue(B, Validity::ENDLESS).expect("issued");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    let node = QuicTransport::start(QuicOptions { socket, identity }, service.clone()).expect("started");
    let place = NodePlace { id: B, name: "b".parse().expect("a name"), address };
    let identity = authority.issue_client(&"host".parse().expect("a name"), vec![place], Validity::ENDLESS);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let client = QuicTransport::client(socket, &identity.expect("issued")).expect("started");

    let until = async |counter: &AtomicUsize, count: usize| {
        while counter.load(Ordering::SeqCst) < count {
            tokio::task::yield_now().await;
        }
    };
    let call = |request: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { ask(&*client, Class::Pull, request).await })
    };
    // In turn, so that when the read is dropped the node has seen that nobody waits for the write either.
    let write = call("write");
    until(&service.begun, 1).await;
    write.abort();
    let read = call("read");
    until(&service.begun, 2).await;
    read.abort();
    until(&service.dropped, 1).await;
    service.release.add_permits(1);
    until(&service.done, 1).await;
    assert_eq!(service.dropped.load(Ordering::SeqCst), 1, "the write was carried out");
    client.close().await;
    node.close().await;
}
