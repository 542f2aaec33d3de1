//! Servers that pass their connections on to others in the same process, over a disk in memory: clients that see nothing of it,
//! in whatever they were interrupted, and successors that fail at every step.

#[path = "../../tests/support/certificates.rs"]
mod certificates;
#[path = "../../tests/support/client.rs"]
mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use self::certificates::Certificates;
use self::common::{Client, HUNG, extended, option, request, string};
use super::channel::{Channel, ChannelError};
use super::message::{self, HEADER_LEN, Header, Hello, Holder, Message, STATE_VERSION};
use super::successor::{Inheritance, Process};
use crate::proto::constants::*;
use crate::proto::style::Style;
use crate::server::lane::Sockets;
use crate::service::sockets::PassedSockets;
use crate::{
    AllocationExtent, ExportDirectory, ExportInfo, Limits, MemoryDirectory, MemoryExport, Server, ServerOptions,
    Session, TlsMode, TlsOptions, ZeroOptions,
};

const SIZE: u64 = 1 << 30;

/// Where servers listen, one after the other.
struct Place {
    directory: tempfile::TempDir,
    tls: Option<TlsOptions>,
    limits: Limits,
}

impl Place {
    fn new() -> Place {
        let limits = Limits { drain_timeout: Duration::from_secs(5), ..Limits::default() };
        Place { directory: tempfile::tempdir().expect("a directory"), tls: None, limits }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    fn options(&self) -> ServerOptions {
        ServerOptions {
            tcp: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)),
            unix: Some(self.socket()),
            control: Some(self.control()),
            tls: self.tls.clone(),
            limits: self.limits,
            ..ServerOptions::default()
        }
    }

    async fn begin(&self, exports: &Arc<dyn ExportDirectory>) -> Server {
        Server::bind(self.options(), exports.clone()).await.expect("listens")
    }

    async fn replace(&self, exports: &Arc<dyn ExportDirectory>) -> Result<Server, Error> {
        let replaced = tokio::time::timeout(HUNG, Server::replace(self.options(), exports.clone()));
        Ok(replaced.await.expect("ends")?.expect("somebody listens"))
    }

    /// A newer server, and the older one gone.
    async fn renew(&self, old: Server, exports: &Arc<dyn ExportDirectory>) -> Server {
        let new = self.replace(exports).await.expect("takes over");
        tokio::time::timeout(HUNG, old.replaced()).await.expect("gives way");
        tokio::time::timeout(HUNG, old.drained(std::future::pending())).await.expect("ends");
        new
    }

    async fn unix(&self) -> Client<UnixStream> {
        Client::new(UnixStream::connect(self.socket()).await.expect("connects"))
    }
}

async fn tcp(server: &Server) -> Client<TcpStream> {
    Client::new(TcpStream::connect(server.tcp_address().expect("TCP is on")).await.expect("connects"))
}

fn memory(names: &[&str]) -> (Vec<Arc<MemoryExport>>, Arc<dyn ExportDirectory>) {
    let exports: Vec<_> = names.iter().map(|name| Arc::new(MemoryExport::new(name, SIZE))).collect();
    (exports.clone(), Arc::new(MemoryDirectory::new(exports)))
}

