//! What crosses the network: the frame ([`frame`]). Owns no meaning beyond the header; the messages inside
//! belong to the services that exchange them.

pub mod admin;
pub mod client;
pub mod frame;
pub mod join;

pub use frame::{Frame, FrameError, ServiceId, decode_head, encode_head};
