//! A raw NBD client for tests: sends exactly what it is told, and a server to talk to.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::sync::Arc;
use std::time::Duration;

use nbd_frontend::proto::constants::*;
use nbd_frontend::proto::request::RequestHeader;
use nbd_frontend::proto::style::Style;
use nbd_frontend::{ExportDirectory, Limits, Server, ServerOptions, TlsOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// A test that waits longer than this has hung; generous, as nothing is measured by it.
pub const HUNG: Duration = Duration::from_secs(60);

pub struct TestServer {
    pub server: Server,
    pub directory: tempfile::TempDir,
}

pub fn limits() -> Limits {
    Limits { drain_timeout: Duration::from_secs(5), ..Limits::default() }
}

impl TestServer {
    pub async fn start(exports: Arc<dyn ExportDirectory>, limits: Limits) -> TestServer {
        TestServer::start_with(exports, limits, None).await
    }

    pub async fn start_with(exports: Arc<dyn ExportDirectory>, limits: Limits, tls: Option<TlsOptions>) -> TestServer {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = ServerOptions {
            tcp: Some(([127, 0, 0, 1], 0).into()),
            unix: Some(directory.path().join("nbd.sock")),
            tls,
            limits,
            ..ServerOptions::default()
        };
        let server = Server::bind(options, exports).await.expect("listens");
        TestServer { server, directory }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("nbd.sock")
    }

    pub fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.server.tcp_address().expect("TCP is on"))
    }

    pub async fn unix(&self) -> Client<UnixStream> {
        Client::new(UnixStream::connect(self.socket()).await.expect("connects"))
    }

    pub async fn tcp(&self) -> Client<TcpStream> {
        let address = self.server.tcp_address().expect("TCP is on");
        Client::new(TcpStream::connect(address).await.expect("connects"))
    }
}

pub struct Client<S> {
    pub stream: S,
    /// What the handshake agreed on.
    pub style: Style,
}

/// A reply: of structured ones, all chunks up to the last as (type, payload).
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub chunks: Vec<(u16, Vec<u8>)>,
}

/// A compact request.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    header(Style::Simple, command, flags, cookie, offset, u64::from(length))
}

/// An extended request.
pub fn extended(command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    header(Style::Extended, command, flags, cookie, offset, length)
}

fn header(style: Style, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    RequestHeader { flags, command, cookie, offset, length }.encode(style, &mut bytes);
    bytes
}

