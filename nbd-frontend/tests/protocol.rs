//! The server as seen by a raw client: what clients may do, what they should not, and what nobody should.

#[path = "support/client.rs"]
mod common;
#[path = "support/gate.rs"]
mod gate;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};
use common::{HUNG, TestServer, extended, limits, option, request};
use gate::{Ends, Gate, GateDirectory, export_thread, write};
use nbd_frontend::proto::constants::*;
use nbd_frontend::proto::style::Style;
use nbd_frontend::{
    AllocationExtent, ExportDirectory, ExportInfo, Limits, MemoryDirectory, MemoryExport, Residency, ResidencyExtent,
    Server, ServerOptions, Session, ZeroOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

const SIZE: u64 = 1 << 30;

async fn memory_server(limits: Limits) -> (TestServer, Arc<MemoryExport>) {
    let export = Arc::new(MemoryExport::new("disk", SIZE));
    let server = TestServer::start(Arc::new(MemoryDirectory::new(vec![Arc::clone(&export)])), limits).await;
    (server, export)
}

#[tokio::test]
async fn writes_are_read_back_on_both_sockets_with_both_kinds_of_reply() {
    let (server, export) = memory_server(limits()).await;
    let payload = vec![9; 4096];
    for structured in [false, true] {
        let mut tcp = server.tcp().await;
        tcp.go("disk", structured).await;
        assert_eq!(tcp.call(CMD_WRITE, CMD_FLAG_FUA, 8192, 4096, &payload).await, 0);
        assert_eq!(tcp.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0);
        let mut unix = server.unix().await;
        unix.go("disk", structured).await;
        unix.send(&request(CMD_READ, 0, 3, 4096, 65536)).await;
        let reply = unix.reply(65536).await;
        assert_eq!((reply.cookie, reply.error), (3, 0));
        let (_, data) = &reply.chunks[0];
        let data = if structured { &data[8..] } else { &data[..] };
        assert_eq!(data[4096..8192], payload[..]);
        assert!(data[..4096].iter().all(|byte| *byte == 0));
        assert_eq!(unix.call(CMD_TRIM, 0, 8192, 4096, &[]).await, 0);
        assert_eq!(unix.call(CMD_WRITE_ZEROES, 0, 8192, 4096, &[]).await, 0);
        assert_eq!(export.contents(8192, 4096), vec![0; 4096]);
        assert_eq!(tcp.call(CMD_READ, 0, 0, 0, &[]).await, 0, "an empty read");
    }
}

#[tokio::test]
async fn a_read_comes_in_data_and_hole_chunks_or_in_one() {
    let (server, _) = memory_server(limits()).await;
    let mut client = server.unix().await;
    client.go("disk", true).await;
    assert_eq!(client.call(CMD_WRITE, 0, 0, 512, &[1; 512]).await, 0);
    client.send(&request(CMD_READ, 0, 1, 0, 3 * 65536)).await;
    let reply = client.reply(0).await;
    let kinds: Vec<_> = reply.chunks.iter().map(|(kind, payload)| (*kind, payload.len())).collect();
    assert_eq!(kinds, [(REPLY_TYPE_OFFSET_DATA, 8 + 65536), (REPLY_TYPE_OFFSET_HOLE, 12)]);
    assert_eq!(reply.chunks[1].1, [&65536u64.to_be_bytes()[..], &(2 * 65536u32).to_be_bytes()].concat());
    client.send(&request(CMD_READ, CMD_FLAG_DF, 2, 0, 3 * 65536)).await;
    let reply = client.reply(0).await;
    assert_eq!(reply.chunks.len(), 1);
    assert_eq!((reply.chunks[0].0, reply.chunks[0].1.len()), (REPLY_TYPE_OFFSET_DATA, 8 + 3 * 65536));
}

#[tokio::test]
async fn block_status_tells_holes_and_one_extent_when_asked() {
    let (server, _) = memory_server(limits()).await;
    let mut client = server.unix().await;
    client.go("disk", true).await;
    assert_eq!(client.call(CMD_WRITE, 0, 65536, 512, &[1; 512]).await, 0);
    let hole = STATE_HOLE | STATE_ZERO;
    for (flags, length, expected) in [
        (0, 3 * 65536, vec![65536, hole, 65536, 0, 65536, hole]),
        (CMD_FLAG_REQ_ONE, 3 * 65536, vec![65536, hole]),
        (CMD_FLAG_REQ_ONE, 512, vec![512, hole]),
    ] {
        client.send(&request(CMD_BLOCK_STATUS, flags, 1, 0, length)).await;
        let reply = client.reply(0).await;
        let words: Vec<u32> = reply.chunks[0]
            .1
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")))
            .collect();
        assert_eq!(reply.chunks[0].0, REPLY_TYPE_BLOCK_STATUS);
        assert_eq!((words[0], &words[1..]), (1, &expected[..]));
    }
}

#[tokio::test]
async fn what_is_refused_is_answered_and_the_connection_goes_on() {
    let (server, _) = memory_server(limits()).await;
    for structured in [false, true] {
        let mut client = server.tcp().await;
        client.go("disk", structured).await;
        let large = vec![1; (32 << 20) + 512];
        for (command, flags, offset, length, payload, errno) in [
            (CMD_CACHE, CMD_FLAG_REQ_ONE, 0, 512, &[][..], EINVAL),
            (99, 0, 0, 512, &[], EINVAL),
            (CMD_READ, CMD_FLAG_NO_HOLE, 0, 512, &[], EINVAL),
            (CMD_READ, 0, SIZE, 512, &[], EINVAL),
            (CMD_READ, 0, u64::MAX - 511, 512, &[], EINVAL),
            (CMD_READ, 0, 0, u64::from(u32::MAX) - 511, &[], EINVAL),
            (CMD_READ, 0, 1, 512, &[], EINVAL),
            (CMD_WRITE, 0, SIZE - 512, 1024, &large[..1024], ENOSPC),
            (CMD_WRITE, 0, 3, 5, &large[..5], EINVAL),
            (CMD_WRITE, 0, 0, large.len() as u64, &large, EINVAL),
            (CMD_FLUSH, 0, 512, 0, &[], EINVAL),
            (CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE, 0, 512, &[], ENOTSUP),
        ] {
            assert_eq!(
                client.call(command, flags, offset, length, payload).await,
                errno,
                "{command} {offset}+{length}"
            );
            assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0, "the connection goes on");
        }
    }
}

