//! The server over TLS, seen by our own client and by a raw one: who gets in, and what TLS must not change.

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod common;
#[path = "support/gate.rs"]
mod gate;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certificates::Certificates;
use client_lib::ReadPart;
use common::{Client as RawClient, HUNG, TestServer, limits, option, request};
use gate::{Ends, Gate, GateDirectory, write};
use nbd_frontend::client::{Client, ClientError, ClientOptions, NbdUri};
use nbd_frontend::proto::constants::*;
use nbd_frontend::proto::style::Style;
use nbd_frontend::{Limits, MemoryDirectory, MemoryExport, TlsMode, TlsOptions};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const SIZE: u64 = 64 << 20;

async fn memory_server(tls: TlsOptions) -> TestServer {
    let export = Arc::new(MemoryExport::new("disk", SIZE));
    TestServer::start_with(Arc::new(MemoryDirectory::new(vec![export])), limits(), Some(tls)).await
}

fn uri(text: &str) -> NbdUri {
    text.parse().expect("an address")
}

fn over_tcp(server: &TestServer, directory: &std::path::Path, more: &str) -> NbdUri {
    let address = server.server.tcp_address().expect("TCP is on");
    uri(&format!("nbds://{address}/disk?tls-certificates={}{more}", directory.display()))
}

