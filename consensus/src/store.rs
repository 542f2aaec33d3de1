//! Raft's log and the state machine in one RocksDB, so that they share one write-ahead log and its order.
//!
//! [`types`] fixes openraft's types, [`database`] is the only user of RocksDB, [`memory`] takes its place on simulated machines, [`log_store`] and [`state_machine`] are
//! openraft's storage traits on it. Durability: votes and log entries are synced before they are answered; applied
//! state is not, since it can be applied again from the log. It stands before any purge in the same write-ahead log, so
//! a purge that survives a crash never outlives the state it relied on.

pub mod database;
pub mod log_store;
pub mod memory;
pub mod state_machine;
pub mod types;

#[cfg(test)]
mod tests;
