//! The client against the crate's own server, and against servers that do wrong.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::export::{ExportDirectory, ExportInfo, Session};
use crate::memory::{CHUNK_LEN, MemoryDirectory, MemoryExport};
use crate::proto::constants::*;
use crate::proto::reply::ReplyTo;
use crate::proto::request::RequestHeader;
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
    let tcp =
        NbdUri { server: ServerAddress::Tcp { host: "127.0.0.1".into(), port }, export: "disk".into(), tls: None };
    let unix = NbdUri { server: ServerAddress::Unix(socket), export: "disk".into(), tls: None };
    (directory, server, unix, tcp)
}

async fn memory() -> (tempfile::TempDir, Server, NbdUri, NbdUri, Arc<MemoryExport>) {
    let export = Arc::new(MemoryExport::new("disk", SIZE));
    let (directory, server, unix, tcp) = serve(Arc::new(MemoryDirectory::new(vec![Arc::clone(&export)]))).await;
    (directory, server, unix, tcp, export)
}

fn bytes(parts: &[ReadPart]) -> Vec<u8> {
    ReadPart::joined(parts.to_vec()).to_vec()
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
        assert!(matches!(parts.last(), Some(ReadPart::Zero(rest)) if *rest as usize == (1 << 20) - CHUNK_LEN));
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
    style: Style,
}

/// A reply to `request` in the style of `fake`.
fn to(style: Style, request: &RequestHeader) -> ReplyTo {
    ReplyTo { style, cookie: request.cookie, offset: request.offset }
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
    async fn agree(&mut self) {
        self.send(|out| out.extend(server_handshake::greeting())).await;
        self.stream.read_u32().await.expect("the client's flags");
        for (option, style) in [(OPT_EXTENDED_HEADERS, Style::Extended), (OPT_STRUCTURED_REPLY, Style::Structured)] {
            self.expect(option).await;
            let answer = if self.style == style { REP_ACK } else { REP_ERR_UNSUP };
            self.send(|out| server_handshake::option_reply(out, option, answer, &[])).await;
            if self.style == style {
                break;
            }
        }
        if self.style != Style::Simple {
            self.expect(OPT_SET_META_CONTEXT).await;
            self.send(|out| {
                server_handshake::rep_meta_context(out, OPT_SET_META_CONTEXT, 5, "base:allocation");
                server_handshake::option_reply(out, OPT_SET_META_CONTEXT, REP_ACK, &[]);
            })
            .await;
        }
        self.expect(OPT_GO).await;
        self.send(|out| {
            server_handshake::info_export(out, OPT_GO, 1 << 20, FLAG_HAS_FLAGS);
            server_handshake::option_reply(out, OPT_GO, REP_ACK, &[]);
        })
        .await;
    }

    async fn request(&mut self) -> RequestHeader {
        let mut head = vec![0; self.style.request_header_len()];
        self.stream.read_exact(&mut head).await.expect("the client asks");
        RequestHeader::decode(&head, self.style).expect("a request").expect("is whole")
    }
}

/// A client whose server is `run`.
async fn with_fake<F: Future<Output = ()> + Send + 'static>(style: Style, run: impl FnOnce(Fake) -> F) -> Client {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut fake = Fake { stream: far, style };
    let (reader, writer) = tokio::io::split(near);
    let ((), agreed) = tokio::join!(fake.agree(), agree(reader, writer, "disk"));
    let Ok((agreed, connection)) = agreed else { panic!("the handshake is fine") };
    tokio::spawn(run(fake));
    Client { agreed, connections: vec![connection], next: AtomicUsize::new(0) }
}

