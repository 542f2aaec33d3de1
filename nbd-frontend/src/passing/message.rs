//! What a predecessor and its successor say to each other, as bytes (docs/format.md, "helio-nbd to its successor").
//!
//! Pure: no I/O. A frame is a header of [`HEADER_LEN`] bytes and a body. `Hello` and `Refused` keep their form for ever and may
//! only grow at the end, so that any two versions can at least say that they do not fit; everything else is of
//! [`STATE_VERSION`], and another one is refused. What is decoded keeps the promises of the types that it becomes.

use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::contexts::Contexts;
use crate::export::ExportInfo;
use crate::negotiation::{Negotiated, OPTION_SKIP_LEN_MAX};
use crate::proto::Malformed;
use crate::proto::request::RequestHeader;
use crate::proto::style::Style;
use crate::service::sockets::PassedSockets;

/// The version of everything but `Hello` and `Refused`. Raised when a state changes that a connection is passed on in.
pub const STATE_VERSION: u16 = 1;
/// The bytes of a frame before its body: magic 4, version 2, kind 1, descriptors 1, length of the body 4.
pub const HEADER_LEN: usize = 12;
const _: () = assert!(HEADER_LEN == 4 + 2 + 1 + 1 + 4, "the layout of docs/format.md");
/// The longest body in bytes: a write of the largest size that has come almost whole, and replies to as many reads as may be in
/// flight. A connection that has more unsent is not passed on, and neither are the others then.
pub const BODY_LEN_MAX: usize = 256 << 20;
/// Descriptors with one frame at most: the listening sockets.
pub const DESCRIPTORS_MAX: usize = 3;

const MAGIC: [u8; 4] = *b"HNPO";

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// A Unix socket.
    Unix,
    /// TCP.
    Tcp,
}

/// A successor tells who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version of states that it takes up.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// The version of its program, for people.
    pub program: String,
    /// Where it was told to listen.
    pub unix: Option<PathBuf>,
    /// The same for TCP.
    pub tcp: Option<SocketAddr>,
    /// What it says of TLS: 0 nothing, 1 who wants to uses it, 2 who comes by TCP has to.
    pub tls: u8,
    /// Which of its sockets are the service manager's.
    pub passed: Holder,
}

/// Which sockets of a process are its service manager's, which made them and removes their files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The Unix socket.
    pub unix: bool,
    /// The socket for TCP.
    pub tcp: bool,
}

impl Holder {
    /// Of a process that was passed these.
    #[must_use]
    pub fn of(sockets: &PassedSockets) -> Holder {
        Holder { unix: sockets.unix().is_some(), tcp: sockets.tcp().is_some() }
    }
}

/// The rest of a request that was refused already: its payload is read and thrown away before the refusal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// The request.
    pub header: RequestHeader,
    /// Bytes of its payload that have not come.
    pub remaining: u64,
    /// The error it is answered with.
    pub errno: u32,
}

/// Where a handshake waits for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandshakePhase {
    /// For the client's flags.
    Flags,
    /// For an option.
    Option,
    /// For the rest of an option that is too long.
    Skip {
        /// Which.
        option: u32,
        /// Bytes that have not come.
        remaining: u32,
    },
}

/// A handshake between two options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeState {
    /// Where it waits.
    pub phase: HandshakePhase,
    /// The client speaks fixed newstyle.
    pub fixed: bool,
    /// The client wants no padding.
    pub no_zeroes: bool,
    /// What was agreed on.
    pub style: Style,
    /// The metadata contexts that were selected, and for which export.
    pub selected: Option<(String, Contexts)>,
    /// Options so far.
    pub options: u32,
}

/// How far a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionStage {
    /// In the handshake.
    Handshake(HandshakeState),
    /// Between two requests, or inside of one.
    Transmission {
        /// Which of the sessions that were sent before, in their order.
        session: u32,
        /// What the client was told, and has agreed on.
        negotiated: Negotiated,
        /// A refused request that has not come whole.
        discard: Option<Discard>,
    },
}

/// A connection. Its socket goes with the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// What kind of socket it is.
    pub family: Family,
    /// Its client, for the log.
    pub peer: String,
    /// How far it is.
    pub stage: ConnectionStage,
    /// Bytes that are to be sent before anything else: the rest of replies.
    pub unsent: Vec<u8>,
    /// Bytes that came and were not handled.
    pub input: Vec<u8>,
}