#[tokio::test]
async fn extended_headers_carry_64_bits_both_ways() {
    let export = Arc::new(MemoryExport::new("disk", 1 << 44));
    let server = TestServer::start(Arc::new(MemoryDirectory::new(vec![Arc::clone(&export)])), limits()).await;
    let mut client = server.unix().await;
    client.go_with("disk", Style::Extended, &["base:allocation"]).await;
    let (far, payload) = (1 << 43, CMD_FLAG_PAYLOAD_LEN);
    assert_eq!(client.call(CMD_WRITE, payload | CMD_FLAG_FUA, far, 65536, &[1; 65536]).await, 0);
    // Story: QEMU leaves out the flag, which it must not, and every write of it failed.
    assert_eq!(client.call(CMD_WRITE, 0, far + 65536, 512, &[2; 512]).await, 0);
    assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0);
    client.send(&extended(CMD_READ, 0, 3, far + 65024, 1024)).await;
    let reply = client.reply(0).await;
    assert_eq!((reply.cookie, reply.chunks.len()), (3, 1));
    assert_eq!(reply.chunks[0].1[8..], [vec![1; 512], vec![2; 512]].concat());

    client.send(&extended(CMD_BLOCK_STATUS, 0, 4, 0, 1 << 44)).await;
    let reply = client.reply(0).await;
    let (hole, data) = (u64::from(STATE_HOLE | STATE_ZERO), 2 * 65536);
    let mut expected = [0, 0, 0, 1, 0, 0, 0, 3].to_vec();
    for number in [far, hole, data, 0, (1 << 44) - far - data, hole] {
        expected.extend(number.to_be_bytes());
    }
    assert_eq!(reply.chunks, [(REPLY_TYPE_BLOCK_STATUS_EXT, expected)], "in one answer");

    assert_eq!(client.call(CMD_TRIM, 0, 512, (1 << 44) - 512, &[]).await, 0, "in one request");
    assert_eq!(export.contents(far, 512), [0; 512]);
    assert_eq!(client.call(CMD_WRITE_ZEROES, 0, 0, 1 << 44, &[]).await, 0);
}

