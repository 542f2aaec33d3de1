//! The handshake as a state machine: bytes in, replies and questions out, no I/O.
//!
//! Fixed newstyle only. The driver feeds bytes to [`Negotiation::advance`], sends what [`Negotiation::take_output`]
//! holds before it reads again, answers [`Question`]s about exports from its directory, and begins TLS when a client wants
//! it, after which everything is said anew. Option data is bounded
//! by [`OPTION_DATA_LEN_MAX`], the number of options by [`OPTIONS_MAX`]; time is bounded by the driver. The state
//! machine never opens an export by itself and knows nothing of sessions.

use bytes::{Buf, BytesMut};
use client_lib::{Error, ErrorKind};

use crate::contexts::Contexts;
use crate::errno;
use crate::export::ExportInfo;
use crate::passing::message::{HandshakePhase, HandshakeState};
use crate::proto::constants::{
    FLAG_BLOCK_STATUS_PAYLOAD, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_CAN_MULTI_CONN, FLAG_HAS_FLAGS,
    FLAG_READ_ONLY, FLAG_SEND_CACHE, FLAG_SEND_DF, FLAG_SEND_FAST_ZERO, FLAG_SEND_FLUSH, FLAG_SEND_FUA, FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES, INFO_DESCRIPTION, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO,
    OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK,
    REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_TLS_REQD, REP_ERR_TOO_BIG, REP_ERR_UNSUP,
};
use crate::proto::handshake::{
    self, CLIENT_FLAGS_LEN, InfoRequest, MetaContextRequest, OPTION_HEADER_LEN, OptionHeader, option_reply,
};
use crate::proto::style::Style;

/// The longest option data that is read, in bytes. Longer data is skipped and answered with `ERR_TOO_BIG`.
pub const OPTION_DATA_LEN_MAX: u32 = 64 << 10;
/// The longest option data that is skipped, in bytes. A client that announces more is disconnected.
pub const OPTION_SKIP_LEN_MAX: u32 = 4 << 20;
/// How many options one handshake may have. A client that sends more is disconnected.
pub const OPTIONS_MAX: u32 = 256;
/// How many exports a list names; the rest of a longer list is left out.
pub const LIST_LEN_MAX: usize = 10_000;

/// With so many bytes to be sent no further option is taken.
const OUTPUT_MAX: usize = 64 << 10;

/// The longest message of a refusal, in bytes; longer ones are cut ("Conventions" allows 4096).
const REFUSAL_LEN_MAX: usize = 512;

/// What the driver must do next.
#[derive(Debug)]
pub enum Step {
    /// Send the output, then read more bytes.
    Read,
    /// Send the output, then go on: what one answer to many options would take in memory is not gathered.
    Send,
    /// Look something up and call [`Negotiation::answer`].
    Ask(Question),
    /// Send the output, then begin TLS and call [`Negotiation::secured`]. Nothing more may have been read.
    StartTls,
    /// Send the output, then close; the text says why.
    Close(&'static str),
    /// Send the output, then transmit.
    Transmit(Negotiated),
}

/// What a client is told of TLS ("TLS support").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// There is none ("NOTLS mode").
    #[default]
    Off,
    /// It may begin it ("SELECTIVETLS mode", with no export that is for TLS only).
    Offered,
    /// It must begin it before anything else ("FORCEDTLS mode").
    Demanded,
    /// It has.
    On,
}

/// A question to the export directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which exports are there?
    List,
    /// What is known of this export?
    Info(String),
    /// Open this export and tell what it is.
    Open(String),
}

/// The directory's answer to a [`Question`].
#[derive(Debug)]
pub enum Answer {
    /// To [`Question::List`].
    List(Result<Vec<ExportInfo>, Error>),
    /// To [`Question::Info`] and [`Question::Open`].
    Export(Result<ExportInfo, Error>),
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export as it was told to the client.
    pub info: ExportInfo,
    /// Which requests and replies there are.
    pub style: Style,
    /// The metadata contexts that were selected for this export.
    pub contexts: Contexts,
}

