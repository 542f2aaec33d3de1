//! The client's side of the wire: the options it sends, and a server's messages decoded.
//!
//! The mirror of [`handshake`](super::handshake) and [`reply`](super::reply), and as pure. Lengths that a server
//! announces are checked here where the protocol bounds them; bounds of our own are for the `client`.

use super::Malformed;
use super::constants::{
    EXTENDED_REPLY_MAGIC, INFO_BLOCK_SIZE, INFO_EXPORT, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::handshake::string;
use super::style::Style;

/// Length of the server's greeting: two magics and the handshake flags.
pub const GREETING_LEN: usize = 18;
/// Length of an option reply before its data: magic 8, option 4, type 4, length 4.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;

/// Splits a big-endian number off the front.
macro_rules! take {
    ($bytes:expr, $number:ty) => {{
        let (head, rest) =
            $bytes.split_first_chunk::<{ size_of::<$number>() }>().ok_or(Malformed("a message is too short"))?;
        $bytes = rest;
        <$number>::from_be_bytes(*head)
    }};
}

/// The handshake flags of a server's greeting.
///
/// # Errors
/// Another protocol, or the oldstyle negotiation, which has no options.
pub fn greeting_flags(greeting: &[u8; GREETING_LEN]) -> Result<u16, Malformed> {
    let mut rest = &greeting[..];
    if take!(rest, u64) != INIT_MAGIC {
        return Err(Malformed("the greeting is not that of an NBD server"));
    }
    if take!(rest, u64) != OPTION_MAGIC {
        return Err(Malformed("the server speaks the oldstyle negotiation, which has no export names"));
    }
    let flags = take!(rest, u16);
    debug_assert!(rest.is_empty(), "the layout of \"Newstyle negotiation\"");
    Ok(flags)
}

/// Appends an option with its data.
pub fn option(out: &mut Vec<u8>, option: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// The head of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// One of `REP_*`, or anything else.
    pub kind: u32,
    /// Length of the data that follows, in bytes.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Decodes a whole header.
    ///
    /// # Errors
    /// A wrong magic: the stream is out of step and cannot go on.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_LEN]) -> Result<OptionReplyHeader, Malformed> {
        let mut rest = &bytes[..];
        if take!(rest, u64) != OPTION_REPLY_MAGIC {
            return Err(Malformed("an option reply does not start with its magic"));
        }
        let header = OptionReplyHeader { option: take!(rest, u32), kind: take!(rest, u32), length: take!(rest, u32) };
        debug_assert!(rest.is_empty(), "the layout of \"Fixed newstyle negotiation\"");
        Ok(header)
    }
}

/// One detail of an export, the data of `REP_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes and transmission flags.
    Export {
        /// Size in bytes.
        size: u64,
        /// Transmission flags.
        flags: u16,
    },
    /// Block size constraints in bytes.
    BlockSize {
        /// Smallest request unit.
        min: u32,
        /// Best request unit.
        preferred: u32,
        /// Largest payload.
        max: u32,
    },
    /// Something else; to be ignored.
    Other,
}

impl Info {
    /// Decodes the whole data of the reply.
    ///
    /// # Errors
    /// Data of another length than its type has.
    pub fn decode(data: &[u8]) -> Result<Info, Malformed> {
        let mut rest = data;
        let info = match take!(rest, u16) {
            INFO_EXPORT => Info::Export { size: take!(rest, u64), flags: take!(rest, u16) },
            INFO_BLOCK_SIZE => {
                Info::BlockSize { min: take!(rest, u32), preferred: take!(rest, u32), max: take!(rest, u32) }
            }
            _ => return Ok(Info::Other),
        };
        if rest.is_empty() { Ok(info) } else { Err(Malformed("a detail of an export is too long")) }
    }
}

/// Number and name of a metadata context, the data of `REP_META_CONTEXT`.
///
/// # Errors
/// Too short, or a bad name.
pub fn meta_context(data: &[u8]) -> Result<(u32, &str), Malformed> {
    let mut rest = data;
    let id = take!(rest, u32);
    Ok((id, string(rest)?))
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; after a successful read the data follows.
    Simple {
        /// 0, or an error number.
        error: u32,
        /// The request's cookie.
        cookie: u64,
    },
    /// One chunk of a structured or extended reply.
    Chunk {
        /// `REPLY_FLAG_*`.
        flags: u16,
        /// `REPLY_TYPE_*`, or anything else.
        kind: u16,
        /// The request's cookie.
        cookie: u64,
        /// The request's offset, which only extended replies tell.
        offset: Option<u64>,
        /// Length of the content that follows, in bytes.
        length: u64,
    },
}