/// The listening sockets, which go with the frame in this order, and how much was sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// There is a Unix socket.
    pub unix: bool,
    /// There is a TCP socket.
    pub tcp: bool,
    /// Sessions that were sent.
    pub sessions: u32,
    /// Connections that were sent.
    pub connections: u32,
    /// Connections that stay with the predecessor.
    pub staying: u32,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From a successor: it wants to take over.
    Hello(Hello),
    /// From either: it comes to nothing, for this reason. All is as before.
    Refused(String),
    /// From the predecessor: sessions that will be passed on, as they are now.
    Prepare(Vec<Vec<u8>>),
    /// From the successor: it knows what these are.
    Ready,
    /// From the predecessor: a session, for its directory to take up.
    Session(Vec<u8>),
    /// From the predecessor: a connection.
    Connection(Box<ConnectionState>),
    /// From the predecessor: the listening sockets. That was all.
    Sockets(Sockets),
    /// From the successor: it has taken up everything, and reads nothing yet.
    Prepared,
    /// From the predecessor: it will not read anything any more.
    Go,
    /// From the successor: it serves.
    Serving,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    version: u16,
    kind: u8,
    descriptors: u8,
    length: u32,
}

impl Header {
    /// Decodes it.
    ///
    /// # Errors
    /// No such frame, one of another version, or one that is too long.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, Malformed> {
        let [m0, m1, m2, m3, v0, v1, kind, descriptors, l0, l1, l2, l3] = *bytes;
        let header = Header {
            version: u16::from_le_bytes([v0, v1]),
            kind,
            descriptors,
            length: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        if [m0, m1, m2, m3] != MAGIC {
            return Err(Malformed("not a frame of helio-nbd"));
        }
        if header.version != STATE_VERSION && ![kind::HELLO, kind::REFUSED].contains(&header.kind) {
            return Err(Malformed("a frame of another version"));
        }
        if header.length as usize > BODY_LEN_MAX || usize::from(descriptors) > DESCRIPTORS_MAX {
            return Err(Malformed("a frame that is too long"));
        }
        Ok(header)
    }

    /// Bytes of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.length as usize
    }

    /// Descriptors that go with the frame.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.descriptors.into()
    }
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const REFUSED: u8 = 2;
    pub(super) const PREPARE: u8 = 3;
    pub(super) const READY: u8 = 4;
    pub(super) const SESSION: u8 = 5;
    pub(super) const CONNECTION: u8 = 6;
    pub(super) const SOCKETS: u8 = 7;
    pub(super) const PREPARED: u8 = 8;
    pub(super) const GO: u8 = 9;
    pub(super) const SERVING: u8 = 10;
}

impl Message {
    /// How many descriptors go with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Message::Connection(_) => 1,
            // The control socket too.
            Message::Sockets(sockets) => 1 + usize::from(sockets.unix) + usize::from(sockets.tcp),
            _ => 0,
        }
    }

    /// As a frame.
    ///
    /// # Errors
    /// It would be longer than [`BODY_LEN_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = vec![0; HEADER_LEN];
        let kind = match self {
            Message::Hello(hello) => head(&mut bytes, &(WireHello::from(hello), hello.passed), kind::HELLO)?,
            Message::Refused(why) => head(&mut bytes, why, kind::REFUSED)?,
            Message::Prepare(sessions) => head(&mut bytes, sessions, kind::PREPARE)?,
            Message::Ready => kind::READY,
            Message::Session(session) => {
                bytes.extend_from_slice(session);
                kind::SESSION
            }
            Message::Connection(state) => {
                head(&mut bytes, &WireConnection::from(&**state), kind::CONNECTION)?;
                bytes.extend_from_slice(&state.unsent);
                bytes.extend_from_slice(&state.input);
                kind::CONNECTION
            }
            Message::Sockets(sockets) => head(&mut bytes, sockets, kind::SOCKETS)?,
            Message::Prepared => kind::PREPARED,
            Message::Go => kind::GO,
            Message::Serving => kind::SERVING,
        };
        let length = bytes.len() - HEADER_LEN;
        if length > BODY_LEN_MAX {
            return Err(Malformed("a connection has more on its way than can be passed on"));
        }
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&STATE_VERSION.to_le_bytes());
        // Three at most.
        (bytes[6], bytes[7]) = (kind, self.descriptors() as u8);
        // Below 2^32, as it is at most BODY_LEN_MAX.
        bytes[8..HEADER_LEN].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(bytes)
    }

    /// From the header and the body of a frame.
    ///
    /// # Errors
    /// The body is not one of that kind, or says something impossible.
    pub fn decode(header: Header, body: &[u8]) -> Result<Message, Malformed> {
        let message = match header.kind {
            kind::HELLO => Message::Hello(hello(body)?),
            kind::REFUSED => Message::Refused(taken(body)?.0),
            kind::PREPARE => Message::Prepare(whole(body)?),
            kind::READY => nothing(body, Message::Ready)?,
            kind::SESSION => Message::Session(body.to_vec()),
            kind::CONNECTION => Message::Connection(Box::new(connection(body)?)),
            kind::SOCKETS => Message::Sockets(whole(body)?),
            kind::PREPARED => nothing(body, Message::Prepared)?,
            kind::GO => nothing(body, Message::Go)?,
            kind::SERVING => nothing(body, Message::Serving)?,
            _ => return Err(Malformed("a frame of a kind that is not known")),
        };
        if message.descriptors() != header.descriptors() {
            return Err(Malformed("a frame with another number of sockets than it tells of"));
        }
        Ok(message)
    }
}

