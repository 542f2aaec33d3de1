//! The Heliotrope node: the block store, propagation, ownership and the composition of all parts.

pub mod cli;
pub mod config;
pub mod data_dir;
pub mod fault;
#[cfg(test)]
mod golden;
pub mod inspect;
pub mod io;
pub mod log;
pub mod map;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod ownership;
pub mod peer;
pub mod propagation;
pub mod serve;
pub mod shard;
pub mod shards;
#[cfg(test)]
mod simulation;
mod size;
pub mod stores;
pub mod trace;
pub mod volume;
pub mod wan;