/// The transmission flags of an export ("Transmission flags") for a client that has agreed on `style` and selected `contexts`.
#[must_use]
pub fn transmission_flags(info: &ExportInfo, style: Style, contexts: Contexts) -> u16 {
    // A session's flush covers every connection, which is what CAN_MULTI_CONN promises.
    let mut flags = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE;
    if style.is_chunked() {
        flags |= FLAG_SEND_DF;
    }
    // Only with extended headers, and of no use without contexts.
    if style == Style::Extended && !contexts.is_empty() {
        flags |= FLAG_BLOCK_STATUS_PAYLOAD;
    }
    if info.read_only {
        flags |= FLAG_READ_ONLY;
    } else {
        flags |= FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO;
    }
    flags
}

/// What becomes of the directory's answer.
#[derive(Clone, Debug)]
enum Pending {
    List,
    Info { option: u32, name: String, requests: Vec<u16> },
    ExportName { name: String },
    MetaContext { option: u32, name: String, contexts: Contexts },
}

#[derive(Clone, Debug)]
enum Phase {
    ClientFlags,
    Options,
    /// Skipping the data of an option that is too big.
    Skip {
        option: u32,
        remaining: usize,
    },
    Asked(Pending),
    StartTls,
    Ready(Negotiated),
    Close(&'static str),
}

/// One handshake.
#[derive(Clone, Debug)]
pub struct Negotiation {
    phase: Phase,
    output: Vec<u8>,
    encryption: Encryption,
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    /// The metadata contexts that were selected, and for which export: they hold for that export only.
    selected: Option<(String, Contexts)>,
    options: u32,
}

impl Default for Negotiation {
    fn default() -> Self {
        Negotiation::new(Encryption::Off)
    }
}

impl Negotiation {
    /// A handshake whose output is the server's greeting.
    #[must_use]
    pub fn new(encryption: Encryption) -> Negotiation {
        Negotiation {
            phase: Phase::ClientFlags,
            output: handshake::greeting().to_vec(),
            encryption,
            fixed: false,
            no_zeroes: false,
            style: Style::Simple,
            selected: None,
            options: 0,
        }
    }

    /// Where it stands while it waits for bytes ([`Step::Read`]), for another process to go on with; `None` anywhere else, and with TLS.
    #[must_use]
    pub fn state(&self) -> Option<HandshakeState> {
        let phase = match self.phase {
            Phase::ClientFlags => HandshakePhase::Flags,
            Phase::Options => HandshakePhase::Option,
            // At most OPTION_SKIP_LEN_MAX.
            Phase::Skip { option, remaining } => HandshakePhase::Skip { option, remaining: remaining as u32 },
            Phase::Asked(_) | Phase::StartTls | Phase::Ready(_) | Phase::Close(_) => return None,
        };
        let Negotiation { fixed, no_zeroes, style, options, ref selected, .. } = *self;
        let state = HandshakeState { phase, fixed, no_zeroes, style, selected: selected.clone(), options };
        (self.encryption != Encryption::On).then_some(state)
    }

    /// Goes on where another process stopped; there is nothing to send.
    #[must_use]
    pub fn resumed(state: HandshakeState, encryption: Encryption) -> Negotiation {
        let HandshakeState { phase, fixed, no_zeroes, style, selected, options } = state;
        let phase = match phase {
            HandshakePhase::Flags => Phase::ClientFlags,
            HandshakePhase::Option => Phase::Options,
            HandshakePhase::Skip { option, remaining } => Phase::Skip { option, remaining: remaining as usize },
        };
        Negotiation { phase, output: Vec::new(), encryption, fixed, no_zeroes, style, selected, options }
    }

    /// Bytes to send, in order. Taken before every read and before the connection closes or transmits.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// TLS has begun: what was agreed on before, where anybody could have changed it, is forgotten ("Option types",
    /// `NBD_OPT_STARTTLS`).
    pub fn secured(&mut self) {
        if !matches!(self.phase, Phase::StartTls) {
            self.phase = Phase::Close("TLS that was not asked for");
            return;
        }
        self.phase = Phase::Options;
        self.encryption = Encryption::On;
        self.style = Style::Simple;
        self.selected = None;
    }

