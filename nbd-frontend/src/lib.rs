//! An NBD server over any set of exports, and an NBD client.
//!
//! Owns the NBD protocol: the wire ([`proto`]), the handshake, the judgement of requests, the request loop, the
//! listening sockets ([`server`]), TLS ([`tls`]), passing connections on to a newer process ([`passing`]), what is said to a service manager ([`service`]), and the
//! other end of all that ([`client`]). What is served is behind [`export::ExportDirectory`], encrypted volumes with their cipher before them ([`encrypted`]); the crate knows
//! neither logs nor nodes, only `client-lib`. [`remote`] exports volumes of a cluster, which is what the program `helio-nbd` serves;
//! [`memory`] is an export in memory for tests and benchmarks.
//!
//! Comments and constants cite the protocol document by its section names:
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

// Test helpers are shared with the tests outside.
#[cfg(test)]
extern crate self as nbd_frontend;

pub mod arguments;
pub mod client;
pub mod contexts;
pub mod encrypted;
pub mod errno;
pub mod export;
pub mod memory;
pub mod negotiation;
pub mod passing;
pub mod proto;
pub mod remote;
pub mod server;
pub mod service;
pub mod tls;
mod transmission;
pub mod validate;

pub use encrypted::EncryptedSession;
pub use export::{AllocationExtent, ExportDirectory, ExportInfo, Residency, ResidencyExtent, Session, ZeroOptions};
pub use memory::{MemoryDirectory, MemoryExport};
pub use server::{Limits, Server, ServerOptions};
pub use service::sockets::PassedSockets;
pub use tls::{TlsMode, TlsOptions};
