//! Node to node: what nodes ask of each other about volumes, the calling end and the answering end.

pub mod alike;
pub mod client;
pub mod links;
pub mod message;
pub mod names;
pub mod packing;
pub mod server;