    /// Goes on with what is in `input`, consuming whole messages only. Bytes after the last option belong to
    /// the transmission phase and stay.
    pub fn advance(&mut self, input: &mut BytesMut) -> Step {
        loop {
            match &mut self.phase {
                Phase::ClientFlags => {
                    let Some(flags) = input.first_chunk::<CLIENT_FLAGS_LEN>() else {
                        return Step::Read;
                    };
                    let flags = u32::from_be_bytes(*flags);
                    input.advance(CLIENT_FLAGS_LEN);
                    self.client_flags(flags);
                }
                Phase::Options if self.output.len() >= OUTPUT_MAX => return Step::Send,
                Phase::Options => match OptionHeader::decode(input) {
                    Err(malformed) => self.phase = Phase::Close(malformed.0),
                    Ok(None) => return Step::Read,
                    Ok(Some(header)) => {
                        if !self.begin_option(header, input) {
                            return Step::Read;
                        }
                        // A question goes out once; afterwards the phase waits for the answer.
                        if let Some(question) = self.question(header, input) {
                            return Step::Ask(question);
                        }
                    }
                },
                Phase::Skip { option, remaining } => {
                    let skipped = input.len().min(*remaining);
                    input.advance(skipped);
                    *remaining -= skipped;
                    if *remaining > 0 {
                        return Step::Read;
                    }
                    let option = *option;
                    self.phase = Phase::Options;
                    if option == OPT_EXPORT_NAME {
                        self.phase = Phase::Close("the export name is too long");
                    } else {
                        self.refuse(option, REP_ERR_TOO_BIG, "the option's data is too long");
                    }
                }
                Phase::Asked(_) => return Step::Close("the handshake went on without an answer"),
                Phase::StartTls if input.is_empty() => return Step::StartTls,
                // It could be taken for a part of the encrypted talk, and anybody could have put it there (CVE-2021-3716).
                Phase::StartTls => return Step::Close("something was sent in the clear after STARTTLS"),
                Phase::Ready(negotiated) => return Step::Transmit(negotiated.clone()),
                Phase::Close(reason) => return Step::Close(reason),
            }
        }
    }

    fn client_flags(&mut self, flags: u32) {
        // "Client flags": the server must close the connection on flags it does not know.
        if flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) != 0 {
            self.phase = Phase::Close("the client set a handshake flag that is not known");
            return;
        }
        self.fixed = flags & FLAG_C_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & FLAG_C_NO_ZEROES != 0;
        self.phase = Phase::Options;
    }

    /// Checks the bounds of an option; false asks for more bytes.
    fn begin_option(&mut self, header: OptionHeader, input: &mut BytesMut) -> bool {
        let OptionHeader { option, length } = header;
        let whole = OPTION_HEADER_LEN + length as usize;
        if length <= OPTION_DATA_LEN_MAX && input.len() < whole {
            return false;
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            self.phase = Phase::Close("too many options");
        } else if length > OPTION_SKIP_LEN_MAX {
            self.phase = Phase::Close("an option's data is far too long");
        } else if length > OPTION_DATA_LEN_MAX {
            input.advance(OPTION_HEADER_LEN);
            self.phase = Phase::Skip { option, remaining: length as usize };
        } else if !self.fixed && option != OPT_EXPORT_NAME {
            // "Newstyle negotiation": without the fixed flag there is one option only.
            self.phase = Phase::Close("an option other than EXPORT_NAME from a client without fixed newstyle");
        }
        true
    }