impl ReplyHeader {
    /// Decodes the header at the start of `bytes`; `None` asks for more, from the shortest to the longest of
    /// [`Style::reply_header_lens`].
    ///
    /// # Errors
    /// A magic that is none, or not of this style: the stream is out of step and cannot go on.
    pub fn decode(bytes: &[u8], style: Style) -> Result<Option<ReplyHeader>, Malformed> {
        let (shortest, longest) = style.reply_header_lens();
        if bytes.len() < shortest {
            return Ok(None);
        }
        let mut rest = bytes;
        match (take!(rest, u32), style) {
            (SIMPLE_REPLY_MAGIC, Style::Simple | Style::Structured) => {
                let (error, cookie) = (take!(rest, u32), take!(rest, u64));
                let _data = rest;
                Ok(Some(ReplyHeader::Simple { error, cookie }))
            }
            (STRUCTURED_REPLY_MAGIC, Style::Structured) if bytes.len() < longest => Ok(None),
            (STRUCTURED_REPLY_MAGIC, Style::Structured) => {
                let (flags, kind) = (take!(rest, u16), take!(rest, u16));
                let (cookie, length) = (take!(rest, u64), u64::from(take!(rest, u32)));
                let _content = rest;
                Ok(Some(ReplyHeader::Chunk { flags, kind, cookie, offset: None, length }))
            }
            (EXTENDED_REPLY_MAGIC, Style::Extended) => {
                let (flags, kind) = (take!(rest, u16), take!(rest, u16));
                let (cookie, offset, length) = (take!(rest, u64), take!(rest, u64), take!(rest, u64));
                let _content = rest;
                Ok(Some(ReplyHeader::Chunk { flags, kind, cookie, offset: Some(offset), length }))
            }
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                Err(Malformed("a reply is of another style than was agreed on"))
            }
            _ => Err(Malformed("a reply does not start with a reply magic")),
        }
    }
}

/// The offset in front of a data chunk's bytes.
///
/// # Errors
/// Too short.
pub fn data_offset(content: &[u8]) -> Result<u64, Malformed> {
    let mut rest = content;
    let offset = take!(rest, u64);
    let _data = rest;
    Ok(offset)
}

/// Offset and length of a hole chunk.
///
/// # Errors
/// Another length than a hole chunk has.
pub fn hole(content: &[u8]) -> Result<(u64, u32), Malformed> {
    let mut rest = content;
    let hole = (take!(rest, u64), take!(rest, u32));
    if rest.is_empty() { Ok(hole) } else { Err(Malformed("a hole chunk is too long")) }
}

/// Metadata context and extents (length, flags) of a block status chunk, which is a `BLOCK_STATUS_EXT` in the extended
/// style.
///
/// # Errors
/// Another length than extents make, or another count of them than is told.
pub fn extents(content: &[u8], style: Style) -> Result<(u32, Vec<(u64, u64)>), Malformed> {
    let mut rest = content;
    let context = take!(rest, u32);
    if style == Style::Extended {
        let count = take!(rest, u32);
        // Checked before anything is allocated: the count is the server's word.
        if rest.len() as u64 != u64::from(count) * 16 {
            return Err(Malformed("the number of extents does not fit the chunk's length"));
        }
        let mut extents = Vec::with_capacity(count as usize);
        while !rest.is_empty() {
            extents.push((take!(rest, u64), take!(rest, u64)));
        }
        return Ok((context, extents));
    }
    let mut extents = Vec::with_capacity(rest.len() / 8);
    while !rest.is_empty() {
        extents.push((u64::from(take!(rest, u32)), u64::from(take!(rest, u32))));
    }
    Ok((context, extents))
}