#[tokio::test]
async fn all_that_was_agreed_on_stays_over_several_successors() {
    let place = Place::new();
    let plain = Arc::new(MemoryExport::new("disk", SIZE));
    let fixed =
        Arc::new(MemoryExport::with_info(ExportInfo { read_only: true, ..MemoryExport::new("fixed", SIZE).info() }));
    let exports: Arc<dyn ExportDirectory> = Arc::new(MemoryDirectory::new(vec![plain.clone(), fixed]));
    let mut server = place.begin(&exports).await;
    let contexts: [&[&str]; 3] = [&[], &["helio:residency"], &["base:allocation", "helio:residency"]];
    let (mut over_unix, mut over_tcp) = (Vec::new(), Vec::new());
    for (style, contexts) in [
        (Style::Simple, contexts[0]),
        (Style::Structured, contexts[0]),
        (Style::Structured, contexts[1]),
        (Style::Extended, contexts[0]),
        (Style::Extended, contexts[2]),
    ] {
        for name in ["disk", "fixed"] {
            let mut client = place.unix().await;
            let numbers = client.go_with(name, style, contexts).await;
            over_unix.push((client, name, numbers));
            let mut client = tcp(&server).await;
            let numbers = client.go_with(name, style, contexts).await;
            over_tcp.push((client, name, numbers));
        }
    }
    for round in 1..4_u8 {
        server = place.renew(server, &exports).await;
        for (number, (client, name, numbers)) in over_unix.iter_mut().enumerate() {
            works(client, name, numbers, number as u64 * 4096, round, &plain).await;
        }
        for (number, (client, name, numbers)) in over_tcp.iter_mut().enumerate() {
            works(client, name, numbers, (100 + number as u64) * 4096, round, &plain).await;
        }
        // Who comes later is served too.
        place.unix().await.go_with("disk", Style::Extended, contexts[2]).await;
        tcp(&server).await.go_with("fixed", Style::Simple, contexts[0]).await;
    }
    assert!(place.socket().exists() && place.control().exists(), "the files are the successor's now");
    server.shutdown().await;
    assert!(!place.socket().exists() && !place.control().exists());
}

/// Whether a client can do what it has agreed on, and nothing else.
async fn works<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<S>,
    name: &str,
    numbers: &[u32],
    at: u64,
    round: u8,
    disk: &MemoryExport,
) {
    let write = client.call(CMD_WRITE, CMD_FLAG_FUA, at, 4096, &[round; 4096]).await;
    if name == "fixed" {
        assert_eq!(write, EPERM, "it was told that it is read-only");
    } else {
        assert_eq!((write, disk.contents(at, 4096)), (0, vec![round; 4096]));
    }
    assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0);
    assert_eq!(client.call(CMD_READ, 0, SIZE, 512, &[]).await, EINVAL, "beyond the end");
    let one_chunk = if client.style.is_chunked() { 0 } else { EINVAL };
    assert_eq!(client.call(CMD_READ, CMD_FLAG_DF, at, 4096, &[]).await, one_chunk, "only with structured replies");
    if numbers.is_empty() {
        assert_eq!(client.call(CMD_BLOCK_STATUS, 0, at, 4096, &[]).await, EINVAL, "no context was selected");
    } else {
        let told: Vec<u32> = client.status(at, 4096).await.into_iter().map(|(context, _)| context).collect();
        assert_eq!(told, numbers);
    }
}

/// What a client has sent of its requests when the server is replaced, and what it sends then.
#[tokio::test]
async fn requests_are_finished_by_the_successor_wherever_they_were_cut() {
    let place = Place::new();
    let (disks, exports) = memory(&["disk"]);
    let mut server = place.begin(&exports).await;
    let small = [request(CMD_WRITE, 0, 1, 0, 4096), vec![1; 4096]].concat();
    let large = [request(CMD_WRITE, 0, 2, 1 << 20, 2 << 20), vec![2; 2 << 20]].concat();
    let refused = [request(CMD_WRITE, 0, 3, SIZE, 1 << 20), vec![3; 1 << 20]].concat();
    let read = request(CMD_READ, 0, 4, 1 << 20, 4096);
    for (request, error) in [(&small, 0), (&large, 0), (&refused, ENOSPC), (&read, 0)] {
        for cut in [1, 4, 27, 28, 29, 1000, 100_000, request.len() - 1, request.len()] {
            let cut = cut.min(request.len());
            let mut client = place.unix().await;
            client.go("disk", false).await;
            // What comes before is answered already, or on its way.
            client.send(&read).await;
            client.send(&request[..cut]).await;
            server = place.renew(server, &exports).await;
            client.send(&request[cut..]).await;
            assert_eq!(client.reply(4096).await.cookie, 4);
            let reply = client.reply(if *request == read { 4096 } else { 0 }).await;
            assert_eq!(reply.error, error, "{} bytes cut at {cut}", request.len());
            assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0, "and it goes on");
        }
    }
    assert_eq!(disks[0].contents(0, 4096), vec![1; 4096]);
    assert_eq!(disks[0].contents(1 << 20, 2 << 20), vec![2; 2 << 20]);
    // A payload whose meaning is inside of it.
    let filter = [(1_u64 << 16).to_be_bytes().to_vec(), 1_u32.to_be_bytes().to_vec()].concat();
    let status = extended(CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, 9, 0, filter.len() as u64);
    let status = [status, filter].concat();
    for cut in [10, 32, 36, status.len() - 1] {
        let mut client = place.unix().await;
        client.go_with("disk", Style::Extended, &["base:allocation"]).await;
        client.send(&status[..cut]).await;
        server = place.renew(server, &exports).await;
        client.send(&status[cut..]).await;
        let reply = client.reply(0).await;
        assert_eq!((reply.cookie, reply.error, reply.chunks.len()), (9, 0, 1), "cut at {cut}");
    }
}