    /// Takes the whole option off `input` and handles it; returns the question it raises.
    fn question(&mut self, header: OptionHeader, input: &mut BytesMut) -> Option<Question> {
        if !matches!(self.phase, Phase::Options) {
            return None;
        }
        input.advance(OPTION_HEADER_LEN);
        let data = input.split_to(header.length as usize);
        let option = header.option;
        match option {
            // "FORCEDTLS mode": only STARTTLS and ABORT before TLS; EXPORT_NAME cannot be refused but by closing.
            OPT_EXPORT_NAME if self.encryption == Encryption::Demanded => {
                self.phase = Phase::Close("EXPORT_NAME without TLS, which is demanded here");
                None
            }
            option if self.encryption == Encryption::Demanded && ![OPT_STARTTLS, OPT_ABORT].contains(&option) => {
                self.refuse(option, REP_ERR_TLS_REQD, "this server demands TLS: connect with nbds:// and its authority")
            }
            OPT_STARTTLS => self.start_tls(&data),
            OPT_EXPORT_NAME if self.style == Style::Extended => {
                // "Option types", NBD_OPT_EXTENDED_HEADERS: a client must not use EXPORT_NAME afterwards, which cannot be refused.
                self.phase = Phase::Close("EXPORT_NAME after extended headers were agreed on");
                None
            }
            OPT_EXPORT_NAME => match handshake::string(&data) {
                Ok(name) => {
                    let name = name.to_owned();
                    Some(self.ask(Pending::ExportName { name: name.clone() }, Question::Open(name)))
                }
                Err(malformed) => {
                    self.phase = Phase::Close(malformed.0);
                    None
                }
            },
            OPT_ABORT => {
                // "Option types", NBD_OPT_ABORT: acknowledge, then close; the client may not wait for it.
                self.acknowledge(option);
                self.phase = Phase::Close("the client ended the handshake");
                None
            }
            OPT_LIST if data.is_empty() => Some(self.ask(Pending::List, Question::List)),
            OPT_STRUCTURED_REPLY if data.is_empty() && self.style == Style::Extended => {
                // "Option types", NBD_OPT_STRUCTURED_REPLY: extended headers take precedence.
                self.refuse(option, REP_ERR_EXT_HEADER_REQD, "extended headers are agreed on already")
            }
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS if data.is_empty() => {
                self.style = if option == OPT_EXTENDED_HEADERS { Style::Extended } else { Style::Structured };
                self.acknowledge(option);
                None
            }
            OPT_LIST | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => {
                self.refuse(option, REP_ERR_INVALID, "the option has no data")
            }
            OPT_INFO | OPT_GO => match InfoRequest::decode(&data) {
                Ok(request) => {
                    let name = request.name.to_owned();
                    let question =
                        if option == OPT_GO { Question::Open(name.clone()) } else { Question::Info(name.clone()) };
                    Some(self.ask(Pending::Info { option, name, requests: request.requests }, question))
                }
                Err(malformed) => self.refuse(option, REP_ERR_INVALID, malformed.0),
            },
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, &data),
            _ => self.refuse(option, REP_ERR_UNSUP, "the option is not supported"),
        }
    }

    fn start_tls(&mut self, data: &[u8]) -> Option<Question> {
        let option = OPT_STARTTLS;
        match self.encryption {
            // "NOTLS mode".
            Encryption::Off => self.refuse(option, REP_ERR_POLICY, "this server has no TLS here: connect with nbd://"),
            Encryption::On => self.refuse(option, REP_ERR_INVALID, "TLS has begun already"),
            Encryption::Offered | Encryption::Demanded if !data.is_empty() => {
                self.refuse(option, REP_ERR_INVALID, "the option has no data")
            }
            Encryption::Offered | Encryption::Demanded => {
                self.acknowledge(option);
                self.phase = Phase::StartTls;
                None
            }
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Option<Question> {
        if option == OPT_SET_META_CONTEXT {
            // "Option types", NBD_OPT_SET_META_CONTEXT: each one replaces the last, and a failed one leaves none.
            self.selected = None;
        }
        // "Option types": structured replies or extended headers must have been negotiated before.
        if !self.style.is_chunked() {
            return self.refuse(
                option,
                REP_ERR_INVALID,
                "structured replies or extended headers must be negotiated first",
            );
        }
        let request = match MetaContextRequest::decode(data) {
            Ok(request) => request,
            Err(malformed) => return self.refuse(option, REP_ERR_INVALID, malformed.0),
        };
        let contexts = match option {
            OPT_LIST_META_CONTEXT => Contexts::listed(&request.queries),
            _ => Contexts::selected(&request.queries),
        };
        let name = request.name.to_owned();
        Some(self.ask(Pending::MetaContext { option, name: name.clone(), contexts }, Question::Info(name)))
    }

    fn ask(&mut self, pending: Pending, question: Question) -> Question {
        self.phase = Phase::Asked(pending);
        question
    }

    /// Takes the answer to the question that [`Step::Ask`] raised.
    pub fn answer(&mut self, answer: Answer) {
        let Phase::Asked(pending) = std::mem::replace(&mut self.phase, Phase::Options) else {
            self.phase = Phase::Close("an answer without a question");
            return;
        };
        match (pending, answer) {
            (Pending::List, Answer::List(Ok(exports))) => {
                for export in exports.iter().take(LIST_LEN_MAX) {
                    handshake::rep_server(&mut self.output, OPT_LIST, &export.name, &export.description);
                }
                self.acknowledge(OPT_LIST);
            }
            (Pending::List, Answer::List(Err(error))) => {
                // "Option reply types": a list has no export that could be unknown.
                let kind =
                    if error.kind() == ErrorKind::Closed { errno::of_option(error.kind()) } else { REP_ERR_POLICY };
                self.refuse(OPT_LIST, kind, &error.to_string());
            }
            (Pending::Info { option, name, requests }, Answer::Export(Ok(info))) => {
                self.describe(option, &name, &requests, info);
            }
            (Pending::Info { option, .. } | Pending::MetaContext { option, .. }, Answer::Export(Err(error))) => {
                self.refuse(option, errno::of_option(error.kind()), &error.to_string());
            }
            (Pending::ExportName { name }, Answer::Export(Ok(info))) => {
                let flags = transmission_flags(&info, self.style, self.contexts_of(&name));
                handshake::export_name_answer(&mut self.output, info.size, flags, self.no_zeroes);
                self.phase = Phase::Ready(self.negotiated(&name, info));
            }
            (Pending::ExportName { .. }, Answer::Export(Err(_))) => {
                // "Newstyle negotiation": EXPORT_NAME cannot be refused but by closing.
                self.phase = Phase::Close("the export that EXPORT_NAME asked for cannot be opened");
            }
            (Pending::MetaContext { option, name, contexts }, Answer::Export(Ok(_))) => {
                for context in contexts.iter() {
                    handshake::rep_meta_context(&mut self.output, option, context.id(), context.name());
                }
                if option == OPT_SET_META_CONTEXT {
                    self.selected = Some((name, contexts));
                }
                self.acknowledge(option);
            }
            (Pending::List, Answer::Export(_)) | (_, Answer::List(_)) => {
                self.phase = Phase::Close("an answer to another question");
            }
        }
    }

    fn describe(&mut self, option: u32, name: &str, requests: &[u16], info: ExportInfo) {
        let flags = transmission_flags(&info, self.style, self.contexts_of(name));
        handshake::info_export(&mut self.output, option, info.size, flags);
        // "Block size constraints": must be told when they are not the defaults, asked for or not.
        handshake::info_block_size(
            &mut self.output,
            option,
            info.block_size_min,
            info.block_size_preferred,
            info.block_size_max,
        );
        if requests.contains(&INFO_NAME) {
            handshake::info_name(&mut self.output, option, &info.name);
        }
        if requests.contains(&INFO_DESCRIPTION) {
            handshake::info_description(&mut self.output, option, &info.description);
        }
        self.acknowledge(option);
        if option == OPT_GO {
            self.phase = Phase::Ready(self.negotiated(name, info));
        }
    }

    fn negotiated(&self, name: &str, info: ExportInfo) -> Negotiated {
        Negotiated { info, style: self.style, contexts: self.contexts_of(name) }
    }

    /// "Metadata querying": contexts hold for the export they were selected for, by the name the client used.
    fn contexts_of(&self, name: &str) -> Contexts {
        self.selected.as_ref().filter(|(export, _)| export == name).map(|(_, contexts)| *contexts).unwrap_or_default()
    }

    fn acknowledge(&mut self, option: u32) {
        option_reply(&mut self.output, option, REP_ACK, &[]);
    }

    fn refuse(&mut self, option: u32, kind: u32, message: &str) -> Option<Question> {
        let end = message.floor_char_boundary(message.len().min(REFUSAL_LEN_MAX));
        option_reply(&mut self.output, option, kind, &[&message.as_bytes()[..end]]);
        None
    }
}

#[cfg(test)]
mod tests;
