//! Transcripts of handshakes: what the client sends, what the server answers.

use proptest::prelude::*;

use super::*;
use crate::contexts::Context;
use crate::memory::MemoryExport;
use crate::proto::constants::*;

fn info(name: &str) -> ExportInfo {
    use crate::export::Session;
    MemoryExport::new(name, 1 << 20).info()
}

/// A client and a directory with the export `disk`.
struct Talk {
    negotiation: Negotiation,
    input: BytesMut,
}

/// An option reply as (option, type, data).
type Reply = (u32, u32, Vec<u8>);

impl Talk {
    fn new(client_flags: u32) -> Talk {
        Talk::with(client_flags, Encryption::Off)
    }

    fn with(client_flags: u32, encryption: Encryption) -> Talk {
        let mut talk = Talk { negotiation: Negotiation::new(encryption), input: BytesMut::new() };
        assert_eq!(talk.negotiation.take_output(), b"NBDMAGICIHAVEOPT\0\x03", "greeting");
        talk.input.extend_from_slice(&client_flags.to_be_bytes());
        talk
    }

    fn fixed() -> Talk {
        Talk::new(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES)
    }

    fn step(&mut self) -> Step {
        loop {
            match self.negotiation.advance(&mut self.input) {
                Step::Ask(Question::List) => {
                    self.negotiation.answer(Answer::List(Ok(vec![info("disk"), info("other")])))
                }
                Step::Ask(Question::Info(name) | Question::Open(name)) => {
                    let export = match name.as_str() {
                        "disk" | "other" => Ok(info(&name)),
                        "" => Ok(info("disk")),
                        "busy" => Err(Error::new(ErrorKind::Busy, "not now")),
                        _ => Err(Error::new(ErrorKind::NotFound, "no such export")),
                    };
                    self.negotiation.answer(Answer::Export(export));
                }
                step => return step,
            }
        }
    }

    fn send(&mut self, option: u32, data: &[u8]) {
        self.input.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        self.input.extend_from_slice(&option.to_be_bytes());
        self.input.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.input.extend_from_slice(data);
    }

