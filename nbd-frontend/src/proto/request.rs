//! The request of the transmission phase ("Request message"), compact and extended.

use super::Malformed;
use super::constants::{CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use super::style::Style;

/// The bytes of a compact request before its payload: magic 4, flags 2, type 2, cookie 8, offset 8, length 4.
pub const REQUEST_HEADER_LEN: usize = 28;
/// The bytes of an extended request before its payload: the same, with a length of 8.
pub const EXTENDED_REQUEST_HEADER_LEN: usize = 32;
const _: () = assert!(REQUEST_HEADER_LEN == 4 + 2 + 2 + 8 + 8 + 4, "the layout of \"Request message\"");
const _: () = assert!(EXTENDED_REQUEST_HEADER_LEN == 4 + 2 + 2 + 8 + 8 + 8, "the layout of \"Request message\"");

/// A request as it came: nothing in it has been judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Command, one of `CMD_*` or anything else.
    pub command: u16,
    /// The client's name for the request, returned in the reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes; where a payload follows ([`RequestHeader::payload_len`]), that of the payload.
    pub length: u64,
}

impl RequestHeader {
    /// Decodes the header at the start of `bytes`; `None` asks for more bytes.
    ///
    /// # Errors
    /// A wrong magic: the stream is out of step and cannot go on.
    pub fn decode(bytes: &[u8], style: Style) -> Result<Option<RequestHeader>, Malformed> {
        let magic = match style {
            Style::Simple | Style::Structured => REQUEST_MAGIC,
            Style::Extended => EXTENDED_REQUEST_MAGIC,
        };
        let Some(header) = bytes.first_chunk::<REQUEST_HEADER_LEN>() else {
            // A wrong magic is told as soon as it is seen: a peer that speaks something else may never send 28 bytes.
            let magic = magic.to_be_bytes();
            let seen = bytes.len().min(magic.len());
            return if bytes[..seen] == magic[..seen] { Ok(None) } else { Err(WRONG_MAGIC) };
        };
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *header;
        if u32::from_be_bytes([m0, m1, m2, m3]) != magic {
            return Err(WRONG_MAGIC);
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        let mut length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        if style == Style::Extended {
            let Some([.., l4, l5, l6, l7]) = bytes.first_chunk::<EXTENDED_REQUEST_HEADER_LEN>() else {
                return Ok(None);
            };
            length = length << 32 | u64::from(u32::from_be_bytes([*l4, *l5, *l6, *l7]));
        }
        Ok(Some(RequestHeader {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length,
        }))
    }

    /// Appends the header's bytes, as a client sends them.
    ///
    /// # Panics
    /// A compact request whose length has more than 32 bits: the caller cuts what it asks for.
    pub fn encode(&self, style: Style, out: &mut Vec<u8>) {
        let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        let length = self.length.to_be_bytes();
        if style == Style::Extended {
            out.extend_from_slice(&length);
        } else {
            let (high, low) = length.split_at(4);
            assert!(high == [0; 4], "a compact request of {} bytes", self.length);
            out.extend_from_slice(low);
        }
    }

    /// How many bytes of payload follow the header ("Request message"): those of a write, and with extended headers also where
    /// the flag says so. It must be on a write then too, but QEMU (10.0) leaves it out and sends the payload, as
    /// what would a write be without one.
    #[must_use]
    pub const fn payload_len(&self, style: Style) -> u64 {
        let has_payload = match style {
            Style::Simple | Style::Structured => self.command == CMD_WRITE,
            Style::Extended => self.command == CMD_WRITE || self.flags & CMD_FLAG_PAYLOAD_LEN != 0,
        };
        if has_payload { self.length } else { 0 }
    }
}

/// The payload of a BLOCK_STATUS ("Request types", `NBD_CMD_BLOCK_STATUS`): the length of the range, and the numbers of the
/// metadata contexts that are asked for.
///
/// # Errors
/// A length that these do not make.
pub fn status_filter(payload: &[u8]) -> Result<(u64, Vec<u32>), Malformed> {
    const WRONG_LEN: Malformed = Malformed("the payload is not a length and a list of metadata contexts");
    let (length, ids) = payload.split_first_chunk().ok_or(WRONG_LEN)?;
    let (ids, []) = ids.as_chunks::<4>() else { return Err(WRONG_LEN) };
    Ok((u64::from_be_bytes(*length), ids.iter().map(|id| u32::from_be_bytes(*id)).collect()))
}

const WRONG_MAGIC: Malformed = Malformed("a request does not start with the request magic that was agreed on");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