/// A string of the handshake, with its length before it.
pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Client<S> {
        Client { stream, style: Style::Simple }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server reads");
    }

    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        tokio::time::timeout(HUNG, self.stream.read_exact(&mut bytes))
            .await
            .expect("the server answers")
            .expect("the server stays");
        bytes
    }

    async fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).await.try_into().expect("four bytes"))
    }

    /// Whether the server closes without another byte.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let read = tokio::time::timeout(HUNG, self.stream.read(&mut byte));
        !matches!(read.await.expect("the server closes"), Ok(1..))
    }

    /// Reads the greeting, sends the flags.
    pub async fn greet(&mut self) {
        assert_eq!(self.bytes(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes()).await;
    }

    /// The next option reply as (type, data).
    pub async fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let head = self.bytes(20).await;
        assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let data = self.bytes(word(16) as usize).await;
        (word(12), data)
    }

    /// The whole handshake; with `structured` also `base:allocation`.
    pub async fn go(&mut self, name: &str, structured: bool) {
        let (style, contexts) =
            if structured { (Style::Structured, &["base:allocation"][..]) } else { (Style::Simple, &[][..]) };
        self.go_with(name, style, contexts).await;
    }

    /// The whole handshake, with the contexts that the server must have; returns their numbers.
    pub async fn go_with(&mut self, name: &str, style: Style, contexts: &[&str]) -> Vec<u32> {
        self.greet().await;
        self.agree(name, style, contexts).await
    }

    /// The handshake after the greeting.
    pub async fn agree(&mut self, name: &str, style: Style, contexts: &[&str]) -> Vec<u32> {
        let export = string(name);
        self.style = style;
        match style {
            Style::Simple => {}
            Style::Structured => self.send(&option(OPT_STRUCTURED_REPLY, &[])).await,
            Style::Extended => self.send(&option(OPT_EXTENDED_HEADERS, &[])).await,
        }
        if style != Style::Simple {
            assert_eq!(self.option_reply().await.0, REP_ACK);
        }
        let mut numbers = Vec::new();
        if !contexts.is_empty() {
            let queries = contexts.iter().flat_map(|context| string(context)).collect();
            let data = [export.clone(), (contexts.len() as u32).to_be_bytes().to_vec(), queries].concat();
            self.send(&option(OPT_SET_META_CONTEXT, &data)).await;
            for context in contexts {
                let (kind, data) = self.option_reply().await;
                assert_eq!((kind, &data[4..]), (REP_META_CONTEXT, context.as_bytes()));
                numbers.push(u32::from_be_bytes(data[..4].try_into().expect("four bytes")));
            }
            assert_eq!(self.option_reply().await.0, REP_ACK);
        }
        self.send(&option(OPT_GO, &[&export[..], &[0, 0]].concat())).await;
        loop {
            match self.option_reply().await.0 {
                REP_ACK => return numbers,
                REP_INFO => {}
                other => panic!("GO was answered with {other:#x}"),
            }
        }
    }

    /// The next reply; `data` is what a successful simple reply carries.
    pub async fn reply(&mut self, data: usize) -> Reply {
        let magic = self.word().await;
        if magic == SIMPLE_REPLY_MAGIC {
            assert_ne!(self.style, Style::Extended, "with extended headers there is no simple reply");
            let error = self.word().await;
            let cookie = u64::from_be_bytes(self.bytes(8).await.try_into().expect("eight bytes"));
            let data = if error == 0 { self.bytes(data).await } else { vec![] };
            let chunks = if data.is_empty() { vec![] } else { vec![(0, data)] };
            return Reply { cookie, error, chunks };
        }
        let (mut magic, mut error, mut chunks) = (magic, 0, Vec::new());
        loop {
            let is_extended = self.style == Style::Extended;
            assert_eq!(magic, if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
            let head = self.bytes(if is_extended { 28 } else { 16 }).await;
            let flags = u16::from_be_bytes([head[0], head[1]]);
            let kind = u16::from_be_bytes([head[2], head[3]]);
            let cookie = u64::from_be_bytes(head[4..12].try_into().expect("eight bytes"));
            let length = match is_extended {
                true => u64::from_be_bytes(head[20..28].try_into().expect("eight bytes")),
                false => u64::from(u32::from_be_bytes(head[12..16].try_into().expect("four bytes"))),
            };
            let payload = self.bytes(length as usize).await;
            if kind == REPLY_TYPE_ERROR {
                error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
            }
            chunks.push((kind, payload));
            if flags & REPLY_FLAG_DONE != 0 {
                return Reply { cookie, error, chunks };
            }
            magic = self.word().await;
        }
    }

    /// What each context says of a range: its number, and lengths and flags in turn, which must fit 32 bits.
    pub async fn status(&mut self, offset: u64, length: u64) -> Vec<(u32, Vec<u32>)> {
        self.send(&header(self.style, CMD_BLOCK_STATUS, 0, 7, offset, length)).await;
        let reply = self.reply(0).await;
        assert_eq!((reply.cookie, reply.error), (7, 0));
        let is_extended = self.style == Style::Extended;
        let kind = if is_extended { REPLY_TYPE_BLOCK_STATUS_EXT } else { REPLY_TYPE_BLOCK_STATUS };
        let context = |(told, chunk): &(u16, Vec<u8>)| {
            assert_eq!(*told, kind);
            let words = |bytes: &[u8]| -> Vec<u32> {
                bytes.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().expect("four bytes"))).collect()
            };
            let words = words(chunk);
            if !is_extended {
                return (words[0], words[1..].to_vec());
            }
            let states: Vec<u32> = words[2..].chunks_exact(2).map(|pair| pair[1]).collect();
            assert_eq!(words[1] as usize, states.len() / 2, "the number of extents");
            (words[0], states)
        };
        reply.chunks.iter().map(context).collect()
    }

    /// Sends a request and returns the error of its reply.
    pub async fn call(&mut self, command: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> u32 {
        let bytes = [&header(self.style, command, flags, 7, offset, length)[..], payload].concat();
        self.send(&bytes).await;
        let data = if command == CMD_READ { length as usize } else { 0 };
        let reply = self.reply(data).await;
        assert_eq!(reply.cookie, 7);
        reply.error
    }
}