    fn replies(&mut self) -> Vec<Reply> {
        let output = self.negotiation.take_output();
        let mut rest = output.as_slice();
        let mut replies = Vec::new();
        while !rest.is_empty() {
            assert_eq!(rest[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            let end = 20 + word(16) as usize;
            replies.push((word(8), word(12), rest[20..end].to_vec()));
            rest = &rest[end..];
        }
        replies
    }

    /// Sends an option and returns the replies, of which there must be some.
    fn ask(&mut self, option: u32, data: &[u8]) -> Vec<Reply> {
        self.send(option, data);
        assert!(matches!(self.step(), Step::Read));
        self.replies()
    }

    /// Sends an option and returns the type of the only reply.
    fn ask_one(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.ask(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert_eq!(replies[0].0, option);
        replies[0].1
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn go(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((requests.len() as u16).to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// The answers to all options that had come were gathered before the first was sent: up to 256 lists of all exports, for 4 KiB of a client that
/// reads nothing.
#[test]
fn what_many_options_are_answered_with_is_sent_before_more_of_them_are_taken() {
    const LISTS: usize = 40;
    let mut talk = Talk::fixed();
    (0..LISTS).for_each(|_| talk.send(OPT_LIST, &[]));
    let exports: Vec<_> = (0..1000).map(|number| info(&format!("export-{number}"))).collect();
    let mut told = [0; LISTS];
    let mut answered = 0;
    loop {
        match talk.negotiation.advance(&mut talk.input) {
            Step::Ask(Question::List) => talk.negotiation.answer(Answer::List(Ok(exports.clone()))),
            Step::Send => {
                let replies = talk.replies();
                let acked = replies.iter().filter(|(_, kind, _)| *kind == REP_ACK).count();
                assert!((1..=2).contains(&acked), "one list is more than half of what is gathered: {acked}");
                told[answered..answered + acked].fill(replies.len() / acked);
                answered += acked;
            }
            step => {
                assert!(matches!(step, Step::Read));
                answered += talk.replies().iter().filter(|(_, kind, _)| *kind == REP_ACK).count();
                break;
            }
        }
    }
    assert_eq!(answered, LISTS);
    assert!(told[..LISTS - 2].iter().all(|replies| *replies == exports.len() + 1), "{told:?}");
}

#[test]
fn go_tells_the_export_and_transmits() {
    let mut talk = Talk::fixed();
    assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
    talk.send(OPT_GO, &go("disk", &[INFO_NAME, INFO_DESCRIPTION, 77]));
    talk.input.extend_from_slice(b"pipelined");
    let Step::Transmit(negotiated) = talk.step() else { panic!("no transmission") };
    assert_eq!((negotiated.style, negotiated.contexts), (Style::Structured, Contexts::default()));
    assert_eq!(&talk.input[..], b"pipelined", "bytes after the option are the transmission's");
    let replies = talk.replies();
    let flags = transmission_flags(&info("disk"), Style::Structured, Contexts::default());
    let mut export = vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0];
    export.extend(flags.to_be_bytes());
    assert_eq!(replies[0], (OPT_GO, REP_INFO, export));
    assert_eq!(replies[1].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0], "block sizes");
    assert_eq!(replies[2].2, b"\0\x01disk");
    assert_eq!(replies[3].2, b"\0\x02memory");
    assert_eq!(replies[4], (OPT_GO, REP_ACK, vec![]));
    assert_eq!(replies.len(), 5, "an unknown information request is ignored");
}

#[test]
fn info_describes_without_transmitting() {
    let mut talk = Talk::fixed();
    let replies = talk.ask(OPT_INFO, &go("disk", &[]));
    assert_eq!(replies.iter().map(|reply| reply.1).collect::<Vec<_>>(), [REP_INFO, REP_INFO, REP_ACK]);
    assert_eq!(talk.ask_one(OPT_INFO, &go("nope", &[])), REP_ERR_UNKNOWN);
    assert_eq!(talk.ask_one(OPT_GO, &go("nope", &[])), REP_ERR_UNKNOWN);
    assert_eq!(talk.ask_one(OPT_GO, &go("busy", &[])), REP_ERR_POLICY);
    assert_eq!(talk.ask_one(OPT_GO, b"\0"), REP_ERR_INVALID);
    assert_eq!(talk.ask_one(OPT_GO, &go("a\0b", &[])), REP_ERR_INVALID);
}

#[test]
fn list_names_every_export() {
    let mut talk = Talk::fixed();
    let replies = talk.ask(OPT_LIST, &[]);
    assert_eq!(replies[0], (OPT_LIST, REP_SERVER, b"\0\0\0\x04diskmemory".to_vec()));
    assert_eq!(replies[1], (OPT_LIST, REP_SERVER, b"\0\0\0\x05othermemory".to_vec()));
    assert_eq!(replies[2], (OPT_LIST, REP_ACK, vec![]));
    assert_eq!(talk.ask_one(OPT_LIST, b"x"), REP_ERR_INVALID);
}

#[test]
fn unknown_options_are_unsupported_and_the_talk_goes_on() {
    let mut talk = Talk::fixed();
    for option in [4, 12, 13, 0, u32::MAX] {
        assert_eq!(talk.ask_one(option, b"whatever"), REP_ERR_UNSUP);
    }
    assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, b"x"), REP_ERR_INVALID);
    assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
}

/// A talk up to the moment when TLS has begun.
fn secured(encryption: Encryption) -> Talk {
    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES, encryption);
    talk.send(OPT_STARTTLS, &[]);
    assert!(matches!(talk.step(), Step::StartTls));
    assert_eq!(talk.replies(), [(OPT_STARTTLS, REP_ACK, vec![])]);
    talk.negotiation.secured();
    talk
}

#[test]
fn without_tls_starttls_is_refused_and_the_talk_goes_on() {
    let mut talk = Talk::fixed();
    assert_eq!(talk.ask_one(OPT_STARTTLS, &[]), REP_ERR_POLICY);
    assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
    talk.send(OPT_GO, &go("disk", &[]));
    assert!(matches!(talk.step(), Step::Transmit(_)));
}

#[test]
fn where_tls_is_demanded_nothing_is_told_before_it() {
    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE, Encryption::Demanded);
    for (option, data) in [
        (OPT_LIST, vec![]),
        (OPT_INFO, go("disk", &[])),
        (OPT_GO, go("disk", &[])),
        (OPT_STRUCTURED_REPLY, vec![]),
        (OPT_EXTENDED_HEADERS, vec![]),
        (OPT_LIST_META_CONTEXT, meta("disk", &[])),
        (99, vec![]),
    ] {
        assert_eq!(talk.ask_one(option, &data), REP_ERR_TLS_REQD, "{option}");
    }
    assert_eq!(talk.ask_one(OPT_STARTTLS, b"x"), REP_ERR_INVALID);
    talk.send(OPT_STARTTLS, &[]);
    assert!(matches!(talk.step(), Step::StartTls));
    for flags in [FLAG_C_FIXED_NEWSTYLE, 0] {
        let mut talk = Talk::with(flags, Encryption::Demanded);
        talk.send(OPT_EXPORT_NAME, b"disk");
        assert!(matches!(talk.step(), Step::Close(_)), "EXPORT_NAME cannot be refused in another way");
    }
    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE, Encryption::Demanded);
    talk.send(OPT_ABORT, &[]);
    assert!(matches!(talk.step(), Step::Close(_)));
    assert_eq!(talk.replies(), [(OPT_ABORT, REP_ACK, vec![])]);
}

