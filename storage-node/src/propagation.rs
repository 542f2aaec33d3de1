//! Carrying what was written at the owner to the other nodes: manifests ahead, data behind, pulls on demand.

pub mod ahead;
pub mod classes;
pub mod debt;
pub mod fan;
pub mod flushes;
pub mod freight;
pub mod hearing;
pub mod heat;
pub mod intake;
pub mod manifest;
pub mod order;
mod pinned;
pub mod progress;
pub mod pull;
mod push;
pub mod receiver;
pub mod repair;
mod rest;
pub mod rpo;
mod seat;
pub mod sender;
pub mod telling;
pub mod throttle;
pub mod timeline;
pub mod watermarks;
