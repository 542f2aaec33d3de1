//! The client against the crate's own server, and against servers that do wrong.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::export::{ExportDirectory, ExportInfo, Session};
use crate::memory::{CHUNK_LEN, MemoryDirectory, MemoryExport};
use crate::proto::constants::*;
use crate::proto::request::{REQUEST_HEADER_LEN, RequestHeader};
use crate::proto::{handshake as server_handshake, reply};
use crate::server::{Server, ServerOptions};

const SIZE: u64 = 64 << 20;

async fn serve(exports: Arc<dyn ExportDirectory>) -> (tempfile::TempDir, Server, NbdUri, NbdUri) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let tcp = Some(([127, 0, 0, 1], 0).into());
    let options = ServerOptions { tcp, unix: Some(socket.clone()), ..ServerOptions::default() };
    let server = Server::bind(options, exports).await.expect("listens");
    let port = server.tcp_address().expect("TCP is on").port();
    let tcp = NbdUri { server: ServerAddress::Tcp { host: "127.0.0.1".into(), port }, export: "disk".into() };
    let unix = NbdUri { server: ServerAddress::Unix(socket), export: "disk".into() };
    (directory, server, unix, tcp)
}

async fn memory() -> (tempfile::TempDir, Server, NbdUri, NbdUri, Arc<MemoryExport>) {
    let export = Arc::new(MemoryExport::new("disk", SIZE));
    let (directory, server, unix, tcp) = serve(Arc::new(MemoryDirectory::new(vec![Arc::clone(&export)]))).await;
    (directory, server, unix, tcp, export)
}