/// Number and message of an error chunk. What follows the message, an offset in some types, is ignored.
///
/// # Errors
/// Too short.
pub fn error(content: &[u8]) -> Result<(u32, String), Malformed> {
    let mut rest = content;
    let (number, length) = (take!(rest, u32), usize::from(take!(rest, u16)));
    let message = rest.get(..length).ok_or(Malformed("an error's message is longer than its chunk"))?;
    Ok((number, String::from_utf8_lossy(message).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::constants::{
        FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPT_GO, REP_ACK, REP_INFO, REP_META_CONTEXT, REPLY_FLAG_DONE,
        REPLY_TYPE_BLOCK_STATUS, REPLY_TYPE_BLOCK_STATUS_EXT, REPLY_TYPE_ERROR, REPLY_TYPE_OFFSET_DATA,
        REPLY_TYPE_OFFSET_HOLE,
    };
    use super::super::handshake::{
        OptionHeader, greeting, info_block_size, info_export, option_reply, rep_meta_context,
    };
    use super::super::reply;
    use super::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            for style in [Style::Simple, Style::Structured, Style::Extended] {
                let _ = ReplyHeader::decode(&bytes, style);
                let _ = extents(&bytes, style);
            }
            let _ = Info::decode(&bytes);
            let _ = meta_context(&bytes);
            let _ = data_offset(&bytes);
            let _ = hole(&bytes);
            let _ = error(&bytes);
        }
    }

    fn reply_of(encode: impl FnOnce(&mut Vec<u8>)) -> (OptionReplyHeader, Vec<u8>) {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        let (head, data) = bytes.split_first_chunk().expect("has a header");
        (OptionReplyHeader::decode(head).expect("is one"), data.to_vec())
    }

    #[test]
    fn the_handshake_that_the_server_encodes_is_understood() {
        assert_eq!(greeting_flags(&greeting()), Ok(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        assert!(greeting_flags(b"SSH-2.0-OpenSSH_9\n").is_err());
        let (head, data) = reply_of(|out| info_export(out, OPT_GO, 5 << 40, 0x123));
        assert_eq!(head, OptionReplyHeader { option: OPT_GO, kind: REP_INFO, length: 12 });
        assert_eq!(Info::decode(&data), Ok(Info::Export { size: 5 << 40, flags: 0x123 }));
        let (_, data) = reply_of(|out| info_block_size(out, OPT_GO, 1, 2, 3));
        assert_eq!(Info::decode(&data), Ok(Info::BlockSize { min: 1, preferred: 2, max: 3 }));
        assert!(Info::decode(&data[..data.len() - 1]).is_err());
        let (head, data) = reply_of(|out| rep_meta_context(out, OPT_GO, 7, "base:allocation"));
        assert_eq!((head.kind, meta_context(&data)), (REP_META_CONTEXT, Ok((7, "base:allocation"))));
        let (head, _) = reply_of(|out| option_reply(out, OPT_GO, REP_ACK, &[]));
        assert_eq!((head.kind, head.length), (REP_ACK, 0));
        let mut sent = Vec::new();
        option(&mut sent, OPT_GO, &[b"ab", b"c"]);
        assert_eq!(OptionHeader::decode(&sent), Ok(Some(OptionHeader { option: OPT_GO, length: 3 })));
        assert!(sent.ends_with(b"abc"));
    }

    #[test]
    fn the_replies_that_the_server_encodes_are_understood() {
        for style in [Style::Structured, Style::Extended] {
            let to = reply::ReplyTo { style, cookie: 9, offset: 512 };
            let (shortest, longest) = style.reply_header_lens();
            let chunk = |encode: &dyn Fn(&mut Vec<u8>)| {
                let mut bytes = Vec::new();
                encode(&mut bytes);
                for cut in 0..longest {
                    assert_eq!(ReplyHeader::decode(&bytes[..cut], style), Ok(None));
                }
                let header = ReplyHeader::decode(&bytes, style).expect("is a reply").expect("is whole");
                let ReplyHeader::Chunk { flags, kind, cookie: 9, offset, length } = header else {
                    panic!("{header:?}")
                };
                assert_eq!(offset, (style == Style::Extended).then_some(512));
                // The data of a data chunk is sent from elsewhere.
                let data = if kind == REPLY_TYPE_OFFSET_DATA { 5 } else { 0 };
                assert_eq!(length, (bytes.len() - longest) as u64 + data);
                (flags & REPLY_FLAG_DONE != 0, kind, bytes.split_off(longest))
            };
            let (done, kind, content) = chunk(&|out| reply::offset_data(out, to, false, 512, 5));
            assert_eq!((done, kind, data_offset(&content)), (false, REPLY_TYPE_OFFSET_DATA, Ok(512)));
            let (done, kind, content) = chunk(&|out| reply::offset_hole(out, to, true, 512, 7));
            assert_eq!((done, kind, hole(&content)), (true, REPLY_TYPE_OFFSET_HOLE, Ok((512, 7))));
            let (_, kind, content) = chunk(&|out| reply::block_status(out, to, true, 1, &[(8, 3), (9, 0)]));
            let is_ext = kind == REPLY_TYPE_BLOCK_STATUS_EXT;
            assert!(is_ext == (style == Style::Extended) && (is_ext || kind == REPLY_TYPE_BLOCK_STATUS));
            assert_eq!(extents(&content, style), Ok((1, vec![(8, 3), (9, 0)])));
            assert!(extents(&content[..content.len() - 1], style).is_err());
            let (_, kind, content) = chunk(&|out| reply::error(out, to, 28, "full"));
            assert_eq!((kind, error(&content)), (REPLY_TYPE_ERROR, Ok((28, "full".to_owned()))));
            assert!(ReplyHeader::decode(&vec![0; shortest], style).is_err());
        }
    }

    #[test]
    fn a_reply_of_another_style_is_refused() {
        let mut simple = Vec::new();
        reply::simple(&mut simple, 9, 5);
        for style in [Style::Simple, Style::Structured] {
            assert_eq!(ReplyHeader::decode(&simple, style), Ok(Some(ReplyHeader::Simple { error: 5, cookie: 9 })));
        }
        simple.resize(32, 0);
        assert!(ReplyHeader::decode(&simple, Style::Extended).is_err());
        for (sent, agreed) in [
            (Style::Structured, Style::Simple),
            (Style::Structured, Style::Extended),
            (Style::Extended, Style::Structured),
        ] {
            let mut bytes = Vec::new();
            reply::none(&mut bytes, reply::ReplyTo { style: sent, cookie: 1, offset: 0 });
            bytes.resize(32, 0);
            assert!(ReplyHeader::decode(&bytes, agreed).is_err(), "{sent:?} where {agreed:?} was agreed on");
        }
    }
}
