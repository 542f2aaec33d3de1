//! What a node serves: volumes to NBD clients and to other nodes, and its administrators.

mod accepting;
pub mod admin;
pub mod audit;
pub mod client;
pub mod cut;
pub mod durability;
pub mod exports;
pub mod http;
mod kept;
pub mod keys;
pub mod metadata;
pub mod numbers;
pub mod observe;
mod outcome;
pub mod pace;
mod residency;
pub mod resize;
pub mod sending;
mod session;
pub mod snapshots;
mod status;
pub mod tail;
mod through;
pub mod volume;
pub mod volumes;
