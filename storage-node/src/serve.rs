//! What a node serves: volumes to NBD clients and to other nodes, and its administrators.

pub mod admin;
pub mod http;
pub mod session;
pub mod volume;