fn bytes(parts: &[ReadPart]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            ReadPart::Data(data) => bytes.extend_from_slice(data),
            ReadPart::Hole(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

#[tokio::test]
async fn what_is_written_over_many_connections_is_read_back_and_holes_stay_holes() {
    let (_directory, _server, unix, tcp, export) = memory().await;
    for (uri, fill) in [(unix, 5), (tcp, 6)] {
        let client = Client::connect(&uri, ClientOptions { connections: 3 }).await.expect("connects");
        assert_eq!((client.size(), client.connections(), client.block_size_min()), (SIZE, 3, 512));
        assert!(!client.read_only() && client.can_write_zeroes());
        let writes = (0..32).map(|mib| client.write(mib << 20, Bytes::from(vec![fill; CHUNK_LEN])));
        futures_util::future::try_join_all(writes).await.expect("are written");
        client.flush().await.expect("is flushed");
        assert_eq!(export.contents(31 << 20, CHUNK_LEN as u32), vec![fill; CHUNK_LEN]);

        let parts = client.read(1 << 20, 1 << 20).await.expect("is read");
        assert!(matches!(parts.last(), Some(ReadPart::Hole(rest)) if *rest as usize == (1 << 20) - CHUNK_LEN));
        assert_eq!(bytes(&parts)[..CHUNK_LEN], vec![fill; CHUNK_LEN]);

        client.write_zeroes(0, 2 << 20).await.expect("is zeroed");
        let extents = client.allocation(0, SIZE).await.expect("is told");
        assert_eq!(extents[0], AllocationExtent { length: 2 << 20, allocated: false, zero: true });
        assert_eq!(extents[1], AllocationExtent { length: CHUNK_LEN as u64, allocated: true, zero: false });
        client.close().await;
    }
}

#[tokio::test]
async fn requests_larger_than_the_server_takes_are_cut() {
    let info = ExportInfo { block_size_max: 1 << 20, ..MemoryExport::new("disk", SIZE).info() };
    let export = Arc::new(MemoryExport::with_info(info));
    let (_directory, _server, unix, _) = serve(Arc::new(MemoryDirectory::new(vec![export]))).await;
    let client = Client::connect(&unix, ClientOptions::default()).await.expect("connects");
    let data: Vec<u8> = (0..5 << 20).map(|at: u32| (at >> 9) as u8).collect();
    client.write(512, Bytes::from(data.clone())).await.expect("is written");
    assert!(bytes(&client.read(512, 5 << 20).await.expect("is read")) == data);
}

#[tokio::test]
async fn refusals_say_what_the_server_said() {
    let (_directory, server, unix, _, _) = memory().await;
    let other = NbdUri { export: "nothing".into(), ..unix.clone() };
    let refused = Client::connect(&other, ClientOptions::default()).await.expect_err("there is none");
    assert!(
        matches!(&refused, ClientError::Refused { export, message } if export == "nothing" && message.contains("nothing")),
        "{refused}"
    );
    let client = Client::connect(&unix, ClientOptions::default()).await.expect("connects");
    let beyond = client.write(SIZE, Bytes::from(vec![1; 512])).await.expect_err("beyond the end");
    assert_eq!(beyond.errno(), Some(ENOSPC), "{beyond}");
    let beyond = client.read(SIZE, 512).await.expect_err("beyond the end");
    assert!(beyond.to_string().starts_with(&format!("a read of 512 bytes at {SIZE} failed: ")), "{beyond}");
    client.read(0, 512).await.expect("the connection goes on");
    server.shutdown().await;
    let lost = client.read(0, 512).await.expect_err("the server is gone");
    assert!(matches!(lost, ClientError::Lost(_)), "{lost}");
    let gone = Client::connect(&unix, ClientOptions::default()).await.expect_err("the server is gone");
    assert!(matches!(&gone, ClientError::Unreachable { .. }), "{gone}");
}

#[tokio::test]
async fn a_flood_of_requests_waits_for_room_and_is_answered() {
    let (_directory, _server, unix, _, _) = memory().await;
    let client = Client::connect(&unix, ClientOptions::default()).await.expect("connects");
    let reads = (0..10 * REQUESTS_IN_FLIGHT_MAX as u64).map(|index| client.read(index * 512, 512));
    let parts = futures_util::future::try_join_all(reads).await.expect("all are answered");
    assert!(parts.iter().all(|parts| bytes(parts) == [0; 512]));
}

/// A server at the other end of a pipe, which does what the test says.
struct Fake {
    stream: DuplexStream,
}

impl Fake {
    async fn expect(&mut self, option: u32) {
        let mut head = [0; server_handshake::OPTION_HEADER_LEN];
        self.stream.read_exact(&mut head).await.expect("the client sends");
        let header = server_handshake::OptionHeader::decode(&head).expect("an option").expect("is whole");
        assert_eq!(header.option, option);
        let mut data = vec![0; header.length as usize];
        self.stream.read_exact(&mut data).await.expect("the client sends");
    }

    async fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        encode(&mut out);
        self.stream.write_all(&out).await.expect("the client reads");
    }

    /// The handshake, of an export of 1 MiB.
    async fn agree(&mut self, structured: bool) {
        self.send(|out| out.extend(server_handshake::greeting())).await;
        self.stream.read_u32().await.expect("the client's flags");
        self.expect(OPT_STRUCTURED_REPLY).await;
        let answer = if structured { REP_ACK } else { REP_ERR_UNSUP };
        self.send(|out| server_handshake::option_reply(out, OPT_STRUCTURED_REPLY, answer, &[])).await;
        if structured {
            self.expect(OPT_SET_META_CONTEXT).await;
            self.send(|out| server_handshake::option_reply(out, OPT_SET_META_CONTEXT, REP_ERR_UNSUP, &[])).await;
        }
        self.expect(OPT_GO).await;
        self.send(|out| {
            server_handshake::info_export(out, OPT_GO, 1 << 20, FLAG_HAS_FLAGS);
            server_handshake::option_reply(out, OPT_GO, REP_ACK, &[]);
        })
        .await;
    }

    async fn request(&mut self) -> RequestHeader {
        let mut head = [0; REQUEST_HEADER_LEN];
        self.stream.read_exact(&mut head).await.expect("the client asks");
        RequestHeader::decode(&head).expect("a request").expect("is whole")
    }
}

/// A client whose server is `run`.
async fn with_fake<F: Future<Output = ()> + Send + 'static>(structured: bool, run: impl FnOnce(Fake) -> F) -> Client {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut fake = Fake { stream: far };
    let (reader, writer) = tokio::io::split(near);
    let ((), agreed) = tokio::join!(fake.agree(structured), agree(reader, writer, "disk"));
    let Ok((agreed, connection)) = agreed else { panic!("the handshake is fine") };
    tokio::spawn(run(fake));
    Client { agreed, connections: vec![connection], next: AtomicUsize::new(0) }
}

