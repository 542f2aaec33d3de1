//! The request header of the transmission phase ("Request message").

use super::Malformed;
use super::constants::REQUEST_MAGIC;

/// The bytes of a request before its payload: magic 4, flags 2, type 2, cookie 8, offset 8, length 4.
pub const REQUEST_HEADER_LEN: usize = 28;
const _: () = assert!(REQUEST_HEADER_LEN == 4 + 2 + 2 + 8 + 8 + 4, "the layout of \"Request message\"");

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
    /// Length of the range in bytes; of a write also of the payload.
    pub length: u32,
}

impl RequestHeader {
    /// Decodes the header at the start of `bytes`; `None` asks for more bytes.
    ///
    /// # Errors
    /// A wrong magic: the stream is out of step and cannot go on.
    pub fn decode(bytes: &[u8]) -> Result<Option<RequestHeader>, Malformed> {
        let Some(header) = bytes.first_chunk::<REQUEST_HEADER_LEN>() else {
            // A wrong magic is told as soon as it is seen: a peer that speaks something else may never send 28 bytes.
            let magic = REQUEST_MAGIC.to_be_bytes();
            let seen = bytes.len().min(magic.len());
            return if bytes[..seen] == magic[..seen] { Ok(None) } else { Err(WRONG_MAGIC) };
        };
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *header;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REQUEST_MAGIC {
            return Err(WRONG_MAGIC);
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Some(RequestHeader {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        }))
    }

    /// The header's bytes, as a client sends them.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_HEADER_LEN] {
        let mut bytes = [0; REQUEST_HEADER_LEN];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

const WRONG_MAGIC: Malformed = Malformed("a request does not start with the request magic");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_request_reads_back_and_every_prefix_asks_for_more(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32, cut in 0..REQUEST_HEADER_LEN,
        ) {
            let header = RequestHeader { flags, command, cookie, offset, length };
            let bytes = header.encode();
            prop_assert_eq!(RequestHeader::decode(&bytes), Ok(Some(header)));
            prop_assert_eq!(RequestHeader::decode(&bytes[..cut]), Ok(None));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = RequestHeader::decode(&bytes);
        }
    }

    #[test]
    fn the_layout_is_that_of_the_document() {
        let header = RequestHeader { flags: 0x0102, command: 0x0304, cookie: 0x05, offset: 0x06, length: 0x07 };
        assert_eq!(
            header.encode(),
            [0x25, 0x60, 0x95, 0x13, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 7]
        );
    }

    #[test]
    fn a_wrong_magic_is_told_at_the_first_wrong_byte() {
        assert!(RequestHeader::decode(b"GET / HTTP/1.1\r\n\r\n0123456789").is_err());
        assert!(RequestHeader::decode(&[0x25, 0x61]).is_err());
    }
}