#[test]
fn after_tls_everything_is_said_as_without_and_tls_cannot_begin_again() {
    for encryption in [Encryption::Offered, Encryption::Demanded] {
        let mut talk = secured(encryption);
        assert_eq!(talk.ask_one(OPT_STARTTLS, &[]), REP_ERR_INVALID);
        assert_eq!(talk.ask(OPT_LIST, &[]).len(), 3);
        talk.send(OPT_GO, &go("disk", &[]));
        assert!(matches!(talk.step(), Step::Transmit(_)));
    }
    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE, Encryption::Offered);
    talk.send(OPT_GO, &go("disk", &[]));
    assert!(matches!(talk.step(), Step::Transmit(_)), "offered, and not taken");
}

#[test]
fn what_was_said_in_the_clear_does_not_count_after_tls() {
    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE, Encryption::Offered);
    talk.ask(OPT_EXTENDED_HEADERS, &[]);
    talk.ask(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
    talk.send(OPT_STARTTLS, &[]);
    assert!(matches!(talk.step(), Step::StartTls));
    talk.replies();
    talk.negotiation.secured();
    talk.send(OPT_GO, &go("disk", &[]));
    let Step::Transmit(negotiated) = talk.step() else { panic!("no transmission") };
    assert_eq!((negotiated.style, negotiated.contexts), (Style::Simple, Contexts::default()));

    let mut talk = Talk::with(FLAG_C_FIXED_NEWSTYLE, Encryption::Offered);
    talk.send(OPT_STARTTLS, &[]);
    talk.send(OPT_LIST, &[]);
    assert!(matches!(talk.step(), Step::Close(_)), "sent in the clear after STARTTLS");
}

