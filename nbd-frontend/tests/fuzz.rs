//! Mutated bytes for every decoder, of the server and of the client, from a corpus of good ones.
//!
//! Runs in stable Rust and is the same for the same seed. `HELIO_FUZZ` says how many inputs each target gets (`endless` for ever, with
//! a line now and then), `HELIO_FUZZ_SEED` where to begin. An input that fails is written to a file: put it into `tests/corpus/TARGET`, where
//! every run begins with it. `HELIO_GOLDEN=write` writes the good inputs anew, when the encoders have changed.
//!
//! What is checked besides that nothing panics: that an outcome does not depend on how bytes were cut, that what is accepted
//! keeps the promises of `validate`, that answers are no larger than what was asked for, and that a whole server goes on serving others.

#[path = "support/client.rs"]
mod common;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use client_lib::client::Position;
use client_lib::types::{Epoch, Lsn, SnapshotId, VolumeId};
use client_lib::wire::client::Tenure;
use client_lib::{Error, ErrorKind, ReadPart};
use common::{HUNG, TestServer, limits, option, string};
use nbd_frontend::client::{Client, ClientOptions, NbdUri};
use nbd_frontend::contexts::{Context, Contexts};
use nbd_frontend::negotiation::{Answer, Encryption, Negotiated, Negotiation, OPTIONS_MAX, Question, Step};
use nbd_frontend::passing::message::{
    ConnectionStage, ConnectionState, Discard, Family, HEADER_LEN, HandshakePhase, HandshakeState, Header, Hello,
    Holder, Message, STATE_VERSION, Sockets,
};
use nbd_frontend::proto::constants::*;
use nbd_frontend::proto::peer::{self, Info, OPTION_REPLY_HEADER_LEN, OptionReplyHeader, ReplyHeader};
use nbd_frontend::proto::reply::{self, ReplyTo};
use nbd_frontend::proto::request::RequestHeader;
use nbd_frontend::proto::style::Style;
use nbd_frontend::proto::{Malformed, handshake};
use nbd_frontend::remote::RemoteState;
use nbd_frontend::validate::{Constraints, Request, validate, validate_filter};
use nbd_frontend::{ExportInfo, MemoryDirectory, MemoryExport, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const SIZE: u64 = 1 << 30;
/// Inputs of each pure target by default, and how many of them go to whole servers and clients.
const INPUTS: u64 = 20_000;
const WHOLE_ONE_IN: u64 = 100;
/// The longest input, in bytes.
const INPUT_LEN_MAX: usize = 16 << 10;

/// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): a fixed seed replays.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// One of `corpus`, changed in up to eight ways.
fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    const NUMBERS: [u64; 12] =
        [0, 1, 7, 8, 511, 512, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX - 511, u64::MAX];
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        match random.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + random.below(200)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 => bytes.extend_from_slice(&corpus[random.below(corpus.len())]),
            7 => {
                let junk: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, junk);
            }
            // A number in the place of a field of any width.
            _ => {
                let (number, width) = (NUMBERS[random.below(NUMBERS.len())], 1 << random.below(4));
                for (slot, byte) in bytes.iter_mut().skip(at).zip(&number.to_be_bytes()[8 - width..]) {
                    *slot = *byte;
                }
            }
        }
    }
    bytes.truncate(INPUT_LEN_MAX);
    bytes
}

fn directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target)
}

/// The inputs that are kept; with `HELIO_GOLDEN=write` the good ones are written first.
fn corpus(target: &str, good: &[(&str, Vec<u8>)]) -> Vec<Vec<u8>> {
    let directory = directory(target);
    if std::env::var("HELIO_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(&directory).expect("is made");
        for (name, bytes) in good {
            std::fs::write(directory.join(name), bytes).expect("is written");
        }
    }
    for (name, bytes) in good {
        let kept = std::fs::read(directory.join(name)).unwrap_or_default();
        assert!(
            &kept == bytes,
            "{target}/{name} is not what the encoders make: run with HELIO_GOLDEN=write, and look why"
        );
    }
    let mut paths: Vec<_> =
        std::fs::read_dir(&directory).expect("is there").map(|entry| entry.expect("can be listed").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("can be read")).collect()
}