fn head<T: Serialize>(bytes: &mut Vec<u8>, value: &T, kind: u8) -> Result<u8, Malformed> {
    let head = postcard::to_stdvec(value).map_err(|_| Malformed("a state that cannot be encoded"))?;
    bytes.extend_from_slice(&head);
    Ok(kind)
}

fn taken<T: DeserializeOwned>(body: &[u8]) -> Result<(T, &[u8]), Malformed> {
    postcard::take_from_bytes(body).map_err(|_| Malformed("a frame whose body is not of its kind"))
}

fn whole<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    let (value, rest) = taken(body)?;
    nothing(rest, value)
}

fn nothing<T>(rest: &[u8], value: T) -> Result<T, Malformed> {
    if rest.is_empty() { Ok(value) } else { Err(Malformed("a frame with something behind its end")) }
}

/// It grew once: who does not say which sockets are a service manager's has none of those.
fn hello(body: &[u8]) -> Result<Hello, Malformed> {
    let (wire, rest) = taken::<WireHello>(body)?;
    let passed = if rest.is_empty() { Holder::default() } else { taken(rest)?.0 };
    Ok(Hello { passed, ..wire.try_into()? })
}

/// As it was at first.
#[derive(Serialize, Deserialize)]
struct WireHello {
    oldest: u16,
    newest: u16,
    program: String,
    unix: Option<Vec<u8>>,
    tcp: Option<SocketAddr>,
    tls: u8,
}

impl From<&Hello> for WireHello {
    fn from(hello: &Hello) -> WireHello {
        let Hello { oldest, newest, ref program, ref unix, tcp, tls, passed: _ } = *hello;
        let unix = unix.as_ref().map(|path| path.as_os_str().as_bytes().to_vec());
        WireHello { oldest, newest, program: program.clone(), unix, tcp, tls }
    }
}

impl TryFrom<WireHello> for Hello {
    type Error = Malformed;

    fn try_from(wire: WireHello) -> Result<Hello, Malformed> {
        let WireHello { oldest, newest, program, unix, tcp, tls } = wire;
        if oldest > newest {
            return Err(Malformed("versions that end before they begin"));
        }
        let unix = unix.map(|path| PathBuf::from(std::ffi::OsString::from_vec(path)));
        Ok(Hello { oldest, newest, program, unix, tcp, tls, passed: Holder::default() })
    }
}

#[derive(Serialize, Deserialize)]
struct WireConnection {
    family: Family,
    peer: String,
    stage: WireStage,
    unsent: u32,
    input: u32,
}

#[derive(Serialize, Deserialize)]
enum WireStage {
    Handshake {
        phase: HandshakePhase,
        fixed: bool,
        no_zeroes: bool,
        style: u8,
        selected: Option<(String, Vec<u32>)>,
        options: u32,
    },
    Transmission {
        session: u32,
        info: WireInfo,
        style: u8,
        contexts: Vec<u32>,
        discard: Option<WireDiscard>,
    },
}

#[derive(Serialize, Deserialize)]
struct WireInfo {
    name: String,
    description: String,
    size: u64,
    read_only: bool,
    block_size_min: u32,
    block_size_preferred: u32,
    block_size_max: u32,
}

#[derive(Serialize, Deserialize)]
struct WireDiscard {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    remaining: u64,
    errno: u32,
}

fn style_number(style: Style) -> u8 {
    match style {
        Style::Simple => 0,
        Style::Structured => 1,
        Style::Extended => 2,
    }
}

fn style(number: u8) -> Result<Style, Malformed> {
    match number {
        0 => Ok(Style::Simple),
        1 => Ok(Style::Structured),
        2 => Ok(Style::Extended),
        _ => Err(Malformed("a style of messages that is not known")),
    }
}

fn context_ids(contexts: Contexts) -> Vec<u32> {
    contexts.iter().map(|context| context.id()).collect()
}

fn contexts(ids: &[u32]) -> Result<Contexts, Malformed> {
    let all = Contexts::of(&crate::contexts::Context::ALL);
    all.filtered(ids).ok_or(Malformed("a metadata context that is not known"))
}

