//! Which messages the transmission phase has, as the handshake agreed on.

use super::reply::{CHUNK_HEADER_LEN, EXTENDED_CHUNK_HEADER_LEN, SIMPLE_REPLY_LEN};
use super::request::{EXTENDED_REQUEST_HEADER_LEN, REQUEST_HEADER_LEN};

/// The messages of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; structured replies, and simple ones to requests without data ("Structured reply chunk message").
    Structured,
    /// Extended requests and replies, and no others ("Extended reply chunk message").
    Extended,
}

impl Style {
    /// Whether reads are answered in chunks, and failures with a message.
    #[must_use]
    pub const fn is_chunked(self) -> bool {
        !matches!(self, Style::Simple)
    }

    /// Length of a request before its payload, in bytes.
    #[must_use]
    pub const fn request_header_len(self) -> usize {
        match self {
            Style::Simple | Style::Structured => REQUEST_HEADER_LEN,
            Style::Extended => EXTENDED_REQUEST_HEADER_LEN,
        }
    }

    /// Length of the shortest and of the longest reply before its data, in bytes.
    #[must_use]
    pub const fn reply_header_lens(self) -> (usize, usize) {
        match self {
            Style::Simple => (SIMPLE_REPLY_LEN, SIMPLE_REPLY_LEN),
            Style::Structured => (SIMPLE_REPLY_LEN, CHUNK_HEADER_LEN),
            Style::Extended => (EXTENDED_CHUNK_HEADER_LEN, EXTENDED_CHUNK_HEADER_LEN),
        }
    }
}