/// Gives `run` the corpus and then mutations of it.
fn fuzz(target: &str, good: &[(&str, Vec<u8>)], one_in: u64, mut run: impl FnMut(&[u8])) {
    let corpus = corpus(target, good);
    let (count, is_endless) = match std::env::var("HELIO_FUZZ").as_deref() {
        Ok("endless") => (u64::MAX, true),
        Ok(count) => (count.parse::<u64>().expect("HELIO_FUZZ is a number, or endless").div_ceil(one_in), false),
        Err(_) => (INPUTS.div_ceil(one_in), false),
    };
    let seed = std::env::var("HELIO_FUZZ_SEED").map_or(1, |seed| seed.parse().expect("HELIO_FUZZ_SEED is a number"));
    let mut random = Random(seed);
    let mut inputs = corpus.iter().cloned();
    for number in 0..count {
        let input = inputs.next().unwrap_or_else(|| mutated(&mut random, &corpus));
        if std::panic::catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
            let path = std::env::temp_dir().join(format!("helio-fuzz-{target}-{seed}-{number}"));
            std::fs::write(&path, &input).expect("is written");
            panic!(
                "input {number} of {target} from seed {seed} fails; it is in {}: keep it in {}",
                path.display(),
                directory(target).display()
            );
        }
        if is_endless && (number + 1) % (10_000_000 / one_in) == 0 {
            println!("{target}: {} executions from seed {seed}", number + 1);
        }
    }
    println!("{target}: {count} executions from seed {seed}");
}

// --- The server's handshake.

