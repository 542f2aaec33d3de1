//! The handshake from the client's side: greeting, perhaps STARTTLS, extended headers or structured replies,
//! `base:allocation`, then GO.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::contexts::Context;
use crate::proto::Malformed;
use crate::proto::constants::{
    BLOCK_SIZE_MIN_MAX, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, PAYLOAD_CUSTOMARY, REP_ACK,
    REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
};
use crate::proto::peer::{self, GREETING_LEN, Info, OPTION_REPLY_HEADER_LEN, OptionReplyHeader};
use crate::proto::style::Style;

/// The longest data of an option reply that is believed, in bytes; a server that sends more is left.
const REPLY_DATA_LEN_MAX: u32 = 64 << 10;
/// How many replies one option may have; a server that sends more is left.
const REPLIES_MAX: usize = 256;
/// The bit that all refusals have ("Option reply types").
const REFUSAL: u32 = 1 << 31;

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Size of the export in bytes.
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Which requests and replies there are.
    pub(super) style: Style,
    /// The number of `base:allocation`, if the server offers it.
    pub(super) allocation: Option<u32>,
    /// Smallest unit in bytes.
    pub(super) block_size_min: u32,
    /// Largest payload in bytes.
    pub(super) payload_max: u32,
}

/// Why nothing was agreed on.
pub(super) enum Disagreed {
    Socket(std::io::Error),
    Malformed(Malformed),
    /// What the server said.
    Refused(String),
}

impl From<std::io::Error> for Disagreed {
    fn from(error: std::io::Error) -> Disagreed {
        Disagreed::Socket(error)
    }
}

impl From<Malformed> for Disagreed {
    fn from(error: Malformed) -> Disagreed {
        Disagreed::Malformed(error)
    }
}

/// What comes before all options.
pub(super) async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Disagreed> {
    let mut greeting = [0; GREETING_LEN];
    reader.read_exact(&mut greeting).await?;
    let offered = peer::greeting_flags(&greeting)?;
    if offered & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(Malformed("it does not speak the fixed newstyle negotiation").into());
    }
    let no_zeroes = if offered & FLAG_NO_ZEROES != 0 { FLAG_C_NO_ZEROES } else { 0 };
    writer.write_all(&(FLAG_C_FIXED_NEWSTYLE | no_zeroes).to_be_bytes()).await?;
    Ok(())
}

/// Asks the server to begin TLS, which must be done at once when it agrees. A refusal is one: whoever asked for TLS is not served
/// without ("Protocol downgrade attacks").
pub(super) async fn start_tls(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Disagreed> {
    let asked = ask(reader, writer, OPT_STARTTLS, &[], |_, _| Ok(())).await?;
    asked.map_err(|message| Disagreed::Refused(format!("it does not begin TLS: {message}")))
}

/// Agrees with the server on `export`, after the greeting.
pub(super) async fn agree(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    export: &str,
) -> Result<Agreed, Disagreed> {
    let mut agreed = Agreed {
        size: 0,
        flags: 0,
        style: Style::Simple,
        allocation: None,
        block_size_min: 1,
        // "Block size constraints": what a client may assume of a server that names none.
        payload_max: PAYLOAD_CUSTOMARY,
    };
    // The best that the server knows.
    for (option, style) in [(OPT_EXTENDED_HEADERS, Style::Extended), (OPT_STRUCTURED_REPLY, Style::Structured)] {
        if ask(reader, writer, option, &[], |_, _| Ok(())).await?.is_ok() {
            agreed.style = style;
            break;
        }
    }
    let name_length = (export.len() as u32).to_be_bytes();
    let name: [&[u8]; 2] = [&name_length, export.as_bytes()];
    if agreed.style.is_chunked() {
        let context = Context::Allocation.name();
        let query_length = (context.len() as u32).to_be_bytes();
        let query: [&[u8]; 3] = [&1u32.to_be_bytes(), &query_length, context.as_bytes()];
        let data = [&name[..], &query].concat();
        let asked = ask(reader, writer, OPT_SET_META_CONTEXT, &data, |kind, data| {
            if kind == REP_META_CONTEXT
                && let (id, name) = peer::meta_context(data)?
                && name == context
            {
                agreed.allocation = Some(id);
            }
            Ok(())
        });
        // Refused: there is no such context, or no such export, which GO will tell better.
        if asked.await?.is_err() {
            agreed.allocation = None;
        }
    }
    let mut told = false;
    let wanted: [&[u8]; 2] = [&1u16.to_be_bytes(), &INFO_BLOCK_SIZE.to_be_bytes()];
    let data = [&name[..], &wanted].concat();
    let go = ask(reader, writer, OPT_GO, &data, |kind, data| {
        if kind != REP_INFO {
            return Ok(());
        }
        match Info::decode(data)? {
            Info::Export { size, flags } => {
                told = true;
                (agreed.size, agreed.flags) = (size, flags);
            }
            Info::BlockSize { min, max, .. } => {
                if !min.is_power_of_two() || min > BLOCK_SIZE_MIN_MAX || max < min {
                    return Err(Malformed("the block size constraints make no sense"));
                }
                agreed.block_size_min = min;
                // Kept to whole blocks; "no limit" is written as all ones.
                agreed.payload_max = (max - max % min).min(PAYLOAD_CUSTOMARY);
            }
            Info::Other => {}
        }
        Ok(())
    });
    go.await?.map_err(Disagreed::Refused)?;
    if !told {
        return Err(Malformed("the size of the export is not told").into());
    }
    Ok(agreed)
}

/// Sends an option and hands every reply before the last to `take`. The inner result is the server's: a refusal is what
/// it said.
async fn ask(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    option: u32,
    data: &[&[u8]],
    mut take: impl FnMut(u32, &[u8]) -> Result<(), Malformed>,
) -> Result<Result<(), String>, Disagreed> {
    let mut out = Vec::new();
    peer::option(&mut out, option, data);
    writer.write_all(&out).await?;
    // Nothing to do for a socket; what encrypts may have kept a part.
    writer.flush().await?;
    for _ in 0..REPLIES_MAX {
        let mut head = [0; OPTION_REPLY_HEADER_LEN];
        reader.read_exact(&mut head).await?;
        let head = OptionReplyHeader::decode(&head)?;
        if head.option != option {
            return Err(Malformed("a reply is to another option than was asked").into());
        }
        if head.length > REPLY_DATA_LEN_MAX {
            return Err(Malformed("an option reply is too long").into());
        }
        let mut data = vec![0; head.length as usize];
        reader.read_exact(&mut data).await?;
        match head.kind {
            REP_ACK => return Ok(Ok(())),
            kind if kind & REFUSAL != 0 => return Ok(Err(refusal(kind, &data))),
            kind => take(kind, &data)?,
        }
    }
    Err(Malformed("an option has too many replies").into())
}

/// What a refusal says; without a message, what its number means.
fn refusal(kind: u32, data: &[u8]) -> String {
    let message = String::from_utf8_lossy(data);
    if !message.trim().is_empty() {
        return message.trim().to_owned();
    }
    match kind {
        REP_ERR_UNSUP => "it does not know the option".to_owned(),
        REP_ERR_POLICY => "it is forbidden by policy".to_owned(),
        REP_ERR_TLS_REQD => "it demands TLS: write nbds://".to_owned(),
        REP_ERR_UNKNOWN => "there is no such export".to_owned(),
        REP_ERR_SHUTDOWN => "it is shutting down".to_owned(),
        other => format!("error {:#x}", other & !REFUSAL),
    }
}