/// A session of which one half is elsewhere until it is asked for.
struct Halved {
    inner: Arc<MemoryExport>,
    cached: Mutex<Vec<(u64, u64)>>,
}

impl Session for Halved {
    fn info(&self) -> ExportInfo {
        self.inner.info()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        self.inner.read(offset, length)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.write_zeroes(offset, length, options)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.trim(offset, length, fua)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.flush()
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.inner.allocation(offset, length)
    }

    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        let is_here = self.cached.lock().expect("no thread panics with it").contains(&(SIZE / 2, SIZE / 2));
        let upper = if is_here { Residency::Local } else { Residency::Stale };
        let here = (SIZE / 2).clamp(offset, offset + length) - offset;
        let extents = [(here, Residency::Zero), (length - here, upper)];
        Box::pin(async move {
            let extents = extents.into_iter().filter(|(length, _)| *length > 0);
            Ok(extents.map(|(length, residency)| ResidencyExtent { length, residency }).collect())
        })
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.cached.lock().expect("no thread panics with it").push((offset, length));
        Box::pin(async { Ok(()) })
    }
}

struct HalvedDirectory(Arc<Halved>);

impl ExportDirectory for HalvedDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(async { Ok(vec![self.0.info()]) })
    }

    fn info<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async { Ok(self.0.info()) })
    }

    fn open<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async { Ok(Arc::clone(&self.0) as Arc<dyn Session>) })
    }
}

#[tokio::test]
async fn residency_is_told_beside_allocation_and_cache_brings_a_range_here() {
    let halved = Arc::new(Halved { inner: Arc::new(MemoryExport::new("disk", SIZE)), cached: Mutex::default() });
    let server = TestServer::start(Arc::new(HalvedDirectory(Arc::clone(&halved))), limits()).await;
    for style in [Style::Structured, Style::Extended] {
        halved.cached.lock().expect("no thread panics with it").clear();
        let mut client = server.unix().await;
        let numbers = client.go_with("disk", style, &["base:allocation", "helio:residency"]).await;
        assert_eq!(numbers.len(), 2);
        let hole = STATE_HOLE | STATE_ZERO;
        let half = SIZE as u32 / 2;
        for (cache, expected) in
            [(false, [half, RESIDENCY_ZERO, half, RESIDENCY_STALE]), (true, [half, RESIDENCY_ZERO, half, 0])]
        {
            if cache {
                assert_eq!(client.call(CMD_CACHE, 0, SIZE / 2, SIZE / 2, &[]).await, 0);
            }
            let told = client.status(0, SIZE).await;
            assert_eq!(told, [(numbers[0], vec![SIZE as u32, hole]), (numbers[1], expected.to_vec())], "{style:?}");
        }
        assert_eq!(*halved.cached.lock().expect("no thread panics with it"), [(SIZE / 2, SIZE / 2)]);
    }
}

#[tokio::test]
async fn without_anything_to_fetch_everything_is_local_or_zero() {
    let (server, _) = memory_server(limits()).await;
    let mut client = server.unix().await;
    let numbers = client.go_with("disk", Style::Structured, &["helio:residency"]).await;
    assert_eq!(client.call(CMD_WRITE, 0, 65536, 512, &[1; 512]).await, 0);
    assert_eq!(client.call(CMD_CACHE, 0, 0, SIZE, &[]).await, 0);
    let zero = RESIDENCY_ZERO;
    let expected = vec![65536, zero, 65536, 0, SIZE as u32 - 2 * 65536, zero];
    assert_eq!(client.status(0, SIZE).await, [(numbers[0], expected)]);
}