fn flags() -> Vec<u8> {
    (FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes().to_vec()
}

fn contexts_of(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries: Vec<Vec<u8>> = queries.iter().map(|query| string(query)).collect();
    [string(name), (queries.len() as u32).to_be_bytes().to_vec(), queries.concat()].concat()
}

fn handshakes() -> Vec<(&'static str, Vec<u8>)> {
    let go = [string("disk"), vec![0, 2, 0, 1, 0, 2]].concat();
    let talk = |options: &[Vec<u8>]| [flags(), options.concat()].concat();
    vec![
        ("list", talk(&[option(OPT_LIST, &[]), option(OPT_ABORT, &[])])),
        ("info", talk(&[option(OPT_INFO, &go), option(OPT_GO, &go)])),
        ("export-name", talk(&[option(OPT_EXPORT_NAME, b"disk")])),
        ("tls", talk(&[option(OPT_STARTTLS, &[])])),
        (
            "structured",
            talk(&[
                option(OPT_STRUCTURED_REPLY, &[]),
                option(OPT_LIST_META_CONTEXT, &contexts_of("disk", &["base:", "helio:"])),
                option(OPT_SET_META_CONTEXT, &contexts_of("disk", &["base:allocation", "helio:residency"])),
                option(OPT_GO, &go),
            ]),
        ),
        ("extended", talk(&[option(OPT_EXTENDED_HEADERS, &[]), option(77, b"unknown"), option(OPT_GO, &go)])),
    ]
}

fn info(name: &str) -> ExportInfo {
    MemoryExport::new(name, SIZE).info()
}

/// Feeds `input` in pieces of at most `piece` bytes; what was said, and how it ended.
fn negotiated(input: &[u8], encryption: Encryption, piece: usize) -> (Vec<u8>, String, usize) {
    let (mut negotiation, mut buffer, mut said) = (Negotiation::new(encryption), BytesMut::new(), Vec::new());
    let mut rest = input;
    loop {
        let step = negotiation.advance(&mut buffer);
        said.extend(negotiation.take_output());
        match step {
            Step::Read if rest.is_empty() => return (said, "waits".to_owned(), buffer.len()),
            Step::Read => {
                let (next, later) = rest.split_at(piece.min(rest.len()));
                buffer.extend_from_slice(next);
                rest = later;
            }
            Step::Ask(Question::List) => negotiation.answer(Answer::List(Ok(vec![info("disk"), info("other")]))),
            Step::Ask(Question::Info(name) | Question::Open(name)) if name == "disk" => {
                negotiation.answer(Answer::Export(Ok(info("disk"))));
            }
            Step::Send => {}
            Step::Ask(_) => negotiation.answer(Answer::Export(Err(Error::new(ErrorKind::NotFound, "no such export")))),
            // What comes behind is encrypted, and depends on how much was read: bytes in the clear close.
            Step::StartTls => {
                assert!(buffer.is_empty(), "TLS begins with bytes in the clear");
                return (said, "tls".to_owned(), 0);
            }
            Step::Close(why) => return (said, why.to_owned(), 0),
            Step::Transmit(agreed) => return (said, format!("{agreed:?}"), buffer.len() + rest.len()),
        }
    }
}

/// The options that were answered, each with as many replies as it had; what is not a reply ends them.
fn replies(said: &[u8]) -> usize {
    let mut rest = said.get(18..).expect("the greeting");
    let mut count = 0;
    while let Some((head, data)) = rest.split_first_chunk::<OPTION_REPLY_HEADER_LEN>()
        && let Ok(head) = OptionReplyHeader::decode(head)
    {
        let length = head.length as usize;
        let data = &data[..length];
        match head.kind {
            REP_INFO => drop(Info::decode(data).expect("our own client understands it")),
            REP_META_CONTEXT => drop(peer::meta_context(data).expect("our own client understands it")),
            _ => {}
        }
        rest = &rest[OPTION_REPLY_HEADER_LEN + length..];
        count += 1;
    }
    // The answer to EXPORT_NAME has no head.
    assert!([0, 10, 134].contains(&rest.len()), "{} bytes that are no reply", rest.len());
    count
}

#[test]
fn handshakes_of_any_bytes_are_answered_the_same_however_they_are_cut() {
    fuzz("handshake", &handshakes(), 1, |input| {
        for encryption in [Encryption::Off, Encryption::Offered, Encryption::Demanded] {
            let whole = negotiated(input, encryption, usize::MAX);
            // At most the list of two, or four details, for each option.
            assert!(replies(&whole.0) <= 5 * OPTIONS_MAX as usize);
            let piece = 1 + input.len() % 13;
            let cut = negotiated(input, encryption, piece);
            // Only behind STARTTLS does it matter what was read already.
            if whole.1 == cut.1 || encryption == Encryption::Off {
                assert_eq!(whole, cut);
            } else {
                assert!(cut.1 == "tls" && whole.1.contains("STARTTLS"), "{} or {}", whole.1, cut.1);
            }
        }
    });
}

// --- The server's requests.

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let header = |style, command, flags, offset, length| {
        let mut bytes = vec![STYLES.iter().position(|it| *it == style).expect("is one") as u8];
        RequestHeader { flags, command, cookie: 7, offset, length }.encode(style, &mut bytes);
        bytes
    };
    let filter = [&4096u64.to_be_bytes()[..], &[0, 0, 0, 2, 0, 0, 0, 1]].concat();
    let filtered = header(Style::Extended, CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, 512, filter.len() as u64);
    vec![
        ("read", header(Style::Simple, CMD_READ, 0, 4096, 4096)),
        ("write", [header(Style::Structured, CMD_WRITE, CMD_FLAG_FUA, 0, 512), vec![1; 512]].concat()),
        ("zero", header(Style::Structured, CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 0, 1 << 20)),
        ("status", header(Style::Structured, CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 1 << 20)),
        ("trim", header(Style::Extended, CMD_TRIM, 0, 0, SIZE)),
        ("cache", header(Style::Extended, CMD_CACHE, 0, 512, 512)),
        ("payload", [header(Style::Extended, CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, 0, 512), vec![1; 512]].concat()),
        ("filter", [filtered, filter].concat()),
        ("flush", header(Style::Extended, CMD_FLUSH, 0, 0, 0)),
        ("disconnect", header(Style::Simple, CMD_DISC, 0, 0, 0)),
    ]
}

