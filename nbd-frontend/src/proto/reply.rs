//! Replies of the transmission phase ("Simple reply message", "Structured reply chunk message").
//!
//! Encoders append to a byte vector, so that the headers of many replies lie in one piece; payload bytes are
//! never copied here.

use super::constants::{
    REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS, REPLY_TYPE_ERROR, REPLY_TYPE_NONE, REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

/// Length of a simple reply without data: magic 4, error 4, cookie 8.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Length of a chunk's header: magic 4, flags 2, type 2, cookie 8, length 4.
pub const CHUNK_HEADER_LEN: usize = 20;
/// The longest message of an error chunk, in bytes; longer ones are cut ("Conventions" allows 4096).
pub const ERROR_MESSAGE_LEN_MAX: usize = 512;

/// Appends a simple reply; `error` 0 is success, and data of a read follows.
pub fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    let mut bytes = [0; SIMPLE_REPLY_LEN];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&bytes);
}

fn chunk(out: &mut Vec<u8>, cookie: u64, done: bool, kind: u16, length: u32) {
    let flags = if done { REPLY_FLAG_DONE } else { 0 };
    let mut bytes = [0; CHUNK_HEADER_LEN];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Appends a chunk without content, the last of its reply.
pub fn none(out: &mut Vec<u8>, cookie: u64) {
    chunk(out, cookie, true, REPLY_TYPE_NONE, 0);
}

/// Appends the head of a data chunk; `length` bytes of data must follow.
pub fn offset_data(out: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, length: u32) {
    chunk(out, cookie, done, REPLY_TYPE_OFFSET_DATA, length + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a hole chunk.
pub fn offset_hole(out: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, length: u32) {
    chunk(out, cookie, done, REPLY_TYPE_OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Appends the extents (length, flags) of one metadata context, the last chunk of its reply.
pub fn block_status(out: &mut Vec<u8>, cookie: u64, context: u32, extents: &[(u32, u32)]) {
    chunk(out, cookie, true, REPLY_TYPE_BLOCK_STATUS, 4 + 8 * extents.len() as u32);
    out.extend_from_slice(&context.to_be_bytes());
    for (length, flags) in extents {
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

/// Appends an error chunk, the last of its reply. The message is for people and cut to
/// [`ERROR_MESSAGE_LEN_MAX`].
pub fn error(out: &mut Vec<u8>, cookie: u64, error: u32, message: &str) {
    let message = cut(message);
    chunk(out, cookie, true, REPLY_TYPE_ERROR, 6 + message.len() as u32);
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
        assert_eq!(encoded(|out| none(out, 9)), head(1, [0, 0], 0));
        let mut data = head(0, [0, 1], 13);
        data.extend([0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(encoded(|out| offset_data(out, 9, false, 512, 5)), data);
        let mut hole = head(1, [0, 2], 12);
        hole.extend([0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 7]);
        assert_eq!(encoded(|out| offset_hole(out, 9, true, 512, 7)), hole);
        let mut status = head(1, [0, 5], 12);
        status.extend([0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 3]);
        assert_eq!(encoded(|out| block_status(out, 9, 1, &[(8, 3)])), status);
        let mut failed = head(1, [0x80, 1], 8);
        failed.extend([0, 0, 0, 5, 0, 2, b'n', b'o']);
        assert_eq!(encoded(|out| error(out, 9, 5, "no")), failed);
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