#[tokio::test]
async fn replies_that_nobody_has_read_yet_are_sent_by_the_successor() {
    const READS: u64 = 40;
    const LENGTH: u32 = 256 << 10;
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    let mut server = place.begin(&exports).await;
    let mut client = place.unix().await;
    client.go("disk", true).await;
    let content = |number: u64| vec![number as u8 + 1; LENGTH as usize];
    for number in 0..READS {
        assert_eq!(client.call(CMD_WRITE, 0, number * u64::from(LENGTH), u64::from(LENGTH), &content(number)).await, 0);
    }
    for number in 0..READS {
        client.send(&request(CMD_READ, CMD_FLAG_DF, number, number * u64::from(LENGTH), LENGTH)).await;
    }
    for number in 0..READS {
        if number % 10 == 0 {
            server = place.renew(server, &exports).await;
        }
        let reply = client.reply(0).await;
        let (kind, data) = &reply.chunks[0];
        assert_eq!((reply.cookie, reply.error, *kind), (number, 0, REPLY_TYPE_OFFSET_DATA));
        assert!(data[8..] == content(number), "read {number}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn handshakes_are_finished_by_the_successor_wherever_they_were_cut() {
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    let mut server = place.begin(&exports).await;
    let flags = (FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes().to_vec();
    let context = [string("disk"), 1_u32.to_be_bytes().to_vec(), string("base:allocation")].concat();
    let go = [string("disk"), vec![0, 0]].concat();
    let said = [
        flags,
        option(OPT_EXTENDED_HEADERS, &[]),
        option(OPT_LIST, &vec![0; 200_000]),
        option(OPT_SET_META_CONTEXT, &context),
        option(OPT_GO, &go),
        extended(CMD_WRITE, 0, 5, 8192, 4),
        vec![5; 4],
    ]
    .concat();
    let cuts: Vec<usize> =
        [0, 3, 4, 10, 20, 21, 36, 100_000].into_iter().chain((200_000..said.len()).step_by(7)).collect();
    for cut in cuts {
        let mut client = place.unix().await;
        client.style = Style::Extended;
        client.send(&said[..cut]).await;
        server = place.renew(server, &exports).await;
        client.send(&said[cut..]).await;
        assert_eq!(client.bytes(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        let mut told = Vec::new();
        for _ in 0..4 {
            told.push(client.option_reply().await.0);
        }
        assert_eq!(told, [REP_ACK, REP_ERR_TOO_BIG, REP_META_CONTEXT, REP_ACK], "cut at {cut}");
        while client.option_reply().await.0 != REP_ACK {}
        let reply = client.reply(0).await;
        assert_eq!((reply.cookie, reply.error), (5, EINVAL), "no whole sector");
        assert_eq!(client.status(0, 4096).await[0].0, 1, "the context is selected");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn many_connections_go_over_at_once_and_those_without_a_word_too() {
    const COUNT: usize = 300;
    let place = Place::new();
    let (disks, exports) = memory(&["one", "two"]);
    let mut server = place.begin(&exports).await;
    let mut clients = Vec::new();
    let mut silent = Vec::new();
    for number in 0..COUNT {
        let mut client = place.unix().await;
        client.go(["one", "two"][number % 2], number % 3 == 0).await;
        clients.push(client);
        if number % 10 == 0 {
            silent.push(place.unix().await);
        }
    }
    for round in 1..4_u8 {
        server = place.renew(server, &exports).await;
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.call(CMD_WRITE, 0, number as u64 * 512, 512, &[round; 512]).await, 0);
        }
    }
    for (number, disk) in (0..COUNT).map(|number| (number, &disks[number % 2])) {
        assert_eq!(disk.contents(number as u64 * 512, 512), vec![3; 512]);
    }
    for client in &mut silent {
        client.go("one", true).await;
    }
    server.shutdown().await;
}

/// A disk whose writes wait for permits, and which counts who has flushed.
struct Slow {
    disk: MemoryExport,
    permits: Semaphore,
    begun: AtomicUsize,
    changed: Notify,
    settled: AtomicUsize,
}

impl Slow {
    fn new() -> Arc<Slow> {
        let disk = MemoryExport::new("disk", SIZE);
        let (begun, settled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Slow { disk, permits: Semaphore::new(0), begun, changed: Notify::new(), settled })
    }

    async fn until_begun(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.begun.load(Ordering::SeqCst) >= count {
                return;
            }
            tokio::time::timeout(HUNG, changed).await.expect("the writes begin");
        }
    }
}

struct SlowSession(Arc<Slow>);

impl Session for SlowSession {
    fn info(&self) -> ExportInfo {
        self.0.disk.info()
    }

    fn share(&self) -> Option<u64> {
        Some(1)
    }

    fn settle(&self) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        self.0.settled.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(Vec::new()) })
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        self.0.disk.read(offset, length)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
        Box::pin(async move {
            self.0.permits.acquire().await.expect("open").forget();
            self.0.disk.write(offset, data, fua).await
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.0.disk.write_zeroes(offset, length, options)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.0.disk.trim(offset, length, fua)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.0.disk.flush()
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.0.disk.allocation(offset, length)
    }
}

struct SlowDirectory(Arc<Slow>);

impl ExportDirectory for SlowDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(async { Ok(vec![self.0.disk.info()]) })
    }

    fn info<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async { Ok(self.0.disk.info()) })
    }

    fn open<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async { Ok(Arc::new(SlowSession(self.0.clone())) as Arc<dyn Session>) })
    }

    fn expect<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn resume<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        self.open("")
    }
}

