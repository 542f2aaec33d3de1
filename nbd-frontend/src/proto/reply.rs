//! Replies of the transmission phase ("Simple reply message", "Structured reply chunk message", "Extended reply chunk
//! message").
//!
//! Encoders append to a byte vector, so that the headers of many replies lie in one piece; payload bytes are
//! never copied here.

use super::constants::{
    EXTENDED_REPLY_MAGIC, REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS, REPLY_TYPE_BLOCK_STATUS_EXT, REPLY_TYPE_ERROR,
    REPLY_TYPE_NONE, REPLY_TYPE_OFFSET_DATA, REPLY_TYPE_OFFSET_HOLE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::style::Style;

/// Length of a simple reply without data: magic 4, error 4, cookie 8.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Length of a structured chunk's header: magic 4, flags 2, type 2, cookie 8, length 4.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Length of an extended chunk's header: magic 4, flags 2, type 2, cookie 8, offset 8, length 8.
pub const EXTENDED_CHUNK_HEADER_LEN: usize = 32;
/// The longest message of an error chunk, in bytes; longer ones are cut ("Conventions" allows 4096).
pub const ERROR_MESSAGE_LEN_MAX: usize = 512;

/// Which request a reply is to, and in which style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// What was agreed on.
    pub style: Style,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, which extended replies repeat.
    pub offset: u64,
}

/// Appends a simple reply; `error` 0 is success, and data of a read follows.
pub fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    let mut bytes = [0; SIMPLE_REPLY_LEN];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&bytes);
}

fn chunk(out: &mut Vec<u8>, to: ReplyTo, done: bool, kind: u16, length: u32) {
    let flags = if done { REPLY_FLAG_DONE } else { 0 };
    if to.style == Style::Extended {
        let mut bytes = [0; EXTENDED_CHUNK_HEADER_LEN];
        bytes[0..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&to.offset.to_be_bytes());
        bytes[24..32].copy_from_slice(&u64::from(length).to_be_bytes());
        return out.extend_from_slice(&bytes);
    }
    let mut bytes = [0; CHUNK_HEADER_LEN];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Appends a chunk without content, the last of its reply.
pub fn none(out: &mut Vec<u8>, to: ReplyTo) {
    chunk(out, to, true, REPLY_TYPE_NONE, 0);
}

/// Appends the head of a data chunk; `length` bytes of data must follow.
pub fn offset_data(out: &mut Vec<u8>, to: ReplyTo, done: bool, offset: u64, length: u32) {
    chunk(out, to, done, REPLY_TYPE_OFFSET_DATA, length + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a hole chunk.
pub fn offset_hole(out: &mut Vec<u8>, to: ReplyTo, done: bool, offset: u64, length: u32) {
    chunk(out, to, done, REPLY_TYPE_OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Appends the extents (length, flags) of one metadata context. In the structured style lengths have 32 bits: longer ones
/// are for the caller to cut.
pub fn block_status(out: &mut Vec<u8>, to: ReplyTo, done: bool, context: u32, extents: &[(u64, u32)]) {
    let count = extents.len() as u32;
    if to.style == Style::Extended {
        chunk(out, to, done, REPLY_TYPE_BLOCK_STATUS_EXT, 8 + 16 * count);
        out.extend_from_slice(&context.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        for (length, flags) in extents {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&u64::from(*flags).to_be_bytes());
        }
        return;
    }
    chunk(out, to, done, REPLY_TYPE_BLOCK_STATUS, 4 + 8 * count);
    out.extend_from_slice(&context.to_be_bytes());
    for (length, flags) in extents {
        debug_assert!(u32::try_from(*length).is_ok(), "an extent of {length} bytes in 32 bits");
        out.extend_from_slice(&(*length as u32).to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

/// Appends an error chunk, the last of its reply. The message is for people and cut to
/// [`ERROR_MESSAGE_LEN_MAX`].
pub fn error(out: &mut Vec<u8>, to: ReplyTo, error: u32, message: &str) {
    let message = cut(message);
    chunk(out, to, true, REPLY_TYPE_ERROR, 6 + message.len() as u32);
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

/// Strings of the protocol are UTF-8 without NUL ("Conventions"): cut between characters, end at a NUL.
fn cut(message: &str) -> &str {
    let end = message.floor_char_boundary(message.len().min(ERROR_MESSAGE_LEN_MAX));
    message[..end].split('\0').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    #[test]
    fn the_layouts_are_those_of_the_document() {
        assert_eq!(
            encoded(|out| simple(out, 0x0102, 22)),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 1, 2]
        );
        let head = |flags: u8, kind: [u8; 2], length: u8| {
            let [k0, k1] = kind;
            vec![0x66, 0x8e, 0x33, 0xef, 0, flags, k0, k1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, length]
        };
        let to = ReplyTo { style: Style::Structured, cookie: 9, offset: 512 };
        assert_eq!(encoded(|out| none(out, to)), head(1, [0, 0], 0));
        let mut data = head(0, [0, 1], 13);
        data.extend([0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(encoded(|out| offset_data(out, to, false, 512, 5)), data);
        let mut hole = head(1, [0, 2], 12);
        hole.extend([0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 7]);
        assert_eq!(encoded(|out| offset_hole(out, to, true, 512, 7)), hole);
        let mut status = head(1, [0, 5], 12);
        status.extend([0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 3]);
        assert_eq!(encoded(|out| block_status(out, to, true, 1, &[(8, 3)])), status);
        let mut failed = head(1, [0x80, 1], 8);
        failed.extend([0, 0, 0, 5, 0, 2, b'n', b'o']);
        assert_eq!(encoded(|out| error(out, to, 5, "no")), failed);
    }

    #[test]
    fn the_extended_layouts_are_those_of_the_document() {
        let to = ReplyTo { style: Style::Extended, cookie: 9, offset: 512 };
        let head = |flags: u8, kind: [u8; 2], length: u8| {
            let [k0, k1] = kind;
            let mut head =
                vec![0x6e, 0x8a, 0x27, 0x8c, 0, flags, k0, k1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 2, 0];
            head.extend([0, 0, 0, 0, 0, 0, 0, length]);
            head
        };
        assert_eq!(encoded(|out| none(out, to)), head(1, [0, 0], 0));
        let mut data = head(0, [0, 1], 13);
        data.extend([0, 0, 0, 0, 0, 0, 4, 0]);
        assert_eq!(encoded(|out| offset_data(out, to, false, 1024, 5)), data);
        let mut status = head(1, [0, 6], 24);
        status.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(encoded(|out| block_status(out, to, true, 1, &[(1 << 40, 3)])), status);
        let mut failed = head(1, [0x80, 1], 8);
        failed.extend([0, 0, 0, 5, 0, 2, b'n', b'o']);
        assert_eq!(encoded(|out| error(out, to, 5, "no")), failed);
    }

    #[test]
    fn messages_are_cut_between_characters_and_before_a_nul() {
        assert_eq!(cut("a\0b"), "a");
        let long = "é".repeat(ERROR_MESSAGE_LEN_MAX);
        assert_eq!(cut(&long).len(), ERROR_MESSAGE_LEN_MAX);
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), ERROR_MESSAGE_LEN_MAX - 1);
    }
}