#[tokio::test]
async fn servers_of_simple_replies_are_understood() {
    let client = with_fake(false, |mut fake| async move {
        let (first, second) = (fake.request().await, fake.request().await);
        fake.send(|out| {
            reply::simple(out, second.cookie, EIO);
            reply::simple(out, first.cookie, 0);
            out.extend(vec![9; first.length as usize]);
        })
        .await;
        let _ = fake.request().await;
    })
    .await;
    let (first, second) = tokio::join!(client.read(0, 1024), client.read(4096, 512));
    assert_eq!(bytes(&first.expect("is read")), [9; 1024]);
    let failed = second.expect_err("is refused");
    assert_eq!((failed.errno(), failed.to_string().contains("input/output error")), (Some(EIO), true), "{failed}");
    assert_eq!(
        client.allocation(0, 1 << 20).await.expect("nothing is asked"),
        [AllocationExtent { length: 1 << 20, allocated: true, zero: false }]
    );
    client.flush().await.expect("it knows no flush, so there is none");
}

#[tokio::test]
async fn chunks_may_come_in_any_order() {
    let client = with_fake(true, |mut fake| async move {
        let read = fake.request().await;
        fake.send(|out| {
            reply::offset_hole(out, read.cookie, false, 512, 512);
            reply::offset_data(out, read.cookie, false, 1024, 1024);
            out.extend([2; 1024]);
            reply::offset_data(out, read.cookie, false, 0, 512);
            out.extend([1; 512]);
            reply::none(out, read.cookie);
        })
        .await;
        let _ = fake.request().await;
    })
    .await;
    let read = bytes(&client.read(0, 2048).await.expect("is read"));
    assert_eq!(read, [vec![1; 512], vec![0; 512], vec![2; 1024]].concat());
}

#[tokio::test]
async fn replies_that_break_the_protocol_end_the_connection() {
    type Wrong = fn(&mut Vec<u8>, u64);
    let wrongs: [(&str, Wrong); 7] = [
        ("do not cover", |out, cookie| reply::offset_hole(out, cookie, true, 0, 512)),
        ("gap or overlap", |out, cookie| {
            reply::offset_hole(out, cookie, false, 0, 1024);
            reply::offset_hole(out, cookie, true, 512, 512);
        }),
        ("longer than what was asked", |out, cookie| reply::offset_data(out, cookie, true, 0, 1 << 30)),
        ("not in flight", |out, cookie| reply::none(out, cookie + 1)),
        ("simple reply", |out, cookie| reply::simple(out, cookie, 0)),
        ("does not fit", |out, cookie| reply::block_status(out, cookie, 1, &[(512, 0)])),
        ("reply magic", |out, _| out.extend([0; 64])),
    ];
    for (reason, wrong) in wrongs {
        let client = with_fake(true, move |mut fake| async move {
            let read = fake.request().await;
            fake.send(|out| wrong(out, read.cookie)).await;
            // Held open: it must be the client that gives up.
            let _ = fake.request().await;
        })
        .await;
        let lost = client.read(0, 1024).await.expect_err(reason);
        assert!(matches!(&lost, ClientError::Lost(said) if said.contains(reason)), "{reason}: {lost}");
        assert!(matches!(client.read(0, 512).await, Err(ClientError::Lost(_))), "{reason}: for good");
    }
}

#[tokio::test]
async fn a_server_that_vanishes_fails_what_is_in_flight() {
    let client = with_fake(true, |mut fake| async move {
        let _ = fake.request().await;
        drop(fake);
    })
    .await;
    let (first, second) = tokio::join!(client.read(0, 1024), client.read(1024, 1024));
    assert!(matches!((first, second), (Err(ClientError::Lost(_)), Err(ClientError::Lost(_)))));
}