#[tokio::test]
async fn servers_of_simple_replies_are_understood() {
    let client = with_fake(Style::Simple, |mut fake| async move {
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
    for style in [Style::Structured, Style::Extended] {
        let client = with_fake(style, move |mut fake| async move {
            let read = fake.request().await;
            let to = to(style, &read);
            fake.send(|out| {
                reply::offset_hole(out, to, false, 4096 + 512, 512);
                reply::offset_data(out, to, false, 4096 + 1024, 1024);
                out.extend([2; 1024]);
                reply::offset_data(out, to, false, 4096, 512);
                out.extend([1; 512]);
                reply::none(out, to);
            })
            .await;
            let _ = fake.request().await;
        })
        .await;
        let read = bytes(&client.read(4096, 2048).await.expect("is read"));
        assert_eq!(read, [vec![1; 512], vec![0; 512], vec![2; 1024]].concat());
    }
}

#[tokio::test]
async fn with_extended_headers_ranges_and_extents_have_64_bits() {
    let client = with_fake(Style::Extended, |mut fake| async move {
        let zeroes = fake.request().await;
        assert_eq!((zeroes.command, zeroes.flags, zeroes.length), (CMD_WRITE_ZEROES, 0, 1 << 40), "in one request");
        fake.send(|out| reply::none(out, to(Style::Extended, &zeroes))).await;
        let write = fake.request().await;
        assert_eq!((write.command, write.flags, write.length), (CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, 3));
        let mut payload = [0; 3];
        fake.stream.read_exact(&mut payload).await.expect("the payload");
        fake.send(|out| reply::error(out, to(Style::Extended, &write), ENOSPC, "full")).await;
        let status = fake.request().await;
        let extents = [(1 << 39, STATE_HOLE), (1 << 45, 0)];
        fake.send(|out| reply::block_status(out, to(Style::Extended, &status), true, 5, &extents)).await;
        let _ = fake.request().await;
    })
    .await;
    client.write_zeroes(0, 1 << 40).await.expect("is zeroed");
    let full = client.write(0, Bytes::from_static(b"abc")).await.expect_err("is full");
    assert_eq!(full.errno(), Some(ENOSPC));
    let extent = |length, allocated| AllocationExtent { length, allocated, zero: false };
    assert_eq!(
        client.allocation(0, 1 << 42).await.expect("is told"),
        [extent(1 << 39, false), extent((1 << 42) - (1 << 39), true)]
    );
}

#[tokio::test]
async fn replies_that_break_the_protocol_end_the_connection() {
    type Wrong = fn(&mut Vec<u8>, ReplyTo);
    let wrongs: [(&str, Wrong); 12] = [
        ("do not cover", |out, to| reply::offset_hole(out, to, true, 0, 512)),
        ("gap or overlap", |out, to| {
            reply::offset_hole(out, to, false, 0, 512);
            reply::offset_hole(out, to, true, 256, 512);
        }),
        ("more than what was asked", |out, to| {
            reply::offset_hole(out, to, false, 0, 1024);
            reply::offset_hole(out, to, true, 512, 512);
        }),
        ("or empty", |out, to| reply::offset_hole(out, to, false, 0, 0)),
        ("longer than what was asked", |out, to| reply::offset_data(out, to, true, 0, 1 << 30)),
        ("not in flight", |out, to| reply::none(out, ReplyTo { cookie: to.cookie + 1, ..to })),
        ("simple reply", |out, to| reply::simple(out, to.cookie, 0)),
        ("does not fit", |out, to| reply::block_status(out, to, true, 1, &[(512, 0)])),
        ("reply magic", |out, _| out.extend([0; 64])),
        ("another style", |out, to| reply::none(out, ReplyTo { style: Style::Structured, ..to })),
        ("another style", |out, to| reply::none(out, ReplyTo { style: Style::Extended, ..to })),
        ("another offset", |out, to| reply::none(out, ReplyTo { offset: to.offset + 1, ..to })),
    ];
    for (number, (reason, wrong)) in wrongs.into_iter().enumerate() {
        for style in [Style::Structured, Style::Extended] {
            let client = with_fake(style, move |mut fake| async move {
                let read = fake.request().await;
                fake.send(|out| {
                    wrong(out, to(style, &read));
                    // So that a header of another length is whole.
                    out.extend([0; 32]);
                })
                .await;
                // Held open: it must be the client that gives up.
                let _ = fake.request().await;
            })
            .await;
            let outcome = client.read(0, 1024).await;
            // Each of the last is what one of the styles has: there a read of nothing is answered, and does not cover it.
            let is_own = (number, style) == (9, Style::Structured) || (number, style) == (10, Style::Extended);
            let reason = match (is_own, number, style) {
                (true, ..) | (_, 11, Style::Structured) => "do not cover",
                (_, 6, Style::Extended) => "another style",
                _ => reason,
            };
            let lost = outcome.expect_err(reason);
            assert!(matches!(&lost, ClientError::Lost(said) if said.contains(reason)), "{reason} {style:?}: {lost}");
            assert!(matches!(client.read(0, 512).await, Err(ClientError::Lost(_))), "{reason}: for good");
        }
    }
}

#[tokio::test]
async fn a_context_that_is_told_twice_ends_the_connection() {
    for style in [Style::Structured, Style::Extended] {
        let client = with_fake(style, move |mut fake| async move {
            let status = fake.request().await;
            let to = to(style, &status);
            fake.send(|out| {
                reply::block_status(out, to, false, 5, &[(512, 0)]);
                reply::block_status(out, to, true, 5, &[(512, 0)]);
            })
            .await;
            let _ = fake.request().await;
        })
        .await;
        let lost = client.allocation(0, 1024).await.expect_err("is wrong");
        assert!(matches!(&lost, ClientError::Lost(said) if said.contains("more than one chunk")), "{lost}");
    }
}

#[tokio::test]
async fn a_server_that_vanishes_fails_what_is_in_flight() {
    let client = with_fake(Style::Structured, |mut fake| async move {
        let _ = fake.request().await;
        drop(fake);
    })
    .await;
    let (first, second) = tokio::join!(client.read(0, 1024), client.read(1024, 1024));
    assert!(matches!((first, second), (Err(ClientError::Lost(_)), Err(ClientError::Lost(_)))));
}