/// A raw client that has begun TLS.
async fn raw(server: &TestServer, certificates: &Certificates) -> RawClient<TlsStream<TcpStream>> {
    let mut plain = server.tcp().await;
    plain.greet().await;
    plain.send(&option(OPT_STARTTLS, &[])).await;
    assert_eq!(plain.option_reply().await.0, REP_ACK);
    let name = "localhost".try_into().expect("a name");
    RawClient::new(certificates.connector().connect(name, plain.stream).await.expect("the server is believed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_writes_and_reads_over_many_connections() {
    let certificates = Certificates::new();
    for (mode, clients) in [(TlsMode::Required, true), (TlsMode::Optional, false)] {
        let server = memory_server(certificates.server(mode, clients)).await;
        let unix = format!(
            "nbds+unix:///disk?socket={}&tls-certificates={}",
            server.socket().display(),
            certificates.directory().display()
        );
        for uri in [over_tcp(&server, certificates.directory(), ""), uri(&unix)] {
            let client = Client::connect(&uri, ClientOptions { connections: 3 }).await.expect("connects");
            let data: Vec<u8> = (0..5u32 << 20).map(|at| (at >> 9) as u8).collect();
            let writes = (0..6).map(|at| client.write(at * (5 << 20), Bytes::from(data.clone())));
            futures_util::future::try_join_all(writes).await.expect("are written");
            client.flush().await.expect("is flushed");
            let mut read = Vec::new();
            for part in client.read(5 << 20, 5 << 20).await.expect("is read") {
                match part {
                    ReadPart::Data(bytes) => read.extend_from_slice(&bytes),
                    ReadPart::Zero(length) => read.resize(read.len() + length as usize, 0),
                }
            }
            assert!(read == data);
            client.write_zeroes(0, SIZE).await.expect("is zeroed");
            client.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_told_so() {
    let certificates = Certificates::new();
    let server = memory_server(certificates.server(TlsMode::Required, true)).await;
    let connect = async |uri: &NbdUri| Client::connect(uri, ClientOptions::default()).await.expect_err("is refused");
    let plain = connect(&uri(&server.tcp_uri("disk"))).await;
    assert!(matches!(&plain, ClientError::Refused { message, .. } if message.contains("nbds://")), "{plain}");

    let (without, others) = (certificates.without_client(), Certificates::new());
    for (uri, why) in [
        (over_tcp(&server, without.path(), ""), "TLS"),
        (over_tcp(&server, others.directory(), ""), "invalid peer certificate"),
        (over_tcp(&server, certificates.directory(), "&tls-hostname=elsewhere.example"), "elsewhere.example"),
        (over_tcp(&server, &certificates.path("nowhere"), ""), "nowhere/ca-cert.pem"),
    ] {
        let refused = connect(&uri).await;
        assert!(matches!(&refused, ClientError::Tls { .. }) && refused.to_string().contains(why), "{why}: {refused}");
    }
    let none = TestServer::start(Arc::new(MemoryDirectory::default()), limits()).await;
    let refused = connect(&over_tcp(&none, certificates.directory(), "")).await;
    assert!(matches!(&refused, ClientError::Refused { message, .. } if message.contains("nbd://")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificates_cannot_be_used_does_not_start() {
    let certificates = Certificates::new();
    let tls = TlsOptions { key: certificates.path("client-key.pem"), ..certificates.server(TlsMode::Optional, false) };
    let options = nbd_frontend::ServerOptions {
        tcp: Some(([127, 0, 0, 1], 0).into()),
        tls: Some(tls),
        ..nbd_frontend::ServerOptions::default()
    };
    let refused = nbd_frontend::Server::bind(options, Arc::new(MemoryDirectory::default())).await.expect_err("starts");
    assert!(refused.to_string().contains("its own key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_over_tls_refuses_new_requests_and_drains_old_ones() {
    let certificates = Certificates::new();
    let gate = Gate::new(Ends::Ok);
    let limits = Limits { drain_timeout: HUNG, ..limits() };
    let tls = certificates.server(TlsMode::Required, false);
    let server = TestServer::start_with(Arc::new(GateDirectory(Arc::clone(&gate))), limits, Some(tls)).await;
    let mut client = raw(&server, &certificates).await;
    client.agree("gate", Style::Structured, &[]).await;
    let mut idle = raw(&server, &certificates).await;
    idle.agree("gate", Style::Simple, &[]).await;
    let mut undecided = raw(&server, &certificates).await;
    client.send(&write(1, 65536)).await;
    gate.until_started(1).await;
    let TestServer { server, directory } = server;
    let shutdown = tokio::spawn(server.shutdown());
    assert!(idle.is_closed().await && undecided.is_closed().await, "closed at once");
    client.send(&request(CMD_READ, 0, 2, 0, 512)).await;
    let refused = client.reply(0).await;
    assert_eq!((refused.cookie, refused.error), (2, ESHUTDOWN));
    gate.permits.add_permits(1);
    assert_eq!(client.reply(0).await.cookie, 1);
    // Told as the end of TLS, not as a broken connection.
    assert_eq!(client.stream.read(&mut [0]).await.expect("the end is announced"), 0);
    shutdown.await.expect("ends");
    drop(directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_tls_ends_with_the_handshakes_time() {
    let certificates = Certificates::new();
    let limits = Limits { handshake_timeout: Duration::from_millis(200), ..limits() };
    let tls = certificates.server(TlsMode::Required, false);
    let server = TestServer::start_with(Arc::new(MemoryDirectory::default()), limits, Some(tls)).await;
    for bytes in [&b""[..], &[22, 3, 1, 2, 0], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = server.tcp().await;
        client.greet().await;
        client.send(&option(OPT_STARTTLS, &[])).await;
        assert_eq!(client.option_reply().await.0, REP_ACK);
        client.send(bytes).await;
        let mut rest = Vec::new();
        // At most an alert, and never an NBD reply in the clear.
        let read = tokio::time::timeout(HUNG, client.stream.read_to_end(&mut rest)).await.expect("is closed");
        assert!(read.is_err() || rest.len() < 16, "{rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_tls_stays_off_the_thread_of_its_export() {
    let certificates = Certificates::new();
    let (home, thread, end) = gate::export_thread();
    let gate = Gate::at_home(Ends::Ok, Some(home));
    gate.permits.add_permits(1);
    let tls = certificates.server(TlsMode::Required, false);
    let server = TestServer::start_with(Arc::new(GateDirectory(Arc::clone(&gate))), limits(), Some(tls)).await;
    let mut client = raw(&server, &certificates).await;
    client.agree("gate", Style::Extended, &[]).await;
    assert_eq!(client.call(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, 0, 65536, &[1; 65536]).await, 0);
    assert!(!gate.threads.lock().expect("no thread panics with it").contains(&thread.thread().id()));
    drop(end);
    thread.join().expect("ends");
}
