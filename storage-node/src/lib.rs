//! The Heliotrope node: the block store, propagation, ownership and the composition of all parts.

pub mod io;
pub mod log;
pub mod map;
pub mod ownership;
pub mod peer;
pub mod propagation;
pub mod serve;
pub mod shard;
pub mod volume;
pub mod wan;
