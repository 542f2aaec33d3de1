//! The NBD wire: constants and codecs, pure functions between bytes and values.
//!
//! Nothing here does I/O, keeps state between messages or judges whether a request is allowed; that is for
//! `negotiation`, `transmission` and `validate`. Bytes from a peer never panic a decoder: they fail as
//! [`Malformed`], and a prefix of a message asks for more.

pub mod constants;
pub mod handshake;
pub mod peer;
pub mod reply;
pub mod request;
pub mod style;

/// Bytes that no conforming peer sends: the connection cannot go on, or the option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);