#[tokio::test]
async fn what_is_under_way_is_answered_before_anything_is_passed_on() {
    let place = Place::new();
    let slow = Slow::new();
    let exports: Arc<dyn ExportDirectory> = Arc::new(SlowDirectory(slow.clone()));
    let old = place.begin(&exports).await;
    let mut clients = Vec::new();
    for number in 0..5_u64 {
        let mut client = place.unix().await;
        client.go("disk", false).await;
        client.send(&[request(CMD_WRITE, 0, number, number * 512, 512), vec![1; 512]].concat()).await;
        clients.push(client);
    }
    slow.until_begun(5).await;
    let replacing = async {
        let new = place.renew(old, &exports).await;
        // Once while all were served, once behind the last write; for all connections together.
        assert_eq!((slow.settled.load(Ordering::SeqCst), slow.begun.load(Ordering::SeqCst)), (2, 5));
        new
    };
    let releasing = async {
        while slow.settled.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        slow.permits.add_permits(5);
    };
    let (_new, ()) = tokio::join!(replacing, releasing);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply(0).await.cookie, number as u64);
    }
    slow.permits.add_permits(1);
    assert_eq!(clients[0].call(CMD_WRITE, 0, 0, 512, &[2; 512]).await, 0, "the successor is asked");
}