fn keeps_promises(request: &Request, constraints: &Constraints) {
    let (offset, length, is_short) = match *request {
        Request::Read { offset, length, .. } | Request::Write { offset, length, .. } => {
            (offset, u64::from(length), true)
        }
        Request::Trim { offset, length, .. }
        | Request::WriteZeroes { offset, length, .. }
        | Request::Cache { offset, length } => (offset, length, false),
        Request::BlockStatus { offset, length, contexts, .. } => {
            assert!(!contexts.is_empty());
            (offset, length, false)
        }
        Request::FilteredStatus { payload } => return assert!(payload <= 8 + 4 * Context::ALL.len()),
        Request::Flush | Request::Nothing | Request::Disconnect => return,
    };
    assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= constraints.size));
    assert!(offset % 512 == 0 && length % 512 == 0);
    assert!(!is_short || length <= u64::from(constraints.payload_max));
}

#[test]
fn requests_of_any_bytes_are_refused_or_keep_their_promises() {
    fuzz("requests", &requests(), 1, |input| {
        let Some((first, mut rest)) = input.split_first() else { return };
        let style = STYLES[usize::from(*first) % STYLES.len()];
        let read_only = first & 0x10 != 0;
        let constraints =
            Constraints { style, contexts: Contexts::of(&Context::ALL), read_only, ..Constraints::of(&info("disk")) };
        while let Ok(Some(header)) = RequestHeader::decode(rest, style) {
            rest = &rest[style.request_header_len()..];
            let payload = usize::try_from(header.payload_len(style)).unwrap_or(usize::MAX).min(rest.len());
            let judged = match validate(&header, &constraints) {
                Ok(request @ Request::FilteredStatus { .. }) => {
                    keeps_promises(&request, &constraints);
                    validate_filter(&header, &rest[..payload], &constraints)
                }
                judged => judged,
            };
            match judged {
                Ok(request) => {
                    keeps_promises(&request, &constraints);
                    let writes =
                        matches!(request, Request::Write { .. } | Request::Trim { .. } | Request::WriteZeroes { .. });
                    assert!(!writes || !read_only, "{request:?} of what is read-only");
                }
                Err(refusal) => assert!(refusal.errno != 0 && !refusal.reason.is_empty()),
            }
            rest = &rest[payload..];
        }
    });
}

#[test]
fn a_whole_server_survives_and_serves_others() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let export = Arc::new(MemoryExport::new("disk", SIZE));
    let server = runtime.block_on(TestServer::start(Arc::new(MemoryDirectory::new(vec![export])), limits()));
    let mut bystander = runtime.block_on(async {
        let mut client = server.unix().await;
        client.go("disk", true).await;
        client
    });
    let all: Vec<(&str, Vec<u8>)> = requests();
    fuzz("requests", &all, WHOLE_ONE_IN, |input| {
        let Some((first, rest)) = input.split_first() else { return };
        runtime.block_on(async {
            let mut hostile = server.unix().await;
            if *first < 200 {
                let style = STYLES[usize::from(*first) % STYLES.len()];
                let contexts = if style == Style::Simple { &[][..] } else { &["base:allocation", "helio:residency"] };
                hostile.go_with("disk", style, contexts).await;
            }
            // The server may have had enough before the end; then writing fails.
            let _ = hostile.stream.write_all(rest).await;
            let _ = hostile.stream.shutdown().await;
            let mut answers = Vec::new();
            let read = tokio::time::timeout(HUNG, hostile.stream.read_to_end(&mut answers)).await;
            assert!(read.is_ok(), "the server neither answered nor closed");
            assert_eq!(bystander.call(CMD_READ, 0, 0, 512, &[]).await, 0, "a bystander is served");
        });
    });
}

// --- The client.