impl From<&ConnectionState> for WireConnection {
    fn from(state: &ConnectionState) -> WireConnection {
        let stage = match &state.stage {
            ConnectionStage::Handshake(HandshakeState { phase, fixed, no_zeroes, style, selected, options }) => {
                WireStage::Handshake {
                    phase: *phase,
                    fixed: *fixed,
                    no_zeroes: *no_zeroes,
                    style: style_number(*style),
                    selected: selected.as_ref().map(|(name, contexts)| (name.clone(), context_ids(*contexts))),
                    options: *options,
                }
            }
            ConnectionStage::Transmission { session, negotiated, discard } => WireStage::Transmission {
                session: *session,
                info: WireInfo::from(&negotiated.info),
                style: style_number(negotiated.style),
                contexts: context_ids(negotiated.contexts),
                discard: discard.as_ref().map(WireDiscard::from),
            },
        };
        // What does not fit into 32 bits does not fit into a frame either, which is found out there.
        let length = |bytes: &Vec<u8>| bytes.len().try_into().unwrap_or(u32::MAX);
        let (unsent, input) = (length(&state.unsent), length(&state.input));
        WireConnection { family: state.family, peer: state.peer.clone(), stage, unsent, input }
    }
}

fn connection(body: &[u8]) -> Result<ConnectionState, Malformed> {
    let (WireConnection { family, peer, stage, unsent, input }, rest) = taken(body)?;
    if u64::from(unsent) + u64::from(input) != rest.len() as u64 {
        return Err(Malformed("a connection with other bytes than it tells of"));
    }
    let (unsent, input) = rest.split_at(unsent as usize);
    let stage = match stage {
        WireStage::Handshake { phase, fixed, no_zeroes, style: number, selected, options } => {
            if matches!(phase, HandshakePhase::Skip { remaining, .. } if remaining == 0 || remaining > OPTION_SKIP_LEN_MAX)
            {
                return Err(Malformed("an option that is longer than it may be"));
            }
            let selected = selected.map(|(name, ids)| Ok::<_, Malformed>((name, contexts(&ids)?))).transpose()?;
            let style = style(number)?;
            ConnectionStage::Handshake(HandshakeState { phase, fixed, no_zeroes, style, selected, options })
        }
        WireStage::Transmission { session, info, style: number, contexts: ids, discard } => {
            let negotiated = Negotiated { info: info.try_into()?, style: style(number)?, contexts: contexts(&ids)? };
            let discard = discard.map(|discard| discard.checked(negotiated.style)).transpose()?;
            ConnectionStage::Transmission { session, negotiated, discard }
        }
    };
    Ok(ConnectionState { family, peer, stage, unsent: unsent.to_vec(), input: input.to_vec() })
}

impl From<&ExportInfo> for WireInfo {
    fn from(info: &ExportInfo) -> WireInfo {
        WireInfo {
            name: info.name.clone(),
            description: info.description.clone(),
            size: info.size,
            read_only: info.read_only,
            block_size_min: info.block_size_min,
            block_size_preferred: info.block_size_preferred,
            block_size_max: info.block_size_max,
        }
    }
}

impl TryFrom<WireInfo> for ExportInfo {
    type Error = Malformed;

    fn try_from(info: WireInfo) -> Result<ExportInfo, Malformed> {
        let WireInfo { name, description, size, read_only, block_size_min, block_size_preferred, block_size_max } =
            info;
        if !block_size_min.is_power_of_two() || !block_size_preferred.is_power_of_two() {
            return Err(Malformed("block sizes that are no powers of two"));
        }
        if block_size_min > block_size_preferred || block_size_preferred > block_size_max {
            return Err(Malformed("block sizes in the wrong order"));
        }
        Ok(ExportInfo { name, description, size, read_only, block_size_min, block_size_preferred, block_size_max })
    }
}

impl From<&Discard> for WireDiscard {
    fn from(discard: &Discard) -> WireDiscard {
        let Discard { header: RequestHeader { flags, command, cookie, offset, length }, remaining, errno } = *discard;
        WireDiscard { flags, command, cookie, offset, length, remaining, errno }
    }
}

impl WireDiscard {
    fn checked(self, style: Style) -> Result<Discard, Malformed> {
        let WireDiscard { flags, command, cookie, offset, length, remaining, errno } = self;
        let header = RequestHeader { flags, command, cookie, offset, length };
        if remaining == 0 || remaining > header.payload_len(style) || errno == 0 {
            return Err(Malformed("a refused request with more payload than it has"));
        }
        Ok(Discard { header, remaining, errno })
    }
}