#[tokio::test]
async fn a_query_for_block_status_may_name_its_contexts() {
    let (server, _) = memory_server(limits()).await;
    let mut client = server.unix().await;
    let numbers = client.go_with("disk", Style::Extended, &["base:allocation", "helio:residency"]).await;
    let filter = |length: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        [&length.to_be_bytes()[..], &ids].concat()
    };
    for (length, ids, errno) in [
        (SIZE, vec![numbers[1]], 0),
        (SIZE, vec![numbers[1], numbers[0]], 0),
        (SIZE, vec![], EINVAL),
        (SIZE, vec![numbers[0], numbers[0]], EINVAL),
        (SIZE, vec![77], EINVAL),
        (SIZE, vec![1; 10_000], EINVAL),
        (2 * SIZE, vec![numbers[0]], EINVAL),
    ] {
        let payload = filter(length, &ids);
        // In pieces: the payload may come after the header.
        client.send(&extended(CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, 1, 0, payload.len() as u64)).await;
        client.send(&payload[..5]).await;
        client.send(&payload[5..]).await;
        let reply = client.reply(0).await;
        assert_eq!(reply.error, errno, "{length} {} ids", ids.len());
        assert_eq!(reply.chunks.len(), if errno == 0 { ids.len() } else { 1 });
        assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0, "the connection goes on");
    }
}

#[tokio::test]
async fn with_extended_headers_what_is_refused_is_skipped_up_to_the_advertised_maximum() {
    let (server, _) = memory_server(limits()).await;
    let mut client = server.unix().await;
    client.go_with("disk", Style::Extended, &[]).await;
    let payload = CMD_FLAG_PAYLOAD_LEN;
    for (command, flags, offset, length, bytes, errno) in [
        (CMD_WRITE, 0, 3, 5, &[7; 5][..], EINVAL),
        (CMD_READ, payload, 0, 1000, &[7; 1000], EINVAL),
        (CMD_BLOCK_STATUS, payload, 0, 1000, &[7; 1000], EINVAL),
        (99, payload, 0, 1000, &[7; 1000], EINVAL),
        (CMD_READ, 0, 0, 1 << 40, &[], EINVAL),
        (CMD_WRITE_ZEROES, 0, 0, 1 << 40, &[], ENOSPC),
        (CMD_TRIM, 0, 0, u64::MAX, &[], EINVAL),
    ] {
        assert_eq!(client.call(command, flags, offset, length, bytes).await, errno, "{command} {length}");
        assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0, "the connection goes on");
    }
    client.send(&extended(CMD_WRITE, payload, 1, 0, (32 << 20) + 512)).await;
    assert!(client.is_closed().await, "a payload over the maximum");
    for wrong in [request(CMD_READ, 0, 1, 0, 512), extended(CMD_READ, 0, 1, 0, 512)] {
        let mut client = server.unix().await;
        let style = if wrong.len() == 28 { Style::Extended } else { Style::Structured };
        client.go_with("disk", style, &[]).await;
        client.send(&wrong).await;
        assert!(client.is_closed().await, "a request of another style than was agreed on");
    }
}

#[tokio::test]
async fn payloads_of_every_size_arrive_whole_however_they_are_cut() {
    let (server, export) = memory_server(limits()).await;
    let mut client = server.unix().await;
    client.go("disk", false).await;
    // Below, at and above the sizes where the buffer changes.
    let mut stream = Vec::new();
    let lengths = [512u32, 4096, 32 << 10, (32 << 10) + 512, 64 << 10, 1 << 20, 512, 5 << 20, 4096, 4096];
    for (number, length) in lengths.iter().enumerate() {
        stream.extend(request(CMD_WRITE, 0, number as u64, (number as u64) << 23, *length));
        stream.extend((0..*length).map(|i| (i % 253) as u8 ^ number as u8));
    }
    // Cuts at places that drift against every length.
    for piece in stream.chunks(40_007) {
        client.send(piece).await;
    }
    for _ in lengths {
        assert_eq!(client.reply(0).await.error, 0);
    }
    for (number, length) in lengths.iter().enumerate() {
        let expected: Vec<u8> = (0..*length).map(|i| (i % 253) as u8 ^ number as u8).collect();
        assert!(export.contents((number as u64) << 23, *length) == expected, "payload {number} of {length}");
    }
}