fn answers() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, style) in [("simple", Style::Simple), ("structured", Style::Structured), ("extended", Style::Extended)] {
        let mut out = handshake::greeting().to_vec();
        for (option, agreed) in [(OPT_EXTENDED_HEADERS, Style::Extended), (OPT_STRUCTURED_REPLY, Style::Structured)] {
            let kind = if style == agreed { REP_ACK } else { REP_ERR_UNSUP };
            handshake::option_reply(&mut out, option, kind, &[]);
            if style == agreed {
                break;
            }
        }
        if style != Style::Simple {
            handshake::rep_meta_context(&mut out, OPT_SET_META_CONTEXT, 1, "base:allocation");
            handshake::option_reply(&mut out, OPT_SET_META_CONTEXT, REP_ACK, &[]);
        }
        handshake::info_export(&mut out, OPT_GO, SIZE, FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_CAN_MULTI_CONN);
        handshake::info_block_size(&mut out, OPT_GO, 512, 4096, 32 << 20);
        handshake::info_name(&mut out, OPT_GO, "disk");
        handshake::option_reply(&mut out, OPT_GO, REP_ACK, &[]);
        // What the client asks: a read of 1024 bytes, then block status.
        let to = |cookie, offset| ReplyTo { style, cookie, offset };
        if style == Style::Simple {
            reply::simple(&mut out, 1, 0);
            out.extend([7; 1024]);
        } else {
            reply::offset_hole(&mut out, to(1, 0), false, 512, 512);
            reply::offset_data(&mut out, to(1, 0), true, 0, 512);
            out.extend([7; 512]);
            reply::block_status(&mut out, to(2, 0), true, 1, &[(4096, 3), (1 << 20, 0)]);
            reply::error(&mut out, to(3, 0), EIO, "as told");
            reply::none(&mut out, to(4, 0));
        }
        all.push((name, out));
    }
    all
}

#[test]
fn replies_of_any_bytes_are_understood_or_refused() {
    fuzz("answers", &answers(), 1, |input| {
        if let Some(greeting) = input.first_chunk() {
            let _ = peer::greeting_flags(greeting);
        }
        // Every message may begin anywhere: mutations move them.
        for start in (0..input.len()).step_by(1 + input.len() / 64) {
            let bytes = &input[start..];
            if let Some(head) = bytes.first_chunk() {
                let _ = OptionReplyHeader::decode(head);
            }
            let _ = Info::decode(bytes);
            let _ = peer::meta_context(bytes);
            let _ = peer::data_offset(bytes);
            let _ = peer::hole(bytes);
            let _: Result<_, Malformed> = peer::error(bytes);
            for style in STYLES {
                let (shortest, longest) = style.reply_header_lens();
                let header = ReplyHeader::decode(bytes, style);
                assert!(bytes.len() < longest || header != Ok(None), "a whole header asks for more");
                assert!(bytes.len() >= shortest || header == Ok(None));
                if let Ok((_, extents)) = peer::extents(bytes, style) {
                    assert!(extents.len() <= bytes.len() / 8, "more extents than bytes");
                }
            }
        }
    });
}

#[test]
fn a_whole_client_survives_any_server() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&path).expect("listens") });
    let uri: NbdUri = format!("nbd+unix:///disk?socket={}", path.display()).parse().expect("an address");
    fuzz("answers", &answers(), WHOLE_ONE_IN, |input| {
        runtime.block_on(async {
            // Says everything at once and closes its end, whatever it is asked.
            let serve = async {
                let (mut stream, _) = listener.accept().await.expect("is connected to");
                let _ = stream.write_all(input).await;
                let _ = stream.shutdown().await;
                let mut asked = Vec::new();
                let _ = stream.read_to_end(&mut asked).await;
            };
            let ask = async {
                if let Ok(client) = Client::connect(&uri, ClientOptions::default()).await {
                    if let Ok(parts) = client.read(0, 1024).await {
                        assert_eq!(parts.iter().map(ReadPart::length).sum::<u64>(), 1024);
                    }
                    if let Ok(extents) = client.allocation(0, 1 << 20).await {
                        assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= 1 << 20);
                    }
                    let _ = client.flush().await;
                    client.close().await;
                }
            };
            let both = async { tokio::join!(serve, ask) };
            tokio::time::timeout(HUNG, both).await.expect("the client neither answers nor gives up");
        });
    });
}

// --- What a server passes on to its successor.

/// A volume whose use was passed on, as bytes.
fn volume(is_over: bool) -> Vec<u8> {
    let tenure = Tenure { epoch: Epoch(7), incarnation: 3 };
    let position = Position {
        volume: VolumeId(12),
        snapshot: is_over.then_some(SnapshotId(4)),
        name: "disk".to_owned(),
        right: Epoch(6),
        tenure: (!is_over).then_some(tenure),
        settled: Lsn::new(Epoch(7), 1 << 40),
        failure: is_over.then(|| (ErrorKind::Fenced, "check the file system".to_owned())),
    };
    RemoteState { way: "cluster blue".to_owned(), is_read_only: is_over, position }.encode()
}