    fn encoded(header: &RequestHeader, style: Style) -> Vec<u8> {
        let mut out = Vec::new();
        header.encode(style, &mut out);
        out
    }

    proptest! {
        #[test]
        fn a_request_reads_back_and_every_prefix_asks_for_more(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u64, cut in 0..EXTENDED_REQUEST_HEADER_LEN,
        ) {
            for style in STYLES {
                let length = if style == Style::Extended { length } else { length >> 32 };
                let header = RequestHeader { flags, command, cookie, offset, length };
                let bytes = encoded(&header, style);
                prop_assert_eq!(bytes.len(), style.request_header_len());
                prop_assert_eq!(RequestHeader::decode(&bytes, style), Ok(Some(header)));
                prop_assert_eq!(RequestHeader::decode(&bytes[..cut.min(bytes.len() - 1)], style), Ok(None));
            }
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            for style in STYLES {
                let _ = RequestHeader::decode(&bytes, style);
            }
            let _ = status_filter(&bytes);
        }
    }

    #[test]
    fn the_layout_is_that_of_the_document() {
        let header = RequestHeader { flags: 0x0102, command: 0x0304, cookie: 0x05, offset: 0x06, length: 0x07 };
        let fields = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 7];
        assert_eq!(encoded(&header, Style::Structured), [&[0x25, 0x60, 0x95, 0x13][..], &fields].concat());
        let extended = [&[0x21, 0xe4, 0x1c, 0x71][..], &fields[..20], &[0, 0, 0, 0, 0, 0, 0, 7]].concat();
        assert_eq!(encoded(&header, Style::Extended), extended);
    }

    #[test]
    fn a_wrong_magic_is_told_at_the_first_wrong_byte() {
        for style in STYLES {
            assert!(RequestHeader::decode(b"GET / HTTP/1.1\r\n\r\n0123456789", style).is_err());
            assert!(RequestHeader::decode(&[0x25, 0x61], style).is_err());
        }
        let header = RequestHeader { flags: 0, command: 0, cookie: 0, offset: 0, length: 0 };
        assert!(RequestHeader::decode(&encoded(&header, Style::Simple), Style::Extended).is_err());
        assert!(RequestHeader::decode(&encoded(&header, Style::Extended), Style::Structured).is_err());
    }

    #[test]
    fn payloads_follow_writes_or_the_flag() {
        let header = |command, flags| RequestHeader { flags, command, cookie: 0, offset: 0, length: 512 };
        for (command, flags, style, expected) in [
            (CMD_WRITE, 0, Style::Simple, 512),
            (CMD_WRITE, 0, Style::Structured, 512),
            (CMD_WRITE, 0, Style::Extended, 512),
            (99, 0, Style::Extended, 0),
            (CMD_WRITE, CMD_FLAG_PAYLOAD_LEN, Style::Extended, 512),
            (99, CMD_FLAG_PAYLOAD_LEN, Style::Extended, 512),
            (99, CMD_FLAG_PAYLOAD_LEN, Style::Structured, 0),
        ] {
            assert_eq!(header(command, flags).payload_len(style), expected, "{command} {flags:#x} {style:?}");
        }
    }

    #[test]
    fn a_status_filter_is_a_length_and_numbers() {
        let payload = [&7u64.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 2]].concat();
        assert_eq!(status_filter(&payload), Ok((7, vec![1, 2])));
        assert_eq!(status_filter(&payload[..8]), Ok((7, vec![])));
        assert!(status_filter(&payload[..7]).is_err() && status_filter(&payload[..11]).is_err());
    }
}
