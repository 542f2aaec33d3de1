//! What connections cost that do nothing, or that only announce what they would send. One test, since it looks at the whole
//! process.

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use certificates::Certificates;
use common::{TestServer, extended, limits, option, request, string};
use nbd_frontend::proto::constants::*;
use nbd_frontend::proto::style::Style;
use nbd_frontend::{Limits, MemoryDirectory, MemoryExport, TlsMode};

const CONNECTIONS: usize = 5000;
const TLS_CONNECTIONS: usize = 300;
/// The bound for one idle connection, in bytes.
const IDLE_MAX: u64 = 64 << 10;

/// A number of `/proc/self/status`.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with(field)).expect("is there");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    status("VmRSS:") << 10
}

/// How many connections this process may have both ends of.
fn connections_allowed() -> usize {
    let text = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("is there");
    let files: usize = line.split_whitespace().nth(3).and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
    files.saturating_sub(300) / 2
}

fn read(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the server answers");
    bytes
}

/// A client after the handshake that has had something written and read.
fn used(server: &TestServer) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).expect("connects");
    read(&mut stream, 18);
    let mut bytes = (FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes().to_vec();
    bytes.extend(option(OPT_GO, &[string("disk"), vec![0, 0]].concat()));
    stream.write_all(&bytes).expect("is sent");
    loop {
        let head = read(&mut stream, 20);
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        read(&mut stream, word(16) as usize);
        match word(12) {
            REP_ACK => break,
            kind => assert_eq!(kind, REP_INFO),
        }
    }
    // More than the read buffer, so that it was filled.
    let mut bytes = request(CMD_WRITE, 0, 1, 0, 256 << 10);
    bytes.resize(bytes.len() + (256 << 10), 7);
    bytes.extend(request(CMD_READ, 0, 2, 0, 64 << 10));
    stream.write_all(&bytes).expect("is sent");
    read(&mut stream, 16 + 16 + (64 << 10));
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousands_of_idle_connections_cost_little_memory_and_no_threads() {
    let export = Arc::new(MemoryExport::new("disk", 64 << 20));
    let limits = Limits { connections_max: 2 * CONNECTIONS, ..limits() };
    let certificates = Certificates::new();
    let tls = certificates.server(TlsMode::Optional, false);
    let server = TestServer::start_with(Arc::new(MemoryDirectory::new(vec![export])), limits, Some(tls)).await;

    let count = CONNECTIONS.min(connections_allowed());
    if count < CONNECTIONS {
        println!("{count} connections instead of {CONNECTIONS}: the limit of open files (ulimit -n) allows no more");
    }
    // What the first ones cost is there once.
    let mut clients: Vec<UnixStream> = (0..50).map(|_| used(&server)).collect();
    let (before, threads) = (resident(), status("Threads:"));
    clients.extend((clients.len()..count).map(|_| used(&server)));
    let each = resident().saturating_sub(before) / (count - 50) as u64;
    println!("{count} idle connections: {each} bytes of memory each, {} threads", status("Threads:"));
    assert!(each < IDLE_MAX, "{each} bytes for an idle connection");
    assert_eq!(status("Threads:"), threads, "no threads");

    // 32 MiB are announced on each, and never come.
    let before = resident();
    for client in &mut clients {
        client.write_all(&request(CMD_WRITE, 0, 3, 0, 32 << 20)).expect("is sent");
        client.write_all(&[1; 512]).expect("is sent");
    }
    // The server has seen them all when it answers one that came later on every thread of it: those are few.
    let mut late: Vec<UnixStream> = (0..20).map(|_| used(&server)).collect();
    let each = resident().saturating_sub(before) / count as u64;
    println!("{count} announced payloads of 32 MiB: {each} bytes each");
    assert!(each < IDLE_MAX, "{each} bytes for an announced payload");
    late.clear();
    clients.clear();

    // Both ends, as the client's is here too.
    let mut clients = Vec::new();
    let mut before = 0;
    for number in 0..TLS_CONNECTIONS.min(count) {
        if number == 20 {
            before = resident();
        }
        let mut plain = server.tcp().await;
        plain.greet().await;
        plain.send(&option(OPT_STARTTLS, &[])).await;
        assert_eq!(plain.option_reply().await.0, REP_ACK);
        let name = "localhost".try_into().expect("a name");
        let stream = certificates.connector().connect(name, plain.stream).await.expect("begins");
        let mut client = common::Client::new(stream);
        client.agree("disk", Style::Extended, &[]).await;
        client.send(&extended(CMD_READ, 0, 1, 0, 64 << 10)).await;
        assert_eq!(client.reply(0).await.error, 0);
        clients.push(client);
    }
    let each = resident().saturating_sub(before) / (clients.len() - 20) as u64;
    println!("{} idle connections with TLS: {each} bytes of memory each, with the client's end", clients.len());
    assert!(each < 2 * IDLE_MAX, "{each} bytes for both ends of an idle connection with TLS");
}
