//! What a node serves: volumes to NBD clients and to other nodes, and its administrators.

pub mod session;
pub mod volume;