#[test]
fn extended_headers_take_precedence_and_exclude_export_name() {
    for structured_first in [false, true] {
        let mut talk = Talk::fixed();
        assert_eq!(talk.ask_one(OPT_EXTENDED_HEADERS, b"x"), REP_ERR_INVALID);
        if structured_first {
            assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
        }
        assert_eq!(talk.ask_one(OPT_EXTENDED_HEADERS, &[]), REP_ACK);
        assert_eq!(talk.ask_one(OPT_EXTENDED_HEADERS, &[]), REP_ACK, "once more changes nothing");
        assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ERR_EXT_HEADER_REQD);
        talk.ask(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        talk.send(OPT_GO, &go("disk", &[]));
        let Step::Transmit(negotiated) = talk.step() else { panic!("no transmission") };
        assert_eq!((negotiated.style, negotiated.contexts.len()), (Style::Extended, 1));
        let [_, _, .., flags] = talk.replies()[0].2[..] else { panic!("no flags") };
        let expected = transmission_flags(&info("disk"), Style::Extended, negotiated.contexts);
        assert!(flags == expected as u8 && expected & FLAG_BLOCK_STATUS_PAYLOAD != 0);
    }
    let mut talk = Talk::fixed();
    talk.ask(OPT_EXTENDED_HEADERS, &[]);
    talk.send(OPT_EXPORT_NAME, b"disk");
    assert!(matches!(talk.step(), Step::Close(_)), "EXPORT_NAME cannot be refused in another way");
    for (style, contexts) in [(Style::Extended, &[][..]), (Style::Structured, &Context::ALL[..])] {
        let flags = transmission_flags(&info("disk"), style, Contexts::of(contexts));
        assert_eq!(flags & FLAG_BLOCK_STATUS_PAYLOAD, 0, "{style:?} {contexts:?}");
    }
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let mut talk = Talk::fixed();
    talk.send(OPT_ABORT, &[]);
    assert!(matches!(talk.step(), Step::Close(_)));
    assert_eq!(talk.replies(), [(OPT_ABORT, REP_ACK, vec![])]);
}

#[test]
fn export_name_answers_with_or_without_zeroes() {
    for (flags, length) in [(FLAG_C_FIXED_NEWSTYLE, 134), (FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES, 10), (0, 134)] {
        let mut talk = Talk::new(flags);
        talk.send(OPT_EXPORT_NAME, b"disk");
        assert!(matches!(talk.step(), Step::Transmit(_)));
        assert_eq!(talk.negotiation.take_output().len(), length);
    }
    for name in ["nope".as_bytes(), &[0xff], &[b'x'; 5000]] {
        let mut talk = Talk::fixed();
        talk.send(OPT_EXPORT_NAME, name);
        assert!(matches!(talk.step(), Step::Close(_)));
        assert!(talk.negotiation.take_output().is_empty());
    }
}

#[test]
fn contexts_are_listed_and_selected() {
    let replies_of = |contexts: Contexts, option| {
        let told = contexts.iter().map(|context| {
            let data = [&context.id().to_be_bytes()[..], context.name().as_bytes()].concat();
            (option, REP_META_CONTEXT, data)
        });
        told.chain([(option, REP_ACK, vec![])]).collect::<Vec<_>>()
    };
    for (option, queries, found) in [
        (OPT_LIST_META_CONTEXT, &[][..], &Context::ALL[..]),
        (OPT_LIST_META_CONTEXT, &["base:"], &[Context::Allocation]),
        (OPT_LIST_META_CONTEXT, &["helio:"], &[Context::Residency]),
        (OPT_LIST_META_CONTEXT, &["base:allocation"], &[Context::Allocation]),
        (OPT_LIST_META_CONTEXT, &["qemu:"], &[]),
        (OPT_SET_META_CONTEXT, &[], &[]),
        (OPT_SET_META_CONTEXT, &["base:", "helio:"], &[]),
        (OPT_SET_META_CONTEXT, &["x-y:z", "base:allocation"], &[Context::Allocation]),
        (OPT_SET_META_CONTEXT, &["helio:residency", "base:allocation"], &Context::ALL),
    ] {
        let found = Contexts::of(found);
        let mut talk = Talk::fixed();
        assert_eq!(talk.ask_one(option, &meta("disk", queries)), REP_ERR_INVALID, "before structured replies");
        talk.ask(OPT_STRUCTURED_REPLY, &[]);
        assert_eq!(talk.ask(option, &meta("disk", queries)), replies_of(found, option), "{option} {queries:?}");
        talk.send(OPT_GO, &go("disk", &[]));
        let Step::Transmit(negotiated) = talk.step() else { panic!("no transmission") };
        assert_eq!(negotiated.contexts, if option == OPT_SET_META_CONTEXT { found } else { Contexts::default() });
    }
}