#[tokio::test]
async fn a_request_that_does_not_end_holds_up_the_successor_and_nobody_else_for_long() {
    let mut place = Place::new();
    place.limits.pause_timeout = Duration::from_millis(100);
    let slow = Slow::new();
    let exports: Arc<dyn ExportDirectory> = Arc::new(SlowDirectory(slow.clone()));
    let old = place.begin(&exports).await;
    let (mut stuck, mut other) = (place.unix().await, place.unix().await);
    stuck.go("disk", false).await;
    other.go("disk", false).await;
    stuck.send(&[request(CMD_WRITE, 0, 1, 0, 512), vec![1; 512]].concat()).await;
    slow.until_begun(1).await;
    let error = place.replace(&exports).await.expect_err("something is under way");
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("under way"), "{error}");
    assert_eq!(other.call(CMD_READ, 0, 0, 512, &[]).await, 0, "the other one is served again");
    slow.permits.add_permits(1);
    assert_eq!(stuck.reply(0).await.cookie, 1);
    let _new = place.renew(old, &exports).await;
    assert_eq!(stuck.call(CMD_READ, 0, 0, 512, &[]).await, 0);
}

fn hello(place: &Place) -> Hello {
    Hello {
        oldest: STATE_VERSION,
        newest: STATE_VERSION,
        program: "a test".to_owned(),
        unix: Some(place.socket()),
        tcp: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)),
        tls: 2,
        passed: Holder::default(),
    }
}

#[tokio::test]
async fn a_socket_of_the_service_manager_is_listened_on_and_its_file_left_alone() {
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    let old = place.begin(&exports).await;
    let mut client = place.unix().await;
    client.go("disk", false).await;
    // As systemd does when the socket unit is started.
    std::fs::remove_file(place.socket()).expect("is there");
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).expect("listens");
    let passed = Arc::new(PassedSockets::of(Some(listener), None));
    let options = || ServerOptions { unix: None, passed: passed.clone(), ..place.options() };
    let both = ServerOptions { unix: Some(place.socket()), ..options() };
    let error = Server::bind(both, exports.clone()).await.expect_err("which?");
    assert!(error.to_string().contains("leave one of both out"), "{error}");
    let before = place.unix().await;
    let new = Server::replace(options(), exports.clone()).await.expect("takes over").expect("somebody listens");
    tokio::time::timeout(HUNG, old.drained(std::future::pending())).await.expect("ends");
    assert_eq!(client.call(CMD_WRITE, 0, 0, 512, &[1; 512]).await, 0);
    let mut waited = before;
    waited.go("disk", false).await;
    assert_eq!(new.unix_path(), Some(&*place.socket()));

    // Who has it from nobody would remove its file.
    let error = place.replace(&exports).await.expect_err("is not passed on");
    assert!(error.to_string().contains("Sockets= in its unit"), "{error}");
    assert_eq!(waited.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    // The same once more.
    let newer = Server::replace(options(), exports.clone()).await.expect("takes over").expect("somebody listens");
    tokio::time::timeout(HUNG, new.drained(std::future::pending())).await.expect("ends");
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    newer.shutdown().await;
    assert!(place.socket().exists(), "it is somebody else's");
    let _waits = place.unix().await;
}

/// `Hello` grows at its end, and is read in every version.
#[test]
fn an_older_hello_has_no_sockets_of_a_service_manager() {
    let known = Hello { passed: Holder { unix: true, tcp: true }, ..hello(&Place::new()) };
    let bytes = Message::Hello(known.clone()).encode().expect("is small");
    let decode = |bytes: &[u8]| {
        let (head, body) = bytes.split_first_chunk::<HEADER_LEN>().expect("a header");
        Message::decode(Header::decode(head).expect("a header"), body)
    };
    assert_eq!(decode(&bytes).ok(), Some(Message::Hello(known.clone())));
    let older = Message::Hello(Hello { passed: Holder::default(), ..known });
    assert_eq!(decode(&bytes[..bytes.len() - 2]).ok(), Some(older));
    assert!(decode(&bytes[..bytes.len() - 1]).is_err(), "half of it is no older form");
}

async fn knock(place: &Place) -> Channel {
    Channel::new(UnixStream::connect(place.control()).await.expect("connects"))
}

async fn heard(channel: &Channel) -> Result<Message, ChannelError> {
    tokio::time::timeout(HUNG, channel.receive()).await.expect("something is said").map(|(message, _)| message)
}

