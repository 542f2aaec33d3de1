//! The Heliotrope node: the block store, propagation, ownership and the composition of all parts.

pub mod propagation;
pub mod shard;
pub mod wan;
