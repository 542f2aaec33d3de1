//! What a caller without a certificate gets, by one that keeps to no rule of ours but QUIC's; and how many connections there are. The rest is in
//! `conformance`.

use super::*;
use crate::pki::{ClusterAuthority, ClusterId};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers when it is told to.
struct Held {
    begun: Semaphore,
    release: Semaphore,
}

impl Service for Held {
    fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            self.begun.add_permits(1);
            let _permit = self.release.acquire().await;
            request
        })
    }
}

/// Who had no certificate was held to one request at a time, and had been allowed 256 of them, with 32 MiB, in the handshake already: what is given in
/// that cannot be taken back. A node did as much for each of eight such connections, and kept what they sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_certificate_has_one_call_at_a_time() {
    let authority = ClusterAuthority::create(ClusterId::try_from("one".to_owned()).expect("valid")).expect("made");
    let service = Arc::new(Held { begun: Semaphore::new(0), release: Semaphore::new(0) });
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    let identity = authority.issue(NodeId(1), Validity::ENDLESS).expect("issued");
    let node = QuicTransport::start(QuicOptions { socket, identity }, service.clone()).expect("started");

    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("bound");
    let mut config = quinn::ClientConfig::new(tls::joining_crypto(&authority.fingerprint()).expect("made"));
    config.transport_config(tls::transport_config(Congestion::Cubic, Some(&Arc::default()), &Arc::default()));
    let connecting = endpoint.connect_with(config, address, "join.helio").expect("begins");
    let connection = connecting.await.expect("connects");
    let first = {
        let connection = connection.clone();
        tokio::spawn(async move { exchange::call(&connection, Class::Control, "first".into()).await.ok() })
    };
    let begun = tokio::time::timeout(PATIENCE, service.begun.acquire()).await.expect("begins");
    begun.expect("is open").forget();
    let second = tokio::time::timeout(Duration::from_millis(300), connection.open_bi()).await;
    assert!(second.is_err(), "a second call has to wait for the first");
    service.release.add_permits(1 << 10);
    let first = tokio::time::timeout(PATIENCE, first).await.expect("is answered").expect("does not panic");
    assert_eq!(first.as_deref(), Some(&b"first"[..]));
    let second = tokio::time::timeout(PATIENCE, exchange::call(&connection, Class::Control, "second".into())).await;
    assert_eq!(second.expect("is answered").ok().as_deref(), Some(&b"second"[..]));
    connection.close(VarInt::from_u32(0), b"done");
    node.close().await;
}

/// As above: a stream whose first byte is missing is not read, and what came of it was kept, up to the window.
#[test]
fn before_a_caller_is_known_little_of_it_is_kept() {
    let config = tls::transport_config(Congestion::Yielding, None, &Arc::default());
    let told = format!("{config:?}");
    assert!(told.contains("receive_window: 131072") && told.contains("max_concurrent_bidi_streams: 1,"), "{told}");
}

/// A client whose file names a node's address of before was told of the new one and called there from then on; the connection to the old one was watched, and
/// so held, for ever, since both ends kept it alive. Each such client took two of a node's places for clients, and each change of address took more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_an_address_of_before_ends_with_the_calls_over_it() {
    let authority = ClusterAuthority::create(ClusterId::try_from("one".to_owned()).expect("valid")).expect("made");
    let service = Arc::new(Held { begun: Semaphore::new(0), release: Semaphore::new(0) });
    let start = |id: u64, address: &str| {
        let socket = UdpSocket::bind(address).expect("bound");
        let identity = authority.issue(NodeId(id), Validity::ENDLESS).expect("issued");
        QuicTransport::start(QuicOptions { socket, identity }, service.clone()).expect("started")
    };
    let (caller, node) = (start(1, "127.0.0.1:0"), start(2, "0.0.0.0:0"));
    let port = node.local_addr().expect("bound").port();
    let call = |request: &'static str| {
        let caller = caller.clone();
        tokio::spawn(async move { caller.call(NodeId(2), Class::Control, request.into(), PATIENCE).await })
    };
    let begun = async || service.begun.acquire().await.expect("is open").forget();
    let connections = async |expected: usize| {
        let counted = async {
            while node.shared.endpoint.open_connections() != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.expect("there are so many connections");
    };

    caller.set_peer(NodeId(2), ([127, 0, 0, 1], port).into());
    let first = call("first");
    begun().await;
    caller.set_peer(NodeId(2), ([127, 0, 0, 2], port).into());
    let second = call("second");
    begun().await;
    connections(2).await;
    service.release.add_permits(1);
    for (call, said) in [(first, "first"), (second, "second")] {
        let answer = call.await.expect("does not panic").expect("is answered");
        assert_eq!(answer, said, "a call goes on over the connection that it began with");
    }
    connections(1).await;

    // Whoever is removed has nothing under way any more, wherever it was called.
    service.release.forget_permits(usize::MAX);
    let third = call("third");
    begun().await;
    caller.set_peer(NodeId(2), ([127, 0, 0, 1], port).into());
    caller.remove_peer(NodeId(2));
    let outcome = third.await.expect("does not panic");
    assert!(matches!(outcome, Err(TransportError::OutcomeUnknown { .. })), "{outcome:?}");
    connections(0).await;
    caller.close().await;
    node.close().await;
}