#[tokio::test]
async fn a_read_only_export_refuses_writes_and_says_why() {
    let info = ExportInfo { read_only: true, ..MemoryExport::new("disk", SIZE).info() };
    let exports = MemoryDirectory::new(vec![Arc::new(MemoryExport::with_info(info))]);
    let server = TestServer::start(Arc::new(exports), limits()).await;
    let mut client = server.unix().await;
    client.go("disk", true).await;
    client.send(&[&request(CMD_WRITE, 0, 1, 0, 512)[..], &[1; 512]].concat()).await;
    let reply = client.reply(0).await;
    assert_eq!(reply.error, EPERM);
    assert!(String::from_utf8_lossy(&reply.chunks[0].1).contains("read-only"));
    assert_eq!(client.call(CMD_TRIM, 0, 0, 512, &[]).await, EPERM);
    assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0);
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
}

async fn gate_server(ends: Ends, limits: Limits) -> (TestServer, Arc<Gate>) {
    let gate = Gate::new(ends);
    (TestServer::start(Arc::new(GateDirectory(Arc::clone(&gate))), limits).await, gate)
}

#[tokio::test]
async fn an_export_that_grows_is_served_to_its_new_end() {
    let (server, _) = gate_server(Ends::Ok, limits()).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    assert_eq!(client.call(CMD_READ, 0, 2 * SIZE - 512, 512, &[]).await, 0);
    assert_eq!(client.call(CMD_READ, 0, 2 * SIZE, 512, &[]).await, EINVAL);
}

#[tokio::test]
async fn a_connection_moves_to_the_thread_of_its_export_and_ends_with_it() {
    let (home, thread, end) = export_thread();
    let gate = Gate::at_home(Ends::Ok, Some(home));
    let server = TestServer::start(Arc::new(GateDirectory(Arc::clone(&gate))), limits()).await;
    gate.permits.add_permits(100);
    let mut clients = vec![server.unix().await, server.unix().await];
    for client in &mut clients {
        // The first request comes with the last of the handshake, before the connection has moved.
        client.go("gate", false).await;
        for cookie in 0..10 {
            client.send(&write(cookie, 65536)).await;
            assert_eq!(client.reply(0).await.cookie, cookie);
        }
    }
    let threads = gate.threads.lock().expect("no thread panics with it").clone();
    assert_eq!(threads, vec![thread.thread().id(); 20]);

    drop(end);
    thread.join().expect("ends");
    for client in &mut clients {
        assert!(client.is_closed().await);
    }
    let mut late = server.unix().await;
    late.go("gate", false).await;
    assert!(late.is_closed().await);
    server.server.shutdown().await;
}

#[tokio::test]
async fn replies_overtake_requests_that_wait() {
    let (server, gate) = gate_server(Ends::Ok, limits()).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    client.send(&write(1, 512)).await;
    client.send(&request(CMD_READ, 0, 2, 0, 512)).await;
    assert_eq!(client.reply(512).await.cookie, 2);
    gate.permits.add_permits(1);
    assert_eq!(client.reply(0).await.cookie, 1);
}