/// Does what a successor does, up to the step of that number.
async fn takes_over_up_to(step: usize, channel: &Channel, place: &Place) {
    let say = |message| async move { channel.send(&message, &[]).await.expect("is sent") };
    if step == 0 {
        return;
    }
    say(Message::Hello(hello(place))).await;
    if step == 1 {
        return;
    }
    let said = heard(channel).await;
    assert!(matches!(said, Ok(Message::Prepare(ref drafts)) if drafts.len() == 1), "{said:?}");
    if step == 2 {
        return;
    }
    say(Message::Ready).await;
    if step == 3 {
        return;
    }
    let said = heard(channel).await;
    assert!(matches!(said, Ok(Message::Session(_))), "{said:?}");
    if step == 4 {
        return;
    }
    while matches!(heard(channel).await, Ok(Message::Connection(_))) {}
    if step == 5 {
        return;
    }
    say(Message::Prepared).await;
    if step == 6 {
        return;
    }
    let said = heard(channel).await;
    assert!(matches!(said, Ok(Message::Go)), "{said:?}");
}

#[tokio::test]
async fn a_successor_that_fails_at_any_step_changes_nothing() {
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    let mut server = place.begin(&exports).await;
    let mut client = place.unix().await;
    client.go("disk", false).await;
    let mut round = 0;
    for step in 0..=7 {
        for says_so in [false, true] {
            let channel = knock(&place).await;
            // Half a request: it must neither be lost nor be read twice.
            round += 1;
            let write = [request(CMD_WRITE, 0, round, 0, 512), vec![round as u8; 512]].concat();
            client.send(&write[..100]).await;
            takes_over_up_to(step, &channel, &place).await;
            if says_so {
                channel.send(&Message::Refused("as told".to_owned()), &[]).await.expect("is sent");
            }
            drop(channel);
            client.send(&write[100..]).await;
            assert_eq!(client.reply(0).await.cookie, round, "step {step}");
            place.unix().await.go("disk", true).await;
        }
    }
    server = place.renew(server, &exports).await;
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    server.shutdown().await;
}

/// A successor that stopped in the middle of the transfer, and lived, held up every client until somebody killed it: what was sent to it had no end
/// of time.
#[tokio::test]
async fn a_successor_that_does_not_take_what_it_is_sent_holds_up_nobody_for_long() {
    let mut place = Place::new();
    place.limits.pause_timeout = Duration::from_millis(200);
    let (_, exports) = memory(&["disk"]);
    let server = place.begin(&exports).await;
    let (mut client, mut large) = (place.unix().await, place.unix().await);
    client.go("disk", false).await;
    large.go("disk", false).await;
    // More than fits into the socket between the two.
    let write = [request(CMD_WRITE, 0, 1, 0, 16 << 20), vec![1; 16 << 20]].concat();
    large.send(&write[..write.len() - 1]).await;
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    let channel = knock(&place).await;
    takes_over_up_to(3, &channel, &place).await;
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0, "it is served again");
    large.send(&write[write.len() - 1..]).await;
    assert_eq!(large.reply(0).await.cookie, 1);
    drop(channel);
    server.shutdown().await;
}

/// A process that was stopped when it had said `Go` removed the files of the sockets that its successor went on with: nobody could connect any
/// more, and the next to take over found nobody and served the same disk beside it.
#[tokio::test]
async fn who_is_stopped_behind_go_leaves_the_files_to_its_successor() {
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    for serves in [true, false] {
        let server = place.begin(&exports).await;
        let mut client = place.unix().await;
        client.go("disk", false).await;
        assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0, "it is in use");
        let channel = knock(&place).await;
        takes_over_up_to(7, &channel, &place).await;
        let mut stopping = Box::pin(server.shutdown());
        assert!(futures_util::poll!(&mut stopping).is_pending(), "the other one may serve");
        assert!(place.socket().exists() && place.control().exists());
        if serves {
            channel.send(&Message::Serving, &[]).await.expect("is sent");
        }
        drop(channel);
        stopping.await;
        assert_eq!([place.socket().exists(), place.control().exists()], [serves; 2], "they are whose the clients are");
    }
}