#[test]
fn a_context_holds_for_its_export_and_until_the_next_selection() {
    for (second, name, selected) in [
        (None, "disk", true),
        (None, "other", false),
        (Some(meta("disk", &[])), "disk", false),
        (Some(meta("nope", &["base:allocation"])), "disk", false),
        (Some(b"bad".to_vec()), "disk", false),
    ] {
        let mut talk = Talk::fixed();
        talk.ask(OPT_STRUCTURED_REPLY, &[]);
        talk.ask(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        if let Some(data) = &second {
            talk.ask(OPT_SET_META_CONTEXT, data);
        }
        talk.send(OPT_GO, &go(name, &[]));
        let Step::Transmit(negotiated) = talk.step() else { panic!("no transmission") };
        assert_eq!(negotiated.contexts.contains(Context::Allocation), selected, "{second:?} {name}");
    }
}

#[test]
fn big_options_are_skipped_and_huge_ones_close() {
    let mut talk = Talk::fixed();
    let big = vec![0; OPTION_DATA_LEN_MAX as usize + 1];
    assert_eq!(talk.ask_one(OPT_GO, &big), REP_ERR_TOO_BIG);
    assert_eq!(talk.ask_one(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
    talk.input.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    talk.input.extend_from_slice(&OPT_GO.to_be_bytes());
    talk.input.extend_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(talk.step(), Step::Close(_)));
}

#[test]
fn odd_clients_are_disconnected() {
    let mut talk = Talk::new(1 << 7);
    assert!(matches!(talk.step(), Step::Close(_)), "an unknown client flag");

    let mut talk = Talk::new(0);
    talk.send(OPT_LIST, &[]);
    assert!(matches!(talk.step(), Step::Close(_)), "an option without fixed newstyle");

    let mut talk = Talk::fixed();
    for _ in 0..OPTIONS_MAX {
        talk.ask(99, &[]);
    }
    talk.send(99, &[]);
    assert!(matches!(talk.step(), Step::Close(_)), "too many options");
}

#[test]
fn flags_follow_the_export() {
    let writable = transmission_flags(&info("disk"), Style::Structured, Contexts::default());
    assert_eq!(
        writable,
        FLAG_HAS_FLAGS
            | FLAG_SEND_FLUSH
            | FLAG_SEND_FUA
            | FLAG_SEND_TRIM
            | FLAG_SEND_WRITE_ZEROES
            | FLAG_SEND_DF
            | FLAG_CAN_MULTI_CONN
            | FLAG_SEND_CACHE
            | FLAG_SEND_FAST_ZERO
    );
    let read_only =
        transmission_flags(&ExportInfo { read_only: true, ..info("disk") }, Style::Simple, Contexts::default());
    let always = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE;
    assert_eq!(read_only, always | FLAG_READ_ONLY);
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_how_bytes_arrive(pieces in proptest::collection::vec(1..40usize, 1..20)) {
        let mut whole = Talk::fixed();
        whole.send(OPT_STRUCTURED_REPLY, &[]);
        whole.send(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        whole.send(OPT_GO, &go("disk", &[INFO_NAME]));
        let bytes = whole.input.to_vec();
        let mut split = Talk::fixed();
        split.input.clear();
        let (mut rest, mut pieces) = (bytes.as_slice(), pieces.iter().cycle());
        let outcome = loop {
            match split.step() {
                Step::Read => {
                    let piece = (*pieces.next().expect("cycle")).min(rest.len());
                    prop_assert!(piece > 0, "stuck");
                    split.input.extend_from_slice(&rest[..piece]);
                    rest = &rest[piece..];
                }
                Step::Transmit(negotiated) => break negotiated,
                other => panic!("{other:?}"),
            }
        };
        prop_assert!(outcome.style == Style::Structured && outcome.contexts.contains(Context::Allocation));
        whole.step();
        prop_assert_eq!(whole.replies(), split.replies());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), option in 0..12u32) {
        let mut talk = Talk::fixed();
        talk.send(option, &bytes);
        talk.input.extend_from_slice(&bytes);
        talk.step();
    }
}