fn connection(family: Family, stage: ConnectionStage, unsent: &[u8], input: &[u8]) -> Message {
    let (peer, unsent, input) = ("unix:pid=7".to_owned(), unsent.to_vec(), input.to_vec());
    Message::Connection(Box::new(ConnectionState { family, peer, stage, unsent, input }))
}

/// One of each, in the present version: these bytes are what two versions of the program agree on.
fn passed_on() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        oldest: STATE_VERSION,
        newest: STATE_VERSION + 1,
        program: "0.1.0".to_owned(),
        unix: Some("/run/helio/nbd.sock".into()),
        tcp: Some(([127, 0, 0, 1], 10809).into()),
        tls: 2,
        passed: Holder { unix: true, tcp: false },
    };
    let handshake = |phase| HandshakeState {
        phase,
        fixed: true,
        no_zeroes: true,
        style: Style::Extended,
        selected: Some(("disk".to_owned(), Contexts::of(&Context::ALL))),
        options: 3,
    };
    let skip = HandshakePhase::Skip { option: OPT_INFO, remaining: 100_000 };
    let header = RequestHeader { flags: 0, command: CMD_WRITE, cookie: 77, offset: SIZE, length: 65536 };
    let transmission = |style, discard| ConnectionStage::Transmission {
        session: 1,
        negotiated: Negotiated { info: info("disk"), style, contexts: Contexts::of(&[Context::Allocation]) },
        discard,
    };
    let discard = Discard { header, remaining: 60_000, errno: ENOSPC };
    let sockets = Sockets { unix: true, tcp: true, sessions: 2, connections: 3, staying: 1 };
    let messages = [
        ("hello", Message::Hello(hello)),
        ("refused", Message::Refused("it is being stopped".to_owned())),
        ("prepare", Message::Prepare(vec![volume(false), volume(true)])),
        ("ready", Message::Ready),
        ("session", Message::Session(volume(false))),
        ("session-over", Message::Session(volume(true))),
        (
            "handshake",
            connection(Family::Unix, ConnectionStage::Handshake(handshake(HandshakePhase::Option)), b"ack", b"IHAVE"),
        ),
        ("handshake-skip", connection(Family::Tcp, ConnectionStage::Handshake(handshake(skip)), &[], &[])),
        ("transmission", connection(Family::Tcp, transmission(Style::Simple, None), &[9; 100], &[8; 30])),
        ("discard", connection(Family::Unix, transmission(Style::Extended, Some(discard)), &[], &[])),
        ("sockets", Message::Sockets(sockets)),
        ("prepared", Message::Prepared),
        ("go", Message::Go),
        ("serving", Message::Serving),
    ];
    messages.into_iter().map(|(name, message)| (name, message.encode().expect("is small"))).collect()
}

#[test]
fn what_is_passed_on_is_understood_or_refused() {
    let decode = |bytes: &[u8]| {
        let (head, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let header = Header::decode(head).ok()?;
        Message::decode(header, body.get(..header.body_len())?).ok()
    };
    fuzz("passing", &passed_on(), 1, |input| {
        let _ = RemoteState::decode(input);
        let Some(message) = decode(input) else { return };
        let again = message.encode().expect("it was no larger");
        assert!(decode(&again).as_ref() == Some(&message), "it means the same: {message:?}");
        if let Message::Session(state) = &message
            && let Ok(state) = RemoteState::decode(state)
        {
            assert_eq!(RemoteState::decode(&state.encode()).ok(), Some(state));
        }
        let Message::Connection(connection) = message else { return };
        match connection.stage {
            ConnectionStage::Handshake(state) => {
                let mut negotiation = Negotiation::resumed(state.clone(), Encryption::Off);
                assert!(negotiation.take_output().is_empty());
                assert_eq!(negotiation.state(), Some(state));
                let _ = negotiation.advance(&mut BytesMut::from(&connection.input[..]));
            }
            ConnectionStage::Transmission { negotiated, discard, .. } => {
                assert!(negotiated.info.block_size_min.is_power_of_two());
                assert!(
                    discard.is_none_or(|discard| discard.remaining <= discard.header.payload_len(negotiated.style))
                );
            }
        }
    });
}