/// Two that came to take over one after the other: the first passed on to the second what it had yet to be given itself, and both read from the
/// same clients.
#[tokio::test]
async fn who_has_yet_to_take_over_passes_nothing_on() {
    let place = Place::new();
    let (_, exports) = memory(&["disk"]);
    // What stands for the process that serves.
    let control = UnixListener::bind(place.control()).expect("listens");
    let socket = UnixListener::bind(place.socket()).expect("listens");
    let first = tokio::spawn({
        let (options, exports) = (place.options(), exports.clone());
        async move { Server::replace(options, exports).await }
    });
    let channel = Channel::new(control.accept().await.expect("comes").0);
    assert!(matches!(heard(&channel).await, Ok(Message::Hello(_))));
    channel.send(&Message::Prepare(Vec::new()), &[]).await.expect("is sent");
    assert!(matches!(heard(&channel).await, Ok(Message::Ready)));
    let told = message::Sockets { unix: true, tcp: false, sessions: 0, connections: 0, staying: 0 };
    channel.send(&Message::Sockets(told), &[control.as_fd(), socket.as_fd()]).await.expect("is sent");
    assert!(matches!(heard(&channel).await, Ok(Message::Prepared)));

    let second = knock(&place).await;
    let wanted = Hello { tcp: None, ..hello(&place) };
    second.send(&Message::Hello(wanted), &[]).await.expect("is sent");
    let told = tokio::time::timeout(Duration::from_millis(300), second.receive()).await;
    assert!(told.is_err(), "it is told nothing before the first one serves: {told:?}");
    channel.send(&Message::Go, &[]).await.expect("is sent");
    assert!(matches!(heard(&channel).await, Ok(Message::Serving)));
    let server = first.await.expect("joins").expect("takes over").expect("somebody listened");
    drop((control, socket, channel));
    let told = heard(&second).await;
    assert!(matches!(told, Ok(Message::Prepare(_))), "{told:?}");
    drop(second);
    place.unix().await.go("disk", false).await;
    server.shutdown().await;
}