#[tokio::test]
async fn requests_in_flight_are_bounded_and_go_on_as_others_finish() {
    let (server, gate) = gate_server(Ends::Ok, Limits { requests_in_flight_max: 4, ..limits() }).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    let all: Vec<u8> = (0..20).flat_map(|cookie| write(cookie, 512)).collect();
    client.send(&all).await;
    gate.until_started(4).await;
    for finished in 1..=20 {
        assert!(gate.started.load(Ordering::SeqCst) <= 3 + finished, "over the bound");
        gate.permits.add_permits(1);
        assert_eq!(client.reply(0).await.error, 0);
    }
    assert_eq!(gate.started.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn bytes_in_flight_are_bounded_but_a_single_large_request_passes() {
    let (server, gate) = gate_server(Ends::Ok, Limits { bytes_in_flight_max: 8192, ..limits() }).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    let all: Vec<u8> = [write(0, 4096), write(1, 4096), write(2, 512), write(3, 65536)].concat();
    client.send(&all).await;
    gate.until_started(2).await;
    for finished in 1..=4 {
        gate.permits.add_permits(1);
        assert_eq!(client.reply(0).await.error, 0);
        assert!(gate.started.load(Ordering::SeqCst) <= 2 + finished);
    }
}

#[tokio::test]
async fn failures_of_the_export_become_their_numbers() {
    for (kind, errno) in [
        (ErrorKind::NotOwner, EPERM),
        (ErrorKind::Fenced, EPERM),
        (ErrorKind::OutOfSpace, ENOSPC),
        (ErrorKind::InvalidRequest, EINVAL),
        (ErrorKind::Closed, ESHUTDOWN),
        (ErrorKind::Internal, EIO),
    ] {
        let (server, gate) = gate_server(Ends::Error(kind), limits()).await;
        gate.permits.add_permits(2);
        for structured in [false, true] {
            let mut client = server.unix().await;
            client.go("gate", structured).await;
            client.send(&write(1, 512)).await;
            let reply = client.reply(0).await;
            assert_eq!(reply.error, errno);
            if structured {
                assert_eq!(reply.chunks[0].1[6..], *b"as told", "the reason reaches the client");
            }
        }
    }
}

/// Where the log of a test goes.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_refused_write_is_logged_once_with_peer_export_and_reason() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // For this thread, on which the whole test runs.
    let _log = tracing::subscriber::set_default(subscriber);
    let (server, gate) = gate_server(Ends::Error(ErrorKind::NotOwner), limits()).await;
    gate.permits.add_permits(3);
    let mut client = server.tcp().await;
    client.go("gate", false).await;
    for cookie in 0..3 {
        client.send(&write(cookie, 512)).await;
        assert_eq!(client.reply(0).await.error, EPERM);
    }
    let text = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
    let refusals: Vec<_> = text.lines().filter(|line| line.contains("WRITE refused")).collect();
    assert_eq!(refusals.len(), 1, "{text}");
    for expected in ["WARN", "peer=\"127.0.0.1:", "export=\"gate\"", "as told"] {
        assert!(refusals[0].contains(expected), "{expected} in {refusals:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_its_connection_alone() {
    let (server, gate) = gate_server(Ends::Panic, limits()).await;
    let mut bystander = server.unix().await;
    bystander.go("gate", false).await;
    let mut victim = server.unix().await;
    victim.go("gate", false).await;
    gate.permits.add_permits(1);
    victim.send(&write(1, 512)).await;
    assert!(victim.is_closed().await);
    assert_eq!(bystander.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    let mut newcomer = server.tcp().await;
    newcomer.go("gate", false).await;
}

#[tokio::test]
async fn disconnect_and_half_close_finish_what_is_in_flight() {
    let (server, gate) = gate_server(Ends::Ok, limits()).await;
    for say_goodbye in [true, false] {
        let mut client = server.unix().await;
        client.go("gate", false).await;
        client.send(&write(1, 512)).await;
        if say_goodbye {
            client.send(&request(CMD_DISC, 0, 2, 0, 0)).await;
        } else {
            client.stream.shutdown().await.expect("half-closes");
        }
        gate.permits.add_permits(1);
        assert_eq!(client.reply(0).await.cookie, 1);
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn shutdown_refuses_new_requests_and_drains_old_ones() {
    shutdown_drains(None).await;
    let (home, _thread, _end) = export_thread();
    shutdown_drains(Some(home)).await;
}

async fn shutdown_drains(home: Option<Handle>) {
    let gate = Gate::at_home(Ends::Ok, home);
    let limits = Limits { drain_timeout: HUNG, ..limits() };
    let server = TestServer::start(Arc::new(GateDirectory(Arc::clone(&gate))), limits).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    let mut idle = server.tcp().await;
    idle.go("gate", false).await;
    client.send(&write(1, 512)).await;
    gate.until_started(1).await;
    let path = server.socket();
    let TestServer { server, directory } = server;
    let shutdown = tokio::spawn(server.shutdown());
    assert!(idle.is_closed().await, "an idle connection is closed at once");
    // The token is set before any connection closes, so this comes after the shutdown began.
    client.send(&request(CMD_READ, 0, 2, 0, 512)).await;
    let refused = client.reply(0).await;
    assert_eq!((refused.cookie, refused.error), (2, ESHUTDOWN));
    gate.permits.add_permits(1);
    assert_eq!(client.reply(0).await.cookie, 1);
    assert!(client.is_closed().await);
    shutdown.await.expect("ends");
    assert!(!path.exists(), "the socket file is removed");
    drop(directory);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let (server, gate) = gate_server(Ends::Ok, Limits { drain_timeout: Duration::ZERO, ..limits() }).await;
    let mut client = server.unix().await;
    client.go("gate", false).await;
    client.send(&write(1, 512)).await;
    gate.until_started(1).await;
    tokio::time::timeout(HUNG, server.server.shutdown()).await.expect("bounded");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_others_up() {
    let (server, _) = memory_server(limits()).await;
    let mut slow = server.unix().await;
    slow.go("disk", false).await;
    // Far more replies than sockets and the backlog hold; the server stops reading, so sending blocks at some point.
    let flood: Vec<u8> = (0..64).flat_map(|cookie| request(CMD_READ, 0, cookie, 0, 1 << 20)).collect();
    slow.send(&flood).await;
    let mut other = server.unix().await;
    other.go("disk", false).await;
    for _ in 0..100 {
        assert_eq!(other.call(CMD_READ, 0, 0, 4096, &[]).await, 0);
    }
    for cookie in 0..64 {
        assert_eq!(slow.reply(1 << 20).await.cookie, cookie, "and nothing is lost");
    }
}

#[tokio::test]
async fn handshakes_time_out_and_connections_are_limited() {
    let (server, _) = memory_server(Limits { handshake_timeout: Duration::from_millis(1), ..limits() }).await;
    let mut silent = server.unix().await;
    silent.bytes(18).await;
    assert!(silent.is_closed().await);

    let (server, _) = memory_server(Limits { connections_max: 1, ..limits() }).await;
    let mut first = server.unix().await;
    first.go("disk", false).await;
    assert!(server.tcp().await.is_closed().await);
    assert_eq!(first.call(CMD_READ, 0, 0, 512, &[]).await, 0);
}

/// Guests of a machine could not start: whoever reached its port over TCP opened as many connections as a server may have and said nothing, and each held
/// a place for as long as a handshake may take. The Unix socket got none, though none of that was for it.
#[tokio::test]
async fn silent_clients_over_tcp_leave_room_on_the_unix_socket() {
    let (server, _) = memory_server(Limits { connections_max: 8, ..limits() }).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut client = server.tcp().await;
        client.bytes(18).await;
        silent.push(client);
    }
    // These connect, and wait in the queue.
    let mut waiting = server.tcp().await;
    let _more = [server.tcp().await, server.tcp().await, server.tcp().await];
    let mut guests = Vec::new();
    for _ in 0..4 {
        let mut guest = server.unix().await;
        guest.go("disk", false).await;
        assert_eq!(guest.call(CMD_READ, 0, 0, 512, &[]).await, 0);
        guests.push(guest);
    }
    // Who gives up makes room for who has waited longest; it is served as any other.
    drop(guests.pop());
    drop(silent.pop());
    waiting.go("disk", false).await;
    assert_eq!(waiting.call(CMD_READ, 0, 0, 512, &[]).await, 0);
}

#[tokio::test]
async fn half_a_request_does_not_hold_a_connection_for_ever() {
    let (server, _) = memory_server(Limits { stall_timeout: Duration::from_millis(50), ..limits() }).await;
    let mut idle = server.unix().await;
    idle.go("disk", true).await;
    for half in [&request(CMD_READ, 0, 1, 0, 512)[..20], &write(1, 4096)[..2000], &write(1, 1 << 20)[..500_000]] {
        let mut client = server.tcp().await;
        client.go("disk", false).await;
        assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
        client.send(half).await;
        assert!(client.is_closed().await);
    }
    assert_eq!(idle.call(CMD_READ, 0, 0, 512, &[]).await, 0, "one that does nothing stays");
}

#[tokio::test]
async fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("nbd.sock");
    let bind = |path: &std::path::Path| {
        let options = ServerOptions { unix: Some(path.to_owned()), ..ServerOptions::default() };
        Server::bind(options, Arc::new(MemoryDirectory::default()))
    };
    // What a killed server leaves: a socket file that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let server = bind(&path).await.expect("replaces the dead one");
    let refused = bind(&path).await.expect_err("a live one");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("another server"), "{refused}");
    assert!(UnixStream::connect(&path).await.is_ok(), "the live one lives on");
    server.shutdown().await;
    assert!(!path.exists());

    std::fs::write(&path, "precious").expect("writes");
    assert_eq!(bind(&path).await.expect_err("a file").kind(), ErrorKind::InvalidRequest);
    assert_eq!(std::fs::read(&path).expect("reads"), b"precious");
    let nothing = Server::bind(ServerOptions::default(), Arc::new(MemoryDirectory::default())).await;
    assert_eq!(nothing.expect_err("nowhere").kind(), ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn a_taken_port_is_told() {
    let (server, _) = memory_server(limits()).await;
    let options = ServerOptions { tcp: server.server.tcp_address(), ..ServerOptions::default() };
    let refused = Server::bind(options, Arc::new(MemoryDirectory::default())).await.expect_err("taken");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("127.0.0.1"), "{refused}");
}

/// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): a fixed seed replays.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_hurt_nobody_else() {
    let (server, _) = memory_server(limits()).await;
    let mut bystander = server.unix().await;
    bystander.go("disk", true).await;
    let mut seed = 0x5eed;
    for round in 0..300u32 {
        let mut hostile = server.unix().await;
        if round % 3 == 0 {
            hostile.go("disk", round % 2 == 0).await;
        } else {
            hostile.greet().await;
        }
        let mut bytes = Vec::new();
        for _ in 0..random(&mut seed) % 20 {
            let word = random(&mut seed);
            match (word % 4, round % 3) {
                // Headers that look right around fields that are not.
                (0 | 1, 0) => {
                    bytes.extend(request(
                        (word >> 8) as u16 % 10,
                        (word >> 16) as u16 % 64,
                        word,
                        random(&mut seed) >> ((word >> 32) % 64),
                        (random(&mut seed) >> 32) as u32 >> ((word >> 40) % 32),
                    ));
                }
                (0 | 1, _) => {
                    let junk: Vec<u8> = (0..word >> 8 & 0x3f).map(|i| (word >> (i % 8 * 8)) as u8 & 0x0f).collect();
                    bytes.extend(option((word >> 16) as u32 % 12, &junk));
                }
                _ => bytes.extend(word.to_be_bytes()),
            }
        }
        // The server may have had enough before the end; then writing fails.
        let _ = hostile.stream.write_all(&bytes).await;
        let _ = hostile.stream.shutdown().await;
        let mut answers = Vec::new();
        let read = tokio::time::timeout(HUNG, hostile.stream.read_to_end(&mut answers)).await;
        assert!(read.is_ok(), "round {round}: the server neither answered nor closed");
        assert_eq!(bystander.call(CMD_READ, 0, 0, 512, &[]).await, 0, "round {round}");
    }
}