#[tokio::test]
async fn who_does_not_fit_is_told_why_and_changes_nothing() {
    let certificates = Certificates::new();
    let mut place = Place::new();
    place.tls = Some(certificates.server(TlsMode::Required, false));
    let (_, exports) = memory(&["disk"]);
    let server = place.begin(&exports).await;
    let mut client = place.unix().await;
    client.go("disk", false).await;
    let port = |port| Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let known = hello(&place);
    for (hello, expected) in [
        (Hello { oldest: STATE_VERSION + 1, newest: STATE_VERSION + 3, ..known.clone() }, "states of version 2 to 4"),
        (Hello { oldest: 0, newest: 0, ..known.clone() }, "states of version 0 to 0"),
        (Hello { unix: None, ..known.clone() }, "use --socket with that"),
        (Hello { unix: Some(Path::new("/elsewhere").to_owned()), ..known.clone() }, "use --socket with that"),
        (Hello { tcp: None, ..known.clone() }, "use --listen with that"),
        (Hello { tcp: port(1), ..known.clone() }, "use --listen with that"),
        (Hello { tls: 1, ..known.clone() }, "stricter about TLS"),
    ] {
        let channel = knock(&place).await;
        channel.send(&Message::Hello(hello), &[]).await.expect("is sent");
        match heard(&channel).await {
            Ok(Message::Refused(why)) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    let channel = knock(&place).await;
    channel.send(&Message::Serving, &[]).await.expect("is sent");
    assert!(matches!(heard(&channel).await, Ok(Message::Refused(_))), "out of turn");
    // A frame of another version, which only the header tells.
    let mut stream = UnixStream::connect(place.control()).await.expect("connects");
    let mut bytes = Message::Ready.encode().expect("is small");
    bytes[4] = 9;
    stream.write_all(&bytes).await.expect("is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("is closed");
    assert_eq!(answer[6], 2, "refused");

    // Nor does who cannot take up what is used.
    let (_, others) = memory(&["another"]);
    let error = place.replace(&others).await.expect_err("has no such export");
    assert!(error.to_string().contains("no export"), "{error}");
    assert_eq!(client.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    let smaller: Arc<dyn ExportDirectory> =
        Arc::new(MemoryDirectory::new(vec![Arc::new(MemoryExport::with_info(ExportInfo {
            read_only: true,
            ..MemoryExport::new("disk", SIZE).info()
        }))]));
    let error = place.replace(&smaller).await.expect_err("its client may write");
    assert!(error.to_string().contains("exported otherwise"), "{error}");
    assert_eq!(client.call(CMD_WRITE, 0, 0, 512, &[1; 512]).await, 0);
    server.shutdown().await;
    let options = place.options();
    assert!(Server::replace(options, exports).await.expect("nobody is there").is_none());
}

#[tokio::test]
async fn connections_with_tls_stay_until_they_end() {
    let certificates = Certificates::new();
    let mut place = Place::new();
    place.tls = Some(certificates.server(TlsMode::Optional, false));
    let (disks, exports) = memory(&["disk"]);
    let old = place.begin(&exports).await;
    let mut plain = place.unix().await;
    plain.go("disk", false).await;
    let mut begun = tcp(&old).await;
    begun.greet().await;
    begun.send(&option(OPT_STARTTLS, &[])).await;
    assert_eq!(begun.option_reply().await.0, REP_ACK);
    let connect = || "localhost".try_into().expect("a name");
    let stream = certificates.connector().connect(connect(), begun.stream).await.expect("begins");
    let mut secret = Client::new(stream);
    secret.agree("disk", Style::Structured, &["base:allocation"]).await;

    let new = place.replace(&exports).await.expect("takes over");
    tokio::time::timeout(HUNG, old.replaced()).await.expect("gives way");
    assert_eq!(old.staying(), 1);
    assert_eq!(plain.call(CMD_WRITE, 0, 0, 512, &[1; 512]).await, 0);
    assert_eq!(secret.call(CMD_WRITE, 0, 512, 512, &[2; 512]).await, 0);
    assert_eq!(disks[0].contents(0, 1024), [[1; 512], [2; 512]].concat());
    // The newer one can be replaced meanwhile, and the older one waits for its last client.
    let new = place.renew(new, &exports).await;
    let mut drained = tokio::spawn(old.drained(std::future::pending()));
    assert_eq!(secret.call(CMD_FLUSH, 0, 0, 0, &[]).await, 0);
    assert!(futures_util::poll!(&mut drained).is_pending());
    drop(secret);
    tokio::time::timeout(HUNG, drained).await.expect("ends").expect("joins");
    assert_eq!(plain.call(CMD_READ, 0, 0, 512, &[]).await, 0);
    new.shutdown().await;
}

/// The other end of a successor's channel when the predecessor was lost, whose process has ended or has not.
async fn inherited(is_alive: bool) -> Result<(), Error> {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("starts");
    let process = Process::of(Some(Pid::from_child(&child)));
    assert!(matches!(process, Process::Known(_)), "it runs");
    if !is_alive {
        child.kill().expect("it runs");
    }
    let control = std::os::unix::net::UnixListener::bind(tempfile::tempdir().expect("a directory").path().join("c"));
    let inheritance = Inheritance {
        channel: Channel::new(ours),
        process,
        sockets: Sockets { tcp: None, unix: None },
        control: control.expect("listens"),
        connections: Vec::new(),
        staying: 0,
    };
    let lost = async {
        let channel = Channel::new(theirs);
        assert!(matches!(heard(&channel).await, Ok(Message::Prepared)));
    };
    let (confirmed, ()) = tokio::join!(inheritance.confirm(), lost);
    child.kill().expect("is there");
    child.wait().expect("is there");
    confirmed
}

#[tokio::test]
async fn a_predecessor_that_died_is_succeeded_and_one_that_fell_silent_is_not() {
    inherited(false).await.expect("nobody else can serve");
    let error = inherited(true).await.expect_err("the other one may serve");
    assert_eq!(error.kind(), ErrorKind::Busy);
}
